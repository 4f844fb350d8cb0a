"""The schema: as the migrations create it, and a database's differences. Nothing is changed.

The statements here are advice that is shown and never executed.
"""

import hashlib
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import Connection

from goqueue.files import read_shipped, run_command, shipped_folder
from goqueue.migrate import migration_files
from goqueue.postgres.admin_queries import admin_queries
from goqueue.schemas import DEFAULT_SCHEMA, render
from goqueue.workbench.findings import Check, Finding, Level, ended


class SchemaObject(NamedTuple):
    """One object in the schema goqueue, from list_schema_objects: a column, an index, a constraint …"""

    kind: str
    name: str
    definition: str
    #: Empty, or the reason why it doesn't work: invalid, disabled, not validated.
    state: str = ""


class Difference(NamedTuple):
    """The object that the migrations created (None: nothing) and the present one (None: nothing)."""

    expected: SchemaObject | None
    found: SchemaObject | None


def read_schema(connection: Connection[Any], schema: str = DEFAULT_SCHEMA) -> list[SchemaObject]:
    """Return the objects in the schema, on a connection in autocommit mode. Query: list_schema_objects."""
    queries = admin_queries(schema)
    with connection.transaction(force_rollback=True):
        show_whole_names(connection)
        return sorted(SchemaObject(*row) for row in queries.list_schema_objects(connection))


def show_whole_names(connection: Connection[Any]) -> None:
    """Make the server's definitions independent of the database's defaults. Query: set_local."""
    queries = admin_queries()
    queries.set_local(connection, name="search_path", value="pg_catalog")
    queries.set_local(connection, name="quote_all_identifiers", value="off")


def expected_schema(schema: str = DEFAULT_SCHEMA) -> list[SchemaObject]:
    """Return the objects that the shipped migrations create, from migrations/schema.json."""
    recorded = json.loads(render(read_shipped("migrations", "schema.json"), schema))
    return [_in_schema(SchemaObject(*row), schema) for row in recorded]


def _in_schema(thing: SchemaObject, schema: str) -> SchemaObject:
    """Return a recorded object with the checksum of its body, if it is a function, as that schema has it."""
    if thing.kind != "function" or schema == DEFAULT_SCHEMA:
        return thing
    file, first, last = _source("FUNCTION", thing.name.partition("(")[0])
    source = "\n".join(Path(file).read_text(encoding="utf-8").splitlines()[first - 1 : last])
    body = render(source.split("$$")[1], schema).encode()
    checksum = hashlib.md5(body, usedforsecurity=False).hexdigest()  # the server's function
    return thing._replace(definition=re.sub("body [0-9a-f]+", f"body {checksum}", thing.definition))


def compare(expected: list[SchemaObject], found: list[SchemaObject]) -> list[Difference]:
    """Return the objects that are missing, changed, not working, or additional."""
    before, now = ({(thing.kind, thing.name): thing for thing in side} for side in (expected, found))
    return [
        Difference(before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


_WHY = {
    "table": "statements read and write it; a crash empties an unlogged table",
    "view": "queue_stats and the metrics exporters read it",
    "column": "statements name it, and the store reads its values by their type",
    "default": "manually inserted rows get another value, or none",
    "constraint": "rows can be stored that the statements consider impossible",
    "index": "the statements that need it read the whole table, or a key is no longer unique",
    "function": "defaults and triggers call it",
    "trigger": "a new job doesn't wake idle workers: they find it at their next poll",
    "type": "statements name its values",
    "setting": "vacuum and fill factor were tuned for a queue; your own value is fine",
}

_WHY_INDEX = {
    "jobs_claim_idx": "every claim reads the whole table, including finished jobs, instead of the next jobs",
    "jobs_idempotency_key_idx": "two jobs can have the same idempotency key, and a lookup by key reads the whole table",
    "jobs_unique_key_idx": "two unfinished jobs can have one unique key, and a lookup by key reads the whole table",
}

#: The kinds in order of dependency.
_ORDER = ("type", "table", "column", "function", "constraint", "index", "default", "trigger", "view", "setting")

#: The tables that hold jobs.
_TABLES = ("jobs", "job_failures")
_LEVELS = {"default": Level.WARNING, "trigger": Level.WARNING, "setting": Level.NOTE}


def check_schema(connection: Connection[Any], database: str, *, has_roles: bool, schema: str = DEFAULT_SCHEMA) -> Check:
    """Compare the schema with that of the migrations. Query: list_schema_objects.

    An entirely different schema is one finding. A difference is reported together with its consequences.
    """
    expected, found = expected_schema(schema), read_schema(connection, schema)
    # If roles.sql was run, the check roles compares the policies.
    differences = [one for one in compare(expected, found) if not (has_roles and _either(one).kind == "policy")]
    changed = [one for one in differences if one.expected is not None]
    summary = f"{len(found)} objects compared with those of the migrations"
    if foreign := _another_schema(expected, found):
        return ended("schema", summary, [_wrong_schema(database, foreign)])
    causes, consequences = _sorted_out(changed)
    causes.sort(key=lambda one: _place(_either(one)))
    findings = [_difference(one, consequences[_either(one)], found) for one in causes]
    added = [one.found for one in differences if one.expected is None and one.found is not None]
    tables = {thing.name for thing in added if thing.kind == "table"}
    findings += [_addition(thing) for thing in added if _table_of(thing) not in tables]
    return ended("schema", summary, findings)


def _either(difference: Difference) -> SchemaObject:
    thing = difference.expected or difference.found
    assert thing is not None  # noqa: S101 - a difference has two sides
    return thing


def _another_schema(expected: list[SchemaObject], found: list[SchemaObject]) -> list[str]:
    """Return the signs of a different schema: a table of our name with other columns, or none of our tables."""
    ours, theirs = _columns(expected), _columns(found)
    present = {thing.name for thing in found if thing.kind == "table"}
    foreign = {
        table: len(ours[table] & theirs[table])
        for table in _TABLES
        if len(ours[table] & theirs[table]) * 2 < len(ours[table])
    }
    if not (foreign.keys() & present or len(foreign) == len(_TABLES)):
        return []
    return [
        f"{table} has {count} of its {len(ours[table])} columns" if table in present else f"{table} is missing"
        for table, count in foreign.items()
    ]


def _columns(things: Iterable[SchemaObject]) -> dict[str, set[str]]:
    columns: dict[str, set[str]] = defaultdict(set)
    for thing in things:
        if thing.kind == "column":
            table, _, column = thing.name.partition(".")
            columns[table].add(column)
    return columns


def _wrong_schema(database: str, foreign: list[str]) -> Finding:
    return Finding(
        Level.FAILED,
        f"the schema goqueue in the database {database} differs from that of the migrations: {'; '.join(foreign)}",
        "goqueue.schema_version records migrations: this is another application's schema, or a partly restored one",
        "check with `goqueue config` that this is the right database; if so, restore the schema goqueue from a backup",
    )


def _sorted_out(changed: list[Difference]) -> tuple[list[Difference], dict[SchemaObject, list[SchemaObject]]]:
    """Return the differences that are not consequences of others, and the consequences of each.

    An object of a missing table, column or type is missing with it; a primary key's index is missing with the key.
    """
    lost = [_either(one) for one in changed if one.found is None or _either(one).kind == "constraint"]
    causes: list[Difference] = []
    consequences: dict[SchemaObject, list[SchemaObject]] = defaultdict(list)
    for one in changed:
        thing = _either(one)
        for cause in lost:
            if cause is not thing and _follows(thing, cause, one.found):
                consequences[cause].append(thing)
                break
        else:
            causes.append(one)
    return causes, consequences


def _follows(thing: SchemaObject, cause: SchemaObject, found: SchemaObject | None) -> bool:
    table = _table_of(thing)
    match cause.kind:
        case "table":
            return table == cause.name
        case "column":
            owner, _, column = cause.name.partition(".")
            names = rf"\b{column}\b"
            return table == owner and (
                thing.name == cause.name or (found is None and bool(re.search(names, thing.definition)))
            )
        case "type":
            kind = thing.definition.partition(".")[2]
            return found is None and thing.kind == "column" and kind.startswith(cause.name)
        case "constraint":
            return thing.kind == "index" and cause.name.partition(".")[2] == thing.name
        case _:
            return False


def _table_of(thing: SchemaObject) -> str:
    """Return the table that an object belongs to; empty for an independent object."""
    if thing.kind == "index":
        return thing.definition.partition(" ON ")[2].partition(" ")[0].partition(".")[2]
    return thing.name.partition(".")[0] if "." in thing.name else ""


def _noun(thing: SchemaObject) -> str:
    return thing.definition.removeprefix("unlogged ") if thing.kind == "table" else thing.kind


def _difference(difference: Difference, consequences: list[SchemaObject], things: list[SchemaObject]) -> Finding:
    expected, found = difference
    assert expected is not None  # noqa: S101 - additions have their own function
    kind = _noun(expected)
    what, level = f"the {kind} {expected.name}", _LEVELS.get(expected.kind, Level.FAILED)
    why = _WHY_INDEX.get(expected.name, _WHY.get(kind, ""))
    do = _repair(expected, found, things)
    wanted = _short(expected.definition)
    if found is None:
        lost = ", ".join(f"{_noun(thing)} {thing.name}" for thing in consequences if thing.kind != "setting")
        also = f"; with it {_short(lost)}" if lost and expected.kind != "table" else ""
        return Finding(level, f"{what} is missing; expected {wanted}{also}", why, do)
    if found.definition != expected.definition:
        return Finding(level, f"{what} is {_short(found.definition)}; expected {wanted}", why, do)
    return Finding(Level.WARNING if found.state != "invalid" else level, f"{what} is {found.state}", why, do)


def _addition(found: SchemaObject) -> Finding:
    state = f" ({found.state})" if found.state else ""
    text = f"the {_noun(found)} {found.name} is not goqueue's{state}: {_short(found.definition)}"
    view, _, setting = found.name.partition(".")
    if (
        found.kind == "setting"
        and setting == "security_invoker"
        and found.definition not in ("off", "false", "0", "no")
    ):
        why = "it reads with the reader's rights: roles need rights on jobs, and producers see only their own"
        return Finding(Level.WARNING, text, why, f"ALTER VIEW goqueue.{view} RESET (security_invoker);")
    if found.kind == "index" and found.state == "invalid":
        why = "every write updates it, and no statement reads it: CREATE INDEX or REINDEX CONCURRENTLY was interrupted"
        return Finding(Level.WARNING, text, why, f"DROP INDEX CONCURRENTLY goqueue.{found.name};")
    return Finding(Level.NOTE, text)


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:159] + "…"


def _repair(expected: SchemaObject, found: SchemaObject | None, things: list[SchemaObject]) -> str:  # noqa: C901, PLR0911, PLR0912 - a table
    """Return the statement that repairs it without a long lock, or advice if data could be lost."""
    table, _, name = expected.name.rpartition(".")
    definition = expected.definition
    match expected.kind:
        case "index":
            return _repair_index(expected, found, things)
        case "constraint":
            return _repair_constraint(table, name, definition, found)
        case "trigger":
            if found and found.definition == definition:
                return f"ALTER TABLE goqueue.{table} ENABLE TRIGGER {name};"
            return f"{definition.replace('CREATE ', 'CREATE OR REPLACE ', 1) if found else definition};"
        case "default":
            return f"ALTER TABLE goqueue.{table} ALTER COLUMN {name} SET DEFAULT {definition};"
        case "setting":
            return f"ALTER TABLE goqueue.{table} SET ({name} = {definition});"
        case "function":
            return _from_migration("FUNCTION", expected.name.partition("(")[0], replace=found is not None)
        case "table" if found and found.definition == f"unlogged {definition}":
            return f"ALTER TABLE goqueue.{name} SET LOGGED;"
        case "table" if definition == "view":
            return (
                f"{_from_migration('VIEW', name)}   (then its grants, where roles.sql was run: "
                f"{run_command('roles.sql')})"
            )
        case "table":
            return (
                f"restore it from a backup; without its rows: {_from_migration('TABLE', name)}   (then the rest of it, "
                f"which this check will name, and its grants, where roles.sql was run: {run_command('roles.sql')})"
            )
        case "column" if SchemaObject("table", table, "view") in things:
            return f"DROP VIEW goqueue.{table}; {_from_migration('VIEW', table)}"
        case "column" if not found:
            default = [
                f" DEFAULT {one.definition}" for one in expected_schema() if one[:2] == ("default", expected.name)
            ]
            return (
                f"compare it with its definition in {_migrations()} (search for {name}); without its values: "
                f"ALTER TABLE goqueue.{table} ADD COLUMN {name} {definition}{''.join(default)};"
            )
        case _:
            return f"compare it with its definition in {_migrations()} (search for {name})"


def _migrations() -> str:
    return shlex.quote(str(shipped_folder("migrations")))


def _repair_index(expected: SchemaObject, found: SchemaObject | None, things: list[SchemaObject]) -> str:
    name, create = expected.name, expected.definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
    if found and found.definition == expected.definition:
        return f"REINDEX INDEX CONCURRENTLY goqueue.{name};"
    if not found:
        for thing in things:
            if (
                thing.kind == "index"
                and thing.definition.replace(f" {thing.name} ", f" {name} ", 1) == expected.definition
            ):
                return f"ALTER INDEX goqueue.{thing.name} RENAME TO {name};"
        return f"{create};"
    # The old index serves until the new one is ready.
    create = create.replace(f" {name} ", f" {name}_new ", 1)
    return (
        f"{create}; BEGIN; ALTER INDEX goqueue.{name} RENAME TO {name}_old; "
        f"ALTER INDEX goqueue.{name}_new RENAME TO {name}; COMMIT; DROP INDEX CONCURRENTLY goqueue.{name}_old;"
    )


def _repair_constraint(table: str, name: str, definition: str, found: SchemaObject | None) -> str:
    alter = f"ALTER TABLE goqueue.{table}"
    if found and found.definition == definition:
        return f"{alter} VALIDATE CONSTRAINT {name};"
    drop = f"DROP CONSTRAINT {name}, " if found else ""
    if definition.startswith("PRIMARY KEY"):
        index = next(one.definition for one in expected_schema() if one[:2] == ("index", name))
        create = index.replace(" INDEX ", " INDEX CONCURRENTLY ", 1).replace(f" {name} ", f" {name}_new ", 1)
        # The constraint renames the index to its own name.
        return f"{create}; {alter} {drop}ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}_new;"
    # Validated in a second step, which allows writes.
    return f"{alter} {drop}ADD CONSTRAINT {name} {definition} NOT VALID; {alter} VALIDATE CONSTRAINT {name};"


class _Source(NamedTuple):
    """The lines of a migration that create an object, counted from one."""

    file: str
    first: int
    last: int


def _place(thing: SchemaObject) -> tuple[int, str, int]:
    """Return its place in the findings: dependencies first, and a view after those that it reads."""
    noun = _noun(thing)
    file, line, _ = _source("VIEW", thing.name) if noun == "view" else ("", 0, 0)
    return _ORDER.index(noun), file, line


def _from_migration(kind: str, name: str, *, replace: bool = False) -> str:
    """Return the command that repeats a statement of the migrations that is too long to be shown."""
    source = _source(kind, name)
    lines = f"{source.first},{source.last}"
    script = f"{lines}{{s/^CREATE {kind}/CREATE OR REPLACE {kind}/;p;}}" if replace else f"{lines}p"
    return f"sed -n '{script}' {shlex.quote(source.file)} | psql -v ON_ERROR_STOP=1"


def _source(kind: str, name: str) -> _Source:
    """Return the last statement of the migrations that creates the object."""
    folder = shipped_folder("migrations")
    head = re.compile(rf"CREATE (OR REPLACE )?{kind} goqueue\.{name}\b")
    for migration in reversed(migration_files(folder)):
        lines = (folder / migration.name).read_text(encoding="utf-8").splitlines()
        for first in (number for number, line in enumerate(lines) if head.match(line)):
            return _Source(str(folder / migration.name), first + 1, first + 1 + _length(lines[first:]))
    raise AssertionError(f"no migration creates the {kind} {name}")  # schema.json is made from them


def _length(lines: list[str]) -> int:
    """Count a statement's lines."""
    quotes = 0
    for number, line in enumerate(lines):
        quotes += line.count("$$")
        if quotes % 2 == 0 and line.rstrip().endswith(";"):
            return number
    return len(lines) - 1
