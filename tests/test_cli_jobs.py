"""`goqueue jobs`: its effects, its output, its rejections and its exit status."""

import json
import re
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.conninfo import make_conninfo

from goqueue import Job, JobFilter, JobStatus, JobUpdate, NewJob, PostgresStorage
from goqueue.pytest_plugin import DatabaseServer
from tests.commands import SECONDS, Commands


def add(store: PostgresStorage, count: int, **fields: object) -> list[UUID]:
    new = [NewJob(**{"job_type": "x", **fields}) for _ in range(count)]  # type: ignore[arg-type]
    return [job_id for job_id, _ in store.create_jobs(new)]


def finish(store: PostgresStorage, ids: list[UUID], status: JobStatus) -> None:
    for job_id in ids:
        store.update_job(job_id, JobUpdate(status=status))


# --- list and get -----------------------------------------------------------------------------------------------------


def test_in_a_pipe_each_job_is_one_line_with_its_full_id_and_any_names(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    odd = goqueue_store.create_job(NewJob(job_type="t" * 255, queue="a\nb\x1b[31m"))
    plain = goqueue_store.create_job(NewJob(job_type="send", payload={"to": "a"}))
    result = goqueue("jobs", "list")
    lines = [re.split("  +", line) for line in result.out.splitlines()]
    stamp = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in (plain.created_at, plain.scheduled_at)]
    assert lines[0] == [str(plain.id), "pending", "0/25", *stamp, "default", "send"]
    assert [lines[1][0], *lines[1][-2:]] == [str(odd.id), "a\\nb\\x1b[31m", "t" * 255]
    assert (result.code, result.err, len(lines)) == (0, "", 2)


def test_every_filter_reaches_the_query(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    day = timedelta(days=1)
    now = datetime.now(UTC)
    one = goqueue_store.create_job(NewJob(job_type="x", queue="a", scheduled_at=now + day))
    two = goqueue_store.create_job(NewJob(job_type="y", queue="b", scheduled_at=now + 3 * day))
    goqueue_store.cancel_jobs(two.id)
    both = {str(one.id), str(two.id)}
    for arguments, expected in [
        (["--status", "pending"], {str(one.id)}),
        (["--status", "pending", "--status", "cancelled"], both),
        (["--queue", "b"], {str(two.id)}),
        (["--queue", "a", "--queue", "b"], both),
        (["--type", "x"], {str(one.id)}),
        (["--created-from", two.created_at.isoformat()], {str(two.id)}),
        (["--created-before", two.created_at.isoformat()], {str(one.id)}),
        (["--created-before", f"{now + day:%Y-%m-%dT%H:%MZ}"], both),
        (["--queue", "a", "--type", "y"], set()),
    ]:
        result = goqueue("jobs", "list", "--json", *arguments)
        assert {job["id"] for job in result.json["jobs"]} == expected, arguments
    assert goqueue("jobs", "list", "--queue", "c").err == "no job matches\n"
    goqueue_store.update_job(one.id, JobUpdate(status=JobStatus.RUNNING, locked_by="w1"))
    for arguments, expected in [
        (["--worker", "w1"], {str(one.id)}),
        (["--worker", "w2", "--worker", "w1", "--queue", "a"], {str(one.id)}),
        (["--worker", "w2"], set()),
    ]:
        result = goqueue("jobs", "list", "--json", *arguments)
        assert {job["id"] for job in result.json["jobs"]} == expected, arguments


def test_the_printed_command_shows_the_next_page(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    ids = add(goqueue_store, 5)
    arguments = ["jobs", "list", "--type", "x", "--limit", "2"]
    seen: list[str] = []
    for more in (True, True, False):
        result = goqueue(*arguments)
        seen += [line.split()[0] for line in result.out.splitlines()]
        assert result.err.startswith("more: goqueue jobs list --type x --limit 2 --cursor ") is more
        arguments = result.err.split()[2:]
    assert seen == [str(job_id) for job_id in sorted(ids, reverse=True)]


def test_all_pages_are_one_json_document(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, 5, payload={"text": "ä\n", "big": 10**40})
    page = goqueue("jobs", "list", "--json", "--limit", "2").json
    assert len(page["jobs"]) == 2
    rest = goqueue("jobs", "list", "--json", "--all", "--limit", "2", "--cursor", page["next_cursor"]).json
    assert (len(rest["jobs"]), rest["next_cursor"]) == (3, None)
    every = goqueue("jobs", "list", "--json", "--all").json["jobs"]
    assert every == page["jobs"] + rest["jobs"]
    assert every[0].keys() == set(Job.__struct_fields__)
    assert every[0]["payload"] == {"text": "ä\n", "big": 10**40}
    nothing = goqueue("jobs", "list", "--json", "--queue", "none").json
    assert nothing == {"jobs": [], "unreadable": {}, "next_cursor": None}


def test_a_payload_that_cannot_be_read_is_named_beside_the_others(
    goqueue: Commands, goqueue_store: PostgresStorage, goqueue_connection: Any
) -> None:
    bad, good = add(goqueue_store, 2)
    goqueue_connection.execute("UPDATE goqueue.jobs SET payload = '1e5000' WHERE id = %s", [bad])
    result = goqueue("jobs", "list")
    assert [line.split()[0] for line in result.out.splitlines()] == [str(good)]
    assert f"job {bad}: its payload can't be read" in result.err
    listed = goqueue("jobs", "list", "--json").json
    assert ([job["id"] for job in listed["jobs"]], list(listed["unreadable"])) == ([str(good)], [str(bad)])
    assert goqueue("jobs", "cancel", "--status", "pending", "--yes").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--status", "done"], "'done' is not one of"),
        (["list", "--created-from", "2026-01-31T08:00"], "has no time zone"),
        (["list", "--created-from", "yesterday"], "is not an ISO 8601 time"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--cursor", "abc"], "the cursor was not returned by list_jobs"),
        (["list", "--queue", ""], "queue is empty"),
        (["get"], "give either an ID or --key"),
        (["get", "nope"], "valid UUID"),
        (["create"], "give the job's TYPE"),
        (["create", ""], "job_type is empty"),
        (["create", "x", "--payload", "{"], "it is not JSON"),
        (["create", "x", "--payload", ""], "it is not JSON"),
        (["create", "x", "--payload", "@none"], "@none: No such file"),
        (["create", "x", "--payload", "@"], "--payload: @: Is a directory"),
        (["create", "x", "--delay", "5"], "is not a duration with its unit"),
        (["create", "x", "--delay", "1h", "--at", "2026-01-31T08:00Z"], "give one of them"),
        (["create", "x", "--priority", "99999"], "priority must be a whole number"),
        (["create", "--from", "none"], "No such file"),
        (["create", "x", "--from", "/dev/null"], "with --from, each line describes its job"),
        (["update", str(uuid4())], "no change was given"),
        (["update", str(uuid4()), "--key", "a", "--clear", "key"], "--key and --clear key are both given"),
        (["cancel"], "give either ids or a filter"),
        (["cancel", str(uuid4()), "--status", "pending"], "give either ids or a filter"),
        (["cancel", "--status", "dead"], "only pending and running jobs can be cancelled"),
        (["cancel", "--queue", "x"], "add --yes"),
        (["reschedule", str(uuid4())], "give either --at or --delay"),
        (["delete", str(uuid4())], "add --yes"),
        (["prune"], "--older-than"),
        (["prune", "--older-than", "1w3"], "is not a duration"),
        (["prune", "--older-than", "1h", "--status", "pending"], "only finished jobs can be pruned"),
    ],
)
def test_contradictory_arguments_end_with_2_and_a_reason(goqueue: Commands, arguments: list[str], message: str) -> None:
    result = goqueue("jobs", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", result.err)


def test_on_a_terminal_a_job_is_one_line_of_80_columns(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    [job_id] = add(goqueue_store, 1, queue="q" * 100, job_type="t" * 100)
    with goqueue.terminal("jobs", "list") as terminal:
        code, seen = terminal.end()
    lines = seen.splitlines()
    assert (code, len(lines)) == (0, 2)
    assert lines[0].split() == ["ID", "Status", "Queue", "Type", "Age", "Tries"]
    assert lines[1].startswith(f"{job_id}  pending  qqq")
    assert len(lines[1].rstrip()) <= 80


@pytest.mark.parametrize("arguments", [("jobs", "list"), ("--help",)])
def test_a_terminal_of_0_columns_gets_the_output_too(
    goqueue: Commands, goqueue_store: PostgresStorage, arguments: tuple[str, ...]
) -> None:
    [job_id] = add(goqueue_store, 1)
    with goqueue.terminal(*arguments, columns=0) as terminal:
        code, seen = terminal.end()
    assert code == 0
    assert (str(job_id) if arguments[0] == "jobs" else "Exit status:") in seen


@pytest.mark.parametrize("columns", [140, 120, 80, 50, 30])
def test_the_attempts_the_due_time_and_the_error_are_shown_at_any_width(
    goqueue: Commands, goqueue_store: PostgresStorage, columns: int
) -> None:
    goqueue_store.create_job(NewJob(job_type="send_email", queue="mail", max_attempts=3))
    [job] = goqueue_store.claim_jobs("mail", "w")
    goqueue_store.fail_job(job, f"TimeoutError: no answer {'x' * 200}\nTraceback", retry_in=timedelta(hours=5))
    due = goqueue_store.create_job(NewJob(job_type="send_email", queue="mail"))
    with goqueue.terminal("jobs", "list", columns=columns) as terminal:
        code, seen = terminal.end()
    lines = [line.rstrip() for line in seen.splitlines()]
    assert code == 0
    assert max(map(len, lines)) <= columns
    text = " ".join(seen.split())
    for part in ("1/3", "0/25", "in 4h", "TimeoutError: no answer xx", "mail", "send_email"):
        assert part in text or columns == 30, seen
    assert seen.count("Timeout") == 1  # its first line, cut at the end of the line
    assert "Traceback" not in seen
    if columns == 140:
        assert len(lines) == 3
    if columns == 80:
        [_, ready, failed, below] = lines
        assert ready.split()[0] == str(due.id)
        assert (failed.split()[0], failed.split()[-1]) == (str(job.id), "1/3")
        assert re.fullmatch(r"  due in 4h  error TimeoutError: no answer x+…", below)


def test_in_a_pipe_the_first_line_of_the_error_is_the_last_field(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    [job_id] = add(goqueue_store, 1)
    goqueue_store.update_job(job_id, JobUpdate(last_error="ValueError: a\tb\nTraceback"))
    assert goqueue("jobs", "list").out.endswith("  default  x  ValueError: a\\tb\n")


def test_a_closed_pipe_is_no_error(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, 2000)
    for arguments in (["--limit", "5"], ["--all"]):
        with goqueue.process("jobs", "list", *arguments) as started:
            assert started.stdout is not None
            assert started.stderr is not None
            started.stdout.close()
            errors = [line for line in started.stderr if not line.startswith("more: ")]
            started.wait()
        assert errors == [], arguments


def test_get_shows_a_job_with_its_payload_and_failures(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_job(NewJob(job_type="x", payload={"to": ["ä"]}, idempotency_key="k 1", unique_key="u 1"))
    [job] = goqueue_store.claim_jobs("default", "worker-1")
    goqueue_store.fail_job(job, "first\n\x1b[31msecond")
    result = goqueue("jobs", "get", job.id)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert f"id                {job.id}\n" in result.out
    assert "idempotency_key   k 1\nunique_key        u 1\n" in result.out
    assert 'payload\n  {\n    "to": [\n      "ä"\n' in result.out
    assert "by worker-1\n  first\n  \\x1b[31msecond\n" in result.out
    whole = goqueue("jobs", "get", "--key", "k 1", "--json").json
    assert whole.keys() == {*Job.__struct_fields__, "failures"}
    assert whole["failures"][0]["error"] == "first\n\x1b[31msecond"
    missing = uuid4()
    assert goqueue("jobs", "get", missing) == (1, "", f"goqueue: no job has the id {missing}\n")


def test_types_are_listed_one_per_line(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    assert goqueue("jobs", "types") == (0, "", "there are no jobs\n")
    for kind in ("send", "a\nb", "send"):
        add(goqueue_store, 1, job_type=kind)
    assert goqueue("jobs", "types") == (0, "a\\nb\nsend\n", "")
    assert goqueue("jobs", "types", "--json").json == {"job_types": ["a\nb", "send"]}


# --- create -----------------------------------------------------------------------------------------------------------


def test_create_prints_the_id_of_a_job_with_all_given_values(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    result = goqueue(
        "jobs", "create", "send", "--queue", "mail", "--payload", '{"a": [1.5]}', "--priority", "-3",
        "--max-attempts", "2", "--at", "2030-01-31T08:00+01:00", "--key", "k",
    )  # fmt: skip
    job = goqueue_store.get_job(result.out.strip())
    assert (result.code, result.err) == (0, "")
    assert (job.job_type, job.queue, job.payload, job.priority, job.max_attempts, job.idempotency_key) == (
        "send", "mail", {"a": [1.5]}, -3, 2, "k",
    )  # fmt: skip
    assert job.scheduled_at == datetime(2030, 1, 31, 7, tzinfo=UTC)
    again = goqueue("jobs", "create", "send", "--key", "k")
    assert (again.code, again.out) == (0, result.out)
    assert "nothing was added" in again.err
    whole = goqueue("jobs", "create", "send", "--key", "k", "--json").json
    assert (whole["created"], whole["job"]["id"]) == (False, str(job.id))
    added = goqueue("jobs", "create", "send", "--unique-key", "u")
    again = goqueue("jobs", "create", "send", "--unique-key", "u")
    assert (again.code, again.out) == (0, added.out)
    assert "nothing was added: this job already has the unique key 'u'" in again.err
    later = goqueue("jobs", "create", "x", "--delay", "1h30m", "--json").json
    assert later["created"] is True
    times = [datetime.fromisoformat(later["job"][name]) for name in ("created_at", "scheduled_at")]
    assert times[1] - times[0] == timedelta(minutes=90)


def test_a_payload_comes_from_a_file_or_standard_input(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path
) -> None:
    file = tmp_path / "payload.json"
    for text, value in (('{"n": 1}', {"n": 1}), ("null", None)):
        file.write_text(text)
        for result in (
            goqueue("jobs", "create", "x", "--payload", f"@{file}"),
            goqueue("jobs", "create", "x", "--payload", "-", stdin=file),
        ):
            assert goqueue_store.get_job(result.out.strip()).payload == value


def test_lines_are_added_as_jobs(goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    lines = [{"job_type": "x", "payload": {"n": n}, "queue": "q", "delay": "PT5M"} for n in range(2500)]
    keyed = [{"job_type": "y", "idempotency_key": "k"}] * 2
    file.write_text("\n\n".join(map(json.dumps, [*lines, *keyed])))
    assert goqueue("jobs", "create", "--from", file) == (0, "2,501 jobs added, 1 had a key that another job has\n", "")
    assert goqueue_store.count_jobs(JobFilter(queue="q", job_type="x")) == 2500
    file.write_text('{"job_type": "y", "idempotency_key": "k"}\n{"job_type": "z", "unique_key": "u"}')
    assert goqueue("jobs", "create", "--from", "-", "--json", stdin=file).json == {"created": 1, "existing": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"job_type": ""}', "job_type is empty"),
        ('{"jobtype": "x"}', "unknown field `jobtype`"),
        ("{", "truncated"),
        ('"\xff', "malformed"),
        ('{"job_type": "x", "delay": "5m"}', 'write "PT5M" (ISO 8601) for five minutes'),
        ('{"job_type": "x", "delay": 300}', 'write "PT5M" (ISO 8601) for five minutes'),
        ('{"job_type": "x", "scheduled_at": "tomorrow"}', 'write "2026-01-31T08:00:00Z" (ISO 8601, with a zone)'),
        ('{"job_type": "x", "payload": "\\u0000"}', "NUL"),
        (f'{{"job_type": "x", "payload": "{"a" * 2**20}"}}', "MAX_PAYLOAD_BYTES"),
    ],
)
def test_a_bad_line_is_named_with_the_lines_added_before_it(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bad: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("GOQUEUE_DATABASE_BATCH_SIZE", "10")
    file = tmp_path / "jobs.jsonl"
    good = '{"job_type": "x"}\n'
    file.write_bytes(f"\n{good * 25}{bad}\n{good * 25}".encode("latin-1"))
    result = goqueue("jobs", "create", "--from", file)
    assert (result.code, result.out) == (2, "")
    assert "lines 1 to 21 were added, and none after; `tail -n +22` prints the rest\n" in result.err
    assert "line 27: " in result.err
    assert message in result.err
    assert goqueue_store.count_jobs() == 20
    monkeypatch.setenv("GOQUEUE_DATABASE_BATCH_SIZE", "1000")
    assert goqueue("jobs", "create", "--from", file).err.startswith("no line was added\n")
    file.write_text(bad)
    assert "no line was added" in goqueue("jobs", "create", "--from", file).err


def test_an_error_of_a_read_only_database_reports_that_nothing_was_added(
    goqueue: Commands, goqueue_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_conninfo(goqueue_database, options="-c default_transaction_read_only=on")
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", url)
    (tmp_path / "jobs.jsonl").write_text('{"job_type": "x"}\n')
    result = goqueue("jobs", "create", "--from", "jobs.jsonl")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("no line was added\n")
    assert "target_session_attrs=read-write" in result.err


def test_ctrl_c_reports_which_lines_were_added(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    with goqueue.process("jobs", "create", "--from", "-", stdin=subprocess.PIPE) as started:
        assert started.stdin is not None
        started.stdin.write('{"job_type": "x"}\n' * 1500)
        started.stdin.flush()
        deadline = time.monotonic() + SECONDS
        while goqueue_store.count_jobs() < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate()
    assert (started.returncode, out) == (130, "")
    assert re.fullmatch(
        r"(no line was|lines 1 to 1,000 were) added; it is not known whether .* to 1,[0-9]{3} were added: .*\n", err
    )


# --- change -----------------------------------------------------------------------------------------------------------


def test_update_changes_the_given_fields_and_clears_those_of_the_option_clear(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    [job_id] = add(goqueue_store, 1, idempotency_key="k", payload={"a": 1})
    result = goqueue(
        "jobs", "update", job_id, "--json", "--status", "running", "--locked-by", "me", "--attempts", "1",
        "--error", "e", "--queue", "q", "--type", "t", "--payload", "[]", "--priority", "7", "--max-attempts", "9",
        "--at", "2030-01-31T08:00Z",
    )  # fmt: skip
    expected = {
        "status": "running", "locked_by": "me", "attempts": 1, "last_error": "e", "queue": "q", "job_type": "t",
        "payload": [], "priority": 7, "max_attempts": 9, "scheduled_at": "2030-01-31T08:00:00Z", "idempotency_key": "k",
    }  # fmt: skip
    assert {name: result.json[name] for name in expected} == expected
    assert goqueue("jobs", "update", job_id, "--unique-key", "u", "--json").json["unique_key"] == "u"
    assert goqueue("jobs", "update", job_id, "--clear", "unique-key").code == 0
    assert goqueue("jobs", "update", job_id, "--clear", "error", "--clear", "key").code == 0
    job = goqueue_store.get_job(job_id)
    assert job.unique_key is None
    assert (job.last_error, job.idempotency_key, job.queue) == (None, None, "q")
    assert goqueue("jobs", "update", job_id, "--payload", "null").code == 0
    assert goqueue_store.get_job(job_id).payload is None
    finish(goqueue_store, [job_id], JobStatus.COMPLETED)
    refused = goqueue("jobs", "update", job_id, "--status", "pending")
    assert refused.code == 1
    assert "is completed and can't become pending" in refused.err


def test_ids_are_changed_and_those_that_could_not_be_are_named(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    one, two, done = add(goqueue_store, 3)
    finish(goqueue_store, [done], JobStatus.COMPLETED)
    missing = uuid4()
    result = goqueue("jobs", "cancel", one, done, missing)
    assert (result.code, result.out) == (1, "1 job cancelled\n")
    assert sorted(result.err.splitlines()) == sorted([f"{done} is completed", f"{missing} is not there"])
    assert goqueue("jobs", "cancel", one, two, "--json").json == {"cancelled": 1, "unchanged": {}}  # one is cancelled
    result = goqueue("jobs", "retry", one, done, "--json")
    assert (result.code, result.json) == (1, {"retried": 1, "unchanged": {str(done): "completed"}})
    assert goqueue("jobs", "reschedule", one, "--at", "2030-01-31T08:00Z").out == "1 job rescheduled\n"
    assert goqueue_store.get_job(one).scheduled_at == datetime(2030, 1, 31, 8, tzinfo=UTC)
    result = goqueue("jobs", "delete", one, two, two, missing, "--yes", "--json")
    assert (result.code, result.json) == (1, {"deleted": 2, "unchanged": {str(missing): "not there"}})
    assert goqueue_store.get_jobs([one, two]) == []


def test_a_change_of_no_job_prints_the_reason(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    one, two, done = add(goqueue_store, 3)
    finish(goqueue_store, [done], JobStatus.COMPLETED)
    missing = uuid4()
    for arguments, code, out, why in [
        (["retry", one], 0, "0 jobs retried\n", "1 job was pending already\n"),
        (["retry", one, two], 0, "0 jobs retried\n", "2 jobs were pending already\n"),
        (["retry", done], 1, "0 jobs retried\n", f"{done} is completed\n"),
        (["retry", missing], 1, "0 jobs retried\n", f"{missing} is not there\n"),
        (["retry", one, done], 1, "0 jobs retried\n", f"{done} is completed\n1 job was pending already\n"),
        (["reschedule", done, "--delay", "1h"], 1, "0 jobs rescheduled\n", f"{done} is completed\n"),
        (["cancel", one], 0, "1 job cancelled\n", ""),
        (["cancel", one, two], 0, "1 job cancelled\n", "1 job was cancelled already\n"),
        (["cancel", one, one], 0, "0 jobs cancelled\n", "1 job was cancelled already\n"),
        (["cancel", "--queue", "none", "--yes"], 0, "0 jobs cancelled\n", "no pending or running job matches\n"),
        (["retry", "--status", "dead", "-y"], 0, "0 jobs retried\n", "no dead job matches\n"),
        (["retry", "--queue", "none", "-y"], 0, "0 jobs retried\n", "no dead or cancelled job matches\n"),
        (["delete", "--queue", "none", "-y"], 0, "0 jobs deleted\n", "no job matches\n"),
        (["delete", "--status", "dead", "-y"], 0, "0 jobs deleted\n", "no dead job matches\n"),
        (["change", done, one, "--priority", "0"], 0, "1 job changed\n", "1 job was up to date already\n"),
        (
            ["reschedule", "--queue", "none", "--delay", "1h", "-y"],
            0,
            "0 jobs rescheduled\n",
            "no pending job matches\n",
        ),
    ]:
        assert goqueue("jobs", *arguments) == (code, out, why), arguments
    result = goqueue("jobs", "cancel", one, "--json")
    assert (result.code, result.json, result.err) == (
        0,
        {"cancelled": 0, "unchanged": {}},
        "1 job was cancelled already\n",
    )


def test_a_change_by_ids_names_the_jobs_that_it_skips(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    tired, fresh, done = add(goqueue_store, 3, max_attempts=9)
    goqueue_store.update_job(tired, JobUpdate(attempts=3))
    finish(goqueue_store, [done], JobStatus.COMPLETED)
    result = goqueue("jobs", "change", tired, fresh, done, "--max-attempts", "3")
    assert (result.code, result.out) == (1, "1 job changed\n")
    assert sorted(result.err.splitlines()) == sorted([f"{tired} is pending", f"{done} is completed"])
    assert [job.max_attempts for job in goqueue_store.get_jobs([tired, fresh, done])] == [9, 3, 9]
    result = goqueue("jobs", "change", fresh, "--new-queue", "q", "--priority", "0", "--json")
    assert (result.code, result.json) == (0, {"changed": 1, "unchanged": {}})
    assert goqueue_store.get_job(fresh).queue == "q"


@pytest.mark.parametrize("command", ["cancel", "delete"])
def test_a_bulk_stopped_by_ctrl_c_reports_the_number_of_changed_jobs(
    goqueue: Commands, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    add(goqueue_store, 1100)
    method = getattr(PostgresStorage, f"{command}_jobs")

    def stopped(store: PostgresStorage, jobs: Any, *, progress: Any) -> int:
        def interrupt(count: int) -> None:
            progress(count)
            raise KeyboardInterrupt

        return int(method(store, jobs, progress=interrupt))

    monkeypatch.setattr(PostgresStorage, f"{command}_jobs", stopped)
    result = goqueue("jobs", command, "--queue", "default", "--yes")
    done = "cancelled" if command == "cancel" else "deleted"
    assert (result.code, result.out, result.err) == (130, f"1,000 jobs {done}, then stopped\n", "")
    assert goqueue_store.count_jobs(JobFilter(status="pending")) == 100


def test_an_error_in_a_later_batch_says_how_many_jobs_were_deleted_before_it(
    goqueue: Commands, goqueue_store: PostgresStorage, goqueue_connection: Any
) -> None:
    ids = add(goqueue_store, 1100)
    goqueue_connection.execute("CREATE TABLE orders (job_id uuid REFERENCES goqueue.jobs)")
    goqueue_connection.execute("INSERT INTO orders VALUES (%s)", [min(ids)])  # the oldest is in the last batch
    result = goqueue("jobs", "delete", "--type", "x", "--yes")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("1,000 jobs deleted before this error:\ngoqueue: another table refers to the job")
    assert goqueue_store.count_jobs() == 100


def test_on_a_terminal_a_bulk_shows_its_progress(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, 2100)
    with goqueue.terminal("jobs", "delete", "--type", "x") as terminal:
        assert "Delete 2,100 jobs permanently?" in terminal.wait_for(r"\[y/N\]: ")
        terminal.type("y\n")
        code, seen = terminal.end()
    assert code == 0
    assert "2,100 jobs deleted" in seen
    assert goqueue_store.count_jobs() == 0


def test_a_filter_changes_the_jobs_it_matches_and_no_others(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    add(goqueue_store, 1200, queue="a")
    add(goqueue_store, 3, queue="b")
    [done] = add(goqueue_store, 1, queue="a")
    finish(goqueue_store, [done], JobStatus.COMPLETED)
    assert goqueue("jobs", "cancel", "--queue", "a", "--yes").out == "1,200 jobs cancelled\n"
    assert goqueue_store.count_jobs(JobFilter(status="cancelled")) == 1200
    assert goqueue_store.count_jobs(JobFilter(status="pending")) == 3
    assert goqueue_store.get_job(done).status == "completed"
    assert goqueue("jobs", "retry", "--queue", "a", "--status", "cancelled", "-y", "--json").json["retried"] == 1200
    assert goqueue("jobs", "reschedule", "--queue", "b", "--delay", "1h", "-y").out == "3 jobs rescheduled\n"
    assert all(job.scheduled_at > job.created_at for job in goqueue_store.list_jobs(JobFilter(queue="b")).jobs)
    assert goqueue("jobs", "cancel", "--queue", "c", "--yes").out == "0 jobs cancelled\n"
    changed = goqueue("jobs", "change", "--queue", "a", "--new-queue", "c", "--priority", "-2", "--yes")
    assert changed == (0, "1,200 jobs changed\n", "")
    assert {(job.queue, job.priority) for job in goqueue_store.list_jobs(JobFilter(status="pending")).jobs} == {
        ("b", 0),
        ("c", -2),
    }
    assert goqueue("jobs", "delete", "--queue", "c", "--queue", "a", "-y", "--json").json == {
        "deleted": 1201, "unchanged": {},
    }  # fmt: skip
    assert goqueue_store.count_jobs() == 3


def test_on_a_terminal_the_confirmation_shows_the_number_of_jobs(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    finish(goqueue_store, add(goqueue_store, 3)[:1], JobStatus.COMPLETED)
    with goqueue.terminal("jobs", "cancel", "--type", "x") as terminal:
        assert "Cancel 2 jobs?" in terminal.wait_for(r"\[y/N\]: ")
        assert goqueue_store.count_jobs(JobFilter(status="pending")) == 2
        terminal.type("y\n")
        code, seen = terminal.end()
    assert (code, goqueue_store.count_jobs(JobFilter(status="pending"))) == (0, 0)
    assert "2 jobs cancelled" in seen


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 1), ("n\n", 1)])
def test_the_exit_status_of_a_confirmation_tells_ctrl_c_from_no(
    goqueue: Commands, goqueue_store: PostgresStorage, key: str, status: int
) -> None:
    add(goqueue_store, 1)
    with goqueue.terminal("jobs", "delete", "--type", "x") as terminal:
        terminal.wait_for(r"\[y/N\]: ")
        if key == "\x03":
            terminal.interrupt()
        else:
            terminal.type(key)
        assert terminal.end()[0] == status
    assert goqueue_store.count_jobs() == 1


def test_a_confirmation_writes_nothing_to_standard_output(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path
) -> None:
    add(goqueue_store, 1)
    with (
        (tmp_path / "out").open("wb") as out,
        goqueue.terminal("jobs", "delete", "--type", "x", stdout=out) as terminal,
    ):
        terminal.wait_for(r"\[y/N\]: ")
        terminal.type("Y\n")
        assert terminal.end()[0] == 0
    assert (tmp_path / "out").read_text() == "1 job deleted\n"


# --- prune ------------------------------------------------------------------------------------------------------------


def test_prune_deletes_jobs_that_finished_long_ago_in_batches(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    ids = add(goqueue_store, 7)
    finish(goqueue_store, ids[:5], JobStatus.COMPLETED)
    finish(goqueue_store, ids[5:6], JobStatus.CANCELLED)
    assert goqueue("jobs", "prune", "--older-than", "30d").out == "0 jobs deleted\n"
    result = goqueue("jobs", "prune", "--older-than", "0s", "--status", "completed", "--batch", "2", "--json")
    assert result.json == {"deleted": 5, "finished": True}
    assert goqueue("jobs", "prune", "--older-than", "0s").out == "1 job deleted\n"
    assert [job.id for job in goqueue_store.list_jobs().jobs] == ids[6:]


def test_each_queue_has_its_own_retention(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    for queue in ("a", "b", "c"):
        finish(goqueue_store, add(goqueue_store, 3, queue=queue), JobStatus.COMPLETED)
    assert goqueue("jobs", "prune", "--older-than", "0s", "--queue", "a", "--type", "y").out == "0 jobs deleted\n"
    assert goqueue("jobs", "prune", "--older-than", "1h", "--queue", "a").out == "0 jobs deleted\n"
    result = goqueue(
        "jobs", "prune", "--older-than", "0s", "--queue", "a", "--queue", "b", "--type", "x", "--batch", "2"
    )
    assert result.out == "6 jobs deleted\n"
    assert {job.queue for job in goqueue_store.list_jobs().jobs} == {"c"}


def test_the_help_of_prune_explains_why_it_asks_no_confirmation(goqueue: Commands) -> None:
    text = " ".join(goqueue("jobs", "prune", "--help").out.split())
    assert "meant for cron" in text
    assert "--yes" not in text


def test_prune_stopped_by_ctrl_c_reports_the_number_of_deleted_jobs(
    goqueue: Commands, goqueue_store: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(goqueue_store, add(goqueue_store, 6), JobStatus.COMPLETED)
    prune, calls = PostgresStorage.prune_jobs, iter([None, None, KeyboardInterrupt()])

    def stopped(store: PostgresStorage, *arguments: object, **options: object) -> int:
        if error := next(calls):
            raise error
        return prune(store, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PostgresStorage, "prune_jobs", stopped)
    result = goqueue("jobs", "prune", "--older-than", "0s", "--batch", "2")
    assert (result.code, result.out) == (130, "4 jobs deleted, then stopped\n")
    assert goqueue_store.count_jobs() == 2


# --- common to all ----------------------------------------------------------------------------------------------------


def test_an_unreachable_server_is_one_line_without_the_password(
    goqueue: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/x")
    for arguments in (["list"], ["list", "--json"], ["create", "x"], ["prune", "--older-than", "1h"]):
        result = goqueue("jobs", *arguments)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("goqueue: the database can't be reached")
        assert result.err.endswith("`goqueue db start` starts a development server\n")
        assert "hunter2" not in result.err


def test_contradictory_arguments_fail_before_connecting(goqueue: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", "postgresql://127.0.0.1:1/x")
    for arguments in (
        ["cancel"],
        ["retry", "--status", "completed"],
        ["reschedule", "--delay", "1h"],
        ["change", "--priority", "1"],
        ["change", "--queue", "a"],
        ["change", "--status", "completed", "--priority", "1"],
        ["delete"],
        ["delete", str(uuid4()), "--queue", "a"],
    ):
        assert goqueue("jobs", *arguments).code == 2


def test_the_error_of_a_database_without_tables_names_the_command_to_run(
    goqueue: Commands, goqueue_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOQUEUE_DATABASE_URL")
    Path("settings.yaml").write_text(json.dumps({"database": {"url": goqueue_server.url}}))
    result = goqueue("jobs", "list", "--file", "settings.yaml")
    assert result.code == 1
    assert "`goqueue migrate`" in result.err


def test_every_command_has_help_with_the_exit_statuses(goqueue: Commands) -> None:
    names = ["list", "get", "types", "create", "update", "cancel", "retry", "reschedule", "change", "delete", "prune"]
    overview = goqueue("jobs", "--help").out
    for name in names:
        assert re.search(rf"\b{name}\b", overview)
        text = " ".join(goqueue("jobs", name, "--help").out.split())
        assert "--json" in text
        assert "3 if a check found a problem" in text


def test_times_and_durations_at_their_limits_are_shown_as_they_are_written(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    assert goqueue("jobs", "create", "x", "--at", "0900-01-01T00:00Z").code == 0
    assert "0900-01-01T00:00:00Z" in goqueue("jobs", "list").out
    for words in (
        ["jobs", "create", "x", "--delay", "365001d"],
        ["jobs", "prune", "--older-than", "999999999d"],
    ):
        result = goqueue(*words)
        assert result.code == 2
        assert "is too long: at most 365000d" in " ".join(result.err.replace("│", " ").split())
