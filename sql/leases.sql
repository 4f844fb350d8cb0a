-- The statements on a running job: claim, heartbeat, complete, fail, release, rescue; and a worker's other queries. The
-- rules of this folder are in jobs.sql.
--
-- A holder names each job by its id and the token of its claim (a fencing token). Heartbeat, complete, fail and release
-- have three steps. First they lock the named rows in the order of their ids, so that two of them, each in a
-- transaction of its own, don't deadlock. Then they drop the jobs that the token no longer holds. Last they change the
-- others. The lock step searches only by id, and the status is tested afterwards, so that the planner can't choose an
-- index by status. If another SELECT returns the rows, the change is a CTE: PostgreSQL runs a data-modifying CTE to its
-- end, whether or not its rows are read.
--
-- Due means scheduled_at <= statement_timestamp(). now() would be the start of the transaction.
--
-- Rows are locked FOR NO KEY UPDATE, which is enough for the updates. FOR UPDATE would also conflict with the foreign
-- key check of a row that refers to the job.


-- name: claim_jobs(queues, worker_id, job_limit, lease, lane_queues, lane_priorities, lane_times, lane_ids)
-- Claim due jobs by priority. Among lanes of one priority, the lane that has waited longest comes first; within a lane,
-- jobs are ordered by scheduled_at, then id. Paused queues are skipped.
-- Returns: the claimed jobs, ordered by priority, scheduled_at, id.
-- Index: jobs_claim_idx, to find the lanes (goqueue.pending_lanes) and to pick the jobs; jobs_pkey, to update them. The
-- table paused_queues is read once, in full: one row per paused queue.
-- Locks: the claimed jobs, FOR NO KEY UPDATE, and at times jobs of concurrent claims (see the notes); jobs locked by
-- other sessions are skipped (SKIP LOCKED).
-- Notes: A lane is the due jobs of one queue and one priority: one range of the index. It ends at the current time, so
-- that future jobs of a more urgent priority are never read. Normally the lane_ parameters are null, and each lane is
-- scanned from its first job. While the table has many dead rows (estimate_dead_rows), these parameters name lanes and
-- the last job taken in each. The scan then starts at that job, and does not read the dead index entries before it
-- again. It misses jobs before that job, and other lanes, until the next full scan. 4611686018427387903 is the largest
-- token, 2^62 - 1; the next one is 1. A job that another session claims while the statement runs can be locked without
-- being returned, because PostgreSQL locks the row before it sees the change. That session then waits with a heartbeat
-- or a completion until this transaction ends.
--
WITH lane AS MATERIALIZED (
    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id
    FROM goqueue.pending_lanes(:queues::text[]) AS l
    WHERE :lane_queues::text[] IS NULL
    UNION ALL
    SELECT
        u.queue,
        u.priority,
        u.scheduled_at,
        u.id
    FROM unnest(
        :lane_queues::text[], :lane_priorities::smallint[], :lane_times::timestamptz[], :lane_ids::uuid[]
    ) AS u (queue, priority, scheduled_at, id)
),

-- LATERAL makes the lanes the outer side of a nested loop, so their order is kept. The outer LIMIT stops the loop, so
-- that only taken jobs are locked.
due_job AS MATERIALIZED (
    SELECT lane_job.id
    FROM (
        SELECT
            l.queue,
            l.priority,
            l.scheduled_at,
            l.id,
            -- As a column, the limit is unknown to the planner, which then scans in the index's order without a sort.
            :job_limit::bigint AS job_limit
        FROM lane AS l
        WHERE
            l.scheduled_at <= statement_timestamp()
            AND l.queue <> ALL(
                ARRAY(
                    SELECT p.queue FROM goqueue.paused_queues AS p
                    WHERE p.paused_until > statement_timestamp()
                )
            )
        ORDER BY l.priority, l.scheduled_at, l.id
    ) AS l
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'pending'
            AND j.queue = l.queue
            AND j.priority = l.priority
            AND j.scheduled_at <= statement_timestamp()
            AND (j.scheduled_at, j.id) >= (l.scheduled_at, l.id)
        ORDER BY j.scheduled_at, j.id
        LIMIT l.job_limit
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS lane_job
    LIMIT :job_limit::bigint
),

claimed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = 'running',
        attempts = j.attempts + 1,
        locked_by = :worker_id::text,
        locked_at = statement_timestamp(),
        lease_token = mod(j.lease_token, 4611686018427387903) + 1,
        lease_expires_at = statement_timestamp() + extract(EPOCH FROM :lease::interval)::double precision * interval '1 second',
        updated_at = statement_timestamp(),
        started_at = statement_timestamp()
    -- An array: in a join, the planner would estimate the unknown LIMIT as a tenth of the table, and read all of it.
    WHERE j.id = ANY(ARRAY(SELECT d.id FROM due_job AS d))
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
        j.completed_at
)

SELECT
    c.id,
    c.queue,
    c.job_type,
    c.payload,
    c.status,
    c.priority,
    c.attempts,
    c.max_attempts,
    c.last_error,
    c.idempotency_key,
    c.unique_key,
    c.locked_by,
    c.locked_at,
    c.lease_token,
    c.lease_expires_at,
    c.scheduled_at,
    c.created_at,
    c.updated_at,
    c.started_at,
    c.completed_at
FROM claimed_job AS c
ORDER BY c.priority, c.scheduled_at, c.id;


-- name: heartbeat_jobs(ids, tokens, lease)
-- Renew the leases of running jobs.
-- Returns: the ids of the jobs that the caller still holds; their leases are renewed.
-- Index: jobs_pkey, two probes per job. No indexed column changes, so no index entry is added if the row's page
-- has room (HOT, fillfactor).
-- Locks: the jobs, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.lease_token = l.token AS is_held
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS l (id, token)
    INNER JOIN goqueue.jobs AS j ON l.id = j.id
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
)

UPDATE goqueue.jobs AS j
SET
    lease_expires_at = statement_timestamp() + extract(EPOCH FROM :lease::interval)::double precision * interval '1 second',
    updated_at = statement_timestamp()
FROM locked_job AS k
WHERE j.id = k.id AND k.is_held AND k.status = 'running'
RETURNING j.id;


-- name: complete_jobs(ids, tokens)
-- Complete running jobs. A job that the same lease has already completed counts as completed, so that the call can be
-- repeated.
-- Returns: the ids of the jobs that the caller held; they are completed.
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.lease_token = l.token AS is_held
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS l (id, token)
    INNER JOIN goqueue.jobs AS j ON l.id = j.id
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
),

held_job AS MATERIALIZED (
    SELECT
        k.id,
        k.status
    FROM locked_job AS k
    WHERE k.is_held AND k.status IN ('running', 'completed')
),

completed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = 'completed',
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        updated_at = statement_timestamp(),
        completed_at = statement_timestamp()
    FROM held_job AS h
    WHERE j.id = h.id AND h.status = 'running'
)

SELECT h.id
FROM held_job AS h;


-- name: fail_jobs(ids, tokens, errors, is_final, retry_in, backoff_base, backoff_factor, backoff_max, backoff_jitter)
-- Fail attempts of running jobs. A job becomes pending again; without an attempt left, or with is_final, it is dead.
-- The next attempt is due after retry_in. If that is null, the delay is the smaller of max and base * factor ^
-- (attempts - 1), times a random factor from 1 to 1 + jitter. The factor spreads jobs that failed together. With it,
-- the delay can exceed max.
-- Returns: id and status of the jobs that the caller held.
-- Index: jobs_pkey, two probes per job. job_failures_pkey.
-- Locks: the jobs, in the order of their ids.
--
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.attempts,
        j.max_attempts,
        j.locked_by,
        j.lease_token = l.token AS is_held,
        l.error
    FROM unnest(:ids::uuid[], :tokens::bigint[], :errors::text[]) AS l (id, token, error)
    INNER JOIN goqueue.jobs AS j ON l.id = j.id
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
),

held_job AS MATERIALIZED (
    SELECT
        k.id,
        k.locked_by,
        NOT :is_final::boolean AND k.attempts < k.max_attempts AS has_attempt,
        -- A lease that is passed twice counts as one failure.
        max(k.error) AS error
    FROM locked_job AS k
    WHERE k.is_held AND k.status = 'running'
    GROUP BY k.id, k.locked_by, k.attempts, k.max_attempts
),

failed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN h.has_attempt THEN 'pending' ELSE 'dead' END::goqueue.job_status,
        last_error = h.error,
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        scheduled_at = CASE
            WHEN h.has_attempt THEN statement_timestamp() + coalesce(
                extract(EPOCH FROM :retry_in::interval)::double precision * interval '1 second',
                -- Seconds as a double, because an interval could overflow. exp(300) is beyond any max.
                least(
                    extract(EPOCH FROM :backoff_base::interval)::double precision
                    * exp(least(ln(:backoff_factor::double precision) * (j.attempts - 1)::double precision, 300)),
                    extract(EPOCH FROM :backoff_max::interval)::double precision
                ) * (1::double precision + :backoff_jitter::double precision * random()) * '1 second'::interval
            )
            ELSE j.scheduled_at
        END,
        updated_at = statement_timestamp(),
        completed_at = CASE WHEN NOT h.has_attempt THEN statement_timestamp() END
    FROM held_job AS h
    WHERE j.id = h.id
    RETURNING
        j.id,
        j.status,
        j.lease_token,
        j.attempts,
        j.started_at,
        h.locked_by,
        j.last_error
),

recorded_failure AS (
    INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, failed_at, started_at, worker_id, error)
    SELECT
        f.id,
        f.lease_token,
        f.attempts,
        statement_timestamp() AS failed_at,
        f.started_at,
        f.locked_by,
        f.last_error
    FROM failed_job AS f
    -- A failure left behind by a manually deleted job must not block a job with the same id.
    ON CONFLICT (job_id, lease_token) DO UPDATE SET
        attempt = excluded.attempt,
        failed_at = excluded.failed_at,
        started_at = excluded.started_at,
        worker_id = excluded.worker_id,
        error = excluded.error
)

SELECT
    f.id,
    f.status
FROM failed_job AS f;


-- name: release_jobs(ids, tokens, delay)
-- Return running jobs to pending without counting the attempt, for example at shutdown. They are due after delay; with
-- a delay of zero, scheduled_at is unchanged.
-- Returns: the ids of the jobs that the caller held; they are pending.
-- Index: jobs_pkey, two probes per job.
-- Locks: the jobs, in the order of their ids.
-- Notes: While claims resume from their last position, they find a job with an earlier time at the next full scan.
WITH locked_job AS MATERIALIZED (
    SELECT
        j.id,
        j.status,
        j.lease_token = l.token AS is_held
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS l (id, token)
    INNER JOIN goqueue.jobs AS j ON l.id = j.id
    ORDER BY j.id
    FOR NO KEY UPDATE OF j
)

UPDATE goqueue.jobs AS j
SET
    status = 'pending',
    attempts = greatest(j.attempts - 1, 0),
    locked_by = NULL,
    locked_at = NULL,
    lease_expires_at = NULL,
    scheduled_at = coalesce(
        statement_timestamp() + nullif(extract(EPOCH FROM :delay::interval), 0::numeric)::double precision * interval '1 second',
        j.scheduled_at
    ),
    updated_at = statement_timestamp()
FROM locked_job AS k
WHERE j.id = k.id AND k.is_held AND k.status = 'running'
RETURNING j.id;


-- name: rescue_jobs(job_limit)
-- End attempts whose lease has expired without a heartbeat. The next attempt is due at once. Without an attempt left,
-- the job is dead.
-- Returns: id and status of the rescued jobs; no row if no lease has expired.
-- Index: jobs_running_idx, jobs_pkey, job_failures_pkey.
-- Locks: the rescued jobs. A job that another session has locked is skipped.
-- Notes: All running jobs are read, because there are few. Call it at intervals, not before every claim. Index entries
-- of finished runs are read too until vacuum removes them (20 ms for 150,000). A transaction left open elsewhere
-- prevents that. An index on lease_expires_at would make every heartbeat add an entry.
--
WITH expired_job AS MATERIALIZED (
    SELECT
        j.id,
        j.locked_by
    FROM goqueue.jobs AS j
    WHERE j.status = 'running' AND j.lease_expires_at <= statement_timestamp()
    ORDER BY j.id
    LIMIT :job_limit::bigint
    FOR NO KEY UPDATE SKIP LOCKED
),

rescued_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN j.attempts < j.max_attempts THEN 'pending' ELSE 'dead' END::goqueue.job_status,
        last_error = 'the lease expired: its holder sent no heartbeat in time',
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        -- Set to now, because a claim that resumes from a later position would miss the old time.
        scheduled_at = CASE WHEN j.attempts < j.max_attempts THEN statement_timestamp() ELSE j.scheduled_at END,
        updated_at = statement_timestamp(),
        completed_at = CASE WHEN j.attempts >= j.max_attempts THEN statement_timestamp() END
    WHERE j.id = ANY(ARRAY(SELECT e.id FROM expired_job AS e))
    RETURNING
        j.id,
        j.status,
        j.lease_token,
        j.attempts,
        j.started_at,
        j.last_error
),

recorded_failure AS (
    INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, failed_at, started_at, worker_id, error)
    SELECT
        r.id,
        r.lease_token,
        r.attempts,
        statement_timestamp() AS failed_at,
        r.started_at,
        e.locked_by,
        r.last_error
    FROM rescued_job AS r
    INNER JOIN expired_job AS e ON r.id = e.id
    -- A failure left behind by a manually deleted job must not block a job with the same id.
    ON CONFLICT (job_id, lease_token) DO UPDATE SET
        attempt = excluded.attempt,
        failed_at = excluded.failed_at,
        started_at = excluded.started_at,
        worker_id = excluded.worker_id,
        error = excluded.error
)

SELECT
    r.id,
    r.status
FROM rescued_job AS r;


-- name: list_failures(job_id)
-- Return the failed attempts of one job.
-- Returns: the attempts in order; no row if there are none.
-- Index: job_failures_pkey.
-- Locks: none.
SELECT
    f.lease_token,
    f.attempt,
    f.started_at,
    f.failed_at,
    f.worker_id,
    f.error
FROM goqueue.job_failures AS f
WHERE f.job_id = :job_id::uuid
ORDER BY f.lease_token;


-- name: next_job_at(queues)$
-- Return when the next job of the queues can be claimed, for a worker that sleeps until then.
-- Returns: the earliest scheduled_at, which is in the past if a job is already due. A job of a paused queue counts with
-- the end of the pause if that is later. Null if no job is pending, or only jobs of queues that are
-- paused without an end.
-- Index: jobs_claim_idx, one probe per lane and one per queue; paused_queues_pkey, one probe per queue.
-- Locks: none.
-- Notes: It scans each lane from the start, including the dead index entries that claims have left.
--
SELECT min(greatest(l.scheduled_at, p.paused_until))
FROM goqueue.pending_lanes(:queues::text[]) AS l
-- The second condition follows from the first, but makes this an index scan.
LEFT JOIN goqueue.paused_queues AS p ON l.queue = p.queue AND p.queue = ANY(:queues::text[])
WHERE p.paused_until IS DISTINCT FROM 'infinity';


-- name: estimate_dead_rows()$
-- Estimate the dead tuples of goqueue.jobs. If there are 5,000 or more, claims resume from their last position (lane_
-- parameters of claim_jobs).
-- Returns: a number, some seconds old; 0 if track_counts is off.
-- Index: none; it reads autovacuum's statistics.
-- Locks: none.
SELECT pg_stat_get_dead_tuples('goqueue.jobs'::regclass::oid);
