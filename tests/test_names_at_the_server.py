"""The server shows each statement by its query's name, as one entry, however it was sent. Its parameters have the
numbers of the query's file."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from goqueue import DatabaseConfig, JobFilter, JobUpdate, NewJob
from goqueue.files import APART, shipped_folder
from goqueue.migrate import migrate
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.postgres.wire import Rendered
from goqueue.testing.embedded import EmbeddedServer
from goqueue.workbench.notes import psql_text, read_columns, read_notes
from goqueue.workbench.proofs import prove_overrides
from tests.ways import WAYS, Way, opened

HOUR = timedelta(hours=1)
TURNS = 7  # A statement is prepared at the sixth.
OF_EXTENSIONS = {"statement_times", "measure_claim_index"}


@pytest.fixture(scope="module")
def watching() -> Iterator[str]:
    """The URL of a migrated database on a server that keeps statement statistics and logs each statement and plan."""
    settings = {
        "shared_preload_libraries": "pg_stat_statements,auto_explain",
        "log_min_duration_statement": "0",
        "auto_explain.log_min_duration": "0",
        "log_parameter_max_length_on_error": "-1",
    }
    with EmbeddedServer(settings=settings, durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        yield server.url()


def work(store: Way) -> Counter[str]:
    """Make many calls, all with different parameters; return how often each query ran."""
    before, called = uuid4().hex, Counter[str]()
    for turn in range(TURNS):
        queues = [f"{before} {turn} {number}" for number in range(1 + turn % 3)]
        job = store.call("create_job", NewJob(job_type="t", queue=queues[0], payload=turn, priority=turn))
        store.call("create_jobs", [NewJob(job_type="t", queue=queues[-1]) for _ in range(turn + 1)])
        store.call("get_job", job.id)
        store.call("get_jobs", [job.id, *(uuid4() for _ in range(turn))])
        filters = [None, JobFilter(queue=queues), JobFilter(status=["pending", "dead"], job_type="t")]
        store.call("list_jobs", filters[turn % 3], limit=turn + 1)
        store.call("count_jobs", filters[turn % 3])
        store.call("update_job", job.id, JobUpdate(priority=3) if turn % 2 else JobUpdate(queue=queues[-1], payload={}))
        held = store.call("claim_jobs", queues, f"w{turn}", limit=turn + 2, lease=HOUR + timedelta(seconds=turn))
        store.call("heartbeat_jobs", held, lease=HOUR)
        store.call("fail_jobs", [(held[0], f"error {turn}")], retry_in=HOUR if turn % 2 else None)
        store.call("complete_jobs", held[1:])
        called.update(["create_job", "create_jobs", "get_job", "get_jobs", "list_jobs", "count_jobs", "update_job"])
        called.update(["claim_jobs", "heartbeat_jobs", "fail_jobs", "complete_jobs"])
    return called


def test_each_query_has_one_entry_in_pg_stat_statements_and_a_line_in_the_log_for_each_run(watching: str) -> None:
    called = Counter[str]()
    for way in WAYS:
        for threshold in (None, 0, 5):
            with opened(way, DatabaseConfig(url=watching, pool_max_size=1, prepare_threshold=threshold)) as store:
                called += work(store)
    with psycopg.connect(watching) as connection:
        entries: list[Any] = connection.execute(
            "SELECT query, calls, toplevel FROM pg_stat_statements WHERE query LIKE '%/* goqueue:%'"
        ).fetchall()
        [(log,)] = connection.execute("SELECT pg_read_file('server.log')").fetchall()
    tag = r"[A-Z]+ /\* goqueue:(\w+) \*/ "
    names = [found[1] for query, _, _ in entries if (found := re.match(tag, query))]
    assert len(names) == len(entries)
    assert max(Counter(names).values()) == 1
    calls = {name: calls for name, (_, calls, _) in zip(names, entries, strict=True)}
    assert {name: calls[name] for name in called} == called
    assert all(toplevel for _, _, toplevel in entries)
    # An unnamed statement was not prepared, or not yet.
    logged = Counter(re.findall(rf"LOG:  duration: [0-9.]+ ms  execute (?:<unnamed>|_pg3_\d+): {tag}", log))
    assert {name: logged[name] for name in called} == called
    explained = Counter(re.findall(rf"\tQuery Text: {tag}", log))
    assert {name: explained[name] for name in called} == called
    assert re.search(rf" execute <unnamed>: {tag}", log)
    assert re.search(rf" execute _pg3_\d+: {tag}", log)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threshold", [None, 0])
def test_pg_stat_activity_begins_with_the_name_while_a_statement_runs(
    way: str, threshold: int | None, goqueue_database: str, goqueue_connection: Any
) -> None:
    goqueue_connection.execute("""
        CREATE TABLE public.seen (query text);
        CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.seen
            SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() AND state = 'active';
            RETURN NULL;
        END $$;
        CREATE TRIGGER see AFTER INSERT OR UPDATE ON goqueue.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.see();
    """)
    with opened(way, DatabaseConfig(url=goqueue_database, prepare_threshold=threshold)) as store:
        for _ in range(2):
            store.call("create_job", NewJob(job_type="t"))
            [held] = store.call("claim_jobs", "default", "w1")
            store.call("complete_job", held)
    beginnings = [
        "INSERT /* goqueue:create_job */ INTO ",
        "WITH /* goqueue:claim_jobs */ ",
        "WITH /* goqueue:complete_jobs */ ",
    ]
    seen = [query for (query,) in goqueue_connection.execute("SELECT query FROM public.seen").fetchall()]
    assert len(seen) == 6
    for query, beginning in zip(seen, beginnings * 2, strict=True):
        assert query.startswith(beginning)


# --- the numbers of parameters --------------------------------------------------------------------------------------


@pytest.fixture
def turned_round(tmp_path: Path) -> Path:
    """A folder with the shipped files in which each query declares its parameters in reverse order."""

    def turned(found: re.Match[str]) -> str:
        return f"{found[1]}({', '.join(reversed(found[2].split(', ')))})"

    for file in shipped_folder("sql").glob("*.sql"):
        if file.name not in APART:
            text = re.sub(r"^(-- name: \w+)\(([^)]*)\)", turned, file.read_text("utf-8"), flags=re.MULTILINE)
            (tmp_path / file.name).write_text(text)
    return tmp_path


def plain(statement: str) -> list[str]:
    """Return the statement without comment lines (which the program doesn't send) and white space."""
    return re.sub(r"^ *--.*\n", "", statement, flags=re.MULTILINE).rstrip("; \n").split()


@pytest.mark.parametrize("changed", [False, True])
def test_every_statement_has_the_same_numbers_at_the_server_and_in_each_command(
    changed: bool, goqueue_database: str, turned_round: Path
) -> None:
    folder = turned_round if changed else None
    queries = load_queries(str(folder) if folder else None)
    notes = {note.name: note for note in read_notes(folder) if note.can_be_prepared and note.name not in OF_EXTENSIONS}
    checked = load_statements(folder)
    with psycopg.connect(goqueue_database, autocommit=True, prepare_threshold=0) as connection:
        for name, note in notes.items():
            with suppress(psycopg.Error):  # its result without values doesn't matter
                sent = getattr(queries, name)(connection, **dict.fromkeys(note.parameters))
                list(sent if isinstance(sent, Iterator) else ())
        prepared: list[Any] = connection.execute(
            "SELECT (regexp_match(statement, '/[*] goqueue:(\\w+) [*]/'))[1], statement FROM pg_prepared_statements"
        ).fetchall()
    at_the_server = {name: plain(statement) for name, statement in prepared if name}
    assert at_the_server.keys() == notes.keys()
    for name, note in notes.items():
        assert at_the_server[name] == plain(note.statement), name
        shown = psql_text(note, read_columns()).partition(" AS\n")[2].partition("\n\n-- To run")[0]
        assert at_the_server[name] == plain(shown), name
        assert at_the_server[name] == plain(checked[name].text), name
        assert checked[name].parameters == note.parameters


def test_the_server_s_log_numbers_parameters_as_the_file_declares_them(watching: str, turned_round: Path) -> None:
    shipped, turned = ({note.name: note.parameters for note in read_notes(one)} for one in (None, turned_round))
    assert shipped["claim_jobs"][:2] == ("queues", "worker_id")
    assert turned["claim_jobs"][-2:] == ("worker_id", "queues")
    for folder, declared in (("", shipped), (str(turned_round), turned)):
        for way in WAYS:
            queue, worker = f"q{uuid4().hex}", f"w{uuid4().hex}"
            config = DatabaseConfig(url=watching, sql_dir=folder, pool_max_size=1)
            with opened(way, config) as store:
                store.call("create_job", NewJob(job_type="t", queue=queue))
                [job] = store.call("claim_jobs", queue, worker)
                assert (job.queue, job.locked_by) == (queue, worker)
                store.call("update_job", job.id, JobUpdate(priority=7))
                assert len(store.call("list_jobs", JobFilter(queue=queue), limit=9).jobs) == 1
                assert store.call("complete_and_claim", [job], queue, worker) == []
                assert store.call("prune_jobs", timedelta(days=400), limit=17) == 0
            with psycopg.connect(watching) as connection:
                [(log,)] = connection.execute("SELECT pg_read_file('server.log')").fetchall()
            for name, values in {
                "claim_jobs": {"queues": f"{{{queue}}}", "worker_id": worker, "job_limit": "1"},
                "complete_jobs": {"ids": f"{{{job.id}}}"},
                "list_jobs": {"queues": f"{{{queue}}}", "page_limit": "10"},
                "update_job": {"id": str(job.id)},
                "prune_jobs": {"job_limit": "17"},
            }.items():
                statement = rf"execute \S+: [A-Z]+ /\* goqueue:{name} \*/(?:(?!LOG:).)*"
                entries = re.findall(rf"{statement}DETAIL:  [Pp]arameters: ([^\n]*)", log, re.DOTALL)
                logged = dict(re.findall(r"\$(\d+) = '([^']*)'", entries[-1]))
                for parameter, value in values.items():
                    number = str(declared[name].index(parameter) + 1)
                    assert logged[number].replace('"', "") == value, (way, name, parameter)


def test_a_folder_that_declares_parameters_in_another_order_keeps_the_interface(
    goqueue_connection: psycopg.Connection[Any], turned_round: Path
) -> None:
    proof = prove_overrides(goqueue_connection, turned_round)
    assert (proof.problems, proof.unproved) == ([], [])
    assert "claim_jobs" in (proof.changed or [])
    other = turned_round / "other"  # files are read once per process
    other.mkdir()
    text = (turned_round / "leases.sql").read_text()
    (other / "leases.sql").write_text(text.replace(":lease::interval", ":lease::text::interval"))
    problems = prove_overrides(goqueue_connection, other).problems
    said = "query claim_jobs: the parameter lease has the type text, expected interval"
    assert any(said in problem for problem in problems)


def test_parameters_swapped_in_declaration_and_text_make_another_statement(turned_round: Path) -> None:
    ours, shipped = (load_statements(one) for one in (turned_round, None))
    text = ours["heartbeat_jobs"]._replace(
        sql=Rendered(shipped["heartbeat_jobs"].text, ours["heartbeat_jobs"].parameters)
    )
    assert not text.same_as(shipped["heartbeat_jobs"])
