"""Statements, values and rows as they cross the wire, whatever adapters the application has registered."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, Self
from uuid import UUID

import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types.array import register_all_arrays
from psycopg.types.datetime import TimestamptzBinaryLoader
from psycopg.types.string import TextBinaryLoader

from goqueue.errors import StorageError

#: How values are written and read: psycopg's own ways, whatever the application has registered.
ADAPTERS = AdaptersMap(types=psycopg.postgres.types)
psycopg.postgres.register_default_adapters(ADAPTERS)
register_all_arrays(ADAPTERS)
# Results come in the binary format, which takes half the time to read, and the server less to write. That of an enum,
# which psycopg knows nothing of, is its label.
ADAPTERS.register_loader(0, TextBinaryLoader)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def tagged(name: str, sql: str) -> str:
    """The statement with its name behind the first word: pg_stat_statements drops a comment in front of it, and
    pg_stat_activity cuts a long statement's end off. It never varies, so it neither defeats prepared statements nor
    splits statistics."""
    first_word, *rest = sql.split(maxsplit=1)
    if not rest:
        raise ValueError(
            f"query {name} is one word ({sql}), expected SELECT, INSERT, UPDATE or DELETE and what follows"
        )
    return f"{first_word} /* goqueue:{name} */ {rest[0]}"


def tag_of(statement: str) -> str:
    """What `tagged` has put into the comment: ``goqueue:`` and the query's name."""
    return statement.split(maxsplit=3)[2]


# What changes rows: a command, or the call of a function that is named for one. Not the UPDATE of a locking clause.
_WRITES = re.compile(r"(?<!FOR )(?<!KEY )\b(?:INSERT|UPDATE|DELETE|MERGE)(?:\b|_\w+\()", re.IGNORECASE)


class Rendered(str):
    """A statement as aiosql keeps it, with ``%(name)s`` for its parameters, and as it is sent.

    ``names`` are the parameters in the order that the SQL file declares them: ``$1`` is the first of them, wherever it
    stands. Rendered once: psycopg would parse a statement of more than 4,096 characters again at every call, which
    costs more than sending it.
    """

    __slots__ = ("encoded", "names", "text", "writes")

    names: tuple[str, ...]
    #: The statement with ``$1``, ``$2`` …; and as psycopg takes it soonest.
    text: str
    encoded: str | bytes

    #: Whether it changes rows.
    writes: bool

    def __new__(cls, sql: str, names: Sequence[str]) -> Self:
        self = super().__new__(cls, sql)
        self.names = tuple(names)
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.text = re.sub(r"%%|%\((\w+)\)s", lambda found: numbers.get(found[1], found[0]), sql).replace("%%", "%")
        # Bytes are sent as they are; what is not ASCII has to be encoded for the connection.
        self.encoded = self.text.encode() if self.text.isascii() else self.text
        self.writes = _WRITES.search(self.text) is not None
        return self


def bound(connection: Any, statement: Rendered, parameters: Mapping[str, object]) -> list[object]:
    """Return the parameters of a statement in its order, as psycopg takes them soonest.

    `StorageError` for a caller's session whose answers could not be read, before the server does anything.
    """
    # None: a pooler does not tell.
    if connection.pgconn.parameter_status(b"client_encoding") == b"SQL_ASCII":
        raise StorageError("the connection's client_encoding is SQL_ASCII: run `SET client_encoding TO UTF8` on it")
    return [_as_parameter(parameters[name]) for name in statement.names]


def _as_parameter(value: object) -> object:
    """Lists as PostgreSQL reads them: psycopg takes up to seven times as long for them."""
    if type(value) is not list or not value:
        return value
    first = value[0]
    if type(first) is UUID:
        return "{" + ",".join([f"{item.int:032x}" for item in value]) + "}"
    if type(first) is int:
        return "{" + ",".join(map(str, value)) + "}"
    if isinstance(first, str):
        return '{"' + '","'.join([item.replace("\\", r"\\").replace('"', r"\"") for item in value]) + '"}'
    return value


class _EndlessTimes(TimestamptzBinaryLoader):
    """Reads PostgreSQL's infinity, and its years after 9999, as the last time that Python has; likewise the first."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _FIRST if bytes(data)[0] & 0x80 else _LAST  # the sign of its microseconds since 2000


class _Tolerant:
    """A cursor's way to read values (an AdaptContext), but for times."""

    def __init__(self, cursor: Any) -> None:
        self.connection = cursor.connection
        self.adapters = AdaptersMap(cursor.adapters)
        self.adapters.register_loader("timestamptz", _EndlessTimes)


def tolerant_rows(cursor: Any) -> list[tuple[Any, ...]]:
    """All rows of a cursor, for when psycopg can't read them: an infinite time must not make the others unreadable."""
    reader = Transformer(_Tolerant(cursor))
    reader.set_pgresult(cursor.pgresult)
    return reader.load_rows(0, cursor.pgresult.ntuples, cursor.row_factory(cursor))


class Row(Protocol):
    """A named tuple, as every query gives its rows."""

    _fields: tuple[str, ...]

    def __getitem__(self, index: int, /) -> Any: ...


class IdRow(Row, Protocol):
    id: UUID


class AddedRow(IdRow, Protocol):
    #: In the first row of a bulk, if it has begun a transaction.
    transaction_id: str | None


class EndedRow(IdRow, Protocol):
    status: str


class CreatedRow(Row, Protocol):
    payload: str
    scheduled_at: datetime
    created_at: datetime


class JobRow(IdRow, CreatedRow, Protocol):
    """A row with a job's columns."""

    queue: str
    status: str
    lease_token: int


class StatsRow(Row, Protocol):
    queue: str
    exact_statuses: list[str]
    oldest_ready_age: timedelta | None
    expired_leases: int
