"""The guards of the statements: each test fails without the lock, status check, transaction or clock that it names.
``make mutants`` removes them one at a time."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import psycopg
import pytest

from goqueue import (
    DatabaseConfig,
    Job,
    JobFilter,
    JobStatus,
    JobUpdate,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    StorageError,
)
from tests.mutants import MUTANTS, ROOT, located
from tests.test_postgres import until_waiting

MINUTE = timedelta(minutes=1)
ZERO = timedelta(0)


@pytest.fixture
def goqueue_store(goqueue_database: str, goqueue_schema: str) -> Iterator[PostgresStorage]:
    """The plugin's store, which waits longer for a lock: on a stalled machine, a test is late to end the other side."""
    config = DatabaseConfig(url=goqueue_database, schema=goqueue_schema, lock_timeout=timedelta(minutes=1))
    with PostgresStorage.open(config) as store:
        yield store


@pytest.fixture
def open_transaction(goqueue_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session's transaction, which the test commits."""
    with psycopg.connect(goqueue_database) as connection:
        yield connection


@pytest.fixture
def theirs(open_transaction: psycopg.Connection[Any]) -> PostgresStorage:
    """A store inside that transaction."""
    return PostgresStorage.bound_to(open_transaction)


def added(store: PostgresStorage, count: int = 1, **fields: Any) -> list[Job]:
    ids = [job_id for job_id, _ in store.create_jobs([NewJob(job_type="t", **fields) for _ in range(count)])]
    return store.get_jobs(ids)


def dead(store: PostgresStorage, count: int = 1) -> list[Job]:
    jobs = added(store, count)
    return [store.update_job(job.id, JobUpdate(status=JobStatus.DEAD)) for job in jobs]


def claimed(store: PostgresStorage, count: int = 1) -> list[Job]:
    added(store, count)
    jobs = store.claim_jobs("default", "w", limit=count)
    assert len(jobs) == count
    return jobs


class TestRowLocks:
    """A statement that waited for a row acts on the row as the other transaction left it."""

    def after_waiting(self, url: str, other: psycopg.Connection[Any], query: str, call: Callable[[], Any]) -> Any:
        """Return the result of a call that waits, in ``query``, until the other transaction commits."""
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(call)
            until_waiting(url, query)
            other.commit()
            return waiting.result(60)

    def test_an_update_does_not_revive_a_job_that_was_cancelled_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = added(goqueue_store)
        assert theirs.cancel_jobs(job.id) == 1
        after = self.after_waiting(
            goqueue_database,
            open_transaction,
            "update_job",
            lambda: goqueue_store.update_job(job.id, JobUpdate(priority=7)),
        )
        assert (after.status, after.priority) == (JobStatus.CANCELLED, 7)

    def test_an_update_is_checked_against_the_jobs_status_after_the_lock(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = dead(goqueue_store)
        assert theirs.retry_jobs(job.id) == 1
        after = self.after_waiting(
            goqueue_database,
            open_transaction,
            "update_job",
            lambda: goqueue_store.update_job(job.id, JobUpdate(status=JobStatus.CANCELLED)),
        )
        assert after.status == JobStatus.CANCELLED

    def test_an_operator_does_not_cancel_a_job_that_was_completed_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = claimed(goqueue_store)
        theirs.complete_job(job)
        count = self.after_waiting(
            goqueue_database, open_transaction, "cancel_jobs", lambda: goqueue_store.cancel_jobs(job.id)
        )
        assert (count, goqueue_store.get_job(job.id).status) == (0, JobStatus.COMPLETED)

    def test_an_operator_does_not_retry_a_job_that_runs_again_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = dead(goqueue_store)
        assert theirs.retry_jobs(job.id) == 1
        [again] = theirs.claim_jobs("default", "w")
        count = self.after_waiting(
            goqueue_database, open_transaction, "retry_jobs", lambda: goqueue_store.retry_jobs(job.id)
        )
        assert (count, goqueue_store.get_job(job.id)) == (0, again)

    def test_an_operator_retries_a_running_job_that_is_cancelled_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = claimed(goqueue_store)
        assert theirs.cancel_jobs(job.id) == 1
        count = self.after_waiting(
            goqueue_database, open_transaction, "retry_jobs", lambda: goqueue_store.retry_jobs(job.id)
        )
        assert (count, goqueue_store.get_job(job.id).status) == (1, JobStatus.PENDING)

    def test_an_operator_does_not_reschedule_a_job_that_was_claimed_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        added(goqueue_store)
        [job] = theirs.claim_jobs("default", "w")
        count = self.after_waiting(
            goqueue_database,
            open_transaction,
            "reschedule_jobs",
            lambda: goqueue_store.reschedule_jobs(job.id, delay=MINUTE),
        )
        assert (count, goqueue_store.get_job(job.id)) == (0, job)

    def test_an_operator_does_not_take_the_last_attempt_of_a_job_that_failed_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [job] = claimed(goqueue_store)
        theirs.fail_job(job, "no")
        count = self.after_waiting(
            goqueue_database,
            open_transaction,
            "change_jobs",
            lambda: goqueue_store.change_jobs(job.id, max_attempts=1),
        )
        after = goqueue_store.get_job(job.id)
        assert (count, after.status, after.attempts, after.max_attempts) == (0, JobStatus.PENDING, 1, 25)

    def test_an_operator_does_not_delete_a_job_whose_status_has_left_the_filter_meanwhile(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        retried, _ = dead(goqueue_store, 2)
        assert theirs.retry_jobs(retried.id) == 1
        count = self.after_waiting(
            goqueue_database,
            open_transaction,
            "delete_jobs",
            lambda: goqueue_store.delete_jobs(JobFilter(status="dead")),
        )
        assert (count, goqueue_store.count_jobs()) == (1, 1)
        assert goqueue_store.get_job(retried.id).status == JobStatus.PENDING

    @pytest.mark.parametrize("call", ["heartbeat_jobs", "complete_jobs", "release_jobs", "fail_job"])
    def test_a_holder_loses_a_job_that_was_cancelled_meanwhile(
        self, call: str, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: Any
    ) -> None:
        [job] = claimed(goqueue_store)
        assert theirs.cancel_jobs(job.id) == 1
        settle = {
            "heartbeat_jobs": lambda: goqueue_store.heartbeat_jobs([job]),
            "complete_jobs": lambda: goqueue_store.complete_jobs([job]),
            "release_jobs": lambda: goqueue_store.release_jobs([job]),
            "fail_job": lambda: goqueue_store.fail_job(job, "no"),
        }[call]
        query = "fail_jobs" if call == "fail_job" else call
        with pytest.raises(LeaseLostError):
            self.after_waiting(goqueue_database, open_transaction, query, settle)
        assert goqueue_store.get_job(job.id).status == JobStatus.CANCELLED


class TestFilters:
    """A change by a filter leaves a job alone that no longer matches when the statement has locked its row."""

    CHANGES: ClassVar[dict[str, Callable[[Any, JobFilter], int]]] = {
        "cancel_jobs": lambda store, jobs: store.cancel_jobs(jobs),
        "retry_jobs": lambda store, jobs: store.retry_jobs(jobs),
        "reschedule_jobs": lambda store, jobs: store.reschedule_jobs(jobs, delay=MINUTE),
        "change_jobs": lambda store, jobs: store.change_jobs(jobs, priority=1),
        "delete_jobs": lambda store, jobs: store.delete_jobs(jobs),
    }

    def left_alone(
        self,
        store: PostgresStorage,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        jobs: JobFilter,
        ids: list[UUID],
        meanwhile: Callable[[UUID], Any],
    ) -> None:
        """Expect that of two jobs that a filter lists, only the second is changed: the first one leaves the filter
        between the list and the change."""
        leaving, staying = ids
        listed, found = store._list, []

        def list_and_change(*args: Any, **kwargs: Any) -> Any:
            rows, cursor = listed(*args, **kwargs)
            found.extend(row.id for row in rows)
            meanwhile(leaving)
            found.append(store.get_job(leaving))
            return rows, cursor

        before = store.get_job(staying)
        with monkeypatch.context() as patch:
            patch.setattr(store, "_list", list_and_change)
            count = self.CHANGES[method](store, jobs)
        *listed_ids, left = found
        assert sorted(listed_ids) == sorted(ids)
        assert count == 1
        assert store.get_job(leaving) == left
        assert [before] != store.get_jobs([staying])

    @pytest.mark.parametrize("method", ["cancel_jobs", "change_jobs", "delete_jobs"])
    def test_a_job_that_was_claimed_meanwhile_has_left_the_pending_ones(
        self, method: str, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [job.id for job in added(goqueue_store, 2)]
        self.left_alone(
            goqueue_store, monkeypatch, method, JobFilter(status="pending"), ids,
            lambda _: goqueue_store.claim_jobs("default", "w"),
        )  # fmt: skip

    @pytest.mark.parametrize("method", ["retry_jobs", "change_jobs", "delete_jobs"])
    def test_a_job_that_was_retried_and_cancelled_meanwhile_has_left_the_dead_ones(
        self, method: str, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [job.id for job in dead(goqueue_store, 2)]
        self.left_alone(
            goqueue_store, monkeypatch, method, JobFilter(status="dead"), ids,
            lambda leaving: (goqueue_store.retry_jobs(leaving), goqueue_store.cancel_jobs(leaving)),
        )  # fmt: skip

    @pytest.mark.parametrize("method", ["cancel_jobs", "change_jobs", "delete_jobs"])
    def test_a_job_that_another_worker_holds_meanwhile_has_left_those_of_the_first(
        self, method: str, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = claimed(goqueue_store, 2)

        def pass_on(_: UUID) -> None:
            goqueue_store.release_jobs([first])
            assert [job.id for job in goqueue_store.claim_jobs("default", "w2")] == [first.id]

        ids = [first.id, second.id]
        self.left_alone(goqueue_store, monkeypatch, method, JobFilter(locked_by="w"), ids, pass_on)

    @pytest.mark.parametrize("field", ["queue", "job_type"])
    @pytest.mark.parametrize("method", CHANGES)
    def test_a_job_that_was_moved_meanwhile_has_left_its_queue_or_type(
        self, method: str, field: str, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs = dead(goqueue_store, 2) if method == "retry_jobs" else added(goqueue_store, 2)
        given = JobFilter(queue="default") if field == "queue" else JobFilter(job_type=["t", "u"])
        self.left_alone(
            goqueue_store, monkeypatch, method, given, [job.id for job in jobs],
            lambda leaving: goqueue_store.update_job(leaving, JobUpdate(**{field: "moved"})),
        )  # fmt: skip

    @pytest.mark.parametrize("method", CHANGES)
    def test_a_job_that_leaves_the_filter_while_the_change_waits_for_its_row_is_left_alone(
        self,
        method: str,
        goqueue_store: PostgresStorage,
        goqueue_database: str,
        open_transaction: psycopg.Connection[Any],
        theirs: PostgresStorage,
    ) -> None:
        jobs = dead(goqueue_store, 2) if method == "retry_jobs" else added(goqueue_store, 2)
        theirs.update_job(jobs[0].id, JobUpdate(queue="moved"))
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(self.CHANGES[method], goqueue_store, JobFilter(queue="default"))
            until_waiting(goqueue_database, method)
            open_transaction.commit()
            assert waiting.result(20) == 1
        after = goqueue_store.get_job(jobs[0].id)
        assert (after.status, after.queue, after.priority) == (jobs[0].status, "moved", 0)

    @pytest.mark.parametrize("condition", ["statuses", "queues", "job_types", "worker_ids"])
    @pytest.mark.parametrize("method", CHANGES)
    def test_each_statement_tests_each_condition(
        self, method: str, condition: str, goqueue_store: PostgresStorage
    ) -> None:
        [job] = dead(goqueue_store) if method == "retry_jobs" else added(goqueue_store)
        values = {
            "reschedule_jobs": {"scheduled_at": None, "delay": ZERO},
            "change_jobs": {"queue": None, "priority": 1, "max_attempts": None},
        }.get(method, {})
        anything = {"statuses": None, "queues": None, "job_types": None, "worker_ids": None}
        run = getattr(goqueue_store._queries, method)
        with goqueue_store._connection() as connection:
            assert list(run(connection, ids=[job.id], **values, **{**anything, condition: ["completed"]})) == []
            assert len(list(run(connection, ids=[job.id], **values, **anything))) == 1


class TestSkippedLocks:
    """A statement that searches for jobs skips a row that another session has locked, without waiting."""

    def test_a_claim_leaves_a_job_that_another_claim_is_taking(
        self, goqueue_store: PostgresStorage, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        first, second = added(goqueue_store, 2)
        assert [job.id for job in theirs.claim_jobs("default", "w")] == [first.id]
        assert [job.id for job in goqueue_store.claim_jobs("default", "w2", limit=5)] == [second.id]
        open_transaction.commit()
        assert goqueue_store.claim_jobs("default", "w2", limit=5) == []

    def test_a_claim_with_a_completion_leaves_a_job_that_another_claim_is_taking(
        self, goqueue_store: PostgresStorage, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        held = claimed(goqueue_store)
        first, second = added(goqueue_store, 2)
        assert [job.id for job in theirs.claim_jobs("default", "w")] == [first.id]
        taken = goqueue_store.complete_and_claim(held, "default", "w2", limit=5)
        assert [job.id for job in taken] == [second.id]
        open_transaction.commit()
        assert goqueue_store.claim_jobs("default", "w2", limit=5) == []

    def test_a_claim_does_not_lock_what_was_claimed_while_its_completion_waited(
        self, goqueue_store: PostgresStorage, goqueue_database: str, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        [held] = claimed(goqueue_store)
        added(goqueue_store, 2)
        theirs.heartbeat_jobs([held])
        first, second = theirs.claim_jobs("default", "w2", limit=2)
        with psycopg.connect(goqueue_database) as mine, ThreadPoolExecutor(1) as thread:
            store = PostgresStorage.bound_to(mine)
            waiting = thread.submit(store.complete_and_claim, [held], "default", "w", 5)
            until_waiting(goqueue_database, "complete_jobs")
            open_transaction.commit()
            assert waiting.result(60) == []
            # Inside its transaction: with a lock on the jobs, their holder would wait for its end.
            open_transaction.execute("SET LOCAL lock_timeout = '2s'")
            theirs.complete_jobs([first, second])
            open_transaction.commit()

    @pytest.mark.parametrize("queues", [None, "default"])
    def test_a_prune_leaves_a_job_that_is_being_retried(
        self, queues: str | None, goqueue_store: PostgresStorage, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        retried, *others = dead(goqueue_store, 3)
        assert theirs.retry_jobs(retried.id) == 1
        assert goqueue_store.prune_jobs(ZERO, queues=queues) == len(others)
        open_transaction.commit()
        assert goqueue_store.prune_jobs(ZERO, queues=queues) == 0
        assert goqueue_store.get_job(retried.id).status == JobStatus.PENDING

    def test_a_rescue_leaves_a_job_whose_lease_is_being_renewed(
        self, goqueue_store: PostgresStorage, open_transaction: Any, theirs: PostgresStorage
    ) -> None:
        added(goqueue_store, 2)
        renewed, lost = goqueue_store.claim_jobs("default", "w", limit=2, lease=ZERO)
        theirs.heartbeat_jobs([renewed])
        assert list(goqueue_store.rescue_jobs()) == [lost.id]
        open_transaction.commit()
        assert goqueue_store.rescue_jobs() == {}
        assert goqueue_store.get_job(renewed.id).status == JobStatus.RUNNING


class TestTheClock:
    """Jobs are due as of the statement's start, even if the transaction began long before."""

    def test_a_claim_in_a_long_transaction_finds_a_job_that_became_due_after_its_start(
        self, goqueue_store: PostgresStorage, theirs: PostgresStorage
    ) -> None:
        theirs.ping()  # begins it
        [job] = added(goqueue_store)
        [mine] = theirs.claim_jobs("default", "w", lease=MINUTE)
        assert mine.id == job.id
        assert mine.locked_at is not None
        assert mine.started_at is not None
        assert mine.lease_expires_at is not None
        assert min(mine.locked_at, mine.started_at, mine.updated_at) >= job.created_at
        assert mine.lease_expires_at >= job.created_at + MINUTE

    def test_a_claim_with_a_completion_in_a_long_transaction_finds_such_a_job_too(
        self, goqueue_store: PostgresStorage, theirs: PostgresStorage
    ) -> None:
        [held] = claimed(goqueue_store)
        theirs.ping()
        [job] = added(goqueue_store)
        [mine] = theirs.complete_and_claim([held], "default", "w", lease=MINUTE)
        assert mine.id == job.id
        assert mine.locked_at is not None
        assert mine.started_at is not None
        assert mine.lease_expires_at is not None
        assert min(mine.locked_at, mine.started_at, mine.updated_at) >= job.created_at
        assert mine.lease_expires_at >= job.created_at + MINUTE
        done = theirs.get_job(held.id)
        assert done.completed_at is not None
        assert min(done.completed_at, done.updated_at) >= job.created_at

    def test_times_set_in_a_long_transaction_are_those_of_the_statement(
        self, goqueue_store: PostgresStorage, theirs: PostgresStorage
    ) -> None:
        jobs = claimed(goqueue_store, 7)
        theirs.ping()
        [later] = added(goqueue_store)  # after the start of their transaction, and before its statements
        beaten, completed, failed, released, cancelled, updated, changed = jobs
        theirs.heartbeat_jobs([beaten], lease=MINUTE)
        theirs.complete_jobs([completed])
        theirs.fail_job(failed, "no", retry_in=MINUTE)
        theirs.release_jobs([released])
        assert theirs.get_job(released.id).updated_at >= later.created_at
        theirs.cancel_jobs(cancelled.id)
        ended = theirs.update_job(updated.id, JobUpdate(status=JobStatus.DEAD))
        assert ended.completed_at is not None
        assert min(ended.completed_at, ended.updated_at) >= later.created_at
        theirs.retry_jobs(updated.id)
        theirs.reschedule_jobs(released.id, delay=MINUTE)
        theirs.change_jobs(changed.id, priority=1)
        beaten, completed, failed, released, cancelled, updated, changed = theirs.get_jobs([job.id for job in jobs])
        for job in beaten, completed, failed, released, cancelled, updated, changed:
            assert job.updated_at >= later.created_at
        assert beaten.lease_expires_at is not None
        assert beaten.lease_expires_at >= later.created_at + MINUTE
        for job in completed, cancelled:
            assert job.completed_at is not None
            assert job.completed_at >= later.created_at
        for job in failed, released:
            assert job.scheduled_at >= later.created_at + MINUTE
        assert updated.scheduled_at >= later.created_at

    def test_a_lease_expires_even_in_a_long_transaction(
        self, goqueue_store: PostgresStorage, theirs: PostgresStorage
    ) -> None:
        theirs.ping()
        added(goqueue_store)
        [job] = goqueue_store.claim_jobs("default", "w", lease=ZERO)
        assert list(theirs.rescue_jobs()) == [job.id]
        assert theirs.get_job(job.id).scheduled_at >= job.created_at

    def test_a_job_is_old_enough_to_prune_even_in_a_long_transaction(
        self, goqueue_store: PostgresStorage, theirs: PostgresStorage
    ) -> None:
        theirs.ping()
        dead(goqueue_store)
        assert theirs.prune_jobs(ZERO) == 1


class TestDelete:
    @pytest.mark.parametrize("method", ["delete_job", "delete_jobs"])
    def test_a_job_whose_failures_cannot_be_deleted_stays(
        self, method: str, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        [job] = claimed(goqueue_store)
        goqueue_store.fail_job(job, "no")
        goqueue_connection.execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'kept'; END $$; "
            "CREATE TRIGGER keep BEFORE DELETE ON goqueue.job_failures FOR EACH ROW EXECUTE FUNCTION keep()"
        )
        with pytest.raises(StorageError, match="kept"):
            getattr(goqueue_store, method)(job.id)
        assert goqueue_store.get_job(job.id).status == JobStatus.PENDING
        assert len(goqueue_store.list_failures(job.id)) == 1


class TestPrune:
    @pytest.mark.parametrize("queues", [None, ["default"]])
    @pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING])
    def test_the_statement_deletes_nothing_unfinished_with_any_arguments(
        self, goqueue_store: PostgresStorage, status: JobStatus, queues: list[str] | None
    ) -> None:
        [job] = added(goqueue_store)
        goqueue_store.update_job(job.id, JobUpdate(status=status))
        values = {
            "older_than": ZERO, "statuses": [status, JobStatus.DEAD], "queues": queues, "job_types": None,
            "job_limit": 10, "kept_ids": [],
        }  # fmt: skip
        with goqueue_store._connection() as connection:
            assert list(goqueue_store._queries.prune_jobs(connection, **values)) == []
        assert goqueue_store.get_job(job.id).status == status


def test_a_claim_takes_no_job_that_is_not_due(goqueue_store: PostgresStorage) -> None:
    # In separate lanes and in one lane: each has its own condition.
    added(goqueue_store, priority=-1, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    [due] = added(goqueue_store)
    added(goqueue_store, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    assert [job.id for job in goqueue_store.claim_jobs("default", "w", limit=10)] == [due.id]


def test_a_claim_with_a_completion_takes_the_same_jobs_as_a_claim(goqueue_store: PostgresStorage) -> None:
    held = claimed(goqueue_store)
    added(goqueue_store, priority=-1, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    [last] = added(goqueue_store, priority=1)
    first, second = added(goqueue_store, 2)
    added(goqueue_store, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    taken = goqueue_store.complete_and_claim(held, "default", "w", limit=10)
    assert [job.id for job in taken] == [first.id, second.id, last.id]


def test_a_claim_with_a_completion_under_a_stale_token_changes_nothing(goqueue_store: PostgresStorage) -> None:
    added(goqueue_store)
    [stale] = goqueue_store.claim_jobs("default", "w", lease=ZERO)
    assert list(goqueue_store.rescue_jobs()) == [stale.id]
    [fresh] = goqueue_store.claim_jobs("default", "w2")
    added(goqueue_store)
    with pytest.raises(LeaseLostError):
        goqueue_store.complete_and_claim([stale], "default", "w")
    assert goqueue_store.get_job(stale.id) == fresh
    assert len(goqueue_store.claim_jobs("default", "w3", limit=5)) == 1


def test_the_mutants_are_those_of_the_present_statements() -> None:
    for mutant in MUTANTS:
        located(ROOT, mutant)
