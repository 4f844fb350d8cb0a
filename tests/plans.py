"""The base of the plan tests: a database as after a busy year, and EXPLAIN of statements there.

Imports goqueue.testing.scratch and goqueue.workbench, which provide the seed, the plans and the explainer, and psycopg.
"""

import time
from collections.abc import Mapping
from typing import Any

import psycopg

from goqueue.files import APART
from goqueue.testing.scratch import add_jobs, filling
from goqueue.workbench import explain
from goqueue.workbench.explain import MODES
from goqueue.workbench.notes import QueryNote, read_notes
from goqueue.workbench.plans import Plan

__all__ = ["JIT_ABOVE_COST", "MODES", "NOTES", "Explainer", "Plan", "kept_plans", "seed"]

# These files explain and seed, and are not explained: seed.sql fills scratch databases, statements.sql reads an
# extension, checks.sql the server's catalogue.
NOTES: dict[str, QueryNote] = {note.name: note for note in read_notes() if note.file not in APART}
JIT_ABOVE_COST = 100_000
"""The server's default: a plan with a higher estimate is compiled, which takes longer than these plans run."""


def seed(connection: psycopg.Connection[Any], name: str, rows: int) -> None:
    """Fill the empty tables of a private database; ``name`` is history or future."""

    def add(count: int, **options: Any) -> None:
        for _ in add_jobs(connection, count, **options):
            pass

    with filling(connection):
        if name == "history":
            add(rows, finished=0.8, later=0.5, priorities=3, running_every=max(rows // 500, 1))
            add(rows // 20, queue="archive", finished=0.998)
            add(rows // 10, queue="churn")
        else:
            add(rows // 20, finished=0.8, later=0.5, priorities=3, running_every=max(rows // 10000, 1))
            # Enough that a claim which reads them exceeds its limits.
            add(rows * 2 // 5, queue="future", later=1.0, priority=-5)
            add(1000, queue="future")


def kept_plans(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Return the statements on jobs that a connection has prepared, each with its plan."""
    prepared = connection.execute(
        "SELECT name, cardinality(parameter_types), statement FROM pg_prepared_statements"
        " WHERE statement LIKE '%goqueue.jobs%' AND statement LIKE '%/* goqueue:%'"
    ).fetchall()
    plans = []
    for name, count, statement in prepared:
        nulls = f"({', '.join(['NULL'] * count)})" if count else ""
        plan = connection.execute(f"EXPLAIN (COSTS off) EXECUTE {name}{nulls}".encode()).fetchall()
        plans.append((statement, "\n".join(line for (line,) in plan)))
    return plans


class Explainer(explain.Explainer):
    """The explainer of all tests, with long timeouts."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, NOTES)
        #: The number of claim index entries read by the latest run.
        self.entries_read = 0

    def explain(self, name: str, values: Mapping[str, Any], mode: str, pages: float) -> Plan:
        """Return the plan of a run with these values; ``mode`` is custom or generic.

        The tests leave index entries of rolled back transactions. A scan marks those as dead, unless an older
        transaction still writes in any database. So a run that read more than ``pages`` is repeated.
        """
        assert set(values) == set(NOTES[name].parameters), name
        deadline = time.monotonic() + 60
        while True:
            plan = self.plan(name, values, mode)
            if plan.pages <= pages or time.monotonic() > deadline:
                return plan
            time.sleep(0.1)

    def explain_text(self, statement: str, pages: float) -> Plan:
        """Run `explain` for a statement that is not one of ours."""
        deadline = time.monotonic() + 60
        while True:
            cursor = psycopg.ClientCursor(self.connection)
            [(document,)] = cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").fetchall()
            plan = Plan(document[0])
            if plan.pages <= pages or time.monotonic() > deadline:
                return plan
            time.sleep(0.1)

    def run(self, name: str, values: Mapping[str, Any], mode: str = "custom") -> list[tuple[Any, ...]]:
        with self.connection.transaction(force_rollback=True):
            before = self._entries()
            rows = super().run(name, values, mode)
            self.entries_read = self._entries() - before
        return rows

    def _entries(self) -> int:
        [(count,)] = self.connection.execute(
            "SELECT pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass)"
        ).fetchall()
        return int(count)

    def table_scans(self) -> int:
        """Return how often the transaction has read jobs whole: a plan doesn't show what a function does."""
        [(count,)] = self.connection.execute(
            "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = 'goqueue.jobs'::regclass"
        ).fetchall()
        return int(count)

    def generic_plan(self, name: str) -> Plan:
        """Return the plan without values, not executed."""
        note = NOTES[name]
        nulls = f"({', '.join('NULL' for _ in note.parameters)})" if note.parameters else ""
        with self.connection.transaction(force_rollback=True):
            self.connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            # Not EXPLAIN (GENERIC_PLAN), which needs PostgreSQL 16.
            self.connection.execute(f"PREPARE generic AS {note.statement}")
            [(document,)] = self.connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE generic{nulls}").fetchall()
            self.connection.execute("DEALLOCATE generic")
        return Plan(document[0])

    def before_a_run(self) -> None:
        # One at a time: the workers of a test run share the database, and claims skip rows locked by others.
        self.connection.execute("SELECT pg_advisory_xact_lock(1)")
