"""I8: nothing of a patient is outside the spool: in logs, pages, database, the broker's file, temporary folders.

Looks for the canaries that a test has planted, and for what the headers in the spool say of their patients. A finding
names file and line and whose value it was, never the value.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pydicom

from node.store.invariants.beside import Beside, files_below
from node.store.invariants.finding import Finding
from node.store.spool import Spool

KEYWORDS = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "ReferringPhysicianName",
)
MIN_LENGTH = 6
"""Characters: a shorter value is in any text by chance."""
MAX_LENGTH = 128
"""Bytes: a longer value is none that DICOM allows, and would make the expression too deep."""
MAX_INSTANCES = 2000
"""Headers that are read for values; each study has its patient in every instance."""
_READING = "reading"
"""Where a worker writes Evidence Documents before they are filed; as closed as the spool, and swept."""
_REMEDY = "Keep this file from others and delete it; please report where the value stands, not the value."


_Tree = dict[int, "_Tree"]
_END = -1
"""Where a value may end, among the bytes with which it may go on."""


def check(spool: Spool, beside: Beside) -> Iterator[Finding]:
    """Yield each file, page or line that has a canary or a patient's value."""
    values = {canary.encode(): "a canary" for canary in beside.canaries}
    pattern = _pattern(values, _known(spool))
    if pattern is None:
        return
    for name, lines in _places(spool, beside):
        for number, line in enumerate(lines, start=1):
            if found := pattern.search(line):
                whose = values.get(found.group(), "what a header in the spool says of its patient")
                yield Finding("I8", f"{name}:{number}", f"it has {whose}", _REMEDY)


def _pattern(canaries: Mapping[bytes, str], known: Iterable[bytes]) -> re.Pattern[bytes] | None:
    """Canaries match anywhere; a patient's value only as a word of its own, since a number may be part of a UID."""
    parts = [re.escape(canary) for canary in canaries]
    if whole := _any_of(known):
        parts.append(rb"(?<![0-9A-Za-z.])" + whole + rb"(?![0-9A-Za-z]|\.[0-9])")
    return re.compile(b"|".join(parts)) if parts else None


def _any_of(values: Iterable[bytes]) -> bytes:
    """Return an expression for any of `values`, the longest first, which shares their beginnings; b"" for none.

    One after the other they would all be tried at each place: thousands of patients, in logs of gigabytes.
    """
    tree: _Tree = {}
    for value in values:
        node = tree
        for byte in value:
            node = node.setdefault(byte, {})
        node[_END] = {}
    return _rendered(tree)


def _rendered(node: _Tree) -> bytes:
    said = b""
    while len(node) == 1 and _END not in node:
        ((byte, node),) = node.items()
        said += re.escape(bytes([byte]))
    branches = [re.escape(bytes([byte])) + _rendered(rest) for byte, rest in sorted(node.items()) if byte != _END]
    return said + (b"(?:" + b"|".join(branches) + b")" + b"?" * (_END in node) if branches else b"")


def _known(spool: Spool) -> set[bytes]:
    found: set[bytes] = set()
    for path in islice(spool.instances(), MAX_INSTANCES):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS), force=True)
            found |= {part for keyword in KEYWORDS for part in _parts(str(ds.get(keyword) or ""))}
        except Exception:  # noqa: S112 - a file that does not parse is for I7 to name; pydicom raises many kinds
            continue
    return found


def _parts(value: str) -> set[bytes]:
    """The value itself and, of a name, each of its components."""
    parts = {value.strip(), *(part.strip() for part in re.split(r"[\^=\\]", value))}
    return {part.encode() for part in parts if len(part) >= MIN_LENGTH and len(part.encode()) <= MAX_LENGTH}


def _places(spool: Spool, beside: Beside) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Name and lines of all that may be read by somebody who must not see patients."""
    paths = beside.log_files + [path for trail in beside.trails for path in files_below(trail)]
    if beside.state is not None:
        kept = (spool.root.resolve(), beside.state.resolve() / _READING)
        inside = (path for path in sorted(beside.state.iterdir()) if path.resolve() not in kept)
        paths += [file for path in inside for file in files_below(path)]
        paths += [file for path in sorted(Path(tempfile.gettempdir()).glob("wetread-*")) for file in files_below(path)]
    for path in dict.fromkeys(paths):
        yield str(path), _lines(path)
    for name, page in sorted(beside.pages.items()):
        yield name, page.splitlines()


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:  # gone meanwhile, or not ours
        return
