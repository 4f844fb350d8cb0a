"""Errors that goqueue raises, under one base.

Each message says what was wrong, what was expected and what to do. The driver's own exception, where there was one, is
the ``__cause__``; passwords never appear.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID


class GoQueueError(Exception):
    """The base of all errors that goqueue raises. They can be pickled."""

    #: True if the same call can succeed after a pause, and the failed one changed nothing.
    can_retry: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[GoQueueError], args: tuple[Any, ...], state: dict[str, Any]) -> GoQueueError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigError(GoQueueError):
    """The configuration is invalid. ``problems`` lists every fault, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        count = len(self.problems)
        heading = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class InvalidJobError(GoQueueError, ValueError):
    """A value is invalid for a job. ``constraint`` names the database's constraint, if one was violated."""

    def __init__(self, message: str, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class InvalidFilterError(InvalidJobError):
    """A filter, a limit or a range for a list or a count is invalid."""


class InvalidCursorError(InvalidFilterError):
    """The cursor does not come from a page of the same filter."""


class CorruptJobError(GoQueueError):
    """A stored row can't be read as a job; ``job_id`` names it. Its payload can't be read, or a later release has added
    its status.

    Claims and pages do not raise it: a claim makes a job with an unreadable payload dead, a page names the job in
    ``unreadable``.
    """

    def __init__(self, message: str, *, job_id: UUID) -> None:
        super().__init__(message)
        self.job_id = job_id


class DuplicateJobError(GoQueueError):
    """A job with this idempotency key or id exists already; ``job_id`` is its id.

    ``job_id`` is None if this login has no right to see that job (another producer's). It is also None for an update
    that lost a race for the key, and for `replace_pending_job` with the id of another job.
    """

    def __init__(self, message: str, *, job_id: UUID | None, idempotency_key: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.idempotency_key = idempotency_key


class JobNotFoundError(GoQueueError, LookupError):
    """No job has this id or idempotency key."""


class JobStateError(GoQueueError):
    """The job's status, or a row of another table that refers to it, does not allow the change. Nothing was changed."""


class LeaseLostError(GoQueueError):
    """The caller no longer holds these jobs (``job_ids``): a lease expired, or the job was cancelled or deleted.

    Stop working on them. They were not changed; the other jobs of the call were. A repeated call raises it too if the
    first one was committed. Completions are the exception: they succeed again.
    """

    def __init__(self, message: str, *, job_ids: Sequence[UUID]) -> None:
        super().__init__(message)
        self.job_ids = tuple(job_ids)


class StorageError(GoQueueError):
    """The database rejected a statement, or the store can't be used this way. The driver's error is the cause."""


class ConnectionRejectedError(StorageError):
    """The server, its pooler or the driver rejects the connection: a wrong password, a missing database, refused TLS.

    Another attempt fails too, until the settings or the server's are corrected.
    """


class StorageUnavailableError(StorageError):
    """The database is unreachable, slow, full, out of connections or read only, or its schema has just changed.

    The statement changed nothing: make the same call again, after a pause. Earlier batches of the call stay. In a
    transaction of the caller's own, run the whole transaction again. The subclass `OutcomeUnknownError` differs.
    """

    can_retry = True


class OutcomeUnknownError(StorageUnavailableError):
    """A statement was sent and perhaps committed: its reply was lost, or a standby did not confirm the commit.

    ``operation`` is the query's name, as in sql/. ``job_ids`` are the call's jobs, if they are known: those given, and
    those of a reply. ``worker_id`` is the one given, or None. ``transaction_id`` is for `get_transaction_status`; it is
    None if only the lost reply had it.

    ``is_committed`` is True if the server has committed and no longer waits for its synchronous standby: the change is
    in force, and a failover can lose it. It is False if nothing is known.

    "Repeating" in each method's docstring is the effect of a second call.
    """

    can_retry = False  # It depends on the method.

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
    """The database lacks goqueue's tables, has another version of them, or the role has no right to use them."""
