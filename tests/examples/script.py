"""A plain script: ``add`` stores an order and its job in one transaction, ``work`` runs the jobs until it is stopped.

    python -m tests.examples.script add 17
    python -m tests.examples.script work      # SIGTERM or Ctrl-C: it finishes the current job and releases the others

The PG* variables name a migrated database.
"""

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import psycopg

from goqueue import Job, LeaseLostError, NewJob, PostgresStorage

LEASE = timedelta(minutes=1)


def add_order(number: int) -> Job:
    with psycopg.connect() as connection:  # commits at the end, or rolls back on an error
        job = PostgresStorage.bound_to(connection).create_job(NewJob(job_type="ship", payload={"order": number}))
        connection.execute("INSERT INTO orders (number) VALUES (%s)", [number])
    return job


def ship(job: Job) -> None:
    order = job.payload["order"]
    if order < 0:
        raise ValueError(f"there is no order {order}")
    print(f"shipped {order}", flush=True)


def work(store: PostgresStorage, handle: Callable[[Job], None], stop: threading.Event) -> None:
    """Run jobs one after the other until ``stop`` is set."""
    with store.listen("default") as listener:
        while not stop.is_set():
            jobs = store.claim_jobs("default", worker_id="script", limit=10, lease=LEASE)
            if not jobs and not stop.is_set():
                store.rescue_jobs()  # jobs of dead workers become pending again
                listener.wait(timedelta(seconds=1))
            while jobs and not stop.is_set():
                with suppress(LeaseLostError):  # the job was cancelled, or the lease has expired
                    store.heartbeat_jobs([jobs[0]], LEASE)
                    run(store, handle, jobs[0])
                del jobs[0]
            if jobs:
                with suppress(LeaseLostError):
                    store.release_jobs(jobs)  # not started: another worker takes them at once


def run(store: PostgresStorage, handle: Callable[[Job], None], job: Job) -> None:
    try:
        handle(job)
    except Exception as error:
        store.fail_job(job, repr(error))  # retried later; dead after its last attempt
    else:
        store.complete_job(job)


def main() -> None:
    match sys.argv[1:]:
        case ["add", number]:
            print(add_order(int(number)).id)
        case ["work"]:
            stop = threading.Event()
            for number_of_signal in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number_of_signal, lambda *_: stop.set())
            with PostgresStorage.open() as store:
                print("ready", flush=True)
                work(store, ship, stop)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
