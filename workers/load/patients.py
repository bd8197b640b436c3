"""Images of two patients are never read as one: what is found would be filed under the name of the first.

One Series Instance UID belongs to one patient (PS3.3 §7.5), but modalities that were not closed in time, and archives
that merged a study into another, send such series. Only values that are there and differ count; none is ever told.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement

from node.errors import Unsuitable
from workers.load.header import text

WHO = {
    "PatientID": "Patient ID (0010,0020)",
    "PatientBirthDate": "Patient's Birth Date (0010,0030)",
    "PatientName": "Patient's Name (0010,0010)",
}


def require_one(images: Iterable[tuple[str, Dataset]]) -> None:
    """Raise `Unsuitable` where two of `images`, each with its name for messages, are of different patients."""
    first: dict[str, tuple[str, str, bytes | None]] = {}
    for name, ds in images:
        for keyword, words in WHO.items():
            raw = _raw(ds, keyword)
            if keyword in first and raw is not None and raw == first[keyword][2]:
                continue
            told = _told(ds, keyword)
            if not told:
                continue
            other, expected, _ = first.setdefault(keyword, (name, told, raw))
            if told != expected:
                raise Unsuitable(
                    f"{other} and {name} are of different patients: {words} differs; correct the study in the archive "
                    "and send it again"
                )


def _told(ds: Dataset, keyword: str) -> str:
    """Return a value so that spelling alone makes no other patient: case, spaces, and components without a value."""
    value = text(ds, keyword).upper()
    if keyword != "PatientName":
        return value
    groups = ("^".join(" ".join(part.split()) for part in group.split("^")).rstrip("^") for group in value.split("="))
    return "=".join(groups).rstrip("=")


def _raw(ds: Dataset, keyword: str) -> bytes | None:
    """Return the bytes of an element that nobody has looked at yet: mostly the same, and quick to compare."""
    tag = tag_for_keyword(keyword)
    raw = None if tag is None else ds.get_item(tag, keep_deferred=True)
    return raw.value if isinstance(raw, RawDataElement) else None
