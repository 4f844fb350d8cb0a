"""What the migrations make of an empty database, and how a live one differs from it.

``python -m goqueue.schema`` writes migrations/schema.json, from an embedded server with all migrations applied. Imports
psycopg and goqueue.queries; for writing goqueue.embedded and goqueue.migrate.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from goqueue.embedded import EmbeddedServer
from goqueue.migrate import migrate
from goqueue.queries import load_queries, shipped_folder

__all__ = ["Difference", "SchemaObject", "compare", "expected_schema", "read_schema", "schema_text"]


class SchemaObject(NamedTuple):
    """One thing in the schema goqueue, as list_schema_objects gives it: a column, an index, a constraint …"""

    kind: str
    name: str
    definition: str
    #: Empty, or what keeps it from working: invalid, disabled, not validated.
    state: str = ""


class Difference(NamedTuple):
    """What the migrations made (None: nothing) and what there is now (None: nothing)."""

    expected: SchemaObject | None
    found: SchemaObject | None


def read_schema(connection: Connection[Any]) -> list[SchemaObject]:
    """What is in the schema goqueue, on a connection in autocommit mode. Query: list_schema_objects."""
    queries = load_queries()
    with connection.transaction(force_rollback=True):
        queries.set_local(connection, name="search_path", value="pg_catalog")
        return sorted(SchemaObject(*row) for row in queries.list_schema_objects(connection))


def expected_schema() -> list[SchemaObject]:
    """What the shipped migrations make, from migrations/schema.json."""
    return [SchemaObject(*row) for row in json.loads(_file().read_text(encoding="utf-8"))]


def compare(expected: list[SchemaObject], found: list[SchemaObject]) -> list[Difference]:
    """All that is missing, changed, not in working order, or there besides."""
    before, now = ({(thing.kind, thing.name): thing for thing in side} for side in (expected, found))
    return [
        Difference(before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def schema_text(connection: Connection[Any]) -> str:
    """migrations/schema.json, of a freshly migrated database: one line a thing, so that changes can be read."""
    lines = (json.dumps(thing[:3], ensure_ascii=False) for thing in read_schema(connection))
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n"


def _file() -> Path:
    return shipped_folder("migrations") / "schema.json"


def main() -> None:
    with EmbeddedServer(durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            text = schema_text(connection)
    if not _file().exists() or _file().read_text(encoding="utf-8") != text:
        _file().write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {_file().name}\n")


if __name__ == "__main__":
    main()
