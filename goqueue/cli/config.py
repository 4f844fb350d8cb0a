"""`goqueue config`: the settings in force."""

import sys
from itertools import groupby

from rich.table import Table
from rich.text import Text

from goqueue.cli.common import AsJson, Column, ConfigFile, console, print_json, print_line, printable, table
from goqueue.config import EffectiveSetting, load_settings


def show_config(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every setting in force and its source, without passwords.

    The environment (GOQUEUE_SERVER_PORT) overrides the file (server: port),
    and the file overrides the default. All problems are reported at once.
    Relative paths start at the working directory; in the file, at its folder.
    """
    settings = load_settings(file)
    if as_json:
        print_json([setting._asdict() for setting in settings])
    elif sys.stdout.isatty():
        screen = console()
        if screen.width < 70:
            titles = [
                Column("Setting", "left"),
                Column("Value", "left", 20),
                Column("Source", "left"),
                Column("Reader", "left"),
            ]
            listed = [(f"{one.section}.{one.name}", _shown(one.value), one.source, one.read_by) for one in settings]
            screen.print(table(titles, listed, screen.width))
        else:
            screen.print(_table(settings))
    else:
        rows = [(f"{one.section}.{one.name}", _shown(one.value), one.source, _read_by(one.read_by)) for one in settings]
        names, values, sources = (max(len(row[column]) for row in rows) for column in (0, 1, 2))
        for name, value, source, reader in rows:
            print_line(f"{name:<{names}}  {value:<{values}}  {source:<{sources}}  {reader}".rstrip())


def _table(settings: tuple[EffectiveSetting, ...]) -> Table:
    """Lay the settings out by section, so that names are short enough for 80 columns."""
    laid = Table("Setting", "Value", "Source", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in laid.columns:
        column.overflow = "fold"  # never shorten a value to "..."
    laid.columns[0].no_wrap = True
    for (section, reader), members in groupby(settings, key=lambda setting: (setting.section, setting.read_by)):
        laid.add_row("")
        laid.add_row(Text(section, style="bold"), Text(_read_by(reader), style="dim"))
        for setting in members:
            style = "dim" if setting.source == "default" else ""
            laid.add_row(f"  {setting.name}", Text(_shown(setting.value)), Text(setting.source, style=style))
    return laid


def _read_by(reader: str) -> str:
    return "" if reader == "goqueue" else f"read by {reader}"


def _shown(value: int | str | list[str] | None) -> str:
    text = "none" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
    return printable(text) or "(empty)"
