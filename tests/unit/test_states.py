"""The three state machines, walked at random: many workers, lost leases, retries, late instances, duplicates.

Every change is made through the store's own functions; after each step the history that the database wrote down must be
a legal path, fences must only grow, and whoever lost a lease must not have changed anything.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from node.states import DELIVERY_MOVES, JOB_MOVES, STUDY_MOVES, DeliveryState, JobState, StudyState
from node.store import completion, conflicts, deliveries, jobs, studies
from node.store.db import Database, rows
from node.store.deliveries import ClaimedDelivery
from node.store.jobs import Claimed
from tests.unit.rows import STUDY, document, new_job, received

MOVES: dict[str, Any] = {"study": STUDY_MOVES, "job": JOB_MOVES, "delivery": DELIVERY_MOVES}
FIRST = {"study": StudyState.RECEIVING, "job": JobState.QUEUED, "delivery": DeliveryState.PENDING}
KEYS = {"study": "study_instance_uid", "job": "id", "delivery": "id"}
TABLES = ("event", "study", "instance", "job", "evidence", "delivery")
HELD = (
    "SELECT id, leased_by, fence FROM job WHERE leased_by IS NOT NULL "
    "UNION ALL SELECT id, leased_by, fence FROM delivery WHERE leased_by IS NOT NULL"
)
CURRENT = (
    "SELECT s.state, j.state FROM study s "
    "LEFT JOIN job j ON j.study_instance_uid = s.study_instance_uid AND j.revision = s.revision"
)
COMMITTING = {"pacs"}
UNDISTURBED = {"RECEIVING": 0.8, "COMPLETE": 0.8, "ROUTED": 0.95, "FAILED": 0.7, "DONE": 0.0}
"""How often no instance arrives although it could."""
NEVER_MADE = {("delivery", "SENT", "DEAD"), ("study", "FAILED", "DONE")}
"""In the table for destinations that withdraw commitment, and for letters that an earlier version dropped."""


def dump(db: Database) -> dict[str, Any]:
    """Everything that is in the database."""
    with db.reader() as connection:
        tables = {name: connection.exec_driver_sql(f"SELECT * FROM {name}") for name in TABLES}  # noqa: S608 - constants
        return {name: {tuple(row) for row in found} for name, found in tables.items()}


class Node:
    """One study, its jobs and deliveries, and workers that do not always behave; chance decides what happens next."""

    def __init__(self, db: Database, seed: int) -> None:
        self.db = db
        self.chance = random.Random(seed)  # noqa: S311 - a walk, no secret
        self.now = 1000.0
        self.instances = self.transactions = 0
        self.claims: list[tuple[str, Claimed]] = []
        self.sends: list[tuple[str, ClaimedDelivery]] = []
        self.holds: dict[str, tuple[str, int, float]] = {}  # id → worker, fence, leased until
        self.walked: set[tuple[str, str, str]] = set()

    def walk(self, steps: int) -> set[tuple[str, str, str]]:
        """Take random steps, checking after each; return the moves that were made."""
        weights = {
            self.arrives: 2,
            self.time_passes: 4,
            self.assembles: 5,
            self.routes: 5,
            self.claims_a_job: 4,
            self.claims_a_delivery: 4,
            self.beats: 2,
            self.leases_expire: 2,
            self.ends_a_job: 5,
            self.ends_a_delivery: 5,
            self.commits: 3,
            self.a_person_acts: 1,
            self.is_disputed: 1,
            self.settles: 3,
        }
        self.arrives()
        for step in self.chance.choices(list(weights), list(weights.values()), k=steps):
            step()
            self.what_is_held_is_what_the_database_says()
            self.a_done_study_has_only_answers()
        self.histories_are_legal_paths()  # append only: whatever was wrong on the way is still there
        return self.walked

    def worker(self) -> str:
        return self.chance.choice(["w1", "w2", "w3"])

    def arrives(self) -> None:
        if self.instances and self.chance.random() < UNDISTURBED[studies.listing(self.db)[0]["state"]]:
            return  # or no study would ever come to its end
        self.instances += 1
        assert studies.register(self.db, [received(self.instances, at=self.now)]) == 1
        before = dump(self.db)
        again = [received(n, at=self.now + 5) for n in range(1, self.instances + 1)]
        assert studies.register(self.db, again) == 0
        assert dump(self.db) == before

    def time_passes(self) -> None:
        self.now += self.chance.choice([1.0, 10.0, 20.0, 40.0, 100.0])

    def assembles(self) -> None:
        for _ in completion.waiting(self.db, self.now, 30.0, 60.0):
            before = studies.show(self.db, STUDY)["revision"]
            assert studies.complete(self.db, STUDY, self.now, "due") == before + 1
            assert studies.complete(self.db, STUDY, self.now, "due") is None

    def is_disputed(self) -> None:
        """Two copies of an instance differ, and a person is quick to say which stands."""
        if conflicts.hold(self.db, STUDY, self.now, "different pixels"):
            assert not conflicts.hold(self.db, STUDY, self.now, "different pixels")
            assert conflicts.release(self.db, STUDY, "last", self.now) == 0

    def routes(self) -> None:
        count = self.chance.choice([0, 1, 1, 2])
        for study_uid, revision in studies.to_route(self.db):
            ordered = [new_job(revision=revision, bundle=f"bundle {n}") for n in range(count)]
            assert studies.routed(self.db, study_uid, revision, ordered, f"{count} jobs", self.now)
            before = dump(self.db)
            assert not studies.routed(self.db, study_uid, revision, ordered, f"{count} jobs", self.now)
            assert dump(self.db) == before

    def took(self, row_id: str, worker: str, fence: int, lease: float) -> None:
        """Check a claim that was granted against all that came before."""
        seen = [c.fence for _, c in self.claims if c.id == row_id] + [c.fence for _, c in self.sends if c.id == row_id]
        assert fence > max(seen, default=0), "fences strictly increase"
        assert row_id not in self.holds, "two workers hold one row"
        self.holds[row_id] = (worker, fence, self.now + lease)

    def may_end(self, row_id: str, worker: str, fence: int) -> bool:
        """Whether this worker still holds the row; if so it holds it no longer."""
        if self.holds.get(row_id, ("", 0, 0.0))[:2] != (worker, fence):
            return False
        del self.holds[row_id]
        return True

    def claims_a_job(self) -> None:
        worker = self.worker()
        for job_id in jobs.to_ring(self.db, self.now, 0.0):
            claimed = jobs.claim(self.db, job_id, worker, self.now)
            assert claimed is not None
            self.took(job_id, worker, claimed.fence, jobs.LEASE_S)
            self.claims.append((worker, claimed))
            before = dump(self.db)
            assert jobs.claim(self.db, job_id, worker, self.now) is None
            assert jobs.claim(self.db, job_id, "w9", self.now) is None
            assert dump(self.db) == before

    def claims_a_delivery(self) -> None:
        worker = self.worker()
        for delivery_id in deliveries.to_ring(self.db, self.now, 0.0):
            claimed = deliveries.claim(self.db, delivery_id, worker, self.now)
            assert claimed is not None
            self.took(delivery_id, worker, claimed.fence, deliveries.LEASE_S)
            self.sends.append((worker, claimed))
            assert deliveries.claim(self.db, delivery_id, "w9", self.now) is None

    def beats(self) -> None:
        if not self.claims:
            return
        worker, claimed = self.chance.choice(self.claims[-4:])
        holds = self.holds.get(claimed.id, ("", 0, 0.0))[:2] == (worker, claimed.fence)
        assert jobs.heartbeat(self.db, claimed.id, worker, claimed.fence, self.now) == holds
        if holds:
            self.holds[claimed.id] = (worker, claimed.fence, self.now + jobs.LEASE_S)

    def leases_expire(self) -> None:
        lapsed = {row_id for row_id, (_, _, until) in self.holds.items() if until < self.now}
        assert jobs.expire(self.db, self.now) + deliveries.expire(self.db, self.now) == len(lapsed)
        for row_id in lapsed:
            del self.holds[row_id]

    def ends_a_job(self) -> None:
        if not self.claims:
            return
        worker, claimed = self.chance.choice(self.claims[-4:])
        end = self.chance.choice(["report", "report", "unsuitable", "transient", "permanent", "permanent", "released"])
        before = dump(self.db)
        expected = self.may_end(claimed.id, worker, claimed.fence)
        assert self.end_job(worker, claimed, end) == expected
        assert (dump(self.db) == before) == (not expected)
        before = dump(self.db)
        assert not self.end_job(worker, claimed, end), "ended twice"
        assert dump(self.db) == before

    def end_job(self, worker: str, claimed: Claimed, end: str) -> bool:
        if end == "report":
            made = [document(f"{kind} of {claimed.id}", kind) for kind in ("SR", "SEG")]
            return jobs.reported(self.db, claimed, worker, made, "found", self.now)
        if end == "unsuitable":
            return jobs.unsuitable(self.db, claimed, worker, "gap", self.now)
        if end == "released":
            return jobs.released(self.db, claimed, worker, "stopped", self.now)
        return jobs.failed(self.db, claimed, worker, "fault", self.now, end == "transient") is not None

    def ends_a_delivery(self) -> None:
        if not self.sends:
            return
        worker, claimed = self.chance.choice(self.sends[-6:])
        end = self.chance.choice(["sent", "sent", "postponed", "dead"])
        expected = self.may_end(claimed.id, worker, claimed.fence)
        assert self.end_delivery(worker, claimed, end) == expected
        before = dump(self.db)
        assert not self.end_delivery(worker, claimed, end), "ended twice"
        assert dump(self.db) == before

    def end_delivery(self, worker: str, claimed: ClaimedDelivery, end: str) -> bool:
        if end == "sent":
            return deliveries.sent(self.db, claimed, worker, "0000", "", self.now)
        if end == "postponed":
            return deliveries.postponed(self.db, claimed, worker, "A700", "full", self.now, self.now + 5)
        return deliveries.dead(self.db, claimed, worker, "0122", "refused", self.now)

    def commits(self) -> None:
        answer = self.chance.choice(["stored", "stored", "stored", "lost", "busy", "refused", "none", "not asked"])
        self.transactions += 1
        uid = f"2.25.{self.transactions}"
        asked = deliveries.to_commit(self.db, "pacs", now=self.now)
        assert deliveries.committing(self.db, [d.id for d in asked], uid, self.now) == len(asked)
        names = [d.sop_instance_uid for d in asked]
        code = {"lost": 0x0112, "busy": 0x0213, "refused": 0x0122}.get(answer)
        if answer == "stored":
            assert deliveries.committed(self.db, uid, names, {}, self.now) == len(asked)
            assert deliveries.committed(self.db, uid, names, {}, self.now) == 0
        elif code is not None:
            assert deliveries.committed(self.db, uid, [], dict.fromkeys(names, code), self.now) == len(asked)
        elif answer == "not asked":
            assert deliveries.not_asked(self.db, uid, "rejected", self.now, self.now + 5) == len(asked)
        else:
            deliveries.uncommitted(self.db, self.now, older_than=60.0)

    def a_person_acts(self) -> None:
        choice = self.chance.choice(["retry", "drop"])
        for module in (jobs, deliveries):
            for row in module.listing(self.db, state="DEAD"):
                act = module.retry if choice == "retry" else module.drop
                assert act(self.db, row["id"], self.now)
                assert not act(self.db, row["id"], self.now)

    def settles(self) -> None:
        studies.settle(self.db, self.now, COMMITTING)
        before = dump(self.db)
        assert studies.settle(self.db, self.now, COMMITTING) == 0, "settling twice is settling once"
        assert dump(self.db) == before

    def histories_are_legal_paths(self) -> None:
        with self.db.reader() as connection:
            for entity, key in KEYS.items():
                found = rows(connection, f"SELECT {key} AS id, state FROM {entity}")  # noqa: S608 - constants
                events = rows(connection, "SELECT * FROM event WHERE entity = :e ORDER BY entity_id, number", e=entity)
                assert {e["entity_id"] for e in events} == {row["id"] for row in found}
                for row in found:
                    legal(entity, row["state"], [e for e in events if e["entity_id"] == row["id"]], self.walked)

    def what_is_held_is_what_the_database_says(self) -> None:
        with self.db.reader() as connection:
            held = connection.exec_driver_sql(HELD).all()
        assert {name: (by, fence) for name, by, fence in held} == {k: v[:2] for k, v in self.holds.items()}

    def a_done_study_has_only_answers(self) -> None:
        with self.db.reader() as connection:
            found = connection.exec_driver_sql(CURRENT).all()
        assert found
        assert {job for study, job in found if study == "DONE"} <= {"DONE", "UNSUITABLE", "DROPPED", None}


def legal(entity: str, state: str, events: list[dict[str, Any]], walked: set[tuple[str, str, str]]) -> None:
    """Assert that events are a path from birth to `state`, each step a legal move, numbered without a gap."""
    assert [e["number"] for e in events] == list(range(1, len(events) + 1))
    assert (events[0]["from_state"], events[0]["to_state"]) == ("", FIRST[entity])
    steps = [(e["from_state"], e["to_state"]) for e in events]
    for (_, arrived), (left, to) in pairwise(steps):
        assert left == arrived
        assert (left, to) in MOVES[entity]
        walked.add((entity, left, to))
    assert steps[-1][1] == state


def test_every_walk_is_legal_and_together_they_make_every_move(tmp_path: Path) -> None:
    walked: set[tuple[str, str, str]] = set()
    for seed in range(14):
        db = Database(f"sqlite:///{tmp_path}/{seed}.db")
        walked |= Node(db, seed).walk(steps=500)
        db.close()
    every = {(entity, str(left), str(to)) for entity, moves in MOVES.items() for left, to in moves}
    assert every - walked == NEVER_MADE


def test_a_walk_is_legal_on_postgresql(postgres_url: str) -> None:
    db = Database(postgres_url)
    assert len(Node(db, seed=15).walk(steps=300)) > 10
    db.close()


@pytest.mark.parametrize("entity", ["study", "job", "delivery"])
def test_every_state_can_be_reached_and_left_unless_it_is_an_end(entity: str) -> None:
    states = {"study": StudyState, "job": JobState, "delivery": DeliveryState}[entity]
    ends = {"study": set(), "job": {"DONE", "UNSUITABLE", "DROPPED"}, "delivery": {"COMMITTED", "DROPPED"}}
    moves = MOVES[entity]
    assert {to for _, to in moves} | {FIRST[entity]} == set(states)
    assert {state for state in states if state not in {left for left, _ in moves}} == ends[entity]
