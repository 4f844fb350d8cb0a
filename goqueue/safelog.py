"""Log calls that never raise.

The library logs after the server has committed. An error in the application's logging (a record factory, filter or
handler) must not hide a statement's result: the jobs of a claim would be lost.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

# Loggers whose lost records were reported, once each: the next statement probably fails in the same way.
_reported: set[str] = set()


def log(logger: logging.Logger, level: int, message: str, /, *args: object, **fields: object) -> None:
    """Log a record with ``fields`` as its attributes. Suppress any error of the application's logging.

    The application's attributes win: if its record factory has set ``job_id``, ours is ``goqueue_job_id``. (``extra``
    would raise KeyError for a name in use.) Exceptions that end a program or a task, such as KeyboardInterrupt, pass.
    """
    try:
        if not logger.isEnabledFor(level):
            return
        file, line, function, _ = logger.findCaller(stacklevel=2)
        record = logger.makeRecord(logger.name, level, file, line, message, args, None, function)
        for name, value in fields.items():
            setattr(record, f"goqueue_{name}" if hasattr(record, name) else name, value)
        logger.handle(record)
    except Exception:  # noqa: BLE001 - the application's own code can raise anything
        record_lost(logger.name)


def is_enabled(logger: logging.Logger, level: int) -> bool:
    """Return whether the logger takes records of this level; False if the application's own logger raises."""
    try:
        return logger.isEnabledFor(level)
    except Exception:  # noqa: BLE001 - the application's own class of logger
        record_lost(logger.name)
        return False


def record_lost(what: str) -> None:
    """Report the current exception on standard error, once for each ``what``. As in logging, do nothing if
    ``logging.raiseExceptions`` is False."""
    if not logging.raiseExceptions or what in _reported:
        return
    _reported.add(what)
    with suppress(Exception):  # closed, full, or the application's own stream
        sys.stderr.write(f"goqueue: a log record of {what} was lost; the call itself is not affected:\n")
        traceback.print_exc(file=sys.stderr)


_statements = logging.getLogger("goqueue.sql")

# Log fields for a statement's parameters, by field name. For several jobs, only the number: a thousand ids would be
# unreadable.
_LOGGED = {"job_id": ("id", "job_id"), "queue": ("queue", "queues"), "worker_id": ("worker_id",)}


def report(
    name: str, parameters: Mapping[str, Any], seconds: float, *, slow: float, rows: int = 0, error: str | None = None
) -> None:
    """Log an executed statement to `goqueue.sql`: as a warning if it took ``slow`` seconds or more (0: never), else at
    debug level. Never raise: the statement was executed.

    The fields: query, duration_ms, rows, error (the SQLSTATE, else the exception's name). If known: job_id, jobs (how
    many were given), queue, worker_id.
    """
    is_slow = 0 < slow <= seconds
    level = logging.WARNING if is_slow else logging.DEBUG
    if not is_enabled(_statements, level):
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
