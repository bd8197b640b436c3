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


def segment(number: int, by: str = "value", threshold: float = 0.5, measured: str = "volume") -> str:
    """One [[segment]], by value or by channel."""
    told = f"threshold = {threshold}\n" if by == "channel" else ""
    return (
        f'[[segment]]\n{by} = {number}\n{told}label = "Part {number}"\ncategory = {ANATOMY}\ntype = {CODE}\n'
        f'color = "#e6604d"\nmeasurements = ["{measured}"]\n'
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


def detection(values: Sequence[int] = (0,), threshold: float = 0.5) -> str:
    """One [[detection]] for each label of a detector."""
    return "".join(
        f'[[detection]]\nvalue = {value}\nlabel = "Thing {value}"\ntype = {CODE}\nsite = {CODE}\n'
        f'threshold = {threshold}\ncalibrated = false\ncolor = "#e6b84d"\n'
        for value in values
    )


def finder(folder: Path, boxes: str, pixdim: float = 1.0, dimensions: int = 3, **post: dict[str, Any]) -> Bundle:
    """A detector without a network to speak of: one box around all that is above 500, and one at the edge of score 0.3.

    Its scripts and its configuration are arranged as those of a RetinaNet in a public collection.
    """
    axes = ["k", "i", "j"][-dimensions:]
    config = {
        "network_def": {"_target_": "torch.nn.Identity"},
        "ready": ["$@detector.set_threshold(500)"],
        "detector": {"_target_": "scripts.finder.Detector", "axes": len(axes)},
        "preprocessing": steps(
            {**LOAD, "reader": "itkreader", "affine_lps_to_ras": True},
            FIRST,
            *([{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}] if dimensions == 3 else []),
            {"_target_": "Spacingd", "keys": "image", "pixdim": [pixdim] * dimensions},
        ),
        "inferer": {"_target_": "scripts.finder.Finder", "detector": "@detector"},
        "evaluator": {"_target_": "scripts.nowhere.Evaluator", "_requires_": "@ready", "network": "@network"},
        "postprocessing": steps(
            {"_target_": "ClipBoxToImaged", "box_keys": "box", "label_keys": ["label", "label_scores"]}
            | {"box_ref_image_keys": "image", "remove_empty": True},
            *post.values(),
            {"_target_": "DeleteItemsd", "keys": ["image"]},
        ),
    }
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "finder.py").write_text(FINDER)
    return write(folder, head("detection", dimensions) + detection() + boxes, config, {})


FINDER = """
import torch
from monai.inferers import Inferer


class Detector:
    def __init__(self, axes):
        self.axes, self.threshold = axes, None

    def set_threshold(self, value):
        self.threshold = value

    def __call__(self, image):
        where = torch.nonzero(image[0] > self.threshold).float()
        if not len(where):
            where = torch.tensor([[1.0] * self.axes, [4.0] * self.axes])
        found = torch.cat([where.min(0).values, where.max(0).values])
        edge = torch.cat([torch.zeros(self.axes), torch.full((self.axes,), 3.0)])
        return {
            "box": torch.stack([edge, found]),
            "label": torch.tensor([0, 0]),
            "label_scores": torch.tensor([0.3, 0.9]),
        }


class Finder(Inferer):
    def __init__(self, detector):
        self.detector = detector

    def __call__(self, inputs, network, *args, **kwargs):
        return [self.detector(network(image)) for image in inputs]
"""


def retinanet(folder: Path) -> Bundle:
    """A RetinaNet of MONAI with few and seeded weights, put together as in a public collection."""
    config = {
        "anchor_generator": {
            "_target_": "monai.apps.detection.utils.anchor_utils.AnchorGeneratorWithAnchorShape",
            "feature_map_scales": [1, 2],
            "base_anchor_shapes": [[3, 4, 2], [5, 5, 3]],
        },
        "backbone": "$monai.networks.nets.ResNet(block='basic', layers=[1, 1, 1, 1], block_inplanes=[4, 8, 16, 32], "
        "n_input_channels=1, conv1_t_size=[3, 3, 3], conv1_t_stride=[2, 2, 1])",
        "feature_extractor": "$monai.apps.detection.networks.retinanet_network.resnet_fpn_feature_extractor(@backbone, "
        "3, False, [1], None)",
        "network_def": {"_target_": "RetinaNet", "spatial_dims": 3, "num_classes": 1, "num_anchors": 2}
        | {"feature_extractor": "@feature_extractor", "size_divisible": [8, 8, 4]},
        "detector": {
            "_target_": "RetinaNetDetector",
            "network": "@network",
            "anchor_generator": "@anchor_generator",
            "debug": False,
        },
        "ready": [
            "$@detector.set_target_keys(box_key='box', label_key='label')",
            "$@detector.set_box_selector_parameters(score_thresh=0.0, topk_candidates_per_level=20, nms_thresh=0.2, "
            "detections_per_img=4)",
            "$@detector.set_sliding_window_inferer(roi_size=[16, 16, 8], overlap=0.25, sw_batch_size=1, "
            "mode='constant', device='cpu')",
        ],
        "preprocessing": steps(
            LOAD,
            FIRST,
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 1000}
            | {"b_min": 0.0, "b_max": 1.0, "clip": True},
            {"_target_": "EnsureTyped", "keys": "image"},
        ),
        "inferer": {"_target_": "scripts.inferer.RetinaNet", "detector": "@detector"},
        "evaluator": {"_target_": "scripts.nowhere.Evaluator", "_requires_": "@ready", "network": "@network"},
        "postprocessing": steps(
            {"_target_": "ClipBoxToImaged", "box_keys": "box", "label_keys": ["label", "label_scores"]}
            | {"box_ref_image_keys": "image", "remove_empty": True},
            {"_target_": "AffineBoxToWorldCoordinated", "box_keys": "box", "box_ref_image_keys": "image"}
            | {"image_meta_key_postfix": "meta_dict", "affine_lps_to_ras": True},
            {"_target_": "ConvertBoxModed", "box_keys": "box", "src_mode": "xyzxyz", "dst_mode": "cccwhd"},
            {"_target_": "DeleteItemsd", "keys": ["image"]},
        ),
    }
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "inferer.py").write_text(
        "from monai.inferers import Inferer\n\n\nclass RetinaNet(Inferer):\n"
        "    def __init__(self, detector):\n        self.detector = detector\n\n"
        "    def __call__(self, inputs, network, *args, **kwargs):\n"
        "        self.detector.network = network\n        self.detector.training = network.training\n"
        "        return self.detector(inputs, use_inferer=True)\n"
    )
    boxes = '[boxes]\nspace = "lps"\nmode = "cccwhd"\n'
    return write(folder, head("detection") + detection(threshold=0.0) + boxes, config, _untrained())


def _untrained() -> dict[str, torch.Tensor]:
    """The weights of `retinanet` as a seed makes them, made of MONAI's own parts and `workers/predict/layers.py`."""
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets import ResNet

    from workers.predict import layers

    layers.provide()
    torch.manual_seed(0)
    small: Any = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 16, 32], "n_input_channels": 1}
    backbone = ResNet(**small, conv1_t_size=[3, 3, 3], conv1_t_stride=[2, 2, 1])
    extractor = resnet_fpn_feature_extractor(backbone, 3, False, [1], None)
    made = RetinaNet(3, num_classes=1, num_anchors=2, feature_extractor=extractor, size_divisible=[8, 8, 4])
    return dict(made.state_dict())


def colored(folder: Path) -> Bundle:
    """A classification of color images: how red they are."""
    config = {
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1))",
        "preprocessing": steps(LOAD, FIRST | {"channel_dim": -1}, {"_target_": "ScaleIntensityd", "keys": "image"}),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": steps(SIGMOID),
    }
    entry = f'[[finding]]\noutput = 0\nlabel = "Red"\ntype = {CODE}\nthreshold = 0.5\ncalibrated = true\n'
    state = {"2.weight": torch.tensor([[9.0, 0.0, 0.0]]), "2.bias": torch.tensor([-3.0])}
    return write(folder, head("classification", 2, "color = true") + entry, config, state)
