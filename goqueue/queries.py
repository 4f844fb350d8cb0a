"""Finds and loads the SQL files. The only module that knows aiosql; imports goqueue.errors alone."""

from functools import cache
from pathlib import Path
from typing import Any

import aiosql
from aiosql.adapters.pyformat import PyFormatAdapter
from psycopg.rows import tuple_row

from goqueue.errors import ConfigError


def shipped_folder(name: str) -> Path:
    """The folder ``name`` ("sql", "migrations") that goqueue ships: beside the package in a checkout, else in it."""
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    return beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else package / name


class _Adapter(PyFormatAdapter):
    """aiosql's psycopg adapter with two habits: rows are tuples whatever the connection's row factory, and each
    statement carries its name to the server's log, pg_stat_activity and pg_stat_statements."""

    def process_sql(self, query_name: str, op_type: Any, sql: str) -> str:
        # Behind the text and before the semicolon: pg_stat_statements drops a comment in front. It never varies, so it
        # neither defeats prepared statements nor splits statistics.
        text = sql.rstrip().removesuffix(";").rstrip()
        statement: str = super().process_sql(query_name, op_type, text)  # type: ignore[no-untyped-call]
        return f"{statement}\n/* goqueue:{query_name} */;"

    def _cursor(self, conn: Any) -> Any:
        return conn.cursor(row_factory=tuple_row)


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
