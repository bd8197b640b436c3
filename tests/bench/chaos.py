"""Chaos: kill -9 of the node, its worker, its reader and its broker while senders push; `make chaos MINUTES=5`.

Prints kills, studies, what was acknowledged, lost, doubled and stuck; the exit status is 1 when an invariant broke.
The same seed gives the same sequence of faults; what they meet depends on the machine. All state is in one temporary
folder, which stays when something broke. See `tests/crash/hurried.py` for what is faster here than in a hospital.
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
DRAIN_WITHIN_S = 240.0
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
    """A hospital, its senders, and a hand that breaks things; `deeds` are drawn by weight."""

    def __init__(self, hospital: Hospital, rng: random.Random, longest_s: float) -> None:
        self.hospital, self.rng, self.longest_s = hospital, rng, longest_s
        self.counts = Counts()
        self._over = threading.Event()
        self.deeds: dict[str, tuple[int, Callable[[], None]]] = {
            "kill node": (6, lambda: self._restart("node")),
            "kill worker": (6, lambda: self._restart("worker")),
            "kill reader": (4, lambda: self._kill_below("worker", "tests.crash.hurried reader")),
            "kill broker": (4, lambda: self._kill_below("", "broker.sock")),
            "kill all": (2, self._kill_all),
            "flush broker": (3, self._flush),
            "lock database": (1, self._lock),
            "PACS down": (1, self._pacs_down),
            "PACS refuses": (2, lambda: self._pacs_does(Fault("status", status=0xA700, times=2))),
            "PACS cuts": (2, lambda: self._pacs_does(Fault("drop", times=2))),
            "PACS rejects": (2, lambda: self._pacs_does(Fault("reject", times=2))),
            "PACS loses": (1, lambda: self._pacs_does(Fault("not_held", times=1))),
        }

    def run(self, seconds: float) -> None:
        """Break things for so long, then let everything come to its end."""
        senders = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(SENDERS)]
        for thread in senders:
            thread.start()
        end = time.monotonic() + seconds
        names, weights = list(self.deeds), [weight for weight, _ in self.deeds.values()]
        while time.monotonic() < end:
            deed = self.rng.choices(names, weights)[0]
            self.deeds[deed][1]()
            self._revive()
            time.sleep(self.rng.uniform(0.1, 1.0))
        self._over.set()
        self.hospital.pacs.faults.clear()
        for thread in senders:
            thread.join(120)
            assert not thread.is_alive(), "a sender still waits for its answer"

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

    def _restart(self, name: str) -> None:
        self.counts.deeds[f"kill {name}"] += 1
        self.hospital.kill(name)
        self.hospital.start(name)

    def _kill_all(self) -> None:
        self.counts.deeds["kill node"] += 1
        self.counts.deeds["kill worker"] += 1
        for name in ("node", "worker"):
            self.hospital.kill(name)
        for name in ("worker", "node"):
            self.hospital.start(name)

    def _kill_below(self, name: str, words: str) -> None:
        """Kill a child of `name` (of any process, if empty) whose command line has `words`; there may be none now."""
        parents = [p.pid for n, p in self.hospital.processes.items() if name in ("", n)]
        found = [pid for parent in parents for pid, line in children(parent) if words in line and " -c " not in line]
        for pid in found[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.counts.deeds["kill reader" if "reader" in words else "kill broker"] += 1

    def _flush(self) -> None:
        if embedded._ask(self.hospital.broker_socket, b"FLUSHALL\r\n", 1.0).startswith(b"+OK"):
            self.counts.deeds["flush broker"] += 1

    def _lock(self) -> None:
        """Hold SQLite's write lock, as a careless backup does."""
        connection = sqlite3.connect(self.hospital.folder / "state" / "wetread.db", timeout=5.0)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN EXCLUSIVE")
            self.counts.deeds["lock database"] += 1
            time.sleep(self.longest_s)
            connection.rollback()
        connection.close()

    def _pacs_down(self) -> None:
        self.counts.deeds["PACS down"] += 1
        self.hospital.pacs.stop()
        time.sleep(self.longest_s / 2)
        self.hospital.pacs.start()

    def _pacs_does(self, fault: Fault) -> None:
        self.counts.deeds[f"PACS {fault.deed}"] += 1
        self.hospital.pacs.faults.add(fault)


def judge(chaos: Chaos) -> bool:
    """Print what came of it; True when everything that was promised was kept."""
    hospital, counts = chaos.hospital, chaos.counts
    stuck, findings, doubled = chaos.stuck(), hospital.findings(), hospital.doubled()
    missing = _not_at_the_pacs(hospital)
    lost = [finding for finding in findings if finding.invariant == "I1"]
    print(f"faults: {', '.join(f'{count} {deed}' for deed, count in sorted(counts.deeds.items()))}")
    print(f"kills {counts.kills}  studies {len(counts.wanted)}  acknowledged {len(hospital.sender.acknowledged)}")
    print(f"lost {len(lost) + len(missing)}  doubled {len(doubled)}  stuck {len(stuck)}  findings {len(findings)}")
    for finding in findings[:20]:
        print(f"  {finding.invariant} {finding.entity}: {finding.what}")
    for uid, where in list(stuck.items())[:20]:
        print(f"  stuck: study {uid} is {where}")
    tracebacks = [name for name in ("node", "worker") if "Traceback" in (hospital.folder / f"{name}.log").read_text()]
    for name in tracebacks:
        print(f"  {name}.log has a traceback")
    return not (findings or doubled or stuck or missing or tracebacks)


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
        chaos = Chaos(hospital, rng, longest_s=min(20.0, chosen.minutes * 60 / 10))
        chaos.run(chosen.minutes * 60)
        good = judge(chaos)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
