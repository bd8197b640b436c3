"""A complete study becomes jobs: COMPLETE → ROUTED and its jobs in one transaction, each decision with its reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from node import clock
from node.bundles import Bundle
from node.clock import Clock
from node.crashpoints import reach
from node.errors import Permanent, Unsuitable
from node.route import matching, selection
from node.settings import Route, Routes, Settings
from node.store import studies
from node.store.db import Database
from node.store.jobs import NewJob
from node.store.spool import Spool
from node.study import AttributeValue, Instance, Series, Study, group, read_instance

log = logging.getLogger(__name__)

Bundles = Mapping[str, Bundle]
Held = dict[tuple[str, int], frozenset[str]]
"""(Study Instance UID, revision) → the Model Bundles that are not there and that a complete study waits for."""
PRIORITIES: Mapping[str, int] = {"routine": 0, "high": 1, "stat": 2}
_ASKED = ("RequestedProcedurePriority", "StudyPriorityID")
"""Where images say how urgent they are: (0040,1003), and (0032,000C) of old; STAT, HIGH, ROUTINE, MEDIUM, LOW."""
_MAX_REASON = 2000
"""Characters of a study's reason: enough for a person, bounded for a study of a thousand series."""


@dataclass(frozen=True)
class Decision:
    """What one route says about one series and one bundle; no series where the route leaves the whole study."""

    route: str
    bundle: str
    series_instance_uid: str
    series: str
    read: bool
    reasons: tuple[str, ...]
    instances: tuple[Instance, ...] = ()

    @property
    def words(self) -> str:
        """The decision as one line for people."""
        what = f"{self.series} ({self.series_instance_uid})" if self.series_instance_uid else "the study"
        verb = "reads" if self.read else "leaves"
        return f"{self.bundle or self.route} {verb} {what}: {'; '.join(self.reasons)}"


def tick(
    db: Database,
    spool: Spool,
    settings: Settings,
    routes: Routes,
    bundles: Bundles,
    clock: Clock = clock.now,
    held: Held | None = None,
) -> int:
    """Route every COMPLETE study; return how many moved. Raises `DatabaseUnavailable`.

    A study for which a route applies that names a bundle which is not there waits for it, and is kept in `held`.
    """
    moved, held, found = 0, {} if held is None else held, studies.to_route(db)
    for gone in held.keys() - set(found):
        del held[gone]
    for study_uid, revision in found:
        if not held.get((study_uid, revision), frozenset()) - bundles.keys():
            moved += _route(db, spool, routes, bundles, study_uid, revision, clock(), held)
    return moved


def explain(study: Study, routes: Routes, bundles: Bundles) -> list[Decision]:
    """Return, per route, bundle and series, whether the series is read and why; the same code that routes."""
    return [decision for route in routes.route for decision in _explain(study, route, bundles)]


def study_attributes(study: Study) -> dict[str, AttributeValue]:
    """Return what `when` sees: each attribute with the values of all series, and the counts of PS3.4 §C.6.1.1."""
    found: dict[str, tuple[str | float, ...]] = {}
    for series in study.series:
        for keyword, value in series.attributes.items():
            found[keyword] = tuple(dict.fromkeys((*found.get(keyword, ()), *matching.values(value))))
    found["ModalitiesInStudy"] = found.get("Modality", ())
    found["NumberOfStudyRelatedSeries"] = (float(len(study.series)),)
    found["NumberOfStudyRelatedInstances"] = (float(sum(len(s.instances) for s in study.series)),)
    return {keyword: values for keyword, values in found.items() if values}


def priority(study: Study, route: Route) -> int:
    """Return how urgently a route reads a study: as it says, or as any image of the study does, whichever is more."""
    attributes = study_attributes(study)
    words = [str(word).strip().lower() for keyword in _ASKED for word in matching.values(attributes.get(keyword))]
    return max(PRIORITIES.get(word, 0) for word in (route.priority, *words))


def _explain(study: Study, route: Route, bundles: Bundles) -> list[Decision]:
    try:
        match = matching.matches(study_attributes(study), route.when)
        if not match.ok:
            return [Decision(route.name, "", "", "", False, match.reasons)]
        return [d for model in route.models for d in _explain_bundle(study, route, model, bundles)]
    except Permanent as error:
        return [Decision(route.name, "", "", "", False, (f"route {route.name} cannot be applied: {error}",))]


def _explain_bundle(study: Study, route: Route, model: str, bundles: Bundles) -> list[Decision]:
    bundle = bundles.get(model)
    if bundle is None:
        reason = f'there is no Model Bundle "{model}"; see `wetread models list`'
        return [Decision(route.name, model, "", "", False, (reason,))]
    return [
        Decision(route.name, model, c.series.series_instance_uid, _label(c.series), c.chosen, c.reasons, c.instances)
        for c in selection.select(study.series, bundle, route)
    ]


def _route(
    db: Database, spool: Spool, routes: Routes, bundles: Bundles, study_uid: str, revision: int, now: float, held: Held
) -> bool:
    study, unread = _read_study(db, spool, study_uid, revision)
    if absent := _absent(study, routes, bundles):
        held[study_uid, revision] = absent
        _wait_for(db, study_uid, revision, absent)
        return False
    held.pop((study_uid, revision), None)
    removed = studies.removed_before(db, study_uid, revision)
    decisions = [_unless_partial(d, bundles, removed) for d in explain(study, routes, bundles)]
    by_name = {route.name: route for route in routes.route}
    jobs = [_job(study, revision, d, by_name[d.route], bundles[d.bundle]) for d in decisions if d.read]
    reason = _reason(decisions, unread, bool(study.series))
    reach("route.before")
    if not studies.routed(db, study_uid, revision, jobs, reason, now):
        return False
    log.info(
        "Study %s revision %d was routed: %d jobs.", study_uid, revision, len(jobs), extra={"action": "study_routed"}
    )
    return True


def _absent(study: Study, routes: Routes, bundles: Bundles) -> frozenset[str]:
    """Return the bundles that are not there of the routes that this study takes."""
    lacking = [route for route in routes.route if not set(route.models) <= bundles.keys()]
    taken: set[str] = set()
    for route in lacking:
        with suppress(Permanent):  # a route that cannot be applied is told of with the others
            if matching.matches(study_attributes(study), route.when).ok:
                taken |= set(route.models) - bundles.keys()
    return frozenset(taken)


def _wait_for(db: Database, study_uid: str, revision: int, absent: frozenset[str]) -> None:
    names = ", ".join(sorted(absent))
    reason = f"waits for Model Bundle {names}, which is not there or does not load; see `wetread models check {names}`"
    studies.waits(db, study_uid, revision, reason)
    log.warning("Study %s %s", study_uid, reason, extra={"action": "bundle_absent", "study_instance_uid": study_uid})


def _unless_partial(decision: Decision, bundles: Bundles, removed: Mapping[str, int]) -> Decision:
    """Leave a volume of which retention has removed a part: what is left of it would give a wrong result."""
    series = {decision.series_instance_uid, *(instance.series_instance_uid for instance in decision.instances)}
    gone = sum(removed.get(uid, 0) for uid in series)
    if not (decision.read and gone and bundles[decision.bundle].dicom.dimensions == 3):
        return decision
    reason = f"{gone} of its instances were removed by retention (spool.keep_images); send the whole series again"
    return replace(decision, read=False, reasons=(reason,))


def _read_study(db: Database, spool: Spool, study_uid: str, revision: int) -> tuple[Study, list[str]]:
    instances, unread = [], []
    for row in studies.manifest(db, study_uid, revision):
        try:
            instances.append(read_instance(spool.path(row.path)))
        except Unsuitable as error:
            unread.append(str(error))
    found = group(instances)
    return next((s for s in found if s.study_instance_uid == study_uid), Study(study_uid, ())), unread


def _job(study: Study, revision: int, decision: Decision, route: Route, bundle: Bundle) -> NewJob:
    """Return the job for one decision; where two routes order the same one, `store` makes it serve both."""
    series = next(s for s in study.series if s.series_instance_uid == decision.series_instance_uid)
    whole = decision.instances == series.instances
    return NewJob(
        study_instance_uid=study.study_instance_uid,
        revision=revision,
        series_instance_uid=decision.series_instance_uid,
        bundle=bundle.name,
        bundle_version=bundle.version,
        bundle_digest=bundle.digest,
        route=route.name,
        results=route.results,
        send_to=route.send_to,
        decline=route.decline,
        instances=() if whole else tuple(i.sop_instance_uid for i in decision.instances),
        priority=priority(study, route),
    )


def _reason(decisions: Sequence[Decision], unread: Sequence[str], has_images: bool) -> str:
    """Say for people what is read, and what is not only where nothing is."""
    read = [d.words for d in decisions if d.read]
    lines = read or [d.words for d in decisions] or ["No route is configured."]
    if not (has_images or unread):
        lines = ["Nothing but our own results is here; there is nothing to read."]
    return " | ".join([*lines, *unread])[:_MAX_REASON]


def _label(series: Series) -> str:
    attributes = series.attributes
    modality = matching.values(attributes.get("Modality"))
    description = matching.values(attributes.get("SeriesDescription"))
    return " ".join(str(v) for v in (*modality[:1], *description[:1])) or "series"
