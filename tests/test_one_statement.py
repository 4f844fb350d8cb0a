"""A query is one statement: every command rejects text with more, or without a query, and never runs it."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from goqueue import ConfigError, NewJob, PostgresStorage
from goqueue.config import DatabaseConfig
from goqueue.files import shipped_folder
from goqueue.postgres.cursor_async import AsyncAdapter
from goqueue.postgres.lexemes import bare, is_single
from goqueue.postgres.overrides import check_overrides
from goqueue.postgres.queries import Statement, load_queries, load_statements
from goqueue.postgres.wire import Rendered
from goqueue.workbench.explain import Explainer
from goqueue.workbench.notes import read_notes
from goqueue.workbench.plans import generic_plans
from goqueue.workbench.proofs import prove_overrides
from tests.commands import Commands

Connection = psycopg.Connection[Any]
Folder = Callable[..., Path]

SHIPPED = shipped_folder("sql")
FOUND_BY_ID = "FROM goqueue.jobs AS j\nWHERE j.id = :id::uuid;"
FINISHES_A_FUNCTION = "CREATE FUNCTION pg_temp.other() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1"

#: Text written after the last word of get_job.
MORE = {
    "a commit and a truncate": "; COMMIT; TRUNCATE goqueue.jobs;",
    "on lines of their own": ";\nCOMMIT;\nTRUNCATE goqueue.jobs;",
    "after a comment to the end of the line": " -- by its id\n; COMMIT; TRUNCATE goqueue.jobs;",
    "before a comment that takes what follows": "; COMMIT; TRUNCATE goqueue.jobs; --",
    "after a comment of several lines": " /*+ ; */ ; COMMIT; TRUNCATE goqueue.jobs;",
    "after a semicolon in a string": " AND 'a;b' <> ''';'; COMMIT; TRUNCATE goqueue.jobs;",
    "after a string with a backslash": r" AND E'\';' <> ''; COMMIT; TRUNCATE goqueue.jobs;",
    "after dollar quotes": " AND $a$;$a$ <> $$;$$; COMMIT; TRUNCATE goqueue.jobs;",
    "the end of a function's body": f"; END; COMMIT; TRUNCATE goqueue.jobs; {FINISHES_A_FUNCTION}",
    "the end of a parenthesis": " ); COMMIT; TRUNCATE goqueue.jobs; SELECT (1",
    "without a transaction": "; TRUNCATE goqueue.jobs;",
    "a prepared statement's end": "; DEALLOCATE ALL; TRUNCATE goqueue.jobs; PREPARE goqueue_check AS SELECT 1;",
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return a function that writes a shipped file, with some text replaced, into a new folder."""

    def write(old: str, new: str, file: str = "jobs.sql", name: str = "tuned") -> Path:
        given = tmp_path / name
        given.mkdir(exist_ok=True)
        text = (SHIPPED / file).read_text("utf-8")
        assert old in text
        (given / file).write_text(text.replace(old, new), "utf-8")
        return given

    return write


@pytest.fixture
def jobs(goqueue_connection: Connection) -> Callable[[], int]:
    """Create two jobs; return a function that counts them."""
    goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('a'), ('b')")

    def count() -> int:
        row = goqueue_connection.execute("SELECT count(*) FROM goqueue.jobs").fetchone()
        assert row is not None
        return int(row[0])

    return count


def refused(url: str, given: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        PostgresStorage.open(DatabaseConfig(url=url, sql_dir=str(given)))
    return "\n".join(caught.value.problems)


# --- more than one statement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_no_command_runs_a_statement_that_follows_a_query(
    goqueue: Commands, folder: Folder, jobs: Callable[[], int], goqueue_database: str, more: str
) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", more))
    checked = goqueue("check", "--sql-dir", given)
    assert checked.code == 3
    assert "query get_job: the server rejects it: " in checked.out
    assert goqueue("explain", "get_job", "--sql-dir", given, "--rows", 1000).code == 2
    assert "more than one statement" in goqueue("explain", "--all", "--sql-dir", given, "--rows", 1000).err
    shown = goqueue("queries", "get_job", "--sql-dir", given)
    assert (shown.code, shown.out) == (2, "")
    assert "get_job is more than one statement, expected one" in shown.err
    assert "the server rejects it" in refused(goqueue_database, given)
    assert jobs() == 2


def test_a_query_of_no_parameters_is_sent_alone_too(
    goqueue_database: str, goqueue_connection: Connection, folder: Folder, jobs: Callable[[], int]
) -> None:
    given = folder("SELECT count(*) >= 0", "TRUNCATE goqueue.jobs;\nSELECT count(*) >= 0", "server.sql")
    with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
        load_queries(given).ping(goqueue_connection)

    async def ping() -> None:
        async with await psycopg.AsyncConnection.connect(goqueue_database, autocommit=True) as connection:
            await load_queries(given, AsyncAdapter).ping(connection)

    with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
        asyncio.run(ping())
    assert jobs() == 2


def run(query: Any, connection: Connection, statement: Statement) -> None:
    if isinstance(rows := query(connection, **dict.fromkeys(statement.parameters)), Iterator):
        list(rows)


def test_every_shipped_query_is_sent_alone(goqueue_connection: Connection, folder: Folder) -> None:
    """With any mark and parameters, the server rejects a second statement and runs neither."""
    for file in ("jobs.sql", "leases.sql", "server.sql", "stats.sql"):
        given = folder(";\n", "; SELECT 1;\n", file, f"more_{file}")
        queries = load_queries(given)
        for name, statement in load_statements(given).items():
            if statement.file.parent == given:
                with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
                    run(getattr(queries, name), goqueue_connection, statement)


def test_explain_prepares_one_statement_at_most(goqueue_connection: Connection, jobs: Callable[[], int]) -> None:
    notes = {note.name: note for note in read_notes()}
    more = msgspec.structs.replace(notes["ping"], statement="SELECT 1; COMMIT; TRUNCATE goqueue.jobs")
    with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
        Explainer(goqueue_connection, {"ping": more}).plan("ping", {}, "generic")
    assert jobs() == 2


def test_the_plan_of_more_than_one_statement_is_not_made(
    goqueue_connection: Connection, jobs: Callable[[], int]
) -> None:
    more = Statement("more", Path("more.sql"), Rendered("SELECT 1; COMMIT; TRUNCATE goqueue.jobs", ()))
    assert generic_plans(goqueue_connection, [more]) == {}
    assert jobs() == 2


@pytest.mark.parametrize(
    "text",
    [
        "SELECT ';'",
        "SELECT 1;",
        "SELECT 1; -- ;",
        "SELECT 1 /* ; /* ; */ ; */ ; /* ; */",
        "SELECT E'\\';', $$;$$, $tag$; $$ ;$tag$, \";\", U&';', 'it''s;'",
        "SELECT a$b$, ';' FROM t AS a$b$",
        "SELECT 1;;",
    ],
)
def test_a_semicolon_in_quotes_or_comments_is_no_second_statement(text: str) -> None:
    assert is_single(text)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1;\n-- x\nSELECT 2;",
        "SELECT '\\'; SELECT 2 --'",
        "SELECT /* /* */ 1 */ 1; SELECT 2",
        "SELECT a$b$; SELECT 2; SELECT $b$",
        "SELECT $$a$$; SELECT $$b$$",
    ],
)
def test_a_second_statement_is_seen(text: str) -> None:
    assert not is_single(text)


def test_comments_and_white_space_are_no_difference_outside_of_quotes() -> None:
    assert bare("SELECT  1 -- one\n, 'a  -- b' /* c */;\n") == "SELECT 1 , 'a  -- b'"
    assert bare("SELECT 'a b'") != bare("SELECT 'a  b'")


# --- not a query at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "COMMIT",
        "ROLLBACK",
        "TRUNCATE goqueue.jobs",
        "DROP TABLE goqueue.jobs",
        "DO $$ BEGIN DELETE FROM goqueue.jobs; END $$",
        'SELECT count(*) >= 0 AS "?column?" INTO goqueue.copy FROM goqueue.jobs',
        "CALL public.wipe(NULL)",
        "EXPLAIN ANALYZE DELETE FROM goqueue.jobs",
        "COPY goqueue.jobs TO STDOUT",
        "SET search_path = public",
        "LOCK TABLE goqueue.jobs",
        "VACUUM goqueue.jobs",
    ],
)
def test_a_command_in_place_of_a_query_is_rejected_and_not_run(
    goqueue_database: str, goqueue_connection: Connection, folder: Folder, jobs: Callable[[], int], command: str
) -> None:
    goqueue_connection.execute(
        'CREATE PROCEDURE public.wipe(INOUT "?column?" boolean) LANGUAGE sql '
        "AS 'DELETE FROM goqueue.jobs; SELECT TRUE'"
    )
    text = (SHIPPED / "server.sql").read_text("utf-8")
    start = text.index("SELECT count(*) >= 0")
    given = folder(text[start : text.index(";", start)], command, "server.sql")
    assert "query ping" in refused(goqueue_database, given)
    assert "query ping" in str(prove_overrides(goqueue_connection, given).problems)
    assert jobs() == 2
    assert goqueue_connection.execute("SELECT to_regclass('goqueue.copy')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("condition", "definition"),
    [
        ("public.spy() > 0", "FUNCTION public.spy()"),
        ("goqueue.spy() > 0", "FUNCTION goqueue.spy()"),
        ("EXISTS (SELECT FROM goqueue.spies AS s WHERE s.spy > 0)", "FUNCTION public.spy()"),
        ("j.id OPERATOR(goqueue.===) j.id", "FUNCTION goqueue.spy(uuid, uuid)"),
    ],
)
def test_planning_runs_no_function_of_others(
    goqueue_connection: Connection, folder: Folder, condition: str, definition: str
) -> None:
    """The planner executes functions declared immutable. This one leaves a lock, which a rollback doesn't release."""
    is_operator = "===" in condition
    body = f"BEGIN PERFORM pg_advisory_lock(77); RETURN {'TRUE' if is_operator else 1}; END"
    kind = "boolean" if is_operator else "integer"
    goqueue_connection.execute(f"CREATE {definition} RETURNS {kind} LANGUAGE plpgsql IMMUTABLE AS '{body}'")
    if is_operator:
        goqueue_connection.execute(
            "CREATE OPERATOR goqueue.=== (FUNCTION = goqueue.spy, LEFTARG = uuid, RIGHTARG = uuid)"
        )
        condition = f"'{'0' * 32}'::uuid OPERATOR(goqueue.===) '{'0' * 32}'::uuid"
    if "spies" in condition:
        goqueue_connection.execute("CREATE VIEW goqueue.spies AS SELECT public.spy() AS spy")
        goqueue_connection.execute("SELECT pg_advisory_unlock_all()")
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", f" AND {condition};"))
    assert check_overrides(goqueue_connection, given) == []
    proof = prove_overrides(goqueue_connection, given)
    assert proof.problems or "its plan is not made" in str(proof.unproved)
    assert goqueue_connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77"
    ).fetchone() == (0,)


def test_planning_writes_nothing(goqueue_connection: Connection) -> None:
    goqueue_connection.execute("CREATE SEQUENCE public.counter")
    goqueue_connection.execute(
        "CREATE FUNCTION public.count_up() RETURNS bigint LANGUAGE plpgsql IMMUTABLE "
        "AS 'BEGIN PERFORM set_config(''transaction_read_only'', ''off'', TRUE); "
        "RETURN nextval(''public.counter''); END'"
    )
    counting = Statement("counting", Path("counting.sql"), Rendered("SELECT public.count_up()", ()))
    [error] = generic_plans(goqueue_connection, [counting]).values()
    assert isinstance(error, psycopg.Error)
    assert "read" in str(error)
    assert goqueue_connection.execute("SELECT is_called FROM public.counter").fetchone() == (False,)


# --- the checked text is the executed text --------------------------------------------------------------------------


def test_a_file_replaced_after_it_was_loaded_is_not_what_is_checked(
    goqueue_connection: Connection, folder: Folder
) -> None:
    given = folder("    j.job_type,", "    j.job_type AS foo,")
    loaded = load_queries(given).get_job.sql
    os.replace(folder("", "", name="good") / "jobs.sql", given / "jobs.sql")
    assert load_queries(given, AsyncAdapter).get_job.sql == loaded
    assert any("column 3 is 'foo text'" in problem for problem in check_overrides(goqueue_connection, given))


def test_the_checked_text_is_the_text_that_runs(folder: Folder) -> None:
    """aiosql drops comments, including some inside quotes that it doesn't know."""
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND $$/* ' */$$ <> 'x' /* y */;"))
    sent = load_queries(given).get_job.sql.replace("%(id)s", "$1")
    assert load_statements(given)["get_job"].text == sent


def test_the_white_space_in_a_string_is_part_of_the_statement(goqueue_connection: Connection, folder: Folder) -> None:
    given = folder("'the lease expired: its", "'the lease expired:  its", "leases.sql")
    assert prove_overrides(goqueue_connection, given).changed == ["rescue_jobs"]


def test_a_comment_that_swallows_the_rest_of_a_line_is_seen(folder: Folder) -> None:
    given = folder("-- noqa: PRS\n        WHERE (SELECT", "-- noqa: PRS WHERE (SELECT")
    assert not load_statements(given)["count_jobs"].same_as(load_statements()["count_jobs"])


@pytest.mark.parametrize("condition", ["j.id = :id::uuid AND j.priority < $2", "j.id::text = $$:id::uuid$$"])
def test_a_different_number_of_parameters_at_the_server_is_reported(
    goqueue_database: str, folder: Folder, condition: str
) -> None:
    given = folder("WHERE j.id = :id::uuid;", f"WHERE {condition};")
    assert "would be sent; write each as :name, and none inside quotes" in refused(goqueue_database, given)


def test_a_semicolon_in_a_string_is_fine(goqueue_database: str, folder: Folder) -> None:
    given = folder(FOUND_BY_ID, FOUND_BY_ID.replace(";", " AND $$;$$ <> 'a;' /* ; */;\n"))
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, sql_dir=str(given))) as store:
        job = store.create_job(NewJob(job_type="t"))
        assert store.get_job(job.id) == job
