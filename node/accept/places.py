"""Who is here: the associations of this node, whichever of its processes serves them, and the studies that they bring.

There is one such list, in the process that accepts connections, so that every limit holds for all processes together.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Protocol

from node.accept.association import Admission, AssociationRequest, Rejection


class Desk(Protocol):
    """Where an association asks to be let in and says what it does, by its number."""

    def enter(self, number: int, request: AssociationRequest) -> Rejection | None:
        """Take a place; None when there is one."""

    def leave(self, number: int) -> None:
        """Give the place back."""

    def brings(self, number: int, study_uid: str) -> None:
        """Note that it brings instances of a study."""


class Places:
    """The desk itself; every call is one step, so that two requests cannot both get the last place."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._open: dict[int, AssociationRequest] = {}
        self._studies: dict[int, set[str]] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    def admit(self, admission: Admission) -> None:
        """Decide by another list of peers from now on; who is here stays."""
        with self._lock:
            self._admission = admission

    def number(self) -> int:
        """Return the number of the next association."""
        return next(self._numbers)

    @property
    def taken(self) -> int:
        """Associations that are established now."""
        return len(self._open)

    def enter(self, number: int, request: AssociationRequest) -> Rejection | None:
        """Decide and count in one go."""
        with self._lock:
            others = list(self._open.values())
            peers = Counter(self._admission.peer(other.calling_ae, other.address) for other in others)
            from_address = sum(other.address == request.address for other in others)
            asked = replace(request, established_from_address=from_address, established_by_peer=peers)
            rejection = self._admission.decide(asked)
            if rejection is None:
                self._open[number] = request
            return rejection

    def leave(self, number: int) -> None:
        """Give the place back; what it brought is not forgotten before `ended`."""
        with self._lock:
            self._open.pop(number, None)

    def brings(self, number: int, study_uid: str) -> None:
        """Note that it brings instances of a study."""
        with self._lock:
            self._studies.setdefault(number, set()).add(study_uid)

    def ended(self, number: int, is_released: bool) -> list[str]:
        """Forget what it brought, and return the studies that are whole now that all of that is in the index.

        A release, not an abort, is evidence that a study is whole, unless another association still brings it.
        """
        with self._lock:
            studies = self._studies.pop(number, set())
            others = set[str]().union(*self._studies.values())
            return sorted(studies - others) if is_released else []
