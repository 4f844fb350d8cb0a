"""`goqueue work`: a worker as a process, its signals, and its jobs after it was killed or stalled."""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from goqueue import JobFilter, JobStatus, JobUpdate, NewJob, PostgresStorage
from tests.commands import SECONDS, Commands, imports_without_folder
from tests.workers import until

APP = """
import asyncio, os, time
from goqueue import AsyncWorker, Job, Worker

def quick(job: Job) -> None:
    pass

def begin(job: Job) -> None:
    with open("begun", "a") as file:
        file.write(f"{job.id}\\n")

def slow(job: Job) -> None:
    begin(job)
    time.sleep(job.payload)

def held(job: Job) -> None:
    begin(job)
    while not os.path.exists("released"):
        time.sleep(0.02)

async def slow_task(job: Job) -> None:
    begin(job)
    await asyncio.sleep(job.payload)

async def held_task(job: Job) -> None:
    begin(job)
    while not os.path.exists("released"):
        await asyncio.sleep(0.02)

def poison(job: Job) -> None:
    begin(job)
    os._exit(9)

threads = Worker({"quick": quick, "slow": slow, "held": held, "poison": poison})
tasks = AsyncWorker({"quick": quick, "slow": slow_task, "held": held_task, "poison": poison})
other = 5
"""
RUNNING, COMPLETED, PENDING, DEAD = JobStatus.RUNNING, JobStatus.COMPLETED, JobStatus.PENDING, JobStatus.DEAD
BOTH = pytest.mark.parametrize("worker", ["app.jobs:threads", "app.jobs:tasks"])


@pytest.fixture(autouse=True)
def app(goqueue: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the working directory, with short leases."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "jobs.py").write_text(APP)
    (tmp_path / "app" / "broken.py").write_text("import no_such_package\n")
    monkeypatch.setenv("GOQUEUE_WORKER_LEASE", "2s")
    monkeypatch.setenv("GOQUEUE_WORKER_HEARTBEAT_INTERVAL", "500ms")
    monkeypatch.setenv("GOQUEUE_WORKER_POLL_INTERVAL", "100ms")
    monkeypatch.setenv("GOQUEUE_WORKER_CONCURRENCY", "2")
    # The log of many jobs would fill the pipe, and the worker would wait for its reader.
    monkeypatch.setenv("GOQUEUE_LOGGING_LEVEL", "warning")
    monkeypatch.setenv("GOQUEUE_DATABASE_SLOW_QUERY_TIME", "0")  # a busy machine is no warning
    return tmp_path


@pytest.fixture
def long_leases(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_WORKER_LEASE", "5m")


@pytest.fixture
def store(goqueue_store: PostgresStorage) -> PostgresStorage:
    return goqueue_store


@pytest.fixture
def begun(app: Path) -> Callable[[], list[str]]:
    """Gives the jobs that have begun, in their order."""
    file = app / "begun"
    return lambda: file.read_text().split() if file.exists() else []


def add(store: PostgresStorage, count: int = 1, **fields: Any) -> list[Any]:
    return [job_id for job_id, _ in store.create_jobs(NewJob(**fields) for _ in range(count))]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status, and what came on standard error."""
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


@BOTH
def test_works_until_there_are_no_jobs(
    worker: str, goqueue: Commands, store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_LOGGING_LEVEL", "info")
    add(store, 20, job_type="quick")
    add(store, 1, job_type="quick", queue="elsewhere")
    add(store, 3, job_type="quick", queue="mail")
    with goqueue.process("work", worker, "--until-empty", "--json", "--queue", "mail", "--queue", "default") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, '{\n  "completed": 23\n}\n')
    assert "queues ['mail', 'default']" in err
    with goqueue.process("work", worker, "--until-empty", "--queue", "elsewhere", "--worker-id", "me") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "1 job completed\n")
    assert "worker me starts: concurrency 2" in err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("app.jobs", "is not of the form MODULE:NAME, such as app.jobs:worker"),
        ("app.jobs:", "is not of the form MODULE:NAME"),
        ("app/jobs.py:threads", "is not of the form MODULE:NAME"),
        ("app.nothing:worker", "there is no module app.nothing"),
        ("nothing.jobs:worker", "there is no module nothing"),
        ("app.jobs:worker", "does not exist; the module's workers: threads, tasks"),
        ("app.jobs:other", "is a int, not a Worker or AsyncWorker"),
    ],
)
def test_a_target_that_is_no_worker_is_invalid(target: str, said: str, goqueue: Commands) -> None:
    with goqueue.process("work", target) as process:
        code, err = ended(process)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())


def test_a_module_that_lacks_another_shows_its_own_error(goqueue: Commands) -> None:
    with goqueue.process("work", "app.broken:worker") as process:
        code, err = ended(process)
    assert code == 1
    assert "ModuleNotFoundError: No module named 'no_such_package'" in err


@BOTH
def test_an_unreachable_server_is_named(worker: str, goqueue: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    with goqueue.process("work", worker) as process:
        code, err = ended(process)
    assert code == 1
    assert "`goqueue config` shows the server" in err
    with goqueue.process("work", worker, "--concurrency", "0") as process:
        code, err = ended(process)
    assert code == 2
    assert "worker.concurrency: got 0" in err


@BOTH
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing(
    worker: str, stop: signal.Signals, goqueue: Commands, store: PostgresStorage, begun: Any, long_leases: None
) -> None:
    add(store, 500, job_type="quick")
    ids = add(store, 2000, job_type="slow", payload=0.02)
    with goqueue.process("work", worker) as process:
        until(lambda: len(begun()) > 20)
        process.send_signal(stop)
        code, err = ended(process)
    assert code == 0
    assert err == ""
    jobs = store.get_jobs(ids)
    assert {str(job.id) for job in jobs if job.status == COMPLETED} == set(begun())
    assert len(begun()) < 2000
    assert {(job.status, job.attempts) for job in jobs if str(job.id) not in begun()} == {(PENDING, 0)}


@BOTH
@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(
    worker: str, stop: signal.Signals, status: int, goqueue: Commands, store: PostgresStorage, begun: Any
) -> None:
    add(store, 1, job_type="slow", payload=50)
    with goqueue.process("work", worker) as process:
        until(begun)
        process.send_signal(stop)
        time.sleep(1)
        assert process.poll() is None
        start = time.monotonic()
        while process.poll() is None:  # a stalled process takes signals in quick succession for one
            process.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
    assert process.returncode == status
    assert time.monotonic() - start < 25


@BOTH
def test_a_signal_that_is_sent_twice_at_once_is_one_request(
    worker: str, goqueue: Commands, store: PostgresStorage, begun: Any
) -> None:
    """The command timeout sends it to its child, and then to the group."""
    [job_id] = add(store, 1, job_type="slow", payload=2)
    with goqueue.process("work", worker) as process:
        until(begun)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        code, _ = ended(process)
    assert code == 0
    assert store.get_job(job_id).status == COMPLETED


@BOTH
def test_the_job_of_a_killed_worker_comes_back(
    worker: str, goqueue: Commands, store: PostgresStorage, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id] = add(store, 1, job_type="slow", payload=50)
    with goqueue.process("work", worker) as process:
        until(begun)
        process.kill()
        process.wait(SECONDS)
    job = store.update_job(job_id, JobUpdate(payload=0))
    assert job.status == RUNNING
    until(lambda: job.lease_expires_at is not None and datetime.now(UTC) > job.lease_expires_at)
    monkeypatch.setenv("GOQUEUE_WORKER_LEASE", "5m")
    with goqueue.process("work", worker):
        until(lambda: store.get_job(job_id).status == COMPLETED)
    assert store.get_job(job_id).attempts == 2
    [failure] = store.list_failures(job_id)
    assert "lease expired" in failure.error


@BOTH
def test_a_job_that_kills_its_worker_at_every_attempt_becomes_dead(
    worker: str, goqueue: Commands, store: PostgresStorage, begun: Any
) -> None:
    [job_id] = add(store, 1, job_type="poison", max_attempts=2)
    for _ in range(2):
        with goqueue.process("work", worker) as process:
            assert process.wait(SECONDS) == 9
    with goqueue.process("work", worker):
        until(lambda: store.get_job(job_id).status == DEAD)
    assert begun() == [str(job_id)] * 2


@BOTH
def test_a_stalled_worker_starts_no_job_that_others_have_and_its_results_are_ignored(
    worker: str, goqueue: Commands, store: PostgresStorage, begun: Any, app: Path
) -> None:
    add(store, 300, job_type="quick")
    ids = add(store, 20, job_type="held")
    with goqueue.process("work", worker) as process:
        until(lambda: len(begun()) == 2 and store.count_jobs(JobFilter(status=RUNNING)) > 4)
        process.send_signal(signal.SIGSTOP)
        stalled_at = begun()
        until(lambda: not (store.rescue_jobs() or store.count_jobs(JobFilter(status=RUNNING))))
        theirs = store.claim_jobs("default", "another", limit=400)  # quick ones too, whose results were not reported
        assert {str(job.id) for job in theirs} > set(stalled_at)
        (app / "released").touch()
        process.send_signal(signal.SIGCONT)
        time.sleep(3)
        assert begun() == stalled_at
        store.complete_jobs(theirs)  # each of them is held still
        process.terminate()
        code, err = ended(process)
    assert code == 0
    assert "expired before the job could start" in err or "lease lost" in err
    assert {job.status for job in store.get_jobs(ids)} == {COMPLETED}


@imports_without_folder
def test_a_working_directory_that_no_longer_exists_is_no_error_by_itself(
    goqueue: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with goqueue.process("work", "app.nothing:worker") as process:
        code, err = ended(process)
    assert code == 2
    assert "there is no module app.nothing" in " ".join(err.replace("│", " ").split())
    with goqueue.process("work", "app.jobs:threads", "--until-empty") as process:
        assert ended(process)[0] == 0
