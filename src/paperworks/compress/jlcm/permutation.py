"""Neurons put in another order without a change of the function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paperworks.common.activations import Batch, find_modules
from paperworks.compress.channels import ChannelGroup, channel_groups, take_channels_
from paperworks.compress.jlcm.layers import KINDS


def permute_neurons(
    model: nn.Module,
    example: Batch,
    groups: Mapping[str, Tensor],
    store_permutation: bool = False,
) -> nn.Module:
    """A copy of a network whose neurons lie group after group; its outputs are the same.

    So that saying which group a neuron belongs to takes a few boundaries, and no memory a neuron.
    Rows of a layer move with their biases, their batch norms, depthwise convolutions, and the
    columns of the layers that read them. Channels that several layers write, as in a residual
    stream, take one order for all.

    Args:
        model: any module; it is not changed. What `torch.fx` cannot trace has no free order.
        example: a batch that the model can be fed.
        groups: for layers by name the label of each row, shape (out,), as `group_neurons` gives
            them. Layers that write the same channels must have the same labels.
        store_permutation: what to do with rows whose order is not free, because they reach the
            model's output or an operation that may mix them: keep them group after group all the
            same and a permutation beside (`RowPermutation`), or raise.

    Returns:
        The copy, rows of each group ascending by label and otherwise in their order.

    Raises:
        ValueError: a layer that does not exist, labels of another shape, or, without
            `store_permutation`, rows that cannot be permuted.
        TypeError: a module that is no linear layer or convolution.

    Yvinec, Dapogny, Bailly 2023, arXiv 2309.17361; channels are followed by `channel_groups`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> x = torch.rand(5, 2)
    >>> permuted = permute_neurons(model, x, {"0": torch.tensor([1, 0, 1, 0])})
    >>> torch.equal(permuted[0].weight, model[0].weight[[1, 3, 0, 2]])
    True
    >>> torch.allclose(permuted(x), model(x), atol=1e-6)
    True
    """
    _check_labels(model, groups)
    orders, stuck = _orders(free_channels(model, example), groups)
    for name in stuck:
        if not store_permutation:
            raise ValueError(f"cannot permute {name!r}: {stuck[name]}; pass store_permutation=True")
    permuted = copy.deepcopy(model)
    for channels, order in orders:
        take_channels_(permuted, channels, order)  # keeps all of them, in this order
    for name in stuck:
        layer, order = permuted.get_submodule(name), groups[name].argsort(stable=True)
        parametrize.register_parametrization(layer, "weight", RowPermutation(order), unsafe=False)
    return permuted


class RowPermutation(nn.Module):
    """A weight whose rows are kept in another order: a parametrisation of that weight.

    Args:
        order: row i of what is kept is row `order[i]` of the weight, int64, shape (out,).

    >>> layer = nn.Linear(2, 3)
    >>> weight = layer.weight.detach().clone()
    >>> order = RowPermutation(torch.tensor([2, 0, 1]))
    >>> _ = parametrize.register_parametrization(layer, "weight", order)
    >>> torch.equal(layer.weight, weight)
    True
    >>> torch.equal(layer.parametrizations.weight.original, weight[[2, 0, 1]])
    True
    """

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, kept: Tensor) -> Tensor:
        return kept[self.order.argsort()]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[self.order]


def free_channels(model: nn.Module, example: Batch) -> list[ChannelGroup]:
    """Channels whose order is free; none in a model that cannot be traced."""
    try:
        return channel_groups(model, example)
    except ValueError:
        return []


def writers(channels: ChannelGroup) -> tuple[str, ...]:
    """The layers whose rows these channels are."""
    return channels.producers + channels.grouped


def _orders(
    free: list[ChannelGroup], groups: Mapping[str, Tensor]
) -> tuple[list[tuple[ChannelGroup, Tensor]], dict[str, str]]:
    """New orders of channels, and for layers that have none of their own the reason."""
    reaches = "its output reaches the model's output, or an operation that may mix its channels"
    orders, stuck = [], dict.fromkeys(groups, reaches)
    for channels in free:
        named = [name for name in writers(channels) if name in groups]
        if not named:
            continue
        labels = _channel_labels([groups[name] for name in named], channels.size)
        if labels is None:
            reason = f"its output feeds a residual sum or a grouped convolution with {named}"
            stuck |= dict.fromkeys(named, reason)
        else:
            orders.append((channels, labels.argsort(stable=True)))
            stuck = {name: reason for name, reason in stuck.items() if name not in named}
    return orders, stuck


def _channel_labels(labels: list[Tensor], size: int) -> Tensor | None:
    """One label for each channel, if all of its rows in all layers have the same."""
    rows = torch.cat([label.reshape(size, -1) for label in labels], 1)
    return rows[:, 0] if (rows == rows[:, :1]).all() else None


def _check_labels(model: nn.Module, groups: Mapping[str, Tensor]) -> None:
    for name, layer in find_modules(model, list(groups)).items():
        if type(layer) not in KINDS:
            raise TypeError(
                f"groups[{name!r}]: expected a linear layer or convolution, got "
                f"{type(layer).__name__}"
            )
        weight: Any = layer.weight
        if groups[name].shape != weight.shape[:1]:
            raise ValueError(
                f"groups[{name!r}] must have shape {tuple(weight.shape[:1])}, got "
                f"{tuple(groups[name].shape)}"
            )
