"""The faults. Each is a function with one sentence of purpose. It starts clients, and does harm until the run is over.

Imports psutil and psycopg.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import NamedTuple

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests import pgbouncer
from tests.chaos import journal
from tests.chaos.arena import Arena
from tests.chaos.clients import SECOND
from tests.chaos.proxy import Proxy

_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

_MAINTENANCE = (
    "VACUUM FULL goqueue.jobs",
    "ALTER TABLE goqueue.jobs ADD COLUMN chaos integer DEFAULT 1",
    "REINDEX TABLE CONCURRENTLY goqueue.jobs",
    "ALTER TABLE goqueue.jobs DROP COLUMN chaos",
)


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
    arena.hire_all()
    while arena.goes_on():
        arena.pause(0.05, 0.3)
        if arena.chance.random() < 0.15:
            stopped = arena.server.processes()
            arena.done["server"] += 1
        else:
            stopped = _backends(arena)[: arena.chance.randint(1, 3)]
            arena.done["sessions"] += len(stopped)
        for process in stopped:
            _signal(process.suspend)
        time.sleep(arena.chance.choice([0.1, 0.3, 0.7, 1.5, 3.0]))
        for process in stopped:
            _signal(process.resume)
    arena.finish()


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
            arena.hire(client.name.rpartition("-")[0].replace("-", " "))
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
    "crashes": Fault(crashes),
    "stops": Fault(stops),
    "terminations": Fault(terminations),
    "workers": Fault(workers, lease=SECOND),
    "cancellations": Fault(cancellations, errors=("CancelledError",)),
    "maintenance": Fault(maintenance),
    "pooler": Fault(pooler, missing="" if pgbouncer.PROGRAM else pgbouncer.MISSING),
}
