"""A study's figures for a page: drawn from the evidence, put into words, with their numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from paperworks.study.contract import Study
from paperworks.study.figures import CROWD, Figure, Series, label, said

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from pandas import DataFrame

WIDTH = 1200
"""Pixels: sharp at twice the width that a page shows. With few colours a picture is some 25 kB,
a quarter of what the same hatches take as SVG."""
MANY = 16
"""So many numbers of a figure are read out; of more, the ends of each line."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it.

    Attributes:
        name: the figure's name in its study.
        title: what is drawn, in a few words.
        alt: what is compared and the gist of the numbers, for those who do not see it.
        png, size: the file, and its pixels; empty when it could not be drawn.
        header, rows: the numbers as a table; empty for a figure of a study's own making.
        error: why it could not be drawn.
    """

    name: str
    title: str
    alt: str = ""
    png: bytes = b""
    size: tuple[int, int] = (0, 0)
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    error: str = ""


def pictures(study: Study, evidence: Mapping[str, Any]) -> list[Picture]:
    """The study's figures of which the evidence has trials.

    A figure that cannot be drawn says why on the page, and the others are there.
    """
    frame = frame_of(evidence)
    ran = set(frame["experiment"])
    wanted = [figure for figure in study.figures if figure.experiment in {None, *ran}]
    found = []
    for figure in wanted:
        try:
            found.append(_picture(figure, frame))
        except Exception as error:  # a third party's code draws here
            reason = f"{type(error).__name__}: {error}"
            found.append(Picture(figure.name, label(figure.name), error=reason))
    return found


def frame_of(evidence: Mapping[str, Any]) -> DataFrame:
    """A row a trial: experiment, seed, every setting key, every metric."""
    import pandas as pd

    return pd.DataFrame(
        {
            "experiment": entry["experiment"],
            "seed": seed,
            **entry["cell"],
            **{name: values[i] for name, values in entry["metrics"].items()},
        }
        for entry in evidence["cells"]
        for i, seed in enumerate(evidence["seeds"])
    )


def _picture(figure: Figure, frame: DataFrame) -> Picture:
    png, size = _png(figure.draw(frame))
    words: Any = figure
    if not hasattr(figure, "numbers"):
        title = label(figure.name)
        return Picture(figure.name, title, f"{title}, drawn by the study", png, size)
    numbers, x = words.numbers(frame), label(words.x)
    title = f"{label(words.y)} by {x if len(x) == 1 else x.lower()}"
    title = f"{words.title}: {title}" if words.title else title
    kind = {"lines": "Line chart", "bars": "Bar chart"}.get(type(figure).__name__, "Chart")
    table = [[x, *(name or label(words.y) for name in numbers)], *_rows(numbers)]
    if len(table[0]) > len(table):  # long rather than wide, for a phone
        table = [list(column) for column in zip(*table)]
    apart = f", for each {words.by.replace('_', ' ')}" if words.by else ""
    return Picture(
        figure.name,
        title,
        alt=f"{kind}. {title}{apart}; {words.note(frame)}. {_gist(words.x, numbers)}.",
        png=png,
        size=size,
        header=table[0],
        rows=table[1:],
    )


def _png(canvas: Canvas) -> tuple[bytes, tuple[int, int]]:
    drawn, file = io.BytesIO(), io.BytesIO()
    canvas.savefig(drawn, format="png", dpi=WIDTH / canvas.get_figwidth())
    image = Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE)
    image.save(file, "PNG", optimize=True)
    return file.getvalue(), image.size


def _gist(x: str, series: Series) -> str:
    """The numbers in words.

    >>> import pandas as pd
    >>> points = pd.DataFrame({"mean": [0.25, 0.5]}, index=[2, 4])
    >>> _gist("bits", {"rtn": points})
    'rtn: 0.25 at bits 2, 0.5 at bits 4'
    """
    brief = sum(map(len, series.values())) > MANY
    said_lines = []
    for name, points in series.items():
        ends = points.iloc[[0, -1]] if brief and len(points) > 2 else points
        at = "" if isinstance(ends.index[0], str) else f"{x.replace('_', ' ')} "
        values = [f"{mean:.3g} at {at}{said(level)}" for level, mean in ends["mean"].items()]
        said_lines.append(f"{name}: " * bool(name) + ", ".join(values))
    return "; ".join(said_lines)


def _rows(series: Series) -> Iterator[list[str]]:
    """A row a level of x, of long curves every few: the mean and its interval in each series."""
    levels = list(dict.fromkeys(level for points in series.values() for level in points.index))
    for level in levels[:: -(-len(levels) // CROWD) or 1]:
        yield [said(level), *(_cell(points, level) for points in series.values())]


def _cell(points: DataFrame, level: Any) -> str:
    if level not in points.index:
        return "–"
    mean, low, high = points.loc[level, ["mean", "low", "high"]]
    return f"{mean:.3g}" if low == high else f"{mean:.3g} [{low:.3g}, {high:.3g}]"
