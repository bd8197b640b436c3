"""A small run of `make bench-strangers`: whatever the machine, a known peer is never refused."""

from __future__ import annotations

import json

import pytest

from tests.bench import strangers


def test_a_known_peer_is_never_refused(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--half-open", "300", "--seconds", "2", "--rounds", "1", "--kilobytes", "64", "--json"]
    assert strangers.main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    alone, crowded = told["phases"]
    assert (alone["refused"], crowded["refused"]) == (0, 0)
    assert crowded["with_strangers"]
    assert crowded["associations"] > 0
    assert len(told["p99_ratios"]) == 1
