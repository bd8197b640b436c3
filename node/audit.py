"""The audit trail: who associated, who was turned away, which studies came and went (PS3.15 §A.5.3).

Append-only JSON lines, one `write` per line so that processes do not mix; a sink of its own, never the log. Study
Instance UIDs are allowed here, nothing else that identifies a patient is.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, TypedDict, Unpack

from node import clock
from node.log import describe, safe

logger = logging.getLogger(__name__)


_BEGINNING = '{"time": '
"""Of every line of ours."""


class AuditEvent(Enum):
    """Event ID and Event Type of PS3.16 CID 400 and CID 401, as far as the node has them."""

    APPLICATION_START = ("110100", "Application Activity", "110120", "Application Start")
    APPLICATION_STOP = ("110100", "Application Activity", "110121", "Application Stop")
    ASSOCIATION_ACCEPTED = ("110114", "User Authentication", "110126", "Node Authentication")
    ASSOCIATION_REJECTED = ("110113", "Security Alert", "110126", "Node Authentication")
    CONFLICT_HELD = ("110113", "Security Alert", "", "")
    CONFLICT_RELEASED = ("110103", "DICOM Instances Accessed", "", "")
    INSTANCES_TRANSFERRED = ("110104", "DICOM Instances Transferred", "", "")


class Outcome(IntEnum):
    """Event Outcome Indicator (PS3.15 §A.5.2.1)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


class Details(TypedDict, total=False):
    """What an audit line may say besides the event."""

    calling_ae: str
    called_ae: str
    address: str
    peer: str
    destination: str
    study_instance_uid: str
    count: int
    reason: str


class Audit:
    """The audit trail in the file `path`."""

    def __init__(self, path: Path, now: clock.Clock = clock.now) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._now = path, now
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(self._file).st_size
        self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        """A crash or a full disk cut the last line off: the next one begins on a line of its own."""

    def write(self, event: AuditEvent, outcome: Outcome, **details: Unpack[Details]) -> None:
        """Append one line; a disk that refuses it is logged and does not stop the node."""
        code, meaning, type_code, type_meaning = event.value
        line: dict[str, object] = {"time": clock.to_iso(self._now()), "event": code, "meaning": meaning}
        if type_code:
            line |= {"type": type_code, "type_meaning": type_meaning}
        line["outcome"] = int(outcome)
        line |= {key: value if isinstance(value, int) else safe(value) for key, value in details.items()}
        said = f"{json.dumps(line, ensure_ascii=True)}\n".encode("ascii")
        try:
            self._append(b"\n" * self._is_torn + said)
        except OSError as error:
            logger.error("The audit trail refused a line.", extra={"action": "audit_failed", "error": describe(error)})

    def _append(self, said: bytes) -> None:
        """One `write`; a disk that takes only the beginning has no room for the rest."""
        if os.write(self._file, said) < len(said):
            self._is_torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._is_torn = False

    def close(self) -> None:
        """Close the file; a line that comes later is refused, never written into a descriptor that was reused."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def read(path: Path, only: AuditEvent | None = None) -> Iterator[dict[str, Any] | None]:
    """Yield the lines of the trail at `path`, None for what is none; nothing where there is no trail.

    With `only`, lines that do not name this event are passed over, unparsed: a trail of years has millions. Never more
    than one line is held. A line that a crash or a full disk cut off was never written.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as trail:
        for line in trail:
            if line.startswith(_BEGINNING) and not line.endswith("}\n"):
                continue
            if line.endswith("\n") and (only is None or f'"{only.value[0]}"' in line):
                yield _parse(line)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found and "time" in found else None
