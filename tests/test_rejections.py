"""Connection errors that no retry can cure are distinguished from the others, wherever something retries."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import goqueue
from goqueue import (
    AsyncPostgresStorage,
    ConnectionRejectedError,
    DatabaseConfig,
    GoQueueError,
    PostgresStorage,
    StorageError,
    StorageUnavailableError,
)
from goqueue.migrate import migrate
from goqueue.postgres.translate import translate
from goqueue.testing.embedded import EmbeddedServer
from tests import pgbouncer
from tests.commands import Commands
from tests.standby import free_port
from tests.ways import opened

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
PASSWORD = "s3cret"


class Guarded:
    """A server that requires a password, by TCP."""

    def __init__(self, server: EmbeddedServer, port: int) -> None:
        self.admin = psycopg.connect(server.url(), autocommit=True)
        self.url = f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/postgres"
        for statement in (
            f"CREATE ROLE ann LOGIN SUPERUSER PASSWORD '{PASSWORD}'",
            "CREATE ROLE reader LOGIN",
            "CREATE ROLE nologin",
            "CREATE ROLE full_role LOGIN CONNECTION LIMIT 0",
            "CREATE DATABASE hidden",
            "REVOKE CONNECT ON DATABASE hidden FROM PUBLIC",
        ):
            self.admin.execute(statement.encode())
        row = self.admin.execute("SHOW hba_file").fetchone()
        assert row is not None
        Path(row[0]).write_text(
            "local all all trust\n"
            "host all ann all scram-sha-256\n"
            "host all rejected all reject\n"
            "host all reader,nologin,full_role,unknown all trust\n"
        )
        self.admin.execute("SELECT pg_reload_conf()")
        migrate(server.url())

    def set_password(self, password: str) -> None:
        self.admin.execute(f"ALTER ROLE ann PASSWORD '{password}'".encode())

    def end_sessions(self) -> None:
        self.admin.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'ann'")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    port = int(free_port())
    settings = {"listen_addresses": "127.0.0.1", "port": str(port)}
    with EmbeddedServer(settings=settings, durable=False) as server:
        guarded = Guarded(server, port)
        with guarded.admin:
            yield guarded


def opening(url: str, kind: str = "sync") -> GoQueueError:
    """Return the error of opening a store."""
    config = DatabaseConfig(url=url, connect_timeout=MINUTE, pool_timeout=MINUTE)

    def open_one() -> None:
        if kind == "sync":
            PostgresStorage.open(config)
        else:
            asyncio.run(AsyncPostgresStorage.open(config))

    with pytest.raises(GoQueueError) as caught:
        open_one()
    assert isinstance(caught.value.__cause__, psycopg.Error)
    for text in (str(caught.value), repr(caught.value), str(caught.value.__cause__)):
        assert PASSWORD not in text
    return caught.value


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("change", "said", "do"),
    [
        ({"password": f"not-{PASSWORD}"}, "password authentication failed", "correct the user or the password"),
        ({"password": "", "passfile": "/nonexistent"}, "no password supplied", "correct the user or the password"),
        ({"dbname": "nope"}, 'database "nope" does not exist', "correct the database"),
        ({"user": "reader", "dbname": "hidden"}, "permission denied for database", "grant the role CONNECT"),
        ({"user": "unknown"}, 'role "unknown" does not exist', "correct the user"),
        ({"user": "nologin"}, "not permitted to log in", "correct the user"),
        ({"user": "rejected"}, "rejects connection", "let pg_hba.conf"),
        ({"user": "stranger"}, "no pg_hba.conf entry", "let pg_hba.conf"),
        ({"sslmode": "require"}, "does not support SSL", "correct sslmode"),
        ({"channel_binding": "require"}, "channel binding", "correct sslmode"),
        ({"require_auth": "md5"}, "authentication method", "correct the user or the password"),
        ({"options": "-c no_such_setting=1"}, "unrecognized configuration parameter", "correct `options`"),
        ({"options": "-c work_mem=x"}, "invalid value for parameter", "correct `options`"),
        ({"sslmode": "sometimes"}, "invalid sslmode value", "correct the URL"),
        ({"service": "nowhere"}, "nowhere", "correct the URL"),
        ({"host": "localhost", "password": "x"}, "authentication failed", "correct the user or the password"),
    ],
)
def test_an_error_that_no_retry_corrects_is_a_rejection(
    guarded: Guarded, kind: str, change: dict[str, Any], said: str, do: str
) -> None:
    error = opening(make_conninfo(guarded.url, **change), kind)
    assert isinstance(error, ConnectionRejectedError)
    assert not isinstance(error, StorageUnavailableError)
    assert not error.can_retry
    assert said in str(error)
    assert do in str(error)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "full_role"}, "the server has no connection left.*POOL_MAX_SIZE"),
        ({"port": "1"}, "can't be reached"),
        ({"host": "/nonexistent"}, "can't be reached"),
        ({"target_session_attrs": "standby"}, "not in hot standby mode"),
        # The first server may return, and accept the password.
        ({"host": "127.0.0.1,127.0.0.1", "port": "1,{port}", "password": "wrong"}, "authentication failed"),
    ],
)
def test_an_error_that_can_pass_is_not_a_rejection(
    guarded: Guarded, kind: str, change: dict[str, Any], said: str
) -> None:
    port = str(guarded.url).rpartition(":")[2].partition("/")[0]
    change = {name: value.replace("{port}", port) for name, value in change.items()}
    error = opening(make_conninfo(guarded.url, **change), kind)
    assert type(error) is StorageUnavailableError
    assert error.can_retry
    with pytest.raises(StorageUnavailableError, match=said):
        raise error


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_several_servers_that_all_reject_the_connection_are_a_rejection(guarded: Guarded, kind: str) -> None:
    port = str(guarded.url).rpartition(":")[2].partition("/")[0]
    several = {"host": "127.0.0.1,localhost", "port": f"{port},{port}"}
    error = opening(make_conninfo(guarded.url, **several, password="wrong"), kind)
    assert isinstance(error, ConnectionRejectedError)
    assert not error.can_retry
    assert "correct the user or the password" in str(error)
    assert "host: 'localhost'" in str(error)


def test_an_unknown_host_name_differs_from_an_unavailable_resolver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolving(number: int) -> Callable[..., Any]:
        def getaddrinfo(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(number, "as the resolver says it")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", resolving(socket.EAI_NONAME))
    error = opening("postgresql://ann@db.invalid/app")
    assert isinstance(error, ConnectionRejectedError)
    assert "no host has this name" in str(error)
    # A program with an open store knows the name: a container's name vanishes with the container and returns.
    assert isinstance(error.__cause__, psycopg.Error)
    assert translate(error.__cause__, reconnecting=True).can_retry
    monkeypatch.setattr(socket, "getaddrinfo", resolving(socket.EAI_AGAIN))
    assert type(opening("postgresql://ann@db.invalid/app")) is StorageUnavailableError


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that is not PostgreSQL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client:
                    try:
                        client.recv(1 << 16)
                        answer(client)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_a_server_other_than_postgresql_is_a_rejection(sslmode: str) -> None:
    with answering(lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        error = opening(f"postgresql://ann@127.0.0.1:{port}/app?sslmode={sslmode}&gssencmode=disable")
    assert isinstance(error, ConnectionRejectedError)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize(
    ("mode", "said"), [("verify-ca", "certificate verify failed"), ("verify-full", "does not match host name")]
)
def test_a_certificate_that_does_not_prove_the_server_is_a_rejection(tmp_path: Path, mode: str, said: str) -> None:
    for name in ("server", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt")]
        subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")

    def answer(client: socket.socket) -> None:
        client.sendall(b"S")
        with context.wrap_socket(client, server_side=True) as wrapped:
            wrapped.recv(1)

    trusted = tmp_path / f"{'other' if mode == 'verify-ca' else 'server'}.crt"
    with answering(answer) as port:
        url = f"postgresql://ann@127.0.0.1:{port}/app?sslmode={mode}&sslrootcert={trusted}&gssencmode=disable"
        error = opening(url)
        missing = opening(url.replace(str(trusted), "/nonexistent.crt"))
    assert isinstance(error, ConnectionRejectedError), error
    assert said in str(error)
    assert isinstance(missing, ConnectionRejectedError), missing


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
def test_a_connection_that_a_pooler_rejects_is_a_rejection(goqueue_database: str, goqueue_server: Any) -> None:
    with pgbouncer.running(goqueue_server.url, ignore_startup_parameters="options") as through:
        error = opening(make_conninfo(through(goqueue_database), dbname="nope"))
        assert isinstance(error, ConnectionRejectedError), error
        assert "nope" in str(error)


# --- callers that retry -----------------------------------------------------------------------------------------------


@pytest.fixture
def limits(guarded: Guarded) -> Iterator[DatabaseConfig]:
    yield DatabaseConfig(url=guarded.url, pool_min_size=1, pool_max_size=1, pool_timeout=2 * SECOND)
    guarded.set_password(PASSWORD)


@pytest.mark.parametrize("way", ["pool", "async pool"])
def test_a_pool_that_cannot_connect_reports_the_reason(guarded: Guarded, limits: DatabaseConfig, way: str) -> None:
    with opened(way, limits) as store:
        store.call("ping")
        guarded.set_password("another")
        guarded.end_sessions()
        start = time.monotonic()
        with pytest.raises(ConnectionRejectedError, match="password authentication failed") as caught:
            store.call("ping")
        assert time.monotonic() - start < 20
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        guarded.set_password(PASSWORD)
        deadline = time.monotonic() + 60
        while True:  # until it is corrected
            try:
                store.call("ping")
                break
            except ConnectionRejectedError:
                assert time.monotonic() < deadline


def test_a_pool_whose_connections_are_all_in_use_is_reported_as_such(guarded: Guarded, limits: DatabaseConfig) -> None:
    with (
        PostgresStorage.open(limits) as store,
        store._connection(),
        pytest.raises(StorageUnavailableError, match="POOL_MAX_SIZE"),
    ):
        store.ping()


def test_a_listener_that_cannot_reconnect_reports_the_reason(guarded: Guarded, limits: DatabaseConfig) -> None:
    with PostgresStorage.open(limits) as store, store.listen("default") as listener:
        guarded.set_password("another")
        guarded.end_sessions()
        with pytest.raises(ConnectionRejectedError, match="password authentication failed"):
            listener.wait(30 * SECOND)


def test_commands_end_with_status_2_and_point_to_the_settings(
    guarded: Guarded, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", make_conninfo(guarded.url, password="wrong"))
    for command in (["jobs", "list"], ["stats"], ["stats", "--watch"]):
        result = commands(*command)
        assert (result.code, result.out) == (2, "")
        assert "password authentication failed" in result.err
        assert "`goqueue config` shows" in result.err
        assert "goqueue db start" not in result.err
    for command in (["migrate"], ["migrate", "--list"], ["migrate", "--undo-to", "5", "--yes"]):
        result = commands(*command)
        assert (result.code, result.out) == (2, ""), command
        assert "password authentication failed" in result.err
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", make_conninfo(guarded.url, user="full_role"))
    result = commands("jobs", "list")
    assert result.code == 1
    assert "goqueue db start" not in result.err
    for nobody in ("postgresql://127.0.0.1:1/x", "postgresql://localhost:1/x", "postgresql:///x?host=/nonexistent"):
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", nobody)
        result = commands("jobs", "list")
        assert result.code == 1
        assert "`goqueue db start` starts a development server" in result.err


def test_watching_ends_when_the_connection_is_rejected(
    guarded: Guarded, limits: DatabaseConfig, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", limits.url)
    monkeypatch.setenv("GOQUEUE_DATABASE_POOL_TIMEOUT", "2s")
    with commands.process("stats", "--watch", "--json", "--interval", "100ms") as started:
        assert started.stdout is not None
        assert '"queues":[]' in started.stdout.readline()
        guarded.set_password("another")
        guarded.end_sessions()
        _, err = started.communicate(timeout=60)
    assert started.returncode == 2
    assert "password authentication failed" in err


# --- errors of the server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "kind", "said"),
    [
        ("53100", StorageUnavailableError, "disk is full"),
        ("53200", StorageUnavailableError, "resource of the server is exhausted"),
        ("53400", StorageUnavailableError, "resource of the server is exhausted"),
        ("53300", StorageUnavailableError, "no connection left"),
        ("57P03", StorageUnavailableError, "is not accepting connections now"),
        ("57000", StorageUnavailableError, "ended the session"),
        ("58030", StorageError, "server's log"),
        ("58P01", StorageError, "server's log"),
        ("55000", StorageError, "rejected the statement"),
        ("XX000", StorageError, "rejected the statement"),
        ("28000", ConnectionRejectedError, "correct user"),
    ],
)
def test_errors_of_the_server_have_their_own_messages(
    goqueue_store: PostgresStorage, goqueue_connection: Any, sqlstate: str, kind: type, said: str
) -> None:
    goqueue_connection.execute(
        f"""
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'as told' USING ERRCODE = '{sqlstate}'; END$$;
        CREATE TRIGGER no BEFORE INSERT ON goqueue.jobs EXECUTE FUNCTION no()
        """
    )
    with pytest.raises(kind, match=said) as caught:
        goqueue_store.create_job(goqueue.NewJob(job_type="t"))
    assert type(caught.value) is kind
    assert "can't be reached" not in str(caught.value)
    assert "as told" in str(caught.value)


def test_every_error_shows_whether_a_retry_can_succeed() -> None:
    def kinds(kind: type[GoQueueError]) -> Iterator[type[GoQueueError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from kinds(child)

    found = {kind.__name__: kind.can_retry for kind in kinds(GoQueueError)}
    assert {name for name, can_retry in found.items() if can_retry} == {
        "StorageUnavailableError",
        "LockTimeoutError",
        "TransactionConflictError",
    }
    assert {"OutcomeUnknownError", "ConnectionRejectedError", "LeaseLostError", "ConfigError"} <= found.keys()
    public = {name for name in goqueue.__all__ if name.endswith("Error")}
    assert public <= found.keys()
