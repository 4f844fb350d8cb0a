"""Workers of both kinds: the outcomes of jobs, leases, claims, reports, outages and shutdown."""

import asyncio
import copy
import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import (
    AsyncPostgresStorage,
    AsyncWorker,
    Backoff,
    BuryJob,
    DatabaseConfig,
    InvalidJobError,
    Job,
    JobFilter,
    JobStatus,
    NewJob,
    OutcomeUnknownError,
    PostgresStorage,
    ReleaseJob,
    RetryJob,
    SchemaError,
    Worker,
    WorkerError,
    job_context,
)
from goqueue.work.run import Run
from tests import pgbouncer, proxy
from tests.tunnel import Tunnel
from tests.workers import KINDS, Handler, StopError, Workers, pause, settings, until

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
PENDING, RUNNING, COMPLETED = JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED
DEAD, CANCELLED = JobStatus.DEAD, JobStatus.CANCELLED
SECONDS_AT_MOST = 50.0


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest, goqueue_database: str) -> Workers:
    return Workers(request.param, goqueue_database)


@pytest.fixture
def store(goqueue_store: PostgresStorage) -> PostgresStorage:
    return goqueue_store


@pytest.fixture(autouse=True)
def warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Undo what a test of the configuration of logging has left in this process."""
    caplog.set_level(logging.WARNING, "goqueue.worker")


def add(store: PostgresStorage, count: int = 1, **fields: Any) -> list[Any]:
    return [job_id for job_id, _ in store.create_jobs(NewJob(**{"job_type": "t", **fields}) for _ in range(count))]


def statuses(store: PostgresStorage, ids: list[Any]) -> Counter[str]:
    return Counter(str(job.status) for job in store.get_jobs(ids))


async def succeed(job: Job) -> None:
    pass


def until_stopped() -> tuple[Handler, list[Any], list[Any]]:
    """Return a handler that runs until it is stopped, the jobs that it began, and the reasons why it was stopped."""
    begun: list[Any] = []
    told: list[Any] = []

    async def handle(job: Job) -> None:
        context = job_context()
        begun.append(job.id)
        try:
            await pause(SECONDS_AT_MOST)
        finally:
            told.append(context.stopped)

    return handle, begun, told


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == "goqueue.worker" and record.levelno >= level
    ]


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_each_job_is_handled_once_and_completed(workers: Workers, store: PostgresStorage) -> None:
    ids = add(store, 300)
    handled: list[Any] = []

    async def handle(job: Job) -> None:
        assert job_context().job is job
        assert (job.status, job.attempts, job.locked_by) == (RUNNING, 1, "me")
        handled.append(job.id)

    assert workers.work({"t": handle}, worker_id="me") == 300
    assert sorted(handled) == sorted(ids)
    assert statuses(store, ids) == {"completed": 300}


def test_each_run_of_a_worker_has_its_own_name(workers: Workers, store: PostgresStorage) -> None:
    add(store, 1)
    names: list[Any] = []

    async def handle(job: Job) -> None:
        names.append(job.locked_by)
        if len(names) < 2:
            raise RetryJob(timedelta(0))

    workers.work({"t": handle})
    add(store, 1)
    workers.work({"t": handle})
    assert len(names) == 3
    assert len(set(names)) == 2


def test_an_exception_fails_the_attempt_with_its_text_and_traceback(workers: Workers, store: PostgresStorage) -> None:
    [job_id] = add(store)

    async def handle(job: Job) -> None:
        raise ValueError("no such address")

    assert workers.run(workers.make({"t": handle}, backoff=Backoff(base=HOUR, jitter=0)), until_empty=True) == 0
    job = store.get_job(job_id)
    assert (job.status, job.attempts) == (PENDING, 1)
    assert job.scheduled_at == job.updated_at + HOUR
    assert job.last_error is not None
    assert job.last_error.startswith("ValueError: no such address\n")
    assert 'raise ValueError("no such address")' in job.last_error
    assert "work/run" not in job.last_error


def test_an_exception_that_cannot_be_shown_fails_the_attempt(workers: Workers, store: PostgresStorage) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class OddError(Exception):
        @property  # type: ignore[misc]
        def __traceback__(self) -> Any:
            raise RuntimeError

        @__traceback__.setter
        def __traceback__(self, value: Any) -> None:
            pass

    ids = add(store, 1, job_type="silent") + add(store, 1, job_type="odd")

    async def silent(job: Job) -> None:
        raise SilentError

    async def odd(job: Job) -> None:
        raise OddError

    workers.work({"silent": silent, "odd": odd})
    errors = [str(job.last_error).partition("\n")[0] for job in store.get_jobs(ids)]
    assert errors[0].endswith("SilentError: <exception str() failed>")
    assert errors[1] == "OddError, which can't be shown"
    assert statuses(store, ids) == {"pending": 2}


def test_a_handler_sets_the_delay_of_the_retry(workers: Workers, store: PostgresStorage) -> None:
    later, caused, last = (
        add(store, 1, job_type="later")
        + add(store, 1, job_type="caused")
        + add(store, 1, job_type="caused", max_attempts=1)
    )

    async def handle_later(job: Job) -> None:
        raise RetryJob(retry_in=HOUR, error="the server is busy")

    async def handle_caused(job: Job) -> None:
        try:
            raise KeyError("name")
        except KeyError as error:
            raise RetryJob(retry_in=2 * HOUR) from error

    workers.work({"later": handle_later, "caused": handle_caused})
    job = store.get_job(later)
    assert (job.status, job.last_error, job.scheduled_at) == (PENDING, "the server is busy", job.updated_at + HOUR)
    job = store.get_job(caused)
    assert (job.status, job.scheduled_at) == (PENDING, job.updated_at + 2 * HOUR)
    assert str(job.last_error).startswith("KeyError: 'name'\n")
    assert store.get_job(last).status == DEAD


def test_a_handler_makes_a_job_dead(workers: Workers, store: PostgresStorage) -> None:
    [job_id] = add(store)

    async def handle(job: Job) -> None:
        raise BuryJob("the customer is gone")

    workers.work({"t": handle})
    job = store.get_job(job_id)
    assert (job.status, job.attempts, job.last_error) == (DEAD, 1, "the customer is gone")
    assert [failure.error for failure in store.list_failures(job_id)] == ["the customer is gone"]


def test_a_handler_releases_a_job_without_counting_the_attempt(workers: Workers, store: PostgresStorage) -> None:
    [job_id] = add(store, max_attempts=1)

    async def handle(job: Job) -> None:
        raise ReleaseJob(delay=HOUR)

    workers.work({"t": handle})
    job = store.get_job(job_id)
    assert (job.status, job.attempts, job.scheduled_at) == (PENDING, 0, job.updated_at + HOUR)
    assert store.list_failures(job_id) == []


PORTABLE = [RetryJob(SECOND, "busy"), RetryJob(error="busy"), BuryJob("no such address"), ReleaseJob(SECOND)]


@pytest.mark.parametrize("portable", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy], ids=["pickle", "copy"])
def test_an_outcome_passes_through_a_pool_of_processes(portable: Any) -> None:
    for outcome in PORTABLE:
        same = portable(outcome)
        assert (type(same), str(same), vars(same)) == (type(outcome), str(outcome), vars(outcome))


@pytest.mark.parametrize("make", [lambda: RetryJob(-SECOND), lambda: ReleaseJob(-SECOND), lambda: ReleaseJob(5)])  # type: ignore[arg-type]
def test_an_outcome_with_an_invalid_time_is_an_error_at_once(make: Any) -> None:
    with pytest.raises(InvalidJobError):
        make()


def test_a_job_without_a_handler_fails_and_the_error_names_the_handled_types(
    workers: Workers, store: PostgresStorage
) -> None:
    [unknown, last] = add(store, 1, job_type="other") + add(store, 1, job_type="other", max_attempts=1)
    workers.work({"mail": succeed, "t": succeed})
    assert [job.status for job in store.get_jobs([unknown, last])] == [PENDING, DEAD]
    assert store.get_job(unknown).last_error == "no handler for the job type 'other'; this worker has mail, t"


def test_system_exit_in_a_handler_fails_the_attempt_and_ends_the_worker(
    workers: Workers, store: PostgresStorage
) -> None:
    first, *others = add(store, 40)

    async def handle(job: Job) -> None:
        if job.id == first:
            raise SystemExit(7)
        await pause(0.2)

    with pytest.raises(SystemExit) as ended:
        workers.work({"t": handle}, concurrency=2)
    assert ended.value.code == 7
    job = store.get_job(first)
    assert (job.status, job.attempts) == (PENDING, 1)
    assert str(job.last_error).startswith("SystemExit: 7")
    waiting = [job for job in store.get_jobs(others) if job.status == PENDING]
    assert waiting
    assert {job.attempts for job in waiting} == {0}
    assert store.count_jobs(JobFilter(status=RUNNING)) == 0


# --- handlers ---------------------------------------------------------------------------------------------------------


def test_one_function_handles_several_types_and_is_unchanged(goqueue_store: PostgresStorage) -> None:
    worker = Worker()

    @worker.handler("a", "b")
    def handle(job: Job) -> str:
        return "ignored"

    assert handle(None) == "ignored"  # type: ignore[arg-type]
    add(goqueue_store, 1, job_type="a")
    add(goqueue_store, 1, job_type="b")
    assert worker.run(goqueue_store, settings(), until_empty=True) == 2


def generator(job: Job) -> Iterator[None]:
    yield


class Called:
    async def __call__(self, job: Job) -> None:
        pass


@pytest.mark.parametrize("kind", [Worker, AsyncWorker])
@pytest.mark.parametrize("bad", [None, 5, "send", generator])
def test_an_object_that_is_no_handler_is_an_error_at_once(kind: Any, bad: Any) -> None:
    with pytest.raises(WorkerError, match="'t'"):
        kind({"t": bad})
    with pytest.raises(WorkerError, match="'t'"):
        kind().handler("t")(bad)


@pytest.mark.parametrize("bad", [succeed, Called()])
def test_a_worker_in_threads_rejects_a_coroutine_function(bad: Any) -> None:
    with pytest.raises(WorkerError, match="AsyncWorker"):
        Worker({"t": bad})
    AsyncWorker({"t": bad})


@pytest.mark.parametrize("kind", [Worker, AsyncWorker])
def test_a_second_handler_or_a_forgotten_type_is_an_error_at_once(kind: Any) -> None:
    worker = kind({"t": print})
    with pytest.raises(WorkerError, match="'t' already has a handler"):
        worker.handler("u", "t")(print)
    with pytest.raises(WorkerError, match="job types"):
        worker.handler()
    with pytest.raises(WorkerError, match="job types"):
        worker.handler(print)
    with pytest.raises(InvalidJobError, match="job_type"):
        worker.handler("")(print)
    with pytest.raises(InvalidJobError, match="backoff"):
        kind(backoff=5)


def test_a_worker_without_handlers_does_not_run(workers: Workers) -> None:
    with pytest.raises(WorkerError, match="no handler"):
        workers.work({})


def test_a_worker_accepts_only_a_store_of_its_kind(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    async def run() -> None:
        async with await AsyncPostgresStorage.open(goqueue_database) as store:
            with pytest.raises(WorkerError, match="AsyncPostgresStorage"):
                Worker({"t": print}).run(store)  # type: ignore[arg-type]
        with pytest.raises(WorkerError, match="PostgresStorage"):
            await AsyncWorker({"t": print}).run(goqueue_store)  # type: ignore[arg-type]

    asyncio.run(run())


def test_a_worker_runs_once_at_a_time_and_again_afterwards(workers: Workers, store: PostgresStorage) -> None:
    with workers.running({"t": succeed}) as worker:
        [job_id] = add(store)
        until(lambda: store.get_job(job_id).status == COMPLETED)
        with pytest.raises(WorkerError, match="is already running"):
            workers.run(worker)
    add(store)
    assert workers.run(worker, until_empty=True) == 1


def test_there_is_no_job_context_outside_a_handler() -> None:
    with pytest.raises(WorkerError, match="no job is running here"):
        job_context()


def test_tasks_and_threads_of_a_handler_have_its_context(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, 2)
    seen: list[Any] = []

    async def handle(job: Job) -> None:
        seen.append((job, await asyncio.to_thread(lambda: job_context().job)))
        await asyncio.create_task(asyncio.sleep(0.05))
        seen.append((job, job_context().job))

    assert Workers("tasks", goqueue_database).work({"t": handle}) == 2
    assert len(seen) == 4
    assert all(one is other for one, other in seen)


def test_no_more_jobs_than_the_concurrency_run_at_the_same_time(workers: Workers, store: PostgresStorage) -> None:
    add(store, 30)
    now, most = 0, 0

    async def handle(job: Job) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await pause(0.05)
        now -= 1

    assert workers.work({"t": handle}, concurrency=3) == 30
    assert most == 3


def test_jobs_of_one_claim_run_side_by_side(workers: Workers, store: PostgresStorage) -> None:
    begun: list[Any] = []

    async def handle(job: Job) -> None:
        begun.append(job.id)
        while len(begun) < 3:
            await pause(0.01)

    with workers.running({"t": handle}, concurrency=3):
        time.sleep(0.5)  # all runners are idle by then
        ids = add(store, 3)
        until(lambda: statuses(store, ids)["completed"] == 3)


def test_a_cancellation_by_the_handler_itself_is_a_failure(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    job_id, _ = add(goqueue_store, 2)

    async def handle(job: Job) -> None:
        if job.id == job_id:
            task = asyncio.create_task(asyncio.sleep(9))
            task.cancel()
            await task

    assert Workers("tasks", goqueue_database).work({"t": handle}, concurrency=1) == 1
    assert goqueue_store.get_job(job_id).status == PENDING
    assert str(goqueue_store.get_job(job_id).last_error).startswith("asyncio.exceptions.CancelledError")


# --- leases, cancellation, time limits --------------------------------------------------------------------------------


def test_the_leases_of_running_jobs_and_of_jobs_claimed_ahead_are_renewed(
    workers: Workers, store: PostgresStorage
) -> None:
    quick, slow = add(store, 50), add(store, 20, job_type="slow")
    begun: Counter[Any] = Counter()
    release = threading.Event()

    async def handle_slow(job: Job) -> None:
        begun[job.id] += 1
        while not release.is_set():
            await pause(0.01)

    def renewed() -> set[Any]:
        ends = {job.id: (job.locked_at, job.lease_expires_at) for job in store.get_jobs(slow)}
        return {job_id for job_id, (at, end) in ends.items() if at is not None and end is not None and end > at + HOUR}

    times = {"lease": HOUR, "heartbeat_interval": SECOND / 4}
    with workers.running({"t": succeed, "slow": handle_slow}, concurrency=4, **times):
        until(lambda: len(begun) == 4 and len(renewed()) > 4 and begun.keys() <= renewed())
        release.set()
        until(lambda: store.count_jobs(JobFilter(status=COMPLETED)) == 70)
    assert set(begun.values()) == {1}
    assert {job.attempts for job in store.get_jobs(quick + slow)} == {1}


def test_a_handler_learns_that_another_worker_has_its_job(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], caplog: Any
) -> None:
    [job_id] = add(store)
    handle, begun, told = until_stopped()

    with workers.running({"t": handle}, heartbeat_interval=SECOND / 4):
        until(lambda: begun)
        with goqueue_connection.transaction():
            goqueue_connection.execute("UPDATE goqueue.jobs SET lease_expires_at = now() WHERE id = %s", [job_id])
            bound = PostgresStorage.bound_to(goqueue_connection)
            assert bound.rescue_jobs() == {job_id: PENDING}
            [theirs] = bound.claim_jobs("default", "another")
        until(lambda: told)
        [other] = add(store, job_type="other")
        until(lambda: store.get_job(other).last_error)  # the worker still runs jobs
    assert told == ["lease lost"]
    assert any("is stopped: lease lost" in message for message in messages(caplog))
    store.complete_job(theirs)
    assert store.get_job(job_id).attempts == 2
    assert len(store.list_failures(job_id)) == 1  # the expired lease


def test_a_cancelled_job_stops_its_handler_long_before_the_next_heartbeat(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    first, second = add(store, 2)
    begun: list[Any] = []
    told: dict[Any, Any] = {}

    async def handle(job: Job) -> None:
        context = job_context()
        begun.append(job.id)
        try:
            await pause(SECONDS_AT_MOST if job.id == first else 0.5)
        except (StopError, asyncio.CancelledError):
            told[job.id] = context.stopped
            raise

    with workers.running({"t": handle}, concurrency=2, heartbeat_interval=timedelta(minutes=1)):
        until(lambda: first in begun)
        # The lock that tells the triggers that somebody listens; not that of another database.
        listening = """
            SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """
        until(lambda: goqueue_connection.execute(listening).rowcount)
        store.cancel_jobs(first)
        until(lambda: told)
        until(lambda: store.get_job(second).status == COMPLETED)
    assert told == {first: "cancelled"}
    assert store.get_job(first).status == CANCELLED


def test_a_job_cancelled_before_it_starts_does_not_run(workers: Workers, store: PostgresStorage) -> None:
    add(store, 300, job_type="quick")
    slow = add(store, 40)
    handle, begun, _ = until_stopped()

    with workers.running({"quick": succeed, "t": handle}, concurrency=1):
        until(lambda: begun)
        held = [job.id for job in store.get_jobs(slow) if job.status == RUNNING and job.id not in begun]
        assert held, "no job was claimed ahead"
        store.cancel_jobs(slow)
        until(lambda: store.count_jobs(JobFilter(status=RUNNING)) == 0)
        time.sleep(0.5)  # the notification is on its way
        [last] = add(store, job_type="quick")
        until(lambda: store.get_job(last).status == COMPLETED)
    assert len(begun) <= 3
    assert statuses(store, slow)["cancelled"] >= 37


def test_a_job_that_exceeds_job_timeout_fails_with_that_reason(
    workers: Workers, store: PostgresStorage, caplog: Any
) -> None:
    [job_id] = add(store)
    handle, _, told = until_stopped()

    with workers.running({"t": handle, "u": succeed}, concurrency=1, job_timeout=SECOND / 2):
        until(lambda: told)
        [other] = add(store, job_type="u")
        until(lambda: store.get_job(other).status == COMPLETED)
    job = store.get_job(job_id)
    assert told == ["timed out"]
    assert (job.status, job.attempts, job.last_error) == (PENDING, 1, "the job ran longer than job_timeout (500ms)")
    assert len(store.list_failures(job_id)) == 1


def test_after_a_cancelled_handler_another_ones_own_cancellation_is_a_failure(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    late, own, last = (add(goqueue_store, job_type=name)[0] for name in ("late", "own", "last"))

    async def handle_late(job: Job) -> None:
        await asyncio.sleep(SECONDS_AT_MOST)

    async def handle_own(job: Job) -> None:
        raise asyncio.CancelledError

    handlers = {"late": handle_late, "own": handle_own, "last": succeed}
    assert Workers("tasks", goqueue_database).work(handlers, concurrency=1, job_timeout=SECOND / 2) == 1
    assert [job.status for job in goqueue_store.get_jobs([late, own, last])] == [PENDING, PENDING, COMPLETED]


def test_a_handler_that_does_not_stop_keeps_its_slot_and_its_result_is_ignored(
    workers: Workers, store: PostgresStorage, caplog: Any
) -> None:
    [job_id] = add(store)
    release = threading.Event()

    async def handle(job: Job) -> None:
        while not release.is_set():
            try:
                await pause(0.05)
            except (StopError, asyncio.CancelledError):
                await asyncio.sleep(0) if workers.kind == "tasks" else None

    with workers.running({"t": handle, "u": succeed}, concurrency=1, job_timeout=SECOND / 2):
        until(lambda: store.get_job(job_id).last_error)
        [other] = add(store, job_type="u")
        until(lambda: any("occupy all 1 slots" in message for message in messages(caplog, logging.ERROR)))
        assert store.get_job(other).status in (PENDING, RUNNING)
        release.set()
        until(lambda: store.get_job(other).status == COMPLETED)
    job = store.get_job(job_id)
    assert (job.status, job.attempts, len(store.list_failures(job_id))) == (PENDING, 1, 1)


def test_a_worker_keeps_a_job_that_it_claims_again_after_losing_it(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    [job_id] = add(store)
    handle, begun, told = until_stopped()

    with workers.running({"t": handle}, heartbeat_interval=SECOND, shutdown_timeout=SECOND / 4):
        until(lambda: begun)
        with goqueue_connection.transaction():  # between the two, the worker could rescue the job or renew its lease
            goqueue_connection.execute("UPDATE goqueue.jobs SET lease_expires_at = now() WHERE id = %s", [job_id])
            assert store.bound_to(goqueue_connection).rescue_jobs() == {job_id: PENDING}
        until(lambda: len(begun) == 2)
        until(lambda: told)
        renewed = store.get_job(job_id)
        until(lambda: store.get_job(job_id).lease_expires_at > renewed.lease_expires_at)
        assert told == ["lease lost"]  # the first attempt's
    assert told == ["lease lost", "shutdown"]


def test_a_lease_that_cannot_be_renewed_in_time_is_lost(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    add(store)
    handle, begun, told = until_stopped()

    with proxy.running(goqueue_database) as between:
        config = DatabaseConfig(url=between.url, pool_timeout=2 * SECOND)
        times = {"lease": 2 * SECOND, "heartbeat_interval": SECOND / 2, "shutdown_timeout": SECOND}
        with workers.running({"t": handle}, url=config, **times):
            until(lambda: begun)
            between.refuse()
            until(lambda: told)
    assert told[0] == "lease lost"


@pytest.mark.parametrize(
    ("reason", "times"),
    [("lease lost", {"lease": 3 * SECOND}), ("timed out", {"job_timeout": 3 * SECOND})],
    ids=["lease", "job_timeout"],
)
def test_a_handler_is_stopped_in_time_while_a_heartbeat_hangs(
    reason: str, times: dict[str, Any], workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    add(store)
    handle, begun, told = until_stopped()

    with Tunnel(goqueue_database) as tunnel:
        config = DatabaseConfig(url=tunnel.url, statement_timeout=timedelta(minutes=1))
        with workers.running({"t": handle}, url=config, heartbeat_interval=SECOND, shutdown_timeout=SECOND, **times):
            until(lambda: begun)
            start = time.monotonic()
            tunnel.freeze()
            until(lambda: told)
            seconds = time.monotonic() - start
            tunnel.thaw()
    assert seconds < 45  # the heartbeat hangs for a minute
    assert told[0] == reason


def test_a_row_that_another_transaction_locks_costs_no_other_job_its_lease(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    locked, *others = add(store, 3)
    handle, begun, told = until_stopped()

    config = DatabaseConfig(url=goqueue_database, lock_timeout=SECOND / 5)
    times = {"lease": HOUR, "heartbeat_interval": SECOND, "shutdown_timeout": SECOND}
    with workers.running({"t": handle}, url=config, **times), psycopg.connect(goqueue_database) as other:
        until(lambda: len(begun) == 3)
        other.execute("SELECT FROM goqueue.jobs WHERE id = %s FOR UPDATE", [locked])
        for _ in range(2):
            [(now,)] = other.execute("SELECT clock_timestamp()").fetchall()
            until(lambda now=now: all(job.lease_expires_at > now + HOUR for job in store.get_jobs(others)))
        assert store.get_job(locked).lease_expires_at < now + HOUR
        assert told == []


def test_a_row_that_another_transaction_locks_delays_no_other_completion(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    locked, *others = add(store, 21)
    begun: set[Any] = set()
    go_on = threading.Event()

    async def handle(job: Job) -> None:
        begun.add(job.id)
        while not go_on.is_set():
            await pause(0.01)

    config = DatabaseConfig(url=goqueue_database, lock_timeout=SECOND / 5)
    with workers.running({"t": handle}, url=config, concurrency=30), psycopg.connect(goqueue_database) as other:
        until(lambda: len(begun) == 21)
        other.execute("SELECT FROM goqueue.jobs WHERE id = %s FOR UPDATE", [locked])
        go_on.set()
        until(lambda: statuses(store, others) == {"completed": 20})
        others = add(store, 20)
        until(lambda: statuses(store, others) == {"completed": 20})
        assert store.get_job(locked).status == RUNNING
        other.rollback()
        until(lambda: store.get_job(locked).status == COMPLETED)
    assert store.get_job(locked).attempts == 1
    assert len([message for message in messages(caplog) if f"job {locked} (t)" in message]) == 1


def test_a_worker_stops_in_time_while_the_row_of_a_job_is_locked(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    [locked] = add(store)
    begun: set[Any] = set()

    async def handle(job: Job) -> None:
        begun.add(job.id)
        await pause(0.5)

    config = DatabaseConfig(url=goqueue_database, lock_timeout=SECOND / 5)
    with psycopg.connect(goqueue_database) as other:
        with workers.running({"t": handle}, url=config, shutdown_timeout=2 * SECOND):
            until(lambda: begun)
            other.execute("SELECT FROM goqueue.jobs WHERE id = %s FOR UPDATE", [locked])
            time.sleep(1)
            start = time.monotonic()
        assert time.monotonic() - start < 20
    assert store.get_job(locked).status == RUNNING  # until its lease expires
    assert any("1 jobs could not be reported as completed" in message for message in messages(caplog, logging.ERROR))


def test_a_cancelled_job_is_noticed_at_the_next_heartbeat_without_notifications(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    [job_id] = add(store)
    handle, begun, told = until_stopped()

    nowhere = psycopg.conninfo.make_conninfo(goqueue_database, dbname="nowhere")
    config = DatabaseConfig(url=goqueue_database, listen_url=nowhere)
    with workers.running({"t": handle}, url=config, heartbeat_interval=SECOND / 4):
        until(lambda: begun)
        store.cancel_jobs(job_id)
        until(lambda: told)
    assert told == ["lease lost"]
    assert store.get_job(job_id).status == CANCELLED


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_new_job_wakes_an_idle_worker(workers: Workers, store: PostgresStorage) -> None:
    with workers.running({"t": succeed}, poll_interval=HOUR):
        time.sleep(0.5)
        [job_id] = add(store)
        until(lambda: store.get_job(job_id).status == COMPLETED)


def test_a_job_due_soon_does_not_wait_for_the_next_poll(workers: Workers, store: PostgresStorage) -> None:
    [job_id] = add(store, delay=SECOND)
    with workers.running({"t": succeed}, poll_interval=HOUR):
        until(lambda: store.get_job(job_id).status == COMPLETED)


def test_a_worker_claims_jobs_of_its_queues_only(workers: Workers, store: PostgresStorage) -> None:
    ids = [add(store, queue=queue)[0] for queue in ("a", "b", "c")]
    assert workers.work({"t": succeed}, queues=("a", "c")) == 2
    assert [job.status for job in store.get_jobs(ids)] == [COMPLETED, PENDING, COMPLETED]


def test_jobs_of_dead_workers_are_rescued_at_the_start_and_at_intervals(
    workers: Workers, store: PostgresStorage
) -> None:
    [early] = add(store)
    store.claim_jobs("default", "dead", lease=timedelta(0))
    with workers.running({"t": succeed}, lease=2 * SECOND, heartbeat_interval=SECOND):
        until(lambda: store.get_job(early).status == COMPLETED)
        store.create_job(late := NewJob(job_type="t", queue="x"))
        store.claim_jobs("x", "dead", lease=timedelta(0))
        until(lambda: store.get_job(late.id).status == PENDING)
    assert store.get_job(early).attempts == 2


def test_jobs_claimed_ahead_are_released_for_others_when_jobs_become_slow(
    workers: Workers, store: PostgresStorage
) -> None:
    add(store, 500, job_type="quick")
    slow = add(store, 400)

    async def handle(job: Job) -> None:
        await pause(0.3)

    with workers.running({"quick": succeed, "t": handle}, concurrency=2):
        until(lambda: store.count_jobs(JobFilter(status=COMPLETED)) > 510)
        until(lambda: statuses(store, slow)["running"] <= 20)
        assert {job.attempts for job in store.get_jobs(slow) if job.status == PENDING} == {0}
        time.sleep(1)
    assert max(job.lease_token for job in store.get_jobs(slow)) <= 6, "jobs are claimed and put back over and over"


def test_a_worker_claims_no_slow_job_that_it_cannot_start(workers: Workers, store: PostgresStorage) -> None:
    ids = add(store, 20)

    async def handle(job: Job) -> None:
        await pause(0.3)

    with workers.running({"t": handle}, concurrency=3):
        until(lambda: store.count_jobs(JobFilter(status=COMPLETED)) > 6)
        assert statuses(store, ids)["running"] <= 6  # three that run, and three whose completion is being reported


# --- reports ----------------------------------------------------------------------------------------------------------


def test_completions_are_batched_under_load_and_at_once_when_idle(goqueue_database: str) -> None:
    calls: list[int] = []

    class Spy(PostgresStorage):
        def complete_jobs(self, leases: Any) -> None:
            leases = list(leases)
            calls.append(len(leases))
            super().complete_jobs(leases)

    with Spy.open(goqueue_database) as store:
        add(store, 3000)
        Worker({"t": lambda job: None}).run(store, settings(), until_empty=True)
        assert sum(calls) == 3000
        assert len(calls) < 1000
        assert max(calls) <= 1000
        calls.clear()
        add(store)
        Worker({"t": lambda job: None}).run(store, settings(), until_empty=True)
        assert calls == [1]


def test_a_job_that_the_database_does_not_complete_harms_no_other(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], caplog: Any
) -> None:
    ids = add(store, 40)
    goqueue_connection.execute(f"""
        CREATE FUNCTION public.object() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.id = '{ids[17]}' AND new.status = 'completed' THEN RAISE 'not this one'; END IF; RETURN new;
        END $$;
        CREATE TRIGGER object BEFORE UPDATE ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION public.object();
    """)  # type: ignore[arg-type]
    assert workers.work({"t": succeed}) == 39
    assert statuses(store, ids) == {"completed": 39, "running": 1}
    [message] = messages(caplog, logging.ERROR)
    assert str(ids[17]) in message
    assert "not this one" in message


def test_a_completion_whose_reply_is_lost_is_repeated(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    ids = add(store, 20)
    handled: Counter[Any] = Counter()

    async def handle(job: Job) -> None:
        handled[job.id] += 1

    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"complete_jobs")
        url = DatabaseConfig(url=between.url, prepare_threshold=None)
        assert workers.work({"t": handle}, url=url) == 20
        assert between.lost.is_set()
    assert statuses(store, ids) == {"completed": 20}
    assert set(handled.values()) == {1}
    assert not any("lost before" in message for message in messages(caplog))


def test_a_failure_whose_reply_is_lost_counts_once(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    [job_id] = add(store)

    async def handle(job: Job) -> None:
        raise RetryJob(HOUR, "no")

    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"fail_jobs")
        workers.work({"t": handle}, url=DatabaseConfig(url=between.url, prepare_threshold=None))
        assert between.lost.is_set()
    assert store.get_job(job_id).attempts == 1
    assert len(store.list_failures(job_id)) == 1
    assert not any("lost before" in message for message in messages(caplog))


def test_a_worker_runs_the_jobs_of_a_claim_whose_reply_was_lost(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    [job_id] = add(store)
    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"claim_jobs")
        with workers.running({"t": succeed}, url=DatabaseConfig(url=between.url, prepare_threshold=None)):
            until(lambda: store.get_job(job_id).status == COMPLETED)
    assert store.get_job(job_id).attempts == 1
    assert any("the reply to a claim was lost; the worker looks up its jobs" in message for message in messages(caplog))


def test_after_a_lost_claim_no_running_job_runs_again(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    handled: Counter[Any] = Counter()

    async def handle(job: Job) -> None:
        handled[job.id] += 1
        await pause(3 if job.payload == "long" else 0)

    add(store, 3, payload="long")  # these run until the jobs of the lost claim have been looked up
    with proxy.running(goqueue_database) as between:
        url = DatabaseConfig(url=between.url, prepare_threshold=None)
        with workers.running({"t": handle}, url=url):
            until(lambda: len(handled) == 3)
            between.lose_reply(b"claim_jobs")
            ids = add(store, 5)
            until(between.lost.is_set)
            until(lambda: statuses(store, ids)["completed"] == 5)
    assert set(handled.values()) == {1}
    assert {store.get_job(job_id).attempts for job_id in ids} == {1}


def test_claims_and_lookups_that_are_lost_one_after_the_other_run_each_job_once(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    handled: Counter[Any] = Counter()

    async def handle(job: Job) -> None:
        handled[job.id] += 1

    ids: list[Any] = []
    with proxy.running(goqueue_database) as between:
        reply, request = between.lose_reply, between.lose_request
        with workers.running({"t": handle}, url=DatabaseConfig(url=between.url, prepare_threshold=None)):
            for lose, query in (
                (reply, "claim_jobs"),
                (reply, "list_jobs"),
                (reply, "claim_jobs"),
                (request, "claim_jobs"),
            ):
                lose(query.encode())
                ids += add(store, 3)
                until(between.lost.is_set)
            until(lambda: statuses(store, ids)["completed"] == 12)
    assert set(handled.values()) == {1}
    assert {job.attempts for job in store.get_jobs(ids)} == {1}


def test_a_worker_that_stops_after_a_lost_claim_releases_its_jobs(
    workers: Workers, store: PostgresStorage, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("run", "run_async"):  # the worker waits a minute, not a second
        monkeypatch.setattr(f"goqueue.work.{module}.uniform", lambda low, high: 60.0)
    ids = add(store, 5)
    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"claim_jobs")
        with workers.running({"t": succeed}, url=DatabaseConfig(url=between.url, prepare_threshold=None)):
            until(between.lost.is_set)
        jobs = store.get_jobs(ids)
    assert {(job.status, job.attempts) for job in jobs} == {(PENDING, 0)}


def test_a_worker_ends_with_the_last_job_after_a_lost_claim(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    ids = add(store, 10)
    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"claim_jobs")
        assert workers.work({"t": succeed}, url=DatabaseConfig(url=between.url, prepare_threshold=None)) == 10
        assert between.lost.is_set()
    assert {(job.status, job.attempts) for job in store.get_jobs(ids)} == {(COMPLETED, 1)}


def test_after_a_lost_claim_a_worker_finds_more_jobs_than_a_page_has(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    handled: Counter[Any] = Counter()

    async def handle(job: Job) -> None:
        handled[job.id] += 1
        await pause(0 if job.payload is None else SECONDS_AT_MOST)

    [first] = add(store, payload="long")
    with (
        proxy.running(goqueue_database) as between,
        workers.running(
            {"t": handle},
            url=DatabaseConfig(url=between.url, prepare_threshold=None),
            shutdown_timeout=SECOND,
        ),
    ):
        until(lambda: handled)
        ids = add(store, 2300, queue="other")
        name = store.get_job(first).locked_by
        assert name is not None
        while store.claim_jobs("other", name, 1000):  # as by claims that the worker doesn't know
            pass
        between.lose_reply(b"claim_jobs")
        until(between.lost.is_set)
        until(lambda: statuses(store, ids)["running"] == 0)
        # It has run them, or released those that it could not run soon.
        assert {(job.status, job.attempts) for job in store.get_jobs(ids)} <= {(COMPLETED, 1), (PENDING, 0)}
        assert set(handled.values()) == {1}


def test_a_job_whose_completion_failed_does_not_run_again_after_a_lost_claim(
    workers: Workers, store: PostgresStorage, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    handled: Counter[Any] = Counter()

    async def handle(job: Job) -> None:
        handled[job.id] += 1

    goqueue_connection.execute("""
        CREATE FUNCTION public.object() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
        CREATE TRIGGER object BEFORE UPDATE ON goqueue.jobs FOR EACH ROW
        WHEN (new.status = 'completed' AND new.payload = '"bad"') EXECUTE FUNCTION public.object();
    """)
    [bad] = add(store, payload="bad")
    with (
        proxy.running(goqueue_database) as between,
        workers.running({"t": handle}, url=DatabaseConfig(url=between.url, prepare_threshold=None)),
    ):
        until(lambda: handled)
        between.lose_reply(b"claim_jobs")
        ids = add(store, 3)
        until(lambda: statuses(store, ids)["completed"] == 3)
    assert handled[bad] == 1
    assert store.get_job(bad).status == RUNNING


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
def test_a_worker_behind_pgbouncer_runs_the_jobs_of_a_lost_claim(
    workers: Workers, store: PostgresStorage, goqueue_database: str, through_pgbouncer: Any
) -> None:
    ids = add(store, 5)
    pooled = through_pgbouncer(goqueue_database)
    with pgbouncer.sessions(pooled, goqueue_database), proxy.running(pooled) as between:
        between.lose_reply(b"claim_jobs")
        assert workers.work({"t": succeed}, url=between.url) == 5
        assert between.lost.is_set()
    assert {(job.status, job.attempts) for job in store.get_jobs(ids)} == {(COMPLETED, 1)}


def test_a_lookup_of_a_lost_claim_leaves_the_jobs_that_were_received_before(store: PostgresStorage) -> None:
    add(store, 2)
    run = Run(store, settings(), {}, Backoff(), "me", until_empty=False, has_own_name=True)
    received = store.claim_jobs("default", "me", 1)
    run._take(received, 0.0)
    run._held.clear()  # as after a lease that ended by the worker's clock, while the storage was away
    run._buffer.clear()
    run._expect(time.monotonic())
    [lost] = store.claim_jobs("default", "me", 1)
    run._take_lost()
    assert [attempt.job.id for attempt in run._buffer] == [lost.id]


def test_a_lost_claim_that_commits_after_the_first_lookup_is_found(
    workers: Workers, store: PostgresStorage, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    ids = add(store, 3)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%claim_jobs%%'"
    with proxy.running(goqueue_database) as between, ExitStack() as stack:
        # The server doesn't notice that the client is gone, as while it waits for a synchronous standby.
        url = psycopg.conninfo.make_conninfo(between.url, options="-c client_connection_check_interval=0")
        look = stack.enter_context(psycopg.connect(goqueue_database, autocommit=True))

        def is_waiting(count: int) -> bool:
            return look.execute(waiting).fetchone() == (count,)

        with goqueue_connection.transaction():
            goqueue_connection.execute("LOCK TABLE goqueue.jobs IN EXCLUSIVE MODE")
            stack.enter_context(workers.running({"t": succeed}, url=url))
            until(lambda: is_waiting(1))
            between.cut()
            until(lambda: is_waiting(2))  # the next claim, which comes after the first lookup
        until(lambda: statuses(store, ids)["completed"] == 3)
    assert {job.attempts for job in store.get_jobs(ids)} == {1}


def test_lookups_of_a_lost_claim_become_rare_and_end_with_its_lease(goqueue_database: str) -> None:
    lookups: list[float] = []

    class Losing(PostgresStorage):
        def claim_jobs(self, *given: Any, **named: Any) -> Any:
            if not lookups:
                lookups.append(time.monotonic())
                raise OutcomeUnknownError("the reply was lost", operation="claim_jobs")
            return super().claim_jobs(*given, **named)

        def list_jobs(self, *given: Any, **named: Any) -> Any:
            lookups.append(time.monotonic())
            return super().list_jobs(*given, **named)

    with Losing.open(goqueue_database) as store:
        worker = Worker({"t": print})
        timer = threading.Timer(8, worker.stop)
        timer.start()
        worker.run(store, settings(lease=4 * SECOND, heartbeat_interval=SECOND))
        timer.join()
    lost, *found = lookups
    assert 1 <= len(found) <= 4
    if found[0] - lost < 2:  # else a stalled machine looked for the first time when the lease had nearly ended
        assert found[1] - found[0] > 0.9 * (found[0] - lost)


def test_jobs_of_a_lost_claim_under_a_given_name_return_when_their_leases_expire(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    [job_id] = add(store)
    with proxy.running(goqueue_database) as between:
        between.lose_reply(b"claim_jobs")
        url = DatabaseConfig(url=between.url, prepare_threshold=None)
        given = {"lease": SECOND, "heartbeat_interval": SECOND / 2, "worker_id": "shared"}
        with workers.running({"t": succeed}, url=url, **given):
            until(lambda: store.get_job(job_id).status == COMPLETED)
    assert store.get_job(job_id).attempts == 2
    assert any("its jobs return when their leases expire" in message for message in messages(caplog))


# --- an unavailable storage -------------------------------------------------------------------------------------------


def test_a_worker_waits_while_the_storage_is_unavailable_and_nothing_runs_twice(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "goqueue.worker")
    ids = add(store, 60)
    handled: Counter[Any] = Counter()
    refused = threading.Event()

    async def handle(job: Job) -> None:
        handled[job.id] += 1
        await pause(0.05)
        while len(handled) > 20 and not refused.is_set():
            await pause(0.01)

    with ExitStack() as stack:
        between = stack.enter_context(proxy.running(goqueue_database))
        config = DatabaseConfig(url=between.url, pool_timeout=2 * SECOND)  # short: the worker waits and not the pool
        stack.enter_context(workers.running({"t": handle}, url=config))
        until(lambda: len(handled) > 10)
        between.refuse()
        refused.set()
        until(lambda: any("the storage is unavailable" in message for message in messages(caplog)))
        time.sleep(1)
        done = statuses(store, ids)["completed"]
        assert done < 60
        between.accept()
        until(lambda: statuses(store, ids)["completed"] == 60)
        until(lambda: any("available again" in message for message in messages(caplog, logging.INFO)))
    assert set(handled.values()) == {1}
    said = messages(caplog, logging.INFO)
    assert len([message for message in said if "the storage is unavailable" in message]) == 1
    assert len([message for message in said if "available again" in message]) == 1


def test_a_worker_stops_in_time_while_the_storage_is_unavailable(
    workers: Workers, store: PostgresStorage, goqueue_database: str
) -> None:
    [job_id] = add(store)
    begun: list[Any] = []
    refused = threading.Event()

    async def handle(job: Job) -> None:
        begun.append(job.id)
        while not refused.is_set():
            await pause(0.01)
        await pause(0.5)

    with proxy.running(goqueue_database) as between:
        config = DatabaseConfig(url=between.url, pool_timeout=2 * SECOND)
        with workers.running({"t": handle}, url=config, shutdown_timeout=SECOND):
            until(lambda: begun)
            between.refuse()
            refused.set()
            start = time.monotonic()
        assert time.monotonic() - start < 30
    assert store.get_job(job_id).status == RUNNING


def test_a_missing_table_ends_the_worker(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    ids = add(store, 1)
    with workers.running({"t": succeed}) as worker:
        until(lambda: statuses(store, ids)["completed"])
        goqueue_connection.execute("ALTER TABLE goqueue.jobs RENAME TO gone")
        until(lambda: worker.ended)
        with pytest.raises(SchemaError):
            raise worker.ended.pop()
        worker.ended.append(0)


def test_without_notifications_a_worker_polls(
    workers: Workers, store: PostgresStorage, goqueue_database: str, caplog: Any
) -> None:
    nowhere = psycopg.conninfo.make_conninfo(goqueue_database, dbname="nowhere")
    config = DatabaseConfig(url=goqueue_database, listen_url=nowhere)
    with workers.running({"t": succeed}, url=config):
        until(lambda: any("only polls" in message for message in messages(caplog)))
        [job_id] = add(store)
        until(lambda: store.get_job(job_id).status == COMPLETED)
    assert len([message for message in messages(caplog) if "only polls" in message]) == 1


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
def test_a_worker_runs_behind_pgbouncer(
    workers: Workers, store: PostgresStorage, goqueue_database: str, through_pgbouncer: Any
) -> None:
    ids = add(store, 200)
    url = through_pgbouncer(goqueue_database)
    with pgbouncer.sessions(url, goqueue_database), workers.running({"t": succeed}, url=url):
        until(lambda: statuses(store, ids)["completed"] == 200)
        [job_id] = add(store)
        until(lambda: store.get_job(job_id).status == COMPLETED)


# --- shutdown ---------------------------------------------------------------------------------------------------------


def test_a_stop_releases_jobs_that_have_not_started_and_waits_for_the_others(
    workers: Workers, store: PostgresStorage
) -> None:
    add(store, 500, job_type="quick")
    ids = add(store, 100)
    begun: list[Any] = []

    async def handle(job: Job) -> None:
        begun.append(job.id)
        await pause(0.5)

    with workers.running({"quick": succeed, "t": handle}, concurrency=3):
        until(lambda: len(begun) >= 3)
    assert all(store.get_job(job_id).status == COMPLETED for job_id in begun)
    others = [job for job in store.get_jobs(ids) if job.id not in begun]
    assert {(job.status, job.attempts) for job in others} == {(PENDING, 0)}


def test_jobs_of_a_claim_that_is_under_way_at_a_stop_are_released_before_the_running_jobs_end(
    workers: Workers, store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], goqueue_database: str
) -> None:
    add(store)
    handle, begun, told = until_stopped()
    waiting = "query LIKE '%goqueue:claim_jobs%' AND wait_event_type = 'Lock' AND datname = current_database()"

    with workers.running({"t": handle}, shutdown_timeout=timedelta(seconds=SECONDS_AT_MOST)) as worker:
        until(lambda: begun)
        with psycopg.connect(goqueue_database) as other:
            other.execute("LOCK goqueue.jobs")
            [late] = add(store.bound_to(other))
            until(lambda: goqueue_connection.execute(f"SELECT FROM pg_stat_activity WHERE {waiting}").rowcount)
            worker.stop()
        until(lambda: store.get_job(late).lease_token)
        until(lambda: store.get_job(late).status == PENDING)
        assert told == []
        store.cancel_jobs(begun)
    assert store.get_job(late).attempts == 0


def test_a_job_that_runs_longer_than_shutdown_timeout_is_released(workers: Workers, store: PostgresStorage) -> None:
    [job_id] = add(store)
    handle, begun, told = until_stopped()

    with workers.running({"t": handle}, shutdown_timeout=SECOND / 2):
        until(lambda: begun)
    until(lambda: told)
    assert told == ["shutdown"]
    assert (store.get_job(job_id).status, store.get_job(job_id).attempts) == (PENDING, 0)


def test_a_handler_stops_its_worker(workers: Workers, store: PostgresStorage) -> None:
    add(store, 50)
    handled: list[Any] = []

    async def handle(job: Job) -> None:
        handled.append(job.id)
        if len(handled) == 10:
            worker.stop()

    worker = workers.make({"t": handle})
    count = workers.run(worker, concurrency=1, poll_interval=HOUR)
    assert count == len(handled)
    assert 10 <= count <= 50
    assert store.count_jobs(JobFilter(status=RUNNING)) == 0


def test_a_stop_before_the_run_ends_it_at_once(workers: Workers, store: PostgresStorage) -> None:
    worker = workers.make({"t": succeed})
    worker.stop()
    assert workers.run(worker) == 0
    add(store)
    assert workers.run(worker, until_empty=True) == 1


def test_a_cancelled_run_releases_its_jobs(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    [job_id] = add(goqueue_store)
    begun = asyncio.Event()

    async def handle(job: Job) -> None:
        begun.set()
        await asyncio.sleep(SECONDS_AT_MOST)

    async def run() -> None:
        async with await AsyncPostgresStorage.open(goqueue_database) as store:
            task = asyncio.create_task(AsyncWorker({"t": handle}).run(store, settings()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert (goqueue_store.get_job(job_id).status, goqueue_store.get_job(job_id).attempts) == (PENDING, 0)


def test_a_worker_that_is_left_when_asyncio_run_ends_reports_and_releases_its_jobs(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    slow, kept, *waiting = add(goqueue_store, 2) + add(goqueue_store, 200, job_type="waiting", priority=1)
    begun: list[Any] = []
    left: list[Any] = []

    async def handle(job: Job) -> None:
        begun.append(job.id)
        try:
            await asyncio.sleep(SECONDS_AT_MOST)
        except asyncio.CancelledError:
            if job.id != kept:
                raise

    async def main() -> None:
        # The pool is full once open: it can't grow after its tasks are cancelled.
        store = await AsyncPostgresStorage.open(DatabaseConfig(url=goqueue_database, pool_min_size=6, pool_max_size=6))
        worker = AsyncWorker({"t": handle, "waiting": handle})
        left.extend([store, asyncio.create_task(worker.run(store, settings()))])
        while len(begun) < 4:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert {slow, kept} <= set(begun)
    assert (goqueue_store.get_job(kept).status, goqueue_store.get_job(kept).attempts) == (COMPLETED, 1)
    jobs = goqueue_store.get_jobs([slow, *waiting])
    assert {(job.status, job.attempts) for job in jobs} == {(PENDING, 0)}


def test_system_exit_in_a_task_that_a_handler_starts_releases_the_jobs(
    goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    ids = add(goqueue_store, 3)
    begun: list[Any] = []

    async def leave() -> None:
        raise SystemExit(3)

    async def handle(job: Job) -> None:
        begun.append(job.id)
        while len(begun) < 3:
            await asyncio.sleep(0.01)
        await asyncio.create_task(leave() if job.id == ids[0] else asyncio.sleep(SECONDS_AT_MOST))

    full = DatabaseConfig(url=goqueue_database, pool_min_size=6, pool_max_size=6)  # as above
    with pytest.raises(SystemExit):
        Workers("tasks", goqueue_database).work({"t": handle}, url=full)
    assert {(job.status, job.attempts) for job in goqueue_store.get_jobs(ids)} == {(PENDING, 0)}


def test_until_empty_waits_for_running_jobs_and_the_jobs_that_they_add(
    workers: Workers, store: PostgresStorage
) -> None:
    add(store, payload=3)

    async def handle(job: Job) -> None:
        await pause(0.2)
        if job.payload:
            store.create_job(NewJob(job_type="t", payload=job.payload - 1))

    add(store, delay=HOUR, payload=0)
    assert workers.work({"t": handle}) == 4


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_has_starts_ends_and_durations_of_jobs(workers: Workers, store: PostgresStorage, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "goqueue.worker")
    good, bad = add(store)[0], add(store, job_type="bad")[0]

    async def fail(job: Job) -> None:
        raise ValueError("boom\nand more")

    workers.work({"t": succeed, "bad": fail}, worker_id="me", concurrency=1)
    records = [record for record in caplog.records if record.name == "goqueue.worker"]
    said = [record.getMessage() for record in records]
    assert said[0].startswith("worker me starts: concurrency 1, queues ['default'], poll_interval 100ms")
    assert said[-1].startswith("worker me has stopped; jobs completed: 1,")
    ends = {record.job_id: record for record in records if hasattr(record, "duration_ms")}
    assert ends[good].getMessage().startswith(f"job {good} (t) completed in ")
    assert (ends[good].levelname, ends[bad].levelname) == ("INFO", "WARNING")
    assert ends[bad].getMessage().endswith(" ms: ValueError")
    assert not any("boom" in message for message in said), "the text of an exception can hold a secret"
    assert (ends[good].queue, ends[good].job_type, ends[good].worker_id, ends[good].attempt) == (
        "default",
        "t",
        "me",
        1,
    )
    assert len([message for message in said if message.endswith(" starts")]) == 2


@pytest.mark.filterwarnings("ignore")
def test_faults_in_the_applications_logging_harm_no_job(
    workers: Workers, store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("goqueue.worker")

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("the filter is broken")

    def odd(level: int) -> bool:
        raise RuntimeError("the logger is broken")

    ids = add(store, 10) + add(store, 1, job_type="unknown")
    logger.addFilter(broken)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    try:
        assert workers.work({"t": succeed}) == 10
        assert statuses(store, ids) == {"completed": 10, "pending": 1}
    finally:
        logger.removeFilter(broken)
    add(store, 10)
    monkeypatch.setattr(logger, "isEnabledFor", odd)
    assert workers.work({"t": succeed}) == 10
