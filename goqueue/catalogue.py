"""Reads the SQL files as text, and writes what is made from files: the catalogue, the checksums, the result columns,
the modules without async.

``python -m goqueue.catalogue`` writes (an embedded server describes the columns), ``--check`` only says whether they
are fresh. Imports goqueue.config, embedded, migrate, queries, sqlfiles, statement and
unasync.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from textwrap import wrap
from typing import Any

import msgspec
import psycopg

from goqueue.config import SECTIONS, format_duration, settings_of
from goqueue.embedded import EmbeddedServer
from goqueue.migrate import migrate
from goqueue.queries import load_queries, read_shipped, shipped_folder
from goqueue.sqlfiles import Query, is_single, migration_files, numbered, read_queries, sql_files
from goqueue.statement import tagged
from goqueue.unasync import made_modules

_TYPE = r"(?:double precision|[a-z_]\w*(?:\.\w+)?)(?:\[\])?"
# What stands for a parameter in an example: by "query.parameter", else by its name, else by its type. NULL where
# nothing does: for what may be left out, such as a filter's times, and a lane to go on in.
_EXAMPLES = {
    "backoff_jitter": "0.1",
    "backoff_max": "'1 hour'",
    "changes": """'{"priority": 1}'""",
    "claim_jobs.ids": "'{}'",  # with a lease that is lost it claims nothing
    "claim_jobs.tokens": "'{}'",
    "cursor_id": "NULL",
    "errors": "'{timed out}'",
    "idempotency_key": "'order-17'",
    "idempotency_keys": "'{order-17}'",
    "is_final": "FALSE",
    "job_type": "'send_email'",
    "jobs": (
        """'[{"id": "00000000-0000-0000-0000-000000000000", "queue": "default", "job_type": "send_email", """
        """"payload": {}, "priority": 0, "max_attempts": 25}]'"""
    ),
    "lane_ids": "NULL",
    "max_attempts": "25",
    "name": "'jit'",
    "names": "'{fsync}'",
    "older_than": "'30 days'",
    "queues": "'{default}'",
    "restored_failures": "'[]'",
    "restored_jobs": "'[]'",
    "retry_in": "NULL",
    "transaction_id": "'3'",
    "statuses": "'{completed}'",
    "table_ids": "ARRAY['goqueue.jobs'::regclass]",
    "value": "'off'",
    "worker_id": "'psql'",
    "uuid": "'00000000-0000-0000-0000-000000000000'",
    "uuid[]": "'{00000000-0000-0000-0000-000000000000}'",
    "text": "'default'",
    "jsonb": "'{}'",
    "smallint": "0",
    "integer": "1",
    "bigint": "10",
    "bigint[]": "'{1}'",
    "oid[]": "'{16}'",
    "double precision": "2",
    "interval": "'1 minute'",
}
_COLUMNS = "columns.json"
_RESULTS = {"^": "one row or none", "$": "one value or none", "!": "the number of rows", "": "rows"}
_BEGIN = "<!-- Below: made by `make catalogue` from the SQL files; change those. -->"

_SETTINGS_BEGIN = "<!-- settings: made by `make catalogue` from goqueue/config.py -->"
_SETTINGS_END = "<!-- end of settings -->"

#: For each query the name and the type of each result column.
Columns = dict[str, list[tuple[str, str]]]


class QueryNote(msgspec.Struct, frozen=True):
    """What a SQL file says of one of its queries, and the query's text as it stands there."""

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
    body: str = ""

    @property
    def types(self) -> dict[str, str]:
        """The parameters in their order, and the type that each is cast to; unknown where it is not."""
        casts = dict(re.findall(rf"(?<!:):(\w+)::({_TYPE})", self.body))
        return {name: casts.get(name, "unknown") for name in self.parameters}

    @property
    def statement(self) -> str:
        """The query as the server gets it: with its name behind the first word, and parameters $1, $2 ... in order."""
        return tagged(self.name, numbered(self.body, self.parameters))

    @property
    def can_be_prepared(self) -> bool:
        """Whether PREPARE and EXPLAIN take it; they do not take LISTEN, VACUUM and the like."""
        return self.statement.split(maxsplit=1)[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH")


def read_notes(folder: Path | str | None = None) -> list[QueryNote]:
    """The notes of all queries, in the files' order; a file of ``folder`` stands in place of the shipped one of its
    name. ValueError for a query that lacks a part of its comment or is more than one statement, `ConfigError` for a
    folder that can't be loaded."""
    notes = [_note(query, file) for file, _ in sql_files(folder, shipped_folder("sql")) for query in read_queries(file)]
    load_queries(folder)
    return notes


def _note(query: Query, file: Path) -> QueryNote:
    parts = {"purpose": ""}
    part = "purpose"
    for comment in query.comments:
        heading, colon, rest = comment.partition(": ")
        if colon and heading in ("Returns", "Index", "Locks", "Notes"):
            part, comment = heading.lower(), rest  # noqa: PLW2901
        parts[part] = f"{parts.get(part, '')} {comment}".strip()
    if missing := [name for name in ("purpose", "returns", "index", "locks") if not parts.get(name)]:
        raise ValueError(f"{file.name}: the comment of {query.name} says nothing of {', '.join(missing)}")
    if not is_single(query.body):
        raise ValueError(f"{file.name}: {query.name} is more than one statement, expected one: remove what follows it")
    return QueryNote(
        name=query.name,
        file=file.name,
        parameters=query.parameters,
        result=_RESULTS.get(query.mark, query.mark),
        body=query.body,
        **parts,
    )


def psql_text(note: QueryNote, columns: Columns) -> str:
    """The query for psql: a comment, a PREPARE with typed parameters, and how to run and explain it."""
    about = [f"{note.name}: {note.purpose}", f"Result ({note.result}): {note.returns}"]
    if described := columns.get(note.name):
        about.append("Columns: " + ", ".join(f"{name} {kind}" for name, kind in described))
    about += [f"Index: {note.index}", f"Locks: {note.locks}", *([f"Notes: {note.notes}"] if note.notes else [])]
    head = [line for text in about for line in wrap(text, 117, initial_indent="-- ", subsequent_indent="--   ")]
    if not note.can_be_prepared:
        return "\n".join([*head, f"{note.statement};", ""])
    types = f" ({', '.join(note.types[name] for name in note.parameters)})" if note.parameters else ""
    keys = [(f"{note.name}.{name}", name, note.types[name]) for name in note.parameters]
    examples = [next((_EXAMPLES[key] for key in among if key in _EXAMPLES), "NULL") for among in keys]
    call = f"EXECUTE {note.name}" + (f" ({', '.join(examples)});" if examples else ";")
    return "\n".join(
        [
            *head,
            *(f"--   ${number} {name} {note.types[name]}" for number, name in enumerate(note.parameters, 1)),
            f"PREPARE {note.name}{types} AS",
            f"{note.statement};",
            "",
            "-- To run it, and to see its plan without leaving a change (force_generic_plan is how goqueue runs it):",
            f"-- {call}",
            "-- SET plan_cache_mode = force_generic_plan;",
            "-- BEGIN;",
            f"-- EXPLAIN (ANALYZE, BUFFERS) {call}",
            "-- ROLLBACK;",
            "",
        ]
    )


def read_columns() -> Columns:
    """The result columns of the shipped queries, as a server has described them."""
    columns: Columns = json.loads(read_shipped("sql", _COLUMNS))
    return columns


def describe_columns(connection: psycopg.Connection[Any], notes: Iterable[QueryNote]) -> Columns:
    """The names and types of the queries' result columns, as the server of a migrated database describes them."""
    columns: Columns = {}
    queries = load_queries()
    for note in notes:
        columns[note.name] = []
        if note.can_be_prepared:
            prepared = connection.pgconn.prepare(b"", note.statement.encode())
            if prepared.status != psycopg.pq.ExecStatus.COMMAND_OK:
                raise ValueError(f"{note.file}: {note.name} can't be prepared: {prepared.error_message.decode()}")
            result = connection.pgconn.describe_prepared(b"")
            names = [(result.fname(number) or b"").decode() for number in range(result.nfields)]
            kinds = [result.ftype(number) for number in range(result.nfields)]
            types = dict(queries.describe_types(connection, ids=kinds))
            short = [types[kind].replace("timestamp with time zone", "timestamptz") for kind in kinds]
            columns[note.name] = list(zip(names, short, strict=True))
    return columns


def catalogue() -> str:
    """sql/README.md below its hand-written part."""
    out = [_BEGIN, ""]
    notes = read_notes()
    columns = read_columns()
    for file in dict.fromkeys(note.file for note in notes):
        out += [f"## {file}", "", "| query | for |", "| --- | --- |"]
        of_file = [note for note in notes if note.file == file]
        out += [f"| [{note.name}](#{note.name}) | {note.purpose.split('. ')[0].rstrip('.')}. |" for note in of_file]
        out.append("")
        for note in of_file:
            parameters = ", ".join(f"`{name} {note.types[name]}`" for name in note.parameters) or "none"
            described = ", ".join(f"`{name} {kind}`" for name, kind in columns.get(note.name, ()))
            out += [
                f"### {note.name}",
                "",
                note.purpose,
                "",
                f"- **Parameters:** {parameters}",
                f"- **Result** ({note.result}): {note.returns}",
                *([f"- **Columns:** {described}"] if described else []),
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
    readers = [section.reader for section in SECTIONS if section.reader]
    marks = dict(zip(readers, "¹²³", strict=False))
    rows = (
        f"| `{setting.variable}`{marks.get(setting.reader, '')} | {_shown_default(setting.default)} | "
        f"{setting.rule.description} |"
        for section in SECTIONS
        for setting in settings_of(section)
    )
    notes = (f"{marks[reader]} Read by {reader}, and by nothing in goqueue itself." for reader in readers)
    return "\n".join(["| variable | default | |", "| --- | --- | --- |", *rows, "", "\\\n".join(notes)])


def _shown_default(value: object) -> str:
    match value:
        case timedelta():
            return format_duration(value)
        case tuple():
            return ", ".join(value)
    return "" if value == "" else str(value)


def _checksums_file() -> Path:
    return shipped_folder("migrations") / "callbacks" / "record_checksums.sql"


def made_files() -> dict[Path, str]:
    """Each file that is made from others, and what it should hold."""
    readme = shipped_folder("sql") / "README.md"
    by_hand = readme.read_text(encoding="utf-8").partition(_BEGIN)[0] if readme.exists() else ""
    front = readme.parent.parent / "README.md"
    before, begin, rest = front.read_text(encoding="utf-8").partition(_SETTINGS_BEGIN)
    return {
        front: f"{before}{begin}\n\n{settings_table()}\n\n{_SETTINGS_END}{rest.partition(_SETTINGS_END)[2]}",
        readme: by_hand + catalogue(),
        _checksums_file(): checksums(),
        **made_modules(),
    }


def _write_columns() -> None:
    with EmbeddedServer(durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for extension in ("pg_stat_statements", "pgstattuple"):
                connection.execute(f"CREATE EXTENSION {extension}".encode())
            columns = describe_columns(connection, read_notes())
    # A query a line, so that a change shows as such.
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(described)}" for name, described in columns.items())
    (shipped_folder("sql") / _COLUMNS).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    if not check:
        # The columns are described by a server that has been migrated, checksums and all.
        _checksums_file().write_text(checksums(), encoding="utf-8")
        _write_columns()
    elif set(read_columns()) != {note.name for note in read_notes()}:
        sys.stderr.write(f"{_COLUMNS} is stale: run `make catalogue` and commit what it changes\n")
        sys.exit(1)
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
