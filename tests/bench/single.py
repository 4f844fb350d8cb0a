"""The costs of create_job and get_job for one job, of create_jobs for thousands, and of a generator of a million.

Imports goqueue, psycopg and tests.bench.harness.
"""

import json
import subprocess
import sys

import psycopg

from goqueue import DatabaseConfig, NewJob, PostgresStorage
from goqueue.payload import encode_json
from goqueue.postgres.queries import load_queries
from tests.bench.harness import Bench, Line, Target, checkout, rendered, seconds

_PAYLOAD = {"to": "user1@example.com", "template": "welcome", "tries": 3}


def new_job() -> NewJob:
    return NewJob(job_type="send_email", queue="mail", payload=_PAYLOAD)


def measure_create_job(bench: Bench) -> list[Line]:
    """Compare with pgbench, which runs the same prepared text and values. Every commit waits for the disk."""
    count = bench.size(150, 50)
    statement = load_queries().create_job.sql
    job = new_job()
    values = {
        "queue": job.queue,
        "job_type": job.job_type,
        "payload": encode_json(job.payload).decode(),
        "priority": str(job.priority),
        "max_attempts": str(job.max_attempts),
    }
    # Variables without a value are null in pgbench: scheduled_at, delay and the keys, as in the store's call.
    # Only the id varies. The server's uuidv7() is ordered by time, like the client's.
    names = {name: f":{name}" for name in load_queries().create_job.parameters}
    script = rendered(statement, {**names, "id": "uuidv7()"})
    with (
        bench.database("bench_create_job") as url,
        PostgresStorage.open(DatabaseConfig(url=url, pool_max_size=1)) as store,
        psycopg.connect(url, autocommit=True) as connection,
    ):

        def baseline() -> float:
            return bench.pgbench(url, script, count, values)[0]

        def ours() -> float:
            return count / seconds(lambda: [store.create_job(new_job()) for _ in range(count)])

        def bare_call() -> None:
            fresh = dict.fromkeys(names) | values | {"id": new_job().id}
            connection.execute(statement, fresh, prepare=True).fetchone()

        def bare() -> float:
            return count / seconds(lambda: [bare_call() for _ in range(count)])

        for _ in range(10):  # prepares the statement
            store.create_job(new_job())
        baselines, mine, bares = bench.interleaved("create_job", baseline, ours, bare, slices=12)
    return [
        bench.line("create_job", "jobs/s", mine, baselines, target=Target("ratio", "at least", 0.8)),
        bench.line("create_job, bare psycopg", "jobs/s", bares, baselines, note="what any Python client can reach"),
    ]


def measure_get_job(bench: Bench) -> list[Line]:
    """Compare with psycopg without the store: one prepared statement on one connection, with a new cursor per call.
    Compare also with a reused cursor (psycopg's fastest way) and with pgbench."""
    count = bench.size(200, 50)
    statement = load_queries().get_job.sql
    with (
        bench.database("bench_get_job") as url,
        PostgresStorage.open(DatabaseConfig(url=url, pool_max_size=1)) as store,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        ids = [job_id for job_id, _ in store.create_jobs(new_job() for _ in range(count))]
        connection.execute("VACUUM ANALYZE goqueue.jobs")
        bound = PostgresStorage.bound_to(connection)
        cursor = connection.cursor()
        script = rendered(statement, {"id": ":id"})

        def each(call: object) -> float:
            return seconds(lambda: [call(job_id) for job_id in ids]) / count * 1e6  # type: ignore[operator]

        for job_id in ids[:20]:  # prepares the statement
            store.get_job(job_id)
        bare, mine, in_hand, again, server = bench.interleaved(
            "get_job",
            lambda: each(lambda job_id: connection.execute(statement, {"id": job_id}, prepare=True).fetchone()),
            lambda: each(store.get_job),
            lambda: each(bound.get_job),
            lambda: each(lambda job_id: cursor.execute(statement, {"id": job_id}, prepare=True).fetchone()),
            lambda: bench.pgbench(url, script, count, {"id": str(ids[0])})[1][-1] * 1e6,
            slices=15,
        )
    share = [whole - part for whole, part in zip(mine, in_hand, strict=True)]
    return [
        bench.line("get_job", "µs", mine, bare, target=Target("ratio", "at most", 1.5)),
        bench.line("get_job, bound to a connection", "µs", in_hand, bare),
        bench.line("get_job, the pool's share", "µs", share, note="get_job minus get_job bound to a connection"),
        bench.line("get_job against a reused cursor", "µs", mine, again),
        bench.line("get_job against pgbench", "µs", mine, server),
    ]


def measure_create_jobs(bench: Bench) -> list[Line]:
    """Create jobs in batches of 1000 in an empty table, each in its own transaction. Compare with pgbench, which sends
    the same documents.

    pgbench reads each document from a scratch table into a variable (``gset``), and sends it as a parameter like
    psycopg. Its time is that of the INSERT alone, because pgbench reports the time of each command.
    """
    batches, size = bench.size(3, 2), 1000
    script = "\\set n :n + 1\nSELECT document AS jobs FROM public.document WHERE n = :n \\gset\n" + rendered(
        load_queries().create_jobs.sql, {"jobs": ":jobs"}
    )
    with (
        bench.database("bench_create_jobs") as url,
        PostgresStorage.open(DatabaseConfig(url=url, pool_max_size=1)) as store,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        connection.execute("CREATE TABLE public.document (n bigint PRIMARY KEY, document text NOT NULL)")

        def empty() -> None:
            connection.execute("TRUNCATE goqueue.jobs")

        def baseline() -> float:
            empty()
            connection.execute("TRUNCATE public.document")
            for n in range(batches):
                document = encode_json([new_job() for _ in range(size)]).decode()
                connection.execute("INSERT INTO public.document VALUES (%s, %s)", (n + 1, document))
            return size / bench.pgbench(url, script, batches, {"n": "0"})[1][-1]

        def made_inside() -> float:
            empty()
            return batches * size / seconds(lambda: [store.create_jobs(jobs_of(size)) for _ in range(batches)])

        def made_before() -> float:
            empty()
            ready = [jobs_of(size) for _ in range(batches)]
            return batches * size / seconds(lambda: [store.create_jobs(jobs) for jobs in ready])

        for _ in range(6):  # prepares the statement
            store.create_jobs(jobs_of(1))
        baselines, inside, before = bench.interleaved("create_jobs", baseline, made_inside, made_before, slices=6)
    target = Target("value", "at least", 30_000, if_baseline_allows=True)
    return [
        bench.line(
            "create_jobs by 1000", "jobs/s", inside, baselines, target=target, note="creates the NewJob objects too"
        ),
        bench.line("create_jobs by 1000, objects ready", "jobs/s", before, baselines, note="NewJob objects exist"),
    ]


def jobs_of(size: int) -> list[NewJob]:
    return [new_job() for _ in range(size)]


def measure_memory(bench: Bench) -> list[Line]:
    """Run create_jobs_in_batches with a generator in a separate process. Measure its memory after each batch."""
    count = bench.size(1_000_000, 12_000)
    bench.tell(f"create_jobs_in_batches: {count:,} jobs from a generator")
    with bench.database("bench_memory") as url:
        command = [sys.executable, "-m", "tests.bench.memory", url, str(count)]
        run = subprocess.run(command, cwd=checkout(), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(run.stdout)
    note = f"growth after the first 10 batches; a generator of {count:,} jobs, measured once"
    target = Target("value", "at most", 10)
    return [
        bench.line("create_jobs_in_batches, memory", "MiB", [found["growth"]], target=target, note=note),
        bench.line("create_jobs_in_batches", "jobs/s", [found["jobs_per_second"]]),
    ]
