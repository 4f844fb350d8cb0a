"""The results of `goqueue check`: checks and their findings."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

__all__ = ["Check", "Finding", "Level", "ended"]


class Level(StrEnum):
    """How a check has ended, or how much a finding matters. Only `failed` is an error."""

    OK = "ok"
    NOTE = "note"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """What was found, why it matters, and what to do: a command or a statement, where there is one."""

    level: Level
    found: str
    why: str = ""
    do: str = ""


class Check(msgspec.Struct, frozen=True):
    """One check: its name, how it has ended, what it saw in a few words, and what it found."""

    name: str
    level: Level
    summary: str
    findings: tuple[Finding, ...] = ()


def ended(name: str, summary: str, findings: Iterable[Finding]) -> Check:
    """Return the check, as bad as its worst finding, with the worst first."""
    order = list(Level)
    sorted_findings = sorted(findings, key=lambda finding: -order.index(finding.level))
    worst = sorted_findings[0].level if sorted_findings else Level.OK
    return Check(name, worst, summary, tuple(sorted_findings))
