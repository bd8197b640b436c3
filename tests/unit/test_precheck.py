"""What is refused at the door, with which status, and what is kept although no model can use it."""

from __future__ import annotations

import random
import struct
import time

import pytest

from node import uids
from node.accept import structure
from node.accept.precheck import Header, Refused, StoreStatus, inspect
from tests.unit.encoded import (
    CT,
    EXPLICIT,
    IMPLICIT,
    ITEM_END,
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

C000, A900 = StoreStatus.CANNOT_UNDERSTAND, StoreStatus.MISMATCH


def check(data: bytes, syntax: str = EXPLICIT, sop_class: str = CT, sop_instance: str = "1.2.3.4") -> Header:
    return inspect(data, syntax, sop_class, sop_instance)


def refusal(data: bytes, syntax: str = EXPLICIT, **command: str) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        check(data, syntax, **command)
    assert len(refused.value.reason) <= 64
    return refused.value.status, refused.value.reason


@pytest.mark.parametrize(("syntax", "implicit"), [(EXPLICIT, False), (IMPLICIT, True)])
def test_identifiers_are_read(syntax: str, implicit: bool) -> None:
    assert check(dataset(implicit=implicit), syntax) == Header(CT, "1.2.3.4", "1.2.3", "1.2.3.1", False, 0)


def test_our_own_result_is_known_by_its_creator() -> None:
    ours = dataset(uids={0x00080014: uids.INSTANCE_CREATOR_UID})
    theirs = dataset(uids={0x00080014: "1.2.3.9"})
    assert check(ours).is_own_result
    assert not check(theirs).is_own_result


@pytest.mark.parametrize("tag", [0x00080016, 0x00080018, 0x0020000D, 0x0020000E])
def test_a_missing_or_empty_identifier_is_a900(tag: int) -> None:
    assert refusal(dataset(without=tag))[0] == A900
    assert refusal(dataset(uids={tag: ""}))[0] == A900


def test_identifiers_other_than_the_command_sets_are_a900() -> None:
    assert refusal(dataset(), sop_class="1.2.840.10008.5.1.4.1.1.4") == (
        A900,
        "SOP Class UID differs from what was announced",
    )
    assert refusal(dataset(), sop_instance="1.2.3.5") == (A900, "SOP Instance UID differs from what was announced")


@pytest.mark.parametrize(
    "uid", ["../../x", "/abs", "1..2", "1.02", "1" * 65, "1.2.a", "1.2\0.3", "1.2\\1.3", ".1", "1.", "1.2 3", "٣.1"]
)
@pytest.mark.parametrize("tag", [0x00080018, 0x0020000D])
def test_an_invalid_uid_is_c000(uid: str, tag: int) -> None:
    status, reason = refusal(dataset(uids={tag: uid}), sop_instance=uid if tag == 0x00080018 else "1.2.3.4")
    assert status == C000
    assert reason.startswith("invalid UID")


def test_an_identifier_that_is_there_twice_is_c000() -> None:
    assert refusal(dataset(text(0x0020000D, "UI", "1.2.9"))) == (C000, "(0020,000D) is there twice")


def test_nothing_and_noise_are_c000() -> None:
    assert refusal(b"") == (C000, "the data set is empty")
    noise = random.Random(3)  # noqa: S311 - the same noise every time
    for size in (1, 7, 8, 100, 5000):
        for syntax in (EXPLICIT, IMPLICIT, JPEG):
            assert refusal(noise.randbytes(size), syntax)[0] == C000


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_data_set_is_c000(share: float) -> None:
    whole = image(64, 64)
    assert refusal(whole[: int(len(whole) * share)])[0] == C000


def test_cut_anywhere_it_is_refused_and_never_read_past_its_end() -> None:
    nest = sequence(item(text(0x00080100, "SH", "X"), UNDEFINED) + item(b""))
    whole = dataset(nest + us(0x00280010, 4))
    between_elements = {len(dataset()), len(dataset(nest))}
    for end in set(range(1, len(whole))) - between_elements:
        with pytest.raises(Refused):
            check(whole[:end])


@pytest.mark.parametrize("garbage", [b"\0", b"garbage", bytes(8), b"\xff" * 32])
def test_trailing_garbage_is_c000(garbage: bytes) -> None:
    assert refusal(dataset() + garbage)[0] == C000


def test_data_set_trailing_padding_is_an_element() -> None:
    check(dataset(element(0xFFFCFFFC, "OB", bytes(500))))


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF, 3])
def test_a_length_past_the_end_is_c000(length: int) -> None:
    assert refusal(dataset(element(0x00420011, "OB", b"ab", length)))[0] == C000
    assert refusal(dataset(element(0x00420011, "OB", b"ab", length, implicit=True), implicit=True), IMPLICIT)[0] == C000


def test_odd_and_group_lengths_are_kept_and_counted() -> None:
    odd = dataset(element(0x00100010, "PN", b"A^B^C", 5) + element(0x00280000, "UL", struct.pack("<L", 99)))
    assert check(odd).odd_lengths == 1


@pytest.mark.parametrize("vr", ["OB", "OW", "UT", "UC"])
def test_an_undefined_length_where_none_may_be_is_c000(vr: str) -> None:
    assert refusal(dataset(sequence(b"", tag=0x00420011, vr=vr)))[0] == C000
    assert refusal(dataset(sequence(b"", implicit=True, tag=0x00420011), implicit=True), IMPLICIT)[0] == C000


def test_native_pixel_data_has_no_undefined_length() -> None:
    assert refusal(dataset(fragments(b"ab")))[0] == C000
    assert refusal(dataset(sequence(item(b"ab"), implicit=True, tag=0x7FE00010), implicit=True), IMPLICIT)[0] == C000


@pytest.mark.parametrize(("syntax", "implicit"), [(EXPLICIT, False), (IMPLICIT, True)])
@pytest.mark.parametrize("depth", [33, 300, 20_000])
def test_deep_nesting_is_c000_at_once(syntax: str, implicit: bool, depth: int) -> None:
    data = dataset(nested(depth, implicit=implicit), implicit=implicit)
    started = time.perf_counter()
    assert refusal(data, syntax) == (C000, "sequence depth over 32")
    assert time.perf_counter() - started < 0.1


def test_nesting_to_the_limit_is_kept() -> None:
    check(dataset(nested(structure.MAX_DEPTH)))
    check(dataset(nested(structure.MAX_DEPTH, implicit=True), implicit=True), IMPLICIT)


def test_sequences_of_defined_length_are_walked_too() -> None:
    content = b""
    for _ in range(33):
        content = element(0x00081140, "SQ", item(content))
    assert refusal(dataset(content)) == (C000, "sequence depth over 32")


def test_too_many_elements_are_c000(monkeypatch: pytest.MonkeyPatch) -> None:
    private = b"".join(element(0x00091000 + n % 0xEFFF, "UN", b"") for n in range(structure.MAX_ELEMENTS - 4))
    check(dataset(private))
    assert refusal(dataset(private + us(0x00280010, 1))) == (C000, "too many elements")


def test_too_many_items_are_c000() -> None:
    check(dataset(sequence(item(b"") * structure.MAX_ITEMS)))
    assert refusal(dataset(sequence(item(b"") * (structure.MAX_ITEMS + 1)))) == (C000, "too many items")


@pytest.mark.parametrize(
    "tail",
    [
        sequence(item(b"") + b"\x08\x00\x05\x00\x00\x00\x00\x00"),
        sequence(item(us(0x00280010, 1), length=6)),
        sequence(item(us(0x00280010, 1), length=200)),
        element(0x00081140, "SQ", item(b"", UNDEFINED)[:-8]),
        element(0x00081140, "SQ", ITEM_END + bytes(4)),
        ITEM_END + bytes(4),
        item(b""),
    ],
)
def test_a_broken_sequence_is_c000(tail: bytes) -> None:
    assert refusal(dataset(tail))[0] == C000


def test_un_of_undefined_length_is_walked_as_implicit() -> None:
    inside = item(us(0x00280010, 1, implicit=True), UNDEFINED)
    check(dataset(sequence(inside, tag=0x00091001, vr="UN")))
    assert refusal(dataset(sequence(item(us(0x00280010, 1), UNDEFINED), tag=0x00091001, vr="UN")))[0] == C000


def test_a_private_sequence_in_implicit_is_walked() -> None:
    inside = item(us(0x00280010, 1, implicit=True), UNDEFINED)
    check(dataset(sequence(inside, implicit=True, tag=0x00091001), implicit=True), IMPLICIT)


@pytest.mark.parametrize("group", [0x0000, 0x0002, 0x0004, 0x0006])
def test_groups_of_commands_and_files_are_no_part_of_a_data_set(group: int) -> None:
    """A Transfer Syntax UID (0002,0010) in the data set would overrule the file's own for some readers."""
    assert refusal(dataset(text(group << 16 | 0x0010, "UI", JPEG)))[0] == C000


@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_pixel_data_of_the_right_length_is_kept(vr: str) -> None:
    check(image(vr=vr))
    check(image(implicit=True), IMPLICIT)
    check(image(3, 5, bits=8, pixels=16))
    check(image(frames="7"))
    check(image(3, 3, bits=1, frames="5", pixels=6))
    check(image(4, 6, bits=8, samples=3, photometric="YBR_FULL_422", pixels=48))


@pytest.mark.parametrize("pixels", [0, 46, 50, 96])
def test_pixel_data_of_another_length_is_a900(pixels: int) -> None:
    status, reason = refusal(image(pixels=pixels))
    assert status == A900
    assert ("shorter" if pixels < 48 else "longer") in reason
    assert refusal(image(pixels=pixels, implicit=True), IMPLICIT)[0] == A900


def odd_image(*parts: bytes) -> bytes:
    return dataset(b"".join(parts) + element(0x7FE00010, "OW", bytes(512)))


SHAPE = us(0x00280002, 1), us(0x00280010, 4), us(0x00280011, 6), us(0x00280100, 16)


@pytest.mark.parametrize(
    "data",
    [
        odd_image(),
        odd_image(SHAPE[0], us(0x00280010, 0), SHAPE[2], SHAPE[3]),
        odd_image(SHAPE[0], SHAPE[1], SHAPE[3]),
        odd_image(SHAPE[0], element(0x00280010, "UL", struct.pack("<L", 4)), SHAPE[2], SHAPE[3]),
        odd_image(SHAPE[0], us(0x00280010, 65535), us(0x00280011, 65535), SHAPE[3]),
        odd_image(us(0x00280002, 0), *SHAPE[1:]),
        *(odd_image(SHAPE[0], text(0x00280008, "IS", n), *SHAPE[1:]) for n in ("-1", "0", "2147483648", "abc", "1\\2")),
    ],
    ids=["none", "rows 0", "no columns", "rows UL", "65535²", "samples 0", "-1", "0", "2^31", "abc", "two"],
)
def test_attributes_that_say_nothing_usable_are_kept_for_the_job_to_answer(data: bytes) -> None:
    check(data)


def test_encapsulated_pixel_data() -> None:
    check(dataset(fragments(b"abcd", b"ef")), JPEG)
    check(dataset(fragments()), JPEG)
    check(dataset(fragments(*[b""] * 10_000)), JPEG)
    assert refusal(dataset(fragments(b"abcd", end=b"")), JPEG) == (C000, "the fragments of Pixel Data have no end")
    assert refusal(dataset(fragments(b"abcd", end=us(0x00280010, 1))), JPEG)[0] == C000
    assert refusal(dataset(fragments(b"abcd")[:-20]), JPEG)[0] == C000


def test_a_mutated_data_set_is_refused_or_read_but_never_a_crash() -> None:
    """Structure-aware noise: flip bytes of sound data sets; nothing but `Refused` may come out, and quickly."""
    noise = random.Random(20)  # noqa: S311 - the same noise every time
    seeds = [
        (dataset(nested(5) + sequence(item(us(0x00280010, 1)))), EXPLICIT),
        (image(implicit=True), IMPLICIT),
        (dataset(fragments(b"abcdef", b"gh")), JPEG),
    ]
    for _ in range(3000):
        data, syntax = noise.choice(seeds)
        mutated = bytearray(data)
        for _ in range(noise.randint(1, 6)):
            mutated[noise.randrange(len(mutated))] = noise.choice([0, 1, 0x7F, 0xE0, 0xFE, 0xFF, noise.randrange(256)])
        try:
            check(bytes(mutated), syntax)
        except Refused:
            continue
