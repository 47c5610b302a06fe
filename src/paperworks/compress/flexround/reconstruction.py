"""Block-wise reconstruction: learn the rounding of a network's weights, block after block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import Batch, evaluating, find_modules
from paperworks.compress.blocks import (
    LAYERS,
    BlockReport,
    BlockTask,
    Substituted,
    block_calls,
    block_outputs,
    check_disjoint,
    check_order,
    check_positive,
    check_weights,
    draws,
    execution_order,
    partition,
)
from paperworks.compress.flexround.grid import IntegerWeight, quant_range
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
MakeRounding = Callable[[Tensor, int], Rounding]


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
    check_positive(iters=iters, lr=lr, batch_size=batch_size)
    make = _factory(rounding)
    generator = generator or torch.Generator().manual_seed(0)
    batches = partition(calibration, batch_size, generator)
    parameters = dict(model.named_parameters())
    rounded: dict[str, Tensor] = {}
    report = Reconstruction()
    with evaluating(model):
        plan = _plan(model, blocks, batches[0], bits, quantize_first_last)
        for name, widths in plan.items():
            targets = block_outputs(model, name, batches)
            calls = block_calls(Substituted(model, rounded), name, batches)
            roundings = {key: make(parameters[key], width) for key, width in widths.items()}
            task = _Training(name, model.get_submodule(name), roundings, calls, targets)
            before = task.loss()
            task.learn(iters, lr, generator)
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


class _Training(BlockTask):
    """A block whose roundings are trained."""

    def learn(self, iters: int, lr: float, generator: torch.Generator) -> None:
        roundings: list[Any] = list(self.parametrizations.values())
        learned = [p for rounding in roundings for p in rounding.parameters()]
        if not learned:
            return
        self.train()
        optimizer = torch.optim.Adam(learned, lr=lr, fused=True)  # one pass over each tensor
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
        for step, i in zip(range(iters), draws(len(self.calls), generator)):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self.batch_loss(i)
                for rounding in roundings:
                    loss = loss + rounding.penalty(step / iters)
                loss.backward()
            optimizer.step()
            schedule.step()


def _plan(
    model: nn.Module, blocks: Sequence[str], batch: Batch, bits: int, quantize_first_last: bool
) -> dict[str, dict[str, int]]:
    """For each block the bits of every weight in it, by the parameter's name in the model."""
    modules = find_modules(model, blocks, "block")
    check_disjoint(blocks)
    order = execution_order(model, batch)
    check_order(blocks, order)
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
    check_weights(model, [key for widths in plan.values() for key in widths])
    return plan


def _factory(rounding: str | MakeRounding) -> MakeRounding:
    if callable(rounding):
        return rounding
    if rounding not in ROUNDINGS:
        names = ", ".join(map(repr, ROUNDINGS))
        raise ValueError(f"rounding must be {names} or a function, got {rounding!r}")
    return ROUNDINGS[rounding]
