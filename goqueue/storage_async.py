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
    QueueStats,
    TransactionStatus,
)


@runtime_checkable
class AsyncJobListener(Protocol):
    """An early wake-up for an idle worker, as `AsyncStorage.listen` returns it. Use it in a ``with``."""

    #: The leases of running jobs of the queues that were cancelled or deleted, as reported by the last `wait`.
    cancelled: frozenset[Lease]

    async def wait(self, timeout: timedelta) -> frozenset[str]:
        """Return the queues in which jobs became ready, as soon as there are some. Return none after ``timeout``, or
        when a running job was cancelled (``cancelled``).

        It is a hint, and can be late, repeated or missing: poll as well.
        """

    async def close(self) -> None:
        """Stop listening. A second call does nothing."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class AsyncStorage(Protocol):
    """The contract of a storage backend.

    Every method raises these errors: `InvalidJobError` (or a subclass) for an invalid argument, before anything is
    changed; `StorageUnavailableError` if the storage can't be reached in time, and nothing was changed;
    `OutcomeUnknownError`, a kind of it, if a change was perhaps made; another `StorageError` if the storage refuses.

    "Repeating" is the effect of a second call with the same arguments, after a first one that was committed. An id is a
    UUID or its text.
    """

    async def create_job(self, job: NewJob) -> Job:
        """Add a job, and return it. Creating the very same `NewJob` again returns the job of the first call.

        Raises: `DuplicateJobError`, with the existing job's id, if the idempotency key or the id is taken.
        Repeating: returns the job of the first call.
        """

    async def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """Return the job that has the idempotency key or the id of ``job``, and whether this call created it.

        Repeating: returns the same job; created is then False.
        """

    async def create_jobs(self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Add many jobs: all of them, or none after an error. Return (id, created) of each, in the order given.

        A job is not created if a stored job or an earlier one of ``jobs`` has its idempotency key; the id is then that
        job's.

        Repeating: adds no `NewJob` twice; jobs that exist are not created.
        """

    def create_jobs_in_batches(
        self, jobs: Iterable[NewJob] | AsyncIterable[NewJob]
    ) -> AsyncIterator[list[tuple[UUID, bool]]]:
        """Add the jobs of an iterable of any length, in constant memory. Yield (id, created) of each job, batch by
        batch.

        Each step reads, adds and commits one batch. Batches that were yielded stay, also if a later one fails.

        Repeating: adds no `NewJob` twice; jobs that exist are not created.
        """

    async def get_job(self, job_id: JobId) -> Job:
        """Return the job with this id.

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Repeating: changes nothing.
        """

    async def get_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        """Return the jobs with these ids, in their order. Missing jobs are left out.

        Raises: `CorruptJobError` if one of them can't be read.
        Repeating: changes nothing.
        """

    async def get_job_by_idempotency_key(self, idempotency_key: str) -> Job:
        """Return the job with this idempotency key.

        Raises: `JobNotFoundError` if there is none; `CorruptJobError` if it can't be read.
        Repeating: changes nothing.
        """

    async def list_jobs(self, job_filter: JobFilter | None = None, limit: int = 50, cursor: str | None = None) -> Page:
        """Return a page of ``limit`` (1 to 1000) jobs, newest first. Only the last page can be shorter.

        ``cursor`` is the ``next_cursor`` of the page before, with the same filter.

        Raises: `InvalidCursorError` for a cursor of another filter.
        Repeating: changes nothing.
        """

    async def count_jobs(self, job_filter: JobFilter | None = None) -> JobCount:
        """Count the jobs that match. The count is exact up to 10,000 jobs; beyond, it is an estimate, and ``exact`` is
        False.

        Repeating: changes nothing.
        """

    async def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Change the given fields of a job, and return the changed job.

        Raises: `JobNotFoundError` if there is no such job; `JobStateError` if its status does not allow the new one;
        `DuplicateJobError` if another job has the idempotency key; `TransactionConflictError` if another session
        changed the job at the same time; `CorruptJobError`, after the change, if the payload can't be read.
        Repeating: sets the same values again, over later changes of others.
        """

    async def replace_pending_job(self, job: NewJob) -> Job:
        """Add a job, or replace the pending job that has its idempotency key. The replaced job keeps its id.

        Raises: `DuplicateJobError` if the key's job is no longer pending, or another job has the id; `InvalidJobError`
        for a job without a key.
        Repeating: replaces the job again, over later changes of others.
        """

    async def cancel_jobs(self, jobs: Jobs) -> int:
        """Cancel pending and running jobs, given by ids or by filter, and return how many. Others stay as they are.

        Repeating: does not count cancelled jobs; it cancels those that others retried meanwhile.
        """

    async def retry_jobs(self, jobs: Jobs) -> int:
        """Make dead and cancelled jobs pending again, due at once and with all their attempts, and return how many.

        Repeating: leaves pending jobs as they are; it retries those that ended meanwhile.
        """

    async def reschedule_jobs(
        self, jobs: Jobs, *, scheduled_at: datetime | None = None, delay: timedelta | None = None
    ) -> int:
        """Set another time for pending jobs, and return how many: ``scheduled_at`` (aware), or ``delay`` from now.

        Repeating: sets the same ``scheduled_at`` again, or a new one after ``delay``, over later changes of others.
        """

    async def delete_job(self, job_id: JobId) -> None:
        """Delete a job, whatever its status, and the history of its failures.

        Raises: `JobNotFoundError` if there is none; `JobStateError` if something outside the storage refers to it.
        Repeating: raises `JobNotFoundError`.
        """

    async def prune_jobs(
        self, older_than: timedelta, statuses: Collection[JobStatus] = ..., limit: int = 1000
    ) -> Pruned:
        """Delete one batch of at most ``limit`` jobs that finished longer than ``older_than`` ago. Return how many.

        Jobs that something outside the storage refers to are skipped; ``kept`` of the result names them.

        Repeating: deletes the next batch.
        """

    async def claim_jobs(
        self, queues: str | Collection[str], worker_id: str, limit: int = 1, lease: timedelta = ...
    ) -> list[Job]:
        """Claim at most ``limit`` due jobs of the queues. ``worker_id`` holds each for ``lease``; no other worker holds
        it then.

        The order is by priority; among queues of one priority, the queue that has waited longest first; then by
        scheduled_at and id. An empty list means that no job is due, or that a second went to unreadable jobs.

        Repeating: claims other jobs; those of a lost reply stay held until their leases expire.
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

        Raises: `LeaseLostError` names the jobs whose lease was lost; the others are completed, and none is claimed.
        Repeating: completes nothing twice and claims other jobs; those of a lost reply stay held until their leases
        expire.
        """

    async def heartbeat_jobs(self, leases: Iterable[Held], lease: timedelta = ...) -> None:
        """Renew the leases of running jobs, for ``lease`` from now.

        Raises: `LeaseLostError` names the jobs lost; the others are renewed.
        Repeating: renews the leases again.
        """

    async def complete_jobs(self, leases: Iterable[Held]) -> None:
        """Complete jobs.

        Raises: `LeaseLostError` names the jobs lost; the others are completed.
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
        """End attempts with an error: (lease, error) of each. Return the new status by id.

        A job waits for its next attempt, for ``retry_in`` or else by ``backoff``. Without an attempt left it is dead.

        Raises: `LeaseLostError` names the jobs lost; the others fail.
        Repeating: raises `LeaseLostError` for the jobs that failed under these leases; no attempt fails twice.
        """

    async def fail_job(
        self, lease: Held, error: str, *, retry_in: timedelta | None = None, backoff: Backoff = ...
    ) -> JobStatus:
        """End one attempt, as `fail_jobs` does. Return the new status: pending or dead.

        Raises: `LeaseLostError` if the lease was lost.
        Repeating: raises `LeaseLostError` if the job failed under this lease; no attempt fails twice.
        """

    async def bury_jobs(self, failures: Iterable[tuple[Held, str]]) -> None:
        """End attempts with an error, and make the jobs dead at once, whatever attempts they have left: (lease, error)
        of each.

        Raises: `LeaseLostError` names the jobs lost; the others are dead.
        Repeating: raises `LeaseLostError` for the jobs that died under these leases; no attempt fails twice.
        """

    async def release_jobs(self, leases: Iterable[Held], *, delay: timedelta = ...) -> None:
        """Return running jobs to pending without counting the attempt, as at a shutdown.

        They are due after ``delay``. Without one they keep their time, and so their place in the queue.

        Raises: `LeaseLostError` names the jobs lost; the others are released.
        Repeating: raises `LeaseLostError` for the released jobs; no attempt is given back twice.
        """

    async def rescue_jobs(self, limit: int = 1000) -> dict[UUID, JobStatus]:
        """Make jobs whose lease has expired pending again, due at once, or dead without an attempt left. Return the
        status by id.

        Repeating: rescues the next ones.
        """

    async def next_job_at(self, queues: str | Collection[str]) -> datetime | None:
        """Return when the next job of the queues is due; None if no job is pending. A time in the past means that one
        is due.

        Repeating: changes nothing.
        """

    def listen(self, queues: str | Collection[str]) -> AsyncJobListener:
        """Return a listener, which wakes an idle worker when jobs of the queues become ready. Open it in a ``with``."""

    async def list_failures(self, job_id: JobId) -> list[Failure]:
        """Return the failed attempts of one job, the first one first.

        Repeating: changes nothing.
        """

    async def queue_stats(self) -> list[QueueStats]:
        """Return each queue's jobs by status, the age of its oldest due job, and its expired leases; ordered by queue.

        Repeating: changes nothing.
        """

    async def get_transaction_status(self, transaction_id: str) -> TransactionStatus:
        """Return the outcome of the transaction that an `OutcomeUnknownError` names.

        Repeating: changes nothing.
        """

    async def ping(self) -> None:
        """Return if the storage answers and can be used.

        Repeating: changes nothing.
        """

    async def close(self) -> None:
        """Release what the store holds open. A second call does nothing."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
