"""I12: every error is one line; a traceback in a log is a fault that nobody had thought of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from node.store.invariants.finding import Finding

_SIGNS = re.compile(rb"Traceback \(most recent call last\)|Fatal Python error|Exception ignored in|Segmentation fault")
_REMEDY = "This is a fault of the node: please report the line and those around it, without names of patients."


def check(logs: Sequence[Path]) -> Iterator[Finding]:
    """Yield the lines of `logs` at which more than one line was written for an error."""
    for path in logs:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if found := _SIGNS.search(line):
                    yield Finding("I12", f"{path}:{number}", f'it says "{found.group().decode()}"', _REMEDY)
