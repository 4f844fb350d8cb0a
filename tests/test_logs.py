"""The log: its two formats, their content, and secrets that must never appear."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goqueue.config import Config, DatabaseConfig, LoggingConfig
from goqueue.logs import JSONFormatter, TextFormatter, configure_logging

SECRET = "hunter2"
URL = f"postgresql://app:{SECRET}@db/jobs"
FORMATS = ["text", "json"]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("goqueue", "psycopg")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def configured(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LoggingConfig(format=form, level=level), stream)
    return stream


def only(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


log = logging.getLogger("goqueue.tests")


def test_a_json_line_has_time_level_logger_message_and_every_extra_field() -> None:
    stream = configured("json")
    job = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    when = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    extra = {
        "job": job,
        "when": when,
        "took": timedelta(seconds=90),
        "early": timedelta(seconds=-5),
        "n": 3,
        "ratio": 0.5,
        "odd": float("nan"),
        "ok": True,
        "none": None,
        "big": 2**70,
        "tags": ("a", {"b": job}),
        "thing": object,
        1: "one",
    }
    log.info("took %d", 3, extra=extra)  # type: ignore[arg-type]
    fields = only(stream)
    assert datetime.fromisoformat(fields.pop("timestamp")).utcoffset() == timedelta(0)
    assert fields == {
        "level": "info",
        "logger": "goqueue.tests",
        "message": "took 3",
        "job": str(job),
        "when": "2025-01-02T03:04:05+00:00",
        "took": "1m30s",
        "early": "-5s",
        "n": 3,
        "ratio": 0.5,
        "odd": "nan",
        "ok": True,
        "none": None,
        "big": str(2**70),
        "tags": ["a", {"b": str(job)}],
        "thing": "<class 'object'>",
        "1": "one",
    }


def test_a_text_line_has_the_same_fields_as_key_value() -> None:
    stream = configured("text")
    log.warning("job done", extra={"job": 7, "took": timedelta(seconds=90), "queue": "a b", "empty": "", "tags": ["x"]})
    (line,) = stream.getvalue().splitlines()
    timestamp, rest = line.split(" ", 1)
    assert datetime.fromisoformat(timestamp).utcoffset() == timedelta(0)
    assert rest == 'warning goqueue.tests job done job=7 took=1m30s queue="a b" empty="" tags=["x"]'


def test_an_extra_field_cannot_replace_a_field_of_the_record() -> None:
    stream = configured("json")
    log.info("real", extra={"level": "critical", "timestamp": "never", "logger": "root", "exception": "none"})
    fields = only(stream)
    assert (fields["level"], fields["logger"], fields["message"]) == ("info", "goqueue.tests", "real")
    assert (fields["level_"], fields["timestamp_"], fields["exception_"]) == ("critical", "never", "none")


def test_an_exception_and_a_stack_are_fields_in_json() -> None:
    stream = configured("json")
    try:
        raise ValueError(f"no: {URL}")
    except ValueError:
        log.exception("failed", stack_info=True)
    fields = only(stream)
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("ValueError: no: postgresql://app:***@db/jobs")
    assert "test_an_exception_and_a_stack" in fields["stack"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x1b[2K"])
def test_no_message_field_or_exception_forges_a_line_in_text(end: str) -> None:
    stream = configured("text")
    forged = f"x{end}2025-01-01T00:00:00+00:00 info goqueue forged"
    log.info(forged, extra={"field": forged, f"key{end}": 1})
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    try:
        raise ValueError(forged)
    except ValueError:
        log.exception("failed")
    first, *below = stream.getvalue().splitlines()[1:]
    assert " error goqueue.tests failed" in first
    assert below
    assert all(line.startswith("    ") for line in below)


@pytest.mark.parametrize("form", FORMATS)
def test_no_password_is_written(form: str) -> None:
    stream = configured(form, "debug")
    log.info(URL)
    log.info("to %s and %r", URL, {"url": URL})
    log.info("to %(url)s", {"url": URL})
    log.info("bad %d", URL)
    log.info("bytes", extra={"raw": URL.encode(), "list": [URL], "deep": {"a": {URL: (URL,)}}, "set": {URL}})
    log.info("conninfo", extra={"conninfo": f"host=h password='{SECRET}' user=u"})
    log.info("words", extra={"PGPASSWORD": SECRET, "options": {"password": SECRET, "a": {"sslpassword": [SECRET]}}})
    log.info("%s", {"password": f"a {SECRET}"})
    log.info("config", extra={"config": Config(database=DatabaseConfig(url=URL))})
    log.info("%s", DatabaseConfig(url=URL))
    try:
        raise RuntimeError(URL)
    except RuntimeError as error:
        log.exception("failed", extra={"error": error})
    assert stream.getvalue().count("\n") >= 9
    assert SECRET not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_the_record_itself_is_left_as_it_was_for_other_handlers() -> None:
    record = logging.LogRecord("goqueue", logging.INFO, __file__, 1, "to %s", (URL,), None)
    JSONFormatter().format(record)
    TextFormatter().format(record)
    assert record.args == (URL,)
    assert record.msg == "to %s"
    assert not hasattr(record, "message")


@pytest.mark.parametrize("form", FORMATS)
def test_a_message_that_does_not_fit_its_arguments_is_still_logged(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    stream = configured(form)
    log.info("%d jobs", "many")
    log.info("fine", extra={"broken": Broken()})
    log.info("%s", Broken())
    cycle: list[Any] = []
    cycle.append(cycle)
    log.info("cycle", extra={"cycle": cycle})
    assert "%d jobs" in stream.getvalue()
    assert "many" in stream.getvalue()
    assert "Broken that can't be shown" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 4
    assert capsys.readouterr().err == ""


def test_configuring_again_replaces_the_handler() -> None:
    first = configured("text")
    second = configured("json", "error")
    log.warning("hidden")
    log.error("shown")
    assert first.getvalue() == ""
    assert only(second)["message"] == "shown"


def test_handlers_of_the_program_and_the_root_logger_are_left_alone() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    own = logging.NullHandler()
    logging.getLogger("goqueue").addHandler(own)
    stream = configured("text")
    assert (root.handlers[:], root.level) == before
    assert own in logging.getLogger("goqueue").handlers
    logging.getLogger("elsewhere").error("not ours")
    assert stream.getvalue() == ""


def test_a_record_is_not_written_again_by_the_root_logger() -> None:
    stream, roots = configured("text"), io.StringIO()
    handler = logging.StreamHandler(roots)
    logging.getLogger().addHandler(handler)
    try:
        log.info("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue().count("once") == 1
    assert roots.getvalue() == ""


def test_the_pools_own_warnings_are_written_too() -> None:
    stream = configured("json")
    logging.getLogger("psycopg.pool").warning("error connecting in 'pool-1': %s", URL)
    assert only(stream)["logger"] == "psycopg.pool"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_each_use_of_a_pool_is_written_at_debug_only(level: str) -> None:
    stream = configured("json", level)
    logging.getLogger("psycopg.pool").info("connection requested from 'pool-1'")
    assert bool(stream.getvalue()) is (level == "debug")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_only_records_of_the_level_and_above_are_written(level: str) -> None:
    stream = configured("json", level)
    for number in (10, 20, 30, 40, 50):
        log.log(number, "x")
    least = logging.getLevelNamesMapping()[level.upper()]
    assert len(stream.getvalue().splitlines()) == len([number for number in (10, 20, 30, 40, 50) if number >= least])


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig())
    log.info("here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "here" in captured.err


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
)


@given(st.text(st.characters(exclude_categories=[])), ANY)
def test_any_record_is_one_line_that_can_be_encoded(message: str, value: object) -> None:
    record = logging.LogRecord("goqueue", logging.INFO, __file__, 1, message, (), None)
    record.value = value
    text = TextFormatter().format(record)
    assert len(text.splitlines()) == 1
    assert len(text.encode().splitlines()) == 1
    line = JSONFormatter().format(record)
    assert len(line.encode().splitlines()) == 1
    assert json.loads(line, parse_constant=pytest.fail)["logger"] == "goqueue"
