"""Each method called twice: the second call does what "Repeating" in its docstring says, and changes nothing else."""

import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest

from goqueue import (
    GoQueueError,
    Job,
    JobFilter,
    JobNotFoundError,
    JobStatus,
    JobUpdate,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    Storage,
)

HOUR = timedelta(hours=1)
LATER = datetime(2050, 1, 1, tzinfo=UTC)
ZERO = timedelta(0)
NEW = NewJob(job_type="new", queue="new", idempotency_key="new")
TIMES = {"updated_at", "scheduled_at"}
#: The columns of a claimed job that a claim sets.
CLAIM = {
    "status",
    "attempts",
    "locked_by",
    "locked_at",
    "lease_token",
    "lease_expires_at",
    "started_at",
    "updated_at",
}


class Given(NamedTuple):
    """The jobs of each test: held and expired ones are running, and there are two of each other kind."""

    pending: Job
    keyed: Job
    held: Job
    dead: UUID
    transaction_id: str


class Repeated(NamedTuple):
    """``call`` runs twice. ``second`` compares the results, or is the second call's error. ``changed`` are the columns
    that the second call changes. ``says`` is the docstring's text."""

    says: str
    call: Callable[[Storage, Given], Any]
    second: Callable[[Any, Any], bool] | type[GoQueueError] = lambda first, second: bool(first == second)
    changed: frozenset[str] | set[str] = frozenset()


def read(call: Callable[[Storage, Given], Any]) -> Repeated:
    return Repeated("changes nothing.", call)


def differ(first: Any, second: Any) -> bool:
    return bool(first and second and first != second)


def ids_differ(first: list[Job], second: list[Job]) -> bool:
    return [job.id for job in first] != [job.id for job in second] and len(first) == len(second) == 1


OTHER_JOBS = "claims other jobs; jobs of a lost reply stay leased until their leases expire."
LOST = "raises LeaseLostError"
CALLS = {
    "create_job": Repeated("returns the job of the first call.", lambda store, given: store.create_job(NEW)),
    "get_or_create_job": Repeated(
        "returns the same job; created is then False.",
        lambda store, given: store.get_or_create_job(NEW),
        lambda first, second: first == (second[0], True) and not second[1],
    ),
    "create_jobs": Repeated(
        "adds no NewJob twice; existing jobs are not created.",
        lambda store, given: store.create_jobs([NEW]),
        lambda first, second: (first, second) == ([(NEW.id, True)], [(NEW.id, False)]),
    ),
    "create_jobs_in_batches": Repeated(
        "adds no NewJob twice; existing jobs are not created.",
        lambda store, given: list(store.create_jobs_in_batches([NEW])),
        lambda first, second: (first, second) == ([[(NEW.id, True)]], [[(NEW.id, False)]]),
    ),
    "get_job": read(lambda store, given: store.get_job(given.held.id)),
    "get_jobs": read(lambda store, given: store.get_jobs([given.held.id])),
    "get_job_by_idempotency_key": read(lambda store, given: store.get_job_by_idempotency_key("keyed")),
    "list_jobs": read(lambda store, given: store.list_jobs()),
    "count_jobs": read(lambda store, given: store.count_jobs()),
    "update_job": Repeated(
        "sets the same values again, and overwrites later changes by others.",
        lambda store, given: store.update_job(given.pending.id, JobUpdate(priority=7)),
        lambda first, second: first.priority == second.priority == 7,
        {"updated_at"},
    ),
    "replace_pending_job": Repeated(
        "replaces the job again, and overwrites later changes by others.",
        lambda store, given: store.replace_pending_job(NewJob(job_type="other", idempotency_key="keyed")),
        lambda first, second: first.id == second.id and first.job_type == second.job_type == "other",
        TIMES,
    ),
    "cancel_jobs": Repeated(
        "does not count cancelled jobs; cancels jobs that were retried in the meantime.",
        lambda store, given: store.cancel_jobs([given.pending.id, given.held.id]),
        lambda first, second: (first, second) == (2, 0),
    ),
    "retry_jobs": Repeated(
        "leaves pending jobs unchanged; retries jobs that ended in the meantime.",
        lambda store, given: store.retry_jobs(given.dead),
        lambda first, second: (first, second) == (1, 0),
    ),
    "reschedule_jobs": Repeated(
        "sets the same scheduled_at again, or a new time from delay; overwrites later changes by others.",
        lambda store, given: store.reschedule_jobs(given.pending.id, delay=HOUR),
        lambda first, second: (first, second) == (1, 1),
        TIMES,
    ),
    "change_jobs": Repeated(
        "sets the same values again, and overwrites later changes by others.",
        lambda store, given: store.change_jobs(given.pending.id, priority=7),
        lambda first, second: (first, second) == (1, 1),
        {"updated_at"},
    ),
    "delete_job": Repeated(
        "raises JobNotFoundError.", lambda store, given: store.delete_job(given.pending.id), JobNotFoundError
    ),
    "delete_jobs": Repeated(
        "deletes no more, except new jobs that a filter matches.",
        lambda store, given: store.delete_jobs([given.pending.id, given.held.id]),
        lambda first, second: (first, second) == (2, 0),
    ),
    "prune_jobs": Repeated(
        "deletes the next batch.",
        lambda store, given: store.prune_jobs(ZERO, limit=1),
        lambda first, second: (first, second) == (1, 1),
        {"(deleted)"},
    ),
    "claim_jobs": Repeated(OTHER_JOBS, lambda store, given: store.claim_jobs("default", "w"), ids_differ, CLAIM),
    "complete_and_claim": Repeated(
        f"completes nothing twice and {OTHER_JOBS}",
        lambda store, given: store.complete_and_claim([given.held], "default", "w"),
        ids_differ,
        CLAIM,
    ),
    "heartbeat_jobs": Repeated(
        "renews the leases again.",
        lambda store, given: store.heartbeat_jobs([given.held]),
        changed={"lease_expires_at", "updated_at"},
    ),
    "complete_jobs": Repeated(
        "succeeds under the same leases while the jobs are stored, and changes nothing.",
        lambda store, given: store.complete_jobs([given.held]),
    ),
    "complete_job": Repeated(
        "succeeds under the same lease while the job is stored, and changes nothing.",
        lambda store, given: store.complete_job(given.held),
    ),
    "fail_jobs": Repeated(
        f"{LOST} for jobs that failed under these leases; no attempt fails twice.",
        lambda store, given: store.fail_jobs([(given.held, "no")]),
        LeaseLostError,
    ),
    "fail_job": Repeated(
        f"{LOST} if the job failed under this lease; no attempt fails twice.",
        lambda store, given: store.fail_job(given.held, "no"),
        LeaseLostError,
    ),
    "bury_jobs": Repeated(
        f"{LOST} for jobs that died under these leases; no attempt fails twice.",
        lambda store, given: store.bury_jobs([(given.held, "no")]),
        LeaseLostError,
    ),
    "release_jobs": Repeated(
        f"{LOST} for the released jobs; no attempt is restored twice.",
        lambda store, given: store.release_jobs([given.held]),
        LeaseLostError,
    ),
    "rescue_jobs": Repeated(
        "rescues the next jobs.",
        lambda store, given: store.rescue_jobs(limit=1),
        differ,
        {
            "status", "locked_by", "locked_at", "lease_expires_at", "last_error", "scheduled_at", "updated_at",
            "(added)",  # the failure
        },
    ),
    "next_job_at": read(lambda store, given: store.next_job_at("default")),
    "list_failures": read(lambda store, given: store.list_failures(given.dead)),
    "list_workers": read(lambda store, given: store.list_workers()),
    "list_job_types": read(lambda store, given: store.list_job_types()),
    "pause_queue": Repeated(
        "sets the same time again.",
        lambda store, given: store.pause_queue("default", until=LATER),
        changed={"paused_at"},
    ),
    "resume_queue": Repeated(
        "returns False.",
        lambda store, given: store.resume_queue("paused"),
        lambda first, second: (first, second) == (True, False),
    ),
    "queue_stats": read(lambda store, given: [(one.queue, one.counts) for one in store.queue_stats()]),
    "get_transaction_status": read(lambda store, given: store.get_transaction_status(given.transaction_id)),
    "ping": read(lambda store, given: store.ping()),
}  # fmt: skip


@pytest.fixture
def given(goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]) -> Given:
    store = goqueue_store
    store.create_jobs(NewJob(job_type="t", queue="held") for _ in range(3))
    [held] = store.claim_jobs("held", "w")
    store.claim_jobs("held", "w", limit=2, lease=ZERO)
    dead = [job_id for job_id, _ in store.create_jobs(NewJob(job_type="t", queue="dead") for _ in range(2))]
    for job in store.claim_jobs("dead", "w", limit=2):
        store.bury_jobs([(job, "no")])
    pending, _ = (store.create_job(NewJob(job_type="t")) for _ in range(2))
    keyed = store.create_job(NewJob(job_type="t", queue="keyed", idempotency_key="keyed"))
    store.pause_queue("paused")
    with goqueue_connection.transaction():
        row = goqueue_connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return Given(pending, keyed, held, dead[0], row[0])


def rows(connection: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """Return every row of the tables."""
    found = connection.execute(
        """
        SELECT j.id::text, to_jsonb(j) FROM goqueue.jobs AS j
        UNION ALL SELECT f.job_id || ' ' || f.lease_token, to_jsonb(f) FROM goqueue.job_failures AS f
        UNION ALL SELECT p.queue, to_jsonb(p) FROM goqueue.paused_queues AS p
        """
    )
    return dict(found.fetchall())


def changes(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> set[str]:
    """Return the names of the columns that differ; rows that only one side has are (added) or (deleted)."""
    found = {"(added)"} if after.keys() - before.keys() else set()
    found |= {"(deleted)"} if before.keys() - after.keys() else set()
    for key in before.keys() & after.keys():
        found |= {name for name, value in before[key].items() if after[key][name] != value}
    return found


@pytest.mark.parametrize("name", CALLS)
def test_repeating_a_call_does_what_its_docstring_says(
    goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any], given: Given, name: str
) -> None:
    repeated = CALLS[name]
    first = repeated.call(goqueue_store, given)
    before = rows(goqueue_connection)
    if isinstance(repeated.second, type):
        with pytest.raises(repeated.second):
            repeated.call(goqueue_store, given)
    else:
        second = repeated.call(goqueue_store, given)
        assert repeated.second(first, second), (first, second)
    assert changes(before, rows(goqueue_connection)) == repeated.changed


@pytest.mark.parametrize("name", CALLS)
def test_each_docstring_describes_the_effect_of_repeating(name: str) -> None:
    for kind in (Storage, PostgresStorage):
        said = re.search(r"^Repeating: (.+)\Z", inspect.getdoc(getattr(kind, name)) or "", re.MULTILINE | re.DOTALL)
        where = f"{kind.__name__}.{name}"
        assert said is not None, f"{where}: end its docstring with a paragraph `Repeating: `"
        assert " ".join(said[1].replace("`", "").split()) == CALLS[name].says, f"{where}, or CALLS: they differ"


def test_every_method_of_the_contract_is_repeated() -> None:
    methods = {name for name, _ in inspect.getmembers(Storage, inspect.isfunction) if not name.startswith("_")}
    assert methods - {"close", "listen"} == CALLS.keys(), (
        "tests/test_repeating.py: add the method to CALLS: what does a second call do?"
    )


def test_a_filter_is_read_again(goqueue_store: PostgresStorage, given: Given) -> None:
    """A repeated change by filter finds the jobs that match by then."""
    held = JobFilter(status=JobStatus.RUNNING)
    assert goqueue_store.cancel_jobs(held) == 3
    assert goqueue_store.cancel_jobs(held) == 0
    assert goqueue_store.retry_jobs(given.held.id) == 1
    goqueue_store.claim_jobs("held", "w")
    assert goqueue_store.cancel_jobs(held) == 1
