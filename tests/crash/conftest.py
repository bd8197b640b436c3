"""What the tests of this folder share: one process that has imported everything, and is forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts node, worker and reader without the 2 to 3 s of CPU that their imports take."""
    with Forks() as forks:
        yield forks
