"""How many weights each layer keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PRUNABLE = (nn.Linear, *CONVOLUTIONS)
Scheme = Literal["uniform", "uniform+", "er", "erk"]
CLASSIFIER = 0.2
"""What uniform+ leaves the classifier at least."""


def prunable(model: nn.Module, exclude: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights that pruning is about: of linear layers and convolutions, no biases, no norms.

    Args:
        model: any module.
        exclude: names of layers or parameters to leave out.

    Returns:
        Parameters by name, in the order in which the model registers them; a shared one once.

    Raises:
        ValueError: `exclude` names something that is not prunable; nothing is left.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3))
    >>> {name: tuple(weight.shape) for name, weight in prunable(model, exclude=["3"]).items()}
    {'0.weight': (2, 1, 3, 3)}
    """
    found: dict[str, Tensor] = {
        f"{name}.weight".lstrip("."): layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, PRUNABLE)
    }
    unknown = {n for n in exclude if n not in found and f"{n}.weight" not in found}
    if unknown:
        raise ValueError(f"exclude: no prunable layers {sorted(unknown)}, only {list(found)}")
    kept: dict[str, Tensor] = {}
    for name, weight in found.items():
        shared = any(weight is other for other in kept.values())
        if name not in exclude and name.rpartition(".")[0] not in exclude and not shared:
            kept[name] = weight
    if not kept:
        raise ValueError("model has no prunable weights: no Linear or Conv layer is left")
    return kept


def layer_densities(
    model: nn.Module | Mapping[str, Tensor], density: float, scheme: Scheme = "erk"
) -> dict[str, float]:
    """Which fraction of its weights each layer keeps, so that the whole keeps exactly `density`.

    - "uniform": `d_l = D`.
    - "er", Erdos-Renyi: `d_l = min(1, eps * (n_in + n_out) / (n_in * n_out))`, which gives small
      layers more (Mocanu et al. 2018, arXiv 1707.04780).
    - "erk": `d_l = min(1, eps * sum(shape_l) / prod(shape_l))`, kernel sizes included (Evci et al.
      2020, arXiv 1911.11134). The usual choice.
    - "uniform+": the first convolution dense, the last layer at least 0.2, one density elsewhere
      (Gale et al. 2019, arXiv 1902.09574).

    `eps` is such that `sum d_l n_l = D sum n_l`; layers that would exceed 1 stay at 1 and the rest
    is solved again. First and last are meant in the order of registration.

    Args:
        model: a module, of which `prunable` weights count, or those weights themselves by name.
        density: D, the fraction of all weights that is kept, in (0, 1].
        scheme: see above.

    Returns:
        Densities in (0, 1] by the parameter's name.

    Raises:
        ValueError: density outside (0, 1], an unknown scheme, a density that uniform+ cannot reach.

    Handbook of Liu and Wang 2023, arXiv 2302.02596.

    >>> model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    >>> {name: round(d, 4) for name, d in layer_densities(model, 0.1).items()}
    {'0.weight': 0.0884, '2.weight': 0.1634, '3.weight': 0.6047}
    """
    check_density(density)
    weights = prunable(model) if isinstance(model, nn.Module) else model
    sizes = {name: weight.numel() for name, weight in weights.items()}
    if scheme == "uniform":
        return dict.fromkeys(sizes, density)
    if scheme == "uniform+":
        return _uniform_plus(weights, sizes, density)
    if scheme not in ("er", "erk"):
        raise ValueError(f"scheme must be 'uniform', 'uniform+', 'er' or 'erk', got {scheme!r}")
    axes = {name: w.shape if scheme == "erk" else w.shape[:2] for name, w in weights.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in axes.items()}
    return _scaled(raw, sizes, density * sum(sizes.values()))


def check_density(density: Any, name: str = "density") -> None:
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {density!r}")


def check_count(**counts: Any) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _scaled(raw: dict[str, float], sizes: dict[str, int], total: float) -> dict[str, float]:
    """`min(1, eps * raw)` with `eps` such that the layers keep `total` weights."""
    dense: set[str] = set()
    while len(dense) < len(raw):
        left = total - sum(sizes[name] for name in dense)
        eps = left / sum(raw[name] * sizes[name] for name in raw if name not in dense)
        over = {name for name in raw if name not in dense and eps * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else eps * raw[name] for name in raw}
        dense |= over
    return dict.fromkeys(raw, 1.0)


def _uniform_plus(
    weights: Mapping[str, Tensor], sizes: dict[str, int], density: float
) -> dict[str, float]:
    *_, classifier = sizes
    first = next((name for name, weight in weights.items() if weight.dim() > 2), None)
    fixed = {classifier: max(CLASSIFIER, density)} | ({first: 1.0} if first is not None else {})
    total = density * sum(sizes.values())
    left = total - sum(d * sizes[name] for name, d in fixed.items())
    rest = sum(size for name, size in sizes.items() if name not in fixed)
    if not rest or left <= 0:
        given = ", ".join(f"{name} at {d:g}" for name, d in fixed.items())
        raise ValueError(f"density {density:g} leaves nothing for uniform+ beside {given}")
    return {name: fixed.get(name, left / rest) for name in sizes}
