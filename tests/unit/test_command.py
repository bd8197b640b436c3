"""Command sets, beside what pynetdicom makes of the same messages."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from pydicom.uid import UID
from pynetdicom import dimse_messages, dimse_primitives
from pynetdicom.dsutils import encode

from node.accept import command
from node.accept.guard import ProtocolViolation
from tests.unit.encoded import CT


def encoded(message: Any, primitive: Any) -> bytes:
    message.primitive_to_message(primitive)
    found = encode(message.command_set, True, True)
    assert found is not None
    return bytes(found)


def store_request(instance: str = "1.2.3.4") -> bytes:
    request = dimse_primitives.C_STORE()
    request.MessageID, request.Priority = 513, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(CT), UID(instance)
    request.DataSet = BytesIO(b"x")
    return encoded(dimse_messages.C_STORE_RQ(), request)


@pytest.mark.parametrize("instance", ["1.2.3.4", "1.2.3.45"])
@pytest.mark.parametrize(("status", "comment"), [(0x0000, ""), (0xA700, "out of resources"), (0xC000, "no UID!")])
def test_a_c_store_rsp_is_encoded_as_pynetdicom_encodes_it(instance: str, status: int, comment: str) -> None:
    response = dimse_primitives.C_STORE()
    response.MessageIDBeingRespondedTo, response.Status = 513, status
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = UID(CT), UID(instance)
    if comment:
        response.ErrorComment = comment
    request = command.parse(store_request(instance))
    assert request == command.Command(0x0001, 513, True, CT, instance, 0)
    assert command.response(request, status, comment) == encoded(dimse_messages.C_STORE_RSP(), response)


def test_an_n_action_is_answered_under_its_own_type_and_class() -> None:
    ask, response = dimse_primitives.N_ACTION(), dimse_primitives.N_ACTION()
    ask.MessageID, ask.ActionTypeID = 7, 1
    ask.RequestedSOPClassUID, ask.RequestedSOPInstanceUID = UID("1.2.840.10008.1.20.1"), UID("1.2.840.10008.1.20.1.1")
    response.MessageIDBeingRespondedTo, response.Status, response.ActionTypeID = 7, 0x0211, 1
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = (
        ask.RequestedSOPClassUID,
        ask.RequestedSOPInstanceUID,
    )
    found = command.parse(encoded(dimse_messages.N_ACTION_RQ(), ask))
    assert command.response(found, 0x0211) == encoded(dimse_messages.N_ACTION_RSP(), response)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        store_request()[:-3],
        struct.pack("<HHL", 0, 0x0100, 0xFFFFFFFF) + b"xx",
        store_request() + struct.pack("<HHLH", 0x0008, 0x0016, 2, 0),
        struct.pack("<HHLH", 0, 0x0100, 2, 0x9999) + struct.pack("<HHLH", 0, 0x0800, 2, 0x0101),
        struct.pack("<HHLH", 0, 0x0100, 2, 0x8001) + struct.pack("<HHLH", 0, 0x0800, 2, 0x0101),
    ],
    ids=["empty", "garbage", "cut", "lying length", "foreign group", "unknown field", "a response"],
)
def test_what_is_no_request_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        command.parse(data)


@pytest.mark.parametrize("most", [0, 7, 16, 4096])
def test_an_answer_comes_in_pdus_that_the_peer_takes(most: int) -> None:
    data = command.response(command.parse(store_request()), 0)
    sent, whole, last = command.pdus(data, 3, most), b"", 0
    while sent:
        kind, _, length = struct.unpack_from(">BBL", sent)
        size, context_id, control = struct.unpack_from(">LBB", sent, 6)
        assert (kind, size, context_id) == (0x04, length - 4, 3)
        assert not most or length <= most
        whole, last, sent = whole + sent[12 : 6 + length], control, sent[6 + length :]
        assert control == (0x01 if sent else 0x03)
    assert (whole, last) == (data, 0x03)
