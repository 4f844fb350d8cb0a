"""Write migrations/schema.json and migrations/roles/rights.json from an embedded server."""

import json
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from goqueue.files import APART, shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.plans import GenericPlan, generic_plans
from goqueue.workbench.rights import ROLES, read_rights, roles_script
from goqueue.workbench.schema import read_schema


def schema_text(connection: Connection[Any]) -> str:
    """Return migrations/schema.json for a freshly migrated database: one line per object, for readable changes."""
    return _lines(json.dumps(thing[:3], ensure_ascii=False) for thing in read_schema(connection)) + "\n"


def rights_text(connection: Connection[Any]) -> str:
    """Return migrations/roles/rights.json for a database where roles.sql was run: one line per fact and role.

    Needs a superuser or a member of the roles. Facts about members belong to the server, and are omitted.
    """
    # On rollback psycopg deallocates its prepared statements, and with them generic_plans' own.
    connection.prepare_threshold = None
    facts = sorted(fact for fact in read_rights(connection) if fact.kind not in ("member", "exempt", "blind"))
    statements = [one for one in load_statements().values() if one.file.name not in APART]
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
