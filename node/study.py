"""Studies, series and instances as the headers of their Part 10 files tell them (PS3.10); pixels stay unread."""

from __future__ import annotations

import filecmp
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue

from node.errors import Unsuitable

AttributeValue = str | float | tuple[str | float, ...]

_NUMERIC_VR = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "DS", "IS"})
_UNREAD_VR = frozenset({"SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN", "AT"})
CODED = frozenset({"ViewCodeSequence", "AnatomicRegionSequence"})
"""Sequences of codes that a condition can name: their values are Code Value and Code Meaning of each item."""
MAX_TEXT = 1024
"""Longer values are of no use as conditions and only cost memory."""


@dataclass(frozen=True)
class Instance:
    """One SOP Instance in a Part 10 file, with the single-valued identifiers of its header."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    path: Path
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True)
class Series:
    """The instances of one Series Instance UID, ordered by Instance Number and then UID."""

    series_instance_uid: str
    study_instance_uid: str
    instances: tuple[Instance, ...]

    @property
    def attributes(self) -> Mapping[str, AttributeValue]:
        """The first instance's attributes, with NumberOfSeriesRelatedInstances (0020,1209) as counted here."""
        counted: dict[str, AttributeValue] = {"NumberOfSeriesRelatedInstances": float(len(self.instances))}
        return {**self.instances[0].attributes, **counted}


@dataclass(frozen=True)
class Study:
    """The series of one Study Instance UID."""

    study_instance_uid: str
    series: tuple[Series, ...]


def read_instance(path: Path) -> Instance:
    """Read the header of one Part 10 file; raises `Unsuitable` when it is none or lacks an identifier."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            attributes = _attributes(ds)
    except Exception as error:  # pydicom raises many kinds on broken files
        raise Unsuitable(f"{path.name} is not a readable DICOM Part 10 file ({type(error).__name__}).") from None
    try:
        uids = [str(ds[k].value) for k in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")]
    except KeyError as error:
        raise Unsuitable(f"{path.name} has no {error.args[0]} and belongs to no series.") from None
    syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", ""))
    return Instance(uids[0], uids[1], uids[2], uids[3], syntax, path, attributes)


def group(instances: Iterable[Instance]) -> tuple[Study, ...]:
    """Group instances into studies and series, each in a stable order."""
    series: dict[tuple[str, str], dict[str, Instance]] = {}
    for instance in instances:
        members = series.setdefault((instance.study_instance_uid, instance.series_instance_uid), {})
        members.setdefault(instance.sop_instance_uid, instance)
    studies: dict[str, list[Series]] = {}
    for (study_uid, series_uid), members in sorted(series.items()):
        ordered = tuple(sorted(members.values(), key=_order))
        studies.setdefault(study_uid, []).append(Series(series_uid, study_uid, ordered))
    return tuple(Study(uid, tuple(found)) for uid, found in studies.items())


def scan(folder: Path) -> tuple[tuple[Study, ...], tuple[str, ...]]:
    """Read every file below `folder`; return the studies and, for each file left out, why.

    Of two files of one SOP Instance the first is taken; that the other differs is told.
    """
    instances: list[Instance] = []
    left_out: list[str] = []
    first: dict[str, Instance] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            instances.append(read_instance(path))
        except Unsuitable as error:
            left_out.append(str(error))
            continue
        uid = instances[-1].sop_instance_uid
        taken = first.setdefault(uid, instances[-1]).path
        if taken != path and not filecmp.cmp(taken, path, shallow=False):
            left_out.append(f"{path.name} is instance {uid} with other content than {taken.name}, which is read.")
    return group(instances), tuple(left_out)


def _order(instance: Instance) -> tuple[float, str]:
    number = instance.attributes.get("InstanceNumber", 0.0)
    return (number if isinstance(number, float) else 0.0, instance.sop_instance_uid)


def _attributes(ds: pydicom.Dataset) -> dict[str, AttributeValue]:
    """Return keyword → value for the standard top-level elements that a condition can name."""
    found: dict[str, AttributeValue] = {}
    for tag in list(ds.keys()):
        keyword = pydicom.datadict.keyword_for_tag(tag)
        if not keyword or (dictionary_VR(tag) in _UNREAD_VR and keyword not in CODED):
            continue
        try:
            value = _codes(ds[tag].value) if keyword in CODED else _value(ds[tag].value, dictionary_VR(tag))
        except Exception:  # noqa: S112 - one undecodable element must not hide the others
            continue
        if value is not None:
            found[keyword] = value
    return found


def _codes(items: Any) -> AttributeValue | None:
    """Return the codes and meanings of a code sequence (PS3.3 §8.8), None where it has none."""
    told = (str(item.get(keyword) or "") for item in items for keyword in ("CodeValue", "CodeMeaning"))
    return tuple(text[:MAX_TEXT] for text in told if text) or None


def _value(value: Any, vr: str) -> AttributeValue | None:
    if value is None or value == "":
        return None
    if isinstance(value, MultiValue):
        values = [_value(v, vr) for v in value]
        return tuple(v if isinstance(v, str | float) else "" for v in values)
    if vr.split(" ")[0] in _NUMERIC_VR:
        return float(value)
    return str(value)[:MAX_TEXT]
