"""A pgbouncer for the tests that pools transactions, in front of the test server.

Imports goqueue.testing.embedded, for what both servers need: a private folder, and a user that is not root.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import AF_UNIX, socket

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.testing.embedded import _make_base, _make_private, _server_identity, _spawn

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
MISSING = "pgbouncer is not installed, so nothing is tested through one (Debian: apt-get install pgbouncer)"
POOL_SIZE = 2


@contextmanager
def running(server_url: str, **settings: object) -> Iterator[Callable[[str], str]]:
    """Yield a function that converts a database's URL to one through pgbouncer. It ends with this process."""
    assert PROGRAM is not None
    identity = _server_identity(None)  # pgbouncer does not run as root either
    base = _make_base(identity, in_memory=False)
    try:
        folder = base / "socket"
        _make_private(folder, identity)
        server = conninfo_to_dict(server_url)
        target = [
            f"{name}={_quoted(str(server[name]))}" for name in ("host", "port", "user", "password") if name in server
        ]
        lines = {
            "unix_socket_dir": folder,
            "listen_port": 6432,
            "pool_mode": "transaction",
            "default_pool_size": POOL_SIZE,
            # Every client may connect, through the private folder, as the server's user.
            "auth_type": "any",
            # Only versions that can prepare statements in shared sessions know this setting.
            **({"max_prepared_statements": 0} if version() >= (1, 21) else {}),
            **settings,
        }
        file = folder / "pgbouncer.ini"
        file.write_text(
            "\n".join(
                ["[databases]", f"* = {' '.join(target)}", "[pgbouncer]", *(f"{k} = {v}" for k, v in lines.items())]
            )
        )
        file.chmod(0o600)
        if identity:
            os.chown(file, identity["user"], identity["group"])
        with (base / "log").open("wb") as log:
            process = _spawn([PROGRAM, str(file)], signal.SIGKILL, stdout=log, stderr=log, **identity)
        try:
            deadline = time.monotonic() + 60
            while not _listens(folder / ".s.PGSQL.6432"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"pgbouncer did not start:\n{(base / 'log').read_text()}")
                time.sleep(0.01)
            yield lambda url: make_conninfo(url, host=str(folder), port=6432)
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def sessions(url: str, direct_url: str) -> Iterator[list[int]]:
    """Fill a database's pool, which otherwise has one session if one is enough; end the sessions. Return their pids."""
    with ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(url, prepare_threshold=None)) for _ in range(POOL_SIZE)]
        pids = [connection.execute("SELECT pg_backend_pid()").fetchall()[0][0] for connection in connections]
    yield pids
    # Dropping a database with sessions takes a tenth of a second.
    with psycopg.connect(direct_url, autocommit=True) as connection:
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY(%s)"
        while connection.execute(ending, [pids]).rowcount:
            time.sleep(0.002)


def _listens(path: Path) -> bool:
    """Return whether the socket accepts connections. Its file exists a moment earlier."""
    with socket(AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def version() -> tuple[int, int]:
    """Return the version of the installed pgbouncer."""
    said = subprocess.run([str(PROGRAM), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
