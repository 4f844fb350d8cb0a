"""The check of a folder of SQL files on opening: the server compares its statements with the shipped ones.

No statement of the folder is executed here. Each is sent in its own Parse message, which accepts only one statement. A
rejected statement is not sent again. An accepted one is wrapped into a statement of ours (`alone`).
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import generators, pq, waiting

from goqueue.errors import ConfigError
from goqueue.postgres.lexemes import bare
from goqueue.postgres.libpq import DeadlineExceededError, Limits
from goqueue.postgres.queries import Statement, load_statements
from goqueue.schemas import DEFAULT_SCHEMA

_TAG = re.compile(r"/\* goqueue:\w+(?: in \w+)? \*/ ")
#: First words of statements that have a plan. Only these return rows that depend on nothing but the tables.
_WITH_A_PLAN = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "WITH")


def check_overrides(connection: Any, folder: Path | str, schema: str = DEFAULT_SCHEMA) -> list[str]:
    """Return what is wrong with the files of ``folder``, one sentence each; nothing if the store can run them.

    ``connection`` is a psycopg connection of any kind in autocommit mode. The check uses libpq directly, with about two
    round trips for each changed statement. It reads files and the catalogue, executes nothing and keeps no lock. Raises
    `ConfigError` for files that can't be loaded, and psycopg's own error if the server doesn't answer.
    """
    return compare_with_shipped(Libpq(connection), changed_statements(folder, schema)).problems


def require_sound_overrides(connection: Any, folder: Path | str, schema: str) -> None:
    """Run `check_overrides`, and raise `ConfigError` with all problems, if any."""
    if problems := check_overrides(connection, folder, schema):
        raise ConfigError(problems)


class Libpq:
    """libpq's calls on a connection of any kind. Each ends within the connection's limit."""

    def __init__(self, connection: Any) -> None:
        self._pgconn: Any = connection.pgconn
        limits: Limits | None = getattr(connection, "goqueue_limits", None)
        self._limit = None if limits is None else limits.answer

    @property
    def is_open(self) -> bool:
        return bool(self._pgconn.status == pq.ConnStatus.OK)

    def exec_(self, command: bytes) -> Any:
        self._pgconn.send_query(command)
        return self._result()

    def exec_params(self, command: bytes, values: list[bytes]) -> Any:
        self._pgconn.send_query_params(command, values)
        return self._result()

    def prepare(self, name: bytes, command: bytes) -> Any:
        self._pgconn.send_prepare(name, command)
        return self._result()

    def describe_prepared(self, name: bytes) -> Any:
        self._pgconn.send_describe_prepared(name)
        return self._result()

    def _result(self) -> Any:
        sent = generators.execute(self._pgconn)
        try:
            [result] = waiting.wait(sent, self._pgconn.socket, interval=0.1, timeout=self._limit)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - the name in psycopg's documentation
            self._pgconn.finish()
            raise DeadlineExceededError.after(self._limit) from None
        return result


class _Comparison(NamedTuple):
    problems: list[str]
    #: What the server can't judge: result columns that may be null, which only execution would show.
    unproved: list[str]
    #: The changed statements that the server accepted, with the types of their parameters.
    taken: list[tuple[Statement, tuple[int, ...]]]
    #: The names of the rejected statements.
    refused: list[str]


class _Described(NamedTuple):
    """A statement as the server describes it, with types and tables as ids; or the error."""

    parameters: tuple[int, ...] = ()
    #: Name and type of each result column.
    columns: tuple[tuple[str, int], ...] = ()
    #: Source of each result column: table and column number; (0, 0) for an expression.
    origins: tuple[tuple[int, int], ...] = ()
    error: str = ""


def changed_statements(folder: Path | str, schema: str = DEFAULT_SCHEMA) -> list[tuple[Statement, Statement]]:
    """Return the folder's statements that differ from the shipped ones, each with the shipped one."""
    shipped = load_statements(schema=schema)
    given = load_statements(folder, schema)
    return [(statement, shipped[name]) for name, statement in given.items() if not statement.same_as(shipped[name])]


def compare_with_shipped(libpq: "Libpq", changed: Iterable[tuple[Statement, Statement]]) -> _Comparison:
    pairs = list(changed)
    with _transaction(libpq) as again:
        described = [
            (given, _describe(libpq, given, again), _describe(libpq, shipped, again), shipped)
            for given, shipped in pairs
        ]
        names = _Names(libpq, [one for _, given, shipped, _ in described for one in (given, shipped)])
    found = _Comparison([], [], [], [])
    for given, got, expected, shipped in described:
        where = f"{given.file}, query {given.name}"
        problems = list(given.faults)
        if expected.error:
            problems.append(
                f"it can't be compared, because the server rejects the shipped one too: {expected.error}; run "
                "`goqueue migrate` (or `pgmigrate migrate`) on this database, with this version's migrations"
            )
        elif got.error:
            problems.append(f"the server rejects it: {got.error}")
        else:
            problems += _differences(given, shipped, got, expected, names)
            command = bare(given.text).lstrip("( ").partition(" ")[0].upper()
            if not got.columns:
                problems.append(f"it returns no rows, so it must be the shipped statement ({bare(shipped.text)})")
            elif not re.match(rf"({'|'.join(_WITH_A_PLAN)})\b", command):
                problems.append(f"it is a command ({command}), expected one of {', '.join(_WITH_A_PLAN)}")
            if not problems:
                nullable, unproved = names.compare_origins(got, expected)
                problems += nullable
                found.unproved.extend(f"{where}: {text}" for text in unproved)
        found.problems.extend(f"{where}: {problem}" for problem in problems)
        if problems:
            found.refused.append(given.name)
        else:
            found.taken.append((given, got.parameters))
    return found


def _differences(
    statement: Statement, shipped: Statement, got: _Described, expected: _Described, names: "_Names"
) -> list[str]:
    """Return the differences of parameters and result columns in number, name or type."""
    if len(got.parameters) != len(statement.parameters):
        counts = f"the server finds {len(got.parameters)} parameters, but {len(statement.parameters)} would be sent"
        return [f"{counts}; write each as :name, and none inside quotes"]
    kinds = dict(zip(shipped.parameters, expected.parameters, strict=True))
    problems = [
        f"the parameter {name} has the type {names.types[kind]}, expected {names.types[kinds[name]]}; cast it where it "
        f"is used (:{name}::{names.types[kinds[name]]})"
        for name, kind in zip(statement.parameters, got.parameters, strict=True)
        if name in kinds and kind != kinds[name]
    ]
    mine, theirs = ([f"{name} {names.types[kind]}" for name, kind in one.columns] for one in (got, expected))
    matcher = SequenceMatcher(a=theirs, b=mine, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        if kind == "replace" and end - start == last - first:
            problems += [
                f"column {place + 1} is '{mine[place]}', expected '{theirs[wanted]}'"
                for place, wanted in zip(range(first, last), range(start, end), strict=True)
            ]
        elif kind != "equal":
            problems += [
                f"the column '{theirs[place]}' is missing, expected as column {place + 1}"
                for place in range(start, end)
            ]
            problems += [
                f"column {place + 1} is '{mine[place]}', which is not expected" for place in range(first, last)
            ]
    return problems


class _Names:
    """The names of the types and columns in some descriptions."""

    def __init__(self, libpq: "Libpq", described: list[_Described]) -> None:
        types = {kind for one in described for kind in (*one.parameters, *(kind for _, kind in one.columns))}
        tables = {table for one in described for table, _ in one.origins if table}
        self.types = {int(key): name for key, name in ask(libpq, "describe_types", types)}
        self.columns = {
            (int(table), int(number)): (name, nullable == "t")
            for table, number, name, nullable in ask(libpq, "describe_columns", tables)
        }

    def compare_origins(self, got: _Described, expected: _Described) -> tuple[list[str], list[str]]:
        """Return the columns that can be null but must not be, or that come from another column of the table. Return
        also the columns that the server can't judge."""
        problems, unproved = [], []
        for place, (mine, theirs) in enumerate(zip(got.origins, expected.origins, strict=True)):
            if mine == theirs or theirs not in self.columns:
                continue
            wanted, wanted_nullable = self.columns[theirs]
            column = f"column {place + 1} ({got.columns[place][0]})"
            if mine not in self.columns:
                if not wanted_nullable:
                    unproved.append(
                        f"{column} is an expression here and {wanted} in the shipped file, which is never null"
                    )
                continue
            name, nullable = self.columns[mine]
            if mine[0] == theirs[0] or (nullable and not wanted_nullable):
                null = " which can be null," if nullable and not wanted_nullable else ""
                problems.append(f"{column} comes from {name},{null} expected {wanted}")
        return problems, unproved


@contextmanager
def _transaction(libpq: "Libpq") -> Iterator[Any]:
    """Run a read-only transaction, to stay on one server behind a pooler. Yield a function that restarts it."""

    def begin() -> None:
        libpq.exec_(b"ROLLBACK")
        _check(libpq.exec_(b"BEGIN READ ONLY"))

    _check(libpq.exec_(b"BEGIN READ ONLY"))
    try:
        yield begin
    finally:
        if libpq.is_open:
            libpq.exec_(b"ROLLBACK")


def _describe(libpq: "Libpq", statement: Statement, again: Any) -> _Described:
    described = libpq.prepare(b"", statement.text.encode())
    if described.status == pq.ExecStatus.COMMAND_OK:
        described = libpq.describe_prepared(b"")
    if described.status != pq.ExecStatus.COMMAND_OK:
        error = psycopg.errors.error_from_result(described)
        # 42: the statement's fault; 22: a literal's; 0A: an unsupported feature. Other errors are the server's.
        if (error.sqlstate or "")[:2] not in ("42", "22", "0A"):
            raise error
        again()
        return _Described(error=words_of(error) + _at(statement.text, error.diag.statement_position))
    columns = range(described.nfields)
    return _Described(
        tuple(described.param_type(place) for place in range(described.nparams)),
        tuple(((described.fname(place) or b"").decode(), described.ftype(place)) for place in columns),
        tuple((described.ftable(place), described.ftablecol(place)) for place in columns),
    )


def _at(text: str, position: str | None) -> str:
    """Return the line of a statement at an error's position."""
    if position is None:
        return ""
    place = int(position) - 1
    line = _TAG.sub("", text[text.rfind("\n", 0, place) + 1 :].partition("\n")[0]).strip()
    return f" (in the line `{line if len(line) <= 80 else line[:79] + '…'}`)"


def ask(libpq: "Libpq", query: str, ids: Iterable[int | str], schema: str = DEFAULT_SCHEMA) -> list[tuple[str, ...]]:
    """Return the rows of a query of checks.sql for ids or plain names, as text."""
    array = "{" + ",".join(map(str, ids)) + "}"
    result = libpq.exec_params(load_statements(schema=schema)[query].text.encode(), [array.encode()])
    _check(result)
    return [
        tuple((result.get_value(row, column) or b"").decode() for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


def alone(connection: Any, text: str) -> None:
    """Run one of our statements that contains a folder's text, by the extended protocol: the server rejects it if the
    text holds more than one statement."""
    _check(Libpq(connection).exec_params(text.encode(), []))


def _check(result: Any) -> None:
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)


def refusal(connection: Any, statement: Statement) -> str:
    """Return why the server of this connection rejects the statement, or nothing if it accepts it."""
    libpq = Libpq(connection)
    with _transaction(libpq) as again:
        return _describe(libpq, statement, again).error


def words_of(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())
