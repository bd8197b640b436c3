from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from workers.pipeline import Outcome, Request
from workers.reader import Reader, Readers

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "tests.unit.child_pipelines")


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader((*COMMAND, "good"))
    yield reader
    reader.stop()


def request(out: Path, mode: str = "", files: tuple[str, ...] = ("a.dcm",)) -> Request:
    return Request("job-0001", "1.2", "1.3", 1, files, "bundle", "digest", ("SR",), str(out), "cpu", key=mode)


@pytest.fixture
def readers() -> Iterator[Readers]:
    readers = Readers(2, (*COMMAND, "good"))
    yield readers
    readers.stop()


def until(true: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def good(reader: Reader | Readers, out: Path) -> Outcome:
    outcome = reader.read(request(out), 30)
    assert outcome.kind == "reported", outcome.reason
    return outcome


def test_one_child_serves_reading_after_reading(reader: Reader, tmp_path: Path) -> None:
    assert reader.pid is None
    first, second = good(reader, tmp_path), good(reader, tmp_path)
    assert first.summary == second.summary == f"pid {reader.pid}"


def test_our_own_warnings_reach_the_log_of_the_supervisor_once(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert reader.read(request(tmp_path, "warn"), 30).kind == "reported"
    good(reader, tmp_path)
    [record] = [r for r in caplog.records if r.name == "workers.reader"]
    assert record.getMessage() == r"While a series was read: bundle goes on with less memory\nand more"
    assert (record.levelname, record.__dict__["action"]) == ("WARNING", "reader_warning")
    assert (record.__dict__["job_id"], record.__dict__["bundle"]) == ("job-0001", "bundle")
    assert "Doe" not in caplog.text


@pytest.mark.parametrize(
    ("mode", "transient", "reason"),
    [
        ("crash", False, "decoder or network crashed, signal 11"),
        (f"signal {signal.SIGABRT:d}", False, "decoder or network crashed, signal 6"),
        (f"signal {signal.SIGKILL:d}", True, "was killed, signal 9; the machine may be out of memory"),
        ("exit", True, "ended by itself with exit status 3"),
        ("leave", False, "The reading failed: SystemExit at child_pipelines.py:"),
        ("raise", False, "The reading failed: ValueError at child_pipelines.py:"),
        ("panic", False, "The reading failed: Panic at child_pipelines.py:"),
        ("memory", True, "more memory than there is"),
        ("garbage", False, "something that is no outcome"),
        ("nan", False, "something that is no outcome"),
        ("two turns", False, "something that is no outcome"),
        ("unknown", False, "something that is no outcome"),
        ("long", False, "something that is no outcome"),
        ("latin", False, "something that is no outcome"),
    ],
)
def test_a_reading_that_goes_wrong_is_an_outcome_and_the_next_one_is_not_touched(
    reader: Reader, tmp_path: Path, mode: str, transient: bool, reason: str
) -> None:
    good(reader, tmp_path)
    outcome = reader.read(request(tmp_path, mode), 30)
    assert (outcome.kind, outcome.transient, outcome.documents) == ("failed", transient, ())
    assert reason in outcome.reason
    assert "Doe" not in outcome.reason
    assert len(good(reader, tmp_path).documents) == 1


@pytest.mark.parametrize("mode", ["hang", "deaf"])
def test_a_reading_past_its_deadline_is_killed(reader: Reader, tmp_path: Path, mode: str) -> None:
    good(reader, tmp_path)
    pid, started = reader.pid, time.monotonic()
    outcome = reader.read(request(tmp_path, mode), 0.5)
    assert 0.4 < time.monotonic() - started < 3
    assert (outcome.kind, outcome.transient) == ("failed", True)
    assert "longer than worker.job_timeout (0.5 s)" in outcome.reason
    assert pid
    assert not alive(pid)
    good(reader, tmp_path)


def test_the_deadline_counts_from_the_request_even_if_the_child_never_listens(tmp_path: Path) -> None:
    reader = Reader((sys.executable, "-c", "import time; time.sleep(600)"))
    big = tuple(f"/spool/instances/{n:064d}.dcm" for n in range(5000))  # far more than a pipe holds
    assert "job_timeout" in reader.read(request(tmp_path, files=big), 0.5).reason
    reader.stop()


def test_a_long_request_arrives_whole(reader: Reader, tmp_path: Path) -> None:
    big = tuple(f"/spool/instances/{n:064d}.dcm" for n in range(5000))
    outcome = reader.read(request(tmp_path, files=big), 30)
    assert Path(outcome.documents[0]["file"]).stat().st_size > 5000 * 80


def test_a_reading_nobody_wants_any_more_is_ended(reader: Reader, tmp_path: Path) -> None:
    good(reader, tmp_path)
    pid, unwanted = reader.pid, threading.Event()
    threading.Timer(0.3, unwanted.set).start()
    started = time.monotonic()
    outcome = reader.read(request(tmp_path, "hang"), 60, unwanted.is_set)
    assert time.monotonic() - started < 5
    assert (outcome.kind, outcome.transient) == ("failed", True)
    assert pid
    assert not alive(pid)


def test_what_the_child_started_ends_with_it(reader: Reader, tmp_path: Path) -> None:
    reader.read(request(tmp_path, "family"), 2)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_what_a_model_prints_goes_nowhere(reader: Reader, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert reader.read(request(tmp_path, "noise"), 30).kind == "reported"
    assert capfd.readouterr() == ("", "")


def test_a_crash_leaves_its_frames_in_the_log_and_no_values(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader.read(request(tmp_path, "crash"), 30)
    (record,) = caplog.records
    assert "Segmentation fault" in record.getMessage()
    assert "child_pipelines.py" in record.getMessage()


def test_a_child_that_cannot_start_is_an_outcome(tmp_path: Path) -> None:
    reader = Reader((sys.executable, "-m", "no.such.module"))
    outcome = reader.read(request(tmp_path), 30)
    assert "exit status 1" in outcome.reason
    reader.stop()


def test_a_child_is_replaced_after_its_share_of_readings(tmp_path: Path) -> None:
    reader = Reader((*COMMAND, "good"), recycle_after=2)
    pids = [good(reader, tmp_path).summary for _ in range(3)]
    assert pids[0] == pids[1] != pids[2]
    reader.stop()


def test_a_child_that_died_while_idle_is_replaced_silently(reader: Reader, tmp_path: Path) -> None:
    good(reader, tmp_path)
    pid = reader.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    # A child shows as dead while threads of it still end; only the one that can be waited for is gone.
    until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    good(reader, tmp_path)


def test_a_thread_that_ends_does_not_take_the_child_along(reader: Reader, tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: outcomes.append(good(reader, tmp_path)))
        thread.start()
        thread.join()
    assert outcomes[0].summary == outcomes[1].summary


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    reader = Reader((*COMMAND, "good"))
    reader.read(request(tmp_path, "exit"), 30)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        reader.read(request(tmp_path, "exit"), 30)
    reader.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_two_readers_work_at_once_and_their_networks_one_after_another(readers: Readers, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=30)

    def read(number: int) -> Outcome:
        together.wait()
        return readers.read(replace(request(tmp_path, "turn 0.5"), job_id=f"job-{number:04}"), 30)

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(read, range(2)))
    assert [outcome.kind for outcome in outcomes] == ["reported", "reported"]
    assert outcomes[0].summary != outcomes[1].summary  # the pids of two children
    first, second = sorted(tuple(map(float, path.read_text().split())) for path in tmp_path.glob("turn-*"))
    assert first[1] <= second[0]


@pytest.fixture
def held(readers: Readers, tmp_path: Path) -> Iterator[Future[Outcome]]:
    """A reading that has the turn until there is a file `let go`; both children are there."""
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: readers.read(request(tmp_path, "turn 0.5"), 60), range(2)))
        reading = threads.submit(readers.read, request(tmp_path, "hold the turn"), 60.0)
        try:
            until((tmp_path / "held").exists, within=30)
            yield reading
        finally:
            (tmp_path / "let go").touch()


def test_the_wait_for_a_turn_is_not_of_the_reading_that_waits(
    readers: Readers, held: Future[Outcome], tmp_path: Path
) -> None:
    threading.Timer(5.0, (tmp_path / "let go").touch).start()
    assert readers.read(request(tmp_path, "turn 0"), 4.0).kind == "reported"
    assert held.result().kind == "reported"


def test_a_reading_that_waits_for_its_turn_ends_when_nobody_wants_it(
    readers: Readers, held: Future[Outcome], tmp_path: Path
) -> None:
    unwanted = threading.Event()
    threading.Timer(1.0, unwanted.set).start()
    assert "stops or has lost the job" in readers.read(request(tmp_path, "turn 0"), 60.0, unwanted.is_set).reason
    assert not held.done()


@pytest.mark.parametrize(("mode", "timeout"), [("die in turn", 30.0), ("turn 600", 1.0)])
def test_a_turn_ends_with_the_child_that_has_it(readers: Readers, tmp_path: Path, mode: str, timeout: float) -> None:
    assert readers.read(request(tmp_path, mode), timeout).transient
    assert readers.read(request(tmp_path, "turn 0"), 30).kind == "reported"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and oom_score_adj are Linux only")
def test_the_child_dies_with_a_parent_that_is_killed_and_goes_first_when_memory_is_out(tmp_path: Path) -> None:
    code = (
        "import sys, threading; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from tests.unit.test_reader import COMMAND, request\n"
        "from workers.reader import Reader\n"
        "Reader((*COMMAND, 'good')).read(request(Path(sys.argv[1]), 'slow'), 60)\n"
        "Reader((*COMMAND, 'good')).read(request(Path(sys.argv[1]), 'hang'), 60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as parent:
        started = tmp_path / "started"
        until(lambda: started.exists() and started.read_text() != "")
        child = int(started.read_text())
        assert alive(child)
        assert Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "800"
        parent.kill()
    until(lambda: not alive(child), within=3)


def test_the_supervisor_does_not_load_torch() -> None:
    code = "import sys; import workers.reader, workers.tasks, workers.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_child_has_its_temporary_files_where_its_worker_says_and_they_go_with_it(tmp_path: Path) -> None:
    """A service may be allowed to write to its state folder alone, and what a killed child left in /tmp stayed."""
    scratch = tmp_path / "state" / "reading"
    reader = Reader((*COMMAND, "good"), scratch=scratch)
    try:
        made = [Path(reader.read(request(tmp_path, "temporary"), 30).summary) for _ in range(2)]
        assert all((path / "left behind").exists() and path.parent.parent == scratch for path in made)
        shutil.rmtree(made[0].parent)  # as who sweeps takes it for that of a dead worker
        again = Path(reader.read(request(tmp_path, "temporary"), 30).summary)
        assert again.exists()
        assert reader.read(request(tmp_path, "hang"), 1).kind == "failed"
        assert not list(scratch.iterdir()), "it was killed"
        good(reader, tmp_path)
    finally:
        reader.stop()
    assert not list(scratch.iterdir())


def test_a_child_in_place_of_one_that_died_while_idle_has_its_temporary_folder(tmp_path: Path) -> None:
    reader = Reader((*COMMAND, "good"), scratch=tmp_path / "scratch")
    try:
        good(reader, tmp_path)
        assert reader.pid
        os.kill(reader.pid, signal.SIGKILL)
        until(lambda: os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        made = Path(reader.read(request(tmp_path, "temporary"), 30).summary)
        assert made.is_relative_to(tmp_path / "scratch")
    finally:
        reader.stop()
