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
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.overrides import Libpq, alone, ask, changed_statements, compare_with_shipped, words_of
from goqueue.postgres.queries import Statement, load_queries
from goqueue.schemas import DEFAULT_SCHEMA, render
from goqueue.workbench.plans import PREPARED, GenericPlan, generic_plans

# The limits for a changed statement's estimated cost: a multiple of the shipped one's, or an amount (some
# milliseconds).
_TIMES_THE_COST, _CHEAP = 10, 1000


class Proof(NamedTuple):
    """The results for a folder."""

    #: The names of the queries that differ from the shipped ones; None if the files can't be loaded.
    changed: list[str] | None
    problems: list[str]
    #: What could not be proved, with the reason.
    unproved: list[str]
    #: Files whose shipped counterpart has changed since the export.
    outdated: list[str]


def prove_overrides(connection: Connection[Any], folder: Path | str) -> Proof:
    """Return all that can be proved about the files of ``folder`` without running them, on a connection in autocommit
    mode.

    In addition to `check_overrides`, three things are proved. A statement refers to nothing outside the schema goqueue
    and the server's catalogue, as the server resolves names. With sequential scans disabled, its plan reads no
    complete table or index that the shipped one doesn't read completely. Its estimated cost is less than ten times the
    shipped one's.
    """
    return examine(connection, folder)[0]


class Fit(NamedTuple):
    """The names of a folder's changed statements, by what is safe to do with them."""

    #: Safe to plan: they refer to nothing that planning could execute.
    planned: dict[str, Statement]
    #: Of these, safe to run on a scratch database: they can reach nothing else.
    run: dict[str, Statement]


def examine(connection: Connection[Any], folder: Path | str, schema: str = DEFAULT_SCHEMA) -> tuple[Proof, Fit]:
    """Return the results of `prove_overrides`, and the changed statements that are safe for more."""
    try:
        load_queries(folder, schema=schema)
    except ConfigError as error:
        return Proof(None, list(error.problems), [], []), Fit({}, {})  # each problem says if its file is outdated
    outdated = [
        f"{file} was exported from goqueue {export.version}, and the shipped file has changed since"
        for file, shipped in sql_files(folder, shipped_folder("sql"))
        if (export := is_outdated(file, shipped))
    ]
    pairs = changed_statements(folder, schema)
    found = compare_with_shipped(Libpq(connection), pairs)
    problems, unproved = list(found.problems), list(found.unproved)
    sound = []
    for statement, types in found.taken:
        where = f"{statement.file}, query {statement.name}"
        references = _references(connection, statement, types, schema)
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
            unproved.append(f"{where}: its plan can't be made: {refused}")
            continue
        new = got.functions(schema) - expected.functions(schema)
        volatile = ask(Libpq(connection), "list_volatile_functions", new, schema)
        if not volatile:
            run[statement.name] = statement
        problems += [
            f"{where}: it calls {function}, and the shipped one doesn't; the server assumes that it can do anything"
            for (function,) in volatile
        ]
        problems += [f"{where}: {problem}" for problem in _plan_problems(statement.name, got, expected)]
        if got.order != expected.order:
            orders = (", ".join(order) or "nothing" for order in (got.order, expected.order))
            unproved.append(f"{where}: its plan sorts the rows by {', the shipped one by '.join(orders)}")
    proof = Proof([given.name for given, _ in pairs], problems, unproved, outdated)
    return proof, Fit({statement.name: statement for statement in sound}, run)


def _plan_problems(name: str, got: "GenericPlan", expected: "GenericPlan") -> list[str]:
    """Return how a plan's writes, locks or reads differ from the shipped statement's."""
    problems = [f"it {what}, and the shipped one doesn't" for what in sorted((got.writes - expected.writes).keys())]
    problems += [
        f"it never {what}, and the shipped one does" for what in sorted(expected.writes.keys() - got.writes.keys())
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
            f"its plan reads all of {what}, and the shipped one doesn't; no index serves its conditions or its order"
            for what in whole
        ]
    elif got.cost > max(_TIMES_THE_COST * expected.cost, _CHEAP):
        costs = f"its plan's estimated cost is {got.cost:,.0f}, the shipped one's is {expected.cost:,.0f}"
        problems.append(f"{costs}; `goqueue explain {name}` shows where")
    return problems


class _References(NamedTuple):
    """A statement's references to objects other than goqueue's and the server's own."""

    #: Objects outside goqueue and pg_catalog.
    foreign: list[str]
    #: Unknown references, with the reason.
    unknown: list[str]
    #: True if the statement is safe to plan: planning executes functions that are declared immutable or stable.
    are_known: bool


@cache
def _migrated(schema: str) -> frozenset[str]:
    """Return the names of the migrations' tables, views, functions and types; functions with their argument types."""
    things = json.loads(render((shipped_folder("migrations") / "schema.json").read_text(encoding="utf-8"), schema))
    # The file includes the argument's name: delete_unreferenced_jobs(ids uuid[]).
    return frozenset(
        f"{schema}." + re.sub(r"([(,]) ?\w+ ", r"\1", name)
        for kind, name, *_ in things
        if kind in ("table", "function", "type")
    )


def _references(connection: Connection[Any], statement: Statement, types: tuple[int, ...], schema: str) -> _References:
    """Return a statement's references, from the server, because only its parser resolves names. A function with the
    statement as its body is created and rolled back. It depends on all objects that the statement names, including
    those that the planner would drop."""
    queries = admin_queries()
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
        why = f"its references are unknown, because a temporary function can't be created: {words_of(error)}"
        return _References([], [why], are_known=True)
    except psycopg.errors.FeatureNotSupported as error:
        return _References([f"command itself ({words_of(error)})"], [], are_known=False)
    foreign = [f"{kind} {name}" for kind, name, place in rows if place not in (schema, "pg_catalog")]
    added = [
        f"{kind} {name}"
        for kind, name, place in rows
        if place == schema
        and kind != "index"
        and name.replace("pg_catalog.", "").removesuffix("[]") not in _migrated(schema)
    ]
    return _References(
        foreign,
        [f"its plan is not made, because it refers to the {what}, which goqueue did not create" for what in added],
        are_known=not added,
    )
