"""Reads docs/guarantees.md: each promise with the statements, constraints, tests and mutants that it names.

``python -m tests.guarantees`` writes the figures of the last `make chaos` into the page.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
REPORT = ROOT / ".chaos" / "report.json"
#: The figures stand between these lines.
_FIGURES = re.compile(r"(<!-- figures: .*? -->\n).*(<!-- end of figures -->\n)", re.DOTALL)
#: A fault with fewer calls proves little, and is no long run.
_LONG = 10_000
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


def with_figures(text: str, report: dict[str, Any]) -> str:
    """Return the page with the figures of a report of tests.chaos. Raises ValueError for a short run."""
    ran = [fault for fault in report["faults"] if not fault["skipped"]]
    if short := [fault["fault"] for fault in ran if fault["calls"] < _LONG]:
        raise ValueError(f"fewer than {_LONG:,} calls: {', '.join(short)}; run `make chaos` without --short")
    rows = [
        f"| {fault['purpose']} | {_counts(fault['done'])} | {fault['calls']:,} | {fault['longest']} | "
        f"{len(fault['violations'])} |"
        for fault in ran
    ]
    lines = [
        "",
        "## The last long run",
        "",
        f"`make chaos` on PostgreSQL {report['server']}, seed `{report['seed']}`. A violation is a broken promise.",
        "",
        "| fault | how often | calls | longest call | violations |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        *(f"\nSkipped: {fault['fault']} ({fault['skipped']})." for fault in report["faults"] if fault["skipped"]),
        "",
    ]
    return _FIGURES.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items())


if __name__ == "__main__":
    PAGE.write_text(with_figures(PAGE.read_text("utf-8"), json.loads(REPORT.read_bytes())), "utf-8")
