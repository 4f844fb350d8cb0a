-- Fill a table of jobs as a busy year leaves it, for `goqueue explain`. These statements run on scratch databases only.
-- The exceptions are hold_database and list_abandoned_databases: they run on the database from which scratch databases
-- are created.
--
-- Order: seed_session, seed_jobs_table, seed_failures_table, index_statements (the indexes are dropped, and recreated
-- after the rows), seed_jobs, seed_failures, vacuum_jobs, vacuum_failures; then example_values.


-- name: hold_database(name)$
-- Mark a scratch database as in use, before it is created and until the session ends.
-- Returns: no meaningful value.
-- Index: none.
-- Locks: an advisory lock of the session.
SELECT pg_advisory_lock(hashtextextended(:name::text, 0))::text AS held;


-- name: list_abandoned_databases(pattern)
-- Return the scratch databases whose session ended without dropping them, after a kill -9 for example.
-- Returns: the name of each database that the current role owns, that matches the pattern, that no session of the
-- server holds, and that has no comment. The pytest plugin comments a database that it keeps.
-- Index: none; the catalog is read.
-- Locks: none.
SELECT d.datname::text AS name
FROM pg_database AS d
INNER JOIN pg_roles AS r ON d.datdba = r.oid
WHERE
    d.datname ~ :pattern::text
    AND r.rolname = current_user
    AND NOT d.datistemplate
    AND shobj_description(d.oid, 'pg_database') IS NULL
    AND NOT EXISTS (
        SELECT FROM pg_locks AS l
        WHERE
            l.locktype = 'advisory'
            AND l.objsubid = 1
            AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended(d.datname::text, 0)
    )
ORDER BY d.datname;


-- name: seed_session()^
-- Prepare the session for seeding: repeatable random numbers, memory to build indexes, durable commits.
-- Returns: one row: whether goqueue.jobs is empty (nothing is seeded otherwise), and the settings.
-- Index: none; at most one row is read.
-- Locks: none.
-- Notes: synchronous_commit is on because VACUUM can mark pages all-visible only after the rows' commit is on disk.
SELECT
    NOT EXISTS (SELECT FROM goqueue.jobs) AS is_empty,
    set_config('maintenance_work_mem', '256MB', FALSE) AS maintenance_work_mem,
    set_config('synchronous_commit', 'on', FALSE) AS synchronous_commit,
    setseed(0.5)::text AS seeded;


-- name: seed_jobs_table()!
-- Make goqueue.jobs unlogged and turn its autovacuum off, so that seeding is fast and plans stay the same.
-- Returns: nothing.
-- Index: none.
-- Locks: ACCESS EXCLUSIVE on goqueue.jobs.
ALTER TABLE goqueue.jobs SET UNLOGGED, SET (autovacuum_enabled = FALSE);


-- name: seed_failures_table()!
-- Make goqueue.job_failures unlogged and turn its autovacuum off.
-- Returns: nothing.
-- Index: none.
-- Locks: ACCESS EXCLUSIVE on goqueue.job_failures.
ALTER TABLE goqueue.job_failures SET UNLOGGED, SET (autovacuum_enabled = FALSE);


-- name: index_statements()
-- Return the statements that drop the indexes of goqueue.jobs and those that recreate them.
-- Returns: one row for each index: the statement that drops it and the one that creates it.
-- Index: none; the catalog is read.
-- Locks: none.
SELECT
    coalesce(
        'ALTER TABLE goqueue.jobs DROP CONSTRAINT ' || quote_ident(c.conname),
        'DROP INDEX ' || i.indexrelid::regclass::text
    ) AS drop_statement,
    coalesce(
        'ALTER TABLE goqueue.jobs ADD CONSTRAINT ' || quote_ident(c.conname) || ' ' || pg_get_constraintdef(c.oid),
        pg_get_indexdef(i.indexrelid)
    ) AS create_statement
FROM pg_index AS i
LEFT JOIN pg_constraint AS c ON i.indexrelid = c.conindid AND i.indrelid = c.conrelid
WHERE i.indrelid = 'goqueue.jobs'::regclass
ORDER BY i.indexrelid;


-- name: seed_jobs(first_number, last_number, job_rows, queue, queue_count, finished, later, priority, priorities, running_every)!
-- Add the jobs from first_number to last_number of job_rows. Of these, the share `finished` is finished, one in
-- running_every is running, and the others are pending. Of the pending jobs, the share `later` is not due yet.
-- Returns: the number of rows added.
-- Index: none; the indexes are dropped while it runs.
-- Locks: the new rows.
-- Notes: If queue is null, a job's queue is one of queue_count: of a hundred queues, queue_00 has two fifths of the
-- jobs, queue_98 has 0.4 percent, queue_99 (with the type type_rare) one in 50,000. A queue has about four of 40 job
-- types. Ages are spread evenly over 28 days. One job in 50 finished ten days after its creation. A tenth of the leases
-- have expired. A tenth of the jobs have an idempotency key, another tenth a unique key. Ids are UUIDv7 in the order of
-- creation.
--
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    status,
    priority,
    attempts,
    last_error,
    idempotency_key,
    unique_key,
    lease_token,
    locked_by,
    locked_at,
    lease_expires_at,
    scheduled_at,
    created_at,
    updated_at,
    started_at,
    completed_at
)
SELECT
    (
        lpad(to_hex((extract(EPOCH FROM d.created_at) * 1000)::bigint), 12, '0')
        || '7' || substr(d.hash, 1, 3) || '8' || substr(d.hash, 4, 15)
    )::uuid AS id,
    coalesce(:queue::text, 'queue_' || lpad(d.queue_no::text, greatest(length(d.queue_no::text), 2), '0')) AS queue,
    CASE
        WHEN mod(d.n, 50000) = 0 THEN 'type_rare'
        ELSE 'type_' || mod(d.queue_no * 7 + d.type_no, 40)
    END AS job_type,
    '{"to": "someone@example.com", "template": "welcome"}'::jsonb AS payload,
    d.status,
    :priority::integer + mod(d.n, :priorities::integer) AS priority,
    CASE WHEN d.status = 'pending' THEN 0 WHEN mod(d.n, 20) = 0 THEN 2 ELSE 1 END AS attempts,
    CASE WHEN d.status = 'dead' THEN 'TimeoutError: the mail server did not answer' END AS last_error,
    CASE WHEN mod(d.n, 10) = 0 THEN 'key-' || d.hash END AS idempotency_key,
    CASE WHEN mod(d.n, 10) = 1 THEN 'unique-' || d.hash END AS unique_key,
    (d.status <> 'pending')::integer AS lease_token,
    CASE WHEN d.status = 'running' THEN 'worker-1' END AS locked_by,
    CASE WHEN d.status = 'running' THEN now() END AS locked_at,
    CASE
        WHEN d.status = 'running' THEN now() + CASE WHEN d.luck < 0.1 THEN '-1 hour' ELSE '1 day' END::interval
    END AS lease_expires_at,
    CASE
        WHEN d.status = 'pending' AND d.chance_later < :later::double precision
            THEN now() + (1 + d.luck * 30) * interval '1 day'
        ELSE d.created_at + d.luck * interval '10 minutes'
    END AS scheduled_at,
    d.created_at,
    d.created_at AS updated_at,
    CASE WHEN d.status <> 'pending' THEN d.created_at + interval '15 minutes' END AS started_at,
    CASE
        WHEN d.status IN ('completed', 'dead', 'cancelled')
            THEN d.created_at + CASE WHEN mod(d.n, 50) = 0 THEN interval '10 days' ELSE interval '16 minutes' END
    END AS completed_at
FROM (
    SELECT
        r.n,
        r.chance_later,
        r.luck,
        md5(concat(:queue::text, :priority::integer, '/', r.n)) AS hash,
        now() - interval '20 minutes'
        - interval '28 days' * (1 - r.n / :job_rows::double precision) AS created_at,
        CASE
            WHEN mod(r.n, 50000) = 0 THEN :queue_count::integer - 1
            ELSE least(:queue_count::integer - 2, floor(r.chance_queue ^ 5 * :queue_count::integer))
        END::integer AS queue_no,
        floor(r.chance_type ^ 2 * 4)::integer AS type_no,
        CASE
            WHEN mod(r.n, :running_every::integer) = 0 THEN 'running'
            WHEN r.chance_status < :finished::double precision * 0.9375 THEN 'completed'
            WHEN r.chance_status < :finished::double precision * 0.975 THEN 'dead'
            WHEN r.chance_status < :finished::double precision THEN 'cancelled'
            ELSE 'pending'
        END::goqueue.job_status AS status
    FROM (
        SELECT
            g.n,
            random() AS chance_queue,
            random() AS chance_type,
            random() AS chance_status,
            random() AS chance_later,
            random() AS luck
        FROM generate_series(:first_number::integer, :last_number::integer) AS g (n)
    ) AS r
    -- Evaluated once, not at each use of its column.
    OFFSET 0
) AS d;


-- name: seed_failures()!
-- Add a failure for each dead job and for each job that was retried.
-- Returns: the number of rows added.
-- Index: none; all jobs are read.
-- Locks: the new rows.
INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, failed_at, started_at, worker_id, error)
SELECT
    j.id,
    1 AS lease_token,
    1 AS attempt,
    j.updated_at,
    j.started_at,
    'worker-1' AS worker_id,
    'TimeoutError: the mail server did not answer' AS error
FROM goqueue.jobs AS j
WHERE j.status = 'dead' OR j.attempts > 1;


-- name: vacuum_jobs()!
-- Update the statistics and the visibility map of goqueue.jobs.
-- Returns: nothing.
-- Index: all of them.
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs.
VACUUM (ANALYZE) goqueue.jobs;


-- name: vacuum_failures()!
-- Update the statistics and the visibility map of goqueue.job_failures.
-- Returns: nothing.
-- Index: all of them.
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.job_failures.
VACUUM (ANALYZE) goqueue.job_failures;


-- name: example_values()
-- Return the values that `goqueue explain` uses for the parameters of a query, taken from the seeded jobs.
-- Returns: one row per value: "parameter" for every query that has it, or "query.parameter" for one query; and the
-- value as text. A parameter without a row is null.
-- Index: jobs_running_idx, jobs_pending_idx, jobs_finished_type_idx, jobs_idempotency_key_idx,
-- jobs_unique_key_idx.
-- Locks: none.
WITH running_job AS MATERIALIZED (
    SELECT
        array_agg(few.id)::text AS ids,
        array_agg(few.lease_token)::text AS tokens,
        array_agg('boom'::text)::text AS errors
    FROM (
        SELECT
            j.id,
            j.lease_token
        FROM goqueue.jobs AS j
        WHERE j.status = 'running'
        ORDER BY j.id DESC
        LIMIT 10
    ) AS few
),

pending_job AS MATERIALIZED (
    SELECT
        array_agg(few.id)::text AS ids,
        min(few.id::text) AS id
    FROM (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending'
        ORDER BY j.created_at DESC, j.id DESC
        LIMIT 10
    ) AS few
),

dead_job AS MATERIALIZED (
    SELECT
        array_agg(few.id)::text AS ids,
        min(few.id::text) AS id
    FROM (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE j.completed_at IS NOT NULL AND j.status = 'dead'
        ORDER BY j.job_type DESC, j.created_at DESC, j.id DESC
        LIMIT 10
    ) AS few
),

completed_job AS MATERIALIZED (
    SELECT
        array_agg(few.id)::text AS ids,
        min(few.id::text) AS id
    FROM (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE j.completed_at IS NOT NULL AND j.status = 'completed'
        ORDER BY j.job_type DESC, j.created_at DESC, j.id DESC
        LIMIT 10
    ) AS few
),

taken_key AS MATERIALIZED (
    SELECT
        array_agg(few.idempotency_key)::text AS idempotency_keys,
        min(few.idempotency_key) AS idempotency_key
    FROM (
        SELECT j.idempotency_key
        FROM goqueue.jobs AS j
        WHERE j.idempotency_key IS NOT NULL
        ORDER BY j.idempotency_key
        LIMIT 10
    ) AS few
),

unique_key AS MATERIALIZED (
    SELECT
        array_agg(few.unique_key)::text AS unique_keys,
        min(few.unique_key) AS unique_key
    FROM (
        SELECT j.unique_key
        FROM goqueue.jobs AS j
        WHERE j.unique_key IS NOT NULL AND j.completed_at IS NULL
        ORDER BY j.unique_key
        LIMIT 10
    ) AS few
),

new_jobs AS MATERIALIZED (
    SELECT
        jsonb_agg(
            jsonb_build_object(
                'id', goqueue.uuid_v7(), 'queue', 'queue_00', 'job_type', 'type_0', 'payload', '{}'::jsonb,
                'priority', 0, 'max_attempts', 25, 'idempotency_key', 'new-' || g.n
            )
        )::text AS jobs
    FROM generate_series(1, 100) AS g (n)
)

SELECT
    v.name,
    v.value
FROM running_job AS r
CROSS JOIN pending_job AS p
CROSS JOIN dead_job AS d
CROSS JOIN completed_job AS c
CROSS JOIN taken_key AS k
CROSS JOIN unique_key AS u
CROSS JOIN new_jobs AS n
CROSS JOIN LATERAL (
    VALUES
    ('id', c.id),
    ('create_job.id', goqueue.uuid_v7()::text),
    ('replace_pending_job.id', goqueue.uuid_v7()::text),
    ('update_job.id', p.id),
    ('delete_job.id', d.id),
    ('job_id', d.id),
    ('delete_failures.ids', d.ids),
    ('ids', r.ids),
    ('find_duplicate_jobs.ids', c.ids),
    ('get_jobs.ids', c.ids),
    ('cancel_jobs.ids', p.ids),
    ('change_jobs.ids', p.ids),
    ('delete_jobs.ids', d.ids),
    ('reschedule_jobs.ids', p.ids),
    ('retry_jobs.ids', d.ids),
    ('cancel_jobs.queues', NULL),
    ('change_jobs.queues', NULL),
    ('delete_jobs.queues', NULL),
    ('reschedule_jobs.queues', NULL),
    ('retry_jobs.queues', NULL),
    ('tokens', r.tokens),
    ('errors', r.errors),
    ('idempotency_key', k.idempotency_key),
    ('create_job.idempotency_key', 'new'),
    ('replace_pending_job.idempotency_key', 'new'),
    ('idempotency_keys', k.idempotency_keys),
    ('find_duplicate_job.unique_key', u.unique_key),
    ('unique_keys', u.unique_keys),
    ('queue', 'queue_00'),
    ('until', 'infinity'),
    ('resume_queue.queue', 'paused'),
    ('queues', '{queue_00,queue_03}'),
    ('job_type', 'type_0'),
    ('payload', '{"to": "someone@example.com"}'),
    ('changes', '{"priority": 5}'),
    ('jobs', n.jobs),
    ('priority', '0'),
    ('max_attempts', '25'),
    ('delay', '1 minute'),
    ('statuses', '{pending,dead}'),
    ('prune_jobs.statuses', '{completed,dead,cancelled}'),
    ('kept_ids', c.ids),
    ('older_than', '7 days'),
    ('page_limit', '50'),
    ('job_limit', '10'),
    ('worker_id', 'worker-1'),
    ('lease', '5 minutes'),
    ('is_final', 'false'),
    ('backoff_base', '10 seconds'),
    ('backoff_factor', '2'),
    ('backoff_max', '1 hour'),
    ('backoff_jitter', '0.1'),
    ('transaction_id', '3')
) AS v (name, value)
ORDER BY v.name;
