"""What a model costs: bytes to keep, multiply-adds to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paperworks.common.activations import Batch, evaluating, model_arguments


def footprint(model: nn.Module | Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes that a model's tensors take, in memory and in the file that `save_tensors` writes.

    Tensors that share memory count once. Zeros cost what other numbers cost: a mask alone makes no
    model smaller.

    Args:
        model: any module, on any device; or tensors by name, as `integer_state_dict` gives them.

    Returns:
        Bytes by kind, and "total". Kinds are "parameters" and "buffers" (those left out of the
        `state_dict`, too), and whatever else modules with an attribute `stored_as` call their own
        tensors: `{"indices": "indices"}` for a module that has a buffer of this name. Of tensors by
        name there is the total alone.

    >>> footprint(nn.Linear(4, 2))
    {'parameters': 40, 'buffers': 0, 'total': 40}
    """
    if isinstance(model, Mapping):
        return {"total": _bytes(model.values(), set())}
    sizes = {"parameters": 0, "buffers": 0}
    seen: set[tuple[str, int]] = set()
    for default, tensors_of in (
        ("parameters", nn.Module.named_parameters),
        ("buffers", nn.Module.named_buffers),
    ):
        for module in model.modules():
            kinds = getattr(module, "stored_as", {})
            for name, tensor in tensors_of(module, recurse=False):
                kind = kinds.get(name, default)
                sizes[kind] = sizes.get(kind, 0) + _bytes([tensor], seen)
    return {**sizes, "total": sum(sizes.values())}


def macs(model: nn.Module, example: Batch) -> int:
    """Multiply-adds of one forward of a model on these inputs, all of them together.

    Matrix products, convolutions and attention count, element-wise operations do not: half of what
    torch's `FlopCounterMode` counts. Zero weights count like others; `training_macs` knows masks.

    Args:
        model: any module; it runs once, in evaluation mode and without gradients.
        example: what it is fed: a tensor, a tuple `(x, ...)`, or a dict of arguments. With a single
            sample the result is per sample.

    Raises:
        TypeError: `example` is none of these.

    >>> macs(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), torch.rand(1, 64))
    9472
    """
    return _count(model, example)["Global"]


def layer_macs(model: nn.Module, example: Batch) -> dict[str, int]:
    """Multiply-adds of one forward by layer: by the submodules that have parameters of their own.

    See `macs` for what counts. A layer that runs twice counts twice; what no such submodule does,
    such as a matrix product in a container's `forward`, is in no layer.

    >>> layer_macs(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.rand(1, 1, 5, 5))
    {'0': 162}
    """
    counts = _count(model, example)
    root = type(model).__name__
    return {
        name: counts.get(f"{root}.{name}".rstrip("."), 0)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }


def _count(model: nn.Module, example: Batch) -> dict[str, int]:
    """Multiply-adds of all together ("Global") and of each module, after the class of the model."""
    args, kwargs = model_arguments(model, example)
    with evaluating(model), torch.no_grad(), _unfused(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    flops = {place: sum(ops.values()) for place, ops in counter.get_flop_counts().items()}
    return {"Global": 0} | {place: n // 2 for place, n in flops.items()}


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention as separate products: the counter does not know every fused kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _bytes(tensors: Iterable[Tensor], seen: set[tuple[str, int]]) -> int:
    """Bytes of the tensors whose memory is not in `seen`, which takes it up."""
    total = 0
    for tensor in tensors:
        place = (str(tensor.device), tensor.data_ptr() or id(tensor))  # "meta" has no memory
        if place not in seen:
            total += tensor.numel() * tensor.element_size()
            seen.add(place)
    return total
