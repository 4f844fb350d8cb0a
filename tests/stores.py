"""Stores of every kind for the contract's tests, and one of each kind that tests share.

Imports goqueue, tests.blocking, tests.pgbouncer, psycopg and anyio.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import psycopg
from anyio.from_thread import start_blocking_portal
from msgspec.structs import replace
from psycopg import sql
from psycopg.conninfo import make_conninfo

from goqueue import AsyncPostgresStorage, DatabaseConfig, GoQueueError, PostgresStorage, Storage
from goqueue.conninfo import connect
from goqueue.postgres.queries import load_queries
from tests import pgbouncer
from tests.blocking import blocking

Through = Callable[[], Callable[[str], str]]


@contextmanager
def opened(kind: str, url: str, schema: str, through_pgbouncer: Through) -> Iterator[Storage]:
    # Longer than by default for locks: on a stalled machine, a test is late to end the other side.
    config = DatabaseConfig(url=url, schema=schema, lock_timeout=timedelta(minutes=1))
    if kind == "pool":
        with PostgresStorage.open(config) as store:
            yield store
    elif kind == "pgbouncer":
        through = through_pgbouncer()(url)
        config = replace(config, url=through)
        with pgbouncer.sessions(through, url), PostgresStorage.open(config) as store:
            yield store
    elif kind == "async pool":
        with start_blocking_portal() as portal:
            store_async = portal.call(AsyncPostgresStorage.open, config)
            yield blocking(store_async, portal)
            portal.call(store_async.close)
    elif kind == "async bound":
        with start_blocking_portal() as portal:
            connection_async = portal.call(partial(psycopg.AsyncConnection.connect, url, autocommit=True))
            yield blocking(AsyncPostgresStorage.bound_to(connection_async, schema=schema), portal)
            portal.call(connection_async.close)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            yield PostgresStorage.bound_to(connection, schema=schema)


class _Open(NamedTuple):
    store: Any
    database: str
    connection: psycopg.Connection[Any]
    closing: ExitStack


class SharedStores:
    """One store of each kind, each on its own database. A process opens it once and empties it before each test."""

    def __init__(self, server: str, template: str, schema: str, through_pgbouncer: Through) -> None:
        self._server, self._template, self._schema = server, template, schema
        self._through_pgbouncer = through_pgbouncer
        self._open: dict[str, _Open] = {}

    def empty(self, kind: str) -> tuple[Storage, str]:
        """Return the store and the name of its database, with empty tables. Replace a store that a test has closed."""
        if kind in self._open:
            try:
                self._clear(self._open[kind])
            except (GoQueueError, psycopg.Error):
                self.replace(kind)
        if kind not in self._open:
            self._open[kind] = self._opened(kind)
        return self._open[kind].store, self._open[kind].database

    def replace(self, kind: str, *, keep: bool = False) -> None:
        """Close the store, so that the next test gets a new one. Drop its database unless ``keep`` is true."""
        known = self._open.pop(kind)
        if keep:
            comment = sql.SQL("COMMENT ON DATABASE {} IS 'kept after its test'").format(sql.Identifier(known.database))
            with suppress(psycopg.Error):
                known.connection.execute(comment)
        known.closing.close()

    def close(self) -> None:
        for kind in list(self._open):
            self.replace(kind)

    def _opened(self, kind: str) -> _Open:
        name = f"goqueue_test_{os.getpid()}_{secrets.token_hex(6)}"
        identifier = sql.Identifier(name)
        with ExitStack() as stack:
            connection = stack.enter_context(connect(self._server))
            load_queries().hold_database(connection, name=name)
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(create.format(identifier, sql.Identifier(self._template)))
            stack.callback(self._drop, connection, name)
            url = make_conninfo(self._server, dbname=name)
            store = stack.enter_context(opened(kind, url, self._schema, self._through_pgbouncer))
            inside = stack.enter_context(connect(url))
            inside.execute("SET lock_timeout = '5s'")  # a test may have left a transaction open
            return _Open(store, name, inside, stack.pop_all())

    @staticmethod
    def _drop(connection: psycopg.Connection[Any], name: str) -> None:
        kept = "SELECT FROM pg_database WHERE datname = %s AND shobj_description(oid, 'pg_database') IS NOT NULL"
        if not connection.execute(kept, [name]).rowcount:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _clear(self, known: _Open) -> None:
        tables = [sql.Identifier(self._schema, name) for name in ("jobs", "job_failures", "paused_queues")]
        known.connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(tables)))
        known.store.ping()
        memory = getattr(known.store, "store", known.store)  # the asynchronous store behind a blocking one
        memory._positions.clear()
        memory._kept.clear()
