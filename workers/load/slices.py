"""One SOP Instance becomes its slices: a single-frame image is one, an enhanced multi-frame object one per frame.

Where an enhanced object says a thing per frame that holds, then what it says for all frames, then the instance
itself (Per-Frame and Shared Functional Groups Sequence, PS3.3 §C.7.6.16). Pixels stay undecoded here.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from node.errors import Unsuitable
from node.findings import Source
from workers.load.geometry import Plane
from workers.load.header import integer, numbers, positive_pair, text
from workers.load.pixels import shape

PROJECTIONS = frozenset({"CR", "DX", "MG", "XA", "RF", "IO", "PX", "RG"})
"""Modalities whose pixels are shadows, not slices."""
MOST_ASPECT = 10.0
"""Pixels that are higher or wider than that are a slip of the pen."""
_LEFT_IN_THE_FILE = 2**16
"""Values of more bytes than this are read when they are asked for."""


@dataclass(frozen=True)
class Slice:
    """One frame: where it lies, and the item that rescales it when it has its own. `index` counts frames from 0."""

    source: Source
    index: int
    plane: Plane
    transformation: Dataset | None


@dataclass(frozen=True)
class Image:
    """One SOP Instance with all its elements; `name` says which one it is in messages."""

    ds: Dataset
    name: str
    slices: tuple[Slice, ...]

    @property
    def order(self) -> tuple[int, str]:
        """Instance Number, then SOP Instance UID: the order of films. Never the order of slices."""
        return integer(self.ds, "InstanceNumber", 0), text(self.ds, "SOPInstanceUID")

    @property
    def modality(self) -> str:
        """Modality (0008,0060)."""
        return text(self.ds, "Modality")

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type value 3 is LOCALIZER (PS3.3 §C.8.2.1.1.1)."""
        kind = self.ds.get("ImageType")
        return not isinstance(kind, str) and kind is not None and "LOCALIZER" in list(kind)[2:3]


def open_image(path: Path) -> Image:
    """Read one Part 10 file; raises `Unsuitable` when it is none or no image, OSError when it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, defer_size=_LEFT_IN_THE_FILE)
            if ds.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                ds = pydicom.dcmread(path)  # what was left out has no place in such a file
            name = f"instance {text(ds, 'SOPInstanceUID') or path.name}"
            return Image(ds, name, _slices(ds, name))
    except (OSError, MemoryError, Unsuitable):
        raise
    except Exception as error:  # pydicom raises many kinds on broken files, with patient data in some messages
        raise Unsuitable(f"{path.name} is not a readable DICOM Part 10 file ({type(error).__name__})") from None


def _slices(ds: Dataset, name: str) -> tuple[Slice, ...]:
    frames, rows, columns = shape(ds, name)
    is_multiframe = frames > 1 or "PerFrameFunctionalGroupsSequence" in ds
    if "PerFrameFunctionalGroupsSequence" in ds and len(ds.PerFrameFunctionalGroupsSequence) != frames:
        told = len(ds.PerFrameFunctionalGroupsSequence)
        raise Unsuitable(f"{name} has {frames} frames but describes {told} of them")
    uid = text(ds, "SOPInstanceUID")
    return tuple(
        Slice(
            Source(uid, index + 1 if is_multiframe else None),
            index,
            _plane(ds, index, (rows, columns), f"frame {index + 1} of {name}" if is_multiframe else name),
            group(ds, index, "PixelValueTransformationSequence"),
        )
        for index in range(frames)
    )


def _plane(ds: Dataset, index: int, size: tuple[int, int], name: str) -> Plane:
    position = numbers(group(ds, index, "PlanePositionSequence") or ds, "ImagePositionPatient", 3)
    cosines = numbers(group(ds, index, "PlaneOrientationSequence") or ds, "ImageOrientationPatient", 6)
    spacing = positive_pair(group(ds, index, "PixelMeasuresSequence") or ds, "PixelSpacing")
    return Plane(
        name,
        (position[0], position[1], position[2]) if position else None,
        (cosines[0], cosines[1], cosines[2], cosines[3], cosines[4], cosines[5]) if cosines else None,
        spacing,
        size,
        text(ds, "FrameOfReferenceUID"),
    )


def group(ds: Dataset, index: int, keyword: str) -> Dataset | None:
    """The functional group item that holds for a frame, or None."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[index : index + 1], *shared[:1]):
        if groups.get(keyword):
            return groups[keyword].value[0]  # type: ignore[no-any-return]  # a Sequence holds Datasets
    return None


def calibrated_spacing(ds: Dataset) -> tuple[float, float] | None:
    """Return (between rows, between columns) in mm of a projection, or None where millimeters are not calibrated.

    Pixel Spacing equal to Imager Pixel Spacing is the detector's own grid: the magnification is not corrected,
    unless a calibration is stated (PS3.3 §10.7.1.3).
    """
    spacing, detector = positive_pair(ds, "PixelSpacing"), positive_pair(ds, "ImagerPixelSpacing")
    if spacing == detector and not text(ds, "PixelSpacingCalibrationType"):
        return None
    return spacing


def pixel_aspect(ds: Dataset) -> float:
    """Return how high a pixel of a projection is over how wide it is, 1 where nothing sensible says so.

    The detector's grid tells it also where its millimeters are not those of the patient; a film without any spacing
    has Pixel Aspect Ratio, vertical \\ horizontal (PS3.3 §C.7.6.3.1.7).
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        pair = positive_pair(ds, keyword)
        if pair is not None:
            return pair[0] / pair[1] if MOST_ASPECT >= pair[0] / pair[1] >= 1 / MOST_ASPECT else 1.0
    return 1.0
