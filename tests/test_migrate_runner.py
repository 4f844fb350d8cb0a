"""Running pgmigrate and the undo files: what is applied, how concurrent runs end, and the error messages."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from goqueue import ConnectionRejectedError
from goqueue import migrate as runner
from goqueue.migrate import MigrationError, list_migrations, migrate, migrations_dir, migrations_hash, undo
from goqueue.pytest_plugin import DatabaseServer, DatabaseUrl, _database_url

pytestmark = pytest.mark.timeout(120)

CONFIG = """
target: latest
conn: ''
schema: goqueue
session:
  - SET lock_timeout = '1s'
  - SELECT pg_advisory_xact_lock(4711)
"""


@pytest.fixture
def database(goqueue_server: DatabaseServer) -> Iterator[DatabaseUrl]:
    """The URL of an empty database."""
    name = f"goqueue_test_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(goqueue_server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield _database_url(goqueue_server.url, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with three small migrations and their undo files."""
    folder = tmp_path / "with a space"
    (folder / "migrations" / "undo").mkdir(parents=True)
    (folder / "migrations.yml").write_text(CONFIG)
    for version in (1, 2, 3):
        (folder / "migrations" / f"V000{version}__t.sql").write_text(f"CREATE TABLE goqueue.t{version} (a int);\n")
        back = f"DROP TABLE goqueue.t{version};\nSELECT 'a % sign';\n"
        (folder / "migrations" / "undo" / f"U000{version}__t.sql").write_text(back)
    return folder


def ask(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def versions(url: str) -> list[int]:
    return ask(url, "SELECT version FROM goqueue.schema_version ORDER BY version")


def tables(url: str) -> list[str]:
    return ask(url, "SELECT tablename FROM pg_tables WHERE tablename ~ '^t[0-9]$' ORDER BY 1")


def test_everything_pending_is_applied_once(database: str, base: Path) -> None:
    migrate(database, target=2, base_dir=base)
    assert versions(database) == [1, 2]
    migrate(database, base_dir=base)
    migrate(database, base_dir=base)
    assert versions(database) == [1, 2, 3]
    assert tables(database) == ["t1", "t2", "t3"]


def test_runs_at_the_same_time_all_succeed(database: str, base: Path) -> None:
    (base / "migrations.yml").write_text(CONFIG.replace("1s", "60s"))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: migrate(database, base_dir=base), range(4))) == [None] * 4
    assert versions(database) == [1, 2, 3]


def test_the_project_s_own_migrations_go_up_down_and_up(database: str) -> None:
    migrate(database)
    newest = versions(database)[-1]
    assert undo(database, to=0) == list(range(newest, 0, -1))
    assert versions(database) == []
    assert ask(database, "SELECT to_regclass('goqueue.jobs')") == [None]
    migrate(database)
    assert versions(database)[-1] == newest


def test_without_a_conninfo_the_environment_names_the_database(
    database: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = psycopg.conninfo.conninfo_to_dict(database)
    for name, variable in (("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER"), ("password", "PGPASSWORD")):
        if name in options:
            monkeypatch.setenv(variable, str(options[name]))
    monkeypatch.setenv("PGDATABASE", str(options["dbname"]))
    migrate(base_dir=base)
    monkeypatch.setenv("PGDATABASE", "no_such_database")
    migrate(database, base_dir=base)  # the argument overrides the environment
    with pytest.raises(ConnectionRejectedError, match='database "no_such_database" does not exist'):
        migrate(base_dir=base)


def test_a_service_with_options_is_read_as_libpq_reads_it(
    database: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = tmp_path / "services"
    services.write_text("[there]\nhost=localhost\nport=1\ndbname=nowhere\noptions=-c work_mem=77kB\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    given = psycopg.conninfo.make_conninfo(database, service="there")
    migrate(given, target=1, base_dir=base)
    monkeypatch.setenv("PGSERVICE", "there")
    file = base / "migrations" / "V0004__session.sql"
    file.write_text("CREATE TABLE goqueue.t4 AS SELECT current_setting('work_mem') AS work_mem;\n")
    migrate(database, base_dir=base)
    assert ask(database, "SELECT work_mem FROM goqueue.t4") == ["77kB"]
    with pytest.raises(MigrationError, match="port 1 failed"):
        migrate("service=there", base_dir=base)


def test_an_option_without_an_environment_variable_is_used(database: str, base: Path) -> None:
    migrate(psycopg.conninfo.make_conninfo(database, sslpassword="x", keepalives_idle=9), base_dir=base)
    assert versions(database) == [1, 2, 3]


def test_the_connection_is_not_on_a_command_line(database: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    migrate(database, base_dir=base)
    assert undo(database, to=2, base_dir=base) == [3]


def test_each_version_is_reported_before_it_is_applied_and_a_dry_run_leaves_nothing(database: str, base: Path) -> None:
    told: list[int] = []
    migrate(database, base_dir=base, dry_run=True, on_version=told.append)
    assert told == [1, 2, 3]
    assert ask(database, "SELECT to_regnamespace('goqueue')") == [None]
    migrate(database, target=1, base_dir=base, on_version=told.append)
    assert told == [1, 2, 3, 1]


def test_the_list_shows_what_is_applied_and_what_is_pending(database: str, base: Path) -> None:
    assert [(one.version, one.name, one.pending) for one in list_migrations(database, base_dir=base)] == [
        (1, "t", True), (2, "t", True), (3, "t", True),
    ]  # fmt: skip
    migrate(database, target=2, base_dir=base)
    listed = list_migrations(database, base_dir=base)
    assert [one.pending for one in listed] == [False, False, True]
    assert listed[0].applied_by == psycopg.conninfo.conninfo_to_dict(database).get("user", "postgres")
    assert listed[2][2:] == (None, None)


def test_a_malformed_conninfo_is_not_repeated(base: Path) -> None:
    with pytest.raises(MigrationError) as caught:
        migrate("host=localhost hunter2", base_dir=base)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_an_error_shows_only_the_servers_message_and_the_file(database: str, base: Path) -> None:
    file = base / "migrations" / "V0004__bad.sql"
    file.write_text("SELECT 1;\nCREATE TABLE goqueue.t1 (a int);\n")
    with pytest.raises(MigrationError) as caught:
        migrate(database, base_dir=base)
    assert str(caught.value) == (
        f'V0004__bad.sql failed and was rolled back: relation "t1" already exists\n(file: {file})'
    )
    assert ask(database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'goqueue'") == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 'ä';", "Non ascii symbols in file: .*V0004__bad.sql"),
        ("SELECT * FRM x;", "V0004__bad.sql failed and was rolled back: syntax error at or near"),
    ],
)
def test_other_errors_are_one_readable_sentence(database: str, base: Path, text: str, message: str) -> None:
    (base / "migrations" / "V0004__bad.sql").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(MigrationError, match=message) as caught:
        migrate(database, base_dir=base)
    assert "Traceback" not in str(caught.value)


def test_an_unreachable_server_is_named(base: Path) -> None:
    with pytest.raises(MigrationError, match="port 1 failed: Connection refused") as caught:
        migrate("postgresql://ann:hunter2@127.0.0.1:1/x", base_dir=base)
    assert "hunter2" not in str(caught.value)


def test_a_held_lock_ends_in_an_error_not_in_waiting(database: str, base: Path) -> None:
    migrate(database, target=1, base_dir=base)
    with psycopg.connect(database) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(4711)")
        with pytest.raises(MigrationError, match="lock timeout"):
            migrate(database, base_dir=base)
        with pytest.raises(MigrationError, match=r"could not obtain the migration lock: .*lock timeout"):
            undo(database, to=0, base_dir=base)
    assert versions(database) == [1]


def test_undo_goes_down_to_a_version(database: str, base: Path) -> None:
    assert undo(database, to=0, base_dir=base) == []
    migrate(database, base_dir=base)
    assert undo(database, to=1, base_dir=base) == [3, 2]
    assert (versions(database), tables(database)) == ([1], ["t1"])
    assert undo(database, to=1, base_dir=base) == []


def test_a_failed_undo_changes_nothing(database: str, base: Path) -> None:
    migrate(database, base_dir=base)
    file = base / "migrations" / "undo" / "U0002__t.sql"
    file.write_text("DROP TABLE goqueue.t2;\nDROP TABLE goqueue.never;\n")
    with pytest.raises(MigrationError, match=r'U0002__t.sql failed and was rolled back: table "never" does not exist'):
        undo(database, to=0, base_dir=base)
    assert (versions(database), tables(database)) == ([1, 2, 3], ["t1", "t2", "t3"])
    file.unlink()
    with pytest.raises(MigrationError, match="version 2 can't be undone: 0 files U0002__"):
        undo(database, to=0, base_dir=base)
    assert (versions(database), tables(database)) == ([1, 2, 3], ["t1", "t2", "t3"])


def test_the_hash_follows_what_migrate_reads(base: Path) -> None:
    seen = {migrations_hash(base)}
    (base / "migrations" / "undo" / "U0001__t.sql").write_text("SELECT 1;")
    (base / "migrations" / "README.md").write_text("words")
    assert {migrations_hash(base)} == seen
    (base / "migrations" / "V0003__t.sql").rename(base / "migrations" / "V0003__u.sql")
    seen.add(migrations_hash(base))
    (base / "migrations" / "V0003__u.sql").write_text("SELECT 1;")
    seen.add(migrations_hash(base))
    (base / "migrations.yml").write_text(CONFIG + "# more\n")
    seen.add(migrations_hash(base))
    (base / "migrations" / "callbacks").mkdir()
    (base / "migrations" / "callbacks" / "after.sql").write_text("SELECT 1;")
    seen.add(migrations_hash(base))
    assert len(seen) == 5


def test_the_folder_is_found_in_a_checkout_and_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (migrations_dir() / "migrations.yml").is_file()
    package = tmp_path / "site" / "goqueue"
    (package / "migrations").mkdir(parents=True)
    monkeypatch.setattr(runner, "__file__", str(package / "migrate.py"))
    with pytest.raises(MigrationError, match=r"no migrations\.yml"):
        migrations_dir()
    shutil.copy(Path(__file__).parent.parent / "migrations.yml", package)
    with pytest.raises(MigrationError, match=r"no migrations\.yml and migrations/V\*\.sql"):
        migrations_dir()
    (package / "migrations" / "V0001__t.sql").touch()
    assert migrations_dir() == package
