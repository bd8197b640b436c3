"""The hands of chaos: which of them strike in a salvo, how fast, and what each does, by weight; as data.

A salvo strikes at the doors (node and broker), at the readings (workers, sender, readers), or at both. Broken all at
once and all the time, nothing would ever be read, and a kill would meet processes that only start.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from node.simulate.faults import Fault
from tests.bench.chaos_deeds import Deeds, no_room

SALVOS = {("doors",): 4, ("readings",): 3, ("doors", "readings"): 3}
"""What is struck at → how often; what lies around is broken in each of them."""
GROUPS = ("doors", "readings", "around")
Deed = Callable[[random.Random], None]


@dataclass
class Hand:
    """Does one deed after another, drawn by weight, with a pause in between; `rng` is its own."""

    group: str
    rng: random.Random
    pause_s: tuple[float, float]
    deeds: dict[str, tuple[int, Deed]]

    def work(self, may: threading.Event, over: threading.Event) -> None:
        """Break things while `may` is set, until `over`."""
        names, weights = list(self.deeds), [weight for weight, _ in self.deeds.values()]
        while not over.wait(self.rng.uniform(*self.pause_s)):
            if may.wait(1.0) and not over.is_set():
                self.deeds[self.rng.choices(names, weights)[0]][1](self.rng)


def draw(rng: random.Random) -> tuple[str, ...]:
    """Return the groups of hands that strike in the next salvo."""
    return (*rng.choices(list(SALVOS), list(SALVOS.values()))[0], "around")


def hands(deeds: Deeds, rng: random.Random) -> list[Hand]:
    """Return a hand for each kind of process, and one for all around."""
    node: dict[str, tuple[int, Deed]] = {
        "kill node": (8, deeds.kill_node),
        "node without room": (1, lambda rng: deeds.kill_node(rng, no_room(rng))),
    }
    worker: dict[str, tuple[int, Deed]] = {
        "kill worker": (8, deeds.kill_worker),
        "worker without room": (2, lambda rng: deeds.kill_worker(rng, no_room(rng))),
        "kill all": (1, deeds.kill_all),
    }
    own = [random.Random(rng.random()) for _ in range(6)]  # noqa: S311 - what to break is no secret
    return [
        Hand("doors", own[0], (0.5, 2.5), node),
        Hand("doors", own[1], (0.1, 0.5), {"kill broker": (1, deeds.kill_broker)}),
        Hand("readings", own[2], (0.5, 2.0), worker),
        Hand("readings", own[3], (0.5, 2.0), {"kill sender": (1, deeds.kill_sender)}),
        Hand("readings", own[4], (0.1, 0.8), {"kill reader": (1, deeds.kill_reader)}),
        Hand("around", own[5], (0.5, 3.0), _around(deeds)),
    ]


def _around(deeds: Deeds) -> dict[str, tuple[int, Deed]]:
    def last(deed: str, what: Callable[[float], None]) -> tuple[int, Deed]:
        return 1, lambda rng: deeds.last(deed, what, rng)

    def pacs(what: str, fault: Fault) -> tuple[int, Deed]:
        return 1, lambda rng: deeds.pacs_does(what, fault)

    return {
        "broker flushed": (2, deeds.flush_broker),
        "broker hung": last("broker hung", deeds.hang_broker),
        "broker down": last("broker down", deeds.keep_broker_down),
        "database locked": last("database locked", deeds.lock_database),
        "PACS down": last("PACS down", deeds.pacs_down),
        "PACS refuses": pacs("refuses", Fault("status", status=0xA700, times=2)),
        "PACS warns": pacs("warns", Fault("status", status=0xB000, times=3)),
        "PACS hangs": pacs("hangs", Fault("hang", times=1, seconds=3.0)),
        "PACS cuts": pacs("cuts", Fault("drop", times=2)),
        "PACS rejects": pacs("rejects", Fault("reject", times=2)),
        "PACS loses": pacs("loses", Fault("not_held", times=1)),
    }
