"""Channels through a network: which rows of one layer go with which inputs of the next."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from paperworks.common.activations import Batch, evaluating, model_arguments

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be kept or dropped together, wherever they are in the network.

    Channel i of the group is the i-th of `size` equal, consecutive blocks of every axis that the
    group runs along: of one row where the axis has `size` entries, of `H * W` columns of a linear
    layer behind a flattened picture, of a group's channels at a grouped convolution. `positions`
    does the arithmetic. A residual stream is one group with several producers.

    Args:
        name: the first producer.
        size: number of channels.
        producers: layers whose output rows the channels are.
        consumers: layers whose input columns they are.
        norms: batch norms that they pass.
        grouped: convolutions with groups, which take them group by group and hand them on: rows and
            groups belong to the channels, columns do not.
        operations: the element-wise operations, poolings and reshapings that they pass, by the name
            of function or module class.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    norms: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()

    def positions(self, channels: Tensor, length: int) -> Tensor:
        """Where these channels are along an axis of some length.

        >>> group = ChannelGroup("0", 4, ("0",), ("2",))
        >>> group.positions(torch.tensor([0, 2]), length=8)
        tensor([0, 1, 4, 5])
        """
        block = length // self.size
        inside = torch.arange(block, device=channels.device)
        return (channels[:, None] * block + inside).flatten()


def channel_groups(model: nn.Module, example: Batch) -> list[ChannelGroup]:
    """The groups of channels that may be permuted, merged or removed inside a network.

    Follows the channels through one traced forward: linear layers and convolutions produce and
    consume them; batch norms, activations, dropout, poolings over pixels, sums and products of
    equal shapes, flattening and convolutions with groups hand them on. The model's inputs and
    outputs form no group, and neither do channels that meet anything else (a softmax, an
    attention, a layer norm, a slice): it might mix them.

    Args:
        model: a module that `torch.fx` can trace; it is not changed.
        example: a batch that it can be fed, with pictures and vectors in the layout (N, C, ...).

    Returns:
        The groups in the order of their first producers.

    Raises:
        ValueError: the model cannot be traced: its forward depends on values.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    >>> channel_groups(model, torch.rand(2, 1, 5, 5))  # doctest: +NORMALIZE_WHITESPACE
    [ChannelGroup(name='0', size=4, producers=('0',), consumers=('3',), norms=(), grouped=(),
                  operations=('ReLU', 'Flatten'))]
    """
    args, kwargs = model_arguments(model, example)
    with evaluating(model), torch.no_grad():
        follower = _Follower(_traced(model))
        named = [n.target for n in follower.graph.nodes if n.op == "placeholder"]
        follower.run(*args, *(kwargs[name] for name in named[len(args) :] if name in kwargs))
    follower.pin_shared_parameters(model)
    return [group.frozen() for group in follower.groups() if group.free]


def remove_channels(model: nn.Module, masks: Mapping[str, Tensor], example: Batch) -> nn.Module:
    """A smaller, dense copy of a network without the channels that masks drop.

    Rows of a layer go together with their biases, their batch norms and the columns of the next
    layers that read them. The copy computes what the model would compute if those columns were
    zero. That is the masked network, too, if a dropped channel is zero there: set the biases and
    norms of dropped rows to zero, or fine-tune the copy.

    A residual sum loses a channel when all layers that add to it drop it; until then it stays.

    Args:
        model: a module that `torch.fx` can trace; it is not changed.
        masks: for parameters by name ("0.weight") what is kept: shape of the parameter, or one
            entry a row. A row is dropped when nothing of it is kept. `Masks` will do.
        example: a batch that the model can be fed.

    Returns:
        The copy, in the model's modes, dtypes and devices.

    Raises:
        ValueError: the model cannot be traced; a mask of an unknown parameter, or of another shape;
            a row to be dropped that must stay, because it reaches the output or something that may
            mix channels; no channel would be left; the model's forward has sizes written into it.

    >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> keep = torch.tensor([True, False, True, True, False, True])
    >>> remove_channels(model, {"0.weight": keep}, torch.rand(2, 8))
    Sequential(
      (0): Linear(in_features=8, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=3, bias=True)
    )
    """
    kept_rows = _kept_rows(model, masks)
    groups = channel_groups(model, example)
    _check_free(kept_rows, groups)
    small = copy.deepcopy(model)
    for group in groups:
        kept = _kept_channels(group, kept_rows)
        if not len(kept):
            raise ValueError(f"masks leave no channel of {group.name!r}")
        if len(kept) < group.size:
            take_channels_(small, group, kept)
    _check_runs(small, example)
    return small


# --- following ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Channels:
    """A group in the making. Two that turn out to be the same point to one of them."""

    size: int
    producers: dict[str, None] = field(default_factory=dict)  # ordered sets
    consumers: dict[str, None] = field(default_factory=dict)
    norms: dict[str, None] = field(default_factory=dict)
    grouped: dict[str, None] = field(default_factory=dict)
    operations: dict[str, None] = field(default_factory=dict)
    free: bool = True
    merged_into: _Channels | None = None

    def found(self) -> _Channels:
        return self if self.merged_into is None else self.merged_into.found()

    def merge(self, other: _Channels) -> None:
        """Both are one; blocks of both are whole blocks of the result."""
        one, other = self.found(), other.found()
        if one is other:
            return
        one.size = math.gcd(one.size, other.size)
        one.free &= other.free
        for kind in ("producers", "consumers", "norms", "grouped", "operations"):
            getattr(one, kind).update(getattr(other, kind))
        other.merged_into = one

    def frozen(self) -> ChannelGroup:
        return ChannelGroup(
            next(iter(self.producers)),
            self.size,
            tuple(self.producers),
            tuple(self.consumers),
            tuple(self.norms),
            tuple(self.grouped),
            tuple(self.operations),
        )


@dataclass(frozen=True)
class _Value:
    """What a node of the graph gave, and the channels along one of its axes, if any are known."""

    tensor: Any
    channels: _Channels | None = None
    axis: int = 0

    @property
    def count(self) -> int:
        return self.tensor.shape[self.axis]


class _Follower(fx.Interpreter):
    """Runs a traced model and keeps, beside each value, whose channels it carries."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, _Value] = {}
        self.made: dict[str, _Channels] = {}  # by producer: one that runs twice makes the same
        self.read: dict[str, _Channels] = {}  # by consumer: likewise

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        given = [self.values[node] for node in n.all_input_nodes]
        if n.op in ("placeholder", "get_attr"):
            self.values[n] = _Value(result)
        elif n.op == "output":
            self.values[n] = self._unknown(n, given, result)
        else:
            self.values[n] = self._rule(n)(n, given, result)
        return result

    def groups(self) -> list[_Channels]:
        """What has both ends, in the order in which the first producers ran."""
        found = {id(channels.found()): channels.found() for channels in self.made.values()}
        return [channels for channels in found.values() if channels.consumers]

    def pin_shared_parameters(self, model: nn.Module) -> None:
        """Layers that share a tensor cannot lose rows one by one."""
        owners: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            layer = name.rpartition(".")[0]
            other = owners.setdefault(id(parameter), layer)
            if other != layer:
                for channels in self._touching({layer, other}):
                    channels.free = False

    def _touching(self, layers: set[str]) -> list[_Channels]:
        found = [channels.found() for channels in self.made.values()]
        return [c for c in found if layers & {*c.producers, *c.consumers, *c.norms, *c.grouped}]

    def _rule(self, n: fx.Node) -> Callable[[fx.Node, list[_Value], Any], _Value]:
        """What happens to the channels at this node."""
        if n.op == "call_module":
            module = self.submodules[n.target]
            kind = type(module)
            if kind is nn.Linear or kind in CONVOLUTIONS:
                return self._grouped if getattr(module, "groups", 1) > 1 else self._layer
            if kind in NORMS:
                return self._norm
            if next(module.parameters(), None) is not None:
                return self._unknown
            name = kind.__name__
        else:
            name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
        if name in ELEMENTWISE:
            return self._elementwise
        if name in POOLINGS:
            return self._pooling
        if name in RESHAPINGS:
            return self._reshaping
        return self._unknown

    def _layer(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """Reads all channels, makes new ones."""
        name, axis = str(n.target), _channel_axis(self.submodules[str(n.target)], result)
        if given[0].channels is not None and given[0].axis == axis:
            channels = given[0].channels.found()
            channels.consumers[name] = None
            self.read.setdefault(name, channels).merge(channels)
        else:
            self._unknown(n, given, result)
        if name not in self.made:
            self.made[name] = _Channels(result.shape[axis], producers={name: None})
        return _Value(result, self.made[name], axis)

    def _grouped(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """Hands channels on, a group's inputs to the group's outputs."""
        name, x = str(n.target), given[0]
        groups: int = self.submodules[name].groups
        axis = _channel_axis(self.submodules[name], result)
        if x.channels is None or x.axis != axis:
            return self._unknown(n, given, result)
        channels = x.channels.found()
        channels.size = math.gcd(channels.size, groups)
        channels.grouped[name] = None
        self.read.setdefault(name, channels).merge(channels)
        return _Value(result, channels, axis)

    def _norm(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        if given[0].channels is None or given[0].axis != 1:
            return self._unknown(n, given, result)
        given[0].channels.found().norms[str(n.target)] = None
        return _Value(result, given[0].channels, 1)

    def _elementwise(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """One channel stays one channel; operands of a sum carry the same channels."""
        tensors = [value for value in given if isinstance(value.tensor, Tensor)]
        known = [value for value in tensors if value.channels is not None]
        if not known or len(known) < len(tensors) or not isinstance(result, Tensor):
            return self._unknown(n, given, result)
        axis = known[0].axis
        fits = all(
            value.axis == axis
            and value.tensor.dim() == result.dim()
            and value.count == result.shape[axis]
            for value in known
        )
        if not fits:
            return self._unknown(n, given, result)
        channels = self._note(n, known[0])
        for value in known[1:]:
            channels.merge(value.channels)  # type: ignore[arg-type]
        return _Value(result, channels, axis)

    def _pooling(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """Pools over pixels, which come after the channels."""
        x = given[0]
        if x.channels is None or x.axis != 1 or not isinstance(result, Tensor):
            return self._unknown(n, given, result)
        if result.dim() < 2 or x.count != result.shape[1] or _reduces_channels(n, x.tensor):
            return self._unknown(n, given, result)
        return _Value(result, self._note(n, x), 1)

    def _reshaping(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """Joins the channels' axis and all that follow it, or does nothing."""
        x = given[0]
        if x.channels is None or not isinstance(result, Tensor):
            return self._unknown(n, given, result)
        shape = x.tensor.shape
        if result.shape not in (shape, (*shape[: x.axis], math.prod(shape[x.axis :]))):
            return self._unknown(n, given, result)
        return _Value(result, self._note(n, x), x.axis)

    def _unknown(self, n: fx.Node, given: list[_Value], result: Any) -> _Value:
        """Channels that go in here stay as they are, unless only their number is looked at."""
        if _has_tensor(result):
            for value in given:
                if value.channels is not None:
                    value.channels.found().free = False
        return _Value(result)

    def _note(self, n: fx.Node, value: _Value) -> _Channels:
        assert value.channels is not None
        name = type(self.submodules[n.target]).__name__ if n.op == "call_module" else n.target
        channels = value.channels.found()
        channels.operations[name if isinstance(name, str) else name.__name__] = None
        return channels


ELEMENTWISE = {
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU",
    "LogSigmoid", "Mish", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus",
    "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "relu", "relu_", "relu6", "selu", "silu", "sigmoid", "softplus",
    "softsign", "tanh", "clamp",
    "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "dropout",
    "dropout2d",
    "add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "truediv", "div",
    "neg", "abs", "square", "sqrt", "exp", "pow",
    "clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16",
}  # fmt: skip
POOLINGS = {
    *(f"{kind}Pool{d}d" for kind in ("Max", "Avg") for d in (1, 2, 3)),
    *(f"Adaptive{kind}Pool{d}d" for kind in ("Max", "Avg") for d in (1, 2, 3)),
    *(f"{kind}_pool{d}d" for kind in ("max", "avg") for d in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{d}d" for kind in ("max", "avg") for d in (1, 2, 3)),
    "ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "Upsample", "interpolate", "boolean_dispatch",
    "mean", "amax",
}  # fmt: skip
RESHAPINGS = {"Flatten", "flatten", "view", "reshape", "squeeze"}


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # a forward may fail on proxies in any way
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}, whose channels are to be followed: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _channel_axis(module: nn.Module, result: Tensor) -> int:
    """Where a layer has its channels: last for linear layers, second for convolutions."""
    return result.dim() - 1 if isinstance(module, nn.Linear) else 1


def _reduces_channels(n: fx.Node, x: Tensor) -> bool:
    """Whether a mean or maximum goes over other axes than all those of the pixels."""
    if n.op == "call_module" or getattr(n.target, "__name__", n.target) not in ("mean", "amax"):
        return False
    dim: Any = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else None)
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    return not axes or any(axis % x.dim() < 2 for axis in axes)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


# --- removing -------------------------------------------------------------------------------------


def _kept_rows(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each masked layer which of its rows have anything left."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks: the model has no parameter {name!r}")
        shape = parameters[name].shape
        if mask.shape not in (shape, shape[:1]):
            raise ValueError(
                f"masks[{name!r}] must have shape {tuple(shape)} or {tuple(shape[:1])}, got "
                f"{tuple(mask.shape)}"
            )
        layer = name.rpartition(".")[0]
        rows = mask.bool().reshape(len(mask), -1).any(1)
        kept[layer] = rows | kept[layer] if layer in kept else rows  # a weight's and a bias's
    return kept


def _check_free(kept_rows: Mapping[str, Tensor], groups: Iterable[ChannelGroup]) -> None:
    free = {name for group in groups for name in (*group.producers, *group.grouped)}
    for name, kept in kept_rows.items():
        if name not in free and not kept.all():
            raise ValueError(
                f"masks drop {int((~kept).sum())} rows of {name!r}, whose channels must stay: they "
                "reach the model's output or an operation that may mix them"
            )


def _kept_channels(group: ChannelGroup, kept_rows: Mapping[str, Tensor]) -> Tensor:
    """Channels of which some producer keeps something; one without a mask keeps all."""
    if not all(name in kept_rows for name in group.producers):
        return torch.arange(group.size)
    rows = [kept_rows[name].reshape(group.size, -1).any(1) for name in group.producers]
    return torch.stack(rows).any(0).nonzero().flatten()


def take_channels_(model: nn.Module, group: ChannelGroup, kept: Tensor) -> None:
    """Keeps these channels of a group, in this order, in every layer that has them; in place."""
    for name in group.producers:
        _take_rows_(model.get_submodule(name), group, kept)
    for name in group.grouped:
        layer: Any = model.get_submodule(name)
        layer.groups = layer.groups // group.size * len(kept)
        layer.in_channels = layer.in_channels // group.size * len(kept)
        _take_rows_(layer, group, kept)
    for name in group.norms:
        norm: Any = model.get_submodule(name)
        for key, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.dim() == 1:  # not the number of batches
                _replace_(norm, key, tensor[_at(group, kept, tensor, 0)])
        norm.num_features = norm.num_features // group.size * len(kept)
    for name in group.consumers:
        layer = model.get_submodule(name)
        columns = _at(group, kept, layer.weight, 1)
        _replace_(layer, "weight", layer.weight.index_select(1, columns))
        _resize_(layer)


def _take_rows_(layer: Any, group: ChannelGroup, kept: Tensor) -> None:
    rows = _at(group, kept, layer.weight, 0)
    _replace_(layer, "weight", layer.weight[rows])
    if layer.bias is not None:
        _replace_(layer, "bias", layer.bias[rows])
    _resize_(layer)


def _at(group: ChannelGroup, kept: Tensor, tensor: Tensor, axis: int) -> Tensor:
    return group.positions(kept.to(tensor.device), tensor.shape[axis])


def _resize_(layer: Any) -> None:
    """The numbers that a layer has of its own beside its weight's shape."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.weight.shape[1] * layer.groups


def _replace_(module: nn.Module, key: str, value: Tensor) -> None:
    old = getattr(module, key)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
    setattr(module, key, value)


def _check_runs(model: nn.Module, example: Batch) -> None:
    args, kwargs = model_arguments(model, example)
    try:
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run without the channels that masks drop: its "
            f"forward has sizes written into it ({error})"
        ) from error
