"""I7: rows and files agree, byte for byte, and nothing half-done lies about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from node.errors import Permanent
from node.store.db import Database, rows
from node.store.invariants.finding import Finding
from node.store.spool import Spool

YOUNG_S = 60.0
"""So long a file may wait for its row: it is acknowledged before the index knows it."""
STRAY_S = 3600.0
"""So long a temporary file may be written, a result wait to be reported, a removal take."""

_KEPT = (
    "SELECT 'instance' AS entity, sop_instance_uid, path, sha256, size FROM instance WHERE removed_at IS NULL "
    "UNION ALL SELECT 'evidence', sop_instance_uid, path, sha256, size FROM evidence WHERE removed_at IS NULL"
)


def check(db: Database, spool: Spool, now: float, quick: bool) -> Iterator[Finding]:
    """Yield rows without their bytes, files without a row, and what was left behind; `quick` hashes nothing."""
    with db.reader() as connection:
        kept = rows(connection, _KEPT)
    yield from _rows_without_bytes(db, spool, kept, quick)
    yield from _files_without_row(db, spool, now, {row["path"] for row in kept})
    yield from _left_behind(spool, now)


def _rows_without_bytes(db: Database, spool: Spool, kept: Sequence[dict[str, Any]], quick: bool) -> Iterator[Finding]:
    suspects = [(row, what) for row in kept if (what := _fault(spool, row, quick))]
    still = _still_kept(db, suspects)
    for row, _ in suspects:
        # Retention may have been at it: what it set aside and put back, or removed since, is no fault.
        if row["path"] in still and row["path"] not in spool.aside() and (what := _fault(spool, row, quick)):
            name = f"{row['entity']} {row['sop_instance_uid']}"
            yield Finding("I7", name, f"{row['path']} {what}", _REMEDY[row["entity"]])


_REMEDY = {
    "instance": "Restore the file from a copy of the spool, or have the sender send it again; check the disk.",
    "evidence": "Restore the file from a copy of the spool, or send the study again to be read anew; check the disk.",
}


def _fault(spool: Spool, row: dict[str, Any], quick: bool) -> str:
    """Say what is wrong with the file of a row, or nothing."""
    try:
        size = spool.path(row["path"]).stat().st_size
        if size != row["size"]:
            return f"has {size} bytes instead of {row['size']}"
        return "" if quick or spool.verify(row["path"], row["sha256"]) else "does not hold the bytes that were stored"
    except FileNotFoundError:
        return "is missing"
    except Permanent:
        return "is not the name of a file in the spool"


def _still_kept(db: Database, suspects: Sequence[tuple[dict[str, Any], str]]) -> set[str]:
    if not suspects:
        return set()
    with db.reader() as connection:
        return {row["path"] for row in rows(connection, _KEPT)}


def _files_without_row(db: Database, spool: Spool, now: float, known: set[str]) -> Iterator[Finding]:
    suspects = [p for p in spool.instances() if spool.relative(p) not in known and _age(p, now) > YOUNG_S]
    suspects += [p for p in spool.results() if spool.relative(p) not in known and _age(p, now) > STRAY_S]
    if not suspects:
        return
    with db.reader() as connection:
        known = {row["path"] for row in rows(connection, _KEPT)}
    for path in suspects:
        if spool.relative(path) not in known and path.exists():
            yield Finding("I7", spool.relative(path), "the database does not know it", "Start the node again.")


def _left_behind(spool: Spool, now: float) -> Iterator[Finding]:
    for path in sorted((spool.root / "tmp").iterdir()):
        if _age(path, now) > STRAY_S:
            yield Finding("I7", f"tmp/{path.name}", "nobody writes it any more", "Start the node again.")
    for path in sorted((spool.root / "removing").iterdir()):
        if _age(path, now, moved=True) > STRAY_S:
            yield Finding("I7", f"removing/{path.name}", "its removal was never finished", "Start the node again.")
    for path in sorted((spool.root / "quarantine").glob("*")):
        what = "recovery could not place it and set it aside"
        yield Finding("I7", f"quarantine/{path.name}", what, "Look at it, then delete it or send it again.")


def _age(path: Path, now: float, moved: bool = False) -> float:
    """Return the seconds since a file was written, or `moved`; a file that has gone meanwhile is as young as can be."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0
    return now - (status.st_ctime if moved else status.st_mtime)
