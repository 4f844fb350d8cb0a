"""Where claims go on when dead index entries have made looking from the start dear. Imports nothing of goqueue.

A claim looks through the claim index from each lane's start: that is exact, and cheap while vacuum and the scans
themselves remove dead entries. A transaction left open somewhere keeps them all alive, and the claims slow down without
bound. The server counts the entries that a claim reads; when they were too many for the jobs it took, the following
claims go on where it ended, for a bounded time. A job that becomes due out of order meanwhile waits that long at most.
"""

from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

Lane = tuple[str, int]
Position = tuple[datetime, UUID]

START: Position = (datetime(1, 1, 1, tzinfo=UTC), UUID(int=0))


class Resume:
    """The positions of one set of queues. Threads may share it: a lost update only makes a claim read more."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0
        self._lanes: dict[Lane, Position] = {}

    def lanes(self) -> dict[Lane, Position] | None:
        """Each lane and the (time, id) to go on after; None to look through all of them from the start."""
        return self._lanes if monotonic() < self._until else None

    def learn(
        self, lanes: list[list[Any]], last: dict[Lane, Position], *, resumed: bool, entries_read: int, cheap: int
    ) -> None:
        """What a claim has found: the lanes there are, the last job it took of each, the index entries it read."""
        if resumed:
            self._lanes = self._lanes | {lane: at for lane, at in last.items() if lane in self._lanes}
        elif entries_read > cheap:
            self._lanes = dict.fromkeys(((queue, priority) for queue, priority in lanes), START) | last
            self._until = monotonic() + self._seconds
