"""The plans of every query on a big table, custom and generic: the named indexes, the rows read, no table scan."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue.pytest_plugin import DatabaseServer
from goqueue.workbench import explain
from tests.plans import JIT_ABOVE_COST, MODES, NOTES, Explainer, Plan, seed

# Two databases, each seeded once for all tests of it:
#   history  a million jobs of 28 days in a hundred queues, most of them finished; "archive" with 50,000 finished and
#            some hundred waiting; "churn" with 100,000 due
#   future   400,000 jobs of "future" at the best priority that are not due yet, a thousand due at another priority, and
#            50,000 jobs as in history
# With far fewer rows than 200,000, reading the table whole is the cheaper plan.
ROWS = int(os.environ.get("GOQUEUE_TEST_PLAN_ROWS", "1000000"))

# The first test of a database seeds it, and the others wait.
pytestmark = pytest.mark.timeout(300)

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
PAGE = 50
# TABLESAMPLE reads about 500 pages of about 40 rows.
SAMPLED_PAGES, SAMPLED_ROWS = 700, 30_000
SAMPLE = frozenset({"Sample Scan"})
WITHOUT_A_PLAN = {"listen", "listen_cancelled"}  # EXPLAIN does not accept these

PKEY, CLAIM, KEY, UNIQUE, PENDING, RUNNING, OF_TYPE, OF_QUEUE = (
    "jobs_pkey",
    "jobs_claim_idx",
    "jobs_idempotency_key_idx",
    "jobs_unique_key_idx",
    "jobs_pending_idx",
    "jobs_running_idx",
    "jobs_finished_type_idx",
    "jobs_finished_queue_idx",
)
FAILURES, PAUSED, TRIGGERS = "job_failures_pkey", "paused_queues_pkey", "pg_trigger_tgrelid_tgname_index"


@pytest.fixture(scope="session")
def seeded(goqueue_server: DatabaseServer, goqueue_template: str) -> Iterator[Callable[[str], str]]:
    """Yield the URL of a seeded database. Workers share it: the first user seeds it, the last one drops it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:16]
    names: set[str] = set()
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:

        def lock(how: str, *key: str) -> bool:
            # The locks end with the connection, so that a worker that dies leaves none.
            row = connection.execute(f"SELECT pg_{how}(hashtextextended(%s, 0))", ["/".join(key)]).fetchone()
            return row == (True,)

        def url_of(which: str) -> str:
            name = f"goqueue_plans_{which}_{run}"
            url = make_conninfo(goqueue_server.url, dbname=name)
            if name not in names:
                lock("advisory_lock", name)
                lock("advisory_lock_shared", name, "use")
                names.add(name)
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
                    connection.execute(f"CREATE DATABASE {name} TEMPLATE {goqueue_template}")
                    try:
                        with psycopg.connect(url, autocommit=True) as seeding:
                            seed(seeding, which, ROWS)
                    except BaseException:
                        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
                        raise
                lock("advisory_unlock", name)
            return url

        yield url_of
        for name in names:
            lock("advisory_unlock_shared", name, "use")
            if lock("try_advisory_lock", name, "use"):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session", params=["history", "future"])
def database(request: pytest.FixtureRequest, seeded: Callable[[str], str]) -> str:
    """The URL of a seeded database, named by the parameter."""
    return seeded(request.param)


@dataclass(frozen=True)
class Known:
    """Return ids by status, and keys, from all over the table."""

    running: list[UUID]
    pending: list[UUID]
    dead: list[UUID]
    completed: list[UUID]
    keys: list[str]
    unique_keys: list[str]
    dead_with_unique_keys: list[UUID]
    lanes: dict[tuple[str, str], int]
    pending_jobs: int
    deep: tuple[datetime, UUID]

    @property
    def jobs_by_queue(self) -> Counter[str]:
        jobs: Counter[str] = Counter()
        for (queue, _), count in self.lanes.items():
            jobs[queue] += count
        return jobs

    @property
    def queues(self) -> int:
        return len(self.jobs_by_queue)


@pytest.fixture(scope="session")
def known(database: str) -> Known:
    with psycopg.connect(database) as connection:

        def column(query: str) -> list[Any]:
            return [row[0] for row in connection.execute(query)]

        by_status = {
            status: column(
                f"SELECT id FROM goqueue.jobs WHERE status = '{status}' AND queue LIKE 'queue%' "
                "AND unique_key IS NULL ORDER BY md5(id::text) LIMIT 1000"
            )
            for status in ("running", "pending", "dead", "completed")
        }
        keys = column(
            "SELECT idempotency_key FROM goqueue.jobs WHERE idempotency_key IS NOT NULL ORDER BY md5(id::text) "
            "LIMIT 1000"
        )
        unique_keys = column(
            "SELECT unique_key FROM goqueue.jobs WHERE unique_key IS NOT NULL AND completed_at IS NULL "
            "ORDER BY md5(id::text) LIMIT 1000"
        )
        dead_with_unique_keys = column(
            "SELECT id FROM goqueue.jobs WHERE status = 'dead' AND unique_key IS NOT NULL ORDER BY md5(id::text) "
            "LIMIT 1000"
        )
        [pending_jobs] = column("SELECT count(*) FROM goqueue.jobs WHERE status = 'pending'")
        pairs = connection.execute("SELECT queue, job_type, count(*) FROM goqueue.jobs GROUP BY queue, job_type")
        lanes = {(queue, job_type): count for queue, job_type, count in pairs}
        deep = connection.execute(
            "SELECT created_at, id FROM goqueue.jobs "
            "WHERE queue LIKE 'queue%' AND created_at < now() - interval '20 days' ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
        assert deep is not None
    return Known(
        **by_status,
        keys=keys,
        unique_keys=unique_keys,
        dead_with_unique_keys=dead_with_unique_keys,
        lanes=lanes,
        pending_jobs=pending_jobs,
        deep=deep,
    )


@pytest.fixture(scope="session")
def explainer(database: str) -> Iterator[Explainer]:
    with psycopg.connect(database, autocommit=True) as connection:
        # The server's own setting, as on a caller's connection.
        connection.execute(f"SET jit_above_cost = {JIT_ABOVE_COST}")
        yield Explainer(connection)


def check(
    plan: Plan, name: str, *, indexes: set[str], rows: float, pages: float, scans: frozenset[str] = frozenset()
) -> None:
    """Fail, with the plan, unless the run read exactly these indexes, and at most so much of the tables. ``scans``: the
    allowed ways of reading the table itself."""
    problems = []
    if strange := plan.table_scans - scans:
        problems.append(f"it has a {' and a '.join(sorted(strange))} of the table")
    # The pauses, a few rows, are read only if there are lanes.
    if (used := plan.used_indexes - {PAUSED}) != indexes:
        problems.append(f"it reads {sorted(used)}, expected were {sorted(indexes)}")
    if strangers := {index for index in plan.named_indexes if index not in NOTES[name].index}:
        problems.append(f"the comment in sql/{NOTES[name].file} doesn't name {sorted(strangers)}")
    if plan.rows_read > rows:
        problems.append(f"it reads {plan.rows_read:.0f} rows, expected at most {rows:.0f}")
    if plan.pages > pages:
        problems.append(f"it reads {plan.pages} pages, expected at most {pages:.0f}")
    if plan.cost >= JIT_ABOVE_COST or plan.is_compiled:
        problems.append(f"it is estimated at {plan.cost:.0f}, and from {JIT_ABOVE_COST} on a plan is compiled")
    assert not problems, f"{name}: {'; '.join(problems)}\n{plan}"


@dataclass(frozen=True)
class Case:
    """Values for a query, and the limits of its plan.

    ``rows``: table rows and index entries that scans may read. ``writes``: rows written; each costs up to a descent and
    a page of every index.
    """

    query: str
    label: str
    values: Callable[[Known], dict[str, Any]]
    indexes: set[str]
    rows: int
    writes: int = 0

    @property
    def pages(self) -> int:
        # A row costs at most a descent of four pages, and its own page.
        return 50 + 5 * self.rows + 45 * self.writes

    def __str__(self) -> str:
        return f"{self.query}-{self.label}"


def leases(known: Known, count: int) -> dict[str, Any]:
    """Return as many held jobs as there are, at most half, among jobs that are not held, as after a long pause."""
    ids = sorted((known.running[: (count + 1) // 2] + known.pending)[:count])
    return {"ids": ids, "tokens": [1] * len(ids)}


def new_job(key: str | None = None) -> dict[str, Any]:
    return {
        "id": uuid4(),
        "queue": "queue_00",
        "job_type": "type_0",
        "payload": '{"to": "someone@example.com"}',
        "priority": 0,
        "max_attempts": 25,
        "scheduled_at": None,
        "delay": None,
        "idempotency_key": key,
        "unique_key": key,
    }


def duplicate(job_id: UUID | None = None, **keys: str) -> dict[str, Any]:
    return {"id": job_id or uuid4(), "idempotency_key": None, "unique_key": None, **keys}


def new_jobs(count: int) -> str:
    jobs = [{**new_job(f"new-{number}"), "id": str(uuid4()), "payload": {}} for number in range(count)]
    return json.dumps(jobs)


BACKOFF = {
    "retry_in": None,
    "backoff_base": timedelta(seconds=10),
    "backoff_factor": 2.0,
    "backoff_max": 60 * MINUTE,
    "backoff_jitter": 0.1,
}
FINISHED = ["completed", "dead", "cancelled"]
NO_FILTER = dict.fromkeys(("statuses", "queues", "job_types", "worker_ids", "created_from", "created_before"))
ANYTHING = dict.fromkeys(("statuses", "queues", "job_types", "worker_ids"))
HUNDRED = [f"queue_{number:02}" for number in range(100)]


def cases_by_count(count: int) -> list[Case]:
    """The queries with many ids or a limit."""
    label = str(count)

    def case(query: str, values: Callable[[Known], dict[str, Any]], *indexes: str, rows: int, writes: int = 0) -> Case:
        return Case(query, label, values, set(indexes), rows * count, writes * count)

    return [
        case("get_jobs", lambda known: {"ids": known.completed[:count]}, PKEY, rows=1),
        case(
            "find_duplicate_jobs",
            lambda known: {
                "ids": known.completed[:count],
                "idempotency_keys": known.keys[:count],
                "unique_keys": known.unique_keys[:count],
            },
            *(PKEY, KEY, UNIQUE),
            rows=3,
        ),
        case("heartbeat_jobs", lambda known: {**leases(known, count), "lease": MINUTE}, PKEY, rows=2, writes=1),
        case("complete_jobs", lambda known: leases(known, count), PKEY, rows=2, writes=1),
        case("release_jobs", lambda known: {**leases(known, count), "delay": MINUTE}, PKEY, rows=2, writes=1),
        case(
            "fail_jobs",
            lambda known: {**leases(known, count), "errors": ["boom"] * count, "is_final": False, **BACKOFF},
            PKEY,
            rows=2,
            writes=1,
        ),
        case("cancel_jobs", lambda known: {"ids": known.pending[:count], **ANYTHING}, PKEY, rows=2, writes=1),
        case("retry_jobs", lambda known: {"ids": known.dead[:count], **ANYTHING}, PKEY, rows=2, writes=1),
        Case(
            "retry_jobs",
            f"{label} with unique keys",
            lambda known: {"ids": known.dead_with_unique_keys[:count], **ANYTHING},
            {PKEY, UNIQUE},
            rows=2 * count,
            writes=count,
        ),
        case(
            "reschedule_jobs",
            lambda known: {"ids": known.pending[:count], **ANYTHING, "scheduled_at": None, "delay": MINUTE},
            PKEY,
            rows=2,
            writes=1,
        ),
        case(
            "change_jobs",
            lambda known: {"ids": known.pending[:count], **ANYTHING, "queue": "q", "priority": 1, "max_attempts": None},
            PKEY,
            rows=2,
            writes=1,
        ),
        case("delete_jobs", lambda known: {"ids": known.dead[:count], **ANYTHING}, PKEY, rows=2, writes=1),
        # All running jobs are read until enough have expired: as many as the workers hold, here about 500.
        Case("rescue_jobs", label, lambda _: {"job_limit": count}, {RUNNING, PKEY}, 600 + count, count),
    ]


CASES = [
    *cases_by_count(1),
    *cases_by_count(1000),
    Case("ping", "", lambda _: {}, {PKEY}, 0),
    Case("announce_listener", "", lambda _: {}, set(), 0),
    Case("find_listener_blockers", "", lambda _: {}, set(), 0),
    Case("wake_listeners", "", lambda _: {"queues": ["queue_00"]}, set(), 0),
    Case("get_session", "", lambda _: {"backend_pid": 1}, set(), 0),
    Case("get_transaction_status", "", lambda _: {"transaction_id": "3"}, set(), 0),
    Case("get_job", "", lambda known: {"id": known.completed[0]}, {PKEY}, 1),
    Case("get_job", "unknown", lambda _: {"id": uuid4()}, {PKEY}, 0),
    Case("get_job_by_idempotency_key", "", lambda known: {"idempotency_key": known.keys[0]}, {KEY}, 1),
    Case("list_failures", "", lambda known: {"job_id": known.dead[0]}, {FAILURES}, 5),
    Case("find_duplicate_job", "id", lambda known: duplicate(known.dead[0]), {PKEY}, 2),
    Case("find_duplicate_job", "key", lambda known: duplicate(idempotency_key=known.keys[0]), {PKEY, KEY}, 2),
    Case(
        "find_duplicate_job",
        "unique key",
        lambda known: duplicate(idempotency_key="unknown", unique_key=known.unique_keys[0]),
        {PKEY, KEY, UNIQUE},
        2,
    ),
    Case(
        "find_duplicate_jobs",
        "none",
        lambda _: {"ids": [uuid4()], "idempotency_keys": ["unknown"], "unique_keys": ["unknown"]},
        {PKEY, KEY, UNIQUE},
        0,
    ),
    Case("create_job", "new", lambda _: new_job("new"), set(), 0, 1),
    Case("create_job", "duplicate", lambda known: new_job(known.keys[0]), set(), 0, 1),
    Case("create_jobs", "1000", lambda _: {"jobs": new_jobs(1000)}, set(), 0, 1000),
    Case("create_missing_jobs", "1000", lambda _: {"jobs": new_jobs(1000)}, set(), 0, 1000),
    Case("replace_pending_job", "new", lambda _: new_job("new"), {UNIQUE}, 0, 1),
    Case("replace_pending_job", "taken", lambda known: new_job(known.keys[0]), {UNIQUE}, 0, 1),
    Case(
        "update_job",
        "status",
        lambda known: {"id": known.pending[0], "changes": '{"status": "running", "locked_by": "me"}'},
        {PKEY, KEY, UNIQUE},
        3,
        1,
    ),
    Case(
        "update_job",
        "key",
        lambda known: {"id": known.pending[0], "changes": '{"idempotency_key": "new"}'},
        {PKEY, KEY, UNIQUE},
        3,
        1,
    ),
    Case(
        "update_job",
        "unique key",
        lambda known: {"id": known.pending[0], "changes": '{"unique_key": "new"}'},
        {PKEY, KEY, UNIQUE},
        3,
        1,
    ),
    # For more jobs, PostgreSQL before 16 scans the table if it has few failures.
    Case("delete_failures", "1", lambda known: {"ids": known.dead[:1]}, {FAILURES}, 5, 5),
    Case("delete_failures", "10", lambda known: {"ids": known.dead[:10]}, {FAILURES}, 50, 50),
    Case("delete_job", "", lambda known: {"id": known.dead[0]}, {PKEY}, 1, 1),
    # Running jobs are about 500.
    Case("list_workers", "", lambda _: {}, {RUNNING}, 600),
    Case("list_job_types", "", lambda _: {}, {OF_TYPE, PENDING, RUNNING}, 20_000 + 2 * 41 + 600),
    # A queue has up to three priorities. Each costs a probe, and each queue one more to find no other.
    Case("next_job_at", "two of a hundred", lambda _: {"queues": ["queue_07", "queue_42"]}, {CLAIM}, 8),
    Case("next_job_at", "future", lambda _: {"queues": ["future"]}, {CLAIM}, 3),
    Case("next_job_at", "a hundred", lambda _: {"queues": HUNDRED}, {CLAIM}, 400),
    Case("pause_queue", "", lambda _: {"queue": "queue_07", "until": None}, set(), 0, 1),
    Case("resume_queue", "", lambda _: {"queue": "queue_07"}, set(), 0),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_query_reads_only_what_it_needs(case: Case, mode: str, explainer: Explainer, known: Known) -> None:
    plan = explainer.explain(case.query, case.values(known), mode, case.pages)
    check(plan, case.query, indexes=case.indexes, rows=case.rows, pages=case.pages)


class TestListsAndCounts:
    """Each combination of filters. The work may grow only with the lanes of sql/jobs.sql."""

    STATUSES = (None, ["dead"], ["pending", "completed"])
    QUEUES = (None, ["queue_03"], ["queue_00", "queue_03", "queue_42"], ["unknown"])
    TYPES = (None, ["type_0"], ["type_0", "type_1", "type_2"], ["unknown"])

    @staticmethod
    def lanes(known: Known, statuses: Any, queues: Any, types: Any) -> int:
        """Return the largest number of lanes. A probe finds each job type, and another one finds no more."""
        names = {kind for _, kind in known.lanes}
        return (3 if statuses is None else 1) * len(types or names) * len(queues or "1")

    @staticmethod
    def pending(known: Known, statuses: Any, queues: Any, types: Any, most: int) -> int:
        """Return the largest number of pending entries read: all of them, if a filter matches few."""
        if statuses is not None and "pending" not in statuses:
            return 0
        return most if queues is types is None else known.pending_jobs

    @staticmethod
    def indexes(plan: Plan, statuses: Any, queues: Any) -> set[str]:
        unfinished = {PENDING, RUNNING} if statuses is None else {PENDING} & {f"jobs_{name}_idx" for name in statuses}
        # The claim index finds the pending jobs of a queue with few of them faster.
        if PENDING not in plan.used_indexes:
            unfinished = {CLAIM if name == PENDING else name for name in unfinished}
        # Without a queue, a scan by queue looks for null and reads nothing. With one, given types aren't searched for.
        return unfinished | ({OF_QUEUE} if queues else {OF_TYPE}) | (plan.used_indexes & {OF_TYPE, OF_QUEUE})

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("of_statuses", STATUSES, ids=lambda value: "+".join(value or ["any status"]))
    @pytest.mark.parametrize("of_queues", QUEUES, ids=lambda value: "+".join(value or ["any queue"]))
    def test_a_page_reads_little_more_than_its_rows(
        self, of_statuses: Any, of_queues: Any, mode: str, explainer: Explainer, known: Known
    ) -> None:
        created_at, job_id = known.deep
        for types, created, deep in product(self.TYPES, *[(False, True)] * 2):
            values = {
                **NO_FILTER,
                "statuses": of_statuses,
                "queues": of_queues,
                "job_types": types,
                "created_from": created_at - 5 * DAY if created else None,
                "created_before": created_at + 5 * DAY if created else None,
                "cursor_created_at": created_at if deep else None,
                "cursor_id": job_id if deep else None,
                "page_limit": PAGE,
            }
            lanes = self.lanes(known, of_statuses, of_queues, types)
            # A page of each lane, and all running jobs.
            entries = (lanes + 1) * PAGE + (600 if of_statuses is None else 0)
            pending = self.pending(known, of_statuses, of_queues, types, PAGE)
            # An entry costs its row's page on pages without vacuum, and another one if the row has moved.
            pages = 50 + 2 * entries + 16 * lanes + 5 * PAGE + pending // 5
            plan = explainer.explain("list_jobs", values, mode, pages)
            check(
                plan,
                "list_jobs",
                # The jobs' rows are fetched by id; an empty page may avoid that.
                indexes=self.indexes(plan, of_statuses, of_queues) | (plan.used_indexes & {PKEY}),
                rows=entries + pending + 2 * lanes + PAGE,
                pages=pages,
            )
            assert plan.entries_read(PKEY) <= PAGE, f"{plan}"

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("of_statuses", STATUSES, ids=lambda value: "+".join(value or ["any status"]))
    @pytest.mark.parametrize("of_queues", QUEUES, ids=lambda value: "+".join(value or ["any queue"]))
    def test_a_count_reads_its_index_entries_only(
        self, of_statuses: Any, of_queues: Any, mode: str, explainer: Explainer, known: Known
    ) -> None:
        for types, created in product(self.TYPES, (False, True)):
            values = {
                **NO_FILTER,
                "statuses": of_statuses,
                "queues": of_queues,
                "job_types": types,
                "created_before": known.deep[0] if created else None,
            }
            lanes = self.lanes(known, of_statuses, of_queues, types)
            pending = self.pending(known, of_statuses, of_queues, types, 0)
            pages = 50 + 2 * 10001 + 16 * lanes + 2 * 600 + SAMPLED_PAGES + pending // 5
            # If nearly all jobs are pending, their index is no cheaper to read than the table.
            scans = SAMPLE | (
                {"Seq Scan"} if pending > known.jobs_by_queue.total() // 2 and mode == "custom" else set()
            )
            plan = explainer.explain("count_jobs", values, mode, pages)
            check(
                plan,
                "count_jobs",
                # Unfinished jobs are counted last, and not if there are enough without them.
                indexes=self.indexes(plan, of_statuses, of_queues) - ({PENDING, CLAIM, RUNNING} - plan.used_indexes),
                rows=10001 + (2 * ROWS if pending else 0) + 2 * lanes + 600 + SAMPLED_ROWS,
                pages=pages,
                scans=scans,
            )

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("of_queues", QUEUES[:2], ids=lambda value: "+".join(value or ["any queue"]))
    @pytest.mark.parametrize("worker", ["worker-1", "unknown"])
    def test_the_jobs_of_a_worker(
        self, worker: str, of_queues: Any, mode: str, explainer: Explainer, known: Known
    ) -> None:
        values = {**NO_FILTER, "queues": of_queues, "worker_ids": [worker]}
        page = {"cursor_created_at": None, "cursor_id": None, "page_limit": PAGE}
        plan = explainer.explain("list_jobs", {**values, **page}, mode, 1500)
        indexes = {RUNNING} | (plan.used_indexes & {PKEY})
        check(plan, "list_jobs", indexes=indexes, rows=600 + PAGE, pages=1500)
        plan = explainer.explain("count_jobs", values, mode, 1500)
        check(plan, "count_jobs", indexes={RUNNING}, rows=600, pages=1500, scans=SAMPLE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("queues", "types"), [(None, None), (["queue_00"], None), (["queue_00", "queue_03"], ["type_0"])], ids=str
)
@pytest.mark.parametrize(("age", "count"), [(7 * DAY, 1), (7 * DAY, 1000), (100 * DAY, 1000)], ids=str)
def test_a_batch_is_pruned_lane_by_lane(
    age: timedelta, count: int, queues: Any, types: Any, mode: str, explainer: Explainer, known: Known
) -> None:
    lanes = {
        lane: jobs for lane, jobs in known.lanes.items() if lane[0] in (queues or lane) and lane[1] in (types or lane)
    }
    due = min(count, sum(lanes.values()) // 4) if age < 28 * DAY else 0
    values = {
        "older_than": age, "statuses": FINISHED, "queues": queues, "job_types": types, "job_limit": count,
        "kept_ids": known.dead[:count],
    }  # fmt: skip
    # Per lane one probe, and one job that is not due; per job type two. One job in 50 was created in time and finished
    # too late: it is read and skipped. A custom plan reads a lane whole and sorts it: in "future" 6,000. The deletions
    # read the jobs again, and their failures.
    probes = 3 * 4 * len({kind for _, kind in known.lanes}) * len(queues or "1")
    rows = (3 if mode == "generic" else 8) * due + count + probes
    # The deletions: a row's page, its failure, the descents of both, and the indexes' pages.
    pages = 50 + 5 * rows + 45 * due
    plan = explainer.explain("prune_jobs", values, mode, pages)
    # Without a queue, a scan by queue looks for null and reads nothing. With types, none are searched for.
    indexes = ({OF_QUEUE} if queues else {OF_TYPE}) | (plan.used_indexes & {OF_TYPE, OF_QUEUE, TRIGGERS})
    indexes |= {PKEY, FAILURES}  # of the deletions
    check(plan, "prune_jobs", indexes=indexes, rows=rows, pages=pages)
    with explainer.connection.transaction(force_rollback=True):
        deleted = explainer.run("prune_jobs", values, mode)
        assert len(deleted) == due
        assert explainer.table_scans() == 0


@pytest.mark.parametrize("mode", MODES)
def test_statistics_grow_with_queues_and_types(mode: str, explainer: Explainer, known: Known) -> None:
    # At most 1001 entries are counted per queue and status.
    counted = sum(min(jobs, 5 * 1001) for jobs in known.jobs_by_queue.values())
    # Also: a probe per lane and queue, three per queue and priority, all running jobs. Due jobs are counted again in a
    # queue with more than a thousand pending jobs.
    rows = counted + 4 * len(known.lanes) + 7 * known.queues + 1001 * known.queues + 600 + SAMPLED_ROWS
    pages = 2 * rows
    plan = explainer.explain("queue_stats", {}, mode, pages)
    check(plan, "queue_stats", indexes={OF_QUEUE, CLAIM, RUNNING}, rows=rows, pages=pages, scans=SAMPLE)


@pytest.mark.parametrize("view", ["queue_metrics", "queue_status_metrics"])
def test_an_exporter_reads_a_thousand_entries_a_queue_and_status(view: str, explainer: Explainer, known: Known) -> None:
    counted = sum(min(jobs, 5 * 1001) for jobs in known.jobs_by_queue.values())
    rows = counted + 4 * len(known.lanes) + 7 * known.queues + 1001 * known.queues + 600 + SAMPLED_ROWS
    # If other tests changed rows and rolled back, an index-only scan also reads the table's page.
    pages = 2 * rows
    plan = explainer.explain_text(f"SELECT * FROM goqueue.{view}", pages)
    check(plan, "queue_stats", indexes={OF_QUEUE, CLAIM, RUNNING}, rows=rows, pages=pages, scans=SAMPLE)


@pytest.mark.parametrize("mode", MODES)
def test_an_estimate_is_close_to_the_real_count(mode: str, explainer: Explainer, known: Known) -> None:
    [(largest, jobs)] = known.jobs_by_queue.most_common(1)
    for queues, truth in (None, known.jobs_by_queue.total()), ([largest], jobs):
        [(count, exact)] = explainer.run("count_jobs", {**NO_FILTER, "queues": queues}, mode)
        assert not exact
        assert 0.5 < count / truth < 2
    [by_status] = [row[1:6] for row in explainer.run("queue_stats", {}, mode) if row[0] == largest]
    assert 0.5 < sum(count or 0 for count in by_status) / jobs < 2


def claim(queues: list[str], count: int, lanes: list[tuple[str, int, datetime, UUID]] | None = None) -> dict[str, Any]:
    columns = dict.fromkeys(("lane_queues", "lane_priorities", "lane_times", "lane_ids"))
    if lanes is not None:
        columns = dict(zip(columns, map(list, zip(*lanes, strict=True)), strict=True))
    return {
        "queues": queues,
        "worker_id": "worker-1",
        "job_limit": count,
        "lease": MINUTE,
        **columns,
    }


class TestClaims:
    """A claim of n jobs reads O(n) index entries, and the first entry of each lane."""

    SITUATIONS: ClassVar[dict[str, tuple[str, list[str], int]]] = {
        # name: the database, the requested queues, their lanes (pairs of queue and priority)
        "a backlog": ("history", ["queue_00"], 3),
        "nearly all finished": ("history", ["archive"], 1),
        "400,000 for later at a better priority": ("future", ["future"], 2),
        "two of a hundred queues": ("both", ["queue_03", "queue_07"], 6),
        "all of a hundred queues": ("both", HUNDRED, 300),
        "an unknown queue": ("both", ["unknown"], 0),
    }

    @pytest.mark.parametrize("count", [1, 10, 100])
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("situation", SITUATIONS)
    def test_a_claim_reads_little_more_than_it_takes(
        self, situation: str, mode: str, count: int, explainer: Explainer, database: str
    ) -> None:
        where, queues, lanes = self.SITUATIONS[situation]
        if where != "both" and where not in database:
            pytest.skip("of the other database")
        values = claim(queues, count)
        # In addition to the jobs: a probe per lane, one that finds no more, and one entry after the due ones.
        entries = count + 2 * lanes + len(queues)
        pages = 50 + 5 * len(queues) + 10 * lanes + 2 * entries + 60 * count
        plan = explainer.explain("claim_jobs", values, mode, pages)
        check(plan, "claim_jobs", indexes={CLAIM, PKEY}, rows=entries + count, pages=pages)
        taken = explainer.run("claim_jobs", values, mode)
        assert len(taken) == (count if lanes else 0)
        assert explainer.entries_read <= entries, f"{plan}"

    @pytest.mark.parametrize("count", [1, 10, 100])
    @pytest.mark.parametrize("mode", MODES)
    def test_a_claim_resumes_where_another_ended(
        self, mode: str, count: int, explainer: Explainer, known: Known
    ) -> None:
        position = (known.deep[0], UUID(int=0))
        values = claim(["queue_00"], count, [("queue_00", priority, *position) for priority in range(3)])
        pages = 80 + 70 * count
        plan = explainer.explain("claim_jobs", values, mode, pages)
        check(plan, "claim_jobs", indexes={CLAIM, PKEY}, rows=5 * count + 3, pages=pages)


def test_claims_beside_dead_entries_stay_cheap(database: str, explainer: Explainer) -> None:
    if "history" not in database:
        pytest.skip("of the other database")
    with ExitStack() as stack:
        old, worker = (stack.enter_context(psycopg.connect(database, autocommit=True)) for _ in range(2))
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM goqueue.jobs LIMIT 1")
        [(last_time, last_id)] = worker.execute(
            "SELECT scheduled_at, id FROM goqueue.jobs WHERE queue = 'churn' AND status = 'pending' "
            "ORDER BY scheduled_at DESC, id DESC OFFSET 1000 LIMIT 1"
        ).fetchall()
        dead = worker.execute(
            "UPDATE goqueue.jobs SET status = 'completed', completed_at = now() "
            "WHERE queue = 'churn' AND status = 'pending' AND (scheduled_at, id) <= (%s, %s)",
            [last_time, last_id],
        ).rowcount
        assert dead > ROWS // 20
        # Another transaction keeps the entries: a full scan reads all of them, a resumed one none.
        assert len(explainer.run("claim_jobs", claim(["churn"], 10))) == 10
        assert explainer.entries_read > dead
        resumed = claim(["churn"], 10, [("churn", 0, last_time, last_id)])
        plan = explainer.explain("claim_jobs", resumed, "generic", 900)
        check(plan, "claim_jobs", indexes={CLAIM, PKEY}, rows=30, pages=900)
        assert len(explainer.run("claim_jobs", resumed, "generic")) == 10
        assert explainer.entries_read <= 11
        # Without it, a scan marks the entries as dead, and the next scan skips them. The server notices late that the
        # old transaction has ended, while others write in any database.
        old.execute("ROLLBACK")
        deadline = time.monotonic() + 60
        while any(
            explainer.run("claim_jobs", claim(["churn"], 10), mode) and explainer.entries_read > 30 for mode in MODES
        ):
            assert time.monotonic() < deadline, "the dead entries are read by every claim"
            time.sleep(0.2)


# By such a table's statistics any row matches any condition, and the next page has one. (rescue_jobs and queue_stats
# always read all running jobs.)
@pytest.mark.parametrize("status", ["pending", "completed", "dead", "cancelled"])
def test_no_statement_scans_a_whole_table_that_has_jobs_of_only_one_kind(
    goqueue_connection: psycopg.Connection[Any], status: str
) -> None:
    goqueue_connection.execute(
        "INSERT INTO goqueue.jobs (job_type, status, completed_at, scheduled_at, created_at) SELECT 't', v.status, "
        "CASE WHEN v.status <> 'pending' THEN now() END, now() - g.n * interval '1 second', "
        "now() - g.n * interval '1 second' "
        "FROM (VALUES (%s::goqueue.job_status)) AS v (status), generate_series(1, 100000) AS g (n)",
        [status],
    )
    goqueue_connection.execute("VACUUM ANALYZE goqueue.jobs")
    explainer = Explainer(goqueue_connection)
    examples = explain.example_values(goqueue_connection)
    without = [(name, {}) for name in explain.explainable(NOTES)]
    nothing = dict.fromkeys(NOTES["count_jobs"].parameters)
    absent = [("count_jobs", nothing | {"statuses": "{running}"}), ("list_jobs", {"statuses": "{running}"})]
    for name, given in [*without, *absent]:
        for result in explain.explain_query(explainer, name, given, examples).plans:
            wholes = [flag.text for flag in result.flags if flag.kind in ("seq scan", "filter")]
            if name in ("list_jobs", "count_jobs") and (result.mode, status) == ("generic", "pending"):
                # If few pending jobs match, all of them are searched, newest first.
                assert [text for text in wholes if "jobs_pending_idx" not in text] == []
                continue
            assert wholes == [], f"{name} {result.mode}: {Plan(result.plan)}"


@pytest.mark.parametrize("name", [name for name in NOTES if name not in WITHOUT_A_PLAN])
def test_the_plan_for_no_values_in_particular_names_the_same_indexes(name: str, explainer: Explainer) -> None:
    plan = explainer.generic_plan(name)
    assert "Seq Scan" not in plan.table_scans, f"{plan}"
    assert {index for index in plan.named_indexes if index not in NOTES[name].index} == set(), f"{plan}"
    assert plan.cost < JIT_ABOVE_COST, f"{plan}"


def test_every_query_is_tested_here() -> None:
    elsewhere = {
        "claim_jobs",
        "list_jobs",
        "count_jobs",
        "prune_jobs",
        "queue_stats",
        "estimate_dead_rows",
        *WITHOUT_A_PLAN,
    }
    tested = {case.query for case in CASES} | elsewhere
    assert tested == set(NOTES), (
        f"tests/test_plans.py: add cases of {sorted(set(NOTES) - tested)} to CASES, "
        f"remove {sorted(tested - set(NOTES))}"
    )
