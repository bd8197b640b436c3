"""What chaos does to a hospital: kills, and faults of broker, database, disk and PACS.

What lasts (a locked database, a hung broker, a PACS that is down) lasts in the background, so that the kills go on
meanwhile. Nothing here decides when; see `tests/bench/chaos_hands.py`.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from node import embedded
from node.errors import WetreadError
from node.simulate.faults import Fault
from tests.crash.hospital import Hospital, children, until

BROKER, READER = "broker.sock", "tests.crash.forks"
"""What the command line of a child has; that of a fork is the one of `tests/crash/forks.py`."""
PROGRAMS = {"node": (), "worker one": ("read",), "worker two": ("read",), "sender": ("send",)}
"""Process → the queues it serves, none for the node; as `wetread worker` has a process for each queue."""
UP_WITHIN_S = 15.0
WORK_WITHIN_S = 3.0
"""How long what is spared for now is let work; without any work done a kill shows little."""
BROKER_WITHIN_S = 2.0
"""How long a broker that is to be killed is waited for; the node has to start it again."""
LONGEST_S = 6.0
"""How long a lock, a hung broker or a PACS that is down lasts at most."""
SPARED = 0.6
"""The share of kills that wait until what is to be killed was at work; the others meet a start or a recovery."""
ANSWERED = "SELECT COUNT(*) AS number FROM job WHERE state NOT IN ('QUEUED', 'RUNNING')"
DELIVERED = "SELECT COUNT(*) AS number FROM delivery WHERE state NOT IN ('PENDING', 'SENDING')"


@dataclass
class Counts:
    """What happened; `wanted` has the number of instances of each study that was sent."""

    deeds: Counter[str] = field(default_factory=Counter)
    wanted: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    """Studies that had come to their end when the breaking was over."""

    @property
    def kills(self) -> int:
        """How many processes were killed with kill -9."""
        return sum(count for deed, count in self.deeds.items() if deed.startswith("kill "))

    def of(self, kind: str) -> str:
        """Say how many there were of each deed that starts with `kind`."""
        found = [(deed.removeprefix(kind), number) for deed, number in self.deeds.items() if deed.startswith(kind)]
        return ", ".join(f"{number} {what}" for what, number in sorted(found))


class Deeds:
    """A hospital that things are done to; `over` ends all waiting."""

    def __init__(self, hospital: Hospital, counts: Counts, over: threading.Event) -> None:
        self.hospital, self._counts, self._over = hospital, counts, over
        self._lock = threading.Lock()
        self._lasting: dict[str, threading.Thread] = {}

    def start(self, name: str, fault: str = "") -> None:
        """Start one of the programs, with a crash point armed if `fault` names one."""
        program = "worker" if PROGRAMS[name] else "node"
        self.hospital.run(name, program, self.hospital.folder / "wetread.toml", *PROGRAMS[name], fault=fault)

    def revive(self) -> None:
        """Start what is dead, as systemd does: the node may have died of the loss of its lock or port."""
        with self._lock:
            for name in PROGRAMS:
                process = self.hospital.processes.get(name)
                if process is None or process.poll() is not None:
                    self.start(name)

    def settle(self) -> None:
        """Wait for what lasts, and leave the PACS without faults."""
        for thread in self._lasting.values():
            thread.join(60)
        self.hospital.pacs.faults.clear()
        self.revive()

    def wait_until_up(self) -> None:
        """A node that never answers would lose nothing."""
        with suppress(AssertionError):
            until(lambda: self._over.is_set() or self.hospital.is_up(), UP_WITHIN_S, "the node answers", 0.2)

    def kill_node(self, rng: random.Random, fault: str = "") -> None:
        """Kill the node, starting or at work."""
        if rng.random() < SPARED:
            self.wait_until_up()
        self._restart("node", "node", fault)

    def kill_worker(self, rng: random.Random, fault: str = "") -> None:
        """Kill a process that reads; its reader goes with it."""
        if rng.random() < SPARED:
            self._wait_for(ANSWERED)
        self._restart(rng.choice(("worker one", "worker two")), "worker", fault)

    def kill_sender(self, rng: random.Random) -> None:
        """Kill the process that delivers."""
        if rng.random() < SPARED:
            self._wait_for(DELIVERED)
        self._restart("sender", "sender")

    def kill_reader(self, rng: random.Random) -> None:
        """Kill a reader while it starts, or after one has answered once more."""
        if rng.random() < SPARED:
            self._wait_for(ANSWERED)
        with suppress(AssertionError):
            until(lambda: self._over.is_set() or self._below(READER), WORK_WITHIN_S, "a reader is there", 0.1)
        time.sleep(rng.uniform(0.0, 0.3))
        if found := self._below(READER):
            self._kill_one(rng.choice(found), "reader")

    def kill_broker(self, rng: random.Random) -> None:
        """Kill the broker, waiting for one that is being started."""
        with suppress(AssertionError):
            until(lambda: self._over.is_set() or self._below(BROKER), BROKER_WITHIN_S, "a broker is there")
        for pid in self._below(BROKER)[:1]:
            self._kill_one(pid, "broker")

    def kill_all(self, rng: random.Random) -> None:
        """Every process of ours and below us at once, as when the power goes."""
        with self._lock:
            self._counts.deeds.update(("everything at once",))
            below = [pid for parent in self.hospital.processes.values() for pid, _ in children(parent.pid)]
            for name in PROGRAMS:
                if name in self.hospital.processes:
                    self._counts.deeds.update((f"kill {name.partition(' ')[0]}",))
                self.hospital.kill(name)
        for pid in below:  # most of them go with their parent; those that a signal still finds are killed by it
            self._kill_one(pid, "child")
        self.revive()

    def flush_broker(self, rng: random.Random) -> None:
        """Empty its queues."""
        if embedded._ask(self.hospital.broker_socket, b"FLUSHALL\r\n", 1.0).startswith(b"+OK"):
            self._count("broker flushed")

    def last(self, deed: str, what: Callable[[float], None], rng: random.Random) -> None:
        """Do `what` in the background for some seconds, unless it is being done already."""
        before = self._lasting.get(deed)
        seconds = rng.uniform(1.0, LONGEST_S)
        if before is None or not before.is_alive():
            self._count(deed)
            self._lasting[deed] = threading.Thread(target=what, args=(seconds,), daemon=True)
            self._lasting[deed].start()

    def hang_broker(self, seconds: float) -> None:
        """It takes connections and answers nothing; goes on afterwards, if it still lives."""
        for pid in self._below(BROKER)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pid, signal.SIGCONT)

    def keep_broker_down(self, seconds: float) -> None:
        """Kill it as often as it is started."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for pid in self._below(BROKER)[:1]:
                self._kill_one(pid, "broker")
            time.sleep(0.3)

    def lock_database(self, seconds: float) -> None:
        """Hold SQLite's write lock, as a careless backup does."""
        connection = sqlite3.connect(self.hospital.folder / "state" / "wetread.db", timeout=5.0)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            connection.rollback()
        connection.close()

    def pacs_down(self, seconds: float) -> None:
        """Take the PACS off the network."""
        self.hospital.pacs.stop()
        time.sleep(seconds)
        self.hospital.pacs.start()

    def pacs_does(self, what: str, fault: Fault) -> None:
        """Let the PACS answer otherwise."""
        self._count(f"PACS {what}")
        self.hospital.pacs.faults.add(fault)

    def _restart(self, name: str, who: str, fault: str = "") -> None:
        with self._lock:
            self._counts.deeds.update([f"kill {who}", *(["disk full"] if fault else [])])
            self.hospital.kill(name)
            self.start(name, fault)

    def _wait_for(self, statement: str) -> None:
        """Wait until one more of what `statement` counts has been done, but not for long."""
        before = self._number(statement)
        with suppress(AssertionError):
            until(lambda: self._over.is_set() or self._number(statement) > before, WORK_WITHIN_S, "work is done", 0.1)

    def _number(self, statement: str) -> int:
        with suppress(WetreadError):
            return int(self.hospital.rows(statement)[0]["number"])
        return 0

    def _kill_one(self, pid: int, who: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._count(f"kill {who}")

    def _below(self, words: str) -> list[int]:
        """Return the children of our processes whose command line has `words`; readers are those of workers."""
        found = list(self.hospital.processes.items())
        parents = [process.pid for name, process in found if words == BROKER or name.startswith("worker")]
        return [pid for parent in parents for pid, line in children(parent) if words in line and " -c " not in line]

    def _count(self, deed: str) -> None:
        with self._lock:
            self._counts.deeds.update((deed,))


def no_room(rng: random.Random) -> str:
    """A disk that is full at one of the next writes of the process."""
    return f"{rng.choice(('spool.before_write', 'spool.before_fsync'))}:{rng.randint(1, 3)}:enospc"
