"""What a DBA does to jobs with psql while clients work. Imports goqueue.testing.embedded."""

import os
import subprocess
from random import Random
from typing import Self

from tests.chaos.oracle import HAND
from tests.chaos.server import CrashingServer

_FREE = "locked_by = NULL, locked_at = NULL, lease_expires_at = NULL"
# The condition stands twice: a client may change a job between its choice and its update.
_JOBS = (
    "UPDATE goqueue.jobs SET {change} WHERE {which} "
    "AND id = ANY(ARRAY(SELECT id FROM goqueue.jobs WHERE {which} ORDER BY random() LIMIT 2))"
)


def _jobs(which: str, change: str) -> str:
    return _JOBS.format(change=change, which=which)


#: By name, statements that the schema allows.
CHANGES = {
    "set running": _jobs(
        "status <> 'running'",
        "status = 'running', locked_by = 'dba', locked_at = now(), lease_expires_at = now() + interval '0.3 s', "
        "completed_at = NULL, attempts = least(attempts + 1, max_attempts)",
    ),
    "set running without an end": _jobs(
        "status = 'pending' AND lease_token > 0",
        "status = 'running', locked_by = 'dba', locked_at = now(), attempts = attempts + 1",
    ),
    "another holder": _jobs("status = 'running'", "locked_by = locked_by || ' (dba)', locked_at = now()"),
    "set pending": _jobs("status <> 'pending'", f"status = 'pending', attempts = 0, completed_at = NULL, {_FREE}"),
    "completed": _jobs("status IN ('pending', 'running')", f"status = 'completed', completed_at = now(), {_FREE}"),
    "cancelled": _jobs("status IN ('pending', 'running')", f"status = 'cancelled', completed_at = now(), {_FREE}"),
    "lease ended": _jobs("status = 'running'", "lease_expires_at = now() - interval '1 s'"),
    "larger token": _jobs("TRUE", "lease_token = lease_token + 3"),
    "moved": _jobs("TRUE", "queue = CASE queue WHEN 'one' THEN 'two' ELSE 'one' END, priority = 1 - priority % 2"),
    "deleted": "DELETE FROM goqueue.jobs WHERE id = ANY(ARRAY(SELECT id FROM goqueue.jobs ORDER BY random() LIMIT 2))",
    "inserted": "INSERT INTO goqueue.jobs (job_type, queue) VALUES ('t', 'one'), ('t', 'two')",
}


class Psql:
    """A psql session. Use it in a ``with``."""

    def __init__(self, server: CrashingServer, url: str) -> None:
        self._process = subprocess.Popen(
            [server.bin("psql"), "--no-psqlrc", "--quiet", url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PGAPPNAME": HAND},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def run(self, *statements: str) -> bool:
        """Run statements, and return True if the last one succeeded."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for statement in (*statements, "\\echo :ERROR"):
            # A backslash command ends at its line, a statement at its semicolon.
            print(statement if statement.startswith("\\") else f"{statement};", file=self._process.stdin)
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer not in ("true", "false"):
            raise RuntimeError(f"psql ended or printed {answer!r}")
        return answer == "false"


def change(psql: Psql, chance: Random) -> str:
    """Change some jobs: at once, in a transaction that is open for a while, or in one that is rolled back."""
    [what] = chance.choices(list(CHANGES))
    match chance.randrange(10):
        case 0:
            done = psql.run("BEGIN", CHANGES[what], "ROLLBACK")
            return "rolled back" if done else "failed"
        case 1:
            # COMMIT of a failed transaction succeeds, and is a rollback.
            done = psql.run("BEGIN", CHANGES[what], "\\! sleep 0.2", "COMMIT")
            return "slowly" if done else "failed"
    return what if psql.run(CHANGES[what]) else "failed"
