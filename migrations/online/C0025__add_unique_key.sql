-- Adds the column of V0025, and builds its index while programs write. `goqueue migrate` runs it before V0025 by itself;
-- before `pgmigrate migrate`, run it with psql (not in a transaction: without -1).
--
-- Locks: first ACCESS EXCLUSIVE on goqueue.jobs for the column, held briefly; it waits at most 10 seconds for this lock. Then
-- SHARE UPDATE EXCLUSIVE, which blocks nobody; the index build waits for older transactions, without a limit.
-- Running it again is safe: an index that an interrupted run left behind is dropped first. So is a valid one, which is
-- then built again.

SET lock_timeout = '10s';
ALTER TABLE goqueue.jobs ADD COLUMN IF NOT EXISTS unique_key text;
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS goqueue.jobs_unique_key_idx;
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS jobs_unique_key_idx ON goqueue.jobs (unique_key)
WHERE unique_key IS NOT NULL AND completed_at IS NULL;
