"""A saliency map lies where the network looked, on the source grid, and leaves the warm network as it was."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from node import bundles
from node.bundles import SHIPPED, Bundle, ExplainEntry
from node.clock import to_datetime
from node.errors import BundleError
from node.findings import Reading, Volume
from node.simulate.phantoms import chest_film
from tests import readings
from tests.unit.phantom import LAYER, SPOT, SQUARE, bright_spot, film, save
from workers.load.series import load
from workers.predict.explain import explain, saliency
from workers.predict.network import Network
from workers.predict.reading import read

OCCLUSION = '[explain]\nmethod = "occlusion"\n'


def spot(tmp_path: Path, brightest: int = 4000) -> list[Volume]:
    pixels = np.where(SPOT > 0, brightest, 0).astype(np.uint16)
    pixels[0, 0] = 4000
    return list(load(save([film(pixels)], tmp_path / "in"), 2))


def explained(bundle: Bundle, volumes: list[Volume]) -> Reading:
    network = Network(bundle, "cpu", bundle.digest)
    return explain(network, volumes, bundle, read(network, volumes, bundle, to_datetime(0)))


@pytest.mark.parametrize(("explains", "method"), [(LAYER, "Grad-CAM"), (OCCLUSION, "occlusion sensitivity")])
def test_the_strongest_place_is_where_the_thing_is(tmp_path: Path, explains: str, method: str) -> None:
    [volume] = volumes = spot(tmp_path)
    [found] = explained(bright_spot(tmp_path / "phantom", explains), volumes).findings
    assert found.present
    assert found.saliency is not None
    assert found.saliency.method == method
    values = found.saliency.values
    assert (values.shape, values.dtype) == (volume.pixels.shape, np.float32)
    assert (values.min(), values.max()) == (0, 1)
    _, row, column = np.unravel_index(values.argmax(), values.shape)
    assert SQUARE[0].start <= row < SQUARE[0].stop
    assert SQUARE[1].start <= column < SQUARE[1].stop
    inside = values[0][SQUARE].sum() / values.sum()
    assert inside > 3 * volume.pixels[0][SQUARE].size / volume.pixels.size, "most of it lies there"


def test_a_finding_that_is_absent_is_not_explained(tmp_path: Path) -> None:
    [found] = explained(bright_spot(tmp_path / "phantom", LAYER), spot(tmp_path, brightest=0)).findings
    assert not found.present
    assert found.saliency is None


def test_a_bundle_without_explain_says_what_it_said(tmp_path: Path) -> None:
    bundle = bright_spot(tmp_path / "phantom", "")
    network, volumes = Network(bundle, "cpu", bundle.digest), spot(tmp_path)
    reading = read(network, volumes, bundle, to_datetime(0))
    assert explain(network, volumes, bundle, reading) is reading


def test_the_same_film_gives_the_same_map(tmp_path: Path) -> None:
    bundle, volumes = bright_spot(tmp_path / "phantom", LAYER), spot(tmp_path)
    one, two = (explained(bundle, volumes).findings[0].saliency for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.values.tobytes() == two.values.tobytes()


@pytest.mark.parametrize("explains", [LAYER, OCCLUSION])
def test_the_warm_network_stays_as_it_was(tmp_path: Path, explains: str) -> None:
    bundle, volumes = bright_spot(tmp_path / "phantom", explains), spot(tmp_path)
    network = Network(bundle, "cpu", bundle.digest)
    before = read(network, volumes, bundle, to_datetime(0))
    explain(network, volumes, bundle, before)
    assert read(network, volumes, bundle, to_datetime(0)).findings == before.findings
    modules = list(network._network.modules())
    assert not any(module._forward_hooks or module._backward_hooks or module.training for module in modules)
    assert all(parameter.grad is None for parameter in network._network.parameters())


def test_no_copy_of_the_network_outlives_its_map(tmp_path: Path) -> None:
    bundle, volumes = bright_spot(tmp_path / "phantom", LAYER), spot(tmp_path)
    network = Network(bundle, "cpu", bundle.digest)
    reading = read(network, volumes, bundle, to_datetime(0))
    gc.collect()
    gc.disable()  # what only the collector finds is kept too long: it counts objects, not bytes
    try:
        before = _convolutions()
        for _ in range(3):
            explain(network, volumes, bundle, reading)
        assert _convolutions() == before
    finally:
        gc.enable()


def _convolutions() -> int:
    return sum(type(thing) is torch.nn.Conv2d for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("explains", "reason"),
    [
        ('[explain]\nlayer = "layer9"\n', r'names the layer "layer9".*has 0, 1, 2, 3, 4'),
        ("[explain]\n", r'dicom\.toml: explain: .*"grad-cam" needs a layer'),
        (OCCLUSION + 'layer = "1"\n', '"occlusion" takes none'),
        ('[explain]\nmethod = "guess"\n', r"explain\.method"),
    ],
)
def test_what_cannot_be_explained_is_declined_with_the_reason(tmp_path: Path, explains: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        explained(bright_spot(tmp_path / "phantom", explains), spot(tmp_path))


def test_a_segmentation_has_nothing_to_explain(tmp_path: Path) -> None:
    bundle = bright_spot(tmp_path / "phantom", LAYER)
    path = bundle.folder / "configs" / "dicom.toml"
    path.write_text(path.read_text().replace('"classification"', '"segmentation"'))
    with pytest.raises(BundleError, match="a segmentation shows what it found by itself"):
        bundles.load(bundle.folder)


def test_outputs_that_postprocessing_puts_together_are_declined(tmp_path: Path) -> None:
    bundle, volumes = bright_spot(tmp_path / "phantom", LAYER), spot(tmp_path)
    network = Network(bundle, "cpu", bundle.digest)
    reading = read(network, volumes, bundle, to_datetime(0))
    network.shapes["network_output"] = (1, 2)
    with pytest.raises(BundleError, match="its network has outputs of shape"):
        explain(network, volumes, bundle, reading)


def test_a_network_that_keeps_its_layers_to_itself_is_explained_by_occlusion(tmp_path: Path) -> None:
    bundle, volumes = bright_spot(tmp_path / "phantom", OCCLUSION), spot(tmp_path)
    network = Network(bundle, "cpu", bundle.digest)
    network._network = torch.jit.script(network._network)
    [found] = saliency(network, volumes[0], ExplainEntry(method="occlusion"), [0])
    assert found.values.max() == 1
    with pytest.raises(BundleError, match='needs method = "occlusion"'):
        saliency(network, volumes[0], ExplainEntry(layer="1"), [0])


def test_the_map_is_of_these_weights(tmp_path: Path) -> None:
    """Adebayo 2018: a map that survives randomized weights explains the picture, not the model."""
    bundle = bundles.find("chest_xray")
    assert bundle.folder == SHIPPED / "chest_xray"
    network = Network(bundle, "cpu", bundle.digest)
    films = [readings.film_of(chest_film(seed=seed, size=256)[0]) for seed in (1, 2, 3)]
    trained = [_gradcam(network, volume) for volume in films]
    likeness = []
    for seed in range(4):
        _randomize(network._network, seed)
        likeness += [_likeness(trained[k], _gradcam(network, volume)) for k, volume in enumerate(films)]
    assert np.median(likeness) < 0.5
    assert _likeness(trained[0], trained[0]) == pytest.approx(1), "the measure can tell"


def _gradcam(network: Network, volume: Volume) -> NDArray[np.float32]:
    return saliency(network, volume, ExplainEntry(layer="layer4"), [0])[0].values


def _likeness(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    if not one.any() or not two.any():
        return 0.0  # an empty map is like none
    return float(spearmanr(one.ravel(), two.ravel()).statistic)


def _randomize(module: torch.nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
