"""Where claims go on when dead index entries have made looking from the start dear. Imports nothing of goqueue.

A claim looks through the claim index from each lane's start: that is exact, and cheap while vacuum removes dead
entries. Until vacuum comes the claims pass over the pages of the dead ones; and while a transaction left open somewhere
keeps them all alive, over each of them, without bound. The server counts the entries and the pages that a claim reads;
when they were too many for the jobs it took, it names the lanes, and the following claims go on where each one ended,
for a bounded time. A job that becomes due out of order meanwhile waits that long at most.
"""

from collections.abc import Iterable
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

Lane = tuple[str, int]
Position = tuple[datetime, UUID]

_FROM_THE_START = dict.fromkeys(("lane_queues", "lane_priorities", "lane_times", "lane_ids"))


class Resume:
    """The positions of one set of queues. Threads may share it: a lost update only makes a claim read more."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._lanes: dict[Lane, Position] = {}

    def parameters(self) -> tuple[dict[str, Any], bool]:
        """The lane_ parameters of claim_jobs, and whether they say where to go on (else: from the start)."""
        if monotonic() >= self._until:
            return _FROM_THE_START, False
        lanes = self._lanes
        return {
            "lane_queues": [queue for queue, _ in lanes],
            "lane_priorities": [priority for _, priority in lanes],
            "lane_times": [time for time, _ in lanes.values()],
            "lane_ids": [job_id for _, job_id in lanes.values()],
        }, True

    def begin(self, lanes: Iterable[tuple[str, int, datetime, UUID]]) -> None:
        """A claim was dear: these are the lanes and their first jobs, to go on from for a while."""
        self._lanes = {(queue, priority): (time, job_id) for queue, priority, time, job_id in lanes}
        self._until = monotonic() + self._seconds

    def move(self, taken: Iterable[tuple[str, int, datetime, UUID]]) -> None:
        """Jobs were taken, in the order of their lanes: the next ones come after the last of each lane."""
        last = {(queue, priority): (time, job_id) for queue, priority, time, job_id in taken}
        self._lanes = self._lanes | {lane: at for lane, at in last.items() if lane in self._lanes}
