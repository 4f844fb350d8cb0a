"""Waits for the server to say that jobs are ready. Imports psycopg, goqueue.dberrors,
goqueue.errors, goqueue.models and goqueue.safelog."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection

from goqueue.dberrors import translate
from goqueue.errors import ConnectionRejectedError, StorageError
from goqueue.models import check_kind
from goqueue.safelog import log

_log = logging.getLogger("goqueue")

# Seconds between two attempts to open a connection again.
_PAUSE = 1.0


class AsyncListener:
    """Wakes an idle worker early, when new jobs are due. It holds a connection of its own; use it in a ``with``::

        async with store.listen(["mail"]) as listener:
            while True:
                for job in await store.claim_jobs(["mail"], "worker-1", limit=10):
                    ...
                await listener.wait(timedelta(seconds=5))

    A notification is a hint: it can be late, doubled or lost, and jobs that become due later or wait again (a retry, a
    release) send none. So poll as if there were none; `wait` merely returns before its time when there is something to
    find. Through a pooler (pgbouncer) none would come, and what listens would be a session that others use: there
    `wait` is a pause, and a warning says so once. GOQUEUE_DATABASE_LISTEN_URL leads past the pooler.
    """

    def __init__(self, connect: Callable[[], Awaitable[AsyncConnection[Any]]], queries: Any, queues: list[str]) -> None:
        """For `AsyncPostgresStorage.listen`."""
        self._connect = connect
        self._queries = queries
        self._queues = frozenset(queues)
        self._connection: AsyncConnection[Any] | None = None
        self._is_open = False
        self._is_pooled = False

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except psycopg.Error as exc:
            raise translate(exc) from exc
        self._is_open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops listening. Calling it again does nothing."""
        self._is_open = False
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def wait(self, timeout: timedelta) -> frozenset[str]:
        """The queues in which jobs became ready, as soon as there are some; none when ``timeout`` has passed.

        A lost connection is no error: it is opened again, and all queues are given, since a hint may have been missed.
        While that fails, it is tried once a second; `ConnectionRejectedError` when trying again does not help.
        `StorageError` when the listener is closed. Queries: get_session, listen, announce_listener.
        """
        check_kind("timeout", timeout, timedelta)
        if not self._is_open:
            raise StorageError("the listener is closed: use it within `with store.listen(...) as listener`")
        deadline = monotonic() + timeout.total_seconds()
        while True:
            if self._connection is not None:
                ready = await self._ready(self._connection, max(0.0, deadline - monotonic()))
                if ready is None:
                    continue
                if ready:
                    return ready
            elif not self._is_pooled:
                try:
                    await self._open()
                except psycopg.Error as exc:
                    why = translate(exc, reconnecting=True)
                    if isinstance(why, ConnectionRejectedError):
                        raise why from exc
                else:
                    return self._queues
            if (left := deadline - monotonic()) <= 0:
                return frozenset()
            if self._connection is None:
                await asyncio.sleep(min(left, _PAUSE))

    async def _ready(self, connection: AsyncConnection[Any], timeout: float) -> frozenset[str] | None:
        """The queues that were notified of in that many seconds; None when the connection is lost."""
        try:
            ready = {note.payload async for note in connection.notifies(timeout=timeout, stop_after=1)}
            # What has come along with it.
            ready |= {note.payload async for note in connection.notifies(timeout=0)}
        except psycopg.Error as exc:
            log(_log, logging.WARNING, "listening was interrupted: %s", translate(exc))
            self._connection = None
            with suppress(psycopg.Error):
                await connection.close()
            return None
        return frozenset(ready & self._queues)

    async def _open(self) -> None:
        connection = await self._connect()
        try:
            pid = connection.info.backend_pid
            self._is_pooled, _ = await self._queries.get_session(connection, backend_pid=pid)
            if self._is_pooled:
                await connection.close()
                log(
                    _log,
                    logging.WARNING,
                    "notifications do not come through a pooler, so idle workers poll alone; "
                    "GOQUEUE_DATABASE_LISTEN_URL can name the server itself",
                )
                return
            await self._queries.listen(connection)
            await self._queries.announce_listener(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
