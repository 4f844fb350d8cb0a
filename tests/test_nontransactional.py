"""Migrations outside a transaction, and databases with event triggers: `pgmigrate migrate` and `goqueue migrate`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from goqueue import migrate as runner
from goqueue.migrate import MigrationError, list_migrations, migrate, migrations_dir, undo
from tests import pgbouncer

BASE = migrations_dir()
LATEST = len(list((BASE / "migrations").glob("V*.sql")))
APART, AFTER = LATEST + 1, LATEST + 2
UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS jobs_apart_idx ON goqueue.jobs (job_type);"

PROGRAM = """
import sys
from pathlib import Path
from goqueue.migrate import migrate
migrate(base_dir=Path(sys.argv[1]))
"""

pytestmark = pytest.mark.timeout(180)


def add_index(folder: Path, create: str) -> None:
    """Add an index built concurrently, as migrations/README.md prescribes, and its comment."""
    migrations = folder / "migrations"
    apart, after = f"{APART:04}__NONTRANSACTIONAL_index_apart.sql", f"{AFTER:04}__comment_on_index_apart.sql"
    drop = "-- What an interrupted run left behind.\nDROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_apart_idx;\n"
    comment = "COMMENT ON INDEX goqueue.jobs_apart_idx IS 'Serves a test; nothing else.';\n"
    (migrations / f"V{apart}").write_text(f"{drop}{create}\n")
    (migrations / f"V{after}").write_text(comment)
    (migrations / "undo" / f"U{apart}").write_text("DROP INDEX goqueue.jobs_apart_idx;\n")
    (migrations / "undo" / f"U{after}").write_text("COMMENT ON INDEX goqueue.jobs_apart_idx IS NULL;\n")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the project's migrations, with a concurrently built index and later files."""
    shutil.copytree(BASE / "migrations", tmp_path / "migrations")
    shutil.copy(BASE / "migrations.yml", tmp_path)
    add_index(
        tmp_path, "CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_apart_idx ON goqueue.jobs (job_type, ('a;b'::text));"
    )
    return tmp_path


def command(kind: str, base: Path, *arguments: str) -> list[Any]:
    if kind == "pgmigrate":
        program = Path(sys.executable).with_name("pgmigrate")
        return [program, "migrate", "--disable_schema_check", "--force_mixed", "-d", base, *arguments]
    program = (
        "import sys; from pathlib import Path; from goqueue.migrate import migrate; migrate(base_dir=Path(sys.argv[1]))"
    )
    return [sys.executable, "-c", program, base]


def environment(url: str) -> dict[str, str]:
    options = psycopg.conninfo.conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    return os.environ | {names[key]: str(value) for key, value in options.items() if key in names}


@contextmanager
def started(kind: str, url: str, base: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command(kind, base), env=environment(url), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(kind: str, url: str, base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(kind, base, *arguments), env=environment(url), capture_output=True, text=True, check=False
    )


def ask(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def versions(url: str) -> list[int]:
    return [version for (version,) in ask(url, "SELECT version FROM goqueue.schema_version ORDER BY 1")]


def indexes(url: str) -> list[Any]:
    """Return whether jobs_apart_idx is valid, and its comment."""
    return ask(
        url,
        "SELECT i.indisvalid, obj_description(c.oid, 'pg_class') FROM pg_class AS c "
        "JOIN pg_index AS i ON i.indexrelid = c.oid WHERE c.relname = 'jobs_apart_idx'",
    )


def wait_until(url: str, query: str) -> None:
    deadline = time.monotonic() + 60
    while ask(url, query) != [(True,)]:
        assert time.monotonic() < deadline, query
        time.sleep(0.05)


@contextmanager
def old_snapshot(url: str) -> Iterator["psycopg.Connection[Any]"]:
    """A transaction that an index build waits for."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SET SESSION idle_in_transaction_session_timeout = 0")
        connection.execute("SELECT count(*) FROM goqueue.jobs")
        yield connection


BUILDING = """
    SELECT count(*) > 0 FROM pg_stat_activity
    WHERE datname = current_database() AND query ~ '^CREATE .*INDEX CONCURRENTLY' AND wait_event_type = 'Lock'
"""
BUILT = [(True, "Serves a test; nothing else.")]

kinds = pytest.mark.parametrize("kind", ["pgmigrate", "goqueue"])


@kinds
def test_an_empty_database_gets_everything_in_one_run(kind: str, empty: str, base: Path) -> None:
    done = run(kind, empty, base)
    assert (done.returncode, done.stderr) == (0, "")
    assert versions(empty) == list(range(1, AFTER + 1))
    assert indexes(empty) == BUILT


@kinds
def test_an_upgrade_can_begin_with_a_nontransactional_file(kind: str, empty: str, base: Path) -> None:
    migrate(empty)
    for _ in range(2):
        done = run(kind, empty, base)
        assert (done.returncode, done.stderr) == (0, "")
    assert versions(empty) == list(range(1, AFTER + 1))
    assert indexes(empty) == BUILT


@kinds
def test_a_nontransactional_file_can_be_the_only_pending_one(kind: str, empty: str, base: Path) -> None:
    migrate(empty)
    (base / "migrations" / f"V{AFTER:04}__comment_on_index_apart.sql").unlink()
    done = run(kind, empty, base)
    assert (done.returncode, done.stderr) == (0, "")
    assert versions(empty)[-1] == APART
    assert indexes(empty) == [(True, None)]


@kinds
def test_a_file_that_failed_halfway_is_repeated_by_the_next_run(kind: str, empty: str, base: Path) -> None:
    add_index(base, UNIQUE)
    migrate(empty)
    with psycopg.connect(empty) as connection:
        connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('twice'), ('twice')")
    for _ in range(2):
        failed = run(kind, empty, base)
        assert failed.returncode == 1
        assert 'could not create unique index "jobs_apart_idx"' in failed.stderr
        assert versions(empty)[-1] == LATEST
        assert indexes(empty) == [(False, None)]
    with psycopg.connect(empty) as connection:
        connection.execute("TRUNCATE goqueue.jobs CASCADE")
    assert run(kind, empty, base).returncode == 0
    assert indexes(empty) == BUILT


def test_the_error_says_what_remains_and_that_the_next_run_repeats_it(empty: str, base: Path) -> None:
    add_index(base, UNIQUE)
    migrate(empty)
    with psycopg.connect(empty) as connection:
        connection.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('twice'), ('twice')")
    with pytest.raises(
        MigrationError, match=r"index_apart\.sql failed; completed statements remain; the next run repeats it"
    ):
        migrate(empty, base_dir=base)
    with pytest.raises(MigrationError, match=r"a dry run can't roll back V.*NONTRANSACTIONAL_index_apart\.sql; use"):
        migrate(empty, base_dir=base, dry_run=True)


@kinds
def test_an_index_build_waits_for_old_transactions_longer_than_a_lock(
    kind: str, empty: str, base: Path, tmp_path: Path
) -> None:
    """lock_timeout, which limits waits that block others, would end the build and leave an invalid index."""
    config = (base / "migrations.yml").read_text()
    (base / "migrations.yml").write_text(config.replace("lock_timeout = '3s'", "lock_timeout = '100ms'"))
    migrate(empty)
    with old_snapshot(empty) as old, started(kind, empty, base) as process:
        wait_until(empty, BUILDING)
        time.sleep(0.5)
        assert process.poll() is None
        old.rollback()
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
    assert indexes(empty) == BUILT


@kinds
def test_limits_of_the_database_end_no_index_build(kind: str, empty: str, base: Path) -> None:
    migrate(empty)
    name = psycopg.conninfo.conninfo_to_dict(empty)["dbname"]
    with psycopg.connect(empty, autocommit=True) as connection:
        for setting in (
            "statement_timeout = '1s'", "idle_in_transaction_session_timeout = '1s'",
            "idle_session_timeout = '1s'", "default_transaction_isolation = 'serializable'",
        ):  # fmt: skip
            connection.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    limits = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
    ours = psycopg.conninfo.make_conninfo(empty, options=" ".join(f"-c {limit}=0" for limit in limits))
    with old_snapshot(ours) as old, started(kind, empty, base) as process:
        wait_until(ours, BUILDING)
        time.sleep(1.2)
        old.rollback()
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
    assert indexes(ours) == BUILT


@pytest.mark.parametrize("first", ["pgmigrate", "goqueue"])
def test_a_second_goqueue_waits_for_a_build_and_then_finds_nothing_to_do(first: str, empty: str, base: Path) -> None:
    migrate(empty)
    with old_snapshot(empty) as old, started(first, empty, base) as one:
        wait_until(empty, BUILDING)
        with started("goqueue", empty, base) as two:
            time.sleep(1)
            assert two.poll() is None
            old.rollback()
            assert [one.wait(60), two.wait(60)] == [0, 0]
    assert versions(empty) == list(range(1, AFTER + 1))
    assert indexes(empty) == BUILT


@pytest.mark.parametrize("first", ["pgmigrate", "goqueue"])
def test_a_second_pgmigrate_gives_up_and_the_build_succeeds(first: str, empty: str, base: Path) -> None:
    config = (base / "migrations.yml").read_text()
    (base / "migrations.yml").write_text(config.replace("1..100", "1..20"))
    migrate(empty)
    with old_snapshot(empty) as old, started(first, empty, base) as one:
        wait_until(empty, BUILDING)
        late = run("pgmigrate", empty, base)
        assert late.returncode == 1
        assert "another run has been changing the schema" in late.stderr
        old.rollback()
        assert one.wait(60) == 0
    assert indexes(empty) == BUILT
    assert run("pgmigrate", empty, base).returncode == 0


def test_a_run_that_times_out_names_the_holder_of_the_lock(
    empty: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "WAIT_SECONDS", 0.2)
    with psycopg.connect(empty, application_name="somebody") as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [runner.LOCK])
        for call in (lambda: migrate(empty, base_dir=base), lambda: undo(empty, to=0, base_dir=base)):
            with pytest.raises(MigrationError, match=rf"process {holder.info.backend_pid} of the server \(somebody\)"):
                call()
        assert len(list_migrations(empty, base_dir=base)) == AFTER  # listing waits for no lock


def test_it_is_undone_with_the_others_in_one_transaction(empty: str, base: Path) -> None:
    migrate(empty, base_dir=base)
    assert undo(empty, to=LATEST, base_dir=base) == [AFTER, APART]
    assert indexes(empty) == []
    assert versions(empty)[-1] == LATEST


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason=pgbouncer.MISSING)
def test_the_lock_and_the_settings_end_in_a_session_that_stays_open(
    empty: str, base: Path, through_pgbouncer: Callable[[str], str]
) -> None:
    migrate(empty, base_dir=base)
    settings = "SELECT current_setting('search_path'), current_setting('lock_timeout')"
    before = ask(through_pgbouncer(empty), settings)
    assert undo(through_pgbouncer(empty), to=LATEST, base_dir=base) == [AFTER, APART]
    # Other tests' databases are also on this server.
    none = (
        "SELECT count(*) = 0 FROM pg_locks AS l JOIN pg_database AS d ON l.database = d.oid "
        "WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.pid <> pg_backend_pid()"
    )
    wait_until(empty, none)  # the session of `migrate` can still be ending
    assert ask(through_pgbouncer(empty), settings) == before == [('"$user", public', "0")]


def test_all_runners_take_the_same_lock() -> None:
    for name in ("migrations.yml", "migrations/roles/roles.sql", "migrations/roles/drop_roles.sql"):
        assert str(runner.LOCK) in (BASE / name).read_text(), name


# --- event triggers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(empty: str) -> str:
    """The URL of a database that records each DDL statement, as hosted ones do."""
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.ddl_log (id serial PRIMARY KEY, tag text NOT NULL)")
        connection.execute(
            "CREATE FUNCTION public.log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.ddl_log (tag) VALUES (tg_tag); END $$"
        )
        connection.execute("CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION public.log_ddl()")
    return empty


def test_without_its_flags_pgmigrate_rejects_both_and_changes_nothing(watched: str, base: Path) -> None:
    """pgmigrate accepts them only on the command line. If migrations.yml ever does, the documents can be shorter."""
    for folder, message in ((BASE, "Unexpected relations used in migrations"), (base, "Schema check is not available")):
        bare = [Path(sys.executable).with_name("pgmigrate"), "migrate", "-d", folder]
        done = subprocess.run(bare, env=environment(watched), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
    assert ask(watched, "SELECT to_regnamespace('goqueue')") == [(None,)]


@kinds
def test_a_database_that_logs_ddl_is_migrated(kind: str, watched: str, base: Path) -> None:
    done = run(kind, watched, base)
    assert (done.returncode, done.stderr) == (0, "")
    assert indexes(watched) == BUILT
    assert ask(watched, "SELECT count(*) > 10 FROM public.ddl_log") == [(True,)]


def test_a_dry_run_and_an_undo_work_with_a_ddl_log(watched: str, base: Path) -> None:
    assert run("pgmigrate", watched, BASE, "--dryrun").returncode == 0
    migrate(watched, dry_run=True)
    assert ask(watched, "SELECT to_regnamespace('goqueue')") == [(None,)]
    migrate(watched)
    undo(watched, to=0)
    assert versions(watched) == []


def test_no_migration_touches_another_schema(empty: str) -> None:
    """The purpose of pgmigrate's own check, which migrations.yml turns off."""
    migrate(empty, target=1)
    undo(empty, to=0)
    with psycopg.connect(empty, autocommit=True) as connection:
        for file in sorted((BASE / "migrations").glob("V*.sql")):
            if "NONTRANSACTIONAL" in file.name:
                migrate(empty, target=int(file.name[1:5]))
                continue
            with connection.transaction():
                connection.execute(file.read_bytes())
                touched = connection.execute(
                    "SELECT DISTINCT n.nspname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation "
                    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE l.pid = pg_backend_pid() "
                    "AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
                ).fetchall()
                assert set(touched) <= {("goqueue",)}, file.name
                connection.execute(
                    "INSERT INTO goqueue.schema_version (version, description, installed_by) VALUES (%s, '', 'test')",
                    [int(file.name[1:5])],
                )
