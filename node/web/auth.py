"""Who may see the pages: this machine, or whoever has the token; and the headers every answer carries."""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.errors import Permanent

_OPEN = ("/healthz",)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def read_token(path: Path | None) -> str | None:
    """Return the token in the file, or None without a file; raises `Permanent` when it cannot be used."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Permanent(f"[web] token_file {path} cannot be read: {error.strerror}.") from None
    if len(token) < 16:
        raise Permanent(f"[web] token_file {path} must hold a token of at least 16 characters.")
    return token


class Guard:
    """ASGI middleware: asks for the token where there is one, and adds the security headers.

    The token is a bearer token, or the password of HTTP Basic with any user name, which browsers can ask for.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if self._may(scope):
            await self._app(scope, receive, send_with_headers)
        else:
            ask = {"WWW-Authenticate": 'Basic realm="wetread", charset="UTF-8"'}
            answer = PlainTextResponse("The token of this node is needed.\n", 401, ask)
            await answer(scope, receive, send_with_headers)

    def _may(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in _OPEN:
            return True
        given = _credential(Headers(scope=scope).get("authorization", ""))
        return secrets.compare_digest(given.encode(), self._token.encode())


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
