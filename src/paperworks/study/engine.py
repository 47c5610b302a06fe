"""Runs a plan: what the store lacks goes to the backend, what comes back is stored at once."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from paperworks.study.backends import Backend
from paperworks.study.plan import Choices, Plan
from paperworks.study.results import Results
from paperworks.study.store import Store, Trial
from paperworks.study.worker import Outcome, Task


class Watcher(Protocol):
    """Whoever looks on: the command line's bar, or nobody."""

    def begin(self, slug: str, stage: str, total: int, done: int) -> None:
        """A stage of a study starts; `done` of its `total` trials are in the store."""

    def finished(self, task: Task, outcome: Outcome) -> None:
        """A trial is finished and stored."""

    def under_way(self, reports: list[dict[str, Any]]) -> None:
        """How far long trials are: `{"key", "done", "total"}` each."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: everything is stopped, what had finished is stored."""


def run(
    plan: Plan, store: Store, backend: Backend, watcher: Watcher, *, choices: Choices | None = None
) -> Results:
    """Tune what needs tuning, run the trials, gather the results.

    Args:
        choices: tuned settings known beforehand, as the evidence carries them.
    """
    known = dict(choices or {})
    tuning = {t.key: t for rows in plan.tuning(known).values() for row in rows for t in row}
    execute(plan, tuning.values(), "tuning", store, backend, watcher)
    metrics = {key: t.metrics for key, t in store.trials(plan.slug, tuning).items()}
    chosen = plan.choose(known, metrics)
    tasks = plan.trials(chosen)
    execute(plan, tasks.values(), "trials", store, backend, watcher)
    return Results.gather(plan, chosen, tasks, store)


def remaining(plan: Plan, store: Store, known: Choices) -> tuple[int, int, float]:
    """For `--dry-run`: trials to run now, trials stored, and the mean seconds of one stored.

    Tuning that is not done yet counts as to run; the trials after it too, whatever it chooses.
    """
    stored = store.trials(plan.slug)
    tuning = {t.key: t for rows in plan.tuning(known).values() for row in rows for t in row}
    metrics = {key: stored[key].metrics for key in tuning if key in stored}
    tasks = {t.key for t in plan.trials(plan.choose(known, metrics)).values()} | set(tuning)
    done = {key for key in tasks if key in stored and stored[key].status == "ok"}
    seconds = [trial.seconds for trial in stored.values() if trial.scale == plan.request.scale]
    return len(tasks) - len(done), len(done), sum(seconds) / max(len(seconds), 1)


def execute(
    plan: Plan, tasks: Iterable[Task], stage: str, store: Store, backend: Backend, watcher: Watcher
) -> None:
    """Run the tasks that are not in the store; a failed one is tried again.

    At most twice as many trials as workers are in flight. Trials whose time is measured come last,
    one at a time.

    Raises:
        Interrupted: Ctrl-C; the backend has stopped.
    """
    tasks = list(tasks)
    statuses = store.statuses(plan.slug)
    left = [task for task in tasks if statuses.get(task.key) != "ok"]
    if tasks:
        watcher.begin(plan.slug, stage, len(tasks), len(tasks) - len(left))
    try:
        with tempfile.TemporaryDirectory(prefix="paperworks-") as folder:
            for alone in (False, True):
                line = deque(task for task in left if task.alone == alone)
                _drain(plan, line, alone, store, backend, watcher, Path(folder))
    except KeyboardInterrupt:
        backend.stop()
        raise Interrupted from None
    except BaseException:
        backend.stop()
        raise


def _drain(
    plan: Plan,
    line: deque[Task],
    alone: bool,
    store: Store,
    backend: Backend,
    watcher: Watcher,
    folder: Path,
) -> None:
    flying = 0
    while line or flying:
        while line and flying < (1 if alone else 2 * backend.jobs):  # workers come and go
            backend.submit(dataclasses.replace(line.popleft(), watch=str(folder)))
            flying += 1
        quiet = True
        for task, outcome in backend.as_completed():
            quiet = False
            flying -= 1
            store.save(_row(plan, task, outcome))
            watcher.finished(task, outcome)
        if quiet:
            watcher.under_way(_reports(folder))


def _row(plan: Plan, task: Task, outcome: Outcome) -> Trial:
    return Trial(
        key=task.key,
        slug=plan.slug,
        experiment=task.experiment,
        setting=task.setting,
        seed=task.seed,
        scale=plan.request.scale,
        fingerprint=task.fingerprint,
        data=task.data,
        stamp=plan.stamp,
        environment=plan.environment,
        status="ok" if outcome.metrics is not None else "failed",
        metrics=outcome.metrics,
        witness=outcome.witness,
        error=outcome.error,
        seconds=outcome.seconds,
        artefacts=outcome.artefacts,
    )


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.iterdir() if not file.suffix]


def published_choices(plan: Plan, evidence: Mapping[str, Any] | None) -> dict[Any, Any]:
    """The evidence's choices that hold for this plan: same code, same cell, no rival's."""
    from paperworks.study.evidence import choices_of

    if evidence is None or plan.request.retune or plan.request.scale != "desk":
        return {}
    return {
        (name, cell): choice
        for (name, cell), choice in choices_of(evidence).items()
        if evidence["fingerprints"].get(name) == plan.fingerprints.get(name)
    }
