"""One run of a worker: the runners, which call handlers, and the roles that claim, report, renew, rescue and listen."""

import asyncio  # async only
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from random import uniform
from time import monotonic
from typing import Any

from goqueue.cancellation import to_the_end  # async only
from goqueue.config import WorkerConfig, format_duration, settings_of
from goqueue.errors import (
    ConnectionRejectedError,
    GoQueueError,
    LeaseLostError,
    LockTimeoutError,
    OutcomeUnknownError,
    SchemaError,
)
from goqueue.models import Backoff, Job, JobFilter, Lease
from goqueue.safelog import is_enabled, log
from goqueue.storage_async import AsyncStorage
from goqueue.work import tasks  # async only
from goqueue.work.context import (
    COMPLETED,
    RELEASED,
    Attempt,
    Outcome,
    Stopped,
    current,
    end_fork,
    outcome_of,
    outcome_of_result,
)
from goqueue.work.tasks import Crew, Runner, Signal, interrupt, isolated, soon, this_runner

_log = logging.getLogger("goqueue.worker")

# The largest number of jobs in one statement.
_BATCH = 1000

# As many jobs are claimed ahead as the runners finish in this time.
_AHEAD_SECONDS = 0.2

# The mean duration is taken over about this many of the latest jobs.
_RECENT = 200

# While jobs wait in the buffer, each report waits this long for more outcomes.
_GATHER = 0.01

# The running jobs are checked at least this often, in seconds. A locked job is reported again after this pause.
_LOOK = 1.0

# If a statement fails because of one of its jobs, it is repeated in this many parts. If another transaction locks one
# of a thousand jobs, it is alone after two more lock_timeouts, and the leases of the others do not end meanwhile.
_PARTS = 32

# Longest wait for a notification before the listener checks whether the run has ended.
_SLICE = timedelta(seconds=0.1)

# At a shutdown, stopped handlers have this long to return.
_GRACE = 1.0

# When asyncio.run ends, the worker has this long to report.  # async only
_LAST = 5.0  # async only

# A runner whose handlers never wait yields to the event loop this often.  # async only
_TURN = 0.005  # async only


class AsyncRun:
    """The state and the roles of one `AsyncWorker.run`.

    Threads share the collections without locks: each access is one atomic operation of a deque, a dict or a set.
    """

    def __init__(
        self,
        store: AsyncStorage,
        config: WorkerConfig,
        handlers: Mapping[str, Callable[[Job], Any]],
        backoff: Backoff,
        worker_id: str,
        *,
        until_empty: bool,
        has_own_name: bool,
    ) -> None:
        #: The process that runs it. A fork has a copy of this object, but neither the threads nor the leases.
        self.process = os.getpid()
        self._store = store
        self._config = config
        self._handlers = handlers
        self._backoff = backoff
        self._worker_id = worker_id
        self._until_empty = until_empty
        self._has_own_name = has_own_name
        #: Attempts that are claimed and not started.
        self._buffer: deque[Attempt] = deque()
        #: Attempts whose handlers run. The code that removes one from here decides its outcome.
        self._running: dict[Attempt, Runner] = {}
        #: Attempts with an outcome that is not reported yet.
        self._outcomes: deque[Attempt] = deque()
        #: Those of them whose rows another transaction locks.
        self._locked: deque[Attempt] = deque()
        #: Attempts that are claimed and not reported. Their leases are renewed.
        self._held: set[Attempt] = set()
        #: Attempts that were stopped and whose handlers have not returned.
        self._overdue: set[Attempt] = set()
        #: When the newest of the jobs that the worker has received was claimed, by the server's clock.
        self._claimed_at = datetime.min.replace(tzinfo=UTC)
        #: When the claims were sent whose replies were lost or are still awaited.
        self._lost: list[float] = []
        #: The ``locked_at`` of the newest claim received before those, and of all claims received since.
        self._lost_since = self._claimed_at
        self._received: set[datetime | None] = set()
        self._lookup_at = inf
        #: The signals of the runners that wait for a job.
        self._idle: deque[Signal] = deque()
        self._crews = [Crew() for _ in range(5)]
        self._runners, self._claimer, self._reporter, self._late_reporter, self._others = self._crews
        self._signals = [Signal() for _ in range(9)]
        self._end, self._room, self._news, self._retry, self._late = self._signals[:5]
        self._keeping, self._watching, self._rescuing, self._listening = self._signals[5:]
        self._wake_all = soon(self._set_all)
        self._is_stopping = self._is_drained = self._is_reported = self._is_over = False
        #: Whether a role was cancelled, as all are when asyncio.run ends. The shutdown then reports.  # async only
        self._is_cancelled = False  # async only
        self._wants_room = self._wants_news = False
        self._ahead, self._busy, self._count = 0, 0.0, 0.0
        self._report_until = inf
        self._completed = 0
        #: By role, the number of failed calls in a row while the storage is unavailable.
        self._failing: dict[str, int] = {}
        self._error: BaseException | None = None

    async def run(self) -> int:
        """Run until `stop`. Return the number of jobs completed."""
        config = self._config
        settings = (
            (setting.name, setting.shown(getattr(config, setting.name))) for setting in settings_of(WorkerConfig)
        )
        said = ", ".join(f"{name} {value}" for name, value in settings)
        _say(logging.INFO, "worker %s starts: %s", self._worker_id, said, worker_id=self._worker_id)
        try:
            for number in range(config.concurrency):
                self._runners.start(f"goqueue-runner-{number}", partial(self._guarded, self._work))
            self._claimer.start("goqueue-claimer", partial(self._guarded, self._claim))
            self._reporter.start("goqueue-reporter", partial(self._guarded, self._report))
            self._late_reporter.start("goqueue-late-reporter", partial(self._guarded, self._report_locked))
            roles = (self._keep, self._watch, self._rescue, self._listen)
            for name, role in zip(("keeper", "watcher", "rescuer", "listener"), roles, strict=True):
                self._others.start(f"goqueue-{name}", partial(self._guarded, role))
            while not self._is_stopping:
                await self._end.wait()
            await self._shut_down(self._config.shutdown_timeout.total_seconds())
        except asyncio.CancelledError:  # async only
            self.stop()  # async only
            await to_the_end(self._shut_down(0.0))  # async only
            raise  # async only
        finally:
            self._is_stopping = self._is_drained = self._is_reported = self._is_over = True
            self._set_all()
            for crew in self._crews:  # async only
                crew.cancel()  # async only
        if self._error is not None:
            raise self._error
        return self._completed

    def stop(self) -> None:
        """End the run. Any thread can call this."""
        self._is_stopping = True
        self._wake_all()

    def _set_all(self) -> None:
        for signal in self._signals:
            signal.set()

    async def _shut_down(self, seconds: float) -> None:
        deadline = self._report_until = monotonic() + seconds
        _say(logging.INFO, "worker %s stops; running jobs: %s", self._worker_id, len(self._running))
        self._release_buffer(0)
        await self._runners.join(seconds)
        for attempt in self._running.copy():
            self._give_up(attempt, "shutdown", RELEASED)
        if self._overdue:
            await self._runners.join(_GRACE)
        await self._claimer.join()
        self._release_buffer(0)
        self._report_until = max(deadline, monotonic())
        self._is_drained = True
        self._news.set()
        await self._reporter.join()
        self._is_reported = True
        self._late.set()
        await self._late_reporter.join()
        if self._is_cancelled:  # async only
            with suppress(TimeoutError, GoQueueError):  # async only
                async with asyncio.timeout(_LAST):  # async only
                    await self._report_rest()  # async only
        self._is_over = True
        self._set_all()
        await self._others.join()
        _say(
            logging.INFO,
            "worker %s has stopped; jobs completed: %s, left behind: %s",
            *(self._worker_id, self._completed, len(self._held) + len(self._overdue)),
            worker_id=self._worker_id,
        )

    async def _report_rest(self) -> None:  # async only
        """Do the work of the claimer and the reporter that were cancelled."""  # async only
        self._outcomes = deque(attempt for attempt in self._held if attempt.outcome is not None)  # async only
        await self._report()  # async only
        if self._lost and self._has_own_name:  # async only
            await self._take_lost()  # async only
            self._release_buffer(0)  # async only
            await self._report()  # async only

    async def _guarded(self, role: Callable[[], Awaitable[None]]) -> None:
        try:
            await role()
        except asyncio.CancelledError:  # async only
            self._is_cancelled = True  # async only
            self.stop()  # async only
            raise  # async only
        except BaseException as error:  # noqa: BLE001 - the run ends and raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the run with this error."""
        if self._error is None:
            self._error = error
        self.stop()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Call the handlers of buffered jobs, until the worker stops. Each runner runs this."""
        buffer, running, wake, me = self._buffer, self._running, Signal(), this_runner()
        self._signals.append(wake)
        turn = 0.0  # async only
        while not self._is_stopping:
            try:
                attempt = buffer.popleft()
            except IndexError:
                await self._wait_for_job(wake)
                continue
            if buffer and self._idle:
                self._wake_runner()
            if self._wants_room and len(buffer) <= self._ahead // 2:
                self._room.set()
            attempt.started = started = monotonic()
            running[attempt] = me
            if attempt.stopped is not None or started >= attempt.expires:
                self._skip(attempt)
                continue
            outcome = await isolated(self._handle, attempt)
            ended = monotonic()
            if running.pop(attempt, None) is None:  # the attempt was given up in the meantime
                self._overdue.discard(attempt)
                tasks.resume(me)  # async only
                continue
            attempt.seconds = ended - started
            self._decide(attempt, outcome)
            if outcome is not COMPLETED or is_enabled(_log, logging.INFO):
                self._log_end(attempt)
            if ended > turn:  # async only
                await asyncio.sleep(0)  # async only
                turn = monotonic() + _TURN  # async only

    async def _wait_for_job(self, wake: Signal) -> None:
        self._idle.append(wake)
        if self._wants_room:
            self._room.set()
        # Checked again: a job that arrived before the line above has not woken this runner.
        if not self._buffer and not self._is_stopping:
            await wake.wait()
        with suppress(ValueError):  # the waker has removed it
            self._idle.remove(wake)

    def _wake_runner(self) -> None:
        with suppress(IndexError):  # no runner is idle
            self._idle.pop().set()

    async def _handle(self, attempt: Attempt) -> Outcome:
        """Call the handler. Return the outcome of the attempt."""
        job = attempt.job
        handler = self._handlers.get(job.job_type)
        if handler is None:
            names = ", ".join(sorted(self._handlers))
            text = f"no handler for the job type {job.job_type!r}; this worker has {names}"
            return Outcome("failed", text, None, "it has no handler")
        current.set(attempt)
        if is_enabled(_log, logging.DEBUG):
            _say(logging.DEBUG, "job %s (%s) starts", job.id, job.job_type, **self._fields(attempt))
        try:
            try:
                result = handler(job)
                if hasattr(type(result), "__await__"):  # async only
                    result = await result  # async only
            finally:
                if os.getpid() != self.process:
                    end_fork()
            return COMPLETED if result is None else outcome_of_result(result)
        except asyncio.CancelledError:  # async only
            raise  # async only
        except (KeyboardInterrupt, SystemExit) as error:
            self._fail(error)
            return outcome_of(error)
        except BaseException as error:  # noqa: BLE001 - a handler can raise anything
            return outcome_of(error)

    def _decide(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.outcome = outcome
        self._outcomes.append(attempt)
        if self._wants_news:
            self._news.set()

    def _skip(self, attempt: Attempt) -> None:
        """Drop a job whose lease is lost or has expired: another worker can have it."""
        self._running.pop(attempt, None)
        self._overdue.discard(attempt)
        if attempt.stopped is None:
            self._warn("the lease of job %s (%s) expired before the job could start", attempt)
            self._decide(attempt, RELEASED)

    def _give_up(self, attempt: Attempt, reason: Stopped, outcome: Outcome | None) -> bool:
        """Stop an attempt, and report ``outcome`` if given. What the handler then returns or raises is ignored.

        Return True if the handler was running.
        """
        self._overdue.add(attempt)
        attempt.stop(reason)
        runner = self._running.pop(attempt, None)
        if outcome is None:
            self._held.discard(attempt)
        if runner is None:  # the handler has not started, or has just returned
            self._overdue.discard(attempt)
            return False
        if outcome is not None:
            attempt.seconds = monotonic() - attempt.started
            self._decide(attempt, outcome)
        interrupt(runner)
        if len(self._overdue) >= self._config.concurrency and not self._is_stopping:
            _say(logging.ERROR, "handlers that should stop occupy all %s slots", self._config.concurrency)
        return True

    # --- claims -------------------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        """Keep the buffer filled. Without due jobs, wait for a notification, the next job's time or the next poll."""
        config = self._config
        while not self._is_stopping:
            if len(self._buffer) > self._most_ahead():
                self._release_buffer(self._ahead)
            is_lookup = monotonic() >= self._lookup_at
            limit = self._wanted()
            if not (limit or is_lookup):
                self._wants_room = True
                if not self._wanted() and not self._is_stopping:
                    await self._room.wait(self._until_lookup())
                self._wants_room = False
                continue
            was_quiet, sent = not self._held, monotonic()
            try:
                if is_lookup:
                    await self._take_lost()
                    continue
                jobs = await self._claim_jobs(limit, sent)
            except GoQueueError as error:
                await self._room.wait(self._pause_after("claims", error))
                continue
            self._recovered("claims")
            if jobs:
                self._take(jobs, sent + config.lease.total_seconds())
            elif self._until_empty and was_quiet:
                self.stop()
            else:
                poll, lookup = await self._poll_seconds(), self._until_lookup()
                await self._room.wait(poll if lookup is None else min(poll, lookup))
        if self._lost and self._failing.get("claims", 0) <= 1:  # the shutdown releases the jobs
            with suppress(GoQueueError):
                await self._take_lost()

    async def _claim_jobs(self, limit: int, sent: float) -> list[Job]:
        """Claim jobs. If the reply is lost, remember the claim."""
        self._expect(sent)
        try:
            jobs = await self._store.claim_jobs(self._config.queues, self._worker_id, limit, self._config.lease)
        except GoQueueError as error:
            if isinstance(error, OutcomeUnknownError):
                looks_up = self._has_own_name
                text = "the worker looks up its jobs" if looks_up else "its jobs return when their leases expire"
                _say(logging.WARNING, f"the reply to a claim was lost; {text}: %s", error)
                if looks_up:
                    self._lookup_at = sent
                    raise
            self._lost.pop()
            raise
        self._lost.pop()
        return jobs

    def _expect(self, sent: float) -> None:
        if not self._lost:
            self._lost_since = self._claimed_at
            self._received.clear()
        self._lost.append(sent)

    def _until_lookup(self) -> float | None:
        """Return the number of seconds until the next lookup, if one is due."""
        return None if self._lookup_at == inf else max(self._lookup_at - monotonic(), 0.0)

    async def _take_lost(self) -> None:
        """Take the jobs of claims whose replies were lost: the worker holds them in the database, and has not received
        them. All jobs of a claim have the same ``locked_at``.

        Such a claim can commit late, after a wait for a lock or a standby. So look again each time the time since the
        claim has doubled, until the leases have ended.
        """
        mine = JobFilter(locked_by=self._worker_id)
        jobs: list[Job] = []
        cursor: str | None = None
        while True:
            page = await self._store.list_jobs(mine, _BATCH, cursor, fresh=True)
            jobs += page.jobs
            if (cursor := page.next_cursor) is None:
                break
        self._recovered("claims")
        now, lease, since = monotonic(), self._config.lease.total_seconds(), self._lost_since
        found = [job for job in jobs if job.locked_at is not None and job.locked_at > since]
        self._take([job for job in found if job.locked_at not in self._received], self._lost[0] + lease)
        self._lost = [sent for sent in self._lost if now - sent < lease]
        self._lookup_at = 2 * now - self._lost[-1] if self._lost else inf

    def _wanted(self) -> int:
        """Return the number of jobs to claim; 0 while the buffer has enough."""
        waiting = len(self._buffer)
        return 0 if waiting > self._ahead // 2 else min(_BATCH, self._ahead + len(self._idle) - waiting)

    def _take(self, jobs: Collection[Job], expires: float) -> None:
        attempts = [Attempt(job=job, expires=expires) for job in jobs]
        self._claimed_at = max([self._claimed_at, *(job.locked_at for job in jobs if job.locked_at is not None)])
        if self._lost:
            self._received.update(job.locked_at for job in jobs)
        self._held.update(attempts)
        self._buffer.extend(attempts)
        if self._is_stopping:  # since the claim was sent
            self._release_buffer(0)
        self._wake_runner()

    def _release_buffer(self, rest: int) -> None:
        """Release all buffered jobs but the first ``rest``."""
        while len(self._buffer) > rest:
            try:
                attempt = self._buffer.pop()
            except IndexError:  # a runner has taken the last one
                return
            if attempt.stopped is None:
                self._decide(attempt, RELEASED)

    async def _poll_seconds(self) -> float:
        poll = self._config.poll_interval.total_seconds() * uniform(0.9, 1.1)  # noqa: S311
        try:
            at = await self._store.next_job_at(self._config.queues)
        except GoQueueError:  # the next claim handles the same error
            return poll
        # If the clocks of client and server differ, the wait is that of polling, never zero.
        seconds = poll if at is None else (at - datetime.now(UTC)).total_seconds() + 0.001
        return seconds if 0 < seconds < poll else poll

    # --- reports ------------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Report the outcomes. Each call reports all that were decided during the previous one."""
        while True:
            if self._buffer and len(self._outcomes) < _BATCH:
                await self._retry.wait(_GATHER)
            attempts: list[Attempt] = []
            try:
                while len(attempts) < _BATCH:
                    attempts.append(self._outcomes.popleft())
            except IndexError:
                pass
            if attempts:
                self._measure(attempts)
                await self._settle(attempts)
                if self._until_empty and not self._held:
                    self._room.set()
            elif self._is_drained:
                return
            else:
                self._wants_news = True
                if not self._outcomes and not self._is_drained:
                    await self._news.wait()
                self._wants_news = False

    def _measure(self, attempts: Collection[Attempt]) -> None:
        """Record the durations of the jobs that ran. Jobs released before their start have none."""
        seconds = [attempt.seconds for attempt in attempts if attempt.seconds]
        self._busy += sum(seconds)
        self._count += len(seconds)
        if self._count > _RECENT:
            self._busy, self._count = self._busy * _RECENT / self._count, _RECENT
        self._adapt()

    def _adapt(self) -> None:
        """Adapt the number of jobs claimed ahead to the durations of the recent and the running jobs."""
        now, concurrency, running = monotonic(), self._config.concurrency, self._running.copy()
        busy = self._busy + sum([now - attempt.started for attempt in running])
        finished = _AHEAD_SECONDS * concurrency * (self._count + len(running)) / max(busy, 1e-9)
        self._ahead = int(max(min(finished, _BATCH) - concurrency, 0)) if self._count else 0
        if len(self._buffer) > self._most_ahead():
            self._room.set()

    def _most_ahead(self) -> int:
        """Return the size of the buffer above which jobs are released: they take longer than expected."""
        return 4 * (self._ahead + self._config.concurrency)

    async def _report_locked(self) -> None:
        """Report the attempts whose rows another transaction locks, one at a time: no other outcome waits for them."""
        while self._locked or not self._is_reported:
            await self._late.wait(_LOOK if self._locked else None)
            if self._locked:
                await self._settle([self._locked.popleft()])

    async def _settle(self, attempts: Collection[Attempt]) -> None:
        groups: dict[tuple[str, timedelta | None], list[Attempt]] = {}
        for attempt in attempts:
            outcome = attempt.outcome or RELEASED
            groups.setdefault((outcome.kind, outcome.delay), []).append(attempt)
        for (kind, delay), group in groups.items():
            await self._settle_group(kind, delay, group)

    async def _settle_group(self, kind: str, delay: timedelta | None, attempts: list[Attempt]) -> None:
        """Report attempts of one outcome. Repeat the call until it succeeds or the leases are lost."""
        lost: Collection[Any] = ()
        is_repeated = False
        while True:
            try:
                await self._send(kind, delay, attempts)
            except LeaseLostError as error:
                lost = error.job_ids
            except GoQueueError as error:
                if isinstance(error, LockTimeoutError) or not _can_pass(error):
                    await self._report_apart(kind, delay, attempts, error)
                    return
                if (left := self._report_until - monotonic()) <= 0:
                    _say(logging.ERROR, "%s jobs could not be reported as %s: %s", len(attempts), kind, error)
                    return
                is_repeated = is_repeated or isinstance(error, OutcomeUnknownError)
                signal = self._late if attempts[0].is_locked else self._retry
                await signal.wait(min(self._pause_after("reports", error), left))
                continue
            break
        self._recovered("reports")
        self._held.difference_update(attempts)
        if kind == "completed":
            self._completed += len(attempts) - len(lost)
        if lost and (kind == "completed" or not is_repeated):  # else the first call may have reported them
            names = ", ".join(map(str, tuple(lost)[:10]))
            _say(logging.WARNING, "%s jobs were lost before they were %s: %s", len(lost), kind, names)

    def _put_off(self, attempt: Attempt, error: LockTimeoutError) -> None:
        """Let `_report_locked` report an attempt whose row is locked."""
        job, outcome = attempt.job, attempt.outcome or RELEASED
        if monotonic() >= self._report_until:
            _say(logging.ERROR, "%s jobs could not be reported as %s: %s", 1, outcome.kind, error)
            return
        self._locked.append(attempt)
        if not attempt.is_locked:
            attempt.is_locked = True
            text = "job %s (%s) is reported as %s when its row is no longer locked: %s"
            _say(logging.WARNING, text, job.id, job.job_type, outcome.kind, error, **self._fields(attempt))
            self._late.set()

    async def _send(self, kind: str, delay: timedelta | None, attempts: list[Attempt]) -> None:
        store = self._store
        jobs = [attempt.job for attempt in attempts]
        errors = [(attempt.job, attempt.outcome.error) for attempt in attempts if attempt.outcome]
        if kind == "completed":
            await store.complete_jobs(jobs)
        elif kind == "failed":
            await store.fail_jobs(errors, retry_in=delay, backoff=self._backoff)
        elif kind == "buried":
            await store.bury_jobs(errors)
        else:
            await store.release_jobs(jobs, delay=delay or timedelta(0))

    async def _report_apart(
        self, kind: str, delay: timedelta | None, attempts: list[Attempt], error: GoQueueError
    ) -> None:
        """Find the jobs that cause an error that a repetition of the whole call can't correct. Report the others."""
        if isinstance(error, (SchemaError, ConnectionRejectedError)):
            self._fail(error)
        elif len(attempts) > 1:
            for part in _parts(attempts):
                await self._settle_group(kind, delay, part)
            return
        elif isinstance(error, LockTimeoutError):
            self._put_off(attempts[0], error)
            return
        self._held.difference_update(attempts)
        names = ", ".join(str(attempt.job.id) for attempt in attempts[:10])
        _say(logging.ERROR, "%s jobs can't be reported as %s: %s; %s", len(attempts), kind, names, error)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew all leases at intervals."""
        every = self._config.heartbeat_interval.total_seconds()
        renewal = monotonic() + every
        while not self._is_over:
            if (now := monotonic()) >= renewal:
                try:
                    await self._renew(list(self._held))
                    renewal = now + every
                except GoQueueError as error:
                    renewal = now + min(every, self._pause_after("heartbeats", error))
            await self._keeping.wait(renewal - monotonic())

    async def _watch(self) -> None:
        """Stop jobs whose lease has ended, or that run too long. A heartbeat that hangs does not delay this."""
        longest = self._config.job_timeout.total_seconds()
        while not self._is_over:
            now = monotonic()
            next_check = now + min(longest, _LOOK)
            for attempt in self._running.copy():
                if now >= attempt.expires:
                    self._lose([attempt], "lease lost")
                elif now >= attempt.started + longest:
                    text = f"the job ran longer than job_timeout ({format_duration(self._config.job_timeout)})"
                    if self._give_up(attempt, "timed out", Outcome("failed", text)):
                        self._warn(f"job %s (%s) is stopped: {text}", attempt)
                else:
                    next_check = min(next_check, attempt.started + longest)
            self._adapt()
            await self._watching.wait(next_check - monotonic())

    async def _renew(self, held: list[Attempt]) -> None:
        """Renew the leases of these attempts. If another transaction locks one of the rows, renew the others."""
        sent = monotonic()
        try:
            await self._store.heartbeat_jobs([attempt.job for attempt in held], self._config.lease)
            lost: set[Any] = set()
        except LeaseLostError as error:
            # The leases, because a job can be held again under a newer one. A backend may name only the jobs.
            lost = set(error.leases or error.job_ids)
        except LockTimeoutError as error:
            if len(held) > 1:
                for part in _parts(held):
                    await self._renew(part)
            else:
                job, text = held[0].job, "the lease of job %s (%s) is not renewed: %s"
                _say(logging.WARNING, text, job.id, job.job_type, error, **self._fields(held[0]))
            return
        self._recovered("heartbeats")
        gone = []
        for attempt in held:
            if lost.isdisjoint({attempt.job.id, (attempt.job.id, attempt.job.lease_token)}):
                attempt.expires = sent + self._config.lease.total_seconds()
            else:
                gone.append(attempt)
        self._lose(gone, "lease lost")

    def _lose(self, attempts: Iterable[Attempt], reason: Stopped) -> None:
        undecided = [attempt for attempt in attempts if attempt.outcome is None]  # others may have been reported
        # Waiting jobs first, so that a runner whose handler stops does not start one of them.
        for attempt in sorted(undecided, key=self._running.__contains__):
            self._give_up(attempt, reason, None)
            self._warn(f"job %s (%s) is stopped: {reason}", attempt)

    async def _rescue(self) -> None:
        """Rescue the jobs of dead workers, at intervals."""
        every = min(max(self._config.lease.total_seconds() / 2, 1.0), 60.0)
        while not self._is_over:
            pause = every * uniform(0.75, 1.0)  # noqa: S311 - workers that started together must not stay in step
            try:
                while len(await self._store.rescue_jobs(_BATCH)) == _BATCH:
                    pass
                self._recovered("rescues")
            except GoQueueError as error:
                pause = self._pause_after("rescues", error)
            await self._rescuing.wait(pause)

    async def _listen(self) -> None:
        """Wake the claimer when jobs become ready, and stop the handlers of cancelled jobs."""
        while not self._is_over:
            try:
                async with self._store.listen(self._config.queues) as listener:
                    self._recovered("notifications")
                    while not self._is_over:
                        if await listener.wait(_SLICE):
                            self._room.set()
                        if listener.cancelled:
                            self._cancel(listener.cancelled)
            except GoQueueError as error:
                if not _can_pass(error):
                    _say(logging.WARNING, "notifications are unavailable, so the worker only polls: %s", error)
                    return
                await self._listening.wait(self._pause_after("notifications", error))

    def _cancel(self, leases: Collection[Lease]) -> None:
        held = self._held.copy()
        self._lose((one for one in held if Lease(one.job.id, one.job.lease_token) in leases), "cancelled")

    # --- errors and the log -------------------------------------------------------------------------------------------

    def _pause_after(self, role: str, error: GoQueueError) -> float:
        """Return the pause before the next try. Raise an error that a repetition can't correct."""
        if not _can_pass(error):
            raise error
        is_first = not self._failing
        count = self._failing[role] = self._failing.get(role, 0) + 1  # before the log, where another thread can run
        if is_first:
            _say(logging.WARNING, "the storage is unavailable (%s); the worker tries again: %s", role, error)
        return min(2.0 ** (count - 1), 30.0) * uniform(0.75, 1.25)  # noqa: S311

    def _recovered(self, role: str) -> None:
        if self._failing and self._failing.pop(role, 0) and not self._failing:
            _say(logging.INFO, "the storage is available again")

    def _fields(self, attempt: Attempt) -> dict[str, Any]:
        job = attempt.job
        return {
            "job_id": job.id, "job_type": job.job_type, "queue": job.queue, "attempt": job.attempts,
            "worker_id": self._worker_id,
        }  # fmt: skip

    def _warn(self, message: str, attempt: Attempt) -> None:
        _say(logging.WARNING, message, attempt.job.id, attempt.job.job_type, **self._fields(attempt))

    def _log_end(self, attempt: Attempt) -> None:
        job, outcome, milliseconds = attempt.job, attempt.outcome or COMPLETED, round(attempt.seconds * 1000, 3)
        fields = self._fields(attempt) | {"duration_ms": milliseconds}
        if outcome.reason:
            message = "job %s (%s) %s after %s ms: %s"
            _say(logging.WARNING, message, job.id, job.job_type, outcome.kind, milliseconds, outcome.reason, **fields)
        else:
            _say(logging.INFO, "job %s (%s) %s in %s ms", job.id, job.job_type, outcome.kind, milliseconds, **fields)


def _parts(attempts: list[Attempt]) -> list[list[Attempt]]:
    size = -(-len(attempts) // _PARTS)
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]


def _can_pass(error: GoQueueError) -> bool:
    return error.can_retry or isinstance(error, OutcomeUnknownError)


_say = partial(log, _log)
