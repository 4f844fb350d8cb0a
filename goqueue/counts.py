"""Numbers of jobs: exact or estimated, and what a deletion kept."""

from collections.abc import Mapping
from typing import Any, Self
from uuid import UUID


class JobCount(int):
    """A number of jobs. ``exact`` is False for an estimate: above 10,000 jobs for `count_jobs`, above 1,000 for
    `queue_stats`."""

    exact: bool

    def __new__(cls, count: int, *, exact: bool = True) -> Self:
        self = super().__new__(cls, count)
        self.exact = exact
        return self

    def __repr__(self) -> str:
        return f"JobCount({int(self)}, exact={self.exact})"

    def __str__(self) -> str:
        return f"{'' if self.exact else 'about '}{int(self):,}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _job_count, (int(self), self.exact)


class Pruned(int):
    """A number of deleted jobs. ``kept`` has the jobs that were skipped because of a foreign key: the server's
    reason by id."""

    kept: Mapping[UUID, str]

    def __new__(cls, count: int, kept: Mapping[UUID, str] | None = None) -> Self:
        self = super().__new__(cls, count)
        self.kept = dict(kept or {})
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Pruned, (int(self), self.kept)


def counted(count: int, noun: str = "job") -> str:
    """Return a number with its noun: `1 job`, `about 12,000 jobs`, `2 queries`."""
    ending = "" if count == 1 else "s"
    if ending and noun.endswith("y"):
        noun, ending = noun[:-1], "ies"
    return f"{count if isinstance(count, JobCount) else JobCount(count)} {noun}{ending}"


def _job_count(count: int, exact: bool) -> JobCount:
    return JobCount(count, exact=exact)
