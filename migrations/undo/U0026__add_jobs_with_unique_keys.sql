-- Undoes V0026: restores the functions of V0022 and V0023. Run it in one transaction (psql -1 -f).
-- squawk-ignore-file renaming-object
SET LOCAL search_path = pg_catalog, pg_temp;
ALTER FUNCTION goqueue.new_jobs(jsonb) RENAME TO former_new_jobs;
ALTER FUNCTION goqueue.add_job RENAME TO former_add_job;

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

COMMENT ON FUNCTION goqueue.new_jobs(jsonb) IS
    'The rows of a JSON array of new jobs: objects with the columns'' names, and delay (an interval) beside scheduled_at. id and job_type are required. A missing payload is JSON null; other missing columns take the table''s defaults.';

CREATE FUNCTION goqueue.add_job(
    job_type text,
    payload jsonb DEFAULT '{}',
    queue text DEFAULT 'default',
    -- An integer, because PostgreSQL finds no function for the literal 5 and a smallint.
    priority integer DEFAULT 0,
    max_attempts integer DEFAULT 25,
    scheduled_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    INOUT id uuid DEFAULT NULL,
    OUT created boolean
)
LANGUAGE plpgsql
AS $$
DECLARE
    wanted CONSTANT pg_catalog.uuid := coalesce(add_job.id, goqueue.uuid_v7());
BEGIN
    IF add_job.scheduled_at IS NOT NULL AND add_job.delay IS NOT NULL THEN
        RAISE EXCEPTION 'scheduled_at and delay are both given' USING
            ERRCODE = 'invalid_parameter_value', HINT = 'Give one of them.';
    END IF;
    -- Again if the conflicting job is deleted between the two statements.
    FOR turn IN 1..10 LOOP
        INSERT INTO goqueue.jobs AS j (
            id, queue, job_type, payload, priority, max_attempts, scheduled_at, idempotency_key
        )
        VALUES (
            wanted,
            coalesce(add_job.queue, 'default'),
            add_job.job_type,
            coalesce(add_job.payload, '{}'),
            coalesce(add_job.priority, 0),
            coalesce(add_job.max_attempts, 25),
            coalesce(
                add_job.scheduled_at,
                pg_catalog.now() OPERATOR(pg_catalog.+)
                pg_catalog.make_interval(secs => coalesce(extract(EPOCH FROM add_job.delay), 0))
            ),
            add_job.idempotency_key
        )
        ON CONFLICT DO NOTHING
        RETURNING j.id INTO add_job.id;
        created := FOUND;
        EXIT WHEN created;
        -- A new statement sees the job that another transaction committed while the insert waited for it.
        add_job.id := coalesce(
            (SELECT j.id FROM goqueue.jobs AS j WHERE j.id OPERATOR(pg_catalog.=) wanted),
            (SELECT j.id FROM goqueue.jobs AS j WHERE j.idempotency_key OPERATOR(pg_catalog.=) add_job.idempotency_key)
        );
        EXIT WHEN add_job.id IS NOT NULL;
    END LOOP;
END
$$;

COMMENT ON FUNCTION goqueue.add_job IS
    'Adds a pending job; returns its id and true. If the id or the idempotency key is taken, it returns the id of the job that has it and false; the id is null if row level security hides that job. A null argument counts as omitted.';

-- DROP has removed their grants. They must work even if roles.sql does not run again.
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format(
            'GRANT EXECUTE ON FUNCTION %s TO %s%s',
            f.oid::regprocedure,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        )
        FROM pg_proc AS f
        INNER JOIN pg_proc AS former ON former.pronamespace = f.pronamespace AND former.proname = 'former_' || f.proname
        CROSS JOIN LATERAL aclexplode(former.proacl) AS a
        WHERE f.pronamespace = 'goqueue'::regnamespace AND a.grantee <> former.proowner
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;

DROP FUNCTION goqueue.former_new_jobs(jsonb);
DROP FUNCTION goqueue.former_add_job;
DELETE FROM goqueue.migration_checksums WHERE version = 26;
DELETE FROM goqueue.schema_version WHERE version = 26;
