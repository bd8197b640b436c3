"""`/metrics`: what the database and the stages say, set into the node's own registry when the page is asked for.

What is not known now, because the database or the spool does not answer, is left out: an old figure would look well.
"""

from __future__ import annotations

import shutil

from node.errors import WetreadError
from node.metrics import CONTENT_TYPE as CONTENT_TYPE
from node.metrics import Registry
from node.settings import Settings
from node.states import DeliveryState, JobState, StudyState
from node.store.db import Database
from node.web import queries
from node.web.asking import Asker
from node.web.health import STAGES, Health

_STATES = {"study": StudyState, "job": JobState, "delivery": DeliveryState}
_PLURAL = {"study": "studies", "job": "jobs", "delivery": "deliveries"}


class Metrics:
    """What `/metrics` shows; `database` and `spool` are asked through those who do not wait long."""

    def __init__(
        self, db: Database, settings: Settings, health: Health, registry: Registry, database: Asker, spool: Asker
    ) -> None:
        self._db, self._settings, self._health, self._registry = db, settings, health, registry
        self._database, self._spool = database, spool

    def render(self) -> str:
        """Return every metric of the node; a state that nothing is in is 0, one that cannot be counted is absent."""
        self._count()
        self._measure()
        up = self._registry.gauge("wetread_stage_up", "1 while a stage works, 0 while it fails.", stage=STAGES)
        for stage, why in self._health.stages().items():
            up.set(0 if why else 1, stage=stage)
        return self._registry.render()

    def _count(self) -> None:
        up = self._registry.gauge("wetread_database_up", "1 while the database answers, 0 while it does not.")
        instances = self._registry.gauge("wetread_instances", "Instances in the spool's index.")
        gauges = {
            table: self._registry.gauge(
                f"wetread_{_PLURAL[table]}", f"{_PLURAL[table].capitalize()} by state.", state=list(states)
            )
            for table, states in _STATES.items()
        }
        try:
            counts, many = self._database.ask(lambda: (queries.counts(self._db), queries.instance_count(self._db)))
        except WetreadError:
            up.set(0)
            for gauge in (instances, *gauges.values()):
                gauge.clear()
            return
        up.set(1)
        instances.set(many)
        for table, states in _STATES.items():
            for state in states:
                gauges[table].set(counts[table].get(state.value, 0), state=state.value)

    def _measure(self) -> None:
        free = self._registry.gauge("wetread_spool_free_bytes", "Free space of the spool's file system.")
        try:
            free.set(self._spool.ask(lambda: shutil.disk_usage(self._settings.spool.url).free))
        except (WetreadError, OSError):
            free.clear()
