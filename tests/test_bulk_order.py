"""Bulks with common jobs, in opposite orders: they wait for each other and don't deadlock."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    JobFilter,
    NewJob,
    PostgresStorage,
    TransactionConflictError,
)

CALLS = 100
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def unkeyed() -> list[NewJob]:
    return [NewJob(job_type="t") for _ in range(40)]


def mixed() -> list[NewJob]:
    keys = uuid4()
    jobs = [NewJob(job_type="t", idempotency_key=f"{keys} {n}" if n % 3 else None) for n in range(40)]
    random.Random(4).shuffle(jobs)
    return jobs


def uniquely() -> list[NewJob]:
    """Jobs with one of the keys, with both, and without."""
    keys = uuid4()
    kinds: list[tuple[str, ...]] = [(), ("idempotency_key",), ("unique_key",), ("idempotency_key", "unique_key")]
    jobs = [NewJob(job_type="t", **dict.fromkeys(kinds[n % 4], f"{keys} {n}")) for n in range(40)]  # type: ignore[arg-type]
    random.Random(5).shuffle(jobs)
    return jobs


def opposite(first: Callable[[], Any], second: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as threads:
        barrier = Barrier(2)

        def run(call: Callable[[], Any]) -> Any:
            barrier.wait()
            return call()

        for done in [threads.submit(run, call) for call in (first, second)]:
            done.result()


@pytest.mark.parametrize("make", [unkeyed, mixed, uniquely])
@pytest.mark.parametrize("batch_size", [1000, 7])
def test_the_same_jobs_in_opposite_orders_do_not_deadlock(
    make: Callable[[], list[NewJob]], batch_size: int, goqueue_database: str
) -> None:
    with PostgresStorage.open(
        DatabaseConfig(url=goqueue_database, lock_timeout=MINUTE, batch_size=batch_size)
    ) as store:
        for _ in range(CALLS):
            jobs = make()
            opposite(partial(store.create_jobs, jobs), partial(store.create_jobs, jobs[::-1]))


@pytest.mark.parametrize("make", [unkeyed, mixed, uniquely])
def test_opposite_orders_do_not_deadlock_in_transactions_of_the_callers(
    make: Callable[[], list[NewJob]], goqueue_database: str
) -> None:
    def bulk(connection: psycopg.Connection[Any], jobs: list[NewJob]) -> None:
        with connection.transaction():
            PostgresStorage.bound_to(connection).create_jobs(jobs)

    with psycopg.connect(goqueue_database) as first, psycopg.connect(goqueue_database) as second:
        for _ in range(CALLS):
            jobs = make()
            opposite(partial(bulk, first, jobs), partial(bulk, second, jobs[::-1]))


@pytest.mark.parametrize("make", [unkeyed, mixed, uniquely])
def test_opposite_orders_do_not_deadlock_in_asyncio(make: Callable[[], list[NewJob]], goqueue_database: str) -> None:
    async def main() -> None:
        config = DatabaseConfig(url=goqueue_database, lock_timeout=MINUTE)
        async with await AsyncPostgresStorage.open(config) as store:
            for _ in range(CALLS):
                jobs = make()
                results = await asyncio.gather(store.create_jobs(jobs), store.create_jobs(jobs[::-1]))
                assert [job_id for job_id, _ in results[0]] == [job.id for job in jobs]
                assert [job_id for job_id, _ in results[1]] == [job.id for job in jobs[::-1]]

    asyncio.run(main())


def test_the_results_have_the_given_order_and_the_first_job_of_each_key_is_added(
    goqueue_store: PostgresStorage,
) -> None:
    jobs = unkeyed() + [NewJob(job_type="t", idempotency_key="same") for _ in range(5)] + unkeyed()
    random.Random(7).shuffle(jobs)
    first = next(job for job in jobs if job.idempotency_key)
    results = goqueue_store.create_jobs(jobs)
    assert results == [
        (job.id, True) if job.idempotency_key is None or job is first else (first.id, False) for job in jobs
    ]


@pytest.mark.parametrize("kind", ["unique_key", "idempotency_key"])
def test_other_jobs_with_the_same_keys_in_opposite_orders_do_not_deadlock(kind: str, goqueue_database: str) -> None:
    """Each call has jobs of its own: only the keys are shared, and one of the calls adds all jobs."""
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, lock_timeout=MINUTE, batch_size=7)) as store:
        for turn in range(CALLS):
            keys = [f"{turn} {n}" for n in range(40)]
            calls = [[NewJob(job_type="t", **{kind: key}) for key in order] for order in (keys, keys[::-1])]
            before = store.count_jobs()
            opposite(*(partial(store.create_jobs, jobs) for jobs in calls))
            assert store.count_jobs() - before == len(keys)


def test_keys_of_both_kinds_that_are_shared_crosswise_raise_an_error_that_can_be_retried(
    goqueue_database: str,
) -> None:
    """No order of the rows serves both keys. Whoever loses can repeat the call."""
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, lock_timeout=MINUTE)) as store:

        def bulk(jobs: list[NewJob]) -> None:
            for _ in range(10):
                try:
                    store.create_jobs(jobs)
                except TransactionConflictError:
                    continue
                else:
                    return
            raise AssertionError("it never succeeds")

        for turn in range(5):  # each deadlock takes deadlock_timeout
            pairs = [[("a", "d"), ("b", "c")], [("c", "a"), ("d", "b")]]
            calls = [
                [NewJob(job_type="t", unique_key=f"{turn} {one}", idempotency_key=f"{turn} {two}") for one, two in each]
                for each in pairs
            ]
            opposite(*(partial(bulk, jobs) for jobs in calls))


@pytest.mark.parametrize("kind", ["unique_key", "idempotency_key"])
def test_the_first_job_of_each_key_is_added_in_every_batch(kind: str, goqueue_database: str) -> None:
    jobs = [NewJob(job_type="t", **{kind: f"k{n % 5}"}) for n in range(30)]
    random.Random(9).shuffle(jobs)
    first = {getattr(job, kind): job.id for job in reversed(jobs)}
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, lock_timeout=MINUTE, batch_size=7)) as store:
        results = store.create_jobs(jobs)
    assert results == [(first[getattr(job, kind)], first[getattr(job, kind)] == job.id) for job in jobs]


def test_changes_of_many_batches_in_transactions_of_the_callers_do_not_deadlock(
    goqueue_store: PostgresStorage, goqueue_database: str
) -> None:
    ids = [job_id for job_id, _ in goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(2500))]

    def change(connection: psycopg.Connection[Any], jobs: Any) -> None:
        with connection.transaction():
            assert PostgresStorage.bound_to(connection).reschedule_jobs(jobs, delay=HOUR) == 2500

    with psycopg.connect(goqueue_database) as first, psycopg.connect(goqueue_database) as second:
        for _ in range(5):
            opposite(partial(change, first, JobFilter(job_type="t")), partial(change, second, ids[::-1]))
