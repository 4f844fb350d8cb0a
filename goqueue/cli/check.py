"""`goqueue check`: is all as goqueue needs it? Imports goqueue.findings, health, pool and dberrors."""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import psycopg
import typer
from msgspec.structs import replace
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from goqueue.cli.common import AsJson, CheckFailedError, ConfigFile, console, print_json, read_config
from goqueue.config import DatabaseConfig
from goqueue.dberrors import translate
from goqueue.errors import ConnectionRejectedError, StorageUnavailableError
from goqueue.findings import Check, Finding, Level
from goqueue.health import read_settings, run_checks
from goqueue.pool import open_connection

_STYLES = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.SKIPPED: "dim",
    Level.WARNING: "yellow",
    Level.FAILED: "bold red",
}


def check(
    sql_dir: Annotated[
        str | None,
        typer.Option("--sql-dir", metavar="DIR", help="Prove this folder of SQL files instead of the configured one."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check the server, the migrations, the schema, the SQL files, the roles' rights and the vacuum.

    Changes nothing. Each check has one line; under it stands what was
    found, why it matters and what to do. Run it as the role that the
    programs connect as; a check that this role has no right to is skipped.

    ok: fine. note: good to know. skipped: could not be looked at.
    warning: will hurt some day. failed: is broken now (exit status 3).
    """
    config = read_config(file).database
    folder = config.sql_dir if sql_dir is None else sql_dir
    checks = []
    out = console()
    for done in _checks(config, folder):
        checks.append(done)
        if not as_json:
            _show(out, done)
    bad = {Level.FAILED, Level.WARNING} if strict else {Level.FAILED}
    failed = [done.name for done in checks if done.level in bad]
    if as_json:
        print_json({"ok": not failed, "checks": checks})
    else:
        counts = Counter(done.level for done in checks)
        out.print(", ".join(f"{counts[level]} {level}" for level in Level if counts[level]))
    if failed:
        raise CheckFailedError(f"failed: {', '.join(failed)}")


def _checks(config: DatabaseConfig, folder: str) -> Iterator[Check]:
    try:
        # As a caller's own connection has them: with empty options ours are not sent.
        with open_connection(replace(config, url=make_conninfo(config.url, options=""))) as connection:
            settings = read_settings(connection)
        with open_connection(config) as connection:
            yield from run_checks(connection, sql_dir=folder, settings=settings)
    except psycopg.Error as error:
        lost = translate(error)
        do = "see `goqueue config` for the server meant, and the server's log" * isinstance(
            lost, (ConnectionRejectedError, StorageUnavailableError)
        )
        yield Check("server", Level.FAILED, "", (Finding(Level.FAILED, str(lost), "nothing more can be checked", do),))


def _show(out: Console, done: Check) -> None:
    """Wrapped and indented on a terminal; in a pipe one line each, whole."""
    head = (Text(f"{done.level:<8}", style=_STYLES[done.level]), Text(f"{done.name:<12}", style="bold"), done.summary)
    lines = [Text.assemble(*head)]
    details = []
    for finding in done.findings:
        details.append((4, Text(f"{finding.level}: {finding.found}", style=_STYLES[finding.level])))
        details += [(8, Text(f"{word} {text}")) for word, text in (("why:", finding.why), ("do: ", finding.do)) if text]
    if out.is_terminal:
        grid = Table.grid()
        grid.add_row(*head)
        out.print(grid, *(Padding(text, (0, 0, 0, indent)) for indent, text in details), sep="\n")
    else:
        lines += [Text(" " * indent) + text for indent, text in details]
        out.print(*lines, sep="\n", soft_wrap=True)
