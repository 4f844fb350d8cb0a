"""Log calls that never raise.

The library logs after the server has committed. An error in the application's own logging (a record factory, a filter,
a handler) must not hide the result of a statement that has run: the jobs of a claim would be lost to their caller.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

# Loggers whose lost records were reported. One report each: the next statement most likely fails in the same way.
_reported: set[str] = set()


def log(logger: logging.Logger, level: int, message: str, /, *args: object, **fields: object) -> None:
    """Log a record with ``fields`` as its attributes; without an error, whatever the application's logging raises.

    The application's attributes win: where its record factory has set ``job_id``, ours is ``goqueue_job_id``. (With
    ``extra``, logging raises KeyError for a name that is taken.) Of the exceptions only those that end a program or a
    task, such as KeyboardInterrupt, get through.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        file, line, function, _ = logger.findCaller(stacklevel=2)
        record = logger.makeRecord(logger.name, level, file, line, message, args, None, function)
        for name, value in fields.items():
            setattr(record, f"goqueue_{name}" if hasattr(record, name) else name, value)
        logger.handle(record)
    except Exception:  # noqa: BLE001 - whatever the application's own code raises
        record_lost(logger.name)


def record_lost(what: str) -> None:
    """Report the exception in hand on standard error, once for each ``what``; as logging does, not in production
    (``logging.raiseExceptions`` False)."""
    if not logging.raiseExceptions or what in _reported:
        return
    _reported.add(what)
    with suppress(Exception):  # closed, full, or of the application's own making
        sys.stderr.write(f"goqueue: a record of {what} was lost; the call that it was about is not affected:\n")
        traceback.print_exc(file=sys.stderr)


_statements = logging.getLogger("goqueue.sql")

# What a log record says of a statement's parameters, by the name of its field. Of several jobs it has the number alone:
# up to a thousand ids would make it unreadable.
_LOGGED = {"job_id": ("id", "job_id"), "queue": ("queue", "queues"), "worker_id": ("worker_id",)}


def report(
    name: str, parameters: Mapping[str, Any], seconds: float, *, slow: float, rows: int = 0, error: str | None = None
) -> None:
    """Log a statement that was run, to `goqueue.sql`: a warning when it took ``slow`` seconds (0: never), else for
    debugging. It never raises: the statement has run.

    The fields: query, duration_ms, rows, error (its SQLSTATE, else the exception's name), and job_id, jobs (how many
    were given), queue, worker_id where it has them.
    """
    is_slow = 0 < slow <= seconds
    level = logging.WARNING if is_slow else logging.DEBUG
    try:
        if not _statements.isEnabledFor(level):
            return
    except Exception:  # noqa: BLE001 - a logger of the application's own class
        record_lost(_statements.name)
        return
    milliseconds = round(seconds * 1000, 3)
    fields: dict[str, Any] = {"query": name, "duration_ms": milliseconds, "rows": rows}
    if error is not None:
        fields["error"] = error
    for field, keys in _LOGGED.items():
        for key in keys:
            if parameters.get(key) is not None:
                fields[field] = parameters[key]
    if ids := parameters.get("ids"):
        fields |= {"job_id": ids[0]} if len(ids) == 1 else {"jobs": len(ids)}
    what = f"failed ({error})" if error is not None else "was slow" if is_slow else "ran"
    log(_statements, level, "%s %s, %s ms", name, what, milliseconds, **fields)
