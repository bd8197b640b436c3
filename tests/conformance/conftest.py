"""Result sets of phantoms and of real studies, built once and written as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from node import uids
from node.findings import Reading, Volume
from node.simulate import phantoms
from tests import readings
from workers.load.series import load
from workers.report import evidence
from workers.report.context import Context, EvidenceDocument


@dataclass(frozen=True)
class Filed:
    """One reading and what was made of it; `files` are its Evidence Documents, `sources` its images."""

    sources: list[Path]
    volumes: list[Volume]
    reading: Reading
    context: Context
    documents: list[EvidenceDocument]
    files: list[Path]

    def of_kind(self, kind: str) -> list[Path]:
        return [file for file, document in zip(self.files, self.documents, strict=True) if document.kind == kind]


Inputs = tuple[list[Path], list[Volume], Reading]


def _phantom(orientation: phantoms.Orientation, columns: int) -> Callable[[Path, Path], Inputs]:
    def make(_data: Path, folder: Path) -> Inputs:
        spacing = (2.5, 1.2, 0.9)
        slices, mask = phantoms.volume(orientation, "MR", (20, 40, columns), spacing)
        volume = readings.volume_of(slices, spacing)
        return (
            readings.written(slices, folder),
            [volume],
            readings.mapped(readings.volume_reading(volume, mask), volume),
        )

    return make


def _phantom_film(size: int) -> Callable[[Path, Path], Inputs]:
    def make(_data: Path, folder: Path) -> Inputs:
        ds, _ = phantoms.chest_film(size=size)
        volume = readings.film_of(ds, (1.0, *map(float, ds.PixelSpacing)) if "PixelSpacing" in ds else None)
        return readings.written([ds], folder), [volume], _together([volume])

    return make


def _two_films(_data: Path, folder: Path) -> Inputs:
    """A series of two films: one SEG and one key image each, one SR."""
    slices = [phantoms.chest_film(seed, size=size)[0] for seed, size in ((1, 128), (2, 131))]
    for ds in slices:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
            setattr(ds, keyword, slices[0][keyword].value)
    volumes = [readings.film_of(ds) for ds in slices]
    return readings.written(slices, folder), volumes, _together(volumes)


def _together(volumes: list[Volume]) -> Reading:
    each = [readings.film_reading(volume) for volume in volumes]
    findings = tuple(
        readings.explained(finding, volume) if finding.present else finding
        for volume, reading in zip(volumes, each, strict=True)
        for finding in reading.findings
    )
    segmentations = tuple(s for reading in each for s in reading.segmentations)
    return Reading(each[0].algorithm, each[0].started, findings, segmentations)


def _films(*names: str) -> Callable[[Path, Path], Inputs]:
    def make(data: Path, _folder: Path) -> Inputs:
        paths = [data / "dicom" / name for name in names]
        volumes = load(paths, 2)
        return paths, volumes, _together(volumes)

    return make


def _charset(name: str) -> Callable[[Path, Path], Inputs]:
    def make(data: Path, _folder: Path) -> Inputs:
        path = data / "dicom" / "charsets" / name
        header = pydicom.dcmread(path)
        if "PixelData" not in header:  # some of these samples have none
            header = phantoms.chest_film(size=32)[0]
            header.SOPInstanceUID = pydicom.dcmread(path).SOPInstanceUID
        volume = readings.film_of(header)
        return [path], [volume], readings.film_reading(volume)

    return make


def _series(folder: str) -> Callable[[Path, Path], Inputs]:
    def make(data: Path, _folder: Path) -> Inputs:
        where = data / "dicom" / folder
        paths = [where] if where.is_file() else sorted(where.glob("*.dcm"))
        volume = load(paths, 3)[0]
        return paths, [volume], readings.mapped(readings.volume_reading(volume, _block(volume)), volume)

    return make


def _block(volume: Volume) -> NDArray[np.uint8]:
    """An ellipsoid off the center of a real volume."""
    k, j, i = (np.linspace(0, 1, n) for n in volume.pixels.shape)
    inside = ((k[:, None, None] - 0.4) / 0.3) ** 2 + ((j[:, None] - 0.5) / 0.3) ** 2 + ((i - 0.45) / 0.25) ** 2 < 1
    return inside.astype(np.uint8)


def _overlapping(_data: Path, folder: Path) -> Inputs:
    """Two segments that share voxels, of which one lies within the other."""
    slices, mask = phantoms.volume("oblique", "MR", (20, 40, 48), (2.5, 1.2, 0.9))
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    return readings.written(slices, folder), [volume], readings.overlapping(volume, mask)


def _two_channels(_data: Path, folder: Path) -> Inputs:
    """What was read of two series on one grid: its frames lie on the first, and it names both."""
    paths, volumes, reading = _overlapping(_data, folder / "first")
    again = [pydicom.dcmread(path) for path in paths]
    for ds in again:
        ds.SeriesInstanceUID = uids.derive_uid("second", ds.SeriesInstanceUID)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uids.derive_uid("second", ds.SOPInstanceUID)
        ds.SeriesNumber = int(ds.SeriesNumber) + 1
    both = (*volumes[0].channels, volumes[0].pixels, volumes[0].pixels)
    return [*paths, *readings.written(again, folder / "second")], [replace(volumes[0], channels=both)], reading


def _boxes(_data: Path, folder: Path) -> Inputs:
    slices, _ = phantoms.volume("oblique", "CT", (20, 40, 48), (2.5, 1.2, 0.9))
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    return readings.written(slices, folder), [volume], readings.detected(volume)


def _boxes_on_a_film(_data: Path, folder: Path) -> Inputs:
    ds, _ = phantoms.chest_film(size=256)
    volume = readings.film_of(ds, (1.0, *map(float, ds.PixelSpacing)))
    return readings.written([ds], folder), [volume], readings.detected(volume)


def _declined(_data: Path, folder: Path) -> Inputs:
    """A film that was not analyzed."""
    ds, _ = phantoms.chest_film(size=256)
    return readings.written([ds], folder), [], readings.not_analyzed(readings.film_of(ds))


CASES: dict[str, Callable[[Path, Path], Inputs]] = {
    "axial": _phantom("axial", 48),
    "axial-odd-columns": _phantom("axial", 45),
    "sagittal": _phantom("sagittal", 48),
    "coronal-odd-columns": _phantom("coronal", 35),
    "oblique": _phantom("oblique", 48),
    "oblique-odd-columns": _phantom("oblique", 45),
    "film": _phantom_film(256),
    "film-odd-columns": _phantom_film(251),
    "film-two-in-a-series": _two_films,
    "overlapping": _overlapping,
    "channels": _two_channels,
    "boxes": _boxes,
    "boxes-film": _boxes_on_a_film,
    "declined": _declined,
    "nih-film": _films("cxr/nih/test1.dcm"),
    "fuji-cr": _films("cxr/fuji_cr/gdcm-CR-MONO1-10-chest.dcm"),
    "philips-cr-spacing-zero": _films("cxr/philips_cr/RG1_J2KI.dcm"),
    "fuji-dx": _films("cxr/fuji_dx/dx_image.dcm"),
    "mammogram-lossy": _films("mg/MG1_J2KI"),
    "hippocrop": _series("mr_brain_pgbm003_hippocrop/11_HCropVolume"),
    "enhanced-mr": _series("enhanced/dcm_qa_enh/Siemens/XA10/6_1.dcm"),
    "t1-128": _series("mr_t1_pacsman128"),
    **{name: _charset(name) for name in ("chrJapMulti.dcm", "chrKoreanMulti.dcm", "chrGerm.dcm", "chrX1.dcm")},
    **{name: _charset(name) for name in ("chrH31.dcm", "chrI2.dcm", "chrRuss.dcm", "chrX2.dcm", "chrArab.dcm")},
}
_SYNTHETIC = frozenset(
    name
    for name in CASES
    if name.split("-")[0]
    in ("axial", "sagittal", "coronal", "oblique", "film", "overlapping", "channels", "boxes", "declined")
)


@pytest.fixture(scope="session", params=list(CASES))
def filed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filed:
    """A result set, filed: every test of this folder sees every one."""
    name = request.param
    data = Path() if name in _SYNTHETIC else request.getfixturevalue("shared_data")
    folder = tmp_path_factory.mktemp(name)
    sources, volumes, reading = CASES[name](data, folder / "sources")
    results = ("SR",) if reading.is_declined else ("SR", "SEG", "SC", "SALIENCY", "PM")
    context = readings.context(sources, results=results)
    documents = evidence.build(reading, volumes, context)
    files = []
    for number, document in enumerate(documents):
        files.append(folder / f"{document.kind}{number}.dcm")
        files[-1].write_bytes(evidence.to_bytes(document))
    return Filed(sources, volumes, reading, context, documents, files)
