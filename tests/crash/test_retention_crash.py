"""kill -9 while instances are deleted and sent again: what was acknowledged has its row, and what is kept is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from node import clock
from node.accept.precheck import identify
from node.assemble.recover import recover
from node.store import invariants
from node.store.db import Database, rows
from node.store.spool import Spool
from tests.crash.forks import Forks

KILLS = 15


def test_kill_minus_9_while_deleting_and_receiving_the_same_instances(tmp_path: Path, forks: Forks) -> None:
    rng, ledger = random.Random(11), tmp_path / "sent.jsonl"  # noqa: S311 - when to kill is no secret
    removed = interrupted = 0
    for life in range(KILLS):
        told, tell = os.pipe()
        with os.fdopen(tell, "wb") as log:
            node = forks.start([str(tmp_path), str(life)], log, {}, module="tests.crash.keeper")
        with os.fdopen(told) as lines:
            first = lines.readline()
            time.sleep(rng.uniform(0.05, 0.4))
            node.send_signal(signal.SIGKILL)
            rest = lines.read()
        assert node.wait(30) == -signal.SIGKILL
        with ledger.open("a") as file:
            file.writelines(line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n"))
        db, spool = Database(f"sqlite:///{tmp_path}/w.db"), Spool(tmp_path / "spool", 0)
        spool.sweep_tmp(0)
        interrupted += len(spool.aside())
        recover(db, spool, identify)
        assert spool.aside() == []
        found = invariants.check(db, spool, clock.now() + 7200, sent=ledger)
        assert [f for f in found if f.invariant != "I2"] == []  # stored and killed before the answer is allowed
        with db.reader() as connection:
            removed = len(rows(connection, "SELECT 1 FROM instance WHERE removed_at IS NOT NULL"))
        db.close()
    assert len([json.loads(line) for line in ledger.read_text().splitlines()]) > KILLS
    assert removed
    assert interrupted  # at least one removal was cut in two, or this test has shown nothing
