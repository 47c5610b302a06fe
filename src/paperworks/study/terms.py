"""Terms of claims: metrics of cells and arithmetic on them, computed inside each seed.

A term is built when a study is imported and knows no results: `cells(grids)` says what must run
for it, `values(table, seeds)` reads it off the results.
"""

from __future__ import annotations

import copy
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paperworks.study import statistics
from paperworks.study.contract import SCALES, Experiment, Setting
from paperworks.study.errors import UserError, unknown
from paperworks.study.statistics import Array

Grids = Mapping[str, Sequence[Setting]]
"""The cells of each experiment, by its name, at the scale and with the settings that run."""

Leaf = tuple[str, str, str]
"""Experiment, canonical cell, metric."""

DIGITS = 1e-9
"""Relative spread below which a metric that declares no resolution counts as constant."""


class TermError(UserError, ValueError):
    """A selector that does not say which cells it means."""


class NotMeasured(Exception):
    """A term has no value on these results; the message says where, and why."""


@dataclass(frozen=True)
class Record:
    """One finished trial as claims see it; `metrics` is None when it failed."""

    experiment: str
    cell: Setting
    seed: int
    metrics: Mapping[str, Any] | None
    tuned: Setting = field(default_factory=Setting)


class Table:
    """The trials of one study, all from one environment.

    Raises:
        ValueError: two records of one experiment, cell and seed.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._metrics: dict[tuple[str, str, int], Mapping[str, Any] | None] = {}
        self._read: dict[tuple[Leaf, tuple[int, ...]], Array] = {}
        self._nudge: tuple[Leaf | Reading | None, Array | float] = (None, 0.0)
        for record in records:
            place = (record.experiment, record.cell.canonical(), record.seed)
            if place in self._metrics:
                raise ValueError(f"two records of {place[0]} {place[1]} with seed {place[2]}")
            self._metrics[place] = record.metrics

    def read(self, leaf: Leaf, seeds: Sequence[int]) -> Array:
        """One metric of one cell, a number a seed."""
        place = (leaf, tuple(seeds))
        if place not in self._read:
            self._read[place] = np.array([self._number(leaf, seed) for seed in seeds])
        return self._read[place] + self.nudge(leaf)

    def nudged(self, what: Leaf | Reading, by: Array | float) -> Table:
        """The same trials with a metric of one cell, or a rank statistic, moved a little."""
        table = copy.copy(self)
        table._nudge = (what, by)
        return table

    def nudge(self, what: Leaf | Reading) -> Array | float:
        return self._nudge[1] if self._nudge[0] == what else 0.0

    def _number(self, leaf: Leaf, seed: int) -> float:
        experiment, cell, metric = leaf
        metrics = self._metrics.get((experiment, cell, seed), {})
        if metrics and isinstance(metrics.get(metric), int | float):
            return float(metrics[metric])
        what = "failed" if metrics is None else "has not run" if not metrics else f"has no {metric}"
        raise NotMeasured(f"{experiment} with {_said(json.loads(cell))} {what} (seed {seed})")


@dataclass(frozen=True, eq=False)
class MetricRef:
    """A metric of an experiment's trials: call it with a selector to get the term of one cell.

    `Experiment.metric` makes it and documents the arguments. A selector is a method and setting
    keys; `mean`, `max` and `min` take every cell it matches, and lists as values. Without a method
    they take the experiment's own methods, so that a user's rival changes no claim.
    """

    experiment: Experiment
    name: str
    log: bool = False
    resolution: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.resolution is not None and not self.resolution > 0:
            raise ValueError(f"metric {self.name!r}: resolution must be > 0, got {self.resolution}")

    def __call__(self, method: str | None = None, **selector: Any) -> Term:
        """The value in the one cell that matches.

        Raises:
            TermError: no cell of any scale matches; or, once the scale is known, several do.
        """
        return Reading(lambda _, y: y[:, 0], Selection(self, method, selector, ()))

    def mean(self, method: str | list[str] | None = None, **selector: Any) -> Term:
        """The mean over all matching cells."""
        return Reading(lambda _, y: y.mean(-1), Selection(self, method, selector))

    def max(self, method: str | list[str] | None = None, **selector: Any) -> Term:
        """The largest value among all matching cells."""
        return Reading(lambda _, y: y.max(-1), Selection(self, method, selector))

    def min(self, method: str | list[str] | None = None, **selector: Any) -> Term:
        """The smallest value among all matching cells."""
        return Reading(lambda _, y: y.min(-1), Selection(self, method, selector))


def _operator(operation: Callable[[Any, Any], Any], *, swap: bool = False) -> Callable[..., Term]:
    def method(self: Term, other: Term | float) -> Term:
        a, b = (as_term(other), self) if swap else (self, as_term(other))
        return Formula(operation, a, b, log=a.log and b.log and operation is not operator.sub)

    return method


class Term:
    """Something with a number in each seed. Takes + - * / with terms and numbers.

    `log` marks a positive quantity, which is compared on logarithms.
    """

    log: bool = False

    def values(self, table: Table, seeds: Sequence[int], grids: Grids) -> Array:
        """The term at each seed; not finite where a logarithm or a ratio is undefined.

        Raises:
            NotMeasured: a cell is missing or failed.
            TermError: a selector that should mean one cell means several.
        """
        raise NotImplementedError

    def readings(self) -> list[Reading]:
        """Where the term reads metrics."""
        raise NotImplementedError

    def leaves(self, grids: Grids) -> dict[Leaf, MetricRef]:
        """Every metric of every cell that the term reads."""
        selections = [selection for reading in self.readings() for selection in reading.selections]
        return {leaf: s.ref for s in selections for leaf in s.leaves(grids).values()}

    def cells(self, grids: Grids) -> set[tuple[str, str]]:
        """What must have run: experiment and canonical cell."""
        return {(experiment, cell) for experiment, cell, _ in self.leaves(grids)}

    def metrics(self) -> set[tuple[str, str]]:
        """Experiment and name of each metric used."""
        refs = [s.ref for reading in self.readings() for s in reading.selections]
        return {(ref.experiment.name, ref.name) for ref in refs}

    def rounding(
        self, table: Table, seeds: Sequence[int], grids: Grids, declared: bool = True
    ) -> float:
        """The standard deviation that rounding of the metrics alone would give the term.

        A metric of resolution q is off by up to ±q/2, uniformly: variance q²/12. Each is moved to
        both ends, and the changes Δ that this makes to the term add up as Σ Δ²/12: q²/6 for a
        difference of two. Without a declared resolution (or `declared=False`) a metric is known to
        nine digits. A rank statistic that moves in steps of q has q²/6: with q²/12, five agreeing
        seeds would make a trend of two levels, which chance does in 3 % of all cases.
        """
        moves: list[tuple[Leaf | Reading, Any, Any, int]] = []
        for leaf, ref in self.leaves(grids).items():
            x = table.read(leaf, seeds)
            q = np.full(len(x), ref.resolution) if declared and ref.resolution else DIGITS * abs(x)
            moves.append((leaf, q / 2, np.where(x > 0, np.minimum(q, x), q) / 2, 12))  # stay > 0
        for reading in dict.fromkeys(self.readings()) if declared else ():
            step = reading.step(len(reading.selections[0].leaves(grids)))
            moves.append((reading, step / 2, step / 2, 6))
        variance = np.zeros(len(seeds))
        for what, up, down, parts in moves:
            high = self.values(table.nudged(what, up), seeds, grids)
            variance += (high - self.values(table.nudged(what, -down), seeds, grids)) ** 2 / parts
        return float(np.sqrt(variance.mean()))

    __add__, __radd__ = _operator(operator.add), _operator(operator.add, swap=True)
    __sub__, __rsub__ = _operator(operator.sub), _operator(operator.sub, swap=True)
    __mul__, __rmul__ = _operator(operator.mul), _operator(operator.mul, swap=True)
    __truediv__, __rtruediv__ = _operator(operator.truediv), _operator(operator.truediv, swap=True)

    def __neg__(self) -> Term:
        return -1 * self


class Formula(Term):
    """A function of other terms; of none, it is a number."""

    def __init__(self, function: Callable[..., Any], *parts: Term, log: bool = False) -> None:
        self.function, self.parts, self.log = function, parts, log

    def values(self, table: Table, seeds: Sequence[int], grids: Grids) -> Array:
        value = self.function(*(part.values(table, seeds, grids) for part in self.parts))
        return np.broadcast_to(value, len(seeds))

    def readings(self) -> list[Reading]:
        return [reading for part in self.parts for reading in part.readings()]


class Reading(Term):
    """A function of the metrics read in some cells: `function(levels, *arrays (seeds, cells))`.

    `step(cells)` is the smallest change of a rank statistic; 0 for other functions.
    """

    def __init__(
        self,
        function: Callable[..., Array],
        *selections: Selection,
        step: Callable[[int], float] = lambda cells: 0.0,
    ) -> None:
        self.function, self.selections, self.step = function, selections, step
        self.log = not selections[0].keys and selections[0].ref.log

    def values(self, table: Table, seeds: Sequence[int], grids: Grids) -> Array:
        rows = [selection.leaves(grids) for selection in self.selections]
        for selection, row in zip(self.selections, rows):
            if len(row) < (2 if selection.keys else 1) or set(row) != set(rows[0]):
                raise selection.not_run(list(row))
        levels = list(rows[0])
        metrics = [np.stack([table.read(row[k], seeds) for k in levels], -1) for row in rows]
        return self.function(levels, *metrics) + table.nudge(self)

    def readings(self) -> list[Reading]:
        return [self]


class Selection:
    """The cells that a selector means, told apart by the values of `keys`.

    No keys: it must be a single cell. None: any number, which need not be told apart.

    Raises:
        TermError: no cell at any scale has these settings.
    """

    def __init__(
        self,
        ref: MetricRef,
        method: str | list[str] | None,
        selector: Mapping[str, Any],
        keys: tuple[str, ...] | None = None,
    ) -> None:
        if not isinstance(ref, MetricRef):
            raise TypeError(f"expected a metric, experiment.metric(name), got {ref!r}")
        self.ref, self.keys, self.name = ref, keys, ref.experiment.name
        self._found: tuple[Grids | None, dict[Any, Leaf]] = (None, {})
        self.said = {**({} if method is None else {"method": method}), **selector}
        own = {"method": list(ref.experiment.methods)} if ref.experiment.methods else {}
        self.selector = own | self.said
        grid = [setting for scale in SCALES for setting in ref.experiment.cells(scale)]
        known = {key for setting in grid for key in setting}
        for key in (*self.said, *(keys or ())):
            if key not in known:
                raise TermError(str(unknown(f"setting key of {self.name}", key, sorted(known))))
        if not self._settings({self.name: grid}):
            raise TermError(f"{self.name} has no cell with {_said(self.said)} at any scale")

    def leaves(self, grids: Grids) -> dict[Any, Leaf]:
        """The cells by level, in the order of `in_order`."""
        if self._found[0] is grids:  # a term is evaluated once for every cell that it reads
            return self._found[1]
        levels: dict[Any, Setting] = {}
        for setting in self._settings(grids):
            cell = setting.canonical()
            values = [setting[key] for key in self.keys or ()]
            level = cell if self.keys is None else values[0] if len(values) == 1 else tuple(values)
            if level in levels:
                raise self._ambiguous(levels[level], setting)
            levels[level] = setting
        places = {v: (self.name, levels[v].canonical(), self.ref.name) for v in in_order(levels)}
        self._found = (grids, places)
        return places

    def not_run(self, levels: Sequence[Any]) -> NotMeasured:
        said = f"not run at this scale or with these settings: {self.name} with {_said(self.said)}"
        if self.keys:
            keys = ", ".join(self.keys)
            said += f" (needs several {keys}, the same for every metric; has {len(levels)})"
        return NotMeasured(said)

    def _settings(self, grids: Grids) -> list[Setting]:
        return [
            setting
            for setting in grids.get(self.name, ())
            if setting.matches(self.selector) and all(key in setting for key in self.keys or ())
        ]

    def _ambiguous(self, a: Setting, b: Setting) -> TermError:
        differ = [key for key in a | b if a.get(key) != b.get(key)]
        both = " and ".join(_said({key: s.get(key) for key in differ}) for s in (a, b))
        return TermError(f"{self.name} with {_said(self.said)} means several cells: {both}")


def in_order(levels: Iterable[Any]) -> list[Any]:
    """Values of a setting: numbers rising, "inf" last; as they come where some are other words.

    >>> in_order([16, "inf", 2]), in_order(["small", "big"])
    ([2, 16, 'inf'], ['small', 'big'])
    """
    levels = list(levels)
    numbers = all(isinstance(v, int | float) or v == "inf" for v in levels)
    return sorted(levels, key=float) if numbers else levels


def as_term(value: Term | float) -> Term:
    """A term as it is, a number as a term.

    Raises:
        TypeError: neither, such as a metric that was not called with a selector.
        ValueError: a number that is not finite.
    """
    if isinstance(value, Term):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a term, metric(method, key=value), or a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return Formula(lambda: float(value), log=value > 0)


def log(term: Term | float) -> Term:
    """Natural logarithm of a term that is positive in every seed."""
    return Formula(np.log, as_term(term))


def slope(
    ref: MetricRef, method: str | None = None, *, along: str, log: bool = False, **selector: Any
) -> Term:
    """Least-squares slope, inside each seed, of a metric on the numeric setting key `along`.

    `log=True` takes logarithms of both, so that the slope is an exponent. `selector` must fix
    whatever else tells cells apart.
    """

    def fit(x: list[Any], y: Array) -> Array:
        if not all(isinstance(v, int | float) and (v > 0 or not log) for v in x):
            kind = "positive numbers" if log else "numbers"
            raise TermError(f"a slope along {along!r} needs {kind}, got {x}")
        return statistics.slope(np.log(x), np.log(y)) if log else statistics.slope(x, y)

    return Reading(fit, Selection(ref, method, selector, (along,)))


def rank_correlation(
    ref_a: MetricRef,
    ref_b: MetricRef,
    method: str | None = None,
    *,
    over: str | list[str],
    **selector: Any,
) -> Term:
    """Spearman's ρ, inside each seed, of two metrics across the cells that `over` tells apart.

    `over` is a setting key or several; with `"method"` among them, methods are ranked. The metrics
    may be of two experiments that share these keys.
    """
    keys = (over,) if isinstance(over, str) else tuple(over)
    selections = (Selection(ref, method, selector, keys) for ref in (ref_a, ref_b))
    return Reading(
        lambda _, a, b: statistics.spearman(a, b), *selections, step=lambda k: 12 / (k**3 - k)
    )


def trend(
    ref: MetricRef, method: str | None, along: str, strict: float, selector: Mapping[str, Any]
) -> Term:
    """Kendall's τ_a along a setting; with `strict` = ±1, whether every step has that sign: ±1."""
    selection = Selection(ref, method, selector, (along,))
    if strict:
        return Reading(
            lambda _, y: statistics.every_step(strict * y), selection, step=lambda k: 2.0
        )
    return Reading(
        lambda _, y: statistics.kendall_tau(y), selection, step=lambda k: 4 / (k * (k - 1))
    )


def _said(selector: Mapping[str, Any]) -> str:
    """A selector as a user would type it."""
    return ", ".join(f"{key}={value}" for key, value in selector.items()) or "any setting"
