-- Bulk inserts: the rows of a JSON array, for the two statements that add them.
--
-- Locks: none on a table.

-- Plain SQL, so that the planner puts it into the statement that calls it.
CREATE FUNCTION goqueue.new_jobs(jobs jsonb)
RETURNS TABLE (
    id uuid,
    queue text,
    job_type text,
    payload jsonb,
    priority smallint,
    max_attempts integer,
    scheduled_at timestamptz,
    idempotency_key text
)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT
        n.id,
        coalesce(n.queue, 'default'),
        n.job_type,
        -- jsonb_to_recordset turns a JSON null into an SQL null; as a payload it is a value.
        coalesce(n.payload, 'null'::jsonb),
        coalesce(n.priority, 0::smallint),
        coalesce(n.max_attempts, 25),
        coalesce(n.scheduled_at, now() + coalesce(extract(EPOCH FROM n.delay) * interval '1 second', '0')),
        n.idempotency_key
    FROM jsonb_to_recordset(jobs) AS n (
            id uuid,
            queue text,
            job_type text,
            payload jsonb,
            priority smallint,
            max_attempts integer,
            scheduled_at timestamptz,
            delay interval,
            idempotency_key text
        )
$$;

-- It has the rights of its caller. Where roles.sql has closed new functions to PUBLIC it must not fail until that runs again.
GRANT EXECUTE ON FUNCTION goqueue.new_jobs(jsonb) TO PUBLIC;

COMMENT ON FUNCTION goqueue.new_jobs(jsonb) IS
    'The rows of a JSON array of new jobs: objects with the columns'' names, and delay (an interval) beside scheduled_at. id and job_type are required. A missing payload is JSON null; other missing columns take the table''s defaults.';
