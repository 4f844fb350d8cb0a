-- The loose index scan that claims and next_job_at share.
--
-- Locks: none that block; it is a new object.

-- Plain SQL, so that the planner puts the scan into the statement that calls it.
CREATE FUNCTION goqueue.pending_lanes(queues text[])
RETURNS TABLE (queue text, priority smallint, scheduled_at timestamptz, id uuid)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH RECURSIVE lane (queue, priority, scheduled_at, id) AS (
        SELECT
            q.queue,
            first_job.priority,
            first_job.scheduled_at,
            first_job.id
        FROM (SELECT DISTINCT u.queue FROM unnest(queues) AS u (queue)) AS q
        CROSS JOIN LATERAL (
            SELECT
                j.priority,
                j.scheduled_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE j.status = 'pending' AND j.queue = q.queue
            ORDER BY j.priority, j.scheduled_at, j.id
            LIMIT 1
        ) AS first_job
        UNION ALL
        SELECT
            l.queue,
            first_job.priority,
            first_job.scheduled_at,
            first_job.id
        FROM lane AS l
        CROSS JOIN LATERAL (
            SELECT
                j.priority,
                j.scheduled_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE j.status = 'pending' AND j.queue = l.queue AND j.priority > l.priority
            ORDER BY j.priority, j.scheduled_at, j.id
            LIMIT 1
        ) AS first_job
    )

    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id
    FROM lane AS l
$$;

-- Granted here, because roles.sql may have taken the default right from new functions, and claims must go on until it runs again.
GRANT EXECUTE ON FUNCTION goqueue.pending_lanes(text[]) TO PUBLIC;

COMMENT ON FUNCTION goqueue.pending_lanes(text[]) IS
    'Each queue and priority that has pending jobs, with the first of them. One probe of jobs_claim_idx each.';
