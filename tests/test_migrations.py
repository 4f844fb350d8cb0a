"""The migrations: applied by the real pgmigrate, undone by their undo files, together and one by one."""

import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest

from goqueue.config import DatabaseConfig
from goqueue.migrate import MigrationError, migrate, migrations_dir, undo
from goqueue.postgres.lexemes import split

BASE = migrations_dir()
FILES = sorted((BASE / "migrations").glob("V*.sql"))
LATEST = len(FILES)

CATALOG = {
    "relations": """
        SELECT c.relname, c.relkind, c.reloptions, obj_description(c.oid, 'pg_class') FROM pg_class AS c
        WHERE c.relnamespace = 'goqueue'::regnamespace AND c.relname NOT LIKE 'schema_version%' ORDER BY 1""",
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid), a.attstattarget, a.attstorage, col_description(c.oid, a.attnum)
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'goqueue'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0
            AND NOT a.attisdropped AND c.relname <> 'schema_version' ORDER BY 1, a.attnum""",
    "views": """
        SELECT viewname, definition FROM pg_views WHERE schemaname = 'goqueue' ORDER BY 1""",
    "indexes": """
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'goqueue' AND tablename <> 'schema_version' ORDER BY 1""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'goqueue'::regnamespace AND conrelid <> 'goqueue.schema_version'::regclass
        ORDER BY 1, 2""",
    "types": """
        SELECT t.typname, e.enumlabel, obj_description(t.oid, 'pg_type') FROM pg_type AS t
        JOIN pg_enum AS e ON e.enumtypid = t.oid WHERE t.typnamespace = 'goqueue'::regnamespace
            AND t.typname <> 'schema_version_type' ORDER BY 1, e.enumsortorder""",
    "functions": """
        SELECT p.proname, pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc') FROM pg_proc AS p
        WHERE p.pronamespace = 'goqueue'::regnamespace ORDER BY 1""",
    "triggers": """
        SELECT pg_get_triggerdef(oid) FROM pg_trigger
        WHERE tgrelid::regclass::text LIKE 'goqueue.%' AND NOT tgisinternal ORDER BY 1""",
}


def catalog(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {name: connection.execute(query).fetchall() for name, query in CATALOG.items()}


def versions(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT version FROM goqueue.schema_version ORDER BY 1").fetchall()
    return [version for (version,) in rows]


def bare_pgmigrate(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `pgmigrate migrate` from the checkout, as an operator does: the PG* variables name the database."""
    options = psycopg.conninfo.conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    variables = {names[key]: str(value) for key, value in options.items() if key in names}
    return subprocess.run(
        [Path(sys.executable).with_name("pgmigrate"), "migrate", *arguments],
        cwd=BASE, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_files_are_numbered_without_gaps_and_each_has_an_undo_file() -> None:
    names = [file.name for file in FILES]
    for number, name in enumerate(names, 1):
        assert re.fullmatch(rf"V{number:04}__(?:NONTRANSACTIONAL_)?[a-z0-9_]+\.sql", name), (
            f"{name}: name it V{number:04}__<what_it_does>.sql, in lower case"
        )
    undo_names = {file.name for file in (BASE / "migrations" / "undo").iterdir()}
    wanted = {"U" + name[1:] for name in names}
    assert undo_names == wanted, f"migrations/undo: add {wanted - undo_names}, remove {undo_names - wanted}"
    for file in FILES:
        assert re.match(r"--(?:.*\n--)* Locks: ", file.read_text("utf-8")), (
            f"{file.name}: begin with the reason and the locks"
        )
    strangers = {path.name for path in (BASE / "migrations").iterdir()} - set(names)
    assert strangers == {"README.md", "callbacks", "online", "roles", "schema.json", "undo"}
    # pgmigrate would treat a second file V0015 as a separate version.
    online_names = {file.name for file in (BASE / "migrations" / "online").iterdir()}
    assert online_names <= {"C" + name[1:] for name in names}


INDEXES = """
    SELECT c.relname, i.indisvalid, pg_get_indexdef(c.oid) FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid
    WHERE i.indrelid = 'goqueue.jobs'::regclass ORDER BY 1
"""


@pytest.fixture
def in_use(empty: str) -> str:
    """A database with a job, before the list indexes were rebuilt."""
    migrate(empty, target=14)
    with psycopg.connect(empty) as connection:
        connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
    return empty


def indexes(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(INDEXES).fetchall()


def test_indexes_of_a_table_in_use_are_built_while_programs_write(in_use: str, goqueue_database: str) -> None:
    with psycopg.connect(in_use) as older, psycopg.connect(in_use, autocommit=True) as writer:
        older.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('uncommitted')")
        writer.execute("SET lock_timeout = '5s'")
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(migrate, in_use)
            # It waits for the older transaction, and nothing waits for it.
            while not writer.execute("SELECT FROM pg_stat_progress_create_index WHERE phase ~ 'waiting'").rowcount:
                assert not run.done(), run.result()
            writer.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('meanwhile')")
            writer.execute("UPDATE goqueue.jobs SET priority = 1 WHERE job_type IN ('t', 'meanwhile')")
            older.commit()
            run.result()
    assert indexes(in_use) == indexes(goqueue_database)
    assert catalog(in_use) == catalog(goqueue_database)


@pytest.mark.parametrize(
    "index",
    ["jobs_list_idx", "jobs_running_idx", "jobs_pending_idx", "jobs_finished_queue_idx", "jobs_unique_key_idx"],
)
def test_an_index_that_an_interrupted_build_left_is_rebuilt(in_use: str, index: str, goqueue_database: str) -> None:
    with psycopg.connect(in_use) as connection:
        connection.execute(f"CREATE INDEX {index} ON goqueue.jobs (status)")
        connection.execute(f"UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'goqueue.{index}'::regclass")
    migrate(in_use)
    assert indexes(in_use) == indexes(goqueue_database)


ONLINE = sorted((BASE / "migrations" / "online").glob("C*__*.sql"))


def run_online(url: str, file: Path) -> None:
    """Run a file of migrations/online as psql does: each statement commits by itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in split(file.read_text()):
            connection.execute(statement.encode())


@pytest.mark.parametrize("file", ONLINE, ids=lambda file: file.stem)
def test_an_online_file_keeps_a_valid_index_and_rebuilds_an_invalid_one(empty: str, file: Path) -> None:
    def nodes() -> dict[str, int]:
        with psycopg.connect(empty) as connection:
            rows = connection.execute(
                "SELECT c.relname, c.oid::bigint FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
                "WHERE i.indrelid = 'goqueue.jobs'::regclass AND i.indisvalid"
            )
            return dict(rows.fetchall())

    migrate(empty, target=int(file.name[1:5]) - 1)
    before = nodes()
    run_online(empty, file)
    built = nodes()
    run_online(empty, file)
    assert nodes() == built
    for name in sorted(built.keys() - before.keys()):
        with psycopg.connect(empty) as connection:
            connection.execute(f"UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'goqueue.{name}'::regclass")
        run_online(empty, file)
        now = nodes()
        assert now.keys() == built.keys()
        assert {other for other in built if now[other] != built[other]} == {name}
        built = now
    assert built.keys() > before.keys()


@pytest.mark.parametrize("file", ONLINE, ids=lambda file: file.stem)
def test_an_online_file_fails_and_changes_nothing_after_its_migration(goqueue_database: str, file: Path) -> None:
    before = indexes(goqueue_database)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=f"V{file.name[1:5]} is applied"):
        run_online(goqueue_database, file)
    assert indexes(goqueue_database) == before


@pytest.mark.parametrize("file", ONLINE, ids=lambda file: file.stem)
def test_an_online_file_sets_its_limits_before_anything_else(file: Path) -> None:
    first, second, third, *_ = split(file.read_text())
    assert first.endswith("SET search_path = pg_catalog, pg_temp")
    assert second.endswith("SET statement_timeout = 0")
    assert "SET lock_timeout" in third


@pytest.mark.parametrize("index", ["jobs_running_idx", "jobs_pending_idx", "jobs_finished_type_idx"])
def test_bare_pgmigrate_stops_at_an_index_that_an_interrupted_build_left(in_use: str, index: str) -> None:
    with psycopg.connect(in_use) as connection:
        connection.execute(f"CREATE INDEX {index} ON goqueue.jobs (id) WHERE status = 'running'")
        connection.execute(f"UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'goqueue.{index}'::regclass")
    done = bare_pgmigrate(in_use)
    assert done.returncode != 0
    assert f"invalid: goqueue.{index}" in done.stderr
    assert "REINDEX INDEX CONCURRENTLY" in done.stderr
    with psycopg.connect(in_use, autocommit=True) as connection:
        connection.execute(f"REINDEX INDEX CONCURRENTLY goqueue.{index}".encode())
    assert bare_pgmigrate(in_use).returncode == 0


def test_a_dry_run_on_a_table_in_use_leaves_no_index(in_use: str) -> None:
    before = indexes(in_use)
    migrate(in_use, dry_run=True)
    assert indexes(in_use) == before


def test_bare_pgmigrate_works_on_a_table_in_use_with_and_without_the_online_file(
    in_use: str, goqueue_database: str
) -> None:
    for file in ONLINE:
        run_online(in_use, file)
    built = {name for name, _, _ in indexes(in_use)}
    assert {
        "jobs_list_idx",
        "jobs_running_idx",
        "jobs_status_idx",
        "jobs_pending_idx",
        "jobs_finished_type_idx",
        "jobs_unique_key_idx",
    } <= built
    for _ in range(2):
        done = bare_pgmigrate(in_use)
        assert (done.returncode, done.stderr) == (0, "")
        assert indexes(in_use) == indexes(goqueue_database)
        undo(in_use, to=14)
        assert {"jobs_status_idx", "jobs_queue_idx"} <= {name for name, _, _ in indexes(in_use)}


def test_a_transactional_file_can_follow_a_nontransactional_one() -> None:
    """pgmigrate runs its callbacks, which record the checksums, only with transactional files."""
    apart = [number for number, file in enumerate(FILES) if "NONTRANSACTIONAL" in file.name]
    assert not [FILES[number].name for number in apart if number + 1 in (*apart, LATEST)]


def test_files_are_ascii_as_pgmigrate_requires() -> None:
    for file in (BASE / "migrations").rglob("*.sql"):
        assert file.read_bytes().isascii(), f"{file.name}: write ASCII only"


def test_bare_pgmigrate_works_from_the_checkout(empty: str) -> None:
    done = bare_pgmigrate(empty)
    assert (done.returncode, done.stderr) == (0, "")
    assert versions(empty) == list(range(1, LATEST + 1))


def test_goqueue_and_pgmigrate_create_and_record_the_same(empty: str, goqueue_database: str) -> None:
    assert bare_pgmigrate(empty).returncode == 0  # the other database is from the template, migrated by goqueue
    assert catalog(empty) == catalog(goqueue_database)
    for query in (
        "SELECT version, description, type::text, installed_by FROM goqueue.schema_version ORDER BY 1",
        "SELECT version, file_name, sha256 FROM goqueue.migration_checksums ORDER BY 1",
        """SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns
        WHERE table_name = 'schema_version' ORDER BY ordinal_position""",
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'goqueue.schema_version'::regclass",
    ):
        rows = []
        for url in (empty, goqueue_database):
            with psycopg.connect(url) as connection:
                rows.append(connection.execute(query.encode()).fetchall())
        assert rows[0] == rows[1] != []


@pytest.mark.parametrize("first", ["pgmigrate", "goqueue"])
def test_either_continues_what_the_other_has_begun(empty: str, first: str) -> None:
    runners = [lambda target: bare_pgmigrate(empty, "-t", str(target)), lambda target: migrate(empty, target=target)]
    if first == "goqueue":
        runners.reverse()
    for target in range(1, LATEST + 1):
        runners[target % 2](target)
        assert versions(empty)[-1] == target


def test_a_second_run_changes_nothing(empty: str) -> None:
    migrate(empty)
    before = catalog(empty)
    with psycopg.connect(empty) as connection:
        first = connection.execute("SELECT * FROM goqueue.schema_version ORDER BY 1").fetchall()
    migrate(empty)
    assert bare_pgmigrate(empty).returncode == 0
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT * FROM goqueue.schema_version ORDER BY 1").fetchall() == first
    assert catalog(empty) == before


def test_two_concurrent_runs_both_succeed(empty: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: bare_pgmigrate(empty), range(3)))
    assert [run.returncode for run in done] == [0, 0, 0], done
    assert versions(empty) == list(range(1, LATEST + 1))


def test_up_down_up_gives_the_same_catalog_at_every_step(empty: str) -> None:
    way_up = []
    for target in range(1, LATEST + 1):
        migrate(empty, target=target)
        assert versions(empty)[-1] == target
        way_up.append(catalog(empty))
    for target in range(LATEST - 1, 0, -1):
        undo(empty, to=target)
        assert versions(empty)[-1] == target
        assert catalog(empty) == way_up[target - 1], f"after taking V{target + 1} back"
    undo(empty, to=0)
    assert [name for name, rows in catalog(empty).items() if rows] == []
    migrate(empty)
    assert catalog(empty) == way_up[-1]


def test_an_undo_file_can_be_run_by_psql(empty: str) -> None:
    migrate(empty)
    for file in sorted((BASE / "migrations" / "undo").iterdir(), reverse=True):
        with psycopg.connect(empty) as connection:
            connection.execute(file.read_bytes())
    assert versions(empty) == []
    migrate(empty)
    assert versions(empty) == list(range(1, LATEST + 1))


def test_checksums_are_recorded_as_applied(empty: str) -> None:
    migrate(empty)
    with psycopg.connect(empty) as connection:
        rows = connection.execute(
            "SELECT version, file_name, sha256 FROM goqueue.migration_checksums ORDER BY 1"
        ).fetchall()
    assert rows == [
        (version, file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for version, file in enumerate(FILES, 1)
    ]


def test_every_object_has_a_comment_in_the_catalog(goqueue_connection: psycopg.Connection[Any]) -> None:
    silent = goqueue_connection.execute(
        """
        SELECT c.relname, a.attname FROM pg_class AS c LEFT JOIN pg_attribute AS a
            ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v')
        WHERE c.relnamespace = 'goqueue'::regnamespace AND c.relname NOT LIKE 'schema_version%'
            AND NOT (c.relkind = 'i' AND c.relname LIKE '%_pkey')
            AND (obj_description(c.oid, 'pg_class') IS NULL OR
                 (a.attnum IS NOT NULL AND col_description(c.oid, a.attnum) IS NULL))
        """
    ).fetchall()
    assert silent == [], "write a COMMENT ON each of these in the migration"


def test_a_manually_inserted_row_gets_a_time_ordered_id(goqueue_connection: psycopg.Connection[Any]) -> None:
    ids = []
    for _ in range(3):
        row = goqueue_connection.execute(
            "INSERT INTO goqueue.jobs (job_type) VALUES ('t') RETURNING id, pg_sleep(0.002)"
        ).fetchone()
        assert row is not None
        ids.append(row[0])
    assert ids == sorted(ids)
    for job_id in ids:
        assert isinstance(job_id, UUID)
        assert (job_id.version, job_id.variant) == (7, "specified in RFC 4122")
    clock = goqueue_connection.execute("SELECT extract(epoch FROM clock_timestamp()) * 1000").fetchone()
    assert clock is not None
    assert abs((ids[-1].int >> 80) - float(clock[0])) < 60_000


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ("queue = ''", "jobs_queue_length"),
        ("queue = repeat('x', 256)", "jobs_queue_length"),
        ("job_type = ''", "jobs_job_type_length"),
        ("idempotency_key = ''", "jobs_idempotency_key_length"),
        ("unique_key = ''", "jobs_unique_key_length"),
        ("unique_key = repeat('x', 256)", "jobs_unique_key_length"),
        ("max_attempts = 0", "jobs_max_attempts_range"),
        ("attempts = -1", "jobs_attempts_range"),
        ("attempts = max_attempts + 1", "jobs_attempts_range"),
        ("status = 'running'", "jobs_running_is_locked"),
        ("status = 'running', locked_by = 'w'", "jobs_running_is_locked"),
        ("locked_at = now()", "jobs_running_is_locked"),
        ("status = 'running', locked_by = '', locked_at = now()", "jobs_locked_by_length"),
        ("status = 'completed'", "jobs_finished_has_time"),
        ("completed_at = now()", "jobs_finished_has_time"),
    ],
)
def test_constraints_reject_contradictory_manual_changes(
    goqueue_connection: psycopg.Connection[Any], columns: str, constraint: str
) -> None:
    goqueue_connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        goqueue_connection.execute(f"UPDATE goqueue.jobs SET {columns}")  # type: ignore[arg-type]
    assert caught.value.diag.constraint_name == constraint


def test_migrating_gives_up_on_a_lock_before_the_programs_that_wait_behind_it(in_use: str) -> None:
    files = [BASE / "migrations.yml", *ONLINE, *(BASE / "migrations" / "roles").glob("*.sql")]
    limits = [int(found) for file in files for found in re.findall(r"lock_timeout = '(\d+)s'", file.read_text("utf-8"))]
    assert len(limits) == 4
    assert max(limits) + 1 < DatabaseConfig().lock_timeout.total_seconds()
    with psycopg.connect(in_use) as program:
        program.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
        began = monotonic()
        with pytest.raises(MigrationError, match=r"lock timeout[\s\S]*A long transaction holds a lock"):
            migrate(in_use, dry_run=True)
        assert monotonic() - began < max(limits) + 1
