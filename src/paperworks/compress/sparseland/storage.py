"""Masked weights in a file, without their zeros."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperworks.compress.storage import pack_bits, unpack_bits

PARTS = ("kept", "values", "shape")


def sparse_state_dict(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a masked model without the weights that its masks drop.

    Each `name` in `masks` becomes `name.kept` (the mask, one bit a weight), `name.values` (the
    weights that are kept, in order) and `name.shape`; everything else is as in
    `model.state_dict()`. At density D a float32 weight takes `32 * D + 1` bits. Save it with
    `save_tensors`, and undo it with `dense_state_dict`.

    Args:
        model: a model whose dropped weights are zero, as `Masks.apply` leaves them.
        masks: bool tensors by parameter name; `Masks` will do.

    Raises:
        ValueError: a mask of a parameter that the model does not have, or of another shape; a
            dropped weight that is not zero.

    >>> model = nn.Sequential(nn.Linear(4, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[0.0, 2.0, 0.0, -1.0]])
    >>> sparse_state_dict(model, {"0.weight": model[0].weight != 0})["0.weight.values"]
    tensor([ 2., -1.])
    """
    state = model.state_dict()
    for name, mask in masks.items():
        if name not in state:
            raise ValueError(f"masks: the model has no parameter {name!r}")
        if mask.shape != state[name].shape:
            raise ValueError(
                f"masks[{name!r}] must have shape {tuple(state[name].shape)}, got "
                f"{tuple(mask.shape)}"
            )
        if state[name][~mask].any():
            raise ValueError(f"{name} has weights that are not zero where its mask drops them")
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in masks:
            stored |= {f"{name}.{part}": t for part, t in _sparse(tensor, masks[name]).items()}
        else:
            stored[name] = tensor
    return stored


def dense_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ordinary state dict for `model.load_state_dict` from what `sparse_state_dict` gave.

    Raises:
        ValueError: a mask without values or shape, or of other sizes than they have.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> stored = sparse_state_dict(model, {"weight": torch.ones(2, 2, dtype=torch.bool)})
    >>> torch.equal(dense_state_dict(stored)["weight"], model.weight)
    True
    """
    names = [key.removesuffix(".kept") for key in tensors if key.endswith(".kept")]
    parts = {f"{name}.{part}" for name in names for part in PARTS}
    if missing := parts - tensors.keys():
        raise ValueError(f"tensors lack {sorted(missing)}")
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key not in parts:
            state[key] = tensor
        elif key.endswith(".kept"):
            name = key.removesuffix(".kept")
            state[name] = _dense(name, *(tensors[f"{name}.{part}"] for part in PARTS))
    return state


def _sparse(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        "kept": pack_bits(mask.to(torch.uint8), bits=1),
        "values": weight[mask],
        "shape": torch.tensor(weight.shape),
    }


def _dense(name: str, kept: Tensor, values: Tensor, shape: Tensor) -> Tensor:
    mask = unpack_bits(kept, bits=1, shape=shape.tolist()).bool()
    if int(mask.sum()) != len(values):
        raise ValueError(
            f"{name} has {len(values)} values for a mask that keeps {int(mask.sum())} weights"
        )
    return values.new_zeros(mask.shape).masked_scatter_(mask, values)
