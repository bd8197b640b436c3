"""The usual way to read a series with a MONAI Bundle, stage by stage: what `tests.bench.reading` compares us with.

MONAI's LoadImage with its PydicomReader, the bundle's own transforms and inferer in eager float32, Invertd, and a
Segmentation by highdicom. On a GPU what is prepared is moved there, and the answer is brought back onto the source grid
there, as MONAI's evaluators do; PyTorch chooses its algorithms freely. The stages are those of `tests.bench.reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import torch
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from monai.bundle.config_parser import ConfigParser
from monai.transforms import Compose, LoadImaged
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from node.bundles import Bundle, weights_path

_WANTED = ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime", "ReferringPhysicianName")
"""highdicom asks for them; de-identified images lack some."""
LOADER, WRITER = "LoadImaged", "SaveImaged"


class UsualWay:
    """One bundle, ready: its network is built and its weights are loaded."""

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self._bundle, self._device = bundle, torch.device(device)
        parser = ConfigParser()
        parser.read_config(str(bundle.folder / "configs" / "inference.json"))
        parser["device"] = self._device
        for key in ("preprocessing", "postprocessing"):
            steps = parser[f"{key}::transforms"]
            parser[f"{key}::transforms"] = [step for step in steps if step["_target_"] not in (LOADER, WRITER)]
        self._before: Compose = parser.get_parsed_content("preprocessing")
        self._inferer: Any = parser.get_parsed_content("inferer")
        self._after: Compose = parser.get_parsed_content("postprocessing")
        self._network: torch.nn.Module = parser.get_parsed_content("network_def").eval()
        self._network.load_state_dict(torch.load(weights_path(bundle.folder), weights_only=True, map_location="cpu"))
        self._network.to(self._device)
        self._load = LoadImaged(keys="image", reader="PydicomReader", image_only=True)

    def read(self, folder: Path, out: Path, lap: Callable[[str], None]) -> NDArray[np.uint8]:
        """Read the series in `folder` and write its SEG to `out`; return the label map as (slice, row, column).

        `lap` is called with the name of each stage when it ends. Slices are in order along the normal of their
        plane, as ours are; PydicomReader has them by Instance Number.
        """
        with torch.inference_mode(), _free_choice():
            case = self._load({"image": str(folder)})
            backwards = float(np.linalg.det(np.asarray(case["image"].affine)[:3, :3])) < 0
            lap("load")
            case = self._before(case)
            case["image"] = case["image"].to(self._device)
            lap("prepare")
            case["pred"] = self._inferer(case["image"][None], self._network)[0]
            lap("network")
            pred = self._after(case)["pred"]
            stack = np.asarray(pred.cpu())[0].transpose(2, 1, 0)
            labels = np.ascontiguousarray(stack[::-1] if backwards else stack, dtype=np.uint8)
            lap("back")
        self._report(folder, labels, out)
        lap("report")
        return labels

    def _report(self, folder: Path, labels: NDArray[np.uint8], out: Path) -> None:
        """Write a BINARY Segmentation of the label map (PS3.3 §C.8.20)."""
        images = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
        images.sort(key=_height)
        for ds in images:
            for keyword in _WANTED:
                ds.setdefault(keyword, "")
        present = [entry for entry in self._bundle.dicom.segment if (labels == entry.value).any()]
        if not present:
            return
        numbered = np.zeros_like(labels)
        for number, entry in enumerate(present, 1):
            numbered[labels == entry.value] = number
        ds = hd.seg.Segmentation(
            source_images=images,
            pixel_array=numbered,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[self._describe(number, entry.label) for number, entry in enumerate(present, 1)],
            series_instance_uid=hd.UID(),
            series_number=1,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="usual",
            manufacturer_model_name=self._bundle.name,
            software_versions=self._bundle.version,
            device_serial_number="0",
        )
        ds.save_as(out)

    def _describe(self, number: int, label: str) -> SegmentDescription:
        return SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Hippocampus,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=self._bundle.name, family=codes.DCM.ArtificialIntelligence, version=self._bundle.version
            ),
        )


@contextmanager
def _free_choice() -> Iterator[None]:
    """Let PyTorch take algorithms that may say something else each time, as it does where nobody asks otherwise."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _height(ds: pydicom.Dataset) -> float:
    """Return where a slice lies along the normal of its plane, in mm."""
    cosines = np.asarray(ds.ImageOrientationPatient, dtype=float)
    return float(np.cross(cosines[:3], cosines[3:]) @ np.asarray(ds.ImagePositionPatient, dtype=float))
