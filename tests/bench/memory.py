"""A separate client that creates jobs from a generator and measures its memory. Imports goqueue and psutil.

Run it as a module with the database's URL and the number of jobs. It prints {"jobs_per_second": ..., "growth": MiB}.
"""

import itertools
import json
import sys
import time

import psutil

from goqueue import DatabaseConfig, NewJob, PostgresStorage

_WARM_UP_BATCHES = 10


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    process = psutil.Process()
    with PostgresStorage.open(DatabaseConfig(url=url)) as store:
        jobs = (NewJob(job_type="send_email", payload={"to": f"user{n}@example.com"}) for n in itertools.count())
        batches = store.create_jobs_in_batches(itertools.islice(jobs, count))
        # After some batches, buffers and the allocator's arenas have reached their final size.
        warm_up = sum(len(results) for results in itertools.islice(batches, _WARM_UP_BATCHES))
        before = peak = process.memory_info().rss
        start, created = time.perf_counter(), 0
        for results in batches:
            created += len(results)
            peak = max(peak, process.memory_info().rss)
        elapsed = time.perf_counter() - start
    if warm_up + created != count:
        raise SystemExit(f"{warm_up + created} jobs were created, not {count}")
    print(json.dumps({"jobs_per_second": created / elapsed, "growth": (peak - before) / 2**20}))


if __name__ == "__main__":
    main()
