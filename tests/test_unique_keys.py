"""Unique keys: at most one pending or running job has a given one, whichever call adds, changes or retries jobs."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    DuplicateJobError,
    InvalidJobError,
    Job,
    JobFilter,
    JobStateError,
    JobStatus,
    JobUpdate,
    NewJob,
    PostgresStorage,
    Storage,
    key_for_period,
)
from goqueue.migrate import migrate
from tests.test_postgres import until_waiting

PENDING, RUNNING, COMPLETED, DEAD, CANCELLED = JobStatus
UNFINISHED, FINISHED = [PENDING, RUNNING], [COMPLETED, DEAD, CANCELLED]
HOUR = timedelta(hours=1)


def new(key: str | None = "k", **fields: Any) -> NewJob:
    return NewJob(job_type="t", unique_key=key, **fields)


def add(store: Storage, status: JobStatus, key: str | None = "k", **fields: Any) -> Job:
    """Add a job with a unique key and give it a status."""
    job = store.create_job(new(key, **fields))
    return job if status is PENDING else store.update_job(job.id, JobUpdate(status=status))


# --- create -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", UNFINISHED)
def test_an_unfinished_jobs_key_is_rejected_with_its_id(store: Storage, status: JobStatus) -> None:
    first = add(store, status)
    with pytest.raises(DuplicateJobError, match=f"job {first.id} already has the unique key 'k' and has not") as caught:
        store.create_job(new())
    assert (caught.value.job_id, caught.value.unique_key, caught.value.idempotency_key) == (first.id, "k", None)
    assert store.get_or_create_job(new()) == (first, False)
    assert store.create_jobs([new(), new("other"), new()])[::2] == [(first.id, False)] * 2
    assert list(store.create_jobs_in_batches([new()])) == [[(first.id, False)]]
    assert store.get_job(first.id) == first
    assert store.count_jobs() == 2


@pytest.mark.parametrize("status", FINISHED)
def test_a_finished_jobs_key_is_free(store: Storage, status: JobStatus) -> None:
    first = add(store, status)
    second = store.create_job(new())
    assert second.unique_key == "k"
    store.cancel_jobs(second.id)
    third, created = store.get_or_create_job(new())
    assert created
    store.cancel_jobs(third.id)
    fourth = new()
    assert store.create_jobs([fourth]) == [(fourth.id, True)]
    assert store.get_job(first.id) == first


def test_a_key_is_free_as_soon_as_a_worker_has_completed_its_job(store: Storage) -> None:
    store.create_job(new())
    [held] = store.claim_jobs("default", "w")
    assert held.unique_key == "k"
    assert not store.get_or_create_job(new())[1]
    store.complete_job(held)
    assert store.get_or_create_job(new())[1]


def test_a_job_keeps_its_key_while_it_is_claimed_released_failed_and_rescued(store: Storage) -> None:
    first = store.create_job(new())
    for end in (
        lambda held: store.release_jobs([held]),
        lambda held: store.fail_job(held, "e", retry_in=timedelta(0)),
        lambda _: store.rescue_jobs(),
    ):
        [held] = store.claim_jobs("default", "w", lease=timedelta(0))
        end(held)
        job, created = store.get_or_create_job(new())
        assert (job.id, job.status, created) == (first.id, PENDING, False)
    [held] = store.claim_jobs("default", "w")
    store.bury_jobs([(held, "e")])
    assert store.get_or_create_job(new())[1]


def test_the_same_new_job_again_returns_it_in_every_status(store: Storage) -> None:
    one = new()
    first = store.create_job(one)
    assert store.create_job(one) == first
    for status in (RUNNING, COMPLETED):
        store.update_job(first.id, JobUpdate(status=status))
        assert store.create_job(one).status == status
    another = store.create_job(new())  # has the key now
    assert store.create_job(one).id == first.id
    assert store.create_jobs([one, new()]) == [(first.id, False), (another.id, False)]


def test_of_both_keys_the_idempotency_key_takes_precedence(store: Storage) -> None:
    by_key = store.create_job(NewJob(job_type="t", idempotency_key="k"))
    by_unique_key = add(store, RUNNING)
    both = new(idempotency_key="k")
    with pytest.raises(DuplicateJobError, match="the idempotency key 'k'") as caught:
        store.create_job(both)
    assert (caught.value.job_id, caught.value.unique_key) == (by_key.id, None)
    assert store.create_jobs([both]) == [(by_key.id, False)]
    store.delete_job(by_key.id)
    assert store.create_jobs([both]) == [(by_unique_key.id, False)]


def test_a_text_can_be_one_jobs_unique_key_and_another_jobs_idempotency_key(store: Storage) -> None:
    jobs = [new("same"), NewJob(job_type="t", idempotency_key="same"), new("other"), new("other")]
    assert store.create_jobs(jobs) == [(job.id, True) for job in jobs[:3]] + [(jobs[2].id, False)]


def test_a_finished_jobs_id_is_taken_and_its_unique_key_is_not(store: Storage) -> None:
    first = add(store, COMPLETED)
    jobs = [NewJob(job_type="other", id=first.id), new()]
    assert store.create_jobs(jobs) == [(first.id, False), (jobs[1].id, True)]
    later = [add(store, CANCELLED, None) for _ in range(9)]
    for job in later:
        store.update_job(job.id, JobUpdate(unique_key="k"))
    again = [NewJob(job_type="other", id=job.id) for job in (first, *later)]
    expected = [(job.id, False) for job in (*again, jobs[1])]
    assert store.create_jobs([*again, new()]) == expected


def test_of_several_in_one_bulk_the_first_is_added(store: Storage) -> None:
    jobs = [new(key, payload=number) for number, key in enumerate(["b", None, "a", "b", "a", None, "b"])]
    first = {"b": jobs[0].id, "a": jobs[2].id}
    expected = [(first.get(job.unique_key or "", job.id), job.unique_key is None) for job in jobs]
    expected[0], expected[2] = (jobs[0].id, True), (jobs[2].id, True)
    assert store.create_jobs(jobs) == expected
    assert store.count_jobs() == 4


def test_of_several_in_different_batches_the_first_is_added(goqueue_database: str) -> None:
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, batch_size=2)) as store:
        jobs = [new(), new(None), new("other"), new(), new(None), new()]
        expected = [(job.id, True) for job in jobs]
        expected[3] = expected[5] = (jobs[0].id, False)
        assert store.create_jobs(jobs) == expected
        store.cancel_jobs(JobFilter())
        *_, last = [one for batch in store.create_jobs_in_batches([new(), new(None), new()]) for one in batch]
        assert not last[1]


def test_a_row_that_is_inserted_manually_is_checked_too(
    goqueue_connection: psycopg.Connection[Any], goqueue_store: PostgresStorage
) -> None:
    add(goqueue_store, RUNNING)
    insert = b"INSERT INTO goqueue.jobs (job_type, unique_key) VALUES ('t', 'k')"
    with pytest.raises(psycopg.errors.UniqueViolation):
        goqueue_connection.execute(insert)
    assert goqueue_connection.execute(insert + b" ON CONFLICT DO NOTHING").rowcount == 0


# --- change -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", UNFINISHED)
def test_an_update_does_not_take_an_unfinished_jobs_key(store: Storage, status: JobStatus) -> None:
    first = add(store, status)
    for taker in (add(store, PENDING, None), add(store, RUNNING, None)):
        with pytest.raises(DuplicateJobError, match="the unique key 'k'") as caught:
            store.update_job(taker.id, JobUpdate(unique_key="k", priority=9))
        assert (caught.value.job_id, caught.value.unique_key) == (first.id, "k")
        assert store.get_job(taker.id) == taker


@pytest.mark.parametrize("status", FINISHED)
def test_an_update_takes_a_finished_jobs_key(store: Storage, status: JobStatus) -> None:
    add(store, status)
    taker = add(store, PENDING, None)
    assert store.update_job(taker.id, JobUpdate(unique_key="k")).unique_key == "k"
    assert store.update_job(taker.id, JobUpdate(priority=3)).unique_key == "k"
    assert store.update_job(taker.id, JobUpdate(unique_key="k")).unique_key == "k"
    assert store.update_job(taker.id, JobUpdate(unique_key=None)).unique_key is None
    assert store.get_or_create_job(new())[1]


def test_an_update_of_a_finished_job_can_give_it_any_key(store: Storage) -> None:
    add(store, PENDING)
    for status in FINISHED:
        job = add(store, status, None)
        assert store.update_job(job.id, JobUpdate(unique_key="k", last_error="e")).unique_key == "k"


@pytest.mark.parametrize("holder", UNFINISHED)
@pytest.mark.parametrize("status", [DEAD, CANCELLED])
def test_an_update_to_pending_does_not_take_an_unfinished_jobs_key(
    store: Storage, status: JobStatus, holder: JobStatus
) -> None:
    job = add(store, status)
    first = add(store, holder)
    with pytest.raises(DuplicateJobError, match="the unique key 'k'") as caught:
        store.update_job(job.id, JobUpdate(status=PENDING))
    assert caught.value.job_id == first.id
    assert store.get_job(job.id) == job
    assert store.update_job(job.id, JobUpdate(status=PENDING, unique_key="free")).status == PENDING


def test_an_update_that_no_status_allows_is_rejected_whoever_has_the_key(store: Storage) -> None:
    completed, dead = add(store, COMPLETED), add(store, DEAD)
    add(store, PENDING)
    for job, status in ((completed, PENDING), (completed, RUNNING), (dead, RUNNING)):
        with pytest.raises(JobStateError):
            store.update_job(job.id, JobUpdate(status=status))


def test_an_update_changes_the_key_of_a_job_that_it_ends(store: Storage) -> None:
    add(store, PENDING)
    job = add(store, RUNNING, None)
    assert store.update_job(job.id, JobUpdate(status=CANCELLED, unique_key="k")).unique_key == "k"


# --- replace ----------------------------------------------------------------------------------------------------------


def test_a_replaced_job_gets_the_new_key(store: Storage) -> None:
    first = store.replace_pending_job(new("a", idempotency_key="i"))
    for key in ("b", "b", None, "a"):
        job = store.replace_pending_job(new(key, idempotency_key="i"))
        assert (job.id, job.unique_key, job) == (first.id, key, store.get_job(first.id))
    assert store.get_or_create_job(new("b"))[1]


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_job_is_not_replaced_by_one_whose_key_an_unfinished_job_has(store: Storage, status: JobStatus) -> None:
    holder = add(store, status)
    pending = add(store, PENDING, None, idempotency_key="i")
    for key in ("i", "unknown"):
        with pytest.raises(DuplicateJobError, match="the unique key 'k'") as caught:
            store.replace_pending_job(new(idempotency_key=key))
        assert (caught.value.job_id, caught.value.unique_key) == (holder.id, "k")
    assert store.get_job(pending.id) == pending
    assert store.count_jobs() == 2


@pytest.mark.parametrize("status", FINISHED)
def test_a_job_is_replaced_by_one_whose_key_a_finished_job_has(store: Storage, status: JobStatus) -> None:
    add(store, status)
    pending = add(store, PENDING, None, idempotency_key="i")
    assert store.replace_pending_job(new(idempotency_key="i")).id == pending.id


def test_a_job_that_can_t_be_replaced_is_named_before_the_keys_holder(store: Storage) -> None:
    add(store, PENDING)
    running = add(store, RUNNING, None, idempotency_key="i")
    with pytest.raises(DuplicateJobError, match="is running; only a pending job can be replaced") as caught:
        store.replace_pending_job(new(idempotency_key="i"))
    assert caught.value.job_id == running.id


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", UNFINISHED)
@pytest.mark.parametrize("status", [DEAD, CANCELLED])
def test_a_job_whose_key_an_unfinished_job_has_is_not_retried(
    store: Storage, status: JobStatus, holder: JobStatus
) -> None:
    job, other, keyless = add(store, status), add(store, status, "free"), add(store, status, None)
    add(store, holder)
    assert store.retry_jobs([job.id, other.id, keyless.id]) == 2
    assert store.get_job(job.id) == job
    assert store.get_job(other.id).status == store.get_job(keyless.id).status == PENDING


@pytest.mark.parametrize("by_filter", [False, True])
def test_of_several_jobs_with_one_key_the_newest_is_retried(store: Storage, by_filter: bool) -> None:
    jobs = [add(store, status, key) for key in ("a", "b", None) for status in (DEAD, CANCELLED, COMPLETED, DEAD)]
    ids = [job.id for job in jobs]
    assert store.retry_jobs(JobFilter() if by_filter else ids) == 2 + 3
    again = [job.id for job in store.get_jobs(ids) if job.status == PENDING]
    assert again == [ids[3], ids[7], ids[8], ids[9], ids[11]]
    assert store.retry_jobs(ids) == 0


def test_a_job_named_twice_is_retried_once(store: Storage) -> None:
    job = add(store, DEAD)
    assert store.retry_jobs([job.id, job.id]) == 1
    assert store.retry_jobs([job.id]) == 0


def test_a_completed_jobs_key_is_free_for_a_retry(store: Storage) -> None:
    job = add(store, DEAD)
    add(store, COMPLETED)
    assert store.retry_jobs(job.id) == 1
    assert not store.get_or_create_job(new())[1]


# --- at the same time -------------------------------------------------------------------------------------------------


@pytest.fixture
def goqueue_store(goqueue_database: str, goqueue_schema: str) -> Iterator[PostgresStorage]:
    """The plugin's store, which waits longer for a lock: on a stalled machine, a test is late to end the other side."""
    config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema, lock_timeout=timedelta(minutes=1))
    with PostgresStorage.open(config) as store:
        yield store


@pytest.fixture
def other(goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session's transaction, which the test ends."""
    with psycopg.connect(goqueue_database) as connection:
        yield connection


def meanwhile(url: str, query: str, call: Callable[[], Any], end: Callable[[], Any]) -> Any:
    """Return the result of a call that waits, in ``query``, for the end of another transaction."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(call)
        until_waiting(url, query)
        end()
        return waiting.result(60)


CREATE = {
    "create_job": lambda store, job: store.get_or_create_job(job)[0].id,
    "create_missing_jobs": lambda store, job: store.create_jobs([job])[0][0],
}


@pytest.mark.parametrize("query", CREATE)
@pytest.mark.parametrize("commits", [True, False])
def test_a_call_waits_for_a_transaction_that_adds_the_key(
    query: str,
    commits: bool,
    goqueue_store: PostgresStorage,
    goqueue_database: str,
    other: psycopg.Connection[Any],
) -> None:
    first, second = PostgresStorage.bound_to(other).create_job(new()), new()
    end = other.commit if commits else other.rollback
    found = meanwhile(goqueue_database, query, lambda: CREATE[query](goqueue_store, second), end)
    assert found == (first.id if commits else second.id)
    assert goqueue_store.count_jobs() == 1


@pytest.mark.parametrize("commits", [True, False])
def test_an_asynchronous_call_waits_too(commits: bool, goqueue_database: str, other: psycopg.Connection[Any]) -> None:
    first, second = PostgresStorage.bound_to(other).create_job(new()), new()

    async def main() -> tuple[UUID, list[tuple[UUID, bool]]]:
        async with await AsyncPostgresStorage.open(goqueue_database) as store:
            waiting = asyncio.create_task(store.get_or_create_job(second))
            await asyncio.to_thread(until_waiting, goqueue_database, "create_job")
            (other.commit if commits else other.rollback)()
            job, _ = await waiting
            return job.id, await store.create_jobs([new()])

    expected = first.id if commits else second.id
    assert asyncio.run(main()) == (expected, [(expected, False)])


@pytest.mark.parametrize("query", CREATE)
def test_a_call_adds_its_job_if_the_keys_job_has_finished_before_it_is_found(
    query: str,
    goqueue_store: PostgresStorage,
    goqueue_database: str,
    other: psycopg.Connection[Any],
) -> None:
    """The insert waits for the other transaction, which adds the key. When it commits, that job is finished at once."""
    theirs = PostgresStorage.bound_to(other)
    first, second = theirs.create_job(new()), new()

    def end() -> None:
        theirs.cancel_jobs(first.id)
        other.commit()

    found = meanwhile(goqueue_database, query, lambda: CREATE[query](goqueue_store, second), end)
    assert found == second.id
    assert goqueue_store.get_job(second.id).status == PENDING


@pytest.mark.parametrize("query", ["create_job", "create_missing_jobs"])
def test_a_key_that_is_freed_between_conflict_and_search_is_taken(
    query: str, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = goqueue_store.create_job(new()), new()
    search = "find_duplicate_job" if query == "create_job" else "find_duplicate_jobs"
    original = getattr(goqueue_store._queries, search)

    def late(*args: Any, **values: Any) -> Any:
        goqueue_store.cancel_jobs(first.id)
        return original(*args, **values)

    monkeypatch.setattr(goqueue_store._queries, search, late)
    assert CREATE[query](goqueue_store, second) == second.id


def test_an_update_that_loses_a_race_for_a_key_is_rejected_by_name(
    goqueue_store: PostgresStorage, goqueue_database: str, other: psycopg.Connection[Any]
) -> None:
    jobs = [add(goqueue_store, PENDING, None), add(goqueue_store, DEAD)]
    updates = [JobUpdate(unique_key="k"), JobUpdate(status=PENDING)]
    for job, update in zip(jobs, updates, strict=True):
        added = PostgresStorage.bound_to(other).create_job(new())
        with pytest.raises(DuplicateJobError, match="added a job with this unique key at the same time") as caught:
            meanwhile(
                goqueue_database,
                "update_job",
                lambda job=job, update=update: goqueue_store.update_job(job.id, update),  # type: ignore[misc]
                other.commit,
            )
        assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
        assert goqueue_store.get_job(job.id) == job
        goqueue_store.cancel_jobs(added.id)


def test_a_replacement_that_loses_a_race_for_a_key_is_rejected_by_name(
    goqueue_store: PostgresStorage, goqueue_database: str, other: psycopg.Connection[Any]
) -> None:
    pending = add(goqueue_store, PENDING, None, idempotency_key="i")
    PostgresStorage.bound_to(other).create_job(new())
    with pytest.raises(DuplicateJobError, match="added a job with this unique key at the same time"):
        meanwhile(
            goqueue_database,
            "replace_pending_job",
            lambda: goqueue_store.replace_pending_job(new(idempotency_key="i")),
            other.commit,
        )
    assert goqueue_store.get_job(pending.id) == pending


@pytest.mark.parametrize("commits", [True, False])
def test_a_retry_that_loses_a_race_for_a_key_is_rejected_by_name(
    commits: bool, goqueue_store: PostgresStorage, goqueue_database: str, other: psycopg.Connection[Any]
) -> None:
    job = add(goqueue_store, DEAD)
    PostgresStorage.bound_to(other).create_job(new())

    def retry() -> int:
        return meanwhile(
            goqueue_database,
            "retry_jobs",
            lambda: goqueue_store.retry_jobs(job.id),
            other.commit if commits else other.rollback,
        )

    if commits:
        with pytest.raises(DuplicateJobError, match="added a job with this unique key at the same time"):
            retry()
        assert goqueue_store.get_job(job.id) == job
        assert goqueue_store.retry_jobs(job.id) == 0
    else:
        assert retry() == 1


def test_a_retry_that_waited_for_the_jobs_cancellation_does_not_find_the_job_itself_unfinished(
    goqueue_store: PostgresStorage, goqueue_database: str, other: psycopg.Connection[Any]
) -> None:
    job = add(goqueue_store, PENDING)
    PostgresStorage.bound_to(other).cancel_jobs(job.id)
    assert meanwhile(goqueue_database, "retry_jobs", lambda: goqueue_store.retry_jobs(job.id), other.commit) == 1
    assert goqueue_store.get_job(job.id).status == PENDING


def test_many_threads_add_one_unfinished_job_at_a_time(goqueue_database: str) -> None:
    config = DatabaseConfig(url=goqueue_database, pool_max_size=8)
    with PostgresStorage.open(config) as store, ThreadPoolExecutor(8) as threads:

        def create(_: int) -> bool:
            _, created = store.get_or_create_job(new())
            if created:  # now and then the job is done at once
                store.complete_jobs(store.claim_jobs("default", "w"))
            return created

        created = sum(threads.map(create, range(400)))
        assert created == store.count_jobs()
        assert store.count_jobs(JobFilter(status=UNFINISHED)) <= 1


# --- clients of the release before ------------------------------------------------------------------------------------

# The statements of a client that knows no unique keys.
OLD_CLIENT = {
    "create_job": """
        INSERT INTO goqueue.jobs (id, queue, job_type, payload, priority, max_attempts, scheduled_at, idempotency_key)
        VALUES ($1, $2, 't', '{}', 0, 25, now(), NULL) ON CONFLICT DO NOTHING RETURNING id
    """,
    "create_jobs": """
        INSERT INTO goqueue.jobs (id, queue, job_type, payload, priority, max_attempts, scheduled_at, idempotency_key)
        SELECT n.id, n.queue, n.job_type, n.payload, n.priority, n.max_attempts, n.scheduled_at, n.idempotency_key
        FROM goqueue.new_jobs(jsonb_build_array(jsonb_build_object('id', $1, 'queue', $2, 'job_type', 't'))) AS n
        ON CONFLICT DO NOTHING RETURNING id
    """,
    "replace_pending_job": """
        INSERT INTO goqueue.jobs AS j (id, queue, job_type, payload, priority, max_attempts, idempotency_key)
        VALUES ($1, $2, 't', '{}', 0, 25, 'i')
        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO UPDATE SET queue = excluded.queue
        WHERE j.status = 'pending' RETURNING id
    """,
    "add_job": "SELECT id FROM goqueue.add_job('t', '{}', $2, 0, 25, NULL, NULL, NULL, $1) WHERE created",
    "retry_jobs": """
        UPDATE goqueue.jobs SET status = 'pending', attempts = 0, completed_at = NULL
        WHERE status = 'cancelled' AND $1 IS NOT NULL AND $2 IS NOT NULL RETURNING id
    """,
}


def test_an_older_client_continues_with_its_prepared_statements(empty: str, goqueue_schema: str) -> None:
    migrate(empty, target=24, schema=goqueue_schema)
    with psycopg.connect(empty, autocommit=True) as connection:
        for name, statement in OLD_CLIENT.items():
            connection.execute(f"PREPARE {name} (uuid, text) AS {statement}".encode())

        def run() -> None:
            for name in OLD_CLIENT:
                connection.execute("UPDATE goqueue.jobs SET status = 'cancelled', completed_at = now()")
                connection.execute("UPDATE goqueue.jobs SET idempotency_key = NULL")
                call = f"EXECUTE {name} ('{uuid4()}', 'q')"
                assert connection.execute(call.encode()).rowcount > 0, name

        for _ in range(7):  # the server also makes generic plans
            run()
        migrate(empty, schema=goqueue_schema)
        for _ in range(7):
            run()


# --- periods ----------------------------------------------------------------------------------------------------------

AT = datetime(2030, 1, 31, 8, 47, 59, 999_999, tzinfo=UTC)  # a Thursday


@pytest.mark.parametrize(
    ("period", "start"),
    [
        (timedelta(seconds=1), "2030-01-31T08:47:59Z"),
        (timedelta(minutes=5), "2030-01-31T08:45:00Z"),
        (HOUR, "2030-01-31T08:00:00Z"),
        (6 * HOUR, "2030-01-31T06:00:00Z"),
        (timedelta(days=1), "2030-01-31T00:00:00Z"),
        (timedelta(weeks=1), "2030-01-28T00:00:00Z"),
    ],
)
def test_a_periods_key_has_the_start_of_the_period(period: timedelta, start: str) -> None:
    assert key_for_period("report", period, AT) == f"report@{start}"


def test_a_periods_key_is_the_same_in_every_time_zone_and_changes_with_the_period() -> None:
    tokyo = AT.astimezone(timezone(9 * HOUR))
    assert key_for_period("k", HOUR, tokyo) == key_for_period("k", HOUR, AT)
    assert key_for_period("k", HOUR, AT + timedelta(minutes=12)) == key_for_period("k", HOUR, AT)
    assert key_for_period("k", HOUR, AT + timedelta(minutes=13)) != key_for_period("k", HOUR, AT)
    assert key_for_period("k", HOUR, datetime.min.replace(tzinfo=UTC)) == "k@0001-01-01T00:00:00Z"


def test_a_periods_key_is_by_default_that_of_now() -> None:
    before, key, after = datetime.now(UTC), key_for_period("k", HOUR), datetime.now(UTC)
    assert key in {key_for_period("k", HOUR, time) for time in (before, after)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", HOUR), "key is empty"),
        ((5, HOUR), "key must be a string"),
        (("k" * 235, HOUR), "key is 256 characters long; it must have 1 to 255"),
        (("k", timedelta(0)), "period must be one or more whole seconds"),
        (("k", -HOUR), "period must be a timedelta"),
        (("k", timedelta(milliseconds=1500)), "period must be one or more whole seconds"),
        (("k", 3600), "period must be a timedelta"),
        (("k", HOUR, datetime(2030, 1, 1)), "time is 2030-01-01T00:00:00 without a time zone"),  # noqa: DTZ001
    ],
)
def test_invalid_arguments_of_a_periods_key_are_rejected(arguments: Any, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        key_for_period(*arguments)


def test_once_an_hour_with_either_key(store: Storage) -> None:
    """An idempotency key lets one job in, a unique key one unfinished job."""
    hour = key_for_period("report", HOUR, AT)
    for fields, again in (({"idempotency_key": hour}, False), ({"unique_key": hour}, True)):
        job = store.create_job(NewJob(job_type="t", **fields))
        assert store.get_or_create_job(NewJob(job_type="t", **fields)) == (job, False)
        store.update_job(job.id, JobUpdate(status=COMPLETED))
        assert store.get_or_create_job(NewJob(job_type="t", **fields))[1] is again
