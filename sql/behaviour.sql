-- `goqueue check` runs a folder's statements and the shipped ones on a scratch database. With the statements below, it
-- compares their effects: rows, locks, settings. These run on scratch databases only.


-- name: empty_tables()!
-- Empty the tables before the next comparison.
-- Returns: nothing.
-- Index: none.
-- Locks: ACCESS EXCLUSIVE on the tables.
TRUNCATE goqueue.jobs, goqueue.job_failures, goqueue.paused_queues;


-- name: list_rows()
-- Return every row of the tables, including the columns that no Struct has.
-- Returns: the table's name and the row as JSON, ordered.
-- Index: none; the whole tables are read.
-- Locks: none.
SELECT
    'jobs' AS table_name,
    to_jsonb(j)::text AS fields
FROM goqueue.jobs AS j
UNION ALL
SELECT
    'job_failures' AS table_name,
    to_jsonb(f)::text AS fields
FROM goqueue.job_failures AS f
UNION ALL
SELECT
    'paused_queues' AS table_name,
    to_jsonb(p)::text AS fields
FROM goqueue.paused_queues AS p
ORDER BY table_name, fields;


-- name: restore_rows(restored_jobs, restored_failures)
-- Fill the empty tables jobs and job_failures with rows that list_rows has returned. The last ids come first, so that
-- no query finds the jobs in order by chance.
-- Returns: the ids of the jobs, unordered.
-- Index: none.
-- Locks: the new rows.
WITH restored_job AS (
    INSERT INTO goqueue.jobs (
        id,
        scheduled_at,
        created_at,
        updated_at,
        started_at,
        completed_at,
        locked_at,
        status,
        attempts,
        max_attempts,
        priority,
        queue,
        job_type,
        payload,
        idempotency_key,
        locked_by,
        last_error,
        lease_token,
        lease_expires_at,
        created_by,
        unique_key
    )
    SELECT
        r.id,
        r.scheduled_at,
        r.created_at,
        r.updated_at,
        r.started_at,
        r.completed_at,
        r.locked_at,
        r.status,
        r.attempts,
        r.max_attempts,
        r.priority,
        r.queue,
        r.job_type,
        r.payload,
        r.idempotency_key,
        r.locked_by,
        r.last_error,
        r.lease_token,
        r.lease_expires_at,
        r.created_by,
        r.unique_key
    FROM jsonb_populate_recordset(NULL::goqueue.jobs, :restored_jobs::jsonb) AS r
    ORDER BY r.id DESC
    RETURNING id
),

restored_failure AS (
    INSERT INTO goqueue.job_failures (
        job_id,
        lease_token,
        attempt,
        failed_at,
        started_at,
        worker_id,
        error
    )
    SELECT
        r.job_id,
        r.lease_token,
        r.attempt,
        r.failed_at,
        r.started_at,
        r.worker_id,
        r.error
    FROM jsonb_populate_recordset(NULL::goqueue.job_failures, :restored_failures::jsonb) AS r
    ORDER BY r.job_id DESC
)

SELECT d.id
FROM restored_job AS d;


-- name: lock_jobs(ids)
-- Lock jobs FOR NO KEY UPDATE, as an update that changes no key column does.
-- Returns: the ids, ordered.
-- Index: jobs_pkey.
-- Locks: the jobs' rows.
SELECT j.id
FROM goqueue.jobs AS j
WHERE j.id = ANY(:ids::uuid[])
ORDER BY j.id
FOR NO KEY UPDATE;


-- name: list_unlocked_jobs()
-- Return the jobs that no session has locked. Jobs deleted meanwhile are omitted.
-- Returns: the ids, unordered.
-- Index: none; the whole table is read.
-- Locks: each row, until the statement's transaction ends.
SELECT j.id
FROM goqueue.jobs AS j
FOR UPDATE SKIP LOCKED;


-- name: list_referable_jobs()
-- Return the jobs that a foreign key check can lock now: no session holds them FOR UPDATE or deletes them.
-- Returns: the ids, unordered.
-- Index: none; the whole table is read.
-- Locks: each row, shared, until the statement's transaction ends.
SELECT j.id
FROM goqueue.jobs AS j
FOR KEY SHARE SKIP LOCKED;


-- name: list_held_locks(backend_pid)
-- Return a session's locks on goqueue's tables and its advisory locks. Row locks are left out.
-- Returns: each lock as text, ordered.
-- Index: none.
-- Locks: none.
SELECT DISTINCT
    CASE
        WHEN l.locktype = 'relation' THEN l.mode || ' on goqueue.' || c.relname
        ELSE l.mode || ' (' || concat_ws(', ', l.locktype, l.classid, l.objid) || ')'
    END AS held
FROM pg_locks AS l
LEFT JOIN pg_class AS c ON l.relation = c.oid AND l.locktype = 'relation'
WHERE
    l.pid = :backend_pid::integer
    AND l.granted
    AND (
        l.locktype IN ('advisory', 'object')
        OR (c.relnamespace = 'goqueue'::regnamespace AND c.relkind = 'r' AND l.mode <> 'AccessShareLock')
    )
ORDER BY held;


-- name: is_waiting(backend_pid)$
-- Return whether a session's statement waits for another session's lock.
-- Returns: true or false.
-- Index: none.
-- Locks: none.
SELECT count(*) > 0 AS is_waiting
FROM pg_locks AS l
WHERE l.pid = :backend_pid::integer AND NOT l.granted;


-- name: list_session_settings()
-- Return the settings that the session has changed since it began.
-- Returns: each as "name = value", ordered.
-- Index: none.
-- Locks: none.
SELECT s.name || ' = ' || s.setting AS setting
FROM pg_settings AS s
WHERE s.source = 'session'
ORDER BY setting;


-- name: release_advisory_locks()$
-- Release the advisory locks that the session still holds after a rollback.
-- Returns: nothing.
-- Index: none.
-- Locks: none.
SELECT pg_advisory_unlock_all();


-- name: tell_time()$
-- Return the server's time, the source of every time in a job.
-- Returns: the time now.
-- Index: none.
-- Locks: none.
SELECT clock_timestamp() AS now;


-- name: backdate_jobs(ids, age)
-- Move jobs' created_at back by an interval.
-- Returns: the ids, unordered.
-- Index: jobs_pkey.
-- Locks: the jobs' rows.
UPDATE goqueue.jobs AS j
SET created_at = j.created_at - extract(EPOCH FROM :age::interval)::double precision * interval '1 second'
WHERE j.id = ANY(:ids::uuid[])
RETURNING j.id;


-- name: wear_out_tokens(ids)
-- Set jobs' lease tokens to the highest value. The next claim starts at 1 again.
-- Returns: the ids, unordered.
-- Index: jobs_pkey.
-- Locks: the jobs' rows.
UPDATE goqueue.jobs AS j
SET lease_token = 4611686018427387903
WHERE j.id = ANY(:ids::uuid[])
RETURNING j.id;
