"""The checks of `goqueue check`: server, migrations, schema, queries, rights, vacuum. Nothing is changed.

Statements: sql/checks.sql.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from math import isnan
from time import sleep
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, errors, sql

from goqueue.config import format_duration
from goqueue.counts import counted
from goqueue.files import APART, run_command, shipped_folder
from goqueue.migrate import migration_files
from goqueue.postgres.admin_queries import AdminQueries, admin_queries
from goqueue.postgres.queries import Statement, load_statements
from goqueue.schemas import DEFAULT_SCHEMA, render
from goqueue.workbench.durability import check_durability
from goqueue.workbench.findings import Check, Finding, Level, ended, in_schema
from goqueue.workbench.plans import GenericPlan, generic_plans
from goqueue.workbench.proofs import examine
from goqueue.workbench.rights import RUN_ROLES, check_roles, expected_rights, identifier
from goqueue.workbench.schema import check_schema

__all__ = ["Check", "Finding", "Level", "SettingValue", "read_settings", "run_checks"]

OLDEST_SERVER, NEWEST_SERVER = 14, 19
#: A transaction open for longer keeps more dead rows than claims can skip cheaply.
OLD_TRANSACTION = timedelta(minutes=5)
#: The same limit in transactions, for standbys and slots, which report no time.
_FAR_BEHIND = 1_000_000
#: 8 MB: a sequential scan of a smaller table can be the best plan.
_LARGE_PAGES = 1000
#: Five times autovacuum's threshold (V0006__tune_autovacuum.sql).
_MANY_DEAD = 100_000
_COUNTED_PENDING = 200_000
#: The trigger holds its lock for microseconds. A session that has it in all of these looks, this many seconds apart,
#: has leaked it.
_LOOKS, _LOOK_AGAIN = 4, 0.15
#: If statements fail for more reasons than this, the cause is the schema, which has its own check.
_MOST_REASONS = 2
_MIGRATE = "goqueue migrate   (or pgmigrate migrate, where the PG* variables name the database)"


class _State(NamedTuple):
    """The row of the query server_state, and the values that all checks share."""

    version_number: int
    version: str
    encoding: str
    database: str
    role: str
    is_standby: bool
    sees_all_sessions: bool
    sees_schema: bool
    is_migrated: bool
    has_checksums: bool
    has_roles: bool
    roles: list[str]
    inherited: list[str]
    is_superuser: bool
    schema: str = DEFAULT_SCHEMA

    @property
    def queries(self) -> AdminQueries:
        return admin_queries(self.schema)

    @property
    def sees_own_jobs_only(self) -> bool:
        return self.has_roles and self.roles == [render("goqueue_producer", self.schema)]

    @property
    def is_for_operators(self) -> bool:
        """True unless roles.sql gives the role less than an operator's rights."""
        powerful = {render(role, self.schema) for role in ("goqueue_operator", "goqueue_owner")}
        return not self.has_roles or not powerful.isdisjoint(self.roles)

    def restore(self, groups: Iterable[str]) -> str:
        """Return the statement that restores the role's rights as a member of one of the groups."""
        groups = list(groups)
        if any(group in self.inherited for group in groups):
            return RUN_ROLES
        role = identifier(self.role)
        if self.version_number < 160_000:
            return f"ALTER ROLE {role} INHERIT;   (or let its programs SET ROLE {groups[0]})"
        return f"GRANT {groups[0]} TO {role} WITH INHERIT TRUE;   (or let its programs SET ROLE {groups[0]})"

    def grant(self, privileges: str) -> str:
        """Return the statement that grants the role its rights; through the roles of roles.sql if they exist."""
        role = identifier(self.role)
        if self.has_roles:
            return (
                f"GRANT goqueue_producer TO {role};   (to add jobs; to work on them goqueue_worker, to read them all "
                "goqueue_reader, to run every statement goqueue_operator)"
            )
        return f"GRANT {privileges} TO {role};   (or, for roles with less: {RUN_ROLES})"


class SettingValue(NamedTuple):
    """A row of the query list_settings."""

    name: str
    value: str
    set_by: str | None


def run_checks(
    connection: Connection[Any],
    *,
    sql_dir: str = "",
    compare: Callable[[list[str]], Check] | None = None,
    old_transaction: timedelta = OLD_TRANSACTION,
    settings: list[SettingValue] | None = None,
    schema: str = DEFAULT_SCHEMA,
) -> Iterator[Check]:
    """Yield each check in turn, on a connection in autocommit mode. ``sql_dir`` is the folder of SQL files to check.
    ``compare`` receives the names of its changed queries that are safe to run elsewhere. ``settings`` are those of a
    connection without goqueue's own (`read_settings`), which would hide the server's.

    A check is skipped, with the reason, if the role lacks the right or the server times it out; the others continue.
    Raises psycopg's error if the connection is lost.
    """
    # On rollback psycopg deallocates its prepared statements, and with them generic_plans' own.
    connection.prepare_threshold = None
    state = _State(*admin_queries(schema).server_state(connection), schema=schema)
    for check in _checks(
        connection, state, sql_dir=sql_dir, compare=compare, old_transaction=old_transaction, settings=settings
    ):
        yield in_schema(check, schema)


def _checks(
    connection: Connection[Any],
    state: _State,
    *,
    sql_dir: str,
    compare: Callable[[list[str]], Check] | None,
    old_transaction: timedelta,
    settings: list[SettingValue] | None,
) -> Iterator[Check]:
    schema = state.schema
    yield _server(state)
    values = read_settings(connection) if settings is None else settings
    yield _run("settings", lambda: _settings(connection, state, values))
    if not state.is_migrated:
        yield ended("migrations", "none is applied", [_unmigrated(connection, state)])
        return
    if not state.sees_schema:
        if state.has_roles:
            yield _run("roles", lambda: check_roles(connection, schema))
        yield ended(
            "grants",
            "no right on the schema",
            [Finding(Level.FAILED, f"the role {state.role} can't use the schema goqueue", "every statement needs it",
                     state.restore(state.roles) if state.roles else state.grant("USAGE ON SCHEMA goqueue"))],
        )  # fmt: skip
        return
    found_pending: list[Finding] = []
    newer: list[int] = []
    yield _run("migrations", lambda: _migrations(connection, state, found_pending, newer))
    pending = bool(found_pending)
    if not (state.has_checksums or _has_jobs(connection, schema)):
        return
    unlike = "migrations are pending" if pending else "a newer release migrated the database" if newer else ""
    yield (
        _run("schema", lambda: check_schema(connection, state.database, has_roles=state.has_roles, schema=schema))
        if not unlike
        else Check("schema", Level.SKIPPED, f"not compared: {unlike}")
    )
    statements = load_statements(schema=schema).copy()
    changed: list[str] = []
    yield _run("queries", lambda: _queries(connection, state, sql_dir, statements, changed))
    if compare and changed:
        yield compare(changed)
    yield _run("roles", lambda: _roles(connection, state, unlike))
    plans = generic_plans(connection, [one for one in statements.values() if one.file.name not in APART])
    yield _run("grants", lambda: _grants(state, plans, pending=pending))
    own_only = "the role sees only its own jobs (goqueue_producer); check with another role"
    yield (
        Check("plans", Level.SKIPPED, own_only)
        if state.sees_own_jobs_only
        else _run("plans", lambda: _plans(connection, state, plans))
    )
    yield _run("autovacuum", lambda: _autovacuum(connection, state))
    yield _run("horizon", lambda: _horizon(connection, state, old_transaction))
    yield _run("listeners", lambda: _listeners(connection, state))
    yield (
        Check("claim index", Level.SKIPPED, own_only)
        if state.sees_own_jobs_only
        else _run("claim index", lambda: _claim_index(connection, state))
    )
    yield (
        Check("durability", Level.SKIPPED, "a standby acknowledges no job")
        if state.is_standby
        else _run(
            "durability", partial(check_durability, connection, sees_standbys=state.sees_all_sessions, schema=schema)
        )
    )


def _run(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (errors.InsufficientPrivilege, errors.QueryCanceled, errors.LockNotAvailable) as error:
        return Check(name, Level.SKIPPED, f"can't be checked: {_said(error)}")
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as error:
        return Check(name, Level.SKIPPED, f"can't be checked before all migrations are applied: {_said(error)}")


# --- the server -----------------------------------------------------------------------------------------------------


def _server(state: _State) -> Check:
    findings = []
    major = state.version_number // 10_000
    if major < OLDEST_SERVER:
        findings.append(
            Finding(
                Level.FAILED,
                f"the server is PostgreSQL {state.version}",
                f"goqueue's statements need {OLDEST_SERVER} or newer",
                f"upgrade the server to {OLDEST_SERVER} or newer (pg_upgrade)",
            )
        )
    if major > NEWEST_SERVER:
        findings.append(
            Finding(
                Level.NOTE,
                f"the server is PostgreSQL {state.version}",
                f"this version of goqueue was tested with {OLDEST_SERVER} to {NEWEST_SERVER}",
            )
        )
    if state.encoding != "UTF8":
        findings.append(
            Finding(
                Level.FAILED,
                f"the database {state.database} is encoded in {state.encoding}",
                "names and payloads can be any Unicode; some can't be stored here, or are returned as bytes",
                f"createdb --encoding=UTF8 --template=template0 NEW && pg_dump {state.database} | psql NEW",
            )
        )
    if state.is_standby:
        findings.append(
            Finding(
                Level.FAILED,
                "the server is a standby",
                "it is read-only: jobs can't be created or claimed",
                "connect to the primary (target_session_attrs=read-write in the URL)",
            )
        )
    return ended(
        "server",
        f"PostgreSQL {state.version}, {state.encoding}, database {state.database}, role {state.role}",
        findings,
    )


class _Setting(NamedTuple):
    """The expected value of a setting (None: the server's own), the level of a difference and the reason."""

    wanted: str | None
    level: Level
    why: str
    is_bad: Callable[[str], bool]


def _is_on(value: str) -> bool:
    return value.lower() in ("on", "true", "yes", "1")


def _is_off(value: str) -> bool:
    return value.lower() in ("off", "false", "no", "0")


def _is_short(value: str) -> bool:
    """Return True if a limit is set to less than a second. A number without a unit is in milliseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(us|ms|)", value.strip())
    return match is not None and 0 < float(match[1]) < (1_000_000 if match[2] == "us" else 1000)


def _hides_catalogue(value: str) -> bool:
    """Return True if a search path names pg_catalog after another schema. If not named, it comes first."""
    return "pg_catalog" in [name.strip(' "') for name in value.split(",")][1:]


_UNSAFE = "a crash of the host can destroy the whole cluster, not only the latest jobs"
_LIMIT = "a statement that runs or waits for longer is cancelled: StorageUnavailableError"
_BLIND = "plans read whole tables instead of each statement's index"
#: Settings that change the effect of our statements, on our own connections or a caller's (`bound_to`). Other settings
#: change nothing: see tests/test_odd_connections.py.
_SETTINGS = {
    "fsync": _Setting("on", Level.WARNING, _UNSAFE, _is_off),
    "full_page_writes": _Setting(
        "on", Level.WARNING, "a crash in the middle of a write can destroy pages permanently", _is_off
    ),
    "synchronous_commit": _Setting(  # some values are stronger than on
        "on",
        Level.WARNING,
        "a crash loses the latest commits: jobs that were reported as created",
        _is_off,
    ),
    "default_transaction_read_only": _Setting("off", Level.FAILED, "no job can be created, claimed or ended", _is_on),
    "default_transaction_isolation": _Setting(
        "'read committed'",
        Level.WARNING,
        "on a caller's connection, concurrent claims and changes fail with TransactionConflictError",
        lambda value: value.lower() in ("serializable", "repeatable read"),
    ),
    "session_replication_role": _Setting(
        "origin", Level.WARNING, "triggers don't fire: new jobs wake no idle worker", lambda value: value == "replica"
    ),
    "row_security": _Setting(
        "on", Level.FAILED, "statements subject to policies are rejected: of producers, workers, readers", _is_off
    ),
    "search_path": _Setting(
        None,
        Level.WARNING,
        "another schema's function or operator replaces the server's of the same name",
        _hides_catalogue,
    ),
    "client_encoding": _Setting(
        "UTF8",
        Level.WARNING,
        "on a caller's connection, text outside the encoding is rejected",
        lambda value: re.sub(r"\W", "", value).upper() not in ("UTF8", "UNICODE"),
    ),
    "statement_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "lock_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "transaction_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "idle_in_transaction_session_timeout": _Setting(
        None, Level.WARNING, "a program that pauses in a transaction for longer loses its connection", _is_short
    ),
    "exit_on_error": _Setting("off", Level.WARNING, "any error ends the session, even a duplicate key", _is_on),
    "enable_indexscan": _Setting("on", Level.WARNING, _BLIND, _is_off),
    "enable_indexonlyscan": _Setting("on", Level.WARNING, _BLIND, _is_off),
}
_SHOWN = (*list(_SETTINGS)[:4], "default_transaction_isolation")


def read_settings(connection: Connection[Any]) -> list[SettingValue]:
    """Return the settings for `run_checks`, as this connection has them. Query: list_settings."""
    return sorted(SettingValue(*row) for row in admin_queries().list_settings(connection, names=list(_SETTINGS)))


def _settings(connection: Connection[Any], state: _State, values: list[SettingValue]) -> Check:
    findings = []
    for name, value, set_by in values:
        if set_by == "client" and name.endswith("_timeout"):
            continue  # set by goqueue's own configuration
        if _matters(name, value, state, state.roles):
            wanted, level, why, _ = _SETTINGS[name]
            findings.append(Finding(level, f"{name} is {value}", why, _set(name, wanted, set_by)))
    seen = {(one.name, one.set_by) for one in values}
    for name, value, set_by, roles in state.queries.list_default_settings(connection, names=list(_SETTINGS)):
        if (name, set_by) not in seen and _matters(name, value, state, roles):
            _, level, why, _ = _SETTINGS[name]
            found = f"{name} is {value} by {set_by}"
            findings.append(Finding(level, found, why, f"{set_by} RESET {name};   (for new sessions)"))
    shown = ", ".join(f"{name} {value}" for name, value, _ in values if name in _SHOWN)
    return ended("settings", shown, findings)


def _matters(name: str, value: str, state: _State, roles: list[str]) -> bool:
    """Return True if the value is a problem. ``roles``: the roles.sql roles of the login that has the setting."""
    if not _SETTINGS[name].is_bad(value):
        return False
    if name == "default_transaction_read_only":
        return roles != [render("goqueue_reader", state.schema)]
    if name == "row_security":
        return state.has_roles
    return name != "client_encoding" or state.encoding == "UTF8"


def _set(name: str, value: str | None, set_by: str | None) -> str:
    if set_by == "client":
        return f"remove {name} from the connection's own options (options in the URL, or PGOPTIONS)"
    change = f"RESET {name}" if value is None else f"SET {name} = {value}"
    if set_by is not None:  # overrides the server's own
        return f"{set_by} {change};   (for new sessions)"
    return f"ALTER SYSTEM {change}; SELECT pg_reload_conf();"


# --- migrations and schema ------------------------------------------------------------------------------------------


def _has_jobs(connection: Connection[Any], schema: str) -> bool:
    return any(name == "jobs" for name, *_ in admin_queries(schema).list_table_states(connection))


def _unmigrated(connection: Connection[Any], state: _State) -> Finding:
    if not _has_jobs(connection, state.schema):
        return Finding(
            Level.FAILED,
            f"the database {state.database} has no goqueue tables",
            "nothing works without them; or this is the wrong database (`goqueue config` shows the configured one)",
            _MIGRATE,
        )
    return Finding(
        Level.FAILED,
        f"the database {state.database} has goqueue.jobs, but not goqueue.schema_version",
        "the applied migrations are unknown, and migrating again would fail on existing objects",
        "restore goqueue.schema_version from a backup (pg_restore -n goqueue -t schema_version)",
    )


def _migrations(connection: Connection[Any], state: _State, pending: list[Finding], newer: list[int]) -> Check:
    """Fill ``pending`` with a finding if migrations are pending, and ``newer`` with the versions of a newer release,
    for other checks."""
    shipped = {file.version: file for file in migration_files(shipped_folder("migrations"))}
    why = "the statements need columns and indexes that are missing"
    if not state.has_checksums:
        count = state.queries.count_applied_migrations(connection)
        if count and not _has_jobs(connection, state.schema):
            pending.append(
                Finding(
                    Level.FAILED,
                    f"the database {state.database} records {count} migrations, but has no table goqueue.jobs",
                    "it is another application's schema of this name, or a backup was restored in part",
                    "check with `goqueue config` that the database is right; then restore the schema from a backup",
                )
            )
            return ended("migrations", "not goqueue's", pending)
        found = "migrations are pending: there is no table goqueue.migration_checksums"
        pending.append(Finding(Level.FAILED, found, why, _MIGRATE))
        return ended("migrations", "only the first are applied", pending)
    applied = {version: sha256 for version, _, sha256 in state.queries.list_applied_migrations(connection)}
    if missing := [file.name for version, file in shipped.items() if version not in applied]:
        pending.append(Finding(Level.FAILED, f"pending: {', '.join(missing)}", why, _MIGRATE))
    findings = [*pending]
    newer += [version for version in applied if version not in shipped]
    if newer:
        findings.append(
            Finding(
                Level.WARNING,
                f"this goqueue does not know the database's version {', '.join(map(str, newer))}",
                "a newer release migrated it; its changes are unknown here",
                "upgrade goqueue here to the release that migrated the database",
            )
        )
    for version, file in shipped.items():
        recorded = applied.get(version, file.sha256)
        if recorded is None:
            findings.append(
                Finding(
                    Level.NOTE,
                    f"no checksum was recorded for {file.name}",
                    "it is unknown whether the file was edited after it was applied",
                    run_command("record_checksums.sql"),
                )
            )
        elif recorded != file.sha256:
            findings.append(
                Finding(
                    Level.FAILED,
                    f"{file.name} differs from the applied text: sha256 {recorded[:12]}… then, {file.sha256[:12]}… now",
                    "the file was edited after it was applied, or the database was migrated from other files: the "
                    "schema may differ from what this release expects",
                    "restore the file, and write a new migration for the change; or, if "  # noqa: S608
                    "the check schema finds no difference: UPDATE goqueue.migration_checksums SET sha256 = "
                    f"'{file.sha256}' WHERE version = {version};",
                )
            )
    return ended("migrations", f"{len(applied)} applied, the latest is {max(applied, default=0)}", findings)


# --- queries --------------------------------------------------------------------------------------------------------


def _queries(
    connection: Connection[Any], state: _State, sql_dir: str, statements: dict[str, Statement], runnable: list[str]
) -> Check:
    """Fill ``statements``, which has the shipped ones, with the folder's that are safe to plan. Fill ``runnable`` with
    the names of those that are safe to run on a scratch database."""
    if not sql_dir:
        return Check("queries", Level.OK, "the shipped SQL files (GOQUEUE_DATABASE_SQL_DIR is not set)")
    proof, fit = examine(connection, sql_dir, state.schema)
    for name in proof.changed or ():
        del statements[name]
    statements |= fit.planned
    runnable += fit.run
    findings = [
        Finding(
            Level.FAILED,
            problem,
            "calls would fail, or slow down as the table grows; the store rejects an incompatible folder",
            f"goqueue sql diff {sql_dir}",
        )
        for problem in proof.problems
    ]
    findings += [
        Finding(Level.WARNING, text, "the release's changes to it have no effect", f"goqueue sql diff {sql_dir}")
        for text in proof.outdated
    ]
    findings += [Finding(Level.NOTE, f"not proved: {text}") for text in proof.unproved]
    changed = "can't be used" if proof.changed is None else "all as shipped"
    if proof.changed:
        changed = f"changed: {', '.join(proof.changed)}"
    return ended("queries", f"{sql_dir}: {changed}", findings)


def _roles(connection: Connection[Any], state: _State, unlike: str) -> Check:
    """Check the roles. ``unlike``: why the schema differs from this release's; empty if it doesn't."""
    if state.has_roles:
        if unlike:
            return Check("roles", Level.SKIPPED, f"not compared: {unlike}")
        return check_roles(connection, state.schema)
    if state.roles and not state.is_superuser:
        groups = ", ".join(state.roles)
        finding = Finding(
            Level.FAILED,
            f"the role {state.role} is a member of {groups}, which has no rights in the database {state.database}",
            "roles belong to the server, rights to each database: roles.sql was not run in this one",
            RUN_ROLES,
        )
        return ended("roles", "migrations/roles/roles.sql was not run in this database", [finding])
    return Check("roles", Level.OK, "none: migrations/roles/roles.sql was not run in this database")


def _grants(state: _State, plans: dict[str, GenericPlan | psycopg.Error], *, pending: bool) -> Check:
    denied = {name: plan for name, plan in plans.items() if isinstance(plan, errors.InsufficientPrivilege)}
    broken = {name: plan for name, plan in plans.items() if isinstance(plan, psycopg.Error) and name not in denied}
    findings = []
    reasons: dict[str, list[str]] = {}
    for name, error in broken.items():
        reasons.setdefault(_said(error), []).append(name)
    mend = "fix the problems that the checks schema and queries find"
    if not pending and len(reasons) > _MOST_REASONS:
        count = f"{len(broken)} statements can't be run, for {len(reasons)} reasons"
        findings.append(Finding(Level.FAILED, count, "the store's methods of these names fail", mend))
    elif not pending:
        findings += [
            Finding(
                Level.FAILED,
                f"{', '.join(names)} can't be run: {reason}",
                "the store's methods of these names fail",
                mend,
            )
            for reason, names in reasons.items()
        ]
    elif broken:
        count = f"{counted(len(broken), 'statement')} can't be run before all migrations are applied"
        findings.append(Finding(Level.FAILED, count, "the store's methods of these names fail", _MIGRATE))
    known = expected_rights(state.schema).queries
    groups = [role for role in state.roles if state.has_roles and denied.keys() & set(known[role])]
    lost = [name for name in denied if any(name in known[role] for role in groups)]
    said = "; ".join(sorted({_said(error) for error in denied.values()}))
    if lost:
        findings.append(
            Finding(
                Level.FAILED,
                f"the role {state.role}, a member of {', '.join(groups)}, can't run {', '.join(lost)}",
                said,
                state.restore(groups),
            )
        )
    elif denied and ("ping" in denied or not (state.has_roles and state.roles)):
        findings.append(
            Finding(
                Level.FAILED if "ping" in denied else Level.NOTE,
                f"the role {state.role} can't run {', '.join(denied)}",
                f"{said}. Fine for a role that only reads",
                state.grant(
                    "SELECT, INSERT, UPDATE, DELETE ON goqueue.jobs, goqueue.job_failures, goqueue.paused_queues"
                ),
            )
        )
    may = len(plans) - len(denied) - len(broken)
    member = f" ({', '.join(state.roles)})" if state.roles and denied else ""
    statements = counted(len(plans), "statement")
    return ended("grants", f"the role {state.role}{member} can run {may} of {statements}", findings)


def _plans(connection: Connection[Any], state: _State, plans: dict[str, GenericPlan | psycopg.Error]) -> Check:
    pages = {name: pages for name, pages, *_ in state.queries.list_table_states(connection)}
    known = {name: plan for name, plan in plans.items() if isinstance(plan, GenericPlan)}
    findings = [
        Finding(
            Level.WARNING,
            f"{name} would read the whole table goqueue.{table}, {counted(pages[table], 'page')}",
            "by the statistics, the server considers that cheapest; its cost grows with the table",
            f"VACUUM (ANALYZE) goqueue.{table};   then see the checks schema and queries",
        )
        for name, plan in known.items()
        for table in sorted(plan.scanned_tables)
        if pages.get(table, 0) >= _LARGE_PAGES
    ]
    large = [f"{name} {counted(count, 'page')}" for name, count in pages.items()]
    return ended("plans", f"{counted(len(known), 'statement')} planned on {', '.join(large)}", findings)


# --- vacuum ---------------------------------------------------------------------------------------------------------


def _autovacuum(connection: Connection[Any], state: _State) -> Check:
    queries = state.queries
    findings = [
        Finding(
            Level.WARNING,
            f"{name} is off",
            "autovacuum does not run: dead rows accumulate, and claims get slower with every job",
            _set(name, "on", None),
        )
        for name, value, _ in queries.list_settings(connection, names=["autovacuum", "track_counts"])
        if value != "on"
    ]
    shown = []
    for name, _, live, dead, changes, vacuumed_at, analyzed_at, age, forced, is_on in queries.list_table_states(
        connection
    ):
        table = f"goqueue.{name}"
        shown.append(f"{name} {counted(live, 'row')}, {dead:,} dead")
        if not is_on:
            findings.append(
                Finding(
                    Level.WARNING,
                    f"autovacuum is off for {table}",
                    "dead rows accumulate, and claims get slower with every job",
                    f"ALTER TABLE {table} RESET (autovacuum_enabled);",
                )
            )
        if dead > max(_MANY_DEAD, live // 10):
            when = f"last vacuumed {vacuumed_at:%Y-%m-%d %H:%M %Z}" if vacuumed_at else "never vacuumed"
            findings.append(
                Finding(
                    Level.WARNING,
                    f"{table} has {dead:,} dead rows and {live:,} live ones, by the statistics; {when}",
                    "vacuum is late, or something holds the horizon back (see horizon): claims read these rows",
                    f"VACUUM (ANALYZE, VERBOSE) {table};",
                )
            )
        if analyzed_at is None and max(live, changes) > 50_000:
            findings.append(
                Finding(
                    Level.WARNING,
                    f"{table} was never analyzed",
                    "the planner has to guess",
                    f"ANALYZE {table};",
                )
            )
        if age > forced:
            findings.append(
                Finding(
                    Level.FAILED if age > 1_500_000_000 else Level.WARNING,
                    f"the oldest transaction id of {table} is {age:,} old; the server forces a vacuum at {forced:,}",
                    "at 2,100,000,000 the server stops writing",
                    f"VACUUM (FREEZE, VERBOSE) {table};",
                )
            )
    return ended("autovacuum", "; ".join(shown), findings)


def _horizon(connection: Connection[Any], state: _State, old: timedelta) -> Check:
    rows = list(admin_queries().list_horizon_holders(connection, least_age=old))
    findings = [_holder(connection, _Holder(*row)) for row in rows]
    if not state.sees_all_sessions:
        findings.append(
            Finding(
                Level.NOTE,
                f"the role {state.role} can't see the age of other roles' transactions",
                "they can hold the snapshot horizon back, and are not listed here",
                f"GRANT pg_read_all_stats TO {identifier(state.role)};"
                if state.is_for_operators
                else "run `goqueue check` as an operator's login that has pg_read_all_stats",
            )
        )
    what = f"vacuum is held back by {len(rows)}" if rows else "nothing holds vacuum back"
    return ended("horizon", f"{what} (transactions of {format_duration(old)} or longer)", findings)


class _Holder(NamedTuple):
    """A row of the query list_horizon_holders."""

    kind: str
    name: str
    role: str | None
    application: str | None
    state: str | None
    since: datetime | None
    transactions: int | None


def _holder(connection: Connection[Any], row: _Holder) -> Finding:
    level, quoted = Level.WARNING, sql.Literal(row.name).as_string(connection)
    who = f"{row.kind} {row.name} ({', '.join(part for part in row[2:5] if part)})"
    behind = "" if row.transactions is None else f", {counted(row.transactions, 'transaction')} behind"
    if row.since is not None:
        found = f"the {who} has been open since {row.since:%Y-%m-%d %H:%M:%S %Z}{behind}"
        terminate = f"SELECT pg_terminate_backend({row.name});   (its process)"
        do = terminate if row.kind == "transaction" else f"ROLLBACK PREPARED {quoted};   (or COMMIT PREPARED)"
    else:
        found = f"the {who} keeps old rows{behind}"
        unused = row.kind == "replication slot" and row.state == "inactive"
        do = "end long queries on the standby, or turn its hot_standby_feedback off"
        if unused:
            do = f"SELECT pg_drop_replication_slot({quoted});   (if nothing uses it)"
        level = Level.WARNING if unused or (row.transactions or 0) > _FAR_BEHIND else Level.NOTE
    return Finding(level, found, "vacuum can't remove rows that died since: claims read ever more of them", do)


def _listeners(connection: Connection[Any], state: _State) -> Check:
    holders = {}
    for turn in range(_LOOKS):
        rows = {row[0]: row[1:] for row in state.queries.list_lock_holders(connection)}
        holders = {pid: row for pid, row in rows.items() if turn == 0 or pid in holders}
        if not holders:
            return Check("listeners", Level.OK, "nothing keeps a listener from opening")
        sleep(_LOOK_AGAIN)
    findings = [
        Finding(
            Level.FAILED,
            f"the session {pid} ({', '.join(part for part in (role, application, state) if part)}) holds the lock that "
            f"the insert trigger takes for a moment; {waiting} sessions wait for it",
            "no listener can open, and open ones get no notification: workers find jobs at their next poll",
            f"SELECT pg_terminate_backend({pid});   (its process; the lock ends with the session)",
        )
        for pid, (role, application, state, waiting) in holders.items()
    ]
    return ended("listeners", "a session has leaked its lock", findings)


def _claim_index(connection: Connection[Any], state: _State) -> Check:
    queries = state.queries
    row = queries.claim_index_state(connection)
    if row is None:
        return Check("claim index", Level.SKIPPED, "it is missing (see schema)")
    size, entries, entry_bytes, extension_schema = row
    pending = queries.count_pending_jobs(connection, most=_COUNTED_PENDING)
    # Beyond this number, only the server's figure from the last vacuum is available.
    many = max(pending, entries) if pending == _COUNTED_PENDING else pending
    # A B-tree's pages are 50 to 90 percent full. Without statistics, assume from 46 to 300 bytes per entry.
    needed = None if many and entry_bytes is None else max(many * (entry_bytes or 0) * 10 // 7, 8192)
    need = "" if needed is None else f", which need about {_bytes(needed)}"
    density = _density(connection, extension_schema, state.schema)
    full = "" if density is None else f", its pages {density:.0f}% full (pgstattuple; dead entries count as full)"
    about = "about " if many > pending else ""
    summary = f"{_bytes(size)} for {about}{many:,} waiting jobs{need}{full}"
    findings = []
    if needed is not None and size > 8 * 2**20 and size > 4 * needed:
        findings.append(
            Finding(
                Level.WARNING,
                f"jobs_claim_idx takes {_bytes(size)}; an estimated {_bytes(needed)} would be enough",
                "dead or empty space: left by a larger backlog, or by dead rows that vacuum can't remove "
                "(see horizon); claims read through the dead entries",
                "VACUUM goqueue.jobs;   and if that is not enough: REINDEX INDEX CONCURRENTLY goqueue.jobs_claim_idx;",
            )
        )
    return ended("claim index", summary, findings)


def _density(connection: Connection[Any], extension_schema: str | None, schema: str) -> float | None:
    """Return how full the index's pages are, in percent; None if that can't be read."""
    if extension_schema is None:
        return None
    queries = admin_queries(schema)
    try:
        with connection.transaction(force_rollback=True):
            queries.set_local(connection, name="search_path", value=extension_schema)
            density: float = queries.measure_claim_index(connection)
    except errors.InsufficientPrivilege:
        return None
    return None if isnan(density) else density


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB" if count >= 2**20 else f"{count / 1024:,.0f} kB"


def _said(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())
