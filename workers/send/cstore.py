"""One Evidence Document to one AE by C-STORE (PS3.4 Annex B), and what came back in one word.

The bytes of the file go out as they are; only where the peer takes nothing but Implicit VR Little Endian is the
data set converted, which changes no value. Never raises for what a peer does.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom.dimse_primitives import C_STORE

from node.calling import LOST, refusals
from node.calling import Accepted as Accepted
from node.calling import Answer as Answer
from node.calling import Kind as Kind
from node.calling import Peer as Peer
from node.calling import Timeouts as Timeouts
from node.calling import associate as associate
from node.calling import entity_for as entity_for
from node.calling import release as release

_MESSAGE_ID = 1


def store(path: Path, peer: Peer, timeouts: Timeouts) -> Answer:
    """Send one Part 10 file; returns when there is an answer or a timeout has passed."""
    meta = read_file_meta_info(path)
    sop_class, syntax = UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)
    entity = entity_for(peer, timeouts)
    for proposed in dict.fromkeys((syntax, ImplicitVRLittleEndian)):  # one context each, so that the peer may take both
        entity.add_requested_context(sop_class, proposed)
    opened = associate(entity, peer, timeouts.write)
    if isinstance(opened, Answer):
        return opened
    try:
        return _store(opened.assoc, path, sop_class, syntax)
    finally:
        release(opened.assoc)


def _store(assoc: Any, path: Path, sop_class: UID, syntax: UID) -> Answer:
    accepted = {cx.transfer_syntax[0] for cx in assoc.accepted_contexts if cx.abstract_syntax == sop_class}
    accepted &= {syntax, ImplicitVRLittleEndian}  # what was not proposed cannot be sent
    if not accepted or (syntax not in accepted and syntax.is_compressed):
        return Answer("no_context", note=refusals(assoc, sop_class))
    source = path if syntax in accepted else pydicom.dcmread(path)  # pynetdicom re-encodes a Dataset, never a path
    _take_its_answer_alone(assoc)
    started = time.monotonic()
    try:
        status = assoc.send_c_store(source, msg_id=_MESSAGE_ID)
    except LOST:
        return Answer("aborted")
    if "Status" in status:
        return Answer("status", status=int(status.Status))  # the Error Comment may quote the data set; it stays unread
    return Answer("timeout" if time.monotonic() - started >= assoc.dimse_timeout else "aborted")


def _take_its_answer_alone(assoc: Any) -> None:
    """Let nothing but a C-STORE-RSP to our request be its answer (PS3.7 §9.3.1.2).

    pynetdicom would take any response, also one to nothing that was asked, for the word that the object is stored.
    """
    get_msg = assoc.dimse.get_msg

    def answer(block: bool = False) -> tuple[Any, Any]:
        context, message = get_msg(block)
        is_ours = isinstance(message, C_STORE) and message.MessageIDBeingRespondedTo == _MESSAGE_ID
        return (context, message) if is_ours else (None, None)

    assoc.dimse.get_msg = answer
