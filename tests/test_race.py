"""Worker processes that claim, finish, fail, release and are killed at random: each job has one holder at a time."""

import random
import subprocess
import sys
import textwrap
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from goqueue import DatabaseConfig, NewJob, PostgresStorage

WORKERS = 4
KILLS = 5
MOST_ATTEMPTS = 2  # of the jobs that should become dead

# Written by the server in the order of each job's changes: the row's lock serializes them.
AUDIT = """
CREATE TABLE audit (
    place bigserial PRIMARY KEY,
    job_id uuid NOT NULL,
    old_status text NOT NULL,
    status text NOT NULL,
    old_token bigint NOT NULL,
    token bigint NOT NULL,
    old_locked_by text,
    locked_by text
);
CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (job_id, old_status, status, old_token, token, old_locked_by, locked_by)
    VALUES (NEW.id, OLD.status, NEW.status, OLD.lease_token, NEW.lease_token, OLD.locked_by, NEW.locked_by);
    RETURN NULL;
END$$;
CREATE TRIGGER record_change AFTER UPDATE ON goqueue.jobs FOR EACH ROW EXECUTE FUNCTION record_change();
"""

# A worker records each certain fact at once: either the line is in the file, or the worker did not get that far.
WORKER = """
    import os, random, sys, time
    from datetime import timedelta
    from goqueue import Backoff, DatabaseConfig, LeaseLostError, PostgresStorage
    from goqueue.postgres import claim_positions

    claim_positions._MANY_DEAD_ROWS = 100
    url, name, batch, milliseconds, schema = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    lease = timedelta(seconds=0.5)
    chance = random.Random(name)
    config = DatabaseConfig(
        url=url, schema=schema, pool_max_size=1, lock_timeout=timedelta(seconds=30),
        connect_timeout=timedelta(minutes=1), pool_timeout=timedelta(minutes=1),
        claim_resume_time=timedelta(milliseconds=milliseconds),
    )

    def write(what, jobs):
        os.write(1, "".join(f"{what} {job.id} {job.lease_token}\\n" for job in jobs).encode())

    def report(what, call, jobs):
        try:
            result = call()
        except LeaseLostError as error:
            write(what, [job for job in jobs if job.id not in error.job_ids])
            write("lost", [job for job in jobs if job.id in error.job_ids])
            return []
        write(what, jobs)
        return result

    with PostgresStorage.open(config) as store:
        jobs, turn = [], 0
        while True:
            if not jobs:
                jobs = store.claim_jobs(["one", "two"], name, batch, lease)
                write("claimed", jobs)
            if any(any(positions.parameters().values()) for positions in store._positions.values()):
                os.write(1, b"resumed\\n")
            if not jobs:
                store.rescue_jobs()
                time.sleep(0.01)
                continue
            turn += 1
            # Now and then a worker sleeps until it has lost its jobs, and continues as if it hadn't.
            time.sleep(0.8 if turn % 8 == 2 else chance.random() * 0.01)
            if chance.random() < 0.3:
                try:
                    store.heartbeat_jobs(jobs, lease)
                except LeaseLostError as error:
                    jobs = [job for job in jobs if job.id not in error.job_ids]
            fates = [1 if job.payload == "doomed" else chance.random() for job in jobs]
            failed = [job for job, fate in zip(jobs, fates) if fate > 0.9]
            handed_back = [job for job, fate in zip(jobs, fates) if 0.8 < fate <= 0.9]
            done = [job for job, fate in zip(jobs, fates) if fate <= 0.8]
            report("failed", lambda: store.fail_jobs(
                [(job, f"by {name}") for job in failed], backoff=Backoff(base=timedelta(milliseconds=5))
            ), failed)
            report("released", lambda: store.release_jobs(handed_back), handed_back)
            if chance.random() < 0.5:
                report("completed", lambda: store.complete_jobs(done), done)
                jobs = []
            else:
                jobs = report(
                    "completed", lambda: store.complete_and_claim(done, ["two", "one"], name, batch, lease), done
                )
                write("claimed", jobs)
"""


class Crew:
    """The workers' processes, and their records."""

    def __init__(self, folder: Path, at_end: ExitStack, *arguments: str) -> None:
        self.folder = folder
        self.at_end = at_end
        self.arguments = arguments
        self.alive: dict[str, subprocess.Popen[bytes]] = {}
        self.names: list[str] = []

    def hire(self) -> None:
        name = f"worker-{len(self.names)}"
        url, *rest = self.arguments
        with (self.folder / name).open("wb") as notes:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WORKER), url, name, *rest], stdout=notes, stderr=subprocess.PIPE
            )
        self.at_end.enter_context(process)  # closes its pipe
        self.at_end.callback(process.kill)
        self.names.append(name)
        self.alive[name] = process

    def kill(self, name: str) -> None:
        process = self.alive.pop(name)
        process.kill()
        process.wait()

    def check(self) -> None:
        """Check that no worker has ended by itself, which means by an error."""
        for name, process in self.alive.items():
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.fail(f"{name} ended with {process.returncode}: {process.stderr.read().decode()}")

    def notes(self) -> list[tuple[str, str, str, int]]:
        """Return (worker, what, job, token) of each line, without the last line of a worker killed while writing it."""
        notes = []
        for name in self.names:
            for line in (self.folder / name).read_text().splitlines(keepends=True):
                what, *rest = line.split()
                if rest and line.endswith("\n"):
                    notes.append((name, what, rest[0], int(rest[1])))
        return notes

    def any_resumed(self) -> bool:
        return any("resumed\n" in (self.folder / name).read_text() for name in self.names)


@pytest.mark.parametrize("old_snapshot", [False, True])
def test_each_job_has_one_holder_at_a_time_and_none_is_lost(
    goqueue_database: str,
    goqueue_schema: str,
    goqueue_connection: psycopg.Connection[Any],
    tmp_path: Path,
    old_snapshot: bool,
) -> None:
    count, batch = (1300, 10) if old_snapshot else (400, 5)
    config = DatabaseConfig(url=goqueue_database, lock_timeout=timedelta(seconds=30))
    with ExitStack() as at_end:
        store = at_end.enter_context(PostgresStorage.open(config))
        jobs = [
            NewJob(
                job_type="t",
                queue=("one", "two")[number % 2],
                priority=0 if old_snapshot else number % 3,
                payload="doomed" if number % 20 == 0 else "fine",
                max_attempts=MOST_ATTEMPTS if number % 20 == 0 else 1000,
            )
            for number in range(count)
        ]
        store.create_jobs(jobs)
        goqueue_connection.execute(AUDIT)
        if old_snapshot:
            other = at_end.enter_context(psycopg.connect(goqueue_database))
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            other.execute("SELECT count(*) FROM goqueue.jobs")
        crew = Crew(tmp_path, at_end, goqueue_database, str(batch), "200", goqueue_schema)
        for _ in range(WORKERS):
            crew.hire()
        chance = random.Random(count)
        killed = 0
        deadline = time.monotonic() + 100
        while unfinished := goqueue_connection.execute(
            "SELECT coalesce(locked_by, '') FROM goqueue.jobs WHERE status IN ('pending', 'running')"
        ).fetchall():
            assert time.monotonic() < deadline, f"{len(unfinished)} jobs are not finished"
            crew.check()
            store.rescue_jobs()
            holders = sorted({name for (name,) in unfinished} & crew.alive.keys())
            # Evenly over the first half of the jobs, however long they take.
            if killed < KILLS and holders and len(unfinished) < count * (1 - killed / KILLS / 2):
                crew.kill(chance.choice(holders))
                crew.hire()
                killed += 1
            time.sleep(0.02)
        for name in list(crew.alive):
            crew.kill(name)
    assert killed >= KILLS // 2
    check(jobs, crew, stored(goqueue_connection), goqueue_connection)
    if old_snapshot:
        assert crew.any_resumed()


def stored(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    return {
        str(row[0]): row[1:]
        for row in connection.execute(
            """
            SELECT
                j.id, j.status::text, j.lease_token, j.attempts, j.payload,
                (SELECT count(*) FROM goqueue.job_failures AS f WHERE f.job_id = j.id)
            FROM goqueue.jobs AS j
            """
        )
    }


def check(jobs: list[NewJob], crew: Crew, rows: dict[str, Any], connection: psycopg.Connection[Any]) -> None:
    assert rows.keys() == {str(job.id) for job in jobs}
    claimed_by: dict[tuple[str, int], str] = {}
    ended: dict[tuple[str, int], str] = {}
    last: dict[str, tuple[str, int, str | None]] = defaultdict(lambda: ("pending", 0, None))
    for job_id, old_status, status, old_token, token, old_locked_by, locked_by in connection.execute(
        "SELECT job_id::text, old_status, status, old_token, token, old_locked_by, locked_by FROM audit ORDER BY place"
    ):
        assert (old_status, old_token, old_locked_by) == last[job_id], "a change that is not in the audit"
        last[job_id] = (status, token, locked_by)
        match old_status, status:
            case "pending", "running":
                assert token == old_token + 1
                claimed_by[job_id, token] = locked_by
            case "running", "running":
                assert (token, locked_by) == (old_token, old_locked_by), "it changed hands while it ran"
            case "running", ("pending" | "completed" | "dead"):
                assert (token, locked_by) == (old_token, None)
                assert (job_id, token) not in ended
                ended[job_id, token] = status
            case _:
                pytest.fail(f"job {job_id} went from {old_status} to {status}")
    # Every job reached its end.
    for job_id, (status, token, attempts, payload, failures) in rows.items():
        assert last[job_id] == (status, token, None)
        assert [end for (of_job, _), end in ended.items() if of_job == job_id and end != "pending"] == [status]
        if payload == "doomed":
            assert (status, attempts, failures) == ("dead", MOST_ATTEMPTS, MOST_ATTEMPTS)
        else:
            assert (status, failures) == ("completed", attempts - 1)
    assert Counter(row[0] for row in rows.values()) == {"completed": len(jobs) * 19 // 20, "dead": len(jobs) // 20}
    # The workers' records match what happened.
    believed = crew.notes()
    claims = [(job_id, token) for _, what, job_id, token in believed if what == "claimed"]
    assert len(claims) == len(set(claims)), "two workers were given one claim"
    assert "lost" in {what for _, what, _, _ in believed}, "no lease was lost: nothing was put to the test"
    for worker, what, job_id, token in believed:
        assert claimed_by[job_id, token] == worker
        if what == "completed":
            assert ended[job_id, token] == "completed"
        elif what == "released":
            assert ended[job_id, token] == "pending"
        elif what == "failed":
            assert ended[job_id, token] in ("pending", "dead")
