"""What Database asks before it trusts a file: its schema's version, its pages, and the file system it lies on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from node.errors import Permanent
from node.store import mounts, studies
from node.store.db import Database
from node.store.schema import VERSION
from tests.unit.rows import received


def test_a_database_of_the_first_schema_is_upgraded_with_its_rows(database_url: str) -> None:
    Database(database_url).close()
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:  # take away what schemas 2 and 3 added
        for statement in (
            "DROP TABLE completion",
            "ALTER TABLE instance DROP COLUMN excluded_from",
            "ALTER TABLE job DROP COLUMN priority",
            "ALTER TABLE job DROP COLUMN decline",
            "DROP INDEX instance_kept",
            "DROP INDEX evidence_kept",
            "ALTER TABLE instance DROP COLUMN removed_at",
            "ALTER TABLE instance DROP COLUMN last_revision",
            "ALTER TABLE evidence DROP COLUMN removed_at",
            "UPDATE schema_version SET version = 1",
            "INSERT INTO study VALUES ('1.2', 'DONE', 1, 1, 1, 1, NULL, 'as it was')",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()
    for _ in range(2):  # and opening again changes nothing
        db = Database(database_url)
        with db.reader() as connection:
            assert connection.exec_driver_sql("SELECT version FROM schema_version").all() == [(VERSION,)]
        assert studies.show(db, "1.2")["reason"] == "as it was"
        assert studies.register(db, [received(1)]) == 1
        with db.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM instance")
        db.close()


def test_a_damaged_page_is_found_at_the_start_and_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wetread.db"
    db = Database(f"sqlite:///{path}")
    studies.register(db, [received(n) for n in range(500)])
    assert db.problems() == db.problems(thorough=True) == []
    db.require_sound()
    with db.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM event")
    with db.reader() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.exec_driver_sql("SELECT rootpage FROM sqlite_master WHERE name = 'instance'").one()
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(Permanent, match=rf"{path} is damaged.*Restore a copy"):
        Database(f"sqlite:///{path}").require_sound()


def test_an_orphan_row_is_found_by_the_thorough_check(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/wetread.db")
    with sqlite3.connect(tmp_path / "wetread.db") as connection:
        connection.execute("INSERT INTO evidence VALUES ('1', 'no job', 'SR', '1', '1', 'p', 's', 1, 1, NULL)")
    assert db.problems() == []
    assert db.problems(thorough=True) == ["row 1 of evidence names a job that is not there"]


@pytest.mark.parametrize(
    ("kind", "path", "refused"),
    [
        ("nfs4", "/srv/state/wetread.db", True),
        ("cifs", "/srv/state/wetread.db", True),
        ("ext4", "/srv/state/wetread.db", False),
        ("nfs4", "/srv/statements/wetread.db", False),
        ("nfs4", "/srv/state/local disk/wetread.db", False),
    ],
)
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str, path: str, refused: bool) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nnas:/x /srv/state {kind} rw 0 0\nd /srv/state/local\\040disk xfs rw 0 0\n"
    )
    if refused:
        with pytest.raises(Permanent, match=rf"/srv/state, a network file system \({kind}\)"):
            mounts.refuse_network(Path(path), table)
    else:
        mounts.refuse_network(Path(path), table)


def test_the_database_looks_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts.file_system(tmp_path)[1]
    monkeypatch.setattr(mounts, "NETWORK", {mounts.file_system(tmp_path)[1]})
    with pytest.raises(Permanent, match="network file system"):
        Database(f"sqlite:///{tmp_path}/wetread.db")
