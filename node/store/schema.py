"""The schema: `schema.sql` makes an empty database, and a database of an earlier version is brought up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from node.errors import Permanent

SCHEMA = Path(__file__).with_name("schema.sql")
VERSION = 4

UPGRADES: Mapping[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE instance ADD COLUMN last_revision INTEGER",
        "ALTER TABLE instance ADD COLUMN removed_at DOUBLE PRECISION",
        "ALTER TABLE evidence ADD COLUMN removed_at DOUBLE PRECISION",
    ),
    2: (
        "ALTER TABLE instance ADD COLUMN excluded_from INTEGER",
        "ALTER TABLE job ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN decline TEXT NOT NULL DEFAULT 'silent'",
    ),
    3: (  # one folder above a file instead of two: instances/ab/cd/….dcm → instances/ab/….dcm
        "UPDATE instance SET path = substr(path, 1, 13) || substr(path, 17) WHERE length(path) = 84",
        "UPDATE evidence SET path = substr(path, 1, 11) || substr(path, 15) WHERE length(path) = 82",
    ),
}
"""What leads from this version to the next, as far as `schema.sql` (run afterwards) does not make it anyway."""


def apply(connection: sa.Connection) -> None:
    """Make or upgrade the tables, as part of the caller's write transaction: all of it, or nothing, happens.

    Raises `Permanent` when the database is of a later version, or is a PostgreSQL that may lose what it commits.
    """
    if connection.dialect.name == "postgresql":
        _prepare_postgresql(connection)
    script = statements(SCHEMA.read_text(encoding="utf-8"))
    connection.exec_driver_sql(script[0])  # the table that holds the version
    found = connection.exec_driver_sql("SELECT MAX(version) FROM schema_version").scalar_one()
    if found is not None and found > VERSION:
        raise Permanent(
            f"The database has schema {found}, this wetread knows schema {VERSION}; nothing was changed. "
            "Start the version of wetread that made it."
        )
    for version in range(found if found is not None else VERSION, VERSION):
        for statement in UPGRADES[version]:
            connection.exec_driver_sql(statement)
    for statement in script:
        connection.exec_driver_sql(statement)
    if found != VERSION:
        connection.exec_driver_sql("DELETE FROM schema_version")
        connection.execute(sa.text("INSERT INTO schema_version (version) VALUES (:v)"), {"v": VERSION})


def statements(script: str) -> list[str]:
    """Return the statements of an SQL script, without its comments."""
    bare = "\n".join(line.split("--")[0] for line in script.splitlines())
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


def _prepare_postgresql(connection: sa.Connection) -> None:
    if connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "off":
        raise Permanent("PostgreSQL has synchronous_commit off and would lose acknowledged work; set it to on.")
    # Two nodes that start together would both create the tables.
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(823466117)")
