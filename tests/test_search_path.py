"""Objects that somebody has planted in the schema public: no script and no statement of goqueue runs them.

The server prefers an operator that takes exactly the given types, wherever it is in the search path. In
`oid <> regrole` or `numeric * interval` its own operator takes other types, so that a planted one replaces it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import errors

from goqueue import NewJob, PostgresStorage
from goqueue.migrate import list_migrations, migrate, migrations_dir, undo
from goqueue.postgres.lexemes import split
from goqueue.postgres.queries import load_statements
from goqueue.testing.embedded import EmbeddedServer

BASE = migrations_dir()
LATEST = len(list((BASE / "migrations").glob("V*.sql")))
Connection = psycopg.Connection[tuple[object, ...]]

#: Operators that pg_catalog doesn't have, and functions that it has for other types.
PLANTED = """
    CREATE FUNCTION public.{name}({left}, {right}) RETURNS {result} LANGUAGE plpgsql VOLATILE
    AS $$ BEGIN RAISE EXCEPTION 'planted: % {operator} %', '{left}', '{right}'; END $$;
    CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.{name});
"""
OPERATORS = [
    ("<>", "oid", "regrole", "boolean"),
    ("=", "oid", "regrole", "boolean"),
    ("=", "oid", "regclass", "boolean"),
    ("=", "oid", "regnamespace", "boolean"),
    ("*", "numeric", "interval", "interval"),
    ("*", "double precision", "integer", "double precision"),
    ("*", "integer", "double precision", "double precision"),
    ("/", "bigint", "real", "double precision"),
    ("/", "integer", "real", "double precision"),
    ("+", "integer", "double precision", "double precision"),
    ("=", "numeric", "integer", "boolean"),
]

FUNCTIONS = {
    "quote_ident(name)": "text",
    "pg_relation_size(text)": "bigint",
    "unnest(text[])": "SETOF text",
    "unnest(uuid[])": "SETOF uuid",
}


def plant(connection: Connection) -> None:
    """Plant the operators and functions for everybody who has public in the search path, which is the default."""
    for number, (operator, left, right, result) in enumerate(OPERATORS):
        text = PLANTED.format(name=f"planted_{number}", operator=operator, left=left, right=right, result=result)
        connection.execute(text.encode())
    for function, result in FUNCTIONS.items():
        connection.execute(
            f"CREATE FUNCTION public.{function} RETURNS {result} LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE EXCEPTION 'planted: {function}'; END $$".encode()
        )


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A separate server, because roles belong to the server."""
    with EmbeddedServer(durable=False) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE planted")
        with psycopg.connect(server.url("planted"), autocommit=True) as inside:
            plant(inside)
        yield server


@pytest.fixture
def planted(server: EmbeddedServer) -> Iterator[str]:
    """The URL of a database that is not migrated, and has planted operators."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE app TEMPLATE planted")
        yield server.url("app")
        connection.execute("DROP DATABASE app WITH (FORCE)")


#: Objects of goqueue that refer to one outside, such as a view that has a planted operator.
CAUGHT = """
    SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, 0)
    FROM pg_depend AS d
    WHERE d.refclassid IN ('pg_operator'::regclass, 'pg_proc'::regclass)
        AND pg_describe_object(d.refclassid, d.refobjid, 0) LIKE '%public.%'
        AND pg_describe_object(d.classid, d.objid, d.objsubid) LIKE '%goqueue.%'
"""


def caught(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = pg_catalog")
        return connection.execute(CAUGHT).fetchall()


def script(name: str) -> bytes:
    return (BASE / "migrations" / "roles" / name).read_bytes()


def test_an_operator_that_is_planted_replaces_one_that_takes_other_types(planted: str) -> None:
    """The premise of the other tests."""
    with psycopg.connect(planted, autocommit=True) as connection:
        for expression in ("1::oid <> 'pg_monitor'::regrole", "1.0 * interval '1s'", "quote_ident(user)"):
            with pytest.raises(psycopg.errors.RaiseException, match="planted"):
                connection.execute(f"SELECT {expression}".encode())


def test_goqueue_migrates_and_undoes_without_running_planted_objects(planted: str) -> None:
    for version in range(1, LATEST + 1):
        migrate(planted, target=version)
        assert caught(planted) == [], version
    with psycopg.connect(planted) as connection:
        # Each grantee of the column is one row of V0025's query.
        connection.execute("GRANT SELECT (idempotency_key) ON goqueue.jobs TO pg_monitor")
    assert len(list_migrations(planted)) == LATEST
    for version in reversed(range(LATEST)):
        undo(planted, to=version)
        assert version == 0 or caught(planted) == [], version
    migrate(planted)


def test_pgmigrate_runs_no_planted_object(planted: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("pgmigrate"), "migrate", "-c", psycopg.conninfo.make_conninfo(planted)],
        cwd=BASE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert caught(planted) == []


def test_an_online_file_runs_no_planted_object(planted: str) -> None:
    migrate(planted, target=14)
    with psycopg.connect(planted) as connection:
        connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
    for file in sorted((BASE / "migrations" / "online").iterdir()):
        with psycopg.connect(planted, autocommit=True) as connection:  # as psql does
            for statement in split(file.read_text()):
                connection.execute(statement.encode())
        migrate(planted, target=int(file.name[1:5]))
    assert caught(planted) == []


def test_every_undo_file_begins_with_the_search_path() -> None:
    for file in (BASE / "migrations" / "undo").iterdir():
        first = next(line for line in file.read_text().splitlines() if not line.startswith("--"))
        assert first == "SET LOCAL search_path = pg_catalog, pg_temp;", file.name


def test_an_undo_file_run_by_psql_runs_no_planted_object(planted: str) -> None:
    migrate(planted)
    for file in sorted((BASE / "migrations" / "undo").iterdir(), reverse=True):
        with psycopg.connect(planted) as connection:
            connection.execute(file.read_bytes())
        assert caught(planted) == [], file.name


def test_the_scripts_of_the_roles_run_no_planted_object(planted: str) -> None:
    migrate(planted)
    with psycopg.connect(planted, autocommit=True) as connection:
        for name in ("roles.sql", "roles.sql", "drop_roles.sql", "drop_roles.sql"):
            connection.execute(script(name))
    assert caught(planted) == []


# --- the statements, on a connection with public in its search path ---------------------------------------------------

TOKEN = re.compile(r'[{}()]|"(?:\\.|[^"\\])*"|(?:\\.|[^\s{}()"\\])+')
#: The field with the kind of a conversion; 2 is an implicit one.
CONVERSIONS = {
    "FUNCEXPR": "funcformat",
    "RELABELTYPE": "relabelformat",
    "COERCEVIAIO": "coerceformat",
    "ARRAYCOERCEEXPR": "coerceformat",
}
#: The field with the operator or function, and its type.
CALLS = {
    "OPEXPR": ("opno", "regoperator"),
    "DISTINCTEXPR": ("opno", "regoperator"),
    "NULLIFEXPR": ("opno", "regoperator"),
    "SCALARARRAYOPEXPR": ("opno", "regoperator"),
    "FUNCEXPR": ("funcid", "regprocedure"),
    "AGGREF": ("aggfnoid", "regprocedure"),
    "WINDOWFUNC": ("winfnoid", "regprocedure"),
}
#: These run on scratch databases, or set the search path before.
EXEMPT_FILES = {"behaviour.sql", "seed.sql"}
EXEMPT = {"list_schema_objects", "list_rights", "measure_claim_index"}
#: Statements that a function can't contain have no operator. The others need an extension.
UNREADABLE = {"listen", "listen_cancelled", "statement_times"}


class Node(NamedTuple):
    """A node of a query tree, which the server writes as {NAME :field value :field (value value)}."""

    name: str
    fields: dict[str, list[Any]]

    @property
    def is_implicit_conversion(self) -> bool:
        return self.fields.get(CONVERSIONS.get(self.name, "")) == ["2"]

    @property
    def arguments(self) -> list["Node"]:
        given = [one for one in self.fields["args"][0] if isinstance(one, Node)]
        return [one.fields["expr"][0] if one.name == "TARGETENTRY" else one for one in given]


def nodes(tree: str) -> list[Node]:
    """Return all nodes of a query tree."""
    found: list[Node] = []

    def value(token: str) -> Any:
        if token == "(":
            return [value(inner) for inner in iter(lambda: next(tokens), ")")]
        if token != "{":
            return token
        node, field = Node(next(tokens), {}), list[Any]()
        for inner in iter(lambda: next(tokens), "}"):
            if inner.startswith(":"):
                field = node.fields.setdefault(inner[1:], [])
            else:
                field.append(value(inner))
        found.append(node)
        return node

    tokens = iter(TOKEN.findall(tree))
    for token in tokens:
        value(token)
    return found


def replaceable(connection: Connection, arguments: str, result: str, body: str) -> list[str]:
    """Return the operators and functions in a statement for which the server would prefer one that takes exactly the
    given types: it converts arguments, or is for all types. Comparing the type job_status is safe, because only who can
    use this type can create an operator for it."""

    def ask(query: str) -> str:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return str(row[0])

    found = set()
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL search_path = pg_catalog")
        connection.execute(
            f"CREATE FUNCTION pg_temp.examined({arguments}) RETURNS {result} LANGUAGE sql "
            f"BEGIN ATOMIC {body}\n; END".encode()
        )
        for node in nodes(ask("SELECT prosqlbody FROM pg_proc WHERE proname = 'examined'")):
            if node.name not in CALLS or (node.name == "FUNCEXPR" and node.fields["funcformat"] != ["0"]):
                continue
            field, kind = CALLS[node.name]
            call = ask(f"SELECT {node.fields[field][0]}::oid::{kind}")
            converts = any(argument.is_implicit_conversion for argument in node.arguments)
            if (converts or re.search(r"any(?!enum)", call.partition("(")[2])) and not is_qualified(call, body):
                found.add(call)
    return sorted(found)


def is_qualified(call: str, body: str) -> bool:
    """Return True if the text names the function with its schema. unnest with several arguments is syntax."""
    name = call.partition("(")[0]
    unqualified = rf"(?<![\w.]){name}\(" + r"(?![^()]*,)" * (name == "unnest")
    return name.isidentifier() and not re.search(unqualified, body)


def test_no_operator_or_function_of_a_statement_can_be_replaced(goqueue_database: str) -> None:
    """If one is found here, cast its arguments to the types that it takes, or name its schema."""
    found, unreadable = {}, set()
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        for name, statement in load_statements().items():
            if statement.file.name in EXEMPT_FILES or name in EXEMPT:
                continue
            try:
                connection.pgconn.prepare(b"", statement.text.encode())
                described = connection.pgconn.describe_prepared(b"")
                kinds = [described.param_type(number) for number in range(described.nparams)]
                [types] = connection.execute(
                    "SELECT string_agg(format_type(t, NULL), ', ' ORDER BY n) "
                    "FROM unnest(%s::bigint[]) WITH ORDINALITY AS u (t, n)", [kinds],
                ).fetchall()  # fmt: skip
                found[name] = replaceable(connection, str(types[0] or ""), "void", statement.text)
            except (errors.FeatureNotSupported, errors.UndefinedTable, errors.UndefinedFunction):
                unreadable.add(name)
        # A function with a search_path of its own finds nothing that is planted. test_add_job.py and
        # test_notifications.py test those in PL/pgSQL.
        for name, arguments, result, body in connection.execute(
            "SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.prosrc "
            "FROM pg_proc AS p INNER JOIN pg_language AS l ON l.oid = p.prolang "
            "WHERE p.pronamespace = 'goqueue'::regnamespace AND l.lanname = 'sql' AND p.proconfig IS NULL"
        ).fetchall():
            found[str(name)] = replaceable(connection, str(arguments), str(result), str(body))
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert {"claim_jobs", "new_jobs", "pending_lanes", "finished_lanes"} <= found.keys()
    assert unreadable == UNREADABLE


def test_no_text_literal_is_given_for_a_regclass() -> None:
    """A function of the same name that takes text would be preferred, such as pg_relation_size(text)."""
    literal = r"(?<!to_regclass)\('goqueue\.(?!notify)\w+'(?!::)"
    found = {name for name, statement in load_statements().items() if re.search(literal, statement.text)}
    assert found <= EXEMPT


def test_a_callers_connection_runs_no_planted_operator(goqueue_database: str) -> None:
    hour = timedelta(hours=1)
    with psycopg.connect(goqueue_database, autocommit=True) as connection:
        plant(connection)
        store = PostgresStorage.bound_to(connection)
        store.create_job(NewJob(job_type="t"))
        store.create_job(NewJob(job_type="t", delay=hour))
        [(later, _)] = store.create_jobs([NewJob(job_type="t", delay=hour)])
        assert store.reschedule_jobs([later], delay=timedelta(0)) == 1
        claimed = store.claim_jobs("default", "w", limit=2, lease=hour)
        assert len(claimed) == 2
        store.heartbeat_jobs(claimed, lease=hour)
        store.release_jobs(claimed[:1], delay=hour)
        store.fail_jobs([(claimed[1], "e")])
        assert store.count_jobs() == 3
        assert store.prune_jobs(hour) == 0
        assert len(store.queue_stats()) == 1
