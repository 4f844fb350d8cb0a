"""`goqueue config`: the settings in force. Imports goqueue.config."""

import sys
from itertools import groupby

import typer
from rich.table import Table
from rich.text import Text

from goqueue.cli.common import AsJson, ConfigFile, console, print_json, printable
from goqueue.config import EffectiveSetting, load_settings


def show_config(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every setting in force and where it comes from, without passwords.

    The environment (GOQUEUE_SERVER_PORT) goes before the file (server: port),
    the file before the default. All problems are reported at once.
    """
    settings = load_settings(file)
    if as_json:
        print_json([setting._asdict() for setting in settings])
    elif sys.stdout.isatty():
        console().print(_table(settings))
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
    return printable(text) or "(empty)"
