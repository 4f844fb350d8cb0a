"""Pools that stay intact when tasks are cancelled, and iteration over both kinds of iterables.

psycopg's pool tolerates one cancellation at the usual moments. At other moments it lost a connection permanently.
anyio, and so FastAPI, cancels a task repeatedly until it has ended.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from goqueue.cancellation import to_the_end

Connection = TypeVar("Connection", bound=AsyncConnection[Any])


class CancellableConnectionPool(AsyncConnectionPool[Connection]):
    """A pool that takes back and closes all its connections even if the task is cancelled in the meantime."""

    async def putconn(self, conn: Connection) -> None:
        await to_the_end(super().putconn(conn))

    # psycopg's timeout is for tasks that are still connecting. They end by themselves, and a cancelled task must not
    # wait.
    async def close(self, timeout: float = 1.0) -> None:
        await to_the_end(super().close(timeout))


Item = TypeVar("Item")

# Items taken from an iterable that never waits, before the event loop's other tasks get a turn.
_AT_ONCE = 100


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """Yield the items of an iterable of either kind, in order."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for number, item in enumerate(items, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            yield item
