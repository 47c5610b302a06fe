"""The layer between two networks, and the least-squares fit that it starts from."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StitchLayer(nn.Module):
    """A linear map with bias of every token or pixel from one network's width to another's.

        `y = W x + b`,  W (out_dim, in_dim)

    It starts at random, like `nn.Linear`; `fit_stitch` gives a far better start.

    Args:
        in_dim: width of the network before it.
        out_dim: width of the network behind it.
        channels_last: whether the last dimension is the one that is mapped, as for tokens; else the
            second, as for maps, where this is a convolution with a kernel of 1.
        generator: draws W and b; torch's default generator if None.

    Shapes: (..., in_dim) to (..., out_dim); with `channels_last=False` (N, in_dim, ...) to
    (N, out_dim, ...).

    Raises:
        ValueError: a width is no positive integer.

    Source: arXiv 2302.06586, section 3.2.

    >>> StitchLayer(192, 384)(torch.randn(2, 197, 192)).shape
    torch.Size([2, 197, 384])
    >>> StitchLayer(16, 32, channels_last=False)(torch.randn(2, 16, 7, 7)).shape
    torch.Size([2, 32, 7, 7])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        channels_last: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, dim in (("in_dim", in_dim), ("out_dim", out_dim)):
            if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
                raise ValueError(f"{name} must be a positive integer, got {dim!r}")
        super().__init__()
        self.channels_last = channels_last
        bound = 1 / math.sqrt(in_dim)  # nn.Linear's, for weight and bias alike
        self.weight = nn.Parameter(
            torch.empty(out_dim, in_dim).uniform_(-bound, bound, generator=generator)
        )
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, **context: Any) -> Tensor:
        """`context` is what other blocks are told beside x, an attention mask say: not used."""
        if self.channels_last:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)

    def extra_repr(self) -> str:
        out_dim, in_dim = self.weight.shape
        return f"in_dim={in_dim}, out_dim={out_dim}, channels_last={self.channels_last}"


@torch.no_grad()
def fit_stitch(x: Tensor, y: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    """The linear map with bias that takes one network's features nearest to another's.

        `[W b]ᵀ = pinv([X 1]) Y`,  the least ‖X Wᵀ + b − Y‖² (+ ridge ‖W‖²), of those the smallest

    It is found from `[X 1]ᵀ[X 1]` in double precision, so that its cost grows with the rows no
    faster than reading them does.

    Args:
        x: features of the source, a token or pixel a row, shape (N, Din).
        y: what the target should be fed, shape (N, Dout).
        ridge: weight of ‖W‖², 0 or more; the bias is not shrunk.

    Returns:
        W of shape (Dout, Din) and b of shape (Dout,), as `nn.Linear` keeps them, in x's dtype.

    Raises:
        ValueError: x and y are no matrices with equally many rows, hold something that is not
            finite, or there are no rows; ridge is negative.

    Warns:
        UserWarning: fewer rows than Din + 1 unknowns without ridge: then the fit is exact on these
            rows and says little about others.

    Source: arXiv 2302.06586, section 3.2; `ridge` is ours.

    >>> x = torch.randn(50, 3)
    >>> W, b = fit_stitch(x, x @ torch.diag(torch.tensor([1.0, 2.0, 3.0])) + 5)
    >>> W.round(decimals=3).diag(), b.round(decimals=3)
    (tensor([1., 2., 3.]), tensor([5., 5., 5.]))
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not len(x):
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must have shapes (N, Din) and (N, Dout) with N >= 1, got {got}")
    if not ridge >= 0:
        raise ValueError(f"ridge must be 0 or more, got {ridge!r}")
    for name, features in (("x", x), ("y", y)):
        if not features.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    n, unknowns = len(x), x.shape[1] + 1
    if n < unknowns and not ridge:
        warnings.warn(
            f"{n} rows for {unknowns} unknowns: the stitch fits them exactly and others badly, "
            "use more inputs or a ridge",
            stacklevel=2,
        )
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # which has no float64
    X = torch.cat([x.to(wide), x.new_ones(n, 1, dtype=wide)], dim=1)
    gram = X.T @ X
    gram.diagonal()[:-1] += ridge
    solution = torch.linalg.pinv(gram, hermitian=True) @ (X.T @ y.to(wide))
    return solution[:-1].T.to(x.dtype), solution[-1].to(x.dtype)
