"""`goqueue migrate` with roles.sql and other owners' objects: what a login can see, and what can be undone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from goqueue import NewJob, PostgresStorage
from goqueue.migrate import MigrationError, list_migrations, migrate, migrations_dir, undo
from goqueue.testing.embedded import EmbeddedServer
from tests.commands import Commands, imports_without_folder

BASE = migrations_dir()
LATEST = len(list((BASE / "migrations").glob("V*.sql")))

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A separate server, because roles belong to the server."""
    with EmbeddedServer(durable=False) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
        migrate(server.url("migrated"))
        for login in ("clerk", "deploy", "stranger"):
            connection.execute(f"CREATE ROLE {login} LOGIN".encode())
        yield server


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a migrated database."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE app TEMPLATE migrated")
        with psycopg.connect(server.url("app"), autocommit=True) as inside:
            yield inside
        connection.execute("DROP DATABASE app WITH (FORCE)")


def run_script(connection: psycopg.Connection, name: str) -> None:
    connection.execute((BASE / "migrations" / "roles" / f"{name}.sql").read_bytes())


@pytest.fixture
def with_roles(admin: psycopg.Connection) -> Iterator[psycopg.Connection]:
    run_script(admin, "roles")
    admin.execute("GRANT goqueue_owner TO deploy; GRANT goqueue_worker TO clerk")
    yield admin
    if admin.execute("SELECT to_regrole('goqueue_owner') IS NOT NULL").fetchone() == (True,):
        run_script(admin, "drop_roles")


def as_role(connection: psycopg.Connection, user: str) -> str:
    return make_conninfo(connection.info.dsn, user=user)


def versions(connection: psycopg.Connection) -> list[int]:
    return [version for (version,) in connection.execute("SELECT version FROM goqueue.schema_version ORDER BY 1")]


# --- what a login sees


@pytest.mark.parametrize(
    ("grants", "lacks"),
    [
        ("", "USAGE ON SCHEMA goqueue and SELECT ON goqueue.schema_version"),
        ("GRANT USAGE ON SCHEMA goqueue TO stranger", "SELECT ON goqueue.schema_version"),
        ("GRANT SELECT ON goqueue.schema_version TO stranger", "USAGE ON SCHEMA goqueue"),
    ],
)
def test_versions_that_a_login_cannot_see_are_not_called_pending(
    admin: psycopg.Connection, grants: str, lacks: str
) -> None:
    admin.execute(grants.encode() or b"SELECT")
    url = as_role(admin, "stranger")
    for call in (lambda: list_migrations(url), lambda: migrate(url), lambda: undo(url, to=0)):
        with pytest.raises(MigrationError) as caught:
            call()
        message = str(caught.value)
        assert "the role stranger can't read the applied versions" in message
        assert f"It lacks {lacks}." in message
    advice = message.partition("To allow it:  ")[2].partition("\n")[0]
    assert "To migrate, connect as postgres, which owns goqueue.schema_version" in message
    admin.execute(advice.encode())
    assert not any(one.pending for one in list_migrations(url))


def test_with_the_roles_the_advice_names_one_of_them(with_roles: psycopg.Connection) -> None:
    url = as_role(with_roles, "stranger")
    with pytest.raises(MigrationError, match="To allow it:  GRANT goqueue_reader TO stranger;"):
        list_migrations(url)
    assert len(list_migrations(as_role(with_roles, "clerk"))) == LATEST


def test_the_error_of_a_role_that_can_only_read_names_the_owner(with_roles: psycopg.Connection, tmp_path: Path) -> None:
    shutil.copytree(BASE / "migrations", tmp_path / "migrations")
    shutil.copy(BASE / "migrations.yml", tmp_path)
    (tmp_path / "migrations" / f"V{LATEST + 1:04}__later.sql").write_text("CREATE TABLE goqueue.later (id integer);\n")
    url = as_role(with_roles, "clerk")
    assert [one.pending for one in list_migrations(url, base_dir=tmp_path)][LATEST - 1 :] == [False, True]
    who = r"connect as goqueue_owner, which owns goqueue\.schema_version, or a member of it"
    with pytest.raises(MigrationError, match=rf"later\.sql failed and was rolled back: permission denied[\s\S]*{who}"):
        migrate(url, base_dir=tmp_path)
    with pytest.raises(MigrationError, match=rf"failed and was rolled back: [\s\S]*{who}[\s\S]*No version was undone"):
        undo(url, to=0)
    assert versions(with_roles) == list(range(1, LATEST + 1))


# --- what migrate says of the roles


def said(connection: psycopg.Connection, commands: Commands, *options: str) -> str:
    """Return the line about the roles that `goqueue migrate` prints on standard error; empty if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOQUEUE_DATABASE_URL", connection.info.dsn)
        result = commands("migrate", *options)
    assert result.code == 0
    return "".join(line for line in result.err.splitlines() if "roles.sql" in line)


#: The version before the table of paused queues, on which roles.sql grants rights.
BEFORE_PAUSES = 23


def test_after_a_migration_the_roles_that_lack_rights_are_named(
    with_roles: psycopg.Connection, commands: Commands
) -> None:
    undo(with_roles.info.dsn, to=BEFORE_PAUSES)
    assert said(with_roles, commands, "--target", str(BEFORE_PAUSES)) == ""  # the script needs all versions
    assert said(with_roles, commands, "--dry-run") == said(with_roles, commands, "--list") == ""
    line = said(with_roles, commands)
    assert line == (
        "Run roles.sql again: goqueue_operator lacks rights, and postgres owns objects that goqueue_owner should own.  "
        "goqueue sql print roles.sql | psql -v ON_ERROR_STOP=1"
    )
    # Until it has run.
    assert said(with_roles, commands, "--json") == line
    run_script(with_roles, "roles")
    assert said(with_roles, commands) == ""


def test_after_a_migration_by_the_owner_only_the_rights_are_lacking(
    with_roles: psycopg.Connection, commands: Commands
) -> None:
    url = make_conninfo(with_roles.info.dsn, user="deploy", options="-c role=goqueue_owner")
    undo(url, to=BEFORE_PAUSES)
    with psycopg.connect(url, autocommit=True) as owner:
        line = said(owner, commands)
    assert line.startswith("Run roles.sql again: goqueue_operator lacks rights.  goqueue sql print roles.sql | psql ")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("SELECT", ""),
        (
            "REVOKE SELECT ON goqueue.jobs FROM goqueue_reader, goqueue_worker",
            "goqueue_reader, goqueue_worker lack rights.",
        ),
        ("ALTER TABLE goqueue.jobs OWNER TO deploy", "deploy owns objects that goqueue_owner should own."),
        # Not restored by the script, or more than it grants.
        ("GRANT SELECT ON goqueue.jobs TO stranger", ""),
        ("CREATE TABLE goqueue.mine (); ALTER TABLE goqueue.mine OWNER TO stranger", ""),
    ],
)
def test_roles_are_mentioned_only_if_they_lack_rights(
    with_roles: psycopg.Connection, commands: Commands, fault: str, expected: str
) -> None:
    with_roles.execute(fault.encode())
    assert expected in said(with_roles, commands)
    assert bool(expected) is bool(said(with_roles, commands))


def test_without_the_roles_they_are_not_mentioned(admin: psycopg.Connection, commands: Commands) -> None:
    undo(admin.info.dsn, to=BEFORE_PAUSES)
    assert said(admin, commands) == ""


# --- undo


@pytest.mark.parametrize("to", range(LATEST))
def test_every_version_can_be_undone_unless_the_roles_need_it(with_roles: psycopg.Connection, to: int) -> None:
    with_roles.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
    url = as_role(with_roles, "deploy")
    if to < 8:  # the policies need this version
        with pytest.raises(MigrationError) as caught:
            undo(url, to=to)
        message = str(caught.value)
        assert "No version was undone." in message
        assert "own_jobs_are_read on table goqueue.jobs depends on column created_by" in message
        assert "Run first:  goqueue sql print drop_roles.sql | psql -v ON_ERROR_STOP=1\n" in message
        assert versions(with_roles) == list(range(1, LATEST + 1))
        assert with_roles.execute("SELECT count(*) FROM goqueue.jobs").fetchone() == (1,)
        run_script(with_roles, "drop_roles")
        url = with_roles.info.dsn
    assert undo(url, to=to) == list(range(LATEST, to, -1))
    assert versions(with_roles) == list(range(1, to + 1))
    migrate(with_roles.info.dsn)
    assert versions(with_roles) == list(range(1, LATEST + 1))


def test_the_roles_keep_their_rights_on_what_a_version_replaces(with_roles: psycopg.Connection) -> None:
    """Producers add jobs after the migration, before roles.sql has run again; and so does a login with own grants."""
    with_roles.execute(
        """
        GRANT goqueue_producer TO clerk;
        CREATE ROLE own LOGIN;
        GRANT USAGE ON SCHEMA goqueue TO own;
        GRANT SELECT, INSERT (job_type, idempotency_key) ON goqueue.jobs TO own;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA goqueue TO own WITH GRANT OPTION;
        """
    )
    rights = """
        SELECT grantee::regrole::text, privilege_type, is_grantable, what
        FROM (
            SELECT (aclexplode(attacl)).*, 'unique_key' AS what FROM pg_attribute
            WHERE attrelid = 'goqueue.jobs'::regclass AND attname = 'unique_key'
            UNION ALL
            SELECT (aclexplode(proacl)).*, proname FROM pg_proc WHERE proname IN ('add_job', 'new_jobs')
        ) AS r WHERE grantee <> 'goqueue_owner'::regrole ORDER BY 1, 2, 4
    """
    try:
        with_roles.execute("GRANT INSERT (unique_key) ON goqueue.jobs TO own")
        before = with_roles.execute(rights).fetchall()
        url = make_conninfo(as_role(with_roles, "deploy"), options="-c role=goqueue_owner")
        undo(url, to=24)
        assert {what for *_, what in with_roles.execute(rights)} == {"add_job", "new_jobs"}
        migrate(url)
        assert with_roles.execute(rights).fetchall() == before
        with PostgresStorage.open(as_role(with_roles, "clerk")) as store:
            assert store.get_or_create_job(NewJob(job_type="t", unique_key="k"))[1]
            assert store.create_jobs([NewJob(job_type="t", unique_key="l")])[0][1]
        with psycopg.connect(as_role(with_roles, "clerk")) as connection:
            call = "SELECT created FROM goqueue.add_job('t', unique_key => 'm')"
            assert connection.execute(call).fetchone() == (True,)
    finally:
        with_roles.execute("REVOKE goqueue_producer FROM clerk; DROP OWNED BY own; DROP ROLE own")


def test_an_undo_keeps_the_grants_on_what_it_recreates(with_roles: psycopg.Connection) -> None:
    with_roles.execute(
        """
        CREATE ROLE exporter;
        GRANT USAGE ON SCHEMA goqueue TO exporter;
        GRANT SELECT ON goqueue.queue_metrics, goqueue.queue_status_metrics TO exporter WITH GRANT OPTION;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA goqueue TO exporter;
        """
    )
    rights = """
        SELECT what, grantee::regrole::text, privilege_type, is_grantable
        FROM (
            SELECT (aclexplode(relacl)).*, relname AS what FROM pg_class WHERE relnamespace = 'goqueue'::regnamespace
            UNION ALL
            SELECT (aclexplode(attacl)).*, attrelid::regclass || '.' || attname FROM pg_attribute
            UNION ALL
            SELECT (aclexplode(proacl)).*, proname FROM pg_proc WHERE pronamespace = 'goqueue'::regnamespace
        ) AS r WHERE grantee <> 'goqueue_owner'::regrole ORDER BY 1, 2, 3
    """
    try:
        url = make_conninfo(as_role(with_roles, "deploy"), options="-c role=goqueue_owner")
        after = with_roles.execute(rights).fetchall()
        for version in reversed(range(8, LATEST)):
            before, after = after, with_roles.execute(rights).fetchall() if undo(url, to=version) else []
            there = {
                name
                for (name,) in with_roles.execute(
                    "SELECT relname FROM pg_class WHERE relnamespace = 'goqueue'::regnamespace UNION "
                    "SELECT proname FROM pg_proc WHERE pronamespace = 'goqueue'::regnamespace UNION "
                    "SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE NOT attisdropped"
                )
            }
            assert {right for right in before if right[0] in there} <= set(after), version
    finally:
        migrate(with_roles.info.dsn)  # drop_roles.sql needs all versions
        with_roles.execute("DROP OWNED BY exporter; DROP ROLE exporter")


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("CREATE VIEW public.mine AS SELECT id, created_by FROM goqueue.jobs", "view public.mine depends on"),
        ("CREATE TABLE public.mine (job uuid REFERENCES goqueue.jobs)", "mine_job_fkey on table public.mine"),
        ("CREATE FUNCTION public.mine(goqueue.job_status) RETURNS int LANGUAGE sql AS 'SELECT 1'", " public.mine("),
    ],
)
def test_dependent_objects_of_others_are_named_and_nothing_is_undone(
    admin: psycopg.Connection, made: str, named: str
) -> None:
    admin.execute(made.encode())
    with pytest.raises(MigrationError) as caught:
        undo(admin.info.dsn, to=0)
    assert "No version was undone." in str(caught.value)
    assert named in str(caught.value)
    assert "CASCADE" not in str(caught.value)
    assert "drop_roles" not in str(caught.value)
    assert versions(admin) == list(range(1, LATEST + 1))


def test_an_undo_of_a_table_in_use_fails_and_undoes_nothing(admin: psycopg.Connection) -> None:
    with psycopg.connect(admin.info.dsn) as program:
        program.execute("INSERT INTO goqueue.jobs (job_type) VALUES ('t')")
        with pytest.raises(MigrationError, match=r"lock timeout[\s\S]*A long transaction[\s\S]*No version was undone"):
            undo(admin.info.dsn, to=5)
    assert versions(admin) == list(range(1, LATEST + 1))


# --- unusual environments


@imports_without_folder
def test_the_command_needs_no_home_temporary_or_working_folder(admin: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('hello'); print('hello', file=sys.stderr)\n")
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); sys.argv[1:] = sys.argv[2:]\n"
        "from goqueue.cli import main; main()"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GOQUEUE_", "PG", "HOME"))}
    environ |= {
        "GOQUEUE_DATABASE_URL": admin.info.dsn, "PYTHONPATH": str(tmp_path), "TMPDIR": "/nonexistent",
        "PYTHONWARNINGS": "always", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for arguments in (["--list"], ["--undo-to", "1", "--yes"], ["--dry-run"], []):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", program, gone, "migrate", *arguments],
            env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert f"{LATEST:04}  " in done.stdout
    assert versions(admin) == list(range(1, LATEST + 1))


def test_files_that_cannot_be_read_are_named(admin: psycopg.Connection, tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"migrations\.yml can't be read"):
        migrate(admin.info.dsn, base_dir=tmp_path)
    (tmp_path / "migrations.yml").write_text("schema: [")
    with pytest.raises(MigrationError, match=r"migrations\.yml can't be read"):
        list_migrations(admin.info.dsn, base_dir=tmp_path)
    (tmp_path / "migrations.yml").write_text("callbacks: 'beforeAll:x.sql'")
    with pytest.raises(MigrationError, match="got a callback beforeAll"):
        list_migrations(admin.info.dsn, base_dir=tmp_path)
    (tmp_path / "migrations.yml").write_text("schema: goqueue")
    for folder in ("a", "b"):
        (tmp_path / "migrations" / folder).mkdir(parents=True)
        (tmp_path / "migrations" / folder / "V0077__x.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationError, match="two files have version 77"):
        migrate(admin.info.dsn, base_dir=tmp_path)
    (tmp_path / "migrations" / "b" / "V0077__x.sql").unlink()
    file = tmp_path / "migrations" / "a" / "V0077__x.sql"
    file.unlink()
    file.mkdir()
    with pytest.raises(MigrationError, match=r"V0077__x\.sql can't be read: Is a directory"):
        migrate(admin.info.dsn, base_dir=tmp_path)
