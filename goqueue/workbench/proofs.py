"""Proofs for `goqueue check`: references, writes, locks and plans of a folder's statements."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from goqueue.counts import counted
from goqueue.errors import ConfigError
from goqueue.files import is_outdated, shipped_folder, sql_files
from goqueue.postgres.overrides import Libpq, alone, ask, changed_statements, compare_with_shipped, words_of
from goqueue.postgres.queries import Statement, load_queries
from goqueue.workbench.plans import PREPARED, GenericPlan, generic_plans

# By the planner's estimate a changed statement may be so many times as dear as the shipped one, or cost so much: some
# milliseconds.
_DEARER, _CHEAP = 10, 1000


class Proof(NamedTuple):
    """What was found out about a folder."""

    #: The names of the queries that differ from the shipped ones; None where the files can't be loaded.
    changed: list[str] | None
    problems: list[str]
    #: What could not be proved, and why.
    unproved: list[str]
    #: Files whose shipped counterpart has changed since they were exported.
    outdated: list[str]


def prove_overrides(connection: Connection[Any], folder: Path | str) -> Proof:
    """All that can be known of the files of ``folder`` without running them, on a connection in autocommit mode.

    Beyond `check_overrides`: a statement refers to nothing outside the schema goqueue and the server's own catalogue,
    as the server resolves it; its plan reads no table or index whole that the shipped one doesn't, on a server that is
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
    """`prove_overrides`, and the changed statements that are fit for more."""
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
    pairs = changed_statements(folder)
    found = compare_with_shipped(Libpq(connection), pairs)
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
        volatile = ask(Libpq(connection), "list_volatile_functions", got.functions - expected.functions)
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
    names = {int(key): name for key, name in ask(Libpq(connection), "describe_types", types)}
    arguments = ", ".join(names[kind] for kind in types)
    try:
        with connection.transaction(force_rollback=True):
            alone(
                connection,
                f"CREATE FUNCTION pg_temp.{PREPARED}({arguments}) RETURNS void LANGUAGE sql "
                f"BEGIN ATOMIC {statement.text}\n; END",
            )
            rows = list(queries.list_references(connection, function_name=PREPARED))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        why = f"what it refers to is not known, because no temporary function can be made: {words_of(error)}"
        return _References([], [why], are_known=True)
    except psycopg.errors.FeatureNotSupported as error:
        return _References([f"command itself ({words_of(error)})"], [], are_known=False)
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
