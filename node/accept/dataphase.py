"""One association from its request to its end, in one thread: PDUs become messages, messages become answers.

Fragments are read where they belong, a request is answered before the next one is read, and what breaks the rules
ends this association and nothing else (PS3.8 §9.2, PS3.7 §8.1).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence

from pynetdicom.presentation import PresentationContext

from node.accept import command, negotiate
from node.accept.association import AssociationRequest, Rejection
from node.accept.command import Command
from node.accept.guard import (
    A_ABORT,
    A_RELEASE_RQ,
    BY_USER,
    NO_REASON,
    P_DATA_TF,
    UNEXPECTED_PDU,
    Gone,
    Idle,
    Limits,
    ProtocolViolation,
    abort_pdu,
    release_pdu,
)
from node.accept.incoming import Incoming
from node.accept.negotiate import Agreement, Proposal
from node.accept.precheck import StoreStatus
from node.accept.scp import Reply, Services, Session
from node.accept.wire import Wire
from node.log import describe

logger = logging.getLogger(__name__)

_IS_COMMAND, _IS_LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8 §E.2)."""
_PDV_HEADER = 6
_WRONG_VERSION = Rejection(1, 2, 2, "protocol version not supported")
_u32 = struct.Struct(">L").unpack_from

Enter = Callable[["Association", Proposal], Rejection | None]
"""Decides on a request while it counts the associations; None lets this one be counted from now on."""


class Association:
    """One connection whose A-ASSOCIATE-RQ, `first`, has come whole."""

    def __init__(self, wire: Wire, address: str, services: Services, limits: Limits, number: int) -> None:
        self.address, self.number = address, number
        self.is_busy = self._is_aborted = False
        self._wire, self._services, self._limits = wire, services, limits
        self._agreement: Agreement | None = None
        self._session: Session | None = None
        self._most = 0
        self._incoming = Incoming(services.door, limits.in_memory)
        self._command_set = bytearray()
        self._command: Command | None = None
        self._context_id = 0
        self._control, self._length = memoryview(bytearray(2)), memoryview(bytearray(4))

    def run(self, first: bytes, supported: Sequence[PresentationContext], enter: Enter) -> None:
        """Negotiate and serve until either side ends it; never raises."""
        try:
            if self._negotiate(negotiate.decode(first), supported, enter):
                self._serve()
        except ProtocolViolation as violation:
            self._end(abort_pdu(violation.reason), violation)
        except Idle:
            self._end(abort_pdu(NO_REASON, BY_USER), TimeoutError())
        except Gone:
            pass
        except Exception as error:  # a border: a fault of ours ends one association
            self._end(abort_pdu(NO_REASON), error)
        finally:
            self.is_busy = False
            self._incoming.clear()
            self._services.left(self.number)
            self._wire.close()
            if self._session is not None:
                self._services.ended(self._session)

    def abort(self) -> None:
        """End it from another thread."""
        self._is_aborted = True
        self._wire.last_word(abort_pdu(NO_REASON, BY_USER))
        self._wire.shut()

    def _negotiate(self, proposal: Proposal, supported: Sequence[PresentationContext], enter: Enter) -> bool:
        request = AssociationRequest(
            proposal.calling_ae, proposal.called_ae, self.address, proposal.application_context
        )
        rejection = enter(self, proposal) if proposal.is_our_version else _WRONG_VERSION
        if rejection is not None:
            self._services.rejected(request, rejection)
            self._wire.send(negotiate.reject(rejection))
            return False
        self._agreement, self._most = negotiate.accept(proposal, supported, self._limits.pdu), proposal.most
        if not self._wire.is_quiet():
            raise ProtocolViolation("the peer did not wait for the answer to its request", UNEXPECTED_PDU)
        self._session = self._services.established(request, self.number)
        self._wire.send(self._agreement.answer)
        return True

    def _serve(self) -> None:
        while True:
            kind, left, number = self._wire.next_pdu()
            if kind == P_DATA_TF:
                self._p_data(left, number)
                continue
            self._wire.skip(left)
            if kind == A_RELEASE_RQ:
                if self._session is not None:
                    self._session.is_released = True
                self._wire.send(release_pdu())
            elif kind != A_ABORT:
                raise ProtocolViolation(f"a PDU of type {kind:02X}H has no place here", UNEXPECTED_PDU)
            return

    def _p_data(self, left: int, length: int) -> None:
        """Take in the PDVs of one P-DATA-TF: `left` bytes of it, the first PDV with `length` of them."""
        while True:
            if not 2 <= length <= left:
                raise ProtocolViolation("a PDV is empty or longer than its PDU")
            self._pdv(length - 2)
            left -= length
            if not left:
                return
            if left < _PDV_HEADER:
                raise ProtocolViolation("a PDV is cut off")
            self._wire.read(self._length)
            left, length = left - 4, _u32(self._length)[0]

    def _pdv(self, count: int) -> None:
        """Read one fragment of `count` bytes, a command's or a data set's, whichever is due."""
        due = _IS_COMMAND if self._command is None else 0
        if due:
            if len(self._command_set) + count > self._limits.command_set:
                raise ProtocolViolation("the command set is larger than the node takes")
            fragment = bytearray(count)
            self._wire.read(self._control, memoryview(fragment))
            self._command_set += fragment
        else:
            if self._incoming.size + count > self._limits.dataset:
                raise self._too_large()
            self._wire.read(self._control, self._incoming.room_for(count))
            self._incoming.take(count)
        context_id, control = self._control
        self._check(context_id, control, due)
        if control & _IS_LAST:
            self._ended_part()

    def _check(self, context_id: int, control: int, due: int) -> None:
        assert self._agreement is not None  # noqa: S101 - agreed on before anything is served
        if context_id not in self._agreement.contexts or (self._context_id and context_id != self._context_id):
            raise ProtocolViolation("the message has no accepted Presentation Context")
        if control & _IS_COMMAND != due:
            raise ProtocolViolation("a data set and its command set are in the wrong order")
        self._context_id = context_id

    def _ended_part(self) -> None:
        """Go from a whole command set to its data set, and from a whole message to its answer."""
        if self._command is None:
            self._command = command.parse(self._command_set)
            self._command_set.clear()
            if self._command.has_dataset:
                return
        self.is_busy = True
        self._answer(self._command)
        self._incoming.clear()
        self._command, self._context_id = None, 0
        self.is_busy = False

    def _answer(self, request: Command) -> None:
        assert self._agreement is not None  # noqa: S101 - as in _check
        assert self._session is not None  # noqa: S101
        context = self._agreement.contexts[self._context_id]
        self._reply(request, self._services.answer(self._session, context, request, self._incoming))

    def _reply(self, request: Command, answer: Reply | None) -> None:
        if answer is not None:
            response = command.response(request, answer.status, answer.comment)
            self._wire.send(command.pdus(response, self._context_id, self._most))

    def _too_large(self) -> ProtocolViolation:
        """Refuse the instance that is coming, and return what ends its association: its rest would come for nothing."""
        if self._command is not None and self._command.field == command.C_STORE_RQ:
            self._reply(self._command, Reply(StoreStatus.OUT_OF_RESOURCES, "larger than the node takes"))
        return ProtocolViolation("the message is larger than the node takes")

    def _end(self, last_word: bytes, error: Exception) -> None:
        if self._is_aborted:
            return
        reason = str(error) if isinstance(error, ProtocolViolation) else describe(error)
        extra = {"action": "association_aborted", "address": self.address, "reason": reason}
        logger.warning("An association was aborted.", extra=extra)
        self._wire.last_word(last_word)
