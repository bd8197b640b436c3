"""Chaos: kill -9 of listener, worker, reader, sender, broker, everything, while studies come; `make chaos MINUTES=5`.

In between the broker is flushed, hung and down, the database locked, the disk full, and the PACS down, refusing,
hanging, warning. Several hands break things at the same time, in salvos at the doors, at the readings, or at both;
after each of them the node is let come up and end a study, but not for long. Prints kills of each kind, studies made
and ended meanwhile, what was acknowledged, lost, changed, doubled and stuck, and how long the rest took; `wetread
spool verify` with every ledger and log has the last word, and the exit status is 1 when an invariant broke. The same
seed gives each hand the same sequence of deeds; what they meet depends on the machine. All state is in one temporary
folder, which stays when something broke. See `tests/crash/hurried.py` for what is faster here than in a hospital.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from node import clock
from node.errors import WetreadError
from tests.bench.chaos_deeds import Counts, Deeds
from tests.bench.chaos_hands import GROUPS, draw, hands
from tests.crash.forks import Forks
from tests.crash.hospital import Hospital, until

SENDERS = 3
SALVO_S = (3.0, 5.0)
"""How long the hands are at work between two lulls."""
LULL_S = (1.0, 5.0)
"""How long a lull lasts at least, and at most while no study ends."""
BACKLOG = 16
"""Studies that may be under way; more of them would measure the machine, not what a kill does."""
DRAIN_WITHIN_S = 120.0
"""How long after the last fault everything must have come to its end."""
SETTLED_AFTER_S = 15.0
"""How long after the end `wetread spool verify` is asked again where it found something."""
READING_S = "0.2"
"""How long the canned network takes, so that a kill meets readings as well as what lies between them."""


class Chaos:
    """A hospital, its senders, and the hands that break things."""

    def __init__(self, hospital: Hospital, seed: int) -> None:
        self.hospital, self.rng = hospital, random.Random(seed)  # noqa: S311 - what to break is no secret
        self.counts, self._over = Counts(), threading.Event()
        self.deeds = Deeds(hospital, self.counts, self._over)
        self._may = {group: threading.Event() for group in GROUPS}
        self._under_way = 0

    def run(self, seconds: float) -> None:
        """Break things for so long."""
        works: list[tuple[Callable[..., None], tuple[object, ...]]] = [(self._send, (n,)) for n in range(SENDERS)]
        breaking = [(hand.work, (self._may[hand.group], self._over)) for hand in hands(self.deeds, self.rng)]
        works += [(self._revive_until_over, ()), *breaking]
        threads = [threading.Thread(target=work, args=arguments, daemon=True) for work, arguments in works]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._salvo(left)
            self._lull(end)
        self.counts.ended = self._ended()
        self._over.set()
        for thread in threads[SENDERS:]:
            thread.join(60)
        self.deeds.settle()
        for thread in threads[:SENDERS]:
            thread.join(120)
            assert not thread.is_alive(), "a sender still waits for its answer"

    def stuck(self) -> dict[str, str]:
        """Wait for the end; return the studies that did not come to it."""
        with suppress(AssertionError):
            until(lambda: not self.hospital.unfinished(self.counts.wanted), DRAIN_WITHIN_S, "all studies are DONE", 0.5)
        return self.hospital.unfinished(self.counts.wanted)

    def _salvo(self, left_s: float) -> None:
        groups = draw(self.rng)
        for group in groups:
            self._may[group].set()
        time.sleep(min(left_s, self.rng.uniform(*SALVO_S)))
        for group in groups:
            self._may[group].clear()

    def _lull(self, end: float) -> None:
        """Wait until the node answers and some study has ended, but not for long."""
        least_s, most_s = LULL_S
        self.deeds.wait_until_up()
        ended = self._ended()
        time.sleep(max(0.0, min(least_s, end - time.monotonic())))
        within_s = max(0.0, min(most_s - least_s, end - time.monotonic()))
        with suppress(AssertionError):
            until(lambda: self._ended() > ended, within_s, "a study ends", 0.1)

    def _ended(self) -> int:
        return len(self.counts.wanted) - self._under_way

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
            self._under_way += 1
            while not self.hospital.sender.push(folder):
                time.sleep(0.1)

    def _revive_until_over(self) -> None:
        """Start what is dead, and look how many studies are under way."""
        while not self._over.wait(0.2):
            self.deeds.revive()
            with suppress(WetreadError):
                self._under_way = len(self.hospital.unfinished(dict(self.counts.wanted)))


def judge(chaos: Chaos) -> bool:
    """Print what came of it; True when everything that was promised was kept."""
    hospital, counts = chaos.hospital, chaos.counts
    since = time.monotonic()
    stuck = chaos.stuck()
    drained_s, findings, doubled = time.monotonic() - since, hospital.findings(), hospital.doubled()
    missing = _not_at_the_pacs(hospital)
    lost = [finding for finding in findings if finding.what.endswith("was acknowledged and is not there")]
    changed = [f for f in findings if f not in lost and f.invariant in ("I1", "I2", "I7") and "instance" in f.entity]
    readings = sum(counts.deeds[f"kill {who}"] for who in ("worker", "reader", "sender"))
    print(f"kills {counts.kills}: {counts.of('kill ')}; at the readings {readings / max(counts.kills, 1):.0%}")
    print(f"other faults: {', '.join(f'{n} {deed}' for deed, n in sorted(counts.deeds.items()) if 'kill' not in deed)}")
    print(f"studies {len(counts.wanted)}, of which {counts.ended} ended while it was breaking")
    print(f"acknowledged instances {len(hospital.sender.acknowledged)}")
    print(f"lost {len(lost) + len(missing)}, changed {len(changed)}, visible twice {len(doubled)}")
    print(f"stuck {len(stuck)}, the rest took {drained_s:.0f} s of at most {DRAIN_WITHIN_S:.0f} s")
    print(f"findings {len(findings)}")
    for finding in findings[:20]:
        print(f"  {finding.invariant} {finding.entity}: {finding.what}")
    for uid, where in list(stuck.items())[:20]:
        print(f"  stuck: study {uid} is {where}")
    verified = _verified(hospital)
    print(f"wetread spool verify: {verified.stdout.strip() or verified.stderr.strip()}")
    return not (findings or doubled or stuck or missing or verified.returncode)


def _verified(hospital: Hospital) -> subprocess.CompletedProcess[str]:
    """Return what `wetread spool verify` finds; at once after the end a worker may still hold a message of a job."""
    verified = hospital.verify()
    if verified.returncode:
        time.sleep(SETTLED_AFTER_S)
        verified = hospital.verify()
    return verified


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
    os.environ["WETREAD_CANNED_S"] = READING_S
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"chaos for {chosen.minutes:g} minutes, seed {seed}, in {folder}", flush=True)
    with Forks() as forks, Hospital(folder, forks=forks) as hospital:
        chaos = Chaos(hospital, seed)
        chaos.deeds.revive()
        hospital.wait_until_up()
        chaos.run(chosen.minutes * 60)
        good = judge(chaos)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
