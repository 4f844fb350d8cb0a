"""Keys of new jobs that are valid for a period, such as "once an hour"."""

from datetime import UTC, datetime, timedelta

from goqueue.errors import InvalidJobError
from goqueue.validation import FIRST_TIME, check_interval, check_name, check_time, shown

_SECOND = timedelta(seconds=1)


def key_for_period(key: str, period: timedelta, time: datetime | None = None) -> str:
    """Return ``key`` with the start of the period that contains ``time``: ``report@2030-01-31T08:00:00Z``.

    ``period`` is a number of whole seconds. Periods are counted in UTC from a Monday at midnight, so hours, days and
    weeks start as in the calendar. ``time`` (aware) is by default the current time of this machine.

    As the ``idempotency_key`` of a `NewJob`, the result means one job in the period, until that job is pruned. As its
    ``unique_key``, it means one unfinished job for the period: after that job has finished, another can be created.

    Raises: `InvalidJobError`.
    """
    period = check_interval("period", period)
    if not period or period % _SECOND:
        raise InvalidJobError(f"period must be one or more whole seconds, not {shown(period)}")
    at = datetime.now(UTC) if time is None else check_time("time", time)
    start = FIRST_TIME + (at - FIRST_TIME) // period * period
    return check_name("key", f"{check_name('key', key)}@{start.replace(tzinfo=None).isoformat()}Z")
