"""Who may associate."""

from __future__ import annotations

import pytest

from node.accept.association import (
    LOCAL_LIMIT,
    UNKNOWN_CALLING_AE,
    WRONG_APPLICATION_CONTEXT,
    WRONG_CALLED_AE,
    Admission,
    AssociationRequest,
    Rejection,
)
from node.settings import Peer, Settings


def request(
    calling: str = "CT1", called: str = "WETREAD", address: str = "10.0.4.7", **rest: int
) -> AssociationRequest:
    return AssociationRequest(calling, called, address, **rest)


@pytest.fixture
def hospital() -> Admission:
    peers = (
        Peer(name="CT", ae_title="CT1", address="10.0.4.7"),
        Peer(name="PACS", ae_title="PACS", address="10.0.5.0/24"),
        Peer(name="PACS v6", ae_title="PACS", address="fd00::/8"),
    )
    return Admission(Settings(peer=peers), most=10, most_from_address=4)


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
    assert hospital.decide(request(established=9, established_from_address=3)) is None
    assert hospital.decide(request(established=10)) == LOCAL_LIMIT
    assert hospital.decide(request(established_from_address=4)) == LOCAL_LIMIT


def test_without_peers_only_this_machine_may_associate() -> None:
    alone = Admission(Settings())
    assert alone.decide(request("ANYONE", address="127.0.0.1")) is None
    assert alone.decide(request("ANYONE", address="::1")) is None
    assert alone.decide(request("ANYONE", address="10.0.4.7")) == UNKNOWN_CALLING_AE


def test_metric_labels_are_names_of_the_configuration(hospital: Admission) -> None:
    assert hospital.peer("CT1", "10.0.4.7") == "CT"
    assert hospital.peer("CT1", "10.9.9.9") == "other"
    assert set(hospital.names) == {"CT", "PACS", "PACS v6", "local"}
