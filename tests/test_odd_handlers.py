"""Handlers that do what no handler should: they harm their own attempt, and no other job."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goqueue import (
    AsyncWorker,
    Backoff,
    BuryJob,
    Job,
    JobStatus,
    NewJob,
    PostgresStorage,
    ReleaseJob,
    RetryJob,
    Worker,
    WorkerError,
    job_context,
)
from tests.workers import KINDS, Workers

PENDING, COMPLETED, DEAD = JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.DEAD


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest, goqueue_database: str) -> Workers:
    return Workers(request.param, goqueue_database)


@pytest.fixture
def tasks(goqueue_database: str) -> Workers:
    return Workers("tasks", goqueue_database)


@pytest.fixture
def store(goqueue_store: PostgresStorage) -> PostgresStorage:
    return goqueue_store


def make(workers: Workers, handlers: Mapping[str, Callable[[Job], Any]]) -> Any:
    """Return a worker with these functions as they are."""
    kind: Any = Worker if workers.kind == "threads" else AsyncWorker
    return kind(handlers, backoff=Backoff(base=timedelta(hours=1), jitter=0))


def work(workers: Workers, store: PostgresStorage, handlers: Mapping[str, Callable[[Job], Any]], **given: Any) -> Any:
    """Run one job of each type with these functions as they are, and return the jobs."""
    ids = [store.create_job(NewJob(job_type=name, priority=place)).id for place, name in enumerate(handlers)]
    workers.run(make(workers, handlers), until_empty=True, **{"concurrency": 1, **given})
    return store.get_jobs(ids)


# --- results whose code has not run -----------------------------------------------------------------------------------


def undecorated(function: Callable[[Job], Any]) -> Callable[..., Any]:
    """Decorate a function so that its kind can't be seen before it is called."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


@undecorated
async def coroutine(job: Job) -> None:
    raise AssertionError


@undecorated
def generator(job: Job) -> Iterator[None]:
    yield pytest.fail("it has run")


@undecorated
async def asynchronous_generator(job: Job) -> AsyncIterator[None]:
    yield pytest.fail("it has run")


class Lazy:
    def __await__(self) -> Generator[Any, None, None]:
        yield pytest.fail("it has run")


class Kept:
    """A handler that keeps what it returned."""

    def __init__(self, handler: Callable[[Job], Any]) -> None:
        self.handler = handler
        self.result: Any = None

    def __call__(self, job: Job) -> Any:
        self.result = self.handler(job)
        return self.result


@pytest.mark.parametrize("handler", [generator, asynchronous_generator])
def test_a_handler_that_returns_a_generator_fails_the_attempt(
    workers: Workers, store: PostgresStorage, handler: Callable[[Job], Any]
) -> None:
    kept = Kept(handler)
    [job] = work(workers, store, {"t": kept})
    assert (job.status, job.attempts) == (PENDING, 1)
    assert f"returned an object of type {type(kept.result).__name__}, whose code has not run" in job.last_error
    if handler is generator:
        assert list(kept.result) == [], "it is not closed"
    else:
        with pytest.raises(StopAsyncIteration):
            anext(kept.result).__await__().send(None)


@pytest.mark.parametrize("handler", [coroutine, lambda job: Lazy()])
def test_a_handler_in_a_thread_that_returns_an_awaitable_object_fails_the_attempt(
    goqueue_database: str, store: PostgresStorage, handler: Callable[[Job], Any]
) -> None:
    kept = Kept(handler)
    [job] = work(Workers("threads", goqueue_database), store, {"t": kept})
    assert (job.status, job.attempts) == (PENDING, 1)
    assert "use AsyncWorker" in job.last_error
    if handler is coroutine:
        with pytest.raises(RuntimeError, match="cannot reuse"):
            kept.result.send(None)


def test_a_coroutine_function_that_returns_a_coroutine_fails_the_attempt(
    tasks: Workers, store: PostgresStorage
) -> None:
    async def forgotten(job: Job) -> Any:
        return coroutine(job)

    [job] = work(tasks, store, {"t": forgotten})
    assert (job.status, job.attempts) == (PENDING, 1)
    assert "of type coroutine, whose code has not run" in job.last_error


def test_the_awaitable_result_of_a_plain_function_is_awaited(tasks: Workers, store: PostgresStorage) -> None:
    ended: list[str] = []

    async def end(name: str) -> asyncio.Task[None]:
        ended.append(name)
        return asyncio.create_task(asyncio.sleep(0))  # runs by itself

    def start(job: Job) -> Awaitable[Any]:
        return asyncio.create_task(end(job.job_type))

    jobs = work(tasks, store, {"coroutine": lambda job: end("coroutine"), "task": start})
    assert [job.status for job in jobs] == [COMPLETED, COMPLETED]
    assert ended == ["coroutine", "task"]


def test_a_handler_can_return_any_other_object(workers: Workers, store: PostgresStorage) -> None:
    results: list[Any] = [5, [1], object(), iter([1]), type, Lazy]
    jobs = work(workers, store, {str(i): lambda job: results[int(job.job_type)] for i in range(len(results))})
    assert {job.status for job in jobs} == {COMPLETED}


def test_a_result_whose_close_raises_fails_the_attempt(workers: Workers, store: PostgresStorage) -> None:
    def stubborn(job: Job) -> Iterator[None]:
        try:
            yield
        finally:
            raise ValueError("not closed")

    def start(job: Job) -> Any:
        result = stubborn(job)
        next(result)
        return result

    bad, good = work(workers, store, {"bad": start, "good": lambda job: None})
    assert (bad.status, good.status) == (PENDING, COMPLETED)
    assert "not closed" in bad.last_error


# --- exceptions with faults of their own ------------------------------------------------------------------------------


class BareRetry(RetryJob):
    def __init__(self, code: int) -> None:
        self.code = code


class BareBury(BuryJob):
    def __init__(self, code: int) -> None:
        self.code = code


class BareRelease(ReleaseJob):
    def __init__(self, code: int) -> None:
        self.code = code


def raising(error: BaseException) -> Callable[[Job], Any]:
    def handle(job: Job) -> None:
        raise error

    return handle


def test_a_subclass_that_does_not_initialize_its_base_has_the_outcome_of_the_base(
    workers: Workers, store: PostgresStorage
) -> None:
    released: list[Any] = []

    def release_once(job: Job) -> None:
        if not released:
            released.append(job.id)
            raise BareRelease(4)

    handlers = {"retry": raising(BareRetry(4)), "bury": raising(BareBury(4)), "release": release_once}
    jobs = work(workers, store, handlers)
    assert [(job.status, job.attempts, job.last_error) for job in jobs] == [
        (PENDING, 1, "BareRetry without an error"),
        (DEAD, 1, "BareBury without an error"),
        (COMPLETED, 1, None),
    ]
    assert released


def test_an_exception_with_invalid_attributes_fails_the_attempt(workers: Workers, store: PostgresStorage) -> None:
    class Unknown:
        def __bool__(self) -> bool:
            raise ValueError("neither true nor false")

    class NotShown:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    class Late(RetryJob):
        retry_in: Any = 5

        def __init__(self) -> None:
            pass

    class Never(ReleaseJob):
        delay: Any = None

        def __init__(self) -> None:
            pass

    class NoDelay(ReleaseJob):
        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            if name == "delay":
                raise SystemExit(3)
            return super().__getattribute__(name)

    class DisguisedError(Exception):
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("no class")

    unknown, not_shown = RetryJob(), RetryJob()
    unknown.error, not_shown.error = Unknown(), NotShown()  # type: ignore[assignment]
    errors = [Late(), Never(), NoDelay(), DisguisedError(), unknown, not_shown]
    handlers = {str(number): raising(error) for number, error in enumerate(errors)}
    *jobs, good = work(workers, store, {**handlers, "good": lambda job: None})
    assert good.status == COMPLETED
    assert {(job.status, job.attempts) for job in jobs} == {(PENDING, 1)}
    texts = [str(job.last_error).partition("\n")[0] for job in jobs]
    assert "retry_in must be a timedelta" in texts[0]
    assert "delay must be a timedelta" in texts[1]
    assert texts[2:] == [
        "SystemExit: 3",
        "RuntimeError, which can't be shown",
        "ValueError: neither true nor false",
        "KeyboardInterrupt",
    ]


def test_an_error_that_is_no_text_is_recorded_as_text(workers: Workers, store: PostgresStorage) -> None:
    error: Any = 123
    [job] = work(workers, store, {"t": raising(BuryJob(error))})
    assert (job.status, job.last_error) == (DEAD, "123")


# --- forks ------------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
@pytest.mark.parametrize(
    ("leave", "status"), [(None, 0), (SystemExit(), 0), (SystemExit(3), 3), (SystemExit("no"), 1), (ValueError(), 1)]
)
def test_a_process_that_a_handler_forks_ends_with_the_handler(
    workers: Workers, store: PostgresStorage, tmp_path: Path, leave: BaseException | None, status: int
) -> None:
    """It runs none of the other jobs, which its parent has claimed."""
    log = tmp_path / "log"
    children: list[int] = []

    def fork(job: Job) -> None:
        child = os.fork()
        if child == 0:
            if leave is not None:
                raise leave
        else:
            children.append(child)

    def write(job: Job) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {job.id}\n")

    quick = [NewJob(job_type="write") for _ in range(50)]  # so that jobs are claimed ahead
    store.create_jobs([*quick, NewJob(job_type="fork", priority=1)])
    store.create_jobs(NewJob(job_type="write", priority=2) for _ in range(20))
    worker = make(workers, {"fork": fork, "write": write})
    assert workers.run(worker, until_empty=True, concurrency=1) == 71
    [child] = children
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    lines = log.read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines)) == 70
    assert {line.split()[0] for line in lines} == {str(os.getpid())}


@needs_fork
def test_a_worker_can_run_in_a_fork_of_the_process_where_it_runs(workers: Workers, store: PostgresStorage) -> None:
    children: list[int] = []

    def fork(job: Job) -> None:
        child = os.fork()
        if child != 0:
            children.append(child)
            return
        raise SystemExit(10 + workers.run(worker, until_empty=True, queues=("inner",)))

    worker = make(workers, {"fork": fork, "t": lambda job: None})
    store.create_jobs([NewJob(job_type="t", queue="inner"), NewJob(job_type="fork")])
    assert workers.run(worker, until_empty=True, concurrency=1) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 11


# --- tasks and contexts -----------------------------------------------------------------------------------------------


def test_a_handler_that_cancels_its_own_task_fails_its_attempt_only(tasks: Workers, store: PostgresStorage) -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def waits(job: Job) -> None:
        cancel()
        await asyncio.sleep(0)

    async def returns(job: Job) -> None:
        cancel()

    async def survives(job: Job) -> None:
        cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    async def raises(job: Job) -> None:
        cancel()
        raise BuryJob

    async def grouped(job: Job) -> None:  # a count of cancellations that is left over would break the group
        async with asyncio.TaskGroup() as group:
            group.create_task(waits(job))

    def plain(job: Job) -> None:
        cancel()

    handlers = {one.__name__: one for one in (waits, returns, survives, grouped, plain, raises)}
    *jobs, good = work(tasks, store, {**handlers, "good": lambda job: None})
    assert [job.status for job in jobs] == [PENDING, PENDING, COMPLETED, COMPLETED, PENDING, PENDING]
    errors = [str(job.last_error).partition("\n")[0] for job in jobs]
    cancelled = "asyncio.exceptions.CancelledError"
    assert errors == [cancelled, cancelled, "None", "None", cancelled, cancelled]
    assert good.status == COMPLETED


def test_a_context_variable_that_a_job_sets_is_unknown_to_the_next(workers: Workers, store: PostgresStorage) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[str] = []

    def plain(job: Job) -> None:
        seen.append(tenant.get())
        tenant.set("plain")

    async def coroutine(job: Job) -> None:
        await asyncio.sleep(0)
        plain(job)

    names = "abcd"
    handlers = {name: coroutine if workers.kind == "tasks" and name in "ac" else plain for name in names}
    jobs = work(workers, store, handlers)
    assert {job.status for job in jobs} == {COMPLETED}
    assert seen == ["nobody"] * 4


def test_the_job_of_a_handler_is_unknown_after_the_run(workers: Workers, store: PostgresStorage) -> None:
    work(workers, store, {"t": lambda job: job_context().job})
    with pytest.raises(WorkerError, match="no job is running here"):
        job_context()
