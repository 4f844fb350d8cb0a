"""`goqueue check`: every kind of fault in turn, and what the check reports; and `goqueue sql`."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from goqueue import NewJob, PostgresStorage, cli
from goqueue.config import DatabaseConfig
from goqueue.files import run_command, shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.pool import connect
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench import health
from goqueue.workbench.durability import _LAST
from goqueue.workbench.findings import Check, Finding, Level
from goqueue.workbench.health import run_checks
from goqueue.workbench.schema import expected_schema, read_schema
from tools.documents import documents
from tools.recordings import schema_text

Connection = psycopg.Connection[Any]
NAMES = [
    "server", "settings", "migrations", "schema", "queries", "roles", "grants", "plans", "autovacuum", "horizon",
    "listeners", "claim index", "durability",
]  # fmt: skip


def check(connection: Connection, name: str, **how: Any) -> Check:
    return {done.name: done for done in run_checks(connection, **how)}[name]


def finding(connection: Connection, name: str, **how: Any) -> Finding:
    """Return the only finding of a check."""
    [found] = check(connection, name, **how).findings
    return found


# --- all is well ----------------------------------------------------------------------------------------------------


def test_a_fresh_database_has_no_findings(goqueue_connection: Connection) -> None:
    done = list(run_checks(goqueue_connection))
    assert [one.name for one in done] == NAMES
    # The test servers are fast and unsafe, and two checks report that.
    unsafe = {"settings", "durability"}
    assert {one.name: one.level for one in done if one.level != Level.OK and one.name not in unsafe} == {}
    assert goqueue_connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_the_check_changes_nothing(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t"))
    before = goqueue_connection.execute("SELECT xmin, * FROM goqueue.jobs").fetchall()
    schema = read_schema(goqueue_connection)
    settings = goqueue_connection.execute("SELECT name, setting FROM pg_settings ORDER BY 1").fetchall()
    list(run_checks(goqueue_connection))
    assert goqueue_connection.execute("SELECT xmin, * FROM goqueue.jobs").fetchall() == before
    assert read_schema(goqueue_connection) == schema
    assert goqueue_connection.execute("SELECT name, setting FROM pg_settings ORDER BY 1").fetchall() == settings
    assert goqueue_store.get_job(job.id) == job


def test_the_snapshot_of_the_schema_is_fresh(goqueue_connection: Connection) -> None:
    text = (shipped_folder("migrations") / "schema.json").read_text("utf-8")
    assert schema_text(goqueue_connection) == text, "migrations/schema.json is stale: make catalogue"


# --- migrations -----------------------------------------------------------------------------------------------------


def test_the_advice_for_an_empty_database_is_to_migrate(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP SCHEMA goqueue CASCADE")
    done = list(run_checks(goqueue_connection))
    assert [one.name for one in done] == ["server", "settings", "migrations"]
    assert done[-1].level == Level.FAILED
    assert done[-1].findings[0].do.startswith("goqueue migrate ")


def test_pending_migrations_are_named(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DELETE FROM goqueue.schema_version WHERE version IN (6, 7)")
    found = finding(goqueue_connection, "migrations")
    assert found.level == Level.FAILED
    assert found.found == "pending: V0006__tune_autovacuum.sql, V0007__notify_ready_jobs.sql"
    assert check(goqueue_connection, "schema").level == Level.SKIPPED


def test_a_changed_file_name_makes_no_migration_pending(
    goqueue_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = health.migration_files(shipped_folder("migrations"))
    files[1] = files[1]._replace(name="V0002__index_pending_jobs.sql", sha256="0" * 64)
    monkeypatch.setattr(health, "migration_files", lambda _: files)
    assert finding(goqueue_connection, "migrations").found.startswith(
        "V0002__index_pending_jobs.sql differs from the applied text"
    )
    assert check(goqueue_connection, "schema").level == Level.OK


def test_statements_that_pending_migrations_break_are_one_finding(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DELETE FROM goqueue.schema_version WHERE version >= 5")
    goqueue_connection.execute("DROP TABLE goqueue.job_failures CASCADE")
    found = finding(goqueue_connection, "grants")
    assert found.level == Level.FAILED
    assert re.fullmatch(r"\d+ statements can't be run before all migrations are applied", found.found)
    assert found.do.startswith("goqueue migrate ")


def test_a_database_from_before_the_checksums_is_checked_as_far_as_possible(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP TABLE goqueue.migration_checksums")
    done = {one.name: one for one in run_checks(goqueue_connection)}
    assert list(done) == NAMES
    assert done["migrations"].level == Level.FAILED
    assert "pending" in done["migrations"].findings[0].found


def test_an_edited_migration_is_reported_with_advice(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("UPDATE goqueue.migration_checksums SET sha256 = repeat('0', 64) WHERE version = 2")
    found = finding(goqueue_connection, "migrations")
    assert found.level == Level.FAILED
    assert found.found.startswith("V0002__index_jobs.sql differs from the applied text: sha256 000000000000… then, ")
    goqueue_connection.execute(found.do.partition("no difference: ")[2].encode())
    assert check(goqueue_connection, "migrations").level == Level.OK


def test_a_missing_checksum_and_a_newer_database_are_no_failure(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DELETE FROM goqueue.migration_checksums WHERE version = 1")
    assert finding(goqueue_connection, "migrations").level == Level.NOTE
    goqueue_connection.execute(
        "INSERT INTO goqueue.schema_version SELECT (jsonb_populate_record(v, '{\"version\": 999}')).* "
        "FROM goqueue.schema_version AS v WHERE version = 1"
    )
    newer, _ = check(goqueue_connection, "migrations").findings
    assert (newer.level, "version 999" in newer.found) == (Level.WARNING, True)


# --- the schema -----------------------------------------------------------------------------------------------------

UNVALIDATED = (
    "ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_queue_length, "
    "ADD CONSTRAINT jobs_queue_length CHECK (char_length(queue) BETWEEN 1 AND 255) NOT VALID"
)
INVALID = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'goqueue.jobs_finished_type_idx'::regclass"


@pytest.mark.parametrize(
    ("statement", "level", "found"),
    [
        ("DROP INDEX goqueue.jobs_pending_idx", "failed",
         "the index jobs_pending_idx is missing; expected CREATE INDEX"),
        (INVALID, "failed", "the index jobs_finished_type_idx is invalid"),
        ("DROP INDEX goqueue.jobs_claim_idx; CREATE INDEX jobs_claim_idx ON goqueue.jobs (queue)", "failed",
         "the index jobs_claim_idx is CREATE INDEX jobs_claim_idx ON goqueue.jobs USING btree (queue); expected C"),
        ("ALTER TABLE goqueue.job_failures DROP CONSTRAINT job_failures_pkey", "failed",
         "the constraint job_failures.job_failures_pkey is missing; expected PRIMARY KEY (job_id, lease_token)"),
        ("ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_queue_length, ADD CONSTRAINT jobs_queue_length CHECK (TRUE)",
         "failed", "the constraint jobs.jobs_queue_length is CHECK (true); expected CHECK"),
        (UNVALIDATED,
         "warning", "the constraint jobs.jobs_queue_length is not validated"),
        ("ALTER TABLE goqueue.jobs DISABLE TRIGGER jobs_notify_ready", "warning",
         "the trigger jobs.jobs_notify_ready is disabled"),
        ("DROP TRIGGER jobs_notify_ready ON goqueue.jobs", "warning", "the trigger jobs.jobs_notify_ready is missing;"),
        ("ALTER TABLE goqueue.jobs ALTER COLUMN max_attempts SET DEFAULT 3", "warning",
         "the default jobs.max_attempts is 3; expected 25"),
        ("ALTER TABLE goqueue.jobs SET (fillfactor = 70)", "note", "the setting jobs.fillfactor is 70; expected 90"),
        ("ALTER TABLE goqueue.job_failures SET UNLOGGED", "failed",
         "the table job_failures is unlogged table; expected table"),
    ],
)  # fmt: skip
def test_drift_is_reported_and_the_advice_repairs_it(
    goqueue_connection: Connection, statement: str, level: str, found: str
) -> None:
    goqueue_connection.execute(statement.encode())
    said = finding(goqueue_connection, "schema")
    assert said.found.startswith(found)
    assert said.level == level
    assert said.why
    for step in said.do.split("; "):  # CONCURRENTLY needs its own transaction
        goqueue_connection.execute(step.encode())
    assert check(goqueue_connection, "schema").level == Level.OK


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("ALTER TABLE goqueue.job_failures ALTER COLUMN attempt TYPE bigint",
         "the column job_failures.attempt is bigint NOT NULL; expected integer NOT NULL"),
        ("ALTER TABLE goqueue.jobs ALTER COLUMN queue DROP NOT NULL",
         "the column jobs.queue is text; expected text NOT NULL"),
        ("ALTER TABLE goqueue.job_failures DROP COLUMN worker_id", "the column job_failures.worker_id is missing;"),
        ("ALTER TYPE goqueue.job_status ADD VALUE 'paused'", "the type job_status is pending, running, comp"),
    ],
)  # fmt: skip
def test_drift_that_needs_a_person_is_reported(goqueue_connection: Connection, statement: str, found: str) -> None:
    goqueue_connection.execute(statement.encode())
    said = finding(goqueue_connection, "schema")
    assert (said.level, said.found[: len(found)]) == (Level.FAILED, found)
    assert said.do.startswith(f"compare it with its definition in {shipped_folder('migrations')} (search for ")


def follow(connection: Connection, advice: str) -> None:
    """Do what a finding advises: run its statements one by one (because of CONCURRENTLY), or a part of a migration."""
    for step in advice.partition("   (")[0].removeprefix("restore it from a backup; without its rows: ").split("; "):
        command, _, psql = step.partition(" | ")
        statement = step.encode()
        if psql:
            assert psql == "psql -v ON_ERROR_STOP=1"
            statement = subprocess.run(shlex.split(command), capture_output=True, check=True).stdout
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("DROP TABLE goqueue.job_failures", ["table job_failures"]),
        ("DROP VIEW goqueue.queue_metrics", ["view queue_metrics"]),
        ("DROP TABLE goqueue.jobs CASCADE",
         ["table jobs", "view pending_metrics", "view queue_status_metrics", "view queue_metrics"]),
        ("DROP FUNCTION goqueue.notify_ready_jobs() CASCADE", ["function notify_ready_jobs()",
                                                               "trigger jobs.jobs_notify_ready"]),
        ("DROP FUNCTION goqueue.uuid_v7() CASCADE", ["function uuid_v7()", "default jobs.id"]),
        ("ALTER TABLE goqueue.jobs DROP COLUMN lease_expires_at CASCADE",
         ["column jobs.lease_expires_at", "view queue_status_metrics", "view queue_metrics"]),
        ("ALTER TABLE goqueue.jobs DROP COLUMN idempotency_key", ["column jobs.idempotency_key"]),
        ("ALTER TABLE goqueue.jobs RENAME TO jobs_old", ["table jobs"]),
        ("DROP TYPE goqueue.job_status CASCADE",
         ["type job_status", "function finished_lanes(statuses goqueue.job_status[], queues text[], job_types text[])",
          "view pending_metrics", "view queue_status_metrics", "view queue_metrics"]),
    ],
)  # fmt: skip
def test_a_missing_object_is_reported_once_without_its_dependents(
    goqueue_connection: Connection, statement: str, missing: list[str]
) -> None:
    goqueue_connection.execute(statement.encode())
    done = check(goqueue_connection, "schema")
    found = [one.found.partition(";")[0] for one in done.findings if one.level != Level.NOTE]
    assert found == [f"the {name} is missing" for name in missing]
    for one in done.findings:
        if one.found.startswith(("the table ", "the view ")):
            assert one.level == Level.NOTE or run_command("roles.sql") in one.do
        # A view has no rows to restore from a backup.
        assert ("from a backup" in one.do) == one.found.startswith("the table ") or one.level == Level.NOTE


@pytest.mark.parametrize(
    "statement",
    [
        "DROP VIEW goqueue.queue_metrics",
        "DROP VIEW goqueue.queue_status_metrics CASCADE",
        "DROP VIEW goqueue.pending_metrics CASCADE",
        "DROP VIEW goqueue.queue_metrics; CREATE VIEW goqueue.queue_metrics AS SELECT 1 AS queue",
        "DROP FUNCTION goqueue.notify_ready_jobs() CASCADE",
        "DROP FUNCTION goqueue.uuid_v7() CASCADE",
        "CREATE OR REPLACE FUNCTION goqueue.uuid_v7() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'",
        "ALTER FUNCTION goqueue.notify_ready_jobs() SECURITY DEFINER",
        "ALTER TABLE goqueue.jobs ALTER COLUMN queue DROP DEFAULT, ALTER COLUMN id DROP DEFAULT",
        "ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_queue_length, DROP CONSTRAINT jobs_pkey",
        "ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_pkey, ADD CONSTRAINT jobs_pkey PRIMARY KEY (id, queue)",
        "CREATE OR REPLACE TRIGGER jobs_notify_ready AFTER INSERT ON goqueue.jobs "  # noqa: ISC004
        "FOR EACH ROW EXECUTE FUNCTION goqueue.notify_ready_jobs()",
        "ALTER INDEX goqueue.jobs_claim_idx RENAME TO mine",
        "DROP INDEX goqueue.jobs_claim_idx, goqueue.jobs_idempotency_key_idx",
        "DROP TABLE goqueue.job_failures",
        "DROP TRIGGER jobs_notify_ready ON goqueue.jobs",
    ],
)
def test_the_advice_recreates_every_kind_of_object(goqueue_connection: Connection, statement: str) -> None:
    goqueue_connection.execute(statement.encode())
    assert check(goqueue_connection, "schema").level in (Level.WARNING, Level.FAILED)
    for _ in range(3):
        for one in check(goqueue_connection, "schema").findings:
            if one.level != Level.NOTE:
                assert one.do, one.found
                follow(goqueue_connection, one.do)
                break
    done = check(goqueue_connection, "schema")
    assert [one.found for one in done.findings if one.level != Level.NOTE] == []


def test_an_index_of_another_shape_is_used_until_the_right_one_is_built(goqueue_connection: Connection) -> None:
    goqueue_connection.execute(
        "DROP INDEX goqueue.jobs_claim_idx; CREATE INDEX jobs_claim_idx ON goqueue.jobs (queue, priority)"
    )
    steps = finding(goqueue_connection, "schema").do.split("; ")
    assert [step.partition(" ON ")[0] for step in steps] == [
        "CREATE INDEX CONCURRENTLY jobs_claim_idx_new",
        "BEGIN",
        "ALTER INDEX goqueue.jobs_claim_idx RENAME TO jobs_claim_idx_old",
        "ALTER INDEX goqueue.jobs_claim_idx_new RENAME TO jobs_claim_idx",
        "COMMIT",
        "DROP INDEX CONCURRENTLY goqueue.jobs_claim_idx_old;",
    ]


def test_without_the_claim_index_the_cost_of_a_claim_is_reported(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP INDEX goqueue.jobs_claim_idx")
    found = finding(goqueue_connection, "schema")
    assert found.level == Level.FAILED
    assert found.why.startswith("every claim reads the whole table")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER INDEX goqueue.jobs_claim_idx SET (fillfactor = 70)",
        "ALTER INDEX goqueue.jobs_pkey SET (fillfactor = 60, deduplicate_items = off)",
        "DROP INDEX goqueue.jobs_claim_idx; CREATE INDEX jobs_claim_idx ON goqueue.jobs "  # noqa: ISC004
        "(queue, priority, scheduled_at, id) WITH (fillfactor = 50) WHERE status = 'pending'",
        "REINDEX INDEX CONCURRENTLY goqueue.jobs_claim_idx",
        "REINDEX TABLE CONCURRENTLY goqueue.jobs",
        "ALTER TABLE goqueue.jobs SET (autovacuum_vacuum_threshold = 500, toast.autovacuum_enabled = on)",
        "ALTER TABLE goqueue.job_failures SET (fillfactor = 80, parallel_workers = 2)",
        "ALTER TABLE goqueue.jobs ALTER COLUMN queue SET STATISTICS 1000, ALTER COLUMN payload SET STORAGE EXTERNAL",
        "ALTER TABLE goqueue.jobs ALTER COLUMN queue SET (n_distinct = 50)",
        "CREATE STATISTICS goqueue.by_queue ON queue, job_type FROM goqueue.jobs",
        "COMMENT ON TABLE goqueue.jobs IS 'mine'; COMMENT ON INDEX goqueue.jobs_claim_idx IS 'hot'",
        "CLUSTER goqueue.jobs USING jobs_pkey",
        "ALTER TABLE goqueue.jobs REPLICA IDENTITY FULL",
        "CREATE PUBLICATION mine FOR TABLE goqueue.jobs",
        "ALTER VIEW goqueue.queue_metrics SET (security_barrier = on)",
    ],
)
def test_a_setting_that_a_dba_has_tuned_is_no_fault(goqueue_connection: Connection, statement: str) -> None:
    goqueue_connection.execute(statement.encode())
    done = check(goqueue_connection, "schema")
    assert done.level in (Level.OK, Level.NOTE), done.findings
    assert all(one.found.startswith("the setting ") for one in done.findings)


def test_another_tablespace_or_owner_is_no_fault(poor: Connection, poor_server: str, tmp_path: Path) -> None:
    folder = Path(poor.execute("SHOW data_directory").fetchall()[0][0])
    place = folder.parent / f"tablespace_{uuid4().hex}"
    place.mkdir()
    shutil.chown(place, folder.owner(), folder.group())
    poor.execute(f"CREATE TABLESPACE elsewhere LOCATION '{place}'".encode())
    poor.execute("CREATE ROLE keeper")
    try:
        poor.execute("ALTER INDEX goqueue.jobs_claim_idx SET TABLESPACE elsewhere")
        poor.execute("ALTER TABLE goqueue.job_failures SET TABLESPACE elsewhere")
        poor.execute("ALTER TABLE goqueue.job_failures OWNER TO keeper")
        assert check(poor, "schema").findings == ()
    finally:
        poor.execute("ALTER INDEX goqueue.jobs_claim_idx SET TABLESPACE pg_default")
        poor.execute("ALTER TABLE goqueue.job_failures SET TABLESPACE pg_default")
        poor.execute("DROP TABLESPACE elsewhere; ")
        poor.execute("REASSIGN OWNED BY keeper TO CURRENT_USER; DROP ROLE keeper")


def test_an_invalid_index_of_an_interrupted_reindex_is_a_warning_with_advice(goqueue_connection: Connection) -> None:
    goqueue_connection.execute(
        "CREATE INDEX jobs_claim_idx_ccnew ON goqueue.jobs (queue); "
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'goqueue.jobs_claim_idx_ccnew'::regclass"
    )
    found = finding(goqueue_connection, "schema")
    assert found.level == Level.WARNING
    assert found.do == "DROP INDEX CONCURRENTLY goqueue.jobs_claim_idx_ccnew;"
    follow(goqueue_connection, found.do)
    assert check(goqueue_connection, "schema").level == Level.OK


def test_a_view_that_runs_with_its_readers_rights_is_a_warning(goqueue_connection: Connection) -> None:
    if goqueue_connection.info.server_version < 150_000:
        pytest.skip("security_invoker came with PostgreSQL 15")
    goqueue_connection.execute("ALTER VIEW goqueue.queue_metrics SET (security_invoker = on)")
    found = finding(goqueue_connection, "schema")
    assert found.level == Level.WARNING
    follow(goqueue_connection, found.do)
    assert check(goqueue_connection, "schema").level == Level.OK


def test_another_applications_schema_of_this_name_is_one_finding(goqueue_connection: Connection) -> None:
    goqueue_connection.execute(
        "ALTER TABLE goqueue.schema_version SET SCHEMA public;"
        "ALTER TABLE goqueue.migration_checksums SET SCHEMA public;"
        "ALTER TYPE goqueue.schema_version_type SET SCHEMA public;"
        "DROP SCHEMA goqueue CASCADE; CREATE SCHEMA goqueue;"
        "ALTER TABLE public.schema_version SET SCHEMA goqueue;"
        "ALTER TABLE public.migration_checksums SET SCHEMA goqueue;"
        "CREATE TABLE goqueue.jobs (id bigint, queue text, kind text, args json)"
    )
    done = {one.name: one for one in run_checks(goqueue_connection)}
    [found] = done["schema"].findings
    assert found.found == (
        f"the schema goqueue in the database {goqueue_connection.info.dbname} differs from that of the migrations: "
        "jobs has 2 of its 21 columns; job_failures is missing"
    )
    assert "goqueue config" in found.do
    assert len(done["grants"].findings) == 1


def test_another_applications_migrations_in_a_schema_of_this_name_are_one_finding(
    goqueue_connection: Connection,
) -> None:
    goqueue_connection.execute(
        "DROP TABLE goqueue.jobs, goqueue.job_failures, goqueue.migration_checksums CASCADE;"
        "CREATE TABLE goqueue.users ()"
    )
    done = list(run_checks(goqueue_connection))
    assert [one.name for one in done] == ["server", "settings", "migrations"]
    [found] = done[-1].findings
    assert found.found.endswith(" migrations, but has no table goqueue.jobs")
    assert not found.do.startswith("goqueue migrate")
    # If all migrations were undone, the advice is to migrate.
    goqueue_connection.execute("DELETE FROM goqueue.schema_version")
    done = list(run_checks(goqueue_connection))
    assert [one.name for one in done] == ["server", "settings", "migrations"]
    assert done[-1].findings[0].do.startswith("goqueue migrate")


def test_tables_without_recorded_migrations_are_not_reported_as_missing(
    goqueue_connection: Connection,
) -> None:
    goqueue_connection.execute("DROP TABLE goqueue.schema_version")
    [found] = list(run_checks(goqueue_connection))[-1].findings
    assert found.found.endswith(" has goqueue.jobs, but not goqueue.schema_version")


def test_the_advice_for_a_newer_releases_schema_is_not_to_downgrade(goqueue_connection: Connection) -> None:
    goqueue_connection.execute(
        "INSERT INTO goqueue.schema_version SELECT (jsonb_populate_record(v, '{\"version\": 999}')).* "
        "FROM goqueue.schema_version AS v WHERE version = 1"
    )
    goqueue_connection.execute(
        "ALTER TABLE goqueue.jobs ADD COLUMN tenant text; DROP TRIGGER jobs_notify_ready ON goqueue.jobs"
    )
    done = {one.name: one for one in run_checks(goqueue_connection)}
    assert (done["schema"].level, done["schema"].summary) == (
        Level.SKIPPED, "not compared: a newer release migrated the database"
    )  # fmt: skip
    assert done["migrations"].level == Level.WARNING
    assert done["grants"].level == Level.OK


def test_definitions_are_compared_with_any_defaults_of_the_database(
    goqueue_database: str, goqueue_connection: Connection
) -> None:
    for setting in ("quote_all_identifiers = on", "search_path = goqueue", "DateStyle = German"):
        goqueue_connection.execute(f'ALTER DATABASE "{goqueue_connection.info.dbname}" SET {setting}'.encode())
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        assert check(connection, "schema").findings == ()


def test_many_reasons_why_statements_fail_are_one_finding(goqueue_connection: Connection) -> None:
    goqueue_connection.execute(
        "ALTER TABLE goqueue.jobs DROP COLUMN lease_token CASCADE, DROP COLUMN lease_expires_at CASCADE"
    )
    found = finding(goqueue_connection, "grants")
    assert re.fullmatch(r"\d+ statements can't be run, for \d reasons", found.found)
    assert found.do == "fix the problems that the checks schema and queries find"


def test_statements_that_fail_alike_are_one_finding_with_what_to_do(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP TABLE goqueue.job_failures")
    found = finding(goqueue_connection, "grants")
    assert found.found == (
        "delete_failures, prune_jobs, fail_jobs, rescue_jobs, list_failures can't be run: "
        'relation "goqueue.job_failures" does not exist'
    )
    assert found.do == "fix the problems that the checks schema and queries find"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX by_worker ON goqueue.jobs (locked_by)",
        "ALTER TABLE goqueue.jobs ADD COLUMN tenant text",
        "CREATE TABLE goqueue.mine ()",
        "CREATE POLICY own ON goqueue.jobs USING (queue = current_user)",
        "CREATE FUNCTION goqueue.mine() RETURNS int LANGUAGE sql RETURN 1",
    ],
)
def test_an_object_that_a_dba_has_added_is_a_note(goqueue_connection: Connection, statement: str) -> None:
    goqueue_connection.execute(statement.encode())
    said = finding(goqueue_connection, "schema")
    assert said.level == Level.NOTE
    assert "is not goqueue's" in said.found


def test_every_kind_of_object_is_in_the_snapshot() -> None:
    kinds = {"column", "constraint", "default", "function", "index", "setting", "table", "trigger", "type"}
    assert {thing.kind for thing in expected_schema()} == kinds


# --- the queries and the role ---------------------------------------------------------------------------------------


def test_the_statements_of_a_folder_are_proved(goqueue_connection: Connection, tmp_path: Path) -> None:
    text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
    folders = {}
    for name, given in (
        ("same", text), ("broken", ""),
        ("slow", text.replace("WHERE j.id = :id::uuid;", "WHERE j.id::text = :id::uuid::text;")),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "jobs.sql").write_text(given)
        folders[name] = check(goqueue_connection, "queries", sql_dir=str(tmp_path / name))
    assert {name: done.level for name, done in folders.items()} == {"same": "ok", "slow": "failed", "broken": "failed"}
    assert folders["slow"].summary == f"{tmp_path}/slow: changed: get_job"
    assert "jobs.sql, query create_job: it is missing" in str(folders["broken"].findings)


JOBS_SQL = (shipped_folder("sql") / "jobs.sql").read_bytes()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (JOBS_SQL.replace(b"get_job(id)", b"get_jobb(id)"), "query get_job: it is missing"),
        (b"\xff", "can't be loaded: 'utf-8' codec"),
        (None, "does not exist"),
    ],
    ids=["renamed", "not UTF-8", "not there"],
)
def test_a_folder_that_cannot_be_loaded_is_not_reported_as_unchanged(
    goqueue_connection: Connection, tmp_path: Path, written: bytes | None, said: str
) -> None:
    folder = tmp_path / "own"
    if written is not None:
        folder.mkdir()
        (folder / "jobs.sql").write_bytes(written)
    done = check(goqueue_connection, "queries", sql_dir=str(folder))
    assert (done.level, done.summary) == (Level.FAILED, f"{folder}: can't be used")
    assert any(said in found.found for found in done.findings)
    assert check(goqueue_connection, "plans", sql_dir=str(folder)).level == Level.OK


@pytest.fixture
def role(goqueue_connection: Connection) -> Iterator[Callable[..., Connection]]:
    """Yield the connection as a new role with these grants."""
    name = sql.Identifier(f"role_{uuid4().hex}")
    goqueue_connection.execute(sql.SQL("CREATE ROLE {}").format(name))

    def become(*grants: str) -> Connection:
        for grant in grants:
            goqueue_connection.execute(sql.SQL("GRANT " + grant + " TO {}").format(name))  # type: ignore[arg-type]
        goqueue_connection.execute(sql.SQL("SET ROLE {}").format(name))
        return goqueue_connection

    yield become
    goqueue_connection.execute("RESET ROLE")
    goqueue_connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
    goqueue_connection.execute(sql.SQL("DROP ROLE {}").format(name))


SCHEMA = "USAGE ON SCHEMA goqueue"


def test_a_role_that_only_reads_is_a_note(role: Callable[..., Connection]) -> None:
    connection = role(SCHEMA, "SELECT ON ALL TABLES IN SCHEMA goqueue")
    done = {one.name: one for one in run_checks(connection)}
    assert {one.level for one in done.values()} <= {Level.OK, Level.NOTE, Level.WARNING}
    [found] = done["grants"].findings
    assert found.level == Level.NOTE
    assert "claim_jobs" in found.found
    assert "get_job," not in found.found
    assert "permission denied for table jobs" in found.why
    assert [
        one.found.endswith("can't see the age of other roles' transactions") for one in done["horizon"].findings
    ] == [True]


def test_the_advised_right_shows_the_sessions_of_others(role: Callable[..., Connection]) -> None:
    connection = role(SCHEMA, "SELECT ON ALL TABLES IN SCHEMA goqueue")
    do = finding(connection, "horizon").do
    assert do.startswith("GRANT pg_read_all_stats TO ")
    connection.execute("RESET ROLE")
    connection.execute(do.encode())
    assert check(role(), "horizon").findings == ()


def test_a_worker_can_run_everything_with_the_advised_rights(role: Callable[..., Connection]) -> None:
    connection = role(SCHEMA, "SELECT ON ALL TABLES IN SCHEMA goqueue")
    do = finding(connection, "grants").do
    connection.execute("RESET ROLE")
    statement, _, remark = do.partition(";")
    assert run_command("roles.sql") in remark
    connection.execute(statement.encode())
    assert check(role(), "grants").level == Level.OK


def test_a_role_without_the_schema_gets_one_finding(role: Callable[..., Connection]) -> None:
    done = list(run_checks(role()))
    assert [one.name for one in done] == ["server", "settings", "grants"]
    assert done[-1].level == Level.FAILED
    assert done[-1].findings[0].do.startswith('GRANT USAGE ON SCHEMA goqueue TO "role_')


def test_a_check_that_the_role_has_no_right_to_run_is_skipped_with_the_reason(role: Callable[..., Connection]) -> None:
    done = {one.name: one for one in run_checks(role(SCHEMA))}
    for name in ("migrations", "claim index"):
        assert done[name].level == Level.SKIPPED
        assert done[name].summary.startswith("can't be checked: permission denied for table ")
    assert done["grants"].level == Level.FAILED
    assert done["schema"].level == Level.OK


def test_a_statement_that_does_not_fit_the_schema_is_reported(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.job_failures DROP COLUMN worker_id")
    found = [one.found for one in check(goqueue_connection, "grants").findings]
    assert "list_failures can't be run: column f.worker_id does not exist" in found


# --- plans and vacuum -----------------------------------------------------------------------------------------------


def test_no_statement_scans_the_whole_table_before_its_first_vacuum(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    # Without a visibility map an index costs more. The planner then assumes that any row of this queue and type is
    # near.
    goqueue_store.create_jobs(NewJob(job_type=f"t{n % 4}", queue=f"q{n % 7}", payload="x" * 200) for n in range(30_000))
    goqueue_connection.execute("ANALYZE goqueue.jobs")
    done = check(goqueue_connection, "plans")
    assert (done.level, done.findings) == (Level.OK, ())


def test_a_sequential_scan_of_a_large_table_is_a_warning(
    goqueue_connection: Connection, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(3000))
    goqueue_connection.execute("ANALYZE goqueue.jobs")
    assert check(goqueue_connection, "plans").level == Level.OK  # the table is small, so any plan is fine
    monkeypatch.setattr(health, "_LARGE_PAGES", 10)
    goqueue_connection.execute("DROP INDEX goqueue.jobs_pending_idx, goqueue.jobs_running_idx, goqueue.jobs_claim_idx")
    goqueue_connection.execute("ALTER TABLE goqueue.jobs DROP CONSTRAINT jobs_pkey")
    done = check(goqueue_connection, "plans")
    assert done.level == Level.WARNING
    assert any(found.found.startswith("get_job would read the whole table goqueue.jobs") for found in done.findings)


def test_dead_rows_and_missing_statistics_are_warnings(
    goqueue_connection: Connection, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
    assert finding(goqueue_connection, "autovacuum").found == "autovacuum is off for goqueue.jobs"
    monkeypatch.setattr(health, "_MANY_DEAD", 50)
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(100))
    goqueue_connection.execute("DELETE FROM goqueue.jobs")
    goqueue_connection.execute(
        "SELECT pg_stat_force_next_flush()"
        if goqueue_connection.info.server_version >= 150000
        else "SELECT pg_sleep(1)"
    )
    off, dead = check(goqueue_connection, "autovacuum").findings
    assert off.do == "ALTER TABLE goqueue.jobs RESET (autovacuum_enabled);"
    assert re.match(r"goqueue.jobs has 1\d\d dead rows and 0 live ones, by the statistics; never vacuumed", dead.found)
    goqueue_connection.execute(off.do.encode())
    goqueue_connection.execute(dead.do.encode())
    deadline = time.monotonic() + 60
    while check(goqueue_connection, "autovacuum").level != Level.OK:  # before 15, the statistics collector is slow
        assert time.monotonic() < deadline, "vacuum is not seen to have been there"
        time.sleep(0.1)
        goqueue_connection.execute("SELECT pg_stat_clear_snapshot()")


def test_a_transaction_left_open_is_found(goqueue_database: str, goqueue_connection: Connection) -> None:
    with psycopg.connect(goqueue_database, application_name="forgotten") as left:
        left.execute("SELECT 1 FROM goqueue.jobs")
        left.execute("SELECT pg_current_xact_id()")
        assert check(goqueue_connection, "horizon").level == Level.OK  # not long enough yet
        found = finding(goqueue_connection, "horizon", old_transaction=timedelta(0))
        pid = left.info.backend_pid
        assert found.level == Level.WARNING
        assert f"the transaction {pid} (" in found.found
        assert "forgotten, idle in transaction) has been open since 20" in found.found
        assert found.do == f"SELECT pg_terminate_backend({pid});   (its process)"
        left.rollback()
        assert check(goqueue_connection, "horizon", old_transaction=timedelta(0)).level == Level.OK


def test_an_empty_claim_index_that_was_large_is_a_warning(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
    goqueue_connection.execute(
        "INSERT INTO goqueue.jobs (job_type, queue, id) "
        "SELECT 't', repeat('q', 240) || n, gen_random_uuid() FROM generate_series(1, 26000) AS n"
    )
    assert check(goqueue_connection, "claim index").level == Level.OK
    goqueue_connection.execute("UPDATE goqueue.jobs SET status = 'dead', completed_at = now()")
    found = finding(goqueue_connection, "claim index")
    assert found.level == Level.WARNING
    assert re.match(r"jobs_claim_idx takes \d+\.\d MB; an estimated 8 kB would be enough", found.found)
    vacuum, reindex = found.do.split("   and if that is not enough: ")
    goqueue_connection.execute(vacuum.encode())
    goqueue_connection.execute(reindex.encode())
    assert check(goqueue_connection, "claim index").level == Level.OK


def test_without_statistics_the_size_needed_by_the_claim_index_is_not_guessed(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(2000))
    assert re.fullmatch(r"\d+ kB for 2,000 waiting jobs", check(goqueue_connection, "claim index").summary)
    goqueue_connection.execute(
        "INSERT INTO goqueue.jobs (job_type, queue, id) "
        "SELECT 't', repeat('q', 240) || n, gen_random_uuid() FROM generate_series(1, 26000) AS n"
    )
    goqueue_connection.execute("DELETE FROM goqueue.jobs WHERE queue <> 'default'")
    done = check(goqueue_connection, "claim index")
    assert (done.level, "need" in done.summary) == (Level.OK, False)
    goqueue_connection.execute("ANALYZE goqueue.jobs")
    assert check(goqueue_connection, "claim index").level == Level.WARNING
    assert ", which need about " in check(goqueue_connection, "claim index").summary


def test_pgstattuple_shows_how_full_the_claim_index_is(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    try:
        goqueue_connection.execute("CREATE SCHEMA extra; CREATE EXTENSION pgstattuple SCHEMA extra")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("the server has no pgstattuple")
    assert "pgstattuple" not in check(goqueue_connection, "claim index").summary  # an empty index has no density
    goqueue_store.create_job(NewJob(job_type="t"))
    assert re.search(r"pages \d+% full \(pgstattuple", check(goqueue_connection, "claim index").summary)


# --- a misconfigured server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poor_server() -> Iterator[str]:
    """The URL of a migrated database on a server with bad settings, which the shared server can't have."""
    settings = {"max_prepared_transactions": "2", "autovacuum": "off", "synchronous_commit": "off"}
    with EmbeddedServer(settings=settings, durable=False) as server:
        migrate(server.url())
        yield server.url()


@pytest.fixture
def poor(poor_server: str) -> Iterator[Connection]:
    with connect(DatabaseConfig(url=poor_server)) as connection:
        yield connection


def test_unsafe_settings_are_warnings(poor: Connection) -> None:
    found = {one.found: one for one in check(poor, "settings").findings}
    assert found.keys() == {"fsync is off", "full_page_writes is off", "synchronous_commit is off"}
    assert {one.level for one in found.values()} == {Level.WARNING}
    assert found["fsync is off"].do == "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();"


def test_each_thing_that_a_crash_can_lose_is_one_line(poor: Connection) -> None:
    done = check(poor, "durability")
    assert (done.level, done.summary) == (Level.WARNING, "an acknowledged job can be lost in a crash")
    assert [one.found for one in done.findings] == [
        "fsync is off: a crash of the host can lose any job",
        "full_page_writes is off: a crash of the host can destroy pages, with all jobs on them",
        f"synchronous_commit is off for this connection: a crash of the server {_LAST}",
    ]
    # As the connection sees it: the URL's options count.
    poor.execute("SET synchronous_commit = on")
    assert "synchronous_commit" not in str(check(poor, "durability").findings)


def test_an_unlogged_table_is_a_warning_and_the_advice_repairs_it(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs SET UNLOGGED")
    [found] = [one for one in check(goqueue_connection, "durability").findings if "unlogged" in one.found]
    assert (found.level, found.found) == (
        Level.WARNING, "goqueue.jobs is unlogged: a crash of the server empties it"
    )  # fmt: skip
    goqueue_connection.execute(found.do.encode())
    assert "unlogged" not in str(check(goqueue_connection, "durability").findings)


def test_the_check_of_a_durable_server_names_what_its_jobs_survive() -> None:
    with EmbeddedServer() as server:
        migrate(server.url())
        with connect(DatabaseConfig(url=server.url())) as connection:
            done = check(connection, "durability")
    survives = "an acknowledged job survives a crash of the server, but not the loss of its disk"
    assert done == Check("durability", Level.OK, survives)


def test_the_advice_for_a_databases_setting_changes_the_database(
    goqueue_database: str, goqueue_connection: Connection
) -> None:
    name = goqueue_connection.info.dbname
    goqueue_connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        found = {one.found: one for one in check(connection, "settings").findings}[
            "default_transaction_read_only is on"
        ]
        statement, _, remark = found.do.partition(";")
        assert (statement, remark.strip()) == (
            f"ALTER DATABASE {name} SET default_transaction_read_only = off", "(for new sessions)"
        )  # fmt: skip
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(statement.encode())
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        assert "default_transaction_read_only" not in str(check(connection, "settings").findings)


def test_a_database_that_accepts_no_jobs_is_a_failure(
    goqueue_database: str, goqueue_connection: Connection, run: "Run"
) -> None:
    goqueue_connection.execute(
        f'ALTER DATABASE "{goqueue_connection.info.dbname}" SET default_transaction_read_only = on'
    )
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        done = check(connection, "settings")
        found = {one.found: one.level for one in done.findings}
    assert done.level == found["default_transaction_read_only is on"] == Level.FAILED
    assert run("check").code == 3


def test_a_standby_is_a_failure(goqueue_connection: Connection) -> None:
    # test_failover.py checks a real one.
    primary = health._State(*admin_queries().server_state(goqueue_connection))
    assert health._server(primary).level == Level.OK
    [found] = health._server(primary._replace(is_standby=True)).findings
    assert (found.level, found.found) == (Level.FAILED, "the server is a standby")
    assert "target_session_attrs=read-write" in found.do


def test_autovacuum_turned_off_is_a_warning(poor: Connection) -> None:
    assert finding(poor, "autovacuum").found == "autovacuum is off"


def test_a_prepared_transaction_is_found_and_the_advice_ends_it(poor: Connection) -> None:
    poor.execute("BEGIN; CREATE TABLE public.t (); PREPARE TRANSACTION 'it''s forgotten'")
    found = finding(poor, "horizon", old_transaction=timedelta(0))
    assert found.level == Level.WARNING
    assert "the prepared transaction it's forgotten (postgres, prepared) has been open since" in found.found
    poor.execute(found.do.partition(";")[0].encode())
    assert check(poor, "horizon", old_transaction=timedelta(0)).level == Level.OK


def test_another_encoding_is_a_failure(poor: Connection, poor_server: str) -> None:
    poor.execute(
        "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    with connect(DatabaseConfig(url=make_conninfo(poor_server, dbname="ascii"))) as connection:
        found = finding(connection, "server")
    assert (found.level, found.found) == (Level.FAILED, "the database ascii is encoded in SQL_ASCII")


@pytest.mark.parametrize(
    ("setting", "level"),
    [
        ("default_transaction_isolation = 'serializable'", "warning"),
        ("default_transaction_isolation = 'repeatable read'", "warning"),
        ("session_replication_role = replica", "warning"),
        ("search_path = app, pg_catalog", "warning"),
        ("client_encoding = 'LATIN1'", "warning"),
        ("statement_timeout = '999ms'", "warning"),
        ("lock_timeout = 10", "warning"),
        ("idle_in_transaction_session_timeout = '999ms'", "warning"),
        ("enable_indexscan = off", "warning"),
        ("default_transaction_read_only = true", "failed"),
        ("synchronous_commit = off", "warning"),
    ],
)
@pytest.mark.parametrize("whose", ["ALTER DATABASE {database}", "ALTER ROLE {role} IN DATABASE {database}"])
def test_a_default_that_changes_a_callers_connection_is_reported_in_any_session(
    goqueue_database: str, goqueue_connection: Connection, setting: str, level: str, whose: str
) -> None:
    info = goqueue_connection.info
    owner = whose.format(database=info.dbname, role=info.user)
    goqueue_connection.execute(f"{owner} SET {setting}".encode())
    name = setting.partition(" =")[0]
    for options in ("", "-c default_transaction_isolation=read\\ committed -c TimeZone=UTC"):
        with psycopg.connect(goqueue_database, autocommit=True, options=options) as connection:
            [found] = [one for one in check(connection, "settings").findings if one.found.startswith(f"{name} is ")]
        assert found.level == level
        assert found.do.startswith(f"{owner} ")
    goqueue_connection.execute("SET default_transaction_read_only = off")
    goqueue_connection.execute(found.do.partition(";")[0].encode())
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        assert name not in str(
            [one for one in check(connection, "settings").findings if one.do.startswith("ALTER DATA")]
        )


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'read committed'", "default_transaction_deferrable = on",
        "statement_timeout = '30s'", "statement_timeout = 0", "lock_timeout = '5s'", "search_path = app, public",
        "search_path = pg_catalog, app", "TimeZone = 'Asia/Kathmandu'", "DateStyle = German",
        "IntervalStyle = iso_8601", "bytea_output = escape", "extra_float_digits = -10",
        "standard_conforming_strings = off", "client_encoding = 'utf-8'", "row_security = off", "work_mem = '64MB'",
    ],
)  # fmt: skip
def test_a_default_that_does_not_affect_goqueue_is_not_reported(
    goqueue_database: str, goqueue_connection: Connection, setting: str
) -> None:
    goqueue_connection.execute(f"ALTER DATABASE {goqueue_connection.info.dbname} SET {setting}".encode())
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        assert [one for one in check(connection, "settings").findings if "ALTER DATABASE" in one.do] == []


def test_the_command_checks_the_servers_defaults_and_those_of_its_session(
    run: "Run", goqueue_connection: Connection
) -> None:
    name = goqueue_connection.info.dbname
    goqueue_connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'".encode())
    result = run("check")
    assert result.code == 0
    assert "    warning: default_transaction_isolation is serializable\n" in result.out
    assert f"        do:  ALTER DATABASE {name} SET default_transaction_isolation = 'read committed';" in result.out


def test_the_advice_for_a_servers_default_changes_the_server(poor: Connection, poor_server: str) -> None:
    poor.execute("ALTER SYSTEM SET default_transaction_isolation = 'serializable'")
    poor.execute("SELECT pg_reload_conf()")
    try:
        deadline = time.monotonic() + 60
        while True:
            with psycopg.connect(poor_server, autocommit=True) as connection:
                found = {one.found: one for one in check(connection, "settings").findings}
            if "default_transaction_isolation is serializable" in found:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        advice = found["default_transaction_isolation is serializable"].do
        assert advice.startswith("ALTER SYSTEM SET default_transaction_isolation = 'read committed'; SELECT pg_reload_")
    finally:
        poor.execute("ALTER SYSTEM RESET default_transaction_isolation")
        poor.execute("SELECT pg_reload_conf()")


# --- listeners ------------------------------------------------------------------------------------------------------

KEY = 7453300657348765004


def test_a_leaked_lock_of_the_insert_trigger_is_found_and_the_advice_ends_it(
    goqueue_database: str, goqueue_connection: Connection
) -> None:
    assert f"({KEY})" in (shipped_folder("sql") / "server.sql").read_text("utf-8")
    leaking = psycopg.connect(goqueue_database, autocommit=True, application_name="web")
    leaking.execute("SELECT pg_advisory_lock(%s::bigint)", [KEY])
    found = finding(goqueue_connection, "listeners")
    pid = leaking.info.backend_pid
    assert found.level == Level.FAILED
    assert re.match(
        rf"the session {pid} \(\w+, web, idle\) holds the lock that .*; 0 sessions wait for it", found.found
    )
    assert found.do.startswith(f"SELECT pg_terminate_backend({pid});")
    goqueue_connection.execute(found.do.partition(";")[0].encode())
    deadline = time.monotonic() + 60
    while check(goqueue_connection, "listeners").level != Level.OK:
        assert time.monotonic() < deadline
    with pytest.raises(psycopg.OperationalError):
        leaking.execute("SELECT 1")
    leaking.close()


def test_a_leaked_lock_is_found_without_the_right_to_see_others_sessions(
    goqueue_database: str, role: Callable[..., Connection]
) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as leaking:
        leaking.execute("SELECT pg_advisory_lock(%s::bigint)", [KEY])
        found = finding(role(SCHEMA, "SELECT ON ALL TABLES IN SCHEMA goqueue"), "listeners")
        assert f"the session {leaking.info.backend_pid} (" in found.found


def test_listeners_and_inserts_are_not_reported_as_leaked_locks(
    goqueue_database: str, goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    with goqueue_store.listen("q"):
        assert check(goqueue_connection, "listeners").level == Level.OK
    ended = threading.Event()

    def create() -> None:
        with PostgresStorage.open(goqueue_database) as store:
            while not ended.is_set():
                store.create_job(NewJob(job_type="t"))

    with ThreadPoolExecutor(2) as threads:
        creators = [threads.submit(create) for _ in range(2)]
        try:
            assert check(goqueue_connection, "listeners").level == Level.OK
        finally:
            ended.set()
        for creator in creators:
            creator.result()


# --- the command ----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(
    goqueue_database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run `goqueue` as in the shell, in an empty folder, with the test's database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", goqueue_database)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["goqueue", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_the_command_prints_one_line_per_check_and_exits_with_0(run: Run) -> None:
    result = run("check")
    assert (result.code, result.err) == (0, "")
    lines = [line for line in result.out.splitlines() if not line.startswith(" ")]
    assert [re.split(r"\s{1,}", line, maxsplit=1)[1][:12].strip() for line in lines[:-1]] == NAMES
    assert "ok" in lines[-1]
    assert "\x1b" not in result.out


@pytest.mark.parametrize("value", ["on", "off"])
def test_durability_is_checked_on_the_configured_connection(
    run: Run, goqueue_database: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    url = make_conninfo(goqueue_database, options=f"-c synchronous_commit={value}")
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", url)
    said = f"    warning: synchronous_commit is off for this connection: a crash of the server {_LAST}\n"
    assert (said in run("check").out) == (value == "off")


def test_a_failure_has_status_3_and_is_explained(run: Run, goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP INDEX goqueue.jobs_finished_type_idx")
    result = run("check")
    assert (result.code, result.err) == (3, "goqueue: failed: schema\n")
    assert "    failed: the index jobs_finished_type_idx is missing; expected CREATE INDEX" in result.out
    assert "        why: the statements that need it read the whole table" in result.out
    assert "        do:  CREATE INDEX CONCURRENTLY jobs_finished_type_idx ON goqueue.jobs" in result.out


def test_strict_counts_warnings_as_failures(run: Run, goqueue_connection: Connection) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs DISABLE TRIGGER jobs_notify_ready")
    assert run("check").code == 0
    strict = run("check", "--strict")
    assert strict.code == 3
    assert "schema" in strict.err


def test_programs_get_json(run: Run, goqueue_connection: Connection) -> None:
    goqueue_connection.execute("DROP INDEX goqueue.jobs_finished_type_idx")
    result = run("check", "--json")
    document = json.loads(result.out)
    assert (result.code, document["ok"]) == (3, False)
    assert [one["name"] for one in document["checks"]] == NAMES
    [found] = document["checks"][3]["findings"]
    assert found.keys() == {"level", "found", "why", "do"}


@pytest.mark.parametrize(
    "wrong", [{"password": "hunter2", "user": "nobody_of_this_name"}, {"dbname": "no_such_database"}]
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_rejected_connection_has_the_status_of_every_command(
    run: Run, goqueue_database: str, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], options: list[str]
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", make_conninfo(goqueue_database, **wrong))
    result = run("check", *options)
    assert result.code == run("stats").code == 2
    assert result.err.startswith("goqueue: the connection was rejected: ")
    assert "hunter2" not in result.out + result.err
    if options:
        [server] = json.loads(result.out)["checks"]
        assert (server["name"], server["level"]) == ("server", "failed")
    else:
        assert result.out.startswith("failed  server")
        assert result.out.endswith("1 failed\n")


def test_an_unreachable_server_is_a_failed_check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", "postgresql://u:hunter2@localhost:1/db")
    result = run("check")
    assert result.code == 3
    assert result.out.startswith("failed  server")
    assert "the database can't be reached" in result.out
    assert "hunter2" not in result.out + result.err


def test_a_folder_can_be_exported_tuned_and_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = run("sql", "export", "mine", "jobs.sql")
    assert (exported.code, exported.out) == (0, "")
    assert "1 file written" in exported.err
    assert [file.name for file in Path("mine").iterdir()] == ["jobs.sql"]
    assert run("sql", "diff", "mine") == (0, "", "jobs.sql: as shipped\n")
    monkeypatch.setenv("GOQUEUE_DATABASE_SQL_DIR", "mine")
    assert f"queries     {Path('mine').resolve()}: all as shipped\n" in run("check").out

    file = Path("mine/jobs.sql")
    file.write_text(file.read_text("utf-8").replace("    j.job_type,", "    j.job_type AS foo,"))
    Path("mine").rename("wrong")  # A folder is read once per process.
    result = run("check", "--sql-dir", "wrong")
    Path("wrong").rename("mine")
    assert result.code == 3
    assert "failed: wrong/jobs.sql, query get_job: column 3 is 'foo text', expected 'job_type text'" in result.out
    difference = run("sql", "diff")
    assert difference.err == "jobs.sql: changed here\n"
    assert difference.out.startswith(f"--- shipped/jobs.sql\n+++ {file.resolve()}\n@@ ")
    assert "\n-    j.job_type,\n+    j.job_type AS foo,\n" in difference.out

    refused = run("sql", "export", "mine")
    assert refused.code == 2
    assert "mine/jobs.sql was changed" in refused.err
    assert [one.name for one in Path("mine").iterdir()] == ["jobs.sql"]
    assert run("sql", "export", "mine", "--force").code == 0
    assert run("sql", "diff").out == ""


def test_a_shipped_file_is_printed_by_its_name(run: Run) -> None:
    folder = shipped_folder("migrations")
    for name, file in (
        ("roles.sql", folder / "roles" / "roles.sql"),
        ("migrations/roles/drop_roles.sql", folder / "roles" / "drop_roles.sql"),
        ("V0001__create_jobs.sql", folder / "V0001__create_jobs.sql"),
        ("U0019__notify_at_lower_cost.sql", folder / "undo" / "U0019__notify_at_lower_cost.sql"),
        ("jobs.sql", shipped_folder("sql") / "jobs.sql"),
    ):
        assert run("sql", "print", name) == (0, file.read_text("utf-8"), "")
        printed = json.loads(run("sql", "print", name, "--json").out)
        assert printed == {"file": str(file), "sql": file.read_text("utf-8")}
    files = [file.name for where in ("sql", "migrations") for file in shipped_folder(where).rglob("*.sql")]
    assert len(files) == len(set(files))


def test_every_shipped_file_that_advice_names_can_be_printed(run: Run) -> None:
    root = shipped_folder("migrations").parent
    texts = [
        file.read_text("utf-8")
        for file in (*root.glob("goqueue/**/*.py"), *documents(root), *root.glob("migrations/**/*.sql"))
    ]
    named = {name for text in texts for name in re.findall(r"(?:sql print |run_command\(\")([\w.]+\.sql)", text)}
    assert {"roles.sql", "drop_roles.sql", "record_checksums.sql"} <= named
    for name in named:
        assert run("sql", "print", name).code == 0, name
    # A path of a checkout is not there after an installation.
    assert [found for text in texts for found in re.findall(r"psql [^\n|]*-f migrations/\S+", text)] == []


def test_programs_get_json_of_an_export_and_of_what_was_changed(run: Run) -> None:
    exported = json.loads(run("sql", "export", "own", "jobs.sql", "server.sql", "--json").out)
    assert exported == {"written": ["own/jobs.sql", "own/server.sql"]}
    file = Path("own/jobs.sql")
    file.write_text(file.read_text("utf-8") + "-- mine\n")
    result = run("sql", "diff", "own", "--json")
    assert (result.code, result.err) == (0, "")
    jobs, server = json.loads(result.out)["files"]
    assert server == {"file": "server.sql", "history": "as shipped", "diff": ""}
    assert (jobs["file"], jobs["history"]) == ("jobs.sql", "changed here")
    assert jobs["diff"] == run("sql", "diff", "own").out
    assert jobs["diff"].endswith("\n+-- mine\n")


def test_after_an_upgrade_the_diff_shows_who_changed_each_file(run: Run) -> None:
    run("sql", "export", "old", "jobs.sql", "stats.sql", "server.sql")
    for name, changed in (("jobs.sql", ""), ("stats.sql", "-- mine\n")):
        # As exported by an earlier release with a different file.
        file = Path("old") / name
        text = file.read_text("utf-8").partition("\n")[2].replace("-- ", "-- old: ", 1)
        old = hashlib.sha256(text.encode()).hexdigest()
        file.write_text(f"-- From goqueue 0.0.9, sha256 {old}. Keep this line.\n{text}{changed}")
    Path("old/server.sql").write_text(Path("old/server.sql").read_text("utf-8").partition("\n")[2])
    jobs, server, stats = run("sql", "diff", "old").err.splitlines()
    assert jobs.startswith(
        "jobs.sql: the shipped file has changed since goqueue 0.0.9, this one has not; `goqueue sql ex"
    )
    assert server == "server.sql: it does not name the release it was exported from"
    assert stats.startswith(
        "stats.sql: changed here, and the shipped file has changed since goqueue 0.0.9: apply your "
    )
    outdated = run("check", "--sql-dir", "old").out
    assert "warning: old/jobs.sql was exported from goqueue 0.0.9, and the shipped file has changed since" in outdated
    assert run("sql", "export", "old", "jobs.sql", "server.sql").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("sql", "export", "old", "job.sql"),
            "job.sql: there is no such SQL file; expected one of jobs.sql, leases.sql",
        ),
        (("sql", "diff"), "no folder of SQL files is configured"),
        (("sql", "diff", "nowhere"), "the folder of SQL files nowhere does not exist"),
        (("sql", "export", "/dev/null/x"), "can't be written"),
        (("sql", "print", "role.sql"), "did you mean roles.sql"),
        (("sql", "print", "zzz"), "expected one of C0015__rebuild_list_indexes.sql, "),
    ],
)
def test_contradictory_options_have_status_2(run: Run, arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert said in re.sub(r"[\s│]+", " ", result.err)
