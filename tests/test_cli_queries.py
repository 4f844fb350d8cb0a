"""`goqueue queries`: the catalogue, the text for psql, and the server's statistics of each query."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from goqueue import JobFilter, NewJob, PostgresStorage, cli
from goqueue.files import shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_queries
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.notes import psql_text, read_columns, read_notes
from tools.catalogue import describe_columns

NOTES = {note.name: note for note in read_notes()}
COLUMNS = read_columns()
OF_EXTENSIONS = {"statement_times", "measure_claim_index"}


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("GOQUEUE_", "PG")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str, url: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["goqueue", "queries", *arguments])
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", url)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def counted() -> Iterator[str]:
    """The URL of a migrated database on a server that loads pg_stat_statements at its start."""
    with EmbeddedServer(settings={"shared_preload_libraries": "pg_stat_statements"}, durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
            connection.execute("CREATE EXTENSION pgstattuple")
        yield server.url()


def psql(url: str, text: str) -> str:
    done = subprocess.run(
        [EmbeddedServer().bin("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"psql rejects a printed query, or an example value (_EXAMPLES in goqueue/workbench/notes.py): {done.stderr}"
    )
    return done.stdout


def call_of(name: str) -> str:
    """Return the call in the comment below the query."""
    [call] = re.findall(rf"^-- (EXECUTE {name}\b.*;)$", psql_text(NOTES[name], COLUMNS), re.MULTILINE)
    return str(call)


class TestTheCatalogue:
    def test_it_shows_every_part_of_every_query_without_a_server(self, run: Callable[..., Result]) -> None:
        result = run(url="postgresql://nowhere.invalid/")
        assert (result.code, result.err) == (0, "")
        words = " ".join(result.out.split())
        for note in NOTES.values():
            assert re.search(rf"^{note.name}$", result.out, re.MULTILINE)
            for text in (note.purpose, note.returns, note.index, note.locks, note.notes):
                assert " ".join(text.split()) in words, note.name
        assert all(len(line) <= 80 for line in result.out.splitlines())
        assert "parameters ids uuid[], tokens bigint[], lease interval" in words
        assert "columns job_count bigint, is_exact boolean" in words

    def test_json_has_one_object_per_query(self, run: Callable[..., Result]) -> None:
        said = json.loads(run("--json").out)
        assert [query["name"] for query in said] == list(NOTES)
        [count_jobs] = [query for query in said if query["name"] == "count_jobs"]
        assert count_jobs["columns"] == [
            {"name": "job_count", "type": "bigint"},
            {"name": "is_exact", "type": "boolean"},
        ]
        assert count_jobs["parameters"]["created_from"] == "timestamptz"
        assert json.loads(run("count_jobs", "--json").out) == count_jobs

    def test_an_unknown_name_or_folder_ends_with_2(self, run: Callable[..., Result]) -> None:
        unknown = run("get_jib")
        assert (unknown.code, unknown.out) == (2, "")
        assert "'get_jib': did you mean get_job" in unknown.err
        assert run("--sql-dir", "nowhere").code == 2
        Path("jobs.sql").write_text("-- name: get_job(id)\n-- Mine.\nSELECT :id;\n")
        incomplete = run("get_job", "--sql-dir", ".")
        assert incomplete.code == 2
        assert "jobs.sql: the comment of get_job lacks returns, index, locks" in incomplete.err

    def test_a_folder_of_files_overrides_the_shipped_queries(self, run: Callable[..., Result]) -> None:
        text = (shipped_folder("sql") / "server.sql").read_text("utf-8")
        Path("server.sql").write_text(text.replace("SELECT count(*) >= 0", "SELECT count(*) <= 0"))
        assert "SELECT /* goqueue:ping */ count(*) <= 0" in run("ping", "--sql-dir", ".").out
        assert "FROM goqueue.jobs" in run("get_job", "--sql-dir", ".").out
        Path("mine.sql").write_text("-- name: get_job(id)^\n")
        assert "mine.sql is not one of the store's SQL files" in run("get_job", "--sql-dir", ".").err

    def test_a_parameter_without_a_cast_is_of_an_unknown_type(self, run: Callable[..., Result]) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        Path("jobs.sql").write_text(text.replace("WHERE j.id = :id::uuid;", "WHERE j.id = :id;"))
        printed = run("get_job", "--sql-dir", ".").out
        assert "PREPARE get_job (unknown) AS" in printed
        assert "WHERE j.id = $1;" in printed


class TestForPsql:
    def test_psql_accepts_every_printed_query(self, goqueue_database: str, run: Callable[..., Result]) -> None:
        # Queries of an extension have their own tests; VACUUM and ALTER TABLE really run.
        names = [name for name in NOTES if name not in OF_EXTENSIONS]
        script = "".join(run(name).out for name in names)
        script += "SELECT name, parameter_types::text FROM pg_prepared_statements ORDER BY name;"
        prepared = dict(line.split("|") for line in psql(goqueue_database, script).splitlines() if "|" in line)
        assert set(prepared) == {name for name in names if NOTES[name].can_be_prepared}
        for name, types in prepared.items():
            wanted = [kind.replace("timestamptz", "timestamp with time zone") for kind in NOTES[name].types.values()]
            assert types.strip("{}").replace('"', "").split(",") == (wanted or [""])

    def test_the_printed_commented_lines_run_in_psql(self, goqueue_database: str) -> None:
        names = [name for name in NOTES if NOTES[name].can_be_prepared and name not in OF_EXTENSIONS]
        script = ""
        for name in names:
            text = psql_text(NOTES[name], COLUMNS)
            head, marker, examples = text.rpartition("-- To run it, ")
            [execute, *explain] = examples.splitlines()[1:]
            assert marker
            assert execute.startswith(f"-- EXECUTE {name}")
            script += head + "\n".join(line.removeprefix("-- ") for line in explain) + "\n"
        assert psql(goqueue_database, script).count("Execution Time") == len(names)

    def test_the_comments_inside_a_statement_are_printed_in_their_places(self) -> None:
        def followed(lines: list[str]) -> list[tuple[str, str]]:
            """Return each comment line and the next line of code."""
            code = ["" if line.startswith("--") else re.sub(r"(?<!:):[a-z]\w*|\$\d+", "?", line) for line in lines]
            return [
                (line, next(filter(None, code[number:]))) for number, line in enumerate(lines) if line.startswith("--")
            ]

        found = 0
        for file in shipped_folder("sql").glob("*.sql"):
            for query in file.read_text("utf-8").split("-- name: ")[1:]:
                note = NOTES[re.split(r"\W", query, maxsplit=1)[0]]
                lines = [line.strip() for line in query.partition(";\n")[0].splitlines()[1:]]
                inner = list(dropwhile(lambda line: line.startswith("--"), lines))
                printed = [line.strip() for line in psql_text(note, COLUMNS).splitlines()]
                found += len(followed(inner))
                assert [pair for pair in followed(inner) if pair not in followed([*printed, "x"])] == [], note.name
                assert [line for line in note.commented.splitlines() if not line.strip().startswith("--")] == (
                    note.statement.splitlines()
                )
        assert found > 10

    def test_block_comments_of_a_folder_are_omitted(self, run: Callable[..., Result]) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        Path("jobs.sql").write_text(
            text.replace("WHERE j.id = :id::uuid;", "/* one\n*/ -- two\nWHERE j.id = :id::uuid;")
        )
        printed = run("get_job", "--sql-dir", ".").out
        assert "one" not in printed.partition("PREPARE")[2]
        assert "WHERE j.id = $1::uuid;" in printed

    def test_the_printed_calls_run_in_psql(self, goqueue_database: str, run: Callable[..., Result]) -> None:
        # Each separately, as when pasted.
        names = [name for name in NOTES if NOTES[name].can_be_prepared and name not in OF_EXTENSIONS]
        script = "".join(f"BEGIN; {run(name).out}\n{call_of(name)}\nROLLBACK;\n" for name in names)
        psql(goqueue_database, script)

    def test_the_call_of_claim_jobs_claims_a_job_that_is_due(
        self, goqueue_database: str, goqueue_store: PostgresStorage, run: Callable[..., Result]
    ) -> None:
        job = goqueue_store.create_job(NewJob(job_type="t"))
        assert str(job.id) in psql(goqueue_database, f"{run('claim_jobs').out}\n{call_of('claim_jobs')}")
        assert goqueue_store.get_job(job.id).status == "running"

    def test_the_call_of_create_jobs_adds_one(
        self, goqueue_database: str, goqueue_store: PostgresStorage, run: Callable[..., Result]
    ) -> None:
        psql(goqueue_database, f"{run('create_jobs').out}\n{call_of('create_jobs')}")
        [job] = goqueue_store.list_jobs().jobs
        assert (job.queue, job.max_attempts) == ("default", 25)

    def test_no_required_parameter_is_null_in_the_printed_call(self) -> None:
        optional = re.compile(r"lane_|created_|scheduled_|cursor_|job_types|worker_ids|retry_in")
        for name, note in NOTES.items():
            if note.can_be_prepared:
                needed = [parameter for parameter in note.parameters if not optional.match(parameter)]
                assert call_of(name).count("NULL") == len(note.parameters) - len(needed), (
                    f"goqueue/workbench/notes.py: add values to _EXAMPLES for the NULLs in {call_of(name)}"
                )
        assert call_of("fail_jobs").endswith("'{timed out}', FALSE, NULL, '1 minute', 2, '1 hour', 0.1);")

    def test_the_printed_text_is_the_text_that_the_program_sends(self, goqueue_connection: psycopg.Connection) -> None:
        # The same, except for the spelling of parameters and the comments.
        def plain(text: str) -> list[str]:
            text = re.sub(r"^ *--.*\n", "", text.replace("%%", "%"), flags=re.MULTILINE)
            return re.sub(r"%\(\w+\)s|\$\d+", "?", text).rstrip("; \n").split()

        for name, note in NOTES.items():
            assert plain(note.statement) == plain(getattr(load_queries(), name).sql)


class TestTimes:
    def test_each_query_has_one_row_however_it_was_sent(self, counted: str, run: Callable[..., Result]) -> None:
        with psycopg.connect(counted, autocommit=True) as connection:
            connection.execute("SELECT pg_stat_statements_reset()")
        # Often enough to be prepared, on several connections, alone and in bulk, custom and generic.
        with PostgresStorage.open(counted) as store:
            jobs = [store.create_job(NewJob(job_type="t", payload=number)) for number in range(20)]
            for job in jobs * 2:
                store.get_job(job.id)
            for status in ("pending", "dead"):
                store.list_jobs(JobFilter(status=status))
        with psycopg.connect(counted) as connection:
            store = PostgresStorage.bound_to(connection)
            for job in jobs:
                store.get_job(job.id)
        with psycopg.connect(counted, autocommit=True) as connection:
            entries = connection.execute(
                "SELECT calls, rows FROM pg_stat_statements WHERE query LIKE 'SELECT /* goqueue:get_job */%'"
            ).fetchall()
            assert entries == [(60, 60)], "the name in it splits no statistics"
        result = run("--times", "--json", url=counted)
        assert (result.code, result.err) == (0, "")
        rows = {row["name"]: row for row in json.loads(result.out)}
        assert (rows["get_job"]["calls"], rows["get_job"]["rows"]) == (60, 60)
        assert (rows["create_job"]["calls"], rows["create_job"]["rows"]) == (20, 20)
        assert rows["list_jobs"]["calls"] == 2
        assert rows["get_job"]["mean_ms"] == pytest.approx(rows["get_job"]["total_ms"] / 60, abs=0.001)
        assert 0 < rows["get_job"]["mean_ms"] <= rows["get_job"]["max_ms"]
        assert rows["get_job"]["pages"] >= 60
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=0.01)
        totals = [row["total_ms"] for row in json.loads(result.out)]
        assert totals == sorted(totals, reverse=True)
        text = run("--times", url=counted)
        assert re.match("query +calls +total ms +mean ms +max ms +rows +pages +share", text.out)
        assert re.search(r"^get_job +60 .*%$", text.out, re.MULTILINE)
        assert all(len(line) <= 80 for line in text.out.splitlines())

    def test_other_databases_and_other_programs_are_not_counted(self, counted: str, run: Callable[..., Result]) -> None:
        with psycopg.connect(counted, autocommit=True) as connection:
            connection.execute("SELECT pg_stat_statements_reset()")
            connection.execute("SELECT count(*) FROM goqueue.jobs")
        with psycopg.connect(counted, dbname="template1") as connection:
            connection.execute("SELECT /* goqueue:get_job */ 1")
        result = run("--times", url=counted)
        assert "no entry for a query of goqueue" in result.err
        assert result.out == ""

    def test_psql_accepts_the_printed_query_and_the_file(self, counted: str, run: Callable[..., Result]) -> None:
        with PostgresStorage.open(counted) as store:
            store.ping()
        assert re.search(
            r"^ping\|\d+\|", psql(counted, run("statement_times").out + "EXECUTE statement_times;"), re.MULTILINE
        )

    @pytest.mark.parametrize("arguments", [("get_job",), ("--sql-dir", "folder")])
    def test_arguments_that_the_times_do_not_use_are_rejected(
        self, arguments: tuple[str, ...], run: Callable[..., Result]
    ) -> None:
        result = run(*arguments, "--times")
        assert (result.code, result.out) == (2, "")
        assert "--times excludes NAME and --sql-dir" in result.err

    def test_a_missing_extension_is_reported_with_advice(
        self, goqueue_database: str, run: Callable[..., Result]
    ) -> None:
        result = run("--times", url=goqueue_database)
        assert (result.code, result.out) == (1, "")
        assert "CREATE EXTENSION pg_stat_statements" in result.err

    def test_an_extension_that_is_not_loaded_is_reported_with_advice(
        self, goqueue_database: str, goqueue_connection: psycopg.Connection, run: Callable[..., Result]
    ) -> None:
        loaded = goqueue_connection.execute("SELECT current_setting('shared_preload_libraries')").fetchone()
        assert loaded is not None
        if "pg_stat_statements" in loaded[0]:
            pytest.skip("a server that has it loaded")
        there = "SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements'"
        if goqueue_connection.execute(there).fetchone() is None:
            pytest.skip("a server without it")
        goqueue_connection.execute("CREATE EXTENSION pg_stat_statements")
        result = run("--times", url=goqueue_database)
        assert result.code == 1
        assert "shared_preload_libraries" in result.err


def test_the_result_columns_are_those_that_the_server_describes(counted: str) -> None:
    with psycopg.connect(counted, autocommit=True) as connection:
        described = describe_columns(connection, NOTES.values())
    assert {name: [tuple(column) for column in columns] for name, columns in COLUMNS.items()} == described, (
        "sql/columns.json is stale: make catalogue"
    )
