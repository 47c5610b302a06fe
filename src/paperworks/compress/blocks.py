"""The blocks of a model: calibration inputs for them, and their reconstruction one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperworks.common.activations import (
    Batch,
    collect_activations,
    first_tensor,
    model_arguments,
)

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What is compressed: their weights have the output first and the input second."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments that a block was called with."""


@dataclass(frozen=True)
class BlockReport:
    """One block's reconstruction loss over the calibration inputs, and the weights in it.

    Args:
        name: the block.
        loss_before: with the weights that training starts from.
        loss_after: with the weights that are kept.
        bits: for each weight its bits.
    """

    name: str
    loss_before: float
    loss_after: float
    bits: dict[str, int]


class BlockTask:
    """One block to reconstruct: what makes its weights, what it is called with, its targets.

    The block's parameters are never touched: every forward substitutes what the parametrisations
    make of them.

    Args:
        name: the block's in the model.
        block: the block.
        parametrizations: modules that take a weight and give the one to use, by the parameter's
            name in the model.
        calls: see `block_calls`.
        targets: see `block_outputs`.
    """

    def __init__(
        self,
        name: str,
        block: nn.Module,
        parametrizations: Mapping[str, nn.Module],
        calls: list[Call],
        targets: list[Tensor],
    ) -> None:
        self.name = name
        self.block = block
        parameters = block.named_parameters(remove_duplicate=False)
        self.frozen = {key: p.detach() for key, p in parameters}
        self.parametrizations = {_local(key, name): p for key, p in parametrizations.items()}
        self.calls = calls
        self.targets = targets

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over the calibration set with the weights that would be kept now."""
        self.train(False)
        sizes = [len(target) for target in self.targets]
        losses = [self.batch_loss(i).item() for i in range(len(sizes))]
        mean = sum(n * loss for n, loss in zip(sizes, losses)) / sum(sizes)
        if not math.isfinite(mean):
            raise ValueError(f"the loss of block {self.name!r} became {mean}: lower lr")
        return mean

    def batch_loss(self, i: int) -> Tensor:
        """Squared error of the i-th batch, summed over dimension 1 and averaged over the rest."""
        args, kwargs = self.calls[i]
        weights = {key: p(self.frozen[key]) for key, p in self.parametrizations.items()}
        output = first_tensor(functional_call(self.block, {**self.frozen, **weights}, args, kwargs))
        assert output is not None  # it was a tensor when the target was recorded
        return _squared_error(output, self.targets[i])

    def train(self, training: bool = True) -> None:
        """The mode of the parametrisations: soft while they learn, say, else as they are kept."""
        for parametrization in self.parametrizations.values():
            parametrization.train(training)


class Substituted(nn.Module):
    """The model with some parameters replaced, itself untouched; submodules are `model.<name>`."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.substitutes = parameters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.substitutes, args, kwargs, tie_weights=False)


def execution_order(model: nn.Module, batch: Batch) -> list[str]:
    """Names of submodules, one for every time that one finished."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
    ]
    args, kwargs = model_arguments(model, batch)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return order


def block_outputs(model: nn.Module, block: str, batches: list[Batch]) -> list[Tensor]:
    """What the full-precision block gives for each batch."""
    outputs: list[Tensor] = []
    collect_activations(
        model,
        batches,
        [block],
        reduce=lambda activations, _: outputs.append(activations[block]),
        early_stop=True,
    )
    _check_function(model, block, batches[0], outputs[0])
    return outputs


def block_calls(model: nn.Module, block: str, batches: list[Batch]) -> list[Call]:
    """What the block is called with for each batch; `model` wraps the user's."""
    name = f"model.{block}".strip(".")
    calls: list[Call] = []
    collect_activations(
        model,
        batches,
        [name],
        of="input",
        transform=lambda call: call,
        reduce=lambda activations, _: calls.append(activations[name]),
        early_stop=True,
    )
    return calls


def partition(calibration: Any, size: int, generator: torch.Generator) -> list[Batch]:
    """The calibration inputs, shuffled, as batches of one size (the last may be smaller)."""
    given = [calibration] if isinstance(calibration, Tensor | Mapping) else list(calibration)
    if not given:
        raise ValueError("calibration is empty")
    if all(isinstance(batch, Mapping) for batch in given):
        inputs = {key: _joined([batch[key] for batch in given]) for key in given[0]}
    else:
        inputs = {"": _joined([model_arguments(nn.Identity(), batch)[0][0] for batch in given])}
    lengths = {len(x) for x in inputs.values() if isinstance(x, Tensor)}
    if lengths == {0} or not lengths:
        raise ValueError("calibration is empty")
    if len(lengths) > 1:
        raise ValueError(f"calibration has tensors of different lengths: {sorted(lengths)}")
    (n,) = lengths
    order = torch.randperm(n, generator=generator, device=generator.device).cpu()
    parts = [
        {key: x[i.to(x.device)] if isinstance(x, Tensor) else x for key, x in inputs.items()}
        for i in order.split(size)
    ]
    return [part[""] for part in parts] if "" in inputs else parts


def draws(n: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n, generator=generator, device=generator.device).tolist()


def check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")


def check_disjoint(blocks: Sequence[str]) -> None:
    if not blocks:
        raise ValueError("blocks is empty")
    for i, name in enumerate(blocks):
        for other in blocks[:i]:
            if name == other:
                raise ValueError(f"block {name!r} is named twice")
            inner, outer = sorted((name, other), key=len, reverse=True)
            if not outer or inner.startswith(f"{outer}."):
                raise ValueError(f"block {inner!r} lies inside block {outer!r}")


def check_order(blocks: Sequence[str], order: list[str]) -> None:
    for name in blocks:
        if order.count(name) != 1:
            times = "did not run" if name not in order else f"ran {order.count(name)} times"
            raise ValueError(f"block {name!r} {times} in a forward of the model, must run once")
    executed = [name for name in order if name in blocks]
    if executed != list(blocks):
        raise ValueError(f"blocks must be in execution order, which is {executed}")


def check_weights(model: nn.Module, keys: list[str]) -> None:
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    for key in keys:
        if key not in parameters:
            raise ValueError(f"{key!r} is no plain parameter: remove its parametrisation first")
        if len(names[id(parameters[key])]) > 1:
            raise ValueError(
                f"one weight is shared by {names[id(parameters[key])]}: give each a copy first"
            )
        try:
            checked_weight(parameters[key])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{key}: {error}") from None


def checked_weight(w: Tensor, per_channel: bool = False) -> Tensor:
    """The values of a weight, without gradient and in at least float32; see `fit_scale`."""
    if not w.is_floating_point():
        raise TypeError(f"weight must be floating point, got {w.dtype}")
    if w.numel() == 0 or (per_channel and w.dim() == 0):
        raise ValueError(f"weight of shape {tuple(w.shape)} has nothing to round")
    if not torch.isfinite(w).all():
        raise ValueError("weight contains non-finite values")
    return w.detach().to(torch.promote_types(w.dtype, torch.float32))


def _check_function(model: nn.Module, block: str, batch: Batch, expected: Tensor) -> None:
    """A block with a memory, such as a transformer's cache, cannot be trained on its own."""
    ((args, kwargs),) = block_calls(Substituted(model, {}), block, [batch])
    with torch.no_grad():
        again = first_tensor(model.get_submodule(block)(*args, **kwargs))
    if again is None or not torch.allclose(again, expected, rtol=1e-2, atol=1e-4):
        raise ValueError(
            f"block {block!r} gives something else when called again with the same arguments: does "
            "it keep a cache (use_cache=False), or draw random numbers?"
        )


def _joined(values: list[Any]) -> Any:
    """Tensors one after the other; of anything else the first."""
    if not isinstance(values[0], Tensor):
        return values[0]
    shapes = {tuple(value.shape[1:]) for value in values}
    if len(shapes) > 1 or values[0].dim() == 0:
        raise ValueError(
            f"calibration batches of shapes {[tuple(v.shape) for v in values[:4]]} do not fit "
            "together: samples must have one shape"
        )
    return torch.cat(values)


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(target.dtype, torch.float32)
    square = (output.to(dtype) - target.to(dtype)).square()
    return square.sum(1).mean() if square.dim() > 1 else square.mean()


def _local(key: str, block: str) -> str:
    return key.removeprefix(f"{block}.") if block else key
