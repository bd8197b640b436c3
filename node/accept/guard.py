"""The transport's limits, below the DICOM Upper Layer (PS3.8 §9.3): size, time and memory of what a peer may send.

`GuardedSocket`: no PDU is read that is longer than agreed or slower than its deadline. `GuardedDIMSE`: no message
grows without bound. `GuardedStateMachine`: what a peer sends may end its association, never a thread. Before all of
them is the vestibule (`vestibule.py`), where connections wait for their first PDU.
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.transport import AssociationSocket

from node.accept import response
from node.accept.precheck import MAX_OBJECT
from node.accept.queues import Outgoing
from node.log import describe

logger = logging.getLogger(__name__)

A_ASSOCIATE_RQ, P_DATA_TF = 0x01, 0x04
PDU_TYPES = range(0x01, 0x08)
"""PS3.8 §9.3.1."""
_HEADER = struct.Struct(">BBL")
_PDV_HEADER = 6
"""Bytes of a PDV before its fragment: length, context and message control header (PS3.8 §9.3.5.1, §E.2)."""
_LAST_OF_COMMAND = b"\x03"
"""Message control header of the last fragment of a command set (PS3.8 §E.2)."""
UNEXPECTED_PDU, INVALID_PARAMETER = 2, 6
"""Reason/Diag. of an A-ABORT by the service provider (PS3.8 Table 9-26)."""
OUR_ANSWERS = ("Evt7", "Evt8", "Evt9", "Evt14")
"""A-ASSOCIATE response, accepted or rejected; P-DATA request; A-RELEASE response (PS3.8 Table 9-10)."""
WAIT_S = 0.05
"""An association that waits for its peer looks up this often; timers and the end of a thread are noticed so late."""
INVALID_PDU = "Evt19"
"""Unrecognized or invalid PDU: A-ABORT, whatever the state (PS3.8 Table 9-10)."""


@dataclass(frozen=True)
class Limits:
    """What a peer may cost. Sizes in bytes, times in seconds."""

    pdu: int = 2**20
    """Maximum Length we announce (PS3.8 §D.1.1)."""
    pdu_slack: int = 4096
    """Some peers count headers differently."""
    control_pdu: int = 2**18
    """A-ASSOCIATE-RQ and every PDU but P-DATA-TF; 128 contexts with all syntaxes need about 50 KB."""
    command_set: int = 2**16
    dataset: int = MAX_OBJECT
    first_pdu_s: float = 10.0
    """From accept to the end of the first PDU."""
    pdu_s: float = 30.0
    """From the first to the last byte of any other PDU."""
    send_s: float = 30.0
    """For a PDU of ours to leave; a peer that stops reading is cut."""
    waiting_messages: int = 1
    """Complete messages that may wait behind the one being served; beyond it the socket is not read."""
    half_open: int = 256
    half_open_per_address: int = 64


def abort_pdu(reason: int) -> bytes:
    """Return an A-ABORT by the service provider with `reason` (PS3.8 §9.3.8)."""
    return _HEADER.pack(0x07, 0, 4) + bytes((0, 0, 2, reason))


class ProtocolViolation(OSError):
    """The peer sent what no DICOM peer sends; the association was aborted."""


class GuardedSocket(AssociationSocket):
    """An association's socket that reads whole PDUs under `limits`; `first` are the bytes read in the vestibule."""

    def __init__(
        self, assoc: Association, connection: socket.socket, limits: Limits, first: bytes, outgoing: Outgoing
    ) -> None:
        super().__init__(assoc, client_socket=connection)
        self._limits, self._first, self._outgoing = limits, memoryview(first), outgoing
        self._body_length: int | None = None
        self._deadline = 0.0
        self._poller = select.poll()  # select() cannot take descriptors from 1024 on
        self._poller.register(connection, select.POLLIN)
        self._poller.register(outgoing.bell, select.POLLIN)

    @property
    def ready(self) -> bool:
        """Say whether a PDU can be read now: no more is read while complete messages wait to be served.

        Waits a moment for one, or for something to send, which then goes on its way: pynetdicom itself would sleep
        a millisecond between two looks at socket and queue, several times for each instance.
        """
        if self.socket is None or not self._is_connected or self.socket.fileno() < 0:
            return False
        if self._first:
            return True
        if self.assoc.dimse.msg_queue.qsize() > self._limits.waiting_messages:
            return False
        try:
            came = {descriptor for descriptor, _ in self._poller.poll(self._patience_s() * 1000)}
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed
            return False
        if self._outgoing.bell.fileno() not in came:
            return bool(came)
        self._outgoing.silence()
        if self.event_queue.empty():
            self.assoc.dul._process_recv_primitive()
        return False

    def _patience_s(self) -> float:
        """How long to wait; in Sta13 the peer is to close, and we do when it has no more to say (PS3.8 Table 9-10)."""
        is_ending = self.assoc.dul.state_machine.current_state == "Sta13"
        return WAIT_S if self.event_queue.empty() and not is_ending else 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`: first a PDU's 6 bytes of header, then its body; fewer when the peer closed.

        Raises `OSError` when the PDU is longer than agreed (after an A-ABORT) or its deadline passed.
        """
        if self._body_length is not None and nr_bytes == self._body_length:
            self._body_length = None
            return self._read(nr_bytes)
        self._deadline = time.monotonic() + self._limits.pdu_s
        header = self._read(nr_bytes)
        if len(header) == _HEADER.size:
            pdu_type, _, length = _HEADER.unpack(header)
            self._check(pdu_type, length)
            self._body_length = length if pdu_type in PDU_TYPES else None
        return header

    def send(self, bytestream: bytes) -> None:
        """Send all of `bytestream` before the deadline, or give the connection up."""
        try:
            if self.socket is not None:
                self.socket.settimeout(self._limits.send_s)
                self.socket.sendall(bytestream)
        except OSError:
            self.event_queue.put("Evt17")

    def _check(self, pdu_type: int, length: int) -> None:
        limits = self._limits
        if length > (limits.pdu + limits.pdu_slack if pdu_type == P_DATA_TF else limits.control_pdu):
            logger.warning("A PDU is longer than agreed; the association was aborted.", extra=_extra(self.assoc))
            self.send(abort_pdu(INVALID_PARAMETER))
            raise ProtocolViolation(f"PDU of type {pdu_type:02X}H with {length} bytes")

    def _read(self, nr_bytes: int) -> bytearray:
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        got = min(nr_bytes, len(self._first))
        view[:got] = self._first[:got]
        self._first = self._first[got:]
        while got < nr_bytes:
            if self.socket is None:
                break
            self.socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            count = self.socket.recv_into(view[got:])
            if not count:
                break
            got += count
        view.release()
        del buffer[got:]
        return buffer

    def _shutdown_socket(self) -> None:
        """Close even a socket that the peer reset; otherwise the descriptor waits for the garbage collector."""
        connection = self.socket
        if connection is not None:
            close(connection)
        self._outgoing.close()


class GuardedDIMSE(DIMSEServiceProvider):
    """The DIMSE service provider with bounds on one message, and without exceptions that end its thread."""

    def __init__(self, assoc: Association, limits: Limits) -> None:
        super().__init__(assoc)
        self._limits = limits

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message and its context, or (None, None); waits a moment where pynetdicom would only look."""
        try:
            return self.msg_queue.get(timeout=self.dimse_timeout if block else WAIT_S)
        except queue.Empty:
            return None, None

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message; the answer to a C-STORE, due for every instance, without pynetdicom's data sets."""
        if isinstance(primitive, C_STORE) and primitive.MessageIDBeingRespondedTo is not None:
            command = response.command_set(primitive)
            if not 0 < self.maximum_pdu_size < len(command) + _PDV_HEADER:
                whole = P_DATA()
                whole.presentation_data_value_list.append((context_id, _LAST_OF_COMMAND + command))
                self.dul.send_pdu(whole)
                return
        super().send_msg(primitive, context_id)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in one P-DATA; a message that breaks a bound or cannot be decoded aborts the association."""
        try:
            self._check_size(primitive)
            super().receive_primitive(primitive)
        except Exception as error:  # a border: garbage of a peer must not end the thread that serves it
            extra = _extra(self.assoc) | {"error": describe(error)}
            logger.warning("A message cannot be understood; the association is aborted.", extra=extra)
            self.message = None
            self.dul.event_queue.put(INVALID_PDU)

    def _check_size(self, primitive: P_DATA) -> None:
        """Raise when the message would grow over the limits; the first byte of a PDV says which part (PS3.8 §E.2)."""
        message: Any = self.message
        dataset, command = (message.data_set.tell(), message.encoded_command_set.tell()) if message else (0, 0)
        for _, pdv in primitive.presentation_data_value_list:
            command += len(pdv) - 1 if pdv[0] & 1 else 0
            dataset += 0 if pdv[0] & 1 else len(pdv) - 1
        if dataset > self._limits.dataset or command > self._limits.command_set:
            raise ProtocolViolation("the message is larger than the node takes")


class GuardedStateMachine(StateMachine):
    """The Upper Layer's state machine; an action that fails on what a peer sent ends the association, not a thread."""

    _requested = False

    def do_action(self, event: str) -> None:
        """Do the action of `event` (PS3.8 Table 9-10); on a failure say A-ABORT, close, and let both threads end."""
        if self.current_state == "Sta1" and event != "Evt5":  # the peer left before our answer
            self.dul.kill_dul()
            return
        if self.current_state == "Sta13" and event in OUR_ANSWERS:  # it was aborted before our answer
            self.dul.to_provider_queue.get_nowait()
            return
        try:
            super().do_action(event)
        except Exception as error:  # a border: pynetdicom would let the exception end its thread
            self._give_up(error)
        self._requested = self._requested or self.current_state == "Sta3"
        if not self._requested and self.current_state in ("Sta1", "Sta13"):
            # The association waits for its request, which will not come; None is what its timeout would give it.
            to_user: Any = self.dul.to_user_queue
            to_user.put(None)

    def _give_up(self, error: Exception) -> None:
        dul = self.dul
        extra = _extra(dul.assoc) | {"error": describe(error)}
        logger.warning("A PDU cannot be understood; the association is aborted.", extra=extra)
        dul.kill_dul()
        if dul.socket is not None:
            dul.socket.send(abort_pdu(INVALID_PARAMETER))
            dul.socket._shutdown_socket()
        self.current_state = "Sta1"
        if dul.assoc.is_established:
            dul.to_user_queue.put(A_P_ABORT())


def close(connection: socket.socket) -> None:
    """Close `connection`, whatever state it is in."""
    with suppress(OSError):  # the peer was quicker
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _extra(assoc: Association) -> dict[str, object]:
    address = assoc.requestor.address_info
    return {"action": "association_aborted", "address": address.address if address else ""}
