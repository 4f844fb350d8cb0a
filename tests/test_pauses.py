"""Paused queues: what claims leave out, when a pause ends, who is woken, and what the figures show."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from goqueue import DatabaseConfig, NewJob, PostgresStorage, QueueStats, Storage
from goqueue.pytest_plugin import DatabaseServer
from tests.commands import Commands
from tests.notices import notices

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
ENDLESS = datetime.max.replace(tzinfo=UTC)


def add(store: Storage, *queues: str, **fields: Any) -> None:
    store.create_jobs([NewJob(job_type="t", queue=queue, **fields) for queue in queues])


def claimed(store: Storage, *queues: str) -> list[str]:
    return sorted(job.queue for job in store.claim_jobs(queues, "w", 100))


def now(connection: psycopg.Connection[Any]) -> datetime:
    [(at,)] = connection.execute("SELECT clock_timestamp()").fetchall()
    assert isinstance(at, datetime)
    return at


def stats(store: Storage) -> dict[str, QueueStats]:
    return {each.queue: each for each in store.queue_stats()}


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_skip_paused_queues_until_they_are_resumed(store: Storage) -> None:
    add(store, "a", "b", "c")
    store.pause_queue("a")
    store.pause_queue("b")
    assert claimed(store, "a", "b") == []
    assert store.complete_and_claim([], "a", "w") == []
    assert claimed(store, "a", "b", "c") == ["c"]
    assert store.resume_queue("a") is True
    assert claimed(store, "a", "b", "c") == ["a"]
    assert store.resume_queue("b") is True
    assert claimed(store, "a", "b", "c") == ["b"]


def test_a_claim_finds_the_queue_again_when_the_time_has_passed(
    store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    add(store, "a")
    store.pause_queue("a", until=now(goqueue_connection) + HOUR)
    assert claimed(store, "a") == []
    store.pause_queue("a", until=now(goqueue_connection) + SECOND / 5)
    time.sleep(0.3)
    assert claimed(store, "a") == ["a"]
    add(store, "a")
    store.pause_queue("a", until=now(goqueue_connection) - HOUR)
    assert claimed(store, "a") == ["a"]
    assert store.resume_queue("a") is False


def test_a_second_pause_replaces_the_time(store: Storage, goqueue_connection: psycopg.Connection[Any]) -> None:
    at = now(goqueue_connection)
    store.pause_queue("a", until=at + HOUR)
    store.pause_queue("a")
    assert stats(store)["a"].paused_until == ENDLESS
    store.pause_queue("a", until=at + MINUTE)
    assert stats(store)["a"].paused_until == at + MINUTE


def test_a_pause_keeps_no_job_from_being_added_changed_or_finished(store: Storage) -> None:
    add(store, "a", "a")
    held, other = store.claim_jobs("a", "w", 2)
    store.pause_queue("a")
    store.heartbeat_jobs([held, other])
    store.complete_jobs([held])
    store.release_jobs([other])
    add(store, "a")
    assert claimed(store, "a") == []
    assert store.cancel_jobs(other.id) == 1
    assert store.retry_jobs(other.id) == 1
    store.resume_queue("a")
    assert claimed(store, "a") == ["a", "a"]


def test_resuming_a_queue_that_is_not_paused_changes_nothing(store: Storage) -> None:
    assert store.resume_queue("a") is False
    store.pause_queue("a")
    assert store.resume_queue("a") is True
    assert store.resume_queue("a") is False


def test_a_claim_that_resumes_after_the_last_one_skips_them_too(
    goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_connection.execute("ALTER TABLE goqueue.jobs SET (autovacuum_enabled = off)")
    config = DatabaseConfig(url=goqueue_database, claim_resume_time=timedelta(days=1))
    queues = ("a", "b")
    with PostgresStorage.open(config) as store:
        add(store, *["a", "b"] * 50)
        # Positions as after a claim of each queue among many dead tuples.
        first = [store.claim_jobs(queue, "w")[0] for queue in queues]
        positions = store._positions[queues] = type(store._positions["a",])(86400)
        positions._has_claimed = positions._is_bloated = True
        positions._count_at = positions._scan_at = time.monotonic() + 3600
        positions._last = {(job.queue, job.priority): (job.scheduled_at, job.id) for job in first}
        assert positions.parameters()["lane_queues"] == ["a", "b"]
        store.pause_queue("a")
        assert {job.queue for job in store.claim_jobs(queues, "w", 20)} == {"b"}
        assert positions.parameters()["lane_queues"] == ["a", "b"]
        store.resume_queue("a")
        assert {job.queue for job in store.claim_jobs(queues, "w", 100)} == {"a", "b"}


def test_a_claim_in_a_transaction_sees_a_pause_by_the_statements_time(
    goqueue_store: PostgresStorage, goqueue_database: str
) -> None:
    add(goqueue_store, "a", "a")
    with psycopg.connect(goqueue_database) as connection:
        bound = goqueue_store.bound_to(connection)
        bound.ping()  # The transaction is older than the end of the pause.
        goqueue_store.pause_queue("a", until=now(connection) + HOUR)
        assert claimed(bound, "a") == []
        goqueue_store.pause_queue("a", until=now(connection) + SECOND / 5)
        time.sleep(0.3)
        assert claimed(bound, "a") == ["a", "a"]


def test_no_claim_waits_for_a_pause_that_is_not_committed(
    goqueue_store: PostgresStorage, goqueue_database: str
) -> None:
    add(goqueue_store, "a", "b")
    with psycopg.connect(goqueue_database) as connection:
        goqueue_store.bound_to(connection).pause_queue("a")
        assert claimed(goqueue_store, "a") == ["a"]
        add(goqueue_store, "a")
        connection.rollback()
        assert claimed(goqueue_store, "a") == ["a"]
        add(goqueue_store, "a")
        goqueue_store.bound_to(connection).pause_queue("a")
        connection.commit()
    assert claimed(goqueue_store, "a", "b") == ["b"]


def test_pauses_at_once_wait_for_each_other(goqueue_store: PostgresStorage) -> None:
    def pause_and_resume(number: int) -> None:
        goqueue_store.pause_queue("a", until=ENDLESS - number * HOUR)
        goqueue_store.resume_queue("a")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(pause_and_resume, range(40)))
    assert stats(goqueue_store) == {}


# --- next_job_at ------------------------------------------------------------------------------------------------------


def test_the_next_job_of_a_paused_queue_waits_for_the_end_of_the_pause(
    store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    at = now(goqueue_connection)
    add(store, "a", scheduled_at=at - MINUTE)
    add(store, "b", scheduled_at=at + 2 * HOUR)
    store.pause_queue("a", until=at + HOUR)
    assert store.next_job_at("a") == at + HOUR
    assert store.next_job_at(["a", "b"]) == at + HOUR
    store.pause_queue("a", until=at + 3 * HOUR)
    assert store.next_job_at(["a", "b"]) == at + 2 * HOUR
    store.pause_queue("b", until=at + HOUR)  # ends before the job is due
    assert store.next_job_at("b") == at + 2 * HOUR
    store.pause_queue("a")
    assert store.next_job_at("a") is None
    assert store.next_job_at(["a", "b"]) == at + 2 * HOUR
    store.resume_queue("a")
    assert store.next_job_at("a") == at - MINUTE


# --- listeners --------------------------------------------------------------------------------------------------------


def test_resuming_wakes_the_listeners_of_the_queue(
    store: Storage, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_connection.execute("LISTEN goqueue")

    def woken() -> list[str]:
        return [note.payload for note in notices(goqueue_connection)]

    store.pause_queue("a")
    store.resume_queue("a")
    assert woken() == []  # nobody holds the listeners' lock
    with goqueue_store.listen(["a", "b"]) as listener:
        store.pause_queue("a")
        assert woken() == []
        store.resume_queue("a")
        assert woken() == ["a"]
        assert listener.wait(MINUTE)
        store.resume_queue("a")
        assert woken() == []


def test_the_wake_up_comes_with_the_commit(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    goqueue_store.pause_queue("a")
    with goqueue_store.listen("a") as listener, psycopg.connect(goqueue_database) as connection:
        assert goqueue_store.bound_to(connection).resume_queue("a")
        assert not listener.wait(SECOND / 5)
        connection.commit()
        assert listener.wait(MINUTE)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_statistics_name_the_end_of_a_pause_even_without_jobs(
    store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    at = now(goqueue_connection)
    add(store, "a", "b")
    store.pause_queue("a", until=at + HOUR)
    store.pause_queue("empty")
    store.pause_queue("over", until=at - HOUR)
    found = stats(store)
    assert {queue: each.paused_until for queue, each in found.items()} == {"a": at + HOUR, "b": None, "empty": ENDLESS}
    assert {int(count) for count in found["empty"].counts.values()} == {0}
    assert all(count.exact for count in found["empty"].counts.values())
    assert found["empty"].oldest_ready_age is None
    assert found["a"].oldest_ready_age is not None
    views = goqueue_connection.execute(
        "SELECT queue, paused_until = 'infinity', paused_until FROM goqueue.queue_metrics "
        "WHERE paused_until IS DISTINCT FROM 'infinity' ORDER BY queue"
    ).fetchall()
    assert [(queue, until) for queue, _, until in views] == [("a", at + HOUR), ("b", None)]
    endless = goqueue_connection.execute(
        "SELECT queue, ready_jobs FROM goqueue.queue_metrics WHERE paused_until = 'infinity'"
    ).fetchall()
    assert endless == [("empty", 0)]


def test_who_paused_a_queue_and_when_is_stored(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    before = now(goqueue_connection)
    goqueue_store.pause_queue("a")
    select = "SELECT paused_by = current_user, paused_at FROM goqueue.paused_queues"
    [(is_mine, first)] = goqueue_connection.execute(select).fetchall()
    assert is_mine
    assert before <= first <= now(goqueue_connection)
    goqueue_store.pause_queue("a")
    [(_, second)] = goqueue_connection.execute(select).fetchall()
    assert second > first


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_the_table_rejects_a_name_that_a_queue_cannot_have(
    goqueue_connection: psycopg.Connection[Any], name: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        goqueue_connection.execute("INSERT INTO goqueue.paused_queues (queue) VALUES (%s)", [name])


# --- roles and releases -----------------------------------------------------------------------------------------------


def test_claims_of_a_role_continue_between_the_migration_and_the_roles_script(
    goqueue_server: DatabaseServer, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
) -> None:
    """Default privileges of roles.sql give a worker nothing on the new table."""
    role = f"worker_of_pauses_{time.monotonic_ns()}"
    name = sql.Identifier(role)
    try:
        goqueue_connection.execute(
            sql.SQL(
                "CREATE ROLE {} LOGIN; GRANT USAGE ON SCHEMA goqueue TO {}; "
                "GRANT SELECT, UPDATE, INSERT ON goqueue.jobs TO {}"
            ).format(name, name, name)
        )
        with psycopg.connect(goqueue_database, autocommit=True) as connection:
            connection.execute(sql.SQL("SET ROLE {}").format(name))
            store = PostgresStorage.bound_to(connection)
            add(store, "a")
            assert claimed(store, "a") == ["a"]
    finally:
        goqueue_connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(name, name))


def test_the_statements_of_the_release_before_still_run(goqueue_connection: psycopg.Connection[Any]) -> None:
    """An older client claims from paused queues too: it knows of no pause."""
    goqueue_connection.execute("INSERT INTO goqueue.paused_queues (queue) VALUES ('a')")
    goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type, queue) VALUES ('t', 'a')")
    older: dict[str, Callable[[list[Any]], object]] = {
        "SELECT min(l.scheduled_at) FROM goqueue.pending_lanes('{a}') AS l": lambda rows: rows[0][0],
        "SELECT queue, max(jobs) FROM goqueue.queue_status_metrics GROUP BY queue": lambda rows: rows == [("a", 1)],
        "SELECT queue, ready_jobs, expired_leases FROM goqueue.queue_metrics": lambda rows: rows == [("a", 1, 0)],
    }
    for statement, holds in older.items():
        assert holds(goqueue_connection.execute(statement.encode()).fetchall()), statement


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_pauses_and_resumes(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, "mail")
    assert goqueue("queues", "pause", "mail") == (0, "mail is paused until resumed\n", "")
    assert claimed(goqueue_store, "mail") == []
    assert "paused=endless" in goqueue("stats").out
    assert goqueue("queues", "resume", "mail") == (0, "mail is resumed\n", "")
    assert goqueue("queues", "resume", "mail") == (0, "mail was not paused\n", "")
    assert "paused=" not in goqueue("stats").out
    assert claimed(goqueue_store, "mail") == ["mail"]


def test_the_command_accepts_an_end_or_a_length(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    assert goqueue("queues", "pause", "mail", "--until", "2200-01-31T08:00Z").out == (
        "mail is paused until 2200-01-31T08:00:00Z\n"
    )
    assert stats(goqueue_store)["mail"].paused_until == datetime(2200, 1, 31, 8, tzinfo=UTC)
    assert "paused=2200-01-31T08:00:00Z" in goqueue("stats").out
    answer = goqueue("queues", "pause", "mail", "--for", "2h", "--json").json
    until = stats(goqueue_store)["mail"].paused_until
    assert until is not None
    assert datetime.fromisoformat(answer["paused_until"]) == until
    assert abs(until - datetime.now(UTC) - 2 * HOUR) < 10 * MINUTE
    both = goqueue("queues", "pause", "mail", "--for", "2h", "--until", "2200-01-31T08:00Z")
    assert both.code == 2
    assert "either --until or --for" in both.err
    assert goqueue("queues", "resume", "mail", "--json").json == {"queue": "mail", "was_paused": True}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--until 0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z has passed, by this machine's clock"),
        ("--until 2020-01-01T00:00+02:00", "2019-12-31T22:00:00Z has passed"),
        ("--until 0001-01-01T00:00+10:00", "beyond the years 1 to 9999"),
        ("--for 0s", "has passed"),
        ("--for 9999999d", "is too long: at most 365000d"),
        ("--for 365001d", "is too long: at most 365000d"),
    ],
)
def test_the_command_rejects_a_pause_that_is_over_or_too_long(
    words: str, expected: str, goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    goqueue_store.pause_queue("mail")
    result = goqueue("queues", "pause", "mail", *words.split())
    assert (result.code, result.out) == (2, "")
    said = " ".join(result.err.replace("│", " ").split())
    assert expected in said
    assert "timedelta" not in said
    assert stats(goqueue_store)["mail"].paused_until == ENDLESS


def test_a_pause_whose_time_has_passed_pauses_nothing(goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, "mail")
    goqueue_store.pause_queue("mail")
    goqueue_store.pause_queue("mail", until=datetime(1, 1, 1, tzinfo=UTC))
    assert claimed(goqueue_store, "mail") == ["mail"]


def test_the_figures_for_programs_include_the_pause(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, "a")
    goqueue_store.pause_queue("b")
    queues = {each["queue"]: each for each in goqueue("stats", "--json").json["queues"]}
    assert queues["a"]["paused_until"] is None
    assert queues["b"]["paused_until"] == "9999-12-31T23:59:59.999999Z"
    assert queues["b"]["estimated"] == []
    lines = goqueue("stats", "--prometheus").out.splitlines()
    paused = [line for line in lines if line.startswith("goqueue_paused{")]
    assert [line.rpartition("queue=")[2] for line in paused] == ['"a"} 0', '"b"} 1']


def test_a_table_shows_a_column_only_while_a_queue_is_paused(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, "a")
    with goqueue.terminal("stats", columns=140) as terminal:
        code, text = terminal.end()
    assert (code, "Paused" in text) == (0, False)
    goqueue_store.pause_queue("a")
    with goqueue.terminal("stats", columns=140) as terminal:
        _, text = terminal.end()
    assert "Paused" in text
    assert "endless" in text
