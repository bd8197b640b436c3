"""`wetread models check | trust | new`: may a bundle run, would it run, and how does one begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli_output import config_option, json_option, load_settings, print_details, print_json
from node.errors import BundleError, WetreadError

if TYPE_CHECKING:
    from node.bundles import Bundle
    from node.scan import Code, Scan
    from node.settings import Settings


@click.command("check")
@click.argument("names", metavar="[NAME|DIR]...", nargs=-1)
@click.option("--no-run", is_flag=True, help="Do not run them: look at their files alone.")
@config_option
@json_option
def models_check(names: tuple[str, ...], no_run: bool, config: Path | None, as_json: bool) -> None:
    """Check that bundles are whole and trusted, and let each read a phantom; all of them by default.

    Says how long the reading took, how much memory it needed, the shapes that went in and came out, and what would
    have been written. A bundle that is not trusted is not run.
    """
    from node import bundles

    settings = load_settings(config)
    rows = [_check(name, settings, no_run) for name in names or bundles.names(*settings.worker.folders)]
    if as_json:
        print_json(rows)
    for row in () if as_json else rows:
        click.echo(f"{'OK   ' if row['ok'] else 'ERROR'}  {row['name']}: {row['message']}")
        print_details(row.get("dry_run", {}), "         ")
    if bad := [row["name"] for row in rows if not row["ok"]]:
        raise BundleError(f"These bundles cannot be used: {', '.join(bad)}.")


def _check(name: str, settings: Settings, no_run: bool) -> dict[str, Any]:
    from node import dryrun, trust

    row: dict[str, Any] = {"name": Path(name).name, "ok": False}
    try:
        bundle = find(name, settings)
        row |= {"name": bundle.name, "trust": trust.standing(bundle, settings), "message": check_bundle(bundle)}
        if no_run:
            return row | {"ok": True, "message": f"{row['message']}, {row['trust']}; it was not run"}
        trust.require(bundle, settings)
        return row | {"ok": True, "dry_run": dryrun.dry_run(bundle, settings)}
    except WetreadError as error:
        return row | {"message": str(error)}


def find(name: str, settings: Settings) -> Bundle:
    """Return the bundle called `name`, or the one in the folder `name`; raises `BundleError`."""
    from node import bundles

    if (Path(name) / "configs").is_dir():
        return bundles.load(Path(name).resolve())
    return bundles.find(name, *settings.worker.folders)


def check_bundle(bundle: Bundle) -> str:
    """Return a line on a bundle that is whole; raises `Permanent` naming what is wrong. Runs nothing of it."""
    from node import bundles, conditions, weights

    for wanted in (bundle.dicom.series, *(entry.series for entry in bundle.dicom.channel)):
        conditions.check(wanted)
    found = weights.look(bundles.weights_path(bundle.folder))
    if found.fault:
        raise BundleError(f"Bundle {bundle.title}: {found.fault}")
    return f"{bundle.version}, {found.size / 1e6:.1f} MB, digest {bundle.digest[:12]}"


@click.command("trust")
@click.argument("name", metavar="NAME|DIR", required=False)
@click.option("--look", is_flag=True, help="Show what it would run, and pin nothing.")
@click.option("--all", "everything", is_flag=True, help="Show also what wetread never runs.")
@click.option("--shipped", is_flag=True, help="Pin the bundles that ship with wetread, to make a release.")
@config_option
@json_option
def models_trust(
    name: str | None, look: bool, everything: bool, shipped: bool, config: Path | None, as_json: bool
) -> None:
    """Show what code a bundle would run, and pin its digest in trusted.toml: from then on it may run as it is now."""
    from node import trust
    from node.scan import scan

    if shipped == (name is not None):
        raise click.UsageError("name one bundle, or give --shipped")
    if shipped:
        for bundle in trust.pin_shipped():
            click.echo(f"{bundle.title}: {bundle.digest}")
        click.echo(f"pinned in {trust.SHIPPED_PINS}")
        return
    settings = load_settings(config)
    bundle = find(str(name), settings)
    found = scan(bundle)
    before = trust.standing(bundle, settings)
    print_json(_as_json(bundle, found, before)) if as_json else _show(bundle, found, before, everything)
    check_bundle(bundle)  # what could not run anyway is not pinned
    if not look:
        trust.pin([bundle], settings.worker.trusted)
        click.echo(f"\n{bundle.title} is trusted as it is now: pinned in {settings.worker.trusted}", err=as_json)


def _as_json(bundle: Bundle, found: Scan, before: str) -> dict[str, Any]:
    from dataclasses import asdict

    code = [asdict(one) for one in found.code]
    weights = asdict(found.weights) | {"fault": found.weights.fault}
    item = {"name": bundle.name, "version": bundle.version, "folder": bundle.folder, "digest": bundle.digest}
    return {**item, "trust_before": before, "code": code, "weights": weights}


def _show(bundle: Bundle, found: Scan, before: str, everything: bool) -> None:
    weights = found.weights
    told = weights.fault or f"a {weights.kind}" + (", a program of its own" if weights.kind == "TorchScript" else "")
    print_details(
        {
            "bundle": bundle.title,
            "folder": str(bundle.folder),
            "digest": f"{bundle.digest} ({before} before)",
            "weights": f"{weights.path.name}, {weights.size / 1e6:.1f} MB: {told}",
        }
    )
    click.echo("\nIn a reading wetread would run:")
    _show_code(found.runs)
    rest = [code for code in found.code if not code.in_reading]
    if everything and rest:
        click.echo("\nNever run by wetread, but by `python -m monai.bundle run`:")
        _show_code(rest)
    elif rest:
        click.echo(f"\n{len(rest)} pieces of code more are never run by wetread; --all shows them.")
    if reaching := sorted({reach for code in found.runs for reach in code.reaches}):
        click.echo(f"\nLook at the lines marked !. As far as can be seen they reach: {', '.join(reaching)}.")


def _show_code(code: Sequence[Code]) -> None:
    """What reaches beyond the model and every expression on a line of its own, then MONAI's components in one."""
    plain = [one for one in code if one.kind == "call" and not one.reaches]
    for one in code:
        if one not in plain:
            reaches = f" · reaches {', '.join(one.reaches)}" if one.reaches else ""
            click.echo(f"  {'!' if one.reaches else ' '} {_visible(one.what)}")
            click.echo(f"        {one.kind} in {_visible(one.where)}{reaches}")
    if plain:
        names = ", ".join(dict.fromkeys(_visible(one.what) for one in plain))
        told = f"components of MONAI and PyTorch: {names}"
        click.echo(click.wrap_text(told, 110, "    ", "        "))
    if not code:
        click.echo("    nothing")


def _visible(text: str) -> str:
    """Return `text` with what a terminal would obey instead of show in words: `\\x1b`, `\\n`, `\\u202e`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@click.command("new")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
def models_new(folder: Path) -> None:
    """Write the skeleton of configs/dicom.toml for a MONAI Bundle, from its metadata.json; never over one."""
    from node.skeleton import write_skeleton

    path, open_points = write_skeleton(folder)
    click.echo(path)
    for point in open_points:
        click.echo(f"  to do: {point}")


COMMANDS: tuple[Any, ...] = (models_check, models_trust, models_new)
"""They join the group `wetread models` of `node/cli_content.py`."""
