"""Connection strings and settings for goqueue's own sessions, and what a server accepted of them."""

import logging
import os
from datetime import timedelta
from math import ceil
from typing import Any, NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.config import DatabaseConfig, settings_of
from goqueue.postgres.libpq import Limits, resolve
from goqueue.safelog import log

_log = logging.getLogger("goqueue")
#: Planner settings of our own sessions. Each statement is written for one plan, whatever its parameters: replanning a
#: page takes longer than reading it, and JIT compilation takes longer still. No statement needs enable_seqscan off. It
#: covers the minute before autovacuum analyzes a fast-growing table: until then, a plan made for 150 jobs reads a
#: million rows (a claim takes 146 ms instead of 1, get_job 94 instead of 0.3).
PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
}
_DEFAULTS: dict[str, Any] = {setting.name: setting.default for setting in settings_of(DatabaseConfig)}
# Unanswered keepalive probes until a connection is considered lost.
_PROBES = 2
# Seconds allowed for an answer beyond the server's own limit and the time to connect.
_GRACE = 0.5
# Seconds to use for a connect_timeout of 0, which means no limit.
_ENDLESS = 130.0


def conninfo(config: DatabaseConfig, session: "Session | None" = None) -> str:
    """Return libpq's connection string: the configured one, with the options that our statements need.

    In order of precedence: the URL, a setting that differs from its default, libpq's other sources (a service, PG*
    variables), the default. ``session`` is get_session's row of an earlier connection. If the URL has empty options, no
    settings are sent: some poolers reject them.
    """
    given, found = conninfo_to_dict(config.url), resolve(config.url)
    ours: dict[str, Any] = {**identity(config), "client_encoding": "UTF8"}
    silence = _silence(config)
    watch: dict[str, Any] = {
        "tcp_user_timeout": _milliseconds(silence),
        "keepalives_idle": ceil(silence.total_seconds()),
        "keepalives_interval": ceil(connect_timeout(config)),
        "keepalives_count": _PROBES,
    }
    ours |= {name: value for name, value in watch.items() if name not in found}
    if given.get("options") != "":
        settings = {name: _milliseconds(value) for name, value in limits(config).items()}
        # A service's or the environment's options override defaults, but not settings made for goqueue.
        changed = {name: value for name, value in settings.items() if "options" not in given and _is_set(config, name)}
        # The statements' requirements override everything. read_only is not among them: on a standby, or when an
        # operator stops all writes, it is intended.
        # search_path is not either: triggers of users on goqueue's tables may rely on theirs. The statements do not.
        pinned = {
            "default_transaction_isolation": "read\\ committed",
            "TimeZone": "UTC",
            "DateStyle": "ISO,MDY",
            "IntervalStyle": "postgres",
            **PLANNING,
        }
        # The server detects a lost client in the same time as the client detects a lost server.
        server = {
            "tcp_keepalives_idle": watch["keepalives_idle"],
            "tcp_keepalives_interval": watch["keepalives_interval"],
            "tcp_keepalives_count": _PROBES,
            "tcp_user_timeout": watch["tcp_user_timeout"],
        }
        if session is not None and session.check_interval:
            server["client_connection_check_interval"] = session.check_interval
        options = [_as_options({**server, **settings}), found.get("options", ""), _as_options({**changed, **pinned})]
        ours["options"] = " ".join(options)
    return make_conninfo(config.url, **ours)


def identity(config: DatabaseConfig, application_name: str = _DEFAULTS["application_name"]) -> dict[str, Any]:
    """Return the application_name (by default ``application_name``) and connect_timeout that neither the URL nor
    libpq's other sources set."""
    given, found = conninfo_to_dict(config.url), resolve(config.url)
    changed = {name: getattr(config, name) for name in ("application_name", "connect_timeout") if _is_set(config, name)}
    values = {"application_name": application_name, "connect_timeout": config.connect_timeout, **changed}
    values["connect_timeout"] = ceil(values["connect_timeout"].total_seconds())
    return {name: values[name] for name in values if name not in given and (name in changed or name not in found)}


def connect_timeout(config: DatabaseConfig) -> float:
    """Return the longest time to connect in seconds, from the same sources as `conninfo`."""
    if "connect_timeout" in identity(config):
        return config.connect_timeout.total_seconds()
    try:
        seconds = float(resolve(config.url)["connect_timeout"])
    except (KeyError, ValueError):  # libpq rejects the service or number, and reports it on connecting
        return config.connect_timeout.total_seconds()
    return seconds if seconds > 0 else _ENDLESS


def deadlines(config: DatabaseConfig, session: "Session | None" = None) -> Limits:
    """Return a connection's time limits. ``session`` is get_session's row, once known."""
    connect = connect_timeout(config)
    statement = config.statement_timeout
    # The limit in force on the server, from the options of the URL or service; a pooler may have dropped it.
    if session is not None and (session.statement_timeout or not session.is_pooled):
        statement = session.statement_timeout
    return Limits(connect, statement.total_seconds() + connect + _GRACE if statement else None)


def limits(config: DatabaseConfig) -> dict[str, timedelta]:
    """Return the session's limits by the server's names."""
    return {
        "statement_timeout": config.statement_timeout,
        "lock_timeout": config.lock_timeout,
        "idle_in_transaction_session_timeout": config.idle_in_transaction_timeout,
    }


def prepare_threshold(config: DatabaseConfig, *, pooled: bool) -> int | None:
    """Return the number of executions before a statement is prepared: 1, because the few statements are repeated often.
    None behind a pooler: under transaction pooling, psycopg's numbered prepared statements collide with other clients'
    and the wrong statement runs silently."""
    if config.prepare_threshold == "auto":
        return None if pooled else 1
    return config.prepare_threshold


class Session(NamedTuple):
    """The row of get_session."""

    is_pooled: bool
    unlimited: list[str]
    statement_timeout: timedelta
    isolation: str
    time_zone: str | None
    date_style: str | None
    check_interval: str | None


def needs_get_session(config: DatabaseConfig, session: Session) -> bool:
    """Return True if get_session must set something on each connection: options are overridden, or none are sent."""
    outranked = any(os.environ.get(name) for name in ("PGTZ", "PGDATESTYLE"))
    return not session.is_pooled and (outranked or conninfo_to_dict(config.url).get("options") == "")


def warn_of(session: Session, config: DatabaseConfig) -> None:
    """Log a warning for each of our settings that a session lacks: a pooler drops them, or none are sent."""
    wanted = limits(config)
    if session.is_pooled and (missing := [name for name in session.unlimited if wanted[name]]):
        log(
            _log,
            logging.WARNING,
            "the connection goes through a pooler, and these limits have no effect there: %s; set them for the store's "
            "own login (ALTER ROLE ... SET; see docs/pgbouncer.md)",
            ", ".join(missing),
        )
    if session.isolation != "read committed":
        log(
            _log,
            logging.WARNING,
            "transactions are %s and fail on each other's changes; set the isolation level for the store's "
            "own login: ALTER ROLE ... SET default_transaction_isolation = 'read committed' "
            "(see docs/pgbouncer.md)",
            session.isolation,
        )


def _is_set(config: DatabaseConfig, name: str) -> bool:
    name = name.replace("_session_", "_")  # the server's name for idle_in_transaction_timeout
    return bool(getattr(config, name) != _DEFAULTS[name])


def _silence(config: DatabaseConfig) -> timedelta:
    """Return how long the other side may stay silent: the statement timeout and a little more. tcp_user_timeout covers
    data that was not acknowledged, keepalives cover data that was never answered."""
    statement = config.statement_timeout or _DEFAULTS["statement_timeout"]
    return statement + timedelta(seconds=connect_timeout(config))


def _as_options(settings: dict[str, object]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _milliseconds(value: timedelta) -> int:
    return int(value / timedelta(milliseconds=1))
