"""Fixtures and settings of the whole suite. Imports goqueue's plugin by name, anyio and hypothesis."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from psycopg import sql

from goqueue import AsyncPostgresStorage, DatabaseConfig, PostgresStorage, Storage
from goqueue.schemas import DEFAULT_SCHEMA
from tests import elsewhere, pgbouncer, standby
from tests.blocking import blocking
from tests.commands import Commands

pytest_plugins = ["goqueue.pytest_plugin", "pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schema", default=DEFAULT_SCHEMA, help="run under this schema name: for the tests of `make test-schema`"
    )


@pytest.fixture(scope="session")
def goqueue_schema(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("schema"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled modules in pytest's cache if the environment forbids Python to write them beside their sources.

    The tests start hundreds of Python processes; each would compile all its imports.
    """
    cache = getattr(config, "cache", None)  # there is none under `-p no:cacheprovider`
    if cache is not None and os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(cache.mkdir("bytecode"))
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    if (schema := config.getoption("schema")) != DEFAULT_SCHEMA:
        elsewhere.take_schema(schema)
    if standby.PORT:
        elsewhere.read_on_standby()


# Each has a test that takes long, or many that wait. Started last, one of them would outlast all others.
_LONG = frozenset(
    f"test_{name}.py"
    for name in ("bench", "deadlines", "failover", "growth", "race", "state_machine", "upgrades", "wheel")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first."""
    items.sort(key=lambda item: item.path.name not in _LONG)


# A deadline would measure the machine, not the code. All examples of a test share one database on purpose.
settings.register_profile("goqueue", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# The same examples in every run: a pull request must not fail by chance.
settings.register_profile("goqueue-ci", settings.get_profile("goqueue"), derandomize=True)
settings.load_profile("goqueue-ci" if os.environ.get("CI") else "goqueue")


@pytest.fixture(scope="session")
def through_pgbouncer(goqueue_server: Any) -> Iterator[Callable[[str], str]]:
    """Return a function that converts a URL to one through pgbouncer, with each transaction in another session."""
    with pgbouncer.running(goqueue_server.url, server_round_robin=1, ignore_startup_parameters="options") as through:
        yield through


# Without pgbouncer, test_pgbouncer.py reports what is not tested. Bound stores never read on a standby.
_OTHERS = ["bound", "async bound", *(["pgbouncer"] if pgbouncer.PROGRAM else [])]


@pytest.fixture(params=["pool", "async pool", *([] if standby.PORT else _OTHERS)])
def store(request: pytest.FixtureRequest, goqueue_database: str, goqueue_schema: str) -> Iterator[Storage]:
    """Every kind of storage, each on the test's database. Tests with this fixture check the contract."""
    config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema)
    if request.param == "pool":
        with PostgresStorage.open(config) as opened:
            yield opened
    elif request.param == "pgbouncer":
        url = request.getfixturevalue("through_pgbouncer")(goqueue_database)
        config = DatabaseConfig(url=url, schema=goqueue_schema)
        with pgbouncer.sessions(url, goqueue_database), PostgresStorage.open(config) as opened:
            yield opened
    elif request.param == "async pool":
        with start_blocking_portal() as portal:
            opened_async = portal.call(AsyncPostgresStorage.open, config)
            yield blocking(opened_async, portal)
            portal.call(opened_async.close)
    elif request.param == "async bound":
        with start_blocking_portal() as portal:
            connect = partial(psycopg.AsyncConnection.connect, goqueue_database, autocommit=True)
            connection_async = portal.call(connect)
            yield blocking(AsyncPostgresStorage.bound_to(connection_async, schema=goqueue_schema), portal)
            portal.call(connection_async.close)
    else:
        with psycopg.connect(goqueue_database, autocommit=True) as connection:
            yield PostgresStorage.bound_to(connection, schema=goqueue_schema)


@pytest.fixture
def commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The `goqueue` command in an empty folder, without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GOQUEUE_") and "_TEST_" not in name]:
        monkeypatch.delenv(name)
    return Commands(capsys, monkeypatch)


@pytest.fixture
def goqueue(
    commands: Commands, goqueue_database: str, goqueue_schema: str, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    """The `goqueue` command on this test's database."""
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", goqueue_database)
    if goqueue_schema != DEFAULT_SCHEMA:
        monkeypatch.setenv("GOQUEUE_DATABASE_SCHEMA", goqueue_schema)
    return commands


@pytest.fixture
def empty(goqueue_server: Any) -> Iterator[str]:
    """The URL of a database that has not been migrated."""
    name = f"goqueue_test_{uuid4().hex[:12]}"
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield psycopg.conninfo.make_conninfo(goqueue_server.url, dbname=name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
