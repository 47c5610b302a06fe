"""Where finished trials are kept: SQLAlchemy over SQLite in WAL mode, or over PostgreSQL.

A trial is a row, written in a transaction of its own the moment it finishes; one that is "ok" is
never overwritten. Several processes may write to one store at once: a writer takes the lock when
its transaction begins, and the others wait.

`synchronous=NORMAL`: a commit hands the row to the operating system and does not wait for the disk:
0.2 ms a trial, where waiting took 0.4 to 4 ms. No killed process loses a committed row that way. A
power cut may take the last ones, never the file, and the next run computes them again.

A PostgreSQL store is for runs on several machines. Its version stands in a table of its own, where
an SQLite file has it in its header. Settings and metrics are JSON there, not JSONB, which would
reorder their keys, turn 1e22 into an integer and -0.0 into 0.0.

SQLAlchemy is imported by the first `Store`; `read_verdicts` does without it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperworks.study.errors import StoreError, UserError, unknown

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, MetaData, Row, Table

APPLICATION_ID = 0x50415057
"""What the header of a store's SQLite file says: PAPW."""

VERSION = 1
"""The schema that this code reads and writes."""

MIGRATIONS: dict[int, list[str]] = {}
"""The SQL that turns a store of version n into one of version n + 1, on both databases."""

PATIENCE = 30
"""Seconds to wait while another process writes, or while the server is started again."""

ANSWER = 10
"""Seconds that a server has to take a connection, unless the URL says `connect_timeout`."""

MEANINGS = {
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full; what was stored before is safe",
    sqlite3.SQLITE_IOERR: "cannot be read or written (is the disk full?)",
    sqlite3.SQLITE_BUSY: f"has been locked by another program for {PATIENCE} seconds",
    sqlite3.SQLITE_NOTADB: "is no store of paperworks; it was left as it is",
    sqlite3.SQLITE_CORRUPT: "is damaged; it was left as it is, move it away to start a new one",
}

NEWER = "was written by a newer paperworks: upgrade this one"

REPEATED = ("slug", "experiment", "scale", "fingerprint", "data", "stamp", "status")
"""Columns whose texts are the same in thousands of rows: each is kept once in memory."""

VERSION_TABLE = "paperworks_version"
"""Where a PostgreSQL database says that it holds a store, and of which version."""


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        key: its identity, a hash of slug, experiment, setting, seed, code, data and environment.
        fingerprint: of the code it reached.
        data: digest of the user's data; empty for data that come with the package.
        stamp: short hash of the environment.
        status: `ok` or `failed`.
        metrics: name -> number or list of numbers; None when it failed.
        witness: hashes that competing methods of a seed must share.
        error: the traceback when it failed.
        environment: what it ran on; left empty by `Store.trials`.
        artefacts: name -> content; left empty by `Store.trials`.
        created: when it was stored, in UTC.
    """

    key: str
    slug: str
    experiment: str
    setting: dict[str, Any]
    seed: int
    scale: str
    fingerprint: str
    data: str
    stamp: str
    status: str
    metrics: dict[str, Any] | None
    witness: dict[str, str]
    error: str
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, bytes] = field(default_factory=dict)
    created: str = ""


def default_location() -> Path:
    """The store in the user's data directory."""
    from platformdirs import user_data_path

    return user_data_path("paperworks") / "store.sqlite"


def location(url: str | None = None) -> Path | str:
    """Where the store is: an SQLite file, or the URL of a PostgreSQL database.

    Args:
        url: a path, `sqlite:///path` or `postgresql://...`; by default what $PAPERWORKS_STORE says,
            else the user's data directory.

    Raises:
        UserError: a URL of another kind, or one that names no file.
    """
    given = (os.environ.get("PAPERWORKS_STORE") or None) if url is None else url
    if given is None:
        return default_location()
    scheme, is_url, path = given.rpartition("://")
    if is_url and scheme == "postgresql":
        return given
    if is_url and scheme != "sqlite":
        raise unknown("kind of store", scheme, ["sqlite", "postgresql"])
    if not path.strip("/") or (is_url and not path.startswith("/")):
        raise UserError(f"store {given!r} names no file: write a path or sqlite:///path")
    return Path(path[1:] if is_url else path).expanduser().absolute()


class Store:
    """An open store, made where there was none; a context manager.

    Args:
        url: see `location`.

    Raises:
        UserError: the URL is wrong.
        StoreError: there can be no store: a file that is damaged, another program's or written by a
            newer paperworks, a folder that is missing or read-only, a full disk, a server that does
            not answer or lets us not in. Whatever is there is left as it was. Every method raises
            it when the database fails.
    """

    def __init__(self, url: str | None = None) -> None:
        place = location(url)
        if isinstance(place, Path):
            self._name = str(place)
            with _one_line(self._name):
                self._engine = _open_sqlite(place)
        else:
            address = _address(place)
            self._name = _without_secrets(address)
            with _one_line(self._name):
                self._engine = _open_postgresql(address, self._name)
        self._writer = self._engine.execution_options(immediate=True, preserve_rowcount=True)
        _, self._trials, self._artefacts, self._verdicts = _tables()
        dialect = self._engine.dialect.name
        self._save = _upsert(dialect, self._trials, where=self._trials.c.status == "failed")
        self._save_verdicts = _upsert(dialect, self._verdicts)

    def statuses(self, slug: str) -> dict[str, str]:
        """Key -> status of every trial of a study."""
        trials = self._trials
        query = trials.select().with_only_columns(trials.c.key, trials.c.status)
        with self._begin(self._engine) as connection:
            rows = connection.execute(query.where(trials.c.slug == slug))
            return {row.key: row.status for row in rows}

    def trials(self, slug: str, keys: Collection[str] | None = None) -> dict[str, Trial]:
        """Key -> trial: all of a study's, or those of the keys given.

        Without artefacts and environment, which would be most of the bytes; the stamp is there.
        """
        if keys is not None and not keys:
            return {}
        light = [column for column in self._trials.c if column.name != "environment"]
        query = self._trials.select().with_only_columns(*light).where(self._trials.c.slug == slug)
        with self._begin(self._engine) as connection:
            rows = connection.execute(query)
            texts: dict[str, str] = {}
            return {r.key: _trial(r, texts) for r in rows if keys is None or r.key in keys}

    def save(self, trial: Trial) -> None:
        """Store a trial, now; artefacts only with one that is "ok".

        One that is there and "ok" stays as it is; a failed one gives way to its rerun.

        Raises:
            ValueError: the setting, environment, metrics or witness hold NaN, an infinity, a NUL
                character or something that is not JSON.
        """
        for name in ("setting", "environment", "metrics", "witness"):
            _check_json(f"{name} of trial {trial.key}", getattr(trial, name))
        row = {**vars(trial), "error": _storable(trial.error), "created": trial.created or _now()}
        left = row.pop("artefacts").items()
        files = [{"key": trial.key, "name": name, "content": content} for name, content in left]
        with self._begin(self._writer) as connection:
            written = connection.execute(self._save, row).rowcount
            if written and files and trial.status == "ok":
                connection.execute(self._artefacts.insert(), files)

    def artefacts(self, key: str) -> dict[str, bytes]:
        """Name -> content of what a trial left behind."""
        query = self._artefacts.select().where(self._artefacts.c.key == key)
        with self._begin(self._engine) as connection:
            return {row.name: row.content for row in connection.execute(query)}

    def save_verdicts(
        self,
        slug: str,
        scale: str,
        verdicts: Collection[Mapping[str, Any]],
        overrides: str = "",
        created: str = "",
    ) -> None:
        """Store verdicts, each in place of the earlier one on that claim, scale and overrides.

        Args:
            verdicts: a mapping a claim, with the claim's id under `claim`.
            overrides: what the user changed in the settings, as text.
        """
        about = {"slug": slug, "scale": scale, "overrides": overrides, "created": created or _now()}
        about["overrides"] = _storable(overrides)
        rows = [{**about, "claim": v["claim"], "verdict": dict(v)} for v in verdicts]
        _check_json(f"verdicts on {slug}", rows)
        if rows:
            with self._begin(self._writer) as connection:
                connection.execute(self._save_verdicts, rows)

    def verdicts(self, slug: str | None = None) -> list[dict[str, Any]]:
        """The user's own verdicts, with their slug, scale, overrides and time, in claims' order."""
        with self._begin(self._engine) as connection:
            rows = [row._asdict() for row in connection.execute(self._verdicts.select())]
        return _in_order(row for row in rows if slug in (None, row["slug"]))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _begin(self, engine: Engine) -> Iterator[Connection]:
        with _one_line(self._name), _connected(engine) as connection, connection.begin():
            yield connection


def read_verdicts(where: Path | str) -> tuple[list[dict[str, Any]], str]:
    """What `Store.verdicts` returns, read without SQLAlchemy so that a listing stays quick.

    Args:
        where: what `location` returns.

    Returns:
        The verdicts, and one line on why they could not be read: empty when they could, and when
        there is no store yet.
    """
    try:
        if isinstance(where, str):
            with Store(where) as store:
                return store.verdicts(), ""
        with _one_line(where):
            if not where.exists():
                return [], ""
            with _traceless(where) as connection:
                if not _version(connection, where):
                    return [], ""
                connection.row_factory = sqlite3.Row
                rows = [dict(row) for row in connection.execute("SELECT * FROM verdicts")]
        return _in_order({**row, "verdict": json.loads(row["verdict"])} for row in rows), ""
    except UserError as error:
        return [], str(error)


def _trial(row: Row[Any], texts: dict[str, str]) -> Trial:
    values: dict[str, Any] = dict(zip(row._fields, row))
    for name in REPEATED:
        values[name] = texts.setdefault(values[name], values[name])
    return Trial(**values)


def _in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts with the columns of their rows, C2 before C10."""
    flat = [{**row.pop("verdict"), **row} for row in rows]
    kind = ("slug", "scale", "overrides")
    return sorted(flat, key=lambda v: (*map(v.get, kind), len(v["claim"]), v["claim"]))


@functools.cache
def _tables() -> tuple[MetaData, Table, Table, Table]:
    from sqlalchemy import JSON, BigInteger, Column, Float, LargeBinary, MetaData, String, Table

    def columns(kind: Any, *names: str, **options: Any) -> list[Column[Any]]:
        return [Column(name, kind, **{"nullable": False, **options}) for name in names]

    mapping = JSON(none_as_null=True)
    metadata = MetaData()
    trials = Table(
        "trials",
        metadata,
        *columns(String, "key", primary_key=True),
        *columns(String, "slug", index=True),
        *columns(String, "experiment", "scale", "fingerprint", "data", "stamp", "status"),
        *columns(String, "error", "created"),
        *columns(mapping, "setting", "environment", "witness"),
        *columns(mapping, "metrics", nullable=True),
        *columns(BigInteger, "seed"),
        *columns(Float, "seconds"),
    )
    artefacts = Table(
        "artefacts",
        metadata,
        *columns(String, "key", "name", primary_key=True),
        *columns(LargeBinary, "content"),
    )
    verdicts = Table(
        "verdicts",
        metadata,
        *columns(String, "slug", "scale", "overrides", "claim", primary_key=True),
        *columns(String, "created"),
        *columns(mapping, "verdict"),
    )
    return metadata, trials, artefacts, verdicts


def _upsert(dialect: str, table: Table, where: Any = None) -> Any:
    """An insert that replaces the row of that key, where the old one meets the condition."""
    from sqlalchemy.dialects import postgresql, sqlite

    new: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](table)
    values = {c.name: new.excluded[c.name] for c in table.c if not c.primary_key}
    return new.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=values, where=where
    )


def _connected(engine: Engine) -> Connection:
    """A connection; a server that is being started again gets time for it."""
    from sqlalchemy.exc import OperationalError

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return engine.connect()
        except OperationalError:
            if engine.dialect.name == "sqlite" or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _address(url: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise UserError("a PostgreSQL store is given as postgresql://user@host/database") from None


def _without_secrets(address: URL) -> str:
    from sqlalchemy import URL

    host, port, database = address.host, address.port, address.database
    return str(URL.create("postgresql", host=host, port=port, database=database))


def _open_postgresql(address: URL, name: str) -> Engine:
    from sqlalchemy import create_engine

    patient = address.set(
        drivername="postgresql+psycopg", query={"connect_timeout": str(ANSWER), **address.query}
    )
    try:
        engine = create_engine(patient, pool_pre_ping=True)  # a new one after the server's restart
    except ImportError:
        raise UserError(
            "a PostgreSQL store needs psycopg: pip install 'paperworks[postgres]'"
        ) from None
    try:
        with engine.begin() as connection:
            if _server_version(connection, name) < VERSION:
                # Whoever else is about to do the same waits, and then finds it done.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
                now = _server_version(connection, name)
                _upgrade(connection, now)
                if not now:
                    connection.exec_driver_sql(f"CREATE TABLE {VERSION_TABLE} AS SELECT 0 AS n")
                connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET n = {VERSION}")
    except BaseException:
        engine.dispose()
        raise
    return engine


def _server_version(connection: Connection, name: str) -> int:
    """The version of the store on a server; 0 where there is none yet.

    Raises:
        StoreError: tables of these names are another program's, or of a newer paperworks.
    """
    from sqlalchemy import inspect

    there = set(inspect(connection).get_table_names())
    if VERSION_TABLE not in there:
        if there & set(_tables()[0].tables):
            raise StoreError(f"store {name} {MEANINGS[sqlite3.SQLITE_NOTADB]}")
        return 0
    version = connection.exec_driver_sql(f"SELECT n FROM {VERSION_TABLE}").scalar_one()
    if version > VERSION:
        raise StoreError(f"store {name} {NEWER}")
    return version


def _open_sqlite(path: Path) -> Engine:
    from filelock import FileLock
    from sqlalchemy import URL, create_engine, event

    version = _look(path)
    address = URL.create("sqlite", database=str(path))
    engine = create_engine(address, connect_args={"timeout": PATIENCE})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that first reads and then writes fails at once when somebody has written in
        # between; one that begins with the lock waits. Readers must not take it.
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    if version < VERSION:
        with FileLock(f"{path}.lock"):  # SQLite does not wait when two processes switch to WAL
            with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            with engine.execution_options(immediate=True).begin() as transaction:
                now = transaction.exec_driver_sql("PRAGMA user_version").scalar_one()
                _upgrade(transaction, now)
                transaction.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
                transaction.exec_driver_sql(f"PRAGMA user_version={VERSION}")
    return engine


def _upgrade(connection: Connection, version: int) -> None:
    """Make the tables, or bring those of an older version up to date."""
    if not version:
        _tables()[0].create_all(connection)
    for old in range(version or VERSION, VERSION):
        for statement in MIGRATIONS[old]:
            connection.exec_driver_sql(statement)


def _look(path: Path) -> int:
    """The version of the store at `path`, 0 where one can be made; writes nothing.

    Raises:
        StoreError: there can be no store.
    """
    if path == default_location():
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise StoreError(f"store {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise StoreError(f"store {path} is not a file")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise StoreError(f"store {path} cannot be used: {place} is read-only")
    if not path.exists():
        return 0
    with _traceless(path) as connection:
        version = _version(connection, path)
    if version:
        with _read_only(path) as connection:
            # Artefacts, the bulk of a store, are not checked: a broken one is told when it is read.
            if connection.execute("PRAGMA quick_check(trials)").fetchone()[0] != "ok":
                raise StoreError(f"store {path} {MEANINGS[sqlite3.SQLITE_CORRUPT]}")
    return version


def _read_only(path: Path, *options: str) -> contextlib.closing[sqlite3.Connection]:
    uri = f"{path.as_uri()}?{'&'.join(('mode=ro', *options))}"
    return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE))


def _traceless(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """Read-only, also on a read-only disk, and with no WAL left beside a file that had none."""
    in_use = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    locks = in_use and os.access(path.parent, os.W_OK)
    return _read_only(path) if locks else _read_only(path, "immutable=1")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a store; 0 of a database with nothing in it.

    Raises:
        StoreError: it is another program's, or of a newer paperworks.
    """
    if 0 < path.stat().st_size < 512:  # SQLite takes so short a file for an empty database
        raise StoreError(f"store {path} {MEANINGS[sqlite3.SQLITE_NOTADB]}")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    if empty and not application and not version:
        return 0
    if application != APPLICATION_ID:
        raise StoreError(f"store {path} {MEANINGS[sqlite3.SQLITE_NOTADB]}")
    if version > VERSION:
        raise StoreError(f"store {path} {NEWER}")
    return version


@contextlib.contextmanager
def _one_line(name: Path | str) -> Iterator[None]:
    """Turn what the database or the file system says into one line for the user."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", error)  # where SQLAlchemy keeps the driver's error
        if cause is error and not isinstance(error, sqlite3.Error | OSError):
            raise
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        problem = MEANINGS.get(code, f"cannot be used: {' '.join(str(cause).split())}")
        raise StoreError(f"store {name} {problem}") from error


def _check_json(what: str, value: Any) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from None
    if re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        raise ValueError(f"{what}: a NUL character, which databases refuse")


def _storable(text: str) -> str:
    """A traceback without what databases refuse: NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
