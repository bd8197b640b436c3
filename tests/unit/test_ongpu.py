"""What a GPU does instead of the CPU says the same; on CUDA itself where there is some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Lambdad

from tests.bench import reading
from tests.unit.phantom import ORIENTATIONS, body, save, segmenter, stack
from tests.unit.test_resample import PIXDIMS, chains, classes, image
from workers.load.series import load
from workers.predict import grid, ongpu, quick, resample
from workers.predict.memory import stepping_down
from workers.predict.network import Network

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "sw_batch_size": 4, "overlap": 0.25}


@pytest.mark.parametrize("kind", ["noise", "blobs", "equal"])
@pytest.mark.parametrize("step", [0.4, 1.0, 1.7])
def test_labels_are_those_of_the_cpu(kind: str, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ongpu, "VOXELS_AT_ONCE", 5000)  # several slabs, the last one smaller
    values = classes(image(ORIENTATIONS["axial"])[None], kind).as_tensor()
    sizes = [1 + int((size - 1) / step) for size in values.shape[1:]]
    axes: Any = tuple(
        resample._axis(0.0, step, n, size, "border") for n, size in zip(sizes, values.shape[1:], strict=True)
    )
    expected = grid.labels_on_grid(values.numpy(), axes, resample.in_parallel)
    found = ongpu.labels_on_grid(values, axes)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)
    assert found.numpy().strides == expected.strides


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_a_whole_chain_says_the_same(cosines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, ours = chains(PIXDIMS[0]), chains(PIXDIMS[0])
    quick.quicken(*ours)
    assert quick.makes_labels_anywhere(ours[1])
    monkeypatch.setattr(resample, "_labels", ongpu.labels_on_grid)
    answers = []
    for before, after in (usual, ours):
        case = before({"image": image(cosines)})
        case["pred"] = classes(case["image"], "blobs")
        answers.append(after(case)["pred"].as_tensor())
    assert torch.equal(*answers)


def test_only_steps_that_are_known_get_what_lies_on_a_gpu() -> None:
    before, after = chains(PIXDIMS[0])
    assert not quick.makes_labels_anywhere(after), "MONAI's own steps"
    quick.quicken(before, after)
    assert quick.makes_labels_anywhere(after)
    after.transforms = (Lambdad(keys="pred", func=np.asarray), *after.transforms)
    assert not quick.makes_labels_anywhere(after)
    assert not quick.makes_labels_anywhere(Compose([Activationsd("pred", softmax=True), AsDiscreted("pred")]))


@on_cuda
def test_cuda_reads_what_the_cpu_reads(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", inferer=WINDOWS)
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    expected = Network(bundle, "cpu", bundle.digest).read(volume)
    assert np.array_equal(Network(bundle, "cuda", bundle.digest).read(volume), expected)


@on_cuda
def test_where_cuda_has_no_room_windows_are_put_together_on_the_cpu() -> None:
    network, image = torch.nn.Conv3d(1, 3, 1).cuda(), torch.rand(1, 1, 128, 128, 128, device="cuda")
    inferer = SlidingWindowInferer((64, 64, 64), sw_batch_size=8)
    with torch.inference_mode():
        expected = inferer(image, network).cpu()
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 20e6  # the answer takes 25 MB
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
        try:
            found = stepping_down(inferer, lambda: inferer(image, network), "it")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert (inferer.sw_batch_size, found.device.type) == (1, "cpu")
    assert torch.allclose(found, expected, atol=1e-2)


@on_cuda
def test_both_ways_agree_on_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    reading.main(["--rounds", "1", "--cases", "hippocampus", "--device", "cuda", "--json"])
    [pair] = json.loads(capsys.readouterr().out)
    assert pair["mean_dice"] >= 0.9999
