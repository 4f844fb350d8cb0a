"""The rows and requests of the storage layer as immutable msgspec Structs. Imports goqueue.errors and
goqueue.structs.

What a caller gives (`NewJob`, `JobUpdate`, `JobFilter`) is checked when it is made: an `InvalidJobError` names the
field, what was got and what is allowed. What the database gives (`Job`) is taken as it is.
"""

import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import isfinite
from operator import index
from typing import Any, Final, Self
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from goqueue.errors import CorruptJobError, InvalidCursorError, InvalidFilterError, InvalidJobError
from goqueue.structs import HelpfulMeta, in_field_order

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

__all__ = [
    "Backoff",
    "Failure",
    "Held",
    "Job",
    "JobCount",
    "JobFilter",
    "JobId",
    "JobStatus",
    "JobUpdate",
    "Jobs",
    "JsonValue",
    "Lease",
    "NewJob",
    "Page",
    "QueueStats",
]

#: A payload: None, bool, int, float, str, and lists and str-keyed dicts of these.
JsonValue = Any

# The table's own limits (its CHECK constraints), told before a statement is sent.
MAX_NAME_CHARACTERS: Final = 255
MAX_ATTEMPTS: Final = 10_000
MAX_PRIORITY: Final = 32_767
DEFAULT_MAX_ATTEMPTS: Final = 25
# Deeper than any sane payload, and far from the interpreter's and the server's recursion limits.
MAX_PAYLOAD_DEPTH: Final = 200
MAX_PAGE: Final = 1000
# A thousand years: added to any time of ours it stays among the years that Python knows.
MAX_INTERVAL: Final = timedelta(days=365_000)

_ZERO: Final = timedelta(0)


class JobStatus(StrEnum):
    """The five states of a job; the values are those of the type ``goqueue.job_status``."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class TransactionStatus(StrEnum):
    """The outcome of a transaction; the values are those of pg_xact_status()."""

    COMMITTED = "committed"
    #: Rolled back, by the client, an error or a crash of the server.
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    #: Too old for the server, or another server's.
    UNKNOWN = "unknown"


class Job(Struct, frozen=True, kw_only=False):
    """One row of goqueue.jobs, its fields in the order of the columns in sql/jobs.sql; times are aware datetimes."""

    id: UUID
    queue: str
    job_type: str
    payload: JsonValue
    status: JobStatus
    #: The lower number runs first.
    priority: int
    #: Attempts started so far, the running one included.
    attempts: int
    max_attempts: int
    last_error: str | None
    idempotency_key: str | None
    #: The worker that holds the job; None unless running.
    locked_by: str | None
    locked_at: datetime | None
    #: Counts the claims: the holder's fencing token.
    lease_token: int
    #: The end of the lease; None unless claimed.
    lease_expires_at: datetime | None
    scheduled_at: datetime
    created_at: datetime
    updated_at: datetime
    #: When the latest attempt started.
    started_at: datetime | None
    #: When the job became completed, dead or cancelled.
    completed_at: datetime | None

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """The job in a row that a query of sql/ has given: a named tuple with a job's columns, payload as JSON text.

        `CorruptJobError` when the payload can't be read, or the status is one that a later release has added.
        """
        values = in_field_order(cls, row)
        if (status := _STATUSES.get(values[4])) is None:
            raise CorruptJobError(
                f"job {row.id}: its status {row.status!r} is not known to this version of goqueue, only "
                f"{', '.join(JobStatus)}; install the version that added it",
                job_id=row.id,
            )
        return cls(values[0], values[1], values[2], _read_payload(row.id, values[3]), status, *values[5:])

    @classmethod
    def from_new(cls, new: "NewJob", row: Any) -> Self:
        """The job that create_job has made of ``new``, and returned ``row`` for. `CorruptJobError` as `from_row`."""
        return cls(
            id=new.id,
            queue=new.queue,
            job_type=new.job_type,
            payload=_read_payload(new.id, row.payload),
            status=JobStatus.PENDING,
            priority=new.priority,
            attempts=0,
            max_attempts=new.max_attempts,
            last_error=None,
            idempotency_key=new.idempotency_key,
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


class Lease(Struct, metaclass=HelpfulMeta, frozen=True):
    """A held job: its id, and the token of its claim. A claimed `Job` serves as well."""

    id: UUID
    lease_token: int


class Backoff(Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True):
    """The wait of a failed job: ``base * factor ** (attempts - 1)``, at most ``maximum``, and at random up to the share
    ``jitter`` longer. Raises `InvalidJobError`."""

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
            raise InvalidJobError(f"factor must be from 1 to 100, not {_shown(self.factor)}")
        if not 0 <= self.jitter <= 1:
            raise InvalidJobError(f"jitter must be from 0 to 1, not {_shown(self.jitter)}")


class Failure(Struct, frozen=True):
    """One failed attempt of a job, a row of goqueue.job_failures."""

    lease_token: int
    #: The attempt's number at the time; a retried job counts from one again.
    attempt: int
    started_at: datetime | None
    failed_at: datetime
    worker_id: str | None
    error: str


def _no_payload() -> JsonValue:
    return {}


class NewJob(Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A job to create.

    Its id is made here. So creating the same `NewJob` again, after a lost connection for example, adds no second job.

    ``priority`` is from -32,767 to 32,767; the lower number runs first. The job is due at ``scheduled_at`` (aware), or
    ``delay`` after the server's now, or at once. ``payload`` is any JSON value; it is checked when it is sent. Raises
    `InvalidJobError`.

    Values of derived types (a StrEnum's member, pendulum's times) become the plain type, also in a payload. A datetime,
    UUID, Decimal or dataclass in a payload is rejected.
    """

    # A bulk leaves out what has its default; create_jobs has the same ones. It leaves out no payload: with `dict` for
    # the factory, an empty one would be a default.
    job_type: str
    queue: str = "default"
    payload: JsonValue = msgspec.field(default_factory=_no_payload)
    priority: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    scheduled_at: datetime | None = None
    delay: timedelta | None = None
    idempotency_key: str | None = None
    id: UUID = msgspec.field(default_factory=uuid7)

    def __post_init__(self) -> None:
        # Written out, because a bulk makes many of these.
        if (job_type := check_name("job_type", self.job_type)) is not self.job_type:
            _keep(self, "job_type", job_type)
        if (queue := check_name("queue", self.queue)) is not self.queue:
            _keep(self, "queue", queue)
        if self.idempotency_key is not None:
            _keep(self, "idempotency_key", check_name("idempotency_key", self.idempotency_key))
        if (priority := check_integer("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)) is not self.priority:
            _keep(self, "priority", priority)
        if (attempts := check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS)) is not self.max_attempts:
            _keep(self, "max_attempts", attempts)
        if (job_id := as_job_id(self.id)) is not self.id:
            _keep(self, "id", job_id)
        if self.scheduled_at is not None:
            _keep(self, "scheduled_at", check_time("scheduled_at", self.scheduled_at))
            if self.delay is not None:
                raise InvalidJobError("scheduled_at and delay are both given; give one of them")
        if self.delay is not None:
            _keep(self, "delay", check_interval("delay", self.delay))


class JobUpdate(
    Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The changes to one job. Only the given fields change. None clears a field that can be empty, and sets
    ``scheduled_at`` to now.

    Times and the holder follow from ``status``. A job set running is held by ``locked_by``, or else by the session's
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
    locked_by: str | UnsetType | None = UNSET
    scheduled_at: datetime | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        for name in ("queue", "job_type", "idempotency_key", "locked_by"):
            value = getattr(self, name)
            if value is not UNSET and not (value is None and name in ("idempotency_key", "locked_by")):
                _keep(self, name, check_name(name, value))
        if self.status is not UNSET:
            _keep(self, "status", as_status(self.status))
        if self.priority is not UNSET:
            _keep(self, "priority", check_integer("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY))
        if self.max_attempts is not UNSET:
            _keep(self, "max_attempts", check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS))
        if self.attempts is not UNSET:
            limit = MAX_ATTEMPTS if self.max_attempts is UNSET else self.max_attempts
            _keep(self, "attempts", check_integer("attempts", self.attempts, 0, limit))
        if isinstance(self.last_error, str):
            check_text("last_error", self.last_error)
            _keep(self, "last_error", _exact_text(self.last_error))
        elif self.last_error is not UNSET and self.last_error is not None:
            raise InvalidJobError(f"last_error must be a string or None, not {_shown(self.last_error)}")
        if self.scheduled_at is not UNSET and self.scheduled_at is not None:
            _keep(self, "scheduled_at", check_time("scheduled_at", self.scheduled_at))


class JobFilter(Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs to list, count or change: those that match every given condition.

    ``status``, ``queue`` and ``job_type`` are one value or several. The range of creation (aware datetimes) includes
    ``created_from`` and excludes ``created_before``. Raises `InvalidFilterError`.
    """

    status: JobStatus | str | Collection[JobStatus | str] | None = None
    queue: str | Collection[str] | None = None
    job_type: str | Collection[str] | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of list_jobs and count_jobs: sorted lists without repetition, times, or None."""
        try:
            times = {
                name: None if (time := getattr(self, name)) is None else check_time(name, time)
                for name in _RANGE_FIELDS
            }
            return {
                "statuses": _several("status", self.status, as_status),
                "queues": _several("queue", self.queue, lambda value: check_name("queue", value)),
                "job_types": _several("job_type", self.job_type, lambda value: check_name("job_type", value)),
                **times,
            }
        except InvalidFilterError:
            raise
        except InvalidJobError as exc:
            raise InvalidFilterError(str(exc)) from None


class Page(Struct, frozen=True):
    """A page of a list. Pass ``next_cursor`` to `list_jobs` for the next page; it is None on the last one.

    ``unreadable`` has the jobs that can't be read, each with the reason: a payload that Python can't hold, or a status
    that a later release has added. Together with them, every page but the last has as many jobs as the limit.
    """

    jobs: list[Job]
    next_cursor: str | None
    unreadable: dict[UUID, str] = {}


class JobCount(int):
    """A number of jobs. ``exact`` is False for an estimate: above 10,000 jobs for `count_jobs`, above 1,000 for
    `queue_stats`."""

    exact: bool

    def __new__(cls, count: int, *, exact: bool = True) -> Self:
        self = super().__new__(cls, count)
        self.exact = exact
        return self

    def __repr__(self) -> str:
        return f"JobCount({int(self)}, exact={self.exact})"

    def __str__(self) -> str:
        return f"{'' if self.exact else 'about '}{int(self):,}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _job_count, (int(self), self.exact)


class Pruned(int):
    """A number of deleted jobs. ``kept`` has the jobs that were skipped because a foreign key refers to them: the
    server's reason by id."""

    kept: Mapping[UUID, str]

    def __new__(cls, count: int, kept: Mapping[UUID, str] | None = None) -> Self:
        self = super().__new__(cls, count)
        self.kept = dict(kept or {})
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Pruned, (int(self), self.kept)


def counted(count: int, noun: str = "job") -> str:
    """`1 job`, `about 12,000 jobs`, `2 queries`: a number with its noun, singular or plural."""
    ending = "" if count == 1 else "s"
    if ending and noun.endswith("y"):
        noun, ending = noun[:-1], "ies"
    return f"{count if isinstance(count, JobCount) else JobCount(count)} {noun}{ending}"


class QueueStats(Struct, frozen=True):
    """One queue: its jobs by status, the age of its oldest due job (None if none is due), its expired leases."""

    queue: str
    counts: dict[JobStatus, JobCount]
    oldest_ready_age: timedelta | None
    expired_leases: int


def _job_count(count: int, exact: bool) -> JobCount:
    return JobCount(count, exact=exact)


#: A job's id, as such or as text.
JobId = UUID | str
#: What the methods for leases take: a claimed job, or its id and token.
Held = Job | Lease
#: What the methods for many jobs take: ids, or a filter.
Jobs = JobId | Iterable[JobId] | JobFilter


# --- payloads -------------------------------------------------------------------------------------------------------


def _plain(value: object) -> object:
    """The plain value in one of a derived type (numpy's float64 is a float), which msgspec leaves to us."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{_shown(value)} is not JSON")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
decode_payload = msgspec.json.Decoder().decode
_STATUSES: Final[Mapping[str, JobStatus]] = {str(status): status for status in JobStatus}


def encode_json(value: object) -> bytes:
    """``value`` (a checked payload, or a Struct) as JSON in UTF-8."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidJobError(f"the payload can't be written as JSON: {exc}") from exc


def _read_payload(job_id: UUID, text: str) -> JsonValue:
    try:
        return decode_payload(text)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise CorruptJobError(
            f"job {job_id}: its payload can't be read ({exc}); correct it in SQL or delete the job", job_id=job_id
        ) from exc


class _Sent(Struct):
    payload: JsonValue


_decode_sent = msgspec.json.Decoder(list[_Sent]).decode
_NOT_NESTING: Final = bytes(set(range(256)) - set(b"[]{}"))


def reads_back(document: bytes, payloads: list[JsonValue]) -> bool:
    """Whether a JSON array of jobs has exactly these payloads: then `check_payload` finds nothing in any of them.

    It takes half the time, because no line of Python looks at a value. False where it can't tell: a tuple reads back as
    a list, and an escaped character can be a NUL.
    """
    try:
        if (b"\\" in document and b"\\u" in document) or [sent.payload for sent in _decode_sent(document)] != payloads:
            return False
    except Exception:  # noqa: BLE001 - of a value's own code
        return False
    nesting = document.translate(None, _NOT_NESTING)
    for _ in range(MAX_PAYLOAD_DEPTH + 2):  # The array and the job are two more.
        if not nesting:
            return True
        nesting = nesting.replace(b"{}", b"").replace(b"[]", b"")
    return False


def check_payload(value: JsonValue) -> None:
    """Raises `InvalidJobError`, naming the place, for what jsonb would refuse or give back as something else.

    But for a float without a fraction, which comes back as the whole number that its decimal writes: `float` of that is
    the same float again.
    """
    if (problem := _payload_problem(value, 0)) is not None:
        place, what = problem
        raise InvalidJobError(f"payload{place if len(place) <= 200 else place[:200] + '…'} {what}")


def _is_plain(text: str) -> bool:
    return text.isascii() and "\0" not in text


def _payload_problem(value: object, depth: int) -> tuple[str, str] | None:  # noqa: C901, PLR0911
    # Runs over every value of every payload: the usual types first, and no place is spelled out before it is needed.
    if isinstance(value, str):
        return None if _is_plain(value) else _text_problem(value)
    if value is None or isinstance(value, int):
        return None
    if isinstance(value, float):
        return None if isfinite(value) else ("", f"is {value}, which JSON has no number for; use None or a string")
    if depth > MAX_PAYLOAD_DEPTH:
        return "", f"is nested more than {MAX_PAYLOAD_DEPTH} levels deep"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return "", f"has the key {_shown(key)}; a key of a JSON object must be a string"
            if not _is_plain(key) and (problem := _text_problem(key)) is not None:
                return "", f"has the key {_shown(key)}, which {problem[1]}"
            if (problem := _payload_problem(item, depth + 1)) is not None:
                return f".{key}{problem[0]}", problem[1]
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if (problem := _payload_problem(item, depth + 1)) is not None:
                return f"[{index}]{problem[0]}", problem[1]
        return None
    return "", (
        f"is {_shown(value)}, which is not JSON; use None, bool, int, float, str, list or dict "
        "(for a datetime its isoformat(), for a UUID its str())"
    )


def _text_problem(value: str) -> tuple[str, str] | None:
    if "\0" in value:
        return "", f"has a NUL character at position {value.index(chr(0))}, which PostgreSQL can't store"
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        return "", f"has a lone surrogate ({value[exc.start]!a}) at position {exc.start}, which is not valid Unicode"
    return None


# --- checks ---------------------------------------------------------------------------------------------------------


# Each returns the value as exactly the type that is checked for: freezegun's and pendulum's times are derived from
# datetime, a member of a StrEnum from str, and msgspec and psycopg write derived types in ways of their own.


_keep = msgspec.structs.force_setattr


def _exact_text(value: str) -> str:
    return value if type(value) is str else str.__str__(value)


def check_text(name: str, value: str) -> None:
    """Raises `InvalidJobError` for what PostgreSQL can't hold in a text: NUL, and a lone surrogate."""
    if (problem := _text_problem(value)) is not None:
        raise InvalidJobError(f"{name} {problem[1]}")


def check_name(name: str, value: object) -> str:
    """``value``, if it is a string of 1 to 255 characters that PostgreSQL can hold; else `InvalidJobError`."""
    # A bulk has thousands of them.
    if type(value) is str and 0 < len(value) <= MAX_NAME_CHARACTERS and _is_plain(value):
        return value
    if not isinstance(value, str):
        raise InvalidJobError(f"{name} must be a string, not {_shown(value)}")
    if not 0 < len(value) <= MAX_NAME_CHARACTERS:
        got = "empty" if not value else f"{len(value):,} characters long"
        raise InvalidJobError(f"{name} is {got}; it must have 1 to {MAX_NAME_CHARACTERS} characters")
    check_text(name, value)
    return _exact_text(value)


def check_transaction_id(value: object) -> str:
    """``value``, if it is the text of a transaction's id (xid8); else `InvalidJobError`."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,20}", value) or int(value) >= 2**64:
        raise InvalidJobError(f"transaction_id must be as OutcomeUnknownError has it, not {_shown(value)}")
    return _exact_text(value)


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """Return ``value``, if it is an integer (of an IntEnum or numpy too, no bool) from ``least`` to ``most``; else
    raise `InvalidJobError`."""
    number = value if type(value) is int else _exact_integer(value)
    if number is None or not least <= number <= most:
        raise InvalidJobError(f"{name} must be a whole number from {least:,} to {most:,}, not {_shown(value)}")
    return number


def _exact_integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else int.__add__(index(value), 0)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_time(name: str, value: object) -> datetime:
    """Return ``value`` in UTC, if it is an aware datetime; else raise `InvalidJobError`."""
    if not isinstance(value, datetime):
        raise InvalidJobError(f"{name} must be a datetime, not {_shown(value)}")
    try:
        if value.utcoffset() is None:
            raise InvalidJobError(
                f"{name} is {value.isoformat()} without a time zone; give an aware datetime, such as datetime.now(UTC)"
            )
        # In UTC, because JSON has no seconds in a time zone's offset, and so that equal times are written alike.
        return _exact_time(value.astimezone(UTC))
    except OverflowError:
        raise InvalidJobError(f"{name} is {value.isoformat()}, which is beyond the years 1 to 9999 in UTC") from None
    except TypeError:  # pandas' NaT, which is a datetime and no time
        raise InvalidJobError(f"{name} must be a datetime, not {_shown(value)}") from None


def _exact_time(at: datetime) -> datetime:
    # Not `type(at) is datetime`: freezegun puts a class of its own in place of that name.
    if type(at) is type(_FIRST):
        return at
    return _FIRST.replace(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond)


def check_interval(name: str, value: object) -> timedelta:
    """``value``, if it is a timedelta of zero to 365,000 days; else `InvalidJobError`."""
    # What the base class adds is what `datetime + value` adds, whatever a derived type makes of its attributes.
    exact = timedelta.__add__(_ZERO, value) if isinstance(value, timedelta) else None
    if exact is None or not _ZERO <= exact <= MAX_INTERVAL:
        most = f"{MAX_INTERVAL.days:,} days"
        raise InvalidJobError(f"{name} must be a timedelta of zero or more, at most {most}, not {_shown(value)}")
    return exact


def check_kind(name: str, value: object, *kinds: type, secret: bool = False) -> None:
    """Raise `InvalidJobError` unless ``value`` is of one of the kinds. A ``secret`` value is not shown."""
    if not isinstance(value, kinds):
        wanted = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}" for kind in kinds)
        got = full_name(type(value)) if secret and value is not None else _shown(value)
        raise InvalidJobError(f"{name} must be {wanted}, not {got}")


def clean_text(value: object, most: int = 10_000) -> str:
    """``value`` as PostgreSQL can hold it, at most ``most`` characters: no report of an error must be lost over one."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - whatever the object's own code raises
        text = f"{type(value).__name__} that can't be shown"
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_job_id(value: object) -> UUID:
    """``value`` as a UUID, from a UUID or its text; else `InvalidJobError`."""
    if isinstance(value, UUID):
        return value if type(value) is UUID else UUID(int=value.int)
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            pass
    raise InvalidJobError(f"a job id must be a UUID, not {_shown(value)}; give a uuid.UUID or its text")


def as_status(value: object) -> JobStatus:
    """``value`` as a `JobStatus`, from one or its text; else `InvalidJobError`."""
    try:
        return JobStatus(value)  # type: ignore[arg-type]
    except ValueError:
        allowed = ", ".join(JobStatus)
        raise InvalidJobError(f"status must be one of {allowed}, not {_shown(value)}") from None


def _several(name: str, value: object, check: Any) -> list[str] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, str) or not isinstance(value, Collection) else list(value)
    if not values:
        raise InvalidFilterError(f"{name} is an empty collection, which no job matches; leave it out not to filter")
    return sorted({check(item) for item in values})


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - whatever the object's own code raises
        text = "a value that can't be shown"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({full_name(type(value))})"


def full_name(kind: type) -> str:
    """The name of a type, with its module's unless it is builtin."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# --- cursors --------------------------------------------------------------------------------------------------------


_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ENDLESS: Final[dict[datetime, datetime | str]] = {_FIRST: "-infinity", _LAST: "infinity"}

_RANGE_FIELDS: Final = ("created_from", "created_before")


class _Position(Struct, frozen=True, array_like=True):
    created_at: datetime
    id: UUID
    #: Tells a cursor of another filter, and one that was changed; it is no secret, and guards none.
    digest: bytes


def make_cursor(parameters: Mapping[str, Any], created_at: datetime, job_id: UUID) -> str:
    """An opaque cursor: the position to go on from, tied to the filter's ``parameters``."""
    try:  # Whatever the session's time zone, it is the same cursor.
        created_at = created_at.astimezone(UTC)
    except OverflowError:
        created_at = _LAST if created_at.year > 1 else _FIRST
    position = _Position(created_at, job_id, _digest(parameters, created_at, job_id))
    return msgspec.msgpack.encode(position).hex()


def read_cursor(parameters: Mapping[str, Any], cursor: str | None) -> tuple[datetime | str | None, UUID | None]:
    """The position in a cursor that `make_cursor` made for the same filter; else `InvalidCursorError`.

    The first and the last time that Python has stand for all that it hasn't, and are given as the server's infinity.
    """
    if cursor is None:
        return None, None
    try:
        position = msgspec.msgpack.decode(bytes.fromhex(cursor), type=_Position)
    except (TypeError, ValueError, msgspec.MsgspecError):
        raise InvalidCursorError("the cursor is not one that list_jobs has given; start again without one") from None
    if position.digest != _digest(parameters, position.created_at, position.id):
        raise InvalidCursorError(
            "the cursor belongs to another filter or was changed; use it with the filter it came from, "
            "or start again without one"
        )
    return _ENDLESS.get(position.created_at, position.created_at), position.id


def _digest(parameters: Mapping[str, Any], created_at: datetime, job_id: UUID) -> bytes:
    text = msgspec.json.encode([dict(parameters), created_at, job_id])
    return hashlib.blake2b(text, digest_size=8, person=b"goqueue").digest()


def check_limit(limit: object) -> int:
    """``limit``, if it is an int from 1 to 1000; else `InvalidFilterError`."""
    if (number := _exact_integer(limit)) is None or not 1 <= number <= MAX_PAGE:
        raise InvalidFilterError(f"limit must be a whole number from 1 to {MAX_PAGE:,}, not {_shown(limit)}")
    return number
