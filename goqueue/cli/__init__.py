"""The `goqueue` command."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from goqueue.cli.check import check
from goqueue.cli.common import (
    EXIT_CODES,
    CheckFailedError,
    OutputError,
    drop_output,
    hint_of,
    note,
    open_streams,
    print_line,
)
from goqueue.cli.config import show_config
from goqueue.cli.jobs import jobs
from goqueue.cli.queries import show_plans, show_queries
from goqueue.cli.queues import queues
from goqueue.cli.server import db, run_migrations
from goqueue.cli.sql import sql_app
from goqueue.cli.stats import show_stats
from goqueue.cli.work import work
from goqueue.cli.workers import show_workers
from goqueue.config import redact
from goqueue.errors import ConfigError, ConnectionRejectedError, GoQueueError, InvalidJobError

__all__ = ["app", "main"]

# typer exports only subclasses of it.
_UsageError: Any = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """The command, whose usage errors show no password: they quote arguments, and one can be a URL."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _redacted():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _redacted():
            return super().invoke(ctx)


@contextmanager
def _redacted() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = redact(error.message)
        raise


app = typer.Typer(
    cls=_Commands,
    help="goqueue: a job queue in PostgreSQL.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables could show a password.
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_line(f"goqueue {version('goqueue')}")
        raise typer.Exit


@app.callback()
def _goqueue(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("config", epilog=EXIT_CODES)(show_config)
app.add_typer(jobs, name="jobs")
app.add_typer(queues, name="queues")
app.command("work", epilog=EXIT_CODES)(work)
app.command("workers", epilog=EXIT_CODES)(show_workers)
app.command("stats", epilog=EXIT_CODES)(show_stats)
app.command("migrate", epilog=EXIT_CODES)(run_migrations)
app.add_typer(db, name="db")
app.command("queries", epilog=EXIT_CODES)(show_queries)
app.command("explain", epilog=EXIT_CODES)(show_plans)
app.command("check", epilog=EXIT_CODES)(check)
app.add_typer(sql_app, name="sql")


def main() -> None:
    """Run the command: the entry point of `goqueue`. Errors become exit statuses here only."""
    # The error repeats the driver's warnings, whose lines would break into a live table.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    open_streams()
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name) == "0":  # an unknown size, to which rich would print nothing
            del os.environ[name]
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # at interpreter exit it is too late to handle `| head`
    except OutputError as error:
        drop_output()
        if error.is_left:
            sys.exit(1)
        _end(error, 1)
    except (ConfigError, ConnectionRejectedError, InvalidJobError) as error:
        _end(error, 2)
    except CheckFailedError as error:
        _end(error, 3)
    except GoQueueError as error:
        _end(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: GoQueueError, status: int) -> None:
    note(f"goqueue: {error}{hint_of(error)}", style="red")
    sys.exit(status)
