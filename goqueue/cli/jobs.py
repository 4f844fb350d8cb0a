"""`goqueue jobs`: list, add, change and remove jobs."""

import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import msgspec
import typer
from rich.text import Text

from goqueue.cli.bulk import create_from
from goqueue.cli.common import (
    EXIT_CODES,
    AsJson,
    Column,
    ConfigFile,
    Yes,
    aware_time,
    confirm,
    console,
    duration,
    in_utc,
    in_words,
    note,
    open_store,
    print_json,
    print_line,
    printable,
    progress,
    saying,
    table,
    utf8,
    write_json,
)
from goqueue.counts import counted
from goqueue.errors import GoQueueError, JobNotFoundError
from goqueue.models import Failure, Job, JobFilter, JobStatus, JobUpdate, NewJob, Page
from goqueue.postgres.store import PostgresStorage
from goqueue.validation import MAX_PAGE

jobs = typer.Typer(help="List, add, change and remove jobs.", no_args_is_help=True)

_FINISHED = (JobStatus.COMPLETED, JobStatus.DEAD, JobStatus.CANCELLED)
_COLOURS = {"running": "cyan", "completed": "green", "dead": "red", "cancelled": "dim"}

Statuses = Annotated[list[JobStatus] | None, typer.Option("--status", help="Jobs of this status; repeatable.")]
Queues = Annotated[list[str] | None, typer.Option("--queue", help="Jobs of this queue; repeatable.")]
Types = Annotated[list[str] | None, typer.Option("--type", help="Jobs of this type; repeatable.")]
Workers = Annotated[list[str] | None, typer.Option("--worker", help="Running jobs of this worker; repeatable.")]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID", show_default=False)]
Payload = Annotated[str | None, typer.Option(metavar="JSON|@FILE|-", help="The payload, or a file to read it from.")]
Delay = Annotated[timedelta | None, typer.Option(parser=duration, metavar="5m", help="Time from now until it is due.")]
At = Annotated[datetime | None, typer.Option(parser=aware_time, metavar="TIME", help="When it is due.")]


def _time(help_text: str) -> Any:
    return Annotated[datetime | None, typer.Option(parser=aware_time, metavar="TIME", help=help_text)]


#: The options for a JobFilter, by the names of its fields.
_FILTER = {
    "status": Statuses,
    "queue": Queues,
    "job_type": Types,
    "locked_by": Workers,
    "created_from": _time("Created at or after this time: ISO 8601 with a zone, such as 2026-01-31T08:00Z."),
    "created_before": _time("Created before this time."),
}


def _takes_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``job_filter`` with the options of a JobFilter."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {name: value for name in _FILTER if (value := arguments.pop(name))}
        command(job_filter=JobFilter(**given), **arguments)

    own = [each for each in inspect.signature(command).parameters.values() if each.name != "job_filter"]
    filters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _FILTER.items()
    ]
    run.__signature__ = inspect.Signature([*own, *filters])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*own, *filters]}
    return run


# --- read -------------------------------------------------------------------------------------------------------------


@jobs.command("list", epilog=EXIT_CODES)
@_takes_filter
def list_jobs(
    *,
    job_filter: JobFilter,
    limit: Annotated[int | None, typer.Option(min=1, max=MAX_PAGE, help="Jobs per page.", show_default="50")] = None,
    cursor: Annotated[str | None, typer.Option(help="Continue after an earlier page.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Print all pages.")] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first, one per line.

    On a narrow terminal, a future due time and the error are on a second line.
    In a pipe there is no heading. The columns are id, status, attempts, creation
    time, due time, queue, type and error.
    """
    with open_store(file) as store:
        pages = _pages(store, job_filter, limit or (MAX_PAGE if every else 50), cursor, every=every)
        if as_json:
            _write_json(pages)
            return
        count, next_cursor = 0, None
        for page in pages:
            _write_lines(page.jobs, heading=count == 0)
            for why in page.unreadable.values():
                note(why)
            count, next_cursor = count + len(page.jobs) + len(page.unreadable), page.next_cursor
    if next_cursor is not None:
        words = [word for word in sys.argv[1:] if word != cursor and not word.startswith("--cursor")]
        note(f"more: goqueue {shlex.join([*words, '--cursor', next_cursor])}")
    elif count == 0:
        note("no job matches")


def _pages(
    store: PostgresStorage, job_filter: JobFilter, limit: int, cursor: str | None, *, every: bool
) -> Iterator[Page]:
    while True:
        page = store.list_jobs(job_filter, limit=limit, cursor=cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None or not every:
            return


def _write_json(pages: Iterable[Page]) -> None:
    """Write one document as the pages arrive: {"jobs": [...], "unreadable": {id: reason}, "next_cursor": ...}."""
    separator, cursor = '{"jobs": [\n', None
    unreadable: dict[UUID, str] = {}
    for page in pages:
        for job in page.jobs:
            write_json(separator + msgspec.json.encode(job).decode())
            separator = ",\n"
        cursor = page.next_cursor
        unreadable |= page.unreadable
    end = {"unreadable": unreadable, "next_cursor": cursor}
    write_json(('{"jobs": [' if separator != ",\n" else "\n") + "], " + msgspec.json.encode(end).decode()[1:] + "\n")


def _write_lines(listed: list[Job], *, heading: bool) -> None:
    if not sys.stdout.isatty():
        for job in listed:
            tries = f"{job.attempts}/{job.max_attempts}"
            times = f"{in_utc(job.created_at)}  {in_utc(job.scheduled_at)}"
            texts = f"{printable(job.queue)}  {printable(job.job_type)}  {printable(_error(job))}"
            print_line(f"{job.id}  {job.status:<9}  {tries:<5}  {times}  {texts}".rstrip())
        return
    screen, now = console(), datetime.now(UTC)
    columns = [Column("ID", "left"), Column("Status", "left"), Column("Queue", "left", 8), Column("Type", "left", 8)]
    columns += [
        Column("Age", "left"),
        Column("Tries"),
        Column("Due", below=True),
        Column("Error", "left", 40, below=True),
    ]
    rows: list[list[str | Text]] = []
    for job in listed:
        status = Text(printable(job.status), style=_COLOURS.get(job.status, ""))
        age, tries = in_words(now - job.created_at, 1), f"{job.attempts}/{job.max_attempts}"
        rows.append([str(job.id), status, job.queue, job.job_type, age, tries, _due(job, now), _error(job)])
    if listed:
        screen.print(table(columns, rows, screen.width, heading=heading))


def _due(job: Job, now: datetime) -> str:
    """Return the time until a pending job is due; empty if it is."""
    is_later = job.status == JobStatus.PENDING and job.scheduled_at > now
    return f"in {in_words(job.scheduled_at - now, 1)}" if is_later else ""


def _error(job: Job) -> str:
    """Return the first line of the last error, which has the exception's message."""
    return (job.last_error or "").partition("\n")[0]


@jobs.command("get", epilog=EXIT_CODES)
def get_job(
    *,
    job_id: Annotated[UUID | None, typer.Argument(metavar="ID", show_default=False)] = None,
    key: Annotated[str | None, typer.Option(help="Find the job by its idempotency key.")] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one job, with its payload and failure history."""
    if (job_id is None) == (key is None):
        raise typer.BadParameter("give either an ID or --key")
    with open_store(file) as store:
        job = store.get_job_by_idempotency_key(key) if job_id is None else store.get_job(job_id)  # type: ignore[arg-type]
        failures = store.list_failures(job.id)
    if as_json:
        print_json({**msgspec.structs.asdict(job), "failures": failures})
    else:
        _write_job(job, failures)


def _write_job(job: Job, failures: list[Failure]) -> None:
    for name, value in msgspec.structs.asdict(job).items():
        if name == "payload":
            continue
        text = value.isoformat(sep=" ") if isinstance(value, datetime) else "-" if value is None else str(value)
        text = _indented(text, 18) if name == "last_error" else printable(text)
        if isinstance(value, datetime):
            ago = datetime.now(UTC) - value
            text += f"  ({in_words(ago)} ago)" if ago > timedelta(0) else f"  (in {in_words(-ago)})"
        print_line(f"{name:<16}  {text}")
    print_line("payload\n  " + _indented(json.dumps(job.payload, indent=2, ensure_ascii=False), 2))
    for failure in failures:
        when, who = failure.failed_at.isoformat(sep=" "), printable(failure.worker_id or "-")
        print_line(f"failure of attempt {failure.attempt}, {when}, by {who}\n  " + _indented(failure.error, 2))


def _indented(text: str, width: int) -> str:
    return f"\n{' ' * width}".join(map(printable, text.split("\n")))


@jobs.command("types", epilog=EXIT_CODES)
def list_job_types(*, file: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the types of the stored jobs, one per line.

    A type can be missing if only pending jobs have it, and none of these is
    among the 10,000 newest or the 10,000 oldest pending jobs.
    """
    with open_store(file) as store:
        types = store.list_job_types()
    if as_json:
        print_json({"job_types": types})
        return
    for each in types:
        print_line(printable(each))
    if not types:
        note("there are no jobs")


# --- create -----------------------------------------------------------------------------------------------------------


@jobs.command("create", epilog=EXIT_CODES)
def create_job(
    *,
    job_type: Annotated[str | None, typer.Argument(metavar="TYPE", show_default=False)] = None,
    queue: Annotated[str | None, typer.Option(show_default="default")] = None,
    payload: Payload = None,
    priority: Annotated[int | None, typer.Option(help="Lower numbers run first.", show_default="0")] = None,
    max_attempts: Annotated[int | None, typer.Option(show_default="25")] = None,
    delay: Delay = None,
    at: At = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: only one job with it is added.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="Only one pending or running job has it.")] = None,
    source: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--from", metavar="FILE|-", help="Add many jobs: one JSON object per line."),
    ] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Add a job and print its id. If a key is taken, print that job's id instead.

    With --from, each line is a job: {"job_type": "resize", "payload": {...}},
    optionally with "queue", "priority", "max_attempts", "scheduled_at",
    "delay" ("PT5M"), "idempotency_key", "unique_key" and "id". Jobs are added
    in batches.
    """
    given: dict[str, Any] = {
        "job_type": job_type, "queue": queue, "priority": priority, "max_attempts": max_attempts, "delay": delay,
        "scheduled_at": at, "idempotency_key": key, "unique_key": unique_key,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if payload is not None:
        given["payload"] = _read_payload(payload)
    if source is not None:
        if given:
            raise typer.BadParameter("with --from, each line describes its job: omit the other options")
        create_from(source, file, as_json=as_json)
        return
    if job_type is None:
        raise typer.BadParameter("give the job's TYPE, or --from a file")
    new = NewJob(**given)
    with open_store(file) as store:
        job, created = store.get_or_create_job(new)
    with saying(f"the job was added: {job.id}" if created else f"the job with this key: {job.id}"):
        if as_json:
            print_json({"created": created, "job": job})
        else:
            print_line(job.id)
    if not (created or as_json):
        taken = f"the key {key!r}" if key and job.idempotency_key == key else f"the unique key {unique_key!r}"
        note(f"nothing was added: this job already has {taken}")


def _read_payload(text: str) -> Any:
    try:
        if text == "-":
            data = sys.stdin.buffer.read()
        else:
            data = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode(errors="surrogateescape")
        return msgspec.json.decode(utf8(data))
    except OSError as error:
        raise typer.BadParameter(f"{text}: {error.strerror}", param_hint="--payload") from None
    except (ValueError, RecursionError) as error:  # from msgspec, or from text that is not UTF-8
        raise typer.BadParameter(f"it is not JSON: {error}", param_hint="--payload") from None


# --- change -----------------------------------------------------------------------------------------------------------


class Clearable(StrEnum):
    """The values of `goqueue jobs update --clear`, named after the options."""

    ERROR = "error"
    KEY = "key"
    UNIQUE_KEY = "unique-key"
    LOCKED_BY = "locked-by"


_CLEARED = {
    Clearable.ERROR: "last_error",
    Clearable.KEY: "idempotency_key",
    Clearable.UNIQUE_KEY: "unique_key",
    Clearable.LOCKED_BY: "locked_by",
}


@jobs.command("update", epilog=EXIT_CODES)
def update_job(
    *,
    job_id: Annotated[UUID, typer.Argument(metavar="ID")],
    status: Annotated[JobStatus | None, typer.Option(help="The status; also sets times and holder.")] = None,
    queue: Annotated[str | None, typer.Option()] = None,
    job_type: Annotated[str | None, typer.Option("--type")] = None,
    payload: Payload = None,
    priority: Annotated[int | None, typer.Option(help="Lower numbers run first.")] = None,
    attempts: Annotated[int | None, typer.Option()] = None,
    max_attempts: Annotated[int | None, typer.Option()] = None,
    at: At = None,
    error: Annotated[str | None, typer.Option(help="The last error.")] = None,
    key: Annotated[str | None, typer.Option(help="The idempotency key.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="The unique key.")] = None,
    locked_by: Annotated[str | None, typer.Option(help="The worker that holds the running job.")] = None,
    clear: Annotated[list[Clearable] | None, typer.Option(help="Clear this field; repeatable.")] = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Change the given fields of one job."""
    given: dict[str, Any] = {
        "status": status, "queue": queue, "job_type": job_type, "priority": priority, "attempts": attempts,
        "max_attempts": max_attempts, "scheduled_at": at, "last_error": error, "idempotency_key": key,
        "unique_key": unique_key, "locked_by": locked_by,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if payload is not None:
        given["payload"] = _read_payload(payload)
    for each in clear or ():
        if given.setdefault(_CLEARED[each], None) is not None:
            raise typer.BadParameter(f"--{each} and --clear {each} are both given")
    if not given:
        raise typer.BadParameter("no change was given")
    update = JobUpdate(**given)
    with open_store(file) as store:
        job = store.update_job(job_id, update)
    with saying(f"the job was changed: {job.id}"):
        if as_json:
            print_json(job)
        else:
            _write_job(job, [])


class _Verb(NamedTuple):
    """A change of many jobs: its question, its past form, the statuses it applies to, a test for a job that no longer
    needs it, and the state of such a job."""

    question: str
    done: str
    begins: tuple[JobStatus, ...]
    is_done: Callable[[Job], bool]
    state: str


def _is(status: JobStatus) -> Callable[[Job], bool]:
    return lambda job: job.status == status


_UNFINISHED = (JobStatus.PENDING, JobStatus.RUNNING)
_FAILED = (JobStatus.DEAD, JobStatus.CANCELLED)
_CANCEL = _Verb("Cancel {}?", "cancelled", _UNFINISHED, _is(JobStatus.CANCELLED), "cancelled")
_RETRY = _Verb("Retry {}?", "retried", _FAILED, _is(JobStatus.PENDING), "pending")
_RESCHEDULE = _Verb("Reschedule {}?", "rescheduled", _UNFINISHED[:1], _is(JobStatus.PENDING), "pending")


@jobs.command("cancel", epilog=EXIT_CODES)
@_takes_filter
def cancel_jobs(
    *,
    ids: Ids = None,
    job_filter: JobFilter,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Cancel pending and running jobs, by ids or by a filter.

    A running job's worker finds out at its next call. `goqueue jobs retry`
    makes cancelled jobs pending again.
    """
    _change(_CANCEL, PostgresStorage.cancel_jobs, ids, job_filter, file, yes=yes, as_json=as_json)


@jobs.command("retry", epilog=EXIT_CODES)
@_takes_filter
def retry_jobs(
    *,
    ids: Ids = None,
    job_filter: JobFilter,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make dead and cancelled jobs pending again, due at once, with all their attempts. Select by ids or a filter."""
    _change(_RETRY, PostgresStorage.retry_jobs, ids, job_filter, file, yes=yes, as_json=as_json)


@jobs.command("reschedule", epilog=EXIT_CODES)
@_takes_filter
def reschedule_jobs(
    *,
    ids: Ids = None,
    job_filter: JobFilter,
    delay: Delay = None,
    at: At = None,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Set a new due time for pending jobs, by ids or a filter: --at, or --delay from now (0s: at once)."""
    if (delay is None) == (at is None):
        raise typer.BadParameter("give either --at or --delay")
    run = functools.partial(PostgresStorage.reschedule_jobs, scheduled_at=at, delay=delay)
    _change(_RESCHEDULE, run, ids, job_filter, file, yes=yes, as_json=as_json)


@jobs.command("change", epilog=EXIT_CODES)
@_takes_filter
def change_jobs(
    *,
    ids: Ids = None,
    job_filter: JobFilter,
    new_queue: Annotated[str | None, typer.Option(metavar="NAME", help="Move the jobs to this queue.")] = None,
    priority: Annotated[int | None, typer.Option(help="Lower numbers run first.")] = None,
    max_attempts: Annotated[int | None, typer.Option()] = None,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Change queue, priority or max_attempts of jobs that are not completed. Select by ids or a filter.

    With --max-attempts, jobs that have had more attempts are skipped, and
    pending jobs that would have none left.
    """
    given: dict[str, Any] = {"queue": new_queue, "priority": priority, "max_attempts": max_attempts}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise typer.BadParameter("give --new-queue, --priority or --max-attempts")

    def is_done(job: Job) -> bool:
        return all(getattr(job, name) == value for name, value in given.items())

    verb = _Verb("Change {}?", "changed", (*_UNFINISHED, *_FAILED), is_done, "up to date")
    run = functools.partial(PostgresStorage.change_jobs, **given)
    _change(verb, run, ids, job_filter, file, yes=yes, as_json=as_json)


def _change(
    verb: _Verb,
    run: Callable[..., int],
    ids: list[UUID] | None,
    job_filter: JobFilter,
    file: Path | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    _check_selection(verb, ids, job_filter)
    unchanged: dict[str, str] = {}
    why = ""
    with open_store(file) as store:
        if ids:
            count, code = _with_progress(verb.done, lambda show: run(store, ids, progress=show))
            if count < len(set(ids)) and not code:
                found = {job.id: job for job in store.get_jobs(ids)}
                unchanged = {str(each): "not there" for each in ids if each not in found}
                unchanged |= {str(job.id): job.status for job in found.values() if not verb.is_done(job)}
                if before := len(set(ids)) - len(unchanged) - count:
                    why = f"{counted(before)} {'was' if before == 1 else 'were'} {verb.state} already"
        else:
            count, code, why = _change_matching(verb, run, store, job_filter, yes=yes)
    _finish(verb.done, count, code, unchanged, why, as_json=as_json)


def _check_selection(verb: _Verb, ids: list[UUID] | None, job_filter: JobFilter) -> None:
    if bool(ids) == (job_filter != JobFilter()):
        raise typer.BadParameter("give either ids or a filter, such as --status or --queue")
    if not set(job_filter.parameters()["statuses"] or verb.begins) & set(verb.begins):
        fitting = ", ".join(verb.begins[:-1]) + " and " * (len(verb.begins) > 1) + verb.begins[-1]
        raise typer.BadParameter(f"only {fitting} jobs can be {verb.done}", param_hint="--status")


def _change_matching(
    verb: _Verb, run: Callable[..., int], store: PostgresStorage, job_filter: JobFilter, *, yes: bool
) -> tuple[int, int, str]:
    """Return how many jobs were changed, the exit status, and the reason if there were none."""
    given = job_filter.parameters()["statuses"] or verb.begins
    wanted = [status for status in verb.begins if status in given]
    if len(wanted) < len(JobStatus):
        job_filter = msgspec.structs.replace(job_filter, status=wanted)
    confirm(lambda: verb.question.format(counted(store.count_jobs(job_filter, fresh=True))), yes=yes)
    count, code = _with_progress(verb.done, lambda show: run(store, job_filter, progress=show))
    kind = " or ".join(wanted) if len(wanted) < len(JobStatus) else ""
    return count, code, "" if count or code else f"no {kind} job matches".replace("  ", " ")


def _with_progress(done: str, run: Callable[[Callable[[int], None]], int]) -> tuple[int, int]:
    """Run a change in batches, which passes the number of jobs so far to a function. Show that number.

    Return the number of jobs, and the exit status: 130 after Ctrl-C.
    """
    count = 0
    with progress() as advance:

        def show(number: int) -> None:
            nonlocal count
            count = number
            advance(count, f"{counted(count)} {done}")

        try:
            count = run(show)
        except KeyboardInterrupt:
            return count, 130
        except GoQueueError:
            if count:
                note(f"{counted(count)} {done} before this error:")
            raise
    return count, 0


def _finish(done: str, count: int, code: int, unchanged: dict[str, str], why: str, *, as_json: bool) -> None:
    text = f"{counted(count)} {done}" + (", then stopped" if code else "")
    with saying(text):
        if as_json:
            print_json({done: count, "unchanged": unchanged})
        else:
            print_line(text)
            for each, status in unchanged.items():
                note(f"{each} is {status}")
    if why:
        note(why)
    raise typer.Exit(code or (1 if unchanged else 0))


# --- remove -----------------------------------------------------------------------------------------------------------

_DELETE = _Verb("Delete {} permanently?", "deleted", tuple(JobStatus), lambda _: False, "")


@jobs.command("delete", epilog=EXIT_CODES)
@_takes_filter
def delete_jobs(
    *,
    ids: Ids = None,
    job_filter: JobFilter,
    yes: Yes = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete jobs permanently, in any status, by ids or by a filter.

    It is an error if another table refers to one of the jobs. Jobs that a
    filter selects are deleted in batches of a thousand, each all or none.
    """
    _check_selection(_DELETE, ids, job_filter)
    missing: dict[str, str] = {}
    why = ""

    def delete_each(show: Callable[[int], None]) -> int:
        count = 0
        for each in dict.fromkeys(ids or ()):
            try:
                store.delete_job(each)
                count += 1
                show(count)
            except JobNotFoundError:
                missing[str(each)] = "not there"
        return count

    if ids:
        confirm(lambda: _DELETE.question.format(counted(len(set(ids)))), yes=yes)
    with open_store(file) as store:
        if ids:
            count, code = _with_progress(_DELETE.done, delete_each)
        else:
            count, code, why = _change_matching(_DELETE, PostgresStorage.delete_jobs, store, job_filter, yes=yes)
    _finish(_DELETE.done, count, code, missing, why, as_json=as_json)


@jobs.command("prune", epilog=EXIT_CODES)
def prune_jobs(
    *,
    older_than: Annotated[
        timedelta, typer.Option(parser=duration, metavar="30d", help="Minimum time since they finished: 12h, 30d.")
    ],
    status: Annotated[
        list[JobStatus] | None,
        typer.Option(help="Jobs of this status; repeatable.", show_default="completed, dead and cancelled"),
    ] = None,
    queue: Queues = None,
    job_type: Types = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Jobs per transaction.")] = MAX_PAGE,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete jobs that finished long ago, in batches. After Ctrl-C, deleted batches stay deleted.

    Unlike `goqueue jobs delete` it doesn't ask for confirmation: it is meant
    for cron, and deletes only finished jobs of the given age. To keep jobs of
    one queue longer than those of another, run it once for each queue.
    """
    kept: dict[UUID, str] = {}

    def prune(show: Callable[[int], None]) -> int:
        total = 0
        while True:
            count = store.prune_jobs(older_than, status or _FINISHED, batch, queue or None, job_type or None)
            total += count
            kept.update(count.kept)
            show(total)
            if count < batch:
                return total

    with open_store(file) as store:
        total, code = _with_progress("deleted", prune)
    done = f"{counted(total)} deleted" + (", then stopped" if code else "")
    with saying(done):
        if as_json:
            named = {"kept": {str(job_id): reason for job_id, reason in kept.items()}} if kept else {}
            print_json({"deleted": total, "finished": code == 0, **named})
        else:
            print_line(done)
            for job_id, reason in kept.items():
                note(f"{job_id} is kept: {reason}")
    raise typer.Exit(code)
