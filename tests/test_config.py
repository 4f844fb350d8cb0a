"""The settings: where they come from, what each may be, and what is said when they can't be used."""

import os
import pickle
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from goqueue.config import (
    SECTIONS,
    Config,
    DatabaseConfig,
    LoggingConfig,
    ServerConfig,
    Setting,
    WorkerConfig,
    format_duration,
    load_config,
    load_settings,
    parse_duration,
    redact,
    settings_of,
)
from goqueue.errors import ConfigError

SETTINGS = [setting for section in SECTIONS for setting in settings_of(section)]
SECTION = {section.section: section for section in SECTIONS}
SECRET = "hunter2"

# One good value of each setting, other than its default, as it is written and as it is read.
GOOD: dict[str, tuple[str, object]] = {
    "server.host": ("::1", "::1"),
    "server.port": ("65535", 65535),
    "server.read_timeout": ("500ms", timedelta(milliseconds=500)),
    "server.write_timeout": ("1h30m", timedelta(minutes=90)),
    "server.idle_timeout": ("5m", timedelta(minutes=5)),
    "server.shutdown_timeout": ("1ms", timedelta(milliseconds=1)),
    "database.url": (f"postgresql://app:{SECRET}@db:5433/jobs", f"postgresql://app:{SECRET}@db:5433/jobs"),
    "database.listen_url": ("host=/run port=5433", "host=/run port=5433"),
    "database.pool_min_size": ("0", 0),
    "database.pool_max_size": ("1000", 1000),
    "database.pool_timeout": ("30s", timedelta(seconds=30)),
    "database.pool_max_idle": ("1d", timedelta(days=1)),
    "database.pool_max_lifetime": ("2h", timedelta(hours=2)),
    "database.connect_timeout": ("1s", timedelta(seconds=1)),
    "database.statement_timeout": ("0", timedelta(0)),
    "database.lock_timeout": ("0s", timedelta(0)),
    "database.claim_resume_time": ("250ms", timedelta(milliseconds=250)),
    "database.slow_query_time": ("2s", timedelta(seconds=2)),
    "database.idle_in_transaction_timeout": ("24d", timedelta(days=24)),
    "database.application_name": ("my app", "my app"),
    "database.prepare_threshold": ("None", None),
    "database.max_payload_bytes": ("268435455", 268_435_455),
    "database.batch_size": ("10000", 10_000),
    "database.sql_dir": ("/etc/goqueue/sql", "/etc/goqueue/sql"),
    "worker.concurrency": ("1", 1),
    "worker.queues": ("mail, images", ("mail", "images")),
    "worker.poll_interval": ("250ms", timedelta(milliseconds=250)),
    "worker.job_timeout": ("1m30s", timedelta(seconds=90)),
    "worker.lease": ("31s", timedelta(seconds=31)),
    "worker.heartbeat_interval": ("10s", timedelta(seconds=10)),
    "worker.shutdown_timeout": ("1m", timedelta(minutes=1)),
    "logging.level": ("WARNING", "warning"),
    "logging.format": ("JSON", "json"),
}

DURATIONS = [
    "30",
    "-5s",
    "1.5s",
    "25d",
    "soon",
    "999us",
    "1e3",
    "nan",
    "9" * 5000 + "s",
    "99999999999999w",
    "5s5m",
    "1m-2m",
]
BAD: dict[str, list[str]] = {
    "server.host": ["a b", "x" * 256, "h\n"],
    "server.port": ["0", "65536", "80.0", "http", "true", "-1", "9" * 5000],
    "database.url": [
        f"mysql://u:{SECRET}@h/db",
        f"u:{SECRET}@h",
        f"postgresql://u:{SECRET}%zz@h/db",
        f"postgresql://u:{SECRET}%00@h/db",
        f"postgresql://u:{SECRET}%ff@h/db",
        f"postgresql://u:x@{SECRET}@h/db",
        f"postgresql://u:x/{SECRET}@h/db",
        f"postgresql://u:1/{SECRET}@h/db",
        f"postgresql://u:x@h/db?{SECRET}=1",
        f"postgresql://u:{SECRET}@h:99999/db",
        f"postgresql://u:{SECRET}@h:port/db",
        f"postgresql://u:{SECRET}@h/db\n",
        f"host=h password={SECRET} and more",
        f"host=h password={SECRET} port=0",
        f"host=h password='{SECRET}",
        f"host=h password={SECRET}\udcff",
    ],
    "database.listen_url": ["db.internal", f"host=h password={SECRET} port=0"],
    "database.pool_min_size": ["-1", "1001"],
    "database.pool_max_size": ["0", "1001"],
    "database.connect_timeout": ["999ms", "0", *DURATIONS],
    "database.application_name": ["x" * 64, "naïve", "a\tb"],
    "database.prepare_threshold": ["-1", "never", "1.5"],
    "database.max_payload_bytes": ["0", "268435456", "1MiB"],
    "database.batch_size": ["0", "10001"],
    "database.sql_dir": ["a\0b", "x" * 4097],
    "worker.concurrency": ["0", "1001"],
    "worker.queues": ["a,", ",", "a, a", "x" * 256, "\0"],
    "logging.level": ["loud", "20", "info "],
    "logging.format": ["xml"],
}
for _setting in SETTINGS:
    if isinstance(_setting.default, timedelta):
        BAD.setdefault(_setting.key, DURATIONS)
MAY_BE_ZERO = {
    "database.statement_timeout", "database.lock_timeout", "database.idle_in_transaction_timeout",
    "database.claim_resume_time", "database.slow_query_time",
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GOQUEUE_")]:
        monkeypatch.delenv(name)


def value_of(config: Config, setting: Setting) -> object:
    return getattr(getattr(config, setting.section), setting.name)


def problems(environ: Mapping[str, str] = {}, text: str | None = None) -> tuple[str, ...]:
    """Return the problems of an environment and a goqueue.yaml, which must be at least one."""
    if text is not None:
        Path("goqueue.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(environ=environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.problems


def the_problem(environ: Mapping[str, str] = {}, text: str | None = None) -> str:
    (problem,) = problems(environ, text)
    return problem


def setting_of(key: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.key == key)


def file_of(written: Mapping[str, str]) -> str:
    lines = []
    for section in SECTION:
        lines.append(f"{section}:")
        lines += [
            f"  {key.partition('.')[2]}: {value}" for key, value in written.items() if key.startswith(f"{section}.")
        ]
    return "\n".join(lines)


# -- Where values come from


def test_defaults_are_the_documented_ones() -> None:
    assert load_config(environ={}) == Config()
    shown = {f"{row.section}.{row.name}": row.value for row in load_settings(environ={})}
    assert shown == {
        "server.host": "127.0.0.1",
        "server.port": 8080,
        "server.read_timeout": "30s",
        "server.write_timeout": "30s",
        "server.idle_timeout": "2m",
        "server.shutdown_timeout": "30s",
        "database.url": "",
        "database.listen_url": "",
        "database.pool_min_size": 1,
        "database.pool_max_size": 10,
        "database.pool_timeout": "10s",
        "database.pool_max_idle": "10m",
        "database.pool_max_lifetime": "1h",
        "database.connect_timeout": "5s",
        "database.statement_timeout": "30s",
        "database.lock_timeout": "5s",
        "database.claim_resume_time": "1s",
        "database.slow_query_time": "1s",
        "database.idle_in_transaction_timeout": "1m",
        "database.application_name": "goqueue",
        "database.prepare_threshold": "auto",
        "database.max_payload_bytes": 1_048_576,
        "database.batch_size": 1000,
        "database.sql_dir": "",
        "worker.concurrency": 10,
        "worker.queues": ["default"],
        "worker.poll_interval": "1s",
        "worker.job_timeout": "5m",
        "worker.lease": "5m",
        "worker.heartbeat_interval": "30s",
        "worker.shutdown_timeout": "30s",
        "logging.level": "info",
        "logging.format": "text",
    }


def test_every_setting_has_an_example_here_and_a_description() -> None:
    assert set(GOOD) == {setting.key for setting in SETTINGS}
    assert set(BAD) == set(GOOD)
    for setting in SETTINGS:
        assert setting.rule.description.endswith(".")
        assert "\n" not in setting.rule.description


def test_every_setting_is_read_from_its_environment_variable() -> None:
    config = load_config(environ={setting.variable: GOOD[setting.key][0] for setting in SETTINGS})
    assert {setting.key: value_of(config, setting) for setting in SETTINGS} == {
        key: good for key, (_, good) in GOOD.items()
    }


def test_every_setting_is_read_from_the_file() -> None:
    Path("goqueue.yaml").write_text(file_of({key: written for key, (written, _) in GOOD.items()}))
    config = load_config(environ={})
    assert {setting.key: value_of(config, setting) for setting in SETTINGS} == {
        key: good for key, (_, good) in GOOD.items()
    }


def test_the_environment_wins_over_the_file_and_the_file_over_the_default() -> None:
    Path("goqueue.yaml").write_text("server:\n  host: file\n  port: 81\n")
    environ = {"GOQUEUE_SERVER_PORT": "82"}
    server = load_config(environ=environ).server
    assert (server.host, server.port, server.idle_timeout) == ("file", 82, timedelta(minutes=2))
    sources = {row.name: row.source for row in load_settings(environ=environ) if row.section == "server"}
    assert sources["host"] == "goqueue.yaml:2"
    assert sources["port"] == "environment GOQUEUE_SERVER_PORT"
    assert sources["idle_timeout"] == "default"


def test_a_bad_value_in_the_file_does_not_matter_under_a_good_one_in_the_environment() -> None:
    Path("goqueue.yaml").write_text("server:\n  port: none\n")
    assert load_config(environ={"GOQUEUE_SERVER_PORT": "82"}).server.port == 82


def test_the_process_environment_is_read_only_when_no_other_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOQUEUE_SERVER_PORT", "83")
    before = dict(os.environ)
    assert load_config().server.port == 83
    assert load_config(environ={}).server.port == 8080
    assert ServerConfig().port == 8080
    assert dict(os.environ) == before


def test_an_empty_variable_counts_as_not_set() -> None:
    Path("goqueue.yaml").write_text("server:\n  port: 81\n")
    environ = {"GOQUEUE_SERVER_PORT": "", "GOQUEUE_CONFIG": "", "GOQUEUE_DATABASE_URL_FILE": "", "GOQUEUE_SERVER_X": ""}
    assert load_config(environ=environ).server.port == 81


def test_the_file_is_the_argument_before_goqueue_config_before_the_working_directory(tmp_path: Path) -> None:
    for name, port in (("goqueue.yaml", 1), ("named.yaml", 2), ("argument.yaml", 3)):
        Path(name).write_text(f"server:\n  port: {port}\n")
    environ = {"GOQUEUE_CONFIG": "named.yaml"}
    assert load_config(environ={}).server.port == 1
    assert load_config(environ=environ).server.port == 2
    assert load_config("argument.yaml", environ).server.port == 3
    assert load_config(tmp_path / "argument.yaml", environ).server.port == 3


def test_a_named_file_that_does_not_exist_is_a_problem() -> None:
    problem = the_problem({"GOQUEUE_CONFIG": "gone.yaml"})
    assert "gone.yaml, which GOQUEUE_CONFIG names" in problem
    assert "No such file" in problem
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config("gone.yaml", {})


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "server:\n", "server: {}\nlogging: ~\n", "\ufeffserver:\n", "---\n"]
)
def test_an_empty_file_or_section_is_fine(text: str) -> None:
    Path("goqueue.yaml").write_text(text, encoding="utf-8")
    assert load_config(environ={}) == Config()


def test_scalars_in_the_file_mean_what_is_written() -> None:
    Path("goqueue.yaml").write_text(
        "server: {port: 0080}\nworker: {queues: [on, 0x10, 'a, b']}\ndatabase: {prepare_threshold: null}\n"
    )
    config = load_config(environ={})
    assert config.server.port == 80
    assert config.worker.queues == ("on", "0x10", "a, b")
    assert config.database.prepare_threshold is None


# -- Secrets in files


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_the_file_its_variable_names(ending: str) -> None:
    Path("secret").write_bytes(f"postgresql://u:{SECRET}@h/db{ending}".encode())
    Path("goqueue.yaml").write_text("database:\n  url: host=other\n")
    environ = {"GOQUEUE_DATABASE_URL_FILE": "secret"}
    assert load_config(environ=environ).database.url == f"postgresql://u:{SECRET}@h/db"
    sources = {row.name: row.source for row in load_settings(environ=environ)}
    assert sources["url"] == "environment GOQUEUE_DATABASE_URL_FILE"


def test_a_secret_and_its_file_together_are_a_problem() -> None:
    problem = the_problem({"GOQUEUE_DATABASE_URL": "host=h", "GOQUEUE_DATABASE_URL_FILE": "secret"})
    assert "both GOQUEUE_DATABASE_URL and GOQUEUE_DATABASE_URL_FILE are set" in problem


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"postgresql://u:{SECRET}@h/db", "No such file"),
        (SECRET, "No such file"),
        (".", "directory"),
        ("empty", "empty"),
        ("latin", "line 2 is not UTF-8"),
        ("a\0b", "not the name of a file"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_a_problem_and_its_name_is_not_shown(path: str, reason: str) -> None:
    Path("empty").write_text("\n")
    Path("latin").write_bytes(b"\n\xff")
    problem = the_problem({"GOQUEUE_DATABASE_URL_FILE": path})
    assert problem.startswith("database.url: ")
    assert "GOQUEUE_DATABASE_URL_FILE" in problem
    assert reason in problem
    assert SECRET not in problem


def test_only_secrets_can_be_read_from_a_file_of_their_own() -> None:
    assert "did you mean GOQUEUE_SERVER_PORT?" in the_problem({"GOQUEUE_SERVER_PORT_FILE": "x"})


# -- What is refused


@pytest.mark.parametrize(
    ("key", "written"),
    [
        pytest.param(key, written, id=f"{key}-{number}")
        for key, bad in BAD.items()
        for number, written in enumerate(bad)
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_wherever_it_comes_from(key: str, written: str) -> None:
    setting = setting_of(key)
    problem = the_problem({setting.variable: written})
    assert problem.startswith(f"{key}: got ")
    assert f"(environment {setting.variable})" in problem
    assert f"expected {setting.rule.allowed}" in problem
    assert SECRET not in problem
    assert "\n" not in problem
    assert len(problem) < 400
    with pytest.raises(ConfigError) as caught:
        SECTION[setting.section](**{setting.name: written})
    assert caught.value.problems == (problem.replace(f"environment {setting.variable}", "argument"),)
    assert SECRET not in repr(caught.value) + str(caught.value.__context__)
    assert SECRET.encode() not in pickle.dumps(caught.value)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if isinstance(s.default, timedelta)], ids=lambda s: s.key)
def test_a_duration_is_at_least_a_millisecond_and_only_some_can_be_turned_off(setting: Setting) -> None:
    section = SECTION[setting.section]
    if setting.key in MAY_BE_ZERO:
        assert getattr(section(**{setting.name: timedelta(0)}), setting.name) == timedelta(0)
    else:
        for zero in ("0", "0s", timedelta(0)):
            with pytest.raises(ConfigError, match=setting.name):
                section(**{setting.name: zero})


def test_a_number_without_a_unit_is_refused_and_the_unit_named() -> None:
    problem = the_problem(text="server:\n  read_timeout: 30\n")
    assert "server.read_timeout: got '30' (goqueue.yaml:2)" in problem
    assert "a duration with its unit, such as 500ms, 30s, 5m or 1h30m" in problem


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (ServerConfig, "port", True),
        (ServerConfig, "port", 80.5),
        (ServerConfig, "port", None),
        (ServerConfig, "read_timeout", 30),
        (ServerConfig, "host", 5),
        (DatabaseConfig, "url", None),
        (DatabaseConfig, "url", SECRET.encode()),
        (DatabaseConfig, "pool_timeout", timedelta(days=25)),
        (DatabaseConfig, "pool_timeout", timedelta(seconds=-1)),
        (WorkerConfig, "queues", ()),
        (WorkerConfig, "queues", ["a", 5]),
        (WorkerConfig, "queues", [[]]),
        (WorkerConfig, "queues", {"a"}),
        (LoggingConfig, "level", 20),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused(section: type, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**{name: value})
    assert f".{name}: got " in str(caught.value)
    assert "(argument)" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_arguments_are_read_like_the_file() -> None:
    assert WorkerConfig(queues=["a", " b"]).queues == ("a", " b")  # type: ignore[arg-type]
    assert WorkerConfig(lease="1h30m").lease == timedelta(minutes=90)  # type: ignore[arg-type]
    assert LoggingConfig(level="INFO").level == "info"
    assert DatabaseConfig(url="postgresql://h/db", pool_max_size=5).pool_max_size == 5


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"server\.port"):
        msgspec.structs.replace(ServerConfig(), port=0)


def test_the_pool_holds_at_most_as_many_spare_connections_as_connections() -> None:
    assert DatabaseConfig(pool_min_size=10).pool_min_size == 10
    problem = the_problem({"GOQUEUE_DATABASE_POOL_MIN_SIZE": "11"})
    assert problem == (
        "database.pool_min_size: got 11 (environment GOQUEUE_DATABASE_POOL_MIN_SIZE); "
        "expected at most database.pool_max_size, 10 (default)"
    )
    with pytest.raises(ConfigError, match=r"at most database\.pool_max_size, 3"):
        DatabaseConfig(pool_min_size=4, pool_max_size=3)


def test_a_heartbeat_comes_before_the_lease_ends() -> None:
    with pytest.raises(ConfigError, match=r"heartbeat_interval: got 5m \(argument\); .* less than worker.lease, 5m"):
        WorkerConfig(heartbeat_interval=timedelta(minutes=5))
    assert "(goqueue.yaml:2)" in the_problem(text="worker:\n  lease: 30s\n")


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        {"GOQUEUE_LOGGING_LEVEL": "loud", "GOQUEUE_DATABASE_ULR": "x", "GOQUEUE_WORKER_HEARTBEAT_INTERVAL": "10m"},
        "server:\n  port: 0\n  hots: x\n  port: 1\nwrker: {}\ndatabase: [1]\n",
    )
    assert len(found) == 8
    for part in (
        "level",
        "ULR",
        "heartbeat",
        "server.port: got",
        "server.hots",
        "server.port: given",
        "wrker",
        "a list",
    ):
        assert any(part in problem for problem in found), part


# -- What nobody knows


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("GOQUEUE_DATABASE_ULR", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_SERVER_PRT", "did you mean GOQUEUE_SERVER_PORT?"),
        ("GOQUEUE_WORKER_QUEUE", "did you mean GOQUEUE_WORKER_QUEUES?"),
        ("GOQUEUE_LOGGING_ZZZ", "expected one of level, format"),
        ("GOQUEUE_DATABSE_URL", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_WORKERS_QUEUES", "did you mean GOQUEUE_WORKER_QUEUES?"),
    ],
)
def test_an_unknown_variable_of_a_section_is_refused_with_a_suggestion(variable: str, meant: str) -> None:
    problem = the_problem({variable: SECRET})
    assert problem.startswith(variable)
    assert meant in problem
    assert SECRET not in problem


def test_other_variables_are_left_alone() -> None:
    environ = {"GOQUEUE_TEST_DATABASE_URL": "x", "GOQUEUE_SERVERS": "x", "OTHER_SERVER_PORT": "x", "PGHOST": "x"}
    # Of a Kubernetes Service named goqueue.
    environ |= {"GOQUEUE_SERVICE_HOST": "10.0.0.1", "GOQUEUE_SERVICE_PORT": "80", "GOQUEUE_PORT": "tcp://10.0.0.1:80"}
    assert load_config(environ=environ) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server:\n  hots: x\n", "server.hots: there is no such setting (goqueue.yaml:2); did you mean server.host?"),
        ("server:\n  PORT: x\n", "server.PORT: there is no such setting (goqueue.yaml:2); did you mean server.port?"),
        ("logging:\n  zzz: x\n", "expected one of level, format"),
        ("\nservr: {}\n", "servr: there is no such section (goqueue.yaml:2); did you mean server?"),
        ("server:\n  port: 1\n\n  port: 2\n", "server.port: given twice (goqueue.yaml:4, first in line 2)"),
        ("server: {}\nserver: {}\n", "server: given twice (goqueue.yaml:2, first in line 1)"),
        ("- server\n", "the file: got a list (goqueue.yaml:1)"),
        ("just text", "the file: got a single value (goqueue.yaml:1)"),
        ("\nserver: 5\n", "server: got a single value (goqueue.yaml:2)"),
        ("server:\n  ? [a]\n  : 1\n", "there is no such setting (goqueue.yaml:2)"),
        ("server:\n  port: {a: 1}\n", "server.port: got a mapping (goqueue.yaml:2)"),
        ("server:\n  port: ~\n", "server.port: got nothing (goqueue.yaml:2)"),
        ("server:\n  host:\n", "server.host: got '' (goqueue.yaml:2)"),
        ("server:\n  host: ''\n", "server.host: got '' (goqueue.yaml:2)"),
        ("server:\n  port: [1\n", "goqueue.yaml:3: not valid YAML"),
        ("a: b: c\n", "goqueue.yaml:1: not valid YAML in column 5"),
        ("server:\n\tport: 1\n", "goqueue.yaml:2: not valid YAML in column 1: found character '\\t'"),
        ("server:\n  host: a\x07\n", "goqueue.yaml:2: not valid YAML: a control character"),
        ("a: 1\n---\nb: 2\n", "goqueue.yaml:2: not valid YAML"),
        ("&a [*a]", "the file: got a list"),
        ("server: &a\n  host: [*a]\n", "server.host: got "),
        ("[" * 3000, "nested too deep"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_with_the_line(text: str, expected: str) -> None:
    assert expected in the_problem(text=text)


def test_a_file_that_is_not_utf8_or_not_a_file_is_refused() -> None:
    Path("goqueue.yaml").write_bytes(b"server:\n  host: \xff\n")
    assert the_problem() == "goqueue.yaml: can't be read: line 2 is not UTF-8"
    Path("folder").mkdir()
    assert "directory" in the_problem({"GOQUEUE_CONFIG": "folder"})


# -- Secrets


@pytest.mark.parametrize(
    "text",
    [
        f"database: postgresql://u:{SECRET}@h/db\n",
        f"postgresql://u:{SECRET}@h/db\n",
        f"database:\n  url: *{SECRET}\n",
        f"database:\n  url: !{SECRET}!x y\n",
        f"database:\n  url: 'postgresql://u:{SECRET}@h\n",
        f"database:\n  ulr: postgresql://u:{SECRET}@h/db\n",
        f"database:\n  url: [{SECRET}]\n",
        f"database:\n  url: {{{SECRET}: {SECRET}}}\n",
        f"database:\n  url: {SECRET}\n",
        f"database:\n  postgresql://u:{SECRET}@h/db: url\n",
        f"server:\n  host: postgresql://u:{SECRET}@h/d b\n",
        f"server:\n  host: host=h  password={SECRET}\n",
    ],
)
def test_no_problem_in_the_file_shows_a_secret(text: str) -> None:
    assert SECRET not in "\n".join(problems(text=text))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("postgresql://", ""),
        (f"postgresql://app:{SECRET}@db:5433/jobs", "host=db port=5433 dbname=jobs user=app password=***"),
        (f"postgresql://app:{SECRET}%40x@[::1]/jobs", "host=::1 dbname=jobs user=app password=***"),
        (f"postgresql://h/jobs?password={SECRET}", "host=h dbname=jobs password=***"),
        (f"postgresql://a,b:1/jobs?sslpassword={SECRET}", "host=a,b port=,1 dbname=jobs ..."),
        (f"host=/run user=app password='{SECRET} x'", "host=/run user=app password=***"),
        ("service=jobs", "service=jobs"),
        (f"dbname=postgresql://u:{SECRET}@h/db", "dbname=postgresql://u:***@h/db"),
    ],
)
def test_a_url_is_shown_without_its_password_everywhere(url: str, shown: str) -> None:
    config = Config(database=DatabaseConfig(url=url))
    for text in (
        repr(config),
        str(config.database),
        f"{config}",
        pretty_repr(config),
        pretty_repr(config, max_width=20),
    ):
        assert SECRET not in text
    assert f"url={shown!r}" in repr(config.database)
    (row,) = [row for row in load_settings(environ={"GOQUEUE_DATABASE_URL": url}) if row.name == "url"]
    assert row.value == shown
    assert config.database.url == url


def test_a_config_survives_pickling_and_stays_frozen() -> None:
    config = Config(database=DatabaseConfig(url=f"postgresql://u:{SECRET}@h/db", prepare_threshold=None))
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert hash(copy) == hash(config)
    assert SECRET not in repr(copy)
    with pytest.raises(AttributeError):
        config.database.url = ""  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing here: a@b.c", "nothing here: a@b.c"),
        ("http://h:80/x", "http://h:80/x"),
        ("at postgresql://u:p@h/db, retry", "at postgresql://u:***@h/db, retry"),
        ("postgresql://u:p@ss/w'\"<rd@h/db", "postgresql://u:***@h/db"),
        ("redis://:p@h", "redis://:***@h"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("host=h password=p dbname=d", "host=h password=*** dbname=d"),
        ("host=h password='p\\' q' dbname=d", "host=h password=*** dbname=d"),
        ("host=h PASSWORD = 'pq", "host=h PASSWORD = ***"),
        ("postgresql://h/d?password=p&user=u", "postgresql://h/d?password=***&user=u"),
    ],
)
def test_redact_hides_passwords_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.timeout(10)
def test_redact_stays_fast_on_hostile_text() -> None:
    for text in ("://a:" * 40_000, "password='" * 40_000, "a" * 400_000 + "://", "password=" + " " * 400_000):
        redact(text)


# -- Durations


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=999)))
def test_a_formatted_duration_reads_back_as_itself(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize("text", ["", "5", "0", "s", "five minutes", "-5m", "1.5h", "5m3", "5x", f"{10**20}d"])
def test_what_is_no_duration_with_its_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration with its unit"):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=24)))
def test_every_duration_in_range_is_read_from_the_environment(value: timedelta) -> None:
    environ = {"GOQUEUE_SERVER_IDLE_TIMEOUT": format_duration(value)}
    assert load_config(environ=environ).server.idle_timeout == value


def outcome(environ: Mapping[str, str] = {}, file: Path | None = None) -> Config | ConfigError:
    try:
        return load_config(file, environ)
    except ConfigError as error:
        return error


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(SETTINGS))
def test_any_text_in_a_variable_is_taken_or_refused_with_a_problem(text: str, setting: Setting) -> None:
    result = outcome({setting.variable: text})
    if isinstance(result, ConfigError):
        assert any(setting.key in problem for problem in result.problems)
    else:
        assert isinstance(value_of(result, setting), (*setting.rule.kinds, type(setting.default), type(None)))


@given(st.binary(max_size=200) | st.text(alphabet="serv:\n -[]{}&*!'\"p 1").map(str.encode))
def test_any_file_is_taken_or_refused_with_a_problem(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    result = outcome(file=file)
    assert isinstance(result, Config) or result.problems
