"""A worker in a separate process, for `tests.bench.work` and `tests.bench.triggers`.

Imports goqueue and tests.bench.work. Run it as a module, with ``drain``, ``drain-bare`` or ``hear`` and the database's
URL; or with ``listen`` or ``poll``, the URL and a number of jobs. It prints "ready", and its results at the end.
"""

import json
import sys
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
    kind, url, *count = sys.argv[1:]
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
            _wait_for_jobs(kind, store, int(count[0]))


def _drain(claim: Callable[[], Sequence[Any]], complete: Callable[[Any], None]) -> None:
    """Drain the queue at the parent's signal. Print start and end by the monotonic clock, which all processes share."""
    print("ready", flush=True)
    sys.stdin.readline()
    start, count = time.monotonic(), 0
    while jobs := claim():
        complete(jobs)
        count += len(jobs)
    print(json.dumps({"start": start, "end": time.monotonic(), "jobs": count}), flush=True)


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
