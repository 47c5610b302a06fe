"""Random changes of a batch, of pictures above all, drawn from a generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def noise(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add independent normal noise to every number; nothing is clipped.

    Args:
        x: floating-point numbers of any shape, on any device.
        std: standard deviation, in the units of x; 0 changes nothing.
        generator: a source of random numbers, on any device.

    Raises:
        ValueError: x is of whole numbers, or std is negative.

    >>> noise(torch.zeros(3), 0.1, torch.Generator().manual_seed(0))
    tensor([ 0.1541, -0.0293, -0.2179])
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be floating-point, got {x.dtype}")
    if not std >= 0:
        raise ValueError(f"std must be >= 0, got {std!r}")
    drawn = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return x + std * drawn.to(x.device)


def crop_flip(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Move each picture by up to `padding` pixels, and mirror half of them left to right.

    The usual augmentation of small pictures: a random crop of the picture padded with zeros is a
    `shift`.

    Args:
        x: pictures, shape (N, C, H, W).
        padding: the largest offset in pixels.
        generator: a source of random numbers, on any device.

    Raises:
        ValueError: see `shift`.

    >>> crop_flip(torch.rand(5, 3, 8, 8), 1, torch.Generator()).shape
    torch.Size([5, 3, 8, 8])
    """
    x = shift(x, padding, generator)
    drawn = torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device)
    return torch.where(drawn.to(x.device) < 0.5, x.flip(-1), x)


def shift(x: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Move each picture by whole pixels, at most `max_shift` up or down and left or right.

    Both offsets are uniform on {-max_shift, ..., max_shift}, independent and drawn for each
    picture. What moves in from outside is zero.

    Args:
        x: pictures, shape (N, C, H, W).
        max_shift: the largest offset in pixels; 0 changes nothing.
        generator: a source of random numbers, on any device.

    Raises:
        ValueError: x has not four dimensions, or max_shift is not an integer >= 0.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> shift(x, 1, torch.Generator().manual_seed(4))[0, 0]
    tensor([[0., 0., 1.],
            [0., 3., 4.],
            [0., 6., 7.]])
    """
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if isinstance(max_shift, bool) or not isinstance(max_shift, int) or max_shift < 0:
        raise ValueError(f"max_shift must be an integer >= 0, got {max_shift!r}")
    n, _, height, width = x.shape
    offsets = torch.randint(
        2 * max_shift + 1, (2, n), generator=generator, device=generator.device
    ).to(x.device)
    # windows[i, :, a, b] is picture i seen through a window moved by (a, b): a view, not a copy
    windows = F.pad(x, [max_shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=x.device), :, offsets[0], offsets[1]]
