"""Which conditions on attributes can be met at all: known keywords, comparable values, sound tables.

Asked when a configuration or a bundle is loaded, so that a slip of the pen is answered before the first study comes;
`node/route/matching.py` says which attributes meet them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from node.bundles import Condition
from node.errors import Permanent
from node.study import CODED

_TABLE_KEYS = ("min", "max", "not", "absent")
_UNMATCHABLE_VR = frozenset({"SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN", "AT"})


def check(conditions: Mapping[str, Condition]) -> None:
    """Raise `Permanent` for a keyword that DICOM does not know (PS3.6 §6) or a table no attribute can meet."""
    for keyword, condition in conditions.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise Permanent(f'"{keyword}" is not a DICOM keyword{_nearest(keyword)}.')
        if dictionary_VR(tag).split(" ")[0] in _UNMATCHABLE_VR and keyword not in CODED:
            raise Permanent(f'"{keyword}" holds {dictionary_VR(tag)} data, which cannot be compared in a condition.')
        if isinstance(condition, dict):
            _check_table(keyword, condition)


def _check_table(keyword: str, table: dict[str, Any]) -> None:
    unknown = [k for k in table if k not in _TABLE_KEYS]
    if unknown or not table:
        raise Permanent(f'"{keyword}": min, max, not or absent was expected, not {", ".join(unknown) or "nothing"}.')
    bounds: tuple[Literal["min", "max"], ...] = ("min", "max")
    for name in bounds:
        if name in table and (isinstance(table[name], bool) or not isinstance(table[name], int | float)):
            raise Permanent(f'"{keyword}": {name} = {table[name]!r} is not a number.')
    if not isinstance(table.get("absent", True), bool):
        raise Permanent(f'"{keyword}": absent = {table["absent"]!r} is not true or false.')


def _nearest(keyword: str) -> str:
    lowered = {known.lower(): known for known in keyword_dict if known}
    near = difflib.get_close_matches(keyword.lower(), lowered, n=1, cutoff=0.6)
    return f'; did you mean "{lowered[near[0]]}"?' if near else ""
