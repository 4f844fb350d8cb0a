"""The options, output and store that the commands share."""

import codecs
import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import psycopg
import typer
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from goqueue.config import (
    NO_PATH,
    Config,
    DatabaseConfig,
    format_duration,
    load_config,
    parse_duration,
    redact,
)
from goqueue.errors import ConnectionRejectedError, GoQueueError, OutcomeUnknownError
from goqueue.postgres.store import PostgresStorage
from goqueue.postgres.translate import is_nobody_here
from goqueue.validation import MAX_INTERVAL

EXIT_CODES = (
    "Exit status: 0 on success; 1 after an error, if a confirmation was declined, if some of the given ids "
    "could not be changed, or if standard output could not be written (standard error then has the result); "
    "2 if the configuration or the command line is invalid, or the server rejects the connection (a wrong password, "
    "no such database); 3 if a check found a problem; 130 after Ctrl-C."
)


def path(text: str, param_hint: str | None = None) -> Path:
    """Parse an option's path. Reject a connection string: its password would be shown, or become a folder's name."""
    if redact(text) != text:
        raise typer.BadParameter(NO_PATH, param_hint=param_hint)
    return Path(text)


#: Options that are the same for every command.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--file", parser=path, metavar="PATH", help="Read this file instead of GOQUEUE_CONFIG or ./goqueue.yaml."
    ),
]
Schemas = Annotated[
    list[str] | None,
    typer.Option("--schema", metavar="NAME", help="This schema instead of the configured one; can be repeated."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation; required without a terminal.")]


class CheckFailedError(GoQueueError):
    """A check found a problem. The command itself succeeded; its exit status is 3."""


class OutputError(GoQueueError):
    """Standard output can't be written. ``is_left``: its reader has exited, as in `| head`, which needs no message."""

    def __init__(self, message: str, *, is_left: bool = False) -> None:
        super().__init__(message)
        self.is_left = is_left


# --- the streams ------------------------------------------------------------------------------------------------------

#: ASCII replacements for the characters in our own text.
_PLAIN = {"…": "...", "→": "->"}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Replace text that the stream's encoding lacks with a similar character or an escape; never raise."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    spelled = (_PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode() for char in missing)
    return "".join(spelled), error.end


codecs.register_error("goqueue", _spell)


class _Output(io.FileIO):
    """Standard output, with its own error type: an OSError could come from any file."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            is_closed = error.errno == errno.EBADF
            why = "it is closed" if is_closed else error.strerror
            raise OutputError(f"standard output can't be written: {why}", is_left=error.errno == errno.EPIPE) from error


class _Messages(io.FileIO):
    """Standard error. Ignores write errors, so that the exit status stays the same."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Make the standard streams accept any text, and report write errors as `OutputError`.

    A closed stream is opened first, so that no socket or file gets its descriptor.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free descriptor; standard output stays unwritable
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:  # otherwise a test has replaced it
        sys.stdout = _text_stream(_Output(1, "wb", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Messages(2, "wb", closefd=False), sys.stderr)


def _text_stream(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    encoding = "utf-8" if old is None else old.encoding
    is_line_buffered = raw.isatty() or raw.fileno() == 2
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="goqueue", line_buffering=is_line_buffered
    )


def drop_output() -> None:
    """Discard the rest of standard output, so that no error appears at interpreter exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def saying(done: str) -> Iterator[None]:
    """Print a result inside this block. If standard output can't be written, print ``done`` on standard error."""
    try:
        yield
        sys.stdout.flush()
    except OutputError:
        note(done)
        raise


def print_line(text: object) -> None:
    """Print a line for people. (typer's echo treats an ASCII pipe as a mistake, and writes UTF-8 to it.)"""
    sys.stdout.write(f"{text}\n")


def write(text: str) -> None:
    """Write text for programs, in UTF-8 in any locale: SQL, patches, metrics."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))  # keeps paths that are not UTF-8


def write_json(text: str) -> None:
    """Write JSON in UTF-8. Lone surrogates become JSON escapes."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))


def print_json(value: Any) -> None:
    """Print one JSON document. msgspec converts Structs, times and durations (ISO 8601)."""
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=str)  # paths
    write_json(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


# --- text for people --------------------------------------------------------------------------------------------------


class _Screen(Console):
    """Prints text without markup and emoji, with control characters as escapes."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        for segment in super().render(*args, **kwargs):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)


def console() -> Console:
    """Return the console for standard output: coloured on a terminal, plain in a pipe."""
    return _Screen()


def error_console() -> Console:
    """Return the console for standard error, for progress and messages: a pipe receives only the result."""
    return _Screen(stderr=True)


class Column(NamedTuple):
    """A column of `table`. ``least``: the cells that it keeps if space is short; None for all. ``below``: if not even
    these fit, it moves to a line below each row, where ``least`` lets it be cut at the end of that line."""

    title: str
    justify: Literal["left", "right"] = "right"
    least: int | None = None
    below: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int, *, heading: bool = True
) -> RenderableType:
    """Lay rows out in the given number of cells. The first column identifies the row and is never cut.

    If space is short, columns at the end can move below the row. The others are cut, then the first is folded. If that
    is not enough, each row becomes a paragraph.
    """
    cells = [[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row] for row in rows]
    titles = [cell_len(column.title) * heading for column in columns]
    widths = [max([title, *(row[place].cell_len for row in cells)]) for place, title in enumerate(titles)]
    leasts = [
        full if column.least is None else min(full, max(column.least, title))
        for column, title, full in zip(columns, titles, widths, strict=True)
    ]
    kept = len(columns)
    while columns[kept - 1].below and sum(leasts[:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    missing = sum(widths[:kept]) + 2 * (kept - 1) - width
    for place in (*reversed(range(1, kept)), 0):
        cut = min(max(0, missing), widths[place] - leasts[place])
        widths[place] -= cut
        missing -= cut
    if missing > 0:
        return Group(*(_paragraph(columns, row, width) for row in cells))

    def laid(part: Sequence[Sequence[Text]], *, heading: bool) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=heading)
        for place, column in enumerate(columns[:kept]):
            made.add_column(
                Text(column.title), justify=column.justify, width=widths[place], no_wrap=place > 0,
                overflow="ellipsis" if place else "fold",
            )  # fmt: skip
        for row in part:
            made.add_row(*row[:kept])
        return made

    if kept == len(columns):
        return laid(cells, heading=heading)
    parts: list[RenderableType] = []
    for row in cells:
        parts.append(laid([row], heading=heading and not parts))
        if any(cell.plain.strip() for cell in row[kept:]):
            parts.append(_below(columns[kept:], row[kept:], width))
    return Group(*parts)


def _paragraph(columns: Sequence[Column], row: Sequence[Text], width: int) -> Text:
    """Lay out a row as its first cell, with the others below it."""
    first = row[0].copy()
    first.stylize("bold")
    text = Text("\n").join([first, _below(columns[1:], row[1:], width)])
    text.overflow = "fold"
    return text


def _below(columns: Sequence[Column], row: Sequence[Text], width: int) -> Text:
    """Lay out cells as `title value`, in as many lines as they need."""
    lines = [Text("  ")]
    for column, cell in zip(columns, row, strict=True):
        if not cell.plain.strip():
            continue
        pair = Text.assemble((f"{column.title.strip().lower()} ", "dim"), cell)
        if column.below and column.least is not None:
            room = width - lines[-1].cell_len - 2 * (len(lines[-1]) > 2)
            pair.truncate(room if room >= column.least else width - 2, overflow="ellipsis")
        if len(lines[-1]) > 2 and lines[-1].cell_len + pair.cell_len + 2 > width:
            lines.append(Text("  "))
        lines[-1].append("  " if len(lines[-1]) > 2 else "").append_text(pair)
    text = Text("\n").join(lines)
    text.overflow = "fold"
    return text


def read_config(file: Path | None = None) -> Config:
    """Return the configuration in force. Raises ConfigError."""
    return load_config(file)


def in_schemas(config: DatabaseConfig, schemas: Sequence[str] | None) -> list[DatabaseConfig]:
    """Return the settings for each of the schemas that the command names; by default, for the configured one."""
    return [replace(config, schema=schema) for schema in dict.fromkeys(schemas or [config.schema])]


@contextmanager
def open_store(file: Path | None = None) -> Iterator[PostgresStorage]:
    """Open the configured store, and close it at the end."""
    with PostgresStorage.open(load_config(file)) as store:
        yield store


def hint_of(error: GoQueueError) -> str:
    """Return the line that follows an error of the connection; empty for another error."""
    cause = error.__cause__
    # The server's own errors have an SQLSTATE.
    is_unreachable = isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None
    if not isinstance(error, ConnectionRejectedError) and (
        isinstance(error, OutcomeUnknownError) or not is_unreachable
    ):
        return ""
    server = "; `goqueue db start` starts a development server" * is_nobody_here(error)
    return f"\n`goqueue config` shows the server's address{server}"


def note(message: str, style: str | None = None) -> None:
    """Print a line for the user on standard error, without passwords."""
    error_console().print(redact(message), style=style, soft_wrap=True)


def confirm(question: Callable[[], str], *, yes: bool) -> None:
    """Ask for confirmation, and end the command unless the answer is yes. ``question`` is only called if needed: it may
    be expensive."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: add --yes to continue")
    # typer.confirm writes a blank to standard output, and raises the same error after Ctrl-C as after a no.
    error_console().print(redact(question()), "[y/N]: ", end="", soft_wrap=True)
    answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        if not answer.endswith("\n"):  # Ctrl-D
            note("")
        raise typer.Abort


def duration(text: str) -> timedelta:
    """Parse an option's duration, written as in the settings, of at most 365,000 days."""
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if value > MAX_INTERVAL:
        raise typer.BadParameter(f"{text!r} is too long: at most {format_duration(MAX_INTERVAL)}")
    return value


def aware_time(text: str) -> datetime:
    """Parse an option's time, in ISO 8601 with a time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an ISO 8601 time, such as 2026-01-31T08:00Z") from None
    if time.utcoffset() is None:
        whole = time.isoformat(timespec="auto" if time.second or time.microsecond else "minutes")
        raise typer.BadParameter(f"{text!r} has no time zone: write {whole}Z or {whole}+01:00, for example")
    return time


def utf8(data: bytes) -> bytes:
    """Return JSON without the byte order mark that some editors add. Raises ValueError for UTF-16 and UTF-32."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or b"\0" in data[:4]:
        raise ValueError("it is UTF-16 or UTF-32, expected UTF-8: save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def in_utc(time: datetime) -> str:
    """Return a time in ISO 8601, to the second, such as `2026-01-31T08:00:00Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"  # %Y does not pad the year


def in_words(value: timedelta, units: int = 2) -> str:
    """Return a duration in its largest units, such as `3h 12m`; `0s` below a second."""
    whole = timedelta(seconds=max(0, int(value.total_seconds())))
    return " ".join(re.findall(r"\d+[a-z]+", format_duration(whole))[:units])


def printable(text: str) -> str:
    """Return outside text on one line: line breaks and terminal codes become escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[int, str], None]]:
    """Show a bar, or a spinner without ``total``, if standard error is a terminal. Yield a function that advances
    it."""
    screen = error_console()
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(_spinner(screen)), *((BarColumn(),) if total else ()), text)
    with Progress(
        *columns, TimeElapsedColumn(), console=screen, transient=True, disable=not screen.is_terminal
    ) as shown:  # fmt: skip
        task = shown.add_task("...", total=total)
        yield lambda done, text: shown.update(task, completed=done, description=text)


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error that work is in progress. Yield a function that changes the text."""
    screen = error_console()
    with screen.status(Text(text), spinner=_spinner(screen)) as shown:
        yield lambda other: shown.update(Text(other))


def _spinner(screen: Console) -> str:
    return "line" if screen.options.ascii_only else "dots"
