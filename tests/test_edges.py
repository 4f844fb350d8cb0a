"""Unusual programs: half-read iterators, forks, pickles, odd time zones, odd connections."""

import os
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from goqueue import (
    Config,
    ConfigError,
    CorruptJobError,
    DatabaseConfig,
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    JobFilter,
    JobUpdate,
    LeaseLostError,
    NewJob,
    OutcomeUnknownError,
    PostgresStorage,
    StorageError,
)


def failing_after(count: int) -> Iterator[NewJob]:
    for _ in range(count):
        yield NewJob(job_type="t")
    yield NewJob(job_type="t", payload=float("nan"))


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_bulk_on_a_callers_connection_is_all_or_nothing(goqueue_database: str, autocommit: bool) -> None:
    with psycopg.connect(goqueue_database, autocommit=autocommit) as connection:
        bound = PostgresStorage.bound_to(connection)
        with pytest.raises(InvalidJobError):
            bound.create_jobs(failing_after(2500))
        assert bound.count_jobs() == 0
        bound.create_jobs(NewJob(job_type="t") for _ in range(2500))
        connection.rollback()
        assert bound.count_jobs() == (2500 if autocommit else 0)


def test_a_bulk_on_the_pool_is_all_or_nothing(goqueue_store: PostgresStorage) -> None:
    with pytest.raises(InvalidJobError):
        goqueue_store.create_jobs(failing_after(2500))
    assert goqueue_store.count_jobs() == 0


@pytest.mark.parametrize(
    "error",
    [
        GoQueueError("m"),
        ConfigError(["a", "b"]),
        InvalidJobError("m", constraint="c"),
        DuplicateJobError("m", job_id=uuid4(), idempotency_key="k"),
        CorruptJobError("m", job_id=uuid4()),
        LeaseLostError("m", job_ids=[uuid4(), uuid4()]),
        LeaseLostError("m", job_ids=[id_ := uuid4()], leases=[(id_, 1)]),
        StorageError("m"),
        OutcomeUnknownError("m", operation="claim_jobs", job_ids=[uuid4()], worker_id="w", transaction_id="17"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: GoQueueError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_store_rejects_calls_in_a_forked_child(goqueue_store: PostgresStorage) -> None:
    child = os.fork()
    if child == 0:
        try:
            goqueue_store.ping()
        except StorageError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    goqueue_store.ping()


def test_a_time_zone_with_seconds_in_its_offset_loses_none(goqueue_store: PostgresStorage) -> None:
    at = datetime(2030, 1, 1, tzinfo=timezone(timedelta(seconds=1172)))
    one = goqueue_store.create_job(NewJob(job_type="t", scheduled_at=at))
    many = NewJob(job_type="t", scheduled_at=at)
    goqueue_store.create_jobs([many])
    assert one.scheduled_at == goqueue_store.get_job(many.id).scheduled_at == at
    later = at + timedelta(days=1)
    assert goqueue_store.update_job(one.id, JobUpdate(scheduled_at=later)).scheduled_at == later


def test_equal_filters_accept_each_others_cursor(goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(3))
    start = datetime(2020, 1, 1, 12, tzinfo=UTC)
    page = goqueue_store.list_jobs(JobFilter(created_from=start), limit=2)
    same = JobFilter(created_from=start.astimezone(timezone(timedelta(hours=2))))
    assert len(goqueue_store.list_jobs(same, cursor=page.next_cursor).jobs) == 1


def test_a_delay_is_a_length_of_time_even_over_a_clock_change(goqueue_database: str) -> None:
    half_a_year = timedelta(days=180)
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        connection.execute("SET TimeZone = 'Europe/Berlin'")
        bound = PostgresStorage.bound_to(connection)
        one = bound.create_job(NewJob(job_type="t", delay=half_a_year))
        many = NewJob(job_type="t", delay=half_a_year)
        bound.create_jobs([many])
        for job in (one, bound.get_job(many.id)):
            assert job.scheduled_at.astimezone(UTC) - job.created_at.astimezone(UTC) == half_a_year
        bound.reschedule_jobs(one.id, delay=half_a_year)
        moved = bound.get_job(one.id)
        assert moved.scheduled_at.astimezone(UTC) - moved.updated_at.astimezone(UTC) == half_a_year


def test_any_cursor_class_of_a_connection_works(goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database, cursor_factory=psycopg.RawCursor) as connection:
        bound = PostgresStorage.bound_to(connection)
        assert bound.get_job(bound.create_job(NewJob(job_type="t")).id).job_type == "t"


def test_calls_work_in_the_callers_pipeline(goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database) as connection, connection.pipeline():
        bound = PostgresStorage.bound_to(connection)
        job = bound.create_job(NewJob(job_type="t", idempotency_key="k"))
        assert bound.get_or_create_job(NewJob(job_type="t", idempotency_key="k")) == (job, False)
        assert len(bound.create_jobs(NewJob(job_type="t") for _ in range(1500))) == 1500
        assert bound.cancel_jobs(job.id) == 1
        assert bound.count_jobs() == 1501


def test_a_listener_of_a_class_bound_store_uses_the_same_database(goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        bound = PostgresStorage.bound_to(connection)
        with bound.listen("default") as listener:
            bound.create_job(NewJob(job_type="t"))
            assert listener.wait(timedelta(minutes=1)) == {"default"}


def test_an_insert_that_is_suppressed_does_not_spin(goqueue_store: PostgresStorage, goqueue_connection: Any) -> None:
    goqueue_connection.execute(
        """
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER nothing BEFORE INSERT ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION nothing()
        """
    )
    start = time.monotonic()
    for attempt in (goqueue_store.create_job, lambda job: goqueue_store.create_jobs([job])):
        with pytest.raises(DuplicateJobError, match="or a trigger or rule suppresses the insert"):
            attempt(NewJob(job_type="t"))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda store: store.create_job({"job_type": "t"}), "job must be a NewJob, not {"),
        (lambda store: store.update_job(uuid4(), {"priority": 5}), "update must be a JobUpdate"),
        (lambda store: store.list_jobs({}), "job_filter must be a JobFilter"),
        (lambda store: store.count_jobs("pending"), "job_filter must be a JobFilter"),
        (lambda store: store.replace_pending_job(None), "job must be a NewJob"),
        (
            lambda store: PostgresStorage.bound_to("postgresql://"),
            "connection must be a psycopg.Connection",
        ),
        (lambda store: PostgresStorage.open(None), "config must be a Config or a DatabaseConfig or a str"),
    ],
)
def test_arguments_of_another_type_are_rejected_by_name(goqueue_store: PostgresStorage, call: Any, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        call(goqueue_store)


def test_an_exception_is_accepted_as_an_error(goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    [job] = goqueue_store.claim_jobs("default", "w")
    goqueue_store.fail_job(job, ValueError("boom"))  # type: ignore[arg-type]
    assert goqueue_store.get_job(job.id).last_error == "boom"


def test_a_store_opens_with_a_complete_configuration(goqueue_database: str) -> None:
    with PostgresStorage.open(Config(database=DatabaseConfig(url=goqueue_database))) as store:
        store.ping()


def test_an_error_in_a_failed_transaction_says_what_to_do(goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database) as connection:
        store = PostgresStorage.bound_to(connection)
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT FROM nowhere")
        with pytest.raises(StorageError, match="roll back first"):
            store.ping()
        connection.rollback()
        store.ping()


def test_a_store_is_made_by_opening_it(goqueue_database: str) -> None:
    with pytest.raises(InvalidJobError, match=r"open\(\)"):
        PostgresStorage(goqueue_database)  # type: ignore[arg-type]
    with pytest.raises(InvalidJobError, match="a Config or a DatabaseConfig or a str, not None"):
        PostgresStorage.open(None)  # type: ignore[arg-type]


def test_a_limit_is_checked_before_waiting_for_a_connection(goqueue_database: str) -> None:
    limits = {"pool_min_size": 1, "pool_max_size": 1, "pool_timeout": timedelta(minutes=1)}
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, **limits)) as store, store._connection():
        start = time.monotonic()
        with pytest.raises(InvalidJobError, match="limit"):
            store.list_jobs(limit=0)
        assert time.monotonic() - start < 30
