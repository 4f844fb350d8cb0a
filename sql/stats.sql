-- Statistics of all queues at once.
--
-- The views that metrics exporters read do the counting (migrations/V0017 and V0021), so that a dashboard and the
-- program show the same figures. CREATE OR REPLACE VIEW tunes them in place.


-- name: queue_stats()
-- Count each queue's jobs by status, and return the age of its oldest due job and the number of its expired leases.
-- Returns: one row per queue, ordered by name. A count is exact up to 1,000. Above, it is an estimate from about 500
-- random pages of the table, and at least 1001. exact_statuses names the statuses whose count is exact, in no order.
-- Index: jobs_finished_queue_idx for finished jobs and jobs_claim_idx for pending ones, at most 1,001 entries per queue
-- and status, and as many per due priority of a queue with more pending jobs; jobs_running_idx for all running jobs.
-- Locks: none.
-- Notes: The cost grows with the number of queues, job types and priorities, not with the number of jobs. Dead index
-- entries also cost time until vacuum removes them. The view reads with its owner's rights: the role needs SELECT on
-- the view.
SELECT
    s.queue,
    max(s.jobs) FILTER (WHERE s.status = 'pending') AS pending,
    max(s.jobs) FILTER (WHERE s.status = 'running') AS running,
    max(s.jobs) FILTER (WHERE s.status = 'completed') AS completed,
    max(s.jobs) FILTER (WHERE s.status = 'dead') AS dead,
    max(s.jobs) FILTER (WHERE s.status = 'cancelled') AS cancelled,
    coalesce(array_agg(s.status::text) FILTER (WHERE s.is_exact), '{}') AS exact_statuses,
    statement_timestamp() - max(s.oldest_ready_at) AS oldest_ready_age,
    coalesce(max(s.expired_leases), 0) AS expired_leases
FROM goqueue.queue_status_metrics AS s
GROUP BY s.queue
ORDER BY s.queue;
