"""Retention: images and results whose time is past are deleted, and only when everybody has what was promised.

A removal is: set the file aside (rename, durable) → mark the row (`removed_at`, committed) → delete the file. So a
crash always leaves one of two things that can be told apart: a file set aside, whose row says whether to put it back
or to delete it (`finish`); or a file in its place whose row says that it was removed, and that is an instance that
came again, since no step leaves one there. The row stays: what was read, and that it is gone, remains known.

The door may store the same bytes at the same moment. It touches a file that it finds, and `Spool.set_aside` leaves a
touched file alone; it stores before it registers, and the mark is set only while the place is empty, under the same
lock on the study as registering. Whichever is first, an instance that was acknowledged has its file or its reading.

One process at a time does this on one spool (`locks.housekeeping`), on whichever host.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from node.settings import Settings
from node.store.db import Database, rows
from node.store.locks import housekeeping
from node.store.registration import hold
from node.store.spool import Spool

log = logging.getLogger(__name__)

BATCH = 500
"""Files that one tick deletes at most, so that it never keeps the disk from who receives and who reads."""

_ARRIVED = "(d.state IN ('COMMITTED', 'DROPPED') OR (d.state = 'SENT' AND d.destination NOT IN :committing))"
_IMAGES = (
    # Every revision counts, not only the last: a job of an earlier one may still read these files.
    "SELECT i.path, i.received_at AS at, i.study_instance_uid FROM instance i "  # noqa: S608 - constants
    "JOIN study s ON s.study_instance_uid = i.study_instance_uid "
    "WHERE i.removed_at IS NULL AND i.received_at <= :before AND s.last_received_at <= :before "
    "AND s.state = 'DONE' "
    "AND NOT EXISTS (SELECT 1 FROM job j WHERE j.study_instance_uid = i.study_instance_uid "
    "AND j.state NOT IN ('DONE', 'UNSUITABLE', 'DROPPED')) "
    "AND NOT EXISTS (SELECT 1 FROM job j JOIN evidence e ON e.job_id = j.id "
    "JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid "
    f"WHERE j.study_instance_uid = i.study_instance_uid AND NOT {_ARRIVED}) "
)
_RESULTS = (
    "SELECT e.path, e.created_at AS at, j.study_instance_uid FROM evidence e "  # noqa: S608 - constants
    "JOIN job j ON j.id = e.job_id "
    "WHERE e.removed_at IS NULL AND e.created_at <= :before AND j.state IN ('DONE', 'UNSUITABLE') "
    f"AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.sop_instance_uid = e.sop_instance_uid AND (NOT {_ARRIVED} "
    "OR d.updated_at > :before)) "
    # The SR of an earlier revision is what the SR of the next one names as its predecessor.
    "AND NOT EXISTS (SELECT 1 FROM job o WHERE o.study_instance_uid = j.study_instance_uid "
    "AND o.state IN ('QUEUED', 'RUNNING')) "
)
_PAGE = "AND ({at} > :at OR ({at} = :at AND {path} > :path)) ORDER BY {at}, {path} LIMIT :limit"


@dataclass(frozen=True)
class _Kind:
    """What is deleted by one rule: the rows that may go, and how one is marked."""

    what: str
    select: str
    at: str
    path: str
    study: str
    mark: str


_KINDS = (
    _Kind(
        "images",
        _IMAGES,
        "i.received_at",
        "i.path",
        "i.study_instance_uid",
        "UPDATE instance SET removed_at = :now, last_revision = (SELECT revision FROM study WHERE "
        "study.study_instance_uid = instance.study_instance_uid) WHERE path = :path AND removed_at IS NULL "
        "AND study_instance_uid = :study",
    ),
    _Kind(
        "results",
        _RESULTS,
        "e.created_at",
        "e.path",
        "j.study_instance_uid",
        "UPDATE evidence SET removed_at = :now WHERE path = :path AND removed_at IS NULL AND job_id IN "
        "(SELECT id FROM job WHERE study_instance_uid = :study)",
    ),
)


def tick(db: Database, spool: Spool, settings: Settings, now: float, limit: int = BATCH) -> int:
    """Delete at most `limit` files whose time (`keep_images`, `keep_results`) is past at `now`; return how many.

    Images go when their study is DONE and nothing was received for so long; results when every delivery arrived, and
    is committed where the destination commits. What is FAILED or DEAD stays for a person. Raises
    `DatabaseUnavailable`; what was under way is finished by the next call. 0 while another process is at it.
    """
    with housekeeping(spool.root, wait=False) as is_alone:
        return _tick(db, spool, settings, now, limit) if is_alone else 0


def _tick(db: Database, spool: Spool, settings: Settings, now: float, limit: int) -> int:
    finish(db, spool)
    committing = [name for name, destination in settings.destination.items() if destination.commitment]
    removed = 0
    for kind, keep in zip(_KINDS, (settings.spool.keep_images, settings.spool.keep_results), strict=True):
        values = {"before": now - keep, "committing": committing}
        for page in _pages(db, kind, values, limit):
            removed += _remove(db, spool, kind, page[: limit - removed], values, now)
            if removed >= limit:
                return removed
    return removed


def finish(db: Database, spool: Spool) -> int:
    """Bring removals to their end that a crash or an error interrupted; return how many files that were."""
    aside = spool.aside()
    for start in range(0, len(aside), BATCH):
        part = aside[start : start + BATCH]
        with db.reader() as connection:
            kept = {row["path"] for row in rows(connection, _KEPT, part=part)}
        for relative in part:
            (spool.put_back if relative in kept else spool.discard)(relative)
    return len(aside)


_KEPT = (
    "SELECT path FROM instance WHERE removed_at IS NULL AND path IN :part "
    "UNION SELECT path FROM evidence WHERE removed_at IS NULL AND path IN :part"
)


def _pages(db: Database, kind: _Kind, values: dict[str, Any], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield what may go, the oldest first; what a page could not delete does not hold up the next."""
    at, path = float("-inf"), ""
    while True:
        with db.reader() as connection:
            statement = kind.select + _PAGE.format(at=kind.at, path=kind.path)
            page = rows(connection, statement, at=at, path=path, limit=limit, **values)
        if page:
            yield page
        if len(page) < limit:
            return
        at, path = page[-1]["at"], page[-1]["path"]


def _remove(
    db: Database, spool: Spool, kind: _Kind, page: Sequence[dict[str, Any]], values: dict[str, Any], now: float
) -> int:
    study_of = {row["path"]: row["study_instance_uid"] for row in page}
    gone = spool.set_aside(study_of, values["before"])
    with db.transaction() as connection:
        marked = _mark(connection, spool, kind, {path: study_of[path] for path in gone}, values, now)
    for path in gone:
        (spool.discard if path in marked else spool.put_back)(path)
    if marked:
        log.info(
            "Retention deleted %d %s of %d studies.",
            len(marked),
            kind.what,
            len({study_of[path] for path in marked}),
            extra={"action": "retention"},
        )
    return len(marked)


def _mark(
    connection: sa.Connection, spool: Spool, kind: _Kind, gone: dict[str, str], values: dict[str, Any], now: float
) -> set[str]:
    """Mark the rows of `gone` (path → study) as removed, if they still may go; return the paths that were marked."""
    held = sorted(set(gone.values()))  # always in this order: two transactions must not wait for each other
    for study in held:
        hold(connection, study)
    statement = f"{kind.select} AND {kind.study} IN :studies"
    may_go = {row["path"] for row in rows(connection, statement, studies=held, **values)}
    marked = [path for path in gone if path in may_go and not spool.path(path).exists()]
    for path in marked:
        connection.execute(sa.text(kind.mark), {"now": now, "path": path, "study": gone[path]})
    return set(marked)
