"""Pictures: handwritten digits, and whatever lies in a user's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from paperworks.data.datasets import DataSet, MapSplit, Split
from paperworks.data.listing import channels_of, list_pictures, unreadable
from paperworks.data.names import BUNDLED, Source
from paperworks.data.parts import Cut

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 32
"""Side of a decoded picture unless the name says `?size=`."""


def load_digits(source: Source, cut: Cut, scale: str) -> DataSet:
    """1797 handwritten digits of 8 x 8 pixels, in [0, 1] or (`scale="raw"`) from 0 to 16."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1)
    x = x if scale == "raw" else x / 16
    y = torch.from_numpy(bunch.target).to(torch.int64)
    parts = cut({"train": len(x)}, y)
    classes = [str(name) for name in bunch.target_names]
    licence = BUNDLED["digits"].licence
    return DataSet.from_whole("digits", "image", Split(x, y), parts, classes, licence)


def load_folder(source: Source, cut: Cut, scale: str) -> DataSet:
    """`folder:PATH`: pictures by class folder, each decoded when it is asked for.

    Options: `?size=` the side of the decoded square, 32 by default; `?channels=` 1 or 3, by
    default what the first picture has.
    """
    size = source.number("size") or SIZE
    channels = source.number("channels", valid=(1, 3))
    found = list_pictures(source.path)
    channels = channels or channels_of(found.files[0])
    decode = partial(_decode_file, found.files, size, channels, scale)
    y = None if found.labels is None else torch.tensor(found.labels)
    whole = MapSplit(decode, torch.arange(len(found.files)), y)
    return DataSet.from_whole(source.name, "image", whole, cut(found.parts, y), found.classes)


def to_tensor(picture: Image, size: int, channels: int, scale: str) -> Tensor:
    """A picture turned upright, cropped to its central square and resized.

    Args:
        picture: with 8 bits a channel.
        size: side of the result in pixels.
        channels: 1 (luma) or 3.
        scale: "unit" for values in [0, 1], "raw" for 0 to 255.

    Returns:
        float32 tensor (channels, size, size).

    Raises:
        ValueError: the picture has more than 8 bits a channel; clipping them would ruin it.

    >>> from PIL import Image
    >>> to_tensor(Image.new("RGB", (40, 20), "white"), 2, 1, "unit")
    tensor([[[1., 1.],
             [1., 1.]]])
    """
    from PIL import Image, ImageOps

    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"mode {picture.mode} has more than 8 bits a channel, convert it first")
    upright = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(square)).reshape(size, size, channels)
    values = values.permute(2, 0, 1).to(torch.float32).contiguous()
    return values if scale == "raw" else values / 255


def _decode_file(files: list[Path], size: int, channels: int, scale: str, position: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(files[position]) as picture:
            return to_tensor(picture, size, channels, scale)
    except Exception as error:  # decoders raise what they like on damaged files
        raise unreadable(files[position], error) from error
