"""`AsyncPostgresStorage`: the storage contract over psycopg. Each method runs the query of its own name in sql/."""

import asyncio  # async only
import os
from asyncio import Lock
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, Protocol, Self, TypeVar, cast
from uuid import UUID

import psycopg
from msgspec import UNSET
from msgspec.structs import replace
from psycopg import AsyncConnection, pq
from psycopg.conninfo import make_conninfo

from goqueue.config import Config, DatabaseConfig
from goqueue.conninfo import Secret, literal
from goqueue.counts import JobCount, Pruned
from goqueue.cursors import make_cursor, read_cursor
from goqueue.errors import (
    GoQueueError,
    InvalidJobError,
    JobNotFoundError,
    JobStateError,
    OutcomeUnknownError,
    StorageError,
    TransactionConflictError,
)
from goqueue.models import (
    Backoff,
    Failure,
    Held,
    Job,
    JobFilter,
    JobId,
    Jobs,
    JobStatus,
    JobUpdate,
    NewJob,
    Page,
    Progress,
    QueueStats,
    TransactionStatus,
    WorkerStats,
)
from goqueue.postgres.claim_positions import ClaimPositions, positions_of
from goqueue.postgres.cursor_async import AsyncAdapter, AsyncQueries, Many
from goqueue.postgres.foreign import AsyncLender, AsyncTransactional
from goqueue.postgres.leases import FINAL, ClaimValues, Leases, check_lost, claim_values, queue_names
from goqueue.postgres.listener_async import AsyncListener
from goqueue.postgres.new_jobs import (
    Batch,
    as_given,
    by_key,
    conflicts,
    document,
    encoded_update,
    is_same,
    job_values,
    not_replaced,
    shared_key,
    unique_key_after,
)
from goqueue.postgres.overrides import require_sound_overrides
from goqueue.postgres.pool_async import AsyncPool, notice_loss, open_connection, open_pool, reason_of
from goqueue.postgres.queries import load_queries
from goqueue.postgres.rows import (
    Claimed,
    created_job,
    failure_of,
    found,
    job_of,
    log_too_many,
    read_jobs,
    refused,
    rescued,
    stats_of,
    worker_of,
)
from goqueue.postgres.selection import as_job_ids, as_statuses, filter_values, in_batches, still_matching
from goqueue.postgres.tasks import each  # async only
from goqueue.postgres.translate import (
    LISTEN_URL,
    READ_URL,
    URL,
    StandbyWatch,
    duplicate_of,
    duplicate_unseen,
    is_stale,
    is_unanswered,
    naming,
    translate,
    unanswered,
    unconfirmed,
)
from goqueue.postgres.wire import AddedRow, DeletedRow, IdRow, JobRow
from goqueue.safelog import record_lost
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.validation import (
    MAX_ATTEMPTS,
    MAX_PAGE,
    MAX_PRIORITY,
    as_job_id,
    check_integer,
    check_interval,
    check_kind,
    check_limit,
    check_name,
    check_names,
    check_time,
    check_transaction_id,
    shown,
)

DEFAULT_LEASE = timedelta(minutes=5)
DEFAULT_BACKOFF = Backoff()
Settled = TypeVar("Settled", bound=IdRow)

# Longest time in seconds for a claim that finds only unreadable jobs.
_SET_ASIDE_SECONDS = 1.0

# The statuses of the jobs that change_jobs changes.
_NOT_COMPLETED = (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.DEAD, JobStatus.CANCELLED)

# Most jobs that one round of prune_jobs skips because a foreign key refers to them.
_MOST_KEPT = 10_000
# Most rounds of different filters that are remembered at once: a caller may end one early.
_MOST_ROUNDS = 100

# Attempts at an insert that adds nothing although no conflicting job is found.
_TRIES = 10


def _queries(config: DatabaseConfig, sql_dir: str) -> AsyncQueries:
    slow = config.slow_query_time.total_seconds()
    queries: AsyncQueries = load_queries(sql_dir or None, AsyncAdapter, slow, config.schema)
    return queries


class AsyncBind(Protocol):
    """The type of `bound_to`: a function of a connection, and optionally of a schema."""

    def __call__(
        self, connection: AsyncConnection[Any] | AsyncTransactional, *, schema: str | None = None
    ) -> "AsyncPostgresStorage": ...


def _url_of(connection: AsyncConnection[Any]) -> str:
    return literal(make_conninfo(connection.info.dsn, password=connection.info.password or None))


class _BoundTo:
    """A descriptor: `bound_to` of an open store uses its settings, `bound_to` of the class the defaults."""

    def __get__(self, store: "AsyncPostgresStorage | None", owner: "type[AsyncPostgresStorage]") -> AsyncBind:
        def bound_to(
            connection: AsyncConnection[Any] | AsyncTransactional, *, schema: str | None = None
        ) -> AsyncPostgresStorage:
            """Return a store in the caller's transaction. It has the same methods.

            ``connection`` is a psycopg `AsyncConnection`, or SQLAlchemy's or SQLModel's `AsyncSession` or
            `AsyncConnection` over psycopg. `PostgresStorage` also accepts Django's `connection`. docs/transactions.md
            shows each, and the way for other drivers and languages.

            The store never commits, rolls back or closes. After a server error, the caller rolls back. Any row factory
            works. Each call uses the connection of the session's current transaction. The session begins one if
            there is none.

            While a listener exists, a transaction that adds due jobs sends a notification, and a later `PREPARE
            TRANSACTION` fails. Start a two-phase commit with `SET LOCAL goqueue.notify = off`. Workers then find the
            jobs by polling.

            ``schema`` is another schema of goqueue in the same database. Without it, the schema is that of the open
            store; `bound_to` of the class takes goqueue.

            Raises: `ConfigError` for a name that no schema of goqueue can have.
            Queries: those of the methods.
            """
            given = connection if isinstance(connection, AsyncConnection) else AsyncLender(connection)
            if store is not None and schema in (None, store.config.schema):
                config, positions, kept = store.config, store._positions, store._kept  # noqa: SLF001
                bound = owner(config, connection=given, positions=positions, kept=kept)
            elif store is not None:
                bound = owner(replace(store.config, schema=schema), connection=given)
            else:
                try:  # `listen` opens its own connection to the same database.
                    url = Secret("" if isinstance(given, AsyncLender) else _url_of(given))
                except psycopg.OperationalError as exc:  # the connection is closed
                    raise translate(exc) from exc
                config = DatabaseConfig(url=url, schema=DEFAULT_SCHEMA if schema is None else schema)
                bound = owner(config, connection=given)
            bound._knows_url = not isinstance(given, AsyncLender) if store is None else store._knows_url  # noqa: SLF001
            return bound

        return bound_to


class AsyncPostgresStorage:
    """Jobs in PostgreSQL, for asyncio. Open one per event loop and share it between tasks::

        async with await AsyncPostgresStorage.open("postgresql://app@db/app") as store:
            job = await store.create_job(NewJob(job_type="send_email", payload={"to": "a@example.com"}))

    In your own transaction, on your own connection::

        async with await psycopg.AsyncConnection.connect(...) as connection:
            await connection.execute("INSERT INTO orders ...")
            await store.bound_to(connection).create_job(NewJob(job_type="ship"))
            # The job exists if and only if this transaction commits.
    """

    bound_to = _BoundTo()

    def __init__(
        self,
        config: DatabaseConfig,
        *,
        pool: AsyncPool | None = None,
        connection: AsyncConnection[object] | AsyncLender | None = None,
        positions: dict[tuple[str, ...], ClaimPositions] | None = None,
        kept: dict[str, dict[UUID, str]] | None = None,
    ) -> None:
        """Initialize the store for `open` (``pool``) or `bound_to` (the caller's ``connection``)."""
        check_kind("config (stores are made by open() and bound_to())", config, DatabaseConfig, secret=True)
        self.config = config
        self._pool = pool
        self._given: AsyncConnection[Any] | AsyncLender | None = connection
        self._process = os.getpid()
        self._loop = None if pool is None else asyncio.get_running_loop()  # async only
        self._positions = {} if positions is None else positions
        #: By the filter of prune_jobs: the jobs that the current round has kept, and why.
        self._kept = {} if kept is None else kept
        #: False if the class has bound the store to a session, which shows no URL.
        self._knows_url = True
        #: The store of ``read_url``, once something was read there; and when and why it could not be opened.
        self._reader: AsyncPostgresStorage | None = None
        self._reader_failure: tuple[float, GoQueueError] | None = None
        #: The setting of the URL, for errors.
        self._variable = URL
        self._opening = Lock()
        self._queries = _queries(config, config.sql_dir)

    @classmethod
    async def open(cls, config: DatabaseConfig | Config | str = "") -> Self:
        """Open a store with a connection pool.

        ``config`` is a `DatabaseConfig`, the `Config` that holds it, or a URL (empty: the PG* variables). Close the
        store, or use it in a ``with`` statement. A store does not survive a fork: open one in each process.

        Raises: `ConfigError` for invalid settings and for SQL files in ``sql_dir`` that change a query's interface;
        `StorageUnavailableError` if the server is unreachable; `ConnectionRejectedError` if it rejects the connection
        (a wrong password, a missing database); `SchemaError` if the database has not been migrated.
        Queries: ping, get_session.
        """
        if isinstance(config, str):
            config = Secret(config)
            config = DatabaseConfig(url=config)
        elif isinstance(config, Config):
            config = config.database
        check_kind("config", config, Config, DatabaseConfig, str, secret=True)
        _queries(config, config.sql_dir)  # reports unreadable files before connecting
        # The shipped queries, until the folder's statements have been checked.
        shipped = _queries(config, "")
        pool = await open_pool(config, shipped)
        store = cls(config, pool=pool)
        try:
            async with store._connection() as connection:
                await shipped.ping(connection)
                if config.sql_dir:
                    await asyncio.to_thread(require_sound_overrides, connection, config.sql_dir, config.schema)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close the pool. A connection passed to `bound_to` stays open. A second call does nothing."""
        if self._pool is not None and self._process == os.getpid():  # in a fork, the pool belongs to the parent
            self._check_loop()  # async only
            try:
                await self._pool.close()
            finally:
                if self._reader is not None:
                    await self._reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- create -----------------------------------------------------------------------------------------------------

    async def create_job(self, job: NewJob) -> Job:
        """Add a job and return it. Creating the same `NewJob` again, with the same job type, payload and keys, returns
        the job of the first call.

        Raises: `DuplicateJobError`, with the existing job's id, if the id or the idempotency key is taken, or an
        unfinished job has the unique key.
        Queries: create_job; find_duplicate_job if that added nothing.
        Repeating: returns the job of the first call.
        """
        added = await self._add(job)
        if isinstance(added, Job):
            return added
        if is_same(added, job):
            return job_of(added)
        raise duplicate_of(added.id, **shared_key(added, job))

    async def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """Return the job with the id or the idempotency key of ``job``, or the unfinished job with its unique key,
        creating it if there is none. Also return whether this call created it.

        Queries: create_job; find_duplicate_job if that added nothing.
        Repeating: returns the same job; created is then False.
        """
        added = await self._add(job)
        return (added, True) if isinstance(added, Job) else (job_of(added), False)

    async def _add(self, job: NewJob) -> Job | JobRow:
        """Add a job and return it, or the row of the job that it conflicts with."""
        values = job_values(job, self.config)
        same = {"id": job.id, "idempotency_key": job.idempotency_key, "unique_key": job.unique_key}
        async with self._connection() as connection:
            for _ in range(_TRIES):
                if row := await self._queries.create_job(connection, **values):
                    return created_job(job, row)
                if duplicate := await self._queries.find_duplicate_job(connection, **same):
                    return duplicate
                # The conflicting job was deleted, or its unique key freed, between the two statements.
        raise duplicate_unseen()

    async def create_jobs(self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Add many jobs: all, or none if one fails. Return (id, created) of each, in the given order.

        ``jobs`` is read completely before the transaction begins. A job is not created if a stored job or an earlier
        one of ``jobs`` has its idempotency key, or if an unfinished job or an earlier one has its unique key. The
        returned id is then the id of that other job. Jobs are added in the order of their keys and ids, so that
        concurrent bulks with the same jobs wait for each other instead of deadlocking.

        Queries: create_jobs, once for each ``batch_size`` jobs; create_missing_jobs and find_duplicate_jobs instead
        if a job has a key, an id that is not a UUIDv7, or exists already.
        Repeating: adds no `NewJob` twice; existing jobs are not created.
        """
        order, batches = by_key([batch async for batch in self._batches(jobs)], self.config)
        async with self._connection() as connection:
            return as_given(order, await self._create(connection, batches))

    async def create_jobs_in_batches(
        self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]
    ) -> AsyncGenerator[list[tuple[UUID, bool]]]:
        """Add the jobs of an iterable of any length, in constant memory. Yield lists of (id, created), batch by batch.

        Each step reads, adds and commits one batch. Committed batches remain even if a later one fails.

        Queries: create_jobs, once for each ``batch_size`` jobs; create_missing_jobs and find_duplicate_jobs instead
        if a job has a key, an id that is not a UUIDv7, or exists already.
        Repeating: adds no `NewJob` twice; existing jobs are not created.
        """
        async with aclosing(self._batches(jobs)) as batches:
            async for batch in batches:
                order, ordered = by_key([batch], self.config)
                async with self._connection() as connection:
                    results = await self._create(connection, ordered)
                yield as_given(order, results)

    async def _batches(self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]) -> AsyncGenerator[Batch]:
        check_kind("jobs", jobs, Iterable, AsyncIterable)
        batch = Batch(self.config)
        async for job in each(jobs):
            if not batch.add(job):
                yield batch.checked()
                batch = Batch(self.config)
                batch.add(job)
        if batch.jobs:
            yield batch.checked()

    async def _create(self, connection: AsyncConnection[Any], batches: list[Batch]) -> list[tuple[UUID, bool]]:
        # An error in the caller's pipeline would abort what is queued behind it.
        if all(batch.is_new for batch in batches) and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF:
            with suppress(psycopg.errors.UniqueViolation):
                return await self._create_by(self._queries.create_jobs, connection, batches)
        return await self._create_by(self._queries.create_missing_jobs, connection, batches)

    async def _create_by(
        self, insert: Many[AddedRow], connection: AsyncConnection[Any], batches: list[Batch]
    ) -> list[tuple[UUID, bool]]:
        results: list[tuple[UUID, bool]] = []
        ids = (job.id for batch in batches for job in batch.jobs)
        async with self._transaction(connection, "create_jobs", ids) as known:
            for batch in batches:
                results += await self._create_batch(insert, connection, batch, known)
        return results

    async def _create_batch(
        self, insert: Many[AddedRow], connection: AsyncConnection[Any], batch: Batch, known: dict[str, str | None]
    ) -> list[tuple[UUID, bool]]:
        rows = [row async for row in insert(connection, jobs=document(batch.encoded).decode())]
        if rows and rows[0].transaction_id:
            known["transaction_id"] = rows[0].transaction_id
        if len(rows) == len(batch.jobs):
            return [(job.id, True) for job in batch.jobs]
        created: set[UUID] = {row.id for row in rows}
        existing: dict[UUID, UUID] = {}
        missing = list(zip(batch.jobs, batch.encoded, strict=True))
        for _ in range(_TRIES):
            missing = [(job, encoded) for job, encoded in missing if job.id not in created]
            existing |= await self._existing(connection, [job for job, _ in missing])
            # Neither added nor found: the conflicting jobs were deleted or freed their unique keys in the meantime.
            missing = [(job, encoded) for job, encoded in missing if job.id not in existing]
            if not missing:
                break
            again = document(encoded for _, encoded in missing).decode()
            created |= {row.id async for row in self._queries.create_missing_jobs(connection, jobs=again)}
        else:
            raise duplicate_unseen()
        return [(job.id, True) if job.id in created else (existing[job.id], False) for job in batch.jobs]

    async def _existing(self, connection: AsyncConnection[Any], jobs: list[NewJob]) -> dict[UUID, UUID]:
        """Return the ids of the stored jobs that conflict with new ones, by the new ones' ids."""
        rows = self._queries.find_duplicate_jobs(
            connection,
            ids=[job.id for job in jobs],
            idempotency_keys=[job.idempotency_key for job in jobs if job.idempotency_key is not None],
            unique_keys=[job.unique_key for job in jobs if job.unique_key is not None],
        )
        return conflicts(jobs, [row async for row in rows])

    # --- read -------------------------------------------------------------------------------------------------------

    async def get_job(self, job_id: JobId, *, fresh: bool = True) -> Job:
        """Return the job with this id. If ``fresh`` is False, read it on the standby (``read_url``).

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Query: get_job.
        Repeating: changes nothing.
        """
        wanted = as_job_id(job_id)
        async with self._reading(fresh=fresh) as connection:
            row = await self._queries.get_job(connection, id=wanted)
        return found(row, f"no job has the id {wanted}")

    async def get_jobs(self, job_ids: Iterable[JobId], *, fresh: bool = True) -> list[Job]:
        """Return the jobs with these ids, in the given order. Missing jobs are omitted. ``fresh``: see `get_job`.

        Raises: `CorruptJobError` if one of them can't be read.
        Query: get_jobs.
        Repeating: changes nothing.
        """
        wanted = as_job_ids(job_ids)
        async with self._reading(fresh=fresh) as connection:
            return [job_of(row) async for row in self._queries.get_jobs(connection, ids=wanted)]

    async def get_job_by_idempotency_key(self, idempotency_key: str, *, fresh: bool = True) -> Job:
        """Return the job with this idempotency key. ``fresh``: see `get_job`.

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Query: get_job_by_idempotency_key.
        Repeating: changes nothing.
        """
        key = check_name("idempotency_key", idempotency_key)
        async with self._reading(fresh=fresh) as connection:
            row = await self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
        return found(row, f"no job has the idempotency key {key!r}")

    async def list_jobs(
        self,
        job_filter: JobFilter | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        fresh: bool = False,
    ) -> Page:
        """Return a page of ``limit`` (1 to 1000) jobs, newest first. Only the last page can be shorter.

        ``cursor`` is the ``next_cursor`` of the previous page, with the same filter. The page's ``unreadable`` has the
        jobs whose payload Python can't represent, or whose status a later release added. The page is read
        on the standby (``read_url``) if there is one; if ``fresh`` is True, on the primary.

        Raises: `InvalidCursorError` for a cursor of another filter.
        Query: list_jobs.
        Repeating: changes nothing.
        """
        rows, next_cursor = await self._list(job_filter, limit, cursor, fresh=fresh)
        jobs, corrupt = read_jobs(rows)
        return Page(jobs, next_cursor, {error.job_id: str(error) for error in corrupt})

    async def _list(
        self, job_filter: JobFilter | None, limit: int, cursor: str | None, *, fresh: bool
    ) -> tuple[list[JobRow], str | None]:
        """Return the rows of a page, and the cursor of the next page."""
        wanted, size = filter_values(job_filter), check_limit(limit)
        created_at, job_id = read_cursor(wanted, cursor)
        # One extra row shows whether another page follows.
        page = {"page_limit": size + 1, "cursor_created_at": created_at, "cursor_id": job_id}
        async with self._reading(fresh=fresh) as connection:
            rows = [row async for row in self._queries.list_jobs(connection, **wanted, **page)]
        if len(rows) <= size:
            return rows, None
        last = rows[size - 1]
        return rows[:size], make_cursor(wanted, last.created_at, last.id)

    async def count_jobs(self, job_filter: JobFilter | None = None, *, fresh: bool = False) -> JobCount:
        """Count the jobs that match. The count is exact up to 10,000 jobs. Beyond that it is an estimate, and its
        ``exact`` is False. ``fresh``: see `list_jobs`.

        Query: count_jobs.
        Repeating: changes nothing.
        """
        wanted = filter_values(job_filter)
        async with self._reading(fresh=fresh) as connection:
            count, exact = await self._queries.count_jobs(connection, **wanted)
        return JobCount(count, exact=exact)

    # --- change -----------------------------------------------------------------------------------------------------

    async def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Change the given fields of a job and return the changed job.

        Raises: `JobNotFoundError` if there is no such job; `JobStateError` if its status does not allow the new one;
        `DuplicateJobError` if another job has the idempotency key, or if the job is pending or running after the change
        and another such job has its unique key; `TransactionConflictError` if another session changed the job at the
        same time; `CorruptJobError`, after the change, if the payload can't be read.
        Queries: update_job; get_job, get_job_by_idempotency_key and find_duplicate_job if that changed nothing.
        Repeating: sets the same values again, and overwrites later changes by others.
        """
        wanted = as_job_id(job_id)
        check_kind("update", update, JobUpdate)
        changes = encoded_update(update, self.config).decode()
        async with self._connection() as connection:
            if row := await self._queries.update_job(connection, id=wanted, changes=changes):
                return job_of(row)
            current = await self._queries.get_job(connection, id=wanted)  # a row: an unreadable one hides no error
            if current is None:
                raise JobNotFoundError(f"no job has the id {wanted}")
            if isinstance(key := update.idempotency_key, str):
                other = await self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
                if other is not None and other.id != wanted:
                    raise duplicate_of(other.id, idempotency_key=key)
            if (unique_key := unique_key_after(current, update)) is not None:
                other = await self._unfinished(connection, unique_key)
                if other is not None and other.id != wanted:
                    raise duplicate_of(other.id, unique_key=unique_key)
        if update.status is UNSET or unique_key is not None:  # the change itself is allowed
            raise TransactionConflictError(f"job {wanted} was changed by another session at the same time; try again")
        raise JobStateError(f"job {wanted} is {current.status} and can't become {update.status}; nothing was changed")

    async def _unfinished(self, connection: AsyncConnection[Any], unique_key: str) -> JobRow | None:
        """Return the unfinished job with this unique key."""
        return await self._queries.find_duplicate_job(connection, id=None, idempotency_key=None, unique_key=unique_key)

    async def replace_pending_job(self, job: NewJob) -> Job:
        """Add a job, or replace the pending job that has its idempotency key. The replaced job keeps its id and gets
        the new unique key, or none.

        Raises: `DuplicateJobError` if the key's job is no longer pending, another unfinished job has the unique key, or
        another job has the id; `InvalidJobError` for a job without an idempotency key.
        Queries: replace_pending_job; get_job_by_idempotency_key and find_duplicate_job if that changed nothing.
        Repeating: replaces the job again, and overwrites later changes by others.
        """
        values = job_values(job, self.config)
        if job.idempotency_key is None:
            raise InvalidJobError("replace_pending_job needs an idempotency_key to find the job by")
        async with self._connection() as connection:
            for _ in range(_TRIES):
                if row := await self._queries.replace_pending_job(connection, **values):
                    return job_of(row)
                key = job.idempotency_key
                same = await self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
                if same is not None and same.status != JobStatus.PENDING:
                    raise not_replaced(same)
                if job.unique_key is not None:
                    other = await self._unfinished(connection, job.unique_key)
                    if other is not None and (same is None or other.id != same.id):
                        raise duplicate_of(other.id, unique_key=job.unique_key)
                # The conflicting job was deleted or changed between the statements.
        raise duplicate_unseen()

    async def cancel_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Cancel pending and running jobs, given by ids or by filter. Return how many. Jobs in other states are
        unchanged.

        The worker of a running job gets `LeaseLostError` at its next call. If it listens, it is notified earlier
        (`AsyncListener.cancelled`).

        With a filter, jobs are listed and then changed. A job that was changed in between is left alone if its status,
        queue, job type or holder no longer matches.

        Queries: cancel_jobs, once for each 1000 jobs; list_jobs for a filter.
        Repeating: does not count cancelled jobs; cancels jobs that were retried in the meantime.
        """
        return await self._for_each(jobs, self._queries.cancel_jobs, (JobStatus.PENDING, JobStatus.RUNNING), progress)

    async def retry_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Make dead and cancelled jobs pending again, due at once, with all their attempts. Return how many.

        A job stays as it is if an unfinished job has its unique key. Of several jobs with the same unique key, one is
        retried. A filter is tested again: see `cancel_jobs`.

        Raises: `DuplicateJobError` if another session adds a job with one of the unique keys at the same time.
        Queries: retry_jobs, once for each 1000 jobs; list_jobs for a filter.
        Repeating: leaves pending jobs unchanged; retries jobs that ended in the meantime.
        """
        return await self._for_each(jobs, self._queries.retry_jobs, (JobStatus.DEAD, JobStatus.CANCELLED), progress)

    async def reschedule_jobs(
        self,
        jobs: Jobs,
        *,
        scheduled_at: datetime | None = None,
        delay: timedelta | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set a new time for pending jobs: ``scheduled_at`` (aware), or ``delay`` from now. Return how many.
        A filter is tested again: see `cancel_jobs`.

        Queries: reschedule_jobs, once for each 1000 jobs; list_jobs for a filter.
        Repeating: sets the same ``scheduled_at`` again, or a new time from ``delay``; overwrites later changes by
        others.
        """
        if (scheduled_at is None) == (delay is None):
            raise InvalidJobError("give either scheduled_at or delay")
        if scheduled_at is not None:
            scheduled_at = check_time("scheduled_at", scheduled_at)
        if delay is not None:
            delay = check_interval("delay", delay)
        run = partial(self._queries.reschedule_jobs, scheduled_at=scheduled_at, delay=delay)
        return await self._for_each(jobs, run, (JobStatus.PENDING,), progress)

    async def change_jobs(
        self,
        jobs: Jobs,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Change the given columns of jobs that are not completed. Return how many. A filter is tested again: see
        `cancel_jobs`.

        With ``max_attempts``, jobs that have had more attempts are skipped, and pending jobs that would have none left.
        A due job in a new queue wakes the queue's listeners. While the table has many dead tuples, claims find a moved
        or more urgent job within ``claim_resume_time``.

        Queries: change_jobs, once for each 1000 jobs; list_jobs for a filter.
        Repeating: sets the same values again, and overwrites later changes by others.
        """
        if queue is None and priority is None and max_attempts is None:
            raise InvalidJobError("give queue, priority or max_attempts")
        if queue is not None:
            queue = check_name("queue", queue)
        if priority is not None:
            priority = check_integer("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
        if max_attempts is not None:
            max_attempts = check_integer("max_attempts", max_attempts, 1, MAX_ATTEMPTS)
        run = partial(self._queries.change_jobs, queue=queue, priority=priority, max_attempts=max_attempts)
        return await self._for_each(jobs, run, _NOT_COMPLETED, progress)

    async def _for_each(
        self,
        jobs: Jobs,
        run: Callable[..., AsyncIterator[IdRow]],
        statuses: tuple[JobStatus, ...] | None,
        progress: Progress | None,
    ) -> int:
        """Run a query in batches over the given ids, or over those of a filter (narrowed to ``statuses``, if given).

        The query tests the filter again, because a job can change after it was listed.
        """
        if not (progress is None or callable(progress)):
            raise InvalidJobError(f"progress must be a function of a number, not {shown(progress)}")
        still = still_matching(jobs)
        count = 0
        async with aclosing(self._ids(jobs, statuses)) as batches:
            async for ids in batches:
                async with self._connection() as connection:
                    count += len([row async for row in run(connection, ids=ids, **still)])
                if progress is not None:
                    progress(count)
        return count

    async def _ids(self, jobs: Jobs, statuses: tuple[JobStatus, ...] | None) -> AsyncGenerator[list[UUID]]:
        if not isinstance(jobs, JobFilter):
            for ids in in_batches(as_job_ids(jobs)):
                yield ids
            return
        cursor = None
        if statuses is not None:
            if jobs.status is not None:
                statuses = tuple(set(jobs.parameters()["statuses"]) & set(statuses))
            if not statuses:
                return
            jobs = replace(jobs, status=statuses)
        found_ids: list[UUID] = []
        while True:
            rows, cursor = await self._list(jobs, MAX_PAGE, cursor, fresh=True)
            found_ids += [row.id for row in rows]
            # In the caller's transaction, locks outlast a batch. So all batches need one common order.
            if self._pool is None and cursor is not None:
                continue
            for ids in in_batches(found_ids):
                yield ids
            if cursor is None:
                return
            found_ids.clear()

    async def delete_job(self, job_id: JobId) -> None:
        """Delete a job in any status, with its failure history.

        Raises: `JobNotFoundError` if there is none; `JobStateError` if another table refers to it.
        Queries: delete_job, delete_failures.
        Repeating: raises `JobNotFoundError`.
        """
        wanted = as_job_id(job_id)
        async with self._connection() as connection, self._transaction(connection, "delete_job", [wanted]) as known:
            known["transaction_id"] = await self._queries.delete_job(connection, id=wanted)
            if known["transaction_id"] is None:
                raise JobNotFoundError(f"no job has the id {wanted}")
            _ = [row async for row in self._queries.delete_failures(connection, ids=[wanted])]

    async def delete_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Delete jobs in any status, given by ids or by filter, with their failure histories. Return how many. Missing
        jobs are not counted.

        Each 1000 jobs are one transaction. A filter is tested again: see `cancel_jobs`. The worker of a running job
        gets `LeaseLostError` at its next call. If it listens, it is notified earlier (`AsyncListener.cancelled`).

        Raises: `JobStateError` if another table refers to one of them (`prune_jobs` skips such jobs). Earlier batches
        stay deleted.
        Queries: delete_jobs and delete_failures, once for each 1000 jobs; list_jobs for a filter.
        Repeating: deletes no more, except new jobs that a filter matches.
        """
        return await self._for_each(jobs, self._delete, None, progress)

    async def _delete(
        self, connection: AsyncConnection[Any], ids: list[UUID], **still: object
    ) -> AsyncGenerator[DeletedRow]:
        async with self._transaction(connection, "delete_jobs", ids) as known:
            rows = [row async for row in self._queries.delete_jobs(connection, ids=ids, **still)]
            if rows:
                known["transaction_id"] = rows[0].transaction_id
                deleted = [row.id for row in rows]
                _ = [row async for row in self._queries.delete_failures(connection, ids=deleted)]
        for row in rows:
            yield row

    async def prune_jobs(
        self,
        older_than: timedelta,
        statuses: Collection[JobStatus] = (JobStatus.COMPLETED, JobStatus.DEAD, JobStatus.CANCELLED),
        limit: int = 1000,
        queues: str | Collection[str] | None = None,
        job_types: str | Collection[str] | None = None,
    ) -> Pruned:
        """Delete one batch of at most ``limit`` (1 to 1000) jobs that finished more than ``older_than`` ago, of all
        queues and job types or of the given ones (one or several). Return how many.

        Call it until it returns fewer than ``limit``; each call is a short transaction. It skips and logs jobs that
        another table refers to (by a foreign key without CASCADE or SET NULL). Each result's ``kept`` names those that
        the calls with the same arguments have skipped so far. After 10,000 such jobs, it deletes no more and logs a
        warning.

        To keep jobs of one queue longer than those of another, call it once for each queue.

        Query: prune_jobs.
        Repeating: deletes the next batch.
        """
        wanted = as_statuses(statuses)
        if unfinished := wanted & {JobStatus.PENDING, JobStatus.RUNNING}:
            raise InvalidJobError(f"only finished jobs can be pruned, not {', '.join(sorted(unfinished))}")
        check_limit(limit)
        values = {
            "older_than": check_interval("older_than", older_than),
            "statuses": sorted(wanted),
            "queues": check_names("queues", queues, "queue"),
            "job_types": check_names("job_types", job_types, "job_type"),
        }
        deleted = 0
        if len(self._kept) >= _MOST_ROUNDS:
            self._kept.clear()
        kept = self._kept.setdefault(repr(values), {})
        async with self._connection() as connection:
            while deleted < limit and len(kept) < _MOST_KEPT:
                batch = {**values, "job_limit": limit - deleted, "kept_ids": list(kept)}
                rows = [row async for row in self._queries.prune_jobs(connection, **batch)]
                reasons = refused(rows)
                deleted += len(rows) - len(reasons)
                kept.update(reasons)
                if not reasons:
                    break
        if len(kept) >= _MOST_KEPT:
            log_too_many(kept)
        if deleted < limit:  # The next call starts a new round, which reads all jobs again.
            self._kept.pop(repr(values), None)
        return Pruned(deleted, kept)

    # --- work -------------------------------------------------------------------------------------------------------

    async def claim_jobs(
        self, queues: str | Collection[str], worker_id: str, limit: int = 1, lease: timedelta = DEFAULT_LEASE
    ) -> list[Job]:
        """Claim at most ``limit`` (1 to 1000) due jobs of the queues. ``worker_id`` holds each job exclusively for
        ``lease``.

        Jobs are ordered by priority (lower numbers first). Among queues of one priority, the queue that has waited
        longest comes first; within it, jobs are ordered by scheduled_at and id. An empty list means that no job is due.

        Paused queues are skipped (`pause_queue`).

        A job with an unreadable payload becomes dead, with the reason as its error, and is logged; the readable jobs
        are returned. A claim that finds only such jobs ends after a second. Then the list is empty although jobs may be
        due, and the queues' listeners are woken, including the caller's.

        While the table has many dead tuples (an old snapshot or a late vacuum), a claim can miss a job that becomes due
        out of order, for at most ``claim_resume_time`` (GOQUEUE_DATABASE_CLAIM_RESUME_TIME).

        In your own transaction (`bound_to`), commit soon: until then, the claim can also lock jobs that other workers
        claimed at the same moment, and their heartbeats and completions wait.

        Queries: claim_jobs; estimate_dead_rows once per ``claim_resume_time``; fail_jobs and wake_listeners for
        unreadable jobs.
        Repeating: claims other jobs; jobs of a lost reply stay leased until their leases expire.
        """
        values = claim_values(queues, worker_id, limit, lease)
        async with self._connection() as connection:
            return (await self._claim(connection, values)).jobs

    async def complete_and_claim(
        self,
        leases: Iterable[Held],
        queues: str | Collection[str],
        worker_id: str,
        limit: int = 1,
        lease: timedelta = DEFAULT_LEASE,
    ) -> list[Job]:
        """Run `complete_jobs` and `claim_jobs` in one transaction.

        Raises: `LeaseLostError` with the jobs whose leases were lost. The others are completed, and no job is claimed.
        Queries: complete_jobs, if there are leases, and those of `claim_jobs`.
        Repeating: completes nothing twice and claims other jobs; jobs of a lost reply stay leased until their leases
        expire.
        """
        values = claim_values(queues, worker_id, limit, lease)
        done = Leases(leases)
        if not done.held:  # one statement needs no transaction
            async with self._connection() as connection:
                return (await self._claim(connection, values)).jobs
        ids = [job_id for job_id, _ in done.held]
        jobs: list[Job] = []
        async with (
            self._connection() as connection,
            self._transaction(connection, "complete_and_claim", ids, worker_id=values["worker_id"]),
        ):
            rows = [row async for row in self._queries.complete_jobs(connection, **done.values)]
            lost = done.lost((row.id for row in rows), len(rows))
            if not lost:
                # A separate statement sees what other sessions claimed while complete_jobs waited for a lock.
                jobs = (await self._claim(connection, values)).jobs
                ids += [job.id for job in jobs]
        check_lost(lost)
        return jobs

    async def _claim(self, connection: AsyncConnection[Any], values: ClaimValues) -> Claimed:
        """Return the jobs of claim_jobs. While all are unreadable, claim again, for at most a second."""
        deadline = monotonic() + _SET_ASIDE_SECONDS
        positions = positions_of(self._positions, values["queues"], self.config.claim_resume_time.total_seconds())
        while True:
            if positions.count_is_due:
                positions.counted(await self._queries.estimate_dead_rows(connection))
            lanes, start = positions.parameters(), monotonic()
            claimed = Claimed([row async for row in self._queries.claim_jobs(connection, **values, **lanes)])
            positions.claimed(claimed.jobs, lanes, is_full=claimed.count == values["job_limit"], start=start)
            if claimed.unreadable:
                await self._bury(connection, claimed)
            if claimed.jobs or not (claimed.unreadable or positions.looks_again(lanes)):
                return claimed
            if monotonic() >= deadline:
                # The wake-up is a hint. Its failure matters only in a transaction, which it aborts.
                is_committed = connection.info.transaction_status == pq.TransactionStatus.IDLE
                with suppress(*(psycopg.Error, OutcomeUnknownError) if is_committed else ()):
                    _ = [row async for row in self._queries.wake_listeners(connection, queues=values["queues"])]
                return claimed

    async def _bury(self, connection: AsyncConnection[Any], claimed: Claimed) -> None:
        """Make the unreadable jobs of a claim dead. If that fails after the claim's commit, they wait for their leases
        to expire: the caller must not lose the readable jobs."""
        is_committed = connection.info.transaction_status == pq.TransactionStatus.IDLE
        unreadable = Leases.failed(claimed.unreadable).values
        try:
            _ = [row async for row in self._queries.fail_jobs(connection, **unreadable, **FINAL)]
        except (psycopg.Error, OutcomeUnknownError) as exc:
            if not (is_committed and claimed.jobs):
                raise
            claimed.not_buried(translate(exc) if isinstance(exc, psycopg.Error) else exc)

    async def heartbeat_jobs(self, leases: Iterable[Held], lease: timedelta = DEFAULT_LEASE) -> None:
        """Renew the leases of running jobs for ``lease`` from now.

        Raises: `LeaseLostError` with the lost jobs; the others are renewed.
        Query: heartbeat_jobs.
        Repeating: renews the leases again.
        """
        run = partial(self._queries.heartbeat_jobs, lease=check_interval("lease", lease))
        await self._settle(run, Leases(leases))

    async def complete_jobs(self, leases: Iterable[Held]) -> None:
        """Complete jobs.

        Raises: `LeaseLostError` with the lost jobs; the others are completed.
        Query: complete_jobs.
        Repeating: succeeds under the same leases while the jobs are stored, and changes nothing.
        """
        await self._settle(self._queries.complete_jobs, Leases(leases))

    async def complete_job(self, lease: Held) -> None:
        """Complete one job, as `complete_jobs` does.

        Raises: `LeaseLostError` if the lease was lost.
        Query: complete_jobs.
        Repeating: succeeds under the same lease while the job is stored, and changes nothing.
        """
        await self.complete_jobs([lease])

    async def fail_jobs(
        self,
        failures: Iterable[tuple[Held, str]],
        *,
        retry_in: timedelta | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> dict[UUID, JobStatus]:
        """Fail running attempts, given as pairs (lease, error). Return the new status by id.

        A job with attempts left becomes pending again, due after ``retry_in`` or else ``backoff``. Otherwise it is
        dead. The errors are stored (`list_failures`).

        Raises: `LeaseLostError` with the lost jobs; the others fail.
        Query: fail_jobs.
        Repeating: raises `LeaseLostError` for jobs that failed under these leases; no attempt fails twice.
        """
        check_kind("backoff", backoff, Backoff)
        run = partial(
            self._queries.fail_jobs,
            is_final=False,
            retry_in=None if retry_in is None else check_interval("retry_in", retry_in),
            backoff_base=backoff.base,
            backoff_factor=backoff.factor,
            backoff_max=backoff.maximum,
            backoff_jitter=backoff.jitter,
        )
        rows = await self._settle(run, Leases.failed(failures))
        return {row.id: JobStatus(row.status) for row in rows}

    async def fail_job(
        self, lease: Held, error: str, *, retry_in: timedelta | None = None, backoff: Backoff = DEFAULT_BACKOFF
    ) -> JobStatus:
        """Fail one attempt, as `fail_jobs` does. Return the new status: pending or dead.

        Raises: `LeaseLostError` if the lease was lost.
        Query: fail_jobs.
        Repeating: raises `LeaseLostError` if the job failed under this lease; no attempt fails twice.
        """
        [status] = (await self.fail_jobs([(lease, error)], retry_in=retry_in, backoff=backoff)).values()
        return status

    async def bury_jobs(self, failures: Iterable[tuple[Held, str]]) -> None:
        """Fail running attempts, given as pairs (lease, error), and make the jobs dead at once, even with attempts
        left.

        The errors are stored (`list_failures`). `retry_jobs` makes the jobs pending again.

        Raises: `LeaseLostError` with the lost jobs; the others are dead.
        Query: fail_jobs, with is_final.
        Repeating: raises `LeaseLostError` for jobs that died under these leases; no attempt fails twice.
        """
        await self._settle(partial(self._queries.fail_jobs, **FINAL), Leases.failed(failures))

    async def release_jobs(self, leases: Iterable[Held], *, delay: timedelta = timedelta(0)) -> None:
        """Return running jobs to pending without counting the attempt, for example at shutdown.

        They are due after ``delay``. Without a delay they keep their time, and so their place in the queue.

        Raises: `LeaseLostError` with the lost jobs; the others are released.
        Query: release_jobs.
        Repeating: raises `LeaseLostError` for the released jobs; no attempt is restored twice.
        """
        run = partial(self._queries.release_jobs, delay=check_interval("delay", delay))
        await self._settle(run, Leases(leases))

    async def _settle(self, run: Callable[..., AsyncIterator[Settled]], leases: Leases) -> list[Settled]:
        """Return the rows of a query over leases, one for each held job. Raise `LeaseLostError` with the others."""
        rows: list[Settled] = []
        if leases.held:
            async with self._connection() as connection:
                rows = [row async for row in run(connection, **leases.values)]
        check_lost(leases.lost((row.id for row in rows), len(rows)))
        return rows

    async def rescue_jobs(self, limit: int = 1000) -> dict[UUID, JobStatus]:
        """Recover at most ``limit`` (1 to 1000) jobs whose lease has expired: they become pending and due at once, or
        dead if no attempt is left. Return the new status by id. Each rescued job is logged.

        Query: rescue_jobs.
        Repeating: rescues the next jobs.
        """
        job_limit = check_limit(limit)
        async with self._connection() as connection:
            return rescued([row async for row in self._queries.rescue_jobs(connection, job_limit=job_limit)])

    async def next_job_at(self, queues: str | Collection[str]) -> datetime | None:
        """Return when the next job of the queues can be claimed, or None if there is none.

        A time in the past means that a job is due now. Jobs of a paused queue wait for the end of the pause; if it has
        no end, they are ignored.

        Query: next_job_at.
        Repeating: changes nothing.
        """
        names = queue_names(queues)
        async with self._connection() as connection:
            at: datetime | None = await self._queries.next_job_at(connection, queues=names)
        return at

    def listen(self, queues: str | Collection[str]) -> AsyncListener:
        """Return the `AsyncListener` that wakes an idle worker when jobs of the queues become ready. Use it in a
        ``with`` statement.

        It has its own connection, even on a bound store: to ``listen_url`` if that is set. Behind a pooler without a
        ``listen_url``, the listener only pauses.

        Queries: get_session, listen, listen_cancelled, announce_listener; find_listener_blockers if that fails.
        """
        if not self._knows_url:
            raise StorageError(
                "this store has no URL for a listener: use the `bound_to` of an open store, or `listen` on that store"
            )
        variable = LISTEN_URL if self.config.listen_url else URL
        config = replace(self.config, url=self.config.listen_url or self.config.url)
        connect = partial(open_connection, config, self._queries)
        return AsyncListener(connect, self._queries, queue_names(queues), config.schema, variable)

    async def list_failures(self, job_id: JobId, *, fresh: bool = True) -> list[Failure]:
        """Return the failed attempts of one job, oldest first. ``fresh``: see `get_job`.

        Query: list_failures.
        Repeating: changes nothing.
        """
        wanted = as_job_id(job_id)
        async with self._reading(fresh=fresh) as connection:
            return [failure_of(row) async for row in self._queries.list_failures(connection, job_id=wanted)]

    async def pause_queue(self, queue: str, *, until: datetime | None = None) -> None:
        """Pause a queue until ``until`` (aware), or until `resume_queue`. A second call replaces the time.

        Claims skip the queue. Running jobs continue, and jobs can be added. A claim that began before the pause was
        committed can still return jobs. The end of the pause sends no notification: workers find the jobs by polling,
        or sleep until `next_job_at`. A time that has passed pauses nothing, and ends a current pause.

        Query: pause_queue.
        Repeating: sets the same time again.
        """
        values = {
            "queue": check_name("queue", queue),
            "until": None if until is None else check_time("until", until),
        }
        async with self._connection() as connection:
            await self._queries.pause_queue(connection, **values)

    async def resume_queue(self, queue: str) -> bool:
        """End the pause of a queue, and wake its listeners. Return whether it was paused.

        While the table has many dead tuples, claims find the queue again within ``claim_resume_time``.

        Queries: resume_queue; wake_listeners if the queue was paused.
        Repeating: returns False.
        """
        name = check_name("queue", queue)
        async with self._connection() as connection, self._transaction(connection, "resume_queue", ()):
            was_paused = await self._queries.resume_queue(connection, queue=name)
            if was_paused:
                _ = [row async for row in self._queries.wake_listeners(connection, queues=[name])]
        return was_paused is True

    async def queue_stats(self, *, fresh: bool = False) -> list[QueueStats]:
        """Return each queue's jobs by status, age of the oldest due job, expired leases and pause, ordered by queue.

        A count is exact up to 1,000. Beyond that it is an estimate, and its ``exact`` is False.

        ``fresh``: see `list_jobs`.

        Query: queue_stats.
        Repeating: changes nothing.
        """
        async with self._reading(fresh=fresh) as connection:
            return [stats_of(row) async for row in self._queries.queue_stats(connection)]

    async def list_workers(self, *, fresh: bool = False) -> list[WorkerStats]:
        """Return the workers that hold running jobs, ordered by worker_id. Idle workers are not listed.

        `list_jobs` with `JobFilter(locked_by=...)` returns a worker's jobs.

        ``fresh``: see `list_jobs`.

        Query: list_workers.
        Repeating: changes nothing.
        """
        async with self._reading(fresh=fresh) as connection:
            return [worker_of(row) async for row in self._queries.list_workers(connection)]

    async def list_job_types(self, *, fresh: bool = False) -> list[str]:
        """Return the types of the stored jobs, in order.

        Of the pending jobs, the 10,000 newest and the 10,000 oldest are read. A type that only other pending jobs have
        is missing.

        ``fresh``: see `list_jobs`.

        Query: list_job_types.
        Repeating: changes nothing.
        """
        async with self._reading(fresh=fresh) as connection:
            return [job_type async for (job_type,) in self._queries.list_job_types(connection)]

    async def get_transaction_status(self, transaction_id: str) -> TransactionStatus:
        """Return the outcome of the transaction that an `OutcomeUnknownError` names.

        Use the server that the error came from. After a failover or a crash of that server, another transaction can
        have the same id. Then committed can be its status; aborted is right after a crash. While the status is in
        progress, call again: the server may not have noticed the lost connection yet.

        Query: get_transaction_status.
        Repeating: changes nothing.
        """
        wanted = check_transaction_id(transaction_id)
        async with self._connection() as connection:
            try:
                status = await self._queries.get_transaction_status(connection, transaction_id=wanted)
            except psycopg.errors.InvalidParameterValue:  # an id that this server has not assigned
                status = None
        return TransactionStatus(status or TransactionStatus.UNKNOWN)

    async def ping(self) -> None:
        """Check that the server answers and the table can be read.

        Query: ping.
        Repeating: changes nothing.
        """
        async with self._connection() as connection:
            await self._queries.ping(connection)

    # --- connections and transactions -------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reading(self, *, fresh: bool) -> AsyncIterator[AsyncConnection[Any]]:
        """Yield a connection to the standby; if ``fresh``, without a ``read_url`` and in a bound store, our own."""
        check_kind("fresh", fresh, bool)
        if fresh or not self.config.read_url or self._pool is None or self._pool.closed:
            async with self._connection() as connection:
                yield connection
            return
        self._check_process()
        async with (await self._opened_reader())._connection() as connection:  # noqa: SLF001
            yield connection

    async def _opened_reader(self) -> "AsyncPostgresStorage":
        """Return the store of ``read_url``. The first reader opens it: a program that reads nothing needs no standby.

        Calls that waited for an attempt share its error; else each of them would wait for the connect timeout in turn.
        """
        asked = monotonic()
        async with self._opening:
            if self._reader is None:
                if self._reader_failure is not None and self._reader_failure[0] >= asked:
                    error = self._reader_failure[1]
                    raise type(error)(str(error)) from error
                config = replace(self.config, url=self.config.read_url, read_url="")
                try:
                    pool = await open_pool(config, _queries(config, ""))
                except GoQueueError as exc:
                    self._reader_failure = (monotonic(), naming(exc, READ_URL))
                    raise
                pool.name += " (read_url)"  # in psycopg's log
                self._reader = type(self)(config, pool=pool)
                self._reader._variable = READ_URL  # noqa: SLF001
                if self._pool is not None and self._pool.closed:  # meanwhile
                    await self._reader.close()
            return self._reader

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # Two processes on one socket would read each other's answers.
            raise StorageError(
                "this store was opened in the parent process; open another one after the fork"
                + ("" if self._pool is not None else ", on a connection of this process")
            )
        self._check_loop()  # async only

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        self._check_process()
        try:
            if self._pool is None:
                given = self._given
                if not isinstance(given, AsyncConnection):
                    given = await cast("AsyncLender", given).connection()
                notice_loss(given)
                yield given
                return
            start = monotonic()
            connection = await self._pool.getconn()
            connection.goqueue_charge(monotonic() - start)
            try:
                yield connection
            finally:  # not the pool's context manager, which would commit: there is nothing to commit
                try:
                    await self._pool.putconn(connection)
                    if connection.goqueue_is_late:
                        await self._pool.drain()  # the others are probably silent too
                except Exception:  # noqa: BLE001 - the statement has run; only the pool's logging failed
                    record_lost("psycopg.pool")
                    await connection.close()
        except psycopg.Error as exc:
            if self._pool is None:
                raise translate(exc) from exc
            if is_stale(exc):
                await self._pool.drain()  # each of its connections would fail once
            reason = reason_of(exc, self._pool)
            raise naming(translate(reason, reconnecting=True), self._variable) from reason

    def _check_loop(self) -> None:  # async only
        if self._loop is not None and self._loop is not asyncio.get_running_loop():  # async only
            raise StorageError("this store was opened in another event loop; open one per event loop")  # async only

    @asynccontextmanager
    async def _transaction(
        self, connection: AsyncConnection[Any], operation: str, job_ids: Iterable[UUID], worker_id: str | None = None
    ) -> AsyncIterator[dict[str, str | None]]:
        """Run a block atomically: in a transaction on a connection of our own or an autocommit one, else in a savepoint
        of the caller's transaction. Yield a dict for its ``transaction_id``.

        Raise `OutcomeUnknownError` if the reply to its COMMIT was lost, or if a standby did not confirm it.
        """
        if not connection.autocommit and connection.info.transaction_status == pq.TransactionStatus.IDLE:
            await self._queries.ping(connection)  # makes psycopg begin the caller's transaction instead of ours
        watch = StandbyWatch.of(connection)
        before = watch.unconfirmed
        commits = connection.info.transaction_status == pq.TransactionStatus.IDLE
        known: dict[str, str | None] = {"worker_id": worker_id, "transaction_id": None}
        is_done = False
        interrupt: BaseException | None = None
        try:
            async with connection.transaction():
                try:
                    yield known
                except BaseException as exc:
                    interrupt = None if isinstance(exc, Exception) else exc
                    raise
                is_done = True
        except psycopg.Error as exc:
            if interrupt is not None:  # its rollback has failed: a cancelled task must end as cancelled
                raise interrupt from exc
            if is_done and commits and is_unanswered(exc, at_commit=True):
                lost = unconfirmed if watch.unconfirmed != before else unanswered
                raise lost(operation, job_ids, cause=exc, **known) from exc
            raise
        if watch.unconfirmed != before:
            raise unconfirmed(operation, job_ids, cause=None, **known)
