"""Who is woken by what: jobs that become pending again, jobs taken from their holder, and the setting that sends
nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from goqueue import AsyncPostgresStorage, Job, JobFilter, JobUpdate, Lease, NewJob, PostgresStorage, Storage
from tests.notices import notices

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ear(goqueue_connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection that listens on both channels; without the lock, the triggers still send nothing."""
    goqueue_connection.execute("LISTEN goqueue; LISTEN goqueue_cancelled")
    return goqueue_connection


@pytest.fixture
def listened(goqueue_store: PostgresStorage) -> Iterator[None]:
    with goqueue_store.listen("default"):
        yield


def notes(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Return the channel and the payload of each notification, with the channel's name in the schema goqueue."""
    heard = notices(connection)
    names = ("goqueue_cancelled" if note.channel.startswith("goqueue_cancelled") else "goqueue" for note in heard)
    return sorted(zip(names, (note.payload for note in heard), strict=True))


def claimed(store: Storage, **fields: Any) -> Job:
    store.create_job(NewJob(job_type="t", **fields))
    [job] = store.claim_jobs(fields.get("queue", "default"), "w")
    return job


def rescue(store: Storage, job: Job) -> None:
    store.heartbeat_jobs([job], timedelta(0))
    time.sleep(0.01)
    assert store.rescue_jobs()


def retry(store: Storage, job: Job) -> None:
    store.cancel_jobs(job.id)
    assert store.retry_jobs(job.id) == 1


def reschedule(store: Storage, job: Job) -> None:
    store.fail_job(job, "x", retry_in=HOUR)
    assert store.reschedule_jobs(job.id, delay=timedelta(0)) == 1


def replace(store: Storage, job: Job) -> None:
    later = store.create_job(NewJob(job_type="t", delay=HOUR, idempotency_key="k"))
    assert store.replace_pending_job(NewJob(job_type="t", idempotency_key="k")).id == later.id


def move(store: Storage, job: Job) -> None:
    store.release_jobs([job])
    store.update_job(job.id, JobUpdate(queue="elsewhere"))
    store.update_job(job.id, JobUpdate(queue="default"))


def move_all(store: Storage, job: Job) -> None:
    store.release_jobs([job])
    assert store.change_jobs(job.id, queue="elsewhere") == 1
    assert store.change_jobs(JobFilter(queue="elsewhere"), queue="default") == 1


DUE_AGAIN: dict[str, Callable[[Storage, Job], Any]] = {
    "released": lambda store, job: store.release_jobs([job]),
    "failed with another try at once": lambda store, job: store.fail_job(job, "x", retry_in=timedelta(0)),
    "rescued": rescue,
    "retried": retry,
    "rescheduled to now": reschedule,
    "replaced": replace,
    "set pending": lambda store, job: store.update_job(job.id, JobUpdate(status="pending")),
    "moved to another queue": move,
    "moved with others": move_all,
}


@pytest.mark.parametrize("how", DUE_AGAIN)
def test_a_job_that_is_due_again_wakes_the_listeners(
    how: str, store: Storage, goqueue_store: PostgresStorage, ear: psycopg.Connection[Any], listened: None
) -> None:
    job = claimed(store)
    notes(ear)
    DUE_AGAIN[how](store, job)
    assert ("goqueue", "default") in notes(ear)


def test_a_job_set_pending_manually_wakes_a_listener(
    goqueue_store: PostgresStorage, ear: psycopg.Connection[Any], listened: None
) -> None:
    claimed(goqueue_store, queue="mail")
    notes(ear)
    ear.execute(
        "UPDATE goqueue.jobs SET status = 'pending', locked_by = NULL, locked_at = NULL, lease_expires_at = NULL"
    )
    assert notes(ear) == [("goqueue", "mail")]


@pytest.mark.parametrize("search_path", ["''", "pg_temp", "app, pg_catalog"])
def test_an_insert_wakes_listeners_with_any_search_path(
    search_path: str, goqueue_connection: psycopg.Connection[Any], goqueue_store: PostgresStorage
) -> None:
    with goqueue_store.listen("default") as listener:
        goqueue_connection.execute(f"""
            CREATE SCHEMA app;
            CREATE TABLE app.new_job (queue text, status text, scheduled_at timestamptz);
            CREATE TEMPORARY TABLE new_job (queue text, status text, scheduled_at timestamptz);
            CREATE FUNCTION app.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'off' $$;
            CREATE FUNCTION app.pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT TRUE $$;
            CREATE FUNCTION app.pg_advisory_unlock(bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT TRUE $$;
            CREATE FUNCTION app.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$ SELECT $$;
            SET search_path = {search_path};
            INSERT INTO goqueue.jobs (job_type) VALUES ('x');
        """)
        assert listener.wait(60 * SECOND) == {"default"}


@pytest.mark.parametrize(
    "method",
    ["fail_jobs", "bury_jobs", "release_jobs", "reschedule_jobs", "change_jobs", "complete_jobs", "heartbeat_jobs"],
)
def test_a_job_that_is_not_due_wakes_no_listener(
    method: str, goqueue_store: PostgresStorage, ear: psycopg.Connection[Any], listened: None
) -> None:
    job = claimed(goqueue_store)
    waiting = goqueue_store.create_job(NewJob(job_type="t", delay=HOUR))
    notes(ear)
    calls: dict[str, Callable[[], Any]] = {
        "fail_jobs": lambda: goqueue_store.fail_jobs([(job, "x")], retry_in=HOUR),
        "bury_jobs": lambda: goqueue_store.bury_jobs([(job, "x")]),
        "release_jobs": lambda: goqueue_store.release_jobs([job], delay=HOUR),
        "reschedule_jobs": lambda: goqueue_store.reschedule_jobs(waiting.id, delay=2 * HOUR),
        "change_jobs": lambda: goqueue_store.change_jobs([job.id, waiting.id], queue="b"),
        "complete_jobs": lambda: goqueue_store.complete_jobs([job]),
        "heartbeat_jobs": lambda: goqueue_store.heartbeat_jobs([job]),
    }
    calls[method]()
    goqueue_store.claim_jobs("default", "w")
    assert notes(ear) == []


def test_many_jobs_of_one_statement_wake_once(
    goqueue_store: PostgresStorage, ear: psycopg.Connection[Any], listened: None
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", queue=queue) for _ in range(300) for queue in ("a", "b"))
    jobs = goqueue_store.claim_jobs(["a", "b"], "w", limit=600)
    notes(ear)
    goqueue_store.release_jobs(jobs)
    assert notes(ear) == [("goqueue", "a"), ("goqueue", "b")]


CANCELLED: dict[str, Callable[[Storage, Job], Any]] = {
    "cancelled": lambda store, job: store.cancel_jobs(job.id),
    "cancelled by a filter": lambda store, job: store.cancel_jobs(JobFilter(job_type="t")),
    "cancelled by an update": lambda store, job: store.update_job(job.id, JobUpdate(status="cancelled")),
    "deleted": lambda store, job: store.delete_job(job.id),
    "deleted by a filter": lambda store, job: store.delete_jobs(JobFilter(locked_by="w")),
}


@pytest.mark.parametrize("how", CANCELLED)
def test_the_holder_of_a_cancelled_job_is_notified(how: str, store: Storage, goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen(["default", "my queue"]) as listener:
        job = claimed(store, queue="my queue")
        assert listener.wait(60 * SECOND) == {"my queue"}, "of the new job"
        timer = threading.Timer(0.2, lambda: CANCELLED[how](store, job))
        timer.start()
        start = time.monotonic()
        assert listener.wait(60 * SECOND) == frozenset()
        assert time.monotonic() - start < 50
        timer.join()
        assert listener.cancelled == {Lease(job.id, job.lease_token)}
        assert listener.wait(timedelta(0)) == frozenset()
        assert listener.cancelled == frozenset(), "they are those of the last wait"


@pytest.mark.anyio
async def test_the_holder_is_notified_in_asyncio(goqueue_database: str) -> None:
    async with (
        await AsyncPostgresStorage.open(goqueue_database) as store,
        store.listen("default") as listener,
    ):
        await store.create_jobs(NewJob(job_type="t") for _ in range(50))
        jobs = await store.claim_jobs("default", "w", limit=50)
        assert await listener.wait(60 * SECOND) == {"default"}, "of the new jobs"
        assert await store.cancel_jobs([job.id for job in jobs]) == 50
        told: set[Lease] = set()
        while len(told) < 50:
            await listener.wait(60 * SECOND)
            assert listener.cancelled
            told |= listener.cancelled
        assert told == {Lease(job.id, job.lease_token) for job in jobs}


def test_cancelled_jobs_of_other_queues_and_without_holders_are_not_reported(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("mail") as listener:
        claimed(goqueue_store, queue="report")
        goqueue_store.create_job(NewJob(job_type="t", queue="mail", delay=HOUR))
        assert goqueue_store.cancel_jobs(JobFilter()) == 2
        assert listener.wait(SECOND / 2) == frozenset()
        assert listener.cancelled == frozenset()


def test_messages_of_others_on_the_channel_are_ignored(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    with goqueue_store.listen("default") as listener:
        for payload in ("", "x", "x 1 default", f"{uuid4()} one default", f"{uuid4()} 1", f"{uuid4()} 1 other"):
            goqueue_connection.execute("SELECT pg_notify('goqueue_cancelled', %s)", [payload])
        assert listener.wait(SECOND / 2) == frozenset()
        assert listener.cancelled == frozenset()


def test_nothing_is_sent_of_changes_while_nobody_listens(
    goqueue_store: PostgresStorage, ear: psycopg.Connection[Any]
) -> None:
    goqueue_store.release_jobs([claimed(goqueue_store)])
    [job] = goqueue_store.claim_jobs("default", "w")
    goqueue_store.cancel_jobs(job.id)
    goqueue_store.retry_jobs(job.id)
    [job] = goqueue_store.claim_jobs("default", "w")
    goqueue_store.delete_job(job.id)
    assert notes(ear) == []


class TestTheSettingThatSendsNothing:
    @pytest.mark.parametrize("value", ["off", "OFF", "false", "no", "0"])
    def test_it_silences_one_transaction(
        self,
        value: str,
        goqueue_store: PostgresStorage,
        goqueue_database: str,
        ear: psycopg.Connection[Any],
        listened: None,
    ) -> None:
        held, gone, late = (claimed(goqueue_store) for _ in range(3))
        notes(ear)
        with psycopg.connect(goqueue_database) as connection:
            store = PostgresStorage.bound_to(connection)
            connection.execute(f"SET LOCAL goqueue.notify = '{value}'")  # type: ignore[arg-type]
            store.create_job(NewJob(job_type="t"))
            store.create_jobs([NewJob(job_type="t")])
            store.release_jobs([held])
            store.cancel_jobs(gone.id)
            store.delete_job(late.id)
            connection.commit()
            assert notes(ear) == []
            store.create_job(NewJob(job_type="t"))
            connection.commit()
            assert notes(ear) == [("goqueue", "default")], "the setting ended with its transaction"

    @pytest.mark.parametrize("value", ["on", "", "true", "loud"])
    def test_any_other_value_sends_notifications(
        self, value: str, goqueue_database: str, ear: psycopg.Connection[Any], listened: None
    ) -> None:
        with psycopg.connect(goqueue_database, autocommit=True) as connection:
            connection.execute(f"SET goqueue.notify = '{value}'")  # type: ignore[arg-type]
            PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))
        assert notes(ear) == [("goqueue", "default")]

    def test_a_two_phase_commit_can_prepare_while_somebody_listens(
        self, goqueue_store: PostgresStorage, goqueue_database: str, ear: psycopg.Connection[Any], listened: None
    ) -> None:
        if ear.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
            pytest.skip("the server has max_prepared_transactions = 0")
        with closing(psycopg.connect(goqueue_database)) as connection:
            connection.tpc_begin(connection.xid(1, str(uuid4()), "goqueue"))
            PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
                connection.tpc_prepare()
        with closing(psycopg.connect(goqueue_database)) as connection:
            connection.tpc_begin(connection.xid(1, str(uuid4()), "goqueue"))
            connection.execute("SET LOCAL goqueue.notify = off")
            job = PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))
            connection.tpc_prepare()
            connection.tpc_commit()
        assert goqueue_store.get_job(job.id) == job
