"""Moves of a queue with jobs in flight: to another server by dump, to a newer PostgreSQL by dump and by pg_upgrade.

GOQUEUE_TEST_OLD_POSTGRES_DIRS names installations of older servers: folders with bin, lib and share, separated by
colons.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from goqueue import (
    DatabaseConfig,
    Job,
    JobFilter,
    JobStatus,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    SchemaError,
)
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer, _make_base, _make_private, _runnable_binaries, _server_identity
from goqueue.workbench.findings import Level
from goqueue.workbench.health import run_checks

HOUR = timedelta(hours=1)
COUNT = 300
"""The number of jobs for the worker that runs during the dump."""
OLD = [Path(place) for place in os.environ.get("GOQUEUE_TEST_OLD_POSTGRES_DIRS", "").split(":") if place]
needs_old = pytest.mark.skipif(not OLD, reason="GOQUEUE_TEST_OLD_POSTGRES_DIRS names no older PostgreSQL")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that the servers' user can enter and write to: the tests can run as root, and servers can't."""
    base = _make_base(_server_identity(None), in_memory=False)
    yield base
    shutil.rmtree(base, ignore_errors=True)


class Before:
    """A queue before the move: pending, delayed, running, completed and dead jobs, and a pause."""

    def __init__(self, store: PostgresStorage) -> None:
        for queue, count in (("held", 2), ("done", 1), ("dead", 1), ("waiting", 2)):
            store.create_jobs([NewJob(job_type="t", queue=queue, payload={"q": queue}) for _ in range(count)])
        store.create_job(NewJob(job_type="t", queue="later", delay=HOUR, unique_key="once", idempotency_key="order"))
        self.held = store.claim_jobs("held", "w", 2, HOUR)
        store.complete_jobs(store.claim_jobs("done", "w"))
        [dead] = store.claim_jobs("dead", "w")
        store.bury_jobs([(dead, "no such address")])
        store.pause_queue("waiting")
        self.jobs = everything(store)
        self.dead, self.failures = dead.id, store.list_failures(dead.id)

    def check(self, store: PostgresStorage) -> None:
        """Check that the moved queue continues where this one stopped."""
        assert everything(store) == self.jobs
        assert store.list_failures(self.dead) == self.failures
        first, second = self.held
        store.complete_jobs([first])  # the worker has held it since before the move
        store.release_jobs([second])
        [again] = store.claim_jobs("held", "another", 2)
        assert (again.id, again.lease_token) == (second.id, second.lease_token + 1)
        with pytest.raises(LeaseLostError):
            store.complete_jobs([second])
        assert store.claim_jobs("waiting", "w") == []
        store.resume_queue("waiting")
        assert len(store.claim_jobs("waiting", "w", 9)) == 2
        new = NewJob(job_type="t", queue="later", unique_key="once")
        assert store.get_or_create_job(new)[1] is False
        store.prune_jobs(timedelta(0))
        assert store.count_jobs(JobFilter(status=["completed", "dead"])) == 0


def everything(store: PostgresStorage) -> list[Job]:
    return list(store.list_jobs(limit=1000).jobs)


def check_whole(url: str) -> None:
    """Check that `goqueue check` finds no fault and gives no warning."""
    with psycopg.connect(url, autocommit=True) as connection:
        failed = [check for check in run_checks(connection) if check.level in (Level.FAILED, Level.WARNING)]
    assert failed == []


def copy(source: EmbeddedServer, target: EmbeddedServer, programs: EmbeddedServer, *options: str) -> None:
    """Copy a database with the newer server's pg_dump and pg_restore, as PostgreSQL's documentation recommends."""
    with subprocess.Popen([programs.bin("pg_dump"), "-Fc", *options, source.url()], stdout=subprocess.PIPE) as dump:
        restore = [programs.bin("pg_restore"), "--exit-on-error", "-d", target.url()]
        subprocess.run(restore, stdin=dump.stdout, check=True)
    assert dump.returncode == 0


def test_a_dump_of_a_running_queue_continues_elsewhere() -> None:
    stop = threading.Event()
    completed: set[Any] = set()

    def work() -> None:
        with PostgresStorage.open(source.url()) as store:
            held: list[Job] = []
            while not stop.is_set():
                store.create_job(NewJob(job_type="t"))
                completed.update(job.id for job in held)
                held = store.complete_and_claim(held, "default", "w", 3, HOUR)

    with EmbeddedServer() as source, EmbeddedServer() as target:
        migrate(source.url())
        with PostgresStorage.open(source.url()) as store:
            before = Before(store)
            given = {job_id for job_id, _ in store.create_jobs(NewJob(job_type="t") for _ in range(COUNT))}
        worker = threading.Thread(target=work)
        worker.start()
        try:
            copy(source, target, target)
        finally:
            stop.set()
            worker.join()
        check_whole(target.url())
        with PostgresStorage.open(target.url()) as store:
            moved = {job.id: job for job in everything(store) if job.queue == "default"}
            assert given <= moved.keys()
            done = {job.id for job in moved.values() if job.status == JobStatus.COMPLETED}
            assert done <= completed
            # Workers of the old server hold the running jobs. After the leases expire, the new server rescues them.
            with psycopg.connect(target.url(), autocommit=True) as admin:
                admin.execute(
                    "UPDATE goqueue.jobs SET lease_expires_at = now() WHERE locked_by = 'w' AND queue = 'default'"
                )
            store.rescue_jobs(1000)
            again = {job.id: job for job in store.claim_jobs("default", "w2", 1000)}
            assert again.keys() == moved.keys() - done
            assert all(job.lease_token > moved[job.id].lease_token for job in again.values())
            before.jobs = [job for job in before.jobs if job.queue != "default"]
            store.delete_jobs(JobFilter(queue="default"))
            before.check(store)


def test_one_schema_of_several_moves_to_another_server() -> None:
    with EmbeddedServer() as source, EmbeddedServer() as target:
        stores = []
        for schema in ("tenant_1", "tenant_2"):
            migrate(source.url(), schema=schema)
            stores.append(DatabaseConfig(url=source.url(), schema=schema))
        with PostgresStorage.open(stores[0]) as store, PostgresStorage.open(stores[1]) as other:
            before = Before(store)
            Before(other)
        copy(source, target, target, "-n", "tenant_1")
        with PostgresStorage.open(DatabaseConfig(url=target.url(), schema="tenant_1")) as store:
            before.check(store)
        with pytest.raises(SchemaError):
            PostgresStorage.open(DatabaseConfig(url=target.url(), schema="tenant_2"))


@needs_old
@pytest.mark.parametrize("installation", OLD, ids=lambda place: f"from {place}")
def test_a_dump_continues_on_a_newer_postgresql(installation: Path) -> None:
    with EmbeddedServer(installation=installation) as old, EmbeddedServer() as new:
        migrate(old.url())
        with PostgresStorage.open(old.url()) as store:
            before = Before(store)
        copy(old, new, new)
        check_whole(new.url())
        with PostgresStorage.open(new.url()) as store:
            before.check(store)


@needs_old
@pytest.mark.parametrize("installation", OLD, ids=lambda place: f"from {place}")
def test_pg_upgrade_keeps_jobs_in_flight(installation: Path, folder: Path) -> None:
    if not (installation / "bin" / "pg_resetwal").is_file():
        pytest.skip(f"{installation} has no pg_resetwal, which pg_upgrade needs (npm's packages have only the server)")
    identity = _server_identity(None)
    old = EmbeddedServer(folder / "old", installation=installation)
    new = EmbeddedServer(folder / "new")
    with old:
        migrate(old.url())
        with PostgresStorage.open(old.url()) as store:
            before = Before(store)
    with new:
        pass  # makes an empty cluster

    def run(program: Path, *arguments: object) -> None:
        done = subprocess.run(
            [program, *map(str, arguments)], cwd=work, check=False, capture_output=True, text=True, **identity
        )
        assert done.returncode == 0, done.stdout + done.stderr

    work = folder / "work"
    _make_private(work, identity)
    for name in ("one", "two"):
        (folder / name).mkdir()
    old_bin = _runnable_binaries(old._installation(), folder / "one", identity)
    new_bin = _runnable_binaries(new._installation(), folder / "two", identity)
    if not old.version.startswith("18."):
        run(new_bin / "pg_checksums", "--disable", "-D", folder / "new")  # on by default since 18
    folders = ("-b", old_bin, "-B", new_bin, "-d", folder / "old", "-D", folder / "new")
    run(new_bin / "pg_upgrade", *folders, "-U", "postgres")
    with new:
        # pg_upgrade before 18 does not keep statistics.
        with psycopg.connect(new.url(), autocommit=True) as admin:
            admin.execute("ANALYZE")
        check_whole(new.url())
        with PostgresStorage.open(new.url()) as store:
            before.check(store)
