"""Studies whose instances came twice with different pixels: held as CONFLICT until a person says which copies stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from node.crashpoints import reach
from node.errors import NotFound, Permanent
from node.states import StudyState as S
from node.store.db import Database, move, rows
from node.store.registration import hold as lock

Keep = Literal["first", "last"]


@dataclass(frozen=True)
class Copy:
    """One of several data sets that came under one SOP Instance UID, in the order of their coming."""

    sop_instance_uid: str
    sha256: str
    path: str


_COPIES = (
    "SELECT sop_instance_uid, sha256, path FROM instance i WHERE study_instance_uid = :uid AND is_own_result = 0 "
    "AND removed_at IS NULL AND excluded_from IS NULL AND EXISTS (SELECT 1 FROM instance n JOIN study s "
    "ON s.study_instance_uid = n.study_instance_uid WHERE n.sop_instance_uid = i.sop_instance_uid "
    "AND n.study_instance_uid = i.study_instance_uid AND n.sha256 <> i.sha256 AND n.removed_at IS NULL "
    "AND n.excluded_from IS NULL AND n.is_own_result = 0) AND EXISTS (SELECT 1 FROM instance n JOIN study s "
    "ON s.study_instance_uid = n.study_instance_uid WHERE n.sop_instance_uid = i.sop_instance_uid "
    "AND n.study_instance_uid = i.study_instance_uid AND n.revision > s.revision AND n.removed_at IS NULL) "
    "ORDER BY received_at, revision, sha256"
)


def copies(db: Database, study_uid: str) -> list[Copy]:
    """Return the copies that compete in the revision being received: several under one UID, at least one new."""
    with db.reader() as connection:
        return [Copy(**row) for row in rows(connection, _COPIES, uid=study_uid)]


def hold(db: Database, study_uid: str, now: float, reason: str) -> bool:
    """Hold a study: RECEIVING → CONFLICT. False: another process was first."""
    changes = {"reason": reason}
    with db.transaction() as connection:
        held = move(connection, "study", study_uid, S.RECEIVING, S.CONFLICT, now, reason, changes=changes)
        reach("hold.before_commit")
        return held


def release(
    db: Database, study_uid: str, keep: Keep, now: float, told: Callable[[int], object] = lambda left_out: None
) -> int:
    """Let the first or the last copies stand and the study go on; return how many copies that leaves out.

    What is left out stays in the spool and on record. `told` hears that number just before it is so: a kill must not
    leave a release behind of which no trail knows. Raises `NotFound`, and `Permanent` where nothing is held.
    """
    with db.transaction() as connection:
        study = lock(connection, study_uid)
        if study is None:
            raise NotFound(f"There is no study {study_uid}. `wetread studies list` names them.")
        if study["state"] != S.CONFLICT:
            raise Permanent(f"Study {study_uid} is {study['state']} and not held as CONFLICT; nothing was changed.")
        found = [Copy(**row) for row in rows(connection, _COPIES, uid=study_uid)]
        ordered = found if keep == "first" else list(reversed(found))
        standing = {copy.sop_instance_uid: copy.sha256 for copy in reversed(ordered)}
        losers = [copy for copy in found if standing[copy.sop_instance_uid] != copy.sha256]
        for copy in losers:
            connection.execute(
                sa.text(
                    "UPDATE instance SET excluded_from = :revision WHERE sop_instance_uid = :uid AND sha256 = :sha256"
                ),
                {"revision": study["revision"] + 1, "uid": copy.sop_instance_uid, "sha256": copy.sha256},
            )
        reason = f"released by a person: the {keep} copies stand"
        move(connection, "study", study_uid, S.CONFLICT, S.RECEIVING, now, reason, changes={"reason": reason})
        told(len(losers))
        reach("release.before_commit")
        return len(losers)
