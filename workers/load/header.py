"""Numbers out of headers that strangers wrote: a value that is absent, empty, repeated or no number is None."""

from __future__ import annotations

import math
from typing import Any

from pydicom import Dataset


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the `count` finite numbers of an element, or None."""
    value = _value(ds, keyword)
    values = [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else list(value)
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
    if keyword not in ds or _value(ds, keyword) is None:
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


def _value(ds: Dataset, keyword: str) -> Any:
    try:
        return ds.get(keyword)
    except Exception:  # pydicom raises many kinds on elements it cannot convert
        return None
