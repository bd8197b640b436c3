"""How the two databases are connected to: SQLite's file with its pragmas, PostgreSQL with limits to its silence."""

from __future__ import annotations

import ctypes
import os
import re
import select
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from node.errors import Permanent
from node.store.mounts import refuse_network

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for the others before it says `DatabaseUnavailable`."""

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

_PASSING = ("53", "57")
"""Classes of SQLSTATE that pass by themselves: insufficient resources, such as connections, and operator's work."""
_CODES_ALONE = 3
"""PQERRORS_SQLSTATE: severity and SQLSTATE are all that an error says."""


def with_driver(url: str) -> sa.URL:
    """Return the URL with the driver that we have for it; raises `Permanent` for another database, or one in memory."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise Permanent(f'database.url: "{parsed.get_backend_name()}" is not supported; use sqlite or postgresql.')
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise Permanent("database.url: an SQLite database in memory loses every job; name a file.")
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database, None for a server; raises `Permanent` as `with_driver`."""
    parsed = with_driver(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def sqlite_url(file: Path) -> str:
    """Return the URL of an SQLite file, whatever its name."""
    return sa.URL.create("sqlite", database=str(file)).render_as_string()


def prepare_file(path: Path) -> None:
    """Make the folder (0700) and the file (0640, inherited by the -wal and -shm beside it); raises `Permanent`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_network(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
    except OSError as error:
        raise Permanent(f"The database file {path} cannot be opened: {error.strerror}. Check the folder.") from None


def make(url: sa.URL) -> sa.Engine:
    """Return the engine for `url`; nothing is opened yet."""
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


def refuses_us(engine: sa.Engine) -> bool:
    """Say whether a PostgreSQL that did not let us in is up: then waiting does not help, a name or a password is wrong.

    libpq asks, in no language. A server that is starting, stopping or recovering says that it takes nobody yet, and one
    without a free connection is waited for, too.
    """
    if engine.url.drivername != "postgresql+psycopg":
        return False
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn, Ping

    _, wanted = engine.dialect.create_connect_args(engine.url)
    words = {name: str(value) for name, value in wanted.items() if isinstance(value, str | int)}
    where = make_conninfo(**{"connect_timeout": str(_TCP["connect_timeout"]), **words}).encode()
    return PGconn.ping(where) == Ping.OK and not any(code.startswith(_PASSING) for code in _refusals(where))


def _refusals(where: bytes) -> list[str]:
    """Return the SQLSTATE of each refusal, none where we are let in.

    psycopg keeps only the words, in the server's language; libpq gives codes in their place when it is told to.
    """
    from psycopg.pq import PGconn, PollingStatus

    until = time.monotonic() + _TCP["connect_timeout"]
    link = PGconn.connect_start(where)
    try:
        libpq = ctypes.CDLL(sys.modules[PGconn.__module__].__file__)
        itself = ctypes.c_void_p(link.pgconn_ptr)  # type: ignore[attr-defined]  # every implementation has it
        libpq.PQsetErrorVerbosity(itself, _CODES_ALONE)
        while (status := link.connect_poll()) in (PollingStatus.READING, PollingStatus.WRITING):
            reads, writes = ([link.socket], []) if status == PollingStatus.READING else ([], [link.socket])
            if not any(select.select(reads, writes, [], max(0.0, until - time.monotonic()))):
                return []
        return re.findall(r": +([0-9A-Z]{5})$", link.error_message.decode(errors="replace"), re.MULTILINE)
    finally:
        link.finish()
