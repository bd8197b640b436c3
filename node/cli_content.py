"""`wetread route | models | config`: what the node would do and with what, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from node.cli_output import config_option, json_option, load_all, load_settings, print_details, print_json, print_rows
from node.errors import Permanent


@click.group()
def route() -> None:
    """Explain what the routes do with a study."""


@route.command("explain")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@config_option
@json_option
def explain(folder: Path, config: Path | None, as_json: bool) -> None:
    """Say for each route, model and series in DIR whether it would be read, and why."""
    from node import bundles
    from node.route import router
    from node.study import scan

    settings, routes = load_all(config)
    found = {bundle.name: bundle for bundle in bundles.available(*settings.worker.folders)}
    studies, left_out = scan(folder)
    rows = [
        {
            "study_instance_uid": study.study_instance_uid,
            "route": decision.route,
            "bundle": decision.bundle,
            "series_instance_uid": decision.series_instance_uid,
            "series": decision.series,
            "read": decision.read,
            "instances": len(decision.instances),
            "reasons": list(decision.reasons),
        }
        for study in studies
        for decision in router.explain(study, routes, found)
    ]
    print_json({"decisions": rows, "left_out": left_out}) if as_json else _print_decisions(rows, left_out)


def _print_decisions(rows: list[dict[str, Any]], left_out: tuple[str, ...]) -> None:
    study = ""
    for row in rows:
        if row["study_instance_uid"] != study:
            study = row["study_instance_uid"]
            click.echo(f"study {study}")
        subject = f"{row['series']} {row['series_instance_uid']}".strip() or "the whole study"
        model = f" · {row['bundle']}" if row["bundle"] else ""
        click.echo(f"  {'READ ' if row['read'] else 'leave'}  {row['route']}{model} · {subject}")
        click.echo(f"         {'; '.join(row['reasons'])}")
    for line in left_out:
        click.echo(f"left out: {line}")
    if not rows:
        click.echo("No route has a word on anything in this folder.")


@click.group()
def models() -> None:
    """List the Model Bundles, show one, try one out, trust one, or begin a new one."""


@models.command("list")
@config_option
@json_option
def models_list(config: Path | None, as_json: bool) -> None:
    """List the Model Bundles that this node can use."""
    from node import bundles

    settings = load_settings(config)
    found = bundles.available(*settings.worker.folders)
    rows = [_bundle_row(bundle, settings) for bundle in found]
    for name in sorted(set(bundles.names(*settings.worker.folders)) - {bundle.name for bundle in found}):
        click.echo(f"left out: {name}, which does not load; `wetread models check {name}` says why", err=True)
    print_json(rows) if as_json else print_rows(
        rows, ("name", "version", "kind", "trust", "reads", "says"), "There are no models."
    )


@models.command("show")
@click.argument("name")
@config_option
@json_option
def models_show(name: str, config: Path | None, as_json: bool) -> None:
    """Show one Model Bundle: what it reads, what it says, its digests, its figures and its card."""
    from node import bundles, cards

    settings = load_settings(config)
    bundle = bundles.find(name, *settings.worker.folders)
    item = {
        **_bundle_row(bundle, settings),
        "folder": str(bundle.folder),
        "digest": bundle.digest,
        "weights_sha256": bundle.weights_sha256,
        "device_uid": bundle.device_uid,
        "intended_use": bundle.metadata.get("intended_use", ""),
        "data_source": bundle.metadata.get("data_source", ""),
    }
    found = cards.metrics(bundle)
    if as_json:
        print_json(item | {"metrics": found, "card": cards.card(bundle)})
        return
    print_details(item)
    click.echo()
    print_rows(cards.table(found), cards.COLUMNS, "No figures are known: wetread evaluate measures them.")
    if cards.is_of_other_weights(found, bundle):
        click.echo("These figures were measured with other weights than those that are here now.")
    click.echo(f"\n{cards.card(bundle)}".rstrip())


def _bundle_row(bundle: Any, settings: Any) -> dict[str, Any]:
    from node import trust

    dicom = bundle.dicom
    says = [s.label for s in dicom.segment] or [f.label for f in dicom.finding]
    reads = "; ".join(f"{keyword} {_condition(value)}" for keyword, value in dicom.series.items())
    return {
        "name": bundle.name,
        "version": bundle.version,
        "kind": dicom.kind,
        "trust": trust.standing(bundle, settings),
        "reads": reads,
        "says": ", ".join(says),
    }


def _condition(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_condition(part)}" for key, part in value.items())
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


@click.group()
def config() -> None:
    """Show the configuration in force, or write a new one."""


@config.command("show")
@config_option
@json_option
def config_show(config: Path | None, as_json: bool) -> None:
    """Print every setting in force, secrets masked."""
    settings, routes = load_all(config)
    item = {**_masked(settings.model_dump(mode="json")), "route": [r.model_dump(mode="json") for r in routes.route]}
    if as_json:
        print_json(item)
        return
    for section, value in item.items():
        for title, rows in _tables(section, value):
            click.echo(title)
            print_details(rows, "  ")


def _tables(section: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of one section with their TOML headers."""
    if isinstance(value, list):
        yield from ((f"[[{section}]]", row) for row in value)
    elif section == "destination":
        yield from ((f"[destination.{name}]", row) for name, row in value.items())
    else:
        yield f"[{section}]", value


def _masked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the passwords of their URLs replaced."""
    import re

    for section in ("database", "broker"):
        url = settings[section]["url"]
        settings[section]["url"] = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)
    return settings


@config.command("init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", default=".")
def config_init(folder: Path) -> None:
    """Write wetread.toml and routes.toml with every key explained into DIR; never over a file that is there."""
    from node.settings import SHIPPED

    names = ("wetread.toml", "routes.toml")
    if there := [name for name in names if (folder / name).exists()]:
        raise Permanent(f"{folder / there[0]} exists already; nothing was written. Remove it, or name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text((SHIPPED / name).read_text(encoding="utf-8"), encoding="utf-8")
        click.echo(folder / name)


COMMANDS = (route, models, config)
