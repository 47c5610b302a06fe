"""`load`: the one way in to the data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from paperworks.data.datasets import DataSet
from paperworks.data.hub import load_hub
from paperworks.data.images import load_digits, load_folder
from paperworks.data.names import BUNDLED, SCHEMES, parse, require
from paperworks.data.parts import cut
from paperworks.data.photos import load_photos
from paperworks.data.stdlib import load_graph, load_text
from paperworks.data.tables import load_file, load_table

_LOADERS: dict[str, Callable[..., DataSet]] = {
    "digits": load_digits,
    "photos": load_photos,
    "diabetes": load_table,
    "wine": load_table,
    "iris": load_table,
    "breast_cancer": load_table,
    "stdlib-text": load_text,
    "stdlib-graph": load_graph,
    "folder": load_folder,
    "file": load_file,
    "hub": load_hub,
}

_SCALES: dict[str, tuple[str, ...]] = {
    "image": ("unit", "raw"),
    "table": ("raw", "standard"),
    "text": (),
    "graph": (),
}
"""Scales of each kind of data, the default first."""


def load(
    name: str,
    *,
    sizes: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    scale: str | None = None,
) -> DataSet:
    """A data set by its name, cut into a training, a validation and a test part.

    | name | what it is |
    |---|---|
    | `digits` | 1797 pictures (1, 8, 8) of handwritten digits |
    | `photos` | two pictures (3, 427, 640), unlabelled; see `photo_patches` |
    | `diabetes` | 442 rows of 10 columns, a real target |
    | `wine`, `iris`, `breast_cancer` | 178 x 13, 150 x 4, 569 x 30; 3, 3, 2 classes |
    | `stdlib-text` | docstrings of the standard library, cut by file |
    | `stdlib-graph` | who imports whom there; needs the extra `graphs` |
    | `folder:PATH?size=32&channels=3` | pictures in class folders, or in `train`, `val`, `test` |
    | `file:TABLE.csv?target=COLUMN` | numbers with a header, the target last by default |
    | `hub:OWNER/NAME@REVISION?config=...` | pictures or text; needs the extra `hub` |

    All but `photos` and the texts are labelled; a folder may be either. What is small is a `Split`
    in memory, folders and the hub give a `MapSplit`, texts a `TextSplit`, a graph PyTorch
    Geometric's `Data`.

    Args:
        name: a name of the table.
        sizes: for training, validation and test three counts (integers; of files for
            `stdlib-text`), or three shares (floats). A part that the source brings is drawn from
            there, a part that it lacks from its training part. By default everything: 10 % goes to
            validation and 20 % to test where the source lacks them. A part of size 0 is None.
        generator: draws the parts, stratified by class; without one the same parts every time.
        scale: for pictures "unit" (values in [0, 1], the default) or "raw" (0 to 16 for digits,
            to 255 for others); for tables "raw" (the default) or "standard" (mean 0 and deviation
            1 of each column over the training rows).

    Raises:
        UserError: there is no such name, folder, file or column, a picture or cell cannot be read,
            an extra is missing, or the hub cannot be reached.
        ValueError: sizes or scale make no sense for these data.

    >>> digits = load("digits", sizes=(1000, 200, 500))
    >>> digits.train.x.shape, len(digits.test)
    (torch.Size([1000, 1, 8, 8]), 500)
    """
    source = parse(name)
    if source.scheme:
        kind = SCHEMES[source.scheme][1][0]
    else:
        kind = BUNDLED[name].kind
        for module, extra in BUNDLED[name].requires:
            require(module, extra, what=name)
    scales = _SCALES[kind]
    if scale is not None and scale not in scales:
        raise ValueError(f"scale of {name} must be one of {scales}, got {scale!r}")
    loader = _LOADERS[source.scheme or name]
    return loader(
        source, partial(cut, sizes=sizes, generator=generator), scale or next(iter(scales), "")
    )
