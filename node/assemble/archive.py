"""Query/Retrieve as SCU (PS3.4 Annex C): how many instances of a study an archive has, which, and how to get them.

Study Root, baseline behavior: each level is asked with the unique keys above it. An archive that does not answer has
said nothing. Nothing here raises for what an archive does, and no call lasts longer than its timeout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from node import calling
from node.calling import Answer, Peer, Timeouts

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
AT_ONCE = 100
"""SOP Instance UIDs in one C-MOVE or C-GET: an identifier of some 6 KB."""
MAX_STORAGE_CONTEXTS = 120
"""One association has at most 128 Presentation Contexts (PS3.8 §9.3.2.2)."""
FAILED_TOO_LONG = "it took longer than completeness.fetch_timeout"

Take = Callable[[bytes, str, str, str], int]
"""Keeps one instance: data set, SOP Class, SOP Instance, Transfer Syntax; returns the status of the C-STORE."""

STATUSES: Mapping[int, str] = {
    0xA701: "it is out of resources: it cannot count the matches",
    0xA702: "it is out of resources: it cannot send them",
    0xA801: "it does not know our AE Title: enter {ae} with its address and port there",
    0xA900: "it takes the request for wrong",
    0xB000: "some of them could not be sent",
    0xFE00: "it cancelled the request",
    0x0122: "it does not support the SOP class",
    0x0124: "we are not authorized there",
}
"""What the statuses of C-FIND, C-MOVE and C-GET mean (PS3.4 §C.4.1.1.4, §C.4.2.1.5, §C.4.3.1.4)."""


@dataclass(frozen=True)
class Wanted:
    """One instance that the archive has; no SOP Class where it did not say."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str = ""


@dataclass(frozen=True)
class NoAnswer:
    """Why the archive said nothing, for people."""

    reason: str


def count(assoc: Any, study_uid: str) -> int | NoAnswer | None:
    """Return Number of Study Related Instances (0020,1208); None where the archive does not say (it is optional)."""
    found = _find(assoc, "STUDY", {"StudyInstanceUID": study_uid}, ("NumberOfStudyRelatedInstances",))
    if isinstance(found, NoAnswer):
        return found
    number = found[0].get("NumberOfStudyRelatedInstances") if found else None
    try:
        return None if number in (None, "") else int(str(number))
    except ValueError:
        return None


def listing(assoc: Any, study_uid: str) -> list[Wanted] | NoAnswer:
    """Return every instance of the study that the archive has: its series first, then the images of each."""
    series = _find(assoc, "SERIES", {"StudyInstanceUID": study_uid, "SeriesInstanceUID": ""}, ())
    if isinstance(series, NoAnswer):
        return series
    found: list[Wanted] = []
    for uid in dict.fromkeys(str(one.get("SeriesInstanceUID", "")) for one in series):
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": uid, "SOPInstanceUID": ""}
        images = _find(assoc, "IMAGE", keys, ("SOPClassUID",))
        if isinstance(images, NoAnswer):
            return images
        found += [Wanted(uid, str(i.SOPInstanceUID), str(i.get("SOPClassUID") or "")) for i in images]
    return found


def move(peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], timeout_s: float) -> str:
    """Let the archive send `wanted` to our own AE by C-MOVE; return what went wrong, or nothing."""
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove, list(NATIVE))

    def ask(assoc: Any, identifier: Dataset) -> Iterator[tuple[Dataset, Dataset | None]]:
        answers = assoc.send_c_move(identifier, peer.calling_ae, StudyRootQueryRetrieveInformationModelMove)
        yield from answers

    return _retrieve(entity, peer, timeouts, study_uid, wanted, timeout_s, ask)


def get(
    peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], timeout_s: float, take: Take,
    syntaxes: Sequence[str],
) -> str:  # fmt: skip
    """Fetch `wanted` by C-GET on our own association, each instance into `take`; return what went wrong, or nothing."""
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet, list(NATIVE))
    classes = sorted({one.sop_class_uid for one in wanted if one.sop_class_uid})[:MAX_STORAGE_CONTEXTS]
    if not classes:
        return "it does not say of which SOP classes they are; use C-MOVE"
    for sop_class in classes:
        entity.add_requested_context(sop_class, list(syntaxes))

    def keep(event: Any) -> int:
        request = event.request
        uids = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        return take(request.DataSet.getvalue(), *uids, str(event.context.transfer_syntax))

    def ask(assoc: Any, identifier: Dataset) -> Iterator[tuple[Dataset, Dataset | None]]:
        yield from assoc.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet)

    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    more = {"ext_neg": roles, "evt_handlers": [(evt.EVT_C_STORE, keep)]}
    return _retrieve(entity, peer, timeouts, study_uid, wanted, timeout_s, ask, more)


@contextmanager
def asking(peer: Peer, timeouts: Timeouts) -> Iterator[Any]:
    """Yield an association for `count` and `listing`, or the `Answer` that says why there is none."""
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind, list(NATIVE))
    opened = calling.associate(entity, peer, timeouts.write)
    if isinstance(opened, Answer):
        yield opened
        return
    try:
        yield opened.assoc
    finally:
        calling.release(opened.assoc)


def words(answer: Answer) -> str:
    """Return why there was no association, for people."""
    return f"{answer.code}{f' ({answer.note})' if answer.note else ''}"


def _find(assoc: Any, level: str, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Dataset] | NoAnswer:
    """Return the matches of one C-FIND (PS3.4 §C.4.1); pending ones are all the news there is."""
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in [*keys.items(), *((keyword, "") for keyword in wanted)]:
        setattr(query, keyword, value)
    if not assoc.is_established:
        return NoAnswer("the association was lost")
    found: list[Dataset] = []
    for status, match in assoc.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
        code = status.get("Status")
        if code in (0xFF00, 0xFF01):
            found += [match] if match is not None else []
        elif code != 0x0000:
            return NoAnswer(_said(code, ""))
    return found


def _retrieve(
    entity: Any, peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], timeout_s: float,
    ask: Callable[[Any, Dataset], Iterator[tuple[Dataset, Dataset | None]]], more: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    deadline = time.monotonic() + timeout_s
    opened = calling.associate(entity, peer, timeouts.write, **(more or {}))
    if isinstance(opened, Answer):
        return words(opened)
    watchdog = threading.Timer(timeout_s, opened.assoc.abort)  # some archives neither send nor say anything
    watchdog.daemon = True
    watchdog.start()
    try:
        for identifier in _identifiers(study_uid, wanted):
            wrong = _outcome(ask(opened.assoc, identifier), peer.calling_ae, deadline)
            if wrong:
                return wrong
        return ""
    except (RuntimeError, ValueError) as error:  # the association went away, or it has no context for this
        return FAILED_TOO_LONG if time.monotonic() >= deadline else f"the association ended ({type(error).__name__})"
    finally:
        watchdog.cancel()
        calling.release(opened.assoc)


def _outcome(answers: Iterator[tuple[Dataset, Dataset | None]], ae_title: str, deadline: float) -> str:
    for status, _ in answers:
        code = status.get("Status")
        if code in (0xFF00, 0xFF01):
            continue
        if code is None and time.monotonic() >= deadline:
            return FAILED_TOO_LONG
        if code != 0x0000:
            failed = status.get("NumberOfFailedSuboperations")
            return _said(code, ae_title) + (f" ({failed} failed)" if failed else "")
    return ""


def _identifiers(study_uid: str, wanted: Sequence[Wanted]) -> Iterator[Dataset]:
    """Yield IMAGE level identifiers, one series and at most `AT_ONCE` instances each (list of UIDs, §C.2.2.2.2)."""
    by_series: dict[str, list[str]] = {}
    for one in wanted:
        by_series.setdefault(one.series_instance_uid, []).append(one.sop_instance_uid)
    for series_uid, uids in by_series.items():
        for start in range(0, len(uids), AT_ONCE):
            ds = Dataset()
            ds.QueryRetrieveLevel = "IMAGE"
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
            ds.SOPInstanceUID = uids[start : start + AT_ONCE]
            yield ds


def _said(code: int | None, ae_title: str) -> str:
    if code is None:
        return "it did not answer"
    return f"{code:04X}H, {STATUSES.get(code, 'it could not do it').format(ae=ae_title)}"
