"""An installation that is incomplete or inside an archive is reported as such, without an AttributeError or half a
store."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from goqueue.migrate import migrations_dir

REPO = Path(__file__).resolve().parent.parent
OPEN = "from goqueue import PostgresStorage\nPostgresStorage.open(sys.argv[1])"
BOUND = "import psycopg\nfrom goqueue import PostgresStorage\nPostgresStorage.bound_to(psycopg.connect(sys.argv[1]))"
COLUMNS = "from goqueue.workbench.notes import read_columns\nread_columns()"
SCHEMA = "from goqueue.workbench.schema import expected_schema\nexpected_schema()"
MIGRATE = "from goqueue.migrate import migrate\nmigrate(sys.argv[1])"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The package as a wheel installs it."""
    site = tmp_path / "site"
    base = migrations_dir()
    shutil.copytree(REPO / "goqueue", site / "goqueue", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("sql", "migrations"):
        shutil.copytree(base / folder, site / "goqueue" / folder)
    shutil.copy(base / "migrations.yml", site / "goqueue")
    return site


def said(program: str, place: Path, *arguments: str) -> str:
    """Return the error of a program that uses goqueue from ``place``; nothing if there is none."""
    program = f"""
import sys
import goqueue
assert goqueue.__file__.startswith({str(place)!r}), goqueue.__file__
try:
    exec({program!r})
except goqueue.GoQueueError as error:
    print(type(error).__name__, *str(error).splitlines())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program), *arguments],
        env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True, text=True, check=False, cwd=place.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_complete_installation_opens_a_store(site: Path, goqueue_database: str) -> None:
    for program in (OPEN, BOUND, COLUMNS, SCHEMA, MIGRATE):
        assert said(program, site, goqueue_database) == ""


@pytest.mark.parametrize("program", [OPEN, BOUND], ids=["open", "bound_to"])
@pytest.mark.parametrize("missing", ["sql", "sql/stats.sql", "sql/leases.sql"])
def test_a_wheel_without_its_sql_is_reported(site: Path, goqueue_database: str, program: str, missing: str) -> None:
    gone = site / "goqueue" / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    error = said(program, site, goqueue_database)
    assert error.startswith("ConfigError")
    assert f"this installation of goqueue is incomplete: {site / 'goqueue' / 'sql'} has no " in error
    assert "install it again (pip install --force-reinstall goqueue)" in error
    assert (Path(missing).name if missing != "sql" else "checks.sql, jobs.sql, leases.sql") in error


@pytest.mark.parametrize(
    ("program", "file", "name"),
    [
        (COLUMNS, "sql/columns.json", "ConfigError"),
        (SCHEMA, "migrations/schema.json", "ConfigError"),
        (MIGRATE, "migrations.yml", "MigrationError"),
    ],
)
def test_a_missing_file_beside_the_package_is_named(
    site: Path, goqueue_database: str, program: str, file: str, name: str
) -> None:
    (site / "goqueue" / file).unlink()
    error = said(program, site, goqueue_database)
    assert error.startswith(name)
    assert Path(file).name in error
    assert "install" in error


def test_missing_migrations_are_reported(site: Path, goqueue_database: str) -> None:
    for file in (site / "goqueue" / "migrations").glob("V*.sql"):
        file.unlink()
    assert said(MIGRATE, site, goqueue_database).startswith("MigrationError no migrations.yml and migrations/V*.sql in")
    shutil.rmtree(site / "goqueue" / "migrations")
    assert said(MIGRATE, site, goqueue_database).startswith("MigrationError no migrations.yml and migrations/V*.sql in")
    assert "incomplete" in said(SCHEMA, site, goqueue_database)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-- name: get_job\n"], ids=["empty", "no text", "broken"])
def test_an_unreadable_file_is_named(site: Path, goqueue_database: str, content: bytes) -> None:
    (site / "goqueue" / "sql" / "jobs.sql").write_bytes(content)
    error = said(OPEN, site, goqueue_database)
    assert error.startswith("ConfigError")
    assert str(site / "goqueue" / "sql" / "jobs.sql") in error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_is_read_later_is_required_too(site: Path, goqueue_database: str) -> None:
    for file, program in (("sql/jobs.sql", OPEN), ("sql/columns.json", COLUMNS), ("migrations/schema.json", SCHEMA)):
        (site / "goqueue" / file).chmod(0)
        assert said(program, site, goqueue_database).startswith("ConfigError")


def test_an_archive_is_named(site: Path, goqueue_database: str, tmp_path: Path) -> None:
    archive = tmp_path / "goqueue.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(site.rglob("*")):
            packed.write(file, file.relative_to(site))
    for program in (OPEN, BOUND, COLUMNS, SCHEMA):
        error = said(program, archive, goqueue_database)
        assert error.startswith("ConfigError")
        assert f"goqueue was imported from an archive, {archive}, and its SQL must be files in a folder" in error
        assert "install it unpacked, as pip does" in error
    assert said(MIGRATE, archive, goqueue_database).startswith("MigrationError")
