"""Storage commitment (PS3.4 Annex J) with a PACS that reports here, there, later, partly or never."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from pynetdicom.sop_class import StorageCommitmentPushModel

from node.accept.listener import serve
from node.simulate.faults import Fault
from node.simulate.pacs import Pacs
from node.store import deliveries
from tests.filed import SEG, Node, file_study, make_node
from workers.send import commitment
from workers.send.cstore import Timeouts
from workers.send.outbox import deliver

QUICK = Timeouts(connect=20, acse=20, dimse=20, write=20)
STUDY = "2.25.4712"


def send_all(node: Node, ids: list[str]) -> None:
    for delivery_id in ids:
        deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, QUICK)


PATIENT = {"same": 20.0, "new": 0.3}
"""Seconds that a report on the same association is lingered for, which ends when it has come; the other never comes."""


def tick(node: Node, linger: float = 0.3, report_within: float = 3600.0) -> int:
    return commitment.tick(node.db, node.settings, node.at, QUICK, linger, report_within)


def wait_for(node: Node, states: set[str], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while set(node.states().values()) != states and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(node.states().values()) == states


@contextmanager
def pair(folder: Path, report: Literal["new", "same", "never"], **options: Any) -> Iterator[tuple[Node, Pacs]]:
    with Pacs(folder / "pacs", report=report, **options) as pacs:
        node = make_node(folder, pacs.port, commitment=True)
        listener = serve(node.settings, node.db, node.spool)  # ours: where reports on a new association arrive
        pacs.peers["WETREAD"] = ("127.0.0.1", listener.port)
        try:
            yield node, pacs
        finally:
            listener.stop()
            node.db.close()


@pytest.mark.parametrize("report", ["same", "new"])
def test_committed_on_either_association(tmp_path: Path, report: Literal["same", "new"]) -> None:
    with pair(tmp_path, report) as (node, pacs):
        send_all(node, file_study(node, STUDY))
        assert set(node.states().values()) == {"SENT"}
        assert tick(node, PATIENT[report]) == 2
        wait_for(node, {"COMMITTED"})
        (request,) = pacs.requests
        assert {uid for _, uid in request.references} == set(pacs.held)
        assert request.calling_ae == "WETREAD"
        assert tick(node) == 0, "nothing is left to ask for"


def test_one_transaction_for_each_study(tmp_path: Path) -> None:
    with pair(tmp_path, "same") as (node, pacs):
        send_all(node, file_study(node, STUDY) + file_study(node, STUDY + ".1"))
        assert tick(node, PATIENT["same"]) == 4
        wait_for(node, {"COMMITTED"})
        assert len({request.transaction_uid for request in pacs.requests}) == 2
        assert [len(request.references) for request in pacs.requests] == [2, 2]


@pytest.mark.parametrize("report", ["same", "new"])
def test_many_studies_are_asked_for_over_one_association(tmp_path: Path, report: Literal["same", "new"]) -> None:
    with pair(tmp_path, report) as (node, pacs):
        send_all(node, [file_study(node, f"{STUDY}.{number}", ["SR"])[0] for number in range(20)])
        before = len(pacs.contexts_offered)
        assert tick(node, PATIENT[report]) == 20
        assert len(pacs.contexts_offered) == before + 1
        wait_for(node, {"COMMITTED"}, 60)
        assert len({request.transaction_uid for request in pacs.requests}) == 20


def test_a_pacs_that_takes_one_request_for_each_association_is_asked_for_all(tmp_path: Path) -> None:
    with pair(tmp_path, "new") as (node, pacs):
        send_all(node, [file_study(node, f"{STUDY}.{number}", ["SR"])[0] for number in range(3)])
        pacs.faults.add(Fault("cut_request"))
        for _round in range(4):
            tick(node)
            node.at += 5
        pacs.faults.clear()
        tick(node)
        wait_for(node, {"COMMITTED"}, 60)
        assert {row["commit_attempts"] for row in deliveries.listing(node.db)} == {1}


def test_a_busy_study_keeps_no_other_waiting(tmp_path: Path) -> None:
    with pair(tmp_path, "same", faults=[Fault("refuse_request", status=0x0213, times=1)]) as (node, _):
        send_all(node, [file_study(node, f"{STUDY}.{number}", ["SR"])[0] for number in range(3)])
        assert tick(node) == 2
        wait_for(node, {"COMMITTED", "SENT"})
        node.at += 7
        assert tick(node) == 1
        wait_for(node, {"COMMITTED"})


def test_nothing_is_asked_of_a_destination_without_commitment(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = make_node(tmp_path, pacs.port, commitment=False)
        send_all(node, file_study(node, STUDY))
        assert tick(node) == 0
        assert not pacs.requests
        assert set(node.states().values()) == {"SENT"}


def test_the_one_that_the_pacs_lost_is_sent_again_and_asked_for_anew(tmp_path: Path) -> None:
    with pair(tmp_path, "same", faults=[Fault("not_held", sop_class_uid=SEG, times=1)]) as (node, pacs):
        sr, seg = file_study(node, STUDY)
        send_all(node, [sr, seg])
        tick(node)
        wait_for(node, {"COMMITTED", "PENDING"})
        row = deliveries.show(node.db, seg)
        assert row["state"] == "PENDING"
        assert "0112H" in row["reason"]
        node.at = row["not_before"]
        send_all(node, [sr, seg])
        node.at += 1
        assert tick(node) == 1
        wait_for(node, {"COMMITTED"})
        first, second = pacs.requests
        assert first.transaction_uid != second.transaction_uid
        assert second.references == ((SEG, row["sop_instance_uid"]),)
        assert len(pacs.receptions(row["sop_instance_uid"])) == 2
        assert len({r.sha256 for r in pacs.receptions(row["sop_instance_uid"])}) == 1
        assert len(pacs.receptions(deliveries.show(node.db, sr)["sop_instance_uid"])) == 1


def test_no_report_in_time_is_asked_for_anew_five_times_and_then_dead(tmp_path: Path) -> None:
    with pair(tmp_path, "never") as (node, pacs):
        send_all(node, file_study(node, STUDY, ["SR"]))
        for asked in range(1, 6):
            assert tick(node, linger=0) == 1
            assert tick(node, linger=0) == 0, "while it waits it does not ask"
            assert len({request.transaction_uid for request in pacs.requests}) == asked
            node.at += 3601
        assert tick(node, linger=0) == 0
        assert set(node.states().values()) == {"DEAD"}
        assert len(pacs.requests) == 5


def test_a_late_report_of_an_old_transaction_changes_nothing(tmp_path: Path) -> None:
    with pair(tmp_path, "same", faults=[Fault("no_report", times=1)]) as (node, pacs):
        send_all(node, file_study(node, STUDY, ["SR"]))
        tick(node, linger=0)
        node.at += 3601
        assert tick(node) == 1
        wait_for(node, {"COMMITTED"})
        old, new = pacs.requests
        uid = new.references[0][1]
        assert deliveries.committed(node.db, old.transaction_uid, [], {uid: 0x0112}, node.at) == 0
        assert set(node.states().values()) == {"COMMITTED"}


def test_a_pacs_without_storage_commitment_is_named_in_the_end(tmp_path: Path) -> None:
    with pair(tmp_path, "new", refuse=[StorageCommitmentPushModel]) as (node, _):
        send_all(node, file_study(node, STUDY, ["SR"]))
        assert tick(node) == 0
        (row,) = deliveries.listing(node.db)
        assert row["state"] == "SENT"
        assert "could not be asked for (NO_CONTEXT)" in row["reason"]
        for _attempt in range(5):
            node.at += 1100
            tick(node)
        assert set(node.states().values()) == {"DEAD"}


def test_a_pacs_that_is_down_uses_up_no_attempt_and_costs_one_connection_for_all_studies(tmp_path: Path) -> None:
    with pair(tmp_path, "same") as (node, pacs):
        send_all(node, file_study(node, STUDY, ["SR"]) + file_study(node, STUDY + ".1", ["SR"]))
        pacs.stop()
        for _attempt in range(7):
            assert tick(node) == 0
            node.at += 61
        assert {row["commit_attempts"] for row in deliveries.listing(node.db)} == {0}
        reasons = [row["reason"] for row in deliveries.listing(node.db)]
        assert sum("UNREACHABLE" in reason for reason in reasons) == 1
        pacs.start()
        assert tick(node) == 2
        wait_for(node, {"COMMITTED"})


def test_a_busy_pacs_is_asked_again_after_a_rest(tmp_path: Path) -> None:
    with pair(tmp_path, "same", faults=[Fault("refuse_request", status=0x0213, times=1)]) as (node, pacs):
        send_all(node, file_study(node, STUDY, ["SR"]))
        assert tick(node) == 0
        assert tick(node) == 0, "it rests"
        assert not pacs.requests
        node.at += 7
        assert tick(node) == 1
        wait_for(node, {"COMMITTED"})


def test_duplicate_is_verified_by_commitment(tmp_path: Path) -> None:
    with pair(tmp_path, "same") as (node, pacs):
        (sr,) = file_study(node, STUDY, ["SR"])
        send_all(node, [sr])
        with node.db.transaction() as connection:
            connection.exec_driver_sql("UPDATE delivery SET state = 'PENDING', not_before = 0")
        pacs.faults.add(Fault("status", status=0x0111))
        send_all(node, [sr])
        row = deliveries.show(node.db, sr)
        assert (row["state"], row["last_status"]) == ("SENT", "0111")
        assert "storage commitment will tell" in row["reason"]
        tick(node)
        wait_for(node, {"COMMITTED"})
