"""Objects that somebody has planted in the schema public: no script and no statement of goqueue runs them.

The server prefers an operator that takes exactly the given types, wherever it is in the search path. In
`oid <> regrole` or `numeric * interval` its own operator takes other types, so that a planted one replaces it.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from goqueue.migrate import list_migrations, migrate, migrations_dir, undo
from goqueue.postgres.lexemes import split
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
    ("*", "bigint", "real", "double precision"),
    ("/", "bigint", "real", "double precision"),
    ("/", "integer", "real", "double precision"),
    ("+", "integer", "double precision", "double precision"),
    ("=", "numeric", "integer", "boolean"),
    ("<>", "name", "name", "boolean"),
]


def plant(connection: Connection) -> None:
    """Plant the operators and functions for everybody who has public in the search path, which is the default."""
    for number, (operator, left, right, result) in enumerate(OPERATORS):
        text = PLANTED.format(name=f"planted_{number}", operator=operator, left=left, right=right, result=result)
        connection.execute(text.encode())
    connection.execute(
        "CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE plpgsql "
        "AS $$ BEGIN RAISE EXCEPTION 'planted: quote_ident(name)'; END $$"
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
