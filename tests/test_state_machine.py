"""Jobs against a model: after any calls in any order, status, attempts and tokens are the model's."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goqueue import (
    Backoff,
    DuplicateJobError,
    InvalidJobError,
    Job,
    JobNotFoundError,
    JobStateError,
    JobStatus,
    JobUpdate,
    Lease,
    LeaseLostError,
    NewJob,
    Storage,
)

PENDING, RUNNING, COMPLETED, DEAD, CANCELLED = JobStatus
FINISHED = {COMPLETED, DEAD, CANCELLED}
ZERO = timedelta(0)
HOUR = timedelta(hours=1)
QUEUES = ("a", "b")


@dataclass
class Model:
    """The model of a job."""

    queue: str
    priority: int
    max_attempts: int
    due: bool
    key: str | None
    unique: str | None = None
    status: JobStatus = PENDING
    attempts: int = 0
    token: int = 0
    holder: str | None = None
    leased: bool = False
    failures: int = 0

    def end_attempt(self, status: JobStatus) -> JobStatus:
        self.status, self.holder, self.leased = status, None, False
        return status

    def fail(self) -> JobStatus:
        self.failures += 1
        return self.end_attempt(PENDING if self.attempts < self.max_attempts else DEAD)

    def bury(self) -> None:
        self.failures += 1
        self.end_attempt(DEAD)


# Indexes into the lists of jobs or leases, modulo their lengths, so that shrunk examples stay meaningful.
places = st.integers(0, 30)
several = st.lists(places, min_size=1, max_size=3)


class Jobs(RuleBasedStateMachine):
    store: Storage
    connection: psycopg.Connection[Any]

    @initialize()
    def start(self) -> None:
        self.connection.execute("TRUNCATE goqueue.jobs, goqueue.job_failures")
        self.jobs: dict[UUID, Model] = {}
        #: Every lease so far, including lost ones.
        self.leases: list[Lease] = []
        self.workers = 0

    def ids(self, chosen: list[int]) -> list[UUID]:
        ids = list(self.jobs)
        return [ids[place % len(ids)] for place in chosen]

    def chosen_leases(self, chosen: list[int]) -> list[Lease]:
        """Draw mostly the latest leases, which may still be valid."""
        return list({self.leases[-1 - place % len(self.leases)]: None for place in chosen})

    def is_held(self, lease: Lease) -> bool:
        job = self.jobs.get(lease.id)
        return job is not None and job.status == RUNNING and job.token == lease.lease_token

    def is_completed(self, lease: Lease) -> bool:
        job = self.jobs.get(lease.id)
        return job is not None and job.status == COMPLETED and job.token == lease.lease_token

    def settle(self, leases: list[Lease], call: Callable[[], Any], *, again: bool = False) -> tuple[list[Model], Any]:
        """Run the call; return the models of the held jobs, after checking that the error names all others. ``again``:
        jobs completed by the same lease are not lost."""
        lost = [lease.id for lease in leases if not (self.is_held(lease) or (again and self.is_completed(lease)))]
        result = None
        if lost:
            with pytest.raises(LeaseLostError) as caught:
                call()
            assert list(caught.value.job_ids) == lost
        else:
            result = call()
        return [self.jobs[lease.id] for lease in leases if self.is_held(lease)], result

    @rule(
        queue=st.sampled_from(QUEUES),
        key=st.none() | st.sampled_from("xyz"),
        unique=st.none() | st.sampled_from("xyz"),
        due=st.sampled_from([True, True, True, False]),
        priority=st.integers(-1, 1),
        max_attempts=st.integers(1, 3),
        count=st.integers(1, 3),
    )
    def create(
        self, queue: str, key: str | None, unique: str | None, due: bool, priority: int, max_attempts: int, count: int
    ) -> None:
        fields: Any = {
            "job_type": "t", "queue": queue, "priority": priority, "max_attempts": max_attempts,
            "delay": ZERO if due else HOUR,
        }  # fmt: skip
        # The first job has the idempotency key; the first and the last have the unique key.
        new = [
            NewJob(
                **fields,
                idempotency_key=key if number == 0 else None,
                unique_key=unique if number in (0, count - 1) else None,
            )
            for number in range(count)
        ]
        holder = self.holder(key) or self.unfinished(unique)
        if holder is not None:
            with pytest.raises(DuplicateJobError) as caught:
                self.store.create_job(new[0])
            assert caught.value.job_id == holder
        expected = []
        for job in new:
            existing = self.holder(job.idempotency_key) or self.unfinished(job.unique_key)
            expected.append((existing or job.id, existing is None))
            if existing is None:
                self.jobs[job.id] = Model(queue, priority, max_attempts, due, job.idempotency_key, job.unique_key)
        assert self.store.create_jobs(new) == expected

    def holder(self, key: str | None) -> UUID | None:
        """Return the job with an idempotency key."""
        return next((job_id for job_id, job in self.jobs.items() if key is not None and job.key == key), None)

    def unfinished(self, unique: str | None, but: UUID | None = None) -> UUID | None:
        """Return the pending or running job with a unique key, other than ``but``."""
        found = (
            job_id
            for job_id, job in self.jobs.items()
            if unique is not None and job.unique == unique and job.status not in FINISHED and job_id != but
        )
        return next(found, None)

    @rule(
        queue=st.sampled_from(QUEUES),
        key=st.sampled_from("xyz"),
        unique=st.none() | st.sampled_from("xyz"),
        max_attempts=st.integers(1, 3),
    )
    def replace_pending(self, queue: str, key: str, unique: str | None, max_attempts: int) -> None:
        new = NewJob(job_type="t", queue=queue, idempotency_key=key, unique_key=unique, max_attempts=max_attempts)
        found = next((item for item in self.jobs.items() if item[1].key == key), None)
        holder = self.unfinished(unique, but=found and found[0])
        if (found is not None and found[1].status != PENDING) or holder is not None:
            with pytest.raises(DuplicateJobError):
                self.store.replace_pending_job(new)
            return
        job_id = self.store.replace_pending_job(new).id
        if found is None:
            assert job_id == new.id
            self.jobs[job_id] = Model(queue, 0, max_attempts, due=True, key=key, unique=unique)
        else:
            assert job_id == found[0]
            self.jobs[job_id] = replace(
                found[1], queue=queue, priority=0, max_attempts=max_attempts, due=True, attempts=0, unique=unique
            )

    def claimable(self, queues: tuple[str, ...]) -> list[UUID]:
        return [
            job_id for job_id, job in self.jobs.items() if job.status == PENDING and job.due and job.queue in queues
        ]

    def took(self, jobs: list[Job], queues: tuple[str, ...], limit: int, worker: str) -> None:
        waiting = self.claimable(queues)
        priorities = sorted(self.jobs[job_id].priority for job_id in waiting)
        assert [job.priority for job in jobs] == [job.priority for job in sorted(jobs, key=lambda job: job.priority)]
        assert [job.priority for job in jobs] == priorities[:limit]
        for job in jobs:
            model = self.jobs[job.id]
            assert job.id in waiting
            model.status, model.holder, model.leased = RUNNING, worker, True
            model.attempts += 1
            model.token += 1
            assert (job.lease_token, job.attempts, job.locked_by) == (model.token, model.attempts, worker)
            self.leases.append(Lease(job.id, job.lease_token))

    @rule(queues=st.sampled_from([("a",), ("b",), QUEUES]), limit=st.integers(1, 3))
    def claim(self, queues: tuple[str, ...], limit: int) -> None:
        self.workers += 1
        worker = f"w{self.workers}"
        self.took(self.store.claim_jobs(queues, worker, limit, HOUR), queues, limit, worker)

    @precondition(lambda self: self.leases)
    @rule(chosen=several)
    def heartbeat(self, chosen: list[int]) -> None:
        leases = self.chosen_leases(chosen)
        held, _ = self.settle(leases, lambda: self.store.heartbeat_jobs(leases, HOUR))
        for job in held:
            job.leased = True

    @precondition(lambda self: self.leases)
    @rule(chosen=several)
    def complete(self, chosen: list[int]) -> None:
        leases = self.chosen_leases(chosen)
        for job in self.settle(leases, lambda: self.store.complete_jobs(leases), again=True)[0]:
            job.end_attempt(COMPLETED)

    @precondition(lambda self: self.leases)
    @rule(chosen=several, queues=st.sampled_from([("a",), QUEUES]), limit=st.integers(1, 3))
    def complete_and_claim(self, chosen: list[int], queues: tuple[str, ...], limit: int) -> None:
        leases = self.chosen_leases(chosen)
        self.workers += 1
        worker = f"w{self.workers}"
        held, jobs = self.settle(
            leases, lambda: self.store.complete_and_claim(leases, queues, worker, limit), again=True
        )
        for job in held:
            job.end_attempt(COMPLETED)
        if jobs is not None:
            self.took(jobs, queues, limit, worker)

    @precondition(lambda self: self.leases)
    @rule(chosen=several, at_once=st.booleans())
    def fail(self, chosen: list[int], at_once: bool) -> None:
        leases = self.chosen_leases(chosen)
        pause: Any = {"retry_in": ZERO} if at_once else {"backoff": Backoff(base=HOUR)}
        failures = [(lease, f"error {lease.lease_token}") for lease in leases]
        held, statuses = self.settle(leases, lambda: self.store.fail_jobs(failures, **pause))
        expected = []
        for job in held:
            expected.append(job.fail())
            if job.status == PENDING:
                job.due = at_once
        if statuses is not None:
            assert [statuses[lease.id] for lease in leases] == expected

    @precondition(lambda self: self.leases)
    @rule(chosen=several)
    def bury(self, chosen: list[int]) -> None:
        leases = self.chosen_leases(chosen)
        failures = [(lease, f"error {lease.lease_token}") for lease in leases]
        for job in self.settle(leases, lambda: self.store.bury_jobs(failures))[0]:
            job.bury()

    @precondition(lambda self: self.leases)
    @rule(chosen=several)
    def release(self, chosen: list[int]) -> None:
        leases = self.chosen_leases(chosen)
        for job in self.settle(leases, lambda: self.store.release_jobs(leases))[0]:
            job.end_attempt(PENDING)
            job.attempts = max(job.attempts - 1, 0)

    @precondition(lambda self: self.jobs)
    @rule(chosen=several)
    def let_leases_expire_and_rescue(self, chosen: list[int]) -> None:
        ids = [job_id for job_id in set(self.ids(chosen)) if self.jobs[job_id].leased]
        self.connection.execute(
            "UPDATE goqueue.jobs SET lease_expires_at = now() - interval '1 s' WHERE id = ANY(%s)", [ids]
        )
        expected = {}
        for job_id in ids:
            expected[job_id] = self.jobs[job_id].fail()
            self.jobs[job_id].due = True
        assert self.store.rescue_jobs() == expected
        assert self.store.rescue_jobs() == {}

    @precondition(lambda self: self.jobs)
    @rule(chosen=several)
    def cancel(self, chosen: list[int]) -> None:
        ids = self.ids(chosen)
        moved = [self.jobs[job_id] for job_id in set(ids) if self.jobs[job_id].status in (PENDING, RUNNING)]
        assert self.store.cancel_jobs(ids) == len(moved)
        for job in moved:
            job.end_attempt(CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(chosen=several)
    def retry(self, chosen: list[int]) -> None:
        ids = self.ids(chosen)
        # The newest of those with one unique key comes first, and then has the key.
        moved = []
        for job_id in sorted(set(ids), reverse=True):
            job = self.jobs[job_id]
            is_taken = self.unfinished(job.unique) or (job.unique and job.unique in {one.unique for one in moved})
            if job.status in (DEAD, CANCELLED) and not is_taken:
                moved.append(job)
        assert self.store.retry_jobs(ids) == len(moved)
        for job in moved:
            job.status, job.attempts, job.due = PENDING, 0, True

    @precondition(lambda self: self.jobs)
    @rule(chosen=several, due=st.booleans())
    def reschedule(self, chosen: list[int], due: bool) -> None:
        ids = self.ids(chosen)
        moved = [self.jobs[job_id] for job_id in set(ids) if self.jobs[job_id].status == PENDING]
        assert self.store.reschedule_jobs(ids, delay=ZERO if due else HOUR) == len(moved)
        for job in moved:
            job.due = due

    @precondition(lambda self: self.jobs)
    @rule(chosen=several, queue=st.sampled_from([None, *QUEUES]), max_attempts=st.integers(1, 3))
    def change(self, chosen: list[int], queue: str | None, max_attempts: int) -> None:
        ids = self.ids(chosen)
        moved = [
            job
            for job in (self.jobs[job_id] for job_id in set(ids))
            if job.status != COMPLETED and job.attempts + (job.status == PENDING) <= max_attempts
        ]
        assert self.store.change_jobs(ids, queue=queue, max_attempts=max_attempts) == len(moved)
        for job in moved:
            job.queue, job.max_attempts = queue or job.queue, max_attempts

    @precondition(lambda self: self.jobs)
    @rule(place=places, status=st.sampled_from(JobStatus))
    def set_status(self, place: int, status: JobStatus) -> None:
        [job_id] = self.ids([place])
        job = self.jobs[job_id]
        allowed = (
            status == job.status
            or job.status in (PENDING, RUNNING)
            or (job.status in (DEAD, CANCELLED) and status == PENDING)
        )
        if not allowed:
            with pytest.raises(JobStateError):
                self.store.update_job(job_id, JobUpdate(status=status, priority=9))
            return
        if status not in FINISHED and (holder := self.unfinished(job.unique, but=job_id)):
            with pytest.raises(DuplicateJobError) as caught:
                self.store.update_job(job_id, JobUpdate(status=status, priority=9))
            assert caught.value.job_id == holder
            return
        updated = self.store.update_job(job_id, JobUpdate(status=status))
        if status == job.status:
            return
        if status == RUNNING:
            job.token += 1
            job.status, job.holder, job.leased = RUNNING, updated.locked_by, False
            self.leases.append(Lease(job_id, updated.lease_token))
        else:
            if status == PENDING and job.status in (DEAD, CANCELLED):
                job.attempts = 0
            elif status == PENDING:
                job.attempts = min(job.attempts, job.max_attempts - 1)
            if status == COMPLETED:  # not by its holder
                job.token += 1
            job.end_attempt(status)

    @precondition(lambda self: self.jobs)
    @rule(place=places, unique=st.none() | st.sampled_from("xyz"))
    def set_unique_key(self, place: int, unique: str | None) -> None:
        [job_id] = self.ids([place])
        job = self.jobs[job_id]
        if job.status not in FINISHED and (holder := self.unfinished(unique, but=job_id)):
            with pytest.raises(DuplicateJobError) as caught:
                self.store.update_job(job_id, JobUpdate(unique_key=unique))
            assert caught.value.job_id == holder
        else:
            self.store.update_job(job_id, JobUpdate(unique_key=unique))
            job.unique = unique

    @precondition(lambda self: self.jobs)
    @rule(place=places)
    def spend_all_attempts(self, place: int) -> None:
        [job_id] = self.ids([place])
        job = self.jobs[job_id]
        spent = job.max_attempts
        if job.status == PENDING:
            with pytest.raises(InvalidJobError, match="an attempt left"):
                self.store.update_job(job_id, JobUpdate(attempts=spent))
            spent -= 1
        self.store.update_job(job_id, JobUpdate(attempts=spent))
        job.attempts = spent

    @precondition(lambda self: self.jobs)
    @rule(place=places)
    def delete(self, place: int) -> None:
        [job_id] = self.ids([place])
        self.store.delete_job(job_id)
        del self.jobs[job_id]
        with pytest.raises(JobNotFoundError):
            self.store.delete_job(job_id)

    @precondition(lambda self: self.jobs)
    @rule(chosen=several)
    def delete_many(self, chosen: list[int]) -> None:
        ids = set(self.ids(chosen))
        assert self.store.delete_jobs(ids) == len(ids)
        for job_id in ids:
            del self.jobs[job_id]

    @rule(
        statuses=st.sets(st.sampled_from(sorted(FINISHED)), min_size=1),
        limit=st.integers(1, 5),
        queue=st.sampled_from([None, *QUEUES]),
    )
    def prune(self, statuses: set[JobStatus], limit: int, queue: str | None) -> None:
        finished = {
            job_id for job_id, job in self.jobs.items() if job.status in statuses and queue in (None, job.queue)
        }
        assert self.store.prune_jobs(HOUR, statuses, limit, queue) == 0
        assert self.store.prune_jobs(ZERO, statuses, limit, queue) == min(len(finished), limit)
        left = {job.id for job in self.store.get_jobs(finished)}
        for job_id in finished - left:
            del self.jobs[job_id]

    @invariant()
    def every_job_is_as_in_the_model(self) -> None:
        rows = self.connection.execute(
            """
            SELECT
                j.id, j.queue, j.priority, j.max_attempts, j.scheduled_at <= now(), j.idempotency_key, j.unique_key,
                j.status, j.attempts, j.lease_token, j.locked_by, j.lease_expires_at IS NOT NULL,
                (SELECT count(*) FROM goqueue.job_failures AS f WHERE f.job_id = j.id)
            FROM goqueue.jobs AS j
            """
        ).fetchall()
        stored = {row[0]: Model(*row[1:7], JobStatus(row[7]), *row[8:]) for row in rows}
        assert stored == self.jobs

    @invariant()
    def a_running_job_has_one_holder(self) -> None:
        held = Counter(lease.id for lease in set(self.leases) if self.is_held(lease))
        assert held == Counter({job_id: 1 for job_id, job in self.jobs.items() if job.status == RUNNING})

    def teardown(self) -> None:
        if not hasattr(self, "jobs"):
            return
        counts = Counter((job.queue, job.status) for job in self.jobs.values())
        stats = {
            (entry.queue, status): count
            for entry in self.store.queue_stats()
            for status, count in entry.counts.items()
            if count
        }
        assert stats == counts
        held = Counter(job.holder for job in self.jobs.values() if job.status == RUNNING)
        assert {worker.worker_id: worker.jobs for worker in self.store.list_workers()} == held
        assert self.store.count_jobs() == len(self.jobs)
        failures = self.connection.execute("SELECT count(*) FROM goqueue.job_failures").fetchone()
        assert failures == (sum(job.failures for job in self.jobs.values()),)


# The asynchronous store has the same statements and slower calls, so fewer examples are enough.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("store", "max_examples"), [("pool", 100), ("async pool", 15)], indirect=["store"])
def test_jobs_follow_their_model(
    store: Storage, goqueue_connection: psycopg.Connection[Any], max_examples: int
) -> None:
    def machine() -> Jobs:
        jobs = Jobs()
        jobs.store, jobs.connection = store, goqueue_connection
        return jobs

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=max_examples, stateful_step_count=40, suppress_health_check=list(HealthCheck), print_blob=True
        ),
    )
