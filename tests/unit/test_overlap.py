"""Segments by channel: sigmoid outputs that overlap, from the network to a SEG that says so."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from node import bundles
from node.clock import to_datetime
from node.errors import BundleError, Permanent
from node.findings import Reading, Volume
from tests import readings
from tests.unit import zoo
from tests.unit.phantom import body, save, stack
from workers.load.series import load
from workers.predict.network import Network
from workers.predict.reading import read
from workers.predict.segment import segmentation
from workers.report import evidence, gate

SPACING = (2.0, 1.0, 1.0)


def filled(columns: int = 16) -> np.ndarray:
    """The L of `body` at 1000, in a shell of 500: two nested things."""
    pixels = body(columns=columns)
    pixels[2:10, 3:18, 2:14] = np.maximum(pixels[2:10, 3:18, 2:14], 500)
    return pixels


def reading_of(bundle: bundles.Bundle, volume: Volume) -> Reading:
    return read(Network(bundle, "cpu", bundle.digest), [volume], bundle, to_datetime(0))


@pytest.mark.parametrize("columns", [16, 13])
def test_nested_segments_come_back_whole_in_one_seg(columns: int, tmp_path: Path) -> None:
    paths = save(stack(filled(columns), spacing=SPACING), tmp_path / "in")
    [volume] = load(paths, 3)
    reading = reading_of(zoo.multi_label(tmp_path / "zoo"), volume)
    [found] = reading.segmentations
    assert found.masks is not None
    outer, inner = found.segments
    assert np.array_equal(found.mask(outer), filled(columns) > 300)
    assert np.array_equal(found.mask(inner), filled(columns) > 800)
    assert outer.measurements[0].value == pytest.approx((filled(columns) > 300).sum() * 2 / 1000)
    assert "threshold=0.5" in reading.algorithm.parameters
    context = readings.context(paths)
    documents = evidence.build(reading, [volume], context)
    gate.check(documents, reading, [volume], context)
    seg = next(document for document in documents if document.kind == "SEG")
    assert seg.dataset.SegmentsOverlap == "YES"
    (tmp_path / "seg.dcm").write_bytes(evidence.to_bytes(seg))
    theirs = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        [source.sop_instance_uid for source in volume.sources]
    )
    assert np.array_equal(theirs > 0, np.stack([found.mask(outer), found.mask(inner)], axis=-1))


def test_segments_that_do_not_overlap_are_a_label_map(tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    bundle = zoo.multi_label(tmp_path / "zoo")
    lower = bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"segment": bundle.dicom.segment[:1]})})
    [found] = reading_of(lower, volume).segmentations
    assert found.masks is None
    assert np.array_equal(found.labels == 1, body() == 1000)


def test_a_channel_that_is_not_there_and_one_that_is_no_probability_are_named(tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    bundle = zoo.multi_label(tmp_path / "three", thresholds=(0.5, 0.5, 0.5))
    with pytest.raises(Permanent, match=r"answered with 2 channels; dicom\.toml names channel 2"):
        reading_of(bundle, volume)
    bundle = zoo.multi_label(tmp_path / "zoo")
    config = (bundle.folder / "configs/inference.json").read_text()
    (bundle.folder / "configs/inference.json").write_text(config.replace('"sigmoid": true', '"sigmoid": false'))
    with pytest.raises(Permanent, match=r"segments by channel need 0\.\.1.*Activationsd"):
        reading_of(bundles.load(bundle.folder), volume)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (zoo.segment(0, "channel") + zoo.segment(2), "all told by `value`, or all by `channel`"),
        (zoo.segment(1) + zoo.segment(1), "two .*segment.* have the same number, 1"),
        (zoo.segment(1, "channel").replace("threshold = 0.5\n", ""), "by `channel` needs a `threshold`"),
        ('[boxes]\nmode = "xyzxyz"\n', 'kind "detection" needs .*boxes'),
        (zoo.segment(1) + zoo.segment(2).replace("Part 2", "Part 1"), "two .*segment.* have the same label, Part 1"),
        (zoo.segment(1).replace('"SCT"', '"SRT"'), r'category\.scheme: .*"SRT" is no coding scheme'),
        (zoo.segment(1, measured="area"), 'a segment of dimensions = 3 has no "area"; measure its "volume"'),
    ],
)
def test_a_dicom_toml_that_cannot_be_meant_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        zoo.write(tmp_path / "zoo", zoo.head("segmentation") + text, {}, {})


def test_a_channel_that_is_no_number_is_named(tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    bundle = zoo.multi_label(tmp_path / "zoo")
    answer = np.full((2, 16, 20, 12), 0.5, np.float32)
    answer[1, 3, 3, 3] = np.nan
    with pytest.raises(Permanent, match=r"segments by channel need 0\.\.1"):
        segmentation(answer, volume, bundle)


def test_a_film_has_no_volume(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match='a segment of dimensions = 2 has no "volume"; measure its "area"'):
        zoo.write(tmp_path / "zoo", zoo.head("segmentation", 2) + zoo.segment(1), {}, {})


def test_a_reader_that_puts_the_channel_first_is_stood_in_for(tmp_path: Path) -> None:
    bundle = zoo.multi_label(tmp_path / "zoo")
    path = bundle.folder / "configs/inference.json"
    asked = path.read_text().replace('"keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}', "<>")
    assert "<>" in asked
    path.write_text(asked.replace("<>", '"keys": "image", "image_only": true, "ensure_channel_first": true}', 1))
    [volume] = load(save(stack(filled()), tmp_path / "in"), 3)
    [found] = reading_of(bundles.load(bundle.folder), volume).segmentations
    assert np.array_equal(found.mask(found.segments[1]), filled() > 800)
