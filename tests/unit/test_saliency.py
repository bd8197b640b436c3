"""The picture of a saliency map: color where the model looked, the film untouched elsewhere, and words for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from node.findings import Reading, Saliency
from node.simulate import phantoms
from tests import readings
from workers.report import evidence, heat, picture, saliency
from workers.report.run import Run


def captures(tmp_path: Path, values: NDArray[np.float32] | None = None) -> tuple[Dataset, ...]:
    """The maps of one film with a finding that is present and one that is absent."""
    ds, _ = phantoms.chest_film(size=256)
    volume = readings.film_of(ds)
    present, absent = readings.film_reading(volume).findings
    found = readings.explained(present, volume)
    if values is not None:
        found = replace(present, saliency=Saliency(values[np.newaxis], "occlusion sensitivity"))
    reading = Reading(readings.algorithm("chest_xray", "Chest X-ray"), readings.STARTED, (found, absent))
    context = readings.context(readings.written([ds], tmp_path), results=("SALIENCY",))
    return tuple(document.dataset for document in evidence.build(reading, [volume], context))


def colored(ds: Dataset) -> NDArray[np.bool_]:
    """Which pixels of the film (not of the panel) are not gray."""
    image = np.frombuffer(ds.PixelData, np.uint8)[: ds.Rows * ds.Columns * 3].reshape(ds.Rows, ds.Columns, 3)
    film = image[: ds.Columns].astype(int)
    return np.asarray(film.max(axis=-1) - film.min(axis=-1) > 12)


def test_only_what_has_a_map_is_drawn_and_it_says_what_it_is(tmp_path: Path) -> None:
    [ds] = captures(tmp_path)
    assert ds.SeriesDescription == "AI Chest X-ray saliency map"
    assert (ds.BurnedInAnnotation, list(ds.ImageType), ds.Modality) == ("YES", ["DERIVED", "SECONDARY"], "OT")
    assert ds.DerivationDescription == (
        "Saliency map (Grad-CAM) of Abnormal chest radiograph, over the image it was made of. "
        "AI result, not for diagnostic use."
    )
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID


def test_color_lies_where_the_model_looked_and_nowhere_else(tmp_path: Path) -> None:
    where = colored(captures(tmp_path)[0])
    side = len(where)
    assert where[side // 2 : 5 * side // 6, side // 2 : 5 * side // 6].mean() > 0.95
    assert not where[: side // 3].any()
    assert not where[:, : side // 3].any()


def test_an_empty_map_leaves_the_film_gray(tmp_path: Path) -> None:
    assert not colored(captures(tmp_path, np.zeros((256, 256), np.float32))[0]).any()


def test_of_a_volume_the_slice_with_the_strongest_place_is_shown(tmp_path: Path) -> None:
    slices, _ = phantoms.volume("axial", "MR", (12, 32, 32))
    volume = readings.volume_of(slices, (2.5, 1.2, 0.9))
    found = readings.explained(readings.finding(volume), volume)
    assert found.saliency is not None
    reading = Reading(readings.algorithm(), readings.STARTED, (found,))
    context = readings.context(readings.written(slices, tmp_path), results=("SALIENCY",))
    [ds] = saliency.build(Run(reading, context, tuple(slices)), [volume])
    strongest = int(found.saliency.values.max(axis=(1, 2)).argmax())
    assert strongest != found.saliency.values.shape[0] // 2, "or the middle would do"
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == volume.sources[strongest].sop_instance_uid


def test_the_ramp_takes_even_steps_and_rises_in_lightness() -> None:
    dense = heat.srgb(heat._path(np.linspace(0, 1, 1000)))
    assert dense.min() >= 0, "every color can be shown"
    assert dense.max() <= 1
    gray = heat.ramp().astype(int) @ [299, 587, 114]
    assert (np.diff(gray[::4]) > 0).all(), "it reads in gray too"
    steps = np.linalg.norm(np.diff(heat.ramp()[::16].astype(float), axis=0), axis=1)
    assert steps.min() > 0


def test_strong_places_still_show_the_film() -> None:
    checks = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((16, 16))).astype(np.uint8)
    shown = np.asarray(heat.over(Image.fromarray(checks).convert("RGB"), np.ones((8, 8), np.float32)), int)
    assert abs(shown[8, 8] - shown[8, 24]).min() > 80


@pytest.mark.parametrize(("value", "share"), [(0.0, 0.0), (0.2, 0.0), (1.0, 0.55)])
def test_weak_places_are_clear(value: float, share: float) -> None:
    assert heat.opacity(np.array([value], np.float32))[0] == pytest.approx(share)


def test_the_key_to_the_colors_is_below_the_film() -> None:
    gray = np.full((64, 64), 0.5, np.float32)

    def rendered(heat_map: picture.Heat | None) -> NDArray[np.uint8]:
        return picture.render(
            pixels=gray,
            pixel_aspect=1.0,
            window=(0, 1),
            masks=[],
            notice="Notice",
            caption="Caption",
            lines=[],
            heat_map=heat_map,
        )

    plain, keyed = rendered(None), rendered(picture.Heat(np.zeros((64, 64), np.float32), "What moved the model"))
    assert keyed.shape[0] > plain.shape[0]
    strongest = heat.bar(256, 1).getpixel((255, 0))
    assert (np.abs(keyed[768:].astype(int) - strongest).max(axis=-1) < 6).any()
    assert not (np.abs(plain[768:].astype(int) - strongest).max(axis=-1) < 6).any()
