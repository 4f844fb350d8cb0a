"""The four ways to a store, each as a function, for tests that hold for all. Imports goqueue and psycopg."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from goqueue import AsyncPostgresStorage, DatabaseConfig, PostgresStorage

WAYS = ["pool", "bound", "async pool", "async bound"]


@dataclass(frozen=True)
class Way:
    """``call("get_job", job_id)`` returns the result of that method of the store. ``select(sql)`` returns the rows of a
    test's statement in the store's session (of a pool: in one of them)."""

    call: Callable[..., Any]
    select: Callable[[str], list[Any]]


@contextmanager
def opened(way: str, config: DatabaseConfig, **connect: Any) -> Iterator[Way]:
    """Open a store with this configuration; ``connect`` is for the connection of a bound one."""
    threshold = config.prepare_threshold
    connect = {"autocommit": True, "prepare_threshold": 1 if threshold == "auto" else threshold, **connect}
    with ExitStack() as stack:
        if way.startswith("async"):
            runner = stack.enter_context(asyncio.Runner())
            yield runner.run(_opened_async(way, config, connect, runner, stack))
            return
        store = stack.enter_context(PostgresStorage.open(config))
        if way == "bound":
            store = store.bound_to(stack.enter_context(psycopg.connect(config.url, **connect)))

        def select(statement: str) -> list[Any]:
            with store._connection() as connection:
                return connection.execute(statement).fetchall()

        yield Way(lambda method, *args, **kwargs: getattr(store, method)(*args, **kwargs), select)


async def _opened_async(
    way: str, config: DatabaseConfig, connect: dict[str, Any], runner: asyncio.Runner, stack: ExitStack
) -> Way:
    store = opened_store = await AsyncPostgresStorage.open(config)
    stack.callback(lambda: runner.run(opened_store.close()))
    if way == "async bound":
        connection = await psycopg.AsyncConnection.connect(config.url, **connect)
        stack.callback(lambda: runner.run(connection.close()))
        store = store.bound_to(connection)

    async def select(statement: str) -> list[Any]:
        async with store._connection() as connection:
            return await (await connection.execute(statement)).fetchall()

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        return runner.run(getattr(store, method)(*args, **kwargs), context=contextvars.copy_context())

    return Way(call, lambda statement: runner.run(select(statement)))
