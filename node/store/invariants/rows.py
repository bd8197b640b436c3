"""I3 and I5, from the rows alone: queries that find nothing in a sound database, and the manifests recomputed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from node import uids
from node.states import DeliveryState, JobState, StudyState
from node.store import studies
from node.store.db import rows
from node.store.invariants.finding import Finding

SILENT_S = 60.0
"""How long after its lease somebody may still be seen as holder: the node takes leases back within seconds."""


@dataclass(frozen=True)
class _Rule:
    """A query whose every row is a violation: `entity` and `what` are its columns."""

    invariant: str
    query: str
    remedy: str


_REPORT = "This is a fault of the node: please report it with this line."
_LAPSED = (
    "SELECT '{0} ' || id AS entity, leased_by || ' holds it though its lease ran out' AS what FROM {0} "
    "WHERE state = '{1}' AND (leased_until IS NULL OR leased_until < :silent)"
)
_HELD = (
    "SELECT '{0} ' || id AS entity, 'it is ' || state || ' and still held by ' || leased_by AS what FROM {0} "
    "WHERE state <> '{1}' AND leased_by IS NOT NULL"
)
_RULES = (
    _Rule(
        "I3",
        "SELECT 'study ' || study_instance_uid AS entity, COUNT(*) || ' jobs of revision ' || revision || ' read "
        "series ' || series_instance_uid || ' with ' || bundle AS what FROM job GROUP BY study_instance_uid, revision, "
        "series_instance_uid, bundle HAVING COUNT(*) > 1",
        _REPORT,
    ),
    _Rule(
        "I3",
        "SELECT 'study ' || s.study_instance_uid AS entity, 'it is ROUTED and has no job' AS what FROM study s WHERE "
        "s.state = 'ROUTED' AND NOT EXISTS (SELECT 1 FROM job j WHERE j.study_instance_uid = s.study_instance_uid "
        "AND j.revision = s.revision)",
        "Send the study again.",
    ),
    _Rule(
        "I3",
        "SELECT 'job ' || j.id AS entity, 'it is ' || j.state || ' though its study is DONE' AS what FROM job j JOIN "
        "study s ON s.study_instance_uid = j.study_instance_uid AND s.revision = j.revision WHERE s.state = 'DONE' "
        "AND j.state NOT IN ('DONE', 'UNSUITABLE', 'DROPPED')",
        _REPORT,
    ),
    _Rule(
        "I3",
        "SELECT 'job ' || j.id AS entity, 'it is of a revision that its study has not reached' AS what FROM job j "
        "JOIN study s ON s.study_instance_uid = j.study_instance_uid WHERE j.revision > s.revision",
        _REPORT,
    ),
    _Rule("I3", _LAPSED.format("job", "RUNNING"), "Start the node: it takes the job back."),
    _Rule("I3", _LAPSED.format("delivery", "SENDING"), "Start the node: it takes the delivery back."),
    _Rule("I3", _HELD.format("job", "RUNNING"), _REPORT),
    _Rule("I3", _HELD.format("delivery", "SENDING"), _REPORT),
    _Rule(
        "I3",
        "SELECT 'job ' || id AS entity, 'it is ' || state || ' without a reason' AS what FROM job "
        "WHERE state IN ('DEAD', 'UNSUITABLE') AND reason = ''",
        _REPORT,
    ),
    _Rule(
        "I4",
        "SELECT 'evidence ' || e.sop_instance_uid AS entity, 'its job is ' || j.state AS what FROM evidence e "
        "JOIN job j ON j.id = e.job_id WHERE j.state NOT IN ('REPORTED', 'DONE', 'UNSUITABLE')",
        _REPORT,
    ),
    _Rule(
        "I4",
        "SELECT 'delivery ' || id AS entity, 'it waits for a commitment that was never asked for' AS what "
        "FROM delivery WHERE state = 'COMMITTING' AND transaction_uid IS NULL",
        _REPORT,
    ),
    _Rule(
        "I1",
        "SELECT 'instance ' || i.sop_instance_uid AS entity, COUNT(*) || ' different data sets came under this UID, "
        "which nothing has noted' AS what FROM instance i GROUP BY i.sop_instance_uid HAVING COUNT(*) > 1 + (SELECT "
        "COUNT(DISTINCT v.entity_id) FROM event v JOIN instance o ON o.sha256 = v.entity_id "
        "WHERE v.entity = 'instance' AND v.to_state = 'DIFFERS' AND o.sop_instance_uid = i.sop_instance_uid)",
        _REPORT,
    ),
    _Rule(
        "I7",
        "SELECT 'instance ' || sop_instance_uid AS entity, 'it is not marked as a whole: removed_at and last_revision "
        "contradict each other' AS what FROM instance WHERE (removed_at IS NULL) <> (last_revision IS NULL)",
        _REPORT,
    ),
)
_STATES = {"study": StudyState, "job": JobState, "delivery": DeliveryState}
_KEYS = {"study": "study_instance_uid", "job": "id", "delivery": "id"}


def check(connection: sa.Connection, now: float) -> Iterator[Finding]:
    """Yield what the rows contradict each other in."""
    for rule in _RULES:
        values = {"silent": now - SILENT_S} if ":silent" in rule.query else {}
        for row in rows(connection, rule.query, **values):
            yield Finding(rule.invariant, row["entity"], row["what"] or "nobody holds it", rule.remedy)
    yield from _unknown_states(connection)
    yield from _wrong_ids(connection)
    yield from _undelivered(connection)
    yield from _manifests(connection)


def _unknown_states(connection: sa.Connection) -> Iterator[Finding]:
    for entity, known in _STATES.items():
        statement = f"SELECT {_KEYS[entity]} AS id, state FROM {entity} WHERE state NOT IN :known"  # noqa: S608 - ours
        for row in rows(connection, statement, known=[str(state) for state in known]):
            what = f"{row['state']} is no state of a {entity}"
            yield Finding("I9", f"{entity} {row['id']}", what, _REPORT)


def _wrong_ids(connection: sa.Connection) -> Iterator[Finding]:
    """Ids are derived from what makes a row unique, so that what is made twice is one row."""
    for row in rows(connection, "SELECT * FROM job"):
        key = (row["study_instance_uid"], str(row["revision"]), row["series_instance_uid"], row["bundle"])
        if row["id"] != uids.derive_id("job", *key, row["bundle_version"], row["bundle_digest"]):
            yield Finding("I3", f"job {row['id']}", "its id does not belong to what it reads", _REPORT)
    for row in rows(connection, "SELECT id, sop_instance_uid, destination FROM delivery"):
        if row["id"] != uids.derive_id("delivery", row["sop_instance_uid"], row["destination"]):
            yield Finding("I3", f"delivery {row['id']}", "its id does not belong to what it sends", _REPORT)


def _undelivered(connection: sa.Connection) -> Iterator[Finding]:
    """Evidence and its deliveries are filed in one transaction: each destination of the job has one."""
    statement = (
        "SELECT e.sop_instance_uid, j.send_to, d.destination FROM evidence e JOIN job j ON j.id = e.job_id "
        "LEFT JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid"
    )
    wanted: dict[str, set[str]] = {}
    there: dict[str, set[str]] = {}
    for row in rows(connection, statement):
        wanted[row["sop_instance_uid"]] = set(json.loads(row["send_to"]))
        there.setdefault(row["sop_instance_uid"], set()).add(row["destination"])
    for uid, destinations in wanted.items():
        for name in sorted(destinations - there[uid]):
            yield Finding("I4", f"evidence {uid}", f"it has no delivery to {name}", "Send the study again.")


def _manifests(connection: sa.Connection) -> Iterator[Finding]:
    statement = (
        "SELECT study_instance_uid, revision, manifest_sha256 FROM study "
        "WHERE state <> 'RECEIVING' AND manifest_sha256 IS NOT NULL"
    )
    for row in rows(connection, statement):
        manifest = studies.manifest_in(connection, row["study_instance_uid"], row["revision"])
        if studies.manifest_sha256(manifest) != row["manifest_sha256"]:
            what = f"the instances of revision {row['revision']} are not those that were read"
            yield Finding("I5", f"study {row['study_instance_uid']}", what, "Send the study again, to be read anew.")
