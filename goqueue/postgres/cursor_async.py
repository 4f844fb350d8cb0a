"""aiosql's adapter over psycopg, its cursors, and the types of the store's queries."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

import psycopg
from aiosql.adapters.pyformat import PyFormatAdapter
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.rows import RowMaker, namedtuple_row

from goqueue.postgres.translate import StandbyWatch, is_unanswered, unanswered, unconfirmed
from goqueue.postgres.wire import (
    ADAPTERS,
    AddedRow,
    CreatedRow,
    DeletedRow,
    EndedRow,
    IdRow,
    JobRow,
    KeysRow,
    Rendered,
    Row,
    StatsRow,
    bound,
    tag_of,
    tagged,
    tolerant_rows,
)
from goqueue.safelog import record_lost, report
from goqueue.schemas import DEFAULT_SCHEMA

_TRACED = "opentelemetry.instrumentation.psycopg"
# ACTIVE means a caller's pipeline. A lost connection has none of these states.
_NO_TRANSACTION = (TransactionStatus.IDLE, TransactionStatus.ACTIVE)


class _Cursor(AsyncRawCursor[Any]):
    """Accepts parameters as ``$1``. Uses psycopg's default adapters, not the application's: a job's id is a UUID even
    if the caller registered a loader that returns text."""

    #: True once the server has run the statement, even if a tracer around it then raises.
    has_run = False

    @property
    def adapters(self) -> AdaptersMap:
        return ADAPTERS

    def forget(self) -> None:
        """Release a run's result and parameters, up to 16 MiB, which psycopg keeps until the next one."""
        if self.pgresult is not None:
            self.pgresult.clear()
        self._reset()


class _Named(_Cursor):
    """Runs inside a traced cursor's span and gives it the query's name. By default the span has only the statement's
    first word (https://github.com/open-telemetry/opentelemetry-python-contrib/issues/3714)."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        # Installed, since the connection is traced.
        from opentelemetry.instrumentation.utils import is_instrumentation_enabled  # noqa: PLC0415
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        self.has_run = False
        if is_instrumentation_enabled():  # Otherwise the current span is the caller's.
            with suppress(Exception):  # the application's own tracer
                get_current_span().update_name(tag_of(query))
        result = await super().execute(query, *args, **kwargs)
        self.has_run = True
        return result


def _cursor_type(connection: AsyncConnection[Any]) -> type[_Cursor]:
    """Return the cursor class with our parameters: a traced one if OpenTelemetry has instrumented the connection.

    The instrumentation replaces ``cursor_factory`` with its own class, derived from the connection's.
    """
    traced: Any = connection.cursor_factory
    if traced.__module__ != _TRACED or traced.__base__ not in (AsyncCursor, AsyncRawCursor):
        return _Cursor
    if "goqueue" not in vars(traced):  # Cached there: one class per connection, not per statement.
        traced.goqueue = type(traced.__name__, (traced, _Named), {})
    kind: type[_Cursor] = traced.goqueue
    return kind


class _NamedRows:
    """A row factory for the cursor of one statement: `namedtuple_row`, whose class is made once. Finding the columns'
    names again for each run takes as long as reading a row of them."""

    def __init__(self) -> None:
        self._row: Any = None

    def __call__(self, cursor: Any) -> RowMaker[Any]:
        result = cursor.pgresult
        if self._row is None or result is None or result.nfields != len(self._row._fields):
            make: Any = namedtuple_row(cursor)
            self._row = getattr(make, "__self__", None)  # None without a result
            return cast("RowMaker[Any]", make)
        return partial(tuple.__new__, self._row)


Result = TypeVar("Result")
One = Callable[..., Awaitable[Result]]
Many = Callable[..., AsyncIterator[Result]]


class AsyncQueries(Protocol):
    """The store's queries as aiosql calls them: with a connection and named parameters, grouped by result."""

    announce_listener: One[None]
    cancel_jobs: Many[IdRow]
    change_jobs: Many[IdRow]
    claim_jobs: Many[JobRow]
    complete_jobs: Many[IdRow]
    count_jobs: One[tuple[int, bool]]
    create_job: One[CreatedRow | None]
    create_jobs: Many[AddedRow]
    create_missing_jobs: Many[AddedRow]
    delete_failures: Many[object]
    delete_job: One[str | None]
    delete_jobs: Many[DeletedRow]
    estimate_dead_rows: One[int]
    fail_jobs: Many[EndedRow]
    find_duplicate_job: One[JobRow | None]
    find_duplicate_jobs: Many[KeysRow]
    find_listener_blockers: Many[tuple[int, str, str]]
    get_job: One[JobRow | None]
    get_job_by_idempotency_key: One[JobRow | None]
    get_jobs: Many[JobRow]
    get_session: One[tuple[Any, ...]]
    get_transaction_status: One[str | None]
    heartbeat_jobs: Many[IdRow]
    list_failures: Many[Row]
    list_job_types: Many[tuple[str]]
    list_jobs: Many[JobRow]
    list_workers: Many[Row]
    listen: One[int]
    listen_cancelled: One[int]
    next_job_at: One[datetime | None]
    pause_queue: One[str]
    ping: One[object]
    prune_jobs: Many[tuple[UUID, str | None]]
    queue_stats: Many[StatsRow]
    release_jobs: Many[IdRow]
    replace_pending_job: One[JobRow | None]
    rescue_jobs: Many[tuple[UUID, str]]
    reschedule_jobs: Many[IdRow]
    resume_queue: One[bool | None]
    retry_jobs: Many[IdRow]
    update_job: One[JobRow | None]
    wake_listeners: Many[object]


class AsyncAdapter:
    """aiosql's adapter for psycopg. Each statement carries its name to the server's log and statistics, and is logged.
    Rows are named tuples for any row factory of the connection. Infinite times can be read."""

    is_aio_driver = True  # async only

    def __init__(self, slow: float = 0, schema: str = DEFAULT_SCHEMA) -> None:
        """``slow``: log a statement that takes this many seconds as a warning; 0 for never. ``schema``: that of the
        statements."""
        self._slow = slow
        self._schema = schema

    def process_sql(self, query_name: str, op_type: Any, sql: str) -> str:
        """Return a statement as aiosql stores it: its parameters as ``%(name)s``, its name in a comment."""
        text = PyFormatAdapter().process_sql(query_name, op_type, sql)  # type: ignore[no-untyped-call]
        return tagged(query_name, text, self._schema)

    async def select(
        self, conn: Any, query_name: str, sql: Rendered, parameters: Any, record_class: Any = None
    ) -> AsyncIterator[tuple[Any, ...]]:
        rows, _ = await self._run(conn, query_name, sql, parameters)
        for row in rows:
            yield row

    async def select_one(
        self, conn: Any, query_name: str, sql: Rendered, parameters: Any, record_class: Any = None
    ) -> Any:
        rows, _ = await self._run(conn, query_name, sql, parameters)
        return rows[0] if rows else None

    async def select_value(self, conn: Any, query_name: str, sql: Rendered, parameters: Any) -> Any:
        rows, _ = await self._run(conn, query_name, sql, parameters)
        return rows[0][0] if rows else None

    async def insert_update_delete(self, conn: Any, query_name: str, sql: Rendered, parameters: Any) -> int:
        _, count = await self._run(conn, query_name, sql, parameters)
        return count

    async def _run(
        self, conn: AsyncConnection[Any], query_name: str, sql: Rendered, parameters: Mapping[str, Any]
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Return the rows (none for a statement without a result), and the number of rows returned or changed.

        Raise `OutcomeUnknownError` if the reply to a statement that commits was lost, or if a standby did not confirm
        it.
        """
        values = bound(conn, sql, parameters)
        kind = _cursor_type(conn)
        statement = sql.encoded if kind is _Cursor else sql.text  # OpenTelemetry can't read bytes
        kept: dict[str, _Cursor] = getattr(conn, "goqueue_cursors", {})
        if (cursor := kept.get(sql)) is None:
            cursor = kept[sql] = kind(conn, row_factory=_NamedRows())
        rows: list[tuple[Any, ...]] = []
        commits = sql.writes and conn.autocommit and conn.pgconn.transaction_status in _NO_TRANSACTION
        watch = StandbyWatch.of(conn)
        before = watch.unconfirmed
        start = perf_counter()
        try:
            try:
                await cursor.execute(statement, values, binary=True)
            except Exception:
                if not cursor.has_run:
                    raise
                record_lost("opentelemetry")
            # In the caller's pipeline, the result has to be requested.
            if cursor.pgresult is None or cursor.pgresult.nfields:
                try:
                    rows = await cursor.fetchall()
                except psycopg.DataError:
                    if cursor.pgresult is None:  # A server error, in the caller's pipeline.
                        raise
                    rows = tolerant_rows(cursor)
        except BaseException as exc:  # even if the caller stopped waiting
            error = (isinstance(exc, psycopg.Error) and exc.sqlstate) or type(exc).__name__
            report(query_name, parameters, perf_counter() - start, slow=self._slow, error=error)
            cursor.forget()
            if isinstance(exc, UnicodeEncodeError):
                raise psycopg.DataError(f"the connection's client_encoding is not UTF8: {exc}") from exc
            if commits and is_unanswered(exc):
                lost = unconfirmed if watch.unconfirmed != before else unanswered
                raise lost(query_name, _jobs(parameters), worker_id=parameters.get("worker_id"), cause=exc) from exc
            raise
        count = cursor.rowcount
        cursor.forget()
        report(query_name, parameters, perf_counter() - start, slow=self._slow, rows=count)
        if watch.unconfirmed != before:
            raise unconfirmed(query_name, _jobs(parameters, rows), worker_id=parameters.get("worker_id"))
        return rows, count


def _jobs(parameters: Mapping[str, Any], rows: Iterable[tuple[Any, ...]] = ()) -> Iterable[UUID]:
    """Return the ids of a statement's jobs: those given, and those in its rows."""
    given = parameters.get("ids") or [parameters.get("id")]
    return dict.fromkeys(found for found in (*given, *(row[0] for row in rows)) if isinstance(found, UUID))
