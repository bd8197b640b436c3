from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.assemble.completeness import is_fetching, judge, wants_fetch, wants_question
from node.settings import Completeness
from node.store.completion import Evidence

RULES = Completeness.model_validate({"quiet_period": "60 s", "max_wait": "1 h"})
ASKING = Completeness.model_validate(
    {"quiet_period": "60 s", "max_wait": "1 h", "archive": "pacs", "fetch": "move", "fetch_attempts": 2}
)


def known(opened: float = 0.0, last: float = 0.0, **more: Any) -> Evidence:
    return Evidence("1.2.3", opened, last, **more)


@pytest.mark.parametrize(
    ("opened", "last", "now", "complete", "words"),
    [
        (0, 0, 59.9, False, "complete in 0 s"),
        (0, 0, 60, True, "no further instance for 60 s"),
        (0, 3590, 3599, False, "complete in 1 s"),
        (0, 3590, 3600, True, "the longest wait is over: the first came 60 min ago"),
        (0, 100, 50, False, "complete in 110 s"),
    ],
    ids=["quiet, not long enough", "quiet", "arriving, not too long", "arriving for too long", "clock set back"],
)
def test_a_study_is_complete_after_silence_or_the_longest_wait(
    opened: float, last: float, now: float, complete: bool, words: str
) -> None:
    verdict = judge(known(opened, last), now, RULES)
    assert verdict.complete is complete
    assert words in verdict.evidence


RELEASED = {"released_at": 100.1}
AGREES = {"seen_received_at": 100.0, "asked_at": 100.2, "in_archive": 20, "missing": 0}


@pytest.mark.parametrize(
    ("evidence", "at", "complete"),
    [
        (RELEASED | AGREES, 100.5, True),
        (RELEASED | AGREES, 100.4, False),
        (RELEASED, 130.0, False),
        (AGREES, 130.0, False),
        (RELEASED | AGREES | {"released_at": 99.0}, 130.0, False),
        (RELEASED | AGREES | {"seen_received_at": 90.0}, 130.0, False),
        (RELEASED | AGREES | {"in_archive": None, "missing": None}, 130.0, False),
        (RELEASED | AGREES | {"in_archive": 0, "missing": None}, 130.0, False),
        (RELEASED | AGREES | {"missing": 3}, 130.0, False),
    ],
    ids=[
        "both",
        "within the pause",
        "release alone",
        "count alone",
        "an instance came after the release",
        "an instance came after the answer",
        "the archive gave no number",
        "the archive is behind",
        "the archive has more",
    ],
)
def test_release_and_count_together_are_enough_and_neither_is_alone(
    evidence: dict[str, Any], at: float, complete: bool
) -> None:
    assert judge(known(100.0, 100.0, **evidence), at, ASKING).complete is complete


def test_each_piece_of_evidence_has_the_weight_that_the_configuration_gives_it() -> None:
    released = known(100.0, 100.0, **RELEASED)
    alone = RULES.model_copy(update={"release_weight": 1.0})
    assert judge(released, 100.5, alone).evidence == "the sender released its association"
    halves = RULES.model_copy(update={"quiet_weight": 0.5, "wait_weight": 0.5})
    assert not judge(known(0, 0), 3599, halves).complete, "silence alone is not enough here"
    assert judge(known(0, 0), 3600, halves).complete
    assert judge(dataclasses.replace(released, opened_at=0.0), 160.0, halves).complete, "silence and release are"


def test_a_quiet_study_waits_while_what_is_missing_can_be_fetched() -> None:
    more = known(0.0, 100.0, seen_received_at=100.0, asked_at=101.0, in_archive=20, missing=3)
    assert not judge(more, 161.0, ASKING).complete
    assert wants_fetch(more, 161.0, ASKING)
    assert not wants_fetch(more, 159.0, ASKING), "the sender may still be at it"
    assert judge(more, 161.0, RULES).complete, "nothing is fetched here"
    assert "3 of the 20 instances that the archive has are not here" in judge(more, 161.0, RULES).evidence

    under_way = dataclasses.replace(more, fetches=1, fetch_after=700.0)
    assert not wants_fetch(under_way, 200.0, ASKING)
    assert "attempt 1 of 2" in judge(under_way, 200.0, ASKING).evidence
    assert judge(under_way, 3600.0, ASKING).complete, "the longest wait counts in any case"

    failed = dataclasses.replace(more, fetches=2, fetch_after=200.0, note="the archive refused")
    assert not wants_fetch(failed, 201.0, ASKING)
    verdict = judge(failed, 201.0, ASKING)
    assert verdict.complete
    assert verdict.evidence.endswith("are not here; the archive refused")


def test_an_archive_that_falls_silent_after_an_attempt_is_not_waited_for() -> None:
    ended = known(0.0, 100.0, fetches=1, fetch_after=170.0, note="fetched nothing")
    assert is_fetching(ended, 172.0, ASKING)
    assert not is_fetching(ended, 176.0, ASKING)


def test_the_archive_is_asked_after_a_release_or_a_pause_and_then_less_and_less_often() -> None:
    assert not wants_question(known(0, 100.0), 100.2, ASKING)
    assert wants_question(known(0, 100.0), 100.6, ASKING)
    assert wants_question(known(0, 100.0, released_at=100.0), 100.1, ASKING)
    assert not wants_question(known(0, 100.0, released_at=100.0), 200.0, RULES), "no archive is named"
    asked, now = [], 100.0
    study = known(0, 100.0, released_at=100.0)
    while now < 3700:
        if wants_question(study, now, ASKING):
            asked.append(now)
            study = dataclasses.replace(study, asked_at=now)
        now += 0.25
    assert asked[:4] == [100.0, 101.0, 102.0, 104.0]
    assert len(asked) < 16
