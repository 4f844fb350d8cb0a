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
from hypothesis import HealthCheck, settings
from psycopg import sql

from goqueue import Storage
from goqueue.schemas import DEFAULT_SCHEMA
from tests import elsewhere, pgbouncer, standby
from tests.commands import Commands
from tests.stores import SharedStores, Through, opened

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
    # Connections without a limit of their own: on a busy machine, some need more than goqueue's default of 5 seconds.
    os.environ["PGCONNECT_TIMEOUT"] = "60"
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


@pytest.fixture(scope="session")
def shared_stores(
    request: pytest.FixtureRequest, goqueue_server: Any, goqueue_template: str, goqueue_schema: str
) -> Iterator[SharedStores]:
    """One store of each kind, for the tests that use their database through the store only."""
    stores = SharedStores(goqueue_server.url, goqueue_template, goqueue_schema, _pgbouncer_of(request))
    yield stores
    stores.close()


def _pgbouncer_of(request: pytest.FixtureRequest) -> Through:
    return partial(request.getfixturevalue, "through_pgbouncer")


@pytest.fixture(params=["pool", "async pool", *([] if standby.PORT else _OTHERS)])
def store(request: pytest.FixtureRequest, goqueue_schema: str) -> Iterator[Storage]:
    """Every kind of storage. Tests with this fixture check the contract.

    It is on the test's own database if another fixture of the test uses that. Else it is a shared one, emptied before:
    creating a database and opening a store take longer than most of these tests.
    """
    kind = request.param
    if standby.PORT or "goqueue_database" in request.fixturenames:
        url = request.getfixturevalue("goqueue_database")
        with opened(kind, url, goqueue_schema, _pgbouncer_of(request)) as store:
            yield store
        return
    from goqueue.pytest_plugin import _DATABASE, _FAILED  # pytest has to import a plugin first

    shared: SharedStores = request.getfixturevalue("shared_stores")
    store, database = shared.empty(kind)
    request.node.stash[_DATABASE], request.node.stash[_FAILED] = database, False
    yield store
    del request.node.stash[_DATABASE]
    if request.node.stash[_FAILED]:
        shared.replace(kind, keep=True)


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
