"""Faults that the simulated PACS commits on request, so that tests can show what the node does about each."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Deed = Literal[
    "reject", "status", "drop", "hang", "stall", "refuse_request", "cut_request", "not_held", "no_report",
    "refuse_query", "hang_query", "refuse_retrieve", "hang_retrieve",
]  # fmt: skip
"""What goes wrong:

reject          the association is rejected with `rejection` (PS3.8 §9.3.4)
status          the C-STORE is answered with `status`; the instance is kept only if that is a success or a warning
drop            the connection is cut instead of an answer; the instance is kept if `keep`
hang            no answer for `seconds`; the instance is kept if `keep`
stall           the peer stops reading for `seconds` once a C-STORE has begun (TCP window closed)
refuse_request  the N-ACTION is answered with `status`
cut_request     the connection is cut instead of an answer to any N-ACTION but the first of its association
not_held        the commitment report lists the instance as failed with reason 0112H (PS3.3 §C.14.1.1)
no_report       the N-ACTION is accepted and no N-EVENT-REPORT follows
refuse_query    the C-FIND is answered with `status`
hang_query      no answer to the C-FIND for `seconds`
refuse_retrieve the C-MOVE or C-GET is answered with `status`
hang_retrieve   no answer to the C-MOVE or C-GET for `seconds`
"""


@dataclass(frozen=True)
class Fault:
    """One fault: for which instances, how often (None: always)."""

    deed: Deed
    status: int = 0x0110
    times: int | None = None
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    rejection: tuple[int, int, int] = (2, 3, 2)
    keep: bool = True
    seconds: float = 30.0

    def concerns(self, sop_class_uid: str | None, sop_instance_uid: str | None) -> bool:
        """Say whether this fault is meant for this instance."""
        return self.sop_class_uid in (None, sop_class_uid) and self.sop_instance_uid in (None, sop_instance_uid)


class Faults:
    """The faults still to be committed; safe to use from several threads."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._left = [[fault, fault.times] for fault in faults]
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Script one more fault."""
        with self._lock:
            self._left.append([fault, fault.times])

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._left.clear()

    def take(self, *deeds: Deed, sop_class_uid: str | None = None, sop_instance_uid: str | None = None) -> Fault | None:
        """Return the first fault of these kinds that concerns this instance, and count it; None when there is none."""
        with self._lock:
            for entry in self._left:
                fault, left = entry
                if not isinstance(fault, Fault) or fault.deed not in deeds or left == 0:
                    continue
                if fault.concerns(sop_class_uid, sop_instance_uid):
                    entry[1] = None if not isinstance(left, int) else left - 1
                    return fault
        return None
