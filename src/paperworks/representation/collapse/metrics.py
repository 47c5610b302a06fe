"""Neural collapse of features and a linear head, in memory or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import collect_activations, find_modules
from paperworks.representation.collapse.optima import GOF

Target = str | Tensor | GOF
CUTOFF = 1e-6
"""Eigenvalues of Σ_B below this share of the largest count as zero: its rank is at most K - 1."""
CHUNK = 4096
"""Rows that are converted to float64 at a time."""


def collapse_metrics(
    features: Tensor, labels: Tensor, weight: Tensor, target: Target = "etf"
) -> dict[str, float]:
    """How far features and a linear head have collapsed, toward a geometry.

        nc1 = tr(Σ_W Σ_B^†)/K            spread within classes, against that of their means
        nc2_w = d(W Wᵀ, T)               lengths and angles of the head's rows
        nc2_h = d(H̄ᵀ H̄, T)               lengths and angles of the class means
        nc3 = d(W H̄, T)                  agreement of both
        nc3_w = d(W, D H̄ᵀ)               the same row by row, D = I but for a GOF

    with d(A, T) = ‖A/‖A‖ - T/‖T‖‖_F. Σ_W is the mean of (h - μ_y)(h - μ_y)ᵀ over samples, Σ_B that
    of (μ_k - μ_G)(μ_k - μ_G)ᵀ over classes, μ_G the mean of all samples. The columns of H̄ are the
    class means μ_k, less μ_G for "etf". All tend to 0 when the head collapses to the target. Dang
    et al. 2023, arXiv 2301.00437.

    Args:
        features: (N, d), what enters the linear head, of the whole training set: batches drift.
        labels: (N,), classes 0..K-1.
        weight: (K, d), the head, or the product of its linear layers.
        target: "etf" (T = I - 11ᵀ/K, heads with a bias), "of" (T = I, balanced and bias-free), a
            GOF from `gof_optimum` (each of the three has its own T), or a matrix T (K, K) for all.

    Returns:
        The five numbers. nc1 is infinite where class means agree and features do not; a head or
        means that are zero are at distance 1.

    Raises:
        ValueError: shapes that do not go together, a class without samples, labels outside 0..K-1,
            an unknown target.
        TypeError: features or weight are not floating-point, labels not integers.

    >>> features = torch.eye(3).repeat(4, 1)
    >>> labels = torch.arange(3).repeat(4)
    >>> metrics = collapse_metrics(features, labels, torch.eye(3), target="of")
    >>> print({name: round(value, 6) for name, value in metrics.items()})
    {'nc1': 0.0, 'nc2_w': 0.0, 'nc2_h': 0.0, 'nc3': 0.0, 'nc3_w': 0.0}
    """
    _check(features, labels, weight)
    target = _check_target(target, len(weight))
    pairs = list(zip(features.split(CHUNK), labels.split(CHUNK), strict=True))
    means = _ClassMeans(len(weight))
    for x, y in pairs:
        means.update(x, y)
    means.check()
    spread = _Spread(means)
    for x, y in pairs:
        spread.update(x, y)
    return _metrics(means, spread, weight, target, layer=1)


def layerwise_collapse(
    model: nn.Module,
    head_layers: Sequence[str],
    loader: Iterable[Any],
    target: Target = "etf",
) -> dict[str, dict[str, float]]:
    """`collapse_metrics` at every layer of a linear head, streamed in two passes over the data.

    At layer m the head is W_M ... W_m and the features are what enters layer m. Memory is K
    class means a layer, whatever the size of the data.

    Args:
        model: any module; its modes are put back.
        head_layers: names of the linear layers W_1, ..., W_M, in the order in which they run, with
            nothing between them.
        loader: gives `(x, y)`, and can be iterated twice, over the same samples.
        target: see `collapse_metrics`; a GOF is meant for the whole head and brings its own target
            for each layer.

    Returns:
        For each layer by name its metrics.

    Raises:
        ValueError: an unknown layer, one that is no `nn.Linear`, something between head layers, a
            class without samples, a loader that cannot be iterated twice.

    >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    >>> loader = [(torch.rand(10, 5), torch.arange(10) % 3)]
    >>> list(layerwise_collapse(model, ["2", "3"], loader))
    ['2', '3']
    """
    layers = _linear_layers(model, head_layers)
    weights = _products([layer.weight.detach().double().cpu() for layer in layers.values()])
    k = len(weights[0])
    target = _check_target(target, k)
    if isinstance(target, GOF) and len(target.weight_decays) != len(layers):
        raise ValueError(
            f"target is of a head with {len(target.weight_decays)} layers, head_layers are "
            f"{len(layers)}"
        )
    _check_chain(model, layers, loader)
    means = {name: _ClassMeans(k) for name in layers}
    _stream(model, layers, loader, {name: part.update for name, part in means.items()})
    for part in means.values():
        part.check()
    spreads = {name: _Spread(part) for name, part in means.items()}
    _stream(model, layers, loader, {name: part.update for name, part in spreads.items()})
    return {
        name: _metrics(means[name], spreads[name], weight, target, layer)
        for layer, (name, weight) in enumerate(zip(layers, weights, strict=True), start=1)
    }


class _ClassMeans:
    """First pass: how many samples a class has and their sum."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self._sums: Tensor | None = None

    def update(self, features: Tensor, labels: Tensor) -> None:
        labels = labels.cpu()
        k = len(self.counts)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < k:
            raise ValueError(f"labels must be in 0..{k - 1}, got {labels.unique().tolist()}")
        if self._sums is None:
            self._sums = torch.zeros(k, features.shape[1], dtype=torch.float64)
        self._sums.index_add_(0, labels, features.detach().double().cpu())
        self.counts += labels.bincount(minlength=k)

    def check(self) -> None:
        absent = (self.counts == 0).nonzero().flatten().tolist()
        if absent:
            raise ValueError(f"labels: class {absent[0]} has no samples")

    @property
    def means(self) -> Tensor:
        assert self._sums is not None
        return self._sums / self.counts[:, None]

    @property
    def centred(self) -> Tensor:
        """Class means less the mean of all samples, (K, d)."""
        assert self._sums is not None
        return self.means - self._sums.sum(0) / self.counts.sum()


class _Spread:
    """Second pass: tr(Σ_W Σ_B^†), by way of the few directions in which class means differ.

    With the centred means A (K, d) = L S Uᵀ, Σ_B^† = K U S^{-2} Uᵀ, so that only Uᵀ(h - μ_y) is
    needed: no d x d matrix.
    """

    def __init__(self, means: _ClassMeans) -> None:
        self._means, self._expected = means.means, int(means.counts.sum())
        _, s, directions = torch.linalg.svd(means.centred, full_matrices=False)
        rounding = 1e-14 * torch.linalg.matrix_norm(self._means)
        kept = (s.square() > CUTOFF * s[0].square()) & (s > rounding)
        self._projection = directions[kept].mT / s[kept]
        self._seen, self._inside, self._within = 0, 0.0, 0.0

    def update(self, features: Tensor, labels: Tensor) -> None:
        deviations = features.detach().double().cpu() - self._means[labels.cpu()]
        self._seen += len(labels)
        self._within += deviations.square().sum().item()
        self._inside += (deviations @ self._projection).square().sum().item()

    @property
    def nc1(self) -> float:
        if self._seen != self._expected:
            raise ValueError(
                f"loader gave {self._expected} samples at first and then {self._seen}: it must be "
                "iterated twice over the same samples"
            )
        if not self._projection.shape[1]:
            scale = self._seen * self._means.square().sum().item()
            return float("inf") if self._within > 1e-24 * scale else 0.0
        return self._inside / self._seen


def _metrics(
    means: _ClassMeans, spread: _Spread, weight: Tensor, target: str | Tensor | GOF, layer: int
) -> dict[str, float]:
    w = weight.detach().double().cpu()
    h = means.centred if target == "etf" else means.means
    ww, hh, wh, dual = _targets(target, len(w), layer)
    return {
        "nc1": spread.nc1,
        "nc2_w": _distance(w @ w.mT, ww),
        "nc2_h": _distance(h @ h.mT, hh),
        "nc3": _distance(w @ h.mT, wh),
        "nc3_w": _distance(w, dual[:, None] * h),
    }


def _targets(
    target: str | Tensor | GOF, k: int, layer: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T of W Wᵀ, H̄ᵀH̄ and W H̄, and the factors that make class means into rows of W."""
    one = torch.ones(k, dtype=torch.float64)
    if isinstance(target, GOF):
        rows, features = target.lengths(layer)
        dual = torch.where(features > 0, rows / features, 0)
        return (rows**2).diag(), (features**2).diag(), (rows * features).diag(), dual
    if isinstance(target, Tensor):
        t = target.detach().double().cpu()
    else:
        t = one.diag() - 1 / k if target == "etf" else one.diag()
    return t, t, t, one


def _distance(a: Tensor, t: Tensor) -> float:
    """‖A/‖A‖ - T/‖T‖‖_F, where 0/0 is 0."""
    a, t = (z / torch.linalg.vector_norm(z).clamp_min(torch.finfo(z.dtype).tiny) for z in (a, t))
    return torch.linalg.vector_norm(a - t).item()


def _products(weights: list[Tensor]) -> list[Tensor]:
    """W_M ... W_m for m = 1, ..., M."""
    products = [weights[-1]]
    for weight in reversed(weights[:-1]):
        products.append(products[-1] @ weight)
    return products[::-1]


def _linear_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    layers = find_modules(model, names, what="head layer")
    if not layers:
        raise ValueError("head_layers must name at least one layer, got none")
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"head layer {name!r} must be nn.Linear, got {type(layer).__name__}")
    return layers  # type: ignore[return-value]


def _check_chain(model: nn.Module, layers: Iterable[str], loader: Iterable[Any]) -> None:
    """Each head layer receives exactly what the one before returned."""
    if iter(loader) is loader:
        raise ValueError("loader is an iterator, which cannot be iterated twice: pass a list")
    first = next(iter(loader), None)
    if first is None:
        raise ValueError("loader is empty")
    names = list(layers)
    received = collect_activations(model, [first], names, of="input")
    returned = collect_activations(model, [first], names)
    for before, after in pairwise(names):
        if not torch.equal(returned[before], received[after]):
            raise ValueError(
                f"something stands between head layers {before!r} and {after!r}: the second does "
                "not receive what the first returns"
            )


def _stream(
    model: nn.Module,
    layers: Iterable[str],
    loader: Iterable[Any],
    updates: dict[str, Callable[[Tensor, Tensor], None]],
) -> None:
    def update(activations: dict[str, Tensor], batch: Any) -> None:
        for name, value in activations.items():
            updates[name](value, batch[1])

    collect_activations(model, loader, list(layers), of="input", reduce=update)


def _check(features: Tensor, labels: Tensor, weight: Tensor) -> None:
    for name, z in (("features", features), ("weight", weight)):
        if not z.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {z.dtype}")
        if z.dim() != 2:
            raise ValueError(f"{name} must be a matrix, got shape {tuple(z.shape)}")
    if labels.is_floating_point():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape ({len(features)},), got {tuple(labels.shape)}")
    if weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must have as many columns as features, {features.shape[1]}, got "
            f"{weight.shape[1]}"
        )


def _check_target(target: Target, k: int) -> Target:
    if isinstance(target, GOF):
        if len(target.counts) != k:
            raise ValueError(f"target is of {len(target.counts)} classes, weight has {k} rows")
    elif isinstance(target, Tensor):
        if target.shape != (k, k):
            raise ValueError(f"target must have shape ({k}, {k}), got {tuple(target.shape)}")
    elif target not in ("etf", "of"):
        raise ValueError(f"target must be 'etf', 'of', a matrix or a GOF, got {target!r}")
    return target
