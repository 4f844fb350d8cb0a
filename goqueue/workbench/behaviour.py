"""Comparison of a folder's statements with the shipped ones. Both run on a scratch database, never on another.

Statements: sql/behaviour.sql.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from goqueue.config import DatabaseConfig
from goqueue.errors import GoQueueError
from goqueue.models import Job, JobStatus
from goqueue.postgres.admin_queries import admin_queries
from goqueue.postgres.overrides import refusal
from goqueue.postgres.pool import connect
from goqueue.postgres.queries import load_queries, load_statements
from goqueue.postgres.store import PostgresStorage
from goqueue.workbench.cases import CASES, NAMES, Case, Stage, populate

__all__ = ["NOT_COMPARED", "Proven", "Shown", "compare_behaviour"]

#: Aspects that a comparison of a few runs can't show; named for every folder that passes.
NOT_COMPARED = (
    "how fast they are on many rows (`goqueue explain`), what they do under heavy concurrency, what they notify, and "
    "the places where a claim resumes among dead index entries"
)

_KILO = timedelta(seconds=1000)
# Bounds a statement that does not end.
_STATEMENT_SECONDS = 10
_POLL_SECONDS = 0.001
# Jobs are recreated before their growing age changes the results.
_FRESH = timedelta(seconds=30)
# A statement that takes this much longer on two dozen jobs is reported, even on a busy machine.
_SLOW_SECONDS = 2.0
# The number of differences shown per query.
_SHOWN = 3
_TABLES = ("jobs", "job_failures")
_IDS = re.compile("|".join(map(str, NAMES)))


# --- one run --------------------------------------------------------------------------------------------------------


class _Bound(PostgresStorage):
    """A store on a given connection, with queries from several sources."""

    def __init__(self, connection: Connection[Any], queries: Any) -> None:
        super().__init__(DatabaseConfig(), connection=connection)
        self._queries = queries


class _Mixed:
    """The shipped queries, one of them replaced with the folder's."""

    def __init__(self, name: str, folder: str | None) -> None:
        self._name, self._own, self._shipped = name, load_queries(folder), load_queries()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own if name == self._name else self._shipped, name)


class _Observed(NamedTuple):
    """The observations of one run, by aspect, as comparable plain values."""

    aspects: dict[str, Any]
    #: The jobs that it locked or changed.
    touched: frozenset[UUID] = frozenset()
    seconds: float = 0


class _Theatre:
    """Four sessions on a scratch database: the actor runs the case, one acts as another client, one observes, and one
    has a transaction older than all jobs."""

    def __init__(
        self, actor: Connection[Any], other: Connection[Any], onlooker: Connection[Any], elder: Connection[Any]
    ) -> None:
        self.actor, self.other, self.onlooker, self.elder = actor, other, onlooker, elder
        self._queries = admin_queries()
        self._pool = ThreadPoolExecutor(1)
        self._populated = datetime.max.replace(tzinfo=UTC)
        self.jobs: dict[str, Job] = {}
        self._times: dict[datetime, str] = {}
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._kept: dict[str, str] = {}
        self._old = ExitStack()

    def close(self) -> None:
        """Empty the tables."""
        self._pool.shutdown()
        self._old.close()
        self._queries.empty_tables(self.onlooker)

    def now(self) -> datetime:
        now: datetime = self._queries.tell_time(self.onlooker)
        return now

    def populate(self) -> None:
        """Create the rows that every case starts with."""
        self._old.close()
        self._old.enter_context(self._open(self.elder))
        self._queries.empty_tables(self.onlooker)
        self._populated = self.now()
        self.jobs = populate(_Bound(self.onlooker, self._queries), self.onlooker, self._populated)
        rows = list(self._queries.list_rows(self.onlooker))
        self._kept = {name: f"[{','.join(row for table, row in rows if table == name)}]" for name in _TABLES}
        self._restore()
        self._rows = self._read_rows(self.onlooker)
        times = {datetime.fromisoformat(value) for _, row in self._rows for value in row.values() if _is_time(value)}
        self._times = {moment: f"the time {rank}" for rank, moment in enumerate(sorted(times))}

    def refresh(self) -> None:
        """Recreate the jobs if they have aged."""
        if self.now() - self._populated > _FRESH:
            self.populate()

    def _restore(self) -> None:
        """Restore the rows that `populate` created."""
        self._queries.empty_tables(self.onlooker)
        jobs, failures = (self._kept[name] for name in _TABLES)
        list(self._queries.restore_rows(self.onlooker, restored_jobs=jobs, restored_failures=failures))

    def _read_rows(self, connection: Connection[Any]) -> list[tuple[str, dict[str, Any]]]:
        return [(table, json.loads(fields)) for table, fields in self._queries.list_rows(connection)]

    # The ways to run a case. Each restores the rows of `populate`.

    def alone(self, case: Case, queries: Any) -> _Observed:
        """Run in a transaction without other sessions: observe results, changes, locks and settings."""
        start = self.now()
        try:
            with self._open(self.actor):
                begun = time.perf_counter()
                result = self._call(case, queries)
                seconds = time.perf_counter() - begun
                usable = self.actor.info.transaction_status == TransactionStatus.INTRANS
                aspects = {"returns": self._plain(result, start)}
                touched = self._locked()
                if usable:
                    aspects["leaves the rows"] = self._changes(start)
                    aspects["changes the settings"] = [
                        row[0] for row in self._queries.list_session_settings(self.actor)
                    ]
                    aspects["holds the locks"] = self._held_locks()
                aspects["locks the jobs"] = _named(touched)
                aspects["locks against foreign keys"] = _named(
                    self._all() - {row[0] for row in self._queries.list_referable_jobs(self.onlooker)}
                )
        finally:
            self._release()
        return _Observed(aspects, frozenset(touched), seconds)

    def beside_locks(self, case: Case, queries: Any, locked: Iterable[UUID]) -> _Observed:
        """Run while another session has locked some jobs: observe the results, or the locks held while it waits."""
        start = self.now()
        with self._open(self.other):
            self._lock(locked)
            with self._open(self.actor):
                running = self._pool.submit(self._call, case, queries)
                if self._ends_or_waits(running):
                    aspects = {"returns": self._plain(running.result(), start)}
                    if self.actor.info.transaction_status == TransactionStatus.INTRANS:
                        aspects["leaves the rows"] = self._changes(start)
                else:
                    aspects = {
                        "returns": "(it waits for the other session)",
                        "has locked before it waits": _named(self._locked() - set(locked)),
                    }
                    self.actor.cancel_safe()
                    running.result()
        self._release()
        return _Observed(aspects)

    def beside_changes(self, case: Case, queries: Any, change: Callable[[PostgresStorage], Any]) -> _Observed:
        """Run while another session changes jobs. That session commits when the case waits for it or has ended."""
        start = self.now()
        try:
            with ExitStack() as stack:
                ours = stack.enter_context(ExitStack())
                stack.enter_context(self._open(self.actor))
                theirs = ours.enter_context(self.other.transaction())
                assert theirs is not None  # noqa: S101 - for the type checker
                change(_Bound(self.other, self._queries))
                running = self._pool.submit(self._call, case, queries)
                waited = not self._ends_or_waits(running)
                ours.close()  # commits
                aspects = {
                    "waits for the other session": waited,
                    "returns": self._plain(running.result(), start),
                }
                if self.actor.info.transaction_status == TransactionStatus.INTRANS:
                    aspects["leaves the rows"] = self._changes(start)
        finally:
            self._release()
            self._restore()
        return _Observed(aspects)

    def after_its_start(self, case: Case, queries: Any) -> _Observed:
        """Run in a transaction older than all jobs: the statement's time must count, not the transaction's."""
        start = self.now()
        with self._open(self.elder):
            aspects = {"returns": self._plain(self._call(case, queries, self.elder), start)}
            if self.elder.info.transaction_status == TransactionStatus.INTRANS:
                aspects["leaves the rows"] = self._changes(start, self.elder)
        self._queries.release_advisory_locks(self.elder)
        return _Observed(aspects)

    # Helpers.

    @contextmanager
    def _open(self, connection: Connection[Any]) -> Iterator[None]:
        with connection.transaction(force_rollback=True):
            yield

    def _call(self, case: Case, queries: Any, session: Connection[Any] | None = None) -> Any:
        """Return what the case's call returns or raises, in the actor's session or the given one."""
        actor = session or self.actor

        def run(name: str, **values: Any) -> Any:
            result = getattr(queries, name)(actor, **values)
            return sorted(result, key=str) if isinstance(result, Iterator) else result

        try:
            return case(Stage(_Bound(actor, queries), self.jobs, run, self._populated))
        except (GoQueueError, psycopg.Error) as error:  # the outcome of a method, or of a query alone
            return error

    def _ends_or_waits(self, running: "Future[Any]") -> bool:
        """Return True if it ends, False if it waits for a lock."""
        while not running.done():
            if self._queries.is_waiting(self.onlooker, backend_pid=self.actor.info.backend_pid):
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _all(self) -> set[UUID]:
        return {job.id for job in self.jobs.values()}

    def _locked(self) -> set[UUID]:
        """Return the jobs locked by sessions other than the observer."""
        return self._all() - {row[0] for row in self._queries.list_unlocked_jobs(self.onlooker)}

    def _lock(self, ids: Iterable[UUID]) -> None:
        """Lock jobs as a holder's statement does."""
        list(self._queries.lock_jobs(self.other, ids=list(ids)))

    def _held_locks(self) -> list[str]:
        pid = self.actor.info.backend_pid
        return [row[0] for row in self._queries.list_held_locks(self.onlooker, backend_pid=pid)]

    def _release(self) -> None:
        """Release what outlasts a transaction."""
        self._queries.release_advisory_locks(self.actor)

    def _changes(self, start: datetime, session: Connection[Any] | None = None) -> dict[str, Any]:
        """Return the rows that have changed, as seen by the actor's transaction or the given session's."""
        before = {_key(table, row): row for table, row in self._rows}
        now = {_key(table, row): row for table, row in self._read_rows(session or self.actor)}
        return {
            f"{_shown_key(key)}": "(deleted)" if key not in now else self._plain(now[key], start)
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        }

    def _plain(self, value: Any, start: datetime) -> Any:
        """Convert a value for comparison with another run: times become their meaning, ids become names."""
        plain = partial(self._plain, start=start)
        match value:
            case Exception():
                lost = [NAMES.get(job_id, str(job_id)) for job_id in getattr(value, "job_ids", ())]
                said = ", ".join(sorted(lost)) or plain(str(value).partition("\n")[0])
                value = f"{type(value).__name__}({said})"
            case msgspec.Struct():
                value = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
            case dict():
                value = {str(plain(key)): plain(one) for key, one in value.items()}
            case list() | tuple():
                value = [plain(one) for one in value]
            case UUID():
                value = NAMES.get(value, str(value))
            case timedelta():
                value = f"about {round(value / _KILO)}000 s"
            case datetime():
                value = self._times.get(value) or self._since(value, start)
            case str() if _is_time(value):
                value = plain(datetime.fromisoformat(value))
            case str():
                value = _IDS.sub(lambda found: NAMES[UUID(found[0])], value)
        return value

    def _since(self, moment: datetime, start: datetime) -> str:
        """Describe a new time by its distance from now: two runs never happen at the same time."""
        seconds = (moment - start).total_seconds()
        if moment < self._populated and abs(seconds) < 50:  # only happens in a transaction older than all jobs
            return "the time at which the transaction began"
        return f"{100 * round(seconds / 100):+,} s from now"


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d")


def _is_time(value: object) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _key(table: str, row: Mapping[str, Any]) -> tuple[str, str, int]:
    if table == "paused_queues":
        return table, row["queue"], 0
    return (table, row["id"], 0) if table == "jobs" else (table, row["job_id"], row["lease_token"])


def _shown_key(key: tuple[str, str, int]) -> str:
    table, job_id, token = key
    if table == "paused_queues":
        return f"the pause of {job_id}"
    name = NAMES.get(UUID(job_id), job_id)
    return name if table == "jobs" else f"failure {token} of {name}"


def _named(ids: Iterable[UUID]) -> list[str]:
    return sorted(NAMES.get(job_id, str(job_id)) for job_id in ids)


# --- the comparison -------------------------------------------------------------------------------------------------


class Proven(NamedTuple):
    """The results of a comparison."""

    #: The number of runs of each query.
    runs: dict[str, int]
    #: Differences from the shipped queries.
    problems: list[str]
    #: The queries that were not run, each with the reason.
    unproved: list[str]


@contextmanager
def _theatre(scratch: Connection[Any]) -> Iterator[_Theatre]:
    """Open four sessions like the store's on the database of ``scratch``."""
    url = make_conninfo(scratch.info.dsn, password=scratch.info.password or None)
    limit = timedelta(seconds=_STATEMENT_SECONDS)
    short = DatabaseConfig(
        url=url, statement_timeout=limit, lock_timeout=timedelta(), idle_in_transaction_timeout=limit * 9
    )
    with connect(short) as actor, connect(short) as other, connect(short) as onlooker, connect(short) as elder:
        theatre = _Theatre(actor, other, onlooker, elder)
        try:
            yield theatre
        finally:
            theatre.close()


def compare_behaviour(
    scratch: Connection[Any],
    folder: str,
    names: Iterable[str],
    report: Callable[[str], None] = lambda _: None,
    shipped: "Shown | None" = None,
) -> Proven:
    """Run the folder's queries, and the shipped ones, in every case that `CASES` has for them.

    ``scratch`` is a connection to an empty scratch database with all migrations; all its jobs are deleted. Each query
    runs among the shipped ones, so that every difference is its own. The shipped queries run once in each way; pass
    ``shipped`` from call to call to reuse their results on the same server.
    """
    found = Proven({}, [], [])
    shipped = {} if shipped is None else shipped
    if list(admin_queries().list_rows(scratch)):
        raise ValueError("goqueue.jobs has rows, expected an empty scratch database")
    with _theatre(scratch) as theatre:
        for name in names:
            if refused := refusal(scratch, load_statements(folder)[name]):
                version = scratch.info.parameter_status("server_version")
                found.unproved.append(f"query {name}: the scratch server (PostgreSQL {version}) rejects it: {refused}")
                continue
            cases = [case for case in CASES if name in case.queries]
            if not cases:
                found.unproved.append(f"query {name}: goqueue has no case for it")
                continue
            report(name)
            theatre.populate()
            mixed = _Mixed(name, folder)
            found.runs[name] = 0
            differences: list[str] = []
            for case in cases:
                theatre.refresh()
                is_slow = False
                for way, expected, own in _runs(theatre, case, mixed, shipped):
                    found.runs[name] += 1
                    if difference := _difference(expected, own):
                        differences.append(f"query {name}, {case.title}{way}: {difference}")
                        is_slow = "takes" in own  # don't wait for it again
                        break  # the other ways would show the same
                if len(differences) == _SHOWN or is_slow:
                    break
            found.problems.extend(differences)
    return found


#: The results of the shipped queries, by case and way.
Shown = dict[tuple[Case, str], _Observed]


def _runs(
    theatre: _Theatre, case: Case, mixed: _Mixed, shown: Shown
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Run a case in each way. Yield the way, the results of the shipped queries and those with the folder's."""

    def of_shipped(way: str, run: Callable[[Case, Any], _Observed]) -> _Observed:
        if (case, way) not in shown:
            shown[case, way] = run(case, load_queries())
        return shown[case, way]

    def of_own(run: Callable[[Case, Any], _Observed]) -> _Observed:
        try:
            return run(case, mixed)
        except (GoQueueError, psycopg.Error):
            raise  # of the comparison itself
        except Exception as error:  # noqa: BLE001 - its rows can make any code fail
            return _Observed({"returns": f"(it makes the caller fail: {type(error).__name__}: {error})"})

    def compared(way: str, run: Callable[[Case, Any], _Observed]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
        return way, of_shipped(way, run).aspects, of_own(run).aspects

    shipped, own = of_shipped("", theatre.alone), of_own(theatre.alone)
    expected, got = shipped.aspects, own.aspects
    if own.seconds > shipped.seconds + _SLOW_SECONDS:
        # Repeat, since the machine may be busy.
        seconds = min(own.seconds, of_own(theatre.alone).seconds)
        if seconds > shipped.seconds + _SLOW_SECONDS:
            got = {**got, "takes": f"{seconds:.1f} s"}
            expected = {**expected, "takes": f"{shipped.seconds:.1f} s"}
    yield "", expected, got
    everything = [job.id for job in theatre.jobs.values()]
    locked = ", while another session has locked"
    yield compared(f"{locked} every job", partial(theatre.beside_locks, locked=everything))
    if not (touched := sorted(shipped.touched)):
        return
    middle = touched[len(touched) // 2]
    yield compared(f"{locked} {NAMES[middle]}", partial(theatre.beside_locks, locked=[middle]))
    for what, change in _CHANGES.items():
        run = partial(theatre.beside_changes, change=partial(change, ids=touched))
        yield compared(f", while another session {what} the same jobs", run)
    yield compared(", in a transaction that began before the jobs were made", theatre.after_its_start)


def _give_back(store: PostgresStorage, ids: list[UUID]) -> None:
    store.release_jobs([job for job in store.get_jobs(ids) if job.status == JobStatus.RUNNING])


_CHANGES: dict[str, Callable[..., Any]] = {
    "cancels": lambda store, ids: store.cancel_jobs(ids),
    "releases": _give_back,
}


def _difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Return the first difference from the shipped statement, or nothing if there is none."""
    for aspect in [*expected, *(name for name in got if name not in expected)]:
        mine, theirs = got.get(aspect), expected.get(aspect)
        if mine != theirs:
            path, theirs, mine = _first(theirs, mine)
            return f"it {aspect}{path and f' ({path})'}: {_shown(mine)}, expected {_shown(theirs)}"
    return ""


def _first(expected: Any, got: Any, path: str = "") -> tuple[str, Any, Any]:
    """Return the place and the values of the first difference."""
    match expected, got:
        case dict(), dict():
            for key in [*expected, *(key for key in got if key not in expected)]:
                if expected.get(key) != got.get(key):
                    return _first(expected.get(key), got.get(key), f"{path}, {key}" if path else key)
        case list(), list():
            rows = [*expected, *got]
            if rows and all(isinstance(row, dict) and "id" in row for row in rows):
                names, given = ([row["id"] for row in part] for part in (expected, got))
                if names != given:
                    return path, names, given
                pairs = zip(names, expected, got, strict=True)
                return next(
                    _first(one, other, f"{path}, {name}" if path else name)
                    for name, one, other in pairs
                    if one != other
                )
    return path, expected, got


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:159]}…"
