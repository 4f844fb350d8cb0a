"""The examples of docs/transactions.md run, each beside an order that commits or rolls back with its job."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from textwrap import dedent, indent
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from goqueue import (
    AsyncPostgresStorage,
    DuplicateJobError,
    NewJob,
    PostgresStorage,
    TransactionConflictError,
    named_statement,
    numbered_statement,
)
from goqueue.migrate import migrations_dir
from goqueue.testing.embedded import EmbeddedServer
from tests.test_other_drivers import connected

PAGE = (migrations_dir() / "docs" / "transactions.md").read_text("utf-8")
URL = '"postgresql://app@localhost/app"'


def examples(heading: str, language: str = "python") -> list[str]:
    """The examples below a heading of the page."""
    [section] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


Done = Callable[[], list[int]]


@pytest.fixture
def done(goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]) -> Iterator[Done]:
    """An empty table of orders; and a function that returns its orders, once it has compared them with the jobs."""
    goqueue_connection.execute("CREATE TABLE orders (id integer PRIMARY KEY)")

    def orders() -> list[int]:
        found = [row[0] for row in goqueue_connection.execute("SELECT id FROM orders ORDER BY id")]
        jobs = goqueue_store.list_jobs().jobs
        assert {job.job_type for job in jobs} <= {"ship"}
        assert sorted(job.payload["order"] for job in jobs) == found  # type: ignore[call-overload, index]
        return found

    return orders


def run(example: str, names: dict[str, Any]) -> None:
    exec(example, {"NewJob": NewJob, "PostgresStorage": PostgresStorage, **names})


async def run_async(example: str, names: dict[str, Any]) -> None:
    names = {"NewJob": NewJob, **names}
    exec(f"async def example():\n{indent(example, '    ')}", names)
    await names["example"]()


def test_psycopg(goqueue_database: str, goqueue_store: PostgresStorage, done: Done) -> None:
    [example] = examples("psycopg")
    names = {"psycopg": psycopg, "store": goqueue_store}
    example = example.replace(URL, repr(goqueue_database))
    with pytest.raises(ZeroDivisionError):
        run(f"{example}    1 / 0", names)
    assert done() == []
    run(example, names)
    assert done() == [1]


def test_sqlalchemy(goqueue_database: str, goqueue_store: PostgresStorage, done: Done) -> None:
    example, _ = examples("SQLAlchemy and SQLModel")
    engine = sqlalchemy.create_engine(goqueue_database.replace("postgresql:", "postgresql+psycopg:", 1))
    names = {"store": goqueue_store, "engine": engine, "Session": Session, "Order": Order}
    run(example.replace("commit", "rollback"), names)
    assert done() == []
    run(example, names)
    assert done() == [2]
    engine.dispose()


def test_sqlalchemy_for_asyncio(goqueue_database: str, done: Done) -> None:
    _, example = examples("SQLAlchemy and SQLModel")

    async def both() -> None:
        engine = create_async_engine(goqueue_database.replace("postgresql:", "postgresql+psycopg:", 1))
        async with await AsyncPostgresStorage.open(goqueue_database) as store:
            names = {"store": store, "engine": engine, "AsyncSession": AsyncSession, "Order": Order}
            await run_async(example.replace("commit", "rollback"), names)
            assert done() == []
            await run_async(example, names)
        await engine.dispose()

    asyncio.run(both())
    assert done() == [3]


def test_django(goqueue_database: str, done: Done) -> None:
    [example] = examples("Django")
    given = conninfo_to_dict(goqueue_database)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    database = {name: given.get(key, "") for name, key in names.items()}
    program = dedent(f"""
        import django
        from django.conf import settings
        settings.configure(DATABASES={{"default": {{"ENGINE": "django.db.backends.postgresql", **{database!r}}}}})
        django.setup()
        from django.db import models
        from goqueue import NewJob, PostgresStorage

        class Order(models.Model):
            id = models.IntegerField(primary_key=True)

            class Meta:
                app_label, db_table = "shop", "orders"
    """)
    command = [sys.executable, "-W", "error", "-c"]
    failed = subprocess.run([*command, f"{program}{example}    1 / 0"], capture_output=True, text=True, check=False)
    assert "ZeroDivisionError" in failed.stderr
    assert done() == []
    subprocess.run([*command, program + example], check=True)
    assert done() == [4]


def test_asyncpg(goqueue_database: str, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = examples("asyncpg")

    async def both() -> None:
        async with connected(goqueue_database) as connection:
            names = {"connection": connection, "numbered_statement": numbered_statement}
            failing = example.replace("print(", "    1 / 0\nprint(")
            with pytest.raises(ZeroDivisionError):
                await run_async(failing, names)
            assert done() == []
            await run_async(example, names)

    asyncio.run(both())
    assert done() == [5]
    assert capsys.readouterr().out == "added\n"


def test_psycopg2(goqueue_database: str, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = examples("psycopg2")
    connection = psycopg2.connect(goqueue_database)
    names = {"connection": connection, "named_statement": named_statement}
    with pytest.raises(ZeroDivisionError):
        run(f"{example}    1 / 0", names)
    assert done() == []
    run(example, names)
    assert done() == [6]
    assert capsys.readouterr().out == "added\nadded\n"
    connection.close()


def psql(url: str, script: str) -> subprocess.CompletedProcess[str]:
    command = [EmbeddedServer().bin("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url]
    return subprocess.run(command, input=script, capture_output=True, text=True, check=False)


def test_psql(goqueue_database: str, goqueue_store: PostgresStorage, done: Done) -> None:
    example, _, _ = examples("SQL and triggers", "sql")
    assert psql(goqueue_database, example.replace("COMMIT", "ROLLBACK")).stdout.endswith("|t\n")
    assert done() == []
    ran = psql(goqueue_database, example)
    job = goqueue_store.get_job_by_idempotency_key("order-7")
    assert (ran.stdout, ran.stderr) == (f"{job.id}|t\n", "")
    again = psql(goqueue_database, example.replace("INSERT", "-- INSERT"))
    assert again.stdout == f"{job.id}|f\n"
    assert done() == [7]


def test_a_unique_key(goqueue_database: str, goqueue_store: PostgresStorage) -> None:
    _, example, _ = examples("SQL and triggers", "sql")
    first, again = (psql(goqueue_database, example).stdout for _ in range(2))
    [job] = goqueue_store.list_jobs().jobs
    assert job.unique_key == "report-3"
    assert (first, again) == (f"{job.id}|t\n", f"{job.id}|f\n")


def test_a_trigger(goqueue_database: str, goqueue_connection: psycopg.Connection[Any], done: Done) -> None:
    _, _, example = examples("SQL and triggers", "sql")
    goqueue_connection.execute(example.encode())
    with goqueue_connection.transaction(force_rollback=True):
        goqueue_connection.execute("INSERT INTO orders SELECT generate_series(1, 10)")
    assert done() == []
    goqueue_connection.execute("INSERT INTO orders SELECT generate_series(1, 10)")
    assert done() == list(range(1, 11))
    goqueue_connection.execute("SET search_path = pg_catalog")
    goqueue_connection.execute("INSERT INTO public.orders VALUES (11)")
    goqueue_connection.execute("RESET search_path")
    assert done()[-1] == 11


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_above_read_committed_a_later_duplicate_is_a_serialization_failure(
    goqueue_database: str, goqueue_store: PostgresStorage, level: psycopg.IsolationLevel
) -> None:
    earlier = goqueue_store.create_job(NewJob(job_type="t", idempotency_key="earlier"))
    with psycopg.connect(goqueue_database) as connection:
        connection.isolation_level = level
        bound = PostgresStorage.bound_to(connection)
        with pytest.raises(DuplicateJobError):
            bound.create_job(NewJob(job_type="t", idempotency_key="earlier"))
        assert bound.get_job(earlier.id) == earlier
        goqueue_store.create_job(NewJob(job_type="t", idempotency_key="later"))
        with pytest.raises(TransactionConflictError):
            bound.create_job(NewJob(job_type="t", idempotency_key="later"))
        connection.rollback()
        connection.execute("SELECT FROM goqueue.jobs")
        goqueue_store.create_job(NewJob(job_type="t", unique_key="later"))
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute("SELECT * FROM goqueue.add_job('t', unique_key => 'later')")


def test_node(goqueue_database: str, done: Done) -> None:
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('pg')"], capture_output=True, check=False).returncode:
        pytest.skip("needs node with the package pg: npm install pg in a folder, NODE_PATH=<folder>/node_modules")
    [example] = examples("Node", "js")
    given = conninfo_to_dict(goqueue_database)
    names = {"database": "dbname", "user": "user", "password": "password", "host": "host", "port": "port"}
    config = {name: given[key] for name, key in names.items() if key in given}

    def ran(text: str) -> subprocess.CompletedProcess[str]:
        program = f"""
            const {{ Client }} = require("pg");
            (async () => {{
                const client = new Client({json.dumps(config)});
                await client.connect();
                try {{ {text} }} finally {{ await client.end(); }}
            }})();
        """
        return subprocess.run([node, "-e", program], capture_output=True, text=True, check=False)

    assert "boom" in ran(example.replace('await client.query("COMMIT")', 'throw new Error("boom")')).stderr
    assert done() == []
    assert ran(example).stdout == "added\n"
    assert ran(re.sub("await client.query\\(.INSERT.*", "", example)).stdout == "the job exists already\n"
    assert done() == [8]


def test_each_example_has_its_test() -> None:
    assert len(re.findall(r"```\w", PAGE)) == 10
