"""The invariants of the node's ledger, judged from what is on disk: the database, the spool, and others' ledgers.

- I1: what a sender's ledger says was acknowledged is there, byte for byte (`ledgers`, `files`)
- I2: nothing is there that the sender's ledger does not know (`ledgers`)
- I3: one job per revision, series and bundle; none held by somebody who fell silent (`rows`)
- I4: an archive got each result once and as it was filed, and nothing else in our name (`rows`, `ledgers`)
- I5: a manifest is what it was when frozen; results are unverified and name only their own study (`rows`, `documents`)
- I6: what is due is done, and the broker's queues are empty, where the caller says how quiet it must be (`drained`)
- I7: every row has its file, whole, and every file its row; nothing half-done is left behind; the node's processes
  leak nothing (`files`, `processes`)
- I8: nothing of a patient is in logs, pages, the database, the broker's file or temporary folders (`secrets`)
- I9: every history is a legal path that ends in the row's state; each claim had the next fence (`histories`)
- I10: the audit trail names each study in and out, and each association that was turned away (`trail`)
- I11: the database is sound (here)
- I12: an error is one line in the log (`logs`)

Safe while the node runs: rows are read in one snapshot, and what looks wrong on disk is looked at again before it is
reported.
"""

from __future__ import annotations

from pathlib import Path

from node.store.db import Database
from node.store.invariants import documents, drained, files, histories, ledgers, logs, processes, rows, secrets, trail
from node.store.invariants.beside import Beside as Beside
from node.store.invariants.finding import Finding as Finding
from node.store.spool import Spool


def check(
    db: Database,
    spool: Spool,
    now: float,
    *,
    sent: Path | None = None,
    archive: Path | None = None,
    ae_title: str = "",
    quick: bool = False,
    beside: Beside | None = None,
) -> list[Finding]:
    """Return everything that is not as it must be at `now` (seconds since the epoch); [] is what a node should have.

    `sent` is a sender's ledger and `archive` that of an archive which got our results from `ae_title`: JSON lines
    with `sop_instance_uid`, `sha256` (of the data set) and `status`. `quick` believes the bytes of files; `beside`
    is what else there is to judge. Raises `DatabaseUnavailable`, and `Permanent` where a ledger cannot be read.
    """
    found = [Finding("I11", "database", problem, "Restore a copy.") for problem in db.problems(thorough=True)]
    with db.reader() as connection:
        found += rows.check(connection, now)
        found += histories.check(connection)
    found += files.check(db, spool, now, quick)
    found += documents.check(db, spool) if not quick else []
    found += ledgers.check_sent(db, spool, sent) if sent else []
    found += ledgers.check_archive(db, spool, archive, ae_title) if archive else []
    return found + (_beside(db, spool, now, beside) if beside else [])


def _beside(db: Database, spool: Spool, now: float, beside: Beside) -> list[Finding]:
    found = list(processes.check(beside.state, spool)) if beside.state else []
    if beside.drained_s is not None:
        with db.reader() as connection:
            found += drained.check(connection, beside.waiting, now, beside.drained_s)
    found += secrets.check(spool, beside)
    found += trail.check(db, beside, now)
    found += logs.check(beside.log_files)
    return found
