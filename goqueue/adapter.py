# Made by `make catalogue` from goqueue/aio/adapter.py; change that.
"""aiosql's adapter over psycopg. Imports aiosql, psycopg and goqueue.statement."""

from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import psycopg
from aiosql.adapters.pyformat import PyFormatAdapter
from psycopg import Connection, RawCursor
from psycopg.rows import tuple_row

from goqueue.statement import as_parameter, rendered, report, tagged, tolerant_rows


class Adapter:
    """Each statement carries its name to the server's log, pg_stat_activity and pg_stat_statements; rows are tuples
    whatever the connection's row factory; infinite times can be read; and what was run is logged."""

    def __init__(self, slow: float = 0) -> None:
        """``slow``: the seconds from which on a statement is logged as a warning; 0 for never."""
        self._slow = slow

    def process_sql(self, query_name: str, op_type: Any, sql: str) -> str:
        """What aiosql keeps of a statement: its parameters as ``%(name)s``, its name in a comment."""
        return tagged(query_name, PyFormatAdapter().process_sql(query_name, op_type, sql))  # type: ignore[no-untyped-call]

    def select(
        self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None
    ) -> Iterator[tuple[Any, ...]]:
        rows, _ = self._run(conn, query_name, sql, parameters)
        yield from rows

    def select_one(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        rows, _ = self._run(conn, query_name, sql, parameters)
        return rows[0] if rows else None

    def select_value(self, conn: Any, query_name: str, sql: str, parameters: Any) -> Any:
        rows, _ = self._run(conn, query_name, sql, parameters)
        return rows[0][0] if rows else None

    def insert_update_delete(self, conn: Any, query_name: str, sql: str, parameters: Any) -> int:
        _, count = self._run(conn, query_name, sql, parameters)
        return count

    def _run(
        self, conn: Connection[Any], query_name: str, sql: str, parameters: Mapping[str, Any]
    ) -> tuple[list[tuple[Any, ...]], int]:
        """The rows (none for a statement that gives none), and how many rows there are or were changed."""
        statement, names = rendered(sql)
        values = [as_parameter(parameters[name]) for name in names]
        # The connection's own kind of cursor where it takes our parameters: an instrumented one writes traces.
        raw = issubclass(conn.cursor_factory, RawCursor)
        cursor = conn.cursor(row_factory=tuple_row) if raw else RawCursor(conn, row_factory=tuple_row)
        rows: list[tuple[Any, ...]] = []
        start = perf_counter()
        try:
            cursor.execute(statement, values)
            if cursor.pgresult is not None and cursor.pgresult.nfields:
                try:
                    rows = cursor.fetchall()
                except psycopg.DataError:
                    rows = tolerant_rows(cursor)
        except psycopg.Error as exc:
            error = exc.sqlstate or type(exc).__name__
            report(query_name, parameters, perf_counter() - start, slow=self._slow, error=error)
            raise
        report(query_name, parameters, perf_counter() - start, slow=self._slow, rows=cursor.rowcount)
        return rows, cursor.rowcount
