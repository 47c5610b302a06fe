"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from paperworks.nets.activations import Activation, make_activation

_NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class MLP(nn.Sequential):
    """A chain of linear layers, each but the last followed by norm, activation and dropout.

    It is a plain `nn.Sequential`, so that tracing, pruning and conversion see every layer; a slice
    of it, `mlp[:-1]`, is a plain `nn.Sequential` that shares its layers.

    Args:
        sizes: widths from input to output, at least two: `[64, 128, 10]` has one hidden layer.
        activation: a name ("relu", "gelu", "tanh", ...), a module class, a module or a function.
        norm: "layer", "batch" or None, before each activation.
        dropout: probability of dropping a hidden unit, after each activation; 0 adds no layer.
        bias: whether the linear layers have one.

    Shapes: input (..., sizes[0]), output (..., sizes[-1]); with batch norm (N, sizes[0]).

    Raises:
        ValueError: fewer than two sizes, a size that is no positive integer, an unknown activation
            or norm, a dropout outside [0, 1).

    >>> MLP([64, 32, 10], activation="gelu")
    MLP(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): GELU(approximate='none')
      (2): Linear(in_features=32, out_features=10, bias=True)
    )
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Activation = "relu",
        norm: str | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        if len(sizes) < 2 or any(size != int(size) or size < 1 for size in sizes):
            raise ValueError(f"sizes must be at least two positive integers, got {list(sizes)}")
        if norm is not None and norm not in _NORMS:
            raise ValueError(f"norm must be 'layer', 'batch' or None, got {norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers.append(nn.Linear(fan_in, fan_out, bias))
            if norm is not None:
                layers.append(_NORMS[norm](fan_out))
            layers.append(make_activation(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias))

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential would call type(self)(...) for a slice, with arguments that are not sizes
        return (
            nn.Sequential(*list(self)[index])
            if isinstance(index, slice)
            else super().__getitem__(index)
        )
