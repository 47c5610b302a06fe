"""Batch norms folded into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from paperworks.common.activations import Batch, evaluating, model_arguments

# Exact types: a subclass may do something to its weight, or after the norm.
FUSE: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: fuse_linear_bn_eval,
    nn.Conv1d: fuse_conv_bn_eval,
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Conv3d: fuse_conv_bn_eval,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(model: nn.Module, example: Batch) -> nn.Module:
    """A copy of a trained model without the batch norms that directly follow a layer.

    In evaluation mode a batch norm is an affine map of each channel, which the convolution or
    linear layer before it can do as well: fewer layers, the same output, and weights that are what
    the hardware multiplies with. Fold before quantising. The norms become `nn.Identity`.

    The pairs are found by watching one forward, so any module works. A norm stays where it is when
    its layer runs twice or when the layer's output goes elsewhere too.

    Args:
        model: the trained model; it is not changed.
        example: a batch that the model can be fed: a tensor, a tuple `(x, ...)`, or a dict.

    Returns:
        The copy, in the model's modes. It stands for the model in evaluation mode only.

    Folding itself is `torch.nn.utils.fusion.fuse_conv_bn_eval`.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> x = torch.rand(2, 3, 5, 5)
    >>> folded = fold_batchnorm(model, x)
    >>> folded[1], torch.allclose(folded(x), model(x), atol=1e-5)
    (Identity(), True)
    """
    folded = copy.deepcopy(model)
    modules = dict(folded.named_modules())
    with evaluating(folded), torch.no_grad():
        fused = {
            pair: FUSE[type(modules[pair[0]])](modules[pair[0]], modules[pair[1]])
            for pair in _pairs(folded, example)
        }
    for (layer, norm), module in fused.items():
        folded.set_submodule(layer, module.train(modules[layer].training))
        folded.set_submodule(norm, nn.Identity().train(modules[norm].training))
    return folded


def _pairs(model: nn.Module, example: Batch) -> list[tuple[str, str]]:
    """Names of (layer, norm) where the norm, and nothing else, reads the layer's output."""
    readers = _Readers()
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that ids stay theirs
    pairs: list[tuple[str, str, Tensor]] = []
    runs: Counter[str] = Counter()

    def after_layer(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        runs[name] += 1
        if output.dim() == 2 or not isinstance(layer, nn.Linear):  # else its outputs come last
            outputs[id(output)] = name, output
            readers.count[id(output)] = 0  # an earlier tensor may have had this id

    def before_norm(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if id(args[0]) in outputs:
            layer, output = outputs[id(args[0])]
            pairs.append((layer, name, output))

    handles = []
    for name, module in model.named_modules():
        if type(module) in FUSE:
            handles.append(module.register_forward_hook(partial(after_layer, name)))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(partial(before_norm, name)))
    args, kwargs = model_arguments(model, example)
    try:
        with readers:
            readers.add(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return [
        (layer, norm)
        for layer, norm, output in pairs
        if runs[layer] == runs[norm] == readers.count[id(output)] == 1
    ]


class _Readers(TorchFunctionMode):
    """Counts for each tensor, by its id, the operations that compute something from it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if next(_tensors(result), None) is not None:  # not .dim() and the like
            self.add((args, kwargs or {}))
        return result

    def add(self, values: Any) -> None:
        self.count.update(map(id, _tensors(values)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
