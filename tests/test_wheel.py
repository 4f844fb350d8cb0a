"""The built wheel: installed elsewhere it finds its SQL, migrates a database and stores a job."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from goqueue.migrate import migrations_dir

PROGRAM = """
    import sys
    from pathlib import Path
    import goqueue
    from goqueue.migrate import migrate, migrations_dir, undo
    from goqueue.queries import shipped_folder
    site = Path(sys.argv[2])
    assert Path(goqueue.__file__).is_relative_to(site), goqueue.__file__
    assert shipped_folder("sql").is_relative_to(site)
    assert migrations_dir().is_relative_to(site)
    assert (migrations_dir() / "migrations" / "roles" / "roles.sql").is_file()
    undo(sys.argv[1], to=0)
    migrate(sys.argv[1])
    with goqueue.PostgresStorage.open(sys.argv[1]) as store:
        print(store.create_job(goqueue.NewJob(job_type="t", payload={"from": "wheel"})).payload)
"""


@pytest.mark.timeout(300)
def test_an_installed_wheel_is_whole(goqueue_database: str, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    site = tmp_path / "site"
    for command in (
        [
            uv,
            "build",
            "--wheel",
            "--quiet",
            "--python",
            sys.executable,
            "--out-dir",
            tmp_path / "dist",
            migrations_dir(),
        ],
        [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", site],
    ):
        wheels = [] if command[1] == "build" else list((tmp_path / "dist").glob("*.whl"))
        subprocess.run([*command, *wheels], check=True, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), goqueue_database, site],
        env=os.environ | {"PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "{'from': 'wheel'}\n"), done.stderr
