"""Iterative feature merging: how many different features a layer has, and a network of only those.

Chen, Zhou & Yan 2023, "Going Beyond Neural Network Feature Similarity: The Network Feature
Complexity and Its Interpretation Using Category Theory", arXiv 2310.06756 (ICLR 2024).

`IterativeFeatureMerging` merges the channels of a trained network whose weights are nearly the
same, without data and without training; `complexity_curve` does so at many thresholds, since one of
them says little. What may be merged is what `paperworks.compress.channel_groups` finds: channels
that meet an attention or a layer norm, and those of layers that share weights, are in no group and
stay. `neuron_merging` is the rival that folds pruned channels into kept ones.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from paperworks.common.activations import Batch
from paperworks.compress.channels import ChannelGroup, channel_groups, remove_channels

if TYPE_CHECKING:
    from pandas import DataFrame

Rule = Literal["auto", "sum_mean", "mean_sum"]
Variance = Literal["official", "exact"]


@dataclass(frozen=True)
class Merge:
    """Two features that became one.

    Args:
        sweep: in which sweep over the layers, from 0.
        layer: the name of their group of channels.
        first: the original channels that one of them stood for, ascending: that with the lowest.
        second: those of the other.
        distance: their squared distance.
        relative: its share of the largest distance in the layer at that time: the lowest beta at
            which they could be merged.
    """

    sweep: int
    layer: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    distance: float
    relative: float


@dataclass(frozen=True)
class MergeResult:
    """A network after its features were merged.

    Args:
        model: the narrower network, in the modes, dtypes and on the devices of the original.
        groups: for each layer its channels now, in order: the original channels of each, ascending.
        complexity: for each layer how many channels are left, and how many it had.
        n_params: parameters of the network now.
        history: every merge in order; the merges of one layer are a tree.
    """

    model: nn.Module
    groups: dict[str, list[list[int]]]
    complexity: dict[str, tuple[int, int]]
    n_params: int
    history: list[Merge]

    @property
    def relative_complexity(self) -> dict[str, float]:
        """For each layer the share of channels that is left; compares layers, and networks."""
        return {layer: kept / size for layer, (kept, size) in self.complexity.items()}


@dataclass(frozen=True)
class IterativeFeatureMerging:
    """Merge the features of a trained network that could be exchanged for one another.

    Reach for it to learn how many features of each layer are no duplicates of others (the feature
    complexity), or for a narrower network without data or training. A feature i of a layer is a
    channel with all weights that touch it, its row a_i in every layer that produces it and its
    column v_i in every layer that reads it; biases and norms do not count:

        D_ij = ‖a_i − a_j‖² + ‖v_i − v_j‖²

    In each sweep over the layers, each merges its nearest pair if min D ≤ β max D, both over the
    weights as merged so far. Merging is over after a sweep in which no layer had such a pair. With
    c_i the number of original channels that i stands for, the pair becomes

        "sum_mean": a = a_i + a_j, v = (c_i v_i + c_j v_j) / (c_i + c_j), as in the paper;
        "mean_sum": a = (c_i a_i + c_j a_j) / (c_i + c_j), v = v_i + v_j,  ours,

    and biases and all of a batch norm follow a. For exact duplicates the first leaves the outputs
    as they are where all between a and v is positively homogeneous (ReLU, poolings, sums), the
    second whatever is applied to each channel alike (GELU, tanh).

    Thresholds are relative and layers differ: near β = 0.5 a layer may fall to two or three
    channels. Look at the `complexity_curve` before you choose. arXiv 2310.06756 and the authors'
    code. Unlike there, the search leaves the diagonal out (theirs may merge an exact duplicate with
    itself), distances are in float64, and channels stay in the order of their first original one
    (theirs appends merged ones: the same network).

    Args:
        beta: β in [0, 1], the threshold on min D / max D; the paper's range from 0.001 to 0.3.
        max_ratio: a layer of n channels takes part in the first `n * max_ratio` sweeps.
        rule: "sum_mean" or "mean_sum" for all layers, or "auto": for each layer "sum_mean" where
            it is exact for duplicates, else "mean_sum".
        bn: what a sum's running variance is. "official" sums them: two duplicates come out of the
            norm √2 too large. "exact" sums deviations, (Σ√(v + ε))² − ε, which is right for
            duplicates. "mean_sum" averages variances either way.
        normalize_counts: compare a_i / c_i (with "mean_sum" v_i / c_i). Without it, as in the
            paper, a merged row is so much longer that a third duplicate may never join.
        skip: layers to leave alone, by the name of a producer; their weights count in the distances
            of others. The authors skip the stem and the first stage of ResNets.

    Raises:
        ValueError: beta outside [0, 1], max_ratio not positive, an unknown rule or bn.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> model[0].weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    >>> model[2].weight.data = torch.ones(1, 3)
    >>> merged = IterativeFeatureMerging(beta=0.01).merge(model, torch.rand(1, 2))
    >>> merged.groups, merged.complexity
    ({'0': [[0, 1], [2]]}, {'0': (2, 3)})
    >>> merged.model[0].weight.data
    tensor([[ 2.0000,  0.1000],
            [-1.0000,  0.0000]])
    """

    beta: float = 0.1
    max_ratio: float = 1.0
    rule: Rule = "auto"
    bn: Variance = "official"
    normalize_counts: bool = False
    skip: Collection[str] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {self.beta!r}")
        if not self.max_ratio > 0:
            raise ValueError(f"max_ratio must be positive, got {self.max_ratio!r}")
        for name, choices in (
            ("rule", ("auto", "sum_mean", "mean_sum")),
            ("bn", ("official", "exact")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if isinstance(self.skip, str):
            raise ValueError(f"skip must be a collection of names, got the text {self.skip!r}")

    def merge(self, model: nn.Module, example: Batch) -> MergeResult:
        """The network with merged features, and what was merged.

        Works on the CPU in float64 beside the network, which is not changed: one Gram matrix for
        each layer, then for each merge an update of those it touches and a search in O(n²).

        Args:
            model: a module that `torch.fx` can trace, in any dtype, on any device.
            example: a batch that it can be fed, see `channel_groups`.

        Raises:
            ValueError: the model cannot be traced, has no channels that may be merged, or sizes are
                written into its forward; channels go through a convolution with groups, or through
                an operation of which it is not known whether either rule suits it; "sum_mean" with
                a batch norm that has no scale to be summed; a weight that is not finite; `skip` has
                a name that produces no channels.
        """
        groups = channel_groups(model, example)
        merging = _without(groups, self.skip)
        if not merging:
            raise ValueError(
                f"{type(model).__name__} has no channels that may be merged: all reach its inputs, "
                "its outputs, something that may mix them, or are skipped"
            )
        rules = [_rule(model, group, self.rule) for group in merging]
        features = _follow(model, merging, rules, exact=self.bn == "exact")
        history = list(self._sweeps(features))
        small = _written(model, features, example)
        left = {group.name: [[channel] for channel in range(group.size)] for group in groups}
        left |= {layer.group.name: sorted(layer.members) for layer in features}
        return MergeResult(
            small,
            left,
            {group.name: (len(left[group.name]), group.size) for group in groups},
            sum(parameter.numel() for parameter in small.parameters()),
            history,
        )

    def _sweeps(self, features: Sequence[_Features]) -> Iterator[Merge]:
        for sweep in itertools.count():
            idle = True
            for layer in features:
                if len(layer.members) < 2 or sweep >= layer.group.size * self.max_ratio:
                    continue
                pair, distance, largest = layer.nearest(self.normalize_counts)
                if distance <= self.beta * largest:
                    first, second = layer.merge_(*pair)
                    relative = distance / largest if largest else 0.0
                    yield Merge(sweep, layer.group.name, first, second, distance, relative)
                    idle = False
            if idle:
                return


def complexity_curve(
    model: nn.Module,
    example: Batch,
    betas: Sequence[float],
    evaluate: Callable[[nn.Module], float] | None = None,
    **options: Any,
) -> DataFrame:
    """How many features each layer keeps at each threshold, and what the merged network is worth.

    Thresholds are relative to distances that change with every merge, so that one run cannot be
    cut at several β: each is run by itself.

    Args:
        model: see `IterativeFeatureMerging.merge`.
        example: likewise.
        betas: thresholds in [0, 1].
        evaluate: what to measure on each merged network, e.g. its accuracy.
        **options: of `IterativeFeatureMerging`.

    Returns:
        A row for each β and layer: `beta`, `layer`, `kept` of its `size` channels, and of the whole
        network `params` and `metric` (NaN without `evaluate`).

    Raises:
        ValueError: no betas, or as `IterativeFeatureMerging`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> curve = complexity_curve(model, torch.rand(1, 4), betas=[0.0, 1.0])
    >>> curve[["beta", "layer", "kept", "params"]].values.tolist()
    [[0.0, '0', 8, 58], [1.0, '0', 1, 9]]
    """
    import pandas as pd

    methods = [IterativeFeatureMerging(beta, **options) for beta in betas]
    if not methods:
        raise ValueError("betas must hold at least one threshold")
    rows = []
    for method in methods:
        result = method.merge(model, example)
        metric = math.nan if evaluate is None else float(evaluate(result.model))
        for layer, (kept, size) in result.complexity.items():
            rows.append((float(method.beta), layer, kept, size, result.n_params, metric))
    return pd.DataFrame(rows, columns=["beta", "layer", "kept", "size", "params", "metric"])


def feature_distance(model: nn.Module, group: ChannelGroup, counts: Tensor | None = None) -> Tensor:
    """Squared distances between the features of one layer: of all weights that touch each.

        D_ij = ‖a_i − a_j‖² + ‖v_i − v_j‖²

    with rows a_i of the layers that produce channel i and columns v_i of those that read it. What
    `IterativeFeatureMerging` starts from, and a look at which channels are alike. arXiv 2310.06756.

    Args:
        model: the network.
        group: one of `paperworks.compress.channel_groups(model, example)`.
        counts: how many original channels each one stands for, by which the rows, as sums of so
            many, are divided: what `normalize_counts` compares. Shape (n,).

    Returns:
        Shape (n, n) in float64 on the CPU: n = `group.size`, the diagonal is zero.

    Raises:
        ValueError: the channels go through a convolution with groups, a weight is not finite, or
            counts are not n positive numbers.

    >>> from paperworks.compress import channel_groups
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[1.0], [3.0]]), torch.ones(1, 2)
    >>> (group,) = channel_groups(model, torch.rand(1, 1))
    >>> feature_distance(model, group)
    tensor([[0., 4.],
            [4., 0.]], dtype=torch.float64)
    """
    (features,) = _follow(model, [group], ["sum_mean"], exact=False)
    if counts is not None:
        if counts.shape != (group.size,) or not (counts > 0).all():
            raise ValueError(
                f"counts must be {group.size} positive numbers, got {tuple(counts.shape)}"
            )
        features.counts = counts.detach().to("cpu", torch.float64)
    return features.distances(normalized=counts is not None).fill_diagonal_(0)


def neuron_merging(
    model: nn.Module, example: Batch, widths: Mapping[str, int], threshold: float = 0.0
) -> nn.Module:
    """A narrower network: drops the channels of smallest weights, folding each into a kept one.

    For a network that is to have given widths without training; `IterativeFeatureMerging` instead
    finds widths. Of each layer the rows of largest L1 norm are kept. With w̃ = γ w / √(v + ε) the
    rows behind their batch norm, a dropped channel j is about s times the kept one k that is
    nearest by cosine, s = ‖w̃_j‖ / ‖w̃_k‖, and so its column is added to that of k:

        v_k ← v_k + s v_j   if cos(w̃_j, w̃_k) > threshold

    which is right for ReLU where rows are parallel and biases are in proportion. Channels of more
    than one producer (a residual stream), or whose norm is elsewhere than behind the producer, are
    dropped without being folded. Kim, Kim, Kang & Kim 2020, "Neuron Merging: Compensating for
    Pruned Neurons", arXiv 2010.13160 (from memory; their term for biases is left out).

    Args:
        model: a module that `torch.fx` can trace; it is not changed.
        example: a batch that it can be fed.
        widths: by the name of a group of channels (its first producer) how many are kept.
        threshold: the cosine above which a channel is folded, at least 0.

    Returns:
        The copy, in the model's modes, dtypes and devices.

    Raises:
        ValueError: the model cannot be traced or has sizes written into its forward; a width of an
            unknown group, or not between 1 and its size; a threshold outside [0, 1]; channels go
            through a convolution with groups.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[1.0], [3.0]]), torch.ones(1, 2)
    >>> neuron_merging(model, torch.rand(1, 1), {"0": 1})[2].weight.data  # 1 + 1/3
    tensor([[1.3333]])
    """
    groups = {group.name: group for group in channel_groups(model, example)}
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold!r}")
    for name, width in widths.items():
        if name not in groups:
            raise _unknown("widths", name, list(groups))
        if isinstance(width, bool) or not isinstance(width, int):
            raise ValueError(f"widths[{name!r}] must be an integer, got {width!r}")
        if not 1 <= width <= groups[name].size:
            raise ValueError(
                f"widths[{name!r}] must be between 1 and {groups[name].size}, got {width}"
            )
    behind = _norms_behind(model)
    folded = copy.deepcopy(model)
    masks: dict[str, Tensor] = {}
    for name, width in widths.items():
        group = _plain(groups[name])
        rows = [_blocks(model.get_submodule(p).weight, group) for p in group.producers]
        order = torch.cat(rows, 1).abs().sum(1).argsort(descending=True, stable=True)
        if len(rows) == 1 and group.norms in ((), (behind.get(name),)):
            for norm in group.norms:
                rows[0] = _normed(rows[0], model.get_submodule(norm))
            _fold_(folded, group, rows[0], order[:width], order[width:], threshold)
        masks |= _row_masks(model, group, order[:width])
    return remove_channels(folded, masks, example)


# --- which channels, by which rule ----------------------------------------------------------------

HOMOGENEOUS = {
    "ReLU", "LeakyReLU", "RReLU", "relu", "relu_", "leaky_relu",
    "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "dropout",
    "dropout2d", "add", "iadd", "add_", "sub", "isub", "sub_", "neg", "abs",
    "clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16",
    *(f"{adaptive}{kind}Pool{d}d"
      for adaptive in ("", "Adaptive") for kind in ("Max", "Avg") for d in (1, 2, 3)),
    *(f"{adaptive}{kind}_pool{d}d"
      for adaptive in ("", "adaptive_") for kind in ("max", "avg") for d in (1, 2, 3)),
    "ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "Upsample", "interpolate", "boolean_dispatch",
    "mean", "amax", "Flatten", "flatten", "view", "reshape", "squeeze",
}  # fmt: skip
"""f(m x) = m f(x) for m > 0: here sum and mean are exact for duplicates."""
ELEMENTWISE = {
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LogSigmoid",
    "Mish", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "Threshold", "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "logsigmoid", "mish", "relu6", "selu", "silu", "sigmoid", "softplus", "softsign",
    "tanh", "clamp", "mul", "imul", "mul_", "truediv", "div", "square", "sqrt", "exp", "pow",
}  # fmt: skip
"""The same for every channel, but not homogeneous (of a product of two features, quadratic)."""
SUMS = {"add", "iadd", "add_", "sub", "isub", "sub_"}


def _without(groups: Sequence[ChannelGroup], skip: Collection[str]) -> list[ChannelGroup]:
    """The groups that take part, which must be of plain layers."""
    producers = [name for group in groups for name in group.producers]
    for name in skip:
        if name not in producers:
            raise _unknown("skip", name, producers)
    return [_plain(group) for group in groups if not set(skip) & set(group.producers)]


def _plain(group: ChannelGroup) -> ChannelGroup:
    if group.grouped:
        raise ValueError(
            f"{group.grouped[0]!r} is a convolution with groups: the channels of {group.name!r} "
            "that it takes cannot be merged"
        )
    return group


def _unknown(argument: str, name: str, names: Sequence[str]) -> ValueError:
    near = get_close_matches(name, names, n=3) or names[:5]
    return ValueError(f"{argument}: {name!r} produces no free channels, only {', '.join(near)} ...")


def _rule(model: nn.Module, group: ChannelGroup, rule: Rule) -> Rule:
    """The rule asked for, or the one that is exact for duplicates."""
    bare = [name for name in group.norms if not model.get_submodule(name).affine]
    if rule == "sum_mean" and bare:
        raise ValueError(
            f"{bare[0]!r} is a norm without scale, behind which a sum of channels is no larger: "
            "merge with rule='mean_sum' or 'auto'"
        )
    if rule != "auto":
        return rule
    for name in group.operations:
        if name not in HOMOGENEOUS and name not in ELEMENTWISE:
            raise ValueError(
                f"the channels of {group.name!r} go through {name!r}, for which it is not known "
                "how to merge them: give rule='sum_mean' if it is positively homogeneous, else "
                "'mean_sum'"
            )
    homogeneous = set(group.operations) <= HOMOGENEOUS and not bare
    if homogeneous and SUMS & set(group.operations):
        homogeneous = not _adds_numbers(model)
    return "sum_mean" if homogeneous else "mean_sum"


def _adds_numbers(model: nn.Module) -> bool:
    """Whether any sum is of one thing and a number: m x + 1 is not m (x + 1)."""
    return any(
        getattr(node.target, "__name__", node.target) in SUMS and len(node.all_input_nodes) < 2
        for node in fx.symbolic_trace(model).graph.nodes
        if node.op in ("call_function", "call_method")
    )


# --- merging --------------------------------------------------------------------------------------


class _Weight:
    """A layer's weight in float64: channels of its rows, channels of its columns, all between two.

    An axis along which nothing is merged is left as one channel.
    """

    def __init__(self, layer: str, weight: Tensor, rows: int, columns: int) -> None:
        self.layer = layer
        copied = weight.detach().to("cpu", torch.float64, copy=True)
        self.block = weight.shape[0] // rows  # rows of each channel
        self.values = copied.reshape(rows, self.block, columns, -1).transpose(1, 2).flatten(2)
        self.sides: list[_Side | None] = [None, None]

    def left(self) -> Tensor:
        rows, columns = (1 if side is None else side.n for side in self.sides)
        return self.values[:rows, :columns]

    def merge_(self, axis: int, pair: tuple[int, int], shares: tuple[float, float]) -> None:
        """Merges along one axis, and brings the other's Gram matrix up to date.

        That is the sum of Gram matrices of the slices along this axis, of which two became one.
        """
        values, other = self.left(), self.sides[1 - axis]
        before = [values.select(axis, slot).clone() for slot in pair]
        _merge_(values, axis, pair, shares)
        if other is not None:
            after = values.select(axis, pair[0])
            gram = other.gram[: other.n, : other.n].addmm_(after, after.T)
            for slices in before:
                gram.addmm_(slices, slices.T, alpha=-1)
            other.changed = True

    def written(self, weight: Tensor) -> Tensor:
        """The values that are left in the layout of a layer's weight."""
        orders = (torch.arange(1) if side is None else side.order() for side in self.sides)
        rows, columns = orders
        values = self.values[rows][:, columns].unflatten(2, (self.block, -1))
        return values.transpose(1, 2).reshape(weight.shape)


@dataclass
class _Vector:
    """What a layer has one of for each channel: a bias, or numbers of a batch norm."""

    layer: str
    key: str
    values: Tensor  # (channels, block)
    eps: float | None = None  # of a variance that is kept as the deviation √(v + ε)

    def written(self, order: Tensor) -> Tensor:
        values = self.values[order].flatten()
        return values if self.eps is None else values.square() - self.eps


@dataclass(eq=False)
class _Side:
    """The weights that produce a group's channels, or those that read them: merged all alike."""

    members: list[list[int]]
    summed: bool
    weights: list[tuple[_Weight, int]] = field(default_factory=list)
    vectors: list[_Vector] = field(default_factory=list)
    changed: bool = True

    def __post_init__(self) -> None:
        self.n = self.size = len(self.members)
        self.gram = torch.zeros(self.n, self.n, dtype=torch.float64)

    def add(self, weight: _Weight, axis: int) -> None:
        slices = weight.values.transpose(0, axis).flatten(1)
        self.gram.addmm_(slices, slices.T)
        self.weights.append((weight, axis))
        weight.sides[axis] = self

    def order(self) -> Tensor:
        """The channels that are left, by the first original channel of each."""
        return torch.tensor(sorted(range(self.n), key=self.members.__getitem__))

    def merge_(self, pair: tuple[int, int], counts: Tensor) -> None:
        a, b = counts[list(pair)].tolist()
        shares = (1.0, 1.0) if self.summed else (a / (a + b), b / (a + b))
        for weight, axis in self.weights:
            weight.merge_(axis, pair, shares)
        for vector in self.vectors:
            _merge_(vector.values[: self.n], 0, pair, shares)
        for axis in (0, 1):
            _merge_(self.gram[: self.n, : self.n], axis, pair, shares)
        self.n -= 1
        self.changed = True


class _Features:
    """The features of one group of channels that are left, in slots 0, 1, ..., and their merging.

    The first of a pair takes what both become, and the last channel takes the place of the second.
    """

    def __init__(self, group: ChannelGroup, rule: Rule) -> None:
        self.group = group
        self.members = [[channel] for channel in range(group.size)]
        self.counts = torch.ones(group.size, dtype=torch.float64)
        self.producing = _Side(self.members, summed=rule == "sum_mean")
        self.reading = _Side(self.members, summed=rule == "mean_sum")
        self._nearest: Any = None

    def distances(self, normalized: bool) -> Tensor:
        n = len(self.members)
        counts = self.counts[:n]
        gram = torch.zeros(n, n, dtype=torch.float64)
        for side in (self.producing, self.reading):
            part = side.gram[:n, :n]
            gram += part / counts / counts[:, None] if normalized and side.summed else part
        squares = gram.diagonal().clone()
        return gram.mul_(-2).add_(squares).add_(squares[:, None]).clamp_(min=0)

    def nearest(self, normalized: bool) -> tuple[tuple[int, int], float, float]:
        """The slots of the nearest pair, their distance, and the largest of all."""
        if self.producing.changed or self.reading.changed:
            distances = self.distances(normalized)
            largest = distances.max().item()
            place = int(distances.fill_diagonal_(math.inf).argmin())
            pair = (place // len(distances), place % len(distances))
            self._nearest = pair, distances[pair].item(), largest
            self.producing.changed = self.reading.changed = False
        return self._nearest

    def merge_(self, i: int, j: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Merges two slots; gives the original channels of either."""
        i, j = min(i, j), max(i, j)
        first, second = sorted([tuple(self.members[i]), tuple(self.members[j])])
        for side in (self.producing, self.reading):
            side.merge_((i, j), self.counts)
        _merge_(self.counts[: len(self.members)], 0, (i, j), (1.0, 1.0))
        self.members[i] = sorted(first + second)
        self.members[j] = self.members[-1]
        self.members.pop()
        return first, second


def _merge_(values: Tensor, axis: int, pair: tuple[int, int], shares: tuple[float, float]) -> None:
    """x_i ← a x_i + b x_j along an axis; then the last takes the place of j."""
    i, j = (values.select(axis, slot) for slot in pair)
    a, b = shares
    i.mul_(a).add_(j, alpha=b)
    j.copy_(values.select(axis, -1))


def _follow(
    model: nn.Module, groups: Sequence[ChannelGroup], rules: Sequence[Rule], exact: bool
) -> list[_Features]:
    """The features of each group with what they touch: one tensor a layer, seen from both sides."""
    features = [_Features(_plain(group), rule) for group, rule in zip(groups, rules, strict=True)]
    rows = {name: f for f in features for name in f.group.producers}
    columns = {name: f for f in features for name in f.group.consumers}
    for name in dict.fromkeys([*rows, *columns]):
        layer: Any = model.get_submodule(name)
        if not layer.weight.isfinite().all():
            raise ValueError(f"the weight of {name!r} is not finite")
        sizes = (ends[name].group.size if name in ends else 1 for ends in (rows, columns))
        weight = _Weight(name, layer.weight, *sizes)
        if name in rows:
            rows[name].producing.add(weight, 0)
            _add_vectors(rows[name].producing, name, {"bias": layer.bias}, None)
        if name in columns:
            columns[name].reading.add(weight, 1)
    for f in features:
        for name in f.group.norms:
            norm: Any = model.get_submodule(name)
            tensors = dict([*norm.named_parameters(), *norm.named_buffers()])
            eps = norm.eps if exact and f.producing.summed else None
            _add_vectors(f.producing, name, tensors, eps)
    return features


def _add_vectors(
    side: _Side, layer: str, tensors: Mapping[str, Tensor | None], eps: float | None
) -> None:
    for key, tensor in tensors.items():
        if tensor is not None and tensor.dim() == 1:  # not the number of batches
            values = tensor.detach().to("cpu", torch.float64, copy=True).reshape(side.size, -1)
            if key == "running_var" and eps is not None:
                side.vectors.append(_Vector(layer, key, (values + eps).sqrt(), eps))
            else:
                side.vectors.append(_Vector(layer, key, values))


@torch.no_grad()
def _written(model: nn.Module, features: Sequence[_Features], example: Batch) -> nn.Module:
    """A copy of the model with the features that are left."""
    masks: dict[str, Tensor] = {}
    for f in features:
        if len(f.members) < f.group.size:
            masks |= _row_masks(model, f.group, torch.arange(len(f.members)))
    small = remove_channels(model, masks, example)
    for f in features:
        for weight, _ in (*f.producing.weights, *f.reading.weights):
            kept: Any = small.get_submodule(weight.layer).weight
            kept.copy_(weight.written(kept))
        if len(f.members) < f.group.size:
            order = f.producing.order()
            for vector in f.producing.vectors:
                getattr(small.get_submodule(vector.layer), vector.key).copy_(vector.written(order))
    return small


def _row_masks(model: nn.Module, group: ChannelGroup, kept: Tensor) -> dict[str, Tensor]:
    """Masks for `remove_channels` that keep some channels of a group."""
    masks = {}
    for name in group.producers:
        layer: Any = model.get_submodule(name)
        masks[f"{name}.weight"] = mask = torch.zeros(len(layer.weight), dtype=torch.bool)
        mask[group.positions(kept, len(mask))] = True
    return masks


# --- neuron merging -------------------------------------------------------------------------------


def _blocks(weight: Any, group: ChannelGroup) -> Tensor:
    """The rows of each channel, in float64."""
    return weight.detach().to("cpu", torch.float64).reshape(group.size, -1)


def _normed(rows: Tensor, norm: Any) -> Tensor:
    """Rows times what a batch norm in evaluation mode multiplies its inputs by, γ / √(v + ε)."""
    scale = torch.ones(norm.num_features, dtype=torch.float64)
    if norm.weight is not None:
        scale *= norm.weight.detach().cpu()
    if norm.running_var is not None:
        scale /= (norm.running_var.double() + norm.eps).sqrt().cpu()
    return (rows.reshape(len(scale), -1) * scale[:, None]).reshape_as(rows)


def _norms_behind(model: nn.Module) -> dict[str, str]:
    """For each layer the module that its output goes into."""
    nodes = [n for n in fx.symbolic_trace(model).graph.nodes if n.op == "call_module"]
    return {str(source.target): str(n.target) for n in nodes for source in n.all_input_nodes}


@torch.no_grad()
def _fold_(
    model: nn.Module,
    group: ChannelGroup,
    rows: Tensor,
    kept: Tensor,
    dropped: Tensor,
    threshold: float,
) -> None:
    """Adds the columns of dropped channels to those of the kept ones that they resemble."""
    if not len(dropped):
        return
    directions, lengths = F.normalize(rows), rows.norm(dim=1)
    cosines, nearest = (directions[dropped] @ directions[kept].T).max(1)
    alike = cosines > threshold
    dropped, target = dropped[alike], kept[nearest[alike]]
    factors = lengths[dropped] / lengths[target]
    for name in group.consumers:
        weight: Any = model.get_submodule(name).weight
        columns = weight.double().cpu().reshape(len(weight), group.size, -1)
        columns.index_add_(1, target, columns[:, dropped] * factors[:, None])
        weight.copy_(columns.reshape(weight.shape))
