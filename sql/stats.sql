-- What an operator wants to see of all queues at once.
--
-- What is counted, and how, stands in the views that exporters of metrics read as well: one place for both, so that a
-- dashboard and the program never tell two stories (migrations/V0009__create_queue_metrics.sql). They can be tuned in
-- place, by CREATE OR REPLACE VIEW.


-- name: queue_stats()
-- For each queue how many jobs it has by status, how long the oldest due job waits, and how many leases have expired.
-- Returns: one row a queue, by name. A count is exact up to 1000; above that it is an estimate from some 500 randomly
-- chosen pages of the table, and at least 1001. exact_statuses names the statuses whose count is exact.
-- Index: jobs_queue_idx, at most 1001 entries a queue and status; jobs_claim_idx, two probes a queue and priority;
-- jobs_status_idx for the running jobs.
-- Locks: none.
-- Notes: The work grows with the number of queues, job types and priorities, and not with the number of jobs; but with that of
-- the dead index entries, where vacuum is late or a transaction left open elsewhere keeps them. The views read with the
-- rights of their owner: the role needs SELECT on the views.
SELECT
    s.queue,
    max(s.jobs) FILTER (WHERE s.status = 'pending') AS pending,
    max(s.jobs) FILTER (WHERE s.status = 'running') AS running,
    max(s.jobs) FILTER (WHERE s.status = 'completed') AS completed,
    max(s.jobs) FILTER (WHERE s.status = 'dead') AS dead,
    max(s.jobs) FILTER (WHERE s.status = 'cancelled') AS cancelled,
    coalesce(array_agg(s.status::text ORDER BY s.status) FILTER (WHERE s.is_exact), '{}') AS exact_statuses,
    statement_timestamp() - max(m.oldest_ready_at) AS oldest_ready_age,
    coalesce(max(m.expired_leases), 0) AS expired_leases
FROM goqueue.queue_status_metrics AS s
LEFT JOIN goqueue.queue_metrics AS m ON s.queue = m.queue
GROUP BY s.queue
ORDER BY s.queue;
