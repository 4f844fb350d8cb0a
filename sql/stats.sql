-- What an operator wants to see of all queues at once.


-- name: queue_stats()
-- For each queue how many jobs it has by status, how long the oldest due job waits, and how many leases have expired.
-- Returns: one row a queue, by name. A count is exact up to 1000; above that it is an estimate from some 500 randomly
-- chosen pages of the table, and at least 1001. exact_statuses names the statuses whose count is exact.
-- Index: jobs_queue_idx, at most 1001 entries a queue and status; jobs_claim_idx, two probes a queue and priority;
-- jobs_status_idx for the running jobs.
-- Locks: none.
-- Notes: The work grows with the number of queues, job types and priorities, and not with the number of jobs.
WITH RECURSIVE every_type (queue, job_type) AS (
    (
        SELECT
            j.queue,
            j.job_type
        FROM goqueue.jobs AS j
        ORDER BY j.queue, j.job_type
        LIMIT 1
    )
    UNION ALL
    SELECT
        following.queue,
        following.job_type
    FROM every_type AS e
    CROSS JOIN LATERAL (
        SELECT
            j.queue,
            j.job_type
        FROM goqueue.jobs AS j
        WHERE (j.queue, j.job_type) > (e.queue, e.job_type)
        ORDER BY j.queue, j.job_type
        LIMIT 1
    ) AS following
),

-- Through arrays, so that the planner takes the recursion for ten queues of ten types and not for a hundred thousand: a
-- plan that looks so dear is compiled (jit) for longer than it runs.
queue_types AS MATERIALIZED (
    SELECT
        u.queue,
        u.job_types::text[] AS job_types
    FROM (
        SELECT
            array_agg(g.queue) AS queues,
            array_agg(g.job_types) AS job_types
        FROM (
            SELECT
                e.queue,
                array_agg(e.job_type)::text AS job_types
            FROM every_type AS e
            GROUP BY e.queue
        ) AS g
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.job_types) AS u (queue, job_types)
),

counted AS MATERIALIZED (
    SELECT
        q.queue,
        s.status,
        (
            SELECT count(*)
            FROM (
                SELECT
                FROM unnest(q.job_types) AS t (job_type)
                CROSS JOIN LATERAL (
                    SELECT
                    FROM goqueue.jobs AS j
                    WHERE j.queue = q.queue AND j.job_type = t.job_type AND j.status = s.status
                    LIMIT 1001
                ) AS found
                LIMIT 1001
            ) AS few
        ) AS job_count
    FROM queue_types AS q
    CROSS JOIN unnest(enum_range(NULL::goqueue.job_status)) AS s (status)
),

sample_size AS MATERIALIZED (
    SELECT least(100, 100 * 500 / greatest(pg_relation_size('goqueue.jobs') / 8192, 1)::real)::real AS percent
),

sampled AS MATERIALIZED (
    SELECT
        j.queue,
        j.status,
        (count(*) * 100 / (SELECT z.percent FROM sample_size AS z))::bigint AS job_count
    FROM (
        SELECT
            s.queue,
            s.status
        FROM goqueue.jobs AS s TABLESAMPLE SYSTEM ((SELECT z.percent FROM sample_size AS z)) -- noqa: PRS
        WHERE (SELECT max(c.job_count) FROM counted AS c) > 1000
        -- Never reached; without it the planner takes the sample for a tenth of the table.
        LIMIT 100000
    ) AS j
    GROUP BY j.queue, j.status
),

lane (queue, priority, scheduled_at) AS (
    SELECT
        q.queue,
        first_job.priority,
        first_job.scheduled_at
    FROM queue_types AS q
    CROSS JOIN LATERAL (
        SELECT
            j.priority,
            j.scheduled_at
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue = q.queue
        ORDER BY j.priority, j.scheduled_at
        LIMIT 1
    ) AS first_job
    UNION ALL
    SELECT
        l.queue,
        first_job.priority,
        first_job.scheduled_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            j.priority,
            j.scheduled_at
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue = l.queue AND j.priority > l.priority
        ORDER BY j.priority, j.scheduled_at
        LIMIT 1
    ) AS first_job
),

waiting AS (
    SELECT
        l.queue,
        -- An interval can't be endless before PostgreSQL 17, and Python's never is.
        statement_timestamp() - greatest(min(l.scheduled_at), '0001-01-01 00:00:00+00') AS oldest_ready_age
    FROM lane AS l
    WHERE l.scheduled_at <= statement_timestamp()
    GROUP BY l.queue
),

expired AS (
    SELECT
        j.queue,
        count(*) AS job_count
    FROM goqueue.jobs AS j
    WHERE j.status = 'running' AND j.lease_expires_at <= statement_timestamp()
    GROUP BY j.queue
),

by_status AS (
    SELECT
        c.queue,
        c.status,
        CASE WHEN c.job_count > 1000 THEN greatest(c.job_count, s.job_count) ELSE c.job_count END AS job_count,
        c.job_count <= 1000 AS is_exact
    FROM counted AS c
    LEFT JOIN sampled AS s ON c.queue = s.queue AND c.status = s.status
)

SELECT
    b.queue,
    max(b.job_count) FILTER (WHERE b.status = 'pending') AS pending,
    max(b.job_count) FILTER (WHERE b.status = 'running') AS running,
    max(b.job_count) FILTER (WHERE b.status = 'completed') AS completed,
    max(b.job_count) FILTER (WHERE b.status = 'dead') AS dead,
    max(b.job_count) FILTER (WHERE b.status = 'cancelled') AS cancelled,
    coalesce(array_agg(b.status::text ORDER BY b.status) FILTER (WHERE b.is_exact), '{}') AS exact_statuses,
    max(w.oldest_ready_age) AS oldest_ready_age,
    coalesce(max(x.job_count), 0) AS expired_leases
FROM by_status AS b
LEFT JOIN waiting AS w ON b.queue = w.queue
LEFT JOIN expired AS x ON b.queue = x.queue
GROUP BY b.queue
ORDER BY b.queue;
