-- Undoes V0017: restores the views of V0009. Run it in one transaction (psql -1 -f). The views are recreated, because one
-- loses columns; their grants are kept.
-- squawk-ignore-file ban-drop-view, renaming-object
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER VIEW goqueue.queue_metrics RENAME TO former_queue_metrics;
ALTER VIEW goqueue.queue_status_metrics RENAME TO former_queue_status_metrics;

CREATE VIEW goqueue.queue_status_metrics AS
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

-- Through arrays, so that the planner assumes ten queues of ten types instead of a hundred thousand: a plan with such
-- an estimate is compiled (jit) for longer than it runs.
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
                    -- The index's order: without it, in a table of one queue the planner expects to find a row
                    -- soon, and for a status without jobs reads the whole table.
                    ORDER BY j.status, j.created_at, j.id
                    LIMIT 1001
                ) AS found
                LIMIT 1001
            ) AS few
        ) AS jobs
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
        (count(*) * 100 / (SELECT z.percent FROM sample_size AS z))::bigint AS jobs
    FROM (
        SELECT
            s.queue,
            s.status
        FROM goqueue.jobs AS s TABLESAMPLE SYSTEM ((SELECT z.percent FROM sample_size AS z))
        WHERE (SELECT max(c.jobs) FROM counted AS c) > 1000
        -- Never reached. Without it, the planner estimates the sample as a tenth of the table.
        LIMIT 100000
    ) AS j
    GROUP BY j.queue, j.status
)

SELECT
    c.queue,
    c.status,
    CASE WHEN c.jobs > 1000 THEN greatest(c.jobs, s.jobs) ELSE c.jobs END AS jobs,
    c.jobs <= 1000 AS is_exact
FROM counted AS c
LEFT JOIN sampled AS s ON c.queue = s.queue AND c.status = s.status;

CREATE VIEW goqueue.queue_metrics AS
WITH RECURSIVE every_queue (queue) AS (
    (
        SELECT j.queue
        FROM goqueue.jobs AS j
        ORDER BY j.queue
        LIMIT 1
    )
    UNION ALL
    SELECT following.queue
    FROM every_queue AS e
    CROSS JOIN LATERAL (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE j.queue > e.queue
        ORDER BY j.queue
        LIMIT 1
    ) AS following
),

-- Through arrays, as above.
queue_list AS MATERIALIZED (
    SELECT u.queue
    FROM (SELECT array_agg(e.queue) AS queues FROM every_queue AS e) AS a
    CROSS JOIN LATERAL unnest(a.queues) AS u (queue)
),

-- The first job of each queue and priority.
lane (queue, priority, scheduled_at) AS (
    SELECT
        q.queue,
        first_job.priority,
        first_job.scheduled_at
    FROM queue_list AS q
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

ready AS MATERIALIZED (
    SELECT
        u.queue,
        u.priorities::smallint[] AS priorities,
        u.oldest_at
    FROM (
        SELECT
            array_agg(g.queue) AS queues,
            array_agg(g.priorities) AS priorities,
            array_agg(g.oldest_at) AS oldest_at
        FROM (
            SELECT
                l.queue,
                array_agg(l.priority)::text AS priorities,
                -- An interval can't be infinite before PostgreSQL 17.
                greatest(min(l.scheduled_at), '0001-01-01 00:00:00+00') AS oldest_at
            FROM lane AS l
            WHERE l.scheduled_at <= statement_timestamp()
            GROUP BY l.queue
        ) AS g
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.priorities, a.oldest_at) AS u (queue, priorities, oldest_at)
),

expired AS MATERIALIZED (
    SELECT
        j.queue,
        count(*) AS jobs
    FROM goqueue.jobs AS j
    WHERE j.status = 'running' AND j.lease_expires_at <= statement_timestamp()
    GROUP BY j.queue
)

SELECT
    q.queue,
    -- In the column list instead of a join: a query for other columns does not pay for it.
    (
        SELECT count(*)
        FROM (
            SELECT
            FROM unnest(r.priorities) AS p (priority)
            CROSS JOIN LATERAL (
                SELECT
                FROM goqueue.jobs AS j
                WHERE
                    j.status = 'pending'
                    AND j.queue = q.queue
                    AND j.priority = p.priority
                    AND j.scheduled_at <= statement_timestamp()
                ORDER BY j.scheduled_at, j.id
                LIMIT 1001
            ) AS found
            LIMIT 1001
        ) AS few
    ) AS ready_jobs,
    r.oldest_at AS oldest_ready_at,
    coalesce(extract(EPOCH FROM statement_timestamp() - r.oldest_at), 0)::double precision AS oldest_ready_age_seconds,
    coalesce(x.jobs, 0) AS expired_leases
FROM queue_list AS q
LEFT JOIN ready AS r ON q.queue = r.queue
LEFT JOIN expired AS x ON q.queue = x.queue;

COMMENT ON VIEW goqueue.queue_status_metrics IS
    'One row a queue and status, statuses without jobs included. Cheap however many jobs there are.';
COMMENT ON COLUMN goqueue.queue_status_metrics.queue IS 'The queue''s name; a queue is there while it has jobs.';
COMMENT ON COLUMN goqueue.queue_status_metrics.status IS 'See the type goqueue.job_status.';
COMMENT ON COLUMN goqueue.queue_status_metrics.jobs IS
    'How many jobs, a gauge: exact up to 1000; above that an estimate from a sample, and at least 1001.';
COMMENT ON COLUMN goqueue.queue_status_metrics.is_exact IS 'Whether jobs is exact.';
COMMENT ON VIEW goqueue.queue_metrics IS 'One row a queue. Cheap however many jobs there are.';
COMMENT ON COLUMN goqueue.queue_metrics.queue IS 'The queue''s name; a queue is there while it has jobs.';
COMMENT ON COLUMN goqueue.queue_metrics.ready_jobs IS
    'Waiting jobs that are due, a gauge: exact up to 1000; 1001 means more than that.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_at IS
    'Since when the job waits that has been due the longest; null when none is due.';
COMMENT ON COLUMN goqueue.queue_metrics.oldest_ready_age_seconds IS
    'How long that job has been due, a gauge in seconds; 0 when none is due. What to be warned of first.';
COMMENT ON COLUMN goqueue.queue_metrics.expired_leases IS
    'Running jobs whose holder was not heard of in time, a gauge: they wait for rescue_jobs.';

-- DROP removes the grants of the views. They must work even if roles.sql, which needs the newest version, does not run.
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format(
            'GRANT %s ON %s TO %s%s',
            a.privilege_type,
            v.oid::regclass,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        FROM pg_class AS v
        INNER JOIN pg_class AS former ON former.relnamespace = v.relnamespace AND former.relname = 'former_' || v.relname
        CROSS JOIN LATERAL aclexplode(former.relacl) AS a
        WHERE v.relnamespace = 'goqueue'::regnamespace AND a.grantee <> former.relowner
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;

DROP VIEW goqueue.former_queue_metrics;
DROP VIEW goqueue.former_queue_status_metrics;
DROP VIEW goqueue.pending_metrics;
DELETE FROM goqueue.migration_checksums WHERE version = 17;
DELETE FROM goqueue.schema_version WHERE version = 17;
