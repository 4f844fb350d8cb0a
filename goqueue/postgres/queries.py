"""Loading of SQL files by aiosql, their only reader."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import aiosql
from aiosql.types import QueryDatum

from goqueue.errors import ConfigError
from goqueue.files import shipped_folder, since_export, sql_files
from goqueue.postgres.cursor import Adapter
from goqueue.postgres.cursor_async import AsyncAdapter
from goqueue.postgres.lexemes import bare
from goqueue.postgres.wire import Rendered
from goqueue.schemas import DEFAULT_SCHEMA, is_rendered, render, replaced_text

#: The kinds of result, by aiosql's names: a description, and aiosql's mark.
RESULTS = {
    "SELECT": ("rows", "no mark"),
    "SELECT_ONE": ("one row or none", "^"),
    "SELECT_VALUE": ("one value or none", "$"),
    "INSERT_UPDATE_DELETE": ("the number of rows", "!"),
}


# The start of a query, as aiosql finds it.
_NAME = re.compile(r"--\s*name\s*:\s*")


class Statement(NamedTuple):
    """A query as aiosql loaded it."""

    name: str
    file: Path
    sql: Rendered
    #: aiosql's name for the kind of result.
    result: str = "SELECT"
    #: Its comment lines, without the dashes.
    comments: str = ""
    #: Its part of the file; empty if block comments in the file hide where it begins.
    source: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters, in the declared order."""
        return self.sql.names

    @property
    def text(self) -> str:
        """The query as the server receives it, with ``$1``, ``$2`` … for the parameters."""
        return self.sql.text

    @property
    def faults(self) -> list[str]:
        """Return why the query can't be sent as written, one sentence each."""
        faults = [
            f":{parameter} is read as a parameter; write an array slice in another way"
            for parameter in re.findall(r"%\((\w+)\)s", self.sql)
            if parameter not in self.parameters
        ]
        if "%" in re.sub(r"%\(\w+\)s|%%", "", self.sql):
            faults.append("it has a single percent sign; write %% instead")
        return faults

    def same_as(self, other: "Statement") -> bool:
        """Return True if both are the same statement, except for comments and white space outside of quotes."""
        return (self.parameters, bare(self.text)) == (other.parameters, bare(other.text))


@cache
def _text_of(file: Path) -> str:
    """Return a file's text. Cached for the process: a file's check, its execution and its display use the same text."""
    return file.read_text("utf-8-sig")


@cache
def _parsed(file: Path, schema: str) -> list[QueryDatum]:
    """Return what aiosql reads in a file. Cached for the process, for both adapters and all folders."""
    adapter: Any = Adapter(schema=schema)
    loader = aiosql.query_loader.QueryLoader(adapter, None, attribute="__")
    try:
        loaded = loader.load_query_data_from_sql(_text_of(file), [], file)
    except (aiosql.SQLLoadException, aiosql.SQLParseException) as exc:
        raise ValueError(str(exc)) from exc
    # Numbered as declared: $1 is the same parameter in the file, in the server's log and in every command.
    return [query._replace(sql=Rendered(query.sql, query.parameters or ())) for query in loaded]


def read_statements(file: Path, schema: str = DEFAULT_SCHEMA) -> list[Statement]:
    """Return the queries of a file for a schema, in order. Raises OSError or ValueError for a file that can't be
    read."""
    queries = _parsed(file.absolute(), schema)
    sources = _NAME.split(_text_of(file.absolute()))[1:]
    if len(sources) != len(queries):
        sources = [""] * len(queries)
    return [
        Statement(
            query.query_name,
            file,
            cast("Rendered", query.sql),
            query.operation_type.name,
            render(query.doc_comments, schema),
            source,
        )
        for query, source in zip(queries, sources, strict=True)
    ]


def compare_declarations(shipped: Iterable[Statement], own: Iterable[Statement]) -> list[str]:
    """Return what is wrong with a file's own queries, one sentence each."""
    expected, given = ({one.name: one for one in statements} for statements in (shipped, own))
    problems = [f"query {name}: it is missing" for name in expected if name not in given]
    problems += [
        f"query {name}: goqueue has no such query in this file; expected {', '.join(expected)}"
        for name in given
        if name not in expected
    ]
    for name in (name for name in expected if name in given):
        wanted, got = expected[name].parameters, given[name].parameters
        problems += [
            f"query {name}: it lacks the parameter {parameter}" for parameter in wanted if parameter not in got
        ]
        problems += [
            f"query {name}: it has an unknown parameter {parameter}; expected {', '.join(wanted) or 'none'}"
            for parameter in got
            if parameter not in wanted
        ]
        if given[name].result != expected[name].result:
            kinds = (one.result for one in (given[name], expected[name]))
            shown = ("{} ({})".format(*RESULTS[kind]) if kind in RESULTS else kind.lower() for kind in kinds)
            problems.append(f"query {name}: its result is {', expected '.join(shown)}")
    return problems


@cache
def load_queries(
    folder: Path | str | None = None,
    adapter: type[Adapter | AsyncAdapter] = Adapter,
    slow: float = 0,
    schema: str = DEFAULT_SCHEMA,
) -> Any:
    """Return the shipped queries, each a method with a connection and keyword parameters. Files of ``folder`` replace
    the shipped files of the same name. Files are read once per process. They name the schema goqueue; the queries name
    ``schema``.

    A query marked ``^`` returns a row or None, ``$`` a value or None, ``!`` a number of rows. A query without a mark
    returns an iterator over rows; iterating executes the statement, so exhaust it. Rows are tuples. A statement that
    takes ``slow`` seconds or longer is logged as a warning (0: never).

    Raises `ConfigError` with every problem: a file that is not one of the shipped ones or that aiosql can't read; a
    query that is missing, unknown, duplicated, or declared differently than in the shipped file; a name of the schema
    that can't be replaced.
    """
    queries = aiosql.queries.Queries(adapter(slow))  # type: ignore[arg-type]
    problems: list[str] = []
    for file, shipped in sql_files(folder, shipped_folder("sql")):
        try:
            # File by file: if a folder is loaded at once, a name in two files overrides silently.
            data = _parsed(file.absolute(), schema)
            if not data and file == shipped:
                problems.append(f"{file} has no query: install goqueue again")
            queries.load_from_list(data)
        except (aiosql.SQLLoadException, OSError, ValueError) as exc:
            problems.append(f"{file} can't be loaded: {exc}{since_export(file, shipped)}")
            continue
        if file != shipped:
            hint = since_export(file, shipped)
            own = read_statements(file, schema)
            declared = compare_declarations(read_statements(shipped, schema), own)
            problems += [f"{file}, {problem}{hint}" for problem in declared]
            problems += [
                f"{file}, query {one.name}: it names the schema goqueue in a form that is not replaced by {schema}; "
                "write goqueue. in lower case, without quotes and blanks"
                for one in own
                if schema != DEFAULT_SCHEMA and not is_rendered(bare(one.text))
            ]
            problems += [
                f"{file}, query {one.name}: in the literal {literal}, goqueue is replaced by {schema}; if that is not "
                "wanted, write 'go' || 'queue'; if it is, add ::regclass or ::regnamespace"
                for one in (() if schema == DEFAULT_SCHEMA else read_statements(file))
                if (literal := replaced_text(bare(one.text)))
            ]
    if problems:
        raise ConfigError(problems)
    return queries


@cache
def load_statements(folder: Path | str | None = None, schema: str = DEFAULT_SCHEMA) -> dict[str, Statement]:
    """Return the statements of `load_queries` by name, unaltered, so that the checked text is the executed text. Raises
    the same errors."""
    load_queries(folder, schema=schema)
    files = [read_statements(file, schema) for file, _ in sql_files(folder, shipped_folder("sql"))]
    return {statement.name: statement for statements in files for statement in statements}
