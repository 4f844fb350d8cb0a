"""Errors that goqueue raises, under one base.

Each message says what was wrong, what was expected and what to do. The driver's exception, if any, is the
``__cause__``. Messages never contain passwords.
"""

import copyreg
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID


class Portable(Exception):  # noqa: N818 - the base of errors and of other exceptions
    """An exception that can be pickled, with its attributes and without a call of ``__init__``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__.copy()  # type: ignore[attr-defined]


class GoQueueError(Portable):
    """Base of all errors that goqueue raises. They can be pickled."""

    #: True if the failed call changed nothing and can succeed after a pause.
    can_retry: ClassVar[bool] = False


class ConfigError(GoQueueError):
    """The configuration is invalid. ``problems`` lists every fault, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        count = len(self.problems)
        heading = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class InvalidJobError(GoQueueError, ValueError):
    """A value is invalid for a job. ``constraint`` names the violated database constraint, if any."""

    def __init__(self, message: str, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class InvalidFilterError(InvalidJobError):
    """A filter, a limit or a range for a list or a count is invalid."""


class InvalidCursorError(InvalidFilterError):
    """The cursor does not belong to a page of the same filter."""


class CorruptJobError(GoQueueError):
    """A stored row can't be read as a job; ``job_id`` names it. Its payload is unreadable, or a later release added its
    status.

    Claims and pages do not raise it. A claim makes a job with an unreadable payload dead; a page lists the job in
    ``unreadable``.
    """

    def __init__(self, message: str, *, job_id: UUID) -> None:
        super().__init__(message)
        self.job_id = job_id


class DuplicateJobError(GoQueueError):
    """A job with this id or idempotency key exists already, or an unfinished job with this unique key.

    ``job_id`` is the id of that job. ``idempotency_key`` or ``unique_key`` is the key in conflict; both are None if
    the ids conflict.

    ``job_id`` is None if this login can't see that job (another producer's). It is also None for a change that lost a
    race for the key, and for `replace_pending_job` with another job's id.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: UUID | None,
        idempotency_key: str | None = None,
        unique_key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.idempotency_key = idempotency_key
        self.unique_key = unique_key


class JobNotFoundError(GoQueueError, LookupError):
    """No job has this id or idempotency key."""


class JobStateError(GoQueueError):
    """The job's status, or a row of another table that refers to it, does not allow the change. Nothing was changed."""


class LeaseLostError(GoQueueError):
    """The caller no longer holds these jobs (``job_ids``): a lease expired, or the job was cancelled or deleted.

    ``leases`` has the pairs (id, token) in the same order: a job can be lost under one lease and held under a newer
    one of the same call.

    Stop working on them. They were not changed; the call's other jobs were. If the first call was committed, repeating
    it raises this error too. Completions are the exception: they succeed again.
    """

    def __init__(self, message: str, *, job_ids: Sequence[UUID], leases: Sequence[tuple[UUID, int]] = ()) -> None:
        super().__init__(message)
        self.job_ids = tuple(job_ids)
        self.leases = tuple(leases)


class WorkerError(GoQueueError):
    """A worker was created or run incorrectly: without a handler, with two for a job type, or with the wrong store."""


class StorageError(GoQueueError):
    """The database rejected a statement, or the store was used incorrectly. The driver's error is the cause."""


class ConnectionRejectedError(StorageError):
    """The server, its pooler or the driver rejected the connection: a wrong password, a missing database, failed TLS.

    Retries fail until the settings or the server's configuration are corrected.
    """


class StorageUnavailableError(StorageError):
    """The database is unreachable, slow, full, out of connections or read-only, or its schema has just changed.

    The statement changed nothing: repeat the call after a pause. Earlier batches of the call stay committed. In your
    own transaction, repeat the whole transaction. The subclass `OutcomeUnknownError` differs.
    """

    can_retry = True


class LockTimeoutError(StorageUnavailableError):
    """Another transaction held a lock, on one of the call's jobs or on the table, for longer than ``lock_timeout``."""


class OutcomeUnknownError(StorageUnavailableError):
    """A statement was sent and may have been committed: its reply was lost, or a standby did not confirm the commit.

    ``operation`` is the query's name in sql/. ``job_ids`` are the call's jobs, if known: from its arguments and from
    earlier replies. ``worker_id`` is the given worker, or None. Pass ``transaction_id`` to `get_transaction_status`; it
    is None if only the lost reply had it.

    ``is_committed`` is True if the server committed, but stopped waiting for its synchronous standby: the change is
    visible, and a failover can lose it. It is False if nothing is known.

    "Repeating" in each method's docstring describes the effect of a second call.
    """

    can_retry = False  # Whether a retry is safe depends on the method.

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        job_ids: Iterable[UUID] = (),
        worker_id: str | None = None,
        transaction_id: str | None = None,
        is_committed: bool = False,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.job_ids = tuple(job_ids)
        self.worker_id = worker_id
        self.transaction_id = transaction_id
        self.is_committed = is_committed


class TransactionConflictError(StorageError):
    """A deadlock or a serialization failure: roll back, then run the whole transaction again."""

    can_retry = True


class SchemaError(StorageError):
    """The database lacks goqueue's tables, has another version of them, or the role lacks rights on them."""
