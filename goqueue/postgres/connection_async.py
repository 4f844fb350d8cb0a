"""Connections with a time limit on every wait for the server.

psycopg waits for an answer as long as the connection exists. With a stopped server or a silent tunnel, that is forever.
After a second cancellation psycopg closes the connection, but the statement keeps running on the server.
"""

import asyncio  # async only
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any, Self, TypeVar

import psycopg
from psycopg import AsyncConnection, capabilities, waiting
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import Row

from goqueue.cancellation import to_the_end  # async only
from goqueue.postgres.libpq import DeadlineExceededError, Limits, all_failed, attempts, in_time

Value = TypeVar("Value")

# Exceptions that interrupt a wait. The statement is then cancelled, and the connection stays usable.
_INTERRUPTS: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit)
_INTERRUPTS += (asyncio.CancelledError,)  # async only

# Seconds for an interrupted statement to end. After that, the connection is closed.
_PATIENCE = 1.5

# End of the current connection attempt. psycopg's own limit is in whole seconds, at least two.
_END: ContextVar[float] = ContextVar("goqueue_connect_end")


class AsyncBoundedConnection(AsyncConnection[Row]):
    """A connection that closes if an answer is late or an interrupted statement does not end."""

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self.goqueue_limits = Limits(0.0, None)
        #: The row of get_session, set by the code that opens the connection.
        self.goqueue_session: Any = None
        #: True if the connection was closed because an answer was late.
        self.goqueue_is_late = False
        # The limit of the next exchange, if it differs from the usual one.
        self._goqueue_next: float | None = None

    @classmethod
    async def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, limits: Limits, **kwargs: Any
    ) -> Self:
        """Connect as psycopg does, within ``limits.connect`` seconds in total, divided among the hosts."""
        start = monotonic()
        errors: list[psycopg.Error] = []
        each = await asyncio.to_thread(attempts, conninfo, limits.connect)
        for number, attempt in enumerate(each):
            now = monotonic()
            end = _END.set(now + (start + limits.connect - now) / (len(each) - number))
            try:
                connection = await super().connect(attempt, **kwargs)
            except psycopg.OperationalError as exc:
                errors.append(exc)
            else:
                connection.goqueue_limits = limits
                connection.goqueue_charge(monotonic() - start)
                return connection
            finally:
                _END.reset(end)
        if len(errors) == 1:
            raise errors[0]
        raise type(errors[-1])(all_failed(each, errors)) from errors[-1]

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
        connecting = super()._connect_gen(conninfo)
        try:
            wanted = next(connecting)
            while True:
                ready = yield wanted
                if monotonic() >= _END.get():
                    raise psycopg.errors.ConnectionTimeout("connection timeout expired")
                wanted = connecting.send(ready)
        except StopIteration as done:
            connection: Self = done.value
            return connection

    def goqueue_charge(self, seconds: float) -> None:
        """Deduct the caller's wait for this connection from the next exchange: the limit is for both together."""
        connect, answer = self.goqueue_limits
        self._goqueue_next = None if answer is None else answer - min(seconds, connect)

    def goqueue_hurry(self) -> None:
        """Limit the next exchange to the time allowed for connecting."""
        self._goqueue_next = self.goqueue_limits.connect

    async def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """Wait as psycopg does, within the limit. The end of a ``timeout`` (a poll for notifications) is no failure."""
        limit = timeout
        if limit is None:
            limit, self._goqueue_next = self._goqueue_next, None
            if limit is None:
                limit = self.goqueue_limits.answer
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=limit)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - the name in psycopg's documentation
            if timeout is not None:
                raise
            self.goqueue_is_late = True
            self.pgconn.finish()
            raise DeadlineExceededError.after(limit) from None
        except _INTERRUPTS:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await to_the_end(self._end(gen, interval))
            raise

    async def _end(self, gen: PQGen[Any], interval: float) -> None:
        """Cancel the statement on the server and read its answer. Without an answer, close the connection."""
        end = monotonic() + _PATIENCE
        try:
            if capabilities.has_cancel_safe():
                await self.cancel_safe(timeout=_PATIENCE / 2)
            else:  # libpq before 17 blocks
                await asyncio.to_thread(in_time, _PATIENCE / 2, self.cancel)
            left = max(0.0, end - monotonic())
            with suppress(psycopg.errors.QueryCanceled):
                await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=left)
            # The rollback that follows must be bounded too.
            self._goqueue_next = max(_PATIENCE / 5, end - monotonic())
        except BaseException:  # noqa: BLE001 - after any error, the protocol state is unknown
            self.pgconn.finish()
