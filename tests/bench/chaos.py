"""Chaos: kill -9 of listener, worker, child, broker, everything, while senders push; `make chaos MINUTES=5`.

In between the broker is flushed, hung and down, the database locked, the disk full, and the PACS down, refusing,
hanging, warning. Prints kills, studies, what was acknowledged, lost, doubled and stuck; `wetread spool verify` with
every ledger and log has the last word, and the exit status is 1 when an invariant broke. The same seed gives the same
sequence of faults; what they meet depends on the machine. All state is in one temporary folder, which stays when
something broke. See `tests/crash/hurried.py` for what is faster here than in a hospital.
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
from node.simulate.faults import Fault
from tests.crash.hospital import Hospital, children, until

SENDERS = 3
BROKER = "broker.sock"
BURST = (20, 40)
"""Deeds between two lulls."""
LULL_S = (0.5, 2.0)
UP_WITHIN_S = 15.0
BROKER_WITHIN_S = 2.0
"""How long a broker that is to be killed is waited for; the node has to start it again."""
LONGEST_S = 6.0
"""How long a lock, a hung broker or a PACS that is down lasts at most."""
DRAIN_WITHIN_S = 900.0
"""How long after the last fault everything must have come to its end."""


@dataclass
class Counts:
    """What happened; `wanted` has the number of instances of each study that was sent."""

    deeds: Counter[str] = field(default_factory=Counter)
    wanted: dict[str, int] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """How many processes were killed with kill -9."""
        return sum(count for deed, count in self.deeds.items() if deed.startswith("kill "))


class Chaos:
    """A hospital, its senders, and a hand that breaks things; `deeds` are drawn by weight.

    What lasts (a locked database, a hung broker, a PACS that is down) lasts in the background, so that the kills
    go on meanwhile; a lull after each burst lets something come to its end, or a kill would only meet nodes that start.
    """

    def __init__(self, hospital: Hospital, rng: random.Random) -> None:
        self.hospital, self.rng = hospital, rng
        self.counts = Counts()
        self._over = threading.Event()
        self._lasting: dict[str, threading.Thread] = {}
        self.deeds: dict[str, tuple[int, Callable[[], None]]] = {
            "kill node": (3, lambda: self._restart("node")),
            "kill worker": (3, lambda: self._restart("worker")),
            "kill reader": (10, lambda: self._kill_below("worker", "tests.crash.hurried reader")),
            "kill broker": (30, lambda: self._kill_below("", BROKER)),
            "kill all": (1, self._kill_all),
            "broker flushed": (2, self._flush),
            "broker hung": (1, lambda: self._last("broker hung", self._hang_broker)),
            "broker down": (1, lambda: self._last("broker down", self._keep_broker_down)),
            "database locked": (1, lambda: self._last("database locked", self._lock)),
            "node without room": (1, lambda: self._restart("node", self._no_room())),
            "worker without room": (1, lambda: self._restart("worker", self._no_room())),
            "PACS down": (1, lambda: self._last("PACS down", self._pacs_down)),
            "PACS refuses": (1, lambda: self._pacs_does("refuses", Fault("status", status=0xA700, times=2))),
            "PACS warns": (1, lambda: self._pacs_does("warns", Fault("status", status=0xB000, times=3))),
            "PACS hangs": (1, lambda: self._pacs_does("hangs", Fault("hang", times=1, seconds=3.0))),
            "PACS cuts": (1, lambda: self._pacs_does("cuts", Fault("drop", times=2))),
            "PACS rejects": (1, lambda: self._pacs_does("rejects", Fault("reject", times=2))),
            "PACS loses": (1, lambda: self._pacs_does("loses", Fault("not_held", times=1))),
        }

    def run(self, seconds: float) -> None:
        """Break things for so long, then let everything come to its end."""
        senders = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(SENDERS)]
        for thread in senders:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._burst(self.rng.randint(*BURST))
            self._wait_until_up()
            time.sleep(self.rng.uniform(*LULL_S))
        self._over.set()
        for thread in self._lasting.values():
            thread.join(60)
        self.hospital.pacs.faults.clear()
        self._revive()
        for thread in senders:
            thread.join(120)
            assert not thread.is_alive(), "a sender still waits for its answer"

    def _wait_until_up(self) -> None:
        """A node that never answers would lose nothing."""
        with suppress(AssertionError):
            until(self.hospital.is_up, UP_WITHIN_S, "the node answers", 0.2)

    def _burst(self, deeds: int) -> None:
        names, weights = list(self.deeds), [weight for weight, _ in self.deeds.values()]
        for _ in range(deeds):
            self.deeds[self.rng.choices(names, weights)[0]][1]()
            self._revive()
            time.sleep(self.rng.uniform(0.02, 0.2))

    def stuck(self) -> dict[str, str]:
        """Wait for the end; return the studies that did not come to it."""
        with suppress(AssertionError):
            until(lambda: not self.hospital.unfinished(self.counts.wanted), DRAIN_WITHIN_S, "all studies are DONE", 0.5)
        return self.hospital.unfinished(self.counts.wanted)

    def _send(self, number: int) -> None:
        """Push study after study, each until it is acknowledged, as a modality does."""
        rng, made = random.Random(number), 0  # noqa: S311 - sizes of studies
        while not self._over.is_set():
            made += 1
            folder, count = self.hospital.folder / "studies" / f"{number}-{made}", rng.randint(1, 4)
            study = self.hospital.sender.make_study(folder, count)
            self.counts.wanted[study] = count
            while not self.hospital.sender.push(folder):
                time.sleep(0.1)
            self._over.wait(rng.uniform(0.2, 1.5))

    def _revive(self) -> None:
        """Start what is dead, as systemd does; the node may have died of the loss of its lock or port."""
        for name in ("node", "worker"):
            process = self.hospital.processes.get(name)
            if process is None or process.poll() is not None:
                self.hospital.start(name)

    def _restart(self, name: str, fault: str = "") -> None:
        self.counts.deeds[f"kill {name}"] += 1
        if fault:
            self.counts.deeds["disk full"] += 1
        self.hospital.kill(name)
        self.hospital.start(name, fault)

    def _no_room(self) -> str:
        """A disk that is full at one of the next writes of the process."""
        return f"{self.rng.choice(('spool.before_write', 'spool.before_fsync'))}:{self.rng.randint(1, 3)}:enospc"

    def _kill_all(self) -> None:
        """Every process of ours and below us at once, as when the power goes."""
        below = [pid for parent in self.hospital.processes.values() for pid, _ in children(parent.pid)]
        for name in ("node", "worker"):
            self.hospital.kill(name)
            self.counts.deeds[f"kill {name}"] += 1
        for pid in below:  # most of them go with their parent; those that a signal still finds are killed by it
            self._kill_one(pid, "child")
        for name in ("worker", "node"):
            self.hospital.start(name)

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
            self.counts.deeds[f"kill {who}"] += 1

    def _below(self, name: str, words: str) -> list[int]:
        parents = [p.pid for n, p in list(self.hospital.processes.items()) if name in ("", n)]
        return [pid for parent in parents for pid, line in children(parent) if words in line and " -c " not in line]

    def _last(self, deed: str, what: Callable[[float], None]) -> None:
        """Do `what` in the background for some seconds, unless it is being done already."""
        before = self._lasting.get(deed)
        seconds = self.rng.uniform(1.0, LONGEST_S)
        if before is None or not before.is_alive():
            self.counts.deeds[deed] += 1
            self._lasting[deed] = threading.Thread(target=what, args=(seconds,), daemon=True)
            self._lasting[deed].start()

    def _flush(self) -> None:
        if embedded._ask(self.hospital.broker_socket, b"FLUSHALL\r\n", 1.0).startswith(b"+OK"):
            self.counts.deeds["broker flushed"] += 1

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

    def _lock(self, seconds: float) -> None:
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
        self.counts.deeds[f"PACS {what}"] += 1
        self.hospital.pacs.faults.add(fault)


def judge(chaos: Chaos) -> bool:
    """Print what came of it; True when everything that was promised was kept."""
    hospital, counts = chaos.hospital, chaos.counts
    stuck, findings, doubled = chaos.stuck(), hospital.findings(), hospital.doubled()
    missing = _not_at_the_pacs(hospital)
    lost = [finding for finding in findings if finding.invariant == "I1"]
    print(f"faults: {', '.join(f'{count} {deed}' for deed, count in sorted(counts.deeds.items()))}")
    print(f"kills {counts.kills}  studies {len(counts.wanted)}  acknowledged {len(hospital.sender.acknowledged)}")
    print(f"lost or changed {len(lost) + len(missing)}  visible twice {len(doubled)}  stuck {len(stuck)}")
    print(f"findings {len(findings)}")
    for finding in findings[:20]:
        print(f"  {finding.invariant} {finding.entity}: {finding.what}")
    for uid, where in list(stuck.items())[:20]:
        print(f"  stuck: study {uid} is {where}")
    verified = hospital.verify()
    print(f"wetread spool verify: {verified.stdout.strip() or verified.stderr.strip()}")
    return not (findings or doubled or stuck or missing or verified.returncode)


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
        rng = random.Random(seed)  # noqa: S311 - what to break is no secret
        chaos = Chaos(hospital, rng)
        chaos.run(chosen.minutes * 60)
        good = judge(chaos)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
