"""Pages of list_jobs: every combination of filters, pages 1 and 1000, and the plans.

Imports goqueue, psycopg, tests.bench.harness and tests.bench.seed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import product
from statistics import median
from typing import Any
from urllib.parse import quote

import psycopg

from goqueue import DatabaseConfig, JobFilter, PostgresStorage
from goqueue.cursors import read_cursor
from goqueue.postgres.queries import load_queries
from tests.bench.harness import Bench, Line, Target, literals, rendered, seconds
from tests.bench.seed import seed

_LIMIT = 50
_MILLISECONDS = 1000


def _choices() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tested values of each filter, by description."""
    now = datetime.now(UTC)
    hour, week = timedelta(hours=1), timedelta(weeks=1)
    absent: dict[str, dict[str, Any]] = {"-": {}}

    def several(name: str, common: str, rare: str, many: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        return absent | {"common": {name: common}, "rare": {name: rare}, "several": {name: many}}

    def spans(name: str, wide: tuple[datetime, datetime], narrow: tuple[datetime, datetime]) -> Any:
        ranges = {"wide": wide, "narrow": narrow}
        return absent | {
            word: {f"{name}_from": first, f"{name}_before": last} for word, (first, last) in ranges.items()
        }

    return {
        "status": several("status", "completed", "running", ("pending", "dead", "cancelled")),
        "queue": several("queue", "queue_00", "queue_99", ("queue_00", "queue_10", "queue_60")),
        "type": several("job_type", "type_0", "type_rare", ("type_0", "type_7", "type_39")),
        "created": spans("created", (now - 3 * week, now), (now - 2 * week, now - 2 * week + hour)),
    }


def _filters() -> dict[str, JobFilter]:
    """Return every combination of filters, by its description."""
    choices = _choices()
    combinations = product(*(values.items() for values in choices.values()))
    filters = {}
    for combination in combinations:
        words = [f"{name}={word}" for name, (word, _) in zip(choices, combination, strict=True) if word != "-"]
        fields: dict[str, Any] = {}
        for _, given in combination:
            fields |= given
        filters[" ".join(words) or "no filter"] = JobFilter(**fields)
    return filters


def measure_list_jobs(bench: Bench) -> list[Line]:
    bench.tell(f"list_jobs: adding {bench.rows:,} rows")
    with bench.database("bench_list_jobs") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            seed(connection, bench.rows)
        lines = [*_first_page(bench, url), *_far_page(bench, url)]
        for mode in ("custom", "generic"):
            lines += _every_filter(bench, url, mode)
        bench.tell("list_jobs: plans")
        bench.plans = _plans(url)
    return lines


def _first_page(bench: Bench, url: str) -> list[Line]:
    """Compare the unfiltered first page with pgbench, which runs the same text with the values as literals."""
    count = bench.size(20, 10)
    with PostgresStorage.open(url) as store, psycopg.connect(url, autocommit=True) as connection:
        script = rendered(load_queries().list_jobs.sql, literals(connection, _parameters(JobFilter())))

        def ours() -> float:
            return seconds(lambda: [store.list_jobs(limit=_LIMIT) for _ in range(count)]) / count * _MILLISECONDS

        ours()  # prepares the statement and fills the server's cache
        baselines, mine = bench.interleaved(
            "list_jobs, page 1", lambda: bench.pgbench(url, script, count)[1][-1] * _MILLISECONDS, ours, slices=8
        )
    return [bench.line("list_jobs, page 1, no filter", "ms", mine, baselines, target=Target("value", "at most", 10))]


def _far_page(bench: Bench, url: str) -> list[Line]:
    """Compare page 1000 with page 1: read pages 991 to 1000 and pages 1 to 10 in turns."""
    pages, ends = bench.size(1000, 30), 10
    lines = []
    with PostgresStorage.open(url) as store:

        def read(job_filter: JobFilter, cursors: list[str | None]) -> float:
            return median(
                seconds(lambda c=cursor: store.list_jobs(job_filter, _LIMIT, c)) * _MILLISECONDS  # type: ignore[misc]
                for cursor in cursors
            )

        for word, job_filter in {"no filter": JobFilter(), "completed": JobFilter(status="completed")}.items():
            bench.tell(f"list_jobs, {pages} pages, {word}")
            cursors: list[str | None] = [None]
            while len(cursors) < pages and (cursor := store.list_jobs(job_filter, _LIMIT, cursors[-1]).next_cursor):
                cursors.append(cursor)
            last, first = bench.interleaved(
                f"list_jobs, page {len(cursors)}, {word}",
                lambda f=job_filter, c=cursors[-ends:]: read(f, c),  # type: ignore[misc]
                lambda f=job_filter, c=cursors[:ends]: read(f, c),  # type: ignore[misc]
                slices=8,
            )
            note = f"pages {len(cursors) - ends + 1}-{len(cursors)} against pages 1-{ends}"
            target = Target("ratio", "at most", 1.5)
            lines.append(bench.line(f"list_jobs, page 1000, {word}", "ms", last, first, target=target, note=note))
    return lines


def _every_filter(bench: Bench, url: str, mode: str) -> list[Line]:
    """Measure the first page of every combination of filters, best of three tries. Report the median and the worst."""
    tries = bench.size(3, 1)
    # With prepare_threshold 0, statements are prepared at once, so the server uses the requested kind of plan.
    config = DatabaseConfig(url=f"{url}&options={quote(f'-c plan_cache_mode=force_{mode}_plan')}", prepare_threshold=0)
    filters, times = _filters(), {}
    with PostgresStorage.open(config) as store:
        # All filters are tried once before the next try, so that a slow second affects each filter once.
        for number, (description, job_filter) in product(range(tries), filters.items()):
            if description == "no filter":
                bench.tell(f"list_jobs, {len(filters)} filters, {mode} plans: try {number + 1} of {tries}")
            taken = seconds(lambda f=job_filter: store.list_jobs(f, _LIMIT)) * _MILLISECONDS  # type: ignore[misc]
            times[description] = min(taken, times.get(description, taken))
    ranking = sorted(times.items(), key=lambda item: -item[1])
    worst = "; ".join(f"{description}: {time:.1f} ms" for description, time in ranking[:3])
    target = Target("value", "at most", 10)
    over = sum(time > target.bound for time in times.values())
    counted = f"{over} of {len(times)} filters take more than {target.bound:g} ms"
    typical = bench.line(f"list_jobs, {mode} plans, median", "ms", times.values(), note=counted)
    typical.rounds = tries
    return [
        typical,
        bench.line(f"list_jobs, {mode} plans, worst", "ms", [ranking[0][1]], target=target, note=worst),
    ]


def _parameters(
    job_filter: JobFilter, cursor_created_at: datetime | None = None, cursor_id: Any = None
) -> Mapping[str, Any]:
    return {
        **job_filter.parameters(),
        "cursor_created_at": cursor_created_at,
        "cursor_id": cursor_id,
        "page_limit": _LIMIT,
    }


def _plans(url: str) -> str:
    """Return the custom and the generic plan of some typical pages."""
    shown = {
        "no filter": JobFilter(),
        "one status": JobFilter(status="dead"),
        "a queue": JobFilter(queue="queue_00"),
        "a rare queue, its job type, one status": JobFilter(queue="queue_99", job_type="type_rare", status="completed"),
        "a job type alone": JobFilter(job_type="type_0"),
    }
    statement = load_queries().list_jobs.sql
    with PostgresStorage.open(url) as store, psycopg.connect(url, autocommit=True) as connection:
        cursor = None
        for _ in range(999):
            if (following := store.list_jobs(limit=_LIMIT, cursor=cursor).next_cursor) is None:
                break
            cursor = following
        pages = {name: _parameters(job_filter) for name, job_filter in shown.items()}
        pages["page 1000, no filter"] = _parameters(JobFilter(), *read_cursor(JobFilter().parameters(), cursor))
        names = {name: f"${number}" for number, name in enumerate(next(iter(pages.values())), start=1)}
        # SQL's PREPARE, because EXPLAIN EXECUTE shows the generic plan with its actual times.
        connection.execute(f"PREPARE page AS {rendered(statement, names)}".encode())
        texts = []
        for (name, parameters), mode in product(pages.items(), ("custom", "generic")):
            connection.execute(f"SET plan_cache_mode = force_{mode}_plan".encode())
            arguments = ", ".join(literals(connection, parameters).values())
            explain = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) EXECUTE page({arguments})"
            connection.execute(explain.encode())
            rows = connection.execute(explain.encode()).fetchall()  # the first run has read the pages into memory
            texts.append("\n".join([f"=== {name} ({mode} plan)", *(row[0] for row in rows)]))
    return "\n\n".join(texts) + "\n"
