"""What each feature adds to a job's insert, claim and completion, used and unused, in CPU time of the server.

Imports goqueue, psycopg, tests.bench.harness, tests.bench.single and tests.bench.work.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import psycopg
from psycopg import sql

from goqueue import DatabaseConfig, Job, NewJob, PostgresStorage
from goqueue.files import read_shipped
from tests.bench.harness import Bench, Line, bare_connection
from tests.bench.single import new_job
from tests.bench.work import QUEUE, worker

_BATCH = 100
_STEPS = [f"{step} {size}" for step in ("create", "claim", "complete") for size in (1, _BATCH)]
_PAUSES = """
            AND l.queue <> ALL(
                ARRAY(
                    SELECT p.queue FROM goqueue.paused_queues AS p
                    WHERE p.paused_until > statement_timestamp()
                )
            )"""


class _Case(NamedTuple):
    #: SQL that prepares the database.
    setup: str = "SELECT"
    #: The field that gets a new value in each job.
    key: str = ""
    #: Every job has failed once.
    fails: bool = False
    #: A worker listens.
    listens: bool = False
    #: A part of leases.sql to leave out.
    without: str = ""


_USED = {
    "an idempotency key": _Case(key="idempotency_key"),
    "a unique key": _Case(key="unique_key"),
    "100 other queues paused": _Case(
        "INSERT INTO goqueue.paused_queues (queue) SELECT n FROM generate_series(1, 100) n"
    ),
    "a failure in its history": _Case(fails=True),
    "a listener": _Case(listens=True),
}
# The cases lack the feature, and are the baselines of jobs that don't use it.
_UNUSED = {
    "unique keys": _Case("DROP INDEX goqueue.jobs_unique_key_idx"),
    "pauses": _Case(without=_PAUSES),
    "notifications": _Case("ALTER TABLE goqueue.jobs DISABLE TRIGGER USER"),
}


def measure_features(bench: Bench) -> list[Line]:
    """Compare jobs that use a feature with plain ones, and plain ones with those of a database without the feature.

    Wall-clock time would be mostly that of the client and the disk, so the server process's CPU time is measured.
    """
    with ExitStack() as stack:
        stack.enter_context(bench.database("bench_feature_base"))
        cases = {"plain": _Case(), **_USED, **{f"without {name}": case for name, case in _UNUSED.items()}}
        tables = [_Table(stack, bench, *numbered) for numbered in enumerate(cases.values())]
        taken = bench.interleaved_steps("features", *(table.measure for table in tables), slices=10)
        samples = dict(zip(cases, taken, strict=True))
    note = "CPU time of the server process"
    pairs = [(name, samples[name], samples["plain"]) for name in _USED]
    pairs += [(f"unused: {name}", samples["plain"], samples[f"without {name}"]) for name in _UNUSED]
    lines = [
        bench.line(f"{step}, plain", "µs", *part, note=note)
        for step, *part in zip(_STEPS, samples["plain"], strict=True)
    ]
    for name, mine, baselines in pairs:
        lines += [
            bench.line(f"{step}, {name}", "µs", *part) for step, *part in zip(_STEPS, mine, baselines, strict=True)
        ]
    return lines


class _Table:
    """The database of a case, and a store on one connection. Commits don't wait for the disk."""

    def __init__(self, stack: ExitStack, bench: Bench, number: int, case: _Case) -> None:
        url = stack.enter_context(bench.database(f"bench_feature_{number}", template="bench_feature_base"))
        self._case = case
        self._singles, self._batches = bench.size(60, 5), bench.size(6, 1)
        self._admin = stack.enter_context(psycopg.connect(url, autocommit=True))
        self._admin.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
        self._admin.execute(sql.SQL(case.setup))
        if case.listens:
            stack.enter_context(worker("hear", url))
        sql_dir = stack.enter_context(TemporaryDirectory()) if case.without else ""
        if case.without:
            text = read_shipped("sql", "leases.sql")
            if case.without not in text:
                raise RuntimeError("sql/leases.sql has changed: correct _PAUSES in tests/bench/features.py")
            Path(sql_dir, "leases.sql").write_text(text.replace(case.without, ""), encoding="utf-8")
        config = DatabaseConfig(url=url, claim_resume_time=timedelta(0), sql_dir=sql_dir)
        connection = stack.enter_context(bare_connection(config))
        connection.execute("SET synchronous_commit = off")
        self._schedstat = Path(f"/proc/{connection.info.backend_pid}/schedstat")
        self._store = PostgresStorage(config, connection=connection)

    def measure(self) -> list[float]:
        """Return microseconds per job for each of _STEPS."""
        self._admin.execute("DELETE FROM goqueue.jobs")
        self._admin.execute("VACUUM goqueue.jobs, goqueue.job_failures")
        self._steps(1, 1)  # plans the statements again, which VACUUM has invalidated
        return self._steps(self._singles, self._batches)

    def _steps(self, singles: int, batches: int) -> list[float]:
        store, times = self._store, list[float]()

        def timed(call: Callable[[Any], Any], given: Callable[[int], Any]) -> None:
            """Time the calls with single jobs, then those with batches. ``given`` makes the argument for a size."""
            for sizes in ([1] * singles, [_BATCH] * batches):
                arguments = [given(size) for size in sizes]
                start = self._clock()
                for argument in arguments:
                    call(argument)
                times.append((self._clock() - start) / sum(sizes) / 1000)

        held: list[list[Job]] = []
        timed(
            lambda jobs: store.create_jobs(jobs) if len(jobs) > 1 else store.create_job(jobs[0]),
            lambda size: [self._new_job() for _ in range(size)],
        )
        if self._case.fails:
            failed = [(job, "TimeoutError: no answer") for job in store.claim_jobs(QUEUE, "bench", 1000)]
            store.fail_jobs(failed, retry_in=timedelta(0))
        timed(lambda size: held.append(store.claim_jobs(QUEUE, "bench", size)), lambda size: size)
        timed(store.complete_jobs, lambda _: held.pop(0))
        return times

    def _new_job(self) -> NewJob:
        key = {self._case.key: str(uuid4())} if self._case.key else {}
        return msgspec.structs.replace(new_job(), **key)

    def _clock(self) -> int:
        """Return the server process's nanoseconds of CPU time."""
        try:
            return int(self._schedstat.read_text().split()[0])
        except FileNotFoundError:  # only Linux has it
            return time.perf_counter_ns()
