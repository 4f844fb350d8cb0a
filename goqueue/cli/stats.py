"""`goqueue stats`: queue statistics for people, programs and Prometheus."""

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime, timedelta
from queue import Empty, Queue
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from goqueue.cli.common import (
    AsJson,
    Column,
    ConfigFile,
    console,
    duration,
    in_utc,
    in_words,
    note,
    open_store,
    print_json,
    print_line,
    printable,
    table,
    write,
    write_json,
)
from goqueue.counts import JobCount, counted
from goqueue.errors import StorageUnavailableError, TransactionConflictError
from goqueue.models import JobStatus, QueueStats
from goqueue.postgres.store import PostgresStorage
from goqueue.schemas import DEFAULT_SCHEMA

# 24 days, in seconds. time.sleep rejects very long times.
_LONGEST = 24 * 86_400.0
#: Jobs per second by queue, without the queues whose counts are estimates.
Rates = dict[str, float]


def show_stats(
    *,
    queue: Annotated[list[str] | None, typer.Option(help="Only this queue; repeatable.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    interval: Annotated[
        timedelta | None, typer.Option(parser=duration, metavar="2s", help="Interval of --watch.", show_default="2s")
    ] = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics, for example for node_exporter's textfile collector.")
    ] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show each queue's jobs by status, the age of its oldest due job, its expired leases, and its pause.

    "~" marks an estimate: counts are exact up to a thousand.
    An expired lease is a running job whose worker is lost.
    With --watch and --json each line is a JSON document.

    --watch runs one statement (queue_stats) per interval on one connection.
    It takes the server about 50 ms for a million jobs in a hundred queues, and
    more with more queues. While the server is unreachable it retries and shows
    the age of the figures. A permanent error, such as a wrong password or a
    missing table, ends it.
    """
    if interval is not None and not watch:
        raise typer.BadParameter("--interval needs --watch")
    if prometheus and (watch or as_json):
        raise typer.BadParameter("--prometheus excludes --watch and --json")
    pause = 2.0 if interval is None else interval.total_seconds()
    if not 0.1 <= pause <= _LONGEST:
        raise typer.BadParameter("the minimum is 100ms, and the maximum 24d", param_hint="--interval")
    with open_store(file) as store:
        if watch:
            _watch(store, queue, pause, as_json=as_json)
        else:
            stats = _read(store, queue)
            if prometheus:
                write(_metrics(stats, store.config.schema))
            elif as_json:
                print_json({"at": datetime.now(UTC), "queues": [_plain(each) for each in stats]})
            else:
                _write(stats, queue)


def _read(store: PostgresStorage, queues: list[str] | None) -> list[QueueStats]:
    return [each for each in store.queue_stats() if not queues or each.queue in queues]


def _write(stats: list[QueueStats], queues: list[str] | None) -> None:
    if sys.stdout.isatty():
        screen = console()
        screen.print(_table(stats, screen.width))
    else:
        for each in stats:
            counts = "  ".join(f"{status}={_count(count)}" for status, count in each.counts.items())
            paused = f"  paused={pause_of(each.paused_until)}" if each.paused_until else ""
            print_line(f"{printable(each.queue)}  {counts}  oldest={_age(each)}  expired={each.expired_leases}{paused}")
    if not stats:
        note("there are no jobs in the given queues" if queues else "there are no jobs")


# --- for people -------------------------------------------------------------------------------------------------------


def _table(stats: list[QueueStats], width: int, rates: Rates | None = None) -> RenderableType:
    titles = [*(status.capitalize() for status in JobStatus), "Oldest", "Expired"]
    is_any_paused = any(each.paused_until for each in stats)
    columns = [Column("Queue", "left", 16), *map(Column, titles), *([Column("Waiting/s")] if rates is not None else [])]
    columns += [Column("Paused", "left")] if is_any_paused else []
    rows: list[list[str | Text]] = []
    for each in stats:
        expired = Text(f"{each.expired_leases:,}", style="bold red" if each.expired_leases else "")
        rate = [] if rates is None else [f"{rates[each.queue]:+,.1f}" if each.queue in rates else ""]
        paused = [Text(pause_of(each.paused_until), style="yellow")] if is_any_paused else []
        rows.append([each.queue, *map(_count, each.counts.values()), _age(each), expired, *rate, *paused])
    return table(columns, rows, width)


def _count(count: JobCount) -> str:
    return f"{'' if count.exact else '~'}{int(count):,}"


def pause_of(until: datetime | None) -> str:
    """Return the end of a pause as a word: "endless" without one, "" if there is no pause."""
    if until is None:
        return ""
    return "endless" if until.year == MAXYEAR else in_utc(until)


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
        "paused_until": stats.paused_until,
    }


def _metrics(stats: list[QueueStats], schema: str = DEFAULT_SCHEMA) -> str:
    """Return metrics in Prometheus's text exposition format; docs/metrics.md describes their names and labels."""
    # To Prometheus, a missing label is an empty one. So goqueue's series don't change when other schemas are added.
    in_schema = [] if schema == DEFAULT_SCHEMA else [("schema", schema)]
    counts = [((each.queue, status), count) for each in stats for status, count in each.counts.items()]
    jobs = [(labels, int(count)) for labels, count in counts]
    exact = [(labels, int(count.exact)) for labels, count in counts]
    ages = [((each.queue,), (each.oldest_ready_age or timedelta()).total_seconds()) for each in stats]
    expired = [((each.queue,), each.expired_leases) for each in stats]
    paused = [((each.queue,), int(each.paused_until is not None)) for each in stats]
    metrics: list[tuple[str, str, list[tuple[tuple[str, ...], float]]]] = [
        ("goqueue_jobs", "Jobs by queue and status. Estimated above 1000.", [*jobs]),
        ("goqueue_jobs_exact", "Whether goqueue_jobs is exact (1) or an estimate (0).", [*exact]),
        ("goqueue_oldest_ready_age_seconds", "Age of the oldest due job, 0 if there is none.", [*ages]),
        ("goqueue_expired_leases", "Running jobs whose lease has expired.", [*expired]),
        ("goqueue_paused", "Whether claims skip the queue (1) or not (0).", [*paused]),
    ]
    lines = []
    for name, help_text, samples in metrics:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
        for values, sample in samples:
            labels = [*in_schema, *zip(("queue", "status"), values, strict=False)]
            lines.append(f"{name}{{{','.join(f'{label}={_label(value)}' for label, value in labels)}}} {sample}")
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


# --- again and again --------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """The last figures of the queues, the rates of change of their waiting jobs, and the error since, if any."""

    stats: list[QueueStats] = field(default_factory=list)
    rates: Rates = field(default_factory=dict)
    at: datetime | None = None
    error: str = ""


def _watch(store: PostgresStorage, queues: list[str] | None, pause: float, *, as_json: bool) -> None:
    """Show the figures at each interval, until Ctrl-C."""
    screen = console()
    try:
        if as_json or not sys.stdout.isatty() or screen.is_dumb_terminal:
            for seen in _rounds(store, queues, pause):
                _write_round(seen, queues, as_json=as_json)
        else:
            with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
                for seen in _answers(store, queues, pause):
                    live.update(_picture(screen, seen, pause), refresh=True)
    except KeyboardInterrupt:
        pass


def _picture(screen: Console, seen: _Seen, pause: float) -> RenderableType:
    """Return as many queues as the screen has room for, with the age of the figures below them."""
    how = f"every {pause:g} s; Ctrl-C ends it"
    if seen.at is None:
        foot = Text(f"no figures yet, {how}", style="dim")
    else:
        age = datetime.now(UTC) - seen.at
        foot = Text(f"{seen.at:%H:%M:%S} UTC, {how}", style="dim")
        if seen.error or age.total_seconds() > pause + 2:
            foot = Text(f"STALE, {in_words(age)} old: as of {seen.at:%H:%M:%S} UTC; retrying {how}", style="bold red")
    if seen.error:
        foot.append(f"\n{printable(seen.error)}")
    rates = seen.rates if screen.width >= 100 else None
    room = screen.height - len(screen.render_lines(foot, pad=False)) - 1
    shown = seen.stats[:room]
    while shown and len(screen.render_lines(_table(shown, screen.width, rates), pad=False)) > room:
        shown.pop()
    if hidden := len(seen.stats) - len(shown):
        foot = Text.assemble((f"and {counted(hidden, 'queue')} more: --queue selects\n", "dim"), foot)
    return Group(_table(shown, screen.width, rates), foot)


def _answers(store: PostgresStorage, queues: list[str] | None, pause: float) -> Iterator[_Seen]:
    """Yield from `_rounds`, repeating the last result every second without a new one: if the server hangs, the age of
    the figures must keep growing."""
    answers: Queue[_Seen | BaseException] = Queue()

    def read() -> None:
        try:
            for seen in _rounds(store, queues, pause):
                answers.put(seen)
        except BaseException as error:  # noqa: BLE001 - re-raised below
            answers.put(error)

    threading.Thread(target=read, name="goqueue-watch", daemon=True).start()
    last = _Seen()
    while True:
        try:
            answer = answers.get(timeout=1)
        except Empty:
            answer = last
        if isinstance(answer, BaseException):
            raise answer
        last = answer
        yield last


def _rounds(store: PostgresStorage, queues: list[str] | None, pause: float) -> Iterator[_Seen]:
    """Yield the figures at each interval. Raise permanent errors."""
    seen = _Seen()
    taken = time.monotonic()
    while True:
        started = time.monotonic()
        try:
            stats = _read(store, queues)
        except (StorageUnavailableError, TransactionConflictError) as lost:
            seen = _Seen(seen.stats, seen.rates, seen.at, str(lost))
        else:
            before = {each.queue: each.counts[JobStatus.PENDING] for each in seen.stats}
            rates = {
                each.queue: (count - before[each.queue]) / (started - taken)
                for each in stats
                if (count := each.counts[JobStatus.PENDING]).exact and getattr(before.get(each.queue), "exact", False)
            }
            seen, taken = _Seen(stats, rates, datetime.now(UTC)), started
        yield seen
        time.sleep(max(0.0, started + pause - time.monotonic()))


def _write_round(seen: _Seen, queues: list[str] | None, *, as_json: bool) -> None:
    at = datetime.now(UTC)
    if as_json:
        document: dict[str, Any] = {"at": at, "queues": [_plain(each) for each in seen.stats]}
        if seen.error:
            document = {"at": at, "error": seen.error, "last_seen_at": seen.at}
        write_json(msgspec.json.encode(document).decode() + "\n")
    else:
        print_line(f"{in_utc(at)}  {printable(seen.error)}".rstrip())
        if not seen.error:
            _write(seen.stats, queues)
    sys.stdout.flush()
