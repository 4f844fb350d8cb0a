"""Running the `goqueue` command in tests: in this process, as a process, and on a terminal. Imports goqueue.cli."""

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from goqueue import cli

# Processes in the background ignore SIGINT, and their children inherit that.
COMMAND = [
    sys.executable, "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from goqueue.cli import main; main()",
]  # fmt: skip
imports_without_folder = pytest.mark.skipif(
    (3, 13) <= sys.version_info < (3, 13, 3),
    reason="Python 3.13.0 to 3.13.2 can't import psycopg in a deleted working directory (its issue 130932)",
)
SECONDS = 60.0
"""How long a test waits for what must come; reached only when it fails."""


def unmeasured() -> dict[str, str]:
    """Return the environment of a command to be interrupted. It disables coverage: the tracer takes a lock in Python
    code, and never releases it if Ctrl-C comes just then; the process would hang."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Commands:
    """Runs `goqueue` on one database, given by environment variables."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object, stdin: Path | None = None) -> Result:
        """Run the command in this process and capture its output; ``stdin`` is a file."""
        self._monkeypatch.setattr(sys, "argv", ["goqueue", *map(str, arguments)])
        with open(stdin or os.devnull, encoding="utf-8") as given:
            self._monkeypatch.setattr(sys, "stdin", given)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    @contextmanager
    def process(self, *arguments: object, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
        """Run the command as a process with pipes; kill it at the end if it still runs."""
        with subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unmeasured(),
        ) as started:  # fmt: skip
            try:
                yield started
            finally:
                started.kill()

    @contextmanager
    def terminal(
        self, *arguments: object, columns: int = 80, stdout: IO[bytes] | None = None, **variables: str
    ) -> Iterator["Terminal"]:
        """Run the command on its own terminal; with ``stdout``, its standard output goes to that file."""
        ours, theirs = pty.openpty()
        environment = {**unmeasured(), "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm", **variables}
        with subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=theirs, stdout=stdout or theirs, stderr=theirs, env=environment, start_new_session=True,
        ) as started:  # fmt: skip
            os.close(theirs)
            try:
                yield Terminal(started, ours)
            finally:
                started.kill()
                os.close(ours)


class Terminal:
    """A terminal: what a person sees and types."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self.process = process
        self.seen = ""
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read can end inside a character

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, pattern: str) -> str:
        """Return the output since the last call, up to the pattern."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} did not come; this did: {self.seen}"
            if not self._read(1.0):
                pytest.fail(f"the command ended without {pattern!r}: {self.seen}")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def end(self) -> tuple[int, str]:
        """Return the exit status, and the output since the last call."""
        deadline = time.monotonic() + SECONDS
        while self._read(1.0):
            assert time.monotonic() < deadline, f"the command did not end: {self.seen}"
        return self.process.wait(SECONDS), self.seen

    def _read(self, seconds: float) -> bool:
        """Return True if more output can come."""
        if select.select([self._descriptor], [], [], seconds)[0]:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # Linux reports the end this way
                return False
            self.seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._decoder.decode(data))
            return bool(data)
        return True
