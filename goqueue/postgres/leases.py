"""Claims and leases as parameters of their queries."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Self, TypedDict
from uuid import UUID

from goqueue.errors import InvalidJobError, LeaseLostError
from goqueue.models import Held, Job, Lease
from goqueue.validation import (
    as_job_id,
    check_integer,
    check_interval,
    check_kind,
    check_limit,
    check_name,
    clean_text,
)

_MAX_TOKEN = 2**63 - 1


class ClaimValues(TypedDict):
    """The parameters of claim_jobs, except its lanes."""

    queues: list[str]
    worker_id: str
    job_limit: int
    lease: timedelta


def claim_values(queues: str | Collection[str], worker_id: str, limit: int, lease: timedelta) -> ClaimValues:
    """Return the checked parameters."""
    return {
        "queues": queue_names(queues),
        "worker_id": check_name("worker_id", worker_id),
        "job_limit": check_limit(limit),
        "lease": check_interval("lease", lease),
    }


def queue_names(queues: str | Collection[str]) -> list[str]:
    """Return one name or several as a sorted list without duplicates."""
    check_kind("queues", queues, str, Iterable)
    names = {check_name("queue", queue) for queue in ([queues] if isinstance(queues, str) else queues)}
    if not names:
        raise InvalidJobError("no queue was given to claim jobs from")
    return sorted(names)


class Leases:
    """The leases that a holder passes: job ids and fencing tokens."""

    def __init__(self, leases: Iterable[Held]) -> None:
        """Raise `InvalidJobError` for a value that is not a lease."""
        check_kind("leases", leases, Iterable)
        self.held: list[tuple[UUID, int]] = []
        for lease in leases:
            if type(lease) is not Job:  # the fast path for the usual type
                check_kind("lease", lease, Job, Lease)
            job_id, token = lease.id, lease.lease_token
            if not (type(job_id) is UUID and type(token) is int and 0 <= token <= _MAX_TOKEN):
                job_id, token = as_job_id(job_id), check_integer("lease_token", token, 0, _MAX_TOKEN)
            self.held.append((job_id, token))
        self.values: dict[str, list[UUID] | list[int] | list[str]] = {
            "ids": [lease[0] for lease in self.held],
            "tokens": [lease[1] for lease in self.held],
        }

    @classmethod
    def failed(cls, failures: Iterable[tuple[Held, object]]) -> Self:
        """Return leases, each with the reason why its attempt failed."""
        check_kind("failures", failures, Iterable)
        pairs = [_pair(failure) for failure in failures]
        self = cls([lease for lease, _ in pairs])
        self.values["errors"] = [clean_text(error) for _, error in pairs]
        return self

    def lost(self, done: Iterable[UUID], count: int) -> list[tuple[UUID, int]]:
        """Return the lost leases: all except the newest one of each job in ``done`` (``count`` jobs)."""
        if count == len(self.held):
            return []
        done = set(done)
        newest = dict(sorted(self.held))
        return [(job_id, token) for job_id, token in self.held if job_id not in done or token < newest[job_id]]


def _pair(failure: object) -> tuple[Held, object]:
    if not isinstance(failure, tuple) or len(failure) != 2:
        raise InvalidJobError("a failure must be a pair of the lease and the error")
    return failure


#: The parameters of fail_jobs, besides the leases, for jobs without another attempt.
FINAL: Final[Mapping[str, object]] = {
    "is_final": True,
    "retry_in": None,
    "backoff_base": None,
    "backoff_factor": None,
    "backoff_max": None,
    "backoff_jitter": None,
}


def check_lost(leases: Sequence[tuple[UUID, int]]) -> None:
    """Raise `LeaseLostError` if there are any leases."""
    if leases:
        ids = [job_id for job_id, _ in leases]
        names = ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10:,} more" if len(ids) > 10 else "")
        raise LeaseLostError(
            f"no longer held: {names}; the lease expired, or the job was ended or deleted: stop working on it",
            job_ids=ids,
            leases=leases,
        )
