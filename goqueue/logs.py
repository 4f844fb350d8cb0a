"""The log output of goqueue's programs.

The library itself only logs to loggers below `goqueue`. A program with its own logging needs nothing from here.
"""

import json
import logging
import math
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from goqueue.config import LoggingConfig, format_duration, redact

__all__ = ["JSONFormatter", "TextFormatter", "configure_logging"]

# psycopg logs a pool's connection failures to its own loggers. At info, it also logs each use of a connection: three
# lines for each call.
_LOGGERS = {"goqueue": logging.INFO, "psycopg": logging.WARNING}
_OWN_FIELDS = ("timestamp", "level", "logger", "message", "exception", "stack")
_STANDARD = frozenset([*RESERVED_ATTRS, "taskName"])
# Line breaks, terminal escapes and lone surrogates would forge or break a log line.
_CONTROLS = {
    code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000))
}
_PASSWORD = re.compile("passw(?:or)?d", re.IGNORECASE)
_DEEPEST = 8


class _Handler(logging.StreamHandler[TextIO]):
    """The handler that configure_logging adds. Its type distinguishes it from the program's handlers."""


def configure_logging(config: LoggingConfig, stream: TextIO | None = None) -> None:
    """Write goqueue's and psycopg's records to ``stream`` (None: standard error), one per line.

    Configure the loggers `goqueue` and `psycopg`, not the root logger, which belongs to the program. Their records no
    longer reach the root's handlers, so none is written twice. A later call replaces an earlier one. At the level info,
    only psycopg's warnings and errors are written.
    """
    handler = _Handler(stream)
    handler.setFormatter(JSONFormatter() if config.format == "json" else TextFormatter())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    for name, usual in _LOGGERS.items():
        logger = logging.getLogger(name)
        for old in [old for old in logger.handlers if isinstance(old, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(usual if level == logging.INFO else level)
        logger.propagate = False


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record's fields, ready for JSON and without passwords. The record stays unchanged."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - keep the message; logging would print the arguments unredacted
        message = f"{_text(record.msg)} {_text(record.args)}"
    fields: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": redact(message),
    }
    for key, value in record.__dict__.items():
        if key not in _STANDARD:
            fields[f"{key}_" if key in _OWN_FIELDS else str(key)] = _field(key, value)
    if record.exc_info:
        fields["exception"] = redact("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    elif record.exc_text:
        fields["exception"] = redact(record.exc_text)
    if record.stack_info:
        fields["stack"] = redact(record.stack_info)
    return fields


def _field(key: object, value: object, depth: int = 0) -> Any:
    """Return the value of a field or a mapping's key as JSON can hold it; ``***`` if the key names a password."""
    is_secret = isinstance(value, str | bytes | list | tuple) and _PASSWORD.search(_text(key))
    return "***" if is_secret else _plain(value, depth)


def _plain(value: object, depth: int = 0) -> Any:
    """Return a value as JSON can hold it: a number, text, list or object. Anything else becomes text."""
    # Larger integers become text: few JSON readers keep all their digits.
    integer = type(value) is int and value.bit_length() <= 64
    if value is None or isinstance(value, bool) or integer or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return ("-" if value < timedelta(0) else "") + format_duration(abs(value))
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {_text(key): _field(key, item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value]
    return _text(value)


def _text(value: object) -> str:
    try:
        return redact(str(value))
    except Exception:  # noqa: BLE001 - the object's own code can raise anything
        return f"<{type(value).__name__} that can't be shown>"


class JSONFormatter(JsonFormatter):
    """One JSON object per record: timestamp (UTC, ISO 8601), level, logger, message, the ``extra`` fields, and
    exception and stack if present. An extra field with one of these names gets an underscore suffix."""

    def format(self, record: logging.LogRecord) -> str:
        return self.serialize_log_record(_fields(record))


class TextFormatter(logging.Formatter):
    """One line per record: timestamp, level, logger, message, extra fields as key=value; then an indented exception.

    Messages and fields never start a new line: control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        below = [part for part in (fields.pop("exception", None), fields.pop("stack", None)) if part]
        line = " ".join(_escaped(str(fields.pop(key))) for key in ("timestamp", "level", "logger", "message"))
        line += "".join(f" {_escaped(key)}={_value(value)}" for key, value in fields.items())
        return "\n    ".join([line, *(_escaped(text) for part in below for text in part.split("\n"))])


def _escaped(text: str) -> str:
    return text.translate(_CONTROLS)


def _value(value: Any) -> str:
    """Return an extra field's value: bare if unambiguous, else as JSON."""
    if isinstance(value, str) and value.isprintable() and value and not set(' "=\\') & set(value):
        return value
    return _escaped(json.dumps(value, ensure_ascii=False))
