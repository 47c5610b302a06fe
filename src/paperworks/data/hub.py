"""Data sets from the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paperworks.data.datasets import DataSet, MapSplit, TextSplit
from paperworks.data.images import SIZE, to_tensor
from paperworks.data.listing import GREY_MODES, PART_OF, unreadable
from paperworks.data.names import Source, require
from paperworks.data.parts import PARTS, Cut
from paperworks.study.errors import UserError, unknown

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from PIL.Image import Image

logger = logging.getLogger(__name__)


def load_hub(source: Source, cut: Cut, scale: str) -> DataSet:
    """`hub:OWNER/NAME`, with `@REVISION`: pictures or texts through Hugging Face `datasets`.

    Options: `?config=` the configuration; `&label=` the column of classes, by default the class
    column with most classes; for pictures `&size=` and `&channels=` as for a folder. Gated data
    need `hf auth login`. Only data files are read, no code from the hub is run.

    Raises:
        UserError: the extra is missing, the data cannot be had (no network, no such name, no
            access), or they hold neither pictures nor texts.
    """
    require("datasets", "hub", what=source.name)
    import datasets

    logger.info("%s: downloading from the Hugging Face hub, unless it is cached", source.name)
    try:
        splits = datasets.load_dataset(
            source.place, source.options.get("config"), revision=source.revision or None
        )
    except Exception as error:  # network, name, access and format all fail in their own ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{source.name} cannot be had from the hub: {reason[0]}") from error
    return from_splits(source, splits, cut, scale)


def from_splits(source: Source, splits: Mapping[str, Dataset], cut: Cut, scale: str) -> DataSet:
    """A data set from what `datasets.load_dataset` returns.

    A split whose labels are hidden (all -1) is left out; where no test split is left, the
    validation split takes its place, as is usual for ImageNet.
    """
    import datasets

    by_part = {PART_OF[name]: split for name, split in splits.items() if name in PART_OF}
    if "train" not in by_part:
        raise UserError(f"{source.name} has no training split, only {', '.join(splits)}")
    features = by_part["train"].features
    label = _label_column(source, features)
    content, is_image = _content_column(source, features)
    if label is not None:
        by_part = {p: split for p, split in by_part.items() if _labels(split, label).max() >= 0}
    if "val" in by_part and "test" not in by_part:
        by_part["test"] = by_part.pop("val")
    columns = [content] if label is None else [content, label]
    by_part = {p: by_part[p].select_columns(columns) for p in PARTS if p in by_part}
    rows = datasets.concatenate_datasets(list(by_part.values()))
    y = None if label is None else _labels(rows, label)
    parts = cut({part: len(split) for part, split in by_part.items()}, y)
    classes = _classes(features, label, y)
    licence = by_part["train"].info.license or "unknown"
    whole: MapSplit | TextSplit
    if is_image:
        whole = MapSplit(_decoder(source, rows, content, scale), torch.arange(len(rows)), y)
    else:
        whole = TextSplit(rows[content][:], torch.arange(len(rows)), y)
        parts = [ids.sort().values for ids in parts]  # lines of a text stay in order
    kind = "image" if is_image else "text"
    return DataSet.from_whole(source.name, kind, whole, parts, classes, licence)


def _label_column(source: Source, features: Features) -> str | None:
    """The column asked for, or the class column with most classes, or the integers in `label`."""
    import datasets

    by_name = {
        name: feature.num_classes
        for name, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    integers = [name for name, f in features.items() if "int" in str(getattr(f, "dtype", ""))]
    wanted = source.options.get("label")
    if wanted is not None:
        if wanted not in integers:
            raise unknown(f"class column of {source.place}", wanted, integers)
        return wanted
    if by_name:
        return max(by_name, key=lambda name: by_name[name])
    return "label" if "label" in integers else None


def _content_column(source: Source, features: Features) -> tuple[str, bool]:
    """The first column of pictures, else `text` or the first column of strings."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    strings = [name for name, f in features.items() if getattr(f, "dtype", "") == "string"]
    if images:
        return images[0], True
    if strings:
        return "text" if "text" in strings else strings[0], False
    raise UserError(f"{source.name} has no column of pictures or texts, only {', '.join(features)}")


def _labels(rows: Dataset, label: str) -> Tensor:
    return torch.from_numpy(rows.with_format("numpy")[label][:]).to(torch.int64)


def _classes(features: Features, label: str | None, y: Tensor | None) -> list[str]:
    if label is None or y is None:
        return []
    names = getattr(features[label], "names", None)
    return names or [str(number) for number in range(int(y.max()) + 1)]


def _decoder(source: Source, rows: Dataset, content: str, scale: str) -> Callable[[int], Tensor]:
    channels = source.number("channels", valid=(1, 3))
    if channels is None:
        channels = 1 if _picture(source, rows, content, 0).mode in GREY_MODES else 3
    size = source.number("size") or SIZE
    return partial(_decode_row, source, rows, content, size, channels, scale)


def _picture(source: Source, rows: Dataset, content: str, position: int) -> Image:
    try:
        return rows[position][content]
    except Exception as error:  # decoders raise what they like on damaged files
        raise unreadable(f"{position} of {source.name}", error) from error


def _decode_row(
    source: Source,
    rows: Dataset,
    content: str,
    size: int,
    channels: int,
    scale: str,
    position: int,
) -> Tensor:
    picture = _picture(source, rows, content, position)
    try:
        return to_tensor(picture, size, channels, scale)
    except ValueError as error:
        raise unreadable(f"{position} of {source.name}", error) from error
