"""`wetread spool verify`: is everything there that was promised, and nothing else?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli_output import config_option, json_option, load_settings, open_database, print_json

_LEDGER = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def spool() -> None:
    """Check the spool and the database against each other."""


@spool.command("verify")
@click.option("--sent", type=_LEDGER, metavar="FILE", help="A sender's ledger: all it names must be here.")
@click.option("--archive", type=_LEDGER, metavar="FILE", help="An archive's ledger: it must have what was filed.")
@click.option("--quick", is_flag=True, help="Do not read the files, only see that they are there.")
@config_option
@json_option
def verify(sent: Path | None, archive: Path | None, quick: bool, config: Path | None, as_json: bool) -> int:
    """Check every invariant that a state folder can show; exit status 1 if one is violated.

    It changes nothing and may run beside the node. Ledgers are JSON lines: sop_instance_uid, sha256, status.
    """
    from dataclasses import asdict

    from node import clock
    from node.store import invariants
    from node.store.spool import Spool

    settings = load_settings(config)
    db = open_database(config)
    place = Spool(settings.spool.url, settings.spool.refuse_below)
    title = settings.node.ae_title
    found = invariants.check(db, place, clock.now(), sent=sent, archive=archive, ae_title=title, quick=quick)
    db.close()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _print(found)
    return 1 if found else 0


def _print(found: list[Any]) -> None:
    for finding in found:
        click.echo(f"{finding.invariant:3}  {finding.entity}: {finding.what}. {finding.remedy}")
    click.echo(f"{len(found)} findings." if found else "Everything is as it must be.")


COMMANDS = (spool,)
