"""When a study is complete: pure rules, each with its evidence in words. Nothing here reads a clock or a database.

A plain C-STORE never says "that was the last one" (PS3.4 §B.2). So evidence is weighed: what holds adds its weight
(`[completeness]`), and with 1 the study is complete.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.settings import Completeness
from node.store.completion import Evidence

ENOUGH = 0.999
"""Three thirds are one, whatever floating point makes of them."""
FIRST_RETRY_S = 5.0


@dataclass(frozen=True)
class Verdict:
    """Whether the study is taken as complete, and the evidence."""

    complete: bool
    evidence: str


def judge(known: Evidence, now: float, rules: Completeness) -> Verdict:
    """Judge a study that is being received.

    Release and count hold once nothing has come for `pause`; silence holds after `quiet_period`, but not while
    missing instances can still be fetched; `max_wait` holds in any case. A clock that was set back never counts as
    silence. What an archive did not say is unknown, never zero.
    """
    silence, waited = now - known.last_received_at, now - known.opened_at
    quiet = silence >= rules.quiet_period
    fetching = quiet and is_fetching(known, now, rules)
    held = [
        (rules.release_weight, "the sender released its association", silence >= rules.pause and known.is_released),
        (rules.count_weight, _count(known), silence >= rules.pause and known.is_answered and known.missing == 0),
        (rules.quiet_weight, f"no further instance for {span(silence)}", quiet and not fetching),
        (rules.wait_weight, f"the longest wait is over: the first came {span(waited)} ago", waited >= rules.max_wait),
    ]
    found = [(weight, words) for weight, words, holds in held if holds and weight > 0]
    if sum(weight for weight, _ in found) >= ENOUGH:
        return Verdict(True, "; ".join([*(words for _, words in found), *_doubts(known)]))
    return Verdict(False, _waits_for(known, silence, waited, fetching, rules))


def is_fetching(known: Evidence, now: float, rules: Completeness) -> bool:
    """Say whether the archive has more of a quiet study and there is hope to get it: under way, or tried again."""
    if rules.fetch == "no" or not (known.fetches or known.missing):
        return False
    if now < known.fetch_after:
        return True
    if not known.is_answered:  # asked again after an attempt; an archive that is silent is not waited for
        return known.fetches > 0 and now < known.fetch_after + FIRST_RETRY_S
    return bool(known.missing) and known.fetches < rules.fetch_attempts


def wants_question(known: Evidence, now: float, rules: Completeness) -> bool:
    """Say whether the archive is to be asked (again): once after the last instance, then at growing distances."""
    silence = now - known.last_received_at
    if rules.archive is None or not (known.is_released or silence >= min(rules.pause, rules.quiet_period)):
        return False
    before = known.asked_at - known.last_received_at
    return before < 0 or now - known.asked_at >= max(1.0, before) or now < known.asked_at


def wants_fetch(known: Evidence, now: float, rules: Completeness) -> bool:
    """Say whether an attempt to fetch what is missing is due."""
    return (
        rules.fetch != "no"
        and bool(known.missing)
        and known.is_answered
        and known.fetches < rules.fetch_attempts
        and now >= known.fetch_after
        and now - known.last_received_at >= rules.quiet_period
    )


def span(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(known: Evidence) -> str:
    return f"the archive has {known.in_archive} instances of it and none that is not here"


def _doubts(known: Evidence) -> list[str]:
    """Return what the reason must not keep quiet: what the archive has more, and why it could not be fetched."""
    more = f"{known.missing} of the {known.in_archive} instances that the archive has are not here"
    return [words for words in (more if known.is_answered and known.missing else "", known.note) if words]


def _waits_for(known: Evidence, silence: float, waited: float, fetching: bool, rules: Completeness) -> str:
    left = max(min(rules.quiet_period - silence, rules.max_wait - waited), 0.0)
    if fetching:
        return f"waits for what the archive has more: attempt {known.fetches} of {rules.fetch_attempts} to fetch it"
    return f"complete in {span(left)} unless another instance comes"
