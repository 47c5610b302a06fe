"""The store: what goes in comes out, nothing acknowledged is lost, no file of others is touched."""

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from paperworks.study import store as module
from paperworks.study.errors import StoreError, UserError
from paperworks.study.store import Store, Trial, default_location, location, read_verdicts

ENVIRONMENT = {"os": "Linux", "python": "3.11", "torch": "2.13.0"}


def make(key="k", **changes):
    values = {
        "key": key,
        "slug": "flexround",
        "experiment": "rounding",
        "setting": {"method": "rtn", "bits": 3, "lr": 0.1, "data": "digits"},
        "seed": 100,
        "scale": "desk",
        "fingerprint": "f" * 16,
        "data": "",
        "stamp": "s" * 12,
        "environment": ENVIRONMENT,
        "status": "ok",
        "metrics": {"error": 1 / 3, "curve": [1e22, 5e-324, 0.1 + 0.2]},
        "witness": {"split": "abc"},
        "error": "",
        "seconds": 1.5,
    }
    return Trial(**{**values, **changes})


def failed(key="k", **changes):
    return make(key, **{"status": "failed", "metrics": None, "error": "Traceback ...", **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, path):
    """Where a store may be, on either database: for what both must do."""
    return str(path) if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def store(place):
    with Store(place) as store:
        yield store


# ---------------------------------------------------------------- what goes in comes out


def test_trial_comes_back_bit_for_bit(store):
    numbers = [1e22, -0.0, 5e-324, 0.1 + 0.2, 1.0]
    trial = make(seed=2**40, metrics={"z": numbers, "a": 1 / 3}, created="2026-01-01T00:00:00")
    store.save(trial)
    light = dataclasses.replace(trial, environment={})
    assert repr(store.trials("flexround")) == repr({"k": light})  # the order of keys, -0.0, 1e22


def test_created_is_filled_in(store):
    store.save(make())
    assert store.trials("flexround")["k"].created.endswith("+00:00")


def test_failed_trial_keeps_its_traceback_and_no_metrics(store):
    store.save(failed(error="NUL \0 and a lone surrogate \udc80: ü"))
    (trial,) = store.trials("flexround").values()
    assert (trial.status, trial.metrics) == ("failed", None)
    assert trial.error == "NUL \\0 and a lone surrogate \\udc80: ü"


def test_trials_of_a_study_and_of_keys(store):
    for key, slug in (("a", "flexround"), ("b", "flexround"), ("c", "optimal")):
        store.save(make(key, slug=slug))
    assert set(store.trials("flexround")) == {"a", "b"}
    assert set(store.trials("flexround", {"b", "c", "unknown"})) == {"b"}
    assert store.trials("flexround", []) == store.trials("nothing") == {}


def test_artefacts_come_back_as_bytes_and_not_with_the_trials(store):
    files = {"weights.safetensors": bytes(range(256)), "curve.json": b"[]"}
    store.save(make(artefacts=files))
    assert store.artefacts("k") == files
    assert store.artefacts("other") == {}
    assert store.trials("flexround")["k"].artefacts == {}


def test_everything_is_there_after_closing(place):
    with Store(place) as store:
        store.save(make())
        store.save_verdicts("flexround", "desk", [{"claim": "C1"}])
    with Store(place if "://" in place else f"sqlite:///{place}") as store:
        assert store.statuses("flexround") == {"k": "ok"}
        assert len(store.verdicts()) == 1


# ---------------------------------------------------------------- never overwritten


def test_ok_is_never_overwritten(store):
    store.save(make(artefacts={"a": b"first"}))
    before = store.trials("flexround")
    store.save(make(metrics={"error": 2.0}, artefacts={"a": b"second", "b": b"second"}))
    store.save(failed())
    assert store.trials("flexround") == before
    assert store.artefacts("k") == {"a": b"first"}


def test_failed_gives_way_to_its_rerun(store):
    store.save(failed(artefacts={"a": b"of a failed trial"}))
    assert store.artefacts("k") == {}
    store.save(failed(error="another"))
    assert store.trials("flexround")["k"].error == "another"
    store.save(make(artefacts={"a": b"good"}))
    assert store.statuses("flexround") == {"k": "ok"}
    assert store.trials("flexround")["k"].error == ""
    assert store.artefacts("k") == {"a": b"good"}


# ---------------------------------------------------------------- refused before the database


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {"error": float("nan")}}, "metrics of trial k: "),
        ({"metrics": {"curve": [1.0, float("inf")]}}, "metrics of trial k: "),
        ({"setting": {"lr": -float("inf")}}, "setting of trial k: "),
        ({"setting": {"data": "a\0b"}}, "NUL"),
        ({"setting": {"a\\\0": 1}}, "NUL"),
        ({"witness": {"split": object()}}, "witness of trial k: .*object"),
    ],
)
def test_what_databases_refuse_never_reaches_one(store, changes, words):
    with pytest.raises(ValueError, match=words):
        store.save(make(**changes))
    assert store.statuses("flexround") == {}
    store.save(make())  # the store goes on


def test_a_backslash_is_no_nul(store):
    store.save(make(setting={"data": r"folder:C:\u0000"}))
    assert store.trials("flexround")["k"].setting == {"data": r"folder:C:\u0000"}


# ---------------------------------------------------------------- verdicts


def test_overrides_that_are_no_unicode(store):
    store.save_verdicts("flexround", "desk", [{"claim": "C1"}], overrides="data=folder:\udc80")
    assert [verdict["overrides"] for verdict in store.verdicts()] == ["data=folder:\\udc80"]


def test_latest_verdict_of_each_kind(store):
    verdicts = [{"claim": c, "verdict": "reproduced", "low": 0.1} for c in ("C1", "C10", "C2")]
    store.save_verdicts("flexround", "desk", verdicts, created="then")
    store.save_verdicts("flexround", "desk", [{"claim": "C2", "verdict": "inconclusive"}])
    store.save_verdicts("flexround", "desk", verdicts[:1], overrides="data=folder:x")
    store.save_verdicts("flexround", "full", verdicts[:1])
    store.save_verdicts("optimal", "desk", verdicts[:1])
    kinds = [(v["slug"], v["scale"], v["overrides"], v["claim"]) for v in store.verdicts()]
    assert kinds == [
        ("flexround", "desk", "", "C1"),
        ("flexround", "desk", "", "C2"),
        ("flexround", "desk", "", "C10"),
        ("flexround", "desk", "data=folder:x", "C1"),
        ("flexround", "full", "", "C1"),
        ("optimal", "desk", "", "C1"),
    ]
    first, second, *_ = store.verdicts("flexround")
    assert (first["verdict"], first["low"], first["created"]) == ("reproduced", 0.1, "then")
    assert second["verdict"] == "inconclusive"
    assert "low" not in second


def test_read_verdicts_agrees_with_the_store_open_or_closed(path):
    with Store(str(path)) as store:
        store.save_verdicts("flexround", "desk", [{"claim": "C1", "parts": [{"low": 0.5}]}])
        assert read_verdicts(path) == (store.verdicts(), "")
        expected = store.verdicts()
    beside = sorted(path.parent.iterdir())
    assert read_verdicts(path) == (expected, "")
    assert sorted(path.parent.iterdir()) == beside


def test_read_verdicts_without_a_store(path):
    assert read_verdicts(path) == ([], "")
    assert read_verdicts(path.parent / "missing" / "store.sqlite") == ([], "")
    path.touch()
    assert read_verdicts(path) == ([], "")


def test_read_verdicts_imports_no_sqlalchemy(path):
    with Store(str(path)) as store:
        store.save_verdicts("flexround", "desk", [{"claim": "C1"}])
    code = """
        import sys
        from pathlib import Path
        from paperworks.study.store import location, read_verdicts
        rows, problem = read_verdicts(location(sys.argv[1]))
        assert len(rows) == 1 and not problem
        heavy = {"sqlalchemy", "torch", "numpy", "scipy", "pandas"} & set(sys.modules)
        assert not heavy, heavy
    """
    run(code, path)


# ---------------------------------------------------------------- where it is


def test_location(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERWORKS_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert location() == default_location()
    assert default_location().name == "store.sqlite"
    assert location("a b?.sqlite") == tmp_path / "a b?.sqlite"
    assert location("sqlite:///a.sqlite") == tmp_path / "a.sqlite"
    assert location("sqlite:////data/a.sqlite") == Path("/data/a.sqlite")
    assert location("~/a.sqlite") == Path.home() / "a.sqlite"
    assert location("postgresql://me@host/db") == "postgresql://me@host/db"
    monkeypatch.setenv("PAPERWORKS_STORE", "mine.sqlite")
    assert location() == tmp_path / "mine.sqlite"
    assert location("other.sqlite") == tmp_path / "other.sqlite"
    monkeypatch.setenv("PAPERWORKS_STORE", "")
    assert location() == default_location()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host/db", "unknown kind of store 'mysql': choose from sqlite, postgresql"),
        ("postgres://host/db", "did you mean postgresql"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://store.sqlite", "write a path or sqlite:///path"),
        ("", "names no file"),
    ],
)
def test_wrong_url_is_one_line(url, words):
    with pytest.raises(UserError, match=words) as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_default_store_makes_its_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("PAPERWORKS_STORE", raising=False)
    monkeypatch.setattr(module, "default_location", lambda: tmp_path / "data" / "store.sqlite")
    with Store() as store:
        store.save(make())
    assert (tmp_path / "data" / "store.sqlite").is_file()


def test_file_system_that_refuses_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    default = tmp_path / "file" / "data" / "store.sqlite"
    monkeypatch.setattr(module, "default_location", lambda: default)
    for place in (default, tmp_path / ("x" * 300)):
        with pytest.raises(StoreError, match=r"store .* cannot be used: \[Errno"):
            Store(str(place))
    assert read_verdicts(tmp_path / ("x" * 300))[1]


def test_path_with_odd_characters(tmp_path):
    path = tmp_path / "a ?#%20é.sqlite"
    for _ in range(2):
        with Store(str(path)) as store:
            store.save(make())
    assert path.is_file()
    assert read_verdicts(path) == ([], "")


# ---------------------------------------------------------------- files it must not touch


def refuse(path, words):
    """Opening is refused in one line, reading verdicts says the same, nothing has changed."""
    before = content(path)
    with pytest.raises(StoreError, match=words) as caught:
        Store(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    verdicts, problem = read_verdicts(path)
    assert verdicts == []
    assert "\n" not in problem
    assert content(path) == before
    return problem


def content(path):
    """The bytes of a database: the file, and a WAL with something in it."""
    files = [path, Path(f"{path}-wal"), Path(f"{path}-journal")]
    return [file.read_bytes() if file.exists() else b"" for file in files]


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_foreign_database_is_left_alone(path, journal):
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA journal_mode={journal}")
    other.execute("CREATE TABLE trials (name TEXT)")
    other.execute("INSERT INTO trials VALUES ('precious')")
    other.commit()
    other.close()
    beside = set(path.parent.iterdir())
    assert "no store of paperworks" in refuse(path, "no store of paperworks")
    assert set(path.parent.iterdir()) == beside


def test_foreign_database_in_use_is_left_alone(path):
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("PRAGMA application_id=7")
    other.commit()
    refuse(path, "no store of paperworks")
    other.close()


def test_foreign_database_without_tables_is_left_alone(path):
    edit(path, "PRAGMA user_version=5")
    refuse(path, "no store of paperworks")


@pytest.mark.parametrize("text", [b"just a text file\n" * 100, b"x", b"\0" * 5000])
def test_text_file_is_left_alone(path, text):
    path.write_bytes(text)
    assert "no store of paperworks" in refuse(path, "no store of paperworks")


def test_too_new_version_is_left_alone(path):
    Store(str(path)).close()
    edit(path, "PRAGMA user_version=99")
    assert "newer paperworks" in refuse(path, "newer paperworks")


def edit(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", ["zeroed pages", "cut short"])
def test_damaged_store_is_left_alone(path, damage):
    with Store(str(path)) as store:
        for i in range(50):
            store.save(make(f"{i}"))
    whole = path.read_bytes()
    kept = 4096 if damage == "zeroed pages" else len(whole) // 2
    padding = len(whole) - kept if damage == "zeroed pages" else 0
    path.write_bytes(whole[:kept] + bytes(padding))
    assert "is damaged" in refuse(path, "is damaged") or damage == "zeroed pages"


def test_missing_folder(tmp_path):
    with pytest.raises(StoreError, match=r"no folder .*missing"):
        Store(str(tmp_path / "missing" / "store.sqlite"))
    assert not (tmp_path / "missing").exists()


def test_a_directory(tmp_path):
    with pytest.raises(StoreError, match="is not a file"):
        Store(str(tmp_path))
    assert read_verdicts(tmp_path)[1]


def test_empty_file_becomes_a_store(path):
    path.touch()
    with Store(str(path)) as store:
        store.save(make())
    assert path.stat().st_size > 0


@pytest.fixture
def disk(tmp_path):
    """A file system of 512 KiB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs root and mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_disk(disk):
    path = disk / "store.sqlite"
    with Store(str(path)) as store:
        store.save_verdicts("flexround", "desk", [{"claim": "C1"}])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = content(path)
    with pytest.raises(StoreError, match="read-only"):
        Store(str(path))
    with pytest.raises(StoreError, match="read-only"):
        Store(str(disk / "new.sqlite"))
    verdicts, problem = read_verdicts(path)
    assert ([v["claim"] for v in verdicts], problem) == (["C1"], "")
    assert content(path) == before
    assert [file.name for file in disk.iterdir() if file.suffix == ".sqlite"] == [path.name]


def test_full_disk_keeps_what_was_stored(disk):
    path = disk / "store.sqlite"
    with Store(str(path)) as store:
        store.save(make("0", artefacts={"a": b"content"}))
        fill(disk)
        with pytest.raises(StoreError, match="the disk is full") as caught:
            store.save(make("1", error="x" * 10_000))
        assert "\n" not in str(caught.value)
        assert store.statuses("flexround") == {"0": "ok"}
        assert store.artefacts("0") == {"a": b"content"}
        (disk / "filler").unlink()
        store.save(make("1"))
    with Store(str(path)) as store:
        assert store.statuses("flexround") == {"0": "ok", "1": "ok"}


def test_opening_on_a_full_disk(disk):
    path = disk / "store.sqlite"
    with Store(str(path)) as store:
        store.save_verdicts("flexround", "desk", [{"claim": "C1"}])
    before = content(path)
    fill(disk)
    verdicts, problem = read_verdicts(path)
    assert ([v["claim"] for v in verdicts], problem) == (["C1"], "")
    for place in (path, disk / "new.sqlite"):
        with pytest.raises(StoreError, match="disk"):
            Store(str(place)).save(make())
    assert content(path) == before


def fill(disk):
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


# ---------------------------------------------------------------- older versions


def test_older_version_is_brought_up_to_date(path, monkeypatch):
    with Store(str(path)) as store:
        store.save(make())
    monkeypatch.setattr(module, "VERSION", 3)
    monkeypatch.setattr(
        module,
        "MIGRATIONS",
        {
            1: ["CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('one')"],
            2: ["UPDATE notes SET text = text || ', two'"],
        },
    )
    for _ in range(2):
        with Store(str(path)) as store:
            assert store.trials("flexround")["k"].metrics == make().metrics
            store.save(make("new"))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT text FROM notes").fetchall() == [("one, two",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_migration_that_fails_changes_nothing(path, monkeypatch):
    with Store(str(path)) as store:
        store.save(make())
    monkeypatch.setattr(module, "VERSION", 2)
    monkeypatch.setattr(module, "MIGRATIONS", {1: ["CREATE TABLE notes (text TEXT)", "NONSENSE"]})
    with pytest.raises(StoreError, match="NONSENSE"):
        Store(str(path))
    monkeypatch.undo()
    with Store(str(path)) as store:
        assert set(store.statuses("flexround")) == {"k"}
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'notes'").fetchone() is None


def test_every_older_version_has_a_migration():
    assert list(module.MIGRATIONS) == list(range(1, module.VERSION))


# ---------------------------------------------------------------- several processes, kills

WRITER = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from test_store import Store, make
    with Store(sys.argv[2]) as store:
        for i in range(int(sys.argv[4])):
            store.save(make(f"{sys.argv[3]}-{i}"))
            print(i, flush=True)
"""


def run(code, *args):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    subprocess.run(command, check=True, timeout=60)


def write(path, name, count, stdout=subprocess.DEVNULL):
    code = textwrap.dedent(WRITER)
    arguments = [str(Path(__file__).parent), str(path), name, str(count)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=stdout)


def test_two_processes_lose_nothing(place):
    writers = [write(place, name, 1000) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    with Store(place) as store:
        assert set(store.statuses("flexround")) == {f"{n}-{i}" for n in "ab" for i in range(1000)}


def test_kill_loses_no_acknowledged_trial(path):
    for name in "abc":
        writer = write(path, name, 100_000, stdout=subprocess.PIPE)
        for _ in range(100):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = 100 + sum(line.endswith(b"\n") for line in writer.stdout)
        writer.stdout.close()
        assert writer.wait(timeout=60) == -signal.SIGKILL
        with Store(str(path)) as store:
            stored = [key for key in store.statuses("flexround") if key.startswith(name)]
            assert len(stored) in (acknowledged, acknowledged + 1)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_reader_is_not_held_up_by_a_writer(path):
    """A listing may not wait for the write lock."""
    with Store(str(path)) as store:
        store.save(make())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM trials")
        assert store.statuses("flexround") == {"k": "ok"}
        assert read_verdicts(path) == ([], "")
        with Store(str(path)) as second:
            assert second.statuses("flexround") == {"k": "ok"}
        other.execute("ROLLBACK")
        other.close()


def test_locked_for_too_long_is_one_line(path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with Store(str(path)) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another program"):
            store.save(make())
        other.close()
        store.save(make())


def test_resume_asks_one_question(store):
    from sqlalchemy import event

    for i in range(20):
        store.save(make(f"{i}"))
    asked = []
    event.listen(store._engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    assert len(store.statuses("flexround")) == 20
    assert len(store.trials("flexround", {"3", "5"})) == 2
    selects = [statement for statement in asked if statement.startswith("SELECT")]
    assert len(selects) == 2
    assert "setting" not in selects[0]


def test_postgresql_without_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match="needs psycopg"):
        Store("postgresql://me@localhost/db")
    assert "needs psycopg" in read_verdicts("postgresql://me@localhost/db")[1]
    with pytest.raises(UserError, match="is given as postgresql://"):
        Store("postgresql://me:secret@localhost:port/db")


def test_header_says_whose_it_is(path):
    Store(str(path)).close()
    header = path.read_bytes()[:100]
    assert header[68:72] == b"PAPW"
    assert header[18:20] == b"\2\2"  # WAL
    assert int.from_bytes(header[60:64], "big") == module.VERSION
