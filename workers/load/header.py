"""Numbers out of headers that strangers wrote: a value that is absent, empty, repeated or no number is None."""

from __future__ import annotations

import math
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the `count` finite numbers of an element, or None."""
    value = _as_written(ds, keyword)
    if value is None:
        value = _value(ds, keyword)
    values: list[Any] = [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else list(value)
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def number(ds: Dataset, keyword: str) -> float | None:
    """Return the one finite number of an element, or None."""
    found = numbers(ds, keyword, 1)
    return found[0] if found else None


def integer(ds: Dataset, keyword: str, otherwise: int) -> int:
    """Return the one integer of an element, `otherwise` where it is absent, 0 where it is nonsense."""
    if keyword not in ds or (_as_written(ds, keyword) is None and _value(ds, keyword) is None):
        return otherwise
    found = number(ds, keyword)
    return int(found) if found is not None and found == int(found) else 0


def positive_pair(ds: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return two positive numbers such as Pixel Spacing (between rows, between columns), or None."""
    found = numbers(ds, keyword, 2)
    return (found[0], found[1]) if found and min(found) > 0 else None


def text(ds: Dataset, keyword: str) -> str:
    """Return an element's text, stripped; empty where it is absent or cannot be read."""
    value = _value(ds, keyword)
    return "" if value is None else str(value).strip()


def _as_written(ds: Dataset, keyword: str) -> list[bytes] | int | None:
    """Return the decimal strings or the one unsigned number of an element that nobody has looked at yet, or None.

    A tenth of what converting it costs, and a CT has hundreds of headers.
    """
    tag = tag_for_keyword(keyword)
    raw = None if tag is None else ds.get_item(tag, keep_deferred=True)
    if not isinstance(raw, RawDataElement) or not raw.value:
        return None
    if raw.VR in ("DS", "IS"):
        return raw.value.split(b"\\")
    return (
        int.from_bytes(raw.value, "little") if raw.VR == "US" and len(raw.value) == 2 and raw.is_little_endian else None
    )


def _value(ds: Dataset, keyword: str) -> Any:
    try:
        return ds.get(keyword)
    except Exception:  # pydicom raises many kinds on elements it cannot convert
        return None
