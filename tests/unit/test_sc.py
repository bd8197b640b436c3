from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from node.findings import Reading, Volume
from node.simulate import phantoms
from tests import readings
from workers.report import evidence, picture
from workers.report.context import Context
from workers.report.picture import Line, Mask


def film(tmp_path: Path, size: int = 256, **attributes: object) -> tuple[Volume, Context]:
    ds, _ = phantoms.chest_film(size=size)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return readings.film_of(ds), readings.context(readings.written([ds], tmp_path), results=("SC",))


def captures(reading: Reading, volumes: list[Volume], context: Context) -> list[Dataset]:
    return [document.dataset for document in evidence.build(reading, volumes, context)]


def pixels(ds: Dataset) -> NDArray[np.uint8]:
    return np.frombuffer(ds.PixelData, np.uint8)[: ds.Rows * ds.Columns * 3].reshape(ds.Rows, ds.Columns, 3)


def near(image: NDArray[np.uint8], color: str) -> int:
    """How many pixels have about this color."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image.astype(int) - wanted).max(axis=-1) < 24).sum())


def test_the_key_image_says_what_it_is(tmp_path: Path) -> None:
    volume, context = film(tmp_path, BodyPartExamined="CHEST")
    (ds,) = captures(readings.film_reading(volume), [volume], context)
    assert (ds.Modality, ds.ConversionType, ds.BurnedInAnnotation) == ("OT", "DI", "YES")
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY"]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == volume.sources[0].sop_instance_uid
    assert ds.BodyPartExamined == "CHEST"
    assert "not for diagnostic use" in ds.DerivationDescription
    assert "PixelSpacing" not in ds, "it was scaled"


def test_outlines_and_lines_are_in_the_segments_colors(tmp_path: Path) -> None:
    volume, context = film(tmp_path)
    (ds,) = captures(readings.film_reading(volume), [volume], context)
    image = pixels(ds)
    part = image[: 3 * ds.Rows // 4]
    assert near(part, "#4aa3ff") > 500, "the outline"
    assert near(image[3 * ds.Rows // 4 :], "#4aa3ff") > 100, "its swatch"
    assert near(image[3 * ds.Rows // 4 :], "#ffb347") > 300, "the notice"
    nothing = captures(replace(readings.film_reading(volume), segmentations=()), [volume], context)[0]
    assert near(pixels(nothing)[: nothing.Rows // 2], "#4aa3ff") == 0


@pytest.mark.parametrize(("size", "longest"), [(32, 768), (900, 900), (1500, 1024)])
def test_tiny_images_grow_and_large_ones_shrink(tmp_path: Path, size: int, longest: int) -> None:
    volume, context = film(tmp_path, size)
    (ds,) = captures(readings.film_reading(volume), [volume], context)
    assert ds.Columns == longest
    assert longest < ds.Rows < 2 * longest


def test_circles_stay_round_where_pixels_are_not_square() -> None:
    pixels = np.zeros((50, 100), np.float32)
    rendered = picture.render(pixels=pixels, pixel_aspect=2.0, window=(0, 1), masks=[], notice="", caption="", lines=[])
    assert rendered.shape[1] == 768
    assert rendered.shape[0] > 768


def test_the_key_slice_is_where_the_segments_are_largest(tmp_path: Path) -> None:
    slices, mask = phantoms.volume("axial", "MR", (12, 32, 32))
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    context = readings.context(readings.written(slices, tmp_path), results=("SC",))
    (ds,) = captures(readings.volume_reading(volume, mask), [volume], context)
    largest = int(np.argmax((mask > 0).sum(axis=(1, 2))))
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == volume.sources[largest].sop_instance_uid


def test_films_of_one_series_are_pages_of_one_series(tmp_path: Path) -> None:
    slices = [phantoms.chest_film(seed, size=64)[0] for seed in (1, 2)]
    slices[1].StudyInstanceUID = slices[0].StudyInstanceUID
    slices[1].SeriesInstanceUID = slices[0].SeriesInstanceUID
    volumes = [readings.film_of(ds) for ds in slices]
    context = readings.context(readings.written(slices, tmp_path), results=("SC",))
    made = captures(Reading(readings.algorithm(), readings.STARTED), volumes, context)
    assert [ds.InstanceNumber for ds in made] == [1, 2]
    assert len({ds.SeriesInstanceUID for ds in made}) == 1
    assert len({ds.SOPInstanceUID for ds in made}) == 2


@pytest.mark.parametrize(("part", "has_laterality"), [("CHEST", False), ("BREAST", True), ("", True)])
def test_laterality_is_there_where_the_part_may_be_a_paired_one(
    tmp_path: Path, part: str, has_laterality: bool
) -> None:
    volume, context = film(tmp_path, 64, BodyPartExamined=part, ImageLaterality="L")
    (ds,) = captures(readings.film_reading(volume), [volume], context)
    assert ("Laterality" in ds) == has_laterality
    assert ds.get("Laterality", "L") == "L"


def test_long_labels_do_not_run_into_their_values() -> None:
    lines = [Line("#ffffff", "An exceedingly long label of a finding that nobody should ever use " * 3, "99.9 %")]
    masks = [Mask(np.eye(40, dtype=bool), "#ff0000")]
    rendered = picture.render(
        pixels=np.random.default_rng(0).random((40, 40)).astype(np.float32),
        pixel_aspect=1.0,
        window=(0, 1),
        masks=masks,
        notice="Notice",
        caption="Caption " * 80,
        lines=lines,
    )
    assert rendered.shape[1] == 768
    assert rendered[768:, -10:].max() < 60 or rendered[800:, -4:].max() < 60, "nothing runs over the edge"


def test_the_window_ignores_outliers_and_survives_a_flat_image() -> None:
    values = np.linspace(0, 100, 10_000, dtype=np.float32).reshape(1, 100, 100)
    values[0, 0, 0] = 1e6
    low, high = picture.window(values)
    assert (low, high) == (pytest.approx(0.5, abs=0.1), pytest.approx(99.5, abs=0.1))
    low, high = picture.window(np.zeros((1, 4, 4), np.float32))
    assert high > low
