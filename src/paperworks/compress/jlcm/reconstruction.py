"""A whole network in codebooks, learned layer after layer, or block after block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import Batch, evaluating, find_modules
from paperworks.compress.blocks import (
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
from paperworks.compress.channels import ChannelGroup
from paperworks.compress.jlcm.clustering import Method, Mode, check_groups, group_neurons
from paperworks.compress.jlcm.layers import KINDS, bits_below
from paperworks.compress.jlcm.learning import (
    CodebookWeight,
    LearnableCodebook,
    MappingGradient,
    Proximity,
    check_bits,
    inverse_proximity,
)
from paperworks.compress.jlcm.permutation import free_channels, permute_neurons, writers

CHECKS = 10
"""How often in a training the loss over the whole calibration set is looked at."""

AfterBlock = Callable[[BlockReport, dict[str, LearnableCodebook]], None]


def learn_codebooks(
    model: nn.Module,
    calibration: Tensor | Batch | Iterable[Batch],
    *,
    bits: int,
    groups: int = 8,
    overhead: float = 0.01,
    steps: int = 1000,
    layers: Sequence[str] | None = None,
    mode: Mode = "codebook",
    mapping_grad: MappingGradient = "proximal",
    proximity: Proximity = inverse_proximity,
    candidates: int | None = None,
    lr: float = 1e-3,
    mapping_lr: float = 3e-2,
    batch_size: int = 32,
    kmeans: Method = "exact",
    codebook_dtype: torch.dtype | None = torch.float16,
    after_block: AfterBlock | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A network's weights as indices of few bits into small look-up tables, learned without labels.

    To fit and load a trained model in little memory: `b/8` bytes a weight and next to nothing for
    the tables. Neurons of like weights are put into groups with a codebook each, and reordered
    where that is free, so that naming the group costs nothing. Layer after layer, from the input
    on, codebooks C and mapping I are then trained together to minimise

        `|| f(X; W) - f(X_q; C[I]) ||^2`

    with `X` what the full-precision network feeds the layer and `X_q` what the compressed part
    before it gives; squares are summed over dimension 1 and averaged over the rest. The best of the
    start (k-means) and ten looks on the way is kept.

    Args:
        model: any module that can be called; it is not changed.
        calibration: inputs of the model: one tensor, or an iterable of tensors, of `(x, y)` of
            which x is used, or of dicts of keyword arguments (one dict alone is fine).
        bits: b, 1 to 8.
        groups: G, the most that a layer gets; 1 is a single codebook.
        overhead: the most that groups may take in addition to a single codebook, as a share of the
            layer's indices: more codebooks or scales, boundaries, and a stored permutation where
            the order of rows is not free. A small layer gets fewer groups for it.
        steps: of training for each layer; 0 for k-means alone.
        layers: what is compressed: names of layers, or of blocks whose layers are trained together
            (residual blocks, transformer layers), in execution order. By default every linear layer
            and convolution by itself that runs once and shares its weight with no other.
        mode: "codebook" or "scale", see `LearnableCodebook`.
        mapping_grad, proximity, candidates: see there.
        lr: Adam's rate for codebooks and scales, as a fraction of the range of a codebook and of
            the mean scale.
        mapping_lr: the rate of the logits.
        batch_size: samples in a step, drawn from one shuffled partition.
        kmeans: "exact", or "lloyd" for layers of millions of weights.
        codebook_dtype: of codebooks and scales; None for the weight's own.
        after_block: called with each block's report and its codebooks by parameter name.
        generator: for clusterings and shuffles; a fresh one with seed 0 by default.

    Returns:
        A new model with `CodebookLinear` and the like. `save_tensors(model.state_dict(), file)`
        writes it in the size that `footprint(model)` says, `load_codebooks` reads it.

    Memory, besides two models: the inputs and outputs of one block over the calibration set, and
    `16 * candidates` bytes for each of its weights to train.

    Raises:
        ValueError: bits outside [1, 8]; groups, steps or rates out of range; calibration is empty,
            or its batches do not fit together; a layer that is not found, does not run, runs twice,
            comes out of order, has nothing to compress, shares its weight, or is no function of its
            arguments; a loss that is no longer finite.
        TypeError: a batch of none of the kinds above.

    Yvinec, Dapogny, Bailly 2023, arXiv 2309.17361. The optimiser, its rates, the clustering, how
    many groups a layer gets, and everything that `LearnableCodebook` lists are ours.

    >>> from paperworks.compress import footprint
    >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    >>> inputs = torch.randn(64, 8) @ torch.randn(8, 64)
    >>> small = learn_codebooks(model, inputs, bits=4, steps=20)
    >>> small[0]
    CodebookLinear(weight=(128, 64), bits=4, groups=2)
    >>> footprint(model)["total"] / footprint(small)["total"] > 6
    True
    """
    check_bits(bits)
    check_groups(groups, groups)
    check_positive(lr=lr, mapping_lr=mapping_lr, batch_size=batch_size)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or not overhead >= 0:
        raise ValueError(f"steps and overhead must not be negative, got {steps!r}, {overhead!r}")
    generator = generator or torch.Generator().manual_seed(0)
    batches = partition(calibration, batch_size, generator)
    with evaluating(model):
        plan = _plan(model, layers, batches[0])
    names = [name for inside in plan.values() for name in inside]
    grouping = _Grouping(model, names, bits, groups, overhead, mode, generator)
    network, labels = grouping.apply(batches[0])

    def make(name: str) -> LearnableCodebook:
        return LearnableCodebook(
            network.get_submodule(name).weight,  # type: ignore[arg-type]
            bits,
            labels[name],
            mode=mode,
            mapping_grad=mapping_grad,
            proximity=proximity,
            candidates=candidates,
            kmeans=kmeans,
            generator=generator,
        )

    learned: dict[str, CodebookWeight] = {}
    substitutes: dict[str, Tensor] = {}
    with evaluating(network):
        for block, inside in plan.items():
            targets = block_outputs(network, block, batches)
            calls = block_calls(Substituted(network, substitutes), block, batches)
            codebooks = {_weight(name): make(name) for name in inside}
            task = _Learning(block, network.get_submodule(block), codebooks, calls, targets)
            before = task.loss()
            after = task.learn(steps, lr, mapping_lr, before, generator)
            for name in inside:
                dense: Any = network.get_submodule(name)
                kept = task.best[_weight(name)].to(codebook_dtype or dense.weight.dtype)
                learned[name] = kept
                substitutes[_weight(name)] = kept.dequantize().to(dense.weight.dtype)
            if after_block is not None:
                widths = dict.fromkeys(codebooks, bits)
                after_block(BlockReport(block, before, after, widths), codebooks)
    return _converted(network, learned)


class _Learning(BlockTask):
    """One block, its codebooks by the name of the weight, its inputs and targets."""

    best: dict[str, CodebookWeight]

    def learn(
        self,
        steps: int,
        lr: float,
        mapping_lr: float,
        loss: float,
        generator: torch.Generator,
    ) -> float:
        """Train, keep the best in `best`, and give its loss; `loss` is that of the start."""
        self.best, least = self._settled(), loss
        optimizers = _optimizers(self.codebooks, lr, mapping_lr) if steps else []
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers]
        looks = {steps * i // CHECKS for i in range(1, CHECKS + 1)}
        for step, i in zip(range(1, steps + 1), draws(len(self.calls), generator)):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self.batch_loss(i).backward()
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                schedule.step()
            if step in looks and (now := self.loss()) < least:
                self.best, least = self._settled(), now
        return least

    @property
    def codebooks(self) -> list[LearnableCodebook]:
        return list(self.parametrizations.values())  # type: ignore[arg-type]

    def _settled(self) -> dict[str, CodebookWeight]:
        return {
            f"{self.name}.{key}".strip("."): codebook.settled(self.frozen[key].shape)  # type: ignore[operator]
            for key, codebook in self.parametrizations.items()
        }


class _NormalizedSGD(torch.optim.SGD):
    """Momentum on gradients that are divided by their size, the root mean square of the tensor.

    Adam would divide each logit's gradient by its own size, and with it whatever factor tells near
    codewords from far ones.
    """

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                size = parameter.grad.square().mean().sqrt()
                parameter.grad.div_(size.clamp_min(torch.finfo(size.dtype).tiny))
        return super().step(closure)


def _optimizers(
    codebooks: list[LearnableCodebook], lr: float, mapping_lr: float
) -> list[torch.optim.Optimizer]:
    """Adam moves codewords by about its rate, which is a fraction of their range."""
    tables: list[dict[str, Any]] = []
    for codebook in codebooks:
        spread = _spread(codebook.codebooks.detach())
        tables.append({"params": [codebook.codebooks], "lr": lr * spread})
        if codebook.scales is not None:
            mean = codebook.scales.detach().mean().item()
            tables.append({"params": [codebook.scales], "lr": lr * mean})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(tables, fused=True)]
    if logits := [c.logits for c in codebooks if c.logits is not None]:
        optimizers.append(_NormalizedSGD(logits, lr=mapping_lr, momentum=0.9, dampening=0.9))
    return optimizers


def _spread(codebooks: Tensor) -> float:
    return (codebooks.amax(1) - codebooks.amin(1)).mean().item()


class _Grouping:
    """Decides how many groups each layer gets, and which rows are in them."""

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        bits: int,
        groups: int,
        overhead: float,
        mode: Mode,
        generator: torch.Generator,
    ) -> None:
        self.model, self.names = model, names
        self.bits, self.groups, self.overhead, self.mode = bits, groups, overhead, mode
        self.generator = generator

    def apply(self, example: Batch) -> tuple[nn.Module, dict[str, Tensor]]:
        """A copy with reordered neurons, and the labels of the rows of every layer in it."""
        labels: dict[str, Tensor] = {}
        free: dict[str, Tensor] = {}
        for channels in free_channels(self.model, example):
            free |= self._together(channels)
        network = permute_neurons(self.model, example, free)
        for name in self.names:
            if name in free:
                labels[name] = free[name].sort()[0]
            else:
                weight = self._weight(name)
                count = self._count([weight], bits_below(len(weight)) * len(weight))
                labels[name] = self._labels(weight, count)
        return network, labels

    def _together(self, channels: ChannelGroup) -> dict[str, Tensor]:
        """Labels for all layers that write these channels: one order, found from all their rows."""
        named = [name for name in writers(channels) if name in self.names]
        weights = [self._weight(name) for name in named]
        if not named:
            return {}
        rows = torch.cat([w.reshape(channels.size, -1).to(weights[0]) for w in weights], 1)
        labels = self._labels(rows, min(self._count(weights, 0), channels.size))
        return {
            name: labels.repeat_interleave(len(w) // channels.size)
            for name, w in zip(named, weights)
        }

    def _weight(self, name: str) -> Tensor:
        return self.model.get_submodule(name).weight.detach()  # type: ignore[operator]

    def _labels(self, rows: Tensor, count: int) -> Tensor:
        return group_neurons(rows, count, self.mode, generator=self.generator)

    def _count(self, weights: list[Tensor], permutation: int) -> int:
        """The most groups, up to `groups`, whose bits stay within the overhead of each layer."""
        numbers = 2**self.bits if self.mode == "codebook" else 1
        each = 16 * numbers + 32  # in half precision, and a boundary
        least = min(weight.numel() for weight in weights)
        spare = self.overhead * self.bits * least - permutation
        rows = min(len(weight) for weight in weights)
        return max(1, min(self.groups, rows, 1 + int(spare // each)))


def _plan(model: nn.Module, layers: Sequence[str] | None, batch: Batch) -> dict[str, list[str]]:
    """For each block, or layer that is one by itself, the layers in it."""
    order = execution_order(model, batch)
    if layers is None:
        plan = {name: [name] for name in _all_layers(model, order)}
        if not plan:
            raise ValueError("model has no linear layer or convolution that runs once")
    else:
        blocks = find_modules(model, layers, "layer")
        check_disjoint(layers)
        check_order(layers, order)
        plan = {}
        for name, block in blocks.items():
            plan[name] = [
                f"{name}.{inner}".strip(".")
                for inner, module in block.named_modules()
                if isinstance(module, tuple(KINDS))
            ]
            if not plan[name]:
                raise ValueError(f"layer {name!r} has no linear layer or convolution in it")
    check_weights(model, [_weight(name) for inside in plan.values() for name in inside])
    return plan


def _all_layers(model: nn.Module, order: list[str]) -> list[str]:
    """Layers that run once and do not share their weight, in execution order."""
    runs = Counter(order)
    modules = dict(model.named_modules())
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return [
        name
        for name in order
        if type(modules[name]) in KINDS
        and runs[name] == 1
        and shared[id(modules[name].weight)] == 1
    ]


def _converted(network: nn.Module, learned: dict[str, CodebookWeight]) -> nn.Module:
    """The network, our own copy, with codebook layers in place of its dense ones."""
    for name, weight in learned.items():
        dense = network.get_submodule(name)
        layer = KINDS[type(dense)].from_codebooks(dense, weight)
        if not name:
            return layer
        network.set_submodule(name, layer)
    return network


def _weight(name: str) -> str:
    return f"{name}.weight".strip(".")
