"""Who may have how many associations, who must prove what, and what becomes of the others, over TLS too."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from node import tls
from node.accept.alerts import LINES
from node.accept.guard import Limits
from node.settings import NodeSettings, Peer, Settings
from tests.certificates import Authority, authority
from tests.protocol.listening import (
    VERIFICATION,
    Node,
    associate,
    associate_rq,
    associated,
    connect,
    ending,
    listening,
    read_pdu,
    store,
)
from tests.unit.encoded import CT, EXPLICIT, image

HERE = "127.0.0.1"
STORAGE = [(CT, [EXPLICIT])]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "hospital")


@pytest.fixture(scope="module")
def scanner(hospital: Authority) -> tuple[Path, Path]:
    return hospital.issue("scanner")


@pytest.fixture
def secured(tmp_path: Path, hospital: Authority) -> Iterator[Node]:
    settings = Settings(node=NodeSettings(port=0), tls=hospital.listener())
    with listening(tmp_path / "secured", settings=settings) as node:
        yield node


def rejection(assoc: Any) -> tuple[int, int, int]:
    assert assoc.is_rejected
    answer = assoc.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


def test_a_known_peer_gets_in_whoever_else_holds_places(tmp_path: Path) -> None:
    peers = (
        Peer(name="CT", ae_title="CT1", address=HERE, max_associations=3, reserved=2),
        Peer(name="MR", ae_title="MR1", address=HERE),
    )
    settings = Settings(node=NodeSettings(port=0, max_associations=6), peer=peers)
    with listening(tmp_path, limits=Limits(half_open_per_address=30), settings=settings) as node:
        strangers = [connect(node.port, b"\x01\x00") for _ in range(100)]
        greedy = [associate(node.port, STORAGE, calling="MR1") for _ in range(6)]
        assert [assoc.is_established for assoc in greedy] == [True] * 4 + [False] * 2
        assert rejection(greedy[-1]) == (2, 3, 2)
        known = [associate(node.port, STORAGE) for _ in range(3)]
        assert [assoc.is_established for assoc in known] == [True, True, False]
        assert store(known[0], image()) == 0x0000
        greedy[0].release()
        time.sleep(0.2)
        known.append(associate(node.port, STORAGE))
        assert known[-1].is_established
        assert rejection(associate(node.port, STORAGE)) == (2, 3, 2), "its own limit"
        assert rejection(associate(node.port, STORAGE, calling="X")) == (1, 1, 3)
        for assoc in (*greedy, *known):
            assoc.abort()
        for stranger in strangers:
            stranger.close()


def test_strangers_are_shown_out_before_the_address_of_a_peer(tmp_path: Path) -> None:
    peers = (Peer(name="CT", ae_title="CT1", address="127.0.0.2"),)
    settings = Settings(node=NodeSettings(port=0), peer=peers)
    with listening(tmp_path, limits=Limits(half_open=10, half_open_per_address=10), settings=settings) as node:
        known = [_from("127.0.0.2", node.port) for _ in range(8)]
        strangers = [_from(f"127.0.0.{n}", node.port) for n in range(3, 33)]
        assert ending(strangers[0], 5) == b""
        for connection in known:
            connection.sendall(associate_rq())
            assert read_pdu(connection)[0] == 0x02
            connection.close()
        for connection in strangers:
            connection.close()


def _from(host: str, port: int) -> socket.socket:
    """A connection that comes from another address of this machine."""
    connection = socket.create_connection((HERE, port), 10, source_address=(host, 0))
    connection.sendall(b"")
    return connection


def identity(user: str, passcode: str = "") -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type, item.positive_response_requested = (2 if passcode else 1), True
    item.primary_field = user.encode()
    if passcode:
        item.secondary_field = passcode.encode()
    return item


def test_a_peer_that_must_say_who_it_is_is_rejected_without(
    tmp_path: Path, hospital: Authority, scanner: tuple[Path, Path]
) -> None:
    (tmp_path / "passcode").write_text("correct horse\n")
    peer = Peer(name="CT", ae_title="CT1", address=HERE, user="ct", passcode_file=tmp_path / "passcode")
    settings = Settings(node=NodeSettings(port=0), peer=(peer,), tls=hospital.listener())
    with listening(tmp_path, settings=settings) as node:
        secure: dict[str, Any] = {"tls_args": (hospital.client(scanner), HERE)}
        for wrong in ([], [identity("ct")], [identity("ct", "wrong horse")], [identity("mr", "correct horse")]):
            assert rejection(associate(node.port, STORAGE, ext_neg=wrong, **secure)) == (1, 1, 1)
        with associated(node.port, STORAGE, ext_neg=[identity("ct", "correct horse")], **secure) as assoc:
            assert store(assoc, image()) == 0x0000
            assert assoc.acceptor.user_identity is not None, "the confirmation that was asked for"
        node.listener.stop(5)
        assert "horse" not in node.audit.read_text()


def test_tls_stores_beside_connections_that_never_shake_hands(
    secured: Node, hospital: Authority, scanner: tuple[Path, Path]
) -> None:
    silent = [connect(secured.port, data) for data in (b"", b"\x16", b"\x16\x03\x01\x02\x00") for _ in range(10)]
    started = time.monotonic()
    with associated(secured.port, STORAGE, tls_args=(hospital.client(scanner), HERE)) as assoc:
        assert store(assoc, image(600, 600)) == 0x0000
        assert [store(assoc, image()) for _ in range(5)] == [0x0000] * 5
    assert time.monotonic() - started < 10
    for connection in silent:
        connection.close()


def shake(port: int, context: ssl.SSLContext) -> str:
    """The cipher that was agreed on, or why the handshake failed; in TLS 1.3 that is seen by reading."""
    with socket.create_connection((HERE, port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=HERE) as connection:
                connection.sendall(associate_rq())
                if not connection.recv(1):
                    return "closed"
                cipher = connection.cipher()
                return cipher[0] if cipher else ""
        except OSError as error:
            return type(error).__name__


def test_old_versions_weak_ciphers_and_wrong_certificates_are_refused_and_audited(
    secured: Node, hospital: Authority, scanner: tuple[Path, Path], tmp_path: Path
) -> None:
    other = authority(tmp_path / "other")
    expired = hospital.issue("expired", days=-1)
    for suites, expected in (("AES128-GCM-SHA256", False), ("ECDHE-RSA-AES256-SHA", False), ("ECDHE+AESGCM", True)):
        context = hospital.client(scanner)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suites)
        assert shake(secured.port, context).startswith("ECDHE") == expected, suites
    old = hospital.client(scanner)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    before = alerts(secured)
    for context in (old, hospital.client(), hospital.client(expired), hospital.client(other.issue("stranger"))):
        said = shake(secured.port, context)
        assert said == "closed" or "Error" in said
    assert ending(connect(secured.port, associate_rq())) is not None  # DICOM as it is, on the port of TLS
    deadline = time.monotonic() + 5
    while alerts(secured) < before + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alerts(secured) == before + 5
    assert shake(secured.port, hospital.client(scanner)).startswith("TLS_")


def alerts(node: Node) -> int:
    lines = [json.loads(line) for line in node.audit.read_text().splitlines()]
    return sum(line.get("reason") == "TLS handshake failed" and line["event"] == "110113" for line in lines)


def test_a_new_certificate_is_used_and_associations_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    mine = authority(tmp_path / "ca")
    settings = Settings(node=NodeSettings(port=0), tls=mine.listener(mutual=False))
    with listening(tmp_path, settings=settings) as node:
        context = mine.client()
        with associated(node.port, [(VERIFICATION, [EXPLICIT])], tls_args=(context, HERE)) as assoc:
            first = serial(node.port, context)
            mine.listener(mutual=False)
            assert serial(node.port, context) != first
            assert assoc.send_c_echo().Status == 0x0000
            second = serial(node.port, context)
            (tmp_path / "ca" / "node.pem").write_text("no certificate")
            assert serial(node.port, context) == second, "the last that worked"


def serial(port: int, context: ssl.SSLContext) -> str:
    plain = socket.create_connection((HERE, port), timeout=10)
    with closing(context.wrap_socket(plain, server_hostname=HERE)) as connection:
        certificate = connection.getpeercert()
        return str(certificate["serialNumber"]) if certificate else ""


def test_a_storm_of_failed_handshakes_is_a_few_lines_of_the_trail_and_a_count(
    tmp_path: Path, hospital: Authority
) -> None:
    storm = 3 * LINES
    settings = Settings(node=NodeSettings(port=0), tls=hospital.listener())
    with listening(tmp_path, settings=settings) as node:
        for _ in range(storm):
            ending(connect(node.port, b"GET / HTTP/1.1\r\n\r\n"))
    lines = [line for line in map(json.loads, node.audit.read_text().splitlines()) if line["event"] == "110113"]
    assert len(lines) <= 2 * LINES, "or more than two minutes have passed"
    assert sum(line["count"] for line in lines) == storm, "none is forgotten"
    assert f"{lines[-1]['count']} times more" in lines[-1]["reason"]
    assert {line["address"] for line in lines} == {HERE}
