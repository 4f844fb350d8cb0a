"""The calls that compare a folder's statements with the shipped ones, and the jobs for them.

A case is a call of the store and does not depend on a statement's text: any text with the same effect passes.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import MAXYEAR, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from goqueue.models import Backoff, Held, Job, JobFilter, JobStatus, JobUpdate, Lease, NewJob, QueueStats
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.store import PostgresStorage

__all__ = ["CASES", "IDS", "NAMES", "Case", "Stage", "populate"]

_KILO = timedelta(seconds=1000)
_NO_JITTER = Backoff(base=_KILO, factor=2.0, maximum=9 * _KILO, jitter=0.0)


# --- the population -------------------------------------------------------------------------------------------------


def _id(number: int) -> UUID:
    return UUID(f"019a0000-0000-7000-8000-{number:012d}")


#: The id of each job, by its name in messages. Ids are not in the order of creation.
IDS = {
    name: _id(number)
    for number, name in enumerate(
        (
            "due 3", "due 1", "due 2", "twin 2", "twin 1", "urgent", "late priority", "future", "other queue",
            "not due", "held 2", "held 1", "held 3", "claimed twice", "expired", "expired at its last attempt",
            "completed", "completed 2", "dead", "cancelled", "failed twice", "just due", "absent", "new 1", "new 2",
            "at the highest token", "again 1", "again 2", "cancelled, its unique key taken",
        ),
        1,
    )
}  # fmt: skip
NAMES = {job_id: name for name, job_id in IDS.items()}


def _new(now: datetime, name: str, queue: str, due: float, **fields: Any) -> NewJob:
    """Return a job that is due in ``due`` thousand seconds."""
    fields = {"job_type": "type 1", "payload": {"name": name}, **fields}
    return NewJob(id=IDS[name], queue=queue, scheduled_at=now + due * _KILO, **fields)


def populate(store: PostgresStorage, connection: Connection[Any], now: datetime) -> dict[str, Job]:
    """Create jobs of every kind with the shipped statements; return them by name.

    ``store`` is bound to ``connection``. Queries: backdate_jobs, wear_out_tokens, and those of the methods.
    """
    new = partial(_new, now)
    for job in (
        new("due 1", "a", -3),
        new("due 2", "a", -5, job_type="type 2"),
        new("due 3", "a", -2, max_attempts=1),
        new("twin 1", "a", -4, idempotency_key="twin"),
        new("urgent", "a", -1, priority=-5),
        new("late priority", "a", -9, priority=3),
        new("future", "a", 9, priority=-9),
        new("other queue", "b", -6, job_type="type 2"),
        new("not due", "b", 9),
        new("held 1", "held", -1, unique_key="busy"),
        new("held 2", "held", -2),
        new("held 3", "held", -3, max_attempts=1),
        new("claimed twice", "twice", -1),
        new("expired", "expired", -1),
        new("expired at its last attempt", "expired", -2, max_attempts=1),
        new("completed", "done", -1, idempotency_key="done"),
        new("completed 2", "done 2", -1),
        new("dead", "dead", -1, max_attempts=1),
        new("cancelled", "cancelled", -1),
        new("failed twice", "failed", -1),
        new("at the highest token", "worn", -1),
        new("again 1", "cancelled", -1),
        new("again 2", "cancelled", -1),
        new("cancelled, its unique key taken", "cancelled", -1),
        NewJob(id=IDS["just due"], queue="a", job_type="type 1"),
    ):
        store.create_job(job)
    twin = store.get_job(IDS["twin 1"])
    store.create_job(NewJob(id=IDS["twin 2"], queue="a", job_type="type 1", scheduled_at=twin.scheduled_at))
    store.claim_jobs("held", "holder", 3, 9 * _KILO)
    store.release_jobs(store.claim_jobs("twice", "first holder", 1, 9 * _KILO))
    store.claim_jobs("twice", "holder", 1, 9 * _KILO)
    store.claim_jobs("expired", "vanished", 2, timedelta(milliseconds=1))
    for queue in ("done", "done 2"):
        store.complete_jobs(store.claim_jobs(queue, "holder", 1, 9 * _KILO))
    for queue, retry_in in (("dead", _KILO), ("failed", timedelta()), ("failed", 5 * _KILO)):
        [held] = store.claim_jobs(queue, "holder", 1, 9 * _KILO)
        store.fail_job(held, f"{queue}: no answer in {retry_in}", retry_in=retry_in)
    unique_keys = {"again 1": "again", "again 2": "again", "cancelled, its unique key taken": "busy"}
    store.cancel_jobs([IDS["cancelled"], *(IDS[name] for name in unique_keys)])
    for name, key in unique_keys.items():  # once they are finished
        store.update_job(IDS[name], JobUpdate(unique_key=key))
    list(admin_queries().backdate_jobs(connection, ids=[IDS["completed 2"]], age=timedelta(hours=2)))
    list(admin_queries().wear_out_tokens(connection, ids=[IDS["at the highest token"]]))
    return {NAMES[job.id]: job for job in store.list_jobs(limit=1000).jobs}


# --- the cases ------------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """The arguments of a case: the store, with one query from the folder or the shipped files, and the jobs by name."""

    store: PostgresStorage
    jobs: Mapping[str, Job]
    #: Runs a query by itself, for queries without a method of their own.
    run: Callable[..., Any]
    now: datetime

    def new(self, name: str, queue: str, due: float, **fields: Any) -> NewJob:
        return _new(self.now, name, queue, due, **fields)

    def held(self, *names: str) -> list[Held]:
        """Return the leases of jobs as of their last claim; absent jobs get a token too."""
        return [self.jobs[name] if name in self.jobs else Lease(IDS[name], 1) for name in names]


class Case:
    """A call of the store, and the queries that it tests."""

    def __init__(self, title: str, queries: tuple[str, ...], call: Callable[..., Any], *arguments: Any) -> None:
        self.title, self.queries = title, queries
        self._call, self._arguments = call, arguments

    def __call__(self, stage: Stage) -> Any:
        """Run the call and return its result."""
        return self._call(stage, *self._arguments)


def _ids(*names: str) -> list[UUID]:
    return [IDS[name] for name in names]


_NEW: dict[str, Callable[[Stage], NewJob]] = {
    "with a time": lambda stage: stage.new("new 1", "a", -1),
    "with a time to come, a priority and a key": lambda stage: stage.new(
        "new 1", "a", 5, priority=-7, max_attempts=3, idempotency_key="k"
    ),
    "with a delay": lambda _: NewJob(id=IDS["new 1"], job_type="type 1", delay=2 * _KILO),
    "due at once": lambda _: NewJob(id=IDS["new 1"], job_type="type 1", payload=None),
    "whose key a pending job has": lambda stage: stage.new("new 1", "a", -1, idempotency_key="twin"),
    "whose key a completed job has": lambda stage: stage.new("new 1", "a", -1, idempotency_key="done"),
    "whose unique key a running job has": lambda stage: stage.new(
        "new 1", "a", -1, idempotency_key="k", unique_key="busy"
    ),
    "whose unique key cancelled jobs have": lambda stage: stage.new(
        "new 1", "a", -1, idempotency_key="k", unique_key="again"
    ),
    "whose keys a pending job and cancelled jobs have": lambda stage: stage.new(
        "new 1", "a", -1, idempotency_key="twin", unique_key="again"
    ),
    "whose keys two jobs have": lambda stage: stage.new("new 1", "a", -1, idempotency_key="twin", unique_key="busy"),
    "whose id is taken": lambda stage: stage.new("due 1", "b", -1),
}
_NEW_ONES: dict[str, Callable[[Stage], list[NewJob]]] = {
    "with two": lambda stage: [
        stage.new("new 1", "a", -1, priority=2, idempotency_key="k", max_attempts=2),
        NewJob(id=IDS["new 2"], queue="b", job_type="type 2", payload=None, delay=2 * _KILO),
    ],
    "with two without keys": lambda stage: [
        stage.new("new 1", "a", -1, priority=2, max_attempts=2),
        NewJob(id=IDS["new 2"], queue="b", job_type="type 2", payload=None, delay=2 * _KILO),
    ],
    "with one whose key is taken": lambda stage: [
        stage.new("new 1", "a", -1, idempotency_key="twin"), stage.new("new 2", "b", 3),
    ],
    "with one whose id is taken": lambda stage: [stage.new("completed", "b", -1), stage.new("new 2", "b", 3)],
    "with two of one key": lambda stage: [
        stage.new("new 1", "a", -1, idempotency_key="k"), stage.new("new 2", "b", 3, idempotency_key="k"),
    ],
    "with one whose unique key is taken": lambda stage: [
        stage.new("new 1", "a", -1, unique_key="busy"), stage.new("new 2", "b", 3, unique_key="u"),
    ],
    "with two of one unique key": lambda stage: [
        stage.new("new 1", "a", -1, unique_key="again"), stage.new("new 2", "b", 3, unique_key="again"),
    ],
    "with one whose id a finished job has, and one with its unique key, which a running job has": lambda stage: [
        stage.new("cancelled, its unique key taken", "a", -1), stage.new("new 2", "b", 3, unique_key="busy"),
    ],
}  # fmt: skip
_FILTERS: dict[str, Callable[[Stage], JobFilter | None]] = {
    "of all": lambda _: None,
    "of one status": lambda _: JobFilter(status="pending"),
    "of three statuses": lambda _: JobFilter(status=["dead", "running", "completed"]),
    "of one queue": lambda _: JobFilter(queue="a"),
    "of one job type": lambda _: JobFilter(job_type="type 2"),
    "of queues, types and statuses": lambda _: JobFilter(queue=["a", "held"], job_type="type 1", status="pending"),
    "of an unknown queue": lambda _: JobFilter(queue="nowhere"),
    "of one worker": lambda _: JobFilter(locked_by="holder"),
    "of two workers, in one queue": lambda _: JobFilter(locked_by=["vanished", "holder"], queue="expired"),
    "created in a range": lambda stage: JobFilter(
        created_from=stage.jobs["urgent"].created_at, created_before=stage.jobs["held 3"].created_at
    ),
}
_LEASES: dict[str, Callable[[Stage], list[Held]]] = {
    "one job that it holds": lambda stage: stage.held("held 1"),
    "three jobs that it holds, in descending order": lambda stage: stage.held("held 3", "held 2", "held 1"),
    "jobs whose leases have expired, and that nobody has rescued": lambda stage: stage.held(
        "expired", "expired at its last attempt"
    ),
    "jobs that are pending, completed, dead, cancelled and absent": lambda stage: stage.held(
        "due 1", "failed twice", "completed", "dead", "cancelled", "absent"
    ),
    "the stale token of a job that was claimed again, and with one that it holds": lambda stage: [
        Lease(IDS["claimed twice"], 1), *stage.held("held 1"),
    ],
    "a job that the same lease has completed, and one that it holds": lambda stage: stage.held("completed", "held 2"),
    "the token of another job": lambda stage: [Lease(IDS["held 1"], stage.jobs["claimed twice"].lease_token)],
}  # fmt: skip
_SETTLING: dict[str, Callable[[Stage, list[Held]], Any]] = {
    "complete_jobs": lambda stage, leases: stage.store.complete_jobs(leases),
    "complete_and_claim": lambda stage, leases: stage.store.complete_and_claim(leases, "a", "worker", 2, 3 * _KILO),
    "heartbeat_jobs": lambda stage, leases: stage.store.heartbeat_jobs(leases, 3 * _KILO),
    "release_jobs": lambda stage, leases: stage.store.release_jobs(leases),
    "fail_jobs": lambda stage, leases: stage.store.fail_jobs(
        [(held, f"error of {NAMES[held.id]}") for held in leases], backoff=_NO_JITTER
    ),
    "bury_jobs": lambda stage, leases: stage.store.bury_jobs([(held, "it can't be done") for held in leases]),
}
#: The query of each of these whose name differs.
_QUERY = {"complete_and_claim": "complete_jobs", "bury_jobs": "fail_jobs"}
_EVERY_KIND = (
    "twin 2", "twin 1", "due 1", "held 3", "held 1", "completed", "dead", "cancelled", "failed twice", "future",
    "absent",
)  # fmt: skip
_UPDATES: dict[str, tuple[str, Callable[[Stage], JobUpdate]]] = {
    "every field of a pending job": (
        "due 1",
        lambda stage: JobUpdate(
            queue="b", job_type="type 3", payload=[1], priority=7, attempts=2, max_attempts=9, last_error="by hand",
            idempotency_key="mine", unique_key="mine too", scheduled_at=stage.jobs["future"].scheduled_at,
        ),
    ),
    "one field of a pending job": ("twin 1", lambda _: JobUpdate(priority=1)),
    "clearing fields": ("twin 1", lambda _: JobUpdate(idempotency_key=None, last_error=None, scheduled_at=None)),
    "one field of a running job": ("held 1", lambda _: JobUpdate(priority=1)),
    "one field of a completed job": ("completed", lambda _: JobUpdate(priority=1)),
    "a pending job to running": ("due 1", lambda _: JobUpdate(status=JobStatus.RUNNING, locked_by="by hand")),
    "a pending job to cancelled": ("due 1", lambda _: JobUpdate(status=JobStatus.CANCELLED)),
    "a running job to running": ("held 1", lambda _: JobUpdate(status=JobStatus.RUNNING, locked_by="by hand")),
    "a running job to pending": ("held 1", lambda _: JobUpdate(status=JobStatus.PENDING)),
    "a running job to completed": ("claimed twice", lambda _: JobUpdate(status=JobStatus.COMPLETED)),
    "a running job to dead": ("held 2", lambda _: JobUpdate(status=JobStatus.DEAD, last_error="by hand")),
    "a dead job to pending": ("dead", lambda _: JobUpdate(status=JobStatus.PENDING)),
    "a cancelled job to pending": ("cancelled", lambda _: JobUpdate(status=JobStatus.PENDING)),
    "a completed job to pending": ("completed", lambda _: JobUpdate(status=JobStatus.PENDING)),
    "a job with the highest token to running": (
        "at the highest token",
        lambda _: JobUpdate(status=JobStatus.RUNNING, locked_by="by hand"),
    ),
    "a dead job to running": ("dead", lambda _: JobUpdate(status=JobStatus.RUNNING, locked_by="by hand")),
    "a key that another job has": ("due 1", lambda _: JobUpdate(idempotency_key="done")),
    "clearing a unique key": ("held 1", lambda _: JobUpdate(unique_key=None)),
    "a job's own unique key": ("held 1", lambda _: JobUpdate(unique_key="busy")),
    "a unique key that a running job has": ("due 1", lambda _: JobUpdate(unique_key="busy")),
    "a unique key that finished jobs have": ("due 1", lambda _: JobUpdate(unique_key="again")),
    "a finished job's unique key to a taken one": ("again 1", lambda _: JobUpdate(unique_key="busy")),
    "a cancelled job with a unique key to pending": ("again 1", lambda _: JobUpdate(status=JobStatus.PENDING)),
    "a cancelled job with a taken unique key to pending": (
        "cancelled, its unique key taken",
        lambda _: JobUpdate(status=JobStatus.PENDING),
    ),
    "one field of a cancelled job with a taken unique key": (
        "cancelled, its unique key taken",
        lambda _: JobUpdate(priority=1),
    ),
    "a job that is absent": ("absent", lambda _: JobUpdate(priority=1)),
}  # fmt: skip
_CLAIMS: dict[str, tuple[Any, int]] = {
    "one of many": ("a", 1),
    "three of two queues": (["a", "b"], 3),
    "three of one queue, with two of one time for the last": ("a", 3),
    "six of one queue": ("a", 6),
    "of a queue with one that is not due": ("b", 100),
    "more than are due": (["a", "b"], 100),
    "of a queue whose jobs run": (["held", "expired", "done", "dead", "cancelled", "failed"], 100),
    "of an unknown queue": ("nowhere", 1),
    "of a queue whose job has the highest token": ("worn", 1),
}


def _creating() -> Iterator[Case]:
    def create(stage: Stage, make: Callable[[Stage], NewJob]) -> Any:
        return stage.store.get_or_create_job(make(stage))

    def replace(stage: Stage, make: Callable[[Stage], NewJob]) -> Any:
        return stage.store.replace_pending_job(make(stage))

    def create_many(stage: Stage, make: Callable[[Stage], list[NewJob]]) -> Any:
        return stage.store.create_jobs(make(stage))

    for title, make in _NEW.items():
        yield Case(f"create_job {title}", ("create_job", "find_duplicate_job"), create, make)
        if "key" in title:
            yield Case(f"replace_pending_job {title}", ("replace_pending_job",), replace, make)
    for title, make_many in _NEW_ONES.items():
        queries = ("create_jobs", "create_missing_jobs", "find_duplicate_jobs")
        yield Case(f"create_jobs {title}", queries, create_many, make_many)
    yield Case(
        "find_duplicate_jobs of a finished job's id, its unique key and an idempotency key",
        ("find_duplicate_jobs",),
        lambda stage: sorted(
            stage.run(
                "find_duplicate_jobs",
                ids=[IDS["cancelled, its unique key taken"]],
                idempotency_keys=["done"],
                unique_keys=["busy"],
            ),
            key=lambda row: row.id,
        ),
    )


def _reading() -> Iterator[Case]:
    def get_many(stage: Stage, names: tuple[str, ...]) -> Any:
        return stage.store.get_jobs(_ids(*names))

    for name in ("due 1", "future", "held 1", "completed", "dead", "cancelled", "failed twice", "absent"):
        yield Case(f"get_job of {name}", ("get_job",), lambda stage, name: stage.store.get_job(IDS[name]), name)
    for name in ("due 1", "dead", "failed twice", "absent"):
        yield Case(
            f"list_failures of {name}",
            ("list_failures",),
            lambda stage, name: stage.store.list_failures(IDS[name]),
            name,
        )
    for names in (_EVERY_KIND, ("due 1", "due 3", "due 1", "absent"), ()):
        yield Case(f"get_jobs of {len(names)} ids", ("get_jobs",), get_many, names)
    for key in ("twin", "done", "nobody"):
        yield Case(
            f"get_job_by_idempotency_key with {key!r}",
            ("get_job_by_idempotency_key",),
            lambda stage, key: stage.store.get_job_by_idempotency_key(key),
            key,
        )
    for queues in ("a", ["b", "held"], "nowhere"):
        yield Case(
            f"next_job_at of {queues}", ("next_job_at",), lambda stage, queues: stage.store.next_job_at(queues), queues
        )
    yield Case("queue_stats", ("queue_stats",), lambda stage: stage.store.queue_stats())
    yield Case("list_workers", ("list_workers",), lambda stage: stage.store.list_workers())
    yield Case("list_job_types", ("list_job_types",), lambda stage: stage.store.list_job_types())
    yield Case("ping", ("ping",), lambda stage: stage.run("ping"))
    yield Case(
        "get_transaction_status of an old one",
        ("get_transaction_status",),
        lambda stage: stage.run("get_transaction_status", transaction_id="3"),
    )
    yield Case("get_session", ("get_session",), lambda stage: stage.run("get_session", backend_pid=0))
    yield Case("announce_listener", ("announce_listener",), lambda stage: stage.run("announce_listener"))
    yield Case(
        "find_listener_blockers when there are none",
        ("find_listener_blockers",),
        lambda stage: stage.run("find_listener_blockers"),
    )
    yield Case(
        "find_listener_blockers after announce_listener, whose lock is shared",
        ("find_listener_blockers",),
        lambda stage: [stage.run("announce_listener"), stage.run("find_listener_blockers")],
    )
    for queues in (["a", "b"], []):
        yield Case(
            f"wake_listeners of {len(queues)} queues",
            ("wake_listeners",),
            lambda stage, queues: stage.run("wake_listeners", queues=queues),
            queues,
        )


def _is_endless(stats: QueueStats) -> bool:
    return stats.paused_until is not None and stats.paused_until.year == MAXYEAR


def _pausing() -> Iterator[Case]:
    def paused(stage: Stage, ends: list[int | None]) -> Any:
        """Return what a queue's pauses change: one after the other, until the given thousand seconds from now."""
        store = stage.store
        for end in ends:
            store.pause_queue("a", until=None if end is None else stage.now + end * _KILO)
        claimed = store.claim_jobs(["a", "b"], "worker", 3, 3 * _KILO)
        return [claimed, store.next_job_at("a"), store.next_job_at(["a", "b"]), stats(stage)]

    def stats(stage: Stage) -> Any:
        """Return the statistics. The distance to the end of an endless pause would change from run to run."""
        found = stage.store.queue_stats()
        return [[each.queue, each.counts, "endless"] if _is_endless(each) else each for each in found]

    queries = ("pause_queue", "claim_jobs", "next_job_at", "queue_stats")
    for title, until in {"without an end": [None], "until a time": [5], "until a time that has passed": [-5]}.items():
        yield Case(f"pause_queue {title}", queries, paused, until)
    yield Case("pause_queue twice", queries, paused, [None, 5])
    yield Case(
        "pause_queue of a queue without jobs",
        ("pause_queue", "queue_stats"),
        lambda stage: [stage.store.pause_queue("nowhere"), stats(stage)],
    )
    yield Case("resume_queue of one that is not paused", ("resume_queue",), lambda stage: stage.store.resume_queue("a"))
    for until in ([None], [5], [-5]):
        yield Case(
            f"resume_queue of one paused until {until}",
            ("resume_queue", "claim_jobs"),
            lambda stage, until: [paused(stage, until), stage.store.resume_queue("a"), paused(stage, [])],
            until,
        )


def _listing() -> Iterator[Case]:
    def page(stage: Stage, make: Callable[[Stage], JobFilter | None]) -> Any:
        return stage.store.list_jobs(make(stage)).jobs

    def pages(stage: Stage, make: Callable[[Stage], JobFilter | None]) -> Any:
        """Return all pages, each of three jobs."""
        found: list[list[Job]] = []
        cursor = None
        while len(found) <= len(IDS):
            page = stage.store.list_jobs(make(stage), 3, cursor)
            found.append(page.jobs)
            if (cursor := page.next_cursor) is None:
                break
        return found

    def count(stage: Stage, make: Callable[[Stage], JobFilter | None]) -> Any:
        counted = stage.store.count_jobs(make(stage))
        return [counted, counted.exact]

    for title, job_filter in _FILTERS.items():
        yield Case(f"list_jobs {title}", ("list_jobs",), page, job_filter)
        yield Case(f"list_jobs {title}, three a page", ("list_jobs",), pages, job_filter)
        yield Case(f"count_jobs {title}", ("count_jobs",), count, job_filter)


def _changing() -> Iterator[Case]:
    def update(stage: Stage, name: str, make: Callable[[Stage], JobUpdate]) -> Any:
        return stage.store.update_job(IDS[name], make(stage))

    for title, (name, make) in _UPDATES.items():
        yield Case(f"update_job: {title}", ("update_job",), update, name, make)
    ids = _ids(*_EVERY_KIND)
    kinds = "with jobs of every kind"
    yield Case(f"cancel_jobs {kinds}", ("cancel_jobs",), lambda stage: stage.store.cancel_jobs(ids))
    yield Case(f"retry_jobs {kinds}", ("retry_jobs",), lambda stage: stage.store.retry_jobs(ids))
    unique = _ids("again 1", "again 2", "cancelled, its unique key taken")
    yield Case("retry_jobs with unique keys", ("retry_jobs",), lambda stage: stage.store.retry_jobs(unique))
    yield Case(
        f"reschedule_jobs {kinds} and a delay",
        ("reschedule_jobs",),
        lambda stage: stage.store.reschedule_jobs(ids, delay=4 * _KILO),
    )
    yield Case(
        f"reschedule_jobs {kinds} and a time",
        ("reschedule_jobs",),
        lambda stage: stage.store.reschedule_jobs(ids, scheduled_at=stage.jobs["future"].scheduled_at),
    )
    changes: tuple[dict[str, Any], ...] = (
        {"queue": "b"},
        {"priority": -9},
        {"max_attempts": 1},
        {"queue": "b", "priority": 9, "max_attempts": 2},
    )
    for change in changes:
        yield Case(
            f"change_jobs {kinds} and {', '.join(change)}",
            ("change_jobs",),
            lambda stage, change: stage.store.change_jobs(ids, **change),
            change,
        )
    yield Case(f"delete_jobs {kinds}", ("delete_jobs", "delete_failures"), lambda stage: stage.store.delete_jobs(ids))
    yield from _filtered()
    for name in ("due 1", "held 1", "completed", "failed twice", "absent"):
        yield Case(
            f"delete_job of {name}",
            ("delete_job", "delete_failures"),
            lambda stage, name: stage.store.delete_job(IDS[name]),
            name,
        )
    yield from _pruning()


def _filtered() -> Iterator[Case]:
    """Changes of jobs of every kind by their ids, if they still match a filter."""

    def change(stage: Stage, query: str, values: dict[str, Any]) -> Any:
        return [row.id for row in stage.run(query, ids=_ids(*_EVERY_KIND, "due 2", "again 1"), **values)]

    anything = {"statuses": None, "queues": None, "job_types": None, "worker_ids": None}
    filters: dict[str, dict[str, list[str]]] = {
        "a status": {"statuses": ["dead", "running"]},
        "a queue": {"queues": ["a", "cancelled"]},
        "a job type": {"job_types": ["type 2"]},
        "a worker": {"worker_ids": ["holder"]},
    }
    changes: dict[str, dict[str, Any]] = {
        "cancel_jobs": {},
        "retry_jobs": {},
        "reschedule_jobs": {"scheduled_at": None, "delay": _KILO},
        "change_jobs": {"queue": None, "priority": 5, "max_attempts": None},
        "delete_jobs": {},
    }
    for query, values in changes.items():
        for title, given in filters.items():
            yield Case(f"{query} that still match {title}", (query,), change, query, {**values, **anything, **given})


def _pruning() -> Iterator[Case]:
    def prune(stage: Stage, values: dict[str, Any]) -> Any:
        return stage.run("prune_jobs", **{**defaults, **values})

    finished = ["completed", "dead", "cancelled"]
    defaults = {"statuses": finished, "queues": None, "job_types": None, "job_limit": 100, "kept_ids": []}
    pruned: dict[str, dict[str, Any]] = {
        "of all that has finished": {"older_than": timedelta()},
        "of one": {"older_than": timedelta(), "job_limit": 1},
        "of dead ones": {"older_than": timedelta(), "statuses": ["dead"]},
        "of what finished an hour ago and more": {"older_than": timedelta(hours=1)},
        "of two queues": {"older_than": timedelta(), "queues": ["done", "dead"]},
        "of one of a queue": {"older_than": timedelta(), "queues": ["done 2"], "job_limit": 1},
        "of a job type": {"older_than": timedelta(), "job_types": ["type 2", "type 1"]},
        "of a job type that nothing has": {"older_than": timedelta(), "queues": ["done"], "job_types": ["type 2"]},
        "of what finished in a queue an hour ago and more": {"older_than": timedelta(hours=1), "queues": ["done 2"]},
        "of a queue but the one that is kept": {
            "older_than": timedelta(),
            "queues": ["done", "dead"],
            "kept_ids": _ids("dead"),
        },
        "of all but two that are kept": {"older_than": timedelta(), "kept_ids": _ids("completed", "cancelled")},
        # The method rejects such a call.
        "of pending and running jobs": {"older_than": timedelta(), "statuses": list(JobStatus)},
    }
    for title, values in pruned.items():
        yield Case(f"prune_jobs {title}", ("prune_jobs",), prune, values)
    for limit in (1, 100):
        yield Case(
            f"prune_jobs by the method, of at most {limit}",
            ("prune_jobs",),
            lambda stage, limit: stage.store.prune_jobs(timedelta(), limit=limit),
            limit,
        )


def _working() -> Iterator[Case]:
    def claim(stage: Stage, queues: Any, limit: int) -> Any:
        return stage.store.claim_jobs(queues, "worker", limit, 3 * _KILO)

    def complete_and_claim(stage: Stage, queues: Any, limit: int) -> Any:
        return stage.store.complete_and_claim(stage.held("held 3", "held 1"), queues, "worker", limit, 3 * _KILO)

    for title, (queues, limit) in _CLAIMS.items():
        yield Case(f"claim_jobs: {title}", ("claim_jobs",), claim, queues, limit)
        yield Case(
            f"complete_and_claim: two that it holds, {title}",
            ("complete_jobs", "claim_jobs"),
            complete_and_claim,
            queues,
            limit,
        )
    for method, settle in _SETTLING.items():
        for title, leases in _LEASES.items():
            yield Case(
                f"{method} with {title}",
                (_QUERY.get(method, method),),
                lambda stage, settle, leases: settle(stage, leases(stage)),
                settle,
                leases,
            )
    yield Case(
        "fail_jobs with a time to try again",
        ("fail_jobs",),
        lambda stage: stage.store.fail_jobs([(held, "no") for held in stage.held("held 1")], retry_in=2 * _KILO),
    )
    yield Case(
        "release_jobs with a delay",
        ("release_jobs",),
        lambda stage: stage.store.release_jobs(stage.held("held 1"), delay=2 * _KILO),
    )
    for limit in (1, 100):
        yield Case(
            f"rescue_jobs of at most {limit}",
            ("rescue_jobs",),
            lambda stage, limit: stage.store.rescue_jobs(limit),
            limit,
        )


#: All cases. A query's cases are those that name it.
CASES = (*_creating(), *_reading(), *_listing(), *_changing(), *_working(), *_pausing())
