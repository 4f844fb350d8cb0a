"""A server that can crash and start again under the same URL. Imports goqueue.testing.embedded and psutil."""

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from goqueue.testing.embedded import EmbeddedServer
from tests.standby import free_port


class CrashingServer(EmbeddedServer):
    """An embedded server with its data in a folder that is kept. It listens on a TCP port, which stays the same."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.port = int(free_port())
        self.data_dir = data_dir
        # Without recycled segments, the WAL of a stopped server fits on a small disk.
        own = {"listen_addresses": "127.0.0.1", "port": str(self.port), "wal_recycle": "off"}
        super().__init__(data_dir, settings=own | settings, durable=True)

    def tcp_url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the postmaster first."""
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def kill(self) -> None:
        """End all processes with SIGKILL at once. What is only in shared memory is lost, such as unwritten WAL."""
        self.processes()[0].suspend()  # else it starts others meanwhile
        ended = self.processes()
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._gone()
        # A new server does not start while one of them has the shared memory.
        end = time.monotonic() + 20
        while any(map(_is_alive, ended)) and time.monotonic() < end:
            time.sleep(0.01)

    def shut_down_immediately(self) -> None:
        """End all processes without a checkpoint, as ``pg_ctl stop -m immediate``."""
        self.processes()[0].send_signal(signal.SIGQUIT)
        self._gone()

    def start_again(self) -> None:
        """Start the server after its end. It recovers from its WAL."""
        self.stop()
        self.start()

    def _gone(self) -> None:
        assert self._process is not None
        self._process.wait(20)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
