"""What is known of a STOW-RS request before its body: path, method, headers; judged before a byte is read.

PS3.18 §10.5.1 for the request, §8.5 for status codes. A refusal is a sentence for a person and repeats nothing of
the request.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from node.accept import multipart, stored
from node.accept.body import Message, declared_length
from node.accept.capabilities import WADL
from node.accept.multipart import Malformed
from node.uids import is_valid_uid

RETRY_AFTER_S = 30
STATUSES = (200, 202, 400, 403, 404, 405, 406, 408, 409, 413, 415, 503)
"""Every HTTP status of the door; 401 is given before it."""
_STUDIES = re.compile(r"/studies/?|/studies/(?P<study>[^/]+)/?")
_PLAIN = "text/plain; charset=utf-8"
_METHODS = ("Allow", "OPTIONS, POST")

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """An HTTP response."""

    status: int
    body: bytes = b""
    media_type: str = _PLAIN
    headers: tuple[tuple[str, str], ...] = ()


class Refusal(Exception):
    """A request that is answered as a whole."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.reply = Reply(status, f"{message}\n".encode(), _PLAIN, headers)


def busy(message: str) -> Refusal:
    """Return the refusal that asks the sender to come again."""
    return Refusal(503, message, ("Retry-After", str(RETRY_AFTER_S)))


@dataclass(frozen=True)
class Request:
    """A request that can be worked off: its boundary, the study it is for ("" for any), how to answer, its length."""

    boundary: bytes
    study: str
    media_type: str
    length: int
    address: str


def judge(scope: Scope, headers: Headers, most: int) -> Request | Reply:
    """Return the request, or the answer to OPTIONS; raises `Refusal`. `most` is the longest body in bytes."""
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    found = _STUDIES.fullmatch(path)
    if scope["method"] == "OPTIONS" and (found or path in ("", "/")):
        return Reply(200, WADL, "application/vnd.sun.wadl+xml", (_METHODS,))
    if found is None:
        raise Refusal(404, "There is no such resource here; POST to studies or studies/{study}.")
    if scope["method"] != "POST":
        raise Refusal(405, "Instances can only be stored here, by POST.", _METHODS)
    _refuse_other_origins(headers)
    study = found["study"] or ""
    if study and not is_valid_uid(study):
        raise Refusal(400, "The study in the address is no UID (PS3.5 §9.1).")
    media_type = stored.acceptable(headers.get("accept", ""))
    if media_type is None:
        raise Refusal(406, f"The answer can be {stored.JSON} or {stored.XML}.")
    try:
        boundary, length = _boundary(headers), declared_length(headers)
    except Malformed as error:
        raise Refusal(400, f"The request cannot be read: {error}.") from None
    if length > most:
        raise Refusal(413, f"One request may have {most:,} bytes; send the study in several.")
    return Request(boundary, study, media_type, length, str((scope.get("client") or ("",))[0]))


def headers_of(scope: Scope) -> Headers:
    """Return the headers by lower-case name; of one that is there twice all values, joined by commas."""
    found: Headers = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]},{text}" if key in found else text
    return found


def has_body(headers: Headers) -> bool:
    """Say whether a body follows the headers (RFC 9112 §6)."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def goes_on(headers: Headers) -> bool:
    """Say whether the sender sends its body without waiting to be asked for it (RFC 9110 §10.1.1)."""
    return has_body(headers) and "expect" not in headers


async def answer(send: Send, reply: Reply, close: bool) -> None:
    """Send `reply`; with `close` the connection ends behind it, because a body nobody reads is still on its way."""
    headers = [("Content-Type", reply.media_type), ("Content-Length", str(len(reply.body))), *reply.headers]
    headers += [("Connection", "close")] if close else []
    raw = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def _boundary(headers: Headers) -> bytes:
    """Return the boundary; other forms of the request than whole Part 10 files are answered 415."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "A body with a Content-Encoding is not taken.", ("Accept-Encoding", "identity"))
    if "content-type" not in headers:
        raise Refusal(415, "The request has no Content-Type.")
    kind, parameters = multipart.media_type(headers["content-type"])
    if kind != "multipart/related" or parameters.get("type", "application/dicom").lower() != "application/dicom":
        raise Refusal(415, 'What is taken is multipart/related; type="application/dicom".')
    return multipart.boundary_of(parameters)


def _refuse_other_origins(headers: Headers) -> None:
    """Refuse what a page of another site makes a browser send; it would come with the browser's password for us."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or (origin and urlsplit(origin).netloc != headers.get("host")):
        raise Refusal(403, "Pages of other sites may not store here.")
