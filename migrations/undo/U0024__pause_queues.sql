-- Undoes V0024: no queue is paused any more. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
CREATE OR REPLACE VIEW goqueue.queue_status_metrics AS
-- The lanes of finished jobs: each queue, job type and status that has jobs. The scan starts at pending, the status before theirs.
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
FROM (SELECT DISTINCT c.queue FROM counted AS c) AS q
CROSS JOIN unnest(enum_range(NULL::goqueue.job_status)) AS e (status)
LEFT JOIN counted AS c ON q.queue = c.queue AND e.status = c.status
LEFT JOIN sampled AS s ON q.queue = s.queue AND e.status = s.status;

-- A column can't be dropped from a view, so the view is recreated.
-- squawk-ignore renaming-object
ALTER VIEW goqueue.queue_metrics RENAME TO former_queue_metrics;
CREATE VIEW goqueue.queue_metrics AS
SELECT
    s.queue,
    coalesce(max(s.ready_jobs), 0) AS ready_jobs,
    max(s.oldest_ready_at) AS oldest_ready_at,
    coalesce(extract(EPOCH FROM statement_timestamp() - max(s.oldest_ready_at)), 0)::double precision
    AS oldest_ready_age_seconds,
    coalesce(max(s.expired_leases), 0) AS expired_leases
FROM goqueue.queue_status_metrics AS s
GROUP BY s.queue;

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

-- DROP removes the grants of the view. They must work even if roles.sql, which needs the newest version, does not run.
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

-- squawk-ignore ban-drop-view
DROP VIEW goqueue.former_queue_metrics;
DROP TABLE goqueue.paused_queues;
DELETE FROM goqueue.migration_checksums WHERE version = 24;
DELETE FROM goqueue.schema_version WHERE version = 24;
