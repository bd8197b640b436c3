"""May this peer associate? Decided before anything else from AE Titles and address (PS3.8 §9.3.4).

An AE Title alone proves nothing, so a peer is its AE Title *and* its address. Without peers in the settings only
this machine itself may associate.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from node.settings import Settings

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""DICOM Application Context Name (PS3.7 §A.2.1), the only one there is."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ says about its sender, and how many associations are open now."""

    calling_ae: str
    called_ae: str
    address: str
    application_context: str = APPLICATION_CONTEXT
    established: int = 0
    established_from_address: int = 0


@dataclass(frozen=True)
class Rejection:
    """An A-ASSOCIATE-RJ: result, source and reason/diagnostic of PS3.8 Table 9-21, and the reason in words."""

    result: int
    source: int
    diagnostic: int
    reason: str


WRONG_APPLICATION_CONTEXT = Rejection(1, 1, 2, "application context name not supported")
UNKNOWN_CALLING_AE = Rejection(1, 1, 3, "calling AE Title or its address is not in the list of peers")
WRONG_CALLED_AE = Rejection(1, 1, 7, "called AE Title is not this node's")
LOCAL_LIMIT = Rejection(2, 3, 2, "too many associations are open")


class Admission:
    """The list of peers, and how many associations may be open at once, in all and from one address."""

    def __init__(self, settings: Settings, most: int = 100, most_from_address: int = 64) -> None:
        self._ae_title = settings.node.ae_title
        self._peers = tuple((peer, ipaddress.ip_network(peer.address, strict=False)) for peer in settings.peer)
        self._most, self._most_from_address = most, most_from_address

    def decide(self, request: AssociationRequest) -> Rejection | None:
        """Return why `request` is rejected, or None when it is accepted."""
        if request.application_context != APPLICATION_CONTEXT:
            return WRONG_APPLICATION_CONTEXT
        if request.called_ae.strip() != self._ae_title:
            return WRONG_CALLED_AE
        if not self._knows(request.calling_ae.strip(), request.address):
            return UNKNOWN_CALLING_AE
        if request.established >= self._most or request.established_from_address >= self._most_from_address:
            return LOCAL_LIMIT
        return None

    def peer(self, calling_ae: str, address: str) -> str:
        """Return the configured name of a peer, `local` for this machine without peers, or `other`."""
        found = _parse(address)
        for peer, network in self._peers:
            if found is not None and peer.ae_title == calling_ae.strip() and found in network:
                return peer.name
        return "local" if not self._peers and found is not None and found.is_loopback else "other"

    @property
    def names(self) -> tuple[str, ...]:
        """The names `peer` can answer, but `other`; the closed set of metric labels."""
        return (*(peer.name for peer, _ in self._peers), "local")

    def _knows(self, calling_ae: str, address: str) -> bool:
        return self.peer(calling_ae, address) != "other"


def _parse(address: str) -> _Address | None:
    """Return the address, an IPv4-mapped IPv6 one as IPv4; None for what is no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
