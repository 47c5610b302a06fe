"""A network as a list of layers, and smaller networks made from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.common.activations import evaluating
from paperworks.common.generators import following
from paperworks.nets.resnet import Residual

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGE_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TYPES: dict[int, tuple[type[nn.Module], ...]] = {
    1: CONVOLUTIONS,
    2: MAX_POOLS,
    3: (nn.ReLU,),
    4: BATCH_NORMS,
    5: (nn.Linear,),
    6: (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    7: (nn.LogSoftmax,),
    8: AVERAGE_POOLS,
    10: (nn.Softmax,),
}
"""The type code of each kind of layer; anything else is 0. There is no 9."""
TYPE, KERNEL, STRIDE, WIDTH, PADDING = range(5)
"""The columns of a description. Skips add the offsets of the block's first and last layer."""

Frozen = Callable[[nn.Module], bool]


def default_frozen(layer: nn.Module) -> bool:
    """What neither stage touches: linear layers, average pools, strided convolutions, reshapings.

    >>> [default_frozen(layer) for layer in (nn.Linear(2, 2), nn.ReLU(), nn.Conv2d(1, 1, 3))]
    [True, False, False]
    """
    if isinstance(layer, CONVOLUTIONS):
        return any(stride != 1 for stride in layer.stride)
    known = any(isinstance(layer, kinds) for kinds in TYPES.values())
    if isinstance(layer, (nn.Linear, nn.Flatten, nn.Unflatten, *AVERAGE_POOLS)):
        return True
    return not known and next(layer.parameters(), None) is not None


def describe_layers(model: nn.Module, skips: bool = False) -> Tensor:
    """A network's layers as rows of numbers, for the policies to read.

    Columns are type code (see `TYPES`), kernel size, stride, output width (channels or features)
    and padding, as they are; 0 for what a layer does not have. Ashok et al. 2018, arXiv 1709.06030.

    Args:
        model: chains of layers (`nn.Sequential`, nested or not) and `nets.Residual` blocks.
            Projections in shortcuts follow their blocks and have no row.
        skips: two more columns: how many rows above is the first layer of the residual block that
            encloses it, and how many below its last one; 0 outside of blocks. (That this is what
            the paper's two offsets count is our reading.)

    Returns:
        int64, shape (L, 5), or (L, 7) with skips.

    >>> describe_layers(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    tensor([[ 1,  3,  1, 16,  1],
            [ 3,  0,  0,  0,  0],
            [ 2,  2,  2,  0,  0]])
    """
    found = leaves(model)
    rows = [_row(leaf.layer) for leaf in found]
    if skips:
        numbers: dict[str, list[int]] = {}
        for i, leaf in enumerate(found):
            if leaf.block is not None:
                numbers.setdefault(leaf.block, []).append(i)
        for i, (row, leaf) in enumerate(zip(rows, found, strict=True)):
            inside = numbers[leaf.block] if leaf.block is not None else [i]
            row += [i - inside[0], inside[-1] - i]
    return torch.tensor(rows).reshape(len(rows), 7 if skips else 5)


def apply_removal(
    model: nn.Module,
    keep: Tensor,
    example: Tensor,
    generator: torch.Generator | None = None,
) -> nn.Module | None:
    """The network without some of its layers, all weights drawn anew.

    Each layer that stays is made again for the input that it now gets. In a residual block the last
    convolution that stays puts out as many channels as the sum needs, and a projection follows the
    body; a block that loses its whole body disappears.

    Args:
        model: as `describe_layers` takes it; it is not changed.
        keep: shape (L,), 0 for layers to leave out, anything else for those that stay.
        example: inputs of the model; the first one is sent through the child.
        generator: draws the weights. A fresh one with seed 0 by default.

    Returns:
        The child, on the model's device, or None where there is none: a layer does not fit its
        input, the output has another shape, or fewer than 10 or more than 50,000 numbers would
        enter a linear layer that had another number before.

    Raises:
        ValueError: keep has not one entry a layer, or the example does not pass through the model.

    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    ... )
    >>> apply_removal(model, torch.tensor([1, 0, 1, 1]), torch.rand(1, 1, 8, 8))
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Flatten(start_dim=1, end_dim=-1)
      (2): Linear(in_features=144, out_features=2, bias=True)
    )
    """
    names = [leaf.name for leaf in leaves(model)]
    if keep.shape != (len(names),):
        raise ValueError(f"keep must have shape ({len(names)},), got {tuple(keep.shape)}")
    plan = {name: UNTOUCHED if k else None for name, k in zip(names, keep.tolist(), strict=True)}
    return _child(model, plan, example, generator)


def apply_shrinkage(
    model: nn.Module,
    ratio_index: Tensor,
    ratios: Sequence[float],
    example: Tensor,
    generator: torch.Generator | None = None,
) -> nn.Module | None:
    """The network with smaller layers, all weights drawn anew.

    Kernel size, stride, output width and padding are multiplied by a ratio each and cut to whole
    numbers, not below 1, 1, 10 and 0. A width below 10 stays as it is: the limit enlarges nothing.
    Widths of a residual block's later convolutions follow: the last one puts out what the sum
    needs; with a projection, the block's output keeps its proportion to the first one's width.

    Args:
        model: as `describe_layers` takes it; it is not changed.
        ratio_index: shape (L, 5), which ratio multiplies which attribute (the columns of
            `describe_layers`); -1 leaves it, and so does any ratio of a type.
        ratios: numbers in (0, 1].
        example, generator: as in `apply_removal`.

    Returns:
        The child or None, as in `apply_removal`.

    Raises:
        ValueError: ratio_index has another shape or asks for ratios that are not there, ratios
            outside (0, 1], or the example does not pass through the model.

    >>> model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Flatten(), nn.Linear(1152, 2))
    >>> index = torch.full((3, 5), -1)
    >>> index[0, 3] = 0
    >>> apply_shrinkage(model, index, [0.5, 1.0], torch.rand(1, 1, 8, 8))
    Sequential(
      (0): Conv2d(1, 16, kernel_size=(3, 3), stride=(1, 1))
      (1): Flatten(start_dim=1, end_dim=-1)
      (2): Linear(in_features=576, out_features=2, bias=True)
    )
    """
    check_ratios(ratios)
    names = [leaf.name for leaf in leaves(model)]
    if ratio_index.shape != (len(names), 5):
        raise ValueError(
            f"ratio_index must have shape ({len(names)}, 5), got {tuple(ratio_index.shape)}"
        )
    if ratio_index.max() >= len(ratios) or ratio_index.min() < -1:
        raise ValueError(
            f"ratio_index must be in [-1, {len(ratios)}), got {int(ratio_index.min())} to "
            f"{int(ratio_index.max())}"
        )
    table = [*ratios, 1.0]  # index -1
    rows = [[table[i] for i in row] for row in ratio_index.tolist()]
    return _child(model, dict(zip(names, rows, strict=True)), example, generator)


def architecture(model: nn.Module) -> str:
    """The layers of a network with their sizes, equal for equal architectures.

    >>> architecture(nn.Sequential(nn.Sequential(nn.Linear(4, 2, bias=False)), nn.Tanh()))
    'Linear(in_features=4, out_features=2, bias=False), Tanh()'
    """
    if isinstance(model, nn.Sequential):
        return ", ".join(filter(None, map(architecture, model)))
    if isinstance(model, Residual):
        return f"Residual({architecture(model.body)} | {architecture(model.shortcut)})"
    return repr(model)


# --- layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A layer by its name, and the name of the residual block that encloses it."""

    name: str
    layer: nn.Module
    block: str | None


def leaves(model: nn.Module) -> list[Leaf]:
    """The layers in the order in which data pass them, without those of shortcuts."""
    return list(_leaves(model, "", None))


def _leaves(module: nn.Module, name: str, block: str | None) -> Iterator[Leaf]:
    if isinstance(module, nn.Sequential):
        for key, child in _named(module):
            yield from _leaves(child, _join(name, key), block)
    elif isinstance(module, Residual):
        yield from _leaves(module.body, _join(name, "body"), name)
    else:
        yield Leaf(name, module, block)


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children by name, those with two names twice."""
    yield from ((key, child) for key, child in module._modules.items() if child is not None)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def type_code(layer: nn.Module) -> int:
    return next((code for code, kinds in TYPES.items() if isinstance(layer, kinds)), 0)


def _row(layer: nn.Module) -> list[int]:
    width = getattr(layer, "out_channels", getattr(layer, "out_features", 0))
    sizes = [_first(getattr(layer, key, 0)) for key in ("kernel_size", "stride", "padding")]
    return [type_code(layer), *sizes[:2], _first(width), sizes[2]]


def _first(value: Any) -> int:
    """The size along the first axis; 0 for what is not told in numbers, such as "same"."""
    if isinstance(value, tuple):
        value = value[0] if value else 0
    return value if isinstance(value, int) else 0


def check_ratios(ratios: Sequence[float]) -> None:
    if not len(ratios) or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios must lie in (0, 1], got {list(ratios)}")


# --- building -------------------------------------------------------------------------------------

UNTOUCHED = [1.0] * 5
FLATTENED = range(10, 50_001)
"""How many numbers may enter a linear layer."""
LEAST = {KERNEL: 1, STRIDE: 1, WIDTH: 10, PADDING: 0}

Plan = Mapping[str, Sequence[float] | None]
"""By a layer's name the ratios of its five attributes, or None for a layer to be left out."""


class Misfit(Exception):
    """A layer that cannot stand where it would."""


def _child(
    model: nn.Module, plan: Plan, example: Tensor, generator: torch.Generator | None
) -> nn.Module | None:
    x = example[:1]
    reference = next(model.parameters(), x)
    output = _output(model, x.to(reference.device))
    try:
        with following(generator or torch.Generator().manual_seed(0)), torch.no_grad():
            child, y = _rebuilt(model, "", plan, x.detach().cpu(), {})
    except (Misfit, RuntimeError, ValueError):  # layers complain in any of these ways
        return None
    if child is None or y.shape != output.shape:
        return None
    return child.train(model.training).to(reference.device)


def _output(model: nn.Module, x: Tensor) -> Tensor:
    try:
        with evaluating(model), torch.no_grad():
            return model(x)
    except Exception as error:  # whatever the user's layers raise
        raise ValueError(
            f"example does not pass through the teacher: {type(error).__name__}: {error}"
        ) from error


def _rebuilt(
    module: nn.Module, name: str, plan: Plan, x: Tensor, widths: Mapping[str, int]
) -> tuple[nn.Module | None, Tensor]:
    """The module anew for this input, and what it makes of it; `widths` go before the plan's."""
    if isinstance(module, nn.Sequential):
        return _chain(module, name, plan, x, widths)
    if isinstance(module, Residual):
        return _residual(module, name, plan, x, widths)
    ratios = plan[name]
    if ratios is None:
        return None, x
    layer = _layer(module, ratios, x, widths.get(name)).eval()
    return layer, layer(x)


def _chain(
    chain: nn.Sequential, name: str, plan: Plan, x: Tensor, widths: Mapping[str, int]
) -> tuple[nn.Module | None, Tensor]:
    kept = []
    for key, child in _named(chain):
        new, x = _rebuilt(child, _join(name, key), plan, x, widths)
        if new is not None:
            kept.append(new)
    return (nn.Sequential(*kept) if kept else None), x


def _residual(
    block: Residual, name: str, plan: Plan, x: Tensor, widths: Mapping[str, int]
) -> tuple[nn.Module | None, Tensor]:
    """The body anew, and a shortcut to its shape; nothing where nothing is left of the body."""
    projected = not isinstance(block.shortcut, nn.Identity)
    inside = list(_leaves(block.body, _join(name, "body"), None))
    follows = _body_widths(inside, plan, None if projected else x.shape[1])
    body, y = _rebuilt(block.body, _join(name, "body"), plan, x, {**widths, **follows})
    if body is None:
        return None, x
    shortcut, skip = block.shortcut, x
    if projected:
        names = [leaf.name for leaf in leaves(block.shortcut)]
        as_wide = dict.fromkeys(names, y.shape[1])
        untouched = dict.fromkeys(names, UNTOUCHED)
        new, skip = _rebuilt(block.shortcut, "", untouched, x, as_wide)
        assert new is not None  # nothing of it is left out
        shortcut = new
    if skip.shape != y.shape:
        raise Misfit(f"{name}: the sum of {tuple(y.shape)} and {tuple(skip.shape)}")
    return Residual(body, shortcut), skip + y


def _body_widths(inside: Sequence[Leaf], plan: Plan, in_channels: int | None) -> dict[str, int]:
    """Widths of a body's convolutions: the first one's is chosen, the last one's follows.

    It puts out `in_channels`, or, where these are None because a projection takes any number, keeps
    its proportion to the first one's.
    """
    convolutions: list[Any] = [leaf for leaf in inside if isinstance(leaf.layer, CONVOLUTIONS)]
    kept = [leaf for leaf in convolutions if plan[leaf.name] is not None]
    if not kept:
        return {}
    first, last = kept[0], convolutions[-1]
    ratios: Any = plan[first.name]
    chosen = _scaled(first.layer.out_channels, ratios[WIDTH], LEAST[WIDTH])
    if in_channels is None:
        in_channels = max(1, last.layer.out_channels * chosen // first.layer.out_channels)
    widths = {leaf.name: leaf.layer.out_channels for leaf in kept}
    return widths | {first.name: chosen} | {kept[-1].name: in_channels}


def _layer(layer: Any, ratios: Sequence[float], x: Tensor, width: int | None) -> nn.Module:
    """The layer anew: of these sizes, for this input, with fresh weights."""
    if isinstance(layer, CONVOLUTIONS):
        return _convolution(layer, ratios, x, width)
    if isinstance(layer, nn.Linear):
        if x.shape[-1] != layer.in_features and x.shape[-1] not in FLATTENED:
            raise Misfit(f"{x.shape[-1]} numbers enter a linear layer")
        has_bias = layer.bias is not None
        return nn.Linear(x.shape[-1], layer.out_features, has_bias, dtype=layer.weight.dtype)
    if isinstance(layer, BATCH_NORMS):
        kind = next(kind for kind in BATCH_NORMS if isinstance(layer, kind))
        return kind(
            x.shape[1],
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
            dtype=layer.weight.dtype if layer.affine else None,
        )
    if isinstance(layer, nn.GroupNorm):
        if x.shape[1] % layer.num_groups:
            raise Misfit(f"{x.shape[1]} channels in {layer.num_groups} groups")
        return nn.GroupNorm(layer.num_groups, x.shape[1], layer.eps, layer.affine, dtype=x.dtype)
    new = _fresh(layer)
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        new.kernel_size = _each(layer.kernel_size, ratios[KERNEL], LEAST[KERNEL])
        new.stride = _each(layer.stride, ratios[STRIDE], LEAST[STRIDE])
        new.padding = _each(layer.padding, ratios[PADDING], LEAST[PADDING])
    return new


def _convolution(layer: Any, ratios: Sequence[float], x: Tensor, width: int | None) -> nn.Module:
    kind = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    in_channels = x.shape[1]
    out_channels = width or _scaled(layer.out_channels, ratios[WIDTH], LEAST[WIDTH])
    if layer.groups == layer.in_channels > 1:  # depthwise: its channels are those that come in
        multiplier = layer.out_channels // layer.in_channels
        groups, out_channels = in_channels, multiplier * in_channels
    else:
        groups = layer.groups
    if in_channels % groups or out_channels % groups:
        raise Misfit(f"{in_channels} and {out_channels} channels in {groups} groups")
    padding = layer.padding
    if not isinstance(padding, str):
        padding = _each(padding, ratios[PADDING], LEAST[PADDING])
    return kind(
        in_channels,
        out_channels,
        _each(layer.kernel_size, ratios[KERNEL], LEAST[KERNEL]),
        _each(layer.stride, ratios[STRIDE], LEAST[STRIDE]),
        padding,
        layer.dilation,
        groups,
        layer.bias is not None,
        layer.padding_mode,
        dtype=layer.weight.dtype,
    )


def _fresh(layer: nn.Module) -> Any:
    """A copy whose weights are drawn anew wherever its parts know how."""
    new = copy.deepcopy(layer).cpu()
    for module in new.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return new


def _each(size: Any, ratio: float, least: int) -> Any:
    if isinstance(size, tuple):
        return tuple(_scaled(one, ratio, least) for one in size)
    return _scaled(size, ratio, least)


def _scaled(size: int, ratio: float, least: int) -> int:
    return min(size, max(least, int(size * ratio)))
