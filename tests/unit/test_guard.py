"""What a bundle declines: by header, by grid and values, and by what the image looks like."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from safetensors.torch import load_file, save_file

from node import bundles
from node.bundles import Bundle
from node.errors import BundleError
from node.findings import Source, Volume
from node.simulate.phantoms import chest_film
from tests.unit.phantom import film, save, segmenter, stack
from tests.unit.test_pipeline import request
from workers import restraint
from workers.pipeline import Outcome, read
from workers.predict.guard import Guard
from workers.predict.likeness import SIDE, STATISTICS, small_copy, statistics
from workers.report.rules_sr import COMPREHENSIVE_3D_SR
from workers.train import guard

FITTED = '[guard]\nfile = "guard.safetensors"\n'
RULES = (
    '[guard]\nclipped = 0.9\nspacing_mm = {min = 0.2, max = 3}\n[guard.header]\nViewPosition = {not = ["LL", "RL"]}\n'
)


def with_guard(folder: Path, text: str, dimensions: int = 2) -> Bundle:
    """A bundle that says where a film is bright, with `text` at the end of its dicom.toml."""
    segmenter(folder, dimensions)
    with (folder / "configs" / "dicom.toml").open("a") as file:
        file.write(text)
    return bundles.load(folder)


def disk(draw: np.random.Generator, size: int = 80) -> NDArray[np.uint8]:
    """A bright disk on a slope, about in the middle, with some grain."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    off, radius = draw.normal(0, 0.02, 2), draw.uniform(0.22, 0.3)
    values = 60 + 40 * y + 110 * (np.hypot(y - off[0], x - off[1]) < radius) + draw.normal(0, 3, (size, size))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose guard knows disks."""
    folder = tmp_path_factory.mktemp("disks")
    draw = np.random.default_rng(1)
    names = [f"{number}.png" for number in range(72)]
    for name in names:
        Image.fromarray(disk(draw)).save(folder / name)
    lists = {"training": [{"image": name} for name in names[:56]], "validation": [{"image": n} for n in names[56:]]}
    bundle = with_guard(folder / "bundle", FITTED)
    guard.STEPS[2], before = 60, guard.STEPS[2]
    try:
        figures = guard.fit(bundle, lists, folder, lambda _: None)
    finally:
        guard.STEPS[2] = before
    assert figures["training_images"] == 56
    assert figures["validation_declined"] <= 0.01
    return bundles.load(folder / "bundle")


def shown(pixels: NDArray[np.uint8]) -> Volume:
    return Volume(pixels[np.newaxis].astype(np.float32), np.eye(4), (Source("1.2"),), None, "CR", is_projection=True)


def test_images_like_the_training_images_pass_and_others_do_not(fitted: Bundle) -> None:
    looks, draw = Guard(fitted), np.random.default_rng(2)
    known = [looks.look(shown(disk(draw))).score for _ in range(20)]
    assert np.mean(np.array(known) > 1) <= 0.05
    one = disk(draw)
    noise = draw.integers(0, 255, (80, 80)).astype(np.uint8)
    smooth = np.repeat(np.linspace(0, 255, 80, dtype=np.uint8)[np.newaxis], 80, axis=0)
    for foreign in (noise, smooth, 255 - one, one[:40, :40], np.where(one > 150, 255, 0).astype(np.uint8)):
        look = looks.look(shown(foreign))
        assert look.score > 1
        assert look.unusual


def test_the_guard_is_in_the_digest_and_a_broken_one_is_told(fitted: Bundle, tmp_path: Path) -> None:
    bundle = with_guard(tmp_path / "broken", FITTED)
    with pytest.raises(BundleError, match=r"its guard guard.safetensors cannot be loaded .* models/guard.py"):
        Guard(bundle)
    before = bundle.digest
    (bundle.folder / "models" / "guard.safetensors").write_bytes(
        (fitted.folder / "models" / "guard.safetensors").read_bytes()
    )
    assert bundles.load(bundle.folder).digest != before
    assert Guard(bundle)


def test_a_guard_that_was_exchanged_under_a_warm_network_is_not_loaded(fitted: Bundle, tmp_path: Path) -> None:
    copied = bundles.load(Path(shutil.copytree(fitted.folder, tmp_path / "bundle")))
    assert copied.digest
    path = copied.folder / "models" / "guard.safetensors"
    state = load_file(path)
    save_file(state | {"limit": state["limit"] * 9}, path)
    with pytest.raises(BundleError, match="has changed while it was in use"):
        restraint.declined([], [shown(disk(np.random.default_rng(3)))], copied)


def test_a_foreign_film_is_not_suitable_in_words_and_with_its_score(fitted: Bundle, tmp_path: Path) -> None:
    files = save([film(chest_film(size=96)[0].pixel_array)], tmp_path / "in")
    outcome = read(request(fitted, files, tmp_path / "out"))
    assert (outcome.kind, outcome.documents) == ("unsuitable", ())
    assert "was not read by bundle 1.0.0: it is unlike the images that the model was trained on" in outcome.reason
    assert "limit 1)." in outcome.reason
    assert not (tmp_path / "out").exists()


def told(outcome: Outcome) -> Dataset:
    """The one document of an outcome."""
    (document,) = outcome.documents
    assert document["kind"] == "SR"
    return pydicom.dcmread(document["file"])


def texts(ds: Dataset) -> list[str]:
    found = [str(item.get("TextValue", "")) for item in ds.get("ContentSequence", ())]
    return found + [text for item in ds.get("ContentSequence", ()) for text in texts(item)]


def test_a_route_may_want_a_report_of_what_was_not_analyzed(tmp_path: Path) -> None:
    bundle = with_guard(tmp_path / "bundle", RULES)
    lateral = film(chest_film(size=96)[0].pixel_array, ViewPosition="LL")
    asked = request(bundle, save([lateral], tmp_path / "in"), tmp_path / "out", decline="report", results=("SC",))
    outcome = read(asked)
    assert outcome.kind == "unsuitable"
    assert "ViewPosition is LL, which is excluded" in outcome.reason
    ds = told(outcome)
    assert ds.SOPClassUID == COMPREHENSIVE_3D_SR
    assert any(t.startswith("Not analyzed by bundle 1.0.0, because ViewPosition is LL") for t in texts(ds))
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == lateral.SOPInstanceUID
    again = read(dataclasses.replace(asked, out=str(tmp_path / "again")))
    assert Path(outcome.documents[0]["file"]).read_bytes() == Path(again.documents[0]["file"]).read_bytes()


def test_a_declined_image_with_a_score_says_it_on_the_image(fitted: Bundle, tmp_path: Path) -> None:
    files = save([film(chest_film(size=96)[0].pixel_array)], tmp_path / "in")
    ds = told(read(request(fitted, files, tmp_path / "out", decline="report")))
    assert "AI: not analyzed, unlikeness (limit 1)" in str(ds)


def test_the_other_films_of_a_series_are_read(tmp_path: Path) -> None:
    bundle = with_guard(tmp_path / "bundle", RULES)
    pixels = chest_film(size=96)[0].pixel_array
    files = save([film(pixels, ViewPosition="LL"), film(pixels, ViewPosition="PA")], tmp_path / "in")
    for decline in ("silent", "report"):
        outcome = read(request(bundle, files, tmp_path / decline, decline=decline, results=("SR", "SC")))
        assert (outcome.kind, [d["kind"] for d in outcome.documents]) == ("reported", ["SC", "SR"])
        ds = pydicom.dcmread(outcome.documents[-1]["file"])
        assert any("1 of 2 images, because ViewPosition is LL" in text for text in texts(ds))


def test_a_simulator_may_have_it_read_all_the_same(tmp_path: Path) -> None:
    bundle = with_guard(tmp_path / "bundle", RULES)
    files = save([film(chest_film(size=96)[0].pixel_array, ViewPosition="LL")], tmp_path / "in")
    outcome = read(request(bundle, files, tmp_path / "out", decline="never"))
    assert outcome.kind == "reported"
    ds = pydicom.dcmread(outcome.documents[-1]["file"])
    assert any("Read all the same, as the route says, although ViewPosition is LL" in text for text in texts(ds))


def test_empty_clipped_and_coarse_images_are_declined(tmp_path: Path) -> None:
    bundle = with_guard(tmp_path / "bundle", RULES)
    empty = np.zeros((96, 96), np.uint16)
    empty[50, 50:53] = 9
    outcome = read(request(bundle, save([film(empty)], tmp_path / "empty"), tmp_path / "out"))
    assert "100% of its pixels lie at the lower limit: it is empty or clipped" in outcome.reason
    solid = with_guard(tmp_path / "solid", RULES.replace("ViewPosition", "PatientPosition"), dimensions=3)
    coarse = stack(np.random.default_rng(0).integers(0, 900, (8, 20, 20)).astype(np.uint16), spacing=(5.0, 1.0, 1.0))
    outcome = read(request(solid, save(coarse, tmp_path / "coarse"), tmp_path / "out"))
    assert "its spacing of 5 mm is above 3 mm" in outcome.reason


def test_a_volume_looks_the_same_however_it_was_cut() -> None:
    pixels = np.random.default_rng(0).random((32, 40, 36), np.float32)  # slice, row, column along z, y and x
    sources = tuple(Source("1.2", k + 1) for k in range(36))
    axial = Volume(pixels, np.eye(4), sources[:32], (1.0, 1.0, 1.0), "MR", is_projection=False)
    turned = np.ascontiguousarray(pixels.transpose(2, 0, 1)[:, ::-1])  # slices along x, rows down z, columns along y
    affine = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 31], [0, 0, 0, 1]], np.float64)
    sagittal = Volume(turned, affine, sources, (1.0, 1.0, 1.0), "MR", is_projection=False)
    assert torch.equal(small_copy(axial, 3), small_copy(sagittal, 3))
    assert small_copy(axial, 3).shape == (1, *[SIDE[3]] * 3)


def test_every_statistic_has_a_name() -> None:
    found = shown(disk(np.random.default_rng(3)))
    assert statistics(found, small_copy(found, 2)).shape == (len(STATISTICS),)


@pytest.mark.parametrize("text", ["clipped = 0", 'file = "../x.safetensors"', "spacing_mm = {min = 3, max = 1}"])
def test_a_guard_that_makes_no_sense_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="guard"):
        with_guard(tmp_path / "bundle", f"[guard]\n{text}\n")
