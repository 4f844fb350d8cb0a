"""`bound_to` works in the transactions of other libraries' objects, and says what to pass in place of what has none."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import django
import django.db
import psycopg
import psycopg2
import pytest
import sqlalchemy
import sqlmodel
from anyio.from_thread import start_blocking_portal
from django.conf import settings
from django.db import transaction
from django.db.utils import ConnectionHandler
from django.utils.connection import ConnectionProxy
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    DuplicateJobError,
    InvalidJobError,
    NewJob,
    PostgresStorage,
    Storage,
    StorageError,
    StorageUnavailableError,
)
from tests.blocking import blocking

SECRET = "hunter2"


def engine_url(url: str, driver: str = "psycopg") -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


@pytest.fixture
def engine(goqueue_database: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(engine_url(goqueue_database))
    yield engine
    engine.dispose()


def django_settings(url: str) -> dict[str, Any]:
    given = conninfo_to_dict(url)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {"ENGINE": "django.db.backends.postgresql", **{name: given.get(key, "") for name, key in names.items()}}


def set_up_django() -> None:
    if not settings.configured:
        settings.configure(LOGGING_CONFIG=None)
        django.setup()


@dataclass
class Holder:
    """What an application holds, with one vocabulary for all libraries."""

    given: Any
    #: A store bound to it.
    store: Storage
    execute: Callable[[str], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]
    #: Begins a savepoint, and returns a function that rolls back to it.
    savepoint: Callable[[], Callable[[], Any]]


def synchronous(given: Any, commit: Any = None, rollback: Any = None, execute: Any = None) -> Holder:
    return Holder(
        given,
        PostgresStorage.bound_to(given),
        execute or (lambda text: given.execute(sqlalchemy.text(text))),
        commit or given.commit,
        rollback or given.rollback,
        lambda: given.begin_nested().rollback,
    )


def raw(stack: ExitStack, engine: sqlalchemy.Engine) -> Holder:
    given = engine.raw_connection()
    stack.callback(given.close)

    def savepoint() -> Callable[[], Any]:
        name = f"s{uuid4().hex}"
        given.cursor().execute(f"SAVEPOINT {name}")
        return lambda: given.cursor().execute(f"ROLLBACK TO {name}")

    holder = synchronous(given, execute=lambda text: given.cursor().execute(text))
    holder.savepoint = savepoint
    return holder


def django_holder(stack: ExitStack, url: str, kind: str) -> Holder:
    """A connection of Django in `atomic`, its own or the proxy that applications import."""
    set_up_django()
    handler = ConnectionHandler({"default": django_settings(url)})
    alias, wrapper = f"database_{uuid4().hex[:8]}", handler["default"]
    wrapper.alias = alias
    django.db.connections[alias] = wrapper
    stack.callback(django.db.connections.__delitem__, alias)
    stack.callback(wrapper.close)
    proxy = ConnectionProxy(django.db.connections, alias)
    blocks: list[Any] = []

    def enter() -> None:
        blocks.append(transaction.atomic(using=alias))
        blocks[-1].__enter__()

    def leave(*, fail: bool) -> None:
        wrapper.set_rollback(fail)
        blocks.pop().__exit__(None, None, None)

    def end(*, fail: bool) -> None:
        leave(fail=fail)
        if not blocks:
            enter()

    def savepoint() -> Callable[[], Any]:
        enter()
        return lambda: leave(fail=True)

    enter()
    stack.callback(lambda: leave(fail=True))
    holder = synchronous(
        proxy if kind == "proxy" else wrapper,
        lambda: end(fail=False),
        lambda: end(fail=True),
        lambda text: wrapper.cursor().execute(text),
    )
    holder.savepoint = savepoint
    return holder


def asynchronous(stack: ExitStack, url: str, kind: str) -> Holder:
    portal = stack.enter_context(start_blocking_portal())
    engine: Any = portal.call(create_async_engine, engine_url(url))
    stack.callback(portal.call, engine.dispose)
    makers: dict[str, Callable[[], Any]] = {
        "AsyncConnection": engine.connect,
        "AsyncSession": lambda: AsyncSession(engine),
        "SQLModel's AsyncSession": lambda: SQLModelAsyncSession(engine),
        "async_scoped_session": lambda: async_scoped_session(async_sessionmaker(engine), lambda: 1),
    }

    async def make() -> Any:
        made = makers[kind]()
        return await made.start() if kind == "AsyncConnection" else made

    given: Any = portal.call(make)
    stack.callback(portal.call, given.close)

    async def execute(text: str) -> Any:
        connection = given if kind == "AsyncConnection" else await given.connection()
        return await connection.execute(sqlalchemy.text(text))

    async def begin_nested() -> Any:
        return await given.begin_nested()

    def savepoint() -> Callable[[], Any]:
        nested: Any = portal.call(begin_nested)
        return lambda: portal.call(nested.rollback)

    return Holder(
        given,
        blocking(AsyncPostgresStorage.bound_to(given), portal),
        lambda text: portal.call(execute, text),
        lambda: portal.call(given.commit),
        lambda: portal.call(given.rollback),
        savepoint,
    )


def hold(kind: str, stack: ExitStack, url: str) -> Holder:
    if kind.startswith("Django"):
        return django_holder(stack, url, kind.rsplit(maxsplit=1)[-1])
    if "sync" in kind:
        return asynchronous(stack, url, kind)
    engine = sqlalchemy.create_engine(engine_url(url))
    stack.callback(engine.dispose)
    if kind == "raw_connection":
        return raw(stack, engine)
    if kind == "Connection":
        return synchronous(stack.enter_context(engine.connect()))
    if kind == "scoped_session":
        scoped = scoped_session(sessionmaker(engine))
        stack.callback(scoped.remove)
        return synchronous(scoped)
    maker = sqlmodel.Session if kind == "SQLModel's Session" else Session
    session = stack.enter_context(maker(engine))
    return synchronous(session, execute=lambda text: session.connection().execute(sqlalchemy.text(text)))


SESSIONS = ["Session", "SQLModel's Session", "scoped_session"]
ASYNC_SESSIONS = ["AsyncSession", "SQLModel's AsyncSession", "async_scoped_session"]
KINDS = [
    "Connection", "raw_connection", *SESSIONS, "Django's connection", "Django's proxy", "AsyncConnection",
    *ASYNC_SESSIONS,
]  # fmt: skip


@pytest.fixture
def holder(request: pytest.FixtureRequest, goqueue_database: str) -> Iterator[Holder]:
    with ExitStack() as stack:
        yield hold(request.param, stack, goqueue_database)


@pytest.mark.parametrize("holder", KINDS, indirect=True)
class TestTransactions:
    def test_a_job_alone_is_committed_with_the_transaction(
        self, holder: Holder, goqueue_store: PostgresStorage
    ) -> None:
        job = holder.store.create_job(NewJob(job_type="t"))
        assert goqueue_store.count_jobs() == 0
        holder.commit()
        assert goqueue_store.get_job(job.id) == job

    def test_jobs_are_rolled_back_with_what_the_application_wrote(
        self, holder: Holder, goqueue_store: PostgresStorage
    ) -> None:
        holder.execute("CREATE TABLE orders (id int)")
        holder.store.create_job(NewJob(job_type="t"))
        holder.store.create_jobs(NewJob(job_type="t") for _ in range(3))
        assert holder.store.count_jobs() == 4
        holder.rollback()
        assert goqueue_store.count_jobs() == 0
        holder.execute("CREATE TABLE orders (id int)")

    def test_a_rolled_back_savepoint_removes_only_its_own_jobs(
        self, holder: Holder, goqueue_store: PostgresStorage
    ) -> None:
        kept = holder.store.create_job(NewJob(job_type="kept"))
        undo_outer = holder.savepoint()
        holder.store.create_job(NewJob(job_type="lost"))
        undo_inner = holder.savepoint()
        holder.store.create_jobs([NewJob(job_type="lost")])
        undo_inner()
        assert holder.store.count_jobs() == 2
        undo_outer()
        also = holder.store.create_job(NewJob(job_type="kept"))
        holder.commit()
        assert {job.id for job in goqueue_store.list_jobs().jobs} == {kept.id, also.id}

    def test_a_duplicate_leaves_the_transaction_usable(self, holder: Holder, goqueue_store: PostgresStorage) -> None:
        first = goqueue_store.create_job(NewJob(job_type="t", idempotency_key="k"))
        with pytest.raises(DuplicateJobError) as error:
            holder.store.create_job(NewJob(job_type="t", idempotency_key="k"))
        assert error.value.job_id == first.id
        assert holder.store.get_or_create_job(NewJob(job_type="t", idempotency_key="k")) == (first, False)
        assert holder.store.create_jobs([NewJob(job_type="t", idempotency_key="k")]) == [(first.id, False)]
        second = holder.store.create_job(NewJob(job_type="t"))
        holder.commit()
        assert goqueue_store.get_job(second.id) == second

    def test_after_an_error_nothing_runs_until_the_rollback(
        self, holder: Holder, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        goqueue_connection.execute("ALTER TABLE goqueue.jobs ADD CONSTRAINT good CHECK (job_type <> 'bad')")
        for fail in (
            lambda: holder.store.create_job(NewJob(job_type="bad")),
            lambda: holder.execute("SELECT 1 / 0"),
        ):
            holder.store.create_job(NewJob(job_type="t"))
            with pytest.raises(Exception, match=r"good|division by zero"):
                fail()
            with pytest.raises(StorageError, match="roll back first"):
                holder.store.create_job(NewJob(job_type="t"))
            with pytest.raises(Exception, match="transaction is aborted"):
                holder.execute("SELECT 1")
            holder.rollback()
        assert goqueue_store.count_jobs() == 0
        holder.store.create_job(NewJob(job_type="t"))
        holder.commit()
        assert goqueue_store.count_jobs() == 1

    def test_a_savepoint_survives_an_error_in_it(
        self, holder: Holder, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        goqueue_connection.execute("ALTER TABLE goqueue.jobs ADD CONSTRAINT good CHECK (job_type <> 'bad')")
        holder.store.create_job(NewJob(job_type="t"))
        undo = holder.savepoint()
        with pytest.raises(InvalidJobError, match="good"):
            holder.store.create_job(NewJob(job_type="bad"))
        undo()
        holder.store.create_job(NewJob(job_type="t"))
        holder.commit()
        assert goqueue_store.count_jobs() == 2

    def test_one_bound_store_works_in_consecutive_transactions(
        self, holder: Holder, goqueue_store: PostgresStorage
    ) -> None:
        for kept in (True, False, True):
            holder.store.create_job(NewJob(job_type=str(kept)))
            (holder.commit if kept else holder.rollback)()
        assert [job.job_type for job in goqueue_store.list_jobs().jobs] == ["True", "True"]

    def test_an_open_store_lends_its_settings(self, holder: Holder, goqueue_database: str) -> None:
        config = DatabaseConfig(url=goqueue_database, max_payload_bytes=1024)
        if "async" in type(holder.given).__module__.lower():

            async def settings() -> Any:
                async with await AsyncPostgresStorage.open(config) as store:
                    return store.bound_to(holder.given).config

            assert asyncio.run(settings()) is config
            return
        with PostgresStorage.open(config) as store:
            bound = store.bound_to(holder.given)
            assert bound.config is config
            with pytest.raises(InvalidJobError, match="MAX_PAYLOAD_BYTES"):
                bound.create_job(NewJob(job_type="t", payload="x" * 2000))


def test_each_transaction_uses_the_sessions_present_connection(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    """After a commit, its old connection serves somebody else."""
    engine = sqlalchemy.create_engine(engine_url(goqueue_database), pool_size=2)
    with Session(engine) as session:
        bound = PostgresStorage.bound_to(session)
        bound.create_job(NewJob(job_type="t"))
        session.commit()
        with engine.connect() as other:  # has the connection now
            job = bound.create_job(NewJob(job_type="t"))
            other.rollback()
        session.commit()
    assert goqueue_store.get_job(job.id) == job
    engine.dispose()


def test_binding_alone_connects_to_nothing() -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with Session(engine) as session:
        bound = PostgresStorage.bound_to(session)
        assert not session.in_transaction()
        with pytest.raises(StorageUnavailableError) as error:
            bound.create_job(NewJob(job_type="t"))
        assert isinstance(error.value.__cause__, sqlalchemy.exc.OperationalError)


def test_a_closed_connection_and_an_exhausted_pool_are_errors_of_goqueue(goqueue_database: str) -> None:
    engine = sqlalchemy.create_engine(engine_url(goqueue_database), pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect() as connection:
        bound = PostgresStorage.bound_to(connection)
        with pytest.raises(StorageUnavailableError, match="QueuePool limit"):
            PostgresStorage.bound_to(Session(engine)).create_job(NewJob(job_type="t"))
    with pytest.raises(StorageError, match="has no connection for this call: This Connection is closed"):
        bound.create_job(NewJob(job_type="t"))
    with pytest.raises(StorageError, match="has no connection for this call"):
        PostgresStorage.bound_to(Session()).create_job(NewJob(job_type="t"))
    engine.dispose()


def test_with_autocommit_each_call_is_a_transaction(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    engine = sqlalchemy.create_engine(engine_url(goqueue_database), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))
        assert goqueue_store.count_jobs() == 1
        connection.rollback()
    assert goqueue_store.count_jobs() == 1
    engine.dispose()


def test_djangos_connection_without_atomic_is_in_autocommit(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    set_up_django()
    wrapper = ConnectionHandler({"default": django_settings(goqueue_database)})["default"]
    bound = PostgresStorage.bound_to(wrapper)
    assert wrapper.connection is None
    bound.create_job(NewJob(job_type="t"))  # connects
    wrapper.close()  # as Django does after a request
    bound.create_jobs([NewJob(job_type="t")])
    assert goqueue_store.count_jobs() == 2
    wrapper.close()


def test_a_session_in_a_tests_outer_transaction_works_in_its_savepoint(
    engine: sqlalchemy.Engine, goqueue_store: PostgresStorage
) -> None:
    """As the fixtures of many applications do, whose tests leave nothing behind."""
    with engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            bound = PostgresStorage.bound_to(session)
            bound.create_job(NewJob(job_type="t"))
            session.commit()
            bound.create_jobs([NewJob(job_type="t")])
            session.rollback()
            assert bound.count_jobs() == 1
        outer.rollback()
    assert goqueue_store.count_jobs() == 0


def test_django_rejects_its_connection_in_an_event_loop(goqueue_database: str) -> None:
    set_up_django()
    wrapper = ConnectionHandler({"default": django_settings(goqueue_database)})["default"]

    async def create() -> None:
        PostgresStorage.bound_to(wrapper).create_job(NewJob(job_type="t"))

    with pytest.raises(StorageError, match="You cannot call this from an async context"):
        asyncio.run(create())


def test_a_listener_needs_a_url(goqueue_database: str, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session, PostgresStorage.open(goqueue_database) as store:
        for bound in (PostgresStorage.bound_to(session), PostgresStorage.bound_to(session, schema="tenant_1")):
            for given in (bound, bound.bound_to(session, schema="tenant_2")):
                with pytest.raises(StorageError, match="no URL for a listener"):
                    given.listen("default")
        with store.bound_to(session).listen("default") as listener:
            listener.wait(timedelta(seconds=0.01))


def advice(given: Any, store: Any = PostgresStorage) -> str:
    """What follows the type's name in the message."""
    with pytest.raises(InvalidJobError) as error:
        store.bound_to(given)
    what = "psycopg.Connection" if store is PostgresStorage else "psycopg.AsyncConnection"
    kind = type(given)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    start = f"connection must be a {what} (of psycopg 3), not {name}"
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


def raises(given: Any) -> InvalidJobError:
    with pytest.raises(InvalidJobError) as error:
        PostgresStorage.bound_to(given)
    return error.value


IS_SYNCHRONOUS = "; it is a synchronous one: use PostgresStorage.bound_to"
IS_ASYNCHRONOUS = "; it is an asynchronous one: use AsyncPostgresStorage.bound_to"


class TestTheOtherKind:
    @pytest.mark.parametrize("kind", ["Connection", *SESSIONS, "Django's connection", "Django's proxy"])
    def test_the_asynchronous_store_rejects_a_synchronous_object(self, kind: str, goqueue_database: str) -> None:
        with ExitStack() as stack:
            assert advice(hold(kind, stack, goqueue_database).given, AsyncPostgresStorage) == IS_SYNCHRONOUS

    @pytest.mark.parametrize("kind", ["AsyncConnection", *ASYNC_SESSIONS])
    def test_the_synchronous_store_rejects_an_asynchronous_object(self, kind: str, goqueue_database: str) -> None:
        with ExitStack() as stack:
            assert advice(hold(kind, stack, goqueue_database).given) == IS_ASYNCHRONOUS

    def test_a_session_inside_run_sync_is_asynchronous_below(self, goqueue_database: str) -> None:
        async def ask() -> tuple[str, str]:
            engine = create_async_engine(engine_url(goqueue_database))
            async with AsyncSession(engine) as session:
                said = await session.run_sync(lambda session: (advice(session), advice(session, AsyncPostgresStorage)))
            await engine.dispose()
            return said

        assert asyncio.run(ask()) == (IS_ASYNCHRONOUS, IS_SYNCHRONOUS)

    def test_a_pools_connection_is_accepted_or_rejected_by_its_kind(
        self, goqueue_database: str, engine: sqlalchemy.Engine
    ) -> None:
        pooled = engine.raw_connection()
        with pytest.raises(InvalidJobError, match=r"not psycopg\.Connection; it is a synchronous one"):
            AsyncPostgresStorage.bound_to(pooled)
        pooled.close()
        with pytest.raises(InvalidJobError, match="not NoneType"):
            PostgresStorage.bound_to(pooled)

        async def bind() -> int:
            engine = create_async_engine(engine_url(goqueue_database))
            pooled: Any = await engine.raw_connection()
            bound = AsyncPostgresStorage.bound_to(pooled)
            await bound.create_job(NewJob(job_type="t"))
            count = await bound.count_jobs()
            await sqlalchemy.util.greenlet_spawn(pooled.close)
            await engine.dispose()
            return count

        assert asyncio.run(bind()) == 1


def test_a_factory_of_connections_or_sessions_is_rejected_with_advice(
    engine: sqlalchemy.Engine, goqueue_database: str
) -> None:
    assert advice(engine) == "; pass one of its connections (engine.begin() returns one)"
    asynchronous_engine = create_async_engine(engine_url(goqueue_database))
    assert advice(asynchronous_engine, AsyncPostgresStorage).endswith("(engine.begin() returns one)")
    assert advice(sessionmaker(engine)) == "; pass one of its sessions: call it"
    assert advice(async_sessionmaker(asynchronous_engine), AsyncPostgresStorage).endswith("sessions: call it")
    with Session(engine) as session, session.begin() as begun:
        assert advice(begun) == "; pass its session"
    assert advice(django.db.connections) == '; pass one of its connections: connections["default"]'
    with ExitStack() as stack:
        wrapper = hold("Django's connection", stack, goqueue_database).given
        assert advice(wrapper.cursor()) == "; pass its connection: django.db.connection"


class TestDrivers:
    def test_an_engine_of_another_driver_is_rejected_with_advice(self, goqueue_database: str) -> None:
        with Session(sqlalchemy.create_engine(engine_url(goqueue_database, "psycopg2"))) as session:
            assert advice(session).startswith("; it uses psycopg2; goqueue needs psycopg 3")
            assert advice(session.connection()).startswith("; it uses psycopg2; goqueue needs psycopg 3")
            assert "it is psycopg2's" in str(raises(session.connection().connection))
        unused = AsyncSession(create_async_engine(engine_url(goqueue_database, "asyncpg")))
        assert advice(unused, AsyncPostgresStorage).startswith("; it uses asyncpg; goqueue needs psycopg 3")
        with Session(sqlalchemy.create_engine("sqlite://")) as session:
            assert advice(session).startswith("; it uses pysqlite; goqueue needs psycopg 3")

    def test_a_django_database_of_another_kind_is_rejected_with_advice(self) -> None:
        set_up_django()
        sqlite = ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})["default"]
        assert advice(sqlite).startswith("; it uses sqlite3.dbapi2; goqueue needs psycopg 3")
        none = ConnectionHandler({})["default"]
        assert advice(none).startswith("; it uses no driver; goqueue needs psycopg 3")

    def test_psycopg2s_connection_and_cursor_are_rejected_with_advice(self, goqueue_database: str) -> None:
        connection = psycopg2.connect(goqueue_database)
        for given in (connection, connection.cursor()):
            assert advice(given).startswith("; it is psycopg2's; goqueue needs psycopg 3")
        connection.close()

    def test_asyncpgs_connection_is_rejected_with_advice(self, goqueue_database: str) -> None:
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

    def test_a_connection_of_the_other_kind_is_rejected_with_advice(self, goqueue_database: str) -> None:
        async def connect() -> str:
            async with await psycopg.AsyncConnection.connect(goqueue_database) as connection:
                return advice(connection)

        assert asyncio.run(connect()) == "; it is an asynchronous one: use AsyncPostgresStorage.bound_to"
        with psycopg.connect(goqueue_database) as connection:
            said = advice(connection, AsyncPostgresStorage)
        assert said == "; it is a synchronous one: use PostgresStorage.bound_to"

    def test_a_connection_that_was_not_awaited_is_rejected_with_advice(self, goqueue_database: str) -> None:
        connecting = psycopg.AsyncConnection.connect(goqueue_database)
        assert "; await it" in advice(connecting, AsyncPostgresStorage)
        connecting.close()

    def test_a_cursor_and_a_pool_are_rejected_with_advice(self, goqueue_database: str) -> None:
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


def test_an_object_of_an_unknown_type_is_named_in_full() -> None:
    class Connection:
        pass

    assert advice(Connection()) == ""
    assert advice(None) == ""
    assert advice("postgresql://db/app") == "; open(...) makes a store with its own pool"
