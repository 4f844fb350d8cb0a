"""Shared parts of the measurements: scratch databases, pgbench, interleaved rounds, and result lines.

Imports goqueue.config, goqueue.migrate, goqueue.postgres, goqueue.testing.embedded, psycopg and rich.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec
import psycopg
from psycopg import sql
from rich.progress import Progress, TaskID

from goqueue.config import DatabaseConfig
from goqueue.migrate import migrate
from goqueue.postgres.options import PLANNING
from goqueue.postgres.pool import connect
from goqueue.testing.embedded import EmbeddedServer


def bare_connection(config: DatabaseConfig) -> psycopg.Connection[Any]:
    """Open a connection with the store's settings and psycopg's own cursors, as a program without the store would."""
    connection = connect(config)
    connection.cursor_factory = psycopg.Cursor
    connection.prepare_threshold = 1  # as in a pool without a pooler
    return connection


class Target(NamedTuple):
    """The target of a line: a bound on its value, or on its ratio to the baseline."""

    of: Literal["value", "ratio"]
    relation: Literal["at least", "at most"]
    bound: float
    #: If True, the target applies only when the baseline itself reaches it.
    if_baseline_allows: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.relation == "at least" else "≤"
        return f"{sign} {self.bound:,g}" + (" x" if self.of == "ratio" else "")

    def is_met(self, value: float, baseline: float | None, ratio: float | None) -> bool | None:
        measured = ratio if self.of == "ratio" else value
        if measured is None or (self.if_baseline_allows and (baseline is None or baseline < self.bound)):
            return None
        return measured >= self.bound if self.relation == "at least" else measured <= self.bound


class Line(msgspec.Struct, kw_only=True):
    """One line of the table and of results.json."""

    name: str
    unit: str
    value: float
    baseline: float | None = None
    ratio: float | None = None
    #: The lowest and the highest ratio of the rounds, or value if there is no baseline.
    spread: tuple[float, float] | None = None
    rounds: int
    target: str | None = None
    #: None if there is no target or it does not apply.
    met: bool | None = None
    note: str = ""
    #: The value of each case, for a line of growth.
    curve: dict[str, float] = {}


class Bench:
    """The server to measure on, the requested sizes, and the progress bar."""

    def __init__(
        self, server: EmbeddedServer, progress: Progress, task: TaskID, *, rounds: int, rows: int, quick: bool
    ) -> None:
        self.server = server
        self.rounds = rounds
        self.rows = rows
        self.quick = quick
        self.plans = ""
        self._progress = progress
        self._task = task

    def size(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def tell(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    @contextmanager
    def database(self, name: str, *, template: str | None = None) -> Iterator[str]:
        """Yield the URL of a new database, migrated or copied from ``template``, and drop it at the end."""
        identifier = sql.Identifier(name)
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            statement = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
            connection.execute(sql.SQL(statement).format(identifier, sql.Identifier(template or self._migrated)))
        try:
            yield self.server.url(name)
        finally:
            with psycopg.connect(self.server.url(), autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))

    @cached_property
    def _migrated(self) -> str:
        """The name of a migrated database to copy, because migrating takes longer."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench_migrated")
        migrate(self.server.url("bench_migrated"))
        return "bench_migrated"

    def interleaved(self, what: str, *measures: Callable[[], float], slices: int = 1) -> list[list[float]]:
        """Return one sample per round of each measure: the median of ``slices`` runs. The measures take turns, so that
        a slow second of the machine affects all of them."""
        steps = [lambda measure=measure: [measure()] for measure in measures]
        return [samples for [samples] in self.interleaved_steps(what, *steps, slices=slices)]

    def interleaved_steps(
        self, what: str, *measures: Callable[[], Sequence[float]], slices: int = 1
    ) -> list[list[list[float]]]:
        """Return the same for measures of several steps: one sample per round of each step of each measure."""
        samples: list[list[list[float]]] = [[] for _ in measures]
        slices = self.size(slices, 1)
        for number in range(self.rounds):
            self.tell(f"{what}: round {number + 1} of {self.rounds}")
            taken = [[measure() for measure in measures] for _ in range(slices)]
            for sample, runs in zip(samples, zip(*taken, strict=True), strict=True):
                sample.append([median(step) for step in zip(*runs, strict=True)])
        return [[list(step) for step in zip(*sample, strict=True)] for sample in samples]

    def line(
        self,
        name: str,
        unit: str,
        values: Iterable[float],
        baselines: Iterable[float] | None = None,
        *,
        target: Target | None = None,
        note: str = "",
    ) -> Line:
        """Return a line with the medians of the rounds and the spread of their ratios."""
        values = list(values)
        value, baseline, ratio, spread = median(values), None, None, values
        if baselines is not None:
            baselines = list(baselines)
            baseline = median(baselines)
            ratio = value / baseline
            spread = [mine / its for mine, its in zip(values, baselines, strict=True)]
        return Line(
            name=name,
            unit=unit,
            value=value,
            baseline=baseline,
            ratio=ratio,
            spread=(min(spread), max(spread)),
            rounds=len(values),
            target=None if target is None else str(target),
            # Small sizes are not conclusive.
            met=None if target is None or self.quick else target.is_met(value, baseline, ratio),
            note=note,
        )

    def pgbench(
        self, url: str, script: str, transactions: int, variables: Mapping[str, str] | None = None
    ) -> tuple[float, list[float]]:
        """Return one client's transactions per second with ``script``, and the seconds for each of its commands."""
        with tempfile.NamedTemporaryFile("w", suffix=".sql", encoding="utf-8") as file:
            file.write(script)
            file.flush()
            run = subprocess.run(
                [
                    self.server.bin("pgbench"), "--no-vacuum", "--protocol=prepared", "--report-per-command",
                    "--client=1", f"--transactions={transactions}", f"--file={file.name}",
                    *(f"--define={name}={value}" for name, value in (variables or {}).items()),
                    url,
                ],
                # The same planner settings as on the store's connections.
                env=os.environ | {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in PLANNING.items())},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        rate = re.search(r"^tps = ([\d.]+)", run.stdout, re.MULTILINE)
        latencies = re.findall(r"^ +([\d.]+) +\d+ +\S", run.stdout, re.MULTILINE)
        if run.returncode != 0 or rate is None or not latencies:
            raise RuntimeError(f"pgbench failed:\n{run.stderr.strip()}\n{run.stdout.strip()}")
        # pgbench prints microseconds. A command below one microsecond counts as half of one.
        return float(rate[1]), [max(float(latency), 0.0005) / 1000 for latency in latencies]


def rendered(statement: str, values: Mapping[str, str]) -> str:
    """Return the text of a loaded query, with each parameter replaced by its text in ``values``."""
    text = re.sub(r"%\((\w+)\)s", lambda match: values[match[1]], statement).replace("%%", "%")
    # pgbench reads a colon as a variable, even in comments.
    return re.sub(r"/\* goqueue:(\w+) \*/", r"/* goqueue \1 */", text)


def literals(connection: psycopg.Connection[Any], parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: sql.Literal(value).as_string(connection) for name, value in parameters.items()}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def checkout() -> Path:
    return Path(__file__).resolve().parents[2]
