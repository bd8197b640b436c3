"""A PACS that does not keep to the standard, or to its word: no result is taken for stored that may not be, no thread
is kept, and the reason says what happened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE

from node import calling
from node.commitment import read_report
from node.errors import NoRoom
from node.simulate.faults import Fault
from node.simulate.pacs import Pacs
from node.store import deliveries
from tests.crash.hospital import until
from tests.filed import file_study, make_node
from tests.protocol.rawpacs import (
    ABORT,
    EXPLICIT,
    JPEG,
    RELEASE_RP,
    RELEASE_RQ,
    Line,
    RawPacs,
    Talk,
    accepted,
    response,
)
from workers.send import cstore, outbox, presence
from workers.send.cstore import Peer, Timeouts
from workers.send.outbox import deliver

QUICK = Timeouts(connect=20, acse=3, dimse=3, write=3)
"""For a PACS that is not going to answer."""
PATIENT = Timeouts(connect=60, acse=60, dimse=60, write=60)
Step = Callable[[Line], object]
STORED, ECHOED = 0x8001, 0x8030
SR = "1.2.840.10008.5.1.4.1.1.88.34"


def saying(*steps: bytes | Step) -> Talk:
    """Return what a PACS does: bytes are sent, anything else is called."""

    def talk(line: Line) -> None:
        for step in steps:
            line.send(step) if isinstance(step, bytes) else step(line)

    return talk


def delivered(folder: Path, *steps: bytes | Step, timeouts: Timeouts = PATIENT) -> dict[str, object]:
    """Return the row of one delivery to a PACS that does this after an association request."""
    with RawPacs(saying(Line.read, *steps)) as pacs:
        node = make_node(folder, pacs.port)
        (delivery_id,) = file_study(node, "2.25.4713", ["SR"])
        deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, timeouts)
        row = deliveries.show(node.db, delivery_id)
        node.db.close()
        return row


OPEN = accepted({1: EXPLICIT})


def test_the_bytes_of_a_good_pacs_are_taken_for_stored(tmp_path: Path) -> None:
    row = delivered(tmp_path, OPEN, Line.read_message, response(STORED), Line.read, RELEASE_RP)
    assert (row["state"], row["last_status"]) == ("SENT", "0000")


@pytest.mark.parametrize(
    "answer",
    [response(ECHOED), response(STORED, number=77), response(STORED, status=None), RELEASE_RQ, ABORT],
    ids=["of another service", "to another message", "without a status", "a release", "an abort"],
)
def test_what_is_no_answer_to_our_c_store_is_not_stored(tmp_path: Path, answer: bytes) -> None:
    timeouts = QUICK if answer == RELEASE_RQ else PATIENT
    row = delivered(tmp_path, OPEN, Line.read_message, answer, timeouts=timeouts)
    assert row["state"] == "PENDING"
    assert row["last_status"] in ("ABORTED", "TIMEOUT")


def test_an_answer_before_the_question_is_not_stored(tmp_path: Path) -> None:
    row = delivered(tmp_path, OPEN + response(STORED, number=9), Line.read_message, timeouts=QUICK)
    assert row["state"] == "PENDING"
    assert row["last_status"] in ("ABORTED", "TIMEOUT"), "it may be read and dropped before we ask"


@pytest.mark.parametrize(
    "answer", [ABORT, Line.close, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["aborts", "closes", "talks"]
)
def test_a_pacs_that_is_there_and_opens_no_association_is_not_said_to_be_away(
    tmp_path: Path, answer: bytes | Step
) -> None:
    row = delivered(tmp_path, answer)
    assert (row["state"], row["last_status"]) == ("PENDING", "ABORTED")
    assert "instead of answering the association request" in str(row["reason"])


@pytest.mark.parametrize("contexts", [{}, {99: EXPLICIT}, {1: JPEG}], ids=["none", "another", "another syntax"])
def test_an_association_without_a_context_of_ours_is_for_a_person(tmp_path: Path, contexts: dict[int, str]) -> None:
    row = delivered(tmp_path, accepted(contexts), Line.read, RELEASE_RP)
    assert (row["state"], row["last_status"]) == ("DEAD", "NO_CONTEXT")


@pytest.mark.parametrize(("size", "state"), [(1, "PENDING"), (6, "PENDING"), (7, "SENT")])
def test_pdus_too_small_for_anything_are_no_fault_of_ours(tmp_path: Path, size: int, state: str) -> None:
    there = accepted({1: EXPLICIT}, max_length=size)
    row = delivered(tmp_path, there, Line.read_message, response(STORED), Line.read, RELEASE_RP)
    assert row["state"] == state
    assert state == "SENT" or f"it takes PDUs of {size} bytes" in str(row["reason"])


class Late(AE):
    """Our AE on a busy machine: whoever asked it for an association goes on when that has ended already."""

    def associate(self, *arguments: Any, **options: Any) -> Any:
        assoc = super().associate(*arguments, **options)
        until(lambda: not assoc.is_established, 60, "the association has ended")
        return assoc


def test_an_association_that_ends_at_once_is_not_one_without_a_context(tmp_path: Path) -> None:
    with RawPacs(saying(Line.read, OPEN, ABORT)) as pacs:
        entity = Late("WETREAD")
        entity.add_requested_context(SR, EXPLICIT)
        opened = calling.associate(entity, Peer("127.0.0.1", pacs.port, "SIM_PACS", "WETREAD"), 3)
        assert isinstance(opened, calling.Answer)
        assert (opened.kind, opened.note) == ("aborted", "it ended the association at once")


def test_an_association_that_ends_before_it_is_used_is_an_answer(tmp_path: Path) -> None:
    """It may always do so between two steps of ours; here it surely has."""
    used = threading.Event()
    with RawPacs(saying(Line.read, OPEN, lambda line: used.wait(60), ABORT)) as pacs:
        node = make_node(tmp_path, pacs.port)
        (delivery_id,) = file_study(node, "2.25.4713", ["SR"])
        path = node.spool.path(str(deliveries.show(node.db, delivery_id)["path"]))
        peer = Peer.of(node.settings.destination["pacs"], node.settings)
        entity = calling.entity_for(peer, PATIENT)
        entity.add_requested_context(SR, EXPLICIT)
        opened = calling.associate(entity, peer, 3)
        used.set()
        assert isinstance(opened, calling.Accepted)
        until(lambda: not opened.assoc.is_established, 60, "the association has ended")
        assert cstore._store(opened.assoc, path, UID(SR), UID(EXPLICIT)).kind == "aborted"
        node.db.close()


def test_matches_without_end_are_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_MOST_MATCHES", 50)
    pending = response(0x8020, 0xFF00)

    def answer(line: Line) -> None:
        while True:
            line.send(pending)

    with RawPacs(saying(Line.read, accepted({1: EXPLICIT}), Line.read_message, answer)) as pacs:
        peer = Peer("127.0.0.1", pacs.port, "SIM_PACS", "WETREAD")
        asked = threading.Thread(target=presence.holds, args=(peer, "1.2", "1.3", "1.4", QUICK), daemon=True)
        asked.start()
        asked.join(60)
        assert not asked.is_alive()


def test_the_lease_is_kept_when_a_beat_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, beats = deliveries.heartbeat, []

    def heartbeat(*arguments: object) -> bool:
        beats.append(1)
        if len(beats) == 1:
            raise NoRoom
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox.deliveries, "heartbeat", heartbeat)
    with Pacs(tmp_path / "pacs", faults=[Fault("hang", times=1, seconds=5)]) as pacs:
        node = make_node(tmp_path, pacs.port)
        (delivery_id,) = file_study(node, "2.25.4713", ["SR"])
        deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, QUICK, lease_s=0.5)
        node.db.close()
    assert len(beats) > 1


def test_a_report_with_gaps_is_read() -> None:
    report, named, unnamed = Dataset(), Dataset(), Dataset()
    named.ReferencedSOPInstanceUID, named.FailureReason = "1.2.3", None
    unnamed.FailureReason = 0x0112
    report.TransactionUID, report.FailedSOPSequence, report.ReferencedSOPSequence = "2.25.1", [named, unnamed], []
    assert read_report(report).failed["1.2.3"] == 0x0110
