"""Connections that never wait for the server without end.

psycopg waits for an answer as long as the connection stands, and that to a stopped server, or through a silent tunnel,
stands for ever. It closes one that is cancelled twice, and its statement keeps running on the server.
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

from goqueue.postgres.libpq import DeadlineExceededError, Limits, attempts, in_time
from goqueue.postgres.tasks import to_the_end  # async only

Value = TypeVar("Value")

# What ends a wait early. The statement is cancelled then, and the connection stays usable.
_INTERRUPTS: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit)
_INTERRUPTS += (asyncio.CancelledError,)  # async only

# Seconds for an interrupted statement to be cancelled and to end; then the connection is closed.
_PATIENCE = 1.5

# When the present attempt to connect ends. psycopg counts whole seconds for each, and at least two.
_END: ContextVar[float] = ContextVar("goqueue_connect_end")


class AsyncBoundedConnection(AsyncConnection[Row]):
    """Closed when an answer has not come within its limits, and when an interrupted statement does not end."""

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self.goqueue_limits = Limits(0.0, None)
        #: What get_session says of it, for whoever opens the connection to set.
        self.goqueue_session: Any = None
        #: Whether it was closed because an answer did not come in time.
        self.goqueue_is_late = False
        # The limit of the next exchange, where it is not the usual one.
        self._goqueue_next: float | None = None

    @classmethod
    async def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, limits: Limits, **kwargs: Any
    ) -> Self:
        """psycopg's, within ``limits.connect`` seconds altogether: each host gets an equal share of what is left."""
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
        raise type(errors[-1])("all attempts failed: " + "; ".join(str(error) for error in errors)) from errors[-1]

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
        """Takes the time that the caller has waited for this connection off its next exchange, so that both together
        are within the limit."""
        connect, answer = self.goqueue_limits
        self._goqueue_next = None if answer is None else answer - min(seconds, connect)

    def goqueue_hurry(self) -> None:
        """Has the next exchange take no longer than connecting."""
        self._goqueue_next = self.goqueue_limits.connect

    async def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """psycopg's, within the limit. With a ``timeout`` its end is no failure: psycopg polls so for notifications."""
        limit = timeout
        if limit is None:
            limit, self._goqueue_next = self._goqueue_next, None
            if limit is None:
                limit = self.goqueue_limits.answer
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=limit)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - as psycopg's documentation names it
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
        """Has the server cancel the statement, and reads its answer; without one the connection is closed."""
        end = monotonic() + _PATIENCE
        try:
            if capabilities.has_cancel_safe():
                await self.cancel_safe(timeout=_PATIENCE / 2)
            else:  # libpq before 17 blocks
                await asyncio.to_thread(in_time, _PATIENCE / 2, self.cancel)
            left = max(0.0, end - monotonic())
            with suppress(psycopg.errors.QueryCanceled):
                await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=left)
            # The rollback that follows must not wait either.
            self._goqueue_next = max(_PATIENCE / 5, end - monotonic())
        except BaseException:  # noqa: BLE001 - whatever it was, nobody knows what would be read next
            self.pgconn.finish()
