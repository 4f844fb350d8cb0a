"""The requirements for every storage backend for workers and operators: claims, leases, retries, statistics; one
behaviour per test. The `store` is conftest's.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec.structs import replace

from goqueue import (
    Backoff,
    CorruptJobError,
    DatabaseConfig,
    DuplicateJobError,
    InvalidCursorError,
    InvalidFilterError,
    InvalidJobError,
    Job,
    JobFilter,
    JobNotFoundError,
    JobStateError,
    JobStatus,
    JobUpdate,
    Lease,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    Storage,
    WorkerStats,
)
from goqueue.postgres.claim_positions import ClaimPositions, positions_of

ZERO = timedelta(0)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
EXACT = Backoff(base=SECOND, jitter=0)

PENDING, RUNNING, COMPLETED, DEAD, CANCELLED = JobStatus


@pytest.fixture
def sql(goqueue_connection: psycopg.Connection[Any]) -> Callable[..., Any]:
    return goqueue_connection.execute


@pytest.fixture
def other(goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session's connection. Its transaction stays open until it is rolled back."""
    with psycopg.connect(goqueue_database) as connection:
        yield connection
        connection.rollback()


def fill(store: Storage, count: int, **fields: Any) -> list[UUID]:
    return [job_id for job_id, _ in store.create_jobs(NewJob(job_type="t", **fields) for _ in range(count))]


def claim(
    store: Storage, limit: int = 1, *, lease: timedelta = HOUR, worker: str = "w1", queue: str = "default"
) -> Any:
    jobs = store.claim_jobs(queue, worker, limit, lease)
    return jobs if limit > 1 else jobs[0]


def claimed(store: Storage, **fields: Any) -> Job:
    """Create a job and claim it."""
    job_id = store.create_job(NewJob(job_type="t", **fields)).id
    job: Job = claim(store, queue=fields.get("queue", "default"))
    assert job.id == job_id
    return job


def expire(sql: Callable[..., Any], *jobs: Job) -> None:
    sql(
        "UPDATE goqueue.jobs SET lease_expires_at = now() - interval '1 s' WHERE id = ANY(%s)",
        [[job.id for job in jobs]],
    )


class TestClaim:
    def test_a_claim_sets_the_holder_and_the_end_of_the_lease(self, store: Storage) -> None:
        new = store.create_job(NewJob(job_type="t", payload={"a": [1]}, idempotency_key="k"))
        [job] = store.claim_jobs("default", "w1", lease=MINUTE)
        assert job == store.get_job(new.id)
        assert (job.status, job.locked_by, job.attempts, job.lease_token) == (RUNNING, "w1", 1, 1)
        assert job.locked_at is not None
        assert job.locked_at == job.started_at == job.updated_at
        assert job.lease_expires_at == job.locked_at + MINUTE
        for name in ("id", "queue", "job_type", "payload", "priority", "scheduled_at", "created_at", "idempotency_key"):
            assert getattr(job, name) == getattr(new, name), name

    def test_by_priority_then_time_then_id_over_all_the_queues(self, store: Storage) -> None:
        early, late = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)
        jobs = [
            NewJob(job_type="t", queue=queue, priority=priority, scheduled_at=at)
            for queue in ("b", "a", "c")
            for priority in (1, -1, 0)
            for at in (late, early, early)
        ]
        store.create_jobs(jobs)
        expected = [job.id for job in sorted(jobs, key=lambda job: (job.priority, job.scheduled_at, job.id))]
        first = store.claim_jobs(["c", "a", "b"], "w1", 10)
        assert [job.id for job in first] == expected[:10]
        assert [claim_one.id for _ in range(5) for claim_one in store.claim_jobs({"a", "b", "c"}, "w1")] == expected[
            10:15
        ]
        assert [job.id for job in store.claim_jobs(("a", "b", "c", "a"), "w1", 1000)] == expected[15:]
        assert store.claim_jobs(["a", "b", "c"], "w1", 10) == []

    def test_a_job_that_is_not_due_waits(self, store: Storage, sql: Any) -> None:
        store.create_job(NewJob(job_type="t", delay=HOUR, priority=-5))
        assert store.claim_jobs("default", "w1", 10) == []
        due = store.create_job(NewJob(job_type="t"))
        assert [job.id for job in store.claim_jobs("default", "w1", 10)] == [due.id]
        sql("UPDATE goqueue.jobs SET scheduled_at = now()")
        assert claim(store).priority == -5

    def test_no_more_jobs_than_the_limit_are_claimed(self, store: Storage) -> None:
        fill(store, 5)
        assert len(claim(store, 2)) == 2
        assert len(claim(store, 1000)) == 3

    def test_other_queues_are_left_alone(self, store: Storage) -> None:
        ids = fill(store, 2, queue="other")
        fill(store, 1)
        assert len(claim(store, 10)) == 1
        assert store.claim_jobs("nope", "w1") == []
        assert {job.status for job in store.get_jobs(ids)} == {PENDING}

    @pytest.mark.parametrize("status", [RUNNING, COMPLETED, DEAD, CANCELLED])
    def test_only_pending_jobs_are_claimed(self, store: Storage, status: JobStatus) -> None:
        job = store.create_job(NewJob(job_type="t"))
        store.update_job(job.id, JobUpdate(status=status))
        assert store.claim_jobs("default", "w1", 10) == []

    def test_claims_at_once_share_no_job(self, store: Storage, goqueue_database: str, goqueue_schema: str) -> None:
        fill(store, 300)
        fill(store, 300, priority=1)
        config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema, pool_min_size=4)
        with PostgresStorage.open(config) as shared, ThreadPoolExecutor(4) as threads:

            def work(number: int) -> list[UUID]:
                mine: list[UUID] = []
                while jobs := shared.claim_jobs("default", f"w{number}", 7):
                    assert {job.locked_by for job in jobs} == {f"w{number}"}
                    mine += [job.id for job in jobs]
                return mine

            taken = [job_id for ids in threads.map(work, range(4)) for job_id in ids]
        assert len(taken) == len(set(taken)) == 600
        assert store.claim_jobs("default", "w1") == []

    def test_jobs_that_others_have_locked_are_skipped(self, store: Storage, other: Any) -> None:
        ids = fill(store, 5)
        other.execute("SELECT FROM goqueue.jobs WHERE id = ANY(%s) FOR UPDATE", [ids[:3]])
        assert [job.id for job in claim(store, 10)] == ids[3:]
        assert store.claim_jobs("default", "w1") == []
        other.rollback()
        assert [job.id for job in claim(store, 10)] == ids[:3]

    @pytest.mark.parametrize("limit", [1, 3])
    def test_jobs_behind_a_locked_lane_are_claimed(self, store: Storage, other: Any, limit: int) -> None:
        locked = fill(store, 3, priority=-1) + fill(store, 2, queue="b", priority=0)
        free = fill(store, 3, queue="a", priority=5)
        other.execute("SELECT FROM goqueue.jobs WHERE id = ANY(%s) FOR UPDATE", [locked])
        got = [job.id for _ in range(4) for job in store.claim_jobs(["default", "a", "b"], "w1", limit)]
        assert sorted(got) == free

    def test_a_claim_in_a_transaction_that_is_rolled_back_claims_nothing(
        self, store: Storage, other: Any, goqueue_schema: str
    ) -> None:
        job_id = fill(store, 1)[0]
        assert claim(PostgresStorage.bound_to(other, schema=goqueue_schema)).id == job_id
        assert store.claim_jobs("default", "w1") == []
        other.rollback()
        assert (claim(store).id, store.get_job(job_id).lease_token) == (job_id, 1)

    def test_between_queues_of_one_priority_the_lane_that_has_waited_longest_comes_first(self, store: Storage) -> None:
        past = datetime.now(UTC) - HOUR
        newer = [
            *fill(store, 2, queue="a", scheduled_at=past),
            *fill(store, 1, queue="a", scheduled_at=past + 3 * MINUTE),
        ]
        older = fill(store, 2, queue="b", scheduled_at=past - MINUTE)
        worse = fill(store, 1, queue="b", priority=1, scheduled_at=past - HOUR)
        taken = [job.id for _ in range(6) for job in store.claim_jobs(["a", "b"], "w1")]
        assert taken == [*older, *newer, *worse]

    @pytest.mark.parametrize("limit", [1, 10])
    def test_a_job_with_an_unreadable_payload_becomes_dead(
        self, store: Storage, sql: Any, caplog: pytest.LogCaptureFixture, limit: int
    ) -> None:
        bad, *good = fill(store, 3)
        sql("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [bad])
        with caplog.at_level(logging.ERROR, "goqueue"):
            assert [job.id for _ in range(3) for job in store.claim_jobs("default", "w1", limit)] == good
        assert [(record.levelname, record.job_id) for record in caplog.records] == [("ERROR", bad)]
        assert "it becomes dead" in caplog.text
        [(status, error)] = sql("SELECT status, last_error FROM goqueue.jobs WHERE id = %s", [bad]).fetchall()
        assert status == "dead"
        assert "its payload can't be read" in error
        [failure] = store.list_failures(bad)
        assert (failure.error, failure.attempt, failure.worker_id) == (error, 1, "w1")

    def test_an_unreadable_payload_does_not_hide_other_jobs_from_lists_and_changes(
        self, store: Storage, sql: Any
    ) -> None:
        bad, *good = fill(store, 5)
        sql("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [bad])
        page = store.list_jobs(JobFilter(queue="default"))
        assert {job.id for job in page.jobs} == set(good)
        assert [(job_id, "payload can't be read" in why) for job_id, why in page.unreadable.items()] == [(bad, True)]
        assert store.reschedule_jobs(JobFilter(queue="default"), delay=MINUTE) == 5
        assert store.cancel_jobs(JobFilter(queue="default")) == 5
        assert store.retry_jobs(JobFilter(status="cancelled")) == 5
        for call in (lambda: store.get_jobs([*good, bad]), lambda: store.get_job(bad)):
            with pytest.raises(CorruptJobError) as caught:
                call()
            assert caught.value.job_id == bad
        assert store.update_job(bad, JobUpdate(payload={})).payload == {}

    def test_an_unreadable_payload_does_not_hide_why_a_job_is_not_changed(self, store: Storage, sql: Any) -> None:
        new = NewJob(job_type="t", idempotency_key="key", unique_key="unique")
        bad = store.create_job(new).id
        other = store.create_job(NewJob(job_type="t", idempotency_key="other", unique_key="other"))
        sql("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [bad])
        for taken in (JobUpdate(idempotency_key="other"), JobUpdate(unique_key="other")):
            with pytest.raises(DuplicateJobError) as caught:
                store.update_job(bad, taken)
            assert caught.value.job_id == other.id
        store.cancel_jobs(bad)
        with pytest.raises(JobStateError, match="is cancelled and can't become running"):
            store.update_job(bad, JobUpdate(status=RUNNING))
        with pytest.raises(DuplicateJobError, match="'key' and is cancelled; only a pending job can be replaced"):
            store.replace_pending_job(NewJob(job_type="t", idempotency_key="key"))

    def test_a_row_elsewhere_that_refers_to_a_job_does_not_hide_it(self, store: Storage, other: Any, sql: Any) -> None:
        [job_id] = fill(store, 1)
        sql("CREATE TABLE orders (job_id uuid REFERENCES goqueue.jobs)")
        other.execute("INSERT INTO orders VALUES (%s)", [job_id])  # not committed
        [job] = store.claim_jobs("default", "w1")
        store.complete_jobs([job])

    def test_infinite_times_written_manually_do_not_stop_a_claim(self, store: Storage, sql: Any) -> None:
        never, always, usual = fill(store, 3)
        sql("UPDATE goqueue.jobs SET scheduled_at = 'infinity', created_at = '-infinity' WHERE id = %s", [never])
        sql("UPDATE goqueue.jobs SET scheduled_at = '-infinity', created_at = 'infinity' WHERE id = %s", [always])
        jobs = claim(store, 10)
        assert [job.id for job in jobs] == [always, usual]
        assert jobs[0].scheduled_at == FIRST
        store.complete_jobs(jobs)

    def test_an_invalid_worker_id_is_rejected(self, store: Storage) -> None:
        fill(store, 1)
        for worker in ["", "x" * 256, "a\0b", "a\ud800b", None, 5, b"w"]:
            with pytest.raises(InvalidJobError, match="worker_id"):
                store.claim_jobs("default", worker)
            with pytest.raises(InvalidJobError, match="worker_id"):
                store.complete_and_claim([], "default", worker)
        assert store.count_jobs(JobFilter(status="pending")) == 1

    def test_invalid_queue_names_are_rejected(self, store: Storage) -> None:
        for queues in [[], (), {}, "", [""], ["x" * 256], ["ok", None], ["a\0"]]:
            for call in (
                lambda queues: store.claim_jobs(queues, "w1"),
                lambda queues: store.complete_and_claim([], queues, "w1"),
                store.next_job_at,
            ):
                with pytest.raises(InvalidJobError, match="queue"):
                    call(queues)

    def test_a_limit_is_from_1_to_1000(self, store: Storage) -> None:
        for limit in [0, -1, 1001, 1.5, "1", None, True]:
            for call in (
                lambda limit: store.claim_jobs("default", "w1", limit),
                lambda limit: store.complete_and_claim([], "default", "w1", limit),
                store.rescue_jobs,
                lambda limit: store.prune_jobs(ZERO, limit=limit),
            ):
                with pytest.raises(InvalidJobError, match="limit must be a whole number from 1 to 1,000"):
                    call(limit)

    def test_an_invalid_lease_time_is_rejected(self, store: Storage) -> None:
        held = claimed(store)
        fill(store, 1)
        for lease in [-SECOND, timedelta(microseconds=-1), 5, None, "1m", timedelta.max]:
            for call in (
                lambda lease: store.claim_jobs("default", "w1", lease=lease),
                lambda lease: store.heartbeat_jobs([held], lease),
                lambda lease: store.complete_and_claim([], "default", "w1", lease=lease),
            ):
                with pytest.raises(InvalidJobError):
                    call(lease)
        assert store.get_job(held.id) == held
        assert store.count_jobs(JobFilter(status="pending")) == 1


class TestHeartbeat:
    def test_a_heartbeat_renews_the_lease_from_now(self, store: Storage) -> None:
        job = claimed(store)
        assert store.heartbeat_jobs([job], 2 * HOUR) is None
        after = store.get_job(job.id)
        assert after.updated_at > job.updated_at
        assert after.lease_expires_at == after.updated_at + 2 * HOUR
        for name in ("status", "locked_by", "locked_at", "lease_token", "attempts", "started_at", "scheduled_at"):
            assert getattr(after, name) == getattr(job, name), name

    def test_a_heartbeat_renews_an_expired_lease_that_was_not_rescued(self, store: Storage, sql: Any) -> None:
        job = claimed(store)
        expire(sql, job)
        store.heartbeat_jobs([Lease(job.id, job.lease_token)])
        assert store.rescue_jobs() == {}

    def test_a_repeated_lease_is_renewed(self, store: Storage) -> None:
        job = claimed(store)
        store.heartbeat_jobs([job, Lease(job.id, 1)])


class TestComplete:
    def test_the_job_is_completed(self, store: Storage) -> None:
        job = claimed(store)
        assert store.complete_job(job) is None
        done = store.get_job(job.id)
        assert (done.status, done.attempts, done.lease_token) == (COMPLETED, 1, 1)
        assert (done.locked_by, done.locked_at, done.lease_expires_at) == (None, None, None)
        assert done.completed_at == done.updated_at
        assert done.started_at == job.started_at

    def test_many_jobs_and_no_jobs_can_be_completed(self, store: Storage) -> None:
        fill(store, 1200)
        jobs = claim(store, 1000) + claim(store, 1000)
        assert store.complete_jobs(iter(jobs)) is None
        assert store.complete_jobs([]) is None
        assert store.count_jobs(JobFilter(status="completed")) == 1200

    def test_a_lease_with_its_id_as_text_completes_the_job(self, store: Storage) -> None:
        first, second = claimed(store), claimed(store)
        store.complete_jobs([Lease(first.id, first.lease_token), Lease(str(second.id), 1)])  # type: ignore[arg-type]
        assert store.count_jobs(JobFilter(status="completed")) == 2

    def test_a_lease_without_an_id_is_rejected(self, store: Storage) -> None:
        job = claimed(store)
        with pytest.raises(InvalidJobError, match="must be a UUID"):
            store.complete_jobs([job, Lease("nonsense", 1)])  # type: ignore[arg-type]
        assert store.get_job(job.id) == job

    def test_a_second_completion_changes_nothing(self, store: Storage) -> None:
        job = claimed(store)
        store.complete_job(job)
        done = store.get_job(job.id)
        store.complete_job(job)
        assert store.complete_and_claim([job, claimed(store)], "none", "w1") == []
        assert store.get_job(job.id) == done

    def test_a_repeated_completion_claims_the_next_jobs(self, store: Storage) -> None:
        first, second = fill(store, 2)
        held = claim(store)
        store.complete_jobs([held])
        [job] = store.complete_and_claim([held], "default", "w1")
        assert (held.id, job.id) == (first, second)

    def test_only_the_lease_that_completed_the_job_can_repeat_the_completion(self, store: Storage, sql: Any) -> None:
        stale = claimed(store)
        expire(sql, stale)
        assert store.rescue_jobs() == {stale.id: PENDING}
        holder = claim(store, worker="w2")
        store.complete_job(holder)
        by_hand = claimed(store)
        expire(sql, by_hand)
        assert store.rescue_jobs() == {by_hand.id: PENDING}
        store.update_job(by_hand.id, JobUpdate(status=COMPLETED))
        kept = claimed(store)
        for leases in ([kept, stale, by_hand], [stale, kept, by_hand]):
            with pytest.raises(LeaseLostError) as caught:
                store.complete_jobs(leases)
            assert set(caught.value.job_ids) == {stale.id, by_hand.id}
            with pytest.raises(LeaseLostError) as caught:
                store.complete_and_claim(leases, "none", "w1")
            assert set(caught.value.job_ids) == {stale.id, by_hand.id}
        store.complete_job(holder)
        with pytest.raises(LeaseLostError):
            store.complete_job(Lease(holder.id, holder.lease_token + 1))

    @pytest.mark.parametrize("settle", ["heartbeat_jobs", "release_jobs", "fail_jobs"])
    def test_a_completed_job_is_not_held_for_anything_else(self, store: Storage, settle: str) -> None:
        job = claimed(store)
        store.complete_job(job)
        done = store.get_job(job.id)
        with pytest.raises(LeaseLostError):
            getattr(store, settle)([(job, "no")] if settle == "fail_jobs" else [job])
        assert store.get_job(job.id) == done


class TestCompleteAndClaim:
    def test_it_completes_and_claims(self, store: Storage) -> None:
        first, second = fill(store, 2)
        held = claim(store)
        [job] = store.complete_and_claim([held], "default", "w2", lease=MINUTE)
        assert (job.id, job.locked_by, job.status) == (second, "w2", RUNNING)
        assert job.locked_at is not None
        assert job.lease_expires_at == job.locked_at + MINUTE
        assert store.get_job(first).status == COMPLETED
        assert store.complete_and_claim([job], ["default", "x"], "w2", 10) == []
        assert store.complete_and_claim([], "default", "w2") == []

    def test_a_lost_lease_completes_the_others_and_claims_none(self, store: Storage) -> None:
        kept, lost = claimed(store), claimed(store)
        waiting = fill(store, 1)[0]
        store.cancel_jobs(lost.id)
        with pytest.raises(LeaseLostError) as caught:
            store.complete_and_claim([lost, kept], "default", "w1")
        assert caught.value.job_ids == (lost.id,)
        assert store.get_job(kept.id).status == COMPLETED
        assert store.get_job(waiting).status == PENDING

    def test_an_invalid_argument_completes_no_job(self, store: Storage) -> None:
        held = claimed(store)
        for arguments in (([], "w"), ("default", ""), ("default", "w", 0), ("default", "w", 1, -SECOND)):
            with pytest.raises(InvalidJobError):
                store.complete_and_claim([held], *arguments)  # type: ignore[arg-type]
            assert store.get_job(held.id) == held, arguments


class TestFail:
    def test_the_job_waits_for_its_next_attempt(self, store: Storage) -> None:
        job = claimed(store)
        assert store.fail_job(job, "TimeoutError: too slow", retry_in=HOUR) == PENDING
        after = store.get_job(job.id)
        assert (after.status, after.attempts, after.last_error) == (PENDING, 1, "TimeoutError: too slow")
        assert (after.locked_by, after.locked_at, after.lease_expires_at, after.completed_at) == (
            None,
            None,
            None,
            None,
        )
        assert after.scheduled_at == after.updated_at + HOUR
        assert (after.started_at, after.lease_token) == (job.started_at, 1)
        assert store.claim_jobs("default", "w1") == []

    def test_a_job_without_an_attempt_left_is_dead(self, store: Storage) -> None:
        job_id = fill(store, 1, max_attempts=2)[0]
        assert store.fail_job(claim(store), "one", retry_in=ZERO) == PENDING
        assert store.fail_job(claim(store), "two", retry_in=ZERO) == DEAD
        job = store.get_job(job_id)
        assert (job.status, job.attempts, job.last_error, job.lease_token) == (DEAD, 2, "two", 2)
        assert job.completed_at == job.updated_at
        assert (job.locked_by, job.locked_at, job.lease_expires_at) == (None, None, None)
        assert store.claim_jobs("default", "w1") == []

    def test_the_history_has_every_failed_attempt(self, store: Storage) -> None:
        job_id = fill(store, 1, max_attempts=3)[0]
        assert store.list_failures(job_id) == []
        holders = []
        for number in range(3):
            holders.append(claim(store, worker=f"w{number}"))
            store.fail_job(holders[-1], f"e{number}", retry_in=ZERO)
        failures = store.list_failures(str(job_id))
        assert [failure.error for failure in failures] == ["e0", "e1", "e2"]
        assert [failure.worker_id for failure in failures] == ["w0", "w1", "w2"]
        assert [failure.attempt for failure in failures] == [1, 2, 3]
        assert [(failure.lease_token, failure.started_at) for failure in failures] == [
            (job.lease_token, job.started_at) for job in holders
        ]
        assert [failure.failed_at for failure in failures] == sorted(failure.failed_at for failure in failures)
        store.retry_jobs(job_id)
        store.fail_job(claim(store), "again")
        assert [failure.attempt for failure in store.list_failures(job_id)] == [1, 2, 3, 1]
        assert store.list_failures(uuid4()) == []

    def test_many_jobs_fail_at_once_each_with_its_error(self, store: Storage) -> None:
        last, more = claimed(store, max_attempts=1), claimed(store)
        statuses = store.fail_jobs(iter([(more, "a"), (last, "b")]), retry_in=ZERO)
        assert statuses == {more.id: PENDING, last.id: DEAD}
        assert [job.last_error for job in store.get_jobs([more.id, last.id])] == ["a", "b"]
        assert store.fail_jobs([]) == {}

    def test_the_same_lease_twice_in_a_call_fails_once(self, store: Storage) -> None:
        job = claimed(store)
        assert store.fail_jobs([(job, "a"), (job, "b")]) == {job.id: PENDING}
        [failure] = store.list_failures(job.id)
        assert failure.error in "ab"

    def test_the_pause_grows_up_to_its_maximum(self, store: Storage) -> None:
        for number, (attempt, backoff, seconds) in enumerate(
            [
                (1, EXACT, 1),
                (2, EXACT, 2),
                (5, EXACT, 16),
                (1, Backoff(base=ZERO, jitter=0), 0),
                (4, Backoff(base=SECOND, factor=1, jitter=0), 1),
                (4, Backoff(base=SECOND, factor=3, maximum=20 * SECOND, jitter=0), 20),
                (4, Backoff(base=SECOND, factor=3, maximum=HOUR, jitter=0), 27),
                (1, Backoff(base=HOUR, maximum=MINUTE, jitter=0), 60),
                (41, Backoff(jitter=0), 6 * 3600),
                (1000, Backoff(jitter=0), 6 * 3600),
                (10_000, Backoff(base=HOUR, factor=100, jitter=0), 6 * 3600),
                (50, Backoff(base=timedelta(days=9999), maximum=timedelta(days=30), jitter=0), 30 * 86400),
            ]
        ):
            queue, most = f"queue {number}", 10_000 if attempt == 1000 else min(attempt + 1, 10_000)
            job_id = fill(store, 1, queue=queue, max_attempts=most)[0]
            store.update_job(job_id, JobUpdate(attempts=min(attempt, 9999) - 1))
            assert store.fail_job(claim(store, queue=queue), "e", backoff=backoff) == PENDING
            job = store.get_job(job_id)
            assert job.scheduled_at - job.updated_at == timedelta(seconds=seconds)

    def test_jitter_lies_within_its_share(self, store: Storage) -> None:
        ids = fill(store, 100)
        held = claim(store, 100)
        store.fail_jobs([(job, "e") for job in held], backoff=Backoff(base=100 * SECOND, jitter=0.5))
        pauses = [(job.scheduled_at - job.updated_at).total_seconds() for job in store.get_jobs(ids)]
        assert min(pauses) >= 100
        assert max(pauses) <= 150
        assert len(set(pauses)) > 50

    def test_errors_with_any_characters_are_stored(self, store: Storage) -> None:
        job = claimed(store)
        store.fail_job(job, "a\0b \ud800 ü " + "x" * 20_000)
        error = store.get_job(job.id).last_error
        assert error is not None
        assert error.startswith("a\N{REPLACEMENT CHARACTER}b ? ü xxx")
        assert (len(error), error[-1]) == (10_000, "…")
        assert store.list_failures(job.id)[0].error == error

    def test_an_empty_error_is_stored(self, store: Storage) -> None:
        job = claimed(store)
        store.fail_job(job, "")
        assert (store.get_job(job.id).last_error, store.list_failures(job.id)[0].error) == ("", "")

    @pytest.mark.parametrize("retry_in", [-SECOND, 5, "1m", timedelta.max])
    def test_an_invalid_retry_delay_is_rejected(self, store: Storage, retry_in: Any) -> None:
        job = claimed(store)
        with pytest.raises(InvalidJobError):
            store.fail_job(job, "e", retry_in=retry_in)
        assert store.get_job(job.id) == job
        assert store.list_failures(job.id) == []

    def test_the_delay_reaches_the_maximum_with_a_factor_near_one(self, store: Storage) -> None:
        slow = Backoff(base=SECOND, factor=1.01, maximum=HOUR, jitter=0)
        for attempts, seconds in ((800, 1.01**799), (5000, 3600)):
            [job_id] = fill(store, 1, max_attempts=10_000, queue=f"q{attempts}")
            store.update_job(job_id, JobUpdate(attempts=attempts - 1))
            store.fail_job(store.claim_jobs(f"q{attempts}", "w1")[0], "e", backoff=slow)
            job = store.get_job(job_id)
            assert (job.scheduled_at - job.updated_at).total_seconds() == pytest.approx(seconds, abs=0.001)

    @pytest.mark.parametrize(
        "fields",
        [{"base": -SECOND}, {"base": 1}, {"maximum": -SECOND}, {"factor": 0.5}, {"factor": 101},
         {"factor": float("nan")}, {"jitter": -0.1}, {"jitter": 1.1}, {"jitter": float("nan")}],
    )  # fmt: skip
    def test_an_invalid_backoff_is_rejected_with_the_reason(self, fields: Any) -> None:
        with pytest.raises(InvalidJobError, match=next(iter(fields))):
            Backoff(**fields)

    def test_failures_left_by_a_manually_deleted_job_do_not_block_a_new_one(self, store: Storage, sql: Any) -> None:
        new = NewJob(job_type="t", max_attempts=1)
        for end in ("fail", "rescue"):
            sql("DELETE FROM goqueue.jobs")
            store.create_job(new)
            held = claim(store)
            if end == "fail":
                store.fail_job(held, "mine")
            else:
                expire(sql, held)
                assert store.rescue_jobs() == {new.id: DEAD}
        [failure] = store.list_failures(new.id)
        assert "lease expired" in failure.error


class TestBury:
    def test_the_jobs_are_dead_at_once_and_their_errors_are_kept(self, store: Storage) -> None:
        one, two = claimed(store), claimed(store, max_attempts=1)
        assert store.bury_jobs([(one, "no such user"), (two, "a\0b")]) is None
        for job, error in zip(
            store.get_jobs([one.id, two.id]), ["no such user", "a\N{REPLACEMENT CHARACTER}b"], strict=True
        ):
            assert (job.status, job.attempts, job.last_error) == (DEAD, 1, error)
            assert job.completed_at == job.updated_at
            assert job.scheduled_at <= job.updated_at
            assert [failure.error for failure in store.list_failures(job.id)] == [error]
        assert store.retry_jobs(one.id) == 1
        assert claim(store).id == one.id

    def test_only_held_jobs_are_buried(self, store: Storage) -> None:
        gone, held = claimed(store), claimed(store)
        store.release_jobs([gone])
        with pytest.raises(LeaseLostError) as caught:
            store.bury_jobs([(gone, "e"), (held, "e")])
        assert caught.value.job_ids == (gone.id,)
        assert [job.status for job in store.get_jobs([gone.id, held.id])] == [PENDING, DEAD]
        with pytest.raises(LeaseLostError):
            store.bury_jobs([(held, "again")])
        assert len(store.list_failures(held.id)) == 1

    def test_no_leases_bury_nothing(self, store: Storage) -> None:
        store.bury_jobs([])


class TestRelease:
    def test_with_a_delay_it_is_due_later_and_the_attempt_does_not_count(self, store: Storage) -> None:
        job = claimed(store)
        store.release_jobs([job], delay=HOUR)
        after = store.get_job(job.id)
        assert (after.status, after.attempts, after.scheduled_at) == (PENDING, 0, after.updated_at + HOUR)
        assert store.claim_jobs("default", "w") == []

    def test_an_invalid_delay_is_rejected(self, store: Storage) -> None:
        job = claimed(store)
        with pytest.raises(InvalidJobError, match="delay"):
            store.release_jobs([job], delay=-SECOND)
        assert store.get_job(job.id) == job

    def test_the_job_waits_as_before_and_the_attempt_does_not_count(self, store: Storage) -> None:
        job = claimed(store, max_attempts=1)
        assert store.release_jobs([job]) is None
        after = store.get_job(job.id)
        assert (after.status, after.attempts, after.scheduled_at) == (PENDING, 0, job.scheduled_at)
        assert (after.locked_by, after.locked_at, after.lease_expires_at) == (None, None, None)
        again = claim(store)
        assert (again.id, again.attempts, again.lease_token) == (job.id, 1, 2)
        assert store.list_failures(job.id) == []

    def test_no_leases_release_nothing(self, store: Storage) -> None:
        store.release_jobs([])

    def test_a_job_set_running_manually_has_no_attempt_to_restore(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        store.release_jobs([store.update_job(job.id, JobUpdate(status=RUNNING))])
        assert store.get_job(job.id).attempts == 0


# The ways in which a holder loses its job.
def _release(store: Storage, job: Job, sql: Any) -> None:
    store.release_jobs([job])


def _fail(store: Storage, job: Job, sql: Any) -> None:
    store.fail_job(job, "e", retry_in=ZERO)


def _rescue(store: Storage, job: Job, sql: Any) -> None:
    expire(sql, job)
    assert store.rescue_jobs() == {job.id: PENDING}


def _cancel_and_retry(store: Storage, job: Job, sql: Any) -> None:
    store.cancel_jobs(job.id)
    store.retry_jobs(job.id)


def _update(store: Storage, job: Job, sql: Any) -> None:
    store.update_job(job.id, JobUpdate(status=PENDING))


# The calls of a holder. A test makes each of them in a queue of its own, named after the call.
HOLDERS_CALLS: dict[str, Callable[[Storage, list[Any]], Any]] = {
    "heartbeat": lambda store, jobs: store.heartbeat_jobs(jobs),
    "complete": lambda store, jobs: store.complete_jobs(jobs),
    "complete_and_claim": lambda store, jobs: store.complete_and_claim(jobs, "none", "w1"),
    "fail": lambda store, jobs: store.fail_jobs([(job, "stale") for job in jobs]),
    "bury": lambda store, jobs: store.bury_jobs([(job, "stale") for job in jobs]),
    "release": lambda store, jobs: store.release_jobs(jobs),
}


class TestLostLeases:
    @pytest.mark.parametrize("lose", [_release, _fail, _rescue, _cancel_and_retry, _update])
    @pytest.mark.parametrize("held_again", [True, False])
    def test_only_the_lost_jobs_are_named_and_left_alone(
        self, store: Storage, sql: Any, lose: Any, held_again: bool
    ) -> None:
        for name, call in HOLDERS_CALLS.items():
            stale = claimed(store, queue=name)
            lose(store, stale, sql)
            if held_again:
                assert claim(store, worker="w2", queue=name).id == stale.id
            kept = claimed(store, queue=f"another {name}")
            before, failures = store.get_job(stale.id), store.list_failures(stale.id)
            with pytest.raises(LeaseLostError, match=str(stale.id)) as caught:
                call(store, [kept, stale, Lease(kept.id, kept.lease_token)])
            assert caught.value.job_ids == (stale.id,)
            assert str(kept.id) not in str(caught.value)
            assert store.get_job(stale.id) == before
            assert store.list_failures(stale.id) == failures
            assert store.get_job(kept.id).updated_at > kept.updated_at

    def test_a_job_set_running_manually_belongs_to_its_new_holder(self, store: Storage) -> None:
        for name, call in HOLDERS_CALLS.items():
            stale = claimed(store, queue=name)
            store.release_jobs([stale])
            by_hand = store.update_job(stale.id, JobUpdate(status=RUNNING, locked_by="me"))
            assert by_hand.lease_token > stale.lease_token
            with pytest.raises(LeaseLostError):
                call(store, [stale])
            assert store.get_job(stale.id) == by_hand
            call(store, [by_hand])

    @pytest.mark.parametrize("status", [COMPLETED, DEAD, CANCELLED])
    def test_a_finished_job_has_no_holder(self, store: Storage, status: JobStatus) -> None:
        for name, call in HOLDERS_CALLS.items():
            job = claimed(store, queue=name)
            after = store.update_job(job.id, JobUpdate(status=status))
            with pytest.raises(LeaseLostError):
                call(store, [job])
            assert store.get_job(job.id) == after

    def test_deleted_unknown_and_invented_leases_are_lost(self, store: Storage) -> None:
        for name, call in HOLDERS_CALLS.items():
            job = claimed(store, queue=name)
            store.delete_job(job.id)
            kept = claimed(store, queue=name)
            made_up = [job, Lease(uuid4(), 1), Lease(kept.id, 0), Lease(kept.id, 2)]
            with pytest.raises(LeaseLostError) as caught:
                call(store, made_up)
            assert list(caught.value.job_ids) == [lease.id for lease in made_up]
            assert list(caught.value.leases) == [(lease.id, lease.lease_token) for lease in made_up]
            assert store.get_job(kept.id) == kept
            assert store.list_failures(job.id) == []

    def test_an_old_token_beside_the_new_one_is_lost(self, store: Storage) -> None:
        for name, call in HOLDERS_CALLS.items():
            stale = claimed(store, queue=name)
            store.release_jobs([stale])
            held = claim(store, queue=name)
            with pytest.raises(LeaseLostError) as caught:
                call(store, [held, stale])
            assert caught.value.job_ids == (stale.id,)
            assert caught.value.leases == ((stale.id, stale.lease_token),)
            assert store.get_job(held.id).updated_at > held.updated_at

    def test_the_message_stays_short(self, store: Storage) -> None:
        with pytest.raises(LeaseLostError, match="and 90 more") as caught:
            store.heartbeat_jobs([Lease(uuid4(), 1) for _ in range(100)])
        assert len(caught.value.job_ids) == 100

    def test_an_expired_lease_holds_until_it_is_rescued(self, store: Storage, sql: Any) -> None:
        job = claimed(store)
        expire(sql, job)
        store.complete_job(job)
        assert store.get_job(job.id).status == COMPLETED


class TestRescue:
    def test_expired_jobs_become_pending_or_dead(self, store: Storage, sql: Any) -> None:
        more, last, held = claimed(store), claimed(store, max_attempts=1), claimed(store)
        expire(sql, more, last)
        assert store.rescue_jobs() == {more.id: PENDING, last.id: DEAD}
        assert store.rescue_jobs() == {}
        waiting, dead = store.get_jobs([more.id, last.id])
        for job in (waiting, dead):
            assert (job.attempts, job.locked_by, job.locked_at, job.lease_expires_at) == (1, None, None, None)
            assert "lease expired" in (job.last_error or "")
            [failure] = store.list_failures(job.id)
            assert (failure.error, failure.attempt, failure.lease_token, failure.worker_id) == (
                job.last_error,
                1,
                1,
                "w1",
            )
            assert failure.started_at == job.started_at
        assert (waiting.status, waiting.scheduled_at, waiting.completed_at) == (PENDING, waiting.updated_at, None)
        assert (dead.status, dead.completed_at) == (DEAD, dead.updated_at)
        assert store.get_job(held.id) == held
        assert claim(store).lease_token == 2

    def test_a_lease_of_zero_expires_at_once(self, store: Storage) -> None:
        fill(store, 1)
        job = claim(store, lease=ZERO)
        assert store.rescue_jobs() == {job.id: PENDING}

    def test_a_job_set_running_manually_has_no_lease_to_expire(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        by_hand = store.update_job(job.id, JobUpdate(status=RUNNING))
        assert by_hand.lease_expires_at is None
        assert store.rescue_jobs() == {}
        assert store.get_job(job.id) == by_hand

    def test_no_more_jobs_than_the_limit_and_no_locked_jobs_are_rescued(
        self, store: Storage, sql: Any, other: Any
    ) -> None:
        fill(store, 5)
        jobs = claim(store, 5)
        expire(sql, *jobs)
        other.execute("SELECT FROM goqueue.jobs WHERE id = %s FOR UPDATE", [jobs[0].id])
        assert len(store.rescue_jobs(limit=3)) == 3
        assert len(store.rescue_jobs(limit=3)) == 1
        other.rollback()
        assert store.rescue_jobs() == {jobs[0].id: PENDING}


def _by_id(ids: list[UUID]) -> Any:
    return ids


def _by_text(ids: list[UUID]) -> Any:
    return (str(job_id) for job_id in [*ids, *ids])


def _by_filter(ids: list[UUID]) -> Any:
    return JobFilter(queue="default")


@pytest.mark.parametrize("given_as", [_by_id, _by_text, _by_filter])
class TestOperators:
    @pytest.fixture
    def ids(self, store: Storage) -> list[UUID]:
        """A job of each status, and one in another queue that must not change."""
        fill(store, 1, queue="another")
        ids = []
        for status in JobStatus:
            [job_id] = fill(store, 1)
            ids.append(store.update_job(job_id, JobUpdate(status=status, attempts=3)).id)
        return ids

    def statuses(self, store: Storage, ids: list[UUID]) -> list[JobStatus]:
        assert store.list_jobs(JobFilter(queue="another")).jobs[0].status == PENDING
        return [job.status for job in store.get_jobs(ids)]

    def test_cancel_ends_pending_and_running_jobs(self, store: Storage, ids: list[UUID], given_as: Any) -> None:
        before = store.get_jobs(ids)
        assert store.cancel_jobs(given_as(ids)) == 2
        after = store.get_jobs(ids)
        assert self.statuses(store, ids) == [CANCELLED, CANCELLED, COMPLETED, DEAD, CANCELLED]
        assert after[2:] == before[2:]
        for job in after[:2]:
            assert (job.completed_at, job.locked_by, job.lease_expires_at) == (job.updated_at, None, None)
        assert store.cancel_jobs(given_as(ids)) == 0

    def test_retry_resets_the_attempts(self, store: Storage, ids: list[UUID], given_as: Any) -> None:
        before = store.get_jobs(ids)
        assert store.retry_jobs(given_as(ids)) == 2
        after = store.get_jobs(ids)
        assert self.statuses(store, ids) == [PENDING, RUNNING, COMPLETED, PENDING, PENDING]
        assert after[:3] == before[:3]
        for job in after[3:]:
            assert (job.attempts, job.completed_at, job.scheduled_at) == (0, None, job.updated_at)
        assert store.retry_jobs(given_as(ids)) == 0

    def test_reschedule_sets_the_time_of_pending_jobs(self, store: Storage, ids: list[UUID], given_as: Any) -> None:
        before = store.get_jobs(ids)
        at = datetime(2040, 1, 1, tzinfo=UTC)
        assert store.reschedule_jobs(given_as(ids), scheduled_at=at) == 1
        assert store.get_job(ids[0]).scheduled_at == at
        assert store.reschedule_jobs(given_as(ids), delay=HOUR) == 1
        job = store.get_job(ids[0])
        assert job.scheduled_at == job.updated_at + HOUR
        assert (job.attempts, job.status) == (3, PENDING)
        assert store.get_jobs(ids[1:]) == before[1:]

    def test_change_sets_the_given_columns_of_jobs_that_are_not_completed(
        self, store: Storage, ids: list[UUID], given_as: Any
    ) -> None:
        before = store.get_jobs(ids)
        for changes in ({"priority": -7, "max_attempts": 9}, {"priority": 0}, {"max_attempts": 25}, {"queue": "moved"}):
            # The last change moves the jobs out of the filter while its pages are read.
            assert store.change_jobs(given_as(ids), **changes) == 4
            after = store.get_jobs(ids)
            for old, new in zip(before, after, strict=True):
                if old.status == COMPLETED:
                    assert new == old
                else:
                    assert new.updated_at > old.updated_at
                    assert new == replace(old, updated_at=new.updated_at, **changes)
            assert self.statuses(store, ids) == list(JobStatus)
            before = after

    def test_change_skips_jobs_with_more_attempts_than_allowed(
        self, store: Storage, ids: list[UUID], given_as: Any
    ) -> None:
        before = store.get_jobs(ids)
        assert store.change_jobs(given_as(ids), max_attempts=2, priority=1) == 0
        assert store.get_jobs(ids) == before
        assert store.change_jobs(given_as(ids), max_attempts=3) == 3  # the pending job would have none left
        assert [job.max_attempts for job in store.get_jobs(ids)] == [25, 3, 25, 3, 3]
        assert store.change_jobs(given_as(ids), max_attempts=4) == 4

    def test_delete_takes_jobs_in_any_status(self, store: Storage, ids: list[UUID], given_as: Any) -> None:
        assert store.delete_jobs(given_as(ids)) == 5
        assert self.statuses(store, ids) == []
        assert store.delete_jobs(given_as(ids)) == 0


class TestOperatorsArguments:
    def test_a_single_id_is_accepted(self, store: Storage) -> None:
        first, second = fill(store, 2)
        assert store.reschedule_jobs(first, delay=HOUR) == 1
        assert store.cancel_jobs(str(first)) == 1
        assert store.retry_jobs(first) == 1
        assert store.change_jobs(first, priority=1) == 1
        assert store.delete_jobs(first) == 1
        assert store.get_job(second).updated_at == store.get_job(second).created_at

    def test_no_ids_and_unknown_ids_change_nothing(self, store: Storage) -> None:
        fill(store, 1)
        for jobs in ([], [uuid4()], JobFilter(queue="nope")):
            assert store.cancel_jobs(jobs) == 0
            assert store.retry_jobs(jobs) == 0
            assert store.reschedule_jobs(jobs, delay=ZERO) == 0
            assert store.change_jobs(jobs, priority=1) == 0
            assert store.delete_jobs(jobs) == 0
        assert store.count_jobs(JobFilter(status="pending")) == 1

    def test_a_filter_of_a_status_without_this_transition_matches_none(self, store: Storage) -> None:
        fill(store, 1)
        assert store.cancel_jobs(JobFilter(status="completed")) == 0
        assert store.retry_jobs(JobFilter(status=["pending", "running"])) == 0
        assert store.reschedule_jobs(JobFilter(status=["dead", "running"]), delay=ZERO) == 0
        assert store.change_jobs(JobFilter(status="completed"), priority=1) == 0
        assert store.delete_jobs(JobFilter(status=["dead", "completed"])) == 0
        assert store.cancel_jobs(JobFilter(status=["pending", "completed"])) == 1
        assert store.change_jobs(JobFilter(status=["cancelled", "completed"]), priority=1) == 1
        assert store.delete_jobs(JobFilter(status=["cancelled", "completed"])) == 1

    def test_a_filter_can_match_more_jobs_than_a_page(self, store: Storage) -> None:
        ids = fill(store, 2300)
        assert store.reschedule_jobs(JobFilter(), delay=HOUR) == 2300
        assert store.cancel_jobs(ids) == 2300
        assert store.retry_jobs(JobFilter(status="cancelled")) == 2300
        assert store.count_jobs(JobFilter(status="pending")) == 2300
        assert store.change_jobs(ids, queue="moved") == 2300
        assert store.delete_jobs(JobFilter(queue="moved")) == 2300
        assert store.count_jobs() == 0

    def test_progress_gets_the_number_of_jobs_after_each_batch(self, store: Storage) -> None:
        ids = fill(store, 1200)
        seen: list[int] = []
        assert store.reschedule_jobs(ids, delay=HOUR, progress=seen.append) == 1200
        assert store.cancel_jobs(JobFilter(), progress=seen.append) == 1200
        assert store.retry_jobs(ids[:3], progress=seen.append) == 3
        assert store.change_jobs([], priority=1, progress=seen.append) == 0
        assert store.delete_jobs(ids, progress=seen.append) == 1200
        assert seen == [1000, 1200, 1000, 1200, 3, 1000, 1200]

    def test_an_error_in_progress_stops_after_a_complete_batch(self, store: Storage) -> None:
        ids = fill(store, 1200)
        with pytest.raises(ZeroDivisionError):
            store.delete_jobs(ids, progress=lambda count: 1 // (count - 1000))
        assert store.count_jobs() == 200

    def test_malformed_ids_are_rejected(self, store: Storage) -> None:
        for bad in ["", "nonsense", ["nonsense"], [None], [5]]:
            for call in (
                store.cancel_jobs,
                store.retry_jobs,
                store.delete_jobs,
                lambda jobs: store.reschedule_jobs(jobs, delay=ZERO),
                lambda jobs: store.change_jobs(jobs, priority=1),
            ):
                with pytest.raises(InvalidJobError, match="must be a UUID"):
                    call(bad)

    def test_a_change_without_a_new_value_is_rejected(self, store: Storage) -> None:
        [job_id] = fill(store, 1)
        before = store.get_job(job_id)
        with pytest.raises(InvalidJobError, match="give queue, priority or max_attempts"):
            store.change_jobs(job_id)
        assert store.get_job(job_id) == before

    def test_either_a_time_or_a_delay_is_required(self, store: Storage) -> None:
        [job_id] = fill(store, 1)
        before = store.get_job(job_id)
        for times in [
            {}, {"delay": ZERO, "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)}, {"delay": -SECOND}, {"delay": 5},
            {"scheduled_at": datetime(2030, 1, 1)}, {"scheduled_at": "2030-01-01"},  # noqa: DTZ001
        ]:  # fmt: skip
            with pytest.raises(InvalidJobError):
                store.reschedule_jobs(job_id, **times)
            assert store.get_job(job_id) == before


class TestReplacePending:
    def test_a_job_with_a_free_key_is_added(self, store: Storage) -> None:
        new = NewJob(job_type="t", idempotency_key="k", payload=1)
        job = store.replace_pending_job(new)
        assert (job.id, job.payload, job) == (new.id, 1, store.get_job(new.id))

    def test_the_pending_job_is_replaced(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k"))
        store.fail_job(claim(store), "e")
        at = datetime(2035, 1, 1, tzinfo=UTC)
        new = NewJob(
            job_type="t2", queue="q2", payload=[2], priority=5, max_attempts=3, scheduled_at=at, idempotency_key="k"
        )
        job = store.replace_pending_job(new)
        assert job == store.get_job(first.id)
        for name in ("job_type", "queue", "payload", "priority", "max_attempts", "scheduled_at", "idempotency_key"):
            assert getattr(job, name) == getattr(new, name), name
        assert (job.status, job.attempts, job.last_error, job.created_at) == (PENDING, 0, None, first.created_at)
        assert job.lease_token == 1
        assert store.count_jobs() == 1

    @pytest.mark.parametrize("status", [RUNNING, COMPLETED, DEAD, CANCELLED])
    def test_a_job_that_is_not_pending_is_not_replaced(self, store: Storage, status: JobStatus) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k"))
        before = store.update_job(first.id, JobUpdate(status=status))
        with pytest.raises(DuplicateJobError) as caught:
            store.replace_pending_job(NewJob(job_type="t", idempotency_key="k"))
        assert (caught.value.job_id, caught.value.idempotency_key) == (first.id, "k")
        assert store.get_job(first.id) == before

    def test_a_job_without_a_key_is_rejected(self, store: Storage) -> None:
        with pytest.raises(InvalidJobError, match="idempotency_key"):
            store.replace_pending_job(NewJob(job_type="t"))


class TestPrune:
    @pytest.fixture
    def ids(self, store: Storage, sql: Any) -> list[UUID]:
        """One job of each status, an hour old, all with a failure in their history; then the same jobs, new."""
        ids = []
        for _age in range(2):
            for status in JobStatus:
                held = claimed(store, priority=-1)
                store.fail_job(held, "e", retry_in=HOUR)
                ids.append(held.id)
                store.update_job(held.id, JobUpdate(status=status))
        sql(
            "UPDATE goqueue.jobs SET created_at = created_at - interval '1 h', "
            "completed_at = completed_at - interval '1 h' WHERE id = ANY(%s)",
            [ids[:5]],
        )
        return ids

    def test_jobs_that_finished_long_ago_are_deleted_with_their_history(self, store: Storage, ids: list[UUID]) -> None:
        assert store.prune_jobs(2 * HOUR) == 0
        assert store.prune_jobs(HOUR / 2) == 3
        left = ids[:2] + ids[5:]
        assert [job.id for job in store.get_jobs(ids)] == left
        assert [job_id for job_id in ids if store.list_failures(job_id)] == left
        assert store.prune_jobs(ZERO) == 3
        assert {job.status for job in store.get_jobs(ids)} == {PENDING, RUNNING}

    def test_only_the_given_statuses_are_pruned(self, store: Storage, ids: list[UUID]) -> None:
        assert store.prune_jobs(ZERO, {"dead"}) == 2  # type: ignore[arg-type]
        assert store.prune_jobs(ZERO, [CANCELLED, CANCELLED]) == 2
        assert store.prune_jobs(ZERO, []) == 0
        assert store.count_jobs(JobFilter(status="completed")) == 2

    def test_the_oldest_jobs_are_pruned_first_up_to_the_limit(self, store: Storage, ids: list[UUID]) -> None:
        old, new = (job.id for job in store.get_jobs(ids) if job.status == DEAD)
        assert store.prune_jobs(ZERO, [DEAD], limit=1) == 1
        assert [job.id for job in store.get_jobs([old, new])] == [new]
        assert [store.prune_jobs(ZERO, [DEAD], limit=1) for _ in range(2)] == [1, 0]
        assert store.prune_jobs(ZERO, [COMPLETED, CANCELLED], limit=3) == 3
        assert store.prune_jobs(ZERO, [COMPLETED], limit=1) + store.prune_jobs(ZERO, [CANCELLED], limit=1) == 1

    def test_an_old_job_that_finished_late_is_kept(self, store: Storage, sql: Any) -> None:
        job = claimed(store)
        store.complete_job(job)
        sql("UPDATE goqueue.jobs SET created_at = created_at - interval '1 year'")
        assert store.prune_jobs(HOUR) == 0

    def test_only_the_given_queues_and_types_are_pruned(self, store: Storage) -> None:
        new = [NewJob(job_type=kind, queue=queue) for queue in ("a", "b", "c") for kind in ("x", "y") for _ in range(2)]
        store.create_jobs(new)
        store.cancel_jobs(JobFilter())

        def left() -> list[tuple[str, str]]:
            found = store.get_jobs(job.id for job in new)
            return sorted({(job.queue, job.job_type) for job in found})

        assert store.prune_jobs(ZERO, queues="nope") == store.prune_jobs(ZERO, job_types="nope") == 0
        assert store.prune_jobs(ZERO, [COMPLETED, DEAD], queues="a") == 0
        assert store.prune_jobs(HOUR, queues="a") == 0
        assert store.prune_jobs(ZERO, queues="a", job_types="x", limit=1) == 1
        assert store.prune_jobs(ZERO, queues="a", job_types="x") == 1
        assert left() == [("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "y")]
        assert store.prune_jobs(ZERO, queues=["c", "a", "c"]) == 6
        assert left() == [("b", "x"), ("b", "y")]
        assert store.prune_jobs(ZERO, job_types=("y", "z")) == 2
        assert left() == [("b", "x")]

    def test_of_a_queue_the_oldest_jobs_are_pruned_first_up_to_the_limit(self, store: Storage) -> None:
        ids = fill(store, 1) + fill(store, 1) + fill(store, 1)
        store.cancel_jobs(ids)
        assert store.prune_jobs(ZERO, queues="default", limit=2) == 2
        assert [job.id for job in store.get_jobs(ids)] == ids[2:]

    def test_unfinished_statuses_are_rejected(self, store: Storage, ids: list[UUID]) -> None:
        for statuses in [[PENDING], [RUNNING, DEAD], ["pending"], ["nonsense"], [None]]:
            with pytest.raises(InvalidJobError):
                store.prune_jobs(ZERO, statuses)
            assert store.count_jobs() == len(ids)

    def test_an_invalid_age_is_rejected(self, store: Storage) -> None:
        for age in [-SECOND, 5, None]:
            with pytest.raises(InvalidJobError, match="older_than"):
                store.prune_jobs(age)


def test_deleting_a_job_deletes_its_history(store: Storage) -> None:
    first, second = claimed(store), claimed(store)
    store.fail_jobs([(first, "a"), (second, "b")])
    store.delete_job(first.id)
    assert store.list_failures(first.id) == []
    assert len(store.list_failures(second.id)) == 1
    with pytest.raises(JobNotFoundError):
        store.delete_job(first.id)


def test_deleting_many_deletes_their_histories_and_ends_their_leases(store: Storage) -> None:
    held = [claimed(store) for _ in range(4)]
    store.fail_jobs([(job, "e") for job in held[:3]], retry_in=HOUR)
    assert store.delete_jobs([held[0].id, held[1].id, held[3].id, uuid4()]) == 3
    assert [len(store.list_failures(job.id)) for job in held] == [0, 0, 1, 0]
    assert store.get_jobs(job.id for job in held) == [store.get_job(held[2].id)]
    with pytest.raises(LeaseLostError):
        store.complete_job(held[3])


class TestNextJobAt:
    def test_it_is_the_earliest_of_all_queues_and_priorities(self, store: Storage) -> None:
        assert store.next_job_at("default") is None
        times = {
            (queue, priority): store.create_job(
                NewJob(job_type="t", queue=queue, priority=priority, delay=HOUR * hours)
            ).scheduled_at
            for queue, priority, hours in [("a", 0, 4), ("a", 1, 3), ("b", -1, 5), ("b", 9, 2), ("c", 0, 1)]
        }
        assert store.next_job_at("a") == times["a", 1]
        assert store.next_job_at(["a", "b"]) == times["b", 9]
        assert store.next_job_at({"b", "c", "nope"}) == times["c", 0]
        assert store.next_job_at(["nope"]) is None

    def test_it_is_past_if_a_job_is_due_and_none_if_all_are_claimed(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert store.next_job_at("default") == job.scheduled_at
        held = claim(store)
        assert store.next_job_at("default") is None
        store.complete_job(held)
        assert store.next_job_at("default") is None

    @pytest.mark.parametrize(("time", "expected"), [("infinity", LAST), ("-infinity", FIRST)])
    def test_an_infinite_time_written_manually_is_read(
        self, store: Storage, sql: Any, time: str, expected: datetime
    ) -> None:
        fill(store, 1)
        sql("UPDATE goqueue.jobs SET scheduled_at = %s", [time])
        assert store.next_job_at("default") == expected


class TestQueueStats:
    def test_without_jobs_there_are_no_statistics(self, store: Storage) -> None:
        assert store.queue_stats() == []

    def test_jobs_are_counted_by_queue_and_status(self, store: Storage) -> None:
        expected = {"a": [3, 1, 2, 0, 1], "b": [0, 0, 0, 2, 0]}
        for queue, counts in expected.items():
            for status, count in zip(JobStatus, counts, strict=True):
                for number in range(count):
                    job = store.create_job(NewJob(job_type=f"t{number}", queue=queue, delay=HOUR))
                    store.update_job(job.id, JobUpdate(status=status))
        stats = store.queue_stats()
        assert {entry.queue: list(entry.counts.values()) for entry in stats} == expected
        assert [entry.queue for entry in stats] == ["a", "b"]
        for entry in stats:
            assert list(entry.counts) == list(JobStatus)
            assert all(count.exact for count in entry.counts.values())
            assert (entry.oldest_ready_age, entry.expired_leases) == (None, 0)

    def test_a_count_beyond_a_thousand_is_marked_as_an_estimate(self, store: Storage) -> None:
        fill(store, 1000, queue="full")
        fill(store, 3600, queue="over")
        store.create_jobs(NewJob(job_type="another", queue="over") for _ in range(401))
        later = fill(store, 3, queue="over", delay=HOUR, priority=1)
        store.cancel_jobs(later)
        full, over = store.queue_stats()
        assert (full.counts[PENDING], full.counts[PENDING].exact) == (1000, True)
        assert not over.counts[PENDING].exact
        assert 3000 < over.counts[PENDING] < 6000
        assert (over.counts[CANCELLED], over.counts[CANCELLED].exact) == (3, True)

    def test_the_oldest_due_job_is_found_behind_a_thousand_of_a_more_urgent_priority(self, store: Storage) -> None:
        now = datetime.now(UTC)
        fill(store, 1001, queue="full", priority=-1)
        fill(store, 1, queue="full", priority=3, scheduled_at=now - 5 * HOUR)
        fill(store, 1, queue="full", priority=7, scheduled_at=now - HOUR)
        fill(store, 1001, queue="later", priority=-1, delay=HOUR)
        full, later = store.queue_stats()
        assert full.oldest_ready_age is not None
        assert 5 * HOUR <= full.oldest_ready_age < 6 * HOUR
        assert later.oldest_ready_age is None

    def test_the_age_of_the_oldest_due_job_is_returned(self, store: Storage) -> None:
        now = datetime.now(UTC)
        for priority, hours in ((-1, 1), (0, 3), (1, 2), (2, -5)):
            store.create_job(NewJob(job_type="t", priority=priority, scheduled_at=now - HOUR * hours))
        store.create_job(NewJob(job_type="t", queue="later", delay=HOUR))
        stats = {entry.queue: entry.oldest_ready_age for entry in store.queue_stats()}
        assert stats["later"] is None
        assert stats["default"] is not None
        assert 3 * HOUR <= stats["default"] < 4 * HOUR
        claim(store, 2)  # the oldest job is among the first two
        [age] = [entry.oldest_ready_age for entry in store.queue_stats() if entry.queue == "default"]
        assert age is not None
        assert 2 * HOUR <= age < 3 * HOUR

    def test_expired_leases_are_counted(self, store: Storage, sql: Any) -> None:
        fill(store, 3)
        jobs = claim(store, 3)
        expire(sql, *jobs[:2])
        [entry] = store.queue_stats()
        assert (entry.expired_leases, entry.counts[RUNNING]) == (2, 3)
        store.rescue_jobs()
        assert store.queue_stats()[0].expired_leases == 0

    def test_infinite_times_written_manually_are_read(self, store: Storage, sql: Any) -> None:
        ids = fill(store, 2)
        sql("UPDATE goqueue.jobs SET scheduled_at = '-infinity' WHERE id = %s", [ids[0]])
        [entry] = store.queue_stats()
        assert entry.counts[PENDING] == 2
        assert entry.oldest_ready_age is not None
        assert entry.oldest_ready_age > timedelta(days=700_000)


class TestWorkers:
    def test_without_running_jobs_there_are_no_workers(self, store: Storage) -> None:
        fill(store, 1)
        assert store.list_workers() == []
        store.complete_job(claim(store))
        assert store.list_workers() == []

    def test_each_worker_is_listed_with_its_jobs_and_leases(self, store: Storage, sql: Any) -> None:
        for queue in ("a", "b"):
            fill(store, 2, queue=queue)
        first = claim(store, worker="w2", queue="a", lease=2 * HOUR)
        second = claim(store, worker="w2", queue="b", lease=HOUR)
        other = claim(store, worker="w10", queue="b", lease=HOUR)
        expire(sql, other)
        store.heartbeat_jobs([first], 3 * HOUR)
        first, second, other = store.get_jobs([first.id, second.id, other.id])
        assert store.list_workers() == [
            WorkerStats("w10", 1, ["b"], other.locked_at, other.updated_at, other.lease_expires_at, 1),
            WorkerStats("w2", 2, ["a", "b"], first.locked_at, first.updated_at, second.lease_expires_at, 0),
        ]

    def test_a_job_set_running_manually_has_no_lease(self, store: Storage) -> None:
        [job_id] = fill(store, 1)
        job = store.update_job(job_id, JobUpdate(status=RUNNING, locked_by="me"))
        assert job.locked_at is not None
        assert store.list_workers() == [WorkerStats("me", 1, ["default"], job.locked_at, job.updated_at, None, 0)]

    def test_infinite_times_written_manually_are_read(self, store: Storage, sql: Any) -> None:
        claimed(store)
        sql("UPDATE goqueue.jobs SET lease_expires_at = 'infinity', locked_at = '-infinity'")
        [worker] = store.list_workers()
        assert (worker.oldest_locked_at, worker.lease_expires_at, worker.expired_leases) == (FIRST, LAST, 0)

    def test_a_filter_by_workers_finds_what_they_hold(self, store: Storage) -> None:
        fill(store, 2, queue="a")
        fill(store, 4, queue="b")
        one, two = claim(store, 2, worker="w1", queue="a")
        three, four = (claim(store, worker=worker, queue="b") for worker in ("w1", "w2"))
        done = claim(store, worker="w1", queue="b")
        store.complete_job(done)

        def listed(**conditions: Any) -> set[UUID]:
            job_filter = JobFilter(**conditions)
            found = [job.id for job in store.list_jobs(job_filter).jobs]
            assert len(found) == store.count_jobs(job_filter)
            return set(found)

        assert listed(locked_by="w1") == {one.id, two.id, three.id}
        assert listed(locked_by=["w2", "w1", "nobody"]) == {one.id, two.id, three.id, four.id}
        assert listed(locked_by="w1", queue="b") == {three.id}
        assert listed(locked_by="w1", status=["running", "pending"], job_type="t") == {one.id, two.id, three.id}
        assert listed(locked_by="w1", status=["pending", "completed"]) == set()
        assert listed(locked_by="nobody") == set()
        first = store.list_jobs(JobFilter(locked_by="w1"), limit=2)
        rest = store.list_jobs(JobFilter(locked_by="w1"), limit=2, cursor=first.next_cursor)
        assert (len(first.jobs), len(rest.jobs), rest.next_cursor) == (2, 1, None)
        with pytest.raises(InvalidCursorError):
            store.list_jobs(JobFilter(locked_by="w2"), cursor=first.next_cursor)
        assert store.change_jobs(JobFilter(locked_by="w1", queue="a"), priority=9) == 2
        assert store.cancel_jobs(JobFilter(locked_by="w1")) == 3
        assert [worker.worker_id for worker in store.list_workers()] == ["w2"]

    @pytest.mark.parametrize("bad", ["", 5, [], [None], "\0", "x" * 256])
    def test_an_invalid_worker_id_is_rejected(self, bad: Any) -> None:
        with pytest.raises(InvalidFilterError, match="locked_by"):
            JobFilter(locked_by=bad)


class TestAPendingJobHasAnAttemptLeft:
    """The CHECK jobs_pending_has_attempt: a claim never finds a job without an attempt left."""

    def test_a_change_that_would_leave_no_attempt_is_rejected(self, store: Storage) -> None:
        [job_id] = fill(store, 1, max_attempts=2)
        for change in (JobUpdate(attempts=2), JobUpdate(attempts=1, max_attempts=1)):
            with pytest.raises(InvalidJobError, match="a pending job has an attempt left"):
                store.update_job(job_id, change)
        assert store.update_job(job_id, JobUpdate(attempts=1)).status == PENDING
        assert claim(store).attempts == 2

    def test_a_job_that_runs_its_last_attempt_has_one_left_when_it_is_made_pending(self, store: Storage) -> None:
        last, lowered, early = fill(store, 3, max_attempts=3)
        for job_id, attempts in ((last, 2), (lowered, 2), (early, 0)):
            store.update_job(job_id, JobUpdate(attempts=attempts))
        assert len(claim(store, 3)) == 3
        changed = store.update_job(last, JobUpdate(status=PENDING))
        assert (changed.status, changed.attempts, changed.max_attempts) == (PENDING, 2, 3)
        changed = store.update_job(lowered, JobUpdate(status=PENDING, attempts=0, max_attempts=1))
        assert (changed.attempts, changed.max_attempts) == (0, 1)
        assert store.update_job(early, JobUpdate(status=PENDING)).attempts == 1
        assert sorted(job.id for job in claim(store, 10)) == sorted([last, lowered, early])

    def test_a_job_released_at_its_last_attempt_has_that_attempt_again(self, store: Storage) -> None:
        fill(store, 1, max_attempts=1)
        for _ in range(2):
            job = claim(store)
            assert job.attempts == 1
            store.release_jobs([job])


class TestUpdatingAHeldJob:
    def test_a_token_grows_only_when_the_holder_changes(self, store: Storage) -> None:
        job = claimed(store)
        same = store.update_job(job.id, JobUpdate(status=RUNNING, priority=3))
        assert (same.lease_token, same.lease_expires_at, same.locked_by) == (1, job.lease_expires_at, "w1")
        done = store.update_job(job.id, JobUpdate(status=COMPLETED))
        # Not by its holder, which would complete it again under its own token.
        assert (done.lease_token, done.lease_expires_at) == (2, None)
        with pytest.raises(JobStateError):
            store.update_job(job.id, JobUpdate(status=RUNNING))


class TestResuming:
    """While an old snapshot keeps dead index entries, or vacuum is late, claims resume after the last claimed job."""

    RESUME_TIME = timedelta(seconds=0.5)

    @pytest.fixture
    def resuming(self, goqueue_database: str, goqueue_schema: str) -> Iterator[PostgresStorage]:
        config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema, claim_resume_time=self.RESUME_TIME)
        with PostgresStorage.open(config) as opened:
            yield opened

    @pytest.fixture
    def snapshot(self, other: psycopg.Connection[Any]) -> Callable[[], None]:
        def hold() -> None:
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            other.execute("SELECT count(*) FROM goqueue.jobs")

        return hold

    @staticmethod
    def resumes(store: PostgresStorage, *queues: str) -> bool:
        return queues in store._positions and any(store._positions[queues].parameters().values())

    @staticmethod
    def until_counted(store: PostgresStorage, sql: Any) -> None:
        """Wait until the server has counted the dead rows that claims left; it updates the figure once a second."""
        deadline = time.monotonic() + 60
        while sql("SELECT pg_stat_get_dead_tuples('goqueue.jobs'::regclass) < 5000").fetchone() == (True,):
            assert time.monotonic() < deadline, "the server knows of few dead rows"
            time.sleep(0.1)
            store.ping()

    def until_resuming(self, store: PostgresStorage, sql: Any, *queues: str) -> list[UUID]:
        """Claim until a claim resumes; return the jobs."""
        taken: list[UUID] = []
        while not self.resumes(store, *queues):
            jobs = store.claim_jobs(queues, "w1", 1000 if len(taken) < 6000 else 10)
            assert jobs, "it never resumed"
            taken += [job.id for job in jobs]
            if len(taken) == 6000:
                self.until_counted(store, sql)
        return taken

    def test_jobs_that_become_due_out_of_order_wait_no_longer_than_that(
        self, resuming: PostgresStorage, snapshot: Any, sql: Any
    ) -> None:
        ids = fill(resuming, 9000)
        snapshot()
        taken = self.until_resuming(resuming, sql, "default")
        held = resuming.claim_jobs("default", "w1")[0]
        surprises = {
            *fill(resuming, 1, priority=-1),
            *fill(resuming, 1, scheduled_at=datetime(2020, 1, 1, tzinfo=UTC)),
            held.id,
        }
        resuming.release_jobs([held])
        deadline = time.monotonic() + 60
        appeared = set()
        # Claims continue all the time: using a resume point must not prolong it.
        while not surprises <= appeared:
            assert time.monotonic() < deadline
            jobs = resuming.claim_jobs("default", "w1")
            taken += [job.id for job in jobs]
            appeared |= surprises & {job.id for job in jobs}
        while jobs := resuming.claim_jobs("default", "w1", 500):
            taken += [job.id for job in jobs]
        assert len(taken) == len(set(taken))
        time.sleep(self.RESUME_TIME.total_seconds())  # skipped jobs are found now
        taken += [job.id for job in resuming.claim_jobs("default", "w1", 500)]
        assert sorted(taken) == sorted({*ids, *surprises})

    def test_a_resumed_claim_reads_less(
        self, resuming: PostgresStorage, goqueue_schema: str, snapshot: Any, sql: Any
    ) -> None:
        ids = fill(resuming, 9000)
        snapshot()
        taken = self.until_resuming(resuming, sql, "default")

        def entries_read(connection: psycopg.Connection[Any]) -> int:
            index = f"{goqueue_schema}.jobs_claim_idx"
            row = connection.execute("SELECT pg_stat_get_xact_tuples_returned($1::regclass)", [index]).fetchone()
            assert row is not None
            return int(row[0])

        read = []
        for _ in range(30):  # now and then, one scans from the start
            with resuming._connection() as connection, connection.transaction():
                before = entries_read(connection)
                taken += [job.id for job in resuming.bound_to(connection).claim_jobs("default", "w1", 10)]
                read.append(entries_read(connection) - before)
        assert min(read) < 100
        while jobs := resuming.claim_jobs("default", "w1", 1000):
            taken += [job.id for job in jobs]
        assert taken == ids

    def test_the_order_within_each_lane_stays(self, resuming: PostgresStorage, snapshot: Any, sql: Any) -> None:
        lanes = [("a", 0), ("b", 0), ("a", 1)]
        ids = {lane: fill(resuming, 3500, queue=lane[0], priority=lane[1]) for lane in lanes}
        snapshot()
        taken: dict[tuple[str, int], list[UUID]] = {lane: [] for lane in lanes}
        priorities: list[int] = []
        resumed = False
        while jobs := resuming.claim_jobs(["b", "a"], "w1", 90):
            if 5500 <= len(priorities) < 5590:
                self.until_counted(resuming, sql)
            resumed = resumed or self.resumes(resuming, "a", "b")
            for job in jobs:
                taken[job.queue, job.priority].append(job.id)
                priorities.append(job.priority)
        assert resumed
        assert taken == ids
        assert priorities == sorted(priorities)

    def test_many_lanes_alone_make_no_claim_resume(self, goqueue_database: str, goqueue_schema: str) -> None:
        queues = [f"q{number}" for number in range(30)]
        config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema, claim_resume_time=HOUR)
        with PostgresStorage.open(config) as store:
            for queue in queues:
                fill(store, 100, queue=queue)
            for _ in range(3):
                assert len(store.claim_jobs([*queues, "new"], "w1", 100)) == 100
                [urgent] = fill(store, 1, queue="new", priority=-1)
                assert [job.id for job in store.claim_jobs([*queues, "new"], "w1")] == [urgent]

    def test_without_an_old_snapshot_the_order_is_exact(self, resuming: PostgresStorage, sql: Any) -> None:
        ids = fill(resuming, 3000)
        for number in range(10):
            assert [job.id for job in resuming.claim_jobs("default", "w1", 100)] == ids[number * 100 :][:100]
            sql("VACUUM goqueue.jobs")
            [better] = fill(resuming, 1, priority=-1)
            assert claim(resuming).id == better
        assert not self.resumes(resuming, "default")

    def test_claims_resume_while_vacuum_is_late(self, resuming: PostgresStorage, sql: Any) -> None:
        sql("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
        ids = fill(resuming, 9000)
        taken = self.until_resuming(resuming, sql, "default")
        assert taken == ids[: len(taken)]
        [better] = fill(resuming, 1, priority=-1)
        time.sleep(self.RESUME_TIME.total_seconds())
        assert claim(resuming).id == better
        sql("VACUUM goqueue.jobs")
        time.sleep(self.RESUME_TIME.total_seconds())
        assert [job.id for job in resuming.claim_jobs("default", "w1", 10)] == ids[len(taken) :][:10]
        assert not self.resumes(resuming, "default")

    def test_with_resuming_turned_off_every_claim_is_exact(
        self, goqueue_database: str, goqueue_schema: str, snapshot: Any, sql: Any
    ) -> None:
        with PostgresStorage.open(
            DatabaseConfig(url=goqueue_database, schema=goqueue_schema, claim_resume_time=ZERO)
        ) as store:
            fill(store, 8000)
            snapshot()
            for number in range(20):
                store.claim_jobs("default", "w1", 300)
                if number == 18:
                    self.until_counted(store, sql)
            [better] = fill(store, 1, priority=-1)
            assert claim(store).id == better

    def test_concurrent_claims_leave_no_job_behind(self, resuming: PostgresStorage, snapshot: Any) -> None:
        ids = fill(resuming, 4500) + fill(resuming, 4500, priority=1)
        snapshot()

        def work(number: int) -> list[UUID]:
            mine: list[UUID] = []
            done_at = None
            # Skipped jobs are found at the latest after claim_resume_time.
            while done_at is None or time.monotonic() < done_at:
                jobs = resuming.claim_jobs("default", f"w{number}", 100)
                mine += [job.id for job in jobs]
                if jobs:
                    done_at = None
                elif done_at is None:
                    done_at = time.monotonic() + 2 * self.RESUME_TIME.total_seconds()
                else:
                    time.sleep(0.02)
            return mine

        with ThreadPoolExecutor(3) as threads:
            taken = [job_id for mine in threads.map(work, range(3)) for job_id in mine]
        assert sorted(taken) == sorted(ids)


class TestClaimPositions:
    LANES = ("lane_queues", "lane_priorities", "lane_times", "lane_ids")

    @pytest.fixture
    def at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        def be(now: float) -> None:
            monkeypatch.setattr("goqueue.postgres.claim_positions.monotonic", lambda: now)

        be(100)
        return be

    @staticmethod
    def job(number: int, queue: str = "a", priority: int = 0) -> Job:
        made = NewJob(job_type="t", queue=queue, priority=priority, id=UUID(int=number), scheduled_at=FIRST)
        values = dict.fromkeys(Job.__struct_fields__) | {
            name: getattr(made, name) for name in ("id", "queue", "priority")
        }
        return Job(**values | {"scheduled_at": FIRST + number * SECOND})  # type: ignore[arg-type]

    def bloated(self, seconds: float = 10, scan: float = 0.5) -> ClaimPositions:
        """The positions of a store whose first claim, a scan of ``scan`` seconds, has taken a job of queue a."""
        positions = ClaimPositions(seconds)
        positions.counted(5000)
        positions.claimed([self.job(1)], positions.parameters(), is_full=True, start=100 - scan)
        return positions

    def test_resume_after_the_last_job_of_each_lane(self, at: Any) -> None:
        positions = self.bloated()
        taken = [self.job(2), self.job(3), self.job(4, "b"), self.job(5, "b", 1)]
        positions.claimed(taken, positions.parameters(), is_full=True, start=100)
        lanes = zip(*(positions.parameters()[name] for name in self.LANES), strict=True)
        assert [(queue, priority, job_id.int) for queue, priority, _, job_id in lanes] == [
            ("a", 0, 3), ("b", 0, 4), ("b", 1, 5),
        ]  # fmt: skip

    def test_scan_from_the_start_while_few_rows_are_dead(self, at: Any) -> None:
        positions = self.bloated()
        positions.counted(4999)
        assert positions.parameters() == dict.fromkeys(self.LANES)

    def test_scan_again_after_the_time_that_was_set(self, at: Any) -> None:
        positions = self.bloated(seconds=4)
        at(103.9)
        resumed = positions.parameters()
        assert resumed["lane_queues"] == ["a"]
        positions.claimed([self.job(2)], resumed, is_full=True, start=103.9)  # using it does not prolong it
        at(104)
        assert positions.parameters() == dict.fromkeys(self.LANES)

    def test_scan_sooner_when_a_scan_takes_little_time(self, at: Any) -> None:
        positions = self.bloated(scan=0.1)
        at(100.9)
        assert positions.parameters()["lane_queues"] == ["a"]
        at(101.1)
        assert positions.parameters() == dict.fromkeys(self.LANES)

    def test_scan_after_a_short_claim_unless_the_last_scan_was_short_too(self, at: Any) -> None:
        positions = self.bloated()
        resumed = positions.parameters()
        positions.claimed([], resumed, is_full=False, start=100)
        assert positions.looks_again(resumed)
        scan = positions.parameters()
        assert scan == dict.fromkeys(self.LANES)
        positions.claimed([self.job(2)], scan, is_full=False, start=99.5)
        resumed = positions.parameters()
        assert resumed["lane_queues"] == ["a"]
        positions.claimed([], resumed, is_full=False, start=100)
        assert not positions.looks_again(resumed)

    def test_count_once_in_that_time_and_never_when_it_is_zero(self, at: Any) -> None:
        assert not ClaimPositions(1).count_is_due  # nothing was claimed yet
        positions = self.bloated(seconds=4)
        assert not positions.count_is_due
        at(104)
        assert positions.count_is_due
        assert not self.bloated(seconds=0).count_is_due

    def test_sets_of_queues_are_forgotten_rather_than_kept_without_bound(self) -> None:
        known: dict[tuple[str, ...], ClaimPositions] = {}
        for number in range(1000):
            positions_of(known, [str(number)], 1)
        assert len(known) <= 100


def test_an_invalid_filter_raises_invalid_filter_error(store: Storage) -> None:
    with pytest.raises(InvalidFilterError):
        store.rescue_jobs(0)
