"""Running studies from Python; the command line calls the same function."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from paperworks.study import evidence_files as shipped
from paperworks.study.backends import Backend, InProcess, LocalProcesses
from paperworks.study.catalogue import Paper, catalogue
from paperworks.study.contract import Study, Value
from paperworks.study.engine import Watcher, published_choices
from paperworks.study.engine import run as run_plan
from paperworks.study.errors import UserError
from paperworks.study.plan import DEVELOPMENT_SEEDS, FIRST_BLOCK, Plan, Request
from paperworks.study.results import Results
from paperworks.study.store import Store
from paperworks.study.worker import load_study

SEEDS = {"smoke": 1, "desk": 5, "full": 3}
"""How many seeds a run takes unless told otherwise."""


class Silent:
    """A watcher that says nothing."""

    def begin(self, slug: str, stage: str, total: int, done: int) -> None: ...

    def finished(self, task: Any, outcome: Any) -> None: ...

    def under_way(self, reports: list[dict[str, Any]]) -> None: ...


def run(
    slug: str,
    *,
    scale: str = "desk",
    claims: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    dev: bool = False,
    jobs: int | None = None,
    on: str | None = None,
    device: str = "cpu",
    set: Mapping[str, Value | Sequence[Value]] | None = None,
    add: Mapping[str, str | Callable[..., Any]] | None = None,
    retune: bool = False,
    store: str | None = None,
    watcher: Watcher | None = None,
) -> Results:
    """Run the study of a paper, or a face-off, and give its results.

    What the store holds is not computed again. Verdicts come from `results.claims()`, the trials as
    a table from `results.frame()`, the figures from `results.figures()`.

    Args:
        slug: the paper or face-off, as `paperworks list` names it.
        scale: `smoke` (seconds), `desk` (minutes) or `full` (the paper's own).
        claims: ids of the claims to decide; only their cells are run. Empty: all.
        seeds: how many of the published seeds, or the seeds themselves.
        dev: development seeds (0, 1, ...) in place of the published ones.
        jobs: worker processes; None: one a core; 0: in this process, for a debugger.
        on: where the workers are in place of here: `dask:tcp://host:port`, a Dask scheduler.
        device: where trials compute: `cpu`, `cuda`, `mps`.
        set: setting keys and the value, or list of values, to use in place of the study's.
        add: your rivals, name -> `module:factory` or the callable.
        retune: tune again in place of using the published choices.
        store: where results are kept; None: $PAPERWORKS_STORE, or the user's data directory.

    Raises:
        UserError: anything wrong with the request, in one line.
    """
    paper = catalogue().get(slug)
    request = Request(
        seeds=chosen_seeds(paper, scale, seeds, dev),
        scale=scale,
        claims=tuple(claims),
        overrides={k: v if isinstance(v, list) else [v] for k, v in (set or {}).items()},  # type: ignore[list-item]
        added=dict(add or {}),
        retune=retune,
        device=device,
        paths=tuple(path or os.getcwd() for path in sys.path) if add else (),
    )
    plan = plan_of(slug, request)
    with Store(store) as results_store, running(jobs, on) as backend:
        choices = published_choices(plan, shipped.read(slug, paper.evidence))
        results = run_plan(plan, results_store, backend, watcher or Silent(), choices=choices)
        remember(results, results_store)
    return results


def remember(results: Results, store: Store) -> None:
    """Keep the verdicts, so that `paperworks list` can show them beside the shipped ones."""
    request = results.plan.request
    changes = [f"{k}={v}" for k, values in sorted(request.overrides.items()) for v in values]
    verdicts = [verdict.to_json() for verdict in results.claims()]
    store.save_verdicts(results.slug, request.scale, verdicts, overrides=" ".join(changes))


def plan_of(slug: str, request: Request) -> Plan:
    """The plan for a paper of the catalogue."""
    paper = catalogue().get(slug)
    return Plan(slug, paper.study, study_of(paper), request)


def study_of(paper: Paper) -> Study:
    """The paper's study, imported.

    Raises:
        UserError: a package is missing; names the extra that brings it.
    """
    try:
        importlib.import_module(paper.study)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "paperworks", paper.study.partition(".")[0]):
            raise UserError(f"{paper.slug}: cannot import {paper.study}: {error}") from error
        extras = ",".join(paper.extras) or "all"
        raise UserError(
            f"{paper.slug} needs {error.name}: pip install '{paper.distribution}[{extras}]'"
        ) from error
    return load_study(paper.study)


def chosen_seeds(
    paper: Paper, scale: str, seeds: int | Sequence[int] | None, dev: bool
) -> tuple[int, ...]:
    """The seeds of a run: the first few of the published block, unless told otherwise."""
    if seeds is not None and not isinstance(seeds, int):
        if not seeds or any(not isinstance(seed, int) or seed < 0 for seed in seeds):
            raise UserError(f"seeds: expected whole numbers from 0 up, got {list(seeds)}")
        return tuple(dict.fromkeys(seeds))
    count = SEEDS.get(scale, 1) if seeds is None else seeds
    if count < 1:
        raise UserError(f"seeds: expected at least 1, got {count}")
    if dev or scale == "smoke":  # a smoke run decides nothing: it leaves the published seeds alone
        if count > len(DEVELOPMENT_SEEDS):
            raise UserError(f"seeds: there are 10 development seeds, got {count}")
        return tuple(DEVELOPMENT_SEEDS[:count])
    evidence = shipped.read(paper.slug, paper.evidence)
    first = evidence["seeds"][0] if evidence else FIRST_BLOCK
    return tuple(range(first, first + count))


@contextmanager
def running(jobs: int | None, on: str | None = None) -> Iterator[Backend]:
    """A backend, stopped at the end whatever happens: local workers, or those of a cluster.

    Raises:
        UserError: a wrong number of workers or a wrong place, or a cluster that cannot be used.
    """
    backend = _local(jobs) if on is None else _cluster(jobs, on)
    try:
        yield backend
    finally:
        backend.stop()


def _local(jobs: int | None) -> Backend:
    if jobs is not None and jobs < 0:
        raise UserError(f"jobs: expected 0 or more, got {jobs}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return InProcess() if jobs == 0 else LocalProcesses(jobs or cores or 1)


def _cluster(jobs: int | None, on: str) -> Backend:
    place = re.fullmatch(r"dask:((?:tcp|tls)://(?:\[[\da-fA-F:]+\]|[^\s:/@\[\]]+):\d{1,5})", on)
    if place is None:
        raise UserError(f"on: expected dask:tcp://host:port, got {on!r}")
    if jobs is not None:
        raise UserError("jobs: a cluster has as many as it has workers; leave jobs out")
    from paperworks.study.dask import DaskCluster

    return DaskCluster(place[1])
