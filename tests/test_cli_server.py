"""`goqueue migrate`, and `goqueue db`: a server that outlives its command and ends on request."""

import fcntl
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from goqueue.pytest_plugin import DatabaseServer, _database_url
from goqueue.testing.devserver import DevServer, Running
from goqueue.testing.embedded import EmbeddedServerError
from tests.commands import COMMAND, SECONDS, Commands

# --- migrate ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(
    commands: Commands, goqueue_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """A connection to an empty database, for which the command is configured."""
    name = f"goqueue_test_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = _database_url(goqueue_server.url, name)
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", url)
        with psycopg.connect(url, autocommit=True) as inside:
            yield inside
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def versions(connection: psycopg.Connection) -> list[int]:
    if connection.execute("SELECT to_regclass('goqueue.schema_version')").fetchone() == (None,):
        return []
    return [row[0] for row in connection.execute("SELECT version FROM goqueue.schema_version ORDER BY 1")]


def test_migrations_are_applied_undone_and_applied_with_their_output(
    commands: Commands, empty: psycopg.Connection
) -> None:
    listed = commands("migrate", "--list")
    assert (listed.code, listed.err, versions(empty)) == (0, "", [])
    assert all(line.endswith("pending") for line in listed.out.splitlines())
    every = list(range(1, len(listed.out.splitlines()) + 1))
    assert listed.out.startswith("0001  create jobs ")
    tried = commands("migrate", "--dry-run", "--json").json
    assert (tried["would_apply"], tried["applied"], versions(empty)) == (every, [], [])

    first = commands("migrate", "--target", "3")
    assert (first.code, first.err) == (0, "pending: 1, 2, 3\napplied: 1, 2, 3\n")
    assert versions(empty) == [1, 2, 3]
    assert [" pending" in line for line in first.out.splitlines()] == [version > 3 for version in every]
    rest = commands("migrate", "--json").json
    assert (rest["applied"], rest["undone"], versions(empty)) == (every[3:], [], every)
    assert [one["state"] for one in rest["migrations"]] == ["applied"] * len(every)
    nothing = commands("migrate", "--target", "2").err.splitlines()
    assert nothing[0] == f"nothing to do: the database is at version {every[-1]}"
    assert nothing[1].endswith("goqueue migrate --undo-to 2")

    refused = commands("migrate", "--undo-to", "2")
    assert (refused.code, refused.out, versions(empty)) == (2, "", every)
    assert "--yes" in refused.err
    back = commands("migrate", "--undo-to", "2", "--yes", "--json").json
    assert (back["undone"], back["applied"], versions(empty)) == (every[:1:-1], [], [1, 2])


def test_on_a_terminal_the_confirmation_of_an_undo_says_what_is_lost(goqueue: Commands, goqueue_database: str) -> None:
    with goqueue.terminal("migrate", "--undo-to", "0", columns=200) as terminal:
        asked = terminal.wait_for(r"\[y/N\]: ")
        assert re.search(r"undo version [\d, ]+1\? All jobs are dropped with it\.", asked)
        terminal.type("n\n")
        assert terminal.end()[0] == 1
    with psycopg.connect(goqueue_database) as connection:
        assert 1 in versions(connection)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "999"], "there is no version 999"),
        (["--undo-to", "999", "--yes"], "there is no version 999"),
        (["--undo-to", "-1"], "--undo-to"),
        (["--target", "1", "--undo-to", "0"], "give only one of"),
        (["--list", "--dry-run"], "give only one of"),
    ],
)
def test_contradictory_options_of_migrate_end_with_2(goqueue: Commands, arguments: list[str], message: str) -> None:
    result = goqueue("migrate", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", result.err)


HINT = "`goqueue config` shows the server's address; `goqueue db start` starts a development server\n"


def test_a_server_error_is_shown_without_traceback_or_password(
    commands: Commands, empty: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.execute("CREATE SCHEMA goqueue; CREATE TABLE goqueue.jobs ()")
    result = commands("migrate")
    assert (result.code, result.out) == (1, "")
    assert 'V0001__create_jobs.sql failed and was rolled back: relation "jobs" already exists' in result.err
    assert "goqueue config" not in result.err
    assert versions(empty) == []
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/x")
    result = commands("migrate", "--json")
    assert (result.code, result.out) == (1, "")
    assert "Connection refused" in result.err
    assert result.err.endswith(HINT)
    assert "hunter2" not in result.err
    for words in (
        ["migrate", "--list"],
        ["queries", "--times"],
        ["explain", "get_job"],
        ["stats"],
        ["queues", "resume", "x"],
    ):
        result = commands(*words)
        assert (result.code, result.out) == (1, ""), words
        assert result.err.endswith(HINT), words


# --- db ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a development server, created by the first test that uses it. Its path is short for the socket."""
    folder = tmp_path_factory.mktemp("db")
    yield folder
    DevServer(folder).stop()


@pytest.fixture
def folder(cluster: Path) -> Iterator[Path]:
    """That folder, with no server running before and after."""
    yield cluster
    DevServer(cluster).stop()


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row and row[0]


def is_over(folder: Path) -> bool:
    """Return True if the keeper and its server have ended, and the lock is free."""
    with open(folder / "lock", "a") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not DevServer(folder)._is_kept() and not (folder / "data" / "postmaster.pid").exists()
    return False


def wait_until_over(folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_over(folder):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_server_outlives_its_command_until_it_is_stopped(commands: Commands, folder: Path) -> None:
    data = ["--data", folder]
    started = commands("db", "start", *data)
    assert started.code == 0
    assert "is running" in started.err
    url = commands("db", "url", *data).out.strip()
    assert started.out == f"export GOQUEUE_DATABASE_URL='{url}'\n"
    assert ask(url, "SELECT count(*) FROM goqueue.jobs") == 0
    again = commands("db", "start", *data, "--json").json
    assert (again["url"], again["started"], again["data"]) == (url, False, str(folder))
    status = commands("db", "status", *data, "--json")
    assert (status.code, status.json["running"], status.json["url"]) == (0, True, url)
    shell = [*COMMAND, "db", "psql", "--data", str(folder), "-Atc", "CREATE TABLE kept AS SELECT 17 AS a"]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == "SELECT 1\n"
    other = [*shell[:-2], "-d", "template1", "-Atc", "SELECT current_database(), current_user"]
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "template1|postgres\n"
    with psycopg.connect(url):  # an open session doesn't prevent the stop
        assert commands("db", "stop", *data) == (0, "", "PostgreSQL has stopped\n")
    assert is_over(folder)

    assert commands("db", "stop", *data, "--json").json == {"stopped": False, "data": str(folder)}
    status = commands("db", "status", *data)
    assert (status.code, status.out) == (3, f"not running: {folder}\n")
    for command in ("url", "psql"):
        gone = commands("db", command, *data)
        assert (gone.code, gone.out) == (1, "")
        assert "`goqueue db start` starts one" in gone.err
    assert commands("db", "start", *data, "--no-migrate", "--json").json["url"] == url
    assert ask(url, "SELECT a FROM kept") == 17


def test_the_default_folder_is_below_the_state_folder(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert commands("db", "status").out == f"not running: {tmp_path / 'state/goqueue/db'}\n"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert commands("db", "stop", "--json").json["data"] == str(tmp_path / ".local/state/goqueue/db")
    assert not (tmp_path / ".local").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_keeper_ends_its_server_and_the_next_start_works(folder: Path, number: int) -> None:
    server = DevServer(folder)
    running, _ = server.start()
    os.kill(running.pid, number)
    wait_until_over(folder)
    assert server.running() is None
    assert server.stop() is False
    again, started = server.start()
    assert (again.url, started) == (running.url, True)
    assert ask(again.url, "SELECT 1") == 1


def test_files_that_a_killed_keeper_left_are_ignored(folder: Path) -> None:
    left = Running("postgresql://nowhere", "1", os.getpid())
    (folder / "server.json").write_text(json.dumps(left._asdict()))
    server = DevServer(folder)
    assert server.running() is None
    assert server.stop() is False  # this process, whose id the file has, keeps running
    (folder / "control").unlink(missing_ok=True)
    os.mkfifo(folder / "control")
    assert server.running() is None
    assert server.stop() is False


def test_concurrent_starts_share_one_server(folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: DevServer(folder).start(), range(2)))
    assert len({running for running, _ in results}) == 1
    assert sorted(started for _, started in results) == [False, True]


def test_a_start_during_a_stop_waits_for_it(folder: Path) -> None:
    server = DevServer(folder)
    server.start()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop)
        while server.running():
            time.sleep(0.001)
        running, started = server.start()
    assert (stopping.result(), started) == (True, True)
    assert ask(running.url, "SELECT 1") == 1


def test_the_server_stops_if_its_starter_ends_before_the_answer(folder: Path) -> None:
    log = folder / "data" / "server.log"
    stops = log.read_text().count("system is shut down") if log.exists() else 0
    reading, writing = os.pipe()
    os.close(reading)
    keeper = [sys.executable, "-m", "goqueue.testing.devserver", str(folder), str(writing)]
    subprocess.run(keeper, pass_fds=[writing], stderr=subprocess.DEVNULL, check=True)
    os.close(writing)
    deadline = time.monotonic() + SECONDS
    while not log.exists() or log.read_text().count("system is shut down") <= stops:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    wait_until_over(folder)
    assert DevServer(folder).running() is None


def test_a_server_that_ends_by_itself_ends_its_keeper(folder: Path) -> None:
    running, _ = DevServer(folder).start()
    pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGINT)
    wait_until_over(folder)
    assert DevServer(folder).running() is None
    assert running.pid != pid


def test_a_folder_that_cannot_be_used_is_named_in_the_error(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("dear")
    result = commands("db", "start", "--data", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert "has files but no PostgreSQL cluster" in result.err
    wait_until_over(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    result = commands("db", "start", "--data", file)
    assert (result.code, result.out) == (1, "")
    assert f"goqueue: {file} can't be used" in result.err
    assert commands("db", "status", "--data", file).code == 3


def test_a_path_too_long_for_a_socket_still_gets_a_url(folder: Path) -> None:
    deep = folder / ("d" * 100)
    deep.symlink_to(folder)  # the cluster has a long path
    server = DevServer(deep)
    running, _ = server.start()
    assert "d" * 100 not in running.url
    assert ask(running.url, "SELECT 1") == 1
    server.stop()


def test_windows_is_rejected_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goqueue.testing.devserver.os.name", "nt")
    with pytest.raises(EmbeddedServerError, match="use your own PostgreSQL server"):
        DevServer(tmp_path)


def test_every_command_has_help_with_the_exit_statuses(commands: Commands) -> None:
    for words in (["migrate"], ["db", "start"], ["db", "stop"], ["db", "status"], ["db", "url"], ["db", "psql"]):
        text = " ".join(commands(*words, "--help").out.split())
        assert "3 if a check found a problem" in text
        assert ("--json" in text) is (words[-1] != "psql")


@pytest.mark.parametrize("command", ["status", "url", "stop", "psql"])
def test_the_error_without_a_home_folder_says_what_to_set(
    command: str, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(user_id: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user_id}")

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    result = commands("db", command)
    assert result.code == 1
    assert (
        "this user has no home folder: set the server's folder with --data, or set HOME or XDG_STATE_HOME" in result.err
    )
    if command == "status":
        assert commands("db", "status", "--data", tmp_path).code == 3
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert str(tmp_path / "goqueue" / "db") in commands("db", "status").out


def test_output_of_pythons_start_is_not_the_keepers_answer(
    commands: Commands, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('{}'); print('hello', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = commands("db", "start", "--data", folder, "--no-migrate", "--json")
    assert started.code == 0
    assert started.json["started"]


@pytest.mark.parametrize("command", ["start", "stop", "status", "url", "psql"])
def test_a_folder_that_no_server_can_have_is_named(
    command: str, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = commands("db", command, "--data", f"{tmp_path}/bad\udcff")
    assert (result.code, result.out) == (1, "")
    assert "bad\\udcff' can't be used: the path is not UTF-8" in result.err
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = commands("db", command, "--data", "folder")
    assert (result.code, result.out) == (1, "")
    assert "goqueue: folder can't be used: the working directory no longer exists" in result.err
