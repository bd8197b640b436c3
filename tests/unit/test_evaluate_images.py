"""Pictures, NIfTI and DICOM of the same thing become the same volume; masks fit or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from node.bundles import Bundle
from node.errors import Unsuitable
from node.findings import Volume
from tests.unit.phantom import OBLIQUE, ORIENTATIONS, body, film, save, segmenter, stack
from workers.evaluate.images import MaskError, mask, volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TRUTH = (body() > 500).astype(np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return segmenter(tmp_path / "phantom")


def nifti(path: Path, voxels: Any, lps: Any) -> Path:
    """Write voxels (slice, row, column) with the affine of a `Volume`."""
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), _LPS_TO_RAS @ lps), path)
    return path


def series(folder: Path, **how: Any) -> Volume:
    save(stack(body(), **how), folder)
    return volume(folder, 3)


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_nifti_is_the_volume_that_dicom_is(cosines: Any, tmp_path: Path) -> None:
    expected = series(tmp_path / "in", cosines=cosines, spacing=(2.5, 0.8, 0.7))
    found = volume(nifti(tmp_path / "same.nii.gz", body().astype(np.int16), expected.affine_mm), 3)
    assert np.array_equal(found.pixels, expected.pixels)
    assert np.allclose(found.affine_mm, expected.affine_mm, atol=1e-4)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-4)
    assert len(found.sources) == len(expected.sources)


def test_a_picture_is_the_film_that_dicom_is(tmp_path: Path) -> None:
    grey = (body()[5] // 4).astype(np.uint8)
    [path] = save([film(grey)], tmp_path / "in")
    expected = volume(path, 2)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "rgb.png")
    for name in ("a.png", "rgb.png"):
        found = volume(tmp_path / name, 2)
        assert np.array_equal(found.pixels, expected.pixels)
        assert np.array_equal(found.affine_mm, expected.affine_mm)
        assert (found.spacing_mm, found.is_projection) == (None, True)


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    Image.fromarray(body()[5]).save(tmp_path / "deep.png")
    assert np.array_equal(volume(tmp_path / "deep.png", 2).pixels[0], body()[5])


def test_what_is_declined(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (tmp_path / "broken.nii").write_bytes(b"no NIfTI")
    (tmp_path / "text.dcm").write_text("no DICOM")
    skewed = np.eye(4)
    skewed[0, 1] = 0.3
    nifti(tmp_path / "skewed.nii", body().astype(np.int16), skewed)
    holes = body().astype(np.float32)
    holes[0, 0, 0] = np.nan
    nifti(tmp_path / "nan.nii", holes, np.eye(4))
    nifti(tmp_path / "deep.nii", body().astype(np.int16), np.eye(4))
    for name, dimensions, told in (
        ("blank.png", 2, "blank: all pixels have the value 9"),
        ("broken.png", 2, "cannot be read as a picture"),
        ("blank.png", 3, "has 1 slice; the bundle reads 3D"),
        ("broken.nii", 3, "cannot be read as NIfTI"),
        ("skewed.nii", 3, "right angles"),
        ("nan.nii", 3, "not finite"),
        ("deep.nii", 2, "has 12 slices; the bundle reads 2D"),
        ("text.dcm", 2, "text.dcm"),
    ):
        with pytest.raises(Unsuitable, match=told):
            volume(tmp_path / name, dimensions)  # type: ignore[arg-type]


def test_one_line_is_one_series_and_one_film(tmp_path: Path) -> None:
    datasets = stack(body())
    datasets[3].SeriesInstanceUID = "1.2.3.9"
    save(datasets, tmp_path / "two")
    with pytest.raises(Unsuitable, match="two holds 2 DICOM series"):
        volume(tmp_path / "two", 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(Unsuitable, match="none holds 0 DICOM series"):
        volume(tmp_path / "none", 3)
    save(stack(body()), tmp_path / "films")
    with pytest.raises(Unsuitable, match="films has 12 images"):
        volume(tmp_path / "films", 2)


@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_mask_is_turned_onto_its_image(flips: tuple[int, ...], tmp_path: Path, bundle: Bundle) -> None:
    image = series(tmp_path / "in", cosines=OBLIQUE, spacing=(2.5, 0.8, 0.7))
    flip = np.eye(4)
    for axis in flips:  # of (column, row, slice)
        flip[axis, axis], flip[axis, 3] = -1, TRUTH.shape[2 - axis] - 1
    turned = np.flip(TRUTH, [2 - axis for axis in flips])
    assert np.array_equal(mask(nifti(tmp_path / "m.nii.gz", turned, image.affine_mm @ flip), image, bundle), TRUTH)


def test_a_mask_whose_axes_are_swapped(tmp_path: Path, bundle: Bundle) -> None:
    image = series(tmp_path / "in")
    swap = np.eye(4)[[1, 0, 2, 3]]
    path = nifti(tmp_path / "m.nii", TRUTH.transpose(0, 2, 1), image.affine_mm @ swap)
    assert np.array_equal(mask(path, image, bundle), TRUTH)


def test_masks_that_do_not_belong(tmp_path: Path, bundle: Bundle) -> None:
    image = series(tmp_path / "in")
    shifted = image.affine_mm.copy()
    shifted[0, 3] += 0.5
    for voxels, affine, told in (
        (TRUTH, shifted, "another grid"),
        (TRUTH[1:], image.affine_mm, "another grid|has 11 × 20 × 16 voxels .* its image 12 × 20 × 16"),
        (TRUTH * 7, image.affine_mm, r"has the labels 7; phantom 1\.0\.0 has 1, 2"),
    ):
        with pytest.raises(MaskError, match=told):
            mask(nifti(tmp_path / "m.nii", voxels, affine), image, bundle)
    Image.fromarray(TRUTH[5]).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match="has 1 × 20 × 16 voxels"):
        mask(tmp_path / "m.png", image, bundle)


def test_a_palette_colors_a_mask_and_says_nothing(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", dimensions=2)
    labels = np.zeros((20, 16), np.uint8)
    labels[3:6, 2:9], labels[9:12, 2:9] = 1, 2
    colored = Image.fromarray(labels, mode="P")
    colored.putpalette([0, 0, 0, 230, 96, 77, 77, 157, 230])
    colored.save(tmp_path / "m.png")
    Image.fromarray((body()[5] // 4).astype(np.uint8)).save(tmp_path / "a.png")
    assert np.array_equal(mask(tmp_path / "m.png", volume(tmp_path / "a.png", 2), bundle)[0], labels)


def test_one_segment_takes_any_one_value(tmp_path: Path) -> None:
    two = segmenter(tmp_path / "phantom", dimensions=2)
    one = two.model_copy(update={"dicom": two.dicom.model_copy(update={"segment": two.dicom.segment[:1]})})
    Image.fromarray(TRUTH[5] * 255).save(tmp_path / "m.png")
    Image.fromarray((body()[5] // 4).astype(np.uint8)).save(tmp_path / "a.png")
    image = volume(tmp_path / "a.png", 2)
    assert np.array_equal(mask(tmp_path / "m.png", image, one)[0], TRUTH[5])
    with pytest.raises(MaskError, match="has the labels 255"):
        mask(tmp_path / "m.png", image, two)
