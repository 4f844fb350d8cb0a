-- Undoes V0021: restores the function and the view. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
CREATE FUNCTION goqueue.list_lanes(statuses goqueue.job_status[], queues text[], job_types text[])
RETURNS TABLE (status goqueue.job_status, job_type text, queue text, created_at timestamptz, id uuid)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    -- Each wanted status with '', which sorts before every name, then with each of its job types if none is given.
    WITH RECURSIVE every_type (status, job_type) AS (
        SELECT
            s.status,
            ''
        FROM unnest(coalesce(statuses, enum_range(NULL::goqueue.job_status))) AS s (status)
        WHERE s.status <> 'running'
        UNION
        SELECT
            e.status,
            next_type.job_type
        FROM every_type AS e
        CROSS JOIN LATERAL (
            SELECT j.job_type
            FROM goqueue.jobs AS j
            WHERE job_types IS NULL AND j.status <> 'running' AND j.status = e.status AND j.job_type > e.job_type
            ORDER BY j.status, j.job_type
            LIMIT 1
        ) AS next_type
    ),

    wanted_type AS (
        SELECT
            e.status,
            e.job_type
        FROM every_type AS e
        WHERE job_types IS NULL AND e.job_type > ''
        UNION ALL
        SELECT
            e.status,
            t.job_type
        FROM every_type AS e
        CROSS JOIN (SELECT DISTINCT u.job_type FROM unnest(job_types) AS u (job_type)) AS t
        WHERE e.job_type = ''
    ),

    -- Their queues, from the last one down: so the first job found of each is its newest. Read only if no queue is given.
    lane (status, job_type, queue, created_at, id) AS (
        SELECT
            w.status,
            w.job_type,
            last_job.queue,
            last_job.created_at,
            last_job.id
        FROM wanted_type AS w
        CROSS JOIN LATERAL (
            SELECT
                j.queue,
                j.created_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE j.status <> 'running' AND j.status = w.status AND j.job_type = w.job_type
            ORDER BY j.status DESC, j.queue DESC, j.created_at DESC, j.id DESC
            LIMIT 1
        ) AS last_job
        UNION ALL
        SELECT
            l.status,
            l.job_type,
            previous_job.queue,
            previous_job.created_at,
            previous_job.id
        FROM lane AS l
        CROSS JOIN LATERAL (
            SELECT
                j.queue,
                j.created_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE j.status <> 'running' AND j.status = l.status AND j.job_type = l.job_type AND j.queue < l.queue
            ORDER BY j.status DESC, j.queue DESC, j.created_at DESC, j.id DESC
            LIMIT 1
        ) AS previous_job
    )

    SELECT
        l.status,
        l.job_type,
        l.queue,
        l.created_at,
        l.id
    FROM lane AS l
    WHERE queues IS NULL AND l.job_type > '' AND l.queue > ''
    UNION ALL
    SELECT
        w.status,
        w.job_type,
        q.queue,
        newest_job.created_at,
        newest_job.id
    FROM wanted_type AS w
    CROSS JOIN (SELECT DISTINCT u.queue FROM unnest(queues) AS u (queue)) AS q
    CROSS JOIN LATERAL (
        SELECT
            j.created_at,
            j.id
        FROM goqueue.jobs AS j
        WHERE j.status <> 'running' AND j.status = w.status AND j.job_type = w.job_type AND j.queue = q.queue
        ORDER BY j.status DESC, j.created_at DESC, j.id DESC
        LIMIT 1
    ) AS newest_job
    WHERE q.queue > ''
$$;

-- It has the rights of its caller, so everybody can run it. roles.sql may have revoked PUBLIC's right to run new functions.
GRANT EXECUTE ON FUNCTION goqueue.list_lanes(goqueue.job_status[], text[], text[]) TO PUBLIC;

COMMENT ON FUNCTION goqueue.list_lanes(goqueue.job_status[], text[], text[]) IS
    'The lanes (status, job type, queue) to read for a list, but for running jobs, each with its newest job. A null argument means all that there are. One probe of jobs_list_idx each.';

CREATE OR REPLACE VIEW goqueue.queue_status_metrics AS
-- The lanes of finished jobs. The scan starts at running, the status before theirs.
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

DROP FUNCTION goqueue.finished_lanes(goqueue.job_status[], text[], text[]);
DELETE FROM goqueue.migration_checksums WHERE version = 21;
DELETE FROM goqueue.schema_version WHERE version = 21;
