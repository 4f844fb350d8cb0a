"""`python -m tests.bench`: run the measurements, print a table, write JSON and draw a picture.

Imports goqueue.testing.embedded, rich and the other modules of this folder.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from goqueue.testing.embedded import EmbeddedServer
from tests.bench.costs import measure_costs
from tests.bench.curves import draw_curves
from tests.bench.features import measure_features
from tests.bench.growth import measure_connections, measure_finished, measure_flow, measure_queues
from tests.bench.harness import Bench, Line, checkout
from tests.bench.indexes import measure_indexes
from tests.bench.lists import measure_list_jobs
from tests.bench.picture import draw
from tests.bench.single import measure_create_job, measure_create_jobs, measure_get_job, measure_memory
from tests.bench.triggers import measure_triggers
from tests.bench.work import measure_pinned, measure_work

MEASUREMENTS: dict[str, Callable[[Bench], list[Line]]] = {
    "create_job": measure_create_job,
    "get_job": measure_get_job,
    "create_jobs": measure_create_jobs,
    "memory": measure_memory,
    "list_jobs": measure_list_jobs,
    "indexes": measure_indexes,
    "work": measure_work,
    "pinned": measure_pinned,
    "triggers": measure_triggers,
    "features": measure_features,
    "finished": measure_finished,
    "queues": measure_queues,
    "connections": measure_connections,
    "flow": measure_flow,
    "costs": measure_costs,
}
#: Run only if named: it fills a table with ten million jobs.
_LONG = {"costs"}
# Memory for the tables, and no checkpoint during a measurement. Commits wait for the disk, as by default.
_SETTINGS = {"shared_buffers": "512MB", "max_connections": "200", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}


def main() -> None:
    options = _options()
    progress = Progress(
        SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    lines: list[Line] = []
    start = time.monotonic()
    names = options.only or [name for name in MEASUREMENTS if name not in _LONG]
    settings = _SETTINGS | {"fsync": "off"} if options.quick else _SETTINGS
    with progress, EmbeddedServer(settings=settings) as server:
        task = progress.add_task("starting", total=len(names))
        rounds = options.rounds or (2 if options.quick else 5)
        rows = options.rows or (5_000 if options.quick else 1_000_000)
        bench = Bench(server, progress, task, rounds=rounds, rows=rows, quick=options.quick)
        for name in names:
            lines += MEASUREMENTS[name](bench)
            progress.advance(task)
        version = server.version
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(lines), indent=2) + b"\n")
    written = [options.output]
    if draw(options.output, options.output.with_suffix(".svg")):
        written.append(options.output.with_suffix(".svg"))
    growth = options.output.with_name(f"{options.output.stem}_growth.svg")
    if draw_curves(options.output, growth):
        written.append(growth)
    if bench.plans:
        written.append(options.output.with_name("plans.txt"))
        written[-1].write_text(bench.plans, encoding="utf-8")
    console = Console()
    # If the output is not a terminal, wide enough for every column.
    _show(lines, console if console.is_terminal else Console(width=100))
    size = "quick run: the sizes are too small for conclusions" if options.quick else f"lists of {bench.rows:,} rows"
    print(f"PostgreSQL {version}; {bench.rounds} interleaved rounds, medians; {size}; {time.monotonic() - start:.0f} s")
    print(
        "ratio: value divided by baseline; spread: range of the ratio over the rounds (of the value without a baseline)"
    )
    for path in written:
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure goqueue against its baselines.")
    parser.add_argument("--quick", action="store_true", help="a smoke test of some seconds, with small sizes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 5; quick: 2)")
    parser.add_argument("--rows", type=int, help="rows in the table for list_jobs (default: 1,000,000; quick: 5,000)")
    parser.add_argument(
        "--only", action="append", choices=list(MEASUREMENTS), help="run only this measurement (repeatable)"
    )
    default = checkout() / ".bench" / "results.json"
    parser.add_argument(
        "--output", type=Path, default=default, help="the JSON file; the pictures and plans.txt are written beside it"
    )
    return parser.parse_args()


def _show(lines: list[Line], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("measurement")
    for column in ("value", "unit", "baseline", "ratio", "spread", "target", "met"):
        table.add_column(column, justify="left" if column in ("unit", "met") else "right", no_wrap=True)
    for line in lines:
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[line.met]
        spread = "" if line.spread is None else f"{_number(line.spread[0])} .. {_number(line.spread[1])}"
        table.add_row(
            line.name, _number(line.value), line.unit, _number(line.baseline), _number(line.ratio),
            spread if line.rounds > 1 else "", line.target or "", met,
        )  # fmt: skip
    console.print(table)
    for line in lines:
        if line.curve:
            curve = ", ".join(f"{case}: {_number(value)}" for case, value in line.curve.items())
            console.print(f"[dim]{line.name}:[/] {curve}", highlight=False)
        if line.note:
            console.print(f"[dim]{line.name}:[/] {line.note}", highlight=False)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    main()
