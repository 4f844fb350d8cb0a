-- The statements on goqueue.jobs, in the order of a job's life: create, get, list, count, update, delete.
--
-- How to read and change this file:
--   * A statement's name is the name of the storage method that runs it and the name in the server's log. A few serve a
--     method of another name; their comments say so.
--   * The comment under a name gives its purpose, what it returns, the index it relies on and the locks it takes.
--     sql/README.md is made from these comments (`make catalogue`).
--   * Each parameter is cast where it stands, so that the statement means the same whoever sends it.
--   * An interval is taken for its seconds: a day added to a time can be 23 hours where the session's time zone has
--     daylight saving time.
--   * Statuses are literals wherever a partial index has to match: a generic plan can't prove `status = $1`.
--   * What is read in the order of an index that starts with the status is sorted by it too, though it is one status: under
--     row level security (migrations/roles) the planner can't tell, because comparing enums isn't leakproof.
--   * Comments stand on lines of their own. A percent sign is written twice.
--   * The columns of a job come in one order everywhere; it is the order of goqueue.models.Job, and a test compares them.


-- name: create_job(id, queue, job_type, payload, priority, max_attempts, scheduled_at, delay, idempotency_key)^
-- Adds one pending job.
-- Returns: what the server makes of the job: the payload as jsonb has it, and its times. Nothing when its id or its
-- idempotency key is taken (find_duplicate_job tells by whom).
-- Index: jobs_pkey and jobs_idempotency_key_idx arbitrate.
-- Locks: the new row; waits for a transaction that is adding the same id or key.
-- Notes: DO NOTHING leaves no dead row for a duplicate, and does not abort the caller's transaction.
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key
)
VALUES (
    :id::uuid,
    :queue::text,
    :job_type::text,
    :payload::jsonb,
    :priority::smallint,
    :max_attempts::integer,
    coalesce(:scheduled_at::timestamptz, now() + coalesce(extract(EPOCH FROM :delay::interval) * interval '1 second', '0')),
    :idempotency_key::text
)
ON CONFLICT DO NOTHING
RETURNING
    payload::text AS payload,
    scheduled_at,
    created_at;


-- name: find_duplicate_job(id, idempotency_key)^
-- The job that stands in the way of a new one: the one with its id, else the one with its idempotency key.
-- Returns: the job; nothing when it was deleted in the meantime.
-- Index: jobs_pkey, jobs_idempotency_key_idx.
-- Locks: none.
-- Notes: A statement of its own, because only a new snapshot sees a job that another transaction committed while
-- create_job waited for it.
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
-- Within a SELECT of its own: as a condition on j it would be no index condition under row level security.
WHERE j.id = (
        SELECT coalesce(
            (
                SELECT same_id.id FROM goqueue.jobs AS same_id
                WHERE same_id.id = :id::uuid
            ),
            (
                SELECT same_key.id FROM goqueue.jobs AS same_key
                WHERE same_key.idempotency_key = :idempotency_key::text
            )
        )
    );


-- name: create_jobs(jobs)
-- Adds many pending jobs in one statement: all of them, or on an error none.
-- The parameter is a JSON array of objects with the columns' names, and delay (an interval) beside scheduled_at. A column
-- that is left out takes its default.
-- Returns: the id of each job that was added. A job whose id or key is taken, in the table or by an earlier job of the
-- same array, has no row; find_duplicate_jobs tells by whom. Beside the array's first job, if it was added, stands the
-- transaction's id.
-- Index: jobs_pkey and jobs_idempotency_key_idx arbitrate.
-- Locks: the new rows; waits for a transaction that is adding one of the ids or keys.
-- Notes: One jsonb parameter, because arrays of text are slow to send. Rows are added in the array's order.
INSERT INTO goqueue.jobs (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key
)
SELECT
    n.id,
    coalesce(n.queue, 'default') AS queue,
    n.job_type,
    -- A recordset reads a JSON null as SQL's; as a payload it is a value.
    coalesce(n.payload, 'null'::jsonb) AS payload,
    coalesce(n.priority, 0::smallint) AS priority,
    coalesce(n.max_attempts, 25) AS max_attempts,
    coalesce(n.scheduled_at, now() + coalesce(extract(EPOCH FROM n.delay) * interval '1 second', '0')) AS scheduled_at,
    n.idempotency_key
FROM jsonb_to_recordset(:jobs::jsonb) AS n (
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
ON CONFLICT DO NOTHING
RETURNING
    id,
    -- In one row of a thousand, since reading it takes as long as reading the id.
    CASE
        WHEN id = (SELECT (:jobs::jsonb -> 0 ->> 'id')::uuid) THEN pg_current_xact_id()::text
    END AS transaction_id;


-- name: find_duplicate_jobs(ids, idempotency_keys)
-- The jobs that stand in the way of new ones: those with one of the ids or one of the idempotency keys.
-- Returns: id and idempotency key of each, in no order; nothing for those deleted in the meantime.
-- Index: jobs_pkey, jobs_idempotency_key_idx.
-- Locks: none.
-- Notes: A union of two index scans: an OR over both columns would leave the choice of plan to the estimates.
SELECT
    j.id,
    j.idempotency_key
FROM goqueue.jobs AS j
WHERE j.id = ANY(:ids::uuid[])
UNION
SELECT
    j.id,
    j.idempotency_key
FROM goqueue.jobs AS j
WHERE j.idempotency_key = ANY(:idempotency_keys::text[]);


-- name: get_job(id)^
-- One job by its id.
-- Returns: the job; nothing when there is none.
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
-- Many jobs by their ids.
-- Returns: the jobs in the order of the ids, an id given twice twice; those that do not exist are left out.
-- Index: jobs_pkey, one probe an id.
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
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at
FROM unnest(:ids::uuid[]) WITH ORDINALITY AS wanted (id, place)
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
-- One job by its idempotency key.
-- Returns: the job; nothing when there is none.
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


-- name: list_jobs(statuses, queues, job_types, created_from, created_before, scheduled_from, scheduled_before, cursor_created_at, cursor_id, page_limit)
-- One page of jobs, newest first (created_at, then id), after the cursor's position.
-- A null filter doesn't filter; ranges include their start and exclude their end.
-- Returns: the page's jobs, each with the position that the next page starts after (null on the last page); for an empty
-- page one row of nulls but for that position.
-- A page can be short, even empty, and not be the last: see the notes.
-- Index: jobs_status_idx; with a queue or a job type jobs_queue_idx. jobs_pkey for the rows.
-- Locks: none.
-- Notes: Each combination of status, queue and job type is a lane: one contiguous range of one index, read newest first. So a
-- rare combination costs no more than a common one, and page 1000 no more than page 1. Of each lane a page's worth is read:
-- a queue's page costs as much more as the queue has job types, and no status given is five lanes. No index serves
-- scheduled_at: with such a range about 3000 index entries are read (over all lanes), and the page ends where the reading
-- ended.
WITH RECURSIVE wanted_status AS (
    SELECT DISTINCT s.status
    FROM unnest(
        coalesce(:statuses::text[]::goqueue.job_status[], enum_range(NULL::goqueue.job_status))
    ) AS s (status)
),

-- Every queue, by a loose index scan (one probe a queue). Run only for a job type asked for without a queue.
every_queue (queue) AS (
    (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE :queues::text[] IS NULL AND :job_types::text[] IS NOT NULL
        ORDER BY j.queue
        LIMIT 1
    )
    UNION ALL
    SELECT following.queue
    FROM every_queue AS e
    CROSS JOIN LATERAL (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE j.queue > e.queue
        ORDER BY j.queue
        LIMIT 1
    ) AS following
),

wanted_queue AS (
    SELECT DISTINCT q.queue
    FROM unnest(:queues::text[]) AS q (queue)
    UNION ALL
    SELECT e.queue
    FROM every_queue AS e
),

-- The job types of each wanted queue, likewise. Run only for a queue asked for without a job type.
every_type (queue, job_type) AS (
    SELECT
        w.queue,
        first_type.job_type
    FROM wanted_queue AS w
    CROSS JOIN LATERAL (
        SELECT j.job_type
        FROM goqueue.jobs AS j
        WHERE j.queue = w.queue AND :job_types::text[] IS NULL
        ORDER BY j.job_type
        LIMIT 1
    ) AS first_type
    UNION ALL
    SELECT
        e.queue,
        following.job_type
    FROM every_type AS e
    CROSS JOIN LATERAL (
        SELECT j.job_type
        FROM goqueue.jobs AS j
        WHERE j.queue = e.queue AND j.job_type > e.job_type
        ORDER BY j.job_type
        LIMIT 1
    ) AS following
),

every_lane AS (
    SELECT
        NULL::text AS queue,
        NULL::text AS job_type
    WHERE :queues::text[] IS NULL AND :job_types::text[] IS NULL
    UNION ALL
    SELECT
        w.queue,
        t.job_type
    FROM wanted_queue AS w
    CROSS JOIN (SELECT DISTINCT u.job_type FROM unnest(:job_types::text[]) AS u (job_type)) AS t
    CROSS JOIN LATERAL (
        SELECT
        FROM goqueue.jobs AS j
        WHERE j.queue = w.queue AND j.job_type = t.job_type
        -- The index's order: without one the planner takes any row for near, and reads the table whole when there is none.
        ORDER BY j.status
        LIMIT 1
    ) AS there_is_one
    UNION ALL
    SELECT
        e.queue,
        e.job_type
    FROM every_type AS e
),

-- Through arrays, because the planner takes an array for ten rows: its own guess for the recursions above is a hundred
-- thousand, and a plan that looks so dear is compiled (jit) for far longer than it runs.
lane AS MATERIALIZED (
    SELECT
        row_number() OVER () AS lane_no,
        s.status,
        u.queue,
        u.job_type
    FROM (
        SELECT
            array_agg(e.queue) AS queues,
            array_agg(e.job_type) AS job_types
        FROM every_lane AS e
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.job_types) AS u (queue, job_type)
    CROSS JOIN wanted_status AS s
),

-- How many rows of a lane may be read: one more than a page holds is enough, unless scheduled_at has to be looked at.
lane_limit AS MATERIALIZED (
    SELECT
        CASE
            WHEN :scheduled_from::timestamptz IS NULL AND :scheduled_before::timestamptz IS NULL
                THEN :page_limit::bigint + 1
            ELSE greatest(:page_limit::bigint + 1, 3000 / greatest(count(*), 1))
        END AS row_count
    FROM lane AS l
),

read_row AS MATERIALIZED (
    SELECT
        l.lane_no,
        r.id,
        r.created_at,
        r.scheduled_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            few.id,
            few.created_at,
            few.scheduled_at
        FROM (
            SELECT
                j.id,
                j.created_at,
                j.scheduled_at
            FROM goqueue.jobs AS j
            WHERE
                j.status = l.status
                AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                AND (j.created_at, j.id) < (
                    coalesce(:cursor_created_at::timestamptz, :created_before::timestamptz, 'infinity'),
                    coalesce(:cursor_id::uuid, '00000000-0000-0000-0000-000000000000')
                )
            ORDER BY j.status DESC, j.created_at DESC, j.id DESC
            LIMIT (SELECT m.row_count FROM lane_limit AS m)
        ) AS few
        -- Never reached; it tells the planner that the limit above is a small one.
        LIMIT 100000
    ) AS r
    WHERE l.queue IS NULL
    UNION ALL
    SELECT
        l.lane_no,
        r.id,
        r.created_at,
        r.scheduled_at
    FROM lane AS l
    CROSS JOIN LATERAL (
        SELECT
            few.id,
            few.created_at,
            few.scheduled_at
        FROM (
            SELECT
                j.id,
                j.created_at,
                j.scheduled_at
            FROM goqueue.jobs AS j
            WHERE
                j.queue = l.queue
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                AND (j.created_at, j.id) < (
                    coalesce(:cursor_created_at::timestamptz, :created_before::timestamptz, 'infinity'),
                    coalesce(:cursor_id::uuid, '00000000-0000-0000-0000-000000000000')
                )
            ORDER BY j.status DESC, j.created_at DESC, j.id DESC
            LIMIT (SELECT m.row_count FROM lane_limit AS m)
        ) AS few
        -- Never reached; it tells the planner that the limit above is a small one.
        LIMIT 100000
    ) AS r
    WHERE l.queue IS NOT NULL
),

-- With a range of scheduled_at, the newest position at which a lane's reading was cut off: of what is older some may not
-- have been read, what is newer is all there. Without, each lane holds a whole page and nothing is missing.
cut_off AS MATERIALIZED (
    SELECT
        r.created_at,
        r.id
    FROM (
        SELECT
            inner_row.created_at,
            inner_row.id,
            row_number() OVER (
                PARTITION BY inner_row.lane_no ORDER BY inner_row.created_at DESC, inner_row.id DESC
            ) AS place
        FROM read_row AS inner_row
        WHERE :scheduled_from::timestamptz IS NOT NULL OR :scheduled_before::timestamptz IS NOT NULL
    ) AS r
    WHERE r.place = (SELECT m.row_count FROM lane_limit AS m)
    ORDER BY r.created_at DESC, r.id DESC
    LIMIT 1
),

-- One row more than the page, to know whether there is a next one.
found_row AS MATERIALIZED (
    SELECT
        r.id,
        r.created_at,
        row_number() OVER (ORDER BY r.created_at DESC, r.id DESC) AS place
    FROM read_row AS r
    WHERE
        r.scheduled_at >= coalesce(:scheduled_from::timestamptz, '-infinity')
        AND (:scheduled_before::timestamptz IS NULL OR r.scheduled_at < :scheduled_before::timestamptz)
        AND (
            NOT EXISTS (SELECT FROM cut_off)
            OR (r.created_at, r.id) >= (
                SELECT
                    c.created_at,
                    c.id
                FROM cut_off AS c
            )
        )
    ORDER BY r.created_at DESC, r.id DESC
    LIMIT :page_limit::bigint + 1
),

-- Where the next page starts: after this page's last row or, on a page cut short, after the last row that was read.
next_page AS MATERIALIZED (
    SELECT
        f.created_at,
        f.id
    FROM found_row AS f
    WHERE f.place = :page_limit::bigint AND (SELECT count(*) FROM found_row) > :page_limit::bigint
    UNION ALL
    SELECT
        c.created_at,
        c.id
    FROM cut_off AS c
    WHERE (SELECT count(*) FROM found_row) <= :page_limit::bigint
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
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at,
    n.created_at AS next_created_at,
    n.id AS next_id
FROM (VALUES (TRUE)) AS always_one (row)
LEFT JOIN next_page AS n ON TRUE
LEFT JOIN found_row AS f ON f.place <= :page_limit::bigint
LEFT JOIN LATERAL (
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
    WHERE by_id.id = f.id
    -- A fence: one probe of jobs_pkey a row, whatever the estimates say.
    OFFSET 0
) AS j ON TRUE
ORDER BY f.place;


-- name: count_jobs(statuses, queues, job_types, created_from, created_before, scheduled_from, scheduled_before)^
-- How many jobs a filter matches; the filter's parameters are those of list_jobs.
-- Returns: the count, and whether it is exact. It is as long as at most 10000 index entries have to be read for
-- it; beyond that it is an estimate from the rows of some 500 randomly chosen pages of the table.
-- Index: jobs_status_idx; with a queue or a job type jobs_queue_idx.
-- Locks: none.
-- Notes: The lanes are those of list_jobs.
WITH RECURSIVE wanted_status AS (
    SELECT DISTINCT s.status
    FROM unnest(
        coalesce(:statuses::text[]::goqueue.job_status[], enum_range(NULL::goqueue.job_status))
    ) AS s (status)
),

-- Every queue, by a loose index scan (one probe a queue). Run only for a job type asked for without a queue.
every_queue (queue) AS (
    (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE :queues::text[] IS NULL AND :job_types::text[] IS NOT NULL
        ORDER BY j.queue
        LIMIT 1
    )
    UNION ALL
    SELECT following.queue
    FROM every_queue AS e
    CROSS JOIN LATERAL (
        SELECT j.queue
        FROM goqueue.jobs AS j
        WHERE j.queue > e.queue
        ORDER BY j.queue
        LIMIT 1
    ) AS following
),

wanted_queue AS (
    SELECT DISTINCT q.queue
    FROM unnest(:queues::text[]) AS q (queue)
    UNION ALL
    SELECT e.queue
    FROM every_queue AS e
),

-- The job types of each wanted queue, likewise. Run only for a queue asked for without a job type.
every_type (queue, job_type) AS (
    SELECT
        w.queue,
        first_type.job_type
    FROM wanted_queue AS w
    CROSS JOIN LATERAL (
        SELECT j.job_type
        FROM goqueue.jobs AS j
        WHERE j.queue = w.queue AND :job_types::text[] IS NULL
        ORDER BY j.job_type
        LIMIT 1
    ) AS first_type
    UNION ALL
    SELECT
        e.queue,
        following.job_type
    FROM every_type AS e
    CROSS JOIN LATERAL (
        SELECT j.job_type
        FROM goqueue.jobs AS j
        WHERE j.queue = e.queue AND j.job_type > e.job_type
        ORDER BY j.job_type
        LIMIT 1
    ) AS following
),

every_lane AS (
    SELECT
        NULL::text AS queue,
        NULL::text AS job_type
    WHERE :queues::text[] IS NULL AND :job_types::text[] IS NULL
    UNION ALL
    SELECT
        w.queue,
        t.job_type
    FROM wanted_queue AS w
    CROSS JOIN (SELECT DISTINCT u.job_type FROM unnest(:job_types::text[]) AS u (job_type)) AS t
    CROSS JOIN LATERAL (
        SELECT
        FROM goqueue.jobs AS j
        WHERE j.queue = w.queue AND j.job_type = t.job_type
        -- The index's order: without one the planner takes any row for near, and reads the table whole when there is none.
        ORDER BY j.status
        LIMIT 1
    ) AS there_is_one
    UNION ALL
    SELECT
        e.queue,
        e.job_type
    FROM every_type AS e
),

-- Through arrays, because the planner takes an array for ten rows: its own guess for the recursions above is a hundred
-- thousand, and a plan that looks so dear is compiled (jit) for far longer than it runs.
lane AS MATERIALIZED (
    SELECT
        s.status,
        u.queue,
        u.job_type
    FROM (
        SELECT
            array_agg(e.queue) AS queues,
            array_agg(e.job_type) AS job_types
        FROM every_lane AS e
    ) AS a
    CROSS JOIN LATERAL unnest(a.queues, a.job_types) AS u (queue, job_type)
    CROSS JOIN wanted_status AS s
),

read_row AS MATERIALIZED (
    SELECT every_row.scheduled_at
    FROM (
        SELECT r.scheduled_at
        FROM lane AS l
        CROSS JOIN LATERAL (
            SELECT j.scheduled_at
            FROM goqueue.jobs AS j
            WHERE
                j.status = l.status
                AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
            -- The index's order, as above.
            ORDER BY j.status DESC, j.created_at DESC, j.id DESC
            LIMIT 10001
        ) AS r
        WHERE l.queue IS NULL
        UNION ALL
        SELECT r.scheduled_at
        FROM lane AS l
        CROSS JOIN LATERAL (
            SELECT j.scheduled_at
            FROM goqueue.jobs AS j
            WHERE
                j.queue = l.queue
                AND j.job_type = l.job_type
                AND j.status = l.status
                AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
                AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
            -- The index's order, as above.
            ORDER BY j.status DESC, j.created_at DESC, j.id DESC
            LIMIT 10001
        ) AS r
        WHERE l.queue IS NOT NULL
    ) AS every_row
    LIMIT 10001
),

exact AS MATERIALIZED (
    SELECT
        count(*) <= 10000 AS is_exact,
        count(*) FILTER (
            WHERE
            r.scheduled_at >= coalesce(:scheduled_from::timestamptz, '-infinity')
            AND (:scheduled_before::timestamptz IS NULL OR r.scheduled_at < :scheduled_before::timestamptz)
        ) AS job_count
    FROM read_row AS r
),

sample_size AS MATERIALIZED (
    SELECT least(100, 100 * 500 / greatest(pg_relation_size('goqueue.jobs') / 8192, 1)::real)::real AS percent
),

estimate AS (
    SELECT (count(*) * 100 / (SELECT z.percent FROM sample_size AS z))::bigint AS job_count
    FROM (
        SELECT
            r.status,
            r.queue,
            r.job_type,
            r.created_at,
            r.scheduled_at
        FROM goqueue.jobs AS r TABLESAMPLE SYSTEM ((SELECT z.percent FROM sample_size AS z)) -- noqa: PRS
        WHERE (SELECT NOT e.is_exact FROM exact AS e)
        -- Never reached; without it the planner takes the sample for a tenth of the table.
        LIMIT 100000
    ) AS j
    WHERE
        j.status IN (SELECT s.status FROM wanted_status AS s)
        AND (:queues::text[] IS NULL OR j.queue = ANY(:queues::text[]))
        AND (:job_types::text[] IS NULL OR j.job_type = ANY(:job_types::text[]))
        AND j.created_at >= coalesce(:created_from::timestamptz, '-infinity')
        AND j.created_at < coalesce(:created_before::timestamptz, 'infinity')
        AND j.scheduled_at >= coalesce(:scheduled_from::timestamptz, '-infinity')
        AND (:scheduled_before::timestamptz IS NULL OR j.scheduled_at < :scheduled_before::timestamptz)
)

SELECT
    CASE WHEN e.is_exact THEN e.job_count ELSE greatest(e.job_count, g.job_count) END AS job_count,
    e.is_exact
FROM exact AS e
CROSS JOIN estimate AS g;


-- name: update_job(id, changes)^
-- Changes the given fields of one job; what follows from a new status (times, the holder) is set here.
-- The changes are a JSON object with the columns' names; a field that is not in it stays, null clears.
-- Returns: the job as it is now; nothing when there is none, or when the change is refused: a finished job does not
-- start, and does not finish otherwise (dead and cancelled may go back to pending, completed is final), and an
-- idempotency key that another job has is not taken over.
-- Index: jobs_pkey, jobs_idempotency_key_idx.
-- Locks: the job's row.
WITH locked_job AS MATERIALIZED (
    SELECT
        before.id,
        :changes::jsonb AS fields,
        before.status AS status_before,
        coalesce((:changes::jsonb ->> 'status')::goqueue.job_status, before.status) AS status_after,
        coalesce((:changes::jsonb ->> 'max_attempts')::integer, before.max_attempts) AS max_attempts_after
    FROM goqueue.jobs AS before
    WHERE before.id = :id::uuid
    -- Locked first, so that the row's present status decides, and not the one that the statement saw at its start.
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    queue = CASE WHEN c.fields ? 'queue' THEN c.fields ->> 'queue' ELSE j.queue END,
    job_type = CASE WHEN c.fields ? 'job_type' THEN c.fields ->> 'job_type' ELSE j.job_type END,
    payload = CASE WHEN c.fields ? 'payload' THEN c.fields -> 'payload' ELSE j.payload END,
    status = c.status_after,
    priority = CASE WHEN c.fields ? 'priority' THEN (c.fields ->> 'priority')::smallint ELSE j.priority END,
    -- Made pending again, a finished job has all its attempts again, and a running one keeps at least one.
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
    -- A running job has a holder: locked_by of the changes, else the present one, else application_name, else session_user.
    locked_by = CASE
        WHEN c.fields ->> 'locked_by' IS NOT NULL THEN c.fields ->> 'locked_by'
        WHEN c.status_after = 'running'
            THEN coalesce(j.locked_by, nullif(current_setting('application_name'), ''), session_user)
    END,
    locked_at = CASE WHEN c.status_after = 'running' THEN coalesce(j.locked_at, statement_timestamp()) END,
    -- Set running or completed by hand, or given to another holder: whoever held it before has lost it, and has not
    -- completed it.
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
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at;


-- name: replace_pending_job(id, queue, job_type, payload, priority, max_attempts, scheduled_at, delay, idempotency_key)^
-- Adds a job, or puts it in the place of the pending one that has its idempotency key (which keeps its id).
-- Returns: the job; nothing when the key's job is not pending any more.
-- Index: jobs_idempotency_key_idx arbitrates.
-- Locks: the job's row; waits for a transaction that is adding the same key.
INSERT INTO goqueue.jobs AS j (
    id,
    queue,
    job_type,
    payload,
    priority,
    max_attempts,
    scheduled_at,
    idempotency_key
)
VALUES (
    :id::uuid,
    :queue::text,
    :job_type::text,
    :payload::jsonb,
    :priority::smallint,
    :max_attempts::integer,
    coalesce(:scheduled_at::timestamptz, now() + coalesce(extract(EPOCH FROM :delay::interval) * interval '1 second', '0')),
    :idempotency_key::text
)
ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO UPDATE SET
    queue = excluded.queue,
    job_type = excluded.job_type,
    payload = excluded.payload,
    priority = excluded.priority,
    max_attempts = excluded.max_attempts,
    scheduled_at = excluded.scheduled_at,
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
    j.locked_by,
    j.locked_at,
    j.lease_token,
    j.lease_expires_at,
    j.scheduled_at,
    j.created_at,
    j.updated_at,
    j.started_at,
    j.completed_at;


-- name: cancel_jobs(ids)
-- Withdraws waiting and running jobs. Who runs one learns it from the next heartbeat or from completing it.
-- Returns: the ids of the jobs cancelled; finished ones and those that do not exist are left out.
-- Index: jobs_pkey, two probes a job.
-- Locks: the jobs' rows, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT j.id
    FROM goqueue.jobs AS j
    -- By id alone: see leases.sql for the array and for IS TRUE.
    WHERE j.id = ANY(ARRAY(SELECT unnest(:ids::uuid[]))) AND (j.status IN ('pending', 'running')) IS TRUE
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
WHERE j.id = ANY(ARRAY(SELECT l.id FROM locked_job AS l))
RETURNING j.id;


-- name: retry_jobs(ids)
-- Makes dead and cancelled jobs pending again, due at once and with all their attempts.
-- Returns: the ids of the jobs that wait again; others are left out.
-- Index: jobs_pkey, two probes a job.
-- Locks: the jobs' rows, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT j.id
    FROM goqueue.jobs AS j
    -- By id alone: see leases.sql for the array and for IS TRUE.
    WHERE j.id = ANY(ARRAY(SELECT unnest(:ids::uuid[]))) AND (j.status IN ('dead', 'cancelled')) IS TRUE
    ORDER BY j.id
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    status = 'pending',
    attempts = 0,
    scheduled_at = statement_timestamp(),
    updated_at = statement_timestamp(),
    completed_at = NULL
WHERE j.id = ANY(ARRAY(SELECT l.id FROM locked_job AS l))
RETURNING j.id;


-- name: reschedule_jobs(ids, scheduled_at, delay)
-- Gives waiting jobs another time: scheduled_at, or delay from now.
-- Returns: the ids of the jobs moved; those that do not wait are left out.
-- Index: jobs_pkey, two probes a job.
-- Locks: the jobs' rows, in the order of their ids.
WITH locked_job AS MATERIALIZED (
    SELECT j.id
    FROM goqueue.jobs AS j
    -- By id alone: see leases.sql for the array and for IS TRUE.
    WHERE j.id = ANY(ARRAY(SELECT unnest(:ids::uuid[]))) AND (j.status = 'pending') IS TRUE
    ORDER BY j.id
    FOR NO KEY UPDATE
)

UPDATE goqueue.jobs AS j
SET
    scheduled_at = coalesce(:scheduled_at::timestamptz, statement_timestamp() + coalesce(extract(EPOCH FROM :delay::interval) * interval '1 second', '0')),
    updated_at = statement_timestamp()
WHERE j.id = ANY(ARRAY(SELECT l.id FROM locked_job AS l))
RETURNING j.id;


-- name: delete_job(id)$
-- Deletes one job, whatever its status.
-- Returns: the transaction's id; nothing when there is no such job.
-- Index: jobs_pkey.
-- Locks: the job's row.
DELETE FROM goqueue.jobs AS j
WHERE j.id = :id::uuid
RETURNING pg_current_xact_id()::text AS transaction_id;


-- name: delete_failures(job_id)
-- Deletes the history of a job's failures, after delete_job and in its transaction.
-- Returns: the tokens of the attempts that failed; nothing when there was none.
-- Index: job_failures_pkey.
-- Locks: the failures' rows.
-- Notes: A statement of its own, because only a new snapshot sees the failure that another transaction recorded while
-- delete_job waited for it.
DELETE FROM goqueue.job_failures AS f
WHERE f.job_id = :job_id::uuid
RETURNING f.lease_token;


-- name: prune_jobs(older_than, statuses, job_limit, kept_ids)
-- Deletes one batch of jobs that finished longer than older_than ago, and the history of their failures: status by status,
-- of each those first that were created first. A job that another table refers to fails the batch (prune_unreferenced_jobs).
-- Returns: the ids of the jobs deleted; fewer than job_limit when no more are due. Those in kept_ids are passed over.
-- Index: jobs_status_idx (a job can't have finished before it was created), jobs_pkey, job_failures_pkey.
-- Locks: the batch's rows; those that others have locked are passed over.
-- Notes: Jobs that were created long before they finished are read and left, at every call until they are due: their
-- number is what a batch costs beyond its own rows. An index by completed_at would spare that, and cost every completion.
WITH due_job AS MATERIALIZED (
    SELECT due.id
    FROM (
        SELECT DISTINCT s.status
        FROM unnest(:statuses::text[]::goqueue.job_status[]) AS s (status)
        -- Only what is finished can be pruned, whatever is asked for.
        WHERE s.status IN ('completed', 'dead', 'cancelled')
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = wanted.status
            AND j.created_at < statement_timestamp() - extract(EPOCH FROM :older_than::interval) * interval '1 second'
            AND j.completed_at < statement_timestamp() - extract(EPOCH FROM :older_than::interval) * interval '1 second'
            AND j.id <> ALL(:kept_ids::uuid[])
        ORDER BY j.status, j.created_at, j.id
        LIMIT :job_limit::bigint
        FOR UPDATE SKIP LOCKED
    ) AS due
    LIMIT :job_limit::bigint
),

deleted_failure AS (
    DELETE FROM goqueue.job_failures AS f
    WHERE f.job_id = ANY(ARRAY(SELECT d.id FROM due_job AS d))
)

DELETE FROM goqueue.jobs AS j
WHERE j.id = ANY(ARRAY(SELECT d.id FROM due_job AS d))
RETURNING j.id;


-- name: prune_unreferenced_jobs(older_than, statuses, job_limit, kept_ids)
-- prune_jobs where a foreign key of another table, or a trigger, keeps some of the jobs: the others are deleted. Run where
-- prune_jobs has failed by one, and in a transaction, which such a failure would end.
-- Returns: the id of each job of the batch, and why it was not deleted (null: it was).
-- Index: jobs_status_idx, jobs_pkey, job_failures_pkey.
-- Locks: the batch's rows; those that others have locked are passed over.
-- Notes: goqueue.delete_unreferenced_jobs deletes in savepoints, the batch first and then halves of it. due_job is that of
-- prune_jobs.
WITH due_job AS MATERIALIZED (
    SELECT due.id
    FROM (
        SELECT DISTINCT s.status
        FROM unnest(:statuses::text[]::goqueue.job_status[]) AS s (status)
        -- Only what is finished can be pruned, whatever is asked for.
        WHERE s.status IN ('completed', 'dead', 'cancelled')
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM goqueue.jobs AS j
        WHERE
            j.status = wanted.status
            AND j.created_at < statement_timestamp() - extract(EPOCH FROM :older_than::interval) * interval '1 second'
            AND j.completed_at < statement_timestamp() - extract(EPOCH FROM :older_than::interval) * interval '1 second'
            AND j.id <> ALL(:kept_ids::uuid[])
        ORDER BY j.status, j.created_at, j.id
        LIMIT :job_limit::bigint
        FOR UPDATE SKIP LOCKED
    ) AS due
    LIMIT :job_limit::bigint
)

SELECT
    d.id,
    d.refusal
FROM goqueue.delete_unreferenced_jobs(ARRAY(SELECT b.id FROM due_job AS b)) AS d;
