"""The engine's figures: `python benchmarks/engine.py` prints one table.

A no-op study is written into a temporary folder and run through the same functions as any other.
Times are the best of three, as others may use the machine; memory is that of the first run.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NO_OP = """
from paperworks.study import Experiment, Study, grid

def trial(setting, run):
    return {"value": float(run.seed)}

noop = Experiment(trial, smoke=grid(cell=0), desk=grid(cell=list(range(10))), full=grid(cell=0))
study = Study("noop", experiments=[noop], claims=[])
"""

BUSY = """
import torch
from paperworks.study import Experiment, Study, grid

def trial(setting, run):
    x = torch.rand(500, 500, generator=run.rng("method"))
    for _ in range(setting.steps):
        x = torch.tanh(x @ x / 50)
    return {"value": x.mean()}

busy = Experiment(trial, smoke=grid(steps=1), desk=grid(steps=900), full=grid(steps=1))
study = Study("busy", experiments=[busy], claims=[])
"""


def measure(folder: Path) -> list[tuple[str, str, str]]:
    """What is measured, the figure, the figure to reach."""
    from paperworks.study import api, engine
    from paperworks.study.contract import Setting
    from paperworks.study.plan import Plan, Request
    from paperworks.study.store import Store
    from paperworks.study.worker import load_study

    def plan(module: str, seeds: int) -> Plan:
        request = Request(seeds=tuple(range(seeds)), paths=(str(folder),))
        return Plan(module.removesuffix("_study"), module, load_study(module), request)

    def run(module: str, seeds: int, jobs: int, name: str) -> tuple[float, float]:
        """Seconds, and MB by which the parent has grown at its largest."""
        with Store(str(folder / name)) as store, api.running(jobs) as backend:
            warm = plan(module, 1)
            warm.grids[next(iter(warm.grids))][:] = [Setting(cell=-1, steps=1)] * 1
            engine.run(warm, store, backend, api.Silent())  # workers up, modules imported
            before, start = memory(), time.perf_counter()
            engine.run(plan(module, seeds), store, backend, api.Silent())
            return time.perf_counter() - start, memory() - before

    rows = []
    for jobs, limit in ((0, 0.5), (2, 1.0)):
        names = [f"noop{jobs}-{i}.sqlite" for i in range(3)]
        figures = [run("noop_study", 1000, jobs, name) for name in names]
        seconds, grown = min(seconds for seconds, _ in figures), figures[0][1]
        where = "in process" if jobs == 0 else "through local processes"
        rows.append((f"a no-op trial, stored, {where}", f"{seconds / 10:.2f} ms", f"{limit} ms"))
        rows.append((f"the parent over 10,000 trials {where}", f"+{grown:.0f} MB", "+20 MB"))
    again = min(run("noop_study", 1000, 0, "noop0-0.sqlite")[0] for _ in range(3))
    rows.append(("resume of 10,000 finished trials", f"{again:.2f} s", "0.5 s"))
    one, two = (run("busy_study", 6, jobs, f"busy{jobs}.sqlite")[0] for jobs in (1, 2))
    rows.append(("throughput of two workers over one", f"{one / two:.2f}", "1.8"))
    return rows


def memory() -> float:
    """The most that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_of(*words: str) -> float:
    """The median of five cold starts of a command, in seconds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PAPERWORKS_CACHE"] = str(folder / "cache")
        os.environ["PAPERWORKS_STORE"] = str(folder / "none.sqlite")
        (folder / "noop_study.py").write_text(NO_OP)
        (folder / "busy_study.py").write_text(BUSY)
        sys.path.append(str(folder))
        rows = measure(folder)
    listed, bare = start_of("-m", "paperworks.cli", "list"), start_of("-c", "pass")
    rows.append(("`paperworks list`, cold", f"{listed:.3f} s", f"0.25 s, or {20 * bare:.3f} s"))
    wide = max(len(what) for what, _, _ in rows)
    for what, figure, limit in rows:
        print(f"{what:{wide}}  {figure:>10}  to reach: {limit}")


if __name__ == "__main__":
    main()
