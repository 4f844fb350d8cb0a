"""Finds and loads the SQL files. The only module that knows aiosql; of goqueue it imports errors alone."""

from collections.abc import Generator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import aiosql
import psycopg
from aiosql.adapters.pyformat import PyFormatAdapter
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.rows import tuple_row
from psycopg.types.datetime import TimestamptzLoader

from goqueue.errors import ConfigError


def shipped_folder(name: str) -> Path:
    """The folder ``name`` ("sql", "migrations") that goqueue ships: beside the package in a checkout, else in it."""
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    return beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else package / name


_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


class _EndlessTimes(TimestamptzLoader):
    """Reads PostgreSQL's infinity, and its years after 9999, as the last time that Python has; likewise the first."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return _FIRST if text.startswith(b"-") or text.endswith(b"BC") else _LAST


class _Tolerant:
    """psycopg's way to read values (an AdaptContext), but for times."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.adapters = AdaptersMap(connection.adapters)
        self.adapters.register_loader("timestamptz", _EndlessTimes)


def _rows(cursor: Any) -> list[tuple[Any, ...]]:
    try:
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    except psycopg.DataError:
        # One row with an infinite time must not make the others unreadable. Read again, slowly and tolerantly.
        reader = Transformer(_Tolerant(cursor.connection))
        reader.set_pgresult(cursor.pgresult)
        rows = reader.load_rows(0, cursor.pgresult.ntuples, tuple)
    return rows


class _Adapter(PyFormatAdapter):
    """aiosql's psycopg adapter with three habits: each statement carries its name to the server's log, pg_stat_activity
    and pg_stat_statements; rows are tuples whatever the connection's row factory; and infinite times can be read."""

    def process_sql(self, query_name: str, op_type: Any, sql: str) -> str:
        # Behind the first word: pg_stat_statements drops a comment in front of it, and pg_stat_activity cuts a long
        # statement's end off. It never varies, so it neither defeats prepared statements nor splits statistics.
        statement: str = super().process_sql(query_name, op_type, sql)  # type: ignore[no-untyped-call]
        first_word, rest = statement.split(maxsplit=1)
        return f"{first_word} /* goqueue:{query_name} */ {rest}"

    def _cursor(self, conn: Any) -> Any:
        # psycopg's plain cursor, whichever kind the connection makes.
        return psycopg.Cursor(conn, row_factory=tuple_row)

    def select(
        self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None
    ) -> Generator[Any, None, None]:
        with self._cursor(conn) as cursor:
            yield from _rows(cursor.execute(sql, parameters))

    def select_one(self, conn: Any, query_name: str, sql: str, parameters: Any, record_class: Any = None) -> Any:
        with self._cursor(conn) as cursor:
            rows = _rows(cursor.execute(sql, parameters))
        return rows[0] if rows else None

    def select_value(self, conn: Any, query_name: str, sql: str, parameters: Any) -> Any:
        row = self.select_one(conn, query_name, sql, parameters)
        return None if row is None else row[0]


@cache
def load_queries(folder: Path | None = None) -> Any:
    """The queries of ``folder`` (default: the shipped sql/), each a method taking a connection and keyword parameters.

    A query marked ``^`` gives a row or None, ``$`` a value or None, without a mark an iterator over rows, which is what
    runs the statement: exhaust it. Rows are tuples. Raises `ConfigError` when the folder has no SQL files, or one that
    aiosql can't read.
    """
    folder = folder or shipped_folder("sql")
    if not folder.is_dir():
        raise ConfigError([f"the folder of SQL files {folder} does not exist"])
    queries = aiosql.queries.Queries(_Adapter())  # type: ignore[no-untyped-call]
    loader = aiosql.query_loader.QueryLoader(queries.driver_adapter, None, attribute="__")
    for file in sorted(folder.glob("*.sql")):
        try:
            # File by file, because loading a folder at once lets a name in two files silently override.
            queries.load_from_list(loader.load_query_data_from_file(file, encoding="utf-8"))
        except (aiosql.SQLLoadException, aiosql.SQLParseException, UnicodeDecodeError) as exc:
            raise ConfigError([f"{file.name} can't be loaded: {exc}"]) from exc
    if not queries.available_queries:
        raise ConfigError([f"the folder {folder} has no SQL files"])
    return queries
