"""What the plan tests stand on: a database filled as a busy year fills it, and what EXPLAIN says of a statement there.

Imports goqueue.catalogue, goqueue.queries and psycopg.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql

from goqueue.catalogue import QueryNote, read_notes
from goqueue.queries import load_queries

# The statements of `goqueue check` read the server's catalogue, and no table that grows.
NOTES: dict[str, QueryNote] = {note.name: note for note in read_notes() if note.file != "checks.sql"}
MODES = ("custom", "generic")
JIT_ABOVE_COST = 100_000
"""The server's default: a plan that is estimated dearer is compiled, which takes longer than these plans run."""

# Without a queue of its own, a job's queue is one of a hundred: queue_00 has two fifths of the jobs, queue_98 0.2 %,
# queue_99 (with the type type_rare) one in 50,000. A queue has some four of 40 job types. Ages: 28 days, evenly. One in
# 50 finished ten days after it was created. A tenth of the leases has expired. Ids are UUIDv7 in the order of creation.
_JOBS = """
INSERT INTO goqueue.jobs (
    id, queue, job_type, payload, status, priority, attempts, last_error, idempotency_key, lease_token,
    locked_by, locked_at, lease_expires_at, scheduled_at, created_at, updated_at, started_at, completed_at
)
SELECT
    (
        lpad(to_hex((extract(epoch FROM d.created_at) * 1000)::bigint), 12, '0')
        || '7' || substr(d.hash, 1, 3) || '8' || substr(d.hash, 4, 15)
    )::uuid,
    CASE
        WHEN %(queue)s::text IS NOT NULL THEN %(queue)s::text
        WHEN d.n %% 50000 = 0 THEN 'queue_99'
        ELSE 'queue_' || lpad(d.queue_no::text, 2, '0')
    END,
    CASE WHEN d.n %% 50000 = 0 THEN 'type_rare' ELSE 'type_' || (d.queue_no * 7 + d.type_no) %% 40 END,
    '{"to": "someone@example.com", "template": "welcome"}',
    d.status,
    %(priority)s + d.n %% %(priorities)s,
    CASE WHEN d.status = 'pending' THEN 0 WHEN d.n %% 20 = 0 THEN 2 ELSE 1 END,
    CASE WHEN d.status = 'dead' THEN 'TimeoutError: the mail server did not answer' END,
    CASE WHEN d.n %% 10 = 0 THEN 'key-' || d.hash END,
    (d.status <> 'pending')::integer,
    CASE WHEN d.status = 'running' THEN 'worker-1' END,
    CASE WHEN d.status = 'running' THEN now() END,
    CASE WHEN d.status = 'running' THEN now() + CASE WHEN d.luck < 0.1 THEN '-1 hour' ELSE '1 day' END::interval END,
    CASE
        WHEN d.status = 'pending' AND d.chance_later < %(later)s THEN now() + (1 + d.luck * 30) * interval '1 day'
        ELSE d.created_at + d.luck * interval '10 minutes'
    END,
    d.created_at,
    d.created_at,
    CASE WHEN d.status <> 'pending' THEN d.created_at + interval '15 minutes' END,
    CASE
        WHEN d.status IN ('completed', 'dead', 'cancelled')
            THEN d.created_at + CASE WHEN d.n %% 50 = 0 THEN interval '10 days' ELSE interval '16 minutes' END
    END
FROM (
    SELECT
        r.*,
        md5(concat(%(queue)s::text, %(priority)s, '/', r.n)) AS hash,
        now() - interval '20 minutes' - interval '28 days' * (1 - r.n / %(rows)s::double precision) AS created_at,
        least(98, floor(r.chance_queue ^ 5 * 100))::integer AS queue_no,
        floor(r.chance_type ^ 2 * 4)::integer AS type_no,
        CASE
            WHEN r.n %% %(running_every)s = 0 THEN 'running'
            WHEN r.chance_status < %(finished)s * 0.9375 THEN 'completed'
            WHEN r.chance_status < %(finished)s * 0.975 THEN 'dead'
            WHEN r.chance_status < %(finished)s THEN 'cancelled'
            ELSE 'pending'
        END::goqueue.job_status AS status
    FROM (
        SELECT
            n,
            random() AS chance_queue,
            random() AS chance_type,
            random() AS chance_status,
            random() AS chance_later,
            random() AS luck
        FROM generate_series(1, %(rows)s) AS n
    ) AS r
    OFFSET 0 -- Each expression once, and not wherever its column is used.
) AS d
"""
_FAILURES = """
INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, failed_at, started_at, worker_id, error)
SELECT id, 1, 1, updated_at, started_at, 'worker-1', 'TimeoutError: the mail server did not answer'
FROM goqueue.jobs
WHERE status = 'dead' OR attempts > 1
"""
_INDEXES = """
SELECT
    coalesce(
        'ALTER TABLE goqueue.jobs DROP CONSTRAINT ' || quote_ident(c.conname),
        'DROP INDEX ' || i.indexrelid::regclass
    ),
    coalesce(
        'ALTER TABLE goqueue.jobs ADD CONSTRAINT ' || quote_ident(c.conname) || ' ' || pg_get_constraintdef(c.oid),
        pg_get_indexdef(i.indexrelid)
    )
FROM pg_index AS i
LEFT JOIN pg_constraint AS c ON i.indexrelid = c.conindid
WHERE i.indrelid = 'goqueue.jobs'::regclass
"""


def add_jobs(
    connection: psycopg.Connection[Any],
    rows: int,
    *,
    queue: str | None = None,
    finished: float = 0.0,
    later: float = 0.0,
    priority: int = 0,
    priorities: int = 1,
    running_every: int = 2**31 - 1,
) -> None:
    """Adds ``rows`` jobs: the share ``finished`` of them is, and of the others the share ``later`` is not due yet."""
    psycopg.ClientCursor(connection).execute(
        _JOBS,
        {
            "rows": rows,
            "queue": queue,
            "finished": finished,
            "later": later,
            "priority": priority,
            "priorities": priorities,
            "running_every": running_every,
        },
    )


def seed(connection: psycopg.Connection[Any], name: str, rows: int) -> None:
    """Fills the empty tables of a database that is the caller's alone; ``name`` is history or future."""
    for setting in ("maintenance_work_mem = '512MB'", "synchronous_commit = on"):
        connection.execute(f"SET {setting}")
    for table in ("jobs", "job_failures"):
        # The plans of a test must not depend on what autovacuum did meanwhile.
        connection.execute(f"ALTER TABLE goqueue.{table} SET UNLOGGED, SET (autovacuum_enabled = off)")
    indexes = connection.execute(_INDEXES).fetchall()
    for drop, _ in indexes:
        connection.execute(drop)
    connection.execute("SELECT setseed(0.5)")
    if name == "history":
        add_jobs(connection, rows, finished=0.8, later=0.5, priorities=3, running_every=max(rows // 500, 1))
        add_jobs(connection, rows // 20, queue="archive", finished=0.998)
        add_jobs(connection, rows // 10, queue="churn")
    else:
        add_jobs(connection, rows // 20, finished=0.8, later=0.5, priorities=3, running_every=max(rows // 10000, 1))
        add_jobs(connection, rows, queue="future", later=1.0, priority=-5)
        add_jobs(connection, 1000, queue="future")
    for _, create in indexes:
        connection.execute(create)
    connection.execute(_FAILURES)
    for table in ("jobs", "job_failures"):
        connection.execute(f"VACUUM (ANALYZE) goqueue.{table}")


@dataclass(frozen=True)
class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS) says of one run of a statement, and the rows that a run gave."""

    document: dict[str, Any]

    @cached_property
    def nodes(self) -> list[dict[str, Any]]:
        return list(_nodes(self.document["Plan"]))

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
        kinds = {node["Node Type"] for node in self.nodes if node.get("Relation Name") in ("jobs", "job_failures")}
        return kinds & {"Seq Scan", "Sample Scan", "Tid Range Scan"}

    @property
    def rows_read(self) -> float:
        """The rows of the tables, or the entries of their indexes, that scans gave out or threw away."""
        return sum(map(_rows_read, self.nodes))

    def entries_read(self, index: str) -> float:
        return sum(_rows_read(node) for node in self.nodes if node.get("Index Name") == index)

    @property
    def pages(self) -> int:
        """The pages that were looked at, in memory or not; one looked at twice counts twice."""
        plan = self.document["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    def __str__(self) -> str:
        return "\n".join(_lines(self.document["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows_read(node: dict[str, Any]) -> float:
    if node.get("Relation Name") not in ("jobs", "job_failures") or not node["Node Type"].endswith("Scan"):
        return 0
    parts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(node.get(part, 0) for part in parts) * node.get("Actual Loops", 0)


def _lines(node: dict[str, Any], depth: int = 0) -> Iterator[str]:
    title = " ".join(
        str(node[part]) for part in ("Subplan Name", "Node Type", "Relation Name", "Index Name") if part in node
    )
    numbers = (
        f"rows {node['Plan Rows']} -> {node.get('Actual Rows')} x {node.get('Actual Loops')}, cost {node['Total Cost']}"
    )
    pages = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
    yield f"{'  ' * depth}{title}: {numbers}, pages {pages}"
    for part in ("Index Cond", "Filter", "Rows Removed by Filter", "Hash Cond", "Join Filter"):
        if part in node:
            yield f"{'  ' * depth}    {part}: {node[part]}"
    for child in node.get("Plans", ()):
        yield from _lines(child, depth + 1)


def statement_of(name: str) -> str:
    """The query as the server knows it: $1, $2 … in the order of its parameters."""
    parameters = NOTES[name].parameters
    text = re.sub(
        r"%\((\w+)\)s|%%",
        lambda match: f"${parameters.index(match[1]) + 1}" if match[1] else "%",
        getattr(load_queries(), name).sql,
    )
    return text.strip().rstrip(";")


class Explainer:
    """Prepares queries on one connection, and runs them inside transactions that are rolled back."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._prepared: set[str] = set()
        #: How many entries of the claim index the latest run has read.
        self.entries_read = 0

    def explain(self, name: str, values: Mapping[str, Any], mode: str, pages: float) -> Plan:
        """The plan of a run with these values; ``mode`` is custom or generic.

        The tests leave index entries of rolled back transactions behind. A scan marks those it meets, if no transaction
        that is older still writes, in whatever database: so a run that looked at more than ``pages`` is repeated.
        """
        deadline = time.monotonic() + 20
        while True:
            with self._execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ", name, values, mode) as rows:
                [(document,)] = rows
            plan = Plan(document[0])
            if plan.pages <= pages or time.monotonic() > deadline:
                return plan
            time.sleep(0.1)

    def explain_text(self, statement: str, pages: float) -> Plan:
        """`explain` for a statement that is no query of ours."""
        deadline = time.monotonic() + 20
        while True:
            cursor = psycopg.ClientCursor(self.connection)
            [(document,)] = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").fetchall()
            plan = Plan(document[0])
            if plan.pages <= pages or time.monotonic() > deadline:
                return plan
            time.sleep(0.1)

    def run(self, name: str, values: Mapping[str, Any], mode: str = "custom") -> list[tuple[Any, ...]]:
        with self._execute("", name, values, mode) as rows:
            return rows

    def generic_plan(self, name: str) -> Plan:
        """The plan for no values in particular, not run. From PostgreSQL 16 on."""
        cursor = psycopg.ClientCursor(self.connection)
        [(document,)] = cursor.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement_of(name)}").fetchall()
        return Plan(document[0])

    @contextmanager
    def _execute(self, prefix: str, name: str, values: Mapping[str, Any], mode: str) -> Iterator[list[tuple[Any, ...]]]:
        assert set(values) == set(NOTES[name].parameters), name
        if name not in self._prepared:
            self.connection.execute(f"PREPARE {name} AS {statement_of(name)}")
            self._prepared.add(name)
        arguments = sql.SQL(", ").join(sql.Literal(values[parameter]) for parameter in NOTES[name].parameters)
        statement = sql.SQL("{}EXECUTE {}{}").format(
            sql.SQL(prefix), sql.Identifier(name), sql.SQL("({})").format(arguments) if values else sql.SQL("")
        )
        with self.connection.transaction(force_rollback=True):
            # One at a time: workers of a test run share the database, and claims pass over what another has locked.
            self.connection.execute("SELECT pg_advisory_xact_lock(1)")
            self.connection.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan")
            before = self._entries()
            rows = self.connection.execute(statement).fetchall()
            self.entries_read = self._entries() - before
            yield rows

    def _entries(self) -> int:
        [(count,)] = self.connection.execute(
            "SELECT pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass)"
        ).fetchall()
        return int(count)
