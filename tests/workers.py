"""Workers of both kinds, for tests of their common behaviour. Imports goqueue."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from goqueue import AsyncPostgresStorage, AsyncWorker, Job, PostgresStorage, Worker, WorkerConfig, job_context

KINDS = ["threads", "tasks"]
SECONDS = 60.0
"""The longest wait for a condition, reached only if the test fails."""

#: A handler for both kinds: a coroutine function that waits with `pause` alone.
Handler = Callable[[Job], Coroutine[Any, Any, Any]]


class StopError(Exception):
    """A handler in a thread has noticed that it should stop."""


async def pause(seconds: float) -> None:
    """Wait in a handler. A stopped one gets `StopError` in a thread, and CancelledError in a task."""
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    elif job_context().wait(seconds):
        raise StopError


def until(holds: Callable[[], Any]) -> Any:
    """Wait until the condition is true, and return its value."""
    deadline = time.monotonic() + SECONDS
    while not (given := holds()):
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
    return given


def in_thread(handler: Handler) -> Callable[[Job], None]:
    """Return the handler as a plain function."""

    def handle(job: Job) -> None:
        coroutine = handler(job)
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a handler in a thread can't wait for an event loop")

    return handle


def settings(**given: Any) -> WorkerConfig:
    return WorkerConfig(**{"poll_interval": timedelta(seconds=0.1), "concurrency": 4, **given})


class Workers:
    """Workers of one kind, on one database."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url

    def make(self, handlers: Mapping[str, Handler], **given: Any) -> Any:
        if self.kind == "tasks":
            return AsyncWorker(handlers, **given)
        return Worker({name: in_thread(handler) for name, handler in handlers.items()}, **given)

    def run(self, worker: Any, url: Any = None, **given: Any) -> int:
        """Return the result of `run` with these settings and options."""
        options = {name: given.pop(name) for name in ("worker_id", "until_empty") if name in given}
        config = settings(**given)
        if self.kind == "threads":
            with PostgresStorage.open(url or self.url) as store:
                return worker.run(store, config, **options)

        async def run() -> int:
            async with await AsyncPostgresStorage.open(url or self.url) as store:
                return await worker.run(store, config, **options)

        return asyncio.run(run())

    def work(self, handlers: Mapping[str, Handler], **given: Any) -> int:
        """Run jobs until there are none that are due."""
        return self.run(self.make(handlers), until_empty=True, **given)

    @contextmanager
    def running(self, handlers: Mapping[str, Handler], url: Any = None, **given: Any) -> Iterator[Any]:
        """A worker that runs in a thread of its own, and is stopped at the end.

        Its attribute ``ended`` has what `run` returned or raised."""
        worker = self.make(handlers)
        ended: list[Any] = []

        def run() -> None:
            try:
                ended.append(self.run(worker, url, **given))
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        worker.ended = ended
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(SECONDS)
            assert not thread.is_alive(), "the worker did not end"
            if isinstance(ended[0], BaseException):
                raise ended[0]
