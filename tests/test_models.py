"""Callers' values are checked on creation; payloads and texts are returned unchanged."""

import math
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goqueue import (
    CorruptJobError,
    DatabaseConfig,
    InvalidFilterError,
    InvalidJobError,
    Job,
    JobCount,
    JobFilter,
    JobStatus,
    JobUpdate,
    NewJob,
    PostgresStorage,
)

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
BAD_NAMES = ["", "x" * 256, "x" * 10_000, "a\0b", "a\ud800b", 5, None, b"x"]


@pytest.mark.parametrize("bad", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("field", ["queue", "job_type", "idempotency_key", "unique_key"])
def test_names_that_cannot_be_stored_are_rejected(field: str, bad: Any) -> None:
    if not (field.endswith("_key") and bad is None):
        with pytest.raises(InvalidJobError, match=field):
            NewJob(**{"job_type": "t", field: bad})
    if bad is not None:
        with pytest.raises(InvalidJobError, match=field):
            JobUpdate(**{field: bad})
    if not field.endswith("_key") and bad is not None:
        with pytest.raises(InvalidFilterError, match=field):
            JobFilter(**{field: bad})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"priority": 1.5}, "priority must be a whole number"),
        ({"priority": True}, "priority"),
        ({"priority": 32_768}, "from -32,767 to 32,767, not 32768"),
        ({"max_attempts": 0}, "max_attempts must be a whole number from 1 to 10,000, not 0"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"max_attempts": 10_001}, "max_attempts"),
        ({"scheduled_at": NAIVE}, "without a time zone; give an aware datetime"),
        ({"scheduled_at": "2030-01-01"}, "scheduled_at must be a datetime"),
        ({"delay": timedelta(seconds=-1)}, "delay must be a timedelta of zero or more"),
        ({"delay": 5}, "delay must be a timedelta"),
        ({"delay": timedelta(1), "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)}, "give one of them"),
        ({"id": "nonsense"}, "a job id must be a UUID, not 'nonsense'"),
        ({"id": None}, "a job id must be a UUID"),
    ],
)
def test_an_invalid_new_job_is_rejected_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        NewJob(job_type="t", **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attempts": -1}, "attempts must be a whole number from 0"),
        ({"attempts": 6, "max_attempts": 5}, "from 0 to 5, not 6"),
        ({"status": "gone"}, "status must be one of pending, running, completed, dead, cancelled, not 'gone'"),
        ({"status": None}, "status"),
        ({"queue": None}, "queue must be a string"),
        ({"priority": None}, "priority"),
        ({"last_error": 5}, "last_error must be a string or None"),
        ({"last_error": "a\0"}, "NUL"),
        ({"scheduled_at": NAIVE}, "time zone"),
    ],
)
def test_an_invalid_update_is_rejected_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        JobUpdate(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": "gone"}, "status must be one of"),
        ({"status": []}, "empty collection"),
        ({"queue": ["a", ""]}, "queue is empty"),
        ({"queue": 5}, "queue must be a string"),
        ({"created_from": NAIVE}, "created_from"),
        ({"created_before": "tomorrow"}, "created_before must be a datetime"),
    ],
)
def test_an_invalid_filter_is_rejected_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidFilterError, match=said):
        JobFilter(**fields)


def test_unknown_fields_are_rejected_by_python_itself() -> None:
    with pytest.raises(TypeError):
        NewJob(job_type="t", priorty=1)  # type: ignore[call-arg]


def test_requests_are_immutable() -> None:
    for request in (NewJob(job_type="t"), JobUpdate(), JobFilter()):
        with pytest.raises(AttributeError):
            request.queue = "x"  # type: ignore[misc]


def test_an_id_in_text_becomes_a_uuid() -> None:
    wanted = uuid4()
    assert NewJob(job_type="t", id=str(wanted)).id == wanted  # type: ignore[arg-type]
    assert type(NewJob(job_type="t").id) is UUID


def test_new_jobs_do_not_share_a_payload() -> None:
    first, second = NewJob(job_type="t"), NewJob(job_type="t")
    first.payload["a"] = 1
    assert second.payload == {}


def test_a_count_is_a_number_that_knows_whether_it_is_exact() -> None:
    count = JobCount(12_345, exact=False)
    assert count == 12_345
    assert (str(count), repr(count)) == ("about 12,345", "JobCount(12345, exact=False)")
    assert pickle.loads(pickle.dumps(count)).exact is False


class Colour(IntEnum):
    RED = 1


NESTED: Any = "deep"
for _ in range(250):
    NESTED = [NESTED]
CYCLE: list[Any] = []
CYCLE.append(CYCLE)

BAD_PAYLOADS: list[tuple[Any, str]] = [
    (math.nan, r"payload is nan"),
    ({"a": [1, math.inf]}, r"payload\.a\[1\] is inf"),
    ({"a": {"b": -math.inf}}, r"payload\.a\.b is -inf"),
    ("a\0b", "NUL character at position 1"),
    ({"a\0": 1}, "NUL"),
    (["\ud800"], r"payload\[0\] has a lone surrogate"),
    ({"\udfff": 1}, "lone surrogate"),
    ({1: 2}, "has the key 1 .int.; a key of a JSON object must be a string"),
    ({None: 2}, "key None"),
    (object(), "which is not JSON"),
    ({1, 2}, "which is not JSON"),
    (b"x", "which is not JSON"),
    (Decimal(1), "which is not JSON"),
    ({"at": datetime(2030, 1, 1, tzinfo=UTC)}, r"payload\.at is datetime.* isoformat"),
    ({"id": uuid4()}, r"payload\.id is UUID.* str\(\)"),
    (NESTED, "nested more than 200 levels deep"),
    (CYCLE, "nested more than 200 levels deep"),
    (10**5000, "can't be written as JSON"),
    (1 + 2j, "not JSON"),
]


@pytest.mark.parametrize(("payload", "said"), BAD_PAYLOADS, ids=[said for _, said in BAD_PAYLOADS])
def test_a_payload_that_is_not_json_is_rejected_with_its_place(
    goqueue_store: PostgresStorage, payload: Any, said: str
) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t", payload="kept"))
    new = NewJob(job_type="t", payload=payload)
    for attempt in (
        lambda: goqueue_store.create_job(new),
        lambda: goqueue_store.create_jobs([NewJob(job_type="t"), new]),
        lambda: list(goqueue_store.create_jobs_in_batches([new])),
        lambda: goqueue_store.update_job(job.id, JobUpdate(payload=payload)),
    ):
        with pytest.raises(InvalidJobError, match=said):
            attempt()
    assert goqueue_store.list_jobs().jobs == [job]


SHALLOW: Any = "deep"
for _ in range(200):
    SHALLOW = [SHALLOW]


def test_a_bulk_accepts_the_payloads_that_create_job_accepts(goqueue_store: PostgresStorage) -> None:
    payloads = [
        *({}, [], None, "", 0, False, -0.0, 1e300, 2**63, {"": None}, {"a": {"b": [{"c": []}] * 300}}, SHALLOW),
        *("é\u2028", 'a "b"\n\tc', r"\u0000 in words", "[[[}", ["{", {"]": "["}], (1, (2,)), Colour.RED),
    ]
    one_by_one = [goqueue_store.create_job(NewJob(job_type="t", payload=payload)).payload for payload in payloads]
    for size in (1, len(payloads)):
        for start in range(0, len(payloads), size):
            jobs = [NewJob(job_type="t", payload=payload) for payload in payloads[start : start + size]]
            ids = [job_id for job_id, _ in goqueue_store.create_jobs(jobs)]
            stored = [job.payload for job in goqueue_store.get_jobs(ids)]
            assert stored == one_by_one[start : start + size]


def test_one_bad_payload_among_many_is_named_and_none_is_added(goqueue_store: PostgresStorage) -> None:
    for payload, said in BAD_PAYLOADS:
        jobs = [
            NewJob(job_type="t", payload={"n": number, "at": [payload] if number == 70 else []}) for number in range(99)
        ]
        with pytest.raises(InvalidJobError, match=said.replace("payload", r"payload\.at\[0\]", 1)):
            goqueue_store.create_jobs(jobs)
    assert goqueue_store.count_jobs() == 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"delay": timedelta(hours=1), "priority": -3},
        {"scheduled_at": datetime(2030, 1, 1, tzinfo=UTC), "max_attempts": 1, "idempotency_key": "k"},
        {"unique_key": "u"},
        {"queue": JobStatus.DEAD, "payload": {"long key": 1e2, "b": 1.50, "a": -0.0, "c": 1e-7}},
    ],
)
def test_create_job_returns_what_get_job_returns(goqueue_store: PostgresStorage, fields: dict[str, Any]) -> None:
    created = goqueue_store.create_job(NewJob(job_type="t", **fields))
    assert repr(created) == repr(goqueue_store.get_job(created.id))


def test_a_generator_can_change_one_payload_for_each_job(goqueue_store: PostgresStorage) -> None:
    payload: dict[str, Any] = {}

    def jobs() -> Iterator[NewJob]:
        for number in range(250):
            payload["number"] = number
            yield NewJob(job_type="t", payload=payload)

    ids = [job_id for job_id, _ in goqueue_store.create_jobs(jobs())]
    assert [job.payload["number"] for job in goqueue_store.get_jobs(ids)] == list(range(250))


def test_a_bulk_applies_the_same_defaults_as_create_job(goqueue_store: PostgresStorage) -> None:
    one, other = NewJob(job_type="t"), NewJob(job_type="t")
    created = goqueue_store.create_job(one)
    goqueue_store.create_jobs([other])
    stored = goqueue_store.get_job(other.id)
    for name in ("queue", "payload", "priority", "max_attempts", "idempotency_key", "unique_key", "status"):
        assert getattr(stored, name) == getattr(created, name) == getattr(one, name, created.status), name
    assert stored.scheduled_at == stored.created_at


def test_payloads_have_a_configured_size(goqueue_database: str) -> None:
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, max_payload_bytes=1000)) as store:
        fits, too_big = NewJob(job_type="t", payload="x" * 998), NewJob(job_type="t", payload="x" * 999)
        job = store.create_job(fits)
        store.create_jobs([NewJob(job_type="t" * 255, payload="x" * 998)])
        for attempt in (
            lambda: store.create_job(too_big),
            lambda: store.create_jobs([too_big]),
            lambda: store.update_job(job.id, JobUpdate(payload=too_big.payload)),
        ):
            with pytest.raises(InvalidJobError, match=r"1,001 bytes as JSON.* allows 1,000"):
                attempt()
        assert store.update_job(job.id, JobUpdate(payload=fits.payload)).payload == fits.payload


def test_plain_values_of_derived_types_are_accepted(goqueue_store: PostgresStorage) -> None:
    class Text(str):
        __slots__ = ()

    payload = OrderedDict(a=Text("x"), b=(1, 2), c=Colour.RED, d=JobStatus.DEAD)
    assert goqueue_store.create_job(NewJob(job_type="t", payload=payload)).payload == {
        "a": "x",
        "b": [1, 2],
        "c": 1,
        "d": "dead",
    }


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=255)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(TEXT, children, max_size=5),
    max_leaves=20,
)


def as_jsonb(value: Any) -> Any:
    """Return a value as jsonb stores it: numbers are decimals, so a float without a fraction is a whole number."""
    match value:
        case float():
            text = repr(value)
            return int(Decimal(text)) if Decimal(text) == int(Decimal(text)) else value
        case list():
            return [as_jsonb(item) for item in value]
        case dict():
            return {key: as_jsonb(item) for key, item in value.items()}
    return value


class TestRoundTrip:
    @given(payload=JSON)
    def test_payloads_are_read_as_written(self, goqueue_store: PostgresStorage, payload: Any) -> None:
        new = NewJob(job_type="t", payload=payload)
        job = goqueue_store.create_job(new)
        assert as_jsonb(job.payload) == as_jsonb(payload)
        assert repr(job) == repr(goqueue_store.get_job(job.id))
        other = NewJob(job_type="t", payload=payload)
        goqueue_store.create_jobs([other])
        assert goqueue_store.get_job(other.id).payload == job.payload
        assert goqueue_store.update_job(job.id, JobUpdate(payload=[payload])).payload == [job.payload]

    @given(queue=NAME, job_type=NAME, key=NAME, error=TEXT)
    def test_texts_are_read_as_written(
        self, goqueue_store: PostgresStorage, queue: str, job_type: str, key: str, error: str
    ) -> None:
        new = NewJob(job_type=job_type, queue=queue, idempotency_key=key)
        job, _ = goqueue_store.get_or_create_job(new)
        assert job == goqueue_store.get_job(job.id)
        job = goqueue_store.update_job(job.id, JobUpdate(queue=queue, job_type=job_type, last_error=error))
        assert (job.queue, job.job_type, job.last_error, job.idempotency_key) == (queue, job_type, error, key)
        assert job in goqueue_store.list_jobs(JobFilter(queue=queue, job_type=job_type), limit=1000).jobs
        assert goqueue_store.get_job_by_idempotency_key(key) == job
        many = NewJob(job_type=job_type, queue=queue)
        goqueue_store.create_jobs([many])
        assert (goqueue_store.get_job(many.id).queue, goqueue_store.get_job(many.id).job_type) == (queue, job_type)

    @given(
        at=st.datetimes(
            datetime(1, 1, 2),  # noqa: DTZ001
            datetime(9999, 12, 30),  # noqa: DTZ001
            timezones=st.just(timezone(timedelta(hours=-9, minutes=-30))),
        )
    )
    def test_times_are_read_as_written(self, goqueue_store: PostgresStorage, at: datetime) -> None:
        one = goqueue_store.create_job(NewJob(job_type="t", scheduled_at=at))
        assert one.scheduled_at == at
        many = NewJob(job_type="t", scheduled_at=at)
        goqueue_store.create_jobs([many])
        assert goqueue_store.get_job(many.id).scheduled_at == at
        moved = goqueue_store.update_job(one.id, JobUpdate(scheduled_at=at + timedelta(microseconds=1)))
        assert moved.scheduled_at - at == timedelta(microseconds=1)


def test_a_row_that_cannot_be_read_is_named(goqueue_store: PostgresStorage, goqueue_connection: Any) -> None:
    good = goqueue_store.create_job(NewJob(job_type="t"))
    bad = goqueue_store.create_job(NewJob(job_type="t"))
    goqueue_connection.execute("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [bad.id])
    with pytest.raises(CorruptJobError, match=f"{bad.id}: its payload can't be read") as caught:
        goqueue_store.get_job(bad.id)
    assert caught.value.job_id == bad.id
    assert isinstance(caught.value.__cause__, msgspec.DecodeError)
    assert goqueue_store.get_job(good.id) == good
    assert goqueue_store.update_job(bad.id, JobUpdate(payload=None)).payload is None


def test_a_time_beyond_pythons_range_is_read_as_its_earliest_or_latest(
    goqueue_store: PostgresStorage, goqueue_connection: Any
) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t"))
    goqueue_connection.execute("UPDATE goqueue.jobs SET scheduled_at = 'infinity', created_at = '-infinity'")
    read = goqueue_store.get_job(job.id)
    assert (read.scheduled_at.year, read.created_at.year) == (9999, 1)
    assert isinstance(read, Job)
