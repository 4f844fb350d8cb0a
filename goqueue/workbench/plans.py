"""Query plans: generic plans without values, and plans of a run, with flags."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg import Connection, pq

from goqueue.counts import counted
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.options import PLANNING
from goqueue.postgres.overrides import alone
from goqueue.postgres.queries import Statement
from goqueue.workbench.notes import QueryNote

PREPARED = "goqueue_check"
_TABLES = ("jobs", "job_failures")
# Before PostgreSQL 18, an unavoidable scan of a disabled kind costs 10^10 more. That is no estimate: such a plan is
# costed again with all scans enabled.
_PENALTY = 1e10
_ANY_SCAN = MappingProxyType({"enable_seqscan": "on"})


class GenericPlan(NamedTuple):
    """A plan without parameter values."""

    document: dict[str, Any]

    @property
    def cost(self) -> float:
        """The planner's estimate; a sequential page read costs 1."""
        return float(self.document["Total Cost"])

    @property
    def scanned_tables(self) -> set[str]:
        """The tables of goqueue that are read completely."""
        return {table for table, node in self._scans() if node["Node Type"] == "Seq Scan"}

    @property
    def whole_reads(self) -> Counter[str]:
        """Tables read completely and indexes read without a condition, with the number of their nodes in the plan."""
        whole: Counter[str] = Counter()
        for table, node in self._scans():
            if node["Node Type"] in ("Seq Scan", "Sample Scan", "Tid Range Scan"):
                whole[f"the table goqueue.{table}"] += 1
            elif "Index Name" in node and "Index Cond" not in node:
                whole[f"the index {node['Index Name']}"] += 1
        return whole

    @property
    def writes(self) -> Counter[str]:
        """Commands and their tables, with the number of their nodes in the plan."""
        return Counter(
            f"{_WRITES[node['Operation']]} {node['Schema']}.{node['Relation Name']}"
            for node in self._nodes()
            if node["Node Type"] == "ModifyTable"
        )

    @property
    def row_locks(self) -> int:
        """The number of nodes with FOR UPDATE or the like. A plan shows neither the lock's strength nor SKIP LOCKED and
        NOWAIT."""
        return sum(node["Node Type"] == "LockRows" for node in self._nodes())

    @property
    def order(self) -> list[str]:
        """The columns that the returned rows are sorted by, if they are, without their tables."""
        node = self.document
        while "Sort Key" not in node and len(node.get("Plans", ())) == 1:
            [node] = node["Plans"]
        return [re.sub(r"\b\w+\.", "", key) for key in node.get("Sort Key", ())]

    def functions(self, own: str) -> set[str]:
        """Return the names of the functions that it calls, except those in our ``own`` schema."""
        texts = [text for node in self._nodes() for value in node.values() for text in _texts(value)]
        return {name for text in texts for schema, name in _CALL.findall(text) if schema != f"{own}."}

    def _nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.document]
        while waiting:
            yield (node := waiting.pop())
            waiting += node.get("Plans", ())

    def _scans(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the nodes that read a table of goqueue's or an index of one, with the table's name."""
        waiting = [("", self.document)]
        while waiting:
            above, node = waiting.pop()
            # A bitmap index scan is below the node that names the table.
            table = node.get("Relation Name") or ("" if node["Node Type"] == "ModifyTable" else above)
            if table in _TABLES and ("Relation Name" in node or "Index Name" in node):
                yield table, node
            waiting += [(table, child) for child in node.get("Plans", ())]


_CALL = re.compile(r'(\w+\.)?"?(\w+)"?\(')
_WRITES = {"Insert": "inserts into", "Update": "updates", "Delete": "deletes from", "Merge": "merges into"}


def _texts(value: Any) -> list[str]:
    """Return the expressions in a plan node's values."""
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
    """Return the plan of each statement by name, as on the store's connections, or the server's error, such as a
    missing privilege. Nothing is executed.

    Needs a connection in autocommit mode; the read-only transaction is rolled back. Statements without a plan (LISTEN)
    are omitted.
    """
    queries = admin_queries()
    plans: dict[str, GenericPlan | psycopg.Error] = {}
    with connection.transaction(force_rollback=True):
        # The planner executes functions that are declared immutable.
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
    """Return the top node of a statement's generic plan, made with ``settings`` and the transaction's settings."""
    nulls = ", ".join("NULL" for _ in statement.parameters)
    explain = f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE {PREPARED}{f'({nulls})' if nulls else ''}".encode()
    with connection.transaction(force_rollback=True):
        for name, value in settings.items():
            admin_queries().set_local(connection, name=name, value=value)
        # EXECUTE of a prepared statement, because EXPLAIN (GENERIC_PLAN) needs PostgreSQL 16.
        alone(connection, f"PREPARE {PREPARED} AS {statement.text}")
        try:
            # In a savepoint, so that statements can follow an error.
            with connection.transaction(force_rollback=True):
                row: Any = connection.execute(explain, prepare=False).fetchone()
        finally:
            # A rollback would not remove it.
            connection.execute(f"DEALLOCATE {PREPARED}".encode(), prepare=False)
    top: dict[str, Any] = row[0][0]["Plan"]
    return top


# A flag is raised ...
_MANY_ROWS = 10_000  # ... for a sort of more rows
_FACTOR, _ROWS = 100, 1000  # ... for an estimate wrong by this factor, with at least this many rows on one side
_SMALL_TABLE = 10_000  # ... for a table read completely; with this many rows or more, it is a failure
_WASTED, _TIMES = 1000, 10  # ... for rows discarded, this many times those used; ten times as many are a failure


class Flag(msgspec.Struct, frozen=True):
    """A conspicuous part of a plan. ``is_failure``: its cost grows with the number of jobs."""

    kind: str
    text: str
    is_failure: bool = False


@dataclass(frozen=True)
class Plan:
    """The output of EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) for one run of a statement."""

    document: dict[str, Any]

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        return list(plan_nodes(self.document["Plan"]))

    @property
    def cost(self) -> float:
        """The planner's estimate, without penalties."""
        return float(self.document["Plan"]["Total Cost"]) % _PENALTY

    @property
    def is_compiled(self) -> bool:
        return "JIT" in self.document

    @property
    def named_indexes(self) -> set[str]:
        """The indexes in the plan, executed or not, including those that detect conflicts."""
        arbiters = {name for node in self.nodes for name in node.get("Conflict Arbiter Indexes", ())}
        return arbiters | {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def used_indexes(self) -> set[str]:
        """Those of them that this run read."""
        return {node["Index Name"] for node in self.nodes if "Index Name" in node and node.get("Actual Loops", 0) > 0}

    @property
    def table_scans(self) -> set[str]:
        """The kinds of nodes, executed or not, that read a whole table or an unknown part of it."""
        kinds = {node["Node Type"] for node in self.nodes if _is_of_a_table(node)}
        return kinds & {"Seq Scan", "Sample Scan", "Tid Range Scan"}

    @property
    def rows_read(self) -> float:
        """The table rows and index entries that scans returned or discarded."""
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
        """The pages read, from memory or not, counted each time."""
        return self.pages_hit + self.pages_read

    @property
    def shape(self) -> list[tuple[Any, ...]]:
        """The nodes and what they read, without figures: equal for equal plans."""
        return [tuple(node.get(part) for part in ("Node Type", "Relation Name", "Index Name")) for node in self.nodes]

    @cached_property
    def _flagged(self) -> list[tuple[dict[str, Any], Flag]]:
        return list(_flagged(self.document["Plan"]))

    def flags_of(self, node: dict[str, Any]) -> list[Flag]:
        """Return the flags of this node alone."""
        return [flag for flagged, flag in self._flagged if flagged is node]

    def flags(self, note: QueryNote) -> list[Flag]:
        """Return the flags, each once, including one for each index that the query's comment doesn't name."""
        flags = [flag for _, flag in self._flagged]
        if self.is_compiled:
            flags.append(Flag("jit", "the plan is compiled (jit), which usually takes longer than it saves here"))
        strangers = sorted(index for index in self.named_indexes if index not in note.index)
        flags += [Flag("index", f"{index} is not named by the query's comment") for index in strangers]
        return list(dict.fromkeys(flags))

    def __str__(self) -> str:
        return "\n".join(_lines(self.document["Plan"]))


def _flagged(
    node: dict[str, Any], *, is_cut_short: bool = False, is_guess: bool = False
) -> Iterator[tuple[dict[str, Any], Flag]]:
    """Yield each node that has its own flag, from the top.

    Below a Limit (``is_cut_short``) a scan ends before its estimate. The server can't estimate the rounds of a
    recursion (``is_guess``).
    """
    kind, planned, actual = node["Node Type"], node["Plan Rows"], node.get("Actual Rows", 0)
    loops = node.get("Actual Loops", 0)
    if kind == "Seq Scan" and _is_of_a_table(node):
        read = rows_read(node)
        seen = f"{_rows(read)} read" if loops else f"not run this time, {_rows(planned)} expected"
        is_failure = max(read, planned) >= _SMALL_TABLE
        yield node, Flag("seq scan", f"{node['Relation Name']} is read completely: {seen}", is_failure=is_failure)
    elif _is_of_a_table(node) and kind != "Sample Scan":  # it reads a fixed share of the table
        wasted = loops * sum(node.get(f"Rows Removed by {part}", 0) for part in ("Filter", "Index Recheck"))
        if wasted >= _WASTED and wasted > _TIMES * actual * loops:
            text = f"{_title(node)}: {wasted:,.0f} rows are read and discarded, {actual * loops:,.0f} are used"
            yield node, Flag("filter", text, is_failure=wasted >= 10 * _WASTED)
    if kind in ("Sort", "Incremental Sort") and actual * loops > _MANY_ROWS:
        yield node, Flag("sort", f"{actual * loops:,.0f} rows are sorted by {', '.join(node.get('Sort Key', ()))}")
    if node.get("Sort Space Type") == "Disk" or node.get("Hash Batches", 1) > 1 or node.get("Disk Usage", 0) > 0:
        yield node, Flag("spill", f"{kind} writes to temporary files: work_mem is too small for it")
    is_guess = is_guess or kind in ("Recursive Union", "CTE Scan")
    children = node.get("Plans", ())
    # Report the first wrong estimate, not its consequences further up.
    is_first = _is_misestimated(node) and not any(map(_is_misestimated, children))
    # A branch that the parameters disable is not a wrong estimate: something below it was never executed.
    is_cut_off = is_cut_short or not all(child.get("Actual Loops", 0) for child in children)
    if is_first and not is_guess and (actual > planned or not is_cut_off):
        yield node, Flag("estimate", f"{_title(node)}: {_rows(planned)} expected, {actual:,.0f} returned")
    is_cut_short = is_cut_short or kind == "Limit"
    for child in children:
        yield from _flagged(child, is_cut_short=is_cut_short, is_guess=is_guess)


def _rows(number: float) -> str:
    return counted(round(number), "row")


def _is_misestimated(node: dict[str, Any]) -> bool:
    high, low = sorted((node["Plan Rows"], node.get("Actual Rows", 0)), reverse=True)
    return bool(node.get("Actual Loops", 0) and high >= _ROWS and high > _FACTOR * max(low, 1))


def plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the node and all nodes below it, from the top."""
    yield node
    for child in node.get("Plans", ()):
        yield from plan_nodes(child)


def _is_of_a_table(node: dict[str, Any]) -> bool:
    name = node.get("Relation Name", "pg_")
    return not name.startswith("pg_") and name != "paused_queues"  # a few rows, which may all be read


def rows_read(node: dict[str, Any]) -> float:
    """Return the table rows or index entries that this node returned or discarded, in all its loops."""
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
