"""Manual changes of the table: no value in a row blocks claims of others, and no stale holder gets a job."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from goqueue import (
    InvalidJobError,
    Job,
    JobStatus,
    JobUpdate,
    Lease,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    Storage,
)
from goqueue.migrate import migrate, undo

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
LAST_TOKEN = 2**62 - 1
BY_HAND = "UPDATE goqueue.jobs SET status = 'running', locked_by = 'dba', locked_at = now(), completed_at = NULL"
PENDING = "UPDATE goqueue.jobs SET status = 'pending', locked_by = NULL, locked_at = NULL, lease_expires_at = NULL"


def claimed(store: Storage) -> Job:
    store.create_job(NewJob(job_type="t"))
    [job] = store.claim_jobs("default", "w")
    return job


def is_lost(store: Storage, lease: Job) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.complete_jobs([lease]),
        lambda: store.heartbeat_jobs([lease]),
        lambda: store.fail_jobs([(lease, "x")]),
        lambda: store.release_jobs([lease]),
        lambda: store.complete_and_claim([lease], "elsewhere", "w"),
    ]
    for call in calls:
        with pytest.raises(LeaseLostError):
            call()


class TestAJobSetRunningByHand:
    @pytest.mark.parametrize(
        "end",
        [
            lambda store, job: store.release_jobs([job]),
            lambda store, job: store.cancel_jobs(job.id),
            lambda store, job: store.fail_job(job, "x"),
            lambda store, job: store.complete_job(job),
        ],
        ids=["released", "cancelled", "failed", "completed"],
    )
    def test_a_job_set_running_manually_is_lost_to_its_old_holder(
        self, end: Callable[[Storage, Job], Any], store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        job = claimed(store)
        end(store, job)
        goqueue_connection.execute(BY_HAND)
        is_lost(store, job)
        now = store.get_job(job.id)
        assert (now.status, now.locked_by, now.lease_token) == (JobStatus.RUNNING, "dba", job.lease_token + 1)
        store.complete_job(now)

    def test_a_running_job_set_running_manually_is_lost_to_its_old_holder(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        job = claimed(store)
        goqueue_connection.execute(BY_HAND)
        is_lost(store, job)

    def test_a_job_set_pending_and_running_manually_is_lost_to_its_old_holder(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        job = claimed(store)
        goqueue_connection.execute(PENDING)
        goqueue_connection.execute(BY_HAND)
        is_lost(store, job)

    def test_a_job_set_running_by_update_job_is_lost_to_its_old_holder(self, store: Storage) -> None:
        job = claimed(store)
        given = store.update_job(job.id, JobUpdate(locked_by="somebody else"))
        assert given.lease_token == job.lease_token + 1
        is_lost(store, job)
        same = store.update_job(job.id, JobUpdate(locked_by="somebody else", priority=4))
        assert same.lease_token == given.lease_token, "the holder is the same"
        store.complete_job(given)

    def test_a_job_that_already_has_a_new_token_keeps_it(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        job = claimed(store)
        store.release_jobs([job])
        goqueue_connection.execute(f"{BY_HAND}, lease_token = lease_token + 1")  # type: ignore[arg-type]
        assert store.get_job(job.id).lease_token == job.lease_token + 1

    def test_a_job_changed_in_another_way_keeps_its_token(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        job = claimed(store)
        goqueue_connection.execute("UPDATE goqueue.jobs SET scheduled_at = now(), priority = 7, queue = 'q'")
        goqueue_connection.execute("UPDATE goqueue.jobs SET lease_expires_at = 'infinity', locked_at = now()")
        store.heartbeat_jobs([job])
        store.complete_job(job)


def test_a_token_decreased_manually_admits_no_old_holder(
    store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    first = claimed(store)
    store.release_jobs([first])
    [second] = store.claim_jobs("default", "w")
    store.release_jobs([second])
    goqueue_connection.execute("UPDATE goqueue.jobs SET lease_token = 0")
    [third] = store.claim_jobs("default", "w")
    assert third.lease_token > second.lease_token
    is_lost(store, first)
    is_lost(store, second)
    store.complete_job(third)


class TestTheLastToken:
    @pytest.mark.parametrize("token", [2**63 - 1, 2**62, -1])
    def test_no_token_beyond_the_last_can_be_set(self, token: int, goqueue_connection: psycopg.Connection[Any]) -> None:
        goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
        with pytest.raises(psycopg.errors.CheckViolation, match="jobs_lease_token_range"):
            goqueue_connection.execute("UPDATE goqueue.jobs SET lease_token = %s", [token])
        with pytest.raises(psycopg.errors.CheckViolation, match="jobs_lease_token_range"):
            goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type, lease_token) VALUES ('t', %s)", [token])

    def test_the_last_token_is_followed_by_the_first_and_no_claim_fails(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        store.create_jobs(NewJob(job_type="t") for _ in range(3))
        goqueue_connection.execute(
            "UPDATE goqueue.jobs SET lease_token = %s WHERE id = (SELECT min(id::text)::uuid FROM goqueue.jobs)",
            [LAST_TOKEN],
        )
        jobs = store.claim_jobs("default", "w", limit=3)
        assert [job.lease_token for job in jobs] == [1, 1, 1]
        with pytest.raises(LeaseLostError):
            store.complete_job(Lease(jobs[0].id, LAST_TOKEN))
        store.complete_jobs(jobs)

    def test_the_last_token_of_a_job_set_running_is_followed_by_the_first(
        self, store: Storage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        for by_hand in (True, False):
            job = store.create_job(NewJob(job_type="t"))
            goqueue_connection.execute("UPDATE goqueue.jobs SET lease_token = %s WHERE id = %s", [LAST_TOKEN, job.id])
            if by_hand:
                goqueue_connection.execute(f"{BY_HAND} WHERE id = %s", [job.id])  # type: ignore[arg-type]
            else:
                store.update_job(job.id, JobUpdate(status="running"))
            assert store.get_job(job.id).lease_token == 1

    @pytest.mark.parametrize("token", [2**63 - 1, -5])
    def test_the_migration_corrects_a_token_beyond_the_last(
        self,
        token: int,
        goqueue_database: str,
        goqueue_schema: str,
        goqueue_connection: psycopg.Connection[Any],
    ) -> None:
        undo(goqueue_database, to=9, schema=goqueue_schema)
        goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t'), ('t')")
        goqueue_connection.execute("UPDATE goqueue.jobs SET lease_token = %s", [token])
        goqueue_connection.execute(BY_HAND + " WHERE ctid = (SELECT min(ctid) FROM goqueue.jobs)")  # type: ignore[arg-type]
        migrate(goqueue_database, target=10, schema=goqueue_schema)
        migrate(goqueue_database, schema=goqueue_schema)
        assert goqueue_connection.execute(
            "SELECT convalidated FROM pg_constraint WHERE conname = 'jobs_lease_token_range'"
        ).fetchone() == (True,)
        with PostgresStorage.open(goqueue_database) as store:
            [job] = store.claim_jobs("default", "w", limit=2)
            store.complete_job(job)
            [held] = (
                store.list_jobs().jobs[:1] if store.list_jobs().jobs[0].id != job.id else store.list_jobs().jobs[1:]
            )
            store.complete_job(held)

    def test_an_update_cannot_exceed_the_last_token_and_the_error_explains_it(
        self, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        with PostgresStorage.open(goqueue_database) as store, psycopg.connect(goqueue_database) as connection:
            store.create_job(NewJob(job_type="t"))
            goqueue_connection.execute(
                "CREATE FUNCTION far() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.lease_token := 9223372036854775807; RETURN NEW; END $$;"
                "CREATE TRIGGER far BEFORE UPDATE ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION far()"
            )
            with pytest.raises(InvalidJobError, match="lease_token must be from 0 to 4,611"):
                PostgresStorage.bound_to(connection).claim_jobs("default", "w")


@pytest.mark.parametrize("column", ["scheduled_at", "created_at", "updated_at", "started_at"])
def test_an_infinite_time_keeps_no_other_job_from_being_claimed(
    column: str, store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    for queue in ["infinity", "-infinity", "294276-12-31 23:59:59+00", "4713-01-01 00:00:00+00 BC"]:
        odd = store.create_job(NewJob(job_type="odd", queue=queue, priority=-5))
        store.create_job(NewJob(job_type="t", queue=queue))
        goqueue_connection.execute(f"UPDATE goqueue.jobs SET {column} = queue::timestamptz WHERE id = %s", [odd.id])  # type: ignore[arg-type]
        jobs = store.claim_jobs(queue, "w", limit=10)
        assert "t" in {job.job_type for job in jobs}
        store.heartbeat_jobs(jobs)
        assert store.fail_jobs([(job, "x") for job in jobs], retry_in=timedelta(0)) == {
            job.id: JobStatus.PENDING for job in jobs
        }
        assert len(store.claim_jobs(queue, "w", limit=10)) == len(jobs)
        store.queue_stats()
        store.next_job_at(queue)
        store.list_jobs()
        store.cancel_jobs(odd.id)
        store.retry_jobs(odd.id)
        store.cancel_jobs(odd.id)
        store.prune_jobs(timedelta(0))


@pytest.mark.parametrize(("time_", "rescued"), [("infinity", 0), ("-infinity", 1), ("294276-12-31", 0)])
def test_a_lease_until_the_latest_time_is_readable(
    time_: str, rescued: int, store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    job = claimed(store)
    goqueue_connection.execute("UPDATE goqueue.jobs SET lease_expires_at = %s", [time_])
    assert store.get_job(job.id).status is JobStatus.RUNNING
    assert len(store.rescue_jobs()) == rescued
    if not rescued:
        store.heartbeat_jobs([job])
        store.complete_job(job)


class TestManyUnreadableJobs:
    def test_one_claim_ends_in_time_and_the_next_ones_continue(
        self, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        count = 3000
        goqueue_connection.execute(
            "INSERT INTO goqueue.jobs (job_type, payload, scheduled_at) "
            "SELECT 'bad', '1e5000', now() - interval '1 hour' FROM generate_series(1, %s)",
            [count],
        )
        good = goqueue_store.create_job(NewJob(job_type="good"))
        start = time.monotonic()
        jobs = goqueue_store.claim_jobs("default", "w")
        assert time.monotonic() - start < 20
        dead = goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs WHERE status = 'dead'").fetchone()
        assert dead is not None
        assert dead[0] > 0
        calls = 1
        while not jobs:
            jobs = goqueue_store.claim_jobs("default", "w", limit=500)
            calls += 1
            assert calls < 200
        assert [job.id for job in jobs] == [good.id]
        left = goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs WHERE status = 'dead'").fetchone()
        assert left == (count,)

    def test_a_claim_that_ends_early_wakes_those_who_listen(
        self,
        goqueue_store: PostgresStorage,
        goqueue_connection: psycopg.Connection[Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("goqueue.postgres.store._SET_ASIDE_SECONDS", 0.0)
        goqueue_connection.execute(
            "INSERT INTO goqueue.jobs (job_type, payload) SELECT 'bad', '1e5000' FROM generate_series(1, 3)"
        )
        with goqueue_store.listen("default") as listener:
            for _ in range(3):
                assert goqueue_store.claim_jobs("default", "w") == []
                assert listener.wait(60 * SECOND) == {"default"}
            assert goqueue_store.claim_jobs("default", "w") == []
            assert listener.wait(SECOND / 5) == frozenset()


@pytest.mark.parametrize("is_released", [False, True], ids=["running", "released"])
def test_a_job_that_is_set_completed_by_hand_is_completed_for_its_last_holder_alone(
    is_released: bool, store: Storage, goqueue_connection: psycopg.Connection[Any]
) -> None:
    first = claimed(store)
    store.release_jobs([first])
    [last] = store.claim_jobs("default", "w")
    if is_released:
        store.release_jobs([last])
    goqueue_connection.execute(PENDING.replace("'pending'", "'completed', completed_at = now()"))  # type: ignore[arg-type]
    before = store.get_job(last.id)
    store.complete_job(last)
    assert store.get_job(last.id) == before
    is_lost(store, first)
