"""Remove one guard at a time in a copy of the checkout, and expect a test to fail: ``make mutants`` prints a table.

A guard makes a statement safe: a lock, a fence, SKIP LOCKED, a status check, a transaction, an order, a constraint. A
surviving mutant means a guard without a test. This is not part of CI: each mutant is a separate test run. Name some to
run only those: ``make mutants ARGS="claim_jobs update_job"``. ``ARGS=--promises`` runs those of docs/guarantees.md,
each with only the tests that the page names beside it.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.guarantees import promises

ROOT = Path(__file__).resolve().parent.parent
# Long enough for the slowest of the tests named below; hanging mutants are also noticed.
SECONDS = 300

_LEASES = "tests/test_leases.py"
_GUARDS = "tests/test_guards.py"
_KEPT = "tests/test_prune_kept.py"
_CONTRACT = "tests/test_contract.py"
_REPEATING = "tests/test_repeating.py"
_UNIQUE = "tests/test_unique_keys.py"
_FENCE = f"{_LEASES} {_GUARDS} -k 'LostLeases or Complete or Fail or Release or Heartbeat or holder or Updating'"


class Mutant(NamedTuple):
    """A removed guard: in ``place`` (a query, or a file by its path), every ``guard`` becomes ``without``. ``tests``
    (pytest's arguments) must then fail."""

    place: str
    what: str
    guard: str
    without: str
    tests: str


def _of_each(queries: str, *mutants: tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(query, *mutant) for query in queries.split() for mutant in mutants]


MUTANTS = [
    *_of_each(
        "create_job create_missing_jobs",
        ("duplicates", "ON CONFLICT DO NOTHING", "", f"{_CONTRACT} {_REPEATING} -k Create"),
    ),
    *_of_each(
        "replace_pending_job",
        ("status", "WHERE j.status = 'pending'", "", f"{_LEASES} -k ReplacePending"),
        ("unique key", "other.unique_key = :unique_key::text", "FALSE", f"{_UNIQUE} -k replace"),
        ("own key", "AND other.idempotency_key IS DISTINCT FROM :idempotency_key::text", "", f"{_UNIQUE} -k replace"),
    ),
    *_of_each(
        "find_duplicate_job",
        ("finished", "AND same_unique.completed_at IS NULL", "", f"{_UNIQUE} -k finished"),
    ),
    *_of_each(
        "find_duplicate_jobs",
        (
            "finished",
            "CASE WHEN j.completed_at IS NULL THEN j.unique_key END",
            "j.unique_key",
            f"{_UNIQUE} -k finished",
        ),
    ),
    *_of_each("get_jobs", ("order", "ORDER BY wanted.place", "ORDER BY wanted.place DESC", f"{_CONTRACT} -k Get")),
    *_of_each("list_jobs", ("order", "ORDER BY j.created_at DESC, j.id DESC", "ORDER BY j.id", f"{_CONTRACT} -k List")),
    *_of_each(
        "update_job",
        ("row lock", "FOR NO KEY UPDATE", "", f"{_GUARDS} -k update"),
        ("status", "OR c.status_before IN ('pending', 'running')", "OR TRUE", f"{_CONTRACT} -k Update"),
        ("key", "other.id <> c.id", "FALSE", f"{_CONTRACT} -k Update"),
        ("unique key", "other.unique_key = c.unique_key_after", "FALSE", f"{_UNIQUE} -k update"),
        ("own key", "IS NULL AND other.id <> c.id", "IS NULL", f"{_UNIQUE} -k update"),
        ("finished", "c.status_after IN ('completed', 'dead', 'cancelled')\n        OR", "", f"{_UNIQUE} -k update"),
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k clock"),
    ),
    *_of_each(
        "cancel_jobs",
        ("status", "l.status IN ('pending', 'running')", "TRUE", f"{_LEASES} -k Operators"),
    ),
    *_of_each(
        "retry_jobs",
        ("status", "l.status IN ('dead', 'cancelled')", "TRUE", f"{_LEASES} -k Operators"),
        ("unique key", "other.unique_key = r.unique_key", "FALSE", f"{_UNIQUE} -k retr"),
        ("own row", "AND other.id <> r.id", "", f"{_UNIQUE} -k retr"),
        ("one of several", "r.place = 1", "TRUE", f"{_UNIQUE} -k retr"),
    ),
    *_of_each("reschedule_jobs", ("status", "l.status = 'pending'", "TRUE", f"{_LEASES} -k Operators")),
    *_of_each(
        "change_jobs",
        ("status", "l.status IN ('running', 'dead', 'cancelled')", "TRUE", f"{_LEASES} -k Operators"),
        ("attempts", "AND l.attempts < l.max_attempts_after", "", f"{_LEASES} -k Operators"),
        ("attempts made", "AND l.attempts <= l.max_attempts_after", "", f"{_LEASES} -k Operators"),
    ),
    *_of_each(
        "delete_jobs",
        ("row lock", "    FOR UPDATE\n", "", f"{_GUARDS} -k operator"),
        ("lock order", "ORDER BY j.id\n", "ORDER BY j.id DESC\n", "tests/test_postgres.py -k locked_in_the_order"),
    ),
    *_of_each(
        "cancel_jobs retry_jobs reschedule_jobs change_jobs delete_jobs",
        ("filter: status", "(:statuses::text[] IS NULL OR", "(TRUE OR", f"{_GUARDS} -k Filters"),
        ("filter: queue", "(:queues::text[] IS NULL OR", "(TRUE OR", f"{_GUARDS} -k Filters"),
        ("filter: job type", "(:job_types::text[] IS NULL OR", "(TRUE OR", f"{_GUARDS} -k Filters"),
        ("filter: worker", "(:worker_ids::text[] IS NULL OR", "(TRUE OR", f"{_GUARDS} -k Filters"),
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "changes: filter",
        "still = still_matching(jobs)",
        "still = still_matching(None)",
        f"{_GUARDS} -k Filters",
    ),
    *_of_each(
        "list_jobs",
        ("worker", "j.locked_by = ANY(:worker_ids::text[])", "TRUE", f"{_LEASES} -k Workers"),
        ("finished", "WHERE :worker_ids::text[] IS NULL", "", f"{_LEASES} -k Workers"),
        ("pending", "AND :worker_ids::text[] IS NULL", "", f"{_LEASES} -k Workers"),
    ),
    *_of_each(
        "count_jobs",
        (
            "worker",
            "j.locked_by = ANY(:worker_ids::text[])",
            "TRUE",
            f"{_LEASES} {_CONTRACT} -k 'Workers or a_workers_jobs'",
        ),
        ("finished", "WHERE :worker_ids::text[] IS NULL", "", f"{_LEASES} -k Workers"),
        ("pending", "AND :worker_ids::text[] IS NULL", "", f"{_LEASES} -k Workers"),
    ),
    *_of_each(
        "cancel_jobs retry_jobs reschedule_jobs change_jobs",
        ("row lock", "    FOR NO KEY UPDATE\n", "", f"{_GUARDS} -k operator"),
        ("lock order", "ORDER BY j.id\n", "ORDER BY j.id DESC\n", "tests/test_postgres.py -k locked_in_the_order"),
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k Clock"),
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "delete_job: transaction",
        'self._transaction(connection, "delete_job", [wanted])',
        '__import__("contextlib").nullcontext({})',
        f"{_GUARDS} -k Delete",
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "delete_jobs: transaction",
        'self._transaction(connection, "delete_jobs", ids)',
        '__import__("contextlib").nullcontext({})',
        f"{_GUARDS} -k Delete",
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "create_jobs: transaction",
        'self._transaction(connection, "create_jobs", ids)',
        '__import__("contextlib").nullcontext({})',
        "tests/test_postgres.py -k many_at_once",
    ),
    *_of_each(
        "prune_jobs",
        ("SKIP LOCKED", "FOR UPDATE SKIP LOCKED", "FOR UPDATE", f"{_GUARDS} -k prune"),
        (
            "SKIP LOCKED by queue",
            "FOR UPDATE SKIP LOCKED\n        ) AS of_queue",
            "FOR UPDATE\n        ) AS of_queue",
            f"{_GUARDS} -k prune",
        ),
        ("queue", "AND j.queue = ANY(ARRAY[l.queue])", "AND l.queue <> ''", f"{_LEASES} -k Prune"),
        ("row lock", "FOR UPDATE SKIP LOCKED", "", f"{_GUARDS} -k prune"),
        (
            "age",
            "j.completed_at < p.finished_before",
            "TRUE",
            f"{_LEASES} -k Prune",
        ),
        # In a transaction, where the clocks differ.
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k Clock"),
        ("guard", "count(*) > 0 AS is_present", "FALSE AS is_present", _KEPT),
        ("no needless savepoint", "count(*) > 0 AS is_present", "TRUE AS is_present", f"{_KEPT} -k multixact"),
        ("guard of failures", ", 'goqueue.job_failures'::regclass", "", f"{_KEPT} -k failures"),
        ("failures", "f.job_id = ANY(ARRAY(SELECT d.id FROM deleted_job AS d))", "FALSE", f"{_LEASES} -k Prune"),
    ),
    *_of_each(
        "claim_jobs",
        ("SKIP LOCKED", "FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE", f"{_GUARDS} -k claim"),
        ("row lock", "FOR NO KEY UPDATE SKIP LOCKED", "", f"{_GUARDS} -k claim"),
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k claim"),
        ("due", "AND j.scheduled_at <= statement_timestamp()", "", f"{_GUARDS} -k claim"),
        ("status", "j.status = 'pending'", "TRUE", f"{_LEASES} -k Claim"),
        ("order", "ORDER BY c.priority, c.scheduled_at, c.id", "ORDER BY c.id DESC", f"{_LEASES} {_GUARDS} -k Claim"),
        ("new token", "mod(j.lease_token, 4611686018427387903) + 1", "j.lease_token", _FENCE),
        ("lanes' order", "ORDER BY l.priority, l.scheduled_at, l.id", "", f"{_LEASES} -k Claim"),
        ("pause", "p.paused_until > statement_timestamp()", "FALSE", "tests/test_pauses.py -k claim"),
        ("end of pause", "p.paused_until > statement_timestamp()", "TRUE", "tests/test_pauses.py -k claim"),
        ("limit", "\n    LIMIT :job_limit::bigint", "", f"{_LEASES} {_GUARDS} -k claim"),
    ),
    *_of_each(
        "heartbeat_jobs complete_jobs fail_jobs release_jobs",
        ("token", "j.lease_token = l.token", "TRUE", _FENCE),
        ("row lock", "    FOR NO KEY UPDATE OF j\n", "", f"{_GUARDS} -k holder"),
        ("lock order", "ORDER BY j.id\n", "ORDER BY j.id DESC\n", "tests/test_postgres.py -k locked_in_the_order"),
    ),
    *_of_each(
        "heartbeat_jobs complete_jobs fail_jobs release_jobs",
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k Clock"),
    ),
    *_of_each("heartbeat_jobs fail_jobs release_jobs", ("status", "k.status = 'running'", "TRUE", _FENCE)),
    *_of_each(
        "complete_jobs",
        ("status", "k.status IN ('running', 'completed')", "TRUE", _FENCE),
        (
            "repetition",
            "k.status IN ('running', 'completed')",
            "k.status = 'running'",
            f"{_LEASES} {_REPEATING} -k Complete",
        ),
    ),
    *_of_each(
        "release_jobs",
        (
            "no delay",
            "nullif(extract(EPOCH FROM :delay::interval), 0::numeric)",
            "extract(EPOCH FROM :delay::interval)",
            f"{_LEASES} -k Release",
        ),
    ),
    *_of_each("fail_jobs", ("final", "NOT :is_final::boolean AND ", "", f"{_LEASES} -k unreadable_payload")),
    *_of_each(
        "rescue_jobs",
        ("expired", "AND j.lease_expires_at <= statement_timestamp()", "", f"{_LEASES} -k Rescue"),
        ("SKIP LOCKED", "FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE", f"{_GUARDS} -k rescue"),
        ("row lock", "FOR NO KEY UPDATE SKIP LOCKED", "", f"{_GUARDS} -k rescue"),
        ("clock", "statement_timestamp()", "now()", f"{_GUARDS} -k Clock"),
    ),
    # What the schema and the connections contribute to the promises of docs/guarantees.md.
    Mutant(
        "migrations/V0001__create_jobs.sql",
        "logged table",
        "CREATE TABLE goqueue.jobs",
        "CREATE UNLOGGED TABLE goqueue.jobs",
        "tests/test_guarantees.py -k crash",
    ),
    Mutant(
        "migrations/V0001__create_jobs.sql",
        "finish time",
        "(status IN ('completed', 'dead', 'cancelled')) = (completed_at IS NOT NULL)",
        "TRUE",
        "tests/test_migrations.py -k contradictory_manual_changes",
    ),
    Mutant(
        "migrations/V0001__create_jobs.sql",
        "holder",
        "(status = 'running') = (locked_by IS NOT NULL)",
        "TRUE",
        f"{_CONTRACT} -k holder",
    ),
    Mutant(
        "migrations/V0002__index_jobs.sql",
        "unique key",
        "CREATE UNIQUE INDEX jobs_idempotency_key_idx",
        "CREATE INDEX jobs_idempotency_key_idx",
        "tests/test_postgres.py -k one_key_from_many_threads",
    ),
    Mutant(
        "migrations/V0025__add_unique_key.sql",
        "unique key",
        "CREATE UNIQUE INDEX IF NOT EXISTS jobs_unique_key_idx",
        "CREATE INDEX IF NOT EXISTS jobs_unique_key_idx",
        f"{_UNIQUE} -k many_threads",
    ),
    Mutant(
        "migrations/V0010__notify_changed_jobs.sql",
        "new token",
        "        UPDATE goqueue.jobs SET lease_token = OLD.lease_token % 4611686018427387903 + 1 WHERE id = NEW.id;",
        "        NULL;",
        "tests/test_hands.py -k 'RunningByHand'",
    ),
    Mutant(
        "goqueue/postgres/pool_async.py",
        "autocommit",
        '"autocommit": True',
        '"autocommit": False',
        "tests/test_guarantees.py -k crash",
    ),
    Mutant(
        "goqueue/postgres/pool_async.py",
        "lost connections",
        "    if readable(connection.fileno()):",
        "    if False:",
        "tests/test_postgres.py -k idle_ones_are_replaced",
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "caller's transaction",
        "                yield given\n                return\n",
        "                yield given\n                await given.commit()\n                return\n",
        "tests/test_postgres.py -k CallersTransaction",
    ),
    Mutant(
        "goqueue/postgres/store_async.py",
        "named errors",
        "            raise naming(translate(reason, reconnecting=True), self._variable) from reason",
        "            raise",
        "tests/test_postgres.py -k ErrorsByName",
    ),
    Mutant(
        "goqueue/postgres/cursor_async.py",
        "lost replies",
        "            if commits and is_unanswered(exc):",
        "            if False:",
        "tests/test_outcomes.py -k a_lost_reply",
    ),
    Mutant(
        "goqueue/postgres/cursor_async.py",
        "unconfirmed commits",
        "        if watch.unconfirmed != before:\n            raise",
        "        if False:\n            raise",
        "tests/test_outcomes.py -k every_kind_of_change",
    ),
    Mutant(
        "goqueue/postgres/connection_async.py",
        "deadline",
        "timeout=limit)",
        "timeout=limit and limit * 5)",
        "tests/test_deadlines.py -k silent_tunnel",
    ),
]


def located(root: Path, mutant: Mutant) -> tuple[Path, str, str, str]:
    """Return a guard's file, the text before its query, the query, and the text after it. Raises ValueError if the
    guard is missing: the list is outdated."""
    if "/" in mutant.place:
        file = root / mutant.place
        before, text, after = "", file.read_text("utf-8"), ""
    else:
        name = f"-- name: {mutant.place}("
        [file] = [path for path in (root / "sql").glob("*.sql") if name in path.read_text("utf-8")]
        before, _, rest = file.read_text("utf-8").partition(name)
        query, end, after = rest.partition("\n-- name: ")
        before, text, after = before + name, query, end + after
    if mutant.guard not in text:
        raise ValueError(f"{mutant.place} has no {mutant.guard!r}: correct tests/mutants.py")
    return file, before, text, after


def mutate(root: Path, mutant: Mutant) -> None:
    """Remove the guard in a copy of the checkout."""
    file, before, text, after = located(root, mutant)
    file.write_text(before + text.replace(mutant.guard, mutant.without) + after, "utf-8")
    subprocess.run([sys.executable, "-m", "tools.unasync"], cwd=root, check=True)


def run(mutant: Mutant) -> tuple[str, float]:
    """Return a mutant's result (killed, survived, or the output's end), and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "goqueue"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        mutate(copy, mutant)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
        start = time.monotonic()
        try:
            done = subprocess.run(command, check=False, cwd=copy, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "killed (it hangs)", time.monotonic() - start
    verdict = {0: "SURVIVED", 1: "killed"}.get(done.returncode, f"error: {done.stdout[-500:]}{done.stderr[-500:]}")
    return verdict, time.monotonic() - start


def of_promises() -> list[Mutant]:
    """Return the mutants that docs/guarantees.md names, each to be killed by a test that it names beside it."""
    known = {(mutant.place, mutant.what): mutant for mutant in MUTANTS}
    return [
        known[key]._replace(tests=" ".join(sorted({file for _, file in promise.tests})) + f" -k '{names}'")
        for promise in promises()
        for names in [" or ".join(name for name, _ in promise.tests)]
        for key in promise.mutants
    ]


def main(wanted: list[str]) -> int:
    """Run the mutants of the named queries and files (default: all). Print each result; return 1 if one survived."""
    chosen = of_promises() if wanted == ["--promises"] else [m for m in MUTANTS if not wanted or m.place in wanted]
    verdicts = []
    for mutant in chosen:
        verdict, seconds = run(mutant)
        verdicts.append(verdict)
        print(f"{mutant.place:<24} {mutant.what:<24} {verdict} ({seconds:.0f} s)", flush=True)
    killed = sum(verdict.startswith("killed") for verdict in verdicts)
    print(f"{len(verdicts)} mutants, {killed} killed")
    return int(killed < len(verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
