"""TLS as hospitals ask for it: 1.2 or newer, ephemeral keys, authenticated ciphers (BCP 195, RFC 9325; PS3.15 §B).

Contexts for our listener and for the destinations; nothing here waits for a peer.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from node import clock
from node.errors import Permanent
from node.log import describe
from node.settings import TlsSettings

logger = logging.getLogger(__name__)

RENEW_BEFORE_S = 14 * 86400.0
"""How long before its end a certificate is told of."""
PORT = 2762
"""Registered for DICOM over TLS (PS3.8 §9.1.1)."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; every suite of TLS 1.3 is of this kind."""
_LOOK_S = 2.0
"""How often the files are looked at."""


class Certificates:
    """The certificate of our listener, read again when its files change: a connection gets the latest that works.

    One that peers will not take, or soon not, is told of when it is read: nothing else shows it before they come.
    """

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._seen, self._looked_at = self._stamps(), time.monotonic()
        self._context = server_context(tls)
        self._warn()

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return `connection` as one whose handshake is still to be made."""
        self._look()
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._context = server_context(self._tls)
            logger.info("The certificate was read again.", extra={"action": "tls_reloaded"})
            self._warn()
        except Permanent as error:  # the files are being replaced, or are wrong; the old certificate stays
            logger.error("A new certificate cannot be used.", extra={"action": "tls_failed", "error": describe(error)})

    def _warn(self) -> None:
        try:
            if (until := valid_until(self._tls)) - clock.now() < RENEW_BEFORE_S:
                what = "The certificate of [tls] is valid until %s; have it renewed."
                logger.warning(what, clock.to_iso(until), extra={"action": "tls_certificate"})
        except Permanent as error:
            logger.error("%s", error, extra={"action": "tls_certificate"})

    def _stamps(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_stamp(path) for path in (self._tls.certificate, self._tls.key, self._tls.ca))


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context of our listener; raises `Permanent` when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load(context, tls)
    if tls.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def valid_until(tls: TlsSettings) -> float:
    """Return until when peers may take our certificate, in seconds since the epoch.

    It is looked at as a peer does, in a handshake in memory. Raises `Permanent` when they refuse it now.
    """
    server = server_context(TlsSettings(certificate=tls.certificate, key=tls.key))
    peer = ssl.create_default_context(cafile=str(tls.certificate))
    peer.check_hostname, peer.verify_flags = False, peer.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, asked = peer.wrap_bio(there, back), server.wrap_bio(back, there, server_side=True)
    try:
        for side in (asking, asked) * 2:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        what = f"Peers refuse the certificate {tls.certificate} of [tls]: {error.verify_message}. Have it renewed."
        raise Permanent(what) from None
    return float(ssl.cert_time_to_seconds(str((asking.getpeercert() or {})["notAfter"])))


@dataclass(frozen=True)
class Failure:
    """Why there is no TLS with a destination, and what to do about it; for people."""

    what: str
    remedy: str


class ClientContext(ssl.SSLContext):
    """The context of one call; `failure` says why it came to nothing, where TLS was the reason."""

    failure: Failure | None = None


class _Socket(ssl.SSLSocket):
    """A socket that tells its context why TLS failed; pynetdicom would call that *no connection*."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as error:
            self._tell(error)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """With TLS 1.3 a peer refuses our certificate only after our handshake is done (RFC 8446 §4.4.2.4)."""
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            self._tell(error)
            raise

    def _tell(self, error: OSError) -> None:
        if isinstance(self.context, ClientContext) and self.context.failure is None:
            self.context.failure = _failure(error)


_UNTRUSTED = Failure("its certificate is not of a CA that we trust", "Name the file of its CA in [tls] ca.")
_WRONG_NAME = Failure(
    "its certificate is for another name or address",
    "Correct host of the [destination], or have a certificate with that name issued there.",
)
_OTHER_TLS = Failure(
    "it does not speak TLS there, or none that is allowed (1.2 or newer, ECDHE with AES-GCM or ChaCha20)",
    "Correct port or tls of the [destination], or enable TLS there.",
)
_OURS_REFUSED = Failure(
    "it refuses our certificate, or wants one", "Name [tls] certificate and key of a CA that it trusts."
)
_VERIFICATION: Mapping[int, Failure] = {
    9: Failure("its certificate is not valid yet", "Set the clocks, or wait."),
    10: Failure("its certificate has expired", "Have it renewed there."),
    18: _UNTRUSTED, 19: _UNTRUSTED, 20: _UNTRUSTED, 21: _UNTRUSTED,
    23: Failure("its certificate was revoked", "Have a new one issued there."),
    62: _WRONG_NAME, 64: _WRONG_NAME,
}  # fmt: skip
"""By OpenSSL's X509_V_ERR code."""
_OF_OURS = ("UNKNOWN_CA", "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN",
            "CERTIFICATE_REVOKED", "UNSUPPORTED_CERTIFICATE", "ACCESS_DENIED")  # fmt: skip
"""Alerts of a peer about our certificate (RFC 8446 §6.2), as OpenSSL spells them at the end of its reason."""


def _failure(error: OSError) -> Failure:
    if isinstance(error, ssl.SSLCertVerificationError):
        other = Failure("its certificate cannot be trusted", "Have a new one issued there.")
        return _VERIFICATION.get(error.verify_code, other)
    if isinstance(error, ssl.SSLError) and str(error.reason).endswith(_OF_OURS):
        return _OURS_REFUSED
    return _OTHER_TLS


def client_context(tls: TlsSettings) -> ClientContext:
    """Return the context for one call to a destination: its name and certificate are checked, and it may ask for ours.

    Raises `Permanent` when a file cannot be used.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _Socket
    _harden(context)
    _load(context, tls)
    if tls.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE


def _load(context: ssl.SSLContext, tls: TlsSettings) -> None:
    try:
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
    except OSError as error:  # an SSLError too
        files = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.ca) if path is not None)
        why = error.strerror or type(error).__name__
        raise Permanent(
            f"[tls] cannot be used ({why}): {files}. PEM files were expected, the key without password."
        ) from None


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino) if found else None
