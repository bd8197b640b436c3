"""kill -9 while instances are being stored: what was acknowledged is there, byte for byte; nothing is half there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.store import ingestlog
from node.store.spool import Spool, dataset_sha256

ROOT = Path(__file__).resolve().parents[2]
_WRITER = """
import sys, random
from pathlib import Path
from node.store.spool import Spool, digest
spool = Spool(Path(sys.argv[1]), 0)
rng = random.Random(int(sys.argv[2]))
meta = bytes(128) + b"DICM\\x02\\x00\\x00\\x00UL\\x04\\x00\\x00\\x00\\x00\\x00"
while True:
    data = rng.randbytes(rng.randint(1, 600_000))
    stored = spool.store_instance(meta, data, digest(data))
    print(stored.sha256, stored.path, stored.size, flush=True)
"""


_LOGGER = """
import queue, sys, random, threading
from pathlib import Path
from node.store import ingestlog
from node.store.ingestlog import IngestLog
from node.store.spool import Spool, digest
ingestlog.PAUSE_S = 0.05
log = IngestLog(Spool(Path(sys.argv[1]), 0), segment=4_000_000, longest_s=0.1)
rng = random.Random(int(sys.argv[2]))
meta = bytes(128) + b"DICM\\x02\\x00\\x00\\x00UL\\x04\\x00\\x00\\x00\\x00\\x00"
entries = queue.Queue()
threading.Thread(target=lambda: [entry.lay_out() for entry in iter(entries.get, None)], daemon=True).start()
while True:
    data = rng.randbytes(rng.randint(1, 600_000))
    entry = log.append(meta, data, digest(data))
    print(entry.stored.sha256, entry.stored.path, entry.stored.size, flush=True)
    entries.put(entry)
"""


@pytest.mark.parametrize(("writing", "kills"), [(_WRITER, 25), (_LOGGER, 10)], ids=["files", "log"])
def test_kill_minus_9_loses_nothing_that_was_acknowledged(tmp_path: Path, writing: str, kills: int) -> None:
    root = tmp_path / "spool"
    rng = random.Random(7)  # noqa: S311 - when to kill is no secret
    acknowledged: list[list[str]] = []
    for run in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", writing, str(root), str(run)], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().split())  # it is under way
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=30)
        # A line cut by the kill was not an answer; a whole line was.
        acknowledged += [line.split() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert len(acknowledged) > kills
    spool = Spool(root, 0)
    ingestlog.replay(spool)
    for sha256, path, size in acknowledged:
        assert spool.verify(path, sha256), f"{path} was acknowledged and is lost or damaged"
        assert spool.path(path).stat().st_size == int(size)
    for found in spool.instances():
        assert dataset_sha256(found) == found.stem, f"{found.name} is half-written under a final name"
    spool.sweep_tmp(0)
    assert list((root / "tmp").iterdir()) == []


def test_two_processes_storing_the_same_instances_agree(tmp_path: Path) -> None:
    script = _WRITER.replace("while True:", "for _ in range(60):").replace("600_000", "60_000")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "spool"), "1"], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    answers = [writer.communicate(timeout=120)[0] for writer in writers]
    assert answers[0] == answers[1] != ""
    spool = Spool(tmp_path / "spool", 0)
    assert len(list(spool.instances())) == 60
    assert all(dataset_sha256(path) == path.stem for path in spool.instances())
    assert list((tmp_path / "spool" / "tmp").iterdir()) == []
