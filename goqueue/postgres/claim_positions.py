"""Resume points for claims, used while dead index entries make a full scan expensive.

A claim scans each lane of the claim index from its first job. That is exact, and cheap while vacuum removes dead index
entries. If vacuum is late, leaves the indexes of a large table alone, or must keep dead rows for an old snapshot, each
such scan reads all of them. So when the table has many dead rows, claims resume after the last job taken in each lane.
Full scans remain frequent enough that a job which becomes due out of order waits at most ``claim_resume_time``. Full
scans use at most a tenth of the time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Final
from uuid import UUID

from goqueue.models import Job

# Fewer dead rows than this add at most about a millisecond to a full scan.
_MANY_DEAD_ROWS: Final = 5000
# After a full scan that took time t, the next one follows after ten times t.
_SHARE: Final = 10
# The most sets of queues for which a store remembers positions.
_MOST_SETS: Final = 100

_FROM_THE_START: Final[Mapping[str, object]] = dict.fromkeys(
    ("lane_queues", "lane_priorities", "lane_times", "lane_ids")
)


class ClaimPositions:
    """The last job taken in each lane, for one set of queues. Threads can share it: a lost update only costs time."""

    def __init__(self, resume_seconds: float) -> None:
        self._resume_seconds = resume_seconds
        self._last: dict[tuple[str, int], tuple[datetime, UUID]] = {}
        self._has_claimed = self._is_bloated = False
        # Times of the next count of dead rows, the next full scan, and the full scan after a short claim.
        self._count_at = self._scan_at = self._short_scan_at = 0.0

    @property
    def count_is_due(self) -> bool:
        """True if the table's dead rows should be counted before the next claim."""
        return self._has_claimed and self._resume_seconds > 0 and monotonic() >= self._count_at

    def counted(self, dead_rows: int) -> None:
        """Record the number of the table's dead rows."""
        self._is_bloated = dead_rows >= _MANY_DEAD_ROWS
        self._count_at = monotonic() + self._resume_seconds

    def parameters(self) -> Mapping[str, object]:
        """Return the lane_ parameters of claim_jobs: the resume points, or all None for a full scan."""
        last = self._last
        if not (self._is_bloated and last) or monotonic() >= self._scan_at:
            return _FROM_THE_START
        return {
            "lane_queues": [queue for queue, _ in last],
            "lane_priorities": [priority for _, priority in last],
            "lane_times": [time for time, _ in last.values()],
            "lane_ids": [job_id for _, job_id in last.values()],
        }

    def claimed(self, jobs: Sequence[Job], lanes: Mapping[str, object], *, is_full: bool, start: float) -> None:
        """Record a claim with ``lanes``: its jobs, whether it found as many as wanted, and its start."""
        self._has_claimed = self._has_claimed or bool(jobs)
        if not self._is_bloated:
            return
        taken = {(job.queue, job.priority): (job.scheduled_at, job.id) for job in jobs}
        if lanes is _FROM_THE_START:
            now = monotonic()
            # Keep only lanes with jobs: the next full scan finds the others again.
            self._last = taken or self._last
            self._scan_at = now + min(self._resume_seconds, _SHARE * (now - start))
            self._short_scan_at = now if is_full else self._scan_at
        else:
            self._last = self._last | taken
            if not is_full:
                self._scan_at = min(self._scan_at, self._short_scan_at)

    def looks_again(self, lanes: Mapping[str, object]) -> bool:
        """Return True if a full scan should follow an empty claim with ``lanes`` at once."""
        return lanes is not _FROM_THE_START and monotonic() >= self._scan_at


def positions_of(
    known: dict[tuple[str, ...], ClaimPositions], queues: Sequence[str], resume_seconds: float
) -> ClaimPositions:
    """Return the positions for these queues, stored in ``known``."""
    key = tuple(queues)
    if (positions := known.get(key)) is None:
        if len(known) >= _MOST_SETS:
            known.clear()
        positions = known[key] = ClaimPositions(resume_seconds)
    return positions
