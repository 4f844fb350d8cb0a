"""Opens connections and pools: the one place that does. Imports psycopg, goqueue.config and goqueue.dberrors."""

import os
import select
from datetime import timedelta
from math import ceil
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from goqueue.config import DatabaseConfig
from goqueue.dberrors import translate

Pool = ConnectionPool[Connection[tuple[Any, ...]]]


def open_pool(config: DatabaseConfig) -> Pool:
    """A pool of connections in autocommit mode. Raises StorageUnavailableError when the server can't be reached now.

    The first connection is made here and not by the pool, because a pool tells only that it waited in vain.
    """
    conninfo = _conninfo(config)
    try:
        open_connection(config).close()
    except psycopg.Error as exc:
        raise translate(exc) from exc
    pool: Pool = ConnectionPool(
        conninfo,
        kwargs={"autocommit": True, "prepare_threshold": config.prepare_threshold},
        min_size=config.pool_min_size,
        max_size=max(config.pool_max_size, config.pool_min_size),
        timeout=config.pool_timeout.total_seconds(),
        max_idle=config.pool_max_idle.total_seconds(),
        max_lifetime=config.pool_max_lifetime.total_seconds(),
        # As long as a caller waits. The pool's own default, five minutes, lets the pauses between its attempts grow
        # until a server that is back goes unnoticed for a minute.
        reconnect_timeout=config.pool_timeout.total_seconds(),
        check=lambda connection: _check(pool, connection),
        name=config.application_name,
        open=False,
    )
    pool.open()
    return pool


def open_connection(config: DatabaseConfig) -> Connection[tuple[Any, ...]]:
    """A connection in autocommit mode that no pool has. Raises psycopg's own errors."""
    return psycopg.connect(_conninfo(config), autocommit=True, prepare_threshold=config.prepare_threshold)


def _check(pool: Pool, connection: Connection[Any]) -> None:
    """Raises for a connection that the server has closed meanwhile, so that the pool hands out another.

    A round trip for every call would be dear. An idle connection with something to read has been closed, or holds a
    notice: only then is the server asked. Once one is found dead, all of the pool are replaced at once.
    """
    if _readable(connection.fileno()):
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            pool.drain()
            raise


def _readable(fileno: int) -> bool:
    if hasattr(select, "poll"):  # select() takes no descriptor above 1023; Windows has nothing else.
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])


def _conninfo(config: DatabaseConfig) -> str:
    """libpq's connection string: the configured one, ours under it and the session's settings as options."""
    given = conninfo_to_dict(config.url)
    settings = {
        "statement_timeout": config.statement_timeout,
        "lock_timeout": config.lock_timeout,
        "idle_in_transaction_session_timeout": config.idle_in_transaction_timeout,
    }
    # Every statement here is short; compiling one (jit) takes longer than running it ever does.
    # Every statement is written for one plan, whatever its parameters: planning a page anew takes longer than reading
    # it, and compiling (jit) longer still. So what EXPLAIN (GENERIC_PLAN) shows is what runs.
    fixed = ("TimeZone=UTC", "plan_cache_mode=force_generic_plan", "jit=off")
    options = [f"-c {setting}" for setting in fixed]
    options += [f"-c {name}={_milliseconds(value)}" for name, value in settings.items()]
    # What the caller's own options say comes last, and so wins.
    options.append(str(given.get("options") or os.environ.get("PGOPTIONS", "")))
    # A host that vanishes without a word is given up after the statement's own time and a little more: tcp_user_timeout
    # watches what was sent and not acknowledged, keepalives what was acknowledged and never answered.
    silence = config.statement_timeout + config.connect_timeout
    ours: dict[str, Any] = {
        "application_name": config.application_name,
        "connect_timeout": ceil(config.connect_timeout.total_seconds()),
        "tcp_user_timeout": _milliseconds(silence) if config.statement_timeout else 0,
        "keepalives_idle": ceil(silence.total_seconds()),
        "keepalives_interval": ceil(config.connect_timeout.total_seconds()),
        "keepalives_count": 2,
        "client_encoding": "UTF8",
    }
    return make_conninfo(**{**ours, **given, "options": " ".join(options).strip()})


def _milliseconds(value: timedelta) -> int:
    return int(value / timedelta(milliseconds=1))
