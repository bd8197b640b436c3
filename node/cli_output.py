"""What the commands share: the `--config` and `--json` options, and how rows are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from node.settings import Routes, Settings
    from node.store.db import Database

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """Add `--config F`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="wetread.toml to use, routes.toml beside it. [default: $WETREAD_CONFIG, ./, /etc/wetread/, as shipped]",
    )(command)


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def load_settings(config: Path | None) -> Settings:
    """Return the settings of `--config` or of the default file."""
    from node import settings

    return settings.load_settings(config or settings.find_config())


def load_all(config: Path | None) -> tuple[Settings, Routes]:
    """Return the settings and the routes that lie beside them; a route may name a bundle that was here and is gone."""
    from node import settings, trust

    path = config or settings.find_config()
    loaded = settings.load_settings(path)
    return loaded, settings.load_routes(path.parent / "routes.toml", loaded, trust.pinned(loaded))


def open_database(config: Path | None) -> Database:
    """Open the node's database for a listing; one that does not exist yet is an error, not made."""
    from node.errors import Permanent
    from node.store.db import Database
    from node.store.engine import sqlite_file

    url = load_settings(config).database.url
    if (where := sqlite_file(url)) is not None and not where.is_file():
        raise Permanent(f"There is no database at {where}: no node has run with this configuration; is --config right?")
    return Database(url)


def print_json(value: Any) -> None:
    """Print `value` as JSON; whatever JSON has no word for is shown as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Print `rows` as a table of `columns`, or the sentence `empty`; the last column may be of any length."""
    if not rows:
        click.echo(empty)
        return
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    titles = [column.removesuffix("_at").removesuffix("_uid").replace("_", " ").upper() for column in columns]
    widths = [max(len(line[i]) for line in (titles, *cells)) for i in range(len(columns))]
    for line in (titles, *cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(text.rstrip())


def print_details(item: Mapping[str, Any], indent: str = "") -> None:
    """Print every field of `item`, nested lists of rows below it."""
    plain = {key: value for key, value in item.items() if not isinstance(value, list | tuple) or not _is_rows(value)}
    width = max((len(key) for key in plain), default=0)
    for key, value in plain.items():
        click.echo(f"{indent}{key.ljust(width)}  {_cell(key, value)}".rstrip())
    for key, value in item.items():
        if key not in plain:
            click.echo(f"{indent}{key}:")
            for row in value:
                print_details(row, indent + "    ")
                click.echo()


def _is_rows(value: Sequence[Any]) -> bool:
    return bool(value) and isinstance(value[0], Mapping)


def _cell(column: str, value: Any) -> str:
    from node.clock import to_iso

    if (isinstance(value, float) and column.endswith(("_at", "_until", "_before"))) or column == "at":
        return to_iso(value) or "" if value else ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else " ".join(str(value).split())
