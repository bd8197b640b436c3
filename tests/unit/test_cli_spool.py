"""`wetread spool verify`, on a node that runs, on one that is damaged, and on one that never ran."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from node import cli
from node.daemon import Node, Pace
from node.errors import Permanent
from node.settings import load_routes, load_settings
from node.simulate import scanner
from node.store import backup, ingestlog, locks, studies
from node.store.db import Database
from node.store.spool import Spool
from node.store.syncing import Syncer

CONFIG = """
[node]
port = 0
[completeness]
quiet_period = "500 ms"
[spool]
refuse_below = "1 MB"
keep_images = "{keep}"
[web]
port = 0
"""


def start(folder: Path, keep: str = "7 d") -> tuple[Path, Node]:
    config = folder / "wetread.toml"
    config.write_text(CONFIG.format(keep=keep))
    (folder / "routes.toml").write_text("")
    settings = load_settings(config)
    pace = Pace(assemble=0.1, route=0.1, ring=0.1, settle=0.1, retain=0.1)
    return config, Node(settings, load_routes(folder / "routes.toml", settings), pace)


def never_started(folder: Path) -> Path:
    """A node's folder with an empty database and spool."""
    config, _ = start(folder)
    Database(load_settings(config).database.url).close()
    return config


def push(node: Node, state: str) -> None:
    assert scanner.send(Path(str(get_testdata_file("CT_small.dcm"))), "127.0.0.1", node.listener.port).ok
    until(lambda: bool(studies.listing(node.db, state=state)))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_running_node_is_as_it_must_be_and_a_changed_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, node = start(tmp_path)
    with node:
        push(node, "DONE")
        assert cli.run(["spool", "verify", "--config", str(config)]) == 0
        assert capsys.readouterr().out == "Everything is as it must be.\n"
        (path,) = node.spool.instances()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cli.run(["spool", "verify", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("I7   instance ")
    assert out.endswith("1 findings.\n")
    assert cli.run(["spool", "verify", "--json", "--config", str(config)]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert set(finding) == {"invariant", "entity", "what", "remedy"}
    assert cli.run(["spool", "verify", "--quick", "--config", str(config)]) == 0


def test_a_node_deletes_what_is_past_its_time_by_itself(tmp_path: Path) -> None:
    config, node = start(tmp_path, keep="1 s")
    with node:
        push(node, "DONE")
        until(lambda: not list(node.spool.instances()))
        assert cli.run(["spool", "verify", "--config", str(config)]) == 0
    with start(tmp_path, keep="1 s")[1] as again:
        assert [study["state"] for study in studies.listing(again.db)] == ["DONE"]


def test_where_no_node_ran_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = start(tmp_path)
    assert cli.run(["spool", "verify", "--config", str(config)]) == 1
    assert "no node has run" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_copy_made_beside_the_running_node_is_whole_and_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, node = start(tmp_path)
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    with node:
        push(node, "DONE")
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
        assert "; 0 files were new" in capsys.readouterr().out
        assert cli.run(["spool", "restore", str(copy), "--config", str(config)]) == 1  # it runs
        assert "Another node (listener) is running" in capsys.readouterr().err
        expected = {study["study_instance_uid"] for study in studies.listing(node.db)}
    elsewhere.mkdir()
    again, other = start(elsewhere)
    for _ in range(2):
        assert cli.run(["spool", "restore", str(copy), "--config", str(again)]) == 0
    assert (elsewhere / "state" / "wetread.db.before-restore").is_file()
    assert cli.run(["spool", "verify", "--config", str(again)]) == 0
    with other:
        assert {study["study_instance_uid"] for study in studies.listing(other.db)} == expected
        assert cli.run(["spool", "verify", "--config", str(again)]) == 0


def test_a_copy_is_not_put_under_a_worker_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would work on with the old database, set aside under it, and answer to nothing in the new one."""
    config, copy = never_started(tmp_path), str(tmp_path / "copy")
    assert cli.run(["spool", "backup", copy, "--config", str(config)]) == 0
    with locks.work_on(tmp_path / "state"), locks.work_on(tmp_path / "state"):
        assert cli.run(["spool", "restore", copy, "--config", str(config)]) == 1
        assert "A worker is running" in capsys.readouterr().err
    assert not (tmp_path / "state" / "wetread.db.before-restore").exists()
    with (
        locks.alone(tmp_path / "state"),
        pytest.raises(Permanent, match="A copy is being restored"),
        locks.work_on(tmp_path / "state"),
    ):
        pass
    assert cli.run(["spool", "restore", copy, "--config", str(config)]) == 0


class Unwritten(Syncer):
    """A disk that fails when what was copied is to be written."""

    def __call__(self, names: Iterable[str]) -> None:
        assert len(list(names)) > 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_copy_is_made_only_when_a_power_cut_would_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, node = start(tmp_path)
    copy = tmp_path / "copy"
    with node:
        push(node, "DONE")
        with monkeypatch.context() as patch:
            patch.setattr(backup, "Syncer", Unwritten)
            assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 1
        assert not (copy / "wetread.db").exists()
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    assert (copy / "wetread.db").exists()


def test_what_is_no_copy_is_not_put_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = start(tmp_path)
    (tmp_path / "copy").mkdir()
    assert cli.run(["spool", "restore", str(tmp_path / "copy"), "--config", str(config)]) == 1
    assert "it is no copy" in capsys.readouterr().err
    assert not (tmp_path / "state" / "wetread.db").exists()


def test_what_retention_removed_leaves_the_copy_and_never_comes_back(tmp_path: Path) -> None:
    """A nightly copy into one folder kept what was removed for ever; put back, it was an instance that came again."""
    config, node = start(tmp_path)
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    with node:
        push(node, "DONE")
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    (kept,) = (copy / "spool" / "instances").rglob("*.dcm")
    old = kept.read_bytes()
    with start(tmp_path, keep="1 s")[1] as node:
        until(lambda: not list(node.spool.instances()))
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    assert not list(copy.rglob("*.dcm"))
    kept.write_bytes(old)  # as earlier versions left it
    os.utime(kept, (1.0, 1.0))
    elsewhere.mkdir()
    again, other = start(elsewhere)
    assert cli.run(["spool", "restore", str(copy), "--config", str(again)]) == 0
    with other:
        assert [(study["state"], study["revision"]) for study in studies.listing(other.db)] == [("DONE", 1)]
        assert not list(other.spool.instances())


def test_what_came_again_after_its_removal_is_put_back(tmp_path: Path) -> None:
    config, node = start(tmp_path, keep="1 s")
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    with node:
        push(node, "DONE")
        until(lambda: not list(node.spool.instances()))
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    with start(tmp_path)[1] as node:
        push(node, "DONE")
        until(lambda: bool(list(node.spool.instances())))
        (path,) = node.spool.instances()
        came_again = copy / "spool" / node.spool.relative(path)  # between the snapshot and the copying of files
        came_again.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, came_again)
    elsewhere.mkdir()
    again, other = start(elsewhere)
    assert cli.run(["spool", "restore", str(copy), "--config", str(again)]) == 0
    with other:
        assert len(list(other.spool.instances())) == 1
        until(lambda: [study["revision"] for study in studies.listing(other.db)] == [2])


def test_a_copy_never_takes_the_place_of_a_log_that_has_more(tmp_path: Path) -> None:
    """What was acknowledged after the copy, by a node that was killed soon, is in a log file that the copy has, too."""
    config, copy = never_started(tmp_path), tmp_path / "copy"
    spool = Spool(tmp_path / "state" / "spool", 1)
    log = ingestlog.IngestLog(spool)
    append(log, b"before the copy")
    assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    after = append(log, b"after the copy")
    assert [path.name for path in (copy / "spool" / "log").iterdir()] == [after.segment.path.name]
    log._stopping.set()  # killed: nothing is laid out, the lock goes
    log._thread.join()
    after.segment.close()
    assert cli.run(["spool", "restore", str(copy), "--config", str(config)]) == 0
    assert ingestlog.replay(spool) == 2
    assert after.stored.path in set(spool.instance_names())
    assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    assert not list((copy / "spool" / "log").iterdir()), "all of it is laid out"


def append(log: ingestlog.IngestLog, dataset: bytes) -> ingestlog.Entry:
    header = bytes(128) + b"DICM"
    return log.append(header, dataset, hashlib.sha256(dataset).digest())


@pytest.mark.parametrize("harm", ["cut", "later"])
def test_a_copy_that_cannot_be_started_from_changes_nothing(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, copy, database = never_started(tmp_path), tmp_path / "copy", tmp_path / "state" / "wetread.db"
    assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
    if harm == "cut":
        os.truncate(copy / "wetread.db", (copy / "wetread.db").stat().st_size // 2)
    else:
        with closing(sqlite3.connect(copy / "wetread.db")) as later:
            later.execute("UPDATE schema_version SET version = 99")
            later.commit()
    before = database.read_bytes()
    assert cli.run(["spool", "restore", str(copy), "--config", str(config)]) == 1
    assert "nothing was changed" in capsys.readouterr().err
    assert database.read_bytes() == before
    assert not database.with_name("wetread.db.before-restore").exists()


def test_a_folder_whose_name_means_something_in_a_url_is_a_folder(tmp_path: Path) -> None:
    """The database lay beside the folder, under a part of its name, and no command found it."""
    for name in ("50%25 of all", "why? so?", "a#b ü"):
        folder, copy = tmp_path / name, tmp_path / f"copy of {name}"
        folder.mkdir()
        config = never_started(folder)
        assert (folder / "state" / "wetread.db").is_file()
        assert cli.run(["spool", "backup", str(copy), "--config", str(config)]) == 0
        assert cli.run(["spool", "restore", str(copy), "--config", str(config)]) == 0
        assert cli.run(["studies", "list", "--config", str(config)]) == 0
        assert (folder / "state" / "wetread.db.before-restore").is_file()
    assert len(list(tmp_path.iterdir())) == 6
