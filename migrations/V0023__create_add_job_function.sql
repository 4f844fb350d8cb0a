-- Add a job from SQL: for other languages, and for triggers on an application's tables.
--
-- Locks: none on a table.
--
-- The function has the rights of its caller. Names in it are qualified, types and operators too, so that it does the same
-- under any search_path. A search_path of its own would be set at every call, as V0019 says.

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
