"""Boxes: from a detector through its own postprocessing to regions of a report, on the image where they were found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node import bundles
from node.bundles import Bundle
from node.clock import to_datetime
from node.errors import BundleError, NonConformant, Permanent
from node.findings import Reading, Volume
from tests import readings
from tests.unit import zoo
from tests.unit.phantom import AXIAL, OBLIQUE, SAGITTAL, body, film, save, stack
from workers.load.inputs import load_for
from workers.predict.network import Network
from workers.predict.reading import read
from workers.report import evidence, gate

WORLD = {
    "_target_": "AffineBoxToWorldCoordinated",
    "box_keys": "box",
    "box_ref_image_keys": "image",
    "image_meta_key_postfix": "meta_dict",
}
CENTERS = {"_target_": "ConvertBoxModed", "box_keys": "box", "src_mode": "xyzxyz", "dst_mode": "cccwhd"}


def cube() -> NDArray[np.uint16]:
    """A bright block off the middle: slices 3 to 8, rows 4 to 16, columns 3 to 12."""
    pixels = body()
    pixels[3:9, 4:17, 3:13] = 1000
    return pixels


def read_it(bundle: Bundle, volumes: list[Volume]) -> Reading:
    return read(Network(bundle, "cpu", bundle.digest), volumes, bundle, to_datetime(0))


@pytest.mark.parametrize(
    ("boxes", "post", "cosines", "pixdim"),
    [
        ('mode = "xyzxyz"', {}, AXIAL, 1.0),
        ('mode = "xyzxyz"', {}, OBLIQUE, 1.0),
        ('mode = "xyzxyz"', {}, SAGITTAL, 0.5),
        ('mode = "cccwhd"', {"centers": CENTERS}, AXIAL, 1.0),
        ('mode = "xyzxyz"\nspace = "ras"', {"world": WORLD}, SAGITTAL, 1.0),
        ('mode = "cccwhd"\nspace = "lps"', {"world": WORLD | {"affine_lps_to_ras": True}, "c": CENTERS}, AXIAL, 1.0),
    ],
)
def test_a_box_comes_back_to_what_was_found(
    boxes: str, post: dict[str, Any], cosines: Any, pixdim: float, tmp_path: Path
) -> None:
    bundle = zoo.finder(tmp_path / "zoo", f"[boxes]\n{boxes}\n", pixdim, **post)
    paths = save(stack(cube(), cosines=cosines), tmp_path / "in")
    [volume] = load_for(paths, bundle.dicom)
    [found] = read_it(bundle, [volume]).detections
    [box] = found.boxes  # the one at the edge is below the threshold
    assert (box.score, found.source) == (pytest.approx(0.9), box.source)
    # From the middle of the first pixel to the middle of the last: a half pixel within the outer edges.
    assert [box.left, box.top, box.right, box.bottom] == pytest.approx([3.5, 4.5, 12.5, 16.5], abs=0.51)
    reach = [volume.sources.index(source) for source in (box.first, box.last)]
    assert reach in ([3, 8], [2, 8], [3, 9])  # finer slices reach half way to the next
    assert volume.sources.index(box.source) in (5, 6)


def test_what_is_written_passes_the_gate_and_names_each_box(tmp_path: Path) -> None:
    bundle = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyzxyz"\n')
    paths = save(stack(cube()), tmp_path / "in")
    volumes = load_for(paths, bundle.dicom)
    reading, context = read_it(bundle, volumes), readings.context(paths)
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)
    assert [document.kind for document in documents] == ["SC", "SR"]
    text = str(documents[-1].dataset)
    assert "'Thing 0 1'" in text
    assert "AI: Thing 0 score" in text
    moved = replace(reading.detections[0].boxes[0], left=1.0)
    wrong = replace(reading, detections=(replace(reading.detections[0], boxes=(moved,)),))
    with pytest.raises(NonConformant, match="rule boxes"):
        gate.check(documents, wrong, volumes, context)


def test_nothing_found_is_an_answer(tmp_path: Path) -> None:
    bundle = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyzxyz"\n')
    path = bundle.folder / "configs/dicom.toml"
    path.write_text(path.read_text().replace("threshold = 0.5", "threshold = 0.95"))
    bundle = bundles.load(bundle.folder)
    paths = save(stack(cube()), tmp_path / "in")
    volumes = load_for(paths, bundle.dicom)
    reading, context = read_it(bundle, volumes), readings.context(paths)
    assert reading.detections[0].boxes == ()
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)
    assert "Absent" in str(documents[-1].dataset)


def test_a_film_has_boxes_too(tmp_path: Path) -> None:
    bundle = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyxy"\n', dimensions=2)
    volumes = load_for(save([film(cube()[5])], tmp_path / "in"), bundle.dicom)
    [found] = read_it(bundle, volumes).detections
    box = found.boxes[0]
    assert [box.left, box.top, box.right, box.bottom] == pytest.approx([3.5, 4.5, 12.5, 16.5])


def test_boxes_off_the_images_are_counted_and_not_passed_over(tmp_path: Path) -> None:
    """[boxes] that is wrong must not read as if nothing was found: these are in "lps"."""
    world = WORLD | {"affine_lps_to_ras": True}
    bundle = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyzxyz"\nspace = "ras"\n', world=world)
    reading = read_it(bundle, load_for(save(stack(cube()), tmp_path / "in"), bundle.dicom))
    assert [len(detection.boxes) for detection in reading.detections] == [0]
    assert reading.remarks == ("1 box of Thing 0 not told: without an extent, or off the images.",)


def test_boxes_of_all_slices_that_are_not_told_are_counted(tmp_path: Path) -> None:
    """One on each of twelve slices, of which no slice has more than are told."""
    flat = zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyxy"\n', dimensions=2)
    dicom = (flat.folder / "configs" / "dicom.toml").read_text().replace("threshold = 0.5", "threshold = 0.5\nmost = 4")
    (flat.folder / "configs" / "dicom.toml").write_text(
        dicom.replace("dimensions = 2", "dimensions = 3\nper_slice = true")
    )
    bundle = bundles.load(flat.folder)
    volumes = load_for(save(stack(cube()), tmp_path / "in"), bundle.dicom)
    reading = read_it(bundle, volumes)
    assert [len(detection.boxes) for detection in reading.detections] == [4]
    assert reading.remarks == ("12 of Thing 0 were found; the 4 with the best scores are told.",)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ('mode = "xyzxyz"\nscores = "confidence"', r"answered without confidence \(it has .*label_scores"),
        ('mode = "xyzxyz"\nboxes = "label"', "needs 6 numbers, a label and a score per box"),
    ],
)
def test_what_is_no_list_of_boxes_is_named(boxes: str, message: str, tmp_path: Path) -> None:
    bundle = zoo.finder(tmp_path / "zoo", f"[boxes]\n{boxes}\n")
    with pytest.raises(Permanent, match=message):
        read_it(bundle, load_for(save(stack(cube()), tmp_path / "in"), bundle.dicom))


def test_boxes_of_other_axes_than_the_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=re.escape('mode "xyxy" is for 2D images; these are 3D')):
        zoo.finder(tmp_path / "zoo", '[boxes]\nmode = "xyxy"\n')


def test_a_retinanet_without_torchvision_goes_all_the_way(tmp_path: Path) -> None:
    bundle = zoo.retinanet(tmp_path / "zoo")
    paths = save(stack(cube(), spacing=(2.0, 1.0, 1.0)), tmp_path / "in")
    volumes = load_for(paths, bundle.dicom)
    reading, context = read_it(bundle, volumes), readings.context(paths)
    assert 1 <= len(reading.detections[0].boxes) <= 4
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)
    assert read_it(bundle, volumes).detections == reading.detections
