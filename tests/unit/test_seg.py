from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from node import codes
from node.errors import Unsuitable
from node.findings import Measurement, Reading, Segment, Segmentation, Source, Volume
from node.simulate import phantoms
from tests import readings
from tests.unit.phantom import ORIENTATIONS, body, enhanced, save, stack
from workers.load.series import load
from workers.predict.measure import volume_ml
from workers.report import evidence, gate, rules_seg, seg
from workers.report.context import Context

Labels = NDArray[np.uint8]


def segment(value: int, labels: Labels, label: str = "") -> Segment:
    measured = Measurement(codes.VOLUME, 1.0, codes.MILLILITER, codes.SUM_OF_VOXELS)
    empty = not (labels == value).any()
    name = label or f"Part {value}"
    return Segment(value, name, codes.ANATOMICAL_STRUCTURE, readings.LUNG, None, "#33cc66", (measured,), empty)


def built(
    tmp_path: Path, labels: Labels, values: tuple[int, ...], **options: object
) -> tuple[Dataset, Volume, Context]:
    slices, _ = phantoms.volume("oblique", "CT", labels.shape, (2.0, 0.8, 0.7))
    volume = readings.volume_of(slices, (2.0, 0.8, 0.7))
    context = readings.context(readings.written(slices, tmp_path), **options)
    segmentation = Segmentation(labels, volume.sources, tuple(segment(value, labels) for value in values))
    documents = evidence.build(Reading(readings.algorithm(), readings.STARTED, (), (segmentation,)), [volume], context)
    return documents[0].dataset, volume, context


def scattered(shape: tuple[int, int, int], values: int = 2, seed: int = 0) -> Labels:
    """Random labels: every voxel must come back where it was."""
    return np.random.default_rng(seed).integers(0, values + 1, shape).astype(np.uint8)


@pytest.mark.parametrize(("columns", "kind"), [(48, "BINARY"), (45, "FRACTIONAL"), (7, "FRACTIONAL")])
def test_every_voxel_comes_back_on_the_image_it_was_found_on(tmp_path: Path, columns: int, kind: str) -> None:
    labels = scattered((9, 5, columns))
    ds, volume, _ = built(tmp_path, labels, (1, 2))
    (tmp_path / "seg.dcm").write_bytes(written(ds))
    assert ds.SegmentationType == kind
    theirs = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        [source.sop_instance_uid for source in volume.sources], combine_segments=kind == "BINARY"
    )
    ours = labels if kind == "BINARY" else np.stack([labels == 1, labels == 2], axis=-1)
    assert np.array_equal(theirs > 0 if kind == "FRACTIONAL" else theirs, ours)


def test_our_own_decoder_agrees_with_pydicoms(tmp_path: Path) -> None:
    ds, _, _ = built(tmp_path, scattered((4, 5, 7)), (1, 2), seg_type="binary")
    (tmp_path / "seg.dcm").write_bytes(written(ds))
    frames = [frame.mask for frame in rules_seg.frames(ds)]
    assert np.array_equal(np.stack(frames), pydicom.dcmread(tmp_path / "seg.dcm").pixel_array > 0)


@pytest.mark.parametrize(
    ("asked", "columns", "kind"),
    [("auto", 512, "BINARY"), ("auto", 35, "FRACTIONAL"), ("binary", 35, "BINARY"), ("fractional", 512, "FRACTIONAL")],
)
def test_bits_are_packed_only_where_archives_can_serve_them(asked: str, columns: int, kind: str) -> None:
    assert seg.encoding(asked, columns) == kind


def test_a_mask_in_another_order_than_the_files_lands_on_its_own_slices(tmp_path: Path) -> None:
    labels = scattered((6, 8, 16))
    slices, _ = phantoms.volume("sagittal", "CT", labels.shape)
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    paths = readings.written(slices, tmp_path)
    segmentation = Segmentation(labels, volume.sources, (segment(1, labels), segment(2, labels)))
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    shuffled = [paths[i] for i in (3, 0, 5, 1, 4, 2)]
    ds = evidence.build(reading, [volume], readings.context(shuffled))[0].dataset
    where = {source: k for k, source in enumerate(volume.sources)}
    for frame in rules_seg.frames(ds):
        assert np.array_equal(frame.mask, labels[where[frame.source]] == frame.segment_number)


def test_an_empty_segment_is_left_out_and_the_others_are_numbered_anew(tmp_path: Path) -> None:
    labels = np.zeros((5, 8, 16), np.uint8)
    labels[2, 2:4, 3:9] = 7
    ds, _, _ = built(tmp_path, labels, (2, 7))
    assert [(s.SegmentNumber, s.SegmentLabel) for s in ds.SegmentSequence] == [(1, "Part 7")]
    assert sum(int(frame.mask.sum()) for frame in rules_seg.frames(ds)) == 12


@pytest.mark.parametrize(("slices", "frames"), [(400, 400), (401, 1)])
def test_empty_frames_are_written_for_short_series_only(tmp_path: Path, slices: int, frames: int) -> None:
    labels = np.zeros((slices, 4, 8), np.uint8)
    labels[3, 1, 2] = 1
    ds, _, _ = built(tmp_path, labels, (1,))
    assert ds.NumberOfFrames == frames


def test_a_segment_says_what_it_is_and_who_made_it(tmp_path: Path) -> None:
    ds, _, _ = built(tmp_path, scattered((3, 8, 8), 1), (1,))
    (item,) = ds.SegmentSequence
    algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("lung_fields", "1.0.0")
    assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", "lung_fields")
    lab = hd.color.CIELabColor.from_rgb(0x33, 0xCC, 0x66)
    assert list(item.RecommendedDisplayCIELabValue) == list(lab.value)
    assert (ds.ContentLabel, ds.SegmentsOverlap) == ("LUNG_FIELDS", "NO")
    assert ds.BodyPartExamined


@pytest.mark.parametrize("columns", [64, 61])
def test_the_seg_of_a_film_lies_in_the_plane_of_its_pixels(tmp_path: Path, columns: int) -> None:
    film, _ = phantoms.chest_film(size=columns)
    film.PixelSpacing = [0, 0]
    film.ImagerPixelSpacing = [0.2, 0.3]
    volume = readings.film_of(film)
    context = readings.context(readings.written([film], tmp_path))
    ds = evidence.build(readings.film_reading(volume), [volume], context)[0].dataset
    shared = ds.SharedFunctionalGroupsSequence[0]
    assert list(map(float, shared.PixelMeasuresSequence[0].PixelSpacing)) == [0.2, 0.3]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == [0, 0, 0]
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    assert ds.get("FrameOfReferenceUID") == film.get("FrameOfReferenceUID")
    assert len(ds.PixelData) % 2 == 0


def test_one_frame_of_a_multi_frame_film_names_its_frame(tmp_path: Path) -> None:
    film, _ = phantoms.chest_film(size=32)
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    film.NumberOfFrames, film.PixelData = 3, film.PixelData * 3
    path = readings.written([film], tmp_path)
    source = Source(str(film.SOPInstanceUID), 2)
    pixels = np.asarray(film.pixel_array[1:2], np.float32)
    volume = Volume(pixels, np.eye(4), (source,), None, "DX", is_projection=True)
    ds = evidence.build(readings.film_reading(volume), [volume], readings.context(path))[0].dataset
    assert [frame.source for frame in rules_seg.frames(ds)] == [source]


def test_frames_of_an_enhanced_image_are_named(shared_data: Path) -> None:
    path = shared_data / "dicom" / "enhanced" / "dcm_qa_enh" / "Siemens" / "XA10" / "6_1.dcm"
    (volume,) = load([path], 3)
    labels = scattered(volume.pixels.shape, 1)  # type: ignore[arg-type]
    segmentation = Segmentation(labels[:4], volume.sources[:4], (segment(1, labels),))
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    part = replace(volume, pixels=volume.pixels[:4], sources=volume.sources[:4])
    ds = evidence.build(reading, [part], readings.context([path]))[0].dataset
    found = {frame.source: frame.mask for frame in rules_seg.frames(ds)}
    assert set(found) == set(volume.sources[:4]), "no frame for what was not read"
    assert all(np.array_equal(found[source], labels[k] == 1) for k, source in enumerate(volume.sources[:4]))


@pytest.mark.parametrize(("flag", "expected"), [("01", "01"), (None, "00")])
def test_lossy_compression_is_passed_on_from_any_slice(tmp_path: Path, flag: str | None, expected: str) -> None:
    slices, mask = phantoms.volume("axial", "MR", (6, 16, 16))
    if flag:
        slices[4].LossyImageCompression = flag
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    context = readings.context(readings.written(slices, tmp_path))
    documents = evidence.build(readings.volume_reading(volume, mask), [volume], context)
    assert {d.dataset.LossyImageCompression for d in documents if d.kind != "SR"} == {expected}


def test_an_image_without_slice_thickness_gives_its_distance(tmp_path: Path) -> None:
    slices, mask = phantoms.volume("axial", "MR", (6, 16, 16))
    for ds in slices:
        ds.SliceThickness = None
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    context = readings.context(readings.written(slices, tmp_path))
    made = evidence.build(readings.volume_reading(volume, mask), [volume], context)[0].dataset
    assert float(made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness) == 2.5


@pytest.mark.parametrize("said", [None, 1.0, -2.5, 25.0])
@pytest.mark.parametrize("is_enhanced", [False, True])
def test_the_voxels_of_a_seg_are_as_large_as_the_sr_counts_them(
    is_enhanced: bool, said: float | None, tmp_path: Path
) -> None:
    """Spacing Between Slices of the images may be anything; readers of a SEG multiply by it."""
    datasets = stack(body(), ORIENTATIONS["oblique"], (2.5, 0.8, 0.7), RescaleSlope=1, RescaleIntercept=0)
    order = [7, 2, 0, 11, 1, 3, 9, 4, 5, 6, 8, 10]
    images = [enhanced(datasets, order)] if is_enhanced else datasets
    measured = images[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence if is_enhanced else images
    for item in measured:
        item.SpacingBetweenSlices = said
        item.SliceThickness = -1 if said == 25.0 else 5
        if said is None:
            del item.SpacingBetweenSlices
    paths = save(images, tmp_path)
    [volume] = load(paths, 3)
    found = segment(1, (body() == 1000).astype(np.uint8))
    ml = volume_ml(body() == 1000, volume)
    segmentation = Segmentation(
        (body() == 1000).astype(np.uint8), volume.sources, (replace(found, measurements=(ml,)),)
    )
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    documents = evidence.build(reading, [volume], readings.context(paths))
    gate.check(documents, reading, [volume], readings.context(paths))
    ds = documents[0].dataset
    [measures] = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    voxel_mm3 = float(measures.SpacingBetweenSlices) * float(np.prod([float(mm) for mm in measures.PixelSpacing]))
    count = sum(int(frame.mask.sum()) for frame in rules_seg.frames(ds))
    assert count * voxel_mm3 == pytest.approx(1000 * ml.value, rel=1e-4)
    assert ml.value == pytest.approx((body() == 1000).sum() * 2.5 * 0.8 * 0.7 / 1000, rel=1e-4)
    assert float(measures.SliceThickness) == pytest.approx(2.5 if said == 25.0 else 5.0)


def test_one_slice_is_no_distance_from_another(tmp_path: Path) -> None:
    paths = save(stack(body(), spacing=(2.5, 0.8, 0.7), SpacingBetweenSlices=1.0)[5:6], tmp_path)
    [volume] = load(paths, 2)
    labels = (body()[5:6] == 1000).astype(np.uint8)
    reading = readings.volume_reading(volume, labels)
    documents = evidence.build(reading, [volume], readings.context(paths))
    gate.check(documents, reading, [volume], readings.context(paths))
    [measures] = documents[0].dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert "SpacingBetweenSlices" not in measures
    assert measures.SliceThickness == 5


def test_sections_without_a_frame_of_reference_are_not_suitable(tmp_path: Path) -> None:
    slices, mask = phantoms.volume("axial")
    for ds in slices:
        del ds.FrameOfReferenceUID
    paths = readings.written(slices, tmp_path)
    volume = readings.volume_of(slices, (2.0, 1.0, 1.0))
    with pytest.raises(Unsuitable, match="no Frame of Reference UID"):
        evidence.build(readings.volume_reading(volume, mask), [volume], readings.context(paths))


def test_slices_in_several_multi_frame_objects_are_not_suitable(tmp_path: Path) -> None:
    slices, mask = phantoms.volume("axial", "CT", (6, 16, 16))
    for ds in slices:
        plane, groups = Dataset(), Dataset()
        plane.ImagePositionPatient = ds.ImagePositionPatient
        groups.PlanePositionSequence = [plane]
        ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = 1, [groups]
    paths = readings.written(slices, tmp_path)
    [volume] = load(paths, 3)
    with pytest.raises(Unsuitable, match="its slices lie in 6 multi-frame objects"):
        evidence.build(readings.volume_reading(volume, mask), [volume], readings.context(paths))


def test_sections_without_a_position_are_not_suitable(tmp_path: Path) -> None:
    slices, mask = phantoms.volume("axial")
    paths = readings.written(slices[:1], tmp_path)
    film = replace(readings.film_of(slices[0]), pixels=readings.volume_of(slices[:1], None).pixels)
    with pytest.raises(Unsuitable, match="sections without a position"):
        evidence.build(readings.volume_reading(film, mask[mask.shape[0] // 2 :][:1]), [film], readings.context(paths))


def test_a_content_label_is_a_code_string() -> None:
    assert seg.content_label(readings.algorithm(label="Lung-fields (2D) v1.0")) == "LUNG_FIELDS_2D_V"
    assert seg.content_label(readings.algorithm(label="肺")) == "AI_SEGMENTATION"


def written(ds: Dataset) -> bytes:
    return evidence.to_bytes(evidence.EvidenceDocument("SEG", ds))


@pytest.mark.parametrize("shape", [(9, 5, 48), (8, 5, 7), (3, 16, 16)])
@pytest.mark.parametrize(("limit", "values"), [(400, (1, 2, 3)), (400, (1,)), (2, (1, 2, 3))])
def test_the_file_is_byte_for_byte_what_highdicom_writes(
    shape: tuple[int, int, int],
    limit: int,
    values: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = scattered(shape, len(values))
    labels[1], labels[2][labels[2] == 3] = 0, 0
    monkeypatch.setattr(seg, "EMPTY_FRAMES_UP_TO", limit)
    slices, _ = phantoms.volume("oblique", "CT", labels.shape, (2.0, 0.8, 0.7))
    volume = readings.volume_of(slices, (2.0, 0.8, 0.7))
    context = readings.context(readings.written(slices, tmp_path), seg_type="binary")
    segmentation = Segmentation(labels, volume.sources, tuple(segment(value, labels) for value in values))
    reading = Reading(readings.algorithm(), readings.STARTED, (), (segmentation,))
    ours = evidence.to_bytes(evidence.build(reading, [volume], context)[0])
    monkeypatch.setattr(seg, "_is_stack", lambda *given: False)
    assert ours == evidence.to_bytes(evidence.build(reading, [volume], context)[0])
