-- Builds and drops the indexes of V0015 while programs write. `goqueue migrate` runs it before V0015 by itself; before
-- `pgmigrate migrate`, run it with psql (not in a transaction: without -1).
--
-- Locks: SHARE UPDATE EXCLUSIVE on goqueue.jobs; nobody is blocked. It waits for older transactions, without a limit.
-- Running it again is safe: an index that an interrupted run left behind is dropped first. So is a valid one, which is
-- then built again.

SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_running_idx;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_running_idx ON goqueue.jobs (id)
WHERE status = 'running';
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_list_idx;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_list_idx ON goqueue.jobs (status, job_type, queue, created_at, id)
WHERE status <> 'running';
