"""The queues of an association: whoever waits is woken, and a queue whose association has ended bothers nobody."""

from __future__ import annotations

import queue
import select
from typing import Any

from node.accept.queues import Indications, Outgoing


def rings(outgoing: Outgoing) -> bool:
    return bool(select.select([outgoing.bell], [], [], 0)[0])


def test_the_bell_rings_from_put_until_silence() -> None:
    outgoing = Outgoing()
    assert not rings(outgoing)
    for item in range(3):
        outgoing.put(item)
    assert rings(outgoing)
    outgoing.silence()
    assert not rings(outgoing)
    assert [outgoing.get(block=False) for _ in range(3)] == [0, 1, 2]
    outgoing.put(3)
    assert rings(outgoing)


def test_a_bell_that_nobody_hears_never_blocks() -> None:
    outgoing = Outgoing()
    for item in range(100_000):
        outgoing.put(item)
    assert outgoing.qsize() == 100_000


def test_putting_into_a_closed_queue_is_no_error() -> None:
    outgoing = Outgoing()
    outgoing.close()
    outgoing.put(1)
    outgoing.silence()
    assert outgoing.get(block=False) == 1


def test_an_indication_wakes_who_waits_for_a_message() -> None:
    messages: queue.Queue[Any] = queue.Queue()
    indications = Indications(messages)
    indications.put("release")
    assert messages.get(block=False) == (None, None)
    assert indications.get(block=False) == "release"
