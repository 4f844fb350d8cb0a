"""Cancellation: work and pools that stay whole when tasks are cancelled, and iteration for both kinds.

psycopg's pool tolerates one cancellation at the usual moments. At another moment it lost a connection for good. anyio,
and so FastAPI, cancels a task again and again until it has ended.
"""

import asyncio
import sys
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

Connection = TypeVar("Connection", bound=AsyncConnection[Any])


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits the work also when this task is cancelled meanwhile, however often; the cancellation comes after it."""
    if sys.version_info >= (3, 12):  # mostly it is done at once
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
    else:
        task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled


class CancellableConnectionPool(AsyncConnectionPool[Connection]):
    """Takes every connection back, and closes them all, also when the task is cancelled meanwhile."""

    async def putconn(self, conn: Connection) -> None:
        await to_the_end(super().putconn(conn))

    # The timeout is psycopg's for tasks that still connect. They end by themselves, and a cancelled task must not wait.
    async def close(self, timeout: float = 1.0) -> None:
        await to_the_end(super().close(timeout))


Item = TypeVar("Item")

# How many items are taken from an iterable that never waits, until the event loop's other tasks have a turn.
_AT_ONCE = 100


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """The items, in their order, of an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for number, item in enumerate(items, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            yield item
