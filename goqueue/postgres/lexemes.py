"""PostgreSQL's lexemes: statements in a text, without white space and comments."""

import re
from collections.abc import Iterator

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
