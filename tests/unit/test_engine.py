"""A bundle whose evaluator does more than a reading does would be read otherwise than its author runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.errors import BundleError, Permanent
from tests.unit.phantom import film, save, segmenter
from tests.unit.zoo import FIRST, LOAD, SAVE, steps
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
