"""The contract of every storage backend; tests/test_contract.py checks it."""

from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable
from datetime import datetime, timedelta
from typing import Protocol, Self, runtime_checkable
from uuid import UUID

from goqueue.counts import JobCount, Pruned
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
    Lease,
    NewJob,
    Page,
    Progress,
    QueueStats,
    TransactionStatus,
    WorkerStats,
)


@runtime_checkable
class AsyncJobListener(Protocol):
    """A listener that wakes an idle worker, returned by `AsyncStorage.listen`. Use it in a ``with`` statement."""

    #: The leases of running jobs that were cancelled or deleted, as reported by the last `wait`.
    cancelled: frozenset[Lease]

    async def wait(self, timeout: timedelta) -> frozenset[str]:
        """Wait until jobs of the queues become ready, and return their queues. Return an empty set after ``timeout``,
        or when a running job was cancelled (see ``cancelled``).

        The result is a hint: it can be late, repeated or missing. Poll as well.
        """

    async def close(self) -> None:
        """Stop listening. A second call does nothing."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class AsyncStorage(Protocol):
    """The contract of a storage backend.

    Every method can raise these errors. `InvalidJobError` or a subclass: an argument is invalid, and nothing was
    changed. `StorageUnavailableError`: the storage could not be reached in time, and nothing was changed.
    `OutcomeUnknownError`, its subclass: the change may have been made. Another `StorageError`: the storage rejected the
    call.

    "Repeating" describes a second call with the same arguments, after the first was committed. A job id is a UUID or
    its text. Changes of many jobs are committed in batches. After each, ``progress`` is called with the number so far.
    """

    async def create_job(self, job: NewJob) -> Job:
        """Add a job and return it. Creating the same `NewJob` again, with the same job type, payload and keys, returns
        the job of the first call.

        Raises: `DuplicateJobError`, with the existing job's id, if the id or the idempotency key is taken, or an
        unfinished job has the unique key.
        Repeating: returns the job of the first call.
        """

    async def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """Return the job with the id or the idempotency key of ``job``, or the unfinished job with its unique key,
        creating it if there is none. Also return whether this call created it.

        Repeating: returns the same job; created is then False.
        """

    async def create_jobs(self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Add many jobs: all, or none if one fails. Return (id, created) of each, in the given order.

        A job is not created if a stored job or an earlier one of ``jobs`` has its idempotency key, or if an unfinished
        job or an earlier one has its unique key. The returned id is then the id of that other job.

        Repeating: adds no `NewJob` twice; existing jobs are not created.
        """

    def create_jobs_in_batches(
        self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]
    ) -> AsyncIterator[list[tuple[UUID, bool]]]:
        """Add the jobs of an iterable of any length, in constant memory. Yield lists of (id, created), batch by batch.

        Each step reads, adds and commits one batch. Committed batches remain even if a later one fails.

        Repeating: adds no `NewJob` twice; existing jobs are not created.
        """

    async def get_job(self, job_id: JobId, *, fresh: bool = True) -> Job:
        """Return the job with this id. If ``fresh`` is False, the state can be older, from a replica.

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Repeating: changes nothing.
        """

    async def get_jobs(self, job_ids: Iterable[JobId], *, fresh: bool = True) -> list[Job]:
        """Return the jobs with these ids, in the given order. Missing jobs are omitted. ``fresh``: see `get_job`.

        Raises: `CorruptJobError` if one of them can't be read.
        Repeating: changes nothing.
        """

    async def get_job_by_idempotency_key(self, idempotency_key: str, *, fresh: bool = True) -> Job:
        """Return the job with this idempotency key. ``fresh``: see `get_job`.

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Repeating: changes nothing.
        """

    async def list_jobs(
        self,
        job_filter: JobFilter | None = None,
        limit: int = 50,
        cursor: str | None = None,
        *,
        fresh: bool = False,
    ) -> Page:
        """Return a page of ``limit`` (1 to 1000) jobs, newest first. Only the last page can be shorter.

        ``cursor`` is the ``next_cursor`` of the previous page, with the same filter. If ``fresh`` is False, the page
        can be older, from a replica.

        Raises: `InvalidCursorError` for a cursor of another filter.
        Repeating: changes nothing.
        """

    async def count_jobs(self, job_filter: JobFilter | None = None, *, fresh: bool = False) -> JobCount:
        """Count the jobs that match. The count is exact up to 10,000 jobs. Beyond that it is an estimate, and its
        ``exact`` is False. ``fresh``: see `list_jobs`.

        Repeating: changes nothing.
        """

    async def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Change the given fields of a job and return the changed job.

        Raises: `JobNotFoundError` if there is no such job; `JobStateError` if its status does not allow the new one;
        `DuplicateJobError` if another job has the idempotency key, or if the job is pending or running after the change
        and another such job has its unique key; `TransactionConflictError` if another session changed the job at the
        same time; `CorruptJobError`, after the change, if the payload can't be read.
        Repeating: sets the same values again, and overwrites later changes by others.
        """

    async def replace_pending_job(self, job: NewJob) -> Job:
        """Add a job, or replace the pending job that has its idempotency key. The replaced job keeps its id and gets
        the new unique key, or none.

        Raises: `DuplicateJobError` if the key's job is no longer pending, another unfinished job has the unique key, or
        another job has the id; `InvalidJobError` for a job without an idempotency key.
        Repeating: replaces the job again, and overwrites later changes by others.
        """

    async def cancel_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Cancel pending and running jobs, given by ids or by filter. Return how many. Jobs in other states are
        unchanged.

        With a filter, a job that no longer matches when it is changed is left alone. So it is in the methods below.

        Repeating: does not count cancelled jobs; cancels jobs that were retried in the meantime.
        """

    async def retry_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Make dead and cancelled jobs pending again, due at once, with all their attempts. Return how many.

        A job stays as it is if an unfinished job has its unique key. Of several jobs with the same unique key, one is
        retried.

        Raises: `DuplicateJobError` if another session adds a job with one of the unique keys at the same time.
        Repeating: leaves pending jobs unchanged; retries jobs that ended in the meantime.
        """

    async def reschedule_jobs(
        self,
        jobs: Jobs,
        *,
        scheduled_at: datetime | None = None,
        delay: timedelta | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set a new time for pending jobs: ``scheduled_at`` (aware), or ``delay`` from now. Return how many.

        Repeating: sets the same ``scheduled_at`` again, or a new time from ``delay``; overwrites later changes by
        others.
        """

    async def change_jobs(
        self,
        jobs: Jobs,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Change the given columns of jobs that are not completed. Return how many.

        With ``max_attempts``, jobs that have had more attempts are skipped, and pending jobs that would have none left.

        Repeating: sets the same values again, and overwrites later changes by others.
        """

    async def delete_job(self, job_id: JobId) -> None:
        """Delete a job in any status, with its failure history.

        Raises: `JobNotFoundError` if there is none; `JobStateError` if something outside the storage refers to it.
        Repeating: raises `JobNotFoundError`.
        """

    async def delete_jobs(self, jobs: Jobs, *, progress: Progress | None = None) -> int:
        """Delete jobs in any status, with their failure histories. Return how many. Missing jobs are not counted.

        Raises: `JobStateError` if something outside the storage refers to one of them. Earlier batches stay deleted.
        Repeating: deletes no more, except new jobs that a filter matches.
        """

    async def prune_jobs(
        self,
        older_than: timedelta,
        statuses: Collection[JobStatus] = ...,
        limit: int = 1000,
        queues: str | Collection[str] | None = None,
        job_types: str | Collection[str] | None = None,
    ) -> Pruned:
        """Delete one batch of at most ``limit`` jobs that finished more than ``older_than`` ago, of all queues and
        job types or of the given ones (one or several). Return how many.

        Jobs that something outside the storage refers to are skipped; the result's ``kept`` names them.

        Repeating: deletes the next batch.
        """

    async def claim_jobs(
        self, queues: str | Collection[str], worker_id: str, limit: int = 1, lease: timedelta = ...
    ) -> list[Job]:
        """Claim at most ``limit`` due jobs of the queues. ``worker_id`` holds each job exclusively for ``lease``.

        Jobs are ordered by priority. Among queues of one priority, the queue that has waited longest comes first;
        within it, jobs are ordered by scheduled_at and id. An empty list means that no job is due, or that the
        call found only unreadable jobs for a second.

        Repeating: claims other jobs; jobs of a lost reply stay leased until their leases expire.
        """

    async def complete_and_claim(
        self,
        leases: Iterable[Held],
        queues: str | Collection[str],
        worker_id: str,
        limit: int = 1,
        lease: timedelta = ...,
    ) -> list[Job]:
        """Run `complete_jobs` and `claim_jobs` with one commit.

        Raises: `LeaseLostError` with the jobs whose leases were lost. The others are completed, and no job is claimed.
        Repeating: completes nothing twice and claims other jobs; jobs of a lost reply stay leased until their leases
        expire.
        """

    async def heartbeat_jobs(self, leases: Iterable[Held], lease: timedelta = ...) -> None:
        """Renew the leases of running jobs for ``lease`` from now.

        Raises: `LeaseLostError` with the lost jobs; the others are renewed.
        Repeating: renews the leases again.
        """

    async def complete_jobs(self, leases: Iterable[Held]) -> None:
        """Complete jobs.

        Raises: `LeaseLostError` with the lost jobs; the others are completed.
        Repeating: succeeds under the same leases while the jobs are stored, and changes nothing.
        """

    async def complete_job(self, lease: Held) -> None:
        """Complete one job, as `complete_jobs` does.

        Raises: `LeaseLostError` if the lease was lost.
        Repeating: succeeds under the same lease while the job is stored, and changes nothing.
        """

    async def fail_jobs(
        self, failures: Iterable[tuple[Held, str]], *, retry_in: timedelta | None = None, backoff: Backoff = ...
    ) -> dict[UUID, JobStatus]:
        """Fail running attempts, given as pairs (lease, error). Return the new status by id.

        A job with attempts left becomes pending again, due after ``retry_in`` or else ``backoff``. Otherwise it is
        dead.

        Raises: `LeaseLostError` with the lost jobs; the others fail.
        Repeating: raises `LeaseLostError` for jobs that failed under these leases; no attempt fails twice.
        """

    async def fail_job(
        self, lease: Held, error: str, *, retry_in: timedelta | None = None, backoff: Backoff = ...
    ) -> JobStatus:
        """Fail one attempt, as `fail_jobs` does. Return the new status: pending or dead.

        Raises: `LeaseLostError` if the lease was lost.
        Repeating: raises `LeaseLostError` if the job failed under this lease; no attempt fails twice.
        """

    async def bury_jobs(self, failures: Iterable[tuple[Held, str]]) -> None:
        """Fail running attempts, given as pairs (lease, error), and make the jobs dead at once, even with attempts
        left.

        Raises: `LeaseLostError` with the lost jobs; the others are dead.
        Repeating: raises `LeaseLostError` for jobs that died under these leases; no attempt fails twice.
        """

    async def release_jobs(self, leases: Iterable[Held], *, delay: timedelta = ...) -> None:
        """Return running jobs to pending without counting the attempt, for example at shutdown.

        They are due after ``delay``. Without a delay they keep their time, and so their place in the queue.

        Raises: `LeaseLostError` with the lost jobs; the others are released.
        Repeating: raises `LeaseLostError` for the released jobs; no attempt is restored twice.
        """

    async def rescue_jobs(self, limit: int = 1000) -> dict[UUID, JobStatus]:
        """Recover jobs whose lease has expired: they become pending and due at once, or dead if no attempt is left.
        Return the new status by id.

        Repeating: rescues the next jobs.
        """

    async def next_job_at(self, queues: str | Collection[str]) -> datetime | None:
        """Return when the next job of the queues can be claimed, or None if there is none.

        A time in the past means that a job is due now. Jobs of a paused queue wait for the end of the pause; if it has
        no end, they are ignored.

        Repeating: changes nothing.
        """

    def listen(self, queues: str | Collection[str]) -> AsyncJobListener:
        """Return a listener that wakes an idle worker when jobs of the queues become ready. Open it in a ``with``."""

    async def list_failures(self, job_id: JobId, *, fresh: bool = True) -> list[Failure]:
        """Return the failed attempts of one job, oldest first. ``fresh``: see `get_job`.

        Repeating: changes nothing.
        """

    async def pause_queue(self, queue: str, *, until: datetime | None = None) -> None:
        """Pause a queue until ``until`` (aware), or until `resume_queue`. A second call replaces the time.

        Claims skip the queue. Running jobs continue, and jobs can be added. A claim that began before the pause can
        still return jobs. A time that has passed pauses nothing, and ends a current pause.

        Repeating: sets the same time again.
        """

    async def resume_queue(self, queue: str) -> bool:
        """End the pause of a queue, and wake its listeners. Return whether it was paused.

        Repeating: returns False.
        """

    async def queue_stats(self, *, fresh: bool = False) -> list[QueueStats]:
        """Return each queue's jobs by status, age of the oldest due job, expired leases and pause, ordered by queue.

        ``fresh``: see `list_jobs`.

        Repeating: changes nothing.
        """

    async def list_workers(self, *, fresh: bool = False) -> list[WorkerStats]:
        """Return the workers that hold running jobs, ordered by worker_id. Idle workers are not listed.

        ``fresh``: see `list_jobs`.

        Repeating: changes nothing.
        """

    async def list_job_types(self, *, fresh: bool = False) -> list[str]:
        """Return the types of the stored jobs, in order. Types that only pending jobs have can be missing if there are
        more than 10,000 pending jobs.

        ``fresh``: see `list_jobs`.

        Repeating: changes nothing.
        """

    async def get_transaction_status(self, transaction_id: str) -> TransactionStatus:
        """Return the outcome of the transaction that an `OutcomeUnknownError` names.

        Repeating: changes nothing.
        """

    async def ping(self) -> None:
        """Check that the storage responds and is usable.

        Repeating: changes nothing.
        """

    async def close(self) -> None:
        """Release the store's resources. A second call does nothing."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
