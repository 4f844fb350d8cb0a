"""Generates the synchronous modules from the asynchronous ones beside them.

The rules replace a few words in the whole text, including comments and docstrings. (The package unasync leaves
docstrings unchanged.)
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "goqueue"

_RULES = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r"(?m)^.*# async only\n", ""),
        (r"Iterable(\[NewJob\])?(?:,| \|) AsyncIterable(\[NewJob\])?", r"Iterable\1"),
        (r"each\((\w+)\)", r"\1"),
        (
            r", for asyncio\. Open one per event loop and share it between tasks::",
            ". Open one per process and share it between threads::",
        ),
        (
            r"that runs jobs in tasks\. A handler is a coroutine function; a plain function blocks the event loop::",
            "that runs jobs in threads. A handler is a function that takes the job::",
        ),
        (r"\bgoqueue\.work\.tasks\b", "goqueue.work.threads"),
        (r"with await Async(\w+)\.open\(", r"with \1.open("),
        (r"await psycopg\.AsyncConnection\.connect\(", "psycopg.connect("),
        (r"Awaitable\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1"),
        (r"\basync (def|for|with)\b", r"\1"),
        (r"from asyncio import Lock\b", "from threading import Lock"),
        (r"await asyncio\.to_thread\((\w+), ", r"\1("),
        (r"await to_the_end\((.*)\)", r"\1"),
        (r"\b((?:goqueue|waiting)(?:\.\w+)*\.\w+)_async\b", r"\1"),
        (r"\bawait ", ""),
        (r"\bA `Async", "A `"),
        (r"(?:Async|Cancellable)(?=[A-Z])", ""),
        (r"\baclosing\b", "closing"),
        (r"\basynccontextmanager\b", "contextmanager"),
        (r"__a(enter|exit|iter|next)__", r"__\1__"),
        (r"\basyncio\b", "time"),
    )
]


def made_modules() -> dict[Path, str]:
    """Return each synchronous module with its expected text."""
    return {
        source.with_name(source.name.replace("_async", "")): synchronous(source)
        for source in sorted(PACKAGE.rglob("*_async.py"))
    }


def synchronous(source: Path) -> str:
    """Return the synchronous text of an asynchronous module, formatted."""
    text = source.read_text(encoding="utf-8")
    for pattern, by in _RULES:
        text = pattern.sub(by, text)
    text = f"# Made by `make catalogue` from {source.name}; change that.\n{text}"
    # I001 sorts the imports, F401 drops those no longer needed, C416 and UP028 shorten loops.
    check = ["check", "--quiet", "--fix-only", "--unsafe-fixes", "--select", "I001,F401,F811,C416,UP028"]
    for arguments in (check, ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", source.name, "-"]
        text = subprocess.run(command, input=text, capture_output=True, check=True, text=True, encoding="utf-8").stdout
    return text


if __name__ == "__main__":
    for path, text in made_modules().items():
        path.write_text(text, encoding="utf-8")
