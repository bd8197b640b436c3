"""Orthanc's DICOMweb plugin as the sender: its own STOW-RS client pushes a study through the node's second door."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file

from tests.e2e import orthanc
from tests.e2e.orthanc import Orthanc
from tests.protocol.stowing import HttpNode, rows, serving

NAMES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "waveform_ecg.dcm")
TOKEN = "correct horse battery"  # noqa: S105 - of a node that lives for a test


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, HttpNode]]:
    if lacking := orthanc.missing():
        pytest.skip(f"not installed: {lacking}")
    folder = tmp_path_factory.mktemp("pair")
    (folder / "pacs").mkdir()
    with (
        serving(folder / "node", token=TOKEN) as node,
        orthanc.running(folder / "pacs", node.node.port) as pacs,
    ):
        yield pacs, node


def push(pacs: Orthanc, node: HttpNode, ids: list[str], *, chunked: bool, token: str = TOKEN) -> httpx.Response:
    """Make Orthanc send instances it holds; its answer."""
    server = {
        "Url": f"{node.url}/",
        "ChunkedTransfers": "1" if chunked else "0",
        "Username": "orthanc",
        "Password": token,
    }
    httpx.put(f"{pacs.url}/dicom-web/servers/node", json=server).raise_for_status()
    job = {"Resources": ids, "Synchronous": True}
    return httpx.post(f"{pacs.url}/dicom-web/servers/node/stow", json=job, timeout=60)


def upload(pacs: Orthanc, name: str) -> str:
    data = Path(str(get_testdata_file(name))).read_bytes()
    return str(httpx.post(f"{pacs.url}/instances", content=data).raise_for_status().json()["ID"])


@pytest.mark.parametrize("chunked", [False, True])
def test_orthanc_pushes_what_it_holds(pair: tuple[Orthanc, HttpNode], chunked: bool) -> None:
    pacs, node = pair
    ids = [upload(pacs, name) for name in NAMES]
    answer = push(pacs, node, ids, chunked=chunked)
    assert answer.status_code == 200, answer.text
    index = {row["sop_instance_uid"]: row for row in rows(node)}
    assert len(index) == len(NAMES)
    for name in NAMES:
        ds = pydicom.dcmread(str(get_testdata_file(name)))
        row = index[ds.SOPInstanceUID]
        held = pacs.instance(ds.SOPInstanceUID)
        data = held[144 + int.from_bytes(held[140:144], "little") :]
        assert row["sha256"] == hashlib.sha256(data).hexdigest(), name
        assert row["transfer_syntax_uid"] == ds.file_meta.TransferSyntaxUID


def test_orthanc_is_told_when_an_instance_is_refused_or_the_token_is_wrong(pair: tuple[Orthanc, HttpNode]) -> None:
    pacs, node = pair
    contradicts_its_meta = upload(pacs, "rtdose.dcm")
    assert push(pacs, node, [contradicts_its_meta], chunked=True).status_code != 200
    good = upload(pacs, NAMES[0])
    assert push(pacs, node, [good], chunked=True, token="wrong").status_code != 200  # noqa: S106
    assert push(pacs, node, [good], chunked=True).status_code == 200
