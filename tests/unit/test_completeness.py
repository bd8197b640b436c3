from __future__ import annotations

import pytest

from node.assemble.completeness import judge
from node.settings import Completeness

RULES = Completeness.model_validate({"quiet_period": "60 s", "max_wait": "1 h"})


@pytest.mark.parametrize(
    ("opened", "last", "now", "complete", "words"),
    [
        (0, 0, 59.9, False, "complete in 0 s"),
        (0, 0, 60, True, "no further instance for 60 s"),
        (0, 3590, 3599, False, "complete in 1 s"),
        (0, 3590, 3600, True, "still arrive, but the first came 60 min ago"),
        (0, 100, 50, False, "complete in 110 s"),
    ],
    ids=["quiet, not long enough", "quiet", "arriving, not too long", "arriving for too long", "clock set back"],
)
def test_a_study_is_complete_after_silence_or_the_longest_wait(
    opened: float, last: float, now: float, complete: bool, words: str
) -> None:
    verdict = judge(opened, last, now, RULES)
    assert verdict.complete is complete
    assert words in verdict.evidence
