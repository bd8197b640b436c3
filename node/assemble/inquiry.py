"""The archive is asked about studies that are being received, and what it has more is fetched, a few times.

Both are claimed in the database first, so that several processes may do it, and neither holds a transaction while the
network is waited for. An archive that is away costs a study the quiet period and nothing else.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence

from node import clock
from node.assemble import archive, completeness
from node.assemble.archive import NoAnswer, Patience, Take, Wanted
from node.calling import Answer, Peer, Timeouts
from node.clock import Clock
from node.crashpoints import reach
from node.settings import Settings
from node.store import completion
from node.store.completion import Evidence
from node.store.db import Database

log = logging.getLogger(__name__)

BACK_OFF_S = (5.0, 15.0, 60.0)
"""How long after its first, second, … attempt the next to fetch begins; the last value holds from then on."""
QUESTION = Timeouts(connect=5.0, acse=5.0, dimse=20.0, write=5.0)
MARGIN_S = 30.0
"""An attempt that has not ended so long after its timeout never will: its process died."""


def ask(
    db: Database, settings: Settings, now: Clock = clock.now, timeouts: Timeouts = QUESTION,
    stopping: threading.Event | None = None,
) -> int:  # fmt: skip
    """Ask about every study of which the archive's word is wanted now; return how many. Raises `DatabaseUnavailable`.

    One association serves them all. When it cannot be had, or is lost, the others are asked another time. Ends at
    once when the node is `stopping`; the archive has then said nothing.
    """
    rules = settings.completeness
    if rules.archive is None:
        return 0
    due = [known for known in _waiting(db, settings, now()) if completeness.wants_question(known, now(), rules)]
    if not due or not (mine := [known for known in due if completion.ask(db, known, now())]):
        return 0
    patience = Patience(math.inf, stopping)
    with archive.asking(_peer(settings), timeouts, patience) as assoc:
        for known in mine:
            if isinstance(assoc, Answer):
                said: tuple[int | None, int | None, str] = (
                    None,
                    None,
                    _silent(rules.archive, archive.words(assoc, _peer(settings))),
                )
            else:
                said = _ask(db, assoc, rules.archive, known)
            if patience.ended:
                break
            completion.answered(db, known, *said)
    return len(mine)


def fetch(
    db: Database, settings: Settings, take: Take, syntaxes: Sequence[str], now: Clock = clock.now,
    timeouts: Timeouts | None = None, stopping: threading.Event | None = None,
) -> int:  # fmt: skip
    """Fetch what is missing of one study, if an attempt is due; return how many instances were asked for.

    Lasts as long as the archive needs, at most `completeness.fetch_timeout`, and ends at once when the node is
    `stopping`: that attempt does not count. Raises `DatabaseUnavailable`.
    """
    rules = settings.completeness
    for known in _waiting(db, settings, now()):
        until = now() + rules.fetch_timeout + MARGIN_S
        if completeness.wants_fetch(known, now(), rules) and completion.fetch(db, known, until):
            patience = Patience(rules.fetch_timeout, stopping)
            return _fetch(db, settings, known, take, syntaxes, now, timeouts or Timeouts(), patience)
    return 0


def _waiting(db: Database, settings: Settings, now: float) -> list[Evidence]:
    return completion.waiting(db, now, 0.0, settings.completeness.max_wait)


def _ask(db: Database, assoc: object, name: str, known: Evidence) -> tuple[int | None, int | None, str]:
    """Return what the archive has, how many of it are not here, and what was odd about the answer."""
    here = completion.known(db, known.study_instance_uid, name)
    counted = archive.count(assoc, known.study_instance_uid)
    if isinstance(counted, NoAnswer):
        return None, None, _silent(name, counted.reason)
    if counted is None or counted < len(here):  # unknown, or not all of it has arrived there yet
        return counted, None, ""
    if counted == len(here):
        return counted, 0, ""
    missing = _missing(db, assoc, name, known)
    if isinstance(missing, NoAnswer):
        return counted, counted - len(here), _silent(name, missing.reason)
    return counted, len(missing), ""


def _missing(db: Database, assoc: object, name: str, known: Evidence) -> list[Wanted] | NoAnswer:
    listed = archive.listing(assoc, known.study_instance_uid)
    if isinstance(listed, NoAnswer):
        return listed
    here = completion.known(db, known.study_instance_uid, name)
    return [one for one in listed if one.sop_instance_uid not in here]


def _fetch(
    db: Database, settings: Settings, known: Evidence, take: Take, syntaxes: Sequence[str], now: Clock,
    timeouts: Timeouts, patience: Patience,
) -> int:  # fmt: skip
    rules, attempt = settings.completeness, known.fetches + 1
    name, how = str(rules.archive), {"move": "C-MOVE", "get": "C-GET"}[rules.fetch]
    reach("fetch.before")
    wanted, wrong = _retrieve(db, settings, known, take, syntaxes, timeouts, patience)
    reach("fetch.after")
    note = f"{how} of {len(wanted)} instances from {name}, attempt {attempt} of {rules.fetch_attempts}"
    note += f", failed: {wrong}" if wrong else " went well"
    stopped = wrong == archive.NODE_STOPS
    last = attempt >= rules.fetch_attempts or stopped
    rest = 0.0 if last else BACK_OFF_S[min(attempt, len(BACK_OFF_S)) - 1]
    completion.fetched(db, known.study_instance_uid, note, now() + rest, counts=not stopped)
    if not wrong:
        completion.released(db, [known.study_instance_uid], now())
    extra = {"action": "fetched", "study_instance_uid": known.study_instance_uid, "count": len(wanted)}
    (log.warning if wrong else log.info)("Study %s: %s.", known.study_instance_uid, note, extra=extra)
    return len(wanted)


def _retrieve(
    db: Database,
    settings: Settings,
    known: Evidence,
    take: Take,
    syntaxes: Sequence[str],
    timeouts: Timeouts,
    patience: Patience,
) -> tuple[list[Wanted], str]:
    """Return what was asked for, and what went wrong."""
    rules, peer, study_uid = settings.completeness, _peer(settings), known.study_instance_uid
    with archive.asking(peer, timeouts, patience) as assoc:
        if isinstance(assoc, Answer):
            return [], archive.words(assoc, peer)
        missing = _missing(db, assoc, str(rules.archive), known)
    if isinstance(missing, NoAnswer):
        return [], patience.ended or missing.reason
    if not missing:  # it came in the meantime
        return [], ""
    if rules.fetch == "move":
        return missing, archive.move(peer, timeouts, study_uid, missing, patience)
    return missing, archive.get(peer, timeouts, study_uid, missing, patience, take, syntaxes)


def _peer(settings: Settings) -> Peer:
    destination = settings.destination[str(settings.completeness.archive)]
    return Peer.of(destination, settings)


def _silent(name: str, reason: str) -> str:
    return f"{name} did not say what it has of it: {reason}"
