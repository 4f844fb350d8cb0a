-- The loose index scan behind lists, counts and pruning, written once.
--
-- Locks: none that block; it is a new object.

-- Plain SQL, so that the planner puts the scan into the statement that calls it. A name found is never empty: those
-- conditions only bound the planner's estimate, which takes each recursion for a hundred rows.
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

-- It has the rights of its caller. Where roles.sql has closed new functions to PUBLIC it must not fail until that runs again.
GRANT EXECUTE ON FUNCTION goqueue.list_lanes(goqueue.job_status[], text[], text[]) TO PUBLIC;

COMMENT ON FUNCTION goqueue.list_lanes(goqueue.job_status[], text[], text[]) IS
    'The lanes (status, job type, queue) to read for a list, but for running jobs, each with its newest job. A null argument means all that there are. One probe of jobs_list_idx each.';
