"""Notes of the queries: purpose, result, index and locks, as stated in their files."""

import json
import re
from contextlib import suppress
from pathlib import Path
from textwrap import wrap

import msgspec

from goqueue.files import read_shipped, shipped_folder, sql_files
from goqueue.postgres.lexemes import is_single
from goqueue.postgres.queries import RESULTS, Statement, load_queries, read_statements
from goqueue.schemas import DEFAULT_SCHEMA, render

_TYPE = r"(?:double precision|[a-z_]\w*(?:\.\w+)?)(?:\[\])?"
# Example values for parameters: by "query.parameter", else by name, else by type. NULL otherwise, for parameters that
# can be omitted, such as a filter's times or a lane to resume in.
_EXAMPLES = {
    "backoff_jitter": "0.1",
    "backoff_max": "'1 hour'",
    "changes": """'{"priority": 1}'""",
    "cancel_jobs.statuses": "'{pending}'",
    "change_jobs.statuses": "'{pending}'",
    "reschedule_jobs.statuses": "'{pending}'",
    "retry_jobs.statuses": "'{dead}'",
    "cursor_id": "NULL",
    "errors": "'{timed out}'",
    "idempotency_key": "'order-17'",
    "idempotency_keys": "'{order-17}'",
    "unique_key": "'report-17'",
    "unique_keys": "'{report-17}'",
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
    "payload": "'{}'",
    "queues": "'{default}'",
    "restored_failures": "'[]'",
    "restored_jobs": "'[]'",
    "retry_in": "NULL",
    "transaction_id": "'3'",
    "statuses": "'{completed}'",
    "table_ids": "ARRAY['goqueue.jobs'::regclass]",
    "value": "'off'",
    "worker_id": "'psql'",
    "until": "'infinity'",
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
COLUMNS_FILE = "columns.json"
#: For each query, the name and type of each result column.
Columns = dict[str, list[tuple[str, str]]]


class QueryNote(msgspec.Struct, frozen=True):
    """A query's description in its SQL file."""

    name: str
    file: str
    parameters: tuple[str, ...]
    #: "one row or none", "one value or none", "rows" …
    result: str
    purpose: str
    returns: str
    index: str
    locks: str
    #: The query as the server receives it: with its name in a comment, and parameters $1, $2 ... in order.
    statement: str
    #: The same with the comment lines inside it, as in its file.
    commented: str
    notes: str = ""

    @property
    def types(self) -> dict[str, str]:
        """The parameters in order, with the types that they are cast to; unknown without a cast."""
        casts = dict(re.findall(rf"\$(\d+)::({_TYPE})", self.statement))
        return {name: casts.get(str(number), "unknown") for number, name in enumerate(self.parameters, 1)}

    @property
    def can_be_prepared(self) -> bool:
        """True if PREPARE and EXPLAIN accept it; they reject LISTEN, VACUUM and the like."""
        return self.statement.split(maxsplit=1)[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH")


def read_notes(folder: Path | str | None = None, schema: str = DEFAULT_SCHEMA) -> list[QueryNote]:
    """Return the notes of all queries for a schema, in the files' order. Files of ``folder`` replace the shipped ones
    of the same name. Raises ValueError for a query that lacks a part of its comment or is more than one statement,
    `ConfigError` for a folder that can't be loaded."""
    files = [file for file, _ in sql_files(folder, shipped_folder("sql"))]
    statements: list[Statement] = []
    with suppress(OSError, ValueError):  # load_queries reports unreadable files
        statements = [statement for file in files for statement in read_statements(file, schema)]
    notes = [_note(statement) for statement in statements]
    load_queries(folder, schema=schema)
    return notes


def _note(query: Statement) -> QueryNote:
    parts = {"purpose": ""}
    part = "purpose"
    # aiosql also returns the comments inside the statement: an empty one ends the heading.
    for comment in query.comments.partition("\n\n")[0].splitlines():
        heading, colon, rest = comment.partition(": ")
        if colon and heading in ("Returns", "Index", "Locks", "Notes"):
            part, comment = heading.lower(), rest  # noqa: PLW2901
        parts[part] = f"{parts.get(part, '')} {comment}".strip()
    if missing := [name for name in ("purpose", "returns", "index", "locks") if not parts.get(name)]:
        raise ValueError(f"{query.file.name}: the comment of {query.name} lacks {', '.join(missing)}")
    if not is_single(query.text):
        raise ValueError(
            f"{query.file.name}: {query.name} is more than one statement, expected one: remove what follows it"
        )
    statement = query.text.rstrip("; \n")
    return QueryNote(
        name=query.name,
        file=query.file.name,
        parameters=query.parameters,
        result=RESULTS[query.result][0] if query.result in RESULTS else query.result.lower(),
        statement=statement,
        commented=_commented(statement, query.source),
        **parts,
    )


def _commented(statement: str, source: str) -> str:
    """Return the statement with the comment lines of its source, which aiosql removes."""
    lines = source.splitlines()[1:]
    while lines and (not lines[-1].strip("; ") or _is_comment(lines[-1])):  # these belong to the next query
        lines.pop()
    comments: dict[int, list[str]] = {}
    count = 0
    for line in lines:
        if _is_comment(line):
            comments.setdefault(count, []).append(line.rstrip())
        elif count or line.strip():
            count += 1
    comments.pop(0, None)  # the description
    sent = statement.splitlines()
    # The comment with the name replaces a line break after the first word.
    place = count - len(sent)
    if place not in (0, 1):  # there are block comments, which aiosql removes too
        return statement
    return "\n".join(text for number, line in enumerate(sent, place) for text in (*comments.get(number, ()), line))


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("--")


def psql_text(note: QueryNote, columns: Columns) -> str:
    """Return the query for psql: a comment, a PREPARE with typed parameters, and commands to run and explain it."""
    about = [f"{note.name}: {note.purpose}", f"Result ({note.result}): {note.returns}"]
    if described := columns.get(note.name):
        about.append("Columns: " + ", ".join(f"{name} {kind}" for name, kind in described))
    about += [f"Index: {note.index}", f"Locks: {note.locks}", *([f"Notes: {note.notes}"] if note.notes else [])]
    head = [line for text in about for line in wrap(text, 117, initial_indent="-- ", subsequent_indent="--   ")]
    if not note.can_be_prepared:
        return "\n".join([*head, f"{note.commented};", ""])
    types = f" ({', '.join(note.types[name] for name in note.parameters)})" if note.parameters else ""
    keys = [(f"{note.name}.{name}", name, note.types[name]) for name in note.parameters]
    examples = [next((_EXAMPLES[key] for key in among if key in _EXAMPLES), "NULL") for among in keys]
    call = f"EXECUTE {note.name}" + (f" ({', '.join(examples)});" if examples else ";")
    return "\n".join(
        [
            *head,
            *(f"--   ${number} {name} {note.types[name]}" for number, name in enumerate(note.parameters, 1)),
            f"PREPARE {note.name}{types} AS",
            f"{note.commented};",
            "",
            "-- To run it, and to see its plan without changing anything (goqueue runs it with force_generic_plan):",
            f"-- {call}",
            "-- SET plan_cache_mode = force_generic_plan;",
            "-- BEGIN;",
            f"-- EXPLAIN (ANALYZE, BUFFERS) {call}",
            "-- ROLLBACK;",
            "",
        ]
    )


def read_columns(schema: str = DEFAULT_SCHEMA) -> Columns:
    """Return the result columns of the shipped queries, as recorded from a server."""
    columns: Columns = json.loads(render(read_shipped("sql", COLUMNS_FILE), schema))
    return columns
