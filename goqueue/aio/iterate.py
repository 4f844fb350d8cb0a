"""Iterates over what is given, asynchronously. Imports nothing of goqueue."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

# How many items are taken from an iterable that never waits, until the event loop's other tasks have a turn.
_AT_ONCE = 100


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """The items, in their order, of an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for number, item in enumerate(items, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            yield item
