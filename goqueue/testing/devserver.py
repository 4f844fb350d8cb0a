"""An embedded server for development that outlives the command which starts it.

An `EmbeddedServer` ends with its process, so a separate process keeps it: `python -m goqueue.testing.devserver FOLDER
DESCRIPTOR`. Its state is never read from a file, which could be stale: the process reads a FIFO and holds a lock, and
both end with it. It is stopped through the FIFO, not by a signal to a process id.
"""

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from goqueue.testing.embedded import MAX_SOCKET_PATH, START_SECONDS, STOP_SECONDS, EmbeddedServer, EmbeddedServerError


class Running(NamedTuple):
    """A running server: its URL, its version, and the keeper's process id, for display."""

    url: str
    version: str
    pid: int


class DevServer:
    """The server of one folder, with its cluster in ``folder/data``, which is kept. Raises EmbeddedServerError."""

    def __init__(self, folder: Path) -> None:
        if os.name != "posix":
            raise EmbeddedServerError("the embedded server needs Linux or macOS; use your own PostgreSQL server")
        try:
            self.folder = folder.absolute()
            str(self.folder).encode()  # for the server's URL
        except FileNotFoundError:
            raise EmbeddedServerError(f"{folder} can't be used: the working directory no longer exists") from None
        except UnicodeEncodeError:
            raise EmbeddedServerError(f"{str(folder)!a} can't be used: the path is not UTF-8") from None

    def start(self) -> tuple[Running, bool]:
        """Return the running server, and whether this call started it."""
        if running := self.running():
            return running, False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = (self.folder / "keeper.log").open("wb")
        except OSError as error:
            raise EmbeddedServerError(f"{self.folder} can't be used: {error.strerror}") from error
        # The keeper leaves this session and its parent. If we end before it answers (Ctrl-C), it can't answer, and
        # stops. It answers through its own pipe, because modules imported at Python's start may print.
        ours, theirs = os.pipe()
        command = [sys.executable, "-P", "-m", "goqueue.testing.devserver", str(self.folder), str(theirs)]
        with log, os.fdopen(ours, "rb") as pipe:
            try:
                subprocess.run(  # noqa: S603 - the arguments are fixed
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                    pass_fds=[theirs], check=False,
                )  # fmt: skip
            finally:
                os.close(theirs)
            answer = pipe.readline()
        if not answer:
            raise EmbeddedServerError(f"the server's keeper ended without an answer: see {self.folder / 'keeper.log'}")
        said: dict[str, Any] = json.loads(answer)
        if "error" in said:
            raise EmbeddedServerError(said["error"])
        if said:
            return Running(**said), True
        # Another start was first, and its server is shared; or a stop has not ended yet.
        deadline = time.monotonic() + START_SECONDS
        while self._is_kept() and not self.running():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"another start or stop in {self.folder} did not end in time")
            time.sleep(0.02)
        return self.start()

    def stop(self) -> bool:
        """Stop the server and its connections, and wait for its end. Return False if none was running."""
        if (control := self._control()) is None:
            return False
        try:
            with suppress(BrokenPipeError):  # it has just ended
                os.write(control, b"stop\n")
            end = select.poll()
            end.register(control, 0)  # reports that this keeper no longer reads, even if another one follows
            if not end.poll(2000 * STOP_SECONDS):
                raise EmbeddedServerError(f"the server of {self.folder} did not stop in {2 * STOP_SECONDS:.0f} s")
        finally:
            os.close(control)
        return True

    def running(self) -> Running | None:
        """Return the server if it accepts connections."""
        try:
            return Running(**json.loads((self.folder / "server.json").read_text())) if self._is_kept() else None
        except (FileNotFoundError, ValueError):
            return None  # starting, or just ended

    def _is_kept(self) -> bool:
        if (control := self._control()) is None:
            return False
        os.close(control)
        return True

    def _control(self) -> int | None:
        """Return the FIFO, open for writing; None if no keeper reads it."""
        try:
            return os.open(self.folder / "control", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
                return None
            raise EmbeddedServerError(f"the server of {self.folder} can't be reached: {error.strerror}") from error


def keep(folder: Path, answer: int) -> None:
    """Run the server of ``folder`` until it is stopped through the FIFO or ends by itself.

    Report on the descriptor ``answer`` whether it runs.
    """
    import fcntl  # noqa: PLC0415 - Windows has none

    if os.fork():  # so that the starting process has no child to wait for
        os._exit(0)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _say(answer, {})
    control, about = folder / "control", folder / "server.json"
    for name in (control, about):
        name.unlink(missing_ok=True)  # left by a killed keeper
    os.mkfifo(control, 0o600)
    # Open for writing too: otherwise the first writer's close would end the wait.
    fifo = os.open(control, os.O_RDWR | os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the with statement then stops the server
    try:
        with EmbeddedServer(folder / "data") as server:
            running = Running(_stable_url(server.url(), folder), server.version, os.getpid())
            about.with_suffix(".new").write_text(json.dumps(running._asdict()), encoding="utf-8")
            about.with_suffix(".new").replace(about)
            _say(answer, running._asdict())
            while server.is_running and not select.select([fifo], [], [], 1.0)[0]:
                pass
            about.unlink()
    except EmbeddedServerError as error:
        _say(answer, {"error": str(error)})
    except BrokenPipeError:
        pass  # the starting process has ended and can't learn of this server
    finally:
        about.unlink(missing_ok=True)
        os.close(lock)  # before the FIFO, so that the lock is free after a stop


def _say(descriptor: int, answer: dict[str, Any]) -> None:
    """Answer the waiting command and close its descriptor. Raises BrokenPipeError if it has ended."""
    os.write(descriptor, json.dumps(answer).encode() + b"\n")
    os.close(descriptor)


def _stable_url(url: str, folder: Path) -> str:
    """Return the same URL at each start, through a link to the socket's folder if its path is short enough."""
    link = folder / "socket"
    link.unlink(missing_ok=True)
    if len(os.fsencode(link / ".s.PGSQL.65535")) > MAX_SOCKET_PATH:
        return url
    parts = conninfo_to_dict(url)
    link.symlink_to(str(parts["host"]))
    return f"postgresql://{parts['user']}@/{parts['dbname']}?host={quote(str(link))}&port={parts['port']}"


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
