"""Shipped files, and a folder of SQL files that replace them."""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from goqueue.errors import ConfigError
from goqueue.schemas import DEFAULT_SCHEMA, schema_option

#: The files behind the DBA's commands. The store doesn't run their queries, and a folder can't replace them.
APART = frozenset({"behaviour.sql", "checks.sql", "seed.sql", "statements.sql"})
_STAMP = re.compile(r"-- From goqueue (?P<version>\S+), sha256 (?P<sha256>[0-9a-f]{64})\.[^\n]*\n")


def sql_files(folder: Path | str | None, shipped: Path) -> list[tuple[Path, Path]]:
    """Return each file to load, with the shipped file of that name: the same one, unless ``folder`` replaces it.

    Raises `ConfigError` for a folder that is missing, has no SQL file, or has one that goqueue doesn't ship.
    """
    names = sorted(file.name for file in shipped.glob("*.sql"))
    if folder is None:
        return [(shipped / name, shipped / name) for name in names]
    given = Path(folder)
    try:
        own = {file.name for file in given.iterdir() if file.suffix == ".sql"}
    except FileNotFoundError:
        raise ConfigError(
            [f"the folder of SQL files {given} does not exist; `goqueue sql export {given}` makes one"]
        ) from None
    except OSError as error:
        raise ConfigError([f"the folder of SQL files {given} can't be read: {error.strerror}"]) from None
    expected = ", ".join(name for name in names if name not in APART)
    if not own:
        raise ConfigError([f"the folder {given} has no SQL files; expected some of {expected}"])
    if unknown := sorted(own.difference(names) | own & APART):
        raise ConfigError(
            [f"{given / name} is not one of the store's SQL files and is never read; expected {expected}"
             for name in unknown]
        )  # fmt: skip
    return [((given if name in own else shipped) / name, shipped / name) for name in names]


class Export(NamedTuple):
    """The origin of an exported file, and whether the file was changed since."""

    version: str
    #: Of the shipped file at export.
    sha256: str
    changed: bool


def exported(shipped: Path) -> str:
    """Return a shipped file's text below a stamp, which later shows whether the export or the original has changed."""
    text = shipped.read_text(encoding="utf-8")
    return (
        f"-- From goqueue {version('goqueue')}, sha256 {_sha256(text)}. Keep this line for `goqueue sql diff`.\n{text}"
    )


def read_export(file: Path) -> Export | None:
    """Return the stamp in the first line of an exported file; None if there is none."""
    text = file.read_text(encoding="utf-8-sig")
    if (match := _STAMP.match(text)) is None:
        return None
    return Export(match["version"], match["sha256"], _sha256(text[match.end() :]) != match["sha256"])


def is_outdated(file: Path, shipped: Path) -> Export | None:
    """Return the stamp of ``file`` if the shipped file has changed since the export; else None."""
    export = None if file == shipped else read_export(file)
    return export if export and export.sha256 != _sha256(shipped.read_text(encoding="utf-8")) else None


def since_export(file: Path, shipped: Path) -> str:
    """Return a note for messages about ``file`` if the shipped file has changed since the export; else nothing."""
    try:
        export = is_outdated(file, shipped)
    except (OSError, ValueError):
        return ""
    if export is None:
        return ""
    return f" (exported from goqueue {export.version}, and the shipped file has changed since: see `goqueue sql diff`)"


def without_stamp(text: str) -> str:
    """Return the text of a file without its stamp."""
    match = _STAMP.match(text)
    return text[match.end() :] if match else text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# The files that goqueue requires, by folder: an error names those that an incomplete installation lacks.
_NEEDED = {
    "sql": (
        *("checks.sql", "jobs.sql", "leases.sql", "seed.sql", "server.sql", "statements.sql", "stats.sql"),
        "columns.json",
    ),
    "migrations": ("V0001__create_jobs.sql", "roles/rights.json", "roles/roles.sql", "schema.json"),
}


def shipped_folder(name: str) -> Path:
    """Return the folder ("sql", "migrations") that goqueue ships: beside the package in a checkout, else inside it.

    Raises `ConfigError` if the installation lacks the folder or one of its files.
    """
    package = Path(__file__).resolve().parent
    beside = package.parent / name
    folder = beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else package / name
    if not package.is_dir():
        archive = f"goqueue was imported from an archive, {package.parent}, and its SQL must be files in a folder"
        raise ConfigError([f"{archive}: install it unpacked, as pip does"])
    if missing := [file for file in _NEEDED[name] if not (folder / file).is_file()]:
        incomplete = f"this installation of goqueue is incomplete: {folder} has no {', '.join(missing)}"
        raise ConfigError([f"{incomplete}; install it again (pip install --force-reinstall goqueue)"])
    return folder


def run_command(name: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Return the command that runs a shipped SQL file in psql. The file can be inside an installed package."""
    return f"goqueue sql print {name}{schema_option(schema)} | psql -v ON_ERROR_STOP=1"


def read_shipped(folder: str, name: str) -> str:
    """Return the text of a file that goqueue ships. Raises `ConfigError` if it can't be read."""
    file = shipped_folder(folder) / name
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError([f"{file} can't be read: {exc}; install goqueue again"]) from exc
