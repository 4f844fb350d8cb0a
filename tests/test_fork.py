"""A forked process leaves its parent's connections alone. Calls are rejected by name. Closing, collecting and exiting
don't end the parent's sessions."""

import asyncio
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import AsyncPostgresStorage, DatabaseConfig, NewJob, PostgresStorage, StorageError
from tests.workers import until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SECOND = timedelta(seconds=1)


def in_a_fork(work: Callable[[], Any], *, leaves: Callable[[int], Any] = os._exit) -> None:
    """Run ``work`` in a child of this process, and raise its failure here. ``leaves``: how the child ends."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode())
            os._exit(1)
        os.close(write)
        try:
            leaves(0)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert (said, status) == ("", 0), said


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises(StorageError, match="in the parent process"):
        call()


@pytest.fixture
def config(goqueue_database: str) -> DatabaseConfig:
    """A pool that is full once open: otherwise, on a busy machine, another connection would be opened meanwhile."""
    return DatabaseConfig(url=goqueue_database, pool_min_size=1, pool_max_size=1)


@pytest.fixture
def goqueue_store(config: DatabaseConfig) -> Iterator[PostgresStorage]:
    with PostgresStorage.open(config) as store:
        yield store


@pytest.fixture
def sessions(goqueue_connection: psycopg.Connection[Any]) -> Iterator[Callable[[], set[int]]]:
    """Return the processes of this database's sessions, except our own: that of the pool and that of the listener."""

    def select() -> set[int]:
        rows = goqueue_connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        return {pid for (pid,) in rows}

    # The server can still be ending the session with which the pool was opened.
    return lambda: until(lambda: pids if len(pids := select()) == 2 else None)


@pytest.mark.parametrize("leaves", [os._exit, sys.exit])
def test_a_child_that_closes_a_listener_leaves_it_to_the_parent(
    goqueue_store: PostgresStorage, sessions: Callable[[], set[int]], leaves: Callable[[int], Any]
) -> None:
    with goqueue_store.listen("default") as listener:
        before = sessions()

        def work() -> None:
            refused(lambda: listener.wait(SECOND))
            listener.close()
            listener.close()

        in_a_fork(work, leaves=leaves)
        assert sessions() == before
        goqueue_store.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def test_a_child_that_waits_steals_no_notification(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("default") as listener:
        goqueue_store.create_job(NewJob(job_type="t"))
        in_a_fork(lambda: refused(lambda: listener.wait(SECOND)))
        assert listener.wait(60 * SECOND) == {"default"}


def test_a_child_that_ends_within_the_parents_with_leaves_its_sessions_alone(
    config: DatabaseConfig, sessions: Callable[[], set[int]]
) -> None:
    with PostgresStorage.open(config) as store, store.listen("default") as listener:
        store.create_job(NewJob(job_type="t"))
        listener.wait(60 * SECOND)
        before = sessions()

        def work() -> None:
            listener.__exit__(None, None, None)
            store.__exit__(None, None, None)

        in_a_fork(work, leaves=sys.exit)
        in_a_fork(lambda: None, leaves=sys.exit)
        assert sessions() == before
        assert store.count_jobs() == 1
        store.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def test_a_listener_that_the_child_garbage_collects_still_works_in_the_parent(
    goqueue_store: PostgresStorage, sessions: Callable[[], set[int]]
) -> None:
    kept = [goqueue_store.listen("default").__enter__()]
    before = sessions()
    in_a_fork(kept.clear)
    assert sessions() == before
    goqueue_store.create_job(NewJob(job_type="t"))
    assert kept[0].wait(60 * SECOND) == {"default"}
    kept[0].close()


def test_a_listener_made_before_the_fork_can_be_opened_in_the_child(goqueue_store: PostgresStorage) -> None:
    listener = goqueue_store.listen("default")

    def work() -> None:
        with listener:
            assert listener.wait(timedelta(0)) == frozenset()

    in_a_fork(work)


def test_a_bound_store_rejects_calls_in_a_child(goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        store = PostgresStorage.bound_to(connection)
        in_a_fork(lambda: refused(store.ping))
        in_a_fork(lambda: refused(lambda: store.create_job(NewJob(job_type="t"))), leaves=sys.exit)
        assert store.count_jobs() == 0


def test_a_fork_in_a_thread_is_detected_too(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("default") as listener:
        problems: list[BaseException] = []

        def fork() -> None:
            try:
                in_a_fork(
                    lambda: (refused(goqueue_store.ping), refused(lambda: listener.wait(SECOND)), listener.close())
                )
            except BaseException as error:
                problems.append(error)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        assert problems == []
        goqueue_store.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def _child(store: PostgresStorage, listener: Any, answers: Any) -> None:
    for call in (store.ping, lambda: listener.wait(SECOND)):
        try:
            call()
        except StorageError as error:
            answers.put(str(error))
    listener.close()
    store.close()


def test_a_fork_by_multiprocessing_is_detected_too(goqueue_store: PostgresStorage) -> None:
    context = multiprocessing.get_context("fork")
    with goqueue_store.listen("default") as listener:
        answers = context.Queue()
        process = context.Process(target=_child, args=(goqueue_store, listener, answers))
        process.start()
        assert ["in the parent process" in answers.get(timeout=60) for _ in range(2)] == [True, True]
        process.join()
        assert process.exitcode == 0
        goqueue_store.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def test_an_asynchronous_listener_and_store_reject_calls_in_a_child(
    config: DatabaseConfig, sessions: Callable[[], set[int]]
) -> None:
    async def main() -> None:
        async with await AsyncPostgresStorage.open(config) as store, store.listen("default") as listener:
            before = sessions()
            child = os.fork()
            if child == 0:
                code = 0
                for call in (store.ping, lambda: listener.wait(SECOND)):
                    try:
                        await call()
                        code = 1
                    except StorageError as error:
                        code = code or ("in the parent process" not in str(error))
                await listener.close()
                await store.close()
                os._exit(code)
            assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
            assert sessions() == before
            await store.create_job(NewJob(job_type="t"))
            assert await listener.wait(60 * SECOND) == {"default"}

    asyncio.run(main())
