-- The jobs table, its types and its rules.
--
-- Locks: only new objects, so nothing that runs is blocked.
-- pgmigrate has made the schema goqueue before this file runs.

CREATE TYPE goqueue.job_status AS ENUM ('pending', 'running', 'completed', 'dead', 'cancelled');

COMMENT ON TYPE goqueue.job_status IS
    'pending: waits for its time. running: held by a worker. completed: done. dead: attempts used up. cancelled: withdrawn.';

-- PostgreSQL has uuidv7() from 18 on only. Programs make their ids themselves; this serves rows inserted by hand.
-- Version 7 is version 4 with the first 48 bits replaced by milliseconds and two more version bits set.
CREATE FUNCTION goqueue.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT encode(
        set_bit(
            set_bit(
                overlay(
                    uuid_send(gen_random_uuid())
                    PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6
                ),
                52, 1
            ),
            53, 1
        ),
        'hex'
    )::uuid
$$;

COMMENT ON FUNCTION goqueue.uuid_v7() IS
    'A time-ordered UUID (version 7) by the server''s clock, for rows inserted by hand.';

-- Columns of fixed width come first: no padding between them, and the server finds them without walking the texts.
CREATE TABLE goqueue.jobs (
    id uuid NOT NULL DEFAULT goqueue.uuid_v7(),
    scheduled_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz,
    locked_at timestamptz,
    status goqueue.job_status NOT NULL DEFAULT 'pending',
    -- squawk-ignore prefer-bigint-over-int
    attempts integer NOT NULL DEFAULT 0,
    -- squawk-ignore prefer-bigint-over-int
    max_attempts integer NOT NULL DEFAULT 25,
    -- squawk-ignore prefer-bigint-over-smallint
    priority smallint NOT NULL DEFAULT 0,
    queue text NOT NULL DEFAULT 'default',
    job_type text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}',
    idempotency_key text,
    locked_by text,
    last_error text,

    CONSTRAINT jobs_pkey PRIMARY KEY (id),

    -- The lengths keep every index entry far below the 2704 bytes that a B-tree takes.
    CONSTRAINT jobs_queue_length CHECK (char_length(queue) BETWEEN 1 AND 255),
    CONSTRAINT jobs_job_type_length CHECK (char_length(job_type) BETWEEN 1 AND 255),
    CONSTRAINT jobs_idempotency_key_length CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT jobs_locked_by_length CHECK (char_length(locked_by) BETWEEN 1 AND 255),

    CONSTRAINT jobs_max_attempts_range CHECK (max_attempts BETWEEN 1 AND 10000),
    CONSTRAINT jobs_attempts_range CHECK (attempts BETWEEN 0 AND max_attempts),

    -- A running job has a holder and a lock time; no other job has either.
    CONSTRAINT jobs_running_is_locked CHECK (
        (status = 'running') = (locked_by IS NOT NULL)
        AND (status = 'running') = (locked_at IS NOT NULL)
    ),
    -- A finished job has a finish time; no other job has one.
    CONSTRAINT jobs_finished_has_time CHECK (
        (status IN ('completed', 'dead', 'cancelled')) = (completed_at IS NOT NULL)
    )
);

COMMENT ON TABLE goqueue.jobs IS 'One row a job, from its creation until it is pruned.';
COMMENT ON COLUMN goqueue.jobs.id IS 'UUIDv7, made by the client, so that a create can be tried again safely.';
COMMENT ON COLUMN goqueue.jobs.scheduled_at IS 'Not before this time is the job given to a worker.';
COMMENT ON COLUMN goqueue.jobs.created_at IS 'Start of the transaction that created the job.';
COMMENT ON COLUMN goqueue.jobs.updated_at IS 'Start of the transaction that changed the job last; set by the statements in sql/.';
COMMENT ON COLUMN goqueue.jobs.started_at IS 'When the latest attempt started; null before the first.';
COMMENT ON COLUMN goqueue.jobs.completed_at IS 'When the job became completed, dead or cancelled; null in any other status.';
COMMENT ON COLUMN goqueue.jobs.locked_at IS 'When the present holder took the job; null unless running.';
COMMENT ON COLUMN goqueue.jobs.status IS 'See the type goqueue.job_status.';
COMMENT ON COLUMN goqueue.jobs.attempts IS 'Attempts started so far, the running one included.';
COMMENT ON COLUMN goqueue.jobs.max_attempts IS 'After this many failed attempts the job is dead.';
COMMENT ON COLUMN goqueue.jobs.priority IS 'The lower number runs first, as with nice; 0 is the usual one.';
COMMENT ON COLUMN goqueue.jobs.queue IS 'The queue''s name, 1 to 255 characters.';
COMMENT ON COLUMN goqueue.jobs.job_type IS 'Names the code that handles the job, 1 to 255 characters.';
COMMENT ON COLUMN goqueue.jobs.payload IS 'The job''s arguments, any JSON value.';
COMMENT ON COLUMN goqueue.jobs.idempotency_key IS 'At most one job has a given key; null for jobs without.';
COMMENT ON COLUMN goqueue.jobs.locked_by IS 'The worker that holds the job; null unless running.';
COMMENT ON COLUMN goqueue.jobs.last_error IS 'What the last failed attempt said; kept until the job is created anew or cleared.';
