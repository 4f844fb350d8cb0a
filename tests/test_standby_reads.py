"""Lists, counts and statistics read on a standby: what can be old, what never is, and a standby that is away."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    Job,
    JobFilter,
    JobNotFoundError,
    JobStatus,
    NewJob,
    PostgresStorage,
    SchemaError,
    StorageError,
    StorageUnavailableError,
)
from goqueue.postgres.pool import open_pool
from goqueue.postgres.translate import LISTEN_URL, READ_URL, URL, naming, translate
from goqueue.workbench import standby as standby_check
from goqueue.workbench.findings import Check, Level
from goqueue.workbench.standby import check_reads
from tests import proxy
from tests.commands import Commands
from tests.standby import Pair, pair, until
from tests.ways import WAYS, opened
from tests.workers import KINDS, Workers

#: The methods that read on the standby, with the value that shows the one job of queue q.
LISTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "list_jobs": (lambda store, **how: len(store.call("list_jobs", **how).jobs), 1),
    "count_jobs": (lambda store, **how: int(store.call("count_jobs", **how)), 1),
    "queue_stats": (lambda store, **how: [one.queue for one in store.call("queue_stats", **how)], ["q"]),
    "list_workers": (lambda store, **how: [one.worker_id for one in store.call("list_workers", **how)], ["w"]),
    "list_job_types": (lambda store, **how: store.call("list_job_types", **how), ["t"]),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("pair")) as both:
        yield both


@pytest.fixture
def config(servers: Pair) -> DatabaseConfig:
    """The primary, without jobs, and the standby for reads."""
    with psycopg.connect(servers.primary.url(), autocommit=True) as admin:
        admin.execute("TRUNCATE goqueue.jobs CASCADE")
    servers.until_replayed()
    return DatabaseConfig(url=servers.primary.url(), read_url=servers.standby.url())


@contextmanager
def stale(servers: Pair) -> Iterator[None]:
    """Stop the replay on the standby: it shows what it has now."""
    servers.until_replayed()
    with psycopg.connect(servers.standby.url(), autocommit=True) as standby:
        standby.execute("SELECT pg_wal_replay_pause()")
        until(lambda: standby.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() == ("paused",))
        try:
            yield
        finally:
            standby.execute("SELECT pg_wal_replay_resume()")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LISTS)
def test_lists_and_counts_are_read_on_the_standby_and_fresh_ones_on_the_primary(
    servers: Pair, config: DatabaseConfig, way: str, name: str
) -> None:
    read, one_job = LISTS[name]
    with opened(way, config) as store:
        nothing = read(store, fresh=False)
        with stale(servers):
            store.call("create_job", NewJob(job_type="t", queue="q"))
            store.call("claim_jobs", "q", "w")
            assert read(store, fresh=True) == one_job
            # A store that is bound to a connection reads in the caller's transaction.
            assert read(store, fresh=False) == (one_job if "bound" in way else nothing)
        servers.until_replayed()
        assert read(store, fresh=False) == one_job


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_job_is_read_on_the_standby_only_on_request(servers: Pair, config: DatabaseConfig, way: str) -> None:
    with opened(way, config) as store, stale(servers):
        job = store.call("create_job", NewJob(job_type="t", idempotency_key="k"))
        [held] = store.call("claim_jobs", "default", "w")
        store.call("fail_job", held, "no")
        assert store.call("get_job", job.id).attempts == 1
        assert store.call("get_job_by_idempotency_key", "k").id == job.id
        assert len(store.call("get_jobs", [job.id])) == len(store.call("list_failures", job.id)) == 1
        for method, value in (("get_job", job.id), ("get_job_by_idempotency_key", "k")):
            with pytest.raises(JobNotFoundError):
                store.call(method, value, fresh=False)
        assert store.call("get_jobs", [job.id], fresh=False) == store.call("list_failures", job.id, fresh=False) == []


def test_bulk_changes_by_filter_see_the_newest_jobs(servers: Pair, config: DatabaseConfig) -> None:
    with PostgresStorage.open(config) as store, stale(servers):
        first, second = (store.create_job(NewJob(job_type="t", queue="q")).id for _ in range(2))
        assert store.cancel_jobs(JobFilter(queue="q")) == 2
        assert store.list_jobs().jobs == []
        assert store.delete_jobs(JobFilter(status="cancelled")) == 2
        assert store.get_jobs([first, second]) == []


def test_a_store_works_without_its_standby_and_reads_there_once_it_is_back(
    servers: Pair, config: DatabaseConfig
) -> None:
    with proxy.running(servers.standby.url()) as between:
        between.refuse()
        options = {"read_url": between.url, "pool_timeout": timedelta(seconds=1)}
        with PostgresStorage.open(DatabaseConfig(url=config.url, **options)) as store:
            job = store.create_job(NewJob(job_type="t"))
            with pytest.raises(StorageUnavailableError):
                store.list_jobs()
            assert store.list_jobs(fresh=True).jobs == [store.get_job(job.id)]
            between.accept()
            servers.until_replayed()
            until(lambda: count_of(store) == 1)
            assert [one.id for one in store.list_jobs().jobs] == [job.id]
            between.refuse()
            with pytest.raises(StorageUnavailableError):
                store.count_jobs()
            between.accept()
            until(lambda: count_of(store) == 1)


def test_every_error_of_the_standby_names_its_setting(goqueue_database: str, caplog: pytest.LogCaptureFixture) -> None:
    with proxy.running(goqueue_database) as between:
        options = {"read_url": between.url, "pool_timeout": timedelta(seconds=1)}
        with PostgresStorage.open(DatabaseConfig(url=goqueue_database, **options)) as store:
            assert store.count_jobs() == 0
            between.refuse()
            for _ in range(2):
                with pytest.raises(StorageUnavailableError, match=r"^the standby \(GOQUEUE_DATABASE_READ_URL\): "):
                    store.list_jobs()
            assert store.count_jobs(fresh=True) == 0
    assert "'goqueue (read_url)'" in caplog.text
    assert "'goqueue'" not in caplog.text
    other = make_conninfo(goqueue_database, dbname="postgres")
    with (
        PostgresStorage.open(DatabaseConfig(url=goqueue_database, read_url=other)) as store,
        pytest.raises(SchemaError, match=r"^the standby \(GOQUEUE_DATABASE_READ_URL\): .*may be another database"),
    ):
        store.list_jobs()


def test_advice_for_another_url_names_that_setting() -> None:
    unknown = psycopg.OperationalError(f"failed to resolve host 'h': [Errno {socket.EAI_NONAME}] unknown")
    rejected = psycopg.errors.InvalidPassword("password authentication failed")
    for error in (unknown, rejected):
        for variable in (READ_URL, LISTEN_URL):
            said = str(naming(translate(error), variable))
            assert said.count(variable) == 2
            assert URL not in said
        assert str(naming(translate(error), URL)) == str(translate(error))


def test_an_error_of_the_listener_names_its_setting(goqueue_database: str) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/postgres"
    said = r"^the listener's connection \(GOQUEUE_DATABASE_LISTEN_URL\): "
    with (
        PostgresStorage.open(DatabaseConfig(url=goqueue_database, listen_url=nowhere)) as store,
        pytest.raises(StorageUnavailableError, match=said),
        store.listen("q"),
    ):
        pass


def test_the_standby_answers_while_the_primary_is_away(servers: Pair, config: DatabaseConfig) -> None:
    with PostgresStorage.open(config.url) as store:
        store.create_job(NewJob(job_type="t"))
    servers.until_replayed()
    with proxy.running(config.url) as between:
        away = DatabaseConfig(url=between.url, read_url=config.read_url, pool_timeout=timedelta(seconds=1))
        with PostgresStorage.open(away) as store:
            between.refuse()
            assert store.count_jobs() == len(store.list_jobs().jobs) == 1
            with pytest.raises(StorageUnavailableError):
                store.count_jobs(fresh=True)


def count_of(store: PostgresStorage) -> int | None:
    try:
        return int(store.count_jobs())
    except StorageUnavailableError:
        return None


def test_the_first_reads_of_many_threads_open_one_pool(
    servers: Pair, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_for = []

    def counting(given: DatabaseConfig, queries: Any) -> Any:
        opened_for.append(given.read_url)
        return open_pool(given, queries)

    monkeypatch.setattr("goqueue.postgres.store.open_pool", counting)
    with PostgresStorage.open(config) as store, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: int(store.count_jobs()), range(64))) == {0}
        assert len(opened_for) == 2
    with psycopg.connect(servers.standby.url(), autocommit=True) as standby:
        ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'goqueue'"
        until(lambda: standby.execute(ours).fetchone() == (0,))


def test_calls_that_wait_for_a_standby_that_is_away_share_one_attempt(
    config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def failing(given: DatabaseConfig, queries: Any) -> Any:
        if given.read_url:
            return open_pool(given, queries)
        attempts.append(time.sleep(0.5))
        return open_pool(given, queries)

    monkeypatch.setattr("goqueue.postgres.store.open_pool", failing)
    away = DatabaseConfig(url=config.url, read_url="postgresql://postgres@127.0.0.1:1/postgres")

    def error_of(store: PostgresStorage) -> StorageUnavailableError:
        with pytest.raises(StorageUnavailableError) as caught:
            store.count_jobs()
        return caught.value

    with PostgresStorage.open(away) as store, ThreadPoolExecutor(8) as threads:
        errors = list(threads.map(error_of, [store] * 8))
        assert len(attempts) < 8
        assert all("the standby (GOQUEUE_DATABASE_READ_URL)" in str(error) for error in errors)
        with pytest.raises(StorageUnavailableError):
            store.count_jobs()


@pytest.mark.parametrize("reads_before", [True, False])
def test_a_closed_store_reads_nowhere(config: DatabaseConfig, reads_before: bool) -> None:
    with PostgresStorage.open(config) as store:
        if reads_before:
            store.count_jobs()
    with pytest.raises(StorageError, match="the store is closed"):
        store.count_jobs()


@pytest.mark.parametrize("reads_before", [True, False])
def test_a_store_of_another_event_loop_reads_nowhere(config: DatabaseConfig, reads_before: bool) -> None:
    async def opened_here() -> AsyncPostgresStorage:
        store = await AsyncPostgresStorage.open(config)
        if reads_before:
            await store.count_jobs()
        return store

    with asyncio.Runner() as first, asyncio.Runner() as second:
        store = first.run(opened_here())
        with pytest.raises(StorageError, match="another event loop"):
            second.run(store.count_jobs())
        assert first.run(store.count_jobs()) == 0
        first.run(store.close())


def test_a_store_whose_close_is_cancelled_closes_the_standby_s_pool(config: DatabaseConfig) -> None:
    async def close_and_give_up() -> Any:
        store = await AsyncPostgresStorage.open(config)
        await store.count_jobs()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
        assert store._reader is not None
        return store._reader._pool

    assert asyncio.run(close_and_give_up()).closed


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_finds_the_jobs_of_a_lost_claim_while_the_standby_is_behind(
    servers: Pair, config: DatabaseConfig, kind: str
) -> None:
    workers = Workers(kind, config.url)

    async def succeed(job: Job) -> None:
        pass

    with PostgresStorage.open(config.url) as store, stale(servers), proxy.running(servers.primary.url()) as between:
        job = store.create_job(NewJob(job_type="t"))
        between.lose_reply(b"claim_jobs")
        url = DatabaseConfig(url=between.url, read_url=servers.standby.url(), prepare_threshold=None)
        with workers.running({"t": succeed}, url=url):
            until(lambda: store.get_job(job.id).status == JobStatus.COMPLETED)
        assert store.get_job(job.id).attempts == 1


# --- `goqueue check` ------------------------------------------------------------------------------------------------


def checked(url: str, read_url: str) -> Check:
    with psycopg.connect(url, autocommit=True) as primary, psycopg.connect(read_url, autocommit=True) as connection:
        return check_reads(connection, primary)


def test_a_standby_that_shows_all_it_has_received_is_no_finding(servers: Pair, config: DatabaseConfig) -> None:
    # The server can be writing WAL of its own.
    ok = Check("reads", Level.OK, "the standby of read_url is 0s behind")
    until(lambda: checked(config.url, config.read_url) == ok)


def test_a_standby_that_is_far_behind_is_a_warning(
    servers: Pair, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_check, "_OLD", timedelta(milliseconds=1))
    with stale(servers), PostgresStorage.open(config.url) as store:
        store.create_job(NewJob(job_type="t"))
        until(lambda: checked(config.url, config.read_url).level == Level.WARNING)
        [found] = checked(config.url, config.read_url).findings
    assert "1ms behind" in found.found


def test_reading_on_a_primary_is_a_note(config: DatabaseConfig) -> None:
    assert checked(config.url, config.url).level == Level.NOTE


def test_another_cluster_is_a_failure(config: DatabaseConfig, goqueue_database: str) -> None:
    for url, read_url in ((config.url, goqueue_database), (goqueue_database, config.read_url)):
        [found] = checked(url, read_url).findings
        assert (found.level, found.found) == (Level.FAILED, "read_url names another cluster than url")


def test_another_database_of_the_standby_is_a_failure(servers: Pair, config: DatabaseConfig) -> None:
    with psycopg.connect(config.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE other")
    try:
        servers.until_replayed()
        other = psycopg.conninfo.make_conninfo(config.read_url, dbname="other")
        [found] = checked(config.url, other).findings
        assert (found.level, found.found) == (
            Level.FAILED,
            "read_url names the database other, but url names postgres",
        )
    finally:
        with psycopg.connect(config.url, autocommit=True) as admin:
            admin.execute("DROP DATABASE other")


def test_a_promoted_standby_is_a_failure_while_both_servers_accept_writes(tmp_path: Path) -> None:
    with pair(tmp_path) as servers:
        servers.promote()
        for url, read_url in (
            (servers.primary.url(), servers.standby.url()),
            (servers.standby.url(), servers.primary.url()),
        ):
            [found] = checked(url, read_url).findings
            assert (found.level, "both accept writes" in found.found) == (Level.FAILED, True)
            assert checked(url, url).level == Level.NOTE


def test_a_standby_that_cannot_be_identified_does_not_fail_the_check(servers: Pair, config: DatabaseConfig) -> None:
    with psycopg.connect(config.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE plain LOGIN")
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        try:
            servers.until_replayed()
            plain, read_url = (
                psycopg.conninfo.make_conninfo(url, user="plain") for url in (config.url, config.read_url)
            )
            until(lambda: checked(plain, read_url).summary == "the standby of read_url is 0s behind")
            check = checked(plain, read_url)
            assert check.level == Level.NOTE
            [found] = check.findings
            assert found.found.endswith("can't be compared: permission denied for function pg_control_system")
            admin.execute(found.do.partition(";")[0].encode())
            servers.until_replayed()
            assert checked(plain, read_url).level == Level.OK
        finally:
            admin.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
            admin.execute("DROP ROLE plain")


def test_the_check_reports_an_unavailable_standby_with_advice(
    commands: Commands, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", config.url)
    with proxy.running(config.read_url) as between:
        monkeypatch.setenv("GOQUEUE_DATABASE_READ_URL", between.url)
        assert "the standby of read_url is" in commands("check").out
        between.refuse()
        failed = commands("check")
    assert failed.code == 3
    assert "do:  correct read_url, or start the standby" in failed.out


def test_the_check_fails_for_a_database_without_the_schema(
    commands: Commands, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", config.url)
    elsewhere = psycopg.conninfo.make_conninfo(config.read_url, dbname="template1")
    monkeypatch.setenv("GOQUEUE_DATABASE_READ_URL", elsewhere)
    failed = commands("check")
    assert failed.code == 3
    assert "do:  correct read_url" in failed.out


def test_the_check_fails_for_another_server_s_jobs(
    commands: Commands, config: DatabaseConfig, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", config.url)
    monkeypatch.setenv("GOQUEUE_DATABASE_READ_URL", goqueue_database)
    failed = commands("check")
    assert failed.code == 3
    assert "failed: reads" in failed.err
    assert "do:  in read_url, name a streaming standby of url's server" in failed.out
