"""A connection between client and server that can lose data, for tests of lost replies. Imports psycopg."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_READY = b"Z\x00\x00\x00\x05"  # the head of ReadyForQuery, which ends every reply


class Proxy:
    """Transfers bytes between ``url`` and the server of ``target``, with one thread per connection."""

    def __init__(self, target: str, listening: socket.socket) -> None:
        self._target = conninfo_to_dict(target)
        self._listening = listening
        self._lose: bytes | None = None
        self._keep_request = False
        self._open: set[socket.socket] = set()
        self._refuses = False
        #: Set when a connection was cut.
        self.lost = threading.Event()
        port = listening.getsockname()[1]
        #: The URL through the proxy.
        self.url = make_conninfo(target, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")

    def lose_reply(self, request: bytes) -> None:
        """Cut the next connection whose request has these bytes, after the server's answer and before its delivery."""
        self._lose, self._keep_request = request, False
        self.lost.clear()

    def lose_request(self, request: bytes) -> None:
        """Cut the next connection whose request has these bytes, before the server sees it."""
        self._lose, self._keep_request = request, True
        self.lost.clear()

    def cut(self) -> None:
        """Close all connections."""
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Close all connections, and new ones until `accept`."""
        self._refuses = True
        self.cut()

    def accept(self) -> None:
        """Forward new connections again."""
        self._refuses = False

    def move(self, target: str) -> None:
        """Forward new connections to another server."""
        self._target = conninfo_to_dict(target)
        self.accept()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:  # the server is away
            client.close()
            return
        with client, server:
            self._open.add(client)
            if self._refuses:  # since it was accepted
                return
            is_losing = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    try:
                        data = ready.recv(1 << 20)
                        if not data:
                            return
                        if ready is client and self._lose is not None and self._lose in data:
                            self._lose, is_losing = None, True
                            self.lost.set()
                            if self._keep_request:
                                return
                        if ready is client:
                            server.sendall(data)
                        elif not is_losing:
                            client.sendall(data)
                        elif data[-6:-1] == _READY:
                            return
                    except OSError:
                        return

    def _connect(self) -> socket.socket:
        host, port = str(self._target.get("host") or "127.0.0.1"), int(self._target.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{host}/.s.PGSQL.{port}")
        return connection


@contextmanager
def running(target: str) -> Iterator[Proxy]:
    """Start a proxy to the server of this connection string."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        proxy = Proxy(target, listening)
        thread = threading.Thread(target=proxy.serve, daemon=True)
        thread.start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
