"""A table of jobs as after a busy year, generated on the server. Imports psycopg."""

from typing import Any

import psycopg

# The first queue has two fifths of the jobs, the last but one 0.2 %. The last one ("queue_99", with the job type
# "type_rare") has one job in 50,000. Each queue has four of 40 job types; each type is in about ten queues. Ages are
# spread evenly over 28 days. Ids are UUIDv7 in the order of creation, with the md5 of the job's number as random part.
_JOBS = """
INSERT INTO goqueue.jobs (
    id, queue, job_type, payload, status, priority, attempts, last_error, idempotency_key,
    locked_by, locked_at, scheduled_at, created_at, updated_at, started_at, completed_at
)
SELECT
    (
        lpad(to_hex((extract(epoch FROM d.created_at) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(d.n::text), 1, 3) || '8' || substr(md5(d.n::text), 4, 15)
    )::uuid,
    'queue_' || lpad(d.queue_no::text, 2, '0'),
    CASE WHEN d.queue_no = 99 THEN 'type_rare' ELSE 'type_' || (d.queue_no * 7 + d.type_no) %% 40 END,
    jsonb_build_object('to', 'user' || d.n || '@example.com', 'template', 'welcome', 'tries', d.n %% 7),
    d.status,
    d.n %% 3,
    (d.status <> 'pending')::integer,
    CASE WHEN d.status = 'dead' THEN 'TimeoutError: the mail server did not answer' END,
    CASE WHEN d.n %% 4 = 0 THEN 'key-' || md5(d.n::text) END,
    CASE WHEN d.status = 'running' THEN 'worker-1' END,
    CASE WHEN d.status = 'running' THEN now() END,
    CASE
        WHEN d.status = 'pending' AND d.n %% 2 = 0 THEN now() + d.luck * interval '30 days'
        ELSE d.created_at + d.luck * interval '10 minutes'
    END,
    d.created_at,
    d.created_at,
    CASE WHEN d.status <> 'pending' THEN d.created_at + interval '15 minutes' END,
    CASE WHEN d.status IN ('completed', 'dead', 'cancelled') THEN d.created_at + interval '16 minutes' END
FROM (
    SELECT
        r.n,
        r.luck,
        now() - interval '28 days' * (1 - r.n / %(rows)s::double precision) AS created_at,
        CASE WHEN r.n %% 50000 = 0 THEN 99 ELSE least(98, floor(r.a ^ 5 * 100)) END::integer AS queue_no,
        floor(r.b ^ 2 * 4)::integer AS type_no,
        CASE
            WHEN r.c < 0.75 THEN 'completed'
            WHEN r.c < 0.78 THEN 'dead'
            WHEN r.c < 0.80 THEN 'cancelled'
            WHEN r.c < 0.801 THEN 'running'
            ELSE 'pending'
        END::goqueue.job_status AS status
    FROM (
        SELECT n, random() AS a, random() AS b, random() AS c, random() AS luck
        FROM generate_series(1, %(rows)s::bigint) AS n
    ) AS r
) AS d
"""


def seed(connection: psycopg.Connection[Any], rows: int) -> None:
    """Add ``rows`` jobs, identical in every run, to an empty table. Update its statistics."""
    connection.execute("SELECT setseed(0.5)")
    # synchronous_commit must be on: VACUUM can't mark pages all-visible before the rows' commit is on disk.
    connection.execute(_JOBS, {"rows": rows})
    connection.execute("VACUUM ANALYZE goqueue.jobs")
