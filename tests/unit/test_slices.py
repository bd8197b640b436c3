"""A 2D network on a volume, slice by slice; and color images, however they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import set_pixel_data

from node.bundles import Bundle
from node.clock import to_datetime
from node.errors import BundleError, Unsuitable
from node.findings import Reading, Volume
from tests import readings
from tests.unit import zoo
from tests.unit.phantom import body, film, save, stack
from workers.load.inputs import load_for
from workers.predict.network import Network
from workers.predict.reading import read
from workers.report import evidence, gate

FINDING = f'[[finding]]\noutput = 0\nlabel = "Bright"\ntype = {zoo.CODE}\nthreshold = 0.5\ncalibrated = true\n'
PER_SLICE = "per_slice = true"
SPECTRUM = np.random.default_rng(3).integers(0, 255, (20, 16, 3)).astype(np.uint8)


def read_it(bundle: Bundle, volumes: list[Volume]) -> Reading:
    return read(Network(bundle, "cpu", bundle.digest), volumes, bundle, to_datetime(0))


def flat(folder: Path, channels: int = 1, more: str = PER_SLICE, dimensions: int = 3) -> Bundle:
    """A 2D network: label 1 where its last channel is above 500 (of 100 for color)."""
    weight, limit = torch.zeros(2, channels, 1, 1), 500.0 if channels == 1 else 100.0
    weight[1, -1] = 1.0
    config = {
        "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": channels, "out_channels": 2, "kernel_size": 1},
        "preprocessing": zoo.steps(
            zoo.LOAD,
            zoo.FIRST | ({"channel_dim": -1} if channels == 3 else {}),
            {"_target_": "Resized", "keys": ["image"], "spatial_size": [32, 40], "mode": ["nearest"]},
        ),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": zoo.steps(
            zoo.INVERT | {"nearest_interp": True},
            {"_target_": "AsDiscreted", "argmax": True, "to_onehot": 2, "keys": ["pred"]},
            {"_target_": "Lambdad", "keys": ["pred"], "func": "$lambda x : x[1:]"},
            zoo.SAVE,
        ),
    }
    state = {"weight": weight, "bias": torch.tensor([0.0, -limit])}
    segment = zoo.segment(1, measured="area" if dimensions == 2 else "volume")
    return zoo.write(folder, zoo.head("segmentation", dimensions, more) + segment, config, state)


def test_a_volume_is_read_slice_by_slice_into_one_seg(tmp_path: Path) -> None:
    bundle = flat(tmp_path / "zoo")
    paths = save(stack(body(), spacing=(2.0, 1.0, 1.0)), tmp_path / "in")
    volumes = load_for(paths, bundle.dicom)
    reading, context = read_it(bundle, volumes), readings.context(paths)
    [found] = reading.segmentations
    assert np.array_equal(found.labels == 1, body() == 1000)
    assert found.segments[0].measurements[0].value == pytest.approx((body() == 1000).sum() * 2 / 1000)
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)
    assert [document.kind for document in documents] == ["SEG", "SC", "SR"]


def test_a_finding_is_told_of_the_slice_where_it_is_most_probable(tmp_path: Path) -> None:
    config = {
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))",
        "preprocessing": zoo.steps(zoo.LOAD, zoo.FIRST),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": zoo.steps(zoo.SIGMOID),
    }
    state = {"2.weight": torch.tensor([[0.01]]), "2.bias": torch.tensor([-15.0])}
    bundle = zoo.write(tmp_path / "zoo", zoo.head("classification", 3, PER_SLICE) + FINDING, config, state)
    pixels = body()
    pixels[7, 0, 0] = 2000
    [volume] = load_for(save(stack(pixels), tmp_path / "in"), bundle.dicom)
    [found] = read_it(bundle, [volume]).findings
    assert found.present
    assert volume.sources.index(found.source) == 7


def photograph(pixels: NDArray[np.uint8] = SPECTRUM, syntax: str = "RGB") -> Dataset:
    """A Secondary Capture in color, as an endoscope's workstation sends it."""
    ds = film(pixels[..., 0], ImageType=["ORIGINAL", "PRIMARY"])
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.7", "ES"
    if syntax == "PALETTE COLOR":
        for k, name in enumerate(("Red", "Green", "Blue")):
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            table = (np.arange(256, dtype=np.uint16) // (k + 1)) << 8
            setattr(ds, f"{name}PaletteColorLookupTableData", table.tobytes())
        ds.PhotometricInterpretation = syntax
        return ds
    set_pixel_data(ds, pixels, "RGB" if syntax == "RGB" else "YBR_FULL", 8, generate_instance_uid=False)
    return ds


@pytest.mark.parametrize("syntax", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_color_is_red_green_and_blue(syntax: str, tmp_path: Path) -> None:
    bundle = flat(tmp_path / "zoo", channels=3, more="color = true", dimensions=2)
    from pydicom.pixels.processing import convert_color_space

    stored = convert_color_space(SPECTRUM, "RGB", "YBR_FULL") if syntax == "YBR_FULL" else SPECTRUM
    [volume] = load_for(save([photograph(stored, syntax)], tmp_path / "in"), bundle.dicom)
    expected: Any = SPECTRUM
    if syntax == "PALETTE COLOR":
        expected = np.stack([SPECTRUM[..., 0] // (k + 1) for k in range(3)], axis=-1)
    assert np.abs(np.stack(volume.channels, axis=-1)[0] - expected).max() <= 2
    assert volume.is_color


def test_a_color_image_goes_all_the_way(tmp_path: Path) -> None:
    bundle = flat(tmp_path / "zoo", channels=3, more="color = true", dimensions=2)
    paths = save([photograph()], tmp_path / "in")
    volumes = load_for(paths, bundle.dicom)
    reading, context = read_it(bundle, volumes), readings.context(paths)
    assert np.array_equal(reading.segmentations[0].labels[0] == 1, SPECTRUM[..., 2] > 100)
    documents = evidence.build(reading, volumes, context)
    gate.check(documents, reading, volumes, context)


def test_gray_is_no_color_and_color_is_no_gray(tmp_path: Path) -> None:
    color, gray = (
        flat(tmp_path / "color", channels=3, more="color = true", dimensions=2),
        flat(tmp_path / "gray", more="", dimensions=2),
    )
    with pytest.raises(Unsuitable, match=r"is a gray image \(MONOCHROME2\); the model reads color"):
        load_for(save([film(body()[5])], tmp_path / "film"), color.dicom)
    with pytest.raises(Unsuitable, match="is a color image"):
        load_for(save([photograph()], tmp_path / "photograph"), gray.dicom)
    with pytest.raises(Unsuitable, match="all pixels have one color"):
        load_for(save([photograph(np.full((8, 8, 3), 7, np.uint8))], tmp_path / "blank"), color.dicom)


@pytest.mark.parametrize(
    ("dimensions", "more", "message"),
    [
        (2, PER_SLICE, "per_slice is for dimensions = 3"),
        (3, "color = true", "color is for dimensions = 2"),
    ],
)
def test_what_cannot_be_read_so_is_refused(dimensions: int, more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        flat(tmp_path / "zoo", more=more, dimensions=dimensions)
