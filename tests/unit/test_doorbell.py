from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import BrokerUnavailable
from node.route import doorbell
from node.settings import Settings
from node.store import deliveries, jobs, studies
from node.store.db import Database
from node.store.jobs import Document, NewJob
from node.store.spool import Spool
from tests.unit.headers import header, received

SETTINGS = Settings.model_validate({"worker": {"max_attempts": 2}})


class Bell:
    """Writes down what rang; answers no more after `lasts` rings."""

    def __init__(self, lasts: int = 1000) -> None:
        self.rung: list[tuple[str, str]] = []
        self.lasts = lasts
        self.full: set[str] = set()

    def takes(self, kind: str) -> bool:
        return kind not in self.full

    def __call__(self, kind: str, row_id: str) -> None:
        if len(self.rung) >= self.lasts:
            raise BrokerUnavailable
        self.rung.append((kind, row_id))


@pytest.fixture
def ids(database: Database, tmp_path: Path) -> list[str]:
    """Two queued jobs of one study."""
    ds = header()
    studies.register(database, [received(Spool(tmp_path / "spool", 0), ds)])
    studies.complete(database, ds.StudyInstanceUID, 1000.0, "quiet")
    new = [NewJob(ds.StudyInstanceUID, 1, s, "one", "1", "d", "r", ("SR",), ("pacs",)) for s in ("1.2", "1.3")]
    studies.routed(database, ds.StudyInstanceUID, 1, new, "", 1000.0)
    return sorted(job.job_id for job in new)


def test_due_jobs_ring_once_and_again_when_nobody_claimed_them(database: Database, ids: list[str]) -> None:
    bell = Bell()
    assert doorbell.tick(database, bell, SETTINGS, 1000.0) == 2
    assert sorted(bell.rung) == [("read", i) for i in ids]
    assert doorbell.tick(database, bell, SETTINGS, 1029.0) == 0
    assert doorbell.tick(database, bell, SETTINGS, 1031.0) == 2


def test_a_claimed_job_does_not_ring(database: Database, ids: list[str]) -> None:
    assert jobs.claim(database, ids[0], "w", 1000.0)
    bell = Bell()
    doorbell.tick(database, bell, SETTINGS, 1001.0)
    assert bell.rung == [("read", ids[1])]


def test_what_the_broker_did_not_take_rings_with_the_next_tick(database: Database, ids: list[str]) -> None:
    assert doorbell.tick(database, Bell(lasts=1), SETTINGS, 1000.0) == 1
    bell = Bell()
    assert doorbell.tick(database, bell, SETTINGS, 1001.0) == 1
    assert len(bell.rung) == 1


def test_a_lapsed_lease_comes_back_and_rings_at_once_until_attempts_are_used_up(
    database: Database, ids: list[str]
) -> None:
    bell = Bell()
    for attempt, now in ((1, 1000.0), (2, 1100.0)):
        claimed = jobs.claim(database, ids[0], "w", now, lease=30)
        assert claimed
        assert claimed.attempts == attempt
        doorbell.tick(database, bell, SETTINGS, now + 31)
    states = [jobs.show(database, i)["state"] for i in ids]
    assert states == ["DEAD", "QUEUED"]
    assert bell.rung.count(("read", ids[0])) == 1


def test_deliveries_ring_too(database: Database, ids: list[str]) -> None:
    claimed = jobs.claim(database, ids[0], "w", 1000.0)
    assert claimed
    jobs.reported(database, claimed, "w", [Document("SR", "1.1", "1.9", "1.8", "p", "s", 1)], "", 1001.0)
    bell = Bell()
    doorbell.tick(database, bell, SETTINGS, 1002.0)
    (delivery,) = deliveries.listing(database)
    assert ("send", delivery["id"]) in bell.rung


def test_a_full_queue_keeps_nothing_from_the_other_and_its_ids_stay_unrung(database: Database, ids: list[str]) -> None:
    claimed = jobs.claim(database, ids[0], "w", 1000.0)
    assert claimed
    jobs.reported(database, claimed, "w", [Document("SR", "1.1", "1.9", "1.8", "p", "s", 1)], "", 1001.0)
    bell = Bell()
    bell.full = {"read"}
    assert doorbell.tick(database, bell, SETTINGS, 1002.0) == 1
    assert [kind for kind, _ in bell.rung] == ["send"]
    bell.full = set()
    assert doorbell.tick(database, bell, SETTINGS, 1003.0) == 1
    assert bell.rung[1:] == [("read", ids[1])]
