"""`bound_to` says what to pass instead of another library's object, and its advice works."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from goqueue import AsyncPostgresStorage, DatabaseConfig, InvalidJobError, NewJob, PostgresStorage

SECRET = "hunter2"


@pytest.fixture
def engine_url(goqueue_database: str) -> str:
    return goqueue_database.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def engine(engine_url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(engine_url)
    yield engine
    engine.dispose()


def advice(given: Any, store: Any = PostgresStorage) -> str:
    """Return the message after the type's name."""
    with pytest.raises(InvalidJobError) as error:
        store.bound_to(given)
    what = "psycopg.Connection" if store is PostgresStorage else "psycopg.AsyncConnection"
    kind = type(given)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    start = f"connection must be a {what} (of psycopg 3), not {name}"
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


def follow(said: str, **names: Any) -> Any:
    """Evaluate the expression in the advice."""
    expression = said.removeprefix("; pass ").partition(", ")[0]
    return eval(expression, names)


class TestSQLAlchemy:
    def test_a_connection(self, engine: sqlalchemy.Engine, goqueue_store: PostgresStorage) -> None:
        with engine.begin() as connection:
            bound = PostgresStorage.bound_to(follow(advice(connection), connection=connection))
            job = bound.create_job(NewJob(job_type="t"))
            assert goqueue_store.count_jobs() == 0  # not before SQLAlchemy commits
        assert goqueue_store.get_job(job.id) == job

    def test_a_session(self, engine: sqlalchemy.Engine, goqueue_store: PostgresStorage) -> None:
        with Session(engine) as session:
            bound = PostgresStorage.bound_to(follow(advice(session), session=session))
            bound.create_job(NewJob(job_type="t"))
            session.rollback()
        assert goqueue_store.count_jobs() == 0

    def test_a_scoped_session_a_pools_connection_and_an_engine(self, engine: sqlalchemy.Engine) -> None:
        session = scoped_session(sessionmaker(engine))
        PostgresStorage.bound_to(follow(advice(session), session=session)).ping()
        session.remove()
        raw = engine.raw_connection()
        assert advice(raw).startswith("; pass its driver_connection, of a postgresql+psycopg engine")
        PostgresStorage.bound_to(raw.driver_connection).ping()
        raw.close()
        assert "of a connection (engine.begin() returns one)" in advice(engine)

    def test_an_asynchronous_connection_and_session(self, engine_url: str) -> None:
        async def both() -> None:
            engine = create_async_engine(engine_url)
            async with engine.connect() as connection:
                said = advice(connection, AsyncPostgresStorage)
                assert said.startswith(
                    "; pass (await connection.get_raw_connection()).driver_connection, of a postgresql+psycopg engine"
                )
                await AsyncPostgresStorage.bound_to((await connection.get_raw_connection()).driver_connection).ping()
            async with AsyncSession(engine) as session:
                said = advice(session, AsyncPostgresStorage)
                assert said.startswith(
                    "; pass (await (await session.connection()).get_raw_connection()).driver_connection, "
                    "of a postgresql+psycopg engine"
                )
                raw = (await (await session.connection()).get_raw_connection()).driver_connection
                await AsyncPostgresStorage.bound_to(raw).ping()
            assert "of one of its connections" in advice(engine, AsyncPostgresStorage)
            await engine.dispose()

        asyncio.run(both())


def test_djangos_connection(goqueue_database: str) -> None:
    program = """
        import sys
        from django.conf import settings
        from psycopg.conninfo import conninfo_to_dict
        given = conninfo_to_dict(sys.argv[1])
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": given["dbname"], "USER": given["user"]}
        database |= {"HOST": given.get("host", ""), "PASSWORD": given.get("password", "")}
        settings.configure(DATABASES={"default": database | {"PORT": given.get("port", "")}})
        from django.db import connection, connections, transaction
        from goqueue import InvalidJobError, NewJob, PostgresStorage
        for given in (connection, connections["default"]):
            try:
                PostgresStorage.bound_to(given)
            except InvalidJobError as error:
                print(error)
        connection.ensure_connection()
        with transaction.atomic():
            job = PostgresStorage.bound_to(connection.connection).create_job(NewJob(job_type="t"))
        print(PostgresStorage.bound_to(connection.connection).get_job(job.id) == job)
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), goqueue_database]
    first, second, worked = subprocess.check_output(command, text=True).splitlines()
    for line in (first, second):
        assert "; pass connection.connection, after connection.ensure_connection(), with psycopg 3" in line
    assert "django.utils.connection.ConnectionProxy" in first
    assert "django.db.backends.postgresql.base.DatabaseWrapper" in second
    assert worked == "True"


class TestDrivers:
    def test_psycopg2s_connection_and_cursor(self, goqueue_database: str) -> None:
        connection = psycopg2.connect(goqueue_database)
        for given in (connection, connection.cursor()):
            assert advice(given).startswith("; it is psycopg2's; goqueue needs psycopg 3")
        connection.close()

    def test_asyncpgs_connection(self, goqueue_database: str) -> None:
        given = {name: value for name, value in conninfo_to_dict(goqueue_database).items() if name != "dbname"}
        if set(given) - {"host", "port", "user", "password"}:
            pytest.skip("asyncpg takes other parameters")

        async def connect() -> str:
            connection = await asyncpg.connect(**given, database=conninfo_to_dict(goqueue_database)["dbname"])
            try:
                return advice(connection, AsyncPostgresStorage)
            finally:
                await connection.close()

        assert asyncio.run(connect()).startswith("; it is asyncpg's; goqueue needs psycopg 3")

    def test_a_connection_of_the_other_kind(self, goqueue_database: str) -> None:
        async def connect() -> str:
            async with await psycopg.AsyncConnection.connect(goqueue_database) as connection:
                return advice(connection)

        assert asyncio.run(connect()) == "; it is an asynchronous one: use AsyncPostgresStorage.bound_to"
        with psycopg.connect(goqueue_database) as connection:
            said = advice(connection, AsyncPostgresStorage)
        assert said == "; it is a synchronous one: use PostgresStorage.bound_to"

    def test_a_connection_that_was_not_awaited(self, goqueue_database: str) -> None:
        connecting = psycopg.AsyncConnection.connect(goqueue_database)
        assert "; await it" in advice(connecting, AsyncPostgresStorage)
        connecting.close()

    def test_a_cursor_and_a_pool(self, goqueue_database: str) -> None:
        with psycopg.connect(goqueue_database) as connection, connection.cursor() as cursor:
            assert advice(cursor) == "; pass its connection: cursor.connection"
            assert advice(psycopg.ClientCursor(connection)) == "; pass its connection: cursor.connection"
            PostgresStorage.bound_to(cursor.connection).ping()
        with ConnectionPool(goqueue_database, min_size=1, open=True) as pool:
            assert advice(pool) == "; pass one of its connections: with pool.connection() as connection"


@pytest.mark.parametrize(
    "refused",
    [
        PostgresStorage.bound_to,
        PostgresStorage,
        AsyncPostgresStorage.bound_to,
        lambda url: PostgresStorage.open([url]),
        lambda url: PostgresStorage.bound_to(DatabaseConfig(url=url)),
    ],
)
def test_the_value_is_not_shown_because_it_may_hold_a_password(refused: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidJobError) as error:
        refused(f"postgresql://app:{SECRET}@db/app")
    assert SECRET not in str(error.value)


def test_what_is_unknown_is_named_in_full() -> None:
    class Connection:
        pass

    assert advice(Connection()) == ""
    assert advice(None) == ""
    assert advice("postgresql://db/app") == "; open(...) makes a store with its own pool"
