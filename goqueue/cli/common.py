"""What the commands share: options, output, the store. Imports goqueue.config, goqueue.errors and goqueue.postgres."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from goqueue.config import Config, load_config
from goqueue.errors import GoQueueError
from goqueue.postgres import PostgresStorage

EXIT_CODES = (
    "Exit status: 0 when all went well, 1 after an error, 2 when the configuration or the call is invalid, "
    "3 when a check has found something wrong."
)

#: The options that every command spells alike.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="PATH", help="Read this file instead of GOQUEUE_CONFIG or ./goqueue.yaml."),
]


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
    sys.stdout.write(json.dumps(msgspec.to_builtins(value, str_keys=True), indent=2, ensure_ascii=False) + "\n")


def read_config(file: Path | None = None) -> Config:
    """The configuration in force. Raises ConfigError."""
    return load_config(file)


@contextmanager
def open_store(file: Path | None = None) -> Iterator[PostgresStorage]:
    """The configured store, closed at the end."""
    with PostgresStorage.open(load_config(file)) as store:
        yield store
