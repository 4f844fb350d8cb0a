"""Values of derived types (freezegun's, pendulum's, enums, numpy's) mean the same on every path to the server."""

import enum
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import msgspec
import numpy as np
import pendulum
import pytest
import uuid_utils
from freezegun import freeze_time
from msgspec.structs import replace

from goqueue import (
    Backoff,
    DatabaseConfig,
    InvalidFilterError,
    InvalidJobError,
    JobFilter,
    JobUpdate,
    Lease,
    NewJob,
    PostgresStorage,
    Storage,
    WorkerConfig,
)

AT = datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Names(enum.StrEnum):
    MAIL = "mail"


class Mixed(str, enum.Enum):  # noqa: UP042 - the older form
    MAIL = "mail"


class Plain(enum.Enum):
    MAIL = "mail"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class Priority(enum.IntEnum):
    HIGH = -5


class OwnUUID(UUID):
    """A UUID like asyncpg's."""


class OwnTime(datetime):
    pass


class OwnInterval(timedelta):
    def total_seconds(self) -> float:
        return 0.0


def frozen_time() -> datetime:
    with freeze_time(AT):
        return datetime.now(UTC)


TIMES: list[Callable[[], datetime]] = [
    frozen_time,
    lambda: pendulum.datetime(2031, 5, 6, 9, 8, 9, 123456, tz="Africa/Johannesburg"),
    lambda: OwnTime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
]
INTERVALS = [pendulum.duration(hours=1), pendulum.interval(AT, AT + HOUR), OwnInterval(hours=1)]


@pytest.mark.parametrize("make", TIMES)
def test_a_time_of_a_derived_type_is_accepted_on_every_path(store: Storage, make: Callable[[], datetime]) -> None:
    at = make()
    one = store.create_job(NewJob(job_type="t", scheduled_at=at))
    bulk = NewJob(job_type="t", scheduled_at=at)
    store.create_jobs([bulk])
    other = store.create_job(NewJob(job_type="t", idempotency_key="k"))
    assert store.update_job(other.id, JobUpdate(scheduled_at=at)).scheduled_at == AT
    replaced = store.replace_pending_job(NewJob(job_type="t", idempotency_key="k", scheduled_at=at))
    assert [one.scheduled_at, store.get_job(bulk.id).scheduled_at, replaced.scheduled_at] == [AT] * 3
    assert store.reschedule_jobs([one.id, bulk.id], delay=HOUR) == 2
    assert store.reschedule_jobs([one.id, bulk.id], scheduled_at=at) == 2
    exactly = JobFilter(created_before=at)
    first = store.list_jobs(exactly, limit=2)
    second = store.list_jobs(exactly, limit=2, cursor=first.next_cursor)
    assert {job.id for job in first.jobs + second.jobs} == {one.id, bulk.id, other.id}
    assert store.count_jobs(exactly) == 3
    assert store.count_jobs(JobFilter(created_from=at)) == 0
    assert store.cancel_jobs(exactly) == 3


def test_times_under_a_frozen_clock_are_accepted(store: Storage) -> None:
    with freeze_time(AT, ignore=["anyio", "asyncio", "psycopg", "psycopg_pool", "goqueue", "selectors"]):
        at = datetime.now(UTC)
        jobs = [NewJob(job_type="t", scheduled_at=at + HOUR) for _ in range(2)]
        store.create_job(jobs[0])
        store.create_jobs(jobs[1:])
        assert {job.scheduled_at for job in store.list_jobs(JobFilter(created_before=at)).jobs} == {AT + HOUR}


@pytest.mark.parametrize("hour", INTERVALS, ids=lambda value: type(value).__name__)
def test_an_interval_of_a_derived_type_is_accepted_on_every_path(store: Storage, hour: timedelta) -> None:
    one = store.create_job(NewJob(job_type="t", delay=hour))
    bulk = NewJob(job_type="t", delay=hour)
    store.create_jobs([bulk])
    for job in (one, store.get_job(bulk.id)):
        assert job.scheduled_at - job.created_at == HOUR
    assert store.reschedule_jobs(one.id, delay=timedelta(0)) == 1
    [held] = store.claim_jobs("default", "w", lease=hour)
    assert held.lease_expires_at is not None
    assert held.locked_at is not None
    assert held.lease_expires_at - held.locked_at == HOUR
    store.heartbeat_jobs([held], hour)
    store.fail_job(held, "e", retry_in=hour)
    waiting = store.get_job(one.id)
    assert waiting.scheduled_at - waiting.updated_at == HOUR
    store.reschedule_jobs(one.id, delay=timedelta(0))
    [held] = store.claim_jobs("default", "w")
    store.fail_job(held, "e", backoff=Backoff(base=hour, maximum=hour, factor=np.float64(1), jitter=False))
    waiting = store.get_job(one.id)
    assert waiting.scheduled_at - waiting.updated_at == HOUR
    assert store.prune_jobs(hour) == 0


def test_a_setting_of_a_derived_type_is_accepted(goqueue_database: str) -> None:
    config = DatabaseConfig(
        url=goqueue_database,
        connect_timeout=pendulum.duration(seconds=3),
        statement_timeout=OwnInterval(seconds=7),
        application_name=Names.MAIL,
    )
    assert {type(value) for value in (config.connect_timeout, config.statement_timeout)} == {timedelta}
    with PostgresStorage.open(config) as store, store._connection() as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
        assert connection.execute("SHOW application_name").fetchone() == ("mail",)
    assert [type(name) for name in WorkerConfig(queues=(Names.MAIL,)).queues] == [str]


@pytest.mark.parametrize("name", [Names.MAIL, Mixed.MAIL, Text("mail")], ids=lambda name: type(name).__name__)
def test_a_text_of_a_derived_type_is_its_plain_text_on_every_path(store: Storage, name: Any) -> None:
    new = NewJob(job_type=name, queue=name, idempotency_key=name, payload={name: [name]})
    one = store.create_job(new)
    [(second, created)] = store.create_jobs([NewJob(job_type=name, queue=name, payload={name: [name]})])
    assert created
    bulk = store.get_job(second)
    for job in (one, bulk):
        assert (job.job_type, job.queue, job.payload) == ("mail", "mail", {"mail": ["mail"]})
    assert one.idempotency_key == "mail"
    assert store.get_job_by_idempotency_key(name) == one
    assert {type(getattr(new, field)) for field in ("job_type", "queue", "idempotency_key")} == {str}
    assert len(store.list_jobs(JobFilter(queue=name, job_type=[name])).jobs) == 2
    assert store.next_job_at(name) is not None
    claimed = store.claim_jobs([name], name, limit=2)
    assert {job.locked_by for job in claimed} == {"mail"}
    updated = store.update_job(one.id, JobUpdate(queue=name, last_error=name, locked_by=name))
    assert (updated.queue, updated.last_error, updated.locked_by) == ("mail", "mail", "mail")
    store.fail_job(bulk if bulk.lease_token else claimed[1], name)
    store.cancel_jobs(JobFilter(queue=name))


@pytest.mark.parametrize("number", [Priority.HIGH, np.int64(-5)], ids=lambda number: type(number).__name__)
def test_an_integer_of_a_derived_type_is_accepted_on_every_path(store: Storage, number: Any) -> None:
    new = NewJob(job_type="t", priority=number, max_attempts=-number)
    assert (type(new.priority), type(new.max_attempts)) == (int, int)
    assert store.create_job(new).priority == -5
    bulk = NewJob(job_type="t", priority=number)
    store.create_jobs([bulk])
    assert store.update_job(bulk.id, JobUpdate(priority=number, max_attempts=-number)).max_attempts == 5
    assert len(store.list_jobs(limit=-number).jobs) == 2
    claimed = store.claim_jobs("default", "w", limit=-number)
    store.complete_jobs(Lease(job.id, np.int64(job.lease_token)) for job in claimed)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [True, np.bool_(1), 5.0, Decimal(5), "5"], ids=repr)
def test_a_value_that_is_no_integer_is_rejected(goqueue_store: PostgresStorage, number: Any) -> None:
    for refused in (lambda: NewJob(job_type="t", priority=number), lambda: JobUpdate(max_attempts=number)):
        with pytest.raises(InvalidJobError, match="must be a whole number"):
            refused()
    with pytest.raises(InvalidFilterError, match="limit must be a whole number"):
        goqueue_store.list_jobs(limit=number)


def test_an_id_of_a_derived_type_is_accepted_on_every_path(store: Storage) -> None:
    ids = [OwnUUID(str(uuid4())) for _ in range(2)]
    store.create_job(NewJob(job_type="t", id=ids[0]))
    store.create_jobs([NewJob(job_type="t", id=ids[1])])
    assert [type(job.id) for job in store.get_jobs(ids)] == [UUID, UUID]
    assert store.get_job(ids[0]).id == ids[0]
    assert store.cancel_jobs([*ids, uuid4()]) == 2
    assert store.list_failures(ids[0]) == []
    store.delete_job(ids[0])


def test_a_uuid_of_another_library_is_rejected_by_its_full_name() -> None:
    with pytest.raises(InvalidJobError, match=r"not UUID\(.*\) \(uuid_utils\..*UUID\); give a uuid.UUID or its text"):
        NewJob(job_type="t", id=uuid_utils.uuid7())  # type: ignore[arg-type]


class MailJob(NewJob):
    """An application's own jobs, with its own defaults."""

    job_type: str = "mail"
    queue: str = "mail"
    payload: Any = msgspec.field(default_factory=lambda: {"to": "all"})
    priority: int = -5
    max_attempts: int = 3
    scheduled_at: datetime | None = AT
    unique_key: str | None = "newsletter"


class LaterJob(NewJob, rename="camel", tag="later"):
    """Written as JSON with other names, and with a field that jobs don't have."""

    delay: timedelta | None = HOUR
    idempotency_key: str | None = "later"
    sender: str = "me"


class UncheckedJob(NewJob):
    def __post_init__(self) -> None:
        """Forget the base class's checks."""


@pytest.mark.parametrize("way", ["create_job", "create_jobs", "create_jobs_in_batches", "get_or_create_job", "replace"])
def test_the_defaults_of_a_derived_job_are_stored_on_every_path(goqueue_store: PostgresStorage, way: str) -> None:
    run: dict[str, Callable[[NewJob], object]] = {
        "create_job": goqueue_store.create_job,
        "create_jobs": lambda job: goqueue_store.create_jobs([job]),
        "create_jobs_in_batches": lambda job: list(goqueue_store.create_jobs_in_batches([job])),
        "get_or_create_job": goqueue_store.get_or_create_job,
        "replace": lambda job: goqueue_store.replace_pending_job(replace(job, idempotency_key="later")),
    }
    mail, later = MailJob(), LaterJob(job_type="t", payload={})
    run[way](mail)
    stored = goqueue_store.get_job(mail.id)
    assert (stored.job_type, stored.queue, stored.priority, stored.max_attempts) == ("mail", "mail", -5, 3)
    assert (stored.payload, stored.scheduled_at, stored.unique_key) == ({"to": "all"}, AT, "newsletter")
    goqueue_store.delete_job(mail.id)
    run[way](later)
    stored = goqueue_store.get_job(later.id)
    assert (stored.scheduled_at - stored.created_at, stored.idempotency_key) == (HOUR, "later")
    assert (stored.job_type, stored.payload) == ("t", {})


def test_a_derived_job_without_checks_of_its_own_is_checked_when_it_is_sent(goqueue_store: PostgresStorage) -> None:
    job = UncheckedJob(job_type="t", scheduled_at=datetime(2031, 1, 1))  # noqa: DTZ001
    for refused in (lambda: goqueue_store.create_job(job), lambda: goqueue_store.create_jobs([job])):
        with pytest.raises(InvalidJobError, match=r"scheduled_at is .* without a time zone"):
            refused()


def test_the_defaults_of_a_derived_update_are_stored(goqueue_store: PostgresStorage) -> None:
    class Urgent(JobUpdate):
        priority: int | msgspec.UnsetType = -5
        payload: Any = msgspec.field(default_factory=lambda: {"urgent": True})
        unique_key: str | msgspec.UnsetType | None = None

    class Renamed(JobUpdate, rename="camel"):
        max_attempts: int | msgspec.UnsetType = 3
        reason: str = "none"

    job = goqueue_store.create_job(NewJob(job_type="t", unique_key="k"))
    changed = goqueue_store.update_job(job.id, Urgent())
    assert (changed.priority, changed.payload, changed.unique_key) == (-5, {"urgent": True}, None)
    assert goqueue_store.update_job(job.id, Renamed()).max_attempts == 3


def test_the_defaults_of_a_derived_filter_select_jobs(goqueue_store: PostgresStorage) -> None:
    class OfMail(JobFilter):
        queue: Any = "mail"

    goqueue_store.create_jobs([NewJob(job_type="t"), MailJob()])
    assert goqueue_store.count_jobs(OfMail()) == 1
    assert goqueue_store.cancel_jobs(OfMail()) == 1


class TestPayloads:
    @pytest.mark.parametrize(
        ("payload", "stored"),
        [
            ({"n": Priority.HIGH}, {"n": -5}),
            ({"n": np.float64(1.5)}, {"n": 1.5}),
            (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
            (Counter("aab"), {"a": 2, "b": 1}),
            (namedtuple("Pair", "a b")(1, 2), [1, 2]),  # noqa: PYI024
            ({Names.MAIL: Mixed.MAIL}, {"mail": "mail"}),
        ],
        ids=lambda payload: type(payload).__name__,
    )
    def test_a_derived_type_is_stored_as_what_it_is_derived_from(
        self, goqueue_store: PostgresStorage, payload: Any, stored: Any
    ) -> None:
        one = goqueue_store.create_job(NewJob(job_type="t", payload=payload))
        bulk = NewJob(job_type="t", payload=payload)
        goqueue_store.create_jobs([bulk])
        updated = goqueue_store.update_job(bulk.id, JobUpdate(payload=payload))
        assert one.payload == goqueue_store.get_job(bulk.id).payload == updated.payload == stored

    @pytest.mark.parametrize(
        "value",
        [
            AT,
            pendulum.instance(AT),
            HOUR,
            uuid4(),
            Decimal("1.5"),
            Plain.MAIL,
            np.int64(1),
            {1, 2},
            b"x",
            dataclass(type("Data", (), {"__annotations__": {"a": int}, "a": 1}))(),
            msgspec.defstruct("Made", [("a", int)])(1),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value_that_is_no_json_is_rejected_on_every_path(
        self, goqueue_store: PostgresStorage, value: Any
    ) -> None:
        job = goqueue_store.create_job(NewJob(job_type="t"))
        new = NewJob(job_type="t", payload={"a": [value]})
        for refused in (
            lambda: goqueue_store.create_job(new),
            lambda: goqueue_store.create_jobs([new]),
            lambda: goqueue_store.update_job(job.id, JobUpdate(payload={"a": [value]})),
        ):
            with pytest.raises(InvalidJobError, match=r"^payload\.a\[0\] is .* which is not JSON; use None, bool"):
                refused()
