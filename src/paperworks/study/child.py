"""A process beside a Dask worker, in which that worker's trials run one after the other.

Not in the worker itself: Dask's own threads draw from Python's global generator twice a second, as
trials must not; long imports would silence the worker's heartbeat; and a worker outlives the runs
that use it, and with them the code that it has loaded. Nothing here imports torch or the code of
trials outside of the child, so that the scheduler and the workers of a cluster stay light.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

START = "import sys; from paperworks.study.child import serve; serve(*map(int, sys.argv[1:]))"

_one_at_a_time = threading.Lock()
_child: Child | None = None


def perform_in_child(call: bytes, environment: Mapping[str, str]) -> bytes | int:
    """On a worker: what `answer` returns for the call, or the exit code of a child that died of it.

    A child that dies once may have been told to; the second has died of the call.

    Args:
        call: the pickled arguments of `answer`.
        environment: variables that the child gets besides those of the worker.
    """
    global _child
    with _one_at_a_time:
        deaths = 0
        while deaths < 2:
            _child = _child or Child(environment)
            try:
                answered = _child.ask(call)
                if answered:
                    return answered
            except (EOFError, OSError):
                deaths += 1
            code = _child.end()
            _child = None
        return code


class Child:
    """The process; it ends with the worker, however that goes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._connection, there = Pipe()
        command = [sys.executable, "-c", START, str(there.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, pass_fds=[there.fileno()]
        )
        there.close()

    def ask(self, call: bytes) -> bytes:
        self._connection.send_bytes(call)
        return self._connection.recv_bytes()

    def end(self) -> int:
        self._connection.close()
        self._process.kill()
        return self._process.wait()


def serve(descriptor: int, worker: int) -> None:
    """In the child: answer calls until the worker has gone.

    Once the code has been edited the answer is empty, and the worker starts a child with the new.
    """
    started, fresh = time.time(), True

    from paperworks.study.worker import start_worker

    start_worker(worker)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError):
        while True:
            call = connection.recv_bytes()
            old = not fresh and edited(started)
            connection.send_bytes(b"" if old else pickle.dumps(answer(call)))
            fresh = False


def answer(call: bytes) -> Any:
    """The outcome of a trial, or one line on why it may not run here.

    Args:
        call: the environment planned for, folders to import from, and the pickled task; pickled.
    """
    from paperworks.study.environment import environment
    from paperworks.study.errors import UserError
    from paperworks.study.fingerprint import fingerprints
    from paperworks.study.worker import perform

    host = socket.gethostname()
    planned, paths, packed = pickle.loads(call)
    sys.path += [path for path in paths if path not in sys.path]  # where a rival may come from
    try:
        task = pickle.loads(packed)
    except Exception as error:
        return f"a worker on {host} cannot take the trial: {' '.join(repr(error).split())}"
    try:
        difference = differing(planned, environment(task.device))
        if difference:
            raise UserError(f"another environment: {difference}")
        outcome = perform(task)
        if outcome.metrics is None and task.fingerprint not in fingerprints(task.module).values():
            raise UserError(f"{task.module} is not the code that was planned")
    except UserError as error:
        return f"a worker on {host} cannot take the trial: {error}"
    return outcome


def differing(planned: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What makes an environment another than the planned one; empty when bits will be equal.

    >>> differing({"cpu": "AVX2", "os": "Linux"}, {"cpu": "AVX512", "os": "Linux"})
    'cpu is AVX512, not AVX2'
    """
    from paperworks.study.environment import SPEAKS_OF_NO_BITS

    parts = sorted((planned.keys() | here.keys()) - SPEAKS_OF_NO_BITS)
    return "; ".join(
        f"{part} is {here.get(part)}, not {planned.get(part)}"
        for part in parts
        if here.get(part) != planned.get(part)
    )


def edited(since: float) -> bool:
    """Whether a loaded source is younger, in seconds of the clock.

    Fingerprints are read from disk: old code would run under the fingerprint of the new.
    """
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return any(os.stat(f).st_mtime > since for f in files if f and os.path.exists(f))
