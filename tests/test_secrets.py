"""No traceback shows a password: pytest with local variables, rich, error trackers; nor does a repr."""

import asyncio
import copy
import io
import os
import pickle
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import pytest
from rich.console import Console
from rich.traceback import Traceback

from goqueue import AsyncPostgresStorage, DatabaseConfig, GoQueueError, PostgresStorage, load_config
from goqueue.config import load_settings
from goqueue.conninfo import Secret, connect
from goqueue.migrate import list_migrations, migrate, undo
from goqueue.pytest_plugin import DatabaseServer, DatabaseUrl
from goqueue.testing.scratch import scratch_database

REPO = Path(__file__).resolve().parent.parent
SECRET = "s3cret"
LONG = "x" * 100  # rich cuts values longer than 80 characters and then takes the repr

#: Nothing listens on port 1. There is a password in each place from which libpq reads one.
DEAD = {
    "url": f"postgresql://t:{SECRET}@127.0.0.1:1/x",
    "escaped": f"postgresql://t:{SECRET}%40%2F@127.0.0.1:1/x",
    "words": f"host=127.0.0.1 port=1 user=t password='{SECRET} word' dbname=x",
    "query": f"postgresql://t@127.0.0.1:1/x?password={SECRET}&application_name={LONG}",
    "sslpassword": f"postgresql://t@127.0.0.1:1/x?sslpassword={SECRET}",
    "options": f"postgresql://t@127.0.0.1:1/x?options=-c%20my.password%3D{SECRET}",
}
#: Rejected before a connection is opened.
REFUSED = {
    "unescaped": f"postgresql://t:p@{SECRET}@127.0.0.1:1/x",
    "unknown": f"host=127.0.0.1 {SECRET}",
    "port": f"postgresql://t:{SECRET}@127.0.0.1:99999/x",
}

Call = Callable[[Any], Any]


def open_async(url: Any) -> None:
    asyncio.run(AsyncPostgresStorage.open(url))


def open_given_up(url: Any) -> None:
    url = Secret(url)  # in this file's frames

    async def give_up() -> None:
        await asyncio.wait_for(AsyncPostgresStorage.open(str(url)), 0.05)

    asyncio.run(give_up())


def configure(url: Any) -> None:
    DatabaseConfig(url=url, batch_size=0)


def configure_listening(url: Any) -> None:
    DatabaseConfig(url="postgresql://", listen_url=url, batch_size=0)


def misspell(url: Any) -> None:
    DatabaseConfig(urls=url)  # type: ignore[call-arg]


def give_by_position(url: Any) -> None:
    DatabaseConfig(url)  # type: ignore[misc]


def load(url: Any) -> None:
    load_config(environ={"GOQUEUE_DATABASE_URL": url, "GOQUEUE_DATABASE_BATCH_SIZE": "0", "PGPASSWORD": SECRET})


def load_shown(url: Any) -> None:
    load_settings(environ={"GOQUEUE_DATABASE_URL": url, "GOQUEUE_DATABASE_BATCH_SIZE": "0", "PGPASSWORD": SECRET})


def take_back(url: Any) -> None:
    undo(url, to=0)


def explain(url: Any) -> None:
    with scratch_database(url, 1):
        pass


CALLS: list[Call] = [PostgresStorage.open, open_async, connect, list_migrations, migrate, take_back, explain]


def walked(error: BaseException) -> Iterator[str]:
    """Return the repr of each local variable in the frames of an error and its causes, except this file's frames."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        links += [link.__cause__, link.__context__]
        yield repr(link)
        yield str(link)
        step: TracebackType | None = link.__traceback__
        while step is not None:
            if step.tb_frame.f_code.co_filename != __file__:
                yield from map(repr, step.tb_frame.f_locals.values())
            step = step.tb_next


def shows_nothing(call: Call, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its repr is safe in this file's frames; the called code receives plain text.
    monkeypatch.setenv("NOT_SHOWN", url)

    def run() -> None:
        call(os.environ["NOT_SHOWN"])

    try:
        run()
    except Exception as error:
        found = list(walked(error))
        inner = error.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
            inner = inner.tb_next
        error.__traceback__ = inner
        found += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        screen = Console(file=io.StringIO(), width=300)
        screen.print(Traceback.from_exception(type(error), error, inner, show_locals=True, locals_max_length=100))
        found.append(screen.file.getvalue())  # type: ignore[attr-defined]
    else:
        pytest.fail("it was to raise")
    assert [text for text in found if SECRET in text] == []


@pytest.mark.parametrize("form", DEAD)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_server_that_cannot_be_reached_shows_no_password(
    call: Call, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows_nothing(call, DEAD[form], monkeypatch)


@pytest.mark.parametrize("call", [PostgresStorage.open, open_async, migrate, take_back], ids=lambda call: call.__name__)
@pytest.mark.parametrize("form", REFUSED)
def test_a_rejected_url_shows_no_password(call: Call, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shows_nothing(call, REFUSED[form], monkeypatch)


@pytest.mark.parametrize("form", [*DEAD, *REFUSED])
@pytest.mark.parametrize(
    "call",
    [configure, configure_listening, misspell, give_by_position, load, load_shown],
    ids=lambda call: call.__name__,
)
def test_a_rejected_setting_beside_a_url_shows_no_password(
    call: Call, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows_nothing(call, (DEAD | REFUSED)[form], monkeypatch)


@pytest.mark.parametrize("fresh", [True, False])
def test_an_error_of_a_store_with_a_standby_shows_no_password(
    goqueue_database: str, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(url: Any) -> None:
        with PostgresStorage.open(DatabaseConfig(url=goqueue_database, read_url=url)) as store:
            with psycopg.connect(goqueue_database, autocommit=True) as admin:
                admin.execute("ALTER TABLE goqueue.jobs RENAME TO gone")
            store.count_jobs(fresh=fresh)

    shows_nothing(read, DEAD["url"], monkeypatch)


def test_a_bad_schema_beside_a_connection_shows_no_password(
    goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(url: Any) -> None:
        with psycopg.connect(url) as connection:
            PostgresStorage.bound_to(connection, schema="Tenant-1")

    shows_nothing(bind, psycopg.conninfo.make_conninfo(goqueue_database, password=SECRET), monkeypatch)


def test_an_abandoned_connection_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://t:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/x"
        shows_nothing(open_given_up, url, monkeypatch)


def test_a_listener_and_a_bound_store_show_none(goqueue_database: str, goqueue_connection: Any) -> None:
    goqueue_connection.execute(f"CREATE ROLE secretive LOGIN SUPERUSER PASSWORD '{SECRET}'")
    try:
        given = psycopg.conninfo.conninfo_to_dict(goqueue_database)
        connection = psycopg.connect(**(given | {"user": "secretive", "password": SECRET}), autocommit=True)
        store = PostgresStorage.bound_to(connection)
        assert SECRET not in repr(store.config)
        dead = PostgresStorage(DatabaseConfig(url=DEAD["url"]), connection=connection)
        with pytest.raises(GoQueueError) as error, dead.listen("default"):
            pass
        assert [text for text in walked(error.value) if SECRET in text] == []
        connection.close()
        with pytest.raises(GoQueueError) as error:
            PostgresStorage.bound_to(connection)
        assert [text for text in walked(error.value) if SECRET in text] == []
    finally:
        goqueue_connection.execute("DROP ROLE secretive")


class TestValues:
    def test_a_secret_is_a_text_that_shows_nothing(self) -> None:
        text = Secret(SECRET)
        assert text == SECRET
        assert {repr(text), repr(text[:3]), repr([text][0])} == {"'***'"}
        assert pickle.loads(pickle.dumps(text)) == SECRET

    def test_a_configuration_keeps_a_plain_url_and_shows_none(self) -> None:
        config = DatabaseConfig(url=Secret(DEAD["url"]), statement_timeout=timedelta(seconds=1))
        assert type(config.url) is str
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
        assert SECRET not in repr(config)
        assert SECRET not in f"{config} {config!r} {[config]}"

    def test_a_test_databases_url_shows_none(self) -> None:
        for url in (*DEAD.values(), *REFUSED.values()):
            assert SECRET not in repr(DatabaseUrl(url)[:40])
        for form in ("url", "escaped", "query", "sslpassword", "options", "words"):
            assert SECRET not in repr(DatabaseUrl(DEAD[form]))
            assert "127.0.0.1" in repr(DatabaseUrl(DEAD[form]))


# --- the plugin -----------------------------------------------------------------------------------------------------

USES = """
    def test_one(goqueue_store):
        goqueue_store.ping()

    def test_two(goqueue_connection):
        pass
"""
OPENS = """
    import asyncio, os, pytest
    from goqueue import AsyncPostgresStorage, DatabaseConfig, PostgresStorage, load_config
    from goqueue.migrate import migrate

    def test_open():
        PostgresStorage.open(os.environ["DEAD"])

    def test_open_async():
        asyncio.run(AsyncPostgresStorage.open(os.environ["DEAD"]))

    def test_configure():
        PostgresStorage.open(DatabaseConfig(url=os.environ["DEAD"], batch_size=0))

    def test_load():
        load_config()

    def test_migrate():
        migrate(os.environ["DEAD"])

    def test_database(goqueue_database):
        assert not goqueue_database
"""
EVERYTHING = ("-l", "--tb=long", "-vv", "-rA")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, goqueue_server: DatabaseServer) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p goqueue.pytest_plugin -p no:cacheprovider")
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", goqueue_server.url)
    for variable in ("GOQUEUE_TEST_SERVER", "GOQUEUE_TEST_POSTGRES_IMAGE", "GOQUEUE_TEST_POSTGRES_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return pytester


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("url", ()),
        ("url", EVERYTHING),
        ("escaped", (*EVERYTHING, "-n", "1")),
        ("words", (*EVERYTHING, "--full-trace")),
        ("query", EVERYTHING),
        ("sslpassword", ("-l", "--full-trace")),
        ("unescaped", EVERYTHING),
        ("unknown", (*EVERYTHING, "-n", "1")),
    ],
)
def test_a_test_server_that_cannot_be_used_is_named_without_its_password(
    form: str, options: tuple[str, ...], run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", (DEAD | REFUSED)[form])
    run.makepyfile(USES)
    result = run.runpytest_inprocess(*options)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*GOQUEUE_TEST_DATABASE_URL can't be used: *"])
    assert SECRET not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("options", [EVERYTHING, ("-l", "--full-trace")])
def test_tests_that_fail_show_no_password_of_the_stores(
    options: tuple[str, ...], run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEAD", DEAD["url"])
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", DEAD["url"])
    monkeypatch.setenv("GOQUEUE_DATABASE_BATCH_SIZE", "0")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    run.makepyfile(OPENS)
    result = run.runpytest_inprocess(*options)
    result.assert_outcomes(failed=6)
    assert SECRET not in result.stdout.str() + result.stderr.str()


def test_a_template_that_cannot_be_made_shows_no_password(
    run: pytest.Pytester, goqueue_server: DatabaseServer, goqueue_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = psycopg.conninfo.conninfo_to_dict(goqueue_server.url)
    given |= {"user": "secretive_maker", "password": SECRET}
    goqueue_connection.execute(f"CREATE ROLE secretive_maker LOGIN PASSWORD '{SECRET}'")
    try:
        monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", psycopg.conninfo.make_conninfo(**given))
        run.makepyfile(USES)
        result = run.runpytest_inprocess(*EVERYTHING)
        result.assert_outcomes(errors=2)
        result.stdout.fnmatch_lines(["*permission denied to create database*"])
        assert SECRET not in result.stdout.str() + result.stderr.str()
    finally:
        goqueue_connection.execute("DROP ROLE secretive_maker")


def test_a_program_with_richs_tracebacks_shows_no_password() -> None:
    program = """
        import os
        import rich.traceback
        rich.traceback.install(show_locals=True)
        from goqueue import PostgresStorage
        PostgresStorage.open(os.environ["DEAD"])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, env=os.environ | {"DEAD": DEAD["query"], "COLUMNS": "200"}, capture_output=True, text=True, check=False
    )
    assert "StorageUnavailableError" in done.stderr
    assert SECRET not in done.stderr
