"""Where a server shows statements, it shows each by its query's name, and as one, however it was sent."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from goqueue import DatabaseConfig, JobFilter, JobUpdate, NewJob
from goqueue.embedded import EmbeddedServer
from goqueue.migrate import migrate
from tests.ways import WAYS, Way, opened

HOUR = timedelta(hours=1)
TURNS = 7  # A statement is prepared at the sixth.


@pytest.fixture(scope="module")
def watching() -> Iterator[str]:
    """The URL of a migrated database on a server that keeps statistics of statements, logs each, and its plan."""
    settings = {
        "shared_preload_libraries": "pg_stat_statements,auto_explain",
        "log_min_duration_statement": "0",
        "auto_explain.log_min_duration": "0",
    }
    with EmbeddedServer(settings=settings, durable=False) as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        yield server.url()


def work(store: Way) -> Counter[str]:
    """Many calls, no two of them with the same parameters; how often each query was run."""
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
