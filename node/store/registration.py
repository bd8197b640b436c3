"""Registering: instances that are durable in the spool enter the index, and a late one reopens its study.

An instance is known by (SOP Instance UID, SHA-256 of its data set): the same bytes again change nothing, other bytes
under the same UID are never lost. Bytes that come again after retention removed them are a new instance: its sender
was promised that they are kept, and why it sends them again is not for us to guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import sqlalchemy as sa

from node.crashpoints import reach
from node.states import StudyState as S
from node.store.db import Database, move, record, rows

Late = Literal["supersede", "reread", "ignore"]
"""What `completeness.late_instances` says; whether a report names its predecessor is for the worker."""


@dataclass(frozen=True)
class Received:
    """One instance that is durable in the spool; `is_own_result`: made by us and sent back, kept but never read."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sha256: str
    path: str
    size: int
    calling_ae: str
    is_own_result: bool
    received_at: float


_OPEN = (S.RECEIVING, S.CONFLICT)
"""States in which new instances belong to the revision that is being received."""
_INSERT_INSTANCE = sa.text(
    "INSERT INTO instance (sop_instance_uid, sha256, study_instance_uid, series_instance_uid, sop_class_uid, "
    "transfer_syntax_uid, path, size, calling_ae, is_own_result, received_at, revision) VALUES (:sop_instance_uid, "
    ":sha256, :study_instance_uid, :series_instance_uid, :sop_class_uid, :transfer_syntax_uid, :path, :size, "
    ":calling_ae, :is_own_result, :received_at, :revision) ON CONFLICT (sop_instance_uid, sha256) DO UPDATE SET "
    "path = :path, size = :size, calling_ae = :calling_ae, received_at = :received_at, removed_at = NULL, "
    # Where late instances are ignored, what comes back takes its old place and the frozen manifest stays as it was.
    "revision = CASE WHEN :settled = 1 AND instance.last_revision = :revision - 1 THEN instance.revision "
    "ELSE :revision END, last_revision = NULL WHERE instance.removed_at IS NOT NULL"
)


def register(db: Database, received: Sequence[Received], late: Late = "reread") -> int:
    """Index instances in one transaction; return how many were new.

    A new instance of a study that was complete reopens it, unless `late` is "ignore" or it is our own result.
    """
    by_study: dict[str, list[Received]] = {}
    for instance in received:
        by_study.setdefault(instance.study_instance_uid, []).append(instance)
    new = 0
    with db.transaction() as connection:
        for study_uid in sorted(by_study):  # always in this order: two batches must not wait for each other
            new += _register_study(connection, study_uid, by_study[study_uid], late)
        reach("register.before_commit")
    return new


def registered(db: Database, sha256s: Iterable[str]) -> set[str]:
    """Return those of `sha256s` (of data sets) that the index knows."""
    wanted, known = sorted(set(sha256s)), set()
    with db.reader() as connection:
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            found = rows(connection, "SELECT sha256 FROM instance WHERE sha256 IN :part", part=part)
            known |= {row["sha256"] for row in found}
    return known


def hold(connection: sa.Connection, study_uid: str) -> dict[str, Any] | None:
    """Lock the study's row until the transaction ends (an UPDATE that changes nothing) and return it."""
    found = rows(
        connection,
        "UPDATE study SET revision = revision WHERE study_instance_uid = :uid RETURNING *",
        uid=study_uid,
    )
    return found[0] if found else None


def _register_study(connection: sa.Connection, study_uid: str, received: Sequence[Received], late: Late) -> int:
    _open(connection, study_uid, received)
    study = hold(connection, study_uid)
    assert study is not None  # noqa: S101 - inserted by the line before, never deleted
    known = _known(connection, [i.sop_instance_uid for i in received])
    new = [i for i in received if _is_new(i, known)]
    images = [i for i in new if not i.is_own_result]
    if images:
        _take_in(connection, study, images, late)
    if new:
        settled = int(late == "ignore" and study["state"] not in _OPEN)
        common = {"revision": study["revision"] + 1, "settled": settled}
        connection.execute(_INSERT_INSTANCE, [_values(instance) | common for instance in new])
    for instance in new:
        _note(connection, instance, known[instance.sop_instance_uid])
    return len(new)


def _values(instance: Received) -> dict[str, Any]:
    return vars(instance) | {"is_own_result": int(instance.is_own_result)}


def _note(connection: sa.Connection, instance: Received, copies: dict[str, _Copy]) -> None:
    """Record what is odd about an instance that is new."""
    at, uid = instance.received_at, instance.sop_instance_uid
    if copies[instance.sha256] is _Copy.AGAIN:
        record(connection, "instance", instance.sha256, "", "AGAIN", at, f"{uid} came again after it was removed")
    if len(copies) > 1:
        reason = f"{uid} came with other bytes before; both are kept"
        record(connection, "instance", instance.sha256, "", "DIFFERS", at, reason)


def _open(connection: sa.Connection, study_uid: str, received: Sequence[Received]) -> None:
    at = min(i.received_at for i in received)
    made = connection.execute(
        sa.text(
            "INSERT INTO study (study_instance_uid, state, revision, opened_at, last_received_at) "
            "VALUES (:uid, 'RECEIVING', 0, :at, :at) ON CONFLICT DO NOTHING"
        ),
        {"uid": study_uid, "at": at},
    )
    if made.rowcount == 1:
        record(connection, "study", study_uid, "", S.RECEIVING, at, f"first instance from {received[0].calling_ae}")


class _Copy(Enum):
    """What is known of one digest under a SOP Instance UID."""

    THERE, REMOVED, AGAIN, NEW = "there", "removed", "came again after its removal", "new"


def _known(connection: sa.Connection, uids: Sequence[str]) -> dict[str, dict[str, _Copy]]:
    """Return SOP Instance UID → digests of the copies that are there or once were."""
    known: dict[str, dict[str, _Copy]] = {uid: {} for uid in uids}
    wanted = sorted(known)
    for start in range(0, len(wanted), 500):
        statement = "SELECT sop_instance_uid, sha256, removed_at FROM instance WHERE sop_instance_uid IN :part"
        for row in rows(connection, statement, part=wanted[start : start + 500]):
            copy = _Copy.THERE if row["removed_at"] is None else _Copy.REMOVED
            known[row["sop_instance_uid"]][row["sha256"]] = copy
    return known


def _is_new(instance: Received, known: dict[str, dict[str, _Copy]]) -> bool:
    copies = known[instance.sop_instance_uid]
    before = copies.get(instance.sha256)
    if before in (None, _Copy.REMOVED):
        copies[instance.sha256] = _Copy.AGAIN if before else _Copy.NEW
        return True
    return False


def _take_in(connection: sa.Connection, study: dict[str, Any], images: Sequence[Received], late: Late) -> None:
    """Let new instances move the study: on with the quiet period, or back to RECEIVING."""
    uid, state = study["study_instance_uid"], S(study["state"])
    first, last = min(i.received_at for i in images), max(i.received_at for i in images)
    if state in _OPEN:
        if _is_waiting(connection, study):
            first, last = min(first, study["opened_at"]), max(last, study["last_received_at"])
        connection.execute(
            sa.text("UPDATE study SET opened_at = :first, last_received_at = :last WHERE study_instance_uid = :uid"),
            {"first": first, "last": last, "uid": uid},
        )
    elif late != "ignore" or not _has_images(connection, uid):
        reason = f"{len(images)} instances came after revision {study['revision']} was complete"
        changes = {"opened_at": first, "last_received_at": last, "reason": reason}
        move(connection, "study", uid, state, S.RECEIVING, last, reason, changes=changes)
    else:
        for instance in images:
            reason = f"came after revision {study['revision']} was complete; completeness.late_instances is ignore"
            record(connection, "instance", instance.sha256, "", "LATE", instance.received_at, reason)


def _has_images(connection: sa.Connection, study_uid: str) -> bool:
    """Whether the study ever had more than our own results; nothing comes late to one that had nothing to read."""
    statement = "SELECT 1 AS there FROM instance WHERE study_instance_uid = :uid AND is_own_result = 0 LIMIT 1"
    return bool(rows(connection, statement, uid=study_uid))


def _is_waiting(connection: sa.Connection, study: dict[str, Any]) -> bool:
    """Whether the study already has instances of the revision now being received (our own results do not count)."""
    return bool(
        rows(
            connection,
            "SELECT 1 AS there FROM instance WHERE study_instance_uid = :uid AND revision > :revision "
            "AND is_own_result = 0 AND removed_at IS NULL LIMIT 1",
            uid=study["study_instance_uid"],
            revision=study["revision"],
        )
    )
