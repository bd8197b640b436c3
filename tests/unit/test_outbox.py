"""The retry table is complete and says what to do."""

from __future__ import annotations

import itertools

import pytest

from workers.send.cstore import Answer
from workers.send.verdicts import ANSWERS, BACK_OFF_S, STATUSES, Verdict, judge, rest


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0x0000, "DONE"),
        (0xB000, "WARN"),
        (0xB006, "WARN"),
        (0xB007, "WARN"),
        (0x0110, "RETRY"),
        (0x0213, "RETRY"),
        (0xA700, "RETRY"),
        (0xA7FF, "RETRY"),
        (0x0111, "VERIFY"),
        (0x0122, "DEAD"),
        (0x0124, "DEAD"),
        (0xA900, "DEAD"),
        (0xA9FF, "DEAD"),
        (0xC000, "DEAD"),
        (0xCFFF, "DEAD"),
        (0x0001, "WARN"),
        (0x0107, "WARN"),
        (0x0116, "WARN"),
        (0xB001, "WARN"),
        (0xBFFF, "WARN"),
        (0x0002, "DEAD"),
        (0xFE00, "DEAD"),
    ],
)
def test_status(status: int, verdict: str) -> None:
    assert judge(Answer("status", status=status)).verdict == verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer("rejected", rejection=(1, 1, 3)), "DEAD"),
        (Answer("rejected", rejection=(1, 2, 1)), "DEAD"),
        (Answer("rejected", rejection=(2, 3, 1)), "RETRY"),
        (Answer("rejected", rejection=(1, 3, 1)), "RETRY"),
        (Answer("rejected", rejection=(1, 3, 2)), "RETRY"),
        (Answer("no_context"), "DEAD"),
        (Answer("aborted"), "RETRY"),
        (Answer("timeout"), "RETRY"),
        (Answer("unreachable"), "RETRY"),
    ],
)
def test_association(answer: Answer, verdict: str) -> None:
    assert judge(answer).verdict == verdict


def test_ranges_do_not_overlap() -> None:
    ranges = sorted((low, high) for low, high, _ in STATUSES)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_whatever_waits_for_a_person_says_what_happened() -> None:
    rulings = [ruling for *_, ruling in STATUSES] + list(ANSWERS.values())
    assert all(ruling.what.endswith(".") for ruling in rulings)
    assert {ruling.verdict for ruling in rulings} == set(Verdict)


def test_rests_grow_to_a_quarter_of_an_hour_and_spread_by_a_fifth() -> None:
    for attempts, base in enumerate((*BACK_OFF_S, 900.0, 900.0), start=1):
        rests = [rest(attempts, str(key)) for key in range(200)]
        assert min(rests) >= 0.8 * base
        assert max(rests) <= 1.2 * base
        assert max(rests) - min(rests) > 0.3 * base
    assert rest(3, "a") == rest(3, "a")


def test_codes_for_people() -> None:
    assert Answer("status", status=0xA700).code == "A700"
    assert Answer("rejected", rejection=(2, 3, 2)).code == "RJ 2,3,2"
    assert Answer("timeout").code == "TIMEOUT"
