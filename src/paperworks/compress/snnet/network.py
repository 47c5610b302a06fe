"""Several trained networks joined into one whose cost is chosen as it runs."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import Batch, model_arguments
from paperworks.compress.cost import macs
from paperworks.compress.snnet.anchors import AnchorAdapter, Chain, run_chain, trace
from paperworks.compress.snnet.enumeration import StitchConfig, enumerate_configs
from paperworks.compress.snnet.layers import StitchLayer, fit_stitch

DIRECTIONS = ("fast_to_slow", "slow_to_fast")


class StitchableNetwork(nn.Module):
    """Trained networks of one family as one network whose cost is chosen at run time.

    A path runs the embedding of one anchor and its blocks up to i, a linear stitching layer, then
    the blocks of the next anchor from k on and its head:

        `head_c(block_c,L(... block_c,k(W block_a,i(... embed_a(x)) + b)))`

    Reach for it when you have a small and a large network, want dozens of costs between them, and
    can afford a few epochs of fine-tuning (`stitch_finetune`). Position embeddings and class token
    are those of the anchor where the path begins.

    The anchors are copied, so that training leaves yours as they are. Switching costs nothing: no
    weight is copied or moved.

    Args:
        anchors: at least two trained networks, cheapest first, that take one input and agree on the
            grid of tokens or pixels: models that `AnchorAdapter.of` knows, or `AnchorAdapter`s.
        example: an input, fed to each anchor once to learn widths and costs: a tensor, a tuple
            `(x, ...)` of which x is used, or a dict of arguments.
        window, stride: see `paired_stitches`; for stages of equal depth. Others are stitched as
            `unpaired_stitches` says, from the shallower to the deeper.
        nearest: stitch only neighbours in cost; else every two anchors.
        direction: "fast_to_slow" begins in the cheaper anchor, "slow_to_fast" in the dearer.
        generator: draws the stitching layers before `initialize`; torch's default one if None.

    Attributes:
        configs: what can be chosen, in the order of the ids: the anchors, then the stitches; for
            DeiT-Ti/S/B the ids are those of the official code. Take out what you do not want: the
            rest is what `initialize` and training see.
        active: the id that runs, at first that of the dearest anchor.
        anchors, stitches: the networks and the stitching layers, for optimisers: give each a group
            with its own rate, or freeze the anchors with `net.anchors.requires_grad_(False)`.

    Raises:
        ValueError: fewer than two anchors, anchors that are not ordered by non-decreasing cost,
            whose grids, numbers of stages or contexts differ, whose depths cannot be stitched that
            way, or whose widths change inside a window; a window or stride that is no positive
            integer; an unknown direction.
        TypeError: an anchor that is no module, an example of none of the kinds above.

    Running statistics of batch norms are shared by all paths and right for none. Before a stitch is
    used: `path = net.materialize(id)`, then `torch.optim.swa_utils.update_bn(loader, path)`.

    Source: Pan, Cai, Zhuang 2023, arXiv 2302.06586, sections 3.2 and 3.3. In hierarchical networks
    stages of equal depth are stitched pairwise (our reading).

    >>> from paperworks.nets import ResidualMLP
    >>> small, large = (ResidualMLP(64, width, depth=3) for width in (8, 16))
    >>> x = torch.rand(100, 64)
    >>> net = StitchableNetwork([small, large], x[:1])
    >>> net.initialize(x)
    >>> len(net.configs), net.configs[3]
    (9, StitchConfig(source=0, target=1, stage=0, i=0, k=1, layer=0))
    >>> [net.cost(id, x[:1]) for id in (0, 3, 1)]
    [1360, 3104, 4256]
    >>> net.set_stitch(3)
    >>> torch.equal(net(x), net.materialize(3)(x))
    True
    """

    def __init__(
        self,
        anchors: Sequence[nn.Module],
        example: Batch,
        *,
        window: int = 2,
        stride: int = 1,
        nearest: bool = True,
        direction: str = "fast_to_slow",
        generator: torch.Generator | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
        adapters = _checked_anchors(anchors)
        states = _states(adapters, example)
        _check_costs(adapters, example)
        depths = [[len(stage) for stage in anchor.stages] for anchor in adapters]
        configs = enumerate_configs(depths, window, stride, nearest, direction)
        layers: list[StitchLayer] = []
        for config in configs[len(adapters) :]:
            x, y = _ends(config, adapters, states)
            _check_meeting(x, y, config, adapters)
            if config.layer == len(layers):
                layers.append(_stitch_layer(x, y, config, adapters, generator))
            _check_widths(layers[config.layer], x, y, config, adapters)  # type: ignore[index]
        super().__init__()
        self.anchors = nn.ModuleList(copy.deepcopy(anchor) for anchor in adapters)
        self.stitches = nn.ModuleList(layers)
        self.configs = configs
        self.active = len(adapters) - 1
        self.training = adapters[-1].training

    def set_stitch(self, id: int) -> None:
        """Choose what runs: an index into `configs`.

        Raises:
            ValueError: there is no such id.
        """
        self.active = self._checked(id)

    def sample(self, generator: torch.Generator) -> int:
        """Choose one of all configurations, anchors among them, with equal chances; its id."""
        draw = torch.randint(len(self.configs), (), generator=generator, device=generator.device)
        self.active = int(draw)
        return self.active

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run_chain(*self._parts(self.active), *args, **kwargs)

    def initialize(self, batch: Batch, ridge: float = 0.0) -> None:
        """Set every stitching layer by least squares, from what the anchors make of some inputs.

        For a stitch (i, k), X is what block i of the source gives and Y what block k of the target
        takes, every token a row; `fit_stitch` gives the layer, and one that serves several stitches
        gets the mean of their solutions. About 100 inputs will do; as many tokens or pixels as the
        source is wide must be among them.

        Args:
            batch: inputs, without labels: a tensor, a tuple `(x, ...)`, or a dict of arguments.
            ridge: see `fit_stitch`.

        Raises:
            ValueError: features that are not finite, or none at all; a negative ridge.
            TypeError: a batch of none of the kinds above.

        Warns:
            UserWarning: too few rows, see `fit_stitch`.

        Source: arXiv 2302.06586, section 3.2. Where k = 0, Y is the output of the embedding; the
        official code takes the last block's there.
        """
        adapters: list[Any] = list(self.anchors)
        states = _states(adapters, batch)
        solved: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.stitches]
        for config in self.configs:
            if config.layer is not None:
                x, y = _ends(config, adapters, states)
                rows = _rows(x, adapters[config.source]), _rows(y, adapters[config.target])
                solved[config.layer].append(fit_stitch(*rows, ridge))
        with torch.no_grad():
            layers: list[Any] = list(self.stitches)
            for layer, solutions in zip(layers, solved):
                if solutions:
                    weights, biases = zip(*solutions)
                    layer.weight.copy_(torch.stack(weights).mean(0))
                    layer.bias.copy_(torch.stack(biases).mean(0))

    def materialize(self, id: int) -> Chain:
        """One path as a network of its own: a copy of the weights that it uses, and no others.

        Raises:
            ValueError: there is no such id.
        """
        return copy.deepcopy(self._chain(id))

    def cost(self, id: int, example: Batch) -> int:
        """Multiply-adds of one path on these inputs, see `macs`.

        Raises:
            ValueError: there is no such id.
        """
        return macs(self._chain(id), example)

    def _chain(self, id: int) -> Chain:
        chain = Chain(*self._parts(id))
        chain.training = self.training
        return chain

    def _parts(self, id: int) -> tuple[nn.Module, list[nn.Module], nn.Module]:
        config = self.configs[self._checked(id)]
        source: Any = self.anchors[config.source]
        target: Any = self.anchors[config.target]
        if config.layer is None:
            return source.embed, list(source.blocks), source.head
        last, first = _places(config, source, target)
        blocks = [*source.blocks[: last + 1], self.stitches[config.layer], *target.blocks[first:]]
        return source.embed, blocks, target.head

    def _checked(self, id: int) -> int:
        if not 0 <= operator.index(id) < len(self.configs):
            raise ValueError(f"stitch id {id} out of range 0..{len(self.configs) - 1}")
        return operator.index(id)

    def extra_repr(self) -> str:
        stitches = len(self.configs) - len(self.anchors)
        return f"{len(self.anchors)} anchors, {stitches} stitches"


def _checked_anchors(anchors: Sequence[nn.Module]) -> list[AnchorAdapter]:
    if isinstance(anchors, nn.Module):
        raise TypeError("anchors must be a list of networks, got one network")
    if len(anchors) < 2:
        raise ValueError(f"need at least two anchors, got {len(anchors)}")
    adapters = [AnchorAdapter.of(anchor) for anchor in anchors]
    stages = [len(anchor.stages) for anchor in adapters]
    if len(set(stages)) > 1:
        raise ValueError(f"anchors must have equally many stages, got {stages}")
    return adapters


def _states(adapters: list[AnchorAdapter], batch: Batch) -> list[list[Tensor]]:
    """What each anchor's embedding and blocks give, see `trace`."""
    states, contexts = [], []
    for anchor in adapters:
        args, kwargs = model_arguments(anchor, batch)
        with _no_autocast(anchor):
            passed, context = trace(anchor, *args, **kwargs)
        states.append(passed)
        contexts.append({name: _described(value) for name, value in context.items()})
    for context in contexts[1:]:
        if context != contexts[0]:
            raise ValueError(
                f"what blocks are told beside the tokens differs: {contexts[0]} vs {context}"
            )
    return states


def _no_autocast(module: nn.Module) -> AbstractContextManager[Any]:
    """Features in the network's own precision: half of it makes noise of a least-squares fit."""
    device = next((p.device.type for p in module.parameters()), "cpu")
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {'bool' if value.dtype == torch.bool else 'numbers'}"
    return type(value).__name__


def _check_costs(adapters: list[AnchorAdapter], example: Batch) -> None:
    costs = [macs(anchor, example) for anchor in adapters]
    if any(b < a for a, b in pairwise(costs)):
        raise ValueError(f"anchors must be ordered by non-decreasing cost, got {costs}")


def _places(config: StitchConfig, source: AnchorAdapter, target: AnchorAdapter) -> tuple[int, int]:
    """The last block of the source and the first of the target, counted over all stages."""
    assert config.stage is not None
    assert config.i is not None
    assert config.k is not None
    return source.stages[config.stage][config.i], target.stages[config.stage][config.k]


def _ends(
    config: StitchConfig, adapters: list[AnchorAdapter], states: list[list[Tensor]]
) -> tuple[Tensor, Tensor]:
    """What the source gives and the target wants, where they meet."""
    last, first = _places(config, adapters[config.source], adapters[config.target])
    return states[config.source][last + 1], states[config.target][first]


def _check_meeting(
    x: Tensor, y: Tensor, config: StitchConfig, adapters: list[AnchorAdapter]
) -> None:
    source, target = adapters[config.source], adapters[config.target]
    where = (
        f"behind block {config.i} of anchor {config.source} and before block {config.k} of anchor "
        f"{config.target} (stage {config.stage})"
    )
    grids = _grid(x, source), _grid(y, target)
    if grids[0] != grids[1]:
        tokens = [math.prod(grid) for grid in grids]
        raise ValueError(f"token grids differ: {tokens[0]} vs {tokens[1]}, {where}: {grids}")
    if source.is_channels_last(x) != target.is_channels_last(y):
        raise ValueError(f"one anchor has its channels last and one has not, {where}")
    if (x.dtype, x.device) != (y.dtype, y.device):
        kinds = f"{x.dtype} on {x.device} and {y.dtype} on {y.device}"
        raise ValueError(f"anchors must share dtype and device, got {kinds}, {where}")


def _check_widths(
    layer: StitchLayer, x: Tensor, y: Tensor, config: StitchConfig, adapters: list[AnchorAdapter]
) -> None:
    """Stitches of one window share a layer, which has one width on either side."""
    widths = [
        _rows(h, adapters[anchor]).shape[1]
        for h, anchor in ((y, config.target), (x, config.source))
    ]
    if list(layer.weight.shape) != widths:
        raise ValueError(
            f"block {config.i} of anchor {config.source} and block {config.k} of anchor "
            f"{config.target} have widths {widths[1]} and {widths[0]}, others of their window "
            f"{layer.weight.shape[1]} and {layer.weight.shape[0]}: pass window=1, or put blocks of "
            "one width into a stage"
        )


def _grid(h: Tensor, anchor: AnchorAdapter) -> tuple[int, ...]:
    """Shape without samples and channels: of tokens (T,), of pixels (H, W)."""
    return tuple(h.shape[1:-1] if anchor.is_channels_last(h) else h.shape[2:])


def _stitch_layer(
    x: Tensor,
    y: Tensor,
    config: StitchConfig,
    adapters: list[AnchorAdapter],
    generator: torch.Generator | None,
) -> StitchLayer:
    source, target = adapters[config.source], adapters[config.target]
    in_dim, out_dim = _rows(x, source).shape[1], _rows(y, target).shape[1]
    layer = StitchLayer(in_dim, out_dim, source.is_channels_last(x), generator=generator)
    return layer.to(y)


def _rows(h: Tensor, anchor: AnchorAdapter) -> Tensor:
    """Every token or pixel a row: (tokens, width)."""
    width_last = h if anchor.is_channels_last(h) else h.movedim(1, -1)
    return width_last.flatten(0, -2)
