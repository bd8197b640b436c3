"""The Presentation Contexts that the simulated PACS accepts: made once, and not copied for each association."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_SERVICES = (
    Verification,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelGet,
)


class Shared(list[PresentationContext]):
    """Contexts that all associations share: pynetdicom copies them for each, 0.1 s of CPU, and never changes one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        """Return itself."""
        return self


def contexts(syntaxes: Iterable[str], refuse: Collection[str]) -> Shared:
    """Return the contexts of every storage class with `syntaxes`, and of the other services, but those of `refuse`."""
    return Shared(context for context in _all(tuple(syntaxes)) if context.abstract_syntax not in refuse)


@functools.cache
def _all(syntaxes: tuple[str, ...]) -> tuple[PresentationContext, ...]:
    """Return every context; to make them takes 0.2 s."""
    entity = AE()
    for context in AllStoragePresentationContexts:
        if context.abstract_syntax:
            entity.add_supported_context(context.abstract_syntax, list(syntaxes), scu_role=True, scp_role=True)
    for sop_class in _SERVICES:
        entity.add_supported_context(sop_class, list(NATIVE))
    return tuple(entity.supported_contexts)
