"""When a study is complete: pure rules, each with its evidence in words. Nothing here reads a clock or a database."""

from __future__ import annotations

from dataclasses import dataclass

from node.settings import Completeness


@dataclass(frozen=True)
class Verdict:
    """Whether the study is taken as complete, and the evidence."""

    complete: bool
    evidence: str


def judge(opened_at: float, last_received_at: float, now: float, rules: Completeness) -> Verdict:
    """Judge a study that is being received; times in seconds since the epoch.

    A plain C-STORE never says "that was the last one" (PS3.4 §B.2), so silence has to: complete after
    `quiet_period` without an instance, or `max_wait` after the first one, whichever comes first. A clock that was
    set back never counts as silence.
    """
    silence, waited = now - last_received_at, now - opened_at
    if silence >= rules.quiet_period:
        return Verdict(True, f"no further instance for {_span(silence)}")
    if waited >= rules.max_wait:
        return Verdict(True, f"instances still arrive, but the first came {_span(waited)} ago")
    left = min(rules.quiet_period - silence, rules.max_wait - waited)
    return Verdict(False, f"complete in {_span(left)} unless another instance comes")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
