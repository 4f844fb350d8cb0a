"""One run of a fault: a database with its history, the clients' processes, and what the oracle reads afterwards.

Imports goqueue, msgspec and psycopg.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import psutil
import psycopg
from psycopg import sql

from goqueue.migrate import migrate
from tests.chaos import clients, journal
from tests.chaos.clients import CALL_SECONDS, RECOVERY_SECONDS, SECOND, Spec
from tests.chaos.oracle import Evidence, Stop, Violation, collect, judge
from tests.chaos.server import CrashingServer

ROOT = Path(__file__).resolve().parents[2]
HISTORY = Path(__file__).with_name("history.sql")
#: Seconds added to each deadline, for a busy machine.
MARGIN = 2.5
#: Limits of every session, which a pooler does not pass on.
_LIMITS = {"statement_timeout": "1s", "lock_timeout": "500ms", "idle_in_transaction_session_timeout": "1s"}

# A fork of a process without threads, with everything imported: clients are killed and replaced often.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.chaos.clients"])


class Program:
    """A client with an environment of its own, and with the methods of a process of multiprocessing."""

    def __init__(self, spec: Spec, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.chaos.clients", msgspec.json.encode(spec)]
        self._process = subprocess.Popen(command, env={**os.environ, **environ}, cwd=ROOT)
        self.pid = self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)


class Client(NamedTuple):
    name: str
    process: BaseProcess | Program
    environ: Mapping[str, str] | None


class Size(NamedTuple):
    """When a run ends: after this many calls and ``least`` seconds, and at the latest after ``seconds``."""

    calls: int
    seconds: float
    least: float = 0.0
    clients: int = 3


class Arena:
    """A database on ``server``, and the clients that use it. ``lease`` is short, so that leases expire."""

    def __init__(
        self,
        server: CrashingServer,
        folder: Path,
        name: str,
        seed: str,
        size: Size,
        *,
        lease: timedelta = 2 * SECOND,
    ) -> None:
        self.server = server
        self.folder = folder
        self.size = size
        self.chance = Random(seed)
        #: What the fault did, by kind.
        self.done: Counter[str] = Counter()
        self.stops: list[Stop] = []
        self.alive: list[Client] = []
        #: The URL that clients get.
        self.url = server.tcp_url(name)
        self._direct = self.url
        self._seed = seed
        self._lease = lease
        self._hired = 0
        #: The time begins with the first answer.
        self._began: float | None = None
        self._counted: dict[Path, tuple[int, int]] = {}
        #: What the oracle does not see.
        self.found: list[Violation] = []
        self._stack = ExitStack()
        folder.mkdir(parents=True)
        with psycopg.connect(server.tcp_url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            for setting, value in _LIMITS.items():
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(sql.Identifier(name), sql.SQL(setting), value)
                )
        migrate(self._direct)
        with self.connection() as connection:
            connection.execute(HISTORY.read_bytes())

    def enter(self, context: Any) -> Any:
        """Enter a context that lasts until the clients have ended."""
        return self._stack.enter_context(context)

    def connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._direct, autocommit=True, options="-c statement_timeout=20s -c lock_timeout=20s")

    # --- clients ------------------------------------------------------------------------------------------------------

    def hire(self, kind: str = "calls", environ: Mapping[str, str] | None = None) -> Client:
        """Start a client. ``environ`` are variables for it alone."""
        self._hired += 1
        name = f"{kind.replace(' ', '-')}-{self._hired}"
        spec = self.spec(kind, name)
        process: BaseProcess | Program
        if environ is None:
            process = _processes.Process(target=clients.run, args=(spec,), name=name, daemon=True)
            process.start()
        else:
            process = Program(spec._replace(epoch=time.time() - time.monotonic()), environ)
        client = Client(name, process, environ)
        self.alive.append(client)
        return client

    def spec(self, kind: str, name: str = "") -> Spec:
        return Spec(kind, name or kind, self.url, str(self.folder), f"{self._seed} {name}", self._lease)

    def hire_all(self) -> None:
        for _ in range(self.size.clients):
            self.hire()

    def replace(self, client: Client) -> None:
        """Start a client in place of one that has ended."""
        self.hire(client.name.rpartition("-")[0].replace("-", " "), client.environ)

    def kill(self, client: Client) -> None:
        """End a client with SIGKILL."""
        self.alive.remove(client)
        client.process.kill()
        client.process.join()

    @contextmanager
    def stopped(self, client: Client):  # type: ignore[no-untyped-def]
        """Stop a client with SIGSTOP, and let it continue at the end."""
        process, start = psutil.Process(client.process.pid), time.time()
        process.suspend()
        try:
            yield
        finally:
            process.resume()
            self.stops.append(Stop(client.name, start, time.time()))

    def goes_on(self) -> bool:
        """Return False when the run is over: enough calls, or enough time."""
        self._check_alive()
        calls, now = self.calls(), time.monotonic()
        if self._began is None:
            self._began = now if calls else None
            return True
        took = now - self._began
        return took < self.size.least or (took < self.size.seconds and calls < self.size.calls)

    def calls(self) -> int:
        """Return the number of answered calls, about."""
        for file in self.folder.glob("*.jsonl"):
            size, lines = self._counted.get(file, (0, 0))
            with file.open("rb") as text:
                text.seek(size)
                read = text.read()
            self._counted[file] = (size + len(read), lines + read.count(b"\n"))
        return sum(lines for _, lines in self._counted.values()) // 2

    def pause(self, least: float, most: float) -> None:
        time.sleep(self.chance.uniform(least, most))

    def _check_alive(self) -> None:
        for client in self.alive.copy():
            if client.process.exitcode is not None:
                self.alive.remove(client)
                self.found.append(Violation("recovered", f"{client.name} ended with {client.process.exitcode}"))
                self.replace(client)

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End the clients: each has to work again first. Then wait until no session changes anything."""
        (self.folder / "over").touch()
        for client in self.alive:
            client.process.join(2 * RECOVERY_SECONDS)
            if client.process.exitcode != 0:
                self.found.append(Violation("recovered", f"{client.name} ended with {client.process.exitcode}"))
                client.process.kill()
        self._stack.close()
        self._wait_for_server()
        others = "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
        with self.connection() as connection:
            end = time.monotonic() + 5
            while connection.execute(f"SELECT FROM pg_stat_activity WHERE {others}").fetchall():
                if time.monotonic() > end:
                    connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
                time.sleep(0.05)

    def _wait_for_server(self) -> None:
        """Wait until the server accepts connections: the last harm may have begun after the last calls."""
        end = time.monotonic() + RECOVERY_SECONDS
        while True:
            try:
                return self.connection().close()
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def judge(self, errors: tuple[str, ...] = ()) -> tuple[Evidence, list[Violation]]:
        """Return what the oracle read and found."""
        with self.connection() as connection:
            evidence = collect(connection, journal.read(self.folder))
        found = judge(evidence, seconds=CALL_SECONDS + MARGIN, stops=self.stops, errors=errors)
        return evidence, [*self.found, *found]

    def close(self) -> None:
        """End what is left, after an error too."""
        for client in self.alive:
            client.process.kill()
        self._stack.close()
