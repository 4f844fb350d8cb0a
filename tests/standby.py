"""A primary with a streaming standby, on embedded servers. Imports goqueue.testing and psycopg.

``python -m tests.standby ARGUMENTS`` runs pytest on such a pair. The standby applies each commit late, and the
tests' stores read lists, counts and statistics there (tests.elsewhere).
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from goqueue.migrate import migrate
from goqueue.testing.embedded import EmbeddedServer, _server_identity
from tests.workers import SECONDS, until

PORT = os.environ.get("GOQUEUE_TEST_STANDBY_PORT", "")
"""The port of the standby for the contract tests; empty if there is none."""
LAG = "100ms"


class Pair:
    """A migrated primary and its standby. ``url`` names both, and connects to the one that accepts writes."""

    def __init__(self, primary: EmbeddedServer, standby: EmbeddedServer) -> None:
        self.primary, self.standby = primary, standby
        hosts = ",".join(f"127.0.0.1:{server._settings['port']}" for server in (primary, standby))
        self.url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def set(self, name: str, value: str) -> None:
        """Change a setting of the primary, and wait until new sessions have it."""
        with psycopg.connect(self.primary.url(), autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
            admin.execute("SELECT pg_reload_conf()")

        def is_set() -> bool:
            with psycopg.connect(self.primary.url(), autocommit=True) as connection:
                return connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)

        until(is_set)

    def until_standby_is(self, *states: str) -> None:
        """Wait until the standby has one of the given states: sync, quorum, async or potential."""
        with psycopg.connect(self.primary.url(), autocommit=True) as admin:
            state = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"
            until(lambda: [row for row in admin.execute(state).fetchall() if row[0] in states])

    def until_caught_up(self) -> None:
        """Wait until the standby has flushed all WAL of the primary."""
        with psycopg.connect(self.primary.url(), autocommit=True) as admin:
            behind = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), flush_lsn) <= 0 FROM pg_stat_replication"
            until(lambda: admin.execute(behind).fetchone() == (True,))

    def until_replayed(self) -> None:
        """Wait until the standby shows all commits of the primary."""
        replayed(self.primary.url(), self.standby.url())

    def stop_sending(self) -> int:
        """Stop the WAL sender (SIGSTOP), and return its process id."""
        with psycopg.connect(self.primary.url(), autocommit=True) as admin:
            [(pid,)] = admin.execute("SELECT pid FROM pg_stat_replication").fetchall()
        os.kill(pid, signal.SIGSTOP)
        return int(pid)

    def crash(self, sender: int | None = None) -> None:
        """Crash the primary: it writes and sends nothing more. ``sender`` is the process id of a stopped WAL sender."""
        process = self.primary._process
        assert process is not None
        process.send_signal(signal.SIGQUIT)
        if sender is not None:
            os.kill(sender, signal.SIGKILL)
        process.wait(SECONDS)

    def promote(self) -> None:
        """Promote the standby, and wait until it is a primary."""
        with psycopg.connect(self.standby.url(), autocommit=True) as admin:
            assert admin.execute("SELECT pg_promote(TRUE, 60)").fetchone() == (True,)


@contextmanager
def pair(folder: Path, standby_settings: dict[str, str] | None = None) -> Iterator[Pair]:
    """Start both servers, with the standby's files in the folder. Commits do not wait for the standby yet."""
    safe = dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "on")
    settings = {**safe, "wal_level": "replica", "listen_addresses": "127.0.0.1"}
    with ExitStack() as stack:
        primary = EmbeddedServer(settings=settings | {"port": free_port()}, durable=False)
        stack.enter_context(primary)
        migrate(primary.url())
        data = folder / "standby"
        copy = [primary.bin("pg_basebackup"), "-d", primary.url(), "-D", data, "-R", "-c", "fast", "--no-sync"]
        # A slot: else a checkpoint can remove WAL that the standby has not received, and it never continues.
        subprocess.run([*copy, "--create-slot", "--slot", "standby"], check=True, capture_output=True)
        if identity := _server_identity(None):  # the tests run as root, and the servers don't
            for place, _, files in os.walk(data):
                for path in (Path(place), *(Path(place, file) for file in files)):
                    shutil.chown(path, identity["user"], identity["group"])
        own = {"port": free_port(), **(standby_settings or {})}
        standby = EmbeddedServer(data, settings=settings | own, durable=False)
        stack.enter_context(standby)
        both = Pair(primary, standby)
        both.until_standby_is("async")
        yield both


def url_of(primary: str) -> str:
    """Return the URL of the same database on the standby; empty if there is none."""
    return make_conninfo(primary, host="127.0.0.1", port=PORT) if PORT else ""


def replayed(primary_url: str, standby_url: str) -> None:
    """Wait until the standby shows all commits of the primary."""
    # Autocommit, because an open snapshot on the standby can delay the replay.
    with (
        psycopg.connect(primary_url, autocommit=True) as primary,
        psycopg.connect(standby_url, autocommit=True) as standby,
    ):
        written = primary.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        until(lambda: standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written).fetchone() == (True,))


def free_port() -> str:
    """Return a port that nobody uses. It is below those that the system assigns, so nobody gets it before the server
    listens."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, pair(Path(folder), {"recovery_min_apply_delay": LAG}) as both:
        names = {
            "GOQUEUE_TEST_DATABASE_URL": both.primary.url(),
            "GOQUEUE_TEST_STANDBY_PORT": both.standby._settings["port"],
        }
        return subprocess.run(
            [sys.executable, "-m", "pytest", *sys.argv[1:]], check=False, env=os.environ | names
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
