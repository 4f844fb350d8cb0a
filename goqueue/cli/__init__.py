"""The `goqueue` command. Imports the modules of its commands; nothing imports it."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from goqueue.cli.check import check
from goqueue.cli.common import EXIT_CODES, CheckFailedError, error_console
from goqueue.cli.config import show_config
from goqueue.cli.queries import show_plans, show_queries
from goqueue.cli.sql import sql_app
from goqueue.errors import ConfigError, GoQueueError, InvalidJobError

__all__ = ["app", "main"]

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


@app.callback()
def _goqueue(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("config", epilog=EXIT_CODES)(show_config)
app.command("queries", epilog=EXIT_CODES)(show_queries)
app.command("explain", epilog=EXIT_CODES)(show_plans)
app.command("check", epilog=EXIT_CODES)(check)
app.add_typer(sql_app, name="sql")


def main() -> None:
    """Run the command; the entry point of `goqueue` on the shell. The one place where errors become exit statuses."""
    try:
        app()
    except (ConfigError, InvalidJobError) as error:
        _end(error, 2)
    except CheckFailedError as error:
        _end(error, 3)
    except GoQueueError as error:
        _end(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: Exception, status: int) -> None:
    error_console().print(f"goqueue: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
