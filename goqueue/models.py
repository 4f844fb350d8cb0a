"""The rows and requests of the storage layer as immutable msgspec Structs.

What callers create (`NewJob`, `JobUpdate`, `JobFilter`) is checked on creation. An `InvalidJobError` names the field,
the value and what is allowed. What the database returns (`Job`) is not checked.
"""

import sys
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from goqueue.counts import JobCount
from goqueue.errors import InvalidFilterError, InvalidJobError
from goqueue.validation import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_PRIORITY,
    MAX_ATTEMPTS,
    MAX_PRIORITY,
    HelpfulMeta,
    as_job_id,
    check_choice,
    check_integer,
    check_interval,
    check_kind,
    check_name,
    check_names,
    check_several,
    check_text,
    check_time,
    exact_text,
    shown,
)

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

#: A payload: None, bool, int, float, str, and lists and str-keyed dicts of these.
JsonValue = Any


class JobStatus(StrEnum):
    """The five states of a job, with the values of the type ``goqueue.job_status``."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class TransactionStatus(StrEnum):
    """The outcome of a transaction, with the values of pg_xact_status()."""

    COMMITTED = "committed"
    #: Rolled back by the client, an error or a server crash.
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    #: The transaction is too old, or belongs to another server.
    UNKNOWN = "unknown"


class Job(Struct, frozen=True, kw_only=False):
    """One row of goqueue.jobs. Fields are in the column order of sql/jobs.sql; times are aware datetimes."""

    id: UUID
    queue: str
    job_type: str
    payload: JsonValue
    status: JobStatus
    #: Lower numbers run first.
    priority: int
    #: Attempts started so far, including the running one.
    attempts: int
    max_attempts: int
    last_error: str | None
    idempotency_key: str | None
    unique_key: str | None
    #: The worker that holds the job; None unless running.
    locked_by: str | None
    locked_at: datetime | None
    #: The holder's fencing token: the number of claims so far.
    lease_token: int
    #: The end of the lease; None unless claimed.
    lease_expires_at: datetime | None
    scheduled_at: datetime
    created_at: datetime
    updated_at: datetime
    #: Start of the latest attempt.
    started_at: datetime | None
    #: When the job became completed, dead or cancelled.
    completed_at: datetime | None


class Lease(Struct, metaclass=HelpfulMeta, frozen=True):
    """A held job: its id and its fencing token. A claimed `Job` can be passed instead."""

    id: UUID
    lease_token: int


class Backoff(Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True):
    """The retry delay: ``base * factor ** (attempts - 1)``, at most ``maximum``, plus a random share of it up to
    ``jitter``. Raises `InvalidJobError`."""

    base: timedelta = timedelta(seconds=15)
    factor: float = 2.0
    maximum: timedelta = timedelta(hours=6)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _keep(self, "base", check_interval("base", self.base))
        _keep(self, "maximum", check_interval("maximum", self.maximum))
        for name, value in (("factor", self.factor), ("jitter", self.jitter)):
            check_kind(name, value, int, float)
            _keep(self, name, value if type(value) in (int, float) else float(value))
        if not 1 <= self.factor <= 100:
            raise InvalidJobError(f"factor must be from 1 to 100, not {shown(self.factor)}")
        if not 0 <= self.jitter <= 1:
            raise InvalidJobError(f"jitter must be from 0 to 1, not {shown(self.jitter)}")


class Failure(Struct, frozen=True):
    """One failed attempt of a job, a row of goqueue.job_failures."""

    lease_token: int
    #: The number of the attempt; a retried job starts at one again.
    attempt: int
    started_at: datetime | None
    failed_at: datetime
    worker_id: str | None
    error: str


def _no_payload() -> JsonValue:
    return {}


class NewJob(
    Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """A job to create.

    Its id is created here, so creating the same `NewJob` again, for example after a lost connection, adds no second
    job. A copy (`msgspec.structs.replace`, `copy.replace`) has the same id: to add it too, give it another one.

    ``priority`` is from -32,767 to 32,767; lower numbers run first. The job is due at ``scheduled_at`` (aware), or
    ``delay`` after `created_at`, or at once. ``payload`` is any JSON value; it is checked when it is sent.
    Raises `InvalidJobError`.

    At most one job has a given ``idempotency_key``, until it is deleted or pruned. At most one pending or running job
    has a given ``unique_key``: when that job finishes, another can have the key. For "once an hour", put the hour into
    either key (`key_for_period`).

    Values of derived types (a StrEnum's member, pendulum's times) become the plain type, even inside a payload. A
    datetime, UUID, Decimal or dataclass in a payload is rejected.
    """

    # Without garbage collection, because JSON has no reference cycles and a bulk makes many of these.
    # A bulk omits fields with their default; create_jobs has the same defaults. It never omits the payload: with the
    # factory `dict`, an empty one would count as a default.
    job_type: str
    queue: str = "default"
    payload: JsonValue = msgspec.field(default_factory=_no_payload)
    priority: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    scheduled_at: datetime | None = None
    delay: timedelta | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    id: UUID = msgspec.field(default_factory=uuid7)

    def __post_init__(self) -> None:
        # Written out, because a bulk makes many of these. The defaults themselves need no check.
        if (job_type := check_name("job_type", self.job_type)) is not self.job_type:
            _keep(self, "job_type", job_type)
        if (queue := check_name("queue", self.queue)) is not self.queue:
            _keep(self, "queue", queue)
        if self.idempotency_key is not None:
            _keep(self, "idempotency_key", check_name("idempotency_key", self.idempotency_key))
        if self.unique_key is not None:
            _keep(self, "unique_key", check_name("unique_key", self.unique_key))
        if self.priority is not DEFAULT_PRIORITY:
            _keep(self, "priority", check_integer("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY))
        if self.max_attempts is not DEFAULT_MAX_ATTEMPTS:
            _keep(self, "max_attempts", check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS))
        if type(self.id) is not UUID:
            _keep(self, "id", as_job_id(self.id))
        if self.scheduled_at is not None:
            _keep(self, "scheduled_at", check_time("scheduled_at", self.scheduled_at))
            if self.delay is not None:
                raise InvalidJobError("scheduled_at and delay are both given; give one of them")
        if self.delay is not None:
            _keep(self, "delay", check_interval("delay", self.delay))


class JobUpdate(
    Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Changes to one job. Only the given fields change. None clears a nullable field, and sets ``scheduled_at`` to now.

    ``status`` determines the times and the holder. A job set running is held by ``locked_by``, else by the session's
    application_name. A job set completed, dead or cancelled gets its finish time. Raises `InvalidJobError`.
    """

    queue: str | UnsetType = UNSET
    job_type: str | UnsetType = UNSET
    payload: JsonValue | UnsetType = UNSET
    status: JobStatus | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    attempts: int | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    last_error: str | UnsetType | None = UNSET
    idempotency_key: str | UnsetType | None = UNSET
    unique_key: str | UnsetType | None = UNSET
    locked_by: str | UnsetType | None = UNSET
    scheduled_at: datetime | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        for name in ("queue", "job_type", "idempotency_key", "unique_key", "locked_by"):
            value = getattr(self, name)
            if value is not UNSET and not (value is None and name in ("idempotency_key", "unique_key", "locked_by")):
                _keep(self, name, check_name(name, value))
        if self.status is not UNSET:
            _keep(self, "status", check_choice("status", self.status, JobStatus))
        if self.priority is not UNSET:
            _keep(self, "priority", check_integer("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY))
        if self.max_attempts is not UNSET:
            _keep(self, "max_attempts", check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS))
        if self.attempts is not UNSET:
            limit = MAX_ATTEMPTS if self.max_attempts is UNSET else self.max_attempts
            _keep(self, "attempts", check_integer("attempts", self.attempts, 0, limit))
        if isinstance(self.last_error, str):
            check_text("last_error", self.last_error)
            _keep(self, "last_error", exact_text(self.last_error))
        elif self.last_error is not UNSET and self.last_error is not None:
            raise InvalidJobError(f"last_error must be a string or None, not {shown(self.last_error)}")
        if self.scheduled_at is not UNSET and self.scheduled_at is not None:
            _keep(self, "scheduled_at", check_time("scheduled_at", self.scheduled_at))


class JobFilter(Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs to list, count or change: those that match all given conditions.

    Each field but the times accepts one value or several. ``locked_by`` names workers; only running jobs have one. The
    range of creation (aware datetimes) includes ``created_from`` and excludes ``created_before``. Raises
    `InvalidFilterError`.
    """

    status: JobStatus | str | Collection[JobStatus | str] | None = None
    queue: str | Collection[str] | None = None
    job_type: str | Collection[str] | None = None
    locked_by: str | Collection[str] | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of list_jobs and count_jobs: sorted lists without duplicates, times, or None."""
        try:
            times = {
                name: None if (time := getattr(self, name)) is None else check_time(name, time)
                for name in _RANGE_FIELDS
            }
            return {
                "statuses": check_several(
                    "status", self.status, lambda value: check_choice("status", value, JobStatus)
                ),
                "queues": check_names("queue", self.queue),
                "job_types": check_names("job_type", self.job_type),
                "worker_ids": check_names("locked_by", self.locked_by),
                **times,
            }
        except InvalidFilterError:
            raise
        except InvalidJobError as exc:
            raise InvalidFilterError(str(exc)) from None


class Page(Struct, frozen=True):
    """A page of a list. Pass ``next_cursor`` to `list_jobs` for the next page; it is None on the last page.

    ``unreadable`` has the jobs that can't be read, each with the reason: a payload that Python can't represent, or a
    status that a later release added. They count towards the page's limit.
    """

    jobs: list[Job]
    next_cursor: str | None
    unreadable: dict[UUID, str] = {}


class QueueStats(Struct, frozen=True):
    """One queue: its jobs by status, the age of its oldest due job (None if none is due), and its expired leases.

    ``paused_until`` is None unless the queue is paused. For a pause without an end it is Python's latest time, in the
    year 9999.
    """

    queue: str
    counts: dict[JobStatus, JobCount]
    oldest_ready_age: timedelta | None
    expired_leases: int
    paused_until: datetime | None = None


class WorkerStats(Struct, frozen=True):
    """One worker that holds running jobs. Idle workers are not listed."""

    worker_id: str
    #: How many running jobs it holds.
    jobs: int
    #: Their queues, in order.
    queues: list[str]
    #: When it claimed the oldest of them.
    oldest_locked_at: datetime
    #: When one of them was last claimed, renewed or otherwise changed.
    last_seen_at: datetime
    #: The earliest end of their leases; None if none has a lease (jobs that were set running manually).
    lease_expires_at: datetime | None
    #: How many of the leases have expired.
    expired_leases: int


#: A job's id: a UUID or its text.
JobId = UUID | str

#: A held job, as the lease methods accept it: a claimed job, or its id and token.
Held = Job | Lease

#: Jobs, as the bulk methods accept them: ids, or a filter.
Jobs = JobId | Iterable[JobId] | JobFilter

#: A function that the bulk methods call after each batch, with the number of jobs changed so far.
Progress = Callable[[int], object]

# The checks return exactly the plain type: msgspec and psycopg write subclasses differently (pendulum's times,
# StrEnum).
_keep = msgspec.structs.force_setattr
_RANGE_FIELDS: Final = ("created_from", "created_before")
