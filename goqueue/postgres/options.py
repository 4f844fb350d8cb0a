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
#: How the statements of our own sessions are planned. Each is written for one plan, whatever its parameters: planning
#: a page anew takes longer than reading it, and compiling (jit) longer still. No statement needs enable_seqscan off. It
#: is a safety net for the minute before autovacuum analyzes a table that grows fast: a plan made on 150 jobs reads
#: a million whole until then (a claim takes 146 ms in place of 1, get_job 94 in place of 0.3).
PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "enable_seqscan": "off",
}
_DEFAULTS: dict[str, Any] = {setting.name: setting.default for setting in settings_of(DatabaseConfig)}
# Keepalive probes without an answer until a connection is given up.
_PROBES = 2
# Seconds that an answer may take beyond the server's own limit and the time to connect.
_GRACE = 0.5
# Seconds that psycopg takes for a connect_timeout of 0, which means none.
_ENDLESS = 130.0


def conninfo(config: DatabaseConfig, session: "Session | None" = None) -> str:
    """Return libpq's connection string: the configured one, and what our statements rely on.

    The order of sources is the URL, a setting that differs from its default, what libpq finds by itself (a service, PG*
    variables), the default. ``session``: get_session's row of an earlier connection. With options that are given and
    empty no settings are sent: some poolers reject them.
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
        # The service's or the environment's options come after defaults, and before what was set for goqueue.
        changed = {name: value for name, value in settings.items() if "options" not in given and _is_set(config, name)}
        # What the statements rely on comes last. read_only is not among it: a standby, and an operator who stops all
        # writes, mean it.
        pinned = {
            "default_transaction_isolation": "read\\ committed",
            "TimeZone": "UTC",
            "DateStyle": "ISO,MDY",
            "IntervalStyle": "postgres",
            **PLANNING,
        }
        # The server notices a vanished client as the client notices a vanished server.
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
    """Return the application_name (``application_name`` by default) and connect_timeout that the URL does not name and
    libpq does not find."""
    given, found = conninfo_to_dict(config.url), resolve(config.url)
    changed = {name: getattr(config, name) for name in ("application_name", "connect_timeout") if _is_set(config, name)}
    values = {"application_name": application_name, "connect_timeout": config.connect_timeout, **changed}
    values["connect_timeout"] = ceil(values["connect_timeout"].total_seconds())
    return {name: values[name] for name in values if name not in given and (name in changed or name not in found)}


def connect_timeout(config: DatabaseConfig) -> float:
    """Return the seconds that connecting takes at most, from the same sources as `conninfo`."""
    if "connect_timeout" in identity(config):
        return config.connect_timeout.total_seconds()
    try:
        seconds = float(resolve(config.url)["connect_timeout"])
    except (KeyError, ValueError):  # libpq rejects the service or the number, and says so when it connects
        return config.connect_timeout.total_seconds()
    return seconds if seconds > 0 else _ENDLESS


def deadlines(config: DatabaseConfig, session: "Session | None" = None) -> Limits:
    """Return the longest waits of a connection. ``session``: get_session's row, once it is known."""
    connect = connect_timeout(config)
    statement = config.statement_timeout
    # What is in force on the server, by the URL's or the service's options; a pooler may have dropped it.
    if session is not None and (session.statement_timeout or not session.is_pooled):
        statement = session.statement_timeout
    return Limits(connect, statement.total_seconds() + connect + _GRACE if statement else None)


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
    """Return whether get_session has something to set on each connection: options are outranked, or none are sent."""
    outranked = any(os.environ.get(name) for name in ("PGTZ", "PGDATESTYLE"))
    return not session.is_pooled and (outranked or conninfo_to_dict(config.url).get("options") == "")


def warn_of(session: Session, config: DatabaseConfig) -> None:
    """Logs a warning for what a session lacks of our settings: a pooler drops them, or none are sent."""
    wanted = limits(config)
    if session.is_pooled and (missing := [name for name in session.unlimited if wanted[name]]):
        log(
            _log,
            logging.WARNING,
            "a pooler stands between, and these limits do not hold behind it: %s; set them for the store's "
            "own login (ALTER ROLE ... SET; see docs/pgbouncer.md)",
            ", ".join(missing),
        )
    if session.isolation != "read committed":
        log(
            _log,
            logging.WARNING,
            "statements run as %s transactions, and fail for each other's changes; set the isolation for the store's "
            "own login: ALTER ROLE ... SET default_transaction_isolation = 'read committed' "
            "(see docs/pgbouncer.md)",
            session.isolation,
        )


def _is_set(config: DatabaseConfig, name: str) -> bool:
    name = name.replace("_session_", "_")  # the server's name of idle_in_transaction_timeout
    return bool(getattr(config, name) != _DEFAULTS[name])


def _silence(config: DatabaseConfig) -> timedelta:
    """How long the other side may keep quiet: a statement's time and a little more. tcp_user_timeout watches what was
    sent and not acknowledged, keepalives what was acknowledged and never answered."""
    statement = config.statement_timeout or _DEFAULTS["statement_timeout"]
    return statement + timedelta(seconds=connect_timeout(config))


def _as_options(settings: dict[str, object]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _milliseconds(value: timedelta) -> int:
    return int(value / timedelta(milliseconds=1))
