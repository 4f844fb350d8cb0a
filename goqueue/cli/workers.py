"""`goqueue workers`: the workers that hold running jobs."""

import sys
from datetime import UTC, datetime

from rich.text import Text

from goqueue.cli.common import (
    AsJson,
    Column,
    ConfigFile,
    console,
    in_utc,
    in_words,
    note,
    open_store,
    print_json,
    print_line,
    printable,
    table,
)
from goqueue.models import WorkerStats


def show_workers(*, file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the workers that hold running jobs: how many, of which queues, since when, and until when.

    Idle workers hold none and are not shown. "Seen" is the latest claim,
    heartbeat or other change of a worker's jobs, and "Lease" the earliest end
    of a lease. If leases have expired, the worker is probably lost. `goqueue
    jobs list --worker ID` lists a worker's jobs.
    """
    with open_store(file) as store:
        workers = store.list_workers()
    if as_json:
        print_json({"at": datetime.now(UTC), "workers": workers})
    elif sys.stdout.isatty():
        _write_table(workers)
    else:
        for each in workers:
            queues = ",".join(map(printable, each.queues))
            lease = "-" if each.lease_expires_at is None else in_utc(each.lease_expires_at)
            times = f"oldest={in_utc(each.oldest_locked_at)}  seen={in_utc(each.last_seen_at)}  lease={lease}"
            counts = f"jobs={each.jobs}  queues={queues}  {times}  expired={each.expired_leases}"
            print_line(f"{printable(each.worker_id)}  {counts}")
    if not (workers or as_json):
        note("no worker holds a job")


def _write_table(workers: list[WorkerStats]) -> None:
    screen, now = console(), datetime.now(UTC)
    columns = [Column("Worker", "left", 16), Column("Jobs"), Column("Queues", "left", 8)]
    columns += [Column("Oldest"), Column("Seen"), Column("Lease"), Column("Expired")]
    rows: list[list[str | Text]] = []
    for each in workers:
        lease = "-" if each.lease_expires_at is None else in_words(each.lease_expires_at - now)
        expired = Text(f"{each.expired_leases:,}", style="bold red" if each.expired_leases else "")
        times = [in_words(now - each.oldest_locked_at), in_words(now - each.last_seen_at)]
        rows.append([each.worker_id, f"{each.jobs:,}", ", ".join(each.queues), *times, lease, expired])
    if rows:
        screen.print(table(columns, rows, screen.width))
