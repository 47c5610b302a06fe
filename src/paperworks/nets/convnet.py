"""The plain convolutional network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from paperworks.nets.activations import Activation, make_activation


class ConvNet(nn.Sequential):
    """A chain of 3 x 3 convolutions with norm, activation and pooling, and linear layers behind.

    It is a plain `nn.Sequential`, as `MLP` is; a slice shares its layers.

    Args:
        in_channels: channels of the pictures.
        widths: channels of each convolution; they keep the size of the pictures.
        pool_after: the convolutions, counted from 0, after which 2 x 2 pixels become their maximum.
        norm: "batch" or None, after each convolution.
        bias: whether convolutions have one; by default those without a norm.
        head: "average" (the mean over all pixels), "flatten" (all pixels; needs `image_size`), or
            None for a chain that ends with the last convolution's activation or pooling.
        hidden: widths of linear layers between the head and the outputs.
        num_classes: outputs.
        image_size: height and width of the pictures, for `head="flatten"` alone.
        activation: see `MLP`.

    Shapes: input (N, in_channels, H, W), output (N, num_classes), or with `head=None`
    (N, widths[-1], H / 2**p, W / 2**p) for p poolings.

    Raises:
        ValueError: widths that are no positive integers or none, poolings after convolutions that
            do not exist, an unknown norm, head or activation, an image_size that is missing or too
            small.

    >>> import torch
    >>> ConvNet(1, [8, 16], pool_after=[0])(torch.rand(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        pool_after: Collection[int] = (),
        norm: str | None = "batch",
        bias: bool | None = None,
        head: str | None = "average",
        hidden: Sequence[int] = (),
        num_classes: int = 10,
        image_size: tuple[int, int] | None = None,
        activation: Activation = "relu",
    ) -> None:
        channels = [in_channels, *widths]
        if not widths or any(size != int(size) or size < 1 for size in [*channels, *hidden]):
            raise ValueError(
                "in_channels, widths and hidden must be positive integers, at least one of widths, "
                f"got {in_channels!r}, {list(widths)}, {list(hidden)}"
            )
        if not set(pool_after) <= set(range(len(widths))):
            raise ValueError(
                f"pool_after must be of the convolutions 0 to {len(widths) - 1}, "
                f"got {sorted(pool_after)}"
            )
        if norm not in ("batch", None):
            raise ValueError(f"norm must be 'batch' or None, got {norm!r}")
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(pairwise(channels)):
            has_bias = norm is None if bias is None else bias
            layers.append(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=has_bias))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(fan_out))
            layers.append(make_activation(activation))
            if i in pool_after:
                layers.append(nn.MaxPool2d(2))
        if head is not None:
            pixels = _pixels(head, image_size, len(set(pool_after)))
            layers += [nn.AdaptiveAvgPool2d(1)] * (head == "average")
            layers.append(nn.Flatten())
            sizes = [widths[-1] * pixels, *hidden, num_classes]
            for fan_in, fan_out in pairwise(sizes[:-1]):
                layers += [nn.Linear(fan_in, fan_out), make_activation(activation)]
            layers.append(nn.Linear(sizes[-2], sizes[-1]))
        super().__init__(*layers)

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential would call type(self)(...) for a slice, with arguments that are not sizes
        return (
            nn.Sequential(*list(self)[index])
            if isinstance(index, slice)
            else super().__getitem__(index)
        )


def _pixels(head: str, image_size: tuple[int, int] | None, poolings: int) -> int:
    """Pixels a channel that reach the linear layers."""
    if head == "average":
        return 1
    if head != "flatten":
        raise ValueError(f"head must be 'average', 'flatten' or None, got {head!r}")
    if image_size is None or min(image_size) >> poolings < 1:
        raise ValueError(
            f"head='flatten' needs an image_size of at least {2**poolings} pixels a side for "
            f"{poolings} poolings, got {image_size!r}"
        )
    return (image_size[0] >> poolings) * (image_size[1] >> poolings)
