"""Checks of callers' arguments: the form of a call, names, numbers, times, intervals.

Each check returns exactly the plain type, because msgspec and psycopg write subclasses differently. Examples are
freezegun's and pendulum's times and members of a StrEnum.
"""

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from inspect import Parameter
from operator import index
from typing import Any, Final, TypeVar
from uuid import UUID

from msgspec import StructMeta

from goqueue.errors import InvalidFilterError, InvalidJobError

_make = StructMeta.__call__
Choice = TypeVar("Choice", bound=StrEnum)


class HelpfulMeta(StructMeta):
    """Metaclass of the Structs that callers create: a wrong call raises a TypeError that names the fields."""

    def __call__(cls, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as type's own
        try:
            return _make(cls, *args, **kwargs)
        except TypeError:
            if (said := _said(cls, len(args), kwargs)) is None:
                raise
        finally:
            del args, kwargs  # a traceback that shows local variables must show no password
        raise TypeError(said) from None


def _said(cls: HelpfulMeta, count: int, names: Collection[str]) -> str | None:
    """Return what is wrong with the form of a call and what is right; None if another error reports it."""
    parameters = cls.__signature__.parameters
    fields = ", ".join(parameters)
    positional = [one.name for one in parameters.values() if one.kind is not Parameter.KEYWORD_ONLY]
    if count > len(positional):
        example = next(iter(parameters))
        takes = f"at most {len(positional)} positional arguments" if positional else "keyword arguments only"
        return f"{cls.__name__}() takes {takes}, as in {cls.__name__}({example}=...); its fields are {fields}"
    if unknown := [name for name in names if name not in parameters]:
        name = unknown[0]
        close = [one for one in parameters if name in one] or get_close_matches(name, parameters, n=1, cutoff=0.5)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return f"{cls.__name__}() has no field {name!r}{meant}; its fields are {fields}"
    if missing := [
        one.name
        for one in list(parameters.values())[count:]
        if one.default is Parameter.empty and one.name not in names
    ]:
        return f"{cls.__name__}() needs {' and '.join(missing)}; its fields are {fields}"
    return None


# The table's own limits (its CHECK constraints), checked before a statement is sent.
MAX_NAME_CHARACTERS: Final = 255
MAX_ATTEMPTS: Final = 10_000
MAX_PRIORITY: Final = 32_767
DEFAULT_MAX_ATTEMPTS: Final = 25
DEFAULT_PRIORITY: Final = 0
MAX_PAGE: Final = 1000

# A thousand years: added to any valid time, it stays in Python's range.
MAX_INTERVAL: Final = timedelta(days=365_000)
_ZERO: Final = timedelta(0)


def text_problem(value: str) -> tuple[str, str] | None:
    if "\0" in value:
        return "", f"has a NUL character at position {value.index(chr(0))}, which PostgreSQL can't store"
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        return "", f"has a lone surrogate ({value[exc.start]!a}) at position {exc.start}, which is not valid Unicode"
    return None


def exact_text(value: str) -> str:
    return value if type(value) is str else str.__str__(value)


def check_text(name: str, value: str) -> None:
    """Raise `InvalidJobError` for a text that PostgreSQL can't store: NUL, or a lone surrogate."""
    if (problem := text_problem(value)) is not None:
        raise InvalidJobError(f"{name} {problem[1]}")


def check_name(name: str, value: object) -> str:
    """Return ``value`` if it is a string of 1 to 255 characters that PostgreSQL can store; else raise
    `InvalidJobError`."""
    # The fast path for bulks.
    if type(value) is str and 0 < len(value) <= MAX_NAME_CHARACTERS and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise InvalidJobError(f"{name} must be a string, not {shown(value)}")
    if not 0 < len(value) <= MAX_NAME_CHARACTERS:
        got = "empty" if not value else f"{len(value):,} characters long"
        raise InvalidJobError(f"{name} is {got}; it must have 1 to {MAX_NAME_CHARACTERS} characters")
    check_text(name, value)
    return exact_text(value)


def check_transaction_id(value: object) -> str:
    """Return ``value`` if it is the text of a transaction id (xid8); else raise `InvalidJobError`."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,20}", value) or int(value) >= 2**64:
        raise InvalidJobError(f"transaction_id must come from an OutcomeUnknownError, not {shown(value)}")
    return exact_text(value)


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``; else raise `InvalidJobError`. An IntEnum or
    numpy integer is accepted, a bool is not."""
    number = value if type(value) is int else _exact_integer(value)
    if number is None or not least <= number <= most:
        raise InvalidJobError(f"{name} must be a whole number from {least:,} to {most:,}, not {shown(value)}")
    return number


def _exact_integer(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else int.__add__(index(value), 0)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_time(name: str, value: object) -> datetime:
    """Return ``value`` in UTC, if it is an aware datetime; else raise `InvalidJobError`."""
    if not isinstance(value, datetime):
        raise InvalidJobError(f"{name} must be a datetime, not {shown(value)}")
    try:
        if value.utcoffset() is None:
            raise InvalidJobError(
                f"{name} is {value.isoformat()} without a time zone; give an aware datetime, such as datetime.now(UTC)"
            )
        # In UTC: JSON has no seconds in a time zone's offset, and equal times get the same text.
        return _exact_time(value.astimezone(UTC))
    except OverflowError:
        raise InvalidJobError(f"{name} is {value.isoformat()}, which is beyond the years 1 to 9999 in UTC") from None
    except TypeError:  # pandas' NaT is a datetime without a time
        raise InvalidJobError(f"{name} must be a datetime, not {shown(value)}") from None


def _exact_time(at: datetime) -> datetime:
    # Not `type(at) is datetime`: freezegun replaces that name with its own class.
    if type(at) is type(FIRST_TIME):
        return at
    return FIRST_TIME.replace(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond)


def check_interval(name: str, value: object) -> timedelta:
    """Return ``value`` if it is a timedelta of zero to 365,000 days; else raise `InvalidJobError`."""
    # The base class's addition ignores the attributes that a subclass overrides, as `datetime + value` does.
    exact = timedelta.__add__(_ZERO, value) if isinstance(value, timedelta) else None
    if exact is None or not _ZERO <= exact <= MAX_INTERVAL:
        most = f"{MAX_INTERVAL.days:,} days"
        raise InvalidJobError(f"{name} must be a timedelta of zero or more, at most {most}, not {shown(value)}")
    return exact


def check_kind(name: str, value: object, *kinds: type, secret: bool = False) -> None:
    """Raise `InvalidJobError` unless ``value`` is of one of the kinds. A ``secret`` value is not shown."""
    if not isinstance(value, kinds):
        wanted = " or ".join(f"{'an' if kind.__name__[0] in 'AEIOaeio' else 'a'} {kind.__name__}" for kind in kinds)
        got = full_name(type(value)) if secret and value is not None else shown(value)
        raise InvalidJobError(f"{name} must be {wanted}, not {got}")


def clean_text(value: object, most: int = 10_000) -> str:
    """Return ``value`` as text that PostgreSQL can store, of at most ``most`` characters. Never raise: the text reports
    an error."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - the object's own code can raise anything
        text = f"{type(value).__name__} that can't be shown"
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_job_id(value: object) -> UUID:
    """Return ``value``, a UUID or its text, as a UUID; else raise `InvalidJobError`."""
    if isinstance(value, UUID):
        return value if type(value) is UUID else UUID(int=value.int)
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            pass
    raise InvalidJobError(f"a job id must be a UUID, not {shown(value)}; give a uuid.UUID or its text")


def check_choice(name: str, value: object, choices: type[Choice]) -> Choice:
    """Return ``value``, a member of a StrEnum or its text, as a member; else raise `InvalidJobError`."""
    try:
        return choices(value)  # type: ignore[arg-type]
    except ValueError:
        allowed = ", ".join(choices)
        raise InvalidJobError(f"{name} must be one of {allowed}, not {shown(value)}") from None


def check_several(name: str, value: object, check: Any) -> list[str] | None:
    if value is None:
        return None
    values = [value] if isinstance(value, str) or not isinstance(value, Collection) else list(value)
    if not values:
        raise InvalidFilterError(f"{name} is an empty collection, which no job matches; omit it to match all jobs")
    return sorted({check(item) for item in values})


def check_names(name: str, value: object, item: str = "") -> list[str] | None:
    """Return the sorted names, or None for None. ``item`` is what an error calls one of them, by default ``name``."""
    return check_several(name, value, partial(check_name, item or name))


def shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the object's own code can raise anything
        text = "a value that can't be shown"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({full_name(type(value))})"


def full_name(kind: type) -> str:
    """Return the name of a type, with its module unless it is builtin."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


FIRST_TIME, LAST_TIME = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def check_limit(limit: object) -> int:
    """Return ``limit`` if it is an int from 1 to 1000; else raise `InvalidFilterError`."""
    if (number := _exact_integer(limit)) is None or not 1 <= number <= MAX_PAGE:
        raise InvalidFilterError(f"limit must be a whole number from 1 to {MAX_PAGE:,}, not {shown(limit)}")
    return number
