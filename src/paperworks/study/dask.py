"""Trials on a Dask cluster that somebody has started: `--on dask:tcp://host:port`.

Every worker must have one thread, the code that was planned, and the environment of this process:
metrics are compared bit for bit, and methods that compete on a seed may run on different workers.
The first worker that is otherwise ends the run with one line, for a cluster that is half idle
without a word would be worse.

What fails is told apart. A trial that kills every worker it is given to has failed. A cluster that
goes away or cannot take trials ends the run: what had finished is stored, and the next run goes on.

`distributed`, which is most of Dask, is imported by the first `DaskCluster`.
"""

from __future__ import annotations

import logging
import pickle
import queue
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import cloudpickle

from paperworks.study.backends import PATIENCE as MOMENT
from paperworks.study.child import perform_in_child
from paperworks.study.environment import environment
from paperworks.study.errors import ClusterError, UserError
from paperworks.study.worker import ONE_THREAD, Outcome, Task

ANSWER = 10
"""Seconds that a scheduler or a worker has for an answer."""

PATIENCE = 60
"""Seconds without any worker after which a run gives up."""

SAFE = "every finished trial is stored; run the same again to go on"

logger = logging.getLogger(__name__)


class DaskCluster:
    """The workers of a Dask cluster, as many as there are at the time.

    Dask starts a trial again when its worker dies, and gives it up when several have died. With the
    one at fault it gives up those that merely waited on the same workers. So what is given up runs
    once more, one at a time and before all others; what is given up again has failed.

    Args:
        address: of the scheduler, as `tcp://host:8786`.

    Raises:
        UserError: `distributed` is not installed.
        ClusterError: no scheduler answers, or no worker comes. `submit` and `as_completed` raise it
            when the cluster is lost, or a worker may not run what was planned.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(f"Dask needs {error.name}: pip install 'paperworks[cluster]'") from None
        # Its client tells of a lost scheduler in forty lines; a ClusterError does it in one.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        self.jobs = 1
        self._address = address
        self._flying: dict[Any, Task] = {}
        self._landed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._suspects: deque[Task] = deque()
        self._retried: Any = None
        self._looked = self._met = time.monotonic()
        try:
            self._client = Client(address, timeout=ANSWER, set_as_default=False)
        except OSError as error:
            raise ClusterError(f"no Dask scheduler answers at {address}") from error
        try:
            while not self._count():
                time.sleep(MOMENT)
        except BaseException:
            self.stop()
            raise

    def submit(self, task: Task) -> None:
        self._send(task)

    def as_completed(self) -> Iterator[tuple[Task, Outcome]]:
        if time.monotonic() - self._looked > MOMENT:
            self._count()
        for future in self._finished():
            try:
                outcome = self._received(future)
            except TimeoutError:  # lost with its worker before it got here: Dask runs it again
                future.add_done_callback(self._landed.put)
                continue
            task = self._flying.pop(future)
            if outcome is not None:
                yield task, outcome
            elif future is self._retried:
                yield task, Outcome(error="killed its worker, wherever it ran\n")
            else:
                self._suspects.append(task)
        if self._suspects and self._retried not in self._flying:
            self._retried = self._send(self._suspects.popleft(), priority=1)

    def stop(self) -> None:
        self._suspects.clear()
        if self._flying and self._client.status == "running":
            self._client.cancel(list(self._flying))
            logger.warning("trials that have begun on the cluster run on to their end, for nothing")
        self._flying.clear()
        self._client.close(timeout=MOMENT)

    def _count(self) -> int:
        """How many workers there are now.

        Raises:
            ClusterError: the scheduler has gone, there has been no worker for long, or one has
                several threads.
        """
        self._check_connected()
        workers = self._client.scheduler_info()["workers"]
        self._looked = time.monotonic()
        if workers:
            self._met = self._looked
        elif self._looked - self._met > PATIENCE:
            raise ClusterError(
                f"no workers at {self._address} for {PATIENCE} seconds: start some with "
                f"`dask worker {self._address} --nthreads 1`; {SAFE}"
            )
        for address, worker in workers.items():
            if worker["nthreads"] != 1:
                raise ClusterError(
                    f"worker {address} has {worker['nthreads']} threads, which would share torch's "
                    "generator: start workers with --nthreads 1, and several with --nworkers"
                )
        self.jobs = max(len(workers), 1)
        return len(workers)

    def _send(self, task: Task, priority: int = 0) -> Any:
        self._check_connected()
        try:
            packed = cloudpickle.dumps(task)
        except (TypeError, ValueError, pickle.PicklingError) as error:
            raise UserError(f"cannot send {', '.join(task.added)} to a worker: {error}") from error
        call = pickle.dumps((environment(task.device), task.paths, packed))
        future = self._client.submit(  # not pure: two runs of a trial are two calls
            perform_in_child, call, ONE_THREAD, pure=False, priority=priority
        )
        self._flying[future] = task
        future.add_done_callback(self._landed.put)
        return future

    def _finished(self) -> Iterator[Any]:
        """The futures that are done within a moment."""
        try:
            yield self._landed.get(timeout=MOMENT)
            while True:
                yield self._landed.get_nowait()
        except queue.Empty:
            return

    def _received(self, future: Any) -> Outcome | None:
        """What came of a trial; None when Dask gave it up because its workers died.

        Raises:
            TimeoutError: nothing has come after all.
            ClusterError: the trial did not run, and it is not the trial's fault.
        """
        from distributed import CancelledError, KilledWorker

        try:
            received = future.result(timeout=ANSWER)
        except KilledWorker:
            return None
        except CancelledError:
            raise self._lost() from None
        except TimeoutError:
            raise
        except Exception as error:
            raise ClusterError(
                "the cluster cannot take trials; is this paperworks installed on its scheduler and "
                f"all workers? {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if isinstance(received, int):
            return Outcome(error=f"killed its process, twice: exit code {received}\n")
        outcome = pickle.loads(received)
        if isinstance(outcome, str):
            raise ClusterError(f"{outcome}; {SAFE}")
        return outcome

    def _check_connected(self) -> None:
        if self._client.status != "running":
            raise self._lost()

    def _lost(self) -> ClusterError:
        return ClusterError(f"lost the Dask scheduler at {self._address}; {SAFE}")
