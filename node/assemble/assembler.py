"""Due studies become COMPLETE: the manifest is frozen and the revision counts up, once, whoever asks.

One whose instances came twice with different pixels is held as CONFLICT instead: which are right is for a person.
"""

from __future__ import annotations

import logging

from node.assemble import completeness, conflict
from node.audit import Audit, AuditEvent, Outcome
from node.crashpoints import reach
from node.settings import Settings
from node.store import completion, conflicts, studies
from node.store.completion import Evidence
from node.store.db import Database
from node.store.spool import Spool

log = logging.getLogger(__name__)

OWN_ALONE = "nothing but our own results came, back from where they were sent"
"""The evidence for a study that has nothing to read; images that still come make its next revision."""


def tick(db: Database, spool: Spool, settings: Settings, now: float, audit: Audit | None = None) -> int:
    """Complete every study that is due at `now` (seconds since the epoch); return how many this call completed.

    Two processes may call it at once: each study goes to one of them. Raises `DatabaseUnavailable`.
    """
    rules = settings.completeness
    completed = 0
    for due in completion.waiting(db, now, min(rules.pause, rules.quiet_period), rules.max_wait):
        verdict = completeness.judge(due, now, rules)
        if verdict.complete and not _held(db, spool, due, now, audit):
            completed += _complete(db, spool, due, verdict.evidence, now)
    for own in completion.own_alone(db, now, rules.quiet_period):
        completed += _complete(db, spool, own, OWN_ALONE, now)
    return completed


def _complete(db: Database, spool: Spool, due: Evidence, evidence: str, now: float) -> bool:
    reach("assemble.before")
    uid = due.study_instance_uid
    revision = studies.complete(db, uid, now, evidence, due.last_received_at, rerun=_is_news(db, spool, due))
    if revision is None:
        return False  # another process was first, or an instance arrived since
    log.info(
        "Study %s is complete, revision %d: %s", uid, revision, evidence, extra={"action": "study_complete"}
    )  # fmt: skip
    return True


def _is_news(db: Database, spool: Spool, due: Evidence) -> bool:
    """Say whether the revision to come has other images than the last; a corrected header is read no second time."""
    if due.revision == 0:
        return True
    before, after = (studies.manifest(db, due.study_instance_uid, due.revision + more) for more in (0, 1))
    return not conflict.same_images(spool, before, after)


def _held(db: Database, spool: Spool, due: Evidence, now: float, audit: Audit | None) -> bool:
    """Hold the study if copies of its instances show different images; say so to a person in every way there is."""
    uid = due.study_instance_uid
    disputed = conflict.disputed(spool, conflicts.copies(db, uid))
    if not disputed:
        return False
    reason = (
        f"{len(disputed)} instances came twice with different pixels; both are kept and nothing is read: "
        f"compare them, then `wetread studies release {uid} --keep first` or `--keep last` ({disputed[0]} is one)"
    )
    if conflicts.hold(db, uid, now, reason):
        log.error("Study %s is held: %s", uid, reason, extra={"action": "study_conflict", "study_instance_uid": uid})
        if audit is not None:
            details = "one SOP Instance UID, different pixels"
            audit.write(
                AuditEvent.CONFLICT_HELD, Outcome.MINOR_FAILURE, study_instance_uid=uid, count=len(disputed),
                reason=details,
            )  # fmt: skip
    return True
