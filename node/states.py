"""The three state machines as data; `store` makes every move with `UPDATE … WHERE state = ?` and nothing else does.

Study     RECEIVING → COMPLETE → ROUTED → DONE | FAILED; a late instance reopens it; CONFLICT waits for a person
Job       QUEUED → RUNNING → REPORTED → DONE; UNSUITABLE is an answer; DEAD waits for a person
Delivery  PENDING → SENDING → SENT → COMMITTING → COMMITTED; DEAD waits for a person
"""

from __future__ import annotations

from enum import StrEnum


class StudyState(StrEnum):
    """Where a study is."""

    RECEIVING = "RECEIVING"
    CONFLICT = "CONFLICT"
    COMPLETE = "COMPLETE"
    ROUTED = "ROUTED"
    DONE = "DONE"
    FAILED = "FAILED"


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    REPORTED = "REPORTED"
    DONE = "DONE"
    UNSUITABLE = "UNSUITABLE"
    DEAD = "DEAD"
    DROPPED = "DROPPED"


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    COMMITTING = "COMMITTING"
    COMMITTED = "COMMITTED"
    DEAD = "DEAD"
    DROPPED = "DROPPED"


S, J, D = StudyState, JobState, DeliveryState

STUDY_MOVES: frozenset[tuple[StudyState, StudyState]] = frozenset(
    {
        (S.RECEIVING, S.COMPLETE),  # quiet period or longest wait passed; manifest frozen
        (S.RECEIVING, S.CONFLICT),  # one SOP Instance UID came with different pixels
        (S.CONFLICT, S.RECEIVING),  # a person says which of them stands
        (S.COMPLETE, S.ROUTED),  # jobs inserted in the same transaction
        (S.ROUTED, S.DONE),  # every job ended in an answer and every delivery arrived
        (S.ROUTED, S.FAILED),  # at least one job or delivery is DEAD
        (S.FAILED, S.ROUTED),  # a person revived or dropped a dead letter
        (S.FAILED, S.DONE),  # a dead letter that was dropped in an earlier version
        (S.COMPLETE, S.RECEIVING),  # a late instance reopens the study
        (S.ROUTED, S.RECEIVING),
        (S.DONE, S.RECEIVING),
        (S.FAILED, S.RECEIVING),
    }
)
JOB_MOVES: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (J.QUEUED, J.RUNNING),  # claimed: lease and fence
        (J.RUNNING, J.QUEUED),  # transient failure, or the lease expired
        (J.RUNNING, J.REPORTED),  # results in the spool, deliveries inserted
        (J.RUNNING, J.UNSUITABLE),  # the bundle must not read this series
        (J.RUNNING, J.DEAD),  # attempts exhausted, or a permanent failure
        (J.REPORTED, J.DONE),  # every delivery arrived
        (J.DEAD, J.QUEUED),  # a person retries
        (J.DEAD, J.DROPPED),  # a person gives up
    }
)
DELIVERY_MOVES: frozenset[tuple[DeliveryState, DeliveryState]] = frozenset(
    {
        (D.PENDING, D.SENDING),  # claimed: lease and fence
        (D.SENDING, D.PENDING),  # transient failure, or the lease expired
        (D.SENDING, D.SENT),  # 0000H or a warning
        (D.SENDING, D.DEAD),  # refused for good
        (D.SENT, D.COMMITTING),  # N-ACTION accepted (PS3.4 §J.3.2)
        (D.COMMITTING, D.COMMITTED),  # N-EVENT-REPORT says so (PS3.4 §J.3.3)
        (D.COMMITTING, D.SENT),  # no answer in time: ask again with a new Transaction UID
        (D.COMMITTING, D.PENDING),  # the PACS says it does not have it: send the same bytes again
        (D.COMMITTING, D.DEAD),  # commitment refused for good
        (D.SENT, D.DEAD),
        (D.DEAD, D.PENDING),  # a person retries
        (D.DEAD, D.DROPPED),  # a person gives up
    }
)
