"""What the commands share: options, output, the store. Imports goqueue.config, goqueue.dberrors, goqueue.errors and
goqueue.postgres."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from goqueue.config import Config, format_duration, load_config, parse_duration
from goqueue.dberrors import is_nobody_here
from goqueue.errors import ConnectionRejectedError, GoQueueError, StorageUnavailableError
from goqueue.models import JobCount
from goqueue.postgres import PostgresStorage

EXIT_CODES = (
    "Exit status: 0 when all went well, 1 after an error, without a yes to a question, or when some of the ids given "
    "were left unchanged, 2 when the configuration or the call is invalid, or the server rejects the connection, 3 "
    "when a check has found something wrong, 130 after Ctrl-C."
)

#: The options that every command spells alike.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="PATH", help="Read this file instead of GOQUEUE_CONFIG or ./goqueue.yaml."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask; needed where there is no terminal to ask on.")]


class CheckFailedError(GoQueueError):
    """A check has found something wrong: the command did what it was asked for, and the exit status is 3."""


def console() -> Console:
    """Standard output: with colour on a terminal, plain in a pipe."""
    return Console(highlight=False)


def error_console() -> Console:
    """Standard error: where progress and messages go, so that a pipe gets the result alone."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document. Structs, times and durations (ISO 8601) become what msgspec makes of them."""
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=str)  # paths
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def read_config(file: Path | None = None) -> Config:
    """The configuration in force. Raises ConfigError."""
    return load_config(file)


@contextmanager
def open_store(file: Path | None = None) -> Iterator[PostgresStorage]:
    """The configured store, closed at the end."""
    config = load_config(file)
    try:
        store = PostgresStorage.open(config)
    except (ConnectionRejectedError, StorageUnavailableError) as error:
        hint = "`goqueue config` shows which server is meant"
        if is_nobody_here(error):
            hint += "; `goqueue db start` starts one to develop with"
        raise type(error)(f"{error}\n{hint}") from error
    with store:
        yield store


def note(message: str) -> None:
    """A line for the person at the terminal, on standard error."""
    error_console().print(message, markup=False, soft_wrap=True)


def confirm(question: Callable[[], str], *, yes: bool) -> None:
    """Return when the answer is yes. ``question`` may cost something, and is made only where it is asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: add --yes to go ahead")
    typer.confirm(question(), abort=True, err=True)


def duration(text: str) -> timedelta:
    """For an option's ``parser``: a duration as the settings spell it."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def aware_time(text: str) -> datetime:
    """For an option's ``parser``: a time in ISO 8601 with its zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time in ISO 8601, such as 2026-01-31T08:00Z") from None
    if time.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} has no time zone: write {text}Z or {text}+01:00, say")
    return time


def counted(count: int) -> str:
    """`1 job`, `about 12,000 jobs`."""
    return f"{count if isinstance(count, JobCount) else JobCount(count)} job{'' if count == 1 else 's'}"


def in_words(value: timedelta, units: int = 2) -> str:
    """A duration by its largest units, such as `3h 12m`; `0s` below a second."""
    whole = timedelta(seconds=max(0, int(value.total_seconds())))
    return " ".join(re.findall(r"\d+[a-z]+", format_duration(whole))[:units])


def printable(text: str) -> str:
    """Text from outside on one line: line breaks and terminal codes are written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[int, str], None]]:
    """A bar (a spinner without a total) on standard error, if that is a terminal. Gives what moves it on."""
    screen = error_console()
    columns = (SpinnerColumn(), *((BarColumn(),) if total else ()), TextColumn("{task.description}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=screen, transient=True, disable=not screen.is_terminal
    ) as shown:  # fmt: skip
        task = shown.add_task("...", total=total)
        yield lambda done, text: shown.update(task, completed=done, description=text)
