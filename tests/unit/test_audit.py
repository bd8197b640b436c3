"""The audit trail: what a disk cut off takes no other line with it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node import audit
from node.audit import Audit, AuditEvent, Outcome


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can become longer: what is written beyond is cut off, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def peers(path: Path) -> list[str | None]:
    return [line and line["peer"] for line in audit.read(path)]


def write(trail: Audit, peer: str) -> None:
    trail.write(AuditEvent.ASSOCIATION_ACCEPTED, Outcome.SUCCESS, peer=peer)


def test_a_line_that_a_full_disk_cut_off_takes_none_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    trail = Audit(path)
    write(trail, "first")
    with disk_of(path.stat().st_size + 40):
        write(trail, "cut off")
        write(trail, "refused")
    assert [record.message for record in caplog.records] == ["The audit trail refused a line."] * 2
    write(trail, "second")
    write(trail, "third")
    trail.close()
    assert peers(path) == ["first", "second", "third"]


def test_a_line_that_a_crash_cut_off_takes_not_the_first_of_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text('{"time": "2026-01-01T00:00:00Z", "eve')
    for peer in ("first", "second"):
        trail = Audit(path)
        write(trail, peer)
        trail.close()
    assert peers(path) == ["first", "second"]
    path.write_text("somebody else\n" + path.read_text())
    assert peers(path) == [None, "first", "second"]
