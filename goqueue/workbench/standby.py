"""The check `reads`: whether ``read_url`` names a standby of ``url``, and how far that is behind.

Statements: database_identity and standby_state in sql/checks.sql.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection, errors

from goqueue.config import format_duration
from goqueue.postgres.admin_queries import admin_queries
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.workbench.findings import Check, Finding, Level, ended

__all__ = ["check_reads"]

_OLD = timedelta(minutes=1)


class _Identity(NamedTuple):
    """The row of the query database_identity."""

    system_identifier: int
    database_oid: int
    database: str
    started_at: datetime
    is_standby: bool
    is_subscriber: bool


def check_reads(connection: Connection[Any], primary: Connection[Any], schema: str = DEFAULT_SCHEMA) -> Check:
    """Check the server of ``read_url``, on a connection to it. ``primary`` is a connection to the server of ``url``."""
    findings = []
    try:
        url, read_url = (_Identity(*admin_queries(schema).database_identity(one)) for one in (primary, connection))
    except psycopg.Error as error:
        findings.append(_not_compared(error))
    else:
        if other := _other(url, read_url):
            return ended("reads", "read_url names other jobs than url", [other])
    is_standby, behind, is_receiving = admin_queries().standby_state(connection)
    if not is_standby:
        return ended("reads", "read_url names a server that accepts writes", [_PRIMARY, *findings])
    age = "an unknown time" if behind is None else format_duration(timedelta(seconds=round(behind.total_seconds(), 1)))
    findings += _findings(behind, is_receiving=is_receiving)
    return ended("reads", f"the standby of read_url is {age} behind", findings)


def _other(url: _Identity, read_url: _Identity) -> Finding | None:
    """Return what is wrong if the database of ``read_url`` does not have the jobs of ``url``."""
    why = "lists, counts and statistics show other jobs"
    do = "in read_url, name a streaming standby of url's server, and the same database; or leave it empty"
    if url.system_identifier != read_url.system_identifier:
        if read_url.is_subscriber:
            return Finding(
                Level.WARNING,
                "read_url names a logical replica",
                "it has only what its subscription sends: deleted jobs can remain, failures and pauses can be missing",
                do,
            )
        return Finding(Level.FAILED, "read_url names another cluster than url", why, do)
    if url.database_oid != read_url.database_oid:
        return Finding(
            Level.FAILED, f"read_url names the database {read_url.database}, but url names {url.database}", why, do
        )
    if not (url.is_standby or read_url.is_standby) and url.started_at != read_url.started_at:
        return Finding(
            Level.FAILED,
            "read_url and url name two servers of one cluster, and both accept writes",
            "one was promoted, and their jobs have differed since",
            "find out which one is the primary; make the other its standby again (pg_rewind or pg_basebackup)",
        )
    return None


def _not_compared(error: psycopg.Error) -> Finding:
    grant = "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC;   (on the primary; PostgreSQL's default)"
    return Finding(
        Level.NOTE,
        f"the databases of url and read_url can't be compared: {error.diag.message_primary or error}",
        "if they are different, lists, counts and statistics show other jobs",
        grant * isinstance(error, errors.InsufficientPrivilege),
    )


_PRIMARY = Finding(
    Level.NOTE, "the server of read_url is not a standby", "lists and counts slow down a server that also writes"
)


def _findings(behind: timedelta | None, *, is_receiving: bool) -> Iterator[Finding]:
    if not is_receiving:
        yield Finding(
            Level.WARNING,
            "the standby is not connected to a primary",
            "its lists and counts no longer change, unless it restores WAL from an archive",
            "see the standby's log and its primary_conninfo",
        )
    if behind is not None and behind > _OLD:
        yield Finding(
            Level.WARNING,
            f"the standby is more than {format_duration(_OLD)} behind",
            "lists, counts and statistics are equally old",
            "see pg_stat_replication on the primary, and recovery_min_apply_delay and pg_is_wal_replay_paused() on the "
            "standby",
        )
