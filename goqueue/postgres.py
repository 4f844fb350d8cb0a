"""`PostgresStorage`: the storage contract over psycopg. Each method runs the query of its own name in sql/.

Imports the rest of the package; nothing in it but the public face and the command line imports this.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self
from uuid import UUID

import psycopg
from msgspec import UNSET
from msgspec.structs import replace
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from goqueue.config import Config, DatabaseConfig
from goqueue.dberrors import duplicate_of, translate
from goqueue.errors import (
    CorruptJobError,
    InvalidJobError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    StorageError,
    StorageUnavailableError,
    TransactionConflictError,
)
from goqueue.listener import Listener
from goqueue.models import (
    MAX_PAGE,
    Backoff,
    Failure,
    Job,
    JobCount,
    JobFilter,
    JobStatus,
    JobUpdate,
    Lease,
    NewJob,
    Page,
    QueueStats,
    as_job_id,
    as_status,
    check_interval,
    check_kind,
    check_limit,
    check_name,
    check_payload,
    check_time,
    clean_text,
    decode_payload,
    encode_json,
    make_cursor,
    read_cursor,
)
from goqueue.pool import Pool, open_connection, open_pool
from goqueue.queries import load_queries
from goqueue.resume import START, Lane, Position, Resume
from goqueue.storage import Held, JobId, Jobs

DEFAULT_LEASE = timedelta(minutes=5)
DEFAULT_BACKOFF = Backoff()
LEASE_TOKEN = Job.__struct_fields__.index("lease_token")

_log = logging.getLogger("goqueue")

# How often an insert that added nothing is tried again while the job in its way is not to be found.
_TRIES = 100
_SUPPRESSED = "the database adds no job and shows none in its way; look for a trigger, a rule or a policy that hides it"

# A statement's one JSON parameter is kept far below jsonb's limit of 256 MB, and the client's memory modest.
_MAX_BATCH_BYTES = 16 * 2**20

_NO_FILTER = JobFilter()


class _BoundTo:
    """Makes `bound_to` work on an opened store, with its settings, and on the class, with the default ones."""

    def __get__(
        self, store: "PostgresStorage | None", owner: type["PostgresStorage"]
    ) -> Callable[[Connection[Any]], "PostgresStorage"]:
        def bound_to(connection: Connection[Any]) -> PostgresStorage:
            """The same methods on a psycopg connection of the caller's, inside the caller's transaction.

            It never commits, rolls back or closes; after an error from the server the transaction is the caller's to
            roll back, as always with psycopg. Its row factory doesn't matter. Queries: those of the methods.
            """
            check_kind("connection", connection, Connection)
            if store is not None:
                config, resumes = store.config, store._resumes  # noqa: SLF001
            else:  # `listen` opens a connection of its own, to the same database.
                info = connection.info
                config, resumes = DatabaseConfig(url=make_conninfo(info.dsn, password=info.password or None)), None
            return owner(lambda: nullcontext(connection), config, resumes=resumes)

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
        resumes: dict[tuple[str, ...], Resume] | None = None,
    ) -> None:
        """For `open` and `bound_to`: ``connections`` gives a connection for the time of one call."""
        self.config = config
        self._connections = connections
        self._pool = pool
        self._process = os.getpid()
        self._resumes = {} if resumes is None else resumes
        self._queries = load_queries()

    @classmethod
    def open(cls, config: DatabaseConfig | Config | str = "") -> Self:
        """A store over a connection pool. ``config``: a `DatabaseConfig` (or the `Config` with it), or a URL alone
        (empty: the PG* variables). Not to be used across a fork: open one in each process.

        Raises `ConfigError` for unusable settings, `StorageUnavailableError` when the server can't be reached, and
        `SchemaError` when the database has not been migrated. Close it, or use it in a ``with`` statement.
        """
        if isinstance(config, str):
            config = DatabaseConfig(url=config)
        elif isinstance(config, Config):
            config = config.database
        check_kind("config", config, DatabaseConfig, str)
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
        check_kind("job", job, NewJob)
        values = self._values(job)
        with self._connection() as connection:
            for _ in range(_TRIES):
                if row := self._queries.create_job(connection, **values):
                    return Job.from_row(row), True
                if row := self._queries.find_duplicate_job(connection, id=job.id, idempotency_key=job.idempotency_key):
                    return Job.from_row(row), False
                # The job in the way was deleted between the two statements: the way is free.
        raise StorageError(_SUPPRESSED)

    def create_jobs(self, jobs: Iterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Adds many jobs, all of them or on an error none. In the order given: (id, created).

        ``jobs`` is read while the transaction is open: let it not wait, nor use the same store. A job whose idempotency
        key is taken, by a stored job or by an earlier one of ``jobs``, is not created; the id is that of the job which
        has the key. Query: create_jobs, for every ``batch_size`` jobs.
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
        for _ in range(_TRIES):
            document = b"[%b]" % b",".join(encoded for _, encoded in missing)
            created.update(row[0] for row in self._queries.create_jobs(connection, jobs=document.decode()))
            missing = [(job, encoded) for job, encoded in missing if job.id not in created]
            if missing:
                taken.update(self._taken(connection, [job for job, _ in missing]))
                # Neither added nor in the table: what was in the way has been deleted since, and the way is free.
                missing = [item for item in missing if item[0].id not in taken and item[0].idempotency_key not in taken]
            if not missing:
                break
        else:
            raise StorageError(_SUPPRESSED)
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
        parameters = _parameters(job_filter)
        page_limit = check_limit(limit)
        created_at, job_id = read_cursor(parameters, cursor)
        with self._connection() as connection:
            rows = list(
                self._queries.list_jobs(
                    connection,
                    **parameters,
                    cursor_created_at=created_at,
                    cursor_id=job_id,
                    page_limit=page_limit,
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
        parameters = _parameters(job_filter)
        with self._connection() as connection:
            count, exact = self._queries.count_jobs(connection, **parameters)
        return JobCount(count, exact=exact)

    # --- change -----------------------------------------------------------------------------------------------------

    def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Changes the given fields, and returns the job as it is then. Query: update_job.

        `JobNotFoundError`; `JobStateError` for a status that doesn't follow from the present one; `DuplicateJobError`
        for an idempotency key that another job has.
        """
        wanted = as_job_id(job_id)
        check_kind("update", update, JobUpdate)
        changes = self._encode(update).decode()
        with self._connection() as connection:
            if row := self._queries.update_job(connection, id=wanted, changes=changes):
                return Job.from_row(row)
            current = _found(self._queries.get_job(connection, id=wanted), f"no job has the id {wanted}")
            if isinstance(key := update.idempotency_key, str):
                other = self._queries.get_job_by_idempotency_key(connection, idempotency_key=key)
                if other is not None and other[0] != wanted:
                    raise duplicate_of(other[0], key)
        if update.status is UNSET:
            raise TransactionConflictError(f"job {wanted} was changed by another at the same time; try again")
        raise JobStateError(f"job {wanted} is {current.status} and can't become {update.status}; nothing was changed")

    def replace_pending_job(self, job: NewJob) -> Job:
        """Adds a job, or puts it in the place of the pending one that has its idempotency key (and keeps its id).

        `DuplicateJobError` when the key's job is not pending any more; `InvalidJobError` for a job without a key.
        Query: replace_pending_job.
        """
        check_kind("job", job, NewJob)
        if job.idempotency_key is None:
            raise InvalidJobError("replace_pending_job needs an idempotency_key to find the job by")
        with self._connection() as connection:
            if row := self._queries.replace_pending_job(connection, **self._values(job)):
                return Job.from_row(row)
            other = self._queries.get_job_by_idempotency_key(connection, idempotency_key=job.idempotency_key)
        raise duplicate_of(None if other is None else other[0], job.idempotency_key)

    def cancel_jobs(self, jobs: Jobs) -> int:
        """Withdraws waiting and running jobs, by ids or by filter; how many. Others are left as they are.

        Who runs one gets `LeaseLostError` at its next call. Query: cancel_jobs, once for up to 1000 jobs.
        """
        return self._for_each(jobs, self._queries.cancel_jobs, (JobStatus.PENDING, JobStatus.RUNNING))

    def retry_jobs(self, jobs: Jobs) -> int:
        """Makes dead and cancelled jobs pending again, due at once and with all their attempts; how many.

        Query: retry_jobs, once for up to 1000 jobs.
        """
        return self._for_each(jobs, self._queries.retry_jobs, (JobStatus.DEAD, JobStatus.CANCELLED))

    def reschedule_jobs(
        self, jobs: Jobs, *, scheduled_at: datetime | None = None, delay: timedelta | None = None
    ) -> int:
        """Gives waiting jobs another time: ``scheduled_at`` (aware), or ``delay`` from now; how many.

        Query: reschedule_jobs, once for up to 1000 jobs.
        """
        if (scheduled_at is None) == (delay is None):
            raise InvalidJobError("give either scheduled_at or delay")
        if scheduled_at is not None:
            check_time("scheduled_at", scheduled_at)
        if delay is not None:
            check_interval("delay", delay)
        run = partial(self._queries.reschedule_jobs, scheduled_at=scheduled_at, delay=delay)
        return self._for_each(jobs, run, (JobStatus.PENDING,))

    def _for_each(self, jobs: Jobs, run: Callable[..., Any], statuses: tuple[JobStatus, ...]) -> int:
        """Runs a query over the ids given, or over those of a filter (narrowed to ``statuses``), in batches."""
        count = 0
        for ids in self._ids(jobs, statuses):
            with self._connection() as connection:
                count += len(list(run(connection, ids=ids)))
        return count

    def _ids(self, jobs: Jobs, statuses: tuple[JobStatus, ...]) -> Iterator[list[UUID]]:
        if isinstance(jobs, JobFilter):
            wanted = statuses if jobs.status is None else tuple(set(jobs.parameters()["statuses"]) & set(statuses))
            if not wanted:
                return
            narrowed, cursor = replace(jobs, status=wanted), None
            while True:
                page = self.list_jobs(narrowed, limit=MAX_PAGE, cursor=cursor)
                # In one order everywhere, so that two callers never wait for each other.
                yield sorted(job.id for job in page.jobs)
                if (cursor := page.next_cursor) is None:
                    return
        else:
            given = sorted({as_job_id(job_id) for job_id in ([jobs] if isinstance(jobs, (UUID, str)) else jobs)})
            for start in range(0, len(given), MAX_PAGE):
                yield given[start : start + MAX_PAGE]

    def delete_job(self, job_id: JobId) -> None:
        """Deletes the job for good, whatever its status; `JobNotFoundError` when there is none. Query: delete_job."""
        wanted = as_job_id(job_id)
        with self._connection() as connection:
            if self._queries.delete_job(connection, id=wanted) is None:
                raise JobNotFoundError(f"no job has the id {wanted}")

    def prune_jobs(
        self,
        older_than: timedelta,
        statuses: Collection[JobStatus] = (JobStatus.COMPLETED, JobStatus.DEAD, JobStatus.CANCELLED),
        limit: int = 1000,
    ) -> int:
        """Deletes one batch of at most ``limit`` (1 to 1000) jobs finished longer than ``older_than`` ago; how many.

        Call it until it gives fewer than ``limit``; each call is a short transaction. Query: prune_jobs.
        """
        wanted = [as_status(status) for status in statuses]
        if unfinished := set(wanted) & {JobStatus.PENDING, JobStatus.RUNNING}:
            raise InvalidJobError(f"only finished jobs can be pruned, not {', '.join(sorted(unfinished))}")
        with self._connection() as connection:
            rows = self._queries.prune_jobs(
                connection,
                older_than=check_interval("older_than", older_than),
                statuses=wanted,
                job_limit=check_limit(limit),
            )
            return len(list(rows))

    # --- work -------------------------------------------------------------------------------------------------------

    def claim_jobs(
        self, queues: str | Collection[str], worker_id: str, limit: int = 1, lease: timedelta = DEFAULT_LEASE
    ) -> list[Job]:
        """Takes at most ``limit`` (1 to 1000) due jobs of the queues for ``worker_id``, which holds each for ``lease``.

        By priority (the lower number first), then by scheduled_at, then by id. An empty list means that none is due. A
        job whose payload can't be read is set aside as dead, with the reason as its error, and logged; the others are
        given. While an old snapshot keeps dead index entries alive, a job that becomes due out of order can be
        overlooked for ``claim_resume_time`` (GOQUEUE_DATABASE_CLAIM_RESUME_TIME). Query: claim_jobs.
        """
        values = _claim_values(queues, worker_id, limit, lease)
        with self._connection() as connection:
            return self._claim(connection, values)

    def complete_and_claim(
        self,
        leases: Iterable[Held],
        queues: str | Collection[str],
        worker_id: str,
        limit: int = 1,
        lease: timedelta = DEFAULT_LEASE,
    ) -> list[Job]:
        """`complete_jobs` and `claim_jobs` with one commit. When a lease was lost (`LeaseLostError`) the other jobs are
        completed, and none is claimed. Queries: complete_jobs, claim_jobs.
        """
        values = _claim_values(queues, worker_id, limit, lease)
        with self._connection() as connection, self._transaction(connection):
            lost = self._settle(connection, self._queries.complete_jobs, leases)
            jobs = [] if lost else self._claim(connection, values)
        _check_lost(lost)
        return jobs

    def heartbeat_jobs(self, leases: Iterable[Held], lease: timedelta = DEFAULT_LEASE) -> None:
        """Holds on to running jobs for ``lease`` from now. `LeaseLostError` names those lost. Query: heartbeat_jobs."""
        run = partial(self._queries.heartbeat_jobs, lease=check_interval("lease", lease))
        with self._connection() as connection:
            lost = self._settle(connection, run, leases)
        _check_lost(lost)

    def complete_jobs(self, leases: Iterable[Held]) -> None:
        """The jobs are done. `LeaseLostError` names those lost; the others are completed. Query: complete_jobs."""
        with self._connection() as connection:
            lost = self._settle(connection, self._queries.complete_jobs, leases)
        _check_lost(lost)

    def complete_job(self, lease: Held) -> None:
        """`complete_jobs` for one. Query: complete_jobs."""
        self.complete_jobs([lease])

    def fail_jobs(
        self,
        failures: Iterable[tuple[Held, str]],
        *,
        retry_in: timedelta | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
    ) -> dict[UUID, JobStatus]:
        """Attempts have failed: (lease, error) each. A job waits for its next attempt, for ``retry_in`` or else as
        ``backoff`` says; without an attempt left it is dead. The status by id; the errors are kept (`list_failures`).

        `LeaseLostError` names the jobs lost; the others are failed. Query: fail_jobs.
        """
        failures = list(failures)
        run = partial(
            self._queries.fail_jobs,
            retry_in=None if retry_in is None else check_interval("retry_in", retry_in),
            backoff_base=backoff.base,
            backoff_factor=backoff.factor,
            backoff_max=backoff.maximum,
            backoff_jitter=backoff.jitter,
        )
        statuses: dict[UUID, JobStatus] = {}
        with self._connection() as connection:
            lost = self._settle(
                connection, run, [held for held, _ in failures], [error for _, error in failures], statuses
            )
        _check_lost(lost)
        return statuses

    def fail_job(
        self, lease: Held, error: str, *, retry_in: timedelta | None = None, backoff: Backoff = DEFAULT_BACKOFF
    ) -> JobStatus:
        """`fail_jobs` for one; pending or dead. Query: fail_jobs."""
        [status] = self.fail_jobs([(lease, error)], retry_in=retry_in, backoff=backoff).values()
        return status

    def release_jobs(self, leases: Iterable[Held]) -> None:
        """Gives jobs back untried, as at a shutdown: they wait as before, and the attempt doesn't count.

        `LeaseLostError` names the jobs lost; the others are released. Query: release_jobs.
        """
        with self._connection() as connection:
            lost = self._settle(connection, self._queries.release_jobs, leases)
        _check_lost(lost)

    def rescue_jobs(self, limit: int = 1000) -> dict[UUID, JobStatus]:
        """At most ``limit`` (1 to 1000) jobs whose lease has expired wait again, due at once, or are dead when no
        attempt is left. The status by id. Query: rescue_jobs.
        """
        with self._connection() as connection:
            rows = list(self._queries.rescue_jobs(connection, job_limit=check_limit(limit)))
        return {job_id: JobStatus(status) for job_id, status in rows}

    def next_job_at(self, queues: str | Collection[str]) -> datetime | None:
        """When the next job of the queues is due (past, if one is due already); None when no job waits.

        Query: next_job_at.
        """
        with self._connection() as connection:
            at: datetime | None = self._queries.next_job_at(connection, queues=_queue_names(queues))
        return at

    def listen(self, queues: str | Collection[str]) -> Listener:
        """A `Listener` that wakes an idle worker when jobs of the queues become ready; open it with ``with``.

        It has a connection of its own, also on a store that is bound to one. Queries: listen, announce_listener.
        """
        return Listener(partial(open_connection, self.config), self._queries, _queue_names(queues))

    def list_failures(self, job_id: JobId) -> list[Failure]:
        """The failed attempts of one job, the first one first. Query: list_failures."""
        with self._connection() as connection:
            return [Failure(*row) for row in self._queries.list_failures(connection, job_id=as_job_id(job_id))]

    def queue_stats(self) -> list[QueueStats]:
        """Each queue's jobs by status (exact up to 1000, then an estimate that says so), the age of its oldest due job,
        and its expired leases; by name. Query: queue_stats.
        """
        with self._connection() as connection:
            rows = list(self._queries.queue_stats(connection))
        return [
            QueueStats(
                queue,
                {
                    status: JobCount(count, exact=status in exact)
                    for status, count in zip(JobStatus, counts, strict=True)
                },
                age,
                expired,
            )
            for queue, *counts, exact, age, expired in rows
        ]

    def _claim(self, connection: Connection[Any], values: dict[str, Any]) -> list[Job]:
        resume = self._resumes.setdefault(
            tuple(values["queues"]), Resume(self.config.claim_resume_time.total_seconds())
        )
        lanes = resume.lanes()
        jobs, seen, entries_read, found = self._take(connection, values, lanes)
        resume.learn(
            found,
            {(job.queue, job.priority): (job.scheduled_at, job.id) for job in jobs},
            resumed=lanes is not None,
            entries_read=entries_read,
            cheap=1000 + 10 * values["job_limit"],
        )
        if jobs or not seen:
            return jobs
        # Others had locked the jobs that were seen, or these are dead now. None is due only when none is behind them.
        for queue, priority in sorted(found, key=lambda lane: lane[1]):
            lane = {(queue, priority): (lanes or {}).get((queue, priority), START)}
            while seen:
                jobs, seen, *_ = self._take(connection, values, lane)
                if jobs:
                    return jobs
            seen = 1
        return []

    def _take(
        self, connection: Connection[Any], values: dict[str, Any], lanes: dict[Lane, Position] | None
    ) -> tuple[list[Job], int, int, list[list[Any]]]:
        """One claim, of all lanes or after the positions in some: the jobs, and what it has seen, read and found."""
        if lanes is None:
            where = dict.fromkeys(("lane_queues", "lane_priorities", "lane_times", "lane_ids"))
        else:
            where = {
                "lane_queues": [queue for queue, _ in lanes],
                "lane_priorities": [priority for _, priority in lanes],
                "lane_times": [time for time, _ in lanes.values()],
                "lane_ids": [job_id for _, job_id in lanes.values()],
            }
        rows = list(self._queries.claim_jobs(connection, **values, **where))
        *_, seen, entries_read, found = rows[0]
        jobs, unreadable = [], []
        for row in rows:
            if row[0] is not None:
                try:
                    jobs.append(Job.from_row(row[:-3]))
                except CorruptJobError as error:
                    unreadable.append((Lease(row[0], row[LEASE_TOKEN]), error))
        if unreadable:
            for _, corrupt in unreadable:
                _log.error("%s; it is set aside as dead", corrupt, extra={"job_id": corrupt.job_id})
            leases, reasons = zip(*unreadable, strict=True)
            self._settle(connection, self._queries.bury_jobs, leases, [str(reason) for reason in reasons])
        return jobs, seen, entries_read, decode_payload(found) if found else []

    def _settle(
        self,
        connection: Connection[Any],
        run: Callable[..., Any],
        leases: Iterable[Held],
        errors: list[str] | None = None,
        statuses: dict[UUID, JobStatus] | None = None,
    ) -> list[UUID]:
        """Runs a query over leases, in the order of their ids, so that two callers never wait for each other. The ids
        of the jobs that the caller doesn't hold; into ``statuses`` go those that the query gives."""
        held = [(as_job_id(lease.id), lease.lease_token) for lease in leases]
        order = sorted(range(len(held)), key=lambda place: held[place])
        values: dict[str, Any] = {
            "ids": [held[place][0] for place in order],
            "tokens": [held[place][1] for place in order],
        }
        if errors is not None:
            values["errors"] = [clean_text(errors[place]) for place in order]
        rows = list(run(connection, **values)) if held else []
        if statuses is not None:
            statuses.update((job_id, JobStatus(status)) for job_id, status in rows)
        done = {row[0] for row in rows}
        newest = dict(sorted(held))
        return [job_id for job_id, token in held if job_id not in done or token < newest[job_id]]

    def ping(self) -> None:
        """Returns when the server answers and the table can be read. Query: ping."""
        with self._connection() as connection:
            self._queries.ping(connection)

    # --- the way to the server --------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[Connection[Any]]:
        if self._pool is not None and self._process != os.getpid():
            # Two processes on one socket read each other's answers.
            raise StorageUnavailableError("this store was opened in the process this one was forked from; open another")
        try:
            with self._connections() as connection:
                yield connection
        except psycopg.Error as exc:
            raise translate(exc) from exc

    def _transaction(self, connection: Connection[Any]) -> AbstractContextManager[object]:
        """All or nothing: a transaction on a connection of our own, or on the caller's in autocommit; a savepoint in
        the caller's transaction, which stays the caller's to commit."""
        if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
            self._queries.ping(connection)  # psycopg begins the caller's transaction with it, and not one of ours
        return connection.transaction()

    def _values(self, job: NewJob) -> dict[str, Any]:
        """The parameters of the queries that add one job."""
        return {
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


def _parameters(job_filter: JobFilter | None) -> dict[str, Any]:
    if job_filter is None:
        return _NO_FILTER.parameters()
    check_kind("job_filter", job_filter, JobFilter)
    return job_filter.parameters()


def _found(row: tuple[Any, ...] | None, message: str) -> Job:
    if row is None:
        raise JobNotFoundError(message)
    return Job.from_row(row)


def _check_lost(job_ids: list[UUID]) -> None:
    if job_ids:
        names = ", ".join(map(str, job_ids[:10])) + (f" and {len(job_ids) - 10:,} more" if len(job_ids) > 10 else "")
        raise LeaseLostError(
            f"not held any more: {names}; the lease expired, or the job was cancelled or deleted: stop working on it",
            job_ids=job_ids,
        )


def _claim_values(queues: str | Collection[str], worker_id: str, limit: int, lease: timedelta) -> dict[str, Any]:
    """The parameters of claim_jobs but for the lanes."""
    return {
        "queues": _queue_names(queues),
        "worker_id": check_name("worker_id", worker_id),
        "job_limit": check_limit(limit),
        "lease": check_interval("lease", lease),
    }


def _queue_names(queues: str | Collection[str]) -> list[str]:
    names = {check_name("queue", queue) for queue in ([queues] if isinstance(queues, str) else queues)}
    if not names:
        raise InvalidJobError("no queue is given to take jobs from")
    return sorted(names)


def _is_same(existing: Job, job: NewJob) -> bool:
    """Whether the stored job is the one that ``job`` made: another job may have been given its id."""
    return (existing.job_type, existing.idempotency_key) == (job.job_type, job.idempotency_key)
