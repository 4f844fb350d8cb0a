"""Structs that say how they are made when they are made wrongly, and are made from rows by name. Imports msgspec.

msgspec says of ``NewJob("x")`` only "Extra positional arguments provided".
"""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from inspect import Parameter
from operator import itemgetter
from typing import Any

from msgspec import Struct, StructMeta

__all__ = ["HelpfulMeta", "in_field_order"]

_make = StructMeta.__call__


class HelpfulMeta(StructMeta):
    """The class of a Struct that callers make: a wrong call is a TypeError that names the fields."""

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
    """What is wrong with a call by its form alone, and how it is right; None for what another error says."""
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


_picks: dict[tuple[type, type], Callable[[Any], tuple[Any, ...]]] = {}


def in_field_order(kind: type[Struct], row: Any) -> tuple[Any, ...]:
    """The values of a row, a named tuple, for the fields of a Struct: found by name, in whatever order they stand."""
    key = (kind, type(row))
    pick = _picks.get(key)
    if pick is None:
        pick = _picks[key] = itemgetter(*map(row._fields.index, kind.__struct_fields__))
    return pick(row)
