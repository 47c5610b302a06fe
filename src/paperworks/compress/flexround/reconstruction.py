"""Block-wise reconstruction: learn the rounding of a network's weights, block after block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperworks.common.activations import (
    Batch,
    collect_activations,
    evaluating,
    find_modules,
    first_tensor,
    model_arguments,
)
from paperworks.compress.flexround.grid import IntegerWeight, checked_weight, quant_range
from paperworks.compress.flexround.rounding import (
    AdaQuant,
    AdaRound,
    FlexRound,
    Rounding,
    RoundToNearest,
)

ROUNDINGS: dict[str, Callable[..., Rounding]] = {
    "flexround": FlexRound,
    "adaround": AdaRound,
    "adaquant": AdaQuant,
    "nearest": RoundToNearest,
}
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What is rounded: their weights have the output first and the input second."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments that a block was called with."""
MakeRounding = Callable[[Tensor, int], Rounding]


@dataclass(frozen=True)
class BlockReport:
    """One block's reconstruction loss over the calibration inputs, and the weights in it.

    Args:
        name: the block.
        loss_before: with weights rounded to nearest, as training starts.
        loss_after: with the weights that are kept.
        bits: for each weight its bits.
    """

    name: str
    loss_before: float
    loss_after: float
    bits: dict[str, int]


@dataclass
class Reconstruction:
    """What `reconstruct_` did. Printing it gives a table.

    Args:
        blocks: the blocks in order.
        weights: for each rounded parameter, by its name, the integers and scales it now stands for.
    """

    blocks: list[BlockReport] = field(default_factory=list)
    weights: dict[str, IntegerWeight] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(len("block"), *(len(block.name) for block in self.blocks))
        rows = [f"{'block':{width}}  bits  loss before   loss after"]
        for block in self.blocks:
            bits = "/".join(str(b) for b in sorted(set(block.bits.values())))
            losses = f"{block.loss_before:11.4g}  {block.loss_after:11.4g}"
            rows.append(f"{block.name:{width}}  {bits:>4}  {losses}")
        return "\n".join(rows)


def reconstruct_(
    model: nn.Module,
    blocks: Sequence[str],
    calibration: Tensor | Batch | Iterable[Batch],
    *,
    rounding: str | MakeRounding = "flexround",
    bits: int = 4,
    iters: int = 2000,
    lr: float = 3e-3,
    batch_size: int = 32,
    quantize_first_last: bool = False,
    after_block: Callable[[str, dict[str, Rounding]], None] | None = None,
    generator: torch.Generator | None = None,
) -> Reconstruction:
    """Round the weights of a trained network to few bits, from unlabelled inputs, in place.

    Block after block, from the input on, it trains the rounding of the block's weights to minimise

        `|| B(X; W) - B(X_q; W_hat) ||^2`

    with `X` what the full-precision network feeds the block and `X_q` what the already rounded part
    before it produces; squares are summed over dimension 1 and averaged over the rest. Adam, one
    group, cosine to 0. Afterwards the weights are the rounded ones; biases, norms and everything
    else stay as they were. If anything raises, the model is as it was.

    Rounded are the weights of `Linear`, `Conv1d`, `Conv2d` and `Conv3d` inside the blocks, grouped
    and biased or not. Left in floating point: recurrent layers, embeddings, transposed
    convolutions, and the packed input projection of `MultiheadAttention`. Fold batch norms first
    (`fold_batchnorm`); one that stays works as in evaluation mode.

    Args:
        model: any module that can be called; its device and dtypes are kept, its modes put back.
        blocks: names of submodules in execution order, each run once in a forward: residual blocks,
            transformer layers, or single layers where there are no blocks. A block may take several
            inputs, but must be a function of them: `use_cache=False` for transformers.
        calibration: inputs of the model: one tensor, or an iterable of tensors, of `(x, y)` of
            which x is used, or of dicts of keyword arguments (one dict alone is fine).
        rounding: "flexround", "adaround", "adaquant", "nearest", or a function of
            `(weight, bits)` that makes a `Rounding`:
            `functools.partial(FlexRound, per_channel=True, symmetric=False, scale="minmax")` is the
            setting of the paper's language models.
        bits: 2 to 8.
        iters: steps for each block: 20000 in the paper for pictures, 5000 for language models.
        lr: Adam's rate. For FlexRound 3e-3, or ten times that with a few hundred steps; AdaRound
            needs larger ones, see there.
        batch_size: samples in a step. The samples are shuffled once; batches are then drawn from
            that partition without replacement.
        quantize_first_last: give the model's first and last layer `bits` too. By default they get
            8 (an embedding counts as a first layer, though it is never rounded).
        after_block: called with a block's name and its trained roundings by parameter name, for
            progress, or to look at `FlexRound.factors()`.
        generator: shuffles; a fresh one with seed 0 by default.

    Returns:
        Losses by block, and the integers of every rounded weight.

    Memory, besides the model: for one block at a time its inputs and outputs over the calibration
    set, and 16 bytes a weight to train. The part before a block is run again for every block.

    Raises:
        ValueError: bits outside [2, 8]; iters, lr or batch_size not positive; calibration is empty,
            or its batches do not fit together; a block that is not found, lies inside another, does
            not run, runs twice, comes out of order, has nothing to round, or is no function of its
            arguments; a weight that is not finite, shared, or parametrised already; an unknown
            rounding; a loss that is no longer finite.
        TypeError: a batch of none of the kinds above.

    Lee, Kim, Kwon, Lee 2023, arXiv 2306.00317; the defaults for first and last layers are those of
    BRECQ (arXiv 2102.05426). Activations stay in floating point.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> inputs = torch.randn(64, 2) @ torch.randn(2, 8)
    >>> report = reconstruct_(model, ["0", "2"], inputs, bits=4, iters=100)
    >>> [block.loss_after < block.loss_before for block in report.blocks]
    [True, True]
    >>> weight = report.weights["2.weight"]
    >>> weight.integers.dtype, torch.equal(model[2].weight, weight.dequantize())
    (torch.int8, True)
    """
    quant_range(bits)
    _check_positive(iters=iters, lr=lr, batch_size=batch_size)
    make = _factory(rounding)
    generator = generator or torch.Generator().manual_seed(0)
    batches = _partition(calibration, batch_size, generator)
    parameters = dict(model.named_parameters())
    rounded: dict[str, Tensor] = {}
    report = Reconstruction()
    with evaluating(model):
        plan = _plan(model, blocks, batches[0], bits, quantize_first_last)
        for name, widths in plan.items():
            targets = _outputs(model, name, batches)
            calls = _calls(_Substituted(model, rounded), name, batches)
            roundings = {key: make(parameters[key], width) for key, width in widths.items()}
            task = _Task(name, model.get_submodule(name), roundings, calls, targets)
            before = task.loss()
            task.train(iters, lr, generator)
            report.blocks.append(BlockReport(name, before, task.loss(), widths))
            for key, trained in roundings.items():
                report.weights[key] = trained.integer_weight(parameters[key])
                rounded[key] = report.weights[key].dequantize().to(parameters[key].dtype)
            if after_block is not None:
                after_block(name, roundings)
    with torch.no_grad():
        for key, weight in rounded.items():
            parameters[key].copy_(weight)
    return report


class _Task:
    """One block, its roundings (by the parameter's name in the model), its inputs and targets.

    The block's parameters are never touched: every forward substitutes the rounded ones.
    """

    def __init__(
        self,
        name: str,
        block: nn.Module,
        roundings: dict[str, Rounding],
        calls: list[Call],
        targets: list[Tensor],
    ) -> None:
        self.name = name
        self.block = block
        parameters = block.named_parameters(remove_duplicate=False)
        self.frozen = {key: p.detach() for key, p in parameters}
        self.roundings = {_local(key, name): r for key, r in roundings.items()}
        self.calls = calls
        self.targets = targets

    def train(self, iters: int, lr: float, generator: torch.Generator) -> None:
        learned = [p for r in self.roundings.values() for p in r.parameters()]
        if not learned:
            return
        self._mode(True)
        optimizer = torch.optim.Adam(learned, lr=lr, fused=True)  # one pass over each tensor
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
        for step, i in zip(range(iters), _draws(len(self.calls), generator)):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self._batch_loss(i)
                for rounding in self.roundings.values():
                    loss = loss + rounding.penalty(step / iters)
                loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over the calibration set with the weights that would be kept now."""
        self._mode(False)
        sizes = [len(target) for target in self.targets]
        losses = [self._batch_loss(i).item() for i in range(len(sizes))]
        mean = sum(n * loss for n, loss in zip(sizes, losses)) / sum(sizes)
        if not math.isfinite(mean):
            raise ValueError(f"the loss of block {self.name!r} became {mean}: lower lr")
        return mean

    def _batch_loss(self, i: int) -> Tensor:
        args, kwargs = self.calls[i]
        weights = {key: r(self.frozen[key]) for key, r in self.roundings.items()}
        output = first_tensor(functional_call(self.block, {**self.frozen, **weights}, args, kwargs))
        assert output is not None  # it was a tensor when the target was recorded
        return _squared_error(output, self.targets[i])

    def _mode(self, training: bool) -> None:
        for rounding in self.roundings.values():
            rounding.train(training)


class _Substituted(nn.Module):
    """The model with some parameters replaced, itself untouched; submodules are `model.<name>`."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.substitutes = parameters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.substitutes, args, kwargs, tie_weights=False)


def _plan(
    model: nn.Module, blocks: Sequence[str], batch: Batch, bits: int, quantize_first_last: bool
) -> dict[str, dict[str, int]]:
    """For each block the bits of every weight in it, by the parameter's name in the model."""
    modules = find_modules(model, blocks, "block")
    _check_disjoint(blocks)
    order = _execution_order(model, batch)
    _check_order(blocks, order)
    everything = dict(model.named_modules())
    weighted = [name for name in order if isinstance(everything[name], (*LAYERS, nn.Embedding))]
    ends = [] if quantize_first_last else weighted[:1] + weighted[-1:]
    plan = {}
    for name, block in modules.items():
        layers = [
            f"{name}.{inner}".strip(".")
            for inner, layer in block.named_modules()
            if isinstance(layer, LAYERS)
        ]
        if not layers:
            raise ValueError(f"block {name!r} has nothing to round: no Linear or Conv layer")
        plan[name] = {
            f"{layer}.weight".strip("."): 8 if layer in ends else bits for layer in layers
        }
    _check_weights(model, [key for widths in plan.values() for key in widths])
    return plan


def _execution_order(model: nn.Module, batch: Batch) -> list[str]:
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


def _outputs(model: nn.Module, block: str, batches: list[Batch]) -> list[Tensor]:
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


def _calls(model: nn.Module, block: str, batches: list[Batch]) -> list[Call]:
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


def _partition(calibration: Any, size: int, generator: torch.Generator) -> list[Batch]:
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


def _draws(n: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n, generator=generator, device=generator.device).tolist()


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(target.dtype, torch.float32)
    square = (output.to(dtype) - target.to(dtype)).square()
    return square.sum(1).mean() if square.dim() > 1 else square.mean()


def _local(key: str, block: str) -> str:
    return key.removeprefix(f"{block}.") if block else key


def _factory(rounding: str | MakeRounding) -> MakeRounding:
    if callable(rounding):
        return rounding
    if rounding not in ROUNDINGS:
        names = ", ".join(map(repr, ROUNDINGS))
        raise ValueError(f"rounding must be {names} or a function, got {rounding!r}")
    return ROUNDINGS[rounding]


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")


def _check_disjoint(blocks: Sequence[str]) -> None:
    if not blocks:
        raise ValueError("blocks is empty")
    for i, name in enumerate(blocks):
        for other in blocks[:i]:
            if name == other:
                raise ValueError(f"block {name!r} is named twice")
            inner, outer = sorted((name, other), key=len, reverse=True)
            if not outer or inner.startswith(f"{outer}."):
                raise ValueError(f"block {inner!r} lies inside block {outer!r}")


def _check_order(blocks: Sequence[str], order: list[str]) -> None:
    for name in blocks:
        if order.count(name) != 1:
            times = "did not run" if name not in order else f"ran {order.count(name)} times"
            raise ValueError(f"block {name!r} {times} in a forward of the model, must run once")
    executed = [name for name in order if name in blocks]
    if executed != list(blocks):
        raise ValueError(f"blocks must be in execution order, which is {executed}")


def _check_weights(model: nn.Module, keys: list[str]) -> None:
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


def _check_function(model: nn.Module, block: str, batch: Batch, expected: Tensor) -> None:
    """A block with a memory, such as a transformer's cache, cannot be trained on its own."""
    ((args, kwargs),) = _calls(_Substituted(model, {}), block, [batch])
    with torch.no_grad():
        again = first_tensor(model.get_submodule(block)(*args, **kwargs))
    if again is None or not torch.allclose(again, expected, rtol=1e-2, atol=1e-4):
        raise ValueError(
            f"block {block!r} gives something else when called again with the same arguments: does "
            "it keep a cache (use_cache=False), or draw random numbers?"
        )
