"""Bundles of the shapes that public model collections have, with networks of a few weights: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from node import bundles
from node.bundles import Bundle

LOAD = {"_target_": "LoadImaged", "keys": "image"}
FIRST = {"_target_": "EnsureChannelFirstd", "keys": "image"}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "meta_keys": "pred_meta_dict", "output_dir": "@output_dir"}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"} | {
    "meta_keys": "pred_meta_dict",
    "nearest_interp": False,
    "to_tensor": True,
}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
CODE = '{code = "39607008", scheme = "SCT", meaning = "Lung"}'
ANATOMY = '{code = "91723000", scheme = "SCT", meaning = "Anatomical Structure"}'


def steps(*transforms: dict[str, Any]) -> dict[str, Any]:
    """A Compose of a configuration."""
    return {"_target_": "Compose", "transforms": list(transforms)}


def head(kind: str, dimensions: int = 3, more: str = "", series: str = "") -> str:
    """The first lines of a dicom.toml, up to and with [series]."""
    return (
        f'label = "Zoo"\nkind = "{kind}"\ndimensions = {dimensions}\nmanufacturer = "wetread"\n{more}\n'
        f"[series]\n{series}\n"
    )


def segment(number: int, by: str = "value", threshold: float = 0.5) -> str:
    """One [[segment]], by value or by channel."""
    told = f"threshold = {threshold}\n" if by == "channel" else ""
    return (
        f'[[segment]]\n{by} = {number}\n{told}label = "Part {number}"\ncategory = {ANATOMY}\ntype = {CODE}\n'
        'color = "#e6604d"\nmeasurements = ["volume"]\n'
    )


def write(folder: Path, dicom: str, config: dict[str, Any], state: dict[str, Any], **metadata: Any) -> Bundle:
    """Write a bundle; `config` stands among what a public bundle has around it and a reading does not touch."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1.0.0", **metadata}))
    around = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/nowhere",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network": "$@network_def.to(@device)",
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "evaluator": {"_target_": "SupervisedEvaluator", "val_data_loader": "@dataset", "network": "@network"},
        "run": ["$@evaluator.run()"],
    }
    (folder / "configs" / "inference.json").write_text(json.dumps({**around, **config}))
    (folder / "configs" / "dicom.toml").write_text(dicom)
    torch.save(state, folder / "models" / "model.pt")
    return bundles.load(folder)


def multi_label(folder: Path, inputs: int = 1, thresholds: Sequence[float] = (0.5, 0.5), more: str = "") -> Bundle:
    """Two sigmoid channels of one 1×1 convolution over the sum of the inputs: from 300 on, and from 800 on."""
    config = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": inputs, "out_channels": 2, "kernel_size": 1},
        "preprocessing": steps(LOAD, FIRST, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 8], "sw_batch_size": 2, "overlap": 0.25},
        "postprocessing": steps(SIGMOID, INVERT, SAVE),
    }
    state = {"weight": torch.full((2, inputs, 1, 1, 1), 0.05), "bias": torch.tensor([-15.0, -40.0])}
    entries = "".join(segment(k, "channel", threshold) for k, threshold in enumerate(thresholds))
    return write(folder, head("segmentation") + more + entries, config, state)
