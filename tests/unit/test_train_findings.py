"""A bundle of several findings, trained by `wetread train` with the augmentation of whole batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from node import bundles
from tests.unit.phantom import classifier
from tests.unit.test_train import TRAIN, run

_NETWORK = "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4, 2))"
_PREPARE = {
    "_target_": "workers.train.augment.Augment",
    "geometry": {"_target_": "workers.train.augment.Geometry", "size": [20, 20], "translate": 1.0},
    "look": {"_target_": "workers.train.augment.Look", "scale": 0.1},
    "classes": 2,
    "mixup": 0.4,
}


@pytest.fixture
def lights(tmp_path: Path) -> bundles.Bundle:
    """A bundle of two findings, light above and light below, that trains with mixup."""
    made = classifier(tmp_path / "models" / "lights", network_def=_NETWORK)
    configs = made.folder / "configs"
    train = json.loads(json.dumps(TRAIN | {"network_def": _NETWORK}))
    loss = "$lambda pred, label: torch.nn.BCEWithLogitsLoss()(pred, torch.as_tensor(label).float())"
    train["train"]["trainer"] |= {"prepare_batch": _PREPARE, "loss_function": loss}
    train["validate"]["evaluator"]["prepare_batch"] = _PREPARE | {"mixup": 0.0}
    (configs / "train.json").write_text(json.dumps(train))
    text = (configs / "dicom.toml").read_text()
    head, entry = text.split("[[finding]]")
    second = entry.replace("output = 0", "output = 1").replace('"Bright"', '"Below"').replace("39607008", "39607009")
    (configs / "dicom.toml").write_text("[[finding]]".join([head, entry.replace('"Bright"', '"Above"'), second]))
    torch.save({"2.weight": torch.zeros(2, 4), "2.bias": torch.zeros(2)}, made.folder / "models" / "model.pt")
    return bundles.load(made.folder)


def test_two_findings_are_trained_for_one_epoch(lights: bundles.Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = ["image,label"]
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 60, (20, 20), np.uint8)
        above, below = number % 2, number // 2 % 2
        pixels[:10] += 180 * np.uint8(above)
        pixels[10:] += 180 * np.uint8(below)
        Image.fromarray(pixels).save(data / f"{number}.png")
        lines.append(f"{number}.png," + (";".join(["Above"] * above + ["Below"] * below) or "0"))
    (data / "manifest.csv").write_text("\n".join(lines) + "\n")
    run(lights, data, tmp_path / "out", epochs=1, overrides={"optimizer#lr": 0.5})
    [point] = json.loads((tmp_path / "out" / "docs" / "curves.json").read_text())
    assert point["val_auc"] > 0.8
