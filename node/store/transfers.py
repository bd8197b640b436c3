"""Which studies came in and went out, as the database knows it, for an audit trail that must name each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node import audit, clock
from node.audit import Audit, AuditEvent, Outcome
from node.store.db import Database, rows


@dataclass(frozen=True)
class Transfer:
    """A study that came in (no destination), or whose results arrived at one; `count` instances of it."""

    study_instance_uid: str
    destination: str
    count: int

    @property
    def what(self) -> str:
        """Words for a finding."""
        return f"the transfer of its results to {self.destination}" if self.destination else "its reception"


@dataclass(frozen=True)
class Told:
    """What an audit trail has: (Study Instance UID, destination), the destination empty for what came in."""

    studies: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Told:
        """From the lines of the trail (PS3.15 §A.5.3.6, DICOM Instances Transferred)."""
        event = AuditEvent.INSTANCES_TRANSFERRED.value[0]
        return cls(
            frozenset(
                (str(line.get("study_instance_uid", "")), str(line.get("destination", "")))
                for line in lines
                if line["event"] == event
            )
        )


_IN = (
    "SELECT s.study_instance_uid AS study, '' AS destination, COUNT(*) AS number FROM study s JOIN instance i ON "
    "i.study_instance_uid = s.study_instance_uid GROUP BY s.study_instance_uid "
    "HAVING MIN(i.received_at) >= :since AND MAX(i.received_at) < :before ORDER BY 1"
)
_OUT = (
    "SELECT j.study_instance_uid AS study, d.destination, COUNT(*) AS number FROM delivery d "
    "JOIN evidence e ON e.sop_instance_uid = d.sop_instance_uid JOIN job j ON j.id = e.job_id "
    "WHERE j.state = 'DONE' AND d.state IN ('SENT', 'COMMITTED') "
    "GROUP BY j.study_instance_uid, d.destination HAVING MIN(d.created_at) >= :since AND MAX(d.updated_at) < :before "
    "ORDER BY 1, 2"
)


def transfers(db: Database, since: float, before: float, told: Told) -> list[Transfer]:
    """Return what happened wholly between `since` and `before` (seconds since the epoch) and `told` does not have."""
    with db.reader() as connection:
        found = [row for query in (_IN, _OUT) for row in rows(connection, query, since=since, before=before)]
    missing = [row for row in found if (row["study"], row["destination"]) not in told.studies]
    return [Transfer(row["study"], row["destination"], row["number"]) for row in missing]


def complete(db: Database, trail: Audit, path: Path, now: float) -> int:
    """Add to the trail at `path` what a process was killed before it could write; return how many lines.

    Only what happened since the trail's first line: an older part may have been moved away.
    """
    first = next(filter(None, audit.read(path)), None)
    if first is None:
        return 0
    told = Told.of(filter(None, audit.read(path, only=AuditEvent.INSTANCES_TRANSFERRED)))
    missing = transfers(db, clock.from_iso(str(first["time"])), now, told)
    for transfer in missing:
        note(trail, transfer, reason="the line was lost when a process ended")
    return len(missing)


def note(trail: Audit, transfer: Transfer, reason: str = "") -> None:
    """Write the line of one transfer."""
    details = {"destination": transfer.destination} if transfer.destination else {}
    details |= {"reason": reason} if reason else {}
    trail.write(
        AuditEvent.INSTANCES_TRANSFERRED, Outcome.SUCCESS, study_instance_uid=transfer.study_instance_uid,
        count=transfer.count, **details,
    )  # fmt: skip
