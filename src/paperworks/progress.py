"""What a person sees of a run: a live bar, the verdict table, how to go on after Ctrl-C."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from paperworks.study.engine import Interrupted
from paperworks.study.evidence_files import SIGNS
from paperworks.study.results import Results
from paperworks.study.worker import Outcome, Task

COLOURS = {
    "reproduced": "green",
    "smaller than stated": "yellow",
    "not reproduced": "red",
    "inconclusive": "magenta",
    "reported": "dim",
}


@contextmanager
def interruptible() -> Iterator[None]:
    """After Ctrl-C, say what is kept and how to go on, and exit with 130."""
    try:
        yield
    except Interrupted:
        command = shlex.join(["paperworks", *sys.argv[1:]])
        click.echo(f"\nstopped; every finished trial is stored. Go on with: {command}", err=True)
        sys.exit(130)


@contextmanager
def watching(quiet: bool) -> Iterator[Bar | Lines]:
    """A live bar on a terminal, plain lines elsewhere; on stderr, so that stdout can be piped."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Lines(console, quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress)


class Bar:
    """One bar a stage, with the metrics of the trial that finished last."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, slug: str, stage: str, total: int, done: int) -> None:
        name = f"{slug} {stage}"
        self._task = self._progress.add_task(name, total=total, completed=done, last="")

    def finished(self, task: Task, outcome: Outcome) -> None:
        self._progress.update(self._task, advance=1, last=_said(task, outcome))

    def under_way(self, reports: list[dict[str, Any]]) -> None:
        if reports:
            last = ", ".join(f"{r['done']}/{r['total']}" for r in reports)
            self._progress.update(self._task, last=f"in a trial: {last}")


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet, self._spoken = console, quiet, 0.0

    def begin(self, slug: str, stage: str, total: int, done: int) -> None:
        self._name, self._total, self._done = f"{slug} {stage}", total, done
        self._say(f"{self._name}: {total - done} trials to run, {done} stored")

    def finished(self, task: Task, outcome: Outcome) -> None:
        self._done += 1
        if outcome.error or self._done == self._total or time.monotonic() - self._spoken > 5:
            self._say(f"{self._name}: {self._done} of {self._total}, {_said(task, outcome)}")

    def under_way(self, reports: list[dict[str, Any]]) -> None:
        pass

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _said(task: Task, outcome: Outcome) -> str:
    where = " ".join(str(v) for k, v in task.setting.items() if k in ("method", "task"))
    if outcome.metrics is None:
        return f"{where} seed {task.seed} FAILED: {outcome.error.strip().splitlines()[-1]}"
    first = {k: v for k, v in outcome.metrics.items() if isinstance(v, float)}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in list(first.items())[:2])
    return f"{where} seed {task.seed}: {shown}"


def print_results(results: Results, figures: Path) -> None:
    """The verdict table, the failures, and where the figures are."""
    console = Console()
    request = results.plan.request
    seeds = f"{len(request.seeds)} seeds from {request.seeds[0]}"
    table = Table(title=f"{results.slug}, {request.scale} scale, {seeds}", title_justify="left")
    for column in ("", "claim", "verdict", "measured"):
        table.add_column(column)
    for v in results.claims():
        colour = COLOURS[v.verdict]
        verdict = f"[{colour}]{SIGNS[v.verdict]} {v.verdict}[/{colour}]"
        table.add_row(v.claim, v.text, verdict, v.sentence())
    console.print(table)
    for trial in results.failures[:5]:
        last = trial.error.strip().splitlines()[-1] if trial.error else ""
        console.print(f"failed: {trial.experiment} {trial.setting} seed {trial.seed}: {last}",
                      markup=False)  # fmt: skip
    if len(results.failures) > 5:
        console.print(f"... and {len(results.failures) - 5} more failed trials")
    paths = results.save_figures(figures)
    if paths:
        console.print(f"figures: {', '.join(str(path) for path in paths)}", soft_wrap=True)
