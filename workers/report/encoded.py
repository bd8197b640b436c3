"""Sequences as they are encoded, read without a Data Set for each item: what a gate looks at in thousands of frames.

Explicit VR Little Endian, as all our objects are (PS3.5 §7.1.2, §7.5); nothing that a stranger sent is read here.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from io import BytesIO

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""VRs with two reserved bytes and a length of four (PS3.5 Table 7.1-1)."""
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_HEAD, _ITEM_HEAD, _LENGTH = struct.Struct("<HH2sH"), struct.Struct("<HHL"), struct.Struct("<L")
"""Of an element: tag, VR, and its length where it is short; of an item: tag and length; a long length."""


class Item:
    """One item of a sequence: its elements by tag, values as bytes, sequences as items."""

    def __init__(self, elements: dict[int, bytes | list[Item]]) -> None:
        self._elements = elements

    def items(self, keyword: str) -> list[Item]:
        """Return the items of a sequence; none where it is absent."""
        found = self._elements.get(tag_for_keyword(keyword) or 0)
        return found if isinstance(found, list) else []

    def text(self, keyword: str) -> str:
        """Return a text without its padding; empty where it is absent."""
        found = self._elements.get(tag_for_keyword(keyword) or 0)
        return found.rstrip(b" \0").decode("utf-8", "replace") if isinstance(found, bytes) else ""

    def numbers(self, keyword: str, format_: str) -> tuple[int, ...]:
        """Return binary numbers, each as `struct` names its format ("H" of US, "L" of UL); none where absent."""
        found = self._elements.get(tag_for_keyword(keyword) or 0)
        return tuple(n for (n,) in struct.iter_unpack(f"<{format_}", found)) if isinstance(found, bytes) else ()

    def sequences(self) -> list[Item]:
        """Return the items of all sequences."""
        return [item for value in self._elements.values() if isinstance(value, list) for item in value]


def sequence(ds: Dataset, keyword: str) -> list[Item]:
    """Return the items of a sequence of `ds`, which stays encoded where it is; none where it is absent."""
    tag = Tag(keyword)
    if tag not in ds:
        return []
    raw = ds.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.value is not None and raw.is_little_endian and not raw.is_implicit_VR:
        return list(_items_of(raw.value))
    alone = Dataset()
    alone.add(ds[tag])
    buffer = DicomIO(BytesIO())
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, alone)
    data = buffer.parent.getvalue()  # type: ignore[union-attr]  # the BytesIO above
    return _elements(data, 0, len(data))[0].items(keyword)


@lru_cache(maxsize=2)
def _items_of(value: bytes) -> tuple[Item, ...]:
    """Return the items of a sequence's value; several rules ask for those of the one object that is checked."""
    return tuple(_items(value, 0, len(value))[0])


def _items(data: bytes, start: int, end: int) -> tuple[list[Item], int]:
    """Return the items from `start` on, and where they ended."""
    found = []
    while start < end:
        group, element, length = _ITEM_HEAD.unpack_from(data, start)
        tag = group << 16 | element
        start += 8
        if tag == _END_OF_SEQUENCE:
            break
        if tag != _ITEM:
            raise ValueError(f"an item was expected where ({group:04X},{element:04X}) stands")
        item, start = _elements(data, start, end if length == _UNDEFINED else start + length)
        found.append(item)
    return found, start


def _elements(data: bytes, start: int, end: int) -> tuple[Item, int]:
    """Return the elements from `start` on, and where they ended."""
    found: dict[int, bytes | list[Item]] = {}
    while start < end:
        group, element, vr, length = _HEAD.unpack_from(data, start)
        tag = group << 16 | element
        start += 8
        if tag == _END_OF_ITEM:
            break
        if vr in _LONG:
            (length,) = _LENGTH.unpack_from(data, start)
            start += 4
        if vr == b"SQ":
            found[tag], start = _items(data, start, end if length == _UNDEFINED else start + length)
        else:
            found[tag] = data[start : start + length]
            start += length
    return Item(found), start
