"""The examples work as described, on a real server. Imports httpx."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from goqueue import Job, JobFilter, JobStatus, NewJob, PostgresStorage
from tests.examples import fastapi_app
from tests.examples.script import work


@pytest.mark.anyio
class TestFastApi:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def client(
        self, goqueue_database: str, goqueue_connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[httpx.AsyncClient]:
        goqueue_connection.execute(
            "CREATE TABLE orders (number bigint PRIMARY KEY, customer text, amount integer CHECK (amount > 0))"
        )
        monkeypatch.setenv("DATABASE_URL", goqueue_database)
        app = fastapi_app.app
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as client,
        ):
            yield client

    async def test_an_order_and_its_job_are_stored_together(
        self, client: httpx.AsyncClient, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        answer = await client.post("/orders/17", json={"customer": "Ada", "amount": 3})
        assert answer.status_code == 201
        [job] = goqueue_store.list_jobs().jobs
        assert answer.json() == {"order": 17, "job": str(job.id)}
        assert job.payload == {"order": 17}
        assert goqueue_connection.execute("SELECT * FROM orders").fetchall() == [(17, "Ada", 3)]
        shown = (await client.get(f"/jobs/{job.id}")).json()
        assert shown == {"id": str(job.id), "status": "pending", "attempts": 0, "error": None}

    async def test_a_rejected_order_leaves_no_job(
        self, client: httpx.AsyncClient, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        with pytest.raises(psycopg.errors.CheckViolation):
            await client.post("/orders/17", json={"customer": "Ada", "amount": -1})
        assert goqueue_store.count_jobs() == 0
        assert goqueue_connection.execute("SELECT * FROM orders").fetchall() == []

    async def test_a_rejected_job_leaves_no_order(
        self, client: httpx.AsyncClient, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        goqueue_store.create_job(NewJob(job_type="other", idempotency_key="order-17"))
        answer = await client.post("/orders/17", json={"customer": "Ada", "amount": 3})
        assert (answer.status_code, answer.json()["error"]) == (409, "DuplicateJobError")
        assert "order-17" in answer.json()["detail"]
        assert goqueue_connection.execute("SELECT * FROM orders").fetchall() == []

    async def test_an_unknown_job_is_not_found(self, client: httpx.AsyncClient) -> None:
        answer = await client.get(f"/jobs/{uuid4()}")
        assert (answer.status_code, answer.json()["error"]) == (404, "JobNotFoundError")


class TestScript:
    @pytest.fixture
    def environment(self, goqueue_database: str, goqueue_connection: psycopg.Connection[Any]) -> dict[str, str]:
        goqueue_connection.execute("CREATE TABLE orders (number bigint PRIMARY KEY)")
        names = {"dbname": "PGDATABASE", "host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
        given = conninfo_to_dict(goqueue_database)
        return {names[name]: str(value) for name, value in given.items() if name in names}

    @pytest.fixture
    def command(self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return [sys.executable, "-m", "tests.examples.script"]

    def test_an_order_and_its_job_are_stored_together_or_not_at_all(
        self, command: list[str], goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection[Any]
    ) -> None:
        added = subprocess.run([*command, "add", "17"], capture_output=True, text=True, check=True)
        [job] = goqueue_store.list_jobs().jobs
        assert (added.stdout, job.payload) == (f"{job.id}\n", {"order": 17})
        again = subprocess.run([*command, "add", "17"], capture_output=True, text=True, check=False)
        assert again.returncode == 1
        assert "UniqueViolation" in again.stderr
        assert goqueue_store.list_jobs().jobs == [job]
        assert goqueue_connection.execute("SELECT * FROM orders").fetchall() == [(17,)]

    @pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
    def test_it_works_until_it_is_stopped(
        self, command: list[str], goqueue_store: PostgresStorage, stop: signal.Signals
    ) -> None:
        with subprocess.Popen([*command, "work"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            bad = goqueue_store.create_job(NewJob(job_type="ship", payload={"order": -1}, max_attempts=1))
            goqueue_store.create_jobs(NewJob(job_type="ship", payload={"order": number}) for number in range(25))
            shipped = [process.stdout.readline() for _ in range(25)]
            assert shipped == [f"shipped {number}\n" for number in range(25)]
            process.send_signal(stop)
            assert process.wait(60) == 0
        assert goqueue_store.count_jobs(JobFilter(status=JobStatus.COMPLETED)) == 25
        assert goqueue_store.get_job(bad.id).status == JobStatus.DEAD
        [failure] = goqueue_store.list_failures(bad.id)
        assert failure.error == "ValueError('there is no order -1')"

    def test_a_stop_releases_claimed_jobs_that_have_not_started(self, goqueue_store: PostgresStorage) -> None:
        stop = threading.Event()
        goqueue_store.create_jobs(NewJob(job_type="ship", payload={"order": number}) for number in range(10))
        work(goqueue_store, lambda job: stop.set(), stop)
        assert goqueue_store.count_jobs(JobFilter(status=JobStatus.COMPLETED)) == 1
        waiting = goqueue_store.list_jobs(JobFilter(status=JobStatus.PENDING)).jobs
        assert [job.attempts for job in waiting] == [0] * 9

    def test_a_job_cancelled_meanwhile_is_skipped(self, goqueue_store: PostgresStorage) -> None:
        stop = threading.Event()
        done: list[int] = []

        def handle(job: Job) -> None:
            done.append(job.payload["order"])
            if len(done) == 1:
                goqueue_store.cancel_jobs([second, job.id])
            if len(done) == 2:
                stop.set()

        made = goqueue_store.create_jobs(NewJob(job_type="ship", payload={"order": number}) for number in range(3))
        second = made[1][0]
        work(goqueue_store, handle, stop)
        assert done == [0, 2]
        assert goqueue_store.count_jobs(JobFilter(status=JobStatus.CANCELLED)) == 2


def test_the_tour_leaves_other_jobs_and_breaks_no_line_in_a_pipe(
    goqueue_database: str, goqueue_store: PostgresStorage, tmp_path: Path
) -> None:
    job = goqueue_store.create_job(NewJob(job_type="t"))
    run = subprocess.run(
        [sys.executable, "-m", "goqueue.testing.demo"],
        env=os.environ | {"GOQUEUE_DATABASE_URL": goqueue_database},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    [error] = [line for line in run.stdout.splitlines() if "DuplicateJobError: " in line]
    assert error.endswith("; use get_or_create_job to get that job")
    assert "The tour's 5,000 jobs were deleted." in run.stdout
    assert goqueue_store.list_jobs().jobs == [job]
