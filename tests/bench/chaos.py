"""Chaos: kill -9 of listener, worker, child, broker, everything, while senders push; `make chaos MINUTES=5`.

In between the broker is flushed, hung and down, the database locked, the disk full, and the PACS down, refusing,
hanging, warning. Several hands break things at the same time, each at its own pace; a lull now and then lets the node
come up. Prints kills of each kind, studies, what was acknowledged, lost, changed, doubled and stuck, and how long the
rest took; `wetread spool verify` with every ledger and log has the last word, and the exit status is 1 when an
invariant broke. The same seed gives each hand the same sequence of deeds; what they meet depends on the machine. All
state is in one temporary folder, which stays when something broke. See `tests/crash/hurried.py` for what is faster
here than in a hospital.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from node import clock, embedded
from node.errors import WetreadError
from node.simulate.faults import Fault
from tests.crash.hospital import Hospital, children, until

SENDERS = 3
BROKER, READER = "broker.sock", "tests.crash.hurried reader"
BURST_S = (8.0, 15.0)
"""How long the hands are at work between two lulls."""
LULL_S = (1.0, 3.0)
UP_WITHIN_S = 15.0
WORK_WITHIN_S = 60.0
"""How long a worker or reader that is spared for now is let work; without any work done a kill shows little."""
BROKER_WITHIN_S = 2.0
"""How long a broker that is to be killed is waited for; the node has to start it again."""
LONGEST_S = 6.0
"""How long a lock, a hung broker or a PACS that is down lasts at most."""
BACKLOG = 16
"""Studies that may be under way; more of them would measure the machine, not what a kill does."""
DRAIN_WITHIN_S = 120.0
"""How long after the last fault everything must have come to its end."""
SPARED = 0.6
"""The share of kills that wait until what is to be killed was at work; the others meet a start or a recovery."""


@dataclass
class Counts:
    """What happened; `wanted` has the number of instances of each study that was sent."""

    deeds: Counter[str] = field(default_factory=Counter)
    wanted: dict[str, int] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """How many processes were killed with kill -9."""
        return sum(count for deed, count in self.deeds.items() if deed.startswith("kill "))


@dataclass
class Hand:
    """Does one deed after another, drawn by weight, with a pause in between; `rng` is its own.

    `rests`: not in a lull.
    """

    rng: random.Random
    pause_s: tuple[float, float]
    deeds: dict[str, tuple[int, Callable[[random.Random], None]]]
    rests: bool = True

    def work(self, may: threading.Event, over: threading.Event) -> None:
        """Break things while `may` is set, until `over`."""
        names, weights = list(self.deeds), [weight for weight, _ in self.deeds.values()]
        while not over.wait(self.rng.uniform(*self.pause_s)):
            if not self.rests or may.wait(1.0):
                self.deeds[self.rng.choices(names, weights)[0]][1](self.rng)


class Chaos:
    """A hospital, its senders, and the hands that break things.

    What lasts (a locked database, a hung broker, a PACS that is down) lasts in the background, so that the kills
    go on meanwhile.
    """

    def __init__(self, hospital: Hospital, seed: int) -> None:
        self.hospital, self.rng = hospital, random.Random(seed)  # noqa: S311 - what to break is no secret
        self.counts = Counts()
        self._over, self._may, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._under_way = 0
        self._lasting: dict[str, threading.Thread] = {}

    def hands(self) -> list[Hand]:
        """One for each program, one for readers, one for the broker, one for all around."""
        node: dict[str, tuple[int, Callable[[random.Random], None]]] = {
            "kill node": (8, lambda rng: self._restart("node", rng)),
            "node without room": (1, lambda rng: self._restart("node", rng, _no_room(rng))),
        }
        worker: dict[str, tuple[int, Callable[[random.Random], None]]] = {
            "kill worker": (4, lambda rng: self._restart("worker", rng)),
            "worker without room": (1, lambda rng: self._restart("worker", rng, _no_room(rng))),
            "kill all": (1, self._kill_all),
        }
        around: dict[str, tuple[int, Callable[[random.Random], None]]] = {
            "broker flushed": (2, lambda rng: self._flush()),
            "broker hung": (1, lambda rng: self._last("broker hung", self._hang_broker, rng)),
            "broker down": (1, lambda rng: self._last("broker down", self._keep_broker_down, rng)),
            "database locked": (1, lambda rng: self._last("database locked", self._lock_database, rng)),
            "PACS down": (1, lambda rng: self._last("PACS down", self._pacs_down, rng)),
            "PACS refuses": (1, lambda rng: self._pacs_does("refuses", Fault("status", status=0xA700, times=2))),
            "PACS warns": (1, lambda rng: self._pacs_does("warns", Fault("status", status=0xB000, times=3))),
            "PACS hangs": (1, lambda rng: self._pacs_does("hangs", Fault("hang", times=1, seconds=3.0))),
            "PACS cuts": (1, lambda rng: self._pacs_does("cuts", Fault("drop", times=2))),
            "PACS rejects": (1, lambda rng: self._pacs_does("rejects", Fault("reject", times=2))),
            "PACS loses": (1, lambda rng: self._pacs_does("loses", Fault("not_held", times=1))),
        }
        own = [random.Random(self.rng.random()) for _ in range(5)]  # noqa: S311 - as above
        return [
            Hand(own[0], (0.5, 3.0), node),
            Hand(own[4], (1.0, 4.0), worker),
            Hand(own[1], (0.5, 2.0), {"kill reader": (1, self._kill_reader)}),
            Hand(own[2], (0.2, 1.2), {"kill broker": (1, lambda rng: self._kill_below("", BROKER))}, rests=False),
            Hand(own[3], (0.5, 3.0), around),
        ]

    def run(self, seconds: float) -> None:
        """Break things for so long."""
        works: list[tuple[Callable[..., None], tuple[object, ...]]] = [(self._send, (n,)) for n in range(SENDERS)]
        works += [(self._revive_until_over, ()), *((hand.work, (self._may, self._over)) for hand in self.hands())]
        threads = [threading.Thread(target=work, args=arguments, daemon=True) for work, arguments in works]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._may.set()
            time.sleep(min(left, self.rng.uniform(*BURST_S)))
            self._may.clear()
            self._wait_until_up()
            time.sleep(self.rng.uniform(*LULL_S))
        self._over.set()
        for thread in [*threads[SENDERS:], *self._lasting.values()]:
            thread.join(60)
        self.hospital.pacs.faults.clear()
        self._revive()
        for thread in threads[:SENDERS]:
            thread.join(120)
            assert not thread.is_alive(), "a sender still waits for its answer"

    def _wait_until_up(self) -> None:
        """A node that never answers would lose nothing."""
        with suppress(AssertionError):
            until(self.hospital.is_up, UP_WITHIN_S, "the node answers", 0.2)

    def stuck(self) -> dict[str, str]:
        """Wait for the end; return the studies that did not come to it."""
        with suppress(AssertionError):
            until(lambda: not self.hospital.unfinished(self.counts.wanted), DRAIN_WITHIN_S, "all studies are DONE", 0.5)
        return self.hospital.unfinished(self.counts.wanted)

    def _send(self, number: int) -> None:
        """Push study after study, each until it is acknowledged, as a modality does."""
        rng, made = random.Random(number), 0  # noqa: S311 - sizes of studies
        while not self._over.wait(rng.uniform(0.2, 1.5)):
            if self._under_way >= BACKLOG:
                continue
            made += 1
            folder, count = self.hospital.folder / "studies" / f"{number}-{made}", rng.randint(1, 4)
            study = self.hospital.sender.make_study(folder, count)
            self.counts.wanted[study] = count
            while not self.hospital.sender.push(folder):
                time.sleep(0.1)

    def _revive_until_over(self) -> None:
        """Start what is dead, as systemd does, and look how many studies are under way."""
        while not self._over.wait(0.2):
            self._revive()
            with suppress(WetreadError):
                self._under_way = len(self.hospital.unfinished(dict(self.counts.wanted)))

    def _revive(self) -> None:
        """The node may have died of the loss of its lock or port."""
        with self._lock:
            for name in ("node", "worker"):
                process = self.hospital.processes.get(name)
                if process is None or process.poll() is not None:
                    self.hospital.start(name)

    def _restart(self, name: str, rng: random.Random, fault: str = "") -> None:
        if rng.random() < SPARED:
            self._wait_until_up() if name == "node" else self._wait_for_work()
        self._count("disk full" if fault else "", f"kill {name}")
        with self._lock:
            self.hospital.kill(name)
            self.hospital.start(name, fault)

    def _count(self, *deeds: str) -> None:
        with self._lock:
            self.counts.deeds.update(deed for deed in deeds if deed)

    def _kill_all(self, rng: random.Random) -> None:
        """Every process of ours and below us at once, as when the power goes."""
        self._wait_for_work()
        self._count("kill node", "kill worker", "everything at once")
        with self._lock:
            below = [pid for parent in self.hospital.processes.values() for pid, _ in children(parent.pid)]
            for name in ("node", "worker"):
                self.hospital.kill(name)
        for pid in below:  # most of them go with their parent; those that a signal still finds are killed by it
            self._kill_one(pid, "child")
        self._revive()

    def _kill_reader(self, rng: random.Random) -> None:
        """Kill the reader while it starts, or after it has answered once more."""
        self._wait_for_a_reader()
        if rng.random() < SPARED:
            self._wait_for_work()
        time.sleep(rng.uniform(0.0, 0.5))
        self._kill_below("worker", READER)

    def _wait_for_work(self) -> None:
        answered = self._answered()
        with suppress(AssertionError):
            until(lambda: self._over.is_set() or self._answered() > answered, WORK_WITHIN_S, "a reading ends", 0.1)

    def _wait_for_a_reader(self) -> None:
        with suppress(AssertionError):
            until(lambda: self._below("worker", READER), UP_WITHIN_S, "a reader is there", 0.1)

    def _answered(self) -> int:
        with suppress(WetreadError):
            states = "SELECT COUNT(*) AS number FROM job WHERE state NOT IN ('QUEUED', 'RUNNING')"
            return int(self.hospital.rows(states)[0]["number"])
        return 0

    def _kill_below(self, name: str, words: str) -> None:
        """Kill a child of `name` (of any process, if empty) whose command line has `words`; wait for one."""
        deadline = time.monotonic() + (BROKER_WITHIN_S if words == BROKER else 0.2)
        while not (found := self._below(name, words)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in found[:1]:
            self._kill_one(pid, "broker" if words == BROKER else "reader")

    def _kill_one(self, pid: int, who: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._count(f"kill {who}")

    def _below(self, name: str, words: str) -> list[int]:
        parents = [p.pid for n, p in list(self.hospital.processes.items()) if name in ("", n)]
        return [pid for parent in parents for pid, line in children(parent) if words in line and " -c " not in line]

    def _last(self, deed: str, what: Callable[[float], None], rng: random.Random) -> None:
        """Do `what` in the background for some seconds, unless it is being done already."""
        before = self._lasting.get(deed)
        seconds = rng.uniform(1.0, LONGEST_S)
        if before is None or not before.is_alive():
            self._count(deed)
            self._lasting[deed] = threading.Thread(target=what, args=(seconds,), daemon=True)
            self._lasting[deed].start()

    def _flush(self) -> None:
        if embedded._ask(self.hospital.broker_socket, b"FLUSHALL\r\n", 1.0).startswith(b"+OK"):
            self._count("broker flushed")

    def _hang_broker(self, seconds: float) -> None:
        """It takes connections and answers nothing; goes on afterwards, if it still lives."""
        for pid in self._below("", BROKER)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pid, signal.SIGCONT)

    def _keep_broker_down(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._kill_below("", BROKER)
            time.sleep(0.3)

    def _lock_database(self, seconds: float) -> None:
        """Hold SQLite's write lock, as a careless backup does."""
        connection = sqlite3.connect(self.hospital.folder / "state" / "wetread.db", timeout=5.0)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            connection.rollback()
        connection.close()

    def _pacs_down(self, seconds: float) -> None:
        self.hospital.pacs.stop()
        time.sleep(seconds)
        self.hospital.pacs.start()

    def _pacs_does(self, what: str, fault: Fault) -> None:
        self._count(f"PACS {what}")
        self.hospital.pacs.faults.add(fault)


def _no_room(rng: random.Random) -> str:
    """A disk that is full at one of the next writes of the process."""
    return f"{rng.choice(('spool.before_write', 'spool.before_fsync'))}:{rng.randint(1, 3)}:enospc"


def judge(chaos: Chaos) -> bool:
    """Print what came of it; True when everything that was promised was kept."""
    hospital, counts = chaos.hospital, chaos.counts
    since = time.monotonic()
    stuck = chaos.stuck()
    drained_s, findings, doubled = time.monotonic() - since, hospital.findings(), hospital.doubled()
    missing = _not_at_the_pacs(hospital)
    lost = [finding for finding in findings if finding.what.endswith("was acknowledged and is not there")]
    changed = [f for f in findings if f not in lost and f.invariant in ("I1", "I2", "I7") and "instance" in f.entity]
    print(f"kills {counts.kills}: {_of(counts, 'kill ')}")
    print(f"other faults: {', '.join(f'{n} {deed}' for deed, n in sorted(counts.deeds.items()) if 'kill' not in deed)}")
    print(f"studies {len(counts.wanted)}, acknowledged instances {len(hospital.sender.acknowledged)}")
    print(f"lost {len(lost) + len(missing)}, changed {len(changed)}, visible twice {len(doubled)}")
    print(f"stuck {len(stuck)}, the rest took {drained_s:.0f} s of at most {DRAIN_WITHIN_S:.0f} s")
    print(f"findings {len(findings)}")
    for finding in findings[:20]:
        print(f"  {finding.invariant} {finding.entity}: {finding.what}")
    for uid, where in list(stuck.items())[:20]:
        print(f"  stuck: study {uid} is {where}")
    verified = hospital.verify()
    print(f"wetread spool verify: {verified.stdout.strip() or verified.stderr.strip()}")
    return not (findings or doubled or stuck or missing or verified.returncode)


def _of(counts: Counts, kind: str) -> str:
    found = [(deed.removeprefix(kind), number) for deed, number in counts.deeds.items() if deed.startswith(kind)]
    return ", ".join(f"{number} {what}" for what, number in sorted(found))


def _not_at_the_pacs(hospital: Hospital) -> list[str]:
    """Results that the database says were committed and the PACS does not hold."""
    found = hospital.rows("SELECT sop_instance_uid AS uid FROM delivery WHERE state = 'COMMITTED'")
    return [row["uid"] for row in found if row["uid"] not in hospital.pacs.held]


def main() -> int:
    """Run for so many minutes; exit status 1 when something that was promised was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else int(clock.now()) % 1_000_000
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"chaos for {chosen.minutes:g} minutes, seed {seed}, in {folder}", flush=True)
    with Hospital(folder) as hospital:
        for name in ("node", "worker"):
            hospital.start(name)
        hospital.wait_until_up()
        chaos = Chaos(hospital, seed)
        chaos.run(chosen.minutes * 60)
        good = judge(chaos)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
