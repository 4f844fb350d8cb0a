"""New jobs, batches of them and changes to jobs, as parameters of their queries."""

from collections.abc import Iterable
from typing import Self
from uuid import UUID

from msgspec import UNSET

from goqueue.config import DatabaseConfig
from goqueue.errors import DuplicateJobError, InvalidJobError
from goqueue.models import Job, JobUpdate, NewJob
from goqueue.payload import check_payload, check_payloads, encode_checked, encode_json
from goqueue.validation import check_kind

# A statement's one JSON parameter is kept far below jsonb's limit of 256 MB, and the client's memory modest.
_MAX_BATCH_BYTES = 16 * 2**20


def job_values(job: NewJob, config: DatabaseConfig) -> dict[str, object]:
    """The parameters of the queries that add one job."""
    if type(job) is not NewJob:  # the commonest, spared the call
        check_kind("job", job, NewJob)
    return {
        "id": job.id,
        "queue": job.queue,
        "job_type": job.job_type,
        "payload": encode_checked(job.payload, config.max_payload_bytes).decode(),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "scheduled_at": job.scheduled_at,
        "delay": job.delay,
        "idempotency_key": job.idempotency_key,
    }


def encoded_update(update: JobUpdate, config: DatabaseConfig) -> bytes:
    """The fields that are given as JSON, a payload checked."""
    if update.payload is not UNSET:
        encode_checked(update.payload, config.max_payload_bytes)
    return encode_json(update)


class Batch:
    """Jobs for one create_jobs statement: at most ``batch_size`` and some 16 MiB, no two with one id."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._size = 0
        self._ids: set[int] = set()
        self.jobs: list[NewJob] = []
        self.encoded: list[bytes] = []
        #: Whether the jobs are new in all likelihood: none has a key, and each id is a UUIDv7, as `NewJob` makes it.
        self.is_new = True

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
        if job.idempotency_key is not None or job_id >> 76 & 15 != 7:
            self.is_new = False
        self._size += len(encoded)
        return True

    def checked(self) -> Self:
        """The batch, once all its payloads are known to be JSON; else `InvalidJobError`."""
        check_payloads(document(self.encoded), [job.payload for job in self.jobs])
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
        encode_checked(job.payload, config.max_payload_bytes)
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
