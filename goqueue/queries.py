"""Finds and loads the SQL files. With the adapters the only module that knows aiosql; of goqueue it imports errors,
sqlfiles, statement and the adapters."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import aiosql

from goqueue.adapter import Adapter
from goqueue.aio.adapter import AsyncAdapter
from goqueue.errors import ConfigError
from goqueue.sqlfiles import Declaration, Statement, compare_declarations, read_queries, since_export, sql_files
from goqueue.statement import Rendered

# The files that goqueue can't do without, by their folder: what an incomplete installation lacks has to be named.
_NEEDED = {
    "sql": (
        *("checks.sql", "jobs.sql", "leases.sql", "seed.sql", "server.sql", "statements.sql", "stats.sql"),
        "columns.json",
    ),
    "migrations": ("V0001__create_jobs.sql", "roles/rights.json", "roles/roles.sql", "schema.json"),
}


def shipped_folder(name: str) -> Path:
    """The folder ``name`` ("sql", "migrations") that goqueue ships: beside the package in a checkout, else in it.

    Raises `ConfigError` where the installation lacks the folder or a file of it.
    """
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    folder = beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else package / name
    if not package.is_dir():
        archive = f"goqueue was imported from an archive, {package.parent}, and its SQL must be files in a folder"
        raise ConfigError([f"{archive}: install it unpacked, as pip does"])
    if missing := [file for file in _NEEDED[name] if not (folder / file).is_file()]:
        incomplete = f"this installation of goqueue is incomplete: {folder} has no {', '.join(missing)}"
        raise ConfigError([f"{incomplete}; install it again (pip install --force-reinstall goqueue)"])
    return folder


def read_shipped(folder: str, name: str) -> str:
    """The text of a file that goqueue ships. Raises `ConfigError` where it can't be read."""
    file = shipped_folder(folder) / name
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError([f"{file} can't be read: {exc}; install goqueue again"]) from exc


@cache
def _text(file: Path) -> str:
    """A file's text, read once in a process: whoever checks it and whoever runs it have the same."""
    return file.read_text(encoding="utf-8-sig")


@cache
def _parsed(file: Path) -> list[Any]:
    """What aiosql reads in a file: once in a process, for both adapters and for all folders, which share most files."""
    loader = aiosql.query_loader.QueryLoader(Adapter(), None, attribute="__")  # type: ignore[arg-type]
    return loader.load_query_data_from_sql(_text(file), [], file)


@cache
def load_queries(
    folder: Path | str | None = None, adapter: type[Adapter | AsyncAdapter] = Adapter, slow: float = 0
) -> Any:
    """The shipped queries, each a method taking a connection and keyword parameters; a file of ``folder`` stands in
    place of the shipped one of its name. Read once in a process.

    A query marked ``^`` gives a row or None, ``$`` a value or None, ``!`` a number of rows, without a mark an iterator
    over rows, which is what runs the statement: exhaust it. Rows are tuples. A statement that takes ``slow`` seconds or
    longer is logged as a warning (0: none). Raises `ConfigError` with every problem: a file that is not one of
    the shipped ones or that aiosql can't read, and a query that is missing, unknown, given twice, or declared otherwise
    than in the shipped file.
    """
    queries = aiosql.queries.Queries(adapter(slow))  # type: ignore[arg-type]
    problems: list[str] = []
    for file, shipped in sql_files(folder, shipped_folder("sql")):
        try:
            # File by file, because loading a folder at once lets a name in two files silently override.
            data = _parsed(file)
            if not data and file == shipped:
                problems.append(f"{file} holds no query: install goqueue again")
            # Numbered as declared, so that $1 is one parameter in the file, the server's log and every command.
            queries.load_from_list([query._replace(sql=Rendered(query.sql, query.parameters or ())) for query in data])
        except (aiosql.SQLLoadException, aiosql.SQLParseException, OSError, ValueError) as exc:
            problems.append(f"{file} can't be loaded: {exc}{since_export(file, shipped)}")
            continue
        if file != shipped:
            expected, given = (
                {query.query_name: Declaration(query.parameters or (), query.operation_type.name) for query in part}
                for part in (_parsed(shipped), data)
            )
            hint = since_export(file, shipped)
            problems += [f"{file}, {problem}{hint}" for problem in compare_declarations(expected, given)]
    if problems:
        raise ConfigError(problems)
    return queries


@cache
def load_statements(folder: Path | str | None = None) -> dict[str, Statement]:
    """The statements of `load_queries`, by name: what it makes of the files and nothing else, so that what is checked
    is what runs. Raises as it does."""
    queries = load_queries(folder)
    return {
        query.name: _statement(query.name, file, getattr(queries, query.name).sql)
        for file, shipped in sql_files(folder, shipped_folder("sql"))
        for query in read_queries(shipped)
    }


def _statement(name: str, file: Path, loaded: Rendered) -> Statement:
    faults = [
        f":{parameter} is taken for a parameter; write a slice of an array in another way"
        for parameter in re.findall(r"%\((\w+)\)s", loaded)
        if parameter not in loaded.names
    ]
    if "%" in re.sub(r"%\(\w+\)s|%%", "", loaded):
        faults.append("a percent sign stands alone; write it twice (%%)")
    return Statement(name, file, loaded.names, loaded.text, tuple(faults))
