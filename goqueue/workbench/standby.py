"""The check `reads`: how far the standby of ``read_url`` is behind its primary.

Statement: standby_state in sql/checks.sql.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from psycopg import Connection

from goqueue.config import format_duration
from goqueue.postgres.admin_queries import admin_queries
from goqueue.workbench.findings import Check, Finding, Level, ended

__all__ = ["check_reads"]

_OLD = timedelta(minutes=1)


def check_reads(connection: Connection[Any]) -> Check:
    """Check the server of ``read_url``, on a connection to it."""
    is_standby, behind, is_receiving = admin_queries().standby_state(connection)
    if not is_standby:
        return ended("reads", "read_url names a server that accepts writes", [_PRIMARY])
    age = "an unknown time" if behind is None else format_duration(timedelta(seconds=round(behind.total_seconds(), 1)))
    return ended("reads", f"the standby of read_url is {age} behind", _findings(behind, is_receiving=is_receiving))


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
