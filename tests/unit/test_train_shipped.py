"""The train.json of the shipped bundles on a few images of one's own: fewer than a batch, fewer epochs than usual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle.workflows import ConfigWorkflow
from PIL import Image

from node.bundles import SHIPPED

_NETWORKS: dict[str, Any] = {
    "chest_xray": "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))",
    "hippocampus": "$torch.nn.Conv3d(1, 3, 1)",
    "lung_fields": "$torch.nn.Conv2d(1, 1, 1)",
}
IMAGES = 3


def _volume(path: Path, voxels: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)  # type: ignore[attr-defined,no-untyped-call]
    return path.name


def _picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path.name


def _cases(bundle: str, folder: Path, value: int = 1) -> list[dict[str, Any]]:
    """Images with a bright block, of odd sizes, and masks of it; `value` is what the mask of one label has."""
    cases: list[dict[str, Any]] = []
    for number in range(IMAGES):
        size = (33, 47, 29 + number) if bundle == "hippocampus" else (60, 41 + number)
        image, label = np.random.default_rng(number).uniform(0, 90, size), np.zeros(size, np.uint8)
        block = (slice(8, 24),) * len(size)
        image[block] += 100
        if bundle == "hippocampus":
            label[block], label[8:14, 8:14, 8:14] = 1, 2
            mask: Any = _volume(folder / f"{number}-mask.nii.gz", label)
            cases.append({"image": _volume(folder / f"{number}.nii.gz", image.astype(np.float32)), "label": mask})
        else:
            label[block] = value
            mask = _picture(folder / f"{value}-{number}-mask.png", label) if bundle == "lung_fields" else number % 2
            cases.append({"image": _picture(folder / f"{number}.png", image), "label": mask})
    return cases


def _workflow(bundle: str, folder: Path, cases: list[dict[str, Any]], **how: Any) -> ConfigWorkflow:
    listed = folder / "list.json"
    listed.write_text(json.dumps({"training": cases, "validation": cases}))
    workflow = ConfigWorkflow(
        config_file=str(SHIPPED / bundle / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        dataset_dir=str(folder),
        datalist=str(listed),
        output_dir=str(folder / "out"),
        network_def=_NETWORKS[bundle],
        **how,
    )
    workflow.initialize()
    return workflow


@pytest.mark.parametrize("bundle", _NETWORKS)
def test_fewer_images_than_a_batch_and_fewer_epochs_than_a_validation(bundle: str, tmp_path: Path) -> None:
    """An epoch had no batch, and no epoch was validated, so that nothing was kept; a list may be without cohorts."""
    workflow = _workflow(bundle, tmp_path, _cases(bundle, tmp_path), max_epochs=1)
    assert len(workflow.parser.get_parsed_content("train#dataloader")) == 1
    workflow.run()
    assert torch.load(tmp_path / "out" / "model.pt", weights_only=True)


@pytest.mark.parametrize(("epochs", "validated"), [(4, [2, 4]), (5, [2, 4, 5])])
def test_the_last_epoch_is_validated(epochs: int, validated: list[int], tmp_path: Path) -> None:
    cases = _cases("chest_xray", tmp_path)
    workflow = _workflow("chest_xray", tmp_path, cases, max_epochs=epochs, validate_every=2)
    parsed, found = workflow.parser.get_parsed_content, []
    trainer = parsed("train#trainer")
    parsed("validate#evaluator").add_event_handler(Events.COMPLETED, lambda: found.append(trainer.state.epoch))
    workflow.run()
    assert found == validated


def test_masks_of_any_one_value_are_the_same_to_a_training(tmp_path: Path) -> None:
    """As in a manifest, 0 and 1 are as good as 0 and 255; the former were taken for empty masks."""
    labels = []
    for value in (1, 255):
        workflow = _workflow("lung_fields", tmp_path, _cases("lung_fields", tmp_path, value))
        labels.append(workflow.parser.get_parsed_content("train#dataset")[0]["label"])
    assert labels[0].sum() > 1000
    torch.testing.assert_close(labels[0], labels[1])
