"""What a session is opened with, and whether it is still there. Imports psycopg, goqueue.config and
goqueue.safelog."""

import logging
import os
import select
from datetime import timedelta
from math import ceil
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.config import DatabaseConfig
from goqueue.safelog import log

_log = logging.getLogger("goqueue")

#: How the statements of our own sessions are planned. Each is written for one plan, whatever its parameters: planning
#: a page anew takes longer than reading it, and compiling (jit) longer still. Each has its index, and a plan is kept:
#: made while the table was small, a scan of the whole would stay while it grows. A bitmap scan marks no dead index
#: entry, so that all after it read them again, and it locks rows in their order on the disk and not in the ids'.
PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
}


def readable(fileno: int) -> bool:
    """Whether the socket has something to read, or was closed by the other side."""
    if hasattr(select, "poll"):  # select() takes no descriptor above 1023; Windows has nothing else.
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])


def abandon(fileno: int) -> None:
    """Let go of a socket that this process shares with the one it was forked from.

    Closing the connection would send the server a goodbye, which ends the session of both. In the socket's place comes
    /dev/null, because the driver still has its number.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, fileno, inheritable=False)
    os.close(nowhere)


def conninfo(config: DatabaseConfig) -> str:
    """libpq's connection string: the configured one, ours under it and the session's settings as options.

    With options that are given and empty no settings are sent: some poolers refuse them.
    """
    given = conninfo_to_dict(config.url)
    fixed = {"TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "postgres", **PLANNING}
    options = [f"-c {name}={value}" for name, value in fixed.items()]
    options += [f"-c {name}={_milliseconds(value)}" for name, value in limits(config).items()]
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
    if given.get("options") != "":
        given["options"] = " ".join(options).strip()
    return make_conninfo(**{**ours, **given})


def limits(config: DatabaseConfig) -> dict[str, timedelta]:
    """The session's limits, by the server's names."""
    return {
        "statement_timeout": config.statement_timeout,
        "lock_timeout": config.lock_timeout,
        "idle_in_transaction_session_timeout": config.idle_in_transaction_timeout,
    }


def prepare_threshold(config: DatabaseConfig, *, pooled: bool) -> int | None:
    """The runs before a statement is prepared. One: few statements, each run again and again. In a session that others
    use none is: psycopg names statements by their number, and what another client has prepared there under the same one
    would be run in place of ours."""
    if config.prepare_threshold == "auto":
        return None if pooled else 1
    return config.prepare_threshold


def is_pooled(session: tuple[bool, list[str]], config: DatabaseConfig) -> bool:
    """Whether a pooler stands between, by the row of get_session. Logs a warning when it has dropped our limits."""
    pooled, unlimited = session
    wanted = limits(config)
    if pooled and (missing := [name for name in unlimited if wanted[name]]):
        log(
            _log,
            logging.WARNING,
            "a pooler stands between, and these limits do not hold behind it: %s; set them on the server "
            "(ALTER ROLE ... SET; see the README, Behind pgbouncer)",
            ", ".join(missing),
        )
    return pooled


def _milliseconds(value: timedelta) -> int:
    return int(value / timedelta(milliseconds=1))
