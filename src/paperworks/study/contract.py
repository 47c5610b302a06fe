"""What a study is made of: settings in a grid, a trial, methods, tuning, claims, figures.

Nothing here runs anything. A study's file builds these objects when it is imported; the engine
reads them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from paperworks.study.errors import unknown

if TYPE_CHECKING:
    from paperworks.study.claims import Claim
    from paperworks.study.figures import Figure
    from paperworks.study.terms import MetricRef

SCALES = ("smoke", "desk", "full")

Value = bool | int | float | str
"""What one key of a setting may hold."""


class Setting(dict[str, Value]):
    """One cell of a grid: a flat mapping that also reads as attributes.

    >>> setting = Setting(method="rtn", bits=3)
    >>> setting.bits
    3
    >>> setting.canonical()
    '{"bits":3,"method":"rtn"}'
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"this setting has no {key!r}, only {', '.join(self)}") from None

    def canonical(self) -> str:
        """The setting as text, equal for equal settings; what identifies a trial's cell."""
        return json.dumps(self, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def matches(self, selector: Mapping[str, object]) -> bool:
        """Whether every key of `selector` is here with that value, or with one of its list."""
        return all(
            key in self and (self[key] in want if isinstance(want, list) else self[key] == want)
            for key, want in selector.items()
        )


class Grid(list[Setting]):
    """Settings in order. `grid(...) + grid(...)` joins two blocks that differ in shape."""

    def __add__(self, other: list[Setting]) -> Grid:  # type: ignore[override]
        return Grid([*self, *other])


def grid(**axes: Value | Sequence[Value]) -> Grid:
    """Every combination of the values given: a list is an axis, a scalar a constant.

    Without `method=`, the experiment's methods (and a user's rivals) are all crossed in later;
    with it, the block belongs to the methods named and to nobody else.

    Raises:
        ValueError: an axis is empty, or a value is not a finite number, a bool or a string.

    >>> grid(bits=[3, 2], iterations=250)
    [{'bits': 3, 'iterations': 250}, {'bits': 2, 'iterations': 250}]
    """
    for key, values in axes.items():
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, Value) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise ValueError(
                    f"grid({key}=...): {value!r} is not a bool, a finite number or a string "
                    "(write infinity as 'inf')"
                )
        if isinstance(values, list) and not values:
            raise ValueError(f"grid({key}=...): an axis needs at least one value")
    columns = [values if isinstance(values, list) else [values] for values in axes.values()]
    return Grid(Setting(zip(axes, row)) for row in itertools.product(*columns))


class Tune:
    """What each method may tune, how many candidates it gets, and by which metric.

    The candidates of a method are the combinations of its values, tried at every cell on the
    seeds 90-92; the one with the best mean of `by` is used, and stored with the trials. `by` must
    be measured on validation data, never on the test set.

    Args:
        by: the metric that decides.
        higher: whether a larger value of `by` is better (default: smaller is).
        shared: setting keys over which one choice is shared. The choice is made at the first value
            of each in the grid; e.g. `shared=["bits"]` tunes once for all bit widths.
        only: methods with values of their own instead of the common ones; `{}` tunes nothing
            (a method without a knob). Every method that tunes must have equally many candidates.
        **values: the common candidates, `lr=[1e-3, 1e-2]`.

    Raises:
        ValueError: methods with unequal numbers of candidates, or no candidates at all.

    >>> tune = Tune(by="loss", lr=[0.1, 0.01], only={"rtn": {}, "ada": {"beta": [2, 20]}})
    >>> tune.candidates("flex")
    [{'lr': 0.1}, {'lr': 0.01}]
    >>> tune.candidates("ada"), tune.candidates("rtn")
    ([{'beta': 2}, {'beta': 20}], [])
    """

    def __init__(
        self,
        *,
        by: str,
        higher: bool = False,
        shared: Sequence[str] = (),
        only: Mapping[str, Mapping[str, list[Value]]] | None = None,
        **values: list[Value],
    ) -> None:
        self.by = by
        self.higher = higher
        self.shared = tuple(shared)
        self.values = values
        self.only = dict(only or {})
        counts = {len(g) for g in [grid(**values), *(grid(**v) for v in self.only.values() if v)]}
        if not values:
            counts = {len(grid(**v)) for v in self.only.values() if v}
        if len(counts) != 1:
            raise ValueError(
                f"Tune(by={by!r}): every method must try equally many candidates, got "
                f"{sorted(counts)}"
            )

    def candidates(self, method: str | None) -> list[Setting]:
        """The settings that `method` tries; empty when it has nothing to tune."""
        values = self.only.get(method, self.values) if method is not None else self.values
        return list(grid(**values)) if values else []

    @property
    def keys(self) -> set[str]:
        """Every setting key that some method tunes."""
        return {key for values in (self.values, *self.only.values()) for key in values}


class DataRule(Protocol):
    """Which data a study takes through `--set data=...`; `paperworks.data.Accepts` is one."""

    def check(self, name: str) -> None:
        """Raise `UserError` when the study cannot take the data set of this name."""

    def digest(self, name: str) -> str:
        """What identifies the content: empty for data that come with the package."""


@dataclass(eq=False)
class Experiment:
    """A trial function over a grid of settings.

    Args:
        trial: `trial(setting, run) -> {"metric": number or list of numbers}`, pure in setting and
            seed.
        methods: what `run.methods[name]` hands out; the names fill the setting key `method`.
        smoke, desk, full: the grid at each scale. The same code runs all of them: a setting key
            (`steps=20`) is how a scale is made small.
        tune: what each method may tune.
        name: how trials are filed; the trial function's name by default.
    """

    trial: Callable[[Setting, Any], Mapping[str, Any]]
    methods: Mapping[str, Any] = field(default_factory=dict)
    smoke: Sequence[Setting] = ()
    desk: Sequence[Setting] = ()
    full: Sequence[Setting] = ()
    tune: Tune | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.trial.__name__
        self.methods = dict(self.methods)
        for scale in SCALES:
            if not getattr(self, scale):
                raise ValueError(f"experiment {self.name!r} has no settings at scale {scale!r}")
            for setting in getattr(self, scale):
                if "method" in setting and setting["method"] not in self.methods:
                    raise ValueError(
                        f"experiment {self.name!r}: the {scale} grid names method "
                        f"{setting['method']!r}, which is not among {list(self.methods)}"
                    )

    def cells(self, scale: str, added: Sequence[str] = ()) -> Grid:
        """The settings of a scale with the methods crossed in; `added` are a user's rivals."""
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
        cells: dict[str, Setting] = {}
        for setting in getattr(self, scale):
            named = "method" in setting or not self.methods
            for method in [None] if named else [*self.methods, *added]:
                cell = Setting(setting) if method is None else Setting(method=method, **setting)
                cells.setdefault(cell.canonical(), cell)
        return Grid(cells.values())

    def metric(
        self,
        name: str,
        *,
        log: bool = False,
        resolution: float | None = None,
        deterministic: bool = False,
    ) -> MetricRef:
        """A handle on one of the trial's metrics, to build terms of claims from.

        Args:
            name: the key in what the trial returns.
            log: compare on logarithms: for losses, errors, ratios and times.
            resolution: the smallest step the metric can take, e.g. 1/N for an accuracy on N
                points; keeps an interval from collapsing when seeds agree by coincidence.
            deterministic: the metric does not depend on the seed, so that agreement of all seeds
                is an answer and no accident.
        """
        from paperworks.study.terms import MetricRef

        return MetricRef(self, name, log=log, resolution=resolution, deterministic=deterministic)


@dataclass(eq=False)
class Study:
    """A paper's experiments, claims and figures.

    Args:
        slug: the paper's name in the catalogue.
        experiments: what is run.
        claims: what is decided, in the order of the page.
        figures: how it is drawn.
        data: which data sets the setting key `data` may name (None: the study takes none).
        demo: ids of the claims that `make demo` runs.
    """

    slug: str
    experiments: Sequence[Experiment]
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()
    data: DataRule | None = None
    demo: Sequence[str] = ()

    def __post_init__(self) -> None:
        for what, names in (
            ("experiment", [e.name for e in self.experiments]),
            ("claim", [c.id for c in self.claims]),
            ("figure", [f.name for f in self.figures]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"study {self.slug!r} has {what} {sorted(twice)} twice")
        for id in self.demo:
            self.claim(id)

    def experiment(self, name: str) -> Experiment:
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise unknown("experiment", name, [e.name for e in self.experiments])

    def claim(self, id: str) -> Claim:
        for claim in self.claims:
            if claim.id == id:
                return claim
        raise unknown(f"claim of {self.slug}", id, [c.id for c in self.claims])

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self.experiments)
