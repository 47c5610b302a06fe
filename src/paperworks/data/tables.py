"""Tables of numbers: scikit-learn's, and a user's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperworks.data.datasets import DataSet, Split
from paperworks.data.listing import find_target
from paperworks.data.names import BUNDLED, Source
from paperworks.data.parts import Cut
from paperworks.study.errors import UserError


def load_table(source: Source, cut: Cut, scale: str) -> DataSet:
    """One of scikit-learn's tables: classes, or (diabetes) a real target."""
    from sklearn import datasets

    name = source.place
    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**options)
    classes = [str(label) for label in bunch.get("target_names", ())]
    y = torch.from_numpy(bunch.target).to(torch.int64 if classes else torch.float32)
    x = torch.from_numpy(bunch.data).to(torch.float32)
    return _table(source, x, y, classes, BUNDLED[name].licence, cut, scale)


def load_file(source: Source, cut: Cut, scale: str) -> DataSet:
    """`file:TABLE.csv`: a header, then a sample a row, all columns numbers.

    The target is the last column or `?target=COLUMN`. Words and whole numbers in it are classes;
    with decimal points or exponents it is a quantity.

    Raises:
        UserError: the file cannot be read, or a cell is empty or no finite number.
    """
    target = find_target(source.path, source.options.get("target"))
    try:
        frame = pd.read_csv(
            source.path,
            dtype={target.column: str},
            keep_default_na=False,
            encoding="utf-8-sig",  # spreadsheets begin their exports with a mark
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {source.path} as a CSV file: {error}") from error
    answers = frame.pop(target.column)
    if not frame.shape[1]:
        raise UserError(f"{source.path} has no column beside the target {target.column!r}")
    x = _numbers(frame, source)
    if target.classes is None:
        y = _numbers(answers.to_frame(), source).squeeze(1)
    else:
        y = torch.tensor(pd.Index(target.classes).get_indexer(pd.Index(answers)))
    return _table(source, x, y, target.classes or [], "unknown", cut, scale)


def _table(
    source: Source, x: Tensor, y: Tensor, classes: list[str], licence: str, cut: Cut, scale: str
) -> DataSet:
    """Cut into parts; "standard" scales by mean and deviation of the training rows only."""
    parts = cut({"train": len(x)}, y)
    if scale == "standard":
        rows = x[parts[0]]
        deviation = rows.std(0, correction=0)
        x = (x - rows.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    return DataSet.from_whole(source.name, "table", Split(x, y), parts, classes, licence)


def _numbers(frame: pd.DataFrame, source: Source) -> Tensor:
    numbers = frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{source.path}, column {frame.columns[column]!r}, sample {row + 1}: "
            f"{frame.iat[row, column]!r} is not a finite number"
        )
    return torch.tensor(numbers, dtype=torch.float32)
