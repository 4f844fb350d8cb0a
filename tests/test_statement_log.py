"""The logging of statements and jobs: the fields, the levels, and secrets that must never appear."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from goqueue import (
    AsyncPostgresStorage,
    DatabaseConfig,
    InvalidJobError,
    Job,
    JobFilter,
    JobUpdate,
    LoggingConfig,
    NewJob,
    PostgresStorage,
    Storage,
    StorageError,
    configure_logging,
)
from tests.ways import WAYS, opened

SECRET = "hunter2"
MILLISECOND = timedelta(milliseconds=1)
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}
MANY = [NewJob(job_type="t") for _ in range(1000)]  # No server adds them within a millisecond.


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "goqueue"):
        yield


@pytest.fixture
def locked(goqueue_store: PostgresStorage, goqueue_database: str) -> Iterator[Job]:
    """A job whose row another session has locked."""
    job = goqueue_store.create_job(NewJob(job_type="t", queue="mail"))
    with psycopg.connect(goqueue_database) as connection:
        connection.execute("SELECT FROM goqueue.jobs FOR UPDATE")
        yield job
        connection.rollback()


def statements(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "goqueue.sql"]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


@pytest.mark.parametrize("way", WAYS)
class TestBulks:
    """The choice between the two statements that add jobs."""

    def queries(self, way: str, url: str, caplog: pytest.LogCaptureFixture, jobs: list[NewJob]) -> tuple[Any, Any]:
        with opened(way, DatabaseConfig(url=url)) as store:
            caplog.clear()
            results = store.call("create_jobs", jobs)
            return results, [record.query for record in statements(caplog) if "jobs" in record.query]

    def test_bulks_of_new_jobs_are_logged(
        self, way: str, goqueue_database: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        jobs = [NewJob(job_type="t") for _ in range(3)]
        results, queries = self.queries(way, goqueue_database, caplog, jobs)
        assert queries == ["create_jobs"]
        assert results == [(job.id, True) for job in jobs]

    def test_bulks_of_new_jobs_and_an_existing_one_are_logged(
        self, way: str, goqueue_database: str, goqueue_store: PostgresStorage, caplog: pytest.LogCaptureFixture
    ) -> None:
        jobs = [NewJob(job_type="t") for _ in range(3)]
        goqueue_store.create_job(jobs[1])
        results, queries = self.queries(way, goqueue_database, caplog, jobs)
        assert queries == ["create_jobs", "create_missing_jobs", "find_duplicate_jobs"]
        assert results == [(job.id, job is not jobs[1]) for job in jobs]
        assert goqueue_store.count_jobs() == 3

    def test_bulks_of_jobs_that_can_exist_already_are_logged(
        self, way: str, goqueue_database: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No statement fails at the server for them."""
        for jobs in (
            [NewJob(job_type="t"), NewJob(job_type="t", idempotency_key="k")],
            [NewJob(job_type="t", id=uuid4())],
        ):
            _, queries = self.queries(way, goqueue_database, caplog, jobs)
            assert queries == ["create_missing_jobs"]


@pytest.mark.parametrize("way", [way for way in WAYS if "bound" in way])
def test_after_a_bulk_with_existing_jobs_earlier_changes_in_the_callers_transaction_remain(
    way: str, goqueue_database: str, goqueue_store: PostgresStorage
) -> None:
    jobs = [NewJob(job_type="t") for _ in range(3)]
    with opened(way, DatabaseConfig(url=goqueue_database), autocommit=False) as store:
        store.call("create_jobs", jobs[:2])
        assert store.call("create_jobs", jobs) == [(job.id, job is jobs[2]) for job in jobs]
        assert store.call("count_jobs") == 3
        assert goqueue_store.count_jobs() == 0


@pytest.mark.parametrize("way", WAYS)
def test_each_statement_is_a_record(way: str, goqueue_database: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(way, DatabaseConfig(url=goqueue_database)) as store:

        def logged(method: str, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            caplog.clear()
            result = store.call(method, *args, **kwargs)
            [record] = statements(caplog)
            assert record.levelno == logging.DEBUG
            found = fields(record)
            took = found.pop("duration_ms")
            assert 0 < took < 60_000
            assert record.getMessage() == f"{found['query']} ran, {took} ms"
            return result, found

        job, found = logged("create_job", NewJob(job_type="t", queue="mail"))
        assert found == {"query": "create_job", "rows": 1, "job_id": job.id, "queue": "mail"}
        _, found = logged("get_job", job.id)
        assert found == {"query": "get_job", "rows": 1, "job_id": job.id}
        _, found = logged("get_jobs", [uuid4(), job.id])
        assert found == {"query": "get_jobs", "rows": 1, "jobs": 2}
        _, found = logged("list_jobs", JobFilter(queue="mail"))
        assert found == {"query": "list_jobs", "rows": 1, "queue": ["mail"]}
        _, found = logged("list_jobs")
        assert found == {"query": "list_jobs", "rows": 1}
        [held], found = logged("claim_jobs", ["mail", "other"], "w1")
        assert found == {"query": "claim_jobs", "rows": 1, "queue": ["mail", "other"], "worker_id": "w1"}
        _, found = logged("complete_job", held)
        assert found == {"query": "complete_jobs", "rows": 1, "job_id": job.id}
        _, found = logged("list_failures", job.id)
        assert found == {"query": "list_failures", "rows": 0, "job_id": job.id}
        created, found = logged("create_jobs", [NewJob(job_type="t") for _ in range(3)])
        assert found == {"query": "create_jobs", "rows": 3}
        _, found = logged("cancel_jobs", [job_id for job_id, _ in created])
        assert found == {"query": "cancel_jobs", "rows": 3, "jobs": 3}


class TestLevels:
    @pytest.mark.parametrize("way", WAYS)
    def test_a_slow_statement_is_a_warning(
        self, way: str, goqueue_database: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database, slow_query_time=MILLISECOND)) as store:
            caplog.clear()
            store.call("create_jobs", MANY)
        [record] = [record for record in statements(caplog) if record.query == "create_jobs"]
        assert record.levelno == logging.WARNING
        assert record.getMessage() == f"create_jobs was slow, {fields(record)['duration_ms']} ms"

    @pytest.mark.parametrize("slow", [timedelta(0), timedelta(hours=1)])
    def test_a_statement_below_the_threshold_or_without_one_is_no_warning(
        self, goqueue_database: str, caplog: pytest.LogCaptureFixture, slow: timedelta
    ) -> None:
        with opened("pool", DatabaseConfig(url=goqueue_database, slow_query_time=slow)) as store:
            store.call("create_jobs", MANY)
        assert {record.levelno for record in statements(caplog)} == {logging.DEBUG}

    @pytest.mark.parametrize("way", ["pool", "async pool"])
    @pytest.mark.parametrize(("slow", "level"), [(MILLISECOND, logging.WARNING), (timedelta(0), logging.DEBUG)])
    def test_a_failed_statement_has_its_sqlstate(
        self,
        way: str,
        slow: timedelta,
        level: int,
        locked: Job,
        goqueue_database: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        config = DatabaseConfig(url=goqueue_database, slow_query_time=slow, lock_timeout=20 * MILLISECOND)
        with opened(way, config) as store:
            caplog.clear()
            with pytest.raises(StorageError):
                store.call("update_job", locked.id, JobUpdate(priority=1))
        [record] = statements(caplog)
        assert record.levelno == level
        found = fields(record)
        took = found.pop("duration_ms")
        assert took >= 20
        assert found == {"query": "update_job", "rows": 0, "job_id": locked.id, "error": "55P03"}
        assert record.getMessage() == f"update_job failed (55P03), {took} ms"

    def test_a_cancelled_statement_is_logged_as_failed(
        self, locked: Job, goqueue_database: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def give_up() -> None:
            config = DatabaseConfig(url=goqueue_database, slow_query_time=MILLISECOND)
            async with await AsyncPostgresStorage.open(config) as store:
                caplog.clear()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.update_job(locked.id, JobUpdate(priority=1)), 1)

        asyncio.run(give_up())
        [record] = statements(caplog)
        assert record.levelno == logging.WARNING
        assert fields(record)["error"] == "CancelledError"

    def test_a_suppressed_record_is_not_created(self, goqueue_store: Storage, caplog: pytest.LogCaptureFixture) -> None:
        caplog.clear()
        logging.getLogger("goqueue").setLevel(logging.INFO)
        goqueue_store.create_job(NewJob(job_type="t"))
        assert statements(caplog) == []


def test_the_contents_of_a_job_are_never_logged(
    goqueue_store: PostgresStorage, goqueue_connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    new = NewJob(job_type="t", payload={"password": SECRET}, idempotency_key=SECRET)
    job = goqueue_store.create_job(new)
    goqueue_store.get_or_create_job(NewJob(job_type="t", payload=SECRET, idempotency_key=SECRET))
    goqueue_store.create_jobs([NewJob(job_type="t", payload=SECRET, idempotency_key=SECRET)])
    goqueue_store.get_job_by_idempotency_key(SECRET)
    goqueue_store.replace_pending_job(new)
    goqueue_store.update_job(job.id, JobUpdate(payload=SECRET, last_error=SECRET))
    [held] = goqueue_store.claim_jobs("default", "w1")
    goqueue_store.fail_job(held, SECRET)
    goqueue_store.list_failures(job.id)
    goqueue_connection.execute("ALTER TABLE goqueue.jobs ADD CHECK (jsonb_typeof(payload) <> 'array') NOT VALID")
    with pytest.raises(InvalidJobError) as raised:
        goqueue_store.create_job(NewJob(job_type="t", payload=[SECRET]))
    assert SECRET in str(raised.value.__cause__)  # The server's message quotes the row.
    assert {"create_job", "create_missing_jobs", "fail_jobs"} <= {record.query for record in statements(caplog)}
    assert SECRET not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("form", ["json", "text"])
def test_configure_logging_writes_the_fields(goqueue_store: PostgresStorage, form: str) -> None:
    loggers = [logging.getLogger(name) for name in ("goqueue", "psycopg")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    job = goqueue_store.create_job(NewJob(job_type="t", queue="mail"))
    stream = io.StringIO()
    try:
        configure_logging(LoggingConfig(format=form, level="debug"), stream)
        [held] = goqueue_store.claim_jobs(["mail"], "w1")
        goqueue_store.complete_job(held)
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    claim, complete = [line for line in stream.getvalue().splitlines() if "goqueue.sql" in line]
    if form == "text":
        assert " query=claim_jobs " in claim
        assert ' rows=1 queue=["mail"] worker_id=w1' in claim
        assert complete.endswith(f" rows=1 job_id={job.id}")
        return
    claimed, completed = json.loads(claim), json.loads(complete)
    assert (claimed["level"], claimed["logger"]) == ("debug", "goqueue.sql")
    assert (claimed["query"], claimed["rows"], claimed["queue"]) == ("claim_jobs", 1, ["mail"])
    assert isinstance(claimed["duration_ms"], float)
    assert (completed["query"], completed["job_id"]) == ("complete_jobs", str(job.id))


def test_a_program_that_sets_up_no_logging_stays_silent_and_one_that_does_sees_what_is_slow(
    goqueue_database: str,
) -> None:
    program = """
        import logging, sys
        from goqueue import DatabaseConfig, NewJob, PostgresStorage
        from datetime import timedelta
        config = DatabaseConfig(url=sys.argv[1], slow_query_time=timedelta(milliseconds=1))
        with PostgresStorage.open(config) as store:
            store.create_jobs(NewJob(job_type="t") for _ in range(1000))
            print("--", file=sys.stderr)
            logging.basicConfig()
            store.create_jobs(NewJob(job_type="t") for _ in range(1000))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), goqueue_database]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    silent, _, logged = done.stderr.partition("--\n")
    assert silent == ""
    assert logged.startswith("WARNING:goqueue.sql:create_jobs was slow, ")


def test_a_bulk_is_split_by_its_bytes_too(
    goqueue_store: PostgresStorage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goqueue.postgres.new_jobs._MAX_BATCH_BYTES", 10_000)
    # The large one is beyond the limit by itself.
    jobs = [NewJob(job_type="t", payload="x" * size) for size in (4000, 4000, 4000, 4000, 4000, 20_000, 1)]
    assert goqueue_store.create_jobs(jobs) == [(job.id, True) for job in jobs]
    sent = [fields(record) for record in statements(caplog) if fields(record)["query"] == "create_jobs"]
    assert [record["rows"] for record in sent] == [2, 2, 1, 1, 1]
    assert [job.payload for job in goqueue_store.get_jobs(job.id for job in jobs)] == [job.payload for job in jobs]


def test_ids_are_sent_in_one_order_however_they_are_given(
    goqueue_store: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [job_id for job_id, _ in goqueue_store.create_jobs([*MANY, NewJob(job_type="t")])]
    assert goqueue_store.cancel_jobs(ids[::-1]) == 1001
    first, second = [fields(record) for record in statements(caplog) if fields(record)["query"] == "cancel_jobs"]
    # Of several the number is logged, of one its id.
    assert (first["jobs"], second["job_id"]) == (1000, max(ids))


class TestJobs:
    def test_a_rescue_is_logged(
        self, goqueue_store: PostgresStorage, goqueue_connection: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        again = goqueue_store.create_job(NewJob(job_type="t"))
        last = goqueue_store.create_job(NewJob(job_type="t", max_attempts=1))
        goqueue_store.claim_jobs("default", "w1", limit=2)
        goqueue_connection.execute("UPDATE goqueue.jobs SET lease_expires_at = now() - interval '1 hour'")
        goqueue_store.rescue_jobs()
        records = [record for record in caplog.records if record.name == "goqueue"]
        assert {record.levelno for record in records} == {logging.WARNING}
        found: dict[UUID, Any] = {fields(record)["job_id"]: fields(record)["status"] for record in records}
        assert found == {again.id: "pending", last.id: "dead"}
        assert f"job {last.id}: its lease has expired; it is dead now" in caplog.messages
