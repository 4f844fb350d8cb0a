"""Connection strings that no traceback shows. Imports psycopg alone.

pytest (also without ``-l``), rich and the services that collect errors print the local variables of each frame of a
traceback, and so the connection string that psycopg was called with, and its parts.
"""

from typing import Any, TypeVar

import psycopg

__all__ = ["Secret", "connect", "without_frames"]

AnyError = TypeVar("AnyError", bound=BaseException)


class Secret(str):
    """A text whose repr, which is what a traceback shows of a variable, is ``***``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __getitem__(self, index: Any) -> "Secret":  # rich cuts a long text before it takes the repr
        return Secret(super().__getitem__(index))


def without_frames(error: AnyError) -> AnyError:
    """Return the error, and all those that it came from, without the frames that they have passed."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]
    return error


def connect(conninfo: str, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection in autocommit mode. Raises psycopg's own errors, without psycopg's frames."""
    conninfo = Secret(conninfo)
    try:
        return psycopg.connect(conninfo, autocommit=True, **options)
    except BaseException as exc:
        without_frames(exc)
        raise
