"""What the Evidence Documents of one reading need to know besides the reading itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydicom import Dataset

from workers.report import sources

ResultKind = Literal["SR", "SEG", "SC", "SALIENCY", "PM"]
SegType = Literal["auto", "binary", "fractional"]

MANUFACTURER = "wetread"


def _version() -> str:
    try:
        return metadata.version("wetread")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "0.1.0"


@dataclass(frozen=True)
class NodeIdentity:
    """The node as the General Equipment Module names it (PS3.3 §C.7.5.1)."""

    ae_title: str = "WETREAD"
    station_name: str = ""
    version: str = field(default_factory=_version)

    @property
    def serial_number(self) -> str:
        """Device Serial Number, type 1 in a SEG: a node has no other number than its AE Title."""
        return self.ae_title


@dataclass(frozen=True)
class Context:
    """Where a reading comes from and what is to be made of it.

    `sources`: the Part 10 files that were read. `key`: digest of the input manifest; another input, other UIDs.
    `predecessors`: the SR files made for an earlier revision (Predecessor Documents Sequence).
    `highest_series_number`: of every image series of the study, where known; ours are above it, because viewers
    hang the lowest number first and would show a capture in place of the radiograph.
    `seg_type`: BINARY, or bytes that hold only 0 and 255 (FRACTIONAL); "auto" takes the latter only where the
    columns are no multiple of 8, which archives in use cannot serve bit-packed.
    """

    sources: Sequence[Path]
    key: str
    node: NodeIdentity = NodeIdentity()
    predecessors: Sequence[Path] = ()
    results: tuple[ResultKind, ...] = ("SR", "SEG", "SC")
    highest_series_number: int | None = None
    seg_type: SegType = "auto"

    @cached_property
    def headers(self) -> tuple[Dataset, ...]:
        """The headers of `sources`, in their order, read once; nobody changes them."""
        return sources.read_headers(self.sources)


@dataclass(frozen=True)
class EvidenceDocument:
    """One object we created: the whole Data Set with its File Meta Information; SALIENCY is a Secondary Capture too."""

    kind: ResultKind
    dataset: Dataset
    encoded: bytes | None = None
    """The Part 10 file, where it was made before the Data Set was looked into."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""
        return str(self.dataset.SOPClassUID)

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID (0008,0018)."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E); every SR and SEG has a series of its own."""
        return str(self.dataset.SeriesInstanceUID)
