"""Every row of the table has a test that exists, and every row with a status has objects that are sent."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.bad_input.objects import objects
from tests.bad_input.rows import ROWS, Row

TESTS = Path(__file__).resolve().parents[1]
SENT = {one.row for one in objects()}


def test_there_are_sixty_rows() -> None:
    assert [row.number for row in ROWS] == list(range(1, 61))


@pytest.mark.parametrize("row", ROWS, ids=[f"B{row.number}" for row in ROWS])
def test_a_row_has_a_test(row: Row) -> None:
    assert row.tests, f"B{row.number} has no test"
    for name in row.tests:
        file, _, function = name.partition("::")
        assert function in functions(TESTS / file), f"B{row.number}: there is no {name}"
    assert (row.number in SENT) == any("test_objects.py::test_through_both_doors" in name for name in row.tests)


def functions(path: Path) -> set[str]:
    """The tests of a file that pytest would run: functions on the module's level that nothing skips always."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}
