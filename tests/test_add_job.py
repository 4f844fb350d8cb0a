"""Jobs from SQL, by `goqueue.add_job` and by plain INSERTs, follow the rules of `create_job`."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from goqueue import JobFilter, NewJob, PostgresStorage
from goqueue.migrate import migrations_dir
from goqueue.models import Job

Connection = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
CALL = "SELECT id, created FROM goqueue.add_job"


def call(connection: Connection, arguments: str, *values: object) -> Any:
    return connection.execute(f"{CALL}({arguments})".encode(), values).fetchone()


def content(job: Job) -> dict[str, Any]:
    """A job without what differs from job to job."""
    names = ("status", "queue", "job_type", "payload", "priority", "attempts", "max_attempts", "last_error")
    return {name: getattr(job, name) for name in (*names, "idempotency_key", "unique_key", "locked_by", "lease_token")}


def test_a_job_has_the_defaults_of_a_new_job(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    expected = content(goqueue_store.create_job(NewJob(job_type="t")))
    job_id, created = call(goqueue_connection, "'t'")
    job = goqueue_store.get_job(job_id)
    assert created
    assert content(job) == expected
    assert job_id.version == 7
    assert job.scheduled_at == job.created_at
    nulls = ", ".join(f"{name} => NULL" for name in (
        "payload", "queue", "priority", "max_attempts", "scheduled_at", "delay", "idempotency_key", "id", "unique_key"
    ))  # fmt: skip
    assert content(goqueue_store.get_job(call(goqueue_connection, f"'t', {nulls}")[0])) == expected
    plain = goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t') RETURNING id").fetchone()
    assert plain is not None
    assert content(goqueue_store.get_job(plain[0])) == expected


def test_every_argument_is_stored(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    fields = {"job_type": "ship", "queue": "q", "payload": {"a": [1, "x"]}, "priority": -5, "max_attempts": 3}
    new = NewJob(**fields, idempotency_key="1", unique_key="3", scheduled_at=datetime(2050, 1, 1, tzinfo=UTC))
    expected = goqueue_store.create_job(new)
    given = {**fields, "payload": Jsonb(fields["payload"]), "scheduled_at": new.scheduled_at}
    given |= {"id": uuid4(), "idempotency_key": "2", "unique_key": "4"}
    arguments = ", ".join(f"{name} => %s" for name in given)
    assert call(goqueue_connection, arguments, *given.values()) == (given["id"], True)
    job = goqueue_store.get_job(given["id"])
    assert content(job) == {**content(expected), "idempotency_key": "2", "unique_key": "4"}
    assert job.scheduled_at == new.scheduled_at


@pytest.mark.parametrize("payload", [None, True, 17, "text", [], {}, {"a": None}])
def test_any_json_value_is_a_payload(
    payload: Any, goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    job_id, _ = call(goqueue_connection, "'t', %s::jsonb", json.dumps(payload))
    assert goqueue_store.get_job(job_id).payload == payload


def test_a_delay_counts_as_seconds(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    """A day of the calendar has 23 or 25 hours twice a year."""
    goqueue_connection.execute("SET TimeZone = 'Europe/Berlin'")
    for text, delay in (("1 hour", HOUR), ("365 days", timedelta(days=365)), ("90.5 seconds", timedelta(seconds=90.5))):
        job = goqueue_store.get_job(call(goqueue_connection, f"'t', delay => '{text}'")[0])
        assert job.scheduled_at - job.created_at == delay


def test_a_taken_key_or_id_returns_its_job(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    first = goqueue_store.create_job(NewJob(job_type="t", idempotency_key="k"))
    with goqueue_connection.transaction():
        assert call(goqueue_connection, "'t', idempotency_key => 'k'") == (first.id, False)
        assert call(goqueue_connection, "'t', id => %s", first.id) == (first.id, False)
        assert call(goqueue_connection, "'t', id => %s, idempotency_key => 'k'", uuid4()) == (first.id, False)
        second, created = call(goqueue_connection, "'t', idempotency_key => 'l'")
        assert created
        assert call(goqueue_connection, "'t', idempotency_key => 'l'") == (second, False)
    assert {job.id for job in goqueue_store.list_jobs().jobs} == {first.id, second}


def test_a_unique_key_is_taken_until_its_job_has_finished(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    first, created = call(goqueue_connection, "'t', unique_key => 'k'")
    assert created
    assert call(goqueue_connection, "'t', unique_key => 'k'") == (first, False)
    [job] = goqueue_store.claim_jobs("default", "w")
    assert call(goqueue_connection, "'t', unique_key => 'k'") == (first, False)
    goqueue_store.complete_job(job)
    second, created = call(goqueue_connection, "'t', unique_key => 'k'")
    assert created
    assert second != first


def test_arguments_by_position_are_those_of_the_first_release(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    wanted = uuid4()
    assert call(goqueue_connection, "'t', '{}', 'q', 0, 25, NULL, '1 hour', 'k', %s", wanted) == (wanted, True)
    job = goqueue_store.get_job(wanted)
    assert (job.queue, job.idempotency_key, job.unique_key) == ("q", "k", None)


@pytest.mark.parametrize("commits", [True, False])
def test_a_call_waits_for_a_transaction_that_adds_the_same_key(
    commits: bool, goqueue_connection: Connection, goqueue_database: str
) -> None:
    results: list[Any] = []
    with psycopg.connect(goqueue_database) as first:
        job_id, _ = call(first, "'t', idempotency_key => 'k'")
        second = threading.Thread(
            target=lambda: results.append(call(goqueue_connection, "'t', idempotency_key => 'k'"))
        )
        second.start()
        with psycopg.connect(goqueue_database, autocommit=True) as watch:
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%add_job%'"
            while not watch.execute(waiting).rowcount:
                second.join(0.01)
        (first.commit if commits else first.rollback)()
        second.join()
    assert results == [(job_id, False)] if commits else results[0][1]


def test_jobs_are_rolled_back_with_the_transaction_and_the_savepoint(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    with goqueue_connection.transaction():
        kept, _ = call(goqueue_connection, "'t'")
        with goqueue_connection.transaction(force_rollback=True):
            call(goqueue_connection, "'t'")
    with goqueue_connection.transaction(force_rollback=True):
        call(goqueue_connection, "'t'")
    assert [job.id for job in goqueue_store.list_jobs().jobs] == [kept]


def test_it_wakes_a_listener(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("mail") as listener:
        call(goqueue_connection, "'t', queue => 'mail'")
        assert listener.wait(timedelta(minutes=1)) == {"mail"}


@pytest.mark.parametrize("search_path", ["''", "pg_temp", "app, pg_catalog, goqueue"])
def test_the_search_path_and_objects_that_shadow_its_names_change_nothing(
    search_path: str, goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    goqueue_connection.execute(f"""
        CREATE SCHEMA app;
        CREATE TABLE app.jobs (id uuid, idempotency_key text, unique_key text);
        CREATE TEMPORARY TABLE jobs (id uuid, idempotency_key text, unique_key text);
        CREATE FUNCTION app.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT NULL::timestamptz $$;
        CREATE FUNCTION app.make_interval(
            years integer DEFAULT 0, months integer DEFAULT 0, weeks integer DEFAULT 0, days integer DEFAULT 0,
            hours integer DEFAULT 0, mins integer DEFAULT 0, secs double precision DEFAULT 0
        ) RETURNS interval LANGUAGE sql AS $$ SELECT NULL::interval $$;
        CREATE FUNCTION app.uuid_v7() RETURNS uuid LANGUAGE sql AS $$ SELECT NULL::uuid $$;
        CREATE FUNCTION app.extract(text, interval) RETURNS numeric LANGUAGE sql AS $$ SELECT NULL::numeric $$;
        CREATE FUNCTION app.never(uuid, uuid) RETURNS boolean LANGUAGE sql AS $$ SELECT FALSE $$;
        CREATE OPERATOR app.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = app.never);
        CREATE FUNCTION app.never(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT FALSE $$;
        CREATE OPERATOR app.= (LEFTARG = text, RIGHTARG = text, FUNCTION = app.never);
        CREATE FUNCTION app.never(timestamptz, interval) RETURNS timestamptz
        LANGUAGE sql AS $$ SELECT NULL::timestamptz $$;
        CREATE OPERATOR app.+ (LEFTARG = timestamptz, RIGHTARG = interval, FUNCTION = app.never);
        CREATE DOMAIN pg_temp.uuid AS text CHECK (VALUE = 'never');
        SET search_path = {search_path};
    """)
    job_id, created = call(goqueue_connection, "'t', delay => '1 hour', idempotency_key => 'k'")
    assert created
    job = goqueue_store.get_job(job_id)
    assert job.scheduled_at - job.created_at == HOUR
    assert call(goqueue_connection, "'t', idempotency_key => 'k'") == (job_id, False)
    assert call(goqueue_connection, "'t', id => %s::pg_catalog.uuid", job_id) == (job_id, False)
    unique_id, created = call(goqueue_connection, "'t', unique_key => 'k'")
    assert created
    assert call(goqueue_connection, "'t', unique_key => 'k'") == (unique_id, False)


REJECTED = {
    "job_type => NULL": ("23502", "job_type"),
    "''": ("23514", "jobs_job_type_length"),
    "'t', queue => ''": ("23514", "jobs_queue_length"),
    "'t', queue => repeat('x', 256)": ("23514", "jobs_queue_length"),
    "'t', idempotency_key => ''": ("23514", "jobs_idempotency_key_length"),
    "'t', unique_key => ''": ("23514", "jobs_unique_key_length"),
    "'t', max_attempts => 0": ("23514", "jobs_max_attempts_range"),
    "'t', max_attempts => 10001": ("23514", "jobs_max_attempts_range"),
    "'t', priority => 40000": ("22003", "smallint out of range"),
    "'t', scheduled_at => now(), delay => '1 hour'": ("22023", "scheduled_at and delay are both given"),
}


@pytest.mark.parametrize("arguments", REJECTED)
def test_a_value_that_the_table_rejects_is_rejected_by_name(arguments: str, goqueue_connection: Connection) -> None:
    sqlstate, named = REJECTED[arguments]
    with pytest.raises(psycopg.Error, match=named) as error:
        call(goqueue_connection, arguments)
    assert error.value.sqlstate == sqlstate


PAGE = (migrations_dir() / "docs" / "transactions.md").read_text("utf-8")
COLUMNS = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.partition("## Plain INSERT")[2], re.MULTILINE))


def test_the_page_has_the_columns_of_a_plain_insert_and_their_defaults(goqueue_connection: Connection) -> None:
    defaults = dict(
        goqueue_connection.execute("""
            SELECT a.attname, pg_get_expr(d.adbin, d.adrelid)
            FROM pg_attribute AS a
            LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = 'goqueue.jobs'::regclass AND a.attnum > 0
        """).fetchall()
    )
    assert set(COLUMNS) == {
        "job_type", "queue", "payload", "priority", "max_attempts", "scheduled_at", "idempotency_key",
        "unique_key", "id",
    }  # fmt: skip
    said = {
        "none: required": None, "null": None, "`default`": "'default'::text", "`{}`": "'{}'::jsonb",
        "`now()`": "now()", "a UUIDv7": "goqueue.uuid_v7()",
    }  # fmt: skip
    assert {name: said.get(text, text) for name, text in COLUMNS.items()} == {name: defaults[name] for name in COLUMNS}


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("job_type", "''", "jobs_job_type_length"),
        ("queue", "repeat('x', 256)", "jobs_queue_length"),
        ("idempotency_key", "''", "jobs_idempotency_key_length"),
        ("unique_key", "''", "jobs_unique_key_length"),
        ("max_attempts", "0", "jobs_max_attempts_range"),
        ("max_attempts", "10001", "jobs_max_attempts_range"),
        ("status", "'running'", "jobs_running_is_locked"),
        ("status", "'completed'", "jobs_finished_has_time"),
    ],
)
def test_a_plain_insert_is_checked_by_the_constraints(
    column: str, value: str, constraint: str, goqueue_connection: Connection
) -> None:
    columns, values = ("job_type, ", "'t', ") if column != "job_type" else ("", "")
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        goqueue_connection.execute(f"INSERT INTO goqueue.jobs ({columns}{column}) VALUES ({values}{value})".encode())
    assert error.value.diag.constraint_name == constraint


def test_a_plain_insert_skips_a_taken_key(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    insert = "INSERT INTO goqueue.jobs (job_type, idempotency_key) VALUES ('t', 'k')"
    goqueue_connection.execute(insert.encode())
    with pytest.raises(psycopg.errors.UniqueViolation):
        goqueue_connection.execute(insert.encode())
    for target in ("", " (idempotency_key) WHERE idempotency_key IS NOT NULL"):
        assert goqueue_connection.execute(f"{insert} ON CONFLICT{target} DO NOTHING".encode()).rowcount == 0
    assert goqueue_store.count_jobs() == 1


def test_plainly_inserted_jobs_are_claimed_and_completed(
    goqueue_connection: Connection, goqueue_store: PostgresStorage
) -> None:
    with goqueue_store.listen("default") as listener:
        goqueue_connection.execute(
            "INSERT INTO goqueue.jobs (job_type, payload)"
            " SELECT 'ship', jsonb_build_object('order', n) FROM generate_series(1, 100) AS n"
        )
        assert listener.wait(timedelta(minutes=1))
    jobs = goqueue_store.claim_jobs("default", "w", limit=100)
    assert sorted(job.payload["order"] for job in jobs) == list(range(1, 101))  # type: ignore[call-overload, index]
    goqueue_store.complete_jobs(jobs)
    assert goqueue_store.count_jobs(JobFilter(status="completed")) == 100


def test_the_owner_can_use_copy(goqueue_connection: Connection, goqueue_store: PostgresStorage) -> None:
    with goqueue_connection.cursor() as cursor, cursor.copy("COPY goqueue.jobs (job_type) FROM STDIN") as copy:
        copy.write("a\nb\n")
    assert sorted(job.job_type for job in goqueue_store.list_jobs().jobs) == ["a", "b"]
