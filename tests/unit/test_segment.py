"""Label maps on the source grid: slice for slice and voxel for voxel, through MONAI's resampling and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from node.bundles import SHIPPED, Bundle
from node.bundles import load as load_bundle
from node.clock import to_datetime
from node.errors import Permanent
from node.findings import Segmentation, Volume
from tests.unit import zoo
from tests.unit.phantom import ORIENTATIONS, body, film, save, segmenter, stack
from workers.load.series import load
from workers.predict.network import Network
from workers.predict.reading import read
from workers.predict.segment import segmentation

MASK = body() == 1000


def segment(bundle: Bundle, volumes: Sequence[Volume]) -> tuple[Segmentation, ...]:
    return read(Network(bundle, "cpu", bundle.digest), volumes, bundle, to_datetime(0)).segmentations


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_the_mask_lands_on_its_own_voxels(cosines: Sequence[float], tmp_path: Path) -> None:
    datasets = stack(body(), cosines)
    shuffled = [datasets[k] for k in np.random.default_rng(11).permutation(12)]
    volumes = load(save(shuffled, tmp_path / "in"), 3)
    [found] = segment(segmenter(tmp_path / "phantom"), volumes)
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels, MASK)
    assert [source.sop_instance_uid for source in found.sources] == [ds.SOPInstanceUID for ds in datasets]


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_the_mask_lands_in_its_place_through_resampling(cosines: Sequence[float], tmp_path: Path) -> None:
    volumes = load(save(stack(body(), cosines, (2.5, 0.8, 0.7)), tmp_path / "in"), 3)
    [found] = segment(segmenter(tmp_path / "phantom", pixdim=0.5), volumes)
    for k in range(12):  # slice for slice, not only as a whole
        assert dice(found.labels[k] == 1, MASK[k]) > 0.9 if MASK[k].any() else not found.labels[k].any()
    assert dice(found.labels == 1, MASK) > 0.95
    shift = np.argwhere(found.labels == 1).mean(0) - np.argwhere(MASK).mean(0)
    assert np.abs(shift).max() < 0.1


def test_labels_that_were_interpolated_are_no_labels(tmp_path: Path) -> None:
    steps = [
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
        | {"nearest_interp": False},
    ]
    bundle = segmenter(tmp_path / "zoo", pixdim=0.7, postprocessing={"_target_": "Compose", "transforms": steps})
    volumes = load(save(stack(body()), tmp_path / "in"), 3)
    with pytest.raises(Permanent, match=r"where labels are whole numbers\..* after argmax nearest_interp = true"):
        segment(bundle, volumes)


ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
BACK = "$lambda case: monai.transforms.Invertd('pred', @preprocessing, 'image', nearest_interp=False)(case)"
TURNED = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}


@pytest.mark.parametrize(
    "moved",
    [TURNED, {"_target_": "Flipd", "keys": "image", "spatial_axis": 0}, {**TURNED, "axcodes": "ALS"}],
    ids=["turned", "mirrored", "axes of one length exchanged"],
)
def test_a_bundle_that_does_not_bring_its_labels_back_says_nothing(moved: dict[str, str], tmp_path: Path) -> None:
    config = {
        "preprocessing": zoo.steps(zoo.LOAD, zoo.FIRST, moved),
        "postprocessing": zoo.steps(ARGMAX, {**zoo.SAVE, "resample": True}),  # MONAI's own would turn them
    }
    volumes = load(save(stack(body(12, 20, 20)), tmp_path / "in"), 3)
    with pytest.raises(
        Permanent, match=r"it could be mirrored\. Nothing was reported\. Its postprocessing must have one"
    ):
        segment(segmenter(tmp_path / "phantom", **config), volumes)


def test_to_bring_the_image_back_is_not_to_bring_the_labels_back(tmp_path: Path) -> None:
    back = {"_target_": "Invertd", "keys": "image", "transform": "@preprocessing", "nearest_interp": False}
    volumes = load(save(stack(body()), tmp_path / "in"), 3)
    with pytest.raises(Permanent, match="it could be mirrored"):
        segment(segmenter(tmp_path / "phantom", postprocessing=zoo.steps(back, ARGMAX)), volumes)


def test_a_mirrored_film_is_not_reported_either(tmp_path: Path) -> None:
    mirrored = {"_target_": "Flipd", "keys": "image", "spatial_axis": 0}
    config = {"preprocessing": zoo.steps(zoo.LOAD, zoo.FIRST, mirrored), "postprocessing": zoo.steps(ARGMAX)}
    volumes = load(save([film(body()[4])], tmp_path / "in"), 2)
    with pytest.raises(Permanent, match="it could be mirrored"):
        segment(segmenter(tmp_path / "phantom", dimensions=2, **config), volumes)


@pytest.mark.parametrize(("axcodes", "steps"), [("LPS", [ARGMAX]), ("RAS", [BACK, ARGMAX])], ids=["unmoved", "own way"])
def test_labels_may_come_back_another_way_or_never_have_left(axcodes: str, steps: list[object], tmp_path: Path) -> None:
    config = {
        "imports": ["$import monai"],
        "preprocessing": zoo.steps(zoo.LOAD, zoo.FIRST, {**TURNED, "axcodes": axcodes}),
        "postprocessing": {"_target_": "Compose", "transforms": steps},
    }
    [found] = segment(segmenter(tmp_path / "phantom", **config), load(save(stack(body()), tmp_path / "in"), 3))
    assert np.array_equal(found.labels, MASK)


def test_a_film_is_segmented_on_its_own_grid(tmp_path: Path) -> None:
    picture = np.zeros((90, 120), np.uint16)
    picture[20:60, 70:110] = 1000
    picture[20:30, 10:110] = 1000
    volumes = load(save([film(picture), film(picture[:, ::-1].copy(), InstanceNumber=2)], tmp_path / "in"), 2)
    first, second = segment(segmenter(tmp_path / "phantom", dimensions=2), volumes)
    assert first.labels.shape == (1, 90, 120)
    assert dice(first.labels[0] == 1, picture == 1000) > 0.97
    assert np.array_equal(second.labels, first.labels[:, :, ::-1])
    assert second.sources == volumes[1].sources


def test_segments_carry_what_the_bundle_says_of_them(tmp_path: Path) -> None:
    volumes = load(save(stack(body()), tmp_path / "in"), 3)
    [found] = segment(segmenter(tmp_path / "phantom"), volumes)
    part, empty = found.segments
    assert (part.value, part.label, part.type.value, part.color) == (1, "Part 1", "39607008", "#e6604d")
    assert not part.is_empty
    assert empty.is_empty
    assert empty.measurements == ()


def test_the_node_reads_what_monai_bundle_run_reads(tmp_path: Path) -> None:
    bundle = load_bundle(SHIPPED / "hippocampus")
    shape = (30, 44, 38)
    noise = np.random.default_rng(2).integers(0, 300, shape).astype(np.uint16)
    noise[8:22, 10:34, 9:27] += 400
    [volume] = load(save(stack(noise, ORIENTATIONS["sagittal"], (1.25, 1.125, 0.875)), tmp_path / "in"), 3)
    [found] = segment(bundle, [volume])
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine_mm
    nib.save(nib.Nifti1Image(volume.pixels.transpose(2, 1, 0), ras), tmp_path / "same.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle.folder)]
    command += ["--config_file", str(bundle.folder / "configs" / "inference.json")]
    command += ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    [written] = (tmp_path / "out").rglob("*.nii.gz")
    theirs = np.asarray(nib.load(written).dataobj).transpose(2, 1, 0)
    assert found.labels.any()
    # Exactly: the spacing is one that NIfTI's single precision holds. Spacingd turns the last digit into a shift.
    assert np.array_equal(theirs, found.labels)


@pytest.mark.parametrize(
    ("pred", "reason"),
    [
        (np.zeros((1, 16, 20, 11)), r"grid of \(1, 16, 20, 11\); the source grid is \(1, 16, 20, 12\)"),
        (np.zeros((1, 20, 16, 12)), r"grid of \(1, 20, 16, 12\)"),
        (np.zeros((3, 16, 20, 12)), r"grid of \(3, 16, 20, 12\)"),
        (np.full((1, 16, 20, 12), 7), r"labels \[7\] that dicom\.toml does not explain"),
        (np.full((1, 16, 20, 12), 0.4), r"answered with 0\.4 where labels are whole numbers"),
    ],
)
def test_an_answer_that_does_not_fit_is_not_reported(pred: NDArray[np.float64], reason: str, tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    with pytest.raises(Permanent, match=reason):
        segmentation(pred, volume, segmenter(tmp_path / "phantom"))
