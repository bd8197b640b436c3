"""A short, repeatable share of the fuzzing; `make fuzz MINUTES=60` does more of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import __main__ as fuzz
from tests.fuzz import targets

SHORT = settings(
    derandomize=True, deadline=None, max_examples=250, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", autouse=True)
def listener() -> Iterator[None]:
    hook = threading.excepthook
    yield
    threading.excepthook = hook
    targets.let_go()


@pytest.fixture(autouse=True)
def counted() -> None:
    targets.count_from_here()


def test_growth_is_a_finding() -> None:
    kept: list[bytes] = []
    targets.bounded(lambda data: kept.append(b"1" * 2**20), b"")
    with pytest.raises(targets.Finding, match="grew by"):
        targets.bounded(lambda data: kept.append(b"1" * (targets.MOST_GROWTH + 2**20)), b"")


@pytest.mark.parametrize("name", ["precheck", "body", "config"])
def test_no_mutation_raises_hangs_or_grows(name: str) -> None:
    @SHORT
    @given(st.binary(max_size=400))
    def tried(data: bytes) -> None:
        targets.bounded(targets.TARGETS[name], data)

    tried()


def test_the_listener_outlives_mutations() -> None:
    @settings(SHORT, max_examples=60)
    @given(st.binary(max_size=200))
    def tried(data: bytes) -> None:
        targets.bounded(targets.pdus, data)

    tried()
    assert targets._node().echo() == 0x0000


def test_the_long_run_counts_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--minutes", "0.02", "--targets", "body", "--without-atheris"]) == 0
    assert "body: " in capsys.readouterr().out
