"""Statements with an unknown outcome: lost replies, and commits that no standby confirmed."""

import asyncio
import inspect
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import (
    AsyncPostgresStorage,
    AsyncStorage,
    DatabaseConfig,
    JobStatus,
    JobUpdate,
    NewJob,
    OutcomeUnknownError,
    PostgresStorage,
    Storage,
    StorageUnavailableError,
    TransactionStatus,
)
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_queries
from goqueue.postgres.wire import Rendered
from goqueue.testing.embedded import EmbeddedServer
from tests import pgbouncer, proxy
from tests.ways import WAYS, Way, opened

MINUTE = timedelta(minutes=1)
Call = Callable[..., Any]


def never_prepared(url: str) -> DatabaseConfig:
    """An unprepared statement is sent with its name each time."""
    return DatabaseConfig(url=url, prepare_threshold=None, pool_min_size=1, pool_max_size=1)


# --- commits that no standby confirmed --------------------------------------------------------------------------------


class Waiting:
    """A server whose commits wait for a standby that never connects."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin = psycopg.connect(make_conninfo(url, options="-c synchronous_commit=local"), autocommit=True)

    def end_the_wait(self, how: str = "pg_cancel_backend") -> None:
        """Return the pid of the waiting session, once there is one."""
        deadline = time.monotonic() + 60
        ended = f"SELECT {how}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        while not self.admin.execute(ended.encode()).fetchall():
            assert time.monotonic() < deadline, "nothing waits for the standby"
            time.sleep(0.01)

    def until_commits_wait(self) -> None:
        """Wait until the server's processes have read that there is a synchronous standby."""
        waiting = make_conninfo(self.url, options="-c synchronous_commit=on")
        is_waiting = False
        with psycopg.connect(waiting, autocommit=True) as connection, ThreadPoolExecutor(1) as thread:
            pid = connection.info.backend_pid
            cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = %s"
            while not is_waiting:
                commit = thread.submit(connection.execute, "SELECT pg_current_xact_id()")
                while not commit.done():
                    is_waiting = self.admin.execute(cancel, [pid]).rowcount > 0 or is_waiting

    @contextmanager
    def ended(self, how: str = "pg_cancel_backend") -> Iterator[None]:
        """Run code while a call's commit waits."""
        with ThreadPoolExecutor(1) as thread:
            ending = thread.submit(self.end_the_wait, how)
            yield
            ending.result(60)


@pytest.fixture(scope="module")
def synchronous_server() -> Iterator[EmbeddedServer]:
    settings = {"synchronous_commit": "local", "wal_level": "replica"}
    with EmbeddedServer(settings=settings, durable=False) as server:
        migrate(server.url())
        yield server


@pytest.fixture
def standby(synchronous_server: EmbeddedServer) -> Iterator[Waiting]:
    waiting = Waiting(synchronous_server.url())
    with waiting.admin as admin:
        admin.execute("TRUNCATE goqueue.jobs, goqueue.job_failures")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'never'")
        admin.execute("SELECT pg_reload_conf()")
        waiting.until_commits_wait()
        yield waiting
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")


@contextmanager
def synchronous(way: str, standby: Waiting) -> Iterator[Way]:
    url = make_conninfo(standby.url, options="-c synchronous_commit=on")
    with opened(way, DatabaseConfig(url=url, pool_min_size=1, pool_max_size=1)) as store:
        yield store


@pytest.fixture
def local(standby: Waiting) -> Iterator[PostgresStorage]:
    """A store that doesn't wait for a standby."""
    with PostgresStorage.open(make_conninfo(standby.url, options="-c synchronous_commit=local")) as store:
        yield store


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_change_whose_wait_for_a_standby_is_cancelled_reports_that_a_failover_can_lose_it(
    standby: Waiting, local: PostgresStorage, way: str
) -> None:
    new = NewJob(job_type="t")
    bulk = [NewJob(job_type="t") for _ in range(3)]
    with synchronous(way, standby) as store:

        def unconfirmed(method: str, *arguments: Any, **values: Any) -> OutcomeUnknownError:
            with standby.ended(), pytest.raises(OutcomeUnknownError, match="standby") as caught:
                store.call(method, *arguments, **values)
            assert caught.value.is_committed
            assert not caught.value.can_retry
            return caught.value

        error = unconfirmed("create_job", new)
        assert (error.operation, error.job_ids) == ("create_job", (new.id,))
        assert local.get_job(new.id).status == JobStatus.PENDING
        error = unconfirmed("create_jobs", bulk)
        assert (error.operation, set(error.job_ids)) == ("create_jobs", {job.id for job in bulk})
        assert store.call("get_transaction_status", error.transaction_id) == TransactionStatus.COMMITTED
        error = unconfirmed("claim_jobs", "default", "w", 2)
        assert (error.operation, error.worker_id) == ("claim_jobs", "w")
        held = local.get_jobs(error.job_ids)
        assert [(job.status, job.locked_by) for job in held] == [(JobStatus.RUNNING, "w")] * 2
        error = unconfirmed("heartbeat_jobs", held)
        assert error.job_ids == tuple(sorted(job.id for job in held))
        error = unconfirmed("complete_and_claim", held[:1], "default", "w")
        assert error.job_ids[0] == held[0].id
        [next_one] = local.get_jobs(error.job_ids[1:])
        assert (next_one.locked_by, next_one.status) == ("w", JobStatus.RUNNING)
        error = unconfirmed("complete_jobs", held[1:])
        assert error.job_ids == (held[1].id,)
        assert local.get_job(held[1].id).status == JobStatus.COMPLETED
        assert unconfirmed("fail_job", next_one, "no").job_ids == (next_one.id,)
        spare = bulk[2].id
        assert unconfirmed("update_job", spare, JobUpdate(priority=7)).operation == "update_job"
        assert unconfirmed("cancel_jobs", spare).job_ids == (spare,)
        assert unconfirmed("retry_jobs", spare).job_ids == (spare,)
        error = unconfirmed("delete_job", spare)
        assert (error.operation, error.job_ids) == ("delete_job", (spare,))
        assert error.transaction_id is not None
        assert set(unconfirmed("prune_jobs", timedelta(0)).job_ids) == {job.id for job in held}
        store.call("ping")  # the connection can be used again


@pytest.mark.parametrize("way", WAYS)
def test_a_session_ended_while_its_commit_waits_for_a_standby_is_known_to_be_committed(
    standby: Waiting, local: PostgresStorage, way: str
) -> None:
    new = NewJob(job_type="t")
    with synchronous(way, standby) as store:
        with standby.ended("pg_terminate_backend"), pytest.raises(OutcomeUnknownError) as caught:
            store.call("create_job", new)
        assert (caught.value.is_committed, caught.value.job_ids) == (True, (new.id,))
        assert local.get_job(new.id).id == new.id
    with synchronous(way, standby) as store:
        with standby.ended("pg_terminate_backend"), pytest.raises(OutcomeUnknownError) as caught:
            store.call("delete_job", new.id)
        assert caught.value.is_committed
        assert local.get_transaction_status(str(caught.value.transaction_id)) == TransactionStatus.COMMITTED


def test_in_the_callers_transaction_only_the_caller_watches_the_commit(
    standby: Waiting, local: PostgresStorage
) -> None:
    url = make_conninfo(standby.url, options="-c synchronous_commit=on")
    new = NewJob(job_type="t")
    with psycopg.connect(url) as connection:
        PostgresStorage.bound_to(connection).create_job(new)
        with standby.ended():
            connection.commit()
        assert PostgresStorage.bound_to(connection).get_job(new.id).id == new.id


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_while_its_commit_waits_for_a_standby_stays_cancelled(
    standby: Waiting, local: PostgresStorage
) -> None:
    new = NewJob(job_type="t")
    url = make_conninfo(standby.url, options="-c synchronous_commit=on")
    config = DatabaseConfig(url=url, pool_min_size=1, pool_max_size=1)
    async with await AsyncPostgresStorage.open(config) as store:
        for call in (store.create_job(new), store.create_jobs([NewJob(job_type="t")])):
            task = asyncio.create_task(call)
            while not standby.admin.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchall():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await store.get_job(new.id)).id == new.id  # the connection can be used again
    assert local.count_jobs() == 2


# --- repeated completions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["complete_jobs", "complete_and_claim"])
def test_a_completion_repeated_while_the_first_one_is_under_way_waits_for_it(
    goqueue_store: PostgresStorage, goqueue_database: str, method: str
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(2))
    held, *_ = goqueue_store.claim_jobs("default", "w")
    claim = ("default", "w") if method == "complete_and_claim" else ()
    with psycopg.connect(goqueue_database) as first, ThreadPoolExecutor(1) as thread:
        PostgresStorage.bound_to(first).complete_jobs([held])
        second = thread.submit(getattr(goqueue_store, method), [held], *claim)
        with psycopg.connect(goqueue_database, autocommit=True) as admin:
            deadline = time.monotonic() + 60
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
            while not admin.execute(waiting, ["%/* goqueue:complete_jobs */%"]).fetchall():
                assert time.monotonic() < deadline
        first.commit()
        claimed = second.result(60)
    assert len(claimed or ()) == (1 if method == "complete_and_claim" else 0)
    assert goqueue_store.get_job(held.id).status == JobStatus.COMPLETED


# --- lost replies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def wire(goqueue_database: str) -> Iterator[proxy.Proxy]:
    with proxy.running(goqueue_database) as running:
        yield running


def lost(wire: proxy.Proxy, query: str, call: Callable[[], Any]) -> Exception:
    """Return the error of the call if the reply to this query is lost; the query is committed."""
    wire.lose_reply(query.encode() if query == "COMMIT" else f"goqueue:{query} */".encode())
    with pytest.raises(StorageUnavailableError) as caught:
        call()
    assert wire.lost.is_set()
    return caught.value


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_lost_reply_names_the_query_and_its_jobs_and_the_pool_continues(
    wire: proxy.Proxy, goqueue_store: PostgresStorage, way: str
) -> None:
    new = NewJob(job_type="t")
    with opened(way, never_prepared(wire.url)) as store:

        def unknown(query: str, method: str, *arguments: Any, **values: Any) -> OutcomeUnknownError:
            error = lost(wire, query, lambda: store.call(method, *arguments, **values))
            assert isinstance(error, OutcomeUnknownError)
            assert isinstance(error.__cause__, psycopg.OperationalError)
            assert (error.operation, error.is_committed, error.transaction_id) == (query, False, None)
            return error

        assert unknown("create_job", "create_job", new).job_ids == (new.id,)
        assert store.call("create_job", new).id == new.id, "repeating it gives the same job"
        assert unknown("update_job", "update_job", new.id, JobUpdate(priority=1)).job_ids == (new.id,)
        error = unknown("claim_jobs", "claim_jobs", "default", "w1")
        assert (error.job_ids, error.worker_id) == ((), "w1")
        [held] = [job for job in goqueue_store.list_jobs().jobs if job.locked_by == error.worker_id]
        assert unknown("heartbeat_jobs", "heartbeat_jobs", [held]).job_ids == (held.id,)
        assert "held by 'w1'" in str(error)
        error = lost(wire, "COMMIT", lambda: store.call("complete_and_claim", [held], "default", "w1"))
        assert isinstance(error, OutcomeUnknownError)
        assert (error.operation, error.job_ids, error.worker_id) == ("complete_and_claim", (held.id,), "w1")
        assert store.call("complete_and_claim", [held], "default", "w1") == []
        assert unknown("prune_jobs", "prune_jobs", timedelta(0)).job_ids == ()
        assert goqueue_store.count_jobs() == 0


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_lost_reply_to_a_commit_has_the_transactions_id(wire: proxy.Proxy, way: str) -> None:
    jobs = [NewJob(job_type="t", idempotency_key=f"k{number}") for number in range(3)]
    with opened(way, never_prepared(wire.url)) as store:
        ids = [job.id for job in jobs]
        calls: dict[str, Any] = {"create_jobs": jobs, "delete_job": ids[0], "delete_jobs": ids[:2]}
        for method, argument in calls.items():
            error = lost(wire, "COMMIT", lambda method=method, argument=argument: store.call(method, argument))
            assert isinstance(error, OutcomeUnknownError)
            assert error.operation == method
            assert error.job_ids == tuple({"create_jobs": ids, "delete_job": ids[:1], "delete_jobs": ids[:2]}[method])
            assert error.transaction_id is not None
            assert "get_transaction_status" in str(error)
            assert store.call("get_transaction_status", error.transaction_id) == TransactionStatus.COMMITTED
        assert store.call("count_jobs") == 1


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_commit_that_never_arrived_differs_from_one_whose_reply_was_lost(wire: proxy.Proxy, way: str) -> None:
    with opened(way, never_prepared(wire.url)) as store:
        wire.lose_request(b"COMMIT")
        with pytest.raises(OutcomeUnknownError) as caught:
            store.call("create_jobs", [NewJob(job_type="t")])
        deadline = time.monotonic() + 60
        while (status := store.call("get_transaction_status", caught.value.transaction_id)) == "in progress":
            assert time.monotonic() < deadline
        assert status == TransactionStatus.ABORTED
        assert store.call("count_jobs") == 0


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_statement_that_was_certainly_not_committed_has_a_known_outcome(
    wire: proxy.Proxy, goqueue_store: PostgresStorage, way: str
) -> None:
    new = NewJob(job_type="t")
    with opened(way, never_prepared(wire.url)) as store:
        store.call("create_job", new)
        reads: list[tuple[str, str, Any]] = [
            ("get_job", "get_job", new.id),
            ("list_jobs", "list_jobs", None),
            ("next_job_at", "next_job_at", "default"),
            # A reply lost inside the transaction: its COMMIT is never sent.
            ("create_jobs", "create_jobs", [NewJob(job_type="t")]),
            ("delete_job", "delete_job", new.id),
        ]
        for query, method, argument in reads:
            error = lost(wire, query, lambda method=method, argument=argument: store.call(method, argument))
            assert type(error) is StorageUnavailableError, query
            assert error.can_retry
        assert goqueue_store.count_jobs() == 1


@pytest.mark.parametrize("way", ["bound", "async bound"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_on_a_callers_connection_the_outcome_is_unknown_in_autocommit_only(
    wire: proxy.Proxy, goqueue_store: PostgresStorage, way: str, autocommit: bool
) -> None:
    new = NewJob(job_type="t")
    with opened(way, never_prepared(wire.url), autocommit=autocommit) as store:
        error = lost(wire, "create_job", lambda: store.call("create_job", new))
        assert type(error) is (OutcomeUnknownError if autocommit else StorageUnavailableError)
        assert goqueue_store.count_jobs() == (1 if autocommit else 0)
        # The connection is closed now: nothing is sent.
        with pytest.raises(StorageUnavailableError) as caught:
            store.call("create_job", new)
        assert type(caught.value) is StorageUnavailableError


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_lost_while_idle_sends_nothing(
    wire: proxy.Proxy, goqueue_store: PostgresStorage, way: str
) -> None:
    with opened(way, never_prepared(wire.url)) as store:
        store.call("ping")
        wire.cut()
        if way.endswith("pool"):
            store.call("create_job", NewJob(job_type="t"))  # on another connection
            return
        with pytest.raises(StorageUnavailableError) as caught:
            store.call("create_job", NewJob(job_type="t"))
        assert type(caught.value) is StorageUnavailableError
        assert goqueue_store.count_jobs() == 0


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
@pytest.mark.parametrize("way", ["pool", "async bound"])
def test_an_error_of_a_pooler_that_has_lost_the_server_is_an_unknown_outcome(
    wire: proxy.Proxy, goqueue_store: PostgresStorage, way: str
) -> None:
    new = NewJob(job_type="t")
    settings = {"ignore_startup_parameters": "options", "server_tls_sslmode": "disable"}
    with (
        pgbouncer.running(wire.url, **settings) as through,
        opened(way, never_prepared(through(wire.url))) as store,
    ):
        error = lost(wire, "create_job", lambda: store.call("create_job", new))
    assert isinstance(error, OutcomeUnknownError), error
    assert isinstance(error.__cause__, psycopg.errors.ProtocolViolation)
    assert goqueue_store.get_job(new.id).id == new.id


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
def test_a_pooler_without_a_server_has_forwarded_nothing(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    settings = {"ignore_startup_parameters": "options", "query_wait_timeout": 3, "default_pool_size": 1}
    with pgbouncer.running(goqueue_database, **settings) as through:
        url = through(goqueue_database)
        with psycopg.connect(url) as other, PostgresStorage.open(never_prepared(url)) as store:
            store.ping()
            other.execute("SELECT 1")  # holds the only session
            with pytest.raises(StorageUnavailableError) as caught:
                store.create_job(NewJob(job_type="t"))
    assert type(caught.value) is StorageUnavailableError
    assert goqueue_store.count_jobs() == 0


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_statement_that_the_server_ends_is_known_to_be_rolled_back(
    goqueue_database: str, goqueue_connection: Any, how: str
) -> None:
    with PostgresStorage.open(goqueue_database) as store, psycopg.connect(goqueue_database) as blocker:
        PostgresStorage.bound_to(blocker).create_job(NewJob(job_type="t", idempotency_key="k"))
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(store.create_job, NewJob(job_type="t", idempotency_key="k"))
            waiting = f"SELECT {how}(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
            deadline = time.monotonic() + 60
            while not goqueue_connection.execute(waiting, ["%goqueue:create_job%"]).fetchall():
                assert time.monotonic() < deadline
            with pytest.raises(StorageUnavailableError) as caught:
                call.result(60)
        assert type(caught.value) is StorageUnavailableError
        blocker.rollback()
        assert store.count_jobs() == 0


def test_the_outcome_of_a_transaction_can_be_looked_up(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    with psycopg.connect(goqueue_database) as connection:

        def begun() -> str:
            row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert row is not None
            return str(row[0])

        one = begun()
        assert goqueue_store.get_transaction_status(one) == TransactionStatus.IN_PROGRESS
        connection.commit()
        assert goqueue_store.get_transaction_status(one) == TransactionStatus.COMMITTED
        other = begun()
        connection.rollback()
        assert goqueue_store.get_transaction_status(other) == TransactionStatus.ABORTED
    assert goqueue_store.get_transaction_status(str(int(other) + 10**6)) == TransactionStatus.UNKNOWN


# --- messages for every caller ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Storage, AsyncStorage, PostgresStorage, AsyncPostgresStorage])
def test_every_method_says_what_repeating_it_does(kind: type) -> None:
    methods = {name for name, _ in inspect.getmembers(Storage, inspect.isfunction) if not name.startswith("_")}
    assert {"retry_jobs", "complete_and_claim", "get_transaction_status"} <= methods
    for name in methods - {"close", "listen"}:
        doc = inspect.getdoc(getattr(kind, name)) or ""
        assert re.search(r"^Repeating: \S.*\.\Z", doc, re.MULTILINE | re.DOTALL), (
            f"{kind.__name__}.{name}: end its docstring with a paragraph `Repeating: ` "
            f"(in {kind.__module__.removesuffix('_async').replace('.', '/')}_async.py, then make catalogue)"
        )


def test_which_statements_change_rows_is_known() -> None:
    queries = load_queries()
    changing = {name for name in queries.available_queries if getattr(queries, name).sql.writes}
    assert changing >= {
        "create_job", "create_jobs", "create_missing_jobs", "update_job", "replace_pending_job", "cancel_jobs",
        "retry_jobs", "reschedule_jobs", "change_jobs", "delete_job", "delete_jobs", "delete_failures", "prune_jobs",
        "claim_jobs", "heartbeat_jobs", "complete_jobs", "fail_jobs", "release_jobs", "rescue_jobs",
    }  # fmt: skip
    assert not changing & {
        "get_job", "get_jobs", "get_job_by_idempotency_key", "list_jobs", "count_jobs", "find_duplicate_job",
        "find_duplicate_jobs", "next_job_at", "list_failures", "queue_stats", "list_workers", "list_job_types",
        "ping", "get_transaction_status",
    }  # fmt: skip
    locking = Rendered("SELECT /* goqueue:x */ 1 FROM goqueue.jobs AS j FOR NO KEY UPDATE SKIP LOCKED", ())
    assert not locking.writes
    assert Rendered("with d as (delete from goqueue.jobs returning id) select id from d", ()).writes
