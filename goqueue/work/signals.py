"""The handling of SIGTERM and SIGINT while workers run."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from time import monotonic
from typing import Any

# A repetition within this time is the same request: `timeout` signals its child, then the whole group.
_SAME_SECONDS = 0.3


@dataclass(eq=False, slots=True)
class _Run:
    stop: Callable[[], None]
    is_main: bool
    #: When a signal stopped it.
    stopped: float | None = None


# The runs of this process that a signal stops.
_runs: set[_Run] = set()

# The handlers that `_on_signal` has replaced.
_before: dict[int, Any] = {}

# The errors of those handlers at the signal that stopped the runs.
_raised: list[BaseException] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runs.clear)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """At the first SIGTERM or SIGINT, call ``stop``, then the program's previous handler, if it has set one. A later
    signal has its previous effect. If the previous handler raises, its error is raised after the last run in the main
    thread.

    Only the main thread can set signal handlers. So a signal stops the workers of other threads only while a worker
    runs in the main thread. An ignored signal stays ignored, such as SIGINT of a background job in a shell script.
    """
    run = _Run(stop, current_thread() is main_thread())
    _runs.add(run)
    try:
        if run.is_main:
            for number in (signal.SIGTERM, signal.SIGINT):
                old = signal.getsignal(number)
                if old not in (None, signal.SIG_IGN, _on_signal):  # None: set outside Python, so it can't be restored
                    _before[number] = old
                    signal.signal(number, _on_signal)
        yield
    finally:
        _runs.discard(run)
        if run.is_main and not any(other.is_main for other in _runs.copy()):
            for replaced in [number for number in _before if signal.getsignal(number) is _on_signal]:
                signal.signal(replaced, _before.pop(replaced))
            if _raised:
                raise _raised.pop()


def _on_signal(number: int, frame: Any) -> None:
    now, runs, old = monotonic(), _runs.copy(), _before.get(number, signal.SIG_DFL)
    if running := [run for run in runs if run.stopped is None]:
        for run in running:
            run.stopped = now
            run.stop()
        if callable(old) and not _is_pythons(old):
            try:
                old(number, frame)
            except BaseException as error:  # noqa: BLE001 - raised after the shutdown
                _raised[:] = [error]
    elif any(now - run.stopped <= _SAME_SECONDS for run in runs if run.stopped is not None):
        pass
    elif callable(old):
        old(number, frame)
    else:
        signal.signal(number, old)
        signal.raise_signal(number)


def _is_pythons(handler: Any) -> bool:
    """Return True for the handlers of Python and asyncio.run, which interrupt the program at Ctrl-C."""
    module = getattr(getattr(handler, "func", None), "__module__", None)
    return handler is signal.default_int_handler or module == "asyncio.runners"
