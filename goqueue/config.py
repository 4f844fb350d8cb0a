"""goqueue's settings: names, types, defaults and rules. The environment overrides `goqueue.yaml`.

Each setting is declared once, as a field of its section. Its environment variable, its key in the file, its checks, its
messages and its line in `goqueue config` derive from that field.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
import yaml
from environs import Env, ValidationError, validate
from msgspec.structs import force_setattr
from psycopg.conninfo import conninfo_to_dict

from goqueue.conninfo import fault_of
from goqueue.errors import ConfigError
from goqueue.schemas import ALLOWED_SCHEMA, DEFAULT_SCHEMA, is_schema
from goqueue.validation import HelpfulMeta

__all__ = [
    "SECTIONS",
    "Config",
    "DatabaseConfig",
    "EffectiveSetting",
    "LoggingConfig",
    "Rule",
    "ServerConfig",
    "Setting",
    "WorkerConfig",
    "format_duration",
    "load_config",
    "load_settings",
    "parse_duration",
    "redact",
    "settings_of",
]

DEFAULT_FILE = "goqueue.yaml"
FILE_VARIABLE = "GOQUEUE_CONFIG"

# PostgreSQL stores timeouts as milliseconds in 32 bits, at most 24 days.
_LONGEST = timedelta(days=24)
# A text can be the repr of another one, which doubles backslashes, or can end inside quotes. So a run of backslashes
# escapes the next character. If a password's end is unclear, the later one is taken. The bounds keep the search linear
# for any log message. Cloud providers' tokens have up to about 1500 characters.
_PASSWORDS = re.compile(
    r"""
    # In a URL, which has one slash if it was read as a path. A password can have blanks, unless it looks like a port.
    (?P<url>:/{1,3}[^\s/:@]{0,256}:)(?:\S{0,4096}@|(?!\d{1,5}[/?#,;'")])[^\n]{0,256}@)
    # In a URL's query, up to the next parameter.
  | (?P<parameter>[?&]\w{0,16}password=)(?P<value>[^\s&]{1,4096})
    # password=..., "password": "...", PASSWORD '...'
  | (?P<key>passw(?:or)?d(?:\\{0,8}["'])?(?:[ \t]{0,8}[=:][ \t]{0,8}(?:b(?=\\{0,8}["']))?|[ \t]{1,8}(?=\\{0,8}')))
    (?:
        '(?:[^'\\]|\\++[^\\]|''){0,4096}'
      | "(?:[^"\\]|\\++[^\\]){0,4096}"
      | (?P<quote>\\{1,8}["'])(?:(?P=quote){2}|(?!(?<!\\)(?P=quote)).){0,4096}(?P=quote)
      | \\{0,8}["'][^\n]{1,4096}
      | (?P<bare>(?:[^\s\\]|\\++[^\\]){1,4096})
    )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
# Variables that Kubernetes sets for each Service of the namespace: patterns of the name and the value.
_SERVICE_LINKS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (re.compile(rf"(?P<service>GOQUEUE(?:_[A-Z0-9_]+?)?)_{name}"), re.compile(value))
    for name, value in (
        ("SERVICE_HOST", r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*"),
        (r"SERVICE_PORT(?:_\w+)?", r"\d{1,5}"),
        (r"PORT(?:_\d{1,5}_(?:TCP|UDP|SCTP))?", r"(?:tcp|udp|sctp)://\S+"),
        (r"PORT_\d{1,5}_(?:TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        (r"PORT_\d{1,5}_(?:TCP|UDP|SCTP)_PORT", r"\d{1,5}"),
        (r"PORT_\d{1,5}_(?:TCP|UDP|SCTP)_ADDR", r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*"),
    )
)
# Other names that users give to sections, and to single variables without GOQUEUE_.
_SHORT_SECTIONS = {"database": ("DB",), "logging": ("LOG",)}
_OTHER_NAMES = {"DATABASE": "GOQUEUE_DATABASE_URL", "CONFIG_FILE": FILE_VARIABLE, "CONFIG_PATH": FILE_VARIABLE}
# An unknown variable of at least this similarity counts as misspelt. RELEASE is not that similar to LEASE.
_ALIKE = 0.9
#: The fault of a path that `redact` changes.
NO_PATH = "it looks like a connection string with a password; use a link to it, if it really is a path"
# Bounds the read if the path names a device or an endless pipe.
_LONGEST_FILE = 2**18


# -- Rules -------------------------------------------------------------------------------------------------------------


class _Values(Env):
    """An environs reader of the given values instead of the process environment."""

    def __init__(self, given: Mapping[str, object]) -> None:
        super().__init__()
        self.given = given

    def _get_value(self, env_key: str, default: object) -> object:
        return self.given.get(env_key, default)


class Rule(NamedTuple):
    """The purpose and the rules of one setting. ``read`` parses and checks a raw value of one of the ``kinds``."""

    description: str
    allowed: str
    kinds: tuple[type, ...]
    read: Callable[[_Values, str], object]
    secret: bool = False
    path: bool = False


class _FaultError(ValueError):
    """A fault of a value. The message does not quote the value."""


def _must(hold: Callable[[Any], bool]) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not hold(value):
            raise ValidationError("not allowed")

    return check


def _integer(description: str, least: int, most: int) -> Rule:
    between = validate.Range(least, most)
    return Rule(
        description,
        f"a whole number from {least} to {most}",
        (int, str),
        lambda env, key: env.int(key, validate=between),
    )


def _integer_or_word(description: str, least: int, most: int, words: Mapping[str, object]) -> Rule:
    rule = _integer(description, least, most)

    def read(env: _Values, key: str) -> object:
        word = str(env.given[key]).lower()
        return words[word] if word in words else rule.read(env, key)

    return Rule(description, " or ".join([f"{rule.allowed},", *words]), (int, str, type(None)), read)


def _duration(description: str, *, least: timedelta = timedelta(milliseconds=1), or_off: bool = False) -> Rule:
    between = validate.Range(least, _LONGEST)

    def check(value: timedelta) -> None:
        if not (or_off and value == timedelta(0)):
            between(value)

    def read(env: _Values, key: str) -> object:
        raw = env.given[key]
        if isinstance(raw, str) and raw != "0" and not _has_units(raw):
            raise ValidationError("no unit, or a negative part")
        # A plain timedelta: pendulum's subclass can't be divided by a timedelta.
        return timedelta.__add__(timedelta(0), env.timedelta(key, validate=check))

    allowed = "a duration with its unit, such as 500ms, 30s, 5m or 1h30m, "
    allowed += f"from {format_duration(least)} to {format_duration(_LONGEST)}" + (", or 0s to turn it off" * or_off)
    return Rule(description, allowed, (timedelta, str), read)


def _text(description: str, allowed: str, pattern: str) -> Rule:
    matches = _must(lambda text: re.fullmatch(pattern, text) is not None)
    return Rule(description, allowed, (str,), lambda env, key: env.str(key, validate=matches))


def _schema(description: str) -> Rule:
    return Rule(description, ALLOWED_SCHEMA, (str,), lambda env, key: env.str(key, validate=_must(is_schema)))


def _choice(description: str, *choices: str) -> Rule:
    one_of = _must(lambda text: text.lower() in choices)
    return Rule(
        description,
        "one of " + ", ".join(choices),
        (str,),
        lambda env, key: env.str(key, validate=one_of).lower(),
    )


def _names(description: str) -> Rule:
    def hold(names: Sequence[object]) -> bool:
        each = all(isinstance(name, str) and 1 <= len(name) <= 255 and _storable(name) for name in names)
        return each and len(names) == len(set(names)) > 0

    def read(env: _Values, key: str) -> object:
        # Only text is split. Blanks around a comma separate names there; in a list they belong to the name.
        strip = str.strip if isinstance(env.given[key], str) else None
        return tuple(str.__str__(name) for name in env.list(key, subcast=strip, validate=_must(hold)))

    allowed = "one or more different names of 1 to 255 characters each, separated by commas"
    return Rule(description, allowed, (str, list, tuple), read)


def _path(description: str, allowed: str) -> Rule:
    rule = _text(description, allowed, r"[^\0\ud800-\udfff]{0,4096}")

    def read(env: _Values, key: str) -> object:
        text = str(rule.read(env, key))
        if redact(text) != text:
            raise _FaultError(NO_PATH)
        expanded = _expanded(text)
        if expanded.startswith("~"):
            raise _FaultError("there is no such home folder")
        return expanded

    return rule._replace(read=read, path=True)


def _conninfo(description: str) -> Rule:
    def read(env: _Values, key: str) -> object:
        text = env.str(key)
        if fault := fault_of(text):
            raise _FaultError(fault)
        return str.__str__(text)

    allowed = "postgresql://user:password@host:port/database, or libpq's host=... dbname=... user=..."
    return Rule(description, allowed, (str,), read, secret=True)


def _expanded(path: str) -> str:
    """Return the path with a leading ``~`` or ``~user`` expanded, or unchanged if there is no such home folder."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises if there is none


def _storable(text: str) -> bool:
    """Return True if PostgreSQL can store the text: no NUL, and valid UTF-8 in the environment."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _has_units(text: str) -> bool:
    # environs reads a bare number as seconds, but 5 may mean milliseconds. It subtracts a negative part (1h-30m).
    return text.strip().endswith(("d", "h", "m", "s")) and "-" not in text


def parse_duration(text: str) -> timedelta:
    """Return the timedelta (zero or more) of a duration as in the settings, such as `1h30m`. Raises ValueError."""
    try:
        if _has_units(text) and (value := _Values({"": text}).timedelta("")) >= timedelta(0):
            return value
    except (ValueError, OverflowError):
        pass  # our message says more than the parser's
    raise ValueError(f"{text!r} is not a duration with its unit, such as 500ms, 30s, 5m, 1h30m or 30d")


def format_duration(value: timedelta) -> str:
    """Return a duration (zero or more) as text for the settings, such as `1h30m` or `500ms`; zero is `0s`."""
    rest = value // timedelta(microseconds=1)
    text = ""
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1000)):
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return (text + (f"{rest}us" if rest else "")) or "0s"


# -- Settings ----------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting, as its section declares it."""

    section: str
    name: str
    default: object
    rule: Rule
    #: The program that uses it; empty for goqueue itself.
    reader: str = ""

    @property
    def key(self) -> str:
        """Its name in messages and its place in the file, such as `server.port`."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """Its environment variable, such as `GOQUEUE_SERVER_PORT`."""
        return f"GOQUEUE_{self.section}_{self.name}".upper()

    def shown(self, value: object) -> int | str | list[str] | None:
        """Return a value for people and for JSON: durations as text, a secret without its password."""
        if self.rule.secret:
            return _shown_conninfo(str(value))
        if isinstance(value, timedelta):
            return format_duration(value)
        if isinstance(value, tuple):
            return [str(item) for item in value]
        return value if isinstance(value, int) or value is None else str(value)


class _Section(msgspec.Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True):
    """Base of the sections. It checks the values on creation and never prints secrets."""

    section: ClassVar[str]
    # The program that uses the settings; empty for goqueue itself.
    reader: ClassVar[str] = ""
    # Pairs of settings of which the first must be less than the second, or equal if the flag is True.
    ordered: ClassVar[tuple[tuple[str, str, bool], ...]] = ()

    def __post_init__(self) -> None:
        if problems := _settle(self):  # in its own frame, so that a traceback shows no values
            raise ConfigError(problems)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = ((setting, getattr(self, setting.name)) for setting in settings_of(type(self)))
        return [(setting.name, setting.shown(value) if setting.rule.secret else value) for setting, value in values]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class ServerConfig(_Section, frozen=True, kw_only=True):
    """The address and the timeouts of an HTTP server. Raises ConfigError for invalid values.

    The settings are for a server built on goqueue. goqueue only checks and shows them.
    """

    section = "server"
    reader = "a server built on goqueue"

    host: Annotated[
        str, _text("Address to listen on.", "a host name or an address of 1 to 255 ASCII characters", r"[!-~]{1,255}")
    ] = "127.0.0.1"
    port: Annotated[int, _integer("TCP port to listen on.", 1, 65535)] = 8080
    read_timeout: Annotated[timedelta, _duration("Longest time to read a request.")] = timedelta(seconds=30)
    write_timeout: Annotated[timedelta, _duration("Longest time to write a response.")] = timedelta(seconds=30)
    idle_timeout: Annotated[timedelta, _duration("Idle time after which a connection is closed.")] = timedelta(
        minutes=2
    )
    shutdown_timeout: Annotated[timedelta, _duration("Longest wait for requests at shutdown.")] = timedelta(seconds=30)


class DatabaseConfig(_Section, frozen=True, kw_only=True):
    """The connection to PostgreSQL and its limits. Raises ConfigError for invalid values.

    If ``url`` is empty, libpq's PG* variables apply. ``listen_url`` is a direct connection that bypasses a pooler.
    Lists, counts and statistics are read on ``read_url``, a standby. A ``prepare_threshold`` of None prepares no
    statement; "auto" prepares none behind a pooler (pgbouncer). A libpq service and the PG* variables override
    ``application_name``, ``connect_timeout`` and the limits, unless these differ from their defaults. ``repr`` shows no
    password.
    """

    section = "database"
    ordered = (("pool_min_size", "pool_max_size", True),)

    url: Annotated[str, _conninfo("The database; if empty, libpq's PG* variables apply.")] = ""
    listen_url: Annotated[str, _conninfo("Direct connection for LISTEN, bypassing a pooler; if empty, url.")] = ""
    schema: Annotated[str, _schema("Schema of the tables. Several schemas of one database are independent queues.")] = (
        DEFAULT_SCHEMA
    )
    read_url: Annotated[str, _conninfo("Standby for lists, counts and statistics; if empty, url.")] = ""
    pool_min_size: Annotated[int, _integer("Connections kept open.", 0, 1000)] = 1
    pool_max_size: Annotated[int, _integer("Largest number of open connections.", 1, 1000)] = 10
    pool_timeout: Annotated[timedelta, _duration("Longest wait for a connection.")] = timedelta(seconds=10)
    pool_max_idle: Annotated[timedelta, _duration("Idle time after which a connection is closed.")] = timedelta(
        minutes=10
    )
    pool_max_lifetime: Annotated[timedelta, _duration("Age at which a connection is replaced.")] = timedelta(hours=1)
    connect_timeout: Annotated[
        timedelta,
        _duration("Longest time to connect, for all hosts of the URL together.", least=timedelta(seconds=1)),
    ] = timedelta(seconds=5)
    statement_timeout: Annotated[timedelta, _duration("Longest run time of a statement.", or_off=True)] = timedelta(
        seconds=30
    )
    lock_timeout: Annotated[timedelta, _duration("Longest wait for a lock.", or_off=True)] = timedelta(seconds=5)
    idle_in_transaction_timeout: Annotated[
        timedelta, _duration("Idle time in a transaction after which the session is ended.", or_off=True)
    ] = timedelta(minutes=1)
    application_name: Annotated[
        str, _text("Name of the connections in pg_stat_activity.", "1 to 63 printable ASCII characters", r"[ -~]{1,63}")
    ] = "goqueue"
    prepare_threshold: Annotated[
        int | Literal["auto"] | None,
        _integer_or_word(
            "Executions before a statement is prepared; none: never; auto: 1, or never behind a pooler.",
            0,
            10**6,
            {"none": None, "auto": "auto"},
        ),
    ] = "auto"
    claim_resume_time: Annotated[
        timedelta,
        _duration(
            "While vacuum is late, claims skip the dead rows before the last claimed job, for this time. A job that "
            "becomes due there can wait as long. 0s: skip nothing.",
            or_off=True,
        ),
    ] = timedelta(seconds=1)
    slow_query_time: Annotated[
        timedelta, _duration("A statement that takes this long is logged as a warning.", or_off=True)
    ] = timedelta(seconds=1)
    max_payload_bytes: Annotated[int, _integer("Largest payload of a job, as JSON in bytes.", 1, 268_435_455)] = 2**20
    batch_size: Annotated[int, _integer("Largest number of jobs written by one statement.", 1, 10_000)] = 1000
    sql_dir: Annotated[
        str,
        _path(
            "Folder of SQL files that replace the shipped ones of the same name (`goqueue sql export`).",
            "the name of a folder, or nothing for the shipped files",
        ),
    ] = ""


class WorkerConfig(_Section, frozen=True, kw_only=True):
    """The queues, the leases and the time limits of a worker. Raises ConfigError for invalid values.

    `Worker`, `AsyncWorker` and `goqueue work` use these settings.
    """

    section = "worker"
    ordered = (("heartbeat_interval", "lease", False),)

    concurrency: Annotated[int, _integer("Number of jobs to run at the same time.", 1, 1000)] = 10
    queues: Annotated[tuple[str, ...], _names("Queues to take jobs from.")] = ("default",)
    poll_interval: Annotated[timedelta, _duration("Pause between polls.")] = timedelta(seconds=1)
    job_timeout: Annotated[timedelta, _duration("Longest run time of a job.")] = timedelta(minutes=5)
    lease: Annotated[timedelta, _duration("Time without a heartbeat after which a job is lost.")] = timedelta(minutes=5)
    heartbeat_interval: Annotated[timedelta, _duration("Time between renewals of the leases.")] = timedelta(seconds=30)
    shutdown_timeout: Annotated[timedelta, _duration("Longest wait for running jobs at shutdown.")] = timedelta(
        seconds=30
    )


class LoggingConfig(_Section, frozen=True, kw_only=True):
    """The level and the format of the log. Raises ConfigError for invalid values."""

    section = "logging"

    level: Annotated[
        str, _choice("Least severe level that is logged.", "debug", "info", "warning", "error", "critical")
    ] = "info"
    format: Annotated[str, _choice("One line of text, or one JSON object, per record.", "text", "json")] = "text"


class Config(msgspec.Struct, metaclass=HelpfulMeta, frozen=True, kw_only=True):
    """Every setting, by section. ``Config()`` holds the defaults; ``load_config()`` reads environment and file."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    database: DatabaseConfig = msgspec.field(default_factory=DatabaseConfig)
    worker: WorkerConfig = msgspec.field(default_factory=WorkerConfig)
    logging: LoggingConfig = msgspec.field(default_factory=LoggingConfig)


SECTIONS: tuple[type[_Section], ...] = (ServerConfig, DatabaseConfig, WorkerConfig, LoggingConfig)


@cache
def settings_of(section: type[_Section]) -> tuple[Setting, ...]:
    """Return the settings of a section, in the order of its fields."""
    return tuple(
        Setting(section.section, field.name, field.default, field.type.__metadata__[0], section.reader)
        for field in msgspec.structs.fields(section)
    )


# -- Checking ----------------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """A raw value and its source. A relative path in it starts at ``base``, if known."""

    value: object
    source: str
    base: Path | None = None


def _check(section: type[_Section], given: Mapping[str, _Given]) -> tuple[dict[str, Any], list[str]]:
    """Return the section's values by name, and a problem for each broken rule."""
    settings = {setting.name: setting for setting in settings_of(section)}
    env = _Values({key: value for key, (value, _, _) in given.items()})
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, setting in settings.items():
        key, rule = setting.key, setting.rule
        if key not in given:
            values[name] = setting.default
            continue
        raw, source, base = given[key]
        fault = ""
        try:
            if isinstance(raw, rule.kinds):
                value = rule.read(env, key)
                values[name] = _absolute(str(value), base) if rule.path and value and base else value
                continue
        except _FaultError as error:
            fault = f": {error}"
        except (ValidationError, ValueError, OverflowError):
            pass  # the rule's message says more, and the parser's may quote a secret
        got = "a value that is not shown" if rule.secret else _quoted(raw)
        problems.append(f"{key}: got {got} ({source}){fault}; expected {rule.allowed}")
    for low, high, may_equal in section.ordered:
        if low not in values or high not in values:
            continue
        small, large = values[low], values[high]
        if small > large or (small == large and not may_equal):
            (low_got, high_got) = (
                f"{setting.shown(value)} ({given[setting.key].source if setting.key in given else 'default'})"
                for setting, value in ((settings[low], small), (settings[high], large))
            )
            relation = "at most" if may_equal else "less than"
            problems.append(f"{settings[low].key}: got {low_got}; expected {relation} {settings[high].key}, {high_got}")
    return values, problems


def _absolute(path: str, base: Path) -> str:
    try:
        return os.path.abspath(base / path)  # noqa: PTH100 - Path.resolve would follow links
    except OSError:  # the working directory no longer exists
        return path


def _settle(section: _Section) -> list[str]:
    """Replace the given values with the checked ones; return the problems."""
    given: dict[str, _Given] = {}
    for setting in settings_of(type(section)):
        value = getattr(section, setting.name)
        if type(value) is not type(setting.default) or value != setting.default:  # defaults need no check
            given[setting.key] = _Given(value, "argument")
    values, problems = _check(type(section), given)
    for name, value in {} if problems else values.items():
        force_setattr(section, name, value)
    return problems


def _quoted(value: object) -> str:
    """Return a value as quoted in a message: on one line, shortened, without a password."""
    if isinstance(value, timedelta) and value >= timedelta(0):
        value = format_duration(value)
    if isinstance(value, dict) or value is None:
        return "nothing" if value is None else "a mapping"
    text = redact(repr(value))  # repr escapes line breaks and terminal codes
    return text if len(text) <= 80 else text[:77] + "..."


def redact(text: str) -> str:
    """Return the text with `***` for each password: in URLs (`postgresql://user:...@host`) and after `password` (as in
    connection strings, calls, JSON and SQL). If its end is unclear, more is replaced."""
    if ":/" not in text and "passw" not in text.casefold():  # each alternative has one of them
        return text

    def hidden(found: re.Match[str]) -> str:
        if found["url"]:
            return f"{found['url']}***@"
        value = found["value"] or found["bare"] or ""
        closing = value[len(value.rstrip("]'\")}>,;\\")) or len(value) :][-4:]  # of the text around it
        return f"{found['key'] or found['parameter']}***{closing}"

    return _PASSWORDS.sub(hidden, text)


def _shown_conninfo(url: str) -> str:
    """Return the server, database and user of a checked URL or connection string. The rest may hold secrets."""
    if fault_of(url):  # an invalid value that a debugger shows
        return "***"
    parts = conninfo_to_dict(url)
    shown = [
        f"{name}={parts[name]}" for name in ("service", "host", "hostaddr", "port", "dbname", "user") if parts.get(name)
    ]
    if len(shown) < len(parts):
        shown.append("password=***" if "password" in parts else "...")
    return redact(" ".join(shown))  # dbname may itself be a URL


# -- Loading -----------------------------------------------------------------------------------------------------------


class EffectiveSetting(NamedTuple):
    """A setting in force. ``value`` is fit for JSON: durations as text, secrets redacted. ``source`` is `default`,
    `environment GOQUEUE_SERVER_PORT`, or file and line (`goqueue.yaml:12`). ``read_by`` is the program that uses it."""

    section: str
    name: str
    value: int | str | list[str] | None
    source: str
    description: str
    read_by: str = "goqueue"


def load_config(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Return the settings, each from the environment (`GOQUEUE_<SECTION>_<NAME>`), else the file, else its default.

    The file is ``path``, or the one that `GOQUEUE_CONFIG` names, or `goqueue.yaml` in the working directory if it
    exists. ``environ`` replaces ``os.environ``, which is never changed. An empty variable counts as unset.
    `GOQUEUE_DATABASE_URL_FILE` names a file that holds the URL. Relative paths start at the working directory; those in
    the file start at the file's folder. `~` is the home folder.

    Raises: `ConfigError` with every problem found.
    """
    config, _, problems = _load(path, environ)
    if config is None:
        del environ  # a traceback that shows local variables must show no password
        raise ConfigError(problems)
    return config


def load_settings(
    path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
) -> tuple[EffectiveSetting, ...]:
    """Return every setting in force with its source, in the order of the sections. See ``load_config``."""
    config, sources, problems = _load(path, environ)
    if config is None:
        del environ  # as above
        raise ConfigError(problems)
    return tuple(
        EffectiveSetting(
            setting.section,
            setting.name,
            setting.shown(getattr(getattr(config, setting.section), setting.name)),
            sources.get(setting.key, "default"),
            setting.rule.description,
            setting.reader or "goqueue",
        )
        for section in SECTIONS
        for setting in settings_of(section)
    )


def _load(
    path: str | os.PathLike[str] | None, environ: Mapping[str, str] | None
) -> tuple[Config | None, dict[str, str], list[str]]:
    """Return the settings and their sources, or no settings and all problems."""
    found = {name: value for name, value in (os.environ if environ is None else environ).items() if value}
    variables, problems = _without_service_links(found)
    given, more = _from_file(path, variables)
    problems += more
    from_environment, more = _from_environment(variables)
    given |= from_environment
    problems += more
    parts: dict[str, Any] = {}
    for section in SECTIONS:
        parts[section.section], more = _check(section, given)
        problems += more
    if problems:
        return None, {}, problems
    config = Config(
        server=ServerConfig(**parts["server"]),
        database=DatabaseConfig(**parts["database"]),
        worker=WorkerConfig(**parts["worker"]),
        logging=LoggingConfig(**parts["logging"]),
    )
    return config, {key: one.source for key, one in given.items()}, []


def _from_environment(variables: Mapping[str, str]) -> tuple[dict[str, _Given], list[str]]:
    given: dict[str, _Given] = {}
    problems = _misspelt_sections(variables)
    for section in SECTIONS:
        prefix, known = f"GOQUEUE_{section.section}_".upper(), _variables_of(section)
        for variable in sorted(variables):
            if variable not in known:
                if variable.startswith(prefix):
                    names = {name.removeprefix(prefix).lower(): name for name in known}
                    hint = _suggestion(variable.removeprefix(prefix), names)
                    problems.append(f"{_name(variable)}: no setting has this environment variable; {hint}")
                continue
            setting, value, source = known[variable], variables[variable], f"environment {variable}"
            if variable == setting.variable:
                given[setting.key] = _Given(value, source, Path())
            elif setting.variable in variables:
                problems.append(f"{setting.key}: both {setting.variable} and {variable} are set; expected only one")
            else:
                text, problem = _read(Path(_expanded(value)))
                secret = text.rstrip("\r\n")
                if secret:
                    given[setting.key] = _Given(secret, source)
                else:
                    # The path isn't shown: it may be the secret, if the two variables were confused.
                    reason = problem or "it is empty"
                    problems.append(
                        f"{setting.key}: got a file that can't be used ({source}, path not shown): {reason}; "
                        "expected a readable file that holds the value"
                    )
    return given, problems


def _variables_of(section: type[_Section]) -> dict[str, Setting]:
    """Return the section's environment variables, those that name a file included."""
    known: dict[str, Setting] = {}
    for setting in settings_of(section):
        known |= {setting.variable: setting} | ({f"{setting.variable}_FILE": setting} if setting.rule.secret else {})
    return known


def _without_service_links(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables without those that Kubernetes sets for a Service named goqueue-..., and the problems. A
    Service is a problem if some of its variables are missing: the others may be the user's own."""
    services: dict[str, list[str]] = {}
    for variable, value in sorted(variables.items()):
        if variable.startswith("GOQUEUE_"):
            for name, kind in _SERVICE_LINKS:
                if (found := name.fullmatch(variable)) and kind.fullmatch(value):
                    services.setdefault(found["service"], []).append(variable)
                    break
    problems = []
    ours = tuple(f"GOQUEUE_{section.section}_".upper() for section in SECTIONS)
    for service, names in services.items():
        host, port = (variables.get(f"{service}_SERVICE_{part}") for part in ("HOST", "PORT"))
        addresses = {variables[name].partition("://")[2] for name in names}
        if names[0].startswith(ours) and addresses.isdisjoint((f"{host}:{port}", f"[{host}]:{port}")):
            others = f" and {len(names) - 1} more" * (len(names) > 1)
            problems.append(
                f"{names[0]}{others}: got what Kubernetes sets for a Service named {_hyphenated(service)}; "
                "expected enableServiceLinks: false in the pod's spec, or another Service name"
            )
    links = {name for names in services.values() for name in names}
    return {name: value for name, value in variables.items() if name not in links}, problems


def _hyphenated(variable: str) -> str:
    return variable.lower().replace("_", "-")


def _misspelt_sections(variables: Mapping[str, str]) -> list[str]:
    """Return problems for variables without a known section or with a misspelt prefix that resemble a setting's. The
    rest belong to other programs; Kubernetes sets GOQUEUE_SERVICE_... for a Service named goqueue, and GOQUEUE_TEST_...
    is for tests."""
    others = ("GOQUEUE_SERVICE_", "GOQUEUE_TEST_", *(f"GOQUEUE_{section.section}_".upper() for section in SECTIONS))
    return [
        f"{_name(variable)}: no setting has this environment variable; did you mean {' or '.join(meant)}?"
        for variable in sorted(variables)
        if variable != FILE_VARIABLE and not variable.startswith(others)
        if (meant := _resembled(variable) if variable.startswith("GOQUEUE_") else _differs_in_prefix(variable))
    ]


def _differs_in_prefix(variable: str) -> list[str]:
    """Return the known variable that differs only in its prefix, if that resembles GOQUEUE, as GOQUE and goqueue do."""
    name = variable.upper()
    for known in (*(each for section in SECTIONS for each in _variables_of(section)), FILE_VARIABLE):
        rest = known.removeprefix("GOQUEUE")
        prefix = name.removesuffix(rest)
        # GO, because QUEUE_ and PGQUEUE_ belong to others; letters, because GOQUEUE2_ is a program's second queue.
        if prefix != name and re.fullmatch("GO[A-Z_]*", prefix) and get_close_matches(prefix, ["GOQUEUE"], cutoff=0.8):
            return [known]
    return []


def _resembled(variable: str) -> list[str]:
    """Return the known variables that an unknown one resembles: whole, without its section, or with a short one."""
    known = {name: section.section for section in SECTIONS for name in _variables_of(section)}
    if close := get_close_matches(variable, (*known, FILE_VARIABLE), n=1, cutoff=_ALIKE):
        return close
    short = {name: [meant] for name, meant in _OTHER_NAMES.items()}
    for name, section in known.items():
        rest = name.removeprefix(f"GOQUEUE_{section}_".upper())
        for key in (rest, *(f"{each}_{rest}" for each in _SHORT_SECTIONS.get(section, ()))):
            short.setdefault(key, []).append(name)
    close = get_close_matches(variable.removeprefix("GOQUEUE_"), short, n=1, cutoff=_ALIKE)
    return short[close[0]] if close else []


def _from_file(
    path: str | os.PathLike[str] | None, variables: Mapping[str, str]
) -> tuple[dict[str, _Given], list[str]]:
    named = path or variables.get(FILE_VARIABLE)
    file = Path(_expanded(os.fspath(named)) if named else DEFAULT_FILE)
    if not named and not os.path.lexists(file):
        return {}, []
    text, problem = _read(file)
    if problem:
        by = "" if path or not named else f", which {FILE_VARIABLE} names"
        return {}, [f"{redact(str(file))}{by}: can't be read: {problem}"]
    given: dict[str, _Given] = {}
    problems: list[str] = []
    sections = {section.section: settings_of(section) for section in SECTIONS}
    shown = redact(str(file))
    try:
        # Nodes instead of values: they have line numbers, and scalars as written. So 0777, 1:30 and off mean the same
        # in the file as in the environment.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        for section, _, node in _pairs(root, shown, "", list(sections), problems):
            names = [setting.name for setting in sections[section]]
            for name, line, value in _pairs(node, shown, section, names, problems):
                given[f"{section}.{name}"] = _Given(_raw(value), f"{shown}:{line}", file.parent)
    except yaml.YAMLError as error:
        problems.append(_yaml_problem(shown, text, error))
    except RecursionError:
        problems.append(f"{shown}: nested too deep; expected sections, and settings in them")
    return given, problems


def _pairs(
    node: yaml.Node | None, file: str, section: str, known: Sequence[str], problems: list[str]
) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield the known keys of a mapping with their lines and values; report the rest. An empty mapping is allowed."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return
    if not isinstance(node, yaml.MappingNode):
        got = f"{section or 'the file'}: got {_kind(node)} ({file}:{node.start_mark.line + 1})"
        problems.append(f"{got}; expected lines of the form `{'name: value' if section else 'section:'}`")
        return
    first: dict[str, int] = {}
    merged: list[yaml.MappingNode] = []
    for key_node, value in _flat(node, file, section, merged, problems):
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
        name = _name(f"{section}.{key}" if section else key)
        if key in first:
            if not merged:  # merged keys don't override the mapping's own
                problems.append(f"{name}: given twice ({file}:{line}, first in line {first[key]}); expected only one")
        elif key.startswith("x-"):
            pass  # by convention, a place for YAML anchors
        elif key not in known:
            hint = _suggestion(key, {name: f"{section}.{name}" if section else name for name in known})
            problems.append(f"{name}: there is no such {'setting' if section else 'section'} ({file}:{line}); {hint}")
        else:
            yield key, line, value
        first.setdefault(key, line)


def _flat(
    node: yaml.MappingNode, file: str, section: str, merged: list[yaml.MappingNode], problems: list[str]
) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Yield a mapping's pairs, then those of the mappings that its merge keys (``<<``) name, each once. ``merged``
    collects the latter before their pairs are yielded."""
    waiting = [node]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if current is not node:
            merged.append(current)
        more: list[yaml.MappingNode] = []
        for key, value in current.value:
            if not key.tag.endswith(":merge"):
                yield key, value
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(source, yaml.MappingNode):
                    more.append(source)
                else:
                    where = f"{section}.<<" if section else "<<"
                    line = key.start_mark.line + 1
                    problems.append(f"{where}: got {_kind(source)} ({file}:{line}); expected *name, of a mapping")
        waiting = [*more, *waiting]


def _raw(node: yaml.Node) -> object:
    """Return a scalar as written (an explicit null as None), a list of scalars, or {} for a value no setting
    accepts."""
    if isinstance(node, yaml.SequenceNode):
        return [_raw(item) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return None if node.value and node.tag.endswith(":null") else node.value
    return {}


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _yaml_problem(file: str, text: str, error: yaml.YAMLError) -> str:
    """Describe a syntax error and its place. Don't quote the file: its text may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        what = re.sub(r"'(?!\\t')[^']{2,}'", "'...'", error.problem or "unknown")
        what = what.replace("but found another document", "a second document; expected only one")
        return f"{file}:{mark.line + 1}: not valid YAML in column {mark.column + 1}: {what}"
    position = getattr(error, "position", 0)
    return f"{file}:{text.count(chr(10), 0, position) + 1}: not valid YAML: a control character"


def _read(file: Path) -> tuple[str, str]:
    """Return a file's text and no problem, or no text and the problem."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            return "", f"it is longer than {_LONGEST_FILE // 1024} KiB"
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        return "", f"line {error.object.count(10, 0, error.start) + 1} is not UTF-8"
    except OSError as error:
        return "", f"{error.strerror or type(error).__name__}"
    except ValueError:
        return "", "not the name of a file"


def _suggestion(word: str, known: Mapping[str, str]) -> str:
    """Return a suggestion for a misspelt word. ``known`` maps each short name to its full name."""
    close = get_close_matches(word.lower(), known, n=1)
    return f"did you mean {known[close[0]]}?" if close else f"expected one of {', '.join(known)}"


def _name(text: str) -> str:
    """Return a key or variable name as a message shows it: a value pasted there may be long or secret."""
    return _quoted(text)[1:-1]
