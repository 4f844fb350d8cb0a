"""`goqueue workers`: the workers that hold running jobs, for people and programs."""

import re
from datetime import datetime, timedelta

import pytest

from goqueue import JobStatus, JobUpdate, NewJob, PostgresStorage
from tests.commands import Commands

ODD = "w\n1"


@pytest.fixture(autouse=True)
def two_workers(goqueue_store: PostgresStorage) -> None:
    """An odd worker with two jobs of two queues, one of them expired; and a job that was set running manually."""
    goqueue_store.create_jobs(NewJob(job_type="x", queue=queue) for queue in ("a", "b"))
    goqueue_store.claim_jobs("a", ODD)
    goqueue_store.claim_jobs("b", ODD, lease=timedelta(microseconds=1))
    job = goqueue_store.create_job(NewJob(job_type="x"))
    goqueue_store.update_job(job.id, JobUpdate(status=JobStatus.RUNNING, locked_by="zoe"))


def test_in_a_pipe_each_worker_is_a_line(goqueue: Commands) -> None:
    result = goqueue("workers")
    assert (result.code, result.err) == (0, "")
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    odd, zoe = result.out.splitlines()
    assert re.fullmatch(rf"w\\n1  jobs=2  queues=a,b  oldest={time}  seen={time}  lease={time}  expired=1", odd)
    assert re.fullmatch(rf"zoe  jobs=1  queues=default  oldest={time}  seen={time}  lease=-  expired=0", zoe)


def test_json_has_every_field(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    document = goqueue("workers", "--json").json
    assert datetime.fromisoformat(document["at"]).tzinfo is not None
    odd, zoe = document["workers"]
    first, _ = goqueue_store.list_workers()
    assert (odd["worker_id"], odd["jobs"], odd["queues"], odd["expired_leases"]) == (ODD, 2, ["a", "b"], 1)
    for name in ("oldest_locked_at", "last_seen_at", "lease_expires_at"):
        assert datetime.fromisoformat(odd[name]) == getattr(first, name)
    assert (zoe["worker_id"], zoe["lease_expires_at"]) == ("zoe", None)


@pytest.mark.parametrize("columns", [30, 120])
def test_on_a_terminal_the_workers_are_a_table(goqueue: Commands, columns: int) -> None:
    with goqueue.terminal("workers", columns=columns) as terminal:
        code, seen = terminal.end()
    assert code == 0
    assert "w\\n1" in seen
    assert "a, b" in seen
    assert ("Worker" in seen) is (columns == 120)


def test_without_running_jobs_there_are_no_workers(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    goqueue_store.cancel_jobs(job.id for job in goqueue_store.list_jobs().jobs)
    assert goqueue("workers") == (0, "", "no worker holds a job\n")
    assert goqueue("workers", "--json").json["workers"] == []


def test_it_has_help_with_the_exit_statuses(goqueue: Commands) -> None:
    text = " ".join(goqueue("workers", "--help").out.split())
    assert "Idle workers hold none and are not shown" in text
    assert "3 if a check found a problem" in text
