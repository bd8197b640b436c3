"""Strangers and faulty peers at the transport: what they cost, and that a peer still gets in."""

from __future__ import annotations

import io
import logging
import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import log
from node.accept.guard import Limits
from node.settings import LogSettings
from tests.protocol.listening import (
    Node,
    associate,
    associate_rq,
    associated,
    connect,
    ending,
    listening,
    p_data,
    pdu,
    read_pdu,
    request,
    store,
)
from tests.unit.encoded import CT, EXPLICIT, dataset, image

QUICK = Limits(first_pdu_s=1.0, pdu_s=1.0, send_s=2.0, half_open=40, half_open_per_address=30)
ABORT = 0x07


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with listening(tmp_path, limits=QUICK) as found:
        yield found


@pytest.fixture
def errors() -> Iterator[io.StringIO]:
    """What the process wrote while the test ran; an exception that ended a thread would be in it."""
    hook = threading.excepthook
    stream = io.StringIO()
    handler = log.configure(LogSettings(), stream)
    yield stream
    logging.getLogger().removeHandler(handler)
    threading.excepthook = hook


def settle(threads: int, within_s: float = 8.0) -> int:
    deadline = time.monotonic() + within_s
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.02)
    return threading.active_count()


def test_half_open_connections_cost_no_thread_and_keep_no_peer_outside(node: Node) -> None:
    threads = threading.active_count()
    strangers = [connect(node.port, b"\x01\x00\x00") for _ in range(200)]
    assert threading.active_count() <= threads
    started = time.monotonic()
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assert store(assoc, image()) == 0x0000
    assert time.monotonic() - started < 2.0
    for stranger in strangers:
        stranger.close()


def test_a_connection_that_says_nothing_or_drips_is_cut(node: Node) -> None:
    silent, dripping = connect(node.port), connect(node.port)
    started = time.monotonic()
    for byte in associate_rq()[:12]:
        dripping.sendall(bytes((byte,)))
        time.sleep(0.01)
    assert ending(silent) == b""
    assert ending(dripping) == b""
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 2),
        (p_data(b"\x03abc"), 2),
        (pdu(0x05, bytes(4)), 2),
        (pdu(0x01, b"", 0xFFFFFFFF), 6),
        (pdu(0x01, b"", 10**6), 6),
    ],
    ids=["http", "tls", "p-data first", "release first", "4 GiB", "1 MB"],
)
def test_what_is_no_association_request_is_aborted_at_once(node: Node, data: bytes, reason: int) -> None:
    started = time.monotonic()
    said = ending(connect(node.port, data))
    assert said is not None
    assert said in (b"", bytes((ABORT, 0, 0, 0, 0, 4, 0, 0, 2, reason)))  # a reset may overtake the A-ABORT
    assert time.monotonic() - started < 0.9
    assert node.echo() == 0x0000


def test_a_wrong_protocol_version_and_application_context_are_rejected(node: Node) -> None:
    for data, (result, source, diagnostic) in (
        (associate_rq(version=2), (1, 2, 2)),
        (associate_rq(application_context="1.2.3"), (1, 1, 2)),
    ):
        connection = connect(node.port, data)
        kind, body = read_pdu(connection)
        assert (kind, tuple(body[1:4])) == (0x03, (result, source, diagnostic))
        connection.close()


@pytest.mark.parametrize(
    "message",
    [
        pdu(0x04, b"", 0xFFFFFFFF),
        pdu(0x04, b"", 20 * 10**6),
        pdu(0x09, b"\0" * 4),
        p_data(b""),
        p_data(b"\x03garbage that is no command set"),
        p_data(b"\x03" + struct.pack("<HHLH", 0, 0x0100, 2, 0x9999) + struct.pack("<HHLH", 0, 0x0800, 2, 0x0101)),
        pdu(0x04, struct.pack(">LB", 500, 1) + b"\x03"),
        associate_rq(),
        pdu(0x02, bytes(68)),
    ],
    ids=["4 GiB", "20 MB", "unknown type", "empty PDV", "garbage", "unknown command", "PDV > PDU", "second RQ", "AC"],
)
def test_a_violation_ends_the_association_and_nothing_else(node: Node, message: bytes, errors: io.StringIO) -> None:
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == 0x02
    threads = threading.active_count()
    connection.sendall(message)
    said = ending(connection)
    assert said is not None
    assert said == b"" or said[0] == ABORT
    assert settle(threads - 1) <= threads - 1  # the thread of the association is gone
    assert "Thread" not in errors.getvalue()
    assert node.echo() == 0x0000


def test_mangled_association_requests_end_no_thread(node: Node, errors: io.StringIO) -> None:
    noise, sound = random.Random(8), associate_rq()  # noqa: S311 - the same noise every time
    threads = threading.active_count()
    for _ in range(150):
        mangled = bytearray(sound)
        for _ in range(noise.randint(1, 8)):
            mangled[noise.randrange(6, len(mangled))] = noise.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
        connect(node.port, bytes(mangled)).close()
    assert node.echo() == 0x0000
    assert settle(threads) <= threads
    assert "Thread" not in errors.getvalue()


def test_who_does_not_wait_for_the_answer_to_its_request_is_aborted_quietly(node: Node, errors: io.StringIO) -> None:
    """P-DATA or a release before the A-ASSOCIATE-AC is unexpected (PS3.8 Table 9-10, Sta3: AA-8)."""
    threads = threading.active_count()
    for impatient in (pdu(0x05, bytes(4)), p_data(b"\x03abc"), b""):
        for _ in range(10):
            connect(node.port, associate_rq() + impatient).close()
    assert settle(threads) <= threads
    assert "Thread" not in errors.getvalue()
    assert "pynetdicom.fsm" not in errors.getvalue()
    assert node.echo() == 0x0000


def test_a_pdu_that_stops_in_the_middle_is_cut(node: Node) -> None:
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == 0x02
    connection.sendall(p_data(b"\x01" + bytes(100))[:50])
    started = time.monotonic()
    assert ending(connection) is not None
    assert time.monotonic() - started < 5


def test_a_message_larger_than_the_node_takes_is_aborted(tmp_path: Path) -> None:
    with listening(tmp_path, limits=Limits(dataset=100_000)) as node:
        assoc = associate(node.port, [(CT, [EXPLICIT])])
        assert store(assoc, image(200, 200)) == 0x0000
        assert store(assoc, image(300, 300)) in (0xA700, None)  # the A-ABORT may be read first
        assoc.abort()
        assert len(node.instances()) == 1
        assert node.echo() == 0x0000


def test_a_store_without_instance_uid_is_aborted_not_left_hanging(node: Node) -> None:
    assoc = associate(node.port, [(CT, [EXPLICIT])])
    started = time.monotonic()
    assert store(assoc, image(), sop_instance="") is None
    assert time.monotonic() - started < 5
    assert node.echo() == 0x0000


def test_requests_that_do_not_wait_are_all_answered_in_turn(node: Node) -> None:
    """The socket is not read while a request is served, so a pipelining peer fills its own buffers, not our memory."""
    with associated(node.port, [(CT, [EXPLICIT])]) as assoc:
        assoc._reactor_checkpoint.clear()
        while not assoc._is_paused:
            time.sleep(0.001)
        for n in range(40):
            data = dataset(uids={0x00080018: f"1.2.3.{n}"}) + image(256, 256)[len(dataset()) :]
            request(assoc, data, sop_instance=f"1.2.3.{n}")
        answers = []
        while len(answers) < 40:
            _, response = assoc.dimse.get_msg(block=True)
            assert response is not None
            answers.append(response.Status)
        assoc._reactor_checkpoint.set()
    assert answers == [0x0000] * 40
    assert len(node.instances()) == 40


def test_connecting_and_leaving_costs_nothing_in_the_long_run(node: Node) -> None:
    threads = threading.active_count()
    for n in range(300):
        connect(node.port, (b"", b"\x01", associate_rq())[n % 3]).close()
    assert settle(threads) <= threads
    assert node.echo() == 0x0000


def test_thirty_associations_at_once_lose_nothing(node: Node) -> None:
    statuses: list[int | None] = []

    def scanner(number: int) -> None:
        with associated(node.port, [(CT, [EXPLICIT])], calling=f"CT{number}") as assoc:
            for n in range(5):
                uid = f"1.2.3.{number}.{n}"
                statuses.append(store(assoc, dataset(uids={0x00080018: uid}), sop_instance=uid))

    threads = [threading.Thread(target=scanner, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [0x0000] * 150
    assert len(node.instances()) == 150


def test_the_node_stops_although_strangers_hold_on(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        strangers = [connect(node.port, b"\x01\x00\x00") for _ in range(20)]
        peer = associate(node.port, [(CT, [EXPLICIT])])
        half = connect(node.port, associate_rq())
        read_pdu(half)
        half.sendall(p_data(b"\x01" + bytes(100))[:50])
        started = time.monotonic()
        node.listener.stop(5)
        assert time.monotonic() - started < 5
        assert ending(strangers[0]) is not None
        peer.abort()
        half.close()
    for stranger in strangers:
        stranger.close()


def test_an_association_on_which_nothing_happens_costs_next_to_nothing(node: Node) -> None:
    peers = [connect(node.port, associate_rq()) for _ in range(20)]
    assert [read_pdu(peer)[0] for peer in peers] == [0x02] * 20
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.2, "twenty threads look again and again"
    for peer in peers:
        peer.close()
