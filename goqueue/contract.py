"""What a folder of SQL files must keep: proved against the shipped files by the server that is to run them.

Imports psycopg, goqueue.errors, libpq, models, queries, session and sqlfiles. Nothing here runs a statement of
the folder: the server parses and describes it, and plans it without values, in transactions that are rolled back.

A statement first goes to the server alone, as one message of the extended protocol (Parse), which takes no more than
one statement. What the server rejects is never sent again. What it accepts is put into a statement of ours (`alone`),
and that goes the same way: so no text can end ours and begin another.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, generators, pq, waiting

from goqueue.errors import ConfigError
from goqueue.libpq import DeadlineExceededError, Limits
from goqueue.models import counted
from goqueue.queries import load_queries, load_statements, shipped_folder
from goqueue.session import PLANNING
from goqueue.sqlfiles import Statement, bare, is_outdated, sql_files

__all__ = [
    "Fit",
    "GenericPlan",
    "Proof",
    "alone",
    "check_contract",
    "examine",
    "generic_plans",
    "prove_contract",
    "refusal",
    "require_contract",
    "shipped_statements",
]

_CHECK = "goqueue_check"
_TABLES = ("jobs", "job_failures")
_TAG = re.compile(r"/\* goqueue:\w+ \*/ ")

#: What a statement that has a plan starts with. Only such ones give rows that depend on nothing but the tables.
_WITH_A_PLAN = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "WITH")

# By the planner's estimate a changed statement may be so many times as dear as the shipped one, or cost so much: some
# milliseconds.
_DEARER, _CHEAP = 10, 1000

# Before PostgreSQL 18 a scan that a setting turns off and that nothing replaces is priced at 10^10. That is no cost:
# such a plan is priced with all scans allowed.
_PENALTY = 1e10
_ANY_SCAN = MappingProxyType({"enable_seqscan": "on"})


def shipped_statements() -> dict[str, Statement]:
    """The statements that goqueue ships, by name."""
    return load_statements()


# --- what the store asks when it opens ------------------------------------------------------------------------------


def check_contract(connection: Any, folder: Path | str) -> list[str]:
    """What is wrong with the files of ``folder``, one sentence each; nothing when the store can run them.

    ``connection`` is a psycopg connection of any kind in autocommit mode; it is asked directly (libpq), in some two
    round trips for each changed statement and the shipped one. Raises `ConfigError` for files that can't even be
    loaded, and psycopg's own error when the server can't answer. A reading of files and catalogue: takes no lock that
    outlasts it, and runs nothing.
    """
    return _compare(_Libpq(connection), _changed(folder)).problems


def require_contract(connection: Any, folder: Path | str) -> None:
    """`check_contract`, with a `ConfigError` that has all the problems."""
    if problems := check_contract(connection, folder):
        raise ConfigError(problems)


class _Libpq:
    """libpq's own calls on a connection of any kind. Each ends within the connection's limit, as its statements do."""

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
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - as psycopg's documentation names it
            self._pgconn.finish()
            raise DeadlineExceededError.after(self._limit) from None
        return result


class _Comparison(NamedTuple):
    problems: list[str]
    #: What the server can't tell: result columns of which only a run would show whether they can be null.
    unproved: list[str]
    #: The changed statements that the server has taken, with the types of their parameters.
    taken: list[tuple[Statement, tuple[int, ...]]]
    #: The names of the others.
    refused: list[str]


class _Described(NamedTuple):
    """A statement as the server describes it, types and tables by their ids; or why it doesn't."""

    parameters: tuple[int, ...] = ()
    #: Of each result column: name and type.
    columns: tuple[tuple[str, int], ...] = ()
    #: Of each result column: table and number of the column it is, (0, 0) for an expression.
    origins: tuple[tuple[int, int], ...] = ()
    error: str = ""


def _changed(folder: Path | str) -> list[tuple[Statement, Statement]]:
    """The folder's statements that are not the shipped ones, each with the shipped one."""
    shipped = shipped_statements()
    given = load_statements(folder)
    return [(statement, shipped[name]) for name, statement in given.items() if not statement.same_as(shipped[name])]


def _compare(libpq: "_Libpq", changed: Iterable[tuple[Statement, Statement]]) -> _Comparison:
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
                f"it can't be compared, because the server refuses the shipped one as well: {expected.error}; run "
                "`goqueue migrate` (or `pgmigrate migrate`) on this database, with this version's migrations"
            )
        elif got.error:
            problems.append(f"the server refuses it: {got.error}")
        else:
            problems += _differences(given, shipped, got, expected, names)
            command = bare(given.text).lstrip("( ").partition(" ")[0].upper()
            if not got.columns:
                problems.append(f"it gives no rows, so it must be the shipped statement ({bare(shipped.text)})")
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
    """Where parameters and result columns differ in number, name or type."""
    if len(got.parameters) != len(statement.parameters):
        counts = f"the server counts {len(got.parameters)} parameters, and {len(statement.parameters)} would be sent"
        return [f"{counts}; write each as :name, and none inside quotes"]
    kinds = dict(zip(shipped.parameters, expected.parameters, strict=True))
    problems = [
        f"the parameter {name} is taken for {names.types[kind]}, expected {names.types[kinds[name]]}; cast it where it "
        f"stands (:{name}::{names.types[kinds[name]]})"
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
    """The names of the types and columns that some descriptions mention."""

    def __init__(self, libpq: "_Libpq", described: list[_Described]) -> None:
        types = {kind for one in described for kind in (*one.parameters, *(kind for _, kind in one.columns))}
        tables = {table for one in described for table, _ in one.origins if table}
        self.types = {int(key): name for key, name in _ask(libpq, "describe_types", types)}
        self.columns = {
            (int(table), int(number)): (name, nullable == "t")
            for table, number, name, nullable in _ask(libpq, "describe_columns", tables)
        }

    def compare_origins(self, got: _Described, expected: _Described) -> tuple[list[str], list[str]]:
        """Columns that can be null and must not be, or are another column of the same table; and those of which the
        server can't tell."""
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
def _transaction(libpq: "_Libpq") -> Iterator[Any]:
    """A transaction for several answers of one server (pgbouncer), rolled back; gives what begins another."""

    def begin() -> None:
        libpq.exec_(b"ROLLBACK")
        _check(libpq.exec_(b"BEGIN READ ONLY"))

    _check(libpq.exec_(b"BEGIN READ ONLY"))
    try:
        yield begin
    finally:
        if libpq.is_open:
            libpq.exec_(b"ROLLBACK")


def _describe(libpq: "_Libpq", statement: Statement, again: Any) -> _Described:
    described = libpq.prepare(b"", statement.text.encode())
    if described.status == pq.ExecStatus.COMMAND_OK:
        described = libpq.describe_prepared(b"")
    if described.status != pq.ExecStatus.COMMAND_OK:
        error = psycopg.errors.error_from_result(described)
        # 42: the statement's own fault; 22: a literal's; 0A: what the server has not. All else is the server's.
        if (error.sqlstate or "")[:2] not in ("42", "22", "0A"):
            raise error
        again()
        return _Described(error=_said(error) + _at(statement.text, error.diag.statement_position))
    columns = range(described.nfields)
    return _Described(
        tuple(described.param_type(place) for place in range(described.nparams)),
        tuple(((described.fname(place) or b"").decode(), described.ftype(place)) for place in columns),
        tuple((described.ftable(place), described.ftablecol(place)) for place in columns),
    )


def _at(text: str, position: str | None) -> str:
    """The line of a statement that an error's position lies in."""
    if position is None:
        return ""
    place = int(position) - 1
    line = _TAG.sub("", text[text.rfind("\n", 0, place) + 1 :].partition("\n")[0]).strip()
    return f" (in the line `{line if len(line) <= 80 else line[:79] + '…'}`)"


def _ask(libpq: "_Libpq", query: str, ids: Iterable[int | str]) -> list[tuple[str, ...]]:
    """The rows of a query of checks.sql for ids or plain names, as text."""
    array = "{" + ",".join(map(str, ids)) + "}"
    result = libpq.exec_params(shipped_statements()[query].text.encode(), [array.encode()])
    _check(result)
    return [
        tuple((result.get_value(row, column) or b"").decode() for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


def alone(connection: Any, text: str) -> None:
    """Run one statement of ours that has a folder's text in it, by the extended protocol: the server refuses the whole
    of it where that text holds more than one statement."""
    _check(_Libpq(connection).exec_params(text.encode(), []))


def _check(result: Any) -> None:
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)


def refusal(connection: Any, statement: Statement) -> str:
    """Why the server of this connection does not accept the statement; nothing when it does."""
    libpq = _Libpq(connection)
    with _transaction(libpq) as again:
        return _describe(libpq, statement, again).error


# --- what `goqueue check` asks besides ------------------------------------------------------------------------------


class Proof(NamedTuple):
    """What was found out about a folder."""

    #: The names of the queries that differ from the shipped ones; None where the files can't be loaded.
    changed: list[str] | None
    problems: list[str]
    #: What could not be proved, and why.
    unproved: list[str]
    #: Files whose shipped counterpart has changed since they were exported.
    outdated: list[str]


def prove_contract(connection: Connection[Any], folder: Path | str) -> Proof:
    """All that can be known of the files of ``folder`` without running them, on a connection in autocommit mode.

    Beyond `check_contract`: a statement refers to nothing outside the schema goqueue and the server's own catalogue, as
    the server resolves it; its plan reads no table or index whole that the shipped one doesn't, on a server that is
    told to avoid it; and by the planner's estimate it is not ten times as dear.
    """
    return examine(connection, folder)[0]


class Fit(NamedTuple):
    """What may be done with the changed statements of a folder; each by name."""

    #: Those that refer to nothing which planning could run.
    planned: dict[str, Statement]
    #: Those of them that, on a database of their own, can reach nothing else.
    run: dict[str, Statement]


def examine(connection: Connection[Any], folder: Path | str) -> tuple[Proof, Fit]:
    """`prove_contract`, and the changed statements that are fit for more."""
    try:
        load_queries(folder)
    except ConfigError as error:
        return Proof(None, list(error.problems), [], []), Fit(
            {}, {}
        )  # each problem says itself when its file is outdated
    outdated = [
        f"{file} was exported from goqueue {export.version}, and the shipped file has changed since"
        for file, shipped in sql_files(folder, shipped_folder("sql"))
        if (export := is_outdated(file, shipped))
    ]
    pairs = _changed(folder)
    found = _compare(_Libpq(connection), pairs)
    problems, unproved = list(found.problems), list(found.unproved)
    sound = []
    for statement, types in found.taken:
        where = f"{statement.file}, query {statement.name}"
        references = _references(connection, statement, types)
        problems += [f"{where}: it refers to the {what}, outside the schema goqueue" for what in references.foreign]
        unproved += [f"{where}: {why}" for why in references.unknown]
        if not references.foreign and references.are_known:
            sound.append(statement)
    shipped = {statement.name: statement for _, statement in pairs}
    mine = generic_plans(connection, sound)
    theirs = generic_plans(connection, [shipped[statement.name] for statement in sound])
    run = {}
    for statement in sound:
        got, expected = mine[statement.name], theirs[statement.name]
        where = f"{statement.file}, query {statement.name}"
        if not (isinstance(got, GenericPlan) and isinstance(expected, GenericPlan)):
            refused = got if isinstance(got, psycopg.Error) else expected
            unproved.append(f"{where}: its plan can't be had: {refused}")
            continue
        volatile = _ask(_Libpq(connection), "list_volatile_functions", got.functions - expected.functions)
        if not volatile:
            run[statement.name] = statement
        problems += [
            f"{where}: it calls {function}, and the shipped one doesn't; the server takes it to do anything"
            for (function,) in volatile
        ]
        problems += [f"{where}: {problem}" for problem in _plan_problems(statement.name, got, expected)]
        if got.order != expected.order:
            orders = (", ".join(order) or "nothing" for order in (got.order, expected.order))
            unproved.append(f"{where}: its plan sorts the rows by {' and the shipped one by '.join(orders)}")
    proof = Proof([given.name for given, _ in pairs], problems, unproved, outdated)
    return proof, Fit({statement.name: statement for statement in sound}, run)


def _plan_problems(name: str, got: "GenericPlan", expected: "GenericPlan") -> list[str]:
    """Where a plan writes, locks or reads otherwise than the shipped statement's."""
    problems = [f"it {what}, and the shipped one doesn't" for what in sorted((got.writes - expected.writes).keys())]
    problems += [
        f"it {what} nowhere, and the shipped one does" for what in sorted(expected.writes.keys() - got.writes.keys())
    ]
    if got.row_locks and not expected.row_locks:
        problems.append("it locks the rows that it reads, and the shipped one doesn't")
    elif got.row_locks < expected.row_locks:
        problems.append(
            f"it locks rows in {counted(got.row_locks, 'place')} before it changes them, and the shipped one in "
            f"{expected.row_locks}"
            if got.row_locks
            else "it locks no row before it changes it, and the shipped one does"
        )
    if whole := sorted((got.whole_reads - expected.whole_reads).elements()):
        problems += [
            f"its plan reads {what} whole, and the shipped one doesn't; no index serves its conditions or its order"
            for what in whole
        ]
    elif got.cost > max(_DEARER * expected.cost, _CHEAP):
        costs = f"its plan is estimated to cost {got.cost:,.0f}, and the shipped one's {expected.cost:,.0f}"
        problems.append(f"{costs}; `goqueue explain {name}` shows where")
    return problems


class _References(NamedTuple):
    """What a statement refers to beyond what goqueue's migrations and the server itself have made."""

    #: Outside goqueue and pg_catalog.
    foreign: list[str]
    #: What is not known of it, and why.
    unknown: list[str]
    #: Whether the statement can be planned: planning runs functions that are declared immutable or stable.
    are_known: bool


@cache
def _migrated() -> frozenset[str]:
    """The names of the tables, views, functions and types that the migrations make; functions with their arguments'
    types."""
    things = json.loads((shipped_folder("migrations") / "schema.json").read_text(encoding="utf-8"))
    # An argument stands there with its name: delete_unreferenced_jobs(ids uuid[]).
    return frozenset(
        "goqueue." + re.sub(r"([(,]) ?\w+ ", r"\1", name)
        for kind, name, *_ in things
        if kind in ("table", "function", "type")
    )


def _references(connection: Connection[Any], statement: Statement, types: tuple[int, ...]) -> _References:
    """Ask the server, whose parser alone knows what a name means: a function with the statement for its body, made and
    rolled back, depends on all that the statement names, whatever a planner would drop from it."""
    queries = load_queries()
    names = {int(key): name for key, name in _ask(_Libpq(connection), "describe_types", types)}
    arguments = ", ".join(names[kind] for kind in types)
    try:
        with connection.transaction(force_rollback=True):
            alone(
                connection,
                f"CREATE FUNCTION pg_temp.{_CHECK}({arguments}) RETURNS void LANGUAGE sql "
                f"BEGIN ATOMIC {statement.text}\n; END",
            )
            rows = list(queries.list_references(connection, function_name=_CHECK))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        why = f"what it refers to is not known, because no temporary function can be made: {_said(error)}"
        return _References([], [why], are_known=True)
    except psycopg.errors.FeatureNotSupported as error:
        return _References([f"command itself ({_said(error)})"], [], are_known=False)
    foreign = [f"{kind} {name}" for kind, name, schema in rows if schema not in ("goqueue", "pg_catalog")]
    added = [
        f"{kind} {name}"
        for kind, name, schema in rows
        if schema == "goqueue"
        and kind != "index"
        and name.replace("pg_catalog.", "").removesuffix("[]") not in _migrated()
    ]
    return _References(
        foreign,
        [f"its plan is not made, because it refers to the {what}, which goqueue has not made" for what in added],
        are_known=not added,
    )


class GenericPlan(NamedTuple):
    """A plan for no values in particular."""

    document: dict[str, Any]

    @property
    def cost(self) -> float:
        """The planner's estimate; reading a page in sequence is 1."""
        return float(self.document["Total Cost"])

    @property
    def scanned_tables(self) -> set[str]:
        """The tables of goqueue that are read from one end to the other."""
        return {table for table, node in self._scans() if node["Node Type"] == "Seq Scan"}

    @property
    def whole_reads(self) -> Counter[str]:
        """Tables read whole, and indexes read without a condition, each as often as it stands in the plan."""
        whole: Counter[str] = Counter()
        for table, node in self._scans():
            if node["Node Type"] in ("Seq Scan", "Sample Scan", "Tid Range Scan"):
                whole[f"the table goqueue.{table}"] += 1
            elif "Index Name" in node and "Index Cond" not in node:
                whole[f"the index {node['Index Name']}"] += 1
        return whole

    @property
    def writes(self) -> Counter[str]:
        """What it does to which table, each as often as it stands in the plan."""
        return Counter(
            f"{_WRITES[node['Operation']]} {node['Schema']}.{node['Relation Name']}"
            for node in self._nodes()
            if node["Node Type"] == "ModifyTable"
        )

    @property
    def row_locks(self) -> int:
        """In how many places it has FOR UPDATE or the like; how strong, and what it does about others' locks, no plan
        shows."""
        return sum(node["Node Type"] == "LockRows" for node in self._nodes())

    @property
    def order(self) -> list[str]:
        """What the rows that it returns are sorted by, where it sorts them; columns without their table."""
        node = self.document
        while "Sort Key" not in node and len(node.get("Plans", ())) == 1:
            [node] = node["Plans"]
        return [re.sub(r"\b\w+\.", "", key) for key in node.get("Sort Key", ())]

    @property
    def functions(self) -> set[str]:
        """The names of the functions that it calls; those in the schema goqueue left out."""
        texts = [text for node in self._nodes() for value in node.values() for text in _texts(value)]
        return {name for text in texts for schema, name in _CALL.findall(text) if schema != "goqueue."}

    def _nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.document]
        while waiting:
            yield (node := waiting.pop())
            waiting += node.get("Plans", ())

    def _scans(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The nodes that read a table of goqueue's or an index of one, with the table's name."""
        waiting = [("", self.document)]
        while waiting:
            above, node = waiting.pop()
            # A bitmap's index stands below the node that names the table.
            table = node.get("Relation Name") or ("" if node["Node Type"] == "ModifyTable" else above)
            if table in _TABLES and ("Relation Name" in node or "Index Name" in node):
                yield table, node
            waiting += [(table, child) for child in node.get("Plans", ())]


_CALL = re.compile(r'(\w+\.)?"?(\w+)"?\(')
_WRITES = {"Insert": "inserts into", "Update": "updates", "Delete": "deletes from", "Merge": "merges into"}


def _texts(value: Any) -> list[str]:
    """The expressions among the values of a plan's node."""
    return (
        [value]
        if isinstance(value, str)
        else [text for text in value if isinstance(text, str)]
        if isinstance(value, list)
        else []
    )


def generic_plans(
    connection: Connection[Any], statements: Iterable[Statement]
) -> dict[str, GenericPlan | psycopg.Error]:
    """The plan of each statement as the store's connections get it, by name; or the error that the server gave, such as
    a missing privilege. Nothing is run.

    For a connection in autocommit mode; the transaction is read only and rolled back. Statements without a plan
    (LISTEN) are left out.
    """
    queries = load_queries()
    plans: dict[str, GenericPlan | psycopg.Error] = {}
    with connection.transaction(force_rollback=True):
        # Planning runs functions that are declared immutable, whatever they do.
        for name, value in {"transaction_read_only": "on", **PLANNING}.items():
            queries.set_local(connection, name=name, value=value)
        for statement in statements:
            try:
                plan = _explained(connection, statement)
                if plan["Total Cost"] >= _PENALTY:
                    priced = _explained(connection, statement, _ANY_SCAN)
                    plan["Total Cost"] = priced["Total Cost"]
            except psycopg.errors.SyntaxError:
                continue  # a command that can't be prepared
            except psycopg.Error as error:
                if connection.info.transaction_status != pq.TransactionStatus.INTRANS:
                    raise
                plans[statement.name] = error
            else:
                plans[statement.name] = GenericPlan(plan)
    return plans


def _explained(
    connection: Connection[Any], statement: Statement, settings: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The top node of a statement's generic plan, made with ``settings`` beside the transaction's."""
    nulls = ", ".join("NULL" for _ in statement.parameters)
    explain = f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE {_CHECK}{f'({nulls})' if nulls else ''}".encode()
    with connection.transaction(force_rollback=True):
        for name, value in settings.items():
            load_queries().set_local(connection, name=name, value=value)
        # A prepared statement and EXECUTE, because EXPLAIN (GENERIC_PLAN) came with PostgreSQL 16.
        alone(connection, f"PREPARE {_CHECK} AS {statement.text}")
        try:
            # Within, so that what follows an error can still be sent.
            with connection.transaction(force_rollback=True):
                row: Any = connection.execute(explain, prepare=False).fetchone()
        finally:
            # A rollback would keep it.
            connection.execute(f"DEALLOCATE {_CHECK}".encode(), prepare=False)
    top: dict[str, Any] = row[0][0]["Plan"]
    return top


def _said(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())
