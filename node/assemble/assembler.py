"""Due studies become COMPLETE: the manifest is frozen and the revision counts up, once, whoever asks."""

from __future__ import annotations

import logging

from node.assemble import completeness
from node.crashpoints import reach
from node.settings import Settings
from node.store import completion, studies
from node.store.db import Database

log = logging.getLogger(__name__)


def tick(db: Database, settings: Settings, now: float) -> int:
    """Complete every study that is due at `now` (seconds since the epoch); return how many this call completed.

    Two processes may call it at once: each study goes to one of them. Raises `DatabaseUnavailable`.
    """
    rules = settings.completeness
    completed = 0
    for due in completion.waiting(db, now, min(rules.pause, rules.quiet_period), rules.max_wait):
        verdict = completeness.judge(due, now, rules)
        if not verdict.complete:
            continue
        reach("assemble.before")
        revision = studies.complete(db, due.study_instance_uid, now, verdict.evidence, due.last_received_at)
        if revision is None:
            continue  # another process was first, or an instance arrived since
        completed += 1
        log.info(
            "Study %s is complete, revision %d: %s",
            due.study_instance_uid,
            revision,
            verdict.evidence,
            extra={"action": "study_complete"},
        )
    return completed
