"""The notifications that a connection has received, without a wait for more. Imports psycopg."""

from typing import Any

import psycopg

SECONDS = 60.0
"""How long to wait for what must come; reached only when a test fails."""


def notices(connection: psycopg.Connection[Any]) -> list[psycopg.Notify]:
    """Return what the listening connection (in autocommit) was sent since the last call, by every transaction that has
    committed. A notification of its own marks the end: the server sends them in the order of the commits."""
    connection.execute("LISTEN notices_end")
    connection.execute("NOTIFY notices_end")
    found: list[psycopg.Notify] = []
    for notice in connection.notifies(timeout=SECONDS):
        if notice.channel == "notices_end":
            return found
        found.append(notice)
    raise AssertionError(f"the end of the notifications did not come; these did: {found}")
