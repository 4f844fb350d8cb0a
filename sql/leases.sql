-- The statements of a running job: claim, heartbeat, complete, fail, release, rescue. Each names a job together with the
-- token of its claim, and changes nothing for an older token. The rules of this folder are in jobs.sql.
--
-- Due is what is due by the server's clock when the statement starts: inside a long transaction now() stands still.
--
-- Jobs are found by id alone. `IS TRUE` keeps the other conditions out of the planner's hands: by its statistics hardly
-- any job is running, and it would rather read all index entries of that status, dead ones included, or join. An index
-- scan takes an array's ids in their order, and so the rows are locked in it: no two statements wait for each other
-- in a circle. Where a session allows other scans (goqueue's own do not), a small table can be locked in another order.
--
-- Rows are locked FOR NO KEY UPDATE, which is all that the updates need: FOR UPDATE would also wait for, or pass over, a job
-- that a row just added elsewhere refers to by a foreign key.


-- name: claim_jobs(queues, worker_id, job_limit, lease, lane_queues, lane_priorities, lane_times, lane_ids)
-- Takes due jobs of the queues: by priority, then scheduled_at, then id. A job whose attempts are used up becomes dead.
-- Returns: the jobs taken, in that order, each with: how many others became dead, and, if dead index entries made it dear,
-- the lanes (queue and priority) with the time and id of their first jobs. Without a job one row with these alone.
-- Index: jobs_claim_idx, jobs_pkey.
-- Locks: the jobs taken; those that others have locked are passed over (SKIP LOCKED), never waited for.
-- Notes: A lane is a queue and a priority, and each is visited for itself: so scheduled_at is a range on the last column
-- searched, and a million jobs of a better priority that are not due yet cost nothing. With the lane_ parameters given,
-- only these lanes are visited, each from its (time, id) on: a claim that goes on where another ended passes over no dead
-- index entries, which wait for vacuum or for a transaction left open elsewhere. Without them every lane is found by a
-- loose index scan. UPDATE takes its ids from an array, because the planner takes an unknown LIMIT for a tenth of the
-- table, and joins that many rows by reading all. From counted_before on complete_and_claim has the same text.
WITH RECURSIVE wanted AS MATERIALIZED (
    SELECT :job_limit::bigint AS job_count
),

counted_before AS MATERIALIZED (
    SELECT
        pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass) AS entries,
        pg_stat_get_xact_blocks_fetched('goqueue.jobs_claim_idx'::regclass) AS pages
),

-- Each lane with its first job.
found_lane (queue, priority, scheduled_at, id) AS (
    SELECT
        q.queue,
        first_job.priority,
        first_job.scheduled_at,
        first_job.id
    FROM (
        SELECT DISTINCT u.queue
        FROM unnest(:queues::text[]) AS u (queue)
        WHERE :lane_queues::text[] IS NULL AND (SELECT b.entries >= 0 FROM counted_before AS b)
    ) AS q
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
    FROM found_lane AS l
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
),

-- Through arrays, because the planner takes an array for ten rows, and its own guess for the recursion is a thousand.
lane AS MATERIALIZED (
    SELECT
        u.queue,
        u.priority,
        u.scheduled_at,
        u.id
    FROM (
        SELECT
            array_agg(f.queue) AS queues,
            array_agg(f.priority) AS priorities,
            array_agg(f.scheduled_at) AS times,
            array_agg(f.id) AS ids
        FROM found_lane AS f
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.priorities, a.times, a.ids) AS u (queue, priority, scheduled_at, id)
    UNION ALL
    SELECT
        k.queue,
        k.priority,
        k.scheduled_at,
        k.id
    FROM unnest(
        :lane_queues::text[], :lane_priorities::smallint[], :lane_times::timestamptz[], :lane_ids::uuid[]
    ) AS k (queue, priority, scheduled_at, id)
),

due_lane AS MATERIALIZED (
    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id
    FROM lane AS l
    WHERE l.scheduled_at <= statement_timestamp()
),

-- How many of the first jobs lie in each lane. A single lane has them all, and need not be looked at twice.
share AS MATERIALIZED (
    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id,
        w.job_count,
        NULL::bigint AS seen
    FROM due_lane AS l
    CROSS JOIN wanted AS w
    WHERE (SELECT count(*) FROM due_lane) = 1
    UNION ALL
    SELECT
        first_job.queue,
        first_job.priority,
        first_job.scheduled_at,
        first_job.id,
        count(*) AS job_count,
        (sum(count(*)) OVER ())::bigint AS seen
    FROM (
        SELECT
            l.queue,
            l.priority,
            l.scheduled_at,
            l.id
        -- In this order the lanes of a worse priority are left unread once there are enough.
        FROM (
            SELECT
                d.queue,
                d.priority,
                d.scheduled_at,
                d.id
            FROM due_lane AS d
            ORDER BY d.priority
        ) AS l
        CROSS JOIN LATERAL (
            SELECT
                j.scheduled_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE
                j.status = 'pending'
                AND j.queue = l.queue
                AND j.priority = l.priority
                AND j.scheduled_at <= statement_timestamp()
                AND (j.scheduled_at, j.id) >= (l.scheduled_at, l.id)
            ORDER BY j.scheduled_at, j.id
            LIMIT (SELECT w.job_count FROM wanted AS w)
        ) AS due
        WHERE (SELECT count(*) FROM due_lane) > 1
        ORDER BY l.priority, due.scheduled_at, due.id
        LIMIT (SELECT w.job_count FROM wanted AS w)
    ) AS first_job
    GROUP BY first_job.queue, first_job.priority, first_job.scheduled_at, first_job.id
),

locked_job AS MATERIALIZED (
    SELECT due.id
    FROM share AS s
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'pending'
            AND j.queue = s.queue
            AND j.priority = s.priority
            AND j.scheduled_at <= statement_timestamp()
            AND (j.scheduled_at, j.id) >= (s.scheduled_at, s.id)
        ORDER BY j.scheduled_at, j.id
        LIMIT s.job_count
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS due
),

-- Where others had locked so many that a lane ran out, the lanes are gone through in order for what is missing.
further_job AS MATERIALIZED (
    SELECT due.id
    FROM (
        SELECT
            l.queue,
            l.priority,
            l.scheduled_at,
            l.id
        FROM due_lane AS l
        WHERE (SELECT count(*) FROM locked_job) < (SELECT max(s.seen) FROM share AS s)
        ORDER BY l.priority
    ) AS o
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'pending'
            AND j.queue = o.queue
            AND j.priority = o.priority
            AND j.scheduled_at <= statement_timestamp()
            AND (j.scheduled_at, j.id) >= (o.scheduled_at, o.id)
            AND (j.id <> ALL(ARRAY(SELECT k.id FROM locked_job AS k))) IS TRUE
        ORDER BY j.scheduled_at, j.id
        LIMIT (SELECT w.job_count FROM wanted AS w)
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS due
    LIMIT (SELECT w.job_count FROM wanted AS w) - (SELECT count(*) FROM locked_job)
),

claimed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN j.attempts < j.max_attempts THEN 'running' ELSE 'dead' END::goqueue.job_status,
        attempts = least(j.attempts + 1, j.max_attempts),
        last_error = CASE
            WHEN j.attempts < j.max_attempts THEN j.last_error
            ELSE coalesce(j.last_error, 'no attempt was left when it was claimed')
        END,
        locked_by = CASE WHEN j.attempts < j.max_attempts THEN :worker_id::text END,
        locked_at = CASE WHEN j.attempts < j.max_attempts THEN statement_timestamp() END,
        lease_token = mod(j.lease_token, 4611686018427387903) + 1,
        lease_expires_at = CASE
            WHEN j.attempts < j.max_attempts THEN statement_timestamp() + extract(EPOCH FROM :lease::interval) * interval '1 second'
        END,
        updated_at = statement_timestamp(),
        started_at = CASE WHEN j.attempts < j.max_attempts THEN statement_timestamp() ELSE j.started_at END,
        completed_at = CASE WHEN j.attempts >= j.max_attempts THEN statement_timestamp() END
    WHERE j.id = ANY(
        ARRAY(
            SELECT k.id FROM locked_job AS k
            UNION ALL
            SELECT k.id FROM further_job AS k
        )
    )
    RETURNING
        j.id,
        j.queue,
        j.job_type,
        j.payload,
        j.status,
        j.priority,
        j.attempts,
        j.max_attempts,
        j.last_error,
        j.idempotency_key,
        j.locked_by,
        j.locked_at,
        j.lease_token,
        j.lease_expires_at,
        j.scheduled_at,
        j.created_at,
        j.updated_at,
        j.started_at,
        j.completed_at
),

-- The lanes, when so much was read that the next claims had better go on where this one ended: entries that have to be
-- looked up in the table, because an old snapshot may still need their rows, or pages of entries that are known to be
-- dead and wait for vacuum.
dear AS (
    SELECT
        array_agg(l.queue) AS lane_queues,
        array_agg(l.priority) AS lane_priorities,
        array_agg(l.scheduled_at) AS lane_times,
        array_agg(l.id) AS lane_ids
    FROM lane AS l
    WHERE
        -- Only when all are claimed is it known how much was read.
        (SELECT count(*) FROM claimed_job) >= 0
        AND (
            SELECT
                -- Besides those that have to be read: of each lane its first one, the jobs wanted, and one beyond.
                r.entries > 1000 + 10 * r.job_count + r.lane_count * (r.job_count + 2)
                -- Each lane is looked for once, and its jobs twice.
                OR r.pages > 200 + r.lane_count * (10 + r.job_count / 10)
            FROM (
                SELECT
                    w.job_count,
                    (SELECT count(*) FROM lane) AS lane_count,
                    pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass) - b.entries AS entries,
                    pg_stat_get_xact_blocks_fetched('goqueue.jobs_claim_idx'::regclass) - b.pages AS pages
                FROM wanted AS w
                CROSS JOIN counted_before AS b
            ) AS r
        )
)

SELECT
    c.id,
    c.queue,
    c.job_type,
    c.payload::text AS payload,
    c.status,
    c.priority,
    c.attempts,
    c.max_attempts,
    c.last_error,
    c.idempotency_key,
    c.locked_by,
    c.locked_at,
    c.lease_token,
    c.lease_expires_at,
    c.scheduled_at,
    c.created_at,
    c.updated_at,
    c.started_at,
    c.completed_at,
    (
        SELECT count(*) FROM claimed_job AS x
        WHERE x.status = 'dead'
    ) AS dead_count,
    d.lane_queues,
    d.lane_priorities,
    d.lane_times,
    d.lane_ids
FROM dear AS d
LEFT JOIN claimed_job AS c ON c.status = 'running'
ORDER BY c.priority, c.scheduled_at, c.id;


-- name: heartbeat_jobs(ids, tokens, lease)
-- Renews the leases of running jobs.
-- Returns: the ids of the jobs that the caller still holds, and holds on to.
-- Index: jobs_pkey, one probe a job. No indexed column changes, so that no index entry is added (HOT).
-- Locks: the jobs' rows, in the order of their ids.
WITH lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS given (id, token)
)

UPDATE goqueue.jobs AS j
SET
    lease_expires_at = statement_timestamp() + extract(EPOCH FROM :lease::interval) * interval '1 second',
    updated_at = statement_timestamp()
WHERE
    j.id = ANY(ARRAY(SELECT l.id FROM lease AS l))
    AND (
        (j.id, j.lease_token) IN (
            SELECT
                l.id,
                l.token
            FROM lease AS l
        )
    ) IS TRUE
    AND (j.status = 'running') IS TRUE
RETURNING j.id;


-- name: complete_jobs(ids, tokens)
-- Running jobs are done. Those that the same lease has completed already are done as well: a repeated call succeeds.
-- Returns: the ids of the jobs that the caller held; they are completed.
-- Index: jobs_pkey, one probe a job.
-- Locks: the jobs' rows, in the order of their ids.
WITH lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS given (id, token)
)

UPDATE goqueue.jobs AS j
SET
    status = 'completed',
    locked_by = NULL,
    locked_at = NULL,
    lease_expires_at = NULL,
    -- Completed by the same lease before, it stays as it is: the call is repeated.
    updated_at = CASE WHEN j.status = 'running' THEN statement_timestamp() ELSE j.updated_at END,
    completed_at = coalesce(j.completed_at, statement_timestamp())
WHERE
    j.id = ANY(ARRAY(SELECT l.id FROM lease AS l))
    AND (
        (j.id, j.lease_token) IN (
            SELECT
                l.id,
                l.token
            FROM lease AS l
        )
    ) IS TRUE
    AND (j.status IN ('running', 'completed')) IS TRUE
RETURNING j.id;


-- name: complete_and_claim(ids, tokens, queues, worker_id, job_limit, lease, lane_queues, lane_priorities, lane_times, lane_ids)
-- Running jobs are done, and the next due ones are taken: complete_jobs and claim_jobs with one round trip and one commit.
-- When a lease was lost, the other jobs are completed and none is taken. As in complete_jobs, a completion is repeatable.
-- Returns: what claim_jobs returns, and, if the caller did not hold all the jobs, the ids of those that it held (else null).
-- Index: jobs_claim_idx, jobs_pkey.
-- Locks: the jobs completed, in the order of their ids; those of claim_jobs.
-- Notes: Those of claim_jobs. Both parts see the table as it was before: a job of one is never a job of the other.
WITH RECURSIVE given_lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS given (id, token)
),

completed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = 'completed',
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        -- Completed by the same lease before, it stays as it is: the call is repeated.
        updated_at = CASE WHEN j.status = 'running' THEN statement_timestamp() ELSE j.updated_at END,
        completed_at = coalesce(j.completed_at, statement_timestamp())
    WHERE
        j.id = ANY(ARRAY(SELECT l.id FROM given_lease AS l))
        AND (
            (j.id, j.lease_token) IN (
                SELECT
                    l.id,
                    l.token
                FROM given_lease AS l
            )
        ) IS TRUE
        AND (j.status IN ('running', 'completed')) IS TRUE
    RETURNING
        j.id,
        j.lease_token
),

-- The jobs that were held, if some were not.
held_job AS MATERIALIZED (
    SELECT ARRAY(SELECT c.id FROM completed_job AS c) AS ids
    FROM given_lease AS l
    WHERE
        (
            (l.id, l.token) IN (
                SELECT
                    c.id,
                    c.lease_token
                FROM completed_job AS c
            )
        ) IS FALSE
    LIMIT 1
),

wanted AS MATERIALIZED (
    SELECT CASE WHEN EXISTS (SELECT FROM held_job) THEN 0 ELSE :job_limit::bigint END AS job_count
),

counted_before AS MATERIALIZED (
    SELECT
        pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass) AS entries,
        pg_stat_get_xact_blocks_fetched('goqueue.jobs_claim_idx'::regclass) AS pages
),

-- Each lane with its first job.
found_lane (queue, priority, scheduled_at, id) AS (
    SELECT
        q.queue,
        first_job.priority,
        first_job.scheduled_at,
        first_job.id
    FROM (
        SELECT DISTINCT u.queue
        FROM unnest(:queues::text[]) AS u (queue)
        WHERE :lane_queues::text[] IS NULL AND (SELECT b.entries >= 0 FROM counted_before AS b)
    ) AS q
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
    FROM found_lane AS l
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
),

-- Through arrays, because the planner takes an array for ten rows, and its own guess for the recursion is a thousand.
lane AS MATERIALIZED (
    SELECT
        u.queue,
        u.priority,
        u.scheduled_at,
        u.id
    FROM (
        SELECT
            array_agg(f.queue) AS queues,
            array_agg(f.priority) AS priorities,
            array_agg(f.scheduled_at) AS times,
            array_agg(f.id) AS ids
        FROM found_lane AS f
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.priorities, a.times, a.ids) AS u (queue, priority, scheduled_at, id)
    UNION ALL
    SELECT
        k.queue,
        k.priority,
        k.scheduled_at,
        k.id
    FROM unnest(
        :lane_queues::text[], :lane_priorities::smallint[], :lane_times::timestamptz[], :lane_ids::uuid[]
    ) AS k (queue, priority, scheduled_at, id)
),

due_lane AS MATERIALIZED (
    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id
    FROM lane AS l
    WHERE l.scheduled_at <= statement_timestamp()
),

-- How many of the first jobs lie in each lane. A single lane has them all, and need not be looked at twice.
share AS MATERIALIZED (
    SELECT
        l.queue,
        l.priority,
        l.scheduled_at,
        l.id,
        w.job_count,
        NULL::bigint AS seen
    FROM due_lane AS l
    CROSS JOIN wanted AS w
    WHERE (SELECT count(*) FROM due_lane) = 1
    UNION ALL
    SELECT
        first_job.queue,
        first_job.priority,
        first_job.scheduled_at,
        first_job.id,
        count(*) AS job_count,
        (sum(count(*)) OVER ())::bigint AS seen
    FROM (
        SELECT
            l.queue,
            l.priority,
            l.scheduled_at,
            l.id
        -- In this order the lanes of a worse priority are left unread once there are enough.
        FROM (
            SELECT
                d.queue,
                d.priority,
                d.scheduled_at,
                d.id
            FROM due_lane AS d
            ORDER BY d.priority
        ) AS l
        CROSS JOIN LATERAL (
            SELECT
                j.scheduled_at,
                j.id
            FROM goqueue.jobs AS j
            WHERE
                j.status = 'pending'
                AND j.queue = l.queue
                AND j.priority = l.priority
                AND j.scheduled_at <= statement_timestamp()
                AND (j.scheduled_at, j.id) >= (l.scheduled_at, l.id)
            ORDER BY j.scheduled_at, j.id
            LIMIT (SELECT w.job_count FROM wanted AS w)
        ) AS due
        WHERE (SELECT count(*) FROM due_lane) > 1
        ORDER BY l.priority, due.scheduled_at, due.id
        LIMIT (SELECT w.job_count FROM wanted AS w)
    ) AS first_job
    GROUP BY first_job.queue, first_job.priority, first_job.scheduled_at, first_job.id
),

locked_job AS MATERIALIZED (
    SELECT due.id
    FROM share AS s
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'pending'
            AND j.queue = s.queue
            AND j.priority = s.priority
            AND j.scheduled_at <= statement_timestamp()
            AND (j.scheduled_at, j.id) >= (s.scheduled_at, s.id)
        ORDER BY j.scheduled_at, j.id
        LIMIT s.job_count
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS due
),

-- Where others had locked so many that a lane ran out, the lanes are gone through in order for what is missing.
further_job AS MATERIALIZED (
    SELECT due.id
    FROM (
        SELECT
            l.queue,
            l.priority,
            l.scheduled_at,
            l.id
        FROM due_lane AS l
        WHERE (SELECT count(*) FROM locked_job) < (SELECT max(s.seen) FROM share AS s)
        ORDER BY l.priority
    ) AS o
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = 'pending'
            AND j.queue = o.queue
            AND j.priority = o.priority
            AND j.scheduled_at <= statement_timestamp()
            AND (j.scheduled_at, j.id) >= (o.scheduled_at, o.id)
            AND (j.id <> ALL(ARRAY(SELECT k.id FROM locked_job AS k))) IS TRUE
        ORDER BY j.scheduled_at, j.id
        LIMIT (SELECT w.job_count FROM wanted AS w)
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS due
    LIMIT (SELECT w.job_count FROM wanted AS w) - (SELECT count(*) FROM locked_job)
),

claimed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN j.attempts < j.max_attempts THEN 'running' ELSE 'dead' END::goqueue.job_status,
        attempts = least(j.attempts + 1, j.max_attempts),
        last_error = CASE
            WHEN j.attempts < j.max_attempts THEN j.last_error
            ELSE coalesce(j.last_error, 'no attempt was left when it was claimed')
        END,
        locked_by = CASE WHEN j.attempts < j.max_attempts THEN :worker_id::text END,
        locked_at = CASE WHEN j.attempts < j.max_attempts THEN statement_timestamp() END,
        lease_token = mod(j.lease_token, 4611686018427387903) + 1,
        lease_expires_at = CASE
            WHEN j.attempts < j.max_attempts THEN statement_timestamp() + extract(EPOCH FROM :lease::interval) * interval '1 second'
        END,
        updated_at = statement_timestamp(),
        started_at = CASE WHEN j.attempts < j.max_attempts THEN statement_timestamp() ELSE j.started_at END,
        completed_at = CASE WHEN j.attempts >= j.max_attempts THEN statement_timestamp() END
    WHERE j.id = ANY(
        ARRAY(
            SELECT k.id FROM locked_job AS k
            UNION ALL
            SELECT k.id FROM further_job AS k
        )
    )
    RETURNING
        j.id,
        j.queue,
        j.job_type,
        j.payload,
        j.status,
        j.priority,
        j.attempts,
        j.max_attempts,
        j.last_error,
        j.idempotency_key,
        j.locked_by,
        j.locked_at,
        j.lease_token,
        j.lease_expires_at,
        j.scheduled_at,
        j.created_at,
        j.updated_at,
        j.started_at,
        j.completed_at
),

-- The lanes, when so much was read that the next claims had better go on where this one ended: entries that have to be
-- looked up in the table, because an old snapshot may still need their rows, or pages of entries that are known to be
-- dead and wait for vacuum.
dear AS (
    SELECT
        array_agg(l.queue) AS lane_queues,
        array_agg(l.priority) AS lane_priorities,
        array_agg(l.scheduled_at) AS lane_times,
        array_agg(l.id) AS lane_ids
    FROM lane AS l
    WHERE
        -- Only when all are claimed is it known how much was read.
        (SELECT count(*) FROM claimed_job) >= 0
        AND (
            SELECT
                -- Besides those that have to be read: of each lane its first one, the jobs wanted, and one beyond.
                r.entries > 1000 + 10 * r.job_count + r.lane_count * (r.job_count + 2)
                -- Each lane is looked for once, and its jobs twice.
                OR r.pages > 200 + r.lane_count * (10 + r.job_count / 10)
            FROM (
                SELECT
                    w.job_count,
                    (SELECT count(*) FROM lane) AS lane_count,
                    pg_stat_get_xact_tuples_returned('goqueue.jobs_claim_idx'::regclass) - b.entries AS entries,
                    pg_stat_get_xact_blocks_fetched('goqueue.jobs_claim_idx'::regclass) - b.pages AS pages
                FROM wanted AS w
                CROSS JOIN counted_before AS b
            ) AS r
        )
)

SELECT
    c.id,
    c.queue,
    c.job_type,
    c.payload::text AS payload,
    c.status,
    c.priority,
    c.attempts,
    c.max_attempts,
    c.last_error,
    c.idempotency_key,
    c.locked_by,
    c.locked_at,
    c.lease_token,
    c.lease_expires_at,
    c.scheduled_at,
    c.created_at,
    c.updated_at,
    c.started_at,
    c.completed_at,
    (
        SELECT count(*) FROM claimed_job AS x
        WHERE x.status = 'dead'
    ) AS dead_count,
    d.lane_queues,
    d.lane_priorities,
    d.lane_times,
    d.lane_ids,
    (SELECT h.ids FROM held_job AS h) AS held_ids
FROM dear AS d
LEFT JOIN claimed_job AS c ON c.status = 'running'
ORDER BY c.priority, c.scheduled_at, c.id;


-- name: fail_jobs(ids, tokens, errors, retry_in, backoff_base, backoff_factor, backoff_max, backoff_jitter)
-- Attempts of running jobs have failed: each job waits for its next attempt, or is dead when there is none left.
-- The next attempt is due after retry_in; with that null after base * factor ^ (attempts - 1), at most max, and up to the
-- share jitter longer (at random, so that jobs that failed together do not come back together).
-- Returns: id and status of the jobs that the caller held.
-- Index: jobs_pkey, one probe a job. job_failures_pkey.
-- Locks: the jobs' rows, in the order of their ids.
WITH lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token,
        given.error
    FROM unnest(:ids::uuid[], :tokens::bigint[], :errors::text[]) AS given (id, token, error)
),

failed_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN j.attempts < j.max_attempts THEN 'pending' ELSE 'dead' END::goqueue.job_status,
        last_error = (
            SELECT max(l.error)
            FROM lease AS l
            WHERE l.id = j.id AND l.token = j.lease_token
        ),
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        scheduled_at = CASE
            WHEN j.attempts < j.max_attempts THEN statement_timestamp() + coalesce(
                extract(EPOCH FROM :retry_in::interval) * interval '1 second',
                -- In seconds: an interval overflows where a double does not. The exponent's bound keeps the power a number;
                -- the times it would matter are beyond any max.
                least(
                    extract(EPOCH FROM :backoff_base::interval)::double precision
                    * power(:backoff_factor::double precision, least(j.attempts - 1, 100)),
                    extract(EPOCH FROM :backoff_max::interval)::double precision
                ) * (1 + :backoff_jitter::double precision * random()) * '1 second'::interval
            )
            ELSE j.scheduled_at
        END,
        updated_at = statement_timestamp(),
        completed_at = CASE WHEN j.attempts >= j.max_attempts THEN statement_timestamp() END
    WHERE
        j.id = ANY(ARRAY(SELECT l.id FROM lease AS l))
        AND (
            (j.id, j.lease_token) IN (
                SELECT
                    l.id,
                    l.token
                FROM lease AS l
            )
        ) IS TRUE
        AND (j.status = 'running') IS TRUE
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
        f.id,
        f.lease_token,
        f.attempts,
        statement_timestamp() AS failed_at,
        f.started_at,
        -- This statement still sees the row as it was before the update above.
        (
            SELECT was.locked_by
            FROM goqueue.jobs AS was
            WHERE was.id = f.id
        ) AS worker_id,
        f.last_error
    FROM failed_job AS f
    -- A failure left behind by a job deleted by hand must not keep a job of the same id from failing.
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


-- name: bury_jobs(ids, tokens, errors)
-- Running jobs that can't be run at all are dead, whatever attempts are left.
-- Returns: the ids of the jobs that the caller held; they are dead.
-- Index: jobs_pkey, one probe a job. job_failures_pkey.
-- Locks: the jobs' rows, in the order of their ids.
WITH lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token,
        given.error
    FROM unnest(:ids::uuid[], :tokens::bigint[], :errors::text[]) AS given (id, token, error)
),

buried_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = 'dead',
        last_error = (
            SELECT max(l.error)
            FROM lease AS l
            WHERE l.id = j.id AND l.token = j.lease_token
        ),
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        updated_at = statement_timestamp(),
        completed_at = statement_timestamp()
    WHERE
        j.id = ANY(ARRAY(SELECT l.id FROM lease AS l))
        AND (
            (j.id, j.lease_token) IN (
                SELECT
                    l.id,
                    l.token
                FROM lease AS l
            )
        ) IS TRUE
        AND (j.status = 'running') IS TRUE
    RETURNING
        j.id,
        j.lease_token,
        j.attempts,
        j.started_at,
        j.last_error
),

recorded_failure AS (
    INSERT INTO goqueue.job_failures (job_id, lease_token, attempt, failed_at, started_at, worker_id, error)
    SELECT
        b.id,
        b.lease_token,
        b.attempts,
        statement_timestamp() AS failed_at,
        b.started_at,
        (
            SELECT was.locked_by
            FROM goqueue.jobs AS was
            WHERE was.id = b.id
        ) AS worker_id,
        b.last_error
    FROM buried_job AS b
    -- A failure left behind by a job deleted by hand must not keep a job of the same id from failing.
    ON CONFLICT (job_id, lease_token) DO UPDATE SET
        attempt = excluded.attempt,
        failed_at = excluded.failed_at,
        started_at = excluded.started_at,
        worker_id = excluded.worker_id,
        error = excluded.error
)

SELECT b.id
FROM buried_job AS b;


-- name: release_jobs(ids, tokens)
-- Gives running jobs back untried, as at a shutdown: they wait as before, and the attempt does not count.
-- Returns: the ids of the jobs that the caller held; they are pending.
-- Index: jobs_pkey, one probe a job.
-- Locks: the jobs' rows, in the order of their ids.
WITH lease AS MATERIALIZED (
    SELECT
        given.id,
        given.token
    FROM unnest(:ids::uuid[], :tokens::bigint[]) AS given (id, token)
)

UPDATE goqueue.jobs AS j
SET
    status = 'pending',
    attempts = greatest(j.attempts - 1, 0),
    locked_by = NULL,
    locked_at = NULL,
    lease_expires_at = NULL,
    updated_at = statement_timestamp()
WHERE
    j.id = ANY(ARRAY(SELECT l.id FROM lease AS l))
    AND (
        (j.id, j.lease_token) IN (
            SELECT
                l.id,
                l.token
            FROM lease AS l
        )
    ) IS TRUE
    AND (j.status = 'running') IS TRUE
RETURNING j.id;


-- name: rescue_jobs(job_limit)
-- Jobs whose holder was not heard of in time wait for their next attempt, due at once; without one left they are dead.
-- Returns: id and status of the jobs rescued; nothing when no lease has expired.
-- Index: jobs_status_idx for the running jobs, which are as many as the workers hold; jobs_pkey. job_failures_pkey.
-- Locks: the jobs rescued; those that others have locked are passed over.
-- Notes: To be called by the clock, and not before every claim: the index entries of jobs that ran are read too until vacuum
-- has removed them, which a transaction left open elsewhere prevents (20 ms for 150,000). An index by lease_expires_at would
-- make every heartbeat add an entry.
WITH expired_job AS MATERIALIZED (
    SELECT
        j.id,
        j.locked_by
    FROM goqueue.jobs AS j
    WHERE j.status = 'running' AND j.lease_expires_at <= statement_timestamp()
    ORDER BY j.status, j.created_at, j.id
    LIMIT :job_limit::bigint
    FOR NO KEY UPDATE SKIP LOCKED
),

rescued_job AS (
    UPDATE goqueue.jobs AS j
    SET
        status = CASE WHEN j.attempts < j.max_attempts THEN 'pending' ELSE 'dead' END::goqueue.job_status,
        last_error = 'the lease expired: its holder was not heard of in time',
        locked_by = NULL,
        locked_at = NULL,
        lease_expires_at = NULL,
        -- Now, and not its old time: a claim that goes on where another ended must find it.
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
    -- A failure left behind by a job deleted by hand must not keep a job of the same id from failing.
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
-- The failed attempts of one job.
-- Returns: the attempts in their order, none when there are none.
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
-- When the next job of the queues is due, for a worker that found none and wants to sleep until then.
-- Returns: a time, which is past when a job is due already; null when no job waits.
-- Index: jobs_claim_idx, two probes a queue and priority.
-- Locks: none.
-- Notes: It looks from the start of each lane, and so passes over the dead index entries that claim_jobs can leave behind.
WITH RECURSIVE lane (queue, priority, scheduled_at) AS (
    SELECT
        q.queue,
        first_job.priority,
        first_job.scheduled_at
    FROM (SELECT DISTINCT u.queue FROM unnest(:queues::text[]) AS u (queue)) AS q
    CROSS JOIN LATERAL (
        SELECT
            j.priority,
            j.scheduled_at
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue = q.queue
        ORDER BY j.priority, j.scheduled_at
        LIMIT 1
    ) AS first_job
    UNION ALL
    SELECT
        l.queue,
        first_job.priority,
        first_job.scheduled_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            j.priority,
            j.scheduled_at
        FROM goqueue.jobs AS j
        WHERE j.status = 'pending' AND j.queue = l.queue AND j.priority > l.priority
        ORDER BY j.priority, j.scheduled_at
        LIMIT 1
    ) AS first_job
)

SELECT min(l.scheduled_at)
FROM lane AS l;
