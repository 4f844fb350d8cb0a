"""The costs of claims and completions: of one job, of a hundred, in four processes, and beside an old snapshot.

Imports goqueue, psycopg and tests.bench.harness.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import mean, median
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg

from goqueue import DatabaseConfig, Job, PostgresStorage
from goqueue.postgres.claim_positions import ClaimPositions
from goqueue.postgres.queries import load_queries
from tests.bench.harness import Bench, Line, Target, bare_connection, checkout, rendered, seconds

QUEUE = "mail"
_LEASE = "5 minutes"
_TOKEN = Job.__struct_fields__.index("lease_token")
_BATCH = 100

# Due in a fixed order, so that the nth claim of a hundred gets the nth hundred jobs.
_FILL = """
INSERT INTO goqueue.jobs (id, queue, job_type, payload, scheduled_at)
SELECT
    uuidv7(), %(queue)s, 'send_email', '{"to": "user1@example.com", "template": "welcome", "tries": 3}',
    now() - interval '1 hour' + n * interval '1 millisecond'
FROM generate_series(1, %(count)s::integer) AS n
"""
_BATCHES = """
INSERT INTO public.batch (n, ids, tokens)
SELECT r.place / %(size)s + 1, array_agg(r.id ORDER BY r.place), array_agg(r.lease_token + 1 ORDER BY r.place)
FROM (
    SELECT j.id, j.lease_token, row_number() OVER (ORDER BY j.priority, j.scheduled_at, j.id) - 1 AS place
    FROM goqueue.jobs AS j
    WHERE j.status = 'pending'
) AS r
GROUP BY 1
"""
_FINISHED = """
INSERT INTO goqueue.jobs (
    id, queue, job_type, payload, status, attempts, lease_token, scheduled_at, created_at, updated_at, started_at,
    completed_at
)
SELECT
    uuidv7(d.at - now()), %(queue)s, 'send_email', '{"to": "user1@example.com", "template": "welcome", "tries": 3}',
    'completed', 1, 1, d.at, d.at, d.at, d.at, d.at
FROM (
    SELECT now() - interval '28 days' * (1 - n / %(count)s::double precision) - interval '2 hours' AS at
    FROM generate_series(1, %(count)s::integer) AS n
) AS d
"""


class Bare:
    """Claims and completions without the store: the same statements on one connection with the store's settings."""

    def __init__(self, connection: psycopg.Connection[Any], limit: int) -> None:
        queries = load_queries()
        self._connection = connection
        self._claim, self._complete = queries.claim_jobs.sql, queries.complete_jobs.sql
        given = {"queues": [QUEUE], "worker_id": "bench", "job_limit": limit, "lease": _LEASE}
        # The other parameters are null, so every lane is scanned from its start.
        self._values = dict.fromkeys(queries.claim_jobs.parameters) | given

    def claim(self) -> list[tuple[Any, ...]]:
        return self._connection.execute(self._claim, self._values, prepare=True).fetchall()

    def complete(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._connection.execute(self._complete, self._leases(rows), prepare=True).fetchall()

    def complete_and_claim(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        with self._connection.transaction():
            self.complete(rows)
            return self.claim()

    @staticmethod
    def _leases(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        return {"ids": [row[0] for row in rows], "tokens": [row[_TOKEN] for row in rows]}


class _Table:
    """A database with jobs, a store with one connection, and a bare connection. Autovacuum is off: the rows of a sample
    are removed before the next one, never during it."""

    def __init__(self, stack: ExitStack, bench: Bench, name: str, finished: int = 0) -> None:
        self.url = stack.enter_context(bench.database(name))
        self.config = DatabaseConfig(url=self.url, pool_max_size=1)
        self.store = stack.enter_context(PostgresStorage.open(self.config))
        self.bare = stack.enter_context(bare_connection(self.config))
        self.admin = stack.enter_context(psycopg.connect(self.url, autocommit=True))
        self.admin.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
        self.admin.execute("CREATE TABLE public.batch (n bigint PRIMARY KEY, ids uuid[], tokens bigint[])")
        if finished:
            self.admin.execute(_FINISHED, {"queue": QUEUE, "count": finished})
            self.admin.execute("VACUUM ANALYZE goqueue.jobs")

    def fill(self, count: int) -> None:
        self.admin.execute("DELETE FROM goqueue.jobs WHERE updated_at > now() - interval '1 hour'")
        self.admin.execute("VACUUM goqueue.jobs")
        self.admin.execute(_FILL, {"queue": QUEUE, "count": count})
        self.admin.execute("ANALYZE goqueue.jobs")

    def note_batches(self) -> None:
        """Record which jobs each claim of a hundred will take."""
        self.admin.execute("TRUNCATE public.batch")
        self.admin.execute(_BATCHES, {"size": _BATCH})

    def check(self) -> None:
        """Raise RuntimeError if a measurement left unfinished jobs, because it then measured something else."""
        left = self.admin.execute("SELECT count(*) FROM goqueue.jobs WHERE status IN ('pending', 'running')").fetchone()
        if left != (0,):
            raise RuntimeError(f"{left} jobs are not finished")

    def jobs_per_second(self, count: int, work: Callable[[], object]) -> float:
        self.fill(count)
        taken = seconds(work)
        self.check()
        return count / taken

    def cpu(self, count: int, work: Callable[[], object]) -> float:
        """Return microseconds of this process's CPU time per job."""
        self.fill(count)
        start = time.process_time()
        work()
        taken = time.process_time() - start
        self.check()
        return taken / count * 1e6


def _by_store(store: PostgresStorage, limit: int) -> None:
    while jobs := store.claim_jobs(QUEUE, "bench", limit):
        store.complete_jobs(jobs)


def _by_store_at_once(store: PostgresStorage, limit: int) -> None:
    jobs: list[Job] = store.claim_jobs(QUEUE, "bench", limit)
    while jobs:
        jobs = store.complete_and_claim(jobs, QUEUE, "bench", limit)


def _by_bare(connection: psycopg.Connection[Any], limit: int) -> None:
    bare = Bare(connection, limit)
    while rows := bare.claim():
        bare.complete(rows)


def _by_bare_at_once(connection: psycopg.Connection[Any], limit: int) -> None:
    bare = Bare(connection, limit)
    rows = bare.claim()
    while rows:
        rows = bare.complete_and_claim(rows)


def _claim_script(limit: int) -> tuple[str, dict[str, str]]:
    """Return the text of claim_jobs for pgbench, and its variables. A variable without a value is null."""
    claim = load_queries().claim_jobs
    variables = {"queues": f"{{{QUEUE}}}", "worker_id": "bench", "job_limit": str(limit), "lease": _LEASE}
    nothing_done = {"ids": "'{}'", "tokens": "'{}'"}
    return rendered(claim.sql, {name: f":{name}" for name in claim.parameters} | nothing_done), variables


def _pgbench_single(bench: Bench, table: _Table, count: int) -> float:
    """Run the same two statements. Variables pass the id and the token from the first to the second."""
    claim, variables = _claim_script(1)
    complete = rendered(
        load_queries().complete_jobs.sql, {"ids": "ARRAY[:claimed_id]", "tokens": "ARRAY[:claimed_lease_token]"}
    )
    table.fill(count)
    rate = bench.pgbench(table.url, f"{claim.rstrip().rstrip(';')} \\gset claimed_\n{complete}", count, variables)[0]
    table.check()
    return rate


def _pgbench_batches(bench: Bench, table: _Table, count: int) -> float:
    r"""Run the same two statements, with the same data sent and received as by psycopg.

    pgbench can't store a hundred rows in a variable (\gset takes one row), and a claim inside another query is not the
    same SQL. But the jobs of the nth claim are known in advance: a scratch table has their ids and tokens. The result
    is the time of the claim and the completion without the reads of the scratch table, because pgbench reports the time
    of each command. It includes the transfer of the rows to the client, but not their conversion to objects.
    """
    claim, variables = _claim_script(_BATCH)
    complete = rendered(load_queries().complete_jobs.sql, {"ids": ":ids", "tokens": ":tokens"})
    script = f"\\set n :n + 1\nSELECT ids, tokens FROM public.batch WHERE n = :n \\gset\n{claim}\n{complete}"
    table.fill(count)
    table.note_batches()
    latencies = bench.pgbench(table.url, script, count // _BATCH, variables | {"n": "0"})[1]
    table.check()
    return _BATCH / sum(latencies[-2:])


def measure_work(bench: Bench) -> list[Line]:
    """Measure claims and completions. Every commit waits for the disk, and each store uses one connection."""
    with ExitStack() as stack:
        table = _Table(stack, bench, "bench_work")
        return [
            *_singles(bench, table),
            *_batches(bench, table),
            *_finished(bench, table),
            *_cpu(bench, table),
            *_processes(bench, table),
        ]


def _singles(bench: Bench, table: _Table) -> list[Line]:
    # So many that the first statements of pgbench don't matter, although its new connection has to plan them.
    count = bench.size(400, 20)
    baselines, mine, bares = bench.interleaved(
        "claim 1 + complete 1",
        lambda: _pgbench_single(bench, table, count),
        lambda: table.jobs_per_second(count, lambda: _by_store(table.store, 1)),
        lambda: table.jobs_per_second(count, lambda: _by_bare(table.bare, 1)),
        slices=3,
    )
    name = "claim 1 + complete 1"
    return [
        bench.line(
            name,
            "jobs/s",
            mine,
            baselines,
            target=Target("ratio", "at least", 0.8),
            note="one commit for each statement",
        ),
        bench.line(f"{name}, bare psycopg", "jobs/s", bares, baselines, note="what any Python client can reach"),
    ]


def _batches(bench: Bench, table: _Table) -> list[Line]:
    count = bench.size(5_000, 500)
    baselines, mine, bares, at_once, bares_at_once = bench.interleaved(
        "claim 100 + complete 100",
        lambda: _pgbench_batches(bench, table, count),
        lambda: table.jobs_per_second(count, lambda: _by_store(table.store, _BATCH)),
        lambda: table.jobs_per_second(count, lambda: _by_bare(table.bare, _BATCH)),
        lambda: table.jobs_per_second(count, lambda: _by_store_at_once(table.store, _BATCH)),
        lambda: table.jobs_per_second(count, lambda: _by_bare_at_once(table.bare, _BATCH)),
        slices=6,
    )
    name = "claim 100 + complete 100"
    baseline = "the baseline is the two statements' time in pgbench, rows received but not decoded"
    return [
        bench.line(name, "jobs/s", mine, baselines, target=Target("ratio", "at least", 0.75), note=baseline),
        bench.line(f"{name}, bare psycopg", "jobs/s", bares, baselines, note="tuples, no Structs"),
        bench.line(
            "complete_and_claim 100", "jobs/s", at_once, mine, target=Target("ratio", "at least", 1),
            note="compared with the two calls: one commit, not two",
        ),
        bench.line("complete_and_claim 100, bare psycopg", "jobs/s", bares_at_once, bares),
    ]  # fmt: skip


def _finished(bench: Bench, table: _Table) -> list[Line]:
    count, finished = bench.size(5_000, 500), bench.size(500_000, 5_000)
    bench.tell(f"claim 100 + complete 100: adding {finished:,} finished jobs")
    with ExitStack() as stack:
        full = _Table(stack, bench, "bench_work_full", finished)
        with_them, without = bench.interleaved(
            f"claim 100 + complete 100, {finished:,} finished jobs",
            *(partial(t.jobs_per_second, count, partial(_by_store, t.store, _BATCH)) for t in (full, table)),
            slices=5,
        )
    target = Target("ratio", "at least", 0.95)
    note = f"{finished:,} completed jobs of the same queue in the table, compared with none"
    name = "claim + complete 100, 500,000 finished"
    return [bench.line(name, "jobs/s", with_them, without, target=target, note=note)]


def _cpu(bench: Bench, table: _Table) -> list[Line]:
    lines = []
    for limit, count in ((_BATCH, bench.size(5_000, 500)), (1, bench.size(300, 20))):
        name = f"client CPU, claim {limit} + complete {limit}"
        mine, bares = bench.interleaved(
            name,
            partial(table.cpu, count, partial(_by_store, table.store, limit)),
            partial(table.cpu, count, partial(_by_bare, table.bare, limit)),
            slices=4,
        )
        lines.append(bench.line(name, "µs", mine, bares, target=Target("ratio", "at most", 1.2)))
    return lines


def _processes(bench: Bench, table: _Table) -> list[Line]:
    count = bench.size(20_000, 1_000)
    four, one, bare_four, bare_one = bench.interleaved(
        "four processes draining",
        *(
            partial(_drain, table, count, kind, workers)
            for kind, workers in (("drain", 4), ("drain", 1), ("drain-bare", 4), ("drain-bare", 1))
        ),
        slices=2,
    )
    target = Target("ratio", "at least", 1.5)
    name, note = "drain by four processes", "compared with one; claims of 100, one commit for each statement"
    return [
        bench.line(name, "jobs/s", four, one, target=target, note=note),
        bench.line(f"{name}, bare psycopg", "jobs/s", bare_four, bare_one, note="the limit of the machine"),
    ]


def _drain(table: _Table, count: int, kind: str, workers: int) -> float:
    table.fill(count)
    results = results_of(workers, kind, table.url)
    table.check()
    return count / (max(result["end"] for result in results) - min(result["start"] for result in results))


def results_of(count: int, *arguments: str) -> list[dict[str, Any]]:
    """Start workers, let them begin together, and return what each of them prints at the end."""
    with ExitStack() as stack:
        processes = [stack.enter_context(worker(*arguments)) for _ in range(count)]
        for process in processes:
            print("go", file=process.stdin, flush=True)
        return [json.loads(process.stdout.readline()) for process in processes]


@contextmanager
def worker(*arguments: str) -> Iterator[Any]:
    """Start a process of `tests.bench.worker` and wait until it is ready."""
    command = [sys.executable, "-m", "tests.bench.worker", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=checkout(), stdin=pipe, stdout=pipe, text=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the worker {arguments[0]} did not start")
            yield process
        finally:
            process.kill()


class _CountedPositions(ClaimPositions):
    """Claim positions that count the claims that scan every lane from its start."""

    scans = 0

    def parameters(self) -> dict[str, Any]:
        values = super().parameters()
        self.scans += not any(values.values())
        return values


def measure_pinned(bench: Bench) -> list[Line]:
    """Claim and complete jobs by 100, while another transaction's snapshot keeps all dead index entries.

    Commits don't wait for the disk, because only the growth of the claims' times matters. Each line is measured once.
    Without resuming, that growth has no bound, and a tenth of the jobs is enough to show it.
    """
    lines = []
    for name, resume, count in (
        ("claim 100, snapshot held", "1s", bench.size(300_000, 5_000)),
        ("claim 100, snapshot held, no resuming", "0", bench.size(30_000, 2_000)),
    ):
        with bench.database("bench_pinned") as url:
            bench.tell(f"{name}: {count:,} jobs")
            first, last, note = _pinned(url, resume, count)
        target = Target("ratio", "at most", 1.5) if resume != "0" else None
        line = bench.line(name, "ms", [last], [first], target=target, note=note)
        lines.append(line)
    return lines


def _pinned(url: str, resume_time: str, count: int) -> tuple[float, float, str]:
    """Return the mean milliseconds of the first and the last tenth of the claims, and a note with other figures."""
    config = DatabaseConfig(
        url=f"{url}&options={quote('-c synchronous_commit=off')}", pool_max_size=1, claim_resume_time=resume_time
    )
    with (
        psycopg.connect(url, autocommit=True) as admin,
        psycopg.connect(url) as holder,
        PostgresStorage.open(config) as store,
    ):
        admin.execute(_FILL, {"queue": QUEUE, "count": count})
        admin.execute("VACUUM ANALYZE goqueue.jobs")
        counted = store._positions[QUEUE,] = _CountedPositions(config.claim_resume_time.total_seconds())
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT FROM goqueue.jobs LIMIT 1")
        times, ids = [], set[UUID]()
        while True:
            start = time.perf_counter()
            jobs = store.claim_jobs(QUEUE, "bench", _BATCH)
            if not jobs:
                break
            times.append((time.perf_counter() - start) * 1000)
            ids |= {job.id for job in jobs}
            store.complete_jobs(jobs)
        holder.rollback()
    if len(ids) != count:
        raise RuntimeError(f"{len(ids)} of {count} jobs were claimed")
    tenth = len(times) // 10
    note = (
        f"mean of the last tenth of {len(times):,} claims compared with the first; {counted.scans:,} full scans; "
        f"medians {median(times[-tenth:]):.1f} ms and {median(times[:tenth]):.1f} ms, "
        f"slowest {max(times):.0f} ms; commits don't wait for the disk"
    )
    return mean(times[:tenth]), mean(times[-tenth:]), note
