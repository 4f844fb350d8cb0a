"""The page of guarantees names only what exists, each promise has a test and a mutant, and what no other test shows."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import cache
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from goqueue import (
    DatabaseConfig,
    LeaseLostError,
    NewJob,
    PostgresStorage,
    Storage,
    StorageUnavailableError,
    TransactionStatus,
)
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_statements
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.schema import expected_schema
from tests.guarantees import PAGE, Promise, promises, with_figures
from tests.mutants import MUTANTS, ROOT

# --- the page ---------------------------------------------------------------------------------------------------------

# Prints the tests that each of the arguments (files, and -k) selects. The files are imported once: that takes longest.
COLLECT = """
    import contextlib, io, json, shlex, sys
    import pytest

    given = {arguments: shlex.split(arguments) for arguments in json.load(sys.stdin)}
    files = sorted({word for words in given.values() for word in words if word.endswith(".py")})
    found = {}

    class Selection:
        def pytest_collection_finish(self, session):
            for arguments, words in given.items():
                items = [item for item in session.items if item.nodeid.partition("::")[0] in words]
                session.config.option.keyword = words[-1] if "-k" in words else ""
                session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
                found[arguments] = [item.nodeid for item in items]

    with contextlib.redirect_stdout(io.StringIO()) as out:
        options = ["--collect-only", "-q", "-p", "no:cacheprovider"]
        status = pytest.main([*options, *files], plugins=[Selection()])
    sys.exit(out.getvalue()) if status else json.dump(found, sys.stdout)
"""


@cache
def selected() -> dict[str, set[tuple[str, str]]]:
    """Return the (name, file) of the tests that pytest collects in each file and for each mutant of the page."""
    files = {file for promise in promises() for _, file in promise.tests}
    named = {key for promise in promises() for key in promise.mutants}
    arguments = files | {mutant.tests for mutant in MUTANTS if (mutant.place, mutant.what) in named}
    command = [sys.executable, "-c", textwrap.dedent(COLLECT)]
    given = json.dumps(sorted(arguments))
    done = subprocess.run(command, check=False, cwd=ROOT, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        argument: {(one.rpartition("::")[2].partition("[")[0], one.partition("::")[0]) for one in ids}
        for argument, ids in json.loads(done.stdout).items()
    }


def faults(text: str) -> Iterator[str]:
    """Yield each fault of the page as one sentence."""
    things = {thing.name.partition("(")[0].rpartition(".")[2] for thing in expected_schema()}
    for promise in promises(text):
        for name in promise.statements:
            if name not in load_statements():
                yield f"{promise.title}: sql/ has no query {name}"
        for name in promise.constraints:
            if name not in things:
                yield f"{promise.title}: the migrations create no {name}"
        if not promise.tests:
            yield f"{promise.title}: no test shows it"
        for name, file in promise.tests:
            if (name, file) not in selected().get(file, ()):
                yield f"{promise.title}: pytest collects no {name} in {file}"
        yield from (f"{promise.title}: {fault}" for fault in faults_of_mutants(promise))


def faults_of_mutants(promise: Promise) -> Iterator[str]:
    known = {(mutant.place, mutant.what): mutant for mutant in MUTANTS}
    if not promise.mutants:
        yield "no mutant violates it"
    for key in promise.mutants:
        if key not in known:
            yield f"tests/mutants.py has no mutant {': '.join(key)}"
        elif not selected().get(known[key].tests, set()) & set(promise.tests):
            yield f"the mutant {': '.join(key)} runs none of the tests named here"


def test_each_promise_has_its_test_and_its_mutant() -> None:
    text = PAGE.read_text("utf-8")
    assert len(promises(text)) >= 9
    assert list(faults(text)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("`claim_jobs`", "`claim_job`"), "sql/ has no query claim_job"),
        (lambda text: text.replace("`jobs_idempotency_key_idx`", "`jobs_key_idx`"), "create no jobs_key_idx"),
        (
            lambda text: text.replace("[test_a_second_completion_changes_nothing]", "[test_twice]"),
            "collects no test_twice in tests/test_le",
        ),
        (lambda text: text.replace("tests/test_race.py", "tests/test_races.py"), "in tests/test_races.py"),
        (lambda text: text.replace("`complete_jobs: token`", "`complete_jobs: t`"), "no mutant complete_jobs: t"),
        (
            lambda text: text.replace("`complete_jobs: token`", "`cancel_jobs: status`"),
            "the mutant cancel_jobs: status runs none of the tests",
        ),
    ],
)  # fmt: skip
def test_a_fault_of_the_page_is_found(change: Callable[[str], str], fault: str) -> None:
    text = PAGE.read_text("utf-8")
    changed = change(text)
    assert changed != text
    assert any(fault in found for found in faults(changed))


@pytest.mark.parametrize("field", ["Statements", "Constraints", "Tests", "Mutants"])
def test_a_promise_without_one_of_its_lines_is_a_fault(field: str) -> None:
    text = PAGE.read_text("utf-8").replace(f"- **{field}:**", "- **Other:**", 1)
    with pytest.raises(ValueError, match=f"add {field}"):
        promises(text)


def test_a_promise_without_a_test_or_a_mutant_is_a_fault() -> None:
    bare = "# x\n\n## y\n\n- **Statements:** none\n- **Constraints:** none\n- **Tests:** none\n- **Mutants:** none\n\n"
    found = list(faults(bare + "## What is not promised\n"))
    assert found == ["y: no test shows it", "y: no mutant violates it"]


FAULT = {
    "fault": "crashes", "purpose": "the server crashes", "calls": 10_000, "done": {"killed": 1200}, "skipped": "",
    "longest": "1.1 s (claim_jobs)", "violations": [["kept", "a job is missing"]],
}  # fmt: skip
SKIPPED = {"fault": "pooler", "skipped": "pgbouncer is not installed"}


def test_the_figures_of_a_long_run_are_written_into_the_page() -> None:
    page = "# x\n<!-- figures: a -->\nold\n<!-- end of figures -->\n"
    written = with_figures(page, {"seed": "four", "server": "18.6", "faults": [FAULT, SKIPPED]})
    assert "| the server crashes | killed 1,200 | 10,000 | 1.1 s (claim_jobs) | 1 |\n" in written
    assert "on PostgreSQL 18.6, seed `four`" in written
    assert "Skipped: pooler (pgbouncer is not installed)." in written
    assert "old" not in written
    assert with_figures(written, {"seed": "four", "server": "18.6", "faults": [FAULT, SKIPPED]}) == written
    assert "<!-- end of figures -->\n" in PAGE.read_text("utf-8")


def test_a_short_run_has_no_figures() -> None:
    with pytest.raises(ValueError, match="fewer than 10,000 calls: crashes"):
        with_figures("", {"seed": "four", "server": "18.6", "faults": [{**FAULT, "calls": 9_999}]})


# --- an acknowledged job survives -------------------------------------------------------------------------------------


def test_the_status_of_a_transaction_that_a_crash_ended_can_be_that_of_a_later_one_with_its_id(tmp_path: Path) -> None:
    quiet = {"wal_writer_delay": "10s", "autovacuum": "off"}  # only commits write the WAL
    server = EmbeddedServer(tmp_path / "data", settings=quiet)

    def crash(*, is_written: bool) -> str:
        """Crash while a transaction is in progress, and return its id."""
        with server, psycopg.connect(server.url()) as connection, PostgresStorage.open(server.url()) as store:
            connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('lost')")
            [(transaction_id,)] = connection.execute("SELECT pg_current_xact_id()::text").fetchall()
            assert store.get_transaction_status(transaction_id) == TransactionStatus.IN_PROGRESS
            if is_written:
                store.create_job(NewJob(job_type="t"))
            assert server._process is not None
            server._process.send_signal(signal.SIGQUIT)
            server._process.wait(60)
            connection.close()
        return str(transaction_id)

    with server:
        migrate(server.url())
    written = crash(is_written=True)
    with server, PostgresStorage.open(server.url()) as store:
        assert store.get_transaction_status(written) == TransactionStatus.ABORTED
    lost = crash(is_written=False)
    with server, PostgresStorage.open(server.url()) as store:
        assert store.get_transaction_status(written) == TransactionStatus.ABORTED
        assert store.get_transaction_status(lost) == TransactionStatus.UNKNOWN
        while store.get_transaction_status(lost) == TransactionStatus.UNKNOWN:
            store.create_job(NewJob(job_type="t"))
        assert store.get_transaction_status(lost) == TransactionStatus.COMMITTED, "of the job's transaction"
        assert "lost" not in store.list_job_types()


def test_a_job_that_is_added_again_after_its_deletion_has_its_first_tokens_again(store: Storage) -> None:
    job = NewJob(job_type="t")
    store.create_job(job)
    [old] = store.claim_jobs("default", "old")
    store.delete_job(job.id)
    with pytest.raises(LeaseLostError):
        store.complete_job(old)
    store.create_job(job)
    with pytest.raises(LeaseLostError):
        store.complete_job(old)
    [new] = store.claim_jobs("default", "new")
    assert new.lease_token == old.lease_token == 1
    store.complete_job(old)
    assert store.get_job(job.id).status == "completed"


def test_acknowledged_jobs_survive_a_crash_of_the_server(tmp_path: Path) -> None:
    added: set[UUID] = set()
    completed: set[UUID] = set()
    bulks: list[tuple[bool, list[UUID]]] = []
    ended = threading.Event()

    def add(store: PostgresStorage) -> None:
        while not ended.is_set():
            added.add(store.create_job(NewJob(job_type="t")).id)

    def add_many(store: PostgresStorage) -> None:
        while not ended.is_set():
            jobs = [NewJob(job_type="t", queue="bulk") for _ in range(50)]
            bulks.append((False, [job.id for job in jobs]))
            store.create_jobs(jobs)
            bulks[-1] = (True, bulks[-1][1])

    def work(store: PostgresStorage) -> None:
        while not ended.is_set():
            jobs = store.claim_jobs("default", "w", limit=5)
            store.complete_jobs(jobs)
            completed.update(job.id for job in jobs)

    server = EmbeddedServer(tmp_path / "data")
    with server:
        migrate(server.url())
        with ExitStack() as stack:
            store = stack.enter_context(
                PostgresStorage.open(DatabaseConfig(url=server.url(), pool_timeout=timedelta(seconds=2)))
            )
            threads = stack.enter_context(ThreadPoolExecutor(4))
            stack.callback(ended.set)
            calls = [threads.submit(call, store) for call in (add, add, add_many, work)]
            deadline = time.monotonic() + 60
            while len(completed) < 50 or len(bulks) < 5:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process = server._process
            assert process is not None
            process.send_signal(signal.SIGQUIT)  # an immediate shutdown: nothing is written any more
            for call in calls:
                with pytest.raises(StorageUnavailableError):
                    call.result(60)
    with server, psycopg.connect(server.url()) as connection:
        rows = connection.execute("SELECT id, status::text FROM goqueue.jobs").fetchall()
    statuses: dict[UUID, str] = dict(rows)
    assert added - statuses.keys() == set()
    assert {statuses[job_id] for job_id in completed} == {"completed"}
    for acknowledged, ids in bulks:
        stored = len(statuses.keys() & set(ids))
        assert stored == len(ids) if acknowledged else stored in (0, len(ids))
