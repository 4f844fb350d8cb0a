"""The plugin as others use it: pytest runs inside pytest, usually on the outer run's server."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from goqueue import PostgresStorage
from goqueue.migrate import migrations_hash
from goqueue.pytest_plugin import DatabaseServer, _database_url, _shown
from goqueue.testing.embedded import EmbeddedServer
from tests.workers import until

pytestmark = pytest.mark.timeout(120)
REPO = Path(__file__).resolve().parent.parent
TEMPLATE = f"goqueue_template_{migrations_hash()[:16]}"

PASSES = """
    def test_one(goqueue_connection):
        goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('x')")
        assert goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (1,)

    def test_two(goqueue_connection):
        goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('x')")
        assert goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (1,)
"""
FAILS = """
    def test_fails(goqueue_database, goqueue_connection):
        assert goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (1,)

    def test_passes(goqueue_database):
        pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, goqueue_server: DatabaseServer) -> pytest.Pytester:
    """A pytester whose runs use the plugin and the outer run's server."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p goqueue.pytest_plugin -p no:cacheprovider")
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", goqueue_server.url)
    for variable in ("GOQUEUE_TEST_SERVER", "GOQUEUE_TEST_POSTGRES_IMAGE", "GOQUEUE_TEST_POSTGRES_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return pytester


@pytest.fixture
def other_server(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseServer]:
    """A server without a template, instead of the outer run's."""
    with EmbeddedServer(durable=False) as server:
        monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", server.url())
        yield DatabaseServer(_database_url(server.url()), "url")


def databases(server: DatabaseServer, like: str) -> list[str]:
    with psycopg.connect(server.url) as connection:
        query = "SELECT datname FROM pg_database WHERE datname LIKE %s ORDER BY 1"
        return [row[0] for row in connection.execute(query, [like])]


def drop(server: DatabaseServer, name: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_test_has_a_migrated_empty_database(goqueue_connection: psycopg.Connection, goqueue_database: str) -> None:
    assert goqueue_connection.autocommit
    assert goqueue_connection.info.dbname in goqueue_database
    assert goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (0,)
    encoding = goqueue_connection.execute("SHOW server_encoding").fetchone()
    assert encoding == ("UTF8",)


def test_the_store_is_open_on_the_test_s_database(goqueue_store: PostgresStorage, goqueue_database: str) -> None:
    goqueue_store.ping()
    with psycopg.connect(goqueue_database) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert connection.execute(query).fetchone() != (0,)


@given(st.integers(0, 9))
def test_one_database_serves_all_examples(goqueue_connection: psycopg.Connection, number: int) -> None:
    assert goqueue_connection.execute("SELECT %s::int", [number]).fetchone() == (number,)


def test_each_test_has_a_database_of_its_own_and_leaves_none(
    run: pytest.Pytester, other_server: DatabaseServer
) -> None:
    run.makepyfile(PASSES)
    result = run.runpytest_inprocess()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["goqueue: PostgreSQL of GOQUEUE_TEST_DATABASE_URL"])
    result.stdout.no_fnmatch_line("*goqueue databases*")
    assert databases(other_server, "goqueue_test_%") == []


def test_a_test_that_ends_all_sessions_leaves_no_database_and_the_next_test_has_one(
    run: pytest.Pytester, other_server: DatabaseServer
) -> None:
    ends = """
    def test_ends(goqueue_connection):
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        assert (True,) in goqueue_connection.execute(f"SELECT pg_terminate_backend(pid, 60000) {others}").fetchall()
"""
    run.makepyfile(ends + PASSES)
    run.runpytest_inprocess().assert_outcomes(passed=3)
    assert databases(other_server, "goqueue_test_%") == []


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_failed_test_s_database_is_kept_and_shown(
    run: pytest.Pytester, goqueue_server: DatabaseServer, workers: list[str]
) -> None:
    run.makepyfile(FAILS)
    result = run.runpytest_inprocess(*workers)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*- goqueue database -*", "postgresql://*/goqueue_test_*", "Kept; *DROP DATABASE *;"])
    result.stdout.fnmatch_lines(["*= goqueue databases =*", "kept, to be dropped manually:", "  goqueue_test_*"])
    kept = [line.strip() for line in result.outlines if line.startswith("  goqueue_test_")]
    assert len(kept) == 1
    assert databases(goqueue_server, kept[0]) == kept
    drop(goqueue_server, kept[0])


def test_keep_databases_keeps_those_of_passed_tests(run: pytest.Pytester, goqueue_server: DatabaseServer) -> None:
    run.makepyfile(PASSES)
    result = run.runpytest_inprocess("--keep-databases")
    kept = [line.strip() for line in result.outlines if line.startswith("  goqueue_test_")]
    assert len(kept) == 2
    for name in kept:
        drop(goqueue_server, name)


def test_the_database_of_a_run_that_was_killed_is_dropped_by_the_next_run(
    run: pytest.Pytester, goqueue_server: DatabaseServer, tmp_path: Path
) -> None:
    run.makepyfile(
        test_waits=f"""
            import pathlib, time
            def test_waits(goqueue_database):
                name = goqueue_database.partition("?")[0].rpartition("/")[2]
                pathlib.Path({str(tmp_path)!r}, name).touch()
                time.sleep(600)
        """,
        test_more=PASSES,
        test_fails=FAILS,
    )
    kept = run.runpytest_inprocess("test_fails.py")
    [kept_name] = [line.strip() for line in kept.outlines if line.startswith("  goqueue_test_")]
    seen: list[str] = []
    command = [sys.executable, "-m", "pytest", "test_waits.py"]
    killed, going_on = (subprocess.Popen(command, cwd=run.path, stdout=subprocess.DEVNULL) for _ in range(2))
    try:
        for process in (killed, going_on):
            deadline = time.monotonic() + 60
            while len(seen) < 2:
                seen = [file.name for file in tmp_path.iterdir() if file.name.startswith("goqueue_test_")]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert process.poll() is None
        lost, used = ([name for name in seen if f"_{process.pid}_" in name] for process in (killed, going_on))
        killed.kill()
        killed.wait(60)

        def is_dropped() -> bool:
            run.runpytest_inprocess("test_more.py").assert_outcomes(passed=2)
            return databases(goqueue_server, lost[0]) == []

        until(is_dropped)  # the server can still be ending the session of the killed run
        assert databases(goqueue_server, used[0]) == used
        assert databases(goqueue_server, kept_name) == [kept_name]
    finally:
        going_on.kill()
        going_on.wait(60)
        for name in (*used, kept_name):
            drop(goqueue_server, name)


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_an_embedded_server_is_used_and_deleted(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    monkeypatch.setenv("GOQUEUE_TEST_SERVER", "embedded")
    run.makepyfile(FAILS, test_server="""
        def test_server(goqueue_server):
            assert goqueue_server.kind == "embedded"
            print("host is", goqueue_server.url.partition("host=")[2])
    """)  # fmt: skip
    result = run.runpytest_inprocess("-rP", *workers)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["goqueue: embedded PostgreSQL, deleted at the end"])
    result.stdout.fnmatch_lines(["It ends with this run's server; *"])
    result.stdout.fnmatch_lines(["kept until this run's server ends:", "  goqueue_test_*"])
    host = next(line.split()[2] for line in result.outlines if line.startswith("host is"))
    assert not Path(host.partition("&")[0].replace("%2F", "/")).exists()


def test_the_embedded_server_is_of_the_named_folder(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOQUEUE_TEST_DATABASE_URL")
    monkeypatch.setenv("GOQUEUE_TEST_POSTGRES_DIR", str(installation := EmbeddedServer().bin("postgres").parent.parent))
    run.makepyfile("def test_one(goqueue_connection): pass")
    result = run.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"goqueue: embedded PostgreSQL of {installation}, deleted at the end"])
    monkeypatch.setenv("GOQUEUE_TEST_POSTGRES_DIR", str(run.path))
    result = run.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{run.path} has no bin/initdb: *"])


def test_no_server_is_started_for_tests_that_need_none(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_TEST_SERVER", "embedded")
    monkeypatch.setenv("TMPDIR", str(run.mkdir("tmp")))
    run.makepyfile("""
        import psutil
        def test_none():
            assert not [child for child in psutil.Process().children() if "goqueue-guard" in child.cmdline()]
    """)
    run.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_password_is_not_shown(
    run: pytest.Pytester, goqueue_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_password = goqueue_server.url.replace("postgres@", "postgres:hunter2@", 1)
    if with_password == goqueue_server.url:
        pytest.skip("this server asks for a password of its own")
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", with_password)
    run.makepyfile("""
        def test_fails(goqueue_database, goqueue_server):
            assert ":hun" in goqueue_server.url.replace("ter2", "")
            raise RuntimeError
    """)
    result = run.runpytest_inprocess("--showlocals")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*RuntimeError", "*- goqueue database -*"])
    result.stdout.no_fnmatch_line("*hunter2*")
    for line in result.outlines:
        if line.startswith("  goqueue_test_"):
            drop(goqueue_server, line.strip())


def test_an_unknown_choice_of_server_is_rejected(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_TEST_SERVER", "oracle")
    result = run.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*GOQUEUE_TEST_SERVER must be docker or embedded, not 'oracle'*"])


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_without_the_docker_image_the_embedded_server_is_used(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    # A Docker engine that responds, but has no image.
    (run.path / "docker.py").write_text(
        "class Engine:\n    def ping(self): return True\n    def close(self): pass\n"
        "def from_env(**options): return Engine()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{run.path}{os.pathsep}{REPO}")
    run.syspathinsert()
    monkeypatch.delitem(sys.modules, "docker", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.delenv("GOQUEUE_TEST_DATABASE_URL")
    run.makepyfile(PASSES)
    result = run.runpytest_inprocess(*workers)
    result.assert_outcomes(passed=2)
    note = "the image postgres:18 is unavailable from Docker (*); using an embedded server"
    result.stdout.fnmatch_lines([note])
    monkeypatch.setenv("GOQUEUE_TEST_SERVER", "docker")
    result = run.runpytest_inprocess(*workers)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*GOQUEUE_TEST_SERVER=docker forbids another server*"])


def test_the_template_is_complete_closed_and_created_once(
    goqueue_server: DatabaseServer, goqueue_template: str
) -> None:
    assert goqueue_template == TEMPLATE
    with psycopg.connect(goqueue_server.url) as connection:
        query = "SELECT datistemplate, datallowconn FROM pg_database WHERE datname = %s"
        assert connection.execute(query, [TEMPLATE]).fetchone() == (True, False)


def test_an_incomplete_template_is_recreated(run: pytest.Pytester, other_server: DatabaseServer) -> None:
    with psycopg.connect(other_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        connection.execute("CREATE DATABASE goqueue_test_1_of_another_run")
    run.makepyfile(PASSES)
    run.runpytest_inprocess().assert_outcomes(passed=2)
    assert databases(other_server, "goqueue_t%") == [TEMPLATE, "goqueue_test_1_of_another_run"]


def test_workers_and_runs_at_the_same_time_share_one_template(
    run: pytest.Pytester, other_server: DatabaseServer
) -> None:
    run.makepyfile(PASSES)
    command = [sys.executable, "-m", "pytest", "-n", "2"]
    runs = [subprocess.Popen(command, cwd=run.path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], "\n".join(outputs)
    assert databases(other_server, "goqueue_t%") == [TEMPLATE]


def test_a_user_who_cannot_create_databases_gets_an_error(
    run: pytest.Pytester, other_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(other_server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("CREATE ROLE maker LOGIN CREATEDB")
    run.makepyfile(PASSES)
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", other_server.url.replace("postgres@", "plain@", 1))
    result = run.runpytest_inprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*can't create databases: ALTER ROLE ... CREATEDB"])
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", other_server.url.replace("postgres@", "maker@", 1))
    run.runpytest_inprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("given_as", "url"),
    [
        ("postgresql://ann:p%40@h:77/x?sslmode=require", "postgresql://ann:p%40@/new?port=77&host=h&sslmode=require"),
        ("host=/tmp/a user=ann dbname=x", "postgresql://ann@/new?host=%2Ftmp%2Fa"),
        ("postgresql:///x", "postgresql:///new"),
    ],
)
def test_any_form_of_server_address_becomes_a_url(given_as: str, url: str) -> None:
    made = _database_url(given_as, "new")
    assert psycopg.conninfo.conninfo_to_dict(made) == psycopg.conninfo.conninfo_to_dict(url)
    assert "p%40" not in _shown(made)
    assert "p%40" not in repr(made)


FLAKY = """
    import itertools, pytest
    runs = itertools.count()

    def test_flaky(goqueue_database, goqueue_connection):
        run = next(runs)
        goqueue_connection.execute(f"COMMENT ON SCHEMA goqueue IS 'run {run}'")
        assert run == RUN
"""


@pytest.mark.parametrize(("workers", "passes_at", "kept_runs"), [("0", 2, [0, 1]), ("1", 9, [0, 1, 2])])
def test_the_database_of_each_failing_run_of_a_repeated_test_is_kept_and_shown(
    run: pytest.Pytester, goqueue_server: DatabaseServer, workers: str, passes_at: int, kept_runs: list[int]
) -> None:
    run.makepyfile(FLAKY.replace("RUN", str(passes_at)))
    result = run.runpytest_inprocess("-n", workers, "--reruns", "2")
    kept = [line.strip() for line in result.outlines if line.startswith("  goqueue_test_")]
    try:
        assert len(kept) == len(kept_runs)
        for number, name in zip(kept_runs, kept, strict=True):
            shown = [line for line in result.outlines if f"/{name}?" in line and line.startswith("    postgresql://")]
            assert len(shown) == 1
            assert shown[0].endswith("::test_flaky)")
            with psycopg.connect(_database_url(goqueue_server.url, name)) as connection:
                comment = connection.execute("SELECT obj_description('goqueue'::regnamespace)").fetchone()
            assert comment == (f"run {number}",)
    finally:
        for name in kept:
            drop(goqueue_server, name)
