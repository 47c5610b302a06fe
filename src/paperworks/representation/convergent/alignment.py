"""A network with its units in another network's order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from paperworks.common.activations import Batch, find_modules
from paperworks.compress.channels import ChannelGroup, channel_groups, take_channels_
from paperworks.representation.convergent.matching import Matching


def align_model(model: nn.Module, layer: str, matching: Matching, example: Batch) -> nn.Module:
    """A copy of network B with the units of a layer in the order of A's; it computes the same.

    Unit i of the copy's layer is the one that `matching` pairs with unit i of A; units without a
    partner come last. Rows of the layer move with their biases, their norms and the columns of
    every layer that reads them. Align one layer after the other to bring whole networks into one
    order, for instance before their weights are compared or averaged.

    In a residual stream the units of all layers that add to it move together.

    Args:
        model: network B; it is not changed.
        layer: name of the layer that makes the units (a linear layer or a convolution), or of a
            batch norm behind it; activations behind it have the same units.
        matching: one to one, from the similarity of A's units (rows) and B's (columns).
        example: a batch that B can be fed.

    Raises:
        ValueError: no such layer; its units are not free to move, since they reach the output or an
            operation that may mix them; a matching that uses a unit of B twice, or that is not over
            the units of this layer; a model that `torch.fx` cannot trace.

    Reordering units does not change a network's function: arXiv 1511.07543, section 1, calls on it;
    the tool is ours.

    >>> from paperworks.representation import match_units
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.rand(5, 2)
    >>> similarity = torch.eye(3)[[2, 0, 1]]  # A's unit 0 is B's unit 2, ...
    >>> aligned = align_model(model, "0", match_units(similarity), x)
    >>> torch.equal(aligned[0].weight, model[0].weight[[2, 0, 1]])
    True
    >>> torch.allclose(aligned(x), model(x), atol=1e-6)
    True
    """
    find_modules(model, [layer])
    group = _group_of(layer, channel_groups(model, example))
    order = _order(layer, matching, group.size)
    aligned = copy.deepcopy(model)
    take_channels_(aligned, group, order)
    return aligned


def _group_of(layer: str, groups: list[ChannelGroup]) -> ChannelGroup:
    for group in groups:
        if layer in (*group.producers, *group.grouped, *group.norms):
            return group
    free = [name for group in groups for name in group.producers]
    raise ValueError(
        f"layer {layer!r} has no units that are free to move: they reach the model's output or "
        "what may mix them, or it is no linear layer, convolution or batch norm; units are free at "
        f"{', '.join(map(repr, free)) or 'no layer'}"
    )


def _order(layer: str, matching: Matching, size: int) -> Tensor:
    """Units of B in the order of A's, then those without a partner."""
    partners = matching.index_b[matching.index_a.argsort()]
    if len(partners.unique()) < len(partners):
        raise ValueError(
            "matching uses units of B more than once, so it is no order of them: match with "
            "'bipartite' or 'greedy'"
        )
    order = torch.cat([partners, matching.unmatched[1]])
    if not torch.equal(order.sort().values, torch.arange(size, device=order.device)):
        raise ValueError(
            f"matching is over {len(order)} units of B, but at layer {layer!r} {size} are free to "
            "move"
        )
    return order
