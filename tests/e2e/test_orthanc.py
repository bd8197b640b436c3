"""Real studies, pushed by DCMTK's storescu, come back into Orthanc as SR, SEG and key image."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from node import bundles, clock, study
from node.findings import Reading
from tests import dcmtk
from tests.e2e import orthanc, wetread_node
from tests.e2e.orthanc import Orthanc
from tests.e2e.wetread_node import WetreadNode
from workers.load import series as load_series
from workers.predict.network import Network
from workers.predict.reading import read as predict


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[tuple[Orthanc, WetreadNode]]:
    """A PACS that already holds three chest films and a brain MR, and a node beside it that was sent the same."""
    if lacking := orthanc.missing():
        pytest.skip(f"not installed: {lacking}")
    folder = tmp_path_factory.mktemp("hospital")
    (folder / "pacs").mkdir()
    port = orthanc.free_port()
    with (
        orthanc.running(folder / "pacs", port) as pacs,
        wetread_node.running(folder, port, (pacs.ae_title, pacs.dicom_port), orthanc.free_port()) as node,
    ):
        for source in sources(shared_data):
            storescu(source, pacs.dicom_port, pacs.ae_title)
            storescu(source, node.port, "WETREAD")
        yield pacs, node


def sources(shared_data: Path) -> list[Path]:
    return [shared_data / "dicom" / "cxr" / "nih", shared_data / "dicom" / "mr_brain_pgbm003_hippocrop"]


def storescu(folder: Path, port: int, called: str) -> None:
    files = [str(p) for p in sorted(folder.rglob("*.dcm"))]
    command = [dcmtk.program("storescu"), "-aet", "STORESCU", "-aec", called, "127.0.0.1", str(port)]
    subprocess.run([*command, *files], check=True)


@pytest.fixture(scope="module")
def read_studies(hospital: tuple[Orthanc, WetreadNode], shared_data: Path) -> dict[str, dict[str, list[bytes]]]:
    """Study UID → modality → the result instances that the PACS holds, once every study is done."""
    pacs, node = hospital
    studies = [s for source in sources(shared_data) for s in study.scan(source)[0]]
    assert len(studies) == 4
    node.wait_for_studies({s.study_instance_uid for s in studies}, {"DONE", "FAILED"}, timeout_s=240)
    known = {series.series_instance_uid for s in studies for series in s.series}
    found: dict[str, dict[str, list[bytes]]] = {}
    for uid in (s.study_instance_uid for s in studies):
        results = found.setdefault(uid, {})
        for series in (s for s in pacs.series(uid) if s["uid"] not in known):
            results.setdefault(series["modality"], []).extend(pacs.instances(uid, series["uid"]))
    return found


def test_every_study_is_done_and_committed(
    read_studies: dict[str, dict[str, list[bytes]]], hospital: tuple[Orthanc, WetreadNode]
) -> None:
    _, node = hospital
    assert {row["state"] for row in node.wetread("studies", "list")} == {"DONE"}
    deliveries = node.wetread("deliveries", "list")
    assert {d["state"] for d in deliveries} == {"COMMITTED"}


def test_each_study_has_its_reports_and_segmentations(
    read_studies: dict[str, dict[str, list[bytes]]], shared_data: Path
) -> None:
    for uid, results in read_studies.items():
        bundle_names = sorted(algorithm(sr) for sr in results["SR"])
        if len(results["SR"]) == 2:
            assert bundle_names == ["chest_xray", "lung_fields"], uid
        else:
            assert bundle_names == ["hippocampus"], uid
        assert len(results["SEG"]) == 1, uid
        assert results["OT"], "a key image joins them"


def algorithm(sr: bytes) -> str:
    ds = pydicom.dcmread(io.BytesIO(sr))
    return str(
        next(
            item.ManufacturerModelName
            for item in ds.ContributingEquipmentSequence
            if item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102" and item.get("DeviceUID")
        )
    )


def test_results_belong_to_the_patient_study_and_frame_of_reference(
    read_studies: dict[str, dict[str, list[bytes]]], shared_data: Path
) -> None:
    headers = {
        i.study_instance_uid: pydicom.dcmread(i.path, stop_before_pixels=True)
        for source in sources(shared_data)
        for s in study.scan(source)[0]
        for series in s.series
        for i in series.instances
        if i.attributes.get("SeriesDescription", "HippoCrop") == "HippoCrop"
    }
    for uid, results in read_studies.items():
        source = headers[uid]
        for data in (data for kind in results.values() for data in kind):
            ds = pydicom.dcmread(io.BytesIO(data))
            for keyword in ("PatientID", "PatientName", "StudyDate", "AccessionNumber", "StudyDescription"):
                assert ds.get(keyword) == source.get(keyword) or not (ds.get(keyword) or source.get(keyword)), keyword
            if ds.Modality == "SEG" and "FrameOfReferenceUID" in source:
                assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.prefix) / "bin")) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


def test_dciodvfy_reports_no_error(read_studies: dict[str, dict[str, list[bytes]]], tmp_path: Path) -> None:
    for number, data in enumerate(d for results in read_studies.values() for kind in results.values() for d in kind):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        said = subprocess.run([tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], pydicom.dcmread(path).SeriesDescription


def test_tid1500reader_reads_every_report(read_studies: dict[str, dict[str, list[bytes]]], tmp_path: Path) -> None:
    for number, sr in enumerate(sr for results in read_studies.values() for sr in results["SR"]):
        path, out = tmp_path / f"{number}.dcm", tmp_path / f"{number}.json"
        path.write_bytes(sr)
        subprocess.run([tool("tid1500reader"), "--inputDICOM", str(path), "--outputMetadata", str(out)], check=True)
        assert '"measurementItems"' in out.read_text()


def test_the_segmentation_read_back_by_dcmqi_is_our_mask_in_world_coordinates(
    read_studies: dict[str, dict[str, list[bytes]]], shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "dicom" / "mr_brain_pgbm003_hippocrop" / "11_HCropVolume"
    reading, affine_lps = offline_reading("hippocampus", sorted(folder.glob("*.dcm")))
    (seg,) = next(results for results in read_studies.values() if len(results["SR"]) == 1)["SEG"]
    (tmp_path / "seg.dcm").write_bytes(seg)
    subprocess.run(
        [
            tool("segimage2itkimage"),
            "--inputDICOM",
            str(tmp_path / "seg.dcm"),
            "--outputDirectory",
            str(tmp_path),
            "-t",
            "nii",
        ],
        check=True,
    )
    ours = reading.segmentations[0]
    for number, segment in enumerate((s for s in ours.segments if not s.is_empty), start=1):
        image = nibabel.load(tmp_path / f"{number}.nii.gz")
        theirs = world_points(np.asarray(image.dataobj) > 0, np.diag([-1, -1, 1, 1]) @ image.affine)
        mask = np.transpose(ours.labels == segment.value, (2, 1, 0))
        assert theirs == world_points(mask, affine_lps), segment.label


def offline_reading(name: str, paths: list[Path]) -> tuple[Reading, np.ndarray]:
    bundle = bundles.find(name)
    volumes = load_series.load(paths, bundle.dicom.dimensions)
    network = Network(bundle, "cpu", bundle.digest)
    return predict(network, volumes, bundle, clock.to_datetime(clock.now())), volumes[0].affine_mm


def world_points(mask: np.ndarray, affine_lps: np.ndarray) -> set[tuple[float, ...]]:
    """Return the LPS positions in mm of the set voxels of a (column, row, slice) mask, to 0.01 mm."""
    indices = np.argwhere(mask)
    points = indices @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    return set(map(tuple, np.round(points, 2) + 0.0))
