"""Who may associate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.accept.association import (
    LOCAL_LIMIT,
    UNKNOWN_CALLING_AE,
    WRONG_APPLICATION_CONTEXT,
    WRONG_CALLED_AE,
    WRONG_IDENTITY,
    Admission,
    AssociationRequest,
    Identity,
    Rejection,
)
from node.errors import Permanent
from node.settings import NodeSettings, Peer, Settings, TlsSettings


def request(
    calling: str = "CT1", called: str = "WETREAD", address: str = "10.0.4.7", **rest: Any
) -> AssociationRequest:
    return AssociationRequest(calling, called, address, **rest)


@pytest.fixture
def hospital() -> Admission:
    peers = (
        Peer(name="CT", ae_title="CT1", address="10.0.4.7"),
        Peer(name="PACS", ae_title="PACS", address="10.0.5.0/24"),
        Peer(name="PACS v6", ae_title="PACS", address="fd00::/8"),
    )
    node = NodeSettings(max_associations=10, max_associations_per_address=4)
    return Admission(Settings(node=node, peer=peers))


@pytest.mark.parametrize("address", ["10.0.5.1", "10.0.5.255", "fd00::17", "::ffff:10.0.5.9"])
def test_a_peer_is_ae_title_and_address(hospital: Admission, address: str) -> None:
    assert hospital.decide(request("PACS", address=address)) is None
    assert hospital.decide(request("PACS  ", "WETREAD ", address)) is None


@pytest.mark.parametrize(
    ("calling", "address"),
    [
        ("CT1", "10.0.5.7"),
        ("PACS", "10.0.4.7"),
        ("ct1", "10.0.4.7"),
        ("", "10.0.4.7"),
        ("CT1", "127.0.0.1"),
        ("CT1", "?"),
    ],
)
def test_a_stranger_is_rejected_for_good(hospital: Admission, calling: str, address: str) -> None:
    assert hospital.decide(request(calling, address=address)) == UNKNOWN_CALLING_AE


def test_the_called_ae_title_must_be_ours(hospital: Admission) -> None:
    assert hospital.decide(request(called="ANY-SCP")) == WRONG_CALLED_AE
    assert hospital.decide(request(called="wetread")) == WRONG_CALLED_AE


def test_the_application_context_must_be_dicoms(hospital: Admission) -> None:
    stranger = AssociationRequest("CT1", "WETREAD", "10.0.4.7", application_context="1.2.3")
    assert hospital.decide(stranger) == WRONG_APPLICATION_CONTEXT


def test_rejections_carry_the_standards_codes() -> None:
    def codes(rejection: Rejection) -> tuple[int, int, int]:
        return rejection.result, rejection.source, rejection.diagnostic

    assert codes(WRONG_APPLICATION_CONTEXT) == (1, 1, 2)
    assert codes(UNKNOWN_CALLING_AE) == (1, 1, 3)
    assert codes(WRONG_CALLED_AE) == (1, 1, 7)
    assert codes(LOCAL_LIMIT) == (2, 3, 2)


def test_too_many_associations_are_asked_to_come_again(hospital: Admission) -> None:
    """CT has 2 places of its own, as have both of PACS: of 10 places 6 are reserved."""

    def decide(calling: str = "CT1", address: str = "10.0.4.7", here: int = 0, **taken: int) -> Rejection | None:
        return hospital.decide(
            request(calling, "WETREAD", address, established_from_address=here, established_by_peer=taken)
        )

    assert decide(CT=5, PACS=2) is None
    assert decide(CT=6) == LOCAL_LIMIT, "the 4 that are left are reserved for others"
    assert decide("PACS", "10.0.5.1", CT=6) is None, "and this is one of them"
    assert decide("PACS", "10.0.5.1", here=64, CT=8, PACS=1) is None, "however many are here"
    assert decide(CT=2, here=4) == LOCAL_LIMIT
    assert decide(CT=1, here=4) is None


def test_a_peer_has_its_own_limit() -> None:
    peer = Peer(name="CT", ae_title="CT1", address="10.0.4.7", max_associations=3)
    alone = Admission(Settings(peer=(peer,)))
    assert alone.decide(request(established_by_peer={"CT": 2})) is None
    assert alone.decide(request(established_by_peer={"CT": 3})) == LOCAL_LIMIT


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (None, WRONG_IDENTITY),
        (Identity("ct1"), WRONG_IDENTITY),
        (Identity("ct1", b"wrong"), WRONG_IDENTITY),
        (Identity("other", b"correct horse"), WRONG_IDENTITY),
        (Identity("ct1", b"correct horse"), None),
    ],
)
def test_a_peer_may_have_to_say_who_it_is(
    tmp_path: Path, identity: Identity | None, expected: Rejection | None
) -> None:
    file = tmp_path / "passcode"
    file.write_text("correct horse\n")
    peer = Peer(name="CT", ae_title="CT1", address="10.0.4.7", user="ct1", passcode_file=file)
    assert Admission(Settings(peer=(peer,))).decide(request(identity=identity)) == expected
    assert "horse" not in repr(identity)


def test_a_passcode_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    peer = Peer(name="CT", ae_title="CT1", address="10.0.4.7", user="ct1", passcode_file=tmp_path / "none")
    with pytest.raises(Permanent, match='peer "CT": passcode_file cannot be read'):
        Admission(Settings(peer=(peer,)))
    (tmp_path / "none").write_text("short")
    with pytest.raises(Permanent, match="at least 8 characters"):
        Admission(Settings(peer=(peer,)))


def test_with_certificates_asked_for_whoever_has_one_may_associate() -> None:
    files = TlsSettings(certificate=Path("c"), key=Path("k"), ca=Path("ca"))
    assert Admission(Settings(tls=files)).decide(request("ANYONE", address="10.9.9.9")) is None


def test_without_peers_only_this_machine_may_associate() -> None:
    alone = Admission(Settings())
    assert alone.decide(request("ANYONE", address="127.0.0.1")) is None
    assert alone.decide(request("ANYONE", address="::1")) is None
    assert alone.decide(request("ANYONE", address="10.0.4.7")) == UNKNOWN_CALLING_AE


def test_metric_labels_are_names_of_the_configuration(hospital: Admission) -> None:
    assert hospital.peer("CT1", "10.0.4.7") == "CT"
    assert hospital.peer("CT1", "10.9.9.9") == "other"
    assert set(hospital.names) == {"CT", "PACS", "PACS v6", "local"}
