"""The results of `goqueue check`: checks and their findings."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

__all__ = ["Check", "Finding", "Level", "ended"]


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
