"""`goqueue check`: checks of the server, the schema, the SQL files, rights and vacuum."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from msgspec.structs import replace
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from goqueue.cli.common import (
    AsJson,
    CheckFailedError,
    ConfigFile,
    Schemas,
    console,
    in_schemas,
    note,
    path,
    print_json,
    read_config,
)
from goqueue.config import DatabaseConfig
from goqueue.errors import ConnectionRejectedError, GoQueueError, StorageUnavailableError
from goqueue.postgres.pool import connect, open_connection
from goqueue.postgres.queries import load_queries
from goqueue.postgres.translate import translate
from goqueue.testing.scratch import REFUSALS, scratch_database
from goqueue.workbench.behaviour import NOT_COMPARED, compare_behaviour
from goqueue.workbench.findings import Check, Finding, Level
from goqueue.workbench.health import read_settings, run_checks
from goqueue.workbench.standby import check_reads

_STYLES = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.SKIPPED: "dim",
    Level.WARNING: "yellow",
    Level.FAILED: "bold red",
}


class Scratch(StrEnum):
    """The server for the scratch database."""

    EMBEDDED = "embedded"
    SERVER = "server"
    NONE = "none"


def check(  # noqa: PLR0917 - typer takes options so
    sql_dir: Annotated[
        Path | None,
        typer.Option(
            "--sql-dir",
            parser=path,
            metavar="DIR",
            help="Check this folder of SQL files instead of the configured one.",
        ),
    ] = None,
    scratch: Annotated[
        Scratch,
        typer.Option(
            help="Where to run and compare changed queries: on an embedded server, in a temporary database on the "
            "configured server (needs CREATEDB), or nowhere."
        ),
    ] = Scratch.EMBEDDED,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
    schemas: Schemas = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check the server, the migrations, the schema, the SQL files, rights, vacuum and durability.

    Changes nothing. Prints a line for each check, and below it each problem,
    why it matters and what to do. Run it as the role that your programs use.
    Checks that this role has no right to run are skipped.

    The configured server only parses and plans the changed queries of a
    folder of SQL files.
    On a scratch database (--scratch), their effects are compared with those
    of the shipped queries: with all kinds of jobs, stale tokens, and other
    sessions that lock or change the same jobs.

    ok: no problem. note: for information. skipped: could not be checked.
    warning: a future problem. failed: broken now (exit status 3, but 2 if the
    server rejects the connection).
    """
    configs = in_schemas(read_config(file).database, schemas)
    are_several = len(configs) > 1
    documents, failed = [], []
    rejected: ConnectionRejectedError | None = None
    for config in configs:
        if are_several and not as_json:
            console().print(Text(f"schema {config.schema}", style="bold underline"))
        folder = config.sql_dir if sql_dir is None else str(sql_dir)
        checks, rejected = _run(config, folder, scratch, quiet=as_json)
        bad = {Level.FAILED, Level.WARNING} if strict else {Level.FAILED}
        names = [done.name for done in checks if done.level in bad]
        failed += [f"{name} ({config.schema})" if are_several else name for name in names]
        about = {"schema": config.schema} if are_several else {}
        documents.append({**about, "ok": not names, "checks": checks})
        if rejected:
            break
    if as_json:
        print_json(documents if are_several else documents[0])
    if rejected:
        raise rejected
    if failed:
        raise CheckFailedError(f"failed: {', '.join(failed)}")


def _run(
    config: DatabaseConfig, folder: str, scratch: Scratch, *, quiet: bool
) -> tuple[list[Check], ConnectionRejectedError | None]:
    """Run the checks of one schema, and print them unless ``quiet``. Return them, and why the server rejected the
    connection."""
    checks = []
    out = console()
    rejected: ConnectionRejectedError | None = None
    try:
        for done in _checks(config, folder, scratch):
            checks.append(done)
            if not quiet:
                _show(out, done)
    except ConnectionRejectedError as error:
        rejected = error
    if not quiet:
        counts = Counter(done.level for done in checks)
        out.print(", ".join(f"{counts[level]} {level}" for level in Level if counts[level]))
    return checks, rejected


def _checks(config: DatabaseConfig, folder: str, scratch: Scratch) -> Iterator[Check]:
    try:
        # As on a caller's own connection: if the URL has empty options, ours are not sent.
        with connect(replace(config, url=make_conninfo(config.url, options=""))) as connection:
            settings = read_settings(connection)
        with open_connection(config, load_queries()) as connection:
            compare = partial(_behaviour, config, folder, scratch)
            yield from run_checks(connection, sql_dir=folder, settings=settings, compare=compare, schema=config.schema)
            if config.read_url:
                yield _reads(config, connection)
    except psycopg.Error as error:
        lost = translate(error)
        do = "see the server's address in `goqueue config`, and the server's log" * isinstance(
            lost, (ConnectionRejectedError, StorageUnavailableError)
        )
        yield Check("server", Level.FAILED, "", (Finding(Level.FAILED, str(lost), "nothing more can be checked", do),))
        if isinstance(lost, ConnectionRejectedError):
            raise lost from error


def _reads(config: DatabaseConfig, primary: psycopg.Connection[Any]) -> Check:
    try:
        with connect(replace(config, url=config.read_url)) as connection:
            load_queries(schema=config.schema).ping(connection)  # else an empty database passes
            return check_reads(connection, primary, config.schema)
    except psycopg.Error as error:
        why = "lists, counts and statistics fail; all else works"
        do = "correct read_url, or start the standby; with an empty read_url, they come from the primary"
        return Check("reads", Level.FAILED, "", (Finding(Level.FAILED, str(translate(error)), why, do),))


def _behaviour(config: DatabaseConfig, folder: str, where: Scratch, names: list[str]) -> Check:
    """Compare the effects of the folder's queries with those of the shipped ones."""
    hint = "run `goqueue check --scratch server` (a role with CREATEDB), or pip install 'goqueue[embedded]'"
    if where is Scratch.NONE:
        return _not_compared(names, "--scratch none was given", "omit --scratch, or use embedded or server")
    conninfo = None
    if where is Scratch.SERVER:
        options: dict[str, Any] = {"application_name": "goqueue check", **conninfo_to_dict(config.url)}
        conninfo = make_conninfo(**options)
    try:
        with scratch_database(conninfo, rows=1000) as connection:
            version = connection.info.parameter_status("server_version")
            note(f"comparing {', '.join(names)} with the shipped queries, in a scratch database")
            proven = compare_behaviour(connection, folder, names)
    except REFUSALS as error:
        role = "the role can't create databases there"
        return _not_compared(
            names, f"{role}: {error.diag.message_primary}", "ALTER ROLE … CREATEDB, or --scratch embedded"
        )
    except (GoQueueError, psycopg.Error) as error:
        return _not_compared(names, str(error).partition("\n")[0], hint)
    findings = [
        Finding(
            Level.FAILED,
            problem,
            "workers and callers rely on what the shipped query does: no job lost, done twice, late or out of order",
            f"goqueue sql diff {folder}",
        )
        for problem in proven.problems
    ]
    findings += [Finding(Level.WARNING, f"not compared: {text}", "", hint) for text in proven.unproved]
    runs = ", ".join(f"{name} ({count} runs)" for name, count in proven.runs.items())
    return Check(
        "behaviour",
        Level.FAILED if proven.problems else Level.WARNING if proven.unproved else Level.OK,
        f"compared on PostgreSQL {version}: {runs or 'none'}; not compared: {NOT_COMPARED}",
        tuple(findings),
    )


def _not_compared(names: list[str], why: str, do: str) -> Check:
    found = f"not compared with the shipped queries: {', '.join(names)}, because {why}"
    risk = "a query that loses jobs, or assigns one to two workers, can pass the other checks"
    return Check("behaviour", Level.WARNING, "not compared", (Finding(Level.WARNING, found, risk, do),))


def _show(out: Console, done: Check) -> None:
    """Print a check: wrapped and indented on a terminal, one line per finding in a pipe."""
    head = (Text(f"{done.level:<8}", style=_STYLES[done.level]), Text(f"{done.name:<12}", style="bold"), done.summary)
    lines = [Text.assemble(*head)]
    details = []
    for finding in done.findings:
        details.append((4, Text(f"{finding.level}: {finding.found}", style=_STYLES[finding.level])))
        details += [(8, Text(f"{word} {text}")) for word, text in (("why:", finding.why), ("do: ", finding.do)) if text]
    if out.is_terminal:
        grid = Table.grid()
        for _ in head[:2]:
            grid.add_column(no_wrap=True)
        grid.add_row(*head)
        out.print(grid, *(Padding(text, (0, 0, 0, indent)) for indent, text in details), sep="\n")
    else:
        lines += [Text(" " * indent) + text for indent, text in details]
        out.print(*lines, sep="\n", soft_wrap=True)
