"""I10: the audit trail has a line for every study that came in and went out, and for every association turned away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from node import audit, clock
from node.audit import AuditEvent
from node.store.db import Database
from node.store.invariants.beside import Beside
from node.store.invariants.finding import Finding
from node.store.transfers import Told, transfers

GRACE_S = 3600.0
"""A line about a study is written when its association ends."""
_HELD_AGAINST = (AuditEvent.INSTANCES_TRANSFERRED.value[0], AuditEvent.ASSOCIATION_REJECTED.value[0])
_REMEDY = "Start the node again: it adds what a killed process could not write."


def check(db: Database, beside: Beside, now: float) -> Iterator[Finding]:
    """Yield studies without their line, rejections without theirs, and lines that are none."""
    lines: list[dict[str, Any]] = []  # the few that are held against something; associations are millions
    since = ""
    for path in beside.trails:
        for number, line in enumerate(audit.read(path), start=1):
            if line is None:
                yield Finding(
                    "I10", f"{path}:{number}", "it is no line of an audit trail", "See who else writes there."
                )
                continue
            since = min(since or str(line["time"]), str(line["time"]))
            if line["event"] in _HELD_AGAINST:
                lines.append(line)
    if not since:
        return
    grace = GRACE_S if beside.drained_s is None else beside.drained_s
    for transfer in transfers(db, clock.from_iso(since), now - grace, Told.of(lines)):
        yield Finding("I10", f"study {transfer.study_instance_uid}", f"{transfer.what} has no audit line", _REMEDY)
    yield from _rejections(beside, lines)


def _rejections(beside: Beside, lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """What the logs say was turned away must be in the trail; logs that go further back than it are not held to it."""
    told = sum(1 for line in lines if line["event"] == AuditEvent.ASSOCIATION_REJECTED.value[0])
    logged = sum(path.read_bytes().count(b"association_rejected") for path in beside.log_files)
    if logged > told:
        yield Finding("I10", "audit trail", f"{logged} associations were turned away, {told} are in it", _REMEDY)
