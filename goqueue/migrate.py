"""Applies the migrations by pgmigrate's rules, lists them, takes them back.

`pgmigrate migrate` does the same with the same files, table and lock, and each continues what the other has begun. It
isn't called from here, because it requires psycopg2, which pip has to compile. The SQL here is limited to pgmigrate's
table, schema_version, and to the lock.
"""

import hashlib
import re
import shlex
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, LiteralString, NamedTuple

import psycopg
import yaml
from psycopg import Connection, sql

from goqueue.config import DatabaseConfig
from goqueue.conninfo import Secret, connect
from goqueue.errors import ConfigError, ConnectionRejectedError, GoQueueError
from goqueue.postgres.lexemes import split
from goqueue.postgres.translate import translate

#: Whoever changes the schema holds this advisory lock; migrations.yml and roles/*.sql take it too.
LOCK = 29114455692768613
#: How long a run waits for another one to end.
WAIT_SECONDS = 60.0
_FILE = re.compile(r"V(?P<version>\d+)__(?P<description>.+)\.sql")
_TRY_LOCK = "SELECT pg_try_advisory_lock(%s)"
_UNLOCK = "SELECT pg_advisory_unlock_all()"
_HOLDER: LiteralString = """
    SELECT l.pid, a.application_name
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND (l.classid::bigint << 32) + l.objid::bigint = %s
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_SEEN: LiteralString = """
    SELECT quote_ident(current_user), quote_ident(pg_get_userbyid(v.relowner)),
        has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(v.oid, 'SELECT'),
        (
            SELECT r.rolname FROM pg_roles AS r
            WHERE r.rolname = 'goqueue_reader' AND has_table_privilege(r.oid, v.oid, 'SELECT')
        )
    FROM pg_class AS v INNER JOIN pg_namespace AS n ON v.relnamespace = n.oid
    WHERE n.nspname = %s AND v.relname = 'schema_version'
"""
_APPLIED: LiteralString = """
    SELECT version, description, to_char(installed_on, 'YYYY-MM-DD HH24:MI:SS'), installed_by
    FROM {table} ORDER BY version
"""
_SCHEMA: LiteralString = "SELECT FROM pg_namespace WHERE nspname = %s"
_HAS_TABLE: LiteralString = "SELECT to_regclass('goqueue.jobs') IS NOT NULL"
_HAS_JOBS: LiteralString = "SELECT EXISTS (SELECT FROM goqueue.jobs)"
# As pgmigrate makes them.
_INITIALIZE: tuple[LiteralString, ...] = (
    "CREATE SCHEMA {schema}",
    "CREATE TYPE {type} AS ENUM ('auto', 'manual')",
    """
    CREATE TABLE {table} (
        version bigint NOT NULL PRIMARY KEY,
        description text NOT NULL,
        type {type} NOT NULL DEFAULT 'auto',
        installed_by text NOT NULL,
        installed_on timestamp without time zone DEFAULT now() NOT NULL
    )
    """,
)
_RECORD: LiteralString = "INSERT INTO {table} (version, description, installed_by) VALUES (%s, %s, current_user)"
_FORGET: LiteralString = "DELETE FROM {table} WHERE version = %s"


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
    """Return every version that is applied or pending, the lowest first, as ``pgmigrate info`` does.

    Nothing is changed or waited for. ``conninfo`` is as for ``migrate``. Raises MigrationError, also for a role that
    isn't allowed to see which versions are applied.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir)
    with _connected(conninfo) as connection:
        applied = plan.applied(connection)
    pending = plan.pending(applied)
    return [*applied, *(Migration(file.version, file.description, None, None) for file in pending)]


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
    libpq. One run waits for another, a minute at most. Pending files are applied in one transaction. A file named
    ``validate_…`` begins another one, so that it reads a table without the locks of the files before it. A file with
    NONTRANSACTIONAL in its name is applied between two transactions, statement by statement. So is the file of a
    version in migrations/online, before the version itself, if there are jobs. ``dry_run`` applies and then rolls back,
    without the files in migrations/online. ``on_version`` is called with each version when its turn comes.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir)
    with _connected(conninfo) as connection:
        _wait_for_turn(connection)
        pending = plan.pending(plan.applied(connection), target)
        apart = [file.path.name for file in pending if not file.transactional]
        if dry_run and apart:
            raise MigrationError(f"a dry run can't roll {apart[0]} back; give a lower --target to try what precedes it")
        online: dict[int, Path] = {} if dry_run or not _has_jobs(connection) else plan.online_files()
        groups = _groups(pending, as_one=dry_run, online=online)
        for number, group in enumerate(groups, 1):
            if group[0].version in online:
                plan.begin(connection)
                plan.run(connection, online[group[0].version], transactional=False)
            if group[0].transactional:
                with connection.transaction(force_rollback=dry_run):
                    plan.begin(connection)
                    for file in group:
                        plan.apply(connection, file, on_version)
                    if number == len(groups):
                        plan.call_back(connection)
            else:
                plan.begin(connection)
                for file in group:
                    plan.apply(connection, file, on_version)
                if number == len(groups):
                    with connection.transaction():
                        plan.call_back(connection)


def undo(conninfo: str = "", *, to: int, base_dir: Path | None = None) -> list[int]:
    """Take every applied version above ``to`` back, the highest first, and return them. Raises MigrationError.

    All of them or none: the undo files run in one transaction, with the deletion of their rows from schema_version.
    After ``to=0`` the schema and an empty schema_version remain: they are pgmigrate's, which goes on from there.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir)
    with _connected(conninfo) as connection:
        _wait_for_turn(connection)
        versions = [one.version for one in reversed(plan.applied(connection)) if one.version > to]
        files = [plan.undo_file(version) for version in versions]  # before anything is dropped
        if versions:
            with connection.transaction():
                plan.begin(connection)
                for version, file in zip(versions, files, strict=True):
                    plan.take_back(connection, version, file)
        return versions


class _File(NamedTuple):
    """The file of one version."""

    version: int
    description: str
    path: Path

    @property
    def transactional(self) -> bool:
        return "NONTRANSACTIONAL" not in self.description

    @property
    def validates(self) -> bool:
        return self.description.startswith("validate ")


def _groups(files: list[_File], *, as_one: bool, online: Container[int]) -> list[list[_File]]:
    """The files that are applied in one transaction each, or by themselves without one. ``as_one``: in one. ``online``:
    the versions that something else precedes."""
    groups: list[list[_File]] = []
    for file in files:
        begins = not groups or file.transactional != groups[-1][0].transactional
        if begins or file.version in online or (file.validates and not as_one):
            groups.append([])
        groups[-1].append(file)
    return groups


class _Plan:
    """A folder with migrations.yml and migrations/, and what it says is to be done."""

    def __init__(self, base_dir: Path | None) -> None:
        self._folder = Path(base_dir or migrations_dir())
        file = self._folder / "migrations.yml"
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise MigrationError(f"{file} can't be read: {error}") from error
        config = config if isinstance(config, dict) else {}
        schema = str(config.get("schema") or "public")
        self._schema = schema
        self._names = {
            "schema": sql.Identifier(schema),
            "table": sql.Identifier(schema, "schema_version"),
            "type": sql.Identifier(schema, "schema_version_type"),
        }
        self._session = [str(statement) for statement in config.get("session") or []]
        self._callbacks: list[Path] = []
        for callback in filter(None, str(config.get("callbacks") or "").split(",")):
            when, _, path = callback.partition(":")
            if when != "afterAll":
                raise MigrationError(f"{file}: got a callback {when}; goqueue runs those of the kind afterAll only")
            self._callbacks.append(self._folder / path)
        self._owner: str | None = None

    def applied(self, connection: Connection[Any]) -> list[Migration]:
        """The versions in schema_version, in their order."""
        seen = connection.execute(_SEEN, [self._schema]).fetchone()
        if seen is None:
            return []
        role, self._owner, usable, readable, reader = seen
        lacks = ([] if usable else [f"USAGE ON SCHEMA {self._schema}"]) + (
            [] if readable else [f"SELECT ON {self._schema}.schema_version"]
        )
        if lacks:
            grants = [reader] if reader else lacks
            raise MigrationError(
                f"the role {role} is not allowed to see which versions are applied. It lacks {' and '.join(lacks)}.\n"
                f"To let it look:  {' '.join(f'GRANT {grant} TO {role};' for grant in grants)}\n{self._who_migrates}"
            )
        return [Migration(*row) for row in connection.execute(self._sql(_APPLIED))]

    def pending(self, applied: list[Migration], target: int | None = None) -> list[_File]:
        """The files above the highest applied version, up to ``target``, in their order."""
        newest = max((one.version for one in applied), default=0)
        files: dict[int, _File] = {}
        for path in sorted((self._folder / "migrations").rglob("*.sql")):
            if found := _FILE.fullmatch(path.name):
                file = _File(int(found["version"]), found["description"].replace("_", " "), path)
                if file.version in files:
                    raise MigrationError(f"two files have version {file.version}: {files[file.version].path}, {path}")
                files[file.version] = file
        return [
            file
            for version, file in sorted(files.items())
            if newest < version and (target is None or version <= target)
        ]  # fmt: skip

    def online_files(self) -> dict[int, Path]:
        """Return the files that build indexes while programs write, by the version that they go before."""
        files = (self._folder / "migrations" / "online").glob("C*__*.sql")
        return {int(file.name[1:].partition("__")[0]): file for file in files}

    def begin(self, connection: Connection[Any]) -> None:
        """Run the statements of ``session``."""
        with _failing("the lock on the migrations was not had"):
            for statement in self._session:
                connection.execute(statement.encode())

    def apply(self, connection: Connection[Any], file: _File, on_version: Callable[[int], None] | None) -> None:
        """Apply one version and record it."""
        if on_version:
            on_version(file.version)
        with _failing(f"{file.path.name} failed and was rolled back", self._who_migrates):
            if connection.execute(_SEEN, [self._schema]).fetchone() is None:
                # Where somebody with more rights has made the schema, CREATE on the database isn't needed.
                there = connection.execute(_SCHEMA, [self._schema]).rowcount
                for statement in _INITIALIZE[there:]:
                    connection.execute(self._sql(statement))
        self.run(connection, file.path, transactional=file.transactional)
        with _failing(f"{file.path.name} was applied, but not recorded", self._who_migrates):
            connection.execute(self._sql(_RECORD), [file.version, file.description])

    def call_back(self, connection: Connection[Any]) -> None:
        """Run the callbacks that pgmigrate runs after the last version."""
        for path in self._callbacks:
            self.run(connection, path)

    def undo_file(self, version: int) -> Path:
        folder = self._folder / "migrations" / "undo"
        files = [file for file in folder.glob("U*__*.sql") if re.match(rf"U0*{version}__", file.name)]
        if len(files) != 1:
            found = f"{len(files)} files U{version:04d}__*.sql in {folder}"
            raise MigrationError(f"version {version} can't be undone: {found}. No version was taken back.")
        return files[0]

    def take_back(self, connection: Connection[Any], version: int, file: Path) -> None:
        """Run an undo file and forget its version, in a transaction of the caller's."""
        try:
            connection.execute(_text(file).encode())
            connection.execute(self._sql(_FORGET), [version])
        except psycopg.errors.DependentObjectsStillExist as error:
            raise MigrationError(
                f"{file.name} failed and was rolled back: {error.diag.message_primary}. No version was taken back.\n"
                f"{error.diag.message_detail}\n{self._remedy(error.diag.message_detail or '')}"
            ) from error
        except psycopg.Error as error:
            what = f"{file.name} failed and was rolled back"
            raise _migration_error(error, what, self._who_migrates, "\nNo version was taken back.") from error

    def _remedy(self, dependents: str) -> str:
        """What to do about objects that a version can't be taken back for. The server's text may be in any language."""
        roles = self._folder / "migrations" / "roles"
        names = re.findall(r"^CREATE POLICY (\w+)", _text(roles / "roles.sql"), re.MULTILINE) if roles.is_dir() else []
        if any(name in dependents for name in names):
            script = shlex.quote(str(roles / "drop_roles.sql"))
            return (
                f"The policies are those of roles.sql. Run first:  psql -v ON_ERROR_STOP=1 -f {script}\n"
                "Programs lose the rights that they have from goqueue's roles."
            )
        return "Drop these objects first, or change them not to need it."

    def run(self, connection: Connection[Any], file: Path, *, transactional: bool = True) -> None:
        """Run a file: in the caller's transaction as a whole, or outside of one statement by statement."""
        text = _text(file)
        # Outside of a transaction each statement has to be sent by itself.
        statements = [text] if transactional else split(text)
        state = " and was rolled back" if transactional else "; what it did stays, and the next run repeats the file"
        with _failing(f"{file.name} failed{state}", self._who_migrates, f"\n(file: {file})"):
            for statement in statements:
                connection.execute(statement.encode())

    def _sql(self, text: LiteralString) -> sql.Composed:
        return sql.SQL(text).format(**self._names)

    @property
    def _who_migrates(self) -> str:
        owner = self._owner and f"{self._owner}, which owns {self._schema}.schema_version, or a member of it"
        return f"To migrate, connect as {owner or 'a role with CREATE on the database'}."


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise MigrationError(f"Non ascii symbols in file: {file}, {error}") from error
    except OSError as error:
        raise MigrationError(f"{file} can't be read: {error.strerror}") from error


@contextmanager
def _connected(conninfo: Secret) -> Iterator[Connection[Any]]:
    """A connection that commits each statement by itself. Raises ConnectionRejectedError for one that no second attempt
    gets, MigrationError for whatever else fails."""
    problem = ""
    try:
        DatabaseConfig(url=conninfo)
    except ConfigError as error:  # libpq's own message would quote the string, which may hold a password
        problem = error.problems[0].partition(": ")[2]
    if problem:
        raise MigrationError(f"the connection string can't be used: {problem}")
    with (
        _failing("the migrations did not run"),
        connect(conninfo, fallback_application_name="goqueue migrate") as connection,
    ):
        try:
            yield connection
        finally:
            # The lock ends with the session; but a pooler's session goes on.
            with suppress(psycopg.Error):
                connection.execute(_UNLOCK)


def _has_jobs(connection: Connection[Any]) -> bool:
    return connection.execute(_HAS_TABLE).fetchone() == (True,) and connection.execute(_HAS_JOBS).fetchone() == (True,)


def _wait_for_turn(connection: Connection[Any]) -> None:
    """Take the lock until the connection closes. Between two tries no snapshot is held: building an index waits for
    whoever holds one, so that waiting within a statement would block the run that is waited for."""
    deadline = monotonic() + WAIT_SECONDS
    while connection.execute(_TRY_LOCK, [LOCK]).fetchone() == (False,):
        if monotonic() > deadline:
            holders = connection.execute(_HOLDER, [LOCK]).fetchall()
            who = ", ".join(f"process {pid} of the server ({name or 'unknown'})" for pid, name in holders)
            raise MigrationError(
                f"another run changes the schema{f': {who}' * bool(who)}. "
                f"It did not end within {WAIT_SECONDS:.0f} seconds; try again when it has."
            )
        sleep(0.1)


@contextmanager
def _failing(what: str, hint: str = "", end: str = "") -> Iterator[None]:
    """Raise MigrationError for an error of the server's; the hint belongs to missing rights."""
    try:
        yield
    except psycopg.Error as error:
        raise _migration_error(error, what, hint, end) from error


def _migration_error(error: psycopg.Error, what: str, hint: str = "", end: str = "") -> GoQueueError:
    if isinstance(rejected := translate(error), ConnectionRejectedError):
        return rejected
    text = f"{what}: {str(error).strip()}"
    if hint and isinstance(error, psycopg.errors.InsufficientPrivilege):
        text += f"\n{hint}"
    return MigrationError(text + end)


class MigrationFile(NamedTuple):
    """A migration as it is shipped."""

    version: int
    name: str
    #: Of its bytes, in hexadecimal.
    sha256: str


def migration_files(folder: Path) -> list[MigrationFile]:
    """The migrations of a folder, in their order."""
    return [
        MigrationFile(int(file.name[1:].partition("__")[0]), file.name, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.glob("V*.sql"))
    ]
