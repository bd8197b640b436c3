"""What the numbers of a volume mean must be one thing: slices of two echoes or in two units are no volume.

Where such slices lie at the same places, their pictures tell (`workers/load/geometry.py`); where they lie between each
other, or one above the other, only their headers do. What a header does not say is no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydicom import Dataset

from node.errors import Unsuitable
from workers.load.header import number, text
from workers.load.slices import Image, Slice, group

ALIKE = 0.05
"""How far numbers may differ, as a part of the larger one: scanners round, and adapt them a little to the slice."""
Value = str | float | None


def require_alike(where: Sequence[tuple[Image, Slice]]) -> None:
    """Raise `Unsuitable` naming two slices whose echo time, b-value, unit or rescaling differ."""
    for what, of, tell in _SAID:
        if where[0][0].modality not in of:
            continue
        said = [
            (value, frame.plane.name) for image, frame in where if (value := tell(image.ds, frame.index)) is not None
        ]
        for value, name in said:
            first, other = said[0]
            if not _same(value, first):
                raise Unsuitable(f"it mixes {what}: {name} has {_shown(value)}, {other} has {_shown(first)}")


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= ALIKE * max(abs(one), abs(other))
    return one == other


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _echo_time(ds: Dataset, index: int) -> Value:
    echo = group(ds, index, "MREchoSequence")
    return number(ds, "EchoTime") if echo is None else number(echo, "EffectiveEchoTime")


def _b_value(ds: Dataset, index: int) -> Value:
    return number(group(ds, index, "MRDiffusionSequence") or ds, "DiffusionBValue")


def _unit(ds: Dataset, _index: int) -> Value:
    return text(ds, "Units") or None


def _rescaling(ds: Dataset, index: int) -> Value:
    """Whether values are rescaled at all: slopes of their own for each slice are as PET has it."""
    source = group(ds, index, "PixelValueTransformationSequence") or ds
    if ds.get("ModalityLUTSequence") or (number(source, "RescaleSlope"), number(source, "RescaleIntercept")) == (1, 0):
        return None
    return "a Rescale Slope" if "RescaleSlope" in source or "RescaleIntercept" in source else "no Rescale Slope"


_SAID: tuple[tuple[str, tuple[str, ...], Callable[[Dataset, int], Value]], ...] = (
    ("echo times (ms)", ("MR",), _echo_time),
    ("b-values (s/mm2)", ("MR",), _b_value),
    ("units", ("PT",), _unit),
    ("rescaled images and others", ("MR", "PT"), _rescaling),
)
"""What is compared, of which modalities, and how it is told; of a CT all must be in Hounsfield units in any case."""
