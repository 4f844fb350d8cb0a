"""Every call returns in time, whatever the server and the network do. In each test, the other side stops answering.
Most tests make several calls at once, because they wait for seconds.

Imports tests.tunnel and tests.ways. All limits are one second, so a call has statement_timeout + connect_timeout + 1 s.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    NewJob,
    OutcomeUnknownError,
    PostgresStorage,
    StorageUnavailableError,
)
from goqueue.files import shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.libpq import DeadlineExceededError
from goqueue.postgres.options import deadlines
from goqueue.testing.embedded import EmbeddedServer
from tests.tunnel import Tunnel
from tests.ways import Way, opened
from tests.workers import SECONDS

SECOND = timedelta(seconds=1)
WAYS = ["pool", "async pool"]
ONE: dict[str, Any] = {"pool_max_size": 1}  # the silent side has the only connection
# Three seconds, plus what a busy machine adds to them; `in_time` deducts stalls.
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
def tunnels(goqueue_database: str) -> Iterator[Callable[[], Tunnel]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Tunnel(goqueue_database))


@pytest.fixture
def tunnel(tunnels: Callable[[], Tunnel]) -> Tunnel:
    return tunnels()


@pytest.fixture
def stores() -> Iterator[Callable[..., Way]]:
    """A function that opens a store, which is closed at the end of the test."""
    with ExitStack() as stack:

        def open_one(way: str, url: str, **changed: Any) -> Way:
            return patiently(lambda: stack.enter_context(opened(way, limited(url, **changed))))

        yield open_one


def patiently(call: Callable[[], Any]) -> Any:
    """Make a call that must succeed: on a busy machine it can take longer than its limits, of a second each."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return call()
        except (StorageUnavailableError, OutcomeUnknownError):
            if time.monotonic() > end:
                raise


def open_patiently(config: DatabaseConfig) -> PostgresStorage:
    store: PostgresStorage = patiently(lambda: PostgresStorage.open(config))
    return store


async def open_async_patiently(config: DatabaseConfig) -> AsyncPostgresStorage:
    end = time.monotonic() + SECONDS
    while True:
        try:
            return await AsyncPostgresStorage.open(config)
        except StorageUnavailableError:
            if time.monotonic() > end:
                raise


def at_once(calls: dict[Any, Callable[[], object]]) -> None:
    """Make the calls in threads, so that their waits overlap. Raise all failures, each with the name of its call."""
    with ThreadPoolExecutor(len(calls)) as executor:
        futures = {}
        for name, call in calls.items():
            futures[name] = executor.submit(call)
            time.sleep(0.1)  # a connection has a second, also on a busy machine
    failures = []
    for name, future in futures.items():
        if (error := future.exception()) is not None:
            error.add_note(f"in the call {name}")
            failures.append(error)
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(calls)} calls failed", failures)


class Stalls:
    """Measures how long the machine has not run this process: by how much short sleeps of a thread are too long."""

    def __init__(self) -> None:
        self.seconds = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            start = time.monotonic()
            time.sleep(0.05)
            if (late := time.monotonic() - start - 0.05) > 0.1:
                self.seconds += late


@cache
def stalls() -> Stalls:
    return Stalls()


@contextmanager
def in_time(seconds: float = BOUND) -> Iterator[None]:
    start, before = time.monotonic(), stalls().seconds
    yield
    end = time.monotonic()
    time.sleep(0.1)  # until a stall that has just ended is measured
    assert end - start - (stalls().seconds - before) < seconds


@contextmanager
def given_up(error: type[Exception] = StorageUnavailableError, seconds: float = BOUND) -> Iterator[Any]:
    with in_time(seconds), pytest.raises(error) as caught:
        yield caught


def back(store: Way) -> None:
    """The store works again with a new connection, which the pool may still be opening."""
    patiently(lambda: store.call("ping"))


class TestStatements:
    def test_a_call_through_a_silent_tunnel_ends_in_time(self, stores: Any, tunnel: Tunnel) -> None:
        ready = {(way, name): stores(way, tunnel.url, **ONE) for way in WAYS for name in CALLS}
        for store in ready.values():
            patiently(partial(store.call, "create_job", NEW))
        tunnel.freeze()

        def call(store: Way, name: str) -> None:
            with given_up() as caught:
                store.call(name, *CALLS[name])
            assert isinstance(caught.value.__cause__, DeadlineExceededError)

        at_once({(way, name): partial(call, store, name) for (way, name), store in ready.items()})
        tunnel.thaw()
        at_once({key: partial(back, store) for key, store in ready.items()})

    def test_calls_whose_answers_are_lost_end_in_time(self, stores: Any, tunnel: Tunnel) -> None:
        names = ("create_job", "create_jobs", "delete_job")
        ready = {(way, name): stores(way, tunnel.url, **ONE) for way in WAYS for name in names}
        for store in ready.values():
            patiently(partial(store.call, "create_job", NEW))
        tunnel.lose_answers()

        def call(store: Way, name: str) -> None:
            with given_up() as caught:
                store.call(name, *CALLS[name])
            assert isinstance(caught.value.__cause__, DeadlineExceededError)

        at_once({(way, name): partial(call, store, name) for (way, name), store in ready.items()})
        tunnel.thaw()

    def test_a_transaction_ends_in_time_at_each_moment(self, stores: Any, tunnels: Any) -> None:
        moments = (b"BEGIN", b"goqueue:create_jobs", b"COMMIT")
        ready = {(way, sent): (made := tunnels(), stores(way, made.url, **ONE)) for way in WAYS for sent in moments}

        def call(sent: bytes, tunnel: Tunnel, store: Way) -> None:
            tunnel.freeze_at(sent)
            with given_up():
                store.call("create_jobs", [NewJob(job_type="t")])
            tunnel.thaw()
            back(store)
            assert patiently(lambda: store.call("count_jobs")) == 0

        at_once({(way, sent): partial(call, sent, *made) for (way, sent), made in ready.items()})

    def test_a_payload_that_the_peer_does_not_read_ends_in_time(self, stores: Any, tunnel: Tunnel) -> None:
        jobs = [NewJob(job_type="t", payload="x" * 1_000_000) for _ in range(20)]
        ready = {way: stores(way, tunnel.url, **ONE) for way in WAYS}
        tunnel.freeze()

        def call(store: Way) -> None:
            with given_up():
                store.call("create_jobs", jobs)

        at_once({way: partial(call, store) for way, store in ready.items()})

    def test_an_answer_that_trickles_in_ends_in_time(self, stores: Any, tunnel: Tunnel) -> None:
        ready = {way: stores(way, tunnel.url, **ONE) for way in WAYS}
        for store in ready.values():
            store.call("create_jobs", [NewJob(job_type="t", payload="x" * 100) for _ in range(100)])
        tunnel.trickle(0.02)

        def call(store: Way) -> None:
            with given_up():
                store.call("list_jobs")

        at_once({way: partial(call, store) for way, store in ready.items()})

    def test_the_other_connections_of_the_pool_are_replaced(self, tunnels: Any) -> None:
        def call(way: str) -> None:
            tunnel = tunnels()
            with ExitStack() as stack:
                config = limited(tunnel.url, pool_min_size=3, pool_max_size=3)
                store = patiently(lambda: stack.enter_context(opened(way, config)))
                back(store)
                tunnel.freeze()
                with given_up():
                    store.call("ping")
                tunnel._thaw()  # open connections stay silent
                with in_time():
                    back(store)

        at_once({way: partial(call, way) for way in WAYS})

    def test_a_slow_statement_within_its_limit_is_not_cut_off(self, stores: Any, goqueue_database: str) -> None:
        ready = {way: stores(way, goqueue_database, statement_timeout=10 * SECOND) for way in WAYS}

        def call(store: Way) -> None:
            assert store.select("SELECT 1 FROM pg_sleep(2)") == [(1,)]

        at_once({way: partial(call, store) for way, store in ready.items()})

    def test_the_limit_in_force_on_the_server_applies(self, stores: Any, goqueue_database: str) -> None:
        url = make_conninfo(goqueue_database, options="-c statement_timeout=10s")
        ready = {way: stores(way, url, statement_timeout=SECOND / 10) for way in WAYS}

        def call(store: Way) -> None:
            assert store.select("SELECT 1 FROM pg_sleep(2.5)") == [(1,)]

        at_once({way: partial(call, store) for way, store in ready.items()})

    def test_without_a_limit_a_statement_has_no_end(self, goqueue_database: str, tunnel: Tunnel) -> None:
        async def wait_long() -> None:
            async with await open_async_patiently(limited(tunnel.url, statement_timeout=timedelta(0))) as store:
                tunnel.freeze()
                with in_time(BOUND + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.ping(), BOUND)

        assert deadlines(limited(goqueue_database, statement_timeout=timedelta(0))).answer is None
        asyncio.run(wait_long())


class TestConnecting:
    def test_a_server_that_stops_during_the_connection_fails_in_time(self, tunnels: Any) -> None:
        def call(way: str, count: int) -> None:
            tunnel = tunnels()
            tunnel.freeze_after(count)
            with given_up(), opened(way, limited(tunnel.url)):
                pass

        # Before the answer about TLS, after it, and during the next message.
        at_once({(way, count): partial(call, way, count) for way in WAYS for count in (0, 1, 5, 40)})

    def test_opening_fails_in_time_if_the_server_stops(self, tunnels: Any) -> None:
        def call(way: str, sent: bytes) -> None:
            tunnel = tunnels()
            tunnel.freeze_at(sent)
            with given_up(), opened(way, limited(tunnel.url)):
                pass

        moments = (b"goqueue:get_session", b"goqueue:ping")
        at_once({(way, sent): partial(call, way, sent) for way in WAYS for sent in moments})

    def test_many_silent_hosts_share_the_time(self, tunnel: Tunnel) -> None:
        tunnel.freeze()
        url = make_conninfo(tunnel.url, host=",".join(["127.0.0.1"] * 5))

        def call(way: str) -> None:
            with given_up(), opened(way, limited(url)):
                pass

        at_once({way: partial(call, way) for way in WAYS})

    def test_opening_with_a_folder_fails_in_time_at_each_moment_of_its_proof(
        self, tunnels: Any, tmp_path: Path
    ) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        (tmp_path / "jobs.sql").write_text(text.replace("    j.job_type,", "    j.job_type, 0 AS extra,"))

        def call(way: str, sent: bytes) -> None:
            tunnel = tunnels()
            tunnel.freeze_at(sent)
            with given_up() as caught, opened(way, limited(tunnel.url, sql_dir=str(tmp_path))):
                pass
            assert isinstance(caught.value.__cause__, DeadlineExceededError)

        moments = (b"BEGIN READ ONLY", b"j.job_type, 0 AS", b"describe_types")
        at_once({(way, sent): partial(call, way, sent) for way in WAYS for sent in moments})

    def test_a_silent_host_leaves_time_for_the_next(self, tunnels: Any, tmp_path: Path, monkeypatch: Any) -> None:
        silent, second = tunnels(), tunnels()
        silent.freeze()
        hosts, ports = "127.0.0.1,127.0.0.1", f"{silent.port},{second.port}"
        url = make_conninfo(silent.url, host=hosts, port=ports)
        (tmp_path / "services").write_text(f"[app]\nhost={hosts}\nport={ports}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        given = psycopg.conninfo.conninfo_to_dict(url)
        named = {"in the URL": url, "in a service": f"service=app user={given['user']} dbname={given['dbname']}"}

        def call(way: str, url: str) -> None:
            with in_time(10), opened(way, limited(url, connect_timeout=4 * SECOND, pool_timeout=9 * SECOND)) as store:
                store.call("ping")

        at_once({(way, where): partial(call, way, url) for way in WAYS for where, url in named.items()})

    def test_a_silent_resolver_fails_in_time(self, monkeypatch: Any) -> None:
        gone = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: gone.wait(20))

        def call(way: str) -> None:
            with given_up() as caught, opened(way, limited("postgresql://app@db.example/app")):
                pass
            assert "no address for 'db.example'" in str(caught.value)

        at_once({way: partial(call, way) for way in WAYS})
        gone.set()

    def test_a_pool_that_cannot_replace_its_connections_fails_in_time(self, stores: Any, tunnel: Tunnel) -> None:
        ready = {way: stores(way, tunnel.url, **ONE) for way in WAYS}
        tunnel.freeze()

        def call(store: Way) -> None:
            with given_up():
                store.call("ping")
            with given_up(seconds=1 + 2.5):  # no connection until pool_timeout
                store.call("ping")

        at_once({way: partial(call, store) for way, store in ready.items()})

    def test_a_pool_whose_only_connection_is_stuck_fails_in_time(self, tunnel: Tunnel) -> None:
        with open_patiently(limited(tunnel.url, pool_max_size=1, statement_timeout=4 * SECOND)) as store:
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
    def test_closing_a_store_ends_in_time(self, tunnels: Any) -> None:
        def call(way: str) -> None:
            tunnel = tunnels()
            with ExitStack() as stack:
                store = patiently(lambda: stack.enter_context(opened(way, limited(tunnel.url))))
                tunnel.freeze()
                with given_up():
                    store.call("ping")
                with in_time():
                    stack.close()

        at_once({way: partial(call, way) for way in WAYS})

    def test_closing_a_listener_ends_in_time(self, tunnel: Tunnel) -> None:
        with open_patiently(limited(tunnel.url)) as store:
            listener = patiently(store.listen("default").__enter__)
            tunnel.freeze()
            with in_time(1.5):
                listener.close()


class TestListening:
    def test_a_wait_on_a_silent_connection_ends(self, tunnel: Tunnel) -> None:
        with open_patiently(limited(tunnel.url)) as store, closing(store.listen("default")) as listener:
            patiently(listener.__enter__)
            tunnel.freeze()
            with in_time(1 + 1.5):
                assert listener.wait(SECOND) == frozenset()

    def test_a_wait_that_reconnects_ends(self, tunnels: Any) -> None:
        def call(sent: bytes) -> None:
            tunnel = tunnels()
            config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=10 * SECOND)
            with PostgresStorage.open(config) as store, store.listen("default") as listener:
                tunnel.thaw()
                tunnel.freeze_at(sent)
                with in_time(2 + 2):
                    assert listener.wait(2 * SECOND) == frozenset()
                tunnel.thaw()
                assert listener.wait(60 * SECOND) == {"default"}

        moments = (b"", b"goqueue:get_session", b"LISTEN", b"goqueue:announce_listener")
        at_once({sent: partial(call, sent) for sent in moments})

    def test_opening_a_listener_ends_in_time(self, tunnels: Any) -> None:
        def call(sent: bytes) -> None:
            tunnel = tunnels()
            with open_patiently(limited(tunnel.url)) as store:
                tunnel.freeze_at(sent)
                with given_up():
                    store.listen("default").__enter__()

        at_once({sent: partial(call, sent) for sent in (b"", b"LISTEN", b"goqueue:announce_listener")})

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
    def test_a_cancelled_task_ends_in_time(self, tunnels: Any) -> None:
        """Even if the store is closed immediately afterwards."""

        async def cancelled(tunnel: Tunnel, name: str) -> None:
            config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=30 * SECOND)
            async with await AsyncPostgresStorage.open(config) as store:
                await store.create_job(NEW)
                tunnel.freeze()
                await getattr(store, name)(*CALLS[name])

        async def started(tunnel: Tunnel, name: str) -> None:
            async with asyncio.timeout(None) as limit:
                task = asyncio.create_task(cancelled(tunnel, name))
                while not tunnel._silent:
                    await asyncio.sleep(0.01)
                limit.reschedule(asyncio.get_running_loop().time() + 0.5)
                await task

        def call(name: str) -> None:
            with in_time(BOUND + FREE), pytest.raises(TimeoutError):
                asyncio.run(started(tunnels(), name))

        at_once({name: partial(call, name) for name in CALLS})

    def test_a_cancelled_transaction_ends_in_time_if_the_peer_stops_at_its_rollback(
        self, tunnel: Tunnel, goqueue_database: str
    ) -> None:
        async def cancelled() -> None:
            config = limited(tunnel.url, lock_timeout=30 * SECOND, statement_timeout=30 * SECOND)
            async with await open_async_patiently(config) as store:
                tunnel.freeze_at(b"ROLLBACK")
                with in_time(0.5 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.create_jobs([NewJob(job_type="t", idempotency_key="k")]), 0.5)

        with psycopg.connect(goqueue_database) as other:
            PostgresStorage.bound_to(other).create_job(NewJob(job_type="t", idempotency_key="k"))
            asyncio.run(cancelled())

    def test_an_interrupted_transaction_whose_rollback_gets_no_answer_ends_as_interrupted(self, tunnels: Any) -> None:
        def interrupted(store: PostgresStorage, tunnel: Tunnel, interrupt: type[BaseException]) -> None:
            with store._connection() as connection, store._transaction(connection, "create_jobs", ()):
                store._queries.ping(connection)
                tunnel.freeze()
                raise interrupt

        def call(interrupt: type[BaseException]) -> None:
            tunnel = tunnels()
            with open_patiently(limited(tunnel.url)) as store, in_time(), pytest.raises(interrupt):
                interrupted(store, tunnel, interrupt)

        at_once({interrupt: partial(call, interrupt) for interrupt in (KeyboardInterrupt, SystemExit)})

    def test_a_cancelled_transaction_whose_rollback_gets_no_answer_ends_as_cancelled(self, tunnel: Tunnel) -> None:
        async def cancelled(store: AsyncPostgresStorage) -> None:
            async with store._connection() as connection, store._transaction(connection, "create_jobs", ()):
                await store._queries.ping(connection)
                tunnel.freeze()
                raise asyncio.CancelledError

        async def run() -> None:
            async with await open_async_patiently(limited(tunnel.url)) as store:
                with in_time(), pytest.raises(asyncio.CancelledError):
                    await cancelled(store)

        asyncio.run(run())

    def test_opening_can_be_cancelled(self, tunnels: Any) -> None:
        async def cancelled(sent: bytes) -> None:
            tunnel = tunnels()
            tunnel.freeze_at(sent)
            config = limited(tunnel.url, connect_timeout=10 * SECOND, statement_timeout=30 * SECOND)
            with in_time(1 + FREE), pytest.raises(TimeoutError):
                await asyncio.wait_for(AsyncPostgresStorage.open(config), 1)

        moments = (b"", b"goqueue:get_session", b"goqueue:ping")
        at_once({sent: partial(asyncio.run, cancelled(sent)) for sent in moments})

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_ctrl_c_and_an_exiting_signal_end_a_call_in_time(
        self, tunnel: Tunnel, interrupt: type[BaseException]
    ) -> None:
        def handle(*_: object) -> None:
            raise interrupt

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with open_patiently(limited(tunnel.url, statement_timeout=30 * SECOND)) as store:
                tunnel.freeze()
                timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
                with in_time(0.5 + FREE), pytest.raises(interrupt):  # noqa: PT012 - a stall here is inside too
                    timer.start()
                    store.ping()
                timer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)


# --- a stopped server that neither ends nor answers -------------------------------------------------------------------


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop all of the server's processes meanwhile, as in a frozen virtual machine."""
    assert server._process is not None
    postmaster = server._process.pid
    os.kill(postmaster, signal.SIGSTOP)  # first, so that it starts no other one
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text("ascii").split()
    pids = [postmaster, *map(int, children)]
    for pid in pids[1:]:
        with suppress(ProcessLookupError):
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
    def test_calls_on_a_stopped_server_end_in_time(self, stores: Any, server: EmbeddedServer) -> None:
        ready = {way: stores(way, server.url()) for way in WAYS}
        for store in ready.values():
            store.call("ping")

        def call(store: Way) -> None:
            for _ in range(2):
                with given_up():
                    store.call("get_job", NEW.id)

        with stopped(server):
            at_once({way: partial(call, store) for way, store in ready.items()})
        for store in ready.values():
            back(store)

    def test_opening_on_a_stopped_server_ends_in_time(self, server: EmbeddedServer) -> None:
        def call(way: str) -> None:
            with given_up(), opened(way, limited(server.url())):
                pass

        with stopped(server):
            at_once({way: partial(call, way) for way in WAYS})

    def test_a_cancelled_call_on_a_stopped_server_ends_in_time(self, server: EmbeddedServer) -> None:
        async def cancelled() -> None:
            async with await open_async_patiently(limited(server.url(), statement_timeout=30 * SECOND)) as store:
                with stopped(server), in_time(1 + FREE), pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.ping(), 1)

        asyncio.run(cancelled())
