"""Every error goqueue raises, under one base. Imports nothing of goqueue.

Each message says what was wrong, what was expected and what to do. The driver's own exception,
where there was one, is the ``__cause__``; passwords never appear.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from uuid import UUID


class GoQueueError(Exception):
    """The base of every error that goqueue raises. All can be pickled, to cross processes."""

    #: Whether to make the same call again, after a pause: nothing was changed, and the cause may pass by itself.
    can_retry: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[GoQueueError], args: tuple[Any, ...], state: dict[str, Any]) -> GoQueueError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigError(GoQueueError):
    """The configuration can't be used. ``problems`` lists all that is wrong, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        count = len(self.problems)
        heading = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class InvalidJobError(GoQueueError, ValueError):
    """A value given for a job can't be stored or looked for. ``constraint``: the database's rule, if it was one."""

    def __init__(self, message: str, *, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class InvalidFilterError(InvalidJobError):
    """A filter, a limit or a range given to a list or a count can't be used."""


class InvalidCursorError(InvalidFilterError):
    """A cursor that no page of this very filter has handed out."""


class CorruptJobError(GoQueueError):
    """A stored row can't be read as a job; ``job_id`` names it. A claim sets it aside as dead, a page names it in
    ``unreadable``: neither raises this, and the jobs beside it are not affected."""

    def __init__(self, message: str, *, job_id: UUID) -> None:
        super().__init__(message)
        self.job_id = job_id


class DuplicateJobError(GoQueueError):
    """A job with this idempotency key (or id) exists already; ``job_id`` is the existing job's id.

    ``job_id`` is None when this login may not see that job (it is another producer's), and where only the constraint
    tells: an update that lost a race for the key, and `replace_pending_job` with the id of another job.
    """

    def __init__(self, message: str, *, job_id: UUID | None, idempotency_key: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.idempotency_key = idempotency_key


class JobNotFoundError(GoQueueError, LookupError):
    """No job has this id or idempotency key."""


class JobStateError(GoQueueError):
    """The job's present status, or a row of another table that refers to it, doesn't allow the change; nothing was
    changed."""


class LeaseLostError(GoQueueError):
    """The caller doesn't hold these jobs any more (``job_ids``): a lease expired, or the job was cancelled or deleted.

    Stop working on them. Nothing was changed in them; the other jobs of the same call were changed as asked. A second
    try of a call whose first one was committed raises it too, but for completions: those succeed again.
    """

    def __init__(self, message: str, *, job_ids: Sequence[UUID]) -> None:
        super().__init__(message)
        self.job_ids = tuple(job_ids)


class StorageError(GoQueueError):
    """The database refused a statement, or the store can't be used in this way; the driver's error is the cause."""


class ConnectionRejectedError(StorageError):
    """The server, its pooler or the driver rejects the connection: a wrong password, a missing database, refused TLS.

    Trying again does not help until the settings, or the server's, are corrected.
    """


class StorageUnavailableError(StorageError):
    """The database can't be reached, did not answer in time, is read only, or was changed under a prepared statement.

    The statement changed nothing: make the same call again, after a pause. Earlier batches of the call stay. In a
    transaction of the caller's own, run the whole transaction again. `OutcomeUnknownError`, a kind of it, differs.
    """

    can_retry = True


class OutcomeUnknownError(StorageUnavailableError):
    """A statement was sent, and may have been committed: its reply was lost, or a standby did not confirm the commit.

    ``operation`` is the query's name, as in sql/. ``job_ids`` names the call's jobs, as far as they are known:
    those given, and those that a reply named. ``worker_id`` is the one given, or None. ``transaction_id`` is for
    `get_transaction_status`; None where only the lost reply would have named it.

    ``is_committed`` is True where the server has committed, and stopped waiting for its synchronous standby: the
    change is in force now, and a failover can lose it. It is False where nothing is known.

    The docstring of each method says, under "Repeating:", what a second call does.
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
    """The database lacks goqueue's tables, has another version of them, or the role may not use them."""
