"""A proxy that cuts each connection at one message of PostgreSQL's protocol, in one of five ways. Imports asyncio only.

It runs in a thread of its own, so that a synchronous fault can start it.
"""

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple, Self

#: What happens to the connection. rst and fin: both sides are closed. half: half of the message arrives, then rst.
#: silence: nothing is read or sent any more. sink: everything is read, nothing is sent.
WAYS = ("rst", "fin", "half", "silence", "sink")
_WEIGHTS = (3, 3, 3, 1, 1)
# Seconds until the server notices that a silent peer is gone.
_HOLD = 3.0
# Messages while a connection begins; the cuts there get a share of their own.
_BEGINNING = 12
_NAME = re.compile(rb"goqueue:(\w+)")


class Cut(NamedTuple):
    """The cut of a connection: at the message of this number from ``side``, before or after it is forwarded."""

    side: str
    number: int
    way: str
    is_before: bool


class Proxy:
    """Forwards connections to ``target()``: a host and a port, or the path of a socket. Use it in a ``with``.

    ``every`` is the mean number of messages until a connection is cut; 0 for no cuts but those that ``arm`` plans.
    """

    def __init__(self, target: Callable[[], tuple[str, int] | str], chance: Random, every: int) -> None:
        self._target = target
        self._chance = chance
        self.every = every
        self.port = 0
        self._armed: Cut | None = None
        #: The messages since ``arm``: the side and the kind of each.
        self.seen: list[tuple[str, str]] = []
        #: The number of cuts by (operation, side, kind of message, way, before or after).
        self.cuts: Counter[tuple[str, str, str, str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def calm(self) -> None:
        """Cut no connection any more, and close all that exist: some are silent."""
        self.every = 0
        self._armed = None
        self._run(self._close_all())

    def arm(self, cut: Cut | None) -> None:
        """Count the messages of each connection from now on, and make this cut where a count reaches its number."""
        self._run(self._arm(cut))

    async def _arm(self, cut: Cut | None) -> None:
        self._armed, self.seen = cut, []
        for link in self._links:
            link.begin(cut)

    def cuts_on(self, cut: Cut) -> bool:
        """Return True if this cut may be made. One of ``arm`` is made once."""
        if cut is self._armed:
            self._armed = None
            return True
        return self.every > 0

    def _run(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _close_all(self) -> None:
        for link in list(self._links):
            link.close()

    async def _stop(self) -> None:
        self._server.close()
        await self._close_all()
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _planned(self) -> Cut | None:
        chance = self._chance
        if not self.every:
            return self._armed
        number = chance.randint(1, _BEGINNING)
        if chance.random() < 0.8:
            number = _BEGINNING + 1 + int(chance.expovariate(1 / self.every))
        [way] = chance.choices(WAYS, _WEIGHTS)
        return Cut(chance.choice(("client", "server")), number, way, way == "half" or chance.random() < 0.5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self._target()
        try:
            opening = (
                asyncio.open_unix_connection(target) if isinstance(target, str) else asyncio.open_connection(*target)
            )
            server_reader, server_writer = await opening
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, self._planned(), writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                link.carry("client", reader, server_writer), link.carry("server", server_reader, writer)
            )
            await link.ended()
        except asyncio.CancelledError:  # by _stop; the stream's callback would print it
            pass
        finally:
            link.close()
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, cut: Cut | None, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._cut = cut
        self._client = client
        self._server = server
        self._count = {"client": 0, "server": 0}
        self._is_cut = self._is_silent = False
        self._is_closed = asyncio.Event()
        # The operation of each prepared statement, and the one that runs.
        self._names: dict[bytes, str] = {}
        self._operation = "connect"

    def begin(self, cut: Cut | None) -> None:
        """Count from here to a cut."""
        self._cut = cut
        self._count = {"client": 0, "server": 0}

    def close(self) -> None:
        for writer in (self._client, self._server):
            writer.transport.abort()
        self._is_closed.set()

    async def ended(self) -> None:
        """Wait until a silent connection is closed."""
        if self._is_cut:
            await self._is_closed.wait()

    async def carry(self, side: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        messages = _Messages(has_start=side == "client")
        try:
            while data := await reader.read(1 << 16):
                for message in messages.complete(data):
                    if not self._is_cut:
                        await self._forward(side, message, writer)
                await writer.drain()
                if self._is_silent:
                    return
            if not self._is_cut:
                writer.close()
        except OSError:
            pass

    async def _forward(self, side: str, message: bytes, writer: asyncio.StreamWriter) -> None:
        if side == "client":
            self._follow(message)
        self._count[side] += 1
        self._proxy.seen.append((side, _kind(message)))
        cut = self._cut
        if cut is None or cut.side != side or self._count[side] < cut.number or not self._proxy.cuts_on(cut):
            writer.write(message)
            return
        if cut.way == "half":
            writer.write(message[: max(1, len(message) // 2)])
        elif not cut.is_before:
            writer.write(message)
        await writer.drain()
        moment = "at" if cut.way == "half" else "before" if cut.is_before else "after"
        self._proxy.cuts[self._operation, side, _kind(message), cut.way, moment] += 1
        self._is_cut, self._is_silent = True, cut.way == "silence"
        if cut.way in ("rst", "half"):
            for one in (self._client, self._server):
                _reset_on_close(one)
            self.close()
        elif cut.way == "fin":
            self._client.close()
            self._server.close()
        else:
            asyncio.get_running_loop().call_later(_HOLD, self.close)

    def _follow(self, message: bytes) -> None:
        """Remember which operation the client runs: Parse and Query have its text, Bind has the statement's name."""
        kind, body = message[:1], message[5:]
        if kind == b"P":
            name, _, text = body.partition(b"\0")
            self._operation = self._names[name] = _operation(text)
        elif kind == b"Q":
            self._operation = _operation(body)
        elif kind == b"B":
            self._operation = self._names.get(body.split(b"\0", 2)[1], "?")


class _Messages:
    """Splits a stream into messages. The client's first one has no type."""

    def __init__(self, *, has_start: bool) -> None:
        self._data = bytearray()
        self._is_start = has_start

    def complete(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while True:
            head = 0 if self._is_start else 1
            if len(self._data) < head + 4:
                return
            length = head + int.from_bytes(self._data[head : head + 4])
            if len(self._data) < length:
                return
            message = bytes(self._data[:length])
            del self._data[:length]
            self._is_start = False
            yield message


def _operation(text: bytes) -> str:
    if found := _NAME.search(text[:200]):
        return found[1].decode()
    return text.split(None, 1)[0].decode(errors="replace").rstrip("\0") if text.strip() else "?"


def _kind(message: bytes) -> str:
    return message[:1].decode("ascii", "replace") if message[0] else "start"


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
