"""Journals: a line before each call and a line after it, each on the disk before the client continues.

Imports goqueue and msgspec.
"""

import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from goqueue import Job, Lease, NewJob, Page

#: Methods that are no calls to the server, or that return something other than data.
_NO_CALLS = {"close", "listen", "bound_to"}


class Call(msgspec.Struct, omit_defaults=True):
    """A call, as its line; or the answer to it, with the same number and without a method.

    Leases are pairs of id and token, jobs in answers objects with the fields that the oracle compares.
    """

    number: int
    #: Seconds of the system's clock, which is also the server's.
    at: float
    method: str = ""
    args: dict[str, Any] = {}
    #: The rest belongs to the answer. Without one, the client was killed.
    ended: float | None = None
    #: Seconds by the monotonic clock.
    took: float = 0.0
    value: Any = None
    error: str = ""
    #: Whether the error is one of goqueue's.
    is_ours: bool = False
    is_unknown: bool = False
    said: str = ""
    #: The leases of a LeaseLostError.
    lost: list[tuple[str, int]] = []
    #: The other job of a DuplicateJobError.
    job_id: str | None = None
    transaction_id: str | None = None
    client: str = ""

    @property
    def may_have_happened(self) -> bool:
        """True if nobody knows whether the call changed something."""
        return self.ended is None or self.is_unknown

    @property
    def is_unavailable(self) -> bool:
        return self.error in ("StorageUnavailableError", "OutcomeUnknownError")


class Journal:
    """The journal of one client. Threads share it: a line is one write.

    ``epoch`` is the system's time at zero of the monotonic clock. A process whose own clock is wrong needs it.
    """

    def __init__(self, file: Path, epoch: float | None = None) -> None:
        self._epoch = epoch
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count(1)

    def called(self, method: str, args: dict[str, Any]) -> Call:
        """Write a call, and return it."""
        call = Call(next(self._numbers), self._now(), method, {name: _given(value) for name, value in args.items()})
        self._write(call)
        return call

    def answered(self, call: Call, took: float, value: Any) -> None:
        now = self._now()
        self._write(Call(call.number, now, ended=now, took=took, value=_returned(value)))

    def failed(self, call: Call, took: float, error: BaseException) -> None:
        now, kind = self._now(), type(error)
        self._write(
            Call(
                call.number,
                now,
                ended=now,
                took=took,
                error=kind.__name__,
                is_ours=kind.__module__ == "goqueue.errors",
                is_unknown=kind.__name__ in ("OutcomeUnknownError", "CancelledError"),
                said=f"{error} ({type(error.__cause__).__name__})",
                lost=[(str(job_id), token) for job_id, token in getattr(error, "leases", ())],
                job_id=None if (job_id := getattr(error, "job_id", None)) is None else str(job_id),
                transaction_id=getattr(error, "transaction_id", None),
            )
        )

    def _now(self) -> float:
        return time.time() if self._epoch is None else self._epoch + time.monotonic()

    def _write(self, line: Call) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")
        os.fdatasync(self._file)


def read(folder: Path) -> list[Call]:
    """Return the calls of all journals of a folder with their answers, in the order of their times."""
    calls: list[Call] = []
    for file in sorted(folder.glob("*.jsonl")):
        numbered: dict[int, Call] = {}
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # the client was killed while it wrote
                continue
            one = msgspec.json.decode(line, type=Call)
            if one.method:
                numbered[one.number] = msgspec.structs.replace(one, client=file.stem)
            else:
                call = numbered[one.number]
                given = {"at": call.at, "method": call.method, "args": call.args, "client": call.client}
                numbered[one.number] = msgspec.structs.replace(one, **given)
        calls += numbered.values()
    return sorted(calls, key=lambda call: call.at)


def recorded(store: Any, journal: Journal) -> Any:
    """Return a store whose calls and answers are in the journal. It is blocking or asynchronous, as the given one."""
    return _Recorded(store, journal)


class _Recorded:
    def __init__(self, store: Any, journal: Journal) -> None:
        self._store = store
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name.startswith("_") or name in _NO_CALLS or not callable(method):
            return method
        call = _recording(name, method, self._journal)
        self.__dict__[name] = call
        return call


def _recording(name: str, method: Callable[..., Any], journal: Journal) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        line = journal.called(name, signature.bind(*args, **kwargs).arguments)
        start = time.monotonic()
        try:
            value = method(*args, **kwargs)
        except BaseException as error:
            journal.failed(line, time.monotonic() - start, error)
            raise
        journal.answered(line, time.monotonic() - start, value)
        return value

    @wraps(method)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        line = journal.called(name, signature.bind(*args, **kwargs).arguments)
        start = time.monotonic()
        try:
            value = await method(*args, **kwargs)
        except BaseException as error:
            journal.failed(line, time.monotonic() - start, error)
            raise
        journal.answered(line, time.monotonic() - start, value)
        return value

    return call_async if inspect.iscoroutinefunction(method) else call


def _given(value: Any) -> Any:
    match value:
        case Job() | Lease():
            return [str(value.id), value.lease_token]
        case NewJob():
            return {"id": str(value.id), "key": value.idempotency_key}
        case msgspec.Struct():
            return msgspec.to_builtins(value)
        case UUID():
            return str(value)
        case timedelta():
            return value.total_seconds()
        case datetime():
            return value.timestamp()
        case list() | tuple() | set() | frozenset():
            return [_given(item) for item in value]
    return value


def _returned(value: Any) -> Any:
    match value:
        case Job():
            return {
                "id": str(value.id),
                "status": value.status,
                "token": value.lease_token,
                "attempts": value.attempts,
                "holder": value.locked_by,
                "key": value.idempotency_key,
            }
        case Page():
            return [_returned(job) for job in value.jobs]
        case msgspec.Struct():
            return type(value).__name__
        case UUID():
            return str(value)
        case datetime():
            return value.timestamp()
        case dict():
            return {str(key): item for key, item in value.items()}
        case list() | tuple():
            return [_returned(item) for item in value]
        case bool() | str() | None:
            return value
        case int():
            return int(value)
    raise TypeError(f"the journal has no form for {value!r}")


def leases(call: Call) -> Iterable[tuple[str, int]]:
    """Return the leases that a call names."""
    if "failures" in call.args:
        return [(job_id, token) for (job_id, token), _ in call.args["failures"]]
    given = call.args.get("leases") or ([call.args["lease"]] if call.method in ("complete_job", "fail_job") else [])
    return [(job_id, token) for job_id, token in given]
