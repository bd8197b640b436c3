"""The Celery app and the worker: `python -m workers.app --config F` starts one process per queue and watches them.

Reads and sends have a process each: a network that takes all cores or dies never keeps results from going out.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node import broker, clock, reload, settings
from node import log as logs
from node.errors import BrokerUnavailable, Permanent, WetreadError
from node.leash import leashed
from node.loop import Loop
from node.settings import Settings, state_folder
from node.store.locks import work_on
from node.web.health import Health

if TYPE_CHECKING:
    from celery import Celery

    from workers.tasks import Desk

log = logging.getLogger("workers.app")  # run as a program, __name__ is __main__

QUEUES = ("read", "send")
SENDERS, SENDERS_TOGETHER = 8, 2
"""Results sent at a time, as a slow destination must not hold up another (`workers.send.lanes`); and where one process
serves both queues, for want of a broker."""
COMMIT_EVERY_S, COMMIT_ENDS_WITHIN_S = 5.0, 5.0
TURN_S = 0.05
STOP_WITHIN_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent


def make_app(url: str, desk: Desk) -> Celery:
    """Return the app with its two tasks, both working at `desk`."""
    from workers import messages, tasks

    app = broker.make_app(url, messages.Listener)

    def read(job_id: str) -> None:
        tasks.read(desk, job_id)

    def send(delivery_id: str) -> None:
        tasks.send(desk, delivery_id)

    for queue, work in (("read", read), ("send", send)):
        app.task(name=broker.TASKS[queue], shared=False)(work)
    return app


def run(config: Path, loaded: Settings) -> int:
    """Run a worker until SIGTERM or Ctrl-C: a process for each queue, started again when it dies, and on SIGHUP.

    Returns the exit status. A database that is not up is waited for. Raises `BrokerUnavailable` where there is none
    that another process could ring, as `broker.resolve` does, and as `Database.open` does but for that.
    """
    stop, again = threading.Event(), threading.Event()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, again)):
        signal.signal(number, lambda *_, event=event: event.set())
    with work_on(state_folder(loaded)):
        if not _wait_for_database(loaded, stop):
            return 0
        return _run(config, loaded, stop, again)


def _run(config: Path, loaded: Settings, stop: threading.Event, again: threading.Event) -> int:
    with broker.resolve(loaded, state_folder(loaded)) as url:
        if url == broker.MEMORY:
            raise BrokerUnavailable(
                "There is no broker through which the node could tell this worker of jobs; it did not start. Install "
                "valkey-server or redis-server, set broker.url, or run the worker within the node (--with-worker)."
            )
        return _watch(config, loaded, url, stop, again)


def _wait_for_database(settings: Settings, stop: threading.Event) -> bool:
    """Wait until the database is there; False: told to stop before. Raises `Permanent` where it will not have us."""
    from node.store import opening
    from node.store.db import Database

    db = Database(settings.database.url, later=True)
    try:
        return opening.patiently(db.open, stop, "nothing is read or sent.")
    finally:
        db.close()


def work(settings: Settings, url: str, queues: Sequence[str]) -> None:
    """Serve `queues` in this process until it is told to stop; needs the main thread."""
    desk = open_desk(settings)
    app = make_app(url, desk)
    committing = commit(desk) if "send" in queues else None
    try:
        start_worker(app, desk, queues)
    finally:
        if committing is not None:
            committing.stop(COMMIT_ENDS_WITHIN_S)
        desk.readers.stop()
        desk.db.close()


def open_desk(settings: Settings) -> Desk:
    """Open database and spool for a worker; raises as they do."""
    from node.store.db import Database
    from node.store.spool import Spool
    from workers.reader import Readers
    from workers.tasks import Desk, scratch_folder, sweep_scratch

    sweep_scratch(settings, clock.now())
    spool = Spool(settings.spool.url, settings.spool.refuse_below)
    db = Database(settings.database.url, later=True)
    readers = Readers(settings.worker.readers, scratch=scratch_folder(settings))
    return Desk(settings, db, spool, readers, worker_name(), now=db.now)


def worker_name() -> str:
    """Return a name for leases that no other worker has, on any machine and after any restart."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def start_worker(app: Celery, desk: Desk, queues: Sequence[str]) -> None:
    """Run Celery's worker for `queues`; returns after SIGTERM or Ctrl-C, when the tasks in hand have ended."""
    from celery.signals import worker_shutting_down

    def stop(**_: object) -> None:
        desk.stopping.set()

    worker_shutting_down.connect(stop, weak=False)
    app.steps["worker"].add(_awake())
    _worker(app)(
        queues=list(queues),
        pool="threads",  # a forked child could not use CUDA; ours is spawned by the Reader
        concurrency=_threads(desk.settings.worker.readers, queues),
        hostname=f"{'-'.join(queues)}-{os.getpid()}@{socket.gethostname()}",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    ).start()


def _threads(readers: int, queues: Sequence[str]) -> int:
    """Return how many tasks are worked on at a time."""
    if len(queues) > 1:
        return readers + SENDERS_TOGETHER
    return readers if "read" in queues else SENDERS


def _awake() -> type:
    """Return the bootstep that lets the worker look for messages as soon as it is idle.

    Without prefetch, kombu asks Redis again only when its event loop turns, and an idle loop sleeps for a second:
    measured 0.9 s from ring to claim, and 0.004 s with this timer.
    """
    from celery import bootsteps

    class Awake(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is untyped
        requires = ("celery.worker.components:Hub",)

        def start(self, parent: Any) -> None:
            if parent.use_eventloop:
                parent.hub.call_repeatedly(TURN_S, lambda: None)

    return Awake


def _worker(app: Celery) -> Any:
    """Return Celery's worker, but one that leaves SIGHUP alone: it would start our command line once more, wrongly."""

    class Worker(app.Worker):  # type: ignore[misc]  # celery is untyped
        def install_platform_tweaks(self, worker: Any) -> None:
            before = signal.getsignal(signal.SIGHUP)
            super().install_platform_tweaks(worker)
            signal.signal(signal.SIGHUP, before)

    return Worker


def commit(desk: Desk) -> Loop:
    """Ask for storage commitment of what was sent (PS3.4 §J.3.2), again and again, until it is stopped."""
    from workers.send import commitment

    return Loop("commitment", COMMIT_EVERY_S, lambda: commitment.tick(desk.db, desk.settings, desk.now()), Health())


def _watch(config: Path, current: Settings, url: str, stop: threading.Event, again: threading.Event) -> int:
    children = {queue: _start(config, url, queue) for queue in QUEUES}
    while not stop.wait(0.2):
        if again.is_set():
            again.clear()
            if (loaded := _reloaded(config, current)) is not None:
                current = loaded
                _end(list(children.values()))
                children = {queue: _start(config, url, queue) for queue in QUEUES}
        for queue, child in children.items():
            if child.poll() is not None:
                log.error("The worker for %s ended with status %d; it is started again.", queue, child.returncode)
                stop.wait(1.0)
                children[queue] = _start(config, url, queue)
    _end(list(children.values()))
    return 0


def _reloaded(config: Path, before: Settings) -> Settings | None:
    """Read the configuration again; None, with one line in the log, where it cannot be taken in.

    The processes of the queues are then started anew, each after what it has in hand.
    """
    try:
        loaded = settings.load_settings(config)
        if loaded.broker != before.broker or state_folder(loaded) != state_folder(before):
            raise Permanent("wetread.toml: broker or state folder changed, which needs a restart of the worker.")
        logs.configure(loaded.log)
    except (WetreadError, OSError, ValueError) as error:  # whatever is wrong with a file, the worker goes on
        log.error("The old configuration stays. %s", error, extra={"action": "configuration_refused"})
        return None
    changed = reload.changed(before, loaded)
    log.info("The configuration was read again.", extra={"action": "configuration_reloaded", "changed": changed})
    return loaded


def _start(config: Path, url: str, queue: str) -> subprocess.Popen[bytes]:
    """Start the process for `queue`; it ends when this one does."""
    command = [sys.executable, "-P", "-m", "workers.app", "--config", str(config), "--queue", queue]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # The URL may hold a password: the environment is ours alone, the command line is everybody's.
    env = os.environ | {broker.ENVIRONMENT: url, "PYTHONPATH": path}
    return subprocess.Popen(leashed(command, signal.SIGTERM), env=env, stdin=subprocess.DEVNULL, start_new_session=True)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a worker, or, with `--queue`, be one of its processes."""
    parser = argparse.ArgumentParser(prog="python -m workers.app", description="Run a wetread worker.")
    parser.add_argument("--config", type=Path, required=True, help="wetread.toml")
    parser.add_argument("--queue", action="append", choices=QUEUES, help="serve this queue in this process")
    chosen = parser.parse_args(arguments)
    try:
        loaded = settings.load_settings(chosen.config)
        logs.configure(loaded.log)
        if not chosen.queue:
            return run(chosen.config, loaded)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for who watches us, also when it comes to all of a group
        work(loaded, os.environ[broker.ENVIRONMENT], chosen.queue)
    except WetreadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
