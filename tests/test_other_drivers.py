"""The statement that adds a job, run by asyncpg and psycopg2, alone and under SQLAlchemy."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg2
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from goqueue import (
    DatabaseConfig,
    InvalidJobError,
    NewJob,
    PostgresStorage,
    named_statement,
    numbered_statement,
)
from goqueue.files import shipped_folder

HOUR = timedelta(hours=1)
FULL = {
    "job_type": "ship",
    "queue": "Läger",
    "payload": {"order": 17, "name": "O'Neil \\ 100 % %(id)s $1 ✓", "lines": [1, 2.5, None, True]},
    "priority": -3,
    "max_attempts": 7,
}
PAYLOADS = [{}, [], None, True, 0, -1.5, "", "text", '{"a": 1}', {"a": {"b": ["\\", "'", '"', "%", "$1", ":x"]}}]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    given = conninfo_to_dict(url)
    arguments = {name: given[name] for name in ("host", "port", "user", "password") if name in given}
    connection = await asyncpg.connect(database=given["dbname"], **arguments)
    try:
        yield connection
    finally:
        await connection.close()


def in_asyncpg(url: str, work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with connected(url) as connection:
            return await work(connection)

    return asyncio.run(run())


@pytest.fixture
def plain(goqueue_database: str) -> Iterator[Any]:
    connection = psycopg2.connect(goqueue_database)
    yield connection
    connection.close()


def added(connection: Any, job: NewJob) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(*named_statement(job))
        return cursor.fetchone() is not None


def times() -> list[dict[str, Any]]:
    return [{}, {"delay": HOUR}, {"delay": timedelta(days=400)}, {"scheduled_at": datetime(2050, 6, 1, 12, tzinfo=UTC)}]


class TestAsyncpg:
    def test_a_job_is_committed_and_rolled_back_with_the_transaction(
        self, goqueue_database: str, goqueue_store: PostgresStorage
    ) -> None:
        kept, lost = NewJob(job_type="kept"), NewJob(job_type="lost")

        async def work(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                text, values = numbered_statement(kept)
                assert await connection.fetchrow(text, *values) is not None
                assert goqueue_store.count_jobs() == 0
            transaction = connection.transaction()
            await transaction.start()
            text, values = numbered_statement(lost)
            assert await connection.fetchrow(text, *values) is not None
            await transaction.rollback()

        in_asyncpg(goqueue_database, work)
        assert [job.id for job in goqueue_store.list_jobs().jobs] == [kept.id]

    def test_a_duplicate_returns_no_row_and_leaves_the_transaction_usable(
        self, goqueue_database: str, goqueue_store: PostgresStorage
    ) -> None:
        goqueue_store.create_job(first := NewJob(job_type="t", idempotency_key="k", unique_key="u"))

        async def work(connection: asyncpg.Connection) -> list[bool]:
            jobs = [NewJob(job_type="t", **keys) for keys in ({"idempotency_key": "k"}, {"unique_key": "u"}, {})]
            jobs.insert(1, first)
            async with connection.transaction():
                return [
                    await connection.fetchrow(text, *values) is not None
                    for text, values in map(numbered_statement, jobs)
                ]

        assert in_asyncpg(goqueue_database, work) == [False, False, False, True]
        assert goqueue_store.count_jobs() == 2

    def test_every_field_arrives(self, goqueue_database: str, goqueue_store: PostgresStorage) -> None:
        jobs = [
            NewJob(**FULL, **given, idempotency_key=str(number), unique_key=f"u{number}")
            for number, given in enumerate(times())
        ]

        async def work(connection: asyncpg.Connection) -> None:
            for job in jobs:
                text, values = numbered_statement(job)
                await connection.execute(text, *values)

        in_asyncpg(goqueue_database, work)
        check_fields(goqueue_store, jobs)

    def test_a_payload_is_not_encoded_twice_by_an_applications_codec(
        self, goqueue_database: str, goqueue_store: PostgresStorage
    ) -> None:
        jobs = [NewJob(job_type="t", payload=payload) for payload in PAYLOADS]

        async def work(connection: asyncpg.Connection) -> None:
            for kind in ("json", "jsonb"):
                await connection.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
            for job in jobs:
                text, values = numbered_statement(job)
                await connection.execute(text, *values)

        in_asyncpg(goqueue_database, work)
        assert [goqueue_store.get_job(job.id).payload for job in jobs] == PAYLOADS

    def test_under_sqlalchemy(self, goqueue_database: str, goqueue_store: PostgresStorage) -> None:
        given = conninfo_to_dict(goqueue_database)
        query = {name: given[name] for name in ("host", "port") if name in given}
        url = sqlalchemy.URL.create(
            "postgresql+asyncpg", given["user"], given.get("password"), database=given["dbname"], query=query
        )

        async def work() -> list[bool]:
            engine = create_async_engine(url)
            found = []
            async with AsyncSession(engine) as session:
                for end in (session.rollback, session.commit):
                    for job in (NewJob(**FULL, idempotency_key="k"), NewJob(job_type="t", idempotency_key="k")):
                        connection = await session.connection()
                        result = await connection.exec_driver_sql(*numbered_statement(job))
                        found.append(result.first() is not None)
                    await end()
            await engine.dispose()
            return found

        assert asyncio.run(work()) == [True, False, True, False]
        assert [job.payload for job in goqueue_store.list_jobs().jobs] == [FULL["payload"]]


class TestPsycopg2:
    def test_a_job_is_committed_and_rolled_back_with_the_transaction(
        self, plain: Any, goqueue_store: PostgresStorage
    ) -> None:
        kept = NewJob(job_type="kept")
        assert added(plain, kept)
        assert goqueue_store.count_jobs() == 0
        plain.commit()
        assert added(plain, NewJob(job_type="lost"))
        plain.rollback()
        assert [job.id for job in goqueue_store.list_jobs().jobs] == [kept.id]

    def test_a_duplicate_returns_no_row_and_leaves_the_transaction_usable(
        self, plain: Any, goqueue_store: PostgresStorage
    ) -> None:
        goqueue_store.create_job(first := NewJob(job_type="t", idempotency_key="k", unique_key="u"))
        assert not added(plain, NewJob(job_type="t", idempotency_key="k"))
        assert not added(plain, NewJob(job_type="t", unique_key="u"))
        assert not added(plain, first)
        assert added(plain, NewJob(job_type="t"))
        plain.commit()
        assert goqueue_store.count_jobs() == 2

    def test_every_field_arrives(self, plain: Any, goqueue_store: PostgresStorage) -> None:
        jobs = [
            NewJob(**FULL, **given, idempotency_key=str(number), unique_key=f"u{number}")
            for number, given in enumerate(times())
        ]
        assert [added(plain, job) for job in jobs] == [True] * len(jobs)
        plain.commit()
        check_fields(goqueue_store, jobs)

    def test_every_payload_arrives(self, plain: Any, goqueue_store: PostgresStorage) -> None:
        jobs = [NewJob(job_type="t", payload=payload) for payload in PAYLOADS]
        assert [added(plain, job) for job in jobs] == [True] * len(jobs)
        plain.commit()
        assert [goqueue_store.get_job(job.id).payload for job in jobs] == PAYLOADS

    def test_under_sqlalchemy(self, goqueue_database: str, goqueue_store: PostgresStorage) -> None:
        engine = sqlalchemy.create_engine(goqueue_database.replace("postgresql://", "postgresql+psycopg2://", 1))
        with Session(engine) as session:
            for end in (session.rollback, session.commit):
                for job, is_new in (
                    (NewJob(**FULL, idempotency_key="k"), True),
                    (NewJob(job_type="t", idempotency_key="k"), False),
                ):
                    result = session.connection().exec_driver_sql(*named_statement(job))
                    assert (result.first() is not None) is is_new
                end()
        assert [job.payload for job in goqueue_store.list_jobs().jobs] == [FULL["payload"]]
        engine.dispose()


def check_fields(store: PostgresStorage, jobs: list[NewJob]) -> None:
    now = datetime.now(UTC)
    for job in jobs:
        found = store.get_job(job.id)
        assert {name: getattr(found, name) for name in FULL} == FULL
        assert (found.idempotency_key, found.unique_key) == (job.idempotency_key, job.unique_key)
        wanted = job.scheduled_at or now + (job.delay or timedelta(0))
        assert abs(found.scheduled_at - wanted) < timedelta(minutes=1)


def test_such_a_job_wakes_a_listener(plain: Any, goqueue_store: PostgresStorage) -> None:
    with goqueue_store.listen("default") as listener:
        added(plain, NewJob(job_type="t"))
        plain.commit()
        assert listener.wait(timedelta(minutes=1))


def test_the_text_is_the_shipped_statement_under_its_name() -> None:
    numbered, values = numbered_statement(NewJob(job_type="t"))
    named, by_name = named_statement(NewJob(job_type="t"))
    assert numbered.startswith("INSERT /* goqueue:create_job */ INTO goqueue.jobs")
    assert named.startswith("INSERT /* goqueue:create_job */ INTO goqueue.jobs")
    assert len(values) == len(by_name) == 10
    assert all(f"${number}::" in numbered for number in range(1, 10))
    assert all(f"%({name})s::" in named for name in by_name)


def test_a_payload_is_checked() -> None:
    for statement in (numbered_statement, named_statement):
        with pytest.raises(InvalidJobError, match=r"NaN|nan"):
            statement(NewJob(job_type="t", payload=[float("nan")]))
        with pytest.raises(InvalidJobError, match="MAX_PAYLOAD_BYTES"):
            statement(NewJob(job_type="t", payload="x" * 2000), DatabaseConfig(max_payload_bytes=1024))
        with pytest.raises(InvalidJobError, match="job must be a NewJob"):
            statement({"job_type": "t"})  # type: ignore[arg-type]


def test_a_folder_of_tuned_files_is_used(tmp_path: Path) -> None:
    text = (
        (shipped_folder("sql") / "jobs.sql")
        .read_text("utf-8")
        .replace("ON CONFLICT DO NOTHING\nRETURNING", "ON CONFLICT DO NOTHING\n\n\nRETURNING", 1)
    )
    (tmp_path / "jobs.sql").write_text(text)
    config = DatabaseConfig(sql_dir=str(tmp_path))
    job = NewJob(job_type="t")
    assert "NOTHING\n\n\nRETURNING" in numbered_statement(job, config)[0]
    assert "NOTHING\n\n\nRETURNING" in named_statement(job, config)[0]
    assert "NOTHING\n\n\nRETURNING" not in numbered_statement(job)[0]
