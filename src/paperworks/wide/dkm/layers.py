"""Modules from which deep kernel machines are built, dense or with inducing points."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from paperworks.wide.dkm.grams import (
    KERNELS,
    Gram,
    GramKernel,
    log_parameter,
    whitened_kl,
    widths_of_layers,
)
from paperworks.wide.kernels import psd_safe_cholesky


class InducingInput(nn.Module):
    """Layer 0: rows of data to the blocks of G_0 = X diag(ℓ)⁻² Xᵀ/ν_0, ν_0 = number of columns.

    Args:
        X_i: inducing inputs, shape (P, features), in the space of the data; copied.
        learned: whether X_i is trained.
        lengthscale: ℓ, a positive number or one a column; trained through its logarithm. Ours: it
            is what lets a squared exponential kernel find its scale, and the columns that matter.
        learned_lengthscale: whether ℓ is trained.
        dtype: of the parameters, to which rows that come are cast. Long chains of Cholesky factors
            want float64.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, a lengthscale not positive.

    >>> gram = InducingInput(torch.eye(2))(torch.tensor([[1.0, 1.0]]))
    >>> gram.ti, gram.t  # X_t X_iᵀ/2 and the diagonal of X_t X_tᵀ/2
    (tensor([[0.5000, 0.5000]], dtype=torch.float64, grad_fn=<DivBackward0>),
     tensor([1.], dtype=torch.float64, grad_fn=<DivBackward0>))
    """

    def __init__(
        self,
        X_i: Tensor,
        *,
        learned: bool = True,
        lengthscale: float | Tensor = 1.0,
        learned_lengthscale: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if X_i.ndim != 2 or 0 in X_i.shape:
            raise ValueError(f"X_i must have shape (P, features), got {tuple(X_i.shape)}")
        if not X_i.isfinite().all():
            raise ValueError("X_i must be finite")
        self.X_i = nn.Parameter(X_i.detach().to(dtype, copy=True), requires_grad=learned)
        self.log_lengthscale = log_parameter("lengthscale", lengthscale, learned_lengthscale)
        self.log_lengthscale.data = self.log_lengthscale.data.to(X_i.device, dtype)
        if self.log_lengthscale.shape not in ((), X_i.shape[1:]):
            raise ValueError(
                f"lengthscale must be one number or {X_i.shape[1]}, "
                f"got shape {tuple(self.log_lengthscale.shape)}"
            )

    @property
    def num_inducing(self) -> int:
        return len(self.X_i)

    def forward(self, X: Tensor | None = None) -> Gram:
        """Blocks of G_0 for rows X of shape (n, features); only `ii` without rows."""
        scale = self.log_lengthscale.neg().exp()
        features = self.X_i.shape[1]
        inducing = self.X_i * scale
        ii = inducing @ inducing.mT / features
        if X is None:
            return Gram(ii)
        if X.ndim != 2 or X.shape[1] != features:
            raise ValueError(f"X must have shape (n, {features}), got {tuple(X.shape)}")
        rows = X.to(self.X_i.dtype) * scale
        return Gram(ii, rows @ inducing.mT / features, rows.square().sum(1) / features)

    def extra_repr(self) -> str:
        return "num_inducing={}, in_features={}".format(*self.X_i.shape)


class GramLayer(nn.Module):
    """A hidden layer: kernel K of the layer below to a Gram matrix G that is learned.

    G_ii = L C Cᵀ Lᵀ, L = chol(K_ii), with C lower triangular and free. Data points follow:
    G_ti = K_ti K_ii⁻¹ G_ii,  G_tt = K_tt − K_ti K_ii⁻¹ K_it + K_ti K_ii⁻¹ G_ii K_ii⁻¹ K_it.

    C = I at the start is the NNGP. Ours: the paper's group keeps a factor of G itself; with C the
    divergence does not need K, G is positive definite whatever C is, and no step is ill-conditioned
    where K is. K is used with 1e-6 (1 + K) on its diagonal (float32: 1e-4), everywhere the same:
    it is the kernel with a little white noise.

    Args:
        num_inducing: P.
        nu: ν, weight of the divergence from the NNGP: small learns much, `math.inf` nothing, and
            makes a layer without parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size or ν that is not positive.

    >>> layer = GramLayer(2, nu=5.0)
    >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> layer(Gram(K)).ii.detach(), layer.regularizer().item()
    (tensor([[2.0000, 1.0000], [1.0000, 2.0000]], dtype=torch.float64), 0.0)
    """

    def __init__(self, num_inducing: int, nu: float, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        (self.nu,) = widths_of_layers(nu, 1)
        self.num_inducing = _positive_integer("num_inducing", num_inducing)
        learns = self.nu < math.inf
        self.factor = Triangular(num_inducing, dtype=dtype) if learns else None

    def forward(self, kernel: Gram) -> Gram:
        """Gram blocks of this layer from kernel blocks of the layer below."""
        kernel = stabilised(kernel)
        if self.factor is None:
            return kernel
        L = psd_safe_cholesky(kernel.ii)
        C = self.factor()
        root = L @ C
        ii = root @ root.mT
        if kernel.ti is None:
            return Gram(ii)
        A, rest = conditional(L, kernel)
        AC = A @ C
        return Gram(ii, AC @ root.mT, rest + AC.square().sum(-1))

    def regularizer(self) -> Tensor:
        """ν KL(N(0, G_ii) ‖ N(0, K_ii)), in nats."""
        if self.factor is None:
            return torch.zeros((), dtype=torch.float64)
        return self.nu * whitened_kl(self.factor())

    def extra_repr(self) -> str:
        return f"num_inducing={self.num_inducing}, nu={self.nu:g}"


class SVGPOutput(nn.Module):
    """The top: kernel blocks to the mean and variance of each output at each data point.

    Q(u_c) = N(L m_c, L S Sᵀ Lᵀ), L = chol(K_ii), with S shared over outputs c; mean A m and
    variance K_tt − AAᵀ + A S Sᵀ Aᵀ, A = K_ti L⁻ᵀ. (The paper's m and A in the coordinates in which
    the prior is N(0, I), as `GramLayer` does.)

    Args:
        num_inducing: P.
        num_outputs: number of outputs c.
        dtype: of the parameters.

    Raises:
        ValueError: a size that is not positive.

    >>> output = SVGPOutput(2, num_outputs=3)
    >>> K = torch.eye(2, dtype=torch.float64)
    >>> mean, variance = output(Gram(K, K[:1], K[0, :1]))
    >>> mean.shape, variance.detach()
    (torch.Size([1, 3]), tensor([1.0000], dtype=torch.float64))
    """

    def __init__(
        self, num_inducing: int, num_outputs: int, *, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.num_inducing = _positive_integer("num_inducing", num_inducing)
        self.num_outputs = _positive_integer("num_outputs", num_outputs)
        self.mean = nn.Parameter(torch.zeros(num_inducing, num_outputs, dtype=dtype))
        self.factor = Triangular(num_inducing, dtype=dtype)

    def forward(self, kernel: Gram) -> tuple[Tensor, Tensor]:
        """Mean of shape (n, num_outputs), and variance of shape (n,), the same for all outputs."""
        if kernel.ti is None:
            raise ValueError("kernel has no data points: call the first layer with rows")
        K = stabilised(kernel)
        A, rest = conditional(psd_safe_cholesky(K.ii), K)
        return A @ self.mean, rest + (A @ self.factor()).square().sum(-1)

    @torch.no_grad()
    def condition_(self, data: Iterable[tuple[Gram, Tensor]], noise: float | Tensor) -> None:
        """Set Q to its optimum under y = f + N(0, noise), which has a closed form.

        S Sᵀ = (I + AᵀA/σ²)⁻¹,  m = S Sᵀ Aᵀ y/σ²  (Titsias 2009). One pass over the data, O(nP²):
        where a gradient would take many, e.g. before and after training what is below.

        Args:
            data: kernel blocks and targets (n, num_outputs), of all data or batch by batch.
            noise: σ².
        """
        precision = torch.eye(self.num_inducing, dtype=self.mean.dtype, device=self.mean.device)
        pull = torch.zeros_like(self.mean)
        for kernel, y in data:
            K = stabilised(kernel)
            A, _ = conditional(psd_safe_cholesky(K.ii), K)
            precision += A.mT @ A / noise
            pull += A.mT @ y.to(A.dtype) / noise
        covariance = torch.cholesky_inverse(psd_safe_cholesky(precision))
        self.mean.copy_(covariance @ pull)
        self.factor.set_(psd_safe_cholesky(covariance))

    def regularizer(self) -> Tensor:
        """Σ_c KL(Q(u_c) ‖ N(0, K_ii)), in nats."""
        return self.num_outputs * whitened_kl(self.factor()) + self.mean.square().sum() / 2

    def extra_repr(self) -> str:
        return f"num_inducing={self.num_inducing}, num_outputs={self.num_outputs}"


class SparseDKM(nn.Sequential):
    """A deep kernel machine with inducing points: rows to mean and variance of the outputs.

    A sequence `InducingInput`, then kernel and `GramLayer` by turns, a kernel, `SVGPOutput`; make
    it from modules as any sequence, or by `SparseDKM.deep`. Train it with any optimiser on

    loss = −(n/|B|) Σ_B E_Q log P(y|f) + dkm_regularizer(model),

    the expectation from `GaussianLikelihood` or `SoftmaxLikelihood`. A step costs
    O(L(|B|P² + P³)), whatever n is.

    Raises:
        ValueError: modules that disagree on the number of inducing points.

    Source: arXiv 2108.13097, sparse deep kernel machines.

    >>> X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> model = SparseDKM.deep(X[:20], num_outputs=1, num_layers=2, nu=3.0)
    >>> likelihood = GaussianLikelihood()
    >>> fit = -likelihood(*model(X), X[:, :1].abs()).sum() + dkm_regularizer(model)
    >>> fit.backward()
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__(*modules)
        sizes: set[Any] = {m.num_inducing for m in self if hasattr(m, "num_inducing")}
        if len(sizes) > 1:
            raise ValueError(f"modules disagree on the number of inducing points: {sorted(sizes)}")

    @classmethod
    def deep(
        cls,
        X_i: Tensor,
        num_outputs: int,
        *,
        num_layers: int = 2,
        kernel: str | GramKernel = "rbf",
        nu: float | Sequence[float] = 10.0,
        lengthscale: float | Tensor = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> Self:
        """A machine of `num_layers` Gram layers, each with a copy of the kernel of its own.

        Args:
            X_i: first inducing inputs, shape (P, features), e.g. centres of k-means.
            num_outputs: number of outputs.
            num_layers: number L of Gram layers; 0 is a sparse Gaussian process.
            kernel: "rbf", "relu", "linear", or a module.
            nu: ν of every layer, or one a layer; `math.inf` is the NNGP.
            lengthscale: first length scale, see `InducingInput`.
            dtype: of the parameters.
        """
        layers: list[nn.Module] = [InducingInput(X_i, lengthscale=lengthscale, dtype=dtype)]
        for width in widths_of_layers(nu, num_layers):
            layers += [make_kernel(kernel), GramLayer(len(X_i), width, dtype=dtype)]
        top = SVGPOutput(len(X_i), num_outputs, dtype=dtype)
        return cls(*layers, make_kernel(kernel), top).to(X_i.device)

    def grams(self) -> list[Tensor]:
        """Learned Gram matrices of the inducing points, G_1 … G_L."""
        return inducing_grams(self)

    def __getitem__(self, place: int | slice) -> Any:
        """A module, or a chain of some of them (as `nn.Sequential`, no machine by itself)."""
        if isinstance(place, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[place]))
        return super().__getitem__(place)


def dkm_regularizer(module: nn.Module) -> Tensor:
    """Sum of all divergences in a module, to be added to a loss in nats.

    Σ_ℓ ν_ℓ KL(N(0, G_ℓ) ‖ N(0, K(G_{ℓ−1}))) + Σ_c KL(Q(u_c) ‖ N(0, K(G_L))) over every
    `GramLayer` and `SVGPOutput` within, wherever it stands. It depends on parameters only: no
    forward pass is needed, and no batch scales it; scale the data term by n/|B| instead.

    >>> model = SparseDKM.deep(torch.eye(3), num_outputs=1)
    >>> dkm_regularizer(model).item()  # at the start everything is the prior
    0.0
    """
    parts = [m.regularizer() for m in module.modules() if isinstance(m, GramLayer | SVGPOutput)]
    return (
        torch.stack([part.to(parts[-1].device) for part in parts]).sum()
        if parts
        else (torch.zeros(()))
    )


class Triangular(nn.Module):
    """A lower triangular matrix with a positive diagonal, the identity at the start."""

    def __init__(self, size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(size, size, dtype=dtype))

    def forward(self) -> Tensor:
        """exp(raw) on the diagonal, raw below it."""
        return torch.diagonal_scatter(self.raw.tril(-1), self.raw.diagonal().exp())

    def set_(self, C: Tensor) -> None:
        """Become C, which has a positive diagonal."""
        self.raw.copy_(C.tril(-1) + C.diagonal().log().diag())


@torch.no_grad()
def inducing_grams(chain: nn.Sequential) -> list[Tensor]:
    """G_ii behind each `GramLayer` of a chain."""
    found: list[Tensor] = []
    gram: Any = None
    for module in chain:
        if not isinstance(module, SVGPOutput):
            gram = module(gram)
        if isinstance(module, GramLayer):
            found.append(gram.ii)
    return found


def make_kernel(kernel: str | GramKernel) -> GramKernel:
    """A kernel of its own for a layer."""
    if isinstance(kernel, GramKernel):
        return copy.deepcopy(kernel)
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be a GramKernel or one of {', '.join(KERNELS)}: {kernel!r}")
    return KERNELS[kernel]()


def stabilised(kernel: Gram) -> Gram:
    """K with a little white noise, wherever a point meets itself."""
    epsilon = 1e-6 if kernel.ii.dtype == torch.float64 else 1e-4
    ii = kernel.ii + torch.diag_embed(epsilon * (1 + kernel.ii.diagonal(dim1=-2, dim2=-1)))
    return Gram(ii, kernel.ti, None if kernel.t is None else kernel.t + epsilon * (1 + kernel.t))


def conditional(L: Tensor, K: Gram) -> tuple[Tensor, Tensor]:
    """A = K_ti L⁻ᵀ, and what of K_tt the inducing points leave open, K_tt − diag(AAᵀ)."""
    assert K.ti is not None
    assert K.t is not None
    A = torch.linalg.solve_triangular(L, K.ti.mT, upper=False).mT
    return A, (K.t - A.square().sum(-1)).clamp(min=0)


def _positive_integer(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {number!r}")
    return number


class GaussianLikelihood(nn.Module):
    """E_Q log P(y|f) of y = f + N(0, σ²), in closed form; σ² is trained.

    Args:
        noise: first σ², positive.
        learned: whether it is trained (through its logarithm).

    >>> GaussianLikelihood(noise=1.0)(torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1)).item()
    -1.918...
    """

    def __init__(self, noise: float = 0.1, learned: bool = True) -> None:
        super().__init__()
        self.log_noise = log_parameter("noise", noise, learned)

    @property
    def noise(self) -> Tensor:
        """σ²."""
        return self.log_noise.exp()

    def forward(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """Expected log density of each row, shape (n,), summed over its outputs.

        Args:
            mean: shape (n, outputs).
            variance: shape (n,).
            y: targets, shape (n, outputs).

        Raises:
            ValueError: y has another shape than the mean (nothing is broadcast).
        """
        if y.shape != mean.shape:
            raise ValueError(f"y must have shape {tuple(mean.shape)}, got {tuple(y.shape)}")
        square = (y - mean).square() + variance[:, None]
        log_density = square / self.noise + self.log_noise + math.log(2 * math.pi)
        return -log_density.sum(1) / 2


class SoftmaxLikelihood(nn.Module):
    """E_Q log softmax(f)_y by Monte Carlo with reparametrised samples of f.

    Args:
        num_samples: samples of f a row.

    >>> likelihood = SoftmaxLikelihood(num_samples=4)
    >>> likelihood(torch.zeros(2, 3), torch.zeros(2), torch.tensor([0, 2]))  # −log 3
    tensor([-1.0986, -1.0986])
    """

    def __init__(self, num_samples: int = 10) -> None:
        super().__init__()
        self.num_samples = _positive_integer("num_samples", num_samples)

    def forward(
        self,
        mean: Tensor,
        variance: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Expected log probability of the label of each row, shape (n,).

        Args:
            mean: shape (n, classes).
            variance: shape (n,).
            labels: integers, shape (n,).
            generator: source of the samples.
        """
        z = mean.new_empty(self.num_samples, *mean.shape).normal_(generator=generator)
        f = mean + variance.sqrt()[:, None] * z
        chosen = f.log_softmax(-1).gather(-1, labels.expand(self.num_samples, -1)[..., None])
        return chosen[..., 0].mean(0)

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"
