"""I1, I2 and I4: what a sender and an archive wrote down themselves, held against what the node has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.errors import Permanent
from node.store import ingestlog
from node.store.db import Database, rows
from node.store.invariants.finding import Finding
from node.store.spool import Spool, dataset_sha256


@dataclass(frozen=True)
class Entry:
    """One line of a ledger: an instance, the digest of its data set, and how it was answered (None: not at all)."""

    sop_instance_uid: str
    sha256: str
    status: int | None
    calling_ae: str

    @property
    def acknowledged(self) -> bool:
        """Whether the receiver took it: success, or a warning (PS3.4 §B.2.3)."""
        return self.status is not None and (self.status == 0 or 0xB000 <= self.status <= 0xBFFF)


def read(path: Path) -> list[Entry]:
    """Read a ledger; a last line cut off by a crash was never written. Raises `Permanent` on anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(f"The ledger {path} cannot be read ({type(error).__name__}).") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            entry = json.loads(line)
            status = None if entry.get("status") is None else int(entry["status"])
            uid, sha256 = str(entry["sop_instance_uid"]), str(entry["sha256"])
        except (ValueError, KeyError, AttributeError, TypeError):
            raise Permanent(f"{path}:{number}: this is no line of a ledger; nothing was checked against it.") from None
        found.append(Entry(uid, sha256, status, str(entry.get("calling_ae", ""))))
    return found


def check_sent(db: Database, spool: Spool, ledger: Path) -> Iterator[Finding]:
    """Yield what was acknowledged to a sender and is not there (I1), and what is there that it never sent (I2)."""
    entries = read(ledger)
    with db.reader() as connection:
        found = rows(connection, "SELECT sop_instance_uid, sha256, is_own_result FROM instance")
    there = {(row["sop_instance_uid"], row["sha256"]) for row in found}
    waiting = ingestlog.logged(spool)  # durable, not in the index yet; asked before the files they become
    waiting |= {path.stem for path in spool.instances()}
    for entry in dict.fromkeys(entry for entry in entries if entry.acknowledged):
        if (entry.sop_instance_uid, entry.sha256) not in there and entry.sha256 not in waiting:
            what = f"data set {entry.sha256[:12]} was acknowledged and is not there"
            yield Finding("I1", f"instance {entry.sop_instance_uid}", what, "Send it again; this must not happen.")
    known = {(entry.sop_instance_uid, entry.sha256) for entry in entries}
    own = {(row["sop_instance_uid"], row["sha256"]) for row in found if row["is_own_result"]}
    for uid, sha256 in sorted(there - known - own):
        what = f"data set {sha256[:12]} is there and the ledger does not have it"
        yield Finding("I2", f"instance {uid}", what, "Find out who sent it.")


def check_archive(db: Database, spool: Spool, ledger: Path, ae_title: str) -> Iterator[Finding]:
    """Yield what an archive got otherwise than as it was filed, or from `ae_title` without its having been filed."""
    with db.reader() as connection:
        filed = {row["sop_instance_uid"]: row for row in rows(connection, "SELECT * FROM evidence")}
    got: dict[str, set[str]] = {}
    for entry in read(ledger):
        if entry.sop_instance_uid in filed or (ae_title and entry.calling_ae == ae_title):
            got.setdefault(entry.sop_instance_uid, set()).add(entry.sha256)
    for uid, digests in sorted(got.items()):
        if len(digests) > 1:
            what = f"the archive got {len(digests)} different data sets under this UID"
            yield Finding("I4", f"evidence {uid}", what, "Keep the one that the database has.")
        if uid not in filed:
            yield Finding("I4", f"evidence {uid}", "the archive got it and no job reported it", "Find out who sent it.")
        elif filed[uid]["removed_at"] is None and digests != {_digest(spool, filed[uid]["path"])}:
            yield Finding("I4", f"evidence {uid}", "the archive got other bytes than were filed", "Send it again.")


def _digest(spool: Spool, relative: str) -> str:
    try:
        return dataset_sha256(spool.path(relative))
    except (FileNotFoundError, ValueError):
        return ""
