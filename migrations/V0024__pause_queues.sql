-- Paused queues: claims leave them out.
--
-- Locks: ACCESS EXCLUSIVE on the two metrics views, briefly. Their columns stay, and queue_metrics gets one more.

-- Beside the jobs: a column there would have to be in the claim index, and pausing would rewrite a queue's jobs.
CREATE TABLE goqueue.paused_queues (
    paused_until timestamptz NOT NULL DEFAULT 'infinity',
    paused_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    queue text NOT NULL,
    paused_by text NOT NULL DEFAULT current_user,

    CONSTRAINT paused_queues_pkey PRIMARY KEY (queue),
    CONSTRAINT paused_queues_queue_length CHECK (char_length(queue) BETWEEN 1 AND 255)
);

-- Claims read it, and roles.sql may not have run again. It holds no job; PUBLIC needs the schema's USAGE too.
GRANT SELECT ON goqueue.paused_queues TO PUBLIC;

COMMENT ON TABLE goqueue.paused_queues IS 'One row a paused queue. A row whose time has passed has no effect.';
COMMENT ON COLUMN goqueue.paused_queues.paused_until IS 'The end of the pause; infinity until the queue is resumed.';
COMMENT ON COLUMN goqueue.paused_queues.paused_at IS 'When the queue was last paused.';
COMMENT ON COLUMN goqueue.paused_queues.queue IS 'The queue''s name. It need not have jobs.';
COMMENT ON COLUMN goqueue.paused_queues.paused_by IS 'The role that last paused the queue (current_user).';

-- As in V0021, with the paused queues that have no jobs.
CREATE OR REPLACE VIEW goqueue.queue_status_metrics AS
-- The lanes of finished jobs: each queue, job type and status that has some. pending is the status before theirs.
WITH RECURSIVE lane (queue, job_type, status) AS (
    SELECT
        '',
        '',
        'pending'::goqueue.job_status
    UNION ALL
    SELECT
        next_lane.queue,
        next_lane.job_type,
        next_lane.status
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            j.queue,
            j.job_type,
            j.status
        FROM goqueue.jobs AS j
        WHERE j.completed_at IS NOT NULL AND (j.queue, j.job_type, j.status) > (l.queue, l.job_type, l.status)
        ORDER BY j.queue, j.job_type, j.status
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
                    WHERE j.completed_at IS NOT NULL AND j.queue = l.queue AND j.job_type = t.job_type AND j.status = l.status
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
FROM (
    SELECT c.queue FROM counted AS c
    UNION
    SELECT p.queue FROM goqueue.paused_queues AS p
    WHERE p.paused_until > statement_timestamp()
) AS q
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
    coalesce(max(s.expired_leases), 0) AS expired_leases,
    max(p.paused_until) AS paused_until
FROM goqueue.queue_status_metrics AS s
LEFT JOIN goqueue.paused_queues AS p ON s.queue = p.queue AND p.paused_until > statement_timestamp()
GROUP BY s.queue;

COMMENT ON COLUMN goqueue.queue_metrics.queue IS 'The queue''s name; a queue is there while it has jobs or is paused.';
COMMENT ON COLUMN goqueue.queue_metrics.paused_until IS
    'The end of the pause, infinity until the queue is resumed; null if the queue is not paused.';
