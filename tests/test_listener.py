"""Early wake-ups: notifications of due jobs, one per statement and queue, and only while somebody listens."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import NewJob, PostgresStorage, StorageError, StorageUnavailableError
from tests.notices import notices
from tests.workers import until

SECOND = timedelta(seconds=1)
# Only of this test's database: other databases on the server have their own advisory locks.
LISTENERS = """
    locktype = 'advisory' AND mode = 'ShareLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def notes(connection: psycopg.Connection[Any]) -> list[str]:
    return [note.payload for note in notices(connection)]


@pytest.fixture
def ear(goqueue_connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    goqueue_connection.execute("LISTEN goqueue")
    return goqueue_connection


def test_a_due_job_wakes_the_listeners_of_its_queue(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen(["mail", "report"]) as listener:
        timer = threading.Timer(0.2, lambda: goqueue_store.create_job(NewJob(job_type="t", queue="mail")))
        timer.start()
        start = time.monotonic()
        assert listener.wait(60 * SECOND) == {"mail"}
        assert time.monotonic() - start < 50
        timer.join()


def test_jobs_of_other_queues_and_later_jobs_wake_no_listener(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("mail") as listener:
        goqueue_store.create_job(NewJob(job_type="t", queue="report"))
        goqueue_store.create_job(NewJob(job_type="t", queue="mail", delay=timedelta(hours=1)))
        assert listener.wait(0.5 * SECOND) == frozenset()


def test_one_notification_is_sent_per_statement_and_queue(
    goqueue_store: PostgresStorage, ear: psycopg.Connection[Any]
) -> None:
    with goqueue_store.listen("a"):
        goqueue_store.create_jobs(NewJob(job_type="t", queue=queue) for _ in range(300) for queue in ("a", "b"))
        assert sorted(notes(ear)) == ["a", "b"]
        ear.execute("INSERT INTO goqueue.jobs (job_type, queue) VALUES ('by hand', 'c')")
        assert notes(ear) == ["c"]


def test_nothing_is_sent_while_nobody_listens(goqueue_store: PostgresStorage, ear: psycopg.Connection[Any]) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    assert notes(ear) == []
    with goqueue_store.listen("default"):
        goqueue_store.create_job(NewJob(job_type="t"))
        assert notes(ear) == ["default"]
    while ear.execute(f"SELECT FROM pg_locks WHERE {LISTENERS}").fetchone():  # the session may just be ending
        time.sleep(0.01)
    goqueue_store.create_job(NewJob(job_type="t"))
    assert notes(ear) == []


def test_a_rolled_back_job_wakes_no_listener(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    with goqueue_store.listen("default") as listener, psycopg.connect(goqueue_database) as connection:
        goqueue_store.bound_to(connection).create_job(NewJob(job_type="t"))
        connection.rollback()
        assert listener.wait(0.3 * SECOND) == frozenset()


@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_connection_is_reopened(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], count: int
) -> None:
    with goqueue_store.listen("default") as listener:
        for _ in range(count):
            goqueue_connection.execute(f"SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE {LISTENERS}")
            assert listener.wait(60 * SECOND) == {"default"}, "a hint may have been missed"
        goqueue_store.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def test_an_unreachable_server_is_reported_at_once(
    goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_seconds: float | None) -> Any:
        raise psycopg.OperationalError("no")

    listener = goqueue_store.listen("default")
    monkeypatch.setattr(listener, "_connect", refuse)
    with pytest.raises(StorageUnavailableError, match="reached"):
        listener.__enter__()
    with pytest.raises(StorageError, match="closed"):
        listener.wait(SECOND)


def test_while_the_server_is_unreachable_a_wait_retries(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with goqueue_store.listen("default") as listener:
        connect, tries = listener._connect, []

        def refuse_twice(seconds: float | None) -> Any:
            tries.append(time.monotonic())
            if len(tries) < 3:
                raise psycopg.OperationalError("no")
            return connect(seconds)

        monkeypatch.setattr(listener, "_connect", refuse_twice)
        goqueue_connection.execute(f"SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE {LISTENERS}")
        start = time.monotonic()
        assert listener.wait(0.2 * SECOND) == frozenset()
        assert time.monotonic() - start >= 0.2
        assert listener.wait(timedelta.max) == {"default"}
        assert len(tries) == 3


def test_a_wait_of_zero_returns_what_has_arrived(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("default") as listener:
        assert listener.wait(timedelta(0)) == frozenset()
        goqueue_store.create_job(NewJob(job_type="t"))
        assert until(lambda: listener.wait(timedelta(0))) == {"default"}


def test_a_closed_listener_rejects_waits(goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("default") as listener:
        pass
    with pytest.raises(StorageError, match="closed"):
        listener.wait(SECOND)
    assert listener._connection is None


def test_a_listener_that_is_closed_while_it_waits_does_not_listen_again(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with goqueue_store.listen("a") as listener:
        closing = threading.Timer(0.3, listener.close)
        closing.start()
        start = time.monotonic()
        with pytest.raises(StorageError, match="the listener is closed"):
            listener.wait(3 * SECOND)
        assert time.monotonic() - start < 3
        closing.join()
        assert [record for record in caplog.records if record.name == "goqueue"] == []
    deadline = time.monotonic() + 10
    while goqueue_connection.execute(f"SELECT FROM pg_locks WHERE {LISTENERS}".encode()).fetchall():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_listeners_and_many_writers_do_not_block(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    def write() -> None:
        with psycopg.connect(goqueue_database, autocommit=True) as connection:
            for _ in range(50):
                PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))

    with goqueue_store.listen("default") as first, goqueue_store.listen("default") as second:
        threads = [threading.Thread(target=write) for _ in range(4)]
        work: list[Callable[[], None]] = [thread.start for thread in threads] + [thread.join for thread in threads]
        for step in work:
            step()
        assert first.wait(60 * SECOND) == second.wait(60 * SECOND) == {"default"}
    assert goqueue_store.count_jobs() == 200
