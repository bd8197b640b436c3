"""The database: durable settings, write contention, errors, schema, and the lock on the state folder."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from node.errors import DatabaseUnavailable, NoRoom, Permanent
from node.states import StudyState
from node.store import engine, studies
from node.store.db import Database, history, move, record
from node.store.locks import lock_state
from node.store.servertime import ServerTime
from tests.unit.rows import STUDY, received

ROOT = Path(__file__).resolve().parents[2]
WRITERS, WRITES = 6, 50
_WRITER = """
import sys
from node.store.db import Database, record
db = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[3])):
    with db.transaction() as connection:
        seen = connection.exec_driver_sql("SELECT COUNT(*) FROM event").scalar_one()
        record(connection, "study", "contended", "", "X", float(seen), sys.argv[2])
print("done")
"""


def test_hosts_whose_clocks_differ_share_that_of_their_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    with database.reader():
        pass
    late = 3600 if database.dialect == "sqlite" else 0
    assert abs(real() - late - database.now()) < 60
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert abs(real() - late - database.now()) < 60 or database.dialect == "sqlite"


def test_the_time_of_a_server_is_carried_on_and_asked_for_again(postgres_url: str) -> None:
    at = [1000.0]
    served, db = ServerTime(lambda: at[0]), Database(postgres_url)
    with db.reader() as connection:
        served.look(connection)
        first = served.now()
        at[0] += 59
        served.look(connection)
        assert served.now() == first + 59
        at[0] += 1
        served.look(connection)
        assert served.now() < first + 59
    db.close()


def test_six_processes_write_without_one_failure(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/wetread.db"
    command = [sys.executable, "-c", _WRITER, url]
    writers = [
        subprocess.Popen(
            [*command, f"writer {n}", str(WRITES)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(WRITERS)
    ]
    for writer in writers:  # all at once, or there is no contention
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    outputs = [writer.communicate("go\n", timeout=120)[0] for writer in writers]
    assert outputs == ["done\n"] * WRITERS
    db = Database(url)
    with db.reader() as connection:
        events = history(connection, "study", "contended")
    # Each saw, inside its transaction, all that were committed before it: writers took turns.
    assert [(e["number"], e["at"]) for e in events] == [(n + 1, float(n)) for n in range(WRITERS * WRITES)]


def test_threads_of_one_process_take_turns(database: Database) -> None:
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for _ in range(20):
                with database.transaction() as connection:
                    record(connection, "study", name, "", "X", 1.0, "")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with database.reader() as connection:
        assert [len(history(connection, "study", f"thread {n}")) for n in range(6)] == [20] * 6


def test_a_database_that_many_open_for_the_first_time_is_made_once(database_url: str) -> None:
    start, opened = threading.Barrier(6), []

    def open_it() -> None:
        start.wait()
        opened.append(Database(database_url))

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == 6
    for db in opened:
        db.close()


def test_sqlite_commits_survive_a_power_cut(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/wetread.db")
    with db.transaction() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert settings == ["wal", 2, 1, 30000]


def test_an_exception_undoes_the_transaction(database: Database) -> None:
    def half_way() -> None:
        with database.transaction() as connection:
            record(connection, "study", "x", "", "X", 1.0, "")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_way()
    with database.reader() as connection:
        assert history(connection, "study", "x") == []


def test_a_foreign_key_is_enforced(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as connection:
        connection.exec_driver_sql(
            "INSERT INTO delivery (id, sop_instance_uid, destination, state, created_at, updated_at) "
            "VALUES ('a', 'nothing', 'pacs', 'PENDING', 0, 0)"
        )


def test_a_locked_database_is_unavailable_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_PRAGMAS", (*engine._PRAGMAS, "PRAGMA busy_timeout=50"))
    db = Database(f"sqlite:///{tmp_path}/wetread.db")
    other = sqlite3.connect(tmp_path / "wetread.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"):
        studies.register(db, [received(1)])
    other.execute("ROLLBACK")
    assert studies.register(db, [received(1)]) == 1


def test_a_full_disk_is_no_room(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/wetread.db")
    with db.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(NoRoom, match="full"):
        studies.register(db, [received(n) for n in range(2000)])
    assert studies.listing(db) == []


def test_an_unreachable_postgresql_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="did not answer"):
        Database(f"postgresql+psycopg://wetread@/wetread?host={tmp_path}")


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "wetread.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(Permanent, match="damaged"):
        Database(f"sqlite:///{path}")
    assert path.read_bytes() == b"not a database at all" * 100


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_a_database_that_cannot_keep_jobs_is_refused(url: str) -> None:
    with pytest.raises(Permanent, match=r"database\.url"):
        Database(url)


def test_another_schema_is_refused(database_url: str) -> None:
    db = Database(database_url)
    with db.transaction() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 99")
    db.close()
    with pytest.raises(Permanent, match="schema 99"):
        Database(database_url)


def test_opening_again_keeps_everything(database_url: str) -> None:
    db = Database(database_url)
    studies.register(db, [received(1)])
    db.close()
    again = Database(database_url)
    assert studies.show(again, STUDY)["state"] == "RECEIVING"
    again.close()


def test_folder_and_file_are_not_for_others(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/state/wetread.db")
    studies.register(db, [received(1)])
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "state").iterdir()}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert {name for name, mode in modes.items() if mode & 0o007} == set(), modes
    assert "wetread.db-wal" in modes


def test_an_illegal_move_is_refused_before_it_is_written(database: Database) -> None:
    studies.register(database, [received(1)])
    with database.transaction() as connection, pytest.raises(ValueError, match="RECEIVING → DONE"):
        move(connection, "study", STUDY, StudyState.RECEIVING, StudyState.DONE, 1.0, "")
    assert studies.show(database, STUDY)["state"] == "RECEIVING"


def test_a_reader_sees_one_state_while_others_write(database: Database) -> None:
    studies.register(database, [received(1)])
    with database.reader() as connection:
        before = history(connection, "study", STUDY)
        assert studies.complete(database, STUDY, 200.0, "quiet") == 1
        assert history(connection, "study", STUDY) == before


def test_two_nodes_cannot_share_a_state_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from node.store.locks import lock_state\n"
            "with lock_state(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()",
            str(tmp_path / "state"),
        ],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Permanent, match="Another node"), lock_state(tmp_path / "state"):
        pytest.fail("two nodes hold one folder")
    holder.kill()  # the lock does not outlive its holder, however it ends
    holder.communicate(timeout=10)
    with lock_state(tmp_path / "state"):
        pass
