"""The clients, each a process of its own: random calls, random calls in tasks that are cancelled, and workers.

`python -m tests.chaos.clients` runs one with another environment, such as another clock or an older goqueue.

Imports goqueue and msgspec.
"""

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec

from goqueue import (
    AsyncPostgresStorage,
    AsyncWorker,
    BuryJob,
    DatabaseConfig,
    GoQueueError,
    Job,
    PostgresStorage,
    ReleaseJob,
    RetryJob,
    SchemaError,
    Worker,
    WorkerConfig,
)
from goqueue.postgres.queries import load_queries
from tests.chaos.journal import Journal, recorded
from tests.chaos.program import BACKOFF, QUEUES, Action, Program

SECOND = timedelta(seconds=1)
#: Seconds until a call has to end: statement_timeout + connect_timeout + 1.
CALL_SECONDS = 3.0
#: Seconds that a client has to work again after the fault.
RECOVERY_SECONDS = 30.0

# In the process that the clients are forked from: an `open` with a deadline should not parse files.
load_queries()


class Spec(NamedTuple):
    """What a client's process needs to know. ``epoch`` is that of its journal."""

    kind: str
    name: str
    url: str
    folder: str
    seed: str
    lease: timedelta
    sql_dir: str = ""
    epoch: float | None = None

    @property
    def config(self) -> DatabaseConfig:
        return DatabaseConfig(
            url=self.url, pool_min_size=1, pool_max_size=3, pool_timeout=SECOND, connect_timeout=SECOND,
            statement_timeout=SECOND, lock_timeout=SECOND / 2, idle_in_transaction_timeout=SECOND,
            claim_resume_time=SECOND, sql_dir=self.sql_dir,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        return (Path(self.folder) / "over").exists()


def run(spec: Spec) -> None:
    """Run a client until the folder has the file ``over``. Each process runs this."""
    logging.getLogger("goqueue").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    journal = Journal(Path(spec.folder) / f"{spec.name}.jsonl", spec.epoch)
    if spec.kind == "calls":
        run_calls(spec, journal)
    elif spec.kind == "worker":
        run_worker(spec, journal)
    elif spec.kind == "async worker":
        asyncio.run(run_async_worker(spec, journal))
    else:
        asyncio.run(run_tasks(spec, journal))


# --- random calls -----------------------------------------------------------------------------------------------------


def run_calls(spec: Spec, journal: Journal) -> None:
    program = Program(spec.name, spec.seed, spec.lease)
    with opened(spec, journal) as opened_store:
        store = recorded(opened_store, journal)
        while not spec.is_over:
            action = program.next()
            value, error = None, None
            try:
                value = getattr(store, action.method)(*action.args, **action.kwargs)
            except Exception as exc:  # the oracle judges it
                error = exc
            program.learn(action, value, error)
        recover(store)


def opened(spec: Spec, journal: Journal) -> PostgresStorage:
    """Open a store, and try again while the server is away."""
    end = time.monotonic() + RECOVERY_SECONDS
    while True:
        call, start = journal.called("open", {}), time.monotonic()
        try:
            store = PostgresStorage.open(spec.config)
        except GoQueueError as error:
            journal.failed(call, time.monotonic() - start, error)
            if spec.is_over and time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            journal.answered(call, time.monotonic() - start, None)
            return store


def recover(store: Any) -> None:
    """Call until the store works again. Raise its error if that takes too long: the process then ends with a status."""
    end = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return store.ping()
        except GoQueueError:
            if time.monotonic() > end:
                raise


# --- random calls in tasks that are cancelled -------------------------------------------------------------------------


class Interrupted:
    """Awaits a coroutine and cancels the task at its suspensions with these numbers, beginning with 1."""

    def __init__(self, coroutine: Any, *numbers: int) -> None:
        self._coroutine = coroutine
        self._numbers = numbers
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                waiting = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as done:
                return done.value
            self.seen += 1
            if self.seen in self._numbers:
                task.cancel(f"at suspension {self.seen}")
            error = None
            try:
                yield waiting
            except BaseException as exc:
                error = exc


async def run_tasks(spec: Spec, journal: Journal) -> None:
    end = time.monotonic() + RECOVERY_SECONDS
    async with await AsyncPostgresStorage.open(spec.config) as opened_store:
        store = recorded(opened_store, journal)
        # By method, the next suspension to cancel at: 1, 2, ... until a call has fewer.
        positions: dict[str, int] = {}
        names = [f"{spec.name}-{number}" for number in range(3)]
        await asyncio.gather(*[_interrupted_calls(spec, name, store, positions) for name in names])
        while True:
            try:
                # As many at once as the pool has connections: it has lost none.
                await asyncio.gather(*[store.ping() for _ in range(spec.config.pool_max_size)])
                break
            except GoQueueError:
                if time.monotonic() > end:
                    raise


async def _interrupted_calls(spec: Spec, name: str, store: Any, positions: dict[str, int]) -> None:
    program, chance = Program(name, f"{spec.seed} {name}", spec.lease), Random(f"{spec.seed} {name}")
    while not spec.is_over:
        action = program.next()
        value, error = None, None
        try:
            if chance.random() < 0.25:
                value = await getattr(store, action.method)(*action.args, **action.kwargs)
            else:
                value = await _interrupted(store, action, positions, chance)
        except Exception as exc:
            error = exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            while task is not None and task.cancelling():
                task.uncancel()
            error = exc  # type: ignore[assignment]
        program.learn(action, value, error)
        await asyncio.sleep(0)


async def _interrupted(store: Any, action: Action, positions: dict[str, int], chance: Random) -> Any:
    number = positions.get(action.method, 1)
    positions[action.method] = number + 1
    # Some tasks are cancelled again while they end.
    numbers = [number, number + chance.randint(1, 3)] if chance.random() < 0.3 else [number]
    call = Interrupted(getattr(store, action.method)(*action.args, **action.kwargs), *numbers)
    try:
        return await call
    finally:
        if call.seen < number:
            positions[action.method] = 1


# --- workers ----------------------------------------------------------------------------------------------------------


def _outcome(chance: Random) -> None:
    """Raise what a handler may raise, or nothing."""
    match chance.randrange(12):
        case 0:
            raise RuntimeError("failed")
        case 1:
            raise RetryJob(timedelta(milliseconds=10))
        case 2:
            raise ReleaseJob
        case 3:
            raise BuryJob("buried")


def _stop_at_end(spec: Spec, worker: Worker | AsyncWorker) -> None:
    def wait() -> None:
        while not spec.is_over:
            time.sleep(0.05)
        worker.stop()

    threading.Thread(target=wait, daemon=True).start()


def _worker_config(spec: Spec) -> WorkerConfig:
    return WorkerConfig(
        concurrency=3, queues=QUEUES, poll_interval=SECOND / 10, lease=spec.lease,
        heartbeat_interval=spec.lease / 4, shutdown_timeout=2 * SECOND,
    )  # fmt: skip


def run_worker(spec: Spec, journal: Journal) -> None:
    chance = Random(spec.seed)
    worker = Worker(backoff=BACKOFF)

    @worker.handler("t")
    def handle(job: Job) -> None:
        time.sleep(chance.random() * 0.01)
        _outcome(chance)

    _stop_at_end(spec, worker)
    with opened(spec, journal) as store:
        while not spec.is_over:
            with suppress(SchemaError):  # it ends a worker; its supervisor starts it again
                worker.run(recorded(store, journal), _worker_config(spec), worker_id=spec.name)
        recover(recorded(store, journal))


async def run_async_worker(spec: Spec, journal: Journal) -> None:
    chance = Random(spec.seed)
    worker = AsyncWorker(backoff=BACKOFF)

    @worker.handler("t")
    async def handle(job: Job) -> None:
        await asyncio.sleep(chance.random() * 0.01)
        _outcome(chance)

    _stop_at_end(spec, worker)
    async with await AsyncPostgresStorage.open(spec.config) as store:
        await worker.run(recorded(store, journal), _worker_config(spec), worker_id=spec.name)


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=Spec))
