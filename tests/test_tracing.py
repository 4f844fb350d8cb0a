"""OpenTelemetry's instrumentation of psycopg sees every statement of the store, by name."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from goqueue import DatabaseConfig, NewJob, PostgresStorage, SchemaError
from tests.ways import WAYS, opened

PREPARED = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE 'SELECT /* goqueue:get_job */%'"


class Spans(InMemorySpanExporter):
    """Return the spans since the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self))
        self.tracer: Tracer = self.provider.get_tracer("tests")

    def new(self) -> list[ReadableSpan]:
        spans = list(self.get_finished_spans())
        self.clear()
        return spans

    def names(self) -> list[str]:
        return [span.name for span in self.new()]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def instrumented(goqueue_database: str, spans: Spans, request: pytest.FixtureRequest) -> Iterator[None]:
    """Instrument psycopg, with a test's options, after its database was created."""
    as_they_were = {kind: vars(kind)["connect"] for kind in (psycopg.Connection, psycopg.AsyncConnection)}
    PsycopgInstrumentor().instrument(tracer_provider=spans.provider, **getattr(request, "param", {}))
    yield
    PsycopgInstrumentor().uninstrument()
    # It leaves a `connect` that also makes derived classes open connections of this class.
    for kind, connect in as_they_were.items():
        setattr(kind, "connect", connect)  # noqa: B010


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("way", WAYS)
class TestEveryWay:
    def test_each_statement_is_one_span_named_after_its_query(
        self, way: str, goqueue_database: str, spans: Spans
    ) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            assert spans.names() == ["goqueue:get_session", "goqueue:ping"]
            job = store.call("create_job", NewJob(job_type="t"))
            [span] = spans.new()
            assert span.name == "goqueue:create_job"
            assert span.kind == SpanKind.CLIENT
            assert span.status.status_code == StatusCode.UNSET
            assert span.attributes is not None
            assert span.attributes["db.system"] == "postgresql"
            assert str(span.attributes["db.statement"]).startswith(
                "INSERT /* goqueue:create_job */ INTO goqueue.jobs ("
            )
            assert store.call("get_job", job.id) == job
            store.call("create_jobs", [NewJob(job_type="t"), NewJob(job_type="t")])
            store.call("list_jobs")
            store.call("complete_jobs", store.call("claim_jobs", "default", "w1", 5))
            names = ["get_job", "create_jobs", "list_jobs", "claim_jobs", "complete_jobs"]
            assert spans.names() == [f"goqueue:{name}" for name in names]

    def test_it_belongs_to_the_callers_span(self, way: str, goqueue_database: str, spans: Spans) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            spans.clear()
            with spans.tracer.start_as_current_span("request"):
                store.call("create_job", NewJob(job_type="t"))
            child, parent = spans.new()
        assert (child.name, parent.name) == ("goqueue:create_job", "request")
        assert child.parent is not None
        assert child.parent == parent.context

    def test_where_tracing_is_suppressed_the_callers_span_keeps_its_name(
        self, way: str, goqueue_database: str, spans: Spans
    ) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            spans.clear()
            with spans.tracer.start_as_current_span("request"), suppress_instrumentation():
                store.call("create_job", NewJob(job_type="t"))
        assert "request" in spans.names()

    def test_an_error_is_recorded(self, way: str, goqueue_database: str, goqueue_connection: Any, spans: Spans) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database)) as store:
            goqueue_connection.execute("ALTER TABLE goqueue.jobs RENAME TO moved_jobs")
            spans.clear()
            with pytest.raises(SchemaError):
                store.call("create_job", NewJob(job_type="t"))
            [span] = spans.new()
        assert span.name == "goqueue:create_job"
        assert span.status.status_code == StatusCode.ERROR
        [event] = span.events
        assert event.attributes is not None
        assert event.attributes["exception.type"] == "psycopg.errors.UndefinedTable"

    def test_statements_are_still_prepared(self, way: str, goqueue_database: str) -> None:
        with opened(way, DatabaseConfig(url=goqueue_database, pool_max_size=1)) as store:
            for _ in range(10):
                job = store.call("create_job", NewJob(job_type="t"))
                store.call("get_job", job.id)
            [(statement,)] = store.select(PREPARED)
        assert statement.startswith("SELECT /* goqueue:get_job */ j.id,")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("instrumented", [{"enable_commenter": True}], indirect=True)
@pytest.mark.usefixtures("instrumented")
def test_a_comment_with_the_trace_costs_the_prepared_statements_and_nothing_else(
    way: str, goqueue_database: str, spans: Spans
) -> None:
    with opened(way, DatabaseConfig(url=goqueue_database, pool_max_size=1)) as store:
        job = store.call("create_job", NewJob(job_type="t"))
        spans.clear()
        for _ in range(10):
            assert store.call("get_job", job.id) == job
        assert spans.names() == ["goqueue:get_job"] * 10
        assert store.select(PREPARED) == []


def test_a_connection_instrumented_alone_is_traced(goqueue_connection: Any, spans: Spans) -> None:
    PsycopgInstrumentor().instrument_connection(goqueue_connection, tracer_provider=spans.provider)
    store = PostgresStorage.bound_to(goqueue_connection)
    job = store.create_job(NewJob(job_type="t"))
    assert store.get_job(job.id) == job
    assert spans.names() == ["goqueue:create_job", "goqueue:get_job"]


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize(
    ("way", "factory"), [("bound", psycopg.ClientCursor), ("async bound", psycopg.AsyncClientCursor)]
)
def test_on_a_connection_with_cursors_of_another_kind_the_store_works_untraced(
    way: str, factory: Any, goqueue_database: str, spans: Spans
) -> None:
    with opened(way, DatabaseConfig(url=goqueue_database), cursor_factory=factory) as store:
        spans.clear()
        job = store.call("create_job", NewJob(job_type="t"))
        assert store.call("get_job", job.id) == job
        assert spans.names() == []


def test_without_instrumentation_the_callers_span_keeps_its_name(goqueue_database: str, spans: Spans) -> None:
    with (
        opened("pool", DatabaseConfig(url=goqueue_database)) as store,
        spans.tracer.start_as_current_span("request"),
    ):
        store.call("create_job", NewJob(job_type="t"))
    assert spans.names() == ["request"]
