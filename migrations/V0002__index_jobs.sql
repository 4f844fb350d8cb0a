-- The access paths of goqueue.jobs. migrations/README.md has the measured cost and the plans of each.
--
-- Locks: SHARE on goqueue.jobs until the end of the transaction. V0001 made the table in the same run, and it is empty.
-- squawk-ignore-file require-concurrent-index-creation

-- claim: the jobs of a queue that wait, best priority first, then the longest due. Partial, so that finished jobs
-- (soon nearly all of the table) cost it nothing.
CREATE INDEX jobs_claim_idx ON goqueue.jobs (queue, priority, scheduled_at, id)
WHERE status = 'pending';

-- The idempotency key's uniqueness is enforced here and nowhere else. Jobs without a key have no entry.
CREATE UNIQUE INDEX jobs_idempotency_key_idx ON goqueue.jobs (idempotency_key)
WHERE idempotency_key IS NOT NULL;

-- status: lists and counts by status (or by none: the five statuses are read side by side), newest first.
CREATE INDEX jobs_status_idx ON goqueue.jobs (status, created_at, id) INCLUDE (scheduled_at);

-- queue: lists and counts by queue and/or job type. Status and time follow, so that each combination of filters is a
-- contiguous range, read newest first, however rare its jobs are. Both carry scheduled_at, so that a range of it is
-- looked for without visiting the table.
CREATE INDEX jobs_queue_idx ON goqueue.jobs (queue, job_type, status, created_at, id) INCLUDE (scheduled_at);

COMMENT ON INDEX goqueue.jobs_claim_idx IS 'Claims: pending jobs by queue, priority, time.';
COMMENT ON INDEX goqueue.jobs_idempotency_key_idx IS 'At most one job for an idempotency key.';
COMMENT ON INDEX goqueue.jobs_status_idx IS 'Lists and counts by status, newest first.';
COMMENT ON INDEX goqueue.jobs_queue_idx IS 'Lists and counts by queue and job type, newest first.';
