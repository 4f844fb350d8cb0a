"""The SQL files and what is derived from them: names, parameters, results as described by the server, the catalogue."""

import ast
import inspect
import json
import re
from datetime import datetime
from itertools import dropwhile
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import psycopg
import pytest

import goqueue
import goqueue.cli.queries
from goqueue import Job, Listener, PostgresStorage, validation
from goqueue.files import APART, shipped_folder
from goqueue.postgres import cursor, cursor_async, overrides, pool
from goqueue.postgres.admin_queries import AdminQueries
from goqueue.postgres.queries import load_queries
from goqueue.postgres.wire import JobRow
from goqueue.testing import scratch
from goqueue.workbench import behaviour, cases, durability, explain, health, plans, proofs, rights, schema, standby
from goqueue.workbench.notes import read_notes
from tools import catalogue
from tools.catalogue import made_files

QUERIES = load_queries()
NOTES = {note.name: note for note in read_notes()}
STORES = {name: note for name, note in NOTES.items() if note.file not in APART}


def named_in(kind: Any) -> set[Any]:
    """Return the type and all that its arguments name."""
    return {kind}.union(*map(named_in, get_args(kind)))


JOB_QUERIES = [name for name, kind in cursor.Queries.__annotations__.items() if JobRow in named_in(kind)]
RELATIONS = {"goqueue.jobs", "goqueue.job_failures", "goqueue.queue_status_metrics"}
PYTHON_TYPES = {
    "uuid": UUID, "text": str, "job_status": goqueue.JobStatus, "int2": int, "int4": int, "int8": int,
    "timestamptz": datetime,
}  # fmt: skip


def describe(connection: psycopg.Connection[Any], name: str) -> list[tuple[str, str]]:
    """Return the names and types of a query's result columns, as the server describes the prepared statement."""
    numbers: dict[str, int] = {}
    sql = re.sub(
        r"%\((\w+)\)s", lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", getattr(QUERIES, name).sql
    ).replace("%%", "%")
    prepared = connection.pgconn.prepare(b"described", sql.encode())
    assert prepared.status == psycopg.pq.ExecStatus.COMMAND_OK, prepared.error_message.decode()
    result = connection.pgconn.describe_prepared(b"described")
    connection.execute("DEALLOCATE described")
    types = dict(connection.execute("SELECT oid, typname FROM pg_type").fetchall())
    return [((result.fname(column) or b"").decode(), types[result.ftype(column)]) for column in range(result.nfields)]


def test_each_query_is_named_once() -> None:
    names = [
        name
        for file in shipped_folder("sql").glob("*.sql")
        for name in re.findall(r"^-- name: (\w+)", file.read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(names) == sorted(set(names)) == sorted(NOTES)
    assert sorted(name for name in QUERIES.available_queries if not name.endswith("_cursor")) == sorted(NOTES)


@pytest.mark.parametrize("name", STORES)
def test_each_query_is_run_by_the_store(name: str) -> None:
    source = "".join(map(inspect.getsource, (PostgresStorage, Listener, pool)))
    assert f"queries.{name}(" in source or f"self._queries.{name}" in source, (
        f"run {name} in a method of goqueue/postgres/store_async.py, then make catalogue"
    )
    if not name.startswith(
        (
            "find_",
            "create_missing_jobs",
            "estimate_dead_rows",
            "announce_",
            "get_session",
            "delete_failures",
            "listen_",
            "wake_",
        )
    ):
        assert hasattr(PostgresStorage, name), (
            f"add a method {name} to goqueue/postgres/store_async.py, then make catalogue"
        )


@pytest.mark.parametrize("name", sorted(NOTES.keys() - STORES.keys()))
def test_each_other_query_is_run_by_a_command(name: str) -> None:
    modules = (
        health,
        durability,
        standby,
        standby,
        schema,
        rights,
        overrides,
        proofs,
        plans,
        behaviour,
        cases,
        explain,
        scratch,
        catalogue,
        goqueue.cli.queries,
    )
    source = "".join(map(inspect.getsource, modules))
    assert re.search(rf'queries(?:\(\w*\))?\.{name}\(|"{name}"', source), (
        f"{NOTES[name].file}: nothing runs {name}; move it to a file of the store, or run it in goqueue/workbench"
    )


@pytest.mark.parametrize("name", NOTES)
def test_each_parameter_is_cast_in_one_way(name: str) -> None:
    bare = [parameter for parameter, kind in NOTES[name].types.items() if kind == "unknown"]
    assert not bare, f"{NOTES[name].file}, {name}: cast {', '.join(bare)}, as in :id::uuid"
    sql = getattr(QUERIES, name).sql
    for parameter in NOTES[name].parameters:
        casts = re.findall(rf"%\({parameter}\)s(::[a-z_]+(?:\[\])?)?", sql)
        assert len(set(casts)) == 1, f"{parameter} is cast as {casts}"
        assert casts[0], f"{parameter} is not cast"


@pytest.mark.parametrize("name", JOB_QUERIES)
def test_a_jobs_columns_are_the_structs_fields(goqueue_connection: psycopg.Connection[Any], name: str) -> None:
    fields = get_type_hints(Job)
    described = describe(goqueue_connection, name)
    assert [column for column, _ in described] == list(fields) == list(Job.__struct_fields__)
    for column, typname in described:
        if column != "payload":
            kinds = [kind for kind in get_args(fields[column]) or [fields[column]] if kind is not NoneType]
            assert kinds == [PYTHON_TYPES[typname]], column


def test_a_field_can_be_none_where_its_column_can_be_null(goqueue_connection: psycopg.Connection[Any]) -> None:
    nullable = {
        name
        for (name,) in goqueue_connection.execute(
            "SELECT attname FROM pg_attribute "
            "WHERE attrelid = 'goqueue.jobs'::regclass AND attnum > 0 AND NOT attnotnull"
        ).fetchall()
    }
    assert {name for name, hint in get_type_hints(Job).items() if NoneType in get_args(hint)} == nullable


def test_the_structs_fields_are_the_tables_columns(goqueue_connection: psycopg.Connection[Any]) -> None:
    columns = goqueue_connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'goqueue.jobs'::regclass AND attnum > 0 AND NOT attisdropped"
    ).fetchall()
    # created_by decides who sees a job, and is not part of it.
    assert {name for (name,) in columns} == {*Job.__struct_fields__, "created_by"}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("create_job", [("payload", "text"), ("scheduled_at", "timestamptz"), ("created_at", "timestamptz")]),
        ("create_jobs", [("id", "uuid"), ("transaction_id", "text")]),
        ("create_missing_jobs", [("id", "uuid"), ("transaction_id", "text")]),
        ("find_duplicate_jobs", [("id", "uuid"), ("idempotency_key", "text"), ("unique_key", "text")]),
        ("count_jobs", [("job_count", "int8"), ("is_exact", "bool")]),
        ("delete_job", [("transaction_id", "text")]),
        ("delete_jobs", [("id", "uuid"), ("transaction_id", "text")]),
        ("delete_failures", [("lease_token", "int8")]),
        ("complete_jobs", [("id", "uuid")]),
        ("heartbeat_jobs", [("id", "uuid")]),
        ("release_jobs", [("id", "uuid")]),
        ("cancel_jobs", [("id", "uuid")]),
        ("retry_jobs", [("id", "uuid")]),
        ("reschedule_jobs", [("id", "uuid")]),
        ("change_jobs", [("id", "uuid")]),
        ("list_job_types", [("job_type", "text")]),
        ("prune_jobs", [("id", "uuid"), ("refusal", "text")]),
        ("wake_listeners", [("is_sent", "bool")]),
        ("pause_queue", [("queue", "text")]),
        ("resume_queue", [("was_paused", "bool")]),
        ("find_listener_blockers", [("pid", "int4"), ("role_name", "text"), ("application_name", "text")]),
        ("fail_jobs", [("id", "uuid"), ("status", "job_status")]),
        ("rescue_jobs", [("id", "uuid"), ("status", "job_status")]),
    ],
)
def test_other_results(goqueue_connection: psycopg.Connection[Any], name: str, columns: list[tuple[str, str]]) -> None:
    assert describe(goqueue_connection, name) == columns


def test_a_page_is_jobs(goqueue_connection: psycopg.Connection[Any]) -> None:
    assert describe(goqueue_connection, "list_jobs") == describe(goqueue_connection, "get_job")


def test_the_tables_limits_are_those_of_the_validation(goqueue_connection: psycopg.Connection[Any]) -> None:
    checks = dict(
        goqueue_connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'goqueue.jobs'::regclass"
        ).fetchall()
    )
    assert f"<= {validation.MAX_ATTEMPTS}" in checks["jobs_max_attempts_range"]
    for column in ("queue", "job_type", "idempotency_key", "unique_key", "locked_by"):
        assert f"<= {validation.MAX_NAME_CHARACTERS}" in checks[f"jobs_{column}_length"]
    defaults = dict(
        goqueue_connection.execute(
            "SELECT column_name, column_default FROM information_schema.columns WHERE table_name = 'jobs'"
        ).fetchall()
    )
    assert defaults["max_attempts"] == str(validation.DEFAULT_MAX_ATTEMPTS)
    statuses = goqueue_connection.execute("SELECT enum_range(NULL::goqueue.job_status)::text[]").fetchone()
    assert statuses == ([str(status) for status in goqueue.JobStatus],)


def test_every_column_is_named() -> None:
    for name in NOTES:
        assert not re.search(r"(SELECT|RETURNING|,|\w\.)\s*\*(?!/)", getattr(QUERIES, name).sql), f"{name} has a *"


def texts(file: Path) -> list[str]:
    """Return the strings in a Python file, except docstrings."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    docs = {node.value for node in nodes if isinstance(node, ast.Expr)}
    strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))]
    return [str(node.value) for node in strings if node not in docs]


def test_no_sql_text_in_the_package() -> None:
    exempt = {
        "cli/queries.py": "advice, which is shown and never sent",
        "testing/scratch.py": "makes scratch databases",
        "workbench/durability.py": "advice, which is shown and never sent",
        "workbench/explain.py": "puts EXPLAIN in front of a statement",
        "workbench/health.py": "advice, which is shown and never sent",
        "workbench/notes.py": "prints EXPLAIN for psql",
        "workbench/plans.py": "puts EXPLAIN in front of a statement",
        "workbench/proofs.py": "wraps a folder's statement in a function, to ask the server about it",
        "workbench/schema.py": "advice, which is shown and never sent",
        "migrate.py": "pgmigrate's own table",
        "pytest_plugin.py": "makes databases for tests",
    }
    pattern = re.compile(
        r"\b(SELECT .+ FROM|SELECT \w+\(|INSERT INTO|UPDATE \S+ SET|DELETE FROM|EXPLAIN \(|TRUNCATE |LOCK TABLE"
        r"|(CREATE|ALTER|DROP) (DATABASE|EXTENSION|FUNCTION|INDEX|SCHEMA|TABLE|TRIGGER|TYPE|VIEW)\b)",
        re.DOTALL,
    )
    package = Path(goqueue.__file__).parent
    found = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if any(pattern.search(text) for text in texts(file))
    }
    assert found == set(exempt)


def test_generated_files_are_fresh() -> None:
    for path, text in made_files().items():
        assert path.read_text("utf-8") == text, f"{path.name} is stale: make catalogue"


def test_a_catalogue_needs_every_part_of_a_comment(tmp_path: Path) -> None:
    (tmp_path / "jobs.sql").write_text("-- name: quick()$\n-- What for.\n-- Returns: one.\nSELECT 1;\n")
    with pytest.raises(ValueError, match="comment of quick lacks index, locks"):
        read_notes(tmp_path)


@pytest.mark.parametrize("queries", [cursor.Queries, cursor_async.AsyncQueries])
def test_each_query_of_the_store_has_a_type(queries: type) -> None:
    assert queries.__annotations__.keys() == STORES.keys(), (
        "in goqueue/postgres/cursor_async.py (AsyncQueries), add the type of "
        f"{sorted(STORES.keys() - queries.__annotations__.keys())} and remove "
        f"{sorted(queries.__annotations__.keys() - STORES.keys())}; then make catalogue"
    )


def test_each_other_query_has_a_type_for_each_of_its_columns() -> None:
    types = AdminQueries.__annotations__
    others = NOTES.keys() - STORES.keys()
    assert types.keys() == others, (
        "in goqueue/postgres/admin_queries.py, add the type of "
        f"{sorted(others - types.keys())} and remove {sorted(types.keys() - others)}"
    )
    columns = json.loads((shipped_folder("sql") / "columns.json").read_text("utf-8"))
    for name, kind in types.items():
        _, result = get_args(kind)
        rows = [row for row in (*get_args(result), result) if get_origin(row) is tuple]
        if rows:
            assert len(get_args(rows[0])) == len(columns[name]), name
        else:
            assert len(columns[name]) <= 1, name


@pytest.mark.parametrize("name", ["store_async", "new_jobs", "leases", "selection", "claim_positions"])
def test_everything_behind_the_queries_is_typed(name: str) -> None:
    tree = ast.parse((Path(goqueue.__file__).parent / "postgres" / f"{name}.py").read_bytes())
    of_connections = {
        node.slice
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Connection")
    }
    names = {node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"}
    assert names <= of_connections


def test_a_note_has_no_comment_from_within_the_statement() -> None:
    found = 0
    for file in shipped_folder("sql").glob("*.sql"):
        for query in file.read_text("utf-8").split("-- name: ")[1:]:
            note = NOTES[re.split(r"\W", query, maxsplit=1)[0]]
            lines = [line.strip() for line in query.splitlines()[1:]]
            within = [line for line in dropwhile(lambda line: line.startswith("--"), lines) if line.startswith("-- ")]
            found += len(within)
            said = f"{note.purpose} {note.returns} {note.index} {note.locks} {note.notes}"
            assert not [line for line in within if line.removeprefix("-- ") in said], note.name
    assert found > 10


def test_the_public_names_are_all_there() -> None:
    assert sorted(goqueue.__all__) == goqueue.__all__
    for name in goqueue.__all__:
        assert getattr(goqueue, name).__doc__, name


def test_public_methods_say_what_they_run() -> None:
    for name, method in inspect.getmembers(PostgresStorage, inspect.isfunction):
        if not name.startswith("_") and name != "close":
            assert re.search(r"Quer(y|ies): ", inspect.getdoc(method) or ""), (
                f"name its query in the docstring of {name} in goqueue/postgres/store_async.py: Query: {name}."
            )


def test_structs_are_frozen() -> None:
    for kind in vars(goqueue).values():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            assert kind.__struct_config__.frozen, kind
