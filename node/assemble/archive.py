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
NODE_STOPS = "the node was told to stop"

Take = Callable[[bytes, str, str, str], int]
"""Keeps one instance: data set, SOP Class, SOP Instance, Transfer Syntax; returns the status of the C-STORE."""

ENTER_US = "enter {ae} with its address and port there, and let it query and retrieve"
STATUSES: Mapping[int, str] = {
    0xA701: "it is out of resources: it cannot count the matches",
    0xA702: "it is out of resources: it cannot send them",
    0xA801: f"it does not know our AE Title: {ENTER_US}",
    0xA900: "it takes the request for wrong",
    0xC000: (
        f"it could not do it: it may not know our AE Title, or not where we are ({ENTER_US}), or we do not know it "
        "(name it among [[peer]])"
    ),
    0xB000: "some of them could not be sent",
    0xFE00: "it cancelled the request",
    0x0122: "it does not support the SOP class",
    0x0124: "we are not authorized there",
}
"""What the statuses of C-FIND, C-MOVE and C-GET mean (PS3.4 §C.4.1.1.4, §C.4.2.1.5, §C.4.3.1.4). C000H stands for
all of C000H to CFFFH, unable to process: some archives say nothing else to an AE that they do not know."""
ENDED = f"it ended the association instead of answering, as some do with an AE that may not ask: {ENTER_US}"
REMEDIES: Mapping[str, str] = {
    "RJ 1,1,3": ENTER_US,
    "RJ 1,1,7": "correct ae_title of its [destination]",
    "NO_CONTEXT": f"it does not offer Query/Retrieve, or not to us: {ENTER_US}",
    "UNREACHABLE": "is it running, and are host and port of its [destination] right?",
}
"""What to do about there being no association, by the code of the answer (PS3.8 Table 9-21)."""


@dataclass(frozen=True)
class Wanted:
    """One instance that the archive has; no SOP Class where it did not say."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str = ""


class Patience:
    """How long a retrieval may last: `timeout_s` from now, and not beyond the moment at which the node stops."""

    def __init__(self, timeout_s: float, stopping: threading.Event | None = None) -> None:
        self._deadline, self._stopping = time.monotonic() + timeout_s, stopping or threading.Event()

    @property
    def ended(self) -> str:
        """Why it is over, in words; empty while it is not."""
        if self._stopping.is_set():
            return NODE_STOPS
        return FAILED_TOO_LONG if time.monotonic() >= self._deadline else ""

    def watch(self, assoc: Any, done: threading.Event) -> None:
        """Abort an association when it is over before `done`: some archives neither send nor say anything."""
        while not done.wait(0.1):
            if self.ended:
                assoc.abort()
                assoc.dimse.msg_queue.put((None, None))  # as for an abort by the peer, or the answer is waited for on
                return


@dataclass(frozen=True)
class NoAnswer:
    """Why the archive said nothing, for people."""

    reason: str


def count(assoc: Any, study_uid: str) -> int | NoAnswer | None:
    """Return Number of Study Related Instances (0020,1208); None where the archive does not say (it is optional).

    An archive that keeps a study for each Patient ID (Orthanc) answers several matches where the ID was corrected.
    """
    found = _find(assoc, "STUDY", {"StudyInstanceUID": study_uid}, ("NumberOfStudyRelatedInstances",))
    if isinstance(found, NoAnswer):
        return found
    try:
        return sum(int(str(one.get("NumberOfStudyRelatedInstances"))) for one in found) if found else None
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


def move(peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], patience: Patience) -> str:
    """Let the archive send `wanted` to our own AE by C-MOVE; return what went wrong, or nothing."""
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove, list(NATIVE))

    def ask(assoc: Any, identifier: Dataset) -> Iterator[tuple[Dataset, Dataset | None]]:
        answers = assoc.send_c_move(identifier, peer.calling_ae, StudyRootQueryRetrieveInformationModelMove)
        yield from answers

    return _retrieve(entity, peer, timeouts, study_uid, wanted, patience, ask)


def get(
    peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], patience: Patience, take: Take,
    syntaxes: Sequence[str],
) -> str:  # fmt: skip
    """Fetch `wanted` by C-GET on our own association, each instance into `take`; return what went wrong, or nothing."""
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet, list(NATIVE))
    classes = sorted({one.sop_class_uid for one in wanted if one.sop_class_uid})[:MAX_STORAGE_CONTEXTS]
    if not classes:
        return "it does not say of which SOP classes they are; use C-MOVE"
    for sop_class, offered in _storage_contexts(classes, syntaxes):
        entity.add_requested_context(sop_class, list(offered))

    def keep(event: Any) -> int:
        request = event.request
        uids = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        return take(request.DataSet.getvalue(), *uids, str(event.context.transfer_syntax))

    def ask(assoc: Any, identifier: Dataset) -> Iterator[tuple[Dataset, Dataset | None]]:
        yield from assoc.send_c_get(identifier, StudyRootQueryRetrieveInformationModelGet)

    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    more = {"ext_neg": roles, "evt_handlers": [(evt.EVT_C_STORE, keep)]}
    return _retrieve(entity, peer, timeouts, study_uid, wanted, patience, ask, more)


@contextmanager
def asking(peer: Peer, timeouts: Timeouts, patience: Patience) -> Iterator[Any]:
    """Yield an association for `count` and `listing`, or the `Answer` that says why there is none.

    It is aborted when `patience` has ended, and what was asked is `NoAnswer`.
    """
    entity = calling.entity_for(peer, timeouts)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind, list(NATIVE))
    opened = calling.associate(entity, peer, timeouts.write)
    if isinstance(opened, Answer):
        yield opened
        return
    with _watched(opened.assoc, patience):
        yield opened.assoc


def words(answer: Answer, peer: Peer) -> str:
    """Return why there was no association, and what to do about it, for people."""
    said = f"{answer.code}{f' ({answer.note})' if answer.note else ''}"
    remedy = answer.remedy or REMEDIES.get(answer.code, "")
    return f"{said}; {remedy.format(ae=peer.calling_ae)}" if remedy else said


def _find(assoc: Any, level: str, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Dataset] | NoAnswer:
    """Return the matches of one C-FIND (PS3.4 §C.4.1); pending ones are all the news there is."""
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in [*keys.items(), *((keyword, "") for keyword in wanted)]:
        setattr(query, keyword, value)
    if not assoc.is_established:
        return NoAnswer("the association was lost")
    found: list[Dataset] = []
    started = time.monotonic()
    try:
        for status, match in assoc.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            code = status.get("Status")
            if code in (0xFF00, 0xFF01):
                found += [match] if match is not None else []
            elif code != 0x0000:
                is_late = time.monotonic() - started >= assoc.dimse_timeout
                return NoAnswer(_said(code, assoc.requestor.ae_title, is_late))
    except RuntimeError:  # it went away just now
        return NoAnswer("the association was lost")
    return found


def _retrieve(
    entity: Any, peer: Peer, timeouts: Timeouts, study_uid: str, wanted: Sequence[Wanted], patience: Patience,
    ask: Callable[[Any, Dataset], Iterator[tuple[Dataset, Dataset | None]]], more: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    opened = calling.associate(entity, peer, timeouts.write, **(more or {}))
    if isinstance(opened, Answer):
        return words(opened, peer)
    with _watched(opened.assoc, patience):
        try:
            for identifier in _identifiers(study_uid, wanted):
                wrong = _outcome(ask(opened.assoc, identifier), peer.calling_ae, patience, timeouts.dimse)
                if wrong:
                    return wrong
            return ""
        except (RuntimeError, ValueError) as error:  # the association went away, or it has no context for this
            return patience.ended or f"the association ended ({type(error).__name__})"


@contextmanager
def _watched(assoc: Any, patience: Patience) -> Iterator[None]:
    """Abort the association as soon as `patience` has ended, or release it after the block."""
    done = threading.Event()
    threading.Thread(target=patience.watch, args=(assoc, done), name="patience", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        calling.release(assoc)


def _outcome(
    answers: Iterator[tuple[Dataset, Dataset | None]], ae_title: str, patience: Patience, silence_s: float
) -> str:
    heard = time.monotonic()
    for status, _ in answers:
        code = status.get("Status")
        if code in (0xFF00, 0xFF01):
            heard = time.monotonic()
            continue
        if code is None and patience.ended:
            return patience.ended
        if code != 0x0000:
            failed = status.get("NumberOfFailedSuboperations")
            is_late = time.monotonic() - heard >= silence_s
            return _said(code, ae_title, is_late) + (f" ({failed} failed)" if failed else "")
    return ""


def _storage_contexts(
    classes: Sequence[str], syntaxes: Sequence[str]
) -> Iterator[tuple[str, Sequence[str]]]:  # fmt: skip
    """Yield the Presentation Contexts to be sent these SOP classes: one for each Transfer Syntax, where there is room.

    An archive accepts one syntax of a context, and what it holds in another it could only send by decoding it.
    """
    each = max(MAX_STORAGE_CONTEXTS // len(classes), 1)
    apart, together = syntaxes[: each - 1], syntaxes[each - 1 :]
    for sop_class in classes:
        yield from ((sop_class, [syntax]) for syntax in apart)
        if together:
            yield sop_class, together


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


def _said(code: int | None, ae_title: str, is_late: bool) -> str:
    if code is None:
        return "it did not answer" if is_late else ENDED.format(ae=ae_title)
    kind = 0xC000 if 0xC000 <= code <= 0xCFFF else code
    return f"{code:04X}H, {STATUSES.get(kind, 'it could not do it').format(ae=ae_title)}"
