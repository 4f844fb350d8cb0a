"""What an asynchronous worker needs of asyncio. `threads` has the same names for threads."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

TAKES_COROUTINES = True

#: Who runs a handler.
Runner = asyncio.Task[Any]


class Signal:
    """Wakes the one task that waits for it, or the next one that does."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake it. A second call before it wakes does nothing."""
        self._event.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until it is set, or that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class Crew:
    """Tasks that are started and joined together."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start one."""
        self._tasks.append(asyncio.create_task(work(), name=name))

    async def join(self, seconds: float | None = None) -> None:
        """Wait until all have ended, or that long."""
        if running := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(running, timeout=seconds)

    def cancel(self) -> None:
        """Cancel those that still run."""
        for task in self._tasks:
            task.cancel()


def this_runner() -> Runner:
    """Return who calls."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    return task


def interrupt(runner: Runner) -> None:
    """Cancel the handler."""
    runner.cancel()


def resume(runner: Runner) -> None:
    """Let a runner go on whose handler was cancelled."""
    while runner.cancelling():
        runner.uncancel()


def soon(call: Callable[[], None]) -> Callable[[], None]:
    """Return a function for every thread that makes the call in this event loop."""
    loop = asyncio.get_running_loop()

    def call_soon() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    return call_soon


async def to_the_end(work: Awaitable[Any]) -> None:
    """Await the work to its end also while this task is cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
