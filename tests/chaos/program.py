"""The random calls of one client, and what it remembers of their answers. The same for both kinds of stores.

Imports goqueue.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from random import Random
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from goqueue import (
    Backoff,
    JobFilter,
    JobStatus,
    JobUpdate,
    Lease,
    LeaseLostError,
    NewJob,
)

QUEUES = ("one", "two")
#: As long as failed jobs wait for their next attempts.
BACKOFF = Backoff(base=timedelta(milliseconds=5), maximum=timedelta(milliseconds=50))
_KEYS = 300  # shared by all clients
_SOON = 1.0
#: Seconds until a finished job may be pruned.
_OLD = 6.0


class Action(NamedTuple):
    """A call to make. ``leases`` are those that it names, ``new`` the jobs that it adds."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    leases: tuple[Lease, ...] = ()
    new: tuple[NewJob, ...] = ()


class Program:
    """A seeded sequence of calls. ``next`` returns one, ``learn`` receives its answer."""

    def __init__(self, name: str, seed: str, lease: timedelta) -> None:
        self._name = name
        self._chance = Random(seed)
        self._lease = lease
        self._held: list[Lease] = []
        #: Leases that are over, or may be. A fenced store rejects them.
        self._old: deque[Lease] = deque(maxlen=30)
        self._jobs: deque[UUID] = deque(maxlen=300)
        #: Jobs of calls with an unknown outcome, which are soon added again. They are deleted by no call, and pruned
        #: much later: a job that is added again after its deletion has its first tokens again, and the oracle can't
        #: tell one life from the other.
        self._again: list[tuple[float, NewJob]] = []
        self._doubtful: set[UUID] = set()
        self._to_resolve: list[str] = []
        self._number = 0
        self._kinds: dict[Callable[[], Action | None], int] = {
            self._create_job: 10, self._get_or_create_job: 4, self._create_jobs: 5, self._replace: 3,
            self._claim: 16, self._complete_and_claim: 8, self._complete: 12, self._heartbeat: 8, self._fail: 6,
            self._bury: 1, self._release: 4, self._rescue: 4, self._use_old_lease: 6, self._operate: 6,
            self._update: 3, self._delete: 2, self._prune: 1, self._read: 6,
        }  # fmt: skip

    def next(self) -> Action:
        """Return the next call."""
        self._number += 1
        if self._to_resolve:
            return Action("get_transaction_status", (self._to_resolve.pop(),))
        while True:
            [kind] = self._chance.choices(list(self._kinds), list(self._kinds.values()))
            if action := kind():
                return action

    def learn(self, action: Action, value: Any, error: BaseException | None) -> None:
        """Remember the answer to a call, or the exception that it raised."""
        is_unknown = type(error).__name__ in ("OutcomeUnknownError", "CancelledError")
        if transaction_id := getattr(error, "transaction_id", None):
            self._to_resolve.append(transaction_id)
        if error is None:
            self._jobs.extend(job.id for job in action.new)
        if is_unknown:
            self._again.extend((monotonic(), job) for job in action.new if job.id not in self._doubtful)
            self._doubtful.update(job.id for job in action.new)
        if "claim" in action.method and error is None:
            self._held += [Lease(job.id, job.lease_token) for job in value]
        lost = set(error.leases) if isinstance(error, LeaseLostError) else set()
        for lease in action.leases:
            is_settled = action.method != "heartbeat_jobs" and (error is None or isinstance(error, LeaseLostError))
            # After an unknown outcome, some clients repeat the call, and others go on.
            if (lease.id, lease.lease_token) in lost or is_settled or (is_unknown and self._chance.random() < 0.3):
                self._old.append(lease)
                if lease in self._held:
                    self._held.remove(lease)

    # --- kinds of calls ---------------------------------------------------------------------------------------------

    def _new_job(self, key_chance: float = 0.15) -> NewJob:
        chance = self._chance
        return NewJob(
            job_type="t",
            queue=chance.choice(QUEUES),
            payload={"by": self._name, "number": self._number},
            priority=chance.randrange(2),
            max_attempts=chance.choice((1, 2, 3, 100)),
            idempotency_key=f"key-{chance.randrange(_KEYS)}" if chance.random() < key_chance else None,
        )

    def _doubtful_job(self) -> NewJob | None:
        while self._again:
            since, job = self._again.pop()
            if monotonic() - since < _SOON:
                return job
        return None

    def _added(self, method: str, job: NewJob) -> Action:
        return Action(method, (job,), new=(job,))

    def _create_job(self) -> Action:
        return self._added("create_job", self._doubtful_job() or self._new_job())

    def _get_or_create_job(self) -> Action:
        return self._added("get_or_create_job", self._doubtful_job() or self._new_job(0.8))

    def _create_jobs(self) -> Action:
        jobs = [self._new_job() for _ in range(self._chance.randint(1, 8))]
        if job := self._doubtful_job():
            jobs.append(job)
        return Action("create_jobs", (jobs,), new=tuple(jobs))

    def _replace(self) -> Action:
        return self._added("replace_pending_job", self._new_job(1))

    def _worker_id(self) -> str:
        """Return a name for this claim alone, so that the oracle knows which call made it."""
        return f"{self._name}:{self._number}"

    def _claim(self) -> Action | None:
        if len(self._held) > 15:
            return None
        return Action("claim_jobs", (QUEUES, self._worker_id(), self._chance.randint(1, 5), self._lease))

    def _some_held(self) -> tuple[Lease, ...]:
        """Return a few leases. Some are over without the client's knowledge, perhaps beside a newer one of the job."""
        return tuple(self._chance.sample(self._held, min(len(self._held), self._chance.randint(1, 4))))

    def _complete_and_claim(self) -> Action:
        leases = self._some_held()
        return Action(
            "complete_and_claim",
            (list(leases), QUEUES, self._worker_id(), self._chance.randint(1, 3), self._lease),
            leases=leases,
        )

    def _complete(self) -> Action | None:
        if leases := self._some_held():
            return Action("complete_jobs", (list(leases),), leases=leases)
        return None

    def _heartbeat(self) -> Action | None:
        if leases := self._some_held():
            return Action("heartbeat_jobs", (list(leases), self._lease), leases=leases)
        return None

    def _fail(self) -> Action | None:
        if leases := self._some_held():
            failures = [(lease, f"by {self._worker_id()}") for lease in leases]
            return Action("fail_jobs", (failures,), {"backoff": BACKOFF}, leases)
        return None

    def _bury(self) -> Action | None:
        if leases := self._some_held()[:1]:
            return Action("bury_jobs", ([(lease, "buried") for lease in leases],), leases=leases)
        return None

    def _release(self) -> Action | None:
        if leases := self._some_held():
            return Action("release_jobs", (list(leases),), leases=leases)
        return None

    def _rescue(self) -> Action:
        return Action("rescue_jobs", (self._chance.randint(1, 20),))

    def _use_old_lease(self) -> Action | None:
        if not self._old:
            return None
        lease = self._chance.choice(self._old)
        match self._chance.randrange(4):
            case 0:
                return Action("heartbeat_jobs", ([lease], self._lease), leases=(lease,))
            case 1:
                return Action("fail_job", (lease, "late"), {"backoff": BACKOFF}, leases=(lease,))
            case 2:
                return Action("release_jobs", ([lease],), leases=(lease,))
        return Action("complete_jobs", ([lease],), leases=(lease,))

    def _job(self) -> UUID | None:
        return self._chance.choice(self._jobs) if self._jobs else None

    def _operate(self) -> Action | None:
        if not (job_id := self._job()):
            return None
        method = self._chance.choice(["cancel_jobs", "retry_jobs", "reschedule_jobs"])
        return Action(method, ([job_id],), {"delay": timedelta(0)} if method == "reschedule_jobs" else {})

    def _update(self) -> Action | None:
        if not (job_id := self._job()):
            return None
        statuses = [JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.DEAD, JobStatus.CANCELLED]
        if self._chance.random() < 0.5:
            return Action("update_job", (job_id, JobUpdate(priority=self._chance.randrange(3))))
        return Action("update_job", (job_id, JobUpdate(status=self._chance.choice(statuses))))

    def _delete(self) -> Action | None:
        job_id = self._job()
        return None if job_id is None or job_id in self._doubtful else Action("delete_job", (job_id,))

    def _prune(self) -> Action:
        return Action("prune_jobs", (timedelta(seconds=_OLD),), {"limit": self._chance.randint(1, 20)})

    def _read(self) -> Action | None:
        if not (job_id := self._job()):
            return None
        return self._chance.choice(
            [
                Action("get_job", (job_id,)),
                Action("get_job", (job_id,)),
                Action("get_jobs", (list(self._jobs)[:5],)),
                Action("get_job_by_idempotency_key", (f"key-{self._chance.randrange(_KEYS)}",)),
                Action("list_jobs", (JobFilter(queue=self._chance.choice(QUEUES)), 10)),
                Action("count_jobs", (JobFilter(status=JobStatus.PENDING),)),
                Action("list_failures", (job_id,)),
                Action("next_job_at", (QUEUES,)),
                Action("queue_stats"),
                Action("ping"),
            ]
        )
