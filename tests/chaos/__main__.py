"""`python -m tests.chaos`: run the faults, print a table and write a report as JSON.

After a violation, the calls and the history are beside the report.

Imports goqueue.testing.embedded, msgspec, rich and the other modules of this folder.
"""

import argparse
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from goqueue.testing.embedded import _has_room
from tests.chaos.arena import Arena, Size
from tests.chaos.faults import FAULTS
from tests.chaos.journal import Call
from tests.chaos.oracle import PROMISES
from tests.chaos.server import CrashingServer

# On a fast machine, the faults need more time than the calls.
_FULL = Size(calls=10_000, seconds=1200, least=20)
_SHORT = Size(calls=1_000, seconds=3.5)
# Violations of a fault, on the terminal and in the report.
_SHOWN, _KEPT = 10, 200
# The ids, keys and numbers of a message.
_VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|'[\w:-]*'|\d[\d.,]*")


class Result(msgspec.Struct, kw_only=True):
    """One fault's line of the report."""

    fault: str
    purpose: str
    seed: str
    skipped: str = ""
    calls: int = 0
    seconds: float = 0.0
    #: What the fault did, by kind.
    done: dict[str, int] = {}
    #: The calls by answer: ok, the name of an error, or none (the client was killed).
    answers: dict[str, int] = {}
    #: The same calls by the message of the error, for those that are unavailable or unknown.
    reasons: dict[str, int] = {}
    changes: int = 0
    longest: str = ""
    violations: list[tuple[str, str]] = []

    @property
    def is_good(self) -> bool:
        return not self.violations


def main() -> int:
    options = _options()
    size = _SHORT if options.short else _FULL
    size = size._replace(
        calls=options.calls or size.calls, seconds=options.seconds or size.seconds, clients=options.clients
    )
    names = options.only or list(FAULTS)
    console = Console(stderr=True)
    results = []
    start = time.monotonic()
    # In memory if there is room: what a process has written to a file survives its kill, on any file system.
    memory = "/dev/shm" if _has_room(Path("/dev/shm")) else None
    with tempfile.TemporaryDirectory(prefix="goqueue-chaos-", dir=memory) as base:
        folder = Path(base)
        folder.chmod(0o711)  # the server's user enters it
        with CrashingServer(folder / "data") as server:
            version = server.version
            try:
                for name in names:
                    with console.status(f"{name}: {FAULTS[name].purpose}"):
                        keep = options.output.parent / name
                        results.append(_run(name, server, folder / name, keep, f"{options.seed} {name}", size))
            finally:  # the report of a run that breaks off has the faults before
                options.output.parent.mkdir(parents=True, exist_ok=True)
                report = {"seed": options.seed, "server": version, "promises": PROMISES, "faults": results}
                options.output.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    _show(results)
    print(f"PostgreSQL {version}; seed {options.seed}; {time.monotonic() - start:.0f} s; wrote {options.output}")
    short = [
        result.fault
        for result in results
        if not (options.short or result.skipped) and (result.calls < size.calls or result.done.get("left"))
    ]
    if short:
        print(f"fewer than {size.calls:,} calls, or not all cuts: {', '.join(short)}")
    return int(bool(short) or not all(result.is_good for result in results))


def _run(name: str, server: CrashingServer, folder: Path, keep: Path, seed: str, size: Size) -> Result:
    """Run one fault. After a violation, the calls and the history are in ``keep``."""
    fault = FAULTS[name]
    if fault.missing:
        return Result(fault=name, purpose=fault.purpose, seed=seed, skipped=fault.missing)
    start = time.monotonic()
    arena = Arena(server, folder, f"chaos_{name.replace(' ', '_')}", seed, size, lease=fault.lease)
    try:
        fault.run(arena)
        evidence, violations = arena.judge(fault.errors)
    finally:
        arena.close()
    answered = [call for call in evidence.calls if call.ended is not None]
    longest = max(answered, key=lambda call: call.took)
    if violations:
        keep.mkdir(parents=True, exist_ok=True)
        for what, lines in (("calls", evidence.calls), ("history", [change._asdict() for change in evidence.history])):
            (keep / f"{what}.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return Result(
        fault=name,
        purpose=fault.purpose,
        seed=seed,
        calls=len(answered),
        seconds=round(time.monotonic() - start, 1),
        done=dict(arena.done),
        answers=dict(Counter(_answer(call.ended, call.error) for call in evidence.calls).most_common()),
        reasons=dict(Counter(_reason(call) for call in answered if call.is_unavailable).most_common(_KEPT)),
        changes=len(evidence.history),
        longest=f"{longest.took:.1f} s ({longest.method})",
        violations=[(one.promise, one.what) for one in violations[:_KEPT]],
    )


def _reason(call: Call) -> str:
    """Return an error and its message, without the parts that differ in each call."""
    return f"{call.error}: {_VARYING.sub('…', call.said)}"


def _answer(ended: float | None, error: str) -> str:
    return "none" if ended is None else error or "ok"


def _show(results: list[Result]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("fault", "done", "calls", "answers", "longest", "violations"):
        table.add_column(column, justify="right" if column in ("calls", "violations") else "left")
    for one in results:
        if one.skipped:
            table.add_row(one.fault, f"skipped: {one.skipped}")
            continue
        table.add_row(
            one.fault, _counts(one.done), f"{one.calls:,}", _counts(one.answers), one.longest,
            f"[red]{len(one.violations)}[/]" if one.violations else "0",
        )  # fmt: skip
    console.print(table)
    for one in results:
        for promise, what in one.violations[:_SHOWN]:
            console.print(f"[red]{one.fault}[/]: {PROMISES[promise]}: {escape(what)}", highlight=False)


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{kind} {count:,}" for kind, count in counts.items())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break things while clients work, and judge what the store promised."
    )
    parser.add_argument("--short", action="store_true", help="at most two minutes in total")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="the seed of a former run (default: a new one)")
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="run only this fault (repeatable)")
    parser.add_argument("--calls", type=int, help=f"calls per fault (default: {_FULL.calls}; short: {_SHORT.calls})")
    parser.add_argument("--seconds", type=float, help="the longest time per fault")
    parser.add_argument("--clients", type=int, default=3, help="client processes (default: 3)")
    default = Path(__file__).resolve().parents[2] / ".chaos" / "report.json"
    parser.add_argument("--output", type=Path, default=default, help="the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
