"""A time of day of their own for some processes. Imports nothing of goqueue."""

import shutil
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_COMPILER = shutil.which("cc")
#: Why there can be no such clock here.
MISSING = "" if _COMPILER and sys.platform == "linux" else f"no Linux, or no C compiler for {_SOURCE.name}"


class Clock:
    """A clock that is wrong by some seconds. The processes with ``environ`` have it. Its files are in the folder."""

    def __init__(self, folder: Path, seconds: int = 0) -> None:
        assert _COMPILER is not None
        library, self._added = folder / "clock.so", folder / "clock"
        subprocess.run([_COMPILER, "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
        self._added.write_bytes(bytes(8))
        self.set(seconds)
        self.environ = {"LD_PRELOAD": str(library), "GOQUEUE_CHAOS_CLOCK": str(self._added)}

    def set(self, seconds: int) -> None:
        """Set it ahead, or behind if negative."""
        with self._added.open("r+b") as added:
            added.write(seconds.to_bytes(8, sys.byteorder, signed=True))
