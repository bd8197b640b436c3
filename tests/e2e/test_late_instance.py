"""A late instance makes a second revision whose SR names its predecessor; our own results coming back make none.

The route asks for Parametric Maps, too: they reach the PACS with the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage, SegmentationStorage

from node.simulate import phantoms, scanner
from node.simulate.pacs import Pacs
from tests.e2e import wetread_node
from tests.e2e.orthanc import free_port
from tests.e2e.wetread_node import WetreadNode

QUIET_S = 3.0
"""What `wetread_node.CONFIG` says."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WetreadNode, Pacs]]:
    folder = tmp_path_factory.mktemp("node")
    port = free_port()
    shipped = (wetread_node.ROOT / "config" / "routes.toml").read_text().replace('"report"', '"never"')
    with (
        Pacs(folder / "pacs", ae_title="SIM_PACS", peers={"WETREAD": ("127.0.0.1", port)}) as pacs,
        wetread_node.running(
            folder, port, ("SIM_PACS", pacs.port), free_port(), routes=shipped.replace('"SC"]', '"SC", "PM"]')
        ) as running,
    ):
        yield running, pacs


def test_a_late_slice_is_read_again_and_results_that_come_back_are_not(node: tuple[WetreadNode, Pacs]) -> None:
    running, pacs = node
    slices, _ = phantoms.volume(modality="MR")
    study_uid = str(slices[0].StudyInstanceUID)
    push(running, slices[:-1])
    wait_for_revision(running, study_uid, 1)
    (first,) = results(pacs, "SR")
    assert "PredecessorDocumentsSequence" not in first
    require_maps(running, pacs, first)

    push(running, slices[-1:])
    wait_for_revision(running, study_uid, 2)
    (second,) = (sr for sr in results(pacs, "SR") if sr.SOPInstanceUID != first.SOPInstanceUID)
    assert named(second.PredecessorDocumentsSequence) == {str(first.SOPInstanceUID)}
    require_maps(running, pacs, second)
    evidence = named(second.CurrentRequestedProcedureEvidenceSequence)
    assert {str(ds.SOPInstanceUID) for ds in slices} <= evidence
    segs = {str(seg.SOPInstanceUID): seg for seg in results(pacs, "SEG")}
    assert len(segs) == 2
    assert len(evidence & segs.keys()) == 1, "the new SR rests on the new SEG alone"

    before_push = {uid: entry.sha256 for uid, entry in pacs.held.items()}
    before = running.wetread("studies", "show", study_uid)
    report = scanner.send(pacs.archive.folder, "127.0.0.1", running.port, ae="SIM_PACS")
    assert report.ok
    assert len(report.sent) == len(before_push) >= 8
    time.sleep(2 * QUIET_S)  # a study that was reopened would be complete again by now
    after = running.wetread("studies", "show", study_uid)
    assert (after["state"], after["revision"], len(after["jobs"])) == ("DONE", 2, 2)
    assert after["last_received_at"] == before["last_received_at"]
    assert {uid: entry.sha256 for uid, entry in pacs.held.items()} == before_push
    assert {row["study_instance_uid"] for row in running.wetread("studies", "list")} == {study_uid}


def require_maps(running: WetreadNode, pacs: Pacs, sr: Dataset) -> None:
    """Each segment that was found has its map in the PACS: whole, committed, and named by the SR."""
    evidence = named(sr.CurrentRequestedProcedureEvidenceSequence)
    ours = [ds for ds in held(pacs) if ds.SOPInstanceUID in evidence]
    (seg,) = (ds for ds in ours if ds.SOPClassUID == SegmentationStorage)
    maps = [ds for ds in ours if ds.SOPClassUID == ParametricMapStorage]
    assert len(maps) == len(seg.SegmentSequence) >= 1
    for ds in maps:
        values = np.frombuffer(ds.FloatPixelData, np.float32)
        assert values.size == ds.NumberOfFrames * ds.Rows * ds.Columns
        assert 0 < values.max() <= 1
        question = "SELECT state FROM delivery WHERE sop_instance_uid = :uid"
        assert running.ask(question, uid=str(ds.SOPInstanceUID)) == [{"state": "COMMITTED"}]


def push(running: WetreadNode, slices: list[Dataset]) -> None:
    assert scanner.send(slices, "127.0.0.1", running.port, ae="STORESCU").ok


def wait_for_revision(running: WetreadNode, study_uid: str, revision: int) -> None:
    done = "SELECT revision FROM study WHERE study_instance_uid = :uid AND state = 'DONE'"

    def there() -> bool:
        return running.ask(done, uid=study_uid) == [{"revision": revision}]

    running.wait(there, 180, lambda: f"revision {revision} is DONE")


def results(pacs: Pacs, modality: str) -> list[Dataset]:
    return [ds for ds in held(pacs) if modality == ds.Modality]


def held(pacs: Pacs) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in pacs.archive.folder.rglob("*.dcm")]


def named(studies: Any) -> set[str]:
    """The SOP Instance UIDs in a Hierarchical SOP Instance Reference Macro (PS3.3 §C.17.2.1)."""
    items = (
        item for study in studies for series in study.ReferencedSeriesSequence for item in series.ReferencedSOPSequence
    )
    return {str(item.ReferencedSOPInstanceUID) for item in items}
