"""`PostgresStorage`: the storage contract over psycopg. Each method runs the query of its own name in sql/.

Imports the rest of the package; nothing in it but the public face and the command line imports this.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import psycopg
from msgspec import UNSET
from psycopg import Connection

from goqueue.config import DatabaseConfig
from goqueue.dberrors import duplicate_of, translate
from goqueue.errors import InvalidJobError, JobNotFoundError, JobStateError
from goqueue.models import (
    Job,
    JobCount,
    JobFilter,
    JobUpdate,
    NewJob,
    Page,
    as_job_id,
    check_limit,
    check_name,
    check_payload,
    encode_json,
    make_cursor,
    read_cursor,
)
from goqueue.pool import Pool, open_pool
from goqueue.queries import load_queries
from goqueue.storage import JobId

# A statement's one JSON parameter is kept far below jsonb's limit of 256 MB, and the client's memory modest.
_MAX_BATCH_BYTES = 16 * 2**20

_NO_FILTER = JobFilter()


class _BoundTo:
    """Makes `bound_to` work on an opened store, with its settings, and on the class, with the default ones."""

    def __get__(
        self, store: "PostgresStorage | None", owner: type["PostgresStorage"]
    ) -> Callable[[Connection[Any]], "PostgresStorage"]:
        config = DatabaseConfig() if store is None else store.config

        def bound_to(connection: Connection[Any]) -> PostgresStorage:
            """The same methods on a psycopg connection of the caller's, inside the caller's transaction.

            It never commits, rolls back or closes; after an error from the server the transaction is the caller's to
            roll back, as always with psycopg. Its row factory doesn't matter. Queries: those of the methods.
            """
            return owner(lambda: nullcontext(connection), config)

        return bound_to


class PostgresStorage:
    """Jobs in PostgreSQL. Open one per process and share it between threads::

        with PostgresStorage.open("postgresql://app@db/app") as store:
            job = store.create_job(NewJob(job_type="send_email", payload={"to": "a@example.com"}))

    Inside a transaction of the caller's own, on the caller's connection::

        with psycopg.connect(...) as connection:
            connection.execute("INSERT INTO orders ...")
            store.bound_to(connection).create_job(NewJob(job_type="ship"))
            # The job exists if and only if this transaction commits.
    """

    bound_to = _BoundTo()

    def __init__(
        self,
        connections: Callable[[], AbstractContextManager[Connection[Any]]],
        config: DatabaseConfig,
        *,
        pool: Pool | None = None,
        sql_folder: Path | None = None,
    ) -> None:
        """For `open` and `bound_to`: ``connections`` gives a connection for the time of one call."""
        self.config = config
        self._connections = connections
        self._pool = pool
        self._queries = load_queries(sql_folder)

    @classmethod
    def open(cls, config: DatabaseConfig | str = "") -> Self:
        """A store over a connection pool. ``config``: a `DatabaseConfig`, or a URL alone (empty: the PG* variables).

        Raises `ConfigError` for unusable settings, `StorageUnavailableError` when the server can't be reached, and
        `SchemaError` when the database has not been migrated. Close it, or use it in a ``with`` statement.
        """
        if isinstance(config, str):
            config = DatabaseConfig(url=config)
        pool = open_pool(config)
        store = cls(pool.connection, config, pool=pool)
        try:
            store.ping()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Closes the pool; a caller's own connection stays open. Calling it again does nothing."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- create -----------------------------------------------------------------------------------------------------

    def create_job(self, job: NewJob) -> Job:
        """Adds a job. `DuplicateJobError` (with the existing job's id) when its idempotency key or its id is taken.

        Creating the very same `NewJob` again is no error: it gives the job that the first call made. Query: create_job.
        """
        existing, created = self.get_or_create_job(job)
        if created or (existing.id == job.id and _is_same(existing, job)):
            return existing
        raise duplicate_of(existing.id, None if existing.id == job.id else job.idempotency_key)

    def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """The job with the idempotency key (or the id) of ``job``, and whether this call created it.

        Queries: create_job, and find_duplicate_job when that added nothing.
        """
        values = {
            "id": job.id,
            "queue": job.queue,
            "job_type": job.job_type,
            "payload": self._payload(job).decode(),
            "priority": job.priority,
            "max_attempts": job.max_attempts,
            "scheduled_at": job.scheduled_at,
            "delay": job.delay,
            "idempotency_key": job.idempotency_key,
        }
        with self._connection() as connection:
            while True:
                if row := self._queries.create_job(connection, **values):
                    return Job.from_row(row), True
                if row := self._queries.find_duplicate_job(connection, id=job.id, idempotency_key=job.idempotency_key):
                    return Job.from_row(row), False
                # The job in the way was deleted between the two statements: the way is free.

    def create_jobs(self, jobs: Iterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Adds many jobs, all of them or on an error none. In the order given: (id, created).

        A job whose idempotency key is taken, by a stored job or by an earlier one of ``jobs``, is not created; the id
        is that of the job which has the key. Query: create_jobs, for every ``batch_size`` jobs.
        """
        results: list[tuple[UUID, bool]] = []
        with self._connection() as connection, self._transaction(connection):
            for batch in self._batches(jobs):
                results += self._create_batch(connection, batch)
        return results

    def create_jobs_in_batches(self, jobs: Iterable[NewJob]) -> Iterator[list[tuple[UUID, bool]]]:
        """`create_jobs` for an iterable of any length, in constant memory: one batch is read, added and committed each
        time the next result is asked for. What was given out stays, also when a later batch fails. Query: create_jobs.
        """
        for batch in self._batches(jobs):
            with self._connection() as connection, self._transaction(connection):
                results = self._create_batch(connection, batch)
            yield results

    def _batches(self, jobs: Iterable[NewJob]) -> Iterator[list[tuple[NewJob, bytes]]]:
        """The jobs with their JSON, in lists of at most ``batch_size`` jobs and some 16 MiB."""
        batch: list[tuple[NewJob, bytes]] = []
        size = 0
        for job in jobs:
            if not isinstance(job, NewJob):
                raise InvalidJobError(f"create_jobs takes NewJob objects, not {type(job).__name__}")
            encoded = self._encode(job)
            if batch and (len(batch) >= self.config.batch_size or size + len(encoded) > _MAX_BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append((job, encoded))
            size += len(encoded)
        if batch:
            yield batch

    def _create_batch(self, connection: Connection[Any], batch: list[tuple[NewJob, bytes]]) -> list[tuple[UUID, bool]]:
        created: set[UUID] = set()
        taken: dict[UUID | str, UUID] = {}
        missing = batch
        while missing:
            document = b"[%b]" % b",".join(encoded for _, encoded in missing)
            created.update(row[0] for row in self._queries.create_jobs(connection, jobs=document.decode()))
            missing = [(job, encoded) for job, encoded in missing if job.id not in created]
            if missing:
                taken.update(self._taken(connection, [job for job, _ in missing]))
                # Neither added nor in the table: what was in the way has been deleted since, and the way is free.
                missing = [item for item in missing if item[0].id not in taken and item[0].idempotency_key not in taken]
        results = []
        for job, _ in batch:
            if job.id in created:
                created.remove(job.id)  # Given twice, a job is created once.
                taken[job.id] = job.id
                results.append((job.id, True))
            else:
                results.append((taken.get(job.id) or taken[job.idempotency_key or ""], False))
        return results

    def _taken(self, connection: Connection[Any], jobs: list[NewJob]) -> dict[UUID | str, UUID]:
        """Which of the jobs' ids and idempotency keys are in the table, and the id of the job that has each."""
        rows = self._queries.find_duplicate_jobs(
            connection,
            ids=[job.id for job in jobs],
            idempotency_keys=[job.idempotency_key for job in jobs if job.idempotency_key is not None],
        )
        return {key: job_id for job_id, idempotency_key in rows for key in (job_id, idempotency_key) if key is not None}

    # --- read -------------------------------------------------------------------------------------------------------

    def get_job(self, job_id: JobId) -> Job:
        """The job with this id; `JobNotFoundError` when there is none. Query: get_job."""
        wanted = as_job_id(job_id)
        with self._connection() as connection:
            row = self._queries.get_job(connection, id=wanted)
        return _found(row, f"no job has the id {wanted}")

    def get_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        """The jobs with these ids, in their order; those that do not exist are left out. Query: get_jobs."""
        wanted = [as_job_id(job_id) for job_id in job_ids]
        with self._connection() as connection:
            return [Job.from_row(row) for row in self._queries.get_jobs(connection, ids=wanted)]

    def get_job_by_idempotency_key(self, idempotency_key: str) -> Job:
        """The job with this key; `JobNotFoundError` when there is none. Query: get_job_by_idempotency_key."""
        key = check_name("idempotency_key", idempotency_key)
        with self._connection() as connection:
            row = self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
        return _found(row, f"no job has the idempotency key {key!r}")

    def list_jobs(self, job_filter: JobFilter | None = None, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of at most ``limit`` (1 to 1000) jobs, newest first, going on from the ``next_cursor`` of a page of
        the same filter. Query: list_jobs.

        A page can be short and not be the last: with a range of ``scheduled_at`` it ends after some 3,000 index
        entries.
        """
        parameters = (job_filter or _NO_FILTER).parameters()
        created_at, job_id = read_cursor(parameters, cursor)
        with self._connection() as connection:
            rows = list(
                self._queries.list_jobs(
                    connection,
                    **parameters,
                    cursor_created_at=created_at,
                    cursor_id=job_id,
                    page_limit=check_limit(limit),
                )
            )
        *_, next_created_at, next_id = rows[0]
        return Page(
            jobs=[Job.from_row(row[:-2]) for row in rows if row[0] is not None],
            next_cursor=None if next_id is None else make_cursor(parameters, next_created_at, next_id),
        )

    def count_jobs(self, job_filter: JobFilter | None = None) -> JobCount:
        """How many jobs match: exact as far as 10,000 rows have to be looked at, beyond that an estimate that says so.

        Query: count_jobs.
        """
        with self._connection() as connection:
            count, exact = self._queries.count_jobs(connection, **(job_filter or _NO_FILTER).parameters())
        return JobCount(count, exact=exact)

    # --- change -----------------------------------------------------------------------------------------------------

    def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Changes the given fields, and returns the job as it is then. Query: update_job.

        `JobNotFoundError`; `JobStateError` for a status that doesn't follow from the present one; `DuplicateJobError`
        for an idempotency key that another job has.
        """
        wanted = as_job_id(job_id)
        changes = self._encode(update).decode()
        with self._connection() as connection:
            if row := self._queries.update_job(connection, id=wanted, changes=changes):
                return Job.from_row(row)
            current = _found(self._queries.get_job(connection, id=wanted), f"no job has the id {wanted}")
            if isinstance(key := update.idempotency_key, str):
                other = self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
                if other is not None and other[0] != wanted:
                    raise duplicate_of(other[0], key)
        raise JobStateError(f"job {wanted} is {current.status} and can't become {update.status}; nothing was changed")

    def delete_job(self, job_id: JobId) -> None:
        """Deletes the job for good, whatever its status; `JobNotFoundError` when there is none. Query: delete_job."""
        wanted = as_job_id(job_id)
        with self._connection() as connection:
            if self._queries.delete_job(connection, id=wanted) is None:
                raise JobNotFoundError(f"no job has the id {wanted}")

    def ping(self) -> None:
        """Returns when the server answers and the table can be read. Query: ping."""
        with self._connection() as connection:
            self._queries.ping(connection)

    # --- the way to the server --------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[Connection[Any]]:
        try:
            with self._connections() as connection:
                yield connection
        except psycopg.Error as exc:
            raise translate(exc) from exc

    def _transaction(self, connection: Connection[Any]) -> AbstractContextManager[object]:
        """All or nothing on a connection of our own; on the caller's, the transaction is the caller's affair."""
        return nullcontext() if self._pool is None else connection.transaction()

    def _payload(self, job: NewJob | JobUpdate) -> bytes:
        check_payload(job.payload)
        encoded = encode_json(job.payload)
        if len(encoded) > self.config.max_payload_bytes:
            raise InvalidJobError(
                f"the payload has {len(encoded):,} bytes as JSON; GOQUEUE_DATABASE_MAX_PAYLOAD_BYTES allows "
                f"{self.config.max_payload_bytes:,}: keep large data elsewhere and put a reference to it in the job"
            )
        return encoded

    def _encode(self, job: NewJob | JobUpdate) -> bytes:
        """The whole Struct as JSON, its payload checked."""
        if isinstance(job, NewJob) or job.payload is not UNSET:
            check_payload(job.payload)
            encoded = encode_json(job)
            if len(encoded) > self.config.max_payload_bytes:
                self._payload(job)
            return encoded
        return encode_json(job)


def _found(row: tuple[Any, ...] | None, message: str) -> Job:
    if row is None:
        raise JobNotFoundError(message)
    return Job.from_row(row)


def _is_same(existing: Job, job: NewJob) -> bool:
    """Whether the stored job is the one that ``job`` made: another job may have been given its id."""
    return (existing.job_type, existing.idempotency_key) == (job.job_type, job.idempotency_key)
