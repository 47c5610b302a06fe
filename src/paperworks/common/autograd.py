"""Gradients other than the true ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`: the straight-through estimator.

    For a step that has no useful derivative, such as rounding or the choice of a code. The value is
    `hard` bit for bit, which `soft + (hard - soft).detach()` is not; gradients of every order and
    forward-mode derivatives go to `soft` alone. Bengio, Léonard, Courville 2013, arXiv 1308.3432.

    Args:
        soft: what the result is differentiated as.
        hard: what the result is; same shape and dtype as `soft`.

    Returns:
        A tensor equal to `hard`, of its shape.

    Raises:
        ValueError: `soft` and `hard` differ in shape or dtype.

    >>> x = torch.tensor([0.3, 1.6], requires_grad=True)
    >>> rounded = straight_through(x, x.round())
    >>> rounded
    tensor([0., 2.], grad_fn=<_StraightThroughBackward>)
    >>> torch.autograd.grad(rounded @ torch.tensor([5.0, 7.0]), x)
    (tensor([5., 7.]),)
    """
    if soft.shape != hard.shape or soft.dtype != hard.dtype:
        raise ValueError(
            "soft and hard must have one shape and dtype, got "
            f"{tuple(soft.shape)} {soft.dtype} and {tuple(hard.shape)} {hard.dtype}"
        )
    return _StraightThrough.apply(soft, hard)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()  # a view could not be written to in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, soft: Tensor | None, hard: Tensor | None) -> Tensor | None:
        return None if soft is None else soft.view_as(soft)
