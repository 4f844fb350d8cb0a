"""Autovacuum of a growing table. Its ANALYZE renews cached plans and counts dead rows, without a planner setting."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import JobFilter, NewJob, PostgresStorage
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer
from tests.plans import kept_plans

ADD = """
INSERT INTO goqueue.jobs (queue, job_type, payload, status, completed_at)
SELECT
    'q' || g %% 4, 't' || g %% 3, '{}',
    (CASE WHEN g %% 2 = 0 THEN 'pending' ELSE 'completed' END)::goqueue.job_status,
    CASE WHEN g %% 2 <> 0 THEN now() END
FROM generate_series(1, %s - (SELECT count(*) FROM goqueue.jobs)) AS g
"""


@pytest.fixture(scope="module")
def admin() -> Iterator[psycopg.Connection[Any]]:
    """A server whose autovacuum runs every second; elsewhere, every minute."""
    with EmbeddedServer(settings={"autovacuum_naptime": "1s", "max_wal_size": "4GB"}, durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # faster without triggers
            yield connection


def use(store: PostgresStorage) -> None:
    """Run the statements of a job's life."""
    store.create_job(NewJob(job_type="t"))
    one, two, three, four, five = store.claim_jobs(["q0", "q1"], "w", 5)
    store.heartbeat_jobs([one, two])
    store.complete_jobs([one])
    store.complete_and_claim([two], "none", "w")
    store.fail_job(three, "e", retry_in=timedelta(0))
    store.release_jobs([four, five])
    store.get_job(one.id)
    store.get_jobs([one.id, two.id])
    store.list_jobs(JobFilter(queue="q1"), limit=20)
    store.list_jobs(JobFilter(status="completed"), limit=20)
    store.list_jobs(limit=20)
    store.cancel_jobs([four.id])
    store.retry_jobs([four.id])
    store.next_job_at(["q0"])
    store.rescue_jobs()
    store.prune_jobs(timedelta(days=1))
    store.prune_jobs(timedelta(days=1), queues="q1")
    store.change_jobs([one.id, five.id], priority=0)
    store.delete_jobs([three.id])
    store.list_jobs(JobFilter(locked_by="w"), limit=20)
    store.list_workers()
    store.list_job_types()


def test_cached_plans_follow_a_table_from_sixty_jobs_to_a_million(admin: psycopg.Connection[Any]) -> None:
    with psycopg.connect(admin.info.dsn, autocommit=True, prepare_threshold=0) as connection:
        # A caller's connection, without planner settings. Like a pool's, it plans once.
        connection.execute("SET plan_cache_mode = force_generic_plan")
        store = PostgresStorage.bound_to(connection)
        for size in (60, 30_000, 1_000_000):
            admin.execute(ADD, [size])
            use(store)
            until_analyzed(admin, size)
            use(store)
            if size > 60:
                plans = kept_plans(connection)
                assert len(plans) > 12
                assert [plan for plan in plans if "Seq Scan on jobs" in plan[1]] == []
        runs = "SELECT max(generic_plans) FROM pg_prepared_statements WHERE statement LIKE '%/* goqueue:claim_jobs */%'"
        assert connection.execute(runs).fetchone()[0] >= 6, "the statement was prepared again"  # type: ignore[index]


def until_analyzed(admin: psycopg.Connection[Any], size: int) -> None:
    """Wait until autovacuum has analyzed the table at about this size."""
    if size > 60:
        until(admin, f"(SELECT reltuples FROM pg_class WHERE oid = 'goqueue.jobs'::regclass) >= {size * 0.9}")


def test_dead_rows_whose_index_entries_vacuum_has_left_are_counted(admin: psycopg.Connection[Any]) -> None:
    # Vacuum leaves the indexes alone if less than 2 % of the pages have dead rows. These are about 1.5 %. As they are
    # fewer than autovacuum_vacuum_threshold, no second vacuum follows, which would report none again.
    gone = 3000
    dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'goqueue.jobs'::regclass"
    admin.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = false)")
    admin.execute("TRUNCATE goqueue.jobs")
    admin.execute(ADD, [200_000])
    admin.execute("VACUUM (ANALYZE) goqueue.jobs")
    admin.execute(
        "DELETE FROM goqueue.jobs WHERE ctid = ANY(ARRAY(SELECT ctid FROM goqueue.jobs ORDER BY ctid LIMIT %s))", [gone]
    )
    until(admin, f"({dead}) = {gone}")
    # Again, if another transaction still saw the rows.
    until(admin, f"({dead}) = 0", first="VACUUM goqueue.jobs")
    admin.execute("ALTER TABLE goqueue.jobs RESET (autovacuum_enabled)")
    until(admin, f"({dead}) = {gone}")


def until(admin: psycopg.Connection[Any], condition: str, first: str = "") -> None:
    """Wait until the condition is true. Run the first statement before each look."""
    deadline = time.monotonic() + 60
    while admin.execute(first.encode()) and admin.execute(f"SELECT {condition}".encode()).fetchone() != (True,):
        assert time.monotonic() < deadline, condition
        time.sleep(0.2)
