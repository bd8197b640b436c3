"""Who may see the pages: this machine, or whoever has the token; and the headers every answer carries."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections import OrderedDict
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.errors import Permanent

_OPEN = ("/healthz",)
MOST_GUESSES, GUESSES_WITHIN_S = 20, 60.0
"""Wrong tokens that one address may try, and in how many seconds, before it is told to wait. The right one is let in
all the same: behind a proxy everybody has one address, and a token is too long to be guessed (`read_token`)."""
_MOST_ADDRESSES = 1000
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every answer carries."""


def read_token(path: Path | None) -> str | None:
    """Return the token in the file, or None without a file; raises `Permanent` when it cannot be used."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Permanent(f"[web] token_file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Permanent(f"[web] token_file {path} must hold text: the token and nothing else.") from None
    if len(token) < 16:
        raise Permanent(f"[web] token_file {path} must hold a token of at least 16 characters.")
    return token


class Guard:
    """ASGI middleware: asks for the token where there is one, and adds the security headers.

    The token is a bearer token, or the password of HTTP Basic with any user name, which browsers can ask for.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token, self._guesses = app, token, Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        address = str((scope.get("client") or ("",))[0])
        if self._is_open(scope) or self._is_right(given := _credential(Headers(scope=scope).get("authorization", ""))):
            await self._app(scope, receive, send_with_headers)
        elif self._guesses.too_many(address):
            later = {"Retry-After": str(int(GUESSES_WITHIN_S))}
            answer = PlainTextResponse("Too many wrong tokens came from this address.\n", 429, later)
            await answer(scope, receive, send_with_headers)
        else:
            self._guesses.note(address if given else "")
            ask = {"WWW-Authenticate": 'Basic realm="wetread", charset="UTF-8"'}
            answer = PlainTextResponse("The token of this node is needed.\n", 401, ask)
            await answer(scope, receive, send_with_headers)

    def _is_open(self, scope: Scope) -> bool:
        return self._token is None or scope["path"] in _OPEN

    def _is_right(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self._token or "").encode())


class Guesses:
    """How many wrong tokens came from each address lately; bounded, the oldest address is forgotten first."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def too_many(self, address: str) -> bool:
        """Say whether `address` has guessed too often in the time that counts."""
        since, count = self._counts.get(address, (0.0, 0))
        return count >= MOST_GUESSES and time.monotonic() - since < GUESSES_WITHIN_S

    def note(self, address: str) -> None:
        """Count one wrong token of `address`; the empty string is nobody."""
        if not address:
            return
        since, count = self._counts.pop(address, (0.0, 0))
        is_over = time.monotonic() - since >= GUESSES_WITHIN_S
        self._counts[address] = (time.monotonic(), 1) if is_over else (since, count + 1)
        if len(self._counts) > _MOST_ADDRESSES:
            self._counts.popitem(last=False)


def _credential(header: str) -> str:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
