"""A real Orthanc is asked what it has of a study, and what is not here is fetched from it by C-MOVE and by C-GET."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from node.daemon import Node, Pace
from node.settings import Routes, Settings
from node.simulate import phantoms, scanner
from node.store import completion, studies
from tests.e2e import orthanc
from tests.e2e.orthanc import Orthanc

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Hospital:
    """Orthanc, and the port at which it expects a node."""

    pacs: Orthanc
    node_port: int

    def introduce(self, ae_title: str, port: int | None = None, **may: bool) -> None:
        """Enter an AE into Orthanc's list of modalities, at the node's port or another."""
        entry = {"AET": ae_title, "Host": "127.0.0.1", "Port": port or self.node_port} | may
        httpx.put(f"{self.pacs.url}/modalities/{ae_title}", json=entry).raise_for_status()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    if lacking := orthanc.missing():
        pytest.skip(f"not installed: {lacking}")
    folder, port = tmp_path_factory.mktemp("pacs"), orthanc.free_port()
    with orthanc.running(folder, port, {"DicomModalities": {}, "DicomCheckModalityHost": False}) as pacs:
        yield Hospital(pacs, port)


@contextmanager
def running(
    folder: Path, hospital: Hospital, fetch: str, ae_title: str = "WETREAD", attempts: int = 1
) -> Iterator[Node]:
    """A whole node whose archive is Orthanc; silence alone would never make a study complete here."""
    rules = {
        "quiet_period": "1 s", "max_wait": "10 min", "quiet_weight": 0.0, "archive": "pacs", "fetch": fetch,
        "fetch_attempts": attempts, "fetch_timeout": "30 s",
    }  # fmt: skip
    settings = Settings.model_validate(
        {
            "node": {"port": hospital.node_port, "ae_title": ae_title},
            "web": {"port": orthanc.free_port()},
            "completeness": rules,
            "destination": {
                "pacs": {"host": "127.0.0.1", "port": hospital.pacs.dicom_port, "ae_title": hospital.pacs.ae_title}
            },
            "database": {"url": f"sqlite:///{folder}/wetread.db"},
            "spool": {"url": folder / "state" / "spool"},
        }
    )
    with Node(settings, Routes(), Pace(settle=0.2)) as node:
        yield node


def series(count: int, shape: tuple[int, int] = (16, 16), study: str = "") -> list[Dataset]:
    """Return `count` small images of a new series, and of a new study if none is named."""
    images = phantoms.volume(modality="MR", shape=(count, *shape))[0]
    study_uid, series_uid = study or generate_uid(), generate_uid()
    for ds in images:
        ds.PatientID = "ONE"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return images


def compressed(study: str) -> Dataset:
    """Return a JPEG 2000 image of this study, under another Patient ID: Orthanc counts it apart."""
    ds = pydicom.dcmread(str(get_testdata_file("JPEG2000.dcm")))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return ds


def send(images: list[Dataset], hospital: Hospital, called: str = "") -> str:
    """Send to Orthanc, or to the AE `called`; return the study."""
    port, title = (hospital.node_port, called) if called else (hospital.pacs.dicom_port, hospital.pacs.ae_title)
    assert scanner.send(images, "127.0.0.1", port, called=title).ok
    return str(images[0].StudyInstanceUID)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def state(node: Node, study_uid: str) -> str:
    return str(next((s["state"] for s in studies.listing(node.db) if s["study_instance_uid"] == study_uid), ""))


def note(node: Node, study_uid: str) -> str:
    """Return what is known of the archive and its study."""
    found = completion.waiting(node.db, time.time(), 0.0, 0.0)
    return next((known.note for known in found if known.study_instance_uid == study_uid), "")


def reason(node: Node, study_uid: str) -> str:
    """Return why the study was taken as complete."""
    history = studies.show(node.db, study_uid)["history"]
    return str(next(event["reason"] for event in history if event["to_state"] == "COMPLETE"))


def test_orthanc_counts_the_study_and_with_the_release_it_is_complete(hospital: Hospital, tmp_path: Path) -> None:
    hospital.introduce("WETREAD")
    images = series(4)
    with running(tmp_path, hospital, "no") as node:
        study_uid = send(images, hospital)
        send(images, hospital, called="WETREAD")
        wait_for(lambda: state(node, study_uid) == "DONE")
        assert "the archive has 4 instances of it and none that is not here" in reason(node, study_uid)


@pytest.mark.parametrize("how", ["move", "get"])
def test_what_orthanc_has_more_is_fetched_whatever_its_series_and_compression(
    hospital: Hospital, tmp_path: Path, how: str
) -> None:
    hospital.introduce("WETREAD")
    first = series(3)
    study_uid = str(first[0].StudyInstanceUID)
    rest = [*series(101, study=study_uid), compressed(study_uid)]  # more than go into one request
    with running(tmp_path, hospital, how) as node:
        send([*first, *rest], hospital)
        send(first, hospital, called="WETREAD")
        wait_for(lambda: state(node, study_uid) == "DONE")
        found = {row.sop_instance_uid: row for row in studies.manifest(node.db, study_uid, 1)}
        assert found.keys() == {str(ds.SOPInstanceUID) for ds in (*first, *rest)}
        kept = found[str(rest[-1].SOPInstanceUID)]
        assert kept.transfer_syntax_uid == rest[-1].file_meta.TransferSyntaxUID, "as Orthanc has it"
        assert pydicom.dcmread(node.spool.path(kept.path)).PixelData == rest[-1].PixelData


def test_an_orthanc_that_lets_us_not_query_is_named_with_the_remedy(hospital: Hospital, tmp_path: Path) -> None:
    images = series(2)
    with running(tmp_path, hospital, "move", ae_title="STRANGER") as node:
        study_uid = send(images, hospital)
        send(images, hospital, called="STRANGER")
        wait_for(lambda: "enter STRANGER with its address and port there" in note(node, study_uid))
        hospital.introduce("STRANGER")
        wait_for(lambda: state(node, study_uid) == "DONE")


def test_an_orthanc_that_cannot_reach_us_is_named_with_the_remedy_which_helps(
    hospital: Hospital, tmp_path: Path
) -> None:
    hospital.introduce("ASTRAY", orthanc.free_port())
    images = series(5)
    with running(tmp_path, hospital, "move", ae_title="ASTRAY", attempts=20) as node:
        study_uid = send(images, hospital)
        send(images[:2], hospital, called="ASTRAY")
        wait_for(lambda: "C000H, it could not do it" in note(node, study_uid))
        assert "enter ASTRAY with its address and port there" in note(node, study_uid)
        hospital.introduce("ASTRAY")
        wait_for(lambda: state(node, study_uid) == "DONE")
        assert len(studies.manifest(node.db, study_uid, 1)) == 5
