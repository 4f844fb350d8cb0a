"""A folder's statements are compared with the shipped ones in effect: on a scratch database, and only there."""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from goqueue.files import APART, shipped_folder
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.postgres.store import PostgresStorage
from goqueue.pytest_plugin import DatabaseServer
from goqueue.workbench.behaviour import Proven, Shown, compare_behaviour
from goqueue.workbench.cases import CASES, Case, populate
from tests.commands import Commands
from tests.workers import until

Connection = psycopg.Connection[Any]

SHIPPED = shipped_folder("sql")
# Each with the reason why there is nothing to compare.
WITHOUT_CASES = dict.fromkeys(
    ("listen", "listen_cancelled"), "LISTEN returns no rows and changes none: a folder's must be the shipped statement"
) | {"estimate_dead_rows": "its result decides how fast claims are, not which jobs they take"}
STORES = sorted(name for name, one in load_statements().items() if one.file.name not in APART)

FENCE = "j.lease_token = l.token"
IS_RUNNING = re.compile(r"k\.status (= 'running'|IN \('running', 'completed'\))")
SKIPS = "FOR NO KEY UPDATE SKIP LOCKED"
LOCKS_IN_ORDER = "\n    ORDER BY j.id\n    FOR NO KEY UPDATE"
KEPT = "j.id <> ALL(:kept_ids::uuid[])"
FILTERS = {"statuses": "a status", "queues": "a queue", "job_types": "a job type", "worker_ids": "a worker"}
NEXT_TOKEN = "mod(j.lease_token, 4611686018427387903) + 1"
IS_FINISHED = "c.status_after IN ('completed', 'dead', 'cancelled')"
BY_ID = "WHERE j.id = :id::uuid"


class Broken(NamedTuple):
    """A query with a replacement, and the expected message about it."""

    query: str
    old: str | re.Pattern[str]
    new: str
    told: str

    def __str__(self) -> str:
        return f"{self.query}: {self.told}"


BROKEN = [
    Broken("claim_jobs", SKIPS, "FOR NO KEY UPDATE", "it returns: (it waits for the other session), expected []"),
    Broken("claim_jobs", f"        {SKIPS}\n", "", "it returns: (it waits for the other session)"),
    Broken("claim_jobs", SKIPS, "FOR UPDATE SKIP LOCKED", "it locks against foreign keys"),
    Broken("claim_jobs", SKIPS, "FOR NO KEY UPDATE NOWAIT", "could not obtain lock"),
    Broken("claim_jobs", "ORDER BY c.priority, c.scheduled_at, c.id", "ORDER BY c.id", '["urgent", "due 2", "twin 2"]'),
    Broken("claim_jobs", "ORDER BY c.priority, c.scheduled_at", "ORDER BY c.scheduled_at", "two queues: it returns: ["),
    Broken("claim_jobs", "ORDER BY l.priority, l.scheduled_at", "ORDER BY l.scheduled_at", "it returns"),
    Broken(
        "claim_jobs",
        "ORDER BY j.scheduled_at, j.id",
        "ORDER BY j.scheduled_at, j.id DESC",
        '["urgent", "due 2", "twin 1"], expected ["urgent", "due 2", "twin 2"]',
    ),
    Broken("claim_jobs", "LIMIT :job_limit::bigint", "LIMIT (:job_limit::bigint + 1)", "it returns"),
    Broken("claim_jobs", re.compile(r"\n    LIMIT :job_limit::bigint"), "", "it returns"),
    Broken("claim_jobs", NEXT_TOKEN, "j.lease_token", "lease_token): 0, expected 1"),
    Broken("claim_jobs", NEXT_TOKEN, "j.lease_token + 1", "the highest token: it returns: "),
    Broken("claim_jobs", "statement_timestamp()", "now()", "in a transaction that began before the jobs were made"),
    Broken("claim_jobs", re.compile(r"AND j.scheduled_at <= statement_timestamp\(\)"), "", "one that is not due"),
    Broken("get_job", "j.payload::text AS payload", "17 AS payload", "(it makes the caller fail: TypeError: "),
    Broken("complete_jobs", FENCE, "TRUE", "expected LeaseLostError(claimed twice)"),
    Broken("complete_jobs", IS_RUNNING, "TRUE", "while another session cancels the same jobs"),
    Broken("heartbeat_jobs", FENCE, "TRUE", "expected LeaseLostError(claimed twice)"),
    Broken("heartbeat_jobs", IS_RUNNING, "TRUE", "while another session cancels the same jobs"),
    Broken("heartbeat_jobs", "SET\n", "SET\n    started_at = statement_timestamp(),\n", "(held 1, started_at): +0 s"),
    Broken("heartbeat_jobs", "SET\n", "SET\n    created_by = 'me',\n", "(held 1, created_by): me"),
    Broken("fail_jobs", FENCE, "TRUE", "expected LeaseLostError(claimed twice)"),
    Broken("fail_jobs", IS_RUNNING, "TRUE", "while another session cancels the same jobs"),
    Broken("fail_jobs", "(1::double", "(2::double", "(held 1, scheduled_at): +2,000 s from now"),
    Broken("release_jobs", FENCE, "TRUE", "expected LeaseLostError(claimed twice)"),
    Broken("release_jobs", IS_RUNNING, "TRUE", "while another session cancels the same jobs"),
    Broken("fail_jobs", ":is_final::boolean", "(:is_final::boolean AND FALSE)", "bury_jobs with "),
    Broken(
        "release_jobs",
        "nullif(extract(EPOCH FROM :delay::interval), 0::numeric)",
        "extract(EPOCH FROM :delay::interval)",
        "scheduled_at",
    ),
    Broken("rescue_jobs", SKIPS, "FOR NO KEY UPDATE", "(it waits for the other session)"),
    Broken("rescue_jobs", " AND j.lease_expires_at <= statement_timestamp()", "", "it returns"),
    Broken("rescue_jobs", "statement_timestamp()", "now()", "in a transaction that began before the jobs were made"),
    Broken("prune_jobs", "FOR UPDATE SKIP LOCKED", "FOR UPDATE", "(it waits for the other session)"),
    Broken(
        "prune_jobs",
        re.compile(r"SELECT lane_job\.id.*?\n    \) AS lane_job", re.DOTALL),
        "SELECT k.id FROM (SELECT j.id FROM goqueue.jobs AS j "
        "WHERE j.status = ANY(:statuses::text[]::goqueue.job_status[])"
        " AND coalesce(j.completed_at, j.created_at) < statement_timestamp() - :older_than::interval"
        " AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))"
        " AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[])) AND j.id <> ALL(:kept_ids::uuid[])"
        " ORDER BY j.job_type, j.status, j.created_at, j.id FOR UPDATE SKIP LOCKED) AS k",
        "prune_jobs of pending and running jobs",
    ),
    Broken(
        "prune_jobs",
        "AND j.queue = ANY(ARRAY[l.queue])",
        "AND l.queue <> ''",
        "prune_jobs of two queues: it returns: [",
    ),
    Broken("prune_jobs", "j.completed_at < p.finished_before", "TRUE", "an hour ago and more: it returns: ["),
    Broken("prune_jobs", KEPT, f"(TRUE OR {KEPT})", "prune_jobs of all but two that are kept: it returns: ["),
    Broken(
        "prune_jobs",
        "LIMIT :job_limit::bigint",
        "LIMIT 1 + :job_limit::bigint",
        "by the method, of at most 1: it returns: ",
    ),
    Broken("prune_jobs", "f.job_id = ANY(ARRAY(SELECT d.id FROM deleted_job AS d))", "FALSE", "prune_jobs of all that"),
    Broken(
        "change_jobs", "AND l.attempts < l.max_attempts_after", "", "InvalidJobError(a pending job has an attempt left"
    ),
    Broken("change_jobs", "l.status IN ('running', 'dead', 'cancelled')", "TRUE", "it returns: 10, expected 9"),
    Broken(
        "change_jobs", "queue = coalesce(:queue::text, j.queue)", "queue = :queue::text", "and priority: it returns: "
    ),
    Broken("change_jobs", LOCKS_IN_ORDER, "", "it holds the locks"),
    *(
        Broken(query, f"(:{condition}::text[] IS NULL OR", "(TRUE OR", f"{query} that still match {title}: it returns")
        for query in ("cancel_jobs", "retry_jobs", "reschedule_jobs", "change_jobs", "delete_jobs")
        for condition, title in FILTERS.items()
    ),
    Broken(
        "delete_jobs",
        "ORDER BY j.id\n    FOR UPDATE",
        "ORDER BY j.id DESC\n    FOR UPDATE",
        "it has locked before it waits: [",
    ),
    Broken(
        "delete_failures",
        "WHERE f.job_id = ANY(:ids::uuid[])",
        "WHERE f.job_id IS NULL AND :ids::uuid[] IS NOT NULL",
        "delete_jobs with ",
    ),
    Broken("cancel_jobs", "l.status IN ('pending', 'running')", "TRUE", "it returns: 10, expected 7"),
    Broken("cancel_jobs", LOCKS_IN_ORDER, f"{LOCKS_IN_ORDER} SKIP LOCKED", "expected (it waits for the other session)"),
    Broken(
        "cancel_jobs", LOCKS_IN_ORDER, LOCKS_IN_ORDER.replace("j.id", "j.id DESC"), "it has locked before it waits: ["
    ),
    Broken("retry_jobs", LOCKS_IN_ORDER, "", "it holds the locks"),
    Broken("retry_jobs", "attempts = 0,", "", "InvalidJobError(a pending job has an attempt left"),
    Broken("retry_jobs", "r.place = 1", "TRUE", "DuplicateJobError(another session"),
    Broken("retry_jobs", "l.id DESC", "l.id", "retry_jobs with unique keys"),
    Broken("retry_jobs", "other.unique_key = r.unique_key", "FALSE", "DuplicateJobError(another session"),
    Broken("reschedule_jobs", "l.status = 'pending'", "TRUE", "it returns: 10"),
    Broken("update_job", "    FOR NO KEY UPDATE\n", "", "it holds the locks"),
    Broken(
        "update_job",
        "OR c.status_before IN ('pending', 'running')",
        "OR c.status_before <> 'dead'",
        "while another session cancels the same jobs",
    ),
    Broken("update_job", "other.unique_key = c.unique_key_after", "FALSE", "DuplicateJobError(another session"),
    Broken("update_job", f"{IS_FINISHED}\n        OR", "", "a finished job's unique key to a taken one"),
    Broken("update_job", NEXT_TOKEN, "j.lease_token + 1", "the highest token to running"),
    Broken("replace_pending_job", "WHERE j.status = 'pending'\nRETURNING", "RETURNING", "a completed job has"),
    Broken(
        "replace_pending_job",
        "other.unique_key = :unique_key::text",
        "FALSE",
        "DuplicateJobError(another session",
    ),
    Broken("replace_pending_job", "unique_key = excluded.unique_key,", "", "it returns (unique_key): nothing"),
    Broken("find_duplicate_job", "AND same_unique.completed_at IS NULL", "", "more than one row"),
    Broken(
        "find_duplicate_jobs",
        re.compile(r"CASE WHEN j\.completed_at IS NULL THEN (j\.unique_key) END AS unique_key"),
        "j.unique_key",
        "find_duplicate_jobs of a finished job's id",
    ),
    Broken("create_missing_jobs", "n.unique_key\n", "NULL::text\n", "unique key"),
    Broken("create_job", "ON CONFLICT DO NOTHING", "ON CONFLICT (id) DO NOTHING", "expected [{"),
    Broken("create_jobs", "n.priority,", "0::smallint,", "(new 1, priority): 0, expected 2"),
    Broken("create_missing_jobs", "n.priority,", "0::smallint,", "(new 1, priority): 0, expected 2"),
    Broken("delete_job", BY_ID, f"{BY_ID} AND j.status <> 'running'", "expected nothing"),
    Broken(
        "get_job", "SELECT\n", "WITH d AS (DELETE FROM goqueue.jobs AS k WHERE k.id = :id::uuid) SELECT\n", "(deleted)"
    ),
    Broken("get_job", BY_ID, f"{BY_ID} FOR UPDATE", "it holds the locks"),
    Broken("get_job", BY_ID, f"{BY_ID} FOR KEY SHARE", "it holds the locks"),
    Broken("get_job", BY_ID, f"{BY_ID} AND j.status <> 'cancelled'", "expected {"),
    Broken("get_job", BY_ID, f"{BY_ID} AND pg_sleep(2.3) IS NOT NULL", "it takes: 2."),
    Broken("get_job", BY_ID, f"{BY_ID} AND set_config('work_mem', '64kB', FALSE) <> ''", "it changes the settings"),
    Broken("get_job", BY_ID, f"{BY_ID} AND pg_try_advisory_lock(1)", "it holds the locks: ["),
    Broken("get_jobs", "ORDER BY wanted.place", "ORDER BY j.id", "it returns: ["),
    Broken("list_jobs", "ORDER BY j.created_at DESC, j.id DESC", "ORDER BY j.id", "it returns: ["),
    Broken("list_jobs", "    j.updated_at,", "    j.created_at AS updated_at,", "updated_at): the time"),
    Broken("list_jobs", "j.locked_by = ANY(:worker_ids::text[])", "TRUE", "list_jobs of one worker: it returns: ["),
    Broken("list_jobs", "WHERE :worker_ids::text[] IS NULL", "", "list_jobs of one worker: it returns: ["),
    Broken("count_jobs", "AND :worker_ids::text[] IS NULL", "", "count_jobs of one worker: it returns: ["),
    Broken("count_jobs", re.compile(r"j\.queue = ANY\(ARRAY\[l\.queue\]\)\s+AND "), "", "expected [9, true]"),
    Broken("list_failures", "ORDER BY f.lease_token", "ORDER BY f.lease_token DESC", "list_failures of failed twice"),
    Broken("next_job_at", "SELECT min(", "SELECT max(", "it returns: the time"),
    Broken("next_job_at", "'infinity'", "'-infinity'", "pause_queue without an end: it returns: "),
    Broken("claim_jobs", "WHERE p.paused_until > statement_timestamp()", "", "until a time that has passed"),
    Broken("claim_jobs", "p.paused_until > statement_timestamp()", "FALSE", "pause_queue without an end"),
    Broken("pause_queue", "    paused_until = excluded.paused_until,\n", "", "pause_queue twice: "),
    Broken("resume_queue", "p.paused_until > statement_timestamp()", "TRUE", "it returns"),
    Broken("find_listener_blockers", "    AND l.mode = 'ExclusiveLock'\n", "", "whose lock is shared: it returns: "),
    Broken("wake_listeners", "pg_advisory_unlock(7453300657348765004)", "TRUE", "it holds the locks: ["),
    Broken("queue_stats", "ORDER BY s.queue", "ORDER BY s.queue DESC", "it returns"),
    Broken("list_workers", "ORDER BY j.locked_by", "ORDER BY j.locked_by DESC", "list_workers: it returns: ["),
    Broken("list_workers", "min(j.lease_expires_at)", "max(j.lease_expires_at)", "list_workers: it returns: ["),
    Broken("list_job_types", "ORDER BY job_type", "ORDER BY job_type DESC", "list_job_types: it returns: ["),
]


def replaced(broken: Broken) -> tuple[str, str]:
    """Return the name of the query's file, and its text with the replacement made only in that query."""
    file = load_statements()[broken.query].file
    text = file.read_text("utf-8")
    start = text.index(f"-- name: {broken.query}(")
    end = text.find("-- name: ", start + 1) if "-- name: " in text[start + 1 :] else len(text)
    query = text[start:end]
    comment, statement = re.fullmatch(r"((?:--[^\n]*\n)+)(.*)", query, re.DOTALL).groups()  # type: ignore[union-attr]
    made = re.sub(broken.old if isinstance(broken.old, re.Pattern) else re.escape(broken.old),
                  lambda _: broken.new, statement)  # fmt: skip
    assert made != statement, f"{broken.query} has no {broken.old!r}"
    return file.name, f"{text[:start]}{comment}{made}{text[end:]}"


@pytest.fixture(scope="session")
def scratch_url(goqueue_server: DatabaseServer, goqueue_template: str) -> Iterator[str]:
    """The URL of a migrated database for all comparisons: each leaves it empty."""
    name = f"goqueue_test_{os.getpid()}_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
        load_queries().hold_database(connection, name=name)
        template = sql.Identifier(goqueue_template)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, template))
        yield make_conninfo(goqueue_server.url, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture(scope="session")
def shown() -> Shown:
    """The results of the shipped queries, shared by the tests."""
    return {}


@pytest.fixture
def compare(scratch_url: str, shown: Shown) -> Iterator[Callable[[Path, str], Proven]]:
    with psycopg.connect(scratch_url, autocommit=True) as connection:
        yield lambda given, name: compare_behaviour(connection, str(given), [name], shipped=shown)


@pytest.fixture(scope="session")
def written_otherwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose queries have other texts and the same effects."""
    given = tmp_path_factory.mktemp("otherwise")
    for file in {load_statements()[name].file for name in STORES}:
        (given / file.name).write_text(re.sub(r"\bj\b", "jj", file.read_text("utf-8")))
    return given


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Broken], Path]:
    def write(broken: Broken) -> Path:
        name, text = replaced(broken)
        given = tmp_path / "tuned"
        given.mkdir()
        (given / name).write_text(text, "utf-8")
        return given

    return write


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_query_with_another_effect_is_reported(
    compare: Callable[[Path, str], Proven], folder: Callable[[Broken], Path], broken: Broken
) -> None:
    found = compare(folder(broken), broken.query)
    assert broken.told in "\n".join(found.problems)
    assert found.unproved == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in STORES if name not in WITHOUT_CASES])
def test_an_equivalent_query_with_another_text_passes(
    compare: Callable[[Path, str], Proven], written_otherwise: Path, name: str
) -> None:
    found = compare(written_otherwise, name)
    assert found.problems == []
    assert found.runs.keys() == {name}


def test_every_query_that_can_be_changed_has_a_case() -> None:
    tested, expected = {query for case in CASES for query in case.queries}, set(STORES) - WITHOUT_CASES.keys()
    assert tested == expected, (
        f"goqueue/workbench/cases.py: add cases of {sorted(expected - tested)}, remove {sorted(tested - expected)} "
        "(or name the reason in WITHOUT_CASES of tests/test_behaviour.py)"
    )


def test_a_simpler_claim_passes(compare: Callable[[Path, str], Proven], tmp_path: Path) -> None:
    """The effect counts, not the text: this claim scans no lane by itself."""
    text = (SHIPPED / "leases.sql").read_text("utf-8")
    start, end = text.index("lane AS MATERIALIZED ("), text.index("claimed_job AS (")
    simple = """due_job AS MATERIALIZED (
        SELECT k.id
        FROM goqueue.jobs AS k
        WHERE
            k.status = 'pending' AND k.queue = ANY(:queues::text[]) AND k.scheduled_at <= statement_timestamp()
            AND NOT EXISTS (SELECT FROM lost_lease)
            AND num_nulls(
                :lane_queues::text[], :lane_priorities::smallint[], :lane_times::timestamptz[], :lane_ids::uuid[]
            ) >= 0
        ORDER BY k.priority, k.scheduled_at, k.id
        LIMIT :job_limit::bigint
        FOR NO KEY UPDATE SKIP LOCKED
    ),

"""
    (tmp_path / "leases.sql").write_text(text[:start] + simple + text[end:])
    assert compare(tmp_path, "claim_jobs").problems == []


def test_restored_rows_are_the_rows_that_were_read(goqueue_connection: Connection) -> None:
    queries = load_queries()
    populate(PostgresStorage.bound_to(goqueue_connection), goqueue_connection, datetime.now(UTC))
    before = list(queries.list_rows(goqueue_connection))
    jobs, failures = ([json.loads(row) for table, row in before if table == name] for name in ("jobs", "job_failures"))
    assert failures
    # Every column has a value somewhere, so that a column that is not restored is noticed.
    assert {name for row in jobs for name, value in row.items() if value is not None} == jobs[0].keys()
    queries.empty_tables(goqueue_connection)
    list(
        queries.restore_rows(goqueue_connection, restored_jobs=json.dumps(jobs), restored_failures=json.dumps(failures))
    )
    assert list(queries.list_rows(goqueue_connection)) == before


def test_a_database_with_jobs_is_left_alone(goqueue_connection: Connection, tmp_path: Path) -> None:
    goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('a')")
    with pytest.raises(ValueError, match="expected an empty scratch database"):
        compare_behaviour(goqueue_connection, str(tmp_path), ["get_job"])
    assert goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (1,)


def test_a_crash_is_not_compared_as_an_outcome(
    scratch_url: str, folder: Callable[[Broken], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise TypeError("of goqueue itself")

    given = folder(Broken("get_job", BY_ID, f"{BY_ID} AND TRUE", ""))
    monkeypatch.setattr("goqueue.workbench.behaviour.CASES", [Case("a case", ("get_job",), crash)])
    with (
        psycopg.connect(scratch_url, autocommit=True) as connection,
        pytest.raises(TypeError, match="of goqueue itself"),
    ):
        compare_behaviour(connection, str(given), ["get_job"])


def test_a_query_that_the_scratch_server_rejects_is_not_compared(
    goqueue_connection: Connection, folder: Callable[[Broken], Path]
) -> None:
    given = folder(Broken("get_job", BY_ID, f"{BY_ID} AND pg_of_tomorrow()", ""))
    found = compare_behaviour(goqueue_connection, str(given), ["get_job"])
    assert found.problems == []
    assert "query get_job: the scratch server (PostgreSQL" in str(found.unproved)
    assert "pg_of_tomorrow() does not exist" in str(found.unproved)


# --- the command ----------------------------------------------------------------------------------------------------


def line(out: str) -> str:
    return next(line for line in out.splitlines() if " behaviour" in line)


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_check_compares_changed_queries_on_a_scratch_database(
    goqueue: Commands, goqueue_connection: Connection, folder: Callable[[Broken], Path], where: str
) -> None:
    goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('a'), ('b')")

    def databases() -> set[str]:
        scratch = "SELECT datname FROM pg_database WHERE datname LIKE 'goqueue\\_explain%'"
        return {name for (name,) in goqueue_connection.execute(scratch)}

    before = databases()
    given = folder(Broken("claim_jobs", SKIPS, "FOR NO KEY UPDATE", ""))
    result = goqueue("check", "--sql-dir", given, "--scratch", where)
    assert result.code == 3
    assert "failed: behaviour" in result.err
    assert "failed: query claim_jobs, claim_jobs: " in result.out
    assert "it returns: (it waits for the other session)" in result.out
    rows = goqueue_connection.execute("SELECT status::text, count(*) FROM goqueue.jobs GROUP BY status").fetchall()
    assert rows == [("pending", 2)]
    new = databases() - before
    until(lambda: not new & databases())  # other tests have such databases too, and drop theirs


def test_an_equivalent_query_passes_and_aspects_that_are_not_compared_are_named(
    goqueue: Commands, tmp_path: Path
) -> None:
    text = (SHIPPED / "server.sql").read_text("utf-8").replace("goqueue.jobs AS j", "goqueue.jobs AS jj")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "server.sql").write_text(text.replace("j.id =", "jj.id ="))
    result = goqueue("check", "--sql-dir", tmp_path / "tuned")
    assert result.code == 0
    assert line(result.out).startswith("ok      behaviour   compared on PostgreSQL ")
    assert "ping (2 runs); not compared: how fast they are on many rows" in line(result.out)


def test_queries_that_are_not_compared_are_a_warning(goqueue: Commands, folder: Callable[[Broken], Path]) -> None:
    given = folder(Broken("claim_jobs", SKIPS, "FOR NO KEY UPDATE", ""))
    result = goqueue("check", "--sql-dir", given, "--scratch", "none")
    assert result.code == 0
    assert line(result.out) == "warning behaviour   not compared"
    assert "not compared with the shipped queries: claim_jobs" in result.out
    assert goqueue("check", "--sql-dir", given, "--scratch", "none", "--strict").code == 3


def test_a_role_that_cannot_create_databases_gets_advice(
    goqueue: Commands,
    goqueue_connection: Connection,
    goqueue_database: str,
    folder: Callable[[Broken], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = f"worker_{goqueue_connection.info.backend_pid}"
    name = sql.Identifier(role)
    goqueue_connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    goqueue_connection.execute(sql.SQL("GRANT USAGE ON SCHEMA goqueue TO {}").format(name))
    goqueue_connection.execute(
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA goqueue TO {}").format(name)
    )
    try:
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", f"{goqueue_database}&options=-c%20role%3D{role}")
        given = folder(Broken("get_job", BY_ID, f"{BY_ID} AND TRUE", ""))
        result = goqueue("check", "--sql-dir", given, "--scratch", "server")
        assert line(result.out) == "warning behaviour   not compared"
        assert "the role can't create databases there" in result.out
        assert "--scratch embedded" in result.out
    finally:
        goqueue_connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
        goqueue_connection.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_query_that_calls_a_volatile_function_is_not_run(goqueue: Commands, folder: Callable[[Broken], Path]) -> None:
    given = folder(Broken("get_job", BY_ID, f"{BY_ID} AND pg_sleep(30) IS NOT NULL", ""))
    result = goqueue("check", "--sql-dir", given)
    assert result.code == 3
    assert "query get_job: it calls pg_sleep(), and the shipped one doesn't" in result.out
    assert " behaviour" not in result.out
