"""A store bound to a connection with unusual settings of the caller: pipelines, styles, adapters."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import JsonbDumper
from psycopg.types.string import StrDumper, TextLoader

from goqueue import DatabaseConfig, InvalidJobError, JobFilter, LeaseLostError, NewJob, PostgresStorage, StorageError
from goqueue.errors import StorageUnavailableError
from goqueue.postgres.cursor import Adapter
from goqueue.postgres.wire import Rendered

HOUR = timedelta(hours=1)
ODD_NAMES = ["q", 'quoted "{name}", \\ and more', "{}", "NULL", "ä€"]

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def connect(goqueue_database: str) -> Iterator[Connect]:
    opened = []

    def open_one(**settings: Any) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(goqueue_database, **settings))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


def works(store: PostgresStorage) -> None:
    """Use every kind of parameter and result: lists of text, ids and numbers, intervals, times, JSON, nulls."""
    payload = {"list": ["{}", '"', ",", "\\"], "text": "ä€"}
    made = [store.create_job(NewJob(job_type="t", queue=queue, payload=payload)) for queue in ODD_NAMES]
    store.create_jobs([NewJob(job_type="t", queue="many") for _ in range(3)])
    claimed = store.claim_jobs(ODD_NAMES, "w", len(made), HOUR)
    assert [job.id for job in claimed] == [job.id for job in made]
    for job in claimed:
        assert isinstance(job.id, UUID)
        assert isinstance(job.lease_token, int)
        assert isinstance(job.created_at, datetime)
        assert job.created_at.tzinfo is not None
        assert job.queue in ODD_NAMES
        assert job.payload == payload
    store.heartbeat_jobs(claimed, HOUR)
    store.fail_jobs([(claimed[0], '{"a", \\}')], retry_in=HOUR)
    assert store.list_failures(claimed[0].id)[0].error == '{"a", \\}'
    [following] = store.complete_and_claim(claimed[1:], "many", "w", 1, HOUR)
    with pytest.raises(LeaseLostError) as lost:
        store.complete_and_claim([*claimed[:2], following], "many", "w", 1, HOUR)
    assert lost.value.job_ids == (claimed[0].id,)  # the second job is completed under this lease
    assert {stats.queue for stats in store.queue_stats()} == {*ODD_NAMES, "many"}
    assert store.count_jobs(JobFilter(queue="many")) == 3
    assert store.cancel_jobs(JobFilter(queue="many")) == 2
    assert store.next_job_at("q") is not None
    store.delete_job(claimed[0].id)


@pytest.mark.parametrize("threshold", [0, None])
@pytest.mark.parametrize("autocommit", [True, False])
def test_calls_work_in_a_pipeline_of_the_callers(connect: Connect, autocommit: bool, threshold: int | None) -> None:
    connection = connect(autocommit=autocommit, prepare_threshold=threshold)
    with connection.pipeline():
        before = connection.execute("SELECT 1")
        works(PostgresStorage.bound_to(connection))
        after = connection.execute("SELECT 2")
        assert (before.fetchone(), after.fetchone()) == ((1,), (2,))


def test_an_error_in_a_pipeline_has_its_name(connect: Connect) -> None:
    connection = connect(autocommit=True)
    store = PostgresStorage.bound_to(connection)
    job = store.create_job(NewJob(job_type="t"))
    connection.execute("SET lock_timeout = 10")
    with connect() as other:
        other.execute("SELECT 1 FROM goqueue.jobs FOR UPDATE")
        with connection.pipeline(), pytest.raises(StorageUnavailableError, match="lock"):
            store.cancel_jobs(job.id)
    assert store.get_job(job.id) == job


@pytest.mark.parametrize(
    ("loaders", "dumpers"),
    [
        ({"uuid": TextLoader}, {}),
        ({"timestamptz": TextLoader, "interval": TextLoader}, {}),
        ({"int2": TextLoader, "int4": TextLoader, "int8": TextLoader, "bool": TextLoader}, {}),
        ({}, {list: JsonbDumper, dict: JsonbDumper}),
        ({}, {str: StrDumper}),
    ],
)
def test_calls_work_with_adapters_of_the_callers(
    connect: Connect, loaders: dict[str, Any], dumpers: dict[Any, Any]
) -> None:
    connection = connect(autocommit=True)
    for name, loader in loaders.items():
        connection.adapters.register_loader(name, loader)
    for kind, dumper in dumpers.items():
        connection.adapters.register_dumper(kind, dumper)
    works(PostgresStorage.bound_to(connection))


def test_adapters_for_the_whole_program_are_not_those_of_the_store(
    goqueue_database: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    adapters.register_loader("uuid", TextLoader)
    monkeypatch.setattr(psycopg, "adapters", adapters)
    monkeypatch.setattr(psycopg.Connection, "adapters", property(lambda connection: adapters))
    assert connect().execute("SELECT gen_random_uuid()::text = gen_random_uuid()::text").fetchone() == (False,)
    with PostgresStorage.open(goqueue_database) as store:
        works(store)


def test_existing_attributes_and_adapters_are_left_alone(goqueue_database: str) -> None:
    program = """
import sys
import psycopg
from psycopg.types.string import TextBinaryLoader
psycopg.adapters.register_loader("uuid", TextBinaryLoader)
psycopg.adapters.register_loader("timestamptz", TextBinaryLoader)
from goqueue import NewJob, PostgresStorage
with PostgresStorage.open(sys.argv[1]) as store:
    job = store.create_job(NewJob(job_type="t"))
    print(type(job.id).__name__, type(job.created_at).__name__)
"""
    command = [sys.executable, "-c", program, goqueue_database]
    assert subprocess.check_output(command, text=True) == "UUID datetime\n"


def test_an_attribute_of_the_callers_connection_is_left_alone(goqueue_database: str) -> None:
    class Audited(psycopg.Connection[Any]):
        cursors: tuple[str, ...] = ()

    with Audited.connect(goqueue_database, autocommit=True) as connection:
        works(PostgresStorage.bound_to(connection))
        assert connection.cursors == ()


def test_lists_end_with_any_time_zone_and_times(goqueue_database: str, connect: Connect) -> None:
    connection = connect(autocommit=True)
    connection.execute("SET TimeZone TO 'America/New_York'")
    store = PostgresStorage.bound_to(connection)
    store.create_jobs(NewJob(job_type="t") for _ in range(10))
    times = ["-infinity", "-infinity", "0300-01-01 BC", "1850-01-01", "9999-12-31 23:30+00"]
    ids = [job.id for job in store.list_jobs().jobs]
    for job_id, time in zip(ids, times, strict=False):
        connection.execute("UPDATE goqueue.jobs SET created_at = %s WHERE id = %s", [time, job_id])
    seen, cursor = [], None
    for _ in range(20):
        page = store.list_jobs(limit=1, cursor=cursor)
        seen += [job.id for job in page.jobs]
        if (cursor := page.next_cursor) is None:
            break
    assert cursor is None
    assert len(seen) == len(set(seen))
    assert set(seen) >= {*ids[3:]}


def test_nothing_of_a_call_is_kept_by_a_connection(goqueue_database: str) -> None:
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, pool_max_size=1)) as store:
        store.create_jobs([NewJob(job_type="t", payload="x" * 500_000)])
        with pytest.raises(InvalidJobError, match="queue"):
            store.create_jobs([NewJob(job_type="t", payload="y" * 500_000, queue="\ud800")])
        with store._connection() as connection:
            gc.collect()
            kept = [thing for thing in gc.get_referrers(connection) if isinstance(thing, psycopg.Cursor)]
            assert kept
            sizes = [len(part) for cursor in kept for part in (getattr(cursor._query, "params", None) or []) if part]
        assert sizes == []


def test_a_statement_is_not_sent_if_its_answer_could_not_be_read(connect: Connect) -> None:
    connection = connect(autocommit=True)
    connection.execute("SET client_encoding TO SQL_ASCII")
    store = PostgresStorage.bound_to(connection)
    with pytest.raises(StorageError, match="client_encoding is SQL_ASCII: run `SET client_encoding TO UTF8` on it"):
        store.create_job(NewJob(job_type="t"))
    connection.execute("SET client_encoding TO UTF8")
    assert store.count_jobs() == 0
    works(store)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DateStyle", "German"),
        ("DateStyle", "SQL, DMY"),
        ("IntervalStyle", "iso_8601"),
        ("IntervalStyle", "sql_standard"),
        ("TimeZone", "Asia/Kathmandu"),
        ("extra_float_digits", "-10"),
        ("bytea_output", "escape"),
        ("standard_conforming_strings", "off"),
        ("array_nulls", "off"),
        ("transform_null_equals", "on"),
        ("quote_all_identifiers", "on"),
        ("default_transaction_deferrable", "on"),
        ("search_path", ""),
    ],
)
def test_any_settings_of_the_callers_connection_work(connect: Connect, setting: str, value: str) -> None:
    connection = connect(autocommit=True)
    connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
    works(PostgresStorage.bound_to(connection))


def test_any_styles_of_the_server_work_with_the_pool(goqueue_database: str, connect: Connect) -> None:
    connection = connect(autocommit=True)
    for setting in ("DateStyle = 'SQL, DMY'", "IntervalStyle = 'iso_8601'"):
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting}")
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database)) as store:
        works(store)


def test_text_outside_the_connections_encoding_is_rejected_by_name(connect: Connect) -> None:
    connection = connect(autocommit=True, client_encoding="LATIN1")
    store = PostgresStorage.bound_to(connection)
    with pytest.raises(InvalidJobError, match="client_encoding"):
        store.create_job(NewJob(job_type="€"))
    assert store.create_job(NewJob(job_type="ä")).job_type == "ä"


def test_a_closed_connection_is_rejected_by_name(connect: Connect) -> None:
    connection = connect()
    connection.close()
    with pytest.raises(StorageUnavailableError, match="the connection is closed"):
        PostgresStorage.bound_to(connection).ping()


def test_a_row_has_the_names_of_its_columns_after_a_column_is_added(connect: Connect) -> None:
    connection: Any = connect(autocommit=True, prepare_threshold=None)
    connection.goqueue_cursors = {}  # kept, as on a connection of the pool
    connection.execute("CREATE TEMPORARY TABLE t AS SELECT 1 AS a")
    statement = Rendered("SELECT /**/ t.* FROM t", [])
    read = partial(Adapter().select_one, connection, "read", statement, {})
    first = read()
    assert (first.a, read().a) == (1, 1)
    connection.execute("ALTER TABLE t RENAME a TO b")
    connection.execute("ALTER TABLE t ADD a integer DEFAULT 2")
    assert (read().a, read().b) == (2, 1)


@pytest.mark.parametrize("password", ["pa${SS}word", "$(y)", "{{b}}", "%X%", "$x", "a'b\\${c}", "\\{{b}}", "a;b $(c)"])
def test_a_connection_is_bound_whatever_its_password(connect: Connect, password: str) -> None:
    connection = connect(password=password)
    bound = PostgresStorage.bound_to(connection)
    assert conninfo_to_dict(bound.config.url)["password"] == password
    assert bound.bound_to(connection, schema="other").config.url == bound.config.url
    with bound.listen("q"):
        pass


def test_a_connection_to_a_database_named_like_a_variable_is_bound(connect: Connect) -> None:
    connect(autocommit=True).execute('CREATE DATABASE "$x"')
    bound = PostgresStorage.bound_to(connect(dbname="$x"))
    assert conninfo_to_dict(bound.config.url)["dbname"] == "$x"
