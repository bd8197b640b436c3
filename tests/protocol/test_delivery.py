"""Evidence Documents reach a PACS over real associations, whatever it answers (PS3.4 §B.2.3)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dsutils import split_dataset

from node.simulate.archive import digest
from node.simulate.faults import Fault
from node.simulate.pacs import Pacs
from node.store import deliveries
from tests.filed import NOW, SEG, SR, Node, file_study, make_node
from workers.send.cstore import Timeouts
from workers.send.lanes import Lanes
from workers.send.outbox import deliver

QUICK = Timeouts(connect=2, acse=2, dimse=1.5, write=1.5)
STUDY = "2.25.4711"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as open_pacs:
        yield open_pacs


@pytest.fixture
def node(tmp_path: Path, pacs: Pacs) -> Iterator[Node]:
    made = make_node(tmp_path, pacs.port)
    yield made
    made.db.close()


def run(node: Node, delivery_id: str) -> dict[str, object]:
    deliver(node.db, node.spool, node.settings, delivery_id, "worker", node.now, QUICK)
    return deliveries.show(node.db, delivery_id)


def filed_bytes(node: Node, row: dict[str, object]) -> bytes:
    path = node.spool.path(str(row["path"]))
    return path.read_bytes()[split_dataset(path)[1] :]


def test_both_documents_arrive_byte_for_byte(node: Node, pacs: Pacs) -> None:
    for delivery_id in file_study(node, STUDY):
        row = run(node, delivery_id)
        assert (row["state"], row["last_status"]) == ("SENT", "0000")
        held = pacs.held[str(row["sop_instance_uid"])]
        assert held.sha256 == digest(filed_bytes(node, row))
    assert {held.sop_class_uid for held in pacs.held.values()} == {SR, SEG}


def test_never_more_than_128_contexts_are_offered(node: Node, pacs: Pacs) -> None:
    for delivery_id in file_study(node, STUDY):
        run(node, delivery_id)
    assert pacs.contexts_offered == [2, 2]


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0110, 0x0213])
def test_out_of_resources_twice_then_success_is_three_attempts_and_one_object(
    node: Node, pacs: Pacs, status: int
) -> None:
    pacs.faults.add(Fault("status", status=status, times=2))
    delivery_id, *_ = file_study(node, STUDY, ["SR"])
    for rest in (5, 15):
        row = run(node, delivery_id)
        assert (row["state"], row["last_status"]) == ("PENDING", f"{status:04X}")
        assert 0.8 * rest <= float(str(row["not_before"])) - node.at <= 1.2 * rest
        assert run(node, delivery_id)["attempts"] == row["attempts"], "not due yet, so not sent"
        node.at = float(str(row["not_before"]))
    row = run(node, delivery_id)
    assert (row["state"], row["attempts"]) == ("SENT", 3)
    receptions = pacs.receptions(str(row["sop_instance_uid"]))
    assert [r.status for r in receptions] == [status, status, 0]
    assert len({r.sha256 for r in receptions}) == 1
    assert len(pacs.held) == 1


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0xC000, 0xC123, 0x0122, 0x0124, 0x0199])
def test_a_refusal_for_good_is_dead_with_its_reason_and_stops_nothing_else(node: Node, pacs: Pacs, status: int) -> None:
    pacs.faults.add(Fault("status", status=status, sop_class_uid=SR))
    sr, seg = file_study(node, STUDY)
    row = run(node, sr)
    assert (row["state"], row["last_status"]) == ("DEAD", f"{status:04X}")
    assert f"wetread dead retry {sr}" in str(row["reason"])
    assert run(node, seg)["state"] == "SENT"
    node.at += 1e6
    assert run(node, sr)["attempts"] == 1
    assert len(pacs.received) == 2


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_a_success_that_people_can_see(node: Node, pacs: Pacs, status: int) -> None:
    pacs.faults.add(Fault("status", status=status))
    row = run(node, file_study(node, STUDY)[0])
    assert (row["state"], row["last_status"]) == ("SENT", f"{status:04X}")
    assert "Stored; the destination" in str(row["reason"])


def test_duplicate_is_settled_by_c_find(node: Node, pacs: Pacs) -> None:
    sr, seg = file_study(node, STUDY)
    run(node, sr)  # the PACS holds the SR; its database forgets that it was sent
    with node.db.transaction() as connection:
        connection.exec_driver_sql("UPDATE delivery SET state = 'PENDING', not_before = 0")
    pacs.faults.add(Fault("status", status=0x0111))
    row = run(node, sr)
    assert (row["state"], row["last_status"]) == ("SENT", "0111")
    assert "C-FIND finds it" in str(row["reason"])
    row = run(node, seg)
    assert row["state"] == "DEAD"
    assert "C-FIND does not find it" in str(row["reason"])


def test_duplicate_without_c_find_is_taken_at_its_word(tmp_path: Path) -> None:
    find = "1.2.840.10008.5.1.4.1.2.2.1"
    with Pacs(tmp_path / "pacs", refuse=[find], faults=[Fault("status", status=0x0111)]) as pacs:
        node = make_node(tmp_path, pacs.port)
        row = run(node, file_study(node, STUDY)[0])
        assert row["state"] == "SENT"
        assert "could not be asked" in str(row["reason"])


def test_the_peer_takes_implicit_only_and_no_value_changes(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs", transfer_syntaxes=[ImplicitVRLittleEndian]) as pacs:
        node = make_node(tmp_path, pacs.port)
        row = run(node, file_study(node, STUDY)[0])
        assert row["state"] == "SENT"
        held = pydicom.dcmread(pacs.held[str(row["sop_instance_uid"])].path)
        assert held.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert held == pydicom.dcmread(node.spool.path(str(row["path"])))


def test_a_refused_class_is_dead_and_the_other_document_is_sent(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs", refuse=[SEG]) as pacs:
        node = make_node(tmp_path, pacs.port)
        sr, seg = file_study(node, STUDY)
        row = run(node, seg)
        assert (row["state"], row["last_status"]) == ("DEAD", "NO_CONTEXT")
        assert "SOP class not supported" in str(row["reason"])
        assert run(node, sr)["state"] == "SENT"


@pytest.mark.parametrize(
    ("rejection", "state"),
    [((2, 3, 2), "PENDING"), ((2, 1, 1), "PENDING"), ((1, 1, 3), "DEAD"), ((1, 1, 7), "DEAD"), ((1, 2, 2), "DEAD")],
)
def test_rejections(node: Node, pacs: Pacs, rejection: tuple[int, int, int], state: str) -> None:
    pacs.faults.add(Fault("reject", rejection=rejection, times=1))
    row = run(node, file_study(node, STUDY)[0])
    assert (row["state"], row["last_status"]) == (state, "RJ {},{},{}".format(*rejection))


def test_a_pacs_that_is_down_is_tried_with_growing_rests_until_the_patience_ends(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        port = pacs.port
    node = make_node(tmp_path, port, retry=1000.0)
    delivery_id = file_study(node, STUDY)[0]
    rests = []
    while (row := run(node, delivery_id))["state"] == "PENDING":
        assert row["last_status"] == "UNREACHABLE"
        rests.append(float(str(row["not_before"])) - node.at)
        node.at = float(str(row["not_before"]))
    assert rests == sorted(rests)
    assert len(rests) == 5
    assert row["state"] == "DEAD"
    assert str(row["reason"]).startswith("Given up after 0.")
    assert deliveries.retry(node.db, delivery_id, node.at)
    with Pacs(tmp_path / "pacs", port=port):
        assert run(node, delivery_id)["state"] == "SENT"


def test_a_host_that_does_not_resolve_is_a_passing_failure(tmp_path: Path) -> None:
    node = make_node(tmp_path, 104)
    there = node.settings.destination["pacs"].model_copy(update={"host": "nowhere.invalid"})
    node.settings = node.settings.model_copy(update={"destination": {"pacs": there}})
    row = run(node, file_study(node, STUDY)[0])
    assert (row["state"], row["last_status"]) == ("PENDING", "UNREACHABLE")


@pytest.mark.parametrize("deed", ["hang", "drop"])
def test_stored_but_never_answered_is_sent_again_and_held_once(node: Node, pacs: Pacs, deed: str) -> None:
    pacs.faults.add(Fault(deed, times=1))  # type: ignore[arg-type]
    delivery_id = file_study(node, STUDY)[0]
    row = run(node, delivery_id)
    assert row["state"] == "PENDING"
    assert row["last_status"] == {"hang": "TIMEOUT", "drop": "ABORTED"}[deed]
    node.at = float(str(row["not_before"]))
    row = run(node, delivery_id)
    assert row["state"] == "SENT"
    receptions = pacs.receptions(str(row["sop_instance_uid"]))
    assert len(receptions) == 2
    assert len({r.sha256 for r in receptions}) == 1
    assert len(pacs.held) == 1


def test_a_pacs_that_stops_reading_costs_a_timeout_and_no_thread(node: Node, pacs: Pacs, tmp_path: Path) -> None:
    from workers.send.cstore import Peer, store

    ds = pydicom.dcmread(node.spool.path(str(deliveries.show(node.db, file_study(node, STUDY)[0])["path"])))
    ds.add_new(0x00421012, "LO", "application/octet-stream")
    ds.add_new(0x00420011, "OB", bytes(64 * 2**20))
    ds.save_as(tmp_path / "large.dcm")
    pacs.faults.add(Fault("stall", times=1, seconds=20))
    before = threading.active_count()
    started = time.monotonic()
    answer = store(tmp_path / "large.dcm", Peer("127.0.0.1", pacs.port, "SIM_PACS", "WETREAD"), QUICK)
    assert answer.kind in ("aborted", "timeout")
    assert time.monotonic() - started < 10
    pacs.stop()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_destination_that_hangs_holds_up_no_other(node: Node, pacs: Pacs) -> None:
    """Eight results for an archive that says nothing come first, and there are three threads."""
    silent = socket.create_server(("127.0.0.1", 0))
    pacs_there = node.settings.destination["pacs"]
    away = pacs_there.model_copy(update={"port": silent.getsockname()[1]})
    node.settings = node.settings.model_copy(update={"destination": {"away": away, "pacs": pacs_there}})
    for number in range(4):
        file_study(node, f"{STUDY}.{number}")
    lanes, stopping, patient = Lanes(), threading.Event(), Timeouts(connect=60, acse=60, dimse=60, write=60)

    def states(destination: str) -> list[tuple[object, object]]:
        found = [row for row in deliveries.listing(node.db) if row["destination"] == destination]
        return [(row["state"], row["attempts"]) for row in found]

    def work(delivery_id: str) -> None:
        def send(due: str) -> None:
            deliver(node.db, node.spool, node.settings, due, "worker", node.now, patient)

        lanes.run(node.db, delivery_id, send, node.now, stopping)

    waiting = sorted(deliveries.listing(node.db), key=lambda row: str(row["destination"]))
    assert waiting[0]["destination"] == "away"
    with ThreadPoolExecutor(3) as threads:
        ended = [threads.submit(work, str(row["id"])) for row in waiting]
        deadline = time.monotonic() + 50
        while states("pacs") != [("SENT", 1)] * 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        while_it_hung = states("away")
        silent.close()
        for one in ended:
            one.result()
    assert states("pacs") == [("SENT", 1)] * 8
    assert sorted(while_it_hung, key=str) == [("PENDING", 0)] * 6 + [("SENDING", 1)] * 2
    assert states("away") == [("PENDING", 1)] * 8, "nobody forgets those whose message found the lane full"


def test_a_changed_or_missing_file_is_never_sent(node: Node, pacs: Pacs) -> None:
    sr, seg = file_study(node, STUDY)
    changed = node.spool.path(str(deliveries.show(node.db, sr)["path"]))
    changed.chmod(0o600)
    changed.write_bytes(changed.read_bytes().replace(b"AI result", b"AI RESULT"))
    node.spool.path(str(deliveries.show(node.db, seg)["path"])).unlink()
    for delivery_id in (sr, seg):
        row = run(node, delivery_id)
        assert (row["state"], row["last_status"]) == ("DEAD", "FILE")
    assert not pacs.received


def test_a_destination_that_is_gone_from_the_settings_is_dead(node: Node) -> None:
    delivery_id = file_study(node, STUDY)[0]
    node.settings = node.settings.model_copy(update={"destination": {}})
    row = run(node, delivery_id)
    assert row["state"] == "DEAD"
    assert "no destination pacs" in str(row["reason"])


def test_two_workers_send_once(node: Node, pacs: Pacs) -> None:
    delivery_id = file_study(node, STUDY)[0]
    arguments = (node.db, node.spool, node.settings, delivery_id)
    threads = [threading.Thread(target=deliver, args=(*arguments, f"w{n}", node.now, QUICK)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pacs.received) == 1


KILLED_BEFORE_COMMIT = """
import os, signal, sys
from pathlib import Path
from node.store import deliveries
from tests.filed import NOW, make_node
from workers.send.outbox import deliver

node = make_node(Path(sys.argv[1]), int(sys.argv[2]))
deliveries.sent = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
deliver(node.db, node.spool, node.settings, sys.argv[3], "victim", lambda: NOW)
"""


def test_killed_between_the_answer_and_the_commit_the_pacs_holds_one(node: Node, pacs: Pacs, tmp_path: Path) -> None:
    delivery_id = file_study(node, STUDY)[0]
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED_BEFORE_COMMIT, str(tmp_path), str(pacs.port), delivery_id]
    killed = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(pacs.received) == 1
    assert deliveries.show(node.db, delivery_id)["state"] == "SENDING"
    assert deliveries.expire(node.db, NOW + 61) == 1
    node.at = NOW + 62
    row = run(node, delivery_id)
    assert row["state"] == "SENT"
    receptions = pacs.receptions(str(row["sop_instance_uid"]))
    assert len(receptions) == 2
    assert len({r.sha256 for r in receptions}) == 1
    assert list(pacs.held) == [row["sop_instance_uid"]]
