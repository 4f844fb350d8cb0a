"""libpq: connection parameters as it resolves them, deadlines for its calls, sockets."""

import os
import select
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple, TypeVar

import psycopg
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

Value = TypeVar("Value")
# What psycopg takes for several hosts, and looks for in the string and the environment, but not in a service.
_HOSTS = ("host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts")


class DeadlineExceededError(psycopg.OperationalError):
    """No answer came in time, and the connection was closed. What had been sent may have been carried out."""

    @classmethod
    def after(cls, seconds: float | None) -> "DeadlineExceededError":
        return cls(
            f"no answer within {seconds or 0:.1f} s: the server, or the network to it, stands still; "
            "the connection was closed"
        )


class Limits(NamedTuple):
    """The longest waits of a connection, in seconds; None for no limit."""

    #: For the connection to be made, all hosts and the resolution of their names included.
    connect: float
    #: For one exchange: until all of a statement's answer is there.
    answer: float | None

    def within(self, seconds: float | None) -> "Limits":
        """Return these limits, none of them longer than that."""
        if seconds is None:
            return self
        return Limits(min(self.connect, seconds), seconds if self.answer is None else min(self.answer, seconds))


def resolve(conninfo: str) -> dict[str, str]:
    """Return the connection's parameters as libpq finds them: in the string, the service, the PG* variables.

    Its built-in defaults are left out. Empty for a string or service that libpq rejects: connecting says why.
    """
    # libpq reads services and variables only when it connects. An impossible sslmode stops it before the first host.
    attempt = PGconn.connect_start(make_conninfo(conninfo, sslmode="goqueue").encode())
    found = {
        option.keyword.decode(): option.val.decode(errors="replace")
        for option in attempt.info
        if option.val is not None and option.val != option.compiled
    }
    attempt.finish()
    found.pop("sslmode", None)
    return found


def attempts(conninfo: str, seconds: float) -> list[str]:
    """Return a connection string for each host and address, in the order in which to try them.

    Raises ConnectionTimeout when the names are not resolved in time.
    """
    found = resolve(conninfo)
    hosts = {name: found[name] for name in _HOSTS if name in found}
    try:
        each = in_time(seconds, conninfo_attempts, {**hosts, **conninfo_to_dict(conninfo)})
    except TimeoutError:
        raise psycopg.errors.ConnectionTimeout(
            f"no address for {hosts.get('host')!r} within {seconds:.1f} s: the resolver does not answer"
        ) from None
    return [make_conninfo("", **attempt) for attempt in each]


def in_time(seconds: float, function: Callable[..., Value], *args: object) -> Value:
    """Return the result of a call that nothing can interrupt. TimeoutError: it has not ended, and a thread keeps it."""
    result: Future[Value] = Future()

    def run() -> None:
        try:
            result.set_result(function(*args))
        except BaseException as exc:  # noqa: BLE001 - raised by the caller
            result.set_exception(exc)

    Thread(target=run, daemon=True, name="goqueue-in-time").start()
    return result.result(seconds)


def readable(fileno: int) -> bool:
    """Whether the socket has something to read, or was closed by the other side."""
    if hasattr(select, "poll"):  # select() takes no descriptor above 1023; Windows has nothing else.
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])


def abandon(fileno: int) -> None:
    """Let go of a socket that this process shares with the one it was forked from.

    Closing the connection would send the server a goodbye, which ends the session of both. In the socket's place comes
    /dev/null, because the driver still has its number.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, fileno, inheritable=False)
    os.close(nowhere)
