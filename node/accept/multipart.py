"""`multipart/related` bodies taken apart while they arrive (RFC 2046 §5.1, RFC 2387), never held as a whole.

The caller gives chunks of any size and gets parts whose bodies are chunks again. What is kept at any moment is one
chunk, one delimiter and one header block; every length that a sender chooses has a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_BOUNDARY = 128
"""Characters of a boundary. RFC 2046 §5.1.1 has at most 70; Orthanc's STOW-RS client makes them of 73."""
MAX_HEADER = 8 * 1024
"""Bytes of one part's header block."""
MAX_PREAMBLE = 8 * 1024
"""Bytes in front of the first boundary."""
MAX_PARTS = 10_000
_MAX_PADDING = 70
"""Blanks between a boundary and the end of its line."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"\s*({_NAME}/{_NAME})\s*")
_PARAMETER = re.compile(rf';\s*({_NAME})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))\s*')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]*[0-9A-Za-z'()+_,./:=?-]")
_HEADER = re.compile(rf"({_NAME})[ \t]*:[ \t]*(.*)", re.DOTALL)
_END_OF_HEADER = b"\r\n\r\n"


class Malformed(ValueError):
    """The body or a header is not what RFC 2046 describes."""


class TooLarge(ValueError):
    """The body is well formed, and more than is taken."""


@dataclass(frozen=True)
class Part:
    """One body part: its headers by lower-case name, and its body, to be read before the next part is asked for."""

    headers: dict[str, str]
    body: Iterator[bytes]


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Return the media type in lower case and its parameters (RFC 9110 §8.3.1); raises `Malformed`.

    A value with a slash may come without quotes, as in `type=application/dicom`; many senders forget them.
    """
    start = _MEDIA_TYPE.match(value)
    if start is None:
        raise Malformed("the Content-Type is no media type")
    at, parameters = start.end(), dict[str, str]()
    while found := _PARAMETER.match(value, at):
        name = found[1].lower()
        if name in parameters:
            raise Malformed(f"the Content-Type has {name} twice")
        parameters[name] = re.sub(r"\\(.)", r"\1", found[2]) if found[2] is not None else found[3]
        at = found.end()
    if value[at:].strip("; \t"):
        raise Malformed("the Content-Type has a parameter that cannot be read")
    return start[1].lower(), parameters


def boundary_of(parameters: dict[str, str]) -> bytes:
    """Return the boundary named by a Content-Type's `parameters`; raises `Malformed` where there is no valid one."""
    boundary = parameters.get("boundary", "")
    if len(boundary) > MAX_BOUNDARY or not _BOUNDARY.fullmatch(boundary):
        raise Malformed(f"the Content-Type has no boundary of 1 to {MAX_BOUNDARY} characters")
    return boundary.encode("ascii")


def parts(chunks: Iterable[bytes], boundary: bytes, most: int = MAX_PARTS) -> Iterator[Part]:
    """Yield the parts of the body that comes in `chunks`; a body that was not read to its end is skipped.

    Raises `Malformed`, also when the body ends without its closing boundary, and `TooLarge` beyond `most` parts.
    """
    stream = _Stream(chunks, boundary)
    preamble = 0
    for chunk in stream.content():
        preamble += len(chunk)
        if preamble > MAX_PREAMBLE:
            raise Malformed("the body does not begin with its boundary")
    for _ in range(most):
        if not stream.opens_part():
            return stream.skip_epilogue()
        part = Part(stream.headers(), stream.content())
        yield part
        for _ in part.body:
            pass
    if stream.opens_part():
        raise TooLarge(f"more than {most:,} parts")
    return stream.skip_epilogue()


class _Stream:
    """What has arrived and was not handed on yet, and the chunks that follow it."""

    def __init__(self, chunks: Iterable[bytes], boundary: bytes) -> None:
        self._chunks = iter(chunks)
        self._delimiter = b"\r\n--" + boundary
        self._window = bytearray(b"\r\n")  # so that a boundary at the very start is one like the others

    def content(self) -> Iterator[bytes]:
        """Yield everything up to the next delimiter and step over that."""
        keep = len(self._delimiter) - 1  # the window may end with the beginning of a delimiter
        while (at := self._window.find(self._delimiter)) < 0:
            if len(self._window) > keep:
                yield self._cut(len(self._window) - keep)
            self._fill()
        if at:
            yield self._cut(at)
        del self._window[: len(self._delimiter)]

    def opens_part(self) -> bool:
        """Behind a delimiter: say whether a part follows; False at the closing delimiter."""
        while len(self._window) < 2:
            self._fill()
        if self._window[:2] == b"--":
            return False
        end = self._find(b"\r\n", _MAX_PADDING, "a boundary is followed by something else")
        if self._window[:end].strip(b" \t"):
            raise Malformed("a boundary is followed by something else")
        del self._window[:end]  # not the line's end: a header block may be nothing but the blank line
        return True

    def headers(self) -> dict[str, str]:
        """Step over the header block and return its fields; a folded one is unfolded (RFC 5322 §2.2.3)."""
        end = self._find(_END_OF_HEADER, MAX_HEADER, f"the headers of a part have more than {MAX_HEADER:,} bytes")
        block = self._cut(end + len(_END_OF_HEADER))[2 : -len(_END_OF_HEADER)].decode("latin-1")
        found: dict[str, str] = {}
        for line in re.sub(r"\r\n(?=[ \t])", "", block).split("\r\n") if block else ():
            field = _HEADER.fullmatch(line)
            if field is None or field[1].lower() in found:
                raise Malformed("a header of a part cannot be read or is there twice")
            found[field[1].lower()] = field[2].strip()
        return found

    def skip_epilogue(self) -> None:
        """Read what follows the closing delimiter; it means nothing (RFC 2046 §5.1.1)."""
        self._window.clear()
        for _ in self._chunks:
            pass

    def _find(self, needle: bytes, limit: int, complaint: str) -> int:
        while (at := self._window.find(needle, 0, limit + len(needle))) < 0:
            if len(self._window) >= limit + len(needle):
                raise Malformed(complaint)
            self._fill()
        return at

    def _cut(self, size: int) -> bytes:
        data = bytes(self._window[:size])
        del self._window[:size]
        return data

    def _fill(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise Malformed("the body ends without its closing boundary")
        self._window += chunk
