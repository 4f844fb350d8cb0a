"""A small file system in memory that a file can fill, as the server's disk. Imports nothing of goqueue.

A limit on the size of files would be weaker: the server reports EFBIG then, and a full disk is ENOSPC for every file.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.chaos.server import CrashingServer

#: Why there can be no such disk here.
MISSING = "" if os.name == "posix" and os.geteuid() == 0 else "only root can mount a small disk"
_NAME = "ballast"
_ZEROS = bytes(4096)  # a page, the smallest part of a tmpfs


class Disk:
    """A tmpfs of this size, mounted on a new folder for the server's user. Use it in a ``with``."""

    def __init__(self, folder: Path, server: CrashingServer, megabytes: int) -> None:
        self.folder = folder
        self._owner = server.data_dir.stat()
        self._megabytes = megabytes

    def __enter__(self) -> Self:
        self.folder.mkdir()
        size = f"size={self._megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "goqueue-chaos", self.folder], check=True)
        os.chown(self.folder, self._owner.st_uid, self._owner.st_gid)
        self.folder.chmod(0o700)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Lazily: after an error, the server has files open there.
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self) -> None:
        """Leave no byte."""
        with (self.folder / _NAME).open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(_ZEROS)

    def free(self) -> None:
        (self.folder / _NAME).unlink(missing_ok=True)


@contextmanager
def wal_on(disk: Disk, server: CrashingServer) -> Iterator[None]:
    """Keep the WAL of a server on a disk, as `initdb --waldir` does. The server is restarted before and after."""
    usual, moved = server.data_dir / "pg_wal", disk.folder / "pg_wal"
    server.stop()
    _move(usual, moved)
    usual.symlink_to(moved)
    server.start()
    yield
    server.stop()
    usual.unlink()
    _move(moved, usual)
    server.start()


def _move(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "--archive", folder, to], check=True)
    subprocess.run(["rm", "--recursive", folder], check=True)
