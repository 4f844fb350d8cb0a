"""The triggers' advisory lock: no cancelled statement leaves it; a waiting listener names its holder."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import AsyncPostgresStorage, DatabaseConfig, NewJob, PostgresStorage, StorageUnavailableError
from tests import workers

SECOND = timedelta(seconds=1)
KEY = 7453300657348765004
LEAKED = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND pid <> ALL(SELECT pid FROM pg_stat_activity WHERE state = 'active')
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def cancelling(connection: psycopg.Connection[Any]) -> Iterator[list[int]]:
    """Cancel all other sessions' statements repeatedly; return how many each time."""
    counts: list[int] = []
    is_over = threading.Event()

    def cancel() -> None:
        while not is_over.is_set():
            [(count,)] = connection.execute(
                "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'"
            )
            counts.append(count)
            time.sleep(0.0005)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()


@pytest.mark.timeout(300)
def test_a_cancelled_statement_leaves_no_lock_behind(
    goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        with cancelling(goqueue_connection) as counts:
            until = time.monotonic() + 4
            while time.monotonic() < until or (sum(counts) < 300 and time.monotonic() < until + 200):
                for statement in (
                    "INSERT INTO goqueue.jobs (job_type) SELECT 'x' FROM generate_series(1, 3)",
                    "UPDATE goqueue.jobs SET scheduled_at = 'infinity' WHERE scheduled_at <= now()",
                    "UPDATE goqueue.jobs SET scheduled_at = now() WHERE scheduled_at > now()",
                    "DELETE FROM goqueue.jobs",
                ):
                    with suppress(psycopg.errors.QueryCanceled):
                        connection.execute(statement)
        assert sum(counts) >= 300
        rows = goqueue_connection.execute(
            "SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = %s", [connection.info.backend_pid]
        )
        assert rows.fetchall() == []


@pytest.mark.anyio
async def test_cancelled_tasks_leave_no_lock_behind(goqueue_database: str) -> None:
    async with await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, pool_max_size=4)) as store:
        cancelled = number = 0
        while number < 200 or (cancelled < 20 and number < 10_000):  # on a fast machine, most calls end first
            number += 1
            task = asyncio.create_task(store.create_job(NewJob(job_type="t")))
            await asyncio.sleep(number % 20 * 0.0002)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled >= 20
        async with store._connection() as connection:
            assert await (await connection.execute(LEAKED)).fetchone() == (0,)
        async with store.listen("default") as listener:
            await store.create_job(NewJob(job_type="t"))
            assert await listener.wait(60 * SECOND) == {"default"}


class TestAListenerThatHasToWait:
    @pytest.fixture
    def keeper(self, goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
        """A session with a lock left by an older trigger."""
        with psycopg.connect(goqueue_database, autocommit=True, application_name="nightly 'import'") as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [KEY])
            yield connection

    @pytest.mark.parametrize("limits", [{}, {"lock_timeout": timedelta(0), "statement_timeout": 2 * SECOND}])
    def test_a_listener_names_the_session_it_waits_for(
        self, keeper: psycopg.Connection[Any], goqueue_database: str, limits: dict[str, timedelta]
    ) -> None:
        config = DatabaseConfig(url=goqueue_database, **({"lock_timeout": SECOND / 5} | limits))
        with PostgresStorage.open(config) as store:
            pid = keeper.info.backend_pid
            with pytest.raises(StorageUnavailableError, match="nightly 'import'") as caught, store.listen("q"):
                pass
            assert f"pid {pid}" in str(caught.value)
            assert f"pg_terminate_backend({pid})" in str(caught.value)
            assert isinstance(caught.value.__cause__, psycopg.Error)
            keeper.execute("SELECT pg_advisory_unlock(%s)", [KEY])
            with store.listen("default") as listener:
                store.create_job(NewJob(job_type="t"))
                assert listener.wait(60 * SECOND) == {"default"}

    @pytest.mark.anyio
    async def test_an_asynchronous_listener_names_the_session_it_waits_for(
        self, keeper: psycopg.Connection[Any], goqueue_database: str
    ) -> None:
        config = DatabaseConfig(url=goqueue_database, lock_timeout=SECOND / 5)
        async with await AsyncPostgresStorage.open(config) as store:
            with pytest.raises(StorageUnavailableError, match=f"pid {keeper.info.backend_pid}"):
                await store.listen("q").__aenter__()

    def test_an_open_listener_continues_to_wait_and_logs_the_reason(
        self, goqueue_database: str, goqueue_connection: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        config = DatabaseConfig(url=goqueue_database, lock_timeout=SECOND / 5)
        with PostgresStorage.open(config) as store, store.listen("default") as listener:
            assert listener._connection is not None
            pid = listener._connection.info.backend_pid
            goqueue_connection.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
            goqueue_connection.execute("SELECT pg_advisory_lock(%s)", [KEY])
            workers.until(lambda: listener.wait(SECOND) == frozenset() and "the listener can't open" in caplog.text)
            goqueue_connection.execute("SELECT pg_advisory_unlock(%s)", [KEY])
            assert listener.wait(60 * SECOND) == {"default"}
