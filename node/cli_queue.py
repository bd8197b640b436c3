"""`wetread studies | jobs | deliveries | dead`: what the database knows, and dead letters a person can revive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from node.cli_output import (
    config_option,
    json_option,
    load_settings,
    open_database,
    print_details,
    print_json,
    print_rows,
)

_COLUMNS = {
    "studies": ("study_instance_uid", "state", "revision", "last_received_at", "reason"),
    "jobs": ("id", "state", "attempts", "bundle", "study_instance_uid", "summary", "reason"),
    "deliveries": ("id", "state", "attempts", "destination", "kind", "last_status", "reason"),
    "dead": ("kind", "id", "attempts", "what", "reason"),
}

_PAGE = 1000


def _store(noun: str) -> ModuleType:
    from importlib import import_module

    return import_module(f"node.store.{noun}")


def _noun(noun: str, one: str) -> click.Group:
    """Return the group `wetread NOUN` with its `list` and `show`."""

    @click.group(noun, help=f"List {noun}, or show one with its history.")
    def group() -> None: ...

    @group.command("list", help=f"List {noun}, the latest first.")
    @click.option("--state", metavar="STATE", help="Only those in this state.")
    @click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
    @click.option("--offset", type=click.IntRange(0), default=0, help="Leave out so many.")
    @config_option
    @json_option
    def list_(state: str | None, limit: int, offset: int, config: Path | None, as_json: bool) -> None:
        rows = _store(noun).listing(open_database(config), state=_state(noun, state), limit=limit, offset=offset)
        print_json(rows) if as_json else print_rows(rows, _COLUMNS[noun], f"There are no {noun}.")

    @group.command("show", help=f"Show one {one} with everything that happened to it.")
    @click.argument("name", metavar="UID" if noun == "studies" else "ID")
    @config_option
    @json_option
    def show(name: str, config: Path | None, as_json: bool) -> None:
        item = _store(noun).show(open_database(config), name)
        print_json(item) if as_json else print_details(item)

    return group


def _state(noun: str, state: str | None) -> str | None:
    from node import states

    known = {"studies": states.StudyState, "jobs": states.JobState, "deliveries": states.DeliveryState}[noun]
    if state is not None and state.upper() not in list(known):
        raise click.BadParameter(f"{state!r} is none of {', '.join(known)}", param_hint="--state")
    return state.upper() if state else None


@click.group(short_help="Jobs and deliveries that wait for a person.")
def dead() -> None:
    """List dead letters: jobs and deliveries that wait for a person; retry or drop them."""


@dead.command("list")
@config_option
@json_option
def dead_list(config: Path | None, as_json: bool) -> None:
    """List all dead jobs and deliveries with their reasons."""
    rows = dead_letters(open_database(config))
    print_json(rows) if as_json else print_rows(rows, _COLUMNS["dead"], "There are no dead letters.")


@dead.command("show")
@click.argument("name", metavar="ID")
@config_option
@json_option
def dead_show(name: str, config: Path | None, as_json: bool) -> None:
    """Show one dead letter with everything that happened to it."""
    db = open_database(config)
    item = _store(_find(db, name)).show(db, name)
    print_json(item) if as_json else print_details(item)


@dead.command("retry")
@click.argument("names", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@config_option
def dead_retry(names: tuple[str, ...], everything: bool, config: Path | None) -> None:
    """Give dead letters a new start, as if just made."""
    _each(names, everything, config, "retry", "will be tried again")


@dead.command("drop")
@click.argument("names", metavar="ID...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@config_option
def dead_drop(names: tuple[str, ...], everything: bool, config: Path | None) -> None:
    """Give dead letters up; they stay on record as DROPPED."""
    _each(names, everything, config, "drop", "is given up")


def dead_letters(db: Any) -> list[dict[str, Any]]:
    """Return the dead jobs and deliveries, each with its `kind` and, in `what`, what it is about."""
    jobs = [
        {**row, "kind": "job", "what": f"{row['bundle']} on study {row['study_instance_uid']}"}
        for row in _dead_rows("jobs", db)
    ]
    deliveries = [
        {
            **row,
            "document": row.get("kind", ""),
            "kind": "delivery",
            "what": f"{row.get('kind', '')} to {row['destination']}",
        }
        for row in _dead_rows("deliveries", db)
    ]
    return jobs + deliveries


def _dead_rows(noun: str, db: Any) -> list[dict[str, Any]]:
    """Return all that is DEAD, page by page: after an outage there are thousands."""
    found: list[dict[str, Any]] = []
    while page := _store(noun).listing(db, state="DEAD", limit=_PAGE, offset=len(found)):
        found += page
    return found


def _each(names: tuple[str, ...], everything: bool, config: Path | None, verb: str, done: str) -> None:
    from node import clock

    if bool(names) == everything:
        raise click.UsageError("name dead letters by their ids, or say --all")
    db = open_database(config)
    for name in [row["id"] for row in dead_letters(db)] if everything else names:
        noun = _find(db, name)
        act: Callable[..., Any] = getattr(_store(noun), verb)
        act(db, name, clock.now())
        click.echo(f"{noun.removesuffix('s').replace('ie', 'y')} {name} {done}")


def _find(db: Any, name: str) -> str:
    """Return `jobs` or `deliveries`, whichever has the dead letter `name`."""
    from node.errors import NotFound

    for noun in ("jobs", "deliveries"):
        with suppress(NotFound):
            if _store(noun).show(db, name)["state"] == "DEAD":
                return noun
    raise NotFound(f"There is no dead letter {name}; nothing was changed. `wetread dead list` shows them.")


studies = _noun("studies", "study")


@studies.command("release")
@click.argument("name", metavar="UID")
@click.option("--keep", type=click.Choice(["first", "last"]), required=True, help="Which copies stand.")
@config_option
def studies_release(name: str, keep: Any, config: Path | None) -> None:
    """Let a study go on that is held as CONFLICT: its instances came twice with different pixels.

    The copies that do not stand stay in the spool and on record. With the first ones nothing is read again.
    """
    from node import clock
    from node.audit import Audit, AuditEvent, Details, Outcome
    from node.errors import DatabaseUnavailable
    from node.settings import state_folder
    from node.store import conflicts

    audit = Audit(state_folder(load_settings(config)) / "audit.log")
    said = Details(reason=f"released by a person: the {keep} copies stand", study_instance_uid=name)

    def told(count: int) -> None:
        audit.write(AuditEvent.CONFLICT_RELEASED, Outcome.SUCCESS, **(said | {"count": count}))

    try:
        left_out = conflicts.release(open_database(config), name, keep, clock.now(), told)
    except DatabaseUnavailable:
        audit.write(AuditEvent.CONFLICT_RELEASED, Outcome.SERIOUS_FAILURE, **said)
        raise
    finally:
        audit.close()
    click.echo(f"study {name} goes on with the {keep} copies; {left_out} others stay on record")


COMMANDS = (studies, _noun("jobs", "job"), _noun("deliveries", "delivery"), dead)
