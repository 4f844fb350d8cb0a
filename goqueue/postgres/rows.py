"""Conversion of the queries' rows to Structs. No other module reads a row of the store's queries."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from goqueue.counts import JobCount
from goqueue.errors import CorruptJobError, GoQueueError, JobNotFoundError
from goqueue.models import Failure, Held, Job, JobStatus, JsonValue, Lease, NewJob, QueueStats, WorkerStats
from goqueue.postgres.wire import CreatedRow, JobRow, Row, StatsRow
from goqueue.safelog import log

_picks: dict[tuple[type, type], Callable[[Any], tuple[Any, ...]]] = {}


def in_field_order(kind: type[Struct], row: Row) -> tuple[Any, ...]:
    """Return the values of a row, a named tuple, for the fields of a Struct. They are found by name, in any order."""
    key = (kind, type(row))
    pick = _picks.get(key)
    if pick is None:
        pick = _picks[key] = itemgetter(*map(row._fields.index, kind.__struct_fields__))
    return pick(row)


_STATUSES: Final[Mapping[str, JobStatus]] = {str(status): status for status in JobStatus}
_decode = msgspec.json.Decoder().decode
_log = logging.getLogger("goqueue")


def read_jobs(rows: Iterable[JobRow]) -> tuple[list[Job], list[CorruptJobError]]:
    """Return the jobs in the rows, and the errors of those that can't be read."""
    jobs, corrupt = [], []
    for row in rows:
        try:
            jobs.append(job_of(row))
        except CorruptJobError as error:
            corrupt.append(error)
    return jobs, corrupt


def found(row: JobRow | None, message: str) -> Job:
    """Return the row's job; raise `JobNotFoundError` without a row."""
    if row is None:
        raise JobNotFoundError(message)
    return job_of(row)


class Claimed:
    """The rows of claim_jobs."""

    def __init__(self, rows: Sequence[JobRow]) -> None:
        self.count = len(rows)
        #: The jobs that can't be run, with the reason.
        self.unreadable: list[tuple[Held, object]] = []
        self.jobs, corrupt = read_jobs(rows)
        if corrupt:
            tokens = {row.id: row.lease_token for row in rows}
            for error in corrupt:
                log(_log, logging.ERROR, "%s; it becomes dead", error, job_id=error.job_id)
                self.unreadable.append((Lease(error.job_id, tokens[error.job_id]), error))

    def not_buried(self, error: GoQueueError) -> None:
        """Log that the unreadable jobs could not be made dead."""
        ids = ", ".join(str(lease.id) for lease, _ in self.unreadable)
        text = "jobs with unreadable payloads could not be made dead (%s); rescue_jobs finds them again: %s"
        log(_log, logging.WARNING, text, error, ids, jobs=len(self.unreadable))


def refused(rows: Iterable[tuple[UUID, str | None]]) -> dict[UUID, str]:
    """Return the reasons for the rows of prune_jobs that were not deleted, by id, and log them."""
    reasons = {job_id: reason for job_id, reason in rows if reason is not None}
    if reasons:
        job_id, reason = next(iter(reasons.items()))
        text = "%d finished jobs can't be deleted and are skipped; the first is %s: %s"
        log(_log, logging.WARNING, text, len(reasons), job_id, reason, jobs=len(reasons), job_id=job_id)
    return reasons


def log_too_many(kept: Collection[UUID]) -> None:
    """Log that prune_jobs stops, because it remembers no more jobs to skip."""
    text = "prune_jobs has found %d jobs that can't be deleted, and stops: first change the rows that refer to them"
    log(_log, logging.WARNING, text, len(kept), jobs=len(kept))


def rescued(rows: Iterable[tuple[UUID, str]]) -> dict[UUID, JobStatus]:
    """Return the status by id from the rows of rescue_jobs. Log each job: its worker died or hung."""
    statuses = {job_id: JobStatus(status) for job_id, status in rows}
    for job_id, status in statuses.items():
        text = "job %s: its lease has expired; it is %s now"
        log(_log, logging.WARNING, text, job_id, status, job_id=job_id, status=status)
    return statuses


def stats_of(row: StatsRow) -> QueueStats:
    """Return a row of queue_stats as a Struct."""
    counts = {status: JobCount(getattr(row, status), exact=status in row.exact_statuses) for status in JobStatus}
    return QueueStats(row.queue, counts, row.oldest_ready_age, row.expired_leases, row.paused_until)


def worker_of(row: Row) -> WorkerStats:
    """Return a row of list_workers as a Struct."""
    return WorkerStats(*in_field_order(WorkerStats, row))


def job_of(row: JobRow) -> Job:
    """Return the job of a row with a job's columns, in any order, its payload as JSON text.

    Raise `CorruptJobError` if the payload can't be read, or if a later release added the status.
    """
    values = in_field_order(Job, row)
    if (status := _STATUSES.get(values[4])) is None:
        raise CorruptJobError(
            f"job {row.id}: its status {row.status!r} is not known to this version of goqueue, only "
            f"{', '.join(JobStatus)}; install the version that added it",
            job_id=row.id,
        )
    return Job(values[0], values[1], values[2], _payload(row.id, values[3]), status, *values[5:])


def created_job(new: NewJob, row: CreatedRow) -> Job:
    """Return the job that create_job created from ``new``, from its row. Raises `CorruptJobError` as `job_of` does."""
    return Job(
        id=new.id,
        queue=new.queue,
        job_type=new.job_type,
        payload=_payload(new.id, row.payload),
        status=JobStatus.PENDING,
        priority=new.priority,
        attempts=0,
        max_attempts=new.max_attempts,
        last_error=None,
        idempotency_key=new.idempotency_key,
        unique_key=new.unique_key,
        locked_by=None,
        locked_at=None,
        lease_token=0,
        lease_expires_at=None,
        scheduled_at=row.scheduled_at,
        created_at=row.created_at,
        updated_at=row.created_at,
        started_at=None,
        completed_at=None,
    )


def _payload(job_id: UUID, text: str) -> JsonValue:
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise CorruptJobError(
            f"job {job_id}: its payload can't be read ({exc}); correct it in SQL or delete the job", job_id=job_id
        ) from exc


def failure_of(row: Row) -> Failure:
    """Return a row of list_failures as a Struct."""
    return Failure(*in_field_order(Failure, row))
