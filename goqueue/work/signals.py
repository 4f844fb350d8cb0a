"""The handling of SIGTERM and SIGINT while a worker runs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from time import monotonic
from typing import Any

# A repetition within this time is the same request: `timeout` signals its child, then the whole group.
_SAME_SECONDS = 0.3


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first SIGTERM or SIGINT. A later one has the effect that it had before.

    Only the main thread can set signal handlers; in another thread this changes nothing. An ignored signal stays
    ignored, such as SIGINT of a background job in a shell script.
    """
    if current_thread() is not main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def on_signal(number: int, _frame: Any) -> None:
        if not stopped:
            stopped.append(monotonic())
            stop()
        elif monotonic() - stopped[0] > _SAME_SECONDS:
            restore()
            signal.raise_signal(number)

    stopped: list[float] = []
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old = signal.getsignal(number)
            if old not in (None, signal.SIG_IGN):  # None: set outside Python, so it can't be restored
                before[number] = old
                signal.signal(number, on_signal)
        yield
    finally:
        restore()
