"""Residual networks of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paperworks.nets.activations import Activation, make_activation


class Residual(nn.Module):
    """`body(x) + shortcut(x)`; what follows the sum comes behind it in a chain.

    Args:
        body: any module.
        shortcut: None for the identity, or a projection to the body's shape.

    >>> import torch
    >>> Residual(nn.Linear(3, 3))(torch.rand(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class ResNet(nn.Sequential):
    """A chain of a stem, `Residual` blocks in stages, mean over pixels and a linear layer.

    Every stage but the first halves the resolution. Where shapes differ, the shortcut is a 1 x 1
    convolution (and a norm). He et al. 2016, arXiv 1512.03385; `preactivation` as in 1603.05027.
    ResNet-18 for small pictures is `ResNet(3, [64, 128, 256, 512], [2, 2, 2, 2])`.

    Args:
        in_channels: channels of the pictures.
        widths: channels of each stage; bottlenecks put out four times as many.
        blocks: number of residual blocks of each stage.
        block: "basic" (two 3 x 3 convolutions) or "bottleneck" (1 x 1, 3 x 3, 1 x 1).
        preactivation: norm and activation before each convolution, not behind it.
        norm: "batch" or None.
        activation: see `MLP`.
        num_classes: outputs.

    Shapes: input (N, in_channels, H, W), output (N, num_classes).

    Raises:
        ValueError: widths and blocks that are not as many positive integers, an unknown block, norm
            or activation.

    >>> import torch
    >>> ResNet(3, [16, 32], [2, 2])(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        block: str = "basic",
        preactivation: bool = False,
        norm: str | None = "batch",
        activation: Activation = "relu",
        num_classes: int = 10,
    ) -> None:
        counts = [in_channels, num_classes, *widths, *blocks]
        if not widths or len(widths) != len(blocks) or any(n != int(n) or n < 1 for n in counts):
            raise ValueError(
                "widths and blocks must be as many positive integers, in_channels and num_classes "
                f"positive, got {list(widths)}, {list(blocks)}, {in_channels!r}, {num_classes!r}"
            )
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {block!r}")
        if norm not in ("batch", None):
            raise ValueError(f"norm must be 'batch' or None, got {norm!r}")
        make = _Maker(norm, activation, preactivation)
        layers = make.convolution(in_channels, widths[0], 3)
        if not preactivation:
            layers += make.behind(widths[0])
        channels = widths[0]
        for stage, (width, repeats) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(repeats):
                stride = 2 if stage > 0 and i == 0 else 1
                layers += make.block(channels, width, stride, block)
                channels = width * (4 if block == "bottleneck" else 1)
        if preactivation:
            layers += make.behind(channels)
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
        super().__init__(*layers, *pool)


class _Maker:
    """Layers with this norm and activation."""

    def __init__(self, norm: str | None, activation: Activation, preactivation: bool) -> None:
        self.norm, self.activation, self.preactivation = norm, activation, preactivation

    def convolution(
        self, in_channels: int, out_channels: int, size: int, stride: int = 1
    ) -> list[nn.Module]:
        bias = self.norm is None
        return [nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=bias)]

    def normed(self, channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if self.norm == "batch" else []

    def behind(self, channels: int) -> list[nn.Module]:
        return [*self.normed(channels), make_activation(self.activation)]

    def block(self, channels: int, width: int, stride: int, kind: str) -> list[nn.Module]:
        """The residual block and, unless activations come first, the one behind its sum."""
        if kind == "basic":
            out = width
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            out = 4 * width
            sizes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        body: list[nn.Module] = []
        for i, (a, b, size, step) in enumerate(sizes):
            last = i == len(sizes) - 1
            if self.preactivation:
                body += [*self.behind(a), *self.convolution(a, b, size, step)]
            else:
                body += self.convolution(a, b, size, step)
                body += self.normed(b) if last else self.behind(b)
        shortcut = None
        if stride != 1 or channels != out:
            projection = self.convolution(channels, out, 1, stride)
            shortcut = nn.Sequential(*projection, *([] if self.preactivation else self.normed(out)))
        block = Residual(nn.Sequential(*body), shortcut)
        return [block] if self.preactivation else [block, make_activation(self.activation)]
