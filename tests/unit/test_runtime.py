"""OpenVINO gives PyTorch's answer, or PyTorch gives it itself."""

from __future__ import annotations

import logging

import pytest
import torch

from node.bundles import SHIPPED
from node.bundles import load as load_bundle
from node.errors import Permanent
from workers.predict import norms, runtime
from workers.predict.network import Network
from workers.predict.runtime import Runner

CPU = torch.device("cpu")


class ByHeart(torch.nn.Module):
    """Its trace holds for images of one size only."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * (1.0 if image.shape[-1] > 20 else 2.0)


class Several(torch.nn.Module):
    """Answers with two tensors."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image, image


@pytest.mark.parametrize(("name", "shape"), [("chest_xray", (1, 224, 224)), ("hippocampus", (1, 32, 40, 24))])
def test_shipped_networks_say_the_same(name: str, shape: tuple[int, ...]) -> None:
    bundle = load_bundle(SHIPPED / name)
    network = Network(bundle, "cpu", bundle.digest)._network
    runner = Runner(network, CPU, "auto", bundle.title)
    with torch.inference_mode():
        for count in (1, 2):
            image = torch.rand((count, *shape), generator=torch.Generator().manual_seed(5))
            expected, found = network(image).softmax(1), runner(image).softmax(1)
            assert runner.name == "openvino"
            assert float((expected - found).abs().max()) <= 1e-4


@pytest.mark.parametrize("is_affine", [True, False])
def test_an_instance_norm_of_a_large_sparse_volume_is_exact(is_affine: bool) -> None:
    image = torch.relu(torch.randn(1, 8, 64, 80, 72, generator=torch.Generator().manual_seed(1)) - 2)
    network = torch.nn.Sequential(torch.nn.InstanceNorm3d(8, affine=is_affine), torch.nn.ReLU())
    expected = network.double()(image.double()).detach()
    runner = Runner(network.float(), CPU, "openvino", "it")
    with torch.inference_mode():
        found = runner(image)
    assert runner.name == "openvino"
    # OpenVINO's own is off by 2e-4 here
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_norms_in_exact_sums_say_the_same_and_leave_the_network_alone() -> None:
    parts = (torch.nn.InstanceNorm2d(3, affine=True), torch.nn.InstanceNorm2d(3, track_running_stats=True))
    network = torch.nn.Sequential(torch.nn.Sequential(*parts), torch.nn.Conv2d(3, 1, 1)).eval()
    exact = norms.exact(network)
    image = torch.randn(2, 3, 20, 12)
    assert torch.allclose(exact(image), network(image), atol=1e-5)
    kinds = ["AxisByAxis", "InstanceNorm2d", "Conv2d"]
    assert [type(part).__name__ for part in exact.modules() if not list(part.children())] == kinds
    assert type(network[0][0]) is torch.nn.InstanceNorm2d  # type: ignore[index]
    assert norms.exact(network[1]) is network[1]


def test_an_answer_is_not_overwritten_by_the_next() -> None:
    runner = Runner(torch.nn.Conv2d(1, 1, 1), CPU, "openvino", "it")
    with torch.inference_mode():
        first = runner(torch.ones(1, 1, 8, 8))
        before = first.clone()
        runner(torch.zeros(1, 1, 8, 8))
    assert torch.equal(first, before)


@pytest.mark.parametrize("network", [ByHeart(), Several()], ids=["by heart", "several"])
def test_another_answer_is_left_to_pytorch(network: torch.nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(network, CPU, "auto", "it 1.0")
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        large, small = runner(torch.ones(1, 1, 32, 32)), runner(torch.ones(1, 1, 16, 16))
    assert runner.name == "torch"
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "it 1.0 runs in PyTorch, not in OpenVINO"
    ]
    if isinstance(network, ByHeart):
        assert (small.max(), large.max()) == (2.0, 1.0)


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    network = torch.nn.Conv2d(1, 1, 1)
    runner = Runner(network, CPU, "auto", "it")
    with torch.inference_mode():
        assert torch.equal(runner(torch.ones(1, 1, 8, 8)), network(torch.ones(1, 1, 8, 8)))
    with pytest.raises(Permanent, match=r'pip install "wetread\[openvino\]", or set "auto"'):
        Runner(network, CPU, "openvino", "it")
