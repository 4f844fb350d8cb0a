"""The settings: their sources, their rules, and the messages about invalid values."""

import json
import os
import pickle
import re
import traceback
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

# A valid value of each setting that differs from its default, as written and as read.
GOOD: dict[str, tuple[str, object]] = {
    "server.host": ("::1", "::1"),
    "server.port": ("65535", 65535),
    "server.read_timeout": ("500ms", timedelta(milliseconds=500)),
    "server.write_timeout": ("1h30m", timedelta(minutes=90)),
    "server.idle_timeout": ("5m", timedelta(minutes=5)),
    "server.shutdown_timeout": ("1ms", timedelta(milliseconds=1)),
    "database.url": (f"postgresql://app:{SECRET}@db:5433/jobs", f"postgresql://app:{SECRET}@db:5433/jobs"),
    "database.listen_url": ("host=/run port=5433", "host=/run port=5433"),
    "database.schema": ("jobs_2", "jobs_2"),
    "database.read_url": ("host=/run port=5434", "host=/run port=5434"),
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
    "database.schema": [
        "Jobs",
        "jobs-2",
        "2_jobs",
        "x" * 46,
        "naïve",
        "a b",
        'a"b',
        "jobs\n",
        "a.b",
        "pg_jobs",
        "public",
        "information_schema",
        "user",
        "order",
        "values",
        "left",
    ],
    "database.read_url": ["db.internal", f"host=h password={SECRET} port=0"],
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
    """Return the problems of an environment and a goqueue.yaml. There must be at least one."""
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


# -- Sources


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
        "database.schema": "goqueue",
        "database.read_url": "",
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


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("GOQUE_WORKER_LEASE", "GOQUEUE_WORKER_LEASE"),
        ("GOQUEU_DATABASE_URL", "GOQUEUE_DATABASE_URL"),
        ("GOQEUE_DATABASE_URL_FILE", "GOQUEUE_DATABASE_URL_FILE"),
        ("GO_QUEUE_LOGGING_LEVEL", "GOQUEUE_LOGGING_LEVEL"),
        ("GOQUEUES_CONFIG", "GOQUEUE_CONFIG"),
        ("goqueue_worker_lease", "GOQUEUE_WORKER_LEASE"),
    ],
)
def test_a_misspelt_prefix_before_a_settings_name_is_a_problem(variable: str, meant: str) -> None:
    assert (
        the_problem({variable: SECRET})
        == f"{variable}: no setting has this environment variable; did you mean {meant}?"
    )


@pytest.mark.parametrize(
    "variable",
    [
        "QUEUE_DATABASE_URL", "PGQUEUE_DATABASE_URL", "GQUEUE_DATABASE_URL", "GOOGLE_CONFIG", "DATABASE_URL",
        "GOQUEUE2_DATABASE_URL", "MYGOQUEUE_DATABASE_URL", "GOQUE_DATABASE_NAME", "GOQUE", "GOQUEU_",
    ],
)  # fmt: skip
def test_a_variable_of_another_program_is_no_problem(variable: str) -> None:
    assert load_config(environ={variable: SECRET}) == Config()


def test_every_setting_has_an_example_here_and_a_description() -> None:
    keys = {setting.key for setting in SETTINGS}
    for name, examples in (("GOOD", GOOD), ("BAD", BAD)):
        assert set(examples) == keys, f"tests/test_config.py: add {keys - set(examples)} to {name}"
    for setting in SETTINGS:
        about = setting.rule.description
        assert re.fullmatch(r".+\.", about), f"goqueue/config.py: describe {setting.key} in one sentence"


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


# -- Paths


def test_a_relative_path_in_the_file_belongs_to_its_folder_and_others_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    Path("etc/goqueue.yaml").write_text("database:\n  sql_dir: sql/own\n")
    for file in ("etc/goqueue.yaml", tmp_path / "etc" / "goqueue.yaml", "etc/../etc/goqueue.yaml"):
        assert load_config(file, {}).database.sql_dir == str(tmp_path / "etc" / "sql" / "own")
    environ = {"GOQUEUE_CONFIG": "etc/goqueue.yaml", "GOQUEUE_DATABASE_SQL_DIR": "./own"}
    assert load_config(environ=environ).database.sql_dir == str(tmp_path / "own")
    assert DatabaseConfig(sql_dir="own").sql_dir == "own"
    Path("etc/goqueue.yaml").write_text("database:\n  sql_dir: ''\n")
    assert load_config("etc/goqueue.yaml", {}).database.sql_dir == ""


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "url").write_text("host=h")
    (home / "g.yaml").write_text("database:\n  sql_dir: ~/sql\n")
    assert load_config("~/g.yaml", {}).database.sql_dir == str(home / "sql")
    environ = {"GOQUEUE_CONFIG": "~/g.yaml", "GOQUEUE_DATABASE_URL_FILE": "~/url"}
    assert load_config(environ=environ).database.url == "host=h"
    assert load_config(environ={"GOQUEUE_DATABASE_SQL_DIR": "~"}).database.sql_dir == str(home)
    assert DatabaseConfig(sql_dir="~/x").sql_dir == str(home / "x")
    problem = the_problem({"GOQUEUE_DATABASE_SQL_DIR": "~no_such_user/x"})
    assert problem.startswith(
        "database.sql_dir: got '~no_such_user/x' (environment GOQUEUE_DATABASE_SQL_DIR): there is no"
    )


def test_a_missing_working_directory_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_config(environ={"GOQUEUE_DATABASE_SQL_DIR": "sql"}).database.sql_dir == "sql"


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


# -- Rejected values


@pytest.mark.parametrize(
    ("key", "written"),
    [
        pytest.param(key, written, id=f"{key}-{number}")
        for key, bad in BAD.items()
        for number, written in enumerate(bad)
    ],
)
def test_a_value_that_breaks_its_rule_is_rejected_from_every_source(key: str, written: str) -> None:
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


PLACE = "for one in the user's name or the password"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://u:{}@h/db\n", "it ends in a line break"),
        ("postgresql://u:{}@h/db\r\n", "it ends in a line break"),
        ("postgresql://u:{}\n@h/db", "it has a line break"),
        ("  ", "it is blank"),
        (" postgresql://u:{}@h/db", "it begins with a space or an invisible character"),
        ("\ufeffpostgresql://u:{}@h/db", "it begins with a space or an invisible character"),
        ("postgresql://u:{}@h/db ", "it ends in a space"),
        ("postgresql://u:{} x@h/db", "it has a space; write %20 for a literal space"),
        ('"postgresql://u:{}@h/db"', "it is in quotation marks"),
        ("'host=h password={}'", "it is in quotation marks"),
        ("\u201cpostgresql://u:{}@h/db\u201d", "it is in quotation marks"),
        ("'postgresql://u:{}@h/db", "it is in quotation marks"),
        ("${{URL}}", "it has a variable that was not replaced, such as ${X}"),
        ("$URL", "it is a variable that was not replaced"),
        ("host=h password='${{X}}{}'", "write %24 for a literal $ in a URL, and \\$ in words"),
        ("host=$HOST password={}", "write %24 for a literal $ in a URL, and \\$ in words"),
        ("host=h password='{{{{ X }}}}{}'", "for {{ write %7B%7B or \\{\\{"),
        ("%URL%", "it is a variable that was not replaced"),
        ("postgresql://u:${{{}}}@h/db", "it has a variable that was not replaced, such as ${X}"),
        ("postgresql://u:$({})@h/db", "it has a variable that was not replaced, such as ${X}"),
        ("postgresql://u:${{X:-{}}}@h/db", "it has a variable that was not replaced, such as ${X}"),
        ("postgresql://u:{{{{ {} }}}}@h/db", "it has a variable that was not replaced"),
        ("postgresql://u:$PASSWORD@{}/db", "it has a variable that was not replaced, such as $X"),
        ("postgresql://u:{}@$HOST/db", "it has a variable that was not replaced, such as $X"),
        ("postgresql://u:{}@h:$PORT/db", "it has a variable that was not replaced, such as $X"),
        ("postgresql://u:%{}%@h/db", "it has a variable that was not replaced, such as %X%, or a bare %"),
        ("host=$HOST password={}", "it has a variable that was not replaced, such as $X"),
        ("mysql://u:{}@h/db", "its scheme is not postgresql://"),
        ("postgresql+psycopg://u:{}@h/db", "its scheme is not postgresql://"),
        ("jdbc:postgresql://h/db?password={}", "its scheme is not postgresql://"),
        ("POSTGRESQL://u:{}@h/db", "its scheme is not postgresql://"),
        ("postgresql:/u:{}@h/db", "it lacks the // of postgresql://"),
        ("u:{}@h/db", "it is neither a URL nor words such as host=db, and postgresql:// is missing in front"),
        ("{}", "it is neither a URL nor words such as host=db"),
        ("postgresql://u:{}@h:99999/db", "its port is not a number from 1 to 65535"),
        ("postgresql://u:{}@h:http/db", "its port is not a number from 1 to 65535"),
        ("postgresql://u:{}@a:1,b:0/db", "its port is not a number from 1 to 65535"),
        ("host=h password={} port=x", "its port is not a number from 1 to 65535"),
        ("postgresql://u:{}", "or the @ between password and host is missing"),
        ("postgresql://u:{}@x@h/db", f"it has more than one @; write %40 {PLACE}"),
        ("postgresql://u:x/{}@h/db", f"it has a / before the @; write %2F {PLACE}"),
        ("postgresql://u:{}%@h/db", "it has a bare %; write %25 for a literal %"),
        ("postgresql://u:{}%zz@h/db", "write %25 for a literal %"),
        ("postgresql://u:{}%00@h/db", "it has a NUL character"),
        ("postgresql://u:{}%ff@h/db", "it has characters, written with %, that are not UTF-8"),
        ("postgresql://u:{}@::1/db", "an IPv6 address is written [::1]"),
        ("postgresql://u:{}@[::1/db", "an unmatched bracket; an IPv6 address is written [::1]"),
        ("postgresql://u:{}@h/db?sslmod=require", "a parameter that libpq does not know; did you mean sslmode?"),
        ("postgresql://u:x@h/db?{}=1", "it has a parameter that libpq does not know; exp"),
        ("postgresql://u:x@h/db?{}", "it has a parameter without ="),
        ("host=h pasword={}", "it has an option that libpq does not know; did you mean password?"),
        ("host=h password=x {}", "it has a word without ="),
        ("host=h password='{}", "it has a value in single quotes that does not end"),
        ("Host=h;Password={}", "it has an option that libpq does not know; did you mean host?"),
        ("host=h;password={}", "words such as host=db are separated by spaces"),
        ("URL=postgresql://u:{}@h/db", "it has an option that libpq does not know"),
        ("postgresql://u:{}\udcff@h/db", "it has bytes that are not UTF-8"),
    ],
)
def test_the_fault_of_a_url_is_reported_without_quoting_it(url: str, fault: str) -> None:
    secret = url.format(SECRET)
    problem = the_problem({"GOQUEUE_DATABASE_URL": secret})
    assert problem.startswith("database.url: got a value that is not shown (environment GOQUEUE_DATABASE_URL): ")
    assert fault in problem
    assert SECRET not in problem
    with pytest.raises(ConfigError) as caught:
        DatabaseConfig(url=secret)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert SECRET not in repr(caught.value)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert not [frame for frame in frames if SECRET in repr(frame.f_locals.get("self", ""))]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://", "postgresql:///db", "postgres://h", "postgresql://u:a:b@h/db", "postgresql://u:a#b@h/db",
        "postgresql://u:a?b@h/db", "postgresql://u:pa$$word@h/db", "postgresql://u:$ecret@h/db",
        "postgresql://u:%24%7BX%7D@h/db", "postgresql://%24x:p@h/%24x", "postgresql://u:%7B%7Bb%7D%7D@h", r"dbname=\$x",
        r"password='a\${b}c'", r"password=\$(b)", r"password='\{\{b}}'", r"host=/run/a\;b", r"user='\$x' host='\%X\%'",
        "postgresql://u:p\u00e4@h/db", "postgresql://u:%40%2F%25@[::1]:5432/db", "postgresql://u:p@a:1,b:2,[::1]:3/db",
        "postgresql://u@%2Frun%2Fpostgresql/db", "postgresql://h/db?application_name=a@b&ssl=true", "service=x",
        "host=h dbname=d\n",
        " host = h  password = 'a b;' ", r"password=\'a\ b host=h", "host=h password='${ x'", "postgresql://u:p@/db",
    ],
)  # fmt: skip
def test_a_url_that_libpq_reads_as_intended_is_accepted(url: str) -> None:
    assert DatabaseConfig(url=url).url == url


@pytest.mark.parametrize("setting", [s for s in SETTINGS if isinstance(s.default, timedelta)], ids=lambda s: s.key)
def test_a_duration_is_at_least_a_millisecond_and_only_some_can_be_turned_off(setting: Setting) -> None:
    section = SECTION[setting.section]
    if setting.key in MAY_BE_ZERO:
        assert getattr(section(**{setting.name: timedelta(0)}), setting.name) == timedelta(0)
    else:
        for zero in ("0", "0s", timedelta(0)):
            with pytest.raises(ConfigError, match=setting.name):
                section(**{setting.name: zero})


def test_a_number_without_a_unit_is_rejected() -> None:
    problem = the_problem(text="server:\n  read_timeout: 30\n")
    assert "server.read_timeout: got '30' (goqueue.yaml:2)" in problem
    assert "a duration with its unit, such as 500ms, 30s, 5m or 1h30m" in problem


@pytest.mark.parametrize("text", ["1h-30m", "1h-0m", "-1h90m"])
def test_a_duration_with_a_negative_part_is_rejected(text: str) -> None:
    problem = the_problem(text=f"server:\n  read_timeout: {text}\n")
    assert f"server.read_timeout: got '{text}' (goqueue.yaml:2)" in problem
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("null", ["null", "~", "Null"])
def test_a_null_in_a_list_is_not_a_name(null: str) -> None:
    problem = the_problem(text=f"worker:\n  queues: [a, {null}]\n")
    assert "worker.queues: got ['a', None] (goqueue.yaml:2)" in problem
    assert the_problem(text=f"worker:\n  queues: [{null}]\n").startswith("worker.queues: got [None]")


def test_a_quoted_null_in_a_list_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "goqueue.yaml"
    file.write_text("worker:\n  queues: ['null', '~']\n")
    assert load_config(file, {}).worker.queues == ("null", "~")


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
def test_an_argument_of_the_wrong_type_is_rejected(section: type, name: str, value: Any) -> None:
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


def test_pool_min_size_is_at_most_pool_max_size() -> None:
    assert DatabaseConfig(pool_min_size=10).pool_min_size == 10
    problem = the_problem({"GOQUEUE_DATABASE_POOL_MIN_SIZE": "11"})
    assert problem == (
        "database.pool_min_size: got 11 (environment GOQUEUE_DATABASE_POOL_MIN_SIZE); "
        "expected at most database.pool_max_size, 10 (default)"
    )
    with pytest.raises(ConfigError, match=r"at most database\.pool_max_size, 3"):
        DatabaseConfig(pool_min_size=4, pool_max_size=3)


def test_the_heartbeat_interval_is_shorter_than_the_lease() -> None:
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


# -- Unknown names


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("GOQUEUE_DATABASE_ULR", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_SERVER_PRT", "did you mean GOQUEUE_SERVER_PORT?"),
        ("GOQUEUE_WORKER_QUEUE", "did you mean GOQUEUE_WORKER_QUEUES?"),
        ("GOQUEUE_LOGGING_ZZZ", "expected one of level, format"),
        ("GOQUEUE_DATABSE_URL", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_WORKERS_QUEUES", "did you mean GOQUEUE_WORKER_QUEUES?"),
        ("GOQUEUE_CONCURRENCY", "did you mean GOQUEUE_WORKER_CONCURRENCY?"),
        ("GOQUEUE_CONCURENCY", "did you mean GOQUEUE_WORKER_CONCURRENCY?"),
        ("GOQUEUE_QUEUE", "did you mean GOQUEUE_WORKER_QUEUES?"),
        ("GOQUEUE_SQL_DIR", "did you mean GOQUEUE_DATABASE_SQL_DIR?"),
        ("GOQUEUE_PORT", "did you mean GOQUEUE_SERVER_PORT?"),
        ("GOQUEUE_URL", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_URL_FILE", "did you mean GOQUEUE_DATABASE_URL_FILE?"),
        ("GOQUEUE_DATABASE", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_DB_URL", "did you mean GOQUEUE_DATABASE_URL?"),
        ("GOQUEUE_DB_POOL_MAX_SIZE", "did you mean GOQUEUE_DATABASE_POOL_MAX_SIZE?"),
        ("GOQUEUE_LOG_LEVEL", "did you mean GOQUEUE_LOGGING_LEVEL?"),
        ("GOQUEUE_LOG_FORMAT", "did you mean GOQUEUE_LOGGING_FORMAT?"),
        ("GOQUEUE_CONFIG_FILE", "did you mean GOQUEUE_CONFIG?"),
        ("GOQUEUE_CONFG", "did you mean GOQUEUE_CONFIG?"),
        (
            "GOQUEUE_SHUTDOWN_TIMEOUT",
            "did you mean GOQUEUE_SERVER_SHUTDOWN_TIMEOUT or GOQUEUE_WORKER_SHUTDOWN_TIMEOUT?",
        ),
    ],
)
def test_an_unknown_variable_of_a_section_is_rejected_with_a_suggestion(variable: str, meant: str) -> None:
    problem = the_problem({variable: SECRET})
    assert problem.startswith(variable)
    assert meant in problem
    assert SECRET not in problem


def links(service: str, host: str = "10.0.0.1", port: str = "5432", address: str = "") -> dict[str, str]:
    """Return the variables that Kubernetes sets for a Service."""
    name, url = service.upper().replace("-", "_"), f"tcp://{address or host}:{port}"
    return {
        f"{name}_SERVICE_HOST": host, f"{name}_SERVICE_PORT": port, f"{name}_SERVICE_PORT_POSTGRES": port,
        f"{name}_PORT": url, f"{name}_PORT_{port}_TCP": url, f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": port, f"{name}_PORT_{port}_TCP_ADDR": host,
    }  # fmt: skip


@pytest.mark.parametrize(
    "service",
    ["goqueue", "goqueue-database", "goqueue-worker", "goqueue-logging", "goqueue-server", "goqueue-database-ro",
     "goqueue-servers", "goqueue-config"],
)  # fmt: skip
def test_variables_that_kubernetes_sets_for_a_service_are_ignored(service: str) -> None:
    assert load_config(environ=links(service)) == Config()
    assert load_config(environ=links(service, "fd00::1", address="[fd00::1]")) == Config()


def test_a_port_from_kubernetes_hides_no_port_from_the_file() -> None:
    Path("goqueue.yaml").write_text("server:\n  port: 81\n")
    assert load_config(environ=links("goqueue-server")).server.port == 81
    assert load_config(environ=links("goqueue-server") | {"GOQUEUE_SERVER_PORT": "82"}).server.port == 82


@pytest.mark.parametrize("service", ["goqueue-database", "goqueue-worker", "goqueue-logging", "goqueue-server"])
def test_an_incomplete_set_of_such_variables_is_reported_once_with_the_remedy(service: str) -> None:
    environ = links(service)
    del environ[f"{service.upper().replace('-', '_')}_SERVICE_HOST"]
    problem = the_problem(environ)
    assert f"and 6 more: got what Kubernetes sets for a Service named {service}" in problem
    assert "enableServiceLinks: false in the pod's spec" in problem
    alone = f"{service.upper().replace('-', '_')}_PORT"
    assert the_problem({alone: "tcp://10.0.0.1:80"}).startswith(f"{alone}: got what Kubernetes sets")


def test_a_misspelt_variable_beside_those_of_kubernetes_is_reported() -> None:
    environ = links("goqueue-database") | {"GOQUEUE_DATABASE_PORTS": "5432", "GOQUEUE_DATABASE_SERVICE_URL": "x"}
    assert [problem.partition(":")[0] for problem in problems(environ)] == [
        "GOQUEUE_DATABASE_PORTS", "GOQUEUE_DATABASE_SERVICE_URL",
    ]  # fmt: skip
    assert "no setting has this environment variable" in the_problem({"GOQUEUE_DATABASE_PORT": "5432"})


def test_other_variables_are_left_alone() -> None:
    environ = {"GOQUEUE_TEST_DATABASE_URL": "x", "GOQUEUE_SERVERS": "x", "OTHER_SERVER_PORT": "x", "PGHOST": "x"}
    environ |= dict.fromkeys(("GOQUEUE_TEST_SERVER", "GOQUEUE_TEST_POSTGRES_IMAGE", "GOQUEUE_TEST_PORT"), "x")
    # Of other programs.
    names = ("RELEASE", "VERSION", "IMAGE", "WEB_HOST", "EXPORTER_PORT", "ADMIN_URL", "REPLICAS", "ENV", "LOG_PATH")
    environ |= {f"GOQUEUE_{name}": "x" for name in names}
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
def test_an_invalid_file_is_rejected_with_the_line(text: str, expected: str) -> None:
    assert expected in the_problem(text=text)


def test_anchors_are_kept_in_sections_named_x_and_merged() -> None:
    Path("goqueue.yaml").write_text("""
x-common: &common
  host: h
  port: 1
x-list: [1, {a: b}]
x-more: &more {port: 3, idle_timeout: 5m}
x-chain: &chain
  <<: *more
  read_timeout: 1s
server:
  port: 2
  <<: [*common, *chain]
worker: &worker {queues: [a]}
""")
    server = load_config(environ={}).server
    # The mapping's own keys come first, then the merged mappings in order.
    assert (server.host, server.port) == ("h", 2)
    assert (server.idle_timeout, server.read_timeout) == (timedelta(minutes=5), timedelta(seconds=1))
    sources = {row.name: row.source for row in load_settings(environ={}) if row.section == "server"}
    assert (sources["port"], sources["host"], sources["read_timeout"]) == (
        "goqueue.yaml:11", "goqueue.yaml:3", "goqueue.yaml:9",
    )  # fmt: skip


def test_whole_sections_can_be_merged() -> None:
    Path("goqueue.yaml").write_text(
        "x-a: &a\n  server: {port: 1}\n  logging: {format: json}\n<<: *a\nserver: {port: 2}\n"
    )
    config = load_config(environ={})
    assert (config.server.port, config.logging.format) == (2, "json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server:\n  <<: 5\n", "server.<<: got a single value (goqueue.yaml:2); expected *name, of a mapping"),
        ("<<: [1]\n", "<<: got a single value (goqueue.yaml:1)"),
        ("x-a: &a {hots: 1}\nserver:\n  <<: *a\n", "server.hots: there is no such setting (goqueue.yaml:1)"),
        ("x-a: &a {port: 0}\nserver:\n  <<: *a\n", "server.port: got '0' (goqueue.yaml:1)"),
        ("server:\n  '<<': {port: 1}\n", "server.<<: there is no such setting"),
        ("x: {port: 1}\n", "x: there is no such section"),
        ("server: {x-a: &a {}, <<: *a, hots: 1}\n", "server.hots: there is no such setting"),
        ("server: &a\n  <<: *a\n  hots: 1\n", "server.hots: there is no such setting"),
        ("1: {port: 1}\n", "1: there is no such section"),
        ("true: {}\n", "true: there is no such section"),
        ("server: {port: 0o17}\n", "server.port: got '0o17'"),
        ("worker: {lease: 1:30}\n", "worker.lease: got '1:30'"),
        ("worker: {lease: 2026-01-01}\n", "worker.lease: got '2026-01-01'"),
        ("logging: {level: off}\n", "logging.level: got 'off'"),
        ("server: {port: [80]}\n", "server.port: got ['80']"),
        ("server: {}\n---\nserver: {}\n", "a second document; expected only one"),
        ("server: {}\n# " + "x" * 2**18 + "\n", "goqueue.yaml: can't be read: it is longer than 256 KiB"),
    ],
)
def test_other_forms_of_yaml_are_accepted_or_rejected(text: str, expected: str) -> None:
    assert expected in the_problem(text=text)


@pytest.mark.timeout(100)
def test_aliases_and_merges_that_multiply_cost_nothing() -> None:
    lines = ["x-0: &a0 {port: 1}"]
    lines += [f"x-{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 60)]
    lines += ["x-l0: &l0 [a, a]"] + [f"x-l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 60)]
    Path("goqueue.yaml").write_text("\n".join([*lines, "server: {<<: *a59}"]))
    assert load_config(environ={}).server.port == 1
    assert "worker.queues: got " in the_problem(text="\n".join([*lines, "worker: {queues: *l59}"]))


def test_a_broken_link_and_an_endless_file_are_rejected() -> None:
    Path("goqueue.yaml").symlink_to("gone.yaml")
    assert the_problem() == "goqueue.yaml: can't be read: No such file or directory"
    assert "longer than 256 KiB" in the_problem({"GOQUEUE_CONFIG": "/dev/zero"})
    Path("goqueue.yaml").unlink()
    assert "longer than 256 KiB" in the_problem({"GOQUEUE_DATABASE_URL_FILE": "/dev/zero"})


def test_a_file_that_is_not_utf8_or_not_a_file_is_rejected() -> None:
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
        ("see http://h:80/x and mail a@b.c", "see http://h:80/x and mail a@b.c"),
        ('password authentication failed for user "u"', 'password authentication failed for user "u"'),
        ("correct the user or the password (PGUSER)", "correct the user or the password (PGUSER)"),
        ("postgresql:/u:p@h/d: can't be read", "postgresql:/u:***@h/d: can't be read"),
        ("got 'host=h password=p' (argument)", "got 'host=h password=***' (argument)"),
        ("f(password='p q', host='h')", "f(password=***, host='h')"),
        ('{"password": "p q", "host": "h"}', '{"password": ***, "host": "h"}'),
        ("ALTER ROLE u PASSWORD 'p''q' LOGIN", "ALTER ROLE u PASSWORD *** LOGIN"),
    ],
)
def test_redact_hides_passwords_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"host=db password=a\"{SECRET}' dbname=d",
        f"host=db password=a&{SECRET} dbname=d",
        f"host=db password=a\\ {SECRET} dbname=d",
        f"host=db password='a\\'{SECRET}' dbname=d",
        f"host=db password='a\\\\\\' {SECRET}' dbname=d",
        f"host=db password='a {SECRET}",
        f"host=db password='a\n{SECRET}' dbname=d",
        f"postgresql://u:a {SECRET}@h/d",
        f"postgresql://u: {SECRET} @h/d",
        f"postgresql:/u:a/{SECRET}@h/d",
        f"postgresql://h/d?user=u&sslpassword=a'{SECRET}&x=y",
        json.dumps({"password": f"a {SECRET}"}),
        json.dumps({"PGPASSWORD": f'a"{SECRET}'}),
        json.dumps(json.dumps({"password": f"a {SECRET}"})),
        repr({"password": f"a'{SECRET}", "host": "h"}),
        repr({"password": f"a'\" {SECRET}"}),
        repr({"password": f"a {SECRET}".encode()}),
        "connect(password=" + repr(f"a' {SECRET}") + ")",
        f"ALTER ROLE u ENCRYPTED PASSWORD 'a''{SECRET}'",
        f"passwd={SECRET}",
        f"password: {SECRET}",
    ],
)
def test_redact_hides_the_whole_password_also_in_a_repr(text: str) -> None:
    for shown in (text, repr(text), repr(repr(text)), f"{text} host=h", f"before {text}"):
        assert SECRET not in redact(shown)


@pytest.mark.timeout(60)
def test_redact_stays_fast_on_hostile_text() -> None:
    for text in (
        *("://a:" * 10_000, "password='" * 10_000, "a" * 100_000 + "://", "password=" + " " * 100_000),
        *("password=\\" * 10_000, "password=" + "\\" * 100_000, "password='" + "\\" * 100_000, "?password=a" * 10_000),
        *("password=" + "a'" * 50_000, 'password=\\"' * 10_000, "://a: " * 10_000),
    ):
        redact(text)


# -- Durations


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=999)))
def test_a_formatted_duration_reads_back_as_itself(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize("text", ["", "5", "0", "s", "five minutes", "-5m", "1.5h", "5m3", "5x", f"{10**20}d"])
def test_a_text_that_is_no_duration_with_its_unit_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration with its unit"):
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
def test_any_text_in_a_variable_is_accepted_or_rejected_with_a_problem(text: str, setting: Setting) -> None:
    result = outcome({setting.variable: text})
    if isinstance(result, ConfigError):
        assert any(setting.key in problem for problem in result.problems)
    else:
        assert isinstance(value_of(result, setting), (*setting.rule.kinds, type(setting.default), type(None)))


@given(st.binary(max_size=200) | st.text(alphabet="serv:\n -[]{}&*!'\"p 1").map(str.encode))
def test_any_file_is_accepted_or_rejected_with_a_problem(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    result = outcome(file=file)
    assert isinstance(result, Config) or result.problems
