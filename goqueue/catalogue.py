"""Reads the comments of the SQL files, and writes what is made from files: the catalogue, the checksums, the modules
without async. ``python -m goqueue.catalogue`` writes, ``--check`` only says whether they are fresh. Imports
goqueue.config, goqueue.queries, goqueue.sqlfiles and goqueue.unasync."""

import argparse
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec

from goqueue.config import SECTIONS, format_duration, settings_of
from goqueue.queries import load_queries, shipped_folder
from goqueue.sqlfiles import migration_files
from goqueue.unasync import made_modules

_NAME = re.compile(r"^-- name: (\w+)\((.*)\)([\^$!]?)$")
_RESULTS = {"^": "one row or none", "$": "one value or none", "!": "the number of rows", "": "rows"}
_BEGIN = "<!-- Below: made by `make catalogue` from the SQL files; change those. -->"

_SETTINGS_BEGIN = "<!-- settings: made by `make catalogue` from goqueue/config.py -->"
_SETTINGS_END = "<!-- end of settings -->"


class QueryNote(msgspec.Struct, frozen=True):
    """What a SQL file says of one of its queries."""

    name: str
    file: str
    parameters: tuple[str, ...]
    #: "one row or none", "one value or none", "rows" …
    result: str
    purpose: str
    returns: str
    index: str
    locks: str
    notes: str = ""


def read_notes(folder: Path | None = None) -> list[QueryNote]:
    """The notes of all queries, in the files' order. ValueError for a query that lacks a part of its comment."""
    return [note for file in sorted((folder or shipped_folder("sql")).glob("*.sql")) for note in _notes_of(file)]


def _notes_of(file: Path) -> Iterator[QueryNote]:
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not (match := _NAME.match(line)):
            continue
        parts = {"purpose": ""}
        part = "purpose"
        for comment in lines[number + 1 :]:
            if not comment.startswith("--"):
                break
            text = comment.removeprefix("--").strip()
            heading, colon, rest = text.partition(": ")
            if colon and heading in ("Returns", "Index", "Locks", "Notes"):
                part, text = heading.lower(), rest
            parts[part] = f"{parts.get(part, '')} {text}".strip()
        missing = [name for name in ("purpose", "returns", "index", "locks") if not parts.get(name)]
        if missing:
            raise ValueError(f"{file.name}: the comment of {match[1]} says nothing of {', '.join(missing)}")
        yield QueryNote(
            name=match[1],
            file=file.name,
            parameters=tuple(name.strip() for name in match[2].split(",") if name.strip()),
            result=_RESULTS[match[3]],
            purpose=parts["purpose"],
            returns=parts["returns"],
            index=parts["index"],
            locks=parts["locks"],
            notes=parts.get("notes", ""),
        )


def parameter_types(name: str) -> dict[str, str]:
    """The parameters of a shipped query and the type each is cast to."""
    sql: str = getattr(load_queries(), name).sql
    return {match[1]: match[2] for match in re.finditer(r"%\((\w+)\)s::([a-z_. ]+?(?:\[\])?)(?=[^a-z_. \[\]])", sql)}


def catalogue() -> str:
    """sql/README.md below its hand-written part."""
    out = [_BEGIN, ""]
    notes = read_notes()
    for file in dict.fromkeys(note.file for note in notes):
        out += [f"## {file}", "", "| query | for |", "| --- | --- |"]
        of_file = [note for note in notes if note.file == file]
        out += [f"| [{note.name}](#{note.name}) | {note.purpose.split('. ')[0].rstrip('.')}. |" for note in of_file]
        out.append("")
        for note in of_file:
            types = parameter_types(note.name)
            parameters = ", ".join(f"`{name} {types[name].strip()}`" for name in note.parameters) or "none"
            out += [
                f"### {note.name}",
                "",
                note.purpose,
                "",
                f"- **Parameters:** {parameters}",
                f"- **Result** ({note.result}): {note.returns}",
                f"- **Index:** {note.index}",
                f"- **Locks:** {note.locks}",
                *([f"- **Notes:** {note.notes}"] if note.notes else []),
                "",
            ]
    return "\n".join(out).rstrip() + "\n"


def checksums() -> str:
    """migrations/callbacks/record_checksums.sql."""
    files = migration_files(shipped_folder("migrations"))
    rows = [f"            ({file.version}, '{file.name}', '{file.sha256}')" for file in files]
    return "\n".join(
        [
            "-- Made by `make catalogue` from the migration files; change those.",
            "--",
            "-- Runs at the end of a `pgmigrate migrate` that applied something. What is recorded once stays: a file",
            "-- that was edited after it was applied has another checksum than the one in the table, and shows.",
            "DO $$",
            "BEGIN",
            "    -- A run with an earlier target ends before there is a table to record in.",
            "    IF to_regclass('goqueue.migration_checksums') IS NOT NULL THEN",
            "        INSERT INTO goqueue.migration_checksums (version, file_name, sha256)",
            "        SELECT",
            "            f.version,",
            "            f.file_name,",
            "            f.sha256",
            "        FROM (VALUES",
            ",\n".join(rows),
            "        ) AS f (version, file_name, sha256)",
            "        INNER JOIN goqueue.schema_version AS applied ON applied.version = f.version",
            "        ON CONFLICT (version) DO NOTHING;",
            "    END IF;",
            "END",
            "$$;",
            "",
        ]
    )


def settings_table() -> str:
    """The settings in README.md."""
    rows = (
        f"| `{setting.variable}` | {_shown_default(setting.default)} | {setting.rule.description} |"
        for section in SECTIONS
        for setting in settings_of(section)
    )
    return "\n".join(["| variable | default | |", "| --- | --- | --- |", *rows])


def _shown_default(value: object) -> str:
    match value:
        case timedelta():
            return format_duration(value)
        case tuple():
            return ", ".join(value)
    return "" if value == "" else str(value)


def made_files() -> dict[Path, str]:
    """Each file that is made from others, and what it should hold."""
    readme = shipped_folder("sql") / "README.md"
    by_hand = readme.read_text(encoding="utf-8").partition(_BEGIN)[0] if readme.exists() else ""
    front = readme.parent.parent / "README.md"
    before, begin, rest = front.read_text(encoding="utf-8").partition(_SETTINGS_BEGIN)
    return {
        front: f"{before}{begin}\n\n{settings_table()}\n\n{_SETTINGS_END}{rest.partition(_SETTINGS_END)[2]}",
        readme: by_hand + catalogue(),
        shipped_folder("migrations") / "callbacks" / "record_checksums.sql": checksums(),
        **made_modules(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    stale = [
        (path, text)
        for path, text in made_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if check:
            sys.stderr.write(f"{path.name} is stale: run `make catalogue` and commit what it changes\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
