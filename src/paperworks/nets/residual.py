"""The residual multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from paperworks.nets.activations import Activation, make_activation


class ResidualBlock(nn.Module):
    """`x + fc2(activation(fc1(norm(x))))`: the feed-forward half of a pre-norm transformer block.

    Args:
        width: features of input and output.
        hidden: features in between.
        activation: see `MLP`.

    Shapes: input and output (..., width).

    >>> import torch
    >>> ResidualBlock(width=8, hidden=16)(torch.rand(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.activation = make_activation(activation)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.activation(self.fc1(self.norm(x))))


class ResidualMLP(nn.Module):
    """Linear embedding, a stack of pre-norm residual blocks, layer norm, linear head.

    A family of networks of one depth and several widths, or of nested depths: every block reads and
    writes one stream of `width` features. The blocks are `blocks.0`, `blocks.1`, ...

    Args:
        in_features: features of the input.
        width: features of the residual stream.
        depth: number of blocks.
        num_classes: outputs.
        expansion: hidden features of a block, as a multiple of `width`.
        activation: see `MLP`.

    Shapes: input (..., in_features), output (..., num_classes).

    Raises:
        ValueError: a count that is no positive integer, an unknown activation.

    >>> import torch
    >>> ResidualMLP(64, width=16, depth=3)(torch.rand(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        num_classes: int = 10,
        expansion: int = 2,
        activation: Activation = "gelu",
    ) -> None:
        counts = {
            "in_features": in_features,
            "width": width,
            "depth": depth,
            "num_classes": num_classes,
            "expansion": expansion,
        }
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive integer, got {count!r}")
        super().__init__()
        self.embed = nn.Linear(in_features, width)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, expansion * width, activation) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))))
