"""A folder of its own for each test, with a study, a store, a cache and a log of trials in it."""

import textwrap
import uuid
from pathlib import Path

import pytest

from paperworks.study import engine
from paperworks.study.api import Silent, running
from paperworks.study.plan import Plan, Request
from paperworks.study.store import Store
from paperworks.study.worker import load_study

PREAMBLE = """
    import os, random, signal, time
    import numpy as np
    import torch
    from paperworks.study.claims import Claim, higher, report
    from paperworks.study.contract import Experiment, Study, Tune, grid


    def note(*words):
        with open(os.environ["TRIAL_LOG"], "a") as file:
            file.write(" ".join(map(str, words)) + chr(10))
"""


class Project:
    """A user's folder: modules that can be imported, and where the results of running them go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "trials.log"

    def write(self, source: str, preamble: str = PREAMBLE) -> str:
        """A module of this source, under a name that no test has used; gives the name."""
        name = f"written_{uuid.uuid4().hex[:12]}"
        (self.folder / f"{name}.py").write_text(
            textwrap.dedent(preamble) + textwrap.dedent(source), encoding="utf-8"
        )
        return name

    def plan(self, module: str, seeds=(100, 101), **request) -> Plan:
        asked = Request(seeds=tuple(seeds), paths=(str(self.folder),), **request)
        return Plan("sample", module, load_study(module), asked)

    def run(self, plan: Plan, jobs: int = 0, store: str | None = None):
        """The results, from the project's store or another of its files."""
        place = str(self.folder / store) if store else None
        with Store(place) as kept, running(jobs) as backend:
            return engine.run(plan, kept, backend, Silent())

    def logged(self) -> list[str]:
        """What the trials have noted since this was last asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PAPERWORKS_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("PAPERWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRIAL_LOG", str(tmp_path / "trials.log"))
    return Project(tmp_path)
