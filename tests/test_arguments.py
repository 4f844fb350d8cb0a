"""Both stores reject every unusable argument of every method by name, before anything is sent."""

import asyncio
import inspect
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from goqueue import (
    AsyncPostgresStorage,
    Backoff,
    DatabaseConfig,
    InvalidJobError,
    JobUpdate,
    Lease,
    NewJob,
    PostgresStorage,
)

SECOND = timedelta(seconds=1)
HELD = Lease(uuid4(), 1)
NAMES = [None, 5, "", "x" * 256, "\0", "\ud800", b"x"]
TIMES = [5, "1s", -SECOND, timedelta.max]
IDS = [None, 5, "", "x", b"x" * 16, 10**100, []]
LEASES = [None, 5, uuid4(), (uuid4(), 1), Lease(uuid4(), -1), Lease(uuid4(), 2**63)]
LEASES += [Lease(uuid4(), 1.0), Lease(None, None), Lease("x", 1), Lease(uuid4(), "1")]  # type: ignore[arg-type]

# The arguments of each method, and the values that it rejects.
GOOD: dict[str, Any] = {
    "create_job": {"job": NewJob(job_type="t")},
    "get_or_create_job": {"job": NewJob(job_type="t")},
    "replace_pending_job": {"job": NewJob(job_type="t", idempotency_key="k")},
    "create_jobs": {"jobs": []},
    "create_jobs_in_batches": {"jobs": []},
    "get_job": {"job_id": uuid4()},
    "get_jobs": {"job_ids": []},
    "get_job_by_idempotency_key": {"idempotency_key": "k"},
    "list_jobs": {},
    "count_jobs": {},
    "update_job": {"job_id": uuid4(), "update": JobUpdate()},
    "cancel_jobs": {"jobs": []},
    "retry_jobs": {"jobs": []},
    "reschedule_jobs": {"jobs": [], "scheduled_at": None, "delay": None},
    "change_jobs": {"jobs": [], "priority": 1},
    "delete_job": {"job_id": uuid4()},
    "delete_jobs": {"jobs": []},
    "prune_jobs": {"older_than": SECOND},
    "claim_jobs": {"queues": "q", "worker_id": "w"},
    "complete_and_claim": {"leases": [], "queues": "q", "worker_id": "w"},
    "heartbeat_jobs": {"leases": []},
    "complete_jobs": {"leases": []},
    "complete_job": {"lease": HELD},
    "fail_jobs": {"failures": []},
    "fail_job": {"lease": HELD, "error": "e"},
    "bury_jobs": {"failures": []},
    "release_jobs": {"leases": []},
    "rescue_jobs": {},
    "next_job_at": {"queues": "q"},
    "pause_queue": {"queue": "q"},
    "resume_queue": {"queue": "q"},
    "listen": {"queues": "q"},
    "list_failures": {"job_id": uuid4()},
    "get_transaction_status": {"transaction_id": "17"},
}
REFUSED: dict[str, list[Any]] = {
    "job": [None, "t", {"job_type": "t"}, [NewJob(job_type="t")], NewJob(job_type="t", payload={1})],
    "job_id": IDS,
    "job_ids": [None, 5, *([bad] for bad in IDS)],
    "jobs": [None, 5, [None], [{}], ["x"]],
    "idempotency_key": NAMES,
    "worker_id": NAMES,
    "queue": NAMES,
    "until": [5, "now", SECOND, datetime(2030, 1, 1), datetime.max],  # noqa: DTZ001, DTZ901
    "queues": [5, [], *NAMES, *([bad] for bad in NAMES)],
    "job_filter": [5, {}, "pending"],
    "limit": [None, 0, -1, 1001, 10**100, 1.0, float("nan"), True, "5"],
    "cursor": [5, "", "x", b"x"],
    "update": [None, 5, {"priority": 1}, JobUpdate(payload=object())],
    "scheduled_at": [5, "now", datetime(2030, 1, 1), datetime.max],  # noqa: DTZ001, DTZ901
    "delay": TIMES,
    "progress": [5, "x", []],
    "priority": [-32768, 32768, 1.5, "1", True],
    "max_attempts": [0, 10_001, 1.5, "1", True],
    "job_types": [5, [], *NAMES[1:], *([bad] for bad in NAMES)],
    "older_than": [None, *TIMES],
    "statuses": [None, 5, "x", "pending", [None], [5], ["running"]],
    "lease": [None, *TIMES],
    "leases": [5, None, HELD, *([bad] for bad in LEASES)],
    "failures": [None, 5, "xy", [HELD], [(HELD,)], *([(bad, "e")] for bad in LEASES)],
    "retry_in": TIMES,
    "backoff": [None, 5, SECOND],
    "transaction_id": [None, 5, "", "x", "-1", "1;", "1 ", b"1", str(2**64)],
}
REFUSED_BY: dict[tuple[str, str], list[Any]] = {
    ("complete_job", "lease"): LEASES,
    ("fail_job", "lease"): LEASES,
    ("release_jobs", "delay"): [None, *TIMES],
    ("fail_job", "error"): [],  # its text is stored, whatever its type
    ("create_jobs", "jobs"): [None, 5, NewJob(job_type="t"), [None], [{}], [NewJob(job_type="t", payload={1})]],
}
REFUSED_BY["prune_jobs", "queues"] = REFUSED["job_types"]
REFUSED_BY["change_jobs", "queue"] = NAMES[1:]
REFUSED_BY["create_jobs_in_batches", "jobs"] = REFUSED_BY["create_jobs", "jobs"]


def every_refusal() -> Iterator[Any]:
    for name, good in GOOD.items():
        for parameter in list(inspect.signature(getattr(PostgresStorage, name)).parameters)[1:]:
            for number, bad in enumerate(REFUSED_BY.get((name, parameter), REFUSED.get(parameter, [...]))):
                yield pytest.param(name, {**good, parameter: bad}, id=f"{name}-{parameter}-{number}")


def test_every_method_has_an_invalid_argument_here() -> None:
    methods = {name for name, _ in inspect.getmembers(PostgresStorage, inspect.isfunction) if not name.startswith("_")}
    expected = methods - {"bound_to", "close", "ping", "queue_stats", "list_workers", "list_job_types"}
    assert expected == set(GOOD), (
        f"tests/test_arguments.py: add valid arguments of {sorted(expected - set(GOOD))} to GOOD, "
        f"remove {sorted(set(GOOD) - expected)}"
    )


@pytest.mark.parametrize(("name", "arguments"), list(every_refusal()))
def test_an_invalid_argument_is_rejected_by_name(name: str, arguments: dict[str, Any]) -> None:
    # Without a connection: requesting one fails differently.
    with pytest.raises(InvalidJobError) as caught:  # noqa: PT012 - an iterator is rejected when it starts
        given = getattr(PostgresStorage(DatabaseConfig()), name)(**arguments)
        next(given)

    async def run() -> None:
        given = getattr(AsyncPostgresStorage(DatabaseConfig()), name)(**arguments)
        await (anext(given) if inspect.isasyncgen(given) else given)

    with pytest.raises(type(caught.value)) as caught_async:
        asyncio.run(run())
    said = [str(error.value).replace("AsyncIterable", "Iterable") for error in (caught, caught_async)]
    assert said[0] == said[1].replace("an Iterable or an Iterable", "an Iterable")


@pytest.mark.parametrize(
    "fields",
    [
        {"base": timedelta.max}, {"maximum": timedelta.max}, {"base": -SECOND}, {"base": 5}, {"maximum": None},
        {"factor": 0.5}, {"factor": 101}, {"factor": float("nan")}, {"factor": float("inf")}, {"factor": 10**400},
        {"factor": None}, {"jitter": -0.1}, {"jitter": 1.1}, {"jitter": float("nan")}, {"jitter": "0"},
    ],
)  # fmt: skip
def test_an_invalid_backoff_is_rejected(fields: Any) -> None:
    with pytest.raises(InvalidJobError, match=next(iter(fields))):
        Backoff(**fields)


def test_a_job_with_the_longest_backoff_can_be_read(goqueue_store: PostgresStorage) -> None:
    longest = timedelta(days=365_000)
    backoff = Backoff(base=longest, factor=100, maximum=longest, jitter=1)
    new = NewJob(job_type="t", max_attempts=10_000)
    goqueue_store.create_job(new)
    goqueue_store.update_job(new.id, JobUpdate(attempts=9_998))
    [job] = goqueue_store.claim_jobs("default", "w", lease=longest)
    assert job.lease_expires_at is not None
    assert job.lease_expires_at > job.updated_at + longest - SECOND
    assert goqueue_store.fail_job(job, "e", backoff=backoff) == "pending"
    assert goqueue_store.get_job(new.id).scheduled_at >= job.updated_at + longest


def test_a_job_with_the_longest_delay_can_be_read(goqueue_store: PostgresStorage) -> None:
    longest = timedelta(days=365_000)
    job = goqueue_store.create_job(NewJob(job_type="t", delay=longest))
    assert job.scheduled_at - job.created_at == longest
    with pytest.raises(InvalidJobError, match="delay must be a timedelta of zero or more, at most 365,000 days"):
        NewJob(job_type="t", delay=longest + SECOND)
    assert goqueue_store.prune_jobs(longest) == 0
