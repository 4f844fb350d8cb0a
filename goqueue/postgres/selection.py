"""Filters, ids and statuses as parameters of queries."""

from collections.abc import Iterable, Iterator
from uuid import UUID

from goqueue.models import JobFilter, JobId, JobStatus
from goqueue.validation import MAX_PAGE, as_job_id, check_choice, check_kind

_NO_FILTER = JobFilter()


def filter_values(job_filter: JobFilter | None) -> dict[str, object]:
    """Return the parameters of list_jobs and count_jobs, except those of the page."""
    if job_filter is None:
        return _NO_FILTER.parameters()
    check_kind("job_filter", job_filter, JobFilter)
    return job_filter.parameters()


def still_matching(jobs: object) -> dict[str, object]:
    """Return the filters that a change of jobs tests again: a filter's; none for ids. `created_at` never changes."""
    values = (jobs if isinstance(jobs, JobFilter) else _NO_FILTER).parameters()
    return {name: values[name] for name in ("statuses", "queues", "job_types", "worker_ids")}


def as_job_ids(jobs: JobId | Iterable[JobId]) -> list[UUID]:
    """Return one id or several as UUIDs."""
    if isinstance(jobs, (UUID, str)):
        return [as_job_id(jobs)]
    check_kind("jobs", jobs, Iterable)
    return [as_job_id(job_id) for job_id in jobs]


def as_statuses(statuses: JobStatus | Iterable[JobStatus]) -> set[JobStatus]:
    """Return one status or several as a set."""
    check_kind("statuses", statuses, str, Iterable)
    return {
        check_choice("status", status, JobStatus) for status in ([statuses] if isinstance(statuses, str) else statuses)
    }


def in_batches(ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    """Yield ids without duplicates, always in the same order, so that concurrent callers don't deadlock."""
    given = sorted(set(ids))
    for start in range(0, len(given), MAX_PAGE):
        yield given[start : start + MAX_PAGE]
