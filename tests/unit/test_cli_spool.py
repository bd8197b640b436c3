"""`wetread spool verify`, on a node that runs, on one that is damaged, and on one that never ran."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from node import cli
from node.daemon import Node, Pace
from node.settings import load_routes, load_settings
from node.simulate import scanner
from node.store import backup, studies
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


def push(node: Node, state: str) -> None:
    assert scanner.send(Path(str(get_testdata_file("CT_small.dcm"))), "127.0.0.1", node.listener.port).ok
    deadline = time.monotonic() + 20
    while not studies.listing(node.db, state=state):
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
        deadline = time.monotonic() + 20
        while list(node.spool.instances()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
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
        assert "Another node is running" in capsys.readouterr().err
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
