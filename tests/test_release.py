"""The release: the tag's check, the workflows, and that the linters of the workflows find what they are there for."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tools.release import main, notes

REPO = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((REPO / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 1.2.3, 2026-11-26\n\n### The store\n\n- One.\n- Two.\n\n## 1.2.2, 2026-10-01\n\n- Old.\n"
    )
    return tmp_path


def test_a_version_s_notes_are_its_part_of_the_changelog(root: Path) -> None:
    assert notes("v1.2.3", root) == "### The store\n\n- One.\n- Two.\n"


@pytest.mark.parametrize(
    ("tag", "heading", "problem"),
    [
        ("v1.2.4", "## 1.2.3, 2026-11-26", "the tag is v1.2.4, and pyproject.toml has version 1.2.3"),
        ("1.2.3", "## 1.2.3, 2026-11-26", "tag this commit v1.2.3"),
        ("v1.2.3", "## 1.2.3, unreleased", "no heading like `## 1.2.3, 2026-01-31`"),
        ("v1.2.3", "## 1.2.30, 2026-11-26", "no heading like"),
        ("v1.2.3", "## 1.2.3, 2026-11-26\n\n## 1.2.2b, 2026-11-25", "nothing below the heading of 1.2.3"),
    ],
)
def test_a_tag_that_does_not_fit_is_rejected(root: Path, tag: str, heading: str, problem: str) -> None:
    file = root / "CHANGELOG.md"
    file.write_text(file.read_text().replace("## 1.2.3, 2026-11-26", heading))
    with pytest.raises(ValueError, match=re.escape(problem)):
        notes(tag, root)


def test_this_changelog_has_the_version_s_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\n## {version}, " in (REPO / "CHANGELOG.md").read_text("utf-8")
    monkeypatch.setattr(sys, "argv", ["release", "v0.0.0"])
    with pytest.raises(SystemExit, match=r"the tag is v0\.0\.0"):
        main()


def test_the_check_needs_nothing_installed() -> None:
    command = [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(REPO)!r}); import tools.release"]
    subprocess.run(command, check=True)


def steps() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the steps of all workflows, each with the job's name and the job."""
    for file in WORKFLOWS:
        for name, job in yaml.safe_load(file.read_text("utf-8"))["jobs"].items():
            for step in job.get("steps", ()):
                yield f"{file.stem}.{name}", job, step


def test_every_action_is_pinned_to_one_commit_of_a_named_version() -> None:
    pins: dict[str, set[str]] = {}
    for file in WORKFLOWS:
        for used in re.findall(r"uses: (\S.*)", file.read_text("utf-8")):
            if not used.startswith("$/"):
                found = re.fullmatch(r"([\w/-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+", used)
                assert found, used
                pins.setdefault(found[1], set()).add(used)
    assert {"actions/checkout", "actions/attest"} <= set(pins)
    assert all(len(used) == 1 for used in pins.values()), pins


def test_every_target_that_a_workflow_makes_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE)
    made = {name for _, _, step in steps() for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert {"lint", "test", "test-lowest", "build", "sbom", "audit"} <= made <= set(targets)


def test_only_the_publishing_job_has_an_identity_and_it_runs_no_code_of_the_repository() -> None:
    for file in WORKFLOWS:
        assert yaml.safe_load(file.read_text("utf-8"))["permissions"] == {}
    rights = {name: job["permissions"] for name, job, _ in steps()}
    assert {name: given for name, given in rights.items() if given != {"contents": "read"}} == {
        "release.publish": {"id-token": "write", "attestations": "write"},
        "release.github": {"contents": "write"},
    }
    for name, job, step in steps():
        if name in ("release.publish", "release.github"):
            assert not str(step.get("uses", "")).startswith("actions/checkout@")
            assert not re.search(r"\bmake\b|tools\.", step.get("run", ""))
        if name == "release.publish":
            assert job["environment"] == "pypi"


def lint(folder: Path) -> str:
    """Run the linters of `make lint` on the workflows of a folder; return their output, empty if they find nothing."""
    makefile = (REPO / "Makefile").read_text("utf-8").replace("$(BIN)", str(BIN))
    commands = re.findall(rf"^\t({re.escape(str(BIN))}/(?:actionlint|zizmor) .+)$", makefile, re.MULTILINE)
    assert len(commands) == 2
    done = [
        subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        for command in commands
    ]
    return "".join(one.stdout + one.stderr for one in done if one.returncode != 0)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(REPO / ".github", tmp_path / ".github")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def test_the_linters_find_nothing(copy: Path) -> None:
    assert lint(copy) == ""


@pytest.mark.parametrize(
    ("file", "change", "finding"),
    [
        ("ci.yml", lambda text: re.sub(r"checkout@\w+ # v[\d.]+", "checkout@v7", text), "unpinned-uses"),
        ("ci.yml", lambda text: text.replace("persist-credentials: false", "fetch-depth: 1"), "artipacked"),
        (
            "ci.yml",
            lambda text: re.sub(r" +permissions:\n +contents: read\n|permissions: \{\}\n", "", text),
            "excessive-perm",
        ),
        (
            "release.yml",
            lambda text: text.replace('"$GITHUB_REF_NAME" >', "${{ github.ref_name }} >"),
            "template-injection",
        ),
        ("release.yml", lambda text: text.replace("needs: ci\n", "needs: cj\n"), "job-needs"),
        ("release.yml", lambda text: text.replace('create "$GITHUB_REF_NAME"', "create $GITHUB_REF_NAME"), "SC2086"),
        ("ci.yml", lambda text: text.replace("matrix.postgres }}", "matrix.postgre }}"), 'property "postgre" is not'),
    ],
)
def test_the_linters_find_a_fault(copy: Path, file: str, change: Callable[[str], str], finding: str) -> None:
    workflow = copy / ".github" / "workflows" / file
    text = workflow.read_text("utf-8")
    assert change(text) != text
    workflow.write_text(change(text), "utf-8")
    assert finding in lint(copy)


@pytest.mark.parametrize("version", ["3.2.8", "3.3.0", "3.3.1"])
def test_a_pool_that_swallows_cancellations_is_not_allowed(version: str) -> None:
    wanted = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    [pool] = [found for found in map(Requirement, wanted) if found.name == "psycopg-pool"]
    assert not pool.specifier.contains(version)
