"""`/metrics`: what the database and the stages say, set into the node's own registry when the page is asked for."""

from __future__ import annotations

import shutil

from node.metrics import CONTENT_TYPE as CONTENT_TYPE
from node.metrics import Registry
from node.settings import Settings
from node.states import DeliveryState, JobState, StudyState
from node.store.db import Database
from node.web import queries
from node.web.health import STAGES, Health

_STATES = {"study": StudyState, "job": JobState, "delivery": DeliveryState}
_PLURAL = {"study": "studies", "job": "jobs", "delivery": "deliveries"}


def render(db: Database, settings: Settings, health: Health, registry: Registry) -> str:
    """Return every metric of the node; a state that nothing is in is 0, not absent."""
    counts = queries.counts(db)
    for table, states in _STATES.items():
        name = _PLURAL[table]
        gauge = registry.gauge(f"wetread_{name}", f"{name.capitalize()} by state.", state=list(states))
        for state in states:
            gauge.set(counts[table].get(state.value, 0), state=state.value)
    registry.gauge("wetread_instances", "Instances in the spool's index.").set(queries.instance_count(db))
    free = registry.gauge("wetread_spool_free_bytes", "Free space of the spool's file system.")
    free.set(shutil.disk_usage(settings.spool.url).free)
    up = registry.gauge("wetread_stage_up", "1 while a stage works, 0 while it fails.", stage=STAGES)
    for stage, why in health.stages().items():
        up.set(0 if why else 1, stage=stage)
    return registry.render()
