"""STOW-RS over real HTTP: what is stored, refused and answered (PS3.18 §10.5)."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from xml.dom import minidom

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file

from node.accept import request as judged
from node.accept.stow import Limits
from node.store import segments
from tests.protocol.listening import associated, store
from tests.protocol.stowing import (
    BOUNDARY,
    FORM,
    JSON,
    HttpNode,
    multipart,
    part10,
    request,
    rows,
    serving,
)
from tests.unit.encoded import CT, EXPLICIT, dataset, image

TOKEN = "correct horse battery"  # noqa: S105 - of a node that lives for a test


@pytest.fixture
def node(tmp_path: Path) -> Iterator[HttpNode]:
    with serving(tmp_path) as running:
        yield running


def two(uid: str = "1.2.3.5") -> bytes:
    """A second instance of the same series."""
    return part10(dataset(uids={0x00080018: uid}), sop_instance=uid)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_dicomweb_client_stores_and_reads_the_answer(node: HttpNode) -> None:
    datasets = [pydicom.dcmread(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm")]
    answer = DICOMwebClient(node.url).store_instances(datasets)
    stored = {item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence}
    assert stored == {ds.SOPInstanceUID for ds in datasets}
    assert all("RetrieveURL" in item for item in answer.ReferencedSOPSequence)
    assert "FailedSOPSequence" not in answer
    assert {row["sop_instance_uid"] for row in rows(node)} == stored
    assert {row["calling_ae"] for row in rows(node)} == {"STOW"}
    for row in rows(node):
        assert pydicom.dcmread(node.node.spool.path(row["path"])).SOPInstanceUID == row["sop_instance_uid"]


def test_dicomweb_client_stores_into_a_study_and_with_a_token(tmp_path: Path) -> None:
    ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    with serving(tmp_path, token=TOKEN) as node:
        client = DICOMwebClient(node.url, headers=node.headers)
        answer = client.store_instances([ds], study_instance_uid=ds.StudyInstanceUID)
        assert len(answer.ReferencedSOPSequence) == 1
        with pytest.raises(Exception, match="401"):
            DICOMwebClient(node.url).store_instances([ds])
        for wrong in ("Bearer correct horse", "Bearer", "Basic Y29ycmVjdA==", ""):
            assert node.post(multipart(part10()), Authorization=wrong).status_code == 401
        assert len(rows(node)) == 1


@pytest.mark.parametrize("first", ["stow", "c-store"])
def test_an_instance_through_both_doors_is_one_instance(node: HttpNode, first: str) -> None:
    data = image(64, 64)
    for door in ("stow", "c-store") if first == "stow" else ("c-store", "stow"):
        if door == "stow":
            assert node.store(part10(data)) == (200, [])
        else:
            with associated(node.node.port, [(CT, [EXPLICIT])]) as assoc:
                assert store(assoc, data) == 0
    (row,) = rows(node)
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    (file,) = node.node.files()
    assert file.read_bytes().endswith(data)
    assert row["calling_ae"] == ("STOW" if first == "stow" else "CT1")


def test_what_comes_with_the_file_is_checked_and_not_kept(node: HttpNode) -> None:
    data = dataset()
    for preamble in (b"MZ".ljust(128, b"\x90"), b"#!/bin/sh\n".ljust(128), b"\x7fELF".ljust(128, b"\1")):
        assert node.store(part10(data, preamble=preamble, group_length=7)) == (200, [])
    (file,) = node.node.files()
    content = file.read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    assert content.endswith(data)
    meta = pydicom.dcmread(BytesIO(content)).file_meta
    assert (meta.SourceApplicationEntityTitle, meta.TransferSyntaxUID) == ("STOW", EXPLICIT)


def test_a_good_and_a_bad_one_are_202_with_decimal_reasons(node: HttpNode) -> None:
    bad = part10(dataset(without=0x0020000D, uids={0x00080018: "1.2.3.9"}), sop_instance="1.2.3.9")
    answer = node.post(multipart(part10(), bad, b"not DICOM at all", two()))
    assert answer.status_code == 202
    assert answer.headers["content-type"] == JSON
    assert answer.json() == {
        "00081190": {"vr": "UR"},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CT]},
                    "00081155": {"vr": "UI", "Value": ["1.2.3.9"]},
                    "00081197": {"vr": "US", "Value": [43264]},
                }
            ],
        },
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CT]},
                    "00081155": {"vr": "UI", "Value": [uid]},
                    "00081190": {"vr": "UR"},
                }
                for uid in ("1.2.3.4", "1.2.3.5")
            ],
        },
        "0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [49152]}}]},
    }
    assert len(rows(node)) == 2


def test_the_answer_is_xml_where_that_is_asked_for(node: HttpNode) -> None:
    answer = node.post(multipart(part10(), b"junk"), Accept="application/dicom+xml")
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/dicom+xml")
    root = minidom.parseString(answer.content).documentElement  # noqa: S318 - our own answer
    attributes = {node.getAttribute("keyword"): node for node in root.childNodes}
    assert attributes.keys() == {"RetrieveURL", "ReferencedSOPSequence", "OtherFailuresSequence"}
    values = [v.firstChild.nodeValue for v in attributes["ReferencedSOPSequence"].getElementsByTagName("Value")]
    assert values == [CT, "1.2.3.4"]
    for accept in ("*/*", "application/json", "application/dicom+xml, application/dicom+json;q=0.5", ""):
        assert node.post(multipart(part10()), Accept=accept).headers["content-type"] == JSON
    assert node.post(multipart(part10()), Accept="text/html").status_code == 406
    assert node.post(multipart(part10()), Accept="application/dicom+json;q=0").status_code == 406


def test_a_study_in_the_address_is_the_only_one_taken(node: HttpNode) -> None:
    other = part10(dataset(uids={0x0020000D: "1.2.9", 0x00080018: "1.2.9.1"}), sop_instance="1.2.9.1")
    assert node.store(other, path="/studies/1.2.3") == (409, [0xA900])
    assert node.store(part10(), other, path="/studies/1.2.3/") == (202, [0xA900])
    assert node.store(part10(), path="/studies/1.2.3") == (200, [])
    assert [row["study_instance_uid"] for row in rows(node)] == ["1.2.3"]


def test_large_instances_go_over_the_disk_and_leave_nothing_there(tmp_path: Path) -> None:
    data = image(1024, 1024)
    with serving(tmp_path, Limits(in_memory=64 * 1024)) as node:
        open_files = open_descriptors()
        for _ in range(5):
            assert node.store(part10(data), two()) == (200, [])
        bad = data[: len(data) // 2]
        assert node.store(part10(bad)) == (409, [0xC000])
        assert open_descriptors() <= open_files + 8  # lingering connections, no files
        assert not node.node.left_over()
        digests = {row["sha256"] for row in rows(node)}
        assert hashlib.sha256(data).hexdigest() in digests
        assert all(node.node.spool.verify(row["path"], row["sha256"]) for row in rows(node))


def test_a_full_disk_is_503_and_later_and_keeps_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, refuse_below=2**62) as node:
        answer = node.post(multipart(part10()))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert not list(node.node.files())


def test_a_disk_that_fills_on_the_way_is_503_with_the_reasons(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "_write_all", full)
    answer = node.post(multipart(part10(), two()))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    failed = answer.json()["00081198"]["Value"]
    assert [item["00081197"]["Value"] for item in failed] == [[42752], [42752]]
    monkeypatch.undo()
    assert node.store(part10(), two()) == (200, [])


def test_a_stopping_node_is_503(node: HttpNode) -> None:
    assert node.node.listener.stow._door.close(1)
    assert node.store(part10()) == (503, [0xA700])


def test_more_requests_than_there_are_threads_are_503(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(at_once=1)) as node, httpx.Client() as client:
        body = multipart(part10())

        def slowly() -> Iterator[bytes]:
            yield body[:50]
            answer = node.post(body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            yield body[50:]

        answer = client.post(f"{node.url}/studies", content=slowly(), headers={"Content-Type": FORM}, timeout=30)
        assert answer.status_code == 200
        assert node.store(part10()) == (200, [])


def test_what_the_resource_can_do(node: HttpNode) -> None:
    for path in ("", "/", "/studies", "/studies/1.2.3"):
        answer = httpx.options(f"{node.url}{path}", follow_redirects=True)
        assert (answer.status_code, answer.headers["allow"]) == (200, "OPTIONS, POST")
        described = minidom.parseString(answer.content)  # noqa: S318 - our own answer
        assert described.getElementsByTagName("method")[0].getAttribute("name") == "POST"
    statuses = {int(s) for r in described.getElementsByTagName("response") for s in r.getAttribute("status").split()}
    assert statuses == set(judged.STATUSES) - {404, 405}


def test_pages_of_other_sites_cannot_store(node: HttpNode) -> None:
    own = f"http://127.0.0.1:{node.port}"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert node.post(multipart(part10()), **headers).status_code == 403
    assert node.post(multipart(part10()), Host="evil.example").status_code == 400
    assert node.post(multipart(part10()), Origin=own).status_code == 200


def test_every_request_is_counted_and_audited(node: HttpNode) -> None:
    node.post(multipart(part10(), two(), b"junk"))
    node.post(b"", Content_Type="text/html")
    page = node.node.metrics.render()
    assert 'wetread_stow_requests_total{status="202"} 1' in page
    assert 'wetread_stow_requests_total{status="415"} 1' in page
    assert 'wetread_stow_instances_total{reason="0000"} 2' in page
    assert 'wetread_stow_instances_total{reason="C000"} 1' in page
    lines = [json.loads(line) for line in node.node.audit.read_text().splitlines()]
    (transferred,) = [line for line in lines if line["event"] == "110104"]
    assert (transferred["count"], transferred["calling_ae"]) == (2, "STOW")
    assert transferred["address"] == "127.0.0.1"


def test_the_body_may_come_in_any_pieces(node: HttpNode) -> None:
    body = b"preamble\r\n" + multipart(part10(), two()) + b"epilogue"

    def pieces() -> Iterator[bytes]:
        yield from (body[at : at + 37] for at in range(0, len(body), 37))

    assert node.post(pieces()).status_code == 200
    quoted = f'multipart/related; boundary="{BOUNDARY}"; type=application/dicom; start="<1>"'
    assert node.post(body, Content_Type=quoted).status_code == 200
    assert len(rows(node)) == 2


def test_stopping_lets_go_of_a_sender_that_is_in_the_middle(tmp_path: Path) -> None:
    with serving(tmp_path) as node:
        connection = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        head = request(f"Content-Type: {FORM}", "Content-Length: 100000")
        connection.sendall(head + multipart(part10(), two())[:-100])
        deadline = time.monotonic() + 10
        while not list(node.node.files()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    while [thread for thread in threading.enumerate() if thread.name.startswith("stow")]:  # they see it and end
        assert time.monotonic() - started < 20
        time.sleep(0.01)
    with connection, suppress(ConnectionResetError):
        assert b"HTTP/1.1 200" not in connection.recv(4096)
