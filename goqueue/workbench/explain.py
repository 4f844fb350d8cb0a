"""Plans of queries with values, in both modes, compared with those of the shipped text."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from goqueue.files import APART
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.lexemes import bare
from goqueue.postgres.options import PLANNING
from goqueue.postgres.overrides import alone
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.testing.scratch import ExplainError
from goqueue.workbench.notes import QueryNote
from goqueue.workbench.plans import Flag, Plan

MODES = ("custom", "generic")
"""custom: planned for the given values with the server's settings, as on a caller's own connection. generic: planned
once for any values, with the settings of goqueue's connections."""
_RUNS = 5
# A changed statement is more expensive than the shipped one if it takes ...
_TIMES_AS_MUCH = 2  # ... this many times the rows or pages, and ...
_MORE_ROWS, _MORE_PAGES = 1000, 100  # ... at least this many more of them
_SLOWER, _MORE_MS = 10, 10  # ... or this many times the time and this many more milliseconds, each at its fastest
_COSTLY = {"seq scan", "filter", "sort", "spill", "jit"}  # ... or if it has a new flag of one of these kinds


class Explainer:
    """Prepares queries on one connection, and runs them inside transactions that are rolled back."""

    def __init__(
        self, connection: psycopg.Connection[Any], notes: Mapping[str, QueryNote], *, prefix: str = ""
    ) -> None:
        """``prefix`` starts the prepared statements' names: it separates two explainers on one connection."""
        self.connection = connection
        self.notes = notes
        self._prefix = prefix
        self._prepared: set[str] = set()

    def plan(self, name: str, values: Mapping[str, Any], mode: str, options: str = "ANALYZE, BUFFERS") -> Plan:
        """Return the plan of one run with these values, one per parameter. ``mode`` is one of MODES."""
        [(document,)] = self.execute(f"EXPLAIN ({options}, FORMAT JSON) ", name, values, mode)
        return Plan(document[0])

    def run(self, name: str, values: Mapping[str, Any], mode: str = "custom") -> list[tuple[Any, ...]]:
        """Return the rows of one run."""
        return self.execute("", name, values, mode)

    def execute(self, prefix: str, name: str, values: Mapping[str, Any], mode: str) -> list[tuple[Any, ...]]:
        """Return the rows of EXECUTE with ``prefix`` before it. Roll back."""
        note = self.notes[name]
        if name not in self._prepared:
            types = f"({', '.join(note.types[parameter] for parameter in note.parameters)})" if note.parameters else ""
            alone(self.connection, f"PREPARE {self._prefix}{name} {types} AS {note.statement}")
            self._prepared.add(name)
        arguments = sql.SQL(", ").join(sql.Literal(values[parameter]) for parameter in note.parameters)
        statement = sql.SQL("{}EXECUTE {}{}").format(
            sql.SQL(prefix),
            sql.Identifier(self._prefix + name),
            sql.SQL("({})").format(arguments) if note.parameters else sql.SQL(""),
        )
        with self.connection.transaction(force_rollback=True):
            self.before_a_run()
            settings = PLANNING if mode == "generic" else {"plan_cache_mode": "force_custom_plan"}
            for setting, value in settings.items():
                self.connection.execute(f"SET LOCAL {setting} = {value}".encode())
            return self.connection.execute(statement).fetchall()

    def before_a_run(self) -> None:
        """Do nothing. A hook for tests, called at the start of each transaction."""


class ModeResult(msgspec.Struct, frozen=True):
    """The results of a query in one mode. Times are in milliseconds: planning and execution are the median of several
    runs without instrumentation; fastest is the shortest of them; instrumented is the run of the plan. A generic plan
    is made once: its planning time is that of the first run."""

    mode: str
    planning_ms: float
    execution_ms: float
    fastest_ms: float
    instrumented_ms: float
    pages_hit: int
    pages_read: int
    rows_read: float
    rows_returned: float
    #: None if no row was returned.
    rows_read_per_row: float | None
    flags: list[Flag]
    #: EXPLAIN's JSON.
    plan: dict[str, Any]

    @property
    def pages(self) -> int:
        return self.pages_hit + self.pages_read


class Regression(msgspec.Struct, frozen=True):
    """A cost of a changed query, in one mode, that far exceeds the shipped one's: rows, pages, time, or a flag."""

    mode: str
    kind: str
    text: str


class Explanation(msgspec.Struct, frozen=True):
    """A query, its values (as text), and its plans; for a changed query, those of the shipped text too."""

    name: str
    parameters: dict[str, str | None]
    plans: list[ModeResult]
    #: None if the query is the shipped one.
    shipped: list[ModeResult] | None = None
    regressions: list[Regression] = []

    @property
    def has_failed(self) -> bool:
        return any(flag.is_failure for plan in self.plans for flag in plan.flags)


def is_changed(note: QueryNote, shipped: QueryNote) -> bool:
    """Return True if the statement differs, except for comments and white space outside of quotes."""
    return (note.parameters, bare(note.statement)) != (shipped.parameters, bare(shipped.statement))


def regressions(given: ModeResult, shipped: ModeResult) -> Iterator[Regression]:
    """Yield the costs of the given text, in one mode, that far exceed the shipped one's."""
    for kind, mine, theirs, more in (
        ("rows", given.rows_read, shipped.rows_read, _MORE_ROWS),
        ("pages", given.pages, shipped.pages, _MORE_PAGES),
    ):
        if mine > _TIMES_AS_MUCH * theirs and mine - theirs >= more:
            yield Regression(given.mode, kind, f"{mine:,.0f} {kind} read, {theirs:,.0f} by the shipped text")
    if given.fastest_ms > _SLOWER * shipped.fastest_ms and given.fastest_ms - shipped.fastest_ms >= _MORE_MS:
        text = f"{given.fastest_ms:,.2f} ms at its fastest, {shipped.fastest_ms:,.2f} ms by the shipped text"
        yield Regression(given.mode, "time", text)
    known = {flag.kind for flag in shipped.flags}
    for flag in given.flags:
        if flag.kind in _COSTLY - known:
            yield Regression(given.mode, flag.kind, f"{flag.text}; the shipped text has no such flag")


def explainable(notes: Mapping[str, QueryNote], schema: str = DEFAULT_SCHEMA) -> list[str]:
    """Return the names of the store's queries that read its tables, in the files' order."""
    return [
        name
        for name, note in notes.items()
        if note.can_be_prepared and f"{schema}." in note.statement and note.file not in APART
    ]


def explain_query(
    explainer: Explainer,
    name: str,
    given: Mapping[str, str | None],
    examples: Mapping[str, str],
    shipped: Explainer | None = None,
) -> Explanation:
    """Return the plans of a query. ``given`` has values by parameter; ``examples`` supplies the others.

    With ``shipped``, an explainer of the shipped queries, a changed query is compared with the shipped one. Raises
    `ExplainError`, with the server's message, if it rejects the query or a value.
    """
    note = explainer.notes[name]
    values = {
        parameter: given[parameter]
        if parameter in given
        else examples.get(f"{name}.{parameter}", examples.get(parameter))
        for parameter in note.parameters
    }
    plans = _plans(explainer, note, values)
    if shipped is None or not is_changed(note, shipped.notes[name]):
        return Explanation(name, values, plans)
    original = shipped.notes[name]
    if missing := [parameter for parameter in original.parameters if parameter not in values]:
        raise ExplainError(f"{name} can't be compared with the shipped one: it lacks {', '.join(missing)}")
    theirs = _plans(shipped, original, values)
    found = [each for one, other in zip(plans, theirs, strict=True) for each in regressions(one, other)]
    return Explanation(name, values, plans, theirs, found)


def _plans(explainer: Explainer, note: QueryNote, values: Mapping[str, Any]) -> list[ModeResult]:
    try:
        return [_explain_mode(explainer, note, values, mode) for mode in MODES]
    except psycopg.Error as error:
        raise ExplainError(f"{note.name} can't be explained: {str(error).strip()}") from error


def _explain_mode(explainer: Explainer, note: QueryNote, values: Mapping[str, Any], mode: str) -> ModeResult:
    plan = explainer.plan(note.name, values, mode)
    runs = [explainer.plan(note.name, values, mode, "ANALYZE, TIMING OFF, BUFFERS OFF").document for _ in range(_RUNS)]
    planning = [run["Planning Time"] for run in runs] if mode == "custom" else [plan.document["Planning Time"]]
    return ModeResult(
        mode=mode,
        planning_ms=median(planning),
        execution_ms=median(run["Execution Time"] for run in runs),
        fastest_ms=min(run["Execution Time"] for run in runs),
        instrumented_ms=plan.document["Execution Time"],
        pages_hit=plan.pages_hit,
        pages_read=plan.pages_read,
        rows_read=plan.rows_read,
        rows_returned=plan.rows_returned,
        rows_read_per_row=plan.rows_read / plan.rows_returned if plan.rows_returned else None,
        flags=plan.flags(note),
        plan=plan.document,
    )


def example_values(connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA) -> dict[str, str]:
    """Return values from a seeded database, by "parameter" or "query.parameter". Query: example_values."""
    return dict(admin_queries(schema).example_values(connection))
