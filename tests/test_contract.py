"""The requirements for every storage backend: the methods of `goqueue.Storage`, one behaviour per test.

The `store` is conftest's: a backend joins with a parameter of that fixture that opens it on the test's database.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from goqueue import (
    DuplicateJobError,
    GoQueueError,
    InvalidCursorError,
    InvalidFilterError,
    InvalidJobError,
    Job,
    JobFilter,
    JobNotFoundError,
    JobStateError,
    JobStatus,
    JobUpdate,
    NewJob,
    PostgresStorage,
    Storage,
)


def fill(store: Storage, count: int, **fields: Any) -> list[UUID]:
    return [job_id for job_id, _ in store.create_jobs(NewJob(job_type="t", **fields) for _ in range(count))]


def pages(store: Storage, job_filter: JobFilter | None = None, limit: int = 3) -> Iterator[Sequence[Job]]:
    cursor = None
    while True:
        page = store.list_jobs(job_filter, limit=limit, cursor=cursor)
        assert len(page.jobs) <= limit
        yield page.jobs
        if (cursor := page.next_cursor) is None:
            return


def all_pages(store: Storage, job_filter: JobFilter | None = None, limit: int = 3) -> list[Job]:
    return [job for page in pages(store, job_filter, limit) for job in page]


def test_the_store_is_a_storage(store: Storage) -> None:
    assert isinstance(store, Storage)


def test_the_contract_has_every_method_of_the_store() -> None:
    ours, theirs = ({name for name in dir(kind) if not name.startswith("_")} for kind in (PostgresStorage, Storage))
    forgotten = ours - theirs - {"bound_to", "open"}
    assert not forgotten, f"declare {sorted(forgotten)} in goqueue/storage_async.py, then make catalogue"
    assert theirs <= ours, f"add {sorted(theirs - ours)} to goqueue/postgres/store_async.py, then make catalogue"


@pytest.mark.parametrize("name", sorted(name for name in vars(Storage) if not name.startswith("_")))
def test_every_method_of_the_contract_is_called_in_a_test_of_what_it_does(name: str) -> None:
    files = ("test_contract", "test_leases", "test_listener", "test_outcomes", "test_pauses")
    text = "".join((Path(__file__).parent / f"{file}.py").read_text("utf-8") for file in files)
    assert re.search(rf"\.{name}\(", text), f"test in tests/test_contract.py what {name} changes and returns"


class TestCreate:
    def test_it_returns_the_complete_job(self, store: Storage) -> None:
        at = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        new = NewJob(
            job_type="send_email",
            queue="mail",
            payload={"to": "ü@example.com", "tries": [1, 2.5, None, True]},
            priority=-3,
            max_attempts=7,
            scheduled_at=at,
            idempotency_key="order-1",
        )
        job = store.create_job(new)
        assert job == store.get_job(new.id)
        assert (job.id, job.queue, job.job_type, job.payload) == (new.id, "mail", "send_email", new.payload)
        assert (job.priority, job.max_attempts, job.attempts) == (-3, 7, 0)
        assert (job.scheduled_at, job.idempotency_key, job.status) == (at, "order-1", JobStatus.PENDING)
        assert job.created_at == job.updated_at
        assert job.created_at.utcoffset() == timedelta(0)
        assert [job.last_error, job.locked_by, job.locked_at, job.started_at, job.completed_at] == [None] * 5

    def test_defaults_make_a_job_that_is_due_at_once(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert (job.queue, job.payload, job.priority, job.max_attempts) == ("default", {}, 0, 25)
        assert job.scheduled_at == job.created_at

    def test_a_delay_counts_from_the_servers_now(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t", delay=timedelta(minutes=5, microseconds=7)))
        assert job.scheduled_at - job.created_at == timedelta(minutes=5, microseconds=7)

    def test_ids_are_generated_by_the_client_and_ascend(self, store: Storage) -> None:
        ids = [NewJob(job_type="t").id for _ in range(100)]
        assert ids == sorted(ids)
        assert {job_id.version for job_id in ids} == {7}

    def test_an_id_can_be_given(self, store: Storage) -> None:
        wanted = uuid4()
        assert store.create_job(NewJob(job_type="t", id=wanted)).id == wanted

    def test_a_taken_key_is_rejected_with_the_existing_jobs_id(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k", payload=1))
        with pytest.raises(DuplicateJobError, match="'k'") as caught:
            store.create_job(NewJob(job_type="t", idempotency_key="k", payload=2))
        assert caught.value.job_id == first.id
        assert caught.value.idempotency_key == "k"
        assert store.get_job(first.id) == first
        assert store.count_jobs() == 1

    def test_a_taken_id_is_rejected(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t"))
        with pytest.raises(DuplicateJobError) as caught:
            store.create_job(NewJob(job_type="another", id=first.id))
        assert caught.value.job_id == first.id

    def test_a_copy_with_another_payload_is_rejected_instead_of_dropped(self, store: Storage) -> None:
        base = NewJob(job_type="t", payload={"to": 1, "cc": [True]}, idempotency_key="k")
        first = store.create_job(base)
        for payload in ({"to": 2, "cc": [True]}, {"to": 1, "cc": [1]}, {"to": 1}, {}, None, "1"):
            with pytest.raises(DuplicateJobError, match="this id") as caught:
                store.create_job(replace(base, payload=payload))
            assert (caught.value.job_id, caught.value.idempotency_key) == (base.id, None)
        assert store.get_or_create_job(replace(base, payload=None)) == (first, False)
        assert store.create_job(replace(base, payload={"cc": [True], "to": 1.0})) == first

    def test_a_repeated_job_is_known_by_its_payload_as_the_database_keeps_it(self, store: Storage) -> None:
        numbers = [None, True, 0, -0.0, 1.0, 1e23, -1e300, 5e-324, 0.1, 10**30]
        for payload in [*numbers, "", "\u00e9 \U0001f600", (), {"b": (1, 2.5, (True,)), "aa": {"": None}, "c": "\\\\"}]:
            new = NewJob(job_type="t", payload=payload)
            assert store.create_job(new) == store.create_job(new)

    def test_a_taken_id_takes_precedence_over_a_taken_key(self, store: Storage) -> None:
        by_id = store.create_job(NewJob(job_type="t"))
        store.create_job(NewJob(job_type="t", idempotency_key="k"))
        new = NewJob(job_type="t", id=by_id.id, idempotency_key="k")
        assert store.get_or_create_job(new) == (by_id, False)
        assert store.create_jobs([new]) == [(by_id.id, False)]

    def test_the_same_new_job_again_returns_the_existing_job(self, store: Storage) -> None:
        new = NewJob(job_type="t", idempotency_key="k")
        assert store.create_job(new) == store.create_job(new)
        assert store.count_jobs() == 1

    def test_jobs_without_a_key_never_collide(self, store: Storage) -> None:
        fill(store, 3)
        assert store.count_jobs() == 3

    def test_a_key_is_free_again_when_its_job_is_deleted(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k"))
        store.delete_job(first.id)
        assert store.create_job(NewJob(job_type="t", idempotency_key="k")).id != first.id

    def test_get_or_create_returns_whether_it_created_the_job(self, store: Storage) -> None:
        first, created = store.get_or_create_job(NewJob(job_type="t", idempotency_key="k", payload=[1]))
        assert created
        again, created = store.get_or_create_job(NewJob(job_type="t", idempotency_key="k", payload=[2]))
        assert (again, created) == (first, False)


class TestCreateMany:
    def test_it_returns_ids_in_the_given_order(self, store: Storage) -> None:
        jobs = [NewJob(job_type="t", payload=number) for number in range(2500)]
        assert store.create_jobs(jobs) == [(job.id, True) for job in jobs]
        assert [job.payload for job in store.get_jobs(job.id for job in jobs)] == list(range(2500))

    def test_fields_are_those_of_create_job(self, store: Storage) -> None:
        fields: dict[str, Any] = {"queue": "q", "payload": {"a": [None, "ü"]}, "priority": 4, "max_attempts": 2}
        at = datetime(2031, 1, 1, tzinfo=UTC)
        one = store.create_job(NewJob(job_type="t", scheduled_at=at, idempotency_key="a", **fields))
        [(many_id, _)] = store.create_jobs([NewJob(job_type="t", scheduled_at=at, idempotency_key="b", **fields)])
        many = store.get_job(many_id)
        for name in ("queue", "job_type", "payload", "priority", "max_attempts", "scheduled_at", "status", "attempts"):
            assert getattr(one, name) == getattr(many, name), name
        assert many.idempotency_key == "b"

    def test_a_delay_counts_from_the_servers_now(self, store: Storage) -> None:
        [(job_id, _)] = store.create_jobs([NewJob(job_type="t", delay=timedelta(days=400, seconds=1.5))])
        job = store.get_job(job_id)
        assert job.scheduled_at - job.created_at == timedelta(days=400, seconds=1.5)

    def test_none_is_a_payload(self, store: Storage) -> None:
        [(job_id, _)] = store.create_jobs([NewJob(job_type="t", payload=None)])
        assert store.get_job(job_id).payload is None
        assert store.create_job(NewJob(job_type="t", payload=None)).payload is None

    def test_taken_keys_return_the_first_job_in_the_table_and_in_the_batch(self, store: Storage) -> None:
        old = store.create_job(NewJob(job_type="t", idempotency_key="old"))
        jobs = [NewJob(job_type="t", idempotency_key=key) for key in ("new", "old", None, "new", "old")]
        assert store.create_jobs(jobs) == [
            (jobs[0].id, True),
            (old.id, False),
            (jobs[2].id, True),
            (jobs[0].id, False),
            (old.id, False),
        ]
        assert store.count_jobs() == 3

    def test_a_key_reused_across_batches_returns_the_first_job(self, store: Storage) -> None:
        jobs = [NewJob(job_type="t", idempotency_key=f"k{number % 1500}") for number in range(3000)]
        results = store.create_jobs(jobs)
        assert [created for _, created in results] == [True] * 1500 + [False] * 1500
        assert results[1500:] == [(job_id, False) for job_id, _ in results[:1500]]

    def test_the_same_new_job_twice_is_created_once(self, store: Storage) -> None:
        job = NewJob(job_type="t")
        assert store.create_jobs([job, job]) == [(job.id, True), (job.id, False)]
        assert store.create_jobs([job]) == [(job.id, False)]

    def test_an_id_whose_key_is_taken_is_free_for_another_job(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k1"))
        job_id = uuid4()
        jobs = [NewJob(job_type=key, id=job_id, idempotency_key=key) for key in ("k1", "k2")]
        assert store.create_jobs(jobs) == [(first.id, False), (job_id, True)]
        assert store.get_job(job_id).idempotency_key == "k2"

    def test_no_jobs_return_an_empty_list(self, store: Storage) -> None:
        assert store.create_jobs([]) == []
        assert list(store.create_jobs_in_batches([])) == []

    def test_one_invalid_job_prevents_all(self, store: Storage) -> None:
        jobs = [NewJob(job_type="t", payload=number) for number in range(900)]
        with pytest.raises(InvalidJobError, match="nan"):
            store.create_jobs([*jobs, NewJob(job_type="t", payload=float("nan"))])
        assert store.count_jobs() == 0

    def test_batches_are_read_on_demand(self, store: Storage) -> None:
        taken = 0

        def jobs() -> Iterator[NewJob]:
            nonlocal taken
            for _ in range(5000):
                taken += 1
                yield NewJob(job_type="t")

        batches = store.create_jobs_in_batches(jobs())
        assert len(next(batches)) == 1000
        assert taken <= 1001
        assert store.count_jobs() == 1000
        assert sum(len(batch) for batch in batches) == 4000

    def test_only_new_job_objects_are_accepted(self, store: Storage) -> None:
        with pytest.raises(InvalidJobError, match="NewJob objects, not dict"):
            store.create_jobs([{"job_type": "t"}])  # type: ignore[list-item]


class TestGet:
    def test_an_unknown_id_is_not_found(self, store: Storage) -> None:
        unknown = uuid4()
        for call in (store.get_job, store.delete_job, lambda job_id: store.update_job(job_id, JobUpdate(priority=1))):
            with pytest.raises(JobNotFoundError, match=str(unknown)):
                call(unknown)

    def test_an_id_can_be_text(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert store.get_job(str(job.id)) == job
        assert store.get_jobs([str(job.id)]) == [job]

    def test_a_malformed_id_is_rejected(self, store: Storage) -> None:
        for bad in ["", "nonsense", "0" * 31, 7, None, b"x" * 16]:
            for call in (store.get_job, store.delete_job, lambda job_id: store.get_jobs([job_id])):
                with pytest.raises(InvalidJobError, match="must be a UUID"):
                    call(bad)

    def test_many_are_returned_in_the_given_order_without_the_missing(self, store: Storage) -> None:
        a, b, c = fill(store, 3)
        assert [job.id for job in store.get_jobs([c, uuid4(), a, b, a])] == [c, a, b, a]
        assert store.get_jobs([]) == []

    def test_a_job_is_found_by_its_idempotency_key(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t", idempotency_key="clé"))
        assert store.get_job_by_idempotency_key("clé") == job
        with pytest.raises(JobNotFoundError, match="'other'"):
            store.get_job_by_idempotency_key("other")
        with pytest.raises(InvalidJobError):
            store.get_job_by_idempotency_key("")


class TestList:
    def test_newest_first_page_by_page_and_each_once(self, store: Storage) -> None:
        created = [fill(store, 1)[0] for _ in range(4)] + fill(store, 6)
        listed = all_pages(store)
        assert [job.id for job in listed[-4:]] == created[:4][::-1]
        assert sorted(job.id for job in listed) == sorted(created)
        keys = [(job.created_at, job.id) for job in listed]
        assert keys == sorted(keys, reverse=True)

    def test_the_last_page_has_no_cursor(self, store: Storage) -> None:
        assert store.list_jobs().next_cursor is None
        fill(store, 6)
        first = store.list_jobs(limit=3)
        assert first.next_cursor is not None
        second = store.list_jobs(limit=3, cursor=first.next_cursor)
        assert (len(second.jobs), second.next_cursor) == (3, None)

    def test_jobs_created_meanwhile_do_not_shift_the_pages(self, store: Storage) -> None:
        old = fill(store, 4)
        page = store.list_jobs(limit=2)
        fill(store, 3)
        rest = store.list_jobs(limit=10, cursor=page.next_cursor)
        assert sorted(job.id for job in page.jobs + rest.jobs) == sorted(old)

    def test_filters_accept_one_value_or_several(self, store: Storage) -> None:
        made = {
            (queue, job_type): store.create_job(NewJob(job_type=job_type, queue=queue)).id
            for queue in ("a", "b", "c")
            for job_type in ("x", "y")
        }
        store.update_job(made["a", "x"], JobUpdate(status=JobStatus.COMPLETED))
        store.update_job(made["b", "x"], JobUpdate(status=JobStatus.CANCELLED))

        def listed(**conditions: Any) -> set[UUID]:
            job_filter = JobFilter(**conditions)
            found = all_pages(store, job_filter, limit=1)
            assert len(found) == store.count_jobs(job_filter)
            return {job.id for job in found}

        assert listed() == set(made.values())
        assert listed(queue="a") == {made["a", "x"], made["a", "y"]}
        assert listed(queue=["c", "a", "a"]) == {made[key] for key in made if key[0] in "ac"}
        assert listed(job_type="y") == {made[key] for key in made if key[1] == "y"}
        assert listed(job_type={"x", "y"}, queue="b") == {made["b", "x"], made["b", "y"]}
        assert listed(status=JobStatus.COMPLETED) == {made["a", "x"]}
        assert listed(status="cancelled") == {made["b", "x"]}
        assert listed(status=[JobStatus.COMPLETED, "cancelled"], job_type="x") == {made["a", "x"], made["b", "x"]}
        assert listed(status=JobStatus.PENDING, queue=("a", "b")) == {made["a", "y"], made["b", "y"]}
        assert listed(queue="nope") == set()
        assert listed(job_type="nope") == set()
        assert listed(status="dead") == set()

    def test_ranges_include_their_start_and_exclude_their_end(self, store: Storage) -> None:
        jobs = [store.create_job(NewJob(job_type="t", delay=timedelta(hours=hours))) for hours in range(4)]
        created = [job.created_at for job in jobs]

        def listed(**conditions: Any) -> list[int]:
            job_filter = JobFilter(**conditions)
            found = all_pages(store, job_filter, limit=1)
            assert len(found) == store.count_jobs(job_filter)
            return sorted(jobs.index(job) for job in found)

        assert listed(created_from=created[1]) == [1, 2, 3]
        assert listed(created_before=created[1]) == [0]
        assert listed(created_from=created[1], created_before=created[3]) == [1, 2]
        assert listed(created_from=created[1], created_before=created[2], queue="default") == [1]
        assert listed(created_from=created[2], created_before=created[1]) == []

    def test_every_page_but_the_last_is_full(self, store: Storage) -> None:
        # Seven lanes of different lengths, newest jobs in turns, and four running jobs.
        made = store.create_jobs(
            NewJob(queue=f"q{number * number % 7}", job_type=f"t{number % 3}", priority=number % 5)
            for number in range(60)
        )
        ids = [job_id for job_id, _ in made]
        store.cancel_jobs(ids[3::9])
        claimed = store.claim_jobs("q1", "w", limit=9)
        store.complete_jobs(claimed[4:])
        jobs = {job.id: job for job in store.get_jobs(ids)}
        newest_first = sorted(jobs.values(), key=lambda job: (job.created_at, job.id), reverse=True)
        filters: list[dict[str, Any]] = [
            {}, {"status": "pending"}, {"status": ["cancelled", "running"]}, {"queue": "q1"}, {"job_type": "t2"},
            {"queue": ["q1", "q4"], "job_type": ["t0", "t1"]}, {"status": ["running", "completed"], "queue": "q1"},
        ]  # fmt: skip
        for conditions in filters:
            wanted = [
                job.id
                for job in newest_first
                if all(getattr(job, name) in ([x] if isinstance(x, str) else x) for name, x in conditions.items())
            ]
            for limit in (1, 3, 10, len(wanted), 1000):
                found = [[job.id for job in page] for page in pages(store, JobFilter(**conditions), limit)]
                assert [job_id for page in found for job_id in page] == wanted, (conditions, limit)
                assert {len(page) for page in found[:-1]} <= {limit}
                assert len(found) == -(-len(wanted) // limit)

    def test_a_limit_out_of_range_is_rejected(self, store: Storage) -> None:
        for limit in [0, -1, 1001, 1_000_000, 1.5, "10", None, True]:
            with pytest.raises(InvalidFilterError, match="limit must be a whole number from 1 to 1,000"):
                store.list_jobs(limit=limit)

    def test_a_forged_cursor_is_rejected(self, store: Storage) -> None:
        fill(store, 2)
        cursor: Any = store.list_jobs(limit=1).next_cursor
        for forged in [
            "", "x", cursor[:-2], cursor + "00", "00" + cursor[2:], 5,
            cursor[:8] + ("0" if cursor[8] != "0" else "1") + cursor[9:], cursor.encode(),
        ]:  # fmt: skip
            with pytest.raises(InvalidCursorError, match="start again without"):
                store.list_jobs(cursor=forged)

    def test_a_cursor_of_another_filter_is_rejected(self, store: Storage) -> None:
        fill(store, 2)
        cursor = store.list_jobs(JobFilter(queue="default"), limit=1).next_cursor
        assert store.list_jobs(JobFilter(queue=["default"]), cursor=cursor).jobs
        with pytest.raises(InvalidCursorError, match="another filter"):
            store.list_jobs(JobFilter(queue="other"), cursor=cursor)


class TestCount:
    def test_a_count_is_exact_up_to_its_limit(self, store: Storage) -> None:
        assert store.count_jobs() == 0
        fill(store, 7)
        count = store.count_jobs(JobFilter(status="pending"))
        assert (count, count.exact, str(count)) == (7, True, "7")

    def test_a_count_of_a_workers_jobs_can_be_an_estimate(self, store: Storage) -> None:
        fill(store, 10_001)
        store.create_jobs(NewJob(job_type="t", queue="idle") for _ in range(10_001))
        for _ in range(11):
            store.claim_jobs("default", "w", limit=1000)
        count = store.count_jobs(JobFilter(locked_by="w"))
        assert not count.exact
        assert 10_000 < count < 15_000
        assert store.count_jobs(JobFilter(locked_by="another")) == 0

    def test_a_count_beyond_ten_thousand_is_an_estimate(self, store: Storage) -> None:
        store.create_jobs(NewJob(job_type="other") for _ in range(2000))
        fill(store, 10_500)
        fill(store, 5, queue="rare")
        count = store.count_jobs()
        assert not count.exact
        assert 10_000 < count < 15_000
        assert str(count).startswith("about ")
        count = store.count_jobs(JobFilter(job_type="t"))
        assert not count.exact
        assert 10_000 < count < 15_000
        count = store.count_jobs(JobFilter(job_type="other"))
        assert (count, count.exact) == (2000, True)
        rare = store.count_jobs(JobFilter(queue="rare"))
        assert (rare, rare.exact) == (5, True)


class TestJobTypes:
    def test_without_jobs_there_are_no_types(self, store: Storage) -> None:
        assert store.list_job_types() == []

    def test_the_types_of_jobs_in_any_status_once_and_in_order(self, store: Storage) -> None:
        for number, status in enumerate(JobStatus):
            for kind in ("shared", f"t{9 - number}"):
                job = store.create_job(NewJob(job_type=kind, queue=f"q{number}"))
                store.update_job(job.id, JobUpdate(status=status))
        assert store.list_job_types() == ["shared", "t5", "t6", "t7", "t8", "t9"]

    def test_the_oldest_and_the_newest_of_many_pending_jobs_count(self, store: Storage) -> None:
        store.create_job(NewJob(job_type="oldest"))
        fill(store, 10_000)
        store.create_job(NewJob(job_type="hidden"))
        fill(store, 10_000)
        store.create_job(NewJob(job_type="newest"))
        assert store.list_job_types() == ["newest", "oldest", "t"]


class TestUpdate:
    def test_only_the_given_fields_change(self, store: Storage) -> None:
        at = datetime(2032, 1, 1, tzinfo=UTC)
        before = store.create_job(NewJob(job_type="t", idempotency_key="k", payload={"a": 1}))
        after = store.update_job(before.id, JobUpdate(priority=9, scheduled_at=at, payload=[2]))
        assert after == store.get_job(before.id)
        assert (after.priority, after.scheduled_at, after.payload) == (9, at, [2])
        assert after.updated_at > before.updated_at
        for name in ("queue", "job_type", "status", "attempts", "max_attempts", "idempotency_key", "created_at"):
            assert getattr(after, name) == getattr(before, name), name

    def test_every_field_can_be_changed(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        changes: dict[str, Any] = {
            "queue": "q2", "job_type": "t2", "payload": {"b": 2}, "status": JobStatus.RUNNING, "priority": 3,
            "attempts": 4, "max_attempts": 5, "last_error": "it broke", "idempotency_key": "k2", "locked_by": "w2",
            "scheduled_at": datetime(2033, 1, 1, tzinfo=UTC),
        }  # fmt: skip
        after = store.update_job(job.id, JobUpdate(**changes))
        assert {name: getattr(after, name) for name in changes} == changes

    def test_none_clears_a_field(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t", idempotency_key="k", delay=timedelta(days=1)))
        store.update_job(job.id, JobUpdate(last_error="oh"))
        after = store.update_job(
            job.id, JobUpdate(last_error=None, idempotency_key=None, scheduled_at=None, payload=None)
        )
        assert (after.last_error, after.idempotency_key, after.payload) == (None, None, None)
        assert after.scheduled_at == after.updated_at

    def test_an_empty_update_changes_only_the_time(self, store: Storage) -> None:
        before = store.create_job(NewJob(job_type="t"))
        after = store.update_job(before.id, JobUpdate())
        assert after.updated_at > before.updated_at
        assert after.scheduled_at == before.scheduled_at

    def test_times_follow_the_status(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        running = store.update_job(job.id, JobUpdate(status=JobStatus.RUNNING, locked_by="w1", attempts=1))
        assert running.started_at == running.locked_at == running.updated_at
        assert (running.locked_by, running.completed_at) == ("w1", None)
        still = store.update_job(job.id, JobUpdate(status="running", priority=1))  # type: ignore[arg-type]
        assert (still.started_at, still.locked_at, still.locked_by) == (running.started_at, running.locked_at, "w1")
        done = store.update_job(job.id, JobUpdate(status=JobStatus.COMPLETED))
        assert done.completed_at == done.updated_at
        assert (done.locked_by, done.locked_at, done.started_at) == (None, None, running.started_at)

    def test_a_job_set_running_without_a_holder_is_held_by_the_session(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert store.update_job(job.id, JobUpdate(status=JobStatus.RUNNING)).locked_by

    @pytest.mark.parametrize("finished", ["dead", "cancelled"])
    def test_a_dead_or_cancelled_job_can_be_made_pending_again(self, store: Storage, finished: Any) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert store.update_job(job.id, JobUpdate(status=finished)).completed_at is not None
        again = store.update_job(job.id, JobUpdate(status=JobStatus.PENDING))
        assert (again.status, again.completed_at) == (JobStatus.PENDING, None)

    def test_an_illegal_transition_is_rejected(self, store: Storage) -> None:
        for start, target in [
            ("completed", "pending"), ("completed", "running"), ("completed", "dead"), ("dead", "running"),
            ("dead", "completed"), ("cancelled", "running"), ("cancelled", "dead"),
        ]:  # fmt: skip
            job = store.create_job(NewJob(job_type="t"))
            before = store.update_job(job.id, JobUpdate(status=start))
            with pytest.raises(JobStateError, match=f"is {start} and can't become {target}"):
                store.update_job(job.id, JobUpdate(status=target, priority=5))
            assert store.get_job(job.id) == before

    def test_a_taken_key_is_rejected(self, store: Storage) -> None:
        first = store.create_job(NewJob(job_type="t", idempotency_key="k"))
        second = store.create_job(NewJob(job_type="t"))
        with pytest.raises(DuplicateJobError) as caught:
            store.update_job(second.id, JobUpdate(idempotency_key="k"))
        assert caught.value.job_id == first.id
        assert store.update_job(first.id, JobUpdate(idempotency_key="k")).idempotency_key == "k"

    def test_attempts_above_the_stored_maximum_are_rejected(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t", max_attempts=2))
        with pytest.raises(InvalidJobError, match="0 to max_attempts") as caught:
            store.update_job(job.id, JobUpdate(attempts=3))
        assert caught.value.constraint == "jobs_attempts_range"
        assert store.get_job(job.id) == job

    def test_a_holder_of_a_job_that_is_not_running_is_rejected(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        with pytest.raises(InvalidJobError) as caught:
            store.update_job(job.id, JobUpdate(locked_by="w"))
        assert caught.value.constraint == "jobs_running_is_locked"


class TestDelete:
    def test_a_deleted_job_is_gone(self, store: Storage) -> None:
        job = store.create_job(NewJob(job_type="t"))
        assert store.delete_job(job.id) is None
        with pytest.raises(JobNotFoundError):
            store.get_job(job.id)
        with pytest.raises(JobNotFoundError):
            store.delete_job(job.id)


def test_ping_and_close(store: Storage) -> None:
    assert store.ping() is None
    store.close()
    store.close()


def test_every_error_is_a_goqueue_error(store: Storage) -> None:
    with pytest.raises(GoQueueError):
        store.get_job("x")
