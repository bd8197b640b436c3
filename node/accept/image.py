"""What a data set says about its pixels, held against the pixels that came with it (PS3.3 §C.7.6.3).

Three ways to judge: `standard` keeps what a model cannot use and refuses what is incomplete; `lenient` also keeps
padded Pixel Data; `strict` refuses attributes that no image can have. Nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.accept.structure import PIXEL_DATA, UNDEFINED, Element, Structure
from node.configvalues import Check
from node.store.spool import Encoded

SAMPLES, PHOTOMETRIC, FRAMES = 0x00280002, 0x00280004, 0x00280008
ROWS, COLUMNS, BITS_ALLOCATED = 0x00280010, 0x00280011, 0x00280100
WANTED = frozenset({PIXEL_DATA, SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS_ALLOCATED})
"""The elements that `complaint` looks at."""

_SUBSAMPLED = {"YBR_FULL_422": (2, 3), "YBR_PARTIAL_422": (2, 3), "YBR_PARTIAL_420": (1, 2)}
"""Share of the samples that native Pixel Data holds (PS3.3 §C.7.6.3.1.2)."""
_PHOTOMETRICS = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB", "YBR_FULL", "YBR_RCT"}
    | {"YBR_ICT", *_SUBSAMPLED}
)
_NUMBERS = {ROWS: "Rows", COLUMNS: "Columns", SAMPLES: "Samples per Pixel", BITS_ALLOCATED: "Bits Allocated"}
_ALLOWED = {SAMPLES: frozenset({1, 3, 4}), BITS_ALLOCATED: frozenset({1, 8, 16, 32, 64})}


def complaint(dataset: Encoded, found: Structure, check: Check, most: int) -> str | None:
    """Return why the image is refused (A900H), None when it is kept or is none; `most` bytes are believed."""
    image = _Image(dataset, found, most)
    return (image.oddity() if check == "strict" else None) or image.contradiction(may_be_padded=check == "lenient")


@dataclass(frozen=True)
class _Image:
    dataset: Encoded
    found: Structure
    most: int

    def contradiction(self, *, may_be_padded: bool) -> str | None:
        """Compare the length of native Pixel Data with what the attributes promise (PS3.5 §8.1.1, §8.2)."""
        pixels, expected = self._native(), self._expected()
        if pixels is None or expected is None or expected > self.most:
            return None
        if pixels.length in (expected, expected + expected % 2) or (may_be_padded and pixels.length > expected):
            return None
        what = "shorter" if pixels.length < expected else "longer"
        return f"Pixel Data is {what} than Rows × Columns × … says"

    def oddity(self) -> str | None:
        """Return the first attribute of an image that none can have (PS3.3 §C.7.6.3.1, §C.7.6.6)."""
        if not {PIXEL_DATA, ROWS, COLUMNS} & self.found.elements.keys():
            return None
        for tag, name in _NUMBERS.items():
            number = self._number(tag)
            if not number or number not in _ALLOWED.get(tag, (number,)):
                return f"{name} is missing or is no number that an image can have"
        if not 0 < self._frames() < 2**31:
            return "Number of Frames is no positive number"
        if self._text(PHOTOMETRIC) not in _PHOTOMETRICS:
            return "Photometric Interpretation is missing or unknown"
        if self._native() is not None and (self._expected() or 0) > self.most:
            return "Rows × Columns × … says more than the node takes"
        return None

    def _native(self) -> Element | None:
        pixels = self.found.elements.get(PIXEL_DATA)
        return None if pixels is None or pixels.length == UNDEFINED else pixels

    def _expected(self) -> int | None:
        """Return the bytes of native Pixel Data, None when an attribute is absent or odd."""
        rows, columns, samples, bits = map(self._number, (ROWS, COLUMNS, SAMPLES, BITS_ALLOCATED))
        frames = self._frames()
        if not (rows and columns and samples and bits and frames):
            return None
        share, whole = _SUBSAMPLED.get(self._text(PHOTOMETRIC), (1, 1))
        if (share, whole) != (1, 1) and (samples != 3 or columns % 2):
            return None
        return (rows * columns * samples * frames * bits * share // whole + 7) // 8

    def _number(self, tag: int) -> int:
        """Return one unsigned short, 0 when it is absent or anything else."""
        element = self.found.elements.get(tag)
        if element is None or element.length != 2 or element.vr not in ("", "US"):
            return 0
        return int.from_bytes(self.dataset[element.offset : element.offset + 2], "little")

    def _frames(self) -> int:
        """Return Number of Frames: 1 when absent, 0 when it is no positive number."""
        if FRAMES not in self.found.elements:
            return 1
        text = self._text(FRAMES).strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 12 else 0

    def _text(self, tag: int) -> str:
        return ascii_value(self.dataset, self.found.elements.get(tag))


def ascii_value(dataset: Encoded, element: Element | None) -> str:
    """Return the value of a short ASCII element without its padding; what is not ASCII becomes `?`."""
    if element is None or element.length > 256:
        return "" if element is None else "?"
    value = bytes(dataset[element.offset : element.offset + element.length])
    return value.decode("ascii", "replace").replace("�", "?").rstrip("\0 ")
