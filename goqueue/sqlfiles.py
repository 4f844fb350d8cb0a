"""The SQL files as files: which ones count, what their queries declare, where an export came from.

Imports goqueue.errors alone.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from goqueue.errors import ConfigError

__all__ = [
    "APART",
    "Declaration",
    "Export",
    "MigrationFile",
    "Query",
    "Statement",
    "bare",
    "compare_declarations",
    "exported",
    "is_outdated",
    "is_single",
    "migration_files",
    "numbered",
    "read_export",
    "read_queries",
    "since_export",
    "split",
    "sql_files",
    "without_stamp",
]

#: The files behind the DBA's commands: the store doesn't run their queries, and no folder replaces them.
APART = frozenset({"behaviour.sql", "checks.sql", "seed.sql", "statements.sql"})

_STAMP = re.compile(r"-- From goqueue (?P<version>\S+), sha256 (?P<sha256>[0-9a-f]{64})\.[^\n]*\n")
_NAME = re.compile(r"--\s*name\s*:\s*")
# As aiosql reads a file: quoted text and lines of comment are left alone, and :name is a parameter unless it is half of
# a cast.
_PARAMETER = re.compile(r"""^\s*--.*|"(?:""|[^"])+"|'(?:''|[^'])*'|(?<!:):(?P<name>\w+)""", re.MULTILINE)

_RESULTS = {
    "SELECT": "rows (no mark)",
    "SELECT_ONE": "one row or none (^)",
    "SELECT_VALUE": "one value or none ($)",
    "INSERT_UPDATE_DELETE": "the number of rows (!)",
}


def sql_files(folder: Path | str | None, shipped: Path) -> list[tuple[Path, Path]]:
    """Each file to load, and the shipped one of its name: the same one, unless ``folder`` has a file in its place.

    Raises `ConfigError` for a folder that is missing, has no SQL file, or has one that goqueue doesn't ship.
    """
    names = sorted(file.name for file in shipped.glob("*.sql"))
    if folder is None:
        return [(shipped / name, shipped / name) for name in names]
    given = Path(folder)
    if not given.is_dir():
        raise ConfigError([f"the folder of SQL files {given} does not exist; `goqueue sql export {given}` makes one"])
    own = {file.name for file in given.glob("*.sql")}
    expected = ", ".join(name for name in names if name not in APART)
    if not own:
        raise ConfigError([f"the folder {given} has no SQL files; expected some of {expected}"])
    if unknown := sorted(own.difference(names) | own & APART):
        raise ConfigError(
            [f"{given / name} is no SQL file of the store's and would never be read; expected the names {expected}"
             for name in unknown]
        )  # fmt: skip
    return [((given if name in own else shipped) / name, shipped / name) for name in names]


# --- what a query declares ------------------------------------------------------------------------------------------


class Declaration(NamedTuple):
    """The line of a query's name: its parameters, and aiosql's name for the kind of its result."""

    parameters: Collection[str]
    result: str


def compare_declarations(expected: Mapping[str, Declaration], given: Mapping[str, Declaration]) -> list[str]:
    """What is wrong with the given queries of a file, one sentence each."""
    problems = [f"query {name}: it is missing" for name in expected if name not in given]
    problems += [
        f"query {name}: goqueue has no such query in this file; expected {', '.join(expected)}"
        for name in given
        if name not in expected
    ]
    for name in (name for name in expected if name in given):
        (wanted, wanted_result), (got, got_result) = expected[name], given[name]
        problems += [
            f"query {name}: it lacks the parameter {parameter}" for parameter in wanted if parameter not in got
        ]
        problems += [
            f"query {name}: it has a parameter {parameter}, which nothing gives it; expected "
            f"{', '.join(wanted) or 'none'}"
            for parameter in got
            if parameter not in wanted
        ]
        if wanted_result != got_result:
            shown = (_RESULTS.get(result, result.lower()) for result in (got_result, wanted_result))
            problems.append(f"query {name}: its result is {' and was to be '.join(shown)}")
    return problems


# --- statements -----------------------------------------------------------------------------------------------------


class Statement(NamedTuple):
    """A query as the server gets it, with ``$1``, ``$2`` … for ``parameters``, in the order that its
    file declares."""

    name: str
    file: Path
    parameters: tuple[str, ...]
    text: str
    #: What keeps it from being sent as it is written.
    faults: tuple[str, ...] = ()

    def same_as(self, other: "Statement") -> bool:
        """Whether both are one statement, comments and white space outside of quotes aside."""
        return (self.parameters, bare(self.text)) == (other.parameters, bare(other.text))


# What PostgreSQL's scanner takes for one thing, as far as white space, comments and semicolons depend on it. Comments
# of several lines nest, so that no expression finds their ends.
_LEXEME = re.compile(
    r"""
      (?P<blank>\s+|--[^\r\n]*)
    | [eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
    | [^\W\d][\w$]*
    | .
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def _lexemes(text: str) -> Iterator[str]:
    """The text in pieces: one space for each stretch of white space and comments, and what is quoted as it is."""
    place = 0
    while place < len(text):
        if text.startswith("/*", place):
            depth = 0
            for edge in _COMMENT_EDGE.finditer(text, place):
                depth += 1 if edge[0] == "/*" else -1
                place = edge.end()
                if not depth:
                    break
            else:
                place = len(text)
            yield " "
            continue
        found = _LEXEME.match(text, place)
        assert found is not None  # noqa: S101 - the last alternative matches any character
        place = found.end()
        yield " " if found["blank"] else found[0]


def bare(text: str) -> str:
    """The text without comments and without semicolons at its end, white space outside of quotes made one space."""
    pieces: list[str] = []
    for piece in _lexemes(text):
        if piece != " " or (pieces and pieces[-1] != " "):
            pieces.append(piece)
    while pieces and pieces[-1] in (" ", ";"):
        pieces.pop()
    return "".join(pieces)


def is_single(text: str) -> bool:
    """Whether nothing but comments follows the statement's semicolon. The server has the last word."""
    return ";" not in _lexemes(bare(text))


def split(text: str) -> list[str]:
    """The statements of a file, each without its semicolon and without comments."""
    found: list[str] = []
    pieces: list[str] = []
    for piece in (*_lexemes(text), ";"):
        if piece != ";":
            pieces.append(piece)
        else:
            found.append("".join(pieces).strip())
            pieces.clear()
    return [statement for statement in found if statement]


class Query(NamedTuple):
    """A query as its file has it."""

    name: str
    parameters: tuple[str, ...]
    #: What stands behind the parameters: ``^``, ``$``, ``!`` or nothing.
    mark: str
    #: The lines of comment under its name, without their dashes.
    comments: tuple[str, ...]
    #: The statement, without its semicolon; comments on lines of their own among it.
    body: str


def read_queries(file: Path) -> list[Query]:
    """The queries of a file, in its order."""
    found = []
    for part in _NAME.split(file.read_text(encoding="utf-8-sig"))[1:]:
        head, *lines = part.splitlines()
        name, _, rest = head.partition("(")
        declared, _, mark = rest.partition(")")
        parameters = tuple(word.strip() for word in declared.split(",") if word.strip())
        comments = tuple(takewhile(lambda line: line.startswith("--"), lines))
        body = "\n".join(line.rstrip() for line in lines[len(comments) :]).strip().rstrip("; \n")
        texts = tuple(line.removeprefix("--").strip() for line in comments)
        found.append(Query(name.strip().replace("-", "_"), parameters, mark.strip(), texts, body))
    return found


def numbered(text: str, parameters: tuple[str, ...]) -> str:
    """The text with its parameters as ``$1``, ``$2`` … in the order given."""

    def number(match: re.Match[str]) -> str:
        name = match["name"]
        return f"${parameters.index(name) + 1}" if name in parameters else match[0]

    return _PARAMETER.sub(number, text).replace("%%", "%")


# --- migrations -----------------------------------------------------------------------------------------------------


class MigrationFile(NamedTuple):
    """A migration as it is shipped."""

    version: int
    name: str
    #: Of its bytes, in hexadecimal.
    sha256: str


def migration_files(folder: Path) -> list[MigrationFile]:
    """The migrations of a folder, in their order."""
    return [
        MigrationFile(int(file.name[1:].partition("__")[0]), file.name, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.glob("V*.sql"))
    ]


# --- exports --------------------------------------------------------------------------------------------------------


class Export(NamedTuple):
    """Where an exported file came from, and whether it was changed since."""

    version: str
    #: Of the shipped file at the time.
    sha256: str
    changed: bool


def exported(shipped: Path) -> str:
    """The text of a shipped file with a first line that tells, later on, what has changed on which side."""
    text = shipped.read_text(encoding="utf-8")
    return (
        f"-- From goqueue {version('goqueue')}, sha256 {_sha256(text)}. Keep this line for `goqueue sql diff`.\n{text}"
    )


def read_export(file: Path) -> Export | None:
    """What the first line of an exported file says; None for a file without such a line."""
    text = file.read_text(encoding="utf-8-sig")
    if (match := _STAMP.match(text)) is None:
        return None
    return Export(match["version"], match["sha256"], _sha256(text[match.end() :]) != match["sha256"])


def is_outdated(file: Path, shipped: Path) -> Export | None:
    """The export that ``file`` is, when the shipped file has changed since; else None."""
    export = None if file == shipped else read_export(file)
    return export if export and export.sha256 != _sha256(shipped.read_text(encoding="utf-8")) else None


def since_export(file: Path, shipped: Path) -> str:
    """What to add to a message about ``file`` when the shipped file has changed since it was exported; else nothing."""
    try:
        export = is_outdated(file, shipped)
    except (OSError, ValueError):
        return ""
    if export is None:
        return ""
    return f" (exported from goqueue {export.version}, and the shipped file has changed since: see `goqueue sql diff`)"


def without_stamp(text: str) -> str:
    """The text of a file without the line that `exported` puts first."""
    match = _STAMP.match(text)
    return text[match.end() :] if match else text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
