"""What speaks for a study being all here: releases, the archive's counts, and attempts to fetch what it has more.

One row per study while it is received; it goes when the study is complete. Everything here is short: nobody holds a
transaction while a peer is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from node.store.db import Database, rows

_SENT = ("SENT", "COMMITTING", "COMMITTED")
"""Deliveries in these states are objects that the destination counts."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a study that is being received; times in seconds since the epoch.

    `seen_received_at`: what `last_received_at` was when the archive was asked. `in_archive` and `missing` are None
    where it did not say. `fetch_after`: an attempt to fetch is under way until then, or the next may begin.
    """

    study_instance_uid: str
    opened_at: float
    last_received_at: float
    released_at: float | None = None
    asked_at: float = 0.0
    seen_received_at: float | None = None
    in_archive: int | None = None
    missing: int | None = None
    fetches: int = 0
    fetch_after: float = 0.0
    note: str = ""
    revision: int = 0

    @property
    def is_released(self) -> bool:
        """Whether no instance has come since an association that brought some was released."""
        return self.released_at is not None and self.released_at >= self.last_received_at

    @property
    def is_answered(self) -> bool:
        """Whether the archive was asked since the last instance, whatever it said."""
        return self.seen_received_at == self.last_received_at


_COLUMNS = (
    "s.study_instance_uid, s.revision, s.opened_at, s.last_received_at, c.released_at, "
    "COALESCE(c.asked_at, 0) AS asked_at, c.seen_received_at, c.in_archive, c.missing, "
    "COALESCE(c.fetches, 0) AS fetches, "
    "COALESCE(c.fetch_after, 0) AS fetch_after, COALESCE(c.note, '') AS note"
)
_WAITING = (
    f"SELECT {_COLUMNS} FROM study s LEFT JOIN completion c ON c.study_instance_uid = s.study_instance_uid "  # noqa: S608 - constants
    "WHERE s.state = 'RECEIVING' AND (s.last_received_at <= :still OR s.opened_at <= :open) "
    "AND EXISTS (SELECT 1 FROM instance i WHERE i.study_instance_uid = s.study_instance_uid "
    "AND i.revision > s.revision AND i.is_own_result = 0 AND i.removed_at IS NULL) "
    "ORDER BY s.opened_at, s.study_instance_uid"
)
_OWN_ALONE = (
    f"SELECT {_COLUMNS} FROM study s LEFT JOIN completion c ON c.study_instance_uid = s.study_instance_uid "  # noqa: S608 - constants
    "WHERE s.state = 'RECEIVING' AND s.last_received_at <= :still AND NOT EXISTS (SELECT 1 FROM instance i "
    "WHERE i.study_instance_uid = s.study_instance_uid AND i.is_own_result = 0) "
    "ORDER BY s.opened_at, s.study_instance_uid"
)


def waiting(db: Database, now: float, pause: float, max_wait: float) -> list[Evidence]:
    """Return what is known of the studies without an instance for `pause` s, or receiving for `max_wait` s."""
    with db.reader() as connection:
        found = rows(connection, _WAITING, still=now - pause, open=now - max_wait)
    return [Evidence(**row) for row in found]


def own_alone(db: Database, now: float, quiet_period: float) -> list[Evidence]:
    """Return the quiet studies of which nothing but our own results ever came: back from an archive, say.

    They are no part of `waiting`: nobody is asked about them, and nothing is fetched because a result came.
    """
    with db.reader() as connection:
        found = rows(connection, _OWN_ALONE, still=now - quiet_period)
    return [Evidence(**row) for row in found]


def released(db: Database, study_uids: Iterable[str], at: float) -> None:
    """Note that an association which brought instances of these studies was released at `at`."""
    statement = sa.text(
        "INSERT INTO completion (study_instance_uid, released_at) SELECT study_instance_uid, :at FROM study "
        "WHERE study_instance_uid = :uid AND state = 'RECEIVING' ON CONFLICT (study_instance_uid) DO UPDATE SET "
        "released_at = :at WHERE completion.released_at IS NULL OR completion.released_at < :at"
    )
    with db.transaction() as connection:
        for uid in sorted(set(study_uids)):
            connection.execute(statement, {"uid": uid, "at": at})


def ask(db: Database, evidence: Evidence, now: float) -> bool:
    """Take the question about a study; False: another process asks it."""
    with db.transaction() as connection:
        made = connection.execute(
            sa.text(
                "INSERT INTO completion (study_instance_uid, asked_at) VALUES (:uid, :now) "
                "ON CONFLICT (study_instance_uid) DO UPDATE SET asked_at = :now WHERE completion.asked_at = :before"
            ),
            {"uid": evidence.study_instance_uid, "now": now, "before": evidence.asked_at},
        )
        return made.rowcount == 1


def answered(db: Database, evidence: Evidence, in_archive: int | None, missing: int | None, note: str) -> None:
    """Note what the archive said: how many instances it has, how many of them are not here; None: it did not say."""
    with db.transaction() as connection:
        connection.execute(
            sa.text(
                "UPDATE completion SET seen_received_at = :seen, in_archive = :in_archive, missing = :missing, "
                "note = CASE WHEN fetches = 0 THEN :note ELSE note END WHERE study_instance_uid = :uid"
            ),
            {
                "uid": evidence.study_instance_uid,
                "seen": evidence.last_received_at,
                "in_archive": in_archive,
                "missing": missing,
                "note": note,
            },
        )


def known(db: Database, study_uid: str, destination: str) -> set[str]:
    """Return the SOP Instance UIDs of the study that are here, and those of our results that `destination` has."""
    with db.reader() as connection:
        found = rows(
            connection,
            "SELECT sop_instance_uid FROM instance WHERE study_instance_uid = :uid UNION "
            "SELECT e.sop_instance_uid FROM evidence e JOIN job j ON j.id = e.job_id "
            "JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid "
            "WHERE j.study_instance_uid = :uid AND d.destination = :destination AND d.state IN :sent",
            uid=study_uid,
            destination=destination,
            sent=_SENT,
        )
    return {row["sop_instance_uid"] for row in found}


def fetch(db: Database, evidence: Evidence, until: float) -> bool:
    """Take the next attempt to fetch what is missing, until `until`; False: another process has it."""
    with db.transaction() as connection:
        taken = connection.execute(
            sa.text(
                "UPDATE completion SET fetches = fetches + 1, fetch_after = :until WHERE study_instance_uid = :uid "
                "AND fetches = :fetches AND fetch_after = :before"
            ),
            {
                "uid": evidence.study_instance_uid,
                "until": until,
                "fetches": evidence.fetches,
                "before": evidence.fetch_after,
            },
        )
        return taken.rowcount == 1


def fetched(db: Database, study_uid: str, note: str, next_after: float, counts: bool = True) -> None:
    """End an attempt: what it came to, and when the next may begin. The archive is asked again first.

    One that the archive did not end does not count as an attempt.
    """
    with db.transaction() as connection:
        connection.execute(
            sa.text(
                "UPDATE completion SET fetch_after = :after, note = :note, seen_received_at = NULL, asked_at = 0, "
                "fetches = fetches - :back WHERE study_instance_uid = :uid"
            ),
            {"uid": study_uid, "after": next_after, "note": note, "back": int(not counts)},
        )


def forget(connection: sa.Connection, study_uids: Sequence[str]) -> None:
    """Drop what was known: the study is complete, and its reason says what decided. Part of that transaction."""
    for uid in study_uids:
        connection.execute(sa.text("DELETE FROM completion WHERE study_instance_uid = :uid"), {"uid": uid})
