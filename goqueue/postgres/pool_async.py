"""Opening of connections and pools. No other module opens them."""

from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Self

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import Row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from goqueue.config import DatabaseConfig
from goqueue.conninfo import without_frames
from goqueue.postgres.connection_async import AsyncBoundedConnection
from goqueue.postgres.cursor_async import AsyncQueries
from goqueue.postgres.libpq import readable
from goqueue.postgres.options import Session, conninfo, deadlines, needs_get_session, prepare_threshold, warn_of
from goqueue.postgres.tasks import CancellableConnectionPool  # async only
from goqueue.postgres.translate import translate


class AsyncPoolConnection(AsyncBoundedConnection[Row]):
    """A connection that serves one call at a time. It keeps each statement's cursor, because psycopg caches parameters
    and columns there: that saves a tenth of a job's time."""

    #: The error of the last attempt to connect; None if it succeeded. `open_pool` creates a class for each pool.
    connect_error: ClassVar[psycopg.Error | None] = None

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        try:
            connection = await super().connect(*args, **kwargs)
        except psycopg.Error as exc:
            # A copy: the traceback would keep the connection string with its password in memory.
            cls.connect_error = type(exc)(str(exc))
            raise
        cls.connect_error = None
        return connection

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        #: By the statement's text.
        self.goqueue_cursors: dict[str, AsyncCursor[Any]] = {}


AsyncPool = AsyncConnectionPool[AsyncPoolConnection[object]]


async def open_pool(config: DatabaseConfig, queries: AsyncQueries) -> AsyncPool:
    """Open a pool of connections in autocommit mode. Raises StorageUnavailableError if the server can't be reached now,
    and ConnectionRejectedError if it, a pooler or the driver rejects the connection.

    The first connection is not made by the pool, because a pool reports only a timeout. It also shows whether there is
    a pooler. Query: get_session.
    """
    try:
        async with await connect(config) as first:
            await _begin(first, config=config, queries=queries)
    except psycopg.Error as exc:
        raise translate(exc) from exc
    session: Session = first.goqueue_session
    warn_of(session, config)
    pool: AsyncPool = CancellableConnectionPool(
        conninfo(config, session),
        connection_class=type("AsyncPoolConnection", (AsyncPoolConnection,), {}),
        kwargs={**_options(config, pooled=session.is_pooled), "limits": deadlines(config, session)},
        min_size=config.pool_min_size,
        max_size=max(config.pool_max_size, config.pool_min_size),
        timeout=config.pool_timeout.total_seconds(),
        max_idle=config.pool_max_idle.total_seconds(),
        max_lifetime=config.pool_max_lifetime.total_seconds(),
        # As long as a caller waits. With the pool's default of five minutes, the pauses between its attempts grow until
        # it notices a recovered server only after a minute.
        reconnect_timeout=config.pool_timeout.total_seconds(),
        configure=partial(_begin, config=config, queries=queries) if needs_get_session(config, session) else None,
        check=lambda connection: _check(pool, connection),
        name=config.application_name,
        open=False,
    )
    try:
        # Without waiting, the first call finds the pool empty, and opens a second connection.
        await pool.open(wait=True, timeout=config.pool_timeout.total_seconds())
    except BaseException as exc:  # even if the caller stopped waiting
        await pool.close()
        if not isinstance(exc, psycopg.Error):
            raise
        reason = reason_of(exc, pool)
        raise translate(reason, reconnecting=True) from reason
    return pool


def reason_of(error: psycopg.Error, pool: AsyncPool) -> psycopg.Error:
    """Return the reason why a call got no connection: a pool reports only a timeout."""
    kind: Any = pool.connection_class
    return kind.connect_error or error if isinstance(error, PoolTimeout) else error


async def open_connection(
    config: DatabaseConfig, queries: AsyncQueries, seconds: float | None = None
) -> AsyncBoundedConnection[tuple[Any, ...]]:
    """Open a connection in autocommit mode, outside a pool. Raises psycopg's own errors. Query: get_session.

    ``seconds`` limits both connecting and each statement.
    """
    connection = await connect(config, seconds)
    await _begin(connection, config=config, queries=queries, seconds=seconds)
    return connection


async def connect(config: DatabaseConfig, seconds: float | None = None) -> AsyncBoundedConnection[tuple[Any, ...]]:
    """Open a connection without running get_session: the server and the options determine the session. Its errors lack
    the inner frames, which hold the password."""
    limits = deadlines(config).within(seconds)
    try:
        return await AsyncBoundedConnection.connect(conninfo(config), limits=limits, **_options(config, pooled=True))
    except BaseException as exc:
        without_frames(exc)
        raise


async def _begin(
    connection: Any, *, config: DatabaseConfig, queries: AsyncQueries, seconds: float | None = None
) -> None:
    """Prepare the session for our statements, and read its state. Close the connection on an error."""
    try:
        if connection.goqueue_limits.answer is None:  # for callers' statements
            connection.goqueue_hurry()
        pid = connection.info.backend_pid
        session = Session(*await queries.get_session(connection, backend_pid=pid))
    except BaseException:
        await connection.close()
        raise
    connection.goqueue_session = session
    connection.goqueue_limits = deadlines(config, session).within(seconds)


def _options(config: DatabaseConfig, *, pooled: bool) -> dict[str, Any]:
    threshold = prepare_threshold(config, pooled=pooled)
    return {"autocommit": True, "prepare_threshold": threshold, "cursor_factory": AsyncRawCursor}


def notice_loss(connection: AsyncConnection[Any]) -> None:
    """Make an idle connection notice that the other side has closed it, before anything is sent."""
    if connection.pgconn.transaction_status == TransactionStatus.IDLE and readable(connection.fileno()):
        with suppress(psycopg.Error):
            connection.pgconn.consume_input()


async def _check(pool: AsyncPool, connection: Any) -> None:
    """Raise for a connection that the server has closed meanwhile, so that the pool returns another one.

    A round trip for every call would be expensive. If an idle connection has data to read, it was closed or has a
    notice: only then is the server queried. After one dead connection, the whole pool is replaced.
    """
    if readable(connection.fileno()):
        connection.goqueue_hurry()
        try:
            await AsyncConnectionPool.check_connection(connection)
        except psycopg.Error:
            await pool.drain()
            raise
