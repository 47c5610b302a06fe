"""Rounded weights as integers in a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperworks.compress.flexround.grid import IntegerWeight
from paperworks.compress.storage import pack_bits, unpack_bits

PARTS = ("integers", "grid", "scale", "zero_point")


def integer_state_dict(model: nn.Module, weights: Mapping[str, IntegerWeight]) -> dict[str, Tensor]:
    """The state dict of a rounded model with integers in place of the rounded weights.

    Each `name` in `weights` becomes `name.integers`, which is packed to as many bits a weight as
    the integers need, `name.grid` (these bits, the smallest integer, the shape), `name.scale` and
    `name.zero_point`; everything else is as in `model.state_dict()`. Save it with `save_tensors`,
    and undo it with `float_state_dict`.

    Args:
        model: the model that `reconstruct_` or `bake_` rounded.
        weights: what they returned.

    Raises:
        ValueError: a weight that the model does not have, or that was changed since it was rounded.

    >>> from paperworks.compress import reconstruct_
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> report = reconstruct_(model, ["0"], torch.eye(2), rounding="nearest")
    >>> tensors = integer_state_dict(model, report.weights)
    >>> list(tensors)
    ['0.weight.integers', '0.weight.grid', '0.weight.scale', '0.weight.zero_point']
    >>> torch.equal(float_state_dict(tensors)["0.weight"], model[0].weight)
    True
    """
    state = model.state_dict()
    for name, weight in weights.items():
        if name not in state:
            raise ValueError(f"the model has no weight {name!r}")
        if not torch.equal(state[name], weight.dequantize().to(state[name])):
            raise ValueError(f"{name} was changed since it was rounded")
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in weights:
            stored |= {f"{name}.{part}": t for part, t in _packed(weights[name]).items()}
        else:
            stored[name] = tensor
    return stored


def float_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ordinary state dict for `model.load_state_dict` from what `integer_state_dict` gave.

    Raises:
        ValueError: integers without their grid, scale or zero point, or not as many as it says.

    >>> parts = {
    ...     "w.integers": torch.tensor([0b1001], dtype=torch.uint8),
    ...     "w.grid": torch.tensor([2, -1, 1, 2]),  # two bits each, from -1, shape (1, 2)
    ...     "w.scale": torch.tensor(0.5),
    ...     "w.zero_point": torch.tensor(0, dtype=torch.int32),
    ... }
    >>> float_state_dict(parts)
    {'w': tensor([[0.0000, 0.5000]])}
    """
    state: dict[str, Tensor] = {}
    rounded = [key.removesuffix(".integers") for key in tensors if key.endswith(".integers")]
    parts = {f"{name}.{part}" for name in rounded for part in PARTS}
    if missing := parts - tensors.keys():
        raise ValueError(f"tensors lack {sorted(missing)}")
    for key, tensor in tensors.items():
        if key not in parts:
            state[key] = tensor
        elif key.endswith(".integers"):
            name = key.removesuffix(".integers")
            state[name] = _unpacked(*(tensors[f"{name}.{part}"] for part in PARTS)).dequantize()
    return state


def _packed(weight: IntegerWeight) -> dict[str, Tensor]:
    integers = weight.integers.to(torch.int32)
    lowest = int(integers.min())
    bits = max(1, (int(integers.max()) - lowest).bit_length())
    return {
        "integers": pack_bits(integers - lowest, bits),
        "grid": torch.tensor([bits, lowest, *integers.shape]),
        "scale": weight.scale,
        "zero_point": weight.zero_point,
    }


def _unpacked(packed: Tensor, grid: Tensor, scale: Tensor, zero_point: Tensor) -> IntegerWeight:
    bits, lowest, *shape = grid.tolist()
    integers = unpack_bits(packed, bits, shape).to(torch.int32) + lowest
    return IntegerWeight(integers, scale, zero_point)
