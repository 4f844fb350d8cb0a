"""The parts of an asynchronous worker that use asyncio. `threads` has the same names for threads."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from goqueue.work.context import RELEASED, Attempt, Outcome, outcome_of

TAKES_COROUTINES = True

#: The task that runs a handler.
Runner = asyncio.Task[Any]


class Signal:
    """A signal that wakes the one task that waits for it, or else the next task that does."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the task. A second call before it wakes does nothing."""
        self._event.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the signal, at most ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class Crew:
    """Tasks that are started and joined together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task."""
        self._tasks.append(asyncio.create_task(work(), name=name))

    async def join(self, seconds: float | None = None) -> None:
        """Wait until all have ended, at most ``seconds``."""
        if running := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(running, timeout=seconds)

    def cancel(self) -> None:
        """Cancel the tasks that still run."""
        for task in self._tasks:
            task.cancel()


def this_runner() -> Runner:
    """Return the calling task."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    return task


async def isolated(handle: Callable[[Attempt], Coroutine[Any, Any, Outcome]], attempt: Attempt) -> Outcome:
    """Handle an attempt in a task and a context of its own, so that its handler can neither cancel the runner nor
    change the runner's context variables."""
    if sys.version_info >= (3, 12):  # most handlers that never wait end at once
        task = asyncio.Task(handle(attempt), loop=asyncio.get_running_loop(), eager_start=True)
    else:
        task = asyncio.create_task(handle(attempt))
    try:
        return await task
    except asyncio.CancelledError as error:
        is_own = attempt.stopped is not None or not this_runner().cancelling()
        return outcome_of(error) if is_own else RELEASED  # the runner is cancelled when the program ends


def interrupt(runner: Runner) -> None:
    """Cancel the handler."""
    runner.cancel()


def resume(runner: Runner) -> None:
    """Let a runner continue after its handler was cancelled."""
    while runner.cancelling():
        runner.uncancel()


def soon(call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that makes the call in this event loop. Any thread can call it."""
    loop = asyncio.get_running_loop()

    def call_soon() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    return call_soon
