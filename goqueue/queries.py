"""Finds and loads the SQL files. With the adapters the only module that knows aiosql; of goqueue it imports errors and
the adapters."""

from functools import cache
from pathlib import Path
from typing import Any

import aiosql

from goqueue.adapter import Adapter
from goqueue.aio.adapter import AsyncAdapter
from goqueue.errors import ConfigError


def shipped_folder(name: str) -> Path:
    """The folder ``name`` ("sql", "migrations") that goqueue ships: beside the package in a checkout, else in it."""
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    return beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else package / name


@cache
def load_queries(folder: Path | None = None, adapter: type[Adapter | AsyncAdapter] = Adapter, slow: float = 0) -> Any:
    """The queries of ``folder`` (default: the shipped sql/), each a method taking a connection and keyword parameters.

    A query marked ``^`` gives a row or None, ``$`` a value or None, ``!`` a number of rows, without a mark an iterator
    over rows, which is what runs the statement: exhaust it. Rows are tuples. A statement that takes ``slow`` seconds or
    longer is logged as a warning (0: none). Raises `ConfigError` when the folder has no SQL files, or one that aiosql
    can't read.
    """
    folder = folder or shipped_folder("sql")
    if not folder.is_dir():
        raise ConfigError([f"the folder of SQL files {folder} does not exist"])
    queries = aiosql.queries.Queries(adapter(slow))  # type: ignore[arg-type]
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
