"""kill -9 while instances are deleted and sent again: what was acknowledged has its row, and what is kept is whole."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from node import clock
from node.assemble.recover import recover
from node.store import invariants
from node.store.db import Database, rows
from node.store.spool import Spool

ROOT = Path(__file__).resolve().parents[2]
KILLS = 15
_NODE = """
import json, sys, time, random, threading
from pathlib import Path
from node.settings import Settings
from node.store import retention, studies
from node.store.db import Database
from node.store.spool import Spool
from tests.unit.headers import header, received
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
db, spool, rng = Database(f"sqlite:///{folder}/w.db"), Spool(folder / "spool", 0), random.Random(seed)
uids = [f"1.2.{n}" for n in range(8)]

def sweep():
    while True:
        retention.tick(db, spool, Settings(), time.time() + 8 * 86400, limit=5)

threading.Thread(target=sweep, daemon=True).start()
while True:
    uid = rng.choice(uids)
    ds = header(SOPInstanceUID=f"{uid}.{rng.randrange(6)}", StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.9")
    row = received(spool, ds, time.time())
    print(json.dumps({"sop_instance_uid": row.sop_instance_uid, "sha256": row.sha256, "status": 0}), flush=True)
    studies.register(db, [row])
    if rng.random() < 0.5 and (revision := studies.complete(db, uid, time.time(), "quiet")):
        studies.routed(db, uid, revision, [], "no route", time.time())
"""


def test_kill_minus_9_while_deleting_and_receiving_the_same_instances(tmp_path: Path) -> None:
    rng, ledger = random.Random(11), tmp_path / "sent.jsonl"  # noqa: S311 - when to kill is no secret
    removed = interrupted = 0
    for life in range(KILLS):
        command = [sys.executable, "-c", _NODE, str(tmp_path), str(life)]
        node = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
        assert node.stdout is not None
        first = node.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.4))
        node.send_signal(signal.SIGKILL)
        rest, _ = node.communicate(timeout=30)
        with ledger.open("a") as file:
            file.writelines(line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n"))
        db, spool = Database(f"sqlite:///{tmp_path}/w.db"), Spool(tmp_path / "spool", 0)
        spool.sweep_tmp(0)
        interrupted += len(spool.aside())
        recover(db, spool)
        assert spool.aside() == []
        found = invariants.check(db, spool, clock.now() + 7200, sent=ledger)
        assert [f for f in found if f.invariant != "I2"] == []  # stored and killed before the answer is allowed
        with db.reader() as connection:
            removed = len(rows(connection, "SELECT 1 FROM instance WHERE removed_at IS NOT NULL"))
        db.close()
    assert len([json.loads(line) for line in ledger.read_text().splitlines()]) > KILLS
    assert removed
    assert interrupted  # at least one removal was cut in two, or this test has shown nothing
