"""The cost of a job in a growing table of finished jobs: a model from three sizes, checked against a fourth.

Imports goqueue, psycopg and the other modules of this folder. A line's value is measured at the largest size. Its
baseline is the model's prediction from the smaller sizes. The model is ``a + b * log2(rows)``, by least squares.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import log2
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import psycopg

from goqueue import DatabaseConfig, NewJob, PostgresStorage
from tests.bench.growth import FINISHED
from tests.bench.harness import Bench, Line, seconds

_LEASE = timedelta(minutes=5)
_PAYLOAD = {"to": "a@example.com", "n": 1}
_OLD = timedelta(days=1)
_SIZES = {
    what: f"SELECT pg_{what}_size('goqueue.jobs') / count(*)::float8 FROM goqueue.jobs" for what in ("table", "indexes")
}


def measure_costs(bench: Bench) -> list[Line]:
    """Measure a job's costs at four sizes of the table. Compare the last size with the model of the others."""
    sizes = [4_000, 8_000, 16_000, 32_000] if bench.quick else [1_000_000, 2_500_000, 5_000_000, 10_000_000]
    curves: dict[tuple[str, str], list[float]] = {}
    with bench.database("bench_costs") as url, psycopg.connect(url, autocommit=True) as admin:
        have = 0
        for size in sizes:
            bench.tell(f"costs: {size:,} finished jobs")
            admin.execute(FINISHED, [sizes[-1], have + 1, size])
            have = size
            admin.execute("VACUUM ANALYZE goqueue.jobs")
            for cost, value in _costs(bench, url, admin):
                curves.setdefault(cost, []).append(value)
    lines = [_line(bench, name, unit, sizes, values) for (name, unit), values in curves.items()]
    return lines + _bloat(bench)


def _bloat(bench: Bench) -> list[Line]:
    """Measure the sizes after all finished jobs were pruned and replaced, 5 % at a time, with a VACUUM after each."""
    size, batch = bench.size(1_000_000, 20_000), bench.size(50_000, 1000)
    with bench.database("bench_bloat") as url, psycopg.connect(url, autocommit=True) as admin:
        bench.tell(f"costs: {size:,} finished jobs are replaced")
        admin.execute(FINISHED, [2 * size, 1, size])
        admin.execute("VACUUM ANALYZE goqueue.jobs")
        before = [_value(admin, each) for each in _SIZES.values()]
        with PostgresStorage.open(url) as store:
            for start in range(size, 2 * size, batch):
                _prune(store, batch)
                admin.execute("VACUUM goqueue.jobs")
                admin.execute(FINISHED, [2 * size, start + 1, start + batch])
        after = [_value(admin, each) for each in _SIZES.values()]
    return [
        bench.line(f"{what}, each of {size:,} finished, replaced by pruning", "bytes", [new], [old])
        for what, old, new in zip(_SIZES, before, after, strict=True)
    ]


def _line(bench: Bench, name: str, unit: str, sizes: list[int], values: list[float]) -> Line:
    slope, base = linear_regression([log2(size) for size in sizes[:-1]], values[:-1])
    line = bench.line(f"{name}, {sizes[-1]:,} finished", unit, values[-1:], [base + slope * log2(sizes[-1])])
    line.curve = {f"{size:,}": value for size, value in zip(sizes, values, strict=True)}
    return line


def _costs(bench: Bench, url: str, admin: psycopg.Connection[Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield each cost with its name and unit."""
    for what, statement in _SIZES.items():
        yield (f"{what}, each finished job", "bytes"), _value(admin, statement)
    count, batch = bench.size(50_000, 2_000), 500
    with PostgresStorage.open(DatabaseConfig(url=url, pool_max_size=1)) as store:

        def run() -> None:
            for _ in range(count // batch):
                store.create_jobs([NewJob(job_type="t", queue="hot", payload=_PAYLOAD) for _ in range(batch)])
            held = store.claim_jobs("hot", "w", batch, _LEASE)
            while held:
                held = store.complete_and_claim(held, "hot", "w", batch, _LEASE)

        admin.execute("CHECKPOINT")
        yield from _measured(admin, store, run, "a job", count)
        pruned = bench.size(20, 1) * 1000
        admin.execute("CHECKPOINT")
        yield from _measured(admin, store, lambda: _prune(store, pruned), "a pruned job", pruned)
    yield ("vacuum of a pruned job", "µs"), seconds(lambda: admin.execute("VACUUM goqueue.jobs")) / pruned * 1e6
    with PostgresStorage.open(url) as store:
        yield ("claim of 100", "ms"), _claim(bench, store)
        with _pruning(store):
            yield ("claim of 100 beside prunes", "ms"), _claim(bench, store)


def _measured(
    admin: psycopg.Connection[Any], store: PostgresStorage, run: Callable[[], None], name: str, count: int
) -> Iterator[tuple[tuple[str, str], float]]:
    """Run once, and yield each cost per job. The run handles ``count`` jobs."""
    written = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
    images = "SELECT wal_fpi::float8 FROM pg_stat_wal"
    with store._connection() as connection:  # the only one
        process = connection.info.backend_pid
    before = (_value(admin, written), _value(admin, images), _cpu(process), time.process_time())
    duration = seconds(run)
    client = time.process_time() - before[3]
    server = _cpu(process) - before[2]
    with store._connection() as connection:  # sessions flush their statistics only now and then
        connection.execute("SELECT pg_stat_force_next_flush()")
    yield (f"WAL of {name}", "bytes"), (_value(admin, written) - before[0]) / count
    yield (f"page images in the WAL of {name}", ""), (_value(admin, images) - before[1]) / count
    yield (f"server CPU of {name}", "µs"), server / count * 1e6
    yield (f"client CPU of {name}", "µs"), client / count * 1e6
    yield (f"rate of {name}", "jobs/s"), count / duration


def _prune(store: PostgresStorage, count: int) -> None:
    while count > 0:
        count -= store.prune_jobs(_OLD, limit=1000) or count


def _claim(bench: Bench, store: PostgresStorage) -> float:
    """Return the median milliseconds of a claim."""

    def claim() -> float:
        store.create_jobs([NewJob(job_type="t", queue="hot", payload=_PAYLOAD) for _ in range(100)])
        start = time.perf_counter()
        held = store.claim_jobs("hot", "w", 100, _LEASE)
        duration = time.perf_counter() - start
        store.complete_jobs(held)
        return duration * 1000

    return median(claim() for _ in range(bench.size(100, 3)))


@contextmanager
def _pruning(store: PostgresStorage) -> Iterator[None]:
    """Prune in another thread, batch by batch."""
    stop = threading.Event()

    def prune() -> None:
        while not stop.is_set():
            store.prune_jobs(_OLD, limit=1000)

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _cpu(process: int) -> float:
    """Return the CPU seconds of a process (Linux)."""
    return int(Path(f"/proc/{process}/schedstat").read_text("ascii").split()[0]) / 1e9


def _value(admin: psycopg.Connection[Any], statement: str) -> float:
    [(value,)] = admin.execute(statement).fetchall()
    return float(value)
