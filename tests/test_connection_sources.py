"""The sources of the store's own connections: the URL, settings, a libpq service, PG* variables, and fixed options.

Imports tests.ways.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue import DatabaseConfig, NewJob, PostgresStorage, StorageError
from goqueue.cli.queries import _configured
from goqueue.migrate import migrate
from goqueue.postgres.options import conninfo, deadlines
from goqueue.postgres.pool import open_connection
from goqueue.postgres.queries import load_queries
from goqueue.testing.embedded import EmbeddedServer
from tests.standby import free_port
from tests.ways import opened

SECOND = timedelta(seconds=1)
WAYS = ["pool", "async pool"]


class Service:
    """Write the libpq service `app`, which names the test's database."""

    def __init__(self, file: Path, url: str) -> None:
        self._file = file
        self._server = {name: str(value) for name, value in conninfo_to_dict(url).items()}

    def write(self, **options: str) -> None:
        lines = {**self._server, **options}
        self._file.write_text("[app]\n" + "".join(f"{name}={value}\n" for name, value in lines.items()))


@pytest.fixture(autouse=True)
def no_limit_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the limit that conftest sets for all other tests."""
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)


@pytest.fixture
def service(goqueue_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services.conf"))
    return Service(tmp_path / "services.conf", goqueue_database)


@pytest.fixture
def role(goqueue_connection: psycopg.Connection[Any]) -> Iterator[str]:
    """A role without a login and with rights on goqueue's tables."""
    name = f"goqueue_test_{uuid4().hex[:12]}"
    goqueue_connection.execute(f"CREATE ROLE {name}")
    goqueue_connection.execute(f"GRANT USAGE ON SCHEMA goqueue TO {name}")
    goqueue_connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA goqueue TO {name}")
    goqueue_connection.execute(f"CREATE POLICY test_all ON goqueue.jobs TO {name} USING (true)")
    yield name
    goqueue_connection.execute(f"DROP OWNED BY {name}")
    goqueue_connection.execute(f"DROP ROLE {name}")


def parameters(config: DatabaseConfig) -> dict[str, str]:
    """Return the parameters with which libpq connects."""
    with closing(open_connection(config, load_queries())) as connection:
        return connection.info.get_parameters()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["url", "service", "PGSERVICE", "PGOPTIONS"])
def test_the_work_runs_as_the_role_that_the_options_name(
    way: str, source: str, role: str, service: Service, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, url = f"-c role={role} -c work_mem=12MB", goqueue_database
    if source == "url":
        url = make_conninfo(url, options=options)
    elif source == "PGOPTIONS":
        monkeypatch.setenv("PGOPTIONS", options)
    else:
        service.write(options=options)
        url = "service=app" if source == "service" else ""
        if not url:
            monkeypatch.setenv("PGSERVICE", "app")
    with opened(way, DatabaseConfig(url=url, statement_timeout=7 * SECOND)) as store:
        store.call("create_job", NewJob(job_type="t"))
        seen = "current_user, current_setting('work_mem'), current_setting('statement_timeout'), "
        seen += "current_setting('enable_seqscan')"
        assert store.select(f"SELECT {seen}") == [(role, "12MB", "7s", "off")]


def test_a_listener_and_a_bound_stores_listener_have_the_options_too(service: Service) -> None:
    service.write(options="-c work_mem=12MB")
    with (
        PostgresStorage.open("service=app") as store,
        psycopg.connect("service=app") as connection,
        store.listen("a") as one,
        PostgresStorage.bound_to(connection).listen("b") as other,
    ):
        for listener in (one, other):
            assert listener._connection is not None
            assert listener._connection.execute("SHOW work_mem").fetchone() == ("12MB",)


@pytest.mark.parametrize(
    ("url", "setting", "libpqs", "expected"),
    [
        ("", None, "", "30s"),
        ("", 7, "", "7s"),
        ("", None, "-c statement_timeout=8s", "8s"),
        ("", 7, "-c statement_timeout=8s", "7s"),
        ("-c statement_timeout=9s", 7, "-c statement_timeout=8s", "9s"),
        ("-c work_mem=12MB", 7, "-c statement_timeout=8s", "7s"),
    ],
)
def test_a_limit_comes_from_the_url_then_the_setting_then_libpq(
    goqueue_database: str,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    setting: int | None,
    libpqs: str,
    expected: str,
) -> None:
    monkeypatch.setenv("PGOPTIONS", libpqs)
    given: dict[str, Any] = {"options": url} if url else {}
    changed: dict[str, Any] = {"statement_timeout": setting * SECOND} if setting else {}
    config = DatabaseConfig(url=make_conninfo(goqueue_database, **given), **changed)
    with closing(open_connection(config, load_queries())) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == (expected,)
        seconds = float(expected.removesuffix("s"))
        assert connection.goqueue_limits.answer == pytest.approx(seconds + 5 + 0.5), "the client's limit follows"


# --- names and times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "setting", "services", "variable", "expected"),
    [
        (None, None, None, None, "goqueue"),
        (None, None, None, "variable", "variable"),
        (None, None, "service", "variable", "service"),
        (None, "setting", "service", "variable", "setting"),
        ("url", "setting", "service", "variable", "url"),
    ],
)
def test_the_application_name_comes_from_the_first_source_that_sets_it(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    url: str | None,
    setting: str | None,
    services: str | None,
    variable: str | None,
    expected: str,
) -> None:
    service.write(**({"application_name": services} if services else {}))
    monkeypatch.setenv("PGAPPNAME", variable or "")
    if variable is None:
        monkeypatch.delenv("PGAPPNAME")
    config = DatabaseConfig(
        url="service=app" + (f" application_name={url}" if url else ""),
        **({"application_name": setting} if setting else {}),
    )
    with PostgresStorage.open(config) as store, store._connection() as connection:
        assert connection.execute("SHOW application_name").fetchone() == (expected,)
    with closing(psycopg.connect(_configured(config) or "")) as connection:
        assert connection.execute("SHOW application_name").fetchone() == (
            expected.replace("goqueue", "goqueue explain"),
        )


@pytest.mark.parametrize(
    ("url", "setting", "services", "variable", "expected"),
    [
        ("", None, "", "", 5),
        ("", None, "", "11", 11),
        ("", None, "9", "11", 9),
        ("", 7, "9", "11", 7),
        ("3", 7, "9", "11", 3),
        ("0", None, "", "", 130),
    ],
)
def test_the_connect_timeout_comes_from_the_first_source_that_sets_it(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    setting: int | None,
    services: str,
    variable: str,
    expected: int,
) -> None:
    service.write(**({"connect_timeout": services} if services else {}))
    if variable:
        monkeypatch.setenv("PGCONNECT_TIMEOUT", variable)
    config = DatabaseConfig(
        url="service=app" + (f" connect_timeout={url}" if url else ""),
        **({"connect_timeout": setting * SECOND} if setting else {}),
    )
    assert deadlines(config).connect == expected
    assert parameters(config)["connect_timeout"] == (url or str(setting or services or variable or expected))


def test_keepalives_of_a_service_are_kept(service: Service) -> None:
    service.write(keepalives_idle="77", tcp_user_timeout="7777")
    found = parameters(DatabaseConfig(url="service=app"))
    assert (found["keepalives_idle"], found["tcp_user_timeout"]) == ("77", "7777")
    assert (found["keepalives_interval"], found["keepalives_count"]) == ("5", "2")


def test_libpq_finds_the_user_and_the_database(service: Service) -> None:
    service.write()
    found = conninfo_to_dict(conninfo(DatabaseConfig(url="service=app")))
    assert not {"user", "dbname", "host", "port"} & found.keys()


def test_a_missing_service_is_named(service: Service) -> None:
    service.write()
    with pytest.raises(StorageError, match='service "nope" not found'):
        PostgresStorage.open("service=nope")


# --- the statements' requirements -------------------------------------------------------------------------------------


PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read committed",
    "plan_cache_mode": "force_generic_plan",
}


@pytest.mark.parametrize("way", WAYS)
def test_settings_that_the_statements_need_override_the_environment(
    way: str, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    others = {"TimeZone": "Asia/Tokyo", "default_transaction_isolation": "serializable", "plan_cache_mode": "auto"}
    monkeypatch.setenv("PGOPTIONS", " ".join(f"-c {name}={value}" for name, value in others.items()))
    shown = ", ".join(f"current_setting('{name}')" for name in PINNED)
    with opened(way, DatabaseConfig(url=goqueue_database, pool_max_size=1)) as store:
        for _ in range(2):
            assert store.select(f"SELECT {shown}") == [tuple(PINNED.values())]
            job = store.call("create_job", NewJob(job_type="ä€"))
            assert job.created_at.utcoffset() == timedelta(0)
    with PostgresStorage.open(goqueue_database) as opened_store, opened_store.listen("a") as listener:
        assert listener._connection is not None
        assert listener._connection.execute(f"SELECT {shown}").fetchone() == tuple(PINNED.values())


def test_with_empty_options_the_session_is_pinned_by_a_statement(
    goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    name = goqueue_connection.info.dbname
    goqueue_connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    url = make_conninfo(goqueue_database, options="")
    with PostgresStorage.open(url) as store, store._connection() as connection:
        assert connection.execute("SHOW default_transaction_isolation").fetchone() == ("read committed",)
        assert connection.execute("SHOW TimeZone").fetchone() == ("UTC",)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
def test_concurrent_claims_do_not_fail_with_any_isolation_level_of_the_database(
    way: str, isolation: str, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    name = goqueue_connection.info.dbname
    goqueue_connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    threads, each = 4, 60
    with PostgresStorage.open(goqueue_database) as store:
        store.create_jobs(NewJob(job_type="t") for _ in range(threads * each))
    barrier, claimed = Barrier(threads), []

    def work(number: int) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database, pool_max_size=1)) as store:
            barrier.wait(60)
            for _ in range(each):
                jobs = store.call("claim_jobs", "default", f"w{number}", 1)
                claimed.extend(job.id for job in jobs)
                store.call("complete_jobs", jobs)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()
    assert len(claimed) == len(set(claimed)) == threads * each


# --- a vanished client ------------------------------------------------------------------------------------------------

WATCHED = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")


def shown(connection: Any, *names: str) -> list[str]:
    [row] = connection.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in names)).fetchall()
    return list(row)


@pytest.fixture(scope="module")
def by_tcp() -> Iterator[EmbeddedServer]:
    """A server on all addresses that trusts the network of the test below."""
    with EmbeddedServer(settings={"listen_addresses": "*", "port": free_port()}, durable=False) as server:
        migrate(server.url())
        yield server


def tcp_url(server: EmbeddedServer, host: str = "127.0.0.1") -> str:
    return make_conninfo(server.url(), host=host)


def test_the_server_and_the_client_detect_each_others_loss(by_tcp: EmbeddedServer) -> None:
    config = DatabaseConfig(url=tcp_url(by_tcp), statement_timeout=7 * SECOND, connect_timeout=4 * SECOND)
    with PostgresStorage.open(config) as store, store.listen("a") as listener, store._connection() as pooled:
        for connection in (pooled, listener._connection):
            assert shown(connection, *WATCHED) == ["11", "4", "2", "11000"]
            interval = "5s" if sys.platform == "linux" else "0"
            assert shown(connection, "client_connection_check_interval") == [interval]


def test_a_vanished_client_is_noticed_without_a_statement_timeout(by_tcp: EmbeddedServer) -> None:
    config = DatabaseConfig(url=tcp_url(by_tcp), statement_timeout=timedelta(0))
    with PostgresStorage.open(config) as store, store._connection() as connection:
        assert shown(connection, *WATCHED) == ["35", "5", "2", "35000"]


def test_a_value_that_the_url_or_the_database_sets_is_kept(by_tcp: EmbeddedServer) -> None:
    options = "-c tcp_keepalives_idle=77 -c client_connection_check_interval=250ms"
    url = make_conninfo(tcp_url(by_tcp), options=options)
    with PostgresStorage.open(url) as store, store._connection() as connection:
        assert shown(connection, "tcp_keepalives_idle", "client_connection_check_interval") == ["77", "250ms"]


WAITING = """
import sys
from datetime import timedelta
from goqueue import DatabaseConfig, PostgresStorage

hour = timedelta(hours=1)
config = DatabaseConfig(url=sys.argv[1], application_name="vanishing", statement_timeout=hour, lock_timeout=hour)
with PostgresStorage.open(config) as store:
    store.cancel_jobs(sys.argv[2])
"""


def sessions(connection: psycopg.Connection[Any], condition: str) -> int:
    """Return the number of sessions of the vanished client."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vanishing' AND "
    return int(connection.execute(statement + condition).fetchall()[0][0])


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="other servers can't check whether a client is there")
def test_a_client_killed_while_it_waits_for_a_lock_does_not_keep_its_session(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], goqueue_database: str
) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t"))
    with psycopg.connect(goqueue_database) as other:
        other.execute("SELECT FROM goqueue.jobs FOR UPDATE")
        client = subprocess.Popen([sys.executable, "-c", WAITING, goqueue_database, str(job.id)])
        try:
            until(lambda: sessions(goqueue_connection, "wait_event_type = 'Lock'") == 1, 60)
        finally:
            client.kill()
            client.wait()
        # Checked every five seconds.
        until(lambda: sessions(goqueue_connection, "wait_event_type = 'Lock'") == 0, 50)
    assert goqueue_store.get_job(job.id) == job


@contextmanager
def far_network(name: str) -> Iterator[tuple[str, str]]:
    """A network namespace behind a cable: its name and this side's address. ``ip link set NAME down`` cuts it."""
    for command in (
        f"ip netns add {name}",
        f"ip link add {name} type veth peer name eth0 netns {name}",
        f"ip addr add 10.213.77.1/30 dev {name}",
        f"ip link set {name} up",
        f"ip -n {name} addr add 10.213.77.2/30 dev eth0",
        f"ip -n {name} link set eth0 up",
    ):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
    try:
        yield name, "10.213.77.1"
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


IDLE = """
import sys, time
from datetime import timedelta
from goqueue import DatabaseConfig, PostgresStorage

second = timedelta(seconds=1)
config = DatabaseConfig(
    url=sys.argv[1], application_name="vanishing", statement_timeout=2 * second, connect_timeout=2 * second
)
with PostgresStorage.open(config) as store, store.listen("default") as listener:
    time.sleep(300)
"""


@pytest.mark.skipif(
    shutil.which("ip") is None or os.geteuid() != 0, reason="it takes root and iproute2 to cut a network"
)
def test_the_sessions_of_a_client_whose_network_is_cut_end(by_tcp: EmbeddedServer) -> None:
    with psycopg.connect(by_tcp.url(), autocommit=True) as connection:
        rules = Path(connection.execute("SHOW hba_file").fetchall()[0][0])
        rules.write_text(rules.read_text("utf-8") + "host all all 10.213.77.0/30 trust\n", "utf-8")
        connection.execute("SELECT pg_reload_conf()")
        with far_network(f"gq{uuid4().hex[:8]}") as (name, host):
            program = [sys.executable, "-c", IDLE, tcp_url(by_tcp, host)]
            client = subprocess.Popen(["ip", "netns", "exec", name, *program])
            try:
                until(lambda: sessions(connection, "query LIKE '%announce_listener%'") == 1, 60)
                subprocess.run(["ip", "link", "set", name, "down"], check=True)
                # Idle for four seconds, then two probes; the kernel's own default is two hours.
                until(lambda: sessions(connection, "true") == 0, 50)
            finally:
                client.kill()
                client.wait()
