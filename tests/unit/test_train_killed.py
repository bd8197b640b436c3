"""A killed `wetread train` leaves no process behind, whatever the processes it started are busy with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node import bundles, trust
from tests.unit.phantom import classifier
from tests.unit.test_train import TRAIN, data

__all__ = ["data"]

_PATIENCE_S = 280


def stuck(folder: Path) -> None:
    """Write a bundle that trains with one process that loads images, and that one hangs."""
    made = classifier(folder)
    train: dict[str, Any] = json.loads(json.dumps(TRAIN))
    train["train"]["dataset"]["transform"] = {"_target_": "tests.unit.stuck.Stuck", "folder": "@dataset_dir"}
    train["train"]["dataloader"]["num_workers"] = 1
    train["validate"]["handlers"].append("@validate#early_stop")
    train["initialize"].append("$@validate#early_stop.set_trainer(@train#trainer)")
    (made.folder / "configs" / "train.json").write_text(json.dumps(train))
    several = bundles.SHIPPED / "lung_fields" / "configs" / "multi_gpu_train.json"
    (made.folder / "configs" / "multi_gpu_train.json").write_text(several.read_text())


def until(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert process.poll() in (None, -signal.SIGKILL), what
        assert time.monotonic() < end, f"not within {_PATIENCE_S} s: {what}"
        time.sleep(0.1)


def started_by(words: str) -> set[int]:
    """Return the processes whose command line or environment has `words`; a fork has those of its parent."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:  # it ended, or is somebody else's
            continue
        if words.encode() in said:
            found.add(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux only")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_leaves_no_process(processes: int, data: Path, tmp_path: Path) -> None:
    stuck(tmp_path / "models" / "bright")
    (tmp_path / "wetread.toml").write_text(f'[worker]\nmodels = "{tmp_path / "models"}"\ndevice = "cpu"\n')
    trust.pin([bundles.load(tmp_path / "models" / "bright")], tmp_path / "trusted.toml")
    where = ["--data", data, "--out", tmp_path / "out", "--config", tmp_path / "wetread.toml"]
    command = [sys.executable, "-m", "node.cli", "train", "bright", *map(str, where), "--processes", str(processes)]
    mark = f"WETREAD_TEST_MARK={tmp_path}"
    environment = os.environ | dict([mark.split("=", 1)])
    training = subprocess.Popen(command, env=environment)
    try:
        until(lambda: len(list(data.glob("*.pid"))) == processes, "every loader of images has begun", training)
        loaders = {int(path.stem) for path in data.glob("*.pid")}
        assert loaders < started_by(mark)
        training.kill()
        until(lambda: not started_by(mark) - {training.pid}, "all have ended", training)
    finally:
        training.kill()
        training.wait()
        for left in started_by(mark):
            os.kill(left, signal.SIGKILL)
