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
    deadline = time.monotonic() + 60
    known = "SELECT reltuples FROM pg_class WHERE oid = 'goqueue.jobs'::regclass"
    while size > 60 and admin.execute(known).fetchone()[0] < size * 0.9:  # type: ignore[index]
        assert time.monotonic() < deadline, "autovacuum has not analyzed the table"
        time.sleep(0.2)


def test_dead_rows_whose_index_entries_vacuum_has_left_are_counted(admin: psycopg.Connection[Any]) -> None:
    # Vacuum leaves the indexes alone if less than 2 % of the pages have dead rows. These are about 1.7 %.
    size, gone = 1_200_000, 21_000
    admin.execute(ADD, [size])
    until_analyzed(admin, size)
    admin.execute(
        "DELETE FROM goqueue.jobs WHERE ctid = ANY(ARRAY(SELECT ctid FROM goqueue.jobs ORDER BY ctid LIMIT %s))", [gone]
    )
    deleted_at = admin.execute("SELECT clock_timestamp()").fetchone()[0]  # type: ignore[index]
    # Vacuum reports none of them, and ANALYZE all.
    state = (
        "SELECT last_autovacuum > %s AND last_autoanalyze >= last_autovacuum AND n_dead_tup > 0.9 * %s "
        "FROM pg_stat_user_tables WHERE relname = 'jobs'"
    )
    deadline = time.monotonic() + 60
    while admin.execute(state, [deleted_at, gone]).fetchone() != (True,):
        assert time.monotonic() < deadline, "autovacuum has not counted them"
        time.sleep(0.2)
