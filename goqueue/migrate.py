"""Runs the real ``pgmigrate migrate``, and the undo files. Imports psycopg, yaml and goqueue.errors.

pgmigrate runs as a process of its own. The SQL here is limited to its table, schema_version.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import yaml
from psycopg import pq, sql

from goqueue.errors import GoQueueError

# Options that libpq takes from no environment variable. Without these a connection is only tuned otherwise; any other
# such option (sslpassword, oauth_issuer, ...) decides whether there is a connection, so it is refused rather than lost.
_DISPENSABLE = re.compile(r"fallback_application_name|keepalives(_\w+)?|tcp_user_timeout")


class MigrationError(GoQueueError):
    """A migration could not be run; the message holds the server's own words and the file, where there is one."""


def migrations_dir() -> Path:
    """The folder with migrations.yml and migrations/: the package's own when installed, else the checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / "migrations.yml").is_file() and next((folder / "migrations").glob("V*.sql"), None):
            return folder
    raise MigrationError(
        f"no migrations.yml and migrations/V*.sql in {package} or above it: install goqueue again, unpacked and whole "
        "(pip install --force-reinstall goqueue)"
    )


def migrations_hash(base_dir: Path | None = None) -> str:
    """SHA-256, in hexadecimal, over everything a run of ``migrate`` reads: names and bytes, no undo files, no roles."""
    base = Path(base_dir or migrations_dir())
    folder = base / "migrations"
    files = [file for file in folder.rglob("*.sql") if {"undo", "roles"}.isdisjoint(file.relative_to(folder).parts)]
    digest = hashlib.sha256()
    for file in (base / "migrations.yml", *sorted(files)):
        for part in (file.relative_to(base).as_posix().encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


class Migration(NamedTuple):
    """One version of the schema. ``applied_at`` is the server's local time, as pgmigrate keeps it; None: pending."""

    version: int
    name: str
    applied_at: str | None
    applied_by: str | None

    @property
    def pending(self) -> bool:
        return self.applied_at is None


def list_migrations(conninfo: str = "", *, base_dir: Path | None = None) -> list[Migration]:
    """Every version that is applied or pending, the lowest first: what ``pgmigrate info`` says. Raises MigrationError.

    Nothing is changed. ``conninfo`` is as for ``migrate``.
    """
    known = json.loads(_pgmigrate("info", conninfo, base_dir))
    return [
        Migration(one["version"], one["description"], one["installed_on"], one["installed_by"])
        for one in known.values()
    ]


def migrate(
    conninfo: str = "",
    *,
    target: int | None = None,
    base_dir: Path | None = None,
    dry_run: bool = False,
    on_version: Callable[[int], None] | None = None,
) -> None:
    """Apply what is pending, up to version ``target`` (None: all of it). Raises MigrationError.

    ``conninfo`` is a libpq connection string or URL; what it leaves out comes from the PG* environment variables, as in
    libpq. Runs at the same time wait for each other. Options without an environment variable can't be handed on:
    keepalives, tcp_user_timeout and fallback_application_name are left out, others (sslpassword) are refused.
    ``dry_run`` applies and then rolls back. ``on_version`` is told each version when its turn comes.
    """
    options = ["-t", str(target)] if target is not None else []
    _pgmigrate("migrate", conninfo, base_dir, *options, *(["--dryrun"] if dry_run else []), on_version=on_version)


def _pgmigrate(
    operation: str,
    conninfo: str,
    base_dir: Path | None,
    *options: str,
    on_version: Callable[[int], None] | None = None,
) -> str:
    """Run pgmigrate, and return what it prints."""
    base = Path(base_dir or migrations_dir())
    if importlib.util.find_spec("pgmigrate") is None:
        raise MigrationError("pgmigrate is not installed: pip install 'goqueue[migrate]'")
    # -P keeps a stray pgmigrate.py or yaml.py of the working folder out; -vv says which version's turn it is.
    command = [sys.executable, "-P", "-m", "pgmigrate", operation, "-vv", "-d", str(base), *options]
    errors = []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        subprocess.Popen(
            command, env=_environment(conninfo), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        for line in process.stderr or ():
            if " INFO " not in line:
                errors.append(line)
            elif on_version and (found := re.search(r"INFO +: Migrating to version (\d+)$", line)):
                on_version(int(found[1]))
        if process.wait() != 0:
            raise MigrationError(_readable("".join(errors), process.returncode))
        output.seek(0)
        return output.read()


def undo(conninfo: str = "", *, to: int, base_dir: Path | None = None) -> list[int]:
    """Take every applied version above ``to`` back, the highest first, and return them. Raises MigrationError.

    Each undo file runs in one transaction with the deletion of its row from schema_version, after the session
    statements of migrations.yml (the lock that keeps other runners out). When one fails, those before it stay undone.
    After ``to=0`` the schema and an empty schema_version remain: they are pgmigrate's, which goes on from there.
    """
    base = Path(base_dir or migrations_dir())
    config = _read_config(base)
    table = sql.Identifier(str(config.get("schema") or "public"), "schema_version")
    latest = sql.SQL("SELECT max(version) FROM {} WHERE version > %s").format(table)
    forget = sql.SQL("DELETE FROM {} WHERE version = %s").format(table)
    undone: list[int] = []
    what = "the database can't be reached"
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            if connection.execute("SELECT to_regclass(%s)", [table.as_string(connection)]).fetchone() == (None,):
                return undone
            while True:
                what = "the lock on the migrations was not had"
                with connection.transaction():
                    for statement in config.get("session") or []:
                        connection.execute(str(statement).encode())
                    row = connection.execute(latest, [to]).fetchone()
                    version = None if row is None else row[0]
                    if version is None:
                        return undone
                    file = _undo_file(base, version)
                    what = f"{file.name} failed and was rolled back"
                    connection.execute(file.read_bytes())
                    connection.execute(forget, [version])
                undone.append(version)
    except psycopg.Error as error:
        raise MigrationError(f"{what}: {str(error).strip()}") from error


def _undo_file(base: Path, version: int) -> Path:
    folder = base / "migrations" / "undo"
    files = [file for file in folder.glob("U*__*.sql") if re.match(rf"U0*{version}__", file.name)]
    if len(files) != 1:
        raise MigrationError(f"version {version} can't be undone: {len(files)} files U{version:04d}__*.sql in {folder}")
    return files[0]


def _read_config(base: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((base / "migrations.yml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MigrationError(f"{base / 'migrations.yml'} can't be read: {error}") from error
    return config if isinstance(config, dict) else {}


def _environment(conninfo: str) -> dict[str, str]:
    """This process's environment with the connection in it: a command line, unlike it, can be read by anyone."""
    try:
        options = [option for option in pq.Conninfo.parse(conninfo.encode()) if option.val is not None]
    except psycopg.OperationalError:
        # libpq's message quotes the string, which may hold a password.
        raise MigrationError("the connection string is neither key=value words nor a postgresql:// URL") from None
    given = {option.keyword.decode(): (option.val or b"").decode() for option in options}
    variables = {option.keyword.decode(): option.envvar.decode() for option in options if option.envvar}
    lost = [name for name in given if name not in variables and not _DISPENSABLE.fullmatch(name)]
    if lost:
        raise MigrationError(f"pgmigrate can't be given {', '.join(lost)}: use a service file and PGSERVICE")
    environment = dict(os.environ)
    # libpq ranks the given options before the service file, and the environment after it.
    if "service" in given and len(given) > 1:
        raise MigrationError("pgmigrate can't be given a service and options beside it: put them into the service")
    if given and "service" not in given and environment.get("PGSERVICE"):
        for option in pq.Conninfo.get_defaults():  # with the service's values filled in
            if option.envvar and option.val is not None:
                environment[option.envvar.decode()] = option.val.decode()
        del environment["PGSERVICE"]
    environment.update((variables[name], value) for name, value in given.items() if name in variables)
    return environment


def _readable(stderr: str, code: int) -> str:
    """What matters of pgmigrate's log lines and tracebacks: the file and the first exception, the server's if any."""
    file = re.search(r"Error executing statement from (.+):$", stderr, re.MULTILINE)
    errors = re.findall(
        r"^(?P<kind>[A-Za-z_][\w.]*): (?P<text>.+(?:\n(?!\n|Traceback|During handling|The above).*)*)",
        stderr.partition("Traceback (most recent call last):")[2],
        re.MULTILINE,
    )
    if not errors:
        missing = re.search(r"No module named .*", stderr)
        text = f"{missing[0]}: pip install 'goqueue[migrate]'" if missing else stderr.strip()[-2000:]
        return f"pgmigrate ended with status {code}: {text or 'it said nothing'}"
    kind, text = next((error for error in errors if error[0].startswith("psycopg2.")), errors[-1])
    if kind == "ModuleNotFoundError":
        return f"pgmigrate is not installed whole ({text}): pip install 'goqueue[migrate]'"
    where = f"{Path(file[1]).name} failed and was rolled back" if file else "the migrations did not run"
    return f"{where}: {text.strip()}" + (f"\n(file: {file[1]})" if file else "")
