"""After a statement has run, nothing makes its call fail: the application's logging and tracing, decoding, pool
records."""

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from goqueue import DatabaseConfig, InvalidJobError, NewJob, PostgresStorage, safelog
from tests.ways import WAYS, opened

MILLISECOND = timedelta(milliseconds=1)


class BrokenError(Exception):
    """The error that the application's own logging raises."""


def broken(*args: Any, **kwargs: Any) -> Any:
    raise BrokenError


class BrokenHandler(logging.Handler):
    emit = broken


class BrokenFilter(logging.Filter):
    filter = broken


class BrokenText:
    __str__ = __repr__ = broken


Break = Callable[[pytest.MonkeyPatch], None]


def set_factory(patch: pytest.MonkeyPatch, **fields: Any) -> None:
    standard = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = standard(*args, **kwargs)
        vars(record).update(fields)
        return record

    patch.setattr(logging, "_logRecordFactory", factory)


def factory_with_our_fields(patch: pytest.MonkeyPatch) -> None:
    names = ("query", "duration_ms", "rows", "error", "job_id", "jobs", "queue", "worker_id", "status")
    set_factory(patch, **dict.fromkeys(names, "theirs"))


def factory_that_raises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logging, "_logRecordFactory", broken)


def filter_that_raises(patch: pytest.MonkeyPatch) -> None:
    for name in ("goqueue", "goqueue.sql"):
        patch.setattr(logging.getLogger(name), "filters", [BrokenFilter()])


def handler_that_raises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logging.getLogger("goqueue"), "handlers", [BrokenHandler()])


def loggers_that_raise(patch: pytest.MonkeyPatch) -> None:
    for name in ("goqueue", "goqueue.sql"):
        patch.setattr(logging.getLogger(name), "isEnabledFor", broken)


BREAKS: list[Break] = [
    factory_with_our_fields,
    factory_that_raises,
    filter_that_raises,
    handler_that_raises,
    loggers_that_raise,
]


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Log each statement, and forget earlier reports."""
    monkeypatch.setattr(safelog, "_reported", set())
    monkeypatch.setattr(logging.getLogger("goqueue"), "level", logging.DEBUG)
    logging.getLogger("goqueue").manager._clear_cache()  # type: ignore[attr-defined]
    yield
    logging.getLogger("goqueue").manager._clear_cache()  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("break_logging", BREAKS)
def test_no_call_fails_over_the_applications_logging(
    way: str,
    break_logging: Break,
    goqueue_database: str,
    goqueue_connection: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DatabaseConfig(url=goqueue_database, slow_query_time=MILLISECOND)  # Nearly every one becomes a warning.
    with opened(way, config) as store, monkeypatch.context() as patch:
        break_logging(patch)
        jobs = [NewJob(job_type="t", max_attempts=2) for _ in range(20)]
        assert store.call("create_jobs", jobs) == [(job.id, True) for job in jobs]
        claimed = store.call("claim_jobs", "default", "w", limit=20)
        assert [job.id for job in claimed] == [job.id for job in jobs]
        store.call("complete_jobs", claimed[2:])
        goqueue_connection.execute(
            "UPDATE goqueue.jobs SET lease_expires_at = now() - interval '1 hour' WHERE status = 'running'"
        )
        assert set(store.call("rescue_jobs").values()) == {"pending"}
        # A job that can't be read is also logged.
        goqueue_connection.execute(
            "UPDATE goqueue.jobs SET payload = '1e5000', scheduled_at = now() - interval '1 day' WHERE id = %s",
            [jobs[0].id],
        )
        last = store.call("create_job", NewJob(job_type="t"))
        assert [job.id for job in store.call("claim_jobs", "default", "w", limit=5)] == [jobs[1].id, last.id]
        assert store.call("get_job", last.id).status == "running"
        assert store.call("count_jobs") == 21


@pytest.mark.parametrize("break_logging", BREAKS)
def test_no_listener_fails_over_the_applications_logging(
    break_logging: Break, goqueue_store: PostgresStorage, goqueue_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with goqueue_store.listen("default") as listener, monkeypatch.context() as patch:
        break_logging(patch)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s"
        goqueue_connection.execute(end, [listener._connection.info.backend_pid])  # type: ignore[union-attr]
        assert listener.wait(timedelta(minutes=1)) == {"default"}


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_no_call_fails_over_the_pools_own_records(
    level: int, goqueue_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with PostgresStorage.open(goqueue_database) as store:
        store.create_job(NewJob(job_type="t"))
        with monkeypatch.context() as patch:
            give_back = store._pool.putconn  # type: ignore[union-attr]

            def putconn(connection: Any) -> None:
                patch.setattr(logging.getLogger("psycopg.pool"), "level", level)
                patch.setattr(logging.getLogger("psycopg.pool"), "filters", [BrokenFilter()])
                logging.getLogger("psycopg.pool").manager._clear_cache()  # type: ignore[attr-defined]
                if level == logging.WARNING:
                    connection.close()  # logs "discarding closed connection"
                give_back(connection)

            patch.setattr(store._pool, "putconn", putconn)
            [job] = store.claim_jobs("default", "w")
        logging.getLogger("psycopg.pool").manager._clear_cache()  # type: ignore[attr-defined]
        store.complete_job(job)
    assert "a log record of psycopg.pool was lost" in capsys.readouterr().err


class TestFields:
    def test_the_applications_attributes_win_and_ours_get_a_prefix(
        self, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with monkeypatch.context() as patch:
            set_factory(patch, job_id="theirs")
            job = goqueue_store.create_job(NewJob(job_type="t", queue="mail"))
        [record] = [vars(record) for record in caplog.records if getattr(record, "query", "") == "create_job"]
        assert (record["job_id"], record["goqueue_job_id"]) == ("theirs", job.id)
        assert (record["queue"], "goqueue_queue" in record) == ("mail", False)

    def test_a_record_whose_attribute_is_a_property_is_written_too(
        self, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Record(logging.LogRecord):
            @property
            def job_id(self) -> str:
                return "theirs"

        with monkeypatch.context() as patch:
            patch.setattr(logging, "_logRecordFactory", Record)
            job = goqueue_store.create_job(NewJob(job_type="t"))
        assert [record.goqueue_job_id for record in caplog.records if isinstance(record, Record)] == [job.id]

    def test_a_record_has_the_place_of_its_log_call(
        self, goqueue_store: PostgresStorage, caplog: pytest.LogCaptureFixture
    ) -> None:
        goqueue_store.ping()
        [record] = [record for record in caplog.records if getattr(record, "query", "") == "ping"]
        assert (record.filename, record.funcName) == ("safelog.py", "report")


class TestReport:
    def test_a_lost_record_is_reported_once(
        self, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patch:
            filter_that_raises(patch)
            for _ in range(3):
                goqueue_store.ping()
        said = capsys.readouterr().err
        assert said.startswith("goqueue: a log record of goqueue.sql was lost; the call itself is not affected:")
        assert said.count("Traceback") == 1

    def test_a_lost_record_is_not_reported_if_logging_suppresses_its_own_errors(
        self, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(logging, "raiseExceptions", False)
            filter_that_raises(patch)
            goqueue_store.ping()
        assert capsys.readouterr().err == ""

    def test_standard_error_can_be_closed(self, goqueue_database: str) -> None:
        program = """
            import logging, sys
            from goqueue import NewJob, PostgresStorage
            with PostgresStorage.open(sys.argv[1]) as store:
                logging.getLogger("goqueue").setLevel(logging.DEBUG)
                logging.getLogger("goqueue.sql").addFilter(lambda record: 1 / 0)
                sys.stderr.close()
                print(store.create_job(NewJob(job_type="t")).job_type)
        """
        command = [sys.executable, "-c", textwrap.dedent(program), goqueue_database]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "t\n"

    def test_exceptions_that_end_the_program_pass(
        self, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Exiting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise SystemExit(3)

        with monkeypatch.context() as patch:
            patch.setattr(logging.getLogger("goqueue"), "handlers", [Exiting()])
            with pytest.raises(SystemExit):
                goqueue_store.ping()


@pytest.mark.parametrize("way", WAYS)
def test_no_call_fails_over_a_tracer_that_fails_after_the_statement(way: str, goqueue_database: str) -> None:
    class BrokenProcessor(SpanProcessor):
        on_end = broken

    provider = TracerProvider()
    as_they_were = {kind: vars(kind)["connect"] for kind in (psycopg.Connection, psycopg.AsyncConnection)}
    PsycopgInstrumentor().instrument(tracer_provider=provider)
    try:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            provider.add_span_processor(BrokenProcessor())
            job = store.call("create_job", NewJob(job_type="t"))
            assert [claimed.id for claimed in store.call("claim_jobs", "default", "w")] == [job.id]
    finally:
        PsycopgInstrumentor().uninstrument()
        for kind, connect in as_they_were.items():
            setattr(kind, "connect", connect)  # noqa: B010


class TestUnreadableJobs:
    @pytest.fixture
    def unburiable(self, goqueue_store: PostgresStorage, goqueue_connection: Any) -> list[NewJob]:
        """Two jobs, of which the second can't be read; making it dead fails."""
        jobs = [NewJob(job_type="t") for _ in range(2)]
        goqueue_store.create_jobs(jobs)
        goqueue_connection.execute("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [jobs[1].id])
        goqueue_connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;
            CREATE TRIGGER refuse BEFORE UPDATE ON goqueue.jobs FOR EACH ROW WHEN (NEW.status = 'dead')
                EXECUTE FUNCTION refuse()
            """
        )
        return jobs

    @pytest.mark.parametrize("way", WAYS)
    def test_a_claim_returns_its_readable_jobs_even_if_the_others_cannot_be_made_dead(
        self, way: str, unburiable: list[NewJob], goqueue_database: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            assert [job.id for job in store.call("claim_jobs", "default", "w", limit=2)] == [unburiable[0].id]
        assert f"rescue_jobs finds them again: {unburiable[1].id}" in caplog.text

    def test_in_a_transaction_of_the_callers_the_error_is_raised(
        self, unburiable: list[NewJob], goqueue_database: str
    ) -> None:
        with psycopg.connect(goqueue_database) as connection:
            with pytest.raises(Exception, match="not now"):
                PostgresStorage.bound_to(connection).claim_jobs("default", "w", limit=2)
            connection.rollback()

    def test_an_error_of_the_servers_in_a_pipeline_keeps_its_name(
        self, goqueue_database: str, goqueue_connection: Any
    ) -> None:
        goqueue_connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '22000'; END$$;
            CREATE TRIGGER refuse BEFORE INSERT ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION refuse()
            """
        )
        with (
            psycopg.connect(goqueue_database, autocommit=True) as connection,
            connection.pipeline(),
            pytest.raises(InvalidJobError, match="not this one"),
        ):
            PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))


def test_an_error_that_cannot_be_shown_is_still_recorded(goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_job(NewJob(job_type="t"))
    [job] = goqueue_store.claim_jobs("default", "w")
    assert goqueue_store.fail_job(job, BrokenText()) == "pending"  # type: ignore[arg-type]
    assert goqueue_store.get_job(job.id).last_error == "BrokenText that can't be shown"
    with pytest.raises(InvalidJobError, match="a value that can't be shown"):
        NewJob(job_type=BrokenText())  # type: ignore[arg-type]


def test_a_notice_handler_of_the_callers_fails_no_call(
    goqueue_database: str, goqueue_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    goqueue_connection.execute(
        """
        CREATE FUNCTION notice() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE WARNING 'w'; RETURN NULL; END$$;
        CREATE TRIGGER notice AFTER INSERT ON goqueue.jobs EXECUTE FUNCTION notice()
        """
    )
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        connection.add_notice_handler(broken)
        job = PostgresStorage.bound_to(connection).create_job(NewJob(job_type="t"))
        assert PostgresStorage.bound_to(connection).get_job(job.id) == job
