"""Where claims resume while the claim index is bloated.

A claim scans each lane of the claim index from its first job. That is exact, and cheap while vacuum removes dead index
entries. While vacuum is late, or a snapshot held elsewhere keeps dead rows alive, each such scan passes over all of
them. So when the table has many dead rows, claims resume after the last job taken in each lane. They scan from the
start often enough that a job which becomes due out of order waits for ``claim_resume_time`` at most, and rarely enough
that those scans take a tenth of the time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Final
from uuid import UUID

from goqueue.models import Job

# With fewer dead rows a scan from the start is not worth avoiding: they cost it about a millisecond at most.
_MANY_DEAD_ROWS: Final = 5000
# After a scan from the start that took a time t, the next one follows after ten times t.
_SHARE: Final = 10
# The sets of queues that a store remembers positions for.
_MOST_SETS: Final = 100

_FROM_THE_START: Final[Mapping[str, object]] = dict.fromkeys(
    ("lane_queues", "lane_priorities", "lane_times", "lane_ids")
)


class ClaimPositions:
    """The last job taken in each lane, for one set of queues. Threads may share it: a lost update only makes a claim
    read more."""

    def __init__(self, resume_seconds: float) -> None:
        self._resume_seconds = resume_seconds
        self._last: dict[tuple[str, int], tuple[datetime, UUID]] = {}
        self._has_claimed = self._is_bloated = False
        # From when on to count dead rows, to scan from the start, and to do so after a claim that came up short.
        self._count_at = self._scan_at = self._short_scan_at = 0.0

    @property
    def count_is_due(self) -> bool:
        """Whether to count the table's dead rows before the next claim."""
        return self._has_claimed and self._resume_seconds > 0 and monotonic() >= self._count_at

    def counted(self, dead_rows: int) -> None:
        """Take note of the table's dead rows."""
        self._is_bloated = dead_rows >= _MANY_DEAD_ROWS
        self._count_at = monotonic() + self._resume_seconds

    def parameters(self) -> Mapping[str, object]:
        """Return the lane_ parameters of claim_jobs: where to resume; all None to scan from the start."""
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
        """Take note of a claim with ``lanes``: its jobs, whether it took all that were wanted, and when it started."""
        self._has_claimed = self._has_claimed or bool(jobs)
        if not self._is_bloated:
            return
        taken = {(job.queue, job.priority): (job.scheduled_at, job.id) for job in jobs}
        if lanes is _FROM_THE_START:
            now = monotonic()
            # A lane that a scan took nothing from is found again by the next scan: what is kept stays small.
            self._last = taken or self._last
            self._scan_at = now + min(self._resume_seconds, _SHARE * (now - start))
            self._short_scan_at = now if is_full else self._scan_at
        else:
            self._last = self._last | taken
            if not is_full:
                self._scan_at = min(self._scan_at, self._short_scan_at)

    def looks_again(self, lanes: Mapping[str, object]) -> bool:
        """Whether a claim with ``lanes`` that found nothing is to be followed by a scan from the start at once."""
        return lanes is not _FROM_THE_START and monotonic() >= self._scan_at


def positions_of(
    known: dict[tuple[str, ...], ClaimPositions], queues: Sequence[str], resume_seconds: float
) -> ClaimPositions:
    """Return the positions for these queues, which are kept in ``known``."""
    key = tuple(queues)
    if (positions := known.get(key)) is None:
        if len(known) >= _MOST_SETS:
            known.clear()
        positions = known[key] = ClaimPositions(resume_seconds)
    return positions
