"""The `wetread` command: one line per error on stderr, never a traceback, and exit statuses that scripts can use.

0 done · 1 failed · 2 wrong usage or configuration · 3 unsuitable input · 130 interrupted · 141 reader gone.
The commands live in `node/cli_*.py`; they import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from node import cli_bundle, cli_content, cli_dicom, cli_model, cli_node, cli_queue, cli_spool
from node.errors import ConfigError, Unsuitable, WetreadError

FAILED, USAGE, UNSUITABLE, INTERRUPTED, CLOSED_PIPE = 1, 2, 3, 130, 141

_SECTIONS = {
    "Run": ("demo", "serve", "worker", "check"),
    "Look": ("studies", "jobs", "deliveries", "dead", "spool"),
    "DICOM": ("read", "send", "echo"),
    "Measure": ("evaluate", "train"),
    "Set up": ("route", "models", "config"),
}


class _Sections(click.Group):
    """A group whose help lists the commands by what a person wants to do."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per entry of `_SECTIONS`."""
        for name, commands in _SECTIONS.items():
            with formatter.section(name):
                formatter.write_dl([(c, self.commands[c].get_short_help_str(90)) for c in commands])


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"wetread {version('wetread')}")
    except PackageNotFoundError:
        click.echo("wetread, not installed")
    context.exit()


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
def wetread() -> None:
    """A DICOM node that reads studies with MONAI networks and sends the findings back to the PACS.

    Results are for research: wetread is not a medical device.
    """


for _part in (cli_node, cli_queue, cli_spool, cli_dicom, cli_model, cli_content):
    for _command in _part.COMMANDS:
        wetread.add_command(_command)

for _command in cli_bundle.COMMANDS:
    cli_content.models.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit status."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a C locale must not stop a listing
    sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    status = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _close_pipe()
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit status and write at most one line to stderr."""
    try:
        with wetread.make_context("wetread", list(arguments)) as context:  # click's own main has other statuses
            result: Any = wetread.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        return _complain(error.format_message(), USAGE)
    except ConfigError as error:
        return _complain(str(error), USAGE)
    except Unsuitable as error:
        return _complain(str(error), UNSUITABLE)
    except WetreadError as error:
        return _complain(str(error), FAILED)
    except BrokenPipeError:
        return _close_pipe()
    except OSError as error:
        return _complain(f"{error.filename or 'operating system'}: {error.strerror or error}", FAILED)
    except Exception as error:
        if os.environ.get("WETREAD_TRACEBACK"):
            raise
        return _complain(
            f"unexpected {type(error).__name__}; WETREAD_TRACEBACK=1 shows where. Please report it.", FAILED
        )


def _complain(message: str, status: int) -> int:
    click.echo("wetread: " + " ".join(message.split()), err=True)
    return status


def _close_pipe() -> int:
    """Keep Python from complaining about the closed pipe again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


if __name__ == "__main__":
    main()
