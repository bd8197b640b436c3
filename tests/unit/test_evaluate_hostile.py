"""`wetread evaluate` on what hospitals hand in: odd names, folders that are there, full disks, large manifests."""

from __future__ import annotations

import json
import resource
import tracemalloc
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from node import cli_child
from node.errors import ConfigError
from tests.unit.phantom import body, classifier, save, segmenter, stack
from tests.unit.test_evaluate import films, run, run_here
from workers.evaluate import images, manifest, metrics, plots
from workers.evaluate.images import MaskError
from workers.evaluate.manifest import Case
from workers.evaluate.overlap import Overlap
from workers.evaluate.scoring import Score

__all__ = ["run", "run_here"]


def test_names_are_names_and_no_formulas(tmp_path: Path, run_here: Any) -> None:
    """Two dollars made matplotlib read a formula, and the evaluation ended after all images were read."""
    classifier(tmp_path / "models" / "bright")
    name = "Größe $^$ 病院"
    films(tmp_path, {name: 0.1, "b": 0.9})
    assert run_here("bright", f"image,label,cohort\n{name}.png,1,ward $\\frac$\nb.png,0,_x\n")[0] == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(found["cohorts"]) == {"ward $\\frac$", "_x", "all"}
    assert name in (tmp_path / "out" / "cases.csv").read_text()


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(tmp_path: Path, run_here: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    (tmp_path / "out").symlink_to("/proc/self/net")  # where root cannot write either
    films(tmp_path, {"blank": 0.0})
    status, _, err = run_here("bright", "image,label\nblank.png,0\n")
    assert (status, "cannot be written to" in err, "No image was read; name another --out" in err) == (1, True, True), (
        err
    )


def test_pictures_of_an_earlier_evaluation_do_not_stay(tmp_path: Path, run_here: Any) -> None:
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.9})
    assert run_here("bright", "image,label\na.png,1\nb.png,0\n")[0] == 0
    (tmp_path / "out" / "mine.png").touch()
    assert (tmp_path / "out" / "worst.png").exists()
    assert run_here("bright", "image,label\na.png,0\nb.png,1\n")[0] == 0
    assert not (tmp_path / "out" / "worst.png").exists()
    assert (tmp_path / "out" / "mine.png").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, run_here: Any) -> None:
    """Half of metrics.json was written over a whole one. A limit on the size of a file stands for the disk."""
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.9})
    rows = "image,label\na.png,1\nb.png,0\n"
    assert run_here("bright", rows)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        status, _, err = run_here("bright", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, "cannot be written to: File too large. What lay there before" in err) == (1, True), err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_segments_that_are_nowhere_are_counted_and_not_averaged(tmp_path: Path, run_here: Any) -> None:
    """Part 1 is there and missed, Part 2 neither there nor found: 0 and undefined, and no file has a NaN."""
    segmenter(tmp_path / "models" / "phantom")
    dark = np.minimum(body(), 100)
    save(stack(dark), tmp_path / "series")
    empty = np.zeros(body().shape, np.uint8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ images.volume(tmp_path / "series", 3).affine_mm
    for name, voxels in (("drawn", (body() > 500).astype(np.uint8)), ("empty", empty)):
        nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), tmp_path / f"{name}.nii.gz")
    assert run_here("phantom", "image,label\nseries,drawn.nii.gz\n")[0] == 0
    table = json.loads((tmp_path / "out" / "metrics.json").read_text())["cohorts"]["all"]
    assert (table["dice"]["Part 1"]["value"], table["volume_error_percent"]["Part 1"]["value"]) == (0.0, 100.0)
    assert "hausdorff95_mm" not in table
    assert table["presence"]["Part 1"]["false_negative"] == table["presence"]["Part 2"]["true_negative"] == 1
    assert run_here("phantom", "image,label\nseries,empty.nii.gz\n")[0] == 0
    table = json.loads((tmp_path / "out" / "metrics.json").read_text())["cohorts"]["all"]
    assert set(table) == {"images", "patients", "presence"}


@pytest.mark.parametrize("one", [True, False])
def test_a_mask_that_is_not_finite_is_no_mask(one: bool, tmp_path: Path) -> None:
    """To a bundle of one segment all that was not 0 was the segment."""
    bundle = segmenter(tmp_path / "phantom")
    if one:
        dicom = bundle.dicom.model_copy(update={"segment": bundle.dicom.segment[:1]})
        bundle = bundle.model_copy(update={"dicom": dicom})
    save(stack(body()), tmp_path / "in")
    image = images.volume(tmp_path / "in", 3)
    voxels = np.zeros(body().shape, np.float32)
    voxels[3:5] = np.nan
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine_mm
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), tmp_path / "m.nii")
    with pytest.raises(MaskError, match=r"m\.nii has voxels that are not finite numbers"):
        images.mask(tmp_path / "m.nii", image, bundle)


def test_a_cell_that_is_longer_than_a_name_can_be_has_its_line(tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "bright")
    (tmp_path / "manifest.csv").write_text(f"image,label\n{'long' * 2000}.png,1\n")
    with pytest.raises(ConfigError, match=r':2: image "long[^"]{196}" does not exist'):
        manifest.load(tmp_path / "manifest.csv", bundle)


def test_the_intervals_of_many_patients_need_little_memory() -> None:
    """All resamples were kept at once: 12 GB for a million films."""
    count = 20_000
    values = np.random.default_rng(0).random(count)
    tracemalloc.start()
    try:
        statistic = metrics.means({"dice": values})
        found = metrics.with_intervals(statistic, np.arange(count), [str(k) for k in range(count)])["dice"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6
    low, high = found["ci95"]
    assert low < found["value"] < high


def test_whoever_waits_hears_of_every_interval(tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 15 minutes of silence the child is ended, and all is lost."""
    heard: list[str] = []
    classifier(tmp_path / "models" / "bright")
    films(tmp_path, {"a": 0.1, "b": 0.9})
    follow = cli_child.follow

    def listening(module: str, request: str, silence_s: float | None, tell: Any) -> None:
        follow(module, request, silence_s, lambda message: heard.append(str(message.get("image"))))

    monkeypatch.setattr(cli_child, "follow", listening)
    assert run_here("bright", "image,label,cohort\na.png,0,x\nb.png,1,y\n")[0] == 0
    assert heard.count("the intervals of Bright") == 3


def test_a_name_is_the_same_however_its_letters_are_written(tmp_path: Path) -> None:
    """A table from a Mac may have u and two dots where dicom.toml has one letter."""
    bundle = classifier(tmp_path / "bright")
    entry = bundle.dicom.finding[0].model_copy(update={"label": unicodedata.normalize("NFC", "Größe")})
    bundle = bundle.model_copy(update={"dicom": bundle.dicom.model_copy(update={"finding": [entry]})})
    (tmp_path / "a.png").touch()
    label = unicodedata.normalize("NFD", "Größe")
    assert label != entry.label
    (tmp_path / "manifest.csv").write_text(f"image,label\na.png,{label}\n")
    [case] = manifest.load(tmp_path / "manifest.csv", bundle)
    assert case.truth == (True,)


def test_a_table_of_a_windows_machine_is_told_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes("image,label\nBrüche.png,1\n".encode("cp1252"))
    with pytest.raises(ConfigError, match='it is not UTF-8 text; save it as "CSV UTF-8"'):
        manifest.load(tmp_path / "manifest.csv", classifier(tmp_path / "bright"))


def test_a_flat_mask_is_turned_onto_its_image_or_refused(tmp_path: Path) -> None:
    """Only volumes were looked at: the mirror image of a mask was compared as it lay."""
    bundle = segmenter(tmp_path / "phantom", dimensions=2)
    film, drawn = body()[3:4].astype(np.int16), (body()[3:4] > 500).astype(np.uint8)
    mirror, shifted = np.diag([-1.0, 1.0, 1.0, 1.0]), np.eye(4)
    mirror[0, 3] = film.shape[2] - 1
    shifted[0, 3] = 3
    for name, voxels, affine in (
        ("film", film, np.eye(4)),
        ("same", drawn, np.eye(4)),
        ("mirror", drawn[..., ::-1], mirror),
        ("shifted", drawn, shifted),
    ):
        nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), tmp_path / f"{name}.nii")
    image = images.volume(tmp_path / "film.nii", 2)
    for name in ("same", "mirror"):
        assert np.array_equal(images.mask(tmp_path / f"{name}.nii", image, bundle), drawn), name
    with pytest.raises(MaskError, match=r"shifted\.nii lies on another grid"):
        images.mask(tmp_path / "shifted.nii", image, bundle)


def test_many_cohorts_and_segments_are_a_picture(tmp_path: Path) -> None:
    """A hundred organs in five cohorts were wider than a picture can be, which ended the evaluation."""
    bundle = segmenter(tmp_path / "phantom")
    fit = Overlap(0.9, 1.0, 1.0, 1.0)
    scores = [
        Score(Case(k, f"{k}", tmp_path, tmp_path, f"{k}", f"cohort {k}"), (), (fit, fit), "mL", True) for k in range(60)
    ]
    with Image.open(BytesIO(plots.segmentation(scores, bundle, [])["dice.png"])) as picture:
        assert picture.width < 10_000


@pytest.mark.parametrize("wrong", ["shifted.nii", "short.nii", "small.png"])
def test_a_mask_on_another_grid_is_told_before_anything_is_read(
    wrong: str, tmp_path: Path, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of a thousand masks ended the evaluation after the 999 images before it were read."""
    flat = wrong.endswith(".png")
    segmenter(tmp_path / "models" / "phantom", dimensions=2 if flat else 3)
    drawn = (body() > 500).astype(np.uint8)
    shifted = np.eye(4)
    shifted[0, 3] = 3
    for name, voxels, affine in (
        ("a.nii", body().astype(np.int16), np.eye(4)),
        ("b.nii", body().astype(np.int16), np.eye(4)),
        ("mask.nii", drawn, np.eye(4)),
        ("shifted.nii", drawn, shifted),
        ("short.nii", drawn[:-1], np.eye(4)),
    ):
        nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), tmp_path / name)
    for name, pixels in (("a.png", body()[4] // 4), ("b.png", body()[4] // 4), ("mask.png", drawn[4])):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
    Image.fromarray(drawn[4, :-2]).save(tmp_path / "small.png")
    read: list[str] = []
    monkeypatch.setattr("workers.evaluate.run.score", lambda case, *more: read.append(case.name))
    kind = "png" if flat else "nii"
    status, _, err = run_here("phantom", f"image,label\na.{kind},mask.{kind}\nb.{kind},{wrong}\n")
    assert (status, f"manifest.csv:3: {wrong} " in err, read) == (2, True, []), err


def test_a_mask_whose_axis_has_no_length_is_named(tmp_path: Path) -> None:
    save(stack(body()), tmp_path / "in")
    image = images.volume(tmp_path / "in", 3)
    nifti = nib.Nifti1Image(np.zeros((16, 20, 12), np.uint8), None)
    nifti.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(nifti, tmp_path / "m.nii")
    with pytest.raises(MaskError, match=r"m\.nii has an affine in which an axis has no length"):
        images.mask(tmp_path / "m.nii", image, segmenter(tmp_path / "phantom"))
