"""What a run found: trials as a table, verdicts on the claims, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperworks.study.claims import Verdict
from paperworks.study.contract import Setting
from paperworks.study.plan import Choices, Plan
from paperworks.study.store import Store, Trial
from paperworks.study.terms import Record, Table
from paperworks.study.worker import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Results:
    """The outcome of one study's run.

    Attributes:
        plan: what was asked, with its environment and fingerprints.
        trials: the stored trials by experiment, canonical cell and seed.
        choices: what tuning chose for each cell.
        failures: the trials that raised, were not finite, or killed their worker.
    """

    def __init__(
        self, plan: Plan, choices: Choices, trials: Mapping[tuple[str, str, int], Trial]
    ) -> None:
        self.plan, self.choices, self.trials = plan, choices, trials
        self.failures = [trial for trial in trials.values() if trial.status != "ok"]
        cells = {cell: Setting(json.loads(cell)) for cell in {place[1] for place in trials}}
        self.table = Table(
            Record(
                experiment=name,
                cell=cells[cell],
                seed=seed,
                metrics=trial.metrics,
                tuned=choices.get((name, cell), Setting()),
            )
            for (name, cell, seed), trial in trials.items()
        )

    @classmethod
    def gather(
        cls,
        plan: Plan,
        choices: Choices,
        tasks: Mapping[tuple[str, str, int], Task],
        store: Store,
    ) -> Results:
        stored = store.trials(plan.slug, {task.key for task in tasks.values()})
        return cls(plan, choices, {place: stored[task.key] for place, task in tasks.items()})

    @property
    def slug(self) -> str:
        return self.plan.slug

    def claims(self) -> list[Verdict]:
        """The verdict on each claim that was asked for."""
        cells, seeds = self.plan.grids, self.plan.request.seeds
        return [claim.evaluate(self.table, cells, seeds) for claim in self.plan.claims]

    def frame(self) -> DataFrame:
        """A row a finished trial: experiment, seed, every setting key, every metric, seconds."""
        import pandas as pd

        return pd.DataFrame(
            {
                "experiment": name,
                "seed": seed,
                **trial.setting,
                **trial.metrics,
                "seconds": trial.seconds,
            }
            for (name, _, seed), trial in self.trials.items()
            if trial.metrics is not None
        )

    def figures(self) -> dict[str, Figure]:
        """The study's figures, drawn from the finished trials; one without trials is left out."""
        frame = self.frame()
        ran = set(frame["experiment"]) if len(frame) else set()
        return {
            figure.name: figure.draw(frame)
            for figure in self.plan.study.figures
            if ran and (figure.experiment is None or figure.experiment in ran)
        }

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Write each figure as a PNG into `folder`, and give the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in self.figures().items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
        return paths

    def to_json(self) -> dict[str, Any]:
        """Everything a machine may want to read: claims, trials, failures, environment."""
        return {
            "slug": self.slug,
            "scale": self.plan.request.scale,
            "seeds": list(self.plan.request.seeds),
            "environment": self.plan.environment,
            "claims": [verdict.to_json() for verdict in self.claims()],
            "trials": [
                {
                    "experiment": name,
                    "setting": trial.setting,
                    "seed": seed,
                    "metrics": trial.metrics,
                }
                for (name, _, seed), trial in self.trials.items()
            ],
            "failures": [
                {"setting": t.setting, "seed": t.seed, "error": t.error} for t in self.failures
            ],
        }

    def witnesses(self) -> Sequence[tuple[str, str, int, Mapping[str, str]]]:
        """What each trial recorded of its split and weights: for checking that seeds are paired."""
        return [(n, cell, seed, trial.witness) for (n, cell, seed), trial in self.trials.items()]
