"""The `goqueue` command. Imports the modules it has commands for; nothing imports it."""

import json
import sys
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from goqueue.config import EffectiveSetting, load_settings
from goqueue.errors import ConfigError

__all__ = ["app", "main"]

EXIT_CODES = (
    "Exit status: 0 when all went well, 1 after any other error, 2 when the configuration or the call is invalid."
)

app = typer.Typer(
    help="goqueue: a job queue in PostgreSQL.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # A traceback of ours with its local variables could show a password.
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"goqueue {version('goqueue')}")
        raise typer.Exit


# Beside --version, this keeps `config` a command of its own: typer takes a lone command for the whole program.
@app.callback()
def _goqueue(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("config", epilog=EXIT_CODES)
def show_config(
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="PATH", help="Read this file instead of GOQUEUE_CONFIG or ./goqueue.yaml."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for programs.")] = False,
) -> None:
    """Show every setting in force and where it comes from, without passwords.

    The environment (GOQUEUE_SERVER_PORT) goes before the file (server: port),
    the file before the default. All problems are reported at once.
    """
    settings = load_settings(file)
    if as_json:
        typer.echo(json.dumps([setting._asdict() for setting in settings], indent=2))
    elif sys.stdout.isatty():
        Console().print(_table(settings))
    else:
        rows = [(f"{setting.section}.{setting.name}", _shown(setting.value), setting.source) for setting in settings]
        names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
        for name, value, source in rows:
            typer.echo(f"{name:<{names}}  {value:<{values}}  {source}")


def _table(settings: tuple[EffectiveSetting, ...]) -> Table:
    """Lay the settings out under their sections, so that names are short enough for 80 columns."""
    table = Table("Setting", "Value", "Source", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        column.overflow = "fold"  # never "..." in place of what was asked for
    table.columns[0].no_wrap = True
    for section, members in groupby(settings, key=lambda setting: setting.section):
        table.add_row("")
        table.add_row(Text(section, style="bold"))
        for setting in members:
            style = "dim" if setting.source == "default" else ""
            table.add_row(f"  {setting.name}", Text(_shown(setting.value)), Text(setting.source, style=style))
    return table


def _shown(value: int | str | list[str] | None) -> str:
    text = "none" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text) or "(empty)"


def main() -> None:
    """Run the command; the entry point of `goqueue` on the shell."""
    try:
        app()
    except ConfigError as error:
        typer.echo(f"goqueue: {error}", err=True)
        sys.exit(2)
