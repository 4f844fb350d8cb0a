"""Statements, values and rows on the wire, independent of the application's registered adapters."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Protocol, Self
from uuid import UUID

import psycopg
from psycopg.adapt import AdaptersMap, Dumper, Transformer
from psycopg.pq import Format
from psycopg.types.array import register_all_arrays
from psycopg.types.datetime import TimestamptzBinaryLoader
from psycopg.types.string import TextBinaryLoader

from goqueue.errors import StorageError
from goqueue.schemas import DEFAULT_SCHEMA, render

#: psycopg's default adapters for values, without the application's registrations.
ADAPTERS = AdaptersMap(types=psycopg.postgres.types)
psycopg.postgres.register_default_adapters(ADAPTERS)
register_all_arrays(ADAPTERS)
# Results come in binary format, which takes half the time to read and less to write. psycopg doesn't know the enum; its
# binary format is its label.
ADAPTERS.register_loader(0, TextBinaryLoader)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


# The head of an array: dimensions, nulls, type, length, first index. Each value follows its own length.
_ARRAY, _UUID, _UUID_OID = Struct("!iiIii"), b"\0\0\0\x10", 2950


class _Ids(bytes):
    """A binary array of UUIDs. The server takes a fifth of the time that it needs for the text."""


class _IdsDumper(Dumper):
    format, oid = Format.BINARY, 2951

    def dump(self, obj: _Ids) -> bytes:
        return obj


ADAPTERS.register_dumper(_Ids, _IdsDumper)


def tagged(name: str, sql: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Return the statement with its name in a comment after the first word. pg_stat_statements drops a leading comment,
    and pg_stat_activity truncates long statements. The comment never varies, so it neither defeats prepared statements
    nor splits statistics. Here ``schema`` is put into the text too."""
    first_word, *rest = render(sql, schema).split(maxsplit=1)
    if not rest:
        raise ValueError(f"query {name} is one word ({sql}), expected a whole SELECT, INSERT, UPDATE or DELETE")
    where = "" if schema == DEFAULT_SCHEMA else f" in {schema}"
    return f"{first_word} /* goqueue:{name}{where} */ {rest[0]}"


def tag_of(statement: str) -> str:
    """Return the text that `tagged` puts into the comment: ``goqueue:`` and the query's name."""
    return statement.split(maxsplit=3)[2]


# Commands that change rows, or calls of functions named after one. FOR UPDATE is no such command.
_WRITES = re.compile(r"(?<!FOR )(?<!KEY )\b(?:INSERT|UPDATE|DELETE|MERGE)(?:\b|_\w+\()", re.IGNORECASE)


class Rendered(str):
    """A statement as aiosql stores it, with ``%(name)s`` for its parameters, and as it is sent.

    ``names`` are the parameters in the order of the SQL file's declaration: ``$1`` is the first of them, wherever it is
    used. Rendered once: psycopg doesn't cache statements of more than 4,096 characters, and parsing costs more than
    sending.
    """

    __slots__ = ("encoded", "names", "text", "writes")

    names: tuple[str, ...]
    #: The statement with ``$1``, ``$2`` …; and in the form that psycopg processes fastest.
    text: str
    encoded: str | bytes

    #: True if it changes rows.
    writes: bool

    def __new__(cls, sql: str, names: Sequence[str]) -> Self:
        self = super().__new__(cls, sql)
        self.names = tuple(names)
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.text = re.sub(r"%%|%\((\w+)\)s", lambda found: numbers.get(found[1], found[0]), sql).replace("%%", "%")
        # Bytes are sent unchanged. Text that is not ASCII has to be encoded for the connection.
        self.encoded = self.text.encode() if self.text.isascii() else self.text
        self.writes = _WRITES.search(self.text) is not None
        return self


def bound(connection: Any, statement: Rendered, parameters: Mapping[str, object]) -> list[object]:
    """Return the parameters of a statement in its order, in the form that psycopg processes fastest.

    Raise `StorageError` if the session's answers could not be read, before the server executes anything.
    """
    # None: the pooler doesn't report it.
    if connection.pgconn.parameter_status(b"client_encoding") == b"SQL_ASCII":
        raise StorageError("the connection's client_encoding is SQL_ASCII: run `SET client_encoding TO UTF8` on it")
    return [_as_parameter(parameters[name]) for name in statement.names]


def _as_parameter(value: object) -> object:
    """Convert a list to PostgreSQL's binary array of ids, or to its array text: psycopg takes up to seven times as long
    for lists."""
    if type(value) is not list or not value:
        return value
    first = value[0]
    if type(first) is UUID:
        return _Ids(_ARRAY.pack(1, 0, _UUID_OID, len(value), 1) + _UUID + _UUID.join([item.bytes for item in value]))
    if type(first) is int:
        return "{" + ",".join(map(str, value)) + "}"
    if isinstance(first, str):
        return '{"' + '","'.join([item.replace("\\", r"\\").replace('"', r"\"") for item in value]) + '"}'
    return value


class _EndlessTimes(TimestamptzBinaryLoader):
    """Loads times beyond Python's range, such as infinity, as Python's earliest or latest time."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _FIRST if bytes(data)[0] & 0x80 else _LAST  # the sign of its microseconds since 2000


class _Tolerant:
    """An AdaptContext with a cursor's loaders, except for times."""

    def __init__(self, cursor: Any) -> None:
        self.connection = cursor.connection
        self.adapters = AdaptersMap(cursor.adapters)
        self.adapters.register_loader("timestamptz", _EndlessTimes)


def tolerant_rows(cursor: Any) -> list[tuple[Any, ...]]:
    """Return all rows of a cursor that psycopg can't read: one infinite time must not make the others unreadable."""
    reader = Transformer(_Tolerant(cursor))
    reader.set_pgresult(cursor.pgresult)
    return reader.load_rows(0, cursor.pgresult.ntuples, cursor.row_factory(cursor))


class Row(Protocol):
    """A named tuple, the row type of every query."""

    _fields: tuple[str, ...]

    def __getitem__(self, index: int, /) -> Any: ...


class IdRow(Row, Protocol):
    id: UUID


class AddedRow(IdRow, Protocol):
    #: Set in the first row of a bulk that began a transaction.
    transaction_id: str | None


class DeletedRow(IdRow, Protocol):
    transaction_id: str


class KeysRow(IdRow, Protocol):
    idempotency_key: str | None
    unique_key: str | None


class EndedRow(IdRow, Protocol):
    status: str


class CreatedRow(Row, Protocol):
    payload: str
    scheduled_at: datetime
    created_at: datetime


class JobRow(KeysRow, CreatedRow, Protocol):
    """A row with a job's columns."""

    queue: str
    job_type: str
    status: str
    lease_token: int


class StatsRow(Row, Protocol):
    queue: str
    exact_statuses: list[str]
    oldest_ready_age: timedelta | None
    expired_leases: int
    paused_until: datetime | None
