"""SQL files loaded by aiosql."""

import re
from collections.abc import Collection, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import aiosql

from goqueue.errors import ConfigError
from goqueue.files import shipped_folder, since_export, sql_files
from goqueue.postgres.cursor import Adapter
from goqueue.postgres.cursor_async import AsyncAdapter
from goqueue.postgres.lexemes import bare
from goqueue.postgres.wire import Rendered

_NAME = re.compile(r"--\s*name\s*:\s*")
# As aiosql reads a file: quoted text and lines of comment are left alone, and :name is a parameter unless it is half of
# a cast.
_PARAMETER = re.compile(r"""^\s*--.*|"(?:""|[^"])+"|'(?:''|[^'])*'|(?<!:):(?P<name>\w+)""", re.MULTILINE)
_RESULTS = {
    "SELECT": "rows (no mark)",
    "SELECT_ONE": "one row or none (^)",
    "SELECT_VALUE": "one value or none ($)",
    "INSERT_UPDATE_DELETE": "the number of rows (!)",
}


class Declaration(NamedTuple):
    """The line of a query's name: its parameters, and aiosql's name for the kind of its result."""

    parameters: Collection[str]
    result: str


def compare_declarations(expected: Mapping[str, Declaration], given: Mapping[str, Declaration]) -> list[str]:
    """What is wrong with the given queries of a file, one sentence each."""
    problems = [f"query {name}: it is missing" for name in expected if name not in given]
    problems += [
        f"query {name}: goqueue has no such query in this file; expected {', '.join(expected)}"
        for name in given
        if name not in expected
    ]
    for name in (name for name in expected if name in given):
        (wanted, wanted_result), (got, got_result) = expected[name], given[name]
        problems += [
            f"query {name}: it lacks the parameter {parameter}" for parameter in wanted if parameter not in got
        ]
        problems += [
            f"query {name}: it has a parameter {parameter}, which nothing gives it; expected "
            f"{', '.join(wanted) or 'none'}"
            for parameter in got
            if parameter not in wanted
        ]
        if wanted_result != got_result:
            shown = (_RESULTS.get(result, result.lower()) for result in (got_result, wanted_result))
            problems.append(f"query {name}: its result is {' and was to be '.join(shown)}")
    return problems


class Statement(NamedTuple):
    """A query as the server gets it, with ``$1``, ``$2`` … for ``parameters``, in the order that its
    file declares."""

    name: str
    file: Path
    parameters: tuple[str, ...]
    text: str
    #: What keeps it from being sent as it is written.
    faults: tuple[str, ...] = ()

    def same_as(self, other: "Statement") -> bool:
        """Whether both are one statement, comments and white space outside of quotes aside."""
        return (self.parameters, bare(self.text)) == (other.parameters, bare(other.text))


class Query(NamedTuple):
    """A query as its file has it."""

    name: str
    parameters: tuple[str, ...]
    #: What stands behind the parameters: ``^``, ``$``, ``!`` or nothing.
    mark: str
    #: The lines of comment under its name, without their dashes.
    comments: tuple[str, ...]
    #: The statement, without its semicolon; comments on lines of their own among it.
    body: str


def read_queries(file: Path) -> list[Query]:
    """The queries of a file, in its order."""
    found = []
    for part in _NAME.split(file.read_text(encoding="utf-8-sig"))[1:]:
        head, *lines = part.splitlines()
        name, _, rest = head.partition("(")
        declared, _, mark = rest.partition(")")
        parameters = tuple(word.strip() for word in declared.split(",") if word.strip())
        comments = tuple(takewhile(lambda line: line.startswith("--"), lines))
        body = "\n".join(line.rstrip() for line in lines[len(comments) :]).strip().rstrip("; \n")
        texts = tuple(line.removeprefix("--").strip() for line in comments)
        found.append(Query(name.strip().replace("-", "_"), parameters, mark.strip(), texts, body))
    return found


def numbered(text: str, parameters: tuple[str, ...]) -> str:
    """The text with its parameters as ``$1``, ``$2`` … in the order given."""

    def number(match: re.Match[str]) -> str:
        name = match["name"]
        return f"${parameters.index(name) + 1}" if name in parameters else match[0]

    return _PARAMETER.sub(number, text).replace("%%", "%")


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
