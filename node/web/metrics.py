"""`/metrics` in the Prometheus text format 0.0.4. Labels are states, stages and names from the configuration alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping

from node.settings import Settings
from node.states import DeliveryState, JobState, StudyState
from node.store.db import Database
from node.web import queries
from node.web.health import Health

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = {"study": StudyState, "job": JobState, "delivery": DeliveryState}
_PLURAL = {"study": "studies", "job": "jobs", "delivery": "deliveries"}

Sample = tuple[Mapping[str, str], float]


def render(db: Database, settings: Settings, health: Health) -> str:
    """Return every metric; a state that nothing is in is 0, not absent."""
    counts = queries.counts(db)
    parts = []
    for table, states in _STATES.items():
        samples = [({"state": state.value}, float(counts[table].get(state.value, 0))) for state in states]
        parts.append(_metric(f"wetread_{_PLURAL[table]}", f"{_PLURAL[table].capitalize()} by state.", samples))
    free = shutil.disk_usage(settings.spool.url).free
    stages = [({"stage": name}, 0.0 if why else 1.0) for name, why in health.stages().items()]
    return "".join(
        (
            *parts,
            _metric("wetread_instances", "Instances in the spool's index.", [({}, float(queries.instance_count(db)))]),
            _metric("wetread_spool_free_bytes", "Free space of the spool's file system.", [({}, float(free))]),
            _metric("wetread_stage_up", "1 while a stage works, 0 while it fails.", stages),
        )
    )


def _metric(name: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:.0f}")
    return "\n".join(lines) + "\n"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
