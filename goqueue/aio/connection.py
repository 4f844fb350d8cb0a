"""Connections and pools that stay whole when tasks are cancelled. Imports psycopg, and nothing of goqueue.

Both psycopg and its pool bear one cancellation at the usual moments. One at another moment lost the pool a connection
for good, and a second one in a row left the statement running on the server. anyio, and so FastAPI, cancels a task
again and again until it has ended.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, waiting
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import Row
from psycopg_pool import AsyncConnectionPool

Value = TypeVar("Value")

# How many seconds the server may take to end a statement that was cancelled.
_PATIENCE = 5.0


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


class CancellableConnection(AsyncConnection[Row]):
    """When its task is cancelled, the server's statement is, and the connection can be used again."""

    async def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except (asyncio.CancelledError, KeyboardInterrupt):
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await to_the_end(self._end(gen, interval))
            raise

    async def _end(self, gen: PQGen[Value], interval: float) -> None:
        """Has the server cancel the statement, and reads its answer; without one the connection is closed."""
        try:
            await self.cancel_safe(timeout=_PATIENCE)
            await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=_PATIENCE)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException:  # noqa: BLE001 - whatever it was, nobody knows what would be read next
            self.pgconn.finish()


class CancellableConnectionPool(AsyncConnectionPool[AsyncConnection[object]]):
    """Takes every connection back, and closes them all, also when the task is cancelled meanwhile."""

    async def putconn(self, conn: AsyncConnection[object]) -> None:
        await to_the_end(super().putconn(conn))

    async def close(self, timeout: float = 5.0) -> None:
        await to_the_end(super().close(timeout))
