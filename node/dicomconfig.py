"""`configs/dicom.toml` of a Model Bundle: which series it reads, and what its outputs mean in DICOM's words.

Here is what the file may say, and which keys go together; `docs/bundles.md` explains each. Nothing is run or read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from node.codes import ALLOWED_SCHEMES, Code

_Number = Annotated[float, Field(strict=True)]
Condition = str | _Number | list[str | _Number] | dict[str, Any]
"""`"text*"`, a number, a list of alternatives, or `{min=, max=, not=, absent=}`; see `node/route/matching.py`."""
Preferences = dict[str, str | list[str]]
"""Attribute → `"highest"`, `"lowest"`, or values in the order of preference."""

_Color = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
_Part = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeEntry(_Strict):
    """A coded entry in dicom.toml."""

    code: str = Field(min_length=1)
    scheme: str = Field(min_length=1)
    meaning: str = Field(min_length=1, max_length=64)

    @field_validator("scheme")
    @classmethod
    def _is_written(cls, scheme: str) -> str:
        if scheme not in ALLOWED_SCHEMES:
            known = ", ".join(sorted(ALLOWED_SCHEMES))
            raise ValueError(f'"{scheme}" is no coding scheme that goes into reports; one of {known} was expected')
        return scheme

    def to_code(self) -> Code:
        """Return the entry as a `Code`."""
        return Code(self.code, self.scheme, self.meaning)


class SegmentEntry(_Strict):
    """One segment and what it means (PS3.3 §C.8.20.2): a value of the label map, or a channel of its own.

    Segments by `channel` may overlap; a voxel belongs to one where the channel reaches `threshold`.
    """

    value: int | None = Field(default=None, ge=1, le=255)
    channel: int | None = Field(default=None, ge=0, le=254)
    threshold: _Part | None = None
    label: str = Field(max_length=64)
    category: CodeEntry
    type: CodeEntry
    type_modifier: CodeEntry | None = None
    color: _Color
    measurements: list[Literal["volume", "area"]] = []

    @model_validator(mode="after")
    def _is_a_value_or_a_channel(self) -> SegmentEntry:
        if (self.value is None) == (self.channel is None):
            raise ValueError("a segment is a `value` of the label map or a `channel` of its own: give one of the two")
        if (self.threshold is None) != (self.channel is None):
            raise ValueError("a segment by `channel` needs a `threshold` (0..1), and one by `value` takes none")
        return self

    @property
    def number(self) -> int:
        """How the segment is told from the others: its value, or one more than its channel."""
        return self.value if self.value is not None else (self.channel or 0) + 1


class FindingEntry(_Strict):
    """One output of a classification bundle and what it means (TID 1501)."""

    output: int = Field(ge=0)
    label: str = Field(max_length=64)
    type: CodeEntry
    site: CodeEntry | None = None
    threshold: _Part
    sensitivity: float | None = Field(default=None, gt=0, le=1)
    """The sensitivity on validation patients that the threshold was chosen for."""
    calibrated: bool


class DetectionEntry(_Strict):
    """One class of a detector and what it means (TID 1410): the label it gives its boxes, and which scores count."""

    value: int = Field(ge=0)
    label: str = Field(max_length=58)
    type: CodeEntry
    site: CodeEntry | None = None
    threshold: _Part
    calibrated: bool
    color: _Color
    most: int = Field(default=20, ge=1, le=200)


class BoxEntry(_Strict):
    """How a detector's boxes are to be understood, as the postprocessing leaves them.

    `space`: indices of the network's input (`"image"`), or millimeters of the patient (`"ras"`, `"lps"`). `mode` is
    MONAI's: corners first (`"xyzxyz"`), per axis (`"xxyyzz"`), corner and size, or center and size (`"cccwhd"`).
    """

    space: Literal["image", "ras", "lps"] = "image"
    mode: Literal["xyxy", "xxyy", "xywh", "ccwh", "xyzxyz", "xxyyzz", "xyzwhd", "cccwhd"]
    boxes: str = "box"
    labels: str = "label"
    scores: str = "label_scores"

    @property
    def axes(self) -> int:
        """2 or 3."""
        return len(self.mode) // 2


class ChannelEntry(_Strict):
    """One of several series that the bundle reads together, as one channel of its input."""

    name: str = Field(min_length=1, max_length=32)
    series: dict[str, Condition]
    prefer: Preferences = {}


class ExplainEntry(_Strict):
    """How a classification bundle is asked where it looked: Grad-CAM on one layer, or occlusion of any network."""

    method: Literal["grad-cam", "occlusion"] = "grad-cam"
    layer: str = ""

    @model_validator(mode="after")
    def _has_its_layer(self) -> ExplainEntry:
        if (self.method == "grad-cam") != bool(self.layer):
            raise ValueError('method "grad-cam" needs a layer of the network, and "occlusion" takes none')
        return self


class Bounds(_Strict):
    """The least and the greatest value that a bundle was made for; either may be open."""

    min: float = -math.inf
    max: float = math.inf

    @model_validator(mode="after")
    def _is_a_range(self) -> Bounds:
        if not self.min <= self.max:
            raise ValueError("min and max were expected, and min must not be above max")
        return self


class GuardEntry(_Strict):
    """What an image must be like before the bundle reads it: by its header, its grid, its values, and its looks.

    `header`: conditions as in `[series]`, on each image. `spacing_mm` and `extent_mm`: of each axis, where millimeters
    are known. `intensity`: percentiles 1 and 99 lie within. `clipped`: the largest share of pixels at either limit.
    `file`: in `models/`, written by `models/guard.py` or `wetread train`; how unlike the training images is too unlike.
    """

    file: str | None = Field(default=None, pattern=r"^[\w.-]+\.safetensors$")
    header: dict[str, Condition] = {}
    spacing_mm: Bounds = Bounds()
    extent_mm: Bounds = Bounds()
    intensity: Bounds = Bounds()
    clipped: float = Field(default=1.0, gt=0, le=1)


class DicomConfig(_Strict):
    """`configs/dicom.toml`: which series the bundle reads and what its outputs mean."""

    label: str = Field(max_length=16)
    kind: Literal["classification", "segmentation", "detection"]
    dimensions: Literal[2, 3]
    per_slice: bool = False
    color: bool = False
    manufacturer: str = Field(min_length=1, max_length=64)
    series: dict[str, Condition]
    prefer: Preferences = {}
    channel: list[ChannelEntry] = []
    segment: list[SegmentEntry] = []
    finding: list[FindingEntry] = []
    detection: list[DetectionEntry] = []
    boxes: BoxEntry | None = None
    explain: ExplainEntry | None = None
    guard: GuardEntry | None = None

    @property
    def overlaps(self) -> bool:
        """Whether the segments are channels of their own, which may overlap."""
        return any(entry.channel is not None for entry in self.segment)

    @model_validator(mode="after")
    def _explains_findings(self) -> DicomConfig:
        if self.explain is not None and self.kind != "classification":
            raise ValueError("[explain] is for classifications; a segmentation shows what it found by itself")
        if self.explain is not None and (self.per_slice or self.channel):
            raise ValueError("[explain] is for bundles that read one image as a whole")
        if self.guard is not None and (self.color or self.channel):
            raise ValueError("[guard] is for gray images of one series")
        return self

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> DicomConfig:
        needed = {"segmentation": "segment", "classification": "finding", "detection": "detection"}
        for kind, table in needed.items():
            if getattr(self, table) and kind != self.kind:
                raise ValueError(f'kind "{self.kind}" takes no [[{table}]]')
        if (self.boxes is not None) != (self.kind == "detection"):
            raise ValueError('kind "detection" needs [boxes], and no other kind takes it')
        _require_unique("segment", "number", [entry.number for entry in self.segment])
        _require_unique("finding", "number", [entry.output for entry in self.finding])
        _require_unique("detection", "number", [entry.value for entry in self.detection])
        for table, entries in (("segment", self.segment), ("finding", self.finding), ("detection", self.detection)):
            _require_unique(table, "label", [entry.label for entry in entries])
        if len({entry.channel is None for entry in self.segment}) > 1:
            raise ValueError("segments are all told by `value`, or all by `channel`")
        self._measures_what_there_is()
        return self

    def _measures_what_there_is(self) -> None:
        """A film has no depth, and the areas of all slices together are the size of nothing."""
        wrong, right = ("volume", "area") if self.dimensions == 2 else ("area", "volume")
        for entry in self.segment:
            if wrong in entry.measurements:
                raise ValueError(f'a segment of dimensions = {self.dimensions} has no "{wrong}"; measure its "{right}"')

    @model_validator(mode="after")
    def _reads_what_can_be_read(self) -> DicomConfig:
        axes = 2 if self.per_slice else self.dimensions
        if self.per_slice and self.dimensions != 3:
            raise ValueError("per_slice is for dimensions = 3: a series that a 2D network reads slice by slice")
        if self.boxes is not None and self.boxes.axes != axes:
            raise ValueError(f'[boxes] mode "{self.boxes.mode}" is for {self.boxes.axes}D images; these are {axes}D')
        if self.boxes is not None and axes == 2 and self.boxes.space != "image":
            raise ValueError('[boxes] of 2D images have space = "image"')
        if self.channel and (self.dimensions == 2 or self.color):
            raise ValueError("[[channel]] is for dimensions = 3 and gray images")
        if len(self.channel) == 1:
            raise ValueError("one [[channel]] is no choice: put its conditions into [series]")
        if len({entry.name for entry in self.channel}) < len(self.channel):
            raise ValueError("each [[channel]] needs a name of its own")
        if self.color and self.dimensions == 3:
            raise ValueError("color is for dimensions = 2")
        return self


def _require_unique(table: str, what: str, values: Sequence[int | str]) -> None:
    """Reports and figures tell entries apart by their labels, whatever side their modifiers say."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"two [[{table}]] have the same {what}, {value}")
