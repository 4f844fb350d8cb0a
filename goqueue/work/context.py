"""What a handler sees of its attempt, and the exceptions by which it decides the outcome."""

import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from threading import Event
from typing import Any, Final, Literal, NamedTuple

from goqueue.errors import WorkerError
from goqueue.models import Job
from goqueue.validation import check_interval, check_name

#: Why a handler should stop.
Stopped = Literal["lease lost", "cancelled", "timed out", "shutdown"]

# An error's text has at most this many frames of its traceback, the innermost ones.
_FRAMES = 10


class RetryJob(Exception):  # noqa: N818 - named for what becomes of the job
    """Raised by a handler: fail the attempt, and run the job again after ``retry_in``, or else by the worker's backoff.

    Without an attempt left the job is dead. Without an ``error``, the exception's cause is recorded (``from``).
    """

    def __init__(self, retry_in: timedelta | None = None, error: str = "") -> None:
        self.retry_in = None if retry_in is None else check_interval("retry_in", retry_in)
        self.error = error
        super().__init__(error)


class BuryJob(Exception):  # noqa: N818
    """Raised by a handler: give the job up. It is dead at once, with this error."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        super().__init__(error)


class ReleaseJob(Exception):  # noqa: N818
    """Raised by a handler: put the job back without counting the attempt. It is due after ``delay``."""

    def __init__(self, delay: timedelta = timedelta(0)) -> None:
        self.delay = check_interval("delay", delay)
        super().__init__(f"released for {self.delay}")


class Outcome(NamedTuple):
    """What becomes of an attempt: how it is reported, the error, the delay of the next attempt, and the reason for the
    log, which has no text of an exception: there can be a secret in it."""

    kind: Literal["completed", "failed", "buried", "released"]
    error: str = ""
    delay: timedelta | None = None
    reason: str = ""


COMPLETED: Final = Outcome("completed")
RELEASED: Final = Outcome("released", delay=timedelta(0))


def outcome_of(error: BaseException) -> Outcome:
    """Return what an exception of a handler makes of the attempt."""
    match error:
        case RetryJob():
            return Outcome("failed", _error(error), error.retry_in, "RetryJob")
        case BuryJob():
            return Outcome("buried", _error(error), None, "BuryJob")
        case ReleaseJob():
            return Outcome("released", delay=error.delay)
    return Outcome("failed", error_text(error, is_caught=True), None, type(error).__name__)


def _error(error: RetryJob | BuryJob) -> str:
    if error.error or error.__cause__ is None:
        return error.error or f"{type(error).__name__} without an error"
    return error_text(error.__cause__)


def error_text(error: BaseException, *, is_caught: bool = False) -> str:
    """Return an exception's type and message, then the innermost frames of its traceback. It never raises.

    ``is_caught``: the worker has caught it, and its own frame is the outermost one, which is left out.
    """
    try:
        frame = error.__traceback__
        frame = frame.tb_next if is_caught and frame else frame
        said = "".join(traceback.format_exception_only(error)).strip()
        frames = "".join(traceback.format_tb(frame, -_FRAMES)).rstrip()
    except Exception:  # noqa: BLE001 - whatever the exception's own code raises
        return f"{type(error).__name__}, which can't be shown"
    return f"{said}\n\n{frames}" if frames else said


@dataclass(eq=False, slots=True)
class JobContext:
    """The attempt that a handler runs, as `job_context` returns it.

    A stopped handler of an `AsyncWorker` is cancelled. A thread can't be: its handler has to look at ``stopped``, and
    takes one of the ``concurrency`` slots until it returns.
    """

    job: Job
    #: None while the handler should go on; else "lease lost", "cancelled", "timed out" or "shutdown". What the handler
    #: then returns or raises is ignored: the attempt is over, and another worker can have the job.
    stopped: Stopped | None = None
    _event: Event | None = None

    def wait(self, seconds: float) -> bool:
        """Sleep that long, or until the handler should stop. Return whether it should. It blocks the thread."""
        event = self._event = self._event or Event()
        return self.stopped is not None or event.wait(seconds)


@dataclass(eq=False, slots=True)
class Attempt(JobContext):
    """The worker's side of a `JobContext`. Times are of the monotonic clock, in seconds."""

    #: The end of the lease, counted from before the claim or the renewal was sent: never later than the server's.
    expires: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    outcome: Outcome | None = None

    def stop(self, reason: Stopped) -> None:
        """Tell the handler to stop."""
        self.stopped = reason
        if self._event is not None:
            self._event.set()


current: ContextVar[JobContext] = ContextVar("goqueue_job_context")


def job_context() -> JobContext:
    """Return the context of the job that the calling handler runs.

    Tasks that the handler starts have it too, and so do threads of `asyncio.to_thread`; other threads don't.

    Raises: `WorkerError` outside of a handler.
    """
    try:
        return current.get()
    except LookupError:
        raise WorkerError("no job runs here: call job_context() within a worker's handler") from None


def check_handler(job_type: object, handler: object, *, takes_coroutines: bool) -> str:
    """Return the job type; `WorkerError` for a handler that the worker can't call."""
    name = check_name("job_type", job_type)
    if not callable(handler):
        raise WorkerError(
            f"the handler of {name!r} must be a function that takes the job, not {type(handler).__name__}"
        )
    function: Any = handler.func if isinstance(handler, partial) else handler
    kinds: tuple[Any, ...] = (function, getattr(type(function), "__call__", None))  # noqa: B004 - of its class
    if _any(kinds, isgeneratorfunction, isasyncgenfunction):
        raise WorkerError(f"the handler of {name!r} is a generator function, whose body a call does not run")
    if not takes_coroutines and _any(kinds, iscoroutinefunction):
        raise WorkerError(f"the handler of {name!r} is a coroutine function: use AsyncWorker, or a plain function")
    return name


def _any(kinds: tuple[Any, ...], *tests: Callable[[Any], bool]) -> bool:
    return any(test(kind) for kind in kinds for test in tests)
