"""The contract that every storage backend fulfils; tests/test_contract.py checks it. Imports goqueue.models alone."""

from collections.abc import Iterable, Iterator
from typing import Protocol, Self, runtime_checkable
from uuid import UUID

from goqueue.models import Job, JobCount, JobFilter, JobUpdate, NewJob, Page

JobId = UUID | str


@runtime_checkable
class Storage(Protocol):
    """Where jobs are kept.

    Every method raises `InvalidJobError` (or a subclass) for an argument that can't be used, before anything is
    changed; `StorageUnavailableError` when the storage can't be reached in time; other `StorageError`s when it refuses.
    An id may be a UUID or its text.
    """

    def create_job(self, job: NewJob) -> Job:
        """Adds a job. `DuplicateJobError` (with the existing job's id) when its idempotency key or its id is taken.

        Creating the very same `NewJob` again is no error: it gives the job that the first call made.
        """

    def get_or_create_job(self, job: NewJob) -> tuple[Job, bool]:
        """The job with the idempotency key (or the id) of ``job``, and whether this call created it."""

    def create_jobs(self, jobs: Iterable[NewJob]) -> list[tuple[UUID, bool]]:
        """Adds many jobs, all of them or on an error none. In the order given: (id, created).

        A job whose idempotency key is taken, by a stored job or by an earlier one of ``jobs``, is not created; the id
        is that of the job which has the key.
        """

    def create_jobs_in_batches(self, jobs: Iterable[NewJob]) -> Iterator[list[tuple[UUID, bool]]]:
        """`create_jobs` for an iterable of any length, in constant memory: one batch is read, added and committed each
        time the next result is asked for. What was given out stays, also when a later batch fails."""

    def get_job(self, job_id: JobId) -> Job:
        """The job with this id; `JobNotFoundError` when there is none."""

    def get_jobs(self, job_ids: Iterable[JobId]) -> list[Job]:
        """The jobs with these ids, in their order; those that do not exist are left out."""

    def get_job_by_idempotency_key(self, idempotency_key: str) -> Job:
        """The job with this idempotency key; `JobNotFoundError` when there is none."""

    def list_jobs(self, job_filter: JobFilter | None = None, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of at most ``limit`` (1 to 1000) jobs, newest first, going on from the ``next_cursor`` of a page of
        the same filter. A page can be short and not be the last: only ``next_cursor`` None says so."""

    def count_jobs(self, job_filter: JobFilter | None = None) -> JobCount:
        """How many jobs match: exact as far as 10,000 rows have to be looked at, beyond that an estimate that says
        so."""

    def update_job(self, job_id: JobId, update: JobUpdate) -> Job:
        """Changes the given fields, and returns the job as it is then.

        `JobNotFoundError`; `JobStateError` for a status that doesn't follow from the present one; `DuplicateJobError`
        for an idempotency key that another job has.
        """

    def delete_job(self, job_id: JobId) -> None:
        """Deletes the job for good, whatever its status; `JobNotFoundError` when there is none."""

    def ping(self) -> None:
        """Returns when the storage answers and can be used."""

    def close(self) -> None:
        """Gives up what the store holds open. Calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


__all__ = ["JobId", "Storage"]
