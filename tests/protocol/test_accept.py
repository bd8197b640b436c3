"""The listener's services on real associations: what is accepted, answered and kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID
from pynetdicom import build_role

from node import uids
from node.accept import contexts
from node.accept.alerts import LINES
from node.settings import NodeSettings, Peer, Settings
from node.store import deliveries
from node.store.db import Database
from tests import dcmtk
from tests.protocol.listening import (
    VERIFICATION,
    Node,
    associate,
    associate_rq,
    associated,
    connect,
    listening,
    store,
)  # fmt: skip
from tests.unit.encoded import CT, EXPLICIT, IMPLICIT, JPEG, dataset, fragments, image, nested, text, us

COMPRESSED = [
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5", JPEG,
]  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with listening(tmp_path) as found:
        yield found


def test_echo(node: Node) -> None:
    assert node.echo() == 0x0000


def test_echo_by_dcmtk(node: Node) -> None:
    echoscu = dcmtk.find("echoscu")
    if echoscu is None:
        pytest.skip("DCMTK's echoscu is not on PATH")
    done = subprocess.run([echoscu, "-aec", "WETREAD", "127.0.0.1", str(node.port)], check=False, timeout=30)
    assert done.returncode == 0


def test_store_by_dcmtk_and_by_implicit_order(node: Node, tmp_path: Path) -> None:
    storescu = dcmtk.find("storescu")
    if storescu is None:
        pytest.skip("DCMTK's storescu is not on PATH")
    file = tmp_path / "a.dcm"
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = CT, "1.2.3.4", "1.2.3", "1.2.3.1"
    ds.file_meta = Dataset()  # type: ignore[assignment]
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    dcmwrite(file, ds, enforce_file_format=True)
    command = [storescu, "-aec", "WETREAD", "127.0.0.1", str(node.port), str(file)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0
    assert [row["sop_instance_uid"] for row in node.instances()] == ["1.2.3.4"]


def test_explicit_little_endian_is_chosen_whatever_the_peers_order(node: Node) -> None:
    with associated(node.port, [(CT, [IMPLICIT, EXPLICIT])]) as assoc:
        assert assoc.accepted_contexts[0].transfer_syntax == [EXPLICIT]


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_a_compressed_instance_is_kept_byte_for_byte(node: Node, syntax: str) -> None:
    data = dataset(fragments(b"\xff\xd8codestream\xff\xd9"))
    with associated(node.port, [(CT, [syntax])]) as assoc:
        assert store(assoc, data, syntax=syntax) == 0x0000
    (path,) = node.files()
    assert path.name == f"{hashlib.sha256(data).hexdigest()}.dcm"
    assert path.read_bytes().endswith(data)
    assert node.instances()[0]["transfer_syntax_uid"] == syntax


def test_objects_of_every_kind_are_accepted(node: Node) -> None:
    kinds = [f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("66.7", "66.4", "30", "88.34", "88.59", "11.1", "104.1")]
    with associated(node.port, [(kind, [EXPLICIT]) for kind in kinds]) as assoc:
        assert len(assoc.accepted_contexts) == len(kinds)


def test_deflated_big_endian_and_dicomdir_are_refused_in_the_negotiation(node: Node) -> None:
    offers = [(VERIFICATION, [EXPLICIT]), (CT, ["1.2.840.10008.1.2.1.99"]), ("1.2.840.10008.1.3.10", [EXPLICIT])]
    offers.append(("1.2.840.10008.5.1.4.1.1.4", ["1.2.840.10008.1.2.2"]))
    with associated(node.port, offers) as assoc:
        results = {str(c.abstract_syntax): c.result for c in assoc.rejected_contexts}
        assert results == {CT: 4, "1.2.840.10008.1.3.10": 3, "1.2.840.10008.5.1.4.1.1.4": 4}


def test_an_association_without_any_accepted_context_does_no_harm(node: Node) -> None:
    assoc = associate(node.port, [(CT, ["1.2.840.10008.1.2.1.99"])])
    assert not assoc.accepted_contexts
    assoc.abort()
    assert node.echo() == 0x0000


def test_we_say_who_we_are(node: Node) -> None:
    with associated(node.port, [(VERIFICATION, [EXPLICIT])]) as assoc:
        assert assoc.acceptor.implementation_class_uid == uids.IMPLEMENTATION_CLASS_UID
        assert assoc.acceptor.implementation_version_name == uids.IMPLEMENTATION_VERSION_NAME


def test_an_acknowledged_instance_is_indexed(node: Node) -> None:
    with associated(node.port, [(CT, [EXPLICIT])], calling="SCANNER 1") as assoc:
        assert store(assoc, image()) == 0x0000
    (row,) = node.instances()
    assert row["sha256"] == hashlib.sha256(image()).hexdigest()
    assert (row["study_instance_uid"], row["series_instance_uid"], row["calling_ae"]) == (
        "1.2.3",
        "1.2.3.1",
        "SCANNER 1",
    )
    assert node.spool.verify(row["path"], row["sha256"])


def test_the_same_instance_twice_is_one(node: Node) -> None:
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert [store(assoc, image()) for _ in range(3)] == [0, 0, 0]
    assert len(node.instances()) == 1
    assert len(node.files()) == 1


def test_our_own_result_come_back_is_kept_but_marked(node: Node) -> None:
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert store(assoc, dataset(uids={0x00080014: uids.INSTANCE_CREATOR_UID})) == 0x0000
    assert node.instances()[0]["is_own_result"] == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (image()[:-7], 0xC000),
        (dataset() + b"trailing garbage", 0xC000),
        (dataset(nested(300)), 0xC000),
        (dataset(uids={0x0020000D: "../../etc/x"}), 0xC000),
        (dataset(without=0x0020000D), 0xA900),
        (dataset(without=0x00080018), 0xA900),
        (dataset(uids={0x00080016: "1.2.840.10008.5.1.4.1.1.4"}), 0xA900),
        (dataset(uids={0x00080018: "1.2.3.5"}), 0xA900),
        (image(pixels=46), 0xA900),
        (dataset(us(0x00280010, 0)), 0x0000),
        (dataset(text(0x00080005, "CS", "ISO_IR 9999") + text(0x00100010, "PN", "<script>")), 0x0000),
    ],
    ids=[
        "cut",
        "garbage",
        "deep",
        "path",
        "no study",
        "no instance",
        "class",
        "instance",
        "pixels",
        "rows 0",
        "charset",
    ],
)
def test_statuses(node: Node, data: bytes, status: int) -> None:
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert store(assoc, data) == status
        assert store(assoc, image()) == 0x0000  # the association goes on
    kept = 2 if status == 0x0000 else 1
    assert len(node.files()) == kept
    assert node.echo() == 0x0000


@pytest.mark.parametrize("uid", ["../../etc/passwd", "/abs", "1.02.3", "1" * 66, "a;rm -rf"])
def test_a_uid_that_is_none_is_c000_and_no_path(node: Node, uid: str, tmp_path: Path) -> None:
    before = {p for p in tmp_path.rglob("*") if p.is_file() and "state" not in p.parts}
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert store(assoc, dataset(uids={0x00080018: uid}), sop_instance=uid) == 0xC000
    assert {p for p in tmp_path.rglob("*") if p.is_file() and "state" not in p.parts} == before
    assert not node.files()


def test_a_spool_below_its_watermark_answers_a700_and_the_association_stays(tmp_path: Path) -> None:
    with (
        listening(tmp_path, refuse_below=2**62) as node,
        associated(node.port, [(CT, [EXPLICIT]), (VERIFICATION, [EXPLICIT])]) as assoc,
    ):
        assert store(assoc, image()) == 0xA700
        assert assoc.send_c_echo().Status == 0x0000
        assert not node.files()


@pytest.mark.parametrize(
    ("calling", "called", "rejection"),
    [("CT1", "OTHER", (1, 1, 7)), ("STRANGER", "WETREAD", (1, 1, 3)), ("PACS", "WETREAD", (1, 1, 3))],
    ids=["called", "calling", "address"],
)
def test_who_is_not_a_peer_is_rejected(
    tmp_path: Path, calling: str, called: str, rejection: tuple[int, int, int]
) -> None:
    peers = (
        Peer(name="CT", ae_title="CT1", address="127.0.0.0/8"),
        Peer(name="PACS", ae_title="PACS", address="10.0.0.9"),
    )
    settings = Settings(node=NodeSettings(port=0), peer=peers)
    with listening(tmp_path, settings=settings) as node:
        for _ in range(20):  # pynetdicom's requestor takes a rejection that is very quick for a failed connection
            assoc = associate(node.port, [(CT, [EXPLICIT])], calling=calling, called=called)
            if assoc.is_rejected:
                break
        answer = assoc.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == rejection
        assert node.echo() == 0x0000  # a peer gets in
        line = [json.loads(x) for x in node.audit.read_text().splitlines() if '"110113"' in x][-1]
        assert (line["calling_ae"], line["outcome"]) == (calling, 8)


def test_a_stranger_who_tries_again_and_again_fills_neither_trail_nor_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(LINES + 12):
        with connect(node.port, associate_rq().replace(b"WETREAD", b"NOBODY!")) as stranger:
            assert stranger.recv(1) == b"\x03"  # A-ASSOCIATE-RJ
    assert node.echo() == 0x0000
    node.listener.stop(5)
    lines = [json.loads(x) for x in node.audit.read_text().splitlines() if '"110113"' in x]
    assert [line.get("called_ae") for line in lines] == ["NOBODY!"] * LINES + [None]
    assert (lines[-1]["reason"], lines[-1]["count"]) == ("association rejected, 12 times more", 12)
    assert sum(getattr(r, "action", "") == "association_rejected" for r in caplog.records) == LINES
    page = node.metrics.render()
    assert f'wetread_associations_total{{peer="local",result="rejected"}} {LINES + 12}' in page


def test_every_study_received_is_audited_and_counted(node: Node) -> None:
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        for n in range(5):
            data = dataset(uids={0x0020000D: f"1.2.{n % 2}", 0x00080018: f"1.2.9.{n}"})
            assert store(assoc, data, sop_instance=f"1.2.9.{n}") == 0x0000
        assert store(assoc, b"x" * 64) == 0xC000
    node.listener.stop(5)
    lines = [json.loads(x) for x in node.audit.read_text().splitlines()]
    received = {x["study_instance_uid"]: x["count"] for x in lines if x["event"] == "110104"}
    assert received == {"1.2.0": 3, "1.2.1": 2}
    page = node.metrics.render()
    assert 'wetread_instances_total{peer="local",status="0000"} 5' in page
    assert 'wetread_instances_total{peer="local",status="C000"} 1' in page
    assert 'wetread_associations_total{peer="local",result="accepted"} 1' in page


def test_stopping_answers_first_and_a_stopped_node_is_gone(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        assoc = associate(node.port, [(CT, [EXPLICIT])])
        assert store(assoc, image()) == 0x0000
        node.listener.stop(5)
        assert not node.listener.is_alive()
        assert len(node.instances()) == 1
        assert not associate(node.port, [(CT, [EXPLICIT])]).is_established


def commitment(transaction_uid: str, stored: list[str], failed: list[str] = []) -> Dataset:  # noqa: B006 - read only
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    for name, instances in (("ReferencedSOPSequence", stored), ("FailedSOPSequence", failed)):
        items = []
        for uid in instances:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
            if name == "FailedSOPSequence":
                item.FailureReason = 0x0112
            items.append(item)
        if items:
            setattr(ds, name, items)
    return ds


def test_a_commitment_report_on_an_association_of_the_pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, committed = [], deliveries.committed

    def listen_in(db: Database, transaction_uid: str, stored: Sequence[str], failed: dict[str, int], now: float) -> int:
        heard.append((transaction_uid, stored, failed))
        return committed(db, transaction_uid, stored, failed, now)

    monkeypatch.setattr(deliveries, "committed", listen_in)
    role = build_role(contexts.STORAGE_COMMITMENT, scu_role=False, scp_role=True)
    offer = [(contexts.STORAGE_COMMITMENT, [EXPLICIT])]
    with listening(tmp_path) as node, associated(node.port, offer, calling="PACS", ext_neg=[role]) as assoc:
        assert assoc.accepted_contexts[0].as_scp

        def report(information: Dataset, event_type: int) -> int:
            sop_class, instance = contexts.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
            return int(assoc.send_n_event_report(information, event_type, sop_class, instance)[0].Status)

        assert report(commitment("1.2.77", ["1.2.3.4"]), 1) == 0x0000  # unknown to us, and no fault of the PACS
        assert report(commitment("1.2.78", ["1.2.3.4"], ["1.2.3.5"]), 2) == 0x0000
        gaps = commitment("1.2.79", ["1.2.3.4"], ["1.2.3.5"])
        del gaps.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        gaps.FailedSOPSequence[0].FailureReason = None
        assert report(gaps, 2) == 0x0000
        assert report(commitment("", ["1.2.3.4"]), 1) == 0x0115
        assert report(commitment("1.2.77", ["1.2.3.4"]), 9) == 0x0113
    assert heard == [
        ("1.2.77", ("1.2.3.4",), {}),
        ("1.2.78", ("1.2.3.4",), {"1.2.3.5": 0x0112}),
        ("1.2.79", ("",), {"1.2.3.5": 0x0110}),
    ]


def test_a_commitment_report_the_database_cannot_take_is_asked_for_again(
    node: Node,
) -> None:
    with node.db.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE delivery RENAME TO gone")
    role = build_role(contexts.STORAGE_COMMITMENT, scu_role=False, scp_role=True)
    with associated(node.port, [(contexts.STORAGE_COMMITMENT, [EXPLICIT])], calling="PACS", ext_neg=[role]) as assoc:
        sop_class, instance = contexts.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
        answer, _ = assoc.send_n_event_report(commitment("1.2.77", ["1.2.3.4"]), 1, sop_class, instance)
        assert answer.Status == 0x0110


def test_nobody_can_make_us_commit(node: Node) -> None:
    with associated(node.port, [(contexts.STORAGE_COMMITMENT, [EXPLICIT])]) as assoc:
        status, _ = assoc.send_n_action(
            commitment("1.2.77", ["1.2.3.4"]), 1, contexts.STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
        )
        assert status.Status == 0x0211
