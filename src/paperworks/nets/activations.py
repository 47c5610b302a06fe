"""Naming an activation: by word, module class, module or function."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

Activation = str | type[nn.Module] | nn.Module | Callable[[Tensor], Tensor]

_BY_NAME: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Elementwise(nn.Module):
    """A function as a module, so that it can stand in a chain.

    >>> import torch
    >>> Elementwise(torch.sin)(torch.zeros(1))
    tensor([0.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def make_activation(activation: Activation) -> nn.Module:
    """A new module for an activation: one call for each place in a network.

    Args:
        activation: a name ("relu", "gelu", ...), a module class, a module (copied, so that places
            share no parameters) or an elementwise function of a tensor.

    Raises:
        ValueError: an unknown name.
        TypeError: none of these.

    >>> make_activation("relu")
    ReLU()
    """
    if isinstance(activation, str):
        if activation not in _BY_NAME:
            names = ", ".join(_BY_NAME)
            raise ValueError(f"activation must be one of {names}, got {activation!r}")
        return _BY_NAME[activation]()
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    if isinstance(activation, type):
        if issubclass(activation, nn.Module):
            return activation()
    elif callable(activation):
        return Elementwise(activation)
    raise TypeError(
        f"activation must be a name, a module, a module class or a function, got {activation!r}"
    )
