"""Other schemas than goqueue: the name in every text, and several schemas in one database."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import Connection

from goqueue import (
    ConfigError,
    DatabaseConfig,
    JobFilter,
    NewJob,
    PostgresStorage,
    SchemaError,
    Worker,
    WorkerConfig,
    named_statement,
    numbered_statement,
)
from goqueue.files import read_shipped, shipped_folder
from goqueue.migrate import LOCK, MigrationError, list_migrations, migrate, migrations_dir, undo
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.schemas import DEFAULT_SCHEMA, is_rendered, is_schema, lock_key, render
from goqueue.workbench.plans import GenericPlan, generic_plans
from goqueue.workbench.rights import check_roles
from goqueue.workbench.schema import compare, expected_schema, read_schema
from tests.commands import Commands
from tests.notices import notices

LONGEST = "x" * 45
LATEST = len(list(shipped_folder("migrations").glob("V*.sql")))
SECOND = timedelta(seconds=1)
SQL = sorted(file for folder in ("sql", "migrations") for file in shipped_folder(folder).rglob("*.sql"))
# The word goqueue where it is not the schema, a role, or a channel.
OTHERS = r"goqueue\.notify\b(?!_)|'goqueue: |goqueue:\(\\w\+\) in other "


@pytest.fixture
def two(empty: str) -> str:
    """The URL of a database with two schemas, and without the schema goqueue."""
    for schema in ("jobs_1", "jobs_2"):
        migrate(empty, schema=schema)
    return empty


@pytest.fixture
def stores(two: str) -> Iterator[list[PostgresStorage]]:
    first, second = (DatabaseConfig(url=two, schema=schema) for schema in ("jobs_1", "jobs_2"))
    with PostgresStorage.open(first) as one, PostgresStorage.open(second) as other:
        yield [one, other]


# --- the texts --------------------------------------------------------------------------------------------------------


def code_of(text: str) -> str:
    """Return SQL without its comment lines."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


@pytest.mark.parametrize("file", SQL, ids=lambda file: file.name)
def test_every_place_of_the_name_in_a_file_is_of_a_known_kind(file: Path) -> None:
    text = code_of(file.read_text("utf-8"))
    left = re.sub(OTHERS, "", render(text, "other"))
    left = re.sub(r"goqueue_(?:ready|cancelled|operator|owner|producer|reader|worker)_other\b", "", left)
    places = [left[max(0, found.start() - 40) : found.end() + 40] for found in re.finditer("goqueue", left)]
    assert not places, "teach goqueue.schemas.render this place of the schema's name"
    assert render(render(text, "other"), "other") == render(text, "other")
    assert is_rendered(render(text, "other"))


def test_the_other_files_are_rendered_completely_too() -> None:
    session = yaml.safe_load((migrations_dir() / "migrations.yml").read_text("utf-8"))["session"]
    texts = [code_of(statement) for statement in session]
    texts += [(shipped_folder("migrations") / name).read_text("utf-8") for name in ("schema.json", "roles/rights.json")]
    for text in texts:
        left = re.sub(r"goqueue_(?:operator|owner|producer|reader|worker)_other\b", "", render(text, "other"))
        assert "goqueue" not in left
        assert str(LOCK) not in left


def test_the_text_for_the_schema_goqueue_is_that_of_the_file() -> None:
    for file in SQL:
        text = file.read_text("utf-8")
        assert render(text, DEFAULT_SCHEMA) is text
    assert lock_key(LOCK, DEFAULT_SCHEMA) == LOCK
    assert load_statements() == load_statements(None, DEFAULT_SCHEMA)
    assert "/* goqueue:get_job */" in load_statements()["get_job"].text


def test_only_names_that_belong_to_a_schema_are_replaced() -> None:
    for written, expected in {
        "SELECT * FROM goqueue.jobs AS goqueue": "SELECT * FROM t.jobs AS goqueue",
        "'goqueue.jobs'::regclass": "'t.jobs'::regclass",
        "current_setting('goqueue.notify')": "current_setting('goqueue.notify')",
        "goqueue.notify_ready_jobs()": "t.notify_ready_jobs()",
        "nspname = 'goqueue'": "nspname = 't'",
        "IN SCHEMA goqueue TO goqueue_worker": "IN SCHEMA t TO goqueue_worker_t",
        "LISTEN goqueue": "LISTEN goqueue_ready_t",
        "LISTEN goqueue_cancelled": "LISTEN goqueue_cancelled_t",
        "pg_notify('goqueue', q)": "pg_notify('goqueue_ready_t', q)",
        "mygoqueue.jobs, x.goqueue_workers": "mygoqueue.jobs, x.goqueue_workers",
        "/* goqueue:get_job */": "/* goqueue:get_job */",
        "application_name = 'goqueue check'": "application_name = 'goqueue check'",
    }.items():
        assert render(written, "t") == expected


def test_a_statement_s_comment_names_its_schema() -> None:
    assert "SELECT /* goqueue:get_job in jobs_2 */" in load_statements(schema="jobs_2")["get_job"].text
    assert "goqueue:(\\w+) in jobs_2 " in load_statements(schema="jobs_2")["statement_times"].text


def test_no_two_schemas_share_a_lock_a_channel_or_a_role() -> None:
    names = [
        "goqueue",
        "ready",
        "cancelled",
        "cancelled_ready",
        "owner",
        "a",
        "a_owner",
        "owner_a",
        "cancelled_a",
        LONGEST,
    ]
    keys = [7453300657348765004, LOCK]
    assert len({lock_key(key, name) for key in keys for name in names}) == len(keys) * len(names)
    assert all(2**31 < lock_key(key, name) < 2**63 for key in keys for name in names)
    outside = [
        render(text, name).removeprefix("LISTEN ")
        for text in ("LISTEN goqueue", "LISTEN goqueue_cancelled", "goqueue_owner", "goqueue_worker")
        for name in names
    ]
    assert len(set(outside)) == len(outside)
    assert all(len(name) <= 63 for name in outside)


def test_no_name_needs_quotes(goqueue_connection: Connection) -> None:
    words = goqueue_connection.execute("SELECT word FROM pg_get_keywords() WHERE catcode <> 'U'").fetchall()
    assert [word for (word,) in words if is_schema(word)] == []
    for name in ("a", "_", "jobs_2", "name", "data", "jobs", "new", LONGEST):
        assert is_schema(name)
        assert goqueue_connection.execute("SELECT quote_ident(%s)", [name]).fetchone() == (name,)


# --- a bad name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Jobs", "public", "pg_temp", "a; DROP SCHEMA goqueue", "x" * 46, "select"])
def test_an_invalid_name_is_rejected_before_anything_is_sent(empty: str, name: str) -> None:
    expected = "expected an identifier of 1 to 45 lower-case ASCII letters"
    with pytest.raises(ConfigError, match=r"database\.schema: got .*; " + expected):
        DatabaseConfig(schema=name)
    for call in (lambda: migrate(empty, schema=name), lambda: undo(empty, to=0, schema=name)):
        with pytest.raises(MigrationError, match=expected):
            call()
    with psycopg.connect(empty) as connection, pytest.raises(ConfigError, match=expected):
        PostgresStorage.bound_to(connection, schema=name)


def test_a_missing_schema_is_named(goqueue_database: str) -> None:
    missing = r'relation "jobs_9\.jobs" does not exist; run `goqueue migrate --schema jobs_9` on this database'
    with pytest.raises(SchemaError, match=missing):
        PostgresStorage.open(DatabaseConfig(url=goqueue_database, schema="jobs_9"))


# --- one database, several schemas ------------------------------------------------------------------------------------


def test_every_statement_works_where_there_is_no_schema_goqueue(two: str) -> None:
    with psycopg.connect(two, autocommit=True, prepare_threshold=None) as connection:
        statements = load_statements(schema="jobs_2").copy()
        for extension, name in {"pgstattuple": "measure_claim_index", "pg_stat_statements": "statement_times"}.items():
            try:
                connection.execute(f"CREATE EXTENSION {extension}".encode())
            except psycopg.errors.FeatureNotSupported:  # not installed
                del statements[name]
        plans = generic_plans(connection, statements.values())
        assert {name: plan for name, plan in plans.items() if not isinstance(plan, GenericPlan)} == {}
        shipped = generic_plans(connection, load_statements().values())  # this test can fail
        assert isinstance(shipped["get_job"], psycopg.errors.UndefinedTable)


def test_no_object_of_a_schema_refers_to_another(two: str) -> None:
    with psycopg.connect(two) as connection:
        texts = connection.execute(
            """
            SELECT p.prosrc || coalesce(p.proconfig::text, '') FROM pg_proc AS p
            WHERE p.pronamespace = 'jobs_2'::regnamespace
            UNION ALL SELECT pg_get_viewdef(c.oid) FROM pg_class AS c
            WHERE c.relnamespace = 'jobs_2'::regnamespace AND c.relkind = 'v'
            UNION ALL SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t INNER JOIN pg_class AS c ON t.tgrelid = c.oid
            WHERE c.relnamespace = 'jobs_2'::regnamespace
            UNION ALL SELECT obj_description(c.oid) FROM pg_class AS c WHERE c.relnamespace = 'jobs_2'::regnamespace
            UNION ALL SELECT obj_description(p.oid) FROM pg_proc AS p WHERE p.pronamespace = 'jobs_2'::regnamespace
            UNION ALL SELECT col_description(c.oid, a.attnum) FROM pg_class AS c
            INNER JOIN pg_attribute AS a ON c.oid = a.attrelid WHERE c.relnamespace = 'jobs_2'::regnamespace
            """
        ).fetchall()
    texts = [text for text in texts if text != (None,)]
    assert len(texts) > 50
    assert [text for (text,) in texts if re.search(r"\bgoqueue\.(?!notify\b(?!_))|jobs_1", text)] == []


def test_schemas_do_not_see_each_other_s_jobs(stores: list[PostgresStorage]) -> None:
    one, other = stores
    job = one.create_job(NewJob(job_type="t", idempotency_key="k", unique_key="u"))
    assert other.list_jobs().jobs == []
    assert other.get_jobs([job.id]) == []
    assert other.claim_jobs("default", "w") == []
    assert other.queue_stats() == []
    mine = other.create_job(NewJob(job_type="t", idempotency_key="k", unique_key="u"))
    assert one.get_job_by_idempotency_key("k") == job
    assert other.get_job_by_idempotency_key("k") == mine
    one.pause_queue("default")
    assert one.claim_jobs("default", "w") == []
    [held] = other.claim_jobs("default", "w", lease=SECOND / 10)
    assert one.list_workers() == []
    while not (rescued := other.rescue_jobs()):
        assert one.rescue_jobs() == {}
    assert list(rescued) == [held.id]
    assert one.prune_jobs(older_than=timedelta(0)) == 0


def test_schemas_do_not_wake_each_other_s_listeners(stores: list[PostgresStorage]) -> None:
    one, other = stores
    with one.listen("default") as listener, other.listen("default") as neighbour:
        other.create_job(NewJob(job_type="t"))
        assert neighbour.wait(60 * SECOND) == {"default"}
        [job] = other.claim_jobs("default", "w")
        other.delete_job(job.id)
        assert neighbour.wait(60 * SECOND) == frozenset()
        assert [lease.id for lease in neighbour.cancelled] == [job.id]
        assert listener.wait(SECOND / 4) == frozenset()
        assert listener.cancelled == frozenset()
        one.create_job(NewJob(job_type="t"))
        assert listener.wait(60 * SECOND) == {"default"}


def test_a_schema_without_listeners_sends_nothing_although_another_has_some(stores: list[PostgresStorage]) -> None:
    one, other = stores
    with one.listen("default"), psycopg.connect(other.config.url, autocommit=True) as connection:
        connection.execute("LISTEN goqueue_ready_jobs_2")
        other.create_job(NewJob(job_type="t"))
        assert notices(connection) == []
        with other.listen("default"):
            other.create_job(NewJob(job_type="t"))
            assert [notice.payload for notice in notices(connection)] == ["default"]


def test_a_lock_that_one_schema_has_lost_blocks_no_other(stores: list[PostgresStorage]) -> None:
    one, other = stores
    with psycopg.connect(one.config.url, autocommit=True) as connection:
        connection.execute(f"SELECT pg_advisory_lock({lock_key(7453300657348765004, 'jobs_1')})")
        with other.listen("default") as listener:
            other.create_job(NewJob(job_type="t"))
            assert listener.wait(60 * SECOND) == {"default"}
        connection.execute(f"SELECT pg_advisory_lock({lock_key(LOCK, 'jobs_1')})")
        migrate(other.config.url, schema="jobs_2")


def test_goqueue_is_one_schema_among_others(goqueue_database: str) -> None:
    migrate(goqueue_database, schema="jobs_2")
    with PostgresStorage.open(goqueue_database) as store, psycopg.connect(goqueue_database, autocommit=True) as own:
        job = store.bound_to(own, schema="jobs_2").create_job(NewJob(job_type="t"))
        assert store.list_jobs().jobs == []
        assert PostgresStorage.bound_to(own).list_jobs().jobs == []
        assert PostgresStorage.bound_to(own, schema="jobs_2").get_job(job.id) == job
        assert store.bound_to(own, schema="goqueue").list_jobs().jobs == []
        with PostgresStorage.bound_to(own, schema="jobs_2").listen("default") as listener:
            store.bound_to(own, schema="jobs_2").create_job(NewJob(job_type="t"))
            assert listener.wait(60 * SECOND) == {"default"}
    undo(goqueue_database, to=0, schema="jobs_2")
    assert all(one.pending for one in list_migrations(goqueue_database, schema="jobs_2"))
    assert not any(one.pending for one in list_migrations(goqueue_database))


def test_schemas_are_migrated_and_given_roles_at_the_same_time(empty: str) -> None:
    names = ["jobs_1", "jobs_2", "jobs_3"]
    roles, drop = (read_shipped("migrations", f"roles/{name}.sql") for name in ("roles", "drop_roles"))

    def make(name: str) -> None:
        migrate(empty, schema=name)
        with psycopg.connect(empty, autocommit=True) as connection:
            connection.execute(render(roles, name).encode())

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(make, names)) == [None, None, None]
    with psycopg.connect(empty, autocommit=True) as connection:
        for name in names:
            assert check_roles(connection, name).level == "ok"
            connection.execute(render(drop, name).encode())


# --- other ways to add jobs -------------------------------------------------------------------------------------------


def test_other_drivers_and_sql_add_jobs_to_their_schema(stores: list[PostgresStorage]) -> None:
    one, other = stores
    config = DatabaseConfig(schema="jobs_2")
    text, _ = numbered_statement(NewJob(job_type="t"), config)
    assert "goqueue.jobs" not in text
    assert "jobs_2.jobs" in text
    with psycopg.connect(other.config.url, autocommit=True) as connection:
        named, values = named_statement(NewJob(job_type="named"), config)
        connection.execute(named.encode(), values)
        connection.execute("SELECT jobs_2.add_job('sql', '{}')")
        connection.execute("INSERT INTO jobs_2.jobs (job_type) VALUES ('by hand')")
    assert sorted(job.job_type for job in other.list_jobs().jobs) == ["by hand", "named", "sql"]
    assert one.list_jobs().jobs == []


# --- a folder of SQL files --------------------------------------------------------------------------------------------


def folder_with(tmp_path: Path, before: str, after: str) -> str:
    text = (shipped_folder("sql") / "jobs.sql").read_text("utf-8")
    assert before in text
    (tmp_path / "jobs.sql").write_text(text.replace(before, after), encoding="utf-8")
    return str(tmp_path)


GET_JOB = "FROM goqueue.jobs AS j\nWHERE j.id = :id"


def test_a_folder_s_files_name_goqueue_and_run_on_the_schema(two: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GET_JOB, GET_JOB.replace("j.id", "'tuned' = 'tuned' AND j.id"))
    with PostgresStorage.open(DatabaseConfig(url=two, schema="jobs_2", sql_dir=folder)) as store:
        job = store.create_job(NewJob(job_type="t"))
        assert store.get_job(job.id) == job
    tuned = load_statements(folder, "jobs_2")["get_job"].text
    assert "FROM jobs_2.jobs" in tuned
    assert "tuned" in tuned


@pytest.mark.parametrize("name", ['"goqueue".jobs', "GOQUEUE.jobs", "goqueue . jobs", 'goqueue ."jobs"'])
def test_a_name_that_cannot_be_replaced_is_rejected(two: str, tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, GET_JOB, GET_JOB.replace("goqueue.jobs", name))
    with pytest.raises(ConfigError, match=r"query get_job: it names the schema goqueue in a form that is not replaced"):
        PostgresStorage.open(DatabaseConfig(url=two, schema="jobs_2", sql_dir=folder))
    load_queries(folder)  # fine under its own name


@pytest.mark.parametrize("literal", ["'goqueue'", "'goqueue.mail'", "'goqueue.%'"])
def test_a_text_that_would_be_replaced_is_rejected(two: str, tmp_path: Path, literal: str) -> None:
    folder = folder_with(tmp_path, GET_JOB, GET_JOB.replace("j.id", f"j.queue <> {literal} AND j.id"))
    with pytest.raises(
        ConfigError, match=r"query get_job: in the literal 'goqueue.*, goqueue is replaced by jobs_2; if"
    ):
        PostgresStorage.open(DatabaseConfig(url=two, schema="jobs_2", sql_dir=folder))
    load_queries(folder)  # fine under its own name


@pytest.mark.parametrize(
    "condition",
    [
        "'goqueue.jobs'::regclass = j.tableoid", "'goqueue'::regnamespace IS NOT NULL",
        "j.queue <> 'go' || 'queue.mail'", "pg_relation_size('goqueue.jobs') >= 0", "j.queue <> 'goqueues'",
    ],
)  # fmt: skip
def test_a_name_in_a_literal_is_replaced(two: str, tmp_path: Path, condition: str) -> None:
    folder = folder_with(tmp_path, GET_JOB, GET_JOB.replace("j.id", f"{condition} AND j.id"))
    with PostgresStorage.open(DatabaseConfig(url=two, schema="jobs_2", sql_dir=folder)) as store:
        job = store.create_job(NewJob(job_type="t"))
        assert store.get_job(job.id) == job


def test_a_folder_is_compared_with_the_shipped_files_on_the_schema(two: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GET_JOB, "FROM goqueue.jobz AS j\nWHERE j.id = :id")
    with pytest.raises(ConfigError, match=r'query get_job: the server rejects it: relation "jobs_2\.jobz" does not'):
        PostgresStorage.open(DatabaseConfig(url=two, schema="jobs_2", sql_dir=folder))


def test_the_recorded_schema_and_rights_stay_json() -> None:
    for name in ("schema.json", "roles/rights.json"):
        text = (shipped_folder("migrations") / name).read_text("utf-8")
        assert json.loads(render(text, "other"))


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def goqueue_of_two(commands: Commands, two: str, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The `goqueue` command on a database with the schemas jobs_1 and jobs_2; jobs_2 is configured."""
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", two)
    monkeypatch.setenv("GOQUEUE_DATABASE_SCHEMA", "jobs_2")
    return commands


def test_migrate_takes_one_schema_or_several(commands: Commands, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_URL", empty)
    ran = commands("migrate", "--schema", "a", "--schema", "b", "--json")
    documents = ran.json
    assert [(one["schema"], len(one["applied"])) for one in documents] == [("a", LATEST), ("b", LATEST)]
    back = commands("migrate", "--schema", "a", "--target", "1").err
    assert "to go back to version 1: goqueue migrate --schema a --undo-to 1" in back
    listed = commands("migrate", "--list", "--json").json["migrations"]
    assert {one["state"] for one in listed} == {"pending"}
    monkeypatch.setenv("GOQUEUE_DATABASE_SCHEMA", "b")
    assert "nothing to do" in commands("migrate").err
    assert commands("migrate", "--undo-to", "0", "--yes", "--json").json["schema"] == "b"
    assert not any(one.pending for one in list_migrations(empty, schema="a"))
    assert all(one.pending for one in list_migrations(empty, schema="b"))
    refused = commands("migrate", "--schema", "B")
    assert refused.code == 2
    assert "database.schema: got 'B' (argument); expected an identifier" in refused.err


def test_check_finds_a_migrated_schema_sound_with_and_without_its_roles(goqueue_of_two: Commands, two: str) -> None:
    checked = goqueue_of_two("check", "--json")
    assert [one["name"] for one in checked.json["checks"] if one["level"] == "failed"] == []
    [schema] = [one for one in checked.json["checks"] if one["name"] == "schema"]
    assert schema["level"] == "ok"
    with psycopg.connect(two, autocommit=True) as connection:
        connection.execute(goqueue_of_two("sql", "print", "roles.sql").out.encode())
        checked = goqueue_of_two("check", "--json")
        levels = {one["name"]: one["level"] for one in checked.json["checks"]}
        assert (levels["schema"], levels["roles"], levels["grants"]) == ("ok", "ok", "ok")
        owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = '{}'::regnamespace"
        assert connection.execute(owners.format("jobs_2").encode()).fetchall() == [("goqueue_owner_jobs_2",)]
        assert connection.execute(owners.format("jobs_1").encode()).fetchall() != [("goqueue_owner_jobs_2",)]
        connection.execute(goqueue_of_two("sql", "print", "drop_roles.sql").out.encode())
        assert connection.execute("SELECT FROM pg_roles WHERE rolname ~ '_jobs_2$'").fetchall() == []


def test_a_role_of_one_schema_has_no_right_in_another(goqueue_of_two: Commands, two: str) -> None:
    with psycopg.connect(two, autocommit=True) as connection:
        for schema in ("jobs_1", "jobs_2"):
            connection.execute(goqueue_of_two("sql", "print", "roles.sql", "--schema", schema).out.encode())
        try:
            connection.execute("SET ROLE goqueue_operator_jobs_1")
            PostgresStorage.bound_to(connection, schema="jobs_1").create_job(NewJob(job_type="t"))
            with pytest.raises(SchemaError, match="permission denied for schema jobs_2"):
                PostgresStorage.bound_to(connection, schema="jobs_2").list_jobs()
        finally:
            connection.execute("RESET ROLE")
            for schema in ("jobs_1", "jobs_2"):
                connection.execute(goqueue_of_two("sql", "print", "drop_roles.sql", "--schema", schema).out.encode())


def test_the_advice_of_check_names_the_schema(goqueue_of_two: Commands, two: str) -> None:
    with psycopg.connect(two, autocommit=True) as connection:
        connection.execute("DROP INDEX jobs_2.jobs_claim_idx")
        connection.execute("DROP FUNCTION jobs_2.notify_ready_jobs() CASCADE")
        connection.execute("ALTER TABLE jobs_2.job_failures SET UNLOGGED")
        connection.execute("DELETE FROM jobs_2.migration_checksums WHERE version = 1")
    checked = goqueue_of_two("check", "--schema", "jobs_1", "--schema", "jobs_2", "--json")
    assert checked.code == 3
    sound, broken = checked.json
    assert (sound["schema"], sound["ok"], broken["schema"], broken["ok"]) == ("jobs_1", True, "jobs_2", False)
    findings = [finding for check in broken["checks"] for finding in check["findings"]]
    text = "\n".join(f"{one['found']} {one['why']} {one['do']}" for one in findings)
    assert "goqueue.jobs" not in text
    for part in (
        "CREATE INDEX CONCURRENTLY jobs_claim_idx ON jobs_2.jobs USING",
        "goqueue sql print V0019__notify_at_lower_cost.sql --schema jobs_2 | sed -n '",
        "ALTER TABLE jobs_2.job_failures SET LOGGED;",
        "goqueue sql print record_checksums.sql --schema jobs_2 | psql",
    ):
        assert part in text
    with psycopg.connect(two, autocommit=True) as connection:
        for finding in findings:
            if "sed -n" in finding["do"]:
                name, lines = re.findall(r"print (\S+) .* sed -n '(\d+,\d+)", finding["do"])[0]
                first, last = map(int, lines.split(","))
                printed = goqueue_of_two("sql", "print", name, "--schema", "jobs_2").out
                connection.execute("\n".join(printed.splitlines()[first - 1 : last]).encode())
            elif finding["do"].startswith(("CREATE", "ALTER TABLE")):
                for statement in finding["do"].split("; "):
                    connection.execute(statement.encode())
    left = goqueue_of_two("check", "--json").json["checks"]
    assert [one["findings"] for one in left if one["name"] == "schema"] == [[]]


def test_check_judges_a_folder_on_the_schema(goqueue_of_two: Commands, tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    folder = folder_with(tmp_path / "sql", GET_JOB, GET_JOB.replace("j.id", "'tuned' = 'tuned' AND j.id"))
    checks = goqueue_of_two("check", "--sql-dir", folder, "--scratch", "none", "--json").json["checks"]
    [queries] = [one for one in checks if one["name"] == "queries"]
    assert (queries["level"], "get_job" in queries["summary"]) == ("ok", True)


def test_the_bodies_of_functions_are_compared_too(two: str) -> None:
    with psycopg.connect(two, autocommit=True) as connection:
        assert compare(expected_schema("jobs_2"), read_schema(connection, "jobs_2")) == []
        replace = "CREATE OR REPLACE FUNCTION jobs_2.uuid_v7() RETURNS uuid LANGUAGE sql"
        connection.execute(f"{replace} AS 'SELECT NULL::uuid'".encode())
        [difference] = compare(expected_schema("jobs_2"), read_schema(connection, "jobs_2"))
        assert difference.found is not None
        assert difference.found.name == "uuid_v7()"


def test_the_other_commands_use_the_schema(goqueue_of_two: Commands, stores: list[PostgresStorage]) -> None:
    assert goqueue_of_two("jobs", "create", "send_email").code == 0
    assert [store.count_jobs() for store in stores] == [0, 1]
    assert "jobs_2.jobs" in goqueue_of_two("queries", "get_job").out
    assert "goqueue.jobs" not in goqueue_of_two("queries", "get_job").out
    assert "default" in goqueue_of_two("stats").out
    assert "CREATE TABLE jobs_2.jobs" in goqueue_of_two("sql", "print", "V0001__create_jobs.sql").out


def test_queries_and_plans_are_shown_with_the_schema(goqueue_of_two: Commands, tmp_path: Path) -> None:
    for arguments in (
        ["queries"],
        ["queries", "--json"],
        ["queries", "claim_jobs"],
        ["queries", "claim_jobs", "--json"],
    ):
        shown = goqueue_of_two(*arguments).out
        assert "jobs_2." in shown
        assert re.findall(r"goqueue\.(?!notify\b)\w+", shown) == []
    explained = goqueue_of_two("explain", "--all", "--rows", "2000", "--json")
    assert explained.code == 0, explained.err
    assert "::jobs_2.job_status" in explained.out
    assert re.findall(r"goqueue\.(?!notify\b)\w+", explained.out) == []
    unread = [one["name"] for one in explained.json["queries"] if one["plans"][0]["rows_read"] == 0]
    assert "claim_jobs" not in unread
    (tmp_path / "sql").mkdir()
    folder = folder_with(tmp_path / "sql", GET_JOB, GET_JOB.replace("j.id", "'tuned' = 'tuned' AND j.id"))
    changed = goqueue_of_two("explain", "get_job", "--rows", "2000", "--sql-dir", folder)
    assert "not more expensive than the shipped text" in changed.out


def test_a_worker_runs_the_jobs_of_its_schema(stores: list[PostgresStorage]) -> None:
    done = []
    worker = Worker({"t": lambda job: done.append(job.queue)})
    for store, queue in zip(stores, ("of one", "of the other"), strict=True):
        store.create_job(NewJob(job_type="t", queue=queue))
    worker.run(stores[1], WorkerConfig(queues=("of one", "of the other")), until_empty=True)
    assert done == ["of the other"]
    assert [store.count_jobs(JobFilter(status="pending")) for store in stores] == [1, 0]


def test_the_plugin_s_databases_have_the_schema_of_its_fixture(pytester: pytest.Pytester, goqueue_server: Any) -> None:
    pytester.makeconftest(
        """
        import pytest
        pytest_plugins = ["goqueue.pytest_plugin"]

        @pytest.fixture(scope="session")
        def goqueue_schema():
            return "jobs_2"
        """
    )
    pytester.makepyfile(
        """
        from goqueue import NewJob

        def test_store(goqueue_store, goqueue_connection):
            goqueue_store.create_job(NewJob(job_type="t"))
            assert goqueue_connection.execute("SELECT job_type FROM jobs_2.jobs").fetchall() == [("t",)]
            assert goqueue_connection.execute("SELECT to_regnamespace('goqueue')").fetchall() == [(None,)]
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOQUEUE_TEST_DATABASE_URL", goqueue_server.url)
        patch.setenv("GOQUEUE_TEST_SERVER", "")
        pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
