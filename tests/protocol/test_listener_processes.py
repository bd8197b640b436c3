"""Listener processes: one that is killed costs nothing acknowledged, a rolling restart costs nothing at all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pynetdicom.association import Association

from node.accept import process as process_module
from node.accept.processes import LONGEST_PAUSE_S, Processes
from node.crashpoints import ENVIRONMENT
from node.settings import NodeSettings, Settings
from node.store import completion
from node.store.spool import dataset_sha256
from tests.protocol.listening import Node, associate, associated, listening, store
from tests.unit.encoded import CT, EXPLICIT, dataset

CONTEXTS = [(CT, [EXPLICIT])]
PATIENCE_S = 60.0


@contextmanager
def node_with(folder: Path, processes: int, **more: int) -> Iterator[tuple[Node, Processes]]:
    settings = Settings(node=NodeSettings(port=0, listener_processes=processes, **more))
    with listening(folder, settings=settings) as node:
        assert node.listener.processes is not None
        yield node, node.listener.processes


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@dataclass
class Sender:
    """Stores one instance after the other until told to end, on a new association when one breaks."""

    port: int
    number: int
    per_association: int = 1_000_000
    acknowledged: list[str] = field(default_factory=list)
    failures: int = 0
    is_ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.is_ending.is_set():
            assoc = associate(self.port, CONTEXTS)
            for _ in range(self.per_association):
                if self.is_ending.is_set() or not self.sent(assoc):
                    break
            assoc.release() if assoc.is_established else assoc.abort()

    def sent(self, assoc: Association) -> bool:
        """Send the next instance, or the last one again."""
        uid = f"1.2.3.{self.number}.{len(self.acknowledged) + 1}"
        data = dataset(uids={0x00080018: uid})
        status = store(assoc, data, sop_instance=uid) if assoc.is_established else None
        if status != 0x0000:
            self.failures += 1
            return False
        self.acknowledged.append(uid)
        return True

    def end(self) -> None:
        self.is_ending.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def assert_all_kept(node: Node, senders: list[Sender]) -> None:
    acknowledged = {uid for sender in senders for uid in sender.acknowledged}
    until(lambda: acknowledged <= {row["sop_instance_uid"] for row in node.instances()})
    rows = node.instances()
    assert len(rows) == len({row["sop_instance_uid"] for row in rows}), "one instance is there twice"
    assert all(dataset_sha256(node.spool.path(row["path"])) == row["sha256"] for row in rows)


def test_a_killed_process_loses_nothing_acknowledged_and_another_takes_its_place(tmp_path: Path) -> None:
    with node_with(tmp_path, processes=2) as (node, processes):
        senders = [Sender(node.port, number) for number in range(1, 5)]
        until(lambda: all(len(sender.acknowledged) >= 5 for sender in senders))
        killed, other = processes.pids
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(processes.pids) == 2 and killed not in processes.pids)
        counts = [len(sender.acknowledged) for sender in senders]
        until(lambda: all(len(s.acknowledged) >= count + 5 for s, count in zip(senders, counts, strict=True)))
        for sender in senders:
            sender.end()
        failures = sorted(sender.failures for sender in senders)
        assert failures[:2] == [0, 0], "who was served by the other process noticed nothing"
        assert failures[2:] > [0, 0]
        assert other in processes.pids
        assert_all_kept(node, senders)
        with associated(node.port, CONTEXTS) as assoc:
            assert store(assoc, dataset(), sop_instance="1.2.3.4") == 0x0000
    assert is_gone(other)


def test_a_rolling_restart_fails_no_store_and_drops_no_association(tmp_path: Path) -> None:
    with node_with(tmp_path, processes=2) as (node, processes):
        senders = [Sender(node.port, 1), Sender(node.port, 2, per_association=3), Sender(node.port, 3)]
        until(lambda: all(sender.acknowledged for sender in senders))
        old = processes.pids
        node.listener.roll()
        assert not set(old) & set(processes.pids)
        assert len(processes.pids) == 2
        counts = [len(sender.acknowledged) for sender in senders]
        until(lambda: all(len(s.acknowledged) >= count + 5 for s, count in zip(senders, counts, strict=True)))
        assert any(not is_gone(pid) for pid in old), "the long associations go on where they began"
        for sender in senders:
            sender.end()
        assert [sender.failures for sender in senders] == [0, 0, 0]
        until(lambda: all(is_gone(pid) for pid in old))
        assert_all_kept(node, senders)


def test_what_a_process_left_is_recovered_while_its_successor_is_waited_for(tmp_path: Path) -> None:
    with node_with(tmp_path, processes=1) as (node, processes):
        recovered, lost = threading.Event(), processes._lost

        def recover() -> None:
            lost()
            recovered.set()

        processes._lost, processes._failures = recover, 10  # it has died again and again: the next start is far off
        with associated(node.port, CONTEXTS) as assoc:
            assert store(assoc, dataset(), sop_instance="1.2.3.4") == 0x0000
            (pid,) = processes.pids
            os.kill(pid, signal.SIGKILL)
            assert recovered.wait(LONGEST_PAUSE_S - 5)
        assert processes.pids == []
        assert [row["sop_instance_uid"] for row in node.instances()] == ["1.2.3.4"]


def test_a_process_that_hangs_is_killed_and_what_it_acknowledged_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "SILENT_S", 5)
    monkeypatch.setenv(ENVIRONMENT, "register.before:1:sleep")  # it keeps what it acknowledged from the index
    with node_with(tmp_path, processes=1) as (node, processes):
        monkeypatch.delenv(ENVIRONMENT)
        with associated(node.port, CONTEXTS) as assoc:
            assert store(assoc, dataset(), sop_instance="1.2.3.4") == 0x0000
            (pid,) = processes.pids
            os.kill(pid, signal.SIGSTOP)
            until(lambda: is_gone(pid))
        until(lambda: processes.pids)
        until(lambda: [row["sop_instance_uid"] for row in node.instances()] == ["1.2.3.4"])
        assert node.echo() == 0x0000


def test_a_process_that_hangs_keeps_nobody_waiting_who_has_to_tell_it_something(tmp_path: Path) -> None:
    with node_with(tmp_path, processes=1) as (node, processes):
        (hanging,) = processes._processes
        os.kill(hanging.process.pid, signal.SIGSTOP)
        with suppress(BlockingIOError):
            while True:
                hanging.channel.send({"nothing": " " * 1000}, wait=False)
        node.listener.roll()
        until(lambda: is_gone(hanging.process.pid))
        (pid,) = processes.pids
        os.kill(pid, signal.SIGSTOP)
    assert is_gone(pid)


def test_a_process_that_is_silent_for_a_moment_gets_connections_last(tmp_path: Path) -> None:
    with node_with(tmp_path, processes=2) as (node, processes):
        first, second = processes._processes
        os.kill(first.process.pid, signal.SIGSTOP)
        until(lambda: first.silent > process_module.FEW_S)
        for _ in range(3):
            assert node.echo() == 0x0000
        assert not first.serving
        os.kill(first.process.pid, signal.SIGCONT)
        until(lambda: first.silent <= process_module.FEW_S)
        assert processes.pids == [first.process.pid, second.process.pid]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node_with(tmp_path_factory.mktemp("node"), processes=2, max_associations=3) as (node, _):
        yield node


def test_the_limits_hold_for_all_processes_together(pair: Node) -> None:
    node = pair
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(associated(node.port, CONTEXTS)) for _ in range(3)]
        assert node.listener.associations == 3
        refused = associate(node.port, CONTEXTS)
        assert refused.is_rejected
        first.release()
        until(lambda: node.listener.associations == 2)
        stack.enter_context(associated(node.port, CONTEXTS))


def test_a_study_that_two_processes_bring_is_whole_when_the_last_association_is_released(pair: Node) -> None:
    def is_released() -> bool:
        pair.instances()
        (found,) = completion.waiting(pair.db, time.time() + 60, 0, 3600)
        return bool(found.is_released)

    until(lambda: pair.listener.associations == 0)
    first, second = associate(pair.port, CONTEXTS), associate(pair.port, CONTEXTS)
    for number, assoc in enumerate((first, second), 1):
        uid = f"1.2.3.{number}"
        assert store(assoc, dataset(uids={0x00080018: uid}), sop_instance=uid) == 0x0000
    first.release()
    time.sleep(1.0)
    assert not is_released()
    second.release()
    until(is_released)
    until(lambda: 'wetread_instances_total{peer="local",status="0000"} 2' in pair.metrics.render())
