"""A node with its second door open on a real HTTP port of loopback, and requests written byte by byte."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from node.accept.stow import Limits, Stow
from node.audit import Audit
from node.settings import NodeSettings, Settings, WebSettings
from node.web.health import Health
from node.web.server import serve
from tests.protocol.listening import Node, listening
from tests.unit.encoded import CT, EXPLICIT, dataset, element, text

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For `verify=` where there is no TLS: without it each request of httpx loads all authorities there are, 50 ms."""
JSON = "application/dicom+json"
BOUNDARY = "wet-read"
FORM = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@dataclass(frozen=True)
class HttpNode:
    """A node that listens for both, with the address of its DICOMweb service."""

    node: Node
    port: int
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def post(self, body: bytes | Iterator[bytes], path: str = "/studies", **headers: str) -> httpx.Response:
        """Send one store request."""
        named = {"Content-Type": FORM} | self.headers | {k.replace("_", "-"): v for k, v in headers.items()}
        return httpx.post(f"{self.url}{path}", content=body, headers=named, timeout=30, verify=PLAIN)

    def store(self, *files: bytes, path: str = "/studies", **headers: str) -> tuple[int, list[int]]:
        """Send files; return the HTTP status and the Failure Reasons, named ones first."""
        answer = self.post(multipart(*files), path, **headers)
        return answer.status_code, reasons(answer)


def reasons(answer: httpx.Response) -> list[int]:
    """The Failure Reasons of an answer."""
    if answer.headers["content-type"] != JSON:
        return []
    failed = [item for tag in ("00081198", "0008119A") for item in answer.json().get(tag, {}).get("Value", [])]
    return [item["00081197"]["Value"][0] for item in failed]


@contextmanager
def serving(folder: Path, limits: Limits | None = None, token: str = "", refuse_below: int = 0) -> Iterator[HttpNode]:
    """A node with both doors open while the block runs."""
    web = WebSettings(port=0)
    if token:
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(token)
        web = WebSettings(port=0, token_file=folder / "token")
    settings = Settings.model_validate(
        {"node": NodeSettings(port=0), "web": web, "spool": {"url": folder / "state" / "spool", "refuse_below": "1 B"}}
    )
    with listening(folder, refuse_below, settings=settings) as node:
        stow = node.listener.stow if limits is None else _stow(node, limits)
        server = serve(node.db, settings, Health(), node.metrics, stow)
        try:
            yield HttpNode(node, server.port, {"Authorization": f"Bearer {token}"} if token else {})
        finally:
            server.stop()


def _stow(node: Node, limits: Limits) -> Stow:
    """A door of the same house with other limits."""
    stow = node.listener.stow
    return Stow(stow._door, Audit(node.audit), node.metrics, stow._places, stow._released, limits)


def part10(
    data: bytes | None = None, *, sop_class: str = CT, sop_instance: str = "1.2.3.4", syntax: str = EXPLICIT,
    preamble: bytes = bytes(128), group_length: int | None = None, more: bytes = b"",
) -> bytes:  # fmt: skip
    """A Part 10 file around a data set (PS3.10 §7.1); `group_length` when it shall lie."""
    values = {0x00020002: sop_class, 0x00020003: sop_instance, 0x00020010: syntax}
    meta = element(0x00020001, "OB", b"\0\1") + b"".join(text(t, "UI", v) for t, v in values.items() if v) + more
    length = struct.pack("<L", len(meta) if group_length is None else group_length)
    return preamble + b"DICM" + element(0x00020000, "UL", length) + meta + (dataset() if data is None else data)


def multipart(*files: bytes, kind: str = "application/dicom", boundary: str = BOUNDARY) -> bytes:
    """A multipart body of these files."""
    head = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()


def raw(port: int, request: bytes, within_s: float = 10.0) -> bytes:
    """What the node answers to these very bytes, until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=within_s) as connection:
        said = b""
        try:
            connection.sendall(request)
            while data := connection.recv(65536):
                said += data
                if b"\r\n\r\n" in said and complete(said):
                    break
        except (TimeoutError, ConnectionError):
            pass
        return said


def complete(said: bytes) -> bool:
    """Say whether a response with a Content-Length is all there."""
    head, _, body = said.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0])


def status_of(said: bytes) -> int:
    """The status of a raw response, 0 when there is none."""
    return int(said.split(b" ", 2)[1]) if said.startswith(b"HTTP/1.1 ") else 0


def request(*headers: str, body: bytes = b"", path: str = "/dicom-web/studies", method: str = "POST") -> bytes:
    """An HTTP/1.1 request with these header lines and no other than Host."""
    lines: Sequence[str] = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def rows(node: HttpNode) -> list[dict[str, Any]]:
    """The index."""
    return node.node.instances()
