"""`AsyncWorker`: the handlers of a program, and how to run them."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from inspect import iscoroutinefunction
from secrets import token_hex
from typing import Any, TypeVar

from goqueue.config import Config, WorkerConfig
from goqueue.errors import WorkerError
from goqueue.models import Backoff, Job
from goqueue.storage_async import AsyncStorage
from goqueue.validation import check_kind, check_name
from goqueue.work.context import check_handler
from goqueue.work.run_async import AsyncRun
from goqueue.work.signals import stopping
from goqueue.work.tasks import TAKES_COROUTINES

#: A function that takes a job. Its result is ignored.
AsyncHandler = Callable[[Job], Any]
Decorated = TypeVar("Decorated", bound=AsyncHandler)

DEFAULT_CONFIG = WorkerConfig()
DEFAULT_BACKOFF = Backoff()


class AsyncWorker:
    """A worker that runs jobs in tasks. A handler is a coroutine function; a plain function blocks the event loop::

        worker = AsyncWorker()

        @worker.handler("send_email")
        async def send_email(job: Job) -> None:
            print("sending to", job.payload["to"])

        await worker.run(store)  # until SIGTERM, SIGINT or worker.stop()

    If the handler returns, the job is completed. If it raises, the attempt fails, and ``backoff`` sets the time of the
    next one. The exceptions `RetryJob`, `BuryJob` and `ReleaseJob` have other outcomes. `job_context` shows a handler
    that its job was cancelled, timed out or lost. After a crash or a lost lease a job runs again, so a handler must
    tolerate a second run.
    """

    def __init__(
        self, handlers: Mapping[str, AsyncHandler] | None = None, *, backoff: Backoff = DEFAULT_BACKOFF
    ) -> None:
        check_kind("handlers", {} if handlers is None else handlers, Mapping)
        check_kind("backoff", backoff, Backoff)
        self._handlers: dict[str, AsyncHandler] = {}
        self._backoff = backoff
        self._run: AsyncRun | None = None
        self._is_stopped = False
        for job_type, handler in (handlers or {}).items():
            self._add(job_type, handler)

    def handler(self, *job_types: str) -> Callable[[Decorated], Decorated]:
        """Decorate the handler of these job types.

        Raises: `WorkerError` if a job type already has a handler, or the object can't be called with a job.
        """
        if not job_types or callable(job_types[0]):
            raise WorkerError('handler() takes one or more job types, as in @worker.handler("send_email")')

        def decorate(handler: Decorated) -> Decorated:
            for job_type in job_types:
                self._add(job_type, handler)
            return handler

        return decorate

    def _add(self, job_type: str, handler: AsyncHandler) -> None:
        name = check_handler(job_type, handler, takes_coroutines=TAKES_COROUTINES)
        if name in self._handlers:
            raise WorkerError(f"the job type {name!r} already has a handler: {self._handlers[name]!r}")
        self._handlers[name] = handler

    async def run(
        self,
        store: AsyncStorage,
        config: WorkerConfig | Config = DEFAULT_CONFIG,
        *,
        worker_id: str | None = None,
        until_empty: bool = False,
        handle_signals: bool = True,
    ) -> int:
        """Run jobs until SIGTERM, SIGINT or `stop`. Return the number of jobs completed.

        At shutdown, the worker stops claiming and releases the jobs that it has not started. It waits
        ``shutdown_timeout`` for the running ones, then releases those too, without counting their attempts. A second
        signal ends the program at once. One signal stops all workers of the process. A handler that your program had
        set before is called too. Signals are handled only while a worker runs in the main thread. With
        ``handle_signals=False``, the worker leaves them alone: your program calls `stop`.

        ``worker_id`` names the holder of the jobs. The default consists of host name, process id and a random part.
        Only with this default does the worker look up and run the jobs of a claim whose reply was lost, because a name
        that you give can belong to two workers.
        With ``until_empty``, the worker ends when no job of its queues is due, except in paused ones, and it is running
        none.

        A worker uses up to five connections of the store's pool in addition to those of the handlers, and one to
        listen. It can't use a bound store, because each claim must be committed at once. Without notifications (behind
        a pooler), it finds jobs by polling. While the storage is unavailable, it waits. It repeats completions until
        they succeed or the lease is lost.

        Raises: `WorkerError` if the worker has no handler, is already running, or gets a store of the other kind. After
        the shutdown: a `StorageError` that a repetition can't correct, and the SystemExit or KeyboardInterrupt of a
        handler, whose attempt fails.
        """
        config = config.worker if isinstance(config, Config) else config
        check_kind("config", config, WorkerConfig, Config)
        if iscoroutinefunction(getattr(store, "claim_jobs", None)) is not TAKES_COROUTINES:
            kinds = f"{type(self).__name__} and {type(store).__name__}"
            raise WorkerError(f"{kinds} don't work together: use two for threads, or two for asyncio")
        if not self._handlers:
            raise WorkerError("the worker has no handler: add one with @worker.handler(job_type)")
        if self._run is not None and self._run.process == os.getpid():
            raise WorkerError("the worker is already running: create another one to run two at once")
        name = f"{socket.gethostname()[:200]}-{os.getpid()}-{token_hex(4)}" if worker_id is None else worker_id
        run = AsyncRun(
            store,
            config,
            self._handlers,
            self._backoff,
            check_name("worker_id", name),
            until_empty=until_empty,
            has_own_name=worker_id is None,
        )
        self._run = run
        try:
            if self._is_stopped:
                run.stop()
            with stopping(self.stop) if handle_signals else nullcontext():
                return await run.run()
        finally:
            self._run, self._is_stopped = None, False

    def stop(self) -> None:
        """End the run, as SIGTERM does. Any thread and any handler can call this. If the worker does not run, its next
        run ends at once."""
        self._is_stopped = True
        if (run := self._run) is not None:
            run.stop()
