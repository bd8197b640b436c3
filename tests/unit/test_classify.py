"""Probabilities become Findings, present or absent; what is no probability is not reported."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from node.clock import to_datetime
from node.errors import Permanent
from node.findings import Finding
from tests.unit import zoo
from tests.unit.phantom import body, classifier, film, save, stack
from workers.load.series import load
from workers.predict.classify import findings
from workers.predict.network import Network
from workers.predict.reading import DECIDED, read

BRIGHT = np.pad(np.full((30, 30), 4000, np.uint16), 2)


def read_films(tmp_path: Path, *films: NDArray[np.uint16], **attributes: str) -> tuple[Finding, ...]:
    datasets = [film(pixels, InstanceNumber=k, **attributes) for k, pixels in enumerate(films)]
    bundle = classifier(tmp_path / "phantom")
    network = Network(bundle, "cpu", bundle.digest)
    return read(network, load(save(datasets, tmp_path / "in"), 2), bundle, to_datetime(0)).findings


def test_one_finding_per_film_present_or_absent(tmp_path: Path) -> None:
    bright, dark = read_films(tmp_path, BRIGHT, np.pad(np.zeros((30, 30), np.uint16), 2, constant_values=4000))
    assert bright.present
    assert bright.probability == pytest.approx(1 / (1 + np.exp(5 - 10 * 900 / 1156)), abs=1e-5)
    assert not dark.present
    assert bright.source != dark.source
    assert (bright.label, bright.type.value, bright.threshold, bright.calibrated) == ("Bright", "39607008", 0.5, True)


def test_an_inverted_film_reads_the_same(tmp_path: Path) -> None:
    [plain] = read_films(tmp_path / "1", BRIGHT)
    [inverted] = read_films(tmp_path / "2", BRIGHT.max() - BRIGHT, PhotometricInterpretation="MONOCHROME1")
    assert plain.probability == inverted.probability


@pytest.mark.parametrize(
    ("pred", "reason"),
    [
        (np.array([1.2]), "no probabilities"),
        (np.array([-0.1]), "no probabilities"),
        (np.array([np.nan]), "no probabilities"),
        (np.zeros((1, 1)), r"in shape 1×1; dicom\.toml explains 1 outputs"),
        (np.zeros(0), r"in shape 0; dicom\.toml explains 1 outputs"),
    ],
)
def test_what_is_no_probability_is_not_reported(pred: NDArray[np.float64], reason: str, tmp_path: Path) -> None:
    [volume] = load(save([film(BRIGHT)], tmp_path / "in"), 2)
    with pytest.raises(Permanent, match=reason):
        findings(pred, volume, classifier(tmp_path / "phantom"))


def test_the_finding_of_a_stack_points_at_its_middle(tmp_path: Path) -> None:
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    [found] = findings(np.array([0.7]), volume, classifier(tmp_path / "phantom"))
    assert found.source == volume.sources[6]


def test_the_algorithm_is_named_with_threshold_and_weights(tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "phantom")
    [volume] = load(save([film(BRIGHT)], tmp_path / "in"), 2)
    named = read(Network(bundle, "cpu", bundle.digest), [volume], bundle, to_datetime(0)).algorithm
    assert (named.name, named.version, named.label, named.manufacturer) == ("phantom", "1.0.0", "Phantom", "wetread")
    assert named.parameters == ("threshold=0.5", f"weights_sha256={bundle.weights_sha256}")
    assert named.device_uid == bundle.device_uid


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_decides_has_no_probabilities_and_the_report_says_so(nested: bool, tmp_path: Path) -> None:
    after = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
    ]
    steps = after if not nested else [{"_target_": "Compose", "transforms": after}]
    bundle = classifier(tmp_path / "phantom", postprocessing={"_target_": "Compose", "transforms": steps})
    [volume] = load(save([film(BRIGHT)], tmp_path / "in"), 2)
    reading = read(Network(bundle, "cpu", bundle.digest), [volume], bundle, to_datetime(0))
    [found] = reading.findings
    assert (found.probability, found.present, found.calibrated) == (1.0, True, False)
    assert reading.remarks == (DECIDED,)


def test_weights_that_were_exchanged_on_disk_are_not_named_for_a_warm_network(tmp_path: Path) -> None:
    bundle = classifier(tmp_path / "phantom")
    [volume] = load(save([film(BRIGHT)], tmp_path / "in"), 2)
    before = (bundle.folder / "models" / "model.pt").read_bytes()
    network = Network(bundle, "cpu", bundle.digest)
    (bundle.folder / "models" / "model.pt").write_bytes(b"others")
    named = read(network, [volume], bundle, to_datetime(0)).algorithm
    assert named.weights_sha256 == hashlib.sha256(before).hexdigest()


@pytest.mark.parametrize(
    ("classes", "steps", "weight", "reason"),
    [
        (1, [{"softmax": True}], 0.0, "the softmax of one output"),
        (3, [{"softmax": True}, {"argmax": True}], 0.0, "the number of one of 3 classes"),
        (1, [], 0.4, "answers noise with"),
        (3, [{"argmax": True, "to_onehot": 3}], 0.0, ""),
        (2, [{"argmax": True}], 0.0, ""),
        (2, [{"softmax": True}], 0.4, ""),
    ],
)
def test_numbers_between_0_and_1_that_are_no_probabilities(
    classes: int, steps: list[dict[str, Any]], weight: float, reason: str, tmp_path: Path
) -> None:
    post = [
        {"_target_": "Activationsd" if "softmax" in step else "AsDiscreted", "keys": "pred"} | step for step in steps
    ]
    config = {
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), "
        f"torch.nn.Linear(1, {classes}))",
        "preprocessing": zoo.steps(zoo.LOAD, zoo.FIRST, {"_target_": "ScaleIntensityd", "keys": "image"}),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": zoo.steps(*post),
    }
    entry = f'[[finding]]\noutput = 0\nlabel = "X"\ntype = {zoo.CODE}\nthreshold = 0.5\ncalibrated = true\n'
    state = {"2.weight": torch.full((classes, 1), weight), "2.bias": torch.full((classes,), 0.1)}
    bundle = zoo.write(tmp_path / "zoo", zoo.head("classification", 2) + entry, config, state)
    pixels = np.zeros((32, 32), np.uint16)
    pixels[:16] = 900
    [volume] = load(save([film(pixels)], tmp_path / "in"), 2)
    network = Network(bundle, "cpu", bundle.digest)
    alone = threading.Lock()
    network.turn, infer = lambda: alone, network._inferer
    network._inferer = lambda *given: infer(*given) if alone.locked() else pytest.fail("computed out of turn")
    if reason:
        with pytest.raises(Permanent, match=reason):
            network.read(volume)
    else:
        assert findings(network.read(volume), volume, bundle)
