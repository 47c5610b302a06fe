"""What runs in a worker: one trial at a time, on one thread, whatever it does."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paperworks.study.contract import Experiment, Setting, Study
from paperworks.study.errors import UserError
from paperworks.study.fingerprint import fingerprints
from paperworks.study.fixtures import GlobalDraw, cache_folder, isolated_generators
from paperworks.study.run import Run, derive

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Task:
    """A trial on its way to a worker: plain values only."""

    key: str
    module: str
    experiment: str
    setting: dict[str, Any]
    seed: int
    fingerprint: str
    device: str = "cpu"
    data: str = ""
    added: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    watch: str = ""
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    metrics: dict[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0
    witness: dict[str, str] = field(default_factory=dict)
    artefacts: dict[str, bytes] = field(default_factory=dict)


def start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def perform(task: Task) -> Outcome:
    """Run one trial; an exception becomes a failed outcome with its traceback."""
    with _one_at_a_time:
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        start = time.perf_counter()
        try:
            torch.set_num_threads(1)
            torch.set_default_dtype(torch.float32)
            return _perform(task, start)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            lines = [traceback.format_exc().replace("\0", "\\0")]
            if isinstance(error, UserError):
                lines = [f"{error}\n"]
            return Outcome(error="".join(lines), seconds=time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


def _perform(task: Task, start: float) -> Outcome:
    experiment, modules = _experiment(task), len(sys.modules)
    try:
        return _measured(task, experiment, start)
    except GlobalDraw:
        if len(sys.modules) == modules:
            raise
        # Some libraries draw while they are imported. Now they are, so again: who draws now, fails.
        return _measured(task, experiment, start)


def _measured(task: Task, experiment: Experiment, start: float) -> Outcome:
    checkpoint = cache_folder() / "checkpoints" / task.key
    run = Run(
        task.seed,
        device=task.device,
        methods={**experiment.methods, **{n: load_method(m) for n, m in task.added.items()}},
        data_digest=task.data,
        checkpoint=checkpoint,
        report=_reporter(task) if task.watch else None,
    )
    with isolated_generators(derive(task.seed, "global"), run.device):
        metrics = experiment.trial(Setting(task.setting), run)
    metrics = checked(metrics)
    if checkpoint.exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
    seconds = time.perf_counter() - start
    return Outcome(metrics, "", seconds, run.witnesses, run.artefacts)


def _experiment(task: Task) -> Experiment:
    for path in task.paths:
        if path not in sys.path:
            sys.path.append(path)
    experiment = load_study(task.module).experiment(task.experiment)
    if task.fingerprint != _fingerprints(task.module)[experiment.trial.__name__]:
        raise UserError(
            f"{task.module} on this worker is not the code that was planned: restart the workers "
            "with the same version"
        )
    return experiment


_fingerprints = functools.cache(fingerprints)


def load_study(module: str) -> Study:
    """The `study` of a study's module.

    Raises:
        UserError: the module needs an extra that is not installed, or holds no study.
    """
    try:
        study = importlib.import_module(module).study
    except AttributeError:
        raise UserError(f"{module} defines no `study = Study(...)`") from None
    if not isinstance(study, Study):
        raise UserError(f"{module}.study is a {type(study).__name__}, not a Study")
    return study


def load_method(spec: str | Callable[..., Any]) -> Any:
    """A user's rival from `module:name`, or the object itself."""
    if not isinstance(spec, str):
        return spec
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UserError(f"cannot add {spec!r}: write module:factory, e.g. my_methods:Rounding")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"cannot add {spec!r}: no module named {error.name!r}") from None
    if not hasattr(loaded, name):
        raise UserError(f"cannot add {spec!r}: {module} has no {name!r}")
    return getattr(loaded, name)


def checked(metrics: Any) -> dict[str, float | list[float]]:
    """A trial's metrics as plain finite floats and lists of them.

    Raises:
        ValueError: a metric is NaN or infinite, or not a number.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise ValueError(f"a trial returns a mapping of metrics, this one {metrics!r}")
    return {str(name): _plain(name, value) for name, value in metrics.items()}


def _plain(name: str, value: Any) -> float | list[float]:
    if isinstance(value, list | tuple):
        return [_number(name, item) for item in value]
    if getattr(value, "ndim", 0):
        return [_number(name, item) for item in value.tolist()]
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    if hasattr(value, "tolist"):  # a tensor or an array, or a scalar of one
        value = value.tolist()
    if not isinstance(value, int | float):
        raise ValueError(f"metric {name!r} is {value!r}, not a number")
    if not math.isfinite(value):
        raise ValueError(
            f"metric {name!r} is {value}: report divergence as a metric `diverged` and the others "
            "at their worst value"
        )
    return float(value)


def _reporter(task: Task) -> Callable[[int, int], None]:
    path, last = Path(task.watch) / str(os.getpid()), 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            text = json.dumps({"key": task.key, "done": done, "total": total})
            with contextlib.suppress(OSError):  # the watcher is a comfort, never a failure
                part = path.with_suffix(".part")
                part.write_text(text)
                os.replace(part, path)

    return report
