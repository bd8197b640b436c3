"""The answer to a C-STORE, beside what pynetdicom makes of the same primitive."""

from __future__ import annotations

import pytest
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from node.accept.response import command_set
from tests.unit.encoded import CT


@pytest.mark.parametrize("instance", ["1.2.3.4", "1.2.3.45"])
@pytest.mark.parametrize(("status", "comment"), [(0x0000, ""), (0xA700, "out of resources"), (0xC000, "no UID!")])
def test_it_is_encoded_as_pynetdicom_encodes_it(instance: str, status: int, comment: str) -> None:
    response = C_STORE()
    response.MessageIDBeingRespondedTo, response.Status = 513, status
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = UID(CT), UID(instance)
    if comment:
        response.ErrorComment = comment
    message = C_STORE_RSP()
    message.primitive_to_message(response)
    assert command_set(response) == encode(message.command_set, True, True)
