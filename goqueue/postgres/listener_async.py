"""The listener, which waits for notifications of ready and cancelled jobs."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from goqueue.errors import ConnectionRejectedError, StorageError, StorageUnavailableError
from goqueue.models import Lease
from goqueue.postgres.connection_async import AsyncBoundedConnection
from goqueue.postgres.cursor_async import AsyncQueries
from goqueue.postgres.libpq import abandon
from goqueue.postgres.translate import naming, translate
from goqueue.safelog import log
from goqueue.schemas import render
from goqueue.validation import check_kind

_log = logging.getLogger("goqueue")

# Seconds between two attempts to reconnect.
_PAUSE = 1.0

_CANCELLED = "goqueue_cancelled"


class AsyncListener:
    """A listener that wakes an idle worker, with its own connection. Use it in a ``with`` statement::

        async with store.listen(["mail"]) as listener:
            while True:
                for job in await store.claim_jobs(["mail"], "worker-1", limit=10):
                    ...
                await listener.wait(timedelta(seconds=5))

    Jobs that are due at once send a notification when they are added, retried, rescheduled, released, rescued or
    failed. A job that is due later sends none, and a notification can be late, repeated or lost. So claim after every
    `wait`, even if it timed out.

    `wait` also ends when a running job is cancelled or deleted. Its lease is then in ``cancelled``.

    A listener belongs to the process that opened it. In a forked process `wait` raises `StorageError`, and `close`
    leaves the parent's connection open.

    Notifications do not pass through a pooler (pgbouncer). There `wait` only pauses, and one warning is logged. Set
    GOQUEUE_DATABASE_LISTEN_URL to a direct connection.
    """

    def __init__(
        self,
        connect: Callable[[float | None], Awaitable[AsyncBoundedConnection[Any]]],
        queries: AsyncQueries,
        queues: list[str],
        schema: str,
        variable: str,
    ) -> None:
        """For `AsyncPostgresStorage.listen`. ``variable`` is the setting of the URL, for errors."""
        self._variable = variable
        self._connect = connect
        self._queries = queries
        self._queues = frozenset(queues)
        self._schema = schema
        self._cancellations = render(_CANCELLED, schema)
        self._connection: AsyncConnection[Any] | None = None
        self._process = os.getpid()
        self._is_open = False
        self._is_pooled = False
        #: The leases of running jobs that were cancelled or deleted, as reported by the last `wait`.
        self.cancelled: frozenset[Lease] = frozenset()

    async def __aenter__(self) -> Self:
        self._process = os.getpid()
        try:
            await self._open()
        except psycopg.Error as exc:
            raise naming(translate(exc), self._variable) from exc
        self._is_open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening. A second call does nothing. A `wait` in progress elsewhere raises `StorageError`."""
        self._is_open = False
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._process == os.getpid():
            await connection.close()
        elif not connection.closed:
            abandon(connection.fileno())

    async def wait(self, timeout: timedelta) -> frozenset[str]:
        """Wait until jobs of the queues become ready, and return their queues. Return an empty set after ``timeout``,
        or when a running job was cancelled (see ``cancelled``).

        A lost connection is reopened, and all queues are returned, because a notification may have been missed. Failed
        attempts are repeated once a second. An attempt ends with ``timeout``, but lasts at least a second: if the
        server takes longer to accept a connection, use a longer ``timeout``.

        Raises: `ConnectionRejectedError` if another attempt can't succeed; `StorageError` if the listener is closed, or
        was opened in the parent process.
        Queries: get_session, listen, listen_cancelled, announce_listener; find_listener_blockers if that fails.
        """
        check_kind("timeout", timeout, timedelta)
        self._check_open()
        self.cancelled = frozenset()
        deadline = monotonic() + timeout.total_seconds()
        while True:
            self._check_open()  # another task or thread may have closed it meanwhile
            if self._connection is not None:
                ready = await self._ready(self._connection, max(0.0, deadline - monotonic()))
                if ready is None:
                    continue
                if ready or self.cancelled:
                    return ready
            elif not self._is_pooled and await self._opened_again(max(_PAUSE, deadline - monotonic())):
                return self._queues
            if (left := deadline - monotonic()) <= 0:
                return frozenset()
            if self._connection is None:
                await asyncio.sleep(min(left, _PAUSE))

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise StorageError("this listener was opened in the parent process; open another one after the fork")
        if not self._is_open:
            raise StorageError("the listener is closed: use it within `with store.listen(...) as listener`")

    async def _opened_again(self, seconds: float) -> bool:
        """Reconnect, and return True on success. Raise `ConnectionRejectedError` if retries can't succeed."""
        try:
            await self._open(seconds)
        except StorageUnavailableError:  # already logged: another session holds the lock
            return False
        except psycopg.Error as exc:
            why = naming(translate(exc, reconnecting=True), self._variable)
            if isinstance(why, ConnectionRejectedError):
                raise why from exc
            return False
        if not self._is_open:
            await self.close()
        self._check_open()
        return True

    async def _ready(self, connection: AsyncConnection[Any], timeout: float) -> frozenset[str] | None:
        """Set ``cancelled``, and return the queues notified of within ``timeout`` seconds; None if disconnected."""
        try:
            notes = [note async for note in connection.notifies(timeout=timeout, stop_after=1)]
            # Notifications that arrived with the first one.
            notes += [note async for note in connection.notifies(timeout=0)]
        except psycopg.Error as exc:
            if self._is_open:
                log(_log, logging.WARNING, "listening was interrupted: %s", naming(translate(exc), self._variable))
            self._connection = None
            with suppress(psycopg.Error):
                await connection.close()
            return None
        gone = [_cancelled(note.payload) for note in notes if note.channel == self._cancellations]
        self.cancelled = frozenset(lease for queue, lease in gone if lease is not None and queue in self._queues)
        return self._queues & {note.payload for note in notes if note.channel != self._cancellations}

    async def _open(self, seconds: float | None = None) -> None:
        """Open the connection, within ``seconds`` in total."""
        start = monotonic()
        connection = await self._connect(seconds)
        try:
            self._is_pooled = connection.goqueue_session.is_pooled
            if self._is_pooled:
                await connection.close()
                log(
                    _log,
                    logging.WARNING,
                    "notifications do not pass through a pooler, so idle workers only poll; "
                    "set GOQUEUE_DATABASE_LISTEN_URL to a direct connection",
                )
                return
            connection.goqueue_charge(monotonic() - start)
            await self._queries.listen(connection)
            await self._queries.listen_cancelled(connection)
            connection.goqueue_charge(monotonic() - start)
            await self._announce(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def _announce(self, connection: AsyncConnection[Any]) -> None:
        """Take the listeners' lock. Raise `StorageUnavailableError` naming the sessions that hold it."""
        try:
            await self._queries.announce_listener(connection)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as exc:
            blockers = [row async for row in self._queries.find_listener_blockers(connection)]
            if not blockers:
                raise
            sessions = "; ".join(f"pid {pid}, role {role}, application_name {name!r}" for pid, role, name in blockers)
            error = StorageUnavailableError(
                f"the listener can't open: it waits for the advisory lock of the triggers on {self._schema}.jobs, "
                f"which a cancelled statement left with a session: {sessions}; end that session "
                f"(pg_terminate_backend({blockers[0][0]})) and run `goqueue migrate`: V0010 fixes this"
            )
            log(_log, logging.WARNING, "%s", error)
            raise error from exc


def _cancelled(payload: str) -> tuple[str, Lease | None]:
    """Return the queue and the lease that goqueue.follow_changed_job has sent; no lease for another sender's text."""
    try:
        job_id, token, queue = payload.split(" ", 2)
        return queue, Lease(UUID(job_id), int(token))
    except ValueError:
        return "", None
