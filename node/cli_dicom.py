"""`wetread read | send | echo`: one folder read offline, a study pushed, a peer asked whether it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli_output import config_option, json_option, load_settings, print_json, print_rows
from node.errors import Permanent


@click.command(short_help="Read a folder of DICOM with one model, offline.")
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="DIR")
@click.option("--model", required=True, metavar="NAME", help="A Model Bundle; `wetread models list` names them.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.option("--results", default="SR,SEG,SC", show_default=True, help="Which objects to write; also SALIENCY, PM.")
@click.option(
    "--decline",
    type=click.Choice(["silent", "report", "never"]),
    default="silent",
    show_default=True,
    help="What becomes of images that the model declines: nothing, an SR that says why, or read all the same.",
)
@config_option
@json_option
def read(folder: Path, model: str, out: Path, results: str, decline: str, config: Path | None, as_json: bool) -> None:
    """Read the DICOM in a folder with one model, without a node; write SR, SEG and key image as *.dcm.

    Exit status 3, with the reason, when no input is suitable; without any file, unless `--decline report` asks for one.
    """
    from node.cli_read import read_folder

    kinds = tuple(kind.strip().upper() for kind in results.split(","))
    if unknown := set(kinds) - {"SR", "SEG", "SC", "SALIENCY", "PM"}:
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))} is none of SR, SEG, SC, SALIENCY, PM", param_hint="--results"
        )
    outcome = read_folder(folder, model, out, kinds, decline, load_settings(config))
    if as_json:
        print_json(outcome)
        return
    for reading in outcome["readings"]:
        click.echo(f"{reading['bundle']} read {reading['series']}: {reading['summary']}")
        for document in reading["documents"]:
            click.echo(f"  {document['kind']:3}  {document['file']}  {document['sop_instance_uid']}")
    for line in outcome["left_out"]:
        click.echo(f"not read: {line}")


@click.command(short_help="Push a folder of DICOM to a peer.")
@click.argument("folder", type=click.Path(exists=True, path_type=Path), metavar="DIR")
@click.argument("peer", metavar="HOST:PORT")
@click.option("--called", default="WETREAD", show_default=True, help="AE Title of the receiver.")
@click.option("--calling", default="SCANNER", show_default=True, help="AE Title to send as.")
@json_option
def send(folder: Path, peer: str, called: str, calling: str, as_json: bool) -> None:
    """Push a folder of DICOM files to a peer, byte for byte, as a modality would (C-STORE)."""
    from node.simulate import scanner

    host, port = address(peer)
    report = scanner.send(folder, host, port, ae=calling, called=called)
    rows = [
        {
            "file": str(one.path),
            "sop_instance_uid": one.sop_instance_uid,
            "status": "none" if one.status is None else f"{one.status:04X}H",
            "note": one.note,
        }
        for one in report.sent
    ]
    if as_json:
        print_json({"sent": rows, "left_out": report.left_out, "seconds": report.seconds})
    else:
        kept = len(report.sent) - len(report.refused)
        click.echo(f"{kept} of {len(report.sent)} instances sent in {report.seconds:.1f} s")
        refused = [row for row, one in zip(rows, report.sent, strict=True) if not one.ok]
        if refused:
            print_rows(refused, ("status", "file", "note"), "")
        for line in report.left_out:
            click.echo(f"left out: {line}")
    if not report.ok:
        raise Permanent(f"{peer} did not keep {len(report.refused)} of {len(report.sent)} instances.")


@click.command(short_help="Ask whether a peer is there.")
@click.argument("peer", metavar="HOST:PORT|DESTINATION")
@click.option("--called", default="WETREAD", show_default=True, help="AE Title of the peer.")
@click.option("--calling", default="SCANNER", show_default=True, help="AE Title to call as.")
@config_option
def echo(peer: str, called: str, calling: str, config: Path | None) -> None:
    """Ask a peer, or a configured destination by its name, whether it is there (C-ECHO)."""
    from node.simulate import scanner

    if ":" in peer:
        host, port = address(peer)
    else:
        settings = load_settings(config)
        destination = settings.destination.get(peer)
        if destination is None:
            raise click.BadParameter(f'"{peer}" is neither HOST:PORT nor a configured destination', param_hint="PEER")
        host, port = destination.host, destination.port
        called, calling = destination.ae_title, settings.node.ae_title
    status = scanner.echo(host, port, ae=calling, called=called)
    if status != 0:
        raise Permanent(f"{called} at {host}:{port} answered C-ECHO with {status:04X}H.")
    click.echo(f"{called} at {host}:{port} answers")


def address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 host stands in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f'"{text}" is not HOST:PORT', param_hint="HOST:PORT")
    return host.strip("[]"), int(port)


COMMANDS: tuple[Any, ...] = (read, send, echo)
