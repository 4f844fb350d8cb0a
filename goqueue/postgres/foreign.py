"""Advice for `bound_to`: what to pass instead of another library's object."""

import psycopg

from goqueue.errors import InvalidJobError
from goqueue.validation import full_name

_NEEDS_3 = "goqueue needs psycopg 3 (package psycopg, `import psycopg`)"
_ENGINE = "of a postgresql+psycopg engine"
_OPEN = "open(...) makes a store with its own pool"

# By the full name of a type or of one of its bases. None of these libraries is imported.
_ADVICE = {
    "sqlalchemy.engine.base.Connection": f"pass connection.connection.driver_connection, {_ENGINE}",
    "sqlalchemy.engine.base.Engine": (
        f"pass connection.connection.driver_connection of a connection (engine.begin() returns one), {_ENGINE}"
    ),
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": (
        "pass (await connection.get_raw_connection()).driver_connection of one of its connections "
        f"(engine.begin() returns one), {_ENGINE}"
    ),
    "sqlalchemy.orm.session.Session": (f"pass session.connection().connection.driver_connection, {_ENGINE}"),
    "sqlalchemy.orm.scoping.scoped_session": (f"pass session.connection().connection.driver_connection, {_ENGINE}"),
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": (
        f"pass (await connection.get_raw_connection()).driver_connection, {_ENGINE}"
    ),
    "sqlalchemy.ext.asyncio.session.AsyncSession": (
        f"pass (await (await session.connection()).get_raw_connection()).driver_connection, {_ENGINE}"
    ),
    "sqlalchemy.pool.base.PoolProxiedConnection": f"pass its driver_connection, {_ENGINE}",
    "django.db.backends.base.base.BaseDatabaseWrapper": (
        "pass connection.connection, after connection.ensure_connection(), with psycopg 3 installed"
    ),
    "django.utils.connection.ConnectionProxy": (
        "pass connection.connection, after connection.ensure_connection(), with psycopg 3 installed"
    ),
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
    "psycopg.Connection": "it is a synchronous one: use PostgresStorage.bound_to",
    "psycopg.AsyncConnection": "it is an asynchronous one: use AsyncPostgresStorage.bound_to",
    "builtins.str": _OPEN,
    "goqueue.config.DatabaseConfig": _OPEN,
    "goqueue.config.Config": _OPEN,
    "builtins.coroutine": "await it: `await psycopg.AsyncConnection.connect(...)`",
}


def check_connection(given: object, wanted: type[psycopg.Connection] | type[psycopg.AsyncConnection]) -> None:
    """Raise `InvalidJobError`, saying what to pass, unless ``given`` is a psycopg 3 connection."""
    if isinstance(given, wanted):
        return
    # Only its type: a URL may hold a password.
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(given).__mro__)
    advice = next((f"; {_ADVICE[name]}" for name in names if name in _ADVICE), "")
    expected = f"psycopg.{wanted.__name__}"
    raise InvalidJobError(f"connection must be a {expected} (of psycopg 3), not {full_name(type(given))}{advice}")
