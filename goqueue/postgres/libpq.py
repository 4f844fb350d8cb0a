"""libpq's view of connections: resolved parameters, deadlines for calls, sockets."""

import os
import select
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import NamedTuple, TypeVar

import psycopg
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

Value = TypeVar("Value")
# psycopg accepts these for several hosts. It reads them from the string and the environment, but not from a service.
_HOSTS = ("host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts")


class DeadlineExceededError(psycopg.OperationalError):
    """No answer came in time, and the connection was closed. The statement may have been executed."""

    @classmethod
    def after(cls, seconds: float | None) -> "DeadlineExceededError":
        return cls(
            f"no answer within {seconds or 0:.1f} s: the server or the network does not respond; "
            "the connection was closed"
        )


class Limits(NamedTuple):
    """The time limits of a connection, in seconds; None for no limit."""

    #: For connecting, including all hosts and name resolution.
    connect: float
    #: For one exchange, until a statement's answer is complete.
    answer: float | None

    def within(self, seconds: float | None) -> "Limits":
        """Return these limits, each reduced to at most ``seconds``."""
        if seconds is None:
            return self
        return Limits(min(self.connect, seconds), seconds if self.answer is None else min(self.answer, seconds))


def resolve(conninfo: str) -> dict[str, str]:
    """Return the connection's parameters as libpq finds them: in the string, the service, the PG* variables.

    libpq's defaults are left out. The result is empty if libpq rejects the string or service: connecting reports why.
    """
    # libpq reads services and variables only when it connects. An invalid sslmode stops it before the first host.
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
    """Return a connection string for each host and address, in the order of the attempts.

    Raises ConnectionTimeout if the names are not resolved in time.
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


def all_failed(tried: Iterable[str], errors: Iterable[psycopg.Error]) -> str:
    """Return the message for attempts that all failed, in psycopg's words, from which `translate` reads each reason."""
    lines = ["all attempts failed:"]
    for attempt, error in zip(tried, errors, strict=True):
        place = conninfo_to_dict(attempt)
        named = ", ".join(f"{name}: {place.get(name)!r}" for name in ("host", "port", "hostaddr"))
        lines.append(f"- {named}: {error}")
    return "\n".join(lines)


def in_time(seconds: float, function: Callable[..., Value], *args: object) -> Value:
    """Return the result of a call that can't be interrupted. After a TimeoutError it continues in a thread."""
    result: Future[Value] = Future()

    def run() -> None:
        try:
            result.set_result(function(*args))
        except BaseException as exc:  # noqa: BLE001 - re-raised by the caller
            result.set_exception(exc)

    Thread(target=run, daemon=True, name="goqueue-in-time").start()
    return result.result(seconds)


def readable(fileno: int) -> bool:
    """Return True if the socket has data to read or was closed by the other side."""
    if hasattr(select, "poll"):  # select() fails for descriptors above 1023, but Windows has nothing else.
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])


def abandon(fileno: int) -> None:
    """Release a socket that this process shares with its parent.

    Closing the connection would send the server a Terminate message, which ends the parent's session too. The socket is
    replaced with /dev/null, because the driver still has its descriptor.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, fileno, inheritable=False)
    os.close(nowhere)
