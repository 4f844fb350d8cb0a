"""A wrongly created Struct explains how it is created."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from goqueue import Backoff, Config, DatabaseConfig, JobFilter, JobUpdate, Lease, LoggingConfig, NewJob


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: NewJob("x"),
            r"^NewJob\(\) takes keyword arguments only, as in NewJob\(job_type=\.\.\.\); its",
        ),
        (lambda: NewJob("x", queue="mail"), "keyword arguments only"),
        (lambda: JobUpdate("x"), r"as in JobUpdate\(queue=\.\.\.\)"),
        (lambda: JobFilter("x"), r"as in JobFilter\(status=\.\.\.\)"),
        (lambda: Backoff(15), r"as in Backoff\(base=\.\.\.\)"),
        (lambda: DatabaseConfig("postgresql://"), r"as in DatabaseConfig\(url=\.\.\.\)"),
        (lambda: LoggingConfig("debug"), r"as in LoggingConfig\(level=\.\.\.\)"),
        (lambda: Config(DatabaseConfig()), r"as in Config\(server=\.\.\.\)"),
        (lambda: Lease(1, 2, 3), r"at most 2 positional arguments, .* its fields are id, lease_token$"),
        (
            lambda: NewJob(typ="x"),
            r"^NewJob\(\) has no field 'typ' \(did you mean job_type\?\); its fields are job",
        ),
        (lambda: NewJob(job_type="x", key="k"), r"no field 'key' \(did you mean idempotency_key\?\)"),
        (lambda: NewJob(job_type="x", args=[]), r"no field 'args'; its fields are job_type, queue, payload"),
        (lambda: JobUpdate(state="dead"), r"no field 'state' \(did you mean status\?\)"),
        (lambda: Lease(id=1, token=2), r"no field 'token' \(did you mean lease_token\?\)"),
        (lambda: DatabaseConfig(pool_size=5), r"no field 'pool_size' \(did you mean pool_m"),
        (NewJob, r"^NewJob\(\) needs job_type; its fields are job_type, queue"),
        (Lease, r"^Lease\(\) needs id and lease_token;"),
    ],
)
def test_the_error_of_a_wrong_call_shows_a_correct_call(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(TypeError, match=said) as error:
        call()
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_other_ways_to_create_a_struct_still_work() -> None:
    job = NewJob(job_type="t", payload={"a": 1})
    assert pickle.loads(pickle.dumps(job)) == copy.deepcopy(job) == job
    assert msgspec.structs.replace(job, queue="mail").queue == "mail"
    assert msgspec.json.decode(msgspec.json.encode(job), type=NewJob) == job
    assert Lease(job.id, 1) == Lease(id=job.id, lease_token=1)
    with pytest.raises(AttributeError, match="immutable"):
        job.queue = "mail"  # type: ignore[misc]
