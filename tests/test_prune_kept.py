"""Jobs that other tables refer to: pruning skips and names them, deleting one names the table."""

import logging
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from goqueue import JobStateError, JobStatus, NewJob, PostgresStorage, Pruned, Storage
from tests.commands import Commands

ZERO, HOUR = timedelta(0), timedelta(hours=1)
RULES = ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED", "DEFERRABLE INITIALLY IMMEDIATE"]


@pytest.fixture
def orders(goqueue_connection: psycopg.Connection[Any], request: pytest.FixtureRequest) -> psycopg.Connection[Any]:
    rule = getattr(request, "param", "")
    goqueue_connection.execute(
        f"CREATE TABLE orders (number serial, job_id uuid CONSTRAINT orders_job REFERENCES goqueue.jobs {rule}); "  # type: ignore[arg-type]
        "CREATE INDEX ON orders (job_id)"
    )
    return goqueue_connection


def finished(store: Storage, count: int) -> list[UUID]:
    ids = [job_id for job_id, _ in store.create_jobs(NewJob(job_type="t") for _ in range(count))]
    store.cancel_jobs(ids)
    return ids


def refer(connection: psycopg.Connection[Any], ids: list[UUID]) -> None:
    connection.execute("INSERT INTO orders (job_id) SELECT unnest(%s::uuid[])", [ids])


def left(connection: psycopg.Connection[Any]) -> set[UUID]:
    return {job_id for (job_id,) in connection.execute("SELECT id FROM goqueue.jobs")}


@pytest.mark.parametrize("orders", RULES, indirect=True)
def test_a_job_that_is_referred_to_is_kept_and_the_others_are_pruned(
    store: Storage, orders: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    ids = finished(store, 20)
    refer(orders, [ids[0], ids[7]])
    with caplog.at_level(logging.WARNING, logger="goqueue"):
        pruned = store.prune_jobs(ZERO)
    assert (pruned, set(pruned.kept)) == (18, {ids[0], ids[7]})
    assert all("orders" in reason for reason in pruned.kept.values())
    assert left(orders) == {ids[0], ids[7]}
    [record] = [record for record in caplog.records if record.name == "goqueue"]
    assert "orders" in record.getMessage()
    assert str(record.__dict__["job_id"]) in record.getMessage()
    orders.execute("DELETE FROM orders")
    assert store.prune_jobs(ZERO) == 2
    assert store.prune_jobs(ZERO) == 0


def test_a_warning_tells_that_too_many_jobs_are_kept_to_prune_the_others(
    goqueue_store: PostgresStorage,
    orders: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("goqueue.postgres.store._MOST_KEPT", 5)
    ids = finished(goqueue_store, 9)
    refer(orders, ids[:7])
    text = "prune_jobs has found 7 jobs that can't be deleted, and stops"
    assert goqueue_store.prune_jobs(ZERO, limit=7) == 0
    assert text in caplog.text
    caplog.clear()
    orders.execute("DELETE FROM orders")
    assert goqueue_store.prune_jobs(ZERO, limit=7) == 7
    assert text not in caplog.text


@pytest.mark.parametrize("rule", ["ON DELETE CASCADE", "ON DELETE SET NULL"])
def test_a_cascading_foreign_key_keeps_nothing(
    rule: str, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_connection.execute(f"CREATE TABLE orders (job_id uuid REFERENCES goqueue.jobs {rule})")  # type: ignore[arg-type]
    refer(goqueue_connection, finished(goqueue_store, 3))
    pruned = goqueue_store.prune_jobs(ZERO)
    assert (pruned, pruned.kept) == (3, {})


def test_a_loop_of_calls_ends_with_more_kept_jobs_than_a_batch(
    goqueue_store: PostgresStorage, orders: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 300)
    kept = ids[:120] + ids[150:170]
    refer(orders, kept)
    counts = []
    while (count := goqueue_store.prune_jobs(ZERO, limit=50)) == 50:
        counts.append(int(count))
    assert [*counts, count] == [50, 50, 50, 10]
    assert set(count.kept) == left(orders) == set(kept)
    assert goqueue_store.prune_jobs(ZERO, limit=50) == 0


def test_later_calls_skip_a_kept_job(
    goqueue_store: PostgresStorage, orders: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    refer(orders, finished(goqueue_store, 100)[:40])
    caplog.set_level(logging.DEBUG, logger="goqueue.sql")

    def queries() -> list[str]:
        names = [record.__dict__["query"] for record in caplog.records if record.name == "goqueue.sql"]
        caplog.clear()
        return names

    assert goqueue_store.prune_jobs(ZERO, limit=10) == 10
    # The first forty are kept: four batches delete none, the fifth deletes all.
    assert queries().count("prune_jobs") == 5
    for _ in range(5):
        assert goqueue_store.prune_jobs(ZERO, limit=10) == 10
    assert queries().count("prune_jobs") == 5
    assert goqueue_store.prune_jobs(ZERO, limit=10) == 0, "all that are left are kept, and the round is over"


def test_a_call_with_another_filter_names_and_skips_none_of_the_kept_jobs(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], orders: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 3)
    refer(goqueue_connection, ids[:1])
    first = goqueue_store.prune_jobs(timedelta(0), limit=1, queues="default")
    assert (first, set(first.kept)) == (1, {ids[0]})
    other = goqueue_store.prune_jobs(timedelta(0), queues="another")
    assert (other, other.kept) == (0, {})
    again = goqueue_store.prune_jobs(timedelta(0), limit=1, queues="default")
    assert (again, set(again.kept)) == (1, {ids[0]})
    goqueue_connection.execute("DELETE FROM orders")
    every = goqueue_store.prune_jobs(timedelta(0))
    assert (every, every.kept) == (1, {})


def test_the_failures_of_a_kept_job_are_kept_with_it(
    goqueue_store: PostgresStorage, orders: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", max_attempts=1) for _ in range(2))
    first, second = goqueue_store.claim_jobs("default", "w", limit=2)
    goqueue_store.fail_jobs([(first, "boom"), (second, "boom")])
    refer(orders, [first.id])
    assert goqueue_store.prune_jobs(ZERO) == 1
    assert len(goqueue_store.list_failures(first.id)) == 1
    assert goqueue_store.list_failures(second.id) == []


def test_a_trigger_on_failures_keeps_a_job_too(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t", max_attempts=1) for _ in range(2))
    first, second = goqueue_store.claim_jobs("default", "w", limit=2)
    goqueue_store.fail_jobs([(first, "boom"), (second, "bang")])
    goqueue_connection.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'legal hold'; END $$;"
        "CREATE TRIGGER no BEFORE DELETE ON goqueue.job_failures FOR EACH ROW WHEN (OLD.error = 'boom') "
        "EXECUTE FUNCTION no()"
    )
    pruned = goqueue_store.prune_jobs(ZERO)
    assert (pruned, pruned.kept) == (1, {first.id: "legal hold"})


def test_without_foreign_keys_and_triggers_no_multixact_keeps_dead_index_entries_until_vacuum(
    goqueue_store: PostgresStorage, goqueue_database: str
) -> None:
    finished(goqueue_store, 3)
    deleted_by = "SELECT DISTINCT j.xmax::text FROM goqueue.jobs AS j"
    with psycopg.connect(goqueue_database) as before, psycopg.connect(goqueue_database) as connection:
        before.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        before.execute("SELECT")  # its snapshot shows the deleted rows
        [own] = connection.execute("SELECT pg_current_xact_id()::text").fetchall()
        assert PostgresStorage.bound_to(connection).prune_jobs(ZERO) == 3
        connection.commit()
        assert before.execute(deleted_by).fetchall() == [own]


@pytest.mark.parametrize("orders", ["DEFERRABLE INITIALLY DEFERRED"], indirect=True)
@pytest.mark.parametrize(("array", "count"), [("{}", 0), (None, 0), ("[5:6]={A,B}", 2), ("{{A,B},{C,D}}", 4)])
def test_the_function_ends_for_any_array_although_the_transaction_violates_a_foreign_key(
    orders: psycopg.Connection[Any], array: str | None, count: int
) -> None:
    ids = array and re.sub("[A-D]", lambda letter: str(UUID(int=int(letter[0], 16))), array)
    with orders.transaction(force_rollback=True):
        orders.execute("SET LOCAL statement_timeout = '5s'")
        orders.execute("INSERT INTO orders (job_id) VALUES (gen_random_uuid())")
        rows = orders.execute("SELECT * FROM goqueue.delete_unreferenced_jobs(%s::uuid[])", [ids]).fetchall()
    assert len(rows) == count
    assert all("orders" in refusal for _, refusal in rows)


@pytest.mark.parametrize("orders", RULES, indirect=True)
def test_the_callers_transaction_continues(
    goqueue_store: PostgresStorage, goqueue_database: str, orders: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 5)
    refer(orders, ids[:1])
    with psycopg.connect(goqueue_database) as connection:
        connection.execute("INSERT INTO orders DEFAULT VALUES")
        pruned = PostgresStorage.bound_to(connection).prune_jobs(ZERO)
        assert (pruned, list(pruned.kept)) == (4, ids[:1])
    assert left(orders) == set(ids[:1])
    assert orders.execute("SELECT count(*) FROM orders").fetchone() == (2,)


def test_a_trigger_that_forbids_it_keeps_a_job_too(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 9)
    goqueue_connection.execute(
        f"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.id = '{ids[4]}' THEN "  # type: ignore[arg-type]
        "RAISE 'legal hold'; END IF; RETURN OLD; END $$;"
        "CREATE TRIGGER no BEFORE DELETE ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION no()"
    )
    pruned = goqueue_store.prune_jobs(ZERO)
    assert (pruned, pruned.kept) == (8, {ids[4]: "legal hold"})


def test_a_trigger_that_suppresses_it_keeps_a_job_too(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 20)
    goqueue_connection.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        f"CREATE TRIGGER keep BEFORE DELETE ON goqueue.jobs FOR EACH ROW WHEN (OLD.id = '{ids[0]}') "  # type: ignore[arg-type]
        "EXECUTE FUNCTION keep()"
    )
    pruned = goqueue_store.prune_jobs(ZERO, limit=5)  # the suppressed job is the oldest one of the first batch
    assert (pruned, pruned.kept) == (5, {ids[0]: "a trigger has suppressed the deletion"})
    assert goqueue_store.prune_jobs(ZERO) == 14
    assert left(goqueue_connection) == {ids[0]}


@pytest.mark.parametrize("orders", RULES[:3], indirect=True)
def test_deleting_a_job_that_is_referred_to_names_the_table(
    goqueue_store: PostgresStorage, orders: psycopg.Connection[Any]
) -> None:
    [job_id] = finished(goqueue_store, 1)
    refer(orders, [job_id])
    with pytest.raises(JobStateError, match=r'refers to the job.*table "orders"'):
        goqueue_store.delete_job(job_id)
    assert goqueue_store.get_job(job_id).status is JobStatus.CANCELLED


@pytest.mark.parametrize("orders", RULES[:3], indirect=True)
def test_one_job_that_is_referred_to_prevents_the_deletion_of_its_batch(
    store: Storage, orders: psycopg.Connection[Any]
) -> None:
    ids = sorted(finished(store, 1002))
    refer(orders, ids[1001:])
    with pytest.raises(JobStateError, match=r'refers to the job.*table "orders"'):
        store.delete_jobs(ids)
    assert left(orders) == set(ids[1000:])
    orders.execute("DELETE FROM orders")
    assert store.delete_jobs(ids) == 2


def test_a_job_whose_deletion_a_trigger_suppresses_is_not_counted_and_keeps_its_failures(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="t") for _ in range(2))
    first, second = goqueue_store.claim_jobs("default", "w", limit=2)
    goqueue_store.fail_jobs([(first, "boom"), (second, "boom")])
    goqueue_connection.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        f"CREATE TRIGGER keep BEFORE DELETE ON goqueue.jobs FOR EACH ROW WHEN (OLD.id = '{first.id}') "  # type: ignore[arg-type]
        "EXECUTE FUNCTION keep()"
    )
    assert goqueue_store.delete_jobs([first.id, second.id]) == 1
    assert [len(goqueue_store.list_failures(job.id)) for job in (first, second)] == [1, 0]


def test_the_command_names_the_kept_jobs(
    goqueue: Commands, goqueue_store: PostgresStorage, orders: psycopg.Connection[Any]
) -> None:
    ids = finished(goqueue_store, 6)
    refer(orders, ids[1:2])
    result = goqueue("jobs", "prune", "--older-than", "0s", "--batch", "2")
    assert result.out == "5 jobs deleted\n"
    assert str(ids[1]) in result.err
    assert "orders" in result.err


def test_the_result_of_prune_is_a_number() -> None:
    import pickle

    job_id = uuid4()
    pruned = pickle.loads(pickle.dumps(Pruned(3, {job_id: "why"})))
    assert (pruned, pruned.kept, pruned + 1) == (3, {job_id: "why"}, 4)


@pytest.fixture(autouse=True)
def _not_long() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 120
