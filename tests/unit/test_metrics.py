"""Metrics and the audit trail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.audit import Audit, AuditEvent, Outcome
from node.metrics import Registry


def test_the_page_is_prometheus_text() -> None:
    registry = Registry()
    counter = registry.counter("wetread_x_total", "Things.", peer=["CT 1", 'a"b\\c'])
    counter.add(peer="CT 1")
    counter.add(2, peer="CT 1")
    counter.add(peer='a"b\\c')
    registry.gauge("wetread_y", "A level.").set(0.5)
    registry.probe("wetread_z", "Read when asked.", lambda: 7)
    assert registry.render() == (
        "# HELP wetread_x_total Things.\n# TYPE wetread_x_total counter\n"
        'wetread_x_total{peer="CT 1"} 3\nwetread_x_total{peer="a\\"b\\\\c"} 1\n'
        "# HELP wetread_y A level.\n# TYPE wetread_y gauge\nwetread_y 0.5\n"
        "# HELP wetread_z Read when asked.\n# TYPE wetread_z gauge\nwetread_z 7\n"
    )


def test_a_stranger_cannot_make_labels() -> None:
    counter = Registry().counter("wetread_x_total", "Things.", peer=["CT"])
    for n in range(1000):
        counter.add(peer=f"SCAN{n}")
    assert counter.value(peer="other") == 1000
    assert len(counter.lines()) == 3


def test_a_name_has_one_kind_and_its_labels() -> None:
    registry = Registry()
    counter = registry.counter("wetread_x_total", "Things.", peer=["CT"])
    assert registry.counter("wetread_x_total", "Things.", peer=["CT"]) is counter
    with pytest.raises(ValueError, match="is a counter"):
        registry.gauge("wetread_x_total", "Things.")
    with pytest.raises(ValueError, match="has the labels"):
        counter.add(study="1.2.3")


def test_the_audit_trail_only_grows_and_each_line_is_one_event(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.log"
    first = Audit(path, now=lambda: 0.0)
    first.write(AuditEvent.ASSOCIATION_REJECTED, Outcome.SERIOUS_FAILURE, calling_ae="X\nY", address="10.0.0.1")
    first.close()
    second = Audit(path, now=lambda: 1.0)
    second.write(AuditEvent.INSTANCES_TRANSFERRED, Outcome.SUCCESS, study_instance_uid="1.2.3", count=40)
    second.close()
    rejected, transferred = [json.loads(line) for line in path.read_text().splitlines()]
    assert (rejected["event"], rejected["outcome"], rejected["calling_ae"]) == ("110113", 8, "X\\nY")
    assert (transferred["event"], transferred["count"], transferred["time"]) == ("110104", 40, "1970-01-01T00:00:01Z")
