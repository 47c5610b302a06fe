"""Which weights are kept: choosing them, and holding a model to the choice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.compress.sparseland.densities import check_density, prunable

Density = float | Mapping[str, float]
Structure = Literal["unstructured", "channel"] | tuple[int, int]


def make_masks(
    scores: Mapping[str, Tensor],
    density: Density,
    scope: Literal["layer", "global"] = "layer",
    structure: Structure = "unstructured",
) -> dict[str, Tensor]:
    """Masks that keep the largest scores, with exact counts.

    Counts are `round(D * n)`: of all layers together with `scope="global"`; else layer by layer,
    rounded so that their sum is right, too. Ties are decided by position, never by dropping or
    keeping all of them.

    Args:
        scores: for each parameter a tensor of its shape.
        density: D, the kept fraction in (0, 1], for all layers, or one for each by name.
        scope: "global" ranks all layers together, and so chooses their densities.
        structure: "unstructured"; `(n, m)`, which keeps n of every m consecutive inputs of a row
            (flattened over `in * kh * kw`; hardware knows (2, 4)), with D = n/m; or "channel",
            whole rows of largest norm, see `remove_channels`. The last two go by layer.

    Returns:
        Bool tensors by name, on the devices of the scores. `Masks` holds a model to them.

    Raises:
        ValueError: a density outside (0, 1], or not one for each layer; fewer weights than layers;
            less than one weight (or row) for some layer; inputs not divisible by m, n:m that is not
            the density; an unknown scope or structure, or one that does not go with the other;
            scores that are NaN.

    >>> make_masks({"0.weight": torch.tensor([[4.0, 1.0, 3.0, 3.0]])}, 0.5)
    {'0.weight': tensor([[ True, False,  True, False]])}
    >>> make_masks({"0.weight": torch.tensor([[4.0, 1.0, 3.0, 3.0]])}, 0.5, structure=(1, 2))
    {'0.weight': tensor([[ True, False,  True, False]])}
    """
    _check(scores, density, scope, structure)
    if structure == "unstructured" and scope == "global":
        assert isinstance(density, int | float)
        return _global(scores, density)
    if isinstance(structure, tuple):
        return {name: _n_of_m(name, s, *structure) for name, s in scores.items()}
    densities = density if isinstance(density, Mapping) else dict.fromkeys(scores, density)
    if structure == "channel":
        rows = {name: s.flatten(1).float().norm(dim=1) for name, s in scores.items()}
        kept = _by_layer(rows, densities, "row")
        return {name: _rows(kept[name], s) for name, s in scores.items()}
    return _by_layer(scores, densities, "weight")


class Masks(Mapping[str, Tensor]):
    """Masks of a model's parameters, and what holds the parameters to them.

    A mapping from parameter names to bool tensors. Dropped weights are exactly zero after `apply`
    and, with `attach`, after every step of an optimizer, whatever its momenta or weight decay.

    Args:
        model: whose parameters are masked; on construction nothing in it changes.
        masks: for each parameter by name what is kept; by default everything `prunable`.

    Raises:
        ValueError: an unknown parameter, a mask of another shape or not of dtype bool.

    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> masks = Masks(model, {"0.weight": torch.eye(4, 8, dtype=torch.bool)})
    >>> handle = masks.attach(torch.optim.Adam(model.parameters()))
    >>> masks.density(), int(model[0].weight.count_nonzero())
    (0.125, 4)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if masks is None:
            masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in prunable(model).items()}
        for name in masks:
            if name not in parameters:
                raise ValueError(f"masks: the model has no parameter {name!r}")
        self.parameters = {name: parameters[name] for name in masks}
        self._masks = dict(masks)
        self.assign(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def assign(self, masks: Mapping[str, Tensor]) -> None:
        """Takes over other masks of the same parameters; `apply` makes the weights follow.

        Raises:
            ValueError: a name that is missing or unknown, another shape or dtype.
        """
        if masks.keys() != self.parameters.keys():
            raise ValueError(f"masks must be of {list(self.parameters)}, got {list(masks)}")
        for name, mask in masks.items():
            shape = self.parameters[name].shape
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ValueError(
                    f"masks[{name!r}] must be bool of shape {tuple(shape)}, got {mask.dtype} of "
                    f"shape {tuple(mask.shape)}"
                )
        self._masks = {n: m.to(self.parameters[n].device) for n, m in masks.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Sets dropped weights to zero, in place."""
        for name, weight in self.parameters.items():
            weight.mul_(self._masks[name])

    @torch.no_grad()
    def apply_to_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets what an optimizer keeps of dropped weights (momenta) to zero, in place."""
        for name, weight in self.parameters.items():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self._masks[name])

    def attach(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Applies the masks now, and to gradients before and weights after each step from now on.

        Momenta of dropped weights are cleared now; as their gradients are zero, they stay so until
        the masks change (`DynamicSparsity` and `GradualPruning` then clear them again).

        Returns:
            A handle; its `remove()` ends it.
        """
        self.apply()
        self.apply_to_state(optimizer)
        return Handle(
            optimizer.register_step_pre_hook(lambda *_: self._mask_gradients()),
            optimizer.register_step_post_hook(lambda *_: self.apply()),
        )

    def density(self) -> float:
        """Kept fraction of all masked parameters together."""
        total = sum(mask.numel() for mask in self._masks.values())
        return sum(int(mask.sum()) for mask in self._masks.values()) / total

    def densities(self) -> dict[str, float]:
        """Kept fraction of each parameter."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self._masks.items()}

    def shuffle(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Masks of the same densities at random places, inside each layer.

        The control for pruning before training: if the shuffled masks do as well, the layer
        densities were all that mattered. A fresh generator with seed 0 by default.
        """
        generator = generator or torch.Generator().manual_seed(0)
        shuffled = {}
        for name, mask in self._masks.items():
            order = torch.randperm(mask.numel(), generator=generator, device=generator.device)
            shuffled[name] = mask.flatten()[order.to(mask.device)].reshape(mask.shape)
        return shuffled

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, for `torch.save` or safetensors."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over saved masks; raises as `assign`."""
        self.assign({name: mask.clone() for name, mask in state.items()})

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        for name, weight in self.parameters.items():
            if weight.grad is not None:
                weight.grad.mul_(self._masks[name])


class Handle:
    """Ends what `Masks.attach` began."""

    def __init__(self, *hooks: Any) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Removes the hooks; the weights stay as they are."""
        for hook in self._hooks:
            hook.remove()


# --- choosing -------------------------------------------------------------------------------------


def largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest entries, the first ones among equals; linear time.

    >>> largest(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2)
    tensor([False,  True,  True, False])
    """
    flat = scores.detach().flatten()
    if count >= len(flat):
        return torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(len(flat) - count + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def _check(scores: Mapping[str, Tensor], density: Density, scope: str, structure: Any) -> None:
    if not scores:
        raise ValueError("scores is empty")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
    pair = isinstance(structure, tuple) and len(structure) == 2
    if structure not in ("unstructured", "channel") and not pair:
        raise ValueError(
            f"structure must be 'unstructured', 'channel' or a pair (n, m), got {structure!r}"
        )
    if isinstance(density, Mapping):
        if density.keys() != scores.keys():
            raise ValueError(f"density must have {list(scores)}, got {list(density)}")
        for name, value in density.items():
            check_density(value, f"density[{name!r}]")
    else:
        check_density(density)
    if scope == "global" and (structure != "unstructured" or isinstance(density, Mapping)):
        raise ValueError("scope='global' takes one density for all and structure='unstructured'")
    if pair:
        _check_pair(density, *structure)
    for name, tensor in scores.items():
        if tensor.isnan().any():
            raise ValueError(f"scores[{name!r}] has NaN")


def _check_pair(density: Density, n: int, m: int) -> None:
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n <= m):
        raise ValueError(f"structure (n, m) needs integers 0 < n <= m, got {(n, m)}")
    if isinstance(density, Mapping) or not math.isclose(density, n / m):
        raise ValueError(f"the density of {n}:{m} is {n / m:g}, got {density}")


def _global(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    sizes = [s.numel() for s in scores.values()]
    count = round(density * sum(sizes))
    if count < len(sizes):
        raise ValueError(
            f"density below one weight per layer for {len(sizes)} layers: {density:g} of "
            f"{sum(sizes):,} weights are {count}"
        )
    device = next(iter(scores.values())).device
    kept = largest(torch.cat([s.detach().flatten().to(device) for s in scores.values()]), count)
    parts = zip(scores.items(), kept.split(sizes))
    return {name: part.reshape(s.shape).to(s.device) for (name, s), part in parts}


def _by_layer(
    scores: Mapping[str, Tensor], densities: Mapping[str, float], what: str
) -> dict[str, Tensor]:
    wanted = {name: densities[name] * s.numel() for name, s in scores.items()}
    counts = _rounded(wanted)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(
                f"density below one {what} per layer for {name!r}: {densities[name]:g} of "
                f"{scores[name].numel():,}"
            )
    return {name: largest(s, counts[name]) for name, s in scores.items()}


def _rounded(wanted: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers whose sum is the rounded sum: the largest remainders are rounded up."""
    counts = {name: math.floor(x + 1e-9) for name, x in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def _n_of_m(name: str, scores: Tensor, n: int, m: int) -> Tensor:
    inputs = scores[0].numel()
    if inputs % m:
        raise ValueError(f"{name}: {inputs} inputs not divisible by m={m}")
    order = scores.reshape(-1, m).argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return kept.reshape(scores.shape)


def _rows(kept: Tensor, scores: Tensor) -> Tensor:
    return kept.reshape(-1, *[1] * (scores.dim() - 1)).expand_as(scores).clone()
