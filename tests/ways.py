"""The four ways to a store, each as one function: for what holds whichever is taken. Imports goqueue and psycopg."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from goqueue import AsyncPostgresStorage, DatabaseConfig, PostgresStorage

WAYS = ["pool", "bound", "async pool", "async bound"]


@contextmanager
def opened(way: str, config: DatabaseConfig) -> Iterator[Callable[..., Any]]:
    """``call("get_job", job_id)`` calls that method of a store with this configuration and gives what it returns."""
    threshold = config.prepare_threshold
    connect = {"autocommit": True, "prepare_threshold": 5 if threshold == "auto" else threshold}
    with ExitStack() as stack:
        if not way.startswith("async"):
            store = stack.enter_context(PostgresStorage.open(config))
            if way == "bound":
                store = store.bound_to(stack.enter_context(psycopg.connect(config.url, **connect)))  # type: ignore[arg-type]
            yield lambda method, *args, **kwargs: getattr(store, method)(*args, **kwargs)
            return
        runner = stack.enter_context(asyncio.Runner())
        astore = runner.run(AsyncPostgresStorage.open(config))
        stack.callback(lambda: runner.run(astore.close()))
        if way == "async bound":
            connection = runner.run(psycopg.AsyncConnection.connect(config.url, **connect))  # type: ignore[arg-type]
            stack.callback(lambda: runner.run(connection.close()))
            astore = astore.bound_to(connection)
        yield lambda method, *args, **kwargs: runner.run(
            getattr(astore, method)(*args, **kwargs), context=contextvars.copy_context()
        )
