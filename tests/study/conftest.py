"""A folder of its own for each test, with a study, a store, a cache and a log of trials in it."""

import os
import shutil
import socket
import subprocess
import tempfile
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


class Server:
    """A PostgreSQL server of our own in a temporary folder, which takes nobody without a password.

    It runs as the user `postgres` where we are root, since PostgreSQL refuses root.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries, self.runs = binaries, False
        self._folder = Path(tempfile.mkdtemp(prefix="paperworks-postgresql-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self._folder / "password"
        password.write_text("secret")
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
        self._data = self._folder / "data"
        self._run(
            "initdb", "-D", self._data, "-U", "owner", "-A", "scram-sha-256", "--no-sync",
            "-E", "UTF8", f"--pwfile={password}",
        )  # fmt: skip

    def url(self, database: str = "postgres", password: str = "secret") -> str:
        return f"postgresql://owner:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self._folder}"
        log = self._folder / "log"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)
        self.runs = True

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", "fast")
        self.runs = False

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._binaries / program), *map(str, words)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        log = self._folder / "commands.log"
        with log.open("a") as out:  # no pipe: the server would hold it open
            done = subprocess.run(command, stdout=out, stderr=out, cwd="/", timeout=60)
        assert done.returncode == 0, log.read_text()


@pytest.fixture(scope="session")
def postgresql_server():
    """A running server; skips where PostgreSQL is not installed."""
    pytest.importorskip("psycopg")
    places = [Path(place).parent for place in filter(None, [shutil.which("initdb")])]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's, which is not on PATH
    if not places:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    server = Server(places[-1])
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.fixture
def postgresql(request):
    """The URL of an empty database, on the server of $PAPERWORKS_TEST_POSTGRESQL or our own."""
    psycopg = pytest.importorskip("psycopg")
    given = os.environ.get("PAPERWORKS_TEST_POSTGRESQL")
    url = given or request.getfixturevalue("postgresql_server").url()
    name = f"paperworks_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{url.rpartition('/')[0]}/{name}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
