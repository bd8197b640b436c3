"""Everything wrong that can be put into a STOW-RS request, and its answer."""

from __future__ import annotations

import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from node.accept.body import Pace
from node.accept.contexts import TRANSFER_SYNTAXES
from node.accept.stow import Limits
from tests.protocol.stowing import (
    BOUNDARY,
    FORM,
    PLAIN,
    HttpNode,
    multipart,
    part10,
    raw,
    request,
    rows,
    serving,
    status_of,
)
from tests.unit.encoded import (
    CT,
    EXPLICIT,
    JPEG,
    UNDEFINED,
    dataset,
    element,
    fragments,
    image,
    item,
    nested,
    sequence,
    text,
    us,
)

WHOLE = image(32, 32)
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN, JPEG_XL, PRIVATE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.110", "1.2.3.4.5"
DICOMDIR, HANGING = "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.38.1"
BODY = multipart(part10())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpNode]:
    limits = Limits(request=4_000_000, instance=1_100_000, parts=20, in_memory=10_000, pace=Pace(pause_s=1.0))
    with serving(tmp_path_factory.mktemp("node"), limits) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serves(node: HttpNode) -> Iterator[None]:
    """After whatever a test did, a good instance is taken and nothing lies about."""
    yield
    assert node.store(part10()) == (200, [])
    assert not node.node.left_over()


def named(tail: bytes = b"", **more: str) -> bytes:
    return part10(dataset(tail), **more)


CANNOT_UNDERSTAND = {
    "empty part": b"",
    "no data set": part10(b""),
    "random bytes": bytes(range(256)) * 4,
    "no preamble": part10()[128:],
    "data set alone": dataset(),
    "preamble only": bytes(128) + b"DICM",
    **{f"cut at {percent} %": part10(WHOLE[: len(WHOLE) * percent // 100]) for percent in (30, 60, 95)},
    "meta cut off": part10()[:200],
    "trailing garbage": named(b"\x08"),
    "length past the end": named(element(0x00280010, "OB", b"", 0xFFFFFFFE)),
    "undefined length of text": named(element(0x00400310, "UT", b"", UNDEFINED)),
    **{f"nested {depth}": named(nested(depth)) for depth in (33, 300, 20_000)},
    "too many elements": named(us(0x00280010, 1) * 100_001),
    "too many items": named(sequence(item(b"") * 65_536)),
    **{f"UID {uid!r}": part10(dataset(uids={0x00080018: uid})) for uid in ("../../x", "1..2", "1.02", "1." * 33)},
    "UID of two values": part10(dataset(uids={0x0020000D: "1.2\\1.3"})),
    "UID with NUL": part10(dataset(uids={0x0020000D: "1.2\0.3"})),
    "fragments without end": named(fragments(b"abcd", end=b""), syntax=JPEG),
    "no transfer syntax": part10(syntax=""),
    "odd VR in the meta": part10(more=element(0x00020100, "SQ", b"")),
    "twice in the meta": part10(more=text(0x00020010, "UI", DEFLATED)),
    "meta longer than allowed": part10(more=element(0x00020102, "OB", bytes(70_000))),
}
MISMATCH = {
    **{f"without {tag:08X}": part10(dataset(without=tag)) for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)},
    "meta names another instance": part10(sop_instance="1.2.3.5"),
    "meta names another class": part10(sop_class="1.2.840.10008.5.1.4.1.1.4"),
    "meta names no instance": part10(sop_instance=""),
    "meta names no class": part10(sop_class=""),
    "pixels too short": part10(image(4, 6, pixels=40)),
    "pixels too long": part10(image(4, 6, pixels=60)),
}
UNSUPPORTED = {
    **{f"syntax {uid}": (part10(syntax=uid), 0xC122) for uid in (DEFLATED, BIG_ENDIAN, JPEG_XL, PRIVATE)},
    "deflate bomb": (part10(zlib.compress(bytes(50_000_000))[2:-4], syntax=DEFLATED), 0xC122),
    **{f"class {uid}": (part10(sop_class=uid), 0x0122) for uid in (DICOMDIR, HANGING, "1.2.3.4")},
}
KEPT = {
    "odd length": named(element(0x00081030, "LO", b"abc")),
    "group length lies": part10(group_length=1),
    "no group length at all": part10()[:132] + part10()[144:],
    "rows 0": part10(image(0, 6, pixels=48)),
    "rows as UL": named(element(0x00280010, "UL", struct.pack("<L", 4)) + element(0x7FE00010, "OW", bytes(8))),
    "frames": named(text(0x00280008, "IS", "-1") + us(0x00280100, 7) + element(0x7FE00010, "OW", bytes(8))),
    "corrupt codestream": named(fragments(b"\xff\xd8 no JPEG "), syntax=JPEG),
    "no offset table": named(fragments(), syntax=JPEG),
    "bogus character set": named(text(0x00080005, "CS", "ISO_IR 9999") + element(0x00100010, "PN", b"\xff\xfe<b>")),
    "text of all kinds": named(text(0x00100010, "PN", "<script>{{7*7}}%0d%0aInjected: x =cmd()")),
    "dates and numbers": named(text(0x00080020, "DA", "20269999") + text(0x00280030, "DS", "1e400\\NaN")),
}


def reason(node: HttpNode, file: bytes) -> tuple[int, list[int]]:
    before = len(list(node.node.files()))
    answer = node.store(file)
    assert answer[0] == 200 or len(list(node.node.files())) == before, "what was refused was kept"
    return answer


@pytest.mark.parametrize("file", CANNOT_UNDERSTAND.values(), ids=CANNOT_UNDERSTAND)
def test_what_cannot_be_understood_is_c000(node: HttpNode, file: bytes) -> None:
    started = time.monotonic()
    assert reason(node, file) == (409, [0xC000])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("file", MISMATCH.values(), ids=MISMATCH)
def test_what_contradicts_itself_is_a900(node: HttpNode, file: bytes) -> None:
    assert reason(node, file) == (409, [0xA900])


@pytest.mark.parametrize(("file", "expected"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_the_listener_would_not_negotiate_is_refused(node: HttpNode, file: bytes, expected: int) -> None:
    assert reason(node, file) == (409, [expected])


@pytest.mark.parametrize("file", KEPT.values(), ids=KEPT)
def test_what_is_only_odd_is_kept(node: HttpNode, file: bytes) -> None:
    assert node.store(file) == (200, [])
    data = file[file.index(b"\x08\x00\x16\x00UI") :]
    assert any(path.read_bytes().endswith(data) for path in node.node.files())


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_of_the_listener_is_taken(node: HttpNode, syntax: str) -> None:
    data = dataset(implicit=syntax == "1.2.840.10008.1.2")
    assert node.store(part10(data, syntax=syntax)) == (200, [])


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/html",
        "application/json",
        "application/dicom",
        "multipart/form-data; boundary=wet-read",
        'multipart/related; type="application/dicom+json"; boundary=wet-read',
        'multipart/related; type="application/dicom+xml"; boundary=wet-read',
        'multipart/related; type="application/octet-stream"; boundary=wet-read',
    ],
)
def test_other_media_types_are_415(node: HttpNode, kind: str) -> None:
    lines = [f"Content-Type: {kind}"] if kind else []
    said = raw(node.port, request(*lines, f"Content-Length: {len(BODY)}", body=BODY))
    assert status_of(said) == 415


def test_metadata_with_remote_bulk_data_is_415_or_refused_and_never_fetched(node: HttpNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.3)
        uri = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        metadata = f'[{{"7FE00010":{{"vr":"OW","BulkDataURI":"{uri}"}}}}]'.encode()
        json_form = FORM.replace("application/dicom", "application/dicom+json")
        body = multipart(metadata, kind="application/dicom+json")
        assert node.post(body, Content_Type=json_form).status_code == 415
        xml = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{uri}">]><x>&e;</x>'.encode()
        assert node.store(part10(xml)) == (409, [0xC000])
        mixed = body.removesuffix(f"--{BOUNDARY}--\r\n".encode()) + BODY
        assert node.post(mixed).status_code == 202
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.parametrize(
    "parameter",
    [
        "",
        "boundary=",
        'boundary=""',
        f"boundary={'x' * 129}",
        'boundary="a\\"b"',
        "boundary=ä",
        "boundary=a; boundary=b",
    ],
)
def test_a_boundary_that_is_none_is_400(node: HttpNode, parameter: str) -> None:
    kind = f'Content-Type: multipart/related; type="application/dicom"; {parameter}'
    assert status_of(raw(node.port, request(kind, f"Content-Length: {len(BODY)}", body=BODY))) == 400


HEAD = f"--{BOUNDARY}\r\n".encode()
PART = HEAD + b"Content-Type: application/dicom\r\n\r\n"
END = f"\r\n--{BOUNDARY}--".encode()
MALFORMED = {
    "empty": b"",
    "another boundary": multipart(part10(), boundary="other"),
    "never closed": PART + part10(),
    "cut in the boundary": PART + part10() + END[:-1],
    "cut in the headers": HEAD + b"Content-Ty",
    "no parts": f"--{BOUNDARY}--\r\n".encode(),
    "part without headers": HEAD + b"\r\n" + part10() + END,
    "part without a type": HEAD + b"Content-ID: <1>\r\n\r\n" + part10() + END,
    "1e5 headers": HEAD + b"X: y\r\n" * 100_000 + b"\r\n" + END,
    "one long header": HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n" + END,
    "header twice": HEAD + b"Content-Type: application/dicom\r\n" * 2 + b"\r\n" + part10() + END,
    "header without a name": HEAD + b": x\r\n\r\n" + part10() + END,
    "type that is none": HEAD + b"Content-Type: dicom\r\n\r\n" + part10() + END,
    "nested": HEAD + b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n--x--" + END,
    "CR only": BODY.replace(b"\r\n", b"\r"),
    "LF only": BODY.replace(b"\r\n", b"\n"),
    "long preamble": b"x" * 100_000 + BODY,
    "junk behind a boundary": f"--{BOUNDARY}junk\r\n".encode() + PART + part10() + END,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_is_no_multipart_is_400(node: HttpNode, body: bytes) -> None:
    started = time.monotonic()
    assert node.post(body).status_code == 400
    assert time.monotonic() - started < 5


def test_what_came_before_the_fault_is_kept(node: HttpNode) -> None:
    uid = "1.2.3.77"
    good = part10(dataset(uids={0x00080018: uid}), sop_instance=uid)
    assert node.post(multipart(good).removesuffix(b"--\r\n") + b"\r\n").status_code == 400
    assert uid in {row["sop_instance_uid"] for row in rows(node)}


def test_too_much_is_413(node: HttpNode) -> None:
    assert node.store(part10(image(1000, 1000))) == (413, [])
    assert node.store(*[part10()] * 20) == (200, [])
    assert node.store(*[part10()] * 21) == (413, [])
    assert node.store(*[part10(image(600, 600))] * 6) == (413, [])
    pieces = (bytes(100_000) for _ in range(100))
    assert node.post(iter([PART, part10(), b"\r\n", HEAD, b"Content-Type: a/b\r\n\r\n", *pieces])).status_code == 413
    for length in (4_000_001, 4294967295, 10**18):
        said = raw(node.port, request(f"Content-Type: {FORM}", f"Content-Length: {length}", "Expect: 100-continue"))
        assert status_of(said) == 413
        assert b"100 Continue" not in said


def test_an_encoded_body_is_415(node: HttpNode) -> None:
    bomb = zlib.compress(bytes(10_000_000))
    for encoding in ("gzip", "deflate", "br", "gzip, identity"):
        assert node.post(bomb, Content_Encoding=encoding).status_code == 415
    assert node.post(BODY, Content_Encoding="identity").status_code == 200


FRAMING = {
    "bad chunk size": (["Transfer-Encoding: chunked"], b"zz\r\n" + BODY, {400}),
    "negative chunk size": (["Transfer-Encoding: chunked"], b"-5\r\n" + BODY, {400}),
    "both framings": (["Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"], b"0\r\n\r\n", {400}),
    "two lengths": (["Content-Length: 5", "Content-Length: 6"], BODY, {400}),
    "a length that is none": (["Content-Length: +5"], BODY, {400}),
    "longer than its body": ([f"Content-Length: {len(BODY) + 5}"], BODY, {408}),
    "shorter than its body": ([f"Content-Length: {len(BODY) - 30}"], BODY, {400}),
    "another encoding": (["Transfer-Encoding: gzip, chunked"], BODY, {400, 501}),
}


@pytest.mark.parametrize(("lines", "body", "expected"), FRAMING.values(), ids=FRAMING)
def test_framing_that_lies(node: HttpNode, lines: list[str], body: bytes, expected: set[int]) -> None:
    assert status_of(raw(node.port, request(f"Content-Type: {FORM}", *lines, body=body))) in expected


PATHS = {
    "/studies/..%2f..%2fetc": 404,
    "/studies/%00": 400,
    "/studies/1.2.3%00": 400,
    "/studies/1.02": 400,
    "/studies/x": 400,
    "/studies/1.2.3/series": 404,
    "/series": 404,
    "/": 404,
    f"/studies/{'1' * 65}": 400,
}


@pytest.mark.parametrize(("path", "expected"), PATHS.items())
def test_addresses_that_are_none(node: HttpNode, path: str, expected: int) -> None:
    answer = node.post(BODY, path)
    assert answer.status_code == expected
    assert "etc" not in answer.text


def test_other_methods_and_addresses_without_end(node: HttpNode) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"):
        answer = httpx.request(method, f"{node.url}/studies", verify=PLAIN)
        assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")
    assert status_of(raw(node.port, request(path=f"/dicom-web/studies/{'1' * 100_000}"))) in (400, 414, 431)


def test_a_sender_that_falls_silent_is_408_and_one_that_goes_leaves_nothing(node: HttpNode) -> None:
    head = request(f"Content-Type: {FORM}", "Content-Length: 100000")
    started = time.monotonic()
    assert status_of(raw(node.port, head + PART + part10(image(64, 64)))) == 408
    assert time.monotonic() - started < 5
    before = len(list(node.node.files()))
    with socket.create_connection(("127.0.0.1", node.port)) as connection:
        connection.sendall(head + PART + part10(image(50, 50)))
    time.sleep(0.3)
    assert len(list(node.node.files())) == before


def test_a_sender_that_drips_is_408(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(pace=Pace(pause_s=5, grace_s=0.3, slowest=1_000_000))) as node:

        def drips() -> Iterator[bytes]:
            yield PART + part10()[:100]
            for _ in range(50):
                time.sleep(0.05)
                yield b"x"

        assert node.post(drips()).status_code == 408


def test_many_at_once_are_each_answered(node: HttpNode) -> None:
    answers: list[int] = []

    def send(number: int) -> None:
        uid = f"1.2.3.100.{number}"
        answers.append(node.store(part10(dataset(uids={0x00080018: uid}), sop_instance=uid))[0])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 24
    assert set(answers) <= {200, 503}
    stored = {row["sop_instance_uid"] for row in rows(node) if row["sop_instance_uid"].startswith("1.2.3.100.")}
    assert len(stored) == answers.count(200)


def test_sop_class_and_syntax_are_those_of_the_file(node: HttpNode) -> None:
    (row,) = [row for row in rows(node) if row["sop_instance_uid"] == "1.2.3.77"]
    assert (row["sop_class_uid"], row["transfer_syntax_uid"]) == (CT, EXPLICIT)
