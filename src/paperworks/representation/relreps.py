"""Relative representations: describe a sample by its similarities to anchors, in any latent space.

Moschella, Maiorca, Fumero, Norelli, Locatello & Rodolà 2022, "Relative representations enable
zero-shot latent space communication", arXiv 2209.15430 (ICLR 2023).

Encoders trained apart meet in these coordinates: a head trained on one works on another without
retraining. Either project frozen latents (`relative_projection`, `RelativeTransformer`) and train
a `RelativeHead` on them, or train through a `RelativeEncoder` end to end; `stitch` joins an encoder
with another one's head. `latent_similarity` and `relative_anchor_distance` compare spaces.
`ProcrustesTranslator` and `AffineTranslator` are the rivals that fit a map for each pair of spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.common.activations import evaluating
from paperworks.common.autograd import straight_through
from paperworks.common.ranking import mrr

Similarity = Literal["cosine", "euclidean", "l1", "lstsq"]
Strategy = Literal["uniform", "fps", "kmeans", "stratified"]


def relative_projection(
    x: Tensor, anchors: Tensor, similarity: Similarity = "cosine", center: bool = False
) -> Tensor:
    """Coordinates of latents relative to anchors: one similarity for each anchor.

        r(x) = (S(x, a_1), ..., S(x, a_m)),   S(u, v) = uᵀv / (‖u‖ ‖v‖)

    With the cosine, r does not change when the whole space is rotated or reflected, nor when any
    latent or anchor is scaled by a positive number; shifts, shears and scaling single axes do
    change it. The order of the anchors is the coordinate system, so every space must be given the
    latents of the same anchor inputs in the same order, encoded exactly like the data (evaluation
    mode, test-time transform). The width m does not depend on d: spaces of any width meet.

    The cosines of one latent lie close together, so put a `LayerNorm` first in what is trained on
    them (`RelativeHead` has one). arXiv 2209.15430, section 3; "lstsq" is an option of the official
    code; the two distances with a minus sign, so that more is more alike, and `center` are ours.

    Args:
        x: latents (..., d).
        anchors: latents of the anchors (m, d).
        similarity: "cosine"; "euclidean" or "l1", the negative distance (blind to shifts and, for
            "euclidean", rotations, but not to scale); "lstsq", the shortest c that minimises
            ‖Σ_i c_i a_i - x‖ (blind to every invertible linear map once the anchors span the
            space).
        center: subtract the mean of the anchors from latents and anchors first, which makes every
            similarity blind to shifts too.

    Returns:
        (..., m), in the dtype and on the device of x. The cosine with a zero vector is 0.

    Raises:
        TypeError: x or anchors is not a floating-point tensor, or their dtypes differ.
        ValueError: widths differ, anchors is no matrix or empty, or an unknown similarity.

    >>> anchors = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> relative_projection(torch.tensor([3.0, 4.0]), anchors)
    tensor([0.6000, 0.9899])
    """
    _check_choice("similarity", similarity, _SIMILARITIES)
    for name, value in (("x", x), ("anchors", anchors)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_what(value)}")
    if anchors.dim() != 2 or len(anchors) == 0:
        raise ValueError(f"anchors must have shape (m, d) with m >= 1, got {tuple(anchors.shape)}")
    if x.dim() == 0 or x.shape[-1] != anchors.shape[1]:
        width = x.shape[-1] if x.dim() else "none"
        raise ValueError(f"latent dim {width} != anchor dim {anchors.shape[1]}")
    if x.dtype != anchors.dtype:
        raise TypeError(f"x is {x.dtype} but anchors are {anchors.dtype}")
    if center:
        origin = anchors.mean(0)
        x, anchors = x - origin, anchors - origin
    return _SIMILARITIES[similarity](x, anchors)


def bin_similarities(r: Tensor, width: float) -> Tensor:
    """Round similarities to multiples of `width`, passing gradients through unchanged.

        r ↦ round(r / b) · b,   ∂/∂r taken as 1 (straight-through)

    Reach for it when two spaces agree only roughly: small disagreements fall into one bin. An
    option of the official code.

    Args:
        r: similarities, any shape.
        width: the bins' width b > 0.

    Raises:
        ValueError: width is not positive.

    >>> bin_similarities(torch.tensor([0.62, -0.18]), 0.25)
    tensor([ 0.5000, -0.2500])
    """
    if not width > 0:
        raise ValueError(f"width must be positive, got {width!r}")
    return straight_through(r, (r.detach() / width).round() * width)


def average_over_groups(r: Tensor, groups: Tensor) -> Tensor:
    """One coordinate for each group of anchors: the mean similarity to the anchors in it.

    Reach for it with few groups of interchangeable anchors, such as one a class: less noise, fewer
    coordinates. An option of the official code.

    Args:
        r: similarities (..., m).
        groups: LongTensor (m,), the group 0, ..., G-1 of each anchor.

    Returns:
        (..., G).

    Raises:
        ValueError: groups is not one integer for each anchor, or a group below the largest has no
            anchor.

    >>> average_over_groups(torch.tensor([[0.2, 0.5, 0.4]]), torch.tensor([0, 1, 0]))
    tensor([[0.3000, 0.5000]])
    """
    if groups.dtype != torch.int64 or groups.shape != r.shape[-1:] or (groups < 0).any():
        raise ValueError(
            f"groups must hold one integer >= 0 for each of the {r.shape[-1]} anchors, got "
            f"{_what(groups)}"
        )
    sizes = groups.bincount()
    if (sizes == 0).any():
        raise ValueError(f"group {int((sizes == 0).nonzero()[0])} has no anchor")
    return r.new_zeros(*r.shape[:-1], len(sizes)).index_add(-1, groups, r) / sizes.to(r.dtype)


def select_anchors(
    data_or_latents: Tensor | ArrayLike,
    m: int,
    strategy: Strategy = "uniform",
    y: Tensor | ArrayLike | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose which samples serve as anchors.

    Choose once, and give every encoder the same samples: the indices refer to this order of the
    data. Uniform anchors do well (arXiv 2209.15430, appendix, compares uniform, farthest points and
    k-means); "fps" covers the space with few anchors, "stratified" covers the classes.

    Args:
        data_or_latents: n samples, (n, ...); the distances of "fps" and "kmeans" are Euclidean, so
            normalise latents first where angles count.
        m: how many anchors, at most n.
        strategy: "uniform": at random, no sample twice; "fps": farthest point sampling from a
            random start, O(n·m·d); "kmeans": of each of m clusters the sample closest to the
            centre; "stratified": the classes of y in proportion, at random within each.
        y: class of each sample (n,), for "stratified".
        generator: a CPU generator; without one, the same draw every time.

    Returns:
        LongTensor (m,) of distinct indices, on the device of the data.

    Raises:
        ValueError: m is not between 1 and n, an unknown strategy, "stratified" without y or with
            one of another length, or "kmeans" where there are fewer than m distinct samples.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> sorted(select_anchors(x, 2, strategy="fps").tolist())
    [0, 3]
    """
    data = torch.as_tensor(data_or_latents)
    labels = None if y is None else torch.as_tensor(y)
    n = len(data)
    _check_choice("strategy", strategy, _STRATEGIES)
    if isinstance(m, bool) or not isinstance(m, int) or not 1 <= m <= n:
        raise ValueError(f"m must be an integer from 1 to the number of samples {n}, got {m!r}")
    if strategy == "stratified" and (labels is None or labels.shape != (n,)):
        raise ValueError(
            f"y must hold the class of each of the {n} samples for 'stratified', got {_what(y)}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    return _STRATEGIES[strategy](data, labels, m, generator).to(data.device)


class RelativeEncoder(nn.Module):
    """An encoder whose outputs are relative to anchors, for training end to end.

        x ↦ r(E(x)) ∈ R^m,   anchors encoded anew, with the current weights, at every call

    Anchors are always encoded in evaluation mode: dropout does not shake the coordinate system, the
    anchors leave no trace in batch statistics, and chunks give the same result as one pass. In
    training mode a BatchNorm therefore treats samples (by batch statistics) unlike anchors (by
    running ones) and the two drift apart; prefer an encoder with LayerNorm or GroupNorm, or keep
    the BatchNorm in evaluation mode. arXiv 2209.15430, section 3.

    Args:
        encoder: maps inputs (n, ...) to latents (n, d).
        anchors: inputs (m, ...), kept as a buffer: they move, and are saved, with the module.
        detach_anchors: let gradients reach the encoder through the samples only, as the official
            autoencoder does.
        chunk_size: encode this many anchors at a time, to save memory.
        similarity: see `relative_projection`.
        center: see `relative_projection`.

    Shapes: input (n, ...), output (n, m).

    Raises:
        TypeError: encoder is no module, or anchors no tensor.
        ValueError: no anchors, chunk_size is not positive, or an unknown similarity.

    >>> encoder = RelativeEncoder(nn.Linear(4, 2), anchors=torch.rand(3, 4))
    >>> encoder(torch.rand(5, 4)).shape
    torch.Size([5, 3])
    """

    anchors: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        anchors: Tensor,
        detach_anchors: bool = True,
        chunk_size: int | None = None,
        similarity: Similarity = "cosine",
        center: bool = False,
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a module, got {_what(encoder)}")
        if not isinstance(anchors, Tensor):
            raise TypeError(f"anchors must be a tensor, got {_what(anchors)}")
        if anchors.dim() == 0 or len(anchors) == 0:
            raise ValueError(f"anchors must hold at least one input, got {_what(anchors)}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be positive, got {chunk_size}")
        _check_choice("similarity", similarity, _SIMILARITIES)
        super().__init__()
        self.encoder = encoder
        self.register_buffer("anchors", anchors)
        self.detach_anchors = detach_anchors
        self.chunk_size = chunk_size
        self.similarity: Similarity = similarity
        self.center = center

    @property
    def m(self) -> int:
        """The number of anchors: the width of the output."""
        return len(self.anchors)

    def encode(self, x: Tensor) -> Tensor:
        """Absolute latents (n, d)."""
        return self.encoder(x)

    def encode_anchors(self) -> Tensor:
        """Latents of the anchors (m, d) under the current weights, in evaluation mode."""
        chunks = self.anchors.split(self.chunk_size or self.m)
        with_gradient = torch.is_grad_enabled() and not self.detach_anchors
        with evaluating(self.encoder), torch.set_grad_enabled(with_gradient):
            return torch.cat([self.encoder(chunk) for chunk in chunks])

    def forward(self, x: Tensor) -> Tensor:
        z, anchors = self.encode(x), self.encode_anchors()
        return relative_projection(z, anchors, self.similarity, self.center)

    def extra_repr(self) -> str:
        return f"m={self.m}, similarity={self.similarity!r}, detach_anchors={self.detach_anchors}"


class RelativeHead(nn.Module):
    """The head of the official experiments on relative representations.

        LayerNorm(m) → Linear(m, hidden) → Tanh → normalisation across units → Linear(hidden, out)

    The first LayerNorm spreads the similarities, which lie close together; without it a head hardly
    trains. (The official code also scales r to unit length first, which that LayerNorm undoes up to
    its epsilon; left out here.) It serves as a head on absolute latents of width m just as well.
    The layers are those that the official repository uses for frozen encoders, with hidden = m.

    Args:
        m: width of the input: the number of anchors.
        out: outputs, e.g. classes.
        hidden: hidden units; m by default.

    Shapes: input (..., m), output (..., out).

    Raises:
        ValueError: a width that is no positive integer.

    >>> RelativeHead(300, out=10)(torch.rand(5, 300)).shape
    torch.Size([5, 10])
    """

    def __init__(self, m: int, out: int, hidden: int | None = None) -> None:
        hidden = m if hidden is None else hidden
        for name, width in (("m", m), ("out", out), ("hidden", hidden)):
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ValueError(f"{name} must be a positive integer, got {width!r}")
        super().__init__()
        self.m = m
        self.layers = nn.Sequential(
            nn.LayerNorm(m),
            nn.Linear(m, hidden),
            nn.Tanh(),
            nn.LayerNorm(hidden, elementwise_affine=False),
            nn.Linear(hidden, out),
        )

    def forward(self, r: Tensor) -> Tensor:
        return self.layers(r)


def stitch(encoder: RelativeEncoder, head: nn.Module) -> nn.Module:
    """One space's encoder with another's head or decoder, as one module; nothing is copied.

    It works when both sides use the same anchor inputs in the same order. arXiv 2209.15430,
    section 5 ("zero-shot stitching").

    Args:
        encoder: gives relative representations of width m.
        head: takes them: a `RelativeHead`, or any module that starts with a linear or norm layer.

    Raises:
        TypeError: encoder is no `RelativeEncoder`, or head no module.
        ValueError: the head takes another width than the encoder's number of anchors.

    >>> a = RelativeEncoder(nn.Linear(4, 2), anchors=torch.rand(3, 4))
    >>> stitch(a, RelativeHead(3, out=10))(torch.rand(5, 4)).shape
    torch.Size([5, 10])
    """
    if not isinstance(encoder, RelativeEncoder):
        raise TypeError(f"encoder must be a RelativeEncoder, got {_what(encoder)}")
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must be a module, got {_what(head)}")
    width = _input_width(head)
    if width is not None and width != encoder.m:
        raise ValueError(f"head takes {width} similarities, the encoder has {encoder.m} anchors")
    return nn.Sequential(encoder, head)


class RelativeTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """`relative_projection` as a scikit-learn transformer on precomputed latents.

    Fit one for each encoder, on the latents of the same anchors, and put it before a classifier:
    the classifier of one encoder then serves the other one's pipeline.

    Args:
        anchors: latents of the anchors (m, d); by default what `fit` is given are the anchors.
        similarity: see `relative_projection`.
        center: see `relative_projection`.

    Attributes:
        anchors_: latents of the anchors (m, d).

    Raises:
        ValueError: on `fit`, an unknown similarity, or latents and anchors of different width.

    >>> transformer = RelativeTransformer().fit([[1.0, 0.0], [1.0, 1.0]])
    >>> transformer.transform([[3.0, 4.0]]).round(4)
    array([[0.6   , 0.9899]])
    """

    def __init__(
        self,
        anchors: ArrayLike | None = None,
        similarity: Similarity = "cosine",
        center: bool = False,
    ) -> None:
        self.anchors = anchors
        self.similarity = similarity
        self.center = center

    def fit(self, X: ArrayLike, y: Any = None) -> RelativeTransformer:
        """Take the anchors from X (m, d), or check that X (n, d) goes with those given."""
        latents = validate_data(self, X, dtype=_FLOATS)
        anchors = latents if self.anchors is None else check_array(self.anchors, dtype=_FLOATS)
        if latents.shape[1] != anchors.shape[1]:
            raise ValueError(f"latent dim {latents.shape[1]} != anchor dim {anchors.shape[1]}")
        _check_choice("similarity", self.similarity, _SIMILARITIES)
        self.anchors_ = anchors
        self._n_features_out = len(anchors)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Similarities (n, m) of latents X (n, d), in X's precision."""
        check_is_fitted(self)
        latents = validate_data(self, X, dtype=_FLOATS, reset=False)
        x, anchors = (
            torch.from_numpy(np.require(array, latents.dtype, ["C", "W"]))
            for array in (latents, self.anchors_)
        )
        return relative_projection(x, anchors, self.similarity, self.center).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def latent_similarity(r_a: Tensor, r_b: Tensor, k: int = 10) -> dict[str, float]:
    """How well samples of one space find themselves and their neighbours in the other.

    Rows are the same n samples on both sides, and neighbours are by cosine. For each sample i,
    r_a[i] is looked up among the rows of r_b:

    - "jaccard": |A ∩ B| / |A ∪ B| with A the k rows of b next to r_a[i] and B those next to r_b[i];
    - "mrr": 1 / rank of row i among all rows of b (its expectation, where cosines tie);
    - "cosine": cosine between r_a[i] and r_b[i];

    each averaged over i. Swapping a and b changes the first two. The measures are those of arXiv
    2209.15430, section 4.1; that A and B are both sought in b is our reading. k is 10 in the paper
    (from memory) and 5 in the released notebook. Rows are compared in chunks: n = 20,000 needs
    some 150 MB beside the inputs, not n × n numbers.

    Args:
        r_a: relative (or any equally wide) representations (n, m).
        r_b: the same samples in the other space, (n, m).
        k: neighbours, at most n.

    Returns:
        Means in [0, 1], [0, 1] and [-1, 1].

    Raises:
        TypeError: not floating-point tensors.
        ValueError: not two matrices of one shape, or k is not between 1 and n.

    >>> r = torch.eye(4) + 0.1
    >>> similarity = latent_similarity(r, r, k=1)
    >>> {name: round(value, 4) for name, value in similarity.items()}
    {'jaccard': 1.0, 'mrr': 1.0, 'cosine': 1.0}
    """
    _check_pair("r_a", r_a, "r_b", r_b)
    if r_a.shape != r_b.shape:
        raise ValueError(f"r_a and r_b must share a shape, got {_what(r_a)} and {_what(r_b)}")
    n = len(r_a)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"k must be an integer from 1 to the number of samples {n}, got {k!r}")
    a, b = (F.normalize(r.detach(), dim=1) for r in (r_a, r_b))
    jaccard, reciprocal = a.new_empty(n), a.new_empty(n, dtype=torch.float64)
    every = torch.arange(n, device=a.device)
    for rows in every.split(max(1, 2**21 // n)):
        from_a, from_b = a[rows] @ b.T, b[rows] @ b.T
        found, own = (s.topk(k).indices for s in (from_a, from_b))
        shared = (found.unsqueeze(2) == own.unsqueeze(1)).any(2).sum(1)
        jaccard[rows] = (shared / (2 * k - shared)).to(a.dtype)
        reciprocal[rows] = mrr(from_a, rows.unsqueeze(1) == every)
    return {
        "jaccard": jaccard.double().mean().item(),
        "mrr": reciprocal.mean().item(),
        "cosine": (a * b).sum(1).double().mean().item(),
    }


def relative_anchor_distance(r_a: Tensor, r_b: Tensor) -> float:
    """Mean Euclidean distance between two models' relative representations of the anchors.

        (1/m) Σ_i ‖r_a(a_i) - r_b(a_i)‖₂

    Taken to the best model at hand, it follows a model's score without labels: the further away,
    the worse. arXiv 2209.15430, section 4.2.

    Args:
        r_a: relative representations of the anchors by one model, (m, m).
        r_b: by the other one, (m, m).

    Raises:
        TypeError: not floating-point tensors.
        ValueError: not two matrices of one shape.

    >>> relative_anchor_distance(torch.eye(2), torch.tensor([[1.0, 3.0], [4.0, 1.0]]))
    3.5
    """
    _check_pair("r_a", r_a, "r_b", r_b)
    if r_a.shape != r_b.shape:
        raise ValueError(f"r_a and r_b must share a shape, got {_what(r_a)} and {_what(r_b)}")
    return (r_a.detach() - r_b.detach()).norm(dim=1).mean().item()


class ProcrustesTranslator(BaseEstimator):
    """Translate latents into another space by a rotation, fitted on anchors known in both.

        z ↦ s · (z - μ) R + ν,   R = U Vᵀ from the SVD U Σ Vᵀ of XᵀY,   s = tr Σ / ‖X‖_F²

    with X, Y the anchors less their means μ, ν. A baseline for relative representations: it needs
    the target's anchors, and a fit for each ordered pair of spaces. Spaces of different width are
    handled as if the narrower one were padded with zeros.

    It works on tensors and not on arrays, differentiably and on any device, so it is no subject of
    scikit-learn's `check_estimator`; `get_params`, `clone` and `repr` work.

    Args:
        scale: fit s, or keep it at 1.
        center: subtract the means, or take both spaces' origins to correspond.

    Attributes:
        rotation_: R (d_source, d_target), orthogonal rows or columns.
        scale_: s, a scalar tensor.
        source_mean_: μ (d_source,).
        target_mean_: ν (d_target,).

    >>> source = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> target = 3 * source.flip(1) + 1
    >>> translator = ProcrustesTranslator().fit(source, target)
    >>> translator.transform(torch.tensor([[1.0, 2.0]])).round(decimals=4)
    tensor([[7., 4.]])
    """

    rotation_: Tensor
    scale_: Tensor
    source_mean_: Tensor
    target_mean_: Tensor

    def __init__(self, scale: bool = True, center: bool = True) -> None:
        self.scale = scale
        self.center = center

    def fit(self, source_anchors: Tensor, target_anchors: Tensor) -> ProcrustesTranslator:
        """Fit on latents of the same anchors, (m, d_source) and (m, d_target).

        Raises:
            TypeError: not floating-point tensors of one dtype.
            ValueError: not matrices of equally many rows, or none.
        """
        x, y = _anchor_pair(source_anchors, target_anchors)
        dtype = source_anchors.dtype
        mu, nu = (z.mean(0) if self.center else torch.zeros_like(z[0]) for z in (x, y))
        x, y = x - mu, y - nu
        u, sigma, vh = torch.linalg.svd(x.T @ y, full_matrices=False)
        s = sigma.sum() / x.square().sum() if self.scale else torch.ones_like(sigma[0])
        self.rotation_, self.scale_ = (u @ vh).to(dtype), s.to(dtype)
        self.source_mean_, self.target_mean_ = mu.to(dtype), nu.to(dtype)
        return self

    def transform(self, z: Tensor) -> Tensor:
        """Latents (..., d_source) in the target's space, (..., d_target)."""
        check_is_fitted(self)
        _check_width(z, len(self.source_mean_))
        return self.scale_ * ((z - self.source_mean_) @ self.rotation_) + self.target_mean_


class AffineTranslator(BaseEstimator):
    """Translate latents into another space by an affine map, fitted on anchors known in both.

        z ↦ z W + b,   min over W, b of ‖X W + b - Y‖_F² + ridge · ‖W‖_F²

    The strongest baseline for relative representations when there are many more anchors than
    dimensions; with fewer it needs a ridge. It needs the target's anchors, and a fit for each
    ordered pair of spaces. About tensors and `check_estimator` see `ProcrustesTranslator`.

    Args:
        ridge: strength of the penalty, as `alpha` of scikit-learn's `Ridge`; 0 gives the least
            squares solution of the smallest W.

    Attributes:
        weight_: W (d_source, d_target).
        bias_: b (d_target,).

    >>> source = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> target = torch.tensor([[1.0], [3.0], [5.0]])  # 1 + 2 z_1 + 2 z_2
    >>> translator = AffineTranslator().fit(source, target)
    >>> translator.transform(torch.tensor([[1.0, 1.0]])).round(decimals=4)
    tensor([[5.]])
    """

    weight_: Tensor
    bias_: Tensor

    def __init__(self, ridge: float = 0.0) -> None:
        self.ridge = ridge

    def fit(self, source_anchors: Tensor, target_anchors: Tensor) -> AffineTranslator:
        """Fit on latents of the same anchors, (m, d_source) and (m, d_target).

        Raises:
            TypeError: not floating-point tensors of one dtype.
            ValueError: ridge is negative, or not matrices of equally many rows, or none.
        """
        if not self.ridge >= 0:
            raise ValueError(f"ridge must be >= 0, got {self.ridge!r}")
        x, y = _anchor_pair(source_anchors, target_anchors)
        dtype = source_anchors.dtype
        mu, nu = x.mean(0), y.mean(0)
        u, sigma, vh = torch.linalg.svd(x - mu, full_matrices=False)
        rounding = torch.finfo(x.dtype).eps * max(x.shape) * sigma.max()
        gain = torch.where(sigma > rounding, sigma / (sigma.square() + self.ridge), 0)
        weight = vh.T @ (gain.unsqueeze(1) * (u.T @ (y - nu)))
        self.weight_, self.bias_ = weight.to(dtype), (nu - mu @ weight).to(dtype)
        return self

    def transform(self, z: Tensor) -> Tensor:
        """Latents (..., d_source) in the target's space, (..., d_target)."""
        check_is_fitted(self)
        _check_width(z, len(self.weight_))
        return z @ self.weight_ + self.bias_


# ---- similarities: latents (..., d) and anchors (m, d) of one dtype to (..., m)


def _cosine(x: Tensor, anchors: Tensor) -> Tensor:
    # dividing the products by ‖x‖ in place spares a normalised copy of x
    eps = max(1e-12, torch.finfo(x.dtype).tiny)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
    return (x @ F.normalize(anchors, dim=1, eps=eps).T).div_(norm)


def _negative_distance(p: float) -> Callable[[Tensor, Tensor], Tensor]:
    def similarity(x: Tensor, anchors: Tensor) -> Tensor:
        a = _at_least_single(anchors)
        distance = torch.cdist(_at_least_single(x).reshape(-1, x.shape[-1]), a, p=p)
        return -distance.reshape(*x.shape[:-1], len(anchors)).to(x.dtype)

    return similarity


def _least_squares(x: Tensor, anchors: Tensor) -> Tensor:
    return (_at_least_single(x) @ torch.linalg.pinv(_at_least_single(anchors))).to(x.dtype)


_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "euclidean": _negative_distance(2.0),
    "l1": _negative_distance(1.0),
    "lstsq": _least_squares,
}


# ---- strategies: data (n, ...) and labels (n,) to m distinct indices


def _uniform(data: Tensor, y: Tensor | None, m: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(data), generator=generator)[:m]


def _farthest(data: Tensor, y: Tensor | None, m: int, generator: torch.Generator) -> Tensor:
    x = _at_least_single(data.reshape(len(data), -1))
    x = x - x.mean(0)  # squared distances lose fewer digits around the origin
    square = x.square().sum(1)
    nearest = torch.full_like(square, torch.inf)  # ‖x - its nearest chosen point‖²
    c = torch.randint(len(x), (), generator=generator).to(x.device)
    chosen = []
    for _ in range(m):
        chosen.append(c)
        nearest = torch.minimum(nearest, square + square[c] - 2 * (x @ x[c]))
        nearest[c] = -torch.inf  # never again, whatever the rounding
        c = nearest.argmax()
    return torch.stack(chosen)


def _cluster_centres(data: Tensor, y: Tensor | None, m: int, generator: torch.Generator) -> Tensor:
    x = _at_least_single(data.reshape(len(data), -1)).cpu().numpy()
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    kmeans = KMeans(m, n_init=1, random_state=seed).fit(x)
    distance = np.linalg.norm(x - kmeans.cluster_centers_[kmeans.labels_], axis=1)
    by_cluster = np.lexsort((distance, kmeans.labels_))
    clusters, first = np.unique(kmeans.labels_[by_cluster], return_index=True)
    if len(clusters) < m:
        raise ValueError(f"m is {m}, but k-means finds only {len(clusters)} distinct clusters")
    return torch.from_numpy(by_cluster[first])


def _stratified(data: Tensor, y: Tensor | None, m: int, generator: torch.Generator) -> Tensor:
    # the j-th of a class of c gets the place (j + 1/2) / c, and the first m places are taken:
    # Sainte-Laguë's apportionment, ties at random
    assert y is not None
    shuffled = torch.randperm(len(data), generator=generator)
    by_class = shuffled[y.cpu()[shuffled].argsort(stable=True)]
    c = y.cpu()[by_class].unique_consecutive(return_counts=True)[1]
    j = torch.arange(len(data)).double() - (c.cumsum(0) - c).repeat_interleave(c)
    place = torch.empty_like(j)
    place[by_class] = (j + 0.5) / c.repeat_interleave(c)
    return shuffled[place[shuffled].argsort(stable=True)[:m]]


_STRATEGIES: dict[str, Callable[[Tensor, Tensor | None, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "fps": _farthest,
    "kmeans": _cluster_centres,
    "stratified": _stratified,
}


_FLOATS = [np.float64, np.float32]


def _input_width(head: nn.Module) -> int | None:
    """The width that the first linear or norm layer takes; None where there is none to ask."""
    for layer in head.modules():
        if isinstance(layer, nn.LayerNorm):
            return layer.normalized_shape[-1]
        if isinstance(layer, nn.Linear):
            return layer.in_features
    return None


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _anchor_pair(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    _check_pair("source_anchors", source, "target_anchors", target)
    if len(source) != len(target) or len(source) == 0:
        raise ValueError(
            "source_anchors and target_anchors must hold the same anchors, at least one, got "
            f"{len(source)} and {len(target)}"
        )
    return _at_least_single(source), _at_least_single(target)


def _check_pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    for name, value in ((name_a, a), (name_b, b)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_what(value)}")
        if value.dim() != 2:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(value.shape)}")
    if a.dtype != b.dtype:
        raise TypeError(f"{name_a} is {a.dtype} but {name_b} is {b.dtype}")


def _check_width(z: Tensor, d: int) -> None:
    if z.dim() == 0 or z.shape[-1] != d:
        raise ValueError(f"z must have shape (..., {d}) as the source anchors, got {_what(z)}")


def _check_choice(name: str, given: str, valid: Mapping[str, object]) -> None:
    if given not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, got {given!r}")


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
