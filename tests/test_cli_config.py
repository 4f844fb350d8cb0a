"""`goqueue config`: its output, its streams and its exit status."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
from rich.console import Console

from goqueue import ConfigError, DatabaseConfig, cli
from goqueue.config import SECTIONS, load_settings, settings_of

SECRET = "hunter2"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("GOQUEUE_")}
READ_BY = {
    "server": "a server built on goqueue",
    "database": "goqueue",
    "worker": "goqueue",
    "logging": "goqueue",
}
KEYS = [setting.key for section in SECTIONS for setting in settings_of(section)]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GOQUEUE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["goqueue", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_in_a_pipe_every_setting_has_one_line_with_its_value_and_source(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("goqueue.yaml").write_text("server:\n  port: 81\n")
    monkeypatch.setenv("GOQUEUE_LOGGING_FORMAT", "json")
    result = run("config")
    assert result.code == 0
    assert result.err == ""
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert list(rows) == KEYS
    assert rows["server.port"].split()[:3] == ["server.port", "81", "goqueue.yaml:2"]
    assert rows["logging.format"].split() == ["logging.format", "json", "environment", "GOQUEUE_LOGGING_FORMAT"]
    assert rows["worker.lease"].split()[:3] == ["worker.lease", "5m", "default"]
    assert rows["database.url"].split() == ["database.url", "(empty)", "default"]


def test_settings_that_goqueue_itself_does_not_read_are_marked(run: Run) -> None:
    marks = {line.split()[0]: line.partition("  read by ")[2] for line in run("config").out.splitlines()}
    assert marks == {key: READ_BY[key.partition(".")[0]].removeprefix("goqueue") for key in KEYS}


def test_a_relative_path_is_shown_with_what_it_is_relative_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "goqueue.yaml").write_text("database:\n  sql_dir: sql\n")
    monkeypatch.setenv("GOQUEUE_CONFIG", "etc/goqueue.yaml")
    assert f"{tmp_path}/etc/sql  etc/goqueue.yaml:2" in run("config").out
    monkeypatch.setenv("GOQUEUE_DATABASE_SQL_DIR", "sql")
    assert f"{tmp_path}/sql  environment" in run("config").out
    text = " ".join(run("config", "--help").out.split())
    assert "Relative paths start at the working directory; in the file, at its folder." in text


def test_json_is_an_array_of_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_WORKER_QUEUES", "a,b")
    monkeypatch.setenv("GOQUEUE_DATABASE_PREPARE_THRESHOLD", "none")
    result = run("config", "--json")
    rows = {f"{row['section']}.{row['name']}": row for row in json.loads(result.out)}
    assert list(rows) == KEYS
    assert rows["worker.queues"] == {
        "section": "worker",
        "name": "queues",
        "value": ["a", "b"],
        "source": "environment GOQUEUE_WORKER_QUEUES",
        "description": "Queues to take jobs from.",
        "read_by": "goqueue",
    }
    assert {row["section"]: row["read_by"] for row in rows.values()} == READ_BY
    assert rows["database.prepare_threshold"]["value"] is None
    assert rows["server.port"]["value"] == 8080


def test_the_option_file_overrides_the_file_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.yaml").write_text("server:\n  port: 1\n")
    Path("b.yaml").write_text("server:\n  port: 2\n")
    monkeypatch.setenv("GOQUEUE_CONFIG", "a.yaml")
    assert "a.yaml:2" in run("config").out
    assert "b.yaml:2" in run("config", "--file", "b.yaml").out


def test_the_password_is_not_shown_in_any_form(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", f"postgresql://app:{SECRET}@db:5433/jobs")
    for arguments in ((), ("--json",)):
        result = run("config", *arguments)
        assert "host=db port=5433 dbname=jobs user=app password=***" in result.out
        assert SECRET not in result.out + result.err


def test_an_invalid_configuration_ends_with_2_and_every_problem_on_standard_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("goqueue.yaml").write_text("server:\n  hots: 1\n  port: 0\n")
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", f"postgresql://u:x@{SECRET}@h")
    for arguments in ((), ("--json",)):
        result = run("config", *arguments)
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith("goqueue: 3 problems in the configuration:\n")
        assert len(result.err.splitlines()) == 4
        assert "did you mean server.host?" in result.err
        assert SECRET not in result.err


def test_an_unknown_option_ends_with_2(run: Run) -> None:
    assert run("config", "--jsno").code == 2


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_table_fits_without_cut_values(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    queues = ["a" * 60, "b [bold]c[/bold]", "d\x1b[2K\ne"]
    Path("goqueue.yaml").write_text(f"worker:\n  queues: {json.dumps(queues)}\n")
    for section in SECTIONS:
        for setting in settings_of(section):
            if setting.name.endswith("timeout"):
                monkeypatch.setenv(setting.variable, "12h34m56s")
    table = cli.config._table(load_settings())
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    out = capture.get()
    assert all(len(line) <= width for line in out.splitlines())
    assert "\x1b" not in out
    assert "…" not in out
    for key in KEYS:
        assert re.search(rf"^  {key.partition('.')[2]} ", out, re.MULTILINE)
    joined = "".join(out.split())
    assert "[bold]c[/bold]" in joined
    assert "\\x1b[2K\\ne" in joined
    for section, reader in READ_BY.items():
        note = "" if reader == "goqueue" else f"read by {reader}"
        assert f"{section}{''.join(note.split())}" in joined


def test_help_names_the_command_and_the_exit_statuses(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert "config" in result.out
    for text in (result.out, run("config", "--help").out):
        assert "Exit status: 0 on success; 1 after an error" in " ".join(text.split())
        assert "2 if the configuration or the command line is invalid" in " ".join(text.split())


def test_version_prints_the_version_of_the_package(run: Run) -> None:
    assert re.fullmatch(r"goqueue \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_an_invalid_configuration_ends_the_command_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from goqueue.cli import main; main()", "config"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRON | {"GOQUEUE_SERVER_PORT": "none"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "server.port: got 'none' (environment GOQUEUE_SERVER_PORT)" in done.stderr


CONFIDED = f"postgresql://u:{SECRET}@h/d"


@pytest.mark.parametrize(
    "words",
    [
        "GOQUEUE_CONFIG=URL config", "GOQUEUE_DATABASE_SQL_DIR=URL config", "GOQUEUE_DATABASE_SQL_DIR=URL jobs types",
        "XDG_STATE_HOME=URL db status", "config --file URL", "migrate URL", "URL", "db status --data URL",
        "db start --data URL", "sql diff URL", "sql export URL", "sql print URL", "queries --sql-dir URL",
        "check --sql-dir URL", "jobs create t --payload @URL", "jobs get URL", "queries URL", "--URL",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [CONFIDED, f"host=h password='{SECRET} x' dbname=d"])
def test_a_connection_string_in_place_of_a_path_or_name_shows_no_password(
    words: str, form: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    *arguments, first = reversed(words.split())
    variable, is_set, _ = first.partition("=")
    if is_set:
        monkeypatch.setenv(variable, form)
    else:
        arguments.append(first)
    result = run(*(word.replace("URL", form) for word in reversed(arguments)))
    assert result.code in {1, 2, 3}
    assert SECRET not in "".join(char for char in result.out + result.err if char.isalnum())
    assert os.listdir() == []


def test_a_setting_that_names_a_folder_rejects_a_connection_string() -> None:
    for path in (CONFIDED, CONFIDED.replace("//", "/"), f"x/password={SECRET}"):
        with pytest.raises(ConfigError, match="looks like a connection string with a password; use a link") as caught:
            DatabaseConfig(sql_dir=path)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("command", ["diff", "export"])
def test_a_folder_with_a_file_that_cannot_be_read_is_named(command: str, run: Run) -> None:
    Path("bytes").mkdir()
    Path("bytes", "jobs.sql").write_bytes(b"\xff")
    Path("folder", "jobs.sql").mkdir(parents=True)
    for folder, reason in (("bytes", "it is not UTF-8"), ("folder", "Is a directory")):
        result = run("sql", command, folder)
        assert (result.code, result.out) == (2, "")
        assert f"{folder}/jobs.sql can't be read: {reason}" in result.err


@pytest.mark.parametrize("words", ["sql export", "sql diff", "queries --sql-dir", "explain get_job --sql-dir"])
def test_a_folder_whose_name_is_too_long_is_named(words: str, run: Run) -> None:
    result = run(*words.split(), "a" * 300)
    assert (result.code, result.out) == (2, "")
    assert "aaa" in result.err
    assert "File name too long" in result.err
    assert "Errno" not in result.err
