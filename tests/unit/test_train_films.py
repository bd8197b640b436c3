"""What a manifest names before a training: films of every kind become what train.json opens, wrong masks end it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from node import bundles
from node.errors import ConfigError
from tests.unit.phantom import film, save
from workers.train import films, run
from workers.train.datalist import Lists

CHEST, LUNGS, HIPPOCAMPUS = (
    bundles.load(bundles.SHIPPED / name) for name in ("chest_xray", "lung_fields", "hippocampus")
)
PIXELS = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 3


def _prepared(folder: Path, image: str, label: Any, bundle: bundles.Bundle = CHEST, listed: str = "") -> Lists:
    """As from a manifest, or from the data list of this name."""
    for name in ("manifest.csv", f"{bundle.name}.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / (listed or "manifest.csv")).touch()
    lists: Lists = {"training": [{"image": image, "label": label}], "validation": [], "test": []}
    return films.prepared(lists, folder, folder / "out", bundle, lambda _: None)


def _nifti(path: Path, voxels: NDArray[Any]) -> str:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)  # type: ignore[attr-defined,no-untyped-call]
    return path.name


def _dicom(folder: Path, **attributes: Any) -> str:
    return save([film(PIXELS, **attributes)], folder)[0].name


def _deep(folder: Path) -> str:
    Image.fromarray(PIXELS).save(folder / "deep.png")
    return "deep.png"


@pytest.mark.parametrize(
    "write",
    [_dicom, _deep, lambda folder: _nifti(folder / "film.nii.gz", PIXELS.T[..., np.newaxis])],
    ids=["DICOM", "16 bits", "NIfTI"],
)
def test_a_film_becomes_a_picture_that_train_json_opens(write: Any, tmp_path: Path) -> None:
    [case] = _prepared(tmp_path, write(tmp_path), 1)["training"]
    picture = Image.open(tmp_path / case["image"])
    assert (picture.mode, picture.size, case["label"]) == ("L", (30, 40), 1)
    expected = 255 * (PIXELS / PIXELS.max())
    assert np.abs(np.asarray(picture) - expected).max() < 2


def test_pictures_stay_where_they_are(tmp_path: Path) -> None:
    Image.fromarray((PIXELS // 20).astype(np.uint8)).save(tmp_path / "a.png")
    assert _prepared(tmp_path, "a.png", 0)["training"] == [{"image": "a.png", "label": 0}]
    assert not (tmp_path / "out").exists()


def test_a_mask_in_nifti_becomes_a_picture_on_the_grid_of_its_film(tmp_path: Path) -> None:
    label = (PIXELS > 1000).astype(np.uint8)
    mask = _nifti(tmp_path / "mask.nii", label.T[..., np.newaxis])
    [case] = _prepared(tmp_path, _dicom(tmp_path), mask, LUNGS)["training"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / case["label"])), label)


def test_what_is_wrong_ends_it_before_the_training(tmp_path: Path) -> None:
    image = _nifti(tmp_path / "crop.nii.gz", np.random.default_rng(0).random((20, 22, 24), np.float32))
    other = np.zeros((20, 22, 24), np.uint8)
    other[5:9] = 255
    other[9:12] = 1
    for mask, told in ((other, r"has the labels 255; .* has 1, 2"), (other[:10], r"has 24 × 22 × 10 voxels")):
        name = _nifti(tmp_path / "mask.nii.gz", mask)
        with pytest.raises(ConfigError, match=rf"manifest\.csv: mask\.nii\.gz {told}.*Nothing was trained"):
            _prepared(tmp_path, image, name, HIPPOCAMPUS)
        with pytest.raises(ConfigError, match=rf"hippocampus\.json: mask\.nii\.gz {told}.*Nothing was trained"):
            _prepared(tmp_path, image, name, HIPPOCAMPUS, "hippocampus.json")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"broken\.png cannot be read as a picture.*take its line out"):
        _prepared(tmp_path, "broken.png", 1)


def test_the_files_of_a_data_list_stay_what_its_train_json_expects(tmp_path: Path) -> None:
    """`monai.bundle run` on the same list must give the same; kinds that only a train.json knows are not looked at."""
    mask = _nifti(tmp_path / "mask.nii", (PIXELS > 1000).astype(np.uint8).T[..., np.newaxis])
    for image, label in ((_dicom(tmp_path), mask), ("film.npy", mask), ("film.png", "mask.mha"), (["a", "b"], "m")):
        assert _prepared(tmp_path, image, label, LUNGS, "lung_fields.json")["training"] == [  # type: ignore[arg-type]
            {"image": image, "label": label}
        ]
    assert not (tmp_path / "out").exists()


def test_a_guard_of_too_few_images_stays_the_old_one(tmp_path: Path) -> None:
    """The weights were trained, and the command ended without card and figures."""
    shutil.copytree(CHEST.folder / "configs", tmp_path / "configs")
    (tmp_path / "models").mkdir()
    said = run._fit_guard(CHEST, tmp_path, {"training": [], "validation": []}, tmp_path)
    assert "The guard is still that of chest_xray" in said
    assert "a guard needs 8 readable training images; there are 0" in said
    name = Path("models") / "guard.safetensors"
    assert (tmp_path / name).read_bytes() == (CHEST.folder / name).read_bytes()
