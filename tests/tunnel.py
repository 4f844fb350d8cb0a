"""A TCP tunnel to the test server that can go silent: it stays open, and the kernel acknowledges the data sent into it.

Imports psycopg, for the server's address.
"""

import socket
import threading
import time
from contextlib import suppress
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Tunnel:
    """Forwards each connection to the server of ``url``; use it in a ``with``. ``self.url`` is the URL through it."""

    def __init__(self, url: str) -> None:
        server = conninfo_to_dict(url)
        host, port = str(server.get("host", "")), int(server.get("port") or 5432)
        self._target = (f"{host}/.s.PGSQL.{port}",) if host.startswith("/") else (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.url = make_conninfo(url, host="127.0.0.1", port=self.port)
        self._open: list[socket.socket] = []
        self._changing = threading.Lock()
        self._closed = False
        self._thaw()

    def _thaw(self) -> None:
        self._silent, self._answers_lost = False, False
        self._silent_at: bytes | None = None
        self._bytes_left: int | None = None
        self._pause = 0.0

    def freeze(self) -> None:
        """Stop forwarding. New connections are accepted and left waiting."""
        self._silent = True

    def freeze_at(self, sent: bytes) -> None:
        """Freeze when a client sends this text, before the server receives it."""
        self._silent_at = sent

    def freeze_after(self, count: int) -> None:
        """Let each connection receive that many bytes from the server, and then nothing."""
        self._bytes_left = count

    def lose_answers(self) -> None:
        """Forward what clients send, and return nothing."""
        self._answers_lost = True

    def trickle(self, seconds: float) -> None:
        """Return answers byte by byte, with this pause in between."""
        self._pause = seconds

    def thaw(self) -> None:
        """Forward again, but only new connections."""
        self._hang_up()
        self._thaw()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        self._listening.close()
        self._hang_up()

    def _hang_up(self) -> None:
        with self._changing:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # a thread in recv keeps a socket open if it is only closed
                one.close()
            self._open.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            kind = socket.AF_UNIX if len(self._target) == 1 else socket.AF_INET
            server = socket.socket(kind)
            server.connect(self._target[0] if len(self._target) == 1 else self._target)
            with self._changing:
                self._open += [client, server]
            if self._closed:  # meanwhile
                self._hang_up()
                return
            threading.Thread(target=self._send, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                if self._silent_at is not None and self._silent_at in data:
                    self._silent = True
                self._wait_while(lambda: self._silent, client)
                server.sendall(data)
            server.close()
        except OSError:
            pass

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        count = 0
        try:
            while data := server.recv(65536):
                self._wait_while(lambda: self._silent or self._answers_lost, client)
                if self._bytes_left is not None:
                    data = data[: max(0, self._bytes_left - count)]
                    count += len(data)
                if self._pause:
                    for byte in data:
                        client.sendall(bytes([byte]))
                        time.sleep(self._pause)
                else:
                    client.sendall(data)
            client.close()
        except OSError:
            pass

    @staticmethod
    def _wait_while(condition: object, client: socket.socket) -> None:
        while condition():  # type: ignore[operator]
            if client.fileno() < 0:
                raise OSError("hung up")
            time.sleep(0.01)
