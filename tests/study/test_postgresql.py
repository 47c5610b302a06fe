"""The store on a real PostgreSQL server; `test_store.py` holds what it does on either database."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from paperworks.study import engine
from paperworks.study import store as module
from paperworks.study.api import Silent, running
from paperworks.study.errors import StoreError
from paperworks.study.store import Store, Trial, read_verdicts

psycopg = pytest.importorskip("psycopg")

STUDY = """
    def trial(setting, run):
        value = torch.rand(3, generator=run.rng("split"))
        run.artefact("value", {"value": value})
        return {"z": value, "a": -0.0, "large": 1e22 + setting.n}

    values = Experiment(trial, {}, *[grid(n=[1, 2])] * 3)
    study = Study("sample", [values], [Claim("C1", "It is.", report(values.metric("a")(n=1)))])
"""


def make(key: str, **changes):
    values = {
        "key": key, "slug": "sample", "experiment": "e", "setting": {"n": 1}, "seed": 100,
        "scale": "desk", "fingerprint": "f", "data": "", "stamp": "s", "environment": {},
        "status": "ok", "metrics": {"value": 1.0}, "witness": {}, "error": "", "seconds": 1.0,
    }  # fmt: skip
    return Trial(**{**values, **changes})


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        asked = connection.execute(statement)
        return asked.fetchall() if asked.description else None


def content(url):
    """Every table and its rows."""
    names = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    tables = sorted(name for (name,) in ask(url, f"{names} AND relkind = 'r'"))
    return {table: ask(url, f"SELECT * FROM {table}") for table in tables}


def refuse(url, words):
    """Opening is refused in one line without the password; nothing has changed; gives the line."""
    with pytest.raises(StoreError, match=words) as caught:
        Store(url)
    line = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in line
    assert "secret" not in line
    assert "wrong" not in line
    verdicts, problem = read_verdicts(url)
    assert (verdicts, problem) == ([], line)
    return line


# ---------------------------------------------------------------- versions, other programs' tables


def test_a_store_says_its_version(postgresql):
    for _ in range(2):
        Store(postgresql).close()
    assert ask(postgresql, "SELECT * FROM paperworks_version") == [(module.VERSION,)]


def test_tables_of_another_program_are_left_alone(postgresql):
    ask(postgresql, "CREATE TABLE trials (name text)")
    ask(postgresql, "INSERT INTO trials VALUES ('precious')")
    refuse(postgresql, "no store of paperworks; it was left as it is")
    assert content(postgresql) == {"trials": [("precious",)]}


def test_tables_of_other_names_may_stand_beside(postgresql):
    ask(postgresql, "CREATE TABLE patients (name text)")
    with Store(postgresql) as store:
        store.save(make("k"))
    with Store(postgresql) as store:
        assert store.statuses("sample") == {"k": "ok"}
    assert content(postgresql)["patients"] == []


def test_too_new_a_version_is_left_alone(postgresql):
    Store(postgresql).close()
    ask(postgresql, "UPDATE paperworks_version SET n = 99")
    before = content(postgresql)
    refuse(postgresql, "written by a newer paperworks")
    assert content(postgresql) == before


def test_an_older_version_is_brought_up_to_date(postgresql, monkeypatch):
    with Store(postgresql) as store:
        store.save(make("old"))
    monkeypatch.setattr(module, "VERSION", 3)
    steps = {
        1: ["CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('one')"],
        2: ["UPDATE notes SET text = text || ', two'"],
    }
    monkeypatch.setattr(module, "MIGRATIONS", steps)
    for _ in range(2):
        with Store(postgresql) as store:
            store.save(make("new"))
            assert set(store.statuses("sample")) == {"old", "new"}
    assert ask(postgresql, "SELECT * FROM notes") == [("one, two",)]
    assert ask(postgresql, "SELECT * FROM paperworks_version") == [(3,)]


def test_a_migration_that_fails_changes_nothing(postgresql, monkeypatch):
    Store(postgresql).close()
    before = content(postgresql)
    monkeypatch.setattr(module, "VERSION", 2)
    monkeypatch.setattr(module, "MIGRATIONS", {1: ["CREATE TABLE notes (text TEXT)", "NONSENSE"]})
    refuse(postgresql, "NONSENSE")
    assert content(postgresql) == before


def test_several_may_make_a_store_at_once(postgresql):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(Store, [postgresql] * 8))
    for i, store in enumerate(stores):
        with store:
            store.save(make(f"{i}"))
    assert len(content(postgresql)["trials"]) == 8
    assert ask(postgresql, "SELECT * FROM paperworks_version") == [(module.VERSION,)]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes",
    [{"metrics": {"value": float("nan")}}, {"metrics": {"value": float("inf")}},
     {"setting": {"data": "a\0b"}}],
)  # fmt: skip
def test_what_postgresql_refuses_never_reaches_it(postgresql, changes):
    from sqlalchemy import event

    with Store(postgresql) as store:
        sent = []
        event.listen(store._engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        with pytest.raises(ValueError):
            store.save(make("k", **changes))
        assert sent == []


def test_a_wrong_password_is_one_line(postgresql_server):
    line = refuse(postgresql_server.url(password="wrong"), "password authentication failed")
    port = postgresql_server.port
    assert line.startswith(f"store postgresql://127.0.0.1:{port}/postgres cannot be used: ")


def test_a_password_among_the_options_is_not_told(postgresql_server):
    url = f"postgresql://127.0.0.1:{postgresql_server.port}/postgres?user=owner&password=wr%40ng"
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Store(url)
    assert "wr" not in str(caught.value)


def test_a_database_that_is_not_there_is_one_line(postgresql_server):
    refuse(postgresql_server.url("nowhere"), 'database "nowhere" does not exist')


def test_no_server_is_one_line():
    refuse("postgresql://me:secret@127.0.0.1:1/db", "store postgresql://127.0.0.1:1/db .*refused")


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "ANSWER", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(StoreError, match="timeout"):
            Store(url)


# ---------------------------------------------------------------- restarts


@pytest.fixture
def server(postgresql_server):
    """A server that the test may stop."""
    yield postgresql_server
    if not postgresql_server.runs:
        postgresql_server.start()


@pytest.fixture
def database(server):
    ask(server.url(), "CREATE DATABASE restarted")
    yield server.url("restarted")
    ask(server.url(), "DROP DATABASE restarted WITH (FORCE)")


def test_a_restart_between_two_trials_is_not_noticed(server, database):
    with Store(database) as store:
        store.save(make("before"))
        server.stop()
        server.start()
        store.save(make("after"))
        assert set(store.statuses("sample")) == {"before", "after"}


def test_a_trial_that_ends_during_a_restart_is_stored(server, database):
    with Store(database) as store:
        store.save(make("before"))
        server.stop()
        back = threading.Timer(1, server.start)
        back.start()
        store.save(make("during", artefacts={"a": b"content"}))
        back.join()
        assert set(store.statuses("sample")) == {"before", "during"}
        assert store.artefacts("during") == {"a": b"content"}


def test_a_server_that_stays_away_is_one_line_and_loses_nothing(server, database, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    with Store(database) as store:
        store.save(make("before"))
        server.stop()
        with pytest.raises(StoreError, match=r"store postgresql://.* cannot be used") as caught:
            store.save(make("lost"))
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        server.start()
        store.save(make("after"))
        assert set(store.statuses("sample")) == {"before", "after"}


# ---------------------------------------------------------------- runs


def test_a_study_gives_the_same_from_either_store(project, postgresql):
    plan = project.plan(project.write(STUDY))
    here = project.run(plan)
    with Store(postgresql) as store, running(0) as backend:
        there = engine.run(plan, store, backend, Silent())
        again = engine.run(plan, store, backend, Silent())
    assert len(project.logged()) == 0
    found, expected, repeated = (
        {place: repr(trial.metrics) for place, trial in results.trials.items()}
        for results in (there, here, again)
    )
    assert found == expected == repeated
    with Store(postgresql) as one, Store() as other:
        keys = [trial.key for trial in here.trials.values()]
        assert all(one.artefacts(key) == other.artefacts(key) != {} for key in keys)


def test_the_catalogue_shows_verdicts_from_the_server(postgresql):
    with Store(postgresql) as store:
        store.save_verdicts("relreps", "desk", [{"claim": "C1", "verdict": "reproduced"}])
    command = [sys.executable, "-m", "paperworks.cli", "list", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PAPERWORKS_STORE": postgresql}
    )
    assert done.returncode == 0, done.stderr
    assert {row["slug"]: row["yours"] for row in json.loads(done.stdout)}["relreps"] == "1 of 1"
