"""A new job goes to the server through each module once, and its row comes back through one."""

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from goqueue import DatabaseConfig, NewJob
from tests.ways import WAYS, opened

PAYLOAD = {"to": "a@example.com", "lines": ["one", "zwölf"], "depth": {"a": 1}}


def entered(call: Any, job: NewJob) -> Counter[str]:
    """Return how often a module of goqueue is entered from another one with the job, its parameters or their values."""
    values = [job, job.id, job.payload, job.job_type, job.queue, job.idempotency_key]

    def is_of_the_job(value: object) -> bool:
        if isinstance(value, dict) and "job_type" in value:
            return True
        return any(value is one or (type(value) is type(one) and value == one) for one in values)

    frames: list[FrameType] = []
    found: Counter[str] = Counter()

    def module(frame: FrameType | None) -> str:
        while frame is not None and not str(frame.f_globals.get("__name__")).startswith("goqueue."):
            frame = frame.f_back
        return "" if frame is None else frame.f_globals["__name__"]

    def watch(frame: FrameType, event: str, _: object) -> None:
        name = str(frame.f_globals.get("__name__"))
        # A resumed coroutine is called again.
        if event != "call" or not name.startswith("goqueue.") or any(frame is one for one in frames):
            return
        frames.append(frame)
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x08)]
        if name != module(frame.f_back) and any(is_of_the_job(frame.f_locals.get(one)) for one in names):
            found[name.removesuffix("_async")] += 1

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_new_job_enters_no_module_twice(goqueue_database: str, way: str) -> None:
    job = NewJob(job_type="send_email", queue="letters", payload=PAYLOAD, idempotency_key="order-17")
    with opened(way, DatabaseConfig(url=goqueue_database)) as store:
        found = entered(lambda: store.call("create_job", job), job)
        assert store.call("get_job", job.id).payload == PAYLOAD
    prefix = "goqueue.postgres"
    assert found == {
        f"{prefix}.store": 1,
        f"{prefix}.new_jobs": 1,
        "goqueue.payload": 1,
        f"{prefix}.cursor": 1,
        f"{prefix}.wire": 1,
        f"{prefix}.rows": 1,
        "goqueue.safelog": 1,
    }
