"""Scratch databases: created, migrated, filled with jobs, and dropped."""

import logging
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.conninfo import Secret, connect
from goqueue.errors import GoQueueError, StorageError
from goqueue.migrate import migrate
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.store import PostgresStorage
from goqueue.safelog import log
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.testing.embedded import EmbeddedServer

_log = logging.getLogger("goqueue")
SCRATCH = "^goqueue_explain_[0-9a-f]{12}$"
"""The names of scratch databases."""
REFUSALS = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
"""Server errors when a database can't be created."""
_CHUNK = 50_000  # jobs per statement, to show progress
_IN_MEMORY = 2_000_000  # rows that fit into the embedded server's memory
#: The parts of each scenario: a share of the rows, and the arguments of add_jobs.
SCENARIOS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "mixed": [
        (0.9, {"finished": 0.8, "later": 0.5, "priorities": 3, "running": True}),
        (0.1, {"later": 1.0, "priority": -5}),
    ],
    "backlog": [(1.0, {"finished": 0.1, "priorities": 3, "running": True})],
    "finished": [(1.0, {"finished": 0.998, "running": True})],
    "scheduled": [
        (0.1, {"finished": 0.5, "later": 0.5, "running": True}),
        (0.9, {"later": 1.0, "priority": -5}),
    ],
    "queues": [(1.0, {"finished": 0.8, "later": 0.5, "priorities": 3, "running": True, "queue_count": 10_000})],
}
Report = Callable[[str, float], None]
"""Receives a description of the current step, and the share of all work that is done (0 to 1)."""


def _silent(_text: str, _done: float) -> None:
    pass


class ExplainError(GoQueueError):
    """A query, a parameter or a table can't be explained or filled as requested."""


@contextmanager
def scratch_database(
    conninfo: str | None, rows: int, schema: str = DEFAULT_SCHEMA
) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to a migrated, empty scratch database. Drop it at the end, even after Ctrl-C or a SIGTERM.

    ``conninfo`` names a server on which the role can create databases (otherwise one of REFUSALS is raised). None means
    an embedded server with room for ``rows`` jobs.
    """
    with ExitStack() as stack:
        stack.enter_context(_on_signals(signal.default_int_handler))
        if conninfo is None:
            conninfo = stack.enter_context(EmbeddedServer(durable=rows > _IN_MEMORY)).url()
        conninfo = Secret(conninfo)
        scratch = stack.enter_context(_made_database(conninfo))
        migrate(scratch, schema=schema)
        connection = stack.enter_context(connect(scratch))
        # Override the role's settings: building an index can take long.
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        # After a kill -9 the session ends within a second instead of with the statement: see `drop_abandoned`.
        with suppress(psycopg.Error):  # a server on Windows has no such check
            connection.execute("SET client_connection_check_interval = '1s'")
        yield connection


@contextmanager
def _made_database(conninfo: Secret) -> Iterator[Secret]:
    name = f"goqueue_explain_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    # This connection stays open: its session holds the name, so that no other run considers the database abandoned.
    with connect(conninfo) as connection:
        scratch = _conninfo_of(connection, name)
        fast = sql.SQL(" STRATEGY WAL_LOG" if connection.info.server_version >= 150000 else "")
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'{}")
        drop_abandoned(connection, SCRATCH)
        admin_queries().hold_database(connection, name=name)
        is_refused = False
        try:
            try:
                connection.execute(create.format(identifier, fast))
            except REFUSALS:
                is_refused = True  # nothing to drop
                raise
            yield scratch
        finally:
            if not is_refused:
                with _on_signals(signal.SIG_IGN):  # a second Ctrl-C must not leave the database behind
                    _drop(conninfo, identifier)


def _conninfo_of(connection: psycopg.Connection[Any], database: str) -> Secret:
    """Return the parameters for another database of the connection's server, from any source."""
    info = connection.info
    options: dict[str, Any] = conninfo_to_dict(info.dsn, password=info.password or None, dbname=database)
    options.pop("service", None)
    return Secret(make_conninfo(**options))


def drop_abandoned(connection: psycopg.Connection[Any], pattern: str) -> list[str]:
    """Drop this role's scratch databases that killed processes left, and return their names.

    ``pattern`` is a regular expression for the whole name. A database in use is left alone: one held by a session
    (query hold_database), or with another session in it. So is one that can't be dropped. Query:
    list_abandoned_databases.
    """
    dropped = []
    with suppress(psycopg.Error):
        for (name,) in admin_queries().list_abandoned_databases(connection, pattern=pattern):
            # Without FORCE: the server waits five seconds for its sessions to end, and then raises an error.
            with suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
                dropped.append(name)
                log(_log, logging.INFO, "dropped %s, which a killed process had left", name)
    return dropped


def _drop(conninfo: Secret, identifier: sql.Identifier) -> None:
    drop = sql.SQL("DROP DATABASE IF EXISTS {}").format(identifier)
    try:
        with connect(conninfo) as connection:
            try:
                connection.execute(drop + sql.SQL(" WITH (FORCE)"))
            except psycopg.errors.InsufficientPrivilege:
                # FORCE may not end an autovacuum worker for this role. Without it the server does so itself, and waits
                # five seconds for our own sessions.
                connection.execute(drop)
    except psycopg.Error as error:
        said = f"the scratch database {identifier.as_string()} could not be dropped; drop it manually: {error}"
        raise StorageError(said) from error


@contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and SIGHUP with ``handler`` inside the block. Only the main thread can do so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def seed(
    connection: psycopg.Connection[Any],
    rows: int,
    scenario: str,
    report: Report = _silent,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Fill the empty tables of a scratch database with ``rows`` jobs, as ``scenario`` (of SCENARIOS) defines them."""
    parts = [(round(rows * share), options) for share, options in SCENARIOS[scenario]]
    with filling(connection, report, schema):
        added = 0
        for part, options in parts:
            rest = {name: value for name, value in options.items() if name != "running"}
            if "running" in options:
                rest["running_every"] = max(rows // 500, 20)
            for chunk in add_jobs(connection, part, chunk=_CHUNK, schema=schema, **rest):
                added += chunk
                report("adding jobs", 0.6 * added / rows)


@contextmanager
def filling(
    connection: psycopg.Connection[Any], report: Report = _silent, schema: str = DEFAULT_SCHEMA
) -> Iterator[None]:
    """Drop the indexes before `add_jobs` and rebuild them after it. Raises `ExplainError` if there are jobs."""
    queries = admin_queries(schema)
    is_empty, *_ = queries.seed_session(connection)
    if not is_empty:
        raise ExplainError(f"{schema}.jobs has rows, expected an empty scratch database")
    queries.seed_jobs_table(connection)
    queries.seed_failures_table(connection)
    indexes = list(queries.index_statements(connection))
    for drop, _ in indexes:
        connection.execute(drop.encode())
    yield
    for number, (_, create) in enumerate(indexes):
        report("building the indexes", 0.6 + 0.3 * number / len(indexes))
        connection.execute(create.encode())
    report("recording failures", 0.9)
    queries.seed_failures(connection)
    # resume_queue's example: no example value finds a row without it.
    PostgresStorage.bound_to(connection, schema=schema).pause_queue(
        "paused", until=datetime.now(UTC) + timedelta(days=1)
    )
    report("vacuum and analyze", 0.92)
    queries.vacuum_jobs(connection)
    queries.vacuum_failures(connection)
    report("done", 1.0)


def add_jobs(
    connection: psycopg.Connection[Any],
    rows: int,
    *,
    queue: str | None = None,
    queue_count: int = 100,
    finished: float = 0.0,
    later: float = 0.0,
    priority: int = 0,
    priorities: int = 1,
    running_every: int = 2**31 - 1,
    chunk: int = 2**31 - 1,
    schema: str = DEFAULT_SCHEMA,
) -> Iterator[int]:
    """Add ``rows`` jobs. Yield the number that each statement added, at most ``chunk``. Query: seed_jobs.

    The share ``finished`` of them is finished. Of the others, the share ``later`` is not due yet.
    """
    for first in range(1, rows + 1, chunk):
        yield admin_queries(schema).seed_jobs(
            connection,
            first_number=first,
            last_number=min(first + chunk - 1, rows),
            job_rows=rows,
            queue=queue,
            queue_count=queue_count,
            finished=finished,
            later=later,
            priority=priority,
            priorities=priorities,
            running_every=running_every,
        )
