"""Temperature and threshold after a training: few validation images say little, and what is written says that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from node import bundles
from node.bundles import Bundle
from tests.unit.phantom import classifier
from workers.train.calibrate import calibrate, choose
from workers.train.card import _calibration

Numbers = NDArray[np.float64]


def said(present: int, absent: int, wrong: int = 0) -> tuple[Numbers, Numbers]:
    """Truth and probability of images that are told apart, but for `wrong` of each class."""
    truth = np.repeat([1.0, 0.0], [present, absent])
    probability = np.where(truth == 1, 0.8, 0.2) + np.linspace(0, 0.1, present + absent)
    probability[:wrong], probability[present : present + wrong] = 0.3, 0.7
    return truth, probability


@pytest.mark.parametrize("own", [1.0, 0.463])
@pytest.mark.parametrize(
    ("images", "told"),
    [
        ((3, 2), "one class has 2 validation images, fewer than 10"),
        ((40, 9, 1), "one class has 9 validation images"),
        ((40, 40), "told apart without an error"),
    ],
)
def test_a_temperature_that_cannot_be_told_stays(images: tuple[int, ...], told: str, own: float) -> None:
    """It ran to its bound of 0.05, and every later probability was 0 or 1."""
    chosen = choose(*said(*images), 0.95, own)
    assert (chosen["temperature"], chosen["temperature_is"]) == (own, "kept")
    assert f"still that of the old weights, {own:g}: " in chosen["notes"][0]
    assert told in chosen["notes"][0]


def test_enough_images_with_errors_say_a_temperature() -> None:
    chosen = choose(*said(40, 40, 4), 0.95, 9.5)
    assert 0.2 < chosen["temperature"] < 2
    assert (chosen["temperature_is"], chosen["notes"]) == ("chosen", [])


def test_a_bundle_without_a_temperature_gets_none() -> None:
    truth, probability = said(30, 30)
    chosen = choose(truth, probability, 0.95, None)
    assert (chosen["temperature"], chosen["temperature_is"], chosen["notes"]) == (1.0, "none", [])
    assert np.mean(probability[truth == 1] >= chosen["threshold"]) == pytest.approx(chosen["sensitivity"], abs=1e-4)


def test_a_threshold_on_few_images_says_what_it_may_miss() -> None:
    chosen = choose(*said(3, 30, 1), 0.95, None)
    assert chosen["sensitivity"] == 1
    assert chosen["sensitivity_ci95"] == [0.2924, 1.0]  # 0.025 ** (1 / 3): three of three
    assert chosen["notes"] == [
        "The threshold rests on 3 images with the finding, fewer than 20: "
        "its sensitivity on other patients may be anything from 29 to 100 %."
    ]


@pytest.fixture
def tempered(tmp_path: Path) -> Bundle:
    """A bundle with a temperature of 2.5, and five films of which two are bright."""
    steps: list[dict[str, Any]] = [
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda logit: logit / @temperature"},
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
    ]
    post = {"_target_": "Compose", "transforms": steps}
    return classifier(tmp_path / "models" / "bright", temperature=2.5, postprocessing=post)


def test_five_films_leave_temperature_and_calibration_as_they_are(tempered: Bundle, tmp_path: Path) -> None:
    out = classifier(tmp_path / "out").folder
    (out / "docs").mkdir()
    for path in (tempered.folder / "configs").iterdir():
        (out / "configs" / path.name).write_bytes(path.read_bytes())
    cases = []
    for number, share in enumerate((0.1, 0.2, 0.3, 0.7, 0.9)):
        pixels = np.zeros(1000, np.uint8)
        pixels[: round(share * 1000)] = 255
        Image.fromarray(pixels.reshape(20, 50)).save(tmp_path / f"{number}.png")
        cases.append({"image": f"{number}.png", "label": int(share > 0.5)})
    chosen = calibrate(out, tempered, cases, tmp_path, 0.0, lambda message: None)
    assert json.loads((out / "configs" / "inference.json").read_text())["temperature"] == 2.5
    assert json.loads((out / "docs" / "calibration.json").read_text()) == chosen
    finding = bundles.load(out).dicom.finding[0]
    assert (finding.threshold, finding.calibrated) == (chosen["threshold"], False)
    card = _calibration(tempered, chosen)
    assert card.startswith(f"Threshold {chosen['threshold']:g} was chosen again on 5 validation images")
    assert all(note in card for note in chosen["notes"])
    assert len(chosen["notes"]) == 2
