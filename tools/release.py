"""Check that a tag fits this checkout, and print its part of CHANGELOG.md: ``python -m tools.release v1.2.3``.

The release workflow runs it first. Imports only the standard library, because nothing is installed there.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def notes(tag: str, root: Path = ROOT) -> str:
    """Return the text below the version's heading in CHANGELOG.md. Raises ValueError if the tag can't be released."""
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, and pyproject.toml has version {version}: tag this commit v{version}")
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(version)}, (.+)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    if found is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]):
        raise ValueError(f"CHANGELOG.md has no heading like `## {version}, 2026-01-31`: date the release there")
    if not found[2].strip():
        raise ValueError(f"CHANGELOG.md has nothing below the heading of {version}")
    return found[2].strip() + "\n"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.release TAG")
    try:
        sys.stdout.write(notes(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
