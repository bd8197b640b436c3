"""What each answer of a destination means: the retry table, as data (PS3.4 §B.2.3, PS3.7 Annex C, PS3.8 §9.3.4)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from enum import StrEnum

from workers.send.cstore import Answer, Kind


class Verdict(StrEnum):
    """What is done about an answer."""

    DONE = "DONE"  # the destination has it
    WARN = "WARN"  # it has it, and changed something or found something odd
    VERIFY = "VERIFY"  # it says that it has one of this name: ask whether that is ours
    RETRY = "RETRY"  # the same bytes again, later
    DEAD = "DEAD"  # the same bytes would be refused again: a person must look


@dataclass(frozen=True)
class Ruling:
    """A verdict with what happened and, where something should be done, what to do."""

    verdict: Verdict
    what: str
    remedy: str = ""

    @property
    def reason(self) -> str:
        """Both in one or two sentences."""
        return " ".join(part for part in (self.what, self.remedy) if part)


V = Verdict
_LOOK_THERE = "Look into the destination's own log."
_WARNED = Ruling(V.WARN, "Stored; the destination warns of something.", _LOOK_THERE)
"""Whatever a service says of it, a status of this class is no failure (PS3.7 §C.4.2)."""

STATUSES: tuple[tuple[int, int, Ruling], ...] = (
    (0x0000, 0x0000, Ruling(V.DONE, "Stored.")),
    (0xB000, 0xB000, Ruling(V.WARN, "Stored; the destination coerced data elements.")),
    (0xB001, 0xB005, _WARNED),
    (0xB006, 0xB006, Ruling(V.WARN, "Stored; the destination discarded elements.", _LOOK_THERE)),
    (0xB007, 0xB007, Ruling(V.WARN, "Stored; the destination finds that the data set does not match its SOP Class.")),
    (0xB008, 0xBFFF, _WARNED),
    (0x0001, 0x0001, _WARNED),
    (0x0107, 0x0107, _WARNED),
    (0x0116, 0x0116, _WARNED),
    (0x0111, 0x0111, Ruling(V.VERIFY, "The destination says that it has this SOP Instance already.")),
    (0x0110, 0x0110, Ruling(V.RETRY, "The destination failed to process it.")),
    (0x0213, 0x0213, Ruling(V.RETRY, "The destination is out of resources.")),
    (0xA700, 0xA7FF, Ruling(V.RETRY, "The destination is out of resources.", "It may be full.")),
    (0x0122, 0x0122, Ruling(V.DEAD, "The destination does not support this SOP Class.", "Enable it there.")),
    (0x0124, 0x0124, Ruling(V.DEAD, "The destination does not authorize us to store.", "Grant it there.")),
    (0xA900, 0xA9FF, Ruling(V.DEAD, "The destination finds that the data set does not match its SOP Class.")),
    (0xC000, 0xCFFF, Ruling(V.DEAD, "The destination cannot understand the data set.", _LOOK_THERE)),
)
"""Ranges of C-STORE statuses, both ends included."""

UNKNOWN_STATUS = Ruling(V.DEAD, "The destination answered a status that this service does not have.", _LOOK_THERE)

REJECTIONS: dict[tuple[int, int], Ruling] = {
    (1, 2): Ruling(V.DEAD, "The destination does not support the DICOM application context."),
    (1, 3): Ruling(V.DEAD, "The destination does not know our AE Title.", "Add node.ae_title to its list of peers."),
    (1, 7): Ruling(V.DEAD, "The destination goes by another AE Title.", "Correct destination.ae_title."),
    (3, 1): Ruling(V.RETRY, "The destination is congested."),
    (3, 2): Ruling(V.RETRY, "The destination has as many associations as it takes."),
}
"""Permanent rejections by (source, reason); PS3.8 Table 9-21."""

PERMANENT = Ruling(V.DEAD, "The destination rejected the association for good.", _LOOK_THERE)
PASSING = Ruling(V.RETRY, "The destination rejected the association for now.")

ANSWERS: dict[Kind, Ruling] = {
    "no_context": Ruling(V.DEAD, "The destination does not accept this SOP Class.", "Enable it there."),
    "aborted": Ruling(V.RETRY, "The association ended before an answer; whether it was stored is unknown."),
    "timeout": Ruling(V.RETRY, "No answer in time; whether it was stored is unknown."),
    "tls": Ruling(V.RETRY, "There is no TLS with the destination."),
    "unreachable": Ruling(V.RETRY, "The destination cannot be reached.", "Is it running, and are host and port right?"),
}

BACK_OFF_S = (5.0, 15.0, 60.0, 300.0, 900.0)
"""How long a delivery rests after its first, second, … failed attempt; the last value holds from then on."""
JITTER = 0.2
"""The share by which a rest is made shorter or longer, so that a returning destination is not stormed."""


def judge(answer: Answer) -> Ruling:
    """Return what `answer` means."""
    if answer.kind == "status":
        status = answer.status if answer.status is not None else -1
        return next((ruling for low, high, ruling in STATUSES if low <= status <= high), UNKNOWN_STATUS)
    if answer.kind == "rejected" and answer.rejection is not None:
        result, source, reason = answer.rejection
        return PASSING if result == 2 else REJECTIONS.get((source, reason), PERMANENT)
    ruling = ANSWERS[answer.kind]
    return replace(ruling, remedy=answer.remedy) if answer.remedy else ruling


def rest(attempts: int, key: str) -> float:
    """Return the seconds to rest after `attempts` failures; `key` spreads deliveries, always in the same way."""
    base = BACK_OFF_S[min(max(attempts, 1), len(BACK_OFF_S)) - 1]
    spread = zlib.crc32(f"{key}|{attempts}".encode()) / 2**32
    return base * (1 - JITTER + 2 * JITTER * spread)
