"""The cost of notifications about new jobs, and their benefit: how soon an idle worker gets a new job.

Imports goqueue, psycopg and tests.bench.harness, tests.bench.single, tests.bench.work.
"""

import json
import random
import time
from contextlib import ExitStack
from functools import partial
from statistics import median, quantiles

import psycopg

from goqueue import DatabaseConfig, PostgresStorage
from tests.bench.harness import Bench, Line, seconds
from tests.bench.single import jobs_of, new_job
from tests.bench.work import worker

_STEPS = ("no trigger", "+ trigger", "+ a listener")
_BATCH = 1000


def measure_triggers(bench: Bench) -> list[Line]:
    return [*_cost(bench), *_pick_up(bench)]


def _cost(bench: Bench) -> list[Line]:
    """Measure one database per step: trigger off, trigger on, and trigger on with a listening worker.

    Commits don't wait for the disk, because that wait would hide the other costs. A line's value is the difference from
    the previous step; its ratio compares the total costs.
    """
    one_by_one, batches, size = bench.size(500, 50), bench.size(3, 1), _BATCH
    with ExitStack() as stack:
        stores, admins = [], []
        stack.enter_context(bench.database("bench_trigger_base"))
        for number, step in enumerate(_STEPS):
            url = stack.enter_context(bench.database(f"bench_trigger_{number}", template="bench_trigger_base"))
            admin = stack.enter_context(psycopg.connect(url, autocommit=True))
            admin.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
            if step == "no trigger":
                admin.execute("ALTER TABLE goqueue.jobs DISABLE TRIGGER jobs_notify_ready")
            config = DatabaseConfig(url=f"{url}&options=-c%20synchronous_commit%3Doff", pool_max_size=1)
            stores.append(stack.enter_context(PostgresStorage.open(config)))
            admins.append(admin)
            if step == "+ a listener":
                stack.enter_context(worker("hear", url))

        def single(store: PostgresStorage, admin: psycopg.Connection) -> float:
            admin.execute("TRUNCATE goqueue.jobs")
            jobs = [new_job() for _ in range(one_by_one)]
            return seconds(lambda: [store.create_job(job) for job in jobs]) / one_by_one * 1e6

        def many(store: PostgresStorage, admin: psycopg.Connection) -> float:
            admin.execute("TRUNCATE goqueue.jobs")
            ready = [jobs_of(size) for _ in range(batches)]
            return seconds(lambda: [store.create_jobs(jobs) for jobs in ready]) / (batches * size) * 1e6

        lines = []
        for name, measure in (("create_job", single), ("create_jobs by 1000", many)):
            pairs = zip(stores, admins, strict=True)
            samples = bench.interleaved(f"trigger: {name}", *(partial(measure, *pair) for pair in pairs), slices=8)
            lines.append(bench.line(f"{name}, {_STEPS[0]}", "µs", samples[0]))
            for place, step in enumerate(_STEPS[1:], start=1):
                line = bench.line(f"{name}, {step}", "µs", samples[place], samples[place - 1])
                line.value = median(samples[place]) - median(samples[place - 1])
                lines.append(line)
    return lines


def _pick_up(bench: Bench) -> list[Line]:
    """Measure from the return of create_job to that of claim_jobs in an idle worker. Commits wait for the disk."""
    count = bench.size(60, 5)
    lines = []
    with bench.database("bench_pick_up") as url, PostgresStorage.open(DatabaseConfig(url=url)) as store:
        samples: dict[str, list[list[float]]] = {"listen": [], "poll": []}
        for number in range(bench.rounds):
            for kind, rounds in samples.items():
                bench.tell(f"pick-up, {kind}: round {number + 1} of {bench.rounds}")
                rounds.append(_delays(url, store, kind, count))
        for kind, words in (("listen", "listening"), ("poll", "polling every 50 ms")):
            for name, place in (("p50", 50), ("p95", 95)):
                values = [quantiles(delays, n=100, method="inclusive")[place - 1] for delays in samples[kind]]
                note = f"{count} jobs a round, each created while the worker was idle"
                lines.append(bench.line(f"pick-up, {words}, {name}", "ms", values, note=note))
    return lines


def _delays(url: str, store: PostgresStorage, kind: str, count: int) -> list[float]:
    """Return the delay of each job in milliseconds. All processes read the same monotonic clock."""
    created = {}
    with worker(kind, url, str(count)) as process:
        for _ in range(count):
            # A random pause, so that jobs are created at any point between two polls.
            time.sleep(random.uniform(0.08, 0.13))
            job = store.create_job(new_job())
            created[str(job.id)] = time.monotonic()
        taken = json.loads(process.stdout.readline())
    return [(taken[job_id] - at) * 1000 for job_id, at in created.items()]
