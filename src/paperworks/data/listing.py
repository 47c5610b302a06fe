"""What lies in a user's folder or table, found out without decoding a picture or parsing numbers.

Nothing here imports torch or pandas: `Accepts` looks before any work begins.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paperworks.data.names import parse
from paperworks.study.errors import UserError, unknown

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that count as pictures."""

GREY_MODES = ("1", "L", "LA")
"""What Pillow calls pictures of one channel."""

PART_OF = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Which part a folder, or a split on the hub, of this name is."""


@dataclass(frozen=True)
class Pictures:
    """The pictures in a folder.

    Args:
        files: all of them; a picture's id is its place here.
        parts: how many of them, in this order, belong to each part; only "train" where the folder
            makes no difference.
        labels: the class number of each file; None where there are no class folders.
        classes: names of the class folders, sorted.
    """

    files: list[Path]
    parts: dict[str, int]
    labels: list[int] | None
    classes: list[str]


def list_pictures(folder: Path) -> Pictures:
    """Find the pictures of a folder, their parts and their classes.

    The folder holds one sub-folder of pictures for each class; or pictures without classes; or
    folders `train`, and perhaps `val` and `test`, that each hold either.

    Raises:
        UserError: there is no such folder, no picture in it, a class folder without pictures,
            pictures beside class folders, or a class that the training part lacks.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    roots = {PART_OF.get(sub.name.lower(), ""): sub for sub in _folders(folder)}
    if "train" not in roots or "" in roots:
        roots = {"train": folder}
    by_part = {part: _by_class(roots[part]) for part in ("train", "val", "test") if part in roots}
    classes = sorted(by_part["train"])
    for part, by_class in by_part.items():
        if by_class.keys() - set(classes):
            missing = sorted(by_class.keys() - set(classes))[0] or "pictures without a class"
            raise UserError(f"{roots[part]} has {missing}, the training part has not")
    found = [
        (file, classes.index(name))
        for by_class in by_part.values()
        for name, files in sorted(by_class.items())
        for file in files
    ]
    return Pictures(
        files=[file for file, _ in found],
        parts={part: sum(map(len, by_class.values())) for part, by_class in by_part.items()},
        labels=None if classes == [""] else [label for _, label in found],
        classes=[] if classes == [""] else classes,
    )


def channels_of(file: Path) -> int:
    """1 for a black-and-white or grey picture, else 3; reads its header only.

    Raises:
        UserError: the file is no picture.
    """
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return 1 if picture.mode in GREY_MODES else 3
    except Exception as error:  # decoders raise what they like on damaged files
        raise unreadable(file, error) from error


def unreadable(file: object, error: Exception) -> UserError:
    """The error for a picture that cannot be decoded."""
    return UserError(f"cannot read the picture {file}: {error}")


@dataclass(frozen=True)
class Target:
    """The target column of a table.

    Args:
        column: its name.
        classes: the distinct values in order; None when the column is a quantity.
    """

    column: str
    classes: list[str] | None


def find_target(file: Path, column: str | None) -> Target:
    """Find the target column of a CSV file with a header, the last one by default.

    Raises:
        UserError: there is no such file or column, or no row.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines)
            header = next(rows, [])
            column = column or (header[-1] if header else "")
            if column not in header:
                raise unknown(f"column of {file.name}", column, header)
            place = header.index(column)
            values = set()
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise UserError(
                        f"{file}, line {rows.line_num}: {len(row)} cells under a header of "
                        f"{len(header)}"
                    )
                values.add(row[place])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {file} as a CSV file: {error}") from error
    if not values or "" in values:
        which = "has rows without" if values else "has no row with"
        raise UserError(f"{file} {which} a value of the target {column!r}")
    return Target(column, _classes(values))


def digest(name: str) -> str:
    """What identifies the content of a data set; see `Accepts.digest`."""
    if ":" not in name:
        return ""
    source = parse(name)
    if source.scheme == "hub":
        return f"{source.place}@{source.revision or 'main'}"
    if source.scheme == "file":
        find_target(source.path, source.options.get("target"))
        return _sha256([source.path], source.path.parent)
    return _sha256(list_pictures(source.path).files, source.path)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """Pictures by the name of their class folder; "" for pictures without one."""
    loose = _pictures(folder)
    by_class = {sub.name: _pictures(sub) for sub in _folders(folder)}
    if loose and by_class:
        raise UserError(f"{folder} holds both pictures and folders ({', '.join(by_class)})")
    for name, files in by_class.items():
        if not files:
            raise UserError(f"the class folder {folder / name} holds no picture")
    if not loose and not by_class:
        raise UserError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    return by_class or {"": loose}


def _classes(values: Iterable[str]) -> list[str] | None:
    """Words and whole numbers are classes; with a decimal point or exponent it is a quantity."""
    values = sorted(values)
    if _all_parse(values, int):
        return sorted(values, key=int)
    return None if _all_parse(values, float) else values


def _all_parse(values: Iterable[str], number: Callable[[str], object]) -> bool:
    try:
        return all(number(value) is not None for value in values)
    except ValueError:
        return False


def _sha256(files: Sequence[Path], root: Path) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(file.relative_to(root).as_posix().encode() + b"\0")
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()
