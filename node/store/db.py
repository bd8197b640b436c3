"""The database: one door to SQLite or PostgreSQL, and the guarded move that every change of state goes through.

Statements run unchanged on both. A write transaction is short, holds the only write lock of the process, and is
either on disk when `transaction()` returns or did not happen. No statement here reads a clock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from node.errors import DatabaseUnavailable, NoRoom, Permanent
from node.states import DELIVERY_MOVES, JOB_MOVES, STUDY_MOVES
from node.store import schema
from node.store.mounts import refuse_network
from node.store.servertime import ServerTime

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for the others before it says `DatabaseUnavailable`."""

KEY = {"study": "study_instance_uid", "job": "id", "delivery": "id"}
MOVES: Mapping[str, frozenset[tuple[Any, Any]]] = {
    "study": STUDY_MOVES,
    "job": JOB_MOVES,
    "delivery": DELIVERY_MOVES,
}
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # NORMAL may roll back a commit after a power cut
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    "PRAGMA journal_size_limit=67108864",
)
_TCP = {
    "connect_timeout": 5, "tcp_user_timeout": 20_000,
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
}  # fmt: skip
"""How long PostgreSQL may be silent (libpq): seconds, but milliseconds for `tcp_user_timeout`; not for Unix sockets."""
_TCP_OF_THE_SERVER = (
    "SET tcp_user_timeout = '20s'", "SET tcp_keepalives_idle = '10s'", "SET tcp_keepalives_interval = '5s'",
    "SET tcp_keepalives_count = 3",
)  # fmt: skip


class Database:
    """The queue of record; `url` is a SQLAlchemy URL of SQLite or PostgreSQL. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self.url = _with_driver(url)
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            _prepare_file(Path(self.url.database or ""))
        self._writer = threading.Lock()
        self._engine = _engine(self.url)
        self._time = ServerTime()
        with _translated(self.url):
            self._apply_schema()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection inside one write transaction: durable at return, undone on any exception.

        Raises `DatabaseUnavailable` when the database is locked or unreachable, `NoRoom` when its disk is full.
        """
        with self._write_lock(), _translated(self.url), self._engine.connect() as connection:
            writing = connection.execution_options(begin="BEGIN IMMEDIATE")
            with writing.begin():
                self._look(writing)
                yield writing

    @contextmanager
    def reader(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees one state of the database and is for reading only."""
        with _translated(self.url), self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True, isolation_level="REPEATABLE READ")
            self._look(connection)
            yield connection

    def now(self) -> float:
        """Return the time in seconds since the epoch: PostgreSQL's as it last told, else this host's. Asks nobody."""
        return self._time.now()

    def problems(self, thorough: bool = False) -> list[str]:
        """Return what SQLite finds wrong with its own file: structure, and if `thorough` indexes and foreign keys.

        PostgreSQL checks its pages and keys itself as it reads and writes them: always [].
        """
        if self.dialect != "sqlite":
            return []
        with self.reader() as connection:
            pragma = "PRAGMA integrity_check(20)" if thorough else "PRAGMA quick_check(20)"
            found = [str(line) for (line,) in connection.exec_driver_sql(pragma) if line != "ok"]
            keys = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(20) if thorough else []
        return found + [f"row {row} of {table} names a {parent} that is not there" for table, row, parent, _ in keys]

    def require_sound(self) -> None:
        """Refuse to work on a damaged file, which further writes would only make worse; raises `Permanent`."""
        if found := self.problems():
            raise _damaged(self.url, found[0])

    def close(self) -> None:
        """Close every connection; the object must not be used afterwards."""
        self._engine.dispose()

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """One writer per process: SQLite would let threads poll for the lock, without any order."""
        if self.dialect != "sqlite":
            yield
            return
        if not self._writer.acquire(timeout=BUSY_TIMEOUT_S):
            raise DatabaseUnavailable(f"The database was busy for {BUSY_TIMEOUT_S:.0f} s; nothing was written.")
        try:
            yield
        finally:
            self._writer.release()

    def _look(self, connection: sa.Connection) -> None:
        if self.dialect == "postgresql":
            self._time.look(connection)

    def _apply_schema(self) -> None:
        with self._engine.connect() as connection:
            connection = connection.execution_options(begin="BEGIN IMMEDIATE")
            with connection.begin():
                schema.apply(connection)


def record(
    connection: sa.Connection, entity: str, entity_id: str, from_state: str, to_state: str, at: float, reason: str
) -> None:
    """Append one event; the caller holds the entity's row, so that numbers within an entity cannot clash."""
    connection.execute(
        sa.text(
            "INSERT INTO event (entity, entity_id, number, at, from_state, to_state, reason) "
            "SELECT :entity, :entity_id, COALESCE(MAX(number), 0) + 1, :at, :from_state, :to_state, :reason "
            "FROM event WHERE entity = :entity AND entity_id = :entity_id"
        ),
        {
            "entity": entity,
            "entity_id": entity_id,
            "at": at,
            "from_state": str(from_state),
            "to_state": str(to_state),
            "reason": reason,
        },
    )


def move(
    connection: sa.Connection,
    entity: str,
    entity_id: str,
    from_state: str,
    to_state: str,
    at: float,
    reason: str,
    *,
    where: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> bool:
    """Make one legal move if the row still is in `from_state` and as `where` says, and record it.

    False: another process was first and nothing was changed. `changes` are columns set on the way. Every change of
    state in the database is this statement or a claim (`leases.claim`).
    """
    if (from_state, to_state) not in MOVES[entity]:
        raise ValueError(f"{entity}: {from_state} → {to_state} is no legal move")
    guard, changes = where or {}, changes or {}
    sets = ["state = :to_state", *(f"{column} = :set_{column}" for column in changes)]
    conditions = [f"{KEY[entity]} = :id", "state = :from_state", *(f"{column} = :is_{column}" for column in guard)]
    # Every name comes from our own code, every value is bound.
    statement = f"UPDATE {entity} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"  # noqa: S608
    values = {f"set_{column}": value for column, value in changes.items()}
    values |= {f"is_{column}": value for column, value in guard.items()}
    values |= {"id": entity_id, "from_state": str(from_state), "to_state": str(to_state)}
    if connection.execute(sa.text(statement), values).rowcount != 1:
        return False
    record(connection, entity, entity_id, from_state, to_state, at, reason)
    return True


def history(connection: sa.Connection, entity: str, entity_id: str) -> list[dict[str, Any]]:
    """Return the entity's events in the order in which they happened."""
    return rows(
        connection,
        "SELECT number, at, from_state, to_state, reason FROM event "
        "WHERE entity = :entity AND entity_id = :entity_id ORDER BY number",
        entity=entity,
        entity_id=entity_id,
    )


def rows(connection: sa.Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    """Return the rows of a SELECT as dictionaries; a list or tuple among `values` fills an `IN :name`."""
    query = sa.text(statement)
    for name, value in values.items():
        if isinstance(value, list | tuple | set | frozenset):
            # All our lists are of names; PostgreSQL must be told so when one is empty.
            query = query.bindparams(sa.bindparam(name, expanding=True, type_=sa.String()))
            values[name] = list(value)
    return [dict(row) for row in connection.execute(query, values).mappings()]


def _with_driver(url: str) -> sa.URL:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise Permanent(f'database.url: "{parsed.get_backend_name()}" is not supported; use sqlite or postgresql.')
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise Permanent("database.url: an SQLite database in memory loses every job; name a file.")
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _prepare_file(path: Path) -> None:
    """Make the folder (0700) and the file (0640, inherited by the -wal and -shm beside it)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_network(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
    except OSError as error:
        raise Permanent(f"The database file {path} cannot be opened: {error.strerror}. Check the folder.") from None


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        return _server(url)
    engine = sa.create_engine(url, connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # we say BEGIN ourselves, see _on_begin
        for pragma in _PRAGMAS:
            dbapi_connection.execute(pragma)

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # A writer that says plain BEGIN fails at its first UPDATE when another wrote since: the lock comes first.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _server(url: sa.URL) -> sa.Engine:
    """Neither side waits long for one that the network has cut off: TCP alone would for a quarter of an hour, or two.

    What `url` itself says of a setting holds. The server, too, must let go of the rows that a lost host had locked.
    """
    wanted = {key: value for key, value in _TCP.items() if key not in url.query}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=wanted)

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for setting in _TCP_OF_THE_SERVER:
                cursor.execute(setting)
        connection.commit()

    return engine


@contextmanager
def _translated(url: sa.URL) -> Iterator[None]:
    """Turn the drivers' errors into ours."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise _unavailable(error) from error
    except exc.DBAPIError as error:
        if isinstance(error, exc.ProgrammingError) and error.statement is None:
            raise Permanent(f"database.url: the driver does not take it: {error.orig}.") from None
        if error.connection_invalidated:
            raise _unavailable(error) from error
        if getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            raise _damaged(url, str(error.orig)) from error
        raise


def _damaged(url: sa.URL, what: str) -> Permanent:
    return Permanent(
        f"The database file {url.database} is damaged ({what.splitlines()[0]}); it was left as it is. Restore a copy "
        "(wetread spool restore), or move it, its -wal and its -shm away and start again: the spool is read in anew."
    )


def _unavailable(error: exc.SQLAlchemyError) -> DatabaseUnavailable | NoRoom:
    cause = getattr(error, "orig", None) or error
    if getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == "53100":
        return NoRoom("The database's disk is full; nothing was written. Free some space.")
    first_line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return DatabaseUnavailable(f"The database did not answer ({first_line}); nothing was written.")
