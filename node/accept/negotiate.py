"""The negotiation of an association: what a request asks for, and the bytes of our answer (PS3.8 §9.3.2 to §9.3.4).

pynetdicom decodes the request, agrees on the Presentation Contexts and roles, and encodes the answer; no thread, queue
or state machine of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from node import uids
from node.accept.association import APPLICATION_CONTEXT, Identity, Rejection
from node.accept.guard import HEADER, ProtocolViolation

_A_ASSOCIATE_RJ = 0x03
_PROTOCOL_VERSION = 0x0001
_LONGEST_UID = 64
_WITH_PASSCODE = 2
"""User Identity Type of a user name with a passcode (PS3.7 Table D.3-14)."""


@dataclass(frozen=True)
class Context:
    """An accepted Presentation Context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Proposal:
    """An A-ASSOCIATE-RQ; `most` is the longest P-DATA-TF that its sender takes, 0 for any (PS3.8 §D.1.1)."""

    calling_ae: str
    called_ae: str
    application_context: str
    is_our_version: bool
    most: int
    primitive: A_ASSOCIATE
    identity: Identity | None = None


@dataclass(frozen=True)
class Agreement:
    """An accepted association: the A-ASSOCIATE-AC, and the contexts by their ID."""

    answer: bytes
    contexts: Mapping[int, Context]


def decode(pdu: bytes) -> Proposal:
    """Return what an A-ASSOCIATE-RQ asks for; raises `ProtocolViolation` when it is none."""
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(pdu)
        primitive = request.to_primitive()
        _check(primitive.presentation_context_definition_list)
        return Proposal(
            calling_ae=str(primitive.calling_ae_title or "").strip(),
            called_ae=str(primitive.called_ae_title or "").strip(),
            application_context=str(primitive.application_context_name or ""),
            is_our_version=bool(request.protocol_version & _PROTOCOL_VERSION),
            most=primitive.maximum_length_received or 0,
            primitive=primitive,
            identity=_identity(primitive),
        )
    except Exception as error:  # a border: whatever pynetdicom stumbles over, the peer sent it
        raise ProtocolViolation("the association request cannot be understood") from error


def accept(proposal: Proposal, supported: Sequence[PresentationContext], max_pdu: int) -> Agreement:
    """Agree on the contexts of `proposal` and announce `max_pdu`; raises `ProtocolViolation` where that fails."""
    try:
        asked = proposal.primitive.user_information
        roles: Any = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in asked
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        results, replies = negotiate_as_acceptor(
            proposal.primitive.presentation_context_definition_list, list(supported), roles
        )
        answer = _answer(proposal, [*_who_we_are(max_pdu), *replies, *_confirmation(asked)])
        answer.presentation_context_definition_results_list = results
        return Agreement(
            A_ASSOCIATE_AC(answer).encode(),
            {
                int(context.context_id or 0): Context(str(context.abstract_syntax), str(context.transfer_syntax[0]))
                for context in results
                if context.result == 0x00
            },
        )
    except Exception as error:  # a border, as above
        raise ProtocolViolation("the association request cannot be answered") from error


def _check(contexts: Sequence[PresentationContext]) -> None:
    """Raise `ValueError` unless there are contexts, odd and unique IDs, and UIDs to agree on (PS3.8 §9.3.2.2).

    An empty Abstract Syntax is one that nobody supports: that context alone is refused.
    """
    numbers = [context.context_id or 0 for context in contexts]
    if not contexts or len(set(numbers)) < len(numbers) or any(number % 2 == 0 for number in numbers):
        raise ValueError("Presentation Contexts without odd and unique IDs")
    for context in contexts:
        syntaxes, abstract = context.transfer_syntax, context.abstract_syntax
        is_named = abstract is not None and len(abstract) <= _LONGEST_UID
        if not is_named or not syntaxes or not all(0 < len(syntax) <= _LONGEST_UID for syntax in syntaxes):
            raise ValueError("a Presentation Context without an Abstract or a Transfer Syntax")


def _identity(primitive: A_ASSOCIATE) -> Identity | None:
    """Return the user identity of types 1 and 2, user name alone or with a passcode; others are not understood."""
    for item in primitive.user_information:
        if isinstance(item, UserIdentityNegotiation) and item.user_identity_type in (1, 2):
            passcode = bytes(item.secondary_field or b"") if item.user_identity_type == _WITH_PASSCODE else None
            return Identity(bytes(item.primary_field or b"").decode("utf-8", "replace"), passcode)
    return None


def _confirmation(asked: Sequence[Any]) -> list[UserIdentityNegotiation]:
    """Return the User Identity of the answer, which is due where it was asked for (PS3.7 §D.3.3.7.2)."""
    for item in asked:
        if isinstance(item, UserIdentityNegotiation) and item.positive_response_requested:
            confirmed = UserIdentityNegotiation()
            confirmed.server_response = b""
            return [confirmed]
    return []


def reject(rejection: Rejection) -> bytes:
    """Return an A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""
    return HEADER.pack(_A_ASSOCIATE_RJ, 0, 4) + bytes((0, rejection.result, rejection.source, rejection.diagnostic))


def _answer(proposal: Proposal, user_information: list[Any]) -> A_ASSOCIATE:
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title = proposal.primitive.calling_ae_title
    answer.called_ae_title = proposal.primitive.called_ae_title
    answer.result, answer.result_source = 0x00, 0x01
    answer.user_information = user_information
    return answer


def _who_we_are(max_pdu: int) -> list[Any]:
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = max_pdu
    implementation.implementation_class_uid = UID(uids.IMPLEMENTATION_CLASS_UID)
    name = ImplementationVersionNameNotification()
    name.implementation_version_name = uids.IMPLEMENTATION_VERSION_NAME
    return [length, implementation, name]
