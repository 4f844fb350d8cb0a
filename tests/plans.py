"""What the plan tests stand on: a database seeded like a busy year's, its prepared statements, what EXPLAIN says of them.

Imports goqueue.queries and psycopg.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from goqueue.queries import load_queries

TABLES = ("jobs", "job_failures")
MODES = ("force_custom_plan", "force_generic_plan")

# Queues: "queue_00" has two fifths of the jobs, "queue_98" 0.2 %, "queue_99" (type "type_rare") one in 50,000. Each has
# some four of 40 job types. 75 % are completed, 3 % dead, 2 % cancelled, one in 2000 runs (a tenth of the leases has
# expired), the others wait, half of them for later. Ages: 28 days, evenly; one job in 50 took ten days to finish.
_JOBS = """
INSERT INTO goqueue.jobs (
    id, queue, job_type, payload, status, priority, attempts, last_error, idempotency_key, lease_token,
    locked_by, locked_at, lease_expires_at, scheduled_at, created_at, updated_at, started_at, completed_at
)
SELECT
    (
        lpad(to_hex((extract(epoch FROM d.created_at) * 1000)::bigint), 12, '0')
        || '7' || substr(d.hash, 1, 3) || '8' || substr(d.hash, 4, 15)
    )::uuid,
    d.queue,
    d.job_type,
    jsonb_build_object('to', 'user' || d.n || '@example.com', 'template', 'welcome', 'tries', d.n %% 7),
    d.status,
    d.priority,
    CASE WHEN d.status = 'pending' THEN 0 WHEN d.n %% 20 = 0 THEN 2 ELSE 1 END,
    CASE WHEN d.status = 'dead' THEN 'TimeoutError: the mail server did not answer' END,
    CASE WHEN d.n %% 10 = 0 THEN 'key-' || d.n END,
    CASE WHEN d.status = 'pending' THEN 0 ELSE 1 END,
    CASE WHEN d.status = 'running' THEN 'worker-1' END,
    CASE WHEN d.status = 'running' THEN now() END,
    CASE WHEN d.status = 'running' THEN now() + CASE WHEN d.luck < 0.1 THEN '-1 hour' ELSE '1 day' END::interval END,
    CASE
        WHEN d.is_later THEN now() + interval '1 day' + d.luck * interval '30 days'
        ELSE d.created_at + d.luck * interval '10 minutes'
    END,
    d.created_at,
    d.created_at,
    CASE WHEN d.status <> 'pending' THEN d.created_at + interval '15 minutes' END,
    CASE
        WHEN d.status IN ('completed', 'dead', 'cancelled')
            THEN d.created_at + CASE WHEN d.n %% 50 = 0 THEN interval '10 days' ELSE interval '16 minutes' END
    END
FROM (
    SELECT
        r.*,
        md5(r.n::text || %(salt)s) AS hash,
        -- Made as fast as they are handled, the last one a quarter of an hour ago.
        now() - interval '20 minutes' - interval '28 days' * (1 - r.n / %(rows)s::double precision) AS created_at,
        CASE
            WHEN %(queue)s::text IS NOT NULL THEN %(queue)s::text
            WHEN r.n %% 50000 = 0 THEN 'queue_99'
            ELSE 'queue_' || lpad(least(98, floor(r.a ^ 5 * 100))::text, 2, '0')
        END AS queue,
        CASE
            WHEN r.n %% 50000 = 0 THEN 'type_rare'
            ELSE 'type_' || (least(98, floor(r.a ^ 5 * 100)) * 7 + floor(r.b ^ 2 * 4))::integer %% 40
        END AS job_type,
        CASE
            WHEN r.c < %(finished)s::double precision * 0.9375 THEN 'completed'
            WHEN r.c < %(finished)s::double precision * 0.975 THEN 'dead'
            WHEN r.c < %(finished)s::double precision THEN 'cancelled'
            WHEN r.n %% %(running_every)s::integer = 0 THEN 'running'
            ELSE 'pending'
        END::goqueue.job_status AS status
    FROM (
        SELECT
            n,
            random() AS a,
            random() AS b,
            CASE WHEN n %% %(running_every)s::integer = 0 THEN 1 ELSE random() END AS c,
            random() AS luck,
            %(priority)s::integer + n %% %(priorities)s::integer AS priority,
            random() < %(later)s::double precision AS is_later
        FROM generate_series(1, %(rows)s::bigint) AS n
    ) AS r
) AS d
"""
