from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from node.configvalues import parse_duration, parse_size
from node.settings import Destination, Peer, Route, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

_TABLES: dict[str, type[BaseModel]] = {
    f"[{name}]": field.annotation for name, field in Settings.model_fields.items() if isinstance(field.annotation, type)
}
_TABLES |= {"[[peer]]": Peer, "[destination.NAME]": Destination, "[[route]]": Route}


def documented(table: str) -> dict[str, str]:
    """Return key → default as the page's table for `table` says."""
    section = re.search(rf"(?ms)^### `{re.escape(table)}`.*?(?=^##|\Z)", PAGE)
    assert section, f"docs/configuration.md has no section {table}"
    return dict(re.findall(r"(?m)^\| `(\w+)` \| (.+?) \|", section[0]))


@pytest.mark.parametrize("table", _TABLES)
def test_every_key_is_documented_and_no_other(table: str) -> None:
    assert documented(table).keys() == _TABLES[table].model_fields.keys()


@pytest.mark.parametrize("table", _TABLES)
def test_documented_defaults_are_the_real_ones(table: str) -> None:
    for key, shown in documented(table).items():
        assert _says(shown, _TABLES[table].model_fields[key].get_default(call_default_factory=True)), (key, shown)


def _says(shown: str, default: Any) -> bool:
    if default is PydanticUndefined:
        return shown == "required"
    if not shown.startswith("`"):
        return shown in ("none", "every study", "every series") and not default
    value = tomllib.loads(f"value = {shown.strip('`')}")["value"]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return bool(
            value
            == (list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default)
        )
    return default in (value, *_parsed(value))


def _parsed(value: Any) -> list[float]:
    found: list[float] = []
    for parse in (parse_duration, parse_size):
        try:
            found.append(parse(value))
        except ValueError:
            continue
    return found


def test_the_sections_are_those_of_the_settings() -> None:
    assert {table.strip("[]").split(".")[0] for table in _TABLES} == {*Settings.model_fields, "route"}
