-- Statistics of queues, workers and job types, and the pauses of queues.
--
-- Jobs are counted by the views that metrics exporters read (migrations/V0017 and V0024), so that a dashboard and the
-- program show the same figures. To tune a view in place, use CREATE OR REPLACE VIEW.


-- name: queue_stats()
-- Count each queue's jobs by status, and return the age of its oldest due job, the number of its expired leases and
-- the end of its pause.
-- Returns: one row per queue, ordered by name. A count is exact up to 1,000. Above, it is an estimate from about 500
-- random pages of the table, and at least 1001. exact_statuses names the statuses whose count is exact, unordered.
-- paused_until is null for a queue that is not paused. A paused queue has a row even without jobs.
-- Index: jobs_finished_queue_idx for finished jobs and jobs_claim_idx for pending ones, at most 1,001 entries per queue
-- and status (a queue with more pending jobs: also 1,001 per due priority); jobs_running_idx for all running jobs;
-- paused_queues_pkey, or the table, which is small.
-- Locks: none.
-- Notes: The cost grows with the number of queues, job types and priorities, not with the number of jobs. Dead index
-- entries also cost time until vacuum removes them. The view reads with its owner's rights: the role needs SELECT on
-- the view and on paused_queues.
SELECT
    s.queue,
    max(s.jobs) FILTER (WHERE s.status = 'pending') AS pending,
    max(s.jobs) FILTER (WHERE s.status = 'running') AS running,
    max(s.jobs) FILTER (WHERE s.status = 'completed') AS completed,
    max(s.jobs) FILTER (WHERE s.status = 'dead') AS dead,
    max(s.jobs) FILTER (WHERE s.status = 'cancelled') AS cancelled,
    coalesce(pg_catalog.array_agg(s.status::text) FILTER (WHERE s.is_exact), '{}') AS exact_statuses,
    statement_timestamp() - max(s.oldest_ready_at) AS oldest_ready_age,
    coalesce(max(s.expired_leases), 0) AS expired_leases,
    max(p.paused_until) AS paused_until
FROM goqueue.queue_status_metrics AS s
LEFT JOIN goqueue.paused_queues AS p ON s.queue = p.queue AND p.paused_until > statement_timestamp()
GROUP BY s.queue
ORDER BY s.queue;


-- name: list_workers()
-- Return the workers that hold running jobs. An idle worker holds none, so it is not listed.
-- Returns: one row per worker, ordered by its id: the number of its jobs, their queues, when it claimed the oldest one,
-- when one of them was last claimed, renewed or otherwise changed, the earliest end of a lease (null if none has one),
-- and the number of expired leases.
-- Index: jobs_running_idx, for all running jobs; there are few.
-- Locks: none.
SELECT
    j.locked_by AS worker_id,
    count(*) AS jobs,
    pg_catalog.array_agg(DISTINCT j.queue ORDER BY j.queue) AS queues,
    min(j.locked_at) AS oldest_locked_at,
    max(j.updated_at) AS last_seen_at,
    min(j.lease_expires_at) AS lease_expires_at,
    count(*) FILTER (WHERE j.lease_expires_at <= statement_timestamp()) AS expired_leases
FROM goqueue.jobs AS j
WHERE j.status = 'running'
GROUP BY j.locked_by
ORDER BY j.locked_by;


-- name: list_job_types()
-- Return the types of the stored jobs.
-- Returns: each type once, in order. A type can be missing if only pending jobs have it, and none of these is among the
-- 10,000 newest or the 10,000 oldest pending jobs.
-- Index: jobs_finished_type_idx, one probe per type; jobs_pending_idx, at most 20,000 entries; jobs_running_idx, for
-- all running jobs.
-- Locks: none.
-- Notes: No index has the pending jobs by type: every insert would pay for it. A type whose jobs have finished is found
-- among those.
--
SELECT l.job_type
-- One status is enough: the lanes have the types of all finished jobs.
FROM goqueue.finished_lanes('{completed}'::goqueue.job_status[], NULL, NULL) AS l
UNION
(
    SELECT j.job_type
    FROM goqueue.jobs AS j
    WHERE j.completed_at IS NULL AND j.status <> 'running'
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT 10000
)
UNION
(
    SELECT j.job_type
    FROM goqueue.jobs AS j
    WHERE j.completed_at IS NULL AND j.status <> 'running'
    ORDER BY j.created_at, j.id
    LIMIT 10000
)
UNION
SELECT j.job_type
FROM goqueue.jobs AS j
WHERE j.status = 'running'
ORDER BY job_type;


-- name: pause_queue(queue, until)$
-- Pause a queue until the given time; if that is null, until it is resumed. claim_jobs skips its jobs; running jobs
-- continue. A second call replaces the time.
-- Returns: the queue's name.
-- Index: paused_queues_pkey decides the conflict.
-- Locks: the queue's row in paused_queues. No claim waits for it.
-- Notes: A claim that began before the pause was committed can still return jobs of the queue. Each claim reads all rows
-- of paused_queues, including those whose time has passed: 0.2 us per row. resume_queue deletes a row.
INSERT INTO goqueue.paused_queues AS p (queue, paused_until)
VALUES (:queue::text, coalesce(:until::timestamptz, 'infinity'))
ON CONFLICT (queue) DO UPDATE SET
    paused_until = excluded.paused_until,
    paused_at = excluded.paused_at,
    paused_by = excluded.paused_by
RETURNING p.queue;


-- name: resume_queue(queue)$
-- End the pause of a queue.
-- Returns: true if the queue was paused, false if its pause had ended before; nothing if it has no pause.
-- Index: paused_queues_pkey.
-- Locks: the queue's row in paused_queues.
DELETE FROM goqueue.paused_queues AS p
WHERE p.queue = :queue::text
RETURNING p.paused_until > statement_timestamp() AS was_paused;
