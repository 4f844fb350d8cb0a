"""`goqueue stats`: once, repeatedly, and for Prometheus."""

import json
import re
import signal
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from goqueue import DatabaseConfig, NewJob, PostgresStorage
from goqueue.cli.stats import _label, _metrics
from goqueue.counts import JobCount
from goqueue.migrate import migrate
from goqueue.models import JobStatus, QueueStats
from goqueue.pytest_plugin import DatabaseServer
from tests.commands import Commands
from tests.test_metrics import SQL_EXPORTER

ODD = 'a "b"\\c\nd'


@pytest.fixture(autouse=True)
def two_queues(request: pytest.FixtureRequest) -> None:
    """Queue `mail`: two pending jobs, one running with an expired lease. Another queue: a job that is not due."""
    if "goqueue" in request.fixturenames:
        store: PostgresStorage = request.getfixturevalue("goqueue_store")
        store.create_jobs(NewJob(job_type="x", queue="mail") for _ in range(3))
        store.create_job(NewJob(job_type="x", queue=ODD, delay=timedelta(hours=1)))
        store.claim_jobs("mail", "w", lease=timedelta(microseconds=1))


def test_in_a_pipe_each_queue_is_a_line(goqueue: Commands) -> None:
    result = goqueue("stats")
    assert (result.code, result.err) == (0, "")
    odd, mail = result.out.splitlines()
    counts = "pending=2  running=1  completed=0  dead=0  cancelled=0"
    assert re.fullmatch(rf"mail  {counts}  oldest=\d+s  expired=1", mail)
    assert odd.startswith('a "b"\\c\\nd  pending=1  running=0')
    assert odd.endswith("oldest=-  expired=0")
    assert goqueue("stats", "--queue", "mail").out.count("\n") == 1
    assert goqueue("stats", "--queue", "none") == (0, "", "there are no jobs in the given queues\n")


def test_json_has_numbers_and_names_the_estimates(
    goqueue: Commands, goqueue_store: PostgresStorage, goqueue_connection: psycopg.Connection
) -> None:
    goqueue_store.create_jobs(NewJob(job_type="x", queue="many") for _ in range(2500))
    goqueue_connection.execute("ANALYZE goqueue.jobs")
    queues = {queue.pop("queue"): queue for queue in goqueue("stats", "--json").json["queues"]}
    assert 0 <= queues["mail"].pop("oldest_ready_age_seconds") < 3600
    assert queues["mail"] == {
        "counts": {"pending": 2, "running": 1, "completed": 0, "dead": 0, "cancelled": 0},
        "estimated": [],
        "expired_leases": 1,
        "paused_until": None,
    }
    assert queues[ODD]["oldest_ready_age_seconds"] is None
    assert queues["many"]["counts"]["pending"] > 1000
    assert queues["many"]["estimated"] == ["pending"]
    assert "pending=~" in goqueue("stats", "--queue", "many").out


def test_metrics_are_in_prometheus_s_text_format(goqueue: Commands) -> None:
    result = goqueue("stats", "--prometheus")
    lines = result.out.splitlines()
    assert result.out.endswith("\n")
    odd = 'queue="a \\"b\\"\\\\c\\nd"'
    assert f'goqueue_jobs{{{odd},status="pending"}} 1' in lines
    assert 'goqueue_jobs{queue="mail",status="pending"} 2' in lines
    assert 'goqueue_jobs_exact{queue="mail",status="pending"} 1' in lines
    assert 'goqueue_expired_leases{queue="mail"} 1' in lines
    assert f"goqueue_oldest_ready_age_seconds{{{odd}}} 0.0" in lines
    sample = re.compile(r'(\w+)\{\w+="(?:[^"\\\n]|\\[\\"n])*"(?:,\w+="\w+")?\} [0-9.e+-]+')
    family = ""
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert lines[number + 1] == f"# TYPE {family} gauge"
        elif not line.startswith("# TYPE "):
            found = sample.fullmatch(line)
            assert found is not None, line
            assert found[1] == family, line
    assert len(lines) == 5 * 2 + 2 * (5 + 5 + 1 + 1 + 1)


def test_metrics_of_two_schemas_are_different_series(
    goqueue: Commands, goqueue_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(goqueue_database, schema="tenant_1")
    with PostgresStorage.open(DatabaseConfig(url=goqueue_database, schema="tenant_1")) as store:
        store.create_job(NewJob(job_type="t", queue="mail"))
    alone = goqueue("stats", "--prometheus").out
    monkeypatch.setenv("GOQUEUE_DATABASE_SCHEMA", "tenant_1")
    other = goqueue("stats", "--prometheus").out
    assert "schema=" not in alone
    assert 'goqueue_jobs{schema="tenant_1",queue="mail",status="pending"} 1\n' in other
    assert 'goqueue_paused{schema="tenant_1",queue="mail"} 0\n' in other
    series, others = (re.findall(r"^(\w+\{.*\}) \S+$", text, re.MULTILINE) for text in (alone, other))
    assert all("schema=" in name for name in others)
    assert {name.replace('schema="tenant_1",', "") for name in others} <= set(series)
    # node_exporter compares the texts of one name in all files.
    assert [line for line in alone.splitlines() if line[0] == "#"] == [
        line for line in other.splitlines() if line[0] == "#"
    ]


def test_metrics_are_those_of_the_documented_collector_except_one(goqueue: Commands) -> None:
    text = goqueue("stats", "--prometheus").out
    written = {
        name: (help_text, tuple(re.findall(r'(\w+)="', next(re.finditer(rf"^{name}\{{.*", text, re.MULTILINE))[0])))
        for name, help_text in re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE)
    }
    documented = {
        metric["metric_name"]: (metric["help"], tuple(metric["key_labels"])) for metric in SQL_EXPORTER["metrics"]
    }
    del documented["goqueue_ready_jobs"]  # as docs/metrics.md says
    assert written == documented


def test_without_queues_there_are_no_samples() -> None:
    assert [line for line in _metrics([]).splitlines() if not line.startswith("#")] == []


def test_a_number_in_metrics_has_no_commas_and_no_mark() -> None:
    counts = dict.fromkeys(JobStatus, JobCount(1_234_567, exact=False))
    text = _metrics([QueueStats("q", counts, timedelta(days=400), 0)])
    assert 'goqueue_jobs{queue="q",status="dead"} 1234567\n' in text
    assert 'goqueue_jobs_exact{queue="q",status="dead"} 0\n' in text
    assert 'goqueue_oldest_ready_age_seconds{queue="q"} 34560000.0\n' in text
    assert _label("\\n") == '"\\\\n"'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prometheus", "--json"],
        ["--prometheus", "--watch"],
        ["--interval", "1s"],
        ["--watch", "--interval", "5"],
        ["--watch", "--interval", "1ms"],
        ["--watch", "--interval", "25d"],
        ["--watch", "--interval", "999999999d"],
    ],
)
def test_contradictory_options_end_with_2(goqueue: Commands, arguments: list[str]) -> None:
    result = goqueue("stats", *arguments)
    assert (result.code, result.out) == (2, "")


def test_the_watchs_table_follows_the_queues_until_ctrl_c(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    with goqueue.terminal("stats", "--watch", "--interval", "200ms", columns=120) as terminal:
        first = terminal.wait_for("Ctrl-C ends it")
        assert re.search(r"Queue +Pending +Running +Completed +Dead +Cancelled +Oldest +Expired +Waiting/s", first)
        assert re.search(r"mail +2 +1 +0 +0 +0 +\d+s +1", first)
        goqueue_store.create_job(NewJob(job_type="x", queue="mail"))
        terminal.wait_for(r"mail +3 +1 +0 +0 +0 +\d+s +1 +\+\d")
        terminal.interrupt()
        code, seen = terminal.end()
    assert code == 0
    assert "Traceback" not in seen
    assert "Aborted" not in seen


def test_the_watch_fits_80_columns(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_job(NewJob(job_type="x", queue="q" * 200))
    with goqueue.terminal("stats", "--watch") as terminal:
        lines = terminal.wait_for("Ctrl-C ends it").splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert re.search(r"^mail +2 +1 +0 +0 +0 +\d+s +1 *$", "\n".join(lines), re.MULTILINE)


def test_in_a_pipe_the_watch_writes_json_lines_and_survives_a_lost_database(
    goqueue: Commands, goqueue_database: str, goqueue_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_POOL_TIMEOUT", "2s")
    name = psycopg.conninfo.conninfo_to_dict(goqueue_database)["dbname"]
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with (
        psycopg.connect(goqueue_server.url, autocommit=True) as connection,
        goqueue.process("stats", "--watch", "--json", "--interval", "100ms") as started,
    ):
        assert started.stdout is not None
        assert len(json.loads(started.stdout.readline())["queues"]) == 2
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        documents = map(json.loads, started.stdout)
        assert "database" in next(document["error"] for document in documents if "error" in document)
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
        assert next(len(document["queues"]) for document in documents if "error" not in document) == 2
        started.send_signal(signal.SIGINT)
        rest, said = started.communicate()
    assert started.returncode == 0
    assert all(json.loads(line) for line in rest.splitlines())
    assert "Traceback" not in said


def test_while_the_server_is_unreachable_the_watch_shows_the_age_of_its_figures(
    goqueue: Commands, goqueue_database: str, goqueue_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOQUEUE_DATABASE_POOL_TIMEOUT", "2s")
    name = psycopg.conninfo.conninfo_to_dict(goqueue_database)["dbname"]
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with (
        psycopg.connect(goqueue_server.url, autocommit=True) as connection,
        goqueue.terminal("stats", "--watch", "--interval", "200ms") as terminal,
    ):
        terminal.wait_for("Ctrl-C ends it")
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        stale = terminal.wait_for(r"STALE, \d+s old: as of \d\d:\d\d:\d\d UTC; retrying every 0.2 s")
        assert "mail" in stale
        terminal.wait_for("database")  # the server's reason
        terminal.wait_for(r"STALE, ([2-9]|\d\d+)s old")
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
        terminal.wait_for(r"\d\d:\d\d:\d\d UTC, every 0.2 s; Ctrl-C ends it")
        terminal.interrupt()
        assert terminal.end()[0] == 0


def test_a_silent_server_makes_no_old_figures_look_new(
    goqueue: Commands, goqueue_connection: psycopg.Connection
) -> None:
    with goqueue.terminal("stats", "--watch", "--interval", "200ms") as terminal:
        terminal.wait_for("Ctrl-C ends it")
        with goqueue_connection.transaction():
            goqueue_connection.execute("LOCK TABLE goqueue.jobs IN ACCESS EXCLUSIVE MODE")
            assert "mail" in terminal.wait_for(r"STALE, \d+s old")
        terminal.wait_for(r"\d\d:\d\d:\d\d UTC, every 0.2 s; Ctrl-C ends it")
        terminal.interrupt()
        assert terminal.end()[0] == 0


def test_a_permanent_error_ends_the_watch(goqueue: Commands, goqueue_connection: psycopg.Connection) -> None:
    with goqueue.terminal("stats", "--watch", "--interval", "200ms") as terminal:
        terminal.wait_for("Ctrl-C ends it")
        goqueue_connection.execute("DROP VIEW goqueue.queue_status_metrics CASCADE")
        code, seen = terminal.end()
    assert code == 1
    assert "goqueue: " in seen
    assert "Traceback" not in seen


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colours_shows_the_watch_too(
    goqueue: Commands, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with goqueue.terminal("stats", "--watch", "--interval", "200ms", columns=50, **environment) as terminal:
        for _ in range(2):
            assert "mail" in terminal.wait_for(r"expired[= ]1")
        terminal.interrupt()
        assert terminal.end()[0] == 0


def test_more_queues_than_lines_are_counted(goqueue: Commands, goqueue_store: PostgresStorage) -> None:
    goqueue_store.create_jobs(NewJob(job_type="x", queue=f"queue {number:03}") for number in range(100))
    with goqueue.terminal("stats", "--watch", "--interval", "200ms") as terminal:
        assert re.search(r"and \d+ queues more: --queue selects", terminal.wait_for("Ctrl-C ends it"))


def test_a_closed_pipe_ends_the_watch(goqueue: Commands) -> None:
    with goqueue.process("stats", "--watch", "--interval", "100ms") as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.readline()
        started.stdout.close()
        assert started.stderr.read() == ""
        assert started.wait() == 1
