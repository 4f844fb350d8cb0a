"""What the migrations and roles.sql make of an empty database, and how a live one differs from it.

``python -m goqueue.schema`` writes schema.json and roles/rights.json in migrations/, from an embedded server with all
migrations and then roles.sql applied. Imports psycopg, goqueue.contract, queries and sqlfiles; to write them
goqueue.embedded and migrate.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from goqueue.contract import GenericPlan, generic_plans, shipped_statements
from goqueue.embedded import EmbeddedServer
from goqueue.migrate import migrate
from goqueue.queries import load_queries, read_shipped, shipped_folder
from goqueue.sqlfiles import APART

__all__ = [
    "ROLES",
    "Difference",
    "Right",
    "Rights",
    "SchemaObject",
    "compare",
    "expected_rights",
    "expected_schema",
    "read_rights",
    "read_schema",
    "rights_text",
    "roles_script",
    "schema_text",
]

#: The roles of migrations/roles/roles.sql.
ROLES = ("goqueue_operator", "goqueue_owner", "goqueue_producer", "goqueue_reader", "goqueue_worker")


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


class Right(NamedTuple):
    """One fact about who may do what, as list_rights gives it: an owner, a grant, a policy …"""

    kind: str
    object: str
    role: str
    detail: str


class Rights(NamedTuple):
    """What roles.sql makes: the facts, and for each role the names of the queries that it can run."""

    facts: set[Right]
    queries: dict[str, list[str]]


def read_schema(connection: Connection[Any]) -> list[SchemaObject]:
    """What is in the schema goqueue, on a connection in autocommit mode. Query: list_schema_objects."""
    queries = load_queries()
    with connection.transaction(force_rollback=True):
        _show_whole_names(connection)
        return sorted(SchemaObject(*row) for row in queries.list_schema_objects(connection))


def read_rights(connection: Connection[Any]) -> set[Right]:
    """Who may do what in the schema goqueue, on a connection in autocommit mode. Query: list_rights."""
    queries = load_queries()
    with connection.transaction(force_rollback=True):
        _show_whole_names(connection)
        return {Right(*row) for row in queries.list_rights(connection)}


def _show_whole_names(connection: Connection[Any]) -> None:
    """Make the server write definitions in one way, whatever the database's defaults are. Query: set_local."""
    queries = load_queries()
    queries.set_local(connection, name="search_path", value="pg_catalog")
    queries.set_local(connection, name="quote_all_identifiers", value="off")


def expected_schema() -> list[SchemaObject]:
    """What the shipped migrations make, from migrations/schema.json."""
    return [SchemaObject(*row) for row in json.loads(read_shipped("migrations", "schema.json"))]


def expected_rights() -> Rights:
    """What the shipped roles.sql makes, from migrations/roles/rights.json."""
    document = json.loads(read_shipped("migrations", "roles/rights.json"))
    return Rights({Right(*row) for row in document["rights"]}, document["queries"])


def roles_script() -> Path:
    """The shipped roles.sql."""
    return shipped_folder("migrations") / "roles" / "roles.sql"


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
    return _lines(json.dumps(thing[:3], ensure_ascii=False) for thing in read_schema(connection)) + "\n"


def rights_text(connection: Connection[Any]) -> str:
    """migrations/roles/rights.json, of a database where roles.sql has been run: one line a fact and a role.

    For a superuser, or a member of the roles. Facts about members are the server's own, and are left out.
    """
    # At a rollback psycopg deallocates what it has prepared, and generic_plans' own statement with it.
    connection.prepare_threshold = None
    facts = sorted(fact for fact in read_rights(connection) if fact.kind not in ("member", "exempt", "blind"))
    statements = [one for one in shipped_statements().values() if one.file.name not in APART]
    runnable = {}
    for role in ROLES:
        with connection.transaction(force_rollback=True):
            load_queries().set_local(connection, name="role", value=role)
            plans = generic_plans(connection, statements)
        runnable[role] = [name for name, plan in plans.items() if isinstance(plan, GenericPlan)]
    rights = _lines(json.dumps(fact, ensure_ascii=False) for fact in facts)
    queries = ",\n".join(f"  {json.dumps(role)}: {json.dumps(names)}" for role, names in runnable.items())
    return f'{{"rights": {rights},\n"queries": {{\n{queries}\n}}}}\n'


def _lines(texts: Any) -> str:
    return "[\n" + ",\n".join(f"  {text}" for text in texts) + "\n]"


def _schema_file() -> Path:
    return shipped_folder("migrations") / "schema.json"


def _rights_file() -> Path:
    return shipped_folder("migrations") / "roles" / "rights.json"


def main() -> None:
    with EmbeddedServer(durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            made = {_schema_file(): schema_text(connection)}
            connection.execute(roles_script().read_bytes())
            made[_rights_file()] = rights_text(connection)
    for file, text in made.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {file.name}\n")


if __name__ == "__main__":
    main()
