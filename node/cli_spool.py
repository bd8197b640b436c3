"""`wetread spool`: is everything there that was promised, and nothing else? And a copy of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli_output import config_option, json_option, load_settings, open_database, print_json

if TYPE_CHECKING:
    from node.settings import Settings

_LEDGER = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY = click.Path(exists=True, path_type=Path)
PAGES = ("/", "/models", "/healthz", "/readyz", "/metrics")


@click.group()
def spool() -> None:
    """Check the spool and the database against each other; copy both away and back."""


@spool.command("verify")
@click.option("--sent", type=_LEDGER, metavar="FILE", help="A sender's ledger: all it names must be here.")
@click.option("--archive", type=_LEDGER, metavar="FILE", help="An archive's ledger: it must have what was filed.")
@click.option("--quick", is_flag=True, help="Do not read the files, only see that they are there.")
@click.option("--log", "logs", type=_ANY, multiple=True, metavar="FILE", help="A log, or a folder of them; repeatable.")
@click.option("--audit", "trails", type=_LEDGER, multiple=True, metavar="FILE", help="Audit trails. [default: its own]")
@click.option("--canary", "canaries", multiple=True, metavar="TEXT", help="Text that must be nowhere but in the spool.")
@click.option("--drained", type=click.FloatRange(0), metavar="SECONDS", help="Nothing may have been due for longer.")
@config_option
@json_option
def verify(
    sent: Path | None, archive: Path | None, quick: bool, logs: tuple[Path, ...], trails: tuple[Path, ...],
    canaries: tuple[str, ...], drained: float | None, config: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Check every invariant of the node, on any state folder; exit status 1 if one is violated.

    It changes nothing and may run beside the node. Ledgers are JSON lines: sop_instance_uid, sha256, status.
    """
    from dataclasses import asdict

    from node import clock
    from node.settings import state_folder
    from node.store import invariants
    from node.store.spool import Spool

    settings = load_settings(config)
    db = open_database(config)
    place = Spool(settings.spool.url, settings.spool.refuse_below)
    state = state_folder(settings)
    own = (state / "audit.log",) if db.dialect == "sqlite" and not trails else ()
    beside = invariants.Beside(
        state=state, logs=logs, pages=_pages(settings), canaries=canaries, trails=trails + own,
        waiting=_waiting(settings, state) if drained is not None else {}, drained_s=drained,
    )  # fmt: skip
    found = invariants.check(
        db, place, clock.now(), sent=sent, archive=archive, ae_title=settings.node.ae_title, quick=quick, beside=beside
    )
    db.close()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _print(found)
    return 1 if found else 0


@spool.command("backup")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@config_option
def backup(folder: Path, config: Path | None) -> None:
    """Copy database and spool into FOLDER, beside the running node; again into the same folder takes what is new."""
    from node.store.backup import backup as copy
    from node.store.spool import Spool

    settings = load_settings(config)
    db = open_database(config)
    count = copy(db, Spool(settings.spool.url, settings.spool.refuse_below), folder)
    db.close()
    click.echo(f"{folder} has a copy of the database and the spool; {count} files were new.")


@spool.command("restore")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@config_option
def restore(folder: Path, config: Path | None) -> None:
    """Put a copy made by `backup` in place; neither node nor worker may run. An old database is kept beside it."""
    from node.errors import Permanent
    from node.settings import state_folder
    from node.store.backup import restore as put_back
    from node.store.engine import sqlite_file
    from node.store.locks import alone

    settings = load_settings(config)
    if (database := sqlite_file(settings.database.url)) is None:
        raise Permanent("The database is PostgreSQL: restore it with pg_restore, then copy the spool's folder back.")
    with alone(state_folder(settings)):
        count = put_back(folder, database, settings.spool.url)
    click.echo(f"{count} files were put back. Now start the node: it takes in what came after the copy was made.")


def _pages(settings: Settings) -> Mapping[str, bytes]:
    """Return what the node's own addresses answer to somebody without a token; nothing where no node runs."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    found: dict[str, bytes] = {}
    for page in PAGES:
        address = f"http://{settings.web.bind}:{settings.web.port}{page}"
        try:
            with urlopen(address, timeout=5.0) as answer:
                found[address] = answer.read(2**20)
        except HTTPError as refusal:
            found[address] = refusal.read(2**20)
        except (URLError, OSError, ValueError):
            break
    return found


def _waiting(settings: Settings, state: Path) -> Mapping[str, int]:
    """Return how many messages wait in each queue; nothing where the broker does not answer."""
    from node import broker

    return broker.waiting(settings, state)


def _print(found: list[Any]) -> None:
    for finding in found:
        click.echo(f"{finding.invariant:3}  {finding.entity}: {finding.what}. {finding.remedy}")
    click.echo(f"{len(found)} findings." if found else "Everything is as it must be.")


COMMANDS = (spool,)
