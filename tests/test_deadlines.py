"""Every call returns in time, whatever the server and the network do. In each test, the other side stops answering.

Imports tests.tunnel and tests.ways. All limits are one second, so a call has statement_timeout + connect_timeout + 1 s.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import AsyncPostgresStorage, DatabaseConfig, NewJob, PostgresStorage, StorageUnavailableError
from goqueue.files import shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.libpq import DeadlineExceededError
from goqueue.postgres.options import deadlines
from goqueue.testing.embedded import EmbeddedServer
from tests.tunnel import Tunnel
from tests.ways import Way, opened

SECOND = timedelta(seconds=1)
# Three seconds, plus what a busy machine adds.
BOUND = 3 + 2.5
# A cancelled task ends within two.
FREE = 2 + 2.0

NEW = NewJob(job_type="t", id=uuid4())
CALLS: dict[str, tuple[Any, ...]] = {
    "ping": (),
    "get_job": (NEW.id,),
    "create_job": (NewJob(job_type="t"),),
    "create_jobs": ([NewJob(job_type="t") for _ in range(3)],),
    "claim_jobs": ("default", "w", 5),
    "list_jobs": (),
    "delete_job": (NEW.id,),
}


def limited(url: str, **changed: Any) -> DatabaseConfig:
    names = ("connect_timeout", "statement_timeout", "lock_timeout", "pool_timeout")
    return DatabaseConfig(url=url, **{**dict.fromkeys(names, SECOND), **changed})


@pytest.fixture
def tunnel(goqueue_database: str) -> Iterator[Tunnel]:
    with Tunnel(goqueue_database) as made:
        yield made


@pytest.fixture(params=["pool", "async pool"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(way: str, tunnel: Tunnel) -> Iterator[Way]:
    """A store with one connection, so that the silent side has it."""
    with opened(way, limited(tunnel.url, pool_max_size=1)) as store:
        yield store


@contextmanager
def in_time(seconds: float = BOUND) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@contextmanager
def given_up(error: type[Exception] = StorageUnavailableError, seconds: float = BOUND) -> Iterator[Any]:
    with in_time(seconds), pytest.raises(error) as caught:
        yield caught


def back(store: Way) -> None:
    """The store works again with a new connection, which the pool may still be opening."""
    for _ in range(20):
        with suppress(StorageUnavailableError):
            return store.call("ping")
    return store.call("ping")


class TestStatements:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_call_through_a_silent_tunnel_ends_in_time(self, store: Way, tunnel: Tunnel, name: str) -> None:
        store.call("create_job", NEW)
        tunnel.freeze()
        with given_up() as caught:
            store.call(name, *CALLS[name])
        assert isinstance(caught.value.__cause__, DeadlineExceededError)
        tunnel.thaw()
        back(store)

    @pytest.mark.parametrize("name", ["create_job", "create_jobs", "delete_job"])
    def test_calls_whose_answers_are_lost_end_in_time(self, store: Way, tunnel: Tunnel, name: str) -> None:
        store.call("create_job", NEW)
        tunnel.lose_answers()
        with given_up() as caught:
            store.call(name, *CALLS[name])
        assert isinstance(caught.value.__cause__, DeadlineExceededError)

    @pytest.mark.parametrize("sent", [b"BEGIN", b"goqueue:create_jobs", b"COMMIT"])
    def test_a_transaction_ends_in_time_at_each_moment(self, store: Way, tunnel: Tunnel, sent: bytes) -> None:
        tunnel.freeze_at(sent)
        with given_up():
            store.call("create_jobs", [NewJob(job_type="t")])
        tunnel.thaw()
        back(store)
        assert store.call("count_jobs") == 0

    def test_a_payload_that_the_peer_does_not_read_ends_in_time(self, store: Way, tunnel: Tunnel) -> None:
        jobs = [NewJob(job_type="t", payload="x" * 1_000_000) for _ in range(20)]
        tunnel.freeze()
        with given_up():
            store.call("create_jobs", jobs)

    def test_an_answer_that_trickles_in_ends_in_time(self, store: Way, tunnel: Tunnel) -> None:
        store.call("create_jobs", [NewJob(job_type="t", payload="x" * 100) for _ in range(100)])
        tunnel.trickle(0.02)
        with given_up():
            store.call("list_jobs")

    def test_the_other_connections_of_the_pool_are_replaced(self, way: str, tunnel: Tunnel) -> None:
        with opened(way, limited(tunnel.url, pool_min_size=3, pool_max_size=3)) as store:
            back(store)
            tunnel.freeze()
            with given_up():
                store.call("ping")
            tunnel._thaw()  # open connections stay silent
            with in_time():
                back(store)

    def test_a_slow_statement_within_its_limit_is_not_cut_off(self, way: str, goqueue_database: str) -> None:
        with opened(way, limited(goqueue_database, statement_timeout=3 * SECOND)) as store:
            assert store.select("SELECT 1 FROM pg_sleep(2)") == [(1,)]

    def test_the_limit_in_force_on_the_server_applies(self, way: str, goqueue_database: str) -> None:
        url = make_conninfo(goqueue_database, options="-c statement_timeout=10s")
        with opened(way, limited(url, statement_timeout=SECOND / 10)) as store:
            assert store.select("SELECT 1 FROM pg_sleep(2.5)") == [(1,)]

    def test_without_a_limit_a_statement_has_no_end(self, goqueue_database: str, tunnel: Tunnel) -> None:
        async def wait_long() -> None:
            async with await AsyncPostgresStorage.open(limited(tunnel.url, statement_timeout=timedelta(0))) as store:
                tunnel.freeze()
                with in_time(BOUND + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.ping(), BOUND)

        assert deadlines(limited(goqueue_database, statement_timeout=timedelta(0))).answer is None
        asyncio.run(wait_long())


class TestConnecting:
    # Before the answer about TLS, after it, and during the next message.
    @pytest.mark.parametrize("count", [0, 1, 5, 40])
    def test_a_server_that_stops_during_the_connection_fails_in_time(
        self, way: str, tunnel: Tunnel, count: int
    ) -> None:
        tunnel.freeze_after(count)
        with given_up(), opened(way, limited(tunnel.url)):
            pass

    @pytest.mark.parametrize("sent", [b"goqueue:get_session", b"goqueue:ping"])
    def test_opening_fails_in_time_if_the_server_stops(self, way: str, tunnel: Tunnel, sent: bytes) -> None:
        tunnel.freeze_at(sent)
        with given_up(), opened(way, limited(tunnel.url)):
            pass

    def test_many_silent_hosts_share_the_time(self, way: str, tunnel: Tunnel) -> None:
        tunnel.freeze()
        url = make_conninfo(tunnel.url, host=",".join(["127.0.0.1"] * 5))
        with given_up(), opened(way, limited(url)):
            pass

    @pytest.mark.parametrize("sent", [b"BEGIN READ ONLY", b"j.job_type, 0 AS", b"describe_types"])
    def test_opening_with_a_folder_fails_in_time_at_each_moment_of_its_proof(
        self, way: str, tunnel: Tunnel, tmp_path: Path, sent: bytes
    ) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        (tmp_path / "jobs.sql").write_text(text.replace("    j.job_type,", "    j.job_type, 0 AS extra,"))
        tunnel.freeze_at(sent)
        with given_up() as caught, opened(way, limited(tunnel.url, sql_dir=str(tmp_path))):
            pass
        assert isinstance(caught.value.__cause__, DeadlineExceededError)

    @pytest.mark.parametrize("named", ["in the URL", "in a service"])
    def test_a_silent_host_leaves_time_for_the_next(
        self, way: str, tunnel: Tunnel, goqueue_database: str, tmp_path: Path, monkeypatch: Any, named: str
    ) -> None:
        tunnel.freeze()
        with Tunnel(goqueue_database) as second:
            hosts, ports = "127.0.0.1,127.0.0.1", f"{tunnel.port},{second.port}"
            url = make_conninfo(tunnel.url, host=hosts, port=ports)
            if named == "in a service":
                (tmp_path / "services").write_text(f"[app]\nhost={hosts}\nport={ports}\n")
                monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
                given = psycopg.conninfo.conninfo_to_dict(url)
                url = f"service=app user={given['user']} dbname={given['dbname']}"
            with in_time(8), opened(way, limited(url, connect_timeout=3 * SECOND, pool_timeout=5 * SECOND)) as store:
                store.call("ping")

    def test_a_silent_resolver_fails_in_time(self, way: str, monkeypatch: Any) -> None:
        gone = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: gone.wait(20))
        with given_up() as caught, opened(way, limited("postgresql://app@db.example/app")):
            pass
        assert "no address for 'db.example'" in str(caught.value)
        gone.set()

    def test_a_pool_that_cannot_replace_its_connections_fails_in_time(self, store: Way, tunnel: Tunnel) -> None:
        tunnel.freeze()
        with given_up():
            store.call("ping")
        with given_up(seconds=1 + 2.5):  # no connection until pool_timeout
            store.call("ping")

    def test_a_pool_whose_only_connection_is_stuck_fails_in_time(self, tunnel: Tunnel) -> None:
        with PostgresStorage.open(limited(tunnel.url, pool_max_size=1, statement_timeout=4 * SECOND)) as store:
            tunnel.freeze()

            def hold() -> None:
                with pytest.raises(StorageUnavailableError):
                    store.ping()

            stuck = threading.Thread(target=hold)
            stuck.start()
            time.sleep(0.2)
            with given_up():
                store.ping()
            stuck.join()


class TestClosing:
    def test_closing_a_store_ends_in_time(self, way: str, tunnel: Tunnel) -> None:
        with ExitStack() as stack:
            store = stack.enter_context(opened(way, limited(tunnel.url)))
            tunnel.freeze()
            with given_up():
                store.call("ping")
            start = time.monotonic()
        assert time.monotonic() - start < BOUND

    def test_closing_a_listener_ends_in_time(self, tunnel: Tunnel) -> None:
        with PostgresStorage.open(limited(tunnel.url)) as store:
            listener = store.listen("default").__enter__()
            tunnel.freeze()
            with in_time(1.5):
                listener.close()


class TestListening:
    def test_a_wait_on_a_silent_connection_ends(self, tunnel: Tunnel) -> None:
        with PostgresStorage.open(limited(tunnel.url)) as store, store.listen("default") as listener:
            tunnel.freeze()
            with in_time(1 + 1.5):
                assert listener.wait(SECOND) == frozenset()

    @pytest.mark.parametrize("sent", [b"", b"goqueue:get_session", b"LISTEN", b"goqueue:announce_listener"])
    def test_a_wait_that_reconnects_ends(self, tunnel: Tunnel, sent: bytes) -> None:
        config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=10 * SECOND)
        with PostgresStorage.open(config) as store, store.listen("default") as listener:
            tunnel.thaw()
            tunnel.freeze_at(sent)
            with in_time(2 + 2):
                assert listener.wait(2 * SECOND) == frozenset()
            tunnel.thaw()
            assert listener.wait(20 * SECOND) == {"default"}

    @pytest.mark.parametrize("sent", [b"", b"LISTEN", b"goqueue:announce_listener"])
    def test_opening_a_listener_ends_in_time(self, tunnel: Tunnel, sent: bytes) -> None:
        with PostgresStorage.open(limited(tunnel.url)) as store:
            tunnel.freeze_at(sent)
            with given_up():
                store.listen("default").__enter__()

    def test_a_cancelled_wait_that_reconnects_ends_in_time(self, tunnel: Tunnel) -> None:
        async def cancelled() -> None:
            config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=10 * SECOND)
            async with await AsyncPostgresStorage.open(config) as store, store.listen("default") as listener:
                tunnel.thaw()
                tunnel.freeze_at(b"LISTEN")
                with in_time(1 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(listener.wait(timedelta(minutes=1)), 1)

        asyncio.run(cancelled())


class TestInterrupted:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_cancelled_task_ends_in_time(self, tunnel: Tunnel, name: str) -> None:
        """Even if the store is closed immediately afterwards."""

        async def cancelled() -> None:
            config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=30 * SECOND)
            async with await AsyncPostgresStorage.open(config) as store:
                await store.create_job(NEW)
                tunnel.freeze()
                await getattr(store, name)(*CALLS[name])

        async def started() -> None:
            async with asyncio.timeout(None) as limit:
                task = asyncio.create_task(cancelled())
                while not tunnel._silent:
                    await asyncio.sleep(0.01)
                limit.reschedule(asyncio.get_running_loop().time() + 0.5)
                await task

        with in_time(BOUND + FREE), pytest.raises(TimeoutError):
            asyncio.run(started())

    def test_a_cancelled_transaction_ends_in_time_if_the_peer_stops_at_its_rollback(
        self, tunnel: Tunnel, goqueue_database: str
    ) -> None:
        async def cancelled() -> None:
            config = limited(tunnel.url, lock_timeout=30 * SECOND, statement_timeout=30 * SECOND)
            async with await AsyncPostgresStorage.open(config) as store:
                tunnel.freeze_at(b"ROLLBACK")
                with in_time(0.5 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.create_jobs([NewJob(job_type="t", idempotency_key="k")]), 0.5)

        with psycopg.connect(goqueue_database) as other:
            PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
            asyncio.run(cancelled())

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_an_interrupted_transaction_whose_rollback_gets_no_answer_ends_as_interrupted(
        self, tunnel: Tunnel, interrupt: type[BaseException]
    ) -> None:
        def interrupted(store: PostgresStorage) -> None:
            with store._connection() as connection, store._transaction(connection, "create_jobs", ()):
                store._queries.ping(connection)
                tunnel.freeze()
                raise interrupt

        with PostgresStorage.open(limited(tunnel.url)) as store, in_time(), pytest.raises(interrupt):
            interrupted(store)

    def test_a_cancelled_transaction_whose_rollback_gets_no_answer_ends_as_cancelled(self, tunnel: Tunnel) -> None:
        async def cancelled(store: AsyncPostgresStorage) -> None:
            async with store._connection() as connection, store._transaction(connection, "create_jobs", ()):
                await store._queries.ping(connection)
                tunnel.freeze()
                raise asyncio.CancelledError

        async def run() -> None:
            async with await AsyncPostgresStorage.open(limited(tunnel.url)) as store:
                with in_time(), pytest.raises(asyncio.CancelledError):
                    await cancelled(store)

        asyncio.run(run())

    def test_opening_can_be_cancelled(self, tunnel: Tunnel) -> None:
        async def cancelled() -> None:
            for sent in (b"", b"goqueue:get_session", b"goqueue:ping"):
                tunnel.thaw()
                tunnel.freeze_at(sent)
                config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=30 * SECOND)
                with in_time(1 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(AsyncPostgresStorage.open(config), 1)

        asyncio.run(cancelled())

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_ctrl_c_and_an_exiting_signal_end_a_call_in_time(
        self, tunnel: Tunnel, interrupt: type[BaseException]
    ) -> None:
        def handle(*_: object) -> None:
            raise interrupt

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with PostgresStorage.open(limited(tunnel.url, statement_timeout=30 * SECOND)) as store:
                tunnel.freeze()
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                with in_time(0.5 + FREE), pytest.raises(interrupt):
                    store.ping()
        finally:
            signal.signal(signal.SIGUSR1, before)


# --- a stopped server that neither ends nor answers -------------------------------------------------------------------


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop all of the server's processes meanwhile, as in a frozen virtual machine."""
    assert server._process is not None
    postmaster = server._process.pid
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text("ascii").split()
    pids = [postmaster, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(durable=False) as running:
        migrate(running.url())
        yield running


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list a process's children")
class TestAStoppedServer:
    def test_calls_on_a_stopped_server_end_in_time(self, way: str, server: EmbeddedServer) -> None:
        with opened(way, limited(server.url())) as store:
            store.call("ping")
            with stopped(server):
                for _ in range(2):
                    with given_up():
                        store.call("get_job", NEW.id)
            back(store)

    def test_opening_on_a_stopped_server_ends_in_time(self, way: str, server: EmbeddedServer) -> None:
        with stopped(server), given_up(), opened(way, limited(server.url())):
            pass

    def test_a_cancelled_call_on_a_stopped_server_ends_in_time(self, server: EmbeddedServer) -> None:
        async def cancelled() -> None:
            async with await AsyncPostgresStorage.open(limited(server.url(), statement_timeout=30 * SECOND)) as store:
                with stopped(server), in_time(1 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.ping(), 1)

        asyncio.run(cancelled())
