"""The oracle of `make chaos` finds every kind of broken promise, and none in a sound store.

Imports tests.chaos and tests.mutants.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from goqueue import PostgresStorage
from goqueue.migrate import migrate
from tests import mutants
from tests.chaos import clock, journal
from tests.chaos.__main__ import _reason
from tests.chaos.arena import HISTORY
from tests.chaos.clients import SECOND, Spec, run_calls
from tests.chaos.clock import Clock
from tests.chaos.each import CALLS, WITHOUT_CALL, Each
from tests.chaos.hands import CHANGES
from tests.chaos.journal import Call, Journal
from tests.chaos.oracle import HAND, Change, Evidence, Violation, collect, judge
from tests.chaos.proxy import WAYS
from tests.chaos.server import CrashingServer
from tests.workers import until

SECONDS = 60.0
"""The longest wait for a violation, reached only if the test fails."""
DEADLINE = 30.0
"""Seconds for each call: these tests share a busy machine."""


def address(url: str) -> str:
    """Return the path of the server's socket."""
    server = conninfo_to_dict(url)
    return f"{server['host']}/.s.PGSQL.{server['port']}"


@contextmanager
def clients(url: str, folder: Path, sql_dir: str = "") -> Iterator[None]:
    """Let three clients call a store at random. At the end, each has ended its last call."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(b"SET synchronous_commit = on")
        connection.execute(HISTORY.read_bytes())
    threads = []
    for number in range(3):
        spec = Spec("calls", f"client-{number}", url, str(folder), f"seed {number}", SECOND, sql_dir)
        threads.append(threading.Thread(target=run_calls, args=(spec, Journal(folder / f"{spec.name}.jsonl"))))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        (folder / "over").touch()
        for thread in threads:
            thread.join()


def found(url: str, folder: Path) -> list[Violation]:
    with psycopg.connect(url, autocommit=True) as connection:
        return judge(collect(connection, journal.read(folder)), seconds=DEADLINE)


def test_a_sound_store_keeps_every_promise(goqueue_database: str, tmp_path: Path) -> None:
    needed = {"create_jobs", "claim_jobs", "complete_jobs", "fail_jobs", "heartbeat_jobs", "release_jobs"}
    with clients(goqueue_database, tmp_path):
        time.sleep(3)
        until(lambda: {call.method for call in journal.read(tmp_path) if not call.error} >= needed)
    assert found(goqueue_database, tmp_path) == []


@pytest.mark.parametrize(
    ("query", "guard", "promise"),
    [
        ("claim_jobs", "row lock", "holder"),
        ("claim_jobs", "new token", "token"),
        ("complete_jobs", "token", "completed"),
        ("rescue_jobs", "expired", "holder"),
    ],
)
def test_a_statement_without_its_guard_breaks_a_promise(
    goqueue_database: str, tmp_path: Path, query: str, guard: str, promise: str
) -> None:
    [mutant] = [one for one in mutants.MUTANTS if (one.place, one.what) == (query, guard)]
    file, before, text, after = mutants.located(mutants.ROOT, mutant)
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / file.name).write_text(before + text.replace(mutant.guard, mutant.without) + after)
    ends = time.monotonic() + SECONDS
    with clients(goqueue_database, tmp_path, str(tmp_path / "sql")):
        while promise not in {one.promise for one in found(goqueue_database, tmp_path)}:
            assert time.monotonic() < ends, "the oracle has found nothing"
            time.sleep(0.5)
    assert promise in {one.promise for one in found(goqueue_database, tmp_path)}


def test_a_manual_change_without_the_trigger_breaks_a_promise(goqueue_database: str, tmp_path: Path) -> None:
    by_hand = psycopg.connect(goqueue_database, autocommit=True, application_name=HAND)
    ends = time.monotonic() + SECONDS
    with by_hand, clients(goqueue_database, tmp_path):
        by_hand.execute("DROP TRIGGER jobs_follow_change ON goqueue.jobs")
        while "holder" not in {one.promise for one in found(goqueue_database, tmp_path)}:
            assert time.monotonic() < ends, "the oracle has found nothing"
            by_hand.execute(CHANGES["another holder"].encode())


def test_the_clock_of_a_client_is_wrong_and_its_journal_is_right(tmp_path: Path) -> None:
    if clock.MISSING:
        pytest.skip(clock.MISSING)
    program = (
        "import time; from datetime import datetime; print(time.time(), datetime.now().timestamp(), time.monotonic())"
    )
    environ = os.environ | Clock(tmp_path, 86_400).environ
    now = time.time(), time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True)
    wrong, day, right = map(float, done.stdout.split())
    assert wrong - now[0] == pytest.approx(86_400, abs=DEADLINE)
    assert day == pytest.approx(wrong, abs=DEADLINE)
    assert right - now[1] == pytest.approx(0, abs=DEADLINE)

    Journal(tmp_path / "c.jsonl", epoch=1000.0).called("ping", {})
    [call] = journal.read(tmp_path)
    assert call.at == pytest.approx(1000 + time.monotonic(), abs=DEADLINE)


def test_each_message_of_a_call_is_cut_in_each_way(goqueue_database: str, tmp_path: Path) -> None:
    spec = Spec("each", "each", goqueue_database, str(tmp_path), "seed", SECOND)
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        connection.execute(HISTORY.read_bytes())
    left, methods = iter(range(40)), ["complete_jobs", "pause_queue"]
    each = Each(spec, address(goqueue_database), Random("seed"), lambda: next(left, None) is not None, methods)
    each.run()
    assert found(goqueue_database, tmp_path) == each.found == []
    assert sum(each.done[way] for way in WAYS) == 40
    assert each.done["different points"] == 40 + each.done["left"]
    assert {call.error for call in journal.read(tmp_path)} >= {"", "StorageUnavailableError", "OutcomeUnknownError"}


def test_a_pause_is_judged_after_the_transaction_of_the_cut_call_has_ended(
    goqueue_database: str, tmp_path: Path
) -> None:
    spec = Spec("each", "each", goqueue_database, str(tmp_path), "seed", SECOND)
    each = Each(spec, address(goqueue_database), Random("seed"), lambda: False, ["pause_queue"])
    with psycopg.connect(goqueue_database) as other:
        other.execute("LOCK TABLE goqueue.paused_queues IN EXCLUSIVE MODE")
        timer = threading.Timer(2 * SECOND.total_seconds(), other.rollback)
        timer.start()
        each.run()
        timer.join()
    assert each.found == []


def test_each_method_of_the_store_is_cut() -> None:
    methods = {
        name for name in dir(PostgresStorage) if not name.startswith("_") and callable(getattr(PostgresStorage, name))
    }
    assert CALLS.keys() | WITHOUT_CALL == methods


def test_acknowledged_jobs_that_a_crash_loses_are_missed(tmp_path: Path) -> None:
    with CrashingServer(tmp_path / "data", wal_writer_delay="10s") as server:
        url = server.tcp_url("postgres")
        migrate(url)
        with clients(make_conninfo(url, options="-c synchronous_commit=off"), tmp_path):
            while len(journal.read(tmp_path)) < 150:
                time.sleep(0.1)
            server.kill()
            server.start_again()
        promises = {one.promise for one in found(url, tmp_path)}
        assert "kept" in promises
        assert promises & {"completed", "returned"}


JOB, OTHER = "019a0000-0000-7000-8000-000000000001", "019a0000-0000-7000-8000-000000000002"
NOBODY = (None, None, None, None, None)
PENDING = ("pending", 0, 0, None, None)
RUNNING = ("running", 1, 1, "w:1", 9.0)


def change(place: float, query: str, before: tuple[Any, ...], after: tuple[Any, ...], **other: Any) -> Change:
    """Return a change at second ``place``."""
    fixed = {"job_id": JOB, "idempotency_key": None, "max_attempts": 3, **other}
    return Change(
        int(10 * place),
        place,
        place,
        "700",
        query,
        **fixed,
        **dict(zip(Change._fields[8:], (*before, *after), strict=True)),
    )


def call(number: float, method: str, args: dict[str, Any], *, took: float = 1.0, **answer: Any) -> Call:
    """Return a call that lasts from half a second before second ``number`` to half a second after it."""
    return Call(
        int(10 * number), number - 0.5, method, args, ended=number + 0.5, took=took, is_ours=True, client="c", **answer
    )


CREATED = change(1, "create_job", NOBODY, PENDING)
CREATE = call(
    1,
    "create_job",
    {"job": {"id": JOB, "key": None}},
    value={"id": JOB, "status": "pending", "token": 0, "attempts": 0},
)
CLAIMED = change(2, "claim_jobs", PENDING, RUNNING)
CLAIM = call(
    2,
    "claim_jobs",
    {"worker_id": "w:1"},
    value=[{"id": JOB, "status": "running", "token": 1, "attempts": 1, "holder": "w:1", "key": None}],
)
COMPLETED = change(3, "complete_jobs", RUNNING, ("completed", 1, 1, None, None))
LEASES = {"leases": [[JOB, 1]]}
WAITING = ("pending", 1, 0, None, None)
RELEASE, RELEASED = call(2.3, "release_jobs", LEASES), change(2.3, "release_jobs", RUNNING, WAITING)
COMPLETE = call(3, "complete_jobs", LEASES)
LATE = call(4, "complete_jobs", LEASES, error="LeaseLostError", lost=[(JOB, 1)])
HEARTBEAT = call(3, "heartbeat_jobs", LEASES)
ENDED = ("completed", 1, 1, None, None)
Case = tuple[list[Call], list[Change], dict[str, tuple[Any, ...]]]
SOUND: Case = ([CREATE, CLAIM, COMPLETE], [CREATED, CLAIMED, COMPLETED], {JOB: ENDED})
FAILED = msgspec.structs.replace(CLAIM, value=None, error="StorageUnavailableError")
UNKNOWN = msgspec.structs.replace(FAILED, error="OutcomeUnknownError", is_unknown=True)
FOREIGN = msgspec.structs.replace(FAILED, error="OperationalError", is_ours=False)
LOST_REPLY = msgspec.structs.replace(UNKNOWN, transaction_id="701")
STATUS = call(4, "get_transaction_status", {"transaction_id": "701"}, value="committed")
READ = call(4, "get_job", {"job_id": JOB}, error="JobNotFoundError")
UNKNOWN_READ = msgspec.structs.replace(READ, error="OutcomeUnknownError", is_unknown=True)
#: Taken by hand from the worker, first without and then with the token of the trigger.
TAKEN, FENCED = ("running", 1, 1, "dba", 9.0), ("running", 2, 1, "dba", 9.0)
BROKEN: dict[str, tuple[str, Case]] = {
    "a job that vanished": ("kept", (SOUND[0], SOUND[1], {})),
    "a job that never came": ("kept", ([CREATE], [], {})),
    "a job that is not found": (
        "kept",
        ([*SOUND[0], READ], SOUND[1], SOUND[2]),
    ),
    "a claim by a failed call": ("nothing", ([CREATE, FAILED], [CREATED, CLAIMED], {JOB: RUNNING})),
    "a completion that did not happen": ("completed", (SOUND[0], [CREATED, CLAIMED], {JOB: RUNNING})),
    "a completion that nobody made": ("lost", ([CREATE, CLAIM], SOUND[1], SOUND[2])),
    "a lost lease that is held": ("lost", ([CREATE, CLAIM, LATE], [CREATED, CLAIMED], {JOB: RUNNING})),
    "a completed lease that is lost": ("lost", ([*SOUND[0], LATE], SOUND[1], SOUND[2])),
    "a renewal that did not happen": ("lost", ([CREATE, CLAIM, HEARTBEAT], [CREATED, CLAIMED], {JOB: RUNNING})),
    "two jobs of one key": (
        "key",
        (
            [],
            [change(1, "create_job", NOBODY, PENDING, idempotency_key="k", job_id=job) for job in (JOB, OTHER)],
            {JOB: PENDING, OTHER: PENDING},
        ),
    ),
    "a claim of a running job": (
        "holder",
        ([], [CREATED, CLAIMED, change(3, "claim_jobs", RUNNING, ("running", 2, 2, "w:2", 9.0))], {}),
    ),
    "a token that stays": ("token", ([], [CREATED, change(2, "claim_jobs", PENDING, ("running", 0, 1, "w", 9.0))], {})),
    "a completion of a pending job": ("transition", ([], [CREATED, change(2, "complete_jobs", PENDING, ENDED)], {})),
    "a change without a record": ("transition", (SOUND[0], SOUND[1], {JOB: RUNNING})),
    "an early rescue": (
        "holder",
        ([], [CREATED, CLAIMED, change(3, "rescue_jobs", RUNNING, ("pending", 1, 1, None, None))], {}),
    ),
    "a job that was taken by hand and is not fenced": (
        "holder",
        ([CREATE, CLAIM], [CREATED, CLAIMED, change(3, HAND, RUNNING, TAKEN)], {JOB: TAKEN}),
    ),
    "a job that was taken by hand and fenced later": (
        "holder",
        (
            [CREATE, CLAIM],
            [
                CREATED,
                CLAIMED,
                change(3, HAND, RUNNING, TAKEN),
                change(4, HAND, TAKEN, FENCED)._replace(transaction_id="701"),
            ],
            {JOB: FENCED},
        ),
    ),
    "a completion of a job that was cancelled by hand": (
        "completed",
        (SOUND[0], [CREATED, CLAIMED, change(3, HAND, RUNNING, ("cancelled", 1, 1, None, None))], {}),
    ),
    "a claim of another job": (
        "returned",
        ([CREATE, msgspec.structs.replace(CLAIM, value=[{**CLAIM.value[0], "token": 7}])], [CREATED], {JOB: PENDING}),
    ),
    "a lost transaction that counts as committed": (
        "returned",
        ([CREATE, LOST_REPLY, STATUS], [CREATED], {JOB: PENDING}),
    ),
    "a driver's error": ("named", ([CREATE, FOREIGN], [CREATED], {JOB: PENDING})),
    "an unknown outcome of a read": (
        "named",
        (
            [CREATE, msgspec.structs.replace(READ, error="OutcomeUnknownError", is_unknown=True)],
            [CREATED],
            {JOB: PENDING},
        ),
    ),
    "a call that takes too long": (
        "deadline",
        ([msgspec.structs.replace(CREATE, took=DEADLINE + 1)], [CREATED], {JOB: PENDING}),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_oracle_finds(case: str) -> None:
    promise, evidence = BROKEN[case]
    assert promise in {one.promise for one in judge(Evidence(*evidence), seconds=DEADLINE)}


@pytest.mark.parametrize(
    "evidence",
    [
        SOUND,
        ([CREATE, UNKNOWN], [CREATED, CLAIMED], {JOB: RUNNING}),
        ([CREATE, UNKNOWN], [CREATED], {JOB: PENDING}),
        ([CREATE, FAILED], [CREATED], {JOB: PENDING}),
        ([CREATE, STATUS], [CREATED], {JOB: PENDING}),
        (
            [CREATE, CLAIM],
            [CREATED, CLAIMED, change(3, HAND, RUNNING, TAKEN), change(3.5, HAND, TAKEN, FENCED)],
            {JOB: FENCED},
        ),
        (SOUND[0], [CREATED, CLAIMED, change(3, HAND, RUNNING, ENDED)], {JOB: ENDED}),
        (
            [CREATE, CLAIM, RELEASE, COMPLETE],
            [CREATED, CLAIMED, RELEASED, change(3, HAND, WAITING, ENDED)],
            {JOB: ENDED},
        ),
        (
            [*SOUND[0], LATE],
            [*SOUND[1], change(3.7, HAND, ENDED, PENDING[:1] + ENDED[1:])],
            {JOB: PENDING[:1] + ENDED[1:]},
        ),
    ],
)
def test_the_oracle_finds_nothing_in(evidence: Case) -> None:
    assert judge(Evidence(*evidence), seconds=DEADLINE) == []


def test_a_run_writes_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    size = ["--short", "--calls", "60", "--only", "calm", "--seed", "s"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *size, "--output", str(report)],
        cwd=mutants.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = msgspec.json.decode(report.read_bytes())
    [fault] = written["faults"]
    assert (written["seed"], fault["fault"], fault["violations"]) == ("s", "calm", [])
    assert fault["calls"] >= 60
    assert fault["answers"]["ok"] > 30
    assert "seed s" in done.stdout


def test_calls_that_were_unavailable_are_counted_by_their_reasons() -> None:
    said = "no answer within {} s: the connection of '{}' was closed; look up job {} (DeadlineExceededError)"
    calls = [
        msgspec.structs.replace(FAILED, said=said.format(*different))
        for different in (("1.5", "w:1", JOB), ("20", "calls-2:17", OTHER))
    ]
    reason = said.replace("'{}'", "…").replace("{}", "…")
    assert {_reason(call) for call in calls} == {f"StorageUnavailableError: {reason}"}
    assert [call.is_unavailable for call in (*calls, UNKNOWN, COMPLETE, LATE)] == [True, True, True, False, False]
