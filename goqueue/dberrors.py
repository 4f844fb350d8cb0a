"""Turns psycopg's exceptions into goqueue's: the one place that does. Imports psycopg and goqueue.errors alone."""

from uuid import UUID

import psycopg
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from goqueue.errors import (
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    SchemaError,
    StorageError,
    StorageUnavailableError,
    TransactionConflictError,
)

# The table's CHECK constraints, in the words of a caller.
_RULES = {
    "jobs_queue_length": "queue must have 1 to 255 characters",
    "jobs_job_type_length": "job_type must have 1 to 255 characters",
    "jobs_idempotency_key_length": "idempotency_key must have 1 to 255 characters",
    "jobs_locked_by_length": "locked_by must have 1 to 255 characters",
    "jobs_max_attempts_range": "max_attempts must be from 1 to 10,000",
    "jobs_attempts_range": "attempts must be from 0 to max_attempts",
    "jobs_lease_is_running": "only a running job has a lease",
    "jobs_running_is_locked": "a running job has a holder (locked_by), and no other job has one",
    "jobs_finished_has_time": "a finished job has a finish time, and no other job has one",
}


def translate(error: psycopg.Error) -> GoQueueError:  # noqa: C901, PLR0911, PLR0912 - a table, in order
    """The goqueue error that says what ``error`` means to a caller; raise it ``from error``."""
    said = _said(error)
    constraint = error.diag.constraint_name
    match error:
        case PoolClosed():
            return StorageUnavailableError(f"the store is closed ({said}); open it first, and close it last")
        case PoolTimeout() | TooManyRequests():
            return StorageUnavailableError(
                f"no database connection: {said}; the server is away, or all connections are in use "
                "(GOQUEUE_DATABASE_POOL_MAX_SIZE, GOQUEUE_DATABASE_POOL_TIMEOUT)"
            )
        case pg.UniqueViolation():
            # The statements look first: a race gets here, or an id that replace_pending_job finds taken.
            return DuplicateJobError(f"another job has this idempotency key or id ({constraint})", job_id=None)
        case pg.CheckViolation():
            return InvalidJobError(_RULES.get(constraint or "", said), constraint=constraint)
        case pg.NotNullViolation():
            return InvalidJobError(f"{error.diag.column_name} can't be empty", constraint=constraint)
        case pg.QueryCanceled():
            return StorageUnavailableError(
                f"the statement was stopped: {said} (GOQUEUE_DATABASE_STATEMENT_TIMEOUT sets how long it may take)"
            )
        case pg.LockNotAvailable():
            return StorageUnavailableError(
                f"a lock was not to be had: {said} (GOQUEUE_DATABASE_LOCK_TIMEOUT sets how long to wait)"
            )
        case pg.SerializationFailure() | pg.DeadlockDetected():
            return TransactionConflictError(f"{said}; roll back and run the whole transaction again")
        case pg.FeatureNotSupported() if is_stale(error):
            return StorageUnavailableError(
                f"the tables were changed under an open connection: {said}; call again (on a connection of your own, "
                "after `DEALLOCATE ALL` or on a new one)"
            )
        case pg.ReadOnlySqlTransaction():
            return StorageUnavailableError(
                f"nothing can be written here: {said}; the server is a standby (put `target_session_attrs=read-write` "
                "into the URL, beside the names of all servers), default_transaction_read_only is on (`goqueue check` "
                "tells for whom), or the caller's own transaction is read only"
            )
        case (
            pg.UndefinedTable() | pg.InvalidSchemaName() | pg.UndefinedColumn() | pg.UndefinedFunction()
            | pg.UndefinedObject() | pg.FeatureNotSupported()
        ):  # fmt: skip
            return SchemaError(
                f"{said}; run `goqueue migrate` (or `pgmigrate migrate`) on this database, "
                "with this version's migrations"
            )
        case pg.InsufficientPrivilege():
            return SchemaError(
                f"{said}; grant the login the role that may do this (see Roles in migrations/README.md), "
                "or connect as another"
            )
        case pg.IdleInTransactionSessionTimeout():
            return StorageUnavailableError(
                f"the transaction stood idle for too long: {said} "
                "(GOQUEUE_DATABASE_IDLE_IN_TRANSACTION_TIMEOUT sets how long it may)"
            )
        case pg.InFailedSqlTransaction():
            return StorageError(f"{said}; an earlier statement of it failed: roll back first")
        case pg.InvalidSqlStatementName() | pg.DuplicatePreparedStatement():
            return StorageError(
                f"{said}; a pooler hands the statements of one connection to several sessions: prepare none "
                "(GOQUEUE_DATABASE_PREPARE_THRESHOLD=none; on a connection of your own, prepare_threshold=None)"
            )
        case pg.UntranslatableCharacter() | pg.CharacterNotInRepertoire():
            return InvalidJobError(
                f"a text has no form in the encoding of the connection or the database: {said}; use UTF8 for both"
            )
        case psycopg.DataError() | pg.ProgramLimitExceeded():
            return InvalidJobError(f"a value can't be stored: {said}")
        case psycopg.OperationalError() if "unsupported startup parameter" in said:
            return StorageUnavailableError(
                f"the pooler refused the session's settings: {said}; set them on the server, and put the line "
                "`ignore_startup_parameters = options` into pgbouncer.ini, or `?options=` at the URL's end "
                "to send none (see the README, Behind pgbouncer)"
            )
        case psycopg.InterfaceError():
            return StorageError(f"the database's driver can't be used in this way: {said}")
        case psycopg.OperationalError():
            return StorageUnavailableError(f"the database can't be reached or went away: {said}")
        case _:
            return StorageError(f"the database refused the statement: {said}")


def is_stale(error: psycopg.Error) -> bool:
    """Whether a prepared statement's result is not what it was, because a table or type was changed since."""
    return error.diag.source_function == "RevalidateCachedQuery"


def duplicate_of(job_id: UUID | None, idempotency_key: str | None) -> DuplicateJobError:
    """The error for a new job that ``job_id`` stands in the way of; ``idempotency_key`` if they share it."""
    what = "this id" if idempotency_key is None else f"the idempotency key {idempotency_key!r}"
    return DuplicateJobError(
        f"job {job_id} has {what} already; use get_or_create_job to get it instead",
        job_id=job_id,
        idempotency_key=idempotency_key,
    )


def duplicate_unseen() -> DuplicateJobError:
    """The error for a new job that is not added, without one to be seen in its way."""
    return DuplicateJobError(
        "its id or idempotency key is taken by a job that this login may not see (another producer's: give each "
        "application a prefix of its own), or a trigger or rule suppresses the insert; nothing was added",
        job_id=None,
    )


def _said(error: psycopg.Error) -> str:
    """The server's or the driver's own words, on one line."""
    primary = error.diag.message_primary or str(error) or type(error).__name__
    return " ".join(primary.split())
