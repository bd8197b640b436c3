"""Receives instances and deletes them at the same time, for ever: what `test_retention_crash.py` kills."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

from node.errors import NoRoom
from node.settings import Settings
from node.store import retention, studies
from node.store.db import Database
from node.store.spool import Spool
from tests.unit.headers import header, received

DAY_S = 86400.0


def main(folder: str, seed: str) -> None:
    """Work below `folder`; print a line of a sender's ledger for each instance that was acknowledged."""
    db, spool = Database(f"sqlite:///{folder}/w.db"), Spool(Path(folder) / "spool", 0)
    rng = random.Random(int(seed))  # noqa: S311 - what arrives is no secret
    threading.Thread(target=_sweep, args=(db, spool), daemon=True).start()
    while True:
        uid = f"1.2.{rng.randrange(8)}"
        ds = header(SOPInstanceUID=f"{uid}.{rng.randrange(6)}", StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.9")
        try:
            row = received(spool, ds, time.time())
        except NoRoom:  # it was deleted while it came again: A700H, and the sender sends it once more
            continue
        print(json.dumps({"sop_instance_uid": row.sop_instance_uid, "sha256": row.sha256, "status": 0}), flush=True)
        studies.register(db, [row])
        if rng.random() < 0.5 and (revision := studies.complete(db, uid, time.time(), "quiet")):
            studies.routed(db, uid, revision, [], "no route", time.time())


def _sweep(db: Database, spool: Spool) -> None:
    while True:
        retention.tick(db, spool, Settings(), time.time() + 8 * DAY_S, limit=5)
