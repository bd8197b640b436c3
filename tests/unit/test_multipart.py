"""The parser of multipart bodies and the reader of Part 10 files, against whatever bytes in whatever pieces."""

from __future__ import annotations

import io
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.accept import multipart, part10
from node.accept.multipart import Malformed, TooLarge, boundary_of, media_type, parts
from node.accept.part10 import FileMeta, gather, read_head, read_meta
from node.accept.precheck import Refused
from node.errors import NoRoom
from node.store.spool import Spool
from tests.unit.encoded import CT, EXPLICIT, element, text

BOUNDARY = b"wet"
META = element(0x00020001, "OB", b"\0\1") + text(0x00020002, "UI", CT) + text(0x00020003, "UI", "1.2.3.4")
META += text(0x00020010, "UI", EXPLICIT)


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut `data` into pieces of these sizes, again and again."""
    at, turn = 0, 0
    while at < len(data):
        yield data[at : at + sizes[turn % len(sizes)]]
        at += sizes[turn % len(sizes)]
        turn += 1


def read(data: bytes, sizes: list[int] | None = None, most: int = 50) -> list[tuple[dict[str, str], bytes]]:
    """All parts of a body."""
    return [(part.headers, b"".join(part.body)) for part in parts(pieces(data, sizes or [7]), BOUNDARY, most)]


def body(*contents: bytes, head: bytes = b"A: b\r\n") -> bytes:
    return b"".join(b"--wet\r\n" + head + b"\r\n" + c + b"\r\n" for c in contents) + b"--wet--"


HOSTILE = st.lists(
    st.sampled_from(
        [
            *(b"--wet", b"--wet--", b"--we", b"\r\n--wet\r\n", b"\r\n--wet--\r\n", b"\r\n\r\n", b"\r\n", b"\r", b"\n"),
            *(b"-", b":", b" ", b"\0", b"A: b", b"Content-Type: application/dicom", b"DICM", b"x" * 5000),
        ]
    )
    | st.binary(max_size=20),
    max_size=40,
).map(b"".join)
SIZES = st.lists(st.integers(1, 9000), min_size=1, max_size=5)


@given(st.lists(st.binary(max_size=300).filter(lambda c: b"--wet" not in c), max_size=6), SIZES)
def test_what_was_put_in_comes_out_however_it_is_cut(contents: list[bytes], sizes: list[int]) -> None:
    assert [content for _, content in read(body(*contents), sizes)] == contents


@given(HOSTILE, SIZES)
@settings(max_examples=500)
def test_no_body_raises_anything_else_and_pieces_do_not_matter(data: bytes, sizes: list[int]) -> None:
    outcomes = []
    for cut in (sizes, [1], [len(data) + 1]):
        try:
            outcomes.append(read(data, cut, most=5))
        except (Malformed, TooLarge) as error:
            outcomes.append(type(error))  # type: ignore[arg-type]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_parts_that_nobody_reads_are_skipped() -> None:
    found = [part.headers for part in parts(pieces(body(b"1" * 100, b"", b"3"), [3]), BOUNDARY)]
    assert found == [{"a": "b"}] * 3
    half = []
    for part in parts(pieces(body(b"1" * 100, b"2" * 100), [3]), BOUNDARY):
        half.append(next(part.body)[:1])
    assert half == [b"1", b"2"]


def test_preamble_padding_folding_and_epilogue() -> None:
    data = b"Nothing.\r\n--wet \t\r\nA: b\r\n  c\r\nD:e\r\n\r\nbody\r\n--wet\r\n\r\n\r\n--wet--\r\nNothing."
    assert read(data) == [({"a": "b  c", "d": "e"}, b"body"), ({}, b"")]


def test_a_boundary_inside_a_line_is_content() -> None:
    content = b"x--wet\r\n-wet\n--wet\r--wet"
    assert read(body(content)) == [({"a": "b"}, content)]


def skip(found: Iterator[multipart.Part]) -> None:
    for part in found:
        for _ in part.body:
            pass


def test_memory_is_bounded_whatever_is_sent() -> None:
    chunk = b"\r\n--we" * 10_000

    def endless(head: bytes) -> Iterator[bytes]:
        yield head
        for _ in range(1000):
            yield chunk

    for head in (b"--wet\r\nA: b\r\n\r\n", b"", b"--wet\r\nA: ", b"--wet"):
        tracemalloc.start()
        with pytest.raises(Malformed):
            skip(parts(endless(head), BOUNDARY))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, head
        tracemalloc.stop()


def test_limits() -> None:
    assert len(read(body(*[b"x"] * 50))) == 50
    with pytest.raises(TooLarge, match="more than 50 parts"):
        read(body(*[b"x"] * 51))
    name = b"A: " + b"b" * (multipart.MAX_HEADER - 5)
    assert len(read(b"--wet\r\n" + name + b"\r\n\r\nx\r\n--wet--")) == 1
    with pytest.raises(Malformed, match="8,192 bytes"):
        read(b"--wet\r\n" + name + b"bbbb\r\n\r\nx\r\n--wet--")


@pytest.mark.parametrize(
    ("value", "kind", "parameters"),
    [
        ("multipart/related", "multipart/related", {}),
        ("Multipart/Related; Boundary=a", "multipart/related", {"boundary": "a"}),
        ('a/b; type="application/dicom";boundary="x y"', "a/b", {"type": "application/dicom", "boundary": "x y"}),
        ("a/b; type=application/dicom; boundary=x;", "a/b", {"type": "application/dicom", "boundary": "x"}),
        (r'a/b; c="d\"e;f"', "a/b", {"c": 'd"e;f'}),
    ],
)
def test_media_types(value: str, kind: str, parameters: dict[str, str]) -> None:
    assert media_type(value) == (kind, parameters)


@pytest.mark.parametrize("value", ["", "a", "a/", "/b", "a/b; c", "a/b c", 'a/b; c="d', "a/b; c=d; C=e", "ä/b"])
def test_what_is_no_media_type(value: str) -> None:
    with pytest.raises(Malformed):
        media_type(value)


@given(st.text(max_size=200) | st.from_regex(r'a/b(; ?[a-c]=("[^"]*"|[^;]*))*', fullmatch=True))
def test_no_media_type_raises_anything_else(value: str) -> None:
    try:
        _, parameters = media_type(value)
        boundary = boundary_of(parameters)
    except Malformed:
        return
    assert re.fullmatch(rb"[ -~]{1,128}", boundary)


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=300)
def test_no_file_raises_anything_else(data: bytes, with_meta: bool) -> None:
    whole = bytes(128) + b"DICM" + (META if with_meta else b"") + data
    try:
        meta = read_meta(whole)
    except Refused:
        return
    assert meta.transfer_syntax_uid
    assert whole[meta.end : meta.end + 2] != b"\x02\x00"


@given(st.integers(0, 400), SIZES)
def test_the_data_set_begins_where_the_meta_ends(size: int, sizes: list[int]) -> None:
    content = b"\x08\x00" + bytes(size)
    meta, rest = read_head(pieces(bytes(128) + b"DICM" + META + content, sizes))
    assert meta == FileMeta(CT, "1.2.3.4", EXPLICIT, 132 + len(META))
    assert b"".join(rest) == content


@pytest.mark.parametrize("size", [0, 10, 1000, 1001, 100_000])
def test_large_data_sets_are_mapped_small_ones_held(tmp_path: Path, size: int) -> None:
    spool, data = Spool(tmp_path / "spool", 0), bytes(range(256)) * (size // 256 + 1)
    found = gather(pieces(data[:size], [333]), spool, most=size, in_memory=1000)
    assert isinstance(found, bytes) == (size <= 1000)
    assert bytes(found) == data[:size]
    assert not list((tmp_path / "spool" / "tmp").iterdir())
    with pytest.raises(TooLarge):
        gather(pieces(data[: size + 1], [333]), spool, most=size, in_memory=1000)


def test_a_disk_without_room_is_noticed_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(NoRoom):
        gather(pieces(bytes(5000), [333]), Spool(tmp_path / "spool", 2**62), most=10_000, in_memory=1000)

    class Full(Spool):
        def scratch(self) -> io.BufferedRandom:
            return open("/dev/full", "w+b")  # type: ignore[return-value]  # noqa: PTH123

    with pytest.raises(NoRoom, match="No space left"):
        gather(pieces(bytes(50_000), [9999]), Full(tmp_path / "spool", 0), most=100_000, in_memory=1000)
    assert part10.MAX_META == 65_536
