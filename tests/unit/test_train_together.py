"""Whichever of several processes of one training dies, the command says why, and its log has the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node import bundles
from node.errors import Permanent
from tests.unit.test_train import TRAIN, bundle, data, run
from workers.train import together
from workers.train.request import Request

__all__ = ["bundle", "data"]


def test_the_second_process_is_killed(bundle: bundles.Bundle, data: Path, tmp_path: Path) -> None:
    """The first one was heard, which knew no more than that the connection was closed."""
    train = json.loads(json.dumps(TRAIN | {"imports": [*TRAIN["imports"], "$import os"]}))
    trainer = train["train"]["trainer"]
    loss = trainer["loss_function"].removeprefix("$lambda pred, label: ")
    kill = "os.kill(os.getpid(), 9) if os.environ['RANK'] == '1'"
    trainer["loss_function"] = f"$lambda pred, label: {kill} else {loss}"
    train["validate"]["handlers"].append("@validate#early_stop")
    (bundle.folder / "configs" / "train.json").write_text(json.dumps(train))
    shared = bundles.SHIPPED / "lung_fields" / "configs" / "multi_gpu_train.json"
    (bundle.folder / "configs" / "multi_gpu_train.json").write_text(shared.read_text())
    told = (
        r"one of the processes was killed by signal 9; the machine may be out of memory\. .*training\.log says more\.$"
    )
    with pytest.raises(Permanent, match=told):
        run(bundles.load(bundle.folder), data, tmp_path / "out", epochs=1, processes=2)
    assert "Root Cause" in (tmp_path / "out" / "training.log").read_text()


def test_a_process_that_is_not_the_first_says_why_it_fails(bundle: bundles.Bundle, data: Path, tmp_path: Path) -> None:
    """What only the first one printed was lost, and its traceback too."""
    broken = TRAIN | {"initialize": ["$1 / 0"]}
    (bundle.folder / "configs" / "train.json").write_text(json.dumps(broken))
    (bundle.folder / "configs" / "multi_gpu_train.json").write_text("{}")
    (tmp_path / "configs").mkdir()
    for name in ("train.json", "multi_gpu_train.json"):
        (tmp_path / "configs" / name).write_bytes((bundle.folder / "configs" / name).read_bytes())
    request = Request(str(bundle.folder), bundle.digest, str(data), str(tmp_path), 1.0, processes=2)
    command = [sys.executable, "-m", "workers.train.together", request.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RANK": "1"}, timeout=280)
    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in json.loads(done.stdout.splitlines()[-1])["failed"]
    assert "Traceback" in done.stderr


def test_the_first_reason_is_the_reason() -> None:
    heard: list[object] = []
    lines = [b"a library", b'{"done": 1}', b'{"failed": "division by zero"}', b'{"failed": "connection closed"}']
    assert together._listen(lines, heard.append) == "division by zero"
    assert heard == [{"done": 1}]
