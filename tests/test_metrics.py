"""The metrics views: correct values, readable by a role without other rights, ready to use."""

import re
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from goqueue import DatabaseConfig, JobFilter, JobStatus, JobUpdate, NewJob, PostgresStorage
from goqueue.migrate import migrate, migrations_dir

PAGE = (migrations_dir() / "docs" / "metrics.md").read_text("utf-8")
SQL_EXPORTER, POSTGRES_EXPORTER = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
SEVERAL, GRANTS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
HOUR = timedelta(hours=1)


def by_status(connection: psycopg.Connection[Any]) -> dict[tuple[str, str], tuple[int, bool]]:
    rows = connection.execute("SELECT queue, status, jobs, is_exact FROM goqueue.queue_status_metrics").fetchall()
    counts = {(queue, status): (jobs, exact) for queue, status, jobs, exact in rows}
    assert len(counts) == len(rows)
    return counts


def by_queue(connection: psycopg.Connection[Any]) -> dict[str, tuple[Any, ...]]:
    rows = connection.execute(
        "SELECT queue, ready_jobs, oldest_ready_at, oldest_ready_age_seconds, expired_leases FROM goqueue.queue_metrics"
    ).fetchall()
    assert len({queue for queue, *_ in rows}) == len(rows)
    return {queue: tuple(rest) for queue, *rest in rows}


@pytest.fixture
def monitor(goqueue_connection: psycopg.Connection[Any]) -> Iterator[str]:
    """A role created as docs/metrics.md describes, for one test."""
    name = f"goqueue_monitor_{secrets.token_hex(6)}"
    goqueue_connection.execute(GRANTS.replace("goqueue_monitor", name))
    yield name
    goqueue_connection.execute(f"RESET ROLE; DROP OWNED BY {name}; DROP ROLE {name}")


def test_without_jobs_there_are_no_rows(goqueue_connection: psycopg.Connection[Any]) -> None:
    assert by_status(goqueue_connection) == by_queue(goqueue_connection) == {}


def test_jobs_are_counted_by_queue_and_status(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    expected = {"a": [3, 1, 2, 0, 1], "b": [0, 0, 0, 2, 0]}
    for queue, counts in expected.items():
        for status, count in zip(JobStatus, counts, strict=True):
            for number in range(count):
                job = goqueue_store.create_job(NewJob(job_type=f"t{number}", queue=queue))
                goqueue_store.update_job(job.id, JobUpdate(status=status))
    assert by_status(goqueue_connection) == {
        (queue, str(status)): (count, True)
        for queue, counts in expected.items()
        for status, count in zip(JobStatus, counts, strict=True)
    }


def test_more_than_a_thousand_are_an_estimate(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", queue="full") for _ in range(1000))
    goqueue_store.create_jobs(NewJob(job_type=f"t{number % 3}", queue="over") for number in range(4500))
    goqueue_store.create_job(NewJob(job_type="t", queue="over", priority=1, delay=HOUR))
    counts = by_status(goqueue_connection)
    assert counts["full", "pending"] == (1000, True)
    jobs, exact = counts["over", "pending"]
    assert not exact
    assert 3000 < jobs < 6000
    assert [by_queue(goqueue_connection)[queue][0] for queue in ("full", "over")] == [1000, 1001]


def test_a_due_job_is_ready_and_its_age_is_shown(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    [(now,)] = goqueue_connection.execute("SELECT now()").fetchall()
    for priority, hours in ((-1, 1), (0, 3), (1, 2), (1, 2), (2, -5), (0, -1)):
        goqueue_store.create_job(NewJob(job_type="t", queue="mail", priority=priority, scheduled_at=now - HOUR * hours))
    goqueue_store.create_job(NewJob(job_type="t", queue="later", delay=HOUR))
    goqueue_store.create_job(NewJob(job_type="t", queue="done"))
    goqueue_store.complete_jobs(goqueue_store.claim_jobs("done", "w1"))
    metrics = by_queue(goqueue_connection)
    assert metrics["later"] == metrics["done"] == (0, None, 0, 0)
    ready, oldest_at, age, expired = metrics["mail"]
    assert (ready, oldest_at, expired) == (4, now - 3 * HOUR, 0)
    assert 3 * 3600 <= age < 4 * 3600


def test_expired_leases_are_counted(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(3))
    jobs = goqueue_store.claim_jobs("default", "w1", 3)
    goqueue_connection.execute(
        "UPDATE goqueue.jobs SET lease_expires_at = now() - interval '1 s' WHERE id = ANY(%s)",
        [[job.id for job in jobs[:2]]],
    )
    assert by_queue(goqueue_connection) == {"default": (0, None, 0, 2)}
    goqueue_store.rescue_jobs()
    ready, *_, expired = by_queue(goqueue_connection)["default"]
    assert (ready, expired) == (2, 0)


def test_infinite_times_written_manually_are_read(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", queue=queue) for queue in ("always", "never"))
    for queue, time in (("always", "-infinity"), ("never", "infinity")):
        goqueue_connection.execute("UPDATE goqueue.jobs SET scheduled_at = %s WHERE queue = %s", [time, queue])
    metrics = by_queue(goqueue_connection)
    assert metrics["never"] == (0, None, 0, 0)
    assert metrics["always"][0] == 1
    assert metrics["always"][2] > 6e10


def test_names_of_queues_that_need_quoting_are_returned(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    names = ['a,"b"', "{}", "NULL", "\\", " ", "ü'"]
    goqueue_store.create_jobs(NewJob(job_type=name, queue=name) for name in names)
    assert {queue: ready for queue, (ready, *_) in by_queue(goqueue_connection).items()} == dict.fromkeys(names, 1)
    assert sum(jobs for jobs, _ in by_status(goqueue_connection).values()) == len(names)


def test_the_program_and_the_views_return_the_same(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", queue=queue) for queue in "aab")
    goqueue_store.cancel_jobs(JobFilter(queue="b"))
    assert {
        (entry.queue, str(status)): (int(count), count.exact)
        for entry in goqueue_store.queue_stats()
        for status, count in entry.counts.items()
    } == by_status(goqueue_connection)


def test_a_role_without_other_rights_can_read_the_views(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], monitor: str
) -> None:
    # Enough jobs that the sample is used.
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(1002))
    goqueue_connection.execute(f"SET ROLE {monitor}")
    assert by_status(goqueue_connection)["default", "pending"][0] > 1000
    assert by_queue(goqueue_connection)["default"][0] == 1001
    for relation in ("jobs", "job_failures"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            goqueue_connection.execute(sql.SQL("SELECT FROM goqueue.{}").format(sql.Identifier(relation)))


def test_a_dump_can_be_restored(goqueue_connection: psycopg.Connection[Any], goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    before = by_status(goqueue_connection)
    texts = {}
    for view in ("queue_metrics", "queue_status_metrics", "pending_metrics"):
        [(texts[view],)] = goqueue_connection.execute(f"SELECT pg_get_viewdef('goqueue.{view}'::regclass)").fetchall()
        goqueue_connection.execute(f"DROP VIEW goqueue.{view}")
    for view, text in reversed(texts.items()):
        goqueue_connection.execute(f"CREATE VIEW goqueue.{view} AS {text}")
    assert by_status(goqueue_connection) == before
    assert by_queue(goqueue_connection)["default"][0] == 1


def rows_of(connection: psycopg.Connection[Any], query: str) -> list[dict[str, Any]]:
    cursor = connection.execute(query)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def test_the_collector_for_sql_exporter_fits_the_views(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], monitor: str
) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    goqueue_connection.execute(f"SET ROLE {monitor}")
    assert set(SQL_EXPORTER) == {"collector_name", "min_interval", "metrics", "queries"}
    results = {query["query_name"]: rows_of(goqueue_connection, query["query"]) for query in SQL_EXPORTER["queries"]}
    for metric in SQL_EXPORTER["metrics"]:
        assert re.fullmatch(r"goqueue_[a-z_]+", metric["metric_name"])
        assert metric["type"] == "gauge"
        assert metric["help"]
        rows = results[metric["query_ref"]]
        [value] = metric["values"]  # several values would become a label
        labels = metric["key_labels"]
        assert rows
        for row in rows:
            assert {type(row[label]) for label in labels} == {str}
            assert type(row[value]) in (int, float)
        assert len({tuple(row[label] for label in labels) for row in rows}) == len(rows)


def test_the_query_of_several_schemas_keeps_them_apart(empty: str) -> None:
    for schema in ("tenant_1", "tenant_2"):
        migrate(empty, schema=schema)
        with PostgresStorage.open(DatabaseConfig(url=empty, schema=schema)) as store:
            store.create_job(NewJob(job_type="t", queue="mail"))
    with psycopg.connect(empty) as connection:
        rows = rows_of(connection, SEVERAL)
    assert [(row["schema"], row["queue"], row["ready_jobs"]) for row in rows] == [
        ("tenant_1", "mail", 1),
        ("tenant_2", "mail", 1),
    ]
    [metric] = [each for each in SQL_EXPORTER["queries"] if each["query_name"] == "goqueue_queue"]
    with psycopg.connect(empty) as connection:
        documented = rows_of(connection, metric["query"].replace("goqueue.", "tenant_1."))
    assert [set(row) | {"schema"} for row in documented] == [set(rows[0])]


def test_the_queries_for_postgres_exporter_fit_the_views(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], monitor: str
) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    goqueue_connection.execute(f"SET ROLE {monitor}")
    for query in POSTGRES_EXPORTER.values():
        rows = rows_of(goqueue_connection, query["query"])
        usages = {name: column["usage"] for metric in query["metrics"] for name, column in metric.items()}
        assert rows
        for row in rows:
            assert list(row) == list(usages)
            for name, value in row.items():
                assert type(value) in {"LABEL": (str,), "GAUGE": (int, float)}[usages[name]]
