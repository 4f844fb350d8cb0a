# Made by `make catalogue` from goqueue/aio/storage.py; change that.
"""The contract that every storage backend fulfils; tests/test_contract.py checks it. Imports goqueue.models alone."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Protocol, Self, runtime_checkable
from uuid import UUID

from goqueue.models import (
    Backoff,
    Failure,
    Held,
    Job,
    JobCount,
    JobFilter,
    JobId,
    Jobs,
    JobStatus,
    JobUpdate,
    Lease,
    NewJob,
    Page,
    Pruned,
    QueueStats,
    TransactionStatus,
)


@runtime_checkable
class JobListener(Protocol):
    """Wakes an idle worker early. What `Storage.listen` returns; use it in a ``with``."""

    #: The leases of running jobs of the queues that were cancelled or deleted, as far as the last `wait` was told.
    cancelled: frozenset[Lease]

    def wait(self, timeout: timedelta) -> frozenset[str]:
        """The queues in which jobs became ready, as soon as there are some; none when ``timeout`` has passed, or
        when a running job was cancelled (``cancelled``).

        It is a hint, and can be late, doubled or missing: poll as if there were none.
        """

    def close(self) -> None:
        """Stops listening. Calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class Storage(Protocol):
    """Where jobs are kept.

    Every method raises `InvalidJobError` (or a subclass) for an argument that can't be used, before anything is
    changed; `StorageUnavailableError` when the storage can't be reached in time, and nothing was changed;
    `OutcomeUnknownError`, a kind of it, when something may have been; other `StorageError`s when it refuses.
    "Repeating:" says what a second call with the same arguments does after a first one that was committed.
    An id may be a UUID or its text.
    """

    def create_job(self, job: NewJob) -> Job:
        """Adds a job. `DuplicateJobError` (with the existing job's id) when its idempotency key or its id is taken.

        Creating the very same `NewJob` again is no error: it gives the job that the first call made.

        Repeating: gives the job that the first call made.
        """

    def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """The job with the idempotency key (or the id) of ``job``, and whether this call created it.

        Repeating: gives the same job; whether it was created is then False.
        """

    def create_jobs(self, jobs: Iterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Adds many jobs, all of them or on an error none. In the order given: (id, created).

        A job whose idempotency key is taken, by a stored job or by an earlier one of ``jobs``, is not created; the id
        is that of the job which has the key.

        Repeating: with the same `NewJob` objects adds none twice; those that are there are not created.
        """

    def create_jobs_in_batches(self, jobs: Iterable[NewJob]) -> Iterator[list[tuple[UUID, bool]]]:
        """`create_jobs` for an iterable of any length, in constant memory: one batch is read, added and committed each
        time the next result is asked for. What was given out stays, also when a later batch fails.

        Repeating: with the same `NewJob` objects adds none twice; those that are there are not created.
        """

    def get_job(self, job_id: JobId) -> Job:
        """The job with this id; `JobNotFoundError` when there is none.

        Repeating: changes nothing.
        """

    def get_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        """The jobs with these ids, in their order; those that do not exist are left out.

        Repeating: changes nothing.
        """

    def get_job_by_idempotency_key(self, idempotency_key: str) -> Job:
        """The job with this idempotency key; `JobNotFoundError` when there is none.

        Repeating: changes nothing.
        """

    def list_jobs(self, job_filter: JobFilter | None = None, limit: int = 50, cursor: str | None = None) -> Page:
        """Return a page of ``limit`` (1 to 1000) jobs, newest first; the last page can be shorter.

        ``cursor`` is the ``next_cursor`` of a page of the same filter.

        Repeating: changes nothing.
        """

    def count_jobs(self, job_filter: JobFilter | None = None) -> JobCount:
        """How many jobs match: exact as far as 10,000 rows have to be looked at, beyond that an estimate that says
        so.

        Repeating: changes nothing.
        """

    def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Changes the given fields, and returns the job as it is then.

        `JobNotFoundError`; `JobStateError` for a status that doesn't follow from the present one; `DuplicateJobError`
        for an idempotency key that another job has.

        Repeating: sets the same values again, over what others have set in between.
        """

    def replace_pending_job(self, job: NewJob) -> Job:
        """Adds a job, or puts it in the place of the pending one that has its idempotency key (and keeps its id).

        `DuplicateJobError` when the key's job is not pending any more; `InvalidJobError` for a job without a key.

        Repeating: replaces the job again, over what others have put there in between.
        """

    def cancel_jobs(self, jobs: Jobs) -> int:
        """Withdraws waiting and running jobs, by ids or by filter; how many. Others are left as they are.

        Repeating: leaves cancelled jobs as they are and does not count them; it cancels what others retried in between.
        """

    def retry_jobs(self, jobs: Jobs) -> int:
        """Makes dead and cancelled jobs pending again, due at once and with all their attempts; how many.

        Repeating: leaves jobs that wait as they are; it retries again those that ended in between, with all their
        attempts.
        """

    def reschedule_jobs(
        self, jobs: Jobs, *, scheduled_at: datetime | None = None, delay: timedelta | None = None
    ) -> int:
        """Gives waiting jobs another time: ``scheduled_at`` (aware), or ``delay`` from now; how many.

        Repeating: sets the same ``scheduled_at`` again; a ``delay`` counts anew, and both undo what others set in
        between.
        """

    def delete_job(self, job_id: JobId) -> None:
        """Deletes the job for good, whatever its status; `JobNotFoundError` when there is none, `JobStateError` when
        something outside the storage refers to it.

        Repeating: `JobNotFoundError`.
        """

    def prune_jobs(self, older_than: timedelta, statuses: Collection[JobStatus] = ..., limit: int = 1000) -> Pruned:
        """Delete one batch of at most ``limit`` jobs finished longer than ``older_than`` ago; how many. Jobs that
        something outside the storage refers to are passed over; ``kept`` of the result names them.

        Repeating: deletes the next batch.
        """

    def claim_jobs(
        self, queues: str | Collection[str], worker_id: str, limit: int = 1, lease: timedelta = ...
    ) -> list[Job]:
        """Takes at most ``limit`` due jobs of the queues, by priority, then scheduled_at, then id; each is held by
        ``worker_id`` for ``lease``. A job is held by one worker at a time. An empty list means that none is due, or
        that a second was spent on setting aside jobs that can't be read.

        Repeating: takes other jobs; those of a lost reply are held until their leases expire.
        """

    def complete_and_claim(
        self,
        leases: Iterable[Held],
        queues: str | Collection[str],
        worker_id: str,
        limit: int = 1,
        lease: timedelta = ...,
    ) -> list[Job]:
        """`complete_jobs` and `claim_jobs` with one commit. When a lease was lost, none is claimed.

        Repeating: completes nothing twice and claims other jobs; those of a lost reply are held until their leases
        expire.
        """

    def heartbeat_jobs(self, leases: Iterable[Held], lease: timedelta = ...) -> None:
        """Holds on to running jobs for ``lease`` from now. `LeaseLostError` names those lost.

        Repeating: renews the leases again.
        """

    def complete_jobs(self, leases: Iterable[Held]) -> None:
        """The jobs are done. `LeaseLostError` names those lost; the others are completed.

        Repeating: succeeds under the same leases, while the jobs are stored, and changes nothing.
        """

    def complete_job(self, lease: Held) -> None:
        """`complete_jobs` for one.

        Repeating: succeeds under the same lease, while the job is stored, and changes nothing.
        """

    def fail_jobs(
        self, failures: Iterable[tuple[Held, str]], *, retry_in: timedelta | None = None, backoff: Backoff = ...
    ) -> dict[UUID, JobStatus]:
        """Attempts have failed: (lease, error) each. A job waits for its next attempt, or is dead without one left.

        The status by id. `LeaseLostError` names the jobs lost; the others are failed.

        Repeating: `LeaseLostError` for the jobs that have failed under these leases; no attempt fails twice.
        """

    def fail_job(
        self, lease: Held, error: str, *, retry_in: timedelta | None = None, backoff: Backoff = ...
    ) -> JobStatus:
        """`fail_jobs` for one; pending or dead.

        Repeating: `LeaseLostError` when it has failed under this lease; no attempt fails twice.
        """

    def release_jobs(self, leases: Iterable[Held]) -> None:
        """Gives jobs back untried: they wait as before, and the attempt doesn't count.

        Repeating: `LeaseLostError` for the jobs that are released; no attempt is given back twice.
        """

    def rescue_jobs(self, limit: int = 1000) -> dict[UUID, JobStatus]:
        """Jobs whose lease has expired wait again, due at once, or are dead. The status by id.

        Repeating: rescues the next ones.
        """

    def next_job_at(self, queues: str | Collection[str]) -> datetime | None:
        """When the next job of the queues is due (past, if one is due already); None when no job waits.

        Repeating: changes nothing.
        """

    def listen(self, queues: str | Collection[str]) -> JobListener:
        """What wakes an idle worker when jobs of the queues become ready; open it with ``with``."""

    def list_failures(self, job_id: JobId) -> list[Failure]:
        """The failed attempts of one job, the first one first.

        Repeating: changes nothing.
        """

    def queue_stats(self) -> list[QueueStats]:
        """Each queue's jobs by status, the age of its oldest due job, and its expired leases; by name.

        Repeating: changes nothing.
        """

    def get_transaction_status(self, transaction_id: str) -> TransactionStatus:
        """What became of the transaction that an `OutcomeUnknownError` names.

        Repeating: changes nothing.
        """

    def ping(self) -> None:
        """Returns when the storage answers and can be used.

        Repeating: changes nothing.
        """

    def close(self) -> None:
        """Gives up what the store holds open. Calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
