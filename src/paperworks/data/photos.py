"""Natural pictures, whole and in patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paperworks.data.datasets import DataSet, Split
from paperworks.data.names import BUNDLED, Source
from paperworks.data.parts import Cut

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def load_photos(source: Source, cut: Cut, scale: str) -> DataSet:
    """scikit-learn's two pictures of 427 x 640 pixels, a temple and a flower, unlabelled."""
    x = _photos()
    x = x * 255 if scale == "raw" else x
    parts = cut({"train": len(x)})
    licence = BUNDLED["photos"].licence
    return DataSet.from_whole("photos", "image", Split(x), parts, licence=licence)


def photo_patches(
    n: int,
    size: int,
    channels: int = 3,
    photos: Sequence[Tensor] | Tensor | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Square patches of natural pictures, cut out at random places.

    Each patch takes a picture and, in it, a place, both uniform. A stand-in for natural images
    where none may be downloaded, and for inputs that are nothing like digits.

    Args:
        n: number of patches.
        size: side of a patch in pixels.
        channels: 3, or 1 for the luma of pictures in colour.
        photos: pictures (C, H, W), C of 1 or 3, in the units that the patches shall have;
            scikit-learn's two in [0, 1] by default.
        generator: a source of random numbers.

    Returns:
        tensor (n, channels, size, size).

    Raises:
        ValueError: n or size is not positive, channels is not 1 or 3, a picture is smaller than a
            patch or has other channels.

    >>> photo_patches(5, 8, 1, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 1, 8, 8])
    """
    for name, count in (("n", n), ("size", size)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    photos = list(_photos() if photos is None else photos)
    if not photos:
        raise ValueError("photos is empty")
    photos = [_with_channels(photo, channels, size) for photo in photos]
    which = torch.randint(len(photos), (n,), generator=generator)
    place = torch.rand(2, n, generator=generator, dtype=torch.float64)
    patches = photos[0].new_empty(n, channels, size, size)
    for index, photo in enumerate(photos):
        mine = which == index
        # every patch of the picture, as a view: (C, H - size + 1, W - size + 1, size, size)
        windows = photo.unfold(1, size, 1).unfold(2, size, 1)
        top = (place[0, mine] * windows.shape[1]).long()
        left = (place[1, mine] * windows.shape[2]).long()
        patches[mine] = windows[:, top, left].transpose(0, 1)
    return patches


def _photos() -> Tensor:
    from sklearn.datasets import load_sample_images

    pictures = torch.from_numpy(np.stack(load_sample_images().images))
    return pictures.permute(0, 3, 1, 2).to(torch.float32) / 255


def _with_channels(photo: Tensor, channels: int, size: int) -> Tensor:
    if photo.dim() != 3 or photo.shape[0] not in (channels, 3) or min(photo.shape[1:]) < size:
        raise ValueError(
            f"a photo must have shape (C, H, W), C of {channels} or 3, H and W of at least {size}, "
            f"got {tuple(photo.shape)}"
        )
    if photo.shape[0] == channels:
        return photo
    return torch.einsum("c,chw->hw", photo.new_tensor(LUMA), photo).unsqueeze(0)
