"""What the storage methods make of their arguments and of rows, whichever way they are run. Imports goqueue.config,
goqueue.errors, goqueue.models and goqueue.safelog."""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, Self
from uuid import UUID

from msgspec import UNSET

from goqueue.config import DatabaseConfig
from goqueue.errors import (
    CorruptJobError,
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    JobNotFoundError,
    LeaseLostError,
)
from goqueue.models import (
    MAX_PAGE,
    Held,
    Job,
    JobCount,
    JobFilter,
    JobId,
    JobStatus,
    JobUpdate,
    Lease,
    NewJob,
    QueueStats,
    as_job_id,
    as_status,
    check_integer,
    check_interval,
    check_kind,
    check_limit,
    check_name,
    check_payload,
    clean_text,
    encode_json,
    reads_back,
)
from goqueue.safelog import log

_log = logging.getLogger("goqueue")

# A statement's one JSON parameter is kept far below jsonb's limit of 256 MB, and the client's memory modest.
_MAX_BATCH_BYTES = 16 * 2**20

_NO_FILTER = JobFilter()
_MAX_TOKEN = 2**63 - 1

# --- new jobs -------------------------------------------------------------------------------------------------------


def job_values(job: NewJob, config: DatabaseConfig) -> dict[str, Any]:
    """The parameters of the queries that add one job."""
    check_kind("job", job, NewJob)
    return {
        "id": job.id,
        "queue": job.queue,
        "job_type": job.job_type,
        "payload": _payload(job, config).decode(),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "scheduled_at": job.scheduled_at,
        "delay": job.delay,
        "idempotency_key": job.idempotency_key,
    }


def _payload(job: NewJob | JobUpdate, config: DatabaseConfig) -> bytes:
    check_payload(job.payload)
    encoded = encode_json(job.payload)
    if len(encoded) > config.max_payload_bytes:
        raise InvalidJobError(
            f"the payload has {len(encoded):,} bytes as JSON; GOQUEUE_DATABASE_MAX_PAYLOAD_BYTES allows "
            f"{config.max_payload_bytes:,}: keep large data elsewhere and put a reference to it in the job"
        )
    return encoded


def encoded_update(update: JobUpdate, config: DatabaseConfig) -> bytes:
    """The fields that are given as JSON, a payload checked."""
    if update.payload is not UNSET:
        _payload(update, config)
    return encode_json(update)


class Batch:
    """Jobs for one create_jobs statement: at most ``batch_size`` and some 16 MiB, no two with one id."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._size = 0
        self._ids: set[int] = set()
        self.jobs: list[NewJob] = []
        self.encoded: list[bytes] = []

    def add(self, job: NewJob, encoded: bytes | None = None) -> bool:
        """Takes the job, or says False when that is for the next batch. `InvalidJobError` for what is no job.

        Without ``encoded`` the payload is left to `checked`. A statement's rows tell by their ids which jobs were
        added, so a job whose id is here already is for the next.
        """
        if encoded is None:
            encoded = _encoded(job, self._config)
        job_id = job.id.int  # A UUID takes as long to hash as all the rest.
        full = len(self.jobs) >= self._config.batch_size or self._size + len(encoded) > _MAX_BATCH_BYTES
        if (full or job_id in self._ids) and self.jobs:
            return False
        self.jobs.append(job)
        self.encoded.append(encoded)
        self._ids.add(job_id)
        self._size += len(encoded)
        return True

    def checked(self) -> Self:
        """The batch, once all its payloads are known to be JSON; else `InvalidJobError`."""
        payloads = [job.payload for job in self.jobs]
        if not reads_back(document(self.encoded), payloads):
            for payload in payloads:
                check_payload(payload)
        return self


def _encoded(job: NewJob, config: DatabaseConfig) -> bytes:
    """The job as JSON, its payload not checked beyond its size."""
    if not isinstance(job, NewJob):
        raise InvalidJobError(f"create_jobs takes NewJob objects, not {type(job).__name__}")
    try:
        encoded = encode_json(job)
    except InvalidJobError:
        check_payload(job.payload)  # names the place
        raise
    if len(encoded) > config.max_payload_bytes:
        _payload(job, config)
    return encoded


def by_key(batches: list[Batch], config: DatabaseConfig) -> tuple[list[int] | None, list[Batch]]:
    """The same jobs, ordered by idempotency key, and by id those without; and the place in which each was given (None:
    they were in order). One order everywhere: calls with jobs in common wait for each other, and never in a circle.
    """
    entries = [entry for batch in batches for entry in zip(batch.jobs, batch.encoded, strict=True)]
    order = sorted(range(len(entries)), key=lambda place: _lock_order(entries[place][0]))
    if order == list(range(len(entries))):
        return None, batches
    ordered = [Batch(config)]
    for job, encoded in (entries[place] for place in order):
        if not ordered[-1].add(job, encoded):
            ordered.append(Batch(config))
            ordered[-1].add(job, encoded)
    return order, ordered


def _lock_order(job: NewJob) -> tuple[str, int]:
    # Of jobs with one key the first given is to be added: they stay as they are. UUIDs compare at ten times the cost.
    return ("", job.id.int) if job.idempotency_key is None else (job.idempotency_key, 0)


def as_given(order: list[int] | None, results: list[tuple[UUID, bool]]) -> list[tuple[UUID, bool]]:
    """The results in the order in which the jobs were given."""
    return results if order is None else [result for _, result in sorted(zip(order, results, strict=True))]


def document(batch: Iterable[bytes]) -> bytes:
    """The one parameter of create_jobs, as JSON."""
    return b"[%b]" % b",".join(batch)


def is_same(existing: Job, job: NewJob) -> bool:
    """Whether the stored job is the one that ``job`` made: another job may have been given its id."""
    return (existing.id, existing.job_type, existing.idempotency_key) == (job.id, job.job_type, job.idempotency_key)


def not_replaced(existing: Job) -> DuplicateJobError:
    """The error for a job that can't be put in the place of another one."""
    return DuplicateJobError(
        f"job {existing.id} has the idempotency key {existing.idempotency_key!r} and is {existing.status}; only a "
        "pending job is replaced: wait for its end and delete it, or take another key",
        job_id=existing.id,
        idempotency_key=existing.idempotency_key,
    )


# --- filters and ids ------------------------------------------------------------------------------------------------


def filter_values(job_filter: JobFilter | None) -> dict[str, Any]:
    """The parameters of list_jobs and count_jobs but for the page."""
    if job_filter is None:
        return _NO_FILTER.parameters()
    check_kind("job_filter", job_filter, JobFilter)
    return job_filter.parameters()


def as_job_ids(jobs: JobId | Iterable[JobId]) -> list[UUID]:
    """One id or many, as UUIDs."""
    if isinstance(jobs, (UUID, str)):
        return [as_job_id(jobs)]
    check_kind("jobs", jobs, Iterable)
    return [as_job_id(job_id) for job_id in jobs]


def as_statuses(statuses: JobStatus | Iterable[JobStatus]) -> set[JobStatus]:
    """One status or several."""
    check_kind("statuses", statuses, str, Iterable)
    return {as_status(status) for status in ([statuses] if isinstance(statuses, str) else statuses)}


def in_batches(ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    """Ids without repetition, in one order everywhere, so that callers never wait for each other in a circle."""
    given = sorted(set(ids))
    for start in range(0, len(given), MAX_PAGE):
        yield given[start : start + MAX_PAGE]


def read_jobs(rows: Iterable[Any]) -> tuple[list[Job], list[CorruptJobError]]:
    """The jobs in the rows; and why the others can't be read."""
    jobs, corrupt = [], []
    for row in rows:
        try:
            jobs.append(Job.from_row(row))
        except CorruptJobError as error:
            corrupt.append(error)
    return jobs, corrupt


def found(row: Any, message: str) -> Job:
    """The row's job; `JobNotFoundError` without one."""
    if row is None:
        raise JobNotFoundError(message)
    return Job.from_row(row)


# --- leases ---------------------------------------------------------------------------------------------------------


def claim_values(queues: str | Collection[str], worker_id: str, limit: int, lease: timedelta) -> dict[str, Any]:
    """The parameters of claim_jobs but for the lanes."""
    return {
        "queues": queue_names(queues),
        "worker_id": check_name("worker_id", worker_id),
        "job_limit": check_limit(limit),
        "lease": check_interval("lease", lease),
    }


def queue_names(queues: str | Collection[str]) -> list[str]:
    """One name or several: sorted, without repetition."""
    check_kind("queues", queues, str, Iterable)
    names = {check_name("queue", queue) for queue in ([queues] if isinstance(queues, str) else queues)}
    if not names:
        raise InvalidJobError("no queue is given to take jobs from")
    return sorted(names)


class Leases:
    """What a holder names its jobs by."""

    def __init__(self, leases: Iterable[Held]) -> None:
        """`InvalidJobError` for what is no lease."""
        check_kind("leases", leases, Iterable)
        self.held: list[tuple[UUID, int]] = []
        for lease in leases:
            if type(lease) is not Job:  # the commonest, spared the call
                check_kind("lease", lease, Job, Lease)
            job_id, token = lease.id, lease.lease_token
            if not (type(job_id) is UUID and type(token) is int and 0 <= token <= _MAX_TOKEN):
                job_id, token = as_job_id(job_id), check_integer("lease_token", token, 0, _MAX_TOKEN)
            self.held.append((job_id, token))
        self.values: dict[str, Any] = {
            "ids": [lease[0] for lease in self.held],
            "tokens": [lease[1] for lease in self.held],
        }

    @classmethod
    def failed(cls, failures: Iterable[tuple[Held, object]]) -> Self:
        """Leases with the reason why each attempt failed."""
        check_kind("failures", failures, Iterable)
        pairs = [_pair(failure) for failure in failures]
        self = cls([lease for lease, _ in pairs])
        self.values["errors"] = [clean_text(error) for _, error in pairs]
        return self

    def lost(self, done: Iterable[UUID], count: int) -> list[UUID]:
        """The jobs that the caller doesn't hold: all but the newest lease of each of the ``count`` ones ``done``."""
        if count == len(self.held):
            return []
        done = set(done)
        newest = dict(sorted(self.held))
        return [job_id for job_id, token in self.held if job_id not in done or token < newest[job_id]]


def _pair(failure: object) -> tuple[Held, object]:
    if not isinstance(failure, tuple) or len(failure) != 2:
        raise InvalidJobError("a failure must be a pair of the lease and the error")
    return failure


#: The lease parameters of claim_jobs when it completes nothing.
NO_LEASES: Final[dict[str, Any]] = {"ids": [], "tokens": []}

#: The parameters of fail_jobs, besides the leases, for jobs that are not to be tried again.
FINAL: Final[dict[str, Any]] = {
    "is_final": True,
    "retry_in": None,
    "backoff_base": None,
    "backoff_factor": None,
    "backoff_max": None,
    "backoff_jitter": None,
}


class Claimed:
    """The rows of claim_jobs."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.count = len(rows)
        #: The leases that the caller had lost, as id and token; then no job is claimed.
        self.lost: set[tuple[UUID, int]] = {(row.id, row.lease_token) for row in rows if row.queue is None}
        self.jobs: list[Job] = []
        #: What can't be run at all, and why.
        self.unreadable: list[tuple[Held, object]] = []
        if self.lost:
            return
        self.jobs, corrupt = read_jobs(rows)
        if corrupt:
            tokens = {row.id: row.lease_token for row in rows}
            for error in corrupt:
                log(_log, logging.ERROR, "%s; it is set aside as dead", error, job_id=error.job_id)
                self.unreadable.append((Lease(error.job_id, tokens[error.job_id]), error))

    def not_buried(self, error: GoQueueError) -> None:
        """Log that the unreadable jobs could not be set aside."""
        ids = ", ".join(str(lease.id) for lease, _ in self.unreadable)
        text = "jobs whose payload can't be read could not be set aside (%s); rescue_jobs finds them again: %s"
        log(_log, logging.WARNING, text, error, ids, jobs=len(self.unreadable))


def refused(rows: Iterable[tuple[UUID, str | None]]) -> dict[UUID, str]:
    """Return the reason by id for those rows of prune_jobs that were not deleted, and log them."""
    reasons = {job_id: reason for job_id, reason in rows if reason is not None}
    if reasons:
        job_id, reason = next(iter(reasons.items()))
        text = "%d finished jobs can't be deleted and are passed over; the first is %s: %s"
        log(_log, logging.WARNING, text, len(reasons), job_id, reason, jobs=len(reasons), job_id=job_id)
    return reasons


def check_lost(ids: Sequence[UUID]) -> None:
    """`LeaseLostError` if there are any."""
    if ids:
        names = ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10:,} more" if len(ids) > 10 else "")
        raise LeaseLostError(
            f"not held any more: {names}; the lease expired, or the job was ended or deleted: stop working on it",
            job_ids=ids,
        )


def rescued(rows: Iterable[tuple[UUID, str]]) -> dict[UUID, JobStatus]:
    """The rows of rescue_jobs: the status by id. Each is logged, since it tells of a worker that died or hung."""
    statuses = {job_id: JobStatus(status) for job_id, status in rows}
    for job_id, status in statuses.items():
        text = "job %s: its lease has expired; it is %s now"
        log(_log, logging.WARNING, text, job_id, status, job_id=job_id, status=status)
    return statuses


def stats_of(row: Any) -> QueueStats:
    """A row of queue_stats."""
    counts = {status: JobCount(getattr(row, status), exact=status in row.exact_statuses) for status in JobStatus}
    return QueueStats(row.queue, counts, row.oldest_ready_age, row.expired_leases)
