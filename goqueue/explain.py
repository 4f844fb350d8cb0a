"""What EXPLAIN says of the queries, in a scratch database that is filled for it and dropped afterwards.

Imports goqueue.catalogue, contract, embedded, migrate, queries and session. The SQL here is
limited to making and dropping the scratch database, and to preparing, running and explaining what sql/ holds.
"""

import logging
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.catalogue import QueryNote
from goqueue.contract import alone
from goqueue.embedded import EmbeddedServer
from goqueue.errors import GoQueueError, StorageError
from goqueue.migrate import migrate
from goqueue.models import counted
from goqueue.queries import load_queries
from goqueue.safelog import log
from goqueue.secret import Secret, connect
from goqueue.session import PLANNING
from goqueue.sqlfiles import APART

_log = logging.getLogger("goqueue")

MODES = ("custom", "generic")
"""custom: planned for the values given, with the server's settings, as on a connection of the caller's own. generic:
planned once for any values, with the settings of goqueue's connections."""

SCRATCH = "^goqueue_explain_[0-9a-f]{12}$"
"""The names of scratch databases."""

REFUSALS = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
"""What a server says where no database can be made."""

_RUNS = 5
_CHUNK = 50_000  # jobs added by one statement, so that there is progress to show
_IN_MEMORY = 2_000_000  # rows that fit where the embedded server keeps throw-away data

# A flag is raised ...
_MANY_ROWS = 10_000  # ... for a sort of more rows
_FACTOR, _ROWS = 100, 1000  # ... for an estimate that is so many times off, and on one side at least so many rows
_SMALL_TABLE = 10_000  # ... for a table that was read whole; it is a failure from so many rows on
_WASTED, _TIMES = 1000, 10  # ... for rows read in vain, and so many times those of use; 10 times as many are a failure

# A changed statement is dearer than the shipped one ...
_DEARER = 2  # ... by so many times the rows or pages, and ...
_MORE_ROWS, _MORE_PAGES = 1000, 100  # ... at least so many of them
_SLOWER, _MORE_MS = 10, 10  # ... or by so many times the time and so many milliseconds, each at its fastest
_COSTLY = {"seq scan", "filter", "sort", "spill", "jit"}  # ... or by a flag of such a kind

#: For each scenario the parts that the table is filled with: a share of the rows, and what add_jobs makes of them.
SCENARIOS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "mixed": [
        (0.9, {"finished": 0.8, "later": 0.5, "priorities": 3, "running": True}),
        (0.1, {"later": 1.0, "priority": -5}),
    ],
    "backlog": [(1.0, {"finished": 0.1, "priorities": 3, "running": True})],
    "finished": [(1.0, {"finished": 0.998, "running": True})],
    "scheduled": [
        (0.1, {"finished": 0.5, "later": 0.5, "running": True}),
        (0.9, {"later": 1.0, "priority": -5}),
    ],
    "queues": [(1.0, {"finished": 0.8, "later": 0.5, "priorities": 3, "running": True, "queue_count": 10_000})],
}

Report = Callable[[str, float], None]
"""Is told what goes on, and how much of all of it is done (0 to 1)."""


def _silent(_text: str, _done: float) -> None:
    pass


class ExplainError(GoQueueError):
    """A query, a parameter or a table that can't be explained or filled as asked for."""


class Flag(msgspec.Struct, frozen=True):
    """Something in a plan worth a look. ``is_failure``: it costs more the more jobs there are."""

    kind: str
    text: str
    is_failure: bool = False


@dataclass(frozen=True)
class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) says of one run of a statement."""

    document: dict[str, Any]

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        return list(plan_nodes(self.document["Plan"]))

    @property
    def cost(self) -> float:
        return float(self.document["Plan"]["Total Cost"])

    @property
    def is_compiled(self) -> bool:
        return "JIT" in self.document

    @property
    def named_indexes(self) -> set[str]:
        """The indexes that stand in the plan, run or not, those that decide about a conflict included."""
        arbiters = {name for node in self.nodes for name in node.get("Conflict Arbiter Indexes", ())}
        return arbiters | {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def used_indexes(self) -> set[str]:
        """Those of them that this run read."""
        return {node["Index Name"] for node in self.nodes if "Index Name" in node and node.get("Actual Loops", 0) > 0}

    @property
    def table_scans(self) -> set[str]:
        """The kinds of nodes, run or not, that read a whole table or an unknown part of it."""
        kinds = {node["Node Type"] for node in self.nodes if _is_of_a_table(node)}
        return kinds & {"Seq Scan", "Sample Scan", "Tid Range Scan"}

    @property
    def rows_read(self) -> float:
        """The rows of the tables, or the entries of their indexes, that scans gave out or threw away."""
        return sum(map(rows_read, self.nodes))

    @property
    def rows_returned(self) -> float:
        return float(self.document["Plan"].get("Actual Rows", 0))

    def entries_read(self, index: str) -> float:
        return sum(rows_read(node) for node in self.nodes if node.get("Index Name") == index)

    @property
    def pages_hit(self) -> int:
        return int(self.document["Plan"]["Shared Hit Blocks"])

    @property
    def pages_read(self) -> int:
        return int(self.document["Plan"]["Shared Read Blocks"])

    @property
    def pages(self) -> int:
        """The pages that were looked at, in memory or not; one looked at twice counts twice."""
        return self.pages_hit + self.pages_read

    @property
    def shape(self) -> list[tuple[Any, ...]]:
        """What makes two plans the same: the nodes and what they read, without any figure."""
        return [tuple(node.get(part) for part in ("Node Type", "Relation Name", "Index Name")) for node in self.nodes]

    @cached_property
    def _flagged(self) -> list[tuple[dict[str, Any], Flag]]:
        return list(_flagged(self.document["Plan"]))

    def flags_of(self, node: dict[str, Any]) -> list[Flag]:
        """What is worth a look in this node alone."""
        return [flag for flagged, flag in self._flagged if flagged is node]

    def flags(self, note: QueryNote) -> list[Flag]:
        """What is worth a look, each once; an index that the query's comment doesn't name, too."""
        flags = [flag for _, flag in self._flagged]
        if self.is_compiled:
            flags.append(Flag("jit", "the plan is compiled (jit), which mostly takes longer than it saves here"))
        strangers = sorted(index for index in self.named_indexes if index not in note.index)
        flags += [Flag("index", f"{index} is not named by the query's comment") for index in strangers]
        return list(dict.fromkeys(flags))

    def __str__(self) -> str:
        return "\n".join(_lines(self.document["Plan"]))


def _flagged(
    node: dict[str, Any], *, is_cut_short: bool = False, is_guess: bool = False
) -> Iterator[tuple[dict[str, Any], Flag]]:
    """Each node with a flag of its own, from the top.

    Below a Limit (``is_cut_short``) a scan ends before its estimate. Of a recursion's rounds the server knows nothing
    (``is_guess``).
    """
    kind, planned, actual = node["Node Type"], node["Plan Rows"], node.get("Actual Rows", 0)
    loops = node.get("Actual Loops", 0)
    if kind == "Seq Scan" and _is_of_a_table(node):
        read = rows_read(node)
        seen = f"{_rows(read)} read" if loops else f"not run this time, {_rows(planned)} expected"
        is_failure = max(read, planned) >= _SMALL_TABLE
        yield node, Flag("seq scan", f"{node['Relation Name']} is read whole: {seen}", is_failure=is_failure)
    elif _is_of_a_table(node) and kind != "Sample Scan":  # which is bounded by its share of the table
        wasted = loops * sum(node.get(f"Rows Removed by {part}", 0) for part in ("Filter", "Index Recheck"))
        if wasted >= _WASTED and wasted > _TIMES * actual * loops:
            text = f"{_title(node)}: {wasted:,.0f} rows are read and thrown away, {actual * loops:,.0f} are of use"
            yield node, Flag("filter", text, is_failure=wasted >= 10 * _WASTED)
    if kind in ("Sort", "Incremental Sort") and actual * loops > _MANY_ROWS:
        yield node, Flag("sort", f"{actual * loops:,.0f} rows are sorted by {', '.join(node.get('Sort Key', ()))}")
    if node.get("Sort Space Type") == "Disk" or node.get("Hash Batches", 1) > 1 or node.get("Disk Usage", 0) > 0:
        yield node, Flag("spill", f"{kind} writes to temporary files: work_mem is too small for it")
    is_guess = is_guess or kind in ("Recursive Union", "CTE Scan")
    children = node.get("Plans", ())
    # Where it went wrong first, and not all the way up.
    is_first = _is_misestimated(node) and not any(map(_is_misestimated, children))
    # A branch that the parameters switch off was not estimated wrongly either: something below it never ran.
    is_cut_off = is_cut_short or not all(child.get("Actual Loops", 0) for child in children)
    if is_first and not is_guess and (actual > planned or not is_cut_off):
        yield node, Flag("estimate", f"{_title(node)}: {_rows(planned)} expected, {actual:,.0f} came")
    is_cut_short = is_cut_short or kind == "Limit"
    for child in children:
        yield from _flagged(child, is_cut_short=is_cut_short, is_guess=is_guess)


def _rows(number: float) -> str:
    return counted(round(number), "row")


def _is_misestimated(node: dict[str, Any]) -> bool:
    high, low = sorted((node["Plan Rows"], node.get("Actual Rows", 0)), reverse=True)
    return bool(node.get("Actual Loops", 0) and high >= _ROWS and high > _FACTOR * max(low, 1))


def plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The node and all below it, from the top."""
    yield node
    for child in node.get("Plans", ()):
        yield from plan_nodes(child)


def _is_of_a_table(node: dict[str, Any]) -> bool:
    return not node.get("Relation Name", "pg_").startswith("pg_")


def rows_read(node: dict[str, Any]) -> float:
    """The rows of a table, or the entries of an index, that this node gave out or threw away, in all its loops."""
    if not _is_of_a_table(node) or not node["Node Type"].endswith("Scan"):
        return 0
    parts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return float(sum(node.get(part, 0) for part in parts) * node.get("Actual Loops", 0))


def _title(node: dict[str, Any]) -> str:
    return " ".join(
        str(node[part])
        for part in ("Subplan Name", "Node Type", "Relation Name", "CTE Name", "Index Name")
        if part in node
    )


def _lines(node: dict[str, Any], depth: int = 0) -> Iterator[str]:
    numbers = (
        f"rows {node['Plan Rows']} -> {node.get('Actual Rows')} x {node.get('Actual Loops')}, cost {node['Total Cost']}"
    )
    pages = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
    yield f"{'  ' * depth}{_title(node)}: {numbers}, pages {pages}"
    for part in ("Index Cond", "Filter", "Rows Removed by Filter", "Hash Cond", "Join Filter"):
        if part in node:
            yield f"{'  ' * depth}    {part}: {node[part]}"
    for child in node.get("Plans", ()):
        yield from _lines(child, depth + 1)


class Explainer:
    """Prepares queries on one connection, and runs them inside transactions that are rolled back."""

    def __init__(
        self, connection: psycopg.Connection[Any], notes: Mapping[str, QueryNote], *, prefix: str = ""
    ) -> None:
        """``prefix`` of the prepared statements' names: what tells two explainers on one connection apart."""
        self.connection = connection
        self.notes = notes
        self._prefix = prefix
        self._prepared: set[str] = set()

    def plan(self, name: str, values: Mapping[str, Any], mode: str, options: str = "ANALYZE, BUFFERS") -> Plan:
        """The plan of one run with these values, one for each parameter; ``mode`` is one of MODES."""
        [(document,)] = self.execute(f"EXPLAIN ({options}, FORMAT JSON) ", name, values, mode)
        return Plan(document[0])

    def run(self, name: str, values: Mapping[str, Any], mode: str = "custom") -> list[tuple[Any, ...]]:
        """The rows of one run."""
        return self.execute("", name, values, mode)

    def execute(self, prefix: str, name: str, values: Mapping[str, Any], mode: str) -> list[tuple[Any, ...]]:
        """The rows of EXECUTE with ``prefix`` before it, rolled back."""
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
        """For a test: called at the start of each transaction."""


class ModeResult(msgspec.Struct, frozen=True):
    """One way to plan a query. Times in milliseconds: planning and execution are the median of some runs without
    instruments (a generic plan is made once: its planning is the first run's), fastest is the shortest of them,
    instrumented is the run of the plan."""

    mode: str
    planning_ms: float
    execution_ms: float
    fastest_ms: float
    instrumented_ms: float
    pages_hit: int
    pages_read: int
    rows_read: float
    rows_returned: float
    #: None when no row was returned.
    rows_read_per_row: float | None
    flags: list[Flag]
    #: EXPLAIN's JSON.
    plan: dict[str, Any]

    @property
    def pages(self) -> int:
        return self.pages_hit + self.pages_read


class Regression(msgspec.Struct, frozen=True):
    """Something that a changed query costs, in one mode, far above the shipped one: rows, pages, time, or a flag."""

    mode: str
    kind: str
    text: str


class Explanation(msgspec.Struct, frozen=True):
    """A query, the values it was given (as text), and its plans; of a changed one those of the shipped text, too."""

    name: str
    parameters: dict[str, str | None]
    plans: list[ModeResult]
    #: None where the query is the shipped one.
    shipped: list[ModeResult] | None = None
    regressions: list[Regression] = []

    @property
    def has_failed(self) -> bool:
        return any(flag.is_failure for plan in self.plans for flag in plan.flags)


def is_changed(note: QueryNote, shipped: QueryNote) -> bool:
    """Whether it is another statement; comments on lines of their own and white space aside."""

    def words(one: QueryNote) -> list[str]:
        return [word for line in one.body.splitlines() if not line.lstrip().startswith("--") for word in line.split()]

    return (note.parameters, words(note)) != (shipped.parameters, words(shipped))


def regressions(given: ModeResult, shipped: ModeResult) -> Iterator[Regression]:
    """What the given text costs in a mode, far above the shipped one."""
    for kind, mine, theirs, more in (
        ("rows", given.rows_read, shipped.rows_read, _MORE_ROWS),
        ("pages", given.pages, shipped.pages, _MORE_PAGES),
    ):
        if mine > _DEARER * theirs and mine - theirs >= more:
            yield Regression(given.mode, kind, f"{mine:,.0f} {kind} read, and {theirs:,.0f} by the shipped text")
    if given.fastest_ms > _SLOWER * shipped.fastest_ms and given.fastest_ms - shipped.fastest_ms >= _MORE_MS:
        text = f"{given.fastest_ms:,.2f} ms at its fastest, and {shipped.fastest_ms:,.2f} ms by the shipped text"
        yield Regression(given.mode, "time", text)
    known = {flag.kind for flag in shipped.flags}
    for flag in given.flags:
        if flag.kind in _COSTLY - known:
            yield Regression(given.mode, flag.kind, f"{flag.text}; the shipped text has no such flag")


def explainable(notes: Mapping[str, QueryNote]) -> list[str]:
    """The names of the queries that have a plan worth a look, in the files' order: the store's that read its tables."""
    return [
        name
        for name, note in notes.items()
        if note.can_be_prepared and "goqueue." in note.body and note.file not in APART
    ]


def explain_query(
    explainer: Explainer,
    name: str,
    given: Mapping[str, str | None],
    examples: Mapping[str, str],
    shipped: Explainer | None = None,
) -> Explanation:
    """The plans of a query; ``given`` are values by parameter, ``examples`` stand in for the others.

    With ``shipped``, an explainer of the shipped queries, a changed query is compared with the shipped one. Raises
    `ExplainError`, with the server's words, when it refuses the query or a value.
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


def example_values(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Values from a seeded database by "parameter" or "query.parameter". Query: example_values."""
    return dict(load_queries().example_values(connection))


# --- the scratch database -------------------------------------------------------------------------------------------


@contextmanager
def scratch_database(conninfo: str | None, rows: int) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a migrated, empty database of its own; it is dropped at the end, also after Ctrl-C or a SIGTERM.

    ``conninfo`` names a server whose role may make databases (one of REFUSALS else); None stands
    for an embedded server, with room for ``rows`` jobs.
    """
    with ExitStack() as stack:
        stack.enter_context(_on_signals(signal.default_int_handler))
        if conninfo is None:
            conninfo = stack.enter_context(EmbeddedServer(durable=rows > _IN_MEMORY)).url()
        conninfo = Secret(conninfo)
        scratch = stack.enter_context(_made_database(conninfo))
        migrate(scratch)
        connection = stack.enter_context(connect(scratch))
        # Whatever the role's own settings are: making an index may take its time.
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        # After a kill -9 the session ends within a second, not with the statement: see `drop_abandoned`.
        with suppress(psycopg.Error):  # a server on Windows has no such check
            connection.execute("SET client_connection_check_interval = '1s'")
        yield connection


@contextmanager
def _made_database(conninfo: Secret) -> Iterator[Secret]:
    name = f"goqueue_explain_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    # This connection stays open: its session holds the name, so that no other run takes the database for abandoned.
    with connect(conninfo) as connection:
        scratch = _conninfo_of(connection, name)
        fast = sql.SQL(" STRATEGY WAL_LOG" if connection.info.server_version >= 150000 else "")
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'{}")
        drop_abandoned(connection, SCRATCH)
        load_queries().hold_database(connection, name=name)
        is_refused = False
        try:
            try:
                connection.execute(create.format(identifier, fast))
            except REFUSALS:
                is_refused = True  # nothing to drop
                raise
            yield scratch
        finally:
            if not is_refused:
                with _on_signals(signal.SIG_IGN):  # a second Ctrl-C must not leave the database behind
                    _drop(conninfo, identifier)


def _conninfo_of(connection: psycopg.Connection[Any], database: str) -> Secret:
    """Another database of the connection's server, by the parameters in use, whichever service or variable they came
    from."""
    info = connection.info
    options: dict[str, Any] = conninfo_to_dict(info.dsn, password=info.password or None, dbname=database)
    options.pop("service", None)
    return Secret(make_conninfo(**options))


def drop_abandoned(connection: psycopg.Connection[Any], pattern: str) -> list[str]:
    """Drop the scratch databases of this role that a killed process has left, and return their names.

    ``pattern`` is a regular expression for the whole name. A database that a session holds (query hold_database), or
    in which somebody has a session, is left alone; so is one that can't be dropped. Query: list_abandoned_databases.
    """
    dropped = []
    with suppress(psycopg.Error):
        for (name,) in load_queries().list_abandoned_databases(connection, pattern=pattern):
            # Without FORCE: the server waits five seconds for sessions in it to end, and then refuses.
            with suppress(psycopg.Error):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
                dropped.append(name)
                log(_log, logging.INFO, "dropped %s, which a process that was killed had left", name)
    return dropped


def _drop(conninfo: Secret, identifier: sql.Identifier) -> None:
    try:
        with connect(conninfo) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
    except psycopg.Error as error:
        said = f"the scratch database {identifier.as_string()} could not be dropped, do it by hand: {error}"
        raise StorageError(said) from error


@contextmanager
def _on_signals(handler: Any) -> Iterator[None]:
    """What Ctrl-C, a SIGTERM and a closed terminal do meanwhile; only the main thread can say so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has no SIGHUP
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def seed(connection: psycopg.Connection[Any], rows: int, scenario: str, report: Report = _silent) -> None:
    """Fills the empty tables of a scratch database with ``rows`` jobs, as ``scenario`` (of SCENARIOS) has it."""
    parts = [(round(rows * share), options) for share, options in SCENARIOS[scenario]]
    with filling(connection, report):
        added = 0
        for part, options in parts:
            rest = {name: value for name, value in options.items() if name != "running"}
            if "running" in options:
                rest["running_every"] = max(rows // 500, 20)
            for chunk in add_jobs(connection, part, chunk=_CHUNK, **rest):
                added += chunk
                report("adding jobs", 0.6 * added / rows)


@contextmanager
def filling(connection: psycopg.Connection[Any], report: Report = _silent) -> Iterator[None]:
    """Before and after `add_jobs`: without indexes rows are added faster. Raises `ExplainError` if there are jobs."""
    queries = load_queries()
    is_empty, *_ = queries.seed_session(connection)
    if not is_empty:
        raise ExplainError("goqueue.jobs has rows: only an empty scratch database is filled")
    queries.seed_jobs_table(connection)
    queries.seed_failures_table(connection)
    indexes = list(queries.index_statements(connection))
    for drop, _ in indexes:
        connection.execute(drop.encode())
    yield
    for number, (_, create) in enumerate(indexes):
        report("making the indexes", 0.6 + 0.3 * number / len(indexes))
        connection.execute(create.encode())
    report("recording failures", 0.9)
    queries.seed_failures(connection)
    report("vacuum and analyze", 0.92)
    queries.vacuum_jobs(connection)
    queries.vacuum_failures(connection)
    report("done", 1.0)


def add_jobs(
    connection: psycopg.Connection[Any],
    rows: int,
    *,
    queue: str | None = None,
    queue_count: int = 100,
    finished: float = 0.0,
    later: float = 0.0,
    priority: int = 0,
    priorities: int = 1,
    running_every: int = 2**31 - 1,
    chunk: int = 2**31 - 1,
) -> Iterator[int]:
    """Adds ``rows`` jobs, and gives how many each statement added (at most ``chunk``). Query: seed_jobs.

    The share ``finished`` of them is, and of the others the share ``later`` is not due yet.
    """
    for first in range(1, rows + 1, chunk):
        yield load_queries().seed_jobs(
            connection,
            first_number=first,
            last_number=min(first + chunk - 1, rows),
            job_rows=rows,
            queue=queue,
            queue_count=queue_count,
            finished=finished,
            later=later,
            priority=priority,
            priorities=priorities,
            running_every=running_every,
        )
