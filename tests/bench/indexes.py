"""The costs of each index of goqueue.jobs, and of all CHECK constraints together, for three operations: an insert, two
changes of status, and a job's claim and completion by the statements in sql/.

Imports goqueue, psycopg, tests.bench.harness, tests.bench.seed and tests.bench.work.
"""

from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from goqueue import DatabaseConfig, NewJob
from goqueue.payload import encode_json
from goqueue.postgres.queries import load_queries
from tests.bench.harness import Bench, Line, bare_connection, seconds
from tests.bench.seed import seed
from tests.bench.work import QUEUE, Bare

_INDEXES = ("claim", "idempotency_key", "unique_key", "running", "pending", "finished_type", "finished_queue")
_BATCH = 1000
_START = """
UPDATE goqueue.jobs
SET status = 'running', attempts = attempts + 1, locked_by = 'bench', locked_at = now(), started_at = now(),
    updated_at = now()
WHERE id = ANY(%s)
"""
_COMPLETE = """
UPDATE goqueue.jobs
SET status = 'completed', locked_by = NULL, locked_at = NULL, completed_at = now(), updated_at = now()
WHERE id = ANY(%s)
"""


def measure_indexes(bench: Bench) -> list[Line]:
    """Measure one database per configuration: the primary key alone, then one index more each, then all indexes without
    CHECK constraints.

    Every job has both keys, because an index without entries costs nothing. Commits don't wait for the disk, because
    that wait would hide the other costs. A line's baseline is the configuration without its index or CHECKs.
    """
    steps = ["primary key alone", *(f"with {name}" for name in _INDEXES), "no CHECKs"]
    with ExitStack() as stack:
        base = stack.enter_context(bench.database("bench_index_base"))
        bench.tell("indexes: adding rows")
        with psycopg.connect(base, autocommit=True) as connection:
            seed(connection, bench.size(100_000, 2_000))
        connections = []
        for number, step in enumerate(steps):
            url = stack.enter_context(bench.database(f"bench_index_{number}", template="bench_index_base"))
            connection = stack.enter_context(bare_connection(DatabaseConfig(url=url, prepare_threshold=0)))
            connection.execute("SET synchronous_commit = off")
            connection.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
            if step == "no CHECKs":
                _drop_checks(connection)
            else:
                for name in _INDEXES[number:]:
                    connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier("goqueue", f"jobs_{name}_idx")))
            connections.append(connection)
        batches, size, slices = bench.size(2, 1), bench.size(_BATCH, 100), bench.size(12, 1)
        for connection in connections:
            _one_round(connection, 1, size)
        changed = [partial(_one_round, connection, batches, size) for connection in connections]
        inserts, changes = zip(*bench.interleaved_steps("indexes", *changed, slices=slices), strict=True)
        # Without the first step: lacking the claim index, a claim reads the whole table.
        worked = [partial(_work, connection, batches, size) for connection in connections[1:]]
        works = bench.interleaved("indexes: claim + complete", *worked, slices=slices)
    lines = []
    for work, samples in (("insert", inserts), ("status change", changes)):
        lines.append(bench.line(f"{work}, primary key alone", "µs", samples[0]))
        for place, name in enumerate(_INDEXES, start=1):
            lines.append(_marginal(bench, f"{work}, + {name} index", samples[place], samples[place - 1]))
        lines.append(_marginal(bench, f"{work}, + CHECKs", samples[-2], samples[-1]))
    lines.append(bench.line("claim + complete, claim index alone", "µs", works[0]))
    for place, name in enumerate(_INDEXES[1:], start=1):
        lines.append(_marginal(bench, f"claim + complete, + {name} index", works[place], works[place - 1]))
    lines.append(_marginal(bench, "claim + complete, + CHECKs", works[-2], works[-1]))
    return lines


def _drop_checks(connection: psycopg.Connection[Any]) -> None:
    names = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'goqueue.jobs'::regclass AND contype = 'c'"
    ).fetchall()
    for (name,) in names:
        connection.execute(sql.SQL("ALTER TABLE goqueue.jobs DROP CONSTRAINT {}").format(sql.Identifier(name)))


def _one_round(connection: psycopg.Connection[Any], batches: int, size: int) -> tuple[float, float]:
    """Return microseconds per job for its insert, and for its changes from pending to running to completed."""
    create_jobs = load_queries().create_jobs.sql
    jobs = [[_new_job() for _ in range(size)] for _ in range(batches)]
    documents = [encode_json(batch).decode() for batch in jobs]
    ids = [[job.id for job in batch] for batch in jobs]
    insert = seconds(lambda: [connection.execute(create_jobs, {"jobs": document}) for document in documents])
    change = seconds(lambda: [connection.execute(text, [batch]) for text in (_START, _COMPLETE) for batch in ids])
    return insert / (batches * size) * 1e6, change / (batches * size) * 1e6


def _work(connection: psycopg.Connection[Any], batches: int, size: int) -> float:
    """Return microseconds per job for its claim and completion, in batches of ``size``."""
    for _ in range(batches):
        jobs = encode_json([_new_job(QUEUE) for _ in range(size)]).decode()
        connection.execute(load_queries().create_jobs.sql, {"jobs": jobs})
    bare = Bare(connection, size)
    return seconds(lambda: [bare.complete(bare.claim()) for _ in range(batches)]) / (batches * size) * 1e6


def _new_job(queue: str = "queue_00") -> NewJob:
    key = str(uuid4())
    payload = {"to": "user1@example.com"}
    return NewJob(job_type="type_1", queue=queue, payload=payload, idempotency_key=key, unique_key=key)


def _marginal(bench: Bench, name: str, with_it: list[float], without: list[float]) -> Line:
    """Return a line for the added cost of one index or of the CHECKs. Its ratio compares the total costs."""
    line = bench.line(name, "µs", with_it, without)
    line.value = median(with_it) - median(without)
    return line
