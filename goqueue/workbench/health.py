"""What `goqueue check` looks at: server, migrations, schema, queries, rights, vacuum. Nothing here changes anything.

Statements: sql/checks.sql.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from math import isnan
from time import sleep
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, errors, sql

from goqueue.config import format_duration
from goqueue.counts import counted
from goqueue.files import APART, shipped_folder
from goqueue.migrate import migration_files
from goqueue.postgres.queries import Statement, load_queries, load_statements
from goqueue.workbench.findings import Check, Finding, Level, ended
from goqueue.workbench.plans import GenericPlan, generic_plans
from goqueue.workbench.proofs import examine
from goqueue.workbench.rights import RUN_ROLES, check_roles, expected_rights, identifier
from goqueue.workbench.schema import check_schema

__all__ = ["Check", "Finding", "Level", "SettingValue", "read_settings", "run_checks"]

OLDEST_SERVER, NEWEST_SERVER = 14, 19
#: A transaction that has been open for longer keeps more dead rows than claims can pass over cheaply.
OLD_TRANSACTION = timedelta(minutes=5)
#: Standbys and slots tell no time; so many transactions behind, they keep as much.
_FAR_BEHIND = 1_000_000
#: 8 MB: below, reading a table whole is what the planner rightly does.
_LARGE_PAGES = 1000
#: Five times what lets autovacuum begin (V0006__tune_autovacuum.sql).
_MANY_DEAD = 100_000
_COUNTED_PENDING = 200_000
#: The trigger holds its lock for microseconds: who has it at each of so many looks, these seconds apart, has leaked it.
_LOOKS, _LOOK_AGAIN = 4, 0.15
#: More reasons why statements can't be run are one cause, which the check of the schema names.
_MOST_REASONS = 2
_MIGRATE = "goqueue migrate   (or pgmigrate migrate, where the PG* variables name the database)"


class _State(NamedTuple):
    """The row of the query server_state, and what every check shares."""

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

    @property
    def sees_own_jobs_only(self) -> bool:
        return self.has_roles and self.roles == ["goqueue_producer"]

    def restore(self, groups: Iterable[str]) -> str:
        """Return what gives the role back its rights as a member of one of the groups."""
        groups = list(groups)
        if any(group in self.inherited for group in groups):
            return RUN_ROLES
        role = identifier(self.role)
        if self.version_number < 160_000:
            return f"ALTER ROLE {role} INHERIT;   (or let its programs SET ROLE {groups[0]})"
        return f"GRANT {groups[0]} TO {role} WITH INHERIT TRUE;   (or let its programs SET ROLE {groups[0]})"

    def grant(self, privileges: str) -> str:
        """The statement that gives the role its rights; by way of roles.sql's roles where they are."""
        role = identifier(self.role)
        if self.has_roles:
            return (
                f"GRANT goqueue_producer TO {role};   (to add jobs; to work on them goqueue_worker, to read them all "
                "goqueue_reader, to run every statement goqueue_operator)"
            )
        return f"GRANT {privileges} TO {role};   (or, for roles with less: psql -f migrations/roles/roles.sql)"


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
) -> Iterator[Check]:
    """Each check in turn, on a connection in autocommit mode. ``sql_dir``: the folder of SQL files to prove;
    ``compare`` gets the names of its changed queries that are fit to be run elsewhere; ``settings``: those of a
    connection without goqueue's own (`read_settings`), which hide the server's.

    A check that the role has no right to, or that the server stops for its time, is skipped and says so; the others go
    on. Raises psycopg's error when the connection is lost.
    """
    # At a rollback psycopg deallocates what it has prepared, and generic_plans' own statement with it.
    connection.prepare_threshold = None
    queries = load_queries()
    state = _State(*queries.server_state(connection))
    yield _server(state)
    values = read_settings(connection) if settings is None else settings
    yield _run("settings", lambda: _settings(connection, state, values))
    if not state.is_migrated:
        yield ended("migrations", "none is applied", [_unmigrated(connection, state)])
        return
    if not state.sees_schema:
        if state.has_roles:
            yield _run("roles", lambda: check_roles(connection))
        yield ended(
            "grants",
            "the schema is closed",
            [Finding(Level.FAILED, f"the role {state.role} may not use the schema goqueue", "every statement names it",
                     state.restore(state.roles) if state.roles else state.grant("USAGE ON SCHEMA goqueue"))],
        )  # fmt: skip
        return
    found_pending: list[Finding] = []
    newer: list[int] = []
    yield _run("migrations", lambda: _migrations(connection, state, found_pending, newer))
    pending = bool(found_pending)
    if not (state.has_checksums or _has_jobs(connection)):
        return
    unlike = "migrations are pending" if pending else "a newer release migrated the database" if newer else ""
    yield (
        _run("schema", lambda: check_schema(connection, state.database, has_roles=state.has_roles))
        if not unlike
        else Check("schema", Level.SKIPPED, f"not compared: {unlike}")
    )
    statements = load_statements().copy()
    changed: list[str] = []
    yield _run("queries", lambda: _queries(connection, sql_dir, statements, changed))
    if compare and changed:
        yield compare(changed)
    yield _run("roles", lambda: _roles(connection, state, unlike))
    plans = generic_plans(connection, [one for one in statements.values() if one.file.name not in APART])
    yield _run("grants", lambda: _grants(state, plans, pending=pending))
    own_only = "the role sees its own jobs only (goqueue_producer); let another role look"
    yield (
        Check("plans", Level.SKIPPED, own_only)
        if state.sees_own_jobs_only
        else _run("plans", lambda: _plans(connection, plans))
    )
    yield _run("autovacuum", lambda: _autovacuum(connection))
    yield _run("horizon", lambda: _horizon(connection, state, old_transaction))
    yield _run("listeners", lambda: _listeners(connection))
    yield (
        Check("claim index", Level.SKIPPED, own_only)
        if state.sees_own_jobs_only
        else _run("claim index", lambda: _claim_index(connection))
    )


def _run(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (errors.InsufficientPrivilege, errors.QueryCanceled, errors.LockNotAvailable) as error:
        return Check(name, Level.SKIPPED, f"can't be looked at: {_said(error)}")
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as error:
        return Check(name, Level.SKIPPED, f"can't be looked at before all migrations are applied: {_said(error)}")


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
                "names and payloads are any Unicode; here some can't be stored, or come back as bytes",
                f"createdb --encoding=UTF8 --template=template0 NEW && pg_dump {state.database} | psql NEW",
            )
        )
    if state.is_standby:
        findings.append(
            Finding(
                Level.FAILED,
                "the server is a standby",
                "nothing can be written here: jobs are neither created nor claimed",
                "connect to the primary (target_session_attrs=read-write in the URL)",
            )
        )
    return ended(
        "server",
        f"PostgreSQL {state.version}, {state.encoding}, database {state.database}, role {state.role}",
        findings,
    )


class _Setting(NamedTuple):
    """The value that a setting is to have (None: the server's own), how much it matters and why."""

    wanted: str | None
    level: Level
    why: str
    is_bad: Callable[[str], bool]


def _is_on(value: str) -> bool:
    return value.lower() in ("on", "true", "yes", "1")


def _is_off(value: str) -> bool:
    return value.lower() in ("off", "false", "no", "0")


def _is_short(value: str) -> bool:
    """Return whether a limit is set, to less than a second. A number without a unit is milliseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(us|ms|)", value.strip())
    return match is not None and 0 < float(match[1]) < (1_000_000 if match[2] == "us" else 1000)


def _hides_catalogue(value: str) -> bool:
    """Return whether a search path names pg_catalog behind another schema. Left out, it comes first."""
    return "pg_catalog" in [name.strip(' "') for name in value.split(",")][1:]


_UNSAFE = "a crash of the host can destroy the whole cluster, not only the latest jobs"
_LIMIT = "a statement that works or waits for longer is ended: StorageUnavailableError"
_BLIND = "the plans read whole tables, where each statement has its index"
#: Settings that change what our statements do, on our own connections or on a caller's (`bound_to`). Others were tried
#: and change nothing: see tests/test_odd_connections.py.
_SETTINGS = {
    "fsync": _Setting("on", Level.WARNING, _UNSAFE, _is_off),
    "full_page_writes": _Setting(
        "on", Level.WARNING, "a crash in the middle of a write can destroy pages for good", _is_off
    ),
    "synchronous_commit": _Setting(  # has stronger values than on
        "on",
        Level.WARNING,
        "a job can be lost that its creator was told is stored: a crash takes the latest commits",
        _is_off,
    ),
    "default_transaction_read_only": _Setting("off", Level.FAILED, "no job can be created, claimed or ended", _is_on),
    "default_transaction_isolation": _Setting(
        "'read committed'",
        Level.WARNING,
        "on a caller's connection, claims and changes beside others fail with TransactionConflictError",
        lambda value: value.lower() in ("serializable", "repeatable read"),
    ),
    "session_replication_role": _Setting(
        "origin", Level.WARNING, "no trigger fires: a new job wakes no idle worker", lambda value: value == "replica"
    ),
    "row_security": _Setting(
        "on", Level.FAILED, "each statement that policies hold for is refused: of producers, workers, readers", _is_off
    ),
    "search_path": _Setting(
        None,
        Level.WARNING,
        "a function or operator of another schema runs in place of the server's of the same name",
        _hides_catalogue,
    ),
    "client_encoding": _Setting(
        "UTF8",
        Level.WARNING,
        "on a caller's connection, text that the encoding lacks is refused",
        lambda value: re.sub(r"\W", "", value).upper() not in ("UTF8", "UNICODE"),
    ),
    "statement_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "lock_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "transaction_timeout": _Setting(None, Level.WARNING, _LIMIT, _is_short),
    "idle_in_transaction_session_timeout": _Setting(
        None, Level.WARNING, "a program that pauses in a transaction for longer loses its connection", _is_short
    ),
    "exit_on_error": _Setting("off", Level.WARNING, "any error ends the session, a duplicate key's too", _is_on),
    "enable_indexscan": _Setting("on", Level.WARNING, _BLIND, _is_off),
    "enable_indexonlyscan": _Setting("on", Level.WARNING, _BLIND, _is_off),
}
_SHOWN = (*list(_SETTINGS)[:4], "default_transaction_isolation")


def read_settings(connection: Connection[Any]) -> list[SettingValue]:
    """The settings that `run_checks` looks at, as this connection has them. Query: list_settings."""
    return sorted(SettingValue(*row) for row in load_queries().list_settings(connection, names=list(_SETTINGS)))


def _settings(connection: Connection[Any], state: _State, values: list[SettingValue]) -> Check:
    findings = []
    for name, value, set_by in values:
        if set_by == "client" and name.endswith("_timeout"):
            continue  # goqueue's own configuration
        if _matters(name, value, state, state.roles):
            wanted, level, why, _ = _SETTINGS[name]
            findings.append(Finding(level, f"{name} is {value}", why, _set(name, wanted, set_by)))
    seen = {(one.name, one.set_by) for one in values}
    for name, value, set_by, roles in load_queries().list_default_settings(connection, names=list(_SETTINGS)):
        if (name, set_by) not in seen and _matters(name, value, state, roles):
            _, level, why, _ = _SETTINGS[name]
            found = f"{name} is {value} by {set_by}"
            findings.append(Finding(level, found, why, f"{set_by} RESET {name};   (for new sessions)"))
    shown = ", ".join(f"{name} {value}" for name, value, _ in values if name in _SHOWN)
    return ended("settings", shown, findings)


def _matters(name: str, value: str, state: _State, roles: list[str]) -> bool:
    """``roles``: those of roles.sql that the login has whose setting it is."""
    if not _SETTINGS[name].is_bad(value):
        return False
    if name == "default_transaction_read_only":
        return roles != ["goqueue_reader"]
    if name == "row_security":
        return state.has_roles
    return name != "client_encoding" or state.encoding == "UTF8"


def _set(name: str, value: str | None, set_by: str | None) -> str:
    if set_by == "client":
        return f"take {name} out of the connection's own options (options in the URL, or PGOPTIONS)"
    change = f"RESET {name}" if value is None else f"SET {name} = {value}"
    if set_by is not None:  # goes before the server's own
        return f"{set_by} {change};   (for new sessions)"
    return f"ALTER SYSTEM {change}; SELECT pg_reload_conf();"


# --- migrations and schema ------------------------------------------------------------------------------------------


def _has_jobs(connection: Connection[Any]) -> bool:
    return any(name == "jobs" for name, *_ in load_queries().list_table_states(connection))


def _unmigrated(connection: Connection[Any], state: _State) -> Finding:
    if not _has_jobs(connection):
        return Finding(
            Level.FAILED,
            f"the database {state.database} has no goqueue tables",
            "nothing can run without; or another database is meant (`goqueue config` shows which one is configured)",
            _MIGRATE,
        )
    return Finding(
        Level.FAILED,
        f"the database {state.database} has goqueue.jobs, but not goqueue.schema_version",
        "which migrations ran is not known, and to migrate again would fail on what is there",
        "restore goqueue.schema_version from a backup (pg_restore -n goqueue -t schema_version)",
    )


def _migrations(connection: Connection[Any], state: _State, pending: list[Finding], newer: list[int]) -> Check:
    """``pending`` gets the finding that some are not applied, ``newer`` the versions that only a newer release knows;
    other checks go by them."""
    shipped = {file.version: file for file in migration_files(shipped_folder("migrations"))}
    why = "the statements rely on columns and indexes that are not there"
    if not state.has_checksums:
        count = load_queries().count_applied_migrations(connection)
        if count and not _has_jobs(connection):
            pending.append(
                Finding(
                    Level.FAILED,
                    f"the database {state.database} records {count} migrations, and has no table goqueue.jobs",
                    "it is another application's schema of this name, or a backup was restored in part",
                    "see with `goqueue config` that this is the database meant; then restore the schema from a backup",
                )
            )
            return ended("migrations", "they are not goqueue's", pending)
        found = "migrations are pending: there is no table goqueue.migration_checksums"
        pending.append(Finding(Level.FAILED, found, why, _MIGRATE))
        return ended("migrations", "the first of them are applied", pending)
    applied = {version: sha256 for version, _, sha256 in load_queries().list_applied_migrations(connection)}
    if missing := [file.name for version, file in shipped.items() if version not in applied]:
        pending.append(Finding(Level.FAILED, f"pending: {', '.join(missing)}", why, _MIGRATE))
    findings = [*pending]
    newer += [version for version in applied if version not in shipped]
    if newer:
        findings.append(
            Finding(
                Level.WARNING,
                f"this goqueue does not know the database's version {', '.join(map(str, newer))}",
                "it was migrated by a newer release; what that release changed is not known here",
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
                    "whether the file was edited after it was applied can't be told",
                    "psql -f migrations/callbacks/record_checksums.sql",
                )
            )
        elif recorded != file.sha256:
            findings.append(
                Finding(
                    Level.FAILED,
                    f"{file.name} is not the text that was applied: sha256 {recorded[:12]}… then, "
                    f"{file.sha256[:12]}… now",
                    "the file was edited after it was applied, or the database was migrated from other files: it can "
                    "differ from what this release expects",
                    "bring the file back as it was, and write a new migration for the change; or, when "  # noqa: S608
                    "the check schema finds no difference: UPDATE goqueue.migration_checksums SET sha256 = "
                    f"'{file.sha256}' WHERE version = {version};",
                )
            )
    return ended("migrations", f"{len(applied)} applied, the latest is {max(applied, default=0)}", findings)


# --- queries --------------------------------------------------------------------------------------------------------


def _queries(connection: Connection[Any], sql_dir: str, statements: dict[str, Statement], runnable: list[str]) -> Check:
    """``statements`` has the shipped ones, and gets those of the folder that are fit to be planned; ``runnable`` gets
    the names of those that are fit to be run on a database of their own."""
    if not sql_dir:
        return Check("queries", Level.OK, "the shipped SQL files (GOQUEUE_DATABASE_SQL_DIR is not set)")
    proof, fit = examine(connection, sql_dir)
    for name in proof.changed or ():
        del statements[name]
    statements |= fit.planned
    runnable += fit.run
    findings = [
        Finding(
            Level.FAILED,
            problem,
            "a call would go wrong, or get slower with the table; the store refuses to open with what is plainly wrong",
            f"goqueue sql diff {sql_dir}",
        )
        for problem in proof.problems
    ]
    findings += [
        Finding(Level.WARNING, text, "what the release has mended there is not in force", f"goqueue sql diff {sql_dir}")
        for text in proof.outdated
    ]
    findings += [Finding(Level.NOTE, f"not proved: {text}") for text in proof.unproved]
    changed = "it can't be used" if proof.changed is None else "all as shipped"
    if proof.changed:
        changed = f"other than shipped: {', '.join(proof.changed)}"
    return ended("queries", f"{sql_dir}: {changed}", findings)


def _roles(connection: Connection[Any], state: _State, unlike: str) -> Check:
    """``unlike``: why the schema is another one than this release's; empty where it is not."""
    if state.has_roles:
        if unlike:
            return Check("roles", Level.SKIPPED, f"not compared: {unlike}")
        return check_roles(connection)
    if state.roles and not state.is_superuser:
        groups = ", ".join(state.roles)
        finding = Finding(
            Level.FAILED,
            f"the role {state.role} is a member of {groups}, which has no rights in the database {state.database}",
            "the roles are the server's, and their rights each database's own: roles.sql was not run in this one",
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
    mend = "mend what the checks schema and queries find"
    if not pending and len(reasons) > _MOST_REASONS:
        count = f"{len(broken)} statements can't be run, for {len(reasons)} reasons"
        findings.append(Finding(Level.FAILED, count, "the store's methods of their names fail", mend))
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
        findings.append(Finding(Level.FAILED, count, "the store's methods of their names fail", _MIGRATE))
    known = expected_rights().queries
    groups = [role for role in state.roles if state.has_roles and denied.keys() & set(known[role])]
    lost = [name for name in denied if any(name in known[role] for role in groups)]
    said = "; ".join(sorted({_said(error) for error in denied.values()}))
    if lost:
        findings.append(
            Finding(
                Level.FAILED,
                f"the role {state.role}, a member of {', '.join(groups)}, may not run {', '.join(lost)}",
                said,
                state.restore(groups),
            )
        )
    elif denied and ("ping" in denied or not (state.has_roles and state.roles)):
        findings.append(
            Finding(
                Level.FAILED if "ping" in denied else Level.NOTE,
                f"the role {state.role} may not run {', '.join(denied)}",
                f"{said}. Fine for a role that only looks on",
                state.grant("SELECT, INSERT, UPDATE, DELETE ON goqueue.jobs, goqueue.job_failures"),
            )
        )
    may = len(plans) - len(denied) - len(broken)
    member = f" ({', '.join(state.roles)})" if state.roles and denied else ""
    statements = counted(len(plans), "statement")
    return ended("grants", f"the role {state.role}{member} may run {may} of {statements}", findings)


def _plans(connection: Connection[Any], plans: dict[str, GenericPlan | psycopg.Error]) -> Check:
    pages = {name: pages for name, pages, *_ in load_queries().list_table_states(connection)}
    known = {name: plan for name, plan in plans.items() if isinstance(plan, GenericPlan)}
    findings = [
        Finding(
            Level.WARNING,
            f"{name} would read the table goqueue.{table} whole, {counted(pages[table], 'page')} of it",
            "by the statistics the server takes that for the cheapest way; it grows with the table",
            f"VACUUM (ANALYZE) goqueue.{table};   then see the checks schema and queries",
        )
        for name, plan in known.items()
        for table in sorted(plan.scanned_tables)
        if pages.get(table, 0) >= _LARGE_PAGES
    ]
    large = [f"{name} {counted(count, 'page')}" for name, count in pages.items()]
    return ended("plans", f"{counted(len(known), 'statement')} planned on {', '.join(large)}", findings)


# --- vacuum ---------------------------------------------------------------------------------------------------------


def _autovacuum(connection: Connection[Any]) -> Check:
    queries = load_queries()
    findings = [
        Finding(
            Level.WARNING,
            f"{name} is off",
            "autovacuum does not run: dead rows pile up, and claims get slower with every job",
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
                    "dead rows pile up, and claims get slower with every job",
                    f"ALTER TABLE {table} RESET (autovacuum_enabled);",
                )
            )
        if dead > max(_MANY_DEAD, live // 10):
            when = f"last vacuumed {vacuumed_at:%Y-%m-%d %H:%M %Z}" if vacuumed_at else "never vacuumed"
            findings.append(
                Finding(
                    Level.WARNING,
                    f"{table} has {dead:,} dead rows beside {live:,} live ones, by the statistics; {when}",
                    "vacuum does not keep up, or something keeps the rows (see horizon): claims pass over them",
                    f"VACUUM (ANALYZE, VERBOSE) {table};",
                )
            )
        if analyzed_at is None and max(live, changes) > 50_000:
            findings.append(
                Finding(
                    Level.WARNING,
                    f"{table} was never analyzed",
                    "plans are made from guesses",
                    f"ANALYZE {table};",
                )
            )
        if age > forced:
            findings.append(
                Finding(
                    Level.FAILED if age > 1_500_000_000 else Level.WARNING,
                    f"{table} has transaction ids {age:,} old; the server forces a vacuum from {forced:,} on",
                    "at 2,100,000,000 the server stops writing",
                    f"VACUUM (FREEZE, VERBOSE) {table};",
                )
            )
    return ended("autovacuum", "; ".join(shown), findings)


def _horizon(connection: Connection[Any], state: _State, old: timedelta) -> Check:
    rows = list(load_queries().list_horizon_holders(connection, least_age=old))
    findings = [_holder(connection, _Holder(*row)) for row in rows]
    if not state.sees_all_sessions:
        findings.append(
            Finding(
                Level.NOTE,
                f"of other roles' transactions the role {state.role} sees no age",
                "they can keep dead rows, and are not listed here",
                f"GRANT pg_read_all_stats TO {identifier(state.role)};",
            )
        )
    what = f"dead rows are kept from vacuum by {len(rows)}" if rows else "nothing keeps dead rows from vacuum"
    return ended("horizon", f"{what} (transactions from {format_duration(old)} on)", findings)


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
    behind = "" if row.transactions is None else f", {row.transactions:,} transactions behind"
    if row.since is not None:
        found = f"the {who} is open since {row.since:%Y-%m-%d %H:%M:%S %Z}{behind}"
        terminate = f"SELECT pg_terminate_backend({row.name});   (its process)"
        do = terminate if row.kind == "transaction" else f"ROLLBACK PREPARED {quoted};   (or COMMIT PREPARED)"
    else:
        found = f"the {who} keeps old rows{behind}"
        unused = row.kind == "replication slot" and row.state == "inactive"
        do = "end long queries on the standby, or turn its hot_standby_feedback off"
        if unused:
            do = f"SELECT pg_drop_replication_slot({quoted});   (when nothing uses it any more)"
        level = Level.WARNING if unused or (row.transactions or 0) > _FAR_BEHIND else Level.NOTE
    return Finding(level, found, "no vacuum removes what has died since: claims pass over ever more of it", do)


def _listeners(connection: Connection[Any]) -> Check:
    holders = {}
    for turn in range(_LOOKS):
        rows = {row[0]: row[1:] for row in load_queries().list_lock_holders(connection)}
        holders = {pid: row for pid, row in rows.items() if turn == 0 or pid in holders}
        if not holders:
            return Check("listeners", Level.OK, "nothing keeps a listener from opening")
        sleep(_LOOK_AGAIN)
    findings = [
        Finding(
            Level.FAILED,
            f"the session {pid} ({', '.join(part for part in (role, application, state) if part)}) keeps the lock that "
            f"the insert trigger takes for a moment; {waiting} sessions wait for it",
            "no listener can open, and those that run hear of no new job: workers find it at their next poll",
            f"SELECT pg_terminate_backend({pid});   (its process; the lock ends with the session)",
        )
        for pid, (role, application, state, waiting) in holders.items()
    ]
    return ended("listeners", "a session has leaked its lock", findings)


def _claim_index(connection: Connection[Any]) -> Check:
    queries = load_queries()
    row = queries.claim_index_state(connection)
    if row is None:
        return Check("claim index", Level.SKIPPED, "it is missing (see schema)")
    size, entries, entry_bytes, extension_schema = row
    pending = queries.count_pending_jobs(connection, most=_COUNTED_PENDING)
    # When there are more, the server's own number from the last vacuum is all there is.
    many = max(pending, entries) if pending == _COUNTED_PENDING else pending
    # A B-tree's pages are between half and nine tenths full. Without statistics an entry may take 46 bytes or 300.
    needed = None if many and entry_bytes is None else max(many * (entry_bytes or 0) * 10 // 7, 8192)
    need = "" if needed is None else f", which need some {_bytes(needed)}"
    density = _density(connection, extension_schema)
    full = "" if density is None else f", its pages {density:.0f} % full (pgstattuple; dead entries count as full)"
    about = "about " if many > pending else ""
    summary = f"{_bytes(size)} for {about}{many:,} waiting jobs{need}{full}"
    findings = []
    if needed is not None and size > 8 * 2**20 and size > 4 * needed:
        findings.append(
            Finding(
                Level.WARNING,
                f"jobs_claim_idx takes {_bytes(size)}, and by an estimate {_bytes(needed)} would do",
                "dead or empty space, from a backlog that was larger once or from dead rows that vacuum can't remove "
                "(see horizon); claims read through the dead entries",
                "VACUUM goqueue.jobs;   and if that leaves it so: REINDEX INDEX CONCURRENTLY goqueue.jobs_claim_idx;",
            )
        )
    return ended("claim index", summary, findings)


def _density(connection: Connection[Any], extension_schema: str | None) -> float | None:
    """How full the index's pages are, per cent; None where that can't be read."""
    if extension_schema is None:
        return None
    queries = load_queries()
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
