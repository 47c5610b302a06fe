"""Feed-forward layers in place of dense ones: on random features, and of low rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.compress.snnk.features import RandomFeatures, make_features


class SNNKLinear(nn.Module):
    """A dense layer *and its activation* as a trained matrix on fixed random features.

        `y = Ψ Φ(x)`,  Ψ (out, features) trained, Φ fixed

    In place of `f(Wx + b)` where a wide layer should have fewer trainable numbers, `out * m`
    instead of `out * (in + 1)`, and a cost linear in m: `m (in + out)` multiply-adds a row instead
    of `in * out`. No activation goes behind it. Ψ starts as the features of a weight matrix and is
    then free, so the layer becomes more than the kernel it starts as.

    With kind "urf" each feature is complex and counts as two. What must be stored besides Ψ are the
    `m * in` numbers of the projection, or the seed that drew them; they are in the `state_dict`.

    Args:
        in_features, out_features: as for `torch.nn.Linear`.
        m: number of random features.
        kind: "relu" for `ArcCosineFeatures`, "urf" for `UniversalRandomFeatures`.
        orthogonal: see there; on here by default, off in the official code.
        generator: draws the projection and the first weights (Kaiming-uniform, a = 5^(1/2)).
        **options: of the features: `floor`, `bias`, `normalize` or `activation`, `A`, `split`, ...

    Shapes: input (..., in_features), output (..., out_features).

    Raises:
        ValueError: a size is not positive, another kind, or as the features say.
        TypeError: an option that the features do not have.

    Source: arXiv 2310.13225, sections on SNNKs and ReLU-SNNK.

    >>> layer = SNNKLinear(768, 3072, m=64)
    >>> layer(torch.randn(2, 10, 768)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([2, 10, 3072]), 196608)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        m: int,
        kind: str = "relu",
        *,
        orthogonal: bool = True,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        check_positive("out_features", out_features)
        super().__init__()
        self.features = make_features(
            kind, in_features, m, orthogonal=orthogonal, generator=generator, **options
        )
        W = nn.init.kaiming_uniform_(
            torch.empty(out_features, in_features), a=math.sqrt(5), generator=generator
        )
        self.Psi = nn.Parameter(start(self.features, W, None))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        m: int,
        kind: str = "relu",
        *,
        orthogonal: bool = True,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> SNNKLinear:
        """The layer that starts from a dense layer's weights: Ψ = ψ(W, b), with the same G as Φ.

        For uptraining: put it in place of the dense layer and its activation, then fine-tune. With
        kind "urf" and much m it starts as `f(Wx + b)`, with "relu" as the arc-cosine kernel; there
        a bias makes the features read a constant 1 as well.

        Args: those of the class. Dtype and device are the dense layer's.

        Raises:
            TypeError: linear is no `torch.nn.Linear`.

        >>> dense = nn.Linear(16, 4)
        >>> SNNKLinear.from_linear(dense, m=8).Psi.shape
        torch.Size([4, 8])
        """
        check_linear(linear)
        if kind == "relu":
            options = {"bias": linear.bias is not None} | options
        layer = cls(
            linear.in_features,
            linear.out_features,
            m,
            kind,
            orthogonal=orthogonal,
            generator=generator,
            **options,
        ).to(linear.weight)
        layer.Psi.data = start(layer.features, linear.weight, linear.bias)
        return layer

    @property
    def in_features(self) -> int:
        return self.features.in_features

    @property
    def out_features(self) -> int:
        return len(self.Psi)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x), self.Psi)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class LowRankLinear(nn.Module):
    """A dense layer whose weight is a product of two thin matrices: the usual way to fewer numbers.

        `y = U V x + b`,  U (out, rank), V (rank, in)

    `rank (in + out) + out` trainable numbers. The baseline of `SNNKLinear`; unlike there, an
    activation goes behind it, and what is read of x is learned.

    Args:
        in_features, out_features, bias: as for `torch.nn.Linear`.
        rank: at most the smaller of the two sizes.

    Raises:
        ValueError: a size is not positive, or rank larger than the smaller of the sizes.

    >>> layer = LowRankLinear(64, 256, rank=8)
    >>> layer(torch.randn(5, 64)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([5, 256]), 2816)
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_positive(name, size)
        check_positive("rank", rank)
        if rank > min(in_features, out_features):
            raise ValueError(f"rank must be at most {min(in_features, out_features)}, got {rank}")
        super().__init__()
        self.V = nn.Linear(in_features, rank, bias=False)
        self.U = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """The nearest layer of this rank, from the weight's singular vectors.

        Each factor takes the square root of the singular values. A good start for training too.

        Raises:
            TypeError: linear is no `torch.nn.Linear`.
            ValueError: as the class.
        """
        check_linear(linear)
        layer = cls(linear.in_features, linear.out_features, rank, linear.bias is not None)
        layer = layer.to(linear.weight)
        with torch.no_grad():
            weight = linear.weight.float() if linear.weight.dtype.itemsize < 4 else linear.weight
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
            root = S[:rank].sqrt()
            layer.U.weight.copy_(U[:, :rank] * root)
            layer.V.weight.copy_(root.unsqueeze(1) * Vh[:rank])
            if linear.bias is not None:
                layer.U.bias.copy_(linear.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.U(self.V(x))


@torch.no_grad()
def start(features: RandomFeatures, W: Tensor, b: Tensor | None) -> Tensor:
    """ψ(W, b); without b where the features have no place for it."""
    return features.psi(W, b if features.bias else None)


def check_positive(name: str, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")


def check_linear(linear: nn.Module) -> None:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
