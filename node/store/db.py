"""The database: one door to SQLite or PostgreSQL, and the guarded move that every change of state goes through.

Statements run unchanged on both. A write transaction is short, holds the only write lock of the process, and is
either on disk when `transaction()` returns or did not happen. No statement here reads a clock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from node.errors import DatabaseUnavailable, NoRoom, Permanent
from node.states import DELIVERY_MOVES, JOB_MOVES, STUDY_MOVES
from node.store import engine, schema
from node.store.engine import BUSY_TIMEOUT_S as BUSY_TIMEOUT_S
from node.store.servertime import ServerTime

KEY = {"study": "study_instance_uid", "job": "id", "delivery": "id"}
MOVES: Mapping[str, frozenset[tuple[Any, Any]]] = {
    "study": STUDY_MOVES,
    "job": JOB_MOVES,
    "delivery": DELIVERY_MOVES,
}


class Database:
    """The queue of record; `url` is a SQLAlchemy URL of SQLite or PostgreSQL. Safe to share between threads.

    Opened at once, or where that may be `later` with `open` or the first statement: a server may come up after us.
    """

    def __init__(self, url: str, later: bool = False) -> None:
        self.url = engine.with_driver(url)
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            engine.prepare_file(Path(self.url.database or ""))
        self._writer = threading.Lock()
        self._engine = engine.make(self.url)
        self._time = ServerTime()
        self._is_open = False
        if not later:
            self.open()

    def open(self) -> None:
        """Make or upgrade the tables, if that has not been done yet; several threads may do it at once.

        Raises `DatabaseUnavailable` when nobody answers, `Permanent` when the server does not let us in, or the schema
        is of a later version.
        """
        if self._is_open:
            return
        try:
            with _translated(self.url):
                self._apply_schema()
        except DatabaseUnavailable:
            if not engine.refuses_us(self._engine):
                raise
            self._knock_again()
        self._is_open = True

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Yield a connection inside one write transaction: durable at return, undone on any exception.

        Raises `DatabaseUnavailable` when the database is locked or unreachable, `NoRoom` when its disk is full.
        """
        self.open()
        with self._write_lock(), _translated(self.url), self._engine.connect() as connection:
            writing = connection.execution_options(begin="BEGIN IMMEDIATE")
            with writing.begin():
                self._look(writing)
                yield writing

    @contextmanager
    def reader(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees one state of the database and is for reading only."""
        self.open()
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

    def _knock_again(self) -> None:
        """Try once more at a server that is up: it may just have become so."""
        try:
            with _translated(self.url):
                self._apply_schema()
        except DatabaseUnavailable as error:
            if not engine.refuses_us(self._engine):
                raise
            raise Permanent(f"database.url: the server is there and does not take us. {error}") from error

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
        if getattr(error.orig, "sqlstate", "") == "42501":
            raise Permanent(f"database.url: its user may not do this: {_first_line(error.orig)}.") from None
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
    return DatabaseUnavailable(f"The database did not answer ({_first_line(cause)}); nothing was written.")


def _first_line(cause: object) -> str:
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
