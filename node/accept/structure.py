"""The structure of an encoded data set, walked element by element without decoding a value (PS3.5 §7).

Iterative, bounded and never recursive: nested sequences cannot exhaust the stack, lying lengths cannot make it read
past the end, and the work is limited by counts. Whatever is odd but walkable is left as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

from pydicom.datadict import dictionary_VR

from node.store.spool import Encoded

MAX_DEPTH = 32
"""Sequences within sequences; readers that recurse give up at about 200."""
MAX_ELEMENTS = 100_000
"""Data Elements at all levels; also the most items in all sequences together."""
MAX_ITEMS = 65_535
"""Items in one sequence."""
MAX_FRAGMENTS = 1_000_000
"""Fragments of encapsulated Pixel Data."""

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_FIRST_GROUP = 0x0008
"""Lower groups belong to commands, file meta information and DICOMDIR, never to a data set (PS3.5 §7.1)."""

_LONG_VR = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VR = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"}
    | {b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)

_tag_of = struct.Struct("<HH").unpack_from
_short_of = struct.Struct("<HH2sH").unpack_from
_implicit_of = struct.Struct("<HHL").unpack_from
_u16 = struct.Struct("<H").unpack_from
_u32 = struct.Struct("<L").unpack_from


class Broken(ValueError):
    """The data set cannot be walked to its end."""


@dataclass(frozen=True)
class Element:
    """A top-level element: VR (empty in Implicit VR), and where its value is. `length` may be `UNDEFINED`."""

    vr: str
    offset: int
    length: int


@dataclass
class Structure:
    """What a walk found: the wanted top-level elements, and how many values have an odd length (PS3.5 §7.1.1)."""

    elements: dict[int, Element] = field(default_factory=dict)
    odd_lengths: int = 0


@dataclass(frozen=True)
class _Frame:
    """A data set or sequence being walked; `limit` is the innermost known end, `is_open` asks for a delimiter."""

    is_sequence: bool
    is_open: bool
    limit: int
    implicit: bool


def walk(data: Encoded, *, implicit: bool, encapsulated: bool, wanted: Collection[int] = ()) -> Structure:
    """Walk the little endian data set `data` to its very end; raises `Broken` naming the first fault.

    `wanted` are the tags whose top-level elements are returned; one that is there twice is a fault, because
    readers differ in which of the two they believe.
    """
    return _Walk(data, implicit, encapsulated, frozenset(wanted)).run()


class _Walk:
    """One walk: a position, a stack of frames and the counts."""

    def __init__(self, data: Encoded, implicit: bool, encapsulated: bool, wanted: frozenset[int]) -> None:
        self._data, self._encapsulated, self._wanted = data, encapsulated, wanted
        self._found = Structure()
        self._position = 0
        self._stack = [_Frame(is_sequence=False, is_open=False, limit=len(data), implicit=implicit)]
        self._items_in = [0]
        self._depth = self._elements = self._items = 0

    def run(self) -> Structure:
        """Walk to the end."""
        if not self._data:
            raise Broken("the data set is empty")
        while self._stack:
            frame = self._stack[-1]
            if self._position >= frame.limit and not frame.is_open:
                self._leave()
            elif frame.limit - self._position < 8:
                raise Broken("cut off" if len(self._stack) == 1 else "a delimiter or element is cut off")
            elif frame.is_sequence:
                self._item(frame)
            elif not (self._implicit_run(frame.limit) if frame.implicit else self._short_run(frame.limit)):
                self._element(frame)
        return self._found

    def _short_run(self, limit: int) -> int:
        """Step over ordinary elements with a short VR and return how many; `_element` judges whatever is not.

        Nearly all elements are such, and a call for each of them is most of what a walk costs.
        """
        data, position, count, odd = self._data, self._position, 0, 0
        end, most = limit - 8, MAX_ELEMENTS - self._elements
        wanted: Collection[int] = self._wanted if len(self._stack) == 1 else ()
        while position <= end and count < most:
            group, number, vr, length = _short_of(data, position)
            after = position + 8 + length
            if vr not in _SHORT_VR or after > limit or not _FIRST_GROUP <= group < 0xFFFE:
                break
            if wanted and (tag := group << 16 | number) in wanted:
                self._keep(tag, Element(vr.decode("ascii"), position + 8, length))
            odd += length & 1
            count += 1
            position = after
        return self._stepped(position, count, odd)

    def _implicit_run(self, limit: int) -> int:
        """The same for elements in Implicit VR that can be no sequence."""
        data, position, count, odd = self._data, self._position, 0, 0
        end, most = limit - 8, MAX_ELEMENTS - self._elements
        wanted: Collection[int] = self._wanted if len(self._stack) == 1 else ()
        while position <= end and count < most:
            group, number, length = _implicit_of(data, position)
            after, tag = position + 8 + length, group << 16 | number
            if after > limit or not _FIRST_GROUP <= group < 0xFFFE or _dictionary_vr(tag) == "SQ":
                break
            if tag in wanted:
                self._keep(tag, Element("", position + 8, length))
            odd += length & 1
            count += 1
            position = after
        return self._stepped(position, count, odd)

    def _stepped(self, position: int, count: int, odd: int) -> int:
        self._position = position
        self._elements += count
        self._found.odd_lengths += odd
        return count

    def _element(self, frame: _Frame) -> None:
        start = self._position
        group, number = _tag_of(self._data, start)
        tag = group << 16 | number
        if group < _FIRST_GROUP or group >= 0xFFFE:
            return self._delimiter(frame, tag)
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Broken("too many elements")
        vr, offset, length = self._header(frame, start, tag)
        if len(self._stack) == 1 and tag in self._wanted:
            self._keep(tag, Element(vr.decode("ascii"), offset, length))
        self._position = offset
        if length == UNDEFINED:
            return self._undefined(frame, tag, vr)
        if offset + length > frame.limit:
            raise Broken(f"{_name(tag)} is longer than what is left")
        if vr == b"SQ" or (frame.implicit and _dictionary_vr(tag) == "SQ" and self._starts_item(offset, length)):
            return self._enter(is_sequence=True, end=offset + length, implicit=frame.implicit)
        self._found.odd_lengths += length & 1
        self._position = offset + length
        return None

    def _header(self, frame: _Frame, start: int, tag: int) -> tuple[bytes, int, int]:
        """Return VR, offset of the value and length of the element at `start` (PS3.5 §7.1.2, §7.1.3)."""
        if frame.implicit:
            return b"", start + 8, _u32(self._data, start + 4)[0]
        vr = bytes(self._data[start + 4 : start + 6])
        if vr in _SHORT_VR:
            return vr, start + 8, _u16(self._data, start + 6)[0]
        if vr not in _LONG_VR and not (vr.isalpha() and vr.isupper()):
            raise Broken(f"{_name(tag)} has no Value Representation")
        if frame.limit - start < 12:
            raise Broken("cut off")
        return vr, start + 12, _u32(self._data, start + 8)[0]

    def _starts_item(self, offset: int, length: int) -> bool:
        """Say whether an implicit value begins with an item; some vendors reuse a sequence's tag for text."""
        return length >= 8 and _tag_of(self._data, offset) == (_ITEM >> 16, _ITEM & 0xFFFF)

    def _undefined(self, frame: _Frame, tag: int, vr: bytes) -> None:
        """Enter a value of undefined length: a sequence, UN in Implicit VR (PS3.5 §6.2.2), or fragments (§A.4)."""
        if vr == b"SQ" or (frame.implicit and tag != PIXEL_DATA and _dictionary_vr(tag) in ("SQ", "UN", None)):
            self._enter(is_sequence=True, end=None, implicit=frame.implicit)
        elif vr == b"UN":
            self._enter(is_sequence=True, end=None, implicit=True)
        elif tag == PIXEL_DATA and self._encapsulated and vr in (b"OB", b"OW"):
            self._fragments(frame)
        else:
            raise Broken(f"{_name(tag)} must not have an undefined length")

    def _fragments(self, frame: _Frame) -> None:
        """Walk the Basic Offset Table and fragments to the Sequence Delimitation Item."""
        for _ in range(MAX_FRAGMENTS + 2):
            if frame.limit - self._position < 8:
                raise Broken("the fragments of Pixel Data have no end")
            group, number = _tag_of(self._data, self._position)
            tag, length = group << 16 | number, _u32(self._data, self._position + 4)[0]
            self._position += 8
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM or length == UNDEFINED or self._position + length > frame.limit:
                raise Broken("a fragment of Pixel Data is broken or cut off")
            self._position += length
        raise Broken("too many fragments")

    def _item(self, frame: _Frame) -> None:
        group, number = _tag_of(self._data, self._position)
        tag, length = group << 16 | number, _u32(self._data, self._position + 4)[0]
        if tag != _ITEM:
            return self._delimiter(frame, tag)
        self._items += 1
        self._items_in[-1] += 1
        if self._items_in[-1] > MAX_ITEMS or self._items > MAX_ELEMENTS:
            raise Broken("too many items")
        self._position += 8
        end = None if length == UNDEFINED else self._position + length
        return self._enter(is_sequence=False, end=end, implicit=frame.implicit)

    def _enter(self, *, is_sequence: bool, end: int | None, implicit: bool) -> None:
        outer = self._stack[-1].limit
        if end is not None and end > outer:
            raise Broken("an item is longer than what is left")
        self._depth += is_sequence
        if self._depth > MAX_DEPTH:
            raise Broken(f"sequence depth over {MAX_DEPTH}")
        self._stack.append(_Frame(is_sequence, end is None, outer if end is None else end, implicit))
        self._items_in.append(0)

    def _delimiter(self, frame: _Frame, tag: int) -> None:
        if not frame.is_open or tag != (_SEQUENCE_END if frame.is_sequence else _ITEM_END):
            raise Broken(f"{_name(tag)} is out of place")
        self._position += 8
        self._leave()

    def _leave(self) -> None:
        self._depth -= self._stack.pop().is_sequence
        self._items_in.pop()

    def _keep(self, tag: int, element: Element) -> None:
        if tag in self._found.elements:
            raise Broken(f"{_name(tag)} is there twice")
        self._found.elements[tag] = element


@lru_cache(maxsize=8192)
def _dictionary_vr(tag: int) -> str | None:
    """Return the VR that PS3.6 gives `tag`, None for private and unknown ones."""
    if tag >> 16 & 1:
        return None
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
