"""Figures of a study, drawn from the frame of its trials: means with 95 % intervals over seeds.

Colours are Okabe and Ito's; markers, line styles and hatches say the same without colour.
matplotlib and pandas are imported when something is drawn, and no global state of theirs is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paperworks.study import statistics
from paperworks.study.contract import Experiment
from paperworks.study.errors import unknown
from paperworks.study.terms import in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from pandas import DataFrame

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")
UNITS = {"seconds": "s", "ms": "ms", "bytes": "bytes", "nats": "nats"}
ABBREVIATIONS = {"mse", "rmse", "mae", "auc", "kl", "ndcg", "mrr"}
CROWD = 12
"""So many points of a line get bars for their intervals; more get a band."""
LEGEND = 44
"""So many characters stand side by side in a legend of readable size."""

Series = Mapping[str, "DataFrame"]
"""For each line, a frame by level of x with the columns mean, low and high."""


class Figure(Protocol):
    """Something with a name that draws itself from the frame of a study's trials.

    The frame has a row a trial: `experiment`, `seed`, every setting key, every metric.
    """

    name: str
    experiment: str | None

    def draw(self, frame: DataFrame) -> Canvas:
        """The figure, made without pyplot."""


class drawn:
    """A figure that `function(frame)` makes, as a `matplotlib.figure.Figure` without pyplot."""

    def __init__(self, function: Callable[[DataFrame], Canvas], name: str | None = None) -> None:
        self.draw, self.name = function, name or function.__name__
        self.experiment: str | None = None


class _Plot:
    """Axes, legend and the numbers; `lines` and `bars` put the numbers onto the axes."""

    logx = logy = False

    def __init__(
        self,
        *,
        x: str,
        y: str,
        by: str | None = "method",
        experiment: Experiment | str | None = None,
        where: Mapping[str, Any] | None = None,
        title: str | None = None,
        name: str | None = None,
    ) -> None:
        self.x, self.y, self.by, self.where, self.title = x, y, by, dict(where or {}), title
        self.experiment = experiment.name if isinstance(experiment, Experiment) else experiment
        self.name = name or f"{y}_by_{x}"

    def draw(self, frame: DataFrame) -> Canvas:
        """The figure: 700 pixels that can still be read on the 330 of a phone.

        Raises:
            UserError: the frame has no such metric or setting; it names those that there are.
        """
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(5, 3.6), dpi=140, layout="constrained")
        axes = canvas.add_subplot(xlabel=label(self.x), ylabel=label(self.y))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        rows = self._rows(frame)
        if rows.empty:
            axes.text(0.5, 0.5, "not run at this scale", transform=axes.transAxes, ha="center")
            return canvas
        logs = self._logs(rows)
        axes.set_yscale("log" if logs else "linear")
        self._onto(axes, self._series(rows, logs), in_order(dict.fromkeys(rows[self.x])))
        self._caption(canvas, axes, self.note(frame))
        return canvas

    def numbers(self, frame: DataFrame) -> Series:
        """What is drawn, as numbers; empty where nothing was run.

        Raises:
            UserError: as `draw`.
        """
        rows = self._rows(frame)
        return {} if rows.empty else self._series(rows, self._logs(rows))

    def note(self, frame: DataFrame) -> str:
        """What was averaged over what."""
        rows = self._rows(frame)
        seeds = rows["seed"].nunique()
        note = "one seed" if seeds == 1 else f"mean and 95 % interval over {seeds} seeds"
        note = "geometric " * (self._logs(rows) and seeds > 1) + note
        if rows.duplicated([*filter(None, [self.by]), self.x, "seed"]).any():
            note += ", cells averaged inside each seed"
        return note

    def _logs(self, rows: DataFrame) -> bool:
        return self.logy and bool((rows[self.y] > 0).all())

    def _caption(self, canvas: Canvas, axes: Axes, note: str) -> None:
        """Title and legend above the axes, what was averaged below them."""
        handles, names = axes.get_legend_handles_labels() if self.by else ([], [])
        widest = 5 + max(map(len, names), default=0)
        deep = math.ceil(len(names) / min(4, max(1, LEGEND // widest))) or 1
        canvas.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=math.ceil(len(names) / deep) or 1,
            frameon=False,
            title=self.title,
        )
        canvas.supxlabel(note, fontsize=8, color="0.35")

    def _onto(self, axes: Axes, series: Series, levels: Sequence[Any]) -> None:
        raise NotImplementedError

    def _rows(self, frame: DataFrame) -> DataFrame:
        """The trials that the figure shows; of curves, a row a point."""
        if self.experiment is not None:
            frame = frame[frame["experiment"] == self.experiment]
        for column in (self.y, *filter(None, [self.by]), *self.where):
            self._check(column, frame)
        for key, value in self.where.items():
            frame = frame[frame[key].isin(value if isinstance(value, list) else [value])]
        frame = frame.dropna(subset=[self.y])
        if any(isinstance(value, list) for value in frame[self.y]):
            if self.x not in frame:
                frame = frame.copy()
                frame[self.x] = [list(range(1, len(curve) + 1)) for curve in frame[self.y]]
            frame = frame.explode([self.x, self.y])
        self._check(self.x, frame)
        return frame.dropna(subset=[self.x]).astype({self.y: float})

    def _check(self, column: str, frame: DataFrame) -> None:
        if column not in frame:
            raise unknown(
                f"metric or setting of figure {self.name!r}", column, sorted(map(str, frame))
            )

    def _series(self, rows: DataFrame, logs: bool) -> Series:
        import pandas as pd

        groups = [None] if self.by is None else in_order(dict.fromkeys(rows[self.by].dropna()))
        series = {}
        for group in groups:
            mine = rows if group is None else rows[rows[self.by] == group]
            seeds = mine.groupby([self.x, "seed"], sort=False)[
                self.y
            ].mean()  # other cells: inside each seed
            points = {level: _interval(seeds[level], logs) for level in dict.fromkeys(mine[self.x])}
            order = in_order(points)
            table = [points[level] for level in order]
            name = "" if group is None else said(group)
            name = f"{self.by} = {name}" if self.by not in (None, "method") else name
            series[name] = pd.DataFrame(table, index=order, columns=["mean", "low", "high"])
        return series


class lines(_Plot):
    """A line for each value of `by`: the mean of a metric over seeds, along `x`.

    Args:
        x: a setting key. Where `y` is a curve, a list metric, `x` is another of equal length, or a
            new word under which the curve's points are counted.
        y: the metric. Cells that `x` and `by` do not tell apart are averaged inside each seed.
        by: the setting key that tells lines apart; None draws one line.
        experiment: whose trials; all that have `x` and `y` by default.
        where: which trials: setting keys with a value, or a list of values.
        logx: x on a logarithmic axis.
        logy: y on a logarithmic axis, with geometric means; linear where some y is not positive.
        title: what to write above.
        name: the file's name, `y_by_x` by default.
    """

    def __init__(
        self,
        *,
        x: str,
        y: str,
        by: str | None = "method",
        experiment: Experiment | str | None = None,
        where: Mapping[str, Any] | None = None,
        logx: bool = False,
        logy: bool = False,
        title: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            x=x, y=y, by=by, experiment=experiment, where=where, title=title, name=name
        )
        self.logx, self.logy = logx, logy

    def _onto(self, axes: Axes, series: Series, levels: Sequence[Any]) -> None:
        place = {level: level for level in levels}
        if not all(isinstance(level, int | float) for level in levels):
            place = {level: i for i, level in enumerate(levels)}
        elif self.logx:
            axes.set_xscale("log")
        if len(levels) <= CROWD:
            axes.set_xticks(list(place.values()), _labels(place, axes.get_xscale() == "log"))
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        for i, (name, points) in enumerate(series.items()):
            style = {"color": COLOURS[i % 7], "linestyle": STYLES[i % 5], "label": name}
            x = [place[level] for level in points.index]
            if len(levels) <= CROWD:
                ends = abs(points[["low", "high"]].to_numpy() - points[["mean"]].to_numpy()).T
                axes.errorbar(x, points["mean"], ends, marker=MARKERS[i % 8], capsize=3, **style)
            else:
                axes.fill_between(x, points["low"], points["high"], color=COLOURS[i % 7], alpha=0.2)
                every = max(1, len(x) // 8)
                axes.plot(x, points["mean"], marker=MARKERS[i % 8], markevery=every, **style)


class bars(_Plot):
    """A group of bars for each value of `x`, a bar for each value of `by`.

    The arguments are those of `lines` without the logarithmic axes.
    """

    def _onto(self, axes: Axes, series: Series, levels: Sequence[Any]) -> None:
        width = 0.8 / len(series)
        axes.set_xticks(range(len(levels)), [said(level) for level in levels])
        for i, (name, points) in enumerate(series.items()):
            place = {
                level: j + (i - (len(series) - 1) / 2) * width for j, level in enumerate(levels)
            }
            x = [place.pop(level) for level in points.index]
            for left in place.values():  # undefined there, which no bar would say
                axes.text(left, 0, "n/a", ha="center", va="bottom", fontsize=7)
            ends = abs(points[["low", "high"]].to_numpy() - points[["mean"]].to_numpy()).T
            style: dict[str, Any] = {
                "color": COLOURS[i % 7],
                "hatch": HATCHES[i % 8],
                "edgecolor": "white",
            }
            axes.bar(x, points["mean"], width, label=name, **style)
            axes.errorbar(x, points["mean"], ends, fmt="none", ecolor="white", elinewidth=3.5)
            axes.errorbar(x, points["mean"], ends, fmt="none", ecolor="black", capsize=3)


def label(name: str) -> str:
    """A setting's or metric's name as people write it, the unit in brackets.

    >>> label("logit_error"), label("reconstruct_seconds"), label("n"), label("test_mse")
    ('Logit error', 'Reconstruct (s)', 'n', 'Test MSE')
    """
    if len(name) == 1:
        return name
    *words, last = name.split("_")
    if words and last in UNITS:
        last = f"({UNITS[last]})"
    words = [word.upper() if word in ABBREVIATIONS else word for word in [*words, last]]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def said(level: Any) -> str:
    """A setting's value as people write it; pandas makes floats of whole numbers beside gaps.

    >>> said(3.0), said(50_000), said(1e6), said("same_width")
    ('3', '50k', '1M', 'same width')
    """
    if isinstance(level, str):
        return level.replace("_", " ")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if not isinstance(level, bool) and level >= 10_000 and level % size == 0:
            return f"{level / size:g}{letter}"
    return f"{level:g}" if isinstance(level, float) else str(level)


def _labels(place: Mapping[Any, float], logs: bool) -> list[str]:
    """A label for each tick, left empty where it would run into the one before."""
    at = np.array(list(place.values()), dtype=float)
    at = np.log(at) if logs else at
    labels, free = [], -np.inf
    for level, x in zip(place, (at - at[0]) / (np.ptp(at) or 1.0)):
        text = said(level) if x >= free else ""
        labels.append(text)
        free = x + 0.02 * (len(text) + 1) if text else free
    return labels


def _interval(values: Iterable[float], logs: bool) -> list[float]:
    """Mean, low and high over seeds; no interval of fewer than two."""
    numbers = np.asarray(list(values), dtype=float)
    numbers = np.log(numbers) if logs else numbers
    if len(numbers) < 2:
        ends = [float(numbers.mean())] * 3
    else:
        ends = [float(end) for end in statistics.interval(numbers)]
    return [float(np.exp(end)) for end in ends] if logs else ends
