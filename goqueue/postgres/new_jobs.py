"""New jobs, batches of them and updates, as parameters of the queries that write them."""

from collections.abc import Iterable
from typing import Self, TypeVar
from uuid import UUID

from msgspec import UNSET

from goqueue.config import DatabaseConfig
from goqueue.errors import DuplicateJobError, InvalidJobError
from goqueue.models import JobStatus, JobUpdate, NewJob
from goqueue.payload import check_payloads, encode_checked, encode_json, encode_with_payload, is_same_json
from goqueue.postgres.wire import JobRow, KeysRow
from goqueue.validation import check_kind

# Far below jsonb's limit of 256 MB, and small in the client's memory.
_MAX_BATCH_BYTES = 16 * 2**20

_UNFINISHED = (JobStatus.PENDING, JobStatus.RUNNING)

Given = TypeVar("Given", NewJob, JobUpdate)


def _plain(given: Given, kind: type[Given]) -> Given:
    """Return a job or an update as the plain type. A derived type omits its own defaults from JSON, not ours."""
    return given if type(given) is kind else kind(**{name: getattr(given, name) for name in kind.__struct_fields__})


def job_values(job: NewJob, config: DatabaseConfig) -> dict[str, object]:
    """Return the parameters of the queries that add one job."""
    if type(job) is not NewJob:  # the fast path for the usual type
        check_kind("job", job, NewJob)
        job = _plain(job, NewJob)
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
        "unique_key": job.unique_key,
    }


def encoded_update(update: JobUpdate, config: DatabaseConfig) -> bytes:
    """Return the given fields as JSON, with the payload checked."""
    update = _plain(update, JobUpdate)
    if update.payload is not UNSET:
        encode_checked(update.payload, config.max_payload_bytes)
    return encode_json(update)


class Batch:
    """Jobs for one create_jobs statement: at most ``batch_size`` and about 16 MiB, with different ids."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._size = 0
        self.jobs: list[NewJob] = []
        self.encoded: list[bytes] = []
        #: The ids in order, as integers: hashing a UUID takes as long as the rest of `add`.
        self.ids: dict[int, None] = {}
        self.has_keys = False

    @property
    def is_new(self) -> bool:
        """True if the jobs are probably new: none has a key, and each id is a UUIDv7, as `NewJob` makes it."""
        return not self.has_keys and all(job_id >> 76 & 15 == 7 for job_id in self.ids)

    def add(self, job: NewJob, encoded: bytes | None = None) -> bool:
        """Add the job, or return False if it belongs to the next batch. Raise `InvalidJobError` if it is not a job.

        Without ``encoded``, only the size of the payload is checked; `checked` checks the rest. The statement's result
        identifies jobs by id, so a second job with the same id belongs to the next batch.
        """
        if encoded is None:
            if type(job) is not NewJob:
                if not isinstance(job, NewJob):
                    raise InvalidJobError(f"create_jobs takes NewJob objects, not {type(job).__name__}")
                job = _plain(job, NewJob)
            encoded = encode_with_payload(job, job.payload)
            if len(encoded) > self._config.max_payload_bytes:
                encode_checked(job.payload, self._config.max_payload_bytes)
        job_id = job.id.int
        full = len(self.jobs) >= self._config.batch_size or self._size + len(encoded) > _MAX_BATCH_BYTES
        if (full or job_id in self.ids) and self.jobs:
            return False
        self.jobs.append(job)
        self.encoded.append(encoded)
        self.ids[job_id] = None
        self.has_keys = self.has_keys or job.idempotency_key is not None or job.unique_key is not None
        self._size += len(encoded)
        return True

    def checked(self) -> Self:
        """Check that all payloads are JSON, and return the batch. Raise `InvalidJobError` otherwise."""
        check_payloads(document(self.encoded), [job.payload for job in self.jobs])
        return self


def by_key(batches: list[Batch], config: DatabaseConfig) -> tuple[list[int] | None, list[Batch]]:
    """Return the order in which to add the jobs, and the batches in that order.

    Jobs without keys come first, ordered by id. Then come jobs with only an idempotency key, and jobs with a unique
    key, each ordered by that key. In this order, concurrent calls with the same jobs wait for each other and don't
    deadlock. Calls with different jobs can deadlock if their jobs share both keys crosswise, because rows can't be in
    the order of two keys. The first value has the place in which each job was given, or is None if they were given in
    this order.
    """
    ids = [job_id for batch in batches for job_id in batch.ids]
    if ids == sorted(ids) and not any(batch.has_keys for batch in batches):  # the fast path for new jobs
        return None, batches
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


def _lock_order(job: NewJob) -> tuple[str, str, int]:
    # Jobs with the same key keep their given order, so that the first one is added; but those with one idempotency key
    # and different unique keys don't. Comparing integers takes a tenth of the time of comparing UUIDs.
    if job.unique_key is not None:
        return (job.unique_key, "", 0)
    return ("", "", job.id.int) if job.idempotency_key is None else ("", job.idempotency_key, 0)


def as_given(order: list[int] | None, results: list[tuple[UUID, bool]]) -> list[tuple[UUID, bool]]:
    """Return the results in the order in which the jobs were given."""
    return results if order is None else [result for _, result in sorted(zip(order, results, strict=True))]


def document(batch: Iterable[bytes]) -> bytes:
    """Return the JSON array that is the parameter of create_jobs."""
    return b"[%b]" % b",".join(batch)


def is_same(existing: JobRow, job: NewJob) -> bool:
    """Return True if the stored job was created from ``job``. Another job can have the same id, as a copy of ``job``
    with another payload has."""
    return (
        existing.job_type == job.job_type
        and _names(existing) == _names(job)
        and is_same_json(existing.payload, encode_json(job.payload))
    )


def conflicts(jobs: Iterable[NewJob], rows: Iterable[KeysRow]) -> dict[UUID, UUID]:
    """Return the ids of the stored jobs in ``rows`` that conflict with new jobs, by the new jobs' ids."""
    taken = {name: row.id for row in rows for name in _names(row)}
    # A job's id comes before its keys, as in find_duplicate_job.
    found = ((job.id, next((taken[name] for name in _names(job) if name in taken), None)) for job in jobs)
    return {job_id: existing for job_id, existing in found if existing is not None}


def shared_key(existing: JobRow, job: NewJob) -> dict[str, str]:
    """Return the key that a new job shares with the stored job that it conflicts with; empty if it is the id."""
    if existing.id == job.id:
        return {}
    if job.idempotency_key is not None and existing.idempotency_key == job.idempotency_key:
        return {"idempotency_key": job.idempotency_key}
    return {} if job.unique_key is None else {"unique_key": job.unique_key}


def _names(job: NewJob | KeysRow) -> list[UUID | tuple[str, str]]:
    """Return what a job shares with no other: its id and its keys. Both keys can have the same text."""
    names: list[UUID | tuple[str, str]] = [job.id]
    if job.idempotency_key is not None:
        names.append(("idempotency_key", job.idempotency_key))
    if job.unique_key is not None:
        names.append(("unique_key", job.unique_key))
    return names


def unique_key_after(current: JobRow, update: JobUpdate) -> str | None:
    """Return the unique key that a job has after an update, if it is then unfinished and its status allows the update;
    else None."""
    status = current.status if update.status is UNSET else update.status
    is_retried = status == JobStatus.PENDING and current.status != JobStatus.COMPLETED
    if is_retried or (status in _UNFINISHED and current.status in _UNFINISHED):
        return current.unique_key if update.unique_key is UNSET else update.unique_key
    return None


def not_replaced(existing: JobRow) -> DuplicateJobError:
    """Return the error for a job that can't be replaced."""
    return DuplicateJobError(
        f"job {existing.id} has the idempotency key {existing.idempotency_key!r} and is {existing.status}; only a "
        "pending job can be replaced: delete that job after it has ended, or use another key",
        job_id=existing.id,
        idempotency_key=existing.idempotency_key,
    )
