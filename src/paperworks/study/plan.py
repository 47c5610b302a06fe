"""From what somebody asks for to the trials that answer it: cells, tuning, seeds, keys."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperworks.study.contract import SCALES, Experiment, Grid, Setting, Study, Tune, Value
from paperworks.study.environment import environment, stamp
from paperworks.study.errors import UserError, unknown
from paperworks.study.fingerprint import fingerprints
from paperworks.study.worker import Task, load_method

DEVELOPMENT_SEEDS = range(10)
TUNING_SEEDS = (90, 91, 92)
FIRST_BLOCK = 100

Choices = Mapping[tuple[str, str], Setting]
"""The tuned part of each cell's setting, by experiment name and canonical cell."""


@dataclass(frozen=True)
class Request:
    """What somebody asks of a study.

    Attributes:
        seeds: the seeds of the trials.
        scale: `smoke`, `desk` or `full`.
        claims: ids of the claims to decide; empty: all of them, and every cell of the grid.
        overrides: setting key -> values in place of the grid's.
        added: a user's rivals, name -> `module:factory` or the method itself.
        retune: do not use the choices that come with the evidence.
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        paths: folders from which a worker may import the rivals.
    """

    seeds: tuple[int, ...]
    scale: str = "desk"
    claims: tuple[str, ...] = ()
    overrides: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)
    retune: bool = False
    device: str = "cpu"
    paths: tuple[str, ...] = ()


class Plan:
    """The cells of a request, and the tasks that tuning and measuring them take.

    Everything that can be wrong with a request is found here, before any work.

    Raises:
        UserError: an unknown scale, claim, setting key or value, a rival that cannot be imported or
            whose name is taken, data that the study cannot take.
    """

    def __init__(self, slug: str, module: str, study: Study, request: Request) -> None:
        if request.scale not in SCALES:
            raise unknown("scale", request.scale, SCALES)
        self.slug, self.module, self.study, self.request = slug, module, study, request
        self.environment = environment(request.device)
        self.stamp = stamp(self.environment)
        by_trial = fingerprints(module)
        self.fingerprints = {e.name: by_trial[e.trial.__name__] for e in study}
        self.claims = [study.claim(id) for id in request.claims] or list(study.claims)
        _check_added(study, request.added)
        _check_overrides(study, request)
        self.grids = {e.name: _overridden(e, request) for e in study}
        self.downloads = sorted(
            {str(v) for g in self.grids.values() for c in g for v in c.values() if _is_remote(v)}
        )
        named = [claim.form.cells(self.grids) for claim in self.claims]  # ambiguous ones are told
        self.cells = self._needed(set().union(*named)) if request.claims else self.grids
        self._added_digests = {name: _source_digest(m) for name, m in request.added.items()}
        self._data_digests: dict[str, str] = {}

    def _needed(self, named: set[tuple[str, str]]) -> dict[str, Grid]:
        """The cells that the claims asked for talk about, and those of a rival beside them."""

        def wanted(name: str, cell: Setting) -> bool:
            methods = [cell.get("method")]
            if cell.get("method") in self.request.added:
                methods = [*self.study.experiment(name).methods]
            beside = (cell | ({"method": m} if m is not None else {}) for m in methods)
            return any((name, Setting(other).canonical()) in named for other in beside)

        return {
            name: Grid(cell for cell in cells if wanted(name, cell))
            for name, cells in self.grids.items()
        }

    @property
    def size(self) -> int:
        """How many trials there are, tuning left out."""
        return sum(map(len, self.cells.values())) * len(self.request.seeds)

    def candidates(self, experiment: Experiment, cell: Setting) -> list[Setting]:
        """What this cell's method tries: nothing where it has no knob, or the user set it."""
        if experiment.tune is None:
            return []
        free = [
            Setting((k, v) for k, v in candidate.items() if k not in cell)
            for candidate in experiment.tune.candidates(cell.get("method"))  # type: ignore[arg-type]
        ]
        unique = {candidate.canonical(): candidate for candidate in free}
        return [candidate for candidate in unique.values() if candidate]

    def tuning(self, known: Choices) -> dict[tuple[str, str], list[list[Task]]]:
        """For each cell without a choice: for each candidate, its tasks on the tuning seeds.

        Cells that share a choice share the tasks, which have one key each.
        """
        tasks = {}
        for experiment in self.study:
            for cell in self.cells[experiment.name]:
                candidates = self.candidates(experiment, cell)
                place = experiment.name, cell.canonical()
                if not candidates or place in known:
                    continue
                if self.request.scale == "smoke":
                    candidates = candidates[:1]
                stand_in = _stand_in(experiment.tune, cell, self.grids[experiment.name])
                seeds = TUNING_SEEDS if len(candidates) > 1 else ()
                tasks[place] = [
                    [self._task(experiment, Setting(stand_in | candidate), seed) for seed in seeds]
                    for candidate in candidates
                ]
        return tasks

    def choose(
        self, known: Choices, metrics: Mapping[str, Mapping[str, Any] | None]
    ) -> dict[tuple[str, str], Setting]:
        """The choice of every cell, from the metrics of the tuning tasks by key.

        A candidate that failed on any tuning seed is out; when all are out, the first stands, and
        the failure shows in the trials.
        """
        chosen = dict(known)
        for (name, cell), tasks in self.tuning(known).items():
            experiment = self.study.experiment(name)
            candidates = self.candidates(experiment, Setting(json.loads(cell)))
            assert experiment.tune is not None
            scores = [_score(experiment.tune, [metrics.get(t.key) for t in row]) for row in tasks]
            best = min(range(len(scores)), key=scores.__getitem__)
            chosen[name, cell] = candidates[best]
        return chosen

    def trials(self, choices: Choices) -> dict[tuple[str, str, int], Task]:
        """The task of each experiment, canonical cell and seed: cells first, seeds inside.

        In that order two workers begin with two seeds, each with a fixture of its own to compute.
        """
        tasks = {}
        for experiment in self.study:
            for cell in self.cells[experiment.name]:
                place = experiment.name, cell.canonical()
                setting = Setting(cell | choices.get(place, {}))
                for seed in self.request.seeds:
                    tasks[*place, seed] = self._task(experiment, setting, seed)
        return tasks

    def _task(self, experiment: Experiment, setting: Setting, seed: int) -> Task:
        data = self._data_digest(setting)
        added = {n: m for n, m in self.request.added.items() if n == setting.get("method")}
        identity = {
            "slug": self.slug,
            "experiment": experiment.name,
            "setting": setting,
            "seed": seed,
            "fingerprint": self.fingerprints[experiment.name],
            "data": data,
            "added": [self._added_digests[name] for name in added],
            "stamp": self.stamp,
        }
        text = json.dumps(identity, sort_keys=True, allow_nan=False)
        return Task(
            key=hashlib.sha256(text.encode()).hexdigest()[:32],
            module=self.module,
            experiment=experiment.name,
            setting=setting,
            seed=seed,
            fingerprint=self.fingerprints[experiment.name],
            device=self.request.device,
            data=data,
            added=added,
            paths=self.request.paths,
            alone=experiment.name in self._timed,
        )

    @property
    def _timed(self) -> set[str]:
        """Experiments whose times a claim compares: their trials run alone on the machine."""
        used = set().union(*(claim.form.metrics() for claim in self.claims))
        return {experiment for experiment, metric in used if metric.endswith("_seconds")}

    def _data_digest(self, setting: Setting) -> str:
        name = setting.get("data")
        if self.study.data is None or not isinstance(name, str):
            return ""
        if name not in self._data_digests:
            self._data_digests[name] = self.study.data.digest(name)
        return self._data_digests[name]


def _is_remote(value: Value) -> bool:
    return isinstance(value, str) and value.startswith("hub:")


def _stand_in(tune: Tune | None, cell: Setting, cells: Grid) -> Setting:
    """The cell whose tuning counts for this one: the first that differs in shared keys only."""
    shared = tune.shared if tune is not None else ()
    own = {key: value for key, value in cell.items() if key not in shared}
    return next(c for c in cells if {k: v for k, v in c.items() if k not in shared} == own)


def _score(tune: Tune, metrics: Sequence[Mapping[str, Any] | None]) -> float:
    """The mean of the deciding metric, signed so that less is better; infinite after a failure."""
    values = [row.get(tune.by) if row else None for row in metrics]
    if any(value is None for value in values):
        return float("inf")
    mean = sum(values) / max(len(values), 1)  # type: ignore[arg-type]
    return -mean if tune.higher else mean


def _overridden(experiment: Experiment, request: Request) -> Grid:
    cells = experiment.cells(request.scale, list(request.added))
    for key, values in request.overrides.items():
        if any(key in cell for cell in cells) or (experiment.tune and key in experiment.tune.keys):
            cells = Grid(Setting(cell | {key: value}) for cell in cells for value in values)
    return Grid({cell.canonical(): cell for cell in cells}.values())


def _check_overrides(study: Study, request: Request) -> None:
    for key, values in request.overrides.items():
        seen = _values(study, key, request.scale)
        if not seen:
            keys = {k for e in study for cell in e.cells(request.scale) for k in cell}
            keys |= {k for e in study if e.tune for k in e.tune.keys}
            if key == "data":
                raise UserError(f"{study.slug} takes no data: it generates its own")
            raise unknown(f"setting of {study.slug}", key, sorted(keys))
        for value in values:
            if key == "data":
                if study.data is None:
                    raise UserError(f"{study.slug} takes no data of a user's")
                study.data.check(str(value))
            elif key == "method":
                known = [*seen, *request.added]
                if value not in known:
                    raise unknown(f"method of {study.slug}", value, known)
            else:
                _check_value(key, value, seen)


def _values(study: Study, key: str, scale: str) -> list[Value]:
    """Every value that the key takes in any grid, when it is a key of this scale at all."""
    here = [cell[key] for e in study for cell in e.cells(scale) if key in cell]
    tuned = [c[key] for e in study if e.tune for m in [None, *e.methods]
             for c in e.tune.candidates(m) if key in c]  # fmt: skip
    if not here and not tuned:
        return []
    everywhere = [cell[key] for e in study for s in SCALES for cell in e.cells(s) if key in cell]
    return list(dict.fromkeys([*here, *tuned, *everywhere]))


def _check_value(key: str, value: Value, seen: Iterable[Value]) -> None:
    kinds = {type(known) for known in seen}
    if type(value) is int and float in kinds and int not in kinds:
        return
    if type(value) not in kinds:
        names = " or ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"--set {key}={value}: expected {names}, as in {key}={next(iter(seen))}")
    texts = [known for known in seen if isinstance(known, str)]
    if (
        isinstance(value, str) and value not in texts and any(texts)
    ):  # only "": anything may be named
        raise unknown(f"value of {key}", value, texts)


def _check_added(study: Study, added: Mapping[str, Any]) -> None:
    if added and not any(experiment.methods for experiment in study):
        raise UserError(f"{study.slug} compares no methods: nothing can be added to it")
    for name, method in added.items():
        if any(name in experiment.methods for experiment in study):
            raise UserError(f"--add {name}=...: {study.slug} has a method of that name")
        load_method(method)


def _source_digest(method: Any) -> str:
    """What identifies a user's method: where it is, and the file it comes from."""
    if isinstance(method, str):
        spec = importlib.util.find_spec(method.partition(":")[0])
        source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
        return hashlib.sha256(method.encode() + source).hexdigest()[:16]
    try:
        source = inspect.getsource(method).encode()
    except (OSError, TypeError):
        raise UserError(
            f"cannot identify {method!r} by its source: put it into a module, add 'module:name'"
        ) from None
    return hashlib.sha256(source).hexdigest()[:16]
