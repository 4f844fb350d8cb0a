"""A primary with a standby: what a failover loses with each setting, and how soon the store and workers are back."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import (
    DatabaseConfig,
    Job,
    JobFilter,
    JobStatus,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    StorageUnavailableError,
)
from goqueue.workbench.durability import check_durability
from goqueue.workbench.findings import Check, Level
from goqueue.workbench.health import run_checks
from tests import pgbouncer, proxy
from tests.standby import SECONDS, Pair, pair, until
from tests.workers import Workers

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("pair")) as both:
        yield both


# --- `goqueue check` ------------------------------------------------------------------------------------------------


@pytest.fixture
def durability(servers: Pair) -> Iterator[Callable[..., Check]]:
    """The check `durability` of a connection with this synchronous_commit, while these standbys are synchronous."""

    def check(names: str, commit: str = "on", *, sees_standbys: bool = True) -> Check:
        servers.set("synchronous_standby_names", names)
        servers.until_standby_is(*(("async",) if names in ("", "elsewhere") else ("sync", "quorum")))
        options = f"-c synchronous_commit={commit}"
        with psycopg.connect(make_conninfo(servers.primary.url(), options=options), autocommit=True) as connection:
            return check_durability(connection, sees_standbys=sees_standbys)

    yield check
    servers.set("synchronous_standby_names", "")


@pytest.mark.parametrize("names", ["*", "ANY 1 (walreceiver, other)", "first 1 (walreceiver)", "1 (walreceiver)"])
def test_a_synchronous_standby_is_no_finding(durability: Callable[..., Check], names: str) -> None:
    survives = "an acknowledged job is on this server's disk and on the disk of 1 standby server (walreceiver)"
    assert durability(names) == Check("durability", Level.OK, survives)


def test_an_asynchronous_standby_is_a_note(durability: Callable[..., Check]) -> None:
    [found] = durability("").findings
    assert found.level == Level.NOTE
    assert found.found == (
        "synchronous_standby_names is empty, so walreceiver can be behind: a failover loses the jobs that were "
        "acknowledged last"
    )
    assert found.do.startswith("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")


@pytest.mark.parametrize(("commit", "level"), [("local", Level.NOTE), ("remote_write", Level.NOTE)])
def test_a_weaker_synchronous_commit_is_a_note(durability: Callable[..., Check], commit: str, level: Level) -> None:
    [found] = durability("*", commit).findings
    assert found.level == level
    assert found.found.startswith(f"synchronous_commit is {commit}")


@pytest.mark.parametrize(
    ("names", "connected"),
    [
        ("elsewhere", "0 of 1 synchronous standby server"),
        ("ANY 2 (walreceiver, elsewhere)", "1 of 2 synchronous standby servers"),
    ],
)
def test_a_missing_synchronous_standby_is_a_failure(
    durability: Callable[..., Check], names: str, connected: str
) -> None:
    done = durability(names)
    assert (done.level, done.summary) == (Level.FAILED, "no job is acknowledged until a standby connects")
    [found] = done.findings
    assert f"{connected} connected: every change waits" in found.found
    [unseen] = durability(names, sees_standbys=False).findings
    assert unseen.level == Level.NOTE
    assert "can't see whether the standbys are connected" in unseen.found


def test_a_standby_is_checked_as_far_as_possible(servers: Pair) -> None:
    with psycopg.connect(servers.standby.url(), autocommit=True) as connection:
        done = {one.name: one for one in run_checks(connection)}
    assert [one.found for one in done["server"].findings] == ["the server is a standby"]
    assert {name: one.level for name, one in done.items() if one.level in (Level.FAILED, Level.SKIPPED)} == {
        "server": Level.FAILED, "durability": Level.SKIPPED
    }  # fmt: skip


# --- what a failover loses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", ["on", "local"])
def test_only_a_commit_that_waits_for_the_standby_survives_a_failover(tmp_path: Path, commit: str) -> None:
    """A job is added while nothing is sent to the standby."""
    with pair(tmp_path) as servers:
        servers.set("synchronous_standby_names", "*")
        servers.until_standby_is("sync")
        url = make_conninfo(servers.url, options=f"-c synchronous_commit={commit}")
        with PostgresStorage.open(url) as store, ThreadPoolExecutor(1) as thread:
            before = store.create_job(NewJob(job_type="t"))
            servers.until_caught_up()
            sender = servers.stop_sending()
            call = thread.submit(store.create_job, NewJob(job_type="t"))
            acknowledged = bool(wait([call], SECONDS if commit == "local" else 1.5).done)
            servers.crash(sender)
            with suppress(StorageUnavailableError):
                call.result(SECONDS)
        servers.promote()
        with PostgresStorage.open(servers.url) as store:
            assert [job.id for job in store.list_jobs().jobs] == [before.id]
        assert acknowledged == (commit == "local")


# --- a failover under load --------------------------------------------------------------------------------------------


class Load:
    """Threads that add and complete jobs through a failover. They repeat each call until it is acknowledged, and record
    what was acknowledged, and when."""

    def __init__(self) -> None:
        self.added: set[UUID] = set()
        self.completed: set[UUID] = set()
        #: By role, when its last call succeeded.
        self.times: dict[str, list[float]] = {"store": [], "bulk": [], "holder": [], "listener": [], "worker": []}
        self.ended = threading.Event()

    def note(self, role: str) -> None:
        self.times[role].append(time.monotonic())

    def add(self, store: PostgresStorage) -> None:
        while not self.ended.is_set():
            new = NewJob(job_type="t", queue="held")
            self.repeat(lambda new=new: store.create_job(new))
            self.added.add(new.id)
            self.note("store")

    def add_many(self, store: PostgresStorage) -> None:
        while not self.ended.is_set():
            new = [NewJob(job_type="t", queue="worked") for _ in range(5)]
            self.repeat(lambda new=new: store.create_jobs(new))
            self.added.update(job.id for job in new)
            self.note("bulk")
            time.sleep(0.02)

    def hold(self, store: PostgresStorage) -> None:
        while not self.ended.is_set():
            jobs = self.repeat(lambda: store.claim_jobs("held", "holder", limit=5))
            with suppress(LeaseLostError):  # of a claim whose reply was lost: never, because it returns no jobs
                self.repeat(lambda jobs=jobs: store.complete_jobs(jobs))
                self.completed.update(job.id for job in jobs)
                self.note("holder")

    def listen(self, store: PostgresStorage) -> None:
        with store.listen("worked") as listener:
            while not self.ended.is_set():
                if listener.wait(SECOND):
                    self.note("listener")

    async def handle(self, job: Job) -> None:
        self.note("worker")

    @staticmethod
    def repeat(call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return call()
            except StorageUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def back_after(self, role: str, moment: float) -> float | None:
        """Return the seconds from a moment to the role's next success."""
        return next((at - moment for at in self.times[role] if at > moment), None)


@pytest.mark.parametrize(
    ("kind", "pooled"),
    [
        ("threads", False),
        ("tasks", False),
        pytest.param(
            "threads", True, marks=pytest.mark.skipif(not pgbouncer.PROGRAM, reason=pgbouncer.MISSING), id="pgbouncer"
        ),
    ],
)
def test_no_acknowledged_job_is_lost_and_all_clients_recover_after_a_failover(
    tmp_path: Path, kind: str, pooled: bool
) -> None:
    with ExitStack() as stack:
        servers = stack.enter_context(pair(tmp_path))
        servers.set("synchronous_standby_names", "*")
        servers.until_standby_is("sync")
        load = Load()
        url = servers.url
        if pooled:
            # pgbouncer accepts clients for a dead server, so several poolers in a URL do not fail over. This one
            # connects to an address that moves.
            address = stack.enter_context(proxy.running(servers.primary.url()))
            settings = {"ignore_startup_parameters": "options", "server_login_retry": 1}
            url = stack.enter_context(pgbouncer.running(address.url, **settings))(servers.primary.url())
        config = DatabaseConfig(url=url, listen_url=servers.url)
        store = stack.enter_context(PostgresStorage.open(config))
        threads = stack.enter_context(ThreadPoolExecutor(6))
        stack.callback(load.ended.set)
        work = [threads.submit(task, store) for task in (load.add, load.add, load.add_many, load.hold, load.listen)]
        stack.enter_context(Workers(kind, "").running({"t": load.handle}, url=config, queues=("worked",)))
        until(lambda: all(load.times.values()) and len(load.completed) > 20)
        crashed = time.monotonic()
        if pooled:
            address.refuse()
        servers.crash()
        servers.promote()
        promoted = time.monotonic()
        if pooled:
            address.move(servers.standby.url())
        until(lambda: all(load.back_after(role, crashed) for role in load.times))
        load.ended.set()
        for one in work:
            one.result(SECONDS)
        until(lambda: store.count_jobs(JobFilter(queue="worked", status="pending")) == 0)
        found = {job.id: job.status for job in store.get_jobs(load.added)}
        back = {role: f"{(load.back_after(role, crashed) or 0):.2f} s" for role in load.times}
        print(f"back after the crash ({kind}, pooled: {pooled}), promoted after {promoted - crashed:.2f} s: {back}")
    assert load.added - found.keys() == set()
    assert {found[job_id] for job_id in load.completed} == {JobStatus.COMPLETED}
