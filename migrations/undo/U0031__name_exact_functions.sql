-- Undoes V0031: restores the functions of V0010, V0014, V0021 and V0026. Run it in one transaction (psql -1 -f).
SET LOCAL search_path = pg_catalog, pg_temp;
CREATE OR REPLACE FUNCTION goqueue.pending_lanes(queues text[])
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

CREATE OR REPLACE FUNCTION goqueue.finished_lanes(statuses goqueue.job_status[], queues text[], job_types text[])
RETURNS TABLE (queue text, job_type text, status goqueue.job_status)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH RECURSIVE found_type (job_type) AS (
        SELECT '' -- sorts before every name
        WHERE job_types IS NULL
        UNION ALL
        SELECT next_type.job_type
        FROM found_type AS f
        CROSS JOIN LATERAL (
            SELECT j.job_type
            FROM goqueue.jobs AS j
            WHERE j.completed_at IS NOT NULL AND j.job_type > f.job_type
            ORDER BY j.job_type
            LIMIT 1
        ) AS next_type
    )

    SELECT
        q.queue,
        t.job_type,
        s.status
    FROM (
        SELECT f.job_type
        FROM found_type AS f
        WHERE f.job_type > ''
        UNION ALL
        SELECT DISTINCT u.job_type
        FROM unnest(job_types) AS u (job_type)
    ) AS t
    CROSS JOIN (SELECT DISTINCT u.queue FROM unnest(coalesce(queues, ARRAY[NULL])) AS u (queue)) AS q
    CROSS JOIN unnest(enum_range(NULL::goqueue.job_status)) AS s (status)
    WHERE s.status NOT IN ('pending', 'running') AND (statuses IS NULL OR s.status = ANY(statuses))
$$;

CREATE OR REPLACE FUNCTION goqueue.new_jobs(jobs jsonb)
RETURNS TABLE (
    id uuid,
    queue text,
    job_type text,
    payload jsonb,
    priority smallint,
    max_attempts integer,
    scheduled_at timestamptz,
    idempotency_key text,
    unique_key text
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
        n.idempotency_key,
        n.unique_key
    FROM jsonb_to_recordset(jobs) AS n (
            id uuid,
            queue text,
            job_type text,
            payload jsonb,
            priority smallint,
            max_attempts integer,
            scheduled_at timestamptz,
            delay interval,
            idempotency_key text,
            unique_key text
        )
$$;

CREATE OR REPLACE FUNCTION goqueue.delete_unreferenced_jobs(ids uuid[]) RETURNS TABLE (id uuid, refusal text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deleted_ids uuid[];
    foreign_key record;
BEGIN
    BEGIN
        WITH deleted_job AS (
            DELETE FROM goqueue.jobs AS j
            WHERE j.id = ANY(ids)
            RETURNING j.id
        )

        SELECT array_agg(d.id) INTO deleted_ids
        FROM deleted_job AS d;
        DELETE FROM goqueue.job_failures AS f
        WHERE f.job_id = ANY(deleted_ids);
        FOR foreign_key IN
            SELECT
                c.condeferred AS is_deferred,
                format('%I.%I', n.nspname, c.conname) AS name
            FROM pg_constraint AS c
            INNER JOIN pg_namespace AS n ON c.connamespace = n.oid
            WHERE c.confrelid = 'goqueue.jobs'::regclass AND c.condeferrable
        LOOP
            EXECUTE format('SET CONSTRAINTS %s IMMEDIATE', foreign_key.name);
            IF foreign_key.is_deferred THEN
                EXECUTE format('SET CONSTRAINTS %s DEFERRED', foreign_key.name);
            END IF;
        END LOOP;
    EXCEPTION WHEN integrity_constraint_violation OR raise_exception THEN
        IF cardinality(ids) = 1 THEN
            RETURN QUERY SELECT
                ids[1],
                SQLERRM;
        ELSE
            RETURN QUERY SELECT d.id, d.refusal
            FROM goqueue.delete_unreferenced_jobs(ids[:cardinality(ids) / 2]) AS d;
            RETURN QUERY SELECT d.id, d.refusal
            FROM goqueue.delete_unreferenced_jobs(ids[cardinality(ids) / 2 + 1:]) AS d;
        END IF;
        RETURN;
    END;
    RETURN QUERY SELECT
        d.id,
        NULL::text
    FROM unnest(deleted_ids) AS d (id);
END
$$;

DELETE FROM goqueue.migration_checksums WHERE version = 31;
DELETE FROM goqueue.schema_version WHERE version = 31;
