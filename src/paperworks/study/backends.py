"""Where trials run. A backend takes tasks with `submit`, hands back what is finished with
`as_completed`, and ends with `stop`; `dask.py` has one more class of this shape."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from loky.process_executor import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from paperworks.study.worker import ONE_THREAD, Outcome, Task, perform, start_worker

PATIENCE = 0.5  # seconds that as_completed waits before it lets the parent look around


class Backend(Protocol):
    jobs: int

    def submit(self, task: Task) -> None:
        """Start a task, or put it in line."""

    def as_completed(self) -> Iterator[tuple[Task, Outcome]]:
        """The tasks that finish within a moment; none is fine, the caller asks again."""

    def stop(self) -> None:
        """End at once and leave nothing running."""


class InProcess:
    """Trials in this very process, one after the other: for a debugger, and for tiny trials."""

    jobs = 1

    def __init__(self) -> None:
        self._line: deque[Task] = deque()
        self._limits = threadpool_limits(1)  # BLAS as in a worker, so that bits are equal

    def submit(self, task: Task) -> None:
        self._line.append(task)

    def as_completed(self) -> Iterator[tuple[Task, Outcome]]:
        if self._line:
            task = self._line.popleft()
            yield task, perform(task)

    def stop(self) -> None:
        self._line.clear()
        self._limits.restore_original_limits()


class LocalProcesses:
    """Worker processes on this machine, one thread each.

    A worker that dies takes its whole pool with it. What was in flight then runs again one at a
    time in a pool of one: what breaks that pool too is the trial at fault, and fails; the others
    finish.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None
        self._flying: dict[Future[Any], Task] = {}
        self._suspects: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        try:
            if self._pool is None:
                self._pool = _pool(self.jobs)
            self._flying[self._pool.submit(perform, task)] = task
        except BrokenProcessPool:  # found broken before a future told us
            self._suspects.append(task)

    def as_completed(self) -> Iterator[tuple[Task, Outcome]]:
        finished, _ = wait(self._flying, timeout=PATIENCE, return_when=FIRST_COMPLETED)
        for future in finished:
            task = self._flying.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                self._suspects.append(task)
            else:
                yield task, _outcome(future)
        if self._suspects:
            self._suspects.extend(self._flying.values())
            self._stop_pool()
            while self._suspects:
                task = self._suspects.popleft()
                yield task, self._alone(task)
            self._stop_pool()  # a pool of one is too narrow for what follows

    def stop(self) -> None:
        self._suspects.clear()
        self._stop_pool()

    def _stop_pool(self) -> None:
        self._flying.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None

    def _alone(self, task: Task) -> Outcome:
        self._pool = self._pool or _pool(1)
        future = self._pool.submit(perform, task)
        while not wait([future], timeout=PATIENCE).done:
            pass  # in short waits, which Ctrl-C can end
        if isinstance(future.exception(), BrokenProcessPool):
            self._stop_pool()
        return _outcome(future)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        jobs, initializer=start_worker, initargs=(os.getpid(),), env=ONE_THREAD, timeout=None
    )


def _outcome(future: Future[Any]) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return Outcome(error=f"killed its worker process, twice: {error}\n")
    return Outcome(error=f"could not be sent to a worker or back: {error!r}\n")
