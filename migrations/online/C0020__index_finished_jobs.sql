-- Builds the indexes of V0020 while programs write. `goqueue migrate` runs it before V0020 by itself; before
-- `pgmigrate migrate`, run it with psql (not in a transaction: without -1).
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs; nobody is blocked. It waits for older transactions, without a limit.
-- Running it again is safe: an index that an interrupted run left behind is dropped first. So is a valid one, which is
-- then built again.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_pending_idx;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_pending_idx ON goqueue.jobs (created_at, id, queue, job_type, status)
WHERE completed_at IS NULL AND status <> 'running';
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_finished_type_idx;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_finished_type_idx ON goqueue.jobs (job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_finished_queue_idx;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_finished_queue_idx ON goqueue.jobs (queue, job_type, status, created_at, id)
WHERE completed_at IS NOT NULL;
