"""The check of the documents finds faults, and the real pages have none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import api
from tools.documents import ROOT, anchors, documents, faults


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the documents and their link targets, to spoil one of them."""
    for folder in ("docs", "migrations", "sql", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.md"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_the_documents_have_no_fault(copy: Path) -> None:
    assert list(faults()) == []
    assert list(faults(copy)) == []
    assert len(documents()) >= 11


@pytest.mark.parametrize(
    ("file", "change", "fault"),
    [
        ("README.md", lambda text: text + "\n" * 100, "lines, at most 150"),
        ("README.md", lambda text: text + "[sql](sql/README.md)\n", "README.md links to sql/README.md: the README is"),
        ("README.md", lambda text: text.replace("main/docs/api.md", "main/docs/apis.md"), "there is no such file"),
        ("README.md", lambda text: text.replace("bench/results.svg", "bench/result.svg"), "there is no such file"),
        (
            "docs/errors.md",
            lambda text: text.replace("api.md#errors", "api.md#error"),
            "that file has no heading #error",
        ),
        (
            "docs/guarantees.md",
            lambda text: text.replace("[test_a_second_completion_changes_nothing]", "[test_twice]"),
            "docs/guarantees.md links to test_twice: ../tests/test_leases.py has no such test",
        ),
        (
            "README.md",
            lambda text: text.replace("with Postgres", "when Postgres"),
            "no Python: when Postgres",
        ),
        ("docs/errors.md", lambda text: text + "[x][y]\n\n[y]: ../none.md\n", "docs/errors.md links to ../none.md"),
        ("migrations/README.md", lambda text: text.replace("(#roles)", "(#role)"), "that file has no heading #role"),
        (
            "migrations/README.md",
            lambda text: text.replace("V0018__", "V0118__"),
            "does not name V0018__analyze_sooner",
        ),
    ],
)
def test_a_fault_is_found(copy: Path, file: str, change: Callable[[str], str], fault: str) -> None:
    page = copy / file
    page.write_text(change(page.read_text("utf-8").rstrip("\n") + "\n"), "utf-8")
    assert any(fault in found for found in faults(copy))


def test_anchors_are_made_as_github_makes_them() -> None:
    text = "# The `sql/` folder, and *why*\n\n## Roles\n\n## Roles\n\n```\n# no heading\n```\n"
    assert anchors(text) == {"the-sql-folder-and-why", "roles", "roles-1"}


def test_a_public_name_without_a_place_in_the_reference_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "public_names", lambda: {"Job", "AsyncStorage", "Novelty"})
    with pytest.raises(ValueError, match="no group of the page has Novelty"):
        api.page({})
