"""PostgreSQL's lexemes: the statements of a text, without white space and comments."""

import re
from collections.abc import Iterator

# The tokens of PostgreSQL's scanner, as far as white space, comments and semicolons depend on them. Block comments
# nest, so no expression can find their ends.
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
    """Yield the text in pieces: a space for each run of white space and comments; quoted text unchanged."""
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
    """Return the text without comments and final semicolons. White space outside of quotes becomes one space."""
    pieces: list[str] = []
    for piece in _lexemes(text):
        if piece != " " or (pieces and pieces[-1] != " "):
            pieces.append(piece)
    while pieces and pieces[-1] in (" ", ";"):
        pieces.pop()
    return "".join(pieces)


def is_single(text: str) -> bool:
    """Return True if only comments follow the statement's semicolon. The server makes the final check."""
    return ";" not in _lexemes(bare(text))


def split(text: str) -> list[str]:
    """Return the statements of a file, each without its semicolon and comments."""
    found: list[str] = []
    pieces: list[str] = []
    for piece in (*_lexemes(text), ";"):
        if piece != ";":
            pieces.append(piece)
        else:
            found.append("".join(pieces).strip())
            pieces.clear()
    return [statement for statement in found if statement]
