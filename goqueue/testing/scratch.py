"""Scratch databases: created, migrated, filled with jobs, and dropped."""

import logging
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.conninfo import Secret, connect
from goqueue.errors import GoQueueError, StorageError
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_queries
from goqueue.safelog import log
from goqueue.testing.embedded import EmbeddedServer

_log = logging.getLogger("goqueue")
SCRATCH = "^goqueue_explain_[0-9a-f]{12}$"
"""The names of scratch databases."""
REFUSALS = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
"""What a server says where no database can be made."""
_CHUNK = 50_000  # jobs added by one statement, so that there is progress to show
_IN_MEMORY = 2_000_000  # rows that fit where the embedded server keeps throw-away data
#: For each scenario the parts that the table is filled with: a share of the rows, and what add_jobs makes of them.
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
"""Is told what goes on, and how much of all of it is done (0 to 1)."""


def _silent(_text: str, _done: float) -> None:
    pass


class ExplainError(GoQueueError):
    """A query, a parameter or a table that can't be explained or filled as asked for."""


@contextmanager
def scratch_database(conninfo: str | None, rows: int) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a migrated, empty database of its own; it is dropped at the end, also after Ctrl-C or a SIGTERM.

    ``conninfo`` names a server whose role may make databases (one of REFUSALS else); None stands
    for an embedded server, with room for ``rows`` jobs.
    """
    with ExitStack() as stack:
        stack.enter_context(_on_signals(signal.default_int_handler))
        if conninfo is None:
            conninfo = stack.enter_context(EmbeddedServer(durable=rows > _IN_MEMORY)).url()
        conninfo = Secret(conninfo)
        scratch = stack.enter_context(_made_database(conninfo))
        migrate(scratch)
        connection = stack.enter_context(connect(scratch))
        # Whatever the role's own settings are: making an index may take its time.
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        # After a kill -9 the session ends within a second, not with the statement: see `drop_abandoned`.
        with suppress(psycopg.Error):  # a server on Windows has no such check
            connection.execute("SET client_connection_check_interval = '1s'")
        yield connection


@contextmanager
def _made_database(conninfo: Secret) -> Iterator[Secret]:
    name = f"goqueue_explain_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    # This connection stays open: its session holds the name, so that no other run takes the database for abandoned.
    with connect(conninfo) as connection:
        scratch = _conninfo_of(connection, name)
        fast = sql.SQL(" STRATEGY WAL_LOG" if connection.info.server_version >= 150000 else "")
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'{}")
        drop_abandoned(connection, SCRATCH)
        load_queries().hold_database(connection, name=name)
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
    """Another database of the connection's server, by the parameters in use, whichever service or variable they came
    from."""
    info = connection.info
    options: dict[str, Any] = conninfo_to_dict(info.dsn, password=info.password or None, dbname=database)
    options.pop("service", None)
    return Secret(make_conninfo(**options))


def drop_abandoned(connection: psycopg.Connection[Any], pattern: str) -> list[str]:
    """Drop the scratch databases of this role that a killed process has left, and return their names.

    ``pattern`` is a regular expression for the whole name. A database that a session holds (query hold_database), or
    in which somebody has a session, is left alone; so is one that can't be dropped. Query: list_abandoned_databases.
    """
    dropped = []
    with suppress(psycopg.Error):
        for (name,) in load_queries().list_abandoned_databases(connection, pattern=pattern):
            # Without FORCE: the server waits five seconds for sessions in it to end, and then refuses.
            with suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
                dropped.append(name)
                log(_log, logging.INFO, "dropped %s, which a process that was killed had left", name)
    return dropped


def _drop(conninfo: Secret, identifier: sql.Identifier) -> None:
    try:
        with connect(conninfo) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
    except psycopg.Error as error:
        said = f"the scratch database {identifier.as_string()} could not be dropped, do it by hand: {error}"
        raise StorageError(said) from error


@contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    """What Ctrl-C, a SIGTERM and a closed terminal do meanwhile; only the main thread can say so."""
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


def seed(connection: psycopg.Connection[Any], rows: int, scenario: str, report: Report = _silent) -> None:
    """Fills the empty tables of a scratch database with ``rows`` jobs, as ``scenario`` (of SCENARIOS) has it."""
    parts = [(round(rows * share), options) for share, options in SCENARIOS[scenario]]
    with filling(connection, report):
        added = 0
        for part, options in parts:
            rest = {name: value for name, value in options.items() if name != "running"}
            if "running" in options:
                rest["running_every"] = max(rows // 500, 20)
            for chunk in add_jobs(connection, part, chunk=_CHUNK, **rest):
                added += chunk
                report("adding jobs", 0.6 * added / rows)


@contextmanager
def filling(connection: psycopg.Connection[Any], report: Report = _silent) -> Iterator[None]:
    """Before and after `add_jobs`: without indexes rows are added faster. Raises `ExplainError` if there are jobs."""
    queries = load_queries()
    is_empty, *_ = queries.seed_session(connection)
    if not is_empty:
        raise ExplainError("goqueue.jobs has rows: only an empty scratch database is filled")
    queries.seed_jobs_table(connection)
    queries.seed_failures_table(connection)
    indexes = list(queries.index_statements(connection))
    for drop, _ in indexes:
        connection.execute(drop.encode())
    yield
    for number, (_, create) in enumerate(indexes):
        report("making the indexes", 0.6 + 0.3 * number / len(indexes))
        connection.execute(create.encode())
    report("recording failures", 0.9)
    queries.seed_failures(connection)
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
) -> Iterator[int]:
    """Adds ``rows`` jobs, and gives how many each statement added (at most ``chunk``). Query: seed_jobs.

    The share ``finished`` of them is, and of the others the share ``later`` is not due yet.
    """
    for first in range(1, rows + 1, chunk):
        yield load_queries().seed_jobs(
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
