"""A bundle whose evaluator does more than a reading does would be read otherwise than its author runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.errors import BundleError, Permanent
from tests.unit.phantom import body, classifier, film, save, segmenter, stack
from tests.unit.zoo import FIRST, INVERT, LOAD, SAVE, steps
from workers.load.series import load
from workers.predict.engine import require_plain
from workers.predict.network import Network

ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
TRANSPOSED = {"_target_": "Transposed", "keys": "image", "indices": [0, 2, 1]}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"evaluator": {"_target_": "EnsembleEvaluator", "networks": ["@a", "@b"]}}, "an ensemble of several networks"),
        ({"evaluator": {"_target_": "monai.engines.EnsembleEvaluator"}}, "an ensemble of several networks"),
        ({"evaluator": {"prepare_batch": "$scripts.batch.prepare"}}, "has prepare_batch of its own"),
        ({"evaluator": {"iteration_update": "@update"}}, "has iteration_update of its own"),
        ({"evaluator": {"inferer": "@sliding"}, "sliding": {"_target_": "SlidingWindowInferer"}}, "uses sliding"),
        (
            {"network": "$torch.nn.Sequential(@network_def, torch.nn.Softmax(1)).to(@device)"},
            "is more than network_def",
        ),
        ({"network": {"_target_": "scripts.net.Wrapper", "inner": "@network_def"}}, "is more than network_def"),
    ],
)
def test_what_a_reading_would_leave_out_is_declined_with_the_remedy(more: Any, reason: str, tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", **more)
    with pytest.raises(BundleError, match=reason):
        Network(bundle, "cpu", bundle.digest)


@pytest.mark.parametrize(
    "config",
    [
        {"network": "$@network_def.to(@device)"},
        {"network": "$@network_def.cuda().eval()"},
        {"network": "@network_def"},
        {"network": "$torch.nn.parallel.DistributedDataParallel(@network_def.to(@device), device_ids=[@device])"},
        {"network": "$torch.nn.SyncBatchNorm.convert_sync_batchnorm(@network_def.to(@device))"},
        {"network": {"_target_": "torch.nn.DataParallel", "module": "@network_def"}},
        {"network": {"_target_": "UNet", "spatial_dims": 3}},
        {"evaluator": {"_target_": "SupervisedEvaluator", "inferer": "@inferer", "postprocessing": "@postprocessing"}},
        {"evaluator": {"inferer": "@sliding"}, "inferer": "@sliding", "sliding": {"_target_": "SlidingWindowInferer"}},
        {"evaluator": {"postprocessing": "$@post if @last else None"}},
        {"evaluator": "@other"},
        {},
    ],
)
def test_what_comes_to_the_same_is_left_alone(config: dict[str, Any]) -> None:
    require_plain(config, "Zoo 1.0")


def test_a_film_that_is_transposed_must_be_transposed_back(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[5:20, 30:60] = 900
    [volume] = load(save([film(pixels)], tmp_path / "in"), 2)
    before = steps(LOAD, FIRST, TRANSPOSED)
    lost = segmenter(tmp_path / "lost", dimensions=2, preprocessing=before, postprocessing=steps(ARGMAX, SAVE))
    with pytest.raises(Permanent, match="does not bring the answer back"):
        Network(lost, "cpu", lost.digest).read(volume)
    after = steps(ARGMAX, {**TRANSPOSED, "keys": "pred"}, SAVE)
    kept = segmenter(tmp_path / "kept", dimensions=2, preprocessing=before, postprocessing=after)
    assert np.array_equal(Network(kept, "cpu", kept.digest).read(volume)[0].T, pixels > 500)


RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}


@pytest.mark.parametrize(
    ("inverse", "reason"),
    [
        ({}, ""),
        ({"keys": "image"}, "must have one Invertd for pred"),
        ({"orig_keys": "spare", "quickly": True}, "must have one Invertd for pred"),
        ({"orig_keys": "spare"}, "must have one Invertd for pred"),
        ({"transform": "@other"}, "must have one Invertd for pred"),
        ({"twice": True}, "must have one Invertd for pred"),
    ],
)
def test_an_inverse_of_something_else_brings_nothing_back(inverse: Any, reason: str, tmp_path: Path) -> None:
    inverse = dict(inverse)
    pixels = body()
    [volume] = load(save(stack(pixels), tmp_path / "in"), 3)
    before = steps(LOAD, FIRST, {"_target_": "CopyItemsd", "keys": "image", "names": "spare"}, RAS)
    more = [INVERT] if inverse.pop("twice", False) else []
    if inverse.pop("quickly", False):
        inverse["nearest_interp"] = False
        before["transforms"].append({"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0]})
    after = steps(INVERT | {"nearest_interp": True} | inverse, *more, ARGMAX)  # nearest: no quick way is taken
    other = steps(LOAD, FIRST)
    bundle = segmenter(tmp_path / "phantom", preprocessing=before, postprocessing=after, other=other)
    network = Network(bundle, "cpu", bundle.digest)
    if reason:
        with pytest.raises(Permanent, match=reason):
            network.read(volume)
    else:
        assert np.array_equal(network.read(volume)[0].transpose(2, 1, 0) == 1, volume.pixels > 500)


def test_a_mask_needs_the_place_of_its_image_and_a_probability_does_not(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[5:20, 30:60] = 900
    [volume] = load(save([film(pixels)], tmp_path / "in"), 2)
    before = steps(LOAD, FIRST, {"_target_": "EnsureTyped", "keys": "image", "track_meta": False})
    mask = segmenter(tmp_path / "mask", dimensions=2, preprocessing=before, postprocessing=steps(ARGMAX))
    with pytest.raises(Permanent, match="takes the place from its images"):
        Network(mask, "cpu", mask.digest).read(volume)
    told = classifier(tmp_path / "told", preprocessing=before)
    assert Network(told, "cpu", told.digest).read(volume).shape == (1,)


@pytest.mark.parametrize("answer", ["[{}]", "({},)", "{{'out': {}}}"])
def test_several_outputs_are_declined_with_the_remedy(answer: str, tmp_path: Path) -> None:
    said = answer.format("torch.nn.Conv3d.forward(s, x)")
    net = f"$type('Several', (torch.nn.Conv3d,), {{'forward': lambda s, x: {said}}})(1, 3, 1)"
    bundle = segmenter(tmp_path / "phantom", network_def=net)
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    with pytest.raises(Permanent, match="return the one that is meant"):
        Network(bundle, "cpu", bundle.digest).read(volume)
