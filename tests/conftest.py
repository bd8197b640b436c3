"""Fixtures that several test files need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.store.db import Database
from tests.postgres import Cluster

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real DICOM studies beside the checkout, or `WETREAD_DATA`; absent outside the project's CI."""
    folder = Path(os.environ.get("WETREAD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real DICOM studies are absent (set WETREAD_DATA)")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Cluster]:
    """A PostgreSQL server that the tests of one process share."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres_server: Cluster) -> str:
    """The URL of a PostgreSQL database of the test's own."""
    return postgres_server.make()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once on SQLite and once on PostgreSQL."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/database/wetread.db"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, empty database, once on SQLite and once on PostgreSQL."""
    db = Database(database_url)
    yield db
    db.close()


_LONG = ("test_train.py", "test_train_killed.py", "test_states.py", "test_segment.py", "test_words.py")
"""Files of `tests/unit` that take half a minute and more, and stand near the end of the alphabet."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what is long and late, or one of several processes would end long after the others."""
    items.sort(key=lambda item: item.path.name not in _LONG)


_MAY_BE_ABSENT = ("real DICOM studies are absent", "no GPU", "network namespaces are not allowed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With `WETREAD_CI` set, a test that skips itself fails: a guarantee that was not looked at is not shown."""
    report = yield
    reason = str(report.longrepr[2]) if report.skipped and isinstance(report.longrepr, tuple) else ""
    if os.environ.get("WETREAD_CI") and reason and not any(word in reason for word in _MAY_BE_ABSENT):
        report.outcome, report.longrepr = "failed", f"skipped, which WETREAD_CI does not allow: {reason}"
    return report
