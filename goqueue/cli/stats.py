"""`goqueue stats`: the queues at a glance, for people, programs and Prometheus. Imports goqueue.models."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from goqueue.cli.common import AsJson, ConfigFile, console, duration, in_words, note, open_store, print_json, printable
from goqueue.errors import ConnectionRejectedError, StorageError
from goqueue.models import JobCount, JobStatus, QueueStats
from goqueue.postgres import PostgresStorage

#: Jobs a second by queue; of a queue whose counts are estimates there is none.
Rates = dict[str, float]


def show_stats(
    *,
    queue: Annotated[list[str] | None, typer.Option(help="This queue only; repeatable.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="2s", help="How often to watch.", show_default="2s")
    ] = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics, as for node_exporter's textfile collector.")
    ] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show each queue's jobs by status, how long its oldest due job waits, and its expired leases.

    "~" marks an estimate: counts are exact up to a thousand.
    An expired lease is a running job whose worker is lost.
    With --watch and --json each line is a JSON document.
    """
    if interval is not None and not watch:
        raise typer.BadParameter("--interval goes with --watch")
    if prometheus and (watch or as_json):
        raise typer.BadParameter("--prometheus goes alone, without --watch and --json")
    pause = 2.0 if interval is None else interval.total_seconds()
    if pause < 0.1:
        raise typer.BadParameter("100ms is the least", param_hint="--interval")
    with open_store(file) as store:
        if watch:
            _watch(store, queue, pause, as_json=as_json)
        else:
            stats = _read(store, queue)
            if prometheus:
                sys.stdout.write(_metrics(stats))
            elif as_json:
                print_json({"at": datetime.now(UTC), "queues": [_plain(each) for each in stats]})
            else:
                _write(stats)


def _read(store: PostgresStorage, queues: list[str] | None) -> list[QueueStats]:
    return [each for each in store.queue_stats() if not queues or each.queue in queues]


def _write(stats: list[QueueStats]) -> None:
    if sys.stdout.isatty():
        console().print(_table(stats))
    else:
        for each in stats:
            counts = "  ".join(f"{status}={_count(count)}" for status, count in each.counts.items())
            typer.echo(f"{printable(each.queue)}  {counts}  oldest={_age(each)}  expired={each.expired_leases}")
    if not stats:
        note("there are no jobs")


# --- for people -------------------------------------------------------------------------------------------------------


def _table(stats: list[QueueStats], rates: Rates | None = None) -> Table:
    titles = [
        "Queue",
        *(status.capitalize() for status in JobStatus),
        "Oldest",
        "Expired",
        *(["Waiting/s"] if rates is not None else []),
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, justify="left" if title == "Queue" else "right", no_wrap=title != "Queue")
    for each in stats:
        expired = Text(f"{each.expired_leases:,}", style="bold red" if each.expired_leases else "")
        rate = [] if rates is None else [f"{rates[each.queue]:+,.1f}" if each.queue in rates else ""]
        name = Text(printable(each.queue), no_wrap=True, overflow="ellipsis")
        table.add_row(name, *map(_count, each.counts.values()), _age(each), expired, *rate)
    return table


def _count(count: JobCount) -> str:
    return f"{'' if count.exact else '~'}{int(count):,}"


def _age(stats: QueueStats) -> str:
    return "-" if stats.oldest_ready_age is None else in_words(stats.oldest_ready_age)


# --- for programs -----------------------------------------------------------------------------------------------------


def _plain(stats: QueueStats) -> dict[str, Any]:
    age = stats.oldest_ready_age
    return {
        "queue": stats.queue,
        "counts": {str(status): int(count) for status, count in stats.counts.items()},
        "estimated": [str(status) for status, count in stats.counts.items() if not count.exact],
        "oldest_ready_age_seconds": None if age is None else age.total_seconds(),
        "expired_leases": stats.expired_leases,
    }


def _metrics(stats: list[QueueStats]) -> str:
    """Prometheus's text exposition format; names, labels and words as in migrations/README.md, Metrics."""
    counts = [((each.queue, status), count) for each in stats for status, count in each.counts.items()]
    jobs = [(labels, int(count)) for labels, count in counts]
    exact = [(labels, int(count.exact)) for labels, count in counts]
    ages = [((each.queue,), (each.oldest_ready_age or timedelta()).total_seconds()) for each in stats]
    expired = [((each.queue,), each.expired_leases) for each in stats]
    metrics: list[tuple[str, str, list[tuple[tuple[str, ...], float]]]] = [
        ("goqueue_jobs", "Jobs by queue and status. Above 1000 an estimate.", [*jobs]),
        ("goqueue_jobs_exact", "Whether goqueue_jobs is exact (1) or an estimate (0).", [*exact]),
        ("goqueue_oldest_ready_age_seconds", "How long the oldest due job waits. 0 when none does.", [*ages]),
        ("goqueue_expired_leases", "Running jobs whose worker was not heard of in time.", [*expired]),
    ]
    lines = []
    for name, help_text, samples in metrics:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        for values, sample in samples:
            labels = zip(("queue", "status"), values, strict=False)
            lines.append(f"{name}{{{','.join(f'{label}={_label(value)}' for label, value in labels)}}} {sample}")
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


# --- again and again --------------------------------------------------------------------------------------------------


def _watch(store: PostgresStorage, queues: list[str] | None, pause: float, *, as_json: bool) -> None:
    """Shows what there is at each interval. Ctrl-C is the way to end it, and no error."""
    try:
        if as_json or not sys.stdout.isatty():
            for stats, _, error in _rounds(store, queues, pause):
                _write_round(stats, error, as_json=as_json)
        else:
            screen = console()
            with Live(console=screen, auto_refresh=False) as live:
                for stats, rates, error in _rounds(store, queues, pause):
                    now = Text(f"{datetime.now(UTC):%H:%M:%S} UTC, each {pause:g} s; Ctrl-C ends it", style="dim")
                    last = Text(error, style="bold red") if error else now
                    live.update(Group(_table(stats, rates if screen.width >= 100 else None), last), refresh=True)
    except KeyboardInterrupt:
        pass


def _rounds(
    store: PostgresStorage, queues: list[str] | None, pause: float
) -> Iterator[tuple[list[QueueStats], Rates, str]]:
    """At each interval the queues, how fast the waiting jobs become more or fewer, and what went wrong if it did: then
    the queues are the last ones seen."""
    stats: list[QueueStats] = []
    rates: Rates = {}
    taken = time.monotonic()
    while True:
        started, error = time.monotonic(), ""
        try:
            seen = _read(store, queues)
        except ConnectionRejectedError:  # Watching on does not help.
            raise
        except StorageError as lost:
            error = str(lost)
        else:
            before = {each.queue: each.counts[JobStatus.PENDING] for each in stats}
            rates = {
                each.queue: (count - before[each.queue]) / (started - taken)
                for each in seen
                if (count := each.counts[JobStatus.PENDING]).exact and getattr(before.get(each.queue), "exact", False)
            }
            stats, taken = seen, started
        yield stats, rates, error
        time.sleep(max(0.0, started + pause - time.monotonic()))


def _write_round(stats: list[QueueStats], error: str, *, as_json: bool) -> None:
    at = datetime.now(UTC)
    if as_json:
        document = {"at": at, "error": error} if error else {"at": at, "queues": [_plain(each) for each in stats]}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    else:
        typer.echo(f"{at:%Y-%m-%dT%H:%M:%SZ}  {printable(error)}".rstrip())
        if not error:
            _write(stats)
    sys.stdout.flush()
