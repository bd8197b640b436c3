"""The Presentation Contexts of the listener."""

from __future__ import annotations

from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from node.accept import contexts

BIG_ENDIAN, DEFLATED, DICOMDIR = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
EXPLICIT, IMPLICIT, J2K, J2K_LOSSLESS = (
    contexts.TRANSFER_SYNTAXES[0],
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.90",
)
CT = "1.2.840.10008.5.1.4.1.1.2"


def negotiate(abstract_syntax: str, *syntaxes: str) -> tuple[int, str]:
    offered = PresentationContext()
    offered.context_id, offered.abstract_syntax, offered.transfer_syntax = 1, abstract_syntax, list(syntaxes)
    (result,), _ = negotiate_as_acceptor([offered], contexts.supported())
    assert result.result is not None
    return result.result, str(result.transfer_syntax[0])


def test_our_order_decides_not_the_peers() -> None:
    assert negotiate(CT, IMPLICIT, EXPLICIT) == (0, EXPLICIT)
    assert negotiate(CT, J2K, J2K_LOSSLESS) == (0, J2K_LOSSLESS)
    assert negotiate(CT, J2K_LOSSLESS, IMPLICIT) == (0, IMPLICIT)


def test_lossless_comes_before_lossy() -> None:
    order = contexts.TRANSFER_SYNTAXES
    lossy = [
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.81",
        J2K,
        "1.2.840.10008.1.2.4.203",
    ]
    first_lossy = min(order.index(uid) for uid in lossy)
    assert set(order[first_lossy:]) == set(lossy)


def test_what_must_not_be_negotiated_is_refused_with_result_4() -> None:
    for syntax in (DEFLATED, BIG_ENDIAN, "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.102", "1.2.3.4"):
        assert negotiate(CT, syntax)[0] == 4


def test_what_is_no_storage_is_refused_with_result_3() -> None:
    assert negotiate(DICOMDIR, EXPLICIT)[0] == 3
    assert negotiate("1.2.3.4.5", EXPLICIT)[0] == 3
    assert DICOMDIR not in contexts.storage_sop_classes()


def test_every_kind_of_object_is_welcome() -> None:
    label_map, parametric_map = "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.30"
    structured_report, key_object = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.59"
    for sop_class in (label_map, parametric_map, structured_report, key_object):
        assert negotiate(sop_class, IMPLICIT, EXPLICIT) == (0, EXPLICIT)
    assert len(contexts.storage_sop_classes()) >= 170


def test_storage_commitment_takes_both_roles() -> None:
    offered = PresentationContext()
    offered.context_id, offered.abstract_syntax = 1, contexts.STORAGE_COMMITMENT
    offered.transfer_syntax = [EXPLICIT]
    (result,), roles = negotiate_as_acceptor(
        [offered], contexts.supported(), {contexts.STORAGE_COMMITMENT: (False, True)}
    )
    assert result.result == 0
    assert (roles[0].scu_role, roles[0].scp_role) == (False, True)
