"""The rules for the schema's name. SQL files are written for the schema goqueue; `render` replaces the name."""

import hashlib
import re
from functools import cache

DEFAULT_SCHEMA = "goqueue"
#: The allowed names, for messages. After the longest prefix, goqueue_cancelled_, a name still fits in 63 bytes.
ALLOWED_SCHEMA = (
    "an identifier of 1 to 45 lower-case ASCII letters, digits and underscores, without a digit or pg_ at the start; "
    "not an SQL keyword that needs quotes; not public or information_schema, because goqueue needs its own schema"
)

# The words that pg_get_keywords() lists in PostgreSQL 14 to 19, except unreserved ones. As names, they need quotes.
_KEYWORDS = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast
    char character check coalesce collate collation column concurrently constraint create cross current_catalog
    current_date current_role current_schema current_time current_timestamp current_user dec decimal default deferrable
    desc distinct do else end except exists extract false fetch float for foreign freeze from full grant graph_table
    greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull join
    json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize
    json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural
    nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing
    position precision primary real references returning right row select session_user setof similar smallint some
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique user
    using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest
    xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
""".split()  # noqa: SIM905 - a list would take a line for each word
)
# Not allowed, because roles.sql changes the owner of everything in the schema.
_OTHERS = frozenset({"public", "information_schema"})

# The places where SQL names the schema. Elsewhere goqueue stays: in a statement's tag, in goqueue.notify, in prose.
_PLACES = re.compile(
    r"""
    (?<![\w$])(?:
        # roles, and the channel of cancelled jobs: names outside of any schema
        (?P<outside>goqueue_(?:cancelled|operator|owner|producer|reader|worker))\b
        # the channel of ready jobs
      | (?P<channel>(?<=LISTEN\ )goqueue\b | (?<=pg_notify\(')goqueue(?=') | (?<=channel\ )goqueue\b)
        # a qualifier
      | (?P<qualifier>goqueue)(?=\.(?!notify\b)['%\w])
        # the schema itself
      | (?P<schema>(?<=SCHEMA\ )goqueue\b | (?<=schema\ )goqueue\b | (?<=')goqueue(?='))
        # the keys of the migrations' and the listeners' advisory locks
      | (?P<lock>29114455692768613|7453300657348765004)\b
        # the pattern of the tags, in statements.sql
      | (?P<tags>goqueue:\(\\w\+\))(?!\ in\ )
    )
    """,
    re.VERBOSE,
)
# Forms of the name that `render` does not replace: quoted, in capitals, with blanks before the dot.
_LEFT_OVER = re.compile(r'(?<![\w$])"?goqueue"?\s*\.(?!\s*notify\b)', re.IGNORECASE)

# A literal in which `render` replaces the name, although it can be ordinary text. Excluded are the tables' names, casts
# to regclass and the like, and the notification channel.
_TEXT = re.compile(
    r"(?<!pg_notify\()'goqueue(?!\.notify'|\.(?:jobs|job_failures|paused_queues)')(?:\.[%\w][^']*)?'(?!\s*::\s*reg)"
)


def is_schema(name: str) -> bool:
    """Return True if the name is allowed for a schema of goqueue."""
    return (
        re.fullmatch(r"[a-z_][a-z0-9_]{0,44}", name) is not None
        and not name.startswith("pg_")
        and name not in _KEYWORDS | _OTHERS
    )


def render(text: str, schema: str) -> str:
    """Adapt SQL that is written for the schema goqueue to another schema. For goqueue, return it unchanged.

    Another schema has its own roles and channels, such as goqueue_worker_SCHEMA, and its own advisory locks. So schemas
    of one database share none of them.
    """
    if schema == DEFAULT_SCHEMA:
        return text

    def name(found: re.Match[str]) -> str:
        match found.lastgroup:
            case "outside":
                return f"{found[0]}_{schema}"
            case "channel":
                return f"goqueue_ready_{schema}"
            case "lock":
                return str(_key(found[0], schema))
            case "tags":
                return f"{found[0]} in {schema}"
            case _:
                return schema

    return _PLACES.sub(name, text)


def schema_option(schema: str) -> str:
    """Return the option that names the schema to a command, after a space. For goqueue, return nothing."""
    return "" if schema == DEFAULT_SCHEMA else f" --schema {schema}"


def lock_key(key: int, schema: str) -> int:
    """Return the key of an advisory lock in a schema. ``key`` is that of the schema goqueue."""
    return int(render(str(key), schema))


def is_rendered(text: str) -> bool:
    """Return False if the SQL names the schema goqueue in a form that `render` does not replace."""
    return _LEFT_OVER.search(text) is None


def replaced_text(text: str) -> str | None:
    """Return a literal of the SQL in which `render` replaces the name, although it may be no name of the schema."""
    found = _TEXT.search(text)
    return found[0] if found else None


@cache
def _key(key: str, schema: str) -> int:
    digest = hashlib.blake2b(f"{schema} {key}".encode(), digest_size=8).digest()
    # Between 2^62 and 2^63: a positive bigint.
    return int.from_bytes(digest) >> 2 | 1 << 62
