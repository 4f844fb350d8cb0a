"""The commands' output: any text, encoding and width, and a standard output that can't be written."""

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.progress import Progress

from goqueue import NewJob, PostgresStorage
from goqueue.cli import common
from goqueue.cli.common import Column, aware_time, console, duration, error_console, progress, table, utf8, working
from goqueue.counts import JobCount, counted
from tests.commands import COMMAND, SECONDS, Commands

#: Could be taken for an emoji, markup, a terminal command, or a change of text direction.
ODD = ":id: [red]x[/red] \x1b]0;owned\x07\x1b[2J \u202egnp.exe :smile:"
SHOWN = r":id: [red]x[/red] \x1b]0;owned\x07\x1b[2J \u202egnp.exe :smile:"


def ran(
    *arguments: object, stdout: Any = subprocess.PIPE, closed: str = "", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """Run the command as a process; ``closed`` are streams that the shell closes (`>&-`)."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"] if closed else []
    return subprocess.run(
        [*shell, *COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, check=False,
        timeout=2 * SECONDS,
    )  # fmt: skip


# --- verbatim ---------------------------------------------------------------------------------------------------------


def test_names_given_by_users_are_printed_without_effect_on_the_terminal(
    goqueue: Commands, goqueue_store: PostgresStorage
) -> None:
    job = goqueue_store.create_job(
        NewJob(job_type=ODD, queue=ODD, idempotency_key=ODD, payload={ODD: ODD, "wide": "幅", "arabic": "سلام"})
    )
    [held] = goqueue_store.claim_jobs(ODD, ODD)
    goqueue_store.fail_job(held, f"{ODD}\r\nsecond line")
    for arguments in (
        ["jobs", "list"],
        ["jobs", "get", job.id],
        ["stats"],
        ["jobs", "update", job.id, "--priority", 3],
    ):
        with goqueue.terminal(*arguments, columns=400) as terminal:
            raw = terminal.process
            code, seen = terminal.end()
        assert (raw.returncode, code) == (0, 0)
        assert SHOWN in seen, arguments
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202e]|\x1b\]", seen), arguments
        piped = goqueue(*arguments)
        assert SHOWN in piped.out, arguments
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", piped.out), arguments
    taken = goqueue("jobs", "create", "x", "--key", ODD)
    assert ":id: [red]x[/red]" in taken.err
    assert "\x1b" not in taken.err + goqueue("jobs", "get", "--key", f"no {ODD}").err
    assert json.loads(goqueue("jobs", "get", job.id, "--json").out)["queue"] == ODD


def test_messages_status_lines_and_progress_are_printed_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    common.note(f"the cast ({ODD}) :id:uuid\nand more")
    console().print(ODD, soft_wrap=True)
    # rich drops the bell. A terminal command that ends with it is then no longer one.
    shown = SHOWN.replace(r"\x07", "")
    assert capsys.readouterr() == (f"{shown}\n", f"the cast ({shown}) :id:uuid\nand more\n")
    screen = error_console()
    with working(":id: [red]"):
        pass
    with progress() as advance:
        advance(1, ":id: [red]")
    assert (screen._emoji, screen._markup) == (False, False)
    with Progress(*Progress.get_default_columns(), console=screen, disable=True):
        pass


@pytest.mark.parametrize(
    "command",
    [
        "",
        "jobs",
        "jobs create",
        "jobs list",
        "workers",
        "stats",
        "queries",
        "explain",
        "check",
        "migrate",
        "sql export",
    ],
)
def test_help_prints_the_docstring_of_each_command(
    command: str, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = commands(*command.split(), "--help").out
    assert not re.search("[\U0001f000-\U0001ffff\u2600-\u27bf]", said)
    assert "Usage: goqueue" in said


# --- encodings --------------------------------------------------------------------------------------------------------

ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda given: "+".join(given.values()))
def test_no_encoding_of_a_pipe_ends_a_command(
    goqueue: Commands, goqueue_store: PostgresStorage, environment: dict[str, str]
) -> None:
    name = "ä→幅😀"
    job = goqueue_store.create_job(NewJob(job_type=name, queue=name, payload={"text": name}))
    for_people = ran("jobs", "get", job.id, **environment)
    assert (for_people.returncode, for_people.stderr) == (0, b"")
    assert rb"\u5e45\U0001f600" in for_people.stdout
    for_programs = ran("jobs", "get", job.id, "--json", **environment)
    assert json.loads(for_programs.stdout.decode("utf-8"))["payload"] == {"text": name}
    if environment == ENCODINGS[0]:
        assert f'queue="{name}"' in ran("stats", "--prometheus", **environment).stdout.decode("utf-8")
        assert ran("queries", **environment).returncode == 0
        assert ran("check", **environment).returncode in (0, 3)
        assert b"Traceback" not in ran("jobs", "list", "--queue", name, "--cursor", name, **environment).stderr


# --- an unwritable output ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
@pytest.mark.parametrize("as_json", [False, True])
def test_the_id_of_an_added_job_is_not_lost_with_standard_output(
    goqueue: Commands, goqueue_store: PostgresStorage, as_json: bool
) -> None:
    create = ["jobs", "create", "x", *(["--json"] if as_json else [])]
    with open("/dev/full", "wb") as full:
        results = [
            (ran(*create, stdout=full), "No space left on device"),
            (ran(*create, closed=">&-"), "it is closed"),
        ]
    ids = [str(job.id) for job in reversed(goqueue_store.list_jobs().jobs)]
    for (result, why), job_id in zip(results, ids, strict=True):
        assert result.returncode == 1
        assert result.stderr.decode().splitlines() == [
            f"the job was added: {job_id}",
            f"goqueue: standard output can't be written: {why}",
        ]
    # Nobody reads the message; the exit status is the same.
    for closed in (">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"):
        assert ran(*create, closed=closed).returncode == 1
    assert goqueue_store.count_jobs() == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
@pytest.mark.parametrize(
    "arguments", ["jobs list", "jobs list --json", "stats", "config", "queries claim_jobs", "--version", "--help"]
)
def test_no_command_ends_in_a_traceback_if_standard_output_is_full(goqueue: Commands, arguments: str) -> None:
    result = ran(*arguments.split(), closed=">/dev/full")
    said = result.stderr.decode()
    if arguments not in ("jobs list", "stats"):  # these have nothing to print
        assert result.returncode == 1
        assert said == "goqueue: standard output can't be written: No space left on device\n"
    assert "Traceback" not in said


def test_the_result_is_on_standard_error_if_standard_output_is_closed(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path
) -> None:
    ids = [job_id for job_id, _ in goqueue_store.create_jobs(NewJob(job_type="x") for _ in range(3))]
    lines = tmp_path / "jobs.jsonl"
    lines.write_text('{"job_type": "x"}\n' * 2)
    for arguments, done in (
        (["jobs", "update", ids[0], "--priority", 3], f"the job was changed: {ids[0]}"),
        (["jobs", "cancel", ids[0]], "1 job cancelled"),
        (["jobs", "delete", ids[0], "--yes"], "1 job deleted"),
        (["jobs", "create", "--from", lines], "2 jobs added"),
    ):
        result = ran(*arguments, closed=">&-")
        assert result.returncode == 1
        assert result.stderr.decode().splitlines()[0] == done


# --- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_windows_line_ends_are_accepted(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path, before: bytes
) -> None:
    payload, lines = tmp_path / "payload.json", tmp_path / "jobs.jsonl"
    payload.write_bytes(before + b'{\r\n"a": "\xc3\xa4"}\r\n')
    lines.write_bytes(before + b'{"job_type": "first"}\r\n\r\n{"job_type": "second"}\r\n')
    for result in (
        goqueue("jobs", "create", "x", "--payload", f"@{payload}"),
        goqueue("jobs", "create", "x", "--payload", "-", stdin=payload),
        goqueue("jobs", "create", "x", "--payload", before.decode() + '{"a": "ä"}'),
    ):
        assert result.code == 0, result.err
        assert goqueue_store.get_job(result.out.strip()).payload == {"a": "ä"}
    assert goqueue("jobs", "create", "--from", lines).out == "2 jobs added\n"
    assert goqueue("jobs", "create", "--from", "-", stdin=lines).out == "2 jobs added\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(goqueue: Commands, tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "file"
    file.write_bytes('{"job_type": "x"}\n'.encode(encoding))
    for arguments in (["x", "--payload", f"@{file}"], ["--from", file]):
        result = goqueue("jobs", "create", *arguments)
        assert result.code == 2
        assert "save it as UTF-8" in re.sub(r"[\s│]+", " ", result.err)
    file.write_bytes(b'{"job_type": "\xe4"}\n')
    assert goqueue("jobs", "create", "--from", file).code == 2
    assert utf8(b"{}") == b"{}"


# --- advice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["2026-01-01", "20260101", "2026-W01", "2026-01-31T08", "2026-01-31T08:00", "2026-01-31 08:00:01.5", "soon"],
)
def test_advised_times_are_accepted(given: str) -> None:
    with pytest.raises(Exception) as refused:  # noqa: PT011 - typer's own
        aware_time(given)
    advised = re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+\d\d:\d\d)", str(refused.value.args[0]))
    assert advised
    for text in advised:
        assert aware_time(text).utcoffset() is not None


def test_advised_durations_are_accepted() -> None:
    with pytest.raises(Exception) as refused:  # noqa: PT011 - typer's own
        duration("5")
    advised = re.findall(r"\b\d+[a-z][\da-z]*", str(refused.value.args[0]).partition("such as")[2])
    assert len(advised) == 5
    assert all(duration(text) for text in advised)


def test_advised_forms_of_lines_are_accepted(goqueue: Commands, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    for field, wrong in (("delay", "5m"), ("scheduled_at", "2026-01-31")):
        file.write_text(json.dumps({"job_type": "x", field: wrong}))
        [advised] = re.findall(r'write "([^"]+)"', goqueue("jobs", "create", "--from", file).err)
        file.write_text(json.dumps({"job_type": "x", field: advised}))
        assert goqueue("jobs", "create", "--from", file).out == "1 job added\n"


def test_the_advised_way_to_resume_after_a_bad_line_works(
    goqueue: Commands, goqueue_store: PostgresStorage, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.jsonl"
    good = ['{"job_type": "x"}'] * 1001
    file.write_text("\n".join([*good, "{", *good[:2]]))
    said = goqueue("jobs", "create", "--from", file).err
    [command] = re.findall(r"`(tail -n \+\d+)` prints the rest", said)
    rest = subprocess.run([*command.split(), str(file)], capture_output=True, check=True).stdout
    file.write_bytes(rest.replace(b"\n{\n", b"\n"))
    assert goqueue("jobs", "create", "--from", file).code == 0
    assert goqueue_store.count_jobs() == 1003


def test_the_next_command_after_an_export_can_be_pasted(commands: Commands, tmp_path: Path) -> None:
    said = commands("sql", "export", "my files", "jobs.sql").err
    assert said.startswith("1 file written. Next: export GOQUEUE_DATABASE_SQL_DIR=")
    [line] = re.findall("Next: (export .*); goqueue check", said)
    shown = subprocess.run(
        ["sh", "-c", f'{line}; printf %s "$GOQUEUE_DATABASE_SQL_DIR"'], capture_output=True, check=True
    )
    assert Path(shown.stdout.decode()) == (tmp_path / "my files").resolve()


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (1, "job", "1 job"),
        (0, "job", "0 jobs"),
        (1200, "statement", "1,200 statements"),
        (2, "query", "2 queries"),
        (1, "query", "1 query"),
        (JobCount(12000, exact=False), "job", "about 12,000 jobs"),
    ],
)
def test_a_number_agrees_with_its_noun(count: int, noun: str, expected: str) -> None:
    assert counted(count, noun) == expected


# --- widths -----------------------------------------------------------------------------------------------------------


@contextmanager
def screen_of(width: int) -> Iterator[tuple[common._Screen, io.StringIO]]:
    screen, text = common._Screen(), io.StringIO()
    screen.width, screen.file = width, text
    yield screen, text


@pytest.mark.parametrize("width", [20, 30, 50, 80, 200])
@pytest.mark.parametrize("name", ["mail", "a" * 90 + "-first", "幅" * 60, "two words " * 9])
def test_the_name_of_a_row_is_readable_at_any_width(width: int, name: str) -> None:
    columns = [Column("Queue", "left", 16), *map(Column, ["Pending", "Running", "Completed", "Oldest"])]
    columns.append(Column("Error", "left", 8))
    with screen_of(width) as (screen, text):
        screen.print(table(columns, [[name, "1,234", "5", "~1,000,000", "3h 12m", "what went wrong" * 9]], width))
    lines = text.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "".join(name.split()) in "".join(line[:90] for line in lines).replace(" ", "") or all(
        char in text.getvalue() for char in name.replace(" ", "")
    )
    for number in ("1,234", "5", "~1,000,000", "3h 12m"):
        assert number in text.getvalue()


@pytest.mark.parametrize("columns", [30, 50, 80, 120])
def test_lists_of_jobs_and_queues_name_them_at_any_width(
    goqueue: Commands, goqueue_store: PostgresStorage, columns: int
) -> None:
    queue = "orders-of-the-northern-shop-with-a-long-name"
    job = goqueue_store.create_job(NewJob(job_type="x", queue=queue))
    for arguments, name in ((["jobs", "list"], str(job.id)), (["stats"], queue)):
        with goqueue.terminal(*arguments, columns=columns) as terminal:
            code, seen = terminal.end()
        assert code == 0
        lines = [line.rstrip() for line in seen.splitlines()]
        assert max(map(len, lines)) <= columns
        whole = "".join(line.split("  ")[0] for line in lines)
        assert name in whole, seen
    assert re.search(r"pending +1|  1  ", seen)
