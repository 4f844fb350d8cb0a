"""Log calls that never raise. Imports nothing of goqueue.

The library logs after the server has committed. An error in the application's own logging (a record factory, a filter,
a handler) must not hide the result of a statement that has run: the jobs of a claim would be lost to their caller.
"""

import logging
import sys
import traceback
from contextlib import suppress

__all__ = ["log", "record_lost"]

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
