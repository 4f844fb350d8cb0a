"""Apply, list and undo migrations by pgmigrate's rules.

`pgmigrate migrate` does the same with the same files, table and lock. Each can continue the other's work. goqueue
doesn't call it, because it requires psycopg2, which pip has to compile. The SQL here is limited to pgmigrate's table,
schema_version, and to the lock.
"""

import hashlib
import re
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
from goqueue.files import run_command
from goqueue.postgres.lexemes import split
from goqueue.postgres.translate import translate
from goqueue.schemas import ALLOWED_SCHEMA, DEFAULT_SCHEMA, is_schema, lock_key, render

#: Every change of the schema goqueue holds this advisory lock; migrations.yml and roles/*.sql take it too. Others
#: have their own keys (`lock_key`).
LOCK = 29114455692768613
#: How long a run waits for another one.
WAIT_SECONDS = 60.0
_FILE = re.compile(r"V(?P<version>\d+)__(?P<description>.+)\.sql")
_TRY_LOCK = "SELECT pg_try_advisory_lock(%s)"
_LEAVE = ("SELECT pg_advisory_unlock_all()", "RESET ALL")
_HOLDER: LiteralString = """
    SELECT l.pid, a.application_name
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND (l.classid::bigint << 32) + l.objid::bigint = %s
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# Runs before migrations.yml sets the search_path. So functions and operators get exactly the types that they take.
_SEEN: LiteralString = """
    SELECT quote_ident(current_user::text), quote_ident(pg_get_userbyid(v.relowner)::text),
        has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(v.oid, 'SELECT'),
        (
            SELECT r.rolname FROM pg_roles AS r
            WHERE r.rolname = %s AND has_table_privilege(r.oid, v.oid, 'SELECT')
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
# As pgmigrate creates them.
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
_LOCKED = (
    "A long transaction holds a lock on the table. A longer wait would make all programs wait behind this run. "
    "End that transaction (the oldest xact_start in pg_stat_activity), or run this again at a quieter time."
)
_FORGET: LiteralString = "DELETE FROM {table} WHERE version = %s"


class MigrationError(GoQueueError):
    """A migration failed. The message has the server's message and names the file, if there is one."""


def migrations_dir() -> Path:
    """Return the folder with migrations.yml and migrations/: the package's if installed, else the checkout's."""
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / "migrations.yml").is_file() and next((folder / "migrations").glob("V*.sql"), None):
            return folder
    raise MigrationError(
        f"no migrations.yml and migrations/V*.sql in {package} or above it: install goqueue again, unpacked and "
        "complete (pip install --force-reinstall goqueue)"
    )


def migrations_hash(base_dir: Path | None = None) -> str:
    """Return the SHA-256 (hexadecimal) over the names and bytes of the files that ``migrate`` reads."""
    base = Path(base_dir or migrations_dir())
    folder = base / "migrations"
    files = [file for file in folder.rglob("*.sql") if {"undo", "roles"}.isdisjoint(file.relative_to(folder).parts)]
    digest = hashlib.sha256()
    for file in (base / "migrations.yml", *sorted(files)):
        for part in (file.relative_to(base).as_posix().encode(), file.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


class Migration(NamedTuple):
    """One version of the schema. ``applied_at`` is the server's local time, as pgmigrate stores it; None if pending."""

    version: int
    name: str
    applied_at: str | None
    applied_by: str | None

    @property
    def pending(self) -> bool:
        return self.applied_at is None


def list_migrations(
    conninfo: str = "", *, base_dir: Path | None = None, schema: str = DEFAULT_SCHEMA
) -> list[Migration]:
    """Return every applied or pending version, lowest first, as ``pgmigrate info`` does.

    Change nothing and wait for no lock. ``conninfo`` and ``schema`` are as for ``migrate``. Raises MigrationError, for
    example if the role can't read the applied versions.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir, schema)
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
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Apply the pending versions up to ``target`` (None: all). Raises MigrationError.

    ``conninfo`` is a libpq connection string or URL; the PG* environment variables supply what it omits. A run waits at
    most a minute for another run. Pending files are applied in one transaction. A file named ``validate_…`` starts a
    new transaction, so that it reads a table without the locks of earlier files. A file with NONTRANSACTIONAL in its
    name runs outside a transaction, statement by statement. If there are jobs, a version's file in migrations/online
    runs in the same way, before the version itself. ``dry_run`` applies and rolls back, without the files in
    migrations/online. ``on_version`` is called with each version before it is applied. The files name the schema
    goqueue; ``schema`` replaces it, and each schema has its own versions and its own lock.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir, schema)
    with _connected(conninfo) as connection:
        _wait_for_turn(connection, plan.lock)
        pending = plan.pending(plan.applied(connection), target)
        apart = [file.path.name for file in pending if not file.transactional]
        if dry_run and apart:
            raise MigrationError(f"a dry run can't roll back {apart[0]}; use a lower --target to try earlier versions")
        online: dict[int, Path] = {} if dry_run or not plan.has_jobs(connection) else plan.online_files()
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


def undo(conninfo: str = "", *, to: int, base_dir: Path | None = None, schema: str = DEFAULT_SCHEMA) -> list[int]:
    """Undo every applied version above ``to``, highest first, and return them. Raises MigrationError.

    The undo files and the deletion of their rows from schema_version run in one transaction. After ``to=0`` the schema
    and an empty schema_version remain, from which pgmigrate can start again.
    """
    conninfo = Secret(conninfo)
    plan = _Plan(base_dir, schema)
    with _connected(conninfo) as connection:
        _wait_for_turn(connection, plan.lock)
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
    """Group the files by transaction; a file outside a transaction is its own group. ``as_one``: use one group.
    ``online``: the versions with a file in migrations/online, which runs before them."""
    groups: list[list[_File]] = []
    for file in files:
        begins = not groups or file.transactional != groups[-1][0].transactional
        if begins or file.version in online or (file.validates and not as_one):
            groups.append([])
        groups[-1].append(file)
    return groups


class _Plan:
    """The contents of a folder with migrations.yml and migrations/, for a schema."""

    def __init__(self, base_dir: Path | None, schema: str) -> None:
        if not is_schema(schema):
            raise MigrationError(f"the schema can't be named {schema!r}; expected {ALLOWED_SCHEMA}")
        self._folder = Path(base_dir or migrations_dir())
        file = self._folder / "migrations.yml"
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise MigrationError(f"{file} can't be read: {error}") from error
        config = config if isinstance(config, dict) else {}
        self._named = schema
        self.lock = lock_key(LOCK, schema)
        if schema == DEFAULT_SCHEMA:
            schema = str(config.get("schema") or "public")
        self._schema = schema
        self._names = {
            "schema": sql.Identifier(schema),
            "table": sql.Identifier(schema, "schema_version"),
            "type": sql.Identifier(schema, "schema_version_type"),
        }
        self._session = [render(str(statement), self._named) for statement in config.get("session") or []]
        self._callbacks: list[Path] = []
        for callback in filter(None, str(config.get("callbacks") or "").split(",")):
            when, _, path = callback.partition(":")
            if when != "afterAll":
                raise MigrationError(f"{file}: got a callback {when}; goqueue runs only afterAll callbacks")
            self._callbacks.append(self._folder / path)
        self._owner: str | None = None

    def applied(self, connection: Connection[Any]) -> list[Migration]:
        """Return the versions in schema_version, in order."""
        seen = connection.execute(_SEEN, [self._reader, self._schema]).fetchone()
        if seen is None:
            return []
        role, self._owner, usable, readable, reader = seen
        lacks = ([] if usable else [f"USAGE ON SCHEMA {self._schema}"]) + (
            [] if readable else [f"SELECT ON {self._schema}.schema_version"]
        )
        if lacks:
            grants = [reader] if reader else lacks
            raise MigrationError(
                f"the role {role} can't read the applied versions. It lacks {' and '.join(lacks)}.\n"
                f"To allow it:  {' '.join(f'GRANT {grant} TO {role};' for grant in grants)}\n{self._who_migrates}"
            )
        return [Migration(*row) for row in connection.execute(self._sql(_APPLIED))]

    def pending(self, applied: list[Migration], target: int | None = None) -> list[_File]:
        """Return the files above the highest applied version, up to ``target``, in order."""
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
        """Return the files that build indexes concurrently, by the version that they precede."""
        files = (self._folder / "migrations" / "online").glob("C*__*.sql")
        return {int(file.name[1:].partition("__")[0]): file for file in files}

    def begin(self, connection: Connection[Any]) -> None:
        """Run the ``session`` statements of migrations.yml."""
        with _failing("could not obtain the migration lock"):
            for statement in self._session:
                connection.execute(statement.encode())

    def apply(self, connection: Connection[Any], file: _File, on_version: Callable[[int], None] | None) -> None:
        """Apply one version and record it."""
        if on_version:
            on_version(file.version)
        with _failing(f"{file.path.name} failed and was rolled back", self._who_migrates):
            if connection.execute(_SEEN, [self._reader, self._schema]).fetchone() is None:
                # If a role with more rights has created the schema, CREATE on the database isn't needed.
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
            raise MigrationError(f"version {version} can't be undone: {found}. No version was undone.")
        return files[0]

    def take_back(self, connection: Connection[Any], version: int, file: Path) -> None:
        """Run an undo file and delete its version's row, in the caller's transaction."""
        try:
            connection.execute(self._text(file).encode())
            connection.execute(self._sql(_FORGET), [version])
        except psycopg.errors.DependentObjectsStillExist as error:
            raise MigrationError(
                f"{file.name} failed and was rolled back: {error.diag.message_primary}. No version was undone.\n"
                f"{error.diag.message_detail}\n{self._remedy(error.diag.message_detail or '')}"
            ) from error
        except psycopg.Error as error:
            what = f"{file.name} failed and was rolled back"
            raise _migration_error(error, what, self._who_migrates, "\nNo version was undone.") from error

    def _remedy(self, dependents: str) -> str:
        """Return what to do about objects that block an undo. The server's text can be in any language."""
        roles = self._folder / "migrations" / "roles"
        names = re.findall(r"^CREATE POLICY (\w+)", _text(roles / "roles.sql"), re.MULTILINE) if roles.is_dir() else []
        if any(name in dependents for name in names):
            return (
                f"The policies are those of roles.sql. Run first:  {run_command('drop_roles.sql', self._named)}\n"
                "Programs then lose the rights of goqueue's roles."
            )
        return "Drop these objects first, or remove their dependency."

    def run(self, connection: Connection[Any], file: Path, *, transactional: bool = True) -> None:
        """Run a file: as a whole in the caller's transaction, or outside of one, statement by statement."""
        text = self._text(file)
        # Outside a transaction, each statement must be sent separately.
        statements = [text] if transactional else split(text)
        state = " and was rolled back" if transactional else "; completed statements remain; the next run repeats it"
        with _failing(f"{file.name} failed{state}", self._who_migrates, f"\n(file: {file})"):
            for statement in statements:
                connection.execute(statement.encode())

    def has_jobs(self, connection: Connection[Any]) -> bool:
        return all(
            connection.execute(render(query, self._named).encode()).fetchone() == (True,)
            for query in (_HAS_TABLE, _HAS_JOBS)
        )

    def _sql(self, text: LiteralString) -> sql.Composed:
        return sql.SQL(text).format(**self._names)

    def _text(self, file: Path) -> str:
        """Return a file's text for this schema."""
        return render(_text(file), self._named)

    @property
    def _reader(self) -> str:
        return render("goqueue_reader", self._named)

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
    """Yield a connection in autocommit mode. Raises ConnectionRejectedError if a retry can't succeed, else
    MigrationError."""
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
            # The lock and the settings end with the session, but a pooler keeps the session open.
            with suppress(psycopg.Error):
                for statement in _LEAVE:
                    connection.execute(statement)


def _wait_for_turn(connection: Connection[Any], lock: int) -> None:
    """Take the lock until the connection closes. Hold no snapshot between attempts: an index build waits for old
    snapshots, so waiting inside a statement would block the other run."""
    deadline = monotonic() + WAIT_SECONDS
    while connection.execute(_TRY_LOCK, [lock]).fetchone() == (False,):
        if monotonic() > deadline:
            holders = connection.execute(_HOLDER, [lock]).fetchall()
            who = ", ".join(f"process {pid} of the server ({name or 'unknown'})" for pid, name in holders)
            raise MigrationError(
                f"another run is changing the schema{f': {who}' * bool(who)}. "
                f"It did not end within {WAIT_SECONDS:.0f} seconds; try again after that."
            )
        sleep(0.1)


@contextmanager
def _failing(what: str, hint: str = "", end: str = "") -> Iterator[None]:
    """Raise MigrationError for a server error. The hint is for missing rights."""
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
    # If the migrations' own lock is taken, the server's message has a hint.
    if isinstance(error, psycopg.errors.LockNotAvailable) and not error.diag.message_hint:
        text += f"\n{_LOCKED}"
    return MigrationError(text + end)


class MigrationFile(NamedTuple):
    """A shipped migration."""

    version: int
    name: str
    #: SHA-256 of its bytes, in hexadecimal.
    sha256: str


def migration_files(folder: Path) -> list[MigrationFile]:
    """Return the migrations of a folder, in order."""
    return [
        MigrationFile(int(file.name[1:].partition("__")[0]), file.name, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.glob("V*.sql"))
    ]
