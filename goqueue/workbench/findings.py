"""The results of `goqueue check`: checks and their findings."""

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from goqueue.schemas import DEFAULT_SCHEMA, render

__all__ = ["Check", "Finding", "Level", "ended", "in_schema"]


class Level(StrEnum):
    """The result of a check, or the weight of a finding. Only `failed` is an error."""

    OK = "ok"
    NOTE = "note"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """A problem: what was found, why it matters, and what to do (a command or a statement, if possible)."""

    level: Level
    found: str
    why: str = ""
    do: str = ""


class Check(msgspec.Struct, frozen=True):
    """A check: its name, result, a short summary, and its findings."""

    name: str
    level: Level
    summary: str
    findings: tuple[Finding, ...] = ()


def ended(name: str, summary: str, findings: Iterable[Finding]) -> Check:
    """Return a check whose result is that of its worst finding. The findings are sorted, worst first."""
    order = list(Level)
    sorted_findings = sorted(findings, key=lambda finding: -order.index(finding.level))
    worst = sorted_findings[0].level if sorted_findings else Level.OK
    return Check(name, worst, summary, tuple(sorted_findings))


def in_schema(check: Check, schema: str) -> Check:
    """Return the check with its texts, which are written for the schema goqueue, for another schema."""
    if schema == DEFAULT_SCHEMA:
        return check
    findings = [
        replace(one, found=render(one.found, schema), why=render(one.why, schema), do=advice_in(one.do, schema))
        for one in check.findings
    ]
    return replace(check, summary=render(check.summary, schema), findings=tuple(findings))


def advice_in(do: str, schema: str) -> str:
    """Return what to do, written for the schema goqueue, for another schema: with the option --schema of commands."""
    if schema == DEFAULT_SCHEMA:
        return do
    option = f"--schema {schema}"
    # A statement of a migration's file: the file itself names goqueue.
    do = re.sub(r"(sed -n '[^']*') \S*?(V\d+__\w+\.sql)'? \|", rf"goqueue sql print \2 {option} | \1 |", do)
    do = re.sub(r"(goqueue sql print \S+) \|", rf"\1 {option} |", do)
    do = re.sub(r"goqueue migrate(?: +\(or pgmigrate migrate[^)]*\))?", f"goqueue migrate {option}", do)
    return render(do.replace("pg_restore -n goqueue ", f"pg_restore -n {schema} "), schema)
