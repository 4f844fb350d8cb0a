"""A client of this release on a schema changed by a later one: known things work, unknown ones are named."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import (
    CorruptJobError,
    DuplicateJobError,
    InvalidFilterError,
    JobFilter,
    JobStateError,
    JobStatus,
    JobUpdate,
    NewJob,
    PostgresStorage,
    Storage,
)

SOMEDAY = timedelta(days=1)


@pytest.fixture
def store(store: Storage, goqueue_connection: psycopg.Connection[Any]) -> Iterator[Storage]:
    """Each kind of store, opened with its statements prepared before the schema was changed."""
    for _ in range(3):
        job = store.create_job(NewJob(job_type="t", queue="before"))
        store.create_jobs([NewJob(job_type="t", queue="before")])
        store.list_jobs()
        store.count_jobs()
        store.queue_stats()
        store.update_job(job.id, JobUpdate(priority=1))
        store.complete_jobs(store.claim_jobs("before", "w", limit=2))
    goqueue_connection.execute("TRUNCATE goqueue.jobs CASCADE")
    return store


class TestAStatusThatWasAdded:
    @pytest.fixture
    def paused(self, store: Storage, goqueue_connection: psycopg.Connection[Any]) -> NewJob:
        """One of three jobs that the later release has paused."""
        jobs = [NewJob(job_type="t", idempotency_key=str(number)) for number in range(3)]
        store.create_jobs(jobs)
        goqueue_connection.execute("ALTER TYPE goqueue.job_status ADD VALUE 'paused' BEFORE 'running'")
        goqueue_connection.execute("UPDATE goqueue.jobs SET status = 'paused' WHERE id = %s", [jobs[1].id])
        return jobs[1]

    def test_an_unknown_status_hides_no_other_job_of_a_page(self, store: Storage, paused: NewJob) -> None:
        page = store.list_jobs()
        assert len(page.jobs) == 2
        assert list(page.unreadable) == [paused.id]
        assert "its status 'paused' is not known to this version of goqueue" in page.unreadable[paused.id]
        assert len(store.list_jobs(JobFilter(status="pending")).jobs) == 2

    def test_an_unknown_status_is_named_when_the_job_is_read(self, store: Storage, paused: NewJob) -> None:
        for call in (
            lambda: store.get_job(paused.id),
            lambda: store.get_jobs([paused.id]),
            lambda: store.get_job_by_idempotency_key("1"),
            lambda: store.get_or_create_job(NewJob(job_type="t", idempotency_key="1")),
        ):
            with pytest.raises(CorruptJobError, match="'paused'") as error:
                call()
            assert error.value.job_id == paused.id

    def test_a_job_of_an_unknown_status_is_not_replaced(self, store: Storage, paused: NewJob) -> None:
        with pytest.raises(DuplicateJobError, match="is paused; only a pending job can be replaced") as error:
            store.replace_pending_job(NewJob(job_type="t", idempotency_key="1"))
        assert error.value.job_id == paused.id

    def test_an_unknown_status_does_not_affect_claims(self, store: Storage, paused: NewJob) -> None:
        held = store.claim_jobs("default", "w", limit=5)
        assert len(held) == 2
        store.complete_job(held[0])
        store.fail_job(held[1], "e", retry_in=timedelta(0))
        assert len(store.claim_jobs("default", "w", limit=5)) == 1

    def test_jobs_of_an_unknown_status_stay_as_they_are(
        self, store: Storage, paused: NewJob, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        assert store.cancel_jobs(JobFilter(queue="default")) == 2
        assert store.retry_jobs([paused.id]) == 0
        assert store.reschedule_jobs([paused.id], delay=SOMEDAY) == 0
        assert store.change_jobs([paused.id], priority=1) == 0
        assert store.prune_jobs(timedelta(0)) == 2
        select = "SELECT status::text FROM goqueue.jobs"
        assert goqueue_connection.execute(select).fetchall() == [("paused",)]
        store.delete_job(paused.id)

    def test_counts_and_statistics_are_those_of_the_known_ones(self, store: Storage, paused: NewJob) -> None:
        [stats] = store.queue_stats()
        assert set(stats.counts) == set(JobStatus)
        assert stats.counts[JobStatus.PENDING] == 2
        assert store.count_jobs() == 3
        assert store.count_jobs(JobFilter(status="pending")) == 2
        with pytest.raises(InvalidFilterError, match="status must be one of pending, running"):
            JobFilter(status="paused")

    def test_an_illegal_change_of_an_unknown_status_is_rejected(self, store: Storage, paused: NewJob) -> None:
        with pytest.raises(JobStateError, match="is paused and can't become completed"):
            store.update_job(paused.id, JobUpdate(status=JobStatus.COMPLETED))


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE goqueue.jobs ADD COLUMN tenant text",
        "ALTER TABLE goqueue.jobs ADD COLUMN tenant text NOT NULL DEFAULT 'none'",
        "ALTER TABLE goqueue.jobs ADD COLUMN shard integer GENERATED ALWAYS AS (attempts % 7) STORED",
        "ALTER TABLE goqueue.job_failures ADD COLUMN host text NOT NULL DEFAULT ''",
        """
        DO $$
        BEGIN
            EXECUTE 'CREATE OR REPLACE VIEW goqueue.queue_status_metrics AS SELECT d.*, 1 AS added FROM ('
                || rtrim(pg_get_viewdef('goqueue.queue_status_metrics'::regclass), ';') || ') AS d';
            EXECUTE 'CREATE OR REPLACE VIEW goqueue.queue_metrics AS SELECT d.*, 1 AS added FROM ('
                || rtrim(pg_get_viewdef('goqueue.queue_metrics'::regclass), ';') || ') AS d';
        END
        $$
        """,
        "CREATE TABLE goqueue.tenants (id bigint PRIMARY KEY)",
        "CREATE INDEX ON goqueue.jobs (job_type)",
    ],
    ids=["column", "not null", "generated", "failures", "views", "table", "index"],
)
def test_added_columns_tables_and_types_change_nothing(
    change: str, store: Storage, goqueue_connection: psycopg.Connection[Any], goqueue_database: str
) -> None:
    goqueue_connection.execute(change.encode())
    with PostgresStorage.open(goqueue_database) as fresh:
        for used in (store, fresh):
            one = used.create_job(NewJob(job_type="t", idempotency_key="k"))
            assert used.get_or_create_job(NewJob(job_type="t", idempotency_key="k")) == (one, False)
            [(second, _)] = used.create_jobs([NewJob(job_type="t")])
            assert used.replace_pending_job(NewJob(job_type="t", idempotency_key="k", priority=5)).priority == 5
            assert used.update_job(one.id, JobUpdate(priority=3)).priority == 3
            assert {job.id for job in used.list_jobs().jobs} == {one.id, second}
            assert used.count_jobs() == 2
            assert [stats.queue for stats in used.queue_stats()] == ["default"]
            first, last = used.claim_jobs("default", "w", limit=2)
            used.heartbeat_jobs([first, last])
            used.fail_job(first, "e")
            assert [failure.error for failure in used.list_failures(first.id)] == ["e"]
            assert used.complete_and_claim([last], "default", "w") == []
            assert used.cancel_jobs(first.id) == 1
            assert used.retry_jobs(first.id) == 1
            assert used.reschedule_jobs(first.id, delay=SOMEDAY) == 1
            assert used.change_jobs(first.id, priority=1) == 1
            assert used.list_job_types() == ["t"]
            assert used.prune_jobs(timedelta(0), queues="default") == 1
            used.delete_job(first.id)
