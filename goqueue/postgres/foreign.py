"""The psycopg connections of other libraries' objects, and advice for objects without one. Imports none of them."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import psycopg

from goqueue.errors import GoQueueError, InvalidJobError, StorageError, StorageUnavailableError
from goqueue.postgres.translate import translate
from goqueue.validation import full_name

_NEEDS_3 = (
    "goqueue needs psycopg 3 (package psycopg, `import psycopg`); for another driver, run the statement of "
    "goqueue.numbered_statement or goqueue.named_statement"
)
_OTHER_KIND = {
    False: "it is a synchronous one: use PostgresStorage.bound_to",
    True: "it is an asynchronous one: use AsyncPostgresStorage.bound_to",
}
_BEGIN = "pass one of its connections (engine.begin() returns one)"
_OPEN = "open(...) makes a store with its own pool"
# Keys, here and below: the full name of a type or of one of its bases.
_ADVICE = {
    "sqlalchemy.engine.base.Engine": _BEGIN,
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": _BEGIN,
    "sqlalchemy.orm.session.sessionmaker": "pass one of its sessions: call it",
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": "pass one of its sessions: call it",
    "sqlalchemy.orm.session.SessionTransaction": "pass its session",
    "sqlalchemy.ext.asyncio.session.AsyncSessionTransaction": "pass its session",
    "django.utils.connection.BaseConnectionHandler": 'pass one of its connections: connections["default"]',
    "django.db.backends.utils.CursorWrapper": "pass its connection: django.db.connection",
    "psycopg2.extensions.connection": f"it is psycopg2's; {_NEEDS_3}",
    "psycopg2.extensions.cursor": f"it is psycopg2's; {_NEEDS_3}",
    "asyncpg.connection.Connection": f"it is asyncpg's; {_NEEDS_3}",
    "asyncpg.pool.PoolConnectionProxy": f"it is asyncpg's; {_NEEDS_3}",
    "asyncpg.pool.Pool": f"it is asyncpg's; {_NEEDS_3}",
    "psycopg.Cursor": "pass its connection: cursor.connection",
    "psycopg.AsyncCursor": "pass its connection: cursor.connection",
    "psycopg_pool.pool.ConnectionPool": "pass one of its connections: with pool.connection() as connection",
    "psycopg_pool.pool_async.AsyncConnectionPool": (
        "pass one of its connections: async with pool.connection() as connection"
    ),
    "psycopg.Connection": _OTHER_KIND[False],
    "psycopg.AsyncConnection": _OTHER_KIND[True],
    "builtins.str": _OPEN,
    "goqueue.config.DatabaseConfig": _OPEN,
    "goqueue.config.Config": _OPEN,
    "builtins.coroutine": "await it",
}


class Transactional(Protocol):
    """The type of SQLAlchemy's Session and Connection, SQLModel's Session, and Django's connection."""

    @property
    def connection(self) -> Any: ...
    def commit(self) -> None: ...


class AsyncTransactional(Protocol):
    """The type of SQLAlchemy's AsyncSession and AsyncConnection, and SQLModel's AsyncSession."""

    @property
    def connection(self) -> Any: ...
    def commit(self) -> Awaitable[None]: ...


# Each function below returns the driver's connection of the current transaction. If there is none, it begins one, so
# that the library's own commit commits the job.


def _of_connection(given: Any) -> object:
    if not given.in_transaction():
        given.begin()
    return given.connection.driver_connection


async def _of_async_connection(given: Any) -> object:
    if not given.in_transaction():
        await given.begin()
    return (await given.get_raw_connection()).driver_connection


def _of_session(given: Any) -> object:
    return _of_connection(given.connection())


async def _of_async_session(given: Any) -> object:
    return await _of_async_connection(await given.connection())


def _of_pooled(given: Any) -> object:
    return given.driver_connection


async def _of_async_pooled(given: Any) -> object:
    return given.driver_connection


def _of_django(given: Any) -> object:
    given.ensure_connection()
    return given.connection


_LENDERS: dict[str, Callable[[Any], Any]] = {
    "sqlalchemy.engine.base.Connection": _of_connection,
    "sqlalchemy.orm.session.Session": _of_session,
    "sqlalchemy.orm.scoping.scoped_session": _of_session,
    "sqlalchemy.pool.base.PoolProxiedConnection": _of_pooled,
    "django.db.backends.base.base.BaseDatabaseWrapper": _of_django,
    "django.utils.connection.ConnectionProxy": _of_django,
}
_ASYNC_LENDERS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": _of_async_connection,
    "sqlalchemy.ext.asyncio.session.AsyncSession": _of_async_session,
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": _of_async_session,
    "sqlalchemy.pool.base.PoolProxiedConnection": _of_async_pooled,
}


class Lender:
    """A library's object that lends a psycopg connection, possibly another one in each transaction."""

    def __init__(self, given: Any) -> None:
        """Raise `InvalidJobError` if ``given`` has no synchronous psycopg connection. The error says what to pass."""
        self._given = given
        self._lend = _lend_of(given, _LENDERS, psycopg.Connection)

    def connection(self) -> psycopg.Connection[Any]:
        """Return the connection of the object's current transaction."""
        try:
            lent = self._lend(self._given)
        except Exception as exc:
            raise _not_lent(self._given, exc) from exc
        if not isinstance(lent, psycopg.Connection):
            raise _unfit(lent, psycopg.Connection)
        return lent


class AsyncLender:
    """A `Lender` of asynchronous psycopg connections."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._lend = _lend_of(given, _ASYNC_LENDERS, psycopg.AsyncConnection)

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        try:
            lent = await self._lend(self._given)
        except Exception as exc:
            raise _not_lent(self._given, exc) from exc
        if not isinstance(lent, psycopg.AsyncConnection):
            raise _unfit(lent, psycopg.AsyncConnection)
        return lent


def _lend_of(given: Any, lenders: dict[str, Callable[[Any], Any]], wanted: type) -> Callable[[Any], Any]:
    names = _names(given)
    lend = next((lenders[name] for name in names if name in lenders), None)
    if lend is None:
        raise _unfit(given, wanted)
    driver, is_async = "psycopg", wanted is psycopg.AsyncConnection
    if lend is _of_django:
        driver = getattr(getattr(given, "Database", None), "__name__", "no driver")
    elif lend in (_of_pooled, _of_async_pooled):
        if not isinstance(given.driver_connection, wanted):
            raise _unfit(given.driver_connection, wanted)
    else:
        with suppress(Exception):  # no engine: reported when the connection is used
            dialect = (given if hasattr(given, "dialect") else given.get_bind()).dialect
            driver, is_async = dialect.driver, dialect.is_async
    if driver not in ("psycopg", "psycopg_async"):
        raise _unfit(given, wanted, f"it uses {driver}; {_NEEDS_3}")
    if is_async != (wanted is psycopg.AsyncConnection):
        raise _unfit(given, wanted, _OTHER_KIND[is_async])
    return lend


def _names(given: Any) -> list[str]:
    # Not type(): __class__ of a proxy is the class of the object behind it.
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in given.__class__.__mro__]


def _unfit(given: object, wanted: type, advice: str = "") -> InvalidJobError:
    if not advice:
        names = _names(given)
        advice = next((_ADVICE[name] for name in names if name in _ADVICE), "")
        advice = advice or next(
            (_OTHER_KIND[name in _ASYNC_LENDERS] for name in names if name in _LENDERS | _ASYNC_LENDERS), ""
        )
    # The message has only the type: a URL can contain a password.
    said = f"connection must be a psycopg.{wanted.__name__} (of psycopg 3), not {full_name(type(given))}"
    return InvalidJobError(f"{said}; {advice}" if advice else said)


def _not_lent(given: object, error: Exception) -> GoQueueError:
    if isinstance(error.__cause__, psycopg.Error):
        return translate(error.__cause__)
    kind = StorageUnavailableError if type(error).__name__ == "TimeoutError" else StorageError
    return kind(f"{full_name(type(given))} has no connection for this call: {error}")
