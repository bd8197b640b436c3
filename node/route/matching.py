"""Does this series meet these conditions? DICOM keywords against plain values; nothing is ever evaluated as code.

A condition is one of
    "text"            equal, upper and lower case alike; `*` and `?` stand for any text and any character
    3                 equal as a number; text that looks like a number compares as one too
    ["one", "other"]  any of these
    {min, max, not}   bounds (inclusive) and exclusions; all given must hold
    {absent = true}   the attribute is missing or empty; beside others: it may be missing
An attribute with several values matches if any of them does, and matches `not` if none of them does.
A missing attribute matches only `absent = true` and `not`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import tag_for_keyword

from node.bundles import Condition
from node.conditions import check
from node.study import AttributeValue

Scalar = str | float
_PATIENT_GROUP = 0x0010
_IDENTIFYING = frozenset({"AccessionNumber", "StudyID", "OtherPatientIDs", "InstitutionName"})
"""Beside group 0010: values that must not reach a reason, because reasons are stored, shown and logged."""


@dataclass(frozen=True)
class Match:
    """Whether all conditions hold, and why: those that failed, or, if none did, those that were met."""

    ok: bool
    reasons: tuple[str, ...]


def matches(attributes: Mapping[str, AttributeValue], conditions: Mapping[str, Condition]) -> Match:
    """Compare the attributes of a series, image or study with conditions; raises `Permanent` as `conditions.check`."""
    check(conditions)
    results = [_test(keyword, attributes.get(keyword), condition) for keyword, condition in conditions.items()]
    failed = tuple(reason for ok, reason in results if not ok)
    return Match(not failed, failed or tuple(reason for _, reason in results))


def equals(value: Scalar, wanted: Scalar) -> bool:
    """Compare one value with a number or a wildcard pattern."""
    number, wanted_number = _number(value), _number(wanted)
    if number is not None and wanted_number is not None:
        return number == wanted_number
    return _pattern(show(wanted)).fullmatch(show(value)) is not None


def values(value: AttributeValue | None) -> tuple[Scalar, ...]:
    """Return the values of an attribute, none for a missing or empty one."""
    if value is None or value == "":
        return ()
    return value if isinstance(value, tuple) else (value,)


def show(value: Scalar) -> str:
    """Return one value as people write it."""
    return f"{value:g}" if isinstance(value, int | float) else value.strip()


def _test(keyword: str, value: AttributeValue | None, condition: Condition) -> tuple[bool, str]:
    if isinstance(condition, dict):
        return _test_table(keyword, values(value), condition)
    present = values(value)
    if not present:
        return False, f"{keyword} is absent"
    wanted = condition if isinstance(condition, list) else [condition]
    shown = _shown(keyword, present)
    if any(equals(v, w) for v in present for w in wanted):
        return True, f"{keyword} is {shown}"
    return False, f"{keyword} is {shown}, not {_alternatives(keyword, wanted)}"


def _test_table(keyword: str, present: tuple[Scalar, ...], table: dict[str, Any]) -> tuple[bool, str]:
    limits = [k for k in ("min", "max", "not") if k in table]
    if not present:
        return bool(table.get("absent", limits == ["not"])), f"{keyword} is absent"
    if table.get("absent") is True and not limits:
        return False, f"{keyword} is {_shown(keyword, present)}, not absent"
    why = _excluded(keyword, present, table) or _out_of_bounds(present, table)
    return not why, f"{keyword} is {_shown(keyword, present)}{why}"


def _excluded(keyword: str, present: tuple[Scalar, ...], table: dict[str, Any]) -> str:
    if "not" not in table:
        return ""
    refused = table["not"] if isinstance(table["not"], list) else [table["not"]]
    hit = any(equals(v, w) for v in present for w in refused)
    return f", which is excluded (not {_alternatives(keyword, refused)})" if hit else ""


def _out_of_bounds(present: tuple[Scalar, ...], table: dict[str, Any]) -> str:
    """Say how every value breaks the bounds, or nothing; one value within both is enough."""
    low, high = table.get("min", -math.inf), table.get("max", math.inf)
    if "min" not in table and "max" not in table:
        return ""
    numbers = [n for v in present if (n := _number(v)) is not None]
    if not numbers:
        return ", not a number"
    if any(low <= n <= high for n in numbers):
        return ""
    return f", below {show(low)}" if numbers[0] < low else f", above {show(high)}"


def _pattern(text: str) -> re.Pattern[str]:
    """Turn `*` and `?` into a regular expression; unlike fnmatch, brackets are plain characters.

    Each part between stars is matched as early as it can be and never reconsidered (an atomic group), so that no
    value of a stranger makes the match take long.
    """
    first, *rest = ["".join("." if c == "?" else re.escape(c) for c in part) for part in text.strip().split("*")]
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    last = f".*{rest[-1]}" if rest else ""
    return re.compile(first + middle + last, re.IGNORECASE | re.DOTALL)


def _number(value: Scalar) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value) if re.fullmatch(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", value) else None
    except ValueError:
        return None


def _shown(keyword: str, present: tuple[Scalar, ...]) -> str:
    if _identifies(keyword):
        return "some other text"
    return "\\".join(show(v) for v in present)[:64]


def _alternatives(keyword: str, wanted: list[Scalar]) -> str:
    return "what the condition names" if _identifies(keyword) else " or ".join(show(w) for w in wanted)


def _identifies(keyword: str) -> bool:
    return keyword in _IDENTIFYING or (tag_for_keyword(keyword) or 0) >> 16 == _PATIENT_GROUP
