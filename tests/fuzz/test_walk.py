"""The quick steps of the walk change nothing: same verdict, same words, same elements as element by element."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.accept import precheck, structure
from node.accept.precheck import Refused, inspect
from node.accept.structure import Broken
from node.store.spool import Encoded
from tests.bad_input.objects import Object, encapsulated, objects, texts, unusable
from tests.fuzz.grammar import Choices, some_dataset
from tests.fuzz.test_fuzz import SHORT
from tests.unit.encoded import EXPLICIT, IMPLICIT, JPEG, dataset, element, image, nested

OBJECTS = [one for source in (objects, unusable, encapsulated, texts) for one in source()]


class Plodding(structure._Walk):
    """The walk with every element on its own, as it was before there were quick steps."""

    def _short_run(self, limit: int) -> int:
        return 0

    def _implicit_run(self, limit: int) -> int:
        return 0


def walked(kind: type[structure._Walk], data: Encoded, syntax: str) -> tuple[object, ...]:
    try:
        found = kind(data, syntax == IMPLICIT, syntax not in (EXPLICIT, IMPLICIT), precheck._WANTED).run()
    except Broken as error:
        return ("broken", str(error))
    return ("whole", found.elements, found.odd_lengths)


def assert_same(data: Encoded) -> None:
    for syntax in (EXPLICIT, IMPLICIT, JPEG):
        assert walked(structure._Walk, data, syntax) == walked(Plodding, data, syntax)


@pytest.mark.parametrize("one", OBJECTS, ids=[f"B{one.row}-{one.name}" for one in OBJECTS])
def test_wrong_objects_get_the_same_verdict(one: Object) -> None:
    assert_same(one.data)


def test_mutations_get_the_same_verdict() -> None:
    @SHORT
    @given(st.binary(max_size=400))
    def tried(data: bytes) -> None:
        assert_same(some_dataset(Choices(data))[0])

    tried()


@pytest.mark.parametrize("implicit", [False, True])
def test_every_place_of_a_cut_gets_the_same_verdict(implicit: bool) -> None:
    whole = image(8, 8, implicit=implicit) + nested(2, implicit=implicit)
    for end in range(len(whole)):
        assert_same(memoryview(whole)[:end])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_count_of_elements_ends_at_the_same_one(syntax: str, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MAX_ELEMENTS", 40)
    implicit = syntax == IMPLICIT
    head, one = dataset(implicit=implicit), element(0x00420010, "LO", b"ab", implicit=implicit)
    data = head + one * (40 - elements(head, syntax) + more)
    assert_same(data)
    verdict = walked(structure._Walk, data, syntax)
    assert verdict[0] == ("broken" if more == 1 else "whole")
    if more == 1:
        with pytest.raises(Refused, match="too many elements"):
            inspect(data, syntax, "1.2", "1.2.3.4")


def elements(data: bytes, syntax: str) -> int:
    walk = structure._Walk(data, syntax == IMPLICIT, encapsulated=False, wanted=precheck._WANTED)
    walk.run()
    return walk._elements
