-- The views for exporters of metrics, on the list index. queue_stats reads the first of them.
--
-- Locks: ACCESS EXCLUSIVE on the two views, briefly. Their columns stay, and queue_status_metrics gets three more.
--
-- Their work grows with the number of queues, job types and running jobs, not with the number of jobs: loose index scans
-- find what there is, and a count ends at 1001. They take no row locks and read, like any view, with the rights of their
-- owner.

-- The pending jobs of each queue. A queue with up to 1000 of them is read once. Of a queue with more, each priority is
-- visited: its oldest due job can be of any.
CREATE VIEW goqueue.pending_metrics AS
WITH RECURSIVE pending_queue (queue) AS (
    SELECT '' -- sorts before every name
    UNION ALL
    SELECT next_queue.queue
    FROM pending_queue AS q
    CROSS JOIN LATERAL (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue > q.queue
        ORDER BY j.queue
        LIMIT 1
    ) AS next_queue
),

first_jobs AS MATERIALIZED (
    SELECT
        q.queue,
        count.jobs,
        count.ready_jobs,
        count.oldest_ready_at
    FROM pending_queue AS q
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS jobs,
            count(*) FILTER (WHERE few.scheduled_at <= statement_timestamp()) AS ready_jobs,
            min(few.scheduled_at) FILTER (WHERE few.scheduled_at <= statement_timestamp()) AS oldest_ready_at
        FROM (
            SELECT j.scheduled_at
            FROM goqueue.jobs AS j
            WHERE j.status = 'pending' AND j.queue = q.queue
            ORDER BY j.priority, j.scheduled_at, j.id
            LIMIT 1001
        ) AS few
    ) AS count
    WHERE q.queue > ''
),

-- The priorities of the queues with more, from below the smallest smallint on, each with its first job.
lane (queue, priority, scheduled_at) AS (
    SELECT
        f.queue,
        -32769,
        NULL::timestamptz
    FROM first_jobs AS f
    WHERE f.jobs > 1000
    UNION ALL
    SELECT
        l.queue,
        next_priority.priority::integer,
        next_priority.scheduled_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            j.priority,
            j.scheduled_at
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue = l.queue AND j.priority > l.priority
        ORDER BY j.priority, j.scheduled_at
        LIMIT 1
    ) AS next_priority
),

crowded AS MATERIALIZED (
    SELECT
        l.queue,
        least(sum(due.jobs), 1001)::bigint AS ready_jobs,
        min(l.scheduled_at) AS oldest_ready_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs
        FROM (
            SELECT
            FROM goqueue.jobs AS j
            WHERE
                j.status = 'pending'
                AND j.queue = l.queue
                AND j.priority = l.priority
                AND j.scheduled_at <= statement_timestamp()
            ORDER BY j.scheduled_at, j.id
            LIMIT 1001
        ) AS few
    ) AS due
    WHERE l.priority > -32769 AND l.scheduled_at <= statement_timestamp()
    GROUP BY l.queue
)

SELECT
    f.queue,
    f.jobs,
    CASE WHEN f.jobs > 1000 THEN coalesce(c.ready_jobs, 0) ELSE f.ready_jobs END AS ready_jobs,
    CASE WHEN f.jobs > 1000 THEN c.oldest_ready_at ELSE f.oldest_ready_at END AS oldest_ready_at
FROM first_jobs AS f
LEFT JOIN crowded AS c ON f.queue = c.queue;

CREATE OR REPLACE VIEW goqueue.queue_status_metrics AS
-- The finished jobs' lanes; running is the status before theirs.
WITH RECURSIVE lane (status, job_type, queue) AS (
    SELECT
        'running'::goqueue.job_status,
        '',
        ''
    UNION ALL
    SELECT
        next_lane.status,
        next_lane.job_type,
        next_lane.queue
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            j.status,
            j.job_type,
            j.queue
        FROM goqueue.jobs AS j
        WHERE j.status <> 'running' AND (j.status, j.job_type, j.queue) > (l.status, l.job_type, l.queue)
        ORDER BY j.status, j.job_type, j.queue
        LIMIT 1
    ) AS next_lane
),

counted AS MATERIALIZED (
    SELECT
        p.queue,
        'pending'::goqueue.job_status AS status,
        p.jobs,
        p.ready_jobs,
        -- An interval can't be infinite before PostgreSQL 17.
        CASE
            WHEN p.oldest_ready_at IS NOT NULL THEN greatest(p.oldest_ready_at, '0001-01-01 00:00:00+00')
        END AS oldest_ready_at,
        NULL::bigint AS expired_leases
    FROM goqueue.pending_metrics AS p
    UNION ALL
    SELECT
        j.queue,
        'running',
        count(*),
        NULL,
        NULL,
        count(*) FILTER (WHERE j.lease_expires_at <= statement_timestamp())
    FROM goqueue.jobs AS j
    WHERE j.status = 'running'
    GROUP BY j.queue
    UNION ALL
    SELECT
        l.queue,
        l.status,
        (
            SELECT count(*)
            FROM (
                SELECT
                FROM unnest(l.job_types) AS t (job_type)
                CROSS JOIN LATERAL (
                    SELECT
                    FROM goqueue.jobs AS j
                    WHERE j.status <> 'running' AND j.status = l.status AND j.job_type = t.job_type AND j.queue = l.queue
                    ORDER BY j.created_at, j.id
                    LIMIT 1001
                ) AS lane_job
                LIMIT 1001
            ) AS few
        ),
        NULL,
        NULL,
        NULL
    FROM (
        SELECT
            f.queue,
            f.status,
            array_agg(f.job_type) AS job_types
        FROM lane AS f
        WHERE f.queue > ''
        GROUP BY f.queue, f.status
    ) AS l
),

sample_size AS MATERIALIZED (
    SELECT least(100, 100 * 500 / greatest(pg_relation_size('goqueue.jobs') / 8192, 1)::real)::real AS percent
),

sampled AS MATERIALIZED (
    SELECT
        j.queue,
        j.status,
        (count(*) * 100 / (SELECT z.percent FROM sample_size AS z))::bigint AS jobs
    FROM (
        SELECT
            s.queue,
            s.status
        FROM goqueue.jobs AS s TABLESAMPLE SYSTEM ((SELECT z.percent FROM sample_size AS z))
        WHERE (SELECT max(c.jobs) FROM counted AS c) > 1000
        -- Never reached: it bounds the planner's estimate.
        LIMIT 100000
    ) AS j
    GROUP BY j.queue, j.status
)

SELECT
    q.queue,
    e.status,
    CASE WHEN c.jobs > 1000 THEN greatest(1001, s.jobs) ELSE coalesce(c.jobs, 0) END AS jobs,
    coalesce(c.jobs, 0) <= 1000 AS is_exact,
    c.ready_jobs,
    c.oldest_ready_at,
    c.expired_leases
FROM (SELECT DISTINCT c.queue FROM counted AS c) AS q
CROSS JOIN unnest(enum_range(NULL::goqueue.job_status)) AS e (status)
LEFT JOIN counted AS c ON q.queue = c.queue AND e.status = c.status
LEFT JOIN sampled AS s ON q.queue = s.queue AND e.status = s.status;

CREATE OR REPLACE VIEW goqueue.queue_metrics AS
SELECT
    s.queue,
    coalesce(max(s.ready_jobs), 0) AS ready_jobs,
    max(s.oldest_ready_at) AS oldest_ready_at,
    coalesce(extract(EPOCH FROM statement_timestamp() - max(s.oldest_ready_at)), 0)::double precision
    AS oldest_ready_age_seconds,
    coalesce(max(s.expired_leases), 0) AS expired_leases
FROM goqueue.queue_status_metrics AS s
GROUP BY s.queue;

COMMENT ON VIEW goqueue.pending_metrics IS
    'One row a queue with pending jobs. queue_status_metrics reads it.';
COMMENT ON COLUMN goqueue.pending_metrics.queue IS 'The queue''s name.';
COMMENT ON COLUMN goqueue.pending_metrics.jobs IS 'Pending jobs: exact up to 1000; 1001 means more.';
COMMENT ON COLUMN goqueue.pending_metrics.ready_jobs IS 'Pending jobs that are due: exact up to 1000; 1001 means more.';
COMMENT ON COLUMN goqueue.pending_metrics.oldest_ready_at IS
    'The time at which the oldest due job became due; null when none is due.';
COMMENT ON COLUMN goqueue.queue_status_metrics.ready_jobs IS
    'For the status pending, jobs that are due: exact up to 1000; 1001 means more. Null for other statuses.';
COMMENT ON COLUMN goqueue.queue_status_metrics.oldest_ready_at IS
    'For the status pending, the time at which the oldest due job became due. Null when none is due.';
COMMENT ON COLUMN goqueue.queue_status_metrics.expired_leases IS
    'For the status running, jobs whose holder was not heard of in time. Null for other statuses.';
