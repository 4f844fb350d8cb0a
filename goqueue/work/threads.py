"""The parts of a worker that use threads. `tasks` has the same names for asyncio."""

from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from threading import Lock, Thread, current_thread
from time import monotonic

from goqueue.work.context import Attempt, Outcome

TAKES_COROUTINES = False

#: The thread that runs a handler.
Runner = Thread


class Signal:
    """A signal that wakes the one thread that waits for it, or else the next thread that does.

    `set` takes no lock, so that a signal handler can call it at any moment (`threading.Event.set` can deadlock there).
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the thread. A second call before it wakes does nothing."""
        with suppress(RuntimeError):  # it is already set
            self._lock.release()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the signal, at most ``seconds``."""
        self._lock.acquire(timeout=-1 if seconds is None else max(seconds, 0.0))


class Crew:
    """Daemon threads that are started and joined together."""

    def __init__(self) -> None:
        self._threads: list[Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread."""
        thread = Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, seconds: float | None = None) -> None:
        """Wait until all have ended, at most ``seconds``."""
        deadline = None if seconds is None else monotonic() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - monotonic(), 0.0))


def this_runner() -> Runner:
    """Return the calling thread."""
    return current_thread()


def isolated(handle: Callable[[Attempt], Outcome], attempt: Attempt) -> Outcome:
    """Handle an attempt in a context of its own, so that its handler can't change the runner's context variables."""
    return copy_context().run(handle, attempt)


def interrupt(runner: Runner) -> None:
    """Do nothing: a thread can't be interrupted. Its handler checks its `JobContext`."""


def soon(call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that makes the call. Any thread can call it."""
    return call
