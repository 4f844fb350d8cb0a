"""The handling of SIGTERM and SIGINT while a worker runs."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first SIGTERM or SIGINT. A second one has the effect that it had before.

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
        if stopped:
            restore()
            signal.raise_signal(number)
        else:
            stopped.append(number)
            stop()

    stopped: list[int] = []
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old = signal.getsignal(number)
            if old not in (None, signal.SIG_IGN):  # None: set outside Python, so it can't be restored
                before[number] = old
                signal.signal(number, on_signal)
        yield
    finally:
        restore()
