"""The roles of migrations/roles: their rights, the jobs they see, what is rejected; each with its own login."""

import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue import DuplicateJobError, JobFilter, JobNotFoundError, JobStatus, NewJob, PostgresStorage, SchemaError
from goqueue.files import run_command
from goqueue.migrate import MigrationError, migrate, migrations_dir, undo
from goqueue.pytest_plugin import DatabaseServer
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.findings import Check, Level
from goqueue.workbench.health import run_checks
from goqueue.workbench.rights import RUN_ROLES, expected_rights
from tests.plans import MODES, NOTES, Explainer, seed
from tools.recordings import rights_text

BASE = migrations_dir()
SCRIPT = BASE / "migrations" / "roles" / "roles.sql"
DROP_SCRIPT = BASE / "migrations" / "roles" / "drop_roles.sql"
RUNTIME = ("operator", "worker", "reader", "producer")
ROLES = ("owner", *RUNTIME)
REFUSED = psycopg.errors.InsufficientPrivilege
Connection = psycopg.Connection[Any]


def run_script(url: str, script: Path = SCRIPT) -> list[str]:
    """Run the file, and return the server's messages."""
    said: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: said.append(f"{notice.severity}: {notice.message_primary}"))
        connection.execute(script.read_bytes())
    return said


# --- a database with the roles, a login in each, and jobs of one producer ---------------------------------------------


@dataclass(frozen=True)
class Place:
    url: str
    logins: dict[str, str]
    password: str

    def url_of(self, who: str, url: str | None = None) -> str:
        return make_conninfo(url or self.url, user=self.logins[who], password=self.password)

    @contextmanager
    def connect(self, who: str, url: str | None = None) -> Iterator[Connection]:
        with psycopg.connect(self.url_of(who, url), autocommit=True) as connection:
            yield connection


@contextmanager
def new_database(server: Connection, template: str) -> Iterator[str]:
    name = f"goqueue_roles_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield make_conninfo(server.info.dsn, password=server.info.password or None, dbname=name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def new_logins(server: Connection) -> Iterator[tuple[dict[str, str], str]]:
    """A login in each role, another producer, and nobody, who is in no role; and the password of all."""
    password = secrets.token_hex(8)
    logins = {who: f"goqueue_test_{who}_{secrets.token_hex(4)}" for who in (*ROLES, "other", "nobody")}
    try:
        for who, login in logins.items():
            role = {"other": "producer"}.get(who, who)
            # The server's own user is also a member, because it may not be a superuser.
            group = "" if who == "nobody" else f"IN ROLE goqueue_{role}"
            server.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}' {group} ROLE CURRENT_USER")
        yield logins, password
    finally:
        for login in logins.values():
            server.execute(f"DROP ROLE IF EXISTS {login}")


@pytest.fixture(scope="module")
def place(goqueue_server: DatabaseServer, goqueue_template: str) -> Iterator[Place]:
    """If the roles didn't exist before the test run, the last of its processes drops them again."""

    def lock(how: str, key: str) -> bool:
        # The locks end with the connection, so that a process that dies leaves none.
        row = server.execute(f"SELECT pg_{how}(hashtextextended(%s, 0))", [f"goqueue's roles: {key}"]).fetchone()
        return row == (True,)

    with psycopg.connect(goqueue_server.url, autocommit=True) as server:
        may = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
        if server.execute(may).fetchone() != (True,):
            pytest.skip("the user of GOQUEUE_TEST_DATABASE_URL may not make roles: ALTER ROLE ... CREATEROLE")
        with new_database(server, goqueue_template) as url:
            lock("advisory_lock", "turn")
            there = server.execute("SELECT FROM pg_roles WHERE rolname = 'goqueue_owner'").rowcount
            made_by_us = not there or not lock("try_advisory_lock", "made by tests")
            if made_by_us:
                lock("advisory_lock_shared", "made by tests")
            run_script(url)
            lock("advisory_unlock", "turn")
            with new_logins(server) as (logins, password):
                yield Place(url, logins, password)
        lock("advisory_lock", "turn")
        if made_by_us:
            lock("advisory_unlock_shared", "made by tests")
            if lock("try_advisory_lock", "made by tests"):
                for role in ROLES:
                    # The kept database of a failed test needs them.
                    with suppress(psycopg.errors.DependentObjectsStillExist):
                        server.execute(f"DROP ROLE IF EXISTS goqueue_{role}")


@pytest.fixture(scope="module")
def admin(place: Place) -> Iterator[Connection]:
    with psycopg.connect(place.url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def jobs(place: Place, admin: Connection) -> dict[str, UUID]:
    """One job of the producer per status. The finished ones are a day old; the running one's lease has expired."""
    with place.connect("producer") as connection:
        ids = {
            str(status): connection.execute(
                "INSERT INTO goqueue.jobs (job_type, idempotency_key) VALUES ('t', %s) RETURNING id", [status]
            ).fetchall()[0][0]
            for status in JobStatus
        }
    for status, job_id in ids.items():
        admin.execute(
            """
            UPDATE goqueue.jobs SET
                status = %(status)s::text::goqueue.job_status, lease_token = 1,
                locked_by = CASE WHEN %(status)s::text = 'running' THEN 'w' END,
                locked_at = CASE WHEN %(status)s::text = 'running' THEN now() END,
                lease_expires_at = CASE WHEN %(status)s::text = 'running' THEN now() - interval '1 hour' END,
                created_at = now() - interval '2 days',
                completed_at = CASE
                    WHEN %(status)s::text NOT IN ('pending', 'running') THEN now() - interval '1 day'
                END
            WHERE id = %(id)s
            """,
            {"status": status, "id": job_id},
        )
    admin.execute(
        "INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, error) VALUES (%s, 1, 1, 'boom')",
        [ids["dead"]],
    )
    admin.execute("INSERT INTO goqueue.paused_queues (queue, paused_until) VALUES ('paused', now() + interval '1 day')")
    return ids


# --- what each may run ------------------------------------------------------------------------------------------------


def expected_outcomes() -> dict[str, dict[str, str]]:
    """Return the table in migrations/README.md: for each query and role yes, own or no."""
    text = (BASE / "migrations" / "README.md").read_text("utf-8")
    head, _, *lines = text.partition("| query | owner")[2].partition("\n\n")[0].splitlines()
    roles = ["owner", *re.findall(r"\w+", head)]
    outcomes: dict[str, dict[str, str]] = {}
    for line in lines:
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`(\w+)`", names):
            assert name not in outcomes, f"{name} stands there twice"
            outcomes[name] = dict(zip(roles, cells, strict=True))
    return outcomes


EXPECTED = expected_outcomes()

MINUTE = timedelta(minutes=1)
NEW = {
    "id": uuid4(), "queue": "default", "job_type": "t", "payload": "{}", "priority": 0, "max_attempts": 3,
    "scheduled_at": None, "delay": None, "idempotency_key": "new", "unique_key": "new",
}  # fmt: skip
FILTER = dict.fromkeys(("statuses", "queues", "job_types", "worker_ids", "created_from", "created_before"))
ANYTHING = dict.fromkeys(("statuses", "queues", "job_types", "worker_ids"))
BACKOFF = {
    "retry_in": MINUTE,
    "backoff_base": MINUTE,
    "backoff_factor": 2.0,
    "backoff_max": MINUTE,
    "backoff_jitter": 0.0,
}
CLAIM = {"queues": ["default"], "worker_id": "w", "job_limit": 10, "lease": MINUTE}
LANES = dict.fromkeys(("lane_queues", "lane_priorities", "lane_times", "lane_ids"))
LISTEN = ("listen", "listen_cancelled")
# These return nothing about jobs.
SILENT = (
    "ping",
    "estimate_dead_rows",
    "get_session",
    "get_transaction_status",
    *LISTEN,
    "announce_listener",
    "find_listener_blockers",
    "wake_listeners",
)


def values_of(jobs: dict[str, UUID]) -> dict[str, dict[str, Any]]:
    """Return values for each query with which it finds one of the jobs."""
    held = {"ids": [jobs["running"]], "tokens": [1]}
    return {
        "create_job": NEW,
        "find_duplicate_job": {"id": uuid4(), "idempotency_key": "pending", "unique_key": "unused"},
        "create_jobs": {"jobs": json.dumps([{**NEW, "id": str(NEW["id"])}])},
        "create_missing_jobs": {"jobs": json.dumps([{**NEW, "id": str(NEW["id"])}])},
        "find_duplicate_jobs": {"ids": [], "idempotency_keys": ["pending"], "unique_keys": []},
        "get_job": {"id": jobs["dead"]},
        "get_jobs": {"ids": list(jobs.values())},
        "get_job_by_idempotency_key": {"idempotency_key": "running"},
        "list_jobs": {**FILTER, "cursor_created_at": None, "cursor_id": None, "page_limit": 10},
        "count_jobs": FILTER,
        "update_job": {"id": jobs["pending"], "changes": '{"priority": 5}'},
        "replace_pending_job": {**NEW, "idempotency_key": "pending"},
        "cancel_jobs": {"ids": [jobs["pending"]], **ANYTHING},
        "retry_jobs": {"ids": [jobs["dead"]], **ANYTHING},
        "reschedule_jobs": {"ids": [jobs["pending"]], **ANYTHING, "scheduled_at": None, "delay": MINUTE},
        "change_jobs": {"ids": [jobs["pending"]], **ANYTHING, "queue": "other", "priority": 1, "max_attempts": 9},
        "delete_job": {"id": jobs["dead"]},
        "delete_jobs": {"ids": [jobs["dead"]], **ANYTHING},
        "delete_failures": {"ids": [jobs["dead"]]},
        "prune_jobs": {
            "older_than": timedelta(0),
            "statuses": ["dead"],
            "queues": None,
            "job_types": None,
            "job_limit": 10,
            "kept_ids": [],
        },
        "claim_jobs": {**CLAIM, **LANES},
        "heartbeat_jobs": {**held, "lease": MINUTE},
        "complete_jobs": held,
        "fail_jobs": {**held, "errors": ["boom"], "is_final": False, **BACKOFF},
        "release_jobs": {**held, "delay": MINUTE},
        "rescue_jobs": {"job_limit": 10},
        "list_failures": {"job_id": jobs["dead"]},
        "next_job_at": {"queues": ["default"]},
        "pause_queue": {"queue": "paused", "until": None},
        "resume_queue": {"queue": "paused"},
        **{name: {} for name in (*SILENT, "queue_stats", "list_workers", "list_job_types")},
        "get_session": {"backend_pid": 0},
        "get_transaction_status": {"transaction_id": "3"},
        "wake_listeners": {"queues": ["default"]},
    }


def outcome(explainer: Explainer, name: str, values: dict[str, Any]) -> str:
    """yes: it found its job, or did its work. nothing: it ran without an effect. no: it was rejected."""
    try:
        if name in LISTEN:
            explainer.connection.execute(NOTES[name].statement)
            return "yes"
        rows = explainer.run(name, values)
    except REFUSED:
        return "no"
    return "yes" if name in SILENT or (rows and rows[0][0]) else "nothing"


@pytest.fixture(scope="module")
def explainers(place: Place) -> Iterator[dict[str, Explainer]]:
    connections = {who: psycopg.connect(place.url_of(who), autocommit=True) for who in place.logins if who != "nobody"}
    yield {who: Explainer(connection) for who, connection in connections.items()}
    for connection in connections.values():
        connection.close()


def test_the_table_has_every_query() -> None:
    values = set(values_of(dict.fromkeys(map(str, JobStatus), uuid4())))
    for place, names in (
        ("the table of queries and roles in migrations/README.md", set(EXPECTED)),
        ("values_of in tests/test_roles.py", values),
    ):
        assert names == set(NOTES), f"{place}: add {sorted(set(NOTES) - names)}, remove {sorted(names - set(NOTES))}"


@pytest.mark.parametrize("name", NOTES)
def test_a_query_runs_for_the_roles_that_the_table_names(
    name: str, explainers: dict[str, Explainer], jobs: dict[str, UUID]
) -> None:
    values = values_of(jobs).get(name)
    assert values is not None, f"values_of in tests/test_roles.py: add values of {name}"
    seen = {who: outcome(explainer, name, values) for who, explainer in explainers.items()}
    # The jobs belong to one producer; another one doesn't see them.
    expected = {**EXPECTED[name], "other": EXPECTED[name]["producer"]}
    if expected["producer"] == "own":
        expected |= {"producer": "yes", "other": "nothing"}
    assert seen == expected, (
        f"{name}: change its grants in migrations/roles/roles.sql, or the table in migrations/README.md"
    )


# Each grant to one of the roles, and its revocation.
GRANTS = """
SELECT role.rolname, format('REVOKE %s%s ON %s FROM %I', found.privilege, found.columns, found.what, role.rolname)
FROM (
    SELECT (aclexplode(nspacl)).grantee, (aclexplode(nspacl)).privilege_type, '', 'SCHEMA ' || oid::regnamespace
    FROM pg_namespace WHERE nspname = 'goqueue'
    UNION ALL
    SELECT (aclexplode(relacl)).grantee, (aclexplode(relacl)).privilege_type, '', 'TABLE ' || oid::regclass
    FROM pg_class WHERE relnamespace = 'goqueue'::regnamespace
    UNION ALL
    SELECT
        (aclexplode(attacl)).grantee, (aclexplode(attacl)).privilege_type, format(' (%I)', attname),
        'TABLE ' || attrelid::regclass
    FROM pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'goqueue'::regnamespace)
    UNION ALL
    SELECT (aclexplode(proacl)).grantee, (aclexplode(proacl)).privilege_type, '', 'FUNCTION ' || oid::regprocedure
    FROM pg_proc WHERE pronamespace = 'goqueue'::regnamespace
    UNION ALL
    SELECT (aclexplode(typacl)).grantee, (aclexplode(typacl)).privilege_type, '', 'TYPE ' || oid::regtype
    FROM pg_type WHERE typnamespace = 'goqueue'::regnamespace
) AS found (grantee, privilege, columns, what)
LEFT JOIN pg_roles AS role ON role.oid = found.grantee
WHERE found.grantee <> 'goqueue_owner'::regrole
ORDER BY 1, 2
"""
BESIDES = (
    # A manually inserted job, with the table's default id; and the schema's version.
    "INSERT INTO goqueue.jobs (job_type) VALUES ('by hand')",
    "SELECT goqueue.add_job('from SQL')",
    "SELECT version FROM goqueue.schema_version",
    "SELECT sha256 FROM goqueue.migration_checksums",
)


@pytest.mark.parametrize("role", RUNTIME)
def test_a_role_has_no_grant_that_nothing_needs(
    role: str, place: Place, admin: Connection, jobs: dict[str, UUID]
) -> None:
    values = values_of(jobs)
    runs = [name for name, outcomes in EXPECTED.items() if outcomes[role] != "no" and name not in (*LISTEN, *SILENT)]
    explainer = Explainer(admin)

    def something_is_refused() -> bool:
        exporters = [] if role == "producer" else ["SELECT FROM goqueue.queue_metrics"]
        for statement in [*(BESIDES if role in ("producer", "operator") else BESIDES[2:]), *exporters]:
            try:
                with admin.transaction(force_rollback=True):
                    admin.execute(statement)
            except REFUSED:
                return True
        return any(outcome(explainer, name, values[name]) == "no" for name in runs)

    revokes = [revoke for grantee, revoke in admin.execute(GRANTS) if grantee == f"goqueue_{role}"]
    assert len(revokes) >= 5
    needless = []
    for revoke in ["SELECT", *revokes]:
        with admin.transaction(force_rollback=True):
            admin.execute(revoke)
            admin.execute(f"SET LOCAL ROLE {place.logins[role]}")
            if something_is_refused() == (revoke == "SELECT"):
                needless.append(revoke)
    admin.execute("DEALLOCATE ALL")
    assert needless == [], "remove these grants from migrations/roles/roles.sql, or name a query that needs them"


@pytest.mark.parametrize("role", ROLES)
def test_the_check_accepts_the_limits_of_a_role(role: str, place: Place) -> None:
    with place.connect(role) as connection:
        done = {one.name: one for one in run_checks(connection)}
    assert {name: done[name].findings for name in ("schema", "grants", "plans", "claim index")} == {
        "schema": (), "grants": (), "plans": (), "claim index": ()
    }  # fmt: skip
    skipped = {name for name, one in done.items() if one.level == Level.SKIPPED}
    # A producer can't see the others' jobs.
    assert skipped == ({"plans", "claim index"} if role == "producer" else set())


def test_the_check_names_a_role_for_a_login_that_has_none(place: Place) -> None:
    with place.connect("nobody") as connection:
        [finding] = list(run_checks(connection))[-1].findings
    # The login's purpose is unknown: the role with the least rights comes first.
    assert finding.do.startswith(f'GRANT goqueue_producer TO "{place.logins["nobody"]}";')
    assert all(f"goqueue_{role}" in finding.do for role in RUNTIME)


def test_nobody_else_has_a_grant(place: Place, admin: Connection) -> None:
    grantees = {grantee for grantee, _ in admin.execute(GRANTS)}
    assert grantees == {f"goqueue_{role}" for role in RUNTIME}  # PUBLIC would be None
    with place.connect("nobody") as connection:
        for name in ("jobs", "job_failures", "schema_version", "migration_checksums"):
            with pytest.raises(REFUSED, match="permission denied for schema goqueue"):
                connection.execute(f"SELECT FROM goqueue.{name}")
        with pytest.raises(REFUSED):
            connection.execute("SELECT goqueue.uuid_v7()")
    with pytest.raises(SchemaError, match=r"permission denied.*grant the login a role with this right"):
        PostgresStorage.open(place.url_of("nobody"))


# --- what goqueue check says of rights that are not those of the script -----------------------------------------------


def checked(connection: Connection, name: str = "roles") -> Check:
    return next(done for done in run_checks(connection) if done.name == name)


def follow(connection: Connection, advice: str) -> None:
    """Do what a finding advises: run its statements, or the script."""
    if " | psql " in advice:
        assert advice == RUN_ROLES
        connection.execute(SCRIPT.read_bytes())
    else:
        statements, _, _ = advice.partition("   (")
        connection.execute(statements.encode())


@pytest.fixture
def applied(goqueue_database: str, place: Place) -> Iterator[Connection]:
    """A database where the script has been run."""
    run_script(goqueue_database)
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        yield connection


def test_the_snapshot_of_the_rights_is_fresh(applied: Connection) -> None:
    text = (SCRIPT.parent / "rights.json").read_text("utf-8")
    assert rights_text(applied) == text, "migrations/roles/rights.json is stale: make catalogue"


def test_the_snapshot_names_the_queries_of_each_role() -> None:
    runnable = expected_rights().queries
    assert set(runnable) == {f"goqueue_{role}" for role in ROLES}
    for role in ROLES:
        expected = {name for name, outcomes in EXPECTED.items() if outcomes[role] != "no" and name not in LISTEN}
        assert set(runnable[f"goqueue_{role}"]) == expected, (
            f"{sorted(set(runnable[f'goqueue_{role}']) ^ expected)}: the table in migrations/README.md and the grants "
            "differ, or rights.json is stale (make catalogue)"
        )


def test_the_rights_after_the_script_have_no_findings(applied: Connection) -> None:
    done = checked(applied)
    assert (done.level, done.findings) == (Level.OK, ())
    assert done.summary.startswith("5 roles, 5 policies and ")


@pytest.mark.parametrize(
    ("fault", "level", "found"),
    [
        ("ALTER TABLE goqueue.jobs DISABLE ROW LEVEL SECURITY", "failed",
         "row level security is off for goqueue.jobs"),
        ("ALTER TABLE goqueue.job_failures DISABLE ROW LEVEL SECURITY", "failed",
         "row level security is off for goqueue.job_failures"),
        ("ALTER TABLE goqueue.jobs FORCE ROW LEVEL SECURITY", "failed",
         "row level security is forced on the owner of goqueue.jobs; "),
        ("ALTER POLICY own_jobs_are_read ON goqueue.jobs USING (TRUE)", "failed",
         "the policy own_jobs_are_read on goqueue.jobs is AS PERMISSIVE FOR SELECT TO goqueue_producer USING (true); "),
        ("ALTER POLICY own_jobs_are_added ON goqueue.jobs WITH CHECK (TRUE)", "failed",
         "the policy own_jobs_are_added on goqueue.jobs is AS PERMISSIVE FOR INSERT TO goqueue_producer WITH CHECK "),
        ("ALTER POLICY all_jobs ON goqueue.jobs TO PUBLIC", "failed",
         "the policy all_jobs on goqueue.jobs is AS PERMISSIVE FOR ALL TO PUBLIC USING (true); expected"),
        ("ALTER POLICY all_jobs ON goqueue.jobs TO goqueue_worker", "failed",
         "the policy all_jobs on goqueue.jobs is AS PERMISSIVE FOR ALL TO goqueue_worker USING (true); expected"),
        ("DROP POLICY own_jobs_are_read ON goqueue.jobs; "  # noqa: ISC004
         "CREATE POLICY own_jobs_are_read ON goqueue.jobs TO goqueue_producer USING (created_by = current_user)",
         "failed",
         "the policy own_jobs_are_read on goqueue.jobs is AS PERMISSIVE FOR ALL TO goqueue_producer"),
        ("DROP POLICY all_jobs ON goqueue.jobs; CREATE POLICY all_jobs ON goqueue.jobs AS RESTRICTIVE "  # noqa: ISC004
         "TO goqueue_worker, goqueue_reader, goqueue_operator USING (TRUE)", "failed",
         "the policy all_jobs on goqueue.jobs is AS RESTRICTIVE FOR ALL TO goqueue_operator, "),
        ("DROP POLICY all_failures ON goqueue.job_failures", "failed",
         "the policy all_failures on goqueue.job_failures is missing; expected AS PERMISSIVE FOR ALL TO "),
        ("DROP POLICY own_jobs_failures_are_read ON goqueue.job_failures", "failed",
         "the policy own_jobs_failures_are_read on goqueue.job_failures is missing; "),
        ("CREATE POLICY mine ON goqueue.jobs FOR SELECT TO goqueue_producer USING (queue = 'shared')", "failed",
         "the policy mine on goqueue.jobs is not from roles.sql: AS PERMISSIVE FOR SELECT TO goqueue_producer "),
        ("CREATE POLICY mine ON goqueue.jobs USING (TRUE)", "failed",
         "the policy mine on goqueue.jobs is not from roles.sql: AS PERMISSIVE FOR ALL TO PUBLIC"),
        ("CREATE POLICY mine ON goqueue.jobs AS RESTRICTIVE TO goqueue_worker USING (queue = 'mine')", "warning",
         "the policy mine on goqueue.jobs is not from roles.sql: AS RESTRICTIVE FOR ALL TO goqueue_worker"),
        ("GRANT ALL ON goqueue.jobs TO public", "failed",
         "PUBLIC has DELETE, INSERT, "),
        ("GRANT SELECT (payload) ON goqueue.jobs TO public", "failed",
         "PUBLIC has SELECT (payload) on goqueue.jobs; expected no grant"),
        ("GRANT USAGE ON SCHEMA goqueue TO public", "failed", "PUBLIC has USAGE on the schema goqueue; expected no"),
        ("GRANT EXECUTE ON FUNCTION goqueue.uuid_v7() TO public", "failed",
         "PUBLIC has EXECUTE on goqueue.uuid_v7(); expected no grant"),
        ("GRANT USAGE ON TYPE goqueue.job_status TO public", "failed",
         "PUBLIC has USAGE on the type goqueue.job_status; expected no grant"),
        ("GRANT SELECT ON goqueue.queue_metrics TO public", "warning",
         "PUBLIC has SELECT on goqueue.queue_metrics; expected no grant"),
        ("REVOKE UPDATE (status, lease_token) ON goqueue.jobs FROM goqueue_worker", "failed",
         "goqueue_worker lacks UPDATE (lease_token, status) on goqueue.jobs"),
        ("REVOKE UPDATE ON goqueue.jobs FROM goqueue_worker", "failed",
         "goqueue_worker lacks UPDATE (attempts, completed_at, last_error, "),
        ("REVOKE INSERT ON goqueue.job_failures FROM goqueue_worker", "failed",
         "goqueue_worker lacks INSERT on goqueue.job_failures"),
        ("REVOKE SELECT ON goqueue.migration_checksums, goqueue.queue_metrics FROM goqueue_reader", "failed",
         "goqueue_reader lacks SELECT on goqueue.migration_checksums; SELECT on goqueue.queue_metrics"),
        ("REVOKE USAGE ON SCHEMA goqueue FROM goqueue_producer", "failed",
         "goqueue_producer lacks USAGE on the schema goqueue"),
        ("REVOKE EXECUTE ON FUNCTION goqueue.uuid_v7() FROM goqueue_producer", "failed",
         "goqueue_producer lacks EXECUTE on goqueue.uuid_v7()"),
        ("REVOKE ALL ON ALL TABLES IN SCHEMA goqueue FROM goqueue_operator", "failed",
         "goqueue_operator lacks DELETE, INSERT, SELECT, UPDATE (attempt, error, "),
        ("REVOKE SELECT ON goqueue.jobs FROM goqueue_owner", "failed", "goqueue_owner lacks SELECT on goqueue.jobs"),
        ("GRANT UPDATE ON goqueue.jobs TO goqueue_worker", "failed",
         "goqueue_worker has UPDATE on goqueue.jobs; expected less"),
        ("GRANT INSERT (created_by) ON goqueue.jobs TO goqueue_producer", "failed",
         "goqueue_producer has INSERT (created_by) on goqueue.jobs; expected less"),
        ("GRANT CREATE ON SCHEMA goqueue TO goqueue_reader", "failed",
         "goqueue_reader has CREATE on the schema goqueue; expected less"),
        ("GRANT SELECT ON goqueue.queue_metrics TO goqueue_producer", "warning",
         "goqueue_producer has SELECT on goqueue.queue_metrics; expected less"),
        ("GRANT ALL ON ALL TABLES IN SCHEMA goqueue TO goqueue_producer", "failed", "goqueue_producer has DELETE, INS"),
        ("GRANT SELECT ON goqueue.jobs TO goqueue_worker WITH GRANT OPTION", "failed",
         "goqueue_worker has the grant option for SELECT on goqueue.jobs"),
        ("GRANT INSERT (queue) ON goqueue.jobs TO goqueue_producer WITH GRANT OPTION", "failed",
         "goqueue_producer has the grant option for INSERT (queue) on goqueue.jobs"),
        ("ALTER TABLE goqueue.jobs OWNER TO CURRENT_USER", "failed", "goqueue.jobs is owned by "),
        ("ALTER TABLE goqueue.jobs OWNER TO goqueue_worker", "failed", "goqueue.jobs is owned by goqueue_worker; "),
        ("ALTER VIEW goqueue.queue_metrics OWNER TO CURRENT_USER", "failed", "goqueue.queue_metrics is owned by "),
        ("ALTER FUNCTION goqueue.uuid_v7() OWNER TO CURRENT_USER", "failed", "goqueue.uuid_v7() is owned by "),
        ("ALTER SCHEMA goqueue OWNER TO CURRENT_USER", "failed", "the schema goqueue is owned by "),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner IN SCHEMA goqueue GRANT ALL ON TABLES TO goqueue_producer",
         "warning", "goqueue_producer gets DELETE ON TABLES that are created later"),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner GRANT EXECUTE ON ROUTINES TO PUBLIC", "warning",
         "PUBLIC gets EXECUTE ON ROUTINES that are created later"),
        ("ALTER DEFAULT PRIVILEGES IN SCHEMA goqueue GRANT SELECT ON TABLES TO PUBLIC", "warning",
         "PUBLIC gets SELECT ON TABLES that are created later (FOR ROLE "),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner IN SCHEMA goqueue "  # noqa: ISC004
         "REVOKE SELECT ON TABLES FROM goqueue_reader", "warning",
         "goqueue_reader does not get SELECT ON TABLES that goqueue_owner will create"),
    ],
)  # fmt: skip
def test_a_right_that_is_not_the_scripts_is_reported_and_the_advice_repairs_it(
    applied: Connection, fault: str, level: str, found: str
) -> None:
    applied.execute(fault.encode())
    done = checked(applied)
    assert done.level == level
    assert done.findings[0].found.startswith(found)
    for finding in done.findings:
        assert finding.why
        follow(applied, finding.do)
    assert checked(applied).findings == ()


@pytest.mark.parametrize(
    "statement",
    [
        "GRANT USAGE ON SCHEMA goqueue TO {}; GRANT SELECT ON goqueue.queue_metrics TO {}",
        "CREATE POLICY mine ON goqueue.jobs FOR SELECT TO {} USING (queue = 'q'); GRANT SELECT ON goqueue.jobs TO {}",
        "ALTER TABLE goqueue.jobs ADD COLUMN tenant text; GRANT INSERT (tenant) ON goqueue.jobs TO goqueue_producer",
        "ALTER DEFAULT PRIVILEGES FOR ROLE goqueue_owner IN SCHEMA goqueue GRANT SELECT ON TABLES TO {}",
        "GRANT UPDATE (priority) ON goqueue.jobs TO {0}; GRANT goqueue_reader TO {0}",
        "CREATE TABLE goqueue.mine (); GRANT ALL ON goqueue.mine TO PUBLIC; ALTER TABLE goqueue.mine OWNER TO {}",
    ],
)
def test_grants_to_a_dbas_own_roles_are_no_fault(applied: Connection, place: Place, statement: str) -> None:
    login = place.logins["nobody"]
    applied.execute(re.sub(r"\{0?\}", login, statement).encode())
    try:
        done = checked(applied)
        assert done.level in (Level.OK, Level.NOTE)
        assert all(finding.do == "" for finding in done.findings)
        assert done.findings or "goqueue.mine" in statement
    finally:
        applied.execute(f"REVOKE goqueue_reader FROM {login}".encode())


def test_a_role_with_a_grant_that_sees_no_job_is_a_warning(applied: Connection, place: Place) -> None:
    login = place.logins["nobody"]
    applied.execute(f"GRANT USAGE ON SCHEMA goqueue TO {login}; GRANT SELECT ON goqueue.jobs TO {login}".encode())
    [finding] = checked(applied).findings
    assert finding.level == Level.WARNING
    assert finding.found.endswith("it sees no row of goqueue.jobs")
    assert finding.do.startswith("GRANT goqueue_reader TO ")


def test_a_default_of_a_members_login_is_reported_to_every_role(applied: Connection, place: Place) -> None:
    """Each login's own default that breaks its purpose."""
    whose = {who: f"ALTER ROLE {place.logins[who]} IN DATABASE {applied.info.dbname}" for who in ("worker", "reader")}
    for change in whose.values():
        applied.execute(f"{change} SET default_transaction_read_only = on".encode())
    applied.execute(f"{whose['worker']} SET row_security = off".encode())
    found = {one.do.partition(";")[0]: one.level for one in checked(applied, "settings").findings}
    assert found[f"{whose['worker']} RESET default_transaction_read_only"] == Level.FAILED
    assert found[f"{whose['worker']} RESET row_security"] == Level.FAILED
    # A reader doesn't need to write.
    assert f"{whose['reader']} RESET default_transaction_read_only" not in found


def test_without_the_script_the_check_has_one_line(
    goqueue_connection: Connection, goqueue_database: str, place: Place
) -> None:
    done = checked(goqueue_connection)
    assert done == Check("roles", Level.OK, "none: migrations/roles/roles.sql was not run in this database")
    # Their logins have no rights here.
    with place.connect("worker", goqueue_database) as connection:
        [finding] = list(run_checks(connection))[-1].findings
        assert finding.do == RUN_ROLES
    goqueue_connection.execute("GRANT USAGE ON SCHEMA goqueue TO PUBLIC; GRANT SELECT ON goqueue.jobs TO PUBLIC")
    with place.connect("worker", goqueue_database) as connection:
        [finding] = checked(connection).findings
        assert finding.level == Level.FAILED
        assert "a member of goqueue_worker, which has no rights in the database " in finding.found


def test_the_rights_after_the_script_was_undone_have_no_findings(applied: Connection, goqueue_database: str) -> None:
    run_script(goqueue_database, DROP_SCRIPT)
    assert checked(applied).level == checked(applied, "grants").level == Level.OK


def test_a_login_whose_role_lost_a_grant_fails_the_check_of_its_rights(
    applied: Connection, goqueue_database: str, place: Place
) -> None:
    applied.execute("REVOKE UPDATE (status) ON goqueue.jobs FROM goqueue_worker")
    with place.connect("worker", goqueue_database) as connection:
        done = {one.name: one for one in run_checks(connection)}
        [finding] = done["grants"].findings
        assert done["roles"].level == done["grants"].level == Level.FAILED
        assert "a member of goqueue_worker, can't run cancel_jobs, " in finding.found
        assert "claim_jobs" in finding.found
        assert "update_job" not in finding.found
        assert "permission denied for table jobs" in finding.why
        follow(applied, finding.do)
        assert {checked(connection, name).level for name in ("roles", "grants")} == {Level.OK}


def test_no_advice_grants_more_than_the_role_of_a_login_needs(
    applied: Connection, goqueue_database: str, place: Place
) -> None:
    for fault in (
        "ALTER TABLE goqueue.jobs DISABLE ROW LEVEL SECURITY",
        "REVOKE ALL ON goqueue.jobs FROM goqueue_producer",
    ):
        applied.execute(fault.encode())
        with place.connect("producer", goqueue_database) as connection:
            advice = [finding.do for done in run_checks(connection) for finding in done.findings]
        granted = [statement for statement in advice if statement.startswith("GRANT")]
        meant = (
            r"GRANT (INSERT \([\w, ]+\), )?SELECT ON TABLE goqueue.jobs TO goqueue_producer;|GRANT pg_read_all_stats"
        )
        assert [statement for statement in granted if not re.match(meant, statement)] == []


@pytest.mark.parametrize(
    ("who", "advice"),
    [
        ("owner", "GRANT pg_read_all_stats TO "),
        ("operator", "GRANT pg_read_all_stats TO "),
        ("worker", "run `goqueue check` as an operator's login"),
        ("reader", "run `goqueue check` as an operator's login"),
        ("producer", "run `goqueue check` as an operator's login"),
    ],
)
def test_only_an_operator_is_advised_to_see_other_sessions(
    applied: Connection, goqueue_database: str, place: Place, who: str, advice: str
) -> None:
    with place.connect(who, goqueue_database) as connection:
        [finding] = checked(connection, "horizon").findings
    assert finding.found.endswith("can't see the age of other roles' transactions")
    assert finding.do.startswith(advice)


@pytest.mark.parametrize(
    ("grant", "revoke"),
    [
        ("EXECUTE ON FUNCTION goqueue.new_jobs(jsonb)", "EXECUTE ON FUNCTION goqueue.new_jobs(jsonb)"),
        ("SELECT ON goqueue.paused_queues", "SELECT ON goqueue.paused_queues"),
        ("UPDATE ON goqueue.jobs", "UPDATE (status, last_error) ON goqueue.jobs"),
        ("UPDATE (status) ON goqueue.jobs", "UPDATE (status) ON goqueue.jobs"),
        ("USAGE ON SCHEMA goqueue", "USAGE ON SCHEMA goqueue"),
    ],
)
def test_rights_through_public_are_not_lacking_and_the_advice_keeps_them_for_the_roles(
    applied: Connection, grant: str, revoke: str
) -> None:
    applied.execute(f"GRANT {grant} TO PUBLIC; REVOKE {revoke} FROM goqueue_producer, goqueue_worker".encode())
    done = checked(applied)
    assert all(finding.found.startswith("PUBLIC has ") for finding in done.findings)
    for finding in done.findings:
        follow(applied, finding.do)
    assert checked(applied).findings == ()


def test_a_privilege_on_the_table_applies_to_its_columns(applied: Connection) -> None:
    applied.execute("REVOKE UPDATE ON goqueue.jobs FROM goqueue_worker; GRANT UPDATE ON goqueue.jobs TO goqueue_worker")
    [finding] = checked(applied).findings
    assert finding.found == "goqueue_worker has UPDATE on goqueue.jobs; expected less"
    follow(applied, finding.do)
    assert checked(applied).findings == ()


def test_the_check_names_the_grant_of_the_schema_that_a_role_lacks(
    applied: Connection, goqueue_database: str, place: Place
) -> None:
    applied.execute("REVOKE USAGE ON SCHEMA goqueue FROM goqueue_worker")
    with place.connect("worker", goqueue_database) as connection:
        done = {one.name: one for one in run_checks(connection)}
    [finding] = done["roles"].findings
    assert finding.do == "GRANT USAGE ON SCHEMA goqueue TO goqueue_worker;"
    assert done["grants"].findings[0].do == RUN_ROLES


def test_the_rights_lost_with_a_missing_view_are_no_fault(applied: Connection) -> None:
    applied.execute("DROP VIEW goqueue.queue_metrics; ALTER TABLE goqueue.job_failures DROP COLUMN worker_id")
    assert checked(applied).findings == ()
    assert checked(applied, "schema").level == Level.FAILED


def test_the_rights_of_a_database_with_pending_migrations_are_not_compared(applied: Connection) -> None:
    applied.execute(
        "DELETE FROM goqueue.schema_version WHERE version = (SELECT max(version) FROM goqueue.schema_version)"
    )
    assert checked(applied).level == Level.SKIPPED


# --- producers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(place: Place) -> Iterator[dict[str, PostgresStorage]]:
    opened = {who: PostgresStorage.open(place.url_of(who)) for who in ("producer", "other", "worker", "operator")}
    yield opened
    for store in opened.values():
        store.close()


def test_a_producer_follows_its_own_job_to_the_end_and_no_other_sees_it(stores: dict[str, PostgresStorage]) -> None:
    mine, theirs, worker = stores["producer"], stores["other"], stores["worker"]
    queue = secrets.token_hex(4)
    job = mine.create_job(NewJob(job_type="t", queue=queue, idempotency_key=queue, max_attempts=2))
    for error in ("first", "second"):
        worker.fail_job(worker.claim_jobs(queue, "w")[0], error, retry_in=timedelta(0))
    assert mine.get_job(job.id).status == JobStatus.DEAD
    assert [failure.error for failure in mine.list_failures(job.id)] == ["first", "second"]
    assert mine.count_jobs(JobFilter(queue=queue)) == 1

    for look in (lambda: theirs.get_job(job.id), lambda: theirs.get_job_by_idempotency_key(queue)):
        with pytest.raises(JobNotFoundError):
            look()
    assert theirs.get_jobs([job.id]) == []
    assert theirs.list_jobs(JobFilter(queue=queue)).jobs == []
    assert theirs.count_jobs(JobFilter(queue=queue)) == 0
    assert theirs.list_failures(job.id) == []
    with pytest.raises(SchemaError, match="queue_status_metrics"):
        theirs.queue_stats()


def test_a_key_of_another_producers_job_adds_nothing_and_fails_at_once(stores: dict[str, PostgresStorage]) -> None:
    key = secrets.token_hex(4)
    job = stores["other"].create_job(NewJob(job_type="t", idempotency_key=key, unique_key=key))
    start = time.monotonic()
    for attempt in (stores["producer"].get_or_create_job, lambda new: stores["producer"].create_jobs([new])):
        for same in ({"idempotency_key": key}, {"unique_key": key}):
            with pytest.raises(DuplicateJobError, match="a job that this login can't see"):
                attempt(NewJob(job_type="t", **same))
    assert time.monotonic() - start < 30
    assert stores["worker"].get_job_by_idempotency_key(key) == job


ADD_JOB = "SELECT id, created FROM goqueue.add_job('t', idempotency_key => %s)"


def test_producers_and_operators_add_jobs_from_sql(place: Place, stores: dict[str, PostgresStorage]) -> None:
    for who in ("producer", "operator", "owner"):
        key = secrets.token_hex(4)
        with place.connect(who) as connection:
            [(job_id, created)] = connection.execute(ADD_JOB, [key]).fetchall()
            assert created
            assert connection.execute(ADD_JOB, [key]).fetchall() == [(job_id, False)]
        assert stores["operator"].get_job_by_idempotency_key(key).id == job_id
    for who in ("worker", "reader", "nobody"):
        with place.connect(who) as connection, pytest.raises(REFUSED):
            connection.execute(ADD_JOB, [None])


def test_a_key_of_anothers_job_adds_no_job_from_sql_and_shows_none(
    place: Place, stores: dict[str, PostgresStorage]
) -> None:
    key = secrets.token_hex(4)
    job = stores["other"].create_job(NewJob(job_type="t", idempotency_key=key, unique_key=key))
    with place.connect("producer") as connection:
        assert connection.execute(ADD_JOB, [key]).fetchall() == [(None, False)]
        unique = "SELECT id, created FROM goqueue.add_job('t', unique_key => %s)"
        assert connection.execute(unique, [key]).fetchall() == [(None, False)]
        hidden = "SELECT id, created FROM goqueue.add_job('t', id => %s)"
        assert connection.execute(hidden, [job.id]).fetchall() == [(None, False)]
    assert stores["worker"].get_job_by_idempotency_key(key) == job


def test_a_trigger_adds_jobs_with_the_rights_of_the_inserting_login_or_of_its_functions_owner(
    place: Place, admin: Connection, stores: dict[str, PostgresStorage]
) -> None:
    table = f"orders_{secrets.token_hex(4)}"
    shop, clerk = place.logins["producer"], place.logins["nobody"]
    admin.execute(f"""
        CREATE TABLE {table} (id int);
        GRANT INSERT ON {table} TO {shop}, {clerk};
        CREATE FUNCTION ship_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM goqueue.add_job('ship', jsonb_build_object('order', NEW.id), '{table}');
            RETURN NEW;
        END $$;
        CREATE TRIGGER ship AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION ship_{table}();
    """)
    try:
        with place.connect("producer") as connection:
            connection.execute(f"INSERT INTO {table} VALUES (1)")
        with place.connect("nobody") as connection:
            with pytest.raises(REFUSED, match="permission denied for schema goqueue"):
                connection.execute(f"INSERT INTO {table} VALUES (2)")
            admin.execute(
                f"ALTER FUNCTION ship_{table}() OWNER TO {shop}; ALTER FUNCTION ship_{table}() SECURITY DEFINER"
            )
            connection.execute(f"INSERT INTO {table} VALUES (3)")
        assert len(stores["producer"].list_jobs(JobFilter(queue=table)).jobs) == 2
    finally:
        admin.execute(f"DROP TABLE {table}; DROP FUNCTION ship_{table}()")


@pytest.mark.parametrize("who", ["producer", "operator"])
def test_copy_fails_under_row_level_security_and_an_insert_from_a_table_does_not(
    who: str, place: Place, admin: Connection
) -> None:
    with place.connect(who) as connection, connection.cursor() as cursor:
        with (
            pytest.raises(psycopg.errors.FeatureNotSupported, match="COPY FROM not supported with row-level security"),
            cursor.copy("COPY goqueue.jobs (job_type) FROM STDIN") as copy,
        ):
            copy.write("a\nb\n")
        cursor.execute("CREATE TEMPORARY TABLE mine (job_type text)")
        with cursor.copy("COPY mine FROM STDIN") as copy:
            copy.write("a\nb\n")
        assert cursor.execute("INSERT INTO goqueue.jobs (job_type) SELECT job_type FROM mine").rowcount == 2
        admin.execute("DELETE FROM goqueue.jobs WHERE job_type IN ('a', 'b')")


COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = 'goqueue.jobs'::regclass AND attnum > 0 AND NOT attisdropped
"""
GIVEN = {
    "id", "queue", "job_type", "payload", "priority", "max_attempts", "scheduled_at", "idempotency_key", "unique_key",
}  # fmt: skip


def test_a_producer_sets_no_column_but_what_a_job_is_made_of(place: Place, admin: Connection) -> None:
    columns = {name for (name,) in admin.execute(COLUMNS)}
    assert {"status", "created_by", "attempts", "lease_token", "created_at"} <= columns - GIVEN
    with place.connect("producer") as connection:
        for column in columns - GIVEN:
            with pytest.raises(REFUSED, match="permission denied for table jobs"):
                connection.execute(f"INSERT INTO goqueue.jobs (job_type, {column}) VALUES ('t', DEFAULT)")


def test_no_one_else_can_be_named_as_the_creator_even_with_a_grant(place: Place, admin: Connection) -> None:
    login = sql.Identifier(place.logins["producer"])
    with admin.transaction(force_rollback=True):
        admin.execute(sql.SQL("GRANT INSERT (created_by) ON goqueue.jobs TO {}").format(login))
        admin.execute(sql.SQL("SET LOCAL ROLE {}").format(login))
        with pytest.raises(REFUSED, match="violates row-level security policy"):
            admin.execute("INSERT INTO goqueue.jobs (job_type, created_by) VALUES ('t', 'postgres')")


def test_a_job_belongs_to_the_role_whose_rights_were_checked(place: Place, admin: Connection) -> None:
    creator = "INSERT INTO goqueue.jobs (job_type) VALUES ('t') RETURNING created_by"
    with admin.transaction(force_rollback=True):
        admin.execute(f"SET LOCAL ROLE {place.logins['producer']}")
        assert admin.execute(creator).fetchone() == (place.logins["producer"],)
        admin.execute(f"SET LOCAL ROLE {place.logins['owner']}")
        admin.execute(
            f"CREATE FUNCTION goqueue.add() RETURNS text LANGUAGE sql SECURITY DEFINER AS $${creator}$$;"
            f"GRANT EXECUTE ON FUNCTION goqueue.add() TO {place.logins['reader']}"
        )
        admin.execute(f"SET LOCAL ROLE {place.logins['reader']}")
        assert admin.execute("SELECT goqueue.add()").fetchone() == (place.logins["owner"],)


def test_a_producers_job_wakes_a_listening_worker(stores: dict[str, PostgresStorage]) -> None:
    queue = secrets.token_hex(4)
    with stores["worker"].listen(queue) as listener:
        stores["producer"].create_jobs([NewJob(job_type="t", queue=queue)])
        assert listener.wait(timedelta(minutes=1)) == {queue}


def test_a_worker_that_is_a_producer_too_adds_follow_up_jobs(place: Place, admin: Connection) -> None:
    with place.connect("worker") as connection:
        store = PostgresStorage.bound_to(connection)
        with pytest.raises(SchemaError, match="permission denied for table jobs"):
            store.create_job(NewJob(job_type="follow-up"))
        admin.execute(f"GRANT goqueue_producer TO {place.logins['worker']}")
        try:
            job = store.create_job(NewJob(job_type="follow-up", queue="follow-up"))
            assert [claimed.id for claimed in store.claim_jobs("follow-up", "w")] == [job.id]
        finally:
            admin.execute(f"REVOKE goqueue_producer FROM {place.logins['worker']}")


# --- what is rejected -------------------------------------------------------------------------------------------------

CHANGES = {
    "insert": "INSERT INTO goqueue.jobs (job_type) VALUES ('t')",
    "delete": "DELETE FROM goqueue.jobs",
    "cut": "DELETE FROM goqueue.job_failures",
    "what": "UPDATE goqueue.jobs SET payload = '1'",
    "type": "UPDATE goqueue.jobs SET job_type = 'other'",
    "queue": "UPDATE goqueue.jobs SET queue = 'other'",
    "key": "UPDATE goqueue.jobs SET idempotency_key = NULL",
    "unique key": "UPDATE goqueue.jobs SET unique_key = NULL",
    "id": "UPDATE goqueue.jobs SET id = id",
    "creator": "UPDATE goqueue.jobs SET created_by = 'me'",
    "creation": "UPDATE goqueue.jobs SET created_at = now()",
    "state": "UPDATE goqueue.jobs SET status = 'cancelled', completed_at = now()",
    "lock": "SELECT FROM goqueue.jobs FOR UPDATE",
    "lock all": "LOCK TABLE goqueue.jobs IN ACCESS EXCLUSIVE MODE",
    "failure": "INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, error) "
    "VALUES (gen_random_uuid(), 1, 1, 'e')",
    "forge": "UPDATE goqueue.job_failures SET error = 'other'",
    "truncate": "TRUNCATE goqueue.jobs",
    "version": "DELETE FROM goqueue.schema_version",
    "checksum": "UPDATE goqueue.migration_checksums SET sha256 = sha256",
}
NEVER = {"id", "creator", "creation", "truncate", "version", "checksum"}


@pytest.mark.parametrize(
    ("role", "refused"),
    [
        ("producer", set(CHANGES) - {"insert"}),
        ("reader", set(CHANGES)),
        ("worker", NEVER | {"insert", "delete", "cut", "what", "type", "queue", "key", "unique key", "lock all"}),
        ("operator", NEVER),
    ],
)
def test_a_role_changes_only_what_it_needs_to_change(
    role: str, refused: set[str], place: Place, jobs: dict[str, UUID]
) -> None:
    seen = set()
    with place.connect(role) as connection:
        for name, statement in CHANGES.items():
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute(statement)
            except REFUSED:
                seen.add(name)
            except psycopg.errors.CheckViolation:
                assert name == "state"  # It has the right; the table's constraints rejected the value.
    assert seen == refused


DDL = [
    "CREATE TABLE goqueue.mine ()",
    "CREATE VIEW goqueue.mine AS SELECT 1",
    "CREATE FUNCTION goqueue.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE goqueue.mine AS ENUM ()",
    "CREATE INDEX ON goqueue.jobs (priority)",
    "CREATE TRIGGER mine AFTER INSERT ON goqueue.jobs EXECUTE FUNCTION goqueue.notify_ready_jobs()",
    "CREATE POLICY mine ON goqueue.jobs USING (TRUE)",
    "CREATE TEMPORARY TABLE mine (status goqueue.job_status)",
    "ALTER TABLE goqueue.jobs DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE goqueue.jobs DISABLE TRIGGER ALL",
    "ALTER TABLE goqueue.jobs DROP COLUMN last_error",
    "ALTER TABLE goqueue.jobs OWNER TO CURRENT_USER",
    "ALTER TYPE goqueue.job_status ADD VALUE 'lost'",
    "ALTER SCHEMA goqueue RENAME TO mine",
    "DROP POLICY all_jobs ON goqueue.jobs",
    "DROP TABLE goqueue.job_failures",
    "DROP INDEX goqueue.jobs_claim_idx",
    "DROP FUNCTION goqueue.uuid_v7()",
    "DROP SCHEMA goqueue CASCADE",
    "SET ROLE goqueue_owner",
]


@pytest.mark.parametrize("role", RUNTIME)
def test_only_the_owner_changes_the_schema(role: str, place: Place, admin: Connection) -> None:
    with place.connect(role) as connection:
        for statement in [*DDL, *(f"SET ROLE goqueue_{other}" for other in RUNTIME if other != role)]:
            with pytest.raises(REFUSED):
                connection.execute(statement)
        # A denied grant is only a warning if another one succeeds.
        grants = admin.execute(GRANTS).fetchall()
        connection.execute("GRANT ALL ON goqueue.jobs TO PUBLIC")
        assert admin.execute(GRANTS).fetchall() == grants


# --- migrating --------------------------------------------------------------------------------------------------------


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """Return the migrations and a later one."""
    shutil.copy(BASE / "migrations.yml", tmp_path)
    shutil.copytree(BASE / "migrations", tmp_path / "migrations")
    version = len(list((BASE / "migrations").glob("V*.sql"))) + 1
    (tmp_path / "migrations" / f"V{version:04}__later.sql").write_text(
        "CREATE TABLE goqueue.later (id integer);\n"
        "CREATE FUNCTION goqueue.later() RETURNS integer LANGUAGE sql AS 'SELECT 1';\n"
        "ALTER TABLE goqueue.jobs ADD COLUMN later integer;\n"
    )
    return tmp_path


def test_the_owner_alone_migrates(goqueue_database: str, place: Place, later: Path) -> None:
    run_script(goqueue_database)
    version = "SELECT max(version) FROM goqueue.schema_version"
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        before = connection.execute(version).fetchone()
        for role in RUNTIME:
            with pytest.raises(
                MigrationError, match=r"V\d+__later.sql failed and was rolled back: .*permission denied"
            ):
                migrate(place.url_of(role, goqueue_database), base_dir=later)
            refused = r"U\d+.* failed and was rolled back: (must be owner of|permission denied for (schema|table))"
            with pytest.raises(MigrationError, match=refused):
                undo(place.url_of(role, goqueue_database), to=0)
            assert connection.execute(version).fetchone() == before

        as_owner = make_conninfo(place.url_of("owner", goqueue_database), options="-c role=goqueue_owner")
        migrate(as_owner, base_dir=later)
        assert connection.execute(version).fetchone() != before
        assert connection.execute(
            "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'goqueue.later'::regclass"
        ).fetchone() == ("goqueue_owner",)
    # Roles that read everything can read the new table before the script runs again.
    for role in RUNTIME:
        with place.connect(role, goqueue_database) as connection:
            if role in ("reader", "operator"):
                connection.execute("SELECT FROM goqueue.later")
            else:
                with pytest.raises(REFUSED, match="permission denied for table later"):
                    connection.execute("SELECT FROM goqueue.later")
            with pytest.raises(REFUSED, match="permission denied for function later"):
                connection.execute("SELECT goqueue.later()")


def test_objects_created_by_a_member_of_the_owner_are_transferred(goqueue_database: str, place: Place) -> None:
    run_script(goqueue_database)
    with place.connect("owner", goqueue_database) as connection:
        connection.execute("CREATE TABLE goqueue.mine (); CREATE TYPE goqueue.my_kind AS ENUM ('one')")
        connection.execute("CREATE VIEW goqueue.my_view AS SELECT FROM goqueue.mine")
        connection.execute("CREATE FUNCTION goqueue.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    run_script(goqueue_database)
    with psycopg.connect(goqueue_database) as connection:
        owners = connection.execute(
            """
            SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'goqueue'::regnamespace
            UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'goqueue'::regnamespace
            UNION SELECT typowner::regrole::text FROM pg_type WHERE typnamespace = 'goqueue'::regnamespace
            UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'goqueue'
            """
        ).fetchall()
    assert owners == [("goqueue_owner",)]


# --- the script -------------------------------------------------------------------------------------------------------

STATE = {
    "tables": """
        SELECT c.relname, c.relowner::regrole::text, c.relrowsecurity, a.grantor::regrole::text,
            a.grantee::regrole::text, a.privilege_type
        FROM pg_class AS c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
        WHERE c.relnamespace = 'goqueue'::regnamespace AND c.relkind = 'r' ORDER BY 1, 4, 5, 6""",
    "columns": """
        SELECT c.attrelid::regclass::text, c.attname, a.grantee::regrole::text, a.privilege_type
        FROM pg_attribute AS c, aclexplode(c.attacl) AS a
        WHERE c.attrelid::regclass::text LIKE 'goqueue.%' ORDER BY 1, 2, 3, 4""",
    "functions": """
        SELECT p.proname, a.grantee::regrole::text, a.privilege_type
        FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace = 'goqueue'::regnamespace ORDER BY 1, 2, 3""",
    "types": """
        SELECT t.typname, a.grantee::regrole::text, a.privilege_type
        FROM pg_type AS t, aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) AS a
        WHERE t.typnamespace = 'goqueue'::regnamespace AND t.typtype = 'e' ORDER BY 1, 2, 3""",
    "schema": """
        SELECT a.grantee::regrole::text, a.privilege_type
        FROM pg_namespace AS n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
        WHERE n.nspname = 'goqueue' ORDER BY 1, 2""",
    "defaults": """
        SELECT d.defaclnamespace::regnamespace::text, d.defaclobjtype, a.grantee::regrole::text, a.privilege_type
        FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS a ORDER BY 1, 2, 3, 4""",
    "policies": "SELECT tablename, policyname, permissive, roles, cmd, qual, with_check FROM pg_policies ORDER BY 1, 2",
}


def state(url: str) -> dict[str, list[Any]]:
    """Return owners, grants (including defaults), and policies of everything in the schema."""
    with psycopg.connect(url) as connection:
        return {name: connection.execute(query).fetchall() for name, query in STATE.items()}


def test_a_second_run_of_the_script_restores_everything(goqueue_database: str, place: Place) -> None:
    assert run_script(goqueue_database) == []
    first = state(goqueue_database)
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        connection.execute(
            """
            GRANT DELETE ON goqueue.jobs TO goqueue_worker, PUBLIC;
            GRANT UPDATE (created_by) ON goqueue.jobs TO goqueue_producer;
            REVOKE INSERT ON goqueue.job_failures FROM goqueue_worker;
            GRANT CREATE ON SCHEMA goqueue TO goqueue_reader;
            DROP POLICY all_jobs ON goqueue.jobs;
            CREATE POLICY all_jobs ON goqueue.jobs TO goqueue_producer USING (TRUE);
            ALTER TABLE goqueue.jobs DISABLE ROW LEVEL SECURITY
            """
        )
    assert state(goqueue_database) != first
    assert run_script(goqueue_database) == []
    assert state(goqueue_database) == first


def test_a_login_that_loses_sight_of_the_jobs_is_named(goqueue_database: str, place: Place) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        for who in ("nobody", "worker"):
            connection.execute(f"GRANT USAGE ON SCHEMA goqueue TO {place.logins[who]}")
            connection.execute(f"GRANT SELECT, INSERT ON goqueue.jobs TO {place.logins[who]}")
        connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
    [said] = run_script(goqueue_database)
    assert said.startswith(f"WARNING: the role {place.logins['nobody']} has grants of its own")
    with place.connect("nobody", goqueue_database) as connection:
        assert connection.execute("SELECT FROM goqueue.jobs").rowcount == 0
        with pytest.raises(REFUSED, match="violates row-level security policy"):
            connection.execute("INSERT INTO goqueue.jobs (id, job_type) VALUES (gen_random_uuid(), 't')")


def test_a_database_that_is_not_migrated_is_rejected(goqueue_database: str, place: Place) -> None:
    undo(goqueue_database, to=7)
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"no column created_by[\s\S]*Run pgmigrate migrate"):
        run_script(goqueue_database)
    undo(goqueue_database, to=0)
    with pytest.raises(psycopg.errors.UndefinedColumn, match="no column created_by"):
        run_script(goqueue_database)


# --- the roles of a whole server: a separate one ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(durable=False) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
        migrate(server.url("migrated"))
        yield server


@pytest.fixture
def databases(own_server: EmbeddedServer) -> Iterator[list[str]]:
    """Four migrated databases of a server without the roles."""
    names = [f"app_{number}" for number in range(4)]
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        yield [own_server.url(name) for name in names]
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for role in ROLES:
            connection.execute(f"DROP ROLE IF EXISTS goqueue_{role}")


def roles_of(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'goqueue_%'")}


def test_the_roles_are_made_once_by_databases_at_the_same_time(databases: list[str]) -> None:
    with ThreadPoolExecutor(12) as threads:
        for _ in range(3):
            assert list(threads.map(run_script, databases * 3)) == [[]] * 12
            assert roles_of(databases[0]) == {f"goqueue_{role}" for role in ROLES}
            for url in databases:
                run_script(url, DROP_SCRIPT)
            assert roles_of(databases[0]) == set()


def test_dropping_leaves_what_there_was_and_the_roles_to_other_databases(databases: list[str]) -> None:
    before = state(databases[0])
    for url in databases[:2]:
        run_script(url)
    assert state(databases[0]) != before
    said = run_script(databases[0], DROP_SCRIPT)
    assert [line.partition(" stays")[0] for line in said] == [
        f"WARNING: the role goqueue_{role}" for role in sorted(ROLES)
    ]
    assert state(databases[0]) == before
    assert roles_of(databases[0]) == {f"goqueue_{role}" for role in ROLES}
    assert run_script(databases[1], DROP_SCRIPT) == []
    assert roles_of(databases[0]) == set()
    assert run_script(databases[0], DROP_SCRIPT) == []
    undo(databases[0], to=0)


def test_psql_runs_the_scripts(own_server: EmbeddedServer, databases: list[str]) -> None:
    for script in (SCRIPT, SCRIPT, DROP_SCRIPT):
        for options in ([], ["-1"]):
            command = [
                own_server.bin("psql"),
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                *options,
                "-f",
                script,
                databases[0],
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
            # -1 adds another BEGIN and COMMIT, with warnings; there are no other messages.
            assert len(done.stderr.splitlines()) == (2 if options else 0), done.stderr


def test_the_scripts_run_as_advised(own_server: EmbeddedServer, databases: list[str]) -> None:
    parts = conninfo_to_dict(databases[0])
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    environment = os.environ | {names[part]: str(value) for part, value in parts.items() if part in names}
    path = [own_server.bin("psql").parent, Path(sys.executable).parent, os.environ["PATH"]]
    environment |= {"PATH": os.pathsep.join(map(str, path))}
    for name in ("roles.sql", "roles.sql", "drop_roles.sql"):
        done = subprocess.run(
            run_command(name), shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert ("goqueue_owner" in str(roles_of(databases[0]))) is (name == "roles.sql")


def test_the_undo_of_the_column_waits_for_the_roles_to_go(databases: list[str]) -> None:
    run_script(databases[0])
    with pytest.raises(MigrationError, match="other objects depend on it"):
        undo(databases[0], to=7)
    run_script(databases[0], DROP_SCRIPT)
    assert undo(databases[0], to=7)[-1] == 8


def test_a_dba_who_is_no_superuser_can_set_up_the_roles(own_server: EmbeddedServer, databases: list[str]) -> None:
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE dba LOGIN CREATEROLE")
        connection.execute("CREATE DATABASE hers OWNER dba")
        url = make_conninfo(own_server.url("hers"), user="dba")
        try:
            migrate(url)
            assert run_script(url) == run_script(url) == []
            with psycopg.connect(url, autocommit=True) as dba:
                dba.execute("CREATE ROLE shop LOGIN IN ROLE goqueue_producer")
            with PostgresStorage.open(make_conninfo(url, user="shop")) as store:
                job = store.create_job(NewJob(job_type="t"))
                assert store.get_job(job.id) == job
            assert run_script(url, DROP_SCRIPT) == []
            assert roles_of(url) == set()
            with psycopg.connect(url) as dba:
                assert dba.execute("SELECT id FROM goqueue.jobs").fetchall() == [(job.id,)]
        finally:
            connection.execute("DROP DATABASE hers WITH (FORCE)")
            for role in (*(f"goqueue_{role}" for role in ROLES), "shop", "dba"):
                connection.execute(f"DROP ROLE IF EXISTS {role}")


def test_the_owner_migrates_an_empty_database_once_it_has_the_schema(
    own_server: EmbeddedServer, databases: list[str]
) -> None:
    run_script(databases[0])
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE deploy LOGIN IN ROLE goqueue_owner")
        connection.execute("CREATE DATABASE fresh")
        try:
            as_owner = make_conninfo(own_server.url("fresh"), user="deploy", options="-c role=goqueue_owner")
            with pytest.raises(MigrationError, match="permission denied for database fresh"):
                migrate(as_owner)
            with psycopg.connect(own_server.url("fresh"), autocommit=True) as fresh:
                fresh.execute("CREATE SCHEMA goqueue AUTHORIZATION goqueue_owner")
            migrate(as_owner)
            assert run_script(own_server.url("fresh")) == []
            assert state(own_server.url("fresh")) == state(databases[0])
        finally:
            connection.execute("DROP DATABASE fresh WITH (FORCE)")
            connection.execute("DROP ROLE deploy")


@pytest.mark.parametrize(
    ("fault", "level", "found"),
    [
        ("ALTER ROLE goqueue_worker BYPASSRLS", "failed", "the role goqueue_worker has the attribute BYPASSRLS; "),
        ("ALTER ROLE goqueue_producer SUPERUSER", "failed", "the role goqueue_producer has the attribute SUPERUSER; "),
        ("ALTER ROLE goqueue_reader LOGIN", "warning",
         "the role goqueue_reader has the attribute LOGIN; expected none"),
        ("GRANT goqueue_worker TO goqueue_producer", "failed",
         "the role goqueue_producer is a member of goqueue_worker; expected a member of no role"),
        ("GRANT goqueue_owner TO goqueue_operator", "failed",
         "the role goqueue_operator is a member of goqueue_owner; expected a member of no role"),
        ("GRANT pg_read_all_data TO goqueue_producer", "warning",
         "the role goqueue_producer is a member of pg_read_all_data; expected a member of no role"),
        ("GRANT goqueue_worker TO shop WITH ADMIN OPTION", "warning",
         "the role shop is a member of goqueue_worker with the admin option"),
        ("GRANT goqueue_producer TO shop; ALTER ROLE shop BYPASSRLS", "warning",
         "the role shop is a member of goqueue_producer, and exempt from row level security"),
        ("CREATE ROLE team IN ROLE goqueue_producer; GRANT team TO shop; ALTER ROLE shop BYPASSRLS", "warning",
         "the role shop is a member of goqueue_producer, and exempt from row level security"),
        ("GRANT goqueue_producer TO shop; ALTER ROLE shop SUPERUSER", "warning",
         "the role shop is a member of goqueue_producer, and a superuser"),
        ("GRANT goqueue_producer, goqueue_worker, goqueue_owner TO shop", "warning",
         "the role shop is a member of goqueue_producer, goqueue_worker, and a member of goqueue_owner"),
        ("GRANT goqueue_operator, goqueue_owner TO shop", "note",
         "the role shop is a member of goqueue_operator, and a member of goqueue_owner"),
    ],
)  # fmt: skip
def test_a_role_with_more_rights_than_the_scripts_is_reported_and_the_advice_repairs_it(
    own_server: EmbeddedServer, databases: list[str], fault: str, level: str, found: str
) -> None:
    run_script(databases[0])
    with psycopg.connect(databases[0], autocommit=True) as connection:
        connection.execute("CREATE ROLE shop LOGIN")
        try:
            connection.execute(fault.encode())
            [finding] = checked(connection).findings
            assert (finding.level, finding.found[: len(found)]) == (level, found)
            assert finding.why
            follow(connection, finding.do)
            assert checked(connection).findings == ()
        finally:
            connection.execute("DROP ROLE shop; DROP ROLE IF EXISTS team")
            for role in ROLES:
                connection.execute(f"ALTER ROLE goqueue_{role} NOSUPERUSER NOBYPASSRLS NOLOGIN".encode())


@pytest.mark.parametrize(
    "statement",
    [
        "GRANT goqueue_producer, goqueue_worker TO shop",
        "GRANT goqueue_owner TO shop",
        "GRANT goqueue_reader TO shop; ALTER ROLE shop BYPASSRLS",
        "ALTER ROLE shop CREATEROLE; GRANT goqueue_owner, goqueue_producer TO shop WITH ADMIN OPTION",
        "CREATE ROLE team IN ROLE goqueue_worker ROLE shop",
    ],
)
def test_members_that_the_roles_are_meant_for_are_no_fault(
    own_server: EmbeddedServer, databases: list[str], statement: str
) -> None:
    run_script(databases[0])
    with psycopg.connect(databases[0], autocommit=True) as connection:
        connection.execute("CREATE ROLE shop LOGIN")
        try:
            connection.execute(statement.encode())
            assert checked(connection).findings == ()
        finally:
            connection.execute("DROP ROLE shop; DROP ROLE IF EXISTS team")


def test_a_login_that_does_not_inherit_its_roles_rights_gets_advice(
    own_server: EmbeddedServer, databases: list[str]
) -> None:
    run_script(databases[0])
    with psycopg.connect(databases[0], autocommit=True) as admin:
        admin.execute("CREATE ROLE shop LOGIN NOINHERIT; GRANT goqueue_worker TO shop")
        admin.execute("GRANT USAGE ON SCHEMA goqueue TO shop; GRANT SELECT ON goqueue.schema_version TO shop")
        try:
            with psycopg.connect(make_conninfo(databases[0], user="shop"), autocommit=True) as connection:
                [finding] = checked(connection, "grants").findings
                assert finding.level == Level.FAILED
                follow(admin, finding.do)
                assert checked(connection, "grants").level == Level.OK
                connection.execute("SET ROLE goqueue_worker")
                assert checked(connection, "grants").level == Level.OK
        finally:
            admin.execute("DROP OWNED BY shop; DROP ROLE shop")


def test_the_roles_of_another_database_are_not_those_of_this_one(databases: list[str]) -> None:
    run_script(databases[0])
    with psycopg.connect(databases[1], autocommit=True) as connection:
        done = list(run_checks(connection))
    assert {one.name: one.level for one in done if one.name in ("schema", "roles", "grants")} == {
        "schema": Level.OK, "roles": Level.OK, "grants": Level.OK
    }  # fmt: skip


# --- plans ------------------------------------------------------------------------------------------------------------


# A producer's lists skip jobs that others have added.
NOT_FOR_PRODUCERS = {"list_jobs", "count_jobs", "queue_stats", "next_job_at", "list_job_types"}


def test_row_level_security_costs_no_query_its_indexes(goqueue_database: str, place: Place) -> None:
    run_script(goqueue_database)
    with ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(goqueue_database, autocommit=True))
        seed(admin, "history", 200_000)
        jobs = {}
        for status in map(str, JobStatus):
            [(jobs[status],)] = admin.execute(
                "UPDATE goqueue.jobs SET idempotency_key = status, created_by = %s "
                "WHERE id = (SELECT id FROM goqueue.jobs WHERE status::text = %s LIMIT 1) RETURNING id",
                [place.logins["producer"], status],
            )
        admin.execute("VACUUM ANALYZE goqueue.jobs")
        values = values_of(jobs)
        for name in ("claim_jobs", "next_job_at"):
            values[name]["queues"] = ["queue_00", "queue_03"]
        without = Explainer(admin)
        for role in RUNTIME:
            explainer = Explainer(stack.enter_context(place.connect(role, goqueue_database)))
            for name, outcomes in EXPECTED.items():
                if outcomes[role] == "no" or name in LISTEN or (role == "producer" and name in NOT_FOR_PRODUCERS):
                    continue
                for mode in MODES:
                    plan = without.explain(name, values[name], mode, math.inf)
                    # A connection's first writes load the catalog cache.
                    under = explainer.explain(name, values[name], mode, 2 * plan.pages + 200)
                    # A producer sees the failures of its own jobs, which costs a lookup.
                    more = {"jobs_pkey"} if role == "producer" and name == "list_failures" else set()
                    said = f"{name} as {role}, {mode}:\n{under}"
                    assert under.used_indexes == plan.used_indexes | more, said
                    assert under.table_scans <= plan.table_scans, said
                    assert under.pages <= 2 * plan.pages + 200, said
