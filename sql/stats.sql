-- Statistics of all queues at once, and pauses.
--
-- The views that metrics exporters read do the counting (migrations/V0017 and V0024), so that a dashboard and the
-- program show the same figures. CREATE OR REPLACE VIEW tunes them in place.


-- name: queue_stats()
-- Count each queue's jobs by status, and return the age of its oldest due job, the number of its expired leases and
-- the end of its pause.
-- Returns: one row per queue, ordered by name. A count is exact up to 1,000. Above, it is an estimate from about 500
-- random pages of the table, and at least 1001. exact_statuses names the statuses whose count is exact, in no order.
-- paused_until is null for a queue that is not paused. A paused queue has a row even without jobs.
-- Index: jobs_finished_queue_idx for finished jobs and jobs_claim_idx for pending ones, at most 1,001 entries per queue
-- and status, plus 1,001 per due priority of a queue with more pending jobs; jobs_running_idx for all running jobs;
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
    coalesce(array_agg(s.status::text) FILTER (WHERE s.is_exact), '{}') AS exact_statuses,
    statement_timestamp() - max(s.oldest_ready_at) AS oldest_ready_age,
    coalesce(max(s.expired_leases), 0) AS expired_leases,
    max(p.paused_until) AS paused_until
FROM goqueue.queue_status_metrics AS s
LEFT JOIN goqueue.paused_queues AS p ON s.queue = p.queue AND p.paused_until > statement_timestamp()
GROUP BY s.queue
ORDER BY s.queue;


-- name: pause_queue(queue, until)$
-- Pause a queue until the given time; if that is null, until it is resumed. claim_jobs skips its jobs; running jobs
-- continue. A second call replaces the time.
-- Returns: the queue's name.
-- Index: paused_queues_pkey decides the conflict.
-- Locks: the queue's row in paused_queues. No claim waits for it.
-- Notes: A claim that began before the pause was committed can still return jobs of the queue.
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
