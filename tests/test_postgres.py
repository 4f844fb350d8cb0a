"""Aspects of PostgreSQL in the store: the caller's transactions, pools, outages, races, errors by name."""

import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from goqueue import (
    ConnectionRejectedError,
    DatabaseConfig,
    DuplicateJobError,
    InvalidJobError,
    JobFilter,
    JobNotFoundError,
    JobStateError,
    JobStatus,
    JobUpdate,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    SchemaError,
    StorageError,
    StorageUnavailableError,
    TransactionConflictError,
)
from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer
from tests.plans import kept_plans
from tests.standby import free_port

SECOND = timedelta(seconds=1)


def config(url: str, **settings: Any) -> DatabaseConfig:
    return DatabaseConfig(url=url, **settings)


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def read_as_they_lie(*connections: psycopg.Connection[Any]) -> None:
    """Make the rows be read in their order on disk."""
    for connection in connections:
        for scan in ("indexscan", "indexonlyscan", "bitmapscan"):
            connection.execute(f"SET enable_{scan} = off")


def until_waiting(url: str, query: str) -> None:
    """Wait until a session waits for a lock in the query."""
    with psycopg.connect(url, autocommit=True) as admin:
        wait_until(
            lambda: (
                admin.execute(
                    "SELECT FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s",
                    [f"%/* goqueue:{query} %"],  # a schema name can follow
                ).fetchone()
                is not None
            )
        )


@pytest.fixture
def goqueue_store(goqueue_database: str, goqueue_schema: str) -> Iterator[PostgresStorage]:
    """The plugin's store, which waits longer for a lock: on a stalled machine, a test is late to end the other side."""
    patient = config(goqueue_database, schema=goqueue_schema, lock_timeout=60 * SECOND)
    with PostgresStorage.open(patient) as store:
        yield store


class TestBoundToTheCallersTransaction:
    @pytest.fixture
    def connection(self, goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(goqueue_database, row_factory=dict_row) as connection:
            yield connection

    def test_its_jobs_are_committed_with_it(
        self, goqueue_store: PostgresStorage, connection: psycopg.Connection[Any]
    ) -> None:
        job = goqueue_store.bound_to(connection).create_job(NewJob(job_type="t"))
        with pytest.raises(JobNotFoundError):
            goqueue_store.get_job(job.id)
        connection.commit()
        assert goqueue_store.get_job(job.id) == job

    def test_its_jobs_are_rolled_back_with_it(
        self, goqueue_store: PostgresStorage, connection: psycopg.Connection[Any]
    ) -> None:
        kept = goqueue_store.create_job(NewJob(job_type="t"))
        bound = PostgresStorage.bound_to(connection)
        bound.create_jobs(NewJob(job_type="t") for _ in range(2500))
        list(bound.create_jobs_in_batches(NewJob(job_type="t") for _ in range(2500)))
        bound.update_job(kept.id, JobUpdate(priority=5))
        bound.delete_job(kept.id)
        assert bound.count_jobs() == 5000
        connection.rollback()
        assert goqueue_store.list_jobs().jobs == [kept]

    def test_it_never_commits_and_leaves_the_connection_open(self, connection: psycopg.Connection[Any]) -> None:
        with PostgresStorage.bound_to(connection) as bound:
            bound.create_jobs([NewJob(job_type="t")])
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS

    def test_rejections_leave_the_transaction_usable(self, connection: psycopg.Connection[Any]) -> None:
        bound = PostgresStorage.bound_to(connection)
        job = bound.create_job(NewJob(job_type="t", idempotency_key="k"))
        bound.update_job(job.id, JobUpdate(status=JobStatus.COMPLETED))
        other = bound.create_job(NewJob(job_type="t"))
        for error, call in (
            (DuplicateJobError, lambda: bound.create_job(NewJob(job_type="t", idempotency_key="k"))),
            (DuplicateJobError, lambda: bound.update_job(other.id, JobUpdate(idempotency_key="k"))),
            (JobNotFoundError, lambda: bound.get_job(uuid4())),
            (JobStateError, lambda: bound.update_job(job.id, JobUpdate(status=JobStatus.RUNNING))),
            (InvalidJobError, lambda: bound.create_job(NewJob(job_type="t", payload=float("nan")))),
        ):
            with pytest.raises(error):
                call()
        assert bound.count_jobs() == 2

    def test_takes_the_opened_stores_settings(self, goqueue_database: str, connection: Any) -> None:
        with PostgresStorage.open(config(goqueue_database, max_payload_bytes=10)) as store:
            assert store.bound_to(connection).config is store.config
            with pytest.raises(InvalidJobError, match="allows 10"):
                store.bound_to(connection).create_job(NewJob(job_type="t", payload="x" * 10))

    def test_a_serialization_failure_raises_transaction_conflict_error(
        self, goqueue_store: PostgresStorage, connection: psycopg.Connection[Any]
    ) -> None:
        job = goqueue_store.create_job(NewJob(job_type="t"))
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        bound = PostgresStorage.bound_to(connection)
        bound.get_job(job.id)
        goqueue_store.update_job(job.id, JobUpdate(priority=1))
        with pytest.raises(TransactionConflictError, match="run the whole transaction again"):
            bound.update_job(job.id, JobUpdate(priority=2))


class TestOpening:
    def test_a_store_opens_by_url_or_by_configuration(self, goqueue_database: str) -> None:
        for given in (goqueue_database, config(goqueue_database)):
            with PostgresStorage.open(given) as store:
                store.ping()

    def test_an_unreachable_server_is_reported(self) -> None:
        start = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="can't be reached") as caught:
            PostgresStorage.open(config("postgresql://app:secret@127.0.0.1:9/app", connect_timeout=SECOND))
        assert time.monotonic() - start < 30
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)

    def test_a_server_that_accepts_and_is_silent_fails_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app"
            start = time.monotonic()
            with pytest.raises(StorageUnavailableError):
                PostgresStorage.open(config(url, connect_timeout=2 * SECOND))
            assert time.monotonic() - start < 30

    def test_an_unknown_database_is_rejected(self, goqueue_database: str) -> None:
        with pytest.raises(ConnectionRejectedError, match='database "nope" does not exist'):
            PostgresStorage.open(make_conninfo(goqueue_database, dbname="nope"))

    def test_a_database_without_the_schema_is_rejected(self, goqueue_server: Any) -> None:
        with pytest.raises(SchemaError, match="run `goqueue migrate` \\(or `pgmigrate migrate`\\)"):
            PostgresStorage.open(str(goqueue_server.url))

    def test_the_settings_reach_the_session(self, goqueue_database: str) -> None:
        settings = {
            "statement_timeout": 7 * SECOND,
            "lock_timeout": 3 * SECOND,
            "idle_in_transaction_timeout": 11 * SECOND,
            "application_name": "billing",
        }
        with PostgresStorage.open(config(goqueue_database, **settings)) as store, store._connection() as connection:

            def shown(name: str) -> str:
                return str(connection.execute(f"SHOW {name}").fetchone()[0])

            assert shown("statement_timeout") == "7s"
            assert shown("lock_timeout") == "3s"
            assert shown("idle_in_transaction_session_timeout") == "11s"
            assert shown("application_name") == "billing"
            assert shown("TimeZone") == "UTC"
            assert shown("plan_cache_mode") == "force_generic_plan"
            assert [shown(name) for name in ("jit", "enable_seqscan", "enable_bitmapscan")] == ["off", "off", "on"]
            assert connection.autocommit
            assert connection.prepare_threshold == 1

    def test_a_server_that_vanished_is_given_up_soon_after_the_statements_time(self, goqueue_database: str) -> None:
        settings = {"statement_timeout": 7 * SECOND, "connect_timeout": 4 * SECOND}
        with PostgresStorage.open(config(goqueue_database, **settings)) as store, store._connection() as connection:
            watch = {"tcp_user_timeout": "11000", "keepalives_idle": "11", "keepalives_interval": "4"}
            given = connection.info.get_parameters()
            assert given == {**given, **watch, "keepalives_count": "2"}

    def test_the_options_of_the_url_take_precedence(self, goqueue_database: str) -> None:
        url = make_conninfo(goqueue_database, options="-c statement_timeout=1234", application_name="mine")
        with PostgresStorage.open(url) as store, store._connection() as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("1234ms",)
            assert connection.execute("SHOW lock_timeout").fetchone() == ("5s",)
            assert connection.execute("SHOW application_name").fetchone() == ("mine",)

    def test_plans_made_while_the_table_is_small_serve_it_when_it_has_grown(
        self, goqueue_database: str, goqueue_connection: Any
    ) -> None:
        with PostgresStorage.open(config(goqueue_database, prepare_threshold=0, pool_max_size=1)) as store:
            store.create_jobs(NewJob(job_type="t") for _ in range(60))
            goqueue_connection.execute("VACUUM ANALYZE goqueue.jobs")
            one, two, three, *_ = store.claim_jobs("default", "w", 10)
            store.complete_and_claim([one], "default", "w")
            store.heartbeat_jobs([two])
            store.complete_jobs([two])
            store.fail_jobs([(three, "no")])
            ids = [job.id for job in store.list_jobs().jobs]
            for change in (store.cancel_jobs, store.retry_jobs, store.get_jobs):
                change(ids)
            store.rescue_jobs()
            store.queue_stats()
            with store._connection() as connection:
                plans = kept_plans(connection)
                assert len(plans) > 8
                for statement, text in plans:
                    assert "Seq Scan on jobs" not in text, f"{statement[:60]}\n{text}"
                    # A bitmap scan marks no dead index entries, so all later claims would read them again.
                    assert "Bitmap Index Scan on jobs_claim_idx" not in text, f"{statement[:60]}\n{text}"

    @pytest.mark.parametrize(("threshold", "prepared"), [(None, 0), (0, 1)])
    def test_prepared_statements_can_be_turned_off(
        self, goqueue_database: str, threshold: int | None, prepared: int
    ) -> None:
        with PostgresStorage.open(config(goqueue_database, prepare_threshold=threshold, pool_max_size=1)) as store:
            for _ in range(12):
                store.get_jobs([uuid4()])
            with store._connection() as connection:
                found = connection.execute(
                    "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT /* goqueue:get_jobs */%'"
                ).fetchone()
            assert found == (prepared,)


class TestLimits:
    def test_no_more_connections_than_pool_max_size_are_opened(self, goqueue_database: str) -> None:
        limits = {"pool_min_size": 0, "pool_max_size": 2, "pool_timeout": 2 * SECOND}
        with PostgresStorage.open(config(goqueue_database, **limits)) as store:
            with store._connection(), store._connection():
                start = time.monotonic()
                with pytest.raises(StorageUnavailableError, match="POOL_MAX_SIZE"):
                    store.ping()
                assert 1.9 < time.monotonic() - start < 30
            store.ping()

    def test_a_statement_is_stopped_in_time(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(
                config(goqueue_database, statement_timeout=2 * SECOND, lock_timeout=0 * SECOND)
            ) as store,
            psycopg.connect(goqueue_database) as other,
        ):
            job = store.create_job(NewJob(job_type="t"))
            other.execute("SELECT FROM goqueue.jobs FOR UPDATE")
            with pytest.raises(StorageUnavailableError, match="STATEMENT_TIMEOUT"):
                store.delete_job(job.id)
            other.rollback()
            store.delete_job(job.id)

    def test_a_wait_for_a_lock_ends_in_time(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, lock_timeout=0.2 * SECOND)) as store,
            psycopg.connect(goqueue_database) as other,
        ):
            job = store.create_job(NewJob(job_type="t"))
            other.execute("SELECT FROM goqueue.jobs FOR UPDATE")
            with pytest.raises(StorageUnavailableError, match="LOCK_TIMEOUT"):
                store.update_job(job.id, JobUpdate(priority=1))
            assert store.get_job(job.id) == job

    def test_a_closed_store_rejects_calls(self, goqueue_database: str) -> None:
        store = PostgresStorage.open(goqueue_database)
        store.close()
        store.close()
        with pytest.raises(StorageError, match="closed") as caught:
            store.ping()
        assert not isinstance(caught.value, StorageUnavailableError), "trying again will not help"


class TestErrorsByName:
    @pytest.mark.parametrize(
        ("change", "error", "said"),
        [
            ("DROP TABLE goqueue.jobs CASCADE", SchemaError, "pgmigrate migrate"),
            ("ALTER TABLE goqueue.jobs DROP COLUMN priority CASCADE", SchemaError, "priority"),
            ("ALTER TABLE goqueue.jobs ADD CHECK (queue <> 'q')", InvalidJobError, "violates check constraint"),
            ("ALTER TABLE goqueue.jobs ADD UNIQUE (queue)", DuplicateJobError, "q"),
            (
                """
                CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END$$;
                CREATE TRIGGER no BEFORE INSERT ON goqueue.jobs EXECUTE FUNCTION no()
                """,
                StorageError,
                "not today",
            ),
        ],
    )
    def test_a_statement_that_the_server_rejects_has_a_named_error(
        self, goqueue_store: PostgresStorage, goqueue_connection: Any, change: str, error: Any, said: str
    ) -> None:
        if error is DuplicateJobError:
            goqueue_store.create_job(NewJob(job_type="t", queue="q"))
            other = goqueue_store.create_job(NewJob(job_type="t"))
        goqueue_connection.execute(change)
        with pytest.raises(error, match=said) as caught:  # noqa: PT012
            if error is DuplicateJobError:
                goqueue_store.update_job(other.id, JobUpdate(queue="q"))
            else:
                goqueue_store.create_job(NewJob(job_type="t", queue="q"))
        assert isinstance(caught.value.__cause__, psycopg.Error)

    def test_a_read_only_database_is_named(self, goqueue_database: str) -> None:
        url = make_conninfo(goqueue_database, options="-c default_transaction_read_only=on")
        with PostgresStorage.open(url) as store:
            assert store.list_jobs().jobs == []
            with pytest.raises(
                StorageUnavailableError, match=r"read-only transaction.*target_session_attrs=read-write"
            ):
                store.create_job(NewJob(job_type="t"))

    def test_a_role_without_grants_is_named(self, goqueue_database: str, goqueue_connection: Any) -> None:
        role = f"goqueue_test_{uuid4().hex[:8]}"
        goqueue_connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
        try:
            with pytest.raises(SchemaError, match=r"permission denied.*grant"):
                PostgresStorage.open(make_conninfo(goqueue_database, user=role, password="p"))
        finally:
            goqueue_connection.execute(f"DROP ROLE {role}")

    def test_a_cached_plan_that_no_longer_fits_fails_once(self, goqueue_database: str, goqueue_connection: Any) -> None:
        with PostgresStorage.open(config(goqueue_database, prepare_threshold=0, pool_max_size=1)) as store:
            job = store.create_job(NewJob(job_type="t"))
            for _ in range(12):
                store.get_job(job.id)
            goqueue_connection.execute("ALTER TABLE goqueue.jobs ALTER COLUMN last_error TYPE varchar(100)")
            with pytest.raises(StorageUnavailableError, match=r"cached plan.*call again"):
                store.get_job(job.id)
            assert store.get_job(job.id) == job

    def test_a_stale_plan_is_reported_once_for_all_connections_of_the_pool(
        self, goqueue_database: str, goqueue_connection: Any
    ) -> None:
        with PostgresStorage.open(config(goqueue_database, prepare_threshold=0, pool_min_size=2)) as store:
            jobs = [store.create_job(NewJob(job_type="t")) for _ in range(4)]
            for job in jobs:
                with store._connection():
                    store.get_job(job.id)
            goqueue_connection.execute("ALTER TABLE goqueue.jobs ALTER COLUMN max_attempts TYPE bigint")
            errors = 0
            for job in jobs * 3:
                try:
                    assert store.get_job(job.id) == job
                except StorageUnavailableError:
                    errors += 1
            assert errors == 1

    def test_a_stale_plan_on_a_callers_connection_has_advice(
        self, goqueue_database: str, goqueue_connection: Any
    ) -> None:
        with psycopg.connect(goqueue_database, autocommit=True, prepare_threshold=0) as connection:
            store = PostgresStorage.bound_to(connection)
            job = store.create_job(NewJob(job_type="t"))
            store.get_job(job.id)
            goqueue_connection.execute("ALTER TABLE goqueue.jobs ALTER COLUMN last_error TYPE varchar(100)")
            with pytest.raises(StorageUnavailableError, match="DEALLOCATE ALL"):
                store.get_job(job.id)
            connection.execute("DEALLOCATE ALL")
            assert store.get_job(job.id) == job


class TestOutage:
    @pytest.fixture
    def server(self, tmp_path: Path) -> EmbeddedServer:
        # By TCP, because the socket's folder changes with a restart.
        settings = {"listen_addresses": "127.0.0.1", "port": free_port()}
        return EmbeddedServer(tmp_path / "data", settings=settings, durable=False)

    def test_the_store_recovers_by_itself_after_an_outage(
        self, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL, "psycopg.pool")
        server.start()
        migrate(server.url())
        url = f"postgresql://postgres@127.0.0.1:{server._settings['port']}/postgres"
        settings = config(url, pool_min_size=3, pool_max_size=4, pool_timeout=3 * SECOND)
        with ExitStack() as at_end, PostgresStorage.open(settings) as store:
            at_end.callback(server.stop)
            with ThreadPoolExecutor(4) as threads:
                jobs = list(threads.map(lambda _: store.create_job(NewJob(job_type="t")), range(50)))
            server.stop()
            for _ in range(2):
                start = time.monotonic()
                with pytest.raises(StorageUnavailableError):
                    store.get_job(jobs[0].id)
                assert time.monotonic() - start < 9
            server.start()
            # The first call after the server's return works without a restart of the program.
            assert store.get_job(jobs[0].id) == jobs[0]
            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(lambda job: store.get_job(job.id), jobs)) == jobs


class TestLostConnections:
    @staticmethod
    def lose(admin: psycopg.Connection[Any]) -> None:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    @staticmethod
    def lose_the_one_that_waits(admin: psycopg.Connection[Any], query: str) -> None:
        """End the session that waits for a lock in the query."""
        wait_until(
            lambda: (
                admin.execute(
                    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s",
                    [f"%/* goqueue:{query} %"],  # a schema name can follow
                ).fetchone()
                == (True,)
            )
        )

    def test_idle_ones_are_replaced_without_an_error(self, goqueue_database: str, goqueue_connection: Any) -> None:
        with PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store:
            for _ in range(3):
                self.lose(goqueue_connection)
                store.ping()

    def test_one_lost_in_the_middle_of_create_adds_no_second_job(
        self, goqueue_database: str, goqueue_connection: Any
    ) -> None:
        with PostgresStorage.open(goqueue_database) as store, psycopg.connect(goqueue_database) as blocker:
            # create_job waits for the key that the blocker holds; then its connection is lost.
            PostgresStorage.bound_to(blocker).create_job(NewJob(job_type="t", idempotency_key="k"))
            new = NewJob(job_type="t", idempotency_key="k")
            with ThreadPoolExecutor(1) as thread:
                call = thread.submit(store.create_job, new)
                self.lose_the_one_that_waits(goqueue_connection, "create_job")
                with pytest.raises(StorageUnavailableError):
                    call.result(60)
            blocker.rollback()
            job = store.create_job(new)
            assert store.create_job(new) == job
            assert store.list_jobs().jobs == [job]

    def test_one_lost_after_the_commit_is_no_error_the_second_time(self, goqueue_store: PostgresStorage) -> None:
        new = NewJob(job_type="t", idempotency_key="k", payload={"a": 1})
        goqueue_store.create_job(new)  # assume that its answer was lost
        goqueue_store.update_job(new.id, JobUpdate(status=JobStatus.RUNNING))  # and a worker claimed the job
        assert goqueue_store.create_job(new).status == JobStatus.RUNNING
        assert goqueue_store.create_jobs([new]) == [(new.id, False)]

    def test_many_at_once_are_all_or_none(self, goqueue_database: str, goqueue_connection: Any) -> None:
        jobs = [NewJob(job_type="t", idempotency_key="k" if number == 2200 else None) for number in range(2500)]
        with PostgresStorage.open(goqueue_database) as store, psycopg.connect(goqueue_database) as blocker:
            # The third batch waits for the key that the blocker holds; then its connection is lost.
            PostgresStorage.bound_to(blocker).create_job(NewJob(job_type="t", idempotency_key="k"))
            with ThreadPoolExecutor(1) as thread:
                call = thread.submit(store.create_jobs, jobs)
                self.lose_the_one_that_waits(goqueue_connection, "create_missing_jobs")
                with pytest.raises(StorageUnavailableError):
                    call.result(60)
            blocker.rollback()
            assert store.count_jobs() == 0
            assert len(store.create_jobs(jobs)) == 2500

    def test_an_error_of_the_jobs_source_is_raised_unchanged(self, goqueue_store: PostgresStorage) -> None:
        def jobs() -> Iterator[NewJob]:
            yield NewJob(job_type="t")
            raise psycopg.OperationalError("of the caller's other database")

        with pytest.raises(psycopg.OperationalError, match="other database"):
            goqueue_store.create_jobs(jobs())
        assert goqueue_store.count_jobs() == 0

    def test_a_killed_process_leaves_all_or_none(self, goqueue_database: str, goqueue_store: PostgresStorage) -> None:
        program = """
            import sys
            from goqueue import NewJob, PostgresStorage
            def jobs():
                for number in range(10**9):
                    if number == 3500:
                        print("under way", flush=True)
                    yield NewJob(job_type="t")
            PostgresStorage.open(sys.argv[1]).create_jobs(jobs())
        """
        command = [sys.executable, "-c", textwrap.dedent(program), goqueue_database]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "under way\n"
            process.kill()
        assert goqueue_store.count_jobs() == 0


class TestRaces:
    def test_one_key_from_many_threads_makes_one_job(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=8, pool_max_size=8)) as store,
            ThreadPoolExecutor(8) as threads,
        ):
            barrier = threading.Barrier(8)

            def create(number: int) -> tuple[Any, bool]:
                barrier.wait()
                job, created = store.get_or_create_job(NewJob(job_type="t", idempotency_key=f"k{number // 8}"))
                return job.id, created

            results = list(threads.map(create, range(8 * 40)))
            for turn in range(40):
                of_turn = results[turn * 8 : turn * 8 + 8]
                assert len({job_id for job_id, _ in of_turn}) == 1
                assert sum(created for _, created in of_turn) == 1

    def test_bulks_that_overlap_make_each_job_once(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store,
            ThreadPoolExecutor(4) as threads,
        ):

            def create(turn: int) -> list[tuple[Any, bool]]:
                keys = range(600)
                return store.create_jobs(NewJob(job_type="t", idempotency_key=f"k{key}") for key in keys)

            results = list(threads.map(create, range(4)))
            for of_key in zip(*results, strict=True):
                assert len({job_id for job_id, _ in of_key}) == 1
                assert sum(created for _, created in of_key) == 1
            assert store.count_jobs() == 600

    def test_bulks_in_opposite_orders_wait_for_each_other_without_a_deadlock(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(
                config(goqueue_database, pool_min_size=2, batch_size=100, lock_timeout=60 * SECOND)
            ) as store,
            ThreadPoolExecutor(2) as threads,
        ):

            def create(turn: int, step: int) -> list[tuple[Any, bool]]:
                keys = [f"{turn}-{key}" for key in range(2000)][::step]
                return store.create_jobs([NewJob(job_type="t", idempotency_key=key) for key in keys])[::step]

            for turn in range(3):
                upwards, downwards = threads.map(create, (turn, turn), (1, -1))
                assert [job_id for job_id, _ in upwards] == [job_id for job_id, _ in downwards]
                assert all(one != other for (_, one), (_, other) in zip(upwards, downwards, strict=True))

    @pytest.mark.parametrize("method", ["delete_job", "delete_jobs"])
    def test_a_failure_recorded_while_its_job_is_deleted_is_deleted_too(
        self, method: str, goqueue_store: PostgresStorage, goqueue_database: str
    ) -> None:
        goqueue_store.create_job(NewJob(job_type="t"))
        [job] = goqueue_store.claim_jobs("default", "w")
        with psycopg.connect(goqueue_database) as connection, ThreadPoolExecutor(1) as thread:
            goqueue_store.bound_to(connection).fail_job(job, "no")
            deleting = thread.submit(getattr(goqueue_store, method), job.id)
            until_waiting(goqueue_database, method)
            connection.commit()
            deleting.result(60)
        assert goqueue_store.list_failures(job.id) == []

    @pytest.mark.parametrize("method", ["cancel_jobs", "retry_jobs", "reschedule_jobs", "change_jobs", "delete_jobs"])
    def test_what_operators_change_is_locked_in_the_order_of_the_ids(
        self, goqueue_store: PostgresStorage, goqueue_database: str, method: str
    ) -> None:
        low, high = sorted(uuid4() for _ in range(2))
        goqueue_store.create_jobs([NewJob(job_type="t", id=high), NewJob(job_type="t", id=low)])
        if method == "retry_jobs":
            goqueue_store.cancel_jobs([low, high])
        values: dict[str, Any] = {"reschedule_jobs": {"delay": timedelta(hours=1)}, "change_jobs": {"priority": 1}}
        values = values.get(method, {})
        with (
            psycopg.connect(goqueue_database) as connection,
            psycopg.connect(goqueue_database, autocommit=True) as other,
            ThreadPoolExecutor(1) as thread,
        ):
            read_as_they_lie(connection, other)  # high, low
            mine = getattr(PostgresStorage.bound_to(connection), method)
            theirs = getattr(PostgresStorage.bound_to(other), method)
            assert mine(low, **values) == 1
            both = thread.submit(theirs, [low, high], **values)
            until_waiting(goqueue_database, method)
            assert mine(high, **values) == 1
            connection.commit()
            assert both.result(60) == (2 if values else 0)

    @pytest.mark.parametrize(
        "method", ["heartbeat_jobs", "complete_jobs", "complete_and_claim", "fail_jobs", "release_jobs"]
    )
    def test_what_holders_change_is_locked_in_the_order_of_the_ids(
        self, goqueue_store: PostgresStorage, goqueue_database: str, method: str
    ) -> None:
        low, high = sorted(uuid4() for _ in range(2))
        goqueue_store.create_jobs([NewJob(job_type="t", id=high), NewJob(job_type="t", id=low)])
        leases = {job.id: job for job in goqueue_store.claim_jobs("default", "w", limit=2)}
        values = ["none", "w"] if method == "complete_and_claim" else []
        with (
            psycopg.connect(goqueue_database) as connection,
            psycopg.connect(goqueue_database, autocommit=True) as other,
            ThreadPoolExecutor(1) as thread,
        ):

            def settle(own: psycopg.Connection[Any], *ids: UUID) -> None:
                held = [leases[job_id] for job_id in ids]
                given = [(job, "e") for job in held] if method == "fail_jobs" else held
                getattr(PostgresStorage.bound_to(own), method)(given, *values)

            read_as_they_lie(connection, other)  # high, low
            settle(connection, low)
            both = thread.submit(settle, other, low, high)
            until_waiting(goqueue_database, "complete_jobs" if values else method)
            settle(connection, high)
            connection.commit()
            with suppress(LeaseLostError):
                both.result(60)

    def test_a_key_that_is_deleted_repeatedly_is_always_obtained(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store,
            ThreadPoolExecutor(4) as threads,
        ):

            def create_and_delete(_: int) -> None:
                job, _created = store.get_or_create_job(NewJob(job_type="t", idempotency_key="k"))
                [(job_id, _created)] = store.create_jobs([NewJob(job_type="t", idempotency_key="k")])
                for victim in {job.id, job_id}:
                    with suppress(JobNotFoundError):
                        store.delete_job(victim)

            list(threads.map(create_and_delete, range(200)))
            assert store.count_jobs() <= 4

    def test_concurrent_updates_are_all_kept(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store,
            ThreadPoolExecutor(4) as threads,
        ):
            job = store.create_job(NewJob(job_type="t"))
            changes = [JobUpdate(priority=7), JobUpdate(queue="q"), JobUpdate(last_error="e"), JobUpdate(payload=[1])]
            for _ in range(50):
                store.update_job(job.id, JobUpdate(priority=0, queue="default", last_error=None, payload={}))
                list(threads.map(lambda change: store.update_job(job.id, change), changes))
                after = store.get_job(job.id)
                assert (after.priority, after.queue, after.last_error, after.payload) == (7, "q", "e", [1])

    def test_only_one_of_two_opposite_moves_wins(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store,
            ThreadPoolExecutor(4) as threads,
        ):

            def finish(status: JobStatus) -> bool:
                try:
                    store.update_job(job.id, JobUpdate(status=status))
                except JobStateError:
                    return False
                return True

            for _ in range(50):
                job = store.create_job(NewJob(job_type="t"))
                ends = [JobStatus.COMPLETED, JobStatus.DEAD, JobStatus.CANCELLED]
                assert sum(threads.map(finish, ends)) == 1

    def test_keys_taken_concurrently_by_updates_are_rejected_by_name(self, goqueue_database: str) -> None:
        with (
            PostgresStorage.open(config(goqueue_database, pool_min_size=4)) as store,
            ThreadPoolExecutor(4) as threads,
        ):
            ids = [job_id for job_id, _ in store.create_jobs(NewJob(job_type="t") for _ in range(4))]

            def take(job_id: Any) -> bool:
                try:
                    store.update_job(job_id, JobUpdate(idempotency_key=key))
                except DuplicateJobError:
                    return False
                return True

            for turn in range(50):
                key = f"k{turn}"
                assert sum(threads.map(take, ids)) == 1


def test_no_dead_row_is_left_by_a_duplicate(goqueue_store: PostgresStorage, goqueue_connection: Any) -> None:
    goqueue_store.create_job(NewJob(job_type="t", idempotency_key="k"))
    for _ in range(50):
        goqueue_store.get_or_create_job(NewJob(job_type="t", idempotency_key="k"))
        goqueue_store.create_jobs([NewJob(job_type="t", idempotency_key="k")])
    goqueue_connection.execute("VACUUM goqueue.jobs")
    # A page holds about forty rows: a hundred dead ones would have taken more.
    assert goqueue_connection.execute("SELECT pg_relation_size('goqueue.jobs')").fetchone() == (8192,)


def test_statements_carry_their_name_to_the_server(goqueue_database: str, goqueue_connection: Any) -> None:
    with PostgresStorage.open(config(goqueue_database, pool_max_size=1)) as store:
        store.count_jobs(JobFilter(queue="q"))
        queries = (
            "SELECT query FROM pg_stat_activity WHERE application_name = 'goqueue' AND datname = current_database()"
        )
        # The server can still be ending the session with which the pool was opened.
        wait_until(lambda: len(goqueue_connection.execute(queries).fetchall()) == 1)
        [(query,)] = goqueue_connection.execute(queries).fetchall()
    assert query.startswith("WITH /* goqueue:count_jobs */ counted")
