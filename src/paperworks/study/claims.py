"""Claims, decided in advance, and the verdicts that the seeds give them. See README.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from paperworks.study import statistics, terms
from paperworks.study.statistics import INCONCLUSIVE, REPORTED, REPRODUCED, Array, by_chance
from paperworks.study.terms import DIGITS, Grids, MetricRef, NotMeasured, Table, Term, as_term

__all__ = [
    "Claim", "Verdict", "all_of", "by_chance", "equals", "exponent", "falls", "higher", "lower",
    "report", "rises", "seeds_needed", "within",
]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about a claim.

    Attributes:
        claim, text: its id and sentence.
        verdict: reproduced, smaller than stated, not reproduced, inconclusive, or reported.
        quantity: what was measured: difference, ratio, tau, order, exponent, value, or parts.
        effect: its mean over seeds, of a ratio the geometric one; None where there is none.
        low, high: its 95 % interval; None with fewer than three seeds.
        side: where it has to lie: above or below `margin`, or between its two numbers.
        margin_owner: whose margin it is, paper or ours.
        point: no variation over seeds makes the interval a point.
        reason: why it is inconclusive.
        parts: the verdicts that `all_of` joins.
    """

    claim: str = ""
    text: str = ""
    verdict: str = INCONCLUSIVE
    quantity: str = "parts"
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    side: str = ""
    margin: float | tuple[float, float] | None = None
    margin_owner: str = ""
    seeds: tuple[int, ...] = ()
    point: bool = False
    reason: str = ""
    parts: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Verdict:
        margin = entry["margin"]
        made = {
            "margin": tuple(margin) if isinstance(margin, list) else margin,
            "seeds": tuple(entry["seeds"]),
            "parts": tuple(map(cls.from_json, entry["parts"])),
        }
        known = {f.name: entry[f.name] for f in fields(cls) if f.name in entry}
        return cls(**{**known, **made})

    def sentence(self) -> str:
        """One line for people: effect, interval, margin, seeds and, where needed, why.

        >>> seeds = tuple(range(100, 110))
        >>> Verdict(
        ...     "C1", "", "reproduced", "ratio", 0.61, 0.55, 0.68, "below", 0.7, seeds=seeds
        ... ).sentence()
        '0.61 times [0.55, 0.68], needed below 0.7; 10 seeds'
        """
        if self.parts:
            held = sum(part.verdict == REPRODUCED for part in self.parts)
            telling = next(part for part in self.parts if part.verdict == self.verdict)
            return f"{held} of {len(self.parts)} parts reproduced; {telling.sentence()}"
        measured = ""
        if self.effect is not None:
            words = "{:.3g} times" if self.quantity == "ratio" else self.quantity + " {:.3g}"
            measured = words.format(self.effect)
            if self.point:
                measured += " in every seed"
            elif self.low is not None:
                measured += f" [{self.low:.3g}, {self.high:.3g}]"
        if self.effect is not None and self.margin is not None:
            edges = self.margin if isinstance(self.margin, tuple) else (self.margin,)
            measured += f", needed {self.side} {' and '.join(f'{edge:.3g}' for edge in edges)}"
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        return "; ".join(filter(None, (measured, seeds, self.reason)))


@dataclass(frozen=True, eq=False)
class Form:
    """A quantity and the region in which the claim about it holds.

    Args:
        term: the quantity.
        quantity: what to call it.
        low, high: the edges of the region; both infinite: no verdict.
        null: the value of no effect, where there is one.
        logs: the term is a logarithm, to be shown as what it is the logarithm of.
    """

    term: Term
    quantity: str
    low: float = -math.inf
    high: float = math.inf
    null: float = math.nan
    logs: bool = False

    @property
    def parts(self) -> tuple[Form, ...]:
        return (self,)

    @property
    def decides(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)

    def cells(self, grids: Grids) -> set[tuple[str, str]]:
        """What must have run: experiment and canonical cell."""
        return self.term.cells(grids)

    def metrics(self) -> set[tuple[str, str]]:
        """Experiment and name of each metric used."""
        return self.term.metrics()

    def values(self, table: Table, grids: Grids, seeds: Sequence[int]) -> Array:
        """The quantity at each seed.

        Raises:
            NotMeasured: a cell is missing or failed, or a value is not finite.
        """
        with np.errstate(all="ignore"):
            values = self.term.values(table, seeds, grids)
        for seed, value in zip(seeds, values):
            if not math.isfinite(value):
                why = "a logarithm of a number <= 0, a division by 0, or a ranking of equals"
                raise NotMeasured(f"undefined {self.quantity} (seed {seed}): {why}")
        return values

    def judge(self, table: Table, grids: Grids, seeds: Sequence[int]) -> Verdict:
        """The verdict, not yet signed with a claim."""
        verdict = self._undecided(seeds)
        try:
            values = self.values(table, grids, seeds)
            if len(seeds) < 3:
                effect = self._shown(values.mean()) if seeds else None
                return replace(verdict, effect=effect, reason="an interval needs three seeds")
            floor, point, idle = self._spread(values, table, grids, seeds)
        except NotMeasured as missing:
            return replace(verdict, reason=str(missing))
        mean, low, high = map(float, statistics.interval(values, floor))
        word = str(statistics.decide(low, high, (self.low, self.high), self.null))
        reason = ""
        if idle:
            word, reason = INCONCLUSIVE, "the seeds had no effect on any metric"
        elif word == INCONCLUSIVE and point:
            reason = "identical in every seed"
        elif word == INCONCLUSIVE and values.std(ddof=1) < floor:
            reason = "the seeds agree, but are too few for so coarse a quantity"
        ends = (mean, mean) if point else (low, high)
        return replace(
            verdict,
            verdict=word if self.decides else REPORTED,
            effect=self._shown(mean),
            low=self._shown(ends[0]),
            high=self._shown(ends[1]),
            point=point,
            reason=reason,
        )

    def _undecided(self, seeds: Sequence[int]) -> Verdict:
        edges = [self._shown(edge) for edge in (self.low, self.high) if math.isfinite(edge)]
        if not edges:
            return Verdict(verdict=REPORTED, quantity=self.quantity, seeds=tuple(seeds))
        two = len(edges) == 2
        return Verdict(
            quantity=self.quantity,
            side="between" if two else "above" if self.high == math.inf else "below",
            margin=(edges[0], edges[1]) if two else edges[0],
            seeds=tuple(seeds),
        )

    def _spread(
        self, values: Array, table: Table, grids: Grids, seeds: Sequence[int]
    ) -> tuple[float, bool, bool]:
        """The spread that rounding alone gives; whether the values have no other, so that they are
        one point; whether the seeds left unchanged what they should have changed."""
        leaves = self.term.leaves(grids)
        raw = [table.read(leaf, seeds) for leaf in leaves]
        constant = all(np.ptp(x) <= DIGITS * abs(x).max() for x in raw)
        exact = constant and all(ref.deterministic for ref in leaves.values())
        rounded = all(ref.deterministic or ref.resolution for ref in leaves.values())
        with np.errstate(all="ignore"):
            digits = self.term.rounding(table, seeds, grids, declared=False)
            floor = digits if exact else self.term.rounding(table, seeds, grids)
        if not math.isfinite(floor):
            raise NotMeasured(f"{self.quantity} undefined within the resolution of its metrics")
        point = floor == digits and bool(values.std() <= floor)
        return floor, point, constant and not rounded

    def shift(
        self, ours: Table, theirs: Table, grids: Grids, seeds: Sequence[int], shipped: Verdict
    ) -> str | None:
        """See `Claim.shift`."""
        if len(seeds) < 3 or shipped.low is None or shipped.high is None:
            return None
        try:
            here, there = (self.values(table, grids, seeds) for table in (ours, theirs))
            floor = self.term.rounding(ours, seeds, grids)
        except NotMeasured as missing:
            return str(missing)
        mean, low, high = map(float, statistics.interval(here - there, floor))
        edges = np.array([shipped.low, shipped.high])
        width = np.ptp(np.log(edges) if self.logs else edges)
        digits = 1e-4 * abs(there.mean())  # machines differ in the seventh digit of a metric
        if low <= 0 <= high or abs(mean) <= max(width / 2, digits):
            return None
        return f"{self.quantity} moved by {'a factor of ' * self.logs}{self._shown(mean):.3g}"

    def _shown(self, value: float) -> float:
        return math.exp(min(max(value, -700.0), 700.0)) if self.logs else float(value)


@dataclass(frozen=True, eq=False)
class AllOf:
    """Several forms that must all hold.

    An intersection-union test: it is wrongly `reproduced` no more often than its weakest part.
    """

    parts: tuple[Form, ...]

    def cells(self, grids: Grids) -> set[tuple[str, str]]:
        return set().union(*(part.cells(grids) for part in self.parts))

    def metrics(self) -> set[tuple[str, str]]:
        return set().union(*(part.metrics() for part in self.parts))

    def judge(self, table: Table, grids: Grids, seeds: Sequence[int]) -> Verdict:
        parts = tuple(part.judge(table, grids, seeds) for part in self.parts)
        words = [part.verdict for part in parts]
        worst = (statistics.NOT_REPRODUCED, INCONCLUSIVE, statistics.SMALLER, REPRODUCED)
        verdict = next(word for word in worst if word in words)
        return Verdict(verdict=verdict, seeds=tuple(seeds), parts=parts)


@dataclass(frozen=True, eq=False)
class Claim:
    """A statement written down before the results are seen.

    Args:
        id: C1, C2, ...; a letter for a part, C2a.
        text: the sentence that the page shows.
        form: what decides it: `higher`, `lower`, `within`, `rises`, `falls`, `exponent`, `equals`,
            `all_of`, or `report` for a row without verdict.
        margin: whose margin it is, the paper's or ours.
        note: what is known of why it came out as it did.

    Raises:
        ValueError: a malformed id or margin.
    """

    id: str
    text: str
    form: Form | AllOf
    margin: Literal["paper", "ours", ""] = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"C[1-9][0-9]*[a-z]?", self.id):
            raise ValueError(f"claim id {self.id!r}: expected C1, C2 or C2a")
        if self.margin not in ("paper", "ours", ""):
            raise ValueError(
                f"claim {self.id}: margin is 'paper', 'ours' or '', got {self.margin!r}"
            )

    def evaluate(self, table: Table, grids: Grids, seeds: Sequence[int]) -> Verdict:
        """The verdict of these seeds.

        Args:
            table: the trials.
            grids: the cells that should have run, by experiment.
            seeds: the seeds that should have run.
        """
        verdict = self.form.judge(table, grids, seeds)
        return replace(verdict, claim=self.id, text=self.text, margin_owner=self.margin)

    def shift(
        self, ours: Table, theirs: Table, grids: Grids, seeds: Sequence[int], shipped: Verdict
    ) -> str | None:
        """What to say where the effect has moved from the shipped one; None where it has not.

        It has moved when the 95 % interval of the differences, each seed with itself, excludes zero
        and their mean is larger than half the shipped interval.
        """
        pairs = zip(self.form.parts, shipped.parts or (shipped,))
        moved = (form.shift(ours, theirs, grids, seeds, verdict) for form, verdict in pairs)
        return next(filter(None, moved), None)


def seeds_needed(claim: Claim, table: Table, grids: Grids, seeds: Sequence[int]) -> int:
    """10, 20 or 30: how many seeds to publish a claim on, by its spread on development seeds."""
    verdict = claim.evaluate(table, grids, seeds)
    needed = [10]
    for form, part in zip(claim.form.parts, verdict.parts or (verdict,)):
        if part.low is not None and part.high is not None:
            ends = np.log([part.low, part.high]) if form.logs else np.array([part.low, part.high])
            sd = float(np.ptp(ends) / 2 / statistics.half_width(1.0, len(seeds)))
            needed.append(statistics.seeds_needed(float(ends.mean()), sd, (form.low, form.high)))
    return max(needed)


def higher(
    a: Term | float, b: Term | float, *, by: float | None = None, factor: float | None = None
) -> Form:
    """`a` is higher than `b`: by more than `by` (may be negative), or than `factor` times.

    With `factor` the ratio is tested, on logarithms; with `by` the difference. With neither, the
    ratio where both terms come from metrics with `log=True` (or are positive numbers), else the
    difference.

    Raises:
        ValueError: both `by` and `factor`, or a factor that is not positive.
    """
    return _compare(a, b, by, factor, up=True)


def lower(
    a: Term | float, b: Term | float, *, by: float | None = None, factor: float | None = None
) -> Form:
    """`a` is lower than `b`, by more than `by`, or than `factor` times; see `higher`."""
    return _compare(a, b, by, factor, up=False)


def within(a: Term | float, b: Term | float, tolerance: float) -> Form:
    """`a` and `b` differ by less than `tolerance`: equivalence, tested on the difference."""
    return Form(as_term(a) - as_term(b), "difference", *_around(0.0, tolerance))


def equals(a: Term, value: float, tolerance: float) -> Form:
    """`a` is within `tolerance` of a value known in closed form."""
    return Form(as_term(a), "value", *_around(value, tolerance))


def exponent(
    ref: MetricRef,
    method: str | None = None,
    *,
    along: str,
    value: float,
    tolerance: float,
    **selector: Any,
) -> Form:
    """The metric grows as a power of the setting `along`: its log-log slope is near `value`."""
    fitted = terms.slope(ref, method, along=along, log=True, **selector)
    return Form(fitted, "exponent", *_around(value, tolerance))


def rises(
    ref: MetricRef, method: str | None = None, *, along: str, strict: bool = False, **selector: Any
) -> Form:
    """The metric rises along a setting: Kendall's τ inside each seed is above 0.

    `strict` asks that most seeds rise at every step. Two levels need six agreeing seeds.
    """
    term = terms.trend(ref, method, along, float(strict), selector)
    return Form(term, "order" if strict else "tau", low=0.0, null=0.0)


def falls(
    ref: MetricRef, method: str | None = None, *, along: str, strict: bool = False, **selector: Any
) -> Form:
    """The metric falls along a setting; see `rises`."""
    term = terms.trend(ref, method, along, -float(strict), selector)
    if strict:
        return Form(term, "order", low=0.0, null=0.0)
    return Form(term, "tau", high=0.0, null=0.0)


def all_of(*forms: Form) -> AllOf:
    """All of these hold; the claim is as good as the worst of them.

    Raises:
        ValueError: nothing to join, or a `report`, which decides nothing.
    """
    if not forms or not all(isinstance(form, Form) and form.decides for form in forms):
        raise ValueError("all_of(...) joins forms that each decide: no report, no all_of")
    return AllOf(forms)


def report(term: Term | float) -> Form:
    """A row with an interval and no verdict; of a term of `log=True` metrics the geometric mean."""
    term = as_term(term)
    return Form(terms.log(term) if term.log else term, "value", logs=term.log)


def _compare(
    a: Term | float, b: Term | float, by: float | None, factor: float | None, up: bool
) -> Form:
    a, b = as_term(a), as_term(b)
    if by is not None and factor is not None:
        raise ValueError(f"by={by} or factor={factor}, not both")
    if factor is not None or (by is None and a.log and b.log):
        edge = math.log(_number("factor", 1.0 if factor is None else factor, above=0.0))
        form = Form(terms.log(a) - terms.log(b), "ratio", edge, null=0.0, logs=True)
    else:
        by = _number("by", 0.0 if by is None else by)
        edge = by if up else 0.0 - by
        form = Form(a - b, "difference", edge, null=0.0)
    return form if up else replace(form, low=-math.inf, high=edge)


def _around(value: float, tolerance: float) -> tuple[float, float]:
    value, tolerance = _number("value", value), _number("tolerance", tolerance, above=0.0)
    return value - tolerance, value + tolerance


def _number(name: str, value: float, above: float = -math.inf) -> float:
    if not (math.isfinite(value) and value > above):
        raise ValueError(f"{name} must be a finite number above {above:g}, got {value}")
    return value
