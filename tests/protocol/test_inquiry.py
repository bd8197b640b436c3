"""A real listener, and a PACS that is asked what it has of a study and gives what is missing; and one that does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from node.accept import contexts
from node.accept import listener as accept
from node.assemble import assembler, inquiry
from node.assemble.archive import Take
from node.calling import Timeouts
from node.settings import Settings
from node.simulate import phantoms, scanner
from node.simulate.faults import Fault
from node.simulate.pacs import Pacs
from node.store import completion, studies
from tests.protocol.listening import Node, listening
from tests.unit import encoded

QUICK = Timeouts(connect=5, acse=10, dimse=4, write=4)


@dataclass
class Hospital:
    """A node and its PACS; `later` is how far its clock is ahead."""

    node: Node
    pacs: Pacs
    settings: Settings
    take: Take
    later: float = 0.0

    def now(self) -> float:
        return time.time() + self.later

    def push(self, slices: list[Dataset]) -> str:
        """Send slices to the node; return their study once the index knows them, and the release."""
        assert scanner.send(slices, "127.0.0.1", self.node.port).ok
        assert self.node.listener.wait_until_registered(10)
        time.sleep(0.3)
        return str(slices[0].StudyInstanceUID)

    def archive(self, slices: list[Dataset]) -> None:
        assert scanner.send(slices, "127.0.0.1", self.pacs.port, called=self.pacs.ae_title).ok

    def ask(self) -> int:
        return inquiry.ask(self.node.db, self.settings, self.now, QUICK)

    def fetch(self, stopping: threading.Event | None = None) -> int:
        timeouts = QUICK if stopping is None else Timeouts()
        return inquiry.fetch(
            self.node.db, self.settings, self.take, contexts.TRANSFER_SYNTAXES, self.now, timeouts, stopping
        )  # fmt: skip

    def evidence(self, study_uid: str) -> completion.Evidence:
        known = completion.waiting(self.node.db, self.now(), 0.0, 60.0)
        return next(one for one in known if one.study_instance_uid == study_uid)

    def assemble(self) -> int:
        return assembler.tick(self.node.db, self.node.spool, self.settings, self.now())

    def reason(self, study_uid: str) -> str:
        return str(studies.show(self.node.db, study_uid)["reason"])


@contextmanager
def hospital(folder: Path, known: bool = True, counts: bool = True, **rules: Any) -> Iterator[Hospital]:
    with ExitStack() as stack:
        pacs = stack.enter_context(Pacs(folder / "pacs", counts=counts))
        completeness = {"quiet_period": "60 s", "archive": "pacs", "pause": "100 ms", "fetch_timeout": "5 s"} | rules
        settings = Settings.model_validate(
            {
                "node": {"port": 0},
                "completeness": completeness,
                "destination": {"pacs": {"host": "127.0.0.1", "port": pacs.port, "ae_title": pacs.ae_title}},
                "spool": {"url": folder / "state" / "spool"},
            }
        )
        node = stack.enter_context(listening(folder, settings=settings))
        if known:
            pacs.peers["WETREAD"] = ("127.0.0.1", node.port)
        take = accept.taking(lambda: settings, node.db, node.spool, stack)
        yield Hospital(node, pacs, settings, take)


def slices(columns: int = 48) -> list[Dataset]:
    """Six images; other `columns`, another study."""
    return phantoms.volume(modality="MR", shape=(6, 64, columns))[0]


def test_release_and_count_make_a_study_complete_at_once_and_the_reason_says_so(tmp_path: Path) -> None:
    images = slices()
    with hospital(tmp_path) as here:
        here.archive(images)
        uid = here.push(images)
        assert (here.assemble(), here.ask(), here.assemble()) == (0, 1, 1)
        assert here.reason(uid) == (
            "the sender released its association; the archive has 6 instances of it and none that is not here"
        )


@pytest.mark.parametrize("way", ["gives no number", "has nothing yet", "is down", "refuses", "hangs"])
def test_an_archive_without_an_answer_is_unknown_and_costs_the_quiet_period(tmp_path: Path, way: str) -> None:
    images = slices()
    with hospital(tmp_path, counts=way != "gives no number", fetch="move") as here:
        if way != "has nothing yet":
            here.archive(images)
        if way == "refuses":
            here.pacs.faults.add(Fault("refuse_query", status=0xA700))
        elif way == "hangs":
            here.pacs.faults.add(Fault("hang_query", seconds=15))
        elif way == "is down":
            here.pacs.stop()
        uid = here.push(images)
        assert (here.ask(), here.assemble(), here.fetch()) == (1, 0, 0)
        here.later = 60
        assert here.assemble() == 1
        said = {"is down": "UNREACHABLE", "refuses": "A700H", "hangs": "it did not answer"}.get(way, "released")
        assert said in here.reason(uid)


@pytest.mark.parametrize("how", ["move", "get"])
def test_what_the_archive_has_more_is_fetched_once_and_then_the_study_is_complete(tmp_path: Path, how: str) -> None:
    images = slices()
    with hospital(tmp_path, fetch=how) as here:
        here.archive(images)
        uid = here.push(images[:4])
        assert (here.ask(), here.fetch(), here.assemble()) == (1, 0, 0)  # its sender may still be at it
        here.later = 60
        assert here.assemble() == 0, "it waits for what can be fetched"
        assert here.fetch() == 2
        here.later = 0
        time.sleep(0.5)
        assert (here.ask(), here.fetch(), here.assemble()) == (1, 0, 1)
        found = {row.sop_instance_uid for row in studies.manifest(here.node.db, uid, 1)}
        assert found == {str(ds.SOPInstanceUID) for ds in images}
        assert "of 2 instances from pacs, attempt 1 of 3 went well" in here.reason(uid)


@pytest.mark.parametrize(("fault", "words"), [("A702", "A702H, it is out of resources"), ("A801", "enter WETREAD")])
def test_a_fetch_that_fails_is_tried_again_a_few_times_and_then_named(tmp_path: Path, fault: str, words: str) -> None:
    images = slices()
    with hospital(tmp_path, known=fault != "A801", fetch="move", fetch_attempts=2) as here:
        here.archive(images)
        if fault == "A702":
            here.pacs.faults.add(Fault("refuse_retrieve", status=0xA702))
        uid = here.push(images[:4])
        here.ask()
        for pause in (60, 10):
            here.later += pause
            here.ask()
            assert here.assemble() == 0
            assert here.fetch() == 2
        assert (here.ask(), here.fetch(), here.assemble()) == (1, 0, 1)
        assert "2 of the 6 instances that the archive has are not here; C-MOVE of 2" in here.reason(uid)
        assert words in here.reason(uid)


@pytest.mark.parametrize("how", ["move", "get"])
def test_a_fetch_in_hand_ends_at_once_when_the_node_stops_and_does_not_count(tmp_path: Path, how: str) -> None:
    images = slices()
    with hospital(tmp_path, fetch=how, fetch_timeout="300 s") as here:
        here.archive(images)
        here.pacs.faults.add(Fault("hang_retrieve", seconds=120, times=1))
        uid = here.push(images[:4])
        here.ask()
        here.later = 60
        here.ask()
        stopping, asked = threading.Event(), []
        thread = threading.Thread(target=lambda: asked.append(here.fetch(stopping)))
        thread.start()
        time.sleep(1.0)
        stopping.set()
        thread.join(60)
        assert asked == [2]
        assert "the node was told to stop" in here.evidence(uid).note
        assert here.evidence(uid).fetches == 0
        here.ask()
        assert here.fetch() == 2, "the next process fetches"


def test_a_question_in_hand_ends_at_once_when_the_node_stops_and_is_not_answered(tmp_path: Path) -> None:
    images = slices()
    with hospital(tmp_path) as here:
        here.archive(images)
        here.pacs.faults.add(Fault("hang_query", seconds=120, times=1))
        uid = here.push(images)
        stopping, asked = threading.Event(), []

        def ask() -> None:
            asked.append(inquiry.ask(here.node.db, here.settings, here.now, Timeouts(dimse=300), stopping))

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(1.0)
        stopping.set()
        thread.join(60)
        assert asked == [1]
        assert (here.evidence(uid).is_answered, here.evidence(uid).note) == (False, "")
        here.later = 60
        assert here.ask() == 1, "the next process asks"
        assert here.evidence(uid).is_answered


@pytest.mark.parametrize("how", ["move", "get"])
def test_a_retrieval_that_hangs_ends_in_time_and_keeps_back_no_other_study(tmp_path: Path, how: str) -> None:
    stuck, other = slices(), slices(columns=32)
    with hospital(tmp_path, fetch=how, fetch_attempts=1) as here:
        here.archive(stuck + other)
        here.pacs.faults.add(Fault("hang_retrieve", seconds=20, times=1))
        first = here.push(stuck[:4])
        here.ask()
        here.later = 60
        here.ask()
        asked: list[int] = []
        thread = threading.Thread(target=lambda: asked.append(here.fetch()))
        thread.start()
        second = here.push(other)
        here.ask()
        assert here.assemble() == 1
        assert studies.show(here.node.db, second)["state"] == "COMPLETE"
        assert thread.is_alive(), "the first is still waited for"
        thread.join(15)
        assert asked == [2]
        here.ask()
        assert here.assemble() == 1
        assert "attempt 1 of 1, failed: it" in here.reason(first)


def test_what_is_fetched_is_judged_by_the_configuration_in_force(tmp_path: Path) -> None:
    """`[ingest] check` is taken in by a reload; what was fetched went by the one of the start."""
    said: dict[str, Any] = {"destination": {"pacs": {"host": "127.0.0.1", "port": 104, "ae_title": "PACS"}}}
    said |= {"completeness": {"archive": "pacs"}}
    in_force = Settings.model_validate(said)
    odd = encoded.dataset(uids={0x0020000D: "1.2.03"})
    with ExitStack() as stack:
        node = stack.enter_context(listening(tmp_path))
        take = accept.taking(lambda: in_force, node.db, node.spool, stack)
        assert take(odd, encoded.CT, "1.2.3.4", encoded.EXPLICIT) == 0xC000
        in_force = Settings.model_validate(said | {"ingest": {"check": "lenient"}})
        assert take(odd, encoded.CT, "1.2.3.4", encoded.EXPLICIT) == 0x0000
