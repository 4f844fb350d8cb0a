"""pytest fixtures with a migrated database for each test: ``pytest_plugins = ["goqueue.pytest_plugin"]``.
The SQL here is limited to creating and dropping test databases.

The server is that of GOQUEUE_TEST_DATABASE_URL if set (its user needs CREATEDB), else a container if a Docker engine is
available (image: GOQUEUE_TEST_POSTGRES_IMAGE), else an embedded one. GOQUEUE_TEST_SERVER=embedded or =docker forces
one of these. GOQUEUE_TEST_POSTGRES_DIR is the folder of another PostgreSQL for the embedded server, such as
/usr/lib/postgresql/15 (with bin, lib and share); it also prefers the embedded server to Docker.

The schema is goqueue. For another one, override the fixture `goqueue_schema` in conftest.py.
"""

import hashlib
import importlib
import os
import secrets
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from goqueue.config import DatabaseConfig
from goqueue.conninfo import Secret, connect, without_frames
from goqueue.errors import ConfigError, GoQueueError
from goqueue.migrate import migrate, migrations_hash
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.testing.embedded import EmbeddedServer, EmbeddedServerError

_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "400",
    "max_prepared_transactions": "10",
}
_OF_TESTS = "^goqueue_test_[0-9]+_[0-9a-f]{12}$"


class DatabaseUrl(Secret):
    """A URL whose repr, which pytest prints for a failed test's arguments, has no password."""

    __slots__ = ()

    def __repr__(self) -> str:
        try:
            return repr(_shown(self))
        except psycopg.Error:  # not a URL
            return super().__repr__()


@dataclass(frozen=True)
class DatabaseServer:
    """The server of the test databases. ``kind`` is url, docker or embedded."""

    url: DatabaseUrl
    kind: str

    @property
    def lasting(self) -> bool:
        """True if the server, and so a database left on it, outlives the test run."""
        return self.kind == "url"


class _Run:
    """State of one pytest process. The controller (or the only process) owns the server; workers receive its URL."""

    def __init__(self, config: pytest.Config) -> None:
        self.kept: list[tuple[str, str]] = []  # (database, test id)
        self.note = ""
        self._closing = ExitStack()
        self._server: DatabaseServer | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._error = ""
        handed: dict[str, str] | None = getattr(config, "workerinput", {}).get("goqueue_server")
        if handed is not None:
            self.kind = handed["kind"]
            self._error = handed.get("error", "")
            self._server = None if self._error else DatabaseServer(DatabaseUrl(handed["url"]), self.kind)
        else:
            self.kind = _choose_server()

    def server(self) -> DatabaseServer:
        """Return the server, started at the first call. Raises EmbeddedServerError, again at every call."""
        if self._error:
            raise EmbeddedServerError(self._error)
        if self._server is None:
            try:
                url = _database_url(self._start())  # which may fall back to another kind
                self._server = DatabaseServer(url, self.kind)
            except EmbeddedServerError as error:
                self._error = str(error)
                without_frames(error)  # the frames may hold a password
                raise
        return self._server

    def handed(self) -> dict[str, str]:
        """Return the data that a worker receives."""
        try:
            return {"url": str(self.server().url), "kind": self.kind}
        except EmbeddedServerError as error:
            return {"kind": self.kind, "error": str(error)}

    def connection(self) -> psycopg.Connection[Any]:
        """Return this process's connection for creating and dropping databases. A lost one is replaced."""
        readable = importlib.import_module("goqueue.postgres.libpq").readable
        if self._connection is not None and not self._connection.closed and readable(self._connection.fileno()):
            self._connection.close()  # the server has ended the session
        if self._connection is None or self._connection.closed:
            self._connection = self._closing.enter_context(connect(self.server().url))
        return self._connection

    def close(self) -> None:
        self._closing.close()

    def _start(self) -> Secret:
        if self.kind == "url":
            return _checked(Secret(os.environ["GOQUEUE_TEST_DATABASE_URL"]))
        if self.kind == "docker":
            try:
                return self._start_container()
            except Exception as error:  # the engine, the registry or the image can raise anything
                reason = f"the image {_image()} is unavailable from Docker ({type(error).__name__}: {error})"
                if os.environ.get("GOQUEUE_TEST_SERVER") == "docker":
                    raise EmbeddedServerError(f"{reason}; GOQUEUE_TEST_SERVER=docker forbids another server") from error
                self.note = f"{reason}; using an embedded server"
                self.kind = "embedded"
        folder = _folder()
        server = EmbeddedServer(settings=_FAST, durable=False, installation=Path(folder) if folder else None)
        return Secret(self._closing.enter_context(server).url())

    def _start_container(self) -> Secret:
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - most runs need none

        settings = " ".join(f"-c {name}={value}" for name, value in _FAST.items())
        container = PostgresContainer(
            _image(), username="postgres", password=secrets.token_hex(8), dbname="postgres", driver=None
        ).with_command(f"postgres {settings}")
        self._closing.callback(container.stop)
        container.start()
        return Secret(container.get_connection_url())


_RUN = pytest.StashKey[_Run]()
_DATABASE = pytest.StashKey[str]()  # the name of a test's database
_FAILED = pytest.StashKey[bool]()  # True if a test's setup or body failed


def _image() -> str:
    return os.environ.get("GOQUEUE_TEST_POSTGRES_IMAGE", "postgres:18")


def _folder() -> str:
    return os.environ.get("GOQUEUE_TEST_POSTGRES_DIR", "")


def _choose_server() -> str:
    forced = os.environ.get("GOQUEUE_TEST_SERVER", "")
    if forced not in ("", "docker", "embedded"):
        raise pytest.UsageError(f"GOQUEUE_TEST_SERVER must be docker or embedded, not {forced!r}")
    if forced:
        return forced
    if os.environ.get("GOQUEUE_TEST_DATABASE_URL"):
        return "url"
    return "docker" if not _folder() and _docker_answers() else "embedded"


def _docker_answers() -> bool:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        if address.startswith("unix://"):  # probe first: the client leaks a socket if nobody listens
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(2)
                probe.connect(address.removeprefix("unix://"))
        with closing(importlib.import_module("docker").from_env(timeout=2)) as client:
            return bool(client.ping())
    except Exception:  # noqa: BLE001 - not installed, no socket, no permission, no answer in time
        return False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("goqueue").addoption(
        "--keep-databases", action="store_true", help="keep the databases of passed tests too, until the server ends"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RUN] = _Run(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _RUN in config.stash:
        config.stash[_RUN].close()


def pytest_report_header(config: pytest.Config) -> str:
    described = {
        "url": "PostgreSQL of GOQUEUE_TEST_DATABASE_URL",
        "docker": f"PostgreSQL in Docker, image {_image()}",
        "embedded": f"embedded PostgreSQL{_folder() and f' of {_folder()}'}, deleted at the end",
    }
    return f"goqueue: {described[config.stash[_RUN].kind]}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the server to a pytest-xdist worker that is about to start (in the controller)."""
    node.workerinput["goqueue_server"] = node.config.stash[_RUN].handed()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the kept databases of a pytest-xdist worker that has ended (in the controller)."""
    node.config.stash[_RUN].kept += getattr(node, "workeroutput", {}).get("goqueue_kept", [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["goqueue_kept"] = session.config.stash[_RUN].kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when != "teardown":
        item.stash[_FAILED] = True
        if _DATABASE in item.stash:
            server = item.config.stash[_RUN].server()
            name = item.stash[_DATABASE]
            how_long = (
                f"Kept; to remove it: DROP DATABASE {name};"
                if server.lasting
                else "It ends with this run's server; set GOQUEUE_TEST_DATABASE_URL to keep such databases."
            )
            report.sections.append(("goqueue database", f"{_shown(_database_url(server.url, name))}\n{how_long}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    run = config.stash[_RUN]
    if run.note or run.kept:
        terminalreporter.section("goqueue databases")
    if run.note:
        terminalreporter.line(run.note)
    if run.kept:
        lasting = run.server().lasting
        terminalreporter.line("kept, to be dropped manually:" if lasting else "kept until this run's server ends:")
        for name, test in run.kept:
            terminalreporter.line(f"  {name}")
            terminalreporter.line(f"    {_shown(_database_url(run.server().url, name))} ({test})")


@pytest.fixture(scope="session")
def goqueue_server(pytestconfig: pytest.Config) -> DatabaseServer:
    """The server of this test run, shared by all workers: ``.url`` (of its maintenance database) and ``.kind``."""
    try:
        return pytestconfig.stash[_RUN].server()
    except EmbeddedServerError as error:
        problem = str(error)
    # Only the message: a traceback with local variables could show a password.
    pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="session")
def goqueue_schema() -> str:
    """The name of the schema in the test databases."""
    return DEFAULT_SCHEMA


@pytest.fixture(scope="session")
def goqueue_template(goqueue_server: DatabaseServer, goqueue_schema: str) -> str:
    """The name of a database with all migrations applied, created once per server, schema and set of migration
    files."""
    try:
        return _template(goqueue_server, goqueue_schema)
    except (psycopg.Error, GoQueueError) as error:
        problem = "\n".join([str(error).strip(), *getattr(error, "__notes__", ())])
    pytest.fail(f"the template of the test databases can't be created: {problem}", pytrace=False)


def _template(goqueue_server: DatabaseServer, schema: str) -> str:
    digest = migrations_hash()
    if schema != DEFAULT_SCHEMA:
        digest = hashlib.sha256(f"{digest} {schema}".encode()).hexdigest()
    name = f"goqueue_template_{digest[:16]}"
    identifier = sql.Identifier(name)
    with connect(goqueue_server.url) as connection:
        # Other workers and other runs wait here; the lock ends with the connection.
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        row = connection.execute("SELECT datistemplate FROM pg_database WHERE datname = %s", [name]).fetchone()
        if goqueue_server.lasting:
            importlib.import_module("goqueue.testing.scratch").drop_abandoned(connection, _OF_TESTS)
        if row == (True,):
            return name
        if row is not None:  # left by a run that ended before the template was complete
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(identifier)
        try:
            connection.execute(create)
        except psycopg.errors.InsufficientPrivilege as error:
            error.add_note("The user of GOQUEUE_TEST_DATABASE_URL can't create databases: ALTER ROLE ... CREATEDB")
            raise
        migrate(_database_url(goqueue_server.url, name), schema=schema)
        whole = sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false").format(identifier)
        connection.execute(whole)
    return name


@pytest.fixture
def goqueue_database(
    request: pytest.FixtureRequest, goqueue_server: DatabaseServer, goqueue_template: str
) -> Iterator[str]:
    """The URL of this test's own migrated, empty database. It is dropped after the test, unless the test failed."""
    name = f"goqueue_test_{os.getpid()}_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    queries = importlib.import_module("goqueue.postgres.queries").load_queries()
    run = request.config.stash[_RUN]
    connection = run.connection()
    # This connection stays open: its session holds the name, so that no other run considers the database abandoned.
    queries.hold_database(connection, name=name)
    # Without fsync, two checkpoints take less time than 8 MB of WAL. Other servers use their default.
    copies = not goqueue_server.lasting and connection.info.server_version >= 150000
    strategy = sql.SQL(" STRATEGY FILE_COPY" if copies else "")
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}{}")
    connection.execute(create.format(identifier, sql.Identifier(goqueue_template), strategy))
    node: pytest.Item = request.node
    node.stash[_DATABASE] = name
    node.stash[_FAILED] = False  # for this run: pytest-rerunfailures runs an item several times
    yield _database_url(goqueue_server.url, name)
    del node.stash[_DATABASE]
    connection = run.connection()  # another one if the test has ended the session
    if node.stash[_FAILED] or request.config.getoption("keep_databases", default=False):
        run.kept.append((name, node.nodeid))
        with suppress(psycopg.errors.InvalidCatalogName):  # dropped by the test itself
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS 'kept after its test'").format(identifier))
    else:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
    queries.release_advisory_locks(connection)


@pytest.fixture
def goqueue_connection(goqueue_database: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to this test's database."""
    with connect(goqueue_database) as connection:
        yield connection


@pytest.fixture
def goqueue_store(goqueue_database: str, goqueue_schema: str) -> Iterator[Any]:
    """An open PostgresStorage on this test's database."""
    config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema)
    with closing(importlib.import_module("goqueue").PostgresStorage.open(config)) as store:
        yield store


def _checked(url: Secret) -> Secret:
    """Return the URL of GOQUEUE_TEST_DATABASE_URL if the server responds; else raise EmbeddedServerError without the
    URL."""
    try:
        DatabaseConfig(url=url)
        connect(url).close()
    except (ConfigError, psycopg.Error) as error:
        problem = error.problems[0] if isinstance(error, ConfigError) else str(error).strip()
    else:
        return url
    raise EmbeddedServerError(f"GOQUEUE_TEST_DATABASE_URL can't be used: {problem}")


def _database_url(server: str, database: str | None = None) -> DatabaseUrl:
    """Return the server's address, given in any form, as a URL; optionally that of another of its databases."""
    options = {name: str(value) for name, value in conninfo_to_dict(server).items() if value is not None}
    database = database or options.get("dbname", "")
    user, password = options.get("user", ""), options.get("password", "")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    rest = {name: value for name, value in options.items() if name not in ("dbname", "user", "password")}
    query = urlencode(rest, quote_via=quote, safe="")
    return DatabaseUrl(
        f"postgresql://{login}{'@' if login else ''}/{quote(database, safe='')}{'?' if query else ''}{query}"
    )


def _shown(url: str) -> str:
    """Return the URL without any password: only the address of the database and the encryption."""
    given = conninfo_to_dict(url)
    names = ("host", "hostaddr", "port", "service", "sslmode", "sslrootcert")
    user, database = (quote(str(given.get(name) or ""), safe="") for name in ("user", "dbname"))
    query = urlencode({name: given[name] for name in names if given.get(name)}, quote_via=quote, safe="")
    return f"postgresql://{user}{'@' if user else ''}/{database}{'?' if query else ''}{query}"
