"""A user's network turned into a sorted one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from paperworks.common.activations import Batch, evaluating, model_arguments
from paperworks.common.surgery import replace_modules
from paperworks.compress.channels import ChannelGroup, channel_groups
from paperworks.compress.sortednet.attention import SortedMultiheadAttention, check_attention
from paperworks.compress.sortednet.layers import LAYERS, NORMS, Sorted
from paperworks.compress.sortednet.model import Rule, SortedModel, keep_modes_
from paperworks.compress.sortednet.spec import Size, SortedSpec
from paperworks.compress.sortednet.stacks import SortedModuleList, SortedSequential, SortedStack

PASSED = (nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Norms that keep each channel in its place; `channel_groups` is not meant to pass them."""

ATTENTION = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
OUTPUTS = ("o_proj", "out_proj")


def to_sorted(
    model: nn.Module, spec: SortedSpec, *, example: Batch, blocks: str = "layers"
) -> SortedModel:
    """A copy of a network that can be run, trained and cut out at every size of a spec.

    - "width" and "hidden" cut channels that `channel_groups` can follow through linear layers,
      convolutions, norms, activations and residual sums: everywhere at once, so that inputs and
      outputs stay what they are. Grouped convolutions keep whole groups. Channels that meet
      anything that may mix them stay whole, such as those that go through attention.
    - "depth" runs the first blocks of one `nn.Sequential` or `nn.ModuleList`, and then whatever
      comes behind them.
    - "heads" cuts `torch.nn.MultiheadAttention` and the attention of `transformers` models (BERT,
      RoBERTa, ViT, LLaMA); query heads that share keys and values stay together.

    The largest sub-model computes what the model does, bit for bit. "First units" are not the best
    ones until training sorts them.

    Args:
        model: any module; it is not changed. For "width" and "hidden" `torch.fx` must be able to
            trace it.
        spec: the sub-models.
        example: a batch that the model can be fed: a tensor, a tuple `(x, ...)`, or a dict.
        blocks: name of the stack of blocks, or the end of it: "encoder.layer" for BERT, "layers"
            for LLaMA and ViT. Only "depth" and "hidden" need it.

    Returns:
        The sorted copy, all of it active, in the model's modes, dtypes and devices.

    Raises:
        ValueError: the model cannot be traced or has nothing that a dimension cuts; the largest
            size is not the model's; a size that is no whole number of some layer's units, heads or
            groups; no or several stacks of that name; a forward with sizes written into it.
        TypeError: the example is none of these.

    Source: arXiv 2309.00255, section on sorted architectures; cutting all layers in proportion to
    their widths is our reading.

    >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> model = to_sorted(mlp, SortedSpec({"width": [4, 8, 16]}), example=torch.rand(1, 8))
    >>> [model.num_parameters(b) for b in model.spec.configs]
    [56, 108, 212]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(spec, SortedSpec):
        raise TypeError(f"spec must be a SortedSpec, got {type(spec).__name__}")
    channels = {"width", "hidden"} & set(spec.dims)
    stack = _stack(model, blocks) if {"depth", "hidden"} & set(spec.dims) else ""
    rules: list[Rule] = []
    if channels:
        rules += _channel_rules(model, spec, example, stack)
    if "heads" in spec.dims:
        rules += _head_rules(model)
    if "depth" in spec.dims:
        count = len(model.get_submodule(stack)._modules)
        rules.append(Rule(stack, "active_blocks", "depth", count, count))
    _check_sizes(model, spec, rules)
    norms = [name for name, m in model.named_modules() if channels and _is_sortable_norm(m)]
    converted = _converted(model, {rule.layer for rule in rules} | set(norms))
    whole = SortedModel(converted, spec, rules)
    with evaluating(whole), torch.no_grad():
        rules += _norm_rules(whole, norms, example)
        whole = SortedModel(converted, spec, rules)
        _check_runs(whole, example)
    whole.training = model.training
    return whole


# --- what each dimension cuts ---------------------------------------------------------------------


def _channel_rules(
    model: nn.Module, spec: SortedSpec, example: Batch, stack: str
) -> Iterator[Rule]:
    followed = model
    if any(type(module) in PASSED for module in model.modules()):
        followed, _ = replace_modules(
            model, lambda _, m: type(m) in PASSED, lambda name, norm: nn.Identity()
        )
    found = set()
    for group in channel_groups(followed, example):
        dim = _dimension(group, spec, stack)
        if dim is not None:
            found.add(dim)
            yield from _group_rules(model, group, dim)
    for dim in ("width", "hidden"):
        if dim in spec.dims and dim not in found:
            raise ValueError(f"{dim}: the model has no channels that it could cut")


def _dimension(group: ChannelGroup, spec: SortedSpec, stack: str) -> str | None:
    """Which dimension cuts a group: "hidden" what one block keeps to itself, "width" the rest."""
    if "hidden" in spec.dims:
        layers = (*group.producers, *group.consumers, *group.grouped)
        inside = {_block_of(name, stack) for name in layers}
        if len(inside) == 1 and None not in inside:
            return "hidden"
    return "width" if "width" in spec.dims else None


def _block_of(name: str, stack: str) -> str | None:
    prefix = f"{stack}." if stack else ""
    return name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else None


def _group_rules(model: nn.Module, group: ChannelGroup, dim: str) -> Iterator[Rule]:
    for name in (*group.producers, *group.grouped):
        yield Rule(name, "active_out", dim, _sizes(model, name)[0], group.size)
    for name in (*group.consumers, *group.grouped):
        yield Rule(name, "active_in", dim, _sizes(model, name)[1], group.size)
    for name in group.norms:
        norm: Any = model.get_submodule(name)
        yield Rule(name, "active_features", dim, norm.num_features, group.size)


def _sizes(model: nn.Module, name: str) -> tuple[int, int]:
    layer: Any = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels


def _head_rules(model: nn.Module) -> list[Rule]:
    rules = []
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            check_attention(module)
            rules.append(Rule(name, "active_heads", "heads", module.num_heads, module.num_heads))
        elif (names := _projections(model, name, module)) is not None:
            head = _head_size(module)
            for projection in names[:3]:
                rows = _sizes(model, projection)[0]
                rules.append(Rule(projection, "active_out", "heads", rows, rows // head))
            columns = _sizes(model, names[3])[1]
            rules.append(Rule(names[3], "active_in", "heads", columns, columns // head))
    if not rules:
        raise ValueError("heads: the model has no attention that is known")
    return rules


def _head_size(attention: nn.Module) -> Any:
    return getattr(attention, "attention_head_size", getattr(attention, "head_dim", None))


def _projections(model: nn.Module, name: str, module: nn.Module) -> tuple[str, ...] | None:
    """Names of the query, key, value and output projections of a `transformers` attention."""
    children = dict(module.named_children())
    if _head_size(module) is None:
        return None
    parts = next((t for t in ATTENTION if all(type(children.get(c)) is nn.Linear for c in t)), None)
    if parts is None:
        return None
    inside = next((c for c in OUTPUTS if type(children.get(c)) is nn.Linear), None)
    output = f"{name}.{inside}" if inside else f"{name.rpartition('.')[0]}.output.dense"
    try:
        known = type(model.get_submodule(output)) is nn.Linear
    except AttributeError:
        known = False
    return (*(f"{name}.{part}" for part in parts), output) if known else None


def _stack(model: nn.Module, blocks: str) -> str:
    """The one stack of blocks whose name is this or ends so."""
    stacks = [name for name, module in model.named_modules() if _stack_type(module)]
    found = [name for name in stacks if name == blocks or name.endswith(f".{blocks}")]
    found = [blocks] if blocks in found else found
    if len(found) != 1:
        raise ValueError(
            f"blocks must name one nn.Sequential or nn.ModuleList: {blocks!r} fits "
            f"{found or 'none'} of {stacks}"
        )
    return found[0]


def _stack_type(module: nn.Module) -> type[SortedStack] | None:
    """The sorted kind of a stack; none for subclasses that go through their blocks in a new way."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return SortedSequential
    if isinstance(module, nn.ModuleList) and type(module).__iter__ is nn.ModuleList.__iter__:
        return SortedModuleList
    return None


def _check_sizes(model: nn.Module, spec: SortedSpec, rules: list[Rule]) -> None:
    for dim, sizes in spec.dims.items():
        own = [rule for rule in rules if rule.dim == dim]
        counts = sorted({rule.units if dim == "heads" else rule.full for rule in own})
        if sizes[-1] not in ([1.0] if isinstance(sizes[-1], float) else counts):
            raise ValueError(
                f"the largest {dim} must be the model's own, one of {counts}, or 1.0 with "
                f"fractions before it, got {sizes[-1]}"
            )
        groups = {rule: getattr(model.get_submodule(rule.layer), "groups", 1) for rule in own}
        for rule in sorted(own, key=lambda rule: -groups[rule]):  # these say most in an error
            for size in sizes:
                _check_whole(rule, groups[rule], size, sizes[-1])


def _check_whole(rule: Rule, groups: int, size: Size, largest: Size) -> None:
    try:
        rule.active(size, largest)
    except ValueError as error:
        why = f"not divisible by groups={groups}" if groups > 1 else "does not divide the units"
        raise ValueError(f"{rule.dim} {size} {why} of {rule.layer!r}: {error}") from None


# --- conversion -----------------------------------------------------------------------------------


def _is_sortable_norm(module: nn.Module) -> bool:
    one_axis = not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
    return type(module) in NORMS and one_axis


def _converted(model: nn.Module, names: set[str]) -> nn.Module:
    """A copy with sorted modules in these places, and wherever else the same modules are."""
    modules = [model.get_submodule(name) for name in names]
    places = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is other for other in modules)
    }
    converted = model
    for is_stack in (False, True):  # blocks before the stack that holds them
        some = {n for n in places if isinstance(model.get_submodule(n), STACKS) == is_stack}
        if some:
            converted, _ = replace_modules(converted, partial(_is_at, some), _sorted)
    keep_modes_(converted, model)
    return converted


def _is_at(places: set[str], name: str, module: nn.Module) -> bool:
    return name in places


def _sorted(name: str, module: nn.Module) -> nn.Module:
    stack = _stack_type(module)
    if stack is not None:
        return stack.of(module)
    return SORTED[type(module)].of(module)


def _norm_rules(whole: SortedModel, names: list[str], example: Batch) -> list[Rule]:
    """What cuts the norms that `channel_groups` does not know: those whose inputs get narrower."""
    known = {rule.layer for rule in whole.rules}
    norms = {name: whole.model.get_submodule(name) for name in names if name not in known}
    rules = []
    for dim in {"width", "hidden"} & set(whole.spec.dims):
        sizes = whole.spec.dims[dim]
        whole.set(whole.spec.largest | {dim: sizes[0]})
        inputs = _input_shapes(whole, norms, example)
        for name, shape in inputs.items():
            layer: Any = norms[name]
            flat = isinstance(layer, nn.LayerNorm)
            full = layer.normalized_shape[0] if flat else layer.num_features
            if shape[-1 if flat else 1] < full:
                rules.append(Rule(name, "active_features", dim, full, full))
    return rules


def _input_shapes(
    whole: SortedModel, modules: dict[str, nn.Module], example: Batch
) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: shapes.__setitem__(name, args[0].shape)
        )
        for name, module in modules.items()
    ]
    try:
        _run(whole, example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _check_runs(whole: SortedModel, example: Batch) -> None:
    for b in (whole.spec.smallest, whole.spec.largest):
        with whole.at(b):
            _run(whole, example)


def _run(whole: SortedModel, example: Batch) -> None:
    args, kwargs = model_arguments(whole, example)
    try:
        whole(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"{type(whole.model).__name__} does not run at {whole.config}: its forward has sizes "
            f"written into it, or its blocks do not fit together ({error})"
        ) from error


STACKS = (nn.Sequential, nn.ModuleList)
SORTED: dict[type[nn.Module], type[Sorted]] = {
    **LAYERS,
    **NORMS,
    nn.MultiheadAttention: SortedMultiheadAttention,
}
