"""The oracle: it compares what the clients were told (the journals) with what happened (the history and the table).

It judges in both directions. Every answer must agree with the history, and every change needs a call that explains it:
one that reported the change, or one whose outcome is unknown. So a call that failed with an error that promises that
nothing was changed explains no change. Imports psycopg.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg

from tests.chaos.journal import Call, leases

#: Seconds that two readings of the same clock by two processes may differ.
_SLACK = 0.05

PROMISES = {
    "kept": "an acknowledged job exists, or a call has deleted it",
    "nothing": "a call that reports that nothing was changed has changed nothing",
    "holder": "a job has one holder at a time",
    "token": "a lease token only grows",
    "completed": "an acknowledged completion happened, exactly once",
    "lost": "a lost lease was lost, and its holder changes nothing",
    "key": "an idempotency key has one job",
    "transition": "a job only takes legal transitions",
    "returned": "a call returns what happened",
    "named": "every error is one of goqueue's that the method promises",
    "deadline": "every call ends before its deadline",
    "recovered": "every client works again after the fault",
}

#: The statement of changes that nobody made through the store; chaos.history names it.
HAND = "by hand"
_FINISHED = ("completed", "dead", "cancelled")
_CREATING = ("create_job", "get_or_create_job", "create_jobs", "replace_pending_job")
#: The errors that each method promises, in addition to those of the storage.
_STORAGE = {"StorageUnavailableError", "OutcomeUnknownError", "TransactionConflictError"}
_LEASE_CALLS = {
    "heartbeat_jobs": ("heartbeat_jobs",),
    "complete_jobs": ("complete_jobs", "complete_job", "complete_and_claim"),
    "fail_jobs": ("fail_jobs", "fail_job", "bury_jobs"),
    "release_jobs": ("release_jobs",),
}
_LEASE_QUERY = {method: query for query, methods in _LEASE_CALLS.items() for method in methods}
_ERRORS: dict[str, set[str]] = {
    "create_job": {"DuplicateJobError"},
    "replace_pending_job": {"DuplicateJobError"},
    "get_job": {"JobNotFoundError"},
    "get_job_by_idempotency_key": {"JobNotFoundError"},
    "update_job": {"JobNotFoundError", "JobStateError"},
    "delete_job": {"JobNotFoundError"},
    **{method: {"LeaseLostError"} for method in _LEASE_QUERY},
}
_READING = {
    "get_job", "get_jobs", "get_job_by_idempotency_key", "list_jobs", "count_jobs", "list_failures", "next_job_at",
    "queue_stats", "list_workers", "list_job_types", "ping", "get_transaction_status", "open", "listen",
}  # fmt: skip


class Change(NamedTuple):
    """A row of chaos.history, with times as seconds."""

    place: int
    changed_at: float
    statement_at: float
    transaction_id: str
    query: str | None
    job_id: str
    idempotency_key: str | None
    max_attempts: int
    old_status: str | None
    old_token: int | None
    old_attempts: int | None
    old_holder: str | None
    old_expires_at: float | None
    status: str | None
    token: int | None
    attempts: int | None
    holder: str | None
    expires_at: float | None

    @property
    def before(self) -> tuple[object, ...]:
        return self.old_status, self.old_token, self.old_attempts, self.old_holder, self.old_expires_at

    @property
    def after(self) -> tuple[object, ...]:
        return self.status, self.token, self.attempts, self.holder, self.expires_at


class Stop(NamedTuple):
    """A time in which a client's process was stopped, so that its calls took longer."""

    client: str
    start: float
    end: float


class Violation(NamedTuple):
    promise: str
    what: str


class Evidence(NamedTuple):
    """What the oracle judges."""

    calls: list[Call]
    history: list[Change]
    #: By job, the values of ``Change.after`` in the table at the end.
    rows: dict[str, tuple[object, ...]]


def collect(connection: psycopg.Connection[Any], calls: list[Call]) -> Evidence:
    """Read the history and the table."""
    times = {"changed_at", "statement_at", "old_expires_at", "expires_at"}
    columns = [f"extract(epoch FROM {name})::float8" if name in times else name for name in Change._fields]
    columns[Change._fields.index("job_id")] = "job_id::text"
    history = connection.execute(f"SELECT {', '.join(columns)} FROM chaos.history ORDER BY place").fetchall()
    rows = connection.execute(
        """
        SELECT
            id::text, status::text, lease_token, attempts, locked_by, extract(epoch FROM lease_expires_at)::float8
        FROM goqueue.jobs
        """
    ).fetchall()
    return Evidence(calls, [Change(*row) for row in history], {row[0]: row[1:] for row in rows})


def judge(
    evidence: Evidence, *, seconds: float, stops: Iterable[Stop] = (), errors: Iterable[str] = ()
) -> list[Violation]:
    """Return the broken promises. A call has ``seconds``. ``errors`` are exceptions that the fault itself raises."""
    return _Judgement(evidence, seconds, list(stops), set(errors)).violations()


class _Judgement:
    def __init__(self, evidence: Evidence, seconds: float, stops: list[Stop], errors: set[str]) -> None:
        self.evidence = evidence
        self.seconds = seconds
        self.stops = stops
        self.errors = errors
        self.found: list[Violation] = []
        self.of_job: dict[str, list[Change]] = defaultdict(list)
        self.versions: set[tuple[object, ...]] = set()
        #: The change that ended each lease, and the renewals.
        self.ends: dict[tuple[str, int], Change] = {}
        self.renewals: dict[tuple[str, int], list[Change]] = defaultdict(list)
        self.claims: dict[tuple[str, int], Change] = {}
        for change in evidence.history:
            self.of_job[change.job_id].append(change)
            self.versions.add((change.job_id, change.status, change.token, change.attempts))
            if change.old_status == "running" and (change.status, change.token) != ("running", change.old_token):
                self.ends.setdefault((change.job_id, change.old_token or 0), change)
            if change.query == "heartbeat_jobs":
                self.renewals[change.job_id, change.token or 0].append(change)
            if change.query == "claim_jobs":
                self.claims[change.job_id, change.token or 0] = change
        self.lost_transactions = {call.transaction_id for call in evidence.calls}
        self.index = _Index(evidence.calls)
        self.acknowledged: dict[str, float] = {}
        for call in evidence.calls:
            for job_id, _ in _created(call):
                self.acknowledged.setdefault(job_id, call.ended or 0.0)

    def violations(self) -> list[Violation]:
        for changes in self.of_job.values():
            self.check_changes(changes)
        for change in self.evidence.history:
            self.check_explained(change)
        for call in self.evidence.calls:
            self.check_error(call)
            self.check_time(call)
            if call.ended is not None:
                self.check_answer(call)
        self.check_rows()
        self.check_keys()
        self.check_pruned()
        return self.found

    def violated(self, promise: str, what: str) -> None:
        self.found.append(Violation(promise, what))

    # --- the history alone ------------------------------------------------------------------------------------------

    def check_changes(self, changes: list[Change]) -> None:
        """Check the changes of one job: no gap, only legal transitions, growing tokens, one holder."""
        first = changes[0]
        if first.old_status is not None or (first.status, first.token, first.attempts) != ("pending", 0, 0):
            self.violated("transition", f"the history does not begin with a new job: {first}")
        for before, change in pairwise(changes):
            if change.before != before.after:
                self.violated("transition", f"between these changes, one is missing: {before}, {change}")
        for change, after in zip(changes, [*changes[1:], None], strict=True):
            if _is_taken_by_hand(change) and not _is_fenced(change, after):
                self.violated("holder", f"a change by hand left the job to its old holder: {change}, {after}")
        for change in changes:
            if change.query == "claim_jobs" and change.old_status == "running":
                self.violated("holder", f"a claim took a running job from its holder: {change}")
            elif change.query == "rescue_jobs" and not _is_expired(change):
                self.violated("holder", f"a rescue took a job from its holder before the lease expired: {change}")
            elif not _is_legal(change):
                self.violated("transition", f"{change.query} made an illegal change: {change}")
            if None not in (change.token, change.old_token):
                is_claim = change.status == "running" != change.old_status and change.query != HAND
                if change.token < change.old_token or (is_claim and change.token == change.old_token):  # type: ignore[operator]
                    self.violated("token", f"the token did not grow: {change}")

    def check_rows(self) -> None:
        """Check that the table is where the history ends."""
        rows = self.evidence.rows
        for job_id, changes in self.of_job.items():
            last = changes[-1]
            if last.status is None:
                if job_id in rows:
                    self.violated("returned", f"a deleted job is stored: {last}")
            elif job_id not in rows:
                self.violated("kept", f"a job is lost: {last}")
            elif rows[job_id] != last.after:
                self.violated("transition", f"a change is not in the history: {last}, {rows[job_id]}")
        for job_id in rows.keys() - self.of_job.keys():
            self.violated("transition", f"job {job_id} is not in the history")

    def check_keys(self) -> None:
        """Check that each key has one stored job at a time."""
        having: dict[str, str] = {}
        for change in self.evidence.history:
            key, job_id = change.idempotency_key, change.job_id
            if key is None:
                continue
            if change.status is None:
                if having.get(key) == job_id:
                    del having[key]
            elif having.setdefault(key, job_id) != job_id:
                self.violated("key", f"two jobs have the key {key}: {having[key]}, {job_id}")

    # --- changes without a call ---------------------------------------------------------------------------------------

    def check_explained(self, change: Change) -> None:
        """Check that a call has reported this change, or may have made it."""
        if change.query == HAND:
            return
        for call in self.index.candidates(change):
            if call.at - _SLACK > change.changed_at:
                continue
            if call.may_have_happened:
                return
            if change.changed_at <= (call.ended or 0.0) + _SLACK and _reports(call, change):
                return
        promise = "lost" if change.query in _LEASE_CALLS else "nothing"
        self.violated(promise, f"no call has reported this change, and each call has an answer: {change}")

    # --- answers ------------------------------------------------------------------------------------------------------

    def check_error(self, call: Call) -> None:
        allowed = _STORAGE | self.errors | _ERRORS.get(call.method, set())
        if call.method in _READING:
            allowed -= {"OutcomeUnknownError"}
        is_ours = call.is_ours or call.error in self.errors
        if call.error and not (is_ours and call.error in allowed):
            self.violated("named", f"{call.method} of {call.client} raised {call.error}: {call.said}")

    def check_time(self, call: Call) -> None:
        ended = call.at + call.took
        stopped = sum(
            max(0.0, min(ended, stop.end) - max(call.at, stop.start))
            for stop in self.stops
            if stop.client == call.client
        )
        if call.took - stopped > self.seconds:
            self.violated("deadline", f"{call.method} of {call.client} took {call.took:.1f} s: {call.error}")

    def check_answer(self, call: Call) -> None:
        check: Callable[[Call], None] | None = getattr(self, f"check_{call.method}", None)
        if call.method in _LEASE_QUERY and call.error in ("", "LeaseLostError"):
            self.check_leases(call)
        if call.method in _CREATING and not call.error:
            self.check_created(call)
        if check is not None and not call.error:
            check(call)
        if call.error == "DuplicateJobError" and call.job_id is not None:
            self.check_stored(call, call.job_id)
        if call.error == "JobNotFoundError" and "job_id" in call.args:
            self.check_missing(call, call.args["job_id"])

    def check_leases(self, call: Call) -> None:
        """Check each lease of a call: kept ones have the call's effect, and lost ones were lost."""
        query = _LEASE_QUERY[call.method]
        lost = set(call.lost) if call.error else set()
        for lease in leases(call):
            end = self.ends.get(lease)
            ended = end is not None and end.changed_at <= (call.ended or 0.0) + _SLACK
            if lease in lost:
                self.check_lost(call, lease, end if ended else None)
            elif query == "heartbeat_jobs":
                if not any(self.is_within(call, renewal) for renewal in self.renewals[lease]):
                    self.violated("lost", f"a renewal was acknowledged and did not happen: {lease} by {call.client}")
            elif query == "complete_jobs" and self.was_completed_by_hand(call, *lease):
                pass  # under its token, so the completion counts as a repetition
            elif end is None or not ended or end.query != query:
                promise = "completed" if query == "complete_jobs" else "returned"
                self.violated(promise, f"{call.method} of {lease} was acknowledged, but the lease ended thus: {end}")
            elif query != "complete_jobs" and not self.is_within(call, end):
                self.violated("returned", f"{call.method} of {lease} was acknowledged, but happened before: {end}")
            elif query == "fail_jobs":
                expected = "dead" if call.method == "bury_jobs" else call.value
                expected = expected[lease[0]] if isinstance(expected, dict) else expected
                # fail_job returns a status, and raises for a lost lease. In a partly lost call no value is returned.
                if not call.error and end.status != expected:
                    self.violated("returned", f"{call.method} returned {expected} for {lease}: {end}")

    def was_completed_by_hand(self, call: Call, job_id: str, token: int) -> bool:
        return any(
            (change.query, change.status, change.token, change.old_token) == (HAND, "completed", token, token)
            and change.changed_at <= (call.ended or 0.0) + _SLACK
            for change in self.of_job.get(job_id, [])
        )

    def check_lost(self, call: Call, lease: tuple[str, int], end: Change | None) -> None:
        changes = self.of_job.get(lease[0], [])
        if end is None:
            self.violated("lost", f"{call.method} reports a lease as lost that was held: {lease} by {call.client}")
        elif _LEASE_QUERY[call.method] == "complete_jobs" and end.query == "complete_jobs":
            # A completion can be repeated while the job is stored and completed.
            since = [
                change for change in changes if end.place < change.place and change.changed_at <= (call.ended or 0)
            ]
            if all((change.status, change.token) == ("completed", end.token) for change in since):
                self.violated("lost", f"{call.method} reports a completed lease as lost: {lease} by {call.client}")

    def is_within(self, call: Call, change: Change) -> bool:
        return call.at - _SLACK <= change.changed_at <= (call.ended or 0.0) + _SLACK

    def check_created(self, call: Call) -> None:
        for job_id, key in _created(call):
            first = self.of_job.get(job_id, [None])[0]
            if first is None or first.changed_at > (call.ended or 0.0) + _SLACK:
                self.violated("kept", f"{call.method} acknowledged job {job_id}, which did not exist")
            elif key is not None and not any(change.idempotency_key == key for change in self.of_job[job_id]):
                self.violated("key", f"{call.method} returned job {job_id} for the key {key}, which it never had")

    def check_stored(self, call: Call, job_id: str) -> None:
        if job_id not in self.of_job:
            self.violated("key", f"{call.method} reports a duplicate of job {job_id}, which did not exist")

    def check_missing(self, call: Call, job_id: str) -> None:
        deleted = [change for change in self.of_job.get(job_id, []) if change.status is None]
        if deleted and deleted[0].changed_at <= (call.ended or 0.0) + _SLACK:
            return
        if self.acknowledged.get(job_id, float("inf")) <= call.at:
            self.violated("kept", f"{call.method} did not find job {job_id}, which was acknowledged before")

    def check_claim_jobs(self, call: Call) -> None:
        for job in call.value:
            claim = self.claims.get((job["id"], job["token"]))
            expected = ("running", job["token"], job["attempts"], job["holder"])
            if claim is None or claim.after[:4] != expected or not self.is_within(call, claim):
                self.violated("returned", f"a claim of {call.client} returned {job}, which it did not claim: {claim}")
            if job["holder"] != call.args["worker_id"]:
                self.violated("holder", f"a claim by {call.args['worker_id']} returned the job of another: {job}")

    check_complete_and_claim = check_claim_jobs

    def check_rescue_jobs(self, call: Call) -> None:
        for job_id, status in call.value.items():
            if not any(
                change.query == "rescue_jobs" and change.status == status and self.is_within(call, change)
                for change in self.of_job.get(job_id, [])
            ):
                self.violated("returned", f"rescue_jobs returned {job_id} as {status}, and did not rescue it")

    def check_count(self, call: Call, job_ids: list[str]) -> None:
        done = sum(
            any(change.query == call.method and self.is_within(call, change) for change in self.of_job.get(job_id, []))
            for job_id in job_ids
        )
        if call.value > done:
            self.violated("returned", f"{call.method} of {call.client} returned {call.value}, but changed {done} jobs")

    def check_cancel_jobs(self, call: Call) -> None:
        self.check_count(call, call.args["jobs"])

    check_retry_jobs = check_reschedule_jobs = check_change_jobs = check_delete_jobs = check_cancel_jobs

    def check_update_job(self, call: Call) -> None:
        self.check_version(call, call.value)
        if not any(
            change.query == "update_job" and change.status == call.value["status"] and self.is_within(call, change)
            for change in self.of_job.get(call.args["job_id"], [])
        ):
            self.violated("returned", f"update_job returned {call.value}, and changed nothing")

    def check_delete_job(self, call: Call) -> None:
        job_id = call.args["job_id"]
        changes = self.of_job.get(job_id, [])
        if not any(change.query == "delete_job" and self.is_within(call, change) for change in changes):
            self.violated("returned", f"delete_job of {job_id} was acknowledged, and did not happen: {changes[-1:]}")

    def check_pruned(self) -> None:
        """Check the sum of what prune_jobs returned: it does not name the jobs."""
        calls = [call for call in self.evidence.calls if call.method == "prune_jobs"]
        least = sum(call.value for call in calls if call.ended is not None and not call.error)
        most = least + sum(call.args.get("limit", 1000) for call in calls if call.may_have_happened)
        pruned = sum(change.query == "prune_jobs" for change in self.evidence.history)
        if not least <= pruned <= most:
            self.violated("returned", f"prune_jobs reported from {least} to {most} jobs, and deleted {pruned}")

    def check_version(self, call: Call, job: dict[str, Any]) -> None:
        if (job["id"], job["status"], job["token"], job["attempts"]) not in self.versions:
            self.violated("returned", f"{call.method} returned a job that never was so: {job}")

    def check_get_job(self, call: Call) -> None:
        self.check_version(call, call.value)

    check_get_job_by_idempotency_key = check_get_job

    def check_get_jobs(self, call: Call) -> None:
        for job in call.value:
            self.check_version(call, job)

    check_list_jobs = check_get_jobs

    def check_get_transaction_status(self, call: Call) -> None:
        """Check the outcome of a transaction whose reply was lost."""
        wanted = call.args["transaction_id"]
        if wanted not in self.lost_transactions:  # nobody knows its changes
            return
        has_happened = any(change.transaction_id == wanted for change in self.evidence.history)
        if (call.value == "committed" and not has_happened) or (call.value == "aborted" and has_happened):
            self.violated("returned", f"transaction {wanted} counts as {call.value}: it is {has_happened}")


class _Index:
    """The calls that may explain a change: by lease, job, worker or method."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls: dict[tuple[object, ...], list[Call]] = defaultdict(list)
        for call in calls:
            for key in self._keys(call):
                self._calls[key].append(call)

    def _keys(self, call: Call) -> Iterable[tuple[object, ...]]:
        method, args = call.method, call.args
        if method in _LEASE_QUERY:
            yield from ((_LEASE_QUERY[method], *lease) for lease in leases(call))
        match method:
            case "create_job" | "get_or_create_job" | "create_jobs" | "replace_pending_job":
                yield from (("create", job["id"]) for job in _given(call))
                if method == "replace_pending_job":
                    yield "replace", args["job"]["key"]
            case "claim_jobs" | "complete_and_claim" if call.may_have_happened:
                yield "claim", args["worker_id"]
            case "claim_jobs" | "complete_and_claim" if not call.error:
                yield from (("claim", job["id"], job["token"]) for job in call.value)
            case "cancel_jobs" | "retry_jobs" | "reschedule_jobs" | "change_jobs" | "delete_jobs":
                yield from ((method, job_id) for job_id in args["jobs"])
            case "update_job" | "delete_job":
                yield method, args["job_id"]
            case "rescue_jobs" | "prune_jobs":
                yield (method,)

    def candidates(self, change: Change) -> Iterable[Call]:
        job_id, query = change.job_id, change.query
        if query in _LEASE_CALLS:
            return self._calls[query, job_id, change.old_token]
        match query:
            case "claim_jobs":
                return [*self._calls["claim", job_id, change.token], *self._calls["claim", change.holder]]
            case "replace_pending_job" if change.old_status is not None:
                return self._calls["replace", change.idempotency_key]
            case "create_job" | "create_jobs" | "create_missing_jobs" | "replace_pending_job":
                return self._calls["create", job_id]
            case "rescue_jobs" | "prune_jobs":
                return self._calls[query,]
        return self._calls[query, job_id]


def _given(call: Call) -> list[dict[str, Any]]:
    jobs = call.args.get("jobs") or call.args.get("job")
    return jobs if isinstance(jobs, list) else [jobs]


def _created(call: Call) -> list[tuple[str, str | None]]:
    """Return id and key of the jobs that a call acknowledges: it added them, or they exist."""
    if call.method not in _CREATING or call.error or call.ended is None:
        return []
    match call.method:
        case "create_jobs":
            return [(job_id, job["key"]) for (job_id, _), job in zip(call.value, call.args["jobs"], strict=True)]
        case "get_or_create_job":
            return [(call.value[0]["id"], call.args["job"]["key"])]
    return [(call.value["id"], call.args["job"]["key"])]


def _reports(call: Call, change: Change) -> bool:
    """Return True if the answer to the call says that it made the change."""
    if change.query in _LEASE_CALLS:
        return call.error == "" or (
            call.error == "LeaseLostError" and (change.job_id, change.old_token) not in call.lost
        )
    if call.error:
        return False
    match call.method:
        case "rescue_jobs":
            return change.job_id in call.value
        case "cancel_jobs" | "retry_jobs" | "reschedule_jobs" | "change_jobs" | "delete_jobs" | "prune_jobs":
            return bool(call.value > 0)
        case "create_jobs":
            return [change.job_id, True] in call.value
        case "get_or_create_job":
            return bool(call.value[0]["id"] == change.job_id and call.value[1])
        case "create_job" | "replace_pending_job":
            return bool(call.value["id"] == change.job_id)
    return True


def _is_taken_by_hand(change: Change) -> bool:
    """Return True if a change by hand gave the job to another holder, under its last token."""
    is_taken = change.status == "running" and (change.old_status != "running" or change.holder != change.old_holder)
    return change.query == HAND and is_taken and change.old_token is not None and change.token == change.old_token


def _is_fenced(change: Change, after: Change | None) -> bool:
    """Return True if the next change, in the same transaction, is the one of the trigger: a larger token."""
    if after is None or after.transaction_id != change.transaction_id:
        return False
    return (after.status, after.holder, after.token) == (change.status, change.holder, (change.token or 0) + 1)


def _is_expired(change: Change) -> bool:
    return change.old_expires_at is not None and change.old_expires_at <= change.statement_at


def _is_legal(change: Change) -> bool:
    """Return True if the statement may make this change."""
    old, new = change.old_status, change.status
    if change.query == HAND:  # the constraints allowed it
        return True
    if old is None:
        return change.query in ("create_job", "create_jobs", "create_missing_jobs", "replace_pending_job")
    if new is None:
        return change.query in ("delete_job", "delete_jobs") or (change.query == "prune_jobs" and old in _FINISHED)
    # Not None, since the job was stored before and after.
    claimed = (change.token or 0) - (change.old_token or 0)
    attempted = (change.attempts or 0) - (change.old_attempts or 0)
    if change.query == "claim_jobs":
        return (old, new) == ("pending", "running") and (claimed, attempted) == (1, 1)
    if change.query == "update_job":
        is_free = old in ("pending", "running") or (old in ("dead", "cancelled") and new == "pending")
        return (old == new or is_free) and claimed == (old != new and new in ("running", "completed"))
    return claimed == 0 and _is_legal_step(change, old, new, attempted)


def _is_legal_step(change: Change, old: str, new: str, attempted: int) -> bool:
    """Return True if a statement that makes no claim may make this change."""
    without_attempt = "dead" if (change.attempts or 0) >= change.max_attempts else "pending"
    match change.query:
        case "heartbeat_jobs":
            return (old, new) == ("running", "running") and change.holder == change.old_holder
        case "complete_jobs":
            return (old, new) == ("running", "completed")
        case "fail_jobs":
            return old == "running" and new in (without_attempt, "dead") and attempted == 0
        case "release_jobs":
            return (old, new, attempted) == ("running", "pending", -1)
        case "rescue_jobs":
            return (old, new, attempted) == ("running", without_attempt, 0)
        case "cancel_jobs":
            return old in ("pending", "running") and new == "cancelled"
        case "retry_jobs":
            return old in ("dead", "cancelled") and (new, change.attempts) == ("pending", 0)
        case "reschedule_jobs" | "replace_pending_job":
            return (old, new) == ("pending", "pending")
        case "change_jobs":
            return old == new != "completed"
    return False
