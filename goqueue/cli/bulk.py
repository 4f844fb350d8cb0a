"""`goqueue jobs create --from`: add many jobs from JSON lines."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from goqueue.cli.common import note, open_store, print_json, print_line, progress, saying, utf8
from goqueue.counts import counted
from goqueue.errors import GoQueueError, InvalidJobError, OutcomeUnknownError
from goqueue.models import NewJob
from goqueue.payload import check_payload

#: Hints for values without a JSON type, by the end of msgspec's message.
_FORMS = {
    "`$.delay`": '; write "PT5M" (ISO 8601) for five minutes',
    "`$.scheduled_at`": '; write "2026-01-31T08:00:00Z" (ISO 8601, with a zone)',
}


class _Lines:
    """The jobs in a file of JSON lines, with the numbers of the last line read and the last line added."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.read = self.bytes_read = self.added = 0
        self._waiting: deque[int] = deque()

    def __iter__(self) -> Iterator[NewJob]:
        decode = msgspec.json.Decoder(NewJob).decode
        for line in self.stream:
            self.read += 1
            self.bytes_read += len(line)
            if line.strip():
                try:
                    job = decode(utf8(line) if self.read == 1 else line)
                except (ValueError, RecursionError) as error:  # from msgspec, or from text that is not UTF-8
                    form = next((form for place, form in _FORMS.items() if str(error).endswith(place)), "")
                    raise InvalidJobError(f"{error}{form}") from None
                check_payload(job.payload)  # the store checks whole batches, after reading later lines
                self._waiting.append(self.read)
                yield job

    def settle(self, count: int) -> None:
        """Record that the next ``count`` jobs have been added."""
        for _ in range(count):
            self.added = self._waiting.popleft()

    def state(self, *, known: bool) -> str:
        """Describe which lines have been added, and how to resume."""
        done = "no line was added"
        if self.added:
            done = "line 1 was added" if self.added == 1 else f"lines 1 to {self.added:,} were added"
        if known and not self.added:
            return done
        if not known:
            return f"{done}; it is not known whether the lines up to {self.read:,} were added: check before you resume"
        return f"{done}, and none after; `tail -n +{self.added + 1}` prints the rest"


def create_from(stream: BinaryIO, file: Path | None, *, as_json: bool) -> None:
    """Add the jobs in the stream and print how many were added. ``file`` is the configuration file."""
    created = existing = 0
    size = os.fstat(stream.fileno()).st_size  # 0 for a pipe
    lines = _Lines(stream)
    with open_store(file) as store, progress(size or None) as advance:
        try:
            for batch in store.create_jobs_in_batches(lines):
                lines.settle(len(batch))
                new = sum(added for _, added in batch)
                created, existing = created + new, existing + len(batch) - new
                advance(lines.bytes_read, counted(created + existing))
        except (GoQueueError, KeyboardInterrupt) as error:
            note(lines.state(known=not isinstance(error, (OutcomeUnknownError, KeyboardInterrupt))))
            if isinstance(error, InvalidJobError) and error.__cause__ is None:  # caused by the last line read
                raise InvalidJobError(f"line {lines.read}: {error}") from None
            raise
    done = f"{counted(created)} added" + (f", {existing:,} had a key that another job has" if existing else "")
    with saying(done):
        if as_json:
            print_json({"created": created, "existing": existing})
        else:
            print_line(done)
