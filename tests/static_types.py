"""The public methods' types, as a type checker sees them: `make typecheck` reads this file, nothing runs it.

mypy rejects every expression of type Any here, so that none can leak from aiosql or psycopg.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from datetime import UTC, datetime, timedelta
from typing import assert_type
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow
from sqlalchemy import Connection as AlchemyConnection
from sqlalchemy.ext.asyncio import AsyncConnection as AlchemyAsyncConnection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from goqueue import (
    AsyncListener,
    AsyncPostgresStorage,
    AsyncStorage,
    AsyncWorker,
    DatabaseConfig,
    Failure,
    Job,
    JobCount,
    JobFilter,
    JobStatus,
    JobUpdate,
    JsonValue,
    Lease,
    Listener,
    NewJob,
    Page,
    PostgresStorage,
    Pruned,
    QueueStats,
    Storage,
    TransactionStatus,
    Worker,
    WorkerConfig,
    WorkerStats,
    job_context,
    named_statement,
    numbered_statement,
)

Created = list[tuple[UUID, bool]]
MINUTE = timedelta(minutes=1)


def synchronous(
    store: PostgresStorage, job: Job, new: NewJob, plain: Connection[TupleRow], dicts: Connection[DictRow]
) -> None:
    assert_type(PostgresStorage.open(), PostgresStorage)
    assert_type(PostgresStorage.open(DatabaseConfig(url="")), PostgresStorage)
    with PostgresStorage.open("postgresql://") as opened:
        assert_type(opened, PostgresStorage)
    for bound in (PostgresStorage.bound_to(plain), PostgresStorage.bound_to(connection=dicts), store.bound_to(plain)):
        assert_type(bound, PostgresStorage)
    assert_type(store.bound_to(connection=dicts), PostgresStorage)
    assert_type(store.create_job(new), Job)
    assert_type(job.payload, JsonValue)
    assert_type(store.get_or_create_job(new), tuple[Job, bool])
    assert_type(store.create_jobs([new]), Created)
    assert_type(store.create_jobs_in_batches(new for _ in range(3)), Generator[Created])
    assert_type(store.get_job(job.id), Job)
    assert_type(store.get_job("text"), Job)
    assert_type(store.get_jobs([job.id]), list[Job])
    assert_type(store.get_job_by_idempotency_key("k"), Job)
    assert_type(store.list_jobs(), Page)
    assert_type(store.list_jobs(JobFilter(status="dead"), limit=5, cursor=store.list_jobs().next_cursor), Page)
    assert_type(store.count_jobs(), JobCount)
    assert_type(store.count_jobs().exact, bool)
    assert_type(store.update_job(job.id, JobUpdate(priority=1)), Job)
    assert_type(store.replace_pending_job(new), Job)
    assert_type(store.cancel_jobs([job.id, "text"]), int)
    assert_type(store.cancel_jobs(JobFilter()), int)
    assert_type(store.retry_jobs(job.id), int)
    assert_type(store.reschedule_jobs(job.id, delay=MINUTE), int)
    assert_type(store.change_jobs(JobFilter(locked_by=["w"]), queue="q", priority=1, max_attempts=2), int)
    store.delete_job(job.id)
    assert_type(store.delete_jobs([job.id], progress=print), int)
    assert_type(store.prune_jobs(MINUTE, [JobStatus.DEAD], limit=5), Pruned)
    assert_type(store.prune_jobs(MINUTE, queues="mail", job_types={"t"}), Pruned)
    assert_type(store.claim_jobs("mail", "w", 5, MINUTE), list[Job])
    assert_type(store.claim_jobs({"mail", "report"}, worker_id="w", limit=5), list[Job])
    assert_type(store.complete_and_claim([job], "mail", "w"), list[Job])
    store.heartbeat_jobs([job, Lease(job.id, 1)], MINUTE)
    store.complete_jobs([job])
    store.complete_job(job)
    assert_type(store.fail_jobs([(job, "error")]), dict[UUID, JobStatus])
    assert_type(store.fail_job(Lease(job.id, 1), "error", retry_in=MINUTE), JobStatus)
    store.bury_jobs([(job, "error")])
    store.release_jobs([job], delay=timedelta(seconds=1))
    assert_type(store.rescue_jobs(), dict[UUID, JobStatus])
    assert_type(store.next_job_at(["mail"]), datetime | None)
    assert_type(store.list_failures(job.id), list[Failure])
    assert_type(store.queue_stats(), list[QueueStats])
    assert_type(store.list_workers(), list[WorkerStats])
    assert_type(store.list_job_types(), list[str])
    store.pause_queue("mail", until=datetime.now(UTC))
    assert_type(store.resume_queue("mail"), bool)
    assert_type(store.get_transaction_status("17"), TransactionStatus)
    store.ping()
    store.close()
    assert_type(store.listen("mail"), Listener)
    with store.listen(["mail"]) as listener:
        assert_type(listener, Listener)
        assert_type(listener.wait(MINUTE), frozenset[str])
        assert_type(listener.cancelled, frozenset[Lease])
    listener.close()
    contract: Storage = store
    assert_type(contract.get_job(job.id), Job)


async def asynchronous(
    store: AsyncPostgresStorage,
    job: Job,
    new: NewJob,
    source: AsyncIterator[NewJob],
    plain: AsyncConnection[TupleRow],
    dicts: AsyncConnection[DictRow],
) -> None:
    assert_type(await AsyncPostgresStorage.open(), AsyncPostgresStorage)
    assert_type(await AsyncPostgresStorage.open(DatabaseConfig(url="")), AsyncPostgresStorage)
    async with await AsyncPostgresStorage.open("postgresql://") as opened:
        assert_type(opened, AsyncPostgresStorage)
    assert_type(AsyncPostgresStorage.bound_to(plain), AsyncPostgresStorage)
    assert_type(AsyncPostgresStorage.bound_to(connection=dicts), AsyncPostgresStorage)
    assert_type(store.bound_to(plain), AsyncPostgresStorage)
    assert_type(store.bound_to(connection=dicts), AsyncPostgresStorage)
    assert_type(await store.create_job(new), Job)
    assert_type(await store.get_or_create_job(new), tuple[Job, bool])
    assert_type(await store.create_jobs([new]), Created)
    assert_type(await store.create_jobs(source), Created)
    assert_type(store.create_jobs_in_batches(source), AsyncGenerator[Created])
    async for batch in store.create_jobs_in_batches([new]):
        assert_type(batch, Created)
    assert_type(await store.get_job(job.id), Job)
    assert_type(await store.get_jobs([job.id]), list[Job])
    assert_type(await store.get_job_by_idempotency_key("k"), Job)
    assert_type(await store.list_jobs(JobFilter(status="dead"), limit=5, cursor=None), Page)
    assert_type(await store.count_jobs(), JobCount)
    assert_type(await store.update_job(job.id, JobUpdate(priority=1)), Job)
    assert_type(await store.replace_pending_job(new), Job)
    assert_type(await store.cancel_jobs([job.id]), int)
    assert_type(await store.retry_jobs(JobFilter()), int)
    assert_type(await store.reschedule_jobs(job.id, delay=MINUTE), int)
    assert_type(await store.change_jobs(job.id, queue="q"), int)
    await store.delete_job(job.id)
    assert_type(await store.delete_jobs(JobFilter()), int)
    assert_type(await store.prune_jobs(MINUTE), Pruned)
    assert_type(await store.claim_jobs("mail", "w"), list[Job])
    assert_type(await store.complete_and_claim([job], "mail", "w"), list[Job])
    await store.heartbeat_jobs([job])
    await store.complete_jobs([job])
    await store.complete_job(job)
    assert_type(await store.fail_jobs([(job, "error")]), dict[UUID, JobStatus])
    assert_type(await store.fail_job(job, "error"), JobStatus)
    await store.bury_jobs([(job, "error")])
    await store.release_jobs([job], delay=timedelta(seconds=1))
    assert_type(await store.rescue_jobs(), dict[UUID, JobStatus])
    assert_type(await store.next_job_at("mail"), datetime | None)
    assert_type(await store.list_failures(job.id), list[Failure])
    assert_type(await store.queue_stats(), list[QueueStats])
    assert_type(await store.list_workers(), list[WorkerStats])
    assert_type(await store.list_job_types(), list[str])
    await store.pause_queue("mail", until=datetime.now(UTC))
    assert_type(await store.resume_queue("mail"), bool)
    assert_type(await store.get_transaction_status("17"), TransactionStatus)
    await store.ping()
    await store.close()
    assert_type(store.listen("mail"), AsyncListener)
    async with store.listen(["mail"]) as listener:
        assert_type(listener, AsyncListener)
        assert_type(await listener.wait(MINUTE), frozenset[str])
    await listener.close()
    contract: AsyncStorage = store
    assert_type(await contract.get_job(job.id), Job)


def handle(job: Job) -> str:
    assert_type(job_context().job, Job)
    assert_type(job_context().wait(1.0), bool)
    return job.job_type


async def handle_async(job: Job) -> None:
    pass


async def workers(store: PostgresStorage, async_store: AsyncPostgresStorage) -> None:
    worker = Worker({"t": handle})
    assert_type(worker.handler("u")(handle)(store.get_job("")), str)
    assert_type(worker.run(store, WorkerConfig(), until_empty=True), int)
    worker.run(async_store)  # type: ignore[arg-type]
    async_worker = AsyncWorker({"t": handle_async, "u": handle})
    assert_type(await async_worker.run(async_store), int)
    await async_worker.run(store)  # type: ignore[arg-type]
    Worker({"t": 5})  # type: ignore[dict-item]


def refused(store: PostgresStorage, job: Job, new: NewJob, plain: Connection[TupleRow]) -> None:
    """An unnecessary ignore is itself an error (warn_unused_ignores)."""
    store.create_job(job)  # type: ignore[arg-type]
    store.create_jobs(new)  # type: ignore[arg-type]
    store.get_job(5)  # type: ignore[arg-type]
    store.get_job()  # type: ignore[call-arg]
    store.list_jobs(limit="5")  # type: ignore[arg-type]
    store.list_jobs({"status": "dead"})  # type: ignore[arg-type]
    store.claim_jobs("mail")  # type: ignore[call-arg]
    store.complete_job(job.id)  # type: ignore[arg-type]
    store.fail_jobs([job])  # type: ignore[list-item]
    store.reschedule_jobs(job.id, None, MINUTE)  # type: ignore[call-arg]
    store.prune_jobs(30)  # type: ignore[arg-type]
    store.change_jobs(job.id, "q")  # type: ignore[call-arg]
    store.delete_jobs(job.id, progress=5)  # type: ignore[arg-type]
    store.bound_to("postgresql://")  # type: ignore[arg-type]
    AsyncPostgresStorage.bound_to(plain)  # type: ignore[arg-type]
    PostgresStorage.bound_to(url="")  # type: ignore[call-arg]
    NewJob(job_type="t", priority="high")  # type: ignore[arg-type]
    job.status = JobStatus.DEAD  # type: ignore[misc]
    contract: AsyncStorage = store  # type: ignore[assignment]
    del contract


async def refused_by_the_asynchronous(
    store: AsyncPostgresStorage, source: AsyncIterator[NewJob], plain: PostgresStorage
) -> None:
    store.create_jobs(source)  # type: ignore[unused-coroutine]
    plain.create_jobs(source)  # type: ignore[arg-type]
    async with store as opened:
        opened.ping()  # type: ignore[unused-coroutine]
    with store:  # type: ignore[attr-defined]
        pass


def other_libraries(
    session: Session,
    connection: AlchemyConnection,
    async_session: AsyncSession,
    async_connection: AlchemyAsyncConnection,
) -> None:
    assert_type(PostgresStorage.bound_to(session), PostgresStorage)
    assert_type(PostgresStorage.bound_to(connection), PostgresStorage)
    assert_type(AsyncPostgresStorage.bound_to(async_session), AsyncPostgresStorage)
    assert_type(AsyncPostgresStorage.bound_to(async_connection), AsyncPostgresStorage)
    PostgresStorage.bound_to(async_session)  # type: ignore[arg-type]
    AsyncPostgresStorage.bound_to(connection)  # type: ignore[arg-type]


def other_drivers(new: NewJob) -> None:
    assert_type(numbered_statement(new), tuple[str, tuple[object, ...]])
    assert_type(named_statement(new, DatabaseConfig()), tuple[str, dict[str, object]])
