"""What is wrong on the wire above the transport: offers, association requests, commands, silence."""

from __future__ import annotations

import gc
import io
import logging
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import log
from node.accept.guard import Limits
from node.settings import LogSettings
from tests.crash.hospital import until
from tests.protocol.listening import (
    APPLICATION_CONTEXT,
    Node,
    associate_rq,
    associated,
    connect,
    ending,
    listening,
    p_data,
    pdu,
    read_pdu,
)
from tests.unit.encoded import CT, EXPLICIT, dataset

DEFLATED, BIG_ENDIAN, JPEG_XL, PRIVATE = (
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.110",
    "1.2.3.4.5",
)
DICOMDIR, HANGING = "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.38.1"
AC, RJ, DATA, ABORT = 0x02, 0x03, 0x04, 0x07


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with listening(tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_thread_dies(node: Node) -> Iterator[None]:
    """After whatever a test did, no thread has ended by an exception, and the node answers a C-ECHO."""
    hook, stream = threading.excepthook, io.StringIO()
    handler = log.configure(LogSettings(), stream)
    yield
    logging.getLogger().removeHandler(handler)
    threading.excepthook = hook
    assert "Thread" not in stream.getvalue()
    assert node.echo() == 0x0000


def test_what_is_not_offered_is_refused_in_the_negotiation(node: Node) -> None:
    syntaxes = [(CT, [syntax]) for syntax in (DEFLATED, BIG_ENDIAN, JPEG_XL, PRIVATE)]
    classes = [(sop_class, [EXPLICIT]) for sop_class in (DICOMDIR, HANGING, PRIVATE)]
    with associated(node.port, [(CT, [EXPLICIT]), *syntaxes, *classes]) as assoc:
        refused = [(str(c.abstract_syntax), c.result) for c in assoc.rejected_contexts]
        assert [str(c.abstract_syntax) for c in assoc.accepted_contexts] == [CT]
    assert sorted(refused) == sorted([(CT, 4)] * 4 + [(sop_class, 3) for sop_class, _ in classes])


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def context(number: int, sop_class: bytes = CT.encode(), syntax: bytes = EXPLICIT.encode()) -> bytes:
    return item(0x20, bytes((number, 0, 0, 0)) + item(0x30, sop_class) + item(0x40, syntax))


def asking(*contexts: bytes, user: bytes | None = None) -> bytes:
    """An A-ASSOCIATE-RQ with these items for contexts (PS3.8 §9.3.2)."""
    if user is None:
        user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
    fixed = struct.pack(">HH", 1, 0) + b"WETREAD".ljust(16) + b"CT1".ljust(16) + bytes(32)
    return pdu(0x01, fixed + item(0x10, APPLICATION_CONTEXT.encode()) + b"".join(contexts) + user)


ODD = {
    "129 contexts": asking(*(context(number % 256) for number in range(1, 259, 2))),
    "no context": asking(),
    "equal ids": asking(context(1), context(1)),
    "even id": asking(context(2)),
    "id 0": asking(context(0)),
    "a class of 65,000 bytes": asking(context(1, sop_class=b"1." * 32_500)),
    "a syntax of 60,000 bytes": asking(context(1, syntax=b"1." * 30_000)),
    "a class that is no text": asking(context(1, sop_class=b"\xff\xfe\0")),
    "no abstract syntax": asking(item(0x20, bytes((1, 0, 0, 0)) + item(0x40, EXPLICIT.encode()))),
    "no transfer syntax": asking(item(0x20, bytes((1, 0, 0, 0)) + item(0x30, CT.encode()))),
    "an item past the end": asking(context(1), user=struct.pack(">BBH", 0x50, 0, 60_000)),
    "an unknown item": asking(item(0x99, b"x"), context(1)),
    "version 0": associate_rq(version=0),
    "another application context": associate_rq(application_context="1.2.3"),
}


@pytest.mark.filterwarnings("ignore")  # pytest would keep their texts
@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_odd_association_requests_are_refused_and_cost_nothing(
    node: Node, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "pydicom")  # likewise
    refused(node, data)  # what is imported or made once is not what a request costs
    threads = threading.active_count()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(4):
            refused(node, data)
        until(lambda: threading.active_count() <= threads, 30, "the associations have ended")
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * 2**20  # what is kept: no more than the text of these requests in this test's own log
    assert peak - before < 16 * 2**20


def refused(node: Node, data: bytes) -> None:
    started = time.monotonic()
    said = ending(connect(node.port, data), 15)
    assert said is not None
    assert said == b"" or said[0] in (RJ, ABORT)
    assert time.monotonic() - started < 15


def command(field: int, *elements: bytes, data_set: int = 0x0101) -> bytes:
    """A command set with its PDV's control header: the last and only fragment (PS3.7 §6.3.1, PS3.8 §E.2)."""
    rest = us(0x0100, field) + us(0x0110, 1) + b"".join(elements) + us(0x0800, data_set)
    return b"\x03" + us(0x0002, 0)[:4] + struct.pack("<L", 26) + CT.ljust(26, "\0").encode() + rest


def us(number: int, value: int) -> bytes:
    return struct.pack("<HHLH", 0, number, 2, value)


def uid(number: int, value: str) -> bytes:
    even = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, number, len(even)) + even


INSTANCE = uid(0x1000, "1.2.3.4")
COMMANDS = {
    "unknown command": p_data(command(0x9999)),
    "garbage": p_data(b"\x03garbage that is no command set"),
    "C-FIND on a Storage context": p_data(command(0x0020, us(0x0700, 0), data_set=1), b"\x02" + dataset()),
    "C-GET on a Storage context": p_data(command(0x0010, us(0x0700, 0), data_set=1), b"\x02" + dataset()),
    "N-DELETE on a Storage context": p_data(command(0x0150)),
    "C-STORE-RSP nobody waits for": p_data(command(0x8001, us(0x0120, 1), us(0x0900, 0))),
    "no SOP Instance UID": p_data(command(0x0001, us(0x0700, 0), data_set=1), b"\x02" + dataset()),
    "a command where data was announced": p_data(command(0x0001, us(0x0700, 0), INSTANCE, data_set=1)) * 2,
    "data before its command": p_data(b"\x02" + dataset()),
    "another context": pdu(DATA, struct.pack(">LB", 27, 77) + command(0x0030)[:26]),
}


@pytest.mark.parametrize("data", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_is_none_is_answered_or_ends_the_association(node: Node, data: bytes) -> None:
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == AC
    connection.sendall(data)
    connection.settimeout(5)
    try:
        said = connection.recv(4096)
    except ConnectionResetError:
        said = b""
    assert said == b"" or said[0] == ABORT or b"\x00\x09\x02\x00\x00\x00\x11\x02" in said, "neither 0211H nor A-ABORT"
    connection.close()


def test_a_flood_of_cancels_changes_nothing(node: Node) -> None:
    cancel = p_data(b"\x03" + us(0x0100, 0x0FFF) + us(0x0120, 7) + us(0x0800, 0x0101))
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == AC
    connection.sendall(cancel * 2000)
    connection.sendall(p_data(command(0x0001, us(0x0700, 0), INSTANCE, data_set=1), b"\x02" + dataset()))
    connection.settimeout(10)
    kind, body = read_pdu(connection)
    assert (kind, b"\x00\x09\x02\x00\x00\x00\x00\x00" in body) == (DATA, True)
    connection.close()


def test_a_request_without_a_data_set_is_c000(node: Node) -> None:
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == AC
    connection.settimeout(5)
    flagged = p_data(command(0x0001, us(0x0700, 0), INSTANCE, data_set=1), b"\x02")
    for empty in (p_data(command(0x0001, us(0x0700, 0), INSTANCE)), flagged):
        connection.sendall(empty)
        kind, body = read_pdu(connection)
        assert (kind, b"\x00\x09\x02\x00\x00\x00\x00\xc0" in body) == (DATA, True)
    connection.close()


def test_an_association_that_falls_silent_is_aborted(tmp_path: Path) -> None:
    with listening(tmp_path, limits=Limits(idle_s=0.5)) as node:
        connection = connect(node.port, associate_rq())
        assert read_pdu(connection)[0] == AC
        started = time.monotonic()
        said = ending(connection, 10)
        assert said is not None
        assert said == b"" or said[0] == ABORT
        assert time.monotonic() - started < 5


def test_an_object_that_is_too_large_is_a700_and_an_abort_before_its_end(tmp_path: Path) -> None:
    with listening(tmp_path, limits=Limits(dataset=10_000)) as node:
        connection = connect(node.port, associate_rq())
        assert read_pdu(connection)[0] == AC
        connection.sendall(p_data(command(0x0001, us(0x0700, 0), INSTANCE, data_set=1)))
        connection.sendall(p_data(b"\x00" + bytes(9_000)) + p_data(b"\x00" + bytes(9_000)))
        connection.settimeout(5)
        kind, body = read_pdu(connection)
        assert (kind, b"\x00\x09\x02\x00\x00\x00\x00\xa7" in body) == (DATA, True)
        assert read_pdu(connection)[0] == ABORT
        connection.close()
        assert not list(node.files())
