"""The border between DICOM and deep learning: frozen dataclasses of numbers and codes.

`load` makes a `Volume`; `predict` turns it into a `Reading`; `report` turns the reading into Evidence
Documents. Nothing here knows pydicom or torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from node.codes import Code


@dataclass(frozen=True)
class Source:
    """One slice or film: the SOP Instance, and the frame (from 1) where it has several."""

    sop_instance_uid: str
    frame_number: int | None = None


@dataclass(frozen=True)
class Volume:
    """What a bundle reads: a stack of slices in spatial order, or one film.

    `pixels`: float32, (slice, row, column); one film is (1, row, column). CT in HU, PET and MR in rescaled
    units; films as display values (VOI LUT applied, MONOCHROME1 inverted: bone is bright).
    `affine_mm`: (4, 4) float64, maps (column, row, slice, 1) indices to LPS millimeters. For a film the
    plane is only the pixel grid.
    `spacing_mm`: (between slices, between rows, between columns), or None where millimeters are not
    calibrated, as on a film without a valid PixelSpacing.
    `channels`: what a bundle reads where it is more than `pixels`, each of its shape: several series on one grid, the
    first of them `pixels`; or red, green and blue 0..255 of a color image (`is_color`), `pixels` its luminance.
    `remarks`: what a reader of the results must know about how it was loaded.
    `pixel_aspect`: how high a pixel of a film is over how wide it is, for where `spacing_mm` is None.
    """

    pixels: NDArray[np.float32]
    affine_mm: NDArray[np.float64]
    sources: tuple[Source, ...]
    spacing_mm: tuple[float, float, float] | None
    modality: str
    is_projection: bool
    channels: tuple[NDArray[np.float32], ...] = ()
    is_color: bool = False
    remarks: tuple[str, ...] = ()
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class Algorithm:
    """The model as TID 4019 and the Contributing Equipment Sequence name it (IHE AIR §6.5.3.1)."""

    name: str
    version: str
    label: str
    manufacturer: str
    device_uid: str
    weights_sha256: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Saliency:
    """Where the image moved the network towards one finding; no outline of anything.

    `values`: float32, (slice, row, column) on the source grid, 0..1; 1 is the strongest place, all 0 where nothing
    spoke for the finding. `method`: how it was made, as people know it.
    """

    values: NDArray[np.float32]
    method: str


@dataclass(frozen=True)
class Finding:
    """One evaluated class on one image: TID 1501.

    `probability` is in 0..1; it is a Probability (122157, DCM) only when `calibrated`, otherwise a score.
    `sensitivity` is what the threshold was chosen for on validation patients, where the bundle says so.
    `saliency` is there where a route asked for it, the bundle has a way to make it, and the finding is present.
    """

    label: str
    type: Code
    site: Code | None
    probability: float
    threshold: float
    calibrated: bool
    source: Source
    saliency: Saliency | None = None
    sensitivity: float | None = None

    @property
    def present(self) -> bool:
        """Whether the probability reaches the operating threshold."""
        return self.probability >= self.threshold


@dataclass(frozen=True)
class Measurement:
    """One NUM of TID 1410/1411: a coded quantity with a UCUM unit."""

    name: Code
    value: float
    unit: Code
    method: Code | None = None


@dataclass(frozen=True)
class Segment:
    """One item of the Segment Sequence (PS3.3 §C.8.20.2) and its measurements; `value` is its label in the mask."""

    value: int
    label: str
    category: Code
    type: Code
    type_modifier: Code | None
    color: str
    measurements: tuple[Measurement, ...] = ()
    is_empty: bool = False


@dataclass(frozen=True)
class Segmentation:
    """A label map on the source grid, slice for slice, or masks that overlap.

    `labels`: uint8, (slice, row, column), 0 is background; `sources[k]` is the image under slice k. `masks`, there only
    where segments share voxels: (segment, slice, row, column) in the order of `segments`; `labels` then has the last.
    """

    labels: NDArray[np.uint8]
    sources: tuple[Source, ...]
    segments: tuple[Segment, ...]
    masks: NDArray[np.bool_] | None = None

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """Return where `segment` is: (slice, row, column)."""
        if self.masks is None:
            return np.asarray(self.labels == segment.value)
        return np.asarray(self.masks[[s.value for s in self.segments].index(segment.value)])

    def mask_on(self, segment: Segment, k: int) -> NDArray[np.bool_]:
        """Return where `segment` is on slice `k`: (row, column)."""
        if self.masks is None:
            return np.asarray(self.labels[k] == segment.value)
        return np.asarray(self.mask(segment)[k])

    def areas(self, segment: Segment) -> list[int]:
        """Return how many pixels `segment` has on each slice."""
        return [int(np.count_nonzero(self.mask_on(segment, k))) for k in range(len(self.labels))]


@dataclass(frozen=True)
class Declined:
    """An image, or the middle one of a volume, that a bundle did not read: `reason` in words, as after "because".

    `score` is how unlike the training images it is, 1 being the limit; None where the bundle cannot say.
    """

    source: Source
    reason: str
    score: float | None


@dataclass(frozen=True)
class Box:
    """One thing that a detector found: a rectangle on the image in which its middle lies.

    `left` to `bottom` are (column, row) as SCOORD has them (PS3.3 §C.18.6.1.2): 0 is the outer edge of the first pixel.
    `first` and `last` are the images that it reaches to. `score`: 0..1.
    """

    source: Source
    score: float
    left: float
    top: float
    right: float
    bottom: float
    first: Source
    last: Source


@dataclass(frozen=True)
class Detection:
    """One class of a detector on one volume or image: all its boxes from the threshold on, best first; or none.

    `source` is the image of the best box, or the middle one. A score is a Probability only when `calibrated`.
    """

    label: str
    type: Code
    site: Code | None
    threshold: float
    calibrated: bool
    color: str
    source: Source
    boxes: tuple[Box, ...]


@dataclass(frozen=True, eq=False)
class ParametricMap:
    """A number for each voxel of a volume: why a finding was made, or how strongly a segment was spoken for.

    `values`: float32, (slice, row, column) on the source grid, 0..1, `sources[k]` under slice k. `quantity`: what the
    numbers are; `method`: how they were made, for people.
    """

    label: str
    values: NDArray[np.float32]
    sources: tuple[Source, ...]
    quantity: Code
    method: str


@dataclass(frozen=True)
class Reading:
    """All that one bundle says about one series; of a series that it declined as a whole, only that."""

    algorithm: Algorithm
    started: datetime
    findings: tuple[Finding, ...] = ()
    segmentations: tuple[Segmentation, ...] = ()
    detections: tuple[Detection, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    declined: tuple[Declined, ...] = ()
    maps: tuple[ParametricMap, ...] = ()

    @property
    def is_declined(self) -> bool:
        """Whether the whole series was declined: the report says that and nothing else."""
        return bool(self.declined) and not (self.findings or self.segmentations or self.detections)
