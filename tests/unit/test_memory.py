"""Out of memory: smaller batches of windows, the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from tests.unit.phantom import body, save, segmenter, stack
from workers.load.series import load
from workers.predict.memory import stepping_down
from workers.predict.network import Network

WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "sw_batch_size": 4, "overlap": 0.25}


class Narrow(torch.nn.Module):
    """Runs out of memory, by its own count, with more than so many windows at a time."""

    def __init__(self, network: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.asked = network, most, list[int]()

    def forward(self, image: torch.Tensor) -> Any:
        self.asked.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.network(image)


def test_smaller_batches_of_windows_give_the_same_answer(tmp_path: Path) -> None:
    bundle = segmenter(tmp_path / "phantom", inferer=WINDOWS)
    [volume] = load(save(stack(body()), tmp_path / "in"), 3)
    network = Network(bundle, "cpu", bundle.digest)
    expected = network.read(volume)
    narrow = Narrow(network._network, 1)
    network._runner._network = narrow
    assert np.array_equal(network.read(volume), expected)
    assert narrow.asked[:3] == [4, 2, 1]
    narrow.asked.clear()
    network.read(volume)
    assert set(narrow.asked) == {1}  # it does not try again what failed


def test_where_no_smaller_step_is_left_it_is_told() -> None:
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2)
    network = Narrow(torch.nn.Identity(), 0)
    with pytest.raises(torch.OutOfMemoryError):
        stepping_down(inferer, lambda: inferer(torch.zeros(1, 1, 16, 16, 16), network), "it")
    assert network.asked == [2, 1]


def test_another_fault_is_no_lack_of_memory() -> None:
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2)
    network = Narrow(torch.nn.Conv3d(3, 1, 1), 9)
    with pytest.raises(RuntimeError, match="channels"):
        stepping_down(inferer, lambda: inferer(torch.zeros(1, 1, 16, 16, 16), network), "it")
    assert inferer.sw_batch_size == 2


class Placed(torch.nn.Module):
    """Runs out of memory until the answer is put together somewhere else than on its own device."""

    def __init__(self, inferer: SlidingWindowInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.inferer.device is None:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return image * 2


def test_at_last_windows_are_put_together_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2)
    image = torch.rand(1, 1, 16, 16, 16)
    found = stepping_down(inferer, lambda: inferer(image, Placed(inferer)), "it")
    assert torch.allclose(found, image * 2)
    assert (inferer.sw_batch_size, inferer.device) == (1, torch.device("cpu"))


def test_what_monai_says_of_a_lack_of_memory_counts_too() -> None:
    inferer, asked = SlidingWindowInferer((8, 8, 8), sw_batch_size=2), list[int]()

    def infer() -> int:
        asked.append(inferer.sw_batch_size)
        if inferer.sw_batch_size == 1:
            return 1
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except RuntimeError as error:
            raise RuntimeError("Seems to be OOM.") from error

    assert stepping_down(inferer, infer, "it") == 1
    assert asked == [2, 1]
