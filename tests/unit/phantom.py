"""Phantoms as Part 10 files: asymmetric, so that no flip, turn or swap of axes goes unseen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from node import bundles
from node.bundles import Bundle

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.36, -0.48, 0.0, 0.8, 0.6)
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "oblique": OBLIQUE}


def image(pixels: NDArray[Any], **attributes: Any) -> Dataset:
    """A CT image of `pixels` (row, column), uint16 or int16; `attributes` override, None removes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    ds.Modality = "CT"
    ds.RescaleIntercept, ds.RescaleSlope = 0, 1
    ds.InstanceNumber = 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        elif keyword == "TransferSyntaxUID":
            ds.file_meta.TransferSyntaxUID = UID(value)
        else:
            setattr(ds, keyword, value)
    return ds


def save(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write Part 10 files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.dcm" for k in range(len(datasets))]
    for ds, path in zip(datasets, paths, strict=True):
        ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2")
        ds.save_as(path, enforce_file_format=True)
    return paths


def body(slices: int = 12, rows: int = 20, columns: int = 16) -> NDArray[np.uint16]:
    """An L that differs along every axis: 1000 in the mask, 0 to 99 around it; (slice, row, column)."""
    pixels = np.random.default_rng(7).integers(0, 100, (slices, rows, columns)).astype(np.uint16)
    pixels[3:9, 4:8, 3:13] = 1000
    pixels[3:5, 4:17, 3:6] = 1000
    return pixels


def positions(
    count: int, cosines: Sequence[float] = AXIAL, step: float = 1.0, first: Sequence[float] = (-30.0, 12.5, 7.0)
) -> NDArray[np.float64]:
    """Image Positions (Patient) of `count` slices along the normal."""
    normal = np.cross(cosines[:3], cosines[3:])
    return np.array(first) + np.outer(np.arange(count) * step, normal)


def stack(
    pixels: NDArray[Any],
    cosines: Sequence[float] = AXIAL,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **attributes: Any,
) -> list[Dataset]:
    """Slices of `pixels` (slice, row, column) with `spacing` (between slices, rows, columns), in spatial order."""
    places = positions(len(pixels), cosines, spacing[0])
    return [
        image(
            pixels[k],
            InstanceNumber=k + 1,
            ImagePositionPatient=[float(f"{x:.6f}") for x in places[k]],
            ImageOrientationPatient=list(cosines),
            PixelSpacing=[spacing[1], spacing[2]],
            SliceThickness=5.0,
            **attributes,
        )
        for k in range(len(pixels))
    ]


def enhanced(frames: Sequence[Dataset], order: Sequence[int]) -> Dataset:
    """One enhanced object of single-frame slices, frames in `order`, each rescaled by its own item."""
    stored = np.concatenate([np.frombuffer(frames[k].PixelData, np.uint16) for k in order])
    ds = image(stored.reshape(-1, 16), SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=len(frames))
    ds.Rows, ds.SharedFunctionalGroupsSequence = 20, [Dataset()]
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [_item(frames[0], "ImageOrientationPatient")]
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [_item(frames[0], "PixelSpacing")]
    ds.PerFrameFunctionalGroupsSequence = []
    for k in order:
        groups = Dataset()
        groups.PlanePositionSequence = [_item(frames[k], "ImagePositionPatient")]
        groups.PixelValueTransformationSequence = [_item(frames[k], "RescaleSlope", "RescaleIntercept")]
        ds.PerFrameFunctionalGroupsSequence.append(groups)
    return ds


def _item(source: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = source[keyword]
    return item


def film(pixels: NDArray[Any], **attributes: Any) -> Dataset:
    """A chest film without any plane in the patient."""
    ds = image(pixels, Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1", **attributes)
    del ds.FrameOfReferenceUID
    return ds


_CODE = {"code": "39607008", "scheme": "SCT", "meaning": "Lung"}
_ANATOMY = {"code": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}


def _toml(table: dict[str, str]) -> str:
    return "{" + ", ".join(f'{key} = "{value}"' for key, value in table.items()) + "}"


def segmenter(folder: Path, dimensions: int = 3, pixdim: float = 1.0, **changes: Any) -> Bundle:
    """A bundle whose network is one 1×1 convolution: 1 where the input is above 500, 2 nowhere."""
    axes = 3 if dimensions == 3 else 2
    resampling: list[dict[str, Any]] = [{"_target_": "Spacingd", "keys": "image", "pixdim": [pixdim] * 3}]
    resampling.insert(0, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"})
    if dimensions == 2:
        resampling = [{"_target_": "Resized", "keys": "image", "spatial_size": 64, "size_mode": "longest"}]
    config = {
        "network_def": {"_target_": f"torch.nn.Conv{axes}d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                *resampling,
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
                | {"nearest_interp": False},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred"},
            ],
        },
        **changes,
    }
    weight = torch.zeros(3, 1, *[1] * axes)
    weight[1] = 1.0
    state = {"weight": weight, "bias": torch.tensor([500.0, 0.0, -1000.0])}
    measured = "volume" if dimensions == 3 else "area"
    segment = (
        '[[segment]]\nvalue = {0}\nlabel = "Part {0}"\ncategory = {1}\ntype = {2}\ncolor = "#e6604d"\n'
        'measurements = ["{3}"]\n'
    )
    entries = "".join(segment.format(value, _toml(_ANATOMY), _toml(_CODE), measured) for value in (1, 2))
    return _bundle(folder, "segmentation", dimensions, entries, config, state)


def classifier(folder: Path, **changes: Any) -> Bundle:
    """A bundle that says how bright a film is on average: 0.5 at half of the range."""
    config = {
        "imports": ["$import torch"],
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))",
        "inferer": {"_target_": "SimpleInferer"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityd", "keys": "image"},
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
        },
        **changes,
    }
    state = {"2.weight": torch.tensor([[10.0]]), "2.bias": torch.tensor([-5.0])}
    entry = (
        f'[[finding]]\noutput = 0\nlabel = "Bright"\ntype = {_toml(_CODE)}\nsite = {_toml(_CODE)}\n'
        "threshold = 0.5\ncalibrated = true\n"
    )
    return _bundle(folder, "classification", 2, entry, config, state)


LAYER = '[explain]\nlayer = "1"\n'
SQUARE = (slice(70, 90), slice(20, 35))
"""Rows and columns of the one bright thing on a film of 96 × 64: off the middle along both axes."""
SPOT = np.zeros((96, 64), np.uint16)
SPOT[SQUARE] = 4000


def bright_spot(folder: Path, explains: str) -> Bundle:
    """A classifier with a convolution (layer 1 is its ReLU) on 32 × 32 pixels: present where any part is bright."""
    network = (
        "$torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), "
        "torch.nn.Flatten(), torch.nn.Linear(1, 1))"
    )
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": [32, 32], "mode": "bilinear"},
    ]
    classifier(folder, network_def=network, preprocessing={"_target_": "Compose", "transforms": steps})
    state = {"0.weight": torch.full((1, 1, 3, 3), 1 / 9), "0.bias": torch.tensor([-0.5])}
    state |= {"4.weight": torch.tensor([[200.0]]), "4.bias": torch.tensor([-1.0])}
    torch.save(state, folder / "models" / "model.pt")
    with (folder / "configs" / "dicom.toml").open("a") as file:
        file.write(explains)
    return bundles.load(folder)


def _bundle(
    folder: Path, kind: str, dimensions: int, entries: str, config: dict[str, Any], state: dict[str, torch.Tensor]
) -> Bundle:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text('{"version": "1.0.0"}')
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    head = f'label = "Phantom"\nkind = "{kind}"\ndimensions = {dimensions}\nmanufacturer = "wetread"\n[series]\n'
    (folder / "configs" / "dicom.toml").write_text(head + entries)
    torch.save(state, folder / "models" / "model.pt")
    return bundles.load(folder)
