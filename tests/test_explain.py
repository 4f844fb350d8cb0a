"""`goqueue explain`: its database and contents, its plans and flags, and that nothing remains."""

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue.files import APART, shipped_folder
from goqueue.postgres.queries import load_queries
from goqueue.pytest_plugin import DatabaseServer
from goqueue.testing.scratch import SCENARIOS, SCRATCH, ExplainError, drop_abandoned, scratch_database, seed
from goqueue.workbench.explain import Explainer, example_values, explain_query, explainable, regressions
from goqueue.workbench.notes import QueryNote, read_notes
from tests.commands import SECONDS, Commands, Result
from tests.workers import until

NOTES = {note.name: note for note in read_notes()}
ROWS = 2000
BIG = 20_000  # enough for a complete read of a table to be a failure


def note(name: str, **changes: Any) -> dict[str, QueryNote]:
    """The shipped notes with a different text for one query."""
    return {**NOTES, name: msgspec.structs.replace(NOTES[name], **changes)}


def statuses(connection: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(connection.execute("SELECT status::text, count(*) FROM goqueue.jobs GROUP BY status").fetchall())


class TestTheSeed:
    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_it_adds_the_requested_number_of_jobs(
        self, goqueue_connection: psycopg.Connection[Any], scenario: str
    ) -> None:
        told: list[float] = []
        seed(goqueue_connection, ROWS, scenario, lambda _text, done: told.append(done))
        assert sum(statuses(goqueue_connection).values()) == ROWS
        assert told == sorted(told)
        assert told[-1] == 1.0

    def test_scenarios_differ_as_described(self, goqueue_connection: psycopg.Connection[Any]) -> None:
        def of(scenario: str, condition: str) -> int:
            goqueue_connection.execute("TRUNCATE goqueue.jobs, goqueue.job_failures")
            seed(goqueue_connection, ROWS, scenario)
            row = goqueue_connection.execute(f"SELECT count(*) FROM goqueue.jobs WHERE {condition}").fetchone()
            assert row is not None
            return int(row[0])

        assert of("finished", "status IN ('completed', 'dead', 'cancelled')") > 0.9 * ROWS
        assert of("backlog", "status = 'pending' AND scheduled_at < now()") > 0.8 * ROWS
        assert of("scheduled", "status = 'pending' AND scheduled_at > now() AND priority < 0") > 0.8 * ROWS
        assert of("mixed", "queue = 'queue_00'") > 0.3 * ROWS
        assert of("queues", "queue = 'queue_00'") < 0.3 * ROWS

    def test_every_index_is_there_afterwards(self, goqueue_connection: psycopg.Connection[Any]) -> None:
        def indexes() -> list[Any]:
            return goqueue_connection.execute(
                "SELECT pg_get_indexdef(indexrelid), indisprimary, indisvalid FROM pg_index "
                "WHERE indrelid = 'goqueue.jobs'::regclass ORDER BY 1"
            ).fetchall()

        before = indexes()
        seed(goqueue_connection, ROWS, "mixed")
        assert indexes() == before
        assert len(before) >= 5

    def test_it_rejects_a_table_that_has_jobs(self, goqueue_connection: psycopg.Connection[Any]) -> None:
        goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('of mine')")
        with pytest.raises(ExplainError, match="has rows"):
            seed(goqueue_connection, ROWS, "mixed")
        assert statuses(goqueue_connection) == {"pending": 1}
        assert goqueue_connection.execute(
            "SELECT relpersistence FROM pg_class WHERE oid = 'goqueue.jobs'::regclass"
        ).fetchone() == ("p",)


class TestPlans:
    @pytest.fixture
    def seeded(self, goqueue_connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
        seed(goqueue_connection, ROWS, "mixed")
        return goqueue_connection

    @pytest.fixture
    def big(self, goqueue_connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
        seed(goqueue_connection, BIG, "mixed")
        return goqueue_connection

    def test_every_query_finds_something_with_the_example_values_and_changes_nothing(
        self, seeded: psycopg.Connection[Any]
    ) -> None:
        fingerprint = "SELECT md5(string_agg(j::text, '' ORDER BY id)) FROM goqueue.jobs AS j"
        before = seeded.execute(fingerprint).fetchone()
        examples, explainer = example_values(seeded), Explainer(seeded, NOTES)
        for name in explainable(NOTES):
            explained = explain_query(explainer, name, {}, examples)
            assert [plan.mode for plan in explained.plans] == ["custom", "generic"]
            for plan in explained.plans:
                assert plan.rows_returned > 0, (
                    f"{name}: add parameters that find a row to example_values in sql/seed.sql"
                )
                assert min(plan.execution_ms, plan.instrumented_ms) > 0
                assert plan.rows_read == 0 or plan.pages_hit + plan.pages_read > 0
            assert not explained.has_failed, name
        assert seeded.execute(fingerprint).fetchone() == before

    def test_every_query_that_reads_jobs_is_explained(self) -> None:
        left_out = {name for name in NOTES if NOTES[name].file not in APART} - set(explainable(NOTES))
        listening = {"listen", "listen_cancelled", "announce_listener", "find_listener_blockers"}
        assert left_out == {*listening, "get_session", "get_transaction_status"}

    def test_a_given_value_overrides_the_example(self, seeded: psycopg.Connection[Any]) -> None:
        examples, explainer = example_values(seeded), Explainer(seeded, NOTES)
        given = {"statuses": "{dead}", "queues": None, "page_limit": "3", "of another query": "1"}
        explained = explain_query(explainer, "list_jobs", given, examples)
        assert explained.parameters["statuses"] == "{dead}"
        assert explained.parameters["queues"] is None
        assert "of another query" not in explained.parameters
        assert [plan.rows_returned for plan in explained.plans] == [3, 3]
        assert explained.plans[0].rows_read_per_row == explained.plans[0].rows_read / 3

    def test_without_a_row_there_is_no_ratio(self, seeded: psycopg.Connection[Any]) -> None:
        given = {"id": "00000000-0000-0000-0000-000000000000"}
        explained = explain_query(Explainer(seeded, NOTES), "get_job", given, {})
        assert [plan.rows_read_per_row for plan in explained.plans] == [None, None]

    def test_a_value_or_a_query_that_the_server_rejects_is_an_error_with_its_message(
        self, seeded: psycopg.Connection[Any]
    ) -> None:
        with pytest.raises(ExplainError, match="get_job can't be explained: invalid input syntax for type uuid"):
            explain_query(Explainer(seeded, NOTES), "get_job", {"id": "none"}, {})
        doctored = note("get_job", statement="SELECT FROM goqueue.jobz WHERE id = $1::uuid;")
        with pytest.raises(ExplainError, match="jobz"):
            explain_query(Explainer(seeded, doctored), "get_job", {}, {})

    def kinds(
        self, connection: psycopg.Connection[Any], notes: dict[str, QueryNote], name: str, mode: str = "generic"
    ) -> dict[str, bool]:
        connection.execute("DEALLOCATE ALL")
        explained = explain_query(Explainer(connection, notes), name, {}, example_values(connection))
        [plan] = [plan for plan in explained.plans if plan.mode == mode]
        return {flag.kind: flag.is_failure for flag in plan.flags}

    def test_a_sequential_scan_of_a_table_that_is_not_small_is_a_failure(self, big: psycopg.Connection[Any]) -> None:
        text = "SELECT id, status FROM goqueue.jobs WHERE id::text = $1::text;"
        kinds = self.kinds(big, note("get_job", statement=text), "get_job", "custom")
        assert kinds == {"seq scan": True}
        text = "SELECT job_id FROM goqueue.job_failures WHERE job_id::text = $1::text;"
        assert self.kinds(big, note("get_job", statement=text), "get_job", "custom")["seq scan"] is False

    @pytest.mark.parametrize(("wanted", "expected"), [("job_type || queue", True), ("queue", None)])
    def test_many_discarded_rows_are_a_failure(
        self, big: psycopg.Connection[Any], wanted: str, expected: bool | None
    ) -> None:
        test = "=" if expected else "<>"
        text = f"SELECT id FROM goqueue.jobs WHERE completed_at IS NOT NULL AND {wanted} {test} 'nothing';"
        big.execute("SET enable_seqscan = off")
        kinds = self.kinds(big, note("queue_stats", statement=text, index="jobs_finished_queue_idx"), "queue_stats")
        big.execute("RESET enable_seqscan")
        assert kinds.get("filter") is expected

    def test_a_big_sort_and_one_that_spills_are_flagged(self, big: psycopg.Connection[Any]) -> None:
        big.execute("SET work_mem = '64kB'")
        doctored = note("queue_stats", statement="SELECT id FROM goqueue.jobs ORDER BY md5(id::text);")
        assert set(self.kinds(big, doctored, "queue_stats")) >= {"sort", "spill"}
        big.execute("SET work_mem = '64MB'")
        assert "sort" in self.kinds(big, doctored, "queue_stats")
        assert "spill" not in self.kinds(big, doctored, "queue_stats")

    def test_a_wrong_estimate_is_flagged_at_its_origin(self, big: psycopg.Connection[Any]) -> None:
        # The server can't estimate a comparison with a function's result, and assumes one row in 200.
        text = (
            "SELECT count(*) FROM (SELECT queue FROM goqueue.jobs WHERE md5(queue) || md5(job_type) = "
            "md5(queue) || md5(job_type) OFFSET 0) AS j WHERE length(queue) * 2 = length(queue) + length(queue);"
        )
        assert self.kinds(big, note("queue_stats", statement=text), "queue_stats")["estimate"] is False

    def test_a_scan_that_a_limit_cuts_short_is_no_wrong_estimate(self, big: psycopg.Connection[Any]) -> None:
        text = "SELECT id FROM (SELECT id FROM goqueue.jobs ORDER BY id OFFSET 0) AS j LIMIT 1;"
        assert "estimate" not in self.kinds(big, note("queue_stats", statement=text, index="jobs_pkey"), "queue_stats")

    def test_an_index_that_the_comment_does_not_name_is_flagged(self, seeded: psycopg.Connection[Any]) -> None:
        assert self.kinds(seeded, NOTES, "get_job") == {}
        assert self.kinds(seeded, note("get_job", index="none"), "get_job") == {"index": False}

    def test_a_compiled_plan_is_flagged(self, seeded: psycopg.Connection[Any]) -> None:
        if seeded.execute("SELECT pg_jit_available()").fetchone() != (True,):
            pytest.skip("a server without jit")
        seeded.execute("SET jit_above_cost = 0")
        assert "jit" in self.kinds(seeded, NOTES, "get_job", mode="custom")
        assert "jit" not in self.kinds(seeded, NOTES, "get_job")  # goqueue's own connections compile nothing


@pytest.fixture
def run(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str, url: str = "") -> Result:
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", url)
        return commands("explain", *arguments)

    return call


@pytest.fixture
def role(goqueue_server: DatabaseServer, goqueue_database: str) -> Iterator[str]:
    """The test database's URL for a role with CREATEDB that only this test uses: so its databases can be listed."""
    name = f"goqueue_explainer_{secrets.token_hex(6)}"
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD '{name}'")
        yield make_conninfo(goqueue_database, user=name, password=name)
        connection.execute(f"DROP ROLE {name}")


def databases_of(server: DatabaseServer, role: str) -> list[str]:
    """Return the names of the role's databases, sorted."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        user = psycopg.conninfo.conninfo_to_dict(role)["user"]
        found = connection.execute("SELECT datname FROM pg_database WHERE datdba = %s::regrole", [user]).fetchall()
    return sorted(name for (name,) in found)


class TestTheCommand:
    def test_it_explains_in_a_separate_database_and_drops_it(
        self, run: Callable[..., Result], role: str, goqueue_server: DatabaseServer
    ) -> None:
        result = run("list_jobs", "--rows", str(ROWS), "--param", "statuses={dead}", "--json", url=role)
        assert (result.code, result.err) == (0, "")
        said = json.loads(result.out)
        assert (said["rows"], said["scenario"]) == (ROWS, "mixed")
        [query] = said["queries"]
        assert query["parameters"]["statuses"] == "{dead}"
        assert [plan["mode"] for plan in query["plans"]] == ["custom", "generic"]
        assert query["plans"][0]["plan"]["Plan"]["Node Type"]
        assert databases_of(goqueue_server, role) == []

    def test_the_text_shows_figures_and_the_plan(self, run: Callable[..., Result], role: str) -> None:
        result = run("get_job", "--rows", str(ROWS), "--scenario", "backlog", url=role)
        assert (result.code, result.err) == (0, "")
        assert f"get_job on {ROWS:,} jobs (backlog), PostgreSQL" in result.out
        for wanted in (r"execution ms +\d", r"rows read +1 +1", r"Index Scan jobs jobs_pkey +rows 1 → 1", "no flags"):
            assert re.search(wanted, result.out), wanted
        assert "\x1b" not in result.out

    def test_all_queries_have_a_line(self, run: Callable[..., Result], role: str) -> None:
        result = run("--all", "--rows", str(ROWS), url=role)
        assert result.code == 0
        assert {line.split()[0] for line in result.out.splitlines() if line} >= set(explainable(NOTES))

    def test_a_changed_query_that_reads_the_whole_table_ends_with_3(
        self, run: Callable[..., Result], role: str, tmp_path: Path
    ) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        (tmp_path / "jobs.sql").write_text(text.replace("WHERE j.id = :id::uuid;", "WHERE j.id::text = :id;"))
        result = run("get_job", "--rows", str(BIG), "--sql-dir", str(tmp_path), url=role)
        assert result.code == 3
        assert "seq scan: jobs is read completely: 20,000 rows read" in result.out
        assert "too many rows are read by get_job" in result.err

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            # Reads each entry of an index without a flag: all entries are counted.
            ("WHERE j.id = :id::uuid AND (SELECT count(*) FROM goqueue.jobs) > 0;", {"rows"}),
            ("WHERE j.id = :id::uuid AND (SELECT count(*) FROM generate_series(1, 300000)) > 0;", {"time"}),
            # Slower for a reason: it reads a row more.
            ("WHERE j.id = (SELECT k.id FROM goqueue.jobs AS k WHERE k.id = :id::uuid);", set()),
            ("WHERE j.id = :id::uuid;", None),
            ("-- A comment on a line of its own.\n    WHERE\n    j.id = :id::uuid;", None),
        ],
    )
    def test_a_changed_query_is_compared_with_the_shipped_one(
        self, run: Callable[..., Result], role: str, tmp_path: Path, change: str, expected: set[str] | None
    ) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        assert "WHERE j.id = :id::uuid;" in text
        (tmp_path / "jobs.sql").write_text(text.replace("WHERE j.id = :id::uuid;", change))
        result = run("get_job", "--rows", str(BIG), "--sql-dir", str(tmp_path), "--json", url=role)
        [query] = result.json["queries"]
        if expected is None:
            assert (result.code, query["shipped"], query["regressions"]) == (0, None, [])
            return
        assert [plan["mode"] for plan in query["shipped"]] == ["custom", "generic"]
        kinds = {each["kind"] for each in query["regressions"]}
        assert kinds & {"rows", "pages", "time"} >= expected
        assert (result.code == 3) is bool(kinds)
        assert ("more expensive than the shipped text: get_job" in result.err) is bool(expected)

    def test_both_texts_are_shown_side_by_side_for_the_configured_folder_too(
        self, run: Callable[..., Result], role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
        slow = "WHERE j.id = :id::uuid AND (SELECT count(*) FROM goqueue.jobs) > 0;"
        (tmp_path / "jobs.sql").write_text(text.replace("WHERE j.id = :id::uuid;", slow))
        monkeypatch.setenv("GOQUEUE_DATABASE_SQL_DIR", str(tmp_path))
        result = run("get_job", "--rows", str(BIG), url=role)
        assert result.code == 3
        assert re.search(r"^ +custom +as shipped +generic +as shipped", result.out, re.MULTILINE)
        assert re.search(r"^rows read +20,00\d +1 +20,00\d +1 *$", result.out, re.MULTILINE)
        assert "generic plan of the shipped text" in result.out
        assert re.search(
            r"more expensive than shipped: 20,00\d rows read, 1 by the shipped text \(generic\)", result.out
        )
        every = run("--all", "--rows", str(ROWS), url=role)
        assert re.search(r"^ +get_job as shipped +[\d.]+ +[\d.]+ +1/1 ", every.out, re.MULTILINE)
        assert "create_job as shipped" not in every.out

    def test_a_faster_query_is_no_regression(
        self, goqueue_connection: psycopg.Connection[Any], run: Callable[..., Result]
    ) -> None:
        seed(goqueue_connection, BIG, "mixed")
        slow = note("get_job", statement="SELECT j.id FROM goqueue.jobs AS j WHERE j.id::text = $1::uuid::text")
        explainer = Explainer(goqueue_connection, NOTES)
        as_slow = Explainer(goqueue_connection, slow, prefix="shipped_")
        explained = explain_query(explainer, "get_job", {}, example_values(goqueue_connection), as_slow)
        assert explained.shipped is not None
        assert explained.shipped[0].rows_read >= BIG
        assert explained.regressions == []
        other_way_round = [
            each.kind
            for mine, theirs in zip(explained.shipped, explained.plans, strict=True)
            for each in regressions(mine, theirs)
        ]
        assert {"rows", "filter"} <= set(other_way_round)

    def test_without_the_right_to_create_databases_an_embedded_server_is_used(
        self, run: Callable[..., Result], role: str, goqueue_server: DatabaseServer
    ) -> None:
        with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {psycopg.conninfo.conninfo_to_dict(role)['user']} NOCREATEDB")
        result = run("get_job", "--rows", "1000", url=role)
        assert result.code == 0
        assert "CREATEDB" in result.err
        assert "get_job on 1,000 jobs" in result.out

    def test_a_read_only_server_is_replaced_with_an_embedded_one(
        self, run: Callable[..., Result], role: str, goqueue_server: DatabaseServer
    ) -> None:
        result = run(
            "get_job", "--rows", "1000", url=make_conninfo(role, options="-c default_transaction_read_only=on")
        )
        assert result.code == 0
        assert "read-only transaction. Using an embedded server." in result.err
        assert databases_of(goqueue_server, role) == []

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["get_jib"], "'get_jib': did you mean get_job"),
            (["vacuum"], "'vacuum': expected one of create_job"),
            ([], "give either NAME or --all"),
            (["get_job", "--all"], "give either NAME or --all"),
            (["get_job", "--param", "di=1"], "one of id"),
            (["get_job", "--param", "id"], "NAME=VALUE"),
            (["get_job", "--scenario", "quiet"], "'quiet' is not one of mixed"),
            (["get_job", "--rows", "0"], "1000"),  # in words, or as x>=1000 before typer 0.29
            (["get_job", "--sql-dir", "nowhere"], "nowhere does not exist"),
        ],
    )
    def test_contradictory_arguments_end_with_2(
        self, run: Callable[..., Result], arguments: list[str], said: str
    ) -> None:
        result = run(*arguments, url="postgresql://nowhere.invalid/")
        assert result.code == 2
        assert said in " ".join(result.err.replace("│", " ").split())

    def test_an_unreachable_server_ends_with_1(self, run: Callable[..., Result], tmp_path: Path) -> None:
        result = run("get_job", url=f"postgresql:///nowhere?host={tmp_path}")
        assert result.code == 1
        assert "Traceback" not in result.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interruption_leaves_no_database(
        self,
        number: signal.Signals,
        commands: Commands,
        role: str,
        goqueue_server: DatabaseServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", role)
        with commands.process("explain", "get_job", "--rows", "50000000") as process:
            with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
                deadline = time.monotonic() + SECONDS
                while not connection.execute(
                    "SELECT FROM pg_stat_activity AS a JOIN pg_database AS d ON a.datid = d.oid "
                    "WHERE d.datdba = %s::regrole AND a.query LIKE '%%goqueue:seed_jobs */%%'",
                    [psycopg.conninfo.conninfo_to_dict(role)["user"]],
                ).rowcount:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            process.send_signal(number)
            said = "".join(process.communicate(timeout=SECONDS))
        assert process.returncode not in (0, -number)
        assert "Traceback" not in said
        assert databases_of(goqueue_server, role) == []

    def test_the_next_run_drops_the_database_of_a_killed_one(
        self,
        commands: Commands,
        run: Callable[..., Result],
        role: str,
        goqueue_server: DatabaseServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", role)
        left: set[str] = set()
        # Once the database exists and is being filled; the session's statement continues.
        for wanted in ("", "goqueue:seed_jobs"):
            with commands.process("explain", "get_job", "--rows", "50000000") as process:
                left |= wait_for_database(goqueue_server, role, wanted, besides=left)
                process.kill()
                process.wait(SECONDS)
        # The role's own databases remain.
        with psycopg.connect(role, autocommit=True) as connection:
            for own in ("goqueue_explain_mine", "goqueue_explain_0123456789ab_2"):
                connection.execute(f"CREATE DATABASE {own}")

        def left_by_a_run() -> list[str]:
            assert run("get_job", "--rows", "1000", url=role).code == 0
            return databases_of(goqueue_server, role)

        # The server ends the killed sessions about a second later.
        until(lambda: left_by_a_run() == ["goqueue_explain_0123456789ab_2", "goqueue_explain_mine"])
        with psycopg.connect(role, autocommit=True) as connection:
            for own in ("goqueue_explain_mine", "goqueue_explain_0123456789ab_2"):
                connection.execute(f"DROP DATABASE {own}")

    def test_it_leaves_databases_in_use_alone(
        self,
        commands: Commands,
        run: Callable[..., Result],
        role: str,
        goqueue_server: DatabaseServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("GOQUEUE_DATABASE_URL", role)
        with psycopg.connect(role, autocommit=True) as connection:
            connection.execute("CREATE DATABASE goqueue_explain_0123456789ab")
        with (
            psycopg.connect(role, dbname="goqueue_explain_0123456789ab"),
            commands.process("explain", "get_job", "--rows", "50000000") as process,
        ):
            # Before its own session is in the database, the name is already held.
            running = wait_for_database(goqueue_server, role, "", besides={"goqueue_explain_0123456789ab"})
            assert run("get_job", "--rows", "1000", url=role).code == 0
            assert set(databases_of(goqueue_server, role)) == running | {"goqueue_explain_0123456789ab"}
            wait_for_database(goqueue_server, role, "goqueue:seed_jobs", besides={"goqueue_explain_0123456789ab"})
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 130, said
        assert databases_of(goqueue_server, role) == ["goqueue_explain_0123456789ab"]
        with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
            inside = "SELECT FROM pg_stat_activity WHERE datname = 'goqueue_explain_0123456789ab'"
            until(lambda: connection.execute(inside).rowcount == 0)
        with scratch_database(role, ROWS) as connection:
            assert databases_of(goqueue_server, role) == [connection.info.dbname]
        assert databases_of(goqueue_server, role) == []


def wait_for_database(server: DatabaseServer, role: str, query: str, besides: set[str]) -> set[str]:
    """Return the role's database once a session in it runs such a query."""
    deadline = time.monotonic() + SECONDS
    with psycopg.connect(server.url, autocommit=True) as connection:
        while True:
            assert time.monotonic() < deadline
            found = set(databases_of(server, role)) - besides
            seen = connection.execute(
                "SELECT FROM pg_stat_activity WHERE datname = ANY(%s) AND query LIKE %s", [list(found), f"%{query}%"]
            )
            if found and (seen.rowcount or not query):
                return found
            time.sleep(0.01)


def test_a_database_is_abandoned_when_the_session_that_holds_its_name_has_ended(
    goqueue_server: DatabaseServer, role: str, goqueue_database: str
) -> None:
    name = f"goqueue_explain_{secrets.token_hex(6)}"
    another = make_conninfo(role, dbname="postgres")  # advisory locks belong to one database; the role has another
    with psycopg.connect(another, autocommit=True) as other, psycopg.connect(role, autocommit=True) as owner:
        load_queries().hold_database(owner, name=name)
        owner.execute(f"CREATE DATABASE {name}")
        assert drop_abandoned(other, SCRATCH) == []
        owner.close()
        # The server ends the session a moment later.
        deadline = time.monotonic() + SECONDS
        while (dropped := drop_abandoned(other, SCRATCH)) == []:
            assert time.monotonic() < deadline
        assert dropped == [name]
    assert databases_of(goqueue_server, role) == []


def test_a_database_of_another_role_or_with_a_comment_is_not_dropped(
    goqueue_server: DatabaseServer, role: str, goqueue_database: str
) -> None:
    name = f"goqueue_explain_{secrets.token_hex(6)}"
    with psycopg.connect(role, autocommit=True) as owner, psycopg.connect(goqueue_database, autocommit=True) as other:
        owner.execute(f"CREATE DATABASE {name}")
        assert name not in drop_abandoned(other, f"^{name}$")
        owner.execute(f"COMMENT ON DATABASE {name} IS 'to be kept'")
        assert drop_abandoned(owner, SCRATCH) == []
        owner.execute(f"COMMENT ON DATABASE {name} IS NULL")
        assert drop_abandoned(owner, SCRATCH) == [name]


def test_a_failure_inside_leaves_no_database(goqueue_server: DatabaseServer, role: str) -> None:
    with pytest.raises(ZeroDivisionError), scratch_database(role, ROWS) as connection:  # noqa: PT012
        assert connection.info.dbname in databases_of(goqueue_server, role)
        raise ZeroDivisionError
    assert databases_of(goqueue_server, role) == []
