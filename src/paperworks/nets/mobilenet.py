"""A small MobileNetV2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from paperworks.nets.activations import Activation, make_activation


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project back; add the input where the shapes match.

    `y = project(depthwise(expand(x)))`, plus x when the stride is 1 and the channels agree. The
    projection has no activation. Sandler et al. 2018, arXiv 1801.04381, section 3.3.

    Args:
        in_channels, out_channels: channels of input and output.
        expansion: hidden channels are `expansion * in_channels`; 1 leaves the first step out.
        stride: of the depthwise convolution.
        norm: "batch" or None.
        activation: see `MLP`.

    Shapes: input (N, in_channels, H, W), output (N, out_channels, ceil(H/stride), ceil(W/stride)).

    >>> import torch
    >>> InvertedResidual(8, 8, expansion=4)(torch.rand(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int = 1,
        norm: str | None = "batch",
        activation: Activation = "relu6",
    ) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.expand = (
            nn.Identity()
            if expansion == 1
            else _conv(in_channels, hidden, 1, norm=norm, activation=activation)
        )
        self.depthwise = _conv(
            hidden, hidden, 3, stride=stride, groups=hidden, norm=norm, activation=activation
        )
        self.project = _conv(hidden, out_channels, 1, norm=norm)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """A MobileNetV2 for small pictures: stem, inverted residual blocks, mean over pixels, linear.

    The blocks are `blocks.0`, `blocks.1`, ... for whatever works block by block. Unlike the
    original all blocks have one width, the stem keeps the resolution unless told otherwise, and
    there is no 1 x 1 convolution before the pooling. Sandler et al. 2018, arXiv 1801.04381.

    Args:
        in_channels: channels of the pictures.
        width: channels of the stem and of every block.
        blocks: number of inverted residual blocks.
        expansion: hidden channels of a block, as a multiple of `width`.
        norm: "batch" or None.
        activation: see `MLP`.
        num_classes: outputs.
        strides: one stride a block; by default 2 in the block `blocks // 2`, else 1 (8 x 8 pixels
            become 4 x 4).
        stem_stride: stride of the stem: 2 for large pictures.

    Shapes: input (N, in_channels, H, W), output (N, num_classes).

    Raises:
        ValueError: a count that is no positive integer, strides that are not one for each block,
            an unknown norm or activation.

    >>> import torch
    >>> MobileNet(1, width=8, blocks=2)(torch.rand(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 32,
        blocks: int = 4,
        expansion: int = 4,
        norm: str | None = "batch",
        activation: Activation = "relu6",
        num_classes: int = 10,
        strides: Sequence[int] | None = None,
        stem_stride: int = 1,
    ) -> None:
        counts = {
            "in_channels": in_channels,
            "width": width,
            "blocks": blocks,
            "expansion": expansion,
            "num_classes": num_classes,
            "stem_stride": stem_stride,
        }
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive integer, got {count!r}")
        if strides is None:
            strides = [2 if i == blocks // 2 else 1 for i in range(blocks)]
        if len(strides) != blocks or any(stride < 1 for stride in strides):
            raise ValueError(f"strides must be {blocks} positive integers, got {list(strides)}")
        super().__init__()
        self.stem = _conv(
            in_channels, width, 3, stride=stem_stride, norm=norm, activation=activation
        )
        self.blocks = nn.Sequential(
            *(InvertedResidual(width, width, expansion, s, norm, activation) for s in strides)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: str | None,
    activation: Activation | None = None,
) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), norm, activation."""
    if norm not in ("batch", None):
        raise ValueError(f"norm must be 'batch' or None, got {norm!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=norm is None,
    )
    if norm == "batch":
        layers["norm"] = nn.BatchNorm2d(out_channels)
    if activation is not None:
        layers["activation"] = make_activation(activation)
    return nn.Sequential(layers)
