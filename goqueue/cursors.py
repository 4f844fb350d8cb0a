"""Opaque keyset cursors, each bound to its filter."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from goqueue.errors import InvalidCursorError
from goqueue.validation import FIRST_TIME, LAST_TIME

_ENDLESS: Final[dict[datetime, datetime | str]] = {FIRST_TIME: "-infinity", LAST_TIME: "infinity"}


class _Position(Struct, frozen=True, array_like=True):
    created_at: datetime
    id: UUID
    #: Detects a cursor that was changed or belongs to another filter. It protects no secret.
    digest: bytes


def make_cursor(parameters: Mapping[str, Any], created_at: datetime, job_id: UUID) -> str:
    """Return an opaque cursor: the position to continue from, bound to the filter's ``parameters``."""
    try:  # The cursor must not depend on the session's time zone.
        created_at = created_at.astimezone(UTC)
    except OverflowError:
        created_at = LAST_TIME if created_at.year > 1 else FIRST_TIME
    position = _Position(created_at, job_id, _digest(parameters, created_at, job_id))
    return msgspec.msgpack.encode(position).hex()


def read_cursor(parameters: Mapping[str, Any], cursor: str | None) -> tuple[datetime | str | None, UUID | None]:
    """Return the position in a cursor of the same filter. Raise `InvalidCursorError` for any other.

    Python's first and last times also represent the times beyond its range. They are returned as the server's
    infinities.
    """
    if cursor is None:
        return None, None
    try:
        position = msgspec.msgpack.decode(bytes.fromhex(cursor), type=_Position)
    except (TypeError, ValueError, msgspec.MsgspecError):
        raise InvalidCursorError("the cursor was not returned by list_jobs; start again without one") from None
    if position.digest != _digest(parameters, position.created_at, position.id):
        raise InvalidCursorError(
            "the cursor belongs to another filter or was changed; use it with the filter it came from, "
            "or start again without one"
        )
    return _ENDLESS.get(position.created_at, position.created_at), position.id


def _digest(parameters: Mapping[str, Any], created_at: datetime, job_id: UUID) -> bytes:
    text = msgspec.json.encode([dict(parameters), created_at, job_id])
    return hashlib.blake2b(text, digest_size=8, person=b"goqueue").digest()
