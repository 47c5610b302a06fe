"""How alike are two representations of the same inputs?

`x` (n, ...) and `y` (n, ...) hold what two networks, layers or brains make of the same n inputs, in
the same order; all dimensions but the first are flattened to features, whose numbers may differ.
`cka` and `procrustes_distance` are the usual first choice, `rsa` compares by distances alone;
`svcca` and `pwcca`, which forgive any invertible linear map, are what older work reports.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def cka(x: Tensor, y: Tensor, debiased: bool = False) -> Tensor:
    """Linear centred kernel alignment: 1 for equal geometry, 0 for none in common.

        CKA = HSIC(x, y) / √(HSIC(x, x) · HSIC(y, y)),   HSIC(x, y) = ‖XᵀY‖_F²  (columns centred)

    It is invariant to shifts, rotations and isotropic scaling of either side, not to scaling single
    features. The plain estimator is biased upwards when there are not many more samples than
    features (two independent Gaussians reach about 1 / (1 + n / d)); `debiased` removes that, and
    may be slightly negative. It serves as a loss: gradients are finite everywhere, and half
    precision is computed in float32. Cost: n·p·q or n²·(p + q), whichever is less.

    Kornblith et al. 2019, arXiv 1905.00414, section 3; the unbiased HSIC is that of Song et al.
    2012 (JMLR 13, "Feature selection via dependence maximization"), with the linear kernel put in.

    Args:
        x: (n, ...), floating point.
        y: (n, ...), floating point, the same n inputs.
        debiased: use the unbiased estimator of HSIC, which needs n >= 4.

    Returns:
        A scalar; 0 when x or y does not vary.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: not the same number of samples, or fewer than 2 (4 if debiased).

    >>> cka(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [4.0]]))  # 12 / 13
    tensor(0.9231)
    """
    x, y = (_unit(z) for z in _pair(x, y, at_least=4 if debiased else 2))
    return _alignment(*_hsics(x, y, debiased))


class MinibatchCKA:
    """Linear CKA over more inputs than fit into memory, from minibatches.

        CKA = Σ_b HSIC₁(x_b, y_b) / √(Σ_b HSIC₁(x_b, x_b) · Σ_b HSIC₁(y_b, y_b))

    HSIC₁ is unbiased, so the result does not depend on the batch size but for noise. Nguyen,
    Raghu & Kornblith 2020, arXiv 2010.15327.

    >>> similarity = MinibatchCKA()
    >>> for x in torch.randn(5, 16, 8, generator=torch.Generator().manual_seed(0)):
    ...     similarity = similarity.update(x, 3 * x.flip(-1) + 1)
    >>> print(f"{similarity.compute():.6f}")
    1.000000
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> MinibatchCKA:
        """Add a minibatch.

        Args:
            x: (n, ...), floating point.
            y: (n, ...), floating point, the same n inputs.

        Raises:
            TypeError: x or y is not a floating-point tensor.
            ValueError: not the same number of samples, or fewer than 4.
        """
        x, y = (_centred(z) for z in _pair(x, y, at_least=4))
        n = len(x)
        sums = torch.stack(_hsics(x, y, debiased=True)).double() / (n * (n - 3))
        self._sums = sums if self._sums is None else self._sums + sums
        return self

    def compute(self) -> Tensor:
        """The similarity of what was seen so far, a float64 scalar.

        Raises:
            ValueError: nothing was seen.
        """
        if self._sums is None:
            raise ValueError("compute needs at least one update")
        return _alignment(*self._sums)


def rsa(
    x: Tensor,
    y: Tensor,
    dissimilarity: Literal["correlation", "cosine", "euclidean"] = "correlation",
    comparison: Literal["spearman", "pearson"] = "spearman",
) -> Tensor:
    """Representational similarity analysis: do both sides find the same pairs of inputs alike?

        RSA = correlation over pairs i < j of  D_x[i, j]  and  D_y[i, j]

    D holds one minus the correlation (or the cosine) of two inputs' features, or their Euclidean
    distance. Only `comparison="pearson"` has a useful gradient. Kriegeskorte et al. 2008,
    "Representational similarity analysis" (Front. Syst. Neurosci. 2:4).

    Args:
        x: (n, ...), floating point.
        y: (n, ...), floating point, the same n inputs.
        dissimilarity: between two inputs.
        comparison: correlation between the two lists of n(n - 1)/2 dissimilarities.

    Returns:
        A scalar in [-1, 1]; 0 when one side finds all pairs equally unlike.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: not the same number of samples, fewer than 3, or an unknown name.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> rsa(x, x.square(), dissimilarity="euclidean")  # distances 1, 3, 2 and 1, 9, 8
    tensor(1.)
    """
    if dissimilarity not in _DISSIMILARITIES:
        raise ValueError(
            f"dissimilarity must be one of {[*_DISSIMILARITIES]}, got {dissimilarity!r}"
        )
    if comparison not in ("spearman", "pearson"):
        raise ValueError(f"comparison must be 'spearman' or 'pearson', got {comparison!r}")
    x, y = _pair(x, y, at_least=3)
    i, j = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    a, b = (_DISSIMILARITIES[dissimilarity](z)[i, j] for z in (x, y))
    if comparison == "spearman":
        a, b = _mean_ranks(a), _mean_ranks(b)
    return F.cosine_similarity(a - a.mean(), b - b.mean(), dim=0).to(x.dtype)


def procrustes_distance(x: Tensor, y: Tensor) -> Tensor:
    """Orthogonal Procrustes distance: what is left between two shapes after the best rotation.

        d = min_Q ‖X - YQ‖_F² = 2 - 2 ‖XᵀY‖_*    (columns centred, ‖X‖_F = ‖Y‖_F = 1, QᵀQ = 1)

    With different numbers of features the smaller side counts as padded with zeros. It tells apart
    what CKA lumps together, since it weighs small principal components more; √d is a metric. Ding,
    Denain & Steinhardt 2021, arXiv 2108.01661.

    Args:
        x: (n, ...), floating point.
        y: (n, ...), floating point, the same n inputs.

    Returns:
        A scalar from 0 (equal up to shift, rotation and scale) to 2.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: not the same number of samples, or fewer than 2.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> y = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]])  # mirrored and scaled
    >>> print(f"{procrustes_distance(x, y):.4f}")
    0.0000
    """
    x, y = (_thin(_unit(z)) for z in _pair(x, y, at_least=2))
    return (2 - 2 * torch.linalg.matrix_norm(x.mT @ y, ord="nuc")).clamp_min(0)


def svcca(x: Tensor, y: Tensor, variance: float = 0.99) -> Tensor:
    """Singular vector canonical correlation analysis: do both sides span the same directions?

        SVCCA = mean of ρ_i,   ρ = singular values of U_xᵀ U_y

    U holds the left singular vectors of the centred features that together explain `variance`. As
    many correlations count as the smaller side has such directions. Raghu et al. 2017, arXiv
    1706.05806. It needs many more samples than directions: with n ≤ directions everything
    correlates.

    Args:
        x: (n, ...), floating point.
        y: (n, ...), floating point, the same n inputs.
        variance: share of each side's variance, in (0, 1], that its directions explain.

    Returns:
        A scalar from 0 to 1, blind to rotations; 0 when x or y does not vary.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: not the same number of samples, fewer than 2, or variance outside (0, 1].

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> print(f"{svcca(x, x @ torch.tensor([[2.0, 1.0], [0.0, 3.0]])):.4f}")
    1.0000
    """
    (_, u_x), (_, u_y) = (_directions(z, variance) for z in _pair(x, y, at_least=2))
    correlations = torch.linalg.svdvals(u_x.mT @ u_y)
    return (
        correlations.clamp_max(1).mean() if len(correlations) else x.new_zeros((), dtype=u_x.dtype)
    )


def pwcca(x: Tensor, y: Tensor, variance: float = 1.0) -> Tensor:
    """Projection-weighted canonical correlation analysis: SVCCA that asks what matters to x.

        PWCCA = Σ α_i ρ_i / Σ α_i,   α_i = Σ_j |⟨h_i, x_j⟩|

    h_i is x's i-th canonical variable and x_j its j-th centred feature, so that directions that
    hardly any feature of x uses count little. Not symmetric. Morcos, Raghu & Bengio 2018, arXiv
    1806.05759.

    Args:
        x: (n, ...), floating point.
        y: (n, ...), floating point, the same n inputs.
        variance: share of each side's variance, in (0, 1], that is compared.

    Returns:
        A scalar from 0 to 1; 0 when x or y does not vary.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: not the same number of samples, fewer than 2, or variance outside (0, 1].

    >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -1.0]])
    >>> y = torch.tensor([[1.0, 1.0], [0.0, -1.0], [-1.0, 1.0], [0.0, -1.0]])  # shares the first
    >>> print(f"{pwcca(x, y):.2f} {svcca(x, y):.2f}")
    0.75 0.50
    """
    (x, u_x), (_, u_y) = (_directions(z, variance) for z in _pair(x, y, at_least=2))
    left, correlations, _ = torch.linalg.svd(u_x.mT @ u_y, full_matrices=False)
    if not len(correlations):
        return x.new_zeros(())
    weights = ((u_x @ left).mT @ x).abs().sum(1)
    return (weights * correlations.clamp_max(1)).sum() / weights.sum()


def _pair(x: Tensor, y: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Both sides as matrices (n, features) of at least single precision."""
    for name, z in (("x", x), ("y", y)):
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.dim() == 0:
            what = (
                f"{z.dtype} of shape {(*z.shape,)}" if isinstance(z, Tensor) else type(z).__name__
            )
            raise TypeError(f"{name} must be a floating-point tensor (n, ...), got {what}")
    if len(x) != len(y):
        raise ValueError(f"x and y need the same number of samples, got {len(x)} and {len(y)}")
    if len(x) < at_least:
        raise ValueError(f"x and y need at least {at_least} samples, got {len(x)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.reshape(len(x), -1).to(dtype), y.reshape(len(y), -1).to(dtype)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _unit(x: Tensor) -> Tensor:
    """Columns centred, scaled to Frobenius norm 1; zero where there is nothing but rounding."""
    centred = _centred(x)
    norm = torch.linalg.vector_norm(centred)
    rounding = 10 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach())
    return torch.where(norm > rounding, centred, 0) / torch.where(norm > rounding, norm, 1)


def _hsics(x: Tensor, y: Tensor, debiased: bool) -> list[Tensor]:
    """HSIC of (x, y), (x, x) and (y, y) for centred columns, up to a factor that n decides."""
    return [_hsic(a, b, debiased) for a, b in ((x, y), (x, x), (y, y))]


def _hsic(x: Tensor, y: Tensor, debiased: bool) -> Tensor:
    """‖XᵀY‖_F², or its unbiased sibling. With K̃ = XXᵀ without its diagonal k, L̃ likewise, that is

        ⟨K̃, L̃⟩ - 2/(n-2) · 1ᵀK̃L̃1 + 1ᵀK̃1 · 1ᵀL̃1 / ((n-1)(n-2)),

    and centred columns make K̃1 = -k, so no n × n matrix is needed.
    """
    product = _gram_product(x, y)
    if not debiased:
        return product
    n, k, l = len(x), x.square().sum(1), y.square().sum(1)
    return product - n / (n - 2) * (k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2))


def _gram_product(x: Tensor, y: Tensor) -> Tensor:
    """⟨XXᵀ, YYᵀ⟩_F = ‖XᵀY‖_F², by whichever costs less."""
    n, p, q = *x.shape, y.shape[1]
    with torch.autocast(x.device.type, enabled=False):  # half precision would overflow
        if p * q <= n * (p + q):
            return (x.mT @ y).square().sum()
        return ((x @ x.mT) * (y @ y.mT)).sum()


def _alignment(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    scale = xx * yy
    return torch.where(scale > 0, xy, 0) / torch.where(scale > 0, scale, 1).sqrt()


def _directions(x: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Centred features, and an orthonormal basis (n, k) of what explains most of their variance."""
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be in (0, 1], got {variance!r}")
    x = _unit(x)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    rounding = max(x.shape) * torch.finfo(x.dtype).eps
    explained = s.square().cumsum(0) - s.square()  # by the directions before
    return x, u[:, (s > rounding) & (explained < variance)]


def _thin(x: Tensor) -> Tensor:
    """A matrix with the same XXᵀ and no more columns than rows: rotations are free anyway."""
    return torch.linalg.qr(x.mT).R.mT if x.shape[1] > len(x) else x


def _cosine_dissimilarity(x: Tensor) -> Tensor:
    x = F.normalize(x, dim=1)
    return 1 - x @ x.mT


_DISSIMILARITIES = {
    "correlation": lambda x: _cosine_dissimilarity(x - x.mean(1, keepdim=True)),
    "cosine": _cosine_dissimilarity,
    "euclidean": lambda x: torch.cdist(_centred(x), _centred(x)),
}


def _mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]
