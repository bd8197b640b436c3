"""The invariants of what a node leaves beside its database and spool: I6, I8, I10, I12, and the processes of I7."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from node import clock
from node.audit import Audit, AuditEvent, Outcome
from node.store import deliveries, invariants, jobs, transfers
from node.store.db import Database
from node.store.invariants import Beside, secrets
from node.store.invariants.trail import check as check_trail
from node.store.studies import settle
from tests.unit.headers import header
from tests.unit.test_invariants import NOW, OLD, Ward


@pytest.fixture
def ward(database: Database, tmp_path: Path) -> Ward:
    return Ward(database, tmp_path, commits=False)


def says(ward: Ward, beside: Beside, now: float = NOW) -> list[tuple[str, str, str]]:
    found = invariants.check(ward.db, ward.spool, now, beside=beside)
    return [(finding.invariant, finding.entity, finding.what) for finding in found]


def test_i6_what_is_due_is_named_until_it_is_done(ward: Ward) -> None:
    quiet, patient = Beside(drained_s=0.0), Beside(drained_s=2 * (NOW - OLD))
    ward.receive(*ward.images)
    ((invariant, _, what),) = says(ward, quiet)
    assert (invariant, what) == ("I6", "it is RECEIVING and nothing came any more")
    assert says(ward, patient) == []
    job = ward.route()
    assert [(i, what) for i, _, what in says(ward, quiet, now=clock.now() + 9)] == [("I6", "it is QUEUED and due")]
    ward.report(job, at=OLD)
    (waits,) = says(ward, quiet)
    assert waits[2] == "it is PENDING and due"
    ward.send(at=OLD)
    assert ward.settle() == "DONE"
    assert says(ward, quiet) == []
    assert says(ward, Beside(drained_s=0.0, waiting={"read": 0, "unacked": 2})) == [
        ("I6", "queue unacked", "2 messages wait in the broker")
    ]


def test_i6_what_rests_until_later_is_not_due(ward: Ward) -> None:
    ward.receive(*ward.images)
    claimed = jobs.claim(ward.db, ward.route(), "w", OLD)
    assert claimed is not None
    jobs.failed(ward.db, claimed, "w", "no memory", NOW, transient=True)
    assert says(ward, Beside(drained_s=0.0), now=NOW + 1) == []


@pytest.mark.parametrize("place", ["log", "page", "broker", "database"])
def test_i8_a_canary_or_a_patient_of_the_spool_is_named_wherever_it_stands(
    ward: Ward, tmp_path: Path, place: str
) -> None:
    ward.receive(header(StudyInstanceUID=ward.uid, PatientName="Mustermann^Erika", PatientID="P-4711-X"))
    state = tmp_path / "state"
    (state / "broker").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "node.log"
    log.write_text("INFO started, 1.2.4711.5 and P-4711-XY are no patient\n")
    clean = Beside(state, (tmp_path / "logs",), {"/": b"studies"}, ("CANARY",))
    assert says(ward, clean) == []
    for number, secret in enumerate(("xCANARYx", "of Mustermann.", "(P-4711-X)", "'Mustermann^Erika'")):
        pages = {"/": b"line\n" + secret.encode()} if place == "page" else {}
        named = {"log": log, "broker": state / "broker" / "1.aof", "database": state / "wetread.db"}
        if place != "page":
            with named[place].open("w") as file:
                file.write(f"line\n{secret}\n")
        ((invariant, entity, what),) = says(ward, Beside(state, (tmp_path / "logs",), pages, ("CANARY",)))
        assert (invariant, entity.rpartition(":")[2]) == ("I8", "2")
        assert what == ("it has a canary" if number == 0 else "it has what a header in the spool says of its patient")


def test_i10_every_study_in_and_out_has_its_line(ward: Ward, tmp_path: Path) -> None:
    trail, path = Audit(tmp_path / "audit.log", now=lambda: OLD - 60), tmp_path / "audit.log"
    beside = Beside(trails=(path,))
    assert says(ward, beside) == []
    trail.write(AuditEvent.APPLICATION_START, Outcome.SUCCESS)
    ward.receive(*ward.images)
    ward.report(ward.route(), at=OLD)
    ward.send(at=OLD)
    told: list[transfers.Transfer] = []
    settle(ward.db, OLD, arrived=told.append)
    assert told == [transfers.Transfer(ward.uid, "pacs", 1)]
    later = clock.now() + 7200
    assert [what for _, _, what in says(ward, beside, later)] == [
        "its reception has no audit line",
        "the transfer of its results to pacs has no audit line",
    ]
    assert transfers.complete(ward.db, trail, path, later) == 2  # as at the next start
    assert says(ward, beside, later) == []
    assert transfers.complete(ward.db, trail, path, later) == 0
    assert [json.loads(line).get("destination") for line in path.read_text().splitlines()] == [None, None, "pacs"]


def test_a_trail_of_years_is_no_load_for_a_start(ward: Ward, tmp_path: Path) -> None:
    """An archive that asks by C-ECHO whether we are there writes a line every few seconds."""
    path = tmp_path / "audit.log"
    trail = Audit(path, now=lambda: OLD - 60)
    trail.write(AuditEvent.ASSOCIATION_ACCEPTED, Outcome.SUCCESS, peer="archive", calling_ae="ARCHIVE")
    with path.open("ab") as file:
        file.write(path.read_bytes() * 20_000)
    trail.write(AuditEvent.INSTANCES_TRANSFERRED, Outcome.SUCCESS, study_instance_uid=ward.uid, count=1)
    transfers.complete(ward.db, trail, path, OLD)  # whatever is imported by the way
    tracemalloc.start()
    try:
        transfers.complete(ward.db, trail, path, OLD)
        assert not list(check_trail(ward.db, Beside(trails=(path,)), OLD))
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 10
    finally:
        tracemalloc.stop()
        trail.close()


def test_i10_what_the_log_says_was_turned_away_is_in_the_trail(ward: Ward, tmp_path: Path) -> None:
    trail, log = Audit(tmp_path / "audit.log"), tmp_path / "node.log"
    trail.write(AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, reason="unknown")
    log.write_text("WARNING An association was rejected. action=association_rejected\n")
    beside = Beside(logs=(log,), trails=(tmp_path / "audit.log",))
    assert says(ward, beside) == []
    log.write_text(log.read_text() * 2)
    ((invariant, _, what),) = says(ward, beside)
    assert (invariant, what) == ("I10", "2 associations were turned away, 1 are in it")
    with (tmp_path / "audit.log").open("a") as file:
        file.write("no line\n{cut off")
    assert ("I10", f"{tmp_path}/audit.log:2", "it is no line of an audit trail") in says(ward, beside)


def test_i12_an_error_is_one_line(ward: Ward, tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("ERROR it failed (ValueError)\n")
    assert says(ward, Beside(logs=(log,))) == []
    log.write_text("INFO\nTraceback (most recent call last):\n  File\n")
    assert says(ward, Beside(logs=(log,))) == [("I12", f"{log}:2", 'it says "Traceback (most recent call last)"')]


def test_i7_a_process_that_leaks_is_named(ward: Ward, tmp_path: Path) -> None:
    stored = ward.receive(*ward.images)
    path, state = ward.spool.path(stored[0]).resolve(), tmp_path / "of-a-node"
    state.mkdir()
    script = (
        "import subprocess, sys, time; f = open(sys.argv[1]); "
        "children = [subprocess.Popen(['true']) for _ in range(2)]; print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (state / "lock").write_text(f"{process.pid}\n")
        os.link(path, tmp_path / "copy")
        path.unlink()
        deadline = time.monotonic() + 10
        while (
            len(found := [w for i, e, w in says(ward, Beside(state)) if "process" in e]) < 2
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        process.kill()
    assert found == [
        "it holds 1 files open that were deleted",
        "2 of its children have died and were not waited for",
    ]
    (tmp_path / "copy").rename(path)
    assert says(ward, Beside(state)) == []


def test_deliveries_that_were_dropped_are_no_transfer(ward: Ward) -> None:
    ward.receive(*ward.images)
    ward.report(ward.route(), at=OLD)
    (delivery,) = deliveries.listing(ward.db)
    claimed = deliveries.claim(ward.db, delivery["id"], "w", OLD)
    assert claimed is not None
    deliveries.dead(ward.db, claimed, "w", "0x0122", "refused", OLD)
    deliveries.drop(ward.db, delivery["id"], OLD)
    told: list[transfers.Transfer] = []
    settle(ward.db, OLD, arrived=told.append)
    assert told == []


def test_the_values_of_many_patients_are_found_as_each_alone_would_be() -> None:
    values = [b"Miller", b"Millers Son", b"Mill.er+", b"100042", b"1000421", b"M\xc3\xbcller", b"QX-7731"]
    pattern = secrets._pattern({b"CANARY": "a canary"}, values)
    assert pattern is not None
    for line, found in {
        b"of Millers Son.": b"Millers Son", b"of Millers": None, b"Miller, A": b"Miller", b"(Mill.er+)": b"Mill.er+",
        b"Mill_er+": None, b"=100042 ": b"100042", b"=1000421": b"1000421", b"1.2.100042": None, b"100042.7": None,
        b"100042.": b"100042", b"M\xc3\xbcller": b"M\xc3\xbcller", b"xCANARYx": b"CANARY", b"QX-77312": None,
    }.items():  # fmt: skip
        match = pattern.search(line)
        assert (match and match.group()) == found, line
    assert secrets._pattern({}, []) is None
    growing = {part for length in range(6, 3000) for part in secrets._parts("A" * length)}
    deep = secrets._pattern({}, growing)
    assert deep is not None
    assert deep.search(b"=" + b"A" * 100)


def test_thousands_of_patients_are_no_load_for_a_look_at_a_long_log() -> None:
    """One after the other they took six seconds for each megabyte."""
    by_chance = random.Random(7)  # noqa: S311 - no secret
    values = [f"{by_chance.randrange(10**8):08d}".encode() for _ in range(6000)]
    pattern = secrets._pattern({}, values)
    assert pattern is not None
    lines = [
        b"INFO    Study 1.2.826.0.1 is complete, job 4f561c45-0b08 count=2 2026-11-29T02:08:35" for _ in range(40_000)
    ]
    started = time.process_time()
    assert not any(pattern.search(line) for line in lines)
    assert time.process_time() - started < 10
