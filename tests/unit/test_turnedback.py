"""A clock that ran ahead and was set back: what it left in the future is not waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.assemble import assembler
from node.settings import Settings
from node.store import deliveries, jobs, studies
from node.store.db import Database, rows
from node.store.spool import Spool
from node.store.studies import NewJob
from node.store.turnedback import FAR_S, STEADY_S, TurnedBack
from tests.unit.rows import SERIES, STUDY, received

YEAR = 365 * 86400.0
NOW = 1_700_000_000.0
JOB = NewJob(STUDY, 1, SERIES, "bundle", "1", "digest", "route", ("SR",), ("pacs",))


class Hand:
    """A monotonic clock that the test moves."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def turned_back(hand: Hand) -> TurnedBack:
    return TurnedBack(hand)


def settle(turned_back: TurnedBack, hand: Hand, db: Database, now: float) -> int:
    """Look twice, as far apart as it takes."""
    assert turned_back.tick(db, now) == 0
    hand.at += STEADY_S
    return turned_back.tick(db, now)


def test_a_study_that_came_a_year_ahead_is_read_today(
    database: Database, tmp_path: Path, turned_back: TurnedBack, hand: Hand
) -> None:
    settings, spool = Settings.model_validate({}), Spool(tmp_path / "spool", 0)
    rules = settings.completeness
    studies.register(database, [received(1, NOW + YEAR)])
    assert assembler.tick(database, spool, settings, NOW + rules.max_wait) == 0
    assert settle(turned_back, hand, database, NOW) == 1
    assert assembler.tick(database, spool, settings, NOW + rules.quiet_period - 1) == 0
    assert assembler.tick(database, spool, settings, NOW + rules.quiet_period) == 1


def test_jobs_and_deliveries_that_rest_or_are_held_until_next_year_are_due(
    database: Database, turned_back: TurnedBack, hand: Hand
) -> None:
    studies.register(database, [received(1, NOW)])
    studies.complete(database, STUDY, NOW, "test")
    studies.routed(database, STUDY, 1, [JOB], "test", NOW)
    claimed = jobs.claim(database, JOB.job_id, "worker", NOW + YEAR)
    assert claimed is not None
    jobs.failed(database, claimed, "worker", "no memory", NOW + YEAR, transient=True)
    assert jobs.to_ring(database, NOW, 30.0) == []
    assert settle(turned_back, hand, database, NOW) == 1
    assert jobs.to_ring(database, NOW, 30.0) == [JOB.job_id]
    claimed = jobs.claim(database, JOB.job_id, "worker", NOW)
    assert claimed is not None
    assert jobs.heartbeat(database, claimed.id, "worker", claimed.fence, NOW + YEAR)  # and is killed
    assert settle(turned_back, hand, database, NOW) == 1
    assert jobs.expire(database, NOW + 59) == 0
    assert jobs.expire(database, NOW + 61) == 1


def report(database: Database, at: float) -> None:
    """Let a job end with one document, at `at` by the clock of its worker."""
    studies.register(database, [received(1, NOW)])
    studies.complete(database, STUDY, NOW, "test")
    studies.routed(database, STUDY, 1, [JOB], "test", NOW)
    job = jobs.claim(database, JOB.job_id, "worker", NOW)
    assert job is not None
    document = jobs.Document("SR", "1.2", "1.3", "1.4", f"results/ab/{'ab' * 32}.dcm", "ab" * 32, 1)
    assert jobs.reported(database, job, "worker", [document], "", at)


def test_a_delivery_that_rests_until_next_year_is_due(database: Database, turned_back: TurnedBack, hand: Hand) -> None:
    report(database, NOW)
    (waiting,) = deliveries.to_ring(database, NOW, 30.0)
    claimed = deliveries.claim(database, waiting, "worker", NOW + YEAR)
    assert claimed is not None
    assert deliveries.postponed(database, claimed, "worker", "A700", "full", NOW + YEAR, NOW + YEAR + 5)
    assert settle(turned_back, hand, database, NOW) == 1
    assert deliveries.to_ring(database, NOW, 30.0) == [waiting]


@pytest.mark.parametrize("rests_until", [0.0, NOW + YEAR + 5])
def test_a_delivery_that_was_made_next_year_is_tried_no_longer_than_others(
    database: Database, turned_back: TurnedBack, hand: Hand, rests_until: float
) -> None:
    report(database, NOW + YEAR)
    if rests_until:
        (waiting,) = deliveries.to_ring(database, NOW + YEAR, 30.0)
        claimed = deliveries.claim(database, waiting, "worker", NOW + YEAR)
        assert claimed is not None
        assert deliveries.postponed(database, claimed, "worker", "A700", "full", NOW + YEAR, rests_until)
    assert settle(turned_back, hand, database, NOW) == 1
    assert [row["created_at"] for row in deliveries.listing(database)] == [NOW]


def test_a_clock_that_jumps_for_a_moment_and_what_only_rests_are_left_alone(
    database: Database, turned_back: TurnedBack, hand: Hand
) -> None:
    studies.register(database, [received(1, NOW)])
    assert turned_back.tick(database, NOW - YEAR) == 0
    hand.at += STEADY_S
    assert turned_back.tick(database, NOW) == 0
    assert turned_back.tick(database, NOW - YEAR) == 0, "it begins anew"
    studies.complete(database, STUDY, NOW, "test")
    studies.routed(database, STUDY, 1, [JOB], "test", NOW)
    claimed = jobs.claim(database, JOB.job_id, "worker", NOW, lease=FAR_S - 1)
    assert claimed is not None
    assert settle(turned_back, hand, database, NOW) == 0
    with database.reader() as connection:
        (study,) = rows(connection, "SELECT last_received_at FROM study")
    assert study["last_received_at"] == NOW
