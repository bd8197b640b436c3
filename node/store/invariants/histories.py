"""I9: each history is a legal path of its state machine that ends where the row is, and every claim had a new fence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from node.states import DeliveryState, JobState, StudyState
from node.store.db import KEY, MOVES, rows
from node.store.invariants.finding import Finding

_FIRST = {"study": StudyState.RECEIVING, "job": JobState.QUEUED, "delivery": DeliveryState.PENDING}
_WORKING = {"job": JobState.RUNNING, "delivery": DeliveryState.SENDING}
_FENCE = re.compile(r"fence (\d+)$")
_REMEDY = "Something other than wetread has written to the database: find out what; the events are as they happened."


def check(connection: sa.Connection) -> Iterator[Finding]:
    """Yield every entity whose events do not lead to its state by legal moves."""
    for entity in _FIRST:
        fence = ", fence" if entity in _WORKING else ""
        statement = f"SELECT {KEY[entity]} AS id, state{fence} FROM {entity}"  # noqa: S608 - our own names
        known = {row["id"]: row for row in rows(connection, statement)}
        events = rows(connection, _EVENTS, entity=entity)
        for name, group in groupby(events, key=lambda event: event["entity_id"]):
            row = known.pop(name, None)
            for what in _faults(entity, row, list(group)):
                yield Finding("I9", f"{entity} {name}", what, _REMEDY)
        for name in known:
            yield Finding("I9", f"{entity} {name}", "it has no history", _REMEDY)


_EVENTS = (
    "SELECT entity_id, number, from_state, to_state, reason FROM event WHERE entity = :entity "
    "ORDER BY entity_id, number"
)


def _faults(entity: str, row: dict[str, Any] | None, events: Sequence[dict[str, Any]]) -> Iterator[str]:
    before = ""
    for number, event in enumerate(events, start=1):
        move = (event["from_state"], event["to_state"])
        legal = move in MOVES[entity] if before else move == ("", _FIRST[entity])
        if event["number"] != number:
            yield f"event {number} is missing"
            return
        if not legal or event["from_state"] != before:
            yield f"event {number}, {move[0] or 'nothing'} → {move[1]}, is no legal move from {before or 'nothing'}"
            return
        before = event["to_state"]
    if row is None:
        yield "it has a history and no row"
    elif row["state"] != before:
        yield f"it is {row['state']}, and its history ends with {before}"
    elif entity in _WORKING:
        yield from _fences(row["fence"], [event for event in events if event["to_state"] == _WORKING[entity]])


def _fences(fence: int, claims: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each claim hands out the next fence; a gap or a repetition means that two workers could have held it."""
    handed = [int(match[1]) for event in claims if (match := _FENCE.search(event["reason"]))]
    if handed != list(range(1, len(claims) + 1)) or fence != len(claims):
        told = ", ".join(map(str, handed)) or "none"
        yield f"its fence is {fence} after {len(claims)} claims with the fences {told}"
