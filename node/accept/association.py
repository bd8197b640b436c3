"""May this peer associate? Decided before anything else from AE Titles and address (PS3.8 §9.3.4).

An AE Title alone proves nothing, so a peer is its AE Title *and* its address. Without peers in the settings only
this machine itself may associate.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.errors import Permanent
from node.settings import Peer, Settings

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""DICOM Application Context Name (PS3.7 §A.2.1), the only one there is."""

_SHORTEST_PASSCODE = 8
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Identity:
    """Who a requestor says it is: the user name, and a passcode where there is one (PS3.7 §D.3.3.7)."""

    user: str
    passcode: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ says about its sender, and how many associations are open now."""

    calling_ae: str
    called_ae: str
    address: str
    application_context: str = APPLICATION_CONTEXT
    established_from_address: int = 0
    established_by_peer: Mapping[str, int] = field(default_factory=dict)
    """By the name of `Admission.peer`."""
    identity: Identity | None = None


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
WRONG_IDENTITY = Rejection(1, 1, 1, "user identity is missing or wrong")
LOCAL_LIMIT = Rejection(2, 3, 2, "too many associations are open")


class Admission:
    """The list of peers, who they must say they are, and how many associations each may have open.

    Of all places, each peer has some reserved: whoever else is here, and however often, they are free for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._ae_title, self._limits = settings.node.ae_title, settings.node
        self._peers = tuple((peer, ipaddress.ip_network(peer.address, strict=False)) for peer in settings.peer)
        self._passcodes = {peer.name: read_passcode(peer) for peer in settings.peer}
        self._by_certificate = settings.tls.ca is not None

    def decide(self, request: AssociationRequest) -> Rejection | None:
        """Return why `request` is rejected, or None when it is accepted."""
        if request.application_context != APPLICATION_CONTEXT:
            return WRONG_APPLICATION_CONTEXT
        if request.called_ae.strip() != self._ae_title:
            return WRONG_CALLED_AE
        if not self._knows(request.calling_ae.strip(), request.address):
            return UNKNOWN_CALLING_AE
        peer = self._find(request.calling_ae, request.address)
        if peer is not None and not self._is_it(peer, request.identity):
            return WRONG_IDENTITY
        return None if self._has_place(peer, request) else LOCAL_LIMIT

    def knows_address(self, address: str) -> bool:
        """Say whether some peer has this address, whatever it will say it is."""
        found = _parse(address)
        return found is not None and any(found in network for _, network in self._peers)

    def _is_it(self, peer: Peer, identity: Identity | None) -> bool:
        """Compare in a time that says nothing about the passcode."""
        if peer.user is None:
            return True
        if identity is None or not secrets.compare_digest(identity.user.encode(), peer.user.encode()):
            return False
        passcode = self._passcodes[peer.name]
        return passcode is None or secrets.compare_digest(identity.passcode or b"", passcode)

    def _has_place(self, peer: Peer | None, request: AssociationRequest) -> bool:
        taken = request.established_by_peer
        own = taken.get(peer.name, 0) if peer else 0
        if peer is not None and own >= peer.max_associations:
            return False
        if peer is not None and own < peer.reserved:
            return True
        if request.established_from_address >= self._limits.max_associations_per_address:
            return False
        kept = sum(max(one.reserved - taken.get(one.name, 0), 0) for one, _ in self._peers)
        return sum(taken.values()) + kept < self._limits.max_associations

    def peer(self, calling_ae: str, address: str) -> str:
        """Return the configured name of a peer, or `other`; without peers, `local` for who may associate anyway.

        That is this machine, and whoever has a certificate where certificates are asked for.
        """
        if known := self._find(calling_ae, address):
            return known.name
        found = _parse(address)
        may = found is not None and (found.is_loopback or self._by_certificate)
        return "local" if not self._peers and may else "other"

    @property
    def names(self) -> tuple[str, ...]:
        """The names `peer` can answer, but `other`; the closed set of metric labels."""
        return (*(peer.name for peer, _ in self._peers), "local")

    def _find(self, calling_ae: str, address: str) -> Peer | None:
        found = _parse(address)
        for peer, network in self._peers:
            if found is not None and peer.ae_title == calling_ae.strip() and found in network:
                return peer
        return None

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


def read_passcode(peer: Peer) -> bytes | None:
    """Return the passcode of `peer`, None where it has none; raises `Permanent` when the file cannot be used."""
    if peer.passcode_file is None:
        return None
    try:
        passcode = peer.passcode_file.read_bytes().strip()
    except OSError as error:
        raise Permanent(f'peer "{peer.name}": passcode_file cannot be read: {error.strerror}.') from None
    if len(passcode) < _SHORTEST_PASSCODE:
        raise Permanent(f'peer "{peer.name}": passcode_file must hold at least {_SHORTEST_PASSCODE} characters.')
    return passcode
