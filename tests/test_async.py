"""Aspects of asyncio in the asynchronous store: cancellation, event loops, async iterables, many tasks at once.

conftest's `store` checks the contract on both stores.
"""

import asyncio
import gc
import inspect
import logging
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from goqueue import (
    AsyncListener,
    AsyncPostgresStorage,
    AsyncStorage,
    DatabaseConfig,
    DuplicateJobError,
    InvalidJobError,
    Job,
    JobFilter,
    JobStatus,
    Listener,
    NewJob,
    PostgresStorage,
    Storage,
    StorageError,
    StorageUnavailableError,
)
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer
from tests.standby import free_port

pytestmark = pytest.mark.anyio

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Unclosed connections and coroutines never awaited warn when they are collected."""
    yield
    gc.collect()


@pytest.fixture
async def store(goqueue_database: str) -> AsyncIterator[AsyncPostgresStorage]:
    """A store with one connection: if it isn't returned, the next call fails."""
    limits: Any = {"pool_min_size": 1, "pool_max_size": 1, "lock_timeout": MINUTE, "statement_timeout": MINUTE}
    async with await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, **limits)) as opened:
        yield opened


@pytest.fixture
def other(goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session's connection. Its transaction stays open until it is rolled back."""
    with psycopg.connect(goqueue_database) as connection:
        yield connection


class Server:
    """Return the server's view of the store's sessions."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def sessions(self) -> list[tuple[int, str, str, str]]:
        return self._connection.execute(
            "SELECT pid, state, coalesce(wait_event_type, ''), query FROM pg_stat_activity "
            "WHERE application_name = 'goqueue' AND datname = current_database() ORDER BY pid"
        ).fetchall()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    async def waits(self, name: str) -> None:
        """Wait until the statement waits for a lock."""
        await self.until(
            lambda: any(kind == "Lock" and f"goqueue:{name} " in query for *_, kind, query in self.sessions())
        )

    def lose(self) -> None:
        self._connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE application_name = 'goqueue' AND datname = current_database()"
        )


@pytest.fixture
def server(goqueue_connection: psycopg.Connection[Any]) -> Server:
    return Server(goqueue_connection)


# --- cancellation: each case has a call and a condition to wait for before it is cancelled ----------------------------


async def by_cancel(call: Coroutine[Any, Any, Any], under_way: Awaitable[None]) -> None:
    task = asyncio.create_task(call)
    await under_way
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancelling_again_and_again(call: Coroutine[Any, Any, Any], under_way: Awaitable[None]) -> None:
    task = asyncio.create_task(call)
    await under_way
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(call: Coroutine[Any, Any, Any], under_way: Awaitable[None]) -> None:
    async def expire() -> None:
        await under_way
        limit.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(None) as limit:
            expiring = asyncio.create_task(expire())
            await call
    await expiring


async def by_cancel_scope(call: Coroutine[Any, Any, Any], under_way: Awaitable[None]) -> None:
    """Cancel as FastAPI's middlewares do: anyio cancels a task until it ends."""

    async def cancel() -> None:
        await under_way
        scope.cancel()

    with anyio.CancelScope() as scope:
        cancelling = asyncio.create_task(cancel())
        await call
    assert scope.cancelled_caught
    await cancelling


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a busy server longer to end a cancelled statement than 1.5 seconds, after which its connection is closed."""
    monkeypatch.setattr("goqueue.postgres.connection_async._PATIENCE", 60.0)


Cancel = Callable[[Coroutine[Any, Any, Any], Awaitable[None]], Awaitable[None]]
WAYS = [by_cancel, by_cancelling_again_and_again, by_timeout, by_cancel_scope]


@pytest.mark.parametrize("cancel", WAYS)
class TestCancelling:
    """The server's statement ends, no partial change stays, and the same connection is usable again."""

    @pytest.fixture
    async def clean(
        self, store: AsyncPostgresStorage, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[None]:
        patient(monkeypatch)
        await store.ping()
        # The server can still be ending the session with which the pool was opened.
        await server.until(lambda: len(server.sessions()) == 1)
        [(before, *_)] = server.sessions()
        yield
        [(pid, state, _, _)] = server.sessions()
        assert (pid, state) == (before, "idle"), "not in a transaction, and not another connection"
        await asyncio.wait_for(store.ping(), 60)

    @pytest.mark.usefixtures("clean")
    async def test_a_cancelled_creation_that_waits_for_its_key_adds_nothing(
        self, store: AsyncPostgresStorage, server: Server, other: Any, cancel: Cancel
    ) -> None:
        PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
        new = NewJob(job_type="t", idempotency_key="k")
        await cancel(store.create_job(new), server.waits("create_job"))
        assert server.sessions()[0][1] == "idle", "while the lock is still held"
        other.rollback()
        assert await store.count_jobs() == 0
        assert (await store.create_job(new)).id == new.id

    @pytest.mark.usefixtures("clean")
    async def test_a_bulk_cancelled_in_the_middle_adds_nothing(
        self, store: AsyncPostgresStorage, server: Server, other: Any, cancel: Cancel
    ) -> None:
        PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
        jobs = [NewJob(job_type="t", idempotency_key="k" if number == 2200 else None) for number in range(2500)]
        await cancel(store.create_jobs(jobs), server.waits("create_missing_jobs"))
        other.rollback()
        assert await store.count_jobs() == 0
        assert len(await store.create_jobs(jobs)) == 2500

    @pytest.mark.usefixtures("clean")
    async def test_batches_that_were_yielded_before_a_cancellation_stay(
        self, store: AsyncPostgresStorage, server: Server, other: Any, cancel: Cancel
    ) -> None:
        PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
        jobs = [NewJob(job_type="t", idempotency_key="k" if number == 2200 else None) for number in range(2500)]

        async def add() -> None:
            async for _ in store.create_jobs_in_batches(jobs):
                pass

        await cancel(add(), server.waits("create_missing_jobs"))
        assert await store.count_jobs() == 2000

    @pytest.mark.usefixtures("clean")
    async def test_a_cancelled_claim_behind_a_locked_table_claims_nothing(
        self, store: AsyncPostgresStorage, server: Server, other: Any, cancel: Cancel
    ) -> None:
        await store.create_jobs(NewJob(job_type="t") for _ in range(5))
        other.execute("LOCK TABLE goqueue.jobs")
        await cancel(store.claim_jobs("default", "w", 5), server.waits("claim_jobs"))
        other.rollback()
        assert await store.count_jobs(JobFilter(status=JobStatus.PENDING)) == 5
        assert len(await store.claim_jobs("default", "w", 5)) == 5

    @pytest.mark.usefixtures("clean")
    async def test_waiting_for_a_connection_can_be_cancelled(self, store: AsyncPostgresStorage, cancel: Cancel) -> None:
        async def queued() -> None:
            while not store._pool.get_stats()["requests_waiting"]:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)

        async with store._connection():
            await cancel(store.ping(), queued())
        await asyncio.wait_for(store.ping(), 60)

    async def test_waiting_for_a_notification_can_be_cancelled(
        self, store: AsyncPostgresStorage, server: Server, cancel: Cancel
    ) -> None:
        async with store.listen("default") as listener:
            await cancel(listener.wait(MINUTE), asyncio.sleep(0.1))
            await store.create_job(NewJob(job_type="t"))
            assert await listener.wait(MINUTE) == {"default"}
        await server.until(lambda: len(server.sessions()) == 1)


# Only once: psycopg closes a caller's own connection if it is cancelled again meanwhile.
@pytest.mark.parametrize("cancel", [by_cancel, by_timeout])
async def test_in_the_callers_transaction_only_the_caller_rolls_back(
    goqueue_database: str, server: Server, other: Any, cancel: Cancel
) -> None:
    PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
    url = psycopg.conninfo.make_conninfo(goqueue_database, application_name="goqueue")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        bound = AsyncPostgresStorage.bound_to(connection)
        await bound.create_job(NewJob(job_type="t"))
        await cancel(bound.create_job(NewJob(job_type="t", idempotency_key="k")), server.waits("create_job"))
        await connection.rollback()
        assert await bound.count_jobs() == 0


@pytest.mark.parametrize("way", ["scope", "task"])
async def test_a_cancellation_at_any_moment_leaves_the_pool_complete(
    goqueue_database: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch)
    limits: Any = {"pool_min_size": 2, "pool_max_size": 2}
    chance = random.Random(way)
    async with await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, **limits)) as store:
        pool = store._pool
        assert pool is not None
        await pool.wait()

        async def work(number: int) -> None:
            new = [NewJob(job_type="t", idempotency_key=f"{number}-{count}") for count in range(40)]
            assert len(await store.create_jobs(new)) == 40
            await store.complete_jobs(await store.claim_jobs("default", "w", 5))
            await store.get_or_create_job(NewJob(job_type="t", idempotency_key=f"{number % 3}"))

        async def hurried(number: int) -> None:
            seconds = chance.random() * 0.03
            if way == "scope":
                with anyio.move_on_after(seconds):
                    await work(number)
            else:
                task = asyncio.create_task(work(number))
                await asyncio.wait([task], timeout=seconds)
                task.cancel()
                await asyncio.wait([task])

        for turn in range(40):
            await asyncio.gather(*(hurried(turn * 4 + place) for place in range(4)))
        async with store._connection(), store._connection():
            pass
        stats = pool.get_stats()
        assert (stats["pool_size"], stats["requests_waiting"]) == (2, 0)
        assert (stats["connections_num"], stats.get("returns_bad", 0)) == (2, 0), "none had to be replaced"
        bulks = [job async for job in every_job(store) if "-" in (job.idempotency_key or "")]
        assert len(bulks) % 40 == 0, "each bulk is there as a whole or not at all"


async def test_a_cancellation_loses_no_connection_that_is_being_returned(store: AsyncPostgresStorage) -> None:
    held, done = asyncio.Event(), asyncio.Event()

    async def use() -> None:
        async with store._connection():
            held.set()
            await done.wait()

    using = asyncio.create_task(use())
    await held.wait()
    async with store._pool._lock:  # type: ignore[union-attr]  # somebody else is being given or giving back one
        done.set()
        for _ in range(10):
            await asyncio.sleep(0)
            using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await asyncio.wait_for(store.ping(), 60)


async def every_job(store: AsyncPostgresStorage) -> AsyncIterator[Job]:
    cursor = None
    while True:
        page = await store.list_jobs(limit=1000, cursor=cursor)
        for job in page.jobs:
            yield job
        if (cursor := page.next_cursor) is None:
            return


async def test_a_server_that_does_not_end_the_statement_costs_the_connection(
    store: AsyncPostgresStorage, server: Server, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goqueue.postgres.connection_async._PATIENCE", 0.1)
    async with store._connection() as connection:

        async def refuse(**_: Any) -> None:
            """The cancel request is lost on its way."""

        monkeypatch.setattr(connection, "cancel_safe", refuse)
    job = await store.create_job(NewJob(job_type="t"))
    other.execute("SELECT FROM goqueue.jobs FOR UPDATE")
    await by_cancel(store.delete_job(job.id), server.waits("delete_job"))
    other.rollback()
    await asyncio.wait_for(store.ping(), 60)


# --- many tasks, iterables, transactions ------------------------------------------------------------------------------


async def test_many_calls_share_few_connections(goqueue_database: str, server: Server) -> None:
    limits: Any = {"pool_min_size": 1, "pool_max_size": 3}
    async with await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, **limits)) as store:
        jobs = await asyncio.gather(*(store.create_job(NewJob(job_type="t", payload=n)) for n in range(200)))
        assert await asyncio.gather(*(store.get_job(job.id) for job in jobs)) == jobs
        claims = await asyncio.gather(*(store.claim_jobs("default", f"w{n}", 20) for n in range(20)))
        assert sorted(job.id for claim in claims for job in claim) == sorted(job.id for job in jobs)
        await server.until(lambda: len(server.sessions()) <= 3)


async def test_one_key_from_many_tasks_makes_one_job(goqueue_database: str) -> None:
    async with await AsyncPostgresStorage.open(goqueue_database) as store:
        new = [NewJob(job_type="t", idempotency_key="k") for _ in range(50)]
        results = await asyncio.gather(*(store.get_or_create_job(job) for job in new))
    assert len({job.id for job, _ in results}) == 1
    assert sum(created for _, created in results) == 1


def plain(count: int) -> Iterator[NewJob]:
    return (NewJob(job_type="t") for _ in range(count))


async def asynchronous(count: int) -> AsyncIterator[NewJob]:
    for job in plain(count):
        await asyncio.sleep(0)
        yield job


@pytest.mark.parametrize("source", [plain, asynchronous])
class TestIterables:
    async def test_an_asynchronous_iterable_is_added_in_one_call(
        self, store: AsyncPostgresStorage, source: Any
    ) -> None:
        assert len(await store.create_jobs(source(1500))) == 1500
        assert await store.count_jobs() == 1500

    async def test_an_asynchronous_iterable_is_added_in_batches(self, store: AsyncPostgresStorage, source: Any) -> None:
        assert [len(batch) async for batch in store.create_jobs_in_batches(source(2500))] == [1000, 1000, 500]
        assert await store.count_jobs() == 2500

    async def test_a_loop_that_is_left_early_returns_its_connection(
        self, store: AsyncPostgresStorage, server: Server, source: Any
    ) -> None:
        async with aclosing(store.create_jobs_in_batches(source(5000))) as batches:
            async for batch in batches:
                assert len(batch) == 1000
                await asyncio.wait_for(store.ping(), 60)  # even in the middle of it: there is only one connection
                break
        async for _ in store.create_jobs_in_batches(source(5000)):
            break
        await asyncio.wait_for(store.ping(), 60)
        assert [state for _, state, *_ in server.sessions()] == ["idle"]
        assert await store.count_jobs() == 2000

    async def test_an_error_of_the_iterable_in_the_middle_adds_nothing_more(
        self, store: AsyncPostgresStorage, source: Any
    ) -> None:
        async def failing() -> AsyncIterator[NewJob]:
            async for job in asynchronous(1500):
                yield job
            raise LookupError("of the caller's own")

        with pytest.raises(LookupError):
            await store.create_jobs(failing())
        assert await store.count_jobs() == 0
        with pytest.raises(LookupError):
            async for _ in store.create_jobs_in_batches(failing()):
                pass
        assert await store.count_jobs() == 1000


async def test_jobs_can_come_from_the_same_store(store: AsyncPostgresStorage) -> None:
    first = [job_id for job_id, _ in await store.create_jobs(plain(1200))]

    async def copies() -> AsyncIterator[NewJob]:
        for job_id in first:
            job = await store.get_job(job_id)
            yield NewJob(job_type=job.job_type, queue="copy")

    assert len(await store.create_jobs(copies())) == 1200
    assert sum([len(batch) async for batch in store.create_jobs_in_batches(copies())]) == 1200


async def test_other_tasks_run_while_jobs_are_read(store: AsyncPostgresStorage) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def jobs() -> Iterator[NewJob]:
        yield from plain(5000)
        turns_at_the_end.append(turns)

    turns_at_the_end: list[int] = []
    counting = asyncio.create_task(count())
    await store.create_jobs(jobs())
    counting.cancel()
    assert turns_at_the_end[0] >= 20


class TestBound:
    @pytest.fixture
    async def connection(self, goqueue_database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await psycopg.AsyncConnection.connect(goqueue_database) as connection:
            yield connection

    async def test_commits_and_rolls_back_with_the_callers_transaction(
        self, store: AsyncPostgresStorage, connection: psycopg.AsyncConnection[Any]
    ) -> None:
        bound = store.bound_to(connection)
        kept = await bound.create_job(NewJob(job_type="kept"))
        await bound.create_jobs(plain(1500))
        assert await store.count_jobs() == 0
        await connection.rollback()
        assert await store.count_jobs() == 0
        kept = await bound.create_job(NewJob(job_type="kept"))
        await connection.commit()
        assert (await store.list_jobs()).jobs == [kept]

    async def test_a_rolled_back_savepoint_removes_its_jobs(
        self, store: AsyncPostgresStorage, connection: psycopg.AsyncConnection[Any]
    ) -> None:
        bound = AsyncPostgresStorage.bound_to(connection=connection)
        async with connection.transaction():
            kept = await bound.create_job(NewJob(job_type="kept"))
            with pytest.raises(LookupError):  # noqa: PT012
                async with connection.transaction():
                    await bound.create_jobs(plain(10))
                    raise LookupError
        assert (await store.list_jobs()).jobs == [kept]

    async def test_closing_it_leaves_the_connection_open(self, connection: psycopg.AsyncConnection[Any]) -> None:
        async with AsyncPostgresStorage.bound_to(connection) as bound:
            await bound.create_job(NewJob(job_type="t"))
        assert not connection.closed
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS

    async def test_calls_work_in_the_callers_pipeline(self, connection: psycopg.AsyncConnection[Any]) -> None:
        bound = AsyncPostgresStorage.bound_to(connection)
        async with connection.pipeline():
            job = await bound.create_job(NewJob(job_type="t", idempotency_key="k"))
            with pytest.raises(DuplicateJobError):
                await bound.create_job(NewJob(job_type="t", idempotency_key="k"))
            assert len(await bound.create_jobs(plain(1500))) == 1500
            await bound.delete_job(job.id)
        assert await bound.count_jobs() == 1500


async def test_a_connection_of_the_other_kind_is_rejected(goqueue_database: str, goqueue_connection: Any) -> None:
    with pytest.raises(InvalidJobError, match=r"must be a psycopg.AsyncConnection .*not psycopg.Connection;"):
        AsyncPostgresStorage.bound_to(goqueue_connection)
    async with await psycopg.AsyncConnection.connect(goqueue_database) as connection:
        with pytest.raises(InvalidJobError, match=r"must be a psycopg.Connection .*not psycopg.AsyncConnection;"):
            PostgresStorage.bound_to(connection)  # type: ignore[arg-type]


# --- lost connections, loops, closing ---------------------------------------------------------------------------------


async def test_lost_connections_are_replaced_without_an_error(goqueue_database: str, server: Server) -> None:
    async with await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, pool_min_size=4)) as store:
        for _ in range(3):
            server.lose()
            await asyncio.gather(*(store.ping() for _ in range(8)))


async def test_a_connection_lost_in_the_middle_of_create_makes_no_second_job(
    store: AsyncPostgresStorage, server: Server, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
    new = NewJob(job_type="t", idempotency_key="k")
    call = asyncio.create_task(store.create_job(new))
    await server.waits("create_job")
    server.lose()
    with pytest.raises(StorageUnavailableError):
        await call
    other.rollback()
    job = await store.create_job(new)
    assert await store.create_job(new) == job
    assert (await store.list_jobs()).jobs == [job]


async def test_the_store_recovers_when_the_server_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    port = free_port()
    # By TCP, because the socket's folder changes with a restart.
    server = EmbeddedServer(tmp_path / "data", settings={"listen_addresses": "127.0.0.1", "port": port})
    with ExitStack() as at_end:
        at_end.callback(server.stop)
        server.start()
        migrate(server.url())
        limits: Any = {"pool_min_size": 3, "pool_max_size": 4, "pool_timeout": 5 * SECOND}
        config = DatabaseConfig(url=f"postgresql://postgres@127.0.0.1:{port}/postgres", **limits)
        async with await AsyncPostgresStorage.open(config) as store:
            jobs = await asyncio.gather(*(store.create_job(NewJob(job_type="t")) for _ in range(20)))
            server.stop()
            async with asyncio.timeout(60):
                with pytest.raises(StorageUnavailableError):
                    await store.get_job(jobs[0].id)
            server.start()
            assert await asyncio.gather(*(store.get_job(job.id) for job in jobs)) == jobs


class TestListener:
    async def test_it_wakes_for_a_job_of_its_queues_only(self, store: AsyncPostgresStorage) -> None:
        async with store.listen(["mail"]) as listener:
            await store.create_job(NewJob(job_type="t", queue="report"))
            assert await listener.wait(SECOND / 4) == frozenset()
            waiting = asyncio.create_task(listener.wait(timedelta.max))
            await asyncio.sleep(0)
            await store.create_job(NewJob(job_type="t", queue="mail"))
            assert await asyncio.wait_for(waiting, 60) == {"mail"}

    async def test_it_does_not_listen_again_after_a_close_during_a_wait(self, store: AsyncPostgresStorage) -> None:
        async with store.listen("default") as listener:
            waiting = asyncio.create_task(listener.wait(2 * SECOND))
            await asyncio.sleep(0.2)
            await listener.close()
            with pytest.raises(StorageError, match="the listener is closed"):
                await asyncio.wait_for(waiting, 10)
            assert listener._connection is None

    async def test_it_reopens_a_lost_connection(self, store: AsyncPostgresStorage, server: Server) -> None:
        async with store.listen("default") as listener:
            server.lose()
            assert await listener.wait(timedelta.max) == {"default"}, "a hint may have been missed"
            await store.create_job(NewJob(job_type="t"))
            assert await listener.wait(MINUTE) == {"default"}

    async def test_a_negative_timeout_does_not_wait(self, store: AsyncPostgresStorage) -> None:
        async with store.listen("default") as listener:
            assert await asyncio.wait_for(listener.wait(-SECOND), 60) == frozenset()

    @pytest.mark.parametrize("timeout", [None, 5, "1s"])
    async def test_a_timeout_of_another_type_is_rejected(self, store: AsyncPostgresStorage, timeout: Any) -> None:
        async with store.listen("default") as listener:
            with pytest.raises(InvalidJobError, match="timeout must be a timedelta"):
                await listener.wait(timeout)


async def test_a_closed_store_rejects_calls(goqueue_database: str) -> None:
    store = await AsyncPostgresStorage.open(goqueue_database)
    await store.close()
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await store.ping()


async def test_callers_that_wait_when_the_store_is_closed_get_an_error(store: AsyncPostgresStorage) -> None:
    async with store._connection():
        waiting = asyncio.create_task(store.ping())
        await asyncio.sleep(0.1)
        await store.close()
        with pytest.raises(StorageError, match="closed"):
            await waiting


async def test_opening_can_be_cancelled(goqueue_database: str, server: Server, other: Any) -> None:
    other.execute("LOCK TABLE goqueue.jobs")
    for cancel in (by_cancel, by_timeout):
        await cancel(AsyncPostgresStorage.open(goqueue_database), server.waits("ping"))
        await server.until(lambda: not server.sessions())


async def test_another_event_loop_is_rejected(store: AsyncPostgresStorage) -> None:
    def elsewhere() -> None:
        with pytest.raises(StorageError, match="another event loop; open one per event loop"):
            asyncio.run(store.ping())
        with pytest.raises(StorageError, match="another event loop; open one per event loop"):
            asyncio.run(store.close())

    await asyncio.to_thread(elsewhere)
    await store.ping()


async def test_an_event_loop_that_psycopg_cannot_use_is_named(
    goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows raises this: its default loop can't watch sockets.
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(asyncio, "ProactorEventLoop", asyncio.SelectorEventLoop, raising=False)
    with pytest.raises(StorageError, match=r"'ProactorEventLoop'.*SelectorEventLoop") as caught:
        await AsyncPostgresStorage.open(goqueue_database)
    assert not isinstance(caught.value, StorageUnavailableError), "trying again will not help"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_child_that_closes_the_store_leaves_the_parents_connections(
    goqueue_store: PostgresStorage, server: Server
) -> None:
    before = server.sessions()
    child = os.fork()
    if child == 0:
        goqueue_store.close()
        os._exit(0)
    os.waitpid(child, 0)
    goqueue_store.ping()
    # On a busy machine the pool may have opened another one.
    assert {pid for pid, *_ in before} <= {pid for pid, *_ in server.sessions()}


# --- both halves are the same -----------------------------------------------------------------------------------------


def members(kind: type) -> dict[str, Any]:
    return {
        name.replace("__a", "__"): member
        for name, member in vars(kind).items()
        if (not name.startswith("_") or name in ("__enter__", "__aenter__", "__exit__", "__aexit__"))
    }


def without_async(text: str) -> str:
    text = re.sub(r" \| (collections\.abc\.)?AsyncIterable\[[^]]*\]|, for asyncio", "", text)
    text = text.replace("per event loop", "per process").replace("between tasks", "between threads")
    text = re.sub(r"psycopg\.AsyncConnection\.connect|await |async (?=def|with|for)", "", text)
    return re.sub(r"Async(?=[A-Z])|(?<=\w)_async(?=\.)", "", text).replace("psycopg.connect", "")


@pytest.mark.parametrize(
    ("one", "other_one"),
    [(PostgresStorage, AsyncPostgresStorage), (Storage, AsyncStorage), (Listener, AsyncListener)],
)
def test_both_have_the_same_methods(one: type, other_one: type) -> None:
    assert members(one).keys() == members(other_one).keys()
    for name, member in members(other_one).items():
        twin = members(one)[name]
        assert without_async(inspect.getdoc(member) or "") == without_async(inspect.getdoc(twin) or ""), name
        if not callable(member) and not isinstance(member, classmethod):
            continue
        ours, theirs = (inspect.signature(getattr(found, "__func__", found)) for found in (member, twin))
        assert without_async(str(ours)) == str(theirs), name
        makes_iterator = inspect.isasyncgenfunction(member) or "Iterator" in str(ours.return_annotation)
        is_plain = makes_iterator or name == "listen" or name == "__init__"
        assert inspect.iscoroutinefunction(getattr(member, "__func__", member)) != is_plain, name
        assert not inspect.iscoroutinefunction(getattr(twin, "__func__", twin)), name


@pytest.mark.parametrize("kind", [PostgresStorage, AsyncPostgresStorage, Listener, AsyncListener])
def test_every_method_has_a_test_of_its_static_types(kind: type) -> None:
    types = Path(__file__).with_name("static_types.py").read_text("utf-8")
    of_kind = types.split("async def asynchronous")["Async" in kind.__name__]
    for name in members(kind):
        assert name.startswith("_") or f".{name}(" in of_kind, (
            f"call {kind.__name__}.{name} in tests/static_types.py and assert the type of its result"
        )


def test_a_generated_module_is_stale_when_its_source_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import catalogue, unasync

    made = unasync.made_modules()
    names = ["connection", "cursor", "listener", "pool", "run", "storage", "store", "worker"]
    assert sorted(path.stem for path in made) == names
    assert all(path.read_text("utf-8").startswith("# Made by `make catalogue`") for path in made)
    unchanged = unasync.synchronous
    monkeypatch.setattr(unasync, "synchronous", lambda source: unchanged(source) + "# changed\n")
    monkeypatch.setattr(sys, "argv", ["catalogue", "--check"])
    with pytest.raises(SystemExit) as ended:
        catalogue.main()
    assert ended.value.code == 1
    assert "store.py is stale: run `make catalogue`" in capsys.readouterr().err
