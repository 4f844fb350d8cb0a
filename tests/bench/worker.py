"""A worker in a separate process, for `tests.bench.work`, `tests.bench.growth` and `tests.bench.triggers`.

Imports goqueue and tests.bench.work. Run it as a module, with ``drain``, ``drain-bare`` or ``hear`` and the database's
URL; with ``listen`` or ``poll``, the URL and a number of jobs; or with ``work``, the URL, a queue, a number of threads
and of seconds. It prints "ready", and its results at the end.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from goqueue import DatabaseConfig, PostgresStorage
from tests.bench.harness import bare_connection
from tests.bench.work import QUEUE, Bare

_POLL = 0.05


def main() -> None:
    kind, url, *rest = sys.argv[1:]
    if kind == "work":
        _work(url, rest[0], int(rest[1]), float(rest[2]))
        return
    config = DatabaseConfig(url=url, pool_max_size=1)
    if kind == "drain-bare":
        with bare_connection(config) as connection:
            bare = Bare(connection, 100)
            _drain(bare.claim, bare.complete)
        return
    with PostgresStorage.open(config) as store:
        if kind == "drain":
            _drain(lambda: store.claim_jobs(QUEUE, "bench", 100), store.complete_jobs)
        elif kind == "hear":
            _hear(store)
        else:
            _wait_for_jobs(kind, store, int(rest[0]))


def _drain(claim: Callable[[], Sequence[Any]], complete: Callable[[Any], None]) -> None:
    """Drain the queue at the parent's signal. Print start and end by the monotonic clock, which all processes share."""
    print("ready", flush=True)
    sys.stdin.readline()
    start, count = time.monotonic(), 0
    while jobs := claim():
        complete(jobs)
        count += len(jobs)
    print(json.dumps({"start": start, "end": time.monotonic(), "jobs": count}), flush=True)


def _work(url: str, queue: str, threads: int, duration: float) -> None:
    """From the parent's signal on, claim and complete jobs by ten in each thread for ``duration``. Print how many."""
    config = DatabaseConfig(url=url, pool_min_size=threads, pool_max_size=threads)
    done = [0] * threads
    with PostgresStorage.open(config) as store:

        def loop(number: int) -> None:
            jobs = store.claim_jobs("none", "bench")
            while time.monotonic() < end:
                done[number] += len(jobs)
                jobs = store.complete_and_claim(jobs, queue, "bench", 10)

        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + duration
        workers = [threading.Thread(target=loop, args=[number]) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print(json.dumps({"jobs": sum(done)}), flush=True)


def _hear(store: PostgresStorage) -> None:
    """Listen without claiming jobs, until killed."""
    with store.listen(QUEUE) as listener:
        print("ready", flush=True)
        while True:
            listener.wait(timedelta(seconds=5))


def _wait_for_jobs(kind: str, store: PostgresStorage, count: int) -> None:
    """Claim and complete jobs. Print the id of each one and the time at which its claim returned."""
    taken: dict[str, float] = {}
    with store.listen(QUEUE) if kind == "listen" else nullcontext() as listener:
        print("ready", flush=True)
        while len(taken) < count:
            jobs = store.claim_jobs(QUEUE, "bench", 10)
            now = time.monotonic()
            if jobs:
                taken |= {str(job.id): now for job in jobs}
                store.complete_jobs(jobs)
            elif listener is not None:
                listener.wait(timedelta(seconds=5))
            else:
                time.sleep(_POLL)
    print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
