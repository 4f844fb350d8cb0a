"""The check `durability`: what an acknowledged job survives on this server, and what each weaker setting can lose.

Statements: sql/checks.sql.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from psycopg import Connection

from goqueue.counts import counted
from goqueue.postgres.admin_queries import admin_queries
from goqueue.schemas import DEFAULT_SCHEMA
from goqueue.workbench.findings import Check, Finding, Level, ended

__all__ = ["check_durability"]

_LAST = "loses the jobs that were acknowledged last"


class _State(NamedTuple):
    """The row of the query durability_state."""

    fsync: str
    full_page_writes: str
    synchronous_commit: str
    standby_names: str
    needed: int
    synchronous: list[str]
    others: list[str]
    unlogged: list[str]

    @property
    def waits(self) -> bool:
        """True if commits wait for standbys."""
        return bool(self.needed) and self.synchronous_commit not in ("off", "local")


def check_durability(connection: Connection[Any], *, sees_standbys: bool, schema: str = DEFAULT_SCHEMA) -> Check:
    """Check what this connection's commits survive. ``sees_standbys``: the role is a member of pg_read_all_stats."""
    state = _State(*admin_queries(schema).durability_state(connection))
    findings = [*_in_a_crash(state), *_in_a_failover(state, sees_standbys=sees_standbys)]
    if any(finding.level == Level.WARNING for finding in findings):
        survives = "an acknowledged job can be lost in a crash"
    elif any(finding.level == Level.FAILED for finding in findings):
        survives = "no job is acknowledged until a standby connects"
    elif state.waits:
        place = "in the memory" if state.synchronous_commit == "remote_write" else "on the disk"
        servers = counted(state.needed, "standby server")
        names = f" ({', '.join(state.synchronous)})" if sees_standbys else ""
        survives = f"an acknowledged job is on this server's disk and {place} of {servers}{names}"
    else:
        survives = "an acknowledged job survives a crash of the server, but not the loss of its disk"
    return ended("durability", survives, findings)


def _in_a_crash(state: _State) -> Iterator[Finding]:
    """Yield what a crash of this server can lose."""
    if state.fsync == "off":
        yield _lossy("fsync is off: a crash of the host can lose any job", "ALTER SYSTEM SET fsync = on")
    if state.full_page_writes == "off":
        yield _lossy(
            "full_page_writes is off: a crash of the host can destroy pages, with all jobs on them",
            "ALTER SYSTEM SET full_page_writes = on",
        )
    if state.synchronous_commit == "off":
        yield Finding(
            Level.WARNING,
            f"synchronous_commit is off for this connection: a crash of the server {_LAST}",
            do="set it to on where it is off: in the URL's options, for the role or the database, or on the server",
        )
    for table in state.unlogged:
        yield Finding(
            Level.WARNING,
            f"goqueue.{table} is unlogged: a crash of the server empties it",
            do=f"ALTER TABLE goqueue.{table} SET LOGGED;",
        )


def _lossy(found: str, change: str) -> Finding:
    return Finding(Level.WARNING, found, do=f"{change}; SELECT pg_reload_conf();")


def _in_a_failover(state: _State, *, sees_standbys: bool) -> Iterator[Finding]:
    """Yield what a failover to a standby can lose, and what blocks commits."""
    if state.waits and not sees_standbys:
        yield Finding(
            Level.NOTE, "the role can't see whether the standbys are connected; if not, every change of a job waits"
        )
    elif state.waits and len(state.synchronous) < state.needed:
        connected = f"{len(state.synchronous)} of {counted(state.needed, 'synchronous standby server')}"
        yield Finding(
            Level.FAILED,
            f"synchronous_standby_names is {state.standby_names!r}, and {connected} connected: every change waits",
            "a call whose wait is cancelled raises OutcomeUnknownError with is_committed",
            "start the standby (its application_name is in primary_conninfo), or "
            "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();",
        )
    if state.waits and state.synchronous_commit == "remote_write":
        yield Finding(
            Level.NOTE,
            f"synchronous_commit is remote_write: if the standby's host has crashed too, a failover {_LAST}",
            do="set synchronous_commit to on",
        )
    if state.needed and not state.waits:
        yield Finding(
            Level.NOTE,
            f"synchronous_commit is {state.synchronous_commit}, so no commit waits for a standby: a failover {_LAST}",
            do="set synchronous_commit to on",
        )
    if state.others and not state.needed:
        names = ", ".join(state.others)
        yield Finding(
            Level.NOTE,
            f"synchronous_standby_names is empty, so {names} can be behind: a failover {_LAST}",
            do="ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf();",
        )
