"""Translation of psycopg's exceptions into goqueue's. No other module translates them."""

import re
import socket
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from goqueue.errors import (
    ConnectionRejectedError,
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    JobStateError,
    LockTimeoutError,
    OutcomeUnknownError,
    SchemaError,
    StorageError,
    StorageUnavailableError,
    TransactionConflictError,
)
from goqueue.schemas import DEFAULT_SCHEMA, is_schema

# Messages for violations of the table's CHECK constraints.
_RULES = {
    "jobs_queue_length": "queue must have 1 to 255 characters",
    "jobs_job_type_length": "job_type must have 1 to 255 characters",
    "jobs_idempotency_key_length": "idempotency_key must have 1 to 255 characters",
    "jobs_unique_key_length": "unique_key must have 1 to 255 characters",
    "jobs_locked_by_length": "locked_by must have 1 to 255 characters",
    "jobs_max_attempts_range": "max_attempts must be from 1 to 10,000",
    "jobs_attempts_range": "attempts must be from 0 to max_attempts",
    "jobs_pending_has_attempt": "a pending job has an attempt left: attempts must be less than max_attempts",
    "jobs_lease_is_running": "only a running job has a lease",
    "jobs_lease_token_range": "lease_token must be from 0 to 4,611,686,018,427,387,903",
    "jobs_running_is_locked": "a running job has a holder (locked_by), and no other job has one",
    "jobs_finished_has_time": "a finished job has a finish time, and no other job has one",
}

#: The settings of the URLs, for `naming`.
URL, READ_URL, LISTEN_URL = (f"GOQUEUE_DATABASE_{name}" for name in ("URL", "READ_URL", "LISTEN_URL"))
_ROLES = {READ_URL: "the standby", LISTEN_URL: "the listener's connection"}

_NO_SLOT = "close idle ones, use smaller pools (GOQUEUE_DATABASE_POOL_MAX_SIZE), or raise the limit"

# Messages of the server, a pooler, libpq or psycopg that a retry can't cure, each with advice. They are matched as
# text, because libpq returns no error code for a failed connection.
_REJECTIONS = {
    r"authentication failed|no password supplied|auth(?:entication)? method": (
        "correct the user or the password (GOQUEUE_DATABASE_URL, PGUSER, PGPASSWORD, the password file), or "
        "pg_hba.conf on the server"
    ),
    r"pg_hba\.conf|login rejected|valid client certificate|SSL required": (
        "let pg_hba.conf on the server (or the pooler's) admit this user, database, address and encryption, or connect "
        "as it requires (sslmode in the URL)"
    ),
    r'role "[^"]*" (?:does not exist|is not permitted to log in)|no such user|no PostgreSQL user name': (
        "correct the user in the URL, or let a DBA create the role with LOGIN"
    ),
    r'database "[^"]*" does not exist|no such database|does not allow connections': (
        "correct the database in the URL, or let a DBA create it and run `goqueue migrate`"
    ),
    r"permission denied for database": "let a DBA grant the role CONNECT on the database",
    r"SSL error: (?!unexpected eof)|does not support SSL|does not match host name|[Cc]ertificate|private key|"
    r"does not support GSSAPI|GSSAPI encryption required|channel binding|response to (?:SSL|GSSAPI) negotiation": (
        "correct sslmode, sslrootcert, sslcert and sslkey in the URL, or TLS on the server (a server other than "
        "PostgreSQL also answers like this)"
    ),
    r"unsupported startup parameter": (
        "set the session's settings on the server, and put the line `ignore_startup_parameters = options` into "
        "pgbouncer.ini, or `?options=` at the URL's end to send none (see docs/pgbouncer.md)"
    ),
    r"unrecognized configuration parameter|invalid value for parameter|invalid command-line argument|requires a value|"
    r"permission denied to set parameter": "correct `options` in the URL, the libpq service or PGOPTIONS",
    r"unsupported frontend protocol|protocol version|expected authentication request|bouncer config error": (
        "no PostgreSQL server of a supported version answers there: correct host and port"
    ),
    r"invalid (?:integer value|port number|connection option|\S+ value)|could not match \d+|is too long|service file|"
    r"definition of service|Permission denied": "correct the URL (GOQUEUE_DATABASE_URL) or the PG* variables",
}
_CONNECTING = re.compile(
    r"connection failed: |connection is bad: |failed to resolve host |could not match |all attempts failed: "
)
_ATTEMPT = re.compile(r"- host: (\S+), port: (\S+), hostaddr: (\S+): (.*?)(?= - host: |$)")
# Errors for a name that does not exist. EAI_AGAIN means that the resolver is unavailable.
_UNKNOWN_HOST = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


def _migration(said: str) -> str:
    """Return the command that migrates the schema that an error names: its own name, or before one of its objects."""
    found = re.search(
        r'\b(\w+)\.(?:jobs|job_failures|paused_queues)\b|(?:function |type ")(\w+)\.|schema "(\w+)"', said
    )
    name = found and (found[1] or found[2] or found[3])
    if not name or name == DEFAULT_SCHEMA or not is_schema(name):
        return "`goqueue migrate` (or `pgmigrate migrate`)"
    return f"`goqueue migrate --schema {name}`"


def translate(  # noqa: C901, PLR0911, PLR0912 - a table, in order
    error: psycopg.Error, *, reconnecting: bool = False
) -> GoQueueError:
    """Return the goqueue error for ``error``; raise it ``from error``.

    ``reconnecting``: the same settings have connected before.
    """
    said = _said(error)
    constraint = error.diag.constraint_name
    sqlstate = error.sqlstate or ""
    if advice := _rejection(error, said, reconnecting=reconnecting):
        return ConnectionRejectedError(f"the connection was rejected: {said}; {advice}")
    match error:
        case PoolClosed():
            return StorageError(f"the store is closed ({said}); open it first, and close it last")
        case PoolTimeout() | TooManyRequests():
            return StorageUnavailableError(
                f"no database connection: {said}; the server is unreachable, or all connections are in use "
                "(GOQUEUE_DATABASE_POOL_MAX_SIZE, GOQUEUE_DATABASE_POOL_TIMEOUT)"
            )
        case pg.UniqueViolation():
            # Only after a race, or for an id in replace_pending_job: the statements check before they write.
            if constraint == "jobs_unique_key_idx":
                return DuplicateJobError(
                    f"another session added a job with this unique key at the same time ({constraint}); nothing was "
                    "changed: call again",
                    job_id=None,
                )
            return DuplicateJobError(f"another job has this idempotency key or id ({constraint})", job_id=None)
        case pg.CheckViolation():
            return InvalidJobError(_RULES.get(constraint or "", said), constraint=constraint)
        case pg.ForeignKeyViolation() | pg.RestrictViolation():
            return JobStateError(
                f"another table refers to the job: {said}; delete or change its rows first, or declare the foreign key "
                "with ON DELETE CASCADE or SET NULL; nothing was changed"
            )
        case pg.NotNullViolation():
            return InvalidJobError(f"{error.diag.column_name} can't be empty", constraint=constraint)
        case pg.QueryCanceled():
            return StorageUnavailableError(
                f"the statement was stopped: {said} (GOQUEUE_DATABASE_STATEMENT_TIMEOUT sets the limit)"
            )
        case pg.LockNotAvailable():
            return LockTimeoutError(
                f"could not obtain a lock in time: {said}; another transaction holds it "
                "(GOQUEUE_DATABASE_LOCK_TIMEOUT sets the limit)"
            )
        case pg.TooManyConnections():
            return StorageUnavailableError(f"the server has no connection left: {said}; {_NO_SLOT}")
        case pg.DiskFull():
            return StorageUnavailableError(f"the server's disk is full: {said}; free space there")
        case psycopg.OperationalError() if sqlstate.startswith("53"):
            return StorageUnavailableError(
                f"a resource of the server is exhausted: {said}; retry when it is less busy, or raise its limits"
            )
        case psycopg.OperationalError() if sqlstate.startswith("58"):
            return StorageError(f"the server had a file or system error: {said}; see the server's log")
        case pg.SerializationFailure() | pg.DeadlockDetected():
            return TransactionConflictError(f"{said}; roll back and run the whole transaction again")
        case pg.FeatureNotSupported() if is_stale(error):
            return StorageUnavailableError(
                f"the tables were changed under an open connection: {said}; call again (on your own connection, "
                "after `DEALLOCATE ALL` or on a new one)"
            )
        case pg.ReadOnlySqlTransaction():
            return StorageUnavailableError(
                f"the session is read-only: {said}; the server is a standby (add `target_session_attrs=read-write` to "
                "the URL, with the names of all servers), or default_transaction_read_only is on (`goqueue check` "
                "names the roles), or the caller's transaction is read-only"
            )
        case (
            pg.UndefinedTable() | pg.InvalidSchemaName() | pg.UndefinedColumn() | pg.UndefinedFunction()
            | pg.UndefinedObject() | pg.FeatureNotSupported()
        ):  # fmt: skip
            return SchemaError(f"{said}; run {_migration(said)} on this database, with this version's migrations")
        case pg.InsufficientPrivilege():
            return SchemaError(
                f"{said}; grant the login a role with this right (see Roles in migrations/README.md), "
                "or connect as another login"
            )
        case pg.IdleInTransactionSessionTimeout():
            return StorageUnavailableError(
                f"the transaction was idle for too long: {said} "
                "(GOQUEUE_DATABASE_IDLE_IN_TRANSACTION_TIMEOUT sets the limit)"
            )
        case pg.InFailedSqlTransaction():
            return StorageError(f"{said}; an earlier statement in it failed: roll back first")
        case pg.InvalidSqlStatementName() | pg.DuplicatePreparedStatement():
            return StorageError(
                f"{said}; a pooler runs one connection's statements in several sessions: disable prepared statements "
                "(GOQUEUE_DATABASE_PREPARE_THRESHOLD=none; on your own connection, prepare_threshold=None)"
            )
        case pg.UntranslatableCharacter() | pg.CharacterNotInRepertoire():
            return InvalidJobError(
                f"a text can't be encoded for the connection or the database: {said}; use UTF8 for both"
            )
        case psycopg.DataError() | pg.ProgramLimitExceeded():
            return InvalidJobError(f"a value can't be stored: {said}")
        case psycopg.InterfaceError():
            return StorageError(f"the database driver can't be used this way: {said}")
        case pg.CannotConnectNow():
            return StorageUnavailableError(f"the server is not accepting connections now: {said}; call again")
        case psycopg.OperationalError() if sqlstate.startswith("57"):
            return StorageUnavailableError(f"the server ended the session: {said}; call again")
        case psycopg.OperationalError() if sqlstate and not sqlstate.startswith("08"):
            return StorageError(f"the database rejected the statement: {said}")
        case psycopg.OperationalError() if re.search(r"too many (?:clients|connections)|connection slots", said):
            return StorageUnavailableError(f"the server has no connection left: {said}; {_NO_SLOT}")
        case psycopg.OperationalError() if "the database system is" in said:
            return StorageUnavailableError(f"the server is not accepting connections now: {said}; call again")
        case psycopg.OperationalError():
            return StorageUnavailableError(f"the database can't be reached, or the connection was lost: {said}")
        case _:
            return StorageError(f"the database rejected the statement: {said}")


def naming(error: GoQueueError, variable: str) -> GoQueueError:
    """Add the setting of the URL to the error's message, unless it is the setting ``url``. Return the error."""
    if role := _ROLES.get(variable):
        said = str(error).replace(URL, variable)
        if isinstance(error, SchemaError) and variable == READ_URL:
            said += "; a standby has the tables of its primary, so this may be another database"
        error.args = (f"{role} ({variable}): {said}",)
    return error


def _rejection(error: psycopg.Error, said: str, *, reconnecting: bool) -> str | None:
    """Return the advice for a connection error that a retry can't cure; None if a retry may succeed."""
    sqlstate = error.sqlstate or ""
    if sqlstate[:2] in ("28", "3D"):
        return _advice(said, reconnecting=reconnecting) or "correct user, password and database in the URL"
    if sqlstate[:2] != "08" and (sqlstate or not _CONNECTING.match(said)):
        return None
    # One rejected address rejects its host. With several hosts, a retry is useless only if all are rejected.
    hosts: dict[tuple[str, str], str | None] = {}
    for host, port, address, why in _ATTEMPT.findall(said) or [("", "", "", said)]:
        name = (address if host == "None" else host, port)
        hosts[name] = hosts.get(name) or _advice(why, reconnecting=reconnecting)
    return next(iter(hosts.values())) if all(hosts.values()) else None


def _advice(said: str, *, reconnecting: bool) -> str | None:
    if resolved := re.search(r"failed to resolve host .*\[Errno (-?\d+)\]", said):
        # A name that was resolved before may return: a container's name vanishes with the container.
        is_unknown = int(resolved[1]) in _UNKNOWN_HOST and not reconnecting
        return "no host has this name: correct it in the URL (GOQUEUE_DATABASE_URL, PGHOST)" if is_unknown else None
    return next((advice for pattern, advice in _REJECTIONS.items() if re.search(pattern, said)), None)


def is_nobody_here(error: GoQueueError) -> bool:
    """Return True if the address is this machine's and nothing listens there."""
    said = str(error.__cause__)
    local = re.search(r'on socket "|at "(?:127\.[\d.]+|::1|localhost)"|hostaddr: \'(?:127\.|::1)', said)
    return bool(local) and "Is the server running" in said


# --- unknown outcomes -----------------------------------------------------------------------------------------------

# psycopg's messages for a statement that was not sent completely: the server never runs it.
_NOT_SENT = ("sending ", "flushing failed", "the connection is closed")
# pgbouncer's messages for a statement that it had no server for.
_NOT_FORWARDED = re.compile(r"query_wait_timeout|login|cannot connect|no such |no more connections|authentication")


class StandbyWatch:
    """Counts a connection's commits whose wait for a synchronous standby ended early.

    The server reports these as success, with a warning. The warning's text depends on lc_messages; its function name
    doesn't.
    """

    def __init__(self) -> None:
        self.unconfirmed = 0

    def __call__(self, notice: psycopg.errors.Diagnostic) -> None:
        """Count a notice of the server if it is such a warning."""
        if notice.source_function == "SyncRepWaitForLSN":
            self.unconfirmed += 1

    @classmethod
    def of(cls, connection: Any) -> "StandbyWatch":
        """Return the connection's own watch, adding it the first time."""
        watch: StandbyWatch | None = getattr(connection, "goqueue_watch", None)
        if watch is None:
            watch = connection.goqueue_watch = cls()
            connection.add_notice_handler(watch)
        return watch


def is_unanswered(error: BaseException, *, at_commit: bool = False) -> bool:
    """Return True if a committing statement was sent completely, and ``error`` does not report a rollback.

    ``at_commit``: the statement was COMMIT. If the session ended there, the commit may have succeeded.
    """
    if not isinstance(error, psycopg.Error):
        return False
    if (sqlstate := error.diag.sqlstate or error.sqlstate) is None:
        return isinstance(error, psycopg.OperationalError) and not str(error).startswith(_NOT_SENT)
    if sqlstate.startswith("08") and _NOT_FORWARDED.search(_said(error)):
        return False
    severity = error.diag.severity_nonlocalized or error.diag.severity
    # A pooler reports 08P01 when it loses the server; a PANIC can follow the commit.
    return severity == "PANIC" or (severity == "FATAL" and (at_commit or sqlstate[:2] == "08" or sqlstate == "57P02"))


def unanswered(operation: str, job_ids: Iterable[UUID], *, cause: BaseException, **known: Any) -> OutcomeUnknownError:
    """Return the error for a statement whose reply was lost because of ``cause``."""
    said = _said(cause) if isinstance(cause, psycopg.Error) else str(cause)
    do = "look up the jobs (`job_ids`), or repeat the call as the method's docstring says"
    if known.get("transaction_id"):
        do = f"call get_transaction_status({known['transaction_id']!r}), {do}"
    return OutcomeUnknownError(
        f"{operation} was sent and its reply was lost: {said}; whether it was committed is unknown: {do}{_held(known)}",
        operation=operation,
        job_ids=job_ids,
        **known,
    )


def unconfirmed(
    operation: str, job_ids: Iterable[UUID], *, cause: BaseException | None = None, **known: Any
) -> OutcomeUnknownError:
    """Return the error for a commit that no synchronous standby confirmed. ``cause`` ended the session."""
    said = f" ({_said(cause)})" if isinstance(cause, psycopg.Error) else ""
    return OutcomeUnknownError(
        f"{operation} is committed on this server, but its wait for a synchronous standby ended early{said}: a "
        "failover can lose it. The jobs (`job_ids`) are changed: check them, and check again after a failover"
        f"{_held(known)}",
        operation=operation,
        job_ids=job_ids,
        is_committed=True,
        **known,
    )


def _held(known: dict[str, Any]) -> str:
    """Return where to find the jobs of a claim."""
    worker_id = known.get("worker_id")
    return "" if worker_id is None else f". The claimed jobs are held by {worker_id!r} until their leases expire"


def is_stale(error: psycopg.Error) -> bool:
    """Return True if a prepared statement's result type is outdated because a table or type has changed."""
    return error.diag.source_function == "RevalidateCachedQuery"


def duplicate_of(
    job_id: UUID | None, *, idempotency_key: str | None = None, unique_key: str | None = None
) -> DuplicateJobError:
    """Return the error for a job that conflicts with ``job_id``, by the given key or else by its id."""
    what = "this id"
    if idempotency_key is not None:
        what = f"the idempotency key {idempotency_key!r}"
    elif unique_key is not None:
        what = f"the unique key {unique_key!r} and has not finished"
    return DuplicateJobError(
        f"job {job_id} already has {what}; use get_or_create_job to get that job",
        job_id=job_id,
        idempotency_key=idempotency_key,
        unique_key=unique_key,
    )


def duplicate_unseen() -> DuplicateJobError:
    """Return the error for a new job that was not added although no conflicting job is visible."""
    return DuplicateJobError(
        "its id or one of its keys belongs to a job that this login can't see (another producer's: give each "
        "application its own key prefix), or a trigger or rule suppresses the insert; nothing was added",
        job_id=None,
    )


def _said(error: psycopg.Error) -> str:
    """Return the server's or the driver's message, on one line."""
    primary = error.diag.message_primary or str(error) or type(error).__name__
    return " ".join(primary.split())
