"""The tests' stores and statements in another schema, and their reads on a standby, although the tests name neither.

Imports goqueue and psycopg.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
from msgspec.structs import replace
from psycopg import sql

from goqueue import AsyncPostgresStorage, Config, DatabaseConfig, PostgresStorage
from goqueue.conninfo import Secret
from goqueue.schemas import DEFAULT_SCHEMA, render
from tests import standby


def take_schema(schema: str) -> None:
    """Open stores in this schema unless a test names one. Statements name goqueue, as the SQL files do."""

    class InSchema(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return super().execute(_rendered(query, schema, self.connection), *args, **kwargs)

    class AsyncInSchema(psycopg.AsyncCursor[Any]):
        async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return await super().execute(_rendered(query, schema, self.connection), *args, **kwargs)

    # The connections' defaults. goqueue has cursors of its own.
    psycopg.connection.Cursor = InSchema  # type: ignore[misc,assignment]
    psycopg.connection_async.AsyncCursor = AsyncInSchema  # type: ignore[misc,assignment]
    _configure(lambda config: replace(config, schema=schema) if config.schema == DEFAULT_SCHEMA else config)
    for store in (PostgresStorage, AsyncPostgresStorage):
        store.bound_to = _BoundTo(vars(store)["bound_to"], schema)  # type: ignore[method-assign,assignment]


def read_on_standby() -> None:
    """Read lists, counts and statistics on the standby, as soon as it shows all earlier changes."""
    _configure(lambda config: config if config.read_url else replace(config, read_url=standby.url_of(config.url)))
    reading, reading_async = PostgresStorage._reading, AsyncPostgresStorage._reading

    @contextmanager
    def caught_up(self: PostgresStorage, *, fresh: bool) -> Iterator[Any]:
        if not fresh and self._pool is not None:
            _catch_up()
        with reading(self, fresh=fresh) as connection:
            yield connection

    @asynccontextmanager
    async def caught_up_async(self: AsyncPostgresStorage, *, fresh: bool) -> AsyncIterator[Any]:
        if not fresh and self._pool is not None:
            await asyncio.to_thread(_catch_up)
        async with reading_async(self, fresh=fresh) as connection:
            yield connection

    PostgresStorage._reading = caught_up  # type: ignore[method-assign]
    AsyncPostgresStorage._reading = caught_up_async  # type: ignore[method-assign]


def _rendered(query: Any, schema: str, connection: Any) -> Any:
    if isinstance(query, sql.Composable):
        query = query.as_string(connection)
    if isinstance(query, bytes):
        return render(query.decode(), schema).encode()
    return render(query, schema) if isinstance(query, str) else query


class _BoundTo:
    """`bound_to` of the class, with another schema than goqueue by default."""

    def __init__(self, original: Any, schema: str) -> None:
        self._original, self._schema = original, schema

    def __get__(self, store: Any, owner: Any) -> Any:
        bound_to = self._original.__get__(store, owner)
        return partial(bound_to, schema=self._schema) if store is None else bound_to


def _configure(changed: Callable[[DatabaseConfig], DatabaseConfig]) -> None:
    """Change the configuration of each store that is opened."""
    for store in (PostgresStorage, AsyncPostgresStorage):

        def open_changed(cls: Any, config: Any = "", original: Any = store.open.__func__) -> Any:
            if isinstance(config, str):
                config = Secret(config)
                config = DatabaseConfig(url=config)
            elif isinstance(config, Config):
                config = config.database
            return original(cls, changed(config) if isinstance(config, DatabaseConfig) else config)

        store.open = classmethod(open_changed)  # type: ignore[method-assign,assignment]


def _catch_up() -> None:
    primary = os.environ["GOQUEUE_TEST_DATABASE_URL"]
    standby.replayed(primary, standby.url_of(primary))
