"""A tour of the store on a real server, shown by `make run`.

It uses the database of GOQUEUE_DATABASE_URL (or goqueue.yaml) if configured, else a temporary embedded PostgreSQL. It
migrates your database. It touches only the jobs of its own queue, and deletes them.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import msgspec
import psycopg
from rich.console import Console
from rich.padding import Padding
from rich.progress import track
from rich.table import Table

from goqueue import (
    DatabaseConfig,
    DuplicateJobError,
    GoQueueError,
    InvalidJobError,
    Job,
    JobFilter,
    JobNotFoundError,
    JobStateError,
    JobStatus,
    JobUpdate,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    load_config,
)
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer

_BULK = 5000

# In a pipe or a file, lines are not broken at 80 columns.
console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@contextmanager
def _database() -> Iterator[DatabaseConfig]:
    config = load_config().database
    if config.url:
        console.print("[bold]Server[/]: the configured one (GOQUEUE_DATABASE_URL)")
        yield config
        return
    with console.status("starting an embedded PostgreSQL (the first start takes a second or two) ..."):
        server = EmbeddedServer()
        server.start()
    try:
        console.print(f"[bold]Server[/]: embedded PostgreSQL {server.version}, deleted at the end")
        yield msgspec.structs.replace(config, url=server.url())
    finally:
        server.stop()
        console.print("[dim]The embedded server has stopped; its files are deleted.[/]")


def tour() -> None:
    """Run the tour. Raises `GoQueueError` if the server, the migrations or the store fail."""
    with _database() as config:
        with console.status("applying the migrations ..."):
            migrate(config.url, schema=config.schema)
        console.print("[bold]Schema[/]: migrated, as by `pgmigrate migrate`\n")
        # A unique name, so that two tours on one database don't interfere.
        queue = f"demo-{uuid4().hex[:8]}"
        with PostgresStorage.open(config) as store:
            try:
                _steps(store, config, queue)
            finally:
                _clear(store, queue)


def _steps(store: PostgresStorage, config: DatabaseConfig, queue: str) -> None:  # noqa: PLR0915 - one step a paragraph
    _say("create_job", "a job with its payload, and an idempotency key")
    new = NewJob(queue=queue, job_type="send_email", payload={"to": "ada@example.com"}, idempotency_key=f"{queue}-1")
    job = store.create_job(new)
    _show([job])
    _say("create_job", "the same NewJob again, as after a lost connection: no second job")
    console.print(f"   the same job: {store.create_job(new) == job}")
    _say("create_job", "another job with that key: rejected, with the id of the job that has it")
    try:
        store.create_job(NewJob(queue=queue, job_type="send_email", idempotency_key=new.idempotency_key))
    except DuplicateJobError as error:
        console.print(f"   [yellow]DuplicateJobError[/]: {error}")
    _say("create_job", "a payload that the database can't store: rejected before it is sent")
    try:
        store.create_job(NewJob(queue=queue, job_type="report", payload={"rows": [1.5, float("nan")]}))
    except InvalidJobError as error:
        console.print(f"   [yellow]InvalidJobError[/]: {error}")

    _say("bound_to", "a job inside the application's transaction, which rolls back")
    with psycopg.connect(config.url) as connection:
        lost = store.bound_to(connection).create_job(NewJob(queue=queue, job_type="ship", delay=timedelta(hours=1)))
        connection.rollback()
    console.print(f"   in the table afterwards: {store.get_jobs([lost.id])}")

    _say("create_jobs", f"{_BULK:,} at once")
    kinds = ("send_email", "report", "resize_image")
    start = time.perf_counter()
    results = store.create_jobs(
        NewJob(queue=queue, job_type=kinds[number % 3], payload={"order": number}, delay=timedelta(seconds=number % 7))
        for number in range(_BULK)
    )
    seconds = time.perf_counter() - start
    count = sum(created for _, created in results)
    console.print(f"   {count:,} created in {seconds:.2f} s, {count / seconds:,.0f} per second")

    _say("list_jobs", "newest first, in pages; each continues after the previous one")
    job_filter = JobFilter(queue=queue, job_type=["report", "send_email"], status=JobStatus.PENDING)
    page = store.list_jobs(job_filter, limit=3)
    _show(page.jobs)
    pages, listed = 1, len(page.jobs)
    cursor = page.next_cursor
    for _ in track(range(-(-_BULK // 500)), description="   reading, 500 per page", console=console, transient=True):
        if cursor is not None:
            page = store.list_jobs(job_filter, limit=500, cursor=cursor)
            pages, listed, cursor = pages + 1, listed + len(page.jobs), page.next_cursor
    console.print(f"   {listed:,} jobs on {pages} pages; count_jobs says {store.count_jobs(job_filter)}")

    _say("claim_jobs", "a worker claims the next due jobs, each held by a lease")
    first, second, *others = store.claim_jobs(queue, "worker-1", limit=10)
    _show([first, second])
    _say("complete_and_claim", "completes them and claims the next, in one transaction")
    start, done = time.perf_counter(), 0
    jobs = [first, *others]
    while jobs:
        done += len(jobs)
        jobs = store.complete_and_claim(jobs, queue, "worker-1", limit=100)
    seconds = time.perf_counter() - start
    console.print(f"   {done:,} done in {seconds:.2f} s, {done / seconds:,.0f} per second; the others are not due yet")
    _say("fail_job", "a failed attempt is retried later; the error is stored")
    store.fail_job(second, "the mail server was unavailable")
    _show([store.get_job(second.id)])
    [failure] = store.list_failures(second.id)
    console.print(f"   attempt {failure.attempt}, {failure.worker_id}: {failure.error}")
    _say("complete_job", "by a worker that no longer holds it: rejected, no job completes twice")
    try:
        store.complete_job(second)
    except LeaseLostError as error:
        console.print(f"   [yellow]LeaseLostError[/]: {error}")
    _say("queue_stats", "for an operator")
    stats = next(stats for stats in store.queue_stats() if stats.queue == queue)
    console.print("   " + ", ".join(f"{count} {status}" for status, count in stats.counts.items()))
    _say("update_job", "manually, as far as the job's state allows it")
    try:
        store.update_job(first.id, JobUpdate(status=JobStatus.RUNNING))
    except JobStateError as error:
        console.print(f"   [yellow]JobStateError[/]: {error}")

    _say("delete_job", "permanently")
    store.delete_job(job.id)
    try:
        store.get_job(job.id)
    except JobNotFoundError as error:
        console.print(f"   [yellow]JobNotFoundError[/]: {error}\n")


def _clear(store: PostgresStorage, queue: str) -> None:
    with console.status(f"emptying the queue {queue} ..."):
        removed = store.delete_jobs(JobFilter(queue=queue))
    console.print(f"[dim]The tour's {removed:,} jobs were deleted.[/]")


def _say(name: str, what: str) -> None:
    console.print(f"[bold green]{name}[/]: {what}")


def _show(jobs: list[Job]) -> None:
    table = Table("id", "job_type", "status", "attempts", "scheduled", "started", "completed", box=None)
    for job in jobs:
        times = (job.scheduled_at, job.started_at, job.completed_at)
        table.add_row(
            f"…{str(job.id)[-6:]}", job.job_type, job.status, str(job.attempts),
            *("-" if at is None else f"{at:%H:%M:%S}" for at in times),
        )  # fmt: skip
    console.print(Padding(table, (0, 0, 0, 3)))


def main() -> None:
    """Run the tour. Exit with 1 and a short message if it fails."""
    try:
        tour()
    except GoQueueError as error:
        sys.stderr.write(f"goqueue: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
