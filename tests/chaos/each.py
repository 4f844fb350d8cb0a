"""Every call of the store, cut at each message of the protocol in each way. Imports goqueue, msgspec and psycopg.

A control call without a cut counts the messages. Then one call is made for each message and way, on a new connection.
It is the first call of the blocking store, and the second one of the asynchronous store, which prepares its statement.
"""

import asyncio
import inspect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
from psycopg.conninfo import make_conninfo

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    GoQueueError,
    Job,
    JobFilter,
    JobUpdate,
    NewJob,
    OutcomeUnknownError,
    PostgresStorage,
    StorageUnavailableError,
)
from tests.chaos.clients import RECOVERY_SECONDS, SECOND, Spec
from tests.chaos.journal import Journal, recorded
from tests.chaos.oracle import Violation
from tests.chaos.proxy import WAYS, Cut, Proxy

#: Calls at the same time: most of them wait for a silent peer.
_THREADS = 24
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_STORES = ("blocking", "asynchronous")


class Call(NamedTuple):
    """The arguments of a call, for jobs that it does not share with others."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed


def _job(queue: str, key: str | None = None) -> NewJob:
    return NewJob(job_type="t", queue=queue, idempotency_key=key)


def _stored(store: Any, queue: str) -> Any:
    return store.create_job(_job(queue))


def _held(store: Any, queue: str, lease: timedelta = _HOUR) -> list[Job]:
    store.create_jobs([_job(queue), _job(queue)])
    return store.claim_jobs([queue], f"{queue}:given", 2, lease)  # type: ignore[no-any-return]


def _dead(store: Any, queue: str) -> list[Any]:
    jobs = _held(store, queue)
    store.bury_jobs([(job, "given") for job in jobs])
    return [job.id for job in jobs]


def _claiming(store: Any, queue: str) -> Call:
    _stored(store, queue)
    return Call(([queue], f"{queue}:claimed", 2, _HOUR))


def _completing(store: Any, queue: str) -> Call:
    held = _held(store, queue)
    _stored(store, queue)
    return Call((held, [queue], f"{queue}:claimed", 2, _HOUR))


def _failing(store: Any, queue: str) -> Call:
    return Call(([(job, "failed") for job in _held(store, queue)],))


def _keyed(store: Any, queue: str) -> str:
    store.create_job(_job(queue, queue))
    return queue


def _pausing(store: Any, queue: str) -> Call:
    return Call((queue,), {"until": datetime.now(UTC) + _HOUR})


def _resuming(store: Any, queue: str) -> Call:
    store.pause_queue(queue)
    return Call((queue,))


def _expired(store: Any, queue: str) -> Call:
    _held(store, queue, timedelta(0))
    return Call((2,))


#: By method, a function that prepares jobs in a queue of its own, and returns the call.
CALLS: dict[str, Callable[[Any, str], Call]] = {
    "open": lambda store, queue: Call(),
    "listen": lambda store, queue: Call(),
    "create_job": lambda store, queue: Call((_job(queue, queue),)),
    "get_or_create_job": lambda store, queue: Call((_job(_keyed(store, queue), queue),)),
    "create_jobs": lambda store, queue: Call(([_job(queue), _job(queue, queue)],)),
    "replace_pending_job": lambda store, queue: Call((_job(_keyed(store, queue), queue),)),
    "get_job": lambda store, queue: Call((_stored(store, queue).id,)),
    "get_jobs": lambda store, queue: Call(([_stored(store, queue).id],)),
    "get_job_by_idempotency_key": lambda store, queue: Call((_keyed(store, queue),)),
    "list_jobs": lambda store, queue: Call((JobFilter(queue=_stored(store, queue).queue), 5)),
    "count_jobs": lambda store, queue: Call((JobFilter(queue=queue),)),
    "update_job": lambda store, queue: Call((_stored(store, queue).id, JobUpdate(priority=3))),
    "cancel_jobs": lambda store, queue: Call(([job.id for job in _held(store, queue)],)),
    "retry_jobs": lambda store, queue: Call((_dead(store, queue),)),
    "reschedule_jobs": lambda store, queue: Call(([_stored(store, queue).id],), {"delay": _HOUR}),
    "change_jobs": lambda store, queue: Call(([_stored(store, queue).id],), {"priority": 4}),
    "delete_job": lambda store, queue: Call((_stored(store, queue).id,)),
    "delete_jobs": lambda store, queue: Call((_dead(store, queue),)),
    "prune_jobs": lambda store, queue: Call((timedelta(0),), {"queues": [queue], "limit": len(_dead(store, queue))}),
    "claim_jobs": _claiming,
    "complete_and_claim": _completing,
    "heartbeat_jobs": lambda store, queue: Call((_held(store, queue), _HOUR)),
    "complete_jobs": lambda store, queue: Call((_held(store, queue),)),
    "complete_job": lambda store, queue: Call((_held(store, queue)[0],)),
    "fail_jobs": _failing,
    "fail_job": lambda store, queue: Call((_held(store, queue)[0], "failed")),
    "bury_jobs": _failing,
    "release_jobs": lambda store, queue: Call((_held(store, queue),)),
    "rescue_jobs": _expired,
    "next_job_at": lambda store, queue: Call(([queue],)),
    "list_failures": lambda store, queue: Call((_dead(store, queue)[0],)),
    "pause_queue": _pausing,
    "resume_queue": _resuming,
    "queue_stats": lambda store, queue: Call(),
    "list_workers": lambda store, queue: Call(),
    "list_job_types": lambda store, queue: Call(),
    "get_transaction_status": lambda store, queue: Call(("900",)),
    "ping": lambda store, queue: Call(),
}  # fmt: skip
#: Methods that make no call of their own.
WITHOUT_CALL = {"create_jobs_in_batches", "bound_to", "close"}


class Point(NamedTuple):
    """A call of one of the stores, and where it is cut: None for the control call."""

    store: str
    method: str
    cut: Cut | None = None


class Each:
    """The points, and threads that make the calls. ``goes_on`` is called before each of them."""

    def __init__(
        self,
        spec: Spec,
        server: tuple[str, int] | str,
        chance: Random,
        goes_on: Callable[[], bool],
        methods: Iterable[str] = CALLS,
    ) -> None:
        self._methods = list(methods)
        self._spec = spec
        self._server = server
        self._chance = chance
        self._goes_on = goes_on
        self._number = 0
        self._lock = threading.Lock()
        self._own = threading.local()
        self._proxies: list[Proxy] = []
        self.found: list[Violation] = []
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        for name in ("goqueue", "psycopg"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with ExitStack() as self._stack, ThreadPoolExecutor(_THREADS) as threads:
            control = [Point(store, method) for store in _STORES for method in self._methods]
            points = [
                point._replace(cut=cut)
                for point, seen in zip(control, threads.map(self._call, control), strict=True)
                for cut in _cuts(seen)
            ]
            self._chance.shuffle(points)
            self.done["methods"] = len(self._methods)
            self.done["different points"] = len(points)
            made = sum(threads.map(self._call_in_time, points))
            for proxy in self._proxies:
                for (_, _, _, way, _), count in proxy.cuts.items():
                    self.done[way] += count
            # A call can have fewer messages than the control call, such as fewer notifications.
            self.done["not reached"] = made - sum(self.done[way] for way in WAYS)
            self.done["left"] = len(points) - made

    def _call_in_time(self, point: Point) -> bool:
        if not self._goes_on():
            return False
        self._call(point)
        return True

    def _call(self, point: Point) -> list[tuple[str, str]]:
        """Make the call of a point, and return the messages. Then the store has to work again."""
        proxy, given, journal, queue = self._mine()
        url = make_conninfo(self._spec.url, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable")
        config = self._spec._replace(url=url).config
        if point.method == "open":
            proxy.arm(point.cut)
            with _opened(point.store, config, journal) as store:
                seen = proxy.seen.copy()
                self._recover(point, store)
            return seen
        with _opened(point.store, config, journal) as store:
            if point.store == "asynchronous":
                self._answer(store, point.method, CALLS[point.method](given, f"{queue}-first"))
            call = CALLS[point.method](given, queue)
            proxy.arm(point.cut)
            error = self._answer(store, point.method, call)
            seen = proxy.seen.copy()
            self._recover(point, store)
        if point.method in ("pause_queue", "resume_queue"):
            self._check_pause(point, error, was_paused=_resumed(given, queue))
        if isinstance(error, OutcomeUnknownError):
            if error.transaction_id is not None:
                given.get_transaction_status(error.transaction_id)
            self._answer(given, point.method, call)
        return seen

    def _mine(self) -> tuple[Proxy, Any, Journal, str]:
        """Return this thread's proxy, its store without one, and its journal; and the name of a new queue."""
        with self._lock:
            self._number += 1
            number = self._number
            if not hasattr(self._own, "all"):
                journal = Journal(Path(self._spec.folder) / f"{self._spec.name}-{number}.jsonl")
                proxy = self._stack.enter_context(Proxy(lambda: self._server, self._chance, every=0))
                # It prepares the calls, which must succeed however busy the machine is.
                long = dict.fromkeys(("connect_timeout", "pool_timeout", "statement_timeout"), _MINUTE)
                config = msgspec.structs.replace(self._spec.config, **long)
                store = self._stack.enter_context(closing(PostgresStorage.open(config)))
                self._proxies.append(proxy)
                self._own.all = proxy, recorded(store, journal), journal
        return *self._own.all, f"q{number}"

    def _answer(self, store: Any, method: str, call: Call) -> GoQueueError | None:
        try:
            getattr(store, method)(*call.args, **call.kwargs)
        except GoQueueError as error:
            return error
        except Exception as error:  # the journal has it
            self.found.append(Violation("named", f"{method} raised {error!r}"))
        return None

    def _check_pause(self, point: Point, error: GoQueueError | None, *, was_paused: bool) -> None:
        """Check the state that the history of jobs does not show."""
        is_made = error is None
        if not isinstance(error, OutcomeUnknownError) and was_paused != (is_made == (point.method == "pause_queue")):
            promise = "returned" if is_made else "nothing"
            self.found.append(Violation(promise, f"at {point}, {error!r}, and the queue was paused: {was_paused}"))

    def _recover(self, point: Point, store: Any) -> None:
        end = time.monotonic() + RECOVERY_SECONDS
        while self._answer(store, "ping", Call()) is not None:
            if time.monotonic() > end:
                self.found.append(Violation("recovered", f"after {point}, the store does not work"))
                return


def _resumed(store: Any, queue: str) -> bool:
    """Resume a queue, and return whether it was paused. The transaction of a cut call can lock it for a second."""
    end = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return bool(store.resume_queue(queue))
        except StorageUnavailableError:
            if time.monotonic() > end:
                raise


def _cuts(seen: list[tuple[str, str]]) -> Iterator[Cut]:
    """Return the cuts at these messages. Of equal ones in a row, such as rows, the first and the last are cut."""
    count: Counter[str] = Counter()
    for place, (side, kind) in enumerate(seen):
        count[side] += 1
        if 0 < place < len(seen) - 1 and seen[place - 1] == seen[place + 1] == (side, kind):
            continue
        for way in WAYS:
            for is_before in (True,) if way == "half" else (True, False):
                yield Cut(side, count[side], way, is_before)


@contextmanager
def _opened(kind: str, config: DatabaseConfig, journal: Journal) -> Iterator[Any]:
    """Open a store with one connection, which is in the journal too, and yield it; the asynchronous one blocks."""
    config = msgspec.structs.replace(config, pool_max_size=1)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if kind == "asynchronous" else None
        end = time.monotonic() + RECOVERY_SECONDS
        while True:
            call, start = journal.called("open", {}), time.monotonic()
            try:
                opened: Any = (
                    PostgresStorage.open(config) if runner is None else runner.run(AsyncPostgresStorage.open(config))
                )
                journal.answered(call, time.monotonic() - start, None)
                break
            except Exception as error:
                journal.failed(call, time.monotonic() - start, error)
                if time.monotonic() > end or not isinstance(error, GoQueueError):
                    raise
        stack.callback(lambda: opened.close() if runner is None else runner.run(opened.close()))
        yield _Blocking(opened, journal, runner)


class _Blocking:
    """A recorded store, of either kind, whose calls block. Its ``listen`` waits once."""

    def __init__(self, store: Any, journal: Journal, runner: asyncio.Runner | None) -> None:
        self._store = store
        self._recorded = recorded(store, journal)
        self._journal = journal
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._recorded, name)
        return lambda *args, **kwargs: self._result(method(*args, **kwargs))

    def _result(self, value: Any) -> Any:
        return self._runner.run(value) if self._runner is not None and inspect.iscoroutine(value) else value

    def listen(self) -> None:
        call, start = self._journal.called("listen", {}), time.monotonic()
        try:
            self._result(_wait_async(self._store)) if self._runner is not None else _wait(self._store)
        except GoQueueError as error:
            self._journal.failed(call, time.monotonic() - start, error)
            raise
        self._journal.answered(call, time.monotonic() - start, None)


def _wait(store: PostgresStorage) -> None:
    with store.listen(["q"]) as listener:
        listener.wait(SECOND / 20)


async def _wait_async(store: AsyncPostgresStorage) -> None:
    async with store.listen(["q"]) as listener:
        await listener.wait(SECOND / 20)
