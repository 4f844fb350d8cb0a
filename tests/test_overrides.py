"""A folder of SQL files that replace the shipped ones: what runs, what is rejected, and the messages."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from goqueue import ConfigError, NewJob, PostgresStorage
from goqueue.config import DatabaseConfig
from goqueue.files import APART, exported, shipped_folder
from goqueue.postgres.overrides import check_overrides
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.workbench.plans import generic_plans
from goqueue.workbench.proofs import prove_overrides

SHIPPED = shipped_folder("sql")
FOUND_BY_ID = "FROM goqueue.jobs AS j\nWHERE j.id = :id::uuid;"
GET_JOB = "-- name: get_job(id)^"

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return a function that writes a shipped file, with some text replaced, into a folder. It returns the folder."""

    def write(old: str = "", new: str = "", file: str = "jobs.sql") -> Path:
        given = tmp_path / "tuned"
        given.mkdir(exist_ok=True)
        text = (SHIPPED / file).read_text("utf-8")
        assert old in text
        (given / file).write_text(text.replace(old, new) if old else text, "utf-8")
        return given

    return write


def problems_of(url: str, given: Path) -> tuple[str, ...]:
    """Return the store's message on opening, without the folder's name."""
    with pytest.raises(ConfigError) as refused:
        PostgresStorage.open(DatabaseConfig(url=url, sql_dir=str(given)))
    return tuple(problem.replace(f"{given}/", "") for problem in refused.value.problems)


# --- what runs ------------------------------------------------------------------------------------------------------


def test_a_tuned_query_runs_in_place_of_the_shipped_one(goqueue_database: str, folder: Folder) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", "\n    AND 'tuned' = 'tuned';"))
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, sql_dir=str(given), pool_max_size=1)) as store:
        job = store.create_job(NewJob(job_type="t"))
        assert store.get_job(job.id) == job
        with psycopg.connect(goqueue_database, autocommit=True) as watching:
            seen = watching.execute(
                "SELECT query FROM pg_stat_activity WHERE query LIKE 'SELECT /* goqueue:get_job */%'"
            )
            assert "'tuned' = 'tuned'" in str(seen.fetchall())
        with psycopg.connect(goqueue_database, autocommit=True) as own:
            assert store.bound_to(own).get_job(job.id) == job
            assert "'tuned' = 'tuned'" in str(load_queries(str(given)).get_job.sql)


def test_the_files_that_are_not_in_the_folder_are_the_shipped_ones(folder: Folder) -> None:
    given, shipped = load_queries(folder("AS same_id", "AS twin_id")), load_queries()
    assert set(given.available_queries) == set(shipped.available_queries)
    assert given.claim_jobs.sql == shipped.claim_jobs.sql
    assert given.get_job.sql == shipped.get_job.sql


def test_an_exported_folder_is_the_shipped_one(goqueue_connection: psycopg.Connection[Any], tmp_path: Path) -> None:
    for name in ("jobs.sql", "leases.sql", "server.sql", "stats.sql"):
        (tmp_path / name).write_text(exported(SHIPPED / name))
    assert check_overrides(goqueue_connection, tmp_path) == []
    proof = prove_overrides(goqueue_connection, tmp_path)
    assert proof == ([], [], [], [])


def test_statements_can_have_another_layout(goqueue_connection: psycopg.Connection[Any], folder: Folder) -> None:
    given = folder("WHERE j.id = :id::uuid;", "WHERE\n    -- By the primary key.\n    j.id = :id::uuid;")
    assert prove_overrides(goqueue_connection, given) == ([], [], [], [])


def test_a_file_with_windows_line_ends_is_read(goqueue_connection: psycopg.Connection[Any], tmp_path: Path) -> None:
    text = (SHIPPED / "jobs.sql").read_text("utf-8")
    (tmp_path / "jobs.sql").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert check_overrides(goqueue_connection, tmp_path) == []


# --- what can't be loaded -------------------------------------------------------------------------------------------

GET_JOB_TEXT = (SHIPPED / "jobs.sql").read_text("utf-8").partition(GET_JOB)[2].partition("-- name:")[0]


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        (GET_JOB + GET_JOB_TEXT, "", ["query get_job: it is missing"]),
        (GET_JOB, "-- name: fetch_job(id)^",
         ["query get_job: it is missing", "query fetch_job: goqueue has no such query in this file; expected create"]),
        (GET_JOB, "-- name: get_job(id)", ["query get_job: its result is rows (no mark), expected one row or"]),
        (GET_JOB, "-- name: get_job(id)!", ["query get_job: its result is the number of rows (!), expected"]),
        ("j.id = :id::uuid;", "j.id = :job_id::uuid;",
         ["can't be loaded: undeclared parameter name in query get_job: job_id"]),
        (GET_JOB, "-- name: get_job^", ["can't be loaded: missing mandatory parameter list"]),
        (GET_JOB, "-- name: get_jobs(ids)", ["can't be loaded: "]),
    ],
)  # fmt: skip
def test_a_query_declared_differently_is_reported(folder: Folder, old: str, new: str, problems: list[str]) -> None:
    given = folder(old, new)
    with pytest.raises(ConfigError) as refused:
        load_queries(given)
    assert len(refused.value.problems) == len(problems)
    for said, expected in zip(refused.value.problems, problems, strict=True):
        assert str(given / "jobs.sql") in said
        assert expected in said


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (GET_JOB, "-- name: get_job(id, queue)^", "it has an unknown parameter queue; expected id"),
        (GET_JOB, "-- name: get_job()^", "it lacks the parameter id"),
    ],
)
def test_other_parameters_are_reported(folder: Folder, old: str, new: str, problem: str) -> None:
    condition = "j.id = :id::uuid AND j.queue = :queue::text" if "queue" in new else "TRUE"
    given = folder(GET_JOB + GET_JOB_TEXT, new + GET_JOB_TEXT.replace("j.id = :id::uuid", condition))
    with pytest.raises(ConfigError) as refused:
        load_queries(given)
    assert refused.value.problems == (f"{given / 'jobs.sql'}, query get_job: {problem}",)


@pytest.mark.parametrize("query", ["cancel_jobs", "retry_jobs", "reschedule_jobs", "change_jobs", "delete_jobs"])
def test_a_change_that_does_not_test_the_filter_again_is_reported(query: str, folder: Folder) -> None:
    """A statement that was exported earlier has no such parameters."""
    _, start, text = (SHIPPED / "jobs.sql").read_text("utf-8").partition(f"-- name: {query}(")
    text = start + text.partition("\n-- name:")[0]
    old = re.sub(r"(AND )?\(:\w+::text\[\] IS NULL OR .*\)\n", "", text).replace(
        "statuses, queues, job_types, worker_ids", "statuses"
    )
    given = folder(text, re.sub("WHERE +\\)", ")", old).replace(", statuses", ""))
    with pytest.raises(ConfigError) as refused:
        load_queries(given)
    assert [problem.partition(" query ")[2] for problem in refused.value.problems] == [
        f"{query}: it lacks the parameter {name}" for name in ("statuses", "queues", "job_types", "worker_ids")
    ]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (None, "the folder of SQL files {} does not exist; `goqueue sql export {}` makes one"),
        ({}, "the folder {} has no SQL files; expected some of jobs.sql, leases.sql,"),
        ({"README.md": ""}, "the folder {} has no SQL files"),
        ({"job.sql": ""}, "{}/job.sql is not one of the store's SQL files and is never read; expected jobs.sql, "),
        ({"checks.sql": ""}, "{}/checks.sql is not one of the store's SQL files"),
        ({"jobs.sql": "-- name: bad(\nSELECT 1;\n"}, "{}/jobs.sql can't be loaded: "),
        ({"jobs.sql": b"-- name: get_job(id)^\n\xff"}, "{}/jobs.sql can't be loaded: 'utf-8' codec"),
        ({"server.sql": "-- name: ping()$\nCOMMIT;"}, "{}/server.sql can't be loaded: "),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_rejected_with_the_reason(
    tmp_path: Path, files: dict[str, str | bytes] | None, problem: str
) -> None:
    given = tmp_path / "sql"
    if files is not None:
        given.mkdir()
        for name, text in files.items():
            (given / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=re.escape(problem.format(given, given))):
        load_queries(given)


def test_the_problems_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    for name in ("jobs.sql", "leases.sql"):
        (tmp_path / name).write_text("-- name: bad(\nSELECT 1;\n")
    with pytest.raises(ConfigError) as refused:
        load_queries(tmp_path)
    assert len(refused.value.problems) == 2


def test_a_broken_folder_is_reported_before_connecting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no SQL files"):
        PostgresStorage.open(DatabaseConfig(url="host=/nowhere", sql_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "shipped"), [("ping", "count(*) >= 0"), ("get_session", "pg_backend_pid() <> :backend_pid::integer")]
)
def test_a_fault_in_the_first_statements_is_reported_as_the_folders(
    goqueue_database: str, folder: Folder, name: str, shipped: str
) -> None:
    [problem] = problems_of(goqueue_database, folder(shipped, f"nonsense AND {shipped}", "server.sql"))
    assert problem.startswith(f"server.sql, query {name}: ")
    assert "nonsense" in problem


def test_a_file_of_an_older_release_is_reported_as_such(folder: Folder) -> None:
    given = folder(GET_JOB, "-- name: get_job(id)")
    old = f"-- From goqueue 0.0.9, sha256 {'0' * 64}. Keep this line.\n"
    (given / "jobs.sql").write_text(old + (given / "jobs.sql").read_text("utf-8"))
    with pytest.raises(ConfigError) as refused:
        load_queries(given)
    assert refused.value.problems[0].endswith(
        "(exported from goqueue 0.0.9, and the shipped file has changed since: see `goqueue sql diff`)"
    )


# --- what the store rejects -----------------------------------------------------------------------------------------

DELETES = "WITH gone AS (DELETE FROM goqueue.jobs AS d WHERE d.id = :id::uuid)\nSELECT\n"
DELETES_FAILURES = DELETES.replace("goqueue.jobs", "goqueue.job_failures").replace("d.id", "d.job_id")
LEASES = (SHIPPED / "leases.sql").read_text("utf-8")
RESCUE = LEASES[LEASES.index("-- name: rescue_jobs") : LEASES.index("-- name: list_failures")]
RECORDED = RESCUE[RESCUE.index(",\n\nrecorded_failure AS (") : RESCUE.index("\n\nSELECT\n    r.id")]
NAMED = "    j.queue,\n    j.job_type,\n    j.payload::text AS payload,"
AS_TEXT = "WHERE j.id::text = :id::text;"


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (NAMED.replace("j.job_type", "j.job_type AS foo"), "column 3 is 'foo text', expected 'job_type text'"),
        (NAMED.replace("j.job_type", "j.job_type::varchar AS job_type"),
         "column 3 is 'job_type character varying', expected 'job_type text'"),
        (NAMED.replace("    j.job_type,\n", ""), "the column 'job_type text' is missing, expected as column 3"),
        ("    1 AS x,\n" + NAMED, "column 2 is 'x integer', which is not expected"),
        (NAMED.replace("j.queue", "j.last_error AS queue"),
         "column 2 (queue) comes from goqueue.jobs.last_error, which can be null, expected goqueue.jobs.queue"),
        (NAMED.replace("j.queue", "j.job_type AS queue"),
         "column 2 (queue) comes from goqueue.jobs.job_type, expected goqueue.jobs.queue"),
        (NAMED.replace("j.queue", "j.queu AS queue"),
         "the server rejects it: column j.queu does not exist (in the line `j.queu AS queue,`)"),
        (NAMED.replace("j.queue", "to_char(7 % 2, '') AS queue"), "it has a single percent sign; write %% instead"),
        (NAMED.replace("j.queue", "('{a,b}'::text[])[1:2] AS queue"),
         ":2 is read as a parameter; write an array slice in another way"),
    ],
)  # fmt: skip
def test_other_columns_are_rejected(goqueue_database: str, folder: Folder, new: str, problem: str) -> None:
    text = GET_JOB_TEXT.replace(NAMED, new)
    assert text != GET_JOB_TEXT
    problems = problems_of(goqueue_database, folder(GET_JOB_TEXT, text))
    assert problems[0] == f"jobs.sql, query get_job: {problem}"
    assert "slice" in problem or len(problems) == 1


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (AS_TEXT, "the parameter id has the type text, expected uuid; cast it where it is used (:id::uuid)"),
        ("WHERE j.id = :id::uuid; DROP TABLE goqueue.jobs;",
         "the server rejects it: cannot insert multiple commands into a prepared statement"),
        ("WHERE j.id = :id::uuid AND :id;",
         "the server rejects it: argument of AND must be type boolean, not type uuid (in the line `WHERE"),
    ],
)  # fmt: skip
def test_a_statement_that_the_server_describes_differently_is_rejected(
    goqueue_database: str, folder: Folder, new: str, problem: str
) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace("WHERE j.id = :id::uuid;", new))
    [said] = problems_of(goqueue_database, given)
    assert said.startswith(f"jobs.sql, query get_job: {problem}")


def test_a_command_is_rejected_and_not_run(goqueue_database: str, folder: Folder) -> None:
    given = folder("LISTEN goqueue;", "DROP TABLE goqueue.jobs;", "server.sql")
    problem = "server.sql, query listen: it returns no rows, so it must be the shipped statement (LISTEN goqueue)"
    assert problems_of(goqueue_database, given) == (problem,)
    with PostgresStorage.open(goqueue_database) as store:
        assert store.count_jobs() == 0


def test_all_wrong_queries_are_reported_at_once(goqueue_database: str, folder: Folder) -> None:
    problems = problems_of(goqueue_database, folder("    j.job_type,", "    j.job_type AS foo,"))
    assert [problem.split(":")[0] for problem in problems][:2] == [
        "jobs.sql, query find_duplicate_job", "jobs.sql, query get_job",
    ]  # fmt: skip
    assert len(problems) > 4


def test_a_server_that_does_not_answer_is_not_the_folders_fault(goqueue_database: str, folder: Folder) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND TRUE;"))
    with psycopg.connect(goqueue_database) as holder, psycopg.connect(goqueue_database, autocommit=True) as asking:
        holder.execute("LOCK TABLE goqueue.jobs")
        asking.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            check_overrides(asking, given)
        holder.rollback()
        assert check_overrides(asking, given) == []
        assert asking.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_database_of_another_version_is_not_the_folders_fault(
    goqueue_connection: psycopg.Connection[Any], folder: Folder
) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND TRUE;"))
    goqueue_connection.execute("ALTER TABLE goqueue.jobs DROP COLUMN last_error")
    [problem] = check_overrides(goqueue_connection, given)
    assert "rejects the shipped one too: column j.last_error does not exist" in problem
    assert "pgmigrate migrate" in problem


# --- further proofs of `goqueue check` ------------------------------------------------------------------------------


def proved(connection: psycopg.Connection[Any], given: Path) -> tuple[list[str], list[str]]:
    proof = prove_overrides(connection, given)
    assert proof.outdated == []
    return tuple([text.replace(f"{given}/", "") for text in part] for part in (proof.problems, proof.unproved))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("condition", "thing"),
    [
        ("EXISTS (SELECT 1 FROM public.secrets)", "table public.secrets"),
        # The statement still refers to what the planner drops.
        ("(FALSE AND EXISTS (SELECT 1 FROM secrets)) IS FALSE", "table public.secrets"),
        ("public.spy() = 1", "function public.spy()"),
        ("EXISTS (SELECT 1 FROM information_schema.tables)", "view information_schema.tables"),
    ],
)
def test_a_statement_that_leaves_the_schema_is_reported(
    goqueue_connection: psycopg.Connection[Any], folder: Folder, condition: str, thing: str
) -> None:
    goqueue_connection.execute("CREATE TABLE public.secrets (id int)")
    goqueue_connection.execute("CREATE FUNCTION public.spy() RETURNS int LANGUAGE sql IMMUTABLE RETURN 1")
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", f" AND {condition};"))
    assert check_overrides(goqueue_connection, given) == []
    problem = f"jobs.sql, query get_job: it refers to the {thing}, outside the schema goqueue"
    assert proved(goqueue_connection, given) == ([problem], [])


@pytest.mark.parametrize("condition", ["pg_backend_pid() > 0", "j.status = 'pending'", "goqueue.uuid_v7() IS NOT NULL"])
def test_the_schema_and_the_servers_own_functions_are_allowed(
    goqueue_connection: psycopg.Connection[Any], folder: Folder, condition: str
) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", f" AND {condition};"))
    assert proved(goqueue_connection, given) == ([], [])


@pytest.mark.parametrize(
    ("new", "what"),
    [
        ("WHERE j.id::text = :id::uuid::text;", "the table goqueue.jobs"),
        ("WHERE j.id = :id::uuid AND (SELECT count(*) FROM goqueue.jobs AS k) > 0;", "the index jobs_"),
        ("WHERE j.last_error = :id::uuid::text;", "the table goqueue.jobs"),
    ],
)
def test_a_plan_that_reads_a_whole_table_is_reported(
    goqueue_connection: psycopg.Connection[Any], folder: Folder, new: str, what: str
) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace("WHERE j.id = :id::uuid;", new))
    [problem], unproved = proved(goqueue_connection, given)
    assert problem.startswith(f"jobs.sql, query get_job: its plan reads all of {what}")
    assert unproved == []


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("jobs.sql", GET_JOB_TEXT, GET_JOB_TEXT.replace("SELECT\n", DELETES),
         "get_job: it deletes from goqueue.jobs, and the shipped one doesn't"),
        ("jobs.sql", GET_JOB_TEXT, GET_JOB_TEXT.replace("SELECT\n", DELETES_FAILURES),
         "get_job: it deletes from goqueue.job_failures, and the shipped one doesn't"),
        ("jobs.sql", FOUND_BY_ID, FOUND_BY_ID.replace(";", " FOR UPDATE;"),
         "get_job: it locks the rows that it reads, and the shipped one doesn't"),
        ("jobs.sql", FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND pg_sleep(5) IS NOT NULL;"),
         "get_job: it calls pg_sleep(), and the shipped one doesn't; the server assumes that it can do anything"),
        ("jobs.sql", FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND set_config('jit', 'on', TRUE) <> '';"),
         "get_job: it calls set_config(), "),
        ("jobs.sql", FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND (SELECT pg_notify('goqueue', 'x')) IS NOT NULL;"),
         "get_job: it calls pg_notify(), "),
        ("jobs.sql", FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND EXISTS (SELECT FROM pg_advisory_lock(1));"),
         "get_job: it calls pg_advisory_lock(), "),
        ("leases.sql", "        FOR NO KEY UPDATE SKIP LOCKED\n", "",
         "claim_jobs: it locks no row before it changes it, and the shipped one does"),
        ("leases.sql", "\n    FOR NO KEY UPDATE SKIP LOCKED\n", "\n",
         "rescue_jobs: it locks no row before it changes it, and the shipped one does"),
        ("leases.sql", RECORDED, "",
         "rescue_jobs: it never inserts into goqueue.job_failures, and the shipped one does"),
    ],
)  # fmt: skip
def test_a_plan_with_other_writes_locks_or_calls_is_reported(
    goqueue_connection: psycopg.Connection[Any], folder: Folder, file: str, old: str, new: str, told: str
) -> None:
    problems, _ = proved(goqueue_connection, folder(old, new, file))
    assert any(problem.startswith(f"{file}, query {told}") for problem in problems), problems


def test_another_order_in_the_plan_is_not_proved(goqueue_connection: psycopg.Connection[Any], folder: Folder) -> None:
    given = folder("ORDER BY wanted.place;", "ORDER BY j.id;")
    problems, unproved = proved(goqueue_connection, given)
    assert problems == []
    assert unproved == ["jobs.sql, query get_jobs: its plan sorts the rows by id, the shipped one by nothing"]


def test_a_plan_that_is_far_more_expensive_on_the_present_table_is_reported(
    goqueue_connection: psycopg.Connection[Any], folder: Folder
) -> None:
    condition = "j.status = 'pending' AND j.queue = 'default' AND j.id::text = :id::uuid::text"
    new = FOUND_BY_ID.replace("WHERE j.id = :id::uuid;", f"WHERE {condition};")
    given = folder(FOUND_BY_ID, new)
    assert proved(goqueue_connection, given) == ([], [])  # on an empty table it makes no difference
    goqueue_connection.execute(
        "INSERT INTO goqueue.jobs (job_type) SELECT 't' FROM generate_series(1, 30000); ANALYZE goqueue.jobs"
    )
    [problem], unproved = proved(goqueue_connection, given)
    assert re.match(r"jobs\.sql, query get_job: its plan's estimated cost is [\d,]{5,}, the shipped", problem)
    assert "goqueue explain get_job" in problem
    assert unproved == []


def test_a_column_that_became_an_expression_is_not_proved(
    goqueue_connection: psycopg.Connection[Any], folder: Folder
) -> None:
    text = GET_JOB_TEXT.replace("    j.queue,\n", "    coalesce(j.queue, '') AS queue,\n")
    problems, unproved = proved(goqueue_connection, folder(GET_JOB_TEXT, text))
    assert problems == []
    [said] = unproved
    assert said.startswith("jobs.sql, query get_job: column 2 (queue) is an expression here and goqueue.jobs.queue in ")


@pytest.fixture
def reader(goqueue_connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """The connection as a role that can read the jobs and can't create a temporary function."""
    role = sql.Identifier(f"reader_{uuid4().hex}")
    for statement in (
        "CREATE ROLE {}",
        "GRANT USAGE ON SCHEMA goqueue TO {}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA goqueue TO {}",
        "SET ROLE {}",
    ):
        if statement.startswith("SET"):
            database = sql.Identifier(goqueue_connection.info.dbname)
            goqueue_connection.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
        goqueue_connection.execute(sql.SQL(statement).format(role))
    yield goqueue_connection
    goqueue_connection.execute("RESET ROLE")
    goqueue_connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
    goqueue_connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_facts_that_a_role_has_no_right_to_read_are_not_proved(reader: psycopg.Connection[Any], folder: Folder) -> None:
    given = folder("DELETE FROM goqueue.jobs AS j\nWHERE j.id", "DELETE FROM goqueue.jobs AS j\nWHERE TRUE AND j.id")
    assert check_overrides(reader, given) == []
    problems, unproved = proved(reader, given)
    assert problems == []
    references, plan = (text.partition(": ")[2] for text in unproved)
    assert references.startswith(
        "its references are unknown, because a temporary function can't be created: permission"
    )
    assert plan == "its plan can't be made: permission denied for table jobs"


# --- the shipped files ----------------------------------------------------------------------------------------------


def test_no_shipped_statement_leaves_the_schema(goqueue_connection: psycopg.Connection[Any], tmp_path: Path) -> None:
    # Each with another alias, because a statement equal to the shipped one is not checked.
    for file in ("jobs.sql", "leases.sql", "stats.sql"):
        text = (SHIPPED / file).read_text("utf-8")
        (tmp_path / file).write_text(re.sub(r"\bj\b", "jj", text))
    proof = prove_overrides(goqueue_connection, tmp_path)
    assert (proof.problems, proof.unproved) == ([], [])
    assert len(proof.changed) == 24


def test_every_statement_has_a_plan(goqueue_connection: psycopg.Connection[Any]) -> None:
    statements = [one for one in load_statements().values() if one.file.name not in APART]
    plans = generic_plans(goqueue_connection, statements)
    assert plans.keys() == {one.name for one in statements} - {"listen", "listen_cancelled"}
    assert [name for name, plan in plans.items() if isinstance(plan, psycopg.Error)] == []
    assert goqueue_connection.execute("SELECT name FROM pg_prepared_statements").fetchall() == []
