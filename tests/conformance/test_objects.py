"""The acceptance checklist, seen by tools that are not ours."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue

from node.findings import Segmentation
from tests.conformance.conftest import Filed
from tests.conformance.tools import entity_errors, errors, run
from workers.report import gate
from workers.report.case import Case, walk


def test_the_gate_has_nothing_to_say(filed: Filed) -> None:
    case = Case(
        tuple(filed.documents),
        filed.reading,
        tuple(filed.volumes),
        filed.context,
        tuple(pydicom.dcmread(path, stop_before_pixels=True) for path in filed.sources),
    )
    assert gate.complaints(case) == []


def test_dciodvfy_finds_no_error(filed: Filed) -> None:
    for file in filed.files:
        assert errors(run("dciodvfy", "-new", file)[1]) == [], file.name


def test_dcentvfy_finds_results_and_images_of_one_study(filed: Filed, tmp_path: Path) -> None:
    ours = {file.name for file in filed.files}
    images = [_without_pixels(path, tmp_path / f"source{number}.dcm") for number, path in enumerate(filed.sources)]
    found = [line for line in entity_errors([*filed.files, *images]) if any(name in line for name in ours)]
    if isinstance(pydicom.dcmread(images[0]).get("SpecificCharacterSet"), MultiValue):
        # It compares bytes, and these are now UTF-8; the gate has compared the text.
        found = [line for line in found if "String attribute has different value" not in line]
    assert found == []


def _without_pixels(path: Path, copy: Path) -> Path:
    """Copy the header of an image: pixel data of odd length stop dicom3tools."""
    pydicom.dcmread(path, stop_before_pixels=True).save_as(copy)
    return copy


def test_dcmtk_parses_the_report_and_labels_every_value(filed: Filed) -> None:
    for file in filed.of_kind("SR"):
        status, output = run("dsrdump", "--quiet", file)
        assert status == 0, output
        assert not re.search(r"^[EF]:", output, re.MULTILINE), output
        html = run("dsr2html", file)[1]
        text = re.sub(r"<[^>]*>", " ", html)
        for item in walk(pydicom.dcmread(file)):
            if item.get("ValueType") == "NUM":
                assert f"{item.ConceptNameCodeSequence[0].CodeMeaning}:" in text


def test_dcmqi_reads_every_number_of_the_report(filed: Filed, tmp_path: Path) -> None:
    for file in filed.of_kind("SR"):
        status, output = run("tid1500reader", "--inputDICOM", file, "--outputMetadata", tmp_path / "sr.json")
        assert status == 0, output
        read = json.loads((tmp_path / "sr.json").read_text())
        numbers = [item for item in walk(pydicom.dcmread(file)) if item.get("ValueType") == "NUM"]
        assert sum(len(group.get("measurementItems", ())) for group in read["Measurements"]) == len(numbers)


def test_dcmqi_reads_back_our_mask_in_world_coordinates(filed: Filed, tmp_path: Path) -> None:
    for number, (file, segmentation) in enumerate(zip(filed.of_kind("SEG"), filed.reading.segmentations, strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        status, output = run(
            "segimage2itkimage", "--inputDICOM", file, "--outputDirectory", folder, "--outputType", "nii"
        )
        assert status == 0, output
        to_mm = _affine(file, filed, segmentation)
        for index, segment in enumerate(segmentation.segments, 1):
            theirs = _mask(folder / f"{index}.nii.gz", np.linalg.inv(to_mm), segmentation.labels.shape)
            assert _dice(theirs, segmentation.mask(segment)) >= 0.999, segment.label


def _affine(seg: Path, filed: Filed, segmentation: Segmentation) -> NDArray[np.float64]:
    """(column, row, slice, 1) → LPS mm of the label map, by the sources' headers; of a film by the SEG's own plane."""
    if filed.volumes[0].is_projection:
        spacing = pydicom.dcmread(seg).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        return np.diag([float(spacing[1]), float(spacing[0]), 1.0, 1.0])
    read = (pydicom.dcmread(path, stop_before_pixels=True) for path in filed.sources)
    headers = {str(header.SOPInstanceUID): header for header in read}
    ends = segmentation.sources[0], segmentation.sources[-1]
    first, last = (_plane(headers[s.sop_instance_uid], s.frame_number) for s in ends)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first[1][:3]) * first[2][1]
    affine[:3, 1] = np.array(first[1][3:]) * first[2][0]
    affine[:3, 2] = (np.array(last[0]) - np.array(first[0])) / (len(segmentation.sources) - 1)
    affine[:3, 3] = first[0]
    return affine


def _plane(header: Dataset, frame_number: int | None) -> tuple[list[float], list[float], list[float]]:
    """Image Position, Image Orientation and Pixel Spacing of one slice."""
    if frame_number is None:
        position = orientation = measures = header
    else:
        groups = header.PerFrameFunctionalGroupsSequence[frame_number - 1], header.SharedFunctionalGroupsSequence[0]
        position = next(g.PlanePositionSequence[0] for g in groups if "PlanePositionSequence" in g)
        orientation = next(g.PlaneOrientationSequence[0] for g in groups if "PlaneOrientationSequence" in g)
        measures = next(g.PixelMeasuresSequence[0] for g in groups if "PixelMeasuresSequence" in g)
    return (
        [float(v) for v in position.ImagePositionPatient],
        [float(v) for v in orientation.ImageOrientationPatient],
        [float(v) for v in measures.PixelSpacing],
    )


def _mask(file: Path, to_index: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Put the voxels of a NIfTI file (RAS) on our grid by their place in millimeters."""
    image = nibabel.load(file)
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    ras = np.c_[voxels, np.ones(len(voxels))] @ image.affine.T
    index = (ras * [-1, -1, 1, 1]) @ to_index.T
    column, row, k = np.rint(index[:, :3]).astype(int).T
    assert np.abs(index[:, :3] - np.rint(index[:, :3])).max(initial=0) < 0.01, "the voxels lie between ours"
    mask = np.zeros(shape, bool)
    mask[k, row, column] = True
    return mask


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())
