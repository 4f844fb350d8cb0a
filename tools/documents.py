"""Checks the documents: lengths, links, names of tests, Python examples, and that migrations/README.md names every
migration.

``python -m tools.documents`` prints each fault and exits with 1 if there is one. Imports markdown_it, and nothing of
goqueue.
"""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
#: The most lines for each document with one reader and one purpose. Rows of tables don't count: recipes add them.
LENGTHS = {"README.md": 150, "sql/README.md": 150, "migrations/README.md": 250, "CONTRIBUTING.md": 250}
_FOLDERS = (".", "docs", "migrations", "sql", "tests/bench")
# The published README is read outside the repository, so its links must be absolute.
_PUBLISHED = "README.md"
_ADDRESS = re.compile(
    r"https://(?:github\.com/goqueue/goqueue/blob|raw\.githubusercontent\.com/goqueue/goqueue)/main/(.+)"
)

# Generated: its blocks are signatures.
_SIGNATURES = "docs/api.md"
# A link to a test: [test_name](../tests/test_file.py).
_TEST = re.compile(r"\[(test_\w+)\]\(([^)]+\.py)\)")

_markdown = MarkdownIt("commonmark")


def documents(root: Path = ROOT) -> list[Path]:
    """Return the documents of the repository."""
    return [file for folder in _FOLDERS for file in sorted((root / folder).glob("*.md"))]


def faults(root: Path = ROOT) -> Iterator[str]:
    """Yield each fault as one sentence."""
    for file in documents(root):
        name, text = file.relative_to(root).as_posix(), file.read_text("utf-8")
        lines = len(text.splitlines())
        if lines > (most := LENGTHS.get(name, lines)):
            yield f"{name} has {lines} lines, at most {most} are allowed: shorten it, or move a part to its subject"
        for target in _targets(text):
            if fault := _fault(root, file, target):
                yield f"{name} links to {target}: {fault}"
        for token in _markdown.parse(text):
            if token.type == "fence" and token.info == "python" and name != _SIGNATURES:
                try:  # that it runs is for the tests of the page
                    compile(token.content, "<example>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                except SyntaxError as error:
                    yield f"{name} has an example that is no Python: {error.text} ({error.msg})"
        for test, target in _TEST.findall(text):
            code = file.parent / target
            if code.exists() and not re.search(rf"^ *(?:async )?def {test}\(", code.read_text("utf-8"), re.MULTILINE):
                yield f"{name} links to {test}: {target} has no such test"
    described = (root / "migrations" / "README.md").read_text("utf-8")
    for migration in sorted((root / "migrations").glob("V*.sql")):
        if f"`{migration.name}`" not in described:
            yield f"migrations/README.md does not name {migration.name}: add it to the table"


def _fault(root: Path, file: Path, target: str) -> str:
    """Return what is wrong with a link; empty for an external address."""
    if own := _ADDRESS.fullmatch(target):
        path, _, anchor = own[1].partition("#")
        found = root / path
    elif re.match(r"[a-z]+:", target):
        return ""
    else:
        if file == root / _PUBLISHED:
            return (
                "the README is published, so its links need an address (https://github.com/goqueue/goqueue/blob/main/)"
            )
        path, _, anchor = target.partition("#")
        found = file.parent / path if path else file
    if not found.exists():
        return "there is no such file"
    if anchor and anchor not in anchors(found.read_text("utf-8")):
        return f"that file has no heading #{anchor}"
    return ""


def _targets(text: str) -> Iterator[str]:
    for token in _inline(text):
        for attribute in ("href", "src"):
            if isinstance(target := token.attrs.get(attribute), str):
                yield target


def _inline(text: str) -> Iterator[Token]:
    for token in _markdown.parse(text):
        yield from token.children or ()


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub assigns to the headings of a document."""
    found: set[str] = set()
    tokens = _markdown.parse(text)
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(token.content for token in content.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 0
            while (anchor := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(anchor)
    return found


def main() -> None:
    found = list(faults())
    sys.stderr.writelines(f"{fault}\n" for fault in found)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
