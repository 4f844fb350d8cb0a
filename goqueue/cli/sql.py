"""`goqueue sql`: print and export the SQL files, and compare changed files with the shipped ones."""

import os
import shlex
from difflib import get_close_matches, unified_diff
from pathlib import Path
from typing import Annotated

import typer

from goqueue.cli.common import EXIT_CODES, AsJson, ConfigFile, in_schemas, note, path, print_json, read_config, write
from goqueue.counts import counted
from goqueue.errors import ConfigError
from goqueue.files import APART, exported, is_outdated, read_export, shipped_folder, sql_files, without_stamp
from goqueue.schemas import render

sql_app = typer.Typer(
    help="Print the SQL files, export them for tuning, and compare changed ones.", no_args_is_help=True
)


@sql_app.command("print", epilog=EXIT_CODES)
def print_file(
    name: Annotated[
        str, typer.Argument(metavar="FILE", help="Such as roles.sql, jobs.sql or U0024__pause_queues.sql.")
    ],
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="NAME", help="For this schema instead of the configured one.")
    ] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a shipped SQL file: queries, a migration, its undo file, or the roles.

    For psql: goqueue sql print roles.sql | psql -v ON_ERROR_STOP=1
    """
    files = {file.name: file for folder in ("sql", "migrations") for file in shipped_folder(folder).rglob("*.sql")}
    file = files.get(Path(name).name)
    if file is None:
        close = get_close_matches(name, files)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(sorted(files))}"
        raise typer.BadParameter(f"{name!r}: {hint}", param_hint="FILE")
    [config] = in_schemas(read_config(config_file).database, [schema] if schema else None)
    text = render(file.read_text(encoding="utf-8"), config.schema)
    if as_json:
        print_json({"file": file, "sql": text})
    else:
        write(text)


@sql_app.command("export", epilog=EXIT_CODES)
def export(
    directory: Annotated[
        Path, typer.Argument(parser=path, metavar="DIR", help="The folder to write to; created if missing.")
    ],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Such as jobs.sql; all files by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the shipped SQL files to a folder, for tuning.

    Set GOQUEUE_DATABASE_SQL_DIR (or database: sql_dir in goqueue.yaml) to the
    folder. Its files then replace the shipped files of the same names.
    `goqueue check` checks that each query keeps its interface. A store rejects
    a folder with an incompatible query when it opens.

    A file that was changed since its export is not overwritten.
    """
    shipped = {file.name: file for file in sorted(shipped_folder("sql").glob("*.sql")) if file.name not in APART}
    wanted = files or list(shipped)
    problems = [f"{name}: there is no such SQL file; expected one of {', '.join(shipped)}" for name in wanted
                if name not in shipped]  # fmt: skip
    if not force:
        problems += [
            f"{directory / name} was changed, or not exported by goqueue: use another folder, or --force to lose "
            "the changes"
            for name in wanted
            if name in shipped and _is_changed(directory / name, shipped[name])
        ]
    if problems:
        raise ConfigError(problems)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            (directory / name).write_text(exported(shipped[name]), encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{error.filename}: can't be written: {error.strerror}"]) from error
    note(
        f"{counted(len(wanted), 'file')} written. "
        f"Next: export GOQUEUE_DATABASE_SQL_DIR={shlex.quote(str(directory.resolve()))}; goqueue check"
    )
    if as_json:
        print_json({"written": [directory / name for name in wanted]})


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"{file} can't be read: {reason}"]) from error


def _is_changed(file: Path, shipped: Path) -> bool:
    if not os.path.exists(file):  # noqa: PTH110 - Path.exists raises for names that are too long
        return False
    text, known = _read(file), read_export(file)
    return text != shipped.read_text(encoding="utf-8") and (known is None or known.changed)


@sql_app.command("diff", epilog=EXIT_CODES)
def diff(
    directory: Annotated[
        Path | None, typer.Argument(parser=path, metavar="DIR", help="The folder; without it, the configured one.")
    ] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how a folder of SQL files differs from the shipped ones.

    Standard output has the differences as a patch. Standard error has a line
    for each file that says who changed it: you, or a goqueue release since
    the export. JSON has both, in an object per file.
    """
    folder = directory or read_config(file).database.sql_dir
    if not folder:
        raise ConfigError(["no folder of SQL files is configured; name one, or set GOQUEUE_DATABASE_SQL_DIR"])
    files = []
    for own, shipped in sql_files(folder, shipped_folder("sql")):
        if own == shipped:
            continue
        mine, theirs = _read(own), shipped.read_text(encoding="utf-8")
        lines = unified_diff(
            theirs.splitlines(keepends=True),
            without_stamp(mine).splitlines(keepends=True),
            f"shipped/{own.name}",
            str(own),
        )
        files.append({"file": own.name, "history": _history(own, shipped), "diff": "".join(lines)})
    if as_json:
        print_json({"directory": folder, "files": files})
        return
    for each in files:
        write(each["diff"])
        note(f"{each['file']}: {each['history']}")


def _history(own: Path, shipped: Path) -> str:
    known = read_export(own)
    if known is None:
        return "it does not name the release it was exported from"
    release = f"the shipped file has changed since goqueue {known.version}" if is_outdated(own, shipped) else ""
    if not known.changed:
        again = f"; `{shlex.join(['goqueue', 'sql', 'export', str(own.parent), own.name])}` exports the new one"
        return f"{release}, this one has not{again}" if release else "as shipped"
    return f"changed here, and {release}: apply your change to the new text" if release else "changed here"
