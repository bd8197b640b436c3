"""What receiving costs in memory, and fragments in every shape that the protocol allows (PS3.8 §9.3.5, Annex E)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from node.accept.guard import Limits
from tests.protocol.listening import Node, associate_rq, connect, listening, p_data, pdu, read_pdu
from tests.unit.encoded import CT, dataset, element, image


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with listening(tmp_path) as found:
        yield found


def store_rq(instance: str, message_id: int = 1) -> bytes:
    """A C-STORE-RQ's command set (PS3.7 §9.3.1.1)."""
    values = (
        (0x0002, CT.encode().ljust(len(CT) + len(CT) % 2, b"\0")), (0x0100, b"\1\0"),
        (0x0110, struct.pack("<H", message_id)), (0x0700, b"\0\0"), (0x0800, b"\0\0"),
        (0x1000, instance.encode().ljust(len(instance) + len(instance) % 2, b"\0")),
    )  # fmt: skip
    return b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in values)


def status(connection: socket.socket) -> int:
    kind, body = read_pdu(connection)
    assert kind == 0x04
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(body[at + 8 : at + 10], "little")


def parts(data: bytes, size: int, first: int, last: int) -> list[bytes]:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [bytes((last if n == len(pieces) else first,)) + piece for n, piece in enumerate(pieces, 1)]


def test_fragments_of_any_size_in_pdus_of_any_number_make_one_instance(node: Node) -> None:
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == 0x02
    for size, together in product((1, 7, 1000), (1, 3, 10**9)):
        uid = f"1.2.3.{size}.{together}"
        data = dataset(uids={0x00080018: uid}) + image()[len(dataset()) :]
        pdvs = parts(store_rq(uid), size, 1, 3) + parts(data, size, 0, 2)
        for start in range(0, len(pdvs), together):
            connection.sendall(p_data(*pdvs[start : start + together]))
        assert status(connection) == 0x0000
    connection.sendall(pdu(0x05, bytes(4)))
    assert read_pdu(connection) == (0x06, bytes(4))
    connection.close()
    assert len(node.instances()) == 9


def rss(field: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def test_a_large_instance_costs_a_buffer_and_many_cost_no_more_than_one(node: Node) -> None:
    """128 MB in fragments of 1 MB; the memory is looked at while it comes in and when it is answered."""
    connection = connect(node.port, associate_rq())
    assert read_pdu(connection)[0] == 0x02
    block = os.urandom(1 << 20)
    count, most = 128, 0
    for life in range(2):
        head = dataset(uids={0x00080018: f"1.2.3.{life}"}) + element(0x7FE00010, "OW", b"", count << 20)
        connection.sendall(p_data(b"\x03" + store_rq(f"1.2.3.{life}"), b"\x00" + head))
        before = rss()
        for number in range(count):
            connection.sendall(p_data(bytes((2 if number == count - 1 else 0,)) + block))
            most = max(most, rss() - before)
        assert status(connection) == 0x0000
        most = max(most, rss() - before)
    connection.close()
    assert most < 64 << 20, f"{most >> 20} MB more"
    assert len(node.instances()) == 2


def test_an_instance_that_the_disk_has_no_room_for_is_read_to_its_end_and_refused(tmp_path: Path) -> None:
    with listening(tmp_path, refuse_below=2**62, limits=Limits(in_memory=1000)) as node:
        connection = connect(node.port, associate_rq())
        assert read_pdu(connection)[0] == 0x02
        for _ in range(2):
            connection.sendall(p_data(b"\x03" + store_rq("1.2.3.4")))
            for part in parts(image(64, 64), 500, 0, 2):
                connection.sendall(p_data(part))
            assert status(connection) == 0xA700
        connection.close()
        assert not node.files()
