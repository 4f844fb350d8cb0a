"""Attempts: the context that a handler sees, and the exceptions that determine the outcome."""

import asyncio
import os
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from threading import Event
from typing import Any, Final, Literal, NamedTuple, NoReturn

from goqueue.errors import Portable, WorkerError
from goqueue.models import Job
from goqueue.validation import check_interval, check_name, clean_text

#: The reasons for a handler to stop.
Stopped = Literal["lease lost", "cancelled", "timed out", "shutdown"]

# The text of an error has at most this many frames of the traceback, the innermost ones.
_FRAMES = 10


class RetryJob(Portable):
    """An exception for handlers: fail the attempt, and retry the job after ``retry_in`` or else the worker's backoff.

    If no attempt is left, the job is dead. Without ``error``, the exception's cause (``raise ... from``) is recorded.
    """

    # Also for a subclass that does not call __init__.
    retry_in: timedelta | None = None
    error: str = ""

    def __init__(self, retry_in: timedelta | None = None, error: str = "") -> None:
        self.retry_in = None if retry_in is None else check_interval("retry_in", retry_in)
        self.error = error
        super().__init__(error)


class BuryJob(Portable):
    """An exception for handlers: make the job dead at once, with this error, even with attempts left."""

    error: str = ""

    def __init__(self, error: str = "") -> None:
        self.error = error
        super().__init__(error)


class ReleaseJob(Portable):
    """An exception for handlers: release the job, due after ``delay``, without counting the attempt."""

    delay: timedelta = timedelta(0)

    def __init__(self, delay: timedelta = timedelta(0)) -> None:
        self.delay = check_interval("delay", delay)
        super().__init__(f"released for {self.delay}")


class Outcome(NamedTuple):
    """The outcome of an attempt: the kind of report, the error, the delay of the next attempt, and the reason to log.

    The reason never contains the text of an exception, which can hold a secret.
    """

    kind: Literal["completed", "failed", "buried", "released"]
    error: str = ""
    delay: timedelta | None = None
    reason: str = ""


COMPLETED: Final = Outcome("completed")
RELEASED: Final = Outcome("released", delay=timedelta(0))


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of an attempt whose handler raised this exception. Never raise: an error in the exception's
    own code, or an invalid attribute, fails the attempt too."""
    try:
        match error:
            case RetryJob(retry_in=None):
                return Outcome("failed", _error(error), None, "RetryJob")
            case RetryJob():
                return Outcome("failed", _error(error), check_interval("retry_in", error.retry_in), "RetryJob")
            case BuryJob():
                return Outcome("buried", _error(error), None, "BuryJob")
            case ReleaseJob():
                return Outcome("released", delay=check_interval("delay", error.delay))
        return Outcome("failed", error_text(error, is_caught=True), None, type(error).__name__)
    except BaseException as fault:  # noqa: BLE001 - the exception's own code can raise anything
        return Outcome("failed", error_text(fault), None, "an error in the exception's own code")


def outcome_of_result(result: object) -> Outcome:
    """Return the outcome of an attempt whose handler returned this object. Close a coroutine or a generator: its code
    has not run, so the job is not done."""
    if not isinstance(result, (Awaitable, Generator, AsyncGenerator)) or isinstance(result, asyncio.Future):
        return COMPLETED
    if isinstance(result, AsyncGenerator):
        with suppress(StopIteration):
            result.aclose().__await__().send(None)
    elif (close := getattr(result, "close", None)) is not None:
        close()
    what = f"the handler returned an object of type {type(result).__name__}, whose code has not run"
    advice = "use AsyncWorker, and await it" if isinstance(result, Awaitable) else "iterate over it in the handler"
    return Outcome("failed", f"{what}: {advice}", None, "its code has not run")


def _error(error: RetryJob | BuryJob) -> str:
    if error.error or error.__cause__ is None:
        return clean_text(error.error) if error.error else f"{type(error).__name__} without an error"
    return error_text(error.__cause__)


def error_text(error: BaseException, *, is_caught: bool = False) -> str:
    """Return an exception's type and message, then the innermost frames of its traceback. Never raise.

    With ``is_caught``, omit the outermost frame: it is the worker's own.
    """
    try:
        frame = error.__traceback__
        frame = frame.tb_next if is_caught and frame else frame
        said = "".join(traceback.format_exception_only(error)).strip()
        frames = "".join(traceback.format_tb(frame, -_FRAMES)).rstrip()
    except BaseException:  # noqa: BLE001 - the exception's own code can raise anything
        return f"{type(error).__name__}, which can't be shown"
    return f"{said}\n\n{frames}" if frames else said


def end_fork() -> NoReturn:
    """End a process that a handler has forked, once the handler returns or raises in it, as `multiprocessing` does.
    Otherwise, it would run the parent's other jobs."""
    error, status = sys.exception(), 0
    try:
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            status = error.code or 0
        elif error is not None:
            status = 1
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status & 0xFF)


@dataclass(eq=False, slots=True)
class JobContext:
    """The attempt that a handler runs, as `job_context` returns it.

    In an `AsyncWorker`, a handler that should stop is cancelled. A thread can't be cancelled: its handler has to check
    ``stopped``, and occupies one of the ``concurrency`` slots until it returns.
    """

    job: Job
    #: None while the handler should run; else "lease lost", "cancelled", "timed out" or "shutdown". The attempt is then
    #: over and another worker can have the job, so the handler's result or exception is ignored.
    stopped: Stopped | None = None
    _event: Event | None = None

    def wait(self, seconds: float) -> bool:
        """Block the thread for ``seconds`` or until the handler should stop. Return True if it should stop."""
        event = self._event = self._event or Event()
        return self.stopped is not None or event.wait(seconds)


@dataclass(eq=False, slots=True)
class Attempt(JobContext):
    """A `JobContext` with the worker's own fields. Times are readings of the monotonic clock, in seconds."""

    #: The end of the lease, measured from before the claim or the renewal was sent, so never later than the server's.
    expires: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    outcome: Outcome | None = None
    #: True if another transaction has locked the job's row for too long to report the outcome.
    is_locked: bool = False

    def stop(self, reason: Stopped) -> None:
        """Tell the handler to stop."""
        self.stopped = reason
        if self._event is not None:
            self._event.set()


current: ContextVar[JobContext] = ContextVar("goqueue_job_context")


def job_context() -> JobContext:
    """Return the context of the job that the calling handler runs.

    It also works in tasks that the handler starts and in threads of `asyncio.to_thread`, but not in other threads.

    Raises: `WorkerError` outside of a handler.
    """
    try:
        return current.get()
    except LookupError:
        raise WorkerError("no job is running here: call job_context() within a worker's handler") from None


def check_handler(job_type: object, handler: object, *, takes_coroutines: bool) -> str:
    """Return the checked job type. Raise `WorkerError` for a handler that the worker can't call."""
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
