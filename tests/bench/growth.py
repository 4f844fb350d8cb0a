"""The growth of costs with finished jobs, queues, connections and time. Imports goqueue and psycopg.

Each line compares the largest case with the smallest one in the same run. Its ``curve`` has all cases.
"""

import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from statistics import median

import psycopg

from goqueue import JobFilter, NewJob, PostgresStorage
from tests.bench.harness import Bench, Line, Target, seconds
from tests.bench.work import results_of

_LEASE = timedelta(minutes=5)
_MILLISECONDS = 1000

# A hundred queues, four job types, a month. As in a real history, the rows lie in the table in the order of time.
FINISHED = """
INSERT INTO goqueue.jobs (
    queue, job_type, payload, status, attempts, lease_token,
    scheduled_at, created_at, updated_at, started_at, completed_at
)
SELECT
    'q' || d.n %% 100,
    't' || d.n %% 4,
    '{"to": "a@example.com", "n": 1}',
    (ARRAY['completed', 'completed', 'completed', 'dead', 'cancelled'])[1 + d.n %% 5]::goqueue.job_status,
    1, 1, d.t, d.t, d.t, d.t, d.t
FROM (
    SELECT n, now() - interval '30 days' * (1 - n / %s::double precision) AS t
    FROM generate_series(%s::integer, %s) AS n
) AS d
"""
_PENDING = """
INSERT INTO goqueue.jobs (queue, job_type, priority, payload)
SELECT 'q' || q, 't' || q %% 5, j %% 3, '{}'
FROM generate_series(1, %s) AS q, generate_series(1, %s) AS j
"""
_SIZES = """
SELECT
    pg_relation_size('goqueue.jobs') AS bytes,
    pg_indexes_size('goqueue.jobs') AS index_bytes,
    (SELECT count(*) FROM goqueue.jobs) AS live_rows
"""


def measure_finished(bench: Bench) -> list[Line]:
    """Measure operations with an increasing number of finished jobs in the table."""
    sizes = [500, 1000] if bench.quick else [10_000, 100_000, 1_000_000, 4_000_000]
    curves: dict[str, dict[str, list[float]]] = {}
    with bench.database("bench_growth") as url, psycopg.connect(url, autocommit=True) as admin:
        have = 0
        for size in sizes:
            bench.tell(f"growth: {size:,} finished jobs")
            admin.execute(FINISHED, [sizes[-1], have + 1, size])
            have = size
            admin.execute("VACUUM ANALYZE goqueue.jobs")
            admin.execute("CHECKPOINT")
            with PostgresStorage.open(url) as store:
                for name, (work, count) in _operations(store).items():
                    curves.setdefault(name, {})[f"{size:,}"] = _samples(bench, work, count)
    targets = {"create, claim, complete 100": 1.5, "prune 1000": 2.0}
    return [
        _line(bench, f"{name}, {sizes[-1]:,} finished", "ms", curve, _at_most(targets.get(name)))
        for name, curve in curves.items()
    ]


def _operations(store: PostgresStorage) -> dict[str, tuple[Callable[[], object], int]]:
    """Return each operation, and how often it runs in a sample."""

    def cycle(size: int) -> Callable[[], object]:
        def run() -> None:
            store.create_jobs([NewJob(job_type="t", queue="hot") for _ in range(size)])
            jobs = store.claim_jobs("hot", "w", size, _LEASE)
            store.complete_jobs(jobs)

        return run

    def cancel() -> None:
        store.create_jobs([NewJob(job_type="t", queue="c") for _ in range(100)])
        store.cancel_jobs(JobFilter(queue="c"))

    [some, *_] = store.list_jobs(limit=1).jobs
    return {
        "create 1": (lambda: store.create_job(NewJob(job_type="t", queue="cold")), 60),
        "create, claim, complete 1": (cycle(1), 60),
        "create, claim, complete 100": (cycle(100), 30),
        "get_job": (lambda: store.get_job(some.id), 200),
        "list_jobs": (store.list_jobs, 30),
        "list_jobs of a queue": (lambda: store.list_jobs(JobFilter(queue="q7")), 30),
        "list_jobs of a type": (lambda: store.list_jobs(JobFilter(job_type="t1")), 30),
        "count_jobs": (lambda: store.count_jobs(JobFilter(status="completed")), 15),
        "queue_stats": (store.queue_stats, 5),
        "rescue_jobs": (store.rescue_jobs, 15),
        # Once per round: the smallest table has only ten batches.
        "prune 1000": (lambda: store.prune_jobs(timedelta(days=1), limit=1000), 1),
        "cancel 100 by filter": (cancel, 10),
    }


def measure_queues(bench: Bench) -> list[Line]:
    """Measure operations with an increasing number of queues, each with at least 20 pending jobs."""
    numbers = [1, 10] if bench.quick else [1, 100, 2000]
    curves: dict[str, dict[str, list[float]]] = {}
    for number in numbers:
        bench.tell(f"growth: {number:,} queues")
        with bench.database("bench_growth") as url, psycopg.connect(url, autocommit=True) as admin:
            admin.execute(_PENDING, [number, max(20, 2000 // number)])
            admin.execute("VACUUM ANALYZE goqueue.jobs")
            with PostgresStorage.open(url) as store:
                names = [f"q{name}" for name in range(1, min(number, 100) + 1)]
                for title, (work, count) in _queue_operations(store, names).items():
                    curves.setdefault(title, {})[f"{number:,}"] = _samples(bench, work, count)
    bounds = {"list_jobs of a type": 10, "queue_stats": 50}
    return [
        _line(
            bench, f"{name}, {numbers[-1]:,} queues", "ms", curve,
            Target("value", "at most", bounds[name]) if name in bounds else None,
        )
        for name, curve in curves.items()
    ]  # fmt: skip


def _queue_operations(store: PostgresStorage, names: list[str]) -> dict[str, tuple[Callable[[], object], int]]:
    def claim(queues: str | list[str]) -> None:
        store.release_jobs(store.claim_jobs(queues, "w", 10, _LEASE))

    return {
        "claim 10 of one queue": (lambda: claim("q1"), 20),
        "claim 10 of 100 queues": (lambda: claim(names), 20),
        "next_job_at of 100 queues": (lambda: store.next_job_at(names), 20),
        "list_jobs of a type": (lambda: store.list_jobs(JobFilter(job_type="t1")), 10),
        "queue_stats": (store.queue_stats, 5),
    }


def measure_connections(bench: Bench) -> list[Line]:
    """Drain queues with claims of ten jobs, over an increasing number of connections in up to eight processes."""
    numbers = [1, 2] if bench.quick else [1, 2, 4, 8, 16, 32, 64, 128]
    curve: dict[str, list[float]] = {}
    for _ in range(1 if bench.quick else min(bench.rounds, 3)):
        for number in numbers:
            bench.tell(f"growth: {number} connections")
            curve.setdefault(f"{number}", []).append(_drain_rate(bench, number))
    lines = [_line(bench, f"drain by 10, {numbers[-1]} connections", "jobs/s", curve, None)]
    if not bench.quick:
        two = {name: curve[name] for name in ("2", "64")}
        lines.append(_line(bench, "drain by 10, 64 connections to 2", "jobs/s", two, Target("ratio", "at least", 1.0)))
    return lines


def _drain_rate(bench: Bench, connections: int) -> float:
    duration = 0.2 if bench.quick else 5
    processes = min(connections, 8)
    with bench.database("bench_growth") as url, psycopg.connect(url, autocommit=True) as admin:
        admin.execute(_PENDING, [1, bench.size(150_000, 5_000)])
        admin.execute("VACUUM ANALYZE goqueue.jobs")
        admin.execute("CHECKPOINT")
        results = results_of(processes, "work", url, "q1", str(connections // processes), str(duration))
    return sum(result["jobs"] for result in results) / duration


def measure_flow(bench: Bench) -> list[Line]:
    """Add, run and prune jobs for two minutes. Measure the rate, then the sizes of the table and its indexes.

    The baseline of a size is the size after VACUUM FULL. The other flows have a server that looks for tables to vacuum
    more often than once a minute.
    """
    lines = _flow(bench, "a flow with pruning")
    with psycopg.connect(bench.server.url(), autocommit=True) as admin:
        for naptime in ("10s", "3s"):
            admin.execute(f"ALTER SYSTEM SET autovacuum_naptime = '{naptime}'")
            admin.execute("SELECT pg_reload_conf()")
            lines += _flow(bench, f"a flow with pruning, autovacuum_naptime {naptime}")
        admin.execute("ALTER SYSTEM RESET autovacuum_naptime")
        admin.execute("SELECT pg_reload_conf()")
    return lines


def _flow(bench: Bench, title: str) -> list[Line]:
    duration, steps = bench.size(120, 1), bench.size(8, 2)
    with bench.database("bench_growth") as url, psycopg.connect(url, autocommit=True) as admin:
        with PostgresStorage.open(url) as store:
            stop, count = threading.Event(), [0]
            work = [threading.Thread(target=part, args=(store, stop, count)) for part in (_produce, _consume, _prune)]
            for part in work:
                part.start()
            rates: dict[str, list[float]] = {}
            for step in range(1, steps + 1):
                bench.tell(f"growth: {title}, {step} of {steps}")
                before = count[0]
                time.sleep(duration / steps)
                # At least one, because the first rate is the baseline of the others.
                rates[f"{duration * step // steps} s"] = [max(count[0] - before, 1) * steps / duration]
            stop.set()
            for part in work:
                part.join()
        [(heap, indexes, rows)] = admin.execute(_SIZES).fetchall()
        admin.execute("VACUUM FULL goqueue.jobs")
        [(least_heap, least_indexes, _)] = admin.execute(_SIZES).fetchall()
    return [
        _line(bench, title, "jobs/s", rates, None),
        *(
            bench.line(
                f"{title}, {name}", "MB", [size / 1e6], [least / 1e6], target=_at_most(2.0),
                note=f"{rows:,} live rows; baseline: after VACUUM FULL",
            )
            for name, size, least in (("table", heap, least_heap), ("indexes", indexes, least_indexes))
        ),
    ]  # fmt: skip


def _produce(store: PostgresStorage, stop: threading.Event, _: list[int]) -> None:
    while not stop.is_set():
        if store.count_jobs(JobFilter(status="pending")) < 10_000:
            store.create_jobs([NewJob(job_type="t", queue="hot", payload={"to": "a@example.com"}) for _ in range(2000)])
        else:
            stop.wait(0.02)


def _consume(store: PostgresStorage, stop: threading.Event, count: list[int]) -> None:
    jobs = store.claim_jobs("hot", "w")
    while not stop.is_set():
        count[0] += len(jobs)
        jobs = store.complete_and_claim(jobs, "hot", "w", 200, _LEASE)
        if not jobs:
            stop.wait(0.005)


def _prune(store: PostgresStorage, stop: threading.Event, _: list[int]) -> None:
    while not stop.is_set():
        if store.prune_jobs(timedelta(seconds=20), limit=1000) < 1000:
            stop.wait(0.2)


def _samples(bench: Bench, work: Callable[[], object], count: int) -> list[float]:
    """Return the median of each round in milliseconds, after a warm-up."""
    for _ in range(3):
        work()
    rounds = 1 if bench.quick else bench.rounds
    return [median(seconds(work) for _ in range(bench.size(count, 2))) * _MILLISECONDS for _ in range(rounds)]


def _at_most(bound: float | None) -> Target | None:
    return None if bound is None else Target("ratio", "at most", bound)


def _line(bench: Bench, name: str, unit: str, curve: dict[str, list[float]], target: Target | None) -> Line:
    """Return a line that compares the last case of a curve with its first."""
    cases: list[Iterable[float]] = list(curve.values())
    line = bench.line(name, unit, cases[-1], cases[0], target=target)
    line.curve = {case: median(samples) for case, samples in curve.items()}
    return line
