-- The statements on goqueue.jobs, in the order of a job's life: create, get, list, count, update, delete.
--
-- Rules of this folder:
--   * A statement has the name of the storage method that runs it, and the same name in the server's log. A few serve a
--     method of another name, such as find_duplicate_job.
--   * The comment under a name gives its purpose, result, index and locks. `make catalogue` writes the index in
--     sql/README.md from these comments. A line with only `--` ends this comment if other comments follow.
--   * Each parameter is cast where it is used, so that the statement means the same for every client.
--   * An operator or function gets exactly the types that it takes, or its schema is named, as in pg_catalog.unnest.
--     Otherwise the server prefers one that takes the given types, which somebody has planted in a schema of the
--     caller's search_path. There is no numeric * interval, so seconds are cast to double precision.
--   * An interval is converted to seconds. Otherwise the server would add 23 hours for one day when daylight saving
--     time begins in the session's time zone.
--   * A statement repeats the condition of a partial index literally, because a generic plan can't prove it from
--     `status = $1`. So statements on finished jobs also have `completed_at IS NOT NULL`.
--   * ORDER BY includes the status if the index does, although the status is fixed. Comparing enums is not leakproof,
--     so under row level security the planner does not know that it is fixed, and would sort.
--   * Under row level security, a condition that is not leakproof (coalesce, an enum's =) can't be an index condition.
--     Where that is expensive, coalesce is in its own SELECT.
--   * goqueue's own sessions run at READ COMMITTED with force_generic_plan, enable_seqscan = off and jit = off. A
--     caller's connection (bound_to) can have other settings: there, plans depend on the values and the statistics.
--   * A job can change after list_jobs has found it. So statements that change jobs by their ids test the filters statuses,
--     queues, job_types and worker_ids again, on the locked rows. A null filter matches every job.
--   * Comments are on their own lines. A percent sign is written twice. After a name, ^ means at most one row, $ one
--     value, ! the number of rows.
--   * The columns of a job are in the same order everywhere: that of goqueue.Job. A test compares them.


-- name: create_job(id, queue, job_type, payload, priority, max_attempts, scheduled_at, delay, idempotency_key, unique_key)^
-- Add one pending job.
-- Returns: the values that the server sets: the payload as stored in jsonb, and the times. Nothing if the id or a key
-- is taken (find_duplicate_job returns the job that has it).
-- Index: jobs_pkey, jobs_idempotency_key_idx and jobs_unique_key_idx decide conflicts.
-- Locks: the new row; waits for a transaction that is adding the same id or key.
-- Notes: DO NOTHING leaves no dead tuple for a duplicate, and does not abort the caller's transaction.
-- The payload is sent as text, because an application's driver can have an encoder of its own for jsonb.
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key,
    unique_key
)
VALUES (
    :id::uuid,
    :queue::text,
    :job_type::text,
    :payload::text::jsonb,
    :priority::smallint,
    :max_attempts::integer,
    coalesce(:scheduled_at::timestamptz, now() + coalesce(extract(EPOCH FROM :delay::interval)::double precision * interval '1 second', '0')),
    :idempotency_key::text,
    :unique_key::text
)
ON CONFLICT DO NOTHING
RETURNING
    payload::text AS payload,
    scheduled_at,
    created_at;


-- name: find_duplicate_job(id, idempotency_key, unique_key)^
-- Return the job that conflicts with a new one: the one with its id, else the one with its idempotency key, else the
-- unfinished one with its unique key.
-- Returns: the job; nothing if it was deleted or has freed the unique key meanwhile.
-- Index: jobs_pkey, jobs_idempotency_key_idx, jobs_unique_key_idx.
-- Locks: none.
-- Notes: A separate statement, because only a new snapshot sees a job that another transaction committed while
-- create_job waited for it.
--
SELECT
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM goqueue.jobs AS j
-- In its own SELECT: as a condition on j, it would not be an index condition under row level security.
WHERE j.id = (
        SELECT coalesce(
            (
                SELECT same_id.id FROM goqueue.jobs AS same_id
                WHERE same_id.id = :id::uuid
            ),
            (
                SELECT same_key.id FROM goqueue.jobs AS same_key
                WHERE same_key.idempotency_key = :idempotency_key::text
            ),
            (
                SELECT same_unique.id FROM goqueue.jobs AS same_unique
                WHERE same_unique.unique_key = :unique_key::text AND same_unique.completed_at IS NULL
            )
        )
    );


-- name: create_jobs(jobs)
-- Add many pending jobs in one statement, or none if one fails. The parameter is a JSON array of objects with the
-- columns' names, and delay (an interval) as an alternative to scheduled_at. id and job_type are required. A missing
-- payload is JSON null; other missing columns take the table's defaults.
-- Returns: the id of each job, in the array's order. transaction_id is set only in the row of the array's first job.
-- Index: jobs_pkey, jobs_idempotency_key_idx and jobs_unique_key_idx reject a job whose id or key is taken
-- (unique_violation).
-- Locks: the new rows; waits for a transaction that is adding one of the ids or keys.
-- Notes: The store runs it for jobs that are probably new, and create_missing_jobs for others and after a
-- unique_violation. ON CONFLICT adds a fifth to the server's time. One jsonb parameter is used because arrays of text
-- are slow to send. The store sorts the array by unique key, idempotency key and id, so that concurrent calls with the
-- same keys wait for each other. They can still deadlock if their jobs share unique keys in one order and idempotency
-- keys in another.
--
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key,
    unique_key
)
SELECT
    n.id,
    n.queue,
    n.job_type,
    n.payload,
    n.priority,
    n.max_attempts,
    n.scheduled_at,
    n.idempotency_key,
    n.unique_key
FROM goqueue.new_jobs(:jobs::jsonb) AS n
RETURNING
    id,
    -- Only in one row: repeated in every row, it would double what the client reads.
    CASE
        WHEN id = (SELECT (:jobs::jsonb -> 0 ->> 'id')::uuid) THEN pg_current_xact_id()::text
    END AS transaction_id;


-- name: create_missing_jobs(jobs)
-- Add many pending jobs, except those that exist. The parameter is that of create_jobs.
-- Returns: the id of each job that was added. A job whose id or key is taken, in the table or by an earlier job of the
-- same array, has no row; find_duplicate_jobs returns the job that has it. transaction_id is set only in the row of the
-- array's first job. If that job exists already, no row has it.
-- Index: jobs_pkey, jobs_idempotency_key_idx and jobs_unique_key_idx decide conflicts.
-- Locks: the new rows; waits for a transaction that is adding one of the ids or keys.
-- Notes: Rows are added in the array's order, which is that of create_jobs.
--
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key,
    unique_key
)
SELECT
    n.id,
    n.queue,
    n.job_type,
    n.payload,
    n.priority,
    n.max_attempts,
    n.scheduled_at,
    n.idempotency_key,
    n.unique_key
FROM goqueue.new_jobs(:jobs::jsonb) AS n
ON CONFLICT DO NOTHING
RETURNING
    id,
    -- Only in one row: repeated in every row, it would double what the client reads.
    CASE
        WHEN id = (SELECT (:jobs::jsonb -> 0 ->> 'id')::uuid) THEN pg_current_xact_id()::text
    END AS transaction_id;


-- name: find_duplicate_jobs(ids, idempotency_keys, unique_keys)
-- Return the jobs that conflict with new ones: those with one of the ids or one of the idempotency keys, and the
-- unfinished ones with one of the unique keys.
-- Returns: id and keys of each, in no particular order; the unique key of a finished job is null, because it is free.
-- Jobs that were deleted meanwhile are omitted.
-- Index: jobs_pkey, jobs_idempotency_key_idx, jobs_unique_key_idx.
-- Locks: none.
-- Notes: A union of index scans. An OR over the columns would leave the choice of plan to the estimates.
SELECT
    j.id,
    j.idempotency_key,
    CASE WHEN j.completed_at IS NULL THEN j.unique_key END AS unique_key
FROM goqueue.jobs AS j
WHERE j.id = ANY(:ids::uuid[])
UNION
SELECT
    j.id,
    j.idempotency_key,
    CASE WHEN j.completed_at IS NULL THEN j.unique_key END AS unique_key
FROM goqueue.jobs AS j
WHERE j.idempotency_key = ANY(:idempotency_keys::text[])
UNION
SELECT
    j.id,
    j.idempotency_key,
    j.unique_key
FROM goqueue.jobs AS j
WHERE j.unique_key = ANY(:unique_keys::text[]) AND j.completed_at IS NULL;


-- name: get_job(id)^
-- Return one job by its id.
-- Returns: the job; nothing if there is none.
-- Index: jobs_pkey.
-- Locks: none.
SELECT
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM goqueue.jobs AS j
WHERE j.id = :id::uuid;


-- name: get_jobs(ids)
-- Return many jobs by their ids.
-- Returns: the jobs in the order of the ids. A repeated id is returned twice; a missing job is omitted.
-- Index: jobs_pkey, one probe per id.
-- Locks: none.
--
SELECT
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM pg_catalog.unnest(:ids::uuid[]) WITH ORDINALITY AS wanted (id, place)
CROSS JOIN LATERAL (
    SELECT
        by_id.id,
        by_id.queue,
        by_id.job_type,
        by_id.payload,
        by_id.status,
        by_id.priority,
        by_id.attempts,
        by_id.max_attempts,
        by_id.last_error,
        by_id.idempotency_key,
        by_id.unique_key,
        by_id.locked_by,
        by_id.locked_at,
        by_id.lease_token,
        by_id.lease_expires_at,
        by_id.scheduled_at,
        by_id.created_at,
        by_id.updated_at,
        by_id.started_at,
        by_id.completed_at
    FROM goqueue.jobs AS by_id
    WHERE by_id.id = wanted.id
    -- A fence: without it a generic plan may hash the whole table for a long array.
    OFFSET 0
) AS j
ORDER BY wanted.place;


-- name: get_job_by_idempotency_key(idempotency_key)^
-- Return one job by its idempotency key.
-- Returns: the job; nothing if there is none.
-- Index: jobs_idempotency_key_idx.
-- Locks: none.
SELECT
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM goqueue.jobs AS j
WHERE j.idempotency_key = :idempotency_key::text;


-- name: list_jobs(statuses, queues, job_types, worker_ids, created_from, created_before, cursor_created_at, cursor_id, page_limit)
-- Return a page of jobs, newest first (created_at, then id), starting after the cursor's position. A null filter
-- matches every job. The range of created_at includes its start and excludes its end.
-- Returns: at most page_limit jobs. The cursor's position is the last job of the previous page, which is not repeated.
-- Index: jobs_finished_type_idx, and jobs_finished_queue_idx if queues are given; jobs_pending_idx (with a custom plan
-- perhaps jobs_claim_idx); jobs_running_idx; jobs_pkey for the rows.
-- Locks: none.
-- Notes: Finished jobs are read lane by lane. A lane is one contiguous range of an index: a job type and a status, in
-- one queue or in all. goqueue.finished_lanes finds the lanes. From each lane one page is read, starting at the
-- cursor's position, so page 1000 costs no more than page 1. The cost is proportional to page_limit and to the number
-- of lanes: at most three for each job type and given queue. Pending jobs are read newest first: if few of them match
-- the filter, all entries of pending jobs are read. All running jobs are read, because there are few. With worker_ids
-- (values of locked_by), nothing else is read.
--
WITH page_start AS MATERIALIZED (
    SELECT
        coalesce(:created_from::timestamptz, '-infinity') AS created_from,
        coalesce(:cursor_created_at::timestamptz, :created_before::timestamptz, 'infinity') AS created_at,
        coalesce(:cursor_id::uuid, '00000000-0000-0000-0000-000000000000') AS id
),

found_job AS (
    SELECT
        lane_job.created_at,
        lane_job.id
    FROM goqueue.finished_lanes(:statuses::text[]::goqueue.job_status[], :queues::text[], :job_types::text[]) AS l
    CROSS JOIN page_start AS p
    CROSS JOIN LATERAL (
        -- One of these two reads: a lane has a queue only if queues are given, and ARRAY[NULL] contains none.
        (
            SELECT
                j.created_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE
                l.queue IS NULL
                AND j.completed_at IS NOT NULL
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at >= p.created_from
                AND (j.created_at, j.id) < (p.created_at, p.id)
            ORDER BY j.status DESC, j.created_at DESC, j.id DESC
            LIMIT :page_limit::bigint
        )
        UNION ALL
        (
            SELECT
                j.created_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE
                j.completed_at IS NOT NULL
                -- Not `= l.queue`: if the statistics have only one queue, that would make the
                -- planner choose jobs_finished_type_idx.
                AND j.queue = ANY(ARRAY[l.queue])
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at >= p.created_from
                AND (j.created_at, j.id) < (p.created_at, p.id)
            ORDER BY j.queue DESC, j.status DESC, j.created_at DESC, j.id DESC
            LIMIT :page_limit::bigint
        )
    ) AS lane_job
    WHERE :worker_ids::text[] IS NULL
    UNION ALL
    SELECT
        pending_job.created_at,
        pending_job.id
    FROM page_start AS p
    CROSS JOIN LATERAL (
        SELECT
            j.created_at,
            j.id
        FROM goqueue.jobs AS j
        WHERE
            j.completed_at IS NULL
            AND j.status <> 'running'
            -- Conditions without a column: if one is false, the scan is skipped.
            AND :worker_ids::text[] IS NULL
            AND (:statuses::text[] IS NULL OR 'pending' = ANY(:statuses::text[]))
            AND (:statuses::text[] IS NULL OR j.status = 'pending')
            AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
            AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
            AND j.created_at >= p.created_from
            AND (j.created_at, j.id) < (p.created_at, p.id)
        ORDER BY j.created_at DESC, j.id DESC
        LIMIT :page_limit::bigint
    ) AS pending_job
    UNION ALL
    SELECT
        j.created_at,
        j.id
    FROM goqueue.jobs AS j
    CROSS JOIN page_start AS p
    WHERE
        j.status = 'running'
        AND (:statuses::text[] IS NULL OR 'running' = ANY(:statuses::text[]))
        AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
        AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
        AND (:worker_ids::text[] IS NULL OR j.locked_by = ANY(:worker_ids::text[]))
        AND j.created_at >= p.created_from
        AND (j.created_at, j.id) < (p.created_at, p.id)
    -- These apply to the whole union.
    ORDER BY created_at DESC, id DESC
    LIMIT :page_limit::bigint
)

SELECT
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM goqueue.jobs AS j
WHERE j.id = ANY(ARRAY(SELECT f.id FROM found_job AS f))
ORDER BY j.created_at DESC, j.id DESC;


-- name: count_jobs(statuses, queues, job_types, worker_ids, created_from, created_before)^
-- Count the jobs that a filter of list_jobs matches.
-- Returns: the count, and whether it is exact. It is exact up to 10,000. Above, it is an estimate from the rows of
-- about 500 random pages of the table, and at least 10,001.
-- Index: jobs_finished_type_idx, and jobs_finished_queue_idx if queues are given; jobs_pending_idx (with a custom plan
-- perhaps jobs_claim_idx); jobs_running_idx.
-- Locks: none.
-- Notes: The lanes are those of list_jobs. At most 10,001 matching entries are counted. Entries of pending and running
-- jobs that don't match are read too, without a limit. ORDER BY only determines the index.
--
WITH counted AS MATERIALIZED (
    SELECT count(*) AS jobs
    FROM (
        SELECT
        FROM goqueue.finished_lanes(:statuses::text[]::goqueue.job_status[], :queues::text[], :job_types::text[]) AS l
        CROSS JOIN LATERAL (
            (
                SELECT
                FROM goqueue.jobs AS j
                WHERE
                    l.queue IS NULL
                    AND j.completed_at IS NOT NULL
                    AND j.job_type = l.job_type
                    AND j.status = l.status
                    AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                    AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
                ORDER BY j.status, j.created_at, j.id
                LIMIT 10001
            )
            UNION ALL
            (
                SELECT
                FROM goqueue.jobs AS j
                WHERE
                    j.completed_at IS NOT NULL
                    AND j.queue = ANY(ARRAY[l.queue])
                    AND j.job_type = l.job_type
                    AND j.status = l.status
                    AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                    AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
                ORDER BY j.queue, j.status, j.created_at, j.id
                LIMIT 10001
            )
        ) AS lane_job
        WHERE :worker_ids::text[] IS NULL
        UNION ALL
        (
            SELECT
            FROM goqueue.jobs AS j
            WHERE
                j.completed_at IS NULL
                AND j.status <> 'running'
                AND :worker_ids::text[] IS NULL
                AND (:statuses::text[] IS NULL OR 'pending' = ANY(:statuses::text[]))
                AND (:statuses::text[] IS NULL OR j.status = 'pending')
                AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
                AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
                AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
            ORDER BY j.created_at, j.id
            LIMIT 10001
        )
        UNION ALL
        SELECT
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'running'
            AND (:statuses::text[] IS NULL OR 'running' = ANY(:statuses::text[]))
            AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
            AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
            AND (:worker_ids::text[] IS NULL OR j.locked_by = ANY(:worker_ids::text[]))
            AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
            AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
        LIMIT 10001
    ) AS few
),

sample_size AS MATERIALIZED (
    SELECT least(100, (100 * 500)::double precision / greatest(pg_relation_size('goqueue.jobs'::regclass) / 8192, 1)::real)::real AS percent
),

sampled AS (
    SELECT ((count(*) * 100)::double precision / (SELECT z.percent FROM sample_size AS z))::bigint AS jobs
    FROM (
        SELECT
            s.status,
            s.queue,
            s.job_type,
            s.locked_by,
            s.created_at
        FROM goqueue.jobs AS s TABLESAMPLE SYSTEM ((SELECT z.percent FROM sample_size AS z)) -- noqa: PRS
        WHERE (SELECT c.jobs FROM counted AS c) > 10000
        -- Never reached: it keeps the planner's estimate low.
        LIMIT 100000
    ) AS j
    WHERE
        (:statuses::text[] IS NULL OR j.status = ANY(:statuses::text[]::goqueue.job_status[]))
        AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
        AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
        AND (:worker_ids::text[] IS NULL OR j.locked_by = ANY(:worker_ids::text[]))
        AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
        AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
)

SELECT
    CASE WHEN c.jobs > 10000 THEN greatest(c.jobs, s.jobs) ELSE c.jobs END AS job_count,
    c.jobs <= 10000 AS is_exact
FROM counted AS c
CROSS JOIN sampled AS s;


-- name: update_job(id, changes)^
-- Change the given fields of one job. A new status also sets the times and the holder. The changes are a JSON object
-- with the columns' names. A missing field is unchanged. Null clears last_error and the keys, sets scheduled_at to now,
-- and leaves status, max_attempts and the holder as they are. For the payload, null means JSON null; for other columns,
-- it is an error. A job that is set to running gets no lease, so rescue_jobs never rescues it. The attempt does not
-- count unless the changes set attempts.
-- Returns: the job after the change. Nothing if there is no such job or the change is rejected. A finished job can't
-- start or finish again: dead and cancelled can become pending, completed is final. A job can't take another job's
-- idempotency key. If it becomes or stays unfinished, it can't take the unique key of another unfinished job.
-- Index: jobs_pkey, jobs_idempotency_key_idx, jobs_unique_key_idx.
-- Locks: the job's row; waits for a transaction that is adding the same key, and fails with a unique_violation if that
-- transaction commits.
--
WITH locked_job AS MATERIALIZED (
    SELECT
        before.id,
        :changes::jsonb AS fields,
        before.status AS status_before,
        coalesce((:changes::jsonb ->> 'status')::goqueue.job_status, before.status) AS status_after,
        coalesce((:changes::jsonb ->> 'max_attempts')::integer, before.max_attempts) AS max_attempts_after,
        CASE
            WHEN :changes::jsonb ? 'unique_key' THEN :changes::jsonb ->> 'unique_key'
            ELSE before.unique_key
        END AS unique_key_after
    FROM goqueue.jobs AS before
    WHERE before.id = :id::uuid
    -- Locked first: the row's current status decides, not the one in the statement's snapshot.
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    queue = CASE WHEN c.fields ? 'queue' THEN c.fields ->> 'queue' ELSE j.queue END,
    job_type = CASE WHEN c.fields ? 'job_type' THEN c.fields ->> 'job_type' ELSE j.job_type END,
    payload = CASE WHEN c.fields ? 'payload' THEN c.fields -> 'payload' ELSE j.payload END,
    status = c.status_after,
    priority = CASE WHEN c.fields ? 'priority' THEN (c.fields ->> 'priority')::smallint ELSE j.priority END,
    -- A finished job that becomes pending has all its attempts again; one that was running has at least one left.
    attempts = CASE
        WHEN c.fields ? 'attempts' THEN (c.fields ->> 'attempts')::integer
        WHEN c.status_after = 'pending' AND j.status IN ('dead', 'cancelled') THEN 0
        WHEN c.status_after = 'pending' AND j.status = 'running' THEN least(j.attempts, c.max_attempts_after - 1)
        ELSE j.attempts
    END,
    max_attempts = c.max_attempts_after,
    last_error = CASE WHEN c.fields ? 'last_error' THEN c.fields ->> 'last_error' ELSE j.last_error END,
    idempotency_key = CASE
        WHEN c.fields ? 'idempotency_key' THEN c.fields ->> 'idempotency_key'
        ELSE j.idempotency_key
    END,
    unique_key = c.unique_key_after,
    -- The holder of a running job: locked_by of the changes, else the current one, else application_name, else
    -- session_user.
    locked_by = CASE
        WHEN c.fields ->> 'locked_by' IS NOT NULL THEN c.fields ->> 'locked_by'
        WHEN c.status_after = 'running'
            THEN coalesce(j.locked_by, nullif(current_setting('application_name'), ''), session_user)
    END,
    locked_at = CASE WHEN c.status_after = 'running' THEN coalesce(j.locked_at, statement_timestamp()) END,
    -- A new token if the job is set running or completed, or gets another holder, so the previous holder loses it.
    lease_token = CASE
        WHEN
            (c.status_after IN ('running', 'completed') AND j.status <> c.status_after)
            OR (c.status_after = 'running' AND j.locked_by <> c.fields ->> 'locked_by')
            THEN mod(j.lease_token, 4611686018427387903) + 1
        ELSE j.lease_token
    END,
    lease_expires_at = CASE WHEN c.status_after = 'running' THEN j.lease_expires_at END,
    scheduled_at = CASE
        WHEN c.fields ? 'scheduled_at' THEN coalesce((c.fields ->> 'scheduled_at')::timestamptz, statement_timestamp())
        ELSE j.scheduled_at
    END,
    updated_at = statement_timestamp(),
    started_at = CASE WHEN c.status_after = 'running' AND j.status <> 'running' THEN statement_timestamp() ELSE j.started_at END,
    completed_at = CASE
        WHEN c.status_after IN ('completed', 'dead', 'cancelled') THEN coalesce(j.completed_at, statement_timestamp())
    END
FROM locked_job AS c
WHERE
    j.id = c.id
    -- The transition is legal, the idempotency key is free, and so is the unique key of a job that stays unfinished.
    AND (
        c.status_after = c.status_before
        OR c.status_before IN ('pending', 'running')
        OR (c.status_before IN ('dead', 'cancelled') AND c.status_after = 'pending')
    )
    AND NOT EXISTS (
        SELECT
        FROM goqueue.jobs AS other
        WHERE other.idempotency_key = c.fields ->> 'idempotency_key' AND other.id <> c.id
    )
    AND (
        c.status_after IN ('completed', 'dead', 'cancelled')
        OR NOT EXISTS (
            SELECT
            FROM goqueue.jobs AS other
            WHERE other.unique_key = c.unique_key_after AND other.completed_at IS NULL AND other.id <> c.id
        )
    )
RETURNING
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at;


-- name: replace_pending_job(id, queue, job_type, payload, priority, max_attempts, scheduled_at, delay, idempotency_key, unique_key)^
-- Add a job, or replace the pending job that has its idempotency key. The replaced job keeps its id.
-- Returns: the job; nothing if the key's job is no longer pending, or another unfinished job has the unique key. An id
-- that another job has is a unique_violation.
-- Index: jobs_idempotency_key_idx decides conflicts; jobs_unique_key_idx, jobs_pkey.
-- Locks: the key's job, pending or not; waits for a transaction that is adding one of the keys, and fails with a
-- unique_violation if that transaction commits the unique key.
INSERT INTO goqueue.jobs AS j (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key,
    unique_key
)
SELECT
    :id::uuid,
    :queue::text,
    :job_type::text,
    :payload::jsonb,
    :priority::smallint,
    :max_attempts::integer,
    coalesce(:scheduled_at::timestamptz, now() + coalesce(extract(EPOCH FROM :delay::interval)::double precision * interval '1 second', '0')) AS scheduled_at,
    :idempotency_key::text,
    :unique_key::text
WHERE NOT EXISTS (
    SELECT
    FROM goqueue.jobs AS other
    WHERE
        other.unique_key = :unique_key::text
        AND other.completed_at IS NULL
        AND other.idempotency_key IS DISTINCT FROM :idempotency_key::text
)
ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO UPDATE SET
    queue = excluded.queue,
    job_type = excluded.job_type,
    payload = excluded.payload,
    priority = excluded.priority,
    max_attempts = excluded.max_attempts,
    scheduled_at = excluded.scheduled_at,
    unique_key = excluded.unique_key,
    attempts = 0,
    last_error = NULL,
    updated_at = statement_timestamp()
WHERE j.status = 'pending'
RETURNING
    j.id,
    j.queue,
    j.job_type,
    j.payload::text AS payload,
    j.status,
    j.priority,
    j.attempts,
    j.max_attempts,
    j.last_error,
    j.idempotency_key,
    j.unique_key,
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at;


-- name: cancel_jobs(ids, statuses, queues, job_types, worker_ids)
-- Cancel pending and running jobs. The worker of a running job is notified if it listens. Otherwise it finds out at its
-- next heartbeat or completion.
-- Returns: the ids of the cancelled jobs; finished and missing jobs are omitted, and jobs that a filter excludes.
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs' rows, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.queue,
        j.job_type,
        j.locked_by
    FROM goqueue.jobs AS j
    WHERE j.id = ANY(:ids::uuid[])
    ORDER BY j.id
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    status = 'cancelled',
    locked_by = NULL,
    locked_at = NULL,
    lease_expires_at = NULL,
    updated_at = statement_timestamp(),
    completed_at = statement_timestamp()
WHERE
    j.id = ANY(
        ARRAY(
            SELECT l.id FROM locked_job AS l
            WHERE
                l.status IN ('pending', 'running')
                AND (:statuses::text[] IS NULL OR l.status = ANY(:statuses::text[]::goqueue.job_status[]))
                AND (:queues::text[] IS NULL OR l.queue = ANY(:queues::text[]))
                AND (:job_types::text[] IS NULL OR l.job_type = ANY(:job_types::text[]))
                AND (:worker_ids::text[] IS NULL OR l.locked_by = ANY(:worker_ids::text[]))
        )
    )
RETURNING j.id;


-- name: retry_jobs(ids, statuses, queues, job_types, worker_ids)
-- Make dead and cancelled jobs pending again, due at once, with all their attempts. A job stays as it is if an
-- unfinished job has its unique key. Of several jobs with the same unique key, the one with the highest id becomes
-- pending: the newest, if the ids are UUIDv7 (the default).
-- Returns: the ids of the jobs that are pending again; others are omitted, and jobs that a filter excludes.
-- Index: jobs_pkey, two probes per job; jobs_unique_key_idx, one per job with a unique key.
-- Locks: the jobs' rows, in the order of their ids; waits for a transaction that is adding one of the unique keys, and
-- fails with a unique_violation if that transaction commits. Two calls with different jobs of the same unique keys can
-- deadlock: the order of their new index entries is not fixed.
--
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.queue,
        j.job_type,
        j.locked_by,
        j.unique_key
    FROM goqueue.jobs AS j
    WHERE j.id = ANY(:ids::uuid[])
    ORDER BY j.id
    FOR NO KEY UPDATE
),

retriable_job AS MATERIALIZED (
    SELECT
        l.id,
        l.unique_key,
        row_number() OVER (PARTITION BY l.unique_key ORDER BY l.id DESC) AS place
    FROM locked_job AS l
    WHERE
        l.status IN ('dead', 'cancelled')
        AND (:statuses::text[] IS NULL OR l.status = ANY(:statuses::text[]::goqueue.job_status[]))
        AND (:queues::text[] IS NULL OR l.queue = ANY(:queues::text[]))
        AND (:job_types::text[] IS NULL OR l.job_type = ANY(:job_types::text[]))
        AND (:worker_ids::text[] IS NULL OR l.locked_by = ANY(:worker_ids::text[]))
)

UPDATE goqueue.jobs AS j
SET
    status = 'pending',
    attempts = 0,
    -- PostgreSQL also checks the constraints on the row of the snapshot, in which the job can still run.
    locked_by = NULL,
    locked_at = NULL,
    lease_expires_at = NULL,
    scheduled_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    completed_at = NULL
WHERE
    j.id = ANY(
        ARRAY(
            SELECT r.id
            FROM retriable_job AS r
            WHERE
                r.unique_key IS NULL
                OR (
                    r.place = 1
                    AND NOT EXISTS (
                        SELECT
                        FROM goqueue.jobs AS other
                        WHERE
                            other.unique_key = r.unique_key
                            AND other.completed_at IS NULL
                            -- Not the job itself, which the statement's snapshot can show unfinished.
                            AND other.id <> r.id
                    )
                )
        )
    )
RETURNING j.id;


-- name: reschedule_jobs(ids, statuses, queues, job_types, worker_ids, scheduled_at, delay)
-- Set a new time for pending jobs: scheduled_at, or delay from now.
-- Returns: the ids of the changed jobs; jobs that are not pending are omitted, and jobs that a filter excludes.
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs' rows, in the order of their ids.
-- Notes: While claims resume from their last position, they find a job with an earlier time at the next full scan.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.queue,
        j.job_type,
        j.locked_by
    FROM goqueue.jobs AS j
    WHERE j.id = ANY(:ids::uuid[])
    ORDER BY j.id
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    scheduled_at = coalesce(
        :scheduled_at::timestamptz,
        statement_timestamp() + coalesce(extract(EPOCH FROM :delay::interval)::double precision * interval '1 second', '0')
    ),
    updated_at = statement_timestamp()
WHERE
    j.id = ANY(
        ARRAY(
            SELECT l.id FROM locked_job AS l
            WHERE
                l.status = 'pending'
                AND (:statuses::text[] IS NULL OR l.status = ANY(:statuses::text[]::goqueue.job_status[]))
                AND (:queues::text[] IS NULL OR l.queue = ANY(:queues::text[]))
                AND (:job_types::text[] IS NULL OR l.job_type = ANY(:job_types::text[]))
                AND (:worker_ids::text[] IS NULL OR l.locked_by = ANY(:worker_ids::text[]))
        )
    )
RETURNING j.id;


-- name: change_jobs(ids, statuses, queues, job_types, worker_ids, queue, priority, max_attempts)
-- Change the queue, the priority and max_attempts of jobs that are not completed. A null leaves the column unchanged.
-- Returns: the ids of the changed jobs. Omitted are completed and missing jobs, jobs that a filter excludes, and jobs
-- that have already used more attempts than max_attempts (pending jobs: as many or more).
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs' rows, in the order of their ids.
-- Notes: A trigger wakes the listeners of the queue to which a due job is moved. While claims resume from their last
-- position, they find a job with a new queue or priority at the next full scan.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.queue,
        j.job_type,
        j.locked_by,
        j.attempts,
        coalesce(:max_attempts::integer, j.max_attempts) AS max_attempts_after
    FROM goqueue.jobs AS j
    WHERE j.id = ANY(:ids::uuid[])
    ORDER BY j.id
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    queue = coalesce(:queue::text, j.queue),
    priority = coalesce(:priority::smallint, j.priority),
    max_attempts = coalesce(:max_attempts::integer, j.max_attempts),
    updated_at = statement_timestamp()
WHERE
    j.id = ANY(
        ARRAY(
            SELECT l.id FROM locked_job AS l
            WHERE
                (
                    (l.status = 'pending' AND l.attempts < l.max_attempts_after)
                    OR (l.status IN ('running', 'dead', 'cancelled') AND l.attempts <= l.max_attempts_after)
                )
                AND (:statuses::text[] IS NULL OR l.status = ANY(:statuses::text[]::goqueue.job_status[]))
                AND (:queues::text[] IS NULL OR l.queue = ANY(:queues::text[]))
                AND (:job_types::text[] IS NULL OR l.job_type = ANY(:job_types::text[]))
                AND (:worker_ids::text[] IS NULL OR l.locked_by = ANY(:worker_ids::text[]))
        )
    )
RETURNING j.id;


-- name: delete_job(id)$
-- Delete one job in any status.
-- Returns: the transaction's id; nothing if there is no such job.
-- Index: jobs_pkey.
-- Locks: the job's row.
DELETE FROM goqueue.jobs AS j
WHERE j.id = :id::uuid
RETURNING pg_current_xact_id()::text AS transaction_id;


-- name: delete_jobs(ids, statuses, queues, job_types, worker_ids)
-- Delete jobs in any status; none if another table refers to one of them.
-- Returns: the id of each deleted job, and the transaction's id; missing jobs are omitted, and jobs that a filter
-- excludes.
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs' rows, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.queue,
        j.job_type,
        j.locked_by
    FROM goqueue.jobs AS j
    WHERE j.id = ANY(:ids::uuid[])
    ORDER BY j.id
    FOR UPDATE
)

DELETE FROM goqueue.jobs AS j
WHERE
    j.id = ANY(
        ARRAY(
            SELECT l.id FROM locked_job AS l
            WHERE
                (:statuses::text[] IS NULL OR l.status = ANY(:statuses::text[]::goqueue.job_status[]))
                AND (:queues::text[] IS NULL OR l.queue = ANY(:queues::text[]))
                AND (:job_types::text[] IS NULL OR l.job_type = ANY(:job_types::text[]))
                AND (:worker_ids::text[] IS NULL OR l.locked_by = ANY(:worker_ids::text[]))
        )
    )
RETURNING
    j.id,
    pg_current_xact_id()::text AS transaction_id;


-- name: delete_failures(ids)
-- Delete the history of jobs' failures, after delete_job or delete_jobs and in its transaction.
-- Returns: the tokens of the failed attempts; no row if there were none.
-- Index: job_failures_pkey.
-- Locks: the failures' rows.
-- Notes: A separate statement, because only a new snapshot sees a failure that another transaction recorded while
-- the deletion waited for its job.
DELETE FROM goqueue.job_failures AS f
WHERE f.job_id = ANY(:ids::uuid[])
RETURNING f.lease_token;


-- name: prune_jobs(older_than, statuses, queues, job_types, job_limit, kept_ids)
-- Delete one batch of jobs that finished more than older_than ago, with their failure history. It works lane by lane,
-- oldest job first. Null queues and job types match all. Jobs with an id in kept_ids are skipped.
-- Returns: for each job of the batch, its id and the reason why it was not deleted (null if it was). A batch smaller
-- than job_limit is the last one.
-- Index: jobs_finished_type_idx, and jobs_finished_queue_idx if queues are given, by created_at, which is never later
-- than completed_at; jobs_pkey, job_failures_pkey; pg_trigger_tgrelid_tgname_index, or pg_trigger, which is small.
-- Locks: the batch's rows and their failures. A job that another session has locked is skipped.
-- Notes: If a trigger or another table's foreign key can keep a job, goqueue.delete_unreferenced_jobs deletes the batch
-- in a savepoint, and leaves out the kept jobs. Otherwise the statement itself deletes it. A row that is locked outside
-- a savepoint and deleted inside has a multixact as its xmax. Scans do not mark its index entries as dead, so later
-- batches read them again until vacuum. Each call starts at the oldest job of each lane. It reads and skips the jobs in
-- kept_ids, and jobs that are old enough by created_at but not by completed_at. An index on completed_at would avoid
-- the second, but would add a cost to every completion.
--
WITH guard AS MATERIALIZED (
    -- A foreign key has triggers, too. In tgtype, 8 marks triggers on DELETE.
    SELECT count(*) > 0 AS is_present
    FROM pg_catalog.pg_trigger AS t
    WHERE
        t.tgrelid IN ('goqueue.jobs'::regclass, 'goqueue.job_failures'::regclass)
        AND t.tgtype::integer & 8 = 8
        AND t.tgname <> 'jobs_follow_delete'
),

due_job AS MATERIALIZED (
    SELECT lane_job.id
    FROM goqueue.finished_lanes(:statuses::text[]::goqueue.job_status[], :queues::text[], :job_types::text[]) AS l
    CROSS JOIN (
        SELECT statement_timestamp() - extract(EPOCH FROM :older_than::interval)::double precision * interval '1 second' AS finished_before
    ) AS p
    CROSS JOIN LATERAL (
        -- A union accepts no locks, so each of its SELECTs has a subquery that locks.
        SELECT of_type.id
        FROM (
            SELECT j.id
            FROM goqueue.jobs AS j
            WHERE
                :queues::text[] IS NULL
                AND j.completed_at IS NOT NULL
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at < p.finished_before
                -- In this order, because comparing an id with thousands takes longer than comparing a time.
                AND CASE WHEN j.completed_at < p.finished_before THEN j.id <> ALL(:kept_ids::uuid[]) ELSE FALSE END
            ORDER BY j.status, j.created_at, j.id
            LIMIT :job_limit::bigint
            FOR UPDATE SKIP LOCKED
        ) AS of_type
        UNION ALL
        SELECT of_queue.id
        FROM (
            SELECT j.id
            FROM goqueue.jobs AS j
            WHERE
                j.completed_at IS NOT NULL
                -- Not = l.queue, for the reason given in list_jobs.
                AND j.queue = ANY(ARRAY[l.queue])
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at < p.finished_before
                AND CASE WHEN j.completed_at < p.finished_before THEN j.id <> ALL(:kept_ids::uuid[]) ELSE FALSE END
            ORDER BY j.queue, j.status, j.created_at, j.id
            LIMIT :job_limit::bigint
            FOR UPDATE SKIP LOCKED
        ) AS of_queue
    ) AS lane_job
    LIMIT :job_limit::bigint
),

deleted_job AS (
    DELETE FROM goqueue.jobs AS j
    WHERE
        j.id = ANY(
            ARRAY(
                SELECT b.id
                FROM due_job AS b
                CROSS JOIN guard AS g
                WHERE NOT g.is_present
            )
        )
    RETURNING j.id
),

deleted_failure AS (
    DELETE FROM goqueue.job_failures AS f
    WHERE f.job_id = ANY(ARRAY(SELECT d.id FROM deleted_job AS d))
)

SELECT
    d.id,
    NULL::text AS refusal
FROM deleted_job AS d
UNION ALL
SELECT
    b.id,
    CASE WHEN d.id IS NULL THEN 'a trigger has suppressed the deletion' ELSE d.refusal END AS refusal
FROM due_job AS b
LEFT JOIN goqueue.delete_unreferenced_jobs(ARRAY(SELECT a.id FROM due_job AS a)) AS d ON b.id = d.id
WHERE (SELECT g.is_present FROM guard AS g);
