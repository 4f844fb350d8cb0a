"""Faults of connection strings, described without quoting them, and secrets that no traceback shows.

pytest (also without ``-l``), rich and error trackers print the local variables of each frame of a traceback. Those
include psycopg's connection string and its parts.
"""

import re
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

# Past the scheme: a user part up to the first @, then no bare @ or space before the query. libpq would cut a password
# at an unescaped @ or / and show the rest as the host or the database.
_URL = re.compile(r"postgres(?:ql)?://(?:[^/@\s]*@)?[^@?\s]*(?:\?\S*)?")
_SCHEME = re.compile(r"postgres(?:ql)?://")
_WORD = re.compile(r"\s*(?P<name>\w+)\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?P<bare>(?:[^\s\\]|\\.)*))(?=\s|$)", re.DOTALL)
_UNREPLACED = re.compile(r"\$\{\w+[^\s{}]*\}|\$\(\w+\)|\{\{[^{}]*\}\}")
_PORT = "its port is not a number from 1 to 65535"
# An escaped character. Variables are not written with escapes, so an escaped $ or { is literal.
_ESCAPED = re.compile(r"\\.", re.DOTALL), re.compile("%[0-9A-Fa-f]{2}")
_LITERAL = "write %24 for a literal $ in a URL, and \\$ in words such as password='\\$x'"
_VARIABLE = re.compile(r"\s*(?:\$\w+|%\w+%)\s*")
# Faults of a text that libpq can't parse. The first match is reported.
_SIGNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\r\n]\s*\Z"), "it ends in a line break"),
    (re.compile(r"[\r\n]"), "it has a line break"),
    (re.compile(r"\A\s*[\"'`\u2018-\u201f]"), "it is in quotation marks, which would belong to the shell or to YAML"),
    (re.compile(r"\A\s*(?:\$\w+|%\w+%)\s*\Z"), "it is a variable that was not replaced"),
    (re.compile(r"\A[^\x21-\x7e]+postgres(?:ql)?:"), "it begins with a space or an invisible character"),
    (re.compile(r"\A(?!postgres(?:ql)?://)[A-Za-z][\w+.:-]*://"), "its scheme is not postgresql://"),
    (re.compile(r"\A(?i:postgres(?:ql)?):(?!//)"), "it lacks the // of postgresql://"),
)


def fault_of(text: str) -> str:  # noqa: PLR0911 - one check after another
    """Return what is wrong with a connection string or URL for libpq, without quoting it; empty if it is valid."""
    if "\0" in text:
        return "it has a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "it has bytes that are not UTF-8"
    if text and not text.strip():
        return "it is blank"
    typed = _ESCAPED[bool(_SCHEME.match(text))].sub("_", text)
    if _UNREPLACED.search(typed):
        braces = "; for {{ write %7B%7B or \\{\\{" if "{{" in typed else ""
        return f"it has a variable that was not replaced, such as ${{X}}; {_LITERAL}{braces}"
    options = _options(text)
    if options is not None and (not _SCHEME.match(text) or _URL.fullmatch(text)):
        words = _options(typed) or {}
        if any(_VARIABLE.fullmatch(words.get(name, "")) for name in ("host", "port", "dbname", "user")) or (
            _SCHEME.match(text) and re.search(r"://[^/@]*:\$[A-Z_]{2}[A-Z0-9_]*@", text)
        ):
            return f"it has a variable that was not replaced, such as $X; {_LITERAL}"
        if ";" in words.get("host", ""):
            return "it has a ; in the host; words such as host=db are separated by spaces, and a literal ; is \\;"
        if all(not port or (port.isdecimal() and 1 <= int(port) <= 65535) for port in _ports(options)):
            return ""
    for sign, fault in _SIGNS:
        if sign.search(text):
            return fault
    return _fault_of_url(text.partition("://")[2]) if _SCHEME.match(text) else _fault_of_words(text)


def literal(conninfo: str) -> str:
    """Escape a connection string in words that no user has typed, so that `fault_of` finds no variable in it."""
    return re.sub(r"[$%{;]", r"\\\g<0>", conninfo)


def _options(text: str) -> dict[str, str] | None:
    """Return the options that libpq reads from the text; None if it can't parse it."""
    try:
        return {name: str(value) for name, value in conninfo_to_dict(text).items()}
    except (psycopg.Error, UnicodeDecodeError):
        return None


def _ports(options: dict[str, str]) -> list[str]:
    return [port[:6] for port in options.get("port", "").split(",")]


def _fault_of_url(rest: str) -> str:  # noqa: C901, PLR0911 - one check after another
    """Return what is wrong with ``rest``, the URL after its scheme."""
    if re.search(r"\s\Z", rest):
        return "it ends in a space"
    if re.search(r"\s", rest):
        return "it has a space; write %20 for a literal space"
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        unreplaced = "a variable that was not replaced, such as %X%, or "
        return f"it has {unreplaced * bool(re.search('%[A-Za-z_]', rest))}a bare %; write %25 for a literal %"
    if "%00" in rest:
        return "it has a NUL character, %00"
    try:
        unquote_to_bytes(rest).decode()
    except UnicodeDecodeError:
        return "it has characters, written with %, that are not UTF-8"
    before, _, query = rest.partition("?")
    authority, at, host = before.rpartition("@")
    if "@" in authority:
        return "it has more than one @; write %40 for one in the user's name or the password"
    if "/" in authority:
        return "it has a / before the @; write %2F for one in the user's name or the password"
    if not at and "@" in query and _options(f"postgresql://{rest}") is None:
        return "it has a ? before the @; write %3F for one in the user's name or the password"
    host = host.partition("/")[0]
    if ("[" in host) != ("]" in host):
        return "it has an unmatched bracket; an IPv6 address is written [::1]"
    if "[" not in host and any(one.count(":") > 1 for one in host.split(",")):
        return "it has more than one : in the host; an IPv6 address is written [::1], and a password is followed by @"
    if any(not re.fullmatch(r"(?:\[[^\[\]]+\]|[^:\[\]]*)(?::(?:\d{1,5})?)?", one) for one in host.split(",")):
        return _PORT if at else f"{_PORT}, or the @ between password and host is missing"
    names = [pair.partition("=")[0] for pair in query.split("&")] if query else []
    if query and any("=" not in pair for pair in query.split("&")):
        return "it has a parameter without =; write %26 for a literal &"
    return _unknown(names, "a parameter") or _PORT


def _fault_of_words(text: str) -> str:
    if "=" not in text:
        missing = ", and postgresql:// is missing in front" if "@" in text or "/" in text else ""
        return f"it is neither a URL nor words such as host=db{missing}"
    names, place = [], 0
    while found := _WORD.match(text, place):
        if found["bare"] and found["bare"].startswith("'"):
            return "it has a value in single quotes that does not end"
        names.append(found["name"])
        place = found.end()
    if "'" in text[place:] and re.match(r"\s*\w+\s*=\s*'", text[place:]):
        return "it has a value in single quotes that does not end"
    if text[place:].strip():
        return "it has a word without =; a value with spaces is written in single quotes"
    return _unknown(names, "an option") or _PORT


def _unknown(names: list[str], kind: str) -> str:
    for name in names:
        if name not in _keywords():
            close = get_close_matches(name.lower(), _keywords(), n=1, cutoff=0.75)
            return f"it has {kind} that libpq does not know" + (f"; did you mean {close[0]}?" if close else "")
    return ""


@cache
def _keywords() -> tuple[str, ...]:
    return (*(option.keyword.decode() for option in pq.Conninfo.parse(b"")), "ssl")


AnyError = TypeVar("AnyError", bound=BaseException)


class Secret(str):
    """A string whose repr, which tracebacks show, is ``***``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __getitem__(self, index: Any) -> "Secret":  # rich cuts a long text before it takes the repr
        return Secret(super().__getitem__(index))


def without_frames(error: AnyError) -> AnyError:
    """Remove the traceback frames from an error and from those that caused it. Return the error."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]
    return error


def connect(conninfo: str, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection in autocommit mode. Raises psycopg's own errors, without psycopg's frames."""
    conninfo = Secret(conninfo)
    try:
        return psycopg.connect(conninfo, autocommit=True, **options)
    except BaseException as exc:
        without_frames(exc)
        raise
