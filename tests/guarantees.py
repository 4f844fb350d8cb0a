"""Reads docs/guarantees.md: each promise with the statements, constraints, tests and mutants that it names."""

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guarantees.md"
#: The promises end at this heading.
END = "## What is not promised"
_FIELDS = ("Statements", "Constraints", "Tests", "Mutants")


class Promise(NamedTuple):
    """A section of the page. ``tests`` are (name, file); ``mutants`` are (place, what), as `make mutants` has them."""

    title: str
    statements: list[str]
    constraints: list[str]
    tests: list[tuple[str, str]]
    mutants: list[tuple[str, str]]


def promises(text: str | None = None) -> list[Promise]:
    """Return the promises. Raises ValueError if a section lacks a field."""
    text = PAGE.read_text("utf-8") if text is None else text
    if END not in text:
        raise ValueError(f"docs/guarantees.md has no heading {END!r}")
    return [_promise(*section.split("\n", 1)) for section in text.partition(END)[0].split("\n## ")[1:]]


def _promise(title: str, body: str) -> Promise:
    fields = dict(re.findall(r"^- \*\*(\w+):\*\* (.+(?:\n  .+)*)", body, re.MULTILINE))
    if missing := [field for field in _FIELDS if not fields.get(field)]:
        raise ValueError(f"docs/guarantees.md, {title}: add {', '.join(missing)}")
    statements, constraints, mutants = (
        [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", fields[field])]
        for field in ("Statements", "Constraints", "Mutants")
    )
    tests = re.findall(r"\[(\w+)\]\(\.\./(tests/\w+\.py)\)", fields["Tests"])
    places = [mutant.partition(": ")[::2] for mutant in mutants]
    return Promise(title, statements, constraints, tests, places)
