"""Syncs that are shared: each begins after whoever waits for it has written, and each who waits hears how it ended."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.store.groupsync import GroupSync


def test_everybody_returns_after_a_sync_that_began_after_the_call() -> None:
    written, synced, counts = [0], [0], []
    lock = threading.Lock()

    def sync() -> None:
        seen = written[0]
        threading.Event().wait(0.001)
        synced[0] = max(synced[0], seen)
        counts.append(seen)

    group = GroupSync(sync)

    def write() -> None:
        for _ in range(50):
            with lock:
                written[0] += 1
                mine = written[0]
            group()
            assert synced[0] >= mine

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write) for _ in range(8)]:
            done.result(timeout=60)
    assert synced[0] == 400
    assert len(counts) < 400, "none was shared"


def test_syncs_never_overlap() -> None:
    running, most = [0], [0]

    def sync() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.001)
        running[0] -= 1

    group = GroupSync(sync)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(group) for _ in range(100)]:
            done.result(timeout=60)
    assert most == [1]


def test_a_failure_is_told_to_all_who_waited_for_it_and_to_nobody_else() -> None:
    entered, go = threading.Semaphore(0), threading.Semaphore(0)
    outcomes = iter([None, OSError(5, "broken"), None])

    def sync() -> None:
        entered.release()
        assert go.acquire(timeout=60)
        if error := next(outcomes):
            raise error

    group = GroupSync(sync)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(group)
        assert entered.acquire(timeout=60)
        behind = [pool.submit(group) for _ in range(3)]
        while len(group._waiting) < 3:
            threading.Event().wait(0.01)
        go.release()
        assert first.result(timeout=60) is None
        assert entered.acquire(timeout=60)
        go.release()
        for waited in behind:
            with pytest.raises(OSError, match="broken"):
                waited.result(timeout=60)
        after = pool.submit(group)
        go.release()
        assert after.result(timeout=60) is None
