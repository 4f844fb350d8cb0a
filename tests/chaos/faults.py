"""The faults. Each is a function with one sentence of purpose. It starts clients, and does harm until the run is over.

Imports goqueue.migrate, goqueue.testing.embedded, psutil and psycopg.
"""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import NamedTuple

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue.migrate import MigrationError, list_migrations, migrate, undo
from goqueue.testing.embedded import START_SECONDS
from tests import pgbouncer
from tests.chaos import clock, disk, journal
from tests.chaos.arena import ROOT, Arena
from tests.chaos.clients import SECOND
from tests.chaos.clock import Clock
from tests.chaos.disk import Disk
from tests.chaos.each import Each
from tests.chaos.hands import Psql, change
from tests.chaos.proxy import Proxy

_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

# The first 48 bits of an id are its time in milliseconds, by the clock of its client.
_OTHER_DAYS = """
SELECT count(*) FROM chaos.history
WHERE
    old_status IS NULL
    AND abs(
        ('x' || left(replace(job_id::text, '-', ''), 12))::bit(48)::bigint - extract(epoch FROM changed_at) * 1000
    ) > 3600000
"""

_MAINTENANCE = (
    "VACUUM FULL goqueue.jobs",
    "ALTER TABLE goqueue.jobs ADD COLUMN chaos integer DEFAULT 1",
    "REINDEX TABLE CONCURRENTLY goqueue.jobs",
    "ALTER TABLE goqueue.jobs DROP COLUMN chaos",
)

_DAY = 24 * 60 * 60
_CLOCKS = {"a day ahead": _DAY, "a day behind": -_DAY, "right": 0}

#: A commit of an older release, whose newest migration is V0024.
OLDER = "bbd7220"
_NO_OLDER = f"commit {OLDER} is not in this checkout (git fetch --unshallow)"
#: chaos.history has the columns of this version.
_LOWEST = 4


def calm(arena: Arena) -> None:
    """No fault: a violation is a mistake of the store or of the judging code."""
    arena.hire_all()
    while arena.goes_on():
        arena.pause(0.1, 0.1)
    arena.finish()


def cuts(arena: Arena) -> None:
    """Cut connections at each protocol message: RST, FIN, half a message, silence, or a peer that only reads (sink)."""
    proxy: Proxy = arena.enter(Proxy(lambda: ("127.0.0.1", arena.server.port), arena.chance, every=80))
    arena.url = make_conninfo(arena.url, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable")
    arena.hire_all()
    while arena.goes_on():
        arena.pause(0.1, 0.1)
    proxy.calm()
    arena.finish()
    for (_, _, _, way, _), count in proxy.cuts.items():
        arena.done[way] += count
    arena.done["different points"] = len(proxy.cuts)


def each_cut(arena: Arena) -> None:
    """Cut every call of the store before and after each of its messages, in each way."""
    goes_on = _until(arena.size.seconds)
    each = Each(arena.spec("each-cut"), ("127.0.0.1", arena.server.port), arena.chance, goes_on)
    each.run()
    arena.done.update(each.done)
    arena.found += each.found
    arena.finish()


def crashes(arena: Arena) -> None:
    """Kill the whole server, kill one of its processes, or shut it down immediately, and let it recover."""
    arena.hire_all()
    while arena.goes_on():
        arena.pause(0.5, 2.5)
        way = arena.chance.choice(["killed", "one process killed", "immediate shutdown"])
        match way:
            case "killed":
                arena.server.kill()
                arena.server.start_again()
            case "one process killed":  # the postmaster then ends the others, and recovers
                for backend in _backends(arena)[:1]:
                    _signal(backend.kill)
            case _:
                arena.server.shut_down_immediately()
                arena.server.start_again()
        arena.done[way] += 1
    arena.finish()


def stops(arena: Arena) -> None:
    """Stop the server processes of some sessions, or all of the server's processes, for up to three seconds."""
    times: list[tuple[float, float]] = []
    arena.hire_all()
    while arena.goes_on():
        arena.pause(0.05, 0.3)
        if arena.chance.random() < 0.15:
            stopped = arena.server.processes()
            arena.done["server"] += 1
        else:
            stopped = _backends(arena)[: arena.chance.randint(1, 3)]
            arena.done["sessions"] += len(stopped)
        start = time.time()
        for process in stopped:
            _signal(process.suspend)
        time.sleep(arena.chance.choice([0.1, 0.3, 0.7, 1.5, 3.0]))
        for process in stopped:
            _signal(process.resume)
        times.append((start, time.time()))
    arena.finish()
    unavailable = [call for call in journal.read(arena.folder) if call.is_unavailable]
    arena.done["unavailable without a stop"] = sum(
        all(end < call.at or (call.ended or end) < start for start, end in times) for call in unavailable
    )


def terminations(arena: Arena) -> None:
    """Terminate sessions and cancel their statements."""
    arena.hire_all()
    with ExitStack() as stack:
        connection = stack.enter_context(arena.connection())
        while arena.goes_on():
            arena.pause(0.005, 0.03)
            way = arena.chance.choice(["terminate", "cancel", "cancel"])
            pids = [pid for (pid,) in connection.execute(_BACKENDS)]
            if pids:
                connection.execute(f"SELECT pg_{way}_backend(%s)", [arena.chance.choice(pids)])
                arena.done[way] += 1
    arena.finish()


def workers(arena: Arena) -> None:
    """Kill workers and clients, or stop them until their leases have expired."""
    kinds = ("calls", "worker", "calls", "async worker")
    for kind in kinds:
        arena.hire(kind)
    while arena.goes_on():
        arena.pause(0.1, 0.4)
        client = arena.chance.choice(arena.alive)
        if arena.chance.random() < 0.5:
            arena.kill(client)
            arena.replace(client)
            arena.done["killed"] += 1
        else:
            with arena.stopped(client):
                arena.pause(1.5, 2.5)
            arena.done["stopped"] += 1
    arena.finish()


def cancellations(arena: Arena) -> None:
    """Cancel asynchronous calls at each await, and some of them a second time while they end."""
    for _ in range(2):
        arena.hire("tasks")
    while arena.goes_on():
        arena.pause(0.1, 0.1)
    arena.finish()
    cancelled = [call for call in journal.read(arena.folder) if call.error == "CancelledError"]
    # The error says at which suspension.
    arena.done["different points"] = len({(call.method, call.said) for call in cancelled})


def pooler(arena: Arena) -> None:
    """Kill pgbouncer, which pools transactions, and start it again."""
    with ExitStack() as stack:
        socket = [_pooler(arena, stack)]
        proxy: Proxy = arena.enter(Proxy(lambda: socket[0], arena.chance, every=0))
        arena.url = make_conninfo(arena.url, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable")
        arena.hire_all()
        while arena.goes_on():
            arena.pause(0.5, 2.5)
            stack.close()  # kills it
            arena.pause(0.0, 0.5)
            socket[0] = _pooler(arena, stack)
            arena.done["killed"] += 1
        arena.finish()


def maintenance(arena: Arena) -> None:
    """Rewrite the table, rebuild its indexes, and add and drop a column under traffic."""
    arena.hire_all()
    with arena.connection() as connection:
        while arena.goes_on():
            for statement in _MAINTENANCE:
                arena.pause(0.05, 0.3)
                with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                    connection.execute(statement)
                    arena.done[statement.partition(" goqueue")[0].lower()] += 1
    arena.finish()


def full_tables(arena: Arena) -> None:
    """Fill the disk of the tables, and empty it again."""
    with Disk(arena.folder / "tables", arena.server, 96) as small:
        with arena.connection() as connection:
            connection.execute(f"CREATE TABLESPACE chaos LOCATION '{small.folder}'")
            for kind in ("TABLE", "INDEX"):
                connection.execute(f"ALTER {kind} ALL IN TABLESPACE pg_default SET TABLESPACE chaos")
            # Else only the history would notice: it always grows.
            connection.execute("ALTER TABLE chaos.history SET TABLESPACE pg_default")
            connection.execute("ALTER INDEX chaos.history_pkey SET TABLESPACE pg_default")
        arena.hire_all()
        while arena.goes_on():
            arena.pause(0.3, 1.0)
            small.fill()
            arena.done["filled"] += 1
            arena.pause(0.3, 1.5)
            small.free()
        arena.finish()
        with arena.connection() as connection:
            for kind in ("TABLE", "INDEX"):
                connection.execute(f"ALTER {kind} ALL IN TABLESPACE chaos SET TABLESPACE pg_default")
            connection.execute("DROP TABLESPACE chaos")
    arena.done["calls without room"] = sum("No space left" in call.said for call in journal.read(arena.folder))


def full_wal(arena: Arena) -> None:
    """Fill the disk of the WAL, which stops the server, and start the server when there is room again."""
    server = arena.server
    with Disk(arena.folder / "wal", server, 192) as small:
        with arena.connection() as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '64MB'")
        with disk.wal_on(small, server):
            arena.hire_all()
            while arena.goes_on():
                arena.pause(0.5, 1.5)
                small.fill()
                arena.done["filled"] += 1
                with suppress(psycopg.Error), arena.connection() as connection:
                    connection.execute("SELECT pg_switch_wal()")
                arena.pause(0.3, 1.5)
                small.free()
                if _is_gone(arena):
                    server.start_again()
                    arena.done["stopped the server"] += 1
                else:
                    arena.done["the server recovered"] += 1
            arena.finish()
            with arena.connection() as connection:
                connection.execute("ALTER SYSTEM RESET ALL")


def clocks(arena: Arena) -> None:
    """Set the clocks of clients and workers a day ahead, a day behind and right again, while they work."""
    wrong = Clock(arena.folder, _DAY)
    for kind in ("calls", "worker", "calls", "async worker"):
        arena.hire(kind, wrong.environ)
    while arena.goes_on():
        arena.pause(0.5, 3.0)
        way = arena.chance.choice(list(_CLOCKS))
        wrong.set(_CLOCKS[way])
        arena.done[way] += 1
    arena.finish()
    with arena.connection() as connection:
        arena.done["jobs with an id of another day"] = connection.execute(_OTHER_DAYS).fetchall()[0][0]


def hands(arena: Arena) -> None:
    """Change, delete and insert jobs of each status with psql."""
    for kind in ("calls", "worker", "calls"):
        arena.hire(kind)
    with Psql(arena.server, arena.url) as psql:
        while arena.goes_on():
            arena.pause(0.0, 0.01)
            arena.done[change(psql, arena.chance)] += 1
    arena.finish()


def versions(arena: Arena) -> None:
    """Undo and apply each migration under clients of this release and of an older one."""
    older = arena.folder / OLDER
    older.mkdir()
    archive = subprocess.run(
        ["git", "archive", OLDER, "goqueue", "sql", "migrations", "migrations.yml", "pyproject.toml"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["tar", "--extract", "--directory", older], check=True, input=archive.stdout)
    # Safe: without the working directory, which has this release.
    environ = {"PYTHONPATH": f"{older}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}
    url = make_conninfo(arena.url, options="-c statement_timeout=20s")
    newest = list_migrations(url)[-1].version
    is_long = arena.size.least > 0  # then each migration is undone and applied
    for kind in ("calls", "worker"):
        arena.hire(kind)
    old = {arena.hire(kind, environ).name for kind in ("calls", "worker")}
    while arena.goes_on():
        for version in range(newest - 1, _LOWEST - 1, -1):
            if not (is_long or arena.goes_on()):
                break
            arena.pause(0.02, 0.2)
            arena.done["undone" if _changes(lambda to=version: undo(url, to=to)) else "failed"] += 1
        for version in range(_LOWEST + 1, newest + 1):
            if not (is_long or arena.goes_on()):
                break
            arena.pause(0.02, 0.2)
            arena.done["applied" if _changes(lambda to=version: migrate(url, target=to)) else "failed"] += 1
    migrate(url)
    arena.finish()
    arena.done["calls of the older release that succeeded"] = sum(
        call.client in old and not call.error for call in journal.read(arena.folder)
    )


def _until(seconds: float) -> Callable[[], bool]:
    """Return a function that returns True for some time since its first call."""
    start: list[float] = []

    def goes_on() -> bool:
        if not start:
            start.append(time.monotonic())
        return time.monotonic() - start[0] < seconds

    return goes_on


def _changes(step: Callable[[], object]) -> bool:
    try:
        step()
    except MigrationError:
        return False
    return True


def _is_gone(arena: Arena) -> bool:
    """Wait until the server has ended, or has recovered and accepts connections. Return True if it has ended."""
    end = time.monotonic() + START_SECONDS
    while arena.server.is_running and time.monotonic() < end:
        with suppress(psycopg.Error), arena.connection():
            return False
        time.sleep(0.1)
    return True


def _has_older() -> bool:
    command = ["git", "cat-file", "-e", f"{OLDER}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0


def _pooler(arena: Arena, stack: ExitStack) -> str:
    """Start pgbouncer, and return the path of its socket."""
    through = stack.enter_context(
        pgbouncer.running(
            arena.server.tcp_url("postgres"), default_pool_size=4, server_round_robin=1,
            ignore_startup_parameters="options",
        )
    )  # fmt: skip
    found = conninfo_to_dict(through(arena.url))
    return f"{found['host']}/.s.PGSQL.{found['port']}"


def _backends(arena: Arena) -> list[psutil.Process]:
    """Return the server processes of the clients' sessions, in random order; none while the server is away."""
    pids: list[int] = []
    with suppress(psycopg.Error), arena.connection() as connection:
        pids = [pid for (pid,) in connection.execute(_BACKENDS)]
    arena.chance.shuffle(pids)
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # the client gave it up
            found.append(psutil.Process(pid))
    return found


def _signal(send: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        send()


class Fault(NamedTuple):
    run: Callable[[Arena], None]
    #: Exceptions that the fault itself raises in a client.
    errors: tuple[str, ...] = ()
    lease: timedelta = 2 * SECOND
    #: Why it can't run here; empty if it can.
    missing: str = ""

    @property
    def purpose(self) -> str:
        return (self.run.__doc__ or "").strip()


FAULTS: dict[str, Fault] = {
    "calm": Fault(calm),
    "cuts": Fault(cuts),
    "each cut": Fault(each_cut),
    "crashes": Fault(crashes),
    "stops": Fault(stops),
    "terminations": Fault(terminations),
    "workers": Fault(workers, lease=SECOND),
    "cancellations": Fault(cancellations, errors=("CancelledError",)),
    "maintenance": Fault(maintenance),
    "pooler": Fault(pooler, missing="" if pgbouncer.PROGRAM else pgbouncer.MISSING),
    "full tables": Fault(full_tables, missing=disk.MISSING),
    "full wal": Fault(full_wal, missing=disk.MISSING),
    "clocks": Fault(clocks, lease=SECOND, missing=clock.MISSING),
    "hands": Fault(hands),
    "versions": Fault(versions, errors=("SchemaError",), missing="" if _has_older() else _NO_OLDER),
}
