"""Differences behind a pgbouncer that pools transactions. The contract's tests also run through one, as a parameter of
the `store` (tests/conftest.py), with each of a test's transactions in another session.
"""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from msgspec.structs import replace

from goqueue import (
    ConnectionRejectedError,
    DatabaseConfig,
    JobStatus,
    Lease,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    StorageError,
    StorageUnavailableError,
)
from tests import pgbouncer

if pgbouncer.PROGRAM is None:
    pytest.skip(pgbouncer.MISSING, allow_module_level=True)

SECOND = timedelta(seconds=1)
Through = Callable[[str], str]
LISTENERS = """
    SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
def url(through_pgbouncer: Through, goqueue_database: str) -> Iterator[str]:
    """The test's database through pgbouncer, where each transaction runs in the other of two sessions."""
    shared = through_pgbouncer(goqueue_database)
    with pgbouncer.sessions(shared, goqueue_database):
        yield shared


@pytest.fixture(scope="session")
def through_strict(goqueue_server: Any) -> Iterator[Through]:
    """Through a pgbouncer with its default configuration, which doesn't know our settings."""
    with pgbouncer.running(goqueue_server.url) as through:
        yield through


def test_each_transaction_runs_in_another_session(url: str) -> None:
    with PostgresStorage.open(url) as store:
        pids = []
        for _ in range(6):
            with store._connection() as connection:
                pids += connection.execute("SELECT pg_backend_pid()").fetchone() or ()
    assert pids[0] != pids[1]
    assert pids == pids[:2] * 3


def test_the_error_of_rejected_settings_says_what_to_do(through_strict: Through, goqueue_database: str) -> None:
    with pytest.raises(ConnectionRejectedError, match="unsupported startup parameter") as caught:
        PostgresStorage.open(through_strict(goqueue_database))
    assert "`ignore_startup_parameters = options` into pgbouncer.ini" in str(caught.value)
    assert "`?options=`" in str(caught.value)


def test_empty_options_in_the_url_send_none(
    through_strict: Through, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=8MB")
    with PostgresStorage.open(through_strict(goqueue_database) + " options=''") as store:
        assert store.create_job(NewJob(job_type="t")) == store.list_jobs().jobs[0]


def test_limits_that_it_drops_are_reported_until_the_server_sets_them(
    through_pgbouncer: Through, goqueue_connection: Any, goqueue_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = through_pgbouncer(goqueue_database)
    config = DatabaseConfig(url=url, slow_query_time=timedelta(0))  # a busy machine is no warning
    limits = {"statement_timeout": "30s", "lock_timeout": "200ms", "idle_in_transaction_session_timeout": "1min"}
    caplog.set_level(logging.WARNING, "goqueue")
    name = goqueue_connection.info.dbname
    with pgbouncer.sessions(url, goqueue_database):
        PostgresStorage.open(config).close()
        [record] = caplog.records
        assert ", ".join(limits) in record.getMessage()
        assert "ALTER ROLE ... SET" in record.getMessage()
        caplog.clear()
        # No warning if no limit is wanted.
        none = dict.fromkeys(("statement_timeout", "lock_timeout", "idle_in_transaction_timeout"), timedelta(0))
        PostgresStorage.open(replace(config, **none)).close()
    for setting, value in limits.items():
        goqueue_connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    with (
        pgbouncer.sessions(url, goqueue_database),
        PostgresStorage.open(config) as store,
        psycopg.connect(goqueue_database) as other,
    ):
        job_id = store.create_job(NewJob(job_type="t")).id
        other.execute("SELECT FROM goqueue.jobs FOR UPDATE")
        with pytest.raises(StorageUnavailableError, match="lock timeout"):
            store.cancel_jobs(job_id)
    assert caplog.records == []


def test_times_are_right_with_any_time_zone_of_the_server(
    through_pgbouncer: Through, goqueue_connection: Any, goqueue_database: str
) -> None:
    url = through_pgbouncer(goqueue_database)
    goqueue_connection.execute(f"ALTER DATABASE {goqueue_connection.info.dbname} SET TimeZone = 'America/New_York'")
    with (
        pgbouncer.sessions(url, goqueue_database),
        PostgresStorage.open(url) as store,
        PostgresStorage.open(goqueue_database) as direct,
    ):
        job = store.create_job(NewJob(job_type="t", delay=timedelta(days=200)))
        assert job == direct.get_job(job.id)
        [offset] = {job.created_at.utcoffset(), store.get_job(job.id).created_at.utcoffset()}
        assert offset in (timedelta(hours=-5), timedelta(hours=-4))


def test_a_callers_transaction_stays_in_one_session(url: str) -> None:
    with psycopg.connect(url, prepare_threshold=None) as connection, PostgresStorage.open(url) as store:
        bound = store.bound_to(connection)
        kept = bound.create_job(NewJob(job_type="t"))
        with pytest.raises(ZeroDivisionError):
            bound.create_jobs(NewJob(job_type="t", payload=1 // (3 - number)) for number in range(4))
        assert [job.id for job in bound.claim_jobs("default", "w1", 10)] == [kept.id]
        assert store.list_jobs().jobs == []
        connection.rollback()
        assert store.list_jobs().jobs == bound.list_jobs().jobs == []


def test_sessions_that_end_behind_it_are_replaced(url: str, goqueue_connection: Any) -> None:
    with PostgresStorage.open(url) as store:
        store.create_job(NewJob(job_type="t"))
        ended = goqueue_connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).rowcount
        assert ended == pgbouncer.POOL_SIZE
        store.create_job(NewJob(job_type="t"))
        assert store.count_jobs() == 2


class TestPreparedStatements:
    """psycopg numbers the statements of a connection. Clients that share a session share the numbers, in pgbouncer
    before 1.21 and in later ones that don't track prepared statements."""

    @pytest.fixture
    def shared(self, goqueue_server: Any, goqueue_database: str) -> Iterator[str]:
        settings = {"ignore_startup_parameters": "options"}
        with pgbouncer.running(goqueue_server.url, **settings) as through:
            yield through(goqueue_database)

    @staticmethod
    def swap(url: str, complete: Callable[..., None], release: Callable[..., None], jobs: list[Any]) -> None:
        """Settle the first and the third job in one session, and release the second one in the other."""
        with psycopg.connect(url) as first, psycopg.connect(url) as second:
            first.execute("SELECT")
            complete([jobs[0]])
            second.execute("SELECT")
            first.rollback()
            release([jobs[1]])
            complete([jobs[2]])

    @pytest.fixture
    def jobs(self, goqueue_store: PostgresStorage) -> list[Any]:
        goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(3))
        return goqueue_store.claim_jobs("default", "w1", 3)

    def test_another_clients_statement_can_be_run_in_place_of_ours(
        self, shared: str, jobs: list[Any], goqueue_store: PostgresStorage
    ) -> None:
        # The reason why none are prepared behind a pooler, unless requested.
        with (
            psycopg.connect(shared, autocommit=True, prepare_threshold=0) as one,
            psycopg.connect(shared, autocommit=True, prepare_threshold=0) as two,
        ):
            self.swap(
                shared,
                PostgresStorage.bound_to(one).heartbeat_jobs,
                PostgresStorage.bound_to(two).release_jobs,  # the same number of parameters
                jobs,
            )
        statuses = [goqueue_store.get_job(job.id).status for job in jobs]
        assert statuses == [JobStatus.RUNNING, JobStatus.PENDING, JobStatus.PENDING]

    @pytest.mark.parametrize("threshold", ["auto", None])
    def test_the_store_prepares_none(
        self, shared: str, jobs: list[Any], goqueue_store: PostgresStorage, threshold: Any
    ) -> None:
        config = DatabaseConfig(url=shared, prepare_threshold=threshold, pool_max_size=1)
        with PostgresStorage.open(config) as one, PostgresStorage.open(config) as two:
            for _ in range(7):  # often enough to be prepared in our own session
                for settle in (one.complete_jobs, two.release_jobs):
                    with pytest.raises(LeaseLostError):
                        settle([Lease(uuid4(), 1)])
            self.swap(shared, one.complete_jobs, two.release_jobs, jobs)
        statuses = [goqueue_store.get_job(job.id).status for job in jobs]
        assert statuses == [JobStatus.COMPLETED, JobStatus.PENDING, JobStatus.COMPLETED]

    def test_the_error_of_a_missing_statement_says_what_to_set(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
            store = PostgresStorage.bound_to(connection)
            # Prepared in one session, executed in the other.
            with pytest.raises(StorageError, match=r"prepared statement .*\(GOQUEUE_DATABASE_PREPARE_THRESHOLD=none"):
                store.ping()

    def test_those_of_our_own_session_are_prepared(self, goqueue_store: PostgresStorage) -> None:
        with goqueue_store._connection() as connection:
            assert connection.prepare_threshold == 1


class TestListening:
    def test_a_listener_of_a_shared_session_only_pauses(
        self, url: str, goqueue_connection: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "goqueue")
        with PostgresStorage.open(DatabaseConfig(url=url, slow_query_time=timedelta(0))) as store:
            caplog.clear()
            with store.listen("default") as listener:
                [record] = caplog.records
                assert "GOQUEUE_DATABASE_LISTEN_URL" in record.getMessage()
                # In a shared session, the lock would outlast the listener, and each new job would send a notification.
                assert goqueue_connection.execute(LISTENERS).fetchone() == (0,)
                store.create_job(NewJob(job_type="t"))
                for _ in range(2):
                    start = time.monotonic()
                    assert listener.wait(0.1 * SECOND) == frozenset()
                    assert time.monotonic() - start >= 0.1
            assert len(caplog.records) == 1

    def test_a_listener_bypasses_the_pooler_with_a_direct_url(self, url: str, goqueue_database: str) -> None:
        config = DatabaseConfig(url=url, listen_url=goqueue_database)
        with PostgresStorage.open(config) as store, store.listen("default") as listener:
            store.create_job(NewJob(job_type="t"))
            assert listener.wait(60 * SECOND) == {"default"}
