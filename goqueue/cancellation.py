"""Work that ends even if its task is cancelled."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish the work even if this task is cancelled meanwhile, any number of times. Then raise the cancellation."""
    if sys.version_info >= (3, 12):  # it usually finishes at once
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
    else:
        task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled
